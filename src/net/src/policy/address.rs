//! What kind of address it is, and which other addresses it is a way to write.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Who can be at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// A host of the public Internet.
    Public,
    /// A host of some network: private, link-local, for documentation, reserved, or of a cloud's metadata.
    Private,
    /// No host that a guest may mean, whatever the rules are, and why.
    Never(&'static str),
}

/// An address as it is judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    key: IpAddr,
    class: Class,
    same: [Option<IpAddr>; 2],
    within: [Option<IpAddr>; 2],
}

impl Address {
    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::plain(address.into(), class4(address)),
            IpAddr::V6(address) => Self::of6(address),
        }
    }

    fn of6(address: Ipv6Addr) -> Self {
        let [.., a, b, c, d] = address.octets();
        let low = Ipv4Addr::new(a, b, c, d);
        let own = IpAddr::V6(address);
        match address.segments() {
            // IPv4-mapped: the kernel takes it for the IPv4 address.
            [0, 0, 0, 0, 0, 0xffff, ..] => {
                let key = IpAddr::V4(low);
                Self { key, class: class4(low), same: [Some(key), None], within: [Some(own), None] }
            }
            // IPv4-translated, and NAT64: a translator makes the IPv4 address of it.
            [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
                let key = IpAddr::V4(low);
                Self { key, class: class4(low), same: [Some(own), Some(key)], within: [None; 2] }
            }
            // IPv4-compatible, and NAT64 with a prefix of the local network.
            [0, 0, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => {
                Self::plain(own, class6(address)).with_within([Some(low), None])
            }
            // 6to4: the router of the network.
            [0x2002, ..] => {
                let [_, _, a, b, c, d, ..] = address.octets();
                Self::plain(own, Class::Public).with_within([Some(Ipv4Addr::new(a, b, c, d)), None])
            }
            // Teredo: the server, and the client with its bits flipped.
            [0x2001, 0, ..] => {
                let [_, _, _, _, a, b, c, d, ..] = address.octets();
                let client = Ipv4Addr::from(!u32::from(low));
                Self::plain(own, Class::Public).with_within([Some(Ipv4Addr::new(a, b, c, d)), Some(client)])
            }
            _ => Self::plain(own, class6(address)),
        }
    }

    fn plain(address: IpAddr, class: Class) -> Self {
        Self { key: address, class, same: [Some(address), None], within: [None; 2] }
    }

    fn with_within(self, within: [Option<Ipv4Addr>; 2]) -> Self {
        let class = within.iter().flatten().map(|address| class4(*address)).fold(self.class, Class::max);
        Self { class, within: within.map(|address| address.map(IpAddr::V4)), ..self }
    }

    /// The one spelling of the host, by which names are bound to it.
    pub(super) fn key(&self) -> IpAddr {
        self.key
    }

    /// The worst of what it is and what is in it.
    pub(super) fn class(&self) -> Class {
        self.class
    }

    /// What it is another spelling of, itself included: rules about those are about it.
    pub(super) fn same(&self) -> impl Iterator<Item = IpAddr> {
        self.same.into_iter().flatten()
    }

    /// What else is in it: a rule that denies one of those denies it, and no rule that allows one allows it.
    pub(super) fn within(&self) -> impl Iterator<Item = IpAddr> {
        self.within.into_iter().flatten()
    }
}

const UNSPECIFIED: Class = Class::Never("no address of a host");
const LOOPBACK: Class = Class::Never("a loopback address");
const MULTICAST: Class = Class::Never("a multicast address");
const BROADCAST: Class = Class::Never("a broadcast address");

/// The registry of special-purpose IPv4 addresses (RFC 6890 and what came after it), and metadata servers.
fn class4(address: Ipv4Addr) -> Class {
    match address.octets() {
        [0, ..] => UNSPECIFIED,
        [127, ..] => LOOPBACK,
        [224..=239, ..] => MULTICAST,
        [255, 255, 255, 255] => BROADCAST,
        [10, ..]
        | [100, 64..=127, ..]
        | [169, 254, ..]
        | [172, 16..=31, ..]
        | [192, 0, 0 | 2, _]
        | [192, 88, 99, _]
        | [192, 168, ..]
        | [198, 18 | 19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _]
        | [240..=255, ..] => Class::Private,
        // The wire server of Azure, which every virtual machine there reaches, although it looks public.
        [168, 63, 129, 16] => Class::Private,
        _ => Class::Public,
    }
}

/// The registry of special-purpose IPv6 addresses. Only 2000::/3 is handed out as public, and not all of that.
fn class6(address: Ipv6Addr) -> Class {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => UNSPECIFIED,
        [0, 0, 0, 0, 0, 0, 0, 1] => LOOPBACK,
        [0xff00..=0xffff, ..] => MULTICAST,
        // Of 2001::/23, for protocols of the IETF, these are reachable from everywhere: anycast of PCP, TURN and SRP,
        // AMT, AS112, ORCHIDv2, and DRIP.
        [0x2001, 1, 0, 0, 0, 0, 0, 1..=3]
        | [0x2001, 3, ..]
        | [0x2001, 4, 0x112, ..]
        | [0x2001, 0x20..=0x3f, ..] => Class::Public,
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Class::Private,
        [0x2000..=0x3fff, ..] => Class::Public,
        _ => Class::Private,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn class(text: &str) -> Class {
        Address::of(text.parse().unwrap()).class()
    }

    #[test]
    fn the_public_internet_is_public() {
        for text in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.0.3.0",
            "192.88.98.255",
            "192.88.100.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "198.51.99.255",
            "203.0.114.0",
            "223.255.255.255",
            "168.63.129.15",
            "168.63.129.17",
            "192.31.196.1",
            "192.175.48.1",
            "2000::",
            "2606:4700::1111",
            "2001:200::",
            "2001:4860:4860::8888",
            "2001:1::1",
            "2001:1::3",
            "2001:3::1",
            "2001:4:112::1",
            "2001:20::",
            "2001:3f:ffff::",
            "2001:db7::",
            "2001:db9::",
            "2003::",
            "2620:4f:8000::1",
            "3ffe::1",
            "3fff:1000::",
            "::ffff:1.1.1.1",
            "::ffff:0:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
            "2001:0:101:101::fefe:fefe",
        ] {
            assert_eq!(class(text), Class::Public, "{text}");
        }
    }

    #[test]
    fn what_is_registered_for_something_else_is_not_public() {
        for text in [
            "10.0.0.0",
            "10.255.255.255",
            "100.64.0.0",
            "100.127.255.255",
            "100.100.100.200",
            "169.254.0.0",
            "169.254.169.254",
            "172.16.0.0",
            "172.31.255.255",
            "192.0.0.0",
            "192.0.0.9",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.0",
            "198.18.0.0",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "240.0.0.0",
            "255.255.255.254",
            "168.63.129.16",
            "64:ff9b:1::101:101",
            "100::1",
            "100:0:0:1::1",
            "1fff::",
            "4000::",
            "2001:1::",
            "2001:1::4",
            "2001:2::1",
            "2001:4:111::1",
            "2001:10::1",
            "2001:1f:ffff::",
            "2001:40::",
            "2001:1ff::",
            "2001:db8::1",
            "3fff::1",
            "3fff:fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "feff::1",
            "::1.1.1.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:0:0:1::1",
            "2002:a00:1::1",
            "2002:a9fe:a9fe::",
            "2001:0:a00:1::fefe:fefe",
            "2001:0:101:101::f5ff:fffe",
        ] {
            assert_eq!(class(text), Class::Private, "{text}");
        }
    }

    #[test]
    fn what_is_no_other_host_is_that_in_every_spelling() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.255",
            "224.0.0.1",
            "239.255.255.255",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
            "ff0e::1",
            "ffff::",
            "::ffff:0.0.0.0",
            "::ffff:127.0.0.1",
            "::ffff:255.255.255.255",
            "::ffff:0:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::224.0.0.1",
            "64:ff9b:1::127.0.0.1",
            "::127.0.0.1",
            "2002:7f00:1::1",
            "2002:e000:1::",
            "2001:0:7f00:1::fefe:fefe",
            "2001:0:101:101::80ff:fffe",
        ] {
            assert!(matches!(class(text), Class::Never(_)), "{text}");
        }
    }

    #[test]
    fn spellings_of_one_host_have_one_key() {
        let key = |text: &str| Address::of(text.parse().unwrap()).key().to_string();
        for text in ["192.0.2.7", "::ffff:192.0.2.7", "::ffff:0:192.0.2.7", "64:ff9b::192.0.2.7"] {
            assert_eq!(key(text), "192.0.2.7");
        }
        for text in ["64:ff9b:1::c000:207", "::c000:207", "2002:c000:207::1", "2001:db8::c000:207"] {
            assert_ne!(key(text), "192.0.2.7");
        }
    }

    proptest! {
        #[test]
        fn no_spelling_of_an_address_is_better_than_the_address(bits: u32, rest: u64) {
            let plain = Ipv4Addr::from(bits);
            let class = class4(plain);
            let [bits, rest] = [u128::from(bits), u128::from(rest)];
            let mapped = [0xffff_u128 << 32, 0xffff_u128 << 48, 0x64_ff9b_u128 << 96].map(|prefix| prefix | bits);
            for bits in mapped {
                prop_assert_eq!(Address::of(Ipv6Addr::from(bits).into()).class(), class);
            }
            let flipped = bits ^ 0xffff_ffff;
            for bits in [
                bits,
                0x64_ff9b_0001 << 80 | bits,
                0x2002 << 112 | bits << 80 | rest,
                0x2001_0000 << 96 | bits << 64 | rest,
                0x2001_0000 << 96 | 0x0101_0101 << 64 | flipped,
            ] {
                prop_assert!(Address::of(Ipv6Addr::from(bits).into()).class() >= class);
            }
        }
    }
}
