//! The life of a box between its start and its final state: one run after the other, as the restart policy wants it.
//!
//! ```text
//!            ┌───────────────────────────────── the policy's pause, start, restart ─┐
//!            ▼                                                                      │
//!   start ─▶ run (see `machine`) ─▶ what now? ─▶ another run ─────────────────▶ Restarting
//!                                       │                                           │
//!                                       └──────▶ the final state ◀──── stop ────────┘
//! ```
//!
//! [`Life`] is the one owner of what outlasts a run: settings, counters, why the box is to end. [`what_now`] is a pure
//! function of it.

use std::time::Duration;

use boxlite_control::{
    Admission, Backoff, BoxFiles, BoxStats, EndReason, EventKind, Exit, FailureKind, MonitorConfig,
    NetworkPolicy, Order as Wish, Outcome, Phase, RestartPolicy, State, Update, admit,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::console::Tail;
use super::driver::{self, RunEnd};
use super::machine::Verdict;
use super::order::{Answer, Command, Order};
use super::publish::Publisher;
use super::teller::Teller;
use super::{StartError, unix_nanos};

/// Settings that can change while the box lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) cpus: u8,
    pub(super) memory_mib: u32,
    pub(super) restart: RestartPolicy,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) max_duration: Option<Duration>,
}

impl Settings {
    fn new(config: &MonitorConfig) -> Self {
        Self {
            cpus: config.vm.cpus,
            memory_mib: config.vm.memory_mib,
            restart: config.restart,
            idle_timeout: limit(config.idle_timeout_millis),
            max_duration: limit(config.max_duration_millis),
        }
    }
}

/// A time limit; 0 is none.
fn limit(millis: u64) -> Option<Duration> {
    (millis > 0).then(|| Duration::from_millis(millis))
}

/// What outlasts a run.
#[derive(Debug)]
pub(super) struct Life<'a> {
    pub(super) config: &'a MonitorConfig,
    pub(super) files: &'a BoxFiles,
    pub(super) publisher: &'a Publisher,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) teller: Teller,
    pub(super) settings: Settings,
    /// The policy of the network, if there is one: for the next run, too.
    pub(super) policy: NetworkPolicy,
    pub(super) stats: BoxStats,
    /// When the monitor began.
    pub(super) began: Instant,
    /// When the life began that may last for so long: with the monitor, or with a start that somebody asked for.
    lives_since: Instant,
    /// Whom the box belongs to has gone: it does not run again, whatever anybody asks for.
    pub(super) owner_gone: bool,
    /// Why the box is to end, once it is.
    pub(super) stop: Option<EndReason>,
    /// It is to run again whatever its policy says.
    pub(super) again: bool,
    restarts: u32,
}

/// What follows the end of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
enum WhatNow {
    /// Another run, without a pause.
    Again,
    /// Another run after a pause.
    AfterPause,
    /// Nothing.
    End,
}

/// How the wait for another run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// With the run that the restart policy wants.
    ByPolicy,
    /// With one that somebody asked for: a new beginning.
    Asked,
    /// Without another run.
    None,
}

/// Whether a restart policy takes the end of a run for a failure.
fn failed(verdict: &Verdict) -> bool {
    !matches!(verdict, Verdict::Stopped(Some(Exit::Code(0))))
}

/// `ran`: the main command had started. `restarts`: how many restarts the policy has made already.
fn what_now(
    verdict: &Verdict,
    ran: bool,
    stop: Option<EndReason>,
    again: bool,
    (policy, restarts): (RestartPolicy, u32),
) -> WhatNow {
    // Of a machine that did not die of SIGKILL something is left that writes to the disk.
    let stays = matches!(verdict, Verdict::Failed(failure) if failure.kind == FailureKind::Internal);
    if stays || stop == Some(EndReason::OwnerGone) {
        return WhatNow::End;
    }
    if again {
        return WhatNow::Again;
    }
    if stop.is_some() {
        return WhatNow::End;
    }
    // A box that has never run, or whose command does not exist any more, gets no better by trying.
    let hopeless = match verdict {
        Verdict::Failed(failure) => {
            (!ran && restarts == 0) || !matches!(failure.kind, FailureKind::Boot | FailureKind::VmmLost)
        }
        Verdict::Stopped(_) => !ran,
    };
    if !hopeless && policy.wants(failed(verdict), restarts) { WhatNow::AfterPause } else { WhatNow::End }
}

impl<'a> Life<'a> {
    /// A life that begins now.
    pub(super) fn new(
        config: &'a MonitorConfig,
        files: &'a BoxFiles,
        publisher: &'a Publisher,
        orders: mpsc::Receiver<Order>,
    ) -> Self {
        Self {
            config,
            files,
            publisher,
            orders,
            teller: Teller::new(config),
            settings: Settings::new(config),
            policy: config.network.as_ref().map(|network| network.policy.clone()).unwrap_or_default(),
            stats: BoxStats::default(),
            began: Instant::now(),
            lives_since: Instant::now(),
            owner_gone: false,
            stop: None,
            again: false,
            restarts: 0,
        }
    }

    /// Lives to the end, and returns the final state.
    pub(super) async fn live(&mut self) -> State {
        let mut backoff = Backoff::default();
        let mut tried_again = false;
        loop {
            let tail = Tail::default();
            let RunEnd { verdict, ran_for, stillborn } = match driver::run(self, &tail).await {
                Ok(end) => end,
                Err(error) => return self.not_brought_up(&error),
            };
            // One emulated boot in many hundreds ends in a reset of the kernel before there is a console to say why, most
            // often on a host that is very busy.
            if stillborn && !tried_again && self.stop.is_none() && !self.owner_gone && !self.again {
                tracing::warn!("the machine ended before its agent came up, and is started once more");
                tried_again = true;
                self.publisher.publish(State::Starting { step: "engine".to_owned() });
                continue;
            }
            tried_again = false;
            let ran = ran_for.is_some();
            let stop = if self.owner_gone { Some(EndReason::OwnerGone) } else { self.stop };
            match what_now(&verdict, ran, stop, self.again, (self.settings.restart, self.restarts)) {
                WhatNow::End => return self.end(verdict, &tail),
                WhatNow::Again => {
                    self.tell_exit(&verdict, None, Some(Duration::ZERO));
                    self.restarts = 0;
                    self.lives_since = Instant::now();
                    backoff = Backoff::default();
                }
                WhatNow::AfterPause => {
                    let pause = backoff.after(ran_for.unwrap_or_default());
                    self.tell_exit(&verdict, None, Some(pause));
                    match self.wait(&verdict, pause, &tail).await {
                        Next::ByPolicy => self.restarts += 1,
                        Next::Asked => {
                            self.restarts = 0;
                            self.lives_since = Instant::now();
                            backoff = Backoff::default();
                        }
                        Next::None => return self.end(verdict, &tail),
                    }
                }
            }
            (self.stop, self.again) = (None, false);
            self.publisher.restarts(self.restarts);
            self.publisher.publish(State::Starting { step: "engine".to_owned() });
        }
    }

    /// How often the restart policy has started the box again.
    pub(super) fn restarts(&self) -> u32 {
        self.restarts
    }

    /// When the box has lived long enough.
    pub(super) fn expires_at(&self) -> Option<Instant> {
        self.settings.max_duration.and_then(|limit| self.lives_since.checked_add(limit))
    }

    /// Takes new settings.
    pub(super) fn update(&mut self, update: Update) {
        let settings = &mut self.settings;
        settings.cpus = update.cpus.unwrap_or(settings.cpus);
        settings.memory_mib = update.memory_mib.unwrap_or(settings.memory_mib);
        settings.restart = update.restart.unwrap_or(settings.restart);
        settings.idle_timeout = update.idle_timeout_millis.map_or(settings.idle_timeout, limit);
        settings.max_duration = update.max_duration_millis.map_or(settings.max_duration, limit);
        if let Some(name) = update.name {
            self.teller.rename(name);
        }
    }

    /// Waits for the next run.
    async fn wait(&mut self, verdict: &Verdict, pause: Duration, tail: &Tail) -> Next {
        let next_at = Instant::now() + pause;
        let last = match driver::final_state(verdict.clone(), EndReason::Exited, tail) {
            State::Failed { error, .. } => Outcome::Error(error),
            State::Stopped { exit, .. } => Outcome::Exit(exit.unwrap_or(Exit::Code(0))),
            // A final state is one of the two.
            _ => return Next::None,
        };
        let pause_nanos = u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX);
        let next_unix_nanos = unix_nanos().saturating_add(pause_nanos);
        self.publisher.publish(State::Restarting { last, next_unix_nanos });
        boxlite_control::step::reached("monitor", "restarting");
        loop {
            let expires_at = self.expires_at();
            let order = tokio::select! {
                biased;
                Some(order) = self.orders.recv() => order,
                () = sleep_until(expires_at.unwrap_or(next_at)), if expires_at.is_some_and(|at| at < next_at) => {
                    self.stop = Some(EndReason::MaxDuration);
                    return Next::None;
                }
                () = sleep_until(next_at) => return Next::ByPolicy,
            };
            let Order { command, reply } = order;
            match command {
                Command::Start | Command::Restart { .. } => {
                    reply.send(Answer::Done);
                    return Next::Asked;
                }
                Command::Stop { reason, .. } => {
                    self.stop = Some(reason);
                    reply.send(Answer::Done);
                    return Next::None;
                }
                Command::Update(update) => {
                    self.update(update);
                    reply.send(Answer::Done);
                    // A new policy counts at once.
                    if !self.settings.restart.wants(failed(verdict), self.restarts) {
                        return Next::None;
                    }
                }
                Command::NetworkPolicy(policy) => {
                    reply.send(match &self.config.network {
                        Some(_) => {
                            self.policy = policy;
                            Answer::Done
                        }
                        None => Answer::Refused(driver::NO_NETWORK.to_owned()),
                    });
                    continue;
                }
                Command::Network => {
                    reply.send(Answer::Refused("the box does not run".to_owned()));
                    continue;
                }
                Command::Stats => {
                    let stats = BoxStats {
                        cpus: self.settings.cpus,
                        time_unix_nanos: unix_nanos(),
                        ..self.stats.clone()
                    };
                    reply.send(Answer::Stats(Box::new(stats)));
                }
                Command::Signal(_) => reply.send(refused(Phase::Restarting, Wish::Signal)),
                Command::Pause => reply.send(refused(Phase::Restarting, Wish::Pause)),
                Command::Resume => reply.send(refused(Phase::Restarting, Wish::Resume)),
            }
        }
    }

    fn end(&self, verdict: Verdict, tail: &Tail) -> State {
        let reason = self.stop.unwrap_or(EndReason::Exited);
        // The end of the last run of a box that waited for its next one has been told.
        if self.publisher.phase() != Phase::Restarting {
            self.tell_exit(&verdict, Some(reason), None);
        }
        driver::final_state(verdict, reason, tail)
    }

    fn not_brought_up(&self, error: &StartError) -> State {
        tracing::error!(error = crate::text::line(error), "the box could not be brought up");
        let state = error.state();
        if let State::Failed { error, .. } = &state {
            let error = Some(error.messages.join(": "));
            self.teller.tell(EventKind::Exited { exit: None, reason: None, error, restart_millis: None });
        }
        state
    }

    fn tell_exit(&self, verdict: &Verdict, reason: Option<EndReason>, restart: Option<Duration>) {
        let restart_millis = restart.map(|pause| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        let (exit, error) = match verdict {
            Verdict::Stopped(exit) => (*exit, None),
            Verdict::Failed(failure) => (None, Some(failure.messages.join(": "))),
        };
        let reason = reason.filter(|_| error.is_none());
        self.teller.tell(EventKind::Exited { exit, reason, error, restart_millis });
    }
}

/// The answer to an order that the state does not allow. Asked only for those.
pub(super) fn refused(phase: Phase, wish: Wish) -> Answer {
    match admit(phase, wish) {
        Admission::Refuse(refusal) => Answer::Refused(refusal.to_string()),
        _ => Answer::Refused(format!("it is {}", phase.name())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::Failure;
    use super::*;

    fn failed(kind: FailureKind) -> Verdict {
        Verdict::Failed(Failure { kind, messages: vec!["x".into()], hint: None })
    }

    const CODE_0: Verdict = Verdict::Stopped(Some(Exit::Code(0)));
    const CODE_1: Verdict = Verdict::Stopped(Some(Exit::Code(1)));
    const FAILURES: RestartPolicy = RestartPolicy::OnFailure { most: Some(2) };

    #[test]
    fn what_fails_runs_again_as_often_as_its_policy_allows() {
        for (restarts, expected) in [(0, WhatNow::AfterPause), (1, WhatNow::AfterPause), (2, WhatNow::End)] {
            assert_eq!(what_now(&CODE_1, true, None, false, (FAILURES, restarts)), expected);
            let lost = failed(FailureKind::VmmLost);
            assert_eq!(what_now(&lost, true, None, false, (FAILURES, restarts)), expected);
        }
        assert_eq!(what_now(&CODE_0, true, None, false, (FAILURES, 0)), WhatNow::End);
        assert_eq!(what_now(&CODE_0, true, None, false, (RestartPolicy::Always, 99)), WhatNow::AfterPause);
        assert_eq!(what_now(&CODE_1, true, None, false, (RestartPolicy::No, 0)), WhatNow::End);
    }

    #[test]
    fn what_somebody_stops_stays_stopped_unless_it_is_a_restart() {
        let always = (RestartPolicy::Always, 0);
        assert_eq!(what_now(&CODE_1, true, Some(EndReason::Requested), false, always), WhatNow::End);
        assert_eq!(what_now(&CODE_1, true, Some(EndReason::Idle), false, always), WhatNow::End);
        assert_eq!(what_now(&CODE_1, true, None, true, (RestartPolicy::No, 0)), WhatNow::Again);
        // Nobody would end it, or two machines would write to one disk.
        assert_eq!(what_now(&CODE_1, true, Some(EndReason::OwnerGone), true, always), WhatNow::End);
        let stays = failed(FailureKind::Internal);
        assert_eq!(what_now(&stays, true, None, true, always), WhatNow::End);
    }

    #[test]
    fn a_box_that_cannot_start_is_not_tried_for_ever() {
        let always = |restarts| (RestartPolicy::Always, restarts);
        assert_eq!(what_now(&failed(FailureKind::Boot), false, None, false, always(0)), WhatNow::End);
        assert_eq!(
            what_now(&failed(FailureKind::CommandNotFound), false, None, false, always(3)),
            WhatNow::End
        );
        // One that has run before may do so again: the host was busy.
        assert_eq!(what_now(&failed(FailureKind::Boot), false, None, false, always(3)), WhatNow::AfterPause);
    }
}
