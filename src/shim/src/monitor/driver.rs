//! What the [`Machine`] has decided, done: the one owner of a running box.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use boxlite_control::{BoxFiles, EngineChoice, ErrorRecord, FailureKind, MonitorConfig, State};
use boxlite_portal::client::Portal;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::boot::FOR_A_BETTER_REASON;
use super::console::Tail;
use super::machine::{Action, Event, Failure, Machine, Verdict};
use super::publish::Publisher;
use super::vmm::Vmm;
use super::{agent, unix_nanos};

/// A running box, as the driver has it. Nothing else holds on to any of it.
#[derive(Debug)]
pub(super) struct Driver<'a> {
    pub(super) config: &'a MonitorConfig,
    pub(super) files: &'a BoxFiles,
    pub(super) engine: EngineChoice,
    pub(super) publisher: &'a Publisher,
    pub(super) vmm: Vmm,
    pub(super) sender: mpsc::Sender<Event>,
    pub(super) events: mpsc::Receiver<Event>,
}

impl Driver<'_> {
    /// Drives the box to its end. All processes of the machine have ended then.
    pub(super) async fn run(mut self) -> Verdict {
        let start = Instant::now();
        let boot_timeout = Duration::from_millis(self.config.boot_timeout_millis);
        let mut machine = Machine::new(Duration::ZERO, boot_timeout, self.config.auto_remove);
        let mut calls =
            Calls { portal: Arc::default(), running: JoinSet::new(), events: self.sender.clone() };
        loop {
            let deadline = machine.deadline();
            let event = tokio::select! {
                // What the agent said before its machine ended counts.
                biased;
                Some(event) = self.events.recv() => event,
                status = self.vmm.gone() => Event::VmmGone(status),
                () = sleep_until(start + deadline.unwrap_or_default()), if deadline.is_some() => Event::Deadline,
            };
            tracing::debug!(?event, "an event");
            for action in machine.next(event, start.elapsed()) {
                tracing::debug!(?action, "an action");
                match action {
                    Action::Finish(verdict) => return verdict,
                    action => self.act(action, &mut calls),
                }
            }
        }
    }

    fn act(&mut self, action: Action, calls: &mut Calls) {
        match action {
            Action::PublishStep(step) => self.publisher.publish(State::Starting { step }),
            Action::StartContainer => calls.start(self.files.clone(), self.config.container.clone()),
            Action::PublishRunning => {
                self.publisher.publish(State::Running {
                    engine: self.engine,
                    vmm_pid: self.vmm.pid(),
                    started_unix_nanos: unix_nanos(),
                });
                calls.wait_for_main();
            }
            Action::PublishStopping => self.publisher.publish(State::Stopping),
            Action::ShutDown { signal, grace, drain } => {
                calls.shut_down(signal, grace, drain, self.config.auto_remove);
            }
            Action::ShortenDrain(drain) => calls.shorten_drain(drain, self.config.auto_remove),
            Action::KillMain => calls.kill_main(),
            Action::KillVmm => self.vmm.kill(),
            // The loop has taken it.
            Action::Finish(_) => {}
        }
    }
}

/// The state that a box with this verdict has. `tail` is what its console said last.
pub(super) fn final_state(verdict: Verdict, tail: &Tail) -> State {
    let ended_unix_nanos = unix_nanos();
    match verdict {
        Verdict::Stopped(exit) => State::Stopped { exit, ended_unix_nanos },
        Verdict::Failed(Failure { kind, messages, hint }) => {
            let console_tail = match kind {
                FailureKind::Boot | FailureKind::VmmLost => tail.lines(),
                _ => Vec::new(),
            };
            State::Failed { error: ErrorRecord { kind, messages, hint, console_tail }, ended_unix_nanos }
        }
    }
}

/// Calls of the agent that are under way. They end with this value.
struct Calls {
    /// There from the time when the container has started.
    portal: Arc<OnceLock<Portal>>,
    running: JoinSet<()>,
    events: mpsc::Sender<Event>,
}

impl Calls {
    /// Makes a call and reports what came of it. Nobody takes the report once the box has ended.
    fn spawn(&mut self, call: impl Future<Output = Option<Event>> + Send + 'static) {
        // Calls that have ended are forgotten here: there are only a handful in the life of a box.
        while self.running.try_join_next().is_some() {}
        let events = self.events.clone();
        self.running.spawn(async move {
            if let Some(event) = call.await {
                drop(events.send(event).await);
            }
        });
    }

    fn start(&mut self, files: BoxFiles, container: boxlite_control::ContainerSpec) {
        let slot = Arc::clone(&self.portal);
        self.spawn(async move {
            match agent::start(&files, &container).await {
                Ok(portal) => {
                    slot.get_or_init(|| portal);
                    Some(Event::Started)
                }
                Err(failure) => {
                    if failure.kind == FailureKind::Boot {
                        sleep(FOR_A_BETTER_REASON).await;
                    }
                    Some(Event::Failed(failure))
                }
            }
        });
    }

    fn wait_for_main(&mut self) {
        let Some(portal) = self.portal.get().cloned() else { return };
        self.spawn(async move {
            match agent::wait_for_main(&portal).await {
                Ok(exit) => Some(Event::MainEnded(exit)),
                Err(causes) => {
                    sleep(FOR_A_BETTER_REASON).await;
                    Some(Event::PortalLost(causes))
                }
            }
        });
    }

    fn shut_down(&mut self, signal: u32, grace: Duration, drain: Duration, discard: bool) {
        let Some(portal) = self.portal.get().cloned() else { return };
        self.spawn(async move {
            match agent::shut_down(&portal, signal, grace, drain, discard).await {
                Ok(exit) => Some(Event::ShutDown(exit)),
                Err(causes) => {
                    tracing::warn!(causes = causes.join(": "), "the agent did not end the box");
                    sleep(FOR_A_BETTER_REASON).await;
                    Some(Event::ShutDownFailed(causes))
                }
            }
        });
    }

    /// The answer is that of the call before, which reports it.
    fn shorten_drain(&mut self, drain: Duration, discard: bool) {
        let Some(portal) = self.portal.get().cloned() else { return };
        self.spawn(async move {
            if let Err(causes) = agent::shut_down(&portal, 0, Duration::ZERO, drain, discard).await {
                tracing::warn!(causes = causes.join(": "), "the agent could not be hastened");
            }
            None
        });
    }

    fn kill_main(&mut self) {
        let Some(portal) = self.portal.get().cloned() else { return };
        self.spawn(async move {
            if let Err(causes) = agent::kill_main(&portal).await {
                tracing::warn!(causes = causes.join(": "), "the agent did not kill the main command");
            }
            None
        });
    }
}
