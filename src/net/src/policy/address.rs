//! What kind of address an address is.
//!
//! IPv6 has several ways to write an IPv4 address, and networks that translate them back. So each address is looked at in
//! all of its forms: one that is private in one form is private.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use boxlite_control::LinkSpec;

/// Blocks of IPv4 that are not the public Internet: the IANA registry of special-purpose addresses (RFC 6890 and its
/// followers), multicast (RFC 5771) and class E.
const SPECIAL4: &[(Ipv4Addr, u8)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 31, 196, 0), 24),
    (Ipv4Addr::new(192, 52, 193, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(192, 175, 48, 0), 24),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
    // Clouds serve their machines' secrets here, though the address is a public one (Azure's wire server).
    (Ipv4Addr::new(168, 63, 129, 16), 32),
];

/// Blocks of 2000::/3 that are not the public Internet (the IANA registry of special-purpose addresses). Everything outside
/// of 2000::/3 is not, either.
const SPECIAL6: &[(Ipv6Addr, u8)] = &[
    // Protocol assignments, Teredo, benchmarking and ORCHID among them.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    // 6to4: a relay would take the packet to the IPv4 address in it.
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0), 48),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// Whether the first `prefix` bits are the same.
pub(super) fn in_block(address: IpAddr, block: IpAddr, prefix: u8) -> bool {
    match (address, block) {
        (IpAddr::V4(address), IpAddr::V4(block)) => mask4(address, prefix) == mask4(block, prefix),
        (IpAddr::V6(address), IpAddr::V6(block)) => mask6(address, prefix) == mask6(block, prefix),
        _ => false,
    }
}

/// The address with only its first bits.
pub(super) fn mask(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from(mask4(address, prefix)).into(),
        IpAddr::V6(address) => Ipv6Addr::from(mask6(address, prefix)).into(),
    }
}

fn mask4(address: Ipv4Addr, prefix: u8) -> u32 {
    let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0);
    u32::from(address) & mask
}

fn mask6(address: Ipv6Addr, prefix: u8) -> u128 {
    let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix.into())).unwrap_or(0);
    u128::from(address) & mask
}

/// The IPv4 address that an IPv6 address stands for, if it stands for one.
pub(super) fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let of = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match (a, b, c, d, e, f) {
        // Mapped and compatible (RFC 4291, 2.5.5), translated (RFC 2765).
        (0, 0, 0, 0, 0, 0xffff | 0) | (0, 0, 0, 0, 0xffff, 0) => Some(of(g, h)),
        // The well-known prefix of NAT64 (RFC 6052).
        (0x64, 0xff9b, 0, 0, 0, 0) => Some(of(g, h)),
        // 6to4 (RFC 3056).
        (0x2002, ..) => Some(of(b, c)),
        // Teredo (RFC 4380, 4): the client's address, inverted.
        (0x2001, 0, ..) => Some(of(!g, !h)),
        _ => None,
    }
}

/// The address, and the IPv4 address that it stands for.
pub(super) fn forms(address: IpAddr) -> (IpAddr, Option<IpAddr>) {
    match address {
        IpAddr::V4(_) => (address, None),
        IpAddr::V6(v6) => (address, embedded(v6).map(IpAddr::V4)),
    }
}

/// Whether it belongs to the public Internet.
pub(crate) fn is_public(address: IpAddr, link: &LinkSpec) -> bool {
    let one = |address: IpAddr| match address {
        IpAddr::V4(_) => !link.has(address) && !special(address, SPECIAL4),
        IpAddr::V6(v6) => {
            // NAT64's prefix lies outside of what is assigned, and takes a packet to the public IPv4 Internet all the same.
            let translated = mask6(v6, 96) == u128::from(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0));
            let mapped = v6.to_ipv4_mapped().is_some();
            let global = v6.segments()[0] & 0xe000 == 0x2000 && !special(address, SPECIAL6);
            !link.has(address) && (global || translated || mapped)
        }
    };
    let (first, second) = forms(address);
    one(first) && second.is_none_or(one)
}

fn special<A: Copy + Into<IpAddr>>(address: IpAddr, blocks: &[(A, u8)]) -> bool {
    blocks.iter().any(|(block, prefix)| in_block(address, (*block).into(), *prefix))
}

/// Whether no rule can allow it: it is nobody's address, or that of a machine that packets never leave.
pub(super) fn is_nowhere(address: IpAddr) -> bool {
    let one = |address: IpAddr| match address {
        IpAddr::V4(v4) => {
            v4.octets()[0] == 0 || v4.is_loopback() || v4.is_multicast() || v4 == Ipv4Addr::BROADCAST
        }
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_loopback() || v6.is_multicast(),
    };
    let (first, second) = forms(address);
    one(first) || second.is_some_and(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(text: &str) -> bool {
        is_public(text.parse().unwrap(), &LinkSpec::default())
    }

    #[test]
    fn the_public_internet_is_public() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "93.184.216.34",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2600::1",
            "2001:4860:4860::8888",
            "2a00::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
        ] {
            assert!(public(text), "{text}");
        }
    }

    #[test]
    fn everything_special_is_not_in_any_form() {
        let special = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
        ];
        for text in special {
            assert!(!public(text), "{text}");
            for prefix in ["::ffff:", "::", "::ffff:0:", "64:ff9b::", "64:ff9b:1::"] {
                assert!(!public(&format!("{prefix}{text}")), "{prefix}{text}");
            }
            let [a, b, c, d] = text.parse::<Ipv4Addr>().unwrap().octets();
            let six_to_four = format!("2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1");
            assert!(!public(&six_to_four), "{six_to_four}");
        }
        for text in [
            "::",
            "::1",
            "::1.1.1.1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "2001:10::1",
            "2001:20::1",
            "3fff::1",
            "100::1",
            "5f00::1",
            "64:ff9b:1::1.1.1.1",
            "2002:101:101::1",
            "192.168.127.254",
            "fd00:b0:c51:17e0::fe",
            "4000::1",
        ] {
            assert!(!public(text), "{text}");
        }
    }

    #[test]
    fn nobody_is_at_these_addresses_in_any_form() {
        for text in [
            "0.0.0.0",
            "0.0.0.1",
            "127.0.0.1",
            "127.255.0.1",
            "224.0.0.251",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::fb",
            "::ffff:127.0.0.1",
            "::ffff:0.0.0.0",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ] {
            assert!(is_nowhere(text.parse().unwrap()), "{text}");
        }
        for text in ["10.0.0.1", "1.1.1.1", "fe80::1", "169.254.169.254"] {
            assert!(!is_nowhere(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn blocks_have_both_of_their_ends() {
        let is = |address: &str, block: &str, prefix| {
            in_block(address.parse().unwrap(), block.parse().unwrap(), prefix)
        };
        assert!(is("10.255.255.255", "10.0.0.0", 8) && !is("11.0.0.0", "10.0.0.0", 8));
        assert!(is("1.2.3.4", "9.9.9.9", 0) && is("1.2.3.4", "1.2.3.4", 32) && !is("1.2.3.5", "1.2.3.4", 32));
        assert!(is("2600::ffff", "2600::", 112) && !is("2600::1:0", "2600::", 112));
        assert!(!is("::1", "0.0.0.0", 0));
    }
}
