//! What the BoxLite library and the monitor of a box say to each other on the host.
//!
//! The library starts `boxlite-shim monitor` with one end of a Unix socket pair as its standard input: the **lifeline**.
//! It sends one [`MonitorConfig`] there, and reads [`StatusUpdate`]s from then on. When the library's process dies, the
//! lifeline closes; the monitor of a box that is not detached then ends the box, unless [`RELEASE`] was the last word.
//!
//! Anybody else talks to the monitor through `control.sock` in the box's folder: one [`Request`], then one or more
//! [`Response`]s. Both directions use [`frame`]s.
//!
//! ```text
//!   library                       monitor                           VMM role
//!     |-- spawn, config ------------>|                                 |
//!     |                              |-- spawn, VmmConfig on stdin --->|  boots the guest
//!     |<- Starting { step } ---------|<- boot reports (vsock) ---------|
//!     |<- Running -------------------|                                 |
//!     |   (any process, control.sock)|                                 |
//!     |-- Stop { grace } ----------->|-- Guest.Shutdown (portal) ----->|
//!     |<- Stopped { exit } ----------|<- process exit -----------------|
//! ```
//!
//! Neither the guest nor a user of the library ever sees these types.

#![deny(missing_docs)]

mod admission;
pub mod event;
mod files;
pub mod frame;
mod health;
mod network;
mod network_rule;
pub mod output_log;
mod restart;
mod socket_path;
mod spec;
mod stats;
mod status;
pub mod step;

/// What the library sends on the lifeline, after the configuration, for the box to go on when the lifeline ends.
pub const RELEASE: u8 = b'R';

pub use admission::{Admission, Order, Phase, Refusal, admit};
pub use event::{Event, EventKind};
pub use files::{BoxFiles, rotated};
pub use health::{Health, HealthProbe, HealthSpec, HealthStatus, PROBE_OUTPUT, PROBES};
pub use network::{
    Denial, FlowInfo, LinkSpec, NetConfig, NetOrder, NetReport, NetStats, NetworkPolicy, NetworkPreset,
    NetworkProtocol, NetworkRule, NetworkSpec, NetworkTarget, NetworkVerdict, PortForward, RateLimit,
};
pub use network_rule::BadNetworkRule;
pub use output_log::{OutputLog, OutputReader, OutputRecord, OutputStream};
pub use restart::{Backoff, BadRestartPolicy, RestartPolicy};
pub use socket_path::SocketPath;
pub use spec::{
    ContainerSpec, Direction, DiskFormat, DiskSpec, EngineChoice, MonitorConfig, MountSource, MountSpec,
    NetDevice, ProcessSpec, ShareSpec, ShareVolume, VmSpec, VmmConfig, VsockPort,
};
pub use stats::{BoxStats, GuestStats};
pub use status::{
    EndReason, EngineReport, ErrorRecord, Exit, FailureKind, Outcome, ProbeReport, Request, Response, Run,
    State, StatusFile, StatusUpdate, Update, boot_id,
};

/// The version of everything in this crate. Library and shim are installed together, so it has to be equal.
pub const VERSION: u32 = 3;
