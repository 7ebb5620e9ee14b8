//! What becomes of a box as a whole: start, stop, pause, and what was asked of it.

use std::sync::Arc;
use std::time::Duration;

use boxlite_control::{
    Admission, EventKind, Exit, FailureKind, Order, Phase, Request, Response, RestartPolicy, State, Update,
    admit,
};
use tokio::time::sleep;
use tracing::{Instrument, info_span};

use crate::error::{Error, ErrorKind, Result};
use crate::execution::Execution;
use crate::info::{exit_code, failure};
use crate::launch::StartHow;
use crate::litebox::LiteBox;
use crate::monitor::{self, Monitor, Observed};
use crate::options::{validate_labels, validate_limit, validate_name, validate_size};
use crate::recovery::RELEASE;
use crate::runtime::blocking;
use crate::stats::count;
use crate::tail;
use crate::volume::VolumeSpec;

/// How long a box may take to end after it was asked to, beyond the grace of its main command: its disk is written out,
/// its machine killed. The monitor keeps the bounds; this one only catches a monitor that hangs.
const END_DEADLINE: Duration = Duration::from_secs(240);
/// How long a monitor may take for an order that it carries out at once.
const ORDER_DEADLINE: Duration = Duration::from_secs(15);
/// How long a monitor that does not listen yet is left alone.
const ASK_AGAIN: Duration = Duration::from_millis(10);
/// How often a start that finds the box in the hands of another monitor, which is gone a moment later, is tried again.
const RACES: usize = 8;
/// SIGKILL, the same on every Linux.
const SIGKILL: u32 = 9;

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

/// New settings of a box. What is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BoxUpdate {
    /// Virtual CPUs, 1 to 16, from the next start on.
    pub cpus: Option<u8>,
    /// Memory in MiB, at least 128, from the next start on.
    pub memory_mib: Option<u32>,
    /// Labels to set; one without a value is taken away. At once.
    pub labels: Vec<(String, Option<String>)>,
    /// The restart policy. At once.
    pub restart: Option<RestartPolicy>,
    /// See [`BoxOptions::auto_stop`](crate::BoxOptions::auto_stop); `Some(None)` takes the limit away. At once.
    pub auto_stop: Option<Option<Duration>>,
    /// See [`BoxOptions::max_duration`](crate::BoxOptions::max_duration); `Some(None)` takes the limit away. At once.
    pub max_duration: Option<Option<Duration>>,
    /// Volumes to add, from the next start on.
    pub add_volumes: Vec<VolumeSpec>,
    /// Places in the box whose volumes are taken away, from the next start on. That happens before others are added.
    pub remove_volumes: Vec<String>,
}

impl BoxUpdate {
    fn validate(&self) -> Result<()> {
        validate_size(self.cpus, self.memory_mib)?;
        validate_limit("auto-stop", self.auto_stop.flatten())?;
        validate_limit("maximum duration", self.max_duration.flatten())?;
        let labels = self.labels.iter().map(|(key, value)| (key.clone(), value.clone().unwrap_or_default()));
        validate_labels(&labels.collect())
    }

    /// What a monitor has to know of it.
    fn for_monitor(&self) -> Update {
        let limit = |limit: Option<Option<Duration>>| limit.map(millis);
        Update {
            name: None,
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            restart: self.restart,
            idle_timeout_millis: limit(self.auto_stop),
            max_duration_millis: limit(self.max_duration),
        }
    }
}

fn millis(limit: Option<Duration>) -> u64 {
    limit.map_or(0, |limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
}

impl LiteBox {
    /// Starts the box, unless it runs, and returns when its main command runs. One that waits to be restarted is started at
    /// once; one that is about to end is started again after its end.
    ///
    /// # Errors
    /// When no engine works, the machine does not come up in time, the main command cannot be started, or the box is
    /// paused.
    pub async fn start(&self) -> Result<()> {
        self.start_with(StartHow::default()).await
    }

    /// Starts the box as [`LiteBox::start`] does; it goes on when this process ends, whatever it was created for.
    ///
    /// # Errors
    /// As [`LiteBox::start`].
    pub async fn start_detached(&self) -> Result<()> {
        self.start_with(StartHow { detach: true, ..StartHow::default() }).await
    }

    /// Starts the box with its main command attached: none of its output is lost or made before it is read.
    ///
    /// # Errors
    /// As [`LiteBox::start`], and when the box runs already.
    pub async fn start_attached(&self) -> Result<Execution> {
        self.start_with(StartHow { await_attach: true, ..StartHow::default() }).await?;
        self.attach_now().await
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

    pub(crate) async fn start_with(&self, how: StartHow) -> Result<()> {
        let start = async {
            let mut outcome = self.start_once(how).await;
            for _ in 0..RACES {
                if !matches!(outcome, Err(StartError::AlreadyRunning)) {
                    break;
                }
                outcome = match Monitor::attach(&self.inner.files).await? {
                    Some(_) if how.await_attach => break,
                    // Another process was quicker: its start is as good as ours.
                    Some(other) => self.until_started(&other).await,
                    // The box has just ended, and its monitor is at its last work.
                    None => {
                        self.until_released().await?;
                        self.start_once(how).await
                    }
                };
            }
            outcome.map_err(|error| {
                count(&self.inner.runtime.counters.failed);
                self.unless_removed(error.told(self.id()))
            })
        };
        start.instrument(info_span!("start", id = self.id())).await
    }

    async fn start_once(&self, how: StartHow) -> Result<(), StartError> {
        let monitor = {
            let gate = self.inner.runtime.gate(self.id());
            let _starting = gate.lock().await;
            loop {
                let Some((monitor, phase)) = self.monitor().await? else {
                    self.forget_portal();
                    break self.inner.runtime.start(self.id(), how).await?;
                };
                match admit(phase, Order::Start) {
                    Admission::AfterEnd => self.settle(&monitor).await,
                    Admission::Refuse(refusal) => return Err(self.refused(refusal).into()),
                    _ if how.await_attach => return Err(StartError::AlreadyRunning),
                    Admission::Already | Admission::AfterStart => break monitor,
                    Admission::Go => {
                        self.order(&Request::Start, ORDER_DEADLINE).await?;
                        break monitor;
                    }
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
            Some(
                State::Running { .. }
                | State::Paused { .. }
                | State::Stopping
                | State::Restarting { .. }
                | State::Stopped { exit: Some(_), .. },
            ) => Ok(()),
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
                Err(error.with_details(tail::lines(&self.inner.files.shim_log())).into())
            }
        }
    }

    /// The monitor of a box that is at work, our own or somebody else's, and what it said last.
    async fn monitor(&self) -> Result<Option<(Arc<Monitor>, Phase)>> {
        if let Some(own) = self.own_monitor() {
            let view = own.view();
            if !view.over && !view.state().is_some_and(State::is_final) {
                let phase = view.state().map_or(Phase::Starting, State::phase);
                return Ok(Some((own, phase)));
            }
            // The end of a machine has begun: a new one starts when nothing of it is left.
            self.settle(&own).await;
        }
        match self.look()? {
            Observed::Live(_) => {
                let Some(other) = Monitor::attach(&self.inner.files).await? else { return Ok(None) };
                let phase = other.view().state().map_or(Phase::Starting, State::phase);
                Ok(Some((Arc::new(other), phase)))
            }
            Observed::NeverStarted | Observed::Ended(_) | Observed::Crashed(_) => Ok(None),
        }
    }

    /// Waits until no monitor has the box, or one runs it again.
    async fn until_released(&self) -> Result<()> {
        let (runtime, id) = (self.inner.runtime.clone(), self.id().to_owned());
        match blocking(move || runtime.wait_released(&id)).await {
            Err(error) if error.kind() != ErrorKind::InvalidState => Err(error),
            _ => Ok(()),
        }
    }

    async fn settle(&self, monitor: &Monitor) {
        if tokio::time::timeout(END_DEADLINE, monitor.gone()).await.is_err() {
            tracing::warn!(id = self.id(), "a monitor does not end");
        }
    }

    /// Gives the box's monitor an order, and waits for its answer. `None` when no monitor runs.
    pub(crate) async fn order(&self, request: &Request, limit: Duration) -> Result<Option<Response>> {
        let words = |message: &str| crate::rpc::shown(message);
        let answer = monitor::ask(&self.inner.files, request, limit).await;
        match answer.map_err(|error| self.unless_removed(error))? {
            Some(Response::Refused { message }) => {
                Err(Error::new(ErrorKind::InvalidState, format!("box {}: {}", self.id(), words(&message))))
            }
            Some(Response::Failed { message }) => {
                Err(Error::new(ErrorKind::Engine, format!("box {}: {}", self.id(), words(&message))))
            }
            response => Ok(response),
        }
    }

    /// Gives an order that only a box with a monitor can carry out.
    async fn order_live(&self, order: Order, request: Request) -> Result<()> {
        let phase = self.look()?.phase();
        if let Admission::Refuse(refusal) = admit(phase, order) {
            return Err(self.refused(refusal));
        }
        match self.order(&request, ORDER_DEADLINE).await? {
            Some(_) => Ok(()),
            // It has ended since we looked.
            None => match admit(self.look()?.phase(), order) {
                Admission::Refuse(refusal) => Err(self.refused(refusal)),
                _ => Err(Error::new(ErrorKind::Stopped, format!("box {} has ended meanwhile", self.id()))),
            },
        }
    }

    /// Stops the virtual CPUs of the box, and with them all that runs in it. Returns once they stand still, which takes a
    /// second at most. Memory, disk and connections stay as they are, until [`LiteBox::resume`] or [`LiteBox::stop`].
    ///
    /// # Errors
    /// When the box does not run, or its machine does not stand still.
    pub async fn pause(&self) -> Result<()> {
        self.order_live(Order::Pause, Request::Pause).await
    }

    /// Lets a paused box go on. Returns once its clock is right.
    ///
    /// # Errors
    /// When the box is not paused.
    pub async fn resume(&self) -> Result<()> {
        self.order_live(Order::Resume, Request::Resume).await
    }

    /// Sends a signal to the main command: a Linux number, 1 to 64. SIGKILL ends the box at once. A box whose main command
    /// ends by its stop signal or SIGKILL is not started again by its restart policy.
    ///
    /// # Errors
    /// When the number is none, the box does not run, or it does not answer.
    pub async fn kill(&self, signal: u32) -> Result<()> {
        if !(1..=64).contains(&signal) {
            return Err(Error::new(ErrorKind::InvalidArgument, format!("{signal} is no signal")));
        }
        if signal != SIGKILL {
            return self.order_live(Order::Signal, Request::Signal { signal }).await;
        }
        // Who kills means it, also where the main command could get no signal.
        let phase = self.look()?.phase();
        if !phase.is_live() {
            return Err(self.refused(boxlite_control::Refusal { phase, order: Order::Signal }));
        }
        self.stop_with(0, Duration::ZERO).await
    }

    /// Stops the box, if it runs, and starts it again; its disk stays as it is. Returns when its main command runs.
    ///
    /// # Errors
    /// As [`LiteBox::stop`] and [`LiteBox::start`].
    pub async fn restart(&self) -> Result<()> {
        let record = self.record();
        self.restart_with(record.stop_signal, Duration::from_millis(record.stop_grace_millis)).await
    }

    /// Restarts the box with this signal (a Linux number; 0 for SIGKILL at once), then SIGKILL after the grace.
    ///
    /// # Errors
    /// As [`LiteBox::restart`].
    pub async fn restart_with(&self, signal: u32, grace: Duration) -> Result<()> {
        let grace_millis = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        // By its own monitor, so that the box stays with the program that it belongs to. Listened to from before the
        // order on, so that no state is missed.
        let monitor = Monitor::attach(&self.inner.files).await?;
        let given = match &monitor {
            Some(_) => self.order(&Request::Restart { signal, grace_millis }, ORDER_DEADLINE).await?,
            None => None,
        };
        self.forget_portal();
        let (Some(monitor), Some(_)) = (monitor, given) else {
            return self.start_with(StartHow { detach: true, ..StartHow::default() }).await;
        };
        let limit = grace.saturating_add(END_DEADLINE);
        let again = async {
            // The run that it is in does not count.
            if monitor.left_running().await.is_final() {
                let message = format!("box {} was stopped while it was to start again", self.id());
                return Err(Error::new(ErrorKind::Stopped, message));
            }
            self.until_started(&monitor).await.map_err(|error| error.told(self.id()))
        };
        tokio::time::timeout(limit, again).await.map_err(|_| {
            Error::new(ErrorKind::Engine, format!("box {} did not start again within {limit:?}", self.id()))
        })?
    }

    /// Lets the box go on when the program ends that started it, as if it had been created to
    /// [`detach`](crate::BoxOptions::detach). One that is detached already stays so.
    ///
    /// # Errors
    /// `Stopped` when it does not run, `InvalidState` when another program started it, or when it has been removed. After any
    /// error it can be asked for again.
    pub async fn release(&self) -> Result<()> {
        if self.info()?.detach {
            return Ok(());
        }
        let refused = |kind, why: &str| Error::new(kind, format!("box {} {why}", self.id()));
        let monitor = self.own_monitor();
        let monitor = monitor.ok_or_else(|| {
            refused(ErrorKind::InvalidState, "belongs to the program that started it, which is another one")
        })?;
        let view = monitor.view();
        if view.over || view.is_final() {
            return Err(refused(ErrorKind::Stopped, "does not run any more"));
        }
        // The monitor first: a record that says more than it knows would keep us from asking again.
        monitor.release().await?;
        let (runtime, id) = (self.inner.runtime.clone(), self.id().to_owned());
        let change = move || Ok(runtime.boxes.update(&id, |record| record.detach = true)?);
        let record = blocking(change).await.map_err(|error| self.unless_removed(error))?;
        self.inner.runtime.tell(&record, EventKind::Updated);
        Ok(())
    }

    /// Changes what the box is asked to be.
    ///
    /// # Errors
    /// When a setting cannot be right, or the box has been removed.
    pub async fn update(&self, update: BoxUpdate) -> Result<()> {
        update.validate()?;
        let (runtime, id, change) = (self.inner.runtime.clone(), self.id().to_owned(), update.clone());
        let record = blocking(move || {
            if runtime.is_gone(&id) {
                return Err(Error::new(ErrorKind::NotFound, format!("box {id} has been removed")));
            }
            if change.restart.is_some_and(|restart| restart != RestartPolicy::No)
                && runtime.boxes.get(&id)?.is_some_and(|record| record.auto_remove)
            {
                let message = "a box that removes itself cannot have a restart policy";
                return Err(Error::new(ErrorKind::InvalidArgument, message));
            }
            // Under the lock under which volumes are removed.
            let _changing = runtime.home.lock()?;
            let volumes = runtime.changed_volumes(&id, &change)?;
            let changed = runtime.boxes.update(&id, |record| {
                if let Some(volumes) = volumes {
                    record.volumes = volumes;
                }
                record.cpus = change.cpus.unwrap_or(record.cpus);
                record.memory_mib = change.memory_mib.unwrap_or(record.memory_mib);
                record.restart = change.restart.unwrap_or(record.restart);
                record.idle_timeout_millis = change.auto_stop.map_or(record.idle_timeout_millis, millis);
                record.max_duration_millis = change.max_duration.map_or(record.max_duration_millis, millis);
                for (key, value) in &change.labels {
                    match value {
                        Some(value) => record.labels.insert(key.clone(), value.clone()),
                        None => record.labels.remove(key),
                    };
                }
            })?;
            Ok(changed)
        })
        .await?;
        // What is recorded counts from the next start on; a monitor that is at work counts it from now on.
        self.order(&Request::Update(update.for_monitor()), ORDER_DEADLINE).await?;
        self.inner.runtime.tell(&record, EventKind::Updated);
        Ok(())
    }

    /// Gives the box another name. Handles that are there keep the old one.
    ///
    /// # Errors
    /// When it is no name, or another box has it.
    pub async fn rename(&self, name: &str) -> Result<()> {
        validate_name(name)?;
        let (runtime, id, new) = (self.inner.runtime.clone(), self.id().to_owned(), name.to_owned());
        let before =
            blocking(move || Ok(runtime.boxes.rename(&id, &new, |other| runtime.is_gone(other))?)).await?;
        let update = Update { name: Some(name.to_owned()), ..Update::default() };
        self.order(&Request::Update(update), ORDER_DEADLINE).await?;
        let mut record = self.record().clone();
        record.name = Some(name.to_owned());
        self.inner.runtime.tell(&record, EventKind::Renamed { from: before });
        Ok(())
    }

    /// Waits until the box has come to its end, restarts by its policy included, and returns the exit code of its main
    /// command: 0 to 255, or 128 plus the number of the signal that ended it.
    ///
    /// # Errors
    /// When the box failed, was never started, or has been removed.
    pub async fn wait(&self) -> Result<i32> {
        let state = match self.watched().await? {
            Some(monitor) => monitor.ended().await.update.map(|update| update.state),
            None => self.look()?.state().cloned(),
        };
        match state {
            Some(State::Stopped { exit: Some(exit), .. }) => Ok(exit_code(exit)),
            Some(State::Stopped { exit: None, .. }) => Ok(exit_code(Exit::Signal(SIGKILL))),
            Some(State::Failed { error, .. }) => Err(failure(self.id(), error)),
            // Its monitor was killed while we waited: that is written down by whoever looks.
            Some(_) => match self.look()?.state().cloned() {
                Some(State::Failed { error, .. }) => Err(failure(self.id(), error)),
                _ => Err(Error::new(ErrorKind::Engine, format!("the monitor of box {} was lost", self.id()))),
            },
            None => Err(Error::new(ErrorKind::InvalidState, format!("box {} was never started", self.id()))),
        }
    }

    /// Like [`Self::monitor`], but an ended one of ours counts as long as nobody has started the box again.
    async fn watched(&self) -> Result<Option<Arc<Monitor>>> {
        match self.own_monitor() {
            Some(own) if !own.view().over || !self.inner.files.folder().is_dir() => Ok(Some(own)),
            _ => Ok(self.monitor().await?.map(|(monitor, _)| monitor)),
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

    /// Stops the box as it wants to be stopped: its stop signal, then SIGKILL after its stop time-out. A paused box goes on
    /// to its end. A box that does not run is left as it is.
    ///
    /// # Errors
    /// When the monitor does not answer.
    pub async fn stop(&self) -> Result<()> {
        self.stop_within(Duration::from_millis(self.record().stop_grace_millis)).await
    }

    /// Stops the box with its stop signal, then SIGKILL after this grace.
    ///
    /// # Errors
    /// As [`LiteBox::stop`].
    pub async fn stop_within(&self, grace: Duration) -> Result<()> {
        self.stop_with(self.record().stop_signal, grace).await
    }

    /// Stops the box with this signal (a Linux number; 0 for SIGKILL at once), then SIGKILL after the grace.
    ///
    /// # Errors
    /// As [`LiteBox::stop`].
    pub async fn stop_with(&self, signal: u32, grace: Duration) -> Result<()> {
        let stop = async {
            let limit = grace.saturating_add(END_DEADLINE);
            let late =
                || Error::new(ErrorKind::Engine, format!("box {} did not stop within {limit:?}", self.id()));
            let stopping = async {
                loop {
                    if monitor::stop(&self.inner.files, signal, grace).await?.is_some() {
                        count(&self.inner.runtime.counters.stopped);
                        return self.wait_gone().await;
                    }
                    match self.wait_gone().await {
                        // A monitor that had just begun did not listen yet: it is asked again.
                        Err(error) if error.kind() == ErrorKind::InvalidState => sleep(ASK_AGAIN).await,
                        gone => return gone,
                    }
                }
            };
            tokio::time::timeout(limit, stopping).await.map_err(|_| late())?
        };
        stop.instrument(info_span!("stop", id = self.id())).await
    }
}
