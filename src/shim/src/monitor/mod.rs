//! The monitor role: the one owner of one box.
//!
//! ```text
//!                 ┌───────── boot.sock ◀── the guest's boot reports
//!   lifeline ◀───▶│                  ┌──▶ portal.sock ──▶ the agent
//!   control.sock ▶│ driver ─ machine ┤
//!   SIGTERM ─────▶│                  └──▶ VMM ──▶ console.log
//!                 └───────── publisher ──▶ state, lifeline, control.sock
//! ```
//!
//! [`machine`] decides, [`driver`] acts, [`publish`] tells. What is made on the way up is owned by a value that removes it
//! when it is dropped, so that a failure at any step leaves what was there before:
//!
//! ```text
//!   Lock::take ──▶ Sockets::listen ──▶ Vmm::spawn ──▶ Driver::run ──▶ the final state ──▶ remove, if asked to
//! ```
//!
//! When the monitor is killed, its VMM sees the end of its lifeline, and dies; the lock falls; and the next who looks finds
//! a state file of a box that runs, and nobody who holds its lock.

mod agent;
mod boot;
mod console;
mod control;
mod driver;
mod lock;
mod machine;
mod publish;
mod sockets;
mod vmm;

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boxlite_control::{
    BoxFiles, Direction, ErrorRecord, FailureKind, MonitorConfig, State, StatusUpdate, VERSION, VmmConfig,
    VsockPort, frame,
};
use boxlite_portal::ports;
use libkrun_sys::firmware::{self, FirmwareError};
use nix::errno::Errno;
use nix::sys::signal::{self, SigHandler, Signal};
use nix::sys::stat::{self, Mode};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::engine::{self, Host, Unavailable};
use crate::{child, text};
use console::Tail;
use driver::Driver;
use lock::{Lock, LockError};
use machine::Event;
use publish::Publisher;
use sockets::{ListenError, Sockets};
use vmm::{SpawnError, Vmm};

/// How long the library may take to send the configuration.
const CONFIG: Duration = Duration::from_secs(30);
/// How long listeners may take to read the final state, and the console to be read to its end.
const GOODBYE: Duration = Duration::from_secs(3);
/// Events that wait for the driver, which takes them at once.
const EVENTS: usize = 64;
const SIGTERM: u32 = 15;

/// Why a monitor could not begin its work.
#[derive(Debug, thiserror::Error)]
enum PrepareError {
    #[error("cannot prepare the process")]
    Process(#[source] io::Error),
    #[error("cannot use standard input as a lifeline")]
    Lifeline(#[source] io::Error),
    #[error("no configuration arrived on the lifeline")]
    Silent,
    #[error("the configuration cannot be read")]
    Config(#[source] frame::FrameError),
}

/// Why a box could not be brought up.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("library and shim are of different versions: {library} and {VERSION}")]
    Version { library: u32 },
    #[error("the box cannot be taken over")]
    Lock(#[from] LockError),
    #[error("the box's sockets cannot be made")]
    Listen(#[from] ListenError),
    #[error("the box has no engine")]
    Engine(#[from] Unavailable),
    #[error("the box has no kernel")]
    Kernel(#[from] FirmwareError),
    #[error("the box's machine cannot be started")]
    Vmm(#[from] SpawnError),
}

impl StartError {
    fn state(&self) -> State {
        let (kind, hint) = match self {
            Self::Engine(error) => (FailureKind::Engine, error.hint()),
            Self::Kernel(error) => (FailureKind::Engine, error.hint()),
            Self::Version { .. } => (FailureKind::Internal, Some("install both from one release".to_owned())),
            Self::Lock(LockError::Held) => (FailureKind::AlreadyRunning, None),
            Self::Lock(LockError::Io { .. }) | Self::Listen(_) | Self::Vmm(_) => {
                (FailureKind::Internal, None)
            }
        };
        let mut messages = text::chain(self);
        if let Self::Engine(error) = self {
            messages.extend(error.reasons());
        }
        let error = ErrorRecord { kind, messages, hint, console_tail: Vec::new() };
        State::Failed { error, ended_unix_nanos: unix_nanos() }
    }
}

/// Runs the role.
pub(crate) fn main() -> ExitCode {
    let result = prepare().map_err(PrepareError::Process).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
        runtime.map_err(PrepareError::Process)?.block_on(monitor())
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = text::line(&error), "the monitor ends");
            ExitCode::FAILURE
        }
    }
}

/// Makes this a process of its own, with nothing of the one that started it but the three standard descriptors.
fn prepare() -> io::Result<()> {
    child::close_inherited()?;
    match nix::unistd::setsid() {
        // A process that leads a group already has been made one of its own by who started it.
        Ok(_) | Err(Errno::EPERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    // SAFETY: no handler of this program is replaced, and ignoring a signal runs no code. SIGPIPE is ignored by Rust.
    unsafe { signal::signal(Signal::SIGHUP, SigHandler::SigIgn) }?;
    // Children of the VMM become ours when it dies, so that their end can be awaited.
    nix::sys::prctl::set_child_subreaper(true)?;
    // Whatever is made from here on is for this user alone.
    stat::umask(Mode::from_bits_truncate(0o077));
    Ok(())
}

async fn monitor() -> Result<(), PrepareError> {
    let (mut read, write) = lifeline().map_err(PrepareError::Lifeline)?;
    let config = match timeout(CONFIG, frame::receive::<MonitorConfig, _>(&mut read)).await {
        Ok(Ok(Some(config))) => config,
        Ok(Ok(None)) | Err(_) => return Err(PrepareError::Silent),
        Ok(Err(error)) => {
            // Most likely a library of another version: it is told so, if it listens.
            let update = StatusUpdate { generation: 1, state: StartError::Version { library: 0 }.state() };
            send_last(write, update).await;
            return Err(PrepareError::Config(error));
        }
    };
    tracing::info!(id = config.box_id, detached = config.detached, "the monitor takes the box");
    let files = BoxFiles::new(&config.folder);
    let locked = match config.version {
        VERSION => Lock::take(&files).map_err(StartError::from),
        library => Err(StartError::Version { library }),
    };
    match locked {
        Ok(lock) => own(&config, &files, lock, read, write).await,
        // The box is another's: its state is not ours to write.
        Err(error) => {
            tracing::error!(error = text::line(&error), "the box is not ours");
            send_last(write, StatusUpdate { generation: 1, state: error.state() }).await;
        }
    }
    Ok(())
}

fn lifeline() -> io::Result<(OwnedReadHalf, OwnedWriteHalf)> {
    let stream = std::os::unix::net::UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    stream.set_nonblocking(true)?;
    Ok(UnixStream::from_std(stream)?.into_split())
}

async fn send_last(mut write: OwnedWriteHalf, update: StatusUpdate) {
    if !matches!(timeout(GOODBYE, frame::send(&mut write, &update)).await, Ok(Ok(()))) {
        tracing::warn!("nobody has read the final state");
    }
}

/// Runs a box whose lock is held, to its end and its removal.
async fn own(
    config: &MonitorConfig,
    files: &BoxFiles,
    lock: Lock,
    read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
) {
    let (sender, events) = mpsc::channel(EVENTS);
    let mut listeners = JoinSet::new();
    let (publisher, control) = match Sockets::listen(files) {
        Ok(Sockets { control: (listener, control), boot, portal }) => {
            let publisher = Publisher::start(files, "engine");
            let updates = publisher.subscribe();
            listeners.spawn(async move {
                if let Err(error) = publish::follow(updates, &mut write, |update| update).await {
                    tracing::debug!(%error, "nobody holds the lifeline any more");
                }
            });
            listeners.spawn(control::serve(listener, publisher.subscribe(), sender.clone()));
            let watchers = watch_for_ends(config, read, sender.clone());
            let state = run(config, files, boot, &publisher, sender, events).await;
            drop((watchers, portal));
            publisher.publish(state.unwrap_or_else(|error| {
                tracing::error!(error = text::line(&error), "the box could not be brought up");
                error.state()
            }));
            (publisher, Some(control))
        }
        Err(error) => {
            let error = StartError::from(error);
            tracing::error!(error = text::line(&error), "the box could not be brought up");
            let publisher = Publisher::start(files, "sockets");
            publisher.publish(error.state());
            let last = publisher.subscribe().borrow().clone();
            listeners.spawn(send_last(write, last));
            (publisher, None)
        }
    };
    // Who connects from here on finds the final state in its file. Who was connected is told.
    drop(control);
    let told = async { while listeners.join_next().await.is_some() {} };
    if timeout(GOODBYE, told).await.is_err() {
        tracing::warn!("somebody has not read the final state");
    }
    drop(publisher);
    if config.auto_remove
        && let Err(error) = lock.remove_folder(&config.trash)
    {
        tracing::error!(%error, "the box's folder could not be removed");
    }
}

/// Brings the machine up and drives the box to its end.
async fn run(
    config: &MonitorConfig,
    files: &BoxFiles,
    boot: (tokio::net::UnixListener, sockets::SocketFile),
    publisher: &Publisher,
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
) -> Result<State, StartError> {
    let (engine, capabilities) = engine::choose(config.engine, &Host::look())?;
    let kernel = firmware::kernel(&firmware::find()?, &config.cache)?;
    let mut vm = config.vm.clone();
    vm.kernel = kernel;
    vm.ports.retain(|port| port.port != ports::PORTAL && port.port != ports::BOOT);
    vm.ports.extend([
        VsockPort { port: ports::PORTAL, path: files.portal_socket(), direction: Direction::HostToGuest },
        VsockPort { port: ports::BOOT, path: files.boot_socket(), direction: Direction::GuestToHost },
    ]);
    let vmm_config = VmmConfig {
        version: VERSION,
        engine: engine.choice(),
        accelerated: capabilities.accelerated,
        program: capabilities.program,
        vm,
    };
    publisher.publish(State::Starting { step: "kernel".to_owned() });
    let (vmm, console) = Vmm::spawn(&vmm_config)?;
    tracing::info!(
        engine = engine::name(engine.choice()),
        accelerated = capabilities.accelerated,
        vmm = vmm.pid(),
        "the VMM starts"
    );
    let tail = Tail::default();
    let console = console::record(console, files.console_log(), tail.clone());
    let (mut recorder, mut listener) = (JoinSet::new(), JoinSet::new());
    recorder.spawn(console);
    listener.spawn(boot::listen(boot, sender.clone()));
    let driver = Driver { config, files, engine: engine.choice(), publisher, vmm, sender, events };
    let verdict = driver.run().await;
    listener.shutdown().await;
    // All who could write to the console have ended, unless one could not be killed.
    if timeout(GOODBYE, recorder.join_next()).await.is_err() {
        tracing::warn!("somebody holds the console open");
    }
    Ok(driver::final_state(verdict, &tail))
}

/// Turns the end of the lifeline, and SIGTERM, into stops. Lasts as long as the returned value.
fn watch_for_ends(
    config: &MonitorConfig,
    mut read: OwnedReadHalf,
    events: mpsc::Sender<Event>,
) -> JoinSet<()> {
    let grace = Duration::from_millis(config.stop_grace_millis);
    let stop = move || Event::Stop { signal: if grace.is_zero() { 0 } else { SIGTERM }, grace };
    let mut watchers = JoinSet::new();
    if !config.detached {
        let events = events.clone();
        watchers.spawn(async move {
            // Nothing is sent after the configuration. A failure is an end, too.
            let mut byte = [0];
            while matches!(read.read(&mut byte).await, Ok(1..)) {}
            tracing::info!("the lifeline has ended");
            drop(events.send(stop()).await);
        });
    }
    watchers.spawn(async move {
        match tokio::signal::unix::signal(SignalKind::terminate()) {
            Ok(mut terminate) => {
                while terminate.recv().await.is_some() {
                    tracing::info!("asked to end by a signal");
                    drop(events.send(stop()).await);
                }
            }
            Err(error) => tracing::error!(%error, "SIGTERM will end the monitor without order"),
        }
    });
    watchers
}

/// The time now, nanoseconds since the Unix epoch.
fn unix_nanos() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_of_another_monitor_is_said_to_run_already() {
        let folder = tempfile::tempdir().unwrap();
        let files = BoxFiles::new(folder.path());
        let _lock = Lock::take(&files).unwrap();
        let error = StartError::from(Lock::take(&files).unwrap_err());
        let State::Failed { error, .. } = error.state() else { panic!("{error:?}") };
        assert_eq!(error.kind, FailureKind::AlreadyRunning);
    }
}
