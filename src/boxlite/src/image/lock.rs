//! Locks between processes: `flock(2)` on files, released by the kernel when their holder ends, however it ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// There is no `flock` with a deadline, so a taken lock is tried again after this time.
const RETRY: Duration = Duration::from_millis(20);

/// Opens (makes) `path` and locks it. `wait` is called each time it is found taken, and stops waiting with an error.
pub(super) fn lock<E>(
    path: &Path,
    mut wait: impl FnMut() -> Result<(), E>,
) -> Result<io::Result<Flock<File>>, E> {
    loop {
        match try_lock(path, true) {
            Ok(Some(lock)) => return Ok(Ok(lock)),
            Ok(None) => wait()?,
            Err(error) => return Ok(Err(error)),
        }
        // May return early, which does no harm.
        std::thread::park_timeout(RETRY);
    }
}

/// As [`lock`], but shares the lock with others that share it. The file must stay where it is.
pub(super) fn shared<E>(
    path: &Path,
    mut wait: impl FnMut() -> Result<(), E>,
) -> Result<io::Result<Flock<File>>, E> {
    loop {
        let file = match open(path, true) {
            Ok(file) => file,
            Err(error) => return Ok(Err(error)),
        };
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(lock) => return Ok(Ok(lock)),
            Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => wait()?,
            Err((_, errno)) => return Ok(Err(errno.into())),
        }
        std::thread::park_timeout(RETRY);
    }
}

fn open(path: &Path, make: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(make).truncate(false).mode(0o600).open(path)
}

/// As [`lock`], but does not wait: `None` when it is taken, or `path` does not exist and is not to be made.
pub(super) fn try_lock(path: &Path, make: bool) -> io::Result<Option<Flock<File>>> {
    let file = match open(path, make) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !make => return Ok(None),
        Err(error) => return Err(error),
    };
    let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => return Ok(None),
        Err((_, errno)) => return Err(errno.into()),
    };
    // The file may have been renamed or removed between opening and locking; the lock then says nothing of the path.
    let (held, named) = (lock.metadata()?, std::fs::metadata(path));
    match named {
        Ok(named) if (named.dev(), named.ino()) == (held.dev(), held.ino()) => Ok(Some(lock)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
