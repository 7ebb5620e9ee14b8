//! libkrun and libkrunfw, as far as BoxLite uses them.
//!
//! * [`raw`] declares libkrun's C functions. The implementation is linked from the `libkrun` crate, and the compiler
//!   compares each declaration with it: a changed signature does not build.
//! * [`Context`] is the safe reading of them: typed arguments, and errors that name the call that failed.
//! * [`firmware`] finds libkrunfw, which carries the guest's kernel, and makes a file of it that both libkrun and QEMU
//!   boot.
//!
//! Nothing here knows about boxes.

mod context;
pub mod firmware;
pub mod raw;

pub use context::{CallError, Context, DiskFormat, LogLevel};
