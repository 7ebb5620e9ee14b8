//! Scopes: which part of a policy holds for an image.

use super::Origin;

/// The names of scopes that an image is in, the most specific first, down to the whole transport.
pub(super) fn names(origin: &Origin<'_>) -> Vec<String> {
    let mut names = vec![identity(origin)];
    match origin {
        Origin::Registry { registry, repository, .. } => {
            let mut path = format!("{registry}/{repository}");
            loop {
                names.push(path.clone());
                match path.rfind('/') {
                    Some(at) => path.truncate(at),
                    None => break,
                }
            }
            // A wildcard stands for the start of a host name, and never has a port.
            let mut host = registry.split(':').next().unwrap_or_default();
            while let Some((_, rest)) = host.split_once('.') {
                names.push(format!("*.{rest}"));
                host = rest;
            }
        }
        // Of these, only the whole transport is a scope.
        Origin::Archive { transport: "docker-archive", .. } => names.clear(),
        Origin::Archive { path, .. } => {
            let parents = path.ancestors().skip(1).filter(|parent| parent.parent().is_some());
            names.extend(parents.map(|parent| parent.display().to_string()));
        }
    }
    names.push(String::new());
    names
}

/// The full name of an image in its transport.
pub(super) fn identity(origin: &Origin<'_>) -> String {
    match origin {
        Origin::Registry { registry, repository, digest: Some(digest), .. } => {
            format!("{registry}/{repository}@{digest}")
        }
        Origin::Registry { registry, repository, tag, .. } => {
            format!("{registry}/{repository}:{}", tag.unwrap_or("latest"))
        }
        Origin::Archive { path, .. } => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_registry_image_is_in_the_scopes_that_the_manual_page_lists() {
        let origin = Origin::Registry {
            registry: "a.example.com:8443",
            repository: "ns/repo",
            tag: Some("v1"),
            digest: None,
        };
        assert_eq!(
            names(&origin),
            [
                "a.example.com:8443/ns/repo:v1",
                "a.example.com:8443/ns/repo",
                "a.example.com:8443/ns",
                "a.example.com:8443",
                "*.example.com",
                "*.com",
                "",
            ]
        );
    }

    #[test]
    fn an_archive_is_in_the_scopes_of_its_folders() {
        let origin = Origin::Archive { transport: "oci-archive", path: Path::new("/srv/images/a.tar") };
        assert_eq!(names(&origin), ["/srv/images/a.tar", "/srv/images", "/srv", ""]);
        let origin = Origin::Archive { transport: "docker-archive", path: Path::new("/srv/a.tar") };
        assert_eq!(names(&origin), [""]);
    }
}
