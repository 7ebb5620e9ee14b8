//! One box, as a handle: what it is, and the commands that run in it. What becomes of it as a whole is in `lifecycle`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use boxlite_control::{Admission, BoxFiles, Order, Phase, admit, step};
use boxlite_portal::client::Portal;
use boxlite_portal::{MAIN, v1};
use tracing::{Instrument, info_span};

use crate::begin::Begun;
use crate::command::BoxCommand;
use crate::error::{Error, ErrorKind, Result};
use crate::execution::{Execution, OnDrop};
use crate::home::new_id;
use crate::info::BoxInfo;
use crate::launch::StartHow;
use crate::link::{Connected, Link};
use crate::monitor::{Monitor, Observed, View};
use crate::record::BoxRecord;
use crate::rpc;
use crate::runtime::RuntimeInner;
use crate::stats::count;
use crate::ulimit::Ulimit;

/// A handle to a box. Cheap to clone. The box goes on when a handle is dropped; see [`BoxOptions::detach`] for what
/// ends it.
///
/// [`BoxOptions::detach`]: crate::BoxOptions::detach
#[derive(Clone, Debug)]
pub struct LiteBox {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) runtime: Arc<RuntimeInner>,
    record: BoxRecord,
    pub(crate) files: BoxFiles,
    pub(crate) link: Link,
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
                link: Link::new(&files.portal_socket()),
                files,
                monitor: Mutex::new(None),
            }),
        }
    }

    /// The box's id: 12 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.inner.record.id
    }

    /// What the box was asked to be when this handle was made.
    pub(crate) fn record(&self) -> &BoxRecord {
        &self.inner.record
    }

    /// The box's name when this handle was made, if it had one then.
    pub fn name(&self) -> Option<&str> {
        self.inner.record.name.as_deref()
    }

    /// The signal that stops its main command, as a Linux number.
    pub fn stop_signal(&self) -> u32 {
        self.record().stop_signal
    }

    /// How long its main command may take to end after that signal.
    pub fn stop_timeout(&self) -> Duration {
        Duration::from_millis(self.record().stop_grace_millis)
    }

    /// The box as it is now.
    ///
    /// # Errors
    /// When the box has been removed, or its files cannot be read.
    pub fn info(&self) -> Result<BoxInfo> {
        if self.inner.files.folder().is_dir() {
            let record = self.inner.runtime.boxes.get(self.id())?.unwrap_or_else(|| self.record().clone());
            // What a monitor publishes is in its file before anybody is told, so nothing is newer.
            return Ok(BoxInfo::new(&record, self.inner.runtime.look(&record)?.update()));
        }
        // A monitor of ours knows the last of a box that has removed itself.
        match self.own_monitor().map(|monitor| monitor.view()) {
            Some(View { update: Some(update), .. }) => Ok(BoxInfo::new(self.record(), Some(&update))),
            _ => Err(self.removed()),
        }
    }

    /// What the box does now.
    pub(crate) fn look(&self) -> Result<Observed> {
        if !self.inner.files.folder().is_dir() {
            return Err(self.removed());
        }
        self.inner.runtime.look(self.record())
    }

    /// The monitor that this runtime started last.
    pub(crate) fn own_monitor(&self) -> Option<Arc<Monitor>> {
        let mut seen = self.inner.monitor.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = self.inner.runtime.monitor(self.id()) {
            *seen = Some(current);
        }
        seen.clone()
    }

    pub(crate) fn removed(&self) -> Error {
        Error::new(ErrorKind::NotFound, format!("box {} has been removed", self.id()))
    }

    /// An error on the way may only be how the removal of the box by another program looks from here.
    pub(crate) fn unless_removed(&self, error: Error) -> Error {
        let looks_like_it = matches!(
            error.kind(),
            ErrorKind::Storage
                | ErrorKind::Engine
                | ErrorKind::Portal
                | ErrorKind::Stopped
                | ErrorKind::InvalidState
        );
        // The failure of a box that removes itself is what its caller wants to know.
        if looks_like_it && !self.record().auto_remove && !self.inner.files.folder().is_dir() {
            return self.removed().with_source(error);
        }
        error
    }

    /// The error of an order that the state of the box does not allow.
    pub(crate) fn refused(&self, refusal: boxlite_control::Refusal) -> Error {
        let kind = match refusal.phase {
            Phase::Stopped | Phase::Dormant | Phase::Failed => ErrorKind::Stopped,
            _ => ErrorKind::InvalidState,
        };
        let error = Error::new(kind, format!("box {}: {refusal}", self.id()));
        match refusal.hint() {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }

    /// Runs a command in the box. A box that was only created, or was stopped because it was idle, is started for it (see
    /// [`BoxOptions::auto_resume`](crate::BoxOptions::auto_resume)).
    ///
    /// # Errors
    /// When the box has ended or is paused, the command cannot be started (see [`Error::start_failure`]), or the box does
    /// not answer.
    pub async fn exec(&self, command: BoxCommand) -> Result<Execution> {
        self.exec_with(command, StartHow::default()).await
    }

    /// As [`LiteBox::exec`]; a box that is started for it goes on when this process ends, whatever it was created for.
    ///
    /// # Errors
    /// As [`LiteBox::exec`].
    pub async fn exec_detached(&self, command: BoxCommand) -> Result<Execution> {
        self.exec_with(command, StartHow { detach: true, ..StartHow::default() }).await
    }

    async fn exec_with(&self, command: BoxCommand, how: StartHow) -> Result<Execution> {
        command.validate()?;
        self.ready(Order::Exec, how).await?;
        let span = info_span!("exec", id = self.id(), command = command.command);
        let outcome =
            self.exec_now(command).instrument(span).await.map_err(|error| self.unless_removed(error));
        let counters = &self.inner.runtime.counters;
        count(if outcome.is_ok() { &counters.commands } else { &counters.exec_errors });
        outcome
    }

    /// Brings the box into a state in which such an order goes, or says why it cannot be.
    pub(crate) async fn ready(&self, order: Order, how: StartHow) -> Result<()> {
        let phase = self.look()?.phase();
        match admit(phase, order) {
            Admission::Refuse(refusal) => Err(self.refused(refusal)),
            Admission::AfterStart if phase == Phase::Dormant && !self.record().auto_resume => {
                Err(self.refused(boxlite_control::Refusal { phase, order }))
            }
            Admission::AfterStart => self.start_with(how).await,
            Admission::Go | Admission::Already | Admission::AfterEnd => Ok(()),
        }
    }

    async fn exec_now(&self, command: BoxCommand) -> Result<Execution> {
        let id = new_id()?;
        let timeout = command.timeout.map_or(0, |t| u64::try_from(t.as_millis().max(1)).unwrap_or(u64::MAX));
        let request = v1::ExecRequest {
            execution_id: id.clone(),
            process: Some(self.process(&command)),
            timeout_millis: timeout,
            quiet: false,
            keep_orphans: command.keep_orphans,
            detached: command.detach,
            capabilities_add: command.cap_add.clone(),
            capabilities_drop: command.cap_drop.clone(),
        };
        let link = self.inner.link.clone();
        let stdin = (command.stdin || command.tty.is_some()).then_some(OnDrop::Close);
        let whole = !command.detach;
        let (connected, begun) = self.call_exec(request).await?;
        step::reached("library", "exec-asked");
        match begun {
            Begun::Started(head) => Ok(Execution::attach(link, &connected, id, stdin, head, whole)),
            Begun::Failed(failure) => Err(rpc::not_started(&command.command, &failure)),
        }
    }

    /// Asks for an execution; once more on a new connection when the one that was there has broken. That starts nothing
    /// twice, since the id is ours.
    async fn call_exec(&self, request: v1::ExecRequest) -> Result<(Connected, Begun)> {
        let mut again = true;
        loop {
            let connected = self.connected().await?;
            step::reached("library", "exec-connected");
            // The head of the output comes along where somebody is there for it. What was begun before is attached to.
            let old = connected.portal.version() < boxlite_portal::version::FILES;
            let begun = if request.detached || !again || old {
                Begun::exec(&connected, request.clone()).await
            } else {
                Begun::run(&connected, request.clone()).await
            };
            match begun {
                Ok(begun) => return Ok((connected, begun)),
                Err(error) if error.kind() == ErrorKind::Portal => {
                    self.inner.link.lost(&connected);
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
            terminal: command
                .tty
                .map(|(rows, columns)| v1::TerminalSize { rows: rows.into(), columns: columns.into() }),
            stdin: command.stdin || command.tty.is_some(),
            rlimits: command.ulimits.iter().map(Ulimit::to_wire).collect(),
        }
    }

    /// Attaches to the main command: to what it writes from now on, and what was kept of what it wrote last. Its standard
    /// input stays open when the writer is dropped.
    ///
    /// # Errors
    /// When the box does not run, or does not answer.
    pub async fn attach(&self) -> Result<Execution> {
        self.ready(Order::Attach, StartHow::default()).await?;
        self.attach_now().await
    }

    /// Attaches to a command by its id, from any process: to what it writes from now on, and what was kept of what it
    /// wrote last, at most 256 KiB of each stream. Its standard input, where it has one that nobody else writes to, can
    /// be written, and stays open when the writer is dropped. An id of a command that has ended gives its last output and its
    /// exit, as long as the box remembers it: the last 256 are.
    ///
    /// # Errors
    /// When the box does not run, does not know the id, or does not answer.
    pub async fn attach_to(&self, execution_id: &str) -> Result<Execution> {
        if execution_id == MAIN {
            return self.attach().await;
        }
        self.ready(Order::Attach, StartHow::default()).await?;
        let mut again = true;
        let connected = loop {
            let connected = self.connected().await?;
            // Whether it is there, before streams are opened whose error would come later.
            let request = v1::SignalRequest { execution_id: execution_id.to_owned(), signal: 0, all: false };
            let mut call = connected.portal.execution();
            match rpc::call("cannot attach", call.signal(request)).await {
                Err(error) if error.kind() == ErrorKind::Portal && std::mem::take(&mut again) => {
                    self.inner.link.lost(&connected);
                }
                // It has ended, or the agent knows no signal 0; in any case it knows the execution.
                Ok(_) => break connected,
                Err(error)
                    if matches!(error.kind(), ErrorKind::InvalidState | ErrorKind::InvalidArgument) =>
                {
                    break connected;
                }
                Err(error) => return Err(error),
            }
        };
        let stdin = Some(OnDrop::LeaveOpen);
        Ok(Execution::attach(
            self.inner.link.clone(),
            &connected,
            execution_id.to_owned(),
            stdin,
            None,
            false,
        ))
    }

    pub(crate) async fn attach_now(&self) -> Result<Execution> {
        // On a connection of its own: one that was kept may belong to a machine that has ended.
        self.forget_portal();
        let connected = self.connected().await?;
        let stdin = self.record().container.main.stdin.then_some(OnDrop::LeaveOpen);
        Ok(Execution::attach(self.inner.link.clone(), &connected, MAIN.to_owned(), stdin, None, false))
    }

    /// The way to its agent.
    pub(crate) fn link(&self) -> &Link {
        &self.inner.link
    }

    /// A connection to its agent that has just answered: what was kept may have broken since.
    pub(crate) async fn live(&self) -> Result<Portal> {
        self.inner.link.live().await.map_err(|cause| self.unreachable(cause))
    }

    /// The connection to its agent.
    pub(crate) async fn connected(&self) -> Result<Connected> {
        self.inner.link.portal().await.map_err(|cause| self.unreachable(cause))
    }

    /// Why the portal cannot be reached: because the box does not run, most of the time.
    pub(crate) fn unreachable(&self, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
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

    /// The next call makes a connection of its own.
    pub(crate) fn forget_portal(&self) {
        self.inner.link.forget();
    }
}
