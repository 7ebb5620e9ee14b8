//! The monitor role: the one owner of one box.
//!
//! ```text
//!                 ┌─────────── boot.sock ◀── the guest's boot reports
//!   lifeline ◀───▶│                         ┌──▶ portal.sock ──▶ the agent ──▶ output.log
//!   control.sock ▶│ life ─ driver ─ machine ┤
//!   SIGTERM ─────▶│                         └──▶ VMM ──▶ console.log
//!                 ├─────────── publisher ──▶ state, lifeline, control.sock
//!                 └─────────── teller ──▶ the home's journal
//! ```
//!
//! [`life`] is the one owner of the box, for as many runs as its restart policy wants. Of a run, [`machine`] decides,
//! [`driver`] acts; [`publish`] says what is, [`teller`] what has happened. What is made on the way up is owned by a value
//! that removes it when it is dropped, so that a failure at any step leaves what was there before:
//!
//! ```text
//!   Lock::take ──▶ control.sock ──▶ ( RunSockets::listen ──▶ Vmm::spawn ──▶ Driver::run )* ──▶ the final state ──▶
//!   remove, if asked to
//! ```
//!
//! When the monitor is killed, its VMM sees the end of its lifeline, and dies; the lock falls; and the next who looks finds
//! a state file of a box that runs, and nobody who holds its lock.

mod agent;
mod boot;
mod clock;
mod console;
mod control;
mod driver;
mod guest_events;
mod health;
mod life;
mod lock;
mod machine;
mod network;
mod order;
mod publish;
mod recorder;
mod sockets;
mod teller;
mod usage;
mod vmm;

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boxlite_control::{
    BoxFiles, EndReason, ErrorRecord, EventKind, FailureKind, MonitorConfig, RELEASE, State, StatusUpdate,
    VERSION, frame, step,
};
use libkrun_sys::firmware::FirmwareError;
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

use crate::engine::Unavailable;
use crate::{child, text};
use life::Life;
use lock::{Lock, LockError};
use network::NetworkError;
use order::{Command, Order};
use publish::Publisher;
use sockets::ListenError;
use vmm::SpawnError;

/// How long the library may take to send the configuration.
const CONFIG: Duration = Duration::from_secs(30);
/// How long listeners may take to read the final state, and the console to be read to its end.
const GOODBYE: Duration = Duration::from_secs(3);
/// Events and orders that wait for the driver, which takes them at once.
const EVENTS: usize = 64;

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
    #[error("the box's network cannot be set up")]
    Network(#[from] NetworkError),
}

impl StartError {
    fn state(&self) -> State {
        let (kind, hint) = match self {
            Self::Engine(error) => (FailureKind::Engine, error.hint()),
            Self::Kernel(error) => (FailureKind::Engine, error.hint()),
            Self::Version { .. } => (FailureKind::Internal, Some("install both from one release".to_owned())),
            Self::Network(NetworkError::Failed(_)) => (
                FailureKind::Network,
                Some("a port that is taken: choose another one, or 0 for any".to_owned()),
            ),
            Self::Network(_) => (FailureKind::Network, None),
            Self::Lock(LockError::Held) => (FailureKind::AlreadyRunning, None),
            Self::Lock(LockError::Gone) => (FailureKind::Removed, None),
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
        let runtime = runtime.map_err(PrepareError::Process)?;
        let (config, read, write) = runtime.block_on(receive_config())?;
        // This process has one box and one thread, so all that it does is done for this box.
        let _box = tracing::info_span!("box", id = config.box_id).entered();
        runtime.block_on(monitor(&config, read, write));
        Ok(())
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

async fn receive_config() -> Result<(MonitorConfig, OwnedReadHalf, OwnedWriteHalf), PrepareError> {
    let (mut read, write) = lifeline().map_err(PrepareError::Lifeline)?;
    match timeout(CONFIG, frame::receive::<MonitorConfig, _>(&mut read)).await {
        Ok(Ok(Some(config))) => Ok((config, read, write)),
        Ok(Ok(None)) | Err(_) => Err(PrepareError::Silent),
        Ok(Err(error)) => {
            // Most likely a library of another version: it is told so, if it listens.
            send_last(write, first(&StartError::Version { library: 0 })).await;
            Err(PrepareError::Config(error))
        }
    }
}

async fn monitor(config: &MonitorConfig, read: OwnedReadHalf, write: OwnedWriteHalf) {
    tracing::info!(detached = config.detached, "the monitor takes the box");
    let files = BoxFiles::new(&config.folder);
    let locked = match config.version {
        VERSION => Lock::take(&files).map_err(StartError::from),
        library => Err(StartError::Version { library }),
    };
    match locked {
        Ok(lock) => {
            step::reached("monitor", "locked");
            own(config, &files, lock, read, write).await;
        }
        // The box is another's: its state is not ours to write.
        Err(error) => {
            tracing::error!(error = text::line(&error), "the box is not ours");
            send_last(write, first(&error)).await;
        }
    }
}

/// The one state of a box that this monitor does not own.
fn first(error: &StartError) -> StatusUpdate {
    StatusUpdate { generation: 1, restarts: 0, state: error.state() }
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
    let (sender, orders) = mpsc::channel(EVENTS);
    let mut listeners = JoinSet::new();
    // Others take a control socket that answers for a box that runs, so the state follows at once.
    let (publisher, control) = match sockets::listen_for_orders(files) {
        Ok((listener, control)) => {
            let publisher = Publisher::start(files, "engine");
            let updates = publisher.subscribe();
            listeners.spawn(async move {
                if let Err(error) = publish::follow(updates, &mut write, |update| update).await {
                    tracing::debug!(%error, "nobody holds the lifeline any more");
                }
            });
            listeners.spawn(control::serve(listener, publisher.subscribe(), sender.clone()));
            step::reached("monitor", "listening");
            let watchers = watch_for_ends(config, read, sender);
            let mut life = Life::new(config, files, &publisher, orders);
            let state = life.live().await;
            drop((watchers, life));
            publisher.publish(state);
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
    step::reached("monitor", "ended");
    // Who connects from here on finds the final state in its file. Who was connected is told.
    drop(control);
    let told = async { while listeners.join_next().await.is_some() {} };
    if timeout(GOODBYE, told).await.is_err() {
        tracing::warn!("somebody has not read the final state");
    }
    drop(publisher);
    if config.auto_remove {
        match lock.remove_folder(&config.trash) {
            Ok(()) => teller::Teller::new(config).tell(EventKind::Removed),
            Err(error) => tracing::error!(%error, "the box's folder could not be removed"),
        }
    }
}

/// Turns the end of the lifeline, and SIGTERM, into stops. Lasts as long as the returned value.
fn watch_for_ends(
    config: &MonitorConfig,
    mut read: OwnedReadHalf,
    orders: mpsc::Sender<Order>,
) -> JoinSet<()> {
    let stop = |grace_millis: u64, reason| {
        let grace = Duration::from_millis(grace_millis);
        let signal = if grace.is_zero() { 0 } else { config.stop_signal };
        move || Order::unasked(Command::Stop { signal, grace, reason })
    };
    let mut watchers = JoinSet::new();
    if !config.detached {
        let orders = orders.clone();
        let stop = stop(config.owner_grace_millis, EndReason::OwnerGone);
        watchers.spawn(async move {
            // One thing may be sent after the configuration. A failure is an end, too.
            let mut byte = [0];
            while matches!(read.read(&mut byte).await, Ok(1..)) {
                if byte == [RELEASE] {
                    return tracing::info!("the box belongs to nobody any more");
                }
            }
            tracing::info!("the lifeline has ended");
            drop(orders.send(stop()).await);
        });
    }
    let stop = stop(config.stop_grace_millis, EndReason::Requested);
    watchers.spawn(async move {
        match tokio::signal::unix::signal(SignalKind::terminate()) {
            Ok(mut terminate) => {
                while terminate.recv().await.is_some() {
                    tracing::info!("asked to end by a signal");
                    drop(orders.send(stop()).await);
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
