//! The network of a box: what it may reach, and the ports of the host that lead into it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use boxlite_control as control;
use boxlite_control::{LinkSpec, NetworkPreset, NetworkProtocol, NetworkRule, NetworkVerdict};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// The most rules of a policy, and the most published ports of a box.
const RULES: usize = 100_000;
const PORTS: usize = 1024;
/// The most name servers of a box.
const SERVERS: usize = 8;

/// The network of a box.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NetworkSpec {
    /// The box has a network device.
    Enabled {
        /// The only places that it may reach: names, `*.name`, addresses, blocks such as `10.0.0.0/8`, each with ports and a
        /// protocol where wanted (`name:443`, `1.2.3.4:53/udp`). Empty: the public Internet.
        allow_net: Vec<String>,
    },
    /// The box has a network device, and may reach what this policy allows.
    Policy(NetworkPolicy),
    /// The box has no network device. The default.
    #[default]
    Disabled,
}

/// What a box may reach: the first rule that fits decides, and the base when none does.
///
/// ```
/// use boxlite::NetworkPolicy;
///
/// let policy = NetworkPolicy::public().deny("*.tracker.example")?.allow("10.0.0.0/8:5432/tcp")?;
/// assert_eq!(policy.rules().count(), 2);
/// # Ok::<(), boxlite::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkPolicy(control::NetworkPolicy);

impl NetworkPolicy {
    /// Nothing but what rules allow.
    pub fn none() -> Self {
        Self::of(NetworkPreset::None)
    }

    /// The public Internet, without what is private, loopback, link-local or a cloud's metadata. The default.
    pub fn public() -> Self {
        Self::of(NetworkPreset::Public)
    }

    /// Everything that the host reaches, and the host itself as `host.boxlite.internal`.
    pub fn all() -> Self {
        Self::of(NetworkPreset::All)
    }

    fn of(preset: NetworkPreset) -> Self {
        Self(control::NetworkPolicy { preset, rules: Vec::new() })
    }

    /// Adds a rule that allows something, behind those that are there.
    ///
    /// A rule is `TARGET[:PORTS][/PROTOCOL]`: a name, `*.name`, an address, a block, or `*`; `443`, `8000-8010` or several
    /// with commas; `tcp`, `udp` or `icmp`. An IPv6 address stands in brackets when ports follow.
    ///
    /// # Errors
    /// When it is no rule.
    pub fn allow(self, rule: &str) -> Result<Self> {
        self.add(NetworkVerdict::Allow, rule)
    }

    /// Adds a rule that denies something, behind those that are there.
    ///
    /// # Errors
    /// When it is no rule.
    pub fn deny(self, rule: &str) -> Result<Self> {
        self.add(NetworkVerdict::Deny, rule)
    }

    fn add(mut self, verdict: NetworkVerdict, rule: &str) -> Result<Self> {
        let invalid = |error| {
            Error::new(ErrorKind::InvalidArgument, "the network's policy cannot be")
                .with_source(error)
                .with_hint(
                    "a rule is a name, *.name, an address, a block or *, then :ports and /protocol if wanted",
                )
        };
        self.0.rules.push(NetworkRule::parse(verdict, rule).map_err(invalid)?);
        if self.0.rules.len() > RULES {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("a policy has at most {RULES} rules"),
            ));
        }
        Ok(self)
    }

    /// What is allowed where no rule says anything: `none`, `public` or `all`.
    pub fn base(&self) -> &'static str {
        self.0.preset.name()
    }

    /// The rules, each with whether it allows, in their order.
    pub fn rules(&self) -> impl Iterator<Item = (bool, String)> {
        self.0.rules.iter().map(|rule| (rule.verdict == NetworkVerdict::Allow, rule.to_string()))
    }
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PortProtocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl PortProtocol {
    /// `tcp` or `udp`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A port of the host that leads into a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PortSpec {
    /// Where the host listens. Default 127.0.0.1: whoever wants the port on other interfaces says so.
    pub host_ip: IpAddr,
    /// The port there. `None` or 0: one that the kernel chooses at each start.
    pub host_port: Option<u16>,
    /// The port in the box, 1 to 65535.
    pub guest_port: u16,
    /// Default TCP.
    pub protocol: PortProtocol,
}

impl PortSpec {
    /// A TCP port of the host's loopback that leads to one in the box.
    pub fn tcp(host_port: u16, guest_port: u16) -> Self {
        let host_ip = Ipv4Addr::LOCALHOST.into();
        Self { host_ip, host_port: Some(host_port), guest_port, protocol: PortProtocol::Tcp }
    }

    /// A UDP port of the host's loopback that leads to one in the box.
    pub fn udp(host_port: u16, guest_port: u16) -> Self {
        Self { protocol: PortProtocol::Udp, ..Self::tcp(host_port, guest_port) }
    }

    /// Listens at this address instead.
    #[must_use]
    pub fn on(mut self, host_ip: IpAddr) -> Self {
        self.host_ip = host_ip;
        self
    }
}

/// How fast a box may send and receive, in kilobits (1000 bits) a second. 0: as fast as it goes, which is the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkRateLimit {
    /// What leaves the box.
    pub tx_kbps: u64,
    /// What reaches the box.
    pub rx_kbps: u64,
}

/// A published port as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortInfo {
    /// Where the host listens; the port is 0 while the box does not run and the kernel is to choose.
    pub host: SocketAddr,
    /// The port in the box.
    pub guest_port: u16,
    /// TCP or UDP.
    pub protocol: PortProtocol,
}

impl PortInfo {
    pub(crate) fn new(port: &control::PortForward) -> Self {
        let protocol = match port.protocol {
            NetworkProtocol::Udp => PortProtocol::Udp,
            NetworkProtocol::Tcp | NetworkProtocol::Icmp => PortProtocol::Tcp,
        };
        Self { host: port.host, guest_port: port.guest, protocol }
    }
}

/// What goes over the network of a running box, since its network was started last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkInfo {
    /// The policy in force.
    pub policy: NetworkPolicy,
    /// Bytes of frames that left the box.
    pub tx_bytes: u64,
    /// Frames that left the box.
    pub tx_packets: u64,
    /// Bytes of frames that reached the box.
    pub rx_bytes: u64,
    /// Frames that reached the box.
    pub rx_packets: u64,
    /// Frames that were dropped.
    pub dropped: u64,
    /// Connections that were made.
    pub tcp_connections: u64,
    /// Connections that could not be made.
    pub tcp_errors: u64,
    /// What the policy has refused.
    pub denied: u64,
    /// How often the process that is the network had to be started again.
    pub restarts: u64,
    /// The flows that there are, at most 1000.
    pub flows: Vec<NetworkFlow>,
}

/// A connection, or datagrams between the box and one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkFlow {
    /// `tcp`, `udp` or `icmp`.
    pub protocol: &'static str,
    /// It came in through a published port.
    pub inbound: bool,
    /// The box's port; 0 for ICMP.
    pub guest_port: u16,
    /// The other end, as the box sees it.
    pub peer: SocketAddr,
    /// The name that has led there, if one is known.
    pub name: Option<String>,
    /// Bytes of content that left the box.
    pub tx_bytes: u64,
    /// Bytes of content that reached the box.
    pub rx_bytes: u64,
    /// `connecting`, `open` or `closing`.
    pub state: String,
}

impl NetworkInfo {
    pub(crate) fn new(stats: control::NetStats, policy: control::NetworkPolicy) -> Self {
        let flow = |flow: control::FlowInfo| NetworkFlow {
            protocol: flow.protocol.name(),
            inbound: flow.inbound,
            guest_port: flow.guest_port,
            peer: flow.peer,
            name: flow.name,
            tx_bytes: flow.tx_bytes,
            rx_bytes: flow.rx_bytes,
            state: flow.state,
        };
        Self {
            policy: NetworkPolicy(policy),
            tx_bytes: stats.tx_bytes,
            tx_packets: stats.tx_frames,
            rx_bytes: stats.rx_bytes,
            rx_packets: stats.rx_frames,
            dropped: stats.dropped,
            tcp_connections: stats.tcp_opened,
            tcp_errors: stats.tcp_failed,
            denied: stats.denied,
            restarts: stats.restarts,
            flows: stats.flows.into_iter().map(flow).collect(),
        }
    }
}

/// The network of a box, as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkRecord(pub(crate) control::NetworkSpec);

impl NetworkRecord {
    pub(crate) fn policy(&self) -> NetworkPolicy {
        NetworkPolicy(self.0.policy.clone())
    }

    pub(crate) fn set_policy(&mut self, policy: NetworkPolicy) {
        self.0.policy = policy.0;
    }
}

impl NetworkPolicy {
    pub(crate) fn into_control(self) -> control::NetworkPolicy {
        self.0
    }
}

impl NetworkSpec {
    /// The policy; `None` when there is no network.
    ///
    /// # Errors
    /// When a rule is none.
    pub(crate) fn policy(&self) -> Result<Option<NetworkPolicy>> {
        match self {
            Self::Disabled => Ok(None),
            Self::Policy(policy) => Ok(Some(policy.clone())),
            Self::Enabled { allow_net } if allow_net.is_empty() => Ok(Some(NetworkPolicy::public())),
            Self::Enabled { allow_net } => {
                allow_net.iter().try_fold(NetworkPolicy::none(), |policy, rule| policy.allow(rule)).map(Some)
            }
        }
    }
}

/// What options say of a network.
pub(crate) fn resolve(
    spec: &NetworkSpec,
    ports: &[PortSpec],
    rate: NetworkRateLimit,
    capture: Option<&PathBuf>,
    dns: &[SocketAddr],
) -> Result<Option<NetworkRecord>> {
    let invalid = |message: String| Err(Error::new(ErrorKind::InvalidArgument, message));
    let Some(policy) = spec.policy()? else {
        if !ports.is_empty() || rate != NetworkRateLimit::default() || capture.is_some() || !dns.is_empty() {
            let error = Error::new(
                ErrorKind::InvalidArgument,
                "a box without a network has no ports, rates or frames",
            );
            return Err(
                error.with_hint("give it a network: --network public, or none for published ports alone")
            );
        }
        return Ok(None);
    };
    if ports.len() > PORTS {
        return invalid(format!("a box has at most {PORTS} published ports"));
    }
    let mut forwards: Vec<control::PortForward> = Vec::new();
    for port in ports {
        if port.guest_port == 0 {
            return invalid("the port in the box is 0".into());
        }
        let host = SocketAddr::new(port.host_ip, port.host_port.unwrap_or(0));
        let protocol = match port.protocol {
            PortProtocol::Tcp => NetworkProtocol::Tcp,
            PortProtocol::Udp => NetworkProtocol::Udp,
        };
        let same = |other: &control::PortForward| (other.host, other.protocol) == (host, protocol);
        if host.port() != 0 && forwards.iter().any(same) {
            return invalid(format!("{host}/{} is published twice", port.protocol.name()));
        }
        forwards.push(control::PortForward { host, guest: port.guest_port, protocol });
    }
    if let Some(path) = capture.filter(|path| !path.is_absolute()) {
        return invalid(format!("the file for captured frames, {}, is not an absolute path", path.display()));
    }
    if dns.len() > SERVERS {
        return invalid(format!("a box has at most {SERVERS} name servers"));
    }
    let resolvers = dns.to_vec();
    let rate = control::RateLimit { tx_kbps: rate.tx_kbps, rx_kbps: rate.rx_kbps };
    let capture = capture.cloned();
    let spec = control::NetworkSpec { policy: policy.0, ports: forwards, rate, capture, resolvers };
    Ok(Some(NetworkRecord(spec)))
}

/// The name by which a box reaches its host, where its policy lets it.
pub const HOST_NAME: &str = LinkSpec::HOST_NAME;

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(spec: &NetworkSpec) -> (String, Vec<(bool, String)>) {
        let policy = spec.policy().unwrap().unwrap();
        (policy.base().to_owned(), policy.rules().collect())
    }

    #[test]
    fn a_list_of_places_allows_those_and_nothing_else() {
        let open = NetworkSpec::Enabled { allow_net: vec![] };
        assert_eq!(rules(&open), ("public".into(), vec![]));
        let list = NetworkSpec::Enabled { allow_net: vec!["*.example.com".into(), "10.0.0.0/8".into()] };
        let expected = vec![(true, "*.example.com".into()), (true, "10.0.0.0/8".into())];
        assert_eq!(rules(&list), ("none".into(), expected));
        assert_eq!(NetworkSpec::default().policy().unwrap(), None);
    }

    #[test]
    fn a_rule_that_is_none_is_named() {
        let error = NetworkPolicy::none().allow("a b").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.report().contains("\"a b\" is no name of a host"), "{}", error.report());
    }

    fn resolved(spec: &NetworkSpec, ports: &[PortSpec]) -> Result<Option<NetworkRecord>> {
        resolve(spec, ports, NetworkRateLimit::default(), None, &[])
    }

    #[test]
    fn ports_are_checked_before_anything_is_made() {
        let on = NetworkSpec::Policy(NetworkPolicy::none());
        let record = resolved(&on, &[PortSpec::tcp(8080, 80), PortSpec::udp(8080, 80)]).unwrap().unwrap();
        assert_eq!(record.0.ports[0].host, "127.0.0.1:8080".parse().unwrap());
        let twice = [PortSpec::tcp(8080, 80), PortSpec::tcp(8080, 81)];
        assert!(
            resolved(&on, &twice).unwrap_err().to_string().contains("127.0.0.1:8080/tcp is published twice")
        );
        let any = PortSpec { host_port: None, ..PortSpec::tcp(0, 80) };
        assert!(resolved(&on, &[any, any]).is_ok());
        assert!(resolved(&on, &[PortSpec::tcp(1, 0)]).is_err());
        assert!(resolved(&NetworkSpec::Disabled, &[PortSpec::tcp(1, 1)]).unwrap_err().hint().is_some());
        let relative = Some(PathBuf::from("frames.pcap"));
        assert!(resolve(&on, &[], NetworkRateLimit::default(), relative.as_ref(), &[]).is_err());
    }
}
