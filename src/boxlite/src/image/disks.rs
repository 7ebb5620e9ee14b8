//! The disks that are made of layers: one for each sequence of layers, whatever images have them.
//!
//! ```text
//! <home>/images/<chain>.erofs        the disk
//! <home>/images/<chain>.erofs.json   what the file system said of it when it was complete
//! ```
//!
//! A disk can always be made again from its layers, so it is believed only as long as nothing has touched it: its inode,
//! size, modification and change time must be those that were written down. And since it is not synced when it is made,
//! which would take longer than making it again, a disk of an earlier boot of the host counts only if it was synced since.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::blobs::remove;
use super::digest::Digest;
use super::document;
use super::error::ImageError;

pub(super) const DISK_SUFFIX: &str = ".erofs";
const RECORD_SUFFIX: &str = ".erofs.json";
/// A random number for each boot of the host (`random(4)`).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The disks of one home.
#[derive(Debug, Clone)]
pub(super) struct Disks {
    folder: PathBuf,
}

/// `<chain>.erofs.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    boot: String,
    synced: bool,
}

impl Record {
    fn new(meta: &Metadata) -> io::Result<Self> {
        Ok(Self {
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            boot: fs::read_to_string(BOOT_ID)?.trim().to_owned(),
            synced: false,
        })
    }

    /// Whether `now` is the file that this was written of, untouched.
    fn vouches_for(&self, now: &Self) -> bool {
        let alike = Self { boot: now.boot.clone(), synced: now.synced, ..self.clone() } == *now;
        alike && (self.synced || self.boot == now.boot)
    }
}

impl Disks {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    pub(super) fn path(&self, chain: &Digest) -> PathBuf {
        self.folder.join(format!("{}{DISK_SUFFIX}", chain.hex()))
    }

    fn record_path(&self, chain: &Digest) -> PathBuf {
        self.folder.join(format!("{}{RECORD_SUFFIX}", chain.hex()))
    }

    /// The disk, if it is there and can be believed.
    pub(super) fn get(&self, chain: &Digest) -> Result<Option<PathBuf>, ImageError> {
        Ok(self.look(chain)?.map(|_| self.path(chain)))
    }

    fn look(&self, chain: &Digest) -> Result<Option<Record>, ImageError> {
        let path = self.path(chain);
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() => meta,
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ImageError::io("look at", path, error)),
        };
        let record: Record = match document::read(&self.record_path(chain)) {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(None),
            Err(ImageError::Format { path, reason }) => {
                tracing::warn!(path = %path.display(), reason, "a disk is not believed");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let now = Record::new(&meta).map_err(|error| ImageError::io("read", BOOT_ID, error))?;
        if record.vouches_for(&now) {
            return Ok(Some(record));
        }
        tracing::info!(disk = %path.display(), "the disk was touched, or the host lost power: it is made anew");
        Ok(None)
    }

    /// Puts a complete disk in its place. The store must be locked.
    pub(super) fn publish(&self, draft: &Path, chain: &Digest) -> Result<(), ImageError> {
        let path = self.path(chain);
        fs::rename(draft, &path).map_err(|error| ImageError::io("publish", &path, error))?;
        let meta = fs::symlink_metadata(&path).map_err(|error| ImageError::io("look at", &path, error))?;
        let record = Record::new(&meta).map_err(|error| ImageError::io("read", BOOT_ID, error))?;
        document::write(&self.record_path(chain), &record)
    }

    /// Whether the disk is believed, and would still be after a loss of power.
    pub(super) fn is_synced(&self, chain: &Digest) -> Result<bool, ImageError> {
        Ok(self.look(chain)?.is_some_and(|record| record.synced))
    }

    /// Syncs a disk's contents; takes as long as the host's disk takes.
    pub(super) fn sync(&self, chain: &Digest) -> Result<(), ImageError> {
        let path = self.path(chain);
        File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(|error| ImageError::io("sync", path, error))
    }

    /// Writes down that a disk was synced. The store must be locked.
    pub(super) fn mark_synced(&self, chain: &Digest) -> Result<(), ImageError> {
        match self.look(chain)? {
            Some(record) if !record.synced => {
                document::write(&self.record_path(chain), &Record { synced: true, ..record })
            }
            _ => Ok(()),
        }
    }

    /// The store must be locked.
    pub(super) fn remove(&self, chain: &Digest) -> Result<(), ImageError> {
        remove(&self.record_path(chain))?;
        remove(&self.path(chain))
    }

    /// The chains that there are files of.
    pub(super) fn chains(&self, names: &[String]) -> Vec<Digest> {
        let chain = |name: &String| {
            Digest::from_hex(name.strip_suffix(RECORD_SUFFIX).or_else(|| name.strip_suffix(DISK_SUFFIX))?)
        };
        let mut chains: Vec<Digest> = names.iter().filter_map(chain).collect();
        chains.sort();
        chains.dedup();
        chains
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn disk() -> (tempfile::TempDir, Disks, Digest) {
        let folder = tempfile::tempdir().unwrap();
        let (disks, chain) = (Disks::new(folder.path()), Digest::of(b"chain"));
        let draft = folder.path().join("draft");
        fs::write(&draft, "contents").unwrap();
        disks.publish(&draft, &chain).unwrap();
        (folder, disks, chain)
    }

    #[test]
    fn a_disk_is_believed_until_anything_touches_it() {
        let (_folder, disks, chain) = disk();
        assert_eq!(disks.get(&chain).unwrap(), Some(disks.path(&chain)));
        let file = fs::OpenOptions::new().write(true).open(disks.path(&chain)).unwrap();
        // The clock of file times ticks slower than this test runs.
        let before = fs::metadata(disks.path(&chain)).unwrap();
        loop {
            file.write_all_at(b"X", 3).unwrap();
            let now = fs::metadata(disks.path(&chain)).unwrap();
            if (now.ctime(), now.ctime_nsec()) != (before.ctime(), before.ctime_nsec()) {
                break;
            }
        }
        assert_eq!(disks.get(&chain).unwrap(), None);
    }

    #[test]
    fn a_disk_of_an_earlier_boot_is_believed_only_if_it_was_synced() {
        let (_folder, disks, chain) = disk();
        let other_boot = |synced| {
            let record = disks.look(&chain).unwrap().unwrap();
            document::write(&disks.record_path(&chain), &Record { boot: "other".into(), synced, ..record })
                .unwrap();
        };
        assert!(!disks.is_synced(&chain).unwrap());
        disks.sync(&chain).unwrap();
        disks.mark_synced(&chain).unwrap();
        assert!(disks.is_synced(&chain).unwrap());
        other_boot(true);
        assert!(disks.get(&chain).unwrap().is_some());
        other_boot(false);
        assert_eq!(disks.get(&chain).unwrap(), None);
    }

    #[test]
    fn a_disk_whose_record_is_damaged_or_missing_is_not_believed() {
        let (_folder, disks, chain) = disk();
        fs::write(disks.record_path(&chain), "{}").unwrap();
        assert_eq!(disks.get(&chain).unwrap(), None);
        fs::remove_file(disks.record_path(&chain)).unwrap();
        assert_eq!(disks.get(&chain).unwrap(), None);
        disks.remove(&chain).unwrap();
        disks.remove(&chain).unwrap();
    }
}
