//! The network of a box: what it is made of, what its helper is told, and what the helper tells.
//!
//! The helper is `boxlite-shim net`, a process of its own. It gets a [`NetConfig`] as the first [`frame`](crate::frame) on
//! its standard input, and [`NetOrder`]s after it; it writes [`NetReport`]s to its standard output. The end of its standard
//! input is its end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The network of a box.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// What the box may reach.
    pub policy: NetworkPolicy,
    /// The ports of the host that lead into the box. The order is that of the caller.
    pub ports: Vec<PortForward>,
    /// How fast it may be.
    pub rate: RateLimit,
    /// Where every frame of the link is written, in the format of pcap; an existing file is replaced.
    pub capture: Option<PathBuf>,
    /// Where names are asked for; empty: where the host's resolv.conf says.
    pub resolvers: Vec<SocketAddr>,
}

/// What a box may reach: the first rule that fits decides, and the preset when none does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkPolicy {
    /// What is allowed beside the rules.
    pub preset: NetworkPreset,
    /// The rules, the first one first.
    pub rules: Vec<NetworkRule>,
}

/// What is allowed where no rule says anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkPreset {
    /// Nothing.
    None,
    /// The public Internet: every address that is not private, loopback, link-local, multicast, reserved, or a way to write
    /// one of those.
    #[default]
    Public,
    /// Everything that the host reaches, and the host itself by its alias.
    All,
}

impl NetworkPreset {
    /// A stable lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Public => "public",
            Self::All => "all",
        }
    }
}

/// One rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkRule {
    /// What becomes of what it fits.
    pub verdict: NetworkVerdict,
    /// Where to.
    pub target: NetworkTarget,
    /// Over what; `None`: over anything.
    pub protocol: Option<NetworkProtocol>,
    /// Ranges of ports, both ends included; empty: all of them. ICMP has none, and a rule with ports does not fit it.
    pub ports: Vec<(u16, u16)>,
}

/// What a rule decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkVerdict {
    /// Go on.
    Allow,
    /// Refuse.
    Deny,
}

/// Where a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkTarget {
    /// Everywhere.
    Any,
    /// The host of this name: lower case, without a dot at the end.
    Name(String),
    /// Every host below this name, but not the one of this name.
    Below(String),
    /// The addresses of a block: all that agree with `address` in the first `prefix` bits. The others of `address` are 0.
    Block {
        /// The first address.
        address: IpAddr,
        /// How many bits count: 0–32 for IPv4, 0–128 for IPv6.
        prefix: u8,
    },
}

/// What a flow is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6, of which only echo requests leave a box.
    Icmp,
}

impl NetworkProtocol {
    /// A stable lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

/// A port of the host that leads into a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortForward {
    /// Where the host listens; port 0: where the kernel chooses.
    pub host: SocketAddr,
    /// The port in the box.
    pub guest: u16,
    /// TCP or UDP.
    pub protocol: NetworkProtocol,
}

/// How fast a box may send and receive, in kilobits (1000 bits) of frames a second; 0: as fast as it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// What leaves the box.
    pub tx_kbps: u64,
    /// What reaches the box.
    pub rx_kbps: u64,
}

/// The Ethernet between a box and its gateway, and who is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkSpec {
    /// The largest IP packet in bytes, 1280–65520.
    pub mtu: u16,
    /// The guest's hardware address.
    pub guest_mac: [u8; 6],
    /// The gateway's, which is that of the host's alias, too.
    pub gateway_mac: [u8; 6],
    /// The guest.
    pub guest4: Ipv4Addr,
    /// The gateway, which also answers DNS.
    pub gateway4: Ipv4Addr,
    /// The host, as the guest calls it.
    pub host4: Ipv4Addr,
    /// The length of the network's prefix.
    pub prefix4: u8,
    /// As the IPv4 ones.
    pub guest6: Ipv6Addr,
    /// As the IPv4 ones.
    pub gateway6: Ipv6Addr,
    /// As the IPv4 ones.
    pub host6: Ipv6Addr,
    /// As the IPv4 ones.
    pub prefix6: u8,
}

impl Default for LinkSpec {
    /// The link that every box has: it is the only one on it, so all can be alike. The IPv6 prefix is one of RFC 4193.
    fn default() -> Self {
        let v6 = |host| Ipv6Addr::new(0xfd00, 0xb0, 0x0c51, 0x17e0, 0, 0, 0, host);
        Self {
            mtu: 65520,
            guest_mac: [0x02, 0xb0, 0x0c, 0, 0, 2],
            gateway_mac: [0x02, 0xb0, 0x0c, 0, 0, 1],
            guest4: Ipv4Addr::new(192, 168, 127, 2),
            gateway4: Ipv4Addr::new(192, 168, 127, 1),
            host4: Ipv4Addr::new(192, 168, 127, 254),
            prefix4: 24,
            guest6: v6(2),
            gateway6: v6(1),
            host6: v6(0xfe),
            prefix6: 64,
        }
    }
}

impl LinkSpec {
    /// The name by which a box reaches its host, if it may.
    pub const HOST_NAME: &str = "host.boxlite.internal";
    /// The name of the gateway.
    pub const GATEWAY_NAME: &str = "gateway.boxlite.internal";

    /// Whether the address belongs to the link, be somebody there or not.
    pub fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix4)).unwrap_or(0);
                u32::from(address) & mask == u32::from(self.guest4) & mask
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix6)).unwrap_or(0);
                u128::from(address) & mask == u128::from(self.guest6) & mask
            }
        }
    }

    /// Whether this is one of the gateway's own addresses.
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        address == IpAddr::V4(self.gateway4) || address == IpAddr::V6(self.gateway6)
    }

    /// Whether this is one of the host's alias.
    pub fn is_host(&self, address: IpAddr) -> bool {
        address == IpAddr::V4(self.host4) || address == IpAddr::V6(self.host6)
    }
}

/// What the helper is told first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// [`VERSION`](crate::VERSION) of whoever writes it.
    pub version: u32,
    /// The box, for the log.
    pub box_id: String,
    /// The network.
    pub network: NetworkSpec,
    /// The link.
    pub link: LinkSpec,
    /// Another helper had this link before, so the guest may be in the middle of a frame.
    pub resumed: bool,
}

/// What the helper is told later. Each order is answered by one report, in order; other reports may stand in between.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum NetOrder {
    /// Another policy, at once: flows that it does not allow are ended. Answered by [`NetReport::Done`].
    Policy(NetworkPolicy),
    /// Answered by [`NetReport::Stats`].
    Stats,
}

/// What the helper tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum NetReport {
    /// The first one: every port is bound. The ports are those of the specification, with the numbers that the kernel chose.
    Ready {
        /// The ports.
        ports: Vec<PortForward>,
    },
    /// The first and the last one: there is no network, and the causes, the first one first.
    Failed {
        /// The causes.
        messages: Vec<String>,
    },
    /// An order has been carried out.
    Done,
    /// An order was refused, and changed nothing.
    Refused {
        /// Why.
        message: String,
    },
    /// Counters, and the flows that there are.
    Stats(Box<NetStats>),
    /// The policy has refused something.
    Denied(Denial),
}

/// Something that a policy has refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// What it was; `None`: a name was asked for, or it was no packet of the box's own.
    pub protocol: Option<NetworkProtocol>,
    /// Where it went, if that is known.
    pub to: Option<SocketAddr>,
    /// The name that it was about, when there is one; escaped and bounded.
    pub host: Option<String>,
    /// Why, as a phrase.
    pub why: String,
    /// How many more were refused since the last one that was told.
    pub unreported: u64,
}

/// What went over a box's network since its helper was started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetStats {
    /// Bytes of frames that left the box.
    pub tx_bytes: u64,
    /// Frames that left the box.
    pub tx_frames: u64,
    /// Bytes of frames that reached the box.
    pub rx_bytes: u64,
    /// Frames that reached the box.
    pub rx_frames: u64,
    /// Frames that were dropped: malformed, spoofed, or more than there was room for.
    pub dropped: u64,
    /// Connections that were made, both ways.
    pub tcp_opened: u64,
    /// Connections that could not be made.
    pub tcp_failed: u64,
    /// What the policy refused.
    pub denied: u64,
    /// How often the helper had to be started again.
    pub restarts: u64,
    /// The flows that there are now, at most 1000.
    pub flows: Vec<FlowInfo>,
}

/// One flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowInfo {
    /// TCP, UDP or ICMP.
    pub protocol: NetworkProtocol,
    /// Whether it came in through a published port.
    pub inbound: bool,
    /// The guest's port; 0 for ICMP.
    pub guest_port: u16,
    /// The other end.
    pub peer: SocketAddr,
    /// The name that led there, if one is known.
    pub name: Option<String>,
    /// Bytes of content that left the box.
    pub tx_bytes: u64,
    /// Bytes of content that reached the box.
    pub rx_bytes: u64,
    /// What it is doing, such as `connecting` or `open`.
    pub state: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_knows_its_own_addresses() {
        let link = LinkSpec::default();
        for address in ["192.168.127.2", "192.168.127.99", "fd00:b0:c51:17e0::5"] {
            assert!(link.has(address.parse().unwrap()), "{address}");
        }
        for address in ["192.168.128.2", "10.0.0.1", "fd00:b0:c51:17e1::5", "::ffff:192.168.127.2"] {
            assert!(!link.has(address.parse().unwrap()), "{address}");
        }
        assert!(link.is_gateway(link.gateway6.into()) && !link.is_gateway(link.host4.into()));
    }

    #[test]
    fn what_is_sent_comes_back() {
        let rule = NetworkRule {
            verdict: NetworkVerdict::Deny,
            target: NetworkTarget::Block { address: "10.0.0.0".parse().unwrap(), prefix: 8 },
            protocol: Some(NetworkProtocol::Udp),
            ports: vec![(53, 53)],
        };
        let order = NetOrder::Policy(NetworkPolicy { preset: NetworkPreset::All, rules: vec![rule] });
        let text = serde_json::to_string(&order).unwrap();
        assert_eq!(serde_json::from_str::<NetOrder>(&text).unwrap(), order);
    }
}
