//! One process of the container and all that belongs to it: output, input, terminal, cgroup, end.
//!
//! ```text
//!   started ──▶ process ended ──▶ output ended ──▶ Exit published ──▶ cgroup removed
//!                     ▲                ▲
//!                     │ time limit:    │ a descendant that keeps the output open
//!                     │ tree killed    │ is waited for two seconds: output cut
//! ```
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
use std::sync::Arc;
use std::time::Duration;

use boxlite_portal::v1::{Exit, exit};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

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
    /// Process id as the agent sees it.
    pub pid: Pid,
    /// Process id as the container sees it.
    pub inner_pid: u32,
    /// What it wrote.
    pub output: Arc<Output>,
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

    /// Follows it to its end, and publishes that.
    pub async fn follow(&self, mut process: oneshot::Receiver<Ended>, limit: Option<Duration>) {
        let mut killed = false;
        let ended = tokio::select! {
            ended = &mut process => ended,
            () = sleep(limit) => {
                killed = self.kill_tree();
                process.await
            }
        };
        self.output.process_ended();
        let cut = tokio::time::timeout(LINGER, self.output.closed()).await.is_err();
        if cut {
            self.output.cut();
        }
        let status = match ended {
            Ok(Ended::Code(code)) => exit::Status::Code(code),
            Ok(Ended::Signal(signal)) => exit::Status::Signal(signal),
            // The reaper has gone: the machine ends.
            Err(_) => exit::Status::Signal(libc::SIGKILL.cast_unsigned()),
        };
        let timed_out = killed && status == exit::Status::Signal(libc::SIGKILL.cast_unsigned());
        self.exit.send_replace(Some(Exit { status: Some(status), timed_out, output_cut: cut }));
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
            pid: Pid::from_raw(i32::MAX),
            inner_pid: 1,
            output: Output::new(&[], false),
            input: tokio::sync::Mutex::new(Input::Closed),
            terminal: None,
            cgroup: None,
            exit: watch::Sender::new(None),
        })
    }
}

async fn sleep(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}
