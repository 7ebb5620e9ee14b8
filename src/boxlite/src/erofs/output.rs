//! The image file while it is written: block-aligned appends through one large buffer, zero blocks left as holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::BLOCK;

/// Bytes collected before they are written.
const BUFFER: usize = 1 << 20;

/// The image file. What is appended begins at a block boundary after [`Output::pad`] or [`Output::take_tail`].
#[derive(Debug)]
pub(super) struct Output {
    file: File,
    buffer: Vec<u8>,
    /// Position in the file of the buffer's first byte; a multiple of [`BLOCK`].
    start: u64,
}

impl Output {
    /// Appends after block 0. The file must be empty: what is not written must read as zeros.
    pub(super) fn new(file: File) -> Self {
        Self { file, buffer: Vec::with_capacity(BUFFER + BLOCK), start: BLOCK as u64 }
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

    /// Takes the bytes of the last, partial block out again.
    pub(super) fn take_tail(&mut self, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        // The buffer begins at a block boundary and is flushed in whole blocks, so a partial block is all in it.
        let full = self.buffer.len() / BLOCK * BLOCK;
        take(&self.buffer[full..])?;
        self.buffer.truncate(full);
        Ok(())
    }

    /// Writes out the whole blocks of the buffer, runs of them that are not zero with one call each.
    fn flush(&mut self) -> io::Result<()> {
        let full = self.buffer.len() / BLOCK * BLOCK;
        let zero = |from: usize| self.buffer[from..from + BLOCK] == [0; BLOCK];
        let mut at = 0;
        while at < full {
            if zero(at) {
                at += BLOCK;
                continue;
            }
            let mut end = at + BLOCK;
            while end < full && !zero(end) {
                end += BLOCK;
            }
            self.file.write_all_at(&self.buffer[at..end], self.start + at as u64)?;
            at = end;
        }
        self.start += full as u64;
        self.buffer.drain(..full);
        Ok(())
    }

    /// Writes what is left, frees the storage of `dead` (positions and lengths), writes block 0 and gives the file back.
    pub(super) fn finish(
        mut self,
        dead: impl IntoIterator<Item = (u64, u64)>,
        first: &[u8; BLOCK],
    ) -> io::Result<File> {
        self.pad()?;
        self.flush()?;
        self.file.set_len(self.start)?;
        for (at, length) in dead {
            match punch(&self.file, at, length) {
                // A file system without holes keeps the dead bytes: nothing refers to them.
                Err(Errno::EOPNOTSUPP) => break,
                result => result?,
            }
        }
        self.file.write_all_at(first, 0)?;
        Ok(self.file)
    }
}

fn punch(file: &File, at: u64, length: u64) -> Result<(), Errno> {
    let offset = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
    let length = i64::try_from(length).map_err(|_| Errno::EOVERFLOW)?;
    fallocate(
        file,
        FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
        offset,
        length,
    )
}

/// A temporary file of tails: appended while data streams in, read back nearly in order at the end.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    buffer: Vec<u8>,
    /// Position of the buffer's first byte: of what is to be written, later of what was read.
    start: u64,
}

impl Spool {
    /// Over an empty file.
    pub(super) fn new(file: File) -> Self {
        Self { file, buffer: Vec::with_capacity(BUFFER), start: 0 }
    }

    /// Appends a tail and tells where it lies.
    pub(super) fn push(&mut self, tail: &[u8]) -> io::Result<u64> {
        if self.buffer.len() + tail.len() > BUFFER {
            self.write_out()?;
        }
        let at = self.start + self.buffer.len() as u64;
        self.buffer.extend_from_slice(tail);
        Ok(at)
    }

    fn write_out(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.start)?;
        self.start += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// No more is appended: from here on it is read.
    pub(super) fn into_reader(mut self) -> io::Result<SpoolReader> {
        self.write_out()?;
        Ok(SpoolReader { file: self.file, length: self.start, buffer: Vec::new(), start: 0 })
    }
}

/// Reads tails back, through a window.
#[derive(Debug)]
pub(super) struct SpoolReader {
    file: File,
    length: u64,
    buffer: Vec<u8>,
    start: u64,
}

impl SpoolReader {
    /// The `length` bytes at `at`; both must be of a tail that was pushed.
    pub(super) fn read(&mut self, at: u64, length: usize) -> io::Result<&[u8]> {
        let held = self.start + self.buffer.len() as u64;
        if at < self.start || at + length as u64 > held {
            // Small inodes fill gaps of earlier blocks, so order is not exact: keep some of what lies before.
            self.start = at.saturating_sub(BUFFER as u64 / 4);
            let most = usize::try_from(self.length - self.start).unwrap_or(usize::MAX);
            self.buffer.resize(most.min(BUFFER), 0);
            self.file.read_exact_at(&mut self.buffer, self.start)?;
        }
        let from = usize::try_from(at - self.start).map_err(io::Error::other)?;
        self.buffer.get(from..from + length).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}
