//! The process of a box's VMM, and its children.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};

use boxlite_control::{VmmConfig, frame};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::signal::unix::{self, SignalKind};

use crate::{child, environment};

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
    _lifeline: UnixStream,
}

impl Vmm {
    /// Starts a VMM, as the leader of a process group. Its console is read from the returned descriptor.
    ///
    /// For the main thread: the VMM dies with the thread that started it.
    pub(super) fn spawn(config: &VmmConfig) -> Result<(Self, OwnedFd), SpawnError> {
        let (ours, theirs) = UnixStream::pair()?;
        let (console, output) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from)?;
        // The other end stays as it is: the VMM may write to its console as to any pipe.
        nix::fcntl::fcntl(&console, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map_err(io::Error::from)?;
        // Nobody reads yet, so this must not wait: a configuration that does not fit into the socket's buffer is an error.
        ours.set_nonblocking(true)?;
        (&ours).write_all(&frame::encode(config)?)?;

        let theirs = OwnedFd::from(theirs);
        let standard_input = theirs.as_raw_fd();
        let mut command = Command::new("/proc/self/exe");
        command.arg0("boxlite-shim").arg("vmm").env_clear().current_dir("/").process_group(0);
        if let Some(filter) = std::env::var_os(environment::LOG) {
            command.env(environment::LOG, filter);
        }
        child::tie(&mut command, standard_input);
        command.stdin(Stdio::from(theirs)).stdout(Stdio::from(output));
        let children = unix::signal(SignalKind::child())?;
        let child = tokio::process::Command::from(command).spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the VMM has no process id"))?;
        Ok((Self { child, pid, ended: None, children, _lifeline: ours }, console))
    }

    /// The process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
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

    /// Waits until the VMM and all of its children have ended: only then are its disks closed. Says how it ended. May be
    /// cancelled and called again.
    pub(super) async fn gone(&mut self) -> String {
        let status = match self.ended {
            Some(status) => status,
            None => match self.child.wait().await {
                Ok(status) => *self.ended.insert(status),
                Err(error) => return format!("nothing is known of the VMM: {error}"),
            },
        };
        // Children of the VMM have become children of this process, which is their subreaper.
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {
                    if self.children.recv().await.is_none() {
                        break;
                    }
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        format!("the VMM ended: {status}")
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.kill();
    }
}
