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

/// A disk that the host's disk may not have yet.
#[derive(Debug)]
pub(super) struct Unsynced {
    record: Record,
    path: PathBuf,
    record_path: PathBuf,
}

impl Unsynced {
    /// Syncs the contents; takes as long as the host's disk takes.
    pub(super) fn sync(&self) -> Result<(), ImageError> {
        let synced = File::open(&self.path).and_then(|file| file.sync_all());
        synced.map_err(|error| ImageError::io("sync", &self.path, error))
    }

    /// Writes down that it was synced, unless another disk has taken its place. The store must be locked.
    pub(super) fn mark(self) -> Result<(), ImageError> {
        match document::read::<Record>(&self.record_path)? {
            Some(record) if record == self.record => {
                document::write(&self.record_path, &Record { synced: true, ..record })
            }
            _ => Ok(()),
        }
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
        document::write(&self.record_path(chain), &record).inspect_err(|_| {
            // Without a record it would only take space.
            if let Err(error) = remove(&path) {
                tracing::warn!(%error, "cannot remove a disk that has no record");
            }
        })
    }

    /// The disk, if it is believed and would not be after a loss of power.
    pub(super) fn unsynced(&self, chain: &Digest) -> Result<Option<Unsynced>, ImageError> {
        let record = self.look(chain)?.filter(|record| !record.synced);
        Ok(record.map(|record| Unsynced {
            record,
            path: self.path(chain),
            record_path: self.record_path(chain),
        }))
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
        let unsynced = disks.unsynced(&chain).unwrap().unwrap();
        unsynced.sync().unwrap();
        unsynced.mark().unwrap();
        assert!(disks.unsynced(&chain).unwrap().is_none());
        other_boot(true);
        assert!(disks.get(&chain).unwrap().is_some());
        other_boot(false);
        assert_eq!(disks.get(&chain).unwrap(), None);
    }

    #[test]
    fn a_disk_that_took_the_place_of_one_that_was_synced_is_not_taken_for_it() {
        let (folder, disks, chain) = disk();
        let unsynced = disks.unsynced(&chain).unwrap().unwrap();
        unsynced.sync().unwrap();
        let draft = folder.path().join("draft");
        fs::write(&draft, "other").unwrap();
        disks.publish(&draft, &chain).unwrap();
        unsynced.mark().unwrap();
        assert!(disks.unsynced(&chain).unwrap().is_some());
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
