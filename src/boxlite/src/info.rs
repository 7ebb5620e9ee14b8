//! What can be known of a box.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use boxlite_control::{
    EndReason, ErrorRecord, Exit, Outcome, Phase, RestartPolicy, Run, State, StatusUpdate,
};

use crate::error::{Error, ErrorKind, RemoteCause};
use crate::health::{HealthReport, HealthStatus};
use crate::network::{NetworkPolicy, NetworkRecord, PortInfo};
use crate::record::BoxRecord;
use crate::volume::{self, MountInfo};

/// The status of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BoxStatus {
    /// Created and never started.
    Configured,
    /// Its machine boots.
    Starting,
    /// Its main command runs.
    Running,
    /// Its virtual CPUs stand still.
    Paused,
    /// It is being stopped.
    Stopping,
    /// It waits for its next run, as its restart policy wants it.
    Restarting,
    /// Its main command has ended.
    Stopped,
    /// It could not start, or its machine was lost.
    Failed,
}

impl BoxStatus {
    /// A stable lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Restarting => "restarting",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Configured,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Restarting,
        Self::Stopped,
        Self::Failed,
    ];

    /// Whether the box is at work: a machine exists, or will again.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Paused | Self::Stopping | Self::Restarting)
    }

    pub(crate) fn of(phase: Phase) -> Self {
        match phase {
            Phase::Starting => Self::Starting,
            Phase::Running => Self::Running,
            Phase::Paused => Self::Paused,
            Phase::Stopping => Self::Stopping,
            Phase::Restarting => Self::Restarting,
            Phase::Dormant | Phase::Stopped => Self::Stopped,
            Phase::Failed => Self::Failed,
            _ => Self::Configured,
        }
    }
}

/// Why a box has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StopReason {
    /// Its main command ended by itself.
    Exited,
    /// Somebody stopped it.
    Requested,
    /// Nothing was done in it for as long as [`BoxOptions::auto_stop`](crate::BoxOptions::auto_stop) says.
    Idle,
    /// It had run as long as [`BoxOptions::max_duration`](crate::BoxOptions::max_duration) says.
    MaxDuration,
    /// The program that it belonged to has ended.
    OwnerGone,
}

impl StopReason {
    /// A stable lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Requested => "requested",
            Self::Idle => "idle",
            Self::MaxDuration => "max_duration",
            Self::OwnerGone => "owner_gone",
        }
    }

    pub(crate) fn of(reason: EndReason) -> Self {
        match reason {
            EndReason::Exited => Self::Exited,
            EndReason::Requested => Self::Requested,
            EndReason::Idle => Self::Idle,
            EndReason::MaxDuration => Self::MaxDuration,
            EndReason::OwnerGone => Self::OwnerGone,
        }
    }
}

/// A box as it was when it was looked at.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BoxInfo {
    /// Its id: 12 hexadecimal digits.
    pub id: String,
    /// Its name, when it was given one.
    pub name: Option<String>,
    /// Its status.
    pub status: BoxStatus,
    /// When it was created.
    pub created_at: SystemTime,
    /// When its main command started, while it runs.
    pub started_at: Option<SystemTime>,
    /// When it ended.
    pub ended_at: Option<SystemTime>,
    /// Process id of its virtual machine, while it runs.
    pub pid: Option<u32>,
    /// The reference that it was created from.
    pub image: String,
    /// The main command; empty for a box that idles.
    pub command: Vec<String>,
    /// Digest of the image's manifest.
    pub image_digest: String,
    /// Virtual CPUs.
    pub cpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The engine that runs it, while it runs.
    pub engine: Option<&'static str>,
    /// The main command's exit code once it has ended: 0 to 255, or 128 plus the number of the signal that ended it.
    pub exit_code: Option<i32>,
    /// Why it has stopped, when it has.
    pub stop_reason: Option<StopReason>,
    /// Why it failed, with causes, for people.
    pub error: Option<String>,
    /// The last lines of its console, when it failed and they may help. They come from the box; control characters are
    /// escaped.
    pub console_tail: Vec<String>,
    /// What its health check has found, while it runs and has one.
    pub health: Option<HealthReport>,
    /// Its main command has a terminal.
    pub tty: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it runs again after its main command has ended.
    pub restart: RestartPolicy,
    /// How often that has started it again since its last start.
    pub restart_count: u32,
    /// When it runs again, while it waits for that.
    pub next_start_at: Option<SystemTime>,
    /// It is stopped when nothing is done in it for this long.
    pub auto_stop: Option<Duration>,
    /// It is stopped this long after its start.
    pub max_duration: Option<Duration>,
    /// What is mounted over its image.
    pub mounts: Vec<MountInfo>,
    /// What it may reach; `None`: it has no network device.
    pub network: Option<NetworkPolicy>,
    /// The published ports: while it runs with the numbers that they got.
    pub ports: Vec<PortInfo>,
    /// The box is removed when it stops.
    pub auto_remove: bool,
    /// The box goes on without the process that started it.
    pub detach: bool,
}

impl BoxInfo {
    pub(crate) fn new(record: &BoxRecord, update: Option<&StatusUpdate>) -> Self {
        let limit = |millis: u64| (millis > 0).then(|| Duration::from_millis(millis));
        let mut info = Self {
            id: record.id.clone(),
            name: record.name.clone(),
            status: BoxStatus::Configured,
            created_at: time(record.created_unix_nanos),
            started_at: None,
            ended_at: None,
            pid: None,
            image: record.image.clone(),
            command: record.container.main.args.clone(),
            image_digest: record.image_digest.clone(),
            cpus: record.cpus,
            memory_mib: record.memory_mib,
            engine: None,
            exit_code: None,
            stop_reason: None,
            error: None,
            console_tail: Vec::new(),
            health: None,
            tty: record.container.main.terminal.is_some(),
            labels: record.labels.clone(),
            restart: record.restart,
            restart_count: update.map_or(0, |update| update.restarts),
            next_start_at: None,
            auto_stop: limit(record.idle_timeout_millis),
            max_duration: limit(record.max_duration_millis),
            mounts: volume::mounts(record),
            network: record.network.as_ref().map(NetworkRecord::policy),
            ports: record.network.iter().flat_map(|network| &network.0.ports).map(PortInfo::new).collect(),
            auto_remove: record.auto_remove,
            detach: record.detach,
        };
        if let Some(update) = update {
            info.status = BoxStatus::of(update.state.phase());
            info.take(&update.state);
        }
        info
    }

    /// What its state says beyond its status.
    fn take(&mut self, state: &State) {
        match state {
            State::Starting { .. } | State::Stopping => {}
            State::Running { run } | State::Paused { run, .. } => self.take_run(run),
            State::Restarting { last, next_unix_nanos } => {
                match last {
                    Outcome::Exit(exit) => self.exit_code = Some(exit_code(*exit)),
                    Outcome::Error(error) => self.take_error(error),
                }
                self.next_start_at = Some(time(*next_unix_nanos));
            }
            State::Stopped { exit, reason, ended_unix_nanos } => {
                self.exit_code = exit.map(exit_code);
                self.stop_reason = Some(StopReason::of(*reason));
                self.ended_at = Some(time(*ended_unix_nanos));
            }
            State::Failed { error, ended_unix_nanos } => {
                self.take_error(error);
                self.ended_at = Some(time(*ended_unix_nanos));
            }
        }
    }

    fn take_run(&mut self, run: &Run) {
        self.engine = Some(engine_name(run.engine));
        self.pid = Some(run.vmm_pid);
        self.started_at = Some(time(run.started_unix_nanos));
        self.health = run.health.as_ref().map(HealthReport::new);
        self.ports = run.ports.iter().map(PortInfo::new).collect();
    }

    fn take_error(&mut self, error: &ErrorRecord) {
        self.error = Some(error.messages.join(": "));
        self.console_tail.clone_from(&error.console_tail);
    }

    /// The verdict of its health check, while it runs and has one.
    pub fn health_status(&self) -> Option<HealthStatus> {
        self.health.as_ref().map(|health| health.status)
    }
}

pub(crate) fn engine_name(engine: boxlite_control::EngineChoice) -> &'static str {
    match engine {
        boxlite_control::EngineChoice::Auto => "auto",
        boxlite_control::EngineChoice::Krun => "krun",
        boxlite_control::EngineChoice::Qemu => "qemu",
    }
}

/// The exit code that a shell would report.
pub(crate) fn exit_code(exit: Exit) -> i32 {
    match exit {
        Exit::Code(code) => code,
        Exit::Signal(signal) => 128 + i32::try_from(signal.min(127)).unwrap_or(127),
    }
}

pub(crate) fn time(unix_nanos: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(unix_nanos)
}

/// A monitor's failure as an error of the library.
pub(crate) fn failure(id: &str, record: boxlite_control::ErrorRecord) -> Error {
    use crate::error::StartFailure;
    use boxlite_control::FailureKind as Kind;
    let (kind, start) = match record.kind {
        Kind::CommandNotFound => (ErrorKind::Execution, Some(StartFailure::NotFound)),
        Kind::CommandNotExecutable => (ErrorKind::Execution, Some(StartFailure::NotExecutable)),
        Kind::Container => (ErrorKind::Execution, Some(StartFailure::Other)),
        Kind::Engine | Kind::Boot | Kind::VmmLost => (ErrorKind::Engine, None),
        Kind::Network => (ErrorKind::Network, None),
        Kind::AlreadyRunning => (ErrorKind::InvalidState, None),
        Kind::Removed => (ErrorKind::NotFound, None),
        _ => (ErrorKind::Internal, None),
    };
    let mut error = Error::new(kind, format!("box {id} failed")).with_details(record.console_tail);
    if let Some(cause) = RemoteCause::chain(&record.messages) {
        error = error.with_source(cause);
    }
    if let Some(start) = start {
        error = error.with_start_failure(start);
    }
    match record.hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}
