//! Moves packets between the guest's rings and the sockets of the host.
//!
//! ```text
//!   transmit ring ──▶ take_from_guest ──▶ connection ──▶ socket, or backlog while the reader is slow
//!   receive ring ◀── send_to_guest ◀──── connection ◀── socket, read only when ring and guest have room
//! ```
//!
//! Connections take turns of at most [`BURST`] bytes. Taking from the guest never waits for room to send to it: replies
//! are flags of their connection, and resets for packets of no connection are a bounded list.

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use vm_memory::{GuestMemoryMmap, VolatileSlice};

use crate::chain::{self, Malformed};
use crate::connection::{Connection, HostAction, Payload};
use crate::host::{HostEnd, Reading};
use crate::packet::{Credit, HEADER, HOST_CID, Header, Op, Ports, STREAM};
use crate::quiet::Quiet;
use crate::ring::{Ring, Room};
use crate::table::{Table, Token};
use crate::{ANSWER_TIMEOUT, LARGE_WINDOW, LARGE_WINDOWS, SMALL_WINDOW};

/// The most bytes that a connection sends to the guest in one turn.
const BURST: usize = 64 << 10;

/// The most buffers for one turn: the driver of Linux provides pages.
const BURST_BUFFERS: usize = 32;

/// The most packets to take, or turns to give, before looking at everything else again.
pub(crate) const BATCH: usize = 64;

/// The most connections to accept before looking at everything else again.
const ACCEPTS: usize = 32;

/// The most resets that wait for packets of no connection. A guest that causes more without receiving any has to do
/// without them; it then waits for its own time-outs.
const MAX_STRAYS: usize = 1024;

/// Why work on a ring has paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// There is nothing to do.
    Idle,
    /// The guest has to provide buffers first.
    Starved,
    /// It is somebody else's turn.
    Fair,
}

#[derive(Debug)]
struct Listening {
    socket: UnixListener,
    port: u32,
    /// It is being watched: there is room for more connections.
    watched: bool,
}

/// A reset for a packet that belongs to no connection.
#[derive(Debug)]
struct Stray {
    host_cid: u64,
    ports: Ports,
    kind: u16,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Switch {
    guest_cid: u64,
    epoll: Arc<Epoll>,
    listening: Vec<Listening>,
    dials: HashMap<u32, PathBuf>,
    table: Table,
    strays: VecDeque<Stray>,
    /// What one turn reads. Smaller reads straight into the guest's pages cost a system call for each; this one copy
    /// stays in the cache.
    scratch: Box<[u8]>,
    /// A sweep has something to look at.
    sweeps: bool,
    quiet: Quiet,
}

impl Switch {
    /// Serves nobody before [`watch_listeners`](Self::watch_listeners).
    pub(crate) fn new(
        guest_cid: u64,
        epoll: Arc<Epoll>,
        listeners: Vec<(u32, UnixListener)>,
        dials: HashMap<u32, PathBuf>,
    ) -> Self {
        let listening =
            listeners.into_iter().map(|(port, socket)| Listening { socket, port, watched: false }).collect();
        Self {
            guest_cid,
            epoll,
            listening,
            dials,
            table: Table::default(),
            strays: VecDeque::new(),
            scratch: vec![0; BURST].into_boxed_slice(),
            sweeps: false,
            quiet: Quiet::default(),
        }
    }

    // ---- guest to host ----

    /// Takes packets from the transmit ring.
    pub(crate) fn take_from_guest(&mut self, memory: &GuestMemoryMmap, ring: &mut Ring) -> Pause {
        let mut segments = Vec::new();
        for _ in 0..BATCH {
            let Some(chain) = ring.pop(memory) else { return Pause::Idle };
            let head = chain.head_index();
            match chain::read(memory, chain, &mut segments) {
                Ok(header) => self.packet(&header, &segments),
                Err(Malformed::Chain) => self.quiet.warn("the guest has sent a packet without a header"),
                Err(Malformed::Short(header)) => {
                    self.quiet.warn("the guest has sent a packet that is shorter than it says");
                    self.violation(&header);
                }
            }
            ring.give_back(memory, head, 0);
        }
        Pause::Fair
    }

    fn packet(&mut self, header: &Header, payload: &[VolatileSlice<'_>]) {
        let known_kind = header.kind == STREAM;
        if header.dst_cid != HOST_CID || header.src_cid != self.guest_cid || !known_kind {
            self.refuse(header);
            return;
        }
        let Some(entry) = self.table.find(header.ports_from_guest()) else {
            match header.op {
                Op::Request => self.dial(header),
                _ => self.refuse(header),
            }
            return;
        };
        let token = entry.token;
        match entry.connection.receive(header) {
            Payload::Discard => {}
            Payload::Forward => match entry.host.forward(payload) {
                Ok(written) => entry.connection.forwarded(written),
                Err(_) => entry.connection.host_refuses(),
            },
        }
        self.update(token);
    }

    /// The guest wants a connection to a port of the host.
    fn dial(&mut self, header: &Header) {
        let Some(path) = self.dials.get(&header.dst_port) else {
            self.refuse(header);
            return;
        };
        if self.table.is_full() {
            self.quiet.warn("the guest has too many connections");
            self.refuse(header);
            return;
        }
        match HostEnd::connect(path) {
            Ok(host) => {
                let connection = Connection::dialed_by_guest(self.window(), header.credit);
                self.insert(header.ports_from_guest(), connection, host);
            }
            Err(error) => {
                if self.quiet.may_speak() {
                    tracing::warn!(port = header.dst_port, %error, "no connection to the host's socket");
                }
                self.refuse(header);
            }
        }
    }

    fn violation(&mut self, header: &Header) {
        if let Some(entry) = self.table.find(header.ports_from_guest()) {
            let token = entry.token;
            entry.connection.reset();
            self.update(token);
        } else {
            self.refuse(header);
        }
    }

    /// Resets what the guest takes for a connection.
    fn refuse(&mut self, header: &Header) {
        if header.op != Op::Reset && self.strays.len() < MAX_STRAYS {
            self.strays.push_back(Stray {
                host_cid: header.dst_cid,
                ports: header.ports_from_guest(),
                kind: header.kind,
            });
        }
    }

    // ---- host to guest ----

    /// Puts packets into the receive ring.
    pub(crate) fn send_to_guest(&mut self, memory: &GuestMemoryMmap, ring: &mut Ring) -> Pause {
        let mut room = Room::default();
        for _ in 0..BATCH {
            if !self.strays.is_empty() {
                ring.reserve(memory, 1, 1, &mut room);
                if room.slots().is_empty() {
                    return Pause::Starved;
                }
                let header = self.strays.pop_front().map(|stray| self.stray_header(&stray));
                ring.settle(memory, &room, header.iter().map(|header| (header.encode(), &[][..])));
                continue;
            }
            let Some(token) = self.table.next_turn() else { return Pause::Idle };
            if !self.give_turn(token, memory, ring, &mut room) {
                self.table.return_turn(token);
                return Pause::Starved;
            }
            self.update(token);
        }
        Pause::Fair
    }

    /// One packet of control, or one burst of data. `false`: the guest has provided no buffers.
    fn give_turn<'m>(
        &mut self,
        token: Token,
        memory: &'m GuestMemoryMmap,
        ring: &mut Ring,
        room: &mut Room<'m>,
    ) -> bool {
        let guest_cid = self.guest_cid;
        let Some(entry) = self.table.get(token) else { return true };
        let budget = usize::try_from(entry.connection.budget()).unwrap_or(usize::MAX).min(BURST);
        // A short message takes one buffer; only a stream is worth preparing many.
        ring.reserve(memory, if entry.bulk { budget } else { 1 }, BURST_BUFFERS, room);
        if room.slots().is_empty() {
            return false;
        }
        let ports = entry.ports;
        if let Some(control) = entry.connection.next_control() {
            let header = header(guest_cid, ports, control.op, control.flags, control.credit, 0);
            ring.settle(memory, room, std::iter::once((header, &[][..])));
            if entry.waiting_since.is_none() && entry.connection.awaits_guest() {
                entry.waiting_since = Some(Instant::now());
                self.sweeps = true;
            }
            return true;
        }

        let wanted = budget.min(room.payload());
        let buffer = &mut self.scratch[..wanted];
        let count = match if wanted == 0 { Reading::Nothing } else { entry.host.read(buffer) } {
            Reading::Data(count) => count,
            other => {
                match other {
                    Reading::End => entry.connection.host_ended(),
                    Reading::Failed => entry.connection.host_failed(),
                    Reading::Nothing | Reading::Data(_) => entry.connection.host_drained(),
                }
                entry.bulk = false;
                ring.settle(memory, room, std::iter::empty());
                return true;
            }
        };
        entry.bulk = count == wanted;
        // At most BURST, which fits.
        let credit = entry.connection.send_data(u32::try_from(count).unwrap_or(u32::MAX));
        let mut rest = &self.scratch[..count];
        let packets = room.slots().iter().map_while(|slot| {
            let (payload, after) = rest.split_at(rest.len().min(slot.payload));
            rest = after;
            let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
            (len > 0).then(|| (header(guest_cid, ports, Op::Data, 0, credit, len), payload))
        });
        ring.settle(memory, room, packets);
        true
    }

    fn stray_header(&self, stray: &Stray) -> Header {
        Header {
            src_cid: stray.host_cid,
            dst_cid: self.guest_cid,
            src_port: stray.ports.host,
            dst_port: stray.ports.guest,
            len: 0,
            kind: stray.kind,
            op: Op::Reset,
            flags: 0,
            credit: Credit::default(),
        }
    }

    // ---- events of the host ----

    /// Something happened to a connection's socket.
    pub(crate) fn socket_event(&mut self, token: Token, events: EpollFlags) {
        let Some(entry) = self.table.get(token) else { return };
        if events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP) {
            entry.connection.host_readable();
        }
        if events.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            entry.connection.host_refuses();
            // Nothing is read before the guest has answered, so look whether there is a reason to ask it.
            if !entry.connection.is_open() && !entry.host.has_data() {
                entry.connection.host_ended();
            }
        } else if events.contains(EpollFlags::EPOLLOUT) {
            entry.host.writable();
            match entry.host.flush() {
                Ok(written) => entry.connection.forwarded(written),
                Err(_) => entry.connection.host_refuses(),
            }
        }
        self.update(token);
    }

    /// A listening socket has clients.
    pub(crate) fn accept(&mut self, number: usize) {
        for _ in 0..ACCEPTS {
            let full = self.table.is_full();
            let Some(listening) = self.listening.get_mut(number) else { return };
            if full {
                self.watch_listeners(false);
                return;
            }
            let port = listening.port;
            match listening.socket.accept().and_then(|(stream, _)| HostEnd::accepted(stream)) {
                Ok(host) => {
                    let ports = self.table.unused_ports(port);
                    let connection = Connection::dialed_by_host(self.window());
                    self.insert(ports, connection, host);
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return,
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    _ => {
                        // Most likely there are no descriptors left. The client waits until there are.
                        if self.quiet.may_speak() {
                            tracing::warn!(port, %error, "no connection can be accepted");
                        }
                        self.watch_listeners(false);
                        return;
                    }
                },
            }
        }
    }

    /// Watches the listening sockets, or leaves their clients waiting.
    pub(crate) fn watch_listeners(&mut self, watch: bool) {
        for (number, listening) in self.listening.iter_mut().enumerate() {
            if listening.watched == watch {
                continue;
            }
            let result = if watch {
                let event = crate::service::listener_event(number);
                self.epoll.add(&listening.socket, EpollEvent::new(EpollFlags::EPOLLIN, event))
            } else {
                self.epoll.delete(&listening.socket)
            };
            match result {
                Ok(()) => listening.watched = watch,
                Err(error) => tracing::warn!(%error, "a listening socket cannot be watched"),
            }
        }
        self.sweeps |= !watch;
    }

    // ---- time ----

    /// Somebody is waiting for [`sweep`](Self::sweep).
    pub(crate) fn wants_sweep(&self) -> bool {
        self.sweeps
    }

    /// Ends connections whose guest does not answer, and looks whether clients may be accepted again.
    pub(crate) fn sweep(&mut self, now: Instant) {
        self.sweeps = false;
        for token in self.table.tokens() {
            let Some(entry) = self.table.get(token) else { continue };
            if !entry.connection.awaits_guest() {
                entry.waiting_since = None;
            }
            if let Some(since) = entry.waiting_since {
                self.sweeps = true;
                if now.saturating_duration_since(since) > ANSWER_TIMEOUT {
                    entry.connection.reset();
                    self.update(token);
                }
            }
        }
        if !self.table.is_full() {
            self.watch_listeners(true);
        }
    }

    /// The guest's driver has started anew.
    pub(crate) fn guest_restarted(&mut self) {
        self.strays.clear();
        self.for_all(Connection::forgotten);
    }

    /// The guest is gone for good: what it had sent is still delivered, and there is nothing else to do.
    pub(crate) fn abandon(&mut self) {
        self.watch_listeners(false);
        self.listening.clear();
        self.strays.clear();
        self.for_all(Connection::abandoned);
    }

    fn for_all(&mut self, change: impl Fn(&mut Connection)) {
        for token in self.table.tokens() {
            if let Some(entry) = self.table.get(token) {
                change(&mut entry.connection);
            }
            self.update(token);
        }
    }

    pub(crate) fn connections(&self) -> usize {
        self.table.len()
    }

    // ---- connections ----

    fn window(&self) -> u32 {
        if self.table.len() < LARGE_WINDOWS { LARGE_WINDOW } else { SMALL_WINDOW }
    }

    fn insert(&mut self, ports: Ports, connection: Connection, host: HostEnd) {
        let entry = self.table.insert(ports, connection, host);
        let token = entry.token;
        let edges = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        if let Err(error) = self.epoll.add(entry.host.fd(), EpollEvent::new(edges, token.to_bits())) {
            tracing::warn!(%error, "a connection cannot be watched");
            entry.connection.host_failed();
        }
        self.update(token);
    }

    /// Does what the state of a connection asks for.
    fn update(&mut self, token: Token) {
        let Some(entry) = self.table.get(token) else { return };
        if entry.connection.discards() {
            entry.host.discard();
        }
        while let Some(action) = entry.connection.next_host_action() {
            entry.host.shutdown(match action {
                HostAction::ShutdownWrite => std::net::Shutdown::Write,
                HostAction::ShutdownRead => std::net::Shutdown::Read,
            });
        }
        // Dropping the entry closes its socket, which ends the watch as well: nobody else has this descriptor.
        if self.table.update(token).is_some() && !self.table.is_full() {
            self.watch_listeners(true);
        }
    }
}

/// How long until the next sweep, where one is wanted.
pub(crate) const SWEEP: Duration = Duration::from_secs(1);

fn header(guest_cid: u64, ports: Ports, op: Op, flags: u32, credit: Credit, len: u32) -> [u8; HEADER] {
    Header {
        src_cid: HOST_CID,
        dst_cid: guest_cid,
        src_port: ports.host,
        dst_port: ports.guest,
        len,
        kind: STREAM,
        op,
        flags,
        credit,
    }
    .encode()
}
