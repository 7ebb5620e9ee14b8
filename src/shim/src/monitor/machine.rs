//! One run of a box's machine, as a pure function.
//!
//! ```text
//!                                         Frozen            Resume
//!                                       ┌───────▶ Paused ──────────┐
//!                                       │            │             ▼
//!             Ready        Started      │  Thawed, Deadline    Resuming
//!   Booting ─────────▶ Starting ─────▶ Running ◀───────────────────┤
//!      │                   │              │                        │
//!      │                   │              │ MainEnded, Stop (from Paused and Resuming, too)
//!      │ Failed, Stop,     │              ▼          ShutDown          VmmGone
//!      │ Deadline          │           Ending ─────────────▶ Killing ───────▶ Ended
//!      │                   │              │   Deadline         ▲                ▲
//!      └───────────────────┴──────────────┴─ PortalLost ───────┘                │
//!      any of them ── VmmGone ──────────────────────────────────────────────────┘
//! ```
//!
//! * **Booting**: the kernel and the agent come up.
//! * **Starting**: the agent serves the portal and is told to make the container.
//! * **Running**: the main command runs.
//! * **Paused**: the virtual CPUs stand still.
//! * **Resuming**: they go on, and the guest is told what time it is.
//! * **Ending**: the agent has been asked to end the box in order.
//! * **Killing**: the VMM has been killed; its end is awaited. The verdict stands.
//! * **Ended**: nothing moves any more.
//!
//! [`Machine::next`] takes what has happened, changes the phase, and says what is to be done. It knows no clock, no socket
//! and no process; [`driver`](super::driver) has those. Times are counted from the start of the run. What follows a run is
//! decided in [`life`](super::life).

use std::mem;
use std::time::Duration;

use boxlite_control::{Exit, FailureKind};

/// SIGKILL, the same on every Linux.
const SIGKILL: u32 = 9;
/// How long attached streams may take to be read when a box is stopped.
const DRAIN: Duration = Duration::from_secs(10);
/// The same when the main command has ended by itself: whoever reads its output in his own time, such as a pager, gets all
/// of it. A stop shortens this.
const LONG_DRAIN: Duration = Duration::from_secs(24 * 60 * 60);
/// What the agent may take for the rest of its work, and the killing of processes, when it ends a box.
const SLACK: Duration = Duration::from_secs(5);
/// The same when only the drain was left to do.
const SHORT_SLACK: Duration = Duration::from_secs(1);
/// What the agent may take, after all that, to write out and unmount a disk that is kept: its memory may be full of what a
/// slow disk of the host has to take.
const FLUSH: Duration = Duration::from_secs(120);
/// How long a killed VMM may take to be gone.
const KILL: Duration = Duration::from_secs(20);
/// How long a guest may take to set its clock after a pause.
const RESUME: Duration = Duration::from_secs(5);
/// A grace beyond this is as good as endless.
const MOST_GRACE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Why a box failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    /// What happened, then its causes.
    pub(super) messages: Vec<String>,
    pub(super) hint: Option<String>,
}

/// How a box ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// In order. `None` when the main command was never started.
    Stopped(Option<Exit>),
    /// Not so.
    Failed(Failure),
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The boot goes on with this step.
    Step(String),
    /// The agent serves the portal.
    Ready,
    /// The main command runs.
    Started,
    /// The boot or the start came to nothing.
    Failed(Failure),
    /// The main command has ended.
    MainEnded(Exit),
    /// The virtual CPUs stand still.
    Frozen,
    /// Somebody wants them to go on.
    Resume,
    /// The guest has set its clock and goes on, or the attempt has failed.
    Thawed,
    /// The agent does not answer any more.
    PortalLost(Vec<String>),
    /// Somebody wants the box to end.
    Stop {
        /// For the main command; 0 kills at once.
        signal: u32,
        /// Between that signal and SIGKILL.
        grace: Duration,
    },
    /// The agent has ended the box and says how the main command ended.
    ShutDown(Option<Exit>),
    /// The agent could not be asked to, or did not answer, for these reasons.
    ShutDownFailed(Vec<String>),
    /// The VMM and all of its children have ended, in this way and for these reasons.
    VmmGone(Vec<String>),
    /// [`Machine::deadline`] has come.
    Deadline,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Publish that the box is starting, with this step.
    PublishStep(String),
    /// Connect to the portal; make and start the container. Answered by `Started` or `Failed`.
    StartContainer,
    /// Publish that the box is running, and wait for the main command. Answered by `MainEnded` or `PortalLost`.
    PublishRunning,
    /// Publish that the box is running again.
    PublishResumed,
    /// Publish that the box is paused.
    PublishPaused,
    /// Let the virtual CPUs go on.
    Thaw,
    /// Tell the guest the time, and let its container go on. Answered by `Thawed`.
    ThawGuest,
    /// Publish that the box is stopping.
    PublishStopping,
    /// Ask the agent to end the box. Answered by `ShutDown` or `ShutDownFailed`.
    ShutDown { signal: u32, grace: Duration, drain: Duration },
    /// Tell the agent that streams are read for this long at most, counted from the end of the main command. It has been
    /// asked to end the box before.
    ShortenDrain(Duration),
    /// Send SIGKILL to the main command.
    KillMain,
    /// Kill the VMM. Answered by `VmmGone`.
    KillVmm,
    /// The box has ended.
    Finish(Verdict),
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Booting { step: String, deadline: Duration },
    Starting { deadline: Duration },
    Running,
    Paused,
    Resuming { deadline: Duration },
    Ending { exit: Option<Exit>, kill_main_at: Option<Duration>, give_up_at: Duration },
    Killing { verdict: Verdict, deadline: Duration },
    Ended,
}

/// One box's life. See the module.
#[derive(Debug)]
pub(super) struct Machine {
    phase: Phase,
    boot_timeout: Duration,
    /// The disk is not used again, so that it does not matter what is on it.
    discard: bool,
}

impl Machine {
    /// A box whose VMM has just been started. With `discard` its disk is not used again after its end.
    pub(super) fn new(now: Duration, boot_timeout: Duration, discard: bool) -> Self {
        let deadline = now.saturating_add(boot_timeout);
        Self { phase: Phase::Booting { step: "kernel".to_owned(), deadline }, boot_timeout, discard }
    }

    /// When [`Event::Deadline`] is due.
    pub(super) fn deadline(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Booting { deadline, .. }
            | Phase::Starting { deadline }
            | Phase::Resuming { deadline }
            | Phase::Killing { deadline, .. } => Some(*deadline),
            Phase::Ending { kill_main_at, give_up_at, .. } => Some(kill_main_at.unwrap_or(*give_up_at)),
            Phase::Running | Phase::Paused | Phase::Ended => None,
        }
    }

    /// Whether the box has ended.
    #[cfg(test)]
    fn has_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Takes an event and says what is to be done. An event that comes too late, or for the second time, changes nothing.
    pub(super) fn next(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let (phase, actions) = match mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Booting { step, deadline } => self.booting(step, deadline, event, now),
            Phase::Starting { deadline } => self.starting(deadline, event, now),
            Phase::Running => self.running(event, now),
            Phase::Paused => self.paused(event, now),
            Phase::Resuming { deadline } => self.resuming(deadline, event, now),
            Phase::Ending { exit, kill_main_at, give_up_at } => {
                self.ending(exit, kill_main_at, give_up_at, event, now)
            }
            Phase::Killing { verdict, deadline } => killing(verdict, deadline, event, now),
            Phase::Ended => (Phase::Ended, Vec::new()),
        };
        self.phase = phase;
        actions
    }

    fn booting(&self, step: String, deadline: Duration, event: Event, now: Duration) -> (Phase, Vec<Action>) {
        match event {
            Event::Step(step) => {
                (Phase::Booting { step: step.clone(), deadline }, vec![Action::PublishStep(step)])
            }
            Event::Ready => (
                Phase::Starting { deadline },
                vec![Action::PublishStep("container".to_owned()), Action::StartContainer],
            ),
            Event::Deadline if now >= deadline => kill(now, Verdict::Failed(self.late(&step))),
            event => before_main(Phase::Booting { step, deadline }, event, now),
        }
    }

    fn starting(&self, deadline: Duration, event: Event, now: Duration) -> (Phase, Vec<Action>) {
        match event {
            Event::Started => (Phase::Running, vec![Action::PublishRunning]),
            Event::Deadline if now >= deadline => kill(now, Verdict::Failed(self.late("container"))),
            event => before_main(Phase::Starting { deadline }, event, now),
        }
    }

    fn late(&self, step: &str) -> Failure {
        Failure {
            kind: FailureKind::Boot,
            messages: vec![
                format!("the box did not start within {:?}", self.boot_timeout),
                format!("the last thing that it did was: {step}"),
            ],
            hint: Some("allow a longer boot time, or give the host less to do".to_owned()),
        }
    }

    fn running(&self, event: Event, now: Duration) -> (Phase, Vec<Action>) {
        match event {
            Event::MainEnded(exit) => {
                let give_up_at = now + LONG_DRAIN + SLACK + self.flush();
                let phase = Phase::Ending { exit: Some(exit), kill_main_at: None, give_up_at };
                let shut_down = Action::ShutDown { signal: 0, grace: Duration::ZERO, drain: LONG_DRAIN };
                (phase, vec![Action::PublishStopping, shut_down])
            }
            Event::Stop { signal, grace } => {
                let grace = effective(signal, grace);
                let (kill_main_at, give_up_at) = self.times(now, grace);
                let phase = Phase::Ending { exit: None, kill_main_at: Some(kill_main_at), give_up_at };
                (phase, vec![Action::PublishStopping, Action::ShutDown { signal, grace, drain: DRAIN }])
            }
            Event::PortalLost(causes) => {
                let mut messages = vec!["the agent in the box does not answer any more".to_owned()];
                messages.extend(causes);
                kill(now, Verdict::Failed(Failure { kind: FailureKind::VmmLost, messages, hint: None }))
            }
            Event::Frozen => (Phase::Paused, vec![Action::PublishPaused]),
            Event::VmmGone(causes) => finish(Verdict::Failed(lost(causes, "while the box ran"))),
            _ => (Phase::Running, Vec::new()),
        }
    }

    fn paused(&self, event: Event, now: Duration) -> (Phase, Vec<Action>) {
        match event {
            Event::Resume => {
                (Phase::Resuming { deadline: now + RESUME }, vec![Action::Thaw, Action::ThawGuest])
            }
            Event::VmmGone(causes) => finish(Verdict::Failed(lost(causes, "while the box was paused"))),
            // What was under way when the machine was stopped counts, and what ends it lets it go on to its end.
            event @ (Event::Stop { .. } | Event::MainEnded(_) | Event::PortalLost(_)) => {
                let (phase, mut actions) = self.running(event, now);
                actions.insert(0, Action::Thaw);
                (phase, actions)
            }
            _ => (Phase::Paused, Vec::new()),
        }
    }

    fn resuming(&self, deadline: Duration, event: Event, now: Duration) -> (Phase, Vec<Action>) {
        match event {
            Event::Thawed => (Phase::Running, vec![Action::PublishResumed]),
            Event::Deadline if now >= deadline => (Phase::Running, vec![Action::PublishResumed]),
            Event::Frozen | Event::Resume | Event::Deadline => (Phase::Resuming { deadline }, Vec::new()),
            event => match self.running(event, now) {
                (Phase::Running, _) => (Phase::Resuming { deadline }, Vec::new()),
                ended => ended,
            },
        }
    }

    fn ending(
        &self,
        exit: Option<Exit>,
        kill_main_at: Option<Duration>,
        give_up_at: Duration,
        event: Event,
        now: Duration,
    ) -> (Phase, Vec<Action>) {
        match event {
            Event::MainEnded(ended) => {
                let give_up_at = give_up_at.min(now + DRAIN + SLACK + self.flush());
                (Phase::Ending { exit: exit.or(Some(ended)), kill_main_at: None, give_up_at }, Vec::new())
            }
            // A second stop shortens the grace of the first and never lengthens it.
            Event::Stop { signal, grace } => {
                let grace = effective(signal, grace);
                if let Some(kill_main_at) = kill_main_at {
                    let (kill_sooner_at, give_up_sooner_at) = self.times(now, grace);
                    let kill_main_at = Some(kill_main_at.min(kill_sooner_at));
                    let give_up_at = give_up_at.min(give_up_sooner_at);
                    return (Phase::Ending { exit, kill_main_at, give_up_at }, Vec::new());
                }
                // The main command has had its end, so the grace is for those who read its output.
                let sooner = now.saturating_add(grace).saturating_add(SHORT_SLACK + self.flush());
                let actions =
                    if sooner < give_up_at { vec![Action::ShortenDrain(grace)] } else { Vec::new() };
                (Phase::Ending { exit, kill_main_at, give_up_at: give_up_at.min(sooner) }, actions)
            }
            Event::ShutDown(ended) => kill(now, stopped(ended.or(exit))),
            Event::ShutDownFailed(causes) => kill(now, self.unanswered(exit, causes)),
            Event::VmmGone(causes) => finish(self.unanswered(exit, causes)),
            Event::Deadline if now >= give_up_at => kill(
                now,
                self.unanswered(exit, vec!["the agent in the box took too long to end it".to_owned()]),
            ),
            // The agent kills the main command by itself when the grace that it knows of is over. This is for one that was
            // shortened since, and for an agent that does not keep its word.
            Event::Deadline if kill_main_at.is_some_and(|at| now >= at) => {
                (Phase::Ending { exit, kill_main_at: None, give_up_at }, vec![Action::KillMain])
            }
            _ => (Phase::Ending { exit, kill_main_at, give_up_at }, Vec::new()),
        }
    }

    /// The verdict on a box that was ending and whose agent never said that it was done.
    fn unanswered(&self, exit: Option<Exit>, causes: Vec<String>) -> Verdict {
        if self.discard {
            return stopped(exit);
        }
        let mut messages = vec!["the disk of the box may not have been written out completely".to_owned()];
        messages.extend(causes);
        // The failure takes the place of the exit, which may still matter to somebody.
        messages.extend(exit.map(|exit| match exit {
            Exit::Code(code) => format!("the main command had ended with code {code}"),
            Exit::Signal(signal) => format!("the main command had been ended by signal {signal}"),
        }));
        Verdict::Failed(Failure { kind: FailureKind::VmmLost, messages, hint: None })
    }

    /// When the main command is killed, and when the agent is given up.
    fn times(&self, now: Duration, grace: Duration) -> (Duration, Duration) {
        let kill_main_at = now.saturating_add(grace);
        (kill_main_at, kill_main_at.saturating_add(DRAIN + SLACK + self.flush()))
    }

    fn flush(&self) -> Duration {
        if self.discard { Duration::ZERO } else { FLUSH }
    }
}

/// What is common to all phases in which the main command does not run yet: there is nothing to be ended in order.
fn before_main(phase: Phase, event: Event, now: Duration) -> (Phase, Vec<Action>) {
    match event {
        Event::Failed(failure) => kill(now, Verdict::Failed(failure)),
        Event::Stop { .. } => {
            let (phase, mut actions) = kill(now, Verdict::Stopped(None));
            actions.insert(0, Action::PublishStopping);
            (phase, actions)
        }
        Event::VmmGone(causes) => finish(Verdict::Failed(lost(causes, "while the box started"))),
        _ => (phase, Vec::new()),
    }
}

fn killing(verdict: Verdict, deadline: Duration, event: Event, now: Duration) -> (Phase, Vec<Action>) {
    match event {
        Event::VmmGone(_) => finish(verdict),
        Event::Deadline if now >= deadline => finish(Verdict::Failed(Failure {
            kind: FailureKind::Internal,
            messages: vec![format!("the VMM was killed and is still there after {KILL:?}")],
            hint: Some("a process that cannot be killed waits for a device: see the kernel's log".to_owned()),
        })),
        _ => (Phase::Killing { verdict, deadline }, Vec::new()),
    }
}

fn kill(now: Duration, verdict: Verdict) -> (Phase, Vec<Action>) {
    (Phase::Killing { verdict, deadline: now + KILL }, vec![Action::KillVmm])
}

fn finish(verdict: Verdict) -> (Phase, Vec<Action>) {
    (Phase::Ended, vec![Action::Finish(verdict)])
}

/// The grace that is given. Signal 0 kills at once.
fn effective(signal: u32, grace: Duration) -> Duration {
    if signal == 0 { Duration::ZERO } else { grace.min(MOST_GRACE) }
}

/// A main command whose end nobody saw ended with its machine.
fn stopped(exit: Option<Exit>) -> Verdict {
    Verdict::Stopped(Some(exit.unwrap_or(Exit::Signal(SIGKILL))))
}

fn lost(causes: Vec<String>, when: &str) -> Failure {
    let mut messages = vec![format!("the virtual machine was lost {when}")];
    messages.extend(causes);
    Failure { kind: FailureKind::VmmLost, messages, hint: None }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
