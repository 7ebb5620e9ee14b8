//! Processes that end with the one that started them.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl;
use nix::sys::signal::Signal;

/// Closes every descriptor but the three standard ones. For the first lines of `main`, before anything is opened.
pub(crate) fn close_inherited() -> io::Result<()> {
    close(3, u32::MAX)
}

/// As [`close_inherited`], but takes over the descriptor of this number, which the process was started with.
pub(crate) fn close_inherited_but(kept: RawFd) -> io::Result<OwnedFd> {
    let number = u32::try_from(kept).ok().filter(|number| *number > 2);
    let number = number.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
    close(3, number - 1)?;
    close(number + 1, u32::MAX)?;
    // SAFETY: asks for flags only; a number that is not open is an error.
    if unsafe { libc::fcntl(kept, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and nobody else in this process owns it: at this point the process owns none above 2.
    Ok(unsafe { OwnedFd::from_raw_fd(kept) })
}

fn close(first: u32, last: u32) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: this is called while the process owns no descriptor above 2, so none is closed under its owner.
    let code = unsafe { libc::close_range(first, last, 0) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has the kernel kill this process when its parent ends, and checks that `parent` has not ended before.
///
/// The signal comes when the *thread* that started this process ends, so only a main thread may start one.
pub(crate) fn die_with(parent: u32) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if nix::unistd::getppid().as_raw() == i32::try_from(parent).unwrap_or(-1) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }
}

/// Has `command` start a process that dies with this one. It inherits the descriptors `keep`, which have to stay open
/// until then.
pub(crate) fn tie(command: &mut Command, keep: [Option<RawFd>; 3]) {
    let parent = std::process::id();
    // SAFETY: the closure runs between fork and exec, makes system calls only, and allocates nothing: its errors are bare
    // errno values. A descriptor that is not open any more is an error of fcntl.
    unsafe {
        command.pre_exec(move || {
            for keep in keep.into_iter().flatten() {
                if libc::fcntl(keep, libc::F_SETFD, 0) == -1 {
                    return Err(io::Error::last_os_error());
                }
            }
            die_with(parent)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_tied_child_inherits_what_is_to_be_kept_and_nothing_else() {
        let (kept, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        // readlink(1) opens nothing itself, so what it finds is what it was given.
        let found = |file: &std::fs::File| {
            let mut command = Command::new("readlink");
            command.arg(format!("/proc/self/fd/{}", file.as_raw_fd()));
            tie(&mut command, [Some(kept.as_raw_fd()), None, None]);
            command.status().unwrap().success()
        };
        assert!(found(&kept));
        assert!(!found(&other));
    }

    #[test]
    fn a_child_of_another_parent_is_not_started() {
        let mut command = Command::new("/bin/true");
        // SAFETY: makes system calls only.
        unsafe { command.pre_exec(|| die_with(1 << 30)) };
        assert_eq!(command.spawn().unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
