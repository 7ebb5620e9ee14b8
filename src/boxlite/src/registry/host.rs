//! The host of a registry: `name`, `name:port` or `[address]:port`, and the names that Docker Hub has.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// What image names call Docker Hub.
const DOCKER_HUB: &str = "docker.io";
/// Where Docker Hub's registry listens.
const DOCKER_HUB_REGISTRY: &str = "registry-1.docker.io";
/// What `docker login` calls Docker Hub, for historical reasons.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The longest name that the DNS has.
const NAME_MAX: usize = 253;

/// A host with an optional port, in lower case. Safe within a URL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Host {
    name: String,
    port: Option<u16>,
}

impl Host {
    /// `None` for what is no host.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (name, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, rest) = rest.split_once(']')?;
                let address: Ipv6Addr = address.parse().ok()?;
                let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
                (format!("[{address}]"), port)
            }
            None => match text.split_once(':') {
                Some((name, port)) => (name.to_ascii_lowercase(), Some(port)),
                None => (text.to_ascii_lowercase(), None),
            },
        };
        if !name.starts_with('[') && !is_name(&name) {
            return None;
        }
        let port = match port {
            Some(port) if port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(port.parse::<u16>().ok().filter(|port| *port > 0)?)
            }
            Some(_) => return None,
            None => None,
        };
        let name = match (name.as_str(), port) {
            ("index.docker.io" | DOCKER_HUB_REGISTRY, None) => DOCKER_HUB.to_owned(),
            _ => name,
        };
        Some(Self { name, port })
    }

    pub(super) fn is_docker_hub(&self) -> bool {
        self.name == DOCKER_HUB && self.port.is_none()
    }

    /// Whether it is this machine, by its name alone.
    pub(super) fn is_loopback(&self) -> bool {
        is_loopback(&self.name)
    }

    /// Host and port to connect to.
    pub(super) fn authority(&self) -> String {
        if self.is_docker_hub() { DOCKER_HUB_REGISTRY.into() } else { self.to_string() }
    }

    /// Its key in files and helpers of credentials.
    pub(super) fn key(&self) -> String {
        if self.is_docker_hub() { DOCKER_HUB_KEY.into() } else { self.to_string() }
    }

    /// The host that a key of a file of credentials is about. Keys of a repository of a host are about none.
    pub(super) fn of_key(key: &str) -> Option<Self> {
        let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let whole = matches!(path.trim_end_matches('/'), "" | "v1" | "v2");
        whole.then(|| Self::parse(host)).flatten()
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// `localhost`, 127.0.0.0/8 or ::1, the last with or without brackets.
pub(super) fn is_loopback(name: &str) -> bool {
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    match address.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    }
}

fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    // A last label of digits is an address, which has one spelling here: URLs know many.
    let numeric = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    text.len() <= NAME_MAX && text.split('.').all(label) && (!numeric || text.parse::<IpAddr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_hub_has_one_name_whatever_it_is_called() {
        for name in ["docker.io", "index.docker.io", "registry-1.docker.io", "Docker.IO"] {
            let host = Host::parse(name).unwrap();
            assert_eq!(host.to_string(), "docker.io");
            assert_eq!(host.authority(), "registry-1.docker.io");
            assert_eq!(host.key(), "https://index.docker.io/v1/");
        }
        assert_eq!(Host::of_key("https://index.docker.io/v1/"), Host::parse("docker.io"));
    }

    #[test]
    fn hosts_read_back_as_themselves() {
        for text in ["a", "ghcr.io", "a-b.c:65535", "127.0.0.1:5000", "[::1]:5000", "[::1]", "localhost"] {
            assert_eq!(Host::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_would_change_the_meaning_of_a_url_is_no_host() {
        for text in [
            "",
            "a/b",
            "a@b",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "a:1:2",
            "a b",
            "a#",
            "a?",
            "a\\b",
            "-a",
            "a-",
            "a..b",
            ".a",
            "é",
            "::1",
            "[::1",
            "[::1]5",
            "[a]",
            "https://a",
            "127.1",
            "1",
            "0x7f.1.1.1.1",
            "a%41",
            "a.1",
        ] {
            assert_eq!(Host::parse(text), None, "{text}");
        }
        assert_eq!(Host::parse(&"a.".repeat(200)), None);
    }

    #[test]
    fn this_machine_is_known_by_its_names() {
        for text in ["localhost", "LOCALHOST:1", "127.0.0.1", "127.255.0.3:80", "[::1]:5000"] {
            assert!(Host::parse(text).unwrap().is_loopback(), "{text}");
        }
        for text in ["localhost.example", "128.0.0.1", "[::2]", "local", "127.0.0.1.example"] {
            assert!(!Host::parse(text).unwrap().is_loopback(), "{text}");
        }
    }

    #[test]
    fn keys_of_repositories_are_about_no_host() {
        for key in ["h:1", "https://h:1", "http://h:1/", "https://h:1/v2/", "h:1/v1"] {
            assert_eq!(Host::of_key(key), Host::parse("h:1"), "{key}");
        }
        for key in ["h:1/team", "https://h:1/v2/team", "", "https://"] {
            assert_eq!(Host::of_key(key), None, "{key}");
        }
    }
}
