//! The home folder: where what lies, and the locks that several processes take in it.
//!
//! ```text
//!   <home>/
//!     boxes/<id>/   one folder a box, see `boxlite_control::BoxFiles`
//!     images/       see `image::store`
//!     volumes/<name>/   named volumes, see `volumes`
//!     cache/        what all boxes share and can be made again: boot disks, kernels, empty file systems
//!     tmp/          what is being made or removed; anything here may be deleted when nobody has it locked
//!     boxlite.db    which boxes there are, see `store`
//!     events.jsonl  what has happened to them, see `boxlite_control::event`
//!     lock          taken while the set of boxes or of images changes
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use boxlite_control::BoxFiles;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, ErrorKind, Result, storage};

/// Files that people and programs put into a home; see `settings`.
pub(crate) const CONFIG: &str = "config.json";
pub(crate) const POLICY: &str = "policy.json";
pub(crate) const AUTH: &str = "auth.json";
const SETTINGS: [&str; 3] = [CONFIG, POLICY, AUTH];
/// How a folder begins its name that is being deleted.
pub(crate) const TRASH: &str = "removed-";
/// How a folder begins its name that is being made into a box.
pub(crate) const DRAFT: &str = "box-";
/// Who holds the home's lock longer does not run.
const LOCK_DEADLINE: Duration = Duration::from_secs(30);
/// How often a lock that is held is tried again.
const LOCK_LOOK: Duration = Duration::from_millis(5);

/// A home folder that exists and is ours alone.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    root: PathBuf,
}

impl Home {
    /// Makes what is missing.
    pub(crate) fn open(root: PathBuf) -> Result<Self> {
        let home = Self { root };
        home.refuse_what_is_no_home()?;
        for folder in
            [home.root.clone(), home.boxes(), home.images(), home.volumes(), home.cache(), home.tmp()]
        {
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

    /// The folder will be closed to others and filled: not one that holds something else.
    fn refuse_what_is_no_home(&self) -> Result<()> {
        let failed = |e| storage(format!("cannot list {}", self.root.display()), e);
        match fs::read_dir(&self.root) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(failed(e)),
            Ok(_) if self.boxes().is_dir() => Ok(()),
            Ok(entries) => {
                for entry in entries {
                    // Settings may be there before anything else is.
                    if !SETTINGS
                        .iter()
                        .any(|name| entry.as_ref().is_ok_and(|entry| entry.file_name() == *name))
                    {
                        entry.map_err(failed)?;
                        let message = format!("{} is not empty, and no home of BoxLite", self.root.display());
                        return Err(Error::new(ErrorKind::Config, message)
                            .with_hint("name a folder that does not exist yet"));
                    }
                }
                Ok(())
            }
        }
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

    /// See `volumes`.
    pub(crate) fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// What has happened to boxes: see `boxlite_control::event`.
    pub(crate) fn journal(&self) -> PathBuf {
        self.root.join("events.jsonl")
    }

    /// The files of one box. The id has been checked by [`is_id`], or was made by us.
    pub(crate) fn files(&self, id: &str) -> BoxFiles {
        BoxFiles::new(self.boxes().join(id))
    }

    /// Where the folder of this box goes before it is deleted.
    pub(crate) fn trash(&self, id: &str) -> PathBuf {
        self.tmp().join(format!("{TRASH}{id}"))
    }

    /// Held while the set of boxes changes, which is a matter of milliseconds. Released on drop.
    pub(crate) fn lock(&self) -> Result<FileLock> {
        let deadline = Instant::now() + LOCK_DEADLINE;
        let path = self.root.join("lock");
        loop {
            if let Some(lock) = FileLock::attempt(&path)? {
                return Ok(lock);
            }
            if Instant::now() >= deadline {
                let message = format!("another process holds {} for too long", path.display());
                return Err(Error::new(ErrorKind::Storage, message)
                    .with_hint("is there a boxlite that was suspended?"));
            }
            thread::sleep(LOCK_LOOK);
        }
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
    /// Makes the file where it is missing. `None` when somebody else holds it.
    pub(crate) fn attempt(path: &Path) -> Result<Option<Self>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
        Self::of(path, file.map_err(|e| storage(format!("cannot open the lock {}", path.display()), e))?)
    }

    /// Like [`Self::attempt`] for a file that must be there: [`Held::Gone`] when it is not, or was replaced or removed
    /// while we locked it. Nothing is made, so that a folder that is being removed gets no new file.
    pub(crate) fn attempt_existing(path: &Path) -> Result<Held> {
        let failed = |e: io::Error| storage(format!("cannot lock {}", path.display()), e);
        let file = match OpenOptions::new().write(true).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Held::Gone),
            Err(e) => return Err(failed(e)),
        };
        let ours = file.metadata().map_err(failed)?;
        let Some(lock) = Self::of(path, file)? else { return Ok(Held::ByAnother) };
        match fs::metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => Ok(Held::ByUs(lock)),
            Ok(_) => Ok(Held::Gone),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Held::Gone),
            Err(e) => Err(failed(e)),
        }
    }

    fn of(path: &Path, file: File) -> Result<Option<Self>> {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Self { _lock: lock })),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(storage(format!("cannot lock {}", path.display()), errno)),
        }
    }
}

/// Who holds a lock file that existed.
#[derive(Debug)]
pub(crate) enum Held {
    ByUs(FileLock),
    ByAnother,
    Gone,
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
        assert!(matches!(FileLock::attempt_existing(&path).unwrap(), Held::Gone));
        assert!(!path.exists(), "a look makes no file");
        let held = FileLock::attempt(&path).unwrap().unwrap();
        assert!(FileLock::attempt(&path).unwrap().is_none());
        assert!(matches!(FileLock::attempt_existing(&path).unwrap(), Held::ByAnother));
        drop(held);
        assert!(matches!(FileLock::attempt_existing(&path).unwrap(), Held::ByUs(_)));
    }

    #[test]
    fn a_folder_with_something_else_in_it_is_no_home() {
        let folder = tempfile::tempdir().unwrap();
        DirBuilder::new().mode(0o755).create(folder.path().join("photos")).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(folder.path().join(CONFIG), "{}").unwrap();
        assert_eq!(Home::open(folder.path().to_owned()).unwrap_err().kind(), ErrorKind::Config);
        assert_eq!(
            fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777,
            0o755,
            "left as it was"
        );
    }

    #[test]
    fn a_folder_with_nothing_but_settings_becomes_a_home() {
        let folder = tempfile::tempdir().unwrap();
        for name in SETTINGS {
            fs::write(folder.path().join(name), "{}").unwrap();
        }
        Home::open(folder.path().to_owned()).unwrap();
        Home::open(folder.path().to_owned()).unwrap();
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
