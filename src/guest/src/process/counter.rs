//! A number in a file of a cgroup of which the kernel tells changes.
//!
//! It tells them by itself, with a priority event, to whoever has read the file before. So nobody looks now and then, and
//! an idle machine stays idle.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::cgroup;

/// The most that is read of such a file, which has a few short lines.
const MAX_FILE: usize = 4 << 10;

/// A number and what it was last.
#[derive(Debug)]
pub struct Counter {
    file: AsyncFd<File>,
    name: &'static str,
    last: u64,
}

impl Counter {
    /// The number of this name in a file of lines of name and number, from now on. `None` if there is no such file, which
    /// means that the kernel does not count this. Must be called within the runtime.
    ///
    /// # Errors
    /// When the file cannot be read or registered with the runtime.
    pub fn open(path: &Path, name: &'static str) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let last = read(&file, name)?;
        // SAFETY: a File gives the same descriptor as long as it lives, which is as long as the registration, and closes
        // it only after that.
        let file = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }?;
        Ok(Some(Self { file, name, last }))
    }

    /// How many processes of this cgroup and below the kernel has killed because memory had run out.
    ///
    /// # Errors
    /// As with [`Counter::open`].
    pub fn oom_kills(cgroup: &Path) -> io::Result<Option<Self>> {
        Self::open(&cgroup.join("memory.events"), "oom_kill")
    }

    /// Waits until the number is another one than before, and gives it.
    ///
    /// # Errors
    /// When the file cannot be read any more.
    pub async fn changed(&mut self) -> io::Result<u64> {
        loop {
            // What changes after this read makes the wait that follows a short one.
            let now = read(self.file.get_ref(), self.name)?;
            if now != self.last {
                self.last = now;
                return Ok(now);
            }
            self.file.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }
}

/// Reads the file from its beginning, which is what the kernel takes for having seen the last change.
fn read(file: &File, name: &str) -> io::Result<u64> {
    let mut buffer = [0; MAX_FILE];
    let count = file.read_at(&mut buffer, 0)?;
    let text = std::str::from_utf8(&buffer[..count]).ok();
    text.and_then(|text| cgroup::value(text, name)).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("a file of the cgroup does not say {name}"))
    })
}
