//! BoxLite runs OCI images in micro-VMs of their own, with no daemon: an embeddable runtime for code that is not
//! trusted.
//!
//!
//! A [`BoxliteRuntime`] is one home folder. A [`LiteBox`] is a handle to one box: a virtual machine that runs one
//! container. An [`Execution`] is a process in it. The machine runs in processes of its own, and ends with the program
//! that started it unless [`BoxOptions::detach`] says otherwise.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

#![allow(dead_code, unused_imports, reason = "parts of the crate are not connected yet")]
mod command;
mod disk;
mod erofs;
mod error;
mod execution;
mod home;
pub mod image;
mod info;
mod monitor;
mod options;
mod programs;
mod record;
mod rpc;


/// The version of this library.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
