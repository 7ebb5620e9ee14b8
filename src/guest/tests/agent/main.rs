//! The agent on this machine: its real server, spawner and containers, without a virtual machine.
//!
//! Each story gets an agent of its own, as the first process of a fresh PID, mount, UTS and cgroup namespace, with a real
//! image and a real writable layer on loop devices, and talks to it over a Unix socket. It takes root, a cgroup2
//! hierarchy, busybox and the tools that make file systems; without them the stories are skipped, with the reason.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test program talks to whoever runs it")]

mod harness;
mod lifecycle;
mod run;
mod stories;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use harness::Bench;
use stories::Story;

/// No story takes longer, or it hangs.
const LIMIT: Duration = Duration::from_secs(60);

fn all() -> Vec<(&'static str, Story)> {
    [stories::all(), lifecycle::all(), run::all()].concat()
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some("agent-under-test") = arguments.first().map(String::as_str) {
        return harness::agent(&arguments[1..]);
    }
    if arguments.iter().any(|argument| argument == "--list") {
        all().iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let bench = match Bench::new() {
        Ok(bench) => bench,
        Err(reason) => {
            println!("skipped: {reason}");
            return ExitCode::SUCCESS;
        }
    };
    let exact = arguments.iter().any(|argument| argument == "--exact");
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let chosen = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|filter| if exact { name == **filter } else { name.contains(&***filter) })
    };
    let mut failed = Vec::new();
    for (name, story) in all().into_iter().filter(|(name, _)| chosen(name)) {
        let started = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(async {
                tokio::time::timeout(LIMIT, story(&bench)).await.expect("the story hangs")
            });
        }));
        let outcome = if result.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {outcome} ({} ms)", started.elapsed().as_millis());
        if result.is_err() {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {}", failed.join(", "));
    ExitCode::FAILURE
}
