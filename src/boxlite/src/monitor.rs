//! The library's end of a monitor: one that this process started, or one that it found running.
//!
//! ```text
//!   spawn ──▶ lifeline held by a task ──▶ updates ──▶ watch channel ──▶ any number of waiters
//!   attach ─▶ control.sock, Watch ──────▶ updates ──▶ the same
//! ```
//!
//! The task owns the socket's reading half and, for a spawned monitor, the child. Dropping the last [`Monitor`] ends the task
//! and, with both halves, the lifeline: the monitor of a box that is not detached then ends the box, unless it was released.

use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use boxlite_control::{
    BoxFiles, ErrorRecord, FailureKind, MonitorConfig, Phase, RELEASE, Request, Response, SocketPath, State,
    StatusFile, StatusUpdate, VERSION, boot_id, frame, step,
};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result, storage};
use crate::record::read_bounded;
use crate::tail;

/// The largest state file, in bytes.
const STATE_LIMIT: u64 = 1 << 20;
/// How long a monitor may take to answer on its control socket.
const CONTROL_DEADLINE: Duration = Duration::from_secs(10);

/// What is known of a monitor.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// The last update.
    pub(crate) update: Option<StatusUpdate>,
    /// Nothing more will come: the monitor has ended or the connection is lost.
    pub(crate) over: bool,
    /// When each state arrived, up to the first that is no step of a start: bounded by [`MAX_STEPS`].
    pub(crate) arrived: Vec<(Instant, String)>,
}

/// The most steps of a start that are remembered.
const MAX_STEPS: usize = 64;

impl View {
    pub(crate) fn state(&self) -> Option<&State> {
        self.update.as_ref().map(|update| &update.state)
    }

    /// Takes the next update in.
    fn advance(&mut self, update: StatusUpdate) {
        let name = match &update.state {
            State::Starting { step } => Some(step.as_str()),
            State::Running { .. } => Some("running"),
            _ => None,
        };
        let running = self.arrived.last().is_some_and(|(_, last)| last == "running");
        if let Some(name) = name.filter(|_| !running && self.arrived.len() < MAX_STEPS) {
            self.arrived.push((Instant::now(), name.to_owned()));
        }
        self.update = Some(update);
    }

    pub(crate) fn is_final(&self) -> bool {
        self.state().is_some_and(State::is_final)
    }
}

/// A monitor that is listened to.
#[derive(Debug)]
pub(crate) struct Monitor {
    spawned: Instant,
    view: watch::Receiver<View>,
    task: JoinHandle<()>,
    /// Our half of the lifeline, if it is ours. It ends when both halves are dropped, or the process ends.
    lifeline: Option<tokio::sync::Mutex<OwnedWriteHalf>>,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Monitor {
    /// Starts a monitor and hands it its configuration.
    pub(crate) async fn spawn(shim: &Path, files: &BoxFiles, config: &MonitorConfig) -> Result<Self> {
        let failed = |e: std::io::Error| {
            Error::new(ErrorKind::Engine, format!("cannot start {}", shim.display())).with_source(e)
        };
        let spawned = Instant::now();
        let (ours, theirs) = StdUnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let mut lifeline = UnixStream::from_std(ours).map_err(failed)?;
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(files.shim_log());
        let log = log.map_err(|e| storage(format!("cannot open {}", files.shim_log().display()), e))?;
        let child = Command::new(shim)
            .arg("monitor")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .current_dir("/")
            .spawn()
            .map_err(failed)?;
        step::reached("library", "monitor-spawned");
        let sent = frame::send(&mut lifeline, config).await;
        sent.map_err(|e| {
            Error::new(ErrorKind::Engine, "the monitor did not take its configuration").with_source(e)
        })?;
        step::reached("library", "monitor-configured");
        let (sender, view) = watch::channel(View::default());
        let (read, write) = lifeline.into_split();
        let task = tokio::spawn(follow_lifeline(read, child, sender));
        Ok(Self { spawned, view, task, lifeline: Some(write.into()) })
    }

    /// Listens to a monitor that somebody else started, and waits for the first that it says; `None` when none runs, or the
    /// one that does ends before it says anything.
    pub(crate) async fn attach(files: &BoxFiles) -> Result<Option<Self>> {
        let Some(connection) = request(files, &Request::Watch).await? else { return Ok(None) };
        let (sender, view) = watch::channel(View::default());
        let task = tokio::spawn(follow_control(connection, sender));
        let monitor = Self { spawned: Instant::now(), view, task, lifeline: None };
        let first = tokio::time::timeout(CONTROL_DEADLINE, monitor.until(|view| view.update.is_some())).await;
        let view = first.map_err(|_| {
            Error::new(ErrorKind::Engine, format!("the monitor did not answer within {CONTROL_DEADLINE:?}"))
        })?;
        Ok(view.update.is_some().then_some(monitor))
    }

    /// Lets the box go on when this process has ended. One that another process started is not ours to let go.
    pub(crate) async fn release(&self) -> Result<()> {
        let Some(lifeline) = &self.lifeline else {
            return Err(Error::new(
                ErrorKind::InvalidState,
                "the box belongs to the program that started it",
            ));
        };
        // A byte has room: nothing else was sent since the configuration was read.
        lifeline.lock().await.write_all(&[RELEASE]).await.map_err(|e| {
            Error::new(ErrorKind::Stopped, "the monitor of the box does not listen any more").with_source(e)
        })
    }

    /// When this end of it was made.
    pub(crate) fn spawned(&self) -> Instant {
        self.spawned
    }

    pub(crate) fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Waits until the box runs or will not any more.
    pub(crate) async fn started(&self) -> View {
        self.until(|view| {
            matches!(view.state(), Some(State::Running { .. } | State::Paused { .. } | State::Stopping))
                || view.is_final()
        })
        .await
    }

    /// Waits until a box that is to restart has left the run that it was in.
    pub(crate) async fn left_running(&self) -> View {
        self.until(|view| {
            !matches!(
                view.state(),
                None | Some(State::Stopping | State::Running { .. } | State::Paused { .. })
            )
        })
        .await
    }

    /// Waits for the final state.
    pub(crate) async fn ended(&self) -> View {
        self.until(View::is_final).await
    }

    /// Waits until the monitor itself has ended, and with it everything that it made.
    pub(crate) async fn gone(&self) -> View {
        self.until(|_| false).await
    }

    /// Waits for the condition, or until nothing more will come.
    async fn until(&self, condition: impl Fn(&View) -> bool) -> View {
        let mut view = self.view.clone();
        let seen = view.wait_for(|v| v.over || condition(v)).await.map(|v| v.clone());
        // The sender lives in the task, which sets `over` before it drops it, unless it was aborted by our own drop.
        seen.unwrap_or_else(|_| View { over: true, ..self.view() })
    }
}

async fn follow_lifeline(mut lifeline: OwnedReadHalf, mut child: Child, sender: watch::Sender<View>) {
    loop {
        match frame::receive::<StatusUpdate, _>(&mut lifeline).await {
            Ok(Some(update)) => sender.send_modify(|view| view.advance(update)),
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(error = %error, "lost the lifeline to a monitor");
                break;
            }
        }
    }
    if let Err(error) = child.wait().await {
        tracing::warn!(error = %error, "cannot wait for a monitor");
    }
    sender.send_modify(|view| view.over = true);
}

async fn follow_control(mut connection: UnixStream, sender: watch::Sender<View>) {
    loop {
        match frame::receive::<Response, _>(&mut connection).await {
            Ok(Some(Response::Status(update))) => sender.send_modify(|view| view.advance(update)),
            Ok(Some(_)) | Ok(None) => break,
            Err(error) => {
                tracing::warn!(error = %error, "lost the connection to a monitor");
                break;
            }
        }
    }
    sender.send_modify(|view| view.over = true);
}

/// Connects to a box's control socket and sends a request; `None` when no monitor runs.
async fn request(files: &BoxFiles, request: &Request) -> Result<Option<UnixStream>> {
    use std::io::ErrorKind as Io;
    let failed = |e: std::io::Error| {
        Error::new(
            ErrorKind::Engine,
            format!("cannot reach the monitor at {}", files.control_socket().display()),
        )
        .with_source(e)
    };
    let talk = async {
        let path = match SocketPath::new(&files.control_socket()) {
            Ok(path) => path,
            Err(e) if e.kind() == Io::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let mut connection = match UnixStream::connect(path.path()).await {
            Ok(connection) => connection,
            // Or its monitor has closed the socket by the time that we look at the connection.
            Err(e) if matches!(e.kind(), Io::NotFound | Io::ConnectionRefused | Io::ConnectionReset) => {
                return Ok(None);
            }
            Err(e) => return Err(failed(e)),
        };
        match frame::send(&mut connection, request).await {
            Ok(()) => Ok(Some(connection)),
            Err(error) if error.is_hang_up() => Ok(None),
            Err(error) => {
                Err(Error::new(ErrorKind::Engine, "the monitor did not take a request").with_source(error))
            }
        }
    };
    let late = |_| failed(std::io::Error::from(Io::TimedOut));
    tokio::time::timeout(CONTROL_DEADLINE, talk).await.map_err(late)?
}

/// Asks a box's monitor to end the box, and waits for its final state. `None` when no monitor runs.
pub(crate) async fn stop(files: &BoxFiles, signal: u32, grace: Duration) -> Result<Option<State>> {
    let grace_millis = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    let Some(mut connection) = request(files, &Request::Stop { signal, grace_millis }).await? else {
        return Ok(None);
    };
    step::reached("library", "stop-asked");
    loop {
        // Bounded by the monitor: the grace, then its own limits on every step of the end.
        match frame::receive::<Response, _>(&mut connection).await {
            Ok(Some(Response::Status(update))) if update.state.is_final() => return Ok(Some(update.state)),
            Ok(Some(Response::Status(_))) => {}
            Ok(Some(Response::Refused { message })) => {
                return Err(Error::new(ErrorKind::InvalidState, format!("the box does not stop: {message}")));
            }
            Ok(Some(_)) | Ok(None) | Err(_) => return Ok(None),
        }
    }
}

/// Asks a box's monitor for something that it answers once, within `limit`. `None` when no monitor runs.
pub(crate) async fn ask(files: &BoxFiles, asked: &Request, limit: Duration) -> Result<Option<Response>> {
    let Some(mut connection) = request(files, asked).await? else { return Ok(None) };
    let lost = |why: &str| Err(Error::new(ErrorKind::Engine, format!("the monitor of the box {why}")));
    match tokio::time::timeout(limit, frame::receive::<Response, _>(&mut connection)).await {
        Err(_) => lost(&format!("did not answer within {limit:?}")),
        // It has ended between the two.
        Ok(Ok(None)) => Ok(None),
        Ok(Err(error)) if error.is_hang_up() => Ok(None),
        Ok(Err(error)) => lost("broke its answer off").map_err(|outer: Error| outer.with_source(error)),
        Ok(Ok(Some(response))) => Ok(Some(response)),
    }
}

/// What the files say about a box.
#[derive(Clone, Debug)]
pub(crate) enum Observed {
    /// It was never started.
    NeverStarted,
    /// A monitor runs.
    Live(StatusUpdate),
    /// It has ended in order, or its end has been recorded.
    Ended(StatusUpdate),
    /// Its monitor was killed, and nobody has recorded that yet. The state says so.
    Crashed(StatusUpdate),
}

impl Observed {
    pub(crate) fn update(&self) -> Option<&StatusUpdate> {
        match self {
            Self::NeverStarted => None,
            Self::Live(update) | Self::Ended(update) | Self::Crashed(update) => Some(update),
        }
    }

    pub(crate) fn state(&self) -> Option<&State> {
        self.update().map(|update| &update.state)
    }

    pub(crate) fn phase(&self) -> Phase {
        self.state().map_or(Phase::Created, State::phase)
    }
}

/// Finds out, from its files alone, what a box does.
pub(crate) fn observe(files: &BoxFiles) -> Result<Observed> {
    let first = match read_state(files)? {
        // The control socket is bound before the first state is written.
        Recorded::Nothing => return Ok(Observed::NeverStarted),
        Recorded::State(status) if status.update.state.is_final() => {
            return Ok(Observed::Ended(status.update));
        }
        Recorded::State(status) => status,
        // States are renamed into place whole: only a crash of the machine leaves less.
        Recorded::Damaged => {
            return Ok(Observed::Crashed(crashed(files, "the record of the box's state is damaged", None)));
        }
    };
    let path = SocketPath::new(&files.control_socket());
    if path.and_then(|path| StdUnixStream::connect(path.path())).is_ok() {
        return Ok(Observed::Live(first.update));
    }
    // It may have ended between the two looks.
    match read_state(files)? {
        Recorded::State(second) if second.update.state.is_final() => Ok(Observed::Ended(second.update)),
        Recorded::State(second) if second.boot_id != boot_id() => {
            let why = "the host went down while the box was not stopped";
            Ok(Observed::Crashed(crashed(files, why, Some(second.update))))
        }
        _ => Ok(Observed::Crashed(crashed(files, "the box's monitor was killed", Some(first.update)))),
    }
}

/// The state of a box whose monitor could not publish one.
fn crashed(files: &BoxFiles, why: &str, last: Option<StatusUpdate>) -> StatusUpdate {
    let ended = fs::metadata(files.state()).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut messages = vec![why.to_owned()];
    messages.extend(last.as_ref().map(|last| format!("it was {}", last.state.phase().name())));
    let error = ErrorRecord {
        kind: FailureKind::VmmLost,
        messages,
        hint: None,
        console_tail: tail::lines(&files.console_log()),
    };
    let (generation, restarts) = last.map_or((0, 0), |last| (last.generation, last.restarts));
    let state = State::Failed { error, ended_unix_nanos: unix_nanos(ended) };
    StatusUpdate { generation: generation + 1, restarts, state }
}

enum Recorded {
    Nothing,
    State(StatusFile),
    Damaged,
}

fn read_state(files: &BoxFiles) -> Result<Recorded> {
    let path = files.state();
    let Some(bytes) = read_bounded(&path, STATE_LIMIT)? else { return Ok(Recorded::Nothing) };
    match serde_json::from_slice::<StatusFile>(&bytes) {
        Ok(status) if status.version == VERSION => Ok(Recorded::State(status)),
        Ok(_) => Ok(Recorded::Damaged),
        Err(error) => {
            tracing::warn!(error = %error, path = %path.display(), "a state does not decode");
            Ok(Recorded::Damaged)
        }
    }
}

/// Nanoseconds since the Unix epoch, which fit until the year 2554.
pub(crate) fn unix_nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use boxlite_control::{EngineChoice, Run};
    use std::os::unix::net::UnixListener;

    fn with_state(state: State) -> (tempfile::TempDir, BoxFiles) {
        let folder = tempfile::tempdir().unwrap();
        let files = BoxFiles::new(folder.path());
        StatusFile::write(&files, &StatusUpdate { generation: 1, restarts: 2, state }).unwrap();
        (folder, files)
    }

    fn running() -> State {
        let run = Run {
            engine: EngineChoice::Qemu,
            vmm_pid: 2,
            started_unix_nanos: 3,
            health: None,
            ports: Vec::new(),
        };
        State::Running { run }
    }

    #[test]
    fn a_box_that_claims_to_run_without_a_monitor_has_crashed() {
        let (_folder, files) = with_state(running());
        fs::create_dir(files.logs()).unwrap();
        fs::write(files.console_log(), "first\nKernel panic\x1b[0m\n").unwrap();
        let Observed::Crashed(StatusUpdate {
            generation: 2,
            restarts: 2,
            state: State::Failed { error, .. },
        }) = observe(&files).unwrap()
        else {
            panic!("not crashed")
        };
        assert_eq!(error.messages, ["the box's monitor was killed", "it was running"]);
        assert_eq!(error.console_tail, ["first", "Kernel panic\\u{1b}[0m"]);
    }

    #[test]
    fn a_socket_file_that_nobody_listens_on_is_no_monitor() {
        let (_folder, files) = with_state(running());
        drop(UnixListener::bind(files.control_socket()).unwrap());
        assert!(matches!(observe(&files).unwrap(), Observed::Crashed(_)));
    }

    #[tokio::test]
    async fn a_request_that_a_monitor_ends_before_it_takes_it_finds_no_monitor() {
        let folder = tempfile::tempdir().unwrap();
        let files = BoxFiles::new(folder.path());
        // It is closed while the client connects, sends or waits for the answer: all of that time the client is in the
        // listener's queue.
        for steps in 0..20 {
            let listener = UnixListener::bind(files.control_socket()).unwrap();
            let asked = async {
                match steps % 2 {
                    0 => ask(&files, &Request::Stats, CONTROL_DEADLINE).await.unwrap().is_some(),
                    _ => Monitor::attach(&files).await.unwrap().is_some(),
                }
            };
            let closed = async {
                for _ in 0..steps / 2 {
                    tokio::task::yield_now().await;
                }
                drop(listener);
            };
            let (found, ()) = tokio::join!(asked, closed);
            assert!(!found, "{steps} steps");
            fs::remove_file(files.control_socket()).unwrap();
        }
    }

    #[test]
    fn a_monitor_that_listens_is_live() {
        let (_folder, files) = with_state(running());
        let _listener = UnixListener::bind(files.control_socket()).unwrap();
        assert_eq!(observe(&files).unwrap().phase(), Phase::Running);
        assert!(matches!(observe(&files).unwrap(), Observed::Live(_)));
    }

    #[test]
    fn a_box_of_an_earlier_boot_of_the_host_went_down_with_it() {
        let (_folder, files) = with_state(running());
        let text = fs::read_to_string(files.state()).unwrap().replace(boot_id(), "another boot");
        fs::write(files.state(), text).unwrap();
        let Observed::Crashed(update) = observe(&files).unwrap() else { panic!("not crashed") };
        let State::Failed { error, .. } = update.state else { panic!("not failed") };
        assert!(error.messages[0].contains("host"), "{error:?}");
    }

    #[test]
    fn a_box_without_a_state_was_never_started() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(observe(&BoxFiles::new(folder.path())).unwrap(), Observed::NeverStarted));
    }

    #[test]
    fn a_box_whose_state_is_damaged_has_crashed_and_can_still_be_removed() {
        let (_folder, files) = with_state(running());
        for damage in ["", "{", "{}"] {
            fs::write(files.state(), damage).unwrap();
            assert!(matches!(observe(&files).unwrap(), Observed::Crashed(_)), "{damage:?}");
        }
    }
}
