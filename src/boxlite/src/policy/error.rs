//! Why a signature policy lets something not run.

use std::io;
use std::path::PathBuf;

/// Why an image may not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The policy cannot be read.
    #[error("cannot read the signature policy {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The policy is not understood.
    #[error("the signature policy {path} is not understood: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The policy refuses the image.
    #[error("{image} is refused by `{scope}` of the signature policy: {}", reasons.join("; "))]
    Refused {
        /// The image.
        image: String,
        /// The scope of the policy that decided.
        scope: String,
        /// What it asks for, or why no signature was accepted.
        reasons: Vec<String>,
    },
    /// A document with signatures is broken.
    #[error("the signatures of the image cannot be read: {reason}")]
    Signatures {
        /// Why.
        reason: String,
    },
}

impl PolicyError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused { .. } => {
                Some("the policy is `signature_policy` of the configuration, else policy.json in the home folder, else that of containers-policy.json(5)".into())
            }
            _ => None,
        }
    }
}
