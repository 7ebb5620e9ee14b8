//! The harness of the VM tests.

pub mod raw;
