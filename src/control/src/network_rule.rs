//! The text of a rule of the network: `TARGET[:PORTS][/PROTOCOL]`.
//!
//! ```text
//!   example.com                 a host by its name           10.0.0.0/8:443/tcp      a block, one port, one protocol
//!   *.example.com:80,443        every host below a name      [2001:db8::]/32:53      IPv6 with ports has brackets
//!   192.0.2.7:8000-8010         an address, a range          2001:db8::/32/udp       IPv6 without ports may go without
//!   *                           everywhere                   */icmp                  echo requests, everywhere
//! ```

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::network::{NetworkProtocol, NetworkRule, NetworkTarget, NetworkVerdict};

/// The longest name of the domain name system, without a dot at the end.
const MAX_NAME: usize = 253;
/// The longest label of such a name.
const MAX_LABEL: usize = 63;

/// Why a text is no rule of the network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadNetworkRule {
    /// It does not say where to.
    #[error("the rule says nothing about where to: write a name, an address, a block of addresses, or *")]
    NoTarget,
    /// It is a URL.
    #[error("{0:?} is a URL, and a rule is about a host: write its name, then a colon and the port")]
    Url(String),
    /// What follows the last slash is neither a protocol nor the length of a prefix.
    #[error("{0:?} is no protocol: write tcp, udp or icmp")]
    UnknownProtocol(String),
    /// It looks like an IPv6 address, and is none.
    #[error("{0:?} is no IPv6 address; with ports, one is written as [address]:ports")]
    BadAddress(String),
    /// It is no name of a host.
    #[error(
        "{0:?} is no name of a host: it has at most 253 bytes, and between its dots 1 to 63 letters, digits, hyphens \
         or underscores without a hyphen at either end"
    )]
    BadName(String),
    /// It is a number in disguise, which some programs take for an address.
    #[error("{0:?} ends in a number, so it is no name, but it is no address of four numbers either")]
    NumericName(String),
    /// It has letters beyond ASCII.
    #[error("{0:?} has letters beyond ASCII: write the name in its ASCII form, whose labels begin with xn--")]
    International(String),
    /// A `*` stands where it means nothing.
    #[error("{0:?} has a * in it: write * for everywhere, or *.name for every host below a name")]
    Wildcard(String),
    /// A name has a prefix.
    #[error("{0:?} is no address, and only a block of addresses has a length after a slash")]
    PrefixOfName(String),
    /// The length of a prefix is none.
    #[error("{text:?} is no length of a prefix: it is a number from 0 to {most}")]
    BadPrefix {
        /// What was written.
        text: String,
        /// The largest length.
        most: u8,
    },
    /// The address of a block is not its first one.
    #[error("{text} is not the first address of its block: write {block}")]
    HostBits {
        /// What was written.
        text: String,
        /// The block that it would be.
        block: String,
    },
    /// A port or a range of ports is none.
    #[error("{0:?} is neither a port from 1 to 65535 nor a range such as 8000-8010")]
    BadPorts(String),
    /// ICMP has no ports.
    #[error("ICMP has no ports: leave out the ports or the protocol")]
    PortsOfIcmp,
}

impl NetworkRule {
    /// Reads a rule, such as `*.example.com:443/tcp`. See [`NetworkTarget`] for what it can be about.
    ///
    /// Names are lowered and lose a dot at their end. An IPv4-mapped IPv6 address (`::ffff:192.0.2.1`) is taken for the
    /// IPv4 address that it is.
    ///
    /// # Errors
    ///
    /// When the text is no rule; the error says how to write it.
    pub fn parse(verdict: NetworkVerdict, text: &str) -> Result<Self, BadNetworkRule> {
        if text.contains("://") {
            return Err(BadNetworkRule::Url(text.to_owned()));
        }
        let (rest, protocol) = split_protocol(text)?;
        let (target, ports) = parse_target(rest)?;
        let ports = ports.map_or(Ok(Vec::new()), |ports| ports.split(',').map(parse_ports).collect())?;
        if protocol == Some(NetworkProtocol::Icmp) && !ports.is_empty() {
            return Err(BadNetworkRule::PortsOfIcmp);
        }
        Ok(Self { verdict, target, protocol, ports })
    }
}

/// Takes the protocol off the end. A slash before a digit belongs to a block.
fn split_protocol(text: &str) -> Result<(&str, Option<NetworkProtocol>), BadNetworkRule> {
    let Some((rest, word)) = text.rsplit_once('/').filter(|(_, word)| !word.starts_with(is_digit)) else {
        return Ok((text, None));
    };
    let known = [NetworkProtocol::Tcp, NetworkProtocol::Udp, NetworkProtocol::Icmp];
    let protocol = known.into_iter().find(|protocol| word.eq_ignore_ascii_case(protocol.name()));
    match protocol {
        Some(protocol) => Ok((rest, Some(protocol))),
        None => Err(BadNetworkRule::UnknownProtocol(word.to_owned())),
    }
}

/// The target, and the text of the ports behind it.
fn parse_target(text: &str) -> Result<(NetworkTarget, Option<&str>), BadNetworkRule> {
    if let Some(inner) = text.strip_prefix('[') {
        let bad = || BadNetworkRule::BadAddress(text.to_owned());
        let (address, behind) = inner.split_once(']').ok_or_else(bad)?;
        let (prefix, ports) = split_ports(behind);
        let prefix = match prefix.strip_prefix('/') {
            None if !prefix.is_empty() => return Err(bad()),
            prefix => prefix,
        };
        return Ok((parse_block6(address, prefix)?, ports));
    }
    // A name or an IPv4 address has no colon, and ports have one in front: two of them are IPv6.
    if text.matches(':').nth(1).is_some() {
        let (address, prefix) = split_prefix(text);
        if prefix.is_some_and(|prefix| prefix.contains(':')) {
            return Err(BadNetworkRule::BadAddress(text.to_owned()));
        }
        return Ok((parse_block6(address, prefix)?, None));
    }
    let (text, ports) = split_ports(text);
    let (text, prefix) = split_prefix(text);
    let target = match (text.parse::<Ipv4Addr>(), prefix) {
        (Ok(address), prefix) => parse_block(address.into(), prefix)?,
        (Err(_), Some(_)) => return Err(BadNetworkRule::PrefixOfName(text.to_owned())),
        (Err(_), None) if text.is_empty() => return Err(BadNetworkRule::NoTarget),
        (Err(_), None) if text == "*" => NetworkTarget::Any,
        (Err(_), None) => match text.strip_prefix("*.") {
            Some(name) => NetworkTarget::Below(parse_name(name)?),
            None => NetworkTarget::Name(parse_name(text)?),
        },
    };
    Ok((target, ports))
}

fn split_ports(text: &str) -> (&str, Option<&str>) {
    text.split_once(':').map_or((text, None), |(target, ports)| (target, Some(ports)))
}

fn split_prefix(text: &str) -> (&str, Option<&str>) {
    text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)))
}

fn parse_block6(address: &str, prefix: Option<&str>) -> Result<NetworkTarget, BadNetworkRule> {
    match address.parse::<Ipv6Addr>() {
        Ok(address) => parse_block(address.into(), prefix),
        Err(_) => Err(BadNetworkRule::BadAddress(address.to_owned())),
    }
}

fn parse_block(address: IpAddr, prefix: Option<&str>) -> Result<NetworkTarget, BadNetworkRule> {
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => most,
        Some(text) => number(text)
            .and_then(|prefix| u8::try_from(prefix).ok())
            .filter(|prefix| *prefix <= most)
            .ok_or_else(|| BadNetworkRule::BadPrefix { text: text.to_owned(), most })?,
    };
    let first = first_address(address, prefix);
    if first != address {
        let (text, block) = (format!("{address}/{prefix}"), format!("{first}/{prefix}"));
        return Err(BadNetworkRule::HostBits { text, block });
    }
    let mapped = match address {
        IpAddr::V6(address) => address.to_ipv4_mapped(),
        IpAddr::V4(_) => None,
    };
    // The 96 bits in front of a mapped address are all in a prefix that leaves no other bit set.
    Ok(match (mapped, prefix.checked_sub(96)) {
        (Some(address), Some(prefix)) => NetworkTarget::Block { address: address.into(), prefix },
        _ => NetworkTarget::Block { address, prefix },
    })
}

/// The address with all bits behind the prefix cleared.
fn first_address(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            Ipv4Addr::from(u32::from(address) & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Ipv6Addr::from(u128::from(address) & mask).into()
        }
    }
}

fn parse_name(text: &str) -> Result<String, BadNetworkRule> {
    if !text.is_ascii() {
        return Err(BadNetworkRule::International(text.to_owned()));
    }
    if text.contains('*') {
        return Err(BadNetworkRule::Wildcard(text.to_owned()));
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.len() > MAX_NAME || !name.split('.').all(is_label) {
        return Err(BadNetworkRule::BadName(text.to_owned()));
    }
    let name = name.to_ascii_lowercase();
    if name.rsplit('.').next().is_some_and(is_number) {
        return Err(BadNetworkRule::NumericName(text.to_owned()));
    }
    Ok(name)
}

fn is_label(label: &str) -> bool {
    (1..=MAX_LABEL).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Whether a program may take the lowered label for a number: `1`, `0177` or `0x7f`.
fn is_number(label: &str) -> bool {
    match label.strip_prefix("0x") {
        Some(hex) => hex.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

fn is_digit(first: char) -> bool {
    first.is_ascii_digit()
}

fn parse_ports(text: &str) -> Result<(u16, u16), BadNetworkRule> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    match (number(low), number(high)) {
        (Some(low), Some(high)) if 0 < low && low <= high => Ok((low, high)),
        _ => Err(BadNetworkRule::BadPorts(text.to_owned())),
    }
}

/// A decimal number as everybody writes it: digits, the first of them not a needless zero.
fn number(text: &str) -> Option<u16> {
    let needless = text.len() > 1 && text.starts_with('0');
    if needless || !text.bytes().all(|byte| byte.is_ascii_digit()) { None } else { text.parse().ok() }
}

impl Display for NetworkRule {
    /// The text that [`NetworkRule::parse`] reads.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.target {
            NetworkTarget::Any => f.write_str("*")?,
            NetworkTarget::Name(name) => f.write_str(name)?,
            NetworkTarget::Below(name) => write!(f, "*.{name}")?,
            NetworkTarget::Block { address, prefix } => {
                match address {
                    IpAddr::V6(address) if !self.ports.is_empty() => write!(f, "[{address}]")?,
                    address => write!(f, "{address}")?,
                }
                if *prefix < if address.is_ipv4() { 32 } else { 128 } {
                    write!(f, "/{prefix}")?;
                }
            }
        }
        for (at, (low, high)) in self.ports.iter().enumerate() {
            f.write_str(if at == 0 { ":" } else { "," })?;
            if low == high { write!(f, "{low}")? } else { write!(f, "{low}-{high}")? }
        }
        self.protocol.map_or(Ok(()), |protocol| write!(f, "/{}", protocol.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Ports = &'static [(u16, u16)];

    fn parse(text: &str) -> Result<NetworkRule, BadNetworkRule> {
        NetworkRule::parse(NetworkVerdict::Allow, text)
    }

    fn name(name: &str) -> NetworkTarget {
        NetworkTarget::Name(name.to_owned())
    }

    fn below(name: &str) -> NetworkTarget {
        NetworkTarget::Below(name.to_owned())
    }

    fn block(address: &str, prefix: u8) -> NetworkTarget {
        NetworkTarget::Block { address: address.parse().unwrap(), prefix }
    }

    #[test]
    fn good_texts_are_what_they_say() {
        let (tcp, udp, icmp) = (NetworkProtocol::Tcp, NetworkProtocol::Udp, NetworkProtocol::Icmp);
        let long = format!("{}.com", vec!["a".repeat(61); 4].join("."));
        assert_eq!(long.len(), 251);
        let table: Vec<(&str, NetworkTarget, Ports, Option<NetworkProtocol>)> = vec![
            ("*", NetworkTarget::Any, &[], None),
            ("*:443", NetworkTarget::Any, &[(443, 443)], None),
            ("*/icmp", NetworkTarget::Any, &[], Some(icmp)),
            ("example.com", name("example.com"), &[], None),
            ("EXAMPLE.com.", name("example.com"), &[], None),
            ("localhost", name("localhost"), &[], None),
            ("_dmarc.xn--bcher-kva.example", name("_dmarc.xn--bcher-kva.example"), &[], None),
            ("r3---sn-4g5e6nz7.example.net", name("r3---sn-4g5e6nz7.example.net"), &[], None),
            ("1.2.3.4.example", name("1.2.3.4.example"), &[], None),
            ("0xyz", name("0xyz"), &[], None),
            (&long, name(&long), &[], None),
            ("*.example.com", below("example.com"), &[], None),
            ("*.com.", below("com"), &[], None),
            ("example.com:443", name("example.com"), &[(443, 443)], None),
            ("example.com/UDP", name("example.com"), &[], Some(udp)),
            (
                "example.com:80,443,8000-8010/tcp",
                name("example.com"),
                &[(80, 80), (443, 443), (8000, 8010)],
                Some(tcp),
            ),
            ("192.0.2.1", block("192.0.2.1", 32), &[], None),
            ("192.0.2.1/32", block("192.0.2.1", 32), &[], None),
            ("192.0.2.1:1-65535/udp", block("192.0.2.1", 32), &[(1, 65535)], Some(udp)),
            ("0.0.0.0/0", block("0.0.0.0", 0), &[], None),
            ("10.0.0.0/8:443/tcp", block("10.0.0.0", 8), &[(443, 443)], Some(tcp)),
            ("10.0.0.0/8/icmp", block("10.0.0.0", 8), &[], Some(icmp)),
            ("::", block("::", 128), &[], None),
            ("::/0", block("::", 0), &[], None),
            ("2001:db8::1", block("2001:db8::1", 128), &[], None),
            ("2001:db8::/32", block("2001:db8::", 32), &[], None),
            ("2001:db8::/32/tcp", block("2001:db8::", 32), &[], Some(tcp)),
            ("::1:443", block("::1:443", 128), &[], None),
            ("[2001:db8::1]", block("2001:db8::1", 128), &[], None),
            ("[2001:db8::1]/tcp", block("2001:db8::1", 128), &[], Some(tcp)),
            ("[2001:db8::1]:443/tcp", block("2001:db8::1", 128), &[(443, 443)], Some(tcp)),
            ("[2001:db8::]/32:53,853/udp", block("2001:db8::", 32), &[(53, 53), (853, 853)], Some(udp)),
            ("::ffff:192.0.2.1", block("192.0.2.1", 32), &[], None),
            ("[::ffff:10.0.0.0]/104:22", block("10.0.0.0", 8), &[(22, 22)], None),
            ("::ffff:0:0/96", block("0.0.0.0", 0), &[], None),
        ];
        for (text, target, ports, protocol) in table {
            let expected =
                NetworkRule { verdict: NetworkVerdict::Deny, target, protocol, ports: ports.to_vec() };
            assert_eq!(NetworkRule::parse(NetworkVerdict::Deny, text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn bad_texts_are_refused_for_what_is_wrong_with_them() {
        use BadNetworkRule as Bad;
        let owned = str::to_owned;
        let label = "a".repeat(64);
        let long = format!("{}.com", vec!["a".repeat(62); 4].join("."));
        assert!(long.len() > MAX_NAME);
        let prefix = |text: &str, most| Bad::BadPrefix { text: owned(text), most };
        let bits = |text: &str, block: &str| Bad::HostBits { text: owned(text), block: owned(block) };
        let table = vec![
            ("", Bad::NoTarget),
            (":443", Bad::NoTarget),
            ("/tcp", Bad::NoTarget),
            ("https://example.com", Bad::Url(owned("https://example.com"))),
            ("example.com/sctp", Bad::UnknownProtocol(owned("sctp"))),
            ("example.com/", Bad::UnknownProtocol(owned(""))),
            ("10.0.0.0/-8", Bad::UnknownProtocol(owned("-8"))),
            ("example.com/24", Bad::PrefixOfName(owned("example.com"))),
            ("*/0", Bad::PrefixOfName(owned("*"))),
            ("127.1", Bad::NumericName(owned("127.1"))),
            ("2130706433", Bad::NumericName(owned("2130706433"))),
            ("0x7f.1", Bad::NumericName(owned("0x7f.1"))),
            ("0x7f000001", Bad::NumericName(owned("0x7f000001"))),
            ("0X7F000001", Bad::NumericName(owned("0X7F000001"))),
            ("017700000001", Bad::NumericName(owned("017700000001"))),
            ("010.0.0.1", Bad::NumericName(owned("010.0.0.1"))),
            ("256.0.0.1", Bad::NumericName(owned("256.0.0.1"))),
            ("1.2.3.4.", Bad::NumericName(owned("1.2.3.4."))),
            ("*.1", Bad::NumericName(owned("1"))),
            ("b\u{fc}cher.example", Bad::International(owned("b\u{fc}cher.example"))),
            ("*.*.com", Bad::Wildcard(owned("*.com"))),
            ("a*.com", Bad::Wildcard(owned("a*.com"))),
            ("**", Bad::Wildcard(owned("**"))),
            ("*.", Bad::BadName(owned(""))),
            (".", Bad::BadName(owned("."))),
            (".com", Bad::BadName(owned(".com"))),
            ("a..com", Bad::BadName(owned("a..com"))),
            ("example.com..", Bad::BadName(owned("example.com.."))),
            ("-a.com", Bad::BadName(owned("-a.com"))),
            ("a-.com", Bad::BadName(owned("a-.com"))),
            ("a b.com", Bad::BadName(owned("a b.com"))),
            ("a.com\0", Bad::BadName(owned("a.com\0"))),
            ("user@a.com", Bad::BadName(owned("user@a.com"))),
            (&label, Bad::BadName(label.clone())),
            (&long, Bad::BadName(long.clone())),
            ("10.0.0.0/33", prefix("33", 32)),
            ("10.0.0.0/08", prefix("08", 32)),
            ("10.0.0.0/8/9", prefix("8/9", 32)),
            ("::/129", prefix("129", 128)),
            ("[::]/99999", prefix("99999", 128)),
            ("[::1]/", Bad::UnknownProtocol(owned(""))),
            ("[::]/:443", Bad::UnknownProtocol(owned(":443"))),
            ("10.1.2.3/8", bits("10.1.2.3/8", "10.0.0.0/8")),
            ("10.1.2.3/0", bits("10.1.2.3/0", "0.0.0.0/0")),
            ("2001:db8::1/32", bits("2001:db8::1/32", "2001:db8::/32")),
            ("[fd00::1]/8:22", bits("fd00::1/8", "fd00::/8")),
            ("::ffff:10.0.0.1/104", bits("::ffff:10.0.0.1/104", "::ffff:10.0.0.0/104")),
            ("::ffff:10.0.0.0/64", bits("::ffff:10.0.0.0/64", "::/64")),
            ("fe80::1%eth0", Bad::BadAddress(owned("fe80::1%eth0"))),
            ("[::1", Bad::BadAddress(owned("[::1"))),
            ("[::1]443", Bad::BadAddress(owned("[::1]443"))),
            ("[192.0.2.1]:443", Bad::BadAddress(owned("192.0.2.1"))),
            ("2001:db8::/32:443", Bad::BadAddress(owned("2001:db8::/32:443"))),
            ("192.0.2.1:80:443", Bad::BadAddress(owned("192.0.2.1:80:443"))),
            ("example.com:", Bad::BadPorts(owned(""))),
            ("example.com:0", Bad::BadPorts(owned("0"))),
            ("example.com:80,", Bad::BadPorts(owned(""))),
            ("example.com:65536", Bad::BadPorts(owned("65536"))),
            ("example.com:+80", Bad::BadPorts(owned("+80"))),
            ("example.com:080", Bad::BadPorts(owned("080"))),
            ("example.com:90-80", Bad::BadPorts(owned("90-80"))),
            ("example.com:80-", Bad::BadPorts(owned("80-"))),
            ("example.com:http", Bad::BadPorts(owned("http"))),
            ("example.com:0-65535", Bad::BadPorts(owned("0-65535"))),
            ("[::1]:80:90", Bad::BadPorts(owned("80:90"))),
            ("example.com:80/icmp", Bad::PortsOfIcmp),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), Err(expected), "{text:?}");
        }
    }

    #[test]
    fn an_error_says_how_to_write_it() {
        let message = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(
            message("10.1.2.3/8"),
            "10.1.2.3/8 is not the first address of its block: write 10.0.0.0/8"
        );
        assert!(message("b\u{fc}cher.example").contains("xn--"));
        assert!(message("10.0.0.0/33").ends_with("a number from 0 to 32"));
    }

    #[test]
    fn a_rule_prints_as_it_is_best_written() {
        for (text, printed) in [
            ("Example.COM.:443-443,80/TCP", "example.com:443,80/tcp"),
            ("192.0.2.1/32", "192.0.2.1"),
            ("[2001:DB8::]/32", "2001:db8::/32"),
            ("[2001:db8::]/32:53/udp", "[2001:db8::]/32:53/udp"),
            ("[::1]:443", "[::1]:443"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("*/icmp", "*/icmp"),
            ("*.a.b", "*.a.b"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), printed);
        }
    }

    fn any_target() -> impl Strategy<Value = NetworkTarget> {
        let name = "([a-z0-9_]([a-z0-9_-]{0,5}[a-z0-9_])?\\.){0,3}[a-z][a-z0-9]{0,5}";
        prop_oneof![
            Just(NetworkTarget::Any),
            name.prop_map(NetworkTarget::Name),
            name.prop_map(NetworkTarget::Below),
            (any::<u32>(), 0..=32u8).prop_map(|(bits, prefix)| NetworkTarget::Block {
                address: first_address(Ipv4Addr::from(bits).into(), prefix),
                prefix,
            }),
            (any::<u128>(), 0..=128u8).prop_map(|(bits, prefix)| NetworkTarget::Block {
                address: first_address(Ipv6Addr::from(bits).into(), prefix),
                prefix,
            }),
        ]
    }

    fn any_rule() -> impl Strategy<Value = NetworkRule> {
        let ports = prop::collection::vec((1u16.., 1u16..).prop_map(|(a, b)| (a.min(b), a.max(b))), 0..4);
        let protocol = prop_oneof![
            Just(None),
            Just(Some(NetworkProtocol::Tcp)),
            Just(Some(NetworkProtocol::Udp)),
            Just(Some(NetworkProtocol::Icmp)),
        ];
        (any_target(), protocol, ports).prop_map(|(target, protocol, mut ports)| {
            if protocol == Some(NetworkProtocol::Icmp) {
                ports.clear();
            }
            NetworkRule { verdict: NetworkVerdict::Allow, target, protocol, ports }
        })
    }

    proptest! {
        #[test]
        fn a_printed_rule_is_read_as_the_same_rule(rule in any_rule()) {
            prop_assert_eq!(parse(&rule.to_string()), Ok(rule));
        }

        #[test]
        fn no_text_breaks_the_reader_and_what_it_takes_is_stable(
            text in prop_oneof![any::<String>(), "[]\\[a0-9:./*,x-]{0,24}(/tcp|/udp|/icmp)?"],
        ) {
            if let Ok(rule) = parse(&text) {
                prop_assert_eq!(parse(&rule.to_string()), Ok(rule));
            }
        }
    }
}
