//! What the bare guest and its tests have in common: the commands, and data that shows a loss or a change of order.
//!
//! A connection to port [`PORT`] of the guest begins with one byte, a [`Command`]. Numbers are big-endian.

/// The guest port that `raw=serve` listens on.
pub const PORT: u32 = 1024;

/// The host port that it dials, sending one byte, once it listens.
pub const READY_PORT: u32 = 1025;

/// The first byte of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    /// Sends everything back at once, in small pieces, until the end of the stream.
    Ping = b'P',
    /// Reads a count (64 bits), sends as many bytes of the [`Pattern`], half-closes, and waits for the end.
    Source = b'S',
    /// The same, but closes right after the last byte.
    SourceAndClose = b'C',
    /// Reads to the end of the stream, then sends count and checksum (64 bits each).
    Sink = b'K',
    /// Sends everything back until the end of the stream, in large pieces.
    Echo = b'E',
    /// Reads a port (32 bits) and a count (64 bits) and dials the host's port. Sends the error number (32 bits, 0 for
    /// none); then goes on as `Source` on the new connection, reading it to its end, and sends count and checksum of
    /// what came (64 bits each).
    Dial = b'D',
    /// Sends how many bytes all sources have written so far (64 bits).
    Progress = b'Q',
    /// For each byte that comes: starts this program again, which ends at once, waits for it, and sends the byte back.
    Spawn = b'F',
    /// Powers the machine off.
    PowerOff = b'O',
}

impl Command {
    /// The command of a byte.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Command; 9] = [
            Command::Ping,
            Command::Source,
            Command::SourceAndClose,
            Command::Sink,
            Command::Echo,
            Command::Dial,
            Command::Progress,
            Command::Spawn,
            Command::PowerOff,
        ];
        ALL.into_iter().find(|command| *command as u8 == byte)
    }
}

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// A stream of bytes without a period worth mentioning.
#[derive(Debug, Default)]
pub struct Pattern {
    word: u64,
    /// Bytes of the current word that were given out.
    used: usize,
}

impl Pattern {
    fn current(&self) -> [u8; 8] {
        (self.word.wrapping_add(1).wrapping_mul(MULTIPLIER)).rotate_left(29).to_le_bytes()
    }

    /// Gives out the next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        let mut rest = buffer;
        while !rest.is_empty() {
            let count = rest.len().min(8 - self.used);
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(&self.current()[self.used..self.used + count]);
            rest = later;
            self.used += count;
            if self.used == 8 {
                self.used = 0;
                self.word = self.word.wrapping_add(1);
            }
        }
    }
}

/// Count and checksum of a stream, in whatever pieces it comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checksum {
    count: u64,
    sum: u64,
    carry: [u8; 8],
    carried: usize,
}

impl Checksum {
    /// Adds the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.count += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.carried > 0 {
            let count = bytes.len().min(8 - self.carried);
            self.carry[self.carried..self.carried + count].copy_from_slice(&bytes[..count]);
            self.carried += count;
            bytes = &bytes[count..];
            if self.carried < 8 {
                return;
            }
            self.mix(self.carry);
            self.carried = 0;
        }
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(*word);
        }
        self.carry[..rest.len()].copy_from_slice(rest);
        self.carried = rest.len();
    }

    fn mix(&mut self, word: [u8; 8]) {
        // The multiplication makes the sum depend on the order.
        self.sum = (self.sum ^ u64::from_le_bytes(word)).wrapping_mul(MULTIPLIER).rotate_left(23);
    }

    /// How many bytes there were, and their checksum.
    #[must_use]
    pub fn finish(mut self) -> (u64, u64) {
        let rest = self.carried;
        self.carry[rest..].fill(0);
        self.mix(self.carry);
        (self.count, self.sum)
    }

    /// What `count` bytes of the [`Pattern`] come to.
    #[must_use]
    pub fn of_pattern(count: u64) -> (u64, u64) {
        let (mut pattern, mut checksum) = (Pattern::default(), Self::default());
        let mut buffer = vec![0; 64 << 10];
        let mut left = count;
        while left > 0 {
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            pattern.fill(&mut buffer[..now]);
            checksum.update(&buffer[..now]);
            left -= u64::try_from(now).unwrap_or(left);
        }
        checksum.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_does_not_depend_on_how_the_stream_is_cut() {
        let mut bytes = vec![0; 10_000];
        Pattern::default().fill(&mut bytes);
        for size in [1, 3, 7, 8, 9, 64, 9999, 10_000] {
            let mut checksum = Checksum::default();
            let mut pattern = Pattern::default();
            for piece in bytes.chunks(size) {
                checksum.update(piece);
                let mut again = vec![0; piece.len()];
                pattern.fill(&mut again);
                assert_eq!(again, piece);
            }
            assert_eq!(checksum.finish(), Checksum::of_pattern(10_000), "pieces of {size}");
        }
    }

    #[test]
    fn a_checksum_tells_a_swap_and_a_loss() {
        let mut bytes = vec![0; 4096];
        Pattern::default().fill(&mut bytes);
        let sum = |bytes: &[u8]| {
            let mut checksum = Checksum::default();
            checksum.update(bytes);
            checksum.finish()
        };
        let mut swapped = bytes.clone();
        swapped.rotate_left(2048);
        assert_ne!(sum(&swapped), sum(&bytes));
        assert_ne!(sum(&bytes[..4095]).1, sum(&bytes).1);
    }
}
