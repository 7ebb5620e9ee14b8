//! What comes to published ports.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Instant;

use boxlite_control::NetworkProtocol;
use nix::errno::Errno;
use socket2::Socket;

use super::{ACCEPTS, CONNECTIONS, Switch};
use crate::exchange::{Exchange, Pair};
use crate::tcp::{Connection, Ends};

impl Switch {
    /// Takes what has come to a published port.
    pub(super) fn accept(&mut self, number: usize) {
        for _ in 0..ACCEPTS {
            let Some(listener) = self.listeners.get(number) else { return };
            let guest = listener.guest(&self.spec);
            let socket = Rc::clone(&listener.socket);
            let more = match listener.forward.protocol {
                NetworkProtocol::Tcp => self.accept_connection(&socket, guest),
                _ => self.accept_datagram(number, &socket, guest),
            };
            if !more {
                return;
            }
        }
    }

    pub(super) fn accept_connection(&mut self, listener: &Socket, guest: SocketAddr) -> bool {
        let host = match listener.accept() {
            Ok((host, _)) => host,
            Err(error) => {
                return matches!(error.raw_os_error(), Some(libc_errno::ECONNABORTED | libc_errno::EINTR));
            }
        };
        let by_ends = &self.connections.by_ends;
        let caller = self.callers.free(|peer| by_ends.contains_key(&Ends { guest, peer }));
        let room = self.connections.table.len() < CONNECTIONS;
        let Some(peer) = caller.filter(|_| room) else {
            self.counters.failed += 1;
            return true;
        };
        let (now, buffer) = (self.clock(), self.buffer());
        let opened = host.set_nonblocking(true);
        let opened =
            opened.and_then(|()| Connection::inbound(host, Ends { guest, peer }, buffer, &self.spec, now));
        if let Err(error) = opened.and_then(|connection| self.add(connection)) {
            self.not_opened(&error);
        }
        true
    }

    pub(super) fn accept_datagram(&mut self, number: usize, socket: &Rc<Socket>, guest: SocketAddr) -> bool {
        let Ok((read, from)) = receive_from(socket, &mut self.scratch) else { return false };
        let key = match self.exchanges.by_caller.get(&(number, from)) {
            Some(key) => Some(*key),
            None => {
                let by_pair = &self.exchanges.by_pair;
                let pair = |peer| Pair { protocol: NetworkProtocol::Udp, guest, peer };
                let caller = self.callers.free(|peer| by_pair.contains_key(&pair(peer)));
                let exchange = caller
                    .map(|peer| Exchange::published(pair(peer), Rc::clone(socket), from, Instant::now()));
                let key = exchange.and_then(|exchange| self.add_exchange(exchange));
                if let Some(key) = key {
                    self.exchanges.by_caller.insert((number, from), key);
                }
                key
            }
        };
        if let Some(exchange) = key.and_then(|key| self.exchanges.table.get_mut(key)) {
            let content = &self.scratch[..read];
            exchange.receive(content, &self.spec, &mut self.link.outbox, Instant::now());
        }
        true
    }
}

/// Error numbers as they are in a match.
mod libc_errno {
    pub(super) const ECONNABORTED: i32 = nix::errno::Errno::ECONNABORTED as i32;
    pub(super) const EINTR: i32 = nix::errno::Errno::EINTR as i32;
}

fn receive_from(socket: &Socket, scratch: &mut [u8]) -> Result<(usize, SocketAddr), Errno> {
    use nix::sys::socket::{SockaddrStorage, recvfrom};
    loop {
        match recvfrom::<SockaddrStorage>(socket.as_raw_fd(), scratch) {
            Ok((read, Some(from))) => {
                let v4 = from.as_sockaddr_in().map(|from| SocketAddr::from((from.ip(), from.port())));
                let v6 = from.as_sockaddr_in6().map(|from| SocketAddr::from((from.ip(), from.port())));
                match v4.or(v6) {
                    Some(from) => return Ok((read, from)),
                    None => continue,
                }
            }
            Ok((_, None)) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
