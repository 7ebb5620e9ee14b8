//! The container: what it is made of, and who a process in it is.

pub mod capabilities;
pub mod files;
pub mod idle;
pub mod launch;
pub mod mounts;
pub mod spec;
pub mod user;
