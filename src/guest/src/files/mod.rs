//! The container's files, for the host: looked at, changed, watched, and moved in bulk.
//!
//! ```text
//!   portal ──▶ place.rs: a thread inside the container's mount namespace ──▶ entry.rs, watch.rs, transfer.rs
//! ```
//!
//! The work runs as the agent, with all its rights, but sees what the container sees: volumes, memory file systems and
//! all else that is mounted there, and nothing that is not. The container's own processes may change anything at any
//! moment, so whatever is acted on is held open, and the last component of a path is never followed where that would
//! give a file away.

pub mod content;
pub mod entry;
pub mod error;
pub mod path;
pub mod place;
pub mod transfer;
pub mod tree;
pub mod watch;
