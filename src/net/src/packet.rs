//! What a frame of the guest carries, as far as the switch is concerned.
//!
//! Whoever sends under an address that is not the guest's is not heard: a container with `CAP_NET_RAW` can send anything.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use boxlite_control::LinkSpec;
use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet};

/// A frame, looked at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// ARP, without the Ethernet header.
    Arp(&'a [u8]),
    /// A packet that comes from the guest's own address.
    Ip(Packet<'a>),
    /// A message to a DHCP server: the UDP datagram.
    Dhcp(&'a [u8]),
    /// A message of neighbour discovery: who sent it, and the ICMPv6 message.
    Neighbor { from: Ipv6Addr, to: Ipv6Addr, message: &'a [u8] },
    /// Nothing that this network has an answer to; other machines would drop it as well.
    Ignored,
    /// Malformed.
    Bad,
    /// Under a false address.
    Spoofed,
}

/// An IP packet, whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet<'a> {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) protocol: IpProtocol,
    /// Header and payload, without what lies behind them in the frame.
    pub(crate) whole: &'a [u8],
    pub(crate) payload: &'a [u8],
}

/// Looks at a frame.
pub(crate) fn parse<'a>(frame: &'a [u8], link: &LinkSpec) -> Frame<'a> {
    let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return Frame::Bad };
    if ethernet.src_addr() != EthernetAddress(link.guest_mac) {
        return Frame::Spoofed;
    }
    let to_us = ethernet.dst_addr() == EthernetAddress(link.gateway_mac);
    if !to_us && ethernet.dst_addr().is_unicast() {
        return Frame::Ignored;
    }
    let kind = ethernet.ethertype();
    let content = &frame[EthernetFrame::<&[u8]>::header_len()..];
    match kind {
        EthernetProtocol::Arp => Frame::Arp(content),
        EthernetProtocol::Ipv4 => ipv4(content, link),
        EthernetProtocol::Ipv6 => ipv6(content, link),
        EthernetProtocol::Unknown(_) => Frame::Ignored,
    }
}

/// A packet that came from the guest before, looked at again.
pub(crate) fn of_guest<'a>(packet: &'a [u8], link: &LinkSpec) -> Option<Packet<'a>> {
    let frame = match packet.first()? >> 4 {
        4 => ipv4(packet, link),
        _ => ipv6(packet, link),
    };
    match frame {
        Frame::Ip(packet) => Some(packet),
        _ => None,
    }
}

fn ipv4<'a>(content: &'a [u8], link: &LinkSpec) -> Frame<'a> {
    let Ok(packet) = Ipv4Packet::new_checked(content) else { return Frame::Bad };
    if packet.version() != 4
        || packet.header_len() < 20
        || packet.total_len() < u16::from(packet.header_len())
    {
        return Frame::Bad;
    }
    let whole = &content[..usize::from(packet.total_len())];
    let payload = &whole[usize::from(packet.header_len())..];
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    // Who names its router's hops itself (RFC 791, source routing) has no business here; nor have parts of a packet: the
    // link carries whole ones.
    let has_options = packet.header_len() > 20;
    if has_options || packet.more_frags() || packet.frag_offset() != 0 {
        return Frame::Ignored;
    }
    let is_dhcp = packet.next_header() == IpProtocol::Udp
        && payload.get(..4).is_some_and(|ports| ports == [0, 68, 0, 67])
        && (from == Ipv4Addr::UNSPECIFIED || from == link.guest4)
        && (to == Ipv4Addr::BROADCAST || to == link.gateway4);
    if is_dhcp {
        return Frame::Dhcp(payload);
    }
    if from != link.guest4 {
        return Frame::Spoofed;
    }
    Frame::Ip(Packet { from: from.into(), to: to.into(), protocol: packet.next_header(), whole, payload })
}

fn ipv6<'a>(content: &'a [u8], link: &LinkSpec) -> Frame<'a> {
    let Ok(packet) = Ipv6Packet::new_checked(content) else { return Frame::Bad };
    if packet.version() != 6 {
        return Frame::Bad;
    }
    let whole = &content[..packet.total_len()];
    let payload = &whole[packet.header_len()..];
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    let is_local = from.is_unspecified() || from.is_unicast_link_local() || from == link.guest6;
    // RFC 4861, 4.1 to 4.5: messages of neighbour discovery come with a hop limit that no router lets them have.
    let is_neighbor = packet.next_header() == IpProtocol::Icmpv6
        && packet.hop_limit() == 255
        && payload.first().is_some_and(|kind| (133..=137).contains(kind));
    if is_neighbor && is_local {
        return Frame::Neighbor { from, to, message: payload };
    }
    if from != link.guest6 {
        // A machine that comes up says a lot from its link-local address that is for other machines.
        return if is_local && to.is_multicast() { Frame::Ignored } else { Frame::Spoofed };
    }
    match packet.next_header() {
        IpProtocol::Tcp | IpProtocol::Udp | IpProtocol::Icmpv6 => {
            let protocol = packet.next_header();
            Frame::Ip(Packet { from: from.into(), to: to.into(), protocol, whole, payload })
        }
        // Extension headers, fragments among them, could say something else to us than to the next one who looks.
        _ => Frame::Ignored,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: [u8; 2], content: &[u8]) -> Vec<u8> {
        let link = LinkSpec::default();
        [&link.gateway_mac[..], &link.guest_mac, &kind, content].concat()
    }

    fn packet4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
        let head = [0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, protocol, 0, 0];
        [&head[..], &from.octets(), &to.octets(), payload].concat()
    }

    fn packet6(from: Ipv6Addr, to: Ipv6Addr, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [0x60, 0, 0, 0, length[0], length[1], next, hops];
        [&head[..], &from.octets(), &to.octets(), payload].concat()
    }

    const THERE: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);

    #[test]
    fn a_packet_of_the_guest_is_heard_without_what_lies_behind_it() {
        let link = LinkSpec::default();
        let mut bytes = packet4(link.guest4, THERE, 6, b"segment");
        let whole = bytes.clone();
        bytes.extend([0; 12]);
        let frame = frame([8, 0], &bytes);
        let Frame::Ip(packet) = parse(&frame, &link) else { panic!("no packet") };
        assert_eq!((packet.whole, packet.payload), (&whole[..], &b"segment"[..]));
        assert_eq!((packet.from, packet.to), (link.guest4.into(), THERE.into()));
    }

    #[test]
    fn who_sends_under_another_address_is_not_heard() {
        let link = LinkSpec::default();
        let spoofed = |bytes: &[u8], kind| assert_eq!(parse(&frame(kind, bytes), &link), Frame::Spoofed);
        for from in [link.gateway4, link.host4, Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED, THERE] {
            spoofed(&packet4(from, THERE, 17, &[0, 80, 0, 80, 0, 8, 0, 0]), [8, 0]);
        }
        for from in [link.gateway6, link.host6, Ipv6Addr::LOCALHOST, "2001:db8::1".parse().unwrap()] {
            spoofed(&packet6(from, "2600::1".parse().unwrap(), 6, 64, b""), [0x86, 0xdd]);
        }
        let mut stranger = frame([8, 0], &packet4(link.guest4, THERE, 6, b""));
        stranger[11] ^= 1;
        assert_eq!(parse(&stranger, &link), Frame::Spoofed);
    }

    #[test]
    fn fragments_options_and_extension_headers_are_not_for_us() {
        let link = LinkSpec::default();
        let mut more = packet4(link.guest4, THERE, 6, b"x");
        more[6] = 0x20;
        let mut later = packet4(link.guest4, THERE, 6, b"x");
        later[7] = 1;
        let mut options = packet4(link.guest4, THERE, 6, &[0; 8]);
        options[0] = 0x46;
        for bytes in [more, later, options] {
            assert_eq!(parse(&frame([8, 0], &bytes), &link), Frame::Ignored);
        }
        let fragment = packet6(link.guest6, "2600::1".parse().unwrap(), 44, 64, &[6, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(parse(&frame([0x86, 0xdd], &fragment), &link), Frame::Ignored);
    }

    #[test]
    fn a_machine_without_an_address_may_ask_for_one_and_for_nothing_else() {
        let link = LinkSpec::default();
        let ask = [0, 68, 0, 67, 0, 9, 0, 0, 1];
        let bytes = packet4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, 17, &ask);
        assert_eq!(parse(&frame([8, 0], &bytes), &link), Frame::Dhcp(&ask));
        let bytes = packet4(Ipv4Addr::UNSPECIFIED, THERE, 17, &ask);
        assert_eq!(parse(&frame([8, 0], &bytes), &link), Frame::Spoofed);
    }

    #[test]
    fn neighbour_discovery_is_for_the_link_alone() {
        let link = LinkSpec::default();
        let to = "ff02::1:ff00:1".parse().unwrap();
        let near = packet6(link.guest6, to, 58, 255, &[135, 0, 0, 0]);
        assert!(matches!(parse(&frame([0x86, 0xdd], &near), &link), Frame::Neighbor { .. }));
        let far = packet6(link.guest6, to, 58, 64, &[135, 0, 0, 0]);
        assert!(matches!(parse(&frame([0x86, 0xdd], &far), &link), Frame::Ip(_)));
    }

    proptest! {
        #[test]
        fn no_frame_is_too_strange_to_look_at(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), kind in 0..3) {
            let link = LinkSpec::default();
            if bytes.len() >= 14 {
                bytes[..6].copy_from_slice(&link.gateway_mac);
                bytes[6..12].copy_from_slice(&link.guest_mac);
                bytes[12..14].copy_from_slice(&[[8, 0], [8, 6], [0x86, 0xdd]][usize::try_from(kind).unwrap()]);
            }
            if let Frame::Ip(packet) = parse(&bytes, &link) {
                prop_assert!(packet.whole.len() >= packet.payload.len());
            }
        }
    }
}
