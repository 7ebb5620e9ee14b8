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

mod command;
mod disk;
mod doctor;
mod erofs;
mod error;
mod execution;
mod home;
pub mod image;
mod images;
mod info;
mod litebox;
mod login;
mod monitor;
mod options;
mod policy;
mod programs;
mod record;
mod registry;
mod rpc;
mod runtime;
mod settings;
mod usage;

pub use command::BoxCommand;
pub use doctor::{Check, Diagnosis, Health};
pub use error::{BoxliteError, BoxliteResult, Error, ErrorKind, Result, StartFailure};
pub use execution::{ExecOutput, ExecResult, ExecStdin, Execution};
pub use images::{ImageDetails, ImageHandle, PullOptions, PullPolicy};
pub use info::{BoxInfo, BoxStatus};
pub use litebox::{LiteBox, StartStep};
pub use options::{BoxOptions, BoxliteOptions, Engine, RootfsSpec, env_vars, limits};
pub use policy::{Malformed, PolicyError, Refusal};
pub use registry::{
    ImageRegistry, ImageRegistryProxy, RegistryAuth, RegistryError, RegistryErrorKind, RegistryTransport,
};
pub use runtime::BoxliteRuntime;
pub use usage::{DiskUsage, SystemPruned, UsageGroup};

/// The version of this library.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
