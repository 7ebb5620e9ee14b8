//! From the documents of an image to an image that can run: its layers are brought, its disk is made, its record written.
//!
//! ```text
//!   caller's thread          supply thread                     threads of `build`
//!   ───────────────          ─────────────                     ──────────────────
//!   watch ◀── progress ──┬── registry or archive ─▶ partial ─▶ Growth ─▶ inflate ─▶ disk
//!     │                  └── progress of the disk ◀───────────────────────┘
//!     └─ says stop ─▶ Stop ─▶ supply ends ─▶ Growth fails ─▶ readers end ─▶ build ends
//! ```
//!
//! Layers are converted while they arrive. Nothing is published before all of them have turned out to be what the manifest
//! and the configuration say. A layer that was damaged in the store or on its way is thrown away and brought once more.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use nix::fcntl::Flock;

use super::archive::{Archive, FoundImage};
use super::blobs::{Begun, Blobs, Partial};
use super::build::{LayerSource, build};
use super::digest::Digest;
use super::disks::DISK_SUFFIX;
use super::error::{Cancelled, ImageError, LayerError};
use super::growth::{Growth, Guard};
use super::lock;
use super::record::{Origin, Record};
use super::reference::Reference;
use super::resolve::Resolved;
use super::store::{DRAFT_PREFIX, ImageStore, discard};
use super::{Progress, Watch};

/// How often a caller is asked at least whether to go on.
pub(super) const LOOK: Duration = Duration::from_millis(100);
/// Messages of progress that may wait for the caller.
const MESSAGES: usize = 64;
/// Progress of a layer is told in steps of this many bytes.
const STEP: u64 = 256 << 10;
const BUFFER: usize = 256 << 10;
/// How often a blob that another process writes is looked at again.
pub(super) const TAKEN_LOOK: Duration = Duration::from_millis(20);

/// Brings blobs.
pub(super) trait Supply: Send {
    /// Brings all of `wanted` that are not complete yet; lowest first where that is a choice. Ends soon after
    /// [`Stop::now`], and returns [`ImageError::Cancelled`] then.
    fn supply(&mut self, wanted: &[Arc<Growth>], blobs: &Blobs, told: &Told) -> Result<(), ImageError>;
}

/// Says that work is to end.
#[derive(Debug, Default)]
pub(super) struct Stop {
    stopped: AtomicBool,
    changed: tokio::sync::Notify,
}

impl Stop {
    pub(super) fn now(&self) {
        self.stopped.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    pub(super) fn check(&self) -> Result<(), Cancelled> {
        if self.stopped.load(Ordering::Acquire) { Err(Cancelled) } else { Ok(()) }
    }

    /// Returns once [`Stop::now`] was called.
    pub(super) async fn wait(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.check().is_err() {
                return;
            }
            changed.await;
        }
    }
}

/// Where the threads of an installation tell how far they are.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) stop: Arc<Stop>,
    to_caller: SyncSender<Progress>,
    layers: usize,
    /// Numbers of the layers, from 1, by blob.
    numbers: Vec<(Digest, usize)>,
}

impl Told {
    /// Tells how much of a layer is there, in steps.
    pub(super) fn fetched(&self, growth: &Growth, before: u64, bytes: u64) {
        let total = growth.size();
        if bytes != total && before / STEP == bytes / STEP {
            return;
        }
        let number = self.numbers.iter().find(|(digest, _)| *digest == growth.digest());
        let layer = number.map_or(0, |(_, number)| *number);
        self.tell(Progress::Fetch { layer, layers: self.layers, bytes, total });
    }

    fn tell(&self, step: Progress) {
        // The caller listens until all threads have ended.
        self.to_caller.send(step).unwrap_or_default();
    }
}

impl ImageStore {
    /// Makes an image's disk and record unless they are there, and names the image. Blobs must be in use.
    pub(super) fn install(
        &self,
        image: &Resolved,
        names: &[Reference],
        origin: Origin,
        supply: &mut dyn Supply,
        watch: Watch<'_>,
    ) -> Result<(), ImageError> {
        let mut record = Record::new(image);
        record.came_by(origin);
        // Each layer gets one more chance.
        let mut repaired = BTreeSet::new();
        loop {
            let made = match self.make(image, supply, watch) {
                Ok(made) => made,
                Err(error) => match self.repair(&error, image)? {
                    Some(blob) if repaired.insert(blob) => {
                        tracing::info!(%error, "a damaged layer is fetched again");
                        continue;
                    }
                    _ => return Err(error),
                },
            };
            let _lock = self.lock()?;
            match made {
                Made::New(draft) => draft.publish(|path| self.disks.publish(path, &image.chain()))?,
                // Removed by somebody else between our look and our lock.
                Made::There if self.disks.get(&image.chain())?.is_none() => continue,
                Made::There => {}
            }
            self.put_record(record)?;
            return self.name(&image.digest, names);
        }
    }

    /// Makes the disk of an image anew from the layers that are here.
    pub(super) fn rebuild(&self, record: &Record, watch: Watch<'_>) -> Result<(), ImageError> {
        let _using = self.use_blobs(watch)?;
        let image = Resolved {
            digest: record.digest.0,
            manifest: Vec::new(),
            index: None,
            config_digest: record.configuration.0,
            configuration: Vec::new(),
            config: record.config.clone(),
            layers: record.layers.iter().map(Into::into).collect(),
        };
        let chain = image.chain();
        let made = self.make_disk(&image, &mut Nothing, watch);
        let made =
            made.map_err(|error| ImageError::Rebuild { digest: image.digest, source: Box::new(error) })?;
        let _lock = self.lock()?;
        match made {
            Made::New(draft) => draft.publish(|path| self.disks.publish(path, &chain)),
            Made::There => Ok(()),
        }
    }

    /// Throws away what was damaged, and tells of which blob doing it again may help.
    fn repair(&self, error: &ImageError, image: &Resolved) -> Result<Option<Digest>, ImageError> {
        match error {
            ImageError::Blob { digest, source: LayerError::BlobDigest { .. } } => Ok(Some(*digest)),
            ImageError::MissingBlob { digest } => Ok(Some(*digest)),
            ImageError::Layer { number, .. } => {
                let Some(blob) = image.layers.get(number - 1).map(|layer| layer.blob) else {
                    return Ok(None);
                };
                if !self.blobs.exists(&blob)? {
                    // It failed before it was complete: what came may be wrong from its first byte, and would be
                    // resumed for ever.
                    self.blobs.restart(&blob)?;
                    return Ok(Some(blob));
                }
                Ok(if self.blobs.is_sound(&blob)? { None } else { Some(blob) })
            }
            _ => Ok(None),
        }
    }

    /// Brings what is missing of an image, and makes its disk if there is none.
    fn make(&self, image: &Resolved, supply: &mut dyn Supply, watch: Watch<'_>) -> Result<Made, ImageError> {
        self.blobs.put(&image.digest, &image.manifest)?;
        self.blobs.put(&image.config_digest, &image.configuration)?;
        self.make_disk(image, supply, watch)
    }

    fn make_disk(
        &self,
        image: &Resolved,
        supply: &mut dyn Supply,
        watch: Watch<'_>,
    ) -> Result<Made, ImageError> {
        let draft = self.draft(&image.chain(), watch)?;
        let mut numbers: Vec<(Digest, usize)> = Vec::new();
        let mut growths: Vec<Arc<Growth>> = Vec::new();
        // The layers in their order; one that is there twice is brought once.
        let mut sources: Vec<(Arc<Growth>, Digest)> = Vec::new();
        for (number, layer) in (1..).zip(&image.layers) {
            let known = growths.iter().find(|growth| growth.digest() == layer.blob).cloned();
            let growth = match known {
                Some(growth) => growth,
                None => {
                    let growth = Growth::new(layer.blob, layer.size);
                    if self.blobs.has(&layer.blob, layer.size)? {
                        growth.there(self.blobs.open_blob(&layer.blob)?);
                    }
                    numbers.push((layer.blob, number));
                    growths.push(growth.clone());
                    growth
                }
            };
            sources.push((growth, layer.diff_id));
        }
        let (to_caller, messages) = sync_channel(MESSAGES);
        let stop = Arc::new(Stop::default());
        let told = Told { stop: stop.clone(), to_caller, layers: image.layers.len(), numbers };
        let (told_to, supplied, built) = thread::scope(|scope| {
            let building = draft.as_ref().map(|draft| {
                let (told, stop) = (told.to_caller.clone(), stop.clone());
                scope.spawn(move || {
                    let built = self.build_disk(draft, &sources, image, &told, &stop);
                    if built.is_err() {
                        // What is still on its way is of no use.
                        stop.now();
                    }
                    built
                })
            });
            let (growths, blobs) = (&growths, &self.blobs);
            let supplying = scope.spawn(move || {
                let _guard = Guard(growths);
                supply.supply(growths, blobs, &told)
            });
            // Should the caller's own function panic, the threads end all the same.
            let _stopping = StopOnDrop(&stop);
            let told_to = pump(messages, &stop, watch);
            (told_to, join(supplying), building.map(join))
        });
        // Whatever the others say then, they say because they were stopped.
        told_to?;
        stop_first(supplied, built.transpose().map(drop))?;
        Ok(draft.map_or(Made::There, Made::New))
    }

    fn build_disk(
        &self,
        draft: &Draft,
        sources: &[(Arc<Growth>, Digest)],
        image: &Resolved,
        told: &SyncSender<Progress>,
        stop: &Stop,
    ) -> Result<(), ImageError> {
        let failed = |error| ImageError::io("write", &draft.path, error);
        draft.file.set_len(0).map_err(failed)?;
        let output = draft.file.try_clone().map_err(failed)?;
        let scratch = tempfile::tempfile_in(&self.tmp)
            .map_err(|error| ImageError::io("make a temporary file in", &self.tmp, error))?;
        let source = |(growth, diff_id): &(Arc<Growth>, Digest)| {
            let growth = growth.clone();
            // The supply verifies the blob itself; what counts here is what is in it.
            LayerSource {
                open: Box::new(move || Ok(Box::new(growth.reader()))),
                blob: None,
                diff_id: *diff_id,
            }
        };
        let layers = sources.iter().map(source).collect();
        let mut watch = |step| {
            if step == Progress::Stopping {
                // Readers wait for layers that are of no use any more.
                stop.now();
            }
            stop.check()?;
            told.send(step).unwrap_or_default();
            Ok(())
        };
        let built = build(layers, &image.chain(), output, scratch, &self.limits, &mut watch);
        built.map(drop).map_err(|error| match error {
            // People know layers by their blobs.
            ImageError::Layer { number, source, .. } => {
                ImageError::Layer { number, digest: image.layers[number - 1].blob, source }
            }
            error => error,
        })
    }

    /// A place to make a disk in, unless there is one already. Waits while somebody else makes it.
    fn draft(&self, chain: &Digest, watch: Watch<'_>) -> Result<Option<Draft>, ImageError> {
        let path = self.tmp.join(format!("{DRAFT_PREFIX}{}{DISK_SUFFIX}", chain.hex()));
        loop {
            if self.disks.get(chain)?.is_some() {
                return Ok(None);
            }
            let found = lock::lock::<Waited>(&path, || {
                watch(Progress::Waiting).map_err(Waited::Cancelled)?;
                // Whoever made it may be done: then it is in the store, and not here any more.
                if self.disks.get(chain).is_ok_and(|disk| disk.is_some()) {
                    Err(Waited::Made)
                } else {
                    Ok(())
                }
            });
            let file = match found {
                Ok(file) => file.map_err(|error| ImageError::io("lock", &path, error))?,
                Err(Waited::Made) => continue,
                Err(Waited::Cancelled(cancelled)) => return Err(cancelled.into()),
            };
            let draft = Draft { path: path.clone(), file, published: false };
            // It may have been made between our look and our lock; under the store's lock, no one is half published.
            let _lock = self.lock()?;
            if self.disks.get(chain)?.is_none() {
                return Ok(Some(draft));
            }
        }
    }
}

/// Why waiting for a lock ended.
enum Waited {
    Made,
    Cancelled(Cancelled),
}

/// A disk in the making, locked; removed on drop unless it was published.
#[derive(Debug)]
struct Draft {
    path: PathBuf,
    file: Flock<File>,
    published: bool,
}

impl Draft {
    fn publish(mut self, publish: impl FnOnce(&Path) -> Result<(), ImageError>) -> Result<(), ImageError> {
        publish(&self.path)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            discard(&self.path);
        }
    }
}

/// What became of a disk.
enum Made {
    /// It is there already, with all layers.
    There,
    /// It is complete, and has no place yet.
    New(Draft),
}

struct StopOnDrop<'a>(&'a Stop);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.now();
    }
}

/// Hands progress on to the caller until all who tell it have ended. The caller is asked at least every [`LOOK`]; once it
/// wants to stop, it is told nothing more.
fn pump(messages: Receiver<Progress>, stop: &Stop, watch: Watch<'_>) -> Result<(), Cancelled> {
    let mut last = Progress::Layer { layer: 1, layers: 1, bytes: 0 };
    let mut answer = Ok(());
    loop {
        match messages.recv_timeout(LOOK) {
            Ok(step) => last = step,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return answer,
        }
        if stop.check().is_ok() {
            answer = watch(last);
            if answer.is_err() {
                stop.now();
            }
        }
    }
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Of two that stop each other, the error of the one that failed first.
fn stop_first(supplied: Result<(), ImageError>, built: Result<(), ImageError>) -> Result<(), ImageError> {
    match (supplied, built) {
        (Ok(()), built) => built,
        // It was stopped because the disk cannot be made.
        (Err(ImageError::Cancelled(cancelled)), built) => Err(built.err().unwrap_or(cancelled.into())),
        // The disk cannot be made for want of a layer.
        (Err(error), _) => Err(error),
    }
}

/// Brings nothing: all must be there.
struct Nothing;

impl Supply for Nothing {
    fn supply(&mut self, wanted: &[Arc<Growth>], _: &Blobs, _: &Told) -> Result<(), ImageError> {
        match wanted.iter().find(|growth| !growth.is_complete()) {
            Some(missing) => Err(ImageError::MissingBlob { digest: missing.digest() }),
            None => Ok(()),
        }
    }
}

/// Brings blobs out of an archive, one after the other.
pub(super) struct ArchiveSupply<'a> {
    pub(super) archive: &'a Archive,
    pub(super) image: &'a FoundImage,
}

impl Supply for ArchiveSupply<'_> {
    fn supply(&mut self, wanted: &[Arc<Growth>], blobs: &Blobs, told: &Told) -> Result<(), ImageError> {
        for growth in wanted.iter().filter(|growth| !growth.is_complete()) {
            let partial = loop {
                told.stop.check()?;
                match blobs.begin(growth)? {
                    Begun::Complete => break None,
                    Begun::Ours(partial) => break Some(partial),
                    Begun::Taken => thread::park_timeout(TAKEN_LOOK),
                }
            };
            match partial {
                Some(partial) => self.copy(growth, partial, told)?,
                None => growth.there(blobs.open_blob(&growth.digest())?),
            }
        }
        Ok(())
    }
}

impl ArchiveSupply<'_> {
    fn copy(&self, growth: &Growth, mut partial: Box<Partial>, told: &Told) -> Result<(), ImageError> {
        let digest = growth.digest();
        let failed = |error| ImageError::Blob { digest, source: LayerError::Read(error) };
        let mut blob = self.archive.blob(self.image, &digest).map_err(failed)?;
        io::copy(&mut blob.by_ref().take(partial.written()), &mut io::sink()).map_err(failed)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            // Once all of it is there, what it is must be found out: whoever converts it may have failed over it.
            if partial.written() < growth.size() {
                told.stop.check()?;
            }
            let length = match blob.read(&mut buffer) {
                Ok(0) => return partial.finish(),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            };
            let before = partial.written();
            partial.append(&buffer[..length])?;
            told.fetched(growth, before, partial.written());
        }
    }
}
