//! The root of one volume: a mount that nothing else can be reached from.
//!
//! A detached copy of the mount at the volume's path has no parent: `..` at its root stays there, and whatever is mounted or
//! renamed elsewhere on the host does not show in it. Where the volume is read-only, so is the mount, with all below it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// Whether mounts of this process's own can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Apart {
    /// In a mount namespace of its own.
    Yes,
    /// The host allows it no namespace: the server alone sees to what the mount would.
    No,
}

/// Moves this process into a mount namespace of its own, for an ordinary user within a user namespace in which it stays
/// who it is. For a process of one thread.
pub(super) fn apart() -> io::Result<Apart> {
    let (uid, gid) = (geteuid(), getegid());
    let flags = if uid.is_root() { CloneFlags::empty() } else { CloneFlags::CLONE_NEWUSER };
    match unshare(flags | CloneFlags::CLONE_NEWNS) {
        Ok(()) => {}
        Err(Errno::EPERM | Errno::ENOSYS | Errno::ENOSPC | Errno::EINVAL) => {
            tracing::warn!(
                "the host allows no mount namespace: read-only volumes rest on their server alone"
            );
            return Ok(Apart::No);
        }
        Err(errno) => return Err(errno.into()),
    }
    if !uid.is_root() {
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    }
    Ok(Apart::Yes)
}

/// Opens the root of a volume. Its path was free of links when it was chosen, and must still be.
pub(super) fn open(path: &Path, read_only: bool, apart: Apart) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let place = openat2(nix::fcntl::AT_FDCWD, path, how).map_err(|errno| match errno {
        Errno::ELOOP => io::Error::other(
            "its path leads through a symbolic link now, which it did not when the box was created",
        ),
        errno => errno.into(),
    })?;
    match apart {
        Apart::Yes => detached(&place, read_only),
        Apart::No => Ok(place),
    }
}

fn detached(place: &OwnedFd, read_only: bool) -> io::Result<OwnedFd> {
    let empty = CString::default();
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    let flags = flags | u32::try_from(libc::AT_EMPTY_PATH | libc::AT_RECURSIVE).unwrap_or_default();
    // SAFETY: the descriptor and the string live during the call, which returns a new descriptor.
    let tree = Errno::result(unsafe {
        libc::syscall(libc::SYS_open_tree, place.as_raw_fd(), empty.as_ptr(), flags)
    })?;
    let tree = i32::try_from(tree).map_err(|_| Errno::EMFILE)?;
    // SAFETY: the kernel has just opened it for us.
    let tree = unsafe { OwnedFd::from_raw_fd(tree) };
    let mut set = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID;
    if read_only {
        set |= libc::MOUNT_ATTR_RDONLY;
    }
    let attributes =
        libc::mount_attr { attr_set: set, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    // SAFETY: the descriptor, the string and the structure live during the call; the size is that of the structure.
    let changed = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(changed)?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::openat;
    use nix::sys::stat::Mode;
    use std::fs;

    /// Runs in a thread that has a mount namespace of its own, if the host allows one.
    fn in_namespace(work: impl FnOnce() + Send + 'static) {
        let run = move || {
            if unshare(CloneFlags::CLONE_NEWNS).is_ok() {
                work();
            } else {
                assert!(!geteuid().is_root(), "root has namespaces");
            }
        };
        std::thread::spawn(run).join().unwrap();
    }

    #[test]
    fn a_root_is_a_mount_that_leads_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("volume")).unwrap();
        fs::write(folder.path().join("secret"), "").unwrap();
        in_namespace(move || {
            let path = folder.path().canonicalize().unwrap().join("volume");
            let root = open(&path, false, Apart::Yes).unwrap();
            let above = openat(&root, "../secret", OFlag::O_RDONLY, Mode::empty());
            assert_eq!(above.unwrap_err(), Errno::ENOENT);
            let file = openat(&root, "file", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRWXU);
            file.unwrap();
            assert!(path.join("file").exists());
        });
    }

    #[test]
    fn a_read_only_root_is_so_for_the_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        fs::write(path.join("file"), "").unwrap();
        in_namespace(move || {
            let root = open(&path, true, Apart::Yes).unwrap();
            for flags in [OFlag::O_WRONLY, OFlag::O_RDWR | OFlag::O_CREAT] {
                let opened = openat(&root, "file", flags, Mode::S_IRWXU);
                assert_eq!(opened.unwrap_err(), Errno::EROFS);
            }
            drop(folder);
        });
    }

    #[test]
    fn a_path_that_has_come_to_lead_through_a_link_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        fs::create_dir_all(path.join("real/inner")).unwrap();
        std::os::unix::fs::symlink("real", path.join("link")).unwrap();
        let error = open(&path.join("link/inner"), false, Apart::No).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
        open(&path.join("real/inner"), false, Apart::No).unwrap();
    }
}
