//! Messages to the kernel about its network (rtnetlink(7)), each of which it acknowledges.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// How long the kernel may take: it answers at once.
const ANSWER: i64 = 5;

// linux/netlink.h and linux/rtnetlink.h.
const ERROR: u16 = 2;
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const NEW_NEIGHBOR: u16 = 28;
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;
const IFF_UP: u32 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
/// The header of a message, in bytes.
const HEADER: usize = 16;

/// A socket to the kernel.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sets the size of packets, and brings an interface up.
    pub(super) fn bring_up(&mut self, index: i32, mtu: u32) -> io::Result<()> {
        let mut body = Body::default();
        // Family, padding, type, index, flags, and which of the flags change.
        body.bytes(&[0, 0, 0, 0]).bytes(&index.to_ne_bytes());
        body.bytes(&IFF_UP.to_ne_bytes()).bytes(&IFF_UP.to_ne_bytes());
        body.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        self.ask(NEW_LINK, 0, &body)
    }

    pub(super) fn add_address(&mut self, index: i32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let mut body = Body::default();
        let flags = if address.is_ipv6() { IFA_F_NODAD } else { 0 };
        body.bytes(&[family(address), prefix, flags, 0]).bytes(&index.to_ne_bytes());
        body.attribute(IFA_LOCAL, &octets(address)).attribute(IFA_ADDRESS, &octets(address));
        self.ask(NEW_ADDRESS, CREATE | REPLACE, &body)
    }

    pub(super) fn add_neighbor(&mut self, index: i32, address: IpAddr, mac: [u8; 6]) -> io::Result<()> {
        let mut body = Body::default();
        body.bytes(&[family(address), 0, 0, 0]).bytes(&index.to_ne_bytes());
        body.bytes(&NUD_PERMANENT.to_ne_bytes()).bytes(&[0, 0]);
        body.attribute(NDA_DST, &octets(address)).attribute(NDA_LLADDR, &mac);
        self.ask(NEW_NEIGHBOR, CREATE | REPLACE, &body)
    }

    /// The way to everything goes through this router.
    pub(super) fn add_route(&mut self, index: i32, router: IpAddr) -> io::Result<()> {
        let mut body = Body::default();
        let (everything, anywhere) = (0, 0);
        body.bytes(&[family(router), everything, 0, 0]);
        body.bytes(&[RT_TABLE_MAIN, RTPROT_STATIC, anywhere, RTN_UNICAST]).bytes(&[0; 4]);
        body.attribute(RTA_GATEWAY, &octets(router)).attribute(RTA_OIF, &index.to_ne_bytes());
        self.ask(NEW_ROUTE, CREATE | REPLACE, &body)
    }

    fn ask(&mut self, kind: u16, flags: u16, body: &Body) -> io::Result<()> {
        self.sequence += 1;
        let message = message(kind, flags, self.sequence, body);
        sendto(self.socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = [0; 4096];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            if let Some(outcome) = outcome(&answer[..length], self.sequence) {
                return outcome;
            }
        }
    }
}

/// What an answer says about the message of this number; `None` when it is about something else.
fn outcome(answer: &[u8], sequence: u32) -> Option<io::Result<()>> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let number = u32::from_ne_bytes(answer.get(8..12)?.try_into().ok()?);
    if kind != ERROR || number != sequence {
        return None;
    }
    let errno = i32::from_ne_bytes(answer.get(HEADER..HEADER + 4)?.try_into().ok()?);
    Some(if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno.saturating_neg())) })
}

fn message(kind: u16, flags: u16, sequence: u32, body: &Body) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.0.len()).unwrap_or(u32::MAX);
    let flags = REQUEST | ACKNOWLEDGE | flags;
    [
        &length.to_ne_bytes()[..],
        &kind.to_ne_bytes(),
        &flags.to_ne_bytes(),
        &sequence.to_ne_bytes(),
        // From nobody in particular.
        &[0; 4],
        &body.0,
    ]
    .concat()
}

/// The body of a message.
#[derive(Debug, Default)]
struct Body(Vec<u8>);

impl Body {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// An attribute: length, kind, value, and padding to four bytes.
    fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.bytes(&length.to_ne_bytes()).bytes(&kind.to_ne_bytes()).bytes(value);
        let padded = self.0.len().next_multiple_of(4);
        self.0.resize(padded, 0);
        self
    }
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).unwrap_or(0)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_have_their_length_and_are_padded() {
        let mut body = Body::default();
        body.attribute(2, &[1, 2, 3, 4, 5, 6]).attribute(1, &[9]);
        let ten = 10_u16.to_ne_bytes();
        let five = 5_u16.to_ne_bytes();
        let two = 2_u16.to_ne_bytes();
        let one = 1_u16.to_ne_bytes();
        let expected = [&ten[..], &two, &[1, 2, 3, 4, 5, 6, 0, 0], &five[..], &one, &[9, 0, 0, 0]].concat();
        assert_eq!(body.0, expected);
    }

    #[test]
    fn an_answer_is_that_of_its_message_alone() {
        let answer = |kind: u16, number: u32, errno: i32| {
            let mut answer = message(kind, 0, number, &Body(errno.to_ne_bytes().to_vec()));
            answer.extend([0; 16]);
            answer
        };
        assert!(outcome(&answer(ERROR, 7, 0), 7).unwrap().is_ok());
        let refused = outcome(&answer(ERROR, 7, -libc::EPERM), 7).unwrap().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        assert!(outcome(&answer(ERROR, 8, 0), 7).is_none());
        assert!(outcome(&answer(NEW_LINK, 7, 0), 7).is_none());
        for length in 0..20 {
            assert!(outcome(&answer(ERROR, 7, 0)[..length], 7).is_none(), "{length}");
        }
    }
}
