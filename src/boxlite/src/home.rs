//! The home folder: where what lies, and the locks that several processes take in it.
//!
//! ```text
//!   <home>/
//!     boxes/<id>/   one folder a box, see `boxlite_control::BoxFiles`
//!     images/       see `image::store`
//!     cache/        what all boxes share and can be made again: boot disks, kernels, empty file systems
//!     tmp/          what is being made or removed; anything here may be deleted when nobody has it locked
//!     lock          taken while the set of boxes changes
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use boxlite_control::BoxFiles;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, ErrorKind, Result, storage};

/// A home folder that exists and is ours alone.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    root: PathBuf,
}

impl Home {
    /// Makes what is missing.
    pub(crate) fn open(root: PathBuf) -> Result<Self> {
        let home = Self { root };
        for folder in [home.root.clone(), home.boxes(), home.images(), home.cache(), home.tmp()] {
            DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|e| {
                storage(format!("cannot make the folder {}", folder.display()), e)
                    .with_hint("choose another one with BOXLITE_HOME or --home")
            })?;
        }
        // Disks and sockets of boxes lie below: nobody else may look in, also where the folder was there before.
        let mode = fs::metadata(&home.root).map(|m| m.permissions().mode());
        let mode = mode.map_err(|e| storage(format!("cannot read {}", home.root.display()), e))?;
        if mode & 0o077 != 0 {
            fs::set_permissions(&home.root, fs::Permissions::from_mode(0o700))
                .map_err(|e| storage(format!("cannot close {} to other users", home.root.display()), e))?;
        }
        Ok(home)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn boxes(&self) -> PathBuf {
        self.root.join("boxes")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// The files of one box. The id has been checked by [`is_id`], or was made by us.
    pub(crate) fn files(&self, id: &str) -> BoxFiles {
        BoxFiles::new(self.boxes().join(id))
    }

    /// Held while the set of boxes changes. Released on drop.
    pub(crate) fn lock(&self) -> Result<FileLock> {
        FileLock::wait(&self.root.join("lock"))
    }
}

/// Whether this is an id as [`new_id`] makes it.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A new random id: 12 hexadecimal digits.
pub(crate) fn new_id() -> Result<String> {
    use io::Read as _;
    let mut bytes = [0; 6];
    let read = File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
    read.map_err(|e| Error::new(ErrorKind::Internal, "cannot get random bytes").with_source(e))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// An exclusive `flock(2)` on a file, held until it is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct FileLock {
    _lock: Flock<File>,
}

impl FileLock {
    fn open(path: &Path) -> Result<File> {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(|e| storage(format!("cannot open the lock {}", path.display()), e))
    }

    /// Waits until nobody else holds it.
    pub(crate) fn wait(path: &Path) -> Result<Self> {
        let mut file = Self::open(path)?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(lock) => return Ok(Self { _lock: lock }),
                Err((back, nix::errno::Errno::EINTR)) => file = back,
                Err((_, errno)) => return Err(storage(format!("cannot lock {}", path.display()), errno)),
            }
        }
    }

    /// `None` when somebody else holds it.
    pub(crate) fn attempt(path: &Path) -> Result<Option<Self>> {
        match Flock::lock(Self::open(path)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Self { _lock: lock })),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(storage(format!("cannot lock {}", path.display()), errno)),
        }
    }
}

/// Writes a file so that it has either its old or its new content after a crash.
pub(crate) fn write_atomic(path: &Path, content: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let folder = path.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        io::Write::write_all(&mut file, content)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|e| storage(format!("cannot write {}", path.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_that_others_could_read_is_closed() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("home");
        DirBuilder::new().mode(0o755).create(&root).unwrap();
        let home = Home::open(root.clone()).unwrap();
        assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(home.boxes().is_dir() && home.tmp().is_dir());
    }

    #[test]
    fn an_attempt_on_a_held_lock_says_so_and_succeeds_after_the_drop() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = FileLock::wait(&path).unwrap();
        assert!(FileLock::attempt(&path).unwrap().is_none());
        drop(held);
        assert!(FileLock::attempt(&path).unwrap().is_some());
    }

    #[test]
    fn new_ids_are_ids_and_differ() {
        let (a, b) = (new_id().unwrap(), new_id().unwrap());
        assert!(is_id(&a) && is_id(&b) && a != b);
        for bad in ["", "../../../etc", "0123456789AB", "0123456789abc"] {
            assert!(!is_id(bad), "{bad}");
        }
    }
}
