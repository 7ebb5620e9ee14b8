//! The harness of the VM tests.
//!
//! * [`story`]: a home folder, real boxes, and the proof that nothing is left over.
//! * [`layout`]: images made on the spot.
//! * [`raw`]: a bare machine with the vsock device.

#![allow(clippy::print_stderr, reason = "what happened in a failed test is told on standard error")]

pub mod layout;
pub mod raw;
pub mod story;
