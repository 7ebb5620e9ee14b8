//! What a user says about registries.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use super::error::{RegistryError, shown};
use super::host::Host;

/// How one registry is to be used.
///
/// A registry without settings is used over HTTPS with the certificates that the system trusts, and with the login that
/// is stored for it. One on a loopback address may also speak plain HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ImageRegistry {
    /// Its host, with a port where it is not the usual one: `ghcr.io`, `127.0.0.1:5000`.
    pub host: String,
    /// How it is reached; default HTTPS.
    #[serde(default)]
    pub transport: RegistryTransport,
    /// Whether any TLS certificate is accepted; default no. Anyone on the way can then read logins and change what tags
    /// mean.
    #[serde(default)]
    pub skip_verify: bool,
    /// Whether image names without a registry are looked for here; default no.
    #[serde(default)]
    pub search: bool,
    /// Hosts that are asked first, in this order; default none. One that fails is passed over. They are reached as
    /// their own settings say.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// A PEM file with certificates of authorities that are trusted for this registry, besides the system's; default
    /// none.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The login; by default the stored one, if there is any.
    #[serde(default)]
    pub auth: RegistryAuth,
}

impl ImageRegistry {
    /// A registry with default settings.
    pub fn new(host: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            transport: RegistryTransport::default(),
            skip_verify: false,
            search: false,
            mirrors: Vec::new(),
            ca_file: None,
            auth: RegistryAuth::default(),
        }
    }
}

/// How a registry is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RegistryTransport {
    /// HTTP over TLS.
    #[default]
    Https,
    /// Plain HTTP: anyone on the way can read and change what is sent.
    Http,
}

/// How to log in to a registry.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum RegistryAuth {
    /// No login in the settings: the stored one is used, if there is any.
    #[default]
    Anonymous,
    /// A name and a password, which go before the stored login.
    Basic {
        /// The name; without `:`.
        username: String,
        /// The password.
        password: String,
    },
    /// A token that the registry takes as it is; it goes before the stored login.
    Bearer {
        /// The token.
        token: String,
    },
}

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic { .. } => "Basic(hidden)",
            Self::Bearer { .. } => "Bearer(hidden)",
        })
    }
}

/// Through which proxies registries are reached. Loopback addresses never are.
///
/// Where this is given, the environment's variables of these names do not count.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct ImageRegistryProxy {
    /// The URL of the proxy for `http` registries; default none. Schemes are `http` (default) and `https`.
    pub http_proxy: Option<String>,
    /// The URL of the proxy for `https` registries; default none.
    pub https_proxy: Option<String>,
    /// Hosts that are reached directly, with commas between them: names (with all below them), addresses, networks such
    /// as `10.0.0.0/8`, each with an optional `:port`, or `*` for all; default none.
    pub no_proxy: Option<String>,
}

impl fmt::Debug for ImageRegistryProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // URLs of proxies have passwords in them.
        let hidden = |url: &Option<String>| url.as_ref().map(|_| "hidden");
        f.debug_struct("ImageRegistryProxy")
            .field("http_proxy", &hidden(&self.http_proxy))
            .field("https_proxy", &hidden(&self.https_proxy))
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

/// An [`ImageRegistry`] that makes sense.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) host: Host,
    pub(super) transport: RegistryTransport,
    /// Whether these are a user's, not defaults.
    pub(super) configured: bool,
    pub(super) skip_verify: bool,
    pub(super) mirrors: Vec<Host>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) auth: RegistryAuth,
}

impl Settings {
    /// Those of a host that nobody has configured.
    pub(super) fn default_of(host: Host) -> Self {
        Self {
            host,
            transport: RegistryTransport::Https,
            configured: false,
            skip_verify: false,
            mirrors: Vec::new(),
            ca_file: None,
            auth: RegistryAuth::Anonymous,
        }
    }

    pub(super) fn new(registry: ImageRegistry) -> Result<Self, RegistryError> {
        let refuse = |reason: String| Err(RegistryError::settings(reason));
        let parse = |text: &str| {
            Host::parse(text)
                .ok_or_else(|| RegistryError::settings(format!("`{}` is no host of a registry", shown(text))))
        };
        let host = parse(&registry.host)?;
        let mirrors = registry.mirrors.iter().map(|mirror| parse(mirror)).collect::<Result<Vec<_>, _>>()?;
        for (n, mirror) in mirrors.iter().enumerate() {
            if *mirror == host || mirrors[..n].contains(mirror) {
                return refuse(format!("`{host}` has the mirror `{mirror}` twice, or is its own mirror"));
            }
        }
        if registry.transport == RegistryTransport::Http
            && (registry.skip_verify || registry.ca_file.is_some())
        {
            return refuse(format!(
                "`{host}` is used over HTTP, where `skip_verify` and `ca_file` mean nothing"
            ));
        }
        if registry.skip_verify && registry.ca_file.is_some() {
            return refuse(format!("`{host}` has both `skip_verify` and `ca_file`"));
        }
        match &registry.auth {
            RegistryAuth::Basic { username, .. } if username.is_empty() || username.contains(':') => {
                return refuse(format!("the user name for `{host}` is empty or has `:` in it"));
            }
            RegistryAuth::Bearer { token }
                if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) =>
            {
                return refuse(format!(
                    "the token for `{host}` is empty or has characters that no token has"
                ));
            }
            _ => {}
        }
        Ok(Self {
            host,
            transport: registry.transport,
            configured: true,
            skip_verify: registry.skip_verify,
            mirrors,
            ca_file: registry.ca_file,
            auth: registry.auth,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::error::RegistryErrorKind;

    fn refused(change: impl FnOnce(&mut ImageRegistry)) -> bool {
        let mut registry = ImageRegistry::new("example.com:5000");
        change(&mut registry);
        match Settings::new(registry) {
            Ok(_) => false,
            Err(error) => error.kind() == RegistryErrorKind::Settings,
        }
    }

    #[test]
    fn a_host_is_all_that_a_registry_needs() {
        let registry: ImageRegistry = serde_json::from_str(r#"{"host":"a.example"}"#).unwrap();
        assert_eq!(registry, ImageRegistry::new("a.example"));
        assert!(!refused(|_| {}));
    }

    #[test]
    fn every_setting_is_read_from_a_file() {
        let text = r#"{"host":"h:1","transport":"http","skip_verify":true,"search":true,"mirrors":["m"],
            "ca_file":"/x.pem","auth":{"basic":{"username":"u","password":"p"}}}"#;
        let registry: ImageRegistry = serde_json::from_str(text).unwrap();
        assert_eq!(registry.transport, RegistryTransport::Http);
        assert!(registry.skip_verify && registry.search);
        assert_eq!(registry.mirrors, ["m"]);
        assert_eq!(registry.ca_file, Some("/x.pem".into()));
        assert_eq!(registry.auth, RegistryAuth::Basic { username: "u".into(), password: "p".into() });
        for (text, auth) in [
            (r#""anonymous""#, RegistryAuth::Anonymous),
            (r#"{"bearer":{"token":"t"}}"#, RegistryAuth::Bearer { token: "t".into() }),
        ] {
            assert_eq!(serde_json::from_str::<RegistryAuth>(text).unwrap(), auth);
        }
        let proxy = r#"{"http_proxy":null,"https_proxy":"http://p:1","no_proxy":"a"}"#;
        let proxy: ImageRegistryProxy = serde_json::from_str(proxy).unwrap();
        assert_eq!((proxy.http_proxy, proxy.https_proxy.as_deref()), (None, Some("http://p:1")));
    }

    #[test]
    fn a_setting_that_is_not_known_is_refused() {
        for text in [r#"{"host":"h","insecure":true}"#, r#"{"host":"h","transport":"ftp"}"#, "{}"] {
            assert!(serde_json::from_str::<ImageRegistry>(text).is_err(), "{text}");
        }
        for text in
            [r#"{"basic":{"username":"u","password":"p","x":1}}"#, r#"{"basic":{"username":"u"}}"#, "{}"]
        {
            assert!(serde_json::from_str::<RegistryAuth>(text).is_err(), "{text}");
        }
        assert!(serde_json::from_str::<ImageRegistryProxy>(r#"{"all_proxy":"x"}"#).is_err());
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        assert!(refused(|r| r.host = "a/b".into()));
        assert!(refused(|r| r.mirrors = vec!["http://m".into()]));
        assert!(refused(|r| r.mirrors = vec!["m".into(), "M".into()]));
        assert!(refused(|r| r.mirrors = vec!["Example.com:5000".into()]));
        assert!(refused(|r| {
            r.transport = RegistryTransport::Http;
            r.skip_verify = true;
        }));
        assert!(refused(|r| {
            r.skip_verify = true;
            r.ca_file = Some("/x".into());
        }));
        assert!(
            refused(|r| r.auth = RegistryAuth::Basic { username: "a:b".into(), password: String::new() })
        );
        assert!(refused(|r| r.auth = RegistryAuth::Basic { username: String::new(), password: "p".into() }));
        assert!(refused(|r| r.auth = RegistryAuth::Bearer { token: "a\r\nb".into() }));
    }

    #[test]
    fn nothing_secret_is_shown() {
        let mut registry = ImageRegistry::new("h");
        registry.auth = RegistryAuth::Basic { username: "u".into(), password: "s3cret".into() };
        let bearer = RegistryAuth::Bearer { token: "s3cret".into() };
        let url = Some("http://u:s3cret@proxy".to_owned());
        let proxy = ImageRegistryProxy { http_proxy: url.clone(), https_proxy: url, no_proxy: None };
        let shown =
            format!("{registry:?} {bearer:?} {proxy:?} {:?}", Settings::new(registry.clone()).unwrap());
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}
