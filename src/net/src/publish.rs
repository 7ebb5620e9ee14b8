//! Ports of the host that lead into the box.
//!
//! All of them are bound before the box boots, or none is. The kernel frees them with the process, whatever ends it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use boxlite_control::{LinkSpec, NetworkProtocol, PortForward};
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// A port that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {host}/{}", protocol.name())]
pub struct PortError {
    /// Where.
    pub host: SocketAddr,
    /// For what.
    pub protocol: NetworkProtocol,
    /// Why not.
    pub source: io::Error,
}

/// A bound port.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: Rc<Socket>,
    /// With the number that it got.
    pub(crate) forward: PortForward,
}

impl Listener {
    /// Where in the box it leads.
    pub(crate) fn guest(&self, link: &LinkSpec) -> SocketAddr {
        (link.guest4, self.forward.guest).into()
    }
}

/// Binds all of these ports.
pub(crate) fn bind(ports: &[PortForward]) -> Result<Vec<Listener>, PortError> {
    let bound = |port: &PortForward| {
        bind_one(port).map_err(|source| PortError { host: port.host, protocol: port.protocol, source })
    };
    ports.iter().map(bound).collect()
}

fn bind_one(port: &PortForward) -> io::Result<Listener> {
    let (kind, protocol) = match port.protocol {
        NetworkProtocol::Tcp => (Type::STREAM, Protocol::TCP),
        NetworkProtocol::Udp => (Type::DGRAM, Protocol::UDP),
        NetworkProtocol::Icmp => {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "ICMP has no ports"));
        }
    };
    let socket = Socket::new(Domain::for_address(port.host), kind.nonblocking().cloexec(), Some(protocol))?;
    if port.host.is_ipv6() {
        // `[::]` and `0.0.0.0` are two places, as they are for Docker.
        socket.set_only_v6(true)?;
    }
    if port.protocol == NetworkProtocol::Tcp {
        // A port whose last connections are still in TIME-WAIT is free; one that somebody listens at is not.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&port.host.into())?;
    if port.protocol == NetworkProtocol::Tcp {
        socket.listen(BACKLOG)?;
    }
    let host = socket.local_addr()?.as_socket();
    let host = host.ok_or_else(|| io::Error::other("the port has no address"))?;
    Ok(Listener { socket: Rc::new(socket), forward: PortForward { host, ..*port } })
}

/// Ports of the gateway under which a box sees who calls it.
#[derive(Debug)]
pub(crate) struct Callers {
    gateway: IpAddr,
    next: u16,
}

/// The first of them: what IANA leaves for short-lived ports (RFC 6335).
const FIRST: u16 = 49152;

impl Callers {
    pub(crate) fn new(link: &LinkSpec) -> Self {
        Self { gateway: link.gateway4.into(), next: FIRST }
    }

    /// One that is not taken.
    pub(crate) fn free(&mut self, is_taken: impl Fn(SocketAddr) -> bool) -> Option<SocketAddr> {
        for _ in FIRST..=u16::MAX {
            let caller = SocketAddr::new(self.gateway, self.next);
            self.next = self.next.checked_add(1).unwrap_or(FIRST);
            if !is_taken(caller) {
                return Some(caller);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str) -> PortForward {
        PortForward { host: host.parse().unwrap(), guest: 80, protocol: NetworkProtocol::Tcp }
    }

    #[test]
    fn a_port_that_is_taken_is_named_and_the_others_are_free_again() {
        let first = bind(&[tcp("127.0.0.1:0")]).unwrap();
        let taken = first[0].forward.host;
        let mut udp = tcp("127.0.0.1:0");
        udp.protocol = NetworkProtocol::Udp;
        let free = bind(&[udp]).unwrap()[0].forward;
        let error = bind(&[free, PortForward { host: taken, ..tcp("127.0.0.1:0") }]).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot listen at {taken}/tcp"));
        assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(bind(&[free]).unwrap()[0].forward, free);
    }

    #[test]
    fn both_families_have_the_same_number() {
        let first = bind(&[tcp("127.0.0.1:0")]).unwrap();
        let port = first[0].forward.host.port();
        assert_eq!(bind(&[tcp(&format!("[::1]:{port}"))]).unwrap()[0].forward.host.port(), port);
    }

    #[test]
    fn callers_have_ports_of_their_own_until_there_are_no_more() {
        let mut callers = Callers::new(&LinkSpec::default());
        let first = callers.free(|_| false).unwrap();
        assert_eq!(callers.free(|caller| caller.port() < 50_000).unwrap().port(), 50_000);
        assert_eq!(callers.free(|_| true), None);
        assert_eq!(callers.free(|caller| caller != first), Some(first));
    }
}
