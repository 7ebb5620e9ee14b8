//! Which image a signature must speak of: the `signedIdentity` of a requirement.

use serde::Deserialize;

use super::Origin;
use crate::image::Reference;

/// How the name in a signature has to fit the image's.
#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "Raw")]
pub(super) enum Identity {
    /// Name and tag are the same.
    Exact,
    /// The same, or the same repository if the image is asked for by digest.
    #[default]
    RepoDigestOrExact,
    /// The same repository.
    Repository,
    /// This name and tag.
    ExactReference(Name),
    /// This repository.
    ExactRepository(Name),
    /// As [`Identity::RepoDigestOrExact`], after the start of the image's name was replaced.
    Remap { prefix: String, signed_prefix: String },
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
enum Raw {
    MatchExact,
    MatchRepoDigestOrExact,
    MatchRepository,
    ExactReference { docker_reference: String },
    ExactRepository { docker_repository: String },
    RemapIdentity { prefix: String, signed_prefix: String },
}

impl TryFrom<Raw> for Identity {
    type Error = String;

    fn try_from(raw: Raw) -> Result<Self, String> {
        Ok(match raw {
            Raw::MatchExact => Self::Exact,
            Raw::MatchRepoDigestOrExact => Self::RepoDigestOrExact,
            Raw::MatchRepository => Self::Repository,
            Raw::ExactReference { docker_reference } => {
                let name = Name::parse(&docker_reference)?;
                if name.is_bare() {
                    return Err(format!("dockerReference `{}` has no tag", docker_reference.escape_debug()));
                }
                Self::ExactReference(name)
            }
            Raw::ExactRepository { docker_repository } => {
                Self::ExactRepository(Name::parse(&docker_repository)?)
            }
            Raw::RemapIdentity { prefix, signed_prefix } => {
                if [&prefix, &signed_prefix].iter().any(|text| text.is_empty() || text.ends_with('/')) {
                    return Err("a prefix of remapIdentity is empty or ends with `/`".into());
                }
                Self::Remap { prefix, signed_prefix }
            }
        })
    }
}

/// A name as it was given: without a tag that nobody wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Name {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let full: Reference =
            text.parse().map_err(|error: crate::image::ReferenceError| error.to_string())?;
        let named = text.split('@').next().unwrap_or_default();
        let has_tag = named.rsplit('/').next().is_some_and(|last| last.contains(':'));
        Ok(Self {
            repository: format!("{}/{}", full.registry(), full.repository()),
            tag: full.tag().filter(|_| has_tag).map(str::to_owned),
            digest: full.digest().map(ToString::to_string),
        })
    }

    fn is_bare(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }

    /// The name of an image of a registry.
    fn of(origin: &Origin<'_>) -> Option<Self> {
        match origin {
            Origin::Registry { registry, repository, tag, digest } => Some(Self {
                repository: format!("{registry}/{repository}"),
                tag: tag.map(str::to_owned),
                digest: digest.map(ToString::to_string),
            }),
            Origin::Archive { .. } => None,
        }
    }
}

impl Identity {
    /// Tells why a signature for `signed` is not one for the image.
    pub(super) fn check(&self, origin: &Origin<'_>, signed: &str) -> Result<(), String> {
        let image =
            Name::of(origin).ok_or("an image from an archive has no name that a signature could be for")?;
        let name = Name::parse(signed)?;
        let fits = match self {
            Self::Exact => !name.is_bare() && name == image,
            Self::RepoDigestOrExact => repo_digest_or_exact(&name, &image),
            Self::Repository => name.repository == image.repository,
            Self::ExactReference(wanted) => name == *wanted,
            Self::ExactRepository(wanted) => name.repository == wanted.repository,
            Self::Remap { prefix, signed_prefix } => {
                let repository = remapped(&image.repository, prefix, signed_prefix);
                repo_digest_or_exact(&name, &Name { repository, ..image })
            }
        };
        if fits {
            Ok(())
        } else {
            Err(format!("a signature is for {}, not for this image", crate::rpc::shown(signed)))
        }
    }
}

/// What is signed is the digest in any case; asked for by digest, an image has no tag that could be compared.
fn repo_digest_or_exact(name: &Name, image: &Name) -> bool {
    match image.tag {
        _ if name.is_bare() => false,
        Some(_) => name == image,
        None => name.repository == image.repository,
    }
}

/// Replaces the start of a name, at the border of a part.
fn remapped(name: &str, prefix: &str, by: &str) -> String {
    match name.strip_prefix(prefix) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{by}{rest}"),
        _ => name.to_owned(),
    }
}
