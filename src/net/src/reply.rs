//! Packets that the switch itself makes for the guest.

use std::net::{IpAddr, SocketAddr};

use boxlite_control::LinkSpec;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr,
    Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr, IpProtocol, IpRepr, Ipv4Repr, Ipv6Packet, Ipv6Repr,
    TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

use crate::link::{ETHERNET, Outbox};
use crate::packet::Packet;

/// The hop limit of our packets (RFC 1700).
pub(crate) const HOPS: u8 = 64;
/// How much of a refused packet goes back behind its header: what IPv4 asks for at least (RFC 792), and what fits into the
/// smallest packet of IPv6 (RFC 4443, 2.4).
const QUOTED4: usize = 8;
const QUOTED6: usize = 512;
/// The header of UDP.
const UDP_HEADER: usize = 8;

/// Why a packet cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// The policy says so.
    Prohibited,
    /// Nobody is at the address.
    Host,
    /// Nobody listens at the port.
    Port,
}

/// The Ethernet header of what goes to the guest.
pub(crate) fn ethernet(link: &LinkSpec, kind: EthernetProtocol) -> [u8; ETHERNET] {
    let mut header = [0; ETHERNET];
    let mut frame = EthernetFrame::new_unchecked(&mut header[..]);
    frame.set_dst_addr(EthernetAddress(link.guest_mac));
    frame.set_src_addr(EthernetAddress(link.gateway_mac));
    frame.set_ethertype(kind);
    header
}

/// The Ethernet header of an IP packet that is from this address.
pub(crate) fn ip_ethernet(link: &LinkSpec, from: IpAddr) -> [u8; ETHERNET] {
    let kind = if from.is_ipv4() { EthernetProtocol::Ipv4 } else { EthernetProtocol::Ipv6 };
    ethernet(link, kind)
}

/// Makes an IP packet. `None` when there is no room, or the addresses are of two families.
fn ip(
    outbox: &mut Outbox,
    link: &LinkSpec,
    (from, to): (IpAddr, IpAddr),
    protocol: IpProtocol,
    length: usize,
    fill: impl FnOnce(&mut [u8]),
) {
    if from.is_ipv4() != to.is_ipv4() || !outbox.has_room() {
        return;
    }
    let head = IpRepr::new(from.into(), to.into(), protocol, length, HOPS);
    let whole = head.header_len() + length;
    outbox.push(&ip_ethernet(link, from), whole, |bytes| {
        head.emit(&mut *bytes, &ChecksumCapabilities::default());
        fill(&mut bytes[head.header_len()..]);
    });
}

/// Sends a datagram to the guest. One that is longer than the link carries is dropped: the guest would have to put it together.
pub(crate) fn udp(outbox: &mut Outbox, link: &LinkSpec, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
    let header = if from.is_ipv4() { 20 } else { 40 };
    let length = UDP_HEADER + payload.len();
    if header + length > usize::from(link.mtu) {
        return;
    }
    let (source, target) = (from.ip().into(), to.ip().into());
    ip(outbox, link, (from.ip(), to.ip()), IpProtocol::Udp, length, |bytes| {
        let ports = UdpRepr { src_port: from.port(), dst_port: to.port() };
        let mut datagram = UdpPacket::new_unchecked(bytes);
        let copy = |content: &mut [u8]| content.copy_from_slice(payload);
        ports.emit(&mut datagram, &source, &target, payload.len(), copy, &ChecksumCapabilities::default());
    });
}

/// Refuses a segment, as RFC 9293, 3.10.7.1 has it of a connection that does not exist.
pub(crate) fn reset(outbox: &mut Outbox, link: &LinkSpec, packet: &Packet<'_>) {
    let Ok(segment) = TcpPacket::new_checked(packet.payload) else { return };
    if segment.rst() {
        return;
    }
    let (seq_number, ack_number) = if segment.ack() {
        (segment.ack_number(), None)
    } else {
        (TcpSeqNumber(0), Some(segment.seq_number() + segment.segment_len()))
    };
    let reset = TcpRepr {
        src_port: segment.dst_port(),
        dst_port: segment.src_port(),
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let (from, to) = (packet.to.into(), packet.from.into());
    ip(outbox, link, (packet.to, packet.from), IpProtocol::Tcp, reset.buffer_len(), |bytes| {
        reset.emit(&mut TcpPacket::new_unchecked(bytes), &from, &to, &ChecksumCapabilities::default());
    });
}

/// Tells the guest that a packet could not go on. The message is from the gateway.
pub(crate) fn unreachable(outbox: &mut Outbox, link: &LinkSpec, packet: &Packet<'_>, why: Unreachable) {
    quote(outbox, link, (packet.from, packet.to), packet.protocol, packet.payload, packet.payload.len(), why);
}

/// Tells the guest that nobody listens where it sent a datagram before.
pub(crate) fn nobody_listens(outbox: &mut Outbox, link: &LinkSpec, from: SocketAddr, to: SocketAddr) {
    let [a, b] = from.port().to_be_bytes();
    let [c, d] = to.port().to_be_bytes();
    let header = [a, b, c, d, 0, 8, 0, 0];
    quote(outbox, link, (from.ip(), to.ip()), IpProtocol::Udp, &header, header.len(), Unreachable::Port);
}

fn quote(
    outbox: &mut Outbox,
    link: &LinkSpec,
    (from, to): (IpAddr, IpAddr),
    next_header: IpProtocol,
    payload: &[u8],
    payload_len: usize,
    why: Unreachable,
) {
    match (from, to) {
        (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
            let header = Ipv4Repr { src_addr, dst_addr, next_header, payload_len, hop_limit: HOPS };
            let reason = match why {
                Unreachable::Prohibited => Icmpv4DstUnreachable::CommProhibited,
                Unreachable::Host => Icmpv4DstUnreachable::HostUnreachable,
                Unreachable::Port => Icmpv4DstUnreachable::PortUnreachable,
            };
            let data = &payload[..payload.len().min(QUOTED4)];
            let message = Icmpv4Repr::DstUnreachable { reason, header, data };
            let ends = (link.gateway4.into(), from);
            ip(outbox, link, ends, IpProtocol::Icmp, message.buffer_len(), |bytes| {
                message.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
            });
        }
        (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => {
            let header = Ipv6Repr { src_addr, dst_addr, next_header, payload_len, hop_limit: HOPS };
            let reason = match why {
                Unreachable::Prohibited => Icmpv6DstUnreachable::AdminProhibit,
                Unreachable::Host => Icmpv6DstUnreachable::AddrUnreachable,
                Unreachable::Port => Icmpv6DstUnreachable::PortUnreachable,
            };
            let data = &payload[..payload.len().min(QUOTED6)];
            let message = Icmpv6Repr::DstUnreachable { reason, header, data };
            icmpv6(outbox, link, link.gateway6.into(), from, &message);
        }
        _ => {}
    }
}

/// Answers an echo request: `from` is who answers.
pub(crate) fn echo(
    outbox: &mut Outbox,
    link: &LinkSpec,
    from: IpAddr,
    to: IpAddr,
    ident: u16,
    seq_no: u16,
    data: &[u8],
) {
    if from.is_ipv4() {
        let message = Icmpv4Repr::EchoReply { ident, seq_no, data };
        ip(outbox, link, (from, to), IpProtocol::Icmp, message.buffer_len(), |bytes| {
            message.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
        });
    } else {
        icmpv6(outbox, link, from, to, &Icmpv6Repr::EchoReply { ident, seq_no, data });
    }
}

/// Sends a message of ICMPv6.
pub(crate) fn icmpv6(
    outbox: &mut Outbox,
    link: &LinkSpec,
    from: IpAddr,
    to: IpAddr,
    message: &Icmpv6Repr<'_>,
) {
    let (IpAddr::V6(source), IpAddr::V6(target)) = (from, to) else { return };
    // Neighbour discovery alone looks at it, and takes nothing that a router may have passed on.
    let neighbor = matches!(message, Icmpv6Repr::Ndisc(_));
    if !outbox.has_room() {
        return;
    }
    let head = Ipv6Repr {
        src_addr: source,
        dst_addr: target,
        next_header: IpProtocol::Icmpv6,
        payload_len: message.buffer_len(),
        hop_limit: if neighbor { 255 } else { HOPS },
    };
    outbox.push(&ip_ethernet(link, from), head.buffer_len() + message.buffer_len(), |bytes| {
        head.emit(&mut Ipv6Packet::new_unchecked(&mut *bytes));
        let mut packet = Icmpv6Packet::new_unchecked(&mut bytes[head.buffer_len()..]);
        message.emit(&source, &target, &mut packet, &ChecksumCapabilities::default());
    });
}

/// What an echo request says, if it is one and whole.
pub(crate) fn echo_request<'a>(packet: &Packet<'a>) -> Option<(u16, u16, &'a [u8])> {
    let checksums = ChecksumCapabilities::default();
    match (packet.from, packet.to, packet.protocol) {
        (IpAddr::V4(_), IpAddr::V4(_), IpProtocol::Icmp) => {
            let message = Icmpv4Packet::new_checked(packet.payload).ok()?;
            match Icmpv4Repr::parse(&message, &checksums).ok()? {
                Icmpv4Repr::EchoRequest { ident, seq_no, data } => Some((ident, seq_no, data)),
                _ => None,
            }
        }
        (IpAddr::V6(from), IpAddr::V6(to), IpProtocol::Icmpv6) => {
            let message = Icmpv6Packet::new_checked(packet.payload).ok()?;
            match Icmpv6Repr::parse(&from, &to, &message, &checksums).ok()? {
                Icmpv6Repr::EchoRequest { ident, seq_no, data } => Some((ident, seq_no, data)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// A datagram of the guest: where from, where to, and its content. `None` when it is malformed.
pub(crate) fn datagram<'a>(packet: &Packet<'a>) -> Option<(SocketAddr, SocketAddr, &'a [u8])> {
    let datagram = UdpPacket::new_checked(packet.payload).ok()?;
    if datagram.dst_port() == 0 {
        return None;
    }
    let length = usize::from(datagram.len());
    let from = SocketAddr::new(packet.from, datagram.src_port());
    let to = SocketAddr::new(packet.to, datagram.dst_port());
    Some((from, to, packet.payload.get(UDP_HEADER..length)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Inbox;
    use crate::packet::{self, Frame};
    use crate::rate::Bucket;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    /// What was pushed last, as the guest sees it.
    fn pushed(outbox: &mut Outbox) -> Vec<u8> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        outbox.flush(ours.as_fd(), &mut Bucket::new(0, Instant::now())).unwrap();
        (&ours).flush().unwrap();
        let mut inbox = Inbox::new(None);
        inbox.read(theirs.as_fd()).unwrap();
        let frame = inbox.next().unwrap().unwrap();
        inbox.frame(frame)[ETHERNET..].to_vec()
    }

    /// The link as the one sees it who is at the other end.
    fn mirror(link: &LinkSpec) -> LinkSpec {
        LinkSpec { guest4: "1.2.3.4".parse().unwrap(), guest6: "2600::1".parse().unwrap(), ..link.clone() }
    }

    fn parsed(packet: &[u8]) -> (Vec<u8>, bool) {
        let link = LinkSpec::default();
        let kind: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
        let frame = [&link.gateway_mac[..], &link.guest_mac, &kind, packet].concat();
        let ok = matches!(packet::parse(&frame, &mirror(&link)), Frame::Ip(_));
        (frame, ok)
    }

    #[test]
    fn a_datagram_is_read_as_it_was_sent() {
        let link = LinkSpec::default();
        for (from, to) in
            [("1.2.3.4:53", "192.168.127.2:4000"), ("[2600::1]:53", "[fd00:b0:c51:17e0::2]:4000")]
        {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let mut outbox = Outbox::default();
            udp(&mut outbox, &link, from, to, b"hello");
            let (frame, ok) = parsed(&pushed(&mut outbox));
            assert!(ok);
            let Frame::Ip(packet) = packet::parse(&frame, &mirror(&link)) else { panic!() };
            assert_eq!(datagram(&packet), Some((from, to, &b"hello"[..])));
            let whole = UdpPacket::new_checked(packet.payload).unwrap();
            assert!(whole.verify_checksum(&from.ip().into(), &to.ip().into()));
        }
    }

    #[test]
    fn a_datagram_that_the_link_does_not_carry_is_dropped() {
        let link = LinkSpec { mtu: 1500, ..LinkSpec::default() };
        let mut outbox = Outbox::default();
        let (from, to) = ("1.2.3.4:53".parse().unwrap(), "192.168.127.2:4000".parse().unwrap());
        udp(&mut outbox, &link, from, to, &[0; 1473]);
        assert!(outbox.is_empty());
        udp(&mut outbox, &link, from, to, &[0; 1472]);
        assert!(!outbox.is_empty());
    }

    #[test]
    fn a_syn_is_refused_with_its_own_number() {
        let link = LinkSpec::default();
        let mut syn = [0; 20];
        syn[..4].copy_from_slice(&[0x10, 0, 0, 80]);
        syn[4..8].copy_from_slice(&1000_u32.to_be_bytes());
        syn[12] = 0x50;
        syn[13] = 2;
        let packet = Packet {
            from: link.guest4.into(),
            to: "1.2.3.4".parse().unwrap(),
            protocol: IpProtocol::Tcp,
            whole: &syn,
            payload: &syn,
        };
        let mut outbox = Outbox::default();
        reset(&mut outbox, &link, &packet);
        let answer = pushed(&mut outbox);
        let segment = TcpPacket::new_checked(&answer[20..]).unwrap();
        assert!(segment.rst() && segment.ack());
        assert_eq!(segment.ack_number(), TcpSeqNumber(1001));
        assert_eq!((segment.src_port(), segment.dst_port()), (80, 0x1000));
        assert!(segment.verify_checksum(&packet.to.into(), &packet.from.into()));
        // A reset is not answered by another one.
        let mut rst = syn;
        rst[13] = 4;
        reset(&mut outbox, &link, &Packet { payload: &rst, ..packet });
        assert!(outbox.is_empty());
    }

    #[test]
    fn what_cannot_go_on_is_quoted_back() {
        let link = LinkSpec::default();
        let mut outbox = Outbox::default();
        udp(
            &mut outbox,
            &link,
            "1.2.3.4:7".parse().unwrap(),
            "192.168.127.2:4000".parse().unwrap(),
            &[1; 900],
        );
        let sent = pushed(&mut outbox);
        let packet = Packet {
            from: link.guest4.into(),
            to: "1.2.3.4".parse().unwrap(),
            protocol: IpProtocol::Udp,
            whole: &sent,
            payload: &sent[20..],
        };
        unreachable(&mut outbox, &link, &packet, Unreachable::Prohibited);
        let answer = pushed(&mut outbox);
        let message = Icmpv4Packet::new_checked(&answer[20..]).unwrap();
        assert!(message.verify_checksum());
        assert_eq!((u8::from(message.msg_type()), message.msg_code()), (3, 13));
    }
}
