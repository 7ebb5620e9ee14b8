//! OCI images: from archives to one read-only disk per image.
//!
//! ```text
//!   OCI layout folder ┐                ┌ blob ─ inflate ─ diff ids ─ tar ┐
//!   OCI archive       ├─ archive ──────┤  …one after the other, bottom-up ├─ erofs ── images/<digest>.erofs
//!   docker save       ┘   (manifest,   └ blob ─ inflate ─ diff ids ─ tar ┘           images/<digest>.json
//!                          config)                                                   images/refs.json
//! ```
//!
//! Everything that is read is hostile until its digest was verified, and bounded by [`Limits`] even then. No name that an
//! archive gives ever becomes part of a path of the host: files of an image exist only inside the EROFS image that is
//! written, and blobs are named by digests that are parsed strictly.

mod apply;
pub mod archive;
mod build;
mod config;
mod digest;
mod error;
mod limits;
mod lock;
mod manifest;
mod reference;
pub mod store;
mod stream;
mod tar;

pub use build::{Built, LayerSource, build};
pub use config::ImageConfig;
pub use digest::{Digest, DigestError};
pub use error::{Cancelled, EntryError, ImageError, LayerError, TarError};
pub use limits::Limits;
pub use reference::{Reference, ReferenceError};
pub use store::{ImageInfo, ImageStore, Removed, StoredImage};

/// How far the work on an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Another process is loading the same image.
    Waiting,
    /// A compressed archive is unpacked into a temporary file.
    Unpacking {
        /// Bytes unpacked so far.
        bytes: u64,
    },
    /// A layer is being converted.
    Layer {
        /// Its number; the lowest is 1.
        layer: usize,
        /// How many there are.
        layers: usize,
        /// Bytes read of it, uncompressed.
        bytes: u64,
    },
}

/// Told how far the work is; stops it by returning [`Cancelled`].
pub type Watch<'a> = &'a mut dyn FnMut(Progress) -> Result<(), Cancelled>;
