//! One layer's bytes: read, hashed, inflated, hashed again.
//!
//! ```text
//!   thread                                          caller
//!   blob ─▶ SHA-256 ─▶ inflate ─▶ pieces of 512 KiB ─▶ SHA-256 (content) ─▶ tar
//!                                 ◀─ empty buffers ──
//! ```
//!
//! Inflating takes most of the time, so it has a thread to itself. At most [`PIECES`] buffers exist.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;

use sha2::{Digest as _, Sha256};

use super::digest::Digest;
use super::error::{Cancelled, LayerError};
use super::tar::Source;

const PIECE: usize = 512 << 10;
const PIECES: usize = 4;
const READ_BUFFER: usize = 256 << 10;
/// The largest zstd window, as a power of two: 128 MiB, what its own tools accept without being asked.
const ZSTD_WINDOW_LOG: u32 = 27;

/// What the producer found out about the blob, once it has read all of it.
#[derive(Debug, Clone, Copy)]
struct Blob {
    digest: Digest,
    size: u64,
}

#[derive(Debug)]
enum Message {
    Piece(Vec<u8>),
    End(Blob),
    Failed(LayerError),
}

/// Limits that hold for one stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamLimits {
    /// Uncompressed bytes that are left of the image's budget, and the whole budget for the message.
    pub(super) left: u64,
    pub(super) total: u64,
    pub(super) ratio: u64,
    pub(super) ratio_from: u64,
}

/// Digests and sizes of a layer that was read to its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Totals {
    pub(super) blob: Digest,
    pub(super) blob_size: u64,
    pub(super) content: Digest,
    pub(super) content_size: u64,
}

/// The uncompressed stream of one layer.
pub(super) struct Stream<'a, 'w> {
    pieces: Receiver<Message>,
    empty: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    used: usize,
    hash: Sha256,
    content_size: u64,
    compressed: &'a AtomicU64,
    blob: Option<Blob>,
    limits: StreamLimits,
    /// Told after each piece, with the bytes so far.
    watch: &'w mut dyn FnMut(u64) -> Result<(), Cancelled>,
}

impl std::fmt::Debug for Stream<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("content_size", &self.content_size).finish_non_exhaustive()
    }
}

impl<'a, 'w> Stream<'a, 'w> {
    /// Begins to read `blob` on a thread of `scope`, which ends when the stream is dropped.
    pub(super) fn start<'scope, 'env: 'scope>(
        scope: &'scope Scope<'scope, 'env>,
        blob: Box<dyn Read + Send>,
        compressed: &'a AtomicU64,
        limits: StreamLimits,
        watch: &'w mut dyn FnMut(u64) -> Result<(), Cancelled>,
    ) -> Self
    where
        'a: 'scope,
    {
        let (to_caller, pieces) = sync_channel(PIECES);
        let (empty, to_producer) = sync_channel(PIECES);
        for _ in 0..PIECES {
            // There is room for all of them, and the receiver is at hand.
            empty.try_send(Vec::new()).expect("the channel has room for all buffers");
        }
        scope.spawn(move || {
            let result = produce(blob, compressed, &to_caller, &to_producer);
            let last = match result {
                Ok(Some(blob)) => Message::End(blob),
                // The caller dropped the stream.
                Ok(None) => return,
                Err(error) => Message::Failed(error),
            };
            // An error here means that the caller dropped the stream, and wants to know nothing more.
            to_caller.send(last).unwrap_or_default();
        });
        Self {
            pieces,
            empty,
            piece: Vec::new(),
            used: 0,
            hash: Sha256::new(),
            content_size: 0,
            compressed,
            blob: None,
            limits,
            watch,
        }
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
        Ok(Totals {
            blob: blob.digest,
            blob_size: blob.size,
            content: Digest::finish(self.hash),
            content_size: self.content_size,
        })
    }

    fn next_piece(&mut self) -> Result<(), LayerError> {
        let stopped = || LayerError::Read(io::Error::other("the reading thread stopped"));
        match self.pieces.recv().map_err(|_| stopped())? {
            Message::Piece(piece) => {
                self.hash.update(&piece);
                self.content_size += piece.len() as u64;
                let old = std::mem::replace(&mut self.piece, piece);
                self.used = 0;
                if old.capacity() > 0 {
                    // When the producer has ended already, the buffer is of no more use.
                    self.empty.try_send(old).unwrap_or_default();
                }
                self.check_limits()?;
                (self.watch)(self.content_size)?;
            }
            Message::End(blob) => self.blob = Some(blob),
            Message::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), LayerError> {
        let StreamLimits { left, total, ratio, ratio_from } = self.limits;
        if self.content_size > left {
            return Err(LayerError::Limit { what: "uncompressed bytes", limit: total });
        }
        // The producer is some pieces ahead, never behind: what it has read so far made at least what is here.
        let compressed = self.compressed.load(Ordering::Relaxed);
        if self.content_size > ratio_from && self.content_size > compressed.saturating_mul(ratio) {
            return Err(LayerError::Ratio { compressed, uncompressed: self.content_size, limit: ratio });
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
    blob: Box<dyn Read + Send>,
    compressed: &AtomicU64,
    pieces: &SyncSender<Message>,
    empty: &Receiver<Vec<u8>>,
) -> Result<Option<Blob>, LayerError> {
    let hashing = Hashing { inner: blob, hash: Sha256::new(), count: compressed, failed: None };
    let mut input = BufReader::with_capacity(READ_BUFFER, hashing);
    let result = inflate(&mut input, pieces, empty);
    if let Some(error) = input.get_mut().failed.take() {
        // What the decompressor says of it is only that it got no more.
        return Err(LayerError::Read(error));
    }
    let listening = result.map_err(LayerError::Decompress)?;
    let hashing = input.into_inner();
    let blob = Blob { digest: Digest::finish(hashing.hash), size: hashing.count.load(Ordering::Relaxed) };
    Ok(listening.then_some(blob))
}

/// Decompresses all of `input` by its magic number. False when nobody listens any more.
fn inflate<R: BufRead>(
    input: &mut R,
    pieces: &SyncSender<Message>,
    empty: &Receiver<Vec<u8>>,
) -> io::Result<bool> {
    match Compression::of(input.fill_buf()?) {
        // Several members behind each other are one stream; anything else behind the first is an error.
        Compression::Gzip => forward(flate2::bufread::MultiGzDecoder::new(input), pieces, empty),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            forward(decoder, pieces, empty)
        }
        Compression::None => forward(input, pieces, empty),
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

/// Hashes and counts what is read, and keeps the error that ended it apart from those of the decompressor.
struct Hashing<'a, R> {
    inner: R,
    hash: Sha256,
    count: &'a AtomicU64,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(length) => {
                self.hash.update(&buffer[..length]);
                self.count.fetch_add(length as u64, Ordering::Relaxed);
                Ok(length)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                self.failed = Some(error);
                Err(kind.into())
            }
        }
    }
}
