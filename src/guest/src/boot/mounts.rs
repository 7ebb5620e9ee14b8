//! The file systems of a running kernel.

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};

/// Where, what, with which flags and options.
type Entry = (&'static str, &'static str, MsFlags, Option<&'static str>);

const QUIET: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// In order: a folder that another file system holds comes after it.
const TABLE: [Entry; 8] = [
    ("/proc", "proc", QUIET, None),
    ("/sys", "sysfs", QUIET, None),
    ("/sys/fs/cgroup", "cgroup2", QUIET, None),
    ("/dev", "devtmpfs", MsFlags::MS_NOSUID, Some("mode=0755")),
    (
        "/dev/pts",
        "devpts",
        MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        Some("mode=0620,gid=5,ptmxmode=0666"),
    ),
    ("/dev/shm", "tmpfs", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), Some("mode=1777")),
    ("/run", "tmpfs", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), Some("mode=0755")),
    ("/tmp", "tmpfs", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), Some("mode=1777")),
];

/// A file system that could not be mounted.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount {kind} on {target}")]
pub struct MountError {
    kind: &'static str,
    target: &'static str,
    #[source]
    source: io::Error,
}

/// Mounts all of them.
///
/// # Errors
/// At the first that cannot be mounted.
pub fn mount_all() -> Result<(), MountError> {
    for (target, kind, flags, options) in TABLE {
        mount_one(target, kind, flags, options).map_err(|source| MountError { kind, target, source })?;
    }
    Ok(())
}

fn mount_one(
    target: &'static str,
    kind: &'static str,
    flags: MsFlags,
    options: Option<&str>,
) -> io::Result<()> {
    if matches!(target, "/dev/pts" | "/dev/shm") && !Path::new(target).exists() {
        fs::create_dir(target)?;
    }
    match mount(Some(kind), target, Some(kind), flags, options) {
        // The kernel mounts this one by itself if it is built so.
        Err(nix::errno::Errno::EBUSY) if kind == "devtmpfs" => Ok(()),
        other => Ok(other?),
    }
}
