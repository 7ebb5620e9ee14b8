//! One layer's bytes: read, hashed, inflated, hashed again.
//!
//! ```text
//!   thread                                          caller
//!   blob ─▶ SHA-256 ─▶ inflate ─▶ pieces of 256 KiB ─▶ SHA-256 (content) ─▶ tar
//!                                 ◀─ empty buffers ──
//! ```
//!
//! Inflating takes most of the time, so it has a thread to itself. At most [`PIECES`] buffers exist. The blob is hashed only
//! where its digest is to be checked, and never twice: the content of a blob that is not compressed is the blob.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;

use sha2::{Digest as _, Sha256};

use super::budget::Budget;
use super::digest::Digest;
use super::error::LayerError;
use super::frames::Frames;
use super::gzip::Members;
use super::input::Input;
use super::tar::Source;

/// Bytes of a piece: few enough to stay in the cache from thread to thread.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;

/// What the producer found out about the blob, once it has read all of it.
#[derive(Debug, Clone, Copy)]
struct Blob {
    digest: BlobDigest,
    size: u64,
}

/// What is known of a blob's digest.
#[derive(Debug, Clone, Copy)]
pub(super) enum BlobDigest {
    /// Nobody asked.
    Unknown,
    /// That of the content.
    Content,
    Known(Digest),
}

#[derive(Debug)]
enum Message {
    Piece(Vec<u8>),
    End(Blob),
    Failed(LayerError),
}

/// Digests and sizes of a layer that was read to its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Totals {
    /// The blob's digest; of one that was not hashed and is compressed, nothing is known.
    pub(super) blob: Option<Digest>,
    pub(super) blob_size: u64,
    pub(super) content: Digest,
}

/// The uncompressed stream of one layer.
pub(super) struct Stream<'a, 'w> {
    pieces: Receiver<Message>,
    empty: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    used: usize,
    hash: Sha256,
    content_size: u64,
    /// Bytes read of the blob.
    compressed: Arc<AtomicU64>,
    blob: Option<Blob>,
    budget: &'a Budget<'a>,
    /// Told after each piece, with the bytes so far.
    told: &'w mut dyn FnMut(u64) -> Result<(), LayerError>,
}

impl std::fmt::Debug for Stream<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("content_size", &self.content_size).finish_non_exhaustive()
    }
}

impl<'a, 'w> Stream<'a, 'w> {
    /// Begins to read `blob` on a thread of `scope`, which ends when the stream is dropped. The blob is hashed, and refused
    /// when there is more of it, if its size is given.
    pub(super) fn start<'scope, 'env: 'scope>(
        scope: &'scope Scope<'scope, 'env>,
        blob: Box<dyn Read + Send>,
        blob_size: Option<u64>,
        budget: &'a Budget<'a>,
        told: &'w mut dyn FnMut(u64) -> Result<(), LayerError>,
    ) -> Result<Self, LayerError>
    where
        'a: 'scope,
    {
        let (to_caller, pieces) = sync_channel(PIECES);
        let (empty, to_producer) = sync_channel(PIECES);
        for _ in 0..PIECES {
            // There is room for all of them, and the receiver is at hand.
            empty.try_send(Vec::new()).expect("the channel has room for all buffers");
        }
        let compressed = Arc::new(AtomicU64::new(0));
        let input = Input::new(blob, blob_size, compressed.clone(), budget);
        let producing = move || {
            let last = match produce(input, budget, &to_caller, &to_producer) {
                Ok(Some(blob)) => Message::End(blob),
                // The caller dropped the stream.
                Ok(None) => return,
                Err(error) => Message::Failed(error),
            };
            // An error here means that the caller dropped the stream, and wants to know nothing more.
            to_caller.send(last).unwrap_or_default();
        };
        let thread = std::thread::Builder::new().name("image-inflate".to_owned());
        thread.spawn_scoped(scope, producing).map_err(LayerError::Read)?;
        Ok(Self {
            pieces,
            empty,
            piece: Vec::new(),
            used: 0,
            hash: Sha256::new(),
            content_size: 0,
            compressed,
            blob: None,
            budget,
            told,
        })
    }

    /// Reads what is left, and tells what the whole was.
    pub(super) fn finish(mut self) -> Result<Totals, LayerError> {
        loop {
            let have = self.fill()?.len();
            if have == 0 {
                break;
            }
            self.consume(have);
        }
        let blob = self.blob.expect("the stream ended");
        let content = Digest::finish(self.hash);
        let digest = match blob.digest {
            BlobDigest::Unknown => None,
            BlobDigest::Content => Some(content),
            BlobDigest::Known(digest) => Some(digest),
        };
        Ok(Totals { blob: digest, blob_size: blob.size, content })
    }

    fn next_piece(&mut self) -> Result<(), LayerError> {
        let stopped = || LayerError::Read(io::Error::other("the reading thread stopped"));
        match self.pieces.recv().map_err(|_| stopped())? {
            Message::Piece(piece) => {
                self.content_size += piece.len() as u64;
                self.check_limits(piece.len() as u64)?;
                self.hash.update(&piece);
                let old = std::mem::replace(&mut self.piece, piece);
                self.used = 0;
                if old.capacity() > 0 {
                    // When the producer has ended already, the buffer is of no more use.
                    self.empty.try_send(old).unwrap_or_default();
                }
                (self.told)(self.content_size)?;
            }
            Message::End(blob) => self.blob = Some(blob),
            Message::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn check_limits(&self, more: u64) -> Result<(), LayerError> {
        self.budget.bytes(more)?;
        let (limit, from) = (self.budget.limits.ratio, self.budget.limits.ratio_from);
        // The producer is some pieces ahead, never behind: what it has read so far made at least what is here.
        let compressed = self.compressed.load(Ordering::Relaxed);
        if self.content_size > from && self.content_size > compressed.saturating_mul(limit) {
            return Err(LayerError::Ratio { compressed, uncompressed: self.content_size, limit });
        }
        Ok(())
    }
}

impl Source for Stream<'_, '_> {
    type Error = LayerError;

    fn fill(&mut self) -> Result<&[u8], LayerError> {
        while self.used == self.piece.len() && self.blob.is_none() {
            self.next_piece()?;
        }
        Ok(&self.piece[self.used..])
    }

    fn consume(&mut self, count: usize) {
        self.used += count;
    }
}

/// Reads the blob to its end. `None` when nobody listens any more.
fn produce(
    mut input: Input<'_>,
    budget: &Budget<'_>,
    pieces: &SyncSender<Message>,
    empty: &Receiver<Vec<u8>>,
) -> Result<Option<Blob>, LayerError> {
    let result = inflate(&mut input, budget, pieces, empty);
    // Of an error of its input, a decompressor says only that it got no more.
    let (digest, size) = input.finish()?;
    Ok(result.map_err(LayerError::Decompress)?.then_some(Blob { digest, size }))
}

/// Decompresses all of `input` by its magic number. False when nobody listens any more.
fn inflate(
    input: &mut Input<'_>,
    budget: &Budget<'_>,
    pieces: &SyncSender<Message>,
    empty: &Receiver<Vec<u8>>,
) -> io::Result<bool> {
    match Compression::of(input.peek(4)?) {
        Compression::Gzip => forward(Members::new(input), pieces, empty),
        Compression::Zstd => forward(Frames::new(input, budget)?, pieces, empty),
        Compression::None => {
            input.is_content();
            forward(input, pieces, empty)
        }
    }
}

/// How data are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// By the first bytes. A tar stream begins with neither.
    pub(super) fn of(start: &[u8]) -> Self {
        if start.starts_with(b"\x1f\x8b\x08") {
            Self::Gzip
        } else if start.starts_with(b"\x28\xb5\x2f\xfd")
            || start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18]
        {
            // The second is a frame to be skipped, with which seekable variants begin.
            Self::Zstd
        } else {
            Self::None
        }
    }
}

fn forward(mut from: impl Read, pieces: &SyncSender<Message>, empty: &Receiver<Vec<u8>>) -> io::Result<bool> {
    loop {
        let Ok(mut piece) = empty.recv() else { return Ok(false) };
        piece.resize(PIECE, 0);
        let length = read_full(&mut from, &mut piece)?;
        piece.truncate(length);
        if length == 0 {
            return Ok(true);
        }
        if pieces.send(Message::Piece(piece)).is_err() {
            return Ok(false);
        }
    }
}

/// Reads until the buffer is full or the end is there.
fn read_full(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match from.read(&mut buffer[have..]) {
            Ok(0) => break,
            Ok(length) => have += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}
