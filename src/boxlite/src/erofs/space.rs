//! The two files beneath an image in the making, shared by all who write contents into it at once.
//!
//! Nobody waits for anybody: blocks of the image and chunks of the scratch file are given out by a counter each, and each
//! is written by the one who took it. What is taken and not written stays a hole.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::BLOCK;
use super::writer::WriterError;

/// Bytes of a chunk of the scratch file.
pub(super) const CHUNK: usize = 128 << 10;

/// The image file and the scratch file.
#[derive(Debug)]
pub(super) struct Space {
    image: File,
    scratch: File,
    /// First block of the image that nobody has. Block 0 is the superblock's.
    next_block: AtomicU64,
    /// First chunk of the scratch file that nobody has. Chunk 0 is never given out: no position in the file is 0.
    next_chunk: AtomicU64,
}

impl Space {
    /// Over empty files: what is not written must read as zeros.
    pub(super) fn new(image: File, scratch: File) -> Self {
        Self { image, scratch, next_block: AtomicU64::new(1), next_chunk: AtomicU64::new(1) }
    }

    /// Gives out blocks in a row: the position of the first.
    pub(super) fn take(&self, blocks: u64) -> Result<u64, WriterError> {
        let grown = |next: u64| next.checked_add(blocks).filter(|end| *end <= u64::from(u32::MAX));
        let taken = self.next_block.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown);
        taken.map(|block| block * BLOCK as u64).map_err(|_| WriterError::TooLarge)
    }

    /// Takes back what lies from `at` to `end`, if nobody has taken anything behind it.
    pub(super) fn give_back(&self, at: u64, end: u64) {
        let (at, end) = (at / BLOCK as u64, end / BLOCK as u64);
        // Otherwise it stays a hole.
        self.next_block.compare_exchange(end, at, Ordering::Relaxed, Ordering::Relaxed).unwrap_or_default();
    }

    /// Where the blocks end that were given out.
    pub(super) fn end(&self) -> u64 {
        self.next_block.load(Ordering::Relaxed) * BLOCK as u64
    }

    /// Gives out a chunk of the scratch file: its position.
    pub(super) fn take_chunk(&self) -> u64 {
        self.next_chunk.fetch_add(1, Ordering::Relaxed) * CHUNK as u64
    }

    /// Writes whole blocks, runs of them that are not zero with one call each.
    pub(super) fn write_blocks(&self, blocks: &[u8], at: u64) -> io::Result<()> {
        debug_assert!(blocks.len().is_multiple_of(BLOCK) && at.is_multiple_of(BLOCK as u64));
        let zero = |from: usize| blocks[from..from + BLOCK] == [0; BLOCK];
        let mut from = 0;
        while from < blocks.len() {
            if zero(from) {
                from += BLOCK;
                continue;
            }
            let mut end = from + BLOCK;
            while end < blocks.len() && !zero(end) {
                end += BLOCK;
            }
            self.image.write_all_at(&blocks[from..end], at + from as u64)?;
            from = end;
        }
        Ok(())
    }

    /// Reads what was written to the image.
    pub(super) fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        // Blocks of zeros at the end of what was written so far lie behind the end of the file.
        let length = fill(&self.image, bytes, at)?;
        bytes[length..].fill(0);
        Ok(())
    }

    pub(super) fn write_scratch(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.scratch.write_all_at(bytes, at)
    }

    /// Reads of the scratch file as much as there is: the number of bytes.
    pub(super) fn read_scratch(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        fill(&self.scratch, bytes, at)
    }

    /// Sets the length of the image, frees the storage of `dead` (positions and lengths), writes block 0 and gives the
    /// file back.
    pub(super) fn finish(
        self,
        length: u64,
        dead: impl IntoIterator<Item = (u64, u64)>,
        first: &[u8; BLOCK],
    ) -> io::Result<File> {
        self.image.set_len(length)?;
        for (at, length) in dead {
            match punch(&self.image, at, length) {
                // A file system without holes keeps the dead bytes: nothing refers to them.
                Err(Errno::EOPNOTSUPP) => break,
                result => result?,
            }
        }
        self.image.write_all_at(first, 0)?;
        Ok(self.image)
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut have = 0;
    while have < bytes.len() {
        match file.read_at(&mut bytes[have..], at + have as u64) {
            Ok(0) => break,
            Ok(length) => have += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
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
