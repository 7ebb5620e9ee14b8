//! One TCP connection of the guest, and the host's connection that it is spliced to.
//!
//! The guest's half is a socket of smoltcp on an interface of its own, whose address is that of the guest's peer. The
//! host's half is a socket of the kernel. Bytes go from the one's buffer into the other, so each side's window is what the
//! other one has room for, and nothing else is kept.
//!
//! ```text
//!   the guest calls:   Connecting ──(the host's socket is connected: its SYN is answered)──▶ Open
//!                          └──(it cannot be)──▶ gone: reset, or unreachable
//!   the host calls:    Calling ────(the guest has answered)──▶ Open
//!                          └──(it refuses)──▶ gone: the host's side is reset
//!   Open ──(both have ended)──▶ gone          an end goes over as an end: each half closes by itself
//!        ──(one is reset)─────▶ gone          a reset goes over as a reset
//!        ──(what it says is refused)──▶ gone  both are reset
//! ```

use std::io;
use std::mem;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use boxlite_control::LinkSpec;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::link::{ETHERNET, Outbox};
use crate::policy::Stated;
use crate::reply::{self, Unreachable};
use crate::sniff::{self, Gate, Judge};

/// What a connection may move before another one has its turn, in bytes.
const TURN: usize = 256 << 10;
/// How long the guest may take to answer a call.
const CALL: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(30);

/// The two ends of a connection, as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    pub(crate) guest: SocketAddr,
    pub(crate) peer: SocketAddr,
}

/// What comes of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing can be done until something happens.
    Waits,
    /// There is more to do at once.
    More,
    /// It is over.
    Gone,
    /// It is over, for the policy does not allow what it says; and why.
    Refused(&'static str),
}

/// Where a connection stands.
#[derive(Debug)]
enum Stage {
    /// The host's socket connects; the guest's first packet waits.
    Connecting { syn: Vec<u8> },
    /// The guest is called.
    Calling,
    /// Bytes flow.
    Open,
}

/// A connection.
pub(crate) struct Connection {
    pub(crate) ends: Ends,
    /// The host has called.
    pub(crate) inbound: bool,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    host: Socket,
    stage: Stage,
    iface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// What the client says has to be looked at. Its bytes wait in `held` meanwhile, of which `passed` may go on.
    gate: Option<Gate>,
    held: Vec<u8>,
    passed: usize,
    /// What it has said about its destination last, and what of it was allowed.
    said: Option<Stated>,
    stated: Option<Stated>,
    /// The host's socket may have something to read, or room to write.
    readable: bool,
    writable: bool,
    /// The host has been told that the guest has ended, and the other way round.
    guest_ended: bool,
    host_ended: bool,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("ends", &self.ends)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

/// Begins to connect to a place of the host's world.
pub(crate) fn connect(to: SocketAddr) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(to), kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(socket),
    }
}

impl Connection {
    /// The guest calls: `host` connects on its behalf.
    pub(crate) fn outbound(
        host: Socket,
        ends: Ends,
        syn: &[u8],
        gate: Option<Gate>,
        buffer: usize,
        link: &LinkSpec,
        now: Instant,
    ) -> io::Result<Self> {
        let stage = Stage::Connecting { syn: syn.to_vec() };
        Self::new(host, ends, stage, gate, buffer, link, now)
    }

    /// The host calls the guest.
    pub(crate) fn inbound(
        host: Socket,
        ends: Ends,
        buffer: usize,
        link: &LinkSpec,
        now: Instant,
    ) -> io::Result<Self> {
        host.set_tcp_nodelay(true)?;
        let mut this = Self::new(host, ends, Stage::Calling, None, buffer, link, now)?;
        let (guest, peer) = (ends.guest, ends.peer);
        let socket = this.sockets.get_mut::<tcp::Socket<'_>>(this.handle);
        socket.set_timeout(Some(CALL));
        socket
            .connect(this.iface.context(), guest, (peer.ip(), peer.port()))
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
        Ok(Self { inbound: true, ..this })
    }

    fn new(
        host: Socket,
        ends: Ends,
        stage: Stage,
        gate: Option<Gate>,
        buffer: usize,
        link: &LinkSpec,
        now: Instant,
    ) -> io::Result<Self> {
        let mut wire = Wire { received: None, outbox: None, header: [0; ETHERNET], mtu: link.mtu };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = random()?;
        let mut iface = Interface::new(config, &mut wire, now);
        iface.update_ip_addrs(|addresses| {
            // The whole world is on the link, and one address of it is ours.
            addresses.push(IpCidr::new(ends.peer.ip().into(), 0)).ok();
        });
        let room = || tcp::SocketBuffer::new(vec![0; buffer]);
        let mut socket = tcp::Socket::new(room(), room());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_congestion_control(tcp::CongestionControl::None);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Ok(Self {
            ends,
            inbound: false,
            sent: 0,
            received: 0,
            host,
            stage,
            iface,
            sockets,
            handle,
            gate,
            held: Vec::new(),
            passed: 0,
            said: None,
            stated: None,
            readable: false,
            writable: false,
            guest_ended: false,
            host_ended: false,
        })
    }

    /// What it is doing, for people.
    pub(crate) fn state(&self) -> &'static str {
        match self.stage {
            Stage::Connecting { .. } | Stage::Calling => "connecting",
            Stage::Open if self.guest_ended || self.host_ended => "closing",
            Stage::Open => "open",
        }
    }

    /// Whether it has come to be.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open)
    }

    /// The name that it has asked for last, allowed or not.
    pub(crate) fn asked(&self) -> Option<&str> {
        match self.said.as_ref()? {
            Stated::Tls { name, .. } | Stated::Http { name } => name.as_deref(),
            Stated::Other => None,
        }
    }

    /// What it has said about its destination last, of what was allowed.
    pub(crate) fn stated(&self) -> Option<&Stated> {
        self.stated.as_ref()
    }

    /// Whether what it says has yet to be looked at.
    pub(crate) fn is_inspected(&self) -> bool {
        self.gate.is_some()
    }

    /// The host's socket has news.
    pub(crate) fn host_is_ready(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// A packet of the guest has come for it.
    pub(crate) fn take(&mut self, packet: &[u8], link: &LinkSpec, outbox: &mut Outbox, now: Instant) {
        // While the host connects, there is nobody to talk to: the guest repeats what it says.
        if matches!(self.stage, Stage::Connecting { .. }) {
            return;
        }
        let header = reply::ip_ethernet(link, self.ends.peer.ip());
        let mut wire = Wire { received: Some(packet), outbox: Some(outbox), header, mtu: link.mtu };
        self.iface.poll_ingress_single(now, &mut wire, &mut self.sockets);
    }

    /// Moves what can be moved.
    pub(crate) fn turn(
        &mut self,
        link: &LinkSpec,
        outbox: &mut Outbox,
        judge: Judge<'_>,
        now: Instant,
    ) -> Turn {
        if let Stage::Connecting { .. } = self.stage {
            match self.connected(link, outbox, now) {
                Turn::More => {}
                other => return other,
            }
        }
        let mut left = TURN;
        loop {
            let moved = match self.pass_on(left, judge) {
                Ok(moved) => moved,
                Err(why) => {
                    self.abort(link, outbox, now);
                    return why;
                }
            };
            self.send(link, outbox, now);
            if let Some(end) = self.end() {
                return end;
            }
            left = left.saturating_sub(moved);
            if moved == 0 {
                return Turn::Waits;
            }
            if left == 0 || !outbox.has_room() {
                return Turn::More;
            }
        }
    }

    /// Has the host's socket come up?
    fn connected(&mut self, link: &LinkSpec, outbox: &mut Outbox, now: Instant) -> Turn {
        if !self.writable && !self.readable {
            return Turn::Waits;
        }
        let Stage::Connecting { syn } = &mut self.stage else { return Turn::More };
        let syn = mem::take(syn);
        let failed = match self.host.take_error() {
            Ok(None) => None,
            Ok(Some(error)) | Err(error) => Some(error),
        };
        if let Some(error) = failed {
            refuse(&syn, link, outbox, &error);
            return Turn::Gone;
        }
        let peer = self.ends.peer;
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
        if socket.listen((peer.ip(), peer.port())).is_err() {
            return Turn::Gone;
        }
        self.stage = Stage::Open;
        self.take(&syn, link, outbox, now);
        Turn::More
    }

    /// Moves bytes both ways, about as many as there are left of the turn.
    fn pass_on(&mut self, left: usize, judge: Judge<'_>) -> Result<usize, Turn> {
        if matches!(self.stage, Stage::Calling) {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
            match socket.state() {
                tcp::State::SynSent | tcp::State::SynReceived | tcp::State::Closed => return Ok(0),
                _ => {
                    socket.set_timeout(None);
                    self.stage = Stage::Open;
                }
            }
        }
        let moved = match self.gate {
            None => self.give_host()?,
            Some(_) => self.give_host_judged(judge)?,
        };
        self.end_towards_host()?;
        Ok(moved + self.give_guest(left)?)
    }

    fn give_host(&mut self) -> Result<usize, Turn> {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
        let mut moved = 0;
        while self.writable && socket.can_recv() {
            let host = self.host.as_fd();
            let written = socket.recv(|bytes| match write(host, bytes) {
                Ok(written) => (written, Ok(written)),
                Err(errno) => (0, Err(errno)),
            });
            match written {
                Ok(Ok(written)) => moved += written,
                Ok(Err(Errno::EAGAIN)) => self.writable = false,
                Ok(Err(_)) => return Err(Turn::Gone),
                Err(_) => break,
            }
        }
        self.sent += moved as u64;
        Ok(moved)
    }

    fn give_host_judged(&mut self, judge: Judge<'_>) -> Result<usize, Turn> {
        let Some(gate) = &mut self.gate else { return Ok(0) };
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
        let mut taken = 0;
        while self.held.len() < sniff::HELD && socket.can_recv() {
            let room = sniff::HELD - self.held.len();
            let held = &mut self.held;
            let copied = socket.recv(|bytes| {
                let some = bytes.len().min(room);
                held.extend_from_slice(&bytes[..some]);
                (some, some)
            });
            match copied {
                Ok(copied) => taken += copied,
                Err(_) => break,
            }
        }
        let end = has_ended(socket);
        let (stated, said) = (&mut self.stated, &mut self.said);
        // What was allowed once stays so for this connection: the name may not be known any more by its next request.
        let mut recorded = |what: &Stated| {
            if stated.as_ref() == Some(what) {
                return Ok(());
            }
            *said = Some(what.clone());
            judge(what)?;
            *stated = said.clone();
            Ok(())
        };
        loop {
            let more = gate.client(&self.held[self.passed..], end, &mut recorded).map_err(Turn::Refused)?;
            self.passed += more;
            if more == 0 || self.passed == self.held.len() {
                break;
            }
        }
        let mut moved = 0;
        while self.writable && moved < self.passed {
            match write(self.host.as_fd(), &self.held[moved..self.passed]) {
                Ok(written) => moved += written,
                Err(Errno::EAGAIN) => self.writable = false,
                Err(_) => return Err(Turn::Gone),
            }
        }
        self.held.drain(..moved);
        self.passed -= moved;
        self.sent += moved as u64;
        if gate.is_open() && self.held.is_empty() {
            self.gate = None;
            self.held = Vec::new();
        }
        Ok(taken + moved)
    }

    /// Tells the host that the guest has ended, once all that came before is there.
    fn end_towards_host(&mut self) -> Result<(), Turn> {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
        if self.guest_ended || !self.held.is_empty() || !has_ended(socket) {
            return Ok(());
        }
        self.guest_ended = true;
        // A host's side that is not connected any more shows that when it is read.
        self.host.shutdown(Shutdown::Write).or(Ok(()))
    }

    fn give_guest(&mut self, left: usize) -> Result<usize, Turn> {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
        let mut moved = 0;
        while self.readable && !self.host_ended && moved < left && socket.can_send() {
            let (host, gate) = (self.host.as_raw_fd(), &mut self.gate);
            let read = socket.send(|room| match recv(host, room, MsgFlags::MSG_DONTWAIT) {
                Ok(read) => {
                    let seen = gate.as_mut().map_or(Ok(()), |gate| gate.server(&room[..read]));
                    (read, seen.map(|()| read).map_err(Turn::Refused))
                }
                Err(Errno::EAGAIN | Errno::EINTR) => (0, Err(Turn::Waits)),
                Err(_) => (0, Err(Turn::Gone)),
            });
            match read {
                Ok(Ok(0)) => {
                    self.host_ended = true;
                    socket.close();
                    // The end is something to be sent.
                    moved += 1;
                }
                Ok(Ok(read)) => {
                    moved += read;
                    self.received += read as u64;
                }
                Ok(Err(Turn::Waits)) => self.readable = false,
                Ok(Err(other)) => return Err(other),
                Err(_) => break,
            }
        }
        Ok(moved)
    }

    /// Sends what is due to the guest.
    fn send(&mut self, link: &LinkSpec, outbox: &mut Outbox, now: Instant) {
        let header = reply::ip_ethernet(link, self.ends.peer.ip());
        let mut wire = Wire { received: None, outbox: Some(outbox), header, mtu: link.mtu };
        while self.iface.poll_egress(now, &mut wire, &mut self.sockets) != PollResult::None {}
    }

    /// Whether it is over.
    fn end(&mut self) -> Option<Turn> {
        let socket = self.sockets.get::<tcp::Socket<'_>>(self.handle);
        match socket.state() {
            // Nothing can be in flight on this link, so nothing is waited for.
            tcp::State::TimeWait if self.guest_ended => Some(Turn::Gone),
            tcp::State::Closed => {
                if !(self.guest_ended && self.host_ended) {
                    reset(&self.host);
                }
                Some(Turn::Gone)
            }
            _ => None,
        }
    }

    /// Ends it at once, for both.
    pub(crate) fn abort(&mut self, link: &LinkSpec, outbox: &mut Outbox, now: Instant) {
        if let Stage::Connecting { syn } = &self.stage {
            let syn = syn.clone();
            refuse(&syn, link, outbox, &Errno::ECONNREFUSED.into());
        } else {
            self.sockets.get_mut::<tcp::Socket<'_>>(self.handle).abort();
            self.send(link, outbox, now);
        }
        reset(&self.host);
    }

    /// When it has something to do without being asked.
    pub(crate) fn deadline(&mut self, now: Instant) -> Option<Instant> {
        match self.stage {
            Stage::Connecting { .. } => None,
            _ => self.iface.poll_at(now, &self.sockets),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.host.as_fd()
    }
}

/// Whether the guest has ended its half, and all that it sent before has been taken.
fn has_ended(socket: &tcp::Socket<'_>) -> bool {
    use tcp::State::{CloseWait, Closing, LastAck, TimeWait};
    matches!(socket.state(), CloseWait | Closing | LastAck | TimeWait) && !socket.can_recv()
}

fn write(host: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    loop {
        match send(host.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Has the host's side end with a reset, when it is closed.
fn reset(host: &Socket) {
    // One that is not connected has nobody to reset.
    drop(SockRef::from(host).set_linger(Some(Duration::ZERO)));
}

/// Answers a call that cannot be made.
pub(crate) fn refuse(syn: &[u8], link: &LinkSpec, outbox: &mut Outbox, error: &io::Error) {
    // It was an IP packet when it came.
    let Some(packet) = crate::packet::of_guest(syn, link) else { return };
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ETIMEDOUT | Errno::EADDRNOTAVAIL) => {
            reply::unreachable(outbox, link, &packet, Unreachable::Host);
        }
        Some(Errno::EACCES | Errno::EPERM) => {
            reply::unreachable(outbox, link, &packet, Unreachable::Prohibited);
        }
        _ => reply::reset(outbox, link, &packet),
    }
}

/// A number that a guest cannot guess.
fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    let mut source = std::fs::File::open("/dev/urandom")?;
    io::Read::read_exact(&mut source, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// What an interface is connected to: one packet that has come, and the link's outbox.
struct Wire<'a> {
    received: Option<&'a [u8]>,
    outbox: Option<&'a mut Outbox>,
    header: [u8; ETHERNET],
    mtu: u16,
}

struct Received<'a>(&'a [u8]);

struct Sent<'a> {
    outbox: Option<&'a mut Outbox>,
    header: [u8; ETHERNET],
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        match self.outbox {
            Some(outbox) if outbox.has_room() => outbox.push(&self.header, length, f),
            // Lost, as on any link that is full.
            _ => f(&mut vec![0; length]),
        }
    }
}

impl Device for Wire<'_> {
    type RxToken<'t>
        = Received<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Sent<'t>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sent<'_>)> {
        let received = Received(self.received.take()?);
        Some((received, Sent { outbox: self.outbox.as_deref_mut(), header: self.header }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sent<'_>> {
        let outbox = self.outbox.as_deref_mut().filter(|outbox| outbox.has_room())?;
        Some(Sent { outbox: Some(outbox), header: self.header })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(self.mtu);
        // What comes over a Unix stream comes as it was sent. The guest checks what it gets.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}
