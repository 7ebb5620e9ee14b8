//! The process of a box's VMM, and its children.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use boxlite_control::{VmmConfig, frame};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::signal::unix::{self, SignalKind};
use tokio::time::{sleep, timeout};

use super::usage;
use crate::{child, environment, text};

/// The most that a VMM can say, in bytes, in reasons, and in bytes a reason.
const REASONS: u64 = 64 << 10;
const MOST_REASONS: usize = 8;
const REASON: usize = 2 << 10;

/// How long all threads may take to stand still, and how often they are looked at.
const FREEZE: Duration = Duration::from_secs(1);
const FREEZE_LOOK: Duration = Duration::from_millis(1);

/// Why there is no VMM.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpawnError {
    #[error("cannot write the VMM's configuration")]
    Config(#[from] frame::FrameError),
    #[error("cannot start the VMM")]
    Io(#[from] io::Error),
}

/// A running VMM, which is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Vmm {
    child: Child,
    pid: Pid,
    ended: Option<ExitStatus>,
    children: unix::Signal,
    /// The VMM ends when this is closed, also when this process is killed.
    lifeline: UnixStream,
}

impl Vmm {
    /// Starts a VMM, as the leader of a process group. Its console is read from the returned descriptor. `link` is what it
    /// inherits for its network device.
    ///
    /// For the main thread: the VMM dies with the thread that started it.
    pub(super) fn spawn(config: &VmmConfig, link: Option<OwnedFd>) -> Result<(Self, OwnedFd), SpawnError> {
        let (ours, theirs) = UnixStream::pair()?;
        let (console, output) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from)?;
        // Nobody reads yet, so this must not wait: a configuration that does not fit into the socket's buffer is an error.
        ours.set_nonblocking(true)?;
        (&ours).write_all(&frame::encode(config)?)?;

        let mut command = Command::new("/proc/self/exe");
        command.arg0("boxlite-shim").arg("vmm").env_clear().current_dir("/").process_group(0);
        if let Some(filter) = std::env::var_os(environment::LOG) {
            command.env(environment::LOG, filter);
        }
        child::tie(&mut command, [link.as_ref().map(AsRawFd::as_raw_fd), None, None]);
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::from(output));
        let children = unix::signal(SignalKind::child())?;
        let child = tokio::process::Command::from(command).spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the VMM has no process id"))?;
        Ok((Self { child, pid, ended: None, children, lifeline: ours }, console))
    }

    /// The process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Whether it has ended as it does when its machine powers off or resets.
    pub(super) fn has_succeeded(&self) -> bool {
        self.ended.is_some_and(|status| status.success())
    }

    /// Kills the VMM with all of its children, unless it has ended.
    pub(super) fn kill(&self) {
        // Once the VMM has been waited for, its number may be another's. Its children die with it.
        if self.ended.is_none()
            && let Err(errno) = killpg(self.pid, Signal::SIGKILL)
            && errno != Errno::ESRCH
        {
            tracing::error!(%errno, "cannot kill the VMM");
        }
    }

    /// Stops the VMM and its children, and with them the virtual CPUs and all devices. Returns once they stand still.
    pub(super) async fn freeze(&self) -> io::Result<()> {
        if self.ended.is_some() {
            return Err(io::Error::other("the VMM has ended"));
        }
        killpg(self.pid, Signal::SIGSTOP)?;
        let still = async {
            loop {
                let pids = usage::with_children(self.pid())?;
                let stopped: io::Result<Vec<bool>> =
                    pids.iter().map(|pid| usage::stands_still(*pid)).collect();
                if stopped?.iter().all(|stopped| *stopped) {
                    return Ok(());
                }
                sleep(FREEZE_LOOK).await;
            }
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("not within {FREEZE:?}"));
        timeout(FREEZE, still).await.unwrap_or_else(|_| Err(late()))
    }

    /// Lets the VMM and its children go on.
    pub(super) fn thaw(&self) {
        if self.ended.is_none()
            && let Err(errno) = killpg(self.pid, Signal::SIGCONT)
            && errno != Errno::ESRCH
        {
            tracing::error!(%errno, "cannot let the VMM go on");
        }
    }

    /// Waits until the VMM and all of its children have ended: only then are its disks closed. Says how it ended and why.
    /// May be cancelled and called again.
    pub(super) async fn gone(&mut self) -> Vec<String> {
        let status = match self.ended {
            Some(status) => status,
            None => match self.child.wait().await {
                Ok(status) => *self.ended.insert(status),
                Err(error) => return vec![format!("nothing is known of the VMM: {error}")],
            },
        };
        // Children of the VMM have become children of this process, which is their subreaper. They are in its process
        // group; others that this process has are not.
        let group = Pid::from_raw(-self.pid.as_raw());
        loop {
            match waitpid(group, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {
                    if self.children.recv().await.is_none() {
                        break;
                    }
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        let mut causes = vec![format!("the VMM ended: {status}")];
        causes.extend(reasons(&mut &self.lifeline));
        causes
    }
}

/// What a VMM has said last. It may have been taken over by its guest, so this is bounded and escaped.
fn reasons(said: &mut impl Read) -> Vec<String> {
    let mut length = [0; 4];
    let mut body = Vec::new();
    if said.read_exact(&mut length).is_err() {
        // Most have nothing to say.
        return Vec::new();
    }
    let length = u64::from(u32::from_be_bytes(length)).min(REASONS);
    // What did not fit, or was cut off, does not decode.
    drop(said.take(length).read_to_end(&mut body));
    let reasons: Vec<String> = serde_json::from_slice(&body).unwrap_or_default();
    reasons.iter().take(MOST_REASONS).map(|reason| text::escape(reason.as_bytes(), REASON)).collect()
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_come_back_as_they_were_sent() {
        let sent = frame::encode(&["the machine did not run", "no \x1b disk"]).unwrap();
        assert_eq!(reasons(&mut sent.as_slice()), ["the machine did not run", "no \\u{1b} disk"]);
    }

    #[test]
    fn silence_noise_and_floods_are_no_reasons() {
        assert_eq!(reasons(&mut &b""[..]), [""; 0]);
        assert_eq!(reasons(&mut &b"\xff\xff\xff\xff"[..]), [""; 0]);
        assert_eq!(reasons(&mut &b"\0\0\0\x02[]"[..]), [""; 0]);
        let flood = frame::encode(&vec!["x".repeat(1 << 20)]).unwrap();
        assert_eq!(reasons(&mut flood.as_slice()), [""; 0]);
        let many = frame::encode(&vec!["x"; 10_000]).unwrap();
        assert_eq!(reasons(&mut many.as_slice()).len(), MOST_REASONS);
    }
}
