//! Descriptors that the runtime watches.

use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::unix::AsyncFd;

/// Makes a descriptor non-blocking and registers it with the runtime.
///
/// # Errors
/// What the system says.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_NONBLOCK) {
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    // SAFETY: an OwnedFd gives the same descriptor as long as it lives, which is as long as the registration, and closes
    // it only after that.
    Ok(unsafe { AsyncFd::register(fd) }?)
}
