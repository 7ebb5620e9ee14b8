//! Images that are ready to run.
//!
//! ```text
//! <home>/images/
//!   lock                   held while any of the others changes
//!   users                  held, shared, by whoever loads, pulls or saves; whoever removes blobs wants it alone
//!   <manifest>.json        what is known of an image: it exists once this does
//!   <chain>.erofs, .json   disks, see `disks`
//!   refs.json              names
//! <home>/blobs/            see `blobs`
//! <home>/tmp/
//!   image-<chain>.erofs    a disk in the making, locked by who makes it
//! ```
//!
//! A disk is made outside of the lock, so that several processes can make different ones at once; of those that want the
//! same one, the first makes it and the others wait. Then, under the lock, the disk gets its place and the image its
//! record. A crash leaves blobs, a temporary file, or a disk that no image has: all are used or replaced by the next who
//! wants them, and removed by a prune.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::Flock;
use serde::Serialize;

use super::Watch;
use super::archive::Archive;
use super::blobs::{Blobs, allocated, remove};
use super::config::ImageConfig;
use super::digest::Digest;
use super::disks::{DISK_SUFFIX, Disks};
use super::document;
use super::error::ImageError;
use super::install::ArchiveSupply;
use super::limits::Limits;
use super::lock;
use super::platform::Platform;
use super::record::{Origin, Record, Refs, Text};
use super::reference::Reference;
use crate::policy::{self, Policy};

/// The shortest start of a digest that stands for it.
const PREFIX_MIN: usize = 12;
/// Changing the store takes milliseconds: who holds its lock longer does not run.
const LOCK_DEADLINE: Duration = Duration::from_secs(30);
pub(super) const DRAFT_PREFIX: &str = "image-";
const RECORD_SUFFIX: &str = ".json";
const REFS: &str = "refs.json";

/// The images of one home.
#[derive(Debug, Clone)]
pub struct ImageStore {
    pub(super) folder: PathBuf,
    pub(super) tmp: PathBuf,
    pub(super) blobs: Blobs,
    pub(super) disks: Disks,
    pub(super) limits: Limits,
    policy: PolicyFile,
}

/// Where a signature policy is: a file as containers-policy.json(5) describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyFile {
    /// This file, which must exist.
    Named(PathBuf),
    /// The first of these that exists; if none does, everything is accepted.
    First(Vec<PathBuf>),
}

impl Default for PolicyFile {
    fn default() -> Self {
        Self::First(Vec::new())
    }
}

/// What is known of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ImageInfo {
    /// Its names, full.
    pub references: Vec<String>,
    /// The manifest's digest.
    pub digest: String,
    /// Bytes that its files take on this machine: disk, layers as they came, documents. What it shares with other images
    /// counts for each of them.
    pub size_bytes: u64,
    /// Of these, bytes of the disk.
    pub disk_bytes: u64,
    /// When it was made, in RFC 3339.
    pub created: Option<String>,
    /// The machine it is for, in Go's words.
    pub architecture: String,
    /// Digests of its layers as they came, lowest first.
    pub layers: Vec<String>,
}

/// An image in the store.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoredImage {
    /// What is known of it.
    pub info: ImageInfo,
    /// Its digest, as in [`ImageInfo::digest`].
    pub digest: String,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// Its disk: a read-only EROFS file system. [`ImageStore::disk`] tells whether it can be believed.
    pub disk: PathBuf,
    /// The full name by which it was found. `None`: it was asked for by its digest alone.
    pub name: Option<String>,
}

impl StoredImage {
    /// The machine it is for.
    pub(crate) fn platform(&self) -> Platform {
        Platform::new(self.config.os.clone(), self.config.architecture.clone(), self.config.variant.clone())
    }

    pub(crate) fn is_for(&self, wanted: &Platform) -> bool {
        self.platform().satisfies(wanted)
    }
}

/// What a removal did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<String>,
    /// The image that is gone, unless other names still lead to it.
    pub deleted: Option<String>,
}

/// Boxes that use images: by the image's digest, their names or ids.
pub type Used = BTreeMap<String, Vec<String>>;

impl ImageStore {
    /// The store in the home folder `home`. Its folders `images`, `blobs` and `tmp` are made if they do not exist, and must
    /// be on one file system.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn open(home: &Path) -> Result<Self, ImageError> {
        let (folder, tmp) = (home.join("images"), home.join("tmp"));
        for folder in [&folder, &tmp] {
            fs::create_dir_all(folder).map_err(|error| ImageError::io("make the folder", folder, error))?;
        }
        let (blobs, disks) = (Blobs::open(&home.join("blobs"))?, Disks::new(&folder));
        Ok(Self { folder, tmp, blobs, disks, limits: Limits::default(), policy: PolicyFile::default() })
    }

    /// The same with other limits on what is loaded and pulled.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same with a signature policy, which is read each time it is asked.
    #[must_use]
    pub fn with_policy(mut self, policy: PolicyFile) -> Self {
        self.policy = policy;
        self
    }

    /// Loads all images for this machine of an OCI layout folder, an OCI archive or a `docker save` archive. What is in
    /// the store already is only named.
    ///
    /// # Errors
    /// When the archive is broken, hostile, too large or refused by the signature policy, or the store cannot be written.
    /// Images that were complete by then stay.
    pub fn load(&self, path: &Path, watch: Watch<'_>) -> Result<Vec<ImageInfo>, ImageError> {
        self.load_as(path, &[], watch)
    }

    /// As [`ImageStore::load`], with `names` instead of those in the archive, unless there are none. The archive must hold
    /// one image then.
    ///
    /// # Errors
    /// As [`ImageStore::load`].
    pub fn load_as(
        &self,
        path: &Path,
        names: &[Reference],
        watch: Watch<'_>,
    ) -> Result<Vec<ImageInfo>, ImageError> {
        let policy = self.policy()?;
        // As a policy names it. What has no path any more, like the file behind a pipe, is in no scope but the widest.
        let place = fs::canonicalize(path).unwrap_or_default();
        self.sweep_drafts()?;
        let archive = Archive::open(path, &Platform::host(), &self.tmp, &self.limits, watch)?;
        let transport = archive.kind().transport();
        policy
            .verdict_without_signatures(&policy::Origin::Archive { transport, path: &place })
            .map_err(ImageError::Policy)?;
        if !names.is_empty() && archive.images().len() != 1 {
            let reason = format!("it holds {} images, which cannot share a name", archive.images().len());
            return Err(ImageError::Unknown { path: path.to_owned(), reason });
        }
        let mut digests = Vec::new();
        let before = self.blobs.usage()?.0;
        let result = self.use_blobs(watch).and_then(|_using| {
            for image in archive.images() {
                let of_another = |name: &&Reference| {
                    let digests = [Some(image.digest), image.image.index];
                    name.digest().is_some_and(|digest| !digests.contains(&Some(*digest)))
                };
                if let Some(name) = image.references.iter().find(of_another) {
                    let reason = format!("it calls an image {name}, which is another one's digest");
                    return Err(ImageError::Unknown { path: path.to_owned(), reason });
                }
                let names = if names.is_empty() { &image.references } else { names };
                let origin = Origin {
                    transport: transport.to_owned(),
                    name: place.to_string_lossy().into_owned(),
                    index: image.image.index.map(Text),
                    signatures: Vec::new(),
                };
                origin.check(&policy, image.digest)?;
                let mut supply = ArchiveSupply { archive: &archive, image };
                self.install(&image.image, names, origin, &mut supply, watch)?;
                digests.push(image.digest);
            }
            Ok(())
        });
        if result.is_err() {
            // What an archive brought is of no use without the image; unlike a download, it costs nothing to read again.
            let before: BTreeSet<Digest> = before.into_iter().map(|(digest, _)| digest).collect();
            let brought = archive.images().iter().flat_map(|image| image.image.blobs());
            self.forget_blobs(brought.filter(|digest| !before.contains(digest)))?;
        }
        result?;
        let refs = self.refs()?;
        digests.iter().map(|digest| Ok(self.stored(digest, &refs)?.info)).collect()
    }

    /// All images, in the order of their names. One whose record is damaged is left out, with a warning in the log.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<ImageInfo>, ImageError> {
        let refs = self.refs()?;
        let mut images = Vec::new();
        for digest in self.digests()? {
            match self.stored(&digest, &refs) {
                Ok(image) => images.push(image.info),
                // Removed by somebody else meanwhile.
                Err(error) if error.is_not_found() => {}
                Err(error @ ImageError::Format { .. }) => {
                    tracing::warn!(%digest, error = %error, "an image cannot be read");
                }
                Err(error) => return Err(error),
            }
        }
        images.sort_by(|a, b| {
            (a.references.is_empty(), &a.references, &a.digest).cmp(&(
                b.references.is_empty(),
                &b.references,
                &b.digest,
            ))
        });
        Ok(images)
    }

    /// An image by name, digest, or the first 12 or more digits of its digest.
    ///
    /// # Errors
    /// When there is none, or several.
    pub fn get(&self, reference: &str) -> Result<StoredImage, ImageError> {
        let refs = self.refs()?;
        let (digest, name) = self.find(reference, &refs)?;
        // A digest in a name binds the image; the name is what it is asked for by all the same.
        let name = name.or_else(|| {
            reference
                .parse::<Reference>()
                .ok()
                .filter(|name| name.digest().is_some())
                .map(|name| name.to_string())
        });
        Ok(StoredImage { name, ..self.stored(&digest, &refs)? })
    }

    /// As [`ImageStore::get`], without what running it takes.
    ///
    /// # Errors
    /// As [`ImageStore::get`].
    pub fn info(&self, reference: &str) -> Result<ImageInfo, ImageError> {
        Ok(self.get(reference)?.info)
    }

    /// Refuses an image that the signature policy refuses now, whatever it said when the image came. `name` is what the
    /// image is asked for by: the policy must accept it under that name as well, however it got it.
    ///
    /// # Errors
    /// When the policy refuses the image, or cannot be read, or there is no such image.
    pub fn check_policy(&self, digest: &str, name: Option<&Reference>) -> Result<(), ImageError> {
        self.record(&digest.parse()?)?.check(&self.policy()?, name)
    }

    /// The disk of an image, by its full digest. One that cannot be believed any more is made anew from its layers;
    /// `watch` is told how far that is.
    ///
    /// # Errors
    /// When the image is not there, or its disk would have to be made anew and its layers are gone or damaged.
    pub fn disk(&self, digest: &str, watch: Watch<'_>) -> Result<PathBuf, ImageError> {
        let digest = digest.parse()?;
        let record = self.record(&digest)?;
        let chain = record.chain();
        if let Some(path) = self.disks.get(&chain)? {
            self.settle(chain);
            return Ok(path);
        }
        self.rebuild(&record, watch)?;
        self.disks.get(&chain)?.ok_or(ImageError::MissingBlob { digest })
    }

    /// Sees to it that a disk is still believed after a loss of power, in the background: by now the kernel has most
    /// likely written it, and if this does not come to its end, the next start of a box tries again.
    fn settle(&self, chain: Digest) {
        let store = self.clone();
        let work = move || -> Result<(), ImageError> {
            let Some(unsynced) = store.disks.unsynced(&chain)? else { return Ok(()) };
            unsynced.sync()?;
            let _lock = store.lock()?;
            unsynced.mark()
        };
        if self.disks.unsynced(&chain).is_ok_and(|unsynced| unsynced.is_none()) {
            return;
        }
        let spawned = std::thread::Builder::new().name("boxlite-settle".into()).spawn(move || {
            if let Err(error) = work() {
                tracing::debug!(%error, "a disk is not synced yet");
            }
        });
        if let Err(error) = spawned {
            tracing::debug!(%error, "a disk is not synced yet");
        }
    }

    /// Gives an image one more name; a name that led elsewhere leads here now.
    ///
    /// # Errors
    /// When there is no such image, or the name has a digest.
    pub fn tag(&self, reference: &str, name: &Reference) -> Result<(), ImageError> {
        if name.digest().is_some() {
            return Err(ImageError::TagWithDigest { name: name.to_string() });
        }
        let _lock = self.lock()?;
        let (digest, _) = self.find(reference, &self.refs()?)?;
        self.name(&digest, std::slice::from_ref(name))
    }

    /// Removes a name, and the image with its last name. By digest, removes the image with all names. The files of a
    /// removed image go with it unless other images have them.
    ///
    /// # Errors
    /// When there is no such image, it is the last name of an image in `used`, or the store cannot be written.
    pub fn remove(&self, reference: &str, used: &Used) -> Result<Removed, ImageError> {
        let mut blobs: Vec<Digest> = Vec::new();
        let removed = {
            let _lock = self.lock()?;
            let mut refs = self.refs()?;
            let (digest, name) = self.find(reference, &refs)?;
            let text = digest.to_string();
            let names = refs.of(&digest);
            let untagged = match name {
                Some(name) => vec![name],
                None => names.clone(),
            };
            let deletes = names.len() == untagged.len();
            if deletes && let Some(boxes) = used.get(&text) {
                let reference = super::error::shown(reference.as_bytes());
                return Err(ImageError::InUse { reference, boxes: boxes.clone() });
            }
            for name in &untagged {
                refs.refs.remove(name);
            }
            self.put_refs(&refs)?;
            if deletes {
                // Of a damaged record it is not known: a prune finds what it leaves.
                blobs.extend(self.record(&digest).iter().flat_map(Record::blobs));
                self.delete(&digest)?;
            }
            Removed { untagged, deleted: deletes.then_some(text) }
        };
        if removed.deleted.is_some() {
            self.forget_blobs(blobs.into_iter())?;
        }
        Ok(removed)
    }

    /// Removes an image's record, and its disk if no other image has it. The store must be locked.
    pub(super) fn delete(&self, digest: &Digest) -> Result<(), ImageError> {
        // Of a damaged record the disk is not known: a prune finds it.
        let chain = self.record(digest).map(|record| record.chain()).ok();
        remove(&self.record_path(digest))?;
        match (chain, self.all_records()?) {
            (Some(chain), Some(records)) if !records.iter().any(|record| record.chain() == chain) => {
                self.disks.remove(&chain)
            }
            _ => Ok(()),
        }
    }

    /// All blobs that images have; nothing when a record cannot be read, as then nobody can say.
    fn wanted_blobs(&self) -> Result<Option<BTreeSet<Digest>>, ImageError> {
        let blobs = |records: Vec<Record>| {
            records.iter().flat_map(|record| record.blobs().collect::<Vec<_>>()).collect()
        };
        Ok(self.all_records()?.map(blobs))
    }

    /// All records; nothing when one of them cannot be read.
    pub(super) fn all_records(&self) -> Result<Option<Vec<Record>>, ImageError> {
        let records = self.records()?;
        Ok(if records.len() == self.digests()?.len() { Some(records) } else { None })
    }

    /// Removes those of some blobs that no image has. Does nothing while somebody is loading, pulling or saving: then
    /// they stay for the next prune.
    fn forget_blobs(&self, blobs: impl Iterator<Item = Digest>) -> Result<(), ImageError> {
        let Some(_alone) = self.alone()? else { return Ok(()) };
        let Some(wanted) = self.wanted_blobs()? else { return Ok(()) };
        blobs.filter(|digest| !wanted.contains(digest)).try_for_each(|digest| self.blobs.forget(&digest))
    }

    /// Removes all blobs that no image has, and tells the bytes that it freed; nothing while somebody is loading, pulling
    /// or saving, or a record cannot be read.
    pub(super) fn sweep_blobs(&self) -> Result<Option<u64>, ImageError> {
        let Some(_alone) = self.alone()? else { return Ok(None) };
        let Some(wanted) = self.wanted_blobs()? else { return Ok(None) };
        self.blobs.sweep(|digest| wanted.contains(digest)).map(Some)
    }

    /// Keeps everybody from loading, pulling and saving, if nobody does. What is published from then on had no part in
    /// what no image has then: its maker would hold the lock.
    fn alone(&self) -> Result<Option<Flock<File>>, ImageError> {
        let path = self.folder.join("users");
        lock::try_lock(&path, true).map_err(|error| ImageError::io("lock", path, error))
    }

    /// Keeps everybody from removing blobs, as long as the lock is held.
    pub(super) fn use_blobs(&self, watch: Watch<'_>) -> Result<Flock<File>, ImageError> {
        let path = self.folder.join("users");
        let lock = lock::shared(&path, || watch(super::Progress::Waiting))?;
        lock.map_err(|error| ImageError::io("lock", path, error))
    }

    /// Adds names; those that led elsewhere lead here now. The store must be locked.
    pub(super) fn name(&self, digest: &Digest, names: &[Reference]) -> Result<(), ImageError> {
        let mut refs = self.refs()?;
        let before = refs.clone();
        for name in names {
            refs.refs.insert(name.to_string(), Text(*digest));
        }
        if refs == before { Ok(()) } else { self.put_refs(&refs) }
    }

    /// Writes a record, with all the ways by which the image came before. The store must be locked.
    pub(super) fn put_record(&self, mut record: Record) -> Result<(), ImageError> {
        let path = self.record_path(&record.digest.0);
        if let Ok(Some(known)) = document::read::<Record>(&path) {
            let latest = std::mem::replace(&mut record.origins, known.origins.clone());
            latest.into_iter().for_each(|origin| record.came_by(origin));
            if record == known {
                return Ok(());
            }
        }
        document::write(&path, &record)
    }

    /// Removes what killed processes left in `tmp`.
    pub(super) fn sweep_drafts(&self) -> Result<(), ImageError> {
        for name in names_in(&self.tmp)? {
            let is_draft = name.strip_prefix(DRAFT_PREFIX).is_some_and(|rest| rest.ends_with(DISK_SUFFIX));
            let path = self.tmp.join(&name);
            // A lock that can be had has no owner any more.
            if is_draft && let Ok(Some(_lock)) = lock::try_lock(&path, false) {
                discard(&path);
            }
        }
        Ok(())
    }

    pub(super) fn policy(&self) -> Result<Policy, ImageError> {
        let path = match &self.policy {
            PolicyFile::Named(path) => Some(path),
            // A link that leads nowhere is there, and cannot be read.
            PolicyFile::First(paths) => paths.iter().find(|path| {
                !fs::symlink_metadata(path).is_err_and(|error| {
                    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
                })
            }),
        };
        match path {
            None => Ok(Policy::accept_anything()),
            Some(path) => Policy::read(path).map_err(ImageError::Policy),
        }
    }

    pub(super) fn find(&self, reference: &str, refs: &Refs) -> Result<(Digest, Option<String>), ImageError> {
        if let Ok(digest) = reference.parse::<Digest>() {
            return if self.exists(&digest)? {
                Ok((digest, None))
            } else {
                Err(self.not_found(reference, refs))
            };
        }
        let name = reference.parse::<Reference>();
        if let Ok(name) = &name {
            let text = name.to_string();
            if let Some(digest) = refs.refs.get(&text).filter(|to| self.is_bound(name, to.0)) {
                return Ok((digest.0, Some(text)));
            }
            // A digest means the same under every name.
            if let Some(digest) = name.digest().filter(|digest| self.record_path(digest).exists()) {
                return Ok((*digest, None));
            }
        }
        let prefix = reference.strip_prefix("sha256:").unwrap_or(reference);
        let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if prefix.len() >= PREFIX_MIN && prefix.bytes().all(hexadecimal) {
            let digests = self.digests()?;
            let mut found = digests.iter().filter(|digest| digest.hex().starts_with(prefix));
            match (found.next(), found.next()) {
                (Some(digest), None) => return Ok((*digest, None)),
                (Some(_), Some(_)) => return Err(ImageError::Ambiguous { prefix: prefix.to_owned() }),
                (None, _) => {}
            }
        }
        match name {
            Ok(_) => Err(self.not_found(reference, refs)),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether an image is the one that a name with a digest is bound to: by its manifest, or an index that led to it.
    fn is_bound(&self, name: &Reference, digest: Digest) -> bool {
        let Some(wanted) = name.digest() else { return true };
        let is_index =
            |record: Record| record.origins.iter().any(|origin| origin.index == Some(Text(*wanted)));
        digest == *wanted || self.record(&digest).is_ok_and(is_index)
    }

    pub(super) fn not_found(&self, reference: &str, refs: &Refs) -> ImageError {
        let mut similar = Vec::new();
        if let Ok(wanted) = reference.parse::<Reference>() {
            let last = |name: &Reference| name.repository().rsplit('/').next().unwrap_or_default().to_owned();
            let wanted = last(&wanted);
            let known = refs.refs.keys().filter_map(|name| name.parse::<Reference>().ok());
            let alike = known.filter(|name| are_similar(&last(name), &wanted));
            similar.extend(alike.map(|name| name.familiar()).take(5));
        }
        ImageError::NotFound { reference: super::error::shown(reference.as_bytes()), similar }
    }

    fn stored(&self, digest: &Digest, refs: &Refs) -> Result<StoredImage, ImageError> {
        let record = self.record(digest)?;
        let disk = self.disks.path(&record.chain());
        let disk_bytes = allocated(&disk)?;
        let mut size_bytes = disk_bytes;
        // A layer that is there twice is one file.
        for blob in record.blobs().collect::<BTreeSet<_>>() {
            size_bytes += self.blobs.allocated(&blob)?;
        }
        let info = ImageInfo {
            references: refs.of(digest),
            digest: digest.to_string(),
            size_bytes,
            disk_bytes,
            created: record.config.created.clone(),
            architecture: record.config.architecture.clone(),
            layers: record.layers.iter().map(|layer| layer.digest.0.to_string()).collect(),
        };
        Ok(StoredImage { info, digest: digest.to_string(), config: record.config, disk, name: None })
    }

    /// What is known of an image.
    pub(super) fn record(&self, digest: &Digest) -> Result<Record, ImageError> {
        match document::read(&self.record_path(digest))? {
            Some(record) => Ok(record),
            None => Err(self.not_found(&digest.to_string(), &self.refs()?)),
        }
    }

    /// All records that can be read.
    pub(super) fn records(&self) -> Result<Vec<Record>, ImageError> {
        let mut records = Vec::new();
        for digest in self.digests()? {
            match document::read(&self.record_path(&digest)) {
                Ok(record) => records.extend(record),
                Err(error @ ImageError::Format { .. }) => {
                    tracing::warn!(%digest, error = %error, "an image cannot be read");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// Whether there is an image, sound or not.
    fn exists(&self, digest: &Digest) -> Result<bool, ImageError> {
        let path = self.record_path(digest);
        path.try_exists().map_err(|error| ImageError::io("look for", path, error))
    }

    pub(super) fn digests(&self) -> Result<Vec<Digest>, ImageError> {
        let names = names_in(&self.folder)?;
        Ok(names.iter().filter_map(|name| Digest::from_hex(name.strip_suffix(RECORD_SUFFIX)?)).collect())
    }

    pub(super) fn refs(&self) -> Result<Refs, ImageError> {
        Ok(document::read(&self.folder.join(REFS))?.unwrap_or_default())
    }

    /// The store must be locked.
    pub(super) fn put_refs(&self, refs: &Refs) -> Result<(), ImageError> {
        document::write(&self.folder.join(REFS), refs)
    }

    fn record_path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{}{RECORD_SUFFIX}", digest.hex()))
    }

    pub(super) fn lock(&self) -> Result<Flock<File>, ImageError> {
        let path = self.folder.join("lock");
        let deadline = Instant::now() + LOCK_DEADLINE;
        let wait = || if Instant::now() < deadline { Ok(()) } else { Err(ImageError::Busy) };
        lock::lock(&path, wait)?.map_err(|error| ImageError::io("lock", path, error))
    }
}

/// Removes a file that means nothing. If that fails, it means nothing still, and the next load tries again.
pub(super) fn discard(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %path.display(), "cannot remove a temporary file");
    }
}

pub(super) fn names_in(folder: &Path) -> Result<Vec<String>, ImageError> {
    let failed = |error| ImageError::io("read the folder", folder, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        // Names that are no text are none of ours.
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// One contains the other, or at most two letters differ.
fn are_similar(a: &str, b: &str) -> bool {
    a.contains(b) || b.contains(a) || distance(a.as_bytes(), b.as_bytes()) <= 2
}

/// Letters to add, remove or replace (Levenshtein).
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
