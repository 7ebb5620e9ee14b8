//! Where an image comes from, and which scopes of a policy that falls into.

use std::fmt;
use std::path::{Component, Path};

use super::error::{Malformed, Refusal, shown};
use super::identity::Named;
use crate::image::Digest;

/// Where an image comes from, as the one who asks for it says: never what a registry answered, or a mirror is called.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Origin<'a> {
    /// A registry: the transport `docker`.
    Registry {
        /// The host, with its port if one was given.
        registry: &'a str,
        /// The full name within it, with `library/` where Docker adds that.
        repository: &'a str,
        /// The tag. It does not count where there is a digest: the registry is not asked for it then, so nothing says
        /// that the image has it.
        tag: Option<&'a str>,
        /// The digest that was asked for; not the one that a tag led to.
        digest: Option<&'a Digest>,
    },
    /// A file or folder of this machine.
    Archive {
        /// `oci-archive`, `docker-archive` or, for a folder, `oci`.
        transport: &'static str,
        /// Its place: absolute, with symbolic links resolved as [`std::fs::canonicalize`] does. Empty when it comes
        /// from no file, as from a pipe; only the scope `""` fits that.
        path: &'a Path,
    },
}

impl Origin<'_> {
    pub(super) fn transport(&self) -> &'static str {
        match self {
            Self::Registry { .. } => "docker",
            Self::Archive { transport, .. } => transport,
        }
    }

    /// The digest that the image must have.
    pub(super) fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Registry { digest, .. } => *digest,
            Self::Archive { .. } => None,
        }
    }

    /// The name that a signature is compared with. What an archive calls its images is no name: anyone can write it.
    pub(super) fn named(&self) -> Option<Named> {
        match self {
            Self::Registry { registry, repository, tag, digest } => Some(Named {
                name: format!("{registry}/{repository}"),
                tag: tag.filter(|_| digest.is_none()).map(str::to_owned),
                digest: digest.copied(),
            }),
            Self::Archive { .. } => None,
        }
    }

    /// The scopes that this falls into, the most specific first and the transport's own, `""`, last.
    pub(super) fn scopes(&self) -> Result<Vec<String>, Refusal> {
        let mut scopes = match self {
            Self::Registry { registry, .. } => {
                let named = self.named();
                let own = named.iter().map(Named::to_string);
                own.chain(named.iter().flat_map(|named| prefixes(&named.name)))
                    .chain(wildcards(registry))
                    .collect()
            }
            Self::Archive { path, .. } => folders(path)?,
        };
        scopes.push(String::new());
        Ok(scopes)
    }
}

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry { registry, repository, tag, digest } => {
                write!(f, "{registry}/{repository}")?;
                if let Some(tag) = tag {
                    write!(f, ":{tag}")?;
                }
                if let Some(digest) = digest {
                    write!(f, "@{digest}")?;
                }
                Ok(())
            }
            Self::Archive { transport, path } => write!(f, "{transport}:{}", path.display()),
        }
    }
}

/// `h/a/b`, `h/a`, `h`.
fn prefixes(name: &str) -> impl Iterator<Item = String> {
    std::iter::successors(Some(name), |name| name.rsplit_once('/').map(|(before, _)| before))
        .map(str::to_owned)
}

/// `*.b.c` and `*.c` for `a.b.c:5000`: wildcards know no ports.
fn wildcards(registry: &str) -> impl Iterator<Item = String> {
    let host = registry.split_once(':').map_or(registry, |(host, _)| host);
    let domains = std::iter::successors(Some(host), |host| host.split_once('.').map(|(_, domain)| domain));
    domains.skip(1).map(|domain| format!("*.{domain}"))
}

/// The path and the folders that it lies in, but for the root.
fn folders(path: &Path) -> Result<Vec<String>, Refusal> {
    if path.as_os_str().is_empty() {
        return Ok(Vec::new());
    }
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain {
        return Err(Refusal::Path);
    }
    // A name that is no UTF-8 can be in no policy; the folders above it can.
    Ok(path
        .ancestors()
        .filter(|path| path.parent().is_some())
        .filter_map(Path::to_str)
        .map(str::to_owned)
        .collect())
}

/// Whether a scope can stand in a policy. One that no image could fall into is an error: it would look as if it
/// counted. The scopes of transports that are not known here are left alone.
pub(super) fn check(transport: &str, scope: &str) -> Result<(), Malformed> {
    match transport {
        _ if scope.is_empty() => Ok(()),
        "docker" => match scope.strip_prefix("*.") {
            None if scope.contains('*') => {
                Err(Malformed::new("a wildcard stands only before a domain, as in `*.example.com`"))
            }
            Some(domain) if domain.is_empty() || domain.contains(['*', '/', ':']) => {
                Err(Malformed::new("a wildcard stands only before a domain, as in `*.example.com`"))
            }
            _ => Ok(()),
        },
        "oci" | "oci-archive" | "docker-archive" | "dir" => {
            if scope == "/" {
                return Err(Malformed::new("the scope of everything is `\"\"`"));
            }
            let parts = scope.strip_prefix('/').map(|parts| parts.split('/'));
            if parts.is_some_and(|mut parts| parts.all(|part| !matches!(part, "" | "." | ".."))) {
                Ok(())
            } else {
                Err(Malformed::new("it is no absolute path without `.`, `..`, `//` and a `/` at its end"))
            }
        }
        _ => Ok(()),
    }
}

/// What decided about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope {
    /// A scope of a transport; `""` is the transport's own.
    Named { transport: String, scope: String },
    /// `default`.
    Default,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named { transport, scope } => {
                write!(f, "the scope `{}` of the transport `{transport}`", shown(scope))
            }
            Self::Default => f.write_str("the policy's default"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    fn registry<'a>(registry: &'a str, repository: &'a str, tag: &'a str) -> Origin<'a> {
        Origin::Registry { registry, repository, tag: (!tag.is_empty()).then_some(tag), digest: None }
    }

    fn archive(path: &str) -> Result<Vec<String>, Refusal> {
        Origin::Archive { transport: "oci-archive", path: Path::new(path) }.scopes()
    }

    #[test]
    fn scopes_of_a_registry_go_from_the_image_to_the_transport() {
        let scopes = registry("r.sub.example.com:5000", "ns/img", "v1").scopes().unwrap();
        let expected = [
            "r.sub.example.com:5000/ns/img:v1",
            "r.sub.example.com:5000/ns/img",
            "r.sub.example.com:5000/ns",
            "r.sub.example.com:5000",
            "*.sub.example.com",
            "*.example.com",
            "*.com",
            "",
        ];
        assert_eq!(scopes, expected);
        let scopes = registry("localhost:5000", "img", "").scopes().unwrap();
        assert_eq!(scopes, ["localhost:5000/img", "localhost:5000/img", "localhost:5000", ""]);
    }

    #[test]
    fn a_digest_stands_in_place_of_the_tag() {
        let digest = Digest::of(b"x");
        let origin =
            Origin::Registry { registry: "h", repository: "a", tag: Some("v1"), digest: Some(&digest) };
        assert_eq!(
            origin.scopes().unwrap(),
            [format!("h/a@{digest}"), "h/a".into(), "h".into(), String::new()]
        );
        assert_eq!(origin.named().unwrap().tag, None);
        assert_eq!(origin.to_string(), format!("h/a:v1@{digest}"));
    }

    #[test]
    fn scopes_of_an_archive_are_its_path_and_the_folders_above() {
        assert_eq!(archive("/a/b.tar").unwrap(), ["/a/b.tar", "/a", ""]);
        assert_eq!(archive("/").unwrap(), [""]);
        assert_eq!(archive("").unwrap(), [""]);
        for path in ["a/b.tar", "./a", "/a/../b", "..", "/.."] {
            assert!(matches!(archive(path), Err(Refusal::Path)), "{path}");
        }
        let path = Path::new(OsStr::from_bytes(b"/a/\xff.tar"));
        assert_eq!(Origin::Archive { transport: "oci", path }.scopes().unwrap(), ["/a", ""]);
    }

    #[test]
    fn scopes_that_nothing_falls_into_are_errors() {
        for (transport, scope) in [
            ("docker", "example*.*.com"),
            ("docker", "*"),
            ("docker", "*."),
            ("docker", "*.*.com"),
            ("docker", "*.example.com/ns"),
            ("docker", "*.example.com:5000"),
            ("docker", "example.com/*"),
            ("oci", "/"),
            ("oci", "a"),
            ("oci-archive", "/a/"),
            ("oci-archive", "/a//b"),
            ("docker-archive", "/a/../b"),
            ("dir", "/a/./b"),
        ] {
            assert!(check(transport, scope).is_err(), "{transport} {scope}");
        }
        for (transport, scope) in [
            ("docker", ""),
            ("docker", "*.example.com"),
            ("docker", "example.com:5000/a/b@sha256:00"),
            ("oci", "/a/b:tag"),
            ("docker-archive", ""),
            ("something", "else/*"),
        ] {
            assert!(check(transport, scope).is_ok(), "{transport} {scope}");
        }
    }
}
