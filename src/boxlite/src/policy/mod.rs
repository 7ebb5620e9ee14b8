//! Which images may run: `policy.json`, as containers-policy.json(5) of containers/image describes it.
//!
//! ```text
//!   origin (registry name, or archive) ─▶ the most specific scope ─▶ its requirements: all of them must hold
//!                                                                     insecureAcceptAnything │ reject │ sigstoreSigned
//! ```
//!
//! Pure: files of keys are read, the network is not asked. Fails closed: a file that is not understood refuses everything,
//! a requirement that is known and not offered here (`signedBy`, Fulcio, Rekor) refuses the images in its scope.

pub(crate) mod attachment;
mod document;
mod error;
mod identity;
mod key;
mod scope;
mod signature;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::image::Digest;

pub use error::PolicyError;
pub(crate) use signature::Signature;

use document::{Document, Requirement};

/// The largest policy that is read, in bytes.
const LIMIT: u64 = 1 << 20;
/// Reasons that an error shows.
const REASONS: usize = 8;

/// A policy that was understood.
#[derive(Debug)]
pub(crate) struct Policy {
    document: Document,
}

/// Where an image comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Origin<'a> {
    /// Transport `docker`: a registry, and what it was asked for. With a tag and a digest, the digest counts.
    Registry { registry: &'a str, repository: &'a str, tag: Option<&'a str>, digest: Option<&'a Digest> },
    /// One of [`TRANSPORTS`], and the path.
    Archive { transport: &'static str, path: &'a Path },
}

/// Transports of archives.
const TRANSPORTS: [&str; 3] = ["oci", "oci-archive", "docker-archive"];

/// The transport of an archive by its name; nothing for others.
pub(crate) fn transport(name: &str) -> Option<&'static str> {
    TRANSPORTS.into_iter().find(|known| *known == name)
}

impl Policy {
    /// Lets everything run.
    pub(crate) fn accept_anything() -> Self {
        Self { document: Document::accept_anything() }
    }

    /// Reads a policy.
    pub(crate) fn read(path: &Path) -> Result<Self, PolicyError> {
        let failed = |source| PolicyError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        File::open(path).and_then(|file| file.take(LIMIT + 1).read_to_end(&mut bytes)).map_err(failed)?;
        if bytes.len() as u64 > LIMIT {
            let reason = format!("it has more than {LIMIT} bytes");
            return Err(PolicyError::Format { path: path.to_owned(), reason });
        }
        Self::parse(&bytes).map_err(|reason| PolicyError::Format { path: path.to_owned(), reason })
    }

    /// Reads a policy that is at hand; tells why it is not understood.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        Document::parse(bytes).map(|document| Self { document })
    }

    /// Whether signatures have to be looked for.
    ///
    /// # Errors
    /// When the image is refused whatever signatures it has.
    pub(crate) fn verdict_without_signatures(&self, origin: &Origin<'_>) -> Result<bool, PolicyError> {
        let (scope, requirements) = self.requirements(origin);
        let mut needs = false;
        for requirement in requirements {
            match requirement {
                Requirement::AcceptAnything => {}
                Requirement::SigstoreSigned(_) => needs = true,
                Requirement::Reject => {
                    return Err(refused(origin, scope, vec!["images in this scope are rejected".into()]));
                }
                Requirement::Unsupported(what) => {
                    let reason = format!("it asks for {what}, which is not supported here");
                    return Err(refused(origin, scope, vec![reason]));
                }
            }
        }
        Ok(needs)
    }

    /// Asks whether an image may run. `digests` are its manifest's and, where one led to it, the index's: a signature of
    /// either is a signature of the image.
    ///
    /// # Errors
    /// When it may not, with the reasons.
    pub(crate) fn check(
        &self,
        origin: &Origin<'_>,
        digests: &[Digest],
        signatures: &[Signature],
    ) -> Result<(), PolicyError> {
        if !self.verdict_without_signatures(origin)? {
            return Ok(());
        }
        let (scope, requirements) = self.requirements(origin);
        for requirement in requirements {
            let Requirement::SigstoreSigned(signed) = requirement else { continue };
            if signatures.is_empty() {
                return Err(refused(
                    origin,
                    scope,
                    vec!["a signature is required, and there is none".into()],
                ));
            }
            let keys = signed.keys().map_err(|reason| refused(origin, scope, vec![reason]))?;
            let mut reasons = Vec::new();
            let accepted = signatures.iter().any(|signature| {
                match signature.verify(&keys).and_then(|claim| {
                    claim.is_of(digests)?;
                    signed.identity.check(origin, &claim.reference)
                }) {
                    Ok(()) => true,
                    Err(reason) => {
                        if reasons.len() < REASONS && !reasons.contains(&reason) {
                            reasons.push(reason);
                        }
                        false
                    }
                }
            });
            if !accepted {
                return Err(refused(origin, scope, reasons));
            }
        }
        Ok(())
    }

    fn requirements(&self, origin: &Origin<'_>) -> (&str, &[Requirement]) {
        let scopes = self.document.transport(origin.transport());
        for name in scope::names(origin) {
            if let Some((scope, requirements)) = scopes.iter().find(|(scope, _)| *scope == name) {
                return (scope, requirements);
            }
        }
        ("default", &self.document.default)
    }
}

impl Origin<'_> {
    fn transport(&self) -> &str {
        match self {
            Self::Registry { .. } => "docker",
            Self::Archive { transport, .. } => transport,
        }
    }
}

fn refused(origin: &Origin<'_>, scope: &str, reasons: Vec<String>) -> PolicyError {
    let image = match origin {
        Origin::Registry { .. } => scope::identity(origin),
        Origin::Archive { path, .. } => path.display().to_string(),
    };
    // The default of a transport has no name.
    let scope = if scope.is_empty() { origin.transport() } else { scope };
    PolicyError::Refused { image, scope: scope.to_owned(), reasons }
}

#[cfg(test)]
mod tests;
