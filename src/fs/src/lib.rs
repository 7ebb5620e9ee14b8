//! A FUSE server that shares folders and files of the host with a guest.
//!
//! One [`Share`] carries all volumes of a box. Its root is a folder that the host has nothing of, with one entry for each
//! volume.
//!
//! ```text
//!   guest's kernel ── virtio-fs ──▶ QEMU, vhost-user ──▶ [`Device::serve`]      ┐
//!                                                                               ├──▶ [`Share`] ──▶ volumes
//!   guest's kernel ── /dev/fuse ──▶ agent, vsock ──────▶ [`Share::serve_stream`] ┘
//! ```
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use boxlite_fs::{Device, OwnerMap, Share, Volume};
//!
//! let share = Share::new(vec![Volume {
//!     name: "data".into(),
//!     root: std::fs::File::open("/srv/data")?.into(),
//!     read_only: true,
//!     owner: OwnerMap { host: (1000, 1000), guest: (0, 0), privileged: false },
//!     quota: None,
//! }])?;
//! let (ours, qemus) = std::os::unix::net::UnixStream::pair()?;
//! // `qemus` becomes QEMU's: -chardev socket,id=fs,fd=0 -device vhost-user-fs-pci,chardev=fs,tag=boxlite
//! Device::new(share).serve(ours)?;
//! # Ok(())
//! # }
//! ```
//!
//! # What it promises
//!
//! * The guest's kernel is hostile. It names files of its volumes and nothing else: the host resolves one checked name at
//!   a time, relative to a descriptor, and follows no symbolic link.
//! * Only regular files and folders are ever opened.
//! * A read-only volume is not changed: one place says so for every operation.
//! * Nothing grows without a limit: messages, files known, handles, and what a volume holds if it has a quota.
//! * What only a forged kernel would ask for is refused, counted and reported: see [`Violations`].
//!
//! # What it needs
//!
//! `/proc` is mounted. [`Share::new`] raises the soft limit of descriptors to the hard one, because each file that the
//! guest knows takes one. The share is made in the process that serves it. Modes are set as the guest asks, whatever the
//! umask; that includes suid bits, so a host that does not want them mounts the volume's file system with `nosuid`.
//!
//! # How it is made
//!
//! `wire` and `request` read what the guest wrote, `names` checks names. `inode` and `handle` are what the guest knows and
//! has opened, `volume`, `owner` and `quota` what it may. `guard` keeps what is read-only. `share` answers requests, with
//! `entries`, `files`, `folders`, `attributes` and `xattr`. `stream` and `device` carry them.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod attributes;
mod chain;
mod device;
mod entries;
mod files;
mod folders;
mod guard;
mod handle;
mod inode;
mod names;
mod owner;
mod quota;
mod request;
mod share;
mod stream;
mod violation;
mod volume;
mod wire;
mod xattr;

pub use device::{Device, ServeError};
pub use owner::OwnerMap;
pub use share::Share;
pub use stream::StreamError;
pub use violation::{Violation, Violations};
pub use volume::Volume;

/// The most volumes of a share.
pub const MAX_VOLUMES: usize = 64;

/// The most files that the guest can know at a time, if the limit of descriptors allows for it.
pub const MAX_INODES: usize = 64 << 10;

/// The most bytes of data of one request or reply.
pub const MAX_DATA: usize = 1 << 20;

/// The longest request: data, and what comes before it.
pub(crate) const MAX_REQUEST: usize = MAX_DATA + 4096;

/// Why a share cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NewError {
    /// None, or too many.
    #[error("a share has 1 to {MAX_VOLUMES} volumes, not {0}")]
    Volumes(usize),
    /// Not one component.
    #[error("{0:?} cannot be the name of a volume")]
    Name(String),
    /// Twice the same.
    #[error("two volumes have the name {0:?}")]
    Twice(String),
    /// A device, for instance.
    #[error("volume {0:?} is neither a folder nor a regular file")]
    Kind(String),
    /// Its root cannot be looked at.
    #[error("volume {name:?} cannot be read")]
    Root {
        /// The volume.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// Its quota needs to know what it holds.
    #[error("what volume {name:?} holds cannot be counted")]
    Count {
        /// The volume.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// Files are opened by way of it.
    #[error("the folder /proc/self/fd cannot be opened")]
    Proc(#[source] std::io::Error),
}
