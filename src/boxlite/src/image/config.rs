//! How an image wants to be run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The part of an image's configuration that counts when a box runs it. Empty texts and lists: nothing was said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ImageConfig {
    /// The program with its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments of the entrypoint; the program too, when there is no entrypoint.
    pub cmd: Vec<String>,
    /// Environment, as `NAME=value`.
    pub env: Vec<String>,
    /// Working directory.
    pub working_dir: String,
    /// User, as `name`, `uid`, `name:group` or `uid:gid`.
    pub user: String,
    /// Ports that the image listens on, as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Folders that are meant to outlive the container.
    pub volumes: Vec<String>,
    /// Free key-value pairs.
    pub labels: BTreeMap<String, String>,
    /// The signal that ends the main process well.
    pub stop_signal: Option<String>,
    /// How the image's author wants its health to be checked.
    pub health_check: Option<ImageHealthCheck>,
    /// The machine it is made for, in Go's words: `amd64`, `arm64`.
    pub architecture: String,
    /// The system it is made for: `linux`.
    pub os: String,
    /// The variant of the machine, such as `v7` of `arm`.
    pub variant: Option<String>,
    /// When it was made, in RFC 3339.
    pub created: Option<String>,
}

/// Docker's `HEALTHCHECK`, as the configuration of an image has it. A time of 0 means that nothing was said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ImageHealthCheck {
    /// `NONE`; `CMD` with a program and its arguments; or `CMD-SHELL` with a text for the shell.
    pub test: Vec<String>,
    /// From the end of one probe to the start of the next, in nanoseconds.
    pub interval_nanos: u64,
    /// How long a probe may take, in nanoseconds.
    pub timeout_nanos: u64,
    /// In this time after the start failures do not count, in nanoseconds.
    pub start_period_nanos: u64,
    /// The interval during the start period, in nanoseconds.
    pub start_interval_nanos: u64,
    /// So many failures in a row are one too many.
    pub retries: u32,
}
