//! Every process of a box is killed, while it boots and while it works: nothing stays, and the next command works.

use std::time::Duration;

use boxlite_tests::story::{Story, eventually, kill};

/// How long a killed box may take to go.
const GONE: Duration = Duration::from_secs(5);
const SIGKILL: i32 = 9;

/// When the process is killed.
#[derive(Clone, Copy)]
enum Moment {
    Boot,
    Work,
}

/// Which process is killed.
#[derive(Clone, Copy)]
enum Victim {
    Cli,
    Monitor,
    Vmm,
}

fn nothing_is_left_after(victim: Victim, moment: Moment) {
    let story = Story::with_busybox();
    let script = "echo at work; while :; do sleep 1; done";
    let mut run =
        story.boxlite(["run", "--rm", "--name", "victim", "busybox", "sh", "-c", script]).start_piped();
    match moment {
        // The VMM is the last process to come: the guest's kernel boots now.
        Moment::Boot => drop(story.role("vmm")),
        Moment::Work => {
            let mut first = [0; 8];
            std::io::Read::read_exact(run.child.stdout.as_mut().unwrap(), &mut first).unwrap();
            assert_eq!(&first, b"at work\n");
        }
    }
    match victim {
        Victim::Cli => run.kill(),
        Victim::Monitor => kill(story.role("monitor"), SIGKILL),
        Victim::Vmm => kill(story.role("vmm"), SIGKILL),
    }
    eventually("no process of the box is left", GONE, || {
        // The command line itself is no part of the box, and may still tell what it saw.
        story.processes().iter().all(|(pid, _)| *pid == run.pid())
    });
    if !matches!(victim, Victim::Cli) {
        assert_eq!(run.wait().code(), Some(125));
    }
    let told = story.boxlite(["run", "--rm", "--name", "victim", "busybox", "echo", "next"]).run().success();
    assert_eq!(told.out(), "next\n");
}

#[test]
fn nothing_is_left_of_a_box_whose_cli_is_killed_while_it_boots() {
    nothing_is_left_after(Victim::Cli, Moment::Boot);
}

#[test]
fn nothing_is_left_of_a_box_whose_cli_is_killed_while_it_works() {
    nothing_is_left_after(Victim::Cli, Moment::Work);
}

#[test]
fn nothing_is_left_of_a_box_whose_monitor_is_killed_while_it_boots() {
    nothing_is_left_after(Victim::Monitor, Moment::Boot);
}

#[test]
fn nothing_is_left_of_a_box_whose_monitor_is_killed_while_it_works() {
    nothing_is_left_after(Victim::Monitor, Moment::Work);
}

#[test]
fn nothing_is_left_of_a_box_whose_machine_is_killed_while_it_boots() {
    nothing_is_left_after(Victim::Vmm, Moment::Boot);
}

#[test]
fn nothing_is_left_of_a_box_whose_machine_is_killed_while_it_works() {
    nothing_is_left_after(Victim::Vmm, Moment::Work);
}

#[test]
fn an_exec_whose_machine_is_killed_fails_and_does_not_claim_an_exit() {
    let story = Story::with_busybox();
    let mut run = story.boxlite(["run", "--rm", "-i", "--name", "victim", "busybox", "cat"]).start();
    story.until_status("running");
    let mut exec = story.boxlite(["exec", "victim", "sh", "-c", "echo on; sleep 1000"]).start_piped();
    let mut first = [0; 3];
    std::io::Read::read_exact(exec.child.stdout.as_mut().unwrap(), &mut first).unwrap();
    kill(story.role("vmm"), SIGKILL);
    assert_eq!(exec.wait().code(), Some(125));
    assert_eq!(run.wait().code(), Some(125));
}

#[test]
fn a_killed_exec_client_leaves_the_box_as_it_was() {
    let story = Story::with_busybox();
    let mut run = story.boxlite(["run", "--rm", "-i", "--name", "host", "busybox", "cat"]).start();
    story.until_status("running");
    let mut exec = story.boxlite(["exec", "-i", "host", "cat"]).start();
    exec.kill();
    let told = story.boxlite(["exec", "host", "echo", "still here"]).run().success();
    assert_eq!(told.out(), "still here\n");
    drop(run.child.stdin.take());
    assert!(run.wait().success());
}

#[test]
fn a_guest_that_does_not_come_up_is_an_error_with_its_last_words() {
    let story = Story::with_busybox();
    let call = story.boxlite(["run", "--rm", "busybox", "true"]).env("BOXLITE_BOOT_TIMEOUT", "1");
    // No machine here boots its kernel and the container within a second without help from the CPU; one that has
    // that help may.
    let told = call.run();
    if told.status.code() != Some(0) {
        let told = told.code(125);
        assert!(told.err().contains("did not") || told.err().contains("within"), "{}", told.err());
    }
    assert!(story.leftovers().is_empty(), "{:?}", story.leftovers());
}
