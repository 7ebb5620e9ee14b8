//! Rules of a network's policy as people write them.
//!
//! ```text
//!   TARGET[:PORTS][/PROTOCOL]
//!   TARGET    a name, *.name, an address, a block (10.0.0.0/8), *; an IPv6 one in brackets when ports follow
//!   PORTS     443, 8000-8010, or several with commas between
//!   PROTOCOL  tcp, udp or icmp
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::network::{NetworkProtocol, NetworkRule, NetworkTarget, NetworkVerdict};

/// The longest rule, in bytes.
const LONGEST: usize = 1024;
/// The longest name, and the longest part of one, in bytes (RFC 1035, 2.3.4).
const NAME: usize = 253;
const LABEL: usize = 63;

/// A rule that says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no network rule: {why}", .text.escape_debug())]
pub struct BadNetworkRule {
    /// The rule, cut at 100 characters.
    pub text: String,
    /// What is wrong with it.
    pub why: String,
}

impl NetworkRule {
    /// Reads a rule.
    ///
    /// # Errors
    ///
    /// When it is none: see the module's grammar.
    pub fn parse(verdict: NetworkVerdict, text: &str) -> Result<Self, BadNetworkRule> {
        parse(verdict, text)
            .map_err(|why| BadNetworkRule { text: text.chars().take(100).collect(), why: why.to_string() })
    }
}

fn parse(verdict: NetworkVerdict, text: &str) -> Result<NetworkRule, String> {
    if text.len() > LONGEST {
        return Err(format!("it is longer than {LONGEST} bytes"));
    }
    let (rest, protocol) = protocol(text);
    let (target, ports) = split_ports(rest)?;
    let rule = NetworkRule { verdict, target: self::target(target)?, protocol, ports: self::ports(ports)? };
    if rule.protocol == Some(NetworkProtocol::Icmp) && !rule.ports.is_empty() {
        return Err("ICMP has no ports".to_owned());
    }
    Ok(rule)
}

fn protocol(text: &str) -> (&str, Option<NetworkProtocol>) {
    let known = |name: &str| match name.to_ascii_lowercase().as_str() {
        "tcp" => Some(NetworkProtocol::Tcp),
        "udp" => Some(NetworkProtocol::Udp),
        "icmp" => Some(NetworkProtocol::Icmp),
        _ => None,
    };
    match text.rsplit_once('/') {
        Some((rest, name)) if known(name).is_some() => (rest, known(name)),
        _ => (text, None),
    }
}

/// The target, and the text of the ports.
fn split_ports(text: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, behind) = rest.split_once(']').ok_or("the bracket is not closed")?;
        if address.parse::<Ipv6Addr>().is_err() {
            return Err("only an IPv6 address stands in brackets".to_owned());
        }
        // The prefix stands behind the bracket: [2001:db8::]/32:443.
        let (prefix, ports) = match behind.split_once(':') {
            Some((prefix, ports)) => (prefix, Some(ports)),
            None => (behind, None),
        };
        if !prefix.is_empty() && !prefix.starts_with('/') {
            return Err(format!("nobody knows what `{}` behind the bracket is", prefix.escape_debug()));
        }
        let whole = text.len() - behind.len() + prefix.len();
        return Ok((&text[..whole], ports));
    }
    // More than one colon is an IPv6 address without brackets, which takes no ports.
    match text.split_once(':') {
        Some((target, ports)) if !ports.contains(':') => Ok((target, Some(ports))),
        _ => Ok((text, None)),
    }
}

fn target(text: &str) -> Result<NetworkTarget, String> {
    if text == "*" {
        return Ok(NetworkTarget::Any);
    }
    if let Some(parent) = text.strip_prefix("*.") {
        return Ok(NetworkTarget::Below(name(parent)?));
    }
    let bare = text.replace(['[', ']'], "");
    if let Some((address, prefix)) = bare.split_once('/') {
        let address: IpAddr =
            address.parse().map_err(|_| "there is no address before the slash".to_owned())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.parse::<u8>().ok().filter(|prefix| *prefix <= longest);
        let prefix = prefix.ok_or_else(|| format!("the length of a block is 0 to {longest}"))?;
        return block(address, prefix);
    }
    match bare.parse::<IpAddr>() {
        Ok(address) => block(address, if address.is_ipv4() { 32 } else { 128 }),
        Err(_) => Ok(NetworkTarget::Name(name(text)?)),
    }
}

fn block(address: IpAddr, prefix: u8) -> Result<NetworkTarget, String> {
    let (address, prefix) = match address.to_canonical() {
        canonical if canonical == address => (address, prefix),
        canonical => {
            let shorter = prefix.checked_sub(96).ok_or("write IPv4 blocks as IPv4")?;
            (canonical, shorter)
        }
    };
    let first: IpAddr = match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            std::net::Ipv4Addr::from(u32::from(v4) & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Ipv6Addr::from(u128::from(v6) & mask).into()
        }
    };
    if first != address {
        return Err(format!("the block of this length begins at {first}"));
    }
    Ok(NetworkTarget::Block { address, prefix })
}

fn name(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if name.is_empty() {
        return Err("the name is empty".to_owned());
    }
    if !name.is_ascii() {
        return Err("a name has ASCII letters only: write this one in its xn-- form".to_owned());
    }
    if name.len() > NAME {
        return Err(format!("a name has at most {NAME} bytes"));
    }
    for label in name.split('.') {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if label.is_empty() || label.len() > LABEL {
            return Err(format!("each part of a name has 1 to {LABEL} bytes"));
        }
        if let Some(wrong) = label.chars().find(|c| !allowed(*c)) {
            return Err(format!("a name has no `{}`", wrong.escape_debug()));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err("no part of a name begins or ends with a hyphen".to_owned());
        }
    }
    // What a C library takes for an address is none here: 127.1, 0x7f.1, 2130706433.
    let last = name.rsplit('.').next().unwrap_or_default();
    let hexadecimal = last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()));
    if last.bytes().all(|b| b.is_ascii_digit()) || hexadecimal {
        return Err("an address is four decimal numbers with dots between".to_owned());
    }
    Ok(name)
}

fn ports(text: Option<&str>) -> Result<Vec<(u16, u16)>, String> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u16>().ok().filter(|port| digits && *port > 0)
    };
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = port(first).zip(port(last)).filter(|(first, last)| first <= last);
        range.ok_or_else(|| {
            format!("`{}` is no port from 1 to 65535 and no range of them", text.escape_debug())
        })
    };
    text.split(',').map(range).collect()
}

impl fmt::Display for NetworkRule {
    /// The text that [`NetworkRule::parse`] makes this rule of, without the verdict.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            NetworkTarget::Any => f.write_str("*")?,
            NetworkTarget::Name(name) => f.write_str(name)?,
            NetworkTarget::Below(name) => write!(f, "*.{name}")?,
            NetworkTarget::Block { address: IpAddr::V4(address), prefix: 32 } => write!(f, "{address}")?,
            NetworkTarget::Block { address: IpAddr::V4(address), prefix } => write!(f, "{address}/{prefix}")?,
            NetworkTarget::Block { address: IpAddr::V6(address), prefix: 128 } => write!(f, "[{address}]")?,
            NetworkTarget::Block { address: IpAddr::V6(address), prefix } => {
                write!(f, "[{address}]/{prefix}")?
            }
        }
        for (number, (first, last)) in self.ports.iter().enumerate() {
            f.write_str(if number == 0 { ":" } else { "," })?;
            if first == last { write!(f, "{first}")? } else { write!(f, "{first}-{last}")? }
        }
        match self.protocol {
            Some(protocol) => write!(f, "/{}", protocol.name()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<NetworkRule, BadNetworkRule> {
        NetworkRule::parse(NetworkVerdict::Allow, text)
    }

    #[test]
    fn what_people_write_is_understood() {
        for (text, printed) in [
            ("*", "*"),
            ("Example.COM.", "example.com"),
            ("*.example.com:443", "*.example.com:443"),
            ("example.com:80,443,8000-8010/tcp", "example.com:80,443,8000-8010/tcp"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.0/8:443/tcp", "10.0.0.0/8:443/tcp"),
            ("10.0.0.0/8/icmp", "10.0.0.0/8/icmp"),
            ("1.2.3.4", "1.2.3.4"),
            ("1.2.3.4/32:53/UDP", "1.2.3.4:53/udp"),
            ("2001:db8::1", "[2001:db8::1]"),
            ("2001:db8::/32", "[2001:db8::]/32"),
            ("[2001:db8::]/32:443", "[2001:db8::]/32:443"),
            ("[::1]:80/tcp", "[::1]:80/tcp"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "[::]/0"),
            ("_srv._tcp.example.com", "_srv._tcp.example.com"),
            ("localhost", "localhost"),
        ] {
            assert_eq!(read(text).unwrap().to_string(), printed, "{text}");
        }
    }

    #[test]
    fn what_says_nothing_is_refused_with_a_reason() {
        for (text, why) in [
            ("", "empty"),
            ("*.", "empty"),
            ("a..b", "each part"),
            ("-a.b", "hyphen"),
            ("a b", "no ` `"),
            ("exämple.com", "xn--"),
            ("127.1", "four decimal numbers"),
            ("2130706433", "four decimal numbers"),
            ("0x7f.1", "four decimal numbers"),
            ("0x7f000001", "four decimal numbers"),
            ("1.2.3.4.5", "four decimal numbers"),
            ("10.0.0.1/8", "begins at 10.0.0.0"),
            ("10.0.0.0/33", "0 to 32"),
            ("2001:db8::1/32", "begins at 2001:db8::"),
            ("a.com:0", "no port"),
            ("a.com:65536", "no port"),
            ("a.com:+80", "no port"),
            ("a.com:90-80", "no port"),
            ("a.com:", "no port"),
            ("a.com:80/icmp", "ICMP has no ports"),
            ("a.com/sctp", "no address before the slash"),
            ("[1.2.3.4]:80", "only an IPv6"),
            ("[::1", "not closed"),
            ("[::1]x", "behind the bracket"),
            ("*a.com", "no `*`"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.why.contains(why), "{text}: {error}");
        }
        assert!(read(&"a".repeat(LONGEST + 1)).unwrap_err().to_string().len() < 300);
    }

    fn any_rule() -> impl Strategy<Value = NetworkRule> {
        let target = prop_oneof![
            Just(NetworkTarget::Any),
            "[a-z][a-z0-9]{0,8}(\\.[a-z][a-z0-9]{0,8}){0,3}".prop_map(NetworkTarget::Name),
            "[a-z][a-z0-9]{0,8}(\\.[a-z][a-z0-9]{0,8}){0,3}".prop_map(NetworkTarget::Below),
            (any::<u32>(), 0_u8..=32).prop_map(|(bits, prefix)| {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                NetworkTarget::Block { address: std::net::Ipv4Addr::from(bits & mask).into(), prefix }
            }),
            (any::<u128>(), 0_u8..=128).prop_map(|(bits, prefix)| {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                // Not a mapped one.
                let bits = (bits | 1 << 127) & mask;
                NetworkTarget::Block { address: Ipv6Addr::from(bits).into(), prefix }
            }),
        ];
        let ports = proptest::collection::vec((1..u16::MAX, 0_u16..100), 0..3);
        (target, ports, 0..3).prop_map(|(target, ports, protocol)| NetworkRule {
            verdict: NetworkVerdict::Allow,
            target,
            protocol: [None, Some(NetworkProtocol::Tcp), Some(NetworkProtocol::Udp)]
                [usize::try_from(protocol).unwrap()],
            ports: ports.into_iter().map(|(first, more)| (first, first.saturating_add(more))).collect(),
        })
    }

    proptest! {
        #[test]
        fn a_rule_that_is_printed_is_read_again(rule in any_rule()) {
            prop_assert_eq!(read(&rule.to_string()).unwrap(), rule);
        }

        #[test]
        fn no_text_is_too_strange_to_be_refused(text in "\\PC{0,60}") {
            drop(read(&text));
        }
    }
}
