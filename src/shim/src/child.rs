//! Processes that end with the one that started them.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl;
use nix::sys::signal::Signal;

/// Closes every descriptor but the three standard ones. For the first lines of `main`, before anything is opened.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: at this point the process owns no descriptor above 2, so none is closed under its owner.
    let code = unsafe { libc::close_range(3, u32::MAX, 0) };
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

/// Has `command` start a process that dies with this one and inherits the descriptor `keep`, which has to stay open until
/// then.
pub(crate) fn tie(command: &mut Command, keep: RawFd) {
    let parent = std::process::id();
    // SAFETY: the closure runs between fork and exec, makes system calls only, and allocates nothing: its errors are bare
    // errno values.
    unsafe {
        command.pre_exec(move || {
            if libc::fcntl(keep, libc::F_SETFD, 0) == -1 {
                return Err(io::Error::last_os_error());
            }
            die_with(parent)
        });
    }
}
