//! Commands in a box, as a program runs them.

use std::time::{Duration, Instant};

use boxlite::{BoxCommand, BoxOptions, BoxliteRuntime, ErrorKind, LiteBox, Ulimit};
use boxlite_tests::story::Story;
use nix::sys::socket::{Shutdown, UnixAddr, getpeername, shutdown};

fn tell<F: Future<Output = ()>>(story: impl FnOnce() -> F) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(story());
}

async fn sandbox(story: &Story) -> (BoxliteRuntime, LiteBox) {
    let runtime = BoxliteRuntime::new(story.options()).unwrap();
    let mut options = BoxOptions::image("busybox");
    // Its first process is one that reaps, so that the dead of an execution do not stay.
    options.cmd = Some(vec!["sh".into(), "-c".into(), "while :; do sleep 1; done".into()]);
    let sandbox = runtime.create(options, None).await.unwrap();
    sandbox.start().await.unwrap();
    (runtime, sandbox)
}

fn sh(script: &str) -> BoxCommand {
    BoxCommand::new("sh").args(["-c", script])
}

/// Runs something to its end: what it wrote, and its exit code.
async fn output(sandbox: &LiteBox, command: BoxCommand) -> (String, i32) {
    let mut execution = sandbox.exec(command).await.unwrap();
    let (mut stdout, stderr) = (execution.stdout().unwrap(), execution.stderr());
    drop(stderr);
    let text = String::from_utf8(stdout.read_to_end(1 << 20).await).unwrap();
    (text, execution.wait().await.unwrap().exit_code)
}

/// Breaks every connection of this process to a portal.
fn break_portals() -> usize {
    let mut broken = 0;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let Ok(number) = entry.unwrap().file_name().into_string().unwrap().parse::<i32>() else { continue };
        let is_portal = getpeername::<UnixAddr>(number)
            .ok()
            .and_then(|peer| peer.path().map(|path| path.ends_with("portal.sock")))
            .unwrap_or_default();
        if is_portal {
            shutdown(number, Shutdown::Both).unwrap();
            broken += 1;
        }
    }
    broken
}

#[test]
fn a_time_limit_ends_the_whole_tree_in_time() {
    tell(|| async {
        let story = Story::with_busybox();
        let (_runtime, sandbox) = sandbox(&story).await;
        let begun = Instant::now();
        let command = sh("sleep 1000 & exec sleep 1000").timeout(Duration::from_secs(5));
        let result = sandbox.exec(command).await.unwrap().wait().await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
        assert_eq!((result.timed_out, result.exit_code), (true, -9));
        let (left, _) = output(&sandbox, sh("ps -o stat,args | grep -v '^Z' | grep -c '[s]leep 1000'")).await;
        assert_eq!(left, "0\n");
        sandbox.stop_with(0, Duration::ZERO).await.unwrap();
    });
}

#[test]
fn the_command_line_says_that_time_ran_out() {
    let story = Story::with_busybox();
    story.boxlite(["run", "-d", "--name", "b", "busybox", "sleep", "1000"]).run().success();
    let told = story.boxlite(["exec", "--timeout", "1s", "b", "sleep", "1000"]).run().code(124);
    assert!(told.err().contains("ran out of time"), "{}", told.err());
    story.boxlite(["exec", "--timeout", "30s", "b", "true"]).run().success();
    story.boxlite(["rm", "-f", "b"]).run().success();
}

#[test]
fn orphans_do_not_survive_unless_they_may() {
    tell(|| async {
        let story = Story::with_busybox();
        let (_runtime, sandbox) = sandbox(&story).await;
        let count = sh("ps -o stat,args | grep -v '^Z' | grep -c '[s]leep 777'");
        let script = "sleep 777 >/dev/null 2>&1 & echo started";
        assert_eq!(output(&sandbox, sh(script)).await, ("started\n".into(), 0));
        assert_eq!(output(&sandbox, count.clone()).await.0, "0\n");
        assert_eq!(output(&sandbox, sh(script).keep_orphans(true)).await, ("started\n".into(), 0));
        assert_eq!(output(&sandbox, count).await.0, "1\n");
        // One that keeps the output open is waited for, though not for long, and that is told.
        let begun = Instant::now();
        let held = sandbox.exec(sh("sleep 1000 & echo early")).await.unwrap();
        let result = held.wait().await.unwrap();
        assert_eq!((result.exit_code, result.output_cut), (0, true));
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        sandbox.stop_with(0, Duration::ZERO).await.unwrap();
    });
}

#[test]
fn a_lost_connection_comes_back_and_the_exit_arrives_once() {
    tell(|| async {
        let story = Story::with_busybox();
        let (_runtime, sandbox) = sandbox(&story).await;
        let script = "i=0; while [ $i -lt 200 ]; do echo $i; i=$((i+1)); sleep 0.05; done; exit 9";
        let mut counting = sandbox.exec(sh(script)).await.unwrap();
        let mut sleeping = sandbox.exec(BoxCommand::new("sleep").arg("1000")).await.unwrap();
        drop(sleeping.stdout());
        let mut stdout = counting.stdout().unwrap();
        let mut seen = Vec::new();
        for _ in 0..3 {
            let before = seen.len();
            while seen.len() < before + 20 {
                seen.extend(stdout.next().await.unwrap());
            }
            assert!(break_portals() > 0);
        }
        seen.extend(stdout.read_to_end(1 << 20).await);
        let expected: String = (0..200).map(|i| format!("{i}\n")).collect();
        assert_eq!(String::from_utf8(seen).unwrap(), expected, "the box had kept what was under way");
        for _ in 0..3 {
            let result = counting.wait().await.unwrap();
            assert_eq!((result.exit_code, result.output_cut), (9, false));
        }
        break_portals();
        sleeping.kill().await.unwrap();
        assert_eq!(sleeping.wait().await.unwrap().exit_code, -9);
        assert_eq!(sandbox.exec(BoxCommand::new("true")).await.unwrap().wait().await.unwrap().exit_code, 0);
        sandbox.stop_with(0, Duration::ZERO).await.unwrap();
    });
}

#[test]
fn waiting_for_an_execution_keeps_nobody_from_ending_it() {
    tell(|| async {
        let story = Story::with_busybox();
        let (_runtime, sandbox) = sandbox(&story).await;
        let running =
            sandbox.exec(sh("trap 'exit 5' USR1; while :; do sleep 0.1; done").tty(10, 20)).await.unwrap();
        let waits = futures_util::future::join_all((0..16).map(|_| running.wait()));
        let ending = async {
            running.resize_tty(30, 40).await.unwrap();
            // As soon as its trap is set.
            loop {
                running.signal(10).await.unwrap_or_default();
                if tokio::time::timeout(Duration::from_millis(500), running.wait()).await.is_ok() {
                    break;
                }
            }
        };
        let (results, ()) = tokio::join!(waits, ending);
        assert!(results.into_iter().all(|result| [5, -10].contains(&result.unwrap().exit_code)));
        assert!(running.signal(10).await.is_err());
        sandbox.stop_with(0, Duration::ZERO).await.unwrap();
    });
}

#[test]
fn hundreds_at_once_and_thousands_in_turn_leave_nothing_behind() {
    tell(|| async {
        let story = Story::with_busybox();
        let (_runtime, sandbox) = sandbox(&story).await;
        let many = (0..200_i32).map(|n| {
            let sandbox = sandbox.clone();
            async move {
                let (text, code) = output(&sandbox, sh(&format!("echo {n}; exit {}", n % 100))).await;
                assert_eq!((text, code), (format!("{n}\n"), n % 100));
            }
        });
        futures_util::future::join_all(many).await;
        let agents = "for d in /sys/fs/cgroup/exec-*; do [ -d $d ] && echo $d; done | wc -l";
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        for n in 0..400 {
            let execution = sandbox.exec(BoxCommand::new("true").stdin(false)).await.unwrap();
            assert_eq!(execution.wait().await.unwrap().exit_code, 0, "{n}");
        }
        assert!(open() <= before + 2, "{} descriptors, then {}", before, open());
        // Its own cgroup is there while it looks.
        let (left, _) = output(&sandbox, sh(agents)).await;
        assert!(left.trim().parse::<usize>().unwrap() <= 2, "{left}");
        sandbox.stop_with(0, Duration::ZERO).await.unwrap();
    });
}

#[test]
fn an_execution_is_what_its_caller_asks_for() {
    tell(|| async {
        let story = Story::with_busybox();
        let (_runtime, sandbox) = sandbox(&story).await;
        let limit = |name: &str, soft, hard| Ulimit::new(name, soft, hard);
        let command = sh("ulimit -n; ulimit -Hn").ulimit(limit("nofile", 100, 200));
        assert_eq!(output(&sandbox, command).await.0, "100\n200\n");
        assert_eq!(output(&sandbox, sh("ulimit -n")).await.0, "1048576\n");
        assert_eq!(output(&sandbox, sh("id -u; id -g").user("12:34")).await.0, "12\n34\n");
        let plain = output(&sandbox, sh("grep CapEff /proc/self/status")).await.0;
        let mut command = sh("grep CapEff /proc/self/status");
        command.cap_add = vec!["SYS_ADMIN".into()];
        let with = output(&sandbox, command).await.0;
        let bits = |text: &str| u64::from_str_radix(text.split_whitespace().last().unwrap(), 16).unwrap();
        assert_eq!(bits(&with), bits(&plain) | 1 << 21);
        let error = sandbox.exec(sh("true").working_dir("/does/not/exist")).await.unwrap_err();
        assert!(error.report().contains("/does/not/exist"), "{}", error.report());
        let error = sandbox.exec(sh("true").ulimit(limit("joy", 1, 1))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        sandbox.stop_with(0, Duration::ZERO).await.unwrap();
    });
}

#[test]
fn another_process_attaches_to_an_execution_by_its_id() {
    let story = Story::with_busybox();
    story.boxlite(["run", "-d", "--name", "b", "busybox", "sleep", "1000"]).run().success();
    let script = "echo first; read line; echo got $line; exit 3";
    // Without a terminal its input would be /dev/null once nobody is attached.
    let started = story.boxlite(["exec", "-d", "-t", "b", "sh", "-c", script]).run().success();
    let id = started.out().trim().to_owned();
    let attached = story.boxlite(["attach", "--exec", &id, "b"]).input("second\n").run().code(3);
    assert!(attached.out().contains("first") && attached.out().contains("got second"), "{}", attached.out());
    // Also after the end, with what it wrote last.
    let again = story.boxlite(["attach", "--no-stdin", "--exec", &id, "b"]).run().code(3);
    assert!(again.out().contains("got second"), "{}", again.out());
    let none = story.boxlite(["attach", "--exec", "nothing", "b"]).run().code(1);
    assert!(none.err().contains("no execution"), "{}", none.err());
    // Nobody reads what it writes, and it goes on all the same.
    let loud = story
        .boxlite(["exec", "-d", "b", "sh", "-c", "head -c 4m /dev/zero; echo done > /done"])
        .run()
        .success();
    assert_eq!(loud.out().trim().len(), 12);
    boxlite_tests::story::eventually("the end of what nobody reads", Duration::from_secs(60), || {
        story.boxlite(["exec", "b", "cat", "/done"]).run().out() == "done\n"
    });
    story.boxlite(["rm", "-f", "b"]).run().success();
}

#[test]
fn descriptors_of_this_process_are_found_by_their_peer() {
    // What the test of lost connections rests on.
    let folder = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(folder.path().join("portal.sock")).unwrap();
    let stream = std::os::unix::net::UnixStream::connect(folder.path().join("portal.sock")).unwrap();
    let (_peer, _) = listener.accept().unwrap();
    assert_eq!(break_portals(), 1);
    assert!(std::io::Read::read(&mut &stream, &mut [0]).is_ok_and(|count| count == 0));
}
