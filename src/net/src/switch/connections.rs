//! Connections of the guest: made, given their turns, and ended.

use std::io;

use boxlite_control::NetworkProtocol;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use smoltcp::wire::TcpPacket;
use std::os::fd::AsFd;

use super::{BUFFERS, CONNECTIONS, DNS_PORT, Entry, STREAMS, Switch, kind};
use crate::packet::Packet;
use crate::policy::{Judgement, Stated};
use crate::reply;
use crate::sniff::Gate;
use crate::table::Key;
use crate::tcp::{self, Connection, Ends, Turn};

impl Switch {
    pub(super) fn segment(&mut self, packet: &Packet<'_>, now: smoltcp::time::Instant) {
        let Ok(segment) = TcpPacket::new_checked(packet.payload) else {
            self.counters.dropped += 1;
            return;
        };
        let Some(ends) = ends(packet) else { return };
        if !segment.syn() || segment.ack() || segment.rst() || ends.guest.port() == 0 || ends.peer.port() == 0
        {
            reply::reset(&mut self.link.outbox, &self.spec, packet);
            return;
        }
        // The guest repeats what is not answered.
        if self.connections.table.len() >= CONNECTIONS {
            self.counters.dropped += 1;
            return;
        }
        if self.spec.is_gateway(packet.to) && ends.peer.port() == DNS_PORT {
            if self.streams.len() < STREAMS {
                self.open_stream(ends, packet, now).unwrap_or_else(|error| self.not_opened(&error));
            }
            return;
        }
        let gate = match self.judge(NetworkProtocol::Tcp, ends.peer) {
            Judgement::Allow => None,
            Judgement::Inspect => Some(Gate::new()),
            Judgement::Deny(why) => {
                self.deny(NetworkProtocol::Tcp, ends.peer, why);
                reply::reset(&mut self.link.outbox, &self.spec, packet);
                return;
            }
        };
        let opened = tcp::connect(self.real(ends.peer)).inspect_err(|error| {
            tcp::refuse(packet.whole, &self.spec, &mut self.link.outbox, error);
        });
        let opened = opened.and_then(|host| {
            Connection::outbound(host, ends, packet.whole, gate, self.buffer(), &self.spec, now)
        });
        match opened.and_then(|connection| self.add(connection)) {
            Ok(_) => {}
            Err(error) => self.not_opened(&error),
        }
    }

    pub(super) fn not_opened(&mut self, error: &io::Error) {
        tracing::debug!(%error, "a connection cannot be made");
        self.counters.failed += 1;
    }

    pub(super) fn buffer(&self) -> usize {
        let connections = self.connections.table.len();
        BUFFERS.iter().find(|(below, _)| connections < *below).map_or(BUFFERS[2].1, |(_, buffer)| *buffer)
    }

    pub(super) fn add(&mut self, connection: Connection) -> io::Result<Key> {
        let ends = connection.ends;
        let entry = Entry { connection, queued: false, deadline: None, counted: false };
        let key = self.connections.table.insert(entry);
        let Some(entry) = self.connections.table.get_mut(key) else { return Ok(key) };
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        let event = EpollEvent::new(flags, key.pack(kind::CONNECTION));
        if let Err(errno) = self.epoll.add(entry.connection.as_fd(), event) {
            self.connections.table.remove(key);
            return Err(errno.into());
        }
        self.connections.by_ends.insert(ends, key);
        self.enqueue(key);
        Ok(key)
    }

    pub(super) fn enqueue(&mut self, key: Key) {
        if let Some(entry) = self.connections.table.get_mut(key)
            && !entry.queued
        {
            entry.queued = true;
            self.queue.push_back(key);
        }
    }

    pub(super) fn turn(&mut self, key: Key, now: smoltcp::time::Instant) {
        let Some(entry) = self.connections.table.get_mut(key) else { return };
        entry.queued = false;
        let (rules, peer) = (&self.rules, entry.connection.ends.peer);
        let mut judge = |stated: &Stated| rules.judge_stated(peer, stated);
        let turn = entry.connection.turn(&self.spec, &mut self.link.outbox, &mut judge, now);
        if entry.connection.is_open() && !entry.counted {
            entry.counted = true;
            self.counters.opened += 1;
        }
        match turn {
            Turn::Waits => {
                let deadline = entry.connection.deadline(now);
                self.set_deadline(key, deadline);
            }
            Turn::More => {
                entry.queued = true;
                self.queue.push_back(key);
            }
            Turn::Gone => self.remove(key),
            Turn::Refused(why) => {
                let asked = entry.connection.asked().map(str::to_owned);
                let name = asked.or_else(|| self.rules.name_of(peer.ip()));
                self.denials.tell(Some(NetworkProtocol::Tcp), Some(peer), name.as_deref(), why);
                self.remove(key);
            }
        }
    }

    pub(super) fn set_deadline(&mut self, key: Key, deadline: Option<smoltcp::time::Instant>) {
        let Some(entry) = self.connections.table.get_mut(key) else { return };
        if entry.deadline != deadline {
            if let Some(before) = entry.deadline {
                self.deadlines.remove(&(before, key));
            }
            if let Some(after) = deadline {
                self.deadlines.insert((after, key));
            }
            entry.deadline = deadline;
        }
    }

    pub(super) fn remove(&mut self, key: Key) {
        self.set_deadline(key, None);
        let Some(entry) = self.connections.table.remove(key) else { return };
        self.connections.by_ends.remove(&entry.connection.ends);
        if !entry.counted {
            self.counters.failed += 1;
        }
    }
}

/// The ends of a segment, if it has any.
pub(super) fn ends(packet: &Packet<'_>) -> Option<Ends> {
    let [a, b, c, d] = *packet.payload.first_chunk::<4>()?;
    let guest = (packet.from, u16::from_be_bytes([a, b])).into();
    let peer = (packet.to, u16::from_be_bytes([c, d])).into();
    Some(Ends { guest, peer })
}
