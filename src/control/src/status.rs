//! What a monitor publishes, and what it can be asked for.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::VERSION;
use crate::admission::Phase;
use crate::files::BoxFiles;
use crate::health::Health;
use crate::network::{NetStats, NetworkPolicy, PortForward};
use crate::restart::RestartPolicy;
use crate::spec::EngineChoice;
use crate::stats::BoxStats;

/// The state of a box, as its monitor publishes it.
///
/// ```text
///                     ┌────────────────── Restarting ◀─┐
///                     ▼                        │       │
///   (created) ──▶ Starting ──▶ Running ──▶ Stopping ───┤
///                  │   │        │  ▲  │        ▲       ├──▶ Stopped
///                  │   │        ▼  │  │        │       │
///                  │   │       Paused─┼────────┤       └──▶ Failed
///                  │   └──────────────┼────────┘             ▲
///                  └──────────────────┴──────────────────────┘
/// ```
///
/// A box that is [`State::Stopped`] or [`State::Failed`] has no monitor; its next start begins anew at
/// [`State::Starting`]. Which orders lead along which arrow says [`admit`](crate::admit).
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
        /// The machine at work.
        run: Run,
    },
    /// The virtual CPUs stand still.
    Paused {
        /// The machine that stands still.
        run: Run,
        /// Since when, nanoseconds since the Unix epoch.
        since_unix_nanos: u64,
    },
    /// An orderly end has begun.
    Stopping,
    /// A run has ended, and the restart policy wants another one.
    Restarting {
        /// How the last run ended.
        last: Outcome,
        /// When the next one begins, nanoseconds since the Unix epoch.
        next_unix_nanos: u64,
    },
    /// The box has ended in order.
    Stopped {
        /// How the main command ended; `None` when it was never started.
        exit: Option<Exit>,
        /// Why it ended.
        reason: EndReason,
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

    /// What the admission of orders asks for.
    pub fn phase(&self) -> Phase {
        match self {
            Self::Starting { .. } => Phase::Starting,
            Self::Running { .. } => Phase::Running,
            Self::Paused { .. } => Phase::Paused,
            Self::Stopping => Phase::Stopping,
            Self::Restarting { .. } => Phase::Restarting,
            Self::Stopped { reason: EndReason::Idle, .. } => Phase::Dormant,
            Self::Stopped { .. } => Phase::Stopped,
            Self::Failed { .. } => Phase::Failed,
        }
    }
}

/// One run of a machine whose main command has started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The engine in use: never `Auto`.
    pub engine: EngineChoice,
    /// Process id of the VMM.
    pub vmm_pid: u32,
    /// When the main command started, nanoseconds since the Unix epoch.
    pub started_unix_nanos: u64,
    /// What the health check has found, when there is one.
    pub health: Option<Health>,
    /// The published ports, with the numbers that they got.
    #[serde(default)]
    pub ports: Vec<PortForward>,
}

/// How one run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The main command ended so.
    Exit(Exit),
    /// The machine failed.
    Error(ErrorRecord),
}

/// Why a box that has stopped did so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The main command ended by itself.
    Exited,
    /// Somebody asked for it.
    Requested,
    /// Nothing was done in it for its idle time-out. A command that is to run in it starts it again.
    Idle,
    /// It had run as long as it may.
    MaxDuration,
    /// The program that owned it has ended.
    OwnerGone,
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
    /// The network could not be had: a port is taken, for example.
    Network,
    /// Another monitor has the box.
    AlreadyRunning,
    /// The box was removed before a monitor had it.
    Removed,
    /// A fault of the host or of this program.
    Internal,
}

/// One published state. A higher generation is newer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusUpdate {
    /// Counts up from 1.
    pub generation: u64,
    /// How often the restart policy has started the box again since its last start.
    pub restarts: u32,
    /// The state.
    pub state: State,
}

/// The content of the file `state` in a box's folder: the last update, for those who come when no monitor runs.
///
/// The file is written whole and renamed into place. A file that says that the box is running while nobody holds the
/// box's lock belongs to a monitor that was killed: whoever finds it and gets the lock writes down how the box ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusFile {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// Process id of the writer, for people: nothing is ever sent to it.
    pub monitor_pid: u32,
    /// The host's boot in which it was written: see [`boot_id`].
    pub boot_id: String,
    /// The last update.
    pub update: StatusUpdate,
}

impl StatusFile {
    /// Replaces the file of this box as a whole, by the holder of the box's lock. Only a final state is flushed to the
    /// disk first: it is what is known of the box from then on. A crash of the host ends the box in any other state, and
    /// who reads a state that says otherwise, or that does not decode, takes the box for a crashed one.
    ///
    /// # Errors
    /// When the file cannot be written. The old one is there still then.
    pub fn write(files: &BoxFiles, update: &StatusUpdate) -> io::Result<()> {
        let content = Self {
            version: VERSION,
            monitor_pid: std::process::id(),
            boot_id: boot_id().to_owned(),
            update: update.clone(),
        };
        let next = files.state().with_extension("next");
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&next)?;
        file.write_all(&serde_json::to_vec(&content)?)?;
        if update.state.is_final() {
            file.sync_all()?;
        }
        drop(file);
        fs::rename(next, files.state())
    }
}

/// The kernel's name for the time since the host has booted; empty where it has none. See `random(4)`.
pub fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        id.trim().to_owned()
    })
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
    /// The final state, once it is there.
    Wait,
    /// Starts the box at once where it waits to be restarted. Answers like [`Request::Watch`].
    Start,
    /// Ends the box. Answers like [`Request::Watch`]. A second stop shortens the grace of the first, never lengthens it.
    Stop {
        /// Signal for the main command, as a Linux number; 0 kills at once.
        signal: u32,
        /// Time between that signal and SIGKILL, in milliseconds.
        grace_millis: u64,
    },
    /// Ends the machine like [`Request::Stop`] and starts it again: one [`Response::Done`] once that has begun.
    Restart {
        /// As for a stop.
        signal: u32,
        /// As for a stop.
        grace_millis: u64,
    },
    /// Sends a signal to the main command: one [`Response::Done`].
    Signal {
        /// A Linux number, 1 to 64.
        signal: u32,
    },
    /// Stops the virtual CPUs: one [`Response::Done`] once they stand still.
    Pause,
    /// Lets them go on: one [`Response::Done`] once they do and the guest's clock is right.
    Resume,
    /// Changes settings: one [`Response::Done`].
    Update(Update),
    /// What the box uses: one [`Response::Stats`].
    Stats,
    /// Another policy for the network of a running box, at once. Answered by [`Response::Done`].
    NetworkPolicy(NetworkPolicy),
    /// What goes over the network. Answered by [`Response::Network`].
    Network,
}

/// New settings of a box that has a monitor. What is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// The name that events tell.
    pub name: Option<String>,
    /// Virtual CPUs of the next run.
    pub cpus: Option<u8>,
    /// Memory of the next run.
    pub memory_mib: Option<u32>,
    /// From now on.
    pub restart: Option<RestartPolicy>,
    /// From now on, in milliseconds; 0 takes the limit away.
    pub idle_timeout_millis: Option<u64>,
    /// From now on, in milliseconds since the start; 0 takes the limit away.
    pub max_duration_millis: Option<u64>,
}

/// What comes back on `control.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Response {
    /// A state.
    Status(StatusUpdate),
    /// It was done.
    Done,
    /// What the box uses.
    Stats(Box<BoxStats>),
    /// What goes over the network, and the policy that it has now.
    Network {
        /// Counters and flows.
        stats: Box<NetStats>,
        /// The policy in force.
        policy: NetworkPolicy,
    },
    /// The state of the box does not allow it, or it cannot be right.
    Refused {
        /// Why.
        message: String,
    },
    /// It was tried, and failed.
    Failed {
        /// Why.
        message: String,
    },
}

/// What `boxlite-shim probe` prints: one JSON document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// [`VERSION`] of the shim.
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
