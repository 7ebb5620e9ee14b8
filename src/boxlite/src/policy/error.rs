//! Why a policy cannot be read, and why it refuses an image.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A signature policy cannot be used, or does not accept an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The file of the policy cannot be read.
    #[error("cannot read the signature policy {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file of the policy says what no policy can say; nothing of it counts.
    #[error("the signature policy {path} cannot be used")]
    File {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Malformed,
    },
    /// A document that is no file, or a part of one, makes no sense.
    #[error("{what} cannot be used")]
    Document {
        /// Which.
        what: &'static str,
        /// Where and why.
        source: Malformed,
    },
    /// The policy does not accept the image.
    #[error("the signature policy does not accept {image}: {scope} is not satisfied")]
    Refused {
        /// The image, escaped.
        image: String,
        /// What of the policy decided: the number and type of the requirement, and the scope that it stands in.
        scope: String,
        /// Why.
        source: Refusal,
    },
}

impl PolicyError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused { source: Refusal::Unsigned | Refusal::Signatures { .. }, .. } => Some(
                "pull the image again if it was signed since; the policy says which keys it trusts".into(),
            ),
            _ => None,
        }
    }
}

/// What is wrong in a document, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

impl Malformed {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    /// The same, with the place that it was found in before it.
    pub(super) fn within(self, place: impl fmt::Display) -> Self {
        Self(format!("{place}: {}", self.0))
    }
}

/// Why an image is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// `reject`.
    #[error("it rejects every image")]
    Rejected,
    /// A requirement that is well-formed and cannot be checked here.
    #[error("{0} is not supported, so nothing can satisfy it")]
    Unsupported(&'static str),
    /// A key cannot be used; others in its place are not tried.
    #[error("{key} cannot be used: {reason}")]
    Key {
        /// Which.
        key: String,
        /// Why.
        reason: String,
    },
    /// There is no signature at all.
    #[error("it wants a signature, and the image has none")]
    Unsigned,
    /// More signatures than are looked at.
    #[error("the image has {count} signatures, {limit} are allowed")]
    TooMany {
        /// Signatures of the image.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// There are signatures, and none will do.
    #[error("none of {count} signatures is accepted: {}", reasons.join("; "))]
    Signatures {
        /// Signatures of the image.
        count: usize,
        /// Why each is not accepted; the first few of them.
        reasons: Vec<String>,
    },
    /// The image is not the one that was asked for.
    #[error("the image is not the one with the digest that was asked for")]
    OtherDigest,
    /// The path of an archive does not say where it lies.
    #[error("its path is not absolute, or has `.` or `..` in it")]
    Path,
}

/// Text from outside as it may be shown: printable, and not too long.
pub(super) fn shown(text: &str) -> String {
    const MOST: usize = 200;
    let bytes = text.as_bytes();
    let more = if bytes.len() > MOST { "…" } else { "" };
    format!("{}{more}", bytes[..bytes.len().min(MOST)].escape_ascii())
}
