//! Writes the contents of files, one after the other; several of these write into one image at once.
//!
//! The size of a file is known before its contents, so its blocks are taken in one go: small files share a *chunk* of
//! blocks, larger ones have a run of their own. The last, partial block (the tail) waits in the scratch file when it fits
//! behind the inode.

use std::hash::Hasher as _;
use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;

use twox_hash::xxhash3_64::{DEFAULT_SECRET_LENGTH, RawHasher, SecretBuffer};

use super::BLOCK;
use super::space::Space;
use super::spool::Spool;
use super::tree::Extent;
use super::writer::{WriterError, block, fits_inline, tail_length};
use super::xattr::Xattrs;

/// Blocks of a chunk; a file with as many has a run of its own.
const CHUNK_BLOCKS: u64 = 256;
/// Bytes collected before they are written.
const BUFFER: usize = 256 << 10;
/// Bytes that are worth a call of their own, without a copy.
const DIRECT: usize = 64 << 10;

type Hash = RawHasher<&'static [u8; DEFAULT_SECRET_LENGTH]>;

/// Blocks that were taken and are being filled.
#[derive(Debug, Default, Clone, Copy)]
struct Place {
    at: u64,
    end: u64,
}

/// The file that is being written.
struct Current {
    size: u64,
    first: u64,
    blocks: u64,
    /// Bytes to come that go into blocks, and behind them into the tail.
    left: u64,
    tail: usize,
    hash: Option<Hash>,
}

/// Writes contents.
pub(crate) struct Contents {
    space: Arc<Space>,
    tails: Spool,
    /// Where the buffer's first byte goes, and where what it belongs to ends.
    place: Place,
    /// The chunk of small files while a run is written.
    chunk: Option<Place>,
    buffer: Vec<u8>,
    tail: Vec<u8>,
    current: Option<Current>,
}

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contents").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Contents {
    pub(super) fn new(space: Arc<Space>) -> Self {
        Self {
            tails: Spool::new(space.clone()),
            space,
            place: Place::default(),
            chunk: None,
            buffer: Vec::new(),
            tail: Vec::new(),
            current: None,
        }
    }

    /// A place for other things that belong to these contents.
    pub(crate) fn spool(&self) -> Spool {
        Spool::new(self.space.clone())
    }

    /// Begins a file of so many bytes that will have these attributes. Takes address space, but no storage yet.
    pub(crate) fn begin(&mut self, size: u64, xattrs: &Xattrs) -> Result<(), WriterError> {
        let tail = tail_length(size);
        let inline = tail > 0 && fits_inline(xattrs.bytes().len(), tail);
        let blocks = size / BLOCK as u64 + u64::from(tail > 0 && !inline);
        if blocks > 0 {
            self.make_room(blocks)?;
        }
        self.tail.clear();
        self.current = Some(Current {
            size,
            first: self.position(),
            blocks,
            left: if inline { size - tail as u64 } else { size },
            tail: if inline { tail } else { 0 },
            hash: (blocks > 0).then(|| RawHasher::new(SecretBuffer::default())),
        });
        Ok(())
    }

    /// Makes the next `blocks` blocks lie in a row.
    fn make_room(&mut self, blocks: u64) -> Result<(), WriterError> {
        let bytes = blocks * BLOCK as u64;
        if bytes <= self.place.end - self.position() {
            return Ok(());
        }
        if blocks >= CHUNK_BLOCKS {
            let at = self.space.take(blocks)?;
            self.flush()?;
            self.chunk = Some(self.place);
            self.place = Place { at, end: at + bytes };
            return Ok(());
        }
        let at = self.space.take(CHUNK_BLOCKS)?;
        if at == self.place.end {
            // Nobody else took any in between: the chunk just grows.
            self.place.end += CHUNK_BLOCKS * BLOCK as u64;
        } else {
            self.flush()?;
            self.place = Place { at, end: at + CHUNK_BLOCKS * BLOCK as u64 };
        }
        Ok(())
    }

    fn position(&self) -> u64 {
        self.place.at + self.buffer.len() as u64
    }

    /// Appends to the file.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), WriterError> {
        let current = self.current.as_mut().ok_or(WriterError::Size)?;
        let now = usize::try_from(current.left).unwrap_or(usize::MAX).min(bytes.len());
        let (bytes, tail) = bytes.split_at(now);
        if tail.len() > current.tail {
            return Err(WriterError::Size);
        }
        current.left -= now as u64;
        current.tail -= tail.len();
        if let Some(hash) = &mut current.hash {
            hash.write(bytes);
            hash.write(tail);
        }
        self.tail.extend_from_slice(tail);
        self.put(bytes)?;
        Ok(())
    }

    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let over = self.buffer.len() % BLOCK;
            let take = if over > 0 {
                BLOCK - over
            } else if bytes.len() >= DIRECT {
                let full = bytes.len() / BLOCK * BLOCK;
                self.flush()?;
                self.space.write_blocks(&bytes[..full], self.place.at)?;
                self.place.at += full as u64;
                bytes = &bytes[full..];
                continue;
            } else {
                BUFFER - self.buffer.len()
            };
            let (now, later) = bytes.split_at(take.min(bytes.len()));
            if self.buffer.capacity() == 0 {
                self.buffer.reserve_exact(BUFFER);
            }
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes out the buffer, which ends with a block.
    fn flush(&mut self) -> io::Result<()> {
        self.space.write_blocks(&self.buffer, self.place.at)?;
        self.place.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Ends the file, all of whose bytes must have been appended.
    pub(crate) fn end(&mut self) -> Result<Extent, WriterError> {
        let Current { size, first, blocks, left, tail, hash } =
            self.current.take().ok_or(WriterError::Size)?;
        if left > 0 || tail > 0 {
            return Err(WriterError::Size);
        }
        let padded = self.buffer.len().next_multiple_of(BLOCK);
        self.buffer.resize(padded, 0);
        if self.buffer.len() >= BUFFER || self.chunk.is_some() {
            self.flush()?;
        }
        if let Some(chunk) = self.chunk.take() {
            self.place = chunk;
        }
        let tail_at = if self.tail.is_empty() { None } else { NonZeroU64::new(self.tails.push(&self.tail)?) };
        Ok(Extent {
            first_block: block(first)?,
            blocks: u32::try_from(blocks).map_err(|_| WriterError::TooLarge)?,
            size,
            tail_at,
            hash: hash.map_or(0, |hash| hash.finish()),
        })
    }

    /// Writes out what is only in memory; more may follow.
    pub(crate) fn sync(&mut self) -> Result<(), WriterError> {
        self.flush()?;
        self.tails.flush()?;
        Ok(())
    }

    /// Writes out what is only in memory. All contents must be closed before the image is finished.
    pub(crate) fn close(mut self) -> Result<(), WriterError> {
        self.sync()
    }
}

impl Drop for Contents {
    /// Gives back what was not needed.
    fn drop(&mut self) {
        self.space.give_back(self.position(), self.place.end);
    }
}
