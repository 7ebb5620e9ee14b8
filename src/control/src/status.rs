//! What a monitor publishes, and what it can be asked for.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::spec::EngineChoice;

/// The state of a box.
///
/// ```text
///   Starting ──▶ Running ──▶ Stopping ──▶ Stopped
///      │            │            │
///      └────────────┴────────────┴──────▶ Failed
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case", deny_unknown_fields)]
pub enum State {
    /// The machine boots; `step` is what is done now.
    Starting {
        /// A short name for people.
        step: String,
    },
    /// The main command runs.
    Running {
        /// The engine in use: never `Auto`.
        engine: EngineChoice,
        /// Process id of the VMM.
        vmm_pid: u32,
        /// When the main command started, nanoseconds since the Unix epoch.
        started_unix_nanos: u64,
    },
    /// An orderly end has begun.
    Stopping,
    /// The box has ended in order.
    Stopped {
        /// How the main command ended; `None` when it was never started.
        exit: Option<Exit>,
        /// When, nanoseconds since the Unix epoch.
        ended_unix_nanos: u64,
    },
    /// The box could not start, or its machine was lost.
    Failed {
        /// Why.
        error: ErrorRecord,
        /// When, nanoseconds since the Unix epoch.
        ended_unix_nanos: u64,
    },
}

impl State {
    /// Whether the box has come to its end.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Stopped { .. } | Self::Failed { .. })
    }
}

/// How the main command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// By itself, with this code, 0 to 255.
    Code(i32),
    /// By this signal.
    Signal(u32),
}

/// An error that crossed a process boundary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorRecord {
    /// What kind of failure.
    pub kind: FailureKind,
    /// What happened, then its causes, outermost first.
    pub messages: Vec<String>,
    /// What the user can do, where that is known.
    pub hint: Option<String>,
    /// The last lines of the guest's console, when they may help.
    pub console_tail: Vec<String>,
}

/// What kind of failure ended a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureKind {
    /// No engine works, or the one asked for does not.
    Engine,
    /// The guest did not come up in time, or reported a failure.
    Boot,
    /// The main command does not exist: 127 on a command line.
    CommandNotFound,
    /// The main command cannot be executed: 126 on a command line.
    CommandNotExecutable,
    /// The container could not be made as asked: user, working directory, capabilities.
    Container,
    /// The VMM ended by itself.
    VmmLost,
    /// Another monitor has the box.
    AlreadyRunning,
    /// A fault of the host or of this program.
    Internal,
}

/// One published state. A higher generation is newer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusUpdate {
    /// Counts up from 1.
    pub generation: u64,
    /// The state.
    pub state: State,
}

/// The content of the file `state` in a box's folder: the last update, for those who come when no monitor runs.
///
/// The file is written whole and renamed into place. A file that says that the box is running while nobody holds the
/// box's lock belongs to a monitor that was killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusFile {
    /// [`VERSION`](crate::VERSION) of the writer.
    pub version: u32,
    /// Process id of the monitor.
    pub monitor_pid: u32,
    /// The last update.
    pub update: StatusUpdate,
}

/// What can be asked on `control.sock`. One request a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Request {
    /// The state now: one [`Response::Status`].
    Status,
    /// The state now and each one after it, until the final one.
    Watch,
    /// Ends the box. Answers like [`Request::Watch`]. A second stop shortens the grace of the first, never lengthens it.
    Stop {
        /// Signal for the main command, as a Linux number; 0 kills at once.
        signal: u32,
        /// Time between that signal and SIGKILL, in milliseconds.
        grace_millis: u64,
    },
}

/// What comes back on `control.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Response {
    /// A state.
    Status(StatusUpdate),
    /// The request was refused.
    Refused {
        /// Why.
        message: String,
    },
}

/// What `boxlite-shim probe` prints: one JSON document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// [`VERSION`](crate::VERSION) of the shim.
    pub version: u32,
    /// What `auto` would choose.
    pub chosen: Option<EngineChoice>,
    /// Each engine, best first.
    pub engines: Vec<EngineReport>,
    /// Where the guest kernel comes from, or why it is missing.
    pub kernel: Result<PathBuf, String>,
}

/// Whether one engine works here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineReport {
    /// The engine.
    pub engine: EngineChoice,
    /// Whether a box can run on it.
    pub usable: bool,
    /// Whether the CPU's virtualization is used.
    pub accelerated: bool,
    /// Why it can or cannot be used: sentences for people, the cause first.
    pub reasons: Vec<String>,
    /// What would make it usable or faster.
    pub hint: Option<String>,
}
