//! Trees of files as tar streams, both ways. Neither the tree nor the stream is to be trusted.
//!
//! [`Source`] packs, [`unpack()`] unpacks below the folder of a [`Target`]. The host's library and the agent in a box both
//! use it, so each side is hostile to the other once:
//!
//! ```text
//!   copy in     library: Source::pack  ──tar──▶  agent: unpack    a process of the container races with the agent
//!   copy out    library: unpack        ◀──tar──  agent: pack      the stream is whatever the box makes of it
//! ```
//!
//! What holds, whatever the stream says and whoever races:
//!
//! * Nothing outside of the folder is made, changed or linked to. No symlink below it is ever followed.
//! * A name holds what it held, or all of its new content: files are filled under another name first.
//! * Memory is bounded: nothing is allocated in a size that the stream or the tree chose before it was checked.
//!
//! A stream of a folder begins with the folder's own entry, then come its children, each folder before what is in it.
//! The dialect is POSIX's (PAX), sparse files as GNU's 1.0; what GNU tar writes is read as well.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod direct;
mod encoder;
mod name;
mod number;
mod pack;
mod pax;
mod place;
mod remove;
mod root;
mod source;
mod sparse;
mod stream;
mod summary;
mod target;
mod temporary;
mod unpack;

pub use name::{BadName, Escaped};
pub use pack::{MAX_DEPTH, PackError, PackOptions};
pub use place::{Copied, Destination, PlaceError, Placement, place};
pub use remove::remove_tree;
pub use root::Root;
pub use source::{Kind, Source, SourceError};
pub use stream::StreamError;
pub use summary::{Progress, Skipped, Summary};
pub use target::{Target, TargetError};
pub use unpack::{Owner, UnpackError, UnpackOptions, unpack};

/// The longest path, and the longest content of a symlink, in bytes: what Linux takes in one piece.
pub const MAX_PATH: usize = 4096;

/// The largest extended attribute, in bytes: what Linux allows.
pub const MAX_XATTR: usize = 64 << 10;

/// How much is read or written at once.
const BUFFER: usize = 256 << 10;
