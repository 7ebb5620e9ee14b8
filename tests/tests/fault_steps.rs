//! Every process of a box is killed at every step of create, start, exec, stop and remove. After each, the home is sane:
//! boxes are listed, started and removed, and nothing is left over.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use boxlite_tests::steps::{Held, Role, Steps, VARIABLE, wait};
use boxlite_tests::story::{Story, eventually, kill};

/// How long what was killed may take to go.
const GONE: Duration = Duration::from_secs(20);
/// How long an operation may take to its next step.
const STEP: Duration = Duration::from_secs(60);
const SIGKILL: i32 = 9;

/// What is done while something is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Create,
    Start,
    Exec,
    Stop,
    Restart,
    Remove,
    RemoveByForce,
}

impl Operation {
    /// What has to be so before.
    fn prepare(self, story: &Story, steps: &Steps) {
        let call = |args: &[&str]| story.boxlite(args).env(VARIABLE, steps.path());
        let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
        match self {
            Self::Create => {}
            Self::Start | Self::Remove => {
                call(&["create", "--name", "victim", "busybox", "sh", "-c", script]).run().success();
            }
            Self::Exec | Self::Stop | Self::RemoveByForce => {
                call(&["run", "-d", "--name", "victim", "busybox", "sh", "-c", script]).run().success();
            }
            Self::Restart => {
                // It ends at once and waits for its next run.
                let policy = ["run", "-d", "--name", "victim", "--restart", "always"];
                call(&policy).args(["busybox", "false"]).run().success();
            }
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Create => &["create", "--name", "victim", "busybox", "sleep", "1000"],
            Self::Start => &["start", "victim"],
            Self::Exec => &["exec", "victim", "sh", "-c", "echo one; sleep 0.2; echo two"],
            Self::Stop => &["stop", "victim"],
            Self::Restart => &["update", "--cpus", "1", "victim"],
            Self::Remove => &["rm", "victim"],
            Self::RemoveByForce => &["rm", "-f", "victim"],
        }
    }
}

/// The steps of an operation that nobody disturbs.
fn steps_of(operation: Operation) -> Vec<String> {
    let (story, steps) = (Story::with_busybox(), Steps::listen());
    operation.prepare(&story, &steps);
    let before = steps.seen();
    story.boxlite(operation.arguments()).env(VARIABLE, steps.path()).run().success();
    if operation == Operation::Restart {
        // Its steps are those of its next run, and of the wait before.
        let again = |seen: &[String]| seen.iter().filter(|step| *step == "monitor running").count() >= 2;
        let mut all = before;
        eventually("it runs again", STEP, || {
            all.extend(steps.seen());
            again(&all)
        });
        story.boxlite(["rm", "-f", "victim"]).run().success();
        let from = all.iter().position(|step| step == "monitor restarting").expect("it waits");
        return unique(all.drain(from..).filter(|step| step.starts_with("monitor")).collect());
    }
    let seen = steps.seen();
    if operation != Operation::Create {
        story.boxlite(["rm", "-f", "victim"]).run();
    }
    unique(seen)
}

/// The steps by which a guest boots have one name for the host.
fn unique(steps: Vec<String>) -> Vec<String> {
    let mut unique: Vec<String> = Vec::new();
    for step in steps {
        if !unique.contains(&step) {
            unique.push(step);
        }
    }
    unique
}

/// One that is held already.
fn immediately(held: Held) -> Receiver<Held> {
    let (sender, receiver) = channel();
    sender.send(held).expect("the receiver is here");
    receiver
}

/// Kills a process of this role while the operation is at this step. False: there was none to be killed.
fn kill_at(operation: Operation, step: &str, victim: Role, number: usize) -> bool {
    let (story, steps) = (Story::with_busybox(), Steps::listen());
    let (held, mut program);
    if operation == Operation::Restart {
        // Its steps are those of a second run, so the first one passes them.
        let waits = steps.hold("monitor restarting");
        operation.prepare(&story, &steps);
        let waits = wait(&waits, STEP).expect("it waits for its next run");
        held = if waits.step == step { immediately(waits) } else { steps.hold(step) };
        program = None;
    } else {
        operation.prepare(&story, &steps);
        held = steps.hold(step);
        program = Some(story.boxlite(operation.arguments()).env(VARIABLE, steps.path()).start());
    }
    let held = wait(&held, STEP).unwrap_or_else(|| panic!("{operation:?} does not come to `{step}`"));
    let target = steps.processes().into_iter().find(|(role, _)| *role == victim);
    let Some((_, pid)) = target else {
        drop(held);
        if let Some(program) = &mut program {
            program.wait();
        }
        story.boxlite(["rm", "-f", "victim"]).run();
        return false;
    };
    kill(pid, SIGKILL);
    drop(held);
    steps.pass();
    if let Some(program) = &mut program {
        program.wait();
    }
    check(&story, &steps, number, &format!("{operation:?} at `{step}`, {victim:?} killed"));
    true
}

/// The next commands find a sane home.
fn check(story: &Story, steps: &Steps, number: usize, what: &str) {
    let boxes = story.boxes();
    assert!(boxes.len() <= 1, "{what}: {boxes:?}");
    if let Some(found) = boxes.first() {
        let status = found["status"].as_str().unwrap();
        let known = ["configured", "starting", "running", "stopping", "restarting", "stopped", "failed"];
        assert!(known.contains(&status), "{what}: {found}");
        // Every second time it is used before it goes.
        if number.is_multiple_of(2) {
            let started = story.boxlite(["start", "victim"]).run();
            assert!(started.status.success(), "{what}: {}", started.err());
        }
        let removed = story.boxlite(["rm", "-f", "victim"]).run();
        assert!(removed.status.success(), "{what}: {}", removed.err());
    } else {
        // The name is free.
        story.boxlite(["create", "--name", "victim", "busybox", "true"]).run().success();
        story.boxlite(["rm", "victim"]).run().success();
    }
    eventually(&format!("{what}: nothing is left over"), GONE, || {
        story.leftovers().is_empty() && steps.processes().is_empty()
    });
    let rows = story.boxlite(["ps", "-a", "-q"]).run().success().out();
    assert_eq!(rows, "", "{what}");
}

#[allow(clippy::print_stdout, reason = "how many pairs were tried is what the test is asked to tell")]
fn every_pair(operation: Operation, victims: &[Role]) {
    let steps = steps_of(operation);
    assert!(!steps.is_empty(), "{operation:?} has no steps");
    let (mut tried, mut number) = (0, 0);
    for step in &steps {
        for victim in victims {
            number += 1;
            tried += usize::from(kill_at(operation, step, *victim, number));
        }
    }
    println!(
        "{operation:?}: {tried} pairs of process and step were tried, over {} steps: {steps:?}",
        steps.len()
    );
    // Before it is spawned, and after it has ended, a process cannot be killed.
    assert!(
        tried > 0 && 4 * tried >= steps.len() * victims.len(),
        "too few processes were there to be killed"
    );
}

#[test]
fn a_creation_whose_program_is_killed_at_any_step_leaves_a_box_or_none() {
    every_pair(Operation::Create, &[Role::Program]);
}

#[test]
fn a_start_whose_program_or_machine_is_killed_at_any_step_leaves_a_sane_home() {
    every_pair(Operation::Start, &[Role::Program, Role::Machine]);
}

#[test]
fn a_start_whose_monitor_is_killed_at_any_step_leaves_a_sane_home() {
    every_pair(Operation::Start, &[Role::Monitor]);
}

#[test]
fn a_start_whose_vmm_is_killed_at_any_step_leaves_a_sane_home() {
    every_pair(Operation::Start, &[Role::Vmm]);
}

#[test]
fn a_command_during_which_any_process_is_killed_leaves_a_sane_home() {
    every_pair(Operation::Exec, &[Role::Program, Role::Monitor, Role::Vmm, Role::Machine]);
}

#[test]
fn a_stop_whose_program_or_monitor_is_killed_at_any_step_leaves_a_sane_home() {
    every_pair(Operation::Stop, &[Role::Program, Role::Monitor]);
}

#[test]
fn a_stop_whose_vmm_or_machine_is_killed_at_any_step_leaves_a_sane_home() {
    every_pair(Operation::Stop, &[Role::Vmm, Role::Machine]);
}

#[test]
fn a_restart_during_which_any_process_is_killed_leaves_a_sane_home() {
    every_pair(Operation::Restart, &[Role::Monitor, Role::Vmm]);
}

#[test]
fn a_removal_whose_program_is_killed_at_any_step_leaves_a_box_or_none() {
    every_pair(Operation::Remove, &[Role::Program]);
}

#[test]
fn a_removal_by_force_during_which_any_process_is_killed_leaves_a_sane_home() {
    every_pair(Operation::RemoveByForce, &[Role::Program, Role::Monitor, Role::Vmm]);
}

#[test]
fn a_box_whose_monitor_has_just_begun_can_be_removed_by_force() {
    let (story, steps) = (Story::with_busybox(), Steps::listen());
    Operation::Start.prepare(&story, &steps);
    let begins = steps.hold("monitor locked");
    let mut start = story.boxlite(Operation::Start.arguments()).env(VARIABLE, steps.path()).start();
    let begins = wait(&begins, STEP).expect("the monitor begins");
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| story.boxlite(["rm", "-f", "victim"]).run());
        // It looks again and again whether the monitor has let the box go; nobody listens for orders yet.
        eventually("the removal waits", STEP, || {
            let removals = story.processes().into_iter().filter(|(_, line)| line.contains(" rm -f "));
            removals.into_iter().any(|(pid, _)| slept(pid) > 100)
        });
        drop(begins);
        steps.pass();
        removal.join().unwrap().success();
    });
    start.wait();
}

/// How often the threads of a process have gone to sleep.
fn slept(pid: i32) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let statuses = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("status")).ok());
    let count = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    statuses.map(count).sum()
}
