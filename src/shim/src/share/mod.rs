//! The share role: the server of a box's volumes, in a process of its own.
//!
//! ```text
//!   VMM ──spawns──▶ share   standard input: a socket. In: a frame with the ShareSpec. Out: a frame with the reasons why it
//!                           cannot serve, a list of strings; an empty one when it does
//!                           standard output: a socket. QEMU's vhost-user device, or one that listens for the guest
//! ```
//!
//! What it needs is opened before the guest can say a word: each volume's root, as a mount of its own that the rest of the
//! file system is not reachable from, and that is read-only where the volume is. So the kernel refuses what the server
//! should fail to refuse.

mod place;

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use boxlite_control::{EngineChoice, ShareSpec, SocketPath, frame};
use boxlite_fs::{Device, Share, Volume};
use boxlite_portal::ports;
use boxlite_portal::v1::init_request::Share as Reach;
use serde::{Deserialize, Serialize};

use crate::engine::RunError;
use crate::{child, environment, text, vmm};

/// The tag of the virtio-fs device.
pub(crate) const TAG: &str = "volumes";
/// How long the server may take to open the volumes: a quota is counted meanwhile.
const READY: Duration = Duration::from_secs(60);

/// How the guest of this engine reaches the share.
pub(crate) fn reached_by(engine: EngineChoice) -> Reach {
    match engine {
        // libkrun's own virtio-fs device follows any name that its guest sends.
        EngineChoice::Krun => Reach::SharePort(ports::SHARE),
        EngineChoice::Qemu | EngineChoice::Auto => Reach::ShareTag(TAG.to_owned()),
    }
}

/// What the role is told.
#[derive(Debug, Serialize, Deserialize)]
struct Config {
    share: ShareSpec,
    vhost_user: bool,
}

/// Why there is no share.
#[derive(Debug, thiserror::Error)]
enum ShareError {
    #[error("cannot prepare the process")]
    Prepare(#[source] io::Error),
    #[error("cannot read what to share")]
    Read(#[source] frame::FrameError),
    #[error("cannot open the volume {path:?}")]
    Volume {
        path: std::path::PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot share the volumes")]
    New(#[source] boxlite_fs::NewError),
    #[error("the share has failed")]
    Serve(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A started server, for the VMM.
#[derive(Debug)]
pub(crate) struct Server {
    /// QEMU's end of the device.
    pub(crate) qemus: Option<UnixStream>,
}

impl Server {
    /// Starts the server of the box's volumes. It dies with this process, and this process ends when it fails.
    ///
    /// For the main thread: the server dies with the thread that started it.
    pub(crate) fn start(share: &ShareSpec, vhost_user: bool) -> Result<Self, RunError> {
        let failed = |error: io::Error| RunError::Share(vec![error.to_string()]);
        let (qemus, output): (_, OwnedFd) = if vhost_user {
            let (ours, qemus) = UnixStream::pair().map_err(failed)?;
            (Some(qemus), ours.into())
        } else {
            let path = SocketPath::new(&share.socket).map_err(failed)?;
            (None, UnixListener::bind(path.path()).map_err(failed)?.into())
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let config = Config { share: share.clone(), vhost_user };
        let config = frame::encode(&config).map_err(|error| RunError::Share(text::chain(&error)))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("boxlite-shim").arg("share").env_clear().current_dir("/");
        if let Some(filter) = std::env::var_os(environment::LOG) {
            command.env(environment::LOG, filter);
        }
        child::tie(&mut command, [None; 3]);
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::from(output));
        let child = command.spawn().map_err(failed)?;
        // Its ends of the sockets, so that its death shows.
        drop(command);
        ours.set_read_timeout(Some(READY)).map_err(failed)?;
        (&ours).write_all(&config).map_err(failed)?;
        let reasons: Vec<String> = match frame::read(&mut &ours) {
            Ok(reasons) => reasons,
            Err(error) => vec![format!("the server does not answer: {error}")],
        };
        if !reasons.is_empty() {
            return Err(RunError::Share(reasons));
        }
        watch(child).map_err(failed)?;
        Ok(Self { qemus })
    }
}

/// Ends this process if the server fails: a box without its volumes is of no use, and its guest would wait for ever.
fn watch(mut child: Child) -> io::Result<()> {
    let wait = move || match child.wait() {
        // The guest has gone, or the machine with it.
        Ok(status) if status.success() => {}
        ended => {
            let why = match ended {
                Ok(status) => format!("the server of the volumes has ended: {status}"),
                Err(error) => format!("nothing is known of the server of the volumes: {error}"),
            };
            tracing::error!("{why}");
            vmm::say(&[why]);
            // SAFETY: ends the process without running anything: exit handlers could wait for a thread that runs a guest.
            unsafe { libc::_exit(1) }
        }
    };
    thread::Builder::new().name("share".into()).stack_size(64 << 10).spawn(wait).map(drop)
}

/// Runs the role.
pub(crate) fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = text::line(&error), "the share ends");
            if let Err(error) = answer(&text::chain(&error)) {
                tracing::debug!(%error, "nobody on standard input wants to know why");
            }
            ExitCode::FAILURE
        }
    }
}

fn answer(reasons: &[String]) -> io::Result<()> {
    let vmm = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let reasons = frame::encode(&reasons).map_err(io::Error::other)?;
    (&vmm).write_all(&reasons)
}

fn run() -> Result<(), ShareError> {
    child::close_inherited().map_err(ShareError::Prepare)?;
    let config: Config = frame::read(&mut io::stdin().lock()).map_err(ShareError::Read)?;
    let Config { share, vhost_user } = config;
    let _role = tracing::info_span!("share").entered();
    let apart = place::apart().map_err(ShareError::Prepare)?;
    let privileged = nix::unistd::geteuid().is_root();
    let mut volumes = Vec::new();
    for volume in share.volumes {
        let root = place::open(&volume.path, volume.read_only, apart)
            .map_err(|source| ShareError::Volume { path: volume.path.clone(), source })?;
        volumes.push(Volume {
            name: volume.name,
            root,
            read_only: volume.read_only,
            owner: boxlite_fs::OwnerMap { host: share.owner, guest: (0, 0), privileged },
            quota: volume.quota,
        });
    }
    // The modes of new files are the guest's.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let mut share = Share::new(volumes).map_err(ShareError::New)?;
    let transport = io::stdout().as_fd().try_clone_to_owned().map_err(ShareError::Prepare)?;
    answer(&[]).map_err(ShareError::Prepare)?;
    if vhost_user {
        Device::new(share)
            .serve(UnixStream::from(transport))
            .map_err(|error| ShareError::Serve(Box::new(error)))
    } else {
        let listener = UnixListener::from(transport);
        // One guest, which dials once: who comes later is none.
        let (guest, _) = listener.accept().map_err(ShareError::Prepare)?;
        drop(listener);
        share.serve_stream(guest).map_err(|error| ShareError::Serve(Box::new(error)))
    }
}
