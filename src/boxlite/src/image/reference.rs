//! Names of images, normalized as Docker does it: `busybox` is `docker.io/library/busybox:latest`.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;

/// A full image name, with a tag, a digest, or both.
///
/// With both, the digest decides and the tag is what the image is called: `app:1@sha256:…`. A name with neither has the
/// tag `latest`. The grammar is that of `distribution/reference`, which Docker and registries use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no image name: {reason}")]
pub struct ReferenceError {
    text: String,
    reason: &'static str,
}

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library/";
/// The longest name, as registries have it.
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;
const DEFAULT_TAG: &str = "latest";

impl Reference {
    /// The registry's host, `docker.io` by default.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The name within the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. `None`: the name has a digest alone.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of a manifest or index that the name is bound to.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// As people write it: without the default registry.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        match full.strip_prefix("docker.io/") {
            None => full,
            Some(rest) => rest.strip_prefix(DEFAULT_NAMESPACE).unwrap_or(rest).to_owned(),
        }
    }

    /// What a registry is asked for: the digest where there is one, else the tag.
    pub(super) fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// The same name at another registry.
    pub(super) fn at(&self, registry: &str) -> Result<Self, ReferenceError> {
        let path = self.repository.strip_prefix(DEFAULT_NAMESPACE).unwrap_or(&self.repository);
        Self { repository: path.to_owned(), registry: registry.to_owned(), ..self.clone() }
            .to_string()
            .parse()
    }

    /// Whether `text` leaves the registry open: it names an image, but no registry.
    pub(super) fn is_short(text: &str) -> bool {
        !text.split_once('/').is_some_and(|(first, _)| is_registry(first))
    }
}

/// Whether the first part of a name is a registry: as Docker has it, when it has a dot or a port, or is `localhost`.
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let fail = |reason| ReferenceError { text: super::error::shown(text.as_bytes()), reason };
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => {
                let digest = digest.parse().map_err(|_| {
                    fail("what follows `@` is not `sha256:` and 64 lower-case hexadecimal digits")
                })?;
                (named, Some(digest))
            }
            None => (text, None),
        };
        let (name, tag) = match named.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (named, digest.is_none().then_some(DEFAULT_TAG)),
        };
        let (registry, path) = match name.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest),
            _ => (DEFAULT_REGISTRY, name),
        };
        // Host names have no case, and 443 is the port anyway; policies and logins compare what is left letter by letter.
        let registry = registry.strip_suffix(":443").unwrap_or(registry).to_ascii_lowercase();
        let registry = match registry.as_str() {
            "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
            registry => registry,
        };
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("{DEFAULT_NAMESPACE}{path}")
        } else {
            path.to_owned()
        };
        if !is_host(registry) {
            return Err(fail("the registry is no host name"));
        }
        if !repository.split('/').all(is_component) {
            return Err(fail(
                "names are lower-case letters and digits, separated by `.`, `_`, `__`, `-` or `/`",
            ));
        }
        if registry.len() + 1 + repository.len() > NAME_MAX {
            return Err(fail("it is too long"));
        }
        if !tag.is_none_or(is_tag) {
            return Err(fail(
                "tags are up to 128 letters, digits, `_`, `.` and `-`, and begin with no `.` or `-`",
            ));
        }
        Ok(Self { registry: registry.to_owned(), repository, tag: tag.map(str::to_owned), digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// A name, or an IPv6 address in brackets, with or without a port.
fn is_host(text: &str) -> bool {
    let numeric = |port: &str| {
        !port.starts_with('0')
            && port.bytes().all(|byte| byte.is_ascii_digit())
            && port.parse::<u16>().is_ok()
    };
    if let Some((address, port)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let port = port.strip_prefix(':').map_or(port.is_empty(), numeric);
        return port && address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(label) && port.is_none_or(numeric)
}

/// Lower-case letters and digits, with single separators (`.`, `_`, `__`, any number of `-`) between them.
fn is_component(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (Some(first), Some(last)) = (text.bytes().next(), text.bytes().last()) else { return false };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).all(|separator| {
        matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
    })
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= TAG_MAX
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn short_names_become_the_full_names_that_docker_gives_them() {
        assert_eq!(full("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(full("busybox:1.36"), "docker.io/library/busybox:1.36");
        assert_eq!(full("docker.io/busybox"), "docker.io/library/busybox:latest");
        assert_eq!(full("index.docker.io/library/busybox"), "docker.io/library/busybox:latest");
        assert_eq!(full("someone/thing"), "docker.io/someone/thing:latest");
        assert_eq!(full("localhost/thing"), "localhost/thing:latest");
        assert_eq!(full("localhost:5000/a/b__c:v1"), "localhost:5000/a/b__c:v1");
        assert_eq!(full("ghcr.io/a/b"), "ghcr.io/a/b:latest");
        assert_eq!(full("[::1]:5000/a/b"), "[::1]:5000/a/b:latest");
        assert_eq!(full("[::1]/a:c"), "[::1]/a:c");
        assert_eq!(full("Quay.IO:443/a"), "quay.io/a:latest");
        assert_eq!(full("registry-1.docker.io/busybox"), "docker.io/library/busybox:latest");
    }

    #[test]
    fn full_names_read_back_as_themselves_and_show_short() {
        for text in ["busybox", "a/b:c", "quay.io/a/b.c:D", "host:1/x"] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(full(&reference.to_string()), reference.to_string());
            assert_eq!(full(&reference.familiar()), reference.to_string());
        }
        assert_eq!("docker.io/library/busybox".parse::<Reference>().unwrap().familiar(), "busybox:latest");
    }

    #[test]
    fn a_digest_binds_a_name_and_stands_beside_or_in_place_of_its_tag() {
        let digest = Digest::of(b"x");
        let bound: Reference = format!("busybox@{digest}").parse().unwrap();
        assert_eq!((bound.tag(), bound.digest(), bound.version()), (None, Some(&digest), digest.to_string()));
        assert_eq!(bound.to_string(), format!("docker.io/library/busybox@{digest}"));
        let both: Reference = format!("host:1/a:b@{digest}").parse().unwrap();
        assert_eq!((both.tag(), both.version()), (Some("b"), digest.to_string()));
        assert_eq!(full(&both.to_string()), both.to_string());
        assert_eq!("a:b".parse::<Reference>().unwrap().version(), "b");
    }

    #[test]
    fn a_short_name_can_be_looked_for_at_other_registries() {
        for (text, short) in
            [("busybox", true), ("a/b:c", true), ("localhost/a", false), ("quay.io/a", false)]
        {
            assert_eq!(Reference::is_short(text), short, "{text}");
        }
        let name: Reference = "busybox:1".parse().unwrap();
        assert_eq!(name.at("quay.io").unwrap().to_string(), "quay.io/busybox:1");
        assert_eq!(name.at("docker.io").unwrap().to_string(), "docker.io/library/busybox:1");
    }

    #[test]
    fn what_no_registry_accepts_is_no_name() {
        for text in [
            "",
            "/",
            "a//b",
            "Busybox",
            "a/../b",
            "..",
            "a:",
            "a:-x",
            ":x",
            "-a",
            "a-",
            "a___b",
            "a..b",
            "a b",
            "é",
            "a@sha256:00",
            "ho_st.x/a",
            "host:/a",
            "host:x/a",
            "[::1/a",
            "[::g]/a",
            "[::1]x/a",
            "[::1]:/a",
            "host:05000/a",
            "host:0/a",
            "host:65536/a",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
        assert!("x".repeat(300).parse::<Reference>().is_err());
        assert!(format!("a:{}", "x".repeat(129)).parse::<Reference>().is_err());
    }
}
