//! BoxLite runs OCI images in micro-VMs of their own, with no daemon: an embeddable runtime for code that is not
//! trusted.
//!
//! ```no_run
//! use boxlite::{BoxCommand, BoxOptions, BoxliteRuntime};
//!
//! # async fn example() -> boxlite::Result<()> {
//! let runtime = BoxliteRuntime::with_defaults()?;
//! runtime.images().load("busybox.tar", |_| {}).await?;
//! let sandbox = runtime.create(BoxOptions::image("busybox"), None).await?;
//! let mut uname = sandbox.exec(BoxCommand::new("uname").arg("-a")).await?;
//! let output = uname.stdout().expect("not taken before").read_to_end(1 << 20).await;
//! assert_eq!(uname.wait().await?.exit_code, 0);
//! println!("{}", String::from_utf8_lossy(&output));
//! sandbox.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! A [`BoxliteRuntime`] is one home folder. A [`LiteBox`] is a handle to one box: a virtual machine that runs one
//! container. An [`Execution`] is a process in it. The machine runs in processes of its own, and ends with the program
//! that started it unless [`BoxOptions::detach`] says otherwise.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod begin;
mod changes;
mod command;
mod copy;
mod create;
mod disk;
mod doctor;
mod erofs;
mod error;
mod events;
mod execution;
mod files;
mod head;
mod health;
mod home;
pub mod image;
mod images;
mod info;
mod launch;
mod lifecycle;
mod link;
mod litebox;
mod login;
mod logs;
mod monitor;
mod network;
mod options;
mod policy;
mod programs;
mod prometheus;
mod reach;
mod record;
mod recovery;
mod registry;
mod rpc;
mod runtime;
mod settings;
mod signal;
mod stats;
mod store;
mod tail;
mod transfer;
mod ulimit;
mod usage;
mod volume;
mod volumes;

pub use command::BoxCommand;
pub use copy::{CopyOptions, CopyProgress, CopySummary};
pub use doctor::{Check, Diagnosis, Health};
pub use error::{BoxliteError, BoxliteResult, Error, ErrorKind, Result, StartFailure};
pub use events::{BoxEvent, BoxEventKind, EventOptions, EventStream};
pub use execution::{ExecOutput, ExecResult, ExecStdin, Execution};
pub use files::{FileEvent, FileEventKind, FileInfo, FileKind, FileWatch, Files, WriteOptions};
pub use health::{HealthCheckOptions, HealthProbe, HealthReport, HealthStatus};
pub use images::{ImageDetails, ImageHandle, PullOptions, PullPolicy};
pub use info::{BoxInfo, BoxStatus, StopReason};
pub use lifecycle::{BoxUpdate, StartStep};
pub use litebox::LiteBox;
pub use logs::{LogChunk, LogOptions, LogSource, LogStream};
pub use network::{
    HOST_NAME, NetworkFlow, NetworkInfo, NetworkPolicy, NetworkRateLimit, NetworkSpec, PortInfo,
    PortProtocol, PortSpec,
};
pub use options::{BoxOptions, BoxliteOptions, Engine, RestartPolicy, RootfsSpec, env_vars, limits};
pub use policy::{Malformed, PolicyError, Refusal};
pub use prometheus::MetricsAddress;
pub use reach::NetworkHandle;
pub use registry::{
    ImageRegistry, ImageRegistryProxy, RegistryAuth, RegistryError, RegistryErrorKind, RegistryTransport,
};
pub use runtime::BoxliteRuntime;
pub use signal::parse_signal;
pub use stats::{BoxMetrics, BoxStats, GuestStats, RuntimeMetrics};
pub use ulimit::Ulimit;
pub use usage::{DiskUsage, SystemPruned, UsageGroup};
pub use volume::{MountInfo, TmpfsSpec, VolumeSpec};
pub use volumes::{VolumeHandle, VolumeInfo, VolumeOptions};

/// The version of this library.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
