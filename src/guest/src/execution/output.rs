//! The output of one execution: two backlogs, who reads them, and when a process has to wait.
//!
//! ```text
//!   pipe ──pump──▶ backlog (256 KiB) ──reader──▶ attached client
//!                                    └─reader──▶ another one, at its own position
//! ```
//!
//! * A reader starts at the oldest byte kept. What every reader has passed stays in the backlog for later ones until
//!   its place is needed.
//! * As long as somebody reads, nothing unread is dropped: the pump stops, the pipe fills, the process waits.
//! * As long as nobody has ever read a stream, it waits as well if it was made to hold; else its oldest is dropped. Once
//!   its last reader has left, its oldest is dropped.
//! * A reader of the head of the streams takes so much and no more, and what waits for its first reader goes on waiting from
//!   the first byte: its client may come back. When there is more, both streams wait for the readers that follow it, from
//!   where it stopped.
//! * A reader that observes is no first reader: as long as nobody else has come, everything is kept for whoever does.
//! * When the process has ended, what the pipe still holds must fit in any case, so that the end is known even if nobody
//!   reads; so the capacity grows by what each source can hold.
//! * Once cut, what still comes is read and thrown away, so that a descendant that kept the pipe is not ended by it.

use std::sync::{Arc, Mutex, PoisonError};

use boxlite_portal::limits;
use boxlite_portal::v1::{Output as Message, StreamKind};
use tokio::sync::watch;

use super::backlog::Backlog;

/// How much of a stream is kept.
pub const CAPACITY: usize = 256 << 10;
/// The position of a reader in a stream that it does not want.
const NOT_READ: u64 = u64::MAX;
/// The most that a source can hold back: the largest pipe that a process may make without a privilege.
const MAX_SOURCE: usize = 1 << 20;

/// The two streams of an execution. A terminal has the first one alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout = 0,
    /// Standard error.
    Stderr = 1,
}

/// The output of one execution.
#[derive(Debug)]
pub struct Output {
    state: Mutex<State>,
    /// Told when there is something new to read.
    news: watch::Sender<()>,
    /// Told when there is room, or another rule about it.
    space: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    backlogs: [Backlog; 2],
    open: [bool; 2],
    /// Positions of each reader; [`NOT_READ`] for a stream that it does not want.
    readers: Vec<(u64, [u64; 2])>,
    next_reader: u64,
    /// Streams that wait for a reader who will come, and from which position on.
    hold: [Option<u64>; 2],
    cut: bool,
}

impl State {
    /// The oldest position of a stream that may not be dropped.
    fn needed(&self, stream: usize) -> Option<u64> {
        let positions = self.readers.iter().map(|(_, positions)| positions[stream]);
        positions.filter(|position| *position != NOT_READ).chain(self.hold[stream]).min()
    }
}

impl Output {
    /// An output whose streams are open. With `hold` it waits for its first reader.
    pub fn new(streams: &[Stream], hold: bool) -> Arc<Self> {
        let open = [Stream::Stdout, Stream::Stderr].map(|stream| streams.contains(&stream));
        let backlogs = [Backlog::new(CAPACITY), Backlog::new(CAPACITY)];
        let hold = open.map(|open| (open && hold).then_some(0));
        let state = State { backlogs, open, readers: Vec::new(), next_reader: 0, hold, cut: false };
        Arc::new(Self {
            state: Mutex::new(state),
            news: watch::Sender::new(()),
            space: watch::Sender::new(()),
        })
    }

    fn locked<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until a stream can take something, and says how much at most.
    pub async fn room(&self, stream: Stream) -> usize {
        let mut space = self.space.subscribe();
        loop {
            let room = self.locked(|state| {
                if state.cut {
                    CAPACITY
                } else {
                    state.backlogs[stream as usize].room(state.needed(stream as usize))
                }
            });
            if room > 0 || space.changed().await.is_err() {
                return room;
            }
        }
    }

    /// Appends to a stream; no more than its room.
    pub fn push(&self, stream: Stream, bytes: &[u8]) {
        self.locked(|state| {
            if !state.cut {
                state.backlogs[stream as usize].push(bytes);
            }
        });
        self.news.send_replace(());
    }

    /// The stream has ended.
    pub fn close(&self, stream: Stream) {
        self.locked(|state| state.open[stream as usize] = false);
        self.news.send_replace(());
    }

    /// The process has ended: what its sources hold, at most this much for each stream, must fit.
    pub fn process_ended(&self, held: [usize; 2]) {
        self.locked(|state| {
            for (backlog, held) in state.backlogs.iter_mut().zip(held) {
                backlog.set_capacity(CAPACITY + held.min(MAX_SOURCE));
            }
        });
        self.space.send_replace(());
    }

    /// Waits until both streams have ended.
    pub async fn closed(&self) {
        let mut news = self.news.subscribe();
        while !self.locked(|state| state.open == [false; 2]) {
            if news.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until each stream that waits for a reader has one.
    pub async fn read_by_all(&self) {
        let mut news = self.news.subscribe();
        while self.locked(|state| state.hold != [None; 2]) {
            if news.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits for readers no longer.
    pub fn let_go(&self) {
        self.locked(|state| state.hold = [None; 2]);
        self.space.send_replace(());
        self.news.send_replace(());
    }

    /// Ends both streams here and now, whoever may still write to them.
    pub fn cut(&self) {
        self.locked(|state| {
            state.cut = true;
            state.open = [false; 2];
        });
        self.space.send_replace(());
        self.news.send_replace(());
    }

    /// How many bytes it keeps.
    pub fn kept(&self) -> usize {
        self.locked(|state| state.backlogs.iter().map(Backlog::kept).sum())
    }

    /// Gives back the memory of what it keeps, unless somebody is reading.
    pub fn release(&self) {
        self.locked(|state| {
            if state.readers.is_empty() {
                state.backlogs.iter_mut().for_each(Backlog::release);
            }
        });
    }

    /// A new reader of these streams, from the oldest byte kept.
    pub fn read(self: &Arc<Self>, streams: &[Stream]) -> Reader {
        self.read_from(streams, [0; 2])
    }

    /// A new reader of these streams, from a position in each, or from the oldest byte kept if that is later.
    pub fn read_from(self: &Arc<Self>, streams: &[Stream], from: [u64; 2]) -> Reader {
        let reader = self.observe_from(streams, from);
        self.locked(|state| {
            for (hold, wanted) in state.hold.iter_mut().zip(reader.wanted) {
                *hold = hold.filter(|_| !wanted);
            }
        });
        // Others may wait for the first reader.
        self.news.send_replace(());
        reader
    }

    /// A new reader of the head of both streams: see [`Reader::beyond`].
    pub fn read_head(self: &Arc<Self>) -> Reader {
        let mut reader = self.observe(&[Stream::Stdout, Stream::Stderr]);
        reader.head = Some([Allowance { messages: limits::HEAD_MESSAGES, bytes: limits::HEAD }; 2]);
        reader
    }

    /// A new reader beside those that the output is meant for: it is waited for like any other, and what waits for its
    /// first reader goes on waiting.
    pub fn observe(self: &Arc<Self>, streams: &[Stream]) -> Reader {
        self.observe_from(streams, [0; 2])
    }

    fn observe_from(self: &Arc<Self>, streams: &[Stream], from: [u64; 2]) -> Reader {
        let wanted = [Stream::Stdout, Stream::Stderr].map(|stream| streams.contains(&stream));
        let news = self.news.subscribe();
        let id = self.locked(|state| {
            let id = state.next_reader;
            state.next_reader += 1;
            let position = |stream: usize| {
                let backlog: &Backlog = &state.backlogs[stream];
                if wanted[stream] { from[stream].clamp(backlog.start(), backlog.end()) } else { NOT_READ }
            };
            let positions = [position(0), position(1)];
            state.readers.push((id, positions));
            id
        });
        Reader {
            output: Arc::clone(self),
            id,
            wanted,
            news,
            first: Stream::Stdout,
            head: None,
            beyond: false,
        }
    }
}

/// One attached client's position in the output. Leaves when it is dropped.
#[derive(Debug)]
pub struct Reader {
    output: Arc<Output>,
    id: u64,
    wanted: [bool; 2],
    news: watch::Receiver<()>,
    /// The stream that is looked at first, so that neither starves the other.
    first: Stream,
    /// What it may still read of each stream, if it reads their head alone.
    head: Option<[Allowance; 2]>,
    /// There was more than that.
    beyond: bool,
}

/// How much of a stream may be read.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    messages: usize,
    bytes: usize,
}

impl Reader {
    /// The next piece of output; `None` when the streams it reads have ended and all of them was read, or there is more
    /// than it may read.
    pub async fn next(&mut self) -> Option<Message> {
        let output = Arc::clone(&self.output);
        loop {
            self.news.mark_unchanged();
            let (message, open) = output.locked(|state| {
                let open = (0..2).any(|stream| self.wanted[stream] && state.open[stream]);
                (self.first_message(state), open)
            });
            if self.beyond {
                return None;
            }
            if let Some((stream, message)) = message {
                self.first = if stream == Stream::Stdout { Stream::Stderr } else { Stream::Stdout };
                self.output.space.send_replace(());
                return Some(message);
            }
            if !open || self.news.changed().await.is_err() {
                return None;
            }
        }
    }

    /// It was to read the head alone and there was more. Both streams wait from where it stopped for those who come next.
    pub fn beyond(&self) -> bool {
        self.beyond
    }

    fn first_message(&mut self, state: &mut State) -> Option<(Stream, Message)> {
        let (_, positions) = state.readers.iter_mut().find(|(id, _)| *id == self.id)?;
        let order = match self.first {
            Stream::Stdout => [Stream::Stdout, Stream::Stderr],
            Stream::Stderr => [Stream::Stderr, Stream::Stdout],
        };
        for stream in order {
            if !self.wanted[stream as usize] {
                continue;
            }
            let position = &mut positions[stream as usize];
            let allowed = self.head.map_or(limits::CHUNK, |head| {
                let Allowance { messages, bytes } = head[stream as usize];
                if messages == 0 { 0 } else { bytes.min(limits::CHUNK) }
            });
            if allowed == 0 {
                if *position < state.backlogs[stream as usize].end() {
                    self.beyond = true;
                    // What was sent may not have arrived, so what waits already goes on waiting from where it does.
                    let positions = *positions;
                    for (hold, position) in state.hold.iter_mut().zip(positions) {
                        *hold = Some(hold.map_or(position, |hold| hold.min(position)));
                    }
                    return None;
                }
                continue;
            }
            if let Some((offset, data)) = state.backlogs[stream as usize].read(*position, allowed) {
                *position = offset + data.len() as u64;
                if let Some(head) = &mut self.head {
                    let left = &mut head[stream as usize];
                    *left = Allowance { messages: left.messages - 1, bytes: left.bytes - data.len() };
                }
                let kind = match stream {
                    Stream::Stdout => StreamKind::Stdout,
                    Stream::Stderr => StreamKind::Stderr,
                };
                return Some((stream, Message { stream: kind.into(), offset, data: data.into() }));
            }
        }
        None
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.output.locked(|state| state.readers.retain(|(id, _)| *id != self.id));
        self.output.space.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    const BOTH: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    /// The value of a future that must be ready now, or None if it waits.
    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    fn fill(output: &Output) {
        while let Some(room) = now(output.room(Stream::Stdout)) {
            output.push(Stream::Stdout, &vec![7; room]);
            if output.kept() == CAPACITY && output.locked(|state| state.needed(0).is_none()) {
                return;
            }
        }
    }

    #[test]
    fn a_held_output_waits_for_its_first_reader_and_loses_nothing() {
        let output = Output::new(&BOTH, true);
        fill(&output);
        assert_eq!(now(output.room(Stream::Stdout)), None);
        assert_eq!(now(output.room(Stream::Stderr)), Some(CAPACITY), "streams do not stop each other");
        let mut reader = output.read(&BOTH);
        let first = now(reader.next()).unwrap().unwrap();
        assert_eq!((first.offset, first.data.len()), (0, limits::CHUNK));
        assert_eq!(now(output.room(Stream::Stdout)), Some(limits::CHUNK));
    }

    #[test]
    fn an_output_that_is_not_held_drops_the_oldest_until_somebody_reads() {
        let output = Output::new(&BOTH, false);
        output.push(Stream::Stdout, &vec![1; CAPACITY]);
        output.push(Stream::Stdout, &[2; 10]);
        let mut reader = output.read(&BOTH);
        assert_eq!(now(reader.next()).unwrap().unwrap().offset, 10);
        output.push(Stream::Stdout, &vec![3; limits::CHUNK]);
        assert_eq!(now(output.room(Stream::Stdout)), None);
    }

    #[test]
    fn the_slowest_of_two_readers_sets_the_pace_until_it_leaves() {
        let output = Output::new(&BOTH, true);
        let (mut quick, slow) = (output.read(&BOTH), output.read(&BOTH));
        fill(&output);
        while now(quick.next()).is_some() {}
        assert_eq!(now(output.room(Stream::Stdout)), None);
        drop(slow);
        assert_eq!(now(output.room(Stream::Stdout)), Some(CAPACITY));
    }

    #[test]
    fn a_later_reader_gets_what_earlier_ones_have_read() {
        let output = Output::new(&BOTH, true);
        output.push(Stream::Stderr, b"seen");
        let mut first = output.read(&BOTH);
        assert_eq!(now(first.next()).unwrap().unwrap().data, &b"seen"[..]);
        drop(first);
        assert_eq!(now(output.read(&BOTH).next()).unwrap().unwrap().data, &b"seen"[..]);
    }

    #[test]
    fn a_reader_that_comes_back_goes_on_where_it_was() {
        let output = Output::new(&BOTH, true);
        output.push(Stream::Stdout, b"0123456789");
        let mut reader = output.read_from(&BOTH, [4, 0]);
        let message = now(reader.next()).unwrap().unwrap();
        assert_eq!((message.offset, &message.data[..]), (4, &b"456789"[..]));
        output.push(Stream::Stdout, &vec![1; CAPACITY]);
        while now(reader.next()).is_some() {}
        drop(reader);
        output.push(Stream::Stdout, b"x");
        let first = now(output.read_from(&BOTH, [4, 0]).next()).unwrap().unwrap();
        assert_eq!(first.offset, 11, "what is no longer kept is a gap");
        assert_eq!(
            now(output.read_from(&BOTH, [u64::MAX, 0]).next()),
            None,
            "a position yet to come is the end"
        );
    }

    #[test]
    fn a_reader_alternates_between_streams_and_ends_after_the_last_byte() {
        let output = Output::new(&BOTH, true);
        output.push(Stream::Stdout, &vec![1; 2 * limits::CHUNK]);
        output.push(Stream::Stderr, b"e");
        output.close(Stream::Stdout);
        output.close(Stream::Stderr);
        let mut reader = output.read(&BOTH);
        let mut kinds = Vec::new();
        while let Some(message) = now(reader.next()).unwrap() {
            kinds.push(message.stream());
        }
        assert_eq!(kinds, [StreamKind::Stdout, StreamKind::Stderr, StreamKind::Stdout]);
    }

    #[test]
    fn a_reader_of_one_stream_neither_gets_nor_holds_up_the_other() {
        let output = Output::new(&BOTH, false);
        let mut reader = output.read(&[Stream::Stderr]);
        output.push(Stream::Stdout, &vec![1; CAPACITY]);
        assert_eq!(now(output.room(Stream::Stdout)), Some(CAPACITY));
        output.push(Stream::Stderr, b"e");
        output.close(Stream::Stderr);
        assert_eq!(now(reader.next()).unwrap().unwrap().data, &b"e"[..]);
        assert_eq!(now(reader.next()).unwrap(), None, "the other stream is still open");
    }

    #[test]
    fn each_held_stream_waits_for_a_reader_of_its_own() {
        let output = Output::new(&BOTH, true);
        let first = output.read(&[Stream::Stdout]);
        output.push(Stream::Stderr, &vec![1; CAPACITY]);
        assert_eq!(now(output.room(Stream::Stderr)), None);
        assert_eq!(now(output.read_by_all()), None);
        drop(first);
        let mut second = output.read(&[Stream::Stderr]);
        assert_eq!(now(output.read_by_all()), Some(()));
        assert_eq!(now(second.next()).unwrap().unwrap().offset, 0);
    }

    #[test]
    fn a_reader_of_the_head_gets_all_of_short_streams() {
        let output = Output::new(&BOTH, true);
        let mut reader = output.read_head();
        output.push(Stream::Stdout, &vec![1; limits::HEAD]);
        assert_eq!(now(reader.next()).unwrap().unwrap().data.len(), limits::HEAD);
        output.push(Stream::Stderr, b"e");
        output.close(Stream::Stdout);
        output.close(Stream::Stderr);
        assert_eq!(now(reader.next()).unwrap().unwrap().stream(), StreamKind::Stderr);
        assert_eq!(now(reader.next()).unwrap(), None);
        assert!(!reader.beyond());
    }

    #[test]
    fn a_head_has_so_many_messages_however_small_and_so_many_bytes_however_large() {
        for piece in [1, limits::HEAD - 1] {
            let output = Output::new(&BOTH, true);
            let mut reader = output.read_head();
            let (mut messages, mut bytes) = (0, 0);
            loop {
                output.push(Stream::Stdout, &vec![7; piece]);
                let Some(message) = now(reader.next()).unwrap() else { break };
                (messages, bytes) = (messages + 1, bytes + message.data.len());
            }
            assert!(reader.beyond());
            let full =
                if piece == 1 { (limits::HEAD_MESSAGES, limits::HEAD_MESSAGES) } else { (2, limits::HEAD) };
            assert_eq!((messages, bytes), full);
        }
    }

    #[test]
    fn what_is_beyond_the_head_of_one_stream_waits_for_new_readers_of_both() {
        let output = Output::new(&BOTH, true);
        let mut reader = output.read_head();
        output.push(Stream::Stderr, b"e");
        assert!(now(reader.next()).unwrap().is_some());
        output.push(Stream::Stdout, &vec![7; limits::HEAD + 1]);
        assert!(now(reader.next()).unwrap().is_some());
        assert_eq!(now(reader.next()).unwrap(), None);
        drop(reader);
        fill(&output);
        assert_eq!(now(output.room(Stream::Stdout)), None, "nothing is dropped");
        assert_eq!(output.locked(|state| state.backlogs[0].start()), 0, "not even what was sent");
        assert_eq!(now(output.room(Stream::Stderr)), Some(CAPACITY - 1));
        let head = limits::HEAD as u64;
        let mut stdout = output.read_from(&[Stream::Stdout], [head, 0]);
        assert_eq!(now(output.read_by_all()), None, "one has not come yet");
        let mut stderr = output.read_from(&[Stream::Stderr], [0, 1]);
        assert_eq!(now(output.read_by_all()), Some(()));
        assert_eq!(now(stdout.next()).unwrap().unwrap().offset, head);
        output.push(Stream::Stderr, b"r");
        assert_eq!(now(stderr.next()).unwrap().unwrap().data, &b"r"[..]);
    }

    #[test]
    fn a_client_that_is_lost_with_the_head_finds_all_of_it_again() {
        let output = Output::new(&BOTH, true);
        let mut reader = output.read_head();
        output.push(Stream::Stdout, &vec![7; limits::HEAD]);
        assert!(now(reader.next()).unwrap().is_some());
        fill(&output);
        drop(reader);
        assert_eq!(now(output.room(Stream::Stdout)), None);
        let mut again = output.read(&BOTH);
        assert_eq!(now(again.next()).unwrap().unwrap().offset, 0);
    }

    #[test]
    fn readers_who_do_not_come_are_waited_for_until_they_are_let_go() {
        let output = Output::new(&BOTH, true);
        let mut reader = output.read_head();
        output.push(Stream::Stdout, &vec![7; limits::HEAD + 1]);
        while now(reader.next()).unwrap().is_some() {}
        drop(reader);
        fill(&output);
        output.let_go();
        assert_eq!((now(output.read_by_all()), now(output.room(Stream::Stdout))), (Some(()), Some(CAPACITY)));
    }

    #[test]
    fn an_observer_does_not_take_the_place_of_the_first_reader() {
        let output = Output::new(&BOTH, true);
        let mut observer = output.observe(&BOTH);
        fill(&output);
        while now(observer.next()).is_some() {}
        assert_eq!(now(output.room(Stream::Stdout)), None, "what the observer has read is kept");
        assert_eq!(now(output.read_by_all()), None);
        let mut reader = output.read(&BOTH);
        assert_eq!(now(output.read_by_all()), Some(()));
        assert_eq!(now(reader.next()).unwrap().unwrap().offset, 0);
        assert_eq!(now(output.room(Stream::Stdout)), Some(limits::CHUNK));
    }

    #[test]
    fn an_observer_is_waited_for_until_it_leaves() {
        for hold in [true, false] {
            let output = Output::new(&BOTH, hold);
            let observer = output.observe(&BOTH);
            let mut reader = hold.then(|| output.read(&BOTH));
            output.push(Stream::Stdout, &vec![7; CAPACITY]);
            while reader.as_mut().is_some_and(|reader| now(reader.next()).is_some()) {}
            assert_eq!(now(output.room(Stream::Stdout)), None, "{hold}");
            drop(observer);
            assert_eq!(now(output.room(Stream::Stdout)), Some(CAPACITY), "{hold}");
        }
    }

    #[test]
    fn an_output_that_is_not_held_waits_for_nobody() {
        assert_eq!(now(Output::new(&BOTH, false).read_by_all()), Some(()));
    }

    #[test]
    fn after_the_end_of_the_process_a_full_pipe_fits_without_a_reader() {
        let output = Output::new(&[Stream::Stdout], true);
        fill(&output);
        assert_eq!(now(output.room(Stream::Stdout)), None);
        output.process_ended([200_000, 0]);
        assert_eq!(now(output.room(Stream::Stdout)), Some(200_000));
        output.process_ended([usize::MAX, 0]);
        assert_eq!(now(output.room(Stream::Stdout)), Some(MAX_SOURCE));
    }

    #[test]
    fn once_cut_it_ends_for_readers_and_swallows_what_still_comes() {
        let output = Output::new(&BOTH, true);
        output.push(Stream::Stdout, b"before");
        let mut reader = output.read(&BOTH);
        output.cut();
        output.push(Stream::Stdout, b"after");
        assert_eq!(now(reader.next()).unwrap().unwrap().data, &b"before"[..]);
        assert_eq!(now(reader.next()).unwrap(), None);
        assert!(now(output.room(Stream::Stdout)).is_some());
        assert_eq!(now(output.closed()), Some(()));
    }
}
