//! The spawner: a small process of one thread that creates the container and forks its processes.
//!
//! ```text
//!   agent (many tasks, descriptors, maybe threads)
//!     │  orders and descriptors            ▲ process ids
//!     ▼                                    │
//!   spawner (one thread, next to no descriptors, not dumpable)
//!     ├─ Create ─▶ libcontainer: first process, waits for its order on a channel of its own
//!     └─ Exec   ─▶ clone3 into the container's namespaces and a cgroup ─▶ child.rs
//! ```
//!
//! It exists because a fork copies a process as it is. Forked from here a child starts with a heap in good order, so it
//! may allocate; it costs little, because little is mapped; and nothing of the agent can leak into the container, because
//! it is not here. All it forks are siblings: children of the agent, which alone reaps. The spawner never waits for a
//! child, so a child that hangs (in a file system that does not answer, say) holds up nobody else.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::unistd::Pid;

use super::child;
use super::order::{self, Frame, Kind};
use crate::boot::report;

/// The longest text of a failure that a reply carries.
pub const MAX_TEXT: usize = 4096;

/// The container's name for libcontainer.
const CONTAINER: &str = "main";

/// A forked spawner.
#[derive(Debug)]
pub struct Spawner {
    /// The agent's end of the connection.
    pub socket: UnixStream,
    /// The process.
    pub pid: Pid,
}

/// Forks the spawner.
///
/// # Errors
/// When the system gives no socket or no process.
///
/// # Safety
/// The process must have a single thread. In the spawner everything is closed but its socket and standard I/O.
pub unsafe fn fork() -> io::Result<Spawner> {
    let (here, there) = UnixStream::pair()?;
    // SAFETY: one thread, by the caller's promise, so the child's heap is in good order.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(Spawner { socket: here, pid: child }),
        nix::unistd::ForkResult::Child => {
            drop(here);
            let ran = keep_only(&there).map_err(io::Error::from).and_then(|()| run(there));
            let code = match ran {
                Ok(()) => 0,
                Err(error) => {
                    crate::console::line(format_args!("spawner: {error}"));
                    1
                }
            };
            // SAFETY: ends this forked process without running exit handlers that belong to its parent.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Closes what was copied of the agent's descriptors, all but standard I/O and this one: the host would take a copy of
/// the boot channel for an agent that still boots.
fn keep_only(socket: &UnixStream) -> nix::Result<()> {
    report::forget();
    // 0 to 2 are always open, so the socket is above them.
    let kept = socket.as_raw_fd().cast_unsigned();
    for (first, last) in [(3, kept - 1), (kept + 1, libc::c_uint::MAX)] {
        if first <= last {
            // SAFETY: the owners of what is closed are the agent's, on the stack below the fork; this process never
            // returns there: it ends in _exit, or aborts in a panic.
            Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
        }
    }
    Ok(())
}

fn run(mut socket: UnixStream) -> io::Result<()> {
    // First: of a process that is not dumpable, this file belongs to root, who need not be us in a test.
    let protection = Protection::open()?;
    // Whoever may trace this process could leave the container through it.
    nix::sys::prctl::set_dumpable(false)?;
    nix::sys::prctl::set_name(c"spawner")?;
    reset_signals()?;
    let mut container: Option<OwnedFd> = None;
    while let Some(Frame { kind, body, fds }) = order::receive(&mut socket)? {
        let reply = match (kind, &container) {
            (Kind::Exec, Some(container)) => exec(&body, fds, container, &protection)?,
            (Kind::Create, None) => match create(&body, fds) {
                Ok((pid, first)) => {
                    container = Some(first);
                    Ok(pid)
                }
                Err(refusal) => Err(refusal),
            },
            (Kind::Exec, None) => Err(Refusal::new(Errno::ESRCH, "there is no container")),
            (Kind::Create, Some(_)) => Err(Refusal::new(Errno::EEXIST, "there is a container already")),
            (Kind::Main, _) => Err(Refusal::new(Errno::EINVAL, "not an order for the spawner")),
        };
        socket.write_all(&encode_reply(&reply))?;
    }
    Ok(())
}

/// Signal handling as a new program expects it, for all that is forked from here: nothing blocked, nothing ignored.
fn reset_signals() -> nix::Result<()> {
    // The kernel's struct sigaction: all zero is the default disposition. Not through the C library, which keeps two
    // signals for itself.
    let default = [0_u64; 4];
    let none = std::ptr::null::<u64>();
    for signal in 1..=64 {
        // SAFETY: the kernel reads the struct, which lives during the call and is as large as on any architecture. The
        // two signals whose disposition cannot be set fail with EINVAL, which is as good.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, size_of::<u64>()) };
    }
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

/// Why the spawner started nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The system's number for it.
    pub errno: i32,
    /// What was attempted, and causes.
    pub text: String,
}

impl Refusal {
    fn new(errno: Errno, text: impl Into<String>) -> Self {
        Self { errno: errno as i32, text: text.into() }
    }
}

/// A reply: a process id, or a negative errno; then the length of a text and the text.
fn encode_reply(reply: &Result<Pid, Refusal>) -> Vec<u8> {
    let (code, text) = match reply {
        Ok(pid) => (pid.as_raw(), ""),
        Err(refusal) => (-refusal.errno, refusal.text.as_str()),
    };
    let text = &text.as_bytes()[..text.len().min(MAX_TEXT)];
    let length = u16::try_from(text.len()).unwrap_or_default();
    [&code.to_le_bytes()[..], &length.to_le_bytes()[..], text].concat()
}

/// What keeps the out-of-memory killer from the spawner.
struct Protection {
    file: File,
    /// How it is rated; nothing if as any other.
    rating: Option<String>,
}

impl Protection {
    fn open() -> io::Result<Self> {
        let file = File::options().read(true).write(true).open("/proc/self/oom_score_adj")?;
        let mut text = String::new();
        (&file).read_to_string(&mut text)?;
        let rating = text.trim_end();
        Ok(Self { rating: (rating != "0").then(|| rating.to_owned()), file })
    }

    /// Forks without it. Around the fork and not in the child, for whom it is many times the work: its own file would have to
    /// be made first. So small a process is nobody's first choice meanwhile.
    fn lifted<T>(&self, fork: impl FnOnce() -> T) -> io::Result<T> {
        let Some(rating) = &self.rating else { return Ok(fork()) };
        self.file.write_all_at(b"0", 0)?;
        let forked = fork();
        self.file.write_all_at(rating.as_bytes(), 0)?;
        Ok(forked)
    }
}

/// Forks an execution. An error of the outer kind is the spawner's end: it would be the first to be killed.
fn exec(
    order: &[u8],
    fds: Vec<OwnedFd>,
    container: &OwnedFd,
    protection: &Protection,
) -> io::Result<Result<Pid, Refusal>> {
    let Ok([cgroup, status, stdin, stdout, stderr]) = <[OwnedFd; 5]>::try_from(fds) else {
        return Ok(Err(Refusal::new(Errno::EBADF, "an execution needs five descriptors")));
    };
    // SAFETY: the spawner has a single thread.
    protection.lifted(|| match unsafe { child::fork_sibling_into(cgroup.as_fd()) } {
        Ok(Some(pid)) => Ok(pid),
        Ok(None) => child::execute(order, container.as_fd(), status, [stdin, stdout, stderr]),
        Err(errno) => Err(Refusal::new(errno, "cannot fork into the container")),
    })
}

fn create(bundle: &[u8], fds: Vec<OwnedFd>) -> Result<(Pid, OwnedFd), Refusal> {
    let invalid = |text: &str| Refusal::new(Errno::EINVAL, text);
    let bundle = std::str::from_utf8(bundle).map_err(|_| invalid("the bundle's path is not UTF-8"))?;
    let bundle = Path::new(bundle);
    let Ok([channel]) = <[OwnedFd; 1]>::try_from(fds) else {
        return Err(invalid("a container needs one descriptor"));
    };
    let failed = |error: &dyn std::error::Error| Refusal::new(Errno::EIO, crate::console::chain(error));
    let state = bundle.join("state");
    std::fs::create_dir_all(&state).map_err(|error| failed(&error))?;
    let mut made = ContainerBuilder::new(CONTAINER.to_owned(), SyscallType::Linux)
        .with_root_path(&state)
        .map_err(|error| failed(&error))?
        .with_executor(FirstProcess { channel: channel.as_raw_fd() })
        .as_init(bundle)
        .with_systemd(false)
        // Then the first process is the agent's child, not the spawner's, from its birth on.
        .as_sibling(true)
        .build()
        .map_err(|error| failed(&error))?;
    let pid = made.pid().ok_or_else(|| invalid("libcontainer made no process"))?;
    let pid = Pid::from_raw(pid.as_raw());
    // For libcontainer this starts the container. Here it takes the first process to its channel, where it waits for
    // the order of Container.Start: nothing of the image runs before.
    made.start().map_err(|error| failed(&error))?;
    let pidfd = pidfd_open(pid).map_err(|errno| Refusal::new(errno, "cannot open the first process"))?;
    // From now on every fork of this process lands in the container's process namespace.
    setns(&pidfd, CloneFlags::CLONE_NEWPID)
        .map_err(|errno| Refusal::new(errno, "cannot join the container's process namespace"))?;
    Ok((pid, pidfd))
}

fn pidfd_open(pid: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: takes two integers. The kernel sets close-on-exec by itself.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EMFILE)?;
    // SAFETY: the kernel has just opened this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What libcontainer runs at the end of its work as the container's first process.
#[derive(Clone, Debug)]
struct FirstProcess {
    /// Where the order comes from; open in the process that libcontainer forks.
    channel: RawFd,
}

impl Executor for FirstProcess {
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        // The program is looked for when it is started, and by then the order says which one.
        Ok(())
    }

    fn setup_envs(&self, _: std::collections::HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment is the order's, and goes to execve as it is.
        Ok(())
    }

    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        // SAFETY: the spawner's descriptor was copied by the forks of libcontainer and is still open (it only set
        // close-on-exec); in this process nobody else owns it.
        let mut channel = UnixStream::from(unsafe { OwnedFd::from_raw_fd(self.channel) });
        let frame =
            order::receive(&mut channel).map_err(|error| ExecutorError::Execution(Box::new(error)))?;
        // The end without an order: the box is stopped before its main command was started.
        let Some(Frame { kind: Kind::Main, body, fds }) = frame else {
            // SAFETY: ends this forked process without running exit handlers of the process it was forked from.
            unsafe { libc::_exit(0) }
        };
        let Ok([status, stdin, stdout, stderr]) = <[OwnedFd; 4]>::try_from(fds) else {
            return Err(ExecutorError::InvalidArg);
        };
        child::execute_main(&body, status, [stdin, stdout, stderr])
    }
}
