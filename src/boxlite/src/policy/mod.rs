//! Which images may be used: `policy.json` as containers-policy.json(5) describes it, and signatures of sigstore.
//!
//! ```text
//!   policy.json ─ transports ─ scopes ─ requirements          image ─ Origin: where it comes from
//!                                            │                  │
//!                     the most specific scope of the origin ◀───┘
//!                                            │
//!             insecureAcceptAnything, reject, sigstoreSigned ◀── digests of its manifest and index,
//!                                     all must hold              signatures found beside it
//! ```
//!
//! The rule of all of this is to refuse in doubt: a file with one key too many is no policy, a requirement that cannot
//! be checked is not met, and a key that cannot be read makes the requirement fail even when there are others. What the
//! policy says is trusted; signatures and everything in them are not.

pub(crate) mod attachment;
mod error;
#[cfg(test)]
mod fixtures;
mod identity;
mod json;
mod key;
mod requirement;
mod scope;
mod signature;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

pub use error::{Malformed, PolicyError, Refusal};
pub(crate) use scope::Origin;
pub(crate) use signature::Signature;

use crate::image::Digest;
use error::shown;
use identity::Named;
use json::Json;
use key::Key;
use requirement::{KeySource, Requirement};
use scope::Scope;

/// The most signatures of an image that are looked at.
pub(crate) const SIGNATURES_MAX: usize = 128;
/// The largest policy, in bytes.
const POLICY_MAX: u64 = 1 << 20;
/// The largest file of a key, in bytes.
const KEY_MAX: u64 = 1 << 20;
/// Of how many signatures an error says why they are not accepted.
const REASONS: usize = 8;

/// Transports of archives.
const TRANSPORTS: [&str; 3] = ["oci", "oci-archive", "docker-archive"];

/// The transport of an archive by its name; nothing for others.
pub(crate) fn transport(name: &str) -> Option<&'static str> {
    TRANSPORTS.into_iter().find(|known| *known == name)
}

/// The requirements of one transport, by scope.
type Scopes = BTreeMap<String, Vec<Requirement>>;

/// Which images may be used.
#[derive(Debug)]
pub(crate) struct Policy {
    default: Vec<Requirement>,
    transports: BTreeMap<String, Scopes>,
}

impl Policy {
    /// The policy where there is none: every image may be used, signed or not.
    pub(crate) fn accept_anything() -> Self {
        Self { default: vec![Requirement::Accept], transports: BTreeMap::new() }
    }

    /// Reads the file `path`, of at most 1 MiB. A file that is not there is an error: whether there is a policy at all
    /// is the caller's to know.
    pub(crate) fn read(path: &Path) -> Result<Self, PolicyError> {
        let bytes = read_file(path, POLICY_MAX)
            .map_err(|source| PolicyError::Read { path: path.to_owned(), source })?;
        Self::document(&bytes).map_err(|source| PolicyError::File { path: path.to_owned(), source })
    }

    /// Reads a policy of at most 1 MiB. Keys that it names by path are not read before an image is checked.
    #[cfg(test)]
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, PolicyError> {
        Self::document(bytes).map_err(|source| PolicyError::Document { what: "the signature policy", source })
    }

    fn document(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() as u64 > POLICY_MAX {
            return Err(Malformed::new(format!("it has more than {POLICY_MAX} bytes")));
        }
        let mut fields = Json::parse(bytes)?.object()?;
        let default = fields.need("default").and_then(Requirement::parse_all);
        let default = default.map_err(|error| error.within("`default`"))?;
        let mut transports = BTreeMap::new();
        if let Some(json) = fields.take("transports") {
            let named = json.object().map_err(|error| error.within("`transports`"))?.rest();
            for (transport, json) in named {
                let scopes = scopes(&transport, json);
                let scopes = scopes
                    .map_err(|error| error.within(format_args!("the transport `{}`", shown(&transport))))?;
                transports.insert(transport, scopes);
            }
        }
        fields.end()?;
        Ok(Self { default, transports })
    }

    /// Whether signatures decide about an image from `origin`. An error when no signature could help.
    ///
    /// Where this says `false`, [`Policy::check`] accepts the image without signatures, unless it was asked for by
    /// another digest.
    pub(crate) fn verdict_without_signatures(&self, origin: &Origin<'_>) -> Result<bool, PolicyError> {
        let found = self.find(origin)?;
        let mut needed = false;
        for (at, requirement) in found.requirements.iter().enumerate() {
            match requirement {
                Requirement::Accept => {}
                Requirement::Signed { .. } => needed = true,
                Requirement::Reject => return Err(found.refused(at, Refusal::Rejected)),
                Requirement::Unsupported { what, .. } => {
                    return Err(found.refused(at, Refusal::Unsupported(what)));
                }
            }
        }
        Ok(needed)
    }

    /// Whether an image from `origin` may be used. `digests` are those of its manifest and of the index that led to it,
    /// if there was one, both verified; `signatures` are whatever was found for either.
    ///
    /// Reads the files of the keys, so it blocks. What verifying costs is bounded by [`SIGNATURES_MAX`] and the number
    /// of keys in the policy.
    pub(crate) fn check(
        &self,
        origin: &Origin<'_>,
        digests: &[Digest],
        signatures: &[Signature],
    ) -> Result<(), PolicyError> {
        self.verdict_without_signatures(origin)?;
        let found = self.find(origin)?;
        if origin.digest().is_some_and(|wanted| !digests.contains(wanted)) {
            return Err(found.refused_whole(Refusal::OtherDigest));
        }
        for (at, requirement) in found.requirements.iter().enumerate() {
            if let Requirement::Signed { keys, identity } = requirement {
                let signed = Signed { keys, identity, image: origin.named(), digests };
                signed.check(signatures).map_err(|refusal| found.refused(at, refusal))?;
            }
        }
        Ok(())
    }

    fn find<'a>(&'a self, origin: &Origin<'_>) -> Result<Found<'a>, PolicyError> {
        let image = shown(&origin.to_string());
        let transport = origin.transport();
        let candidates = origin.scopes().map_err(|refusal| PolicyError::Refused {
            image: image.clone(),
            scope: format!("the transport `{transport}`"),
            source: refusal,
        })?;
        let scopes = self.transports.get(transport);
        let found = scopes.and_then(|scopes| candidates.iter().find_map(|scope| scopes.get_key_value(scope)));
        Ok(match found {
            Some((scope, requirements)) => {
                let scope = Scope::Named { transport: transport.to_owned(), scope: scope.clone() };
                Found { image, scope, requirements }
            }
            None => Found { image, scope: Scope::Default, requirements: &self.default },
        })
    }
}

/// The requirements that count for an image.
struct Found<'a> {
    image: String,
    scope: Scope,
    requirements: &'a [Requirement],
}

impl Found<'_> {
    fn refused(&self, at: usize, source: Refusal) -> PolicyError {
        let kind = self.requirements[at].kind();
        let scope = format!("requirement {} (`{kind}`) of {}", at + 1, self.scope);
        PolicyError::Refused { image: self.image.clone(), scope, source }
    }

    fn refused_whole(&self, source: Refusal) -> PolicyError {
        PolicyError::Refused { image: self.image.clone(), scope: self.scope.to_string(), source }
    }
}

/// The requirement that an image is signed.
struct Signed<'a> {
    keys: &'a KeySource,
    identity: &'a identity::SignedIdentity,
    image: Option<Named>,
    digests: &'a [Digest],
}

impl Signed<'_> {
    /// One signature that will do is enough.
    fn check(&self, signatures: &[Signature]) -> Result<(), Refusal> {
        let keys = self.keys.load()?;
        if signatures.is_empty() {
            return Err(Refusal::Unsigned);
        }
        let count = signatures.len();
        if count > SIGNATURES_MAX {
            return Err(Refusal::TooMany { count, limit: SIGNATURES_MAX });
        }
        let mut reasons = Vec::new();
        for (at, signature) in signatures.iter().enumerate() {
            match self.accepts(signature, &keys) {
                Ok(()) => return Ok(()),
                Err(reason) if at < REASONS => reasons.push(format!("signature {}: {reason}", at + 1)),
                Err(_) => {}
            }
        }
        if count > REASONS {
            reasons.push(format!("and {} more", count - REASONS));
        }
        Err(Refusal::Signatures { count, reasons })
    }

    fn accepts(&self, signature: &Signature, keys: &[Key]) -> Result<(), String> {
        let payload = signature.verify(keys)?;
        if !self.digests.contains(&payload.digest) {
            return Err(format!("it is for the digest {}, which is not that of the image", payload.digest));
        }
        if !self.identity.accepts(self.image.as_ref(), &payload.reference) {
            let (identity, signed) = (self.identity, shown(&payload.reference.to_string()));
            return Err(format!("it is for `{signed}`, which is not what `{identity}` asks for"));
        }
        Ok(())
    }
}

impl KeySource {
    fn load(&self) -> Result<Vec<Key>, Refusal> {
        match self {
            Self::Files(paths) => paths
                .iter()
                .map(|path| {
                    let key = || format!("the key {}", shown(&path.to_string_lossy()));
                    let pem = read_file(path, KEY_MAX)
                        .map_err(|error| Refusal::Key { key: key(), reason: error.to_string() })?;
                    Key::parse(&pem).map_err(|reason| Refusal::Key { key: key(), reason })
                })
                .collect(),
            Self::Data(data) => data
                .iter()
                .enumerate()
                .map(|(at, pem)| {
                    let key = || format!("the key number {} in the policy", at + 1);
                    Key::parse(pem).map_err(|reason| Refusal::Key { key: key(), reason })
                })
                .collect(),
        }
    }
}

fn scopes(transport: &str, json: Json) -> Result<Scopes, Malformed> {
    let named = json.object()?.rest().into_iter();
    named
        .map(|(scope, json)| {
            let place = |error: Malformed| error.within(format_args!("the scope `{}`", shown(&scope)));
            scope::check(transport, &scope).map_err(place)?;
            let requirements = Requirement::parse_all(json).map_err(place)?;
            Ok((scope, requirements))
        })
        .collect()
}

/// The content of a file of at most `most` bytes. Nothing but a regular file is opened: others may block for ever.
fn read_file(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
