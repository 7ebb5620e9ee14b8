//! From layers to an EROFS image: one pass over each layer, several at a time.
//!
//! ```text
//!   layer 1 ─ inflate ─ hash, tar ─┬─ contents ──▶ the image file
//!   layer 2 ─ inflate ─ hash, tar ─┤                                 caller
//!   layer 3 ─ inflate ─ hash, tar ─┴─ drafts ────▶ scratch file ──▶ apply 1, 2, 3, … ─▶ metadata
//! ```
//!
//! Up to [`SLOTS`] layers are converted at once, the lowest first, by two threads each; a layer may still wait for its
//! download. What a layer does to the tree becomes a draft, and the caller applies the drafts strictly in the order of the
//! layers, each once its layer is complete and is what its digests say. The caller is also who tells how far all this is.
//!
//! The first error stops everything. Of several, that of the lowest layer that failed by itself is reported. No thread
//! outlives the build.
//!
//! Memory, whatever the image: for each slot four pieces of 256 KiB, buffers of 640 KiB, and what a decompressor needs (40
//! KiB for gzip, about 9 MiB for zstd); once, 128 MiB for zstd with a large window, 6 MiB at the end; and the tree, which
//! [`Limits::memory`] bounds and which has about 200 bytes for a file of an ordinary image.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::erofs::{Contents, TreeLimits, Writer, WriterError};

use super::apply::apply;
use super::budget::Budget;
use super::convert::{Converted, convert};
use super::digest::Digest;
use super::error::{Cancelled, ImageError, LayerError};
use super::limits::Limits;
use super::stream::Totals;
use super::{Progress, Watch};

/// Layers converted at once.
const SLOTS: usize = 4;
/// Words on progress that wait for the caller; what is too much for it is not said.
const WORDS: usize = 64;
/// How often the caller is asked whether to go on while nothing happens.
const TICK: Duration = Duration::from_millis(100);

/// One layer, lowest first: its bytes, and what they must turn out to be.
pub struct LayerSource<'a> {
    /// Opens the blob; called at most once, on a thread of its own, when its turn has come. Both this and reading may block,
    /// for a download say.
    ///
    /// [`build`] does not return before they do. Whoever makes them block must see to it that they end: with bytes, the
    /// end, or an error, also after it stopped the build through its `watch`. Between two reads the build looks whether
    /// it was stopped.
    pub open: Box<dyn FnOnce() -> io::Result<Box<dyn Read + Send>> + Send + 'a>,
    /// Digest and size of the blob as it is stored, where they are to be checked. Without them the blob is not hashed.
    pub blob: Option<(Digest, u64)>,
    /// Digest of the tar stream in it.
    pub diff_id: Digest,
}

impl std::fmt::Debug for LayerSource<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerSource")
            .field("blob", &self.blob)
            .field("diff_id", &self.diff_id)
            .finish_non_exhaustive()
    }
}

/// An image that was built.
#[derive(Debug)]
#[non_exhaustive]
pub struct Built {
    /// The image file, complete but not synced.
    pub file: File,
    /// Its length, holes included.
    pub bytes: u64,
    /// Files and folders in it.
    pub inodes: u64,
    /// Uncompressed bytes of all layers.
    pub content_bytes: u64,
    /// Bytes that several files of the same contents share; each would have its own otherwise.
    pub shared_bytes: u64,
    /// Extended attributes that were left out, as they are not of Linux or of no meaning in an image.
    pub skipped_xattrs: u64,
}

/// Builds an EROFS image from layers.
///
/// `file` and `scratch` must be empty files, open for reading and writing. Unless this returns `Ok`, what is in `file` is
/// worthless. `identity` becomes the UUID of the file system. Same layers and identity, same file system; where in `file`
/// contents lie may differ when there are several layers.
///
/// `watch` is called on the thread of the caller, at least every few hundred milliseconds while layers are converted, with
/// the progress of one layer or another.
///
/// # Errors
/// When a layer is broken, hostile, larger than `limits` or not what its digests say, or `watch` asked to stop.
pub fn build(
    layers: Vec<LayerSource<'_>>,
    identity: &Digest,
    file: File,
    scratch: File,
    limits: &Limits,
    watch: Watch<'_>,
) -> Result<Built, ImageError> {
    let count = layers.len();
    if count > limits.layers {
        return Err(ImageError::Layers { count, limit: limits.layers });
    }
    let digests: Vec<Digest> =
        layers.iter().map(|layer| layer.blob.map_or(layer.diff_id, |(digest, _)| digest)).collect();
    let tree = TreeLimits { entries: limits.entries, memory: limits.memory };
    let budget = Budget::new(limits);
    let mut order = Order {
        writer: Writer::new(file, scratch, tree),
        budget: &budget,
        watch,
        last: Progress::Layer { layer: count.min(1), layers: count, bytes: 0 },
        waiting: BTreeMap::new(),
        next: 1,
        failed: None,
        is_stopping: false,
        cancelled: None,
        skipped_xattrs: 0,
    };
    let layers = Mutex::new((1..).zip(layers).collect());
    let (to_caller, events) = sync_channel(WORDS + count);
    let words = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        // A panic of `watch` ends the threads too.
        let _stop = budget.stop_on_drop();
        for _ in 0..SLOTS.min(count) {
            let slot = Slot {
                layers: &layers,
                contents: order.writer.contents(),
                to_caller: to_caller.clone(),
                words: &words,
                budget: &budget,
            };
            let thread = std::thread::Builder::new().name("image-layer".to_owned());
            if let Err(error) = thread.spawn_scoped(scope, || slot.run()) {
                order.fail(1, LayerError::Read(error));
            }
        }
        drop(to_caller);
        order.run(&events, &words);
    });
    order.finish(identity, &digests)
}

/// What the threads tell the caller.
enum Event {
    /// A layer has come so far.
    Word { number: usize, bytes: u64 },
    /// A layer was converted and verified, or not.
    Ended { number: usize, result: Result<Converted, LayerError> },
}

/// Converts one layer after the other.
struct Slot<'a, 'l> {
    layers: &'a Mutex<VecDeque<(usize, LayerSource<'l>)>>,
    contents: Contents,
    to_caller: SyncSender<Event>,
    /// Words that the caller has not heard.
    words: &'a AtomicUsize,
    budget: &'a Budget<'a>,
}

impl Slot<'_, '_> {
    fn run(mut self) {
        while self.budget.going().is_ok() {
            let next = self.layers.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some((number, layer)) = next else { return };
            let result = self.layer(number, layer);
            if result.is_err() {
                self.budget.stop();
            }
            // There is room for one of each layer, and the caller listens to the end.
            self.to_caller.send(Event::Ended { number, result }).expect("the caller listens");
        }
    }

    fn layer(&mut self, number: usize, layer: LayerSource<'_>) -> Result<Converted, LayerError> {
        let Self { contents, to_caller, words, budget, .. } = self;
        let blob = (layer.open)().map_err(LayerError::Read)?;
        let mut told = |bytes| {
            budget.going()?;
            if words.fetch_add(1, Ordering::Relaxed) < WORDS {
                to_caller.send(Event::Word { number, bytes }).expect("the caller listens");
            } else {
                words.fetch_sub(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let size = layer.blob.map(|(_, size)| size);
        let converted = convert(blob, size, contents, budget, &mut told)?;
        verify(&converted.totals, layer.blob, layer.diff_id)?;
        Ok(converted)
    }
}

/// The caller's part: applies what was converted, in order.
struct Order<'a, 'w> {
    writer: Writer,
    budget: &'a Budget<'a>,
    watch: Watch<'w>,
    /// What the caller heard last.
    last: Progress,
    /// Layers that are complete, above one that is not.
    waiting: BTreeMap<usize, Converted>,
    /// The layer to be applied next.
    next: usize,
    /// The lowest layer that failed by itself.
    failed: Option<(usize, LayerError)>,
    /// Whether the caller knows that it failed.
    is_stopping: bool,
    cancelled: Option<Cancelled>,
    skipped_xattrs: u64,
}

impl Order<'_, '_> {
    /// Listens until all slots have ended.
    fn run(&mut self, events: &Receiver<Event>, words: &AtomicUsize) {
        loop {
            match events.recv_timeout(TICK) {
                Ok(Event::Word { number, bytes }) => {
                    words.fetch_sub(1, Ordering::Relaxed);
                    if let Progress::Layer { layers, .. } = self.last {
                        self.last = Progress::Layer { layer: number, layers, bytes };
                    }
                    self.tell();
                }
                Ok(Event::Ended { number, result: Ok(converted) }) => {
                    self.waiting.insert(number, converted);
                    self.apply();
                }
                Ok(Event::Ended { number, result: Err(error) }) => self.fail(number, error),
                Err(RecvTimeoutError::Timeout) => self.tell(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Tells the caller how far it is, until the build is stopped.
    fn tell(&mut self) {
        if self.budget.going().is_ok()
            && let Err(cancelled) = (self.watch)(self.last)
        {
            self.cancelled = Some(cancelled);
            self.budget.stop();
        }
    }

    fn fail(&mut self, number: usize, error: LayerError) {
        self.budget.stop();
        if !std::mem::replace(&mut self.is_stopping, true) && self.cancelled.is_none() {
            // The answer says nothing new: it stops in any case.
            (self.watch)(Progress::Stopping).unwrap_or_default();
        }
        // Who was stopped has not failed, nor has who waited for bytes that nobody brings any more.
        let unread = matches!(error, LayerError::Read(_));
        let broken = self.failed.as_ref().is_some_and(|(_, first)| !matches!(first, LayerError::Read(_)));
        let stopped = matches!(error, LayerError::Cancelled(_)) || unread && broken;
        if !stopped && self.failed.as_ref().is_none_or(|(lowest, _)| number < *lowest) {
            self.failed = Some((number, error));
        }
    }

    /// Applies the layers whose turn has come.
    fn apply(&mut self) {
        while self.budget.going().is_ok()
            && let Some(converted) = self.waiting.remove(&self.next)
        {
            if self.next > 1 {
                self.writer.tree().next_layer();
            }
            let Self { writer, budget, watch, last, .. } = self;
            let mut going = || watch(*last);
            let mut steps = converted.steps.into_steps();
            match apply(&mut steps, writer.tree(), budget.limits, &mut going) {
                Ok(()) => {}
                Err(LayerError::Cancelled(cancelled)) => {
                    self.cancelled = Some(cancelled);
                    return self.budget.stop();
                }
                Err(error) => return self.fail(self.next, error),
            }
            self.skipped_xattrs += converted.skipped_xattrs;
            if let Progress::Layer { layers, .. } = self.last {
                let last =
                    std::mem::replace(&mut self.last, Progress::Converted { layer: self.next, layers });
                self.tell();
                self.last = last;
            }
            self.next += 1;
        }
    }

    /// Writes what remains once all layers have been applied.
    fn finish(self, identity: &Digest, digests: &[Digest]) -> Result<Built, ImageError> {
        let Self { mut writer, budget, watch, last, skipped_xattrs, failed, cancelled, .. } = self;
        if let Some(cancelled) = cancelled {
            return Err(cancelled.into());
        }
        if let Some((number, source)) = failed {
            return Err(ImageError::Layer { number, digest: digests[number - 1], source });
        }
        if skipped_xattrs > 0 {
            tracing::debug!(count = skipped_xattrs, "extended attributes of the image were left out");
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&identity.bytes()[..16]);
        // Version 8: made up by other rules. Variant 1.
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        let shared_bytes = writer.share(&mut || watch(last).is_ok()).map_err(disk)?.ok_or(Cancelled)?;
        let (file, stats) = writer.finish(uuid).map_err(disk)?;
        Ok(Built {
            file,
            bytes: stats.bytes,
            inodes: stats.inodes,
            content_bytes: budget.used_bytes(),
            shared_bytes,
            skipped_xattrs,
        })
    }
}

fn disk(error: WriterError) -> ImageError {
    match error {
        WriterError::Io(error) => ImageError::Disk(error),
        error => ImageError::Disk(io::Error::other(error)),
    }
}

fn verify(totals: &Totals, blob: Option<(Digest, u64)>, diff_id: Digest) -> Result<(), LayerError> {
    if let Some((digest, size)) = blob {
        if totals.blob_size != size {
            return Err(LayerError::BlobSize { expected: size, actual: totals.blob_size });
        }
        if let Some(actual) = totals.blob.filter(|actual| *actual != digest) {
            return Err(LayerError::BlobDigest { expected: digest, actual });
        }
    }
    if totals.content != diff_id {
        return Err(LayerError::ContentDigest { expected: diff_id, actual: totals.content });
    }
    Ok(())
}
