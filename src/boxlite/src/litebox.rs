//! One box, as a handle.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use boxlite_control::{BoxFiles, Exit, FailureKind, SocketPath, State};
use boxlite_portal::client::Portal;
use boxlite_portal::{MAIN, v1};

use crate::command::BoxCommand;
use crate::error::{Error, ErrorKind, Result};
use crate::execution::{Execution, OnDrop};
use crate::home::new_id;
use crate::info::{BoxInfo, exit_code, failure};
use crate::monitor::{self, Monitor, Observed, View};
use crate::record::BoxRecord;
use crate::rpc;
use crate::runtime::{RELEASE, RuntimeInner, blocking};

/// How long a box may take to end after it was asked to, beyond the grace of its main command: its disk is written out,
/// its machine killed. The monitor keeps the bounds; this one only catches a monitor that hangs.
const END_DEADLINE: Duration = Duration::from_secs(240);
/// SIGTERM, the same on every Linux.
const SIGTERM: u32 = 15;

/// Why this call did not start the box.
enum StartError {
    /// It runs: somebody else was quicker.
    AlreadyRunning,
    Other(Error),
}

impl From<Error> for StartError {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl StartError {
    fn told(self, id: &str) -> Error {
        match self {
            Self::AlreadyRunning => Error::new(ErrorKind::InvalidState, format!("box {id} runs already")),
            Self::Other(error) => error,
        }
    }
}

/// One step of the start of a box.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StartStep {
    /// What was done, in a word.
    pub name: String,
    /// How long it took.
    pub took: Duration,
}

/// A handle to a box. Cheap to clone. The box goes on when a handle is dropped; see [`BoxOptions::detach`] for what
/// ends it.
///
/// [`BoxOptions::detach`]: crate::BoxOptions::detach
#[derive(Clone, Debug)]
pub struct LiteBox {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    runtime: Arc<RuntimeInner>,
    record: BoxRecord,
    files: BoxFiles,
    /// The connection that the last call used. Only looked at and replaced under the lock, never used under it.
    portal: Mutex<Option<Portal>>,
    /// The last monitor that this handle has seen at work: it knows the end of a box that has removed itself.
    monitor: Mutex<Option<Arc<Monitor>>>,
}

impl LiteBox {
    pub(crate) fn new(runtime: Arc<RuntimeInner>, record: BoxRecord) -> Self {
        let files = runtime.home.files(&record.id);
        Self {
            inner: Arc::new(Inner {
                runtime,
                record,
                files,
                portal: Mutex::new(None),
                monitor: Mutex::new(None),
            }),
        }
    }

    /// The box's id: 12 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.inner.record.id
    }

    /// The box's name, when it was given one.
    pub fn name(&self) -> Option<&str> {
        self.inner.record.name.as_deref()
    }

    /// The box as it is now.
    ///
    /// # Errors
    /// When the box has been removed, or its files cannot be read.
    pub fn info(&self) -> Result<BoxInfo> {
        let here = self.inner.files.folder().is_dir();
        // A monitor of ours that is at work knows best. One that has ended knows the last of a box that has removed
        // itself; of any other somebody else may have started a new machine since.
        if let Some(View { update: Some(update), over, .. }) =
            self.own_monitor().map(|monitor| monitor.view())
            && (!over || !here)
        {
            return Ok(BoxInfo::new(&self.inner.record, Some(&update.state)));
        }
        if !here {
            return Err(self.removed());
        }
        Ok(BoxInfo::new(&self.inner.record, monitor::observe(&self.inner.files)?.state()))
    }

    /// The monitor that this runtime started last.
    fn own_monitor(&self) -> Option<Arc<Monitor>> {
        let mut seen = self.inner.monitor.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = self.inner.runtime.monitor(self.id()) {
            *seen = Some(current);
        }
        seen.clone()
    }

    fn removed(&self) -> Error {
        Error::new(ErrorKind::NotFound, format!("box {} has been removed", self.id()))
    }

    /// Starts the box, unless it runs, and returns when its main command runs.
    ///
    /// # Errors
    /// When no engine works, the machine does not come up in time, or the main command cannot be started.
    pub async fn start(&self) -> Result<()> {
        self.start_with(false).await
    }

    /// Starts the box with its main command attached: none of its output is lost or made before it is read.
    ///
    /// # Errors
    /// As [`LiteBox::start`], and when the box runs already.
    pub async fn start_attached(&self) -> Result<Execution> {
        self.start_with(true).await?;
        self.attach().await
    }

    /// The steps of the last start that this runtime made, in order, each with the time until the next one began; the
    /// first is the start of the monitor. Empty when it did not start the box, or the box does not run yet.
    pub fn start_steps(&self) -> Vec<StartStep> {
        let Some(monitor) = self.own_monitor() else { return Vec::new() };
        let arrived = monitor.view().arrived;
        let first = [(monitor.spawned(), "spawn".to_owned())];
        let all: Vec<_> = first.into_iter().chain(arrived).collect();
        let pairs = all.iter().zip(all.iter().skip(1));
        pairs.map(|((at, name), (next, _))| StartStep { name: name.clone(), took: *next - *at }).collect()
    }

    async fn start_with(&self, await_attach: bool) -> Result<()> {
        match self.start_once(await_attach).await {
            // Another process was quicker: its start is as good as ours.
            Err(StartError::AlreadyRunning) if !await_attach => {
                match Monitor::attach(&self.inner.files).await? {
                    Some(other) => self.until_started(&other).await.map_err(|error| error.told(self.id())),
                    None => Err(StartError::AlreadyRunning.told(self.id())),
                }
            }
            outcome => outcome.map_err(|error| error.told(self.id())),
        }
    }

    async fn start_once(&self, await_attach: bool) -> Result<(), StartError> {
        let monitor = {
            let gate = self.inner.runtime.gate(self.id());
            let _starting = gate.lock().await;
            match self.monitor().await? {
                Some(_) if await_attach => return Err(StartError::AlreadyRunning),
                Some(monitor) => monitor,
                None => {
                    self.forget_portal();
                    self.inner.runtime.start(&self.inner.record, await_attach).await?
                }
            }
        };
        self.until_started(&monitor).await
    }

    async fn until_started(&self, monitor: &Monitor) -> Result<(), StartError> {
        // The monitor keeps the boot time-out; this one only catches a monitor that hangs.
        let limit = self.inner.runtime.boot_timeout.saturating_add(END_DEADLINE);
        let view = tokio::time::timeout(limit, monitor.started()).await.map_err(|_| {
            Error::new(ErrorKind::Engine, format!("box {} did not start within {limit:?}", self.id()))
        })?;
        match view.update.map(|update| update.state) {
            // A short main command may be over by now: it has started.
            Some(State::Running { .. } | State::Stopping | State::Stopped { exit: Some(_), .. }) => Ok(()),
            Some(State::Failed { error, .. }) => {
                // The failure is the answer; what the monitor made must be gone before the caller goes on.
                self.settle(monitor).await;
                if error.kind == FailureKind::AlreadyRunning {
                    return Err(StartError::AlreadyRunning);
                }
                Err(failure(self.id(), error).into())
            }
            Some(State::Stopped { exit: None, .. }) => {
                Err(Error::new(ErrorKind::Stopped, format!("box {} was stopped while it started", self.id()))
                    .into())
            }
            Some(State::Starting { .. }) | None => {
                let error = Error::new(
                    ErrorKind::Engine,
                    format!("the monitor of box {} ended unexpectedly", self.id()),
                );
                Err(error.with_details(self.inner.runtime.shim_log_tail(&self.inner.files)).into())
            }
        }
    }

    /// The monitor of the running box: our own, or somebody else's; `None` when it does not run.
    async fn monitor(&self) -> Result<Option<Arc<Monitor>>> {
        if let Some(own) = self.own_monitor() {
            let view = own.view();
            if !view.over && !view.state().is_some_and(State::is_final) {
                return Ok(Some(own));
            }
            // The end of a machine has begun: a new one starts when nothing of it is left.
            self.settle(&own).await;
        }
        if !self.inner.files.folder().is_dir() {
            return Err(self.removed());
        }
        match monitor::observe(&self.inner.files)? {
            Observed::Live(_) => Ok(Monitor::attach(&self.inner.files).await?.map(Arc::new)),
            Observed::NeverStarted | Observed::Ended(_) | Observed::Crashed(_) => Ok(None),
        }
    }

    async fn settle(&self, monitor: &Monitor) {
        if tokio::time::timeout(END_DEADLINE, monitor.gone()).await.is_err() {
            tracing::warn!(id = self.id(), "a monitor does not end");
        }
    }

    /// Runs a command in the box, which is started when it never was.
    ///
    /// # Errors
    /// When the box has ended, the command cannot be started (see [`Error::start_failure`]), or the box does not
    /// answer.
    pub async fn exec(&self, command: BoxCommand) -> Result<Execution> {
        command.validate()?;
        if let Observed::NeverStarted = monitor::observe(&self.inner.files)? {
            self.start().await?;
        }
        let id = new_id()?;
        let timeout = command.timeout.map_or(0, |t| u64::try_from(t.as_millis().max(1)).unwrap_or(u64::MAX));
        let request = v1::ExecRequest {
            execution_id: id.clone(),
            process: Some(self.process(&command)),
            timeout_millis: timeout,
        };
        let (portal, answer) = self.call_exec(request).await?;
        match answer.outcome {
            Some(v1::exec_response::Outcome::Started(_)) => {
                Ok(Execution::attach(portal, id, command.stdin.then_some(OnDrop::Close)))
            }
            Some(v1::exec_response::Outcome::Failure(failure)) => {
                Err(rpc::not_started(&command.command, &failure))
            }
            None => Err(Error::new(ErrorKind::Portal, "the box gave an empty answer")),
        }
    }

    /// Asks for an execution; once more on a new connection when the one that was there has broken. That starts nothing
    /// twice, since the id is ours.
    async fn call_exec(&self, request: v1::ExecRequest) -> Result<(Portal, v1::ExecResponse)> {
        let mut again = true;
        loop {
            let portal = self.portal().await?;
            match rpc::call("cannot run a command", portal.execution().exec(request.clone())).await {
                Ok(answer) => return Ok((portal, answer)),
                Err(error) if error.kind() == ErrorKind::Portal => {
                    self.forget_portal();
                    if !again {
                        return Err(error);
                    }
                    again = false;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn process(&self, command: &BoxCommand) -> v1::ProcessSpec {
        let main = &self.inner.record.container.main;
        let mut env: Vec<(&str, &str)> = main.env.iter().filter_map(|entry| entry.split_once('=')).collect();
        for (name, value) in &command.env {
            env.retain(|(have, _)| have != name);
            env.push((name, value));
        }
        let args = [&command.command].into_iter().chain(&command.args);
        v1::ProcessSpec {
            args: args.map(|arg| arg.clone().into_bytes()).collect(),
            env: env.into_iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect(),
            cwd: command.working_dir.clone().unwrap_or_default().into_bytes(),
            user: command.user.clone().unwrap_or_default(),
            terminal: None,
            stdin: command.stdin,
            rlimits: Vec::new(),
        }
    }

    /// Attaches to the main command. Its standard input stays open when the writer is dropped.
    ///
    /// # Errors
    /// When the box does not run, or does not answer.
    pub async fn attach(&self) -> Result<Execution> {
        // On a connection of its own: one that was kept may belong to a machine that has ended.
        self.forget_portal();
        let portal = self.portal().await?;
        let stdin = self.inner.record.container.main.stdin.then_some(OnDrop::LeaveOpen);
        Ok(Execution::attach(portal, MAIN.to_owned(), stdin))
    }

    async fn portal(&self) -> Result<Portal> {
        let cached = self.inner.portal.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(portal) = cached {
            return Ok(portal);
        }
        let socket = self.inner.files.portal_socket();
        let connect = async {
            let path = SocketPath::new(&socket).map_err(|e| self.unreachable(Box::new(e)))?;
            let connected = Portal::connect(path.path(), rpc::BUILD, rpc::DEADLINE).await;
            connected.map_err(|e| self.unreachable(Box::new(e)))
        };
        let portal = connect.await?;
        *self.inner.portal.lock().unwrap_or_else(PoisonError::into_inner) = Some(portal.clone());
        Ok(portal)
    }

    /// Why the portal cannot be reached: because the box does not run, most of the time.
    fn unreachable(&self, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
        let status = match self.info() {
            Ok(info) => info.status,
            Err(error) => return error,
        };
        if status.is_active() {
            return Error::new(ErrorKind::Portal, format!("box {} cannot be reached", self.id()))
                .with_source(source);
        }
        Error::new(ErrorKind::Stopped, format!("box {} does not run: it is {}", self.id(), status.name()))
    }

    /// A connection that failed is not used again.
    fn forget_portal(&self) {
        *self.inner.portal.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Waits until the main command has ended, and returns its exit code: 0 to 255, or 128 plus the number of the
    /// signal that ended it.
    ///
    /// # Errors
    /// When the box failed, was never started, or has been removed.
    pub async fn wait(&self) -> Result<i32> {
        let state = match self.watched().await? {
            Some(monitor) => monitor.ended().await.update.map(|update| update.state),
            None => monitor::observe(&self.inner.files)?.state().cloned(),
        };
        match state {
            Some(State::Stopped { exit: Some(exit), .. }) => Ok(exit_code(exit)),
            Some(State::Stopped { exit: None, .. }) => Ok(exit_code(Exit::Signal(9))),
            Some(State::Failed { error, .. }) => Err(failure(self.id(), error)),
            Some(_) => {
                Err(Error::new(ErrorKind::Engine, format!("the monitor of box {} was lost", self.id())))
            }
            None => Err(Error::new(ErrorKind::InvalidState, format!("box {} was never started", self.id()))),
        }
    }

    /// Like [`Self::monitor`], but an ended one of ours counts as long as nobody has started the box again.
    async fn watched(&self) -> Result<Option<Arc<Monitor>>> {
        match self.own_monitor() {
            Some(own) if !own.view().over || !self.inner.files.folder().is_dir() => Ok(Some(own)),
            _ => self.monitor().await,
        }
    }

    /// Waits until nothing of a box that has ended is left running, and, for one that removes itself, nothing of it on
    /// disk. Waits for the end of the main command first when this runtime started the box.
    ///
    /// # Errors
    /// When it takes longer than 30 s after the end of the main command, or another process's box still runs.
    pub async fn wait_gone(&self) -> Result<()> {
        if let Some(monitor) = self.own_monitor() {
            monitor.ended().await;
            tokio::time::timeout(RELEASE, monitor.gone()).await.map_err(|_| {
                Error::new(ErrorKind::Engine, format!("the monitor of box {} does not end", self.id()))
            })?;
        }
        let (runtime, id) = (self.inner.runtime.clone(), self.id().to_owned());
        blocking(move || runtime.wait_released(&id)).await
    }

    /// Stops the box: SIGTERM, then SIGKILL after 10 s. A box that does not run is left as it is.
    ///
    /// # Errors
    /// When the monitor does not answer.
    pub async fn stop(&self) -> Result<()> {
        self.stop_with(SIGTERM, Duration::from_secs(10)).await
    }

    /// Stops the box with this signal (a Linux number; 0 for SIGKILL at once), then SIGKILL after the grace.
    ///
    /// # Errors
    /// When the monitor does not answer.
    pub async fn stop_with(&self, signal: u32, grace: Duration) -> Result<()> {
        let limit = grace.saturating_add(END_DEADLINE);
        let stopping = monitor::stop(&self.inner.files, signal, grace);
        let stopped = tokio::time::timeout(limit, stopping).await.map_err(|_| {
            Error::new(ErrorKind::Engine, format!("box {} did not stop within {limit:?}", self.id()))
        })?;
        stopped?;
        self.wait_gone().await
    }
}
