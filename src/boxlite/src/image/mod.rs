//! OCI images: from archives to one read-only disk per image.
//!
//! ```text
//!   registry          ┐                           ┌ blobs/ ─ inflate ─ diff ids ─ tar ┐
//!   OCI layout folder ├─ documents ─ policy ──────┤  several at once, while they arrive ├─ erofs ── images/<chain>.erofs
//!   OCI archive       │  (manifest, signatures)   └ blobs/ ─ inflate ─ diff ids ─ tar ┘           images/<manifest>.json
//!   docker save       ┘                                                                           images/refs.json
//! ```
//!
//! Everything that is read is hostile until its digest was verified, and bounded by [`Limits`] even then. No name that an
//! archive gives ever becomes part of a path of the host: files of an image exist only inside the EROFS image that is
//! written, and blobs are named by digests that are parsed strictly.

mod apply;
pub mod archive;
mod blobs;
mod budget;
mod build;
mod config;
mod convert;
mod digest;
mod disks;
mod document;
mod draft;
mod error;
mod export;
mod frames;
mod growth;
mod gzip;
mod input;
mod install;
mod limits;
mod lock;
mod manifest;
mod platform;
mod pull;
mod record;
mod reference;
mod resolve;
pub mod store;
mod stream;
mod tar;
mod usage;

pub use build::{Built, LayerSource, build};
pub use config::{ImageConfig, ImageHealthCheck};
pub use digest::{Digest, DigestError};
pub use error::{Cancelled, EntryError, ImageError, LayerError, TarError};
pub use limits::Limits;
pub use platform::{Platform, PlatformError};
pub use pull::PulledImage;
pub(crate) use pull::is_digest;
pub use reference::{Reference, ReferenceError};
pub use store::{ImageInfo, ImageStore, PolicyFile, Removed, StoredImage, Used};
pub use usage::{Pruned, Usage};

/// How far the work on an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Another process is making the same image, or changes the store.
    Waiting,
    /// A registry is asked what the image consists of.
    Resolving,
    /// A compressed archive is unpacked into a temporary file.
    Unpacking {
        /// Bytes unpacked so far.
        bytes: u64,
    },
    /// A layer is being downloaded, or copied out of an archive.
    Fetch {
        /// Its number; the lowest is 1.
        layer: usize,
        /// How many there are.
        layers: usize,
        /// Bytes that are there, compressed as they came.
        bytes: u64,
        /// How many there will be.
        total: u64,
    },
    /// A layer is being converted; several of them at once, and each is told of.
    Layer {
        /// Its number; the lowest is 1.
        layer: usize,
        /// How many there are.
        layers: usize,
        /// Bytes read of it, uncompressed.
        bytes: u64,
    },
    /// The work has failed: what is still under way is ended, and then the error is told.
    Stopping,
    /// A layer is part of the disk.
    Converted {
        /// Its number; the lowest is 1.
        layer: usize,
        /// How many there are.
        layers: usize,
    },
}

/// Told how far the work is; stops it by returning [`Cancelled`].
pub type Watch<'a> = &'a mut dyn FnMut(Progress) -> Result<(), Cancelled>;
