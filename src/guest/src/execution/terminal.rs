//! Pseudo terminals of the container's own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{DEVPTS_SUPER_MAGIC, fstatfs};
use nix::sys::termios::{LocalFlags, SpecialCharacterIndices, tcgetattr};
use nix::unistd::{Gid, Pid, Uid, fchown};

/// A terminal's two sides.
#[derive(Debug)]
pub struct Terminal {
    /// The agent's side.
    pub master: OwnedFd,
    /// The process's side.
    pub slave: OwnedFd,
}

/// Opens a terminal in the container of this first process, so that its name is true inside.
///
/// The container may have put anything in the place of its device: no link is followed, and what is opened must be the
/// multiplexer of a devpts. The other side comes from the kernel, not from a path.
///
/// # Errors
/// When there is no multiplexer or the system will not give a terminal.
pub fn open(first: Pid, owner: (u32, u32), size: libc::winsize) -> io::Result<Terminal> {
    let root = nix::fcntl::open(
        format!("/proc/{first}/root").as_str(),
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let how =
        OpenHow::new().flags(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        );
    let master = openat2(&root, "dev/pts/ptmx", how)?;
    let multiplexer = libc::makedev(5, 2);
    if fstat(&master)?.st_rdev != multiplexer || fstatfs(&master)?.filesystem_type() != DEVPTS_SUPER_MAGIC {
        return Err(io::Error::other("the container's /dev/pts/ptmx is no terminal multiplexer"));
    }
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads an integer, which lives during the call.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags and returns a new descriptor.
    let slave = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the kernel has just opened it for us.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    let (uid, _) = owner;
    // The group stays that of the file system, through which programs may write to other users' terminals.
    fchown(&slave, Some(Uid::from_raw(uid)), None::<Gid>)?;
    resize(&master, size)?;
    Ok(Terminal { master, slave })
}

/// Sets the size; the foreground processes get SIGWINCH.
///
/// # Errors
/// What the system says.
pub fn resize(master: &impl AsRawFd, size: libc::winsize) -> nix::Result<()> {
    // SAFETY: TIOCSWINSZ reads a winsize, which lives during the call.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// What to write so that a reader of the terminal sees the end of its input.
pub fn end_of_input(master: &impl AsFd, at_line_start: bool) -> Vec<u8> {
    const CONTROL_D: u8 = 4;
    let Ok(settings) = tcgetattr(master) else { return vec![CONTROL_D] };
    let end = settings.control_chars[SpecialCharacterIndices::VEOF as usize];
    // Within a line the first one only hands over what has been typed so far.
    if settings.local_flags.contains(LocalFlags::ICANON) && !at_line_start {
        vec![end, end]
    } else {
        vec![end]
    }
}
