//! The one place that reaps.
//!
//! As PID 1 the agent inherits every orphan of the machine. If anything else waited for a child, or if an orphan were
//! reaped without a look, an exit status could be lost or given to the wrong process. So one owner looks at each dead
//! child before it reaps it, and hands the status to whoever claimed that process.
//!
//! A child may die before the spawner's answer tells its id. As long as an answer is outstanding ([`Reaper::expect`]) a
//! dead child that nobody knows is left lying: its id cannot be used again, so the claim that follows finds it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(u32),
}

/// Knows the children that somebody waits for. Clones share one table.
#[derive(Clone, Debug, Default)]
pub struct Reaper {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    claimed: HashMap<i32, oneshot::Sender<Ended>>,
    expected: usize,
}

/// As long as it lives, an unknown dead child is left lying.
#[derive(Debug)]
pub struct Expectation {
    reaper: Reaper,
}

impl Reaper {
    /// A reaper with an empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reaps at each SIGCHLD until the runtime ends.
    ///
    /// # Errors
    /// When the signal cannot be subscribed to.
    pub fn run(&self) -> io::Result<impl Future<Output = ()> + Send + use<>> {
        let mut children = signal(SignalKind::child())?;
        let reaper = self.clone();
        Ok(async move {
            loop {
                reaper.reap();
                if children.recv().await.is_none() {
                    return;
                }
            }
        })
    }

    /// Announces that a child will be claimed.
    pub fn expect(&self) -> Expectation {
        self.locked(|table| table.expected += 1);
        Expectation { reaper: self.clone() }
    }

    /// Sends a signal to a claimed child. False when it has ended: its id may be another's by now.
    ///
    /// # Errors
    /// What kill(2) says.
    pub fn signal(&self, pid: Pid, signal: i32) -> nix::Result<bool> {
        // Reaping happens under the same lock, so an id in the table is the child's own.
        self.locked(|table| {
            if !table.claimed.contains_key(&pid.as_raw()) {
                return Ok(false);
            }
            // SAFETY: kill takes two integers; the id is that of a child that has not been reaped.
            Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(|_| true)
        })
    }

    fn locked<T>(&self, work: impl FnOnce(&mut Table) -> T) -> T {
        work(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn reap(&self) {
        self.locked(Table::reap);
    }
}

impl Expectation {
    /// Claims the child: the receiver gets how it ended.
    pub fn claim(self, pid: Pid) -> oneshot::Receiver<Ended> {
        let (sender, receiver) = oneshot::channel();
        self.reaper.locked(|table| table.claimed.insert(pid.as_raw(), sender));
        receiver
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        self.reaper.locked(|table| {
            table.expected -= 1;
            table.reap();
        });
    }
}

impl Table {
    fn reap(&mut self) {
        while let Some((pid, _)) = wait(libc::P_ALL, 0, libc::WNOWAIT) {
            if self.claimed.contains_key(&pid) {
                self.reap_claimed(pid);
            } else if self.expected > 0 {
                // It hides those behind it, so the known ones are asked for one by one.
                let known: Vec<i32> = self.claimed.keys().copied().collect();
                known.into_iter().for_each(|pid| self.reap_claimed(pid));
                return;
            } else {
                wait(libc::P_PID, pid.cast_unsigned(), 0);
            }
        }
    }

    fn reap_claimed(&mut self, pid: i32) {
        if let Some((_, ended)) = wait(libc::P_PID, pid.cast_unsigned(), 0)
            && let Some(sender) = self.claimed.remove(&pid)
        {
            // Nobody may be waiting any more; the child is reaped all the same.
            let _ = sender.send(ended);
        }
    }
}

/// A child that has ended, if there is one.
fn wait(which: libc::idtype_t, id: libc::id_t, flags: i32) -> Option<(i32, Ended)> {
    // SAFETY: siginfo_t is plain data, for which zero is a valid value; waitid fills it in.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` lives during the call.
    let result = unsafe { libc::waitid(which, id, &raw mut info, libc::WEXITED | libc::WNOHANG | flags) };
    if result != 0 {
        return None;
    }
    // SAFETY: for waitid the union holds the fields of a child; all of it was zero if there was none.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return None;
    }
    let ended = match info.si_code {
        libc::CLD_EXITED => Ended::Code(status),
        _ => Ended::Signal(status.cast_unsigned()),
    };
    Some((pid, ended))
}

#[cfg(test)]
#[allow(clippy::zombie_processes, reason = "the reaper under test is what waits for them")]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    // Everything is in one test, because reaping concerns all children of the test process.
    #[tokio::test]
    async fn each_claimed_child_gets_its_own_status_however_early_it_ends() {
        let reaper = Reaper::new();
        let run = tokio::spawn(reaper.run().unwrap());
        let child = |script: &str| {
            let child = Command::new("/bin/sh").arg("-c").arg(script).stdin(Stdio::piped()).spawn().unwrap();
            (Pid::from_raw(child.id().cast_signed()), child.stdin.unwrap())
        };

        // It is dead for sure before it is claimed: its end of the pipe is closed.
        let early = reaper.expect();
        let (pid, stdin) = child("exit 7");
        let mut poll =
            [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&stdin), nix::poll::PollFlags::empty())];
        nix::poll::poll(&mut poll, 5000u16).unwrap();
        // Another one, known and slower, is not held up by the unknown one.
        let (known, known_stdin) = child("read line; exit 9");
        let known = reaper.expect().claim(known);
        drop(known_stdin);
        assert_eq!(known.await.unwrap(), Ended::Code(9));
        assert_eq!(early.claim(pid).await.unwrap(), Ended::Code(7));
        assert!(!reaper.signal(pid, 0).unwrap(), "an ended child is not signalled");

        let expected = reaper.expect();
        let (pid, stdin) = child("read line");
        let killed = expected.claim(pid);
        assert!(reaper.signal(pid, 34).unwrap());
        assert_eq!(killed.await.unwrap(), Ended::Signal(34), "a real-time signal is a signal");
        drop(stdin);

        // Unclaimed children leave nothing behind.
        let (orphan, stdin) = child("exit 1");
        drop(stdin);
        tokio::time::timeout(std::time::Duration::from_secs(5), async {
            while std::path::Path::new(&format!("/proc/{orphan}")).exists() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        run.abort();
    }
}
