//! Images that are ready to run.
//!
//! ```text
//! <home>/images/
//!   lock                   held while any of the others changes
//!   <digest>.erofs         the disk
//!   <digest>.json          what is known of it: the image exists once this does
//!   refs.json              names
//! <home>/tmp/
//!   image-<digest>.erofs   a disk in the making, locked by who makes it
//! ```
//!
//! A disk is made outside of the lock, so that several processes can load different images at once; of those that load
//! the same one, the first makes it and the others wait. Then, under the lock, the disk is renamed to its place, and the
//! document written: both synced. A crash leaves a temporary file, or a disk without a document: the next load removes
//! both.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use super::archive::{Archive, FoundImage};
use super::build::build;
use super::config::ImageConfig;
use super::digest::Digest;
use super::error::{Cancelled, ImageError};
use super::limits::Limits;
use super::lock;
use super::reference::Reference;
use super::{Progress, Watch};

/// Version of the documents; the first thing that is looked at.
const VERSION: u32 = 1;
/// The shortest start of a digest that stands for it.
const PREFIX_MIN: usize = 12;
/// Changing the store takes milliseconds: who holds its lock longer does not run.
const LOCK_DEADLINE: Duration = Duration::from_secs(30);
const DRAFT_PREFIX: &str = "image-";
const DISK_SUFFIX: &str = ".erofs";
const RECORD_SUFFIX: &str = ".json";
const REFS: &str = "refs.json";

/// The images of one home.
#[derive(Debug, Clone)]
pub struct ImageStore {
    folder: PathBuf,
    tmp: PathBuf,
    limits: Limits,
}

/// What is known of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ImageInfo {
    /// Its names, full.
    pub references: Vec<String>,
    /// The manifest's digest; of older archives of `docker save` the configuration's.
    pub digest: String,
    /// What its disk takes on this machine.
    pub size_bytes: u64,
    /// When it was made, in RFC 3339.
    pub created: Option<String>,
    /// The machine it is for, in Go's words.
    pub architecture: String,
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
    /// Its disk: a read-only EROFS file system.
    pub disk: PathBuf,
}

/// What a removal did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<String>,
    /// The image that is gone, unless other names still lead to it.
    pub deleted: Option<String>,
}

/// `<digest>.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    version: u32,
    digest: String,
    /// Content digests, lowest first.
    layers: Vec<String>,
    config: ImageConfig,
}

/// `refs.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Refs {
    version: u32,
    refs: BTreeMap<String, String>,
}

impl ImageStore {
    /// The store in the folder `images`, with temporary files in `tmp`. Both are made if they do not exist, and must be on
    /// one file system.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn open(images: PathBuf, tmp: PathBuf) -> Result<Self, ImageError> {
        for folder in [&images, &tmp] {
            fs::create_dir_all(folder).map_err(|error| ImageError::io("make the folder", folder, error))?;
        }
        Ok(Self { folder: images, tmp, limits: Limits::default() })
    }

    /// The same with other limits on what is loaded.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Loads all images for this machine of an OCI layout folder, an OCI archive or a `docker save` archive. What is in
    /// the store already is only named.
    ///
    /// # Errors
    /// When the archive is broken, hostile or too large, or the store cannot be written. Images that were complete by then
    /// stay.
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
        self.sweep()?;
        let archive = Archive::open(path, &self.tmp, &self.limits, watch)?;
        if !names.is_empty() && archive.images().len() != 1 {
            let reason = format!("it holds {} images, which cannot share a name", archive.images().len());
            return Err(ImageError::Unknown { path: path.to_owned(), reason });
        }
        let mut digests = Vec::new();
        for image in archive.images() {
            let names = if names.is_empty() { &image.references } else { names };
            self.add(&archive, image, names, watch)?;
            digests.push(image.digest);
        }
        let refs = self.refs()?;
        digests.iter().map(|digest| Ok(self.stored(digest, &refs)?.info)).collect()
    }

    /// All images, in the order of their names.
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
        let (digest, _) = self.find(reference, &refs)?;
        self.stored(&digest, &refs)
    }

    /// As [`ImageStore::get`], without what running it takes.
    ///
    /// # Errors
    /// As [`ImageStore::get`].
    pub fn info(&self, reference: &str) -> Result<ImageInfo, ImageError> {
        Ok(self.get(reference)?.info)
    }

    /// The disk of an image, by its full digest.
    ///
    /// # Errors
    /// When the image is not there.
    pub fn disk(&self, digest: &str) -> Result<PathBuf, ImageError> {
        let path = self.disk_path(&digest.parse()?);
        match path.try_exists() {
            Ok(true) => Ok(path),
            Ok(false) => Err(self.not_found(digest, &self.refs()?)),
            Err(error) => Err(ImageError::io("look for", path, error)),
        }
    }

    /// Removes a name, and the image with its last name. By digest, removes the image with all names. What a running box
    /// has open stays readable to it.
    ///
    /// # Errors
    /// When there is no such image, or the store cannot be written.
    pub fn remove(&self, reference: &str) -> Result<Removed, ImageError> {
        let _lock = self.lock()?;
        let mut refs = self.refs()?;
        let (digest, name) = self.find(reference, &refs)?;
        let text = digest.to_string();
        let untagged: Vec<String> = match name {
            Some(name) => vec![name],
            None => refs.refs.iter().filter(|(_, of)| **of == text).map(|(name, _)| name.clone()).collect(),
        };
        for name in &untagged {
            refs.refs.remove(name);
        }
        self.write(REFS, &refs)?;
        if refs.refs.values().any(|of| *of == text) {
            return Ok(Removed { untagged, deleted: None });
        }
        for path in [self.record_path(&digest), self.disk_path(&digest)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(ImageError::io("remove", path, error));
                }
                _ => {}
            }
        }
        Ok(Removed { untagged, deleted: Some(text) })
    }

    /// Makes an image's disk unless it is there, and names it.
    fn add(
        &self,
        archive: &Archive,
        image: &FoundImage,
        names: &[Reference],
        watch: Watch<'_>,
    ) -> Result<(), ImageError> {
        let draft = self.tmp.join(format!("{DRAFT_PREFIX}{}{DISK_SUFFIX}", image.digest.hex()));
        loop {
            {
                let _lock = self.lock()?;
                if self.exists(&image.digest)? {
                    return self.name(&image.digest, names);
                }
            }
            let waited = |watch: Watch<'_>| watch(Progress::Waiting);
            let found = lock::lock::<Waited>(&draft, || match waited(watch) {
                Err(cancelled) => Err(Waited::Cancelled(cancelled)),
                // Whoever made it may be done: then it is in the store, and not here any more.
                Ok(()) if self.exists(&image.digest).unwrap_or(false) => Err(Waited::Made),
                Ok(()) => Ok(()),
            });
            let file = match found {
                Ok(file) => file.map_err(|error| ImageError::io("lock", &draft, error))?,
                Err(Waited::Made) => continue,
                Err(Waited::Cancelled(cancelled)) => return Err(cancelled.into()),
            };
            // It may have been made between our look and our lock.
            if self.exists(&image.digest)? {
                self.discard(&draft);
                continue;
            }
            let made = self.make(archive, image, &file, &draft, names, watch);
            if made.is_err() {
                self.discard(&draft);
            }
            return made;
        }
    }

    /// Makes the disk in the locked, maybe not empty `file` at `draft`, and publishes it.
    fn make(
        &self,
        archive: &Archive,
        image: &FoundImage,
        file: &Flock<File>,
        draft: &Path,
        names: &[Reference],
        watch: Watch<'_>,
    ) -> Result<(), ImageError> {
        let failed = |error| ImageError::io("write", draft, error);
        file.set_len(0).map_err(failed)?;
        let output = file.try_clone().map_err(failed)?;
        let scratch = tempfile::tempfile_in(&self.tmp)
            .map_err(|error| ImageError::io("make a temporary file in", &self.tmp, error))?;
        let built = build(archive.layers(image), &image.digest, output, scratch, &self.limits, watch)?;
        built.file.sync_all().map_err(failed)?;
        let record = Record {
            version: VERSION,
            digest: image.digest.to_string(),
            layers: image.diff_ids().map(ToString::to_string).collect(),
            config: image.config.clone(),
        };
        let _lock = self.lock()?;
        let disk = self.disk_path(&image.digest);
        fs::rename(draft, &disk).map_err(|error| ImageError::io("publish", &disk, error))?;
        self.write(&format!("{}{RECORD_SUFFIX}", image.digest.hex()), &record)?;
        self.name(&image.digest, names)
    }

    /// Adds names; those that led elsewhere lead here now. The store must be locked.
    fn name(&self, digest: &Digest, names: &[Reference]) -> Result<(), ImageError> {
        let mut refs = self.refs()?;
        let before = refs.refs.clone();
        for name in names {
            refs.refs.insert(name.to_string(), digest.to_string());
        }
        if refs.refs == before { Ok(()) } else { self.write(REFS, &refs) }
    }

    /// Removes what killed processes left.
    fn sweep(&self) -> Result<(), ImageError> {
        for name in names_in(&self.tmp)? {
            let is_draft = name.strip_prefix(DRAFT_PREFIX).is_some_and(|rest| rest.ends_with(DISK_SUFFIX));
            let path = self.tmp.join(&name);
            // A lock that can be had has no owner any more.
            if is_draft && let Ok(Some(_lock)) = lock::try_lock(&path, false) {
                self.discard(&path);
            }
        }
        let _lock = self.lock()?;
        for name in names_in(&self.folder)? {
            let Some(digest) = name.strip_suffix(DISK_SUFFIX).and_then(Digest::from_hex) else { continue };
            if !self.exists(&digest)? {
                self.discard(&self.disk_path(&digest));
            }
        }
        Ok(())
    }

    /// Removes a file that means nothing. If that fails, it means nothing still, and the next load tries again.
    fn discard(&self, path: &Path) {
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %path.display(), "cannot remove a temporary file");
        }
    }

    fn find(&self, reference: &str, refs: &Refs) -> Result<(Digest, Option<String>), ImageError> {
        if let Ok(digest) = reference.parse::<Digest>() {
            return if self.exists(&digest)? {
                Ok((digest, None))
            } else {
                Err(self.not_found(reference, refs))
            };
        }
        let name = reference.parse::<Reference>().map(|name| name.to_string());
        if let Ok(name) = &name
            && let Some(digest) = refs.refs.get(name)
        {
            return Ok((digest.parse()?, Some(name.clone())));
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

    fn not_found(&self, reference: &str, refs: &Refs) -> ImageError {
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
        let text = digest.to_string();
        let Some(record): Option<Record> = self.read(&self.record_path(digest))? else {
            return Err(self.not_found(&text, refs));
        };
        let disk = self.disk_path(digest);
        let size_bytes = match fs::metadata(&disk) {
            Ok(meta) => meta.blocks() * 512,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.not_found(&text, refs)),
            Err(error) => return Err(ImageError::io("look at", disk, error)),
        };
        let info = ImageInfo {
            references: refs
                .refs
                .iter()
                .filter(|(_, of)| **of == text)
                .map(|(name, _)| name.clone())
                .collect(),
            digest: text.clone(),
            size_bytes,
            created: record.config.created.clone(),
            architecture: record.config.architecture.clone(),
        };
        Ok(StoredImage { info, digest: text, config: record.config, disk })
    }

    /// Whether an image is complete.
    fn exists(&self, digest: &Digest) -> Result<bool, ImageError> {
        for path in [self.record_path(digest), self.disk_path(digest)] {
            match path.try_exists() {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) => return Err(ImageError::io("look for", path, error)),
            }
        }
        Ok(true)
    }

    fn digests(&self) -> Result<Vec<Digest>, ImageError> {
        let names = names_in(&self.folder)?;
        Ok(names.iter().filter_map(|name| Digest::from_hex(name.strip_suffix(RECORD_SUFFIX)?)).collect())
    }

    fn refs(&self) -> Result<Refs, ImageError> {
        let refs = self.read(&self.folder.join(REFS))?;
        Ok(refs.unwrap_or(Refs { version: VERSION, refs: BTreeMap::new() }))
    }

    fn disk_path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{}{DISK_SUFFIX}", digest.hex()))
    }

    fn record_path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{}{RECORD_SUFFIX}", digest.hex()))
    }

    fn lock(&self) -> Result<Flock<File>, ImageError> {
        let path = self.folder.join("lock");
        let deadline = Instant::now() + LOCK_DEADLINE;
        let wait = || if Instant::now() < deadline { Ok(()) } else { Err(ImageError::Busy) };
        lock::lock(&path, wait)?.map_err(|error| ImageError::io("lock", path, error))
    }

    /// Reads a document; nothing when there is none.
    fn read<T: for<'a> Deserialize<'a>>(&self, path: &Path) -> Result<Option<T>, ImageError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ImageError::io("read", path, error)),
        };
        let bad = |reason: String| ImageError::Format { path: path.to_owned(), reason };
        let Version { version } = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        if version != VERSION {
            return Err(bad(format!("it has version {version}, this program knows version {VERSION}")));
        }
        serde_json::from_slice(&bytes).map(Some).map_err(|error| bad(error.to_string()))
    }

    /// Writes a document: all of it or, after a crash, the old one. The store must be locked.
    fn write<T: Serialize>(&self, name: &str, document: &T) -> Result<(), ImageError> {
        let path = self.folder.join(name);
        let write = || {
            let bytes = serde_json::to_vec(document)?;
            // There is one writer, so one name will do; what a killed one left is overwritten.
            let draft = self.folder.join(format!("{name}.new"));
            let mut file = File::create(&draft)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|error: io::Error| ImageError::io("write", path.clone(), error))
    }
}

/// Why waiting for a lock ended.
enum Waited {
    Made,
    Cancelled(Cancelled),
}

fn names_in(folder: &Path) -> Result<Vec<String>, ImageError> {
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
