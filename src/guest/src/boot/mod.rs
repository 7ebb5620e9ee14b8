//! The parts of the boot.

pub mod entropy;
pub mod machine;
pub mod mounts;
pub mod report;
