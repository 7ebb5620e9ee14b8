//! Control groups: one for the container, and below it one for each execution, so that a whole tree can be killed.
//!
//! ```text
//!   /sys/fs/cgroup            the agent, controllers enabled for the level below
//!   └─ boxlite                the main command; the root of what the container sees
//!      └─ exec-<id>           an execution and all its descendants
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;

/// The container's cgroup, below the root of the hierarchy.
pub const CONTAINER: &str = "boxlite";

/// A cgroup that this agent made.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    folder: OwnedFd,
    removed: AtomicBool,
}

impl Cgroup {
    /// Makes the container's cgroup.
    ///
    /// # Errors
    /// What the system says.
    pub fn container(hierarchy: &Path) -> io::Result<Self> {
        Self::make(hierarchy.join(CONTAINER))
    }

    /// Makes the cgroup of an execution whose id has been validated, below the container's.
    ///
    /// # Errors
    /// What the system says.
    pub fn execution(&self, id: &str) -> io::Result<Self> {
        Self::make(self.path.join(format!("exec-{id}")))
    }

    fn make(path: PathBuf) -> io::Result<Self> {
        match fs::create_dir(&path) {
            // One that an earlier execution of the same name left, because a process of it lives on.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        let folder =
            OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC).open(&path)?;
        Ok(Self { path, folder: folder.into(), removed: AtomicBool::new(false) })
    }

    /// Its folder, for clone3.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has every process in it and below stand still, or go on.
    ///
    /// # Errors
    /// What the system says.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        fs::write(self.path.join("cgroup.freeze"), if frozen { "1" } else { "0" })
    }

    /// Whether every process in it and below stands still.
    ///
    /// # Errors
    /// What the system says.
    pub fn is_frozen(&self) -> io::Result<bool> {
        let events = fs::read_to_string(self.path.join("cgroup.events"))?;
        Ok(events.lines().any(|line| line == "frozen 1"))
    }

    /// Kills every process in it and below, those that are being forked too.
    ///
    /// # Errors
    /// What the system says.
    pub fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")
    }

    /// Sends a signal to every process in it and below.
    ///
    /// # Errors
    /// When the list of processes cannot be read. A process that ends meanwhile is no error.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        if signal == libc::SIGKILL {
            return self.kill();
        }
        signal_all(&self.path, signal)
    }

    /// Removes it, if it is empty.
    ///
    /// # Errors
    /// `ResourceBusy` as long as a process of it lives.
    pub fn remove(&self) -> io::Result<()> {
        // By then another one may have its name.
        if self.removed.load(Ordering::Relaxed) {
            return Ok(());
        }
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                self.removed.store(true, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Ends what still lives in it. That costs nothing more than its removal when nothing does, as is usual.
    ///
    /// # Errors
    /// What the system says.
    pub fn clear(&self) -> io::Result<()> {
        match self.remove() {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => self.kill(),
            other => other,
        }
    }
}

fn signal_all(folder: &Path, signal: i32) -> io::Result<()> {
    // A file of the kernel: its size follows from the number of processes, which the machine bounds.
    for line in fs::read_to_string(folder.join("cgroup.procs"))?.lines() {
        let Ok(pid) = line.parse::<i32>() else { continue };
        match pidfd_signal(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            match signal_all(&entry.path(), signal) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// The number of this name in a file of the kernel's that has a name and a number on each line.
pub fn value(text: &str, name: &str) -> Option<u64> {
    let number = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim_ascii_end().parse().ok();
    text.lines().find_map(number)
}

/// Signals a process that is no child of ours.
fn pidfd_signal(pid: i32, signal: i32) -> nix::Result<()> {
    if pid <= 0 {
        return Err(Errno::ESRCH);
    }
    // SAFETY: takes two integers and returns a new descriptor.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EMFILE)?;
    // SAFETY: the kernel has just opened it for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: takes integers and a null pointer, which stands for the default information about the sender.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(sent).map(drop)
}

/// Lets the level below the root use every controller that the kernel has.
///
/// # Errors
/// When the hierarchy cannot be read or written.
pub fn enable_controllers(hierarchy: &Path) -> io::Result<()> {
    let available = fs::read_to_string(hierarchy.join("cgroup.controllers"))?;
    let wanted: Vec<String> = available.split_whitespace().map(|name| format!("+{name}")).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let mut file = File::options().write(true).open(hierarchy.join("cgroup.subtree_control"))?;
    io::Write::write_all(&mut file, wanted.join(" ").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_by_its_whole_name() {
        let text = "low 1\nworkingset_low 2\nlower 3\noom_kill 4\nodd x\n";
        assert_eq!(
            (value(text, "low"), value(text, "lower"), value(text, "oom_kill")),
            (Some(1), Some(3), Some(4))
        );
        for name in ["lo", "oom", "odd", "", "missing"] {
            assert_eq!(value(text, name), None, "{name}");
        }
    }
}
