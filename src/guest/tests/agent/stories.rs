//! What a host can rely on.

use std::collections::HashSet;
use std::future::Future;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::time::{Duration, Instant};

use boxlite_portal::v1::start_failure::Kind;
use boxlite_portal::v1::{
    AttachRequest, ContainerInitRequest, ContainerStartRequest, ExecRequest, Exit, PingRequest, ProcessSpec,
    ResizeRequest, Rlimit, ShutdownRequest, SignalRequest, StdinRequest, StreamKind, TerminalSize,
    WaitRequest, attach_response, stdin_request,
};
use tonic::Code;

use crate::harness::{Bench, TestAgent, can_grow, code, killed, open_files, sh, spec};

pub(crate) type Story = for<'a> fn(&'a Bench) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Defines stories, and a function that gives them by name.
macro_rules! stories {
    ($($(#[$doc:meta])* async fn $name:ident($bench:ident) $body:block)*) => {
        /// All stories by name.
        pub(crate) fn all() -> Vec<(&'static str, $crate::stories::Story)> {
            vec![$((stringify!($name), |bench| Box::pin($name(bench)))),*]
        }
        $($(#[$doc])* async fn $name($bench: &$crate::harness::Bench) $body)*
    };
}
pub(crate) use stories;

fn data(bytes: &[u8]) -> StdinRequest {
    StdinRequest { action: Some(stdin_request::Action::Data(bytes.to_vec().into())), ..Default::default() }
}

fn close() -> StdinRequest {
    StdinRequest { action: Some(stdin_request::Action::Close(true)), ..Default::default() }
}

/// Sends one stream of input, and gives how much of it was written.
async fn stdin(agent: &TestAgent, id: &str, mut messages: Vec<StdinRequest>) -> u64 {
    messages[0].execution_id = id.to_owned();
    agent
        .portal
        .execution()
        .stdin(tokio_stream::iter(messages))
        .await
        .expect("an answer")
        .into_inner()
        .written
}

pub(crate) async fn signal(agent: &TestAgent, id: &str, signal: i32, all: bool) -> Result<(), Code> {
    let request = SignalRequest { execution_id: id.to_owned(), signal: signal.unsigned_abs(), all };
    agent.portal.execution().signal(request).await.map(drop).map_err(|status| status.code())
}

pub(crate) fn shutdown(signal: i32, grace_millis: u64) -> ShutdownRequest {
    ShutdownRequest { signal: signal.unsigned_abs(), grace_millis, drain_millis: 100, discard: false }
}

pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < Duration::from_secs(20), "{what} did not come");
        tokio::task::yield_now().await;
    }
}

stories! {
    async fn the_main_command_runs_as_process_one_and_its_output_and_exit_are_kept(bench) {
        let agent = bench.agent().await;
        agent.init().await;
        assert_eq!(agent.main(sh("echo out $$; echo err >&2; exit 7")).await.expect("it starts").pid, 1);
        for _ in 0..2 {
            let seen = agent.attach("main").await;
            assert_eq!((seen.text().as_str(), seen.stderr.as_slice(), seen.exit), ("out 1\n", &b"err\n"[..], code(7)));
        }
        assert_eq!(agent.wait("main").await, code(7));
    }

    async fn when_memory_runs_out_no_process_of_the_container_is_treated_as_the_agent_is(bench) {
        let agent = bench.idle().await;
        assert_eq!(agent.sh("x", "cat /proc/1/oom_score_adj /proc/self/oom_score_adj").await, "0\n0\n");
    }

    async fn calls_out_of_order_are_refused_and_change_nothing(bench) {
        let agent = bench.agent().await;
        let create = || ContainerInitRequest { main: Some(sh("echo started")), ..Default::default() };
        let precondition = Some(Code::FailedPrecondition);
        let mut container = agent.portal.container();
        assert_eq!(container.init(create()).await.err().map(|status| status.code()), precondition);
        assert_eq!(container.start(ContainerStartRequest {}).await.err().map(|status| status.code()), precondition);
        let exec = ExecRequest { execution_id: "x".into(), process: Some(sh("true")), ..Default::default() };
        let refused = agent.portal.execution().exec(exec.clone()).await;
        assert_eq!(refused.err().map(|status| status.code()), precondition);

        let mut wrong = agent.init_request();
        wrong.writable_device = "/dev/null".into();
        assert!(agent.portal.guest().init(wrong).await.is_err());
        agent.init().await;
        let again = agent.portal.guest().init(agent.init_request()).await;
        assert_eq!(again.err().map(|status| status.code()), precondition);

        agent.create(create()).await;
        assert_eq!(container.init(create()).await.err().map(|status| status.code()), precondition);
        let refused = agent.portal.execution().exec(exec).await;
        assert_eq!(refused.err().map(|status| status.code()), precondition, "the main command comes first");
        let first = agent.start_main().await.expect("it starts");
        assert_eq!(agent.start_main().await.expect("the same answer"), first);
        assert_eq!(agent.attach("main").await.text(), "started\n", "it ran once");
    }

    async fn the_machine_is_prepared_as_asked(bench) {
        let agent = bench.idle().await;
        let names = agent.sh("a", "hostname; cat /etc/hostname; grep testbox /etc/hosts | wc -l").await;
        assert_eq!(names, "testbox\ntestbox\n1\n");
        let blocks = agent.sh("b", "stat -f -c %b:%S / 2>/dev/null || busybox stat -f -c %b:%S /").await;
        let (blocks, size) = blocks.trim().split_once(':').expect("two numbers");
        let bytes = blocks.parse::<u64>().expect("a number") * size.parse::<u64>().expect("a number");
        assert!(!can_grow() || bytes > 32 << 20, "the writable layer has grown to its device: {bytes}");
        assert_eq!(agent.run("c", sh("echo kept > /file && cat /file")).await.exit, code(0));
    }

    async fn an_idle_main_command_needs_nothing_of_the_image_and_ends_when_asked(bench) {
        let mut agent = bench.agent_of_empty_image().await;
        agent.init().await;
        agent.main(ProcessSpec::default()).await.expect("it starts");
        let failure = agent.exec("x", spec(&["sh"])).await.expect_err("there is nothing to run");
        assert_eq!(failure.kind(), Kind::NotFound);
        let answer = agent.portal.guest().shutdown(shutdown(libc::SIGTERM, 30_000)).await.expect("an answer");
        assert_eq!(answer.into_inner().main, Some(code(0)));
        assert!(agent.ended().await);
    }

    async fn an_idle_main_command_reaps_the_orphans_of_executions(bench) {
        let agent = bench.idle().await;
        agent.run("x", sh("(sleep 0 & echo $!; sleep 0 & sleep 0 &) >/dev/null")).await;
        let mut round = 0;
        until("an end of all zombies", async || {
            round += 1;
            agent.sh(&format!("ps{round}"), "grep -l '^State:.Z' /proc/[0-9]*/status | wc -l").await == "0\n"
        })
        .await;
    }

    async fn what_cannot_start_says_why(bench) {
        let agent = bench.idle().await;
        let at = |cwd: &str| ProcessSpec { cwd: cwd.as_bytes().to_vec(), ..sh("true") };
        let by = |user: &str| ProcessSpec { user: user.to_owned(), ..sh("true") };
        let cases = [
            (spec(&["no-such-program"]), Kind::NotFound, libc::ENOENT),
            (spec(&["/no/such/program"]), Kind::NotFound, libc::ENOENT),
            (spec(&["/bin/sh/x"]), Kind::NotFound, libc::ENOTDIR),
            (spec(&[""]), Kind::NotFound, libc::ENOENT),
            (spec(&["orphan"]), Kind::NotFound, libc::ENOENT),
            (spec(&["/bin"]), Kind::NotExecutable, libc::EACCES),
            (spec(&["text"]), Kind::NotExecutable, libc::EACCES),
            (spec(&["garbage"]), Kind::NotExecutable, libc::ENOEXEC),
            (at("/no/such"), Kind::BadWorkingDirectory, libc::ENOENT),
            (at("/bin/sh"), Kind::BadWorkingDirectory, libc::ENOTDIR),
            (by("eve"), Kind::UnknownUser, 0),
            (by("ann:eve"), Kind::UnknownUser, 0),
        ];
        for (spec, kind, errno) in cases {
            let failure = agent.exec("x", spec.clone()).await.expect_err("it cannot start");
            assert_eq!((failure.kind(), failure.errno), (kind, errno), "{spec:?}: {}", failure.message);
        }
        let seen = agent.run("x", spec(&["script", "argument"])).await;
        assert_eq!(seen.text(), "/bin/script argument\n", "an id whose start failed is free");
    }

    async fn a_main_command_that_cannot_start_says_why_each_time(bench) {
        let agent = bench.agent().await;
        agent.init().await;
        let failure = agent.main(spec(&["no-such-program"])).await.expect_err("it cannot start");
        assert_eq!(failure.kind(), Kind::NotFound);
        assert_eq!(agent.start_main().await.expect_err("it never will"), failure);
        let attach = AttachRequest { execution_id: "main".into(), ..Default::default() };
        let status = agent.portal.execution().attach(attach).await.expect_err("there is nothing to read");
        assert_eq!(status.code(), Code::FailedPrecondition);
        let answer = agent.portal.guest().shutdown(shutdown(15, 1000)).await.expect("an answer");
        assert_eq!(answer.into_inner().main, None);
    }

    async fn mistakes_of_the_caller_are_refused_before_anything_starts(bench) {
        let agent = bench.idle().await;
        let refused = async |id: &str, process: ProcessSpec| {
            let request = ExecRequest { execution_id: id.to_owned(), process: Some(process), ..Default::default() };
            agent.portal.execution().exec(request).await.expect_err("a mistake").code()
        };
        for id in ["", "main", "a/b", "../x", "a b"] {
            assert_eq!(refused(id, sh("true")).await, Code::InvalidArgument, "{id:?}");
        }
        assert_eq!(refused("x", spec(&[])).await, Code::InvalidArgument);
        assert_eq!(refused("x", spec(&["a\0b"])).await, Code::InvalidArgument);
        let limit = |name: &str| vec![Rlimit { name: name.to_owned(), soft: 1, hard: 1 }];
        assert_eq!(refused("x", ProcessSpec { rlimits: limit("JOY"), ..sh("true") }).await, Code::InvalidArgument);
        let missing = WaitRequest { execution_id: "nobody".into() };
        assert_eq!(agent.portal.execution().wait(missing).await.expect_err("unknown").code(), Code::NotFound);
    }

    async fn exit_codes_and_signals_arrive_as_they_are(bench) {
        let agent = bench.idle().await;
        assert_eq!(agent.run("a", sh("exit 255")).await.exit, code(255));
        assert_eq!(agent.run("b", sh("kill -KILL $$")).await.exit, killed(libc::SIGKILL));
        assert_eq!(agent.run("c", sh("kill -34 $$")).await.exit, killed(34));
    }

    async fn many_executions_at_once_each_get_their_own_status(bench) {
        let agent = bench.idle().await;
        let runs = (0..60).map(|number| {
            let (portal, id) = (agent.portal.clone(), format!("n{number}"));
            tokio::spawn(async move {
                let process = sh(&format!("(sleep 0 &) ; exit {number}"));
                let request = ExecRequest { execution_id: id.clone(), process: Some(process), ..Default::default() };
                portal.execution().exec(request).await.expect("it starts");
                let wait = WaitRequest { execution_id: id };
                (number, portal.execution().wait(wait).await.expect("an answer").into_inner().exit)
            })
        });
        for run in runs.collect::<Vec<_>>() {
            let (number, exit) = run.await.expect("a result");
            assert_eq!(exit, Some(code(number)));
        }
    }

    async fn an_id_that_is_asked_for_again_starts_nothing_twice(bench) {
        let agent = bench.idle().await;
        let script = "echo ran >> /ran; sleep 0";
        let again = || agent.exec("once", sh(script));
        let (first, second) = tokio::join!(again(), again());
        let first = first.expect("it starts");
        assert_eq!(second.expect("the same answer"), first);
        assert_eq!(agent.wait("once").await, code(0));
        assert_eq!(again().await.expect("the same answer after the end"), first);
        assert_eq!(agent.sh("count", "wc -l < /ran").await, "1\n");
    }

    async fn a_process_gets_the_defaults_of_docker(bench) {
        let agent = bench.idle().await;
        let env = agent.run("env", spec(&["env"])).await.text();
        let env: HashSet<&str> = env.lines().collect();
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        assert_eq!(env, HashSet::from([path, "HOME=/root", "HOSTNAME=testbox"]));
        let shown = "^(Cap|NoNewPrivs|SigIgn|SigBlk)";
        let status = agent.run("status", spec(&["grep", "-E", shown, "/proc/self/status"])).await.text();
        let expected = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nCapInh:\t0000000000000000\n\
            CapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\n\
            CapAmb:\t0000000000000000\nNoNewPrivs:\t0\n";
        assert_eq!(status, expected);
        assert_eq!(agent.sh("files", "ulimit -n; umask; pwd").await, format!("{}\n0022\n/\n", open_files()));
        let limits = vec![Rlimit { name: "RLIMIT_NOFILE".into(), soft: 64, hard: 128 }];
        let limited = ProcessSpec { rlimits: limits, ..sh("ulimit -Sn; ulimit -Hn") };
        assert_eq!(agent.run("limited", limited).await.text(), "64\n128\n");
        assert_eq!(agent.sh("oom", "cat /proc/self/oom_score_adj").await, "0\n");
    }

    async fn nothing_of_the_agent_is_open_or_reachable_in_a_process(bench) {
        let agent = bench.idle().await;
        let listing = agent.sh("fds", "ls /proc/self/fd | wc -l; ls /proc/1/fd").await;
        // ls itself has its folder open.
        assert!(listing.starts_with("4\n"), "{listing}");
        let first = agent.run("first", sh("cat /proc/1/environ; ls -l /proc/1/root/; ls -l /proc/1/fd/")).await;
        assert!(!first.stderr.is_empty(), "the idle process must not be looked into: {first:?}");
        let processes = agent.sh("ps", "ls -d /proc/[0-9]* | wc -l").await;
        assert!(processes.trim().parse::<u32>().expect("a number") <= 4, "{processes}");
    }

    async fn users_are_those_of_the_container(bench) {
        let agent = bench.idle().await;
        let by = |user: &str, script: &str| ProcessSpec { user: user.to_owned(), ..sh(script) };
        // Not `id -G`, which shows the primary group in any case.
        let id = "id -u; id -g; echo $(grep Groups /proc/self/status); echo $HOME";
        let ann = agent.run("a", by("ann", id)).await;
        assert_eq!(ann.text(), "1000\n1001\nGroups: 50 1001\n/home/ann\n", "the kernel sorts them");
        let staff = agent.run("b", by("1000:50", id)).await;
        assert_eq!(staff.text(), "1000\n50\nGroups: 50\n/home/ann\n");
        assert_eq!(agent.run("c", by("77", id)).await.text(), "77\n0\nGroups: 0\n/\n");
        let caps = by("ann", "grep -E '^Cap(Prm|Eff|Bnd|Inh|Amb)' /proc/self/status");
        let expected = "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
            CapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\n";
        assert_eq!(agent.run("d", caps).await.text(), expected);
        let reopened = agent.run("e", by("ann", "echo again > /dev/stdout; echo again > /dev/stderr")).await;
        assert_eq!((reopened.text().as_str(), reopened.stderr.as_slice()), ("again\n", &b"again\n"[..]));
        let private = ProcessSpec { cwd: b"/private".to_vec(), ..by("ann", "pwd; ls /private") };
        let private = agent.run("f", private).await;
        assert_eq!(private.text(), "/private\n", "the working directory is entered as root");
        assert!(!private.stderr.is_empty(), "and read as the user");
    }

    async fn capabilities_are_added_and_dropped(bench) {
        let agent = bench.agent().await;
        agent.init().await;
        agent
            .create(ContainerInitRequest {
                main: Some(sh("grep CapEff /proc/self/status")),
                capabilities_add: vec!["SYS_PTRACE".into()],
                capabilities_drop: vec!["CAP_MKNOD".into(), "net_raw".into()],
                await_attach: true,
                mounts: Vec::new(),
            })
            .await;
        agent.start_main().await.expect("it starts");
        assert_eq!(agent.attach("main").await.text(), "CapEff:\t00000000a00c05fb\n");
    }

    async fn an_execution_inherits_directory_and_user_of_the_main_command(bench) {
        let agent = bench.agent().await;
        agent.init().await;
        let main = ProcessSpec { cwd: b"/home/ann".to_vec(), user: "ann".into(), ..Default::default() };
        agent.main(main).await.expect("it starts");
        assert_eq!(agent.sh("x", "pwd; id -u").await, "/home/ann\n1000\n");
    }

    async fn closing_the_input_leaves_the_output_open(bench) {
        let agent = bench.idle().await;
        agent.exec("cat", ProcessSpec { stdin: true, ..sh("cat; echo end") }).await.expect("it starts");
        assert_eq!(stdin(&agent, "cat", vec![data(b"one ")]).await, 4);
        // The stream before ended without a close, so the input is still open.
        assert_eq!(stdin(&agent, "cat", vec![data(b"two\n"), close()]).await, 4);
        let seen = agent.attach("cat").await;
        assert_eq!((seen.text().as_str(), seen.exit), ("one two\nend\n", code(0)));
        assert_eq!(stdin(&agent, "cat", vec![data(b"late")]).await, 0);
    }

    async fn a_process_that_stops_reading_is_known_by_what_was_written(bench) {
        let agent = bench.idle().await;
        let process = ProcessSpec { stdin: true, ..sh("head -c 3 >/dev/null; exec 0<&-; sleep 1000") };
        agent.exec("x", process).await.expect("it starts");
        let chunks = vec![data(&vec![b'x'; 60_000]); 20];
        let written = stdin(&agent, "x", chunks).await;
        assert!((3..1_200_000).contains(&written), "{written}");
        assert_eq!(signal(&agent, "x", libc::SIGKILL, false).await, Ok(()));
    }

    async fn input_that_nobody_reads_holds_up_neither_signals_nor_waiting(bench) {
        let agent = bench.idle().await;
        agent.exec("x", ProcessSpec { stdin: true, ..sh("sleep 1000") }).await.expect("it starts");
        let portal = agent.portal.clone();
        let writing = tokio::spawn(async move {
            let mut messages = vec![data(&vec![b'x'; 60_000]); 20];
            messages[0].execution_id = "x".into();
            portal.execution().stdin(tokio_stream::iter(messages)).await.expect("an answer").into_inner().written
        });
        assert_eq!(signal(&agent, "x", libc::SIGKILL, false).await, Ok(()));
        assert_eq!(agent.wait("x").await, killed(libc::SIGKILL));
        assert!(writing.await.expect("an answer") < 1_200_000);
    }

    async fn an_execution_waits_for_its_reader_and_loses_nothing(bench) {
        let agent = bench.idle().await;
        agent.exec("big", sh("seq 1 600000")).await.expect("it starts");
        assert!(agent.portal.guest().ping(PingRequest {}).await.is_ok());
        let seen = agent.attach("big").await;
        let expected: String = (1..=600_000).map(|number| format!("{number}\n")).collect();
        assert_eq!(seen.first, Some(0));
        assert!(seen.text() == expected, "{} bytes instead of {}", seen.stdout.len(), expected.len());
        assert_eq!(seen.exit, code(0));
    }

    async fn a_main_command_that_nobody_reads_goes_on_and_keeps_its_newest_output(bench) {
        let agent = bench.running("seq 1 200000; echo done").await;
        assert_eq!(agent.wait("main").await, code(0));
        let seen = agent.attach("main").await;
        assert!(seen.first > Some(0), "the oldest was dropped");
        assert!(seen.text().ends_with("200000\ndone\n"));
    }

    async fn a_reader_may_ask_for_one_stream_only(bench) {
        let agent = bench.idle().await;
        agent.exec("x", sh("seq 1 2000; echo wanted >&2")).await.expect("it starts");
        let request = AttachRequest { execution_id: "x".into(), streams: vec![StreamKind::Stderr.into()], ..Default::default() };
        let mut stream = agent.portal.execution().attach(request).await.expect("a stream").into_inner();
        let mut seen = Vec::new();
        let exit = loop {
            match stream.message().await.expect("a message").and_then(|message| message.event).expect("an event") {
                attach_response::Event::Output(output) => seen.extend_from_slice(&output.data),
                attach_response::Event::Exit(exit) => break exit,
            }
        };
        assert_eq!((seen.as_slice(), exit), (&b"wanted\n"[..], code(0)));
    }

    async fn the_stream_stays_open_after_the_exit_until_the_reader_drops_it(bench) {
        let agent = bench.idle().await;
        agent.exec("x", sh("echo hi")).await.expect("it starts");
        let request = AttachRequest { execution_id: "x".into(), ..Default::default() };
        let mut stream = agent.portal.execution().attach(request).await.expect("a stream").into_inner();
        let mut next = async || stream.message().await.expect("a message").expect("a message").event;
        while !matches!(next().await, Some(attach_response::Event::Exit(_))) {}
        // The end of the box waits for it, and so proves that it was open.
        let portal = agent.portal.clone();
        let request = ShutdownRequest { drain_millis: 30_000, ..shutdown(0, 0) };
        let ending = tokio::spawn(async move { portal.guest().shutdown(request).await.map(drop) });
        assert!(agent.wait("main").await == killed(libc::SIGKILL));
        assert!(agent.portal.guest().ping(PingRequest {}).await.is_ok());
        assert!(!ending.is_finished(), "somebody is attached");
        drop(stream);
        assert!(ending.await.expect("an end").is_ok());
    }

    async fn a_descendant_that_keeps_the_output_is_not_waited_for_and_not_harmed_if_it_may_stay(bench) {
        let agent = bench.idle().await;
        let script = sh("(sleep 3; echo late; echo alive > /alive) & echo early");
        agent.exec_keeping("x", script, 0).await.expect("it starts");
        let seen = agent.attach("x").await;
        assert_eq!(seen.text(), "early\n");
        assert_eq!(seen.exit, Exit { output_cut: true, ..code(0) });
        let mut round = 0;
        until("the descendant's file", async || {
            round += 1;
            agent.sh(&format!("look{round}"), "cat /alive 2>/dev/null").await == "alive\n"
        })
        .await;
    }

    async fn a_time_limit_kills_the_whole_tree(bench) {
        let agent = bench.idle().await;
        let started = Instant::now();
        agent.exec_for("x", sh("sleep 1000 & (sleep 1000 &) ; sleep 1000"), 300).await.expect("it starts");
        let exit = agent.attach("x").await.exit;
        assert_eq!(exit, Exit { timed_out: true, ..killed(libc::SIGKILL) });
        assert!(started.elapsed() < Duration::from_secs(10), "the output ended with the tree");
        assert_eq!(agent.sh("ps", "grep -l sleep /proc/[0-9]*/comm | wc -l").await, "0\n");
        agent.exec_for("y", sh("exit 4"), 30_000).await.expect("it starts");
        assert_eq!(agent.wait("y").await, code(4));
    }

    async fn nothing_that_an_execution_has_started_outlives_it(bench) {
        let agent = bench.idle().await;
        let silent = "(trap '' TERM HUP; exec sleep 1000) >/dev/null 2>&1 & setsid sleep 1000 >/dev/null 2>&1 & exit 3";
        assert_eq!(agent.run("silent", sh(silent)).await.exit, code(3));
        let seen = agent.run("open", sh("sleep 1000 & echo early; exit 4")).await;
        assert_eq!((seen.text(), seen.exit), ("early\n".into(), Exit { output_cut: true, ..code(4) }));
        let mut round = 0;
        until("an end of the trees", async || {
            round += 1;
            agent.sh(&format!("ps{round}"), "grep -l sleep /proc/[0-9]*/comm | wc -l").await == "0\n"
        })
        .await;
    }

    async fn a_time_limit_holds_for_what_outlives_the_first_process(bench) {
        let agent = bench.idle().await;
        agent.exec_keeping("open", sh("sleep 1000 &"), 300).await.expect("it starts");
        assert_eq!(agent.wait("open").await, code(0), "the output ended with the tree and was not cut");
        agent.exec_keeping("silent", sh("sleep 1000 >/dev/null 2>&1 &"), 300).await.expect("it starts");
        assert_eq!(agent.wait("silent").await, code(0));
        let mut round = 0;
        until("an end of the tree", async || {
            round += 1;
            agent.sh(&format!("ps{round}"), "grep -l sleep /proc/[0-9]*/comm | wc -l").await == "0\n"
        })
        .await;
    }

    async fn signals_reach_the_first_process_or_all(bench) {
        let agent = bench.idle().await;
        let script = "trap 'echo trapped; exit 5' TERM; (sleep 1000; echo child) & echo ready; \
            while :; do sleep 0.01; done";
        agent.exec("x", sh(script)).await.expect("it starts");
        // Only a shell that has set its trap says ready.
        let request = AttachRequest { execution_id: "x".into(), ..Default::default() };
        let mut stream = agent.portal.execution().attach(request).await.expect("a stream").into_inner();
        assert!(stream.message().await.expect("a message").is_some());
        assert_eq!(signal(&agent, "x", libc::SIGTERM, false).await, Ok(()));
        assert_eq!(agent.wait("x").await, Exit { output_cut: true, ..code(5) });
        assert_eq!(signal(&agent, "x", libc::SIGTERM, false).await, Err(Code::FailedPrecondition));

        agent.exec("y", sh("sleep 1000 & wait")).await.expect("it starts");
        assert_eq!(signal(&agent, "y", libc::SIGKILL, true).await, Ok(()));
        assert_eq!(agent.attach("y").await.exit, killed(libc::SIGKILL));
        for number in [65, 1000] {
            assert_eq!(signal(&agent, "y", number, false).await, Err(Code::InvalidArgument));
        }
        assert_eq!(signal(&agent, "y", 0, false).await, Ok(()), "it is known");
        assert_eq!(signal(&agent, "z", 0, false).await, Err(Code::NotFound));
    }

    async fn a_terminal_is_one_of_the_containers_own(bench) {
        let agent = bench.idle().await;
        let size = |rows, columns| TerminalSize { rows, columns };
        let script = "tty; stty size; trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.01; done";
        let process = ProcessSpec { terminal: Some(size(11, 22)), stdin: true, ..sh(script) };
        agent.exec("x", process).await.expect("it starts");
        let request = AttachRequest { execution_id: "x".into(), ..Default::default() };
        let mut stream = agent.portal.execution().attach(request).await.expect("a stream").into_inner();
        let mut seen = String::new();
        let mut exit = None;
        let mut resized = false;
        while exit.is_none() {
            match stream.message().await.expect("a message").and_then(|message| message.event).expect("an event") {
                attach_response::Event::Output(output) => seen.push_str(&String::from_utf8_lossy(&output.data)),
                attach_response::Event::Exit(ended) => exit = Some(ended),
            }
            if seen.contains("ready") && !resized {
                resized = true;
                let request = ResizeRequest { execution_id: "x".into(), size: Some(size(33, 44)) };
                agent.portal.execution().resize(request).await.expect("it is resized");
            }
        }
        assert_eq!(seen, "/dev/pts/0\r\n11 22\r\nready\r\n33 44\r\n");
        assert_eq!(exit, Some(code(0)));
        let by_ann = ProcessSpec {
            terminal: Some(size(1, 1)),
            user: "ann".into(),
            ..sh("echo again > /dev/tty; echo $TERM; test -t 0 && test -t 1 && test -t 2 && echo three")
        };
        assert_eq!(agent.run("y", by_ann).await.text(), "again\r\nxterm\r\nthree\r\n");
    }

    async fn the_end_of_a_terminals_input_is_seen_even_within_a_line(bench) {
        let agent = bench.idle().await;
        let terminal = Some(TerminalSize { rows: 5, columns: 5 });
        let cat = || ProcessSpec { terminal, stdin: true, ..sh("stty -echo; echo ready; cat; echo end") };
        for (id, input) in [("a", &b"line\n"[..]), ("b", b"no line")] {
            agent.exec(id, cat()).await.expect("it starts");
            let request = AttachRequest { execution_id: id.into(), ..Default::default() };
            let mut stream = agent.portal.execution().attach(request).await.expect("a stream").into_inner();
            assert!(stream.message().await.expect("a message").is_some());
            stdin(&agent, id, vec![data(input), close()]).await;
            assert_eq!(agent.attach(id).await.exit, code(0), "{id}");
        }
    }

    async fn executions_end_with_the_main_command(bench) {
        let agent = bench.running("trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done").await;
        agent.exec("x", sh("trap '' TERM HUP; sleep 1000")).await.expect("it starts");
        let request = AttachRequest { execution_id: "main".into(), ..Default::default() };
        let mut stream = agent.portal.execution().attach(request).await.expect("a stream").into_inner();
        assert!(stream.message().await.expect("a message").is_some());
        assert_eq!(signal(&agent, "main", libc::SIGTERM, false).await, Ok(()));
        assert_eq!(agent.wait("main").await, code(3));
        assert_eq!(agent.wait("x").await, killed(libc::SIGKILL));
        let failure = agent.exec("y", sh("true")).await.expect_err("there is no container any more");
        assert_eq!(failure.message, "the container has ended");
    }

    async fn who_attaches_before_the_start_waits_for_it(bench) {
        let agent = bench.agent().await;
        let portal = agent.portal.clone();
        let waiting = tokio::spawn(async move {
            portal.execution().wait(WaitRequest { execution_id: "main".into() }).await.expect("an answer").into_inner()
        });
        agent.init().await;
        agent.main(sh("exit 6")).await.expect("it starts");
        assert_eq!(waiting.await.expect("an answer").exit, Some(code(6)));
    }

    async fn who_waits_for_a_main_command_that_never_starts_is_told(bench) {
        let mut agent = bench.agent().await;
        agent.init().await;
        agent.create(ContainerInitRequest { main: Some(sh("true")), ..Default::default() }).await;
        let portal = agent.portal.clone();
        let request = WaitRequest { execution_id: "main".into() };
        let waiting = tokio::spawn(async move { portal.execution().wait(request).await.map(drop) });
        assert!(agent.portal.guest().ping(PingRequest {}).await.is_ok());
        let answer = agent.portal.guest().shutdown(shutdown(15, 30_000)).await.expect("an answer");
        assert_eq!(answer.into_inner().main, None);
        assert_eq!(waiting.await.expect("an end").expect_err("no end").code(), Code::FailedPrecondition);
        assert!(agent.ended().await);
    }

    async fn a_main_command_that_ignores_its_signal_is_killed_after_its_grace(bench) {
        let mut agent = bench.running("trap '' TERM; while :; do sleep 0.01; done").await;
        let started = Instant::now();
        let answer = agent.portal.guest().shutdown(shutdown(libc::SIGTERM, 300)).await.expect("an answer");
        assert_eq!(answer.into_inner().main, Some(killed(libc::SIGKILL)));
        assert!(started.elapsed() >= Duration::from_millis(300));
        assert!(agent.ended().await);
    }

    async fn a_second_shutdown_shortens_the_first(bench) {
        let agent = bench.running("trap '' TERM; while :; do sleep 0.01; done").await;
        let started = Instant::now();
        let first = tokio::spawn({
            let portal = agent.portal.clone();
            async move { portal.guest().shutdown(shutdown(libc::SIGTERM, 600_000)).await.expect("an answer").into_inner() }
        });
        until("a refusal of new executions", async || {
            let request = ExecRequest { execution_id: "x".into(), process: Some(sh("true")), ..Default::default() };
            agent.portal.execution().exec(request).await.is_err()
        })
        .await;
        let second = agent.portal.guest().shutdown(shutdown(0, 600_000)).await.expect("an answer").into_inner();
        assert_eq!(second.main, Some(killed(libc::SIGKILL)));
        assert_eq!(first.await.expect("an answer"), second);
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    async fn clients_that_stay_silent_hold_up_nobody(bench) {
        let agent = bench.agent().await;
        let silent: Vec<UnixStream> = (0..16).map(|_| UnixStream::connect(&agent.socket).expect("a connection")).collect();
        let started = Instant::now();
        let portal = boxlite_portal::client::Portal::connect(&agent.socket, "test", Duration::from_secs(5)).await;
        portal.expect("a connection").guest().ping(PingRequest {}).await.expect("an answer");
        assert!(started.elapsed() < boxlite_portal::limits::HELLO_TIMEOUT);
        drop(silent);
    }

    async fn clients_of_another_version_are_told_and_others_go_on(bench) {
        use std::io::{Read, Write};
        let agent = bench.agent().await;
        let mut odd = UnixStream::connect(&agent.socket).expect("a connection");
        odd.write_all(b"BXLP\0\0\0\0\x01x").expect("a hello of version 0");
        odd.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
        let read = tokio::task::spawn_blocking(move || {
            let mut answer = Vec::new();
            odd.read_to_end(&mut answer).map(|_| answer)
        });
        let answer = read.await.expect("an end").expect("an answer");
        let current = boxlite_portal::version::CURRENT.to_be_bytes();
        assert!(answer.starts_with(&[&b"BXLP"[..], &current].concat()), "{answer:?}");
        assert!(agent.portal.guest().ping(PingRequest {}).await.is_ok());
    }
}
