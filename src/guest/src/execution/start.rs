//! Starting a process in the container: standard I/O, the order, and what became of it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use boxlite_portal::v1::{ProcessSpec, StartFailure, start_failure};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Pid, Uid, fchown, pipe2};
use prost::Message;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};

use super::Execution;
use super::input::Input;
use super::output::{Output, Stream};
use super::pump;
use super::terminal;
use crate::container::launch;
use crate::descriptor::watch;
use crate::process::cgroup::Cgroup;
use crate::process::child::{Failed, Step};
use crate::process::client::{self, SpawnError, Spawned, SpawnerClient};
use crate::process::order::{Kind, Order};
use crate::process::reaper::Ended;

/// How long a process may take to its program. File systems that answer slowly are the caller's own; this only bounds.
const START: Duration = Duration::from_secs(60);

/// Who brings the process about.
#[derive(Debug)]
pub enum Origin<'a> {
    /// The spawner forks it.
    Fork(&'a SpawnerClient),
    /// The container's first process becomes it.
    First {
        /// Where it waits for its order.
        channel: UnixStream,
        /// The process.
        process: Spawned,
    },
}

/// What to start, with everything looked up.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The id.
    pub id: &'a str,
    /// No event tells of it.
    pub quiet: bool,
    /// What it starts may outlive it.
    pub keep_orphans: bool,
    /// What the caller asked for.
    pub spec: &'a ProcessSpec,
    /// What that means.
    pub order: Order,
    /// The output waits for its first reader.
    pub hold: bool,
    /// Where it and its descendants live.
    pub cgroup: Arc<Cgroup>,
    /// The container's first process.
    pub first: Pid,
}

/// Starts it. Returns once the program runs, or will not.
///
/// # Errors
/// Why it did not start. Nothing of it is left then.
pub async fn start(
    launch: Launch<'_>,
    origin: Origin<'_>,
) -> Result<(Arc<Execution>, oneshot::Receiver<Ended>), StartFailure> {
    let Launch { id, quiet, keep_orphans, spec, order, hold, cgroup, first } = launch;
    let stdio =
        Stdio::open(spec, &order, first).map_err(|error| other("cannot open standard I/O", &error))?;
    let (status, status_child) =
        pipe2(OFlag::O_CLOEXEC).map_err(|errno| other("cannot open a pipe", &errno.into()))?;
    let [stdin, stdout, stderr] = stdio.child;
    let Spawned { pid, ended } = match origin {
        Origin::Fork(spawner) => {
            let folder = cgroup.as_fd().try_clone_to_owned();
            let folder = folder.map_err(|error| other("cannot pass the cgroup on", &error))?;
            spawner
                .exec(&order, [folder, status_child, stdin, stdout, stderr])
                .await
                .map_err(|error| refused(&error))?
        }
        Origin::First { mut channel, process } => {
            let fds = [status_child, stdin, stdout, stderr];
            let sent = client::send(&mut channel, Kind::Main, &order.encode_to_vec(), &fds).await;
            sent.map_err(|error| other("cannot reach the container's first process", &error))?;
            process
        }
    };
    let status = match tokio::time::timeout(START, read_status(status)).await {
        Ok(status) => status.map_err(|error| other("cannot read how the start went", &error))?,
        Err(_late) => {
            // It may be anywhere, but not outside its cgroup.
            cgroup
                .kill()
                .map_err(|error| other("cannot kill a process that did not start in time", &error))?;
            return Err(other("the process did not start in time", &io::ErrorKind::TimedOut.into()));
        }
    };
    let inner_pid = match status {
        Status::Running(pid) => pid,
        Status::Failed(failed) => return Err(describe(failed, &order)),
        Status::Lost => {
            return Err(other(
                "the process was killed before its program ran",
                &io::ErrorKind::BrokenPipe.into(),
            ));
        }
    };
    let streams: Vec<Stream> = stdio.sources.iter().map(|(_, stream)| *stream).collect();
    let output = Output::new(&streams, hold);
    let mut sources = [const { Weak::new() }; 2];
    for (source, stream) in stdio.sources {
        sources[stream as usize] = Arc::downgrade(&source);
        tokio::spawn(pump::run(source, Arc::clone(&output), stream));
    }
    let execution = Execution {
        id: id.to_owned(),
        quiet,
        keep_orphans,
        pid,
        inner_pid,
        output,
        sources,
        input: tokio::sync::Mutex::new(stdio.input),
        terminal: stdio.terminal,
        cgroup: Some(cgroup),
        exit: watch::Sender::new(None),
    };
    Ok((Arc::new(execution), ended))
}

/// The two sides of standard I/O.
struct Stdio {
    child: [OwnedFd; 3],
    input: Input,
    sources: Vec<(Arc<AsyncFd<OwnedFd>>, Stream)>,
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
}

impl Stdio {
    fn open(spec: &ProcessSpec, order: &Order, first: Pid) -> io::Result<Self> {
        match &spec.terminal {
            Some(size) => {
                let size = launch::terminal_size(size).map_err(io::Error::other)?;
                Self::terminal(spec.stdin, size, order, first)
            }
            None => Self::pipes(spec.stdin, order),
        }
    }

    fn terminal(stdin: bool, size: libc::winsize, order: &Order, first: Pid) -> io::Result<Self> {
        let terminal::Terminal { master, slave } = terminal::open(first, (order.uid, order.gid), size)?;
        let master = Arc::new(watch(master)?);
        let child = [slave.try_clone()?, slave.try_clone()?, slave];
        let input = if stdin {
            Input::Terminal { master: Arc::clone(&master), at_line_start: true }
        } else {
            Input::Closed
        };
        let sources = vec![(Arc::clone(&master), Stream::Stdout)];
        Ok(Self { child, input, sources, terminal: Some(master) })
    }

    fn pipes(stdin: bool, order: &Order) -> io::Result<Self> {
        // The owner of a pipe may open it again through /dev/stdout, which many images do.
        let owned = |fd: &OwnedFd| match order.uid {
            0 => Ok(()),
            uid => fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(order.gid))),
        };
        let pipe = || -> io::Result<(OwnedFd, OwnedFd)> {
            let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
            owned(&reader)?;
            Ok((reader, writer))
        };
        let (stdin, input) = if stdin {
            let (reader, writer) = pipe()?;
            (reader, Input::Pipe(Arc::new(watch(writer)?)))
        } else {
            let null = nix::fcntl::open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
            (null, Input::Closed)
        };
        let (out_reader, stdout) = pipe()?;
        let (err_reader, stderr) = pipe()?;
        let sources = vec![
            (Arc::new(watch(out_reader)?), Stream::Stdout),
            (Arc::new(watch(err_reader)?), Stream::Stderr),
        ];
        Ok(Self { child: [stdin, stdout, stderr], input, sources, terminal: None })
    }
}

/// What a child said before its end of the pipe was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// Its program runs, with this process id inside.
    Running(u32),
    /// It said why not.
    Failed(Failed),
    /// It said nothing.
    Lost,
}

/// The most that a child says: its id and a failure.
const STATUS: usize = 9;

async fn read_status(pipe: OwnedFd) -> io::Result<Status> {
    let pipe = watch(pipe)?;
    let mut said = Vec::with_capacity(STATUS + 1);
    while said.len() <= STATUS {
        let mut ready = pipe.readable().await?;
        let mut buffer = [0; STATUS + 1];
        match ready.try_io(|pipe| nix::unistd::read(pipe.get_ref(), &mut buffer).map_err(io::Error::from)) {
            Ok(Ok(0)) => break,
            Ok(Ok(count)) => said.extend_from_slice(&buffer[..count]),
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
    parse_status(&said).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse_status(said: &[u8]) -> Option<Status> {
    let failed = |report: &[u8]| {
        let (step, errno) = report.split_first()?;
        let errno = Errno::from_raw(i32::from_le_bytes(errno.try_into().ok()?));
        Some(Status::Failed(Failed { step: Step::from_byte(*step)?, errno }))
    };
    match said.len() {
        0 => Some(Status::Lost),
        4 => Some(Status::Running(u32::from_le_bytes(said.try_into().ok()?))),
        5 => failed(said),
        STATUS => failed(&said[4..]),
        _ => None,
    }
}

/// Tells a failed step in the words of a shell.
fn describe(failed: Failed, order: &Order) -> StartFailure {
    use start_failure::Kind;
    let program = order.args.first().map_or(&b""[..], Vec::as_slice).escape_ascii();
    let cwd = order.cwd.escape_ascii();
    let reason = failed.errno.desc();
    let (kind, message) = match failed.step {
        Step::Find => (Kind::NotFound, format!("exec: \"{program}\": no such file, or not in $PATH")),
        Step::Interpreter => {
            (Kind::NotFound, format!("exec: \"{program}\": exists, but the interpreter it names does not"))
        }
        Step::Execute => {
            let kind = match failed.errno {
                Errno::EACCES
                | Errno::EPERM
                | Errno::ENOEXEC
                | Errno::EISDIR
                | Errno::EINVAL
                | Errno::ELIBBAD
                | Errno::ELOOP
                | Errno::ENAMETOOLONG
                | Errno::ETXTBSY => Kind::NotExecutable,
                _ => Kind::Other,
            };
            (kind, format!("exec: \"{program}\": {reason}"))
        }
        Step::WorkingDirectory => {
            (Kind::BadWorkingDirectory, format!("working directory \"{cwd}\": {reason}"))
        }
        Step::Limits => (Kind::Other, format!("cannot set a resource limit: {reason}")),
        Step::Order => (Kind::Other, format!("the order was not understood: {reason}")),
        Step::Namespaces => (Kind::Other, format!("cannot join the container: {reason}")),
        Step::Session => (Kind::Other, format!("cannot start a session: {reason}")),
        Step::Descriptors => (Kind::Other, format!("cannot set up standard I/O: {reason}")),
        Step::Capabilities => (Kind::Other, format!("cannot set capabilities: {reason}")),
        Step::User => (Kind::Other, format!("cannot become user {}: {reason}", order.uid)),
    };
    StartFailure { kind: kind.into(), message, errno: failed.errno as i32 }
}

/// A failure on the agent's side.
pub fn other(what: &str, error: &io::Error) -> StartFailure {
    StartFailure {
        kind: start_failure::Kind::Other.into(),
        message: format!("{what}: {error}"),
        errno: error.raw_os_error().unwrap_or_default(),
    }
}

fn refused(error: &SpawnError) -> StartFailure {
    let errno = match error {
        SpawnError::Refused(refusal) => refusal.errno,
        _ => 0,
    };
    // What a fork into a process namespace says whose first process has ended.
    let message = match errno {
        libc::ENOMEM => "the container has ended".to_owned(),
        _ => crate::console::chain(error),
    };
    StartFailure { kind: start_failure::Kind::Other.into(), message, errno }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        Order { args: vec![b"prog\x1b[2J".to_vec()], cwd: b"/nowhere".to_vec(), ..Default::default() }
    }

    #[test]
    fn what_a_child_said_is_told_apart_by_its_length() {
        let failed = Status::Failed(Failed { step: Step::Find, errno: Errno::ENOENT });
        let report = [&[Step::Find as u8][..], &2_i32.to_le_bytes()].concat();
        assert_eq!(parse_status(b""), Some(Status::Lost));
        assert_eq!(parse_status(&7_u32.to_le_bytes()), Some(Status::Running(7)));
        assert_eq!(parse_status(&report), Some(failed));
        assert_eq!(parse_status(&[&7_u32.to_le_bytes()[..], &report].concat()), Some(failed));
        for length in [1, 2, 3, 6, 7, 8, 10] {
            assert_eq!(parse_status(&vec![1; length]), None, "{length}");
        }
    }

    #[test]
    fn failures_have_the_kinds_that_command_lines_have_exit_codes_for() {
        let kind = |step, errno| describe(Failed { step, errno }, &order()).kind();
        assert_eq!(kind(Step::Find, Errno::ENOENT), start_failure::Kind::NotFound);
        assert_eq!(kind(Step::Interpreter, Errno::ENOENT), start_failure::Kind::NotFound);
        assert_eq!(kind(Step::Execute, Errno::EACCES), start_failure::Kind::NotExecutable);
        assert_eq!(kind(Step::Execute, Errno::ENOEXEC), start_failure::Kind::NotExecutable);
        assert_eq!(kind(Step::Execute, Errno::ENOMEM), start_failure::Kind::Other);
        assert_eq!(kind(Step::WorkingDirectory, Errno::ENOTDIR), start_failure::Kind::BadWorkingDirectory);
    }

    #[test]
    fn names_from_the_caller_are_shown_escaped() {
        let failure = describe(Failed { step: Step::Find, errno: Errno::ENOENT }, &order());
        assert!(failure.message.contains("prog\\x1b[2J"), "{}", failure.message);
    }
}
