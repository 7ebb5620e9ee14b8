//! Content by digest: manifests, configurations and layers, as registries and archives gave them.
//!
//! ```text
//! <home>/blobs/sha256/<hex>    complete, verified when it was put there
//! <home>/blobs/partial/<hex>   being written, locked by who writes it
//! ```
//!
//! ```text
//!             begin                append …              finish
//!   nothing ─────────▶ partial, locked ──────▶ partial, locked ──────▶ complete
//!                          │  ▲ begin: what is there is read            (digest and size are right)
//!              killed, cut ▼  │ and hashed anew
//!                        partial, free          finish with another digest: removed
//! ```
//!
//! Nothing here is synced: what a loss of power damages has another digest than its name, and whoever uses a blob
//! verifies it. A blob that is found to be damaged is removed, and fetched again by the next who wants it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::Flock;
use sha2::{Digest as _, Sha256};

use super::digest::Digest;
use super::error::{ImageError, LayerError};
use super::growth::Growth;
use super::lock;

const BUFFER: usize = 256 << 10;

/// The blobs of one home.
#[derive(Debug, Clone)]
pub(super) struct Blobs {
    complete: PathBuf,
    partial: PathBuf,
}

/// What beginning a blob came to.
#[derive(Debug)]
pub(super) enum Begun {
    /// It is there.
    Complete,
    /// Somebody else is at it.
    Taken,
    /// It is ours to write.
    Ours(Box<Partial>),
}

impl Blobs {
    /// The blobs in this folder, which is made if it does not exist.
    pub(super) fn open(folder: &Path) -> Result<Self, ImageError> {
        let blobs = Self { complete: folder.join("sha256"), partial: folder.join("partial") };
        for folder in [&blobs.complete, &blobs.partial] {
            fs::create_dir_all(folder).map_err(|error| ImageError::io("make the folder", folder, error))?;
        }
        Ok(blobs)
    }

    pub(super) fn path(&self, digest: &Digest) -> PathBuf {
        self.complete.join(digest.hex())
    }

    /// Whether a blob is there with its full size. One of another size that was damaged is removed; if it was not, the
    /// size that was said of it is an error.
    pub(super) fn has(&self, digest: &Digest, size: u64) -> Result<bool, ImageError> {
        let path = self.path(digest);
        match fs::metadata(&path) {
            Ok(meta) if meta.len() == size => Ok(true),
            // Either of both is wrong: what is stored, or what somebody says of it.
            Ok(meta) => {
                let wrong = LayerError::BlobSize { expected: size, actual: meta.len() };
                if self.is_sound(digest)? {
                    return Err(ImageError::Blob { digest: *digest, source: wrong });
                }
                Ok(false)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(ImageError::io("look for", path, error)),
        }
    }

    pub(super) fn exists(&self, digest: &Digest) -> Result<bool, ImageError> {
        let path = self.path(digest);
        path.try_exists().map_err(|error| ImageError::io("look for", path, error))
    }

    /// A small blob; nothing when it is missing or damaged.
    pub(super) fn document(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, ImageError> {
        let path = self.path(digest);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)) {
            Ok(_) if Digest::of(&bytes) == *digest => Ok(Some(bytes)),
            Ok(_) => {
                tracing::warn!(%digest, "a stored document is damaged");
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImageError::io("read", path, error)),
        }
    }

    /// Puts a small blob whose digest is known to be right.
    pub(super) fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
        if self.document(digest, bytes.len() as u64)?.is_some() {
            return Ok(());
        }
        let path = self.path(digest);
        let put = || {
            let mut file = tempfile::NamedTempFile::new_in(&self.partial)?;
            io::Write::write_all(&mut file, bytes)?;
            file.persist(&path).map_err(|error| error.error)
        };
        put().map(drop).map_err(|error| ImageError::io("write", &path, error))
    }

    /// Removes what a download has left, unless somebody is at it: its next one begins anew.
    pub(super) fn restart(&self, digest: &Digest) -> Result<(), ImageError> {
        discard_partial(&self.partial.join(digest.hex())).map(drop)
    }

    /// Opens a complete blob.
    pub(super) fn open_blob(&self, digest: &Digest) -> Result<File, ImageError> {
        let path = self.path(digest);
        match File::open(&path) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(ImageError::MissingBlob { digest: *digest })
            }
            Err(error) => Err(ImageError::io("open", path, error)),
        }
    }

    /// Whether a complete blob still is what its name says. One that is not is removed.
    pub(super) fn is_sound(&self, digest: &Digest) -> Result<bool, ImageError> {
        let path = self.path(digest);
        let file = match self.open_blob(digest) {
            Ok(file) => file,
            Err(ImageError::MissingBlob { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        let mut hash = Sha256::new();
        hash_file(&file, u64::MAX, &mut hash).map_err(|error| ImageError::io("read", path, error))?;
        let sound = Digest::finish(hash) == *digest;
        if !sound {
            tracing::warn!(%digest, "a stored blob is damaged, and removed");
            self.remove(digest)?;
        }
        Ok(sound)
    }

    pub(super) fn remove(&self, digest: &Digest) -> Result<(), ImageError> {
        remove(&self.path(digest))
    }

    /// Takes a blob over to write it, unless it is there or taken.
    pub(super) fn begin(&self, growth: &Arc<Growth>) -> Result<Begun, ImageError> {
        let (digest, size) = (growth.digest(), growth.size());
        if self.has(&digest, size)? {
            return Ok(Begun::Complete);
        }
        let path = self.partial.join(digest.hex());
        let failed = |error| ImageError::io("write", &path, error);
        let Some(lock) = lock::try_lock(&path, true).map_err(failed)? else { return Ok(Begun::Taken) };
        // It may have become complete between our look and our lock.
        if self.has(&digest, size)? {
            remove(&path)?;
            return Ok(Begun::Complete);
        }
        let file = Arc::new(lock.try_clone().map_err(failed)?);
        let mut hash = Sha256::new();
        let mut written = hash_file(&file, size, &mut hash).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() > size {
            // No part of this blob is that long.
            file.set_len(0).map_err(failed)?;
            (written, hash) = (0, Sha256::new());
        }
        growth.begin(file.clone(), written);
        let (blobs, growth) = (self.clone(), growth.clone());
        Ok(Begun::Ours(Box::new(Partial { blobs, growth, path, _lock: lock, file, hash, written })))
    }

    /// Removes every blob that is not wanted, and what is left of downloads that nobody is at. Nobody may be loading or
    /// pulling. Tells how many bytes that freed.
    pub(super) fn sweep(&self, wanted: impl Fn(&Digest) -> bool) -> Result<u64, ImageError> {
        let mut freed = 0;
        for (path, digest) in self.files(&self.complete)? {
            if !digest.is_some_and(|digest| wanted(&digest)) {
                freed += allocated(&path)?;
                remove(&path)?;
            }
        }
        for (path, _) in self.files(&self.partial)? {
            freed += discard_partial(&path)?;
        }
        Ok(freed)
    }

    /// Removes a blob, and what is left of a download of it that nobody is at. Nobody may be loading or pulling.
    pub(super) fn forget(&self, digest: &Digest) -> Result<(), ImageError> {
        self.remove(digest)?;
        self.restart(digest)
    }

    /// What a complete blob takes on the disk; 0 when it is not there.
    pub(super) fn allocated(&self, digest: &Digest) -> Result<u64, ImageError> {
        allocated(&self.path(digest))
    }

    /// All complete blobs with what they take, and what all partial ones take together.
    pub(super) fn usage(&self) -> Result<(Vec<(Digest, u64)>, u64), ImageError> {
        let mut complete = Vec::new();
        let mut rest = 0;
        for (path, digest) in self.files(&self.complete)? {
            match digest {
                Some(digest) => complete.push((digest, allocated(&path)?)),
                None => rest += allocated(&path)?,
            }
        }
        for (path, _) in self.files(&self.partial)? {
            rest += allocated(&path)?;
        }
        Ok((complete, rest))
    }

    fn files(&self, folder: &Path) -> Result<Vec<(PathBuf, Option<Digest>)>, ImageError> {
        let failed = |error| ImageError::io("read the folder", folder, error);
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let digest = entry.file_name().to_str().and_then(Digest::from_hex);
            files.push((entry.path(), digest));
        }
        Ok(files)
    }
}

/// What a file takes on the disk; 0 when it is not there.
pub(super) fn allocated(path: &Path) -> Result<u64, ImageError> {
    match fs::metadata(path) {
        Ok(meta) => Ok(meta.blocks() * 512),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(ImageError::io("look at", path, error)),
    }
}

/// Removes a file if it is there.
pub(super) fn remove(path: &Path) -> Result<(), ImageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Removes what is left of a download, unless somebody is at it; tells how much that freed.
fn discard_partial(path: &Path) -> Result<u64, ImageError> {
    let size = allocated(path)?;
    // A lock that can be had has no owner.
    match lock::try_lock(path, false).map_err(|error| ImageError::io("lock", path, error))? {
        Some(_lock) => remove(path).map(|()| size),
        None => Ok(0),
    }
}

/// Hashes at most `limit` bytes from the start of a file, and tells how many there were.
fn hash_file(file: &File, limit: u64, hash: &mut Sha256) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    while at < limit {
        let most = usize::try_from(limit - at).unwrap_or(usize::MAX).min(BUFFER);
        match file.read_at(&mut buffer[..most], at) {
            Ok(0) => break,
            Ok(length) => {
                hash.update(&buffer[..length]);
                at += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}

/// A blob that is being written. Dropped before [`Partial::finish`], it stays for the next who begins it.
#[derive(Debug)]
pub(super) struct Partial {
    blobs: Blobs,
    growth: Arc<Growth>,
    path: PathBuf,
    _lock: Flock<File>,
    file: Arc<File>,
    hash: Sha256,
    written: u64,
}

impl Partial {
    /// Bytes that are there.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Appends. More than the blob's size is refused.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        let after = self.written + bytes.len() as u64;
        if after > self.growth.size() {
            return Err(self.wrong(LayerError::BlobSize { expected: self.growth.size(), actual: after }));
        }
        let written = self.file.write_all_at(bytes, self.written);
        written.map_err(|error| ImageError::io("write", &self.path, error))?;
        self.hash.update(bytes);
        self.written = after;
        self.growth.grow(after);
        Ok(())
    }

    /// Makes the blob complete, if it is what it should be; removes it if not.
    pub(super) fn finish(mut self) -> Result<(), ImageError> {
        let (digest, size) = (self.growth.digest(), self.growth.size());
        if self.written != size {
            return Err(self.wrong(LayerError::BlobSize { expected: size, actual: self.written }));
        }
        let actual = Digest::finish(std::mem::take(&mut self.hash));
        if actual != digest {
            remove(&self.path)?;
            return Err(self.wrong(LayerError::BlobDigest { expected: digest, actual }));
        }
        let place = self.blobs.path(&digest);
        fs::rename(&self.path, &place).map_err(|error| ImageError::io("publish", place, error))?;
        self.growth.complete();
        Ok(())
    }

    fn wrong(&self, source: LayerError) -> ImageError {
        ImageError::Blob { digest: self.growth.digest(), source }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After `finish` this says nothing new.
        self.growth.fail();
        if self.written == 0
            && let Err(error) = remove(&self.path)
        {
            tracing::warn!(%error, "cannot remove an empty download");
        }
    }
}
