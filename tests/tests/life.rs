//! Boxes that several commands use: list, exec, stop, remove, and what stays.

use std::time::Duration;

use boxlite_tests::story::{PATIENCE, Running, Story, eventually};

/// A box that waits until its input ends.
fn waiting(story: &Story, name: &str) -> Running {
    let run = story.boxlite(["run", "-i", "--rm", "--name", name, "busybox", "cat"]).start();
    story.until_status("running");
    run
}

#[test]
fn a_running_box_is_listed_used_and_stopped_by_other_commands() {
    let story = Story::with_busybox();
    let mut run = waiting(&story, "web");
    let listed = story.boxlite(["ps"]).run().success().out();
    assert!(listed.contains("web") && listed.contains("busybox") && listed.contains("Up "), "{listed}");
    let told = story.boxlite(["exec", "web", "sh", "-c", "echo out; echo err >&2; exit 3"]).run().code(3);
    assert_eq!((told.out().as_str(), told.err().as_str()), ("out\n", "err\n"));
    let told = story.boxlite(["exec", "-i", "web", "cat"]).input(*b"through\0exec\xff").run().success();
    assert_eq!(told.stdout, b"through\0exec\xff");
    story.boxlite(["rm", "web"]).run().code(1);
    story.boxlite(["stop", "-t", "1", "web"]).run().success();
    // `cat` as process 1 does not end by SIGTERM, so it was killed.
    assert_eq!(run.wait().code(), Some(137));
    assert!(story.boxes().is_empty());
}

#[test]
fn exit_codes_of_exec_are_those_of_docker() {
    let story = Story::with_busybox();
    let _run = waiting(&story, "web");
    story.boxlite(["exec", "web", "no-such-program"]).run().code(127);
    story.boxlite(["exec", "web", "/etc"]).run().code(126);
    story.boxlite(["exec", "web", "sh", "-c", "kill -9 $$"]).run().code(137);
    story.boxlite(["exec", "web", "sh", "-c", "kill -15 $$"]).run().code(143);
    story.boxlite(["exec", "-w", "/missing", "web", "true"]).run().code(125);
    let told = story.boxlite(["exec", "no-such-box", "true"]).run().code(125);
    assert!(told.err().contains("no-such-box"), "{}", told.err());
}

#[test]
fn an_exec_has_the_settings_of_the_box_and_its_own() {
    let story = Story::with_busybox();
    let _run = story
        .boxlite(["run", "-i", "--rm", "-e", "A=box", "-e", "B=box", "-w", "/tmp", "busybox", "cat"])
        .start();
    let id = story.until_status("running")["id"].as_str().unwrap().to_owned();
    let script = "echo $A $B $(pwd) $(id -un)";
    let told = story.boxlite(["exec", "-e", "B=exec", &id[..6], "sh", "-c", script]).run().success();
    assert_eq!(told.out(), "box exec /tmp root\n");
    let told =
        story.boxlite(["exec", "-w", "/etc", "-u", "www-data", &id, "sh", "-c", script]).run().success();
    assert_eq!(told.out(), "box box /etc www-data\n");
}

#[test]
fn a_stopped_box_stays_with_its_exit_code_until_it_is_removed() {
    let story = Story::with_busybox();
    story.boxlite(["run", "--name", "once", "busybox", "sh", "-c", "exit 9"]).run().code(9);
    let listed = story.boxlite(["ps"]).run().success().out();
    assert!(!listed.contains("once"), "{listed}");
    let listed = story.boxlite(["ps", "-a"]).run().success().out();
    assert!(listed.contains("once") && listed.contains("Exited (9)"), "{listed}");
    let told = story.boxlite(["run", "--name", "once", "busybox", "true"]).run().code(125);
    assert!(told.err().contains("`once`"), "{}", told.err());
    story.boxlite(["exec", "once", "true"]).run().code(125);
    story.boxlite(["rm", "once"]).run().success();
    assert!(story.boxes().is_empty());
    story.boxlite(["rm", "once"]).run().code(1);
}

#[test]
fn the_main_command_ends_by_sigterm_when_it_wants_to() {
    let story = Story::with_busybox();
    let script = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let mut run =
        story.boxlite(["run", "--rm", "--name", "polite", "busybox", "sh", "-c", script]).start_piped();
    let mut stdout = run.child.stdout.take().unwrap();
    let mut first = [0; 6];
    std::io::Read::read_exact(&mut stdout, &mut first).unwrap();
    story.boxlite(["stop", "polite"]).run().success();
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut stdout, &mut rest).unwrap();
    assert_eq!((rest.as_str(), run.wait().code()), ("bye\n", Some(5)));
}

#[test]
fn images_are_listed_with_name_and_size() {
    let story = Story::with_busybox();
    let listed = story.boxlite(["images"]).run().success().out();
    assert!(listed.contains("busybox") && listed.contains("latest"), "{listed}");
    let json = story.boxlite(["images", "--format", "json"]).run().success();
    let images: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(images.as_array().unwrap().len(), 1);
    assert!(images[0]["size"].as_u64().unwrap() > 100_000);
}

#[test]
fn every_kind_of_archive_gives_the_same_box() {
    for archive in ["busybox.oci", "busybox.oci.tar", "busybox.docker.tar"] {
        let story = Story::empty();
        let archive = boxlite_tests::story::images().join(archive);
        let told = story.boxlite(["run", "--rm"]).arg(&archive).args(["cat", "/etc/passwd"]).run().success();
        assert!(told.out().starts_with("root:x:0:0:"), "{}: {}", archive.display(), told.out());
    }
}

#[test]
fn an_archive_comes_through_standard_input() {
    let story = Story::empty();
    let archive = std::fs::read(boxlite_tests::story::images().join("busybox.oci.tar")).unwrap();
    let told = story.boxlite(["load"]).input(archive).run().success();
    assert!(told.out().contains("busybox:latest"), "{}", told.out());
}

#[test]
fn the_doctor_names_the_engine_in_use_and_why() {
    let story = Story::empty();
    let told = story.boxlite(["doctor"]).run().success();
    assert!(told.out().contains("engine qemu") && told.out().contains("engine krun"), "{}", told.out());
    assert!(told.out().contains("boxes can run here"), "{}", told.out());
    let json = story.boxlite(["doctor", "--format", "json"]).run().success();
    let found: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(found["can_run"], true);
    let asked = std::env::var("BOXLITE_ENGINE").unwrap_or_default();
    if !asked.is_empty() {
        assert_eq!(found["engine"], asked);
    }
}

#[test]
fn several_boxes_run_side_by_side_in_one_home() {
    let story = Story::with_busybox();
    let mut runs: Vec<Running> = (0..3)
        .map(|n| story.boxlite(["run", "-i", "--rm", "--name", &format!("box{n}"), "busybox", "cat"]).start())
        .collect();
    eventually("all three run", PATIENCE, || {
        story.boxes().iter().filter(|info| info["status"] == "running").count() == 3
    });
    for n in 0..3 {
        let told = story
            .boxlite(["exec", &format!("box{n}"), "sh", "-c", "echo $$ > /only-here; ls /only-here"])
            .run();
        assert_eq!(told.success().out(), "/only-here\n");
    }
    for run in &mut runs {
        drop(run.child.stdin.take());
        assert!(run.wait().success());
    }
    eventually("all three are gone", Duration::from_secs(10), || story.boxes().is_empty());
}

/// Waits for the command of the box `again`, which runs once somebody is there for its output.
fn its_command_runs(story: &Story) {
    eventually("its command runs", PATIENCE, || {
        story.boxlite(["exec", "again", "pidof", "cat"]).run().status.success()
    });
}

#[test]
fn a_box_is_removed_by_force_and_its_name_is_free_at_once() {
    let story = Story::with_busybox();
    for _ in 0..3 {
        let mut run = waiting(&story, "again");
        its_command_runs(&story);
        story.boxlite(["rm", "-f", "again"]).run().success();
        assert_eq!(run.wait().code(), Some(137));
    }
    let mut run = waiting(&story, "again");
    its_command_runs(&story);
    story.boxlite(["stop", "-t", "0", "again"]).run().success();
    let told = story.boxlite(["run", "--rm", "--name", "again", "busybox", "echo", "free"]).run().success();
    assert_eq!((told.out().as_str(), run.wait().code()), ("free\n", Some(137)));
}

#[test]
fn signals_reach_the_command_and_the_third_kills_the_box() {
    let story = Story::with_busybox();
    let script = "trap 'echo caught' INT; echo ready; while :; do sleep 0.1; done";
    let mut run = story.boxlite(["run", "--rm", "busybox", "sh", "-c", script]).start_piped();
    let mut stdout = run.child.stdout.take().unwrap();
    let mut read = |expected: &[u8]| {
        let mut bytes = vec![0; expected.len()];
        std::io::Read::read_exact(&mut stdout, &mut bytes).unwrap();
        assert_eq!(bytes, expected);
    };
    read(b"ready\n");
    for _ in 0..2 {
        boxlite_tests::story::kill(run.pid(), 2);
        read(b"caught\n");
    }
    boxlite_tests::story::kill(run.pid(), 2);
    assert_eq!(run.wait().code(), Some(137));
}
