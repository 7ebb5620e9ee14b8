//! QEMU, as a child of the VMM role.
//!
//! This process serves the guest's vsock device over vhost-user, and ends when QEMU does. QEMU dies with it: the kernel
//! kills the child of a dead parent.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use boxlite_control::{Direction, EngineChoice, SocketPath, VmSpec};
use boxlite_portal::ports::GUEST_CID;
use boxlite_vsock::{Device, Port};

use super::qemu_arguments::{self, Accelerator, Sockets};
use super::{Capabilities, Engine, Host, RunError, WhyNot};
use crate::share::Server;
use crate::tsc::Measurement;
use crate::{child, text};

/// The program.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// The engine.
#[derive(Debug)]
pub(crate) struct Qemu;

impl Engine for Qemu {
    fn choice(&self) -> EngineChoice {
        EngineChoice::Qemu
    }

    fn probe(&self, host: &Host) -> Result<Capabilities, WhyNot> {
        match find(&host.path) {
            Some(program) => Ok(Capabilities { accelerated: host.kvm.is_ok(), program: Some(program) }),
            None => Err(WhyNot {
                reasons: vec![format!("{PROGRAM} is in no folder of PATH")],
                hint: Some("install QEMU: `apt install qemu-system-x86`".to_owned()),
            }),
        }
    }

    fn run(
        &self,
        vm: &VmSpec,
        link: Option<OwnedFd>,
        capabilities: &Capabilities,
    ) -> Result<Infallible, RunError> {
        let measurement = (!capabilities.accelerated).then(Measurement::start);
        let program = capabilities.program.clone();
        let program =
            program.ok_or_else(|| RunError::Unsupported(format!("nobody has looked for {PROGRAM}")))?;
        let vsock = Vsock::start(vm)?;
        let share = vm.share.as_ref().map(|share| Server::start(share, true)).transpose()?;
        let share = share.and_then(|server| server.qemus);
        let share_fd = share.as_ref().map(AsRawFd::as_raw_fd);
        let link_fd = link.as_ref().map(AsRawFd::as_raw_fd);
        let accelerator = match measurement {
            None => Accelerator::Kvm,
            Some(measurement) => Accelerator::Software { tsc_khz: measurement.finish() },
        };
        let failed = |source| RunError::Start { program: program.clone(), source };

        let mut command = Command::new(&program);
        let sockets = Sockets { vsock: vsock.qemus.as_raw_fd(), share: share_fd, link: link_fd };
        command.args(qemu_arguments::arguments(vm, accelerator, &sockets)?);
        command.env_clear().current_dir("/").stdin(Stdio::null()).stderr(Stdio::piped());
        child::tie(&mut command, [Some(sockets.vsock), sockets.share, sockets.link]);
        let mut qemu = command.spawn().map_err(failed)?;
        let served = vsock.hand_over();
        // As with the vsock device: its server sees the end of QEMU when nobody else has this end.
        drop((share, link));
        let words = qemu.stderr.take().map(last_words::listen).transpose().map_err(failed)?;
        let status = qemu.wait().map_err(failed)?;
        // The device ends with its socket, after host programs had a short time to read what the guest has sent last.
        if served.join().is_err() {
            tracing::error!("the vsock device has panicked");
        }
        let words = words.and_then(|words| words.join().ok()).unwrap_or_default();
        Err(RunError::Ended { program, status, words })
    }
}

/// What QEMU writes to its standard error.
mod last_words {
    use std::io::{self, Read, Write};
    use std::thread;

    use crate::text;

    /// The most that is passed on to the log, in bytes: a guest can make QEMU complain for ever.
    const LOGGED: usize = 256 << 10;
    /// The most that is quoted, in bytes.
    const QUOTED: usize = 1 << 10;

    /// Passes it on to the log, and returns the end of it once there is no more.
    pub(super) fn listen(words: impl Read + Send + 'static) -> io::Result<thread::JoinHandle<String>> {
        let thread = thread::Builder::new().name("log".into()).stack_size(64 << 10);
        thread.spawn(move || relay(words, &mut io::stderr()))
    }

    pub(super) fn relay(mut words: impl Read, log: &mut impl Write) -> String {
        let (mut left, mut tail, mut buffer) = (LOGGED, Vec::new(), [0; 2 << 10]);
        loop {
            match words.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
                Ok(read) => {
                    let new = &buffer[..read];
                    // A log that cannot be written has nobody to be told of it.
                    drop(log.write_all(&new[..read.min(left)]));
                    left = left.saturating_sub(read);
                    tail.extend_from_slice(new);
                    tail.drain(..tail.len().saturating_sub(QUOTED));
                }
            }
        }
        text::escape(tail.trim_ascii(), QUOTED)
    }
}

/// A vsock device on a thread of its own.
struct Vsock {
    qemus: UnixStream,
    thread: thread::JoinHandle<()>,
}

impl Vsock {
    fn start(vm: &VmSpec) -> Result<Self, RunError> {
        let failed = |error: std::io::Error| RunError::Vsock(Box::new(error));
        let mut ports = Vec::new();
        // Some of the paths lead through an open folder, which has to stay open while the device runs.
        let mut sockets = Vec::new();
        for port in &vm.ports {
            let socket = SocketPath::new(&port.path).map_err(failed)?;
            let direction = match port.direction {
                Direction::HostToGuest => boxlite_vsock::Direction::HostToGuest,
                Direction::GuestToHost => boxlite_vsock::Direction::GuestToHost,
            };
            ports.push(Port { port: port.port, path: socket.path().to_owned(), direction });
            sockets.push(socket);
        }
        let device =
            Device::new(u64::from(GUEST_CID), ports).map_err(|error| RunError::Vsock(Box::new(error)))?;
        let (ours, qemus) = UnixStream::pair().map_err(failed)?;
        let span = tracing::Span::current();
        let serve = move || {
            let (_sockets, _box) = (sockets, span.entered());
            if let Err(error) = device.serve(ours) {
                tracing::error!(error = text::line(&error), "the vsock device has failed");
            }
        };
        let thread = thread::Builder::new().name("vsock".into()).spawn(serve).map_err(failed)?;
        Ok(Self { qemus, thread })
    }

    /// Gives up this process's copy of QEMU's end: only then does the device see that QEMU has gone.
    fn hand_over(self) -> thread::JoinHandle<()> {
        self.thread
    }
}

/// The first executable of this name in a list of folders.
fn find(path: &OsStr) -> Option<PathBuf> {
    let executable = |program: &PathBuf| {
        program.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    // A relative folder would mean another program wherever one stands.
    std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(PROGRAM))
        .find(executable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_qemu_says_is_logged_within_bounds_and_its_end_is_quoted() {
        let mut log = Vec::new();
        assert_eq!(last_words::relay(&b"no such\x1b file\n"[..], &mut log), "no such\\u{1b} file");
        assert_eq!(log, b"no such\x1b file\n");

        let flood = [vec![b'x'; 4 << 20], b"the end".to_vec()].concat();
        let mut log = Vec::new();
        let words = last_words::relay(flood.as_slice(), &mut log);
        assert_eq!(log.len(), 256 << 10);
        assert!(words.ends_with("the end") && words.len() < 2 << 10, "{words}");
    }

    #[test]
    fn the_program_is_the_first_executable_file_of_its_name() {
        let folders = tempfile::tempdir().unwrap();
        let make = |name: &str, mode| {
            let folder = folders.path().join(name);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join(PROGRAM), "").unwrap();
            fs::set_permissions(folder.join(PROGRAM), fs::Permissions::from_mode(mode)).unwrap();
            folder
        };
        let (plain, first, second) = (make("plain", 0o644), make("first", 0o755), make("second", 0o755));
        let a_folder = folders.path().join("folder");
        fs::create_dir_all(a_folder.join(PROGRAM)).unwrap();
        let path = std::env::join_paths([".".into(), a_folder, plain, first.clone(), second]).unwrap();
        assert_eq!(find(&path), Some(first.join(PROGRAM)));
        assert_eq!(find(OsStr::new("")), None);
    }
}
