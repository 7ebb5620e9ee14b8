//! The agent inside a box: PID 1 of its virtual machine.
//!
//! ```text
//!   main.rs      boots, in named steps; ends the machine
//!   boot         mounts, limits, random numbers, boot channel
//!   vsock        sockets to the host
//!   portal       serves the host: hello, then gRPC
//!   agent        what the services share, and the states of machine and container
//!   clock        the wall clock
//!   disks        image and writable layer become the container's root
//!   container    specification, users, capabilities, defaults
//!   process      spawner, child, cgroups, reaper
//!   execution    one process with its output, input, terminal and end
//!   events       what happens, for those who asked to be told
//!   stats        what machine and container use
//!   pause        what is done before and after the virtual CPUs stand still
//!   shutdown     the orderly end
//!   descriptor   registration with the runtime
//!   console      a few lines for the log
//! ```
//!
//! The agent trusts its host and nothing else: what comes from the image or the container is bounded, parsed by hand and
//! opened through roots that it cannot leave. It is a library besides a program so that its tests can serve it over a
//! Unix socket, without a machine.

pub mod agent;
pub mod boot;
pub mod clock;
pub mod console;
pub mod container;
pub mod descriptor;
pub mod disks;
pub mod events;
pub mod execution;
pub mod files;
#[cfg(feature = "hostile")]
pub mod hostile;
pub mod init;
pub mod network;
pub mod pause;
pub mod portal;
pub mod process;
pub mod share;
pub mod shutdown;
pub mod stats;
pub mod vsock;
