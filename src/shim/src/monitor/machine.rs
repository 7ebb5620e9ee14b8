//! The life of a box, as a pure function.
//!
//! ```text
//!             Ready        Started         MainEnded, Stop           ShutDown          VmmGone
//!   Booting ─────────▶ Starting ─────▶ Running ─────────▶ Ending ─────────────▶ Killing ───────▶ Ended
//!      │                   │              │                  │   Deadline          ▲              ▲
//!      │ Failed, Stop,     │              │ PortalLost       └─────────────────────┤              │
//!      │ Deadline          │              └────────────────────────────────────────┤              │
//!      └───────────────────┴───────────────────────────────────────────────────────┘              │
//!      any of them ── VmmGone ────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! * **Booting**: the kernel and the agent come up.
//! * **Starting**: the agent serves the portal and is told to make the container.
//! * **Running**: the main command runs.
//! * **Ending**: the agent has been asked to end the box in order.
//! * **Killing**: the VMM has been killed; its end is awaited. The verdict stands.
//! * **Ended**: nothing moves any more.
//!
//! [`Machine::next`] takes what has happened, changes the phase, and says what is to be done. It knows no clock, no socket
//! and no process; [`driver`](super::driver) has those. Times are counted from the start of the monitor.

use std::mem;
use std::time::Duration;

use boxlite_control::{Exit, FailureKind};

/// SIGKILL, the same on every Linux.
const SIGKILL: u32 = 9;
/// How long attached streams may take to be read when the main command has ended.
pub(super) const DRAIN: Duration = Duration::from_secs(10);
/// What the agent may take for the rest of its work, and the killing of processes, when it ends a box.
const SLACK: Duration = Duration::from_secs(5);
/// How long a killed VMM may take to be gone.
const KILL: Duration = Duration::from_secs(20);
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
    /// The agent could not be asked to, or did not answer.
    ShutDownFailed,
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
    /// Publish that the box is stopping.
    PublishStopping,
    /// Ask the agent to end the box. Answered by `ShutDown` or `ShutDownFailed`.
    ShutDown { signal: u32, grace: Duration },
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
    Ending { exit: Option<Exit>, kill_main_at: Option<Duration>, give_up_at: Duration },
    Killing { verdict: Verdict, deadline: Duration },
    Ended,
}

/// One box's life. See the module.
#[derive(Debug)]
pub(super) struct Machine {
    phase: Phase,
    boot_timeout: Duration,
}

impl Machine {
    /// A box whose VMM has just been started.
    pub(super) fn new(now: Duration, boot_timeout: Duration) -> Self {
        let deadline = now.saturating_add(boot_timeout);
        Self { phase: Phase::Booting { step: "kernel".to_owned(), deadline }, boot_timeout }
    }

    /// When [`Event::Deadline`] is due.
    pub(super) fn deadline(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Booting { deadline, .. }
            | Phase::Starting { deadline }
            | Phase::Killing { deadline, .. } => Some(*deadline),
            Phase::Ending { kill_main_at, give_up_at, .. } => Some(kill_main_at.unwrap_or(*give_up_at)),
            Phase::Running | Phase::Ended => None,
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
            Phase::Running => running(event, now),
            Phase::Ending { exit, kill_main_at, give_up_at } => {
                ending(exit, kill_main_at, give_up_at, event, now)
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

fn running(event: Event, now: Duration) -> (Phase, Vec<Action>) {
    match event {
        Event::MainEnded(exit) => {
            let give_up_at = now + DRAIN + SLACK;
            let phase = Phase::Ending { exit: Some(exit), kill_main_at: None, give_up_at };
            (phase, vec![Action::PublishStopping, Action::ShutDown { signal: 0, grace: Duration::ZERO }])
        }
        Event::Stop { signal, grace } => {
            let grace = if signal == 0 { Duration::ZERO } else { grace.min(MOST_GRACE) };
            let (kill_main_at, give_up_at) = times(now, grace);
            let phase = Phase::Ending { exit: None, kill_main_at: Some(kill_main_at), give_up_at };
            (phase, vec![Action::PublishStopping, Action::ShutDown { signal, grace }])
        }
        Event::PortalLost(causes) => {
            let mut messages = vec!["the agent in the box does not answer any more".to_owned()];
            messages.extend(causes);
            kill(now, Verdict::Failed(Failure { kind: FailureKind::VmmLost, messages, hint: None }))
        }
        Event::VmmGone(causes) => finish(Verdict::Failed(lost(causes, "while the box ran"))),
        _ => (Phase::Running, Vec::new()),
    }
}

fn ending(
    exit: Option<Exit>,
    kill_main_at: Option<Duration>,
    give_up_at: Duration,
    event: Event,
    now: Duration,
) -> (Phase, Vec<Action>) {
    // A main command whose end nobody saw ended with its machine.
    let verdict = |exit: Option<Exit>| Verdict::Stopped(Some(exit.unwrap_or(Exit::Signal(SIGKILL))));
    match event {
        Event::MainEnded(ended) => {
            let give_up_at = give_up_at.min(now + DRAIN + SLACK);
            (Phase::Ending { exit: exit.or(Some(ended)), kill_main_at: None, give_up_at }, Vec::new())
        }
        // A second stop shortens the grace of the first and never lengthens it.
        Event::Stop { signal, grace } if kill_main_at.is_some() => {
            let (kill_sooner_at, give_up_sooner_at) =
                times(now, if signal == 0 { Duration::ZERO } else { grace });
            let phase = Phase::Ending {
                exit,
                kill_main_at: kill_main_at.map(|at| at.min(kill_sooner_at)),
                give_up_at: give_up_at.min(give_up_sooner_at),
            };
            (phase, Vec::new())
        }
        Event::ShutDown(ended) => kill(now, verdict(ended.or(exit))),
        Event::ShutDownFailed => kill(now, verdict(exit)),
        Event::VmmGone(_) => finish(verdict(exit)),
        Event::Deadline if now >= give_up_at => kill(now, verdict(exit)),
        // The agent kills the main command by itself when the grace that it knows of is over. This is for one that was
        // shortened since, and for an agent that does not keep its word.
        Event::Deadline if kill_main_at.is_some_and(|at| now >= at) => {
            (Phase::Ending { exit, kill_main_at: None, give_up_at }, vec![Action::KillMain])
        }
        _ => (Phase::Ending { exit, kill_main_at, give_up_at }, Vec::new()),
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

/// When the main command is killed, and when the agent is given up.
fn times(now: Duration, grace: Duration) -> (Duration, Duration) {
    let kill_main_at = now.saturating_add(grace.min(MOST_GRACE));
    (kill_main_at, kill_main_at.saturating_add(DRAIN + SLACK))
}

fn lost(causes: Vec<String>, when: &str) -> Failure {
    let mut messages = vec![format!("the virtual machine was lost {when}")];
    messages.extend(causes);
    Failure { kind: FailureKind::VmmLost, messages, hint: None }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
