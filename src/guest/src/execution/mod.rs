//! One process of the container and all that belongs to it: output, input, terminal, cgroup, end.
//!
//! ```text
//!   started ──▶ process ended ──▶ output ended ──▶ orphans killed ──▶ Exit published ──▶ cgroup removed
//!                     ▲                ▲                 ▲
//!                     │ time limit:    │ a descendant    │ unless they may stay
//!                     │ tree killed    │ that keeps the output open is waited for two seconds: output cut
//! ```
//!
//! The time limit is that of the whole tree: where orphans may stay, what outlives the first process is killed when it
//! is over, be that before or after the exit was published.
//!
//! Each execution has one task that follows it to its end; everything else reads what that task publishes.

pub mod backlog;
pub mod input;
pub mod output;
pub mod pump;
pub mod start;
pub mod table;
pub mod terminal;

use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use boxlite_portal::v1::{Exit, exit};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use self::input::Input;
use self::output::Output;
use crate::process::cgroup::Cgroup;
use crate::process::reaper::Ended;

/// How long the output may stay open after its process has ended.
const LINGER: Duration = Duration::from_secs(2);

/// A process of the container that was started.
#[derive(Debug)]
pub struct Execution {
    /// Its id.
    pub id: String,
    /// No event tells of it and no activity counts it.
    pub quiet: bool,
    /// What it started may outlive it.
    pub keep_orphans: bool,
    /// Process id as the agent sees it.
    pub pid: Pid,
    /// Process id as the container sees it.
    pub inner_pid: u32,
    /// What it wrote.
    pub output: Arc<Output>,
    /// Where that comes from, by stream, as long as it does.
    pub sources: [Weak<AsyncFd<OwnedFd>>; 2],
    /// Where its input goes. A stream of input keeps the lock for as long as it lasts; others wait for their turn, and
    /// nothing else needs it.
    pub input: tokio::sync::Mutex<Input>,
    /// The controlling side of its terminal.
    pub terminal: Option<Arc<AsyncFd<OwnedFd>>>,
    /// The cgroup that it and its descendants are in.
    pub cgroup: Option<Arc<Cgroup>>,
    /// How it ended; `None` as long as it has not.
    pub exit: watch::Sender<Option<Exit>>,
}

impl Execution {
    /// How it ended, once it has.
    pub async fn ended(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        match exit.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(exit)) => *exit,
            // The sender lives in self.
            Ok(None) | Err(_) => Exit::default(),
        }
    }

    /// Follows it to its end, publishes that and gives it. At the deadline its whole tree is killed.
    pub async fn follow(&self, mut process: oneshot::Receiver<Ended>, deadline: Option<Instant>) -> Exit {
        let mut killed = false;
        let ended = tokio::select! {
            ended = &mut process => ended,
            () = reached(deadline) => {
                killed = self.kill_tree();
                process.await
            }
        };
        self.output.process_ended(self.sources.each_ref().map(|source| {
            // One that has gone was read to its end.
            source.upgrade().map_or(0, |source| pump::capacity(source.get_ref()))
        }));
        let mut closed = pin!(tokio::time::timeout(LINGER, self.output.closed()));
        let in_time = tokio::select! {
            in_time = &mut closed => in_time,
            () = reached(deadline), if !killed => {
                self.kill_tree();
                closed.await
            }
        };
        let cut = in_time.is_err();
        if cut {
            self.output.cut();
        }
        // Before anybody knows of the end, who may rely on it that nothing is left.
        if !self.keep_orphans
            && !killed
            && let Some(cgroup) = &self.cgroup
            && let Err(error) = cgroup.clear()
        {
            crate::console::line(format_args!("cannot clear what {} left: {error}", self.id));
        }
        let status = match ended {
            Ok(Ended::Code(code)) => exit::Status::Code(code),
            Ok(Ended::Signal(signal)) => exit::Status::Signal(signal),
            // The reaper has gone: the machine ends.
            Err(_) => exit::Status::Signal(libc::SIGKILL.cast_unsigned()),
        };
        let timed_out = killed && status == exit::Status::Signal(libc::SIGKILL.cast_unsigned());
        let exit = Exit { status: Some(status), timed_out, output_cut: cut };
        self.exit.send_replace(Some(exit));
        exit
    }

    fn kill_tree(&self) -> bool {
        let Some(cgroup) = &self.cgroup else { return false };
        match cgroup.kill() {
            Ok(()) => true,
            Err(error) => {
                crate::console::line(format_args!("cannot kill execution {}: {error}", self.id));
                false
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn for_tests(id: &str) -> Arc<Self> {
        Arc::new(Self {
            id: id.to_owned(),
            quiet: false,
            keep_orphans: false,
            pid: Pid::from_raw(i32::MAX),
            inner_pid: 1,
            output: Output::new(&[], false),
            sources: [const { Weak::new() }; 2],
            input: tokio::sync::Mutex::new(Input::Closed),
            terminal: None,
            cgroup: None,
            exit: watch::Sender::new(None),
        })
    }
}

async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
