//! Who is on the link: ARP, neighbour discovery and DHCP, for the gateway and for the alias of the host.
//!
//! The guest gets its addresses from its agent. An image with a DHCP client of its own gets the same ones here.

use std::net::{Ipv4Addr, Ipv6Addr};

use boxlite_control::LinkSpec;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress,
    EthernetProtocol, Icmpv6Packet, Icmpv6Repr, NdiscNeighborFlags, NdiscRepr, UdpPacket,
};

use crate::link::Outbox;
use crate::reply;

/// How long an address is given for, in seconds: a day. Nothing comes of its end, but clients expect one.
const LEASE: u32 = 24 * 60 * 60;
/// Ports of DHCP (RFC 2131).
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Options of DHCP (RFC 2132) that are not in every answer of other servers.
const DNS: u8 = 6;
const MTU: u8 = 26;

/// Answers an ARP request for one of us.
pub(crate) fn arp(outbox: &mut Outbox, link: &LinkSpec, content: &[u8]) {
    let Some(ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    }) = ArpPacket::new_checked(content).ok().and_then(|packet| ArpRepr::parse(&packet).ok())
    else {
        return;
    };
    // A probe for a conflict (RFC 5227) has no address of its own yet.
    let asks = source_protocol_addr == link.guest4 || source_protocol_addr == Ipv4Addr::UNSPECIFIED;
    let ours = target_protocol_addr == link.gateway4 || target_protocol_addr == link.host4;
    if !asks || !ours || source_hardware_addr != EthernetAddress(link.guest_mac) || !outbox.has_room() {
        return;
    }
    let answer = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(link.gateway_mac),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    outbox.push(&reply::ethernet(link, EthernetProtocol::Arp), answer.buffer_len(), |bytes| {
        answer.emit(&mut ArpPacket::new_unchecked(bytes));
    });
}

/// The gateway's link-local address, from its hardware address (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f)
}

/// Answers a neighbour solicitation for one of us.
pub(crate) fn neighbor(outbox: &mut Outbox, link: &LinkSpec, from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) {
    let Ok(packet) = Icmpv6Packet::new_checked(message) else { return };
    let checksums = ChecksumCapabilities::default();
    let Ok(Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, .. })) =
        Icmpv6Repr::parse(&from, &to, &packet, &checksums)
    else {
        return;
    };
    let local = link_local(link.gateway_mac);
    if ![link.gateway6, link.host6, local].contains(&target_addr) {
        return;
    }
    // Who has no address yet is told together with all others (RFC 4861, 7.2.4).
    let nobody = from.is_unspecified();
    let back = if nobody { Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1) } else { from };
    let mut flags = NdiscNeighborFlags::OVERRIDE | NdiscNeighborFlags::ROUTER;
    flags.set(NdiscNeighborFlags::SOLICITED, !nobody);
    let lladdr = Some(EthernetAddress(link.gateway_mac).into());
    let answer = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert { flags, target_addr, lladdr });
    reply::icmpv6(outbox, link, target_addr.into(), back.into(), &answer);
}

/// Answers a DHCP client.
pub(crate) fn dhcp(outbox: &mut Outbox, link: &LinkSpec, datagram: &[u8]) {
    let Ok(datagram) = UdpPacket::new_checked(datagram) else { return };
    let Ok(packet) = DhcpPacket::new_checked(datagram.payload()) else { return };
    let Ok(asked) = DhcpRepr::parse(&packet) else { return };
    if asked.client_hardware_address != EthernetAddress(link.guest_mac) {
        return;
    }
    let other_server = asked.server_identifier.is_some_and(|server| server != link.gateway4);
    let wanted = asked.requested_ip.filter(|address| !address.is_unspecified());
    let wanted = wanted.or(Some(asked.client_ip).filter(|address| !address.is_unspecified()));
    let message_type = match asked.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if other_server => return,
        DhcpMessageType::Request if wanted.is_some_and(|address| address != link.guest4) => {
            DhcpMessageType::Nak
        }
        DhcpMessageType::Request | DhcpMessageType::Inform => DhcpMessageType::Ack,
        _ => return,
    };
    let refused = message_type == DhcpMessageType::Nak;
    let mask = Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(link.prefix4)).unwrap_or(0));
    let (dns, mtu) = (link.gateway4.octets(), link.mtu.to_be_bytes());
    let options = [DhcpOption { kind: DNS, data: &dns }, DhcpOption { kind: MTU, data: &mtu }];
    let answer = DhcpRepr {
        message_type,
        transaction_id: asked.transaction_id,
        secs: 0,
        client_hardware_address: asked.client_hardware_address,
        client_ip: if refused { Ipv4Addr::UNSPECIFIED } else { asked.client_ip },
        your_ip: if refused { Ipv4Addr::UNSPECIFIED } else { link.guest4 },
        server_ip: link.gateway4,
        router: (!refused).then_some(link.gateway4),
        subnet_mask: (!refused).then_some(mask),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: asked.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(link.gateway4),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: (!refused).then_some(LEASE),
        renew_duration: None,
        rebind_duration: None,
        additional_options: if refused { &[] } else { &options },
    };
    let mut bytes = vec![0; answer.buffer_len()];
    if answer.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..])).is_err() {
        return;
    }
    // To everybody: a machine without an address need not understand what is sent to it (RFC 2131, 4.1).
    let from = (link.gateway4, SERVER_PORT).into();
    reply::udp(outbox, link, from, (Ipv4Addr::BROADCAST, CLIENT_PORT).into(), &bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked_for(address: Ipv4Addr) -> Outbox {
        let link = LinkSpec::default();
        let question = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: EthernetAddress(link.guest_mac),
            source_protocol_addr: link.guest4,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: address,
        };
        let mut bytes = vec![0; question.buffer_len()];
        question.emit(&mut ArpPacket::new_unchecked(&mut bytes));
        let mut outbox = Outbox::default();
        arp(&mut outbox, &link, &bytes);
        outbox
    }

    #[test]
    fn arp_finds_the_gateway_and_the_host_and_nobody_else() {
        let link = LinkSpec::default();
        assert_eq!(asked_for(link.gateway4).frames, 1);
        assert_eq!(asked_for(link.host4).frames, 1);
        assert_eq!(asked_for(link.guest4).frames, 0);
        assert_eq!(asked_for("192.168.127.7".parse().unwrap()).frames, 0);
    }

    fn dhcp_answer(change: impl FnOnce(&mut DhcpRepr<'_>)) -> u64 {
        let link = LinkSpec::default();
        let mut question = DhcpRepr {
            message_type: DhcpMessageType::Discover,
            transaction_id: 7,
            secs: 0,
            client_hardware_address: EthernetAddress(link.guest_mac),
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: true,
            requested_ip: None,
            client_identifier: None,
            server_identifier: None,
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        };
        change(&mut question);
        let mut datagram = vec![0; 8 + question.buffer_len()];
        question.emit(&mut DhcpPacket::new_unchecked(&mut datagram[8..])).unwrap();
        let length = u16::try_from(datagram.len()).unwrap();
        datagram[..6].copy_from_slice(&[0, 68, 0, 67, length.to_be_bytes()[0], length.to_be_bytes()[1]]);
        let mut outbox = Outbox::default();
        dhcp(&mut outbox, &link, &datagram);
        outbox.frames
    }

    #[test]
    fn a_dhcp_client_is_answered_unless_it_is_another_ones() {
        assert_eq!(dhcp_answer(|_| ()), 1);
        assert_eq!(dhcp_answer(|question| question.message_type = DhcpMessageType::Request), 1);
        assert_eq!(dhcp_answer(|question| question.message_type = DhcpMessageType::Release), 0);
        assert_eq!(dhcp_answer(|question| question.client_hardware_address.0[5] ^= 1), 0);
        let other = |question: &mut DhcpRepr<'_>| {
            question.message_type = DhcpMessageType::Request;
            question.server_identifier = Some(Ipv4Addr::new(1, 2, 3, 4));
        };
        assert_eq!(dhcp_answer(other), 0);
    }

    #[test]
    fn the_link_local_address_is_that_of_the_hardware_address() {
        assert_eq!(link_local([2, 0xb0, 0x0c, 0, 0, 1]), "fe80::b0:cff:fe00:1".parse::<Ipv6Addr>().unwrap());
    }
}
