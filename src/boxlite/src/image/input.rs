//! A blob while it is read: buffered, counted, hashed, and ended by whoever stops the build.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};

use super::budget::Budget;
use super::digest::Digest;
use super::error::LayerError;
use super::stream::BlobDigest;

/// Bytes read at once.
const BUFFER: usize = 128 << 10;

/// A blob.
pub(super) struct Input<'a> {
    inner: Box<dyn Read + Send>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    hash: Hash,
    /// By the manifest.
    size: Option<u64>,
    /// Bytes read.
    count: Arc<AtomicU64>,
    budget: &'a Budget<'a>,
    /// What ended it. Decompressors keep the kind of an error at most.
    failed: Option<LayerError>,
}

enum Hash {
    None,
    Content,
    Own(Sha256),
}

impl std::fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input").field("count", &self.count).finish_non_exhaustive()
    }
}

impl<'a> Input<'a> {
    /// Of a blob of so many bytes, which is then hashed; or of one of which nothing is known.
    pub(super) fn new(
        inner: Box<dyn Read + Send>,
        size: Option<u64>,
        count: Arc<AtomicU64>,
        budget: &'a Budget<'a>,
    ) -> Self {
        let hash = if size.is_some() { Hash::Own(Sha256::new()) } else { Hash::None };
        Self { inner, buffer: vec![0; BUFFER], start: 0, end: 0, hash, size, count, budget, failed: None }
    }

    /// Says that these bytes are the layer's content, which somebody else hashes.
    pub(super) fn is_content(&mut self) {
        self.hash = Hash::Content;
    }

    /// The next bytes without taking them: `count` of them, fewer only at the end.
    pub(super) fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        debug_assert!(count <= BUFFER);
        while self.end - self.start < count {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            let mut buffer = std::mem::take(&mut self.buffer);
            let read = self.read_some(&mut buffer[self.end..]);
            self.buffer = buffer;
            match read? {
                0 => break,
                length => self.end += length,
            }
        }
        Ok(&self.buffer[self.start..self.end.min(self.start + count)])
    }

    fn read_some(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let result = loop {
            if let Err(cancelled) = self.budget.going() {
                break Err(LayerError::Cancelled(cancelled));
            }
            match self.inner.read(out) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.map_err(LayerError::Read),
            }
        };
        let result = result.and_then(|length| {
            let actual = self.count.fetch_add(length as u64, Ordering::Relaxed) + length as u64;
            match self.size {
                Some(expected) if actual > expected => Err(LayerError::BlobSize { expected, actual }),
                _ => Ok(length),
            }
        });
        match result {
            Ok(length) => {
                if let Hash::Own(hash) = &mut self.hash {
                    hash.update(&out[..length]);
                }
                Ok(length)
            }
            Err(error) => {
                self.failed = Some(error);
                Err(io::Error::other("the blob cannot be read"))
            }
        }
    }

    /// What is known of the blob once it was read to its end, or what prevented that.
    pub(super) fn finish(self) -> Result<(BlobDigest, u64), LayerError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let digest = match self.hash {
            Hash::None => BlobDigest::Unknown,
            Hash::Content => BlobDigest::Content,
            Hash::Own(hash) => BlobDigest::Known(Digest::finish(hash)),
        };
        Ok((digest, self.count.load(Ordering::Relaxed)))
    }
}

impl Read for Input<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end && out.len() >= BUFFER {
            return self.read_some(out);
        }
        let have = self.fill_buf()?;
        let length = have.len().min(out.len());
        out[..length].copy_from_slice(&have[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Input<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.peek(1)?;
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
    }
}
