//! The lock of a box: who holds it owns the box.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use boxlite_control::BoxFiles;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Why the lock is not held.
#[derive(Debug, thiserror::Error)]
pub(super) enum LockError {
    #[error("the box is in use by another monitor")]
    Held,
    #[error("the box has been removed")]
    Gone,
    #[error("cannot lock {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The held lock, for as long as it lives. No child inherits it.
#[derive(Debug)]
pub(super) struct Lock {
    file: Flock<File>,
    files: BoxFiles,
}

impl Lock {
    /// Takes the lock, or fails at once.
    pub(super) fn take(files: &BoxFiles) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { path: files.lock(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = match options.open(files.lock()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(LockError::Gone),
            file => file.map_err(failed)?,
        };
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, Errno::EWOULDBLOCK)) => return Err(LockError::Held),
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        let lock = Self { file, files: files.clone() };
        // Between opening and locking, the holder before may have removed the box.
        if lock.is_in_its_folder() { Ok(lock) } else { Err(LockError::Gone) }
    }

    /// Removes the box's folder with all that is in it, if it is still the one whose lock this is.
    ///
    /// It goes to `trash` first, so that nobody ever finds half a box, also when this process is killed meanwhile. What is
    /// left in `trash` then is for others to collect.
    pub(super) fn remove_folder(self, trash: &Path) -> io::Result<()> {
        if !self.is_in_its_folder() {
            return Err(io::Error::other("the folder is not that of this box any more"));
        }
        fs::rename(self.files.folder(), trash)?;
        match fs::remove_dir_all(trash) {
            // Who collects the trash was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn is_in_its_folder(&self) -> bool {
        let held = self.file.metadata();
        let there = fs::symlink_metadata(self.files.lock());
        matches!((held, there), (Ok(held), Ok(there)) if (held.dev(), held.ino()) == (there.dev(), there.ino()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, BoxFiles) {
        let folder = tempfile::tempdir().unwrap();
        let files = BoxFiles::new(folder.path().join("box"));
        fs::create_dir(files.folder()).unwrap();
        (folder, files)
    }

    #[test]
    fn one_monitor_owns_a_box_and_the_next_can_have_it_afterwards() {
        let (_keep, files) = folder();
        let lock = Lock::take(&files).unwrap();
        assert!(matches!(Lock::take(&files), Err(LockError::Held)));
        drop(lock);
        Lock::take(&files).unwrap();
    }

    #[test]
    fn a_removed_box_takes_its_content_with_it() {
        let (keep, files) = folder();
        fs::create_dir(files.logs()).unwrap();
        fs::write(files.console_log(), "x").unwrap();
        Lock::take(&files).unwrap().remove_folder(&keep.path().join("trash")).unwrap();
        assert_eq!(fs::read_dir(keep.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_box_that_cannot_be_renamed_keeps_all_that_it_has() {
        let (keep, files) = folder();
        fs::write(files.state(), "x").unwrap();
        let trash = keep.path().join("trash");
        fs::create_dir(&trash).unwrap();
        fs::write(trash.join("of another"), "y").unwrap();
        Lock::take(&files).unwrap().remove_folder(&trash).unwrap_err();
        assert_eq!(fs::read(files.state()).unwrap(), b"x");
        assert_eq!(fs::read(trash.join("of another")).unwrap(), b"y");
    }

    #[test]
    fn a_folder_that_became_another_box_is_not_removed() {
        let (keep, files) = folder();
        let lock = Lock::take(&files).unwrap();
        fs::rename(files.folder(), files.folder().with_extension("old")).unwrap();
        fs::create_dir(files.folder()).unwrap();
        fs::write(files.lock(), "").unwrap();
        lock.remove_folder(&keep.path().join("trash")).unwrap_err();
        assert!(files.lock().exists());
    }

    #[test]
    fn a_box_without_a_folder_cannot_be_locked() {
        let (_keep, files) = folder();
        fs::remove_dir(files.folder()).unwrap();
        assert!(matches!(Lock::take(&files), Err(LockError::Gone)));
    }
}
