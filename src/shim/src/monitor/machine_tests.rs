use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn booting() -> Machine {
    Machine::new(Duration::ZERO, 60 * SECOND, true)
}

/// The box's disk is not used again.
fn running() -> Machine {
    started(true)
}

/// The box's disk is kept.
fn running_with_disk() -> Machine {
    started(false)
}

fn started(discard: bool) -> Machine {
    let mut machine = Machine::new(Duration::ZERO, 60 * SECOND, discard);
    machine.next(Event::Ready, SECOND);
    assert_eq!(machine.next(Event::Started, 2 * SECOND), [Action::PublishRunning]);
    machine
}

fn stop(signal: u32, seconds: u32) -> Event {
    Event::Stop { signal, grace: seconds * SECOND }
}

fn failure() -> Failure {
    Failure { kind: FailureKind::CommandNotFound, messages: vec!["no such program".into()], hint: None }
}

#[test]
fn a_box_boots_runs_and_ends_with_its_main_command() {
    let mut machine = booting();
    let step = || "mount-base".to_owned();
    assert_eq!(machine.next(Event::Step(step()), SECOND), [Action::PublishStep(step())]);
    assert_eq!(
        machine.next(Event::Ready, SECOND),
        [Action::PublishStep("container".into()), Action::StartContainer]
    );
    assert_eq!(machine.next(Event::Started, SECOND), [Action::PublishRunning]);
    assert_eq!(
        machine.next(Event::MainEnded(Exit::Code(3)), SECOND),
        [Action::PublishStopping, Action::ShutDown { signal: 0, grace: Duration::ZERO, drain: LONG_DRAIN }]
    );
    assert_eq!(machine.next(Event::ShutDown(Some(Exit::Code(3))), SECOND), [Action::KillVmm]);
    let finish = Action::Finish(Verdict::Stopped(Some(Exit::Code(3))));
    assert_eq!(machine.next(Event::VmmGone(vec!["x".into()]), SECOND), [finish]);
    assert!(machine.has_ended());
}

#[test]
fn a_boot_that_takes_too_long_says_what_it_did_last() {
    let mut machine = booting();
    machine.next(Event::Step("mount-base".into()), SECOND);
    assert_eq!(machine.deadline(), Some(60 * SECOND));
    assert_eq!(machine.next(Event::Deadline, 59 * SECOND), []);
    assert_eq!(machine.next(Event::Deadline, 60 * SECOND), [Action::KillVmm]);
    let finish = machine.next(Event::VmmGone(vec!["killed".into()]), 61 * SECOND);
    let [Action::Finish(Verdict::Failed(failure))] = finish.as_slice() else { panic!("{finish:?}") };
    assert_eq!(failure.kind, FailureKind::Boot);
    assert!(failure.messages.concat().contains("mount-base"), "{failure:?}");
    assert!(failure.hint.is_some());
}

#[test]
fn the_time_for_the_boot_includes_the_start_of_the_container() {
    let mut machine = booting();
    machine.next(Event::Ready, 59 * SECOND);
    assert_eq!(machine.next(Event::Deadline, 60 * SECOND), [Action::KillVmm]);
}

#[test]
fn a_vmm_that_ends_by_itself_is_lost_unless_the_box_was_ending() {
    for mut machine in [booting(), running()] {
        let finish = machine.next(Event::VmmGone(vec!["signal 11".into()]), 3 * SECOND);
        let [Action::Finish(Verdict::Failed(failure))] = finish.as_slice() else { panic!("{finish:?}") };
        assert_eq!(failure.kind, FailureKind::VmmLost);
        assert!(failure.messages.contains(&"signal 11".to_owned()));
    }
    let mut ending = running();
    ending.next(Event::MainEnded(Exit::Code(0)), 3 * SECOND);
    let finish = Action::Finish(Verdict::Stopped(Some(Exit::Code(0))));
    assert_eq!(ending.next(Event::VmmGone(vec!["x".into()]), 3 * SECOND), [finish]);
}

#[test]
fn a_start_that_fails_keeps_its_reason_through_the_killing() {
    let mut machine = booting();
    machine.next(Event::Ready, SECOND);
    assert_eq!(machine.next(Event::Failed(failure()), SECOND), [Action::KillVmm]);
    assert_eq!(machine.next(stop(15, 1), SECOND), []);
    let finish = Action::Finish(Verdict::Failed(failure()));
    assert_eq!(machine.next(Event::VmmGone(vec!["killed".into()]), SECOND), [finish]);
}

#[test]
fn a_stop_before_the_main_command_runs_kills_at_once() {
    let mut machine = booting();
    assert_eq!(machine.next(stop(15, 10), SECOND), [Action::PublishStopping, Action::KillVmm]);
    let finish = Action::Finish(Verdict::Stopped(None));
    assert_eq!(machine.next(Event::VmmGone(vec!["killed".into()]), SECOND), [finish]);
}

#[test]
fn a_second_stop_shortens_the_grace() {
    let mut machine = running();
    let shut_down = Action::ShutDown { signal: 15, grace: 10 * SECOND, drain: DRAIN };
    assert_eq!(machine.next(stop(15, 10), 10 * SECOND), [Action::PublishStopping, shut_down]);
    assert_eq!(machine.deadline(), Some(20 * SECOND));
    assert_eq!(machine.next(stop(15, 2), 11 * SECOND), []);
    assert_eq!(machine.deadline(), Some(13 * SECOND));
    assert_eq!(machine.next(Event::Deadline, 13 * SECOND), [Action::KillMain]);
    assert_eq!(machine.deadline(), Some(13 * SECOND + DRAIN + SLACK));
}

#[test]
fn a_second_stop_never_lengthens_the_grace() {
    let mut machine = running();
    machine.next(stop(15, 10), 10 * SECOND);
    assert_eq!(machine.next(stop(15, 500), 11 * SECOND), []);
    assert_eq!(machine.deadline(), Some(20 * SECOND));
}

#[test]
fn a_second_stop_with_signal_zero_kills_at_once_whatever_its_grace() {
    let mut machine = running();
    machine.next(stop(15, 10), 10 * SECOND);
    machine.next(stop(0, 500), 11 * SECOND);
    assert_eq!(machine.next(Event::Deadline, 11 * SECOND), [Action::KillMain]);
}

#[test]
fn an_agent_that_never_answers_is_given_up() {
    let mut machine = running();
    machine.next(stop(15, 1), 10 * SECOND);
    assert_eq!(machine.next(Event::Deadline, 11 * SECOND), [Action::KillMain]);
    assert_eq!(machine.next(Event::Deadline, 12 * SECOND), []);
    assert_eq!(machine.next(Event::Deadline, 11 * SECOND + DRAIN + SLACK), [Action::KillVmm]);
    let finish = Action::Finish(Verdict::Stopped(Some(Exit::Signal(9))));
    assert_eq!(machine.next(Event::VmmGone(vec!["killed".into()]), 30 * SECOND), [finish]);
}

#[test]
fn the_exit_code_is_not_lost_when_the_answer_is() {
    let mut machine = running();
    machine.next(stop(15, 10), 10 * SECOND);
    machine.next(Event::MainEnded(Exit::Code(7)), 11 * SECOND);
    machine.next(Event::ShutDownFailed(Vec::new()), 11 * SECOND);
    let finish = Action::Finish(Verdict::Stopped(Some(Exit::Code(7))));
    assert_eq!(machine.next(Event::VmmGone(vec!["killed".into()]), 12 * SECOND), [finish]);
}

fn is_about_the_disk(actions: &[Action]) -> bool {
    let [Action::Finish(Verdict::Failed(failure))] = actions else { panic!("{actions:?}") };
    failure.kind == FailureKind::VmmLost && failure.messages[0].contains("disk")
}

#[test]
fn who_reads_the_output_of_an_ended_command_has_long_until_somebody_stops_the_box() {
    let mut machine = running();
    machine.next(Event::MainEnded(Exit::Code(0)), 3 * SECOND);
    assert_eq!(machine.deadline(), Some(3 * SECOND + LONG_DRAIN + SLACK));
    assert_eq!(machine.next(stop(15, 2), 100 * SECOND), [Action::ShortenDrain(2 * SECOND)]);
    assert_eq!(machine.deadline(), Some(102 * SECOND + SHORT_SLACK));
    assert_eq!(machine.next(stop(15, 50), 101 * SECOND), []);
    assert_eq!(machine.deadline(), Some(102 * SECOND + SHORT_SLACK));
    assert_eq!(machine.next(stop(0, 50), 101 * SECOND), [Action::ShortenDrain(Duration::ZERO)]);
    assert_eq!(machine.next(Event::Deadline, 101 * SECOND + SHORT_SLACK), [Action::KillVmm]);
    let finish = Action::Finish(Verdict::Stopped(Some(Exit::Code(0))));
    assert_eq!(machine.next(Event::VmmGone(Vec::new()), 103 * SECOND), [finish]);
}

#[test]
fn a_disk_that_is_kept_has_time_to_be_written_out() {
    let mut machine = running_with_disk();
    machine.next(stop(15, 1), 10 * SECOND);
    machine.next(Event::MainEnded(Exit::Code(0)), 10 * SECOND);
    assert_eq!(machine.deadline(), Some(10 * SECOND + DRAIN + SLACK + FLUSH));
    machine.next(stop(0, 0), 10 * SECOND);
    assert_eq!(machine.deadline(), Some(10 * SECOND + SHORT_SLACK + FLUSH));
    assert_eq!(machine.next(Event::ShutDown(Some(Exit::Code(0))), 20 * SECOND), [Action::KillVmm]);
    let finish = Action::Finish(Verdict::Stopped(Some(Exit::Code(0))));
    assert_eq!(machine.next(Event::VmmGone(Vec::new()), 20 * SECOND), [finish]);
}

#[test]
fn a_disk_that_is_kept_and_may_not_have_been_written_out_is_a_failure() {
    for event in [Event::ShutDownFailed(vec!["reset".into()]), Event::Deadline] {
        let mut machine = running_with_disk();
        machine.next(Event::MainEnded(Exit::Code(7)), 3 * SECOND);
        let late = machine.deadline().unwrap();
        assert_eq!(machine.next(event, late), [Action::KillVmm]);
        assert!(is_about_the_disk(&machine.next(Event::VmmGone(Vec::new()), late)));
    }
    let mut machine = running_with_disk();
    machine.next(Event::MainEnded(Exit::Code(7)), 3 * SECOND);
    let finish = machine.next(Event::VmmGone(vec!["signal 11".into()]), 4 * SECOND);
    assert!(is_about_the_disk(&finish));
    let [Action::Finish(Verdict::Failed(failure))] = finish.as_slice() else { panic!("{finish:?}") };
    assert!(failure.messages.contains(&"signal 11".to_owned()));
    assert!(failure.messages.contains(&"the main command had ended with code 7".to_owned()));
}

#[test]
fn an_endless_grace_overflows_nothing() {
    let mut machine = running();
    machine.next(Event::Stop { signal: 15, grace: Duration::MAX }, 10 * SECOND);
    machine.next(Event::Stop { signal: 15, grace: Duration::MAX }, 10 * SECOND);
    assert!(machine.deadline().is_some());
}

#[test]
fn a_vmm_that_cannot_be_killed_is_said_to_be_there() {
    let mut machine = booting();
    machine.next(stop(0, 0), SECOND);
    let finish = machine.next(Event::Deadline, SECOND + KILL);
    let [Action::Finish(Verdict::Failed(failure))] = finish.as_slice() else { panic!("{finish:?}") };
    assert_eq!(failure.kind, FailureKind::Internal);
}

#[test]
fn a_box_is_paused_and_goes_on_once_its_clock_is_right() {
    let mut machine = running();
    assert_eq!(machine.next(Event::Frozen, 3 * SECOND), [Action::PublishPaused]);
    assert_eq!(machine.deadline(), None, "a pause has no end of its own");
    assert_eq!(machine.next(Event::Resume, 9 * SECOND), [Action::Thaw, Action::ThawGuest]);
    assert_eq!(machine.next(Event::Thawed, 10 * SECOND), [Action::PublishResumed]);
    assert_eq!(machine.next(Event::Thawed, 10 * SECOND), []);
}

#[test]
fn a_guest_that_does_not_take_the_time_is_not_waited_for_long() {
    let mut machine = running();
    machine.next(Event::Frozen, 3 * SECOND);
    machine.next(Event::Resume, 9 * SECOND);
    assert_eq!(machine.deadline(), Some(9 * SECOND + RESUME));
    assert_eq!(machine.next(Event::Deadline, 9 * SECOND + RESUME), [Action::PublishResumed]);
}

#[test]
fn a_paused_box_that_is_stopped_goes_on_to_its_end() {
    for before in [&[Event::Frozen][..], &[Event::Frozen, Event::Resume]] {
        let mut machine = running();
        for event in before {
            machine.next(event.clone(), 3 * SECOND);
        }
        let actions = machine.next(stop(15, 10), 4 * SECOND);
        let shut_down = Action::ShutDown { signal: 15, grace: 10 * SECOND, drain: DRAIN };
        assert!(actions.ends_with(&[Action::PublishStopping, shut_down]), "{actions:?}");
        assert_eq!(actions.contains(&Action::Thaw), before.len() == 1);
    }
}

#[test]
fn a_machine_that_is_lost_while_it_is_paused_is_lost() {
    let mut machine = running();
    machine.next(Event::Frozen, 3 * SECOND);
    let finish = machine.next(Event::VmmGone(vec!["signal 9".into()]), 3 * SECOND);
    let [Action::Finish(Verdict::Failed(failure))] = finish.as_slice() else { panic!("{finish:?}") };
    assert_eq!(failure.kind, FailureKind::VmmLost);
    assert!(failure.messages[0].contains("paused"), "{failure:?}");
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Step("s".into())),
        Just(Event::Ready),
        Just(Event::Started),
        Just(Event::Failed(failure())),
        (0..256).prop_map(|code| Event::MainEnded(Exit::Code(code))),
        Just(Event::PortalLost(Vec::new())),
        (0_u32..64, 0_u32..1000).prop_map(|(signal, grace)| stop(signal, grace)),
        Just(Event::ShutDown(None)),
        Just(Event::ShutDownFailed(Vec::new())),
        Just(Event::VmmGone(vec!["gone".into()])),
        Just(Event::Frozen),
        Just(Event::Resume),
        Just(Event::Thawed),
        Just(Event::Deadline),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_box_ends_once_and_nothing_follows(
        discard: bool,
        events in proptest::collection::vec((any_event(), 0_u32..30), 0..40)
    ) {
        let mut machine = Machine::new(Duration::ZERO, 60 * SECOND, discard);
        let mut now = Duration::ZERO;
        let mut done = Vec::new();
        for (event, later) in events {
            now += later * SECOND;
            done.extend(machine.next(event, now));
        }
        // From anywhere, a stop and the passing of time lead to the end.
        done.extend(machine.next(stop(15, 5), now));
        for _ in 0..4 {
            if let Some(deadline) = machine.deadline() {
                now = now.max(deadline);
                done.extend(machine.next(Event::Deadline, now));
            }
        }
        prop_assert!(machine.has_ended(), "{machine:?}");
        prop_assert_eq!(machine.deadline(), None);

        let count = |wanted: fn(&Action) -> bool| done.iter().filter(|action| wanted(action)).count();
        let is_finish = |action: &Action| matches!(action, Action::Finish(_));
        let is_shut_down = |action: &Action| matches!(action, Action::ShutDown { .. });
        prop_assert_eq!(count(is_finish), 1);
        prop_assert!(done.last().is_some_and(is_finish));
        prop_assert!(count(is_shut_down) <= 1);
        prop_assert!(count(|action| *action == Action::KillVmm) <= 1);
        prop_assert!(count(|action| *action == Action::StartContainer) <= 1);
        prop_assert!(count(|action| *action == Action::PublishStopping) <= 1);
        prop_assert!(count(|action| *action == Action::KillMain) <= 1);
        // What stands still is let go on before it is asked for anything.
        let mut frozen = false;
        for action in &done {
            match action {
                Action::PublishPaused => frozen = true,
                Action::Thaw => frozen = false,
                Action::ShutDown { .. } | Action::KillMain | Action::ThawGuest | Action::PublishResumed => {
                    prop_assert!(!frozen, "{:?}", done);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn more_stops_never_let_a_box_live_longer(
        discard: bool,
        ended: bool,
        stops in proptest::collection::vec((0_u32..64, 0_u32..100), 1..10)
    ) {
        let mut machine = started(discard);
        if ended {
            machine.next(Event::MainEnded(Exit::Code(0)), 5 * SECOND);
        }
        let mut last = None;
        for (signal, grace) in stops {
            machine.next(stop(signal, grace), 5 * SECOND);
            let deadline = machine.deadline();
            if let (Some(last), Some(deadline)) = (last, deadline) {
                prop_assert!(deadline <= last);
            }
            last = deadline.or(last);
        }
    }
}
