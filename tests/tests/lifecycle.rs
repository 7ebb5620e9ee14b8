//! The life of boxes that many programs use: detached, paused, restarted, looked at, and stopped by themselves.

use std::time::{Duration, Instant, SystemTime};

use boxlite::{
    BoxCommand, BoxEventKind, BoxOptions, BoxStatus, BoxUpdate, BoxliteRuntime, ErrorKind, EventOptions,
    HealthCheckOptions, LogOptions, LogSource, RestartPolicy, StopReason,
};
use boxlite_tests::story::{PATIENCE, Story, eventually, kill};
use serde_json::Value;

fn tell<F: Future<Output = ()>>(story: impl FnOnce() -> F) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(story());
}

fn runtime(story: &Story) -> BoxliteRuntime {
    BoxliteRuntime::new(story.options()).unwrap()
}

/// Options of a box that stays when it ends, and when this program does.
fn kept(script: &str) -> BoxOptions {
    let mut options = BoxOptions::image("busybox");
    options.auto_remove = false;
    options.detach = true;
    options.cmd = Some(vec!["sh".into(), "-c".into(), script.into()]);
    options
}

/// Events of the home so far, as the command line tells them.
fn events(story: &Story, filters: &[&str]) -> Vec<Value> {
    let until = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let mut call =
        story.boxlite(["events", "--since", "1", "--format", "json", "--until", &until.to_string()]);
    for filter in filters {
        call = call.args(["--filter", filter]);
    }
    let told = call.run().success().out();
    told.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event"].as_str().unwrap()).collect()
}

async fn output(sandbox: &boxlite::LiteBox, script: &str) -> String {
    let mut run = sandbox.exec(BoxCommand::new("sh").args(["-c", script])).await.unwrap();
    let output = run.stdout().unwrap().read_to_end(1 << 20).await;
    assert_eq!(run.wait().await.unwrap().exit_code, 0, "{script}");
    String::from_utf8(output).unwrap()
}

#[test]
fn a_detached_box_outlives_its_program_and_another_one_takes_it_over() {
    let story = Story::with_busybox();
    let script =
        "echo to stdout; echo to stderr >&2; while [ ! -e /go ]; do sleep 0.1; done; echo last; exit 7";
    let told = story.boxlite(["run", "-d", "--name", "web", "busybox", "sh", "-c", script]).run().success();
    let id = told.out().trim().to_owned();
    assert_eq!(story.until_status("running")["id"], id.as_str());
    tell(|| async {
        let runtime = runtime(&story);
        let web = runtime.get("web").await.unwrap().unwrap();
        let mut log = web.logs(LogOptions { follow: true, ..LogOptions::default() }).await.unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while out.len() < 10 || err.len() < 10 {
            let chunk = log.next().await.unwrap().unwrap();
            assert!(chunk.time <= SystemTime::now());
            match chunk.source {
                LogSource::Stdout => out.extend_from_slice(&chunk.bytes),
                LogSource::Stderr => err.extend_from_slice(&chunk.bytes),
            }
        }
        assert_eq!((out.as_slice(), err.as_slice()), (&b"to stdout\n"[..], &b"to stderr\n"[..]));
        assert_eq!(output(&web, "touch /go; echo done").await, "done\n");
        assert_eq!(web.wait().await.unwrap(), 7);
        assert_eq!(log.next().await.unwrap().unwrap().bytes, &b"last\n"[..]);
        assert_eq!(log.next().await.unwrap(), None);
        let info = web.info().unwrap();
        assert_eq!((info.status, info.stop_reason), (BoxStatus::Stopped, Some(StopReason::Exited)));
    });
    let told = story.boxlite(["logs", "--tail", "1", "web"]).run().success();
    assert_eq!((told.out().as_str(), told.err().as_str()), ("last\n", ""));
    let told = story.boxlite(["logs", "-t", "web"]).run().success();
    assert!(told.out().lines().all(|line| line.starts_with("20") && line.contains("Z ")), "{}", told.out());
    assert!(story.boxlite(["logs", "--console", "web"]).run().success().out().len() < 4 << 20);
    assert_eq!(story.boxlite(["wait", "web"]).run().success().out(), "7\n");
    let expected = ["created", "started", "exec_started", "exec_exited", "exited"];
    assert_eq!(names(&events(&story, &["box=web"])), expected);
}

#[test]
fn a_box_is_created_started_stopped_restarted_and_keeps_its_disk() {
    let story = Story::with_busybox();
    let script = "date +%s%N >> /runs; trap 'exit 3' USR1; echo ready; while :; do sleep 0.1; done";
    let ready = |runs: usize| {
        eventually("it can be stopped", PATIENCE, || {
            story.boxlite(["logs", "work"]).run().success().out() == "ready\n".repeat(runs)
        });
    };
    let flags = ["create", "--name", "work", "--stop-signal", "USR1", "-l", "tier=test"];
    story.boxlite(flags).args(["busybox", "sh", "-c", script]).run().success();
    assert_eq!(story.boxes()[0]["status"], "configured");
    let told = story.boxlite(["pause", "work"]).run().code(1);
    assert!(told.err().contains("created") && told.err().contains("start it first"), "{}", told.err());
    assert_eq!(story.boxlite(["start", "work"]).run().success().out(), "work\n");
    // Once more changes nothing.
    story.boxlite(["start", "work"]).run().success();
    ready(1);
    story.boxlite(["stop", "work"]).run().success();
    let stopped = story.until_status("stopped");
    assert_eq!(
        (&stopped["exit_code"], &stopped["stop_reason"]),
        (&Value::from(3), &Value::from("requested"))
    );
    story.boxlite(["exec", "work", "true"]).run().code(125);
    // A stopped box is started by a restart, a running one stopped before.
    story.boxlite(["restart", "work"]).run().success();
    ready(2);
    story.boxlite(["restart", "-t", "5", "work"]).run().success();
    ready(3);
    let runs = story.boxlite(["exec", "work", "cat", "/runs"]).run().success().out();
    assert_eq!(runs.lines().count(), 3, "{runs}");
    let told = story.boxlite(["kill", "-s", "no-signal", "work"]).run().code(1);
    assert!(told.err().contains("`no-signal`"), "{}", told.err());
    story.boxlite(["kill", "-s", "USR1", "work"]).run().success();
    assert_eq!(story.boxlite(["wait", "work"]).run().success().out(), "3\n");
    story.boxlite(["kill", "work"]).run().code(1);
    story.boxlite(["start", "work"]).run().success();
    story.boxlite(["kill", "work"]).run().success();
    assert_eq!(story.boxlite(["wait", "work"]).run().success().out(), "137\n");
    let found = story.boxlite(["ps", "-q", "--filter", "label=tier=test", "-a"]).run().success().out();
    assert_eq!(found.lines().count(), 1);
    assert_eq!(story.boxlite(["ps", "-q", "--filter", "status=running"]).run().success().out(), "");
    let template = ["ps", "-a", "--format", "{{.Names}}|{{.State}}|{{.Labels}}"];
    assert_eq!(story.boxlite(template).run().success().out(), "work|stopped|tier=test\n");
    story.boxlite(["rm", "work"]).run().success();
}

#[test]
fn a_failing_box_runs_as_often_as_its_policy_allows() {
    let story = Story::with_busybox();
    let script = "echo run >> /runs; echo attempt; exit 4";
    story
        .boxlite(["run", "-d", "--name", "flaky", "--restart", "on-failure:3", "busybox", "sh", "-c", script])
        .run()
        .success();
    assert_eq!(story.boxlite(["wait", "flaky"]).run().success().out(), "4\n");
    let info = story.until_status("stopped");
    assert_eq!((&info["exit_code"], &info["restart_count"]), (&Value::from(4), &Value::from(3)));
    let told = events(&story, &["box=flaky", "event=started", "event=exited"]);
    assert_eq!(names(&told), ["started", "exited"].repeat(4));
    let times: Vec<f64> = told.iter().map(|event| event["time"].as_f64().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    let pauses: Vec<Option<u64>> =
        told.iter().skip(1).step_by(2).map(|event| event["restart_millis"].as_u64()).collect();
    assert_eq!(pauses, [Some(100), Some(200), Some(400), None]);
    // No run began before its pause was over.
    for (number, pause) in [0.1, 0.2, 0.4].iter().enumerate() {
        assert!(times[2 * number + 2] - times[2 * number + 1] >= *pause, "{times:?}");
    }
    assert_eq!(story.boxlite(["logs", "flaky"]).run().success().out(), "attempt\n".repeat(4));
    let told = story.boxlite(["run", "--rm", "--restart", "always", "busybox", "true"]).run().code(125);
    assert!(told.err().contains("-d"), "{}", told.err());
    let told = story.boxlite(["run", "-d", "--rm", "--restart", "always", "busybox", "true"]).run().code(125);
    assert!(told.err().contains("`always`"), "{}", told.err());
}

#[test]
fn a_box_that_always_runs_again_stays_stopped_once_it_is_stopped() {
    let story = Story::with_busybox();
    let script = "echo run; sleep 0.2";
    story
        .boxlite(["run", "-d", "--name", "again", "--restart", "always", "busybox", "sh", "-c", script])
        .run()
        .success();
    eventually("it ran three times", PATIENCE, || {
        story.boxlite(["logs", "again"]).run().success().out().lines().count() >= 3
    });
    story.boxlite(["stop", "-t", "1", "again"]).run().success();
    let stopped = story.until_status("stopped");
    assert_eq!(stopped["stop_reason"], "requested");
    let runs = story.boxlite(["logs", "again"]).run().success().out();
    story.boxlite(["update", "--restart", "no", "again"]).run().success();
    story.boxlite(["start", "again"]).run().success();
    story.boxlite(["wait", "again"]).run().success();
    assert_eq!(story.boxlite(["logs", "again"]).run().success().out(), format!("{runs}run\n"));
}

#[test]
fn a_box_whose_monitor_is_killed_is_stopped_recorded_and_startable() {
    let story = Story::with_busybox();
    let script = "echo up; while :; do sleep 0.1; done";
    story
        .boxlite(["run", "-d", "--name", "lost", "--restart", "on-failure:3", "busybox", "sh", "-c", script])
        .run()
        .success();
    let log = || story.boxlite(["logs", "lost"]).run().success().out();
    eventually("its first run has written", PATIENCE, || log() == "up\n");
    kill(story.role("monitor"), 9);
    let lost = story.until_status("failed");
    assert!(lost["error"].as_str().unwrap().contains("monitor was killed"), "{lost}");
    eventually("nothing of it runs", Duration::from_secs(10), || story.processes().is_empty());
    let told = events(&story, &["box=lost", "event=exited"]);
    assert_eq!(told.len(), 1, "{told:?}");
    story.boxlite(["start", "lost"]).run().success();
    assert_eq!(story.until_status("running")["restart_count"], 0);
    eventually("its second run has written", PATIENCE, || log() == "up\nup\n");
}

#[test]
fn a_box_that_ran_when_the_host_went_down_is_recorded_as_that() {
    let story = Story::with_busybox();
    story.boxlite(["run", "-d", "--name", "lost", "busybox", "sleep", "1000"]).run().success();
    story.until_status("running");
    for (pid, _) in story.processes() {
        kill(pid, 9);
    }
    eventually("nothing of it runs", Duration::from_secs(10), || story.processes().is_empty());
    let folder = std::fs::read_dir(story.home().join("boxes")).unwrap().next().unwrap().unwrap().path();
    let state = std::fs::read_to_string(folder.join("state")).unwrap();
    let now = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    std::fs::write(folder.join("state"), state.replace(now.trim(), "of another boot")).unwrap();
    // What a power cut leaves of a box in the making and of one in removal.
    std::fs::create_dir_all(story.home().join("tmp/removed-0123456789ab/logs")).unwrap();
    std::fs::create_dir_all(story.home().join("boxes/0123456789ab")).unwrap();
    std::fs::write(story.home().join("boxes/0123456789ab/owner"), "").unwrap();
    let lost = story.until_status("failed");
    assert!(lost["error"].as_str().unwrap().contains("host went down"), "{lost}");
    assert!(!folder.join("control.sock").exists());
    assert!(!story.home().join("boxes/0123456789ab").exists());
    assert!(!story.home().join("tmp/removed-0123456789ab").exists());
    story.boxlite(["start", "lost"]).run().success();
    story.until_status("running");
}

#[test]
fn a_paused_box_stands_still_and_goes_on_with_the_right_time() {
    tell(|| async {
        let story = Story::with_busybox();
        let runtime = runtime(&story);
        let script = "i=0; while :; do i=$((i+1)); echo $i > /dev/shm/count; done";
        let sandbox = runtime.create(kept(script), Some("still".into())).await.unwrap();
        sandbox.start().await.unwrap();
        let count = async || output(&sandbox, "cat /dev/shm/count").await.trim().parse::<u64>().unwrap_or(0);
        while count().await < 10 {}
        let asked = Instant::now();
        sandbox.pause().await.unwrap();
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        let paused = sandbox.info().unwrap();
        assert_eq!(paused.status, BoxStatus::Paused);
        let before = cpu_ticks(&story);
        let error = sandbox.exec(BoxCommand::new("true")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidState);
        assert!(error.report().contains("paused"), "{}", error.report());
        assert_eq!(sandbox.pause().await.unwrap_err().kind(), ErrorKind::InvalidState);
        assert!(sandbox.stats().await.unwrap().guest.is_none());
        // The one thing that has to take its time: a clock that stood still would be behind by it afterwards.
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(cpu_ticks(&story), before, "its machine has used the CPU");
        sandbox.resume().await.unwrap();
        assert_eq!(sandbox.resume().await.unwrap_err().kind(), ErrorKind::InvalidState);
        let resumed = count().await;
        while count().await <= resumed {}

        // How far the guest's clock is off, by the middle of the quickest of several questions.
        let mut best = (Duration::MAX, 0.0);
        for _ in 0..20 {
            let (asked, before) = (Instant::now(), SystemTime::now());
            let mut clock = sandbox.exec(BoxCommand::new("adjtimex")).await.unwrap();
            let told = clock.stdout().unwrap().read_to_end(1 << 16).await;
            let took = asked.elapsed();
            let told = String::from_utf8(told).unwrap();
            let field = |name: &str| {
                let line = told.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap();
                line.trim_start_matches(':').trim().parse::<f64>().unwrap()
            };
            let told = field("time.tv_sec") + field("time.tv_usec") / 1e6;
            let middle = before.duration_since(SystemTime::UNIX_EPOCH).unwrap() + took / 2;
            if took < best.0 {
                best = (took, told - middle.as_secs_f64());
            }
        }
        println!("the guest's clock is off by {:.1} ms, known to {:?}", best.1 * 1e3, best.0 / 2);
        // Where answers take long, more than this cannot be told.
        let most = 0.1 + best.0.as_secs_f64() / 2.0;
        assert!(best.1.abs() < most, "off by {} s, of {most} s", best.1);

        // A paused box can be stopped: it goes on to its end.
        sandbox.pause().await.unwrap();
        sandbox.stop_with(0, Duration::ZERO).await.unwrap();
        assert_eq!(sandbox.info().unwrap().status, BoxStatus::Stopped);
        let told = events(&story, &["box=still"]);
        let told: Vec<_> = names(&told).into_iter().filter(|name| !name.starts_with("exec_")).collect();
        assert_eq!(told, ["created", "started", "paused", "resumed", "paused", "exited"]);
        runtime.remove("still", false).await.unwrap();
    });
}

/// CPU time that the machine of the only box has used.
fn cpu_ticks(story: &Story) -> u64 {
    let machines = story.processes().into_iter().filter(|(_, line)| !line.ends_with("boxlite-shim monitor "));
    let stats = machines.filter_map(|(pid, _)| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    stats
        .map(|stat| {
            let (_, fields) = stat.rsplit_once(')').unwrap();
            let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        })
        .sum()
}

#[test]
fn a_box_that_is_killed_while_it_is_paused_leaves_nothing() {
    for victim in ["monitor", "vmm"] {
        let story = Story::with_busybox();
        story.boxlite(["run", "-d", "--name", "still", "busybox", "sleep", "1000"]).run().success();
        story.boxlite(["pause", "still"]).run().success();
        assert!(story.boxlite(["ps"]).run().success().out().contains("(Paused)"));
        kill(story.role(victim), 9);
        let lost = story.until_status("failed");
        assert!(lost["error"].as_str().unwrap().contains("paused"), "{lost}");
        eventually("nothing of it runs", Duration::from_secs(10), || story.processes().is_empty());
    }
}

#[test]
fn an_idle_box_is_stopped_and_wakes_for_a_command() {
    tell(|| async {
        let story = Story::with_busybox();
        let runtime = runtime(&story);
        let mut options = kept("sleep 100000");
        options.auto_stop = Some(Duration::from_secs(2));
        let sandbox = runtime.create(options, Some("idle".into())).await.unwrap();
        sandbox.start().await.unwrap();
        // It is not idle while a command runs in it.
        assert_eq!(output(&sandbox, "sleep 3; echo awake > /file; echo slept").await, "slept\n");
        assert_eq!(sandbox.wait().await.unwrap(), 137);
        let info = sandbox.info().unwrap();
        assert_eq!((info.status, info.stop_reason), (BoxStatus::Stopped, Some(StopReason::Idle)));
        assert_eq!(output(&sandbox, "cat /file").await, "awake\n");
        assert_eq!(sandbox.info().unwrap().status, BoxStatus::Running);
        sandbox.stop_with(0, Duration::ZERO).await.unwrap();
        // What somebody stopped stays stopped.
        let error = sandbox.exec(BoxCommand::new("true")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stopped, "{}", error.report());
        runtime.remove("idle", false).await.unwrap();
    });
}

#[test]
fn a_box_lives_as_long_as_it_may_and_settings_change_while_it_does() {
    tell(|| async {
        let story = Story::with_busybox();
        let runtime = runtime(&story);
        let sandbox = runtime.create(kept("sleep 100000"), Some("ttl".into())).await.unwrap();
        sandbox.start().await.unwrap();
        let update = BoxUpdate {
            memory_mib: Some(300),
            cpus: Some(2),
            labels: vec![("a".into(), Some("b".into()))],
            max_duration: Some(Some(Duration::from_millis(1))),
            restart: Some(RestartPolicy::Always),
            ..BoxUpdate::default()
        };
        sandbox.update(update).await.unwrap();
        assert_eq!(sandbox.wait().await.unwrap(), 137);
        let info = runtime.get_info("ttl").await.unwrap().unwrap();
        assert_eq!(info.stop_reason, Some(StopReason::MaxDuration));
        assert_eq!(
            (info.memory_mib, info.cpus, info.labels.get("a").map(String::as_str)),
            (300, 2, Some("b"))
        );
        let update = BoxUpdate { max_duration: Some(None), ..BoxUpdate::default() };
        sandbox.update(update).await.unwrap();
        sandbox.start().await.unwrap();
        assert_eq!(output(&sandbox, "nproc").await, "2\n");
        let error = sandbox.update(BoxUpdate { cpus: Some(0), ..BoxUpdate::default() }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        sandbox.rename("other").await.unwrap();
        assert!(runtime.get("ttl").await.unwrap().is_none());
        let other = runtime.get("other").await.unwrap().unwrap();
        assert_eq!(other.id(), sandbox.id());
        runtime.remove("other", true).await.unwrap();
        let told = events(&story, &[]);
        let renamed = told.iter().find(|event| event["event"] == "renamed").unwrap();
        assert_eq!((&renamed["name"], &renamed["from"]), (&Value::from("other"), &Value::from("ttl")));
    });
}

#[test]
fn a_health_check_finds_a_box_well_unwell_and_well_again() {
    tell(|| async {
        let story = Story::with_busybox();
        let runtime = runtime(&story);
        let mut options = kept("sleep 100000");
        options.health_check = HealthCheckOptions {
            interval: Some(Duration::from_millis(100)),
            retries: Some(2),
            ..HealthCheckOptions::shell("echo looked; test ! -e /ill")
        };
        let sandbox = runtime.create(options, Some("patient".into())).await.unwrap();
        let mut told =
            runtime.events(EventOptions { target: Some("patient".into()), ..Default::default() }).unwrap();
        let mut verdict = async || loop {
            let event = tokio::time::timeout(PATIENCE, told.next()).await.unwrap().unwrap().unwrap();
            match event.kind {
                BoxEventKind::Health { status } => return status.name(),
                // What the monitor runs for its own sake is no event.
                BoxEventKind::ExecStarted { command, .. } => {
                    assert!(command.concat().contains("/ill"), "{command:?}")
                }
                _ => {}
            }
        };
        sandbox.start().await.unwrap();
        assert_eq!(verdict().await, "healthy");
        output(&sandbox, "touch /ill").await;
        assert_eq!(verdict().await, "unhealthy");
        let health = sandbox.info().unwrap().health.unwrap();
        assert!(health.failing_streak >= 2 && health.probes.len() <= 5, "{health:?}");
        let last = health.probes.last().unwrap();
        assert_eq!((last.exit_code, last.output.as_str()), (1, "looked"));
        assert!(story.boxlite(["ps"]).run().success().out().contains("(unhealthy)"));
        let found = story.boxlite(["ps", "-q", "--filter", "health=unhealthy"]).run().success().out();
        assert_eq!(found.trim(), sandbox.id());
        output(&sandbox, "rm /ill").await;
        assert_eq!(verdict().await, "healthy");
        runtime.remove("patient", true).await.unwrap();
    });
}

#[test]
fn what_boxes_use_is_told_to_people_and_to_prometheus() {
    tell(|| async {
        let story = Story::with_busybox();
        let runtime = runtime(&story);
        let sandbox = runtime.create(kept("sleep 100000"), Some("busy".into())).await.unwrap();
        sandbox.start().await.unwrap();
        output(&sandbox, "dd if=/dev/zero of=/file bs=1M count=20 conv=fsync; i=0; while [ $i -lt 10000 ]; do i=$((i+1)); done").await;
        sandbox.exec(BoxCommand::new("no-such-program")).await.unwrap_err();
        let stats = sandbox.stats().await.unwrap();
        let guest = stats.guest.clone().unwrap();
        assert!(
            stats.host_memory_bytes > 50 << 20 && stats.host_cpu > Duration::from_millis(100),
            "{stats:?}"
        );
        assert!(guest.memory_total_bytes > 500 << 20 && guest.cpu > Duration::from_millis(5), "{guest:?}");
        assert!(guest.disk_written_bytes >= 20 << 20 && guest.disk_used_bytes >= 20 << 20, "{guest:?}");
        assert!(guest.tasks >= 1 && guest.executions == 0, "{guest:?}");
        assert!(
            stats.start_duration >= stats.boot_duration && stats.boot_duration > Duration::ZERO,
            "{stats:?}"
        );
        let metrics = sandbox.metrics().await.unwrap();
        assert_eq!((metrics.commands_executed_total, metrics.exec_errors_total), (1, 1));
        let whole = runtime.metrics().await.unwrap();
        assert_eq!((whole.boxes_created_total, whole.num_running_boxes), (1, 1));
        assert_eq!((whole.total_commands_executed, whole.total_exec_errors), (1, 1));
        let text = story.boxlite(["metrics"]).run().success().out();
        let line = format!("boxlite_box_up{{id=\"{}\",name=\"busy\"}} 1\n", sandbox.id());
        assert!(text.contains(&line) && text.contains("boxlite_box_disk_written_bytes_total{"), "{text}");
        let shown = story.boxlite(["stats", "--no-stream"]).run().success().out();
        assert!(shown.contains("busy") && shown.contains('%'), "{shown}");
        runtime.remove("busy", true).await.unwrap();
    });
}

#[test]
fn randomness_is_there_before_anything_runs() {
    let story = Story::with_busybox();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let told = story
            .boxlite([
                "run",
                "--rm",
                "busybox",
                "sh",
                "-c",
                "head -c 32 /dev/random | base64; dmesg | grep -c 'uninitialized urandom' || true",
            ])
            .run()
            .success();
        seen.push(told.out().lines().next().unwrap().to_owned());
    }
    assert!(seen[0].len() > 40 && seen[0] != seen[1], "{seen:?}");
}
