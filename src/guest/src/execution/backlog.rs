//! The last bytes of one output stream, with the position of each.
//!
//! ```text
//!   0 ........ start ============ end ........
//!     dropped         kept              yet to come
//! ```
//!
//! A plain value without waiting or locks: what may be dropped is decided by whoever asks for [`Backlog::room`].

use std::collections::VecDeque;

/// Bytes of a stream that are kept.
#[derive(Debug)]
pub struct Backlog {
    start: u64,
    bytes: VecDeque<u8>,
    capacity: usize,
}

impl Backlog {
    /// An empty one that keeps at most `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self { start: 0, bytes: VecDeque::new(), capacity }
    }

    /// Position of the oldest byte kept.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Position behind the newest byte.
    pub fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// How many bytes are kept.
    pub fn kept(&self) -> usize {
        self.bytes.len()
    }

    /// Changes the capacity; what is kept stays until more is pushed.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    /// How much can be pushed without dropping anything from position `needed` on; all of the capacity if nothing is
    /// needed.
    pub fn room(&self, needed: Option<u64>) -> usize {
        let Some(needed) = needed else { return self.capacity };
        let unread = self.end() - needed.clamp(self.start, self.end());
        self.capacity.saturating_sub(usize::try_from(unread).unwrap_or(usize::MAX))
    }

    /// Appends, and drops the oldest bytes beyond the capacity.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let excess = self.bytes.len().saturating_sub(self.capacity);
        self.bytes.drain(..excess);
        self.start += excess as u64;
    }

    /// Drops everything that is kept.
    pub fn release(&mut self) {
        self.start = self.end();
        self.bytes = VecDeque::new();
    }

    /// Up to `max` bytes from `position` on, or from the oldest kept one if that is later, with where they start.
    pub fn read(&self, position: u64, max: usize) -> Option<(u64, Vec<u8>)> {
        let from = position.clamp(self.start, self.end());
        let skip = usize::try_from(from - self.start).unwrap_or(usize::MAX).min(self.bytes.len());
        let length = max.min(self.bytes.len() - skip);
        if length == 0 {
            return None;
        }
        let mut data = Vec::with_capacity(length);
        let (front, back) = self.bytes.as_slices();
        for slice in
            [front.get(skip..).unwrap_or_default(), &back[skip.saturating_sub(front.len()).min(back.len())..]]
        {
            let take = slice.len().min(length - data.len());
            data.extend_from_slice(&slice[..take]);
        }
        Some((from, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Action {
        Push(usize),
        Read(u64, usize),
        Shrink(usize),
        Release,
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            4 => (0..40_usize).prop_map(Action::Push),
            4 => (0..400_u64, 0..40_usize).prop_map(|(position, max)| Action::Read(position, max)),
            1 => (1..40_usize).prop_map(Action::Shrink),
            1 => Just(Action::Release),
        ]
    }

    proptest! {
        /// The model is the whole stream in a vector and the position of the oldest byte kept.
        #[test]
        fn it_keeps_the_newest_bytes_of_the_stream_at_their_positions(
            actions in proptest::collection::vec(action(), 1..60),
        ) {
            let mut capacity = 24;
            let mut backlog = Backlog::new(capacity);
            let mut stream: Vec<u8> = Vec::new();
            let mut start = 0;
            for action in actions {
                match action {
                    Action::Push(count) => {
                        let byte = |i| u8::try_from((stream.len() + i) % 251).unwrap();
                        let bytes: Vec<u8> = (0..count).map(byte).collect();
                        stream.extend(&bytes);
                        backlog.push(&bytes);
                        start = start.max(stream.len().saturating_sub(capacity));
                    }
                    Action::Read(position, max) => {
                        let from = usize::try_from(position).unwrap().clamp(start, stream.len());
                        let to = (from + max).min(stream.len());
                        let expected = (from < to).then(|| (from as u64, stream[from..to].to_vec()));
                        prop_assert_eq!(backlog.read(position, max), expected);
                    }
                    Action::Shrink(to) => {
                        capacity = to;
                        backlog.set_capacity(to);
                    }
                    Action::Release => {
                        backlog.release();
                        start = stream.len();
                    }
                }
                prop_assert_eq!((backlog.start(), backlog.end()), (start as u64, stream.len() as u64));
            }
        }

        #[test]
        fn pushing_no_more_than_the_room_drops_nothing_that_is_needed(
            needed in 0..100_u64,
            pushes in proptest::collection::vec(0..30_usize, 1..20),
        ) {
            let mut backlog = Backlog::new(16);
            for push in pushes {
                let room = backlog.room(Some(needed));
                backlog.push(&vec![0; push.min(room)]);
                if needed <= backlog.end() {
                    prop_assert!(backlog.start() <= needed);
                }
            }
        }
    }
}
