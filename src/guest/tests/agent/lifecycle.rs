//! What a host can rely on that keeps a box for long: events, activity, statistics, the clock, readers that observe.

use std::fs;
use std::time::{Duration, SystemTime};

use boxlite_guest::events::MAX_SUBSCRIBERS;
use boxlite_guest::process::counter::Counter;
use boxlite_portal::v1::guest_event::Event;
use boxlite_portal::v1::start_failure::Kind;
use boxlite_portal::v1::{
    Activity, AttachRequest, AttachResponse, EventsRequest, ExecExited, ExecStarted, GuestEvent, PingRequest,
    ProcessSpec, SetClockRequest, SetClockResponse, ShutdownRequest, StatsRequest, StatsResponse,
    attach_response,
};
use tonic::{Code, Status, Streaming};

use crate::harness::{TestAgent, code, killed, read, sh, spec};
use crate::stories::{shutdown, signal, stories, until};

async fn subscribe(agent: &TestAgent) -> Result<Streaming<GuestEvent>, Status> {
    agent.portal.guest().events(EventsRequest {}).await.map(tonic::Response::into_inner)
}

/// The next event; `None` at the end of the stream.
async fn next(events: &mut Streaming<GuestEvent>) -> Option<Event> {
    events.message().await.expect("a message").map(|message| message.event.expect("an event"))
}

/// Reads events up to this activity. Gives what else there was, and every other activity.
async fn up_to(events: &mut Streaming<GuestEvent>, executions: u32, attached: u32) -> Vec<Event> {
    let wanted = activity(executions, attached);
    let mut before = Vec::new();
    loop {
        match next(events).await.expect("more events") {
            event if event == wanted => return before,
            event => before.push(event),
        }
    }
}

fn activity(executions: u32, attached: u32) -> Event {
    Event::Activity(Activity { executions, attached })
}

fn started(id: &str, process: &ProcessSpec) -> Event {
    Event::ExecStarted(ExecStarted { execution_id: id.to_owned(), args: process.args.clone() })
}

fn exited(id: &str, exit: boxlite_portal::v1::Exit) -> Event {
    Event::ExecExited(ExecExited { execution_id: id.to_owned(), exit: Some(exit) })
}

async fn attach(agent: &TestAgent, id: &str, observe: bool) -> Streaming<AttachResponse> {
    let request = AttachRequest { execution_id: id.to_owned(), observe, ..Default::default() };
    agent.portal.execution().attach(request).await.expect("a stream").into_inner()
}

async fn stats(agent: &TestAgent) -> StatsResponse {
    agent.portal.guest().stats(StatsRequest {}).await.expect("an answer").into_inner()
}

async fn set_clock(agent: &TestAgent, unix_time_nanos: u64) -> Result<SetClockResponse, Status> {
    let request = SetClockRequest { unix_time_nanos };
    agent.portal.guest().set_clock(request).await.map(tonic::Response::into_inner)
}

fn unix_nanos() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time after 1970");
    u64::try_from(since.as_nanos()).expect("a time before 2554")
}

stories! {
    async fn events_tell_of_an_execution_and_its_exit_and_of_no_quiet_one(bench) {
        let agent = bench.idle().await;
        let mut events = subscribe(&agent).await.expect("a stream");
        assert_eq!(next(&mut events).await, Some(activity(0, 0)), "the first word");
        agent.exec_quietly("quiet", sh("exit 1")).await.expect("it starts");
        assert_eq!(agent.wait("quiet").await, code(1));
        agent.exec_quietly("bad", spec(&["no-such-program"])).await.expect_err("it cannot start");
        let process = sh("exit 3");
        agent.exec("loud", process.clone()).await.expect("it starts");
        assert_eq!(agent.wait("loud").await, code(3));
        let failure = agent.exec("bad", spec(&["no-such-program", "x"])).await.expect_err("it cannot start");
        let mut told = Vec::new();
        let failed = loop {
            match next(&mut events).await.expect("more events") {
                Event::ExecFailed(failed) => break failed,
                Event::Activity(_) => {}
                event => told.push(event),
            }
        };
        assert_eq!(told, [started("loud", &process), exited("loud", code(3))]);
        assert_eq!((failed.execution_id.as_str(), failed.failure), ("bad", Some(failure)));
        assert_eq!(failed.args, spec(&["no-such-program", "x"]).args);
    }

    async fn activity_counts_executions_and_attached_clients(bench) {
        let agent = bench.idle().await;
        let mut events = subscribe(&agent).await.expect("a stream");
        assert_eq!(up_to(&mut events, 0, 0).await, []);
        let process = sh("sleep 1000");
        agent.exec("x", process.clone()).await.expect("it starts");
        assert_eq!(stats(&agent).await.executions, 1, "it counts as soon as it has started");
        assert_eq!(up_to(&mut events, 1, 0).await, [started("x", &process)]);
        // Of all this nothing is told.
        agent.exec_quietly("quiet", sh("sleep 1000")).await.expect("it starts");
        let observers = (attach(&agent, "x", true).await, attach(&agent, "quiet", false).await);
        assert_eq!(stats(&agent).await.executions, 1);
        let main = attach(&agent, "main", false).await;
        assert_eq!(up_to(&mut events, 1, 1).await, []);
        let other = attach(&agent, "x", false).await;
        assert_eq!(up_to(&mut events, 1, 2).await, []);
        drop(observers);
        drop(main);
        assert_eq!(up_to(&mut events, 1, 1).await, []);
        assert_eq!(signal(&agent, "quiet", libc::SIGKILL, false).await, Ok(()));
        assert_eq!(agent.wait("quiet").await, killed(libc::SIGKILL));
        assert_eq!(signal(&agent, "x", libc::SIGKILL, false).await, Ok(()));
        assert_eq!(up_to(&mut events, 0, 1).await, [exited("x", killed(libc::SIGKILL))]);
        drop(other);
        assert_eq!(up_to(&mut events, 0, 0).await, []);
        let mut late = subscribe(&agent).await.expect("a stream");
        assert_eq!(next(&mut late).await, Some(activity(0, 0)));
    }

    async fn a_subscriber_that_does_not_read_holds_up_nobody_and_is_told_what_it_missed(bench) {
        let agent = bench.idle().await;
        let mut slow = subscribe(&agent).await.expect("a stream");
        // As large as events get, and without a process: more than a connection and a queue hold.
        let unknown = "x".repeat(1000);
        let process = ProcessSpec { user: unknown.clone(), ..spec(&["true", &unknown]) };
        let all = 2000;
        for _ in 0..all {
            let failure = agent.exec("x", process.clone()).await.expect_err("there is no such user");
            assert_eq!(failure.kind(), Kind::UnknownUser);
        }
        let (mut told, mut missed) = (0, 0);
        while told + missed < all {
            match next(&mut slow).await.expect("more events") {
                Event::ExecFailed(_) => told += 1,
                Event::Missed(events) => missed += events.events,
                Event::Activity(_) => {}
                event => panic!("{event:?}"),
            }
        }
        assert_eq!(told + missed, all);
        assert!(told > 256 && missed > 0, "{told} {missed}");
        agent.exec("y", sh("exit 2")).await.expect("it starts");
        assert_eq!(up_to(&mut slow, 1, 0).await, [started("y", &sh("exit 2"))], "it is up to date");
    }

    async fn the_number_of_subscribers_is_bounded(bench) {
        let agent = bench.agent().await;
        let mut subscribers = Vec::new();
        for _ in 0..MAX_SUBSCRIBERS {
            subscribers.push(subscribe(&agent).await.expect("a stream"));
        }
        let refused = subscribe(&agent).await.expect_err("one too many");
        assert_eq!(refused.code(), Code::ResourceExhausted);
        subscribers.pop();
        until("a place", async || subscribe(&agent).await.is_ok()).await;
    }

    async fn events_end_with_the_box_and_leave_nothing_out(bench) {
        let mut agent = bench.idle().await;
        let mut events = subscribe(&agent).await.expect("a stream");
        let process = sh("sleep 1000");
        agent.exec("x", process.clone()).await.expect("it starts");
        assert_eq!(up_to(&mut events, 1, 0).await, [activity(0, 0), started("x", &process)]);
        agent.portal.guest().shutdown(shutdown(0, 0)).await.expect("an answer");
        assert_eq!(up_to(&mut events, 0, 0).await, [exited("x", killed(libc::SIGKILL))]);
        assert_eq!(next(&mut events).await, None);
        drop(events);
        assert!(agent.ended().await);
    }

    async fn an_observer_does_not_take_the_place_of_the_first_reader(bench) {
        let agent = bench.idle().await;
        agent.exec("big", sh("seq 1 600000")).await.expect("it starts");
        let mut stream = attach(&agent, "big", true).await;
        // As much as is kept for the first reader: an observer gets no further before that one comes.
        let mut seen = Vec::new();
        while seen.len() < boxlite_guest::execution::output::CAPACITY {
            match stream.message().await.expect("a message").and_then(|message| message.event) {
                Some(attach_response::Event::Output(output)) => seen.extend_from_slice(&output.data),
                other => panic!("{other:?}"),
            }
        }
        let observer = tokio::spawn(read(stream));
        agent.sh("other", "true").await;
        assert!(!observer.is_finished());
        let first = agent.attach("big").await;
        let expected: String = (1..=600_000).map(|number| format!("{number}\n")).collect();
        assert_eq!(first.first, Some(0));
        assert!(first.text() == expected, "{} bytes instead of {}", first.stdout.len(), expected.len());
        let rest = observer.await.expect("an end");
        assert!([seen, rest.stdout].concat() == expected.as_bytes(), "an observer gets all of it, too");
        assert_eq!((first.exit, rest.exit), (code(0), code(0)));
    }

    async fn the_end_of_the_box_waits_for_an_observer(bench) {
        let agent = bench.idle().await;
        agent.exec_quietly("x", sh("echo hi")).await.expect("it starts");
        let mut stream = attach(&agent, "x", true).await;
        let mut message = async || stream.message().await.expect("a message").expect("a message").event;
        while !matches!(message().await, Some(attach_response::Event::Exit(_))) {}
        let portal = agent.portal.clone();
        let request = ShutdownRequest { drain_millis: 30_000, ..shutdown(0, 0) };
        let ending = tokio::spawn(async move { portal.guest().shutdown(request).await.map(drop) });
        assert_eq!(agent.wait("main").await, killed(libc::SIGKILL));
        assert!(agent.portal.guest().ping(PingRequest {}).await.is_ok());
        assert!(!ending.is_finished(), "somebody is attached");
        drop(stream);
        assert!(ending.await.expect("an end").is_ok());
    }

    async fn stats_see_what_the_container_uses(bench) {
        let agent = bench.agent().await;
        let before = stats(&agent).await;
        let container = (before.cpu_nanos, before.memory_bytes, before.tasks, before.disk_total_bytes);
        assert_eq!(container, (0, 0, 0, 0), "there is no container yet");
        assert!(before.memory_available_bytes > 0);
        assert!(before.memory_available_bytes < before.memory_total_bytes);
        agent.init().await;
        agent.main(ProcessSpec::default()).await.expect("it starts");
        let idle = stats(&agent).await;
        assert!(idle.disk_total_bytes > 8 << 20 && idle.disk_used_bytes < 8 << 20, "{idle:?}");
        assert!(idle.disk_read_bytes > 0, "the image was read");

        // Uses the disk and the CPU, and then holds 16 MiB that nobody reads.
        let hold = "dd if=/dev/zero of=/file bs=1M count=8 2>/dev/null; i=0; \
            while [ $i -lt 200000 ]; do i=$((i + 1)); done; \
            dd if=/dev/zero bs=16M count=1 2>/dev/null | { dd bs=16M count=1 iflag=fullblock; sleep 1000; } | sleep 1000";
        agent.exec("x", sh(hold)).await.expect("it starts");
        let controlled = |file: &str| agent.container_cgroup().join(file).exists();
        until("a use of everything", async || {
            let now = stats(&agent).await;
            now.cpu_nanos > idle.cpu_nanos + 20_000_000
                && now.disk_used_bytes >= idle.disk_used_bytes + (8 << 20)
                && (!controlled("memory.current") || now.memory_bytes > idle.memory_bytes + (16 << 20))
                && (!controlled("pids.current") || now.tasks >= idle.tasks + 3)
        })
        .await;
        let now = stats(&agent).await;
        assert_eq!((now.executions, now.oom_kills), (1, 0));
        assert!(now.uptime_nanos > before.uptime_nanos);
    }

    async fn the_clock_is_set_only_when_it_is_off(bench) {
        let agent = bench.agent().await;
        assert_eq!(set_clock(&agent, 0).await.expect_err("no time").code(), Code::InvalidArgument);
        let mut nearly = None;
        // On a busy machine the answer to one question may come late.
        until("a clock that is right", async || {
            nearly = set_clock(&agent, unix_nanos()).await.ok();
            nearly.is_some()
        })
        .await;
        let nearly = nearly.expect("an answer");
        assert!(!nearly.set && (-5_000_000..=5_000_000).contains(&nearly.ahead_nanos), "{nearly:?}");
        // The agent of this test may not set the clock, and says so when it tries.
        let hour = 3_600_000_000_000;
        for off in [unix_nanos() - hour, unix_nanos() + hour] {
            let refused = set_clock(&agent, off).await.expect_err("it is not allowed");
            assert_eq!(refused.code(), Code::Internal);
            assert!(refused.message().contains("cannot set the clock"), "{refused:?}");
        }
        let beyond = set_clock(&agent, u64::MAX).await.expect_err("no kernel counts to this");
        assert_eq!(beyond.code(), Code::InvalidArgument);
    }

    async fn a_change_of_a_cgroups_number_is_told_by_the_kernel(bench) {
        let agent = bench.idle().await;
        let cgroup = agent.container_cgroup();
        let open = |name| Counter::open(&cgroup.join("cgroup.events"), name);
        let mut frozen = open("frozen").expect("a file").expect("a number");
        assert!(open("of no such name").is_err());
        assert!(Counter::open(&cgroup.join("no.such.file"), "x").expect("no failure").is_none());
        for number in [1, 0] {
            let waiting = tokio::spawn(async move { (frozen.changed().await, frozen) });
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(!waiting.is_finished());
            fs::write(cgroup.join("cgroup.freeze"), number.to_string()).expect("it freezes and thaws");
            let told;
            (told, frozen) = waiting.await.expect("an end");
            assert_eq!(told.expect("a number"), number);
        }
    }
}
