//! The harness of the VM tests.
//!
//! * [`story`]: a home folder, real boxes, and the proof that nothing is left over.
//! * [`steps`]: holds the processes of boxes at named steps.
//! * [`cut`]: cuts a program off between two changes of its files.
//! * [`durable`]: what a loss of power leaves of such changes.
//! * [`layout`]: images made on the spot.
//! * [`disk`]: what the disk of an image holds.
//! * [`raw`]: a bare machine with the vsock device.
//! * [`registry`]: a real registry on a loopback port.
//! * [`proxy`]: what stands before it and makes it fail.
//! * [`puller`]: a home that pulls images.
//! * [`table`]: what a benchmark prints.
//! * [`tree`]: files, as a test compares them.
//! * [`http`]: as much of HTTP as these two need.

#![allow(clippy::print_stderr, reason = "what happened in a failed test is told on standard error")]

pub mod cut;
pub mod disk;
pub mod durable;
pub mod http;
pub mod layout;
pub mod proxy;
pub mod puller;
pub mod raw;
pub mod registry;
pub mod steps;
pub mod story;
pub mod table;
pub mod tree;
