//! The switch: one thread that owns the link, all flows and all sockets of the host.
//!
//! ```text
//!             ┌────────── frames ──────────▶ ARP, NDP, DHCP, echo: answered here
//!   guest ◀───┤                              new flow ──▶ policy ──▶ a socket of the host, or a refusal
//!    link     └── whole chunks ◀── outbox ◀─ flows, each in its turn ◀── sockets of the host
//! ```
//!
//! It waits for descriptors and for the next deadline, and for nothing else. A flow whose turn is over goes to the end of
//! the queue of those that have more to do, so none holds up the others. When the link is full, no flow sends, and what the
//! hosts send waits in their sockets. Whatever a guest does, the number of flows and the size of their buffers are bounded.

mod connections;
mod exchanges;
mod names;
mod ports;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boxlite_control::{LinkSpec, NetworkProtocol, RateLimit};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use smoltcp::wire::IpProtocol;

use crate::denials::Denials;
use crate::dns::Resolver;
use crate::exchange::{self, Exchange, Pair};
use crate::link::{Link, Read};
use crate::orders::Orders;
use crate::packet::{self, Frame};
use crate::policy::Judgement;
use crate::publish::{Callers, Listener};
use crate::rate::Bucket;
use crate::reply::{self, Unreachable};
use crate::rules::Rules;
use crate::table::{Key, Table};
use crate::tcp::{Connection, Ends};
use crate::{neighbor, report};
use names::{Asker, Stream};

/// The most connections, and the most exchanges of datagrams.
const CONNECTIONS: usize = 4096;
const EXCHANGES: usize = 2048;
/// The most streams to the resolver.
const STREAMS: usize = 64;
/// Each buffer of a connection, in bytes, while there are fewer than so many connections: at most 200 MiB in all.
const BUFFERS: [(usize, usize); 3] = [(64, 256 << 10), (512, 64 << 10), (usize::MAX, 16 << 10)];
/// How often what is idle is looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// How long a stream to the resolver may be silent.
const STREAM_IDLE: Duration = Duration::from_secs(30);
/// Connections that are taken from a port before others have their turn.
const ACCEPTS: usize = 64;
/// DNS.
const DNS_PORT: u16 = 53;

/// What an event is about.
mod kind {
    pub(super) const LINK: u8 = 0;
    pub(super) const ORDERS: u8 = 1;
    pub(super) const RESOLVER: u8 = 2;
    pub(super) const CONNECTION: u8 = 3;
    pub(super) const EXCHANGE: u8 = 4;
    pub(super) const STREAM: u8 = 5;
    /// All from here on are ports.
    pub(super) const PORT: u8 = 6;
}

/// A connection, and whether it is in the queue, and its deadline.
#[derive(Debug)]
struct Entry {
    connection: Connection,
    queued: bool,
    deadline: Option<smoltcp::time::Instant>,
    counted: bool,
}

/// Counters that are not those of the link.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) received_frames: u64,
    pub(crate) received_bytes: u64,
    pub(crate) dropped: u64,
    pub(crate) opened: u64,
    pub(crate) failed: u64,
}

/// The switch.
#[derive(Debug)]
pub(crate) struct Switch {
    pub(crate) link: Link,
    pub(crate) spec: LinkSpec,
    pub(crate) rules: Arc<Rules>,
    pub(crate) denials: Arc<Denials>,
    pub(crate) counters: Counters,
    pub(crate) connections: Connections,
    pub(crate) exchanges: Exchanges,
    resolver: Resolver,
    orders: Orders,
    listeners: Vec<Listener>,
    callers: Callers,
    streams: Table<Stream>,
    askers: HashMap<u64, Asker>,
    question: u64,
    queue: VecDeque<Key>,
    deadlines: BTreeSet<(smoltcp::time::Instant, Key)>,
    /// Exchanges whose sockets have more.
    datagrams: VecDeque<Key>,
    epoll: Epoll,
    begun: Instant,
    swept: Instant,
    sends: Bucket,
    receives: Bucket,
    /// The link may have something to read.
    readable: bool,
    scratch: Vec<u8>,
}

/// The connections that there are.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    table: Table<Entry>,
    by_ends: HashMap<Ends, Key>,
}

/// The exchanges that there are.
#[derive(Debug, Default)]
pub(crate) struct Exchanges {
    table: Table<Exchange>,
    by_pair: HashMap<Pair, Key>,
    /// Those of published ports, by the number of the port and by who sends.
    by_caller: HashMap<(usize, SocketAddr), Key>,
}

impl Connections {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.table.iter().map(|(_, entry)| &entry.connection)
    }
}

impl Exchanges {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Exchange> {
        self.table.iter().map(|(_, exchange)| exchange)
    }
}

/// What a switch is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) link: Link,
    pub(crate) rules: Arc<Rules>,
    pub(crate) denials: Arc<Denials>,
    pub(crate) resolver: Resolver,
    pub(crate) orders: Orders,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) rate: RateLimit,
}

impl Switch {
    /// Puts it together.
    pub(crate) fn new(parts: Parts) -> io::Result<Self> {
        let spec = parts.rules.link().clone();
        let now = Instant::now();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let watch = |fd: BorrowedFd<'_>, flags, kind: u8| {
            epoll.add(fd, EpollEvent::new(flags, u64::from(kind) << 56))
        };
        let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        watch(parts.link.as_fd(), both, kind::LINK)?;
        watch(parts.orders.as_fd(), EpollFlags::EPOLLIN, kind::ORDERS)?;
        watch(parts.resolver.as_fd(), EpollFlags::EPOLLIN, kind::RESOLVER)?;
        for (number, listener) in parts.listeners.iter().enumerate() {
            let event = EpollEvent::new(
                EpollFlags::EPOLLIN | EpollFlags::EPOLLET,
                u64::from(kind::PORT) << 56 | number as u64,
            );
            epoll.add(listener.socket.as_fd(), event)?;
        }
        Ok(Self {
            link: parts.link,
            callers: Callers::new(&spec),
            spec,
            rules: parts.rules,
            denials: parts.denials,
            counters: Counters::default(),
            connections: Connections::default(),
            exchanges: Exchanges::default(),
            resolver: parts.resolver,
            orders: parts.orders,
            listeners: parts.listeners,
            streams: Table::default(),
            askers: HashMap::new(),
            question: 0,
            queue: VecDeque::new(),
            deadlines: BTreeSet::new(),
            datagrams: VecDeque::new(),
            epoll,
            begun: now,
            swept: now,
            sends: Bucket::new(parts.rate.tx_kbps, now),
            receives: Bucket::new(parts.rate.rx_kbps, now),
            readable: true,
            scratch: vec![0; exchange::LONGEST],
        })
    }

    /// Runs until the VMM has gone.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            if let Some(capture) = &mut self.link.outbox.capture {
                capture.flush();
            }
            match self.link.flush(&mut self.receives) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(error),
            }
            let timeout = self.timeout();
            let ready = match self.epoll.wait(&mut events, timeout) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
            for event in &events[..ready] {
                self.happened(event.data(), event.events());
            }
            if self.readable && self.sends.is_open(Instant::now()) && !self.read()? {
                return Ok(());
            }
            self.due();
            self.turns();
        }
    }

    fn clock(&self) -> smoltcp::time::Instant {
        let micros = self.begun.elapsed().as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    fn timeout(&mut self) -> EpollTimeout {
        let room = self.link.outbox.has_room();
        if room && !(self.queue.is_empty() && self.datagrams.is_empty()) {
            return EpollTimeout::ZERO;
        }
        let now = self.clock();
        let mut wait = SWEEP;
        if let (true, Some((deadline, _))) = (room, self.deadlines.first()) {
            let left = u64::try_from(deadline.total_micros() - now.total_micros()).unwrap_or(0);
            wait = wait.min(Duration::from_micros(left));
        }
        if self.readable {
            match self.sends.wait() {
                Some(open) => wait = wait.min(open),
                None => return EpollTimeout::ZERO,
            }
        }
        if !self.link.outbox.is_empty() {
            wait = wait.min(self.receives.wait().unwrap_or(wait));
        }
        // Rounded up: a deadline that is not reached yet would be looked at in a circle.
        let millis = wait.as_micros().div_ceil(1000);
        EpollTimeout::from(u16::try_from(millis).unwrap_or(u16::MAX))
    }

    fn happened(&mut self, data: u64, events: EpollFlags) {
        let failed = events.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP | EpollFlags::EPOLLRDHUP);
        let readable = failed || events.contains(EpollFlags::EPOLLIN);
        let writable = failed || events.contains(EpollFlags::EPOLLOUT);
        let (kind, key) = Key::unpack(data);
        match kind {
            kind::LINK => self.readable |= readable,
            kind::ORDERS => report::obey(self),
            kind::RESOLVER => self.answers(),
            kind::CONNECTION => {
                if let Some(entry) = self.connections.table.get_mut(key) {
                    entry.connection.host_is_ready(readable, writable);
                    self.enqueue(key);
                }
            }
            kind::EXCHANGE => self.datagrams.push_back(key),
            kind::STREAM => self.stream(key),
            _ => self.accept(usize::try_from(data & u64::from(u32::MAX)).unwrap_or(usize::MAX)),
        }
    }

    /// Takes what the orders have brought, for [`report::obey`].
    pub(crate) fn next_order(&mut self) -> Option<crate::orders::Order> {
        self.orders.next()
    }

    /// Reads from the link once, and looks at all frames. `false`: the VMM has gone.
    fn read(&mut self) -> io::Result<bool> {
        match self.link.read()? {
            Read::End => return Ok(false),
            Read::Empty => {
                self.readable = false;
                return Ok(true);
            }
            Read::Some => {}
        }
        let now = self.clock();
        while let Some(at) = self.link.inbox.next()? {
            self.counters.received_frames += 1;
            self.counters.received_bytes += at.len() as u64;
            self.sends.take(at.len() as u64);
            let Link { inbox, outbox, .. } = &mut self.link;
            let frame = inbox.frame(at.clone());
            if let Some(capture) = &mut outbox.capture {
                capture.add(frame);
            }
            match packet::parse(frame, &self.spec) {
                Frame::Arp(content) => neighbor::arp(outbox, &self.spec, content),
                Frame::Dhcp(datagram) => neighbor::dhcp(outbox, &self.spec, datagram),
                Frame::Neighbor { from, to, message } => {
                    neighbor::neighbor(outbox, &self.spec, from, to, message);
                }
                Frame::Ignored => {}
                Frame::Bad => self.counters.dropped += 1,
                Frame::Spoofed => {
                    self.counters.dropped += 1;
                    self.denials.tell(None, None, None, "a frame under an address that is not the box's");
                }
                Frame::Ip(packet) => {
                    let ends =
                        (packet.protocol == IpProtocol::Tcp).then(|| connections::ends(&packet)).flatten();
                    // The common case first: a segment of a connection that there is.
                    let known = ends.and_then(|ends| self.connections.by_ends.get(&ends).copied());
                    match known.and_then(|key| Some((key, self.connections.table.get_mut(key)?))) {
                        Some((key, entry)) => {
                            entry.connection.take(packet.whole, &self.spec, outbox, now);
                            if !entry.queued {
                                entry.queued = true;
                                self.queue.push_back(key);
                            }
                        }
                        None => self.first(at, now),
                    }
                }
            }
        }
        Ok(true)
    }

    /// Looks at a packet that belongs to no connection.
    fn first(&mut self, at: std::ops::Range<usize>, now: smoltcp::time::Instant) {
        // A copy: it is about to be judged, connected and answered, which is more than copying it.
        let frame = self.link.inbox.frame(at).to_vec();
        let Frame::Ip(packet) = packet::parse(&frame, &self.spec) else { return };
        match packet.protocol {
            IpProtocol::Tcp => self.segment(&packet, now),
            IpProtocol::Udp => self.datagram(&packet),
            IpProtocol::Icmp | IpProtocol::Icmpv6 => self.message(&packet),
            _ => {
                self.denials.tell(
                    None,
                    Some((packet.to, 0).into()),
                    None,
                    "neither TCP nor UDP nor an echo request",
                );
                reply::unreachable(&mut self.link.outbox, &self.spec, &packet, Unreachable::Prohibited);
            }
        }
    }

    /// What a policy says of a flow. What the gateway does not answer itself is nowhere.
    fn judge(&self, protocol: NetworkProtocol, to: SocketAddr) -> Judgement {
        if self.spec.is_gateway(to.ip()) {
            return Judgement::Deny("the gateway answers names and nothing else");
        }
        self.rules.judge(protocol, to)
    }

    fn deny(&self, protocol: NetworkProtocol, to: SocketAddr, why: &'static str) {
        let name = self.rules.name_of(to.ip());
        self.denials.tell(Some(protocol), Some(to), name.as_deref(), why);
    }

    /// Where something is in the host's world.
    fn real(&self, to: SocketAddr) -> SocketAddr {
        match to.ip() {
            IpAddr::V4(address) if address == self.spec.host4 => (Ipv4Addr::LOCALHOST, to.port()).into(),
            IpAddr::V6(address) if address == self.spec.host6 => (Ipv6Addr::LOCALHOST, to.port()).into(),
            _ => to,
        }
    }

    /// Gives everybody who has something to do a turn.
    fn turns(&mut self) {
        for _ in 0..self.datagrams.len() {
            if !self.link.outbox.has_room() {
                return;
            }
            let Some(key) = self.datagrams.pop_front() else { break };
            let Some(exchange) = self.exchanges.table.get_mut(key) else { continue };
            if exchange.turn(&self.spec, &mut self.link.outbox, &mut self.scratch, Instant::now()) {
                self.datagrams.push_back(key);
            }
        }
        let now = self.clock();
        for _ in 0..self.queue.len() {
            if !self.link.outbox.has_room() {
                return;
            }
            let Some(key) = self.queue.pop_front() else { break };
            self.turn(key, now);
        }
    }

    /// Does what time has come for.
    fn due(&mut self) {
        let now = self.clock();
        while let Some((deadline, key)) = self.deadlines.first().copied()
            && deadline <= now
            && self.link.outbox.has_room()
        {
            self.set_deadline(key, None);
            self.enqueue(key);
        }
        if self.swept.elapsed() >= SWEEP {
            self.swept = Instant::now();
            self.sweep();
        }
    }

    fn sweep(&mut self) {
        let now = Instant::now();
        let over: Vec<Key> = self
            .exchanges
            .table
            .iter()
            .filter(|(_, exchange)| exchange.ends() <= now)
            .map(|(key, _)| key)
            .collect();
        over.into_iter().for_each(|key| self.end_exchange(key));
        let idle = |(key, stream): (Key, &Stream)| (stream.used + STREAM_IDLE <= now).then_some(key);
        let idle: Vec<Key> = self.streams.iter().filter_map(idle).collect();
        idle.into_iter().for_each(|key| drop(self.streams.remove(key)));
        // A port that could not accept for want of descriptors is tried again.
        (0..self.listeners.len()).for_each(|number| self.accept(number));
    }

    /// Judges all flows again, and ends those that are not allowed any more.
    pub(crate) fn judge_again(&mut self) {
        let denied = |connection: &Connection| {
            if connection.inbound || self.spec.is_gateway(connection.ends.peer.ip()) {
                return None;
            }
            let peer = connection.ends.peer;
            match (self.rules.judge(NetworkProtocol::Tcp, peer), connection.stated()) {
                (Judgement::Deny(why), _) => Some(why),
                (Judgement::Inspect, Some(stated)) => self.rules.judge_stated(peer, stated).err(),
                (Judgement::Inspect, None) if !connection.is_inspected() => {
                    Some("it began before what it says had to be looked at")
                }
                _ => None,
            }
        };
        let over: Vec<_> = self
            .connections
            .table
            .iter()
            .filter_map(|(key, entry)| Some((key, denied(&entry.connection)?)))
            .collect();
        let now = self.clock();
        for (key, why) in over {
            if let Some(entry) = self.connections.table.get_mut(key) {
                entry.connection.abort(&self.spec, &mut self.link.outbox, now);
                let peer = entry.connection.ends.peer;
                self.deny(NetworkProtocol::Tcp, peer, why);
            }
            self.remove(key);
        }
        let over: Vec<_> = self
            .exchanges
            .table
            .iter()
            .filter(|(_, exchange)| !exchange.is_inbound())
            .filter_map(|(key, exchange)| match self.judge(exchange.pair.protocol, exchange.pair.peer) {
                Judgement::Deny(why) => Some((key, exchange.pair, why)),
                _ => None,
            })
            .collect();
        for (key, pair, why) in over {
            self.deny(pair.protocol, pair.peer, why);
            self.end_exchange(key);
        }
    }
}
