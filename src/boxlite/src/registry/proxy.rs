//! Which proxy a URL is reached through. Pure policy.

use std::net::IpAddr;

use reqwest::Url;

use super::error::RegistryError;
use super::host::is_loopback;
use super::settings::ImageRegistryProxy;

/// The most entries of a list of exceptions.
const EXCEPTIONS_MAX: usize = 1000;

/// Proxies and the exceptions from them.
#[derive(Default)]
pub(super) struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    direct: Vec<Direct>,
}

/// An exception: what it matches is reached directly.
#[derive(Debug, PartialEq, Eq)]
enum Direct {
    All,
    Network { address: IpAddr, bits: u8, port: Option<u16> },
    Domain { name: String, port: Option<u16> },
}

impl Proxies {
    /// The settings, or else what these variables say. `variable` gives the value of one of the environment.
    pub(super) fn new(
        settings: Option<&ImageRegistryProxy>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, RegistryError> {
        let from_environment = |name: &str| variable(name).or_else(|| variable(&name.to_uppercase()));
        let value = |name: &'static str, setting: fn(&ImageRegistryProxy) -> &Option<String>| match settings {
            Some(settings) => setting(settings).clone(),
            None => from_environment(name),
        };
        let http = value("http_proxy", |proxy| &proxy.http_proxy);
        let https = value("https_proxy", |proxy| &proxy.https_proxy);
        let direct = value("no_proxy", |proxy| &proxy.no_proxy).unwrap_or_default();
        Ok(Self {
            http: url("http_proxy", http)?,
            https: url("https_proxy", https)?,
            direct: exceptions(&direct)?,
        })
    }

    pub(super) fn are_none(&self) -> bool {
        self.http.is_none() && self.https.is_none()
    }

    /// The proxy for this URL; `None`: it is reached directly.
    pub(super) fn of(&self, url: &Url) -> Option<Url> {
        let proxy = if url.scheme() == "https" { &self.https } else { &self.http };
        let host = url.host_str()?;
        let port = url.port_or_known_default();
        let direct = is_loopback(host) || self.direct.iter().any(|direct| direct.matches(host, port));
        proxy.clone().filter(|_| !direct)
    }
}

impl Direct {
    /// `None` for an entry that makes no sense.
    fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::All);
        }
        if let Some((address, bits)) = text.split_once('/') {
            let (address, bits) = (address.parse::<IpAddr>().ok()?, bits.parse::<u8>().ok()?);
            return (bits <= width(address)).then_some(Self::Network { address, bits, port: None });
        }
        if let Ok(address) = unbracketed(text).parse() {
            return Some(Self::Network { address, bits: width(address), port: None });
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok()?)),
            None => (text, None),
        };
        if let Ok(address) = unbracketed(name).parse() {
            return Some(Self::Network { address, bits: width(address), port });
        }
        let name = name.strip_prefix('*').unwrap_or(name);
        let name = name.strip_prefix('.').unwrap_or(name).to_ascii_lowercase();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        (!name.is_empty() && name.bytes().all(plain)).then_some(Self::Domain { name, port })
    }

    fn matches(&self, host: &str, actual: Option<u16>) -> bool {
        match self {
            Self::All => true,
            Self::Network { address, bits, port } => {
                let Ok(host) = unbracketed(host).parse::<IpAddr>() else { return false };
                width(host) == width(*address)
                    && first_bits(host, *bits) == first_bits(*address, *bits)
                    && (port.is_none() || *port == actual)
            }
            Self::Domain { name, port } => {
                let host = host.to_ascii_lowercase();
                let below = host
                    .strip_suffix(name.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
                below && (port.is_none() || *port == actual)
            }
        }
    }
}

fn unbracketed(text: &str) -> &str {
    text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text)
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn first_bits(address: IpAddr, bits: u8) -> u128 {
    let (all, width) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    all.checked_shr(width - u32::from(bits)).unwrap_or(0)
}

/// The message never has the value in it, which may hold a password.
fn url(name: &str, value: Option<String>) -> Result<Option<Url>, RegistryError> {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(None) };
    let value = if value.contains("://") { value } else { format!("http://{value}") };
    let url =
        Url::parse(&value).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    match url {
        Some(url) => Ok(Some(url)),
        None => Err(RegistryError::settings(format!("{name} is no URL of an HTTP proxy"))),
    }
}

fn exceptions(list: &str) -> Result<Vec<Direct>, RegistryError> {
    let entries = list.split([',', ' ']).filter(|entry| !entry.is_empty());
    let direct: Option<Vec<_>> = entries.take(EXCEPTIONS_MAX + 1).map(Direct::parse).collect();
    match direct {
        Some(direct) if direct.len() <= EXCEPTIONS_MAX => Ok(direct),
        Some(_) => Err(RegistryError::settings(format!("no_proxy has more than {EXCEPTIONS_MAX} entries"))),
        None => Err(RegistryError::settings(
            "no_proxy has an entry that is no host name, address or network of addresses",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(no_proxy: &str) -> Proxies {
        let settings = ImageRegistryProxy {
            http_proxy: Some("plain.proxy:3128".into()),
            https_proxy: Some("https://u:p@tls.proxy".into()),
            no_proxy: Some(no_proxy.into()),
        };
        Proxies::new(Some(&settings), |name| panic!("{name} was read")).unwrap()
    }

    fn is_direct(no_proxy: &str, url: &str) -> bool {
        proxies(no_proxy).of(&Url::parse(url).unwrap()).is_none()
    }

    #[test]
    fn each_scheme_has_its_proxy() {
        let proxies = proxies("");
        let of = |url: &str| proxies.of(&Url::parse(url).unwrap()).unwrap().to_string();
        assert_eq!(of("http://a.example/x"), "http://plain.proxy:3128/");
        assert_eq!(of("https://a.example/x"), "https://u:p@tls.proxy/");
        assert!(Proxies::default().are_none() && !proxies.are_none());
    }

    #[test]
    fn this_machine_is_never_reached_through_a_proxy() {
        for url in ["http://127.0.0.1:5000/", "https://localhost/", "http://[::1]:1/"] {
            assert!(is_direct("", url), "{url}");
        }
    }

    #[test]
    fn exceptions_are_names_addresses_networks_and_ports() {
        for (no_proxy, url) in [
            ("*", "http://a.example"),
            ("example.com", "http://example.com"),
            ("example.com", "https://a.b.Example.com"),
            (".example.com", "https://a.example.com"),
            ("*.example.com", "https://a.example.com"),
            ("x, example.com:5000", "http://example.com:5000"),
            ("a:443", "https://a"),
            ("10.1.2.3", "http://10.1.2.3"),
            ("10.0.0.0/8", "http://10.255.0.1"),
            ("0.0.0.0/0", "http://1.2.3.4"),
            ("10.1.2.3:80", "http://10.1.2.3"),
            ("fd00::/8", "http://[fd12::1]"),
            ("[fd00::1]:80", "http://[fd00::1]"),
            ("fd00::1", "http://[fd00::1]"),
        ] {
            assert!(is_direct(no_proxy, url), "{no_proxy}: {url}");
        }
        for (no_proxy, url) in [
            ("example.com", "http://notexample.com"),
            ("example.com", "http://example.com.evil"),
            ("example.com:5000", "http://example.com"),
            ("10.0.0.0/8", "http://11.0.0.1"),
            ("10.0.0.0/8", "http://10.example"),
            ("10.1.2.3:81", "http://10.1.2.3"),
            ("::/0", "http://1.2.3.4"),
            ("", "http://a"),
        ] {
            assert!(!is_direct(no_proxy, url), "{no_proxy}: {url}");
        }
    }

    #[test]
    fn the_environment_counts_where_nothing_is_set() {
        let variable = |name: &str| match name {
            "HTTP_PROXY" => Some("http://upper".to_owned()),
            "https_proxy" => Some("http://lower".to_owned()),
            "HTTPS_PROXY" => Some("http://upper".to_owned()),
            "NO_PROXY" => Some("b".to_owned()),
            _ => None,
        };
        let proxies = Proxies::new(None, variable).unwrap();
        let of = |url: &str| proxies.of(&Url::parse(url).unwrap()).map(|url| url.to_string());
        assert_eq!(of("http://a").as_deref(), Some("http://upper/"));
        assert_eq!(of("https://a").as_deref(), Some("http://lower/"));
        assert_eq!(of("https://b"), None);
        assert!(Proxies::new(None, |_| Some(String::new())).unwrap().are_none());
        assert!(Proxies::new(Some(&ImageRegistryProxy::default()), variable).unwrap().are_none());
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_refused_without_its_password() {
        for bad in ["socks5://u:s3cret@p", "http://", "http://u:s3cret@p:x", "ftp://s3cret"] {
            let settings =
                ImageRegistryProxy { http_proxy: Some(bad.into()), ..ImageRegistryProxy::default() };
            let error = Proxies::new(Some(&settings), |_| None).err().expect(bad);
            assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        }
        for bad in ["a/b", "10.0.0.0/33", "a:x", "http://a", "."] {
            assert!(exceptions(bad).is_err(), "{bad}");
        }
        assert!(exceptions(&"a,".repeat(EXCEPTIONS_MAX + 1)).is_err());
    }
}
