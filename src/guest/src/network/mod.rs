//! The machine's network, as its host describes it.
//!
//! The interface is found by its hardware address, gets its addresses, and comes up; who else is on the link is known from
//! the start, so nothing has to be asked for. The container shares this network, and without `CAP_NET_ADMIN` it cannot
//! change it.

mod netlink;

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use boxlite_portal::v1;

use netlink::Netlink;

/// The most entries of a list.
const MOST: usize = 64;
/// Where the kernel tells of its interfaces.
const INTERFACES: &str = "/sys/class/net";

/// What a host says that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the network cannot be: {0}")]
pub struct BadNetwork(&'static str);

/// A network that could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The machine has no such interface.
    #[error("the machine has no network interface with the address {0}")]
    NoInterface(String),
    /// The kernel refuses.
    #[error("cannot {what}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

/// A network, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    mac: [u8; 6],
    mtu: u32,
    addresses: Vec<(IpAddr, u8)>,
    routers: Vec<IpAddr>,
    neighbors: Vec<IpAddr>,
    neighbor_mac: [u8; 6],
    /// What the container's processes know of names.
    pub names: Names,
}

/// What a container knows of names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Who is asked.
    pub nameservers: Vec<IpAddr>,
    /// What is tried behind names without dots.
    pub search: Vec<String>,
    /// Who is known without asking.
    pub hosts: Vec<(IpAddr, Vec<String>)>,
    /// The machine's own address.
    pub own: Option<IpAddr>,
}

impl Network {
    /// Reads what a host says.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn read(network: &v1::Network) -> Result<Self, BadNetwork> {
        let lists = [
            network.addresses.len(),
            network.routers.len(),
            network.nameservers.len(),
            network.search.len(),
            network.hosts.len(),
            network.neighbors.len(),
        ];
        if lists.into_iter().any(|length| length > MOST) {
            return Err(BadNetwork("a list is too long"));
        }
        let mac = |bytes: &[u8]| {
            <[u8; 6]>::try_from(bytes).map_err(|_| BadNetwork("a hardware address has not six bytes"))
        };
        let addresses =
            |list: &[Vec<u8>]| list.iter().map(|bytes| address(bytes)).collect::<Result<Vec<_>, _>>();
        let mut own = Vec::new();
        for one in &network.addresses {
            let address = address(&one.address)?;
            let longest = if address.is_ipv4() { 32 } else { 128 };
            let prefix = u8::try_from(one.prefix).ok().filter(|prefix| *prefix <= longest);
            own.push((address, prefix.ok_or(BadNetwork("a prefix is longer than its address"))?));
        }
        let mut hosts = Vec::new();
        for host in &network.hosts {
            if host.names.len() > MOST || !host.names.iter().all(|name| is_name(name)) {
                return Err(BadNetwork("a host has a name that is none"));
            }
            hosts.push((address(&host.address)?, host.names.clone()));
        }
        if !network.search.iter().all(|name| is_name(name)) {
            return Err(BadNetwork("a search domain is no name"));
        }
        if !(68..=65535).contains(&network.mtu) {
            return Err(BadNetwork("the size of packets is not 68 to 65535"));
        }
        Ok(Self {
            mac: mac(&network.mac)?,
            mtu: network.mtu,
            names: Names {
                nameservers: addresses(&network.nameservers)?,
                search: network.search.clone(),
                hosts,
                own: own.first().map(|(address, _)| *address),
            },
            addresses: own,
            routers: addresses(&network.routers)?,
            neighbors: addresses(&network.neighbors)?,
            neighbor_mac: mac(&network.neighbor_mac)?,
        })
    }

    /// Sets it up.
    ///
    /// # Errors
    /// When the machine has no such interface, or the kernel refuses.
    pub fn bring_up(&self) -> Result<(), NetworkError> {
        let refused = |what| move |source| NetworkError::Refused { what, source };
        let (name, index) =
            find(Path::new(INTERFACES), self.mac).ok_or_else(|| NetworkError::NoInterface(text(self.mac)))?;
        // A kernel without IPv6 has no such folder, and then no such addresses.
        let v6 = Path::new("/proc/sys/net/ipv6/conf").join(&name);
        let has_v6 = v6.exists();
        if has_v6 {
            // The addresses are given, and nobody else can have them: there is nothing to find out or to wait for.
            for (setting, value) in [("accept_ra", "0"), ("accept_dad", "0"), ("dad_transmits", "0")] {
                fs::write(v6.join(setting), value).map_err(refused("set IPv6 up"))?;
            }
        }
        let here = |address: &IpAddr| has_v6 || address.is_ipv4();
        let mut netlink = Netlink::open().map_err(refused("talk to the kernel about its network"))?;
        netlink.bring_up(index, self.mtu).map_err(refused("bring the interface up"))?;
        for (address, prefix) in self.addresses.iter().filter(|(address, _)| here(address)) {
            netlink.add_address(index, *address, *prefix).map_err(refused("add an address"))?;
        }
        for address in self.neighbors.iter().filter(|address| here(address)) {
            netlink.add_neighbor(index, *address, self.neighbor_mac).map_err(refused("add a neighbour"))?;
        }
        for router in self.routers.iter().filter(|address| here(address)) {
            netlink.add_route(index, *router).map_err(refused("add a route"))?;
        }
        Ok(())
    }
}

fn address(bytes: &[u8]) -> Result<IpAddr, BadNetwork> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(octets).into());
    }
    let octets =
        <[u8; 16]>::try_from(bytes).map_err(|_| BadNetwork("an address has neither 4 nor 16 bytes"))?;
    Ok(Ipv6Addr::from(octets).into())
}

/// Whether it can stand in /etc/hosts and /etc/resolv.conf without being something else there.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (1..=253).contains(&name.len()) && name.bytes().all(allowed)
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The name and the number of the interface with this hardware address.
fn find(interfaces: &Path, mac: [u8; 6]) -> Option<(String, i32)> {
    let wanted = text(mac);
    for entry in fs::read_dir(interfaces).ok()?.flatten() {
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if read("address").trim() == wanted
            && let Ok(index) = read("ifindex").trim().parse()
            && let Ok(name) = entry.file_name().into_string()
        {
            return Some((name, index));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> v1::Network {
        v1::Network {
            mac: vec![2, 0xb0, 0x0c, 0, 0, 2],
            mtu: 65520,
            addresses: vec![v1::Address { address: vec![192, 168, 127, 2], prefix: 24 }],
            routers: vec![vec![192, 168, 127, 1]],
            nameservers: vec![vec![192, 168, 127, 1]],
            search: vec!["corp.example".into()],
            hosts: vec![v1::Host {
                address: vec![192, 168, 127, 254],
                names: vec!["host.boxlite.internal".into()],
            }],
            neighbors: vec![vec![0; 16]],
            neighbor_mac: vec![2, 0xb0, 0x0c, 0, 0, 1],
        }
    }

    #[test]
    fn what_a_host_says_is_read() {
        let read = Network::read(&network()).unwrap();
        assert_eq!(read.names.own, Some("192.168.127.2".parse().unwrap()));
        assert_eq!(read.names.hosts[0].1, ["host.boxlite.internal"]);
        assert_eq!(read.neighbors, ["::".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |change: &dyn Fn(&mut v1::Network)| {
            let mut network = network();
            change(&mut network);
            Network::read(&network).unwrap_err();
        };
        refused(&|network| network.mac.push(0));
        refused(&|network| network.neighbor_mac.clear());
        refused(&|network| network.mtu = 0);
        refused(&|network| network.mtu = 65536);
        refused(&|network| network.addresses[0].prefix = 33);
        refused(&|network| network.addresses[0].address.clear());
        refused(&|network| network.routers = vec![vec![1; 5]]);
        refused(&|network| network.routers = vec![vec![1; 4]; MOST + 1]);
        refused(&|network| network.search = vec!["a\nnameserver 6.6.6.6".into()]);
        refused(&|network| network.hosts[0].names = vec!["a b".into()]);
        refused(&|network| network.hosts[0].names = vec![String::new()]);
    }

    #[test]
    fn an_interface_is_found_by_its_hardware_address() {
        let folder = tempfile::tempdir().unwrap();
        for (name, mac, index) in
            [("lo", "00:00:00:00:00:00\n", "1\n"), ("eth0", "02:b0:0c:00:00:02\n", "2\n")]
        {
            let interface = folder.path().join(name);
            fs::create_dir(&interface).unwrap();
            fs::write(interface.join("address"), mac).unwrap();
            fs::write(interface.join("ifindex"), index).unwrap();
        }
        assert_eq!(find(folder.path(), [2, 0xb0, 0x0c, 0, 0, 2]), Some(("eth0".to_owned(), 2)));
        assert_eq!(find(folder.path(), [2, 0xb0, 0x0c, 0, 0, 3]), None);
    }
}
