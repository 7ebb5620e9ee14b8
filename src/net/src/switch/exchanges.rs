//! Datagrams of the guest: exchanges made, and ended.

use std::time::Instant;

use boxlite_control::NetworkProtocol;
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{Asker, DNS_PORT, EXCHANGES, Switch, kind};
use crate::exchange::{Exchange, Pair};
use crate::packet::Packet;
use crate::policy::Judgement;
use crate::reply::{self, Unreachable};
use crate::table::Key;

impl Switch {
    pub(super) fn end_exchange(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.table.remove(key) else { return };
        self.exchanges.by_pair.remove(&exchange.pair);
        if exchange.is_inbound() {
            self.exchanges.by_caller.retain(|_, other| *other != key);
        }
    }

    pub(super) fn datagram(&mut self, packet: &Packet<'_>) {
        let Some((guest, peer, content)) = reply::datagram(packet) else {
            self.counters.dropped += 1;
            return;
        };
        if self.spec.is_gateway(peer.ip()) && peer.port() == DNS_PORT {
            let message = content.to_vec();
            self.ask(message, Asker::Datagram { guest, gateway: peer });
            return;
        }
        let pair = Pair { protocol: NetworkProtocol::Udp, guest, peer };
        if let Some(exchange) = self.exchange(pair, packet) {
            exchange.send(content, Instant::now());
        }
    }

    pub(super) fn message(&mut self, packet: &Packet<'_>) {
        let Some((ident, number, data)) = reply::echo_request(packet) else {
            // What the guest's kernel says about our packets, such as that nobody listens at a port.
            self.counters.dropped += 1;
            return;
        };
        if self.spec.is_gateway(packet.to) {
            reply::echo(&mut self.link.outbox, &self.spec, packet.to, packet.from, ident, number, data);
            return;
        }
        let pair = Pair {
            protocol: NetworkProtocol::Icmp,
            guest: (packet.from, ident).into(),
            peer: (packet.to, 0).into(),
        };
        if let Some(exchange) = self.exchange(pair, packet) {
            exchange.send_echo(number, data, Instant::now());
        }
    }

    /// The exchange of this pair; a new one, when the policy lets it be.
    pub(super) fn exchange(&mut self, pair: Pair, packet: &Packet<'_>) -> Option<&mut Exchange> {
        let key = match self.exchanges.by_pair.get(&pair) {
            Some(key) => *key,
            None => self.new_exchange(pair, packet)?,
        };
        self.exchanges.table.get_mut(key)
    }

    pub(super) fn new_exchange(&mut self, pair: Pair, packet: &Packet<'_>) -> Option<Key> {
        if let Judgement::Deny(why) = self.judge(pair.protocol, pair.peer) {
            self.deny(pair.protocol, pair.peer, why);
            reply::unreachable(&mut self.link.outbox, &self.spec, packet, Unreachable::Prohibited);
            return None;
        }
        match Exchange::outbound(pair, self.real(pair.peer), Instant::now()) {
            Ok(exchange) => self.add_exchange(exchange),
            Err(error) => {
                tracing::debug!(%error, ?pair, "no exchange");
                reply::unreachable(&mut self.link.outbox, &self.spec, packet, Unreachable::Host);
                None
            }
        }
    }

    pub(super) fn add_exchange(&mut self, exchange: Exchange) -> Option<Key> {
        if self.exchanges.table.len() >= EXCHANGES {
            let oldest = self.exchanges.table.iter().min_by_key(|(_, exchange)| exchange.ends());
            let oldest = oldest.map(|(key, _)| key)?;
            self.end_exchange(oldest);
        }
        let pair = exchange.pair;
        let key = self.exchanges.table.insert(exchange);
        let exchange = self.exchanges.table.get_mut(key)?;
        if let Some(socket) = exchange.socket() {
            let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, key.pack(kind::EXCHANGE));
            if let Err(errno) = self.epoll.add(socket, event) {
                tracing::warn!(%errno, "cannot wait for a socket");
                self.exchanges.table.remove(key);
                return None;
            }
        }
        self.exchanges.by_pair.insert(pair, key);
        Some(key)
    }
}
