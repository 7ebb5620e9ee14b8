//! Processes: how they start, where they belong, and who reaps them.

pub mod cgroup;
pub mod child;
pub mod client;
pub mod counter;
pub mod order;
pub mod reaper;
pub mod spawner;
