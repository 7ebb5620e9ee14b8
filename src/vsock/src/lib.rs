//! A vhost-user virtio-vsock device that connects vsock ports to Unix sockets.
//!
//! It gives a guest of QEMU what libkrun gives its own: each port is a Unix socket on the host, and either side dials.
//!
//! ```text
//!   host program ──connect──▶ listening socket of a port ──▶ guest's port        [`Direction::HostToGuest`]
//!   host program ◀──accept─── its own listening socket ◀──── guest dials the port [`Direction::GuestToHost`]
//! ```
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use boxlite_vsock::{Device, Direction, Port};
//!
//! let portal = Port { port: 1024, path: "/run/box/portal.sock".into(), direction: Direction::HostToGuest };
//! let device = Device::new(3, vec![portal])?;
//! let (ours, qemus) = std::os::unix::net::UnixStream::pair()?;
//! // `qemus` becomes QEMU's standard input: -chardev socket,id=vsock,fd=0 -device vhost-user-vsock-device,chardev=vsock
//! device.serve(ours)?;
//! # Ok(())
//! # }
//! ```
//!
//! # What it promises
//!
//! * Bytes arrive once and in order, whole until the end of the stream: half-close works in both directions, and what
//!   a guest had sent reaches the host though the guest, or QEMU, has gone.
//! * A reader that does not read stops its writer and nobody else. Nothing grows: see the constants.
//! * One thread, which sleeps unless there is something to do.
//! * The guest is hostile: rings, descriptors and headers are checked, and what does not add up resets a connection or
//!   stops a ring.
//!
//! # What it needs
//!
//! The process ignores `SIGPIPE`, as Rust programs do, and has a descriptor for each connection; when it runs out, host
//! programs wait and the guest is refused. The VMM is trusted not to take guest memory away while the device runs.
//!
//! # How it is made
//!
//! `connection` is the state machine of one connection, without any I/O. `packet` and `chain` read what the guest wrote,
//! `ring` is one virtqueue, `host` a Unix socket, `table` all connections and whose turn it is. `switch` moves packets
//! between them, `frontend` is what the VMM says, and `service` the event loop.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod chain;
mod connection;
mod frontend;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod host;
mod packet;
mod quiet;
mod ring;
mod service;
mod switch;
mod table;

/// The parts of this device that any vhost-user device needs: what the VMM says, and a virtqueue.
pub mod vhost_user {
    pub use crate::frontend::{Description, Frontend};
    pub use crate::ring::Ring;
}

use std::collections::HashMap;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags};
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use frontend::{Description, Frontend};
use service::Service;
use switch::Switch;

/// The most connections at a time. Further host programs wait, and the guest is refused.
pub const MAX_CONNECTIONS: usize = 1024;

/// So many connections get a [`LARGE_WINDOW`].
const LARGE_WINDOWS: usize = 64;

/// The most bytes that wait for a host program that does not read, per connection: four of the guest's largest packets.
const LARGE_WINDOW: u32 = 256 << 10;

/// The same for connections beyond [`LARGE_WINDOWS`]. All of them together wait with less than 48 MiB.
const SMALL_WINDOW: u32 = 32 << 10;

/// How long a guest's driver may take to answer: its kernel does so at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long host programs may take to read what is left when the VMM has gone.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// A vsock port that is connected to a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The port: of the guest for [`Direction::HostToGuest`], of the host otherwise. Ports from 2^30 upwards are used
    /// for the host's end of connections to the guest.
    pub port: u32,
    /// The Unix socket on the host. The guest never learns it.
    pub path: PathBuf,
    /// Who dials.
    pub direction: Direction,
}

/// Who dials a [`Port`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device listens on the Unix socket and connects each client to the guest's port.
    HostToGuest,
    /// The guest dials the port and the device connects it to the Unix socket, on which the host listens.
    GuestToHost,
}

/// Why a device cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NewError {
    /// A context id that the specification reserves, or that does not fit.
    #[error("{0} cannot be a guest's context id")]
    GuestCid(u64),
    /// A port twice in one direction, or a host port that connections to the guest may use.
    #[error("vsock port {0} cannot be used, or is used twice")]
    Port(u32),
    /// A socket cannot be listened on, for instance because the file exists: nothing is ever removed.
    #[error("no socket can be made at {path}", path = path.display())]
    Listen {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Why serving has ended before the VMM has.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Waiting for events failed.
    #[error("the device cannot wait for events")]
    Wait(#[source] std::io::Error),
    /// The rings cannot be set up.
    #[error("the device has no rings")]
    Rings(#[source] virtio_queue::Error),
    /// The VMM broke the vhost-user protocol or asked for what cannot be done.
    #[error("a vhost-user message failed")]
    Frontend(#[source] vhost::vhost_user::Error),
}

/// A device that is listening already and waits for its VMM.
#[derive(Debug)]
pub struct Device {
    guest_cid: u64,
    listeners: Vec<(u32, UnixListener)>,
    dials: HashMap<u32, PathBuf>,
}

impl Device {
    /// Makes the listening sockets, so that host programs can connect as soon as this returns. They wait until the
    /// guest's driver is there; once it is, a port on which nobody listens in the guest closes the connection.
    ///
    /// # Errors
    /// When an argument is out of range or a socket cannot be made.
    pub fn new(guest_cid: u64, ports: Vec<Port>) -> Result<Self, NewError> {
        if guest_cid <= packet::HOST_CID || guest_cid >= u64::from(u32::MAX) {
            return Err(NewError::GuestCid(guest_cid));
        }
        let mut listeners: Vec<(u32, UnixListener)> = Vec::new();
        let mut dials = HashMap::new();
        for Port { port, path, direction } in ports {
            match direction {
                Direction::GuestToHost => {
                    if port >= table::FIRST_PORT || dials.insert(port, path).is_some() {
                        return Err(NewError::Port(port));
                    }
                }
                Direction::HostToGuest => {
                    if port == u32::MAX || listeners.iter().any(|(other, _)| *other == port) {
                        return Err(NewError::Port(port));
                    }
                    let listener = UnixListener::bind(&path)
                        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
                    match listener {
                        Ok(listener) => listeners.push((port, listener)),
                        Err(source) => return Err(NewError::Listen { path, source }),
                    }
                }
            }
        }
        Ok(Self { guest_cid, listeners, dials })
    }

    /// Serves a VMM on a connected vhost-user socket, on this thread, until the VMM closes it. Shutting down a clone of
    /// the socket ends it as well. Host programs then have two seconds to read what the guest had sent last.
    ///
    /// # Errors
    /// When the VMM does not keep to the protocol or the host is out of resources.
    pub fn serve(self, vhost_user: UnixStream) -> Result<(), ServeError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
        let epoll = Arc::new(epoll.map_err(|errno| ServeError::Wait(errno.into()))?);
        let description = Description {
            rings: service::RINGS,
            config: self.guest_cid.to_le_bytes().to_vec(),
            protocol: VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK,
        };
        let frontend = Frontend::new(description, Arc::clone(&epoll)).map_err(ServeError::Rings)?;
        let switch = Switch::new(self.guest_cid, Arc::clone(&epoll), self.listeners, self.dials);
        Service::new(epoll, frontend, switch, vhost_user)?.run()
    }
}
