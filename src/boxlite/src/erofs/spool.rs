//! Bytes that wait in chunks of the scratch file until the image is finished or a layer is applied.

use std::io;
use std::sync::Arc;

use super::space::{CHUNK, Space};

/// Chunks that [`Tails`] keeps: 4 MiB.
const KEPT: usize = 32;

/// Appends to chunks of its own.
#[derive(Debug)]
pub(crate) struct Spool {
    space: Arc<Space>,
    /// Positions of the chunks, the one that is being filled last.
    chunks: Vec<u64>,
    /// What goes to the last chunk.
    buffer: Vec<u8>,
}

impl Spool {
    pub(super) fn new(space: Arc<Space>) -> Self {
        Self { space, chunks: Vec::new(), buffer: Vec::new() }
    }

    /// Appends bytes of any number, to be read by a [`SpoolReader`].
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.chunks.is_empty() || self.buffer.len() == CHUNK {
                self.next_chunk()?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// Appends bytes that fit into a chunk and lie in one: their position in the scratch file.
    pub(super) fn push(&mut self, bytes: &[u8]) -> io::Result<u64> {
        if self.chunks.is_empty() || self.buffer.len() + bytes.len() > CHUNK {
            self.next_chunk()?;
        }
        let at = self.chunks.last().copied().unwrap_or_default() + self.buffer.len() as u64;
        self.buffer.extend_from_slice(bytes);
        Ok(at)
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        self.flush()?;
        self.buffer.clear();
        self.buffer.reserve_exact(CHUNK);
        self.chunks.push(self.space.take_chunk());
        Ok(())
    }

    /// Writes out what is only in memory.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self.chunks.last() {
            Some(at) => self.space.write_scratch(&self.buffer, *at),
            None => Ok(()),
        }
    }

    /// No more is written.
    pub(crate) fn finish(mut self) -> io::Result<Spooled> {
        self.flush()?;
        let last = self.buffer.len();
        Ok(Spooled { space: self.space, chunks: self.chunks, last })
    }
}

/// What was written, at rest.
#[derive(Debug)]
pub(crate) struct Spooled {
    space: Arc<Space>,
    chunks: Vec<u64>,
    /// Bytes of the last chunk; the others are full.
    last: usize,
}

impl Spooled {
    pub(crate) fn into_reader(self) -> SpoolReader {
        SpoolReader { spooled: self, next: 0, buffer: Vec::new(), used: 0 }
    }
}

/// Reads bytes in the order in which they were written.
#[derive(Debug)]
pub(crate) struct SpoolReader {
    spooled: Spooled,
    /// Index of the chunk that comes next.
    next: usize,
    buffer: Vec<u8>,
    used: usize,
}

impl io::Read for SpoolReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.used == self.buffer.len() {
            let Some(at) = self.spooled.chunks.get(self.next) else { return Ok(0) };
            self.next += 1;
            let length = if self.next == self.spooled.chunks.len() { self.spooled.last } else { CHUNK };
            self.buffer.resize(length, 0);
            self.used = 0;
            if self.spooled.space.read_scratch(&mut self.buffer, *at)? < length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let length = out.len().min(self.buffer.len() - self.used);
        out[..length].copy_from_slice(&self.buffer[self.used..][..length]);
        self.used += length;
        Ok(length)
    }
}

/// Reads what was pushed, nearly in order: small inodes fill gaps of earlier blocks.
#[derive(Debug)]
pub(super) struct Tails<'a> {
    space: &'a Space,
    /// Chunks with their position, the one used last in front.
    kept: Vec<(u64, Vec<u8>)>,
}

impl<'a> Tails<'a> {
    pub(super) fn new(space: &'a Space) -> Self {
        Self { space, kept: Vec::new() }
    }

    /// The `length` bytes at `at`, which were pushed as one.
    pub(super) fn read(&mut self, at: u64, length: usize) -> io::Result<&[u8]> {
        let chunk = at / CHUNK as u64 * CHUNK as u64;
        if let Some(found) = self.kept.iter().position(|(kept, _)| *kept == chunk) {
            self.kept[..=found].rotate_right(1);
        } else {
            let mut bytes =
                if self.kept.len() < KEPT { Vec::new() } else { self.kept.pop().unwrap_or_default().1 };
            bytes.resize(CHUNK, 0);
            let length = self.space.read_scratch(&mut bytes, chunk)?;
            bytes.truncate(length);
            self.kept.insert(0, (chunk, bytes));
        }
        let from = usize::try_from(at - chunk).map_err(io::Error::other)?;
        self.kept[0].1.get(from..from + length).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}
