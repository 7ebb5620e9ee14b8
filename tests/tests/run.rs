//! `boxlite run`: output, input, exit codes and settings of a command in a box.

use boxlite_tests::story::Story;

#[test]
fn output_error_output_and_exit_code_come_back_apart() {
    let story = Story::with_busybox();
    let told =
        story.boxlite(["run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7"]).run().code(7);
    assert_eq!((told.out().as_str(), told.err().as_str()), ("out\n", "err\n"));
}

#[test]
fn a_box_has_a_kernel_of_its_own() {
    let story = Story::with_busybox();
    let told = story.boxlite(["run", "--rm", "busybox", "uname", "-r"]).run().success();
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let host_boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let boot =
        story.boxlite(["run", "--rm", "busybox", "cat", "/proc/sys/kernel/random/boot_id"]).run().success();
    assert!(told.out().starts_with("6."), "{}", told.out());
    // Inside an outer machine both run the same kernel build, yet never the same boot.
    assert!(told.out() != host || boot.out() != host_boot);
    assert_ne!(boot.out(), host_boot);
}

#[test]
fn a_missing_command_is_127_and_a_folder_is_126() {
    let story = Story::with_busybox();
    let told = story.boxlite(["run", "--rm", "busybox", "no-such-program"]).run().code(127);
    assert!(told.err().contains("no-such-program"), "{}", told.err());
    let told = story.boxlite(["run", "--rm", "busybox", "/etc"]).run().code(126);
    assert!(told.err().contains("/etc"), "{}", told.err());
}

#[test]
fn an_unknown_image_is_125_with_a_hint_and_leaves_nothing() {
    let story = Story::with_busybox();
    let told = story.boxlite(["run", "--rm", "no-such-image", "true"]).run().code(125);
    assert!(told.err().contains("no-such-image") && told.err().contains("hint:"), "{}", told.err());
    assert!(story.boxes().is_empty());
}

#[test]
fn wrong_settings_are_125_and_name_the_culprit() {
    let story = Story::with_busybox();
    for (flags, word) in [
        (vec!["--cpus", "17"], "17"),
        (vec!["-m", "1m"], "128"),
        (vec!["-w", "relative"], "relative"),
        (vec!["-w", "/no/such/folder"], "/no/such/folder"),
        (vec!["-u", "nobody-knows"], "nobody-knows"),
        (vec!["--name", "a/b"], "a/b"),
        (vec!["--cap-add", "NO_SUCH"], "NO_SUCH"),
    ] {
        let call = story.boxlite(["run", "--rm"]).args(&flags).args(["busybox", "true"]);
        let told = call.run().code(125);
        assert!(told.err().contains(word), "{flags:?}: {}", told.err());
        assert!(story.boxes().is_empty(), "{flags:?}");
    }
}

#[test]
fn input_reaches_the_command_byte_for_byte() {
    let story = Story::with_busybox();
    let bytes = b"a\0b\xff\r\n\x1b[0m";
    let told = story.boxlite(["run", "--rm", "-i", "busybox", "cat"]).input(*bytes).run().success();
    assert_eq!(told.stdout, bytes);
}

#[test]
fn without_i_the_command_reads_an_end_of_file() {
    let story = Story::with_busybox();
    let told = story.boxlite(["run", "--rm", "busybox", "cat"]).input("not passed on").run().success();
    assert_eq!(told.out(), "");
}

#[test]
fn settings_reach_the_command() {
    let story = Story::with_busybox();
    let told = story
        .boxlite([
            "run",
            "--rm",
            "-e",
            "A=1 2",
            "-e",
            "FROM_HERE",
            "-w",
            "/tmp",
            "-u",
            "nobody",
            "--hostname",
            "ship",
        ])
        .args(["--cpus", "2", "-m", "300m", "busybox", "sh", "-c"])
        .arg("echo \"$A|$FROM_HERE|$(pwd)|$(id -un)|$(hostname)|$(nproc)\"; grep MemTotal /proc/meminfo")
        .env("FROM_HERE", "x=y")
        .run()
        .success();
    let out = told.out();
    let mut lines = out.lines();
    assert_eq!(lines.next(), Some("1 2|x=y|/tmp|nobody|ship|2"));
    let kib: u32 = lines.next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((200 << 10..=300 << 10).contains(&kib), "{kib} KiB");
}

#[test]
fn a_command_has_dockers_default_capabilities() {
    let story = Story::with_busybox();
    let caps = |flags: &[&str]| {
        let call = story.boxlite(["run", "--rm"]).args(flags).args([
            "busybox",
            "grep",
            "CapEff",
            "/proc/self/status",
        ]);
        call.run().success().out().split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(caps(&[]), "00000000a80425fb");
    assert_eq!(caps(&["--cap-drop", "ALL", "--cap-add", "CHOWN"]), "0000000000000001");
    assert_eq!(caps(&["-u", "nobody"]), "0000000000000000");
}

#[test]
fn the_command_is_process_1_and_sees_only_its_own() {
    let story = Story::with_busybox();
    let told =
        story.boxlite(["run", "--rm", "busybox", "sh", "-c", "echo $$; ls -d /proc/[0-9]*"]).run().success();
    assert!(told.out().starts_with("1\n/proc/1\n"), "{}", told.out());
    assert!(told.out().lines().count() <= 3, "{}", told.out());
}

#[test]
fn an_image_without_a_shell_or_a_libc_runs() {
    let story = Story::empty();
    let image = boxlite_tests::layout::single_program("/bin/busybox".as_ref(), "/busybox");
    let told =
        story.boxlite(["run", "--rm"]).arg(image.path()).args(["/busybox", "echo", "alone"]).run().success();
    assert_eq!(told.out(), "alone\n");
}

#[test]
fn a_python_program_runs_from_a_debian_image() {
    let story = Story::empty();
    story.load("python.oci.tar");
    let program = "import sys, json, hashlib; print(json.dumps([sys.version_info[0], hashlib.sha256(b'x').hexdigest()]))";
    let told = story.boxlite(["run", "--rm", "python:3", "python3", "-c", program]).run().success();
    assert_eq!(told.out(), "[3, \"2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881\"]\n");
}

#[test]
fn a_box_in_a_very_deep_home_runs() {
    let folder = tempfile::tempdir().unwrap();
    let story = Story::at(folder.path().join("deep".repeat(20)).join("deeper".repeat(20)));
    story.load("busybox.oci.tar");
    let told = story.boxlite(["run", "--rm", "busybox", "echo", "far down"]).run().success();
    assert_eq!(told.out(), "far down\n");
}

#[test]
fn a_reader_that_goes_away_ends_the_box() {
    let story = Story::with_busybox();
    let mut yes = story.boxlite(["run", "--rm", "busybox", "yes"]).start_piped();
    let mut stdout = yes.child.stdout.take().unwrap();
    let mut first = [0; 2];
    std::io::Read::read_exact(&mut stdout, &mut first).unwrap();
    drop(stdout);
    assert_eq!(yes.wait().code(), Some(141));
}

#[test]
fn a_disk_has_the_size_that_was_asked_for() {
    let story = Story::with_busybox();
    // Below, at and above the sizes that are kept ready; a file system loses some of its disk to itself.
    for (size, least) in [("2g", 1800), ("10g", 9000), ("25g", 23_000)] {
        let told =
            story.boxlite(["run", "--rm", "--disk-size", size, "busybox", "df", "-Pm", "/"]).run().success();
        let out = told.out();
        let megabytes: u32 = out.lines().nth(1).unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!((least..least * 12 / 10).contains(&megabytes), "{size}: {out}");
    }
}
