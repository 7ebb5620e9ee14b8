//! Disks that boxes write to: one shared, empty, ready-made ext4 ([`base`]) under a copy-on-write file per box
//! ([`qcow2`]). Creating a box copies nothing, and the guest grows the file system to the asked size.

use std::io;
use std::path::PathBuf;

pub(crate) mod base;
pub(crate) mod qcow2;

/// Why a disk could not be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("a disk of {0} bytes: it must be a multiple of 512, above 0 and at most 1 PiB")]
    Size(u64),
    #[error("the path {0} of the disk beneath is not absolute or too long")]
    Backing(PathBuf),
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("a disk has at least 1 GiB")]
    TooSmall,
    #[error("there is no program mke2fs in PATH, /sbin or /usr/sbin")]
    NoMke2fs,
    #[error("mke2fs failed ({status}): {message}")]
    Mke2fs { status: std::process::ExitStatus, message: String },
}

impl DiskError {
    /// What the user can do about it.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoMke2fs => Some("install e2fsprogs: `apt install e2fsprogs`"),
            _ => None,
        }
    }

    fn io(action: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::Io { action, path: path.into(), source: source.into() }
    }
}
