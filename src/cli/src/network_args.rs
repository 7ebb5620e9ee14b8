//! The part of the command line that is about networks.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use boxlite::{NetworkPolicy, NetworkSpec, PortProtocol, PortSpec};
use clap::{Args, Subcommand, ValueEnum};

use crate::args::FormatArgs;
use crate::exit::Failure;

/// What a box may reach.
#[derive(Debug, Args)]
pub(crate) struct NetworkArgs {
    /// What the box may reach beyond its rules: nothing, the public Internet, or all that the host reaches. `enabled` is
    /// `public`; `disabled`, the default, is a box without a network device
    #[arg(long, value_enum, value_name = "REACH")]
    pub(crate) network: Option<Reach>,
    /// Allow the box to reach this: a name, *.name, an address, a block or *, then :ports and /protocol if wanted. Without
    /// --network it may reach nothing else. May be given several times
    #[arg(long, value_name = "RULE")]
    pub(crate) allow_net: Vec<String>,
    /// Deny it to the box. These rules come before those that allow. May be given several times
    #[arg(long, value_name = "RULE")]
    pub(crate) deny_net: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Reach {
    /// A network device, and nothing but what rules allow
    None,
    /// The public Internet
    Public,
    /// Everything that the host reaches, and the host
    All,
    /// The same as public
    Enabled,
    /// No network device
    Disabled,
}

impl NetworkArgs {
    /// What was asked for, if anything was.
    pub(crate) fn spec(&self) -> Result<Option<NetworkSpec>, Failure> {
        let no_rules = self.allow_net.is_empty() && self.deny_net.is_empty();
        let base = match self.network {
            None if no_rules => return Ok(None),
            Some(Reach::Disabled) if no_rules => return Ok(Some(NetworkSpec::Disabled)),
            Some(Reach::Disabled) => {
                return Err(Failure::Told("rules need a network: give another --network, or none".into()));
            }
            Some(Reach::None) => NetworkPolicy::none(),
            Some(Reach::All) => NetworkPolicy::all(),
            Some(Reach::Public | Reach::Enabled) => NetworkPolicy::public(),
            None if self.allow_net.is_empty() => NetworkPolicy::public(),
            None => NetworkPolicy::none(),
        };
        let denied = self.deny_net.iter().try_fold(base, |policy, rule| policy.deny(rule))?;
        let policy = self.allow_net.iter().try_fold(denied, |policy, rule| policy.allow(rule))?;
        Ok(Some(NetworkSpec::Policy(policy)))
    }
}

/// `-p [IP:][HOST:]BOX[/PROTOCOL]`, with ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ports(pub(crate) Vec<PortSpec>);

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{text}` publishes no port: {why}");
        let (rest, protocol) = match text.rsplit_once('/') {
            None => (text, PortProtocol::Tcp),
            Some((rest, "tcp")) => (rest, PortProtocol::Tcp),
            Some((rest, "udp")) => (rest, PortProtocol::Udp),
            Some(_) => return Err(wrong("a protocol is tcp or udp")),
        };
        // An IPv6 address stands in brackets.
        let (ip, ports) = if let Some(rest) = rest.strip_prefix('[') {
            let (ip, ports) = rest.split_once("]:").ok_or_else(|| wrong("`]:` ends an IPv6 address"))?;
            (Some(ip), ports)
        } else {
            match rest.split(':').count() {
                3 => rest.split_once(':').map_or((None, rest), |(ip, ports)| (Some(ip), ports)),
                _ => (None, rest),
            }
        };
        let ip = match ip {
            None => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Some(ip) => ip.parse().map_err(|_| wrong("there is no address before the ports"))?,
        };
        let (host, guest) = match ports.split_once(':') {
            Some((host, guest)) => (Some(host), guest),
            None => (None, ports),
        };
        let guest = range(guest).filter(|(first, _)| *first > 0);
        let (first, last) = guest.ok_or_else(|| wrong("write [IP:]HOST:BOX[/udp], ports from 1 to 65535"))?;
        let host = match host {
            None | Some("" | "0") => None,
            Some(host) => Some(range(host).ok_or_else(|| wrong("the port of the host is none"))?),
        };
        if host.is_some_and(|(low, high)| high - low != last - first) {
            return Err(wrong("the two ranges are of different lengths"));
        }
        let spec = |offset: u16| {
            let guest = first + offset;
            let spec = match protocol {
                PortProtocol::Udp => PortSpec::udp(0, guest),
                _ => PortSpec::tcp(0, guest),
            };
            let mut spec = spec.on(ip);
            spec.host_port = host.map(|(low, _)| low + offset);
            spec
        };
        Ok(Self((0..=last - first).map(spec).collect()))
    }
}

/// `ADDRESS[:PORT]`
pub(crate) fn name_server(text: &str) -> Result<SocketAddr, String> {
    let plain = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53));
    plain.or_else(|_| text.parse()).map_err(|_| format!("`{text}` is no address"))
}

fn range(text: &str) -> Option<(u16, u16)> {
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| digits)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    port(first).zip(port(last)).filter(|(first, last)| first <= last)
}

#[derive(Debug, Args)]
pub(crate) struct PortArgs {
    #[command(flatten)]
    pub(crate) format: FormatArgs,
    /// Name, id, or unique start of an id
    #[arg(value_name = "BOX")]
    pub(crate) target: String,
    /// Only this port of the box: PORT or PORT/udp
    #[arg(value_name = "PORT")]
    pub(crate) port: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Change what a box may reach; in a running box it counts at once
    Update(NetworkUpdateArgs),
    /// Show what a running box may reach, and what goes over its network
    Inspect(NetworkInspectArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NetworkUpdateArgs {
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    /// Name, id, or unique start of an id
    #[arg(value_name = "BOX")]
    pub(crate) target: String,
}

#[derive(Debug, Args)]
pub(crate) struct NetworkInspectArgs {
    #[command(flatten)]
    pub(crate) format: FormatArgs,
    /// Name, id, or unique start of an id
    #[arg(value_name = "BOX")]
    pub(crate) target: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> Vec<String> {
        let shown = |port: &PortSpec| {
            let host = port.host_port.map_or("any".to_owned(), |port| port.to_string());
            format!("{} {host} {} {}", port.host_ip, port.guest_port, port.protocol.name())
        };
        text.parse::<Ports>().unwrap().0.iter().map(shown).collect()
    }

    #[test]
    fn ports_are_written_as_for_docker() {
        assert_eq!(ports("8080:80"), ["127.0.0.1 8080 80 tcp"]);
        assert_eq!(ports("80"), ["127.0.0.1 any 80 tcp"]);
        assert_eq!(ports("0:80"), ["127.0.0.1 any 80 tcp"]);
        assert_eq!(ports("0.0.0.0:53:53/udp"), ["0.0.0.0 53 53 udp"]);
        assert_eq!(ports("127.0.0.1::80"), ["127.0.0.1 any 80 tcp"]);
        assert_eq!(ports("[::1]:8080:80"), ["::1 8080 80 tcp"]);
        assert_eq!(ports("8000-8001:80-81"), ["127.0.0.1 8000 80 tcp", "127.0.0.1 8001 81 tcp"]);
    }

    #[test]
    fn what_publishes_nothing_is_refused() {
        for text in [
            "",
            "x",
            "80:",
            "0",
            "80:0",
            "65536",
            "80/sctp",
            "1.2.3:80:80",
            "8000-8002:80-81",
            "81-80",
            "[::1:80:80",
        ] {
            assert!(text.parse::<Ports>().unwrap_err().contains("publishes no port"), "{text}");
        }
    }

    fn spec(network: Option<Reach>, allow: &[&str], deny: &[&str]) -> Result<Option<NetworkSpec>, Failure> {
        let list = |rules: &[&str]| rules.iter().map(|rule| (*rule).to_owned()).collect();
        NetworkArgs { network, allow_net: list(allow), deny_net: list(deny) }.spec()
    }

    #[test]
    fn rules_without_a_base_mean_what_they_say() {
        let policy = |spec: Result<Option<NetworkSpec>, Failure>| match spec {
            Ok(Some(NetworkSpec::Policy(policy))) => {
                (policy.base(), policy.rules().map(|(allow, _)| allow).collect::<Vec<_>>())
            }
            _ => panic!("no policy"),
        };
        assert!(spec(None, &[], &[]).is_ok_and(|spec| spec.is_none()));
        assert_eq!(policy(spec(None, &["a.example"], &[])), ("none", vec![true]));
        assert_eq!(policy(spec(None, &[], &["a.example"])), ("public", vec![false]));
        assert_eq!(
            policy(spec(Some(Reach::All), &["a.example"], &["b.example"])),
            ("all", vec![false, true])
        );
        assert!(spec(Some(Reach::Disabled), &["a.example"], &[]).is_err());
        assert!(spec(None, &["a b"], &[]).is_err());
    }
}
