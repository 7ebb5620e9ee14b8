//! What can be known of a box.

use std::time::{Duration, SystemTime};

use boxlite_control::{Exit, State};

use crate::error::{Error, ErrorKind, RemoteCause};
use crate::record::BoxRecord;

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
    /// It is being stopped.
    Stopping,
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
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// Whether a machine exists.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Stopping)
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
    /// Why it failed, with causes, for people.
    pub error: Option<String>,
    /// The box is removed when it stops.
    pub auto_remove: bool,
    /// The box goes on without the process that started it.
    pub detach: bool,
}

impl BoxInfo {
    pub(crate) fn new(record: &BoxRecord, state: Option<&State>) -> Self {
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
            error: None,
            auto_remove: record.auto_remove,
            detach: record.detach,
        };
        match state {
            None => {}
            Some(State::Starting { .. }) => info.status = BoxStatus::Starting,
            Some(State::Running { engine, vmm_pid, started_unix_nanos }) => {
                info.status = BoxStatus::Running;
                info.engine = Some(engine_name(*engine));
                info.pid = Some(*vmm_pid);
                info.started_at = Some(time(*started_unix_nanos));
            }
            Some(State::Stopping) => info.status = BoxStatus::Stopping,
            Some(State::Stopped { exit, ended_unix_nanos }) => {
                info.status = BoxStatus::Stopped;
                info.exit_code = exit.map(exit_code);
                info.ended_at = Some(time(*ended_unix_nanos));
            }
            Some(State::Failed { error, ended_unix_nanos }) => {
                info.status = BoxStatus::Failed;
                info.error = Some(error.messages.join(": "));
                info.ended_at = Some(time(*ended_unix_nanos));
            }
        }
        info
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

fn time(unix_nanos: u64) -> SystemTime {
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
        Kind::AlreadyRunning => (ErrorKind::InvalidState, None),
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
