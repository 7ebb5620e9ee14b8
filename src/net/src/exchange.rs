//! Datagrams between the guest and one peer: over UDP, or echo requests and their replies.
//!
//! An exchange has a socket of the host that is connected to the peer, so nobody else is heard on it; or it goes through the
//! socket of a published port. It ends after a time without datagrams: nothing else says that it is over.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use boxlite_control::{LinkSpec, NetworkProtocol};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Protocol, Socket, Type};

use crate::link::Outbox;
use crate::reply;

/// How long it lasts without a datagram (RFC 4787, REQ-5, asks for two minutes at least once both have been heard).
const ONE_WAY: Duration = Duration::from_secs(60);
const BOTH_WAYS: Duration = Duration::from_secs(180);
const ECHO: Duration = Duration::from_secs(30);
/// How many datagrams are taken from one socket before others have their turn.
const TURN: usize = 64;
/// The longest datagram.
pub(crate) const LONGEST: usize = 64 << 10;
/// The header of an echo message.
const ECHO_HEADER: usize = 8;

/// Who talks to whom, as the guest sees it. Of echo requests, the guest's port is their identifier, and the peer's is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pair {
    pub(crate) protocol: NetworkProtocol,
    pub(crate) guest: SocketAddr,
    pub(crate) peer: SocketAddr,
}

/// How the host talks to the peer.
#[derive(Debug)]
enum Way {
    /// A socket of its own, connected.
    Own(Socket),
    /// The socket of a published port, on which this address has been heard.
    Published(Rc<Socket>, SocketAddr),
}

/// An exchange.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) pair: Pair,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    way: Way,
    used: Instant,
    /// The peer has been heard.
    answered: bool,
}

impl Exchange {
    /// The guest sends to a place of the host's world.
    pub(crate) fn outbound(pair: Pair, to: SocketAddr, now: Instant) -> io::Result<Self> {
        let protocol = match (pair.protocol, to) {
            (NetworkProtocol::Icmp, SocketAddr::V4(_)) => Protocol::ICMPV4,
            (NetworkProtocol::Icmp, SocketAddr::V6(_)) => Protocol::ICMPV6,
            _ => Protocol::UDP,
        };
        let kind = Type::DGRAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(to), kind, Some(protocol))?;
        socket.connect(&to.into())?;
        Ok(Self { pair, sent: 0, received: 0, way: Way::Own(socket), used: now, answered: false })
    }

    /// Somebody has sent to a published port.
    pub(crate) fn published(pair: Pair, socket: Rc<Socket>, peer: SocketAddr, now: Instant) -> Self {
        Self { pair, sent: 0, received: 0, way: Way::Published(socket, peer), used: now, answered: true }
    }

    /// Whether it came in through a published port.
    pub(crate) fn is_inbound(&self) -> bool {
        matches!(self.way, Way::Published(..))
    }

    /// The socket to wait for; `None`: it is that of a published port.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.way {
            Way::Own(socket) => Some(socket.as_fd()),
            Way::Published(..) => None,
        }
    }

    /// The guest has sent this. What the host's socket has no room for is lost, as datagrams are.
    pub(crate) fn send(&mut self, content: &[u8], now: Instant) {
        self.used = now;
        let sent = match &self.way {
            Way::Own(socket) => socket.send(content),
            Way::Published(socket, peer) => socket.send_to(content, &(*peer).into()),
        };
        if let Ok(sent) = sent {
            self.sent += sent as u64;
        }
    }

    /// The guest has sent an echo request.
    pub(crate) fn send_echo(&mut self, number: u16, data: &[u8], now: Instant) {
        // Type, code, and a checksum and an identifier that the kernel writes.
        let kind = if self.pair.peer.is_ipv4() { 8 } else { 128 };
        let [high, low] = number.to_be_bytes();
        let mut message = vec![kind, 0, 0, 0, 0, 0, high, low];
        message.extend_from_slice(data);
        self.send(&message, now);
    }

    /// The peer has sent this to a published port.
    pub(crate) fn receive(&mut self, content: &[u8], link: &LinkSpec, outbox: &mut Outbox, now: Instant) {
        self.used = now;
        self.answered = true;
        self.received += content.len() as u64;
        reply::udp(outbox, link, self.pair.peer, self.pair.guest, content);
    }

    /// Passes on what has come for its own socket. `true`: there may be more.
    pub(crate) fn turn(
        &mut self,
        link: &LinkSpec,
        outbox: &mut Outbox,
        scratch: &mut [u8],
        now: Instant,
    ) -> bool {
        for _ in 0..TURN {
            if !outbox.has_room() {
                return true;
            }
            let Way::Own(socket) = &self.way else { return false };
            match recv(socket.as_raw_fd(), scratch, MsgFlags::MSG_DONTWAIT) {
                Ok(read) if self.pair.protocol == NetworkProtocol::Icmp => {
                    self.receive_echo(&scratch[..read], link, outbox, now);
                }
                Ok(read) => self.receive(&scratch[..read], link, outbox, now),
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNREFUSED) => {
                    reply::nobody_listens(outbox, link, self.pair.guest, self.pair.peer);
                }
                Err(_) => return false,
            }
        }
        true
    }

    fn receive_echo(&mut self, message: &[u8], link: &LinkSpec, outbox: &mut Outbox, now: Instant) {
        let reply = if self.pair.peer.is_ipv4() { 0 } else { 129 };
        let (Some(header), Some(data)) = (message.first_chunk::<ECHO_HEADER>(), message.get(ECHO_HEADER..))
        else {
            return;
        };
        if header[0] != reply {
            return;
        }
        self.used = now;
        self.received += message.len() as u64;
        let number = u16::from_be_bytes([header[6], header[7]]);
        let (from, to) = (self.pair.peer.ip(), self.pair.guest.ip());
        reply::echo(outbox, link, from, to, self.pair.guest.port(), number, data);
    }

    /// When it ends, unless a datagram comes before.
    pub(crate) fn ends(&self) -> Instant {
        let lasts = match self.pair.protocol {
            NetworkProtocol::Icmp => ECHO,
            _ if self.answered => BOTH_WAYS,
            _ => ONE_WAY,
        };
        self.used + lasts
    }
}
