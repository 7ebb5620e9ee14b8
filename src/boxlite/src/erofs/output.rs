//! The end of the image file, its metadata: block-aligned appends through one large buffer, zero blocks left as holes.

use std::io;

use super::BLOCK;
use super::space::Space;

/// Bytes collected before they are written.
const BUFFER: usize = 1 << 20;

/// The end of the image file.
#[derive(Debug)]
pub(super) struct Output<'a> {
    space: &'a Space,
    buffer: Vec<u8>,
    /// Position in the file of the buffer's first byte; a multiple of [`BLOCK`].
    start: u64,
}

impl<'a> Output<'a> {
    /// Appends behind all blocks that were given out; no more of them may be taken.
    pub(super) fn new(space: &'a Space) -> Self {
        Self { space, buffer: Vec::with_capacity(BUFFER), start: space.end() }
    }

    /// Where the next byte goes.
    pub(super) fn position(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    pub(super) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Fills the last block with zeros.
    pub(super) fn pad(&mut self) -> io::Result<()> {
        self.pad_to(self.position().next_multiple_of(BLOCK as u64))
    }

    /// Fills with zeros up to `position`, which must not be behind what was appended.
    pub(super) fn pad_to(&mut self, position: u64) -> io::Result<()> {
        while self.position() < position {
            let missing = usize::try_from(position - self.position()).unwrap_or(usize::MAX);
            let filled = self.buffer.len().saturating_add(missing).min(BUFFER);
            self.buffer.resize(filled, 0);
            if filled == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes out the whole blocks of the buffer.
    fn flush(&mut self) -> io::Result<()> {
        let full = self.buffer.len() / BLOCK * BLOCK;
        self.space.write_blocks(&self.buffer[..full], self.start)?;
        self.start += full as u64;
        self.buffer.drain(..full);
        Ok(())
    }

    /// Writes what is left: the length of the file.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        self.pad()?;
        self.flush()?;
        Ok(self.start)
    }
}
