//! Signatures as cosign and containers/image make them: a JSON payload that names an image, signed as it stands.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::key::Key;
use crate::image::Digest;

/// What the payload's type must be.
const TYPE: &str = "cosign container image signature";
/// The longest signature, in bytes of base64: one by the longest RSA key has 1.4 KiB.
const SIGNATURE_MAX: usize = 8 << 10;

/// A signature, and what it signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Signature {
    /// The bytes that are signed.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub(crate) payload: Vec<u8>,
    /// In base64.
    pub(crate) signature: String,
}

/// What a signature that was verified says.
#[derive(Debug)]
pub(super) struct Claim {
    digest: Digest,
    pub(super) reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    critical: Critical,
    #[serde(default)]
    #[expect(dead_code, reason = "free text of the signer: it may be there, and nothing else may")]
    optional: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: IdentityClaim,
    image: ImageClaim,
    r#type: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct IdentityClaim {
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ImageClaim {
    docker_manifest_digest: String,
}

impl Signature {
    /// What it says, if one of the keys made it. Nothing of the payload is looked at before.
    pub(super) fn verify(&self, keys: &[Key]) -> Result<Claim, String> {
        if self.signature.len() > SIGNATURE_MAX {
            return Err("a signature is too long".into());
        }
        let signature =
            STANDARD.decode(&self.signature).map_err(|_| "a signature is no base64".to_owned())?;
        if !keys.iter().any(|key| key.verify(&self.payload, &signature)) {
            return Err("a signature was not made by a key of the policy".into());
        }
        let payload: Payload = serde_json::from_slice(&self.payload)
            .map_err(|error| format!("the payload of a signature is not understood: {error}"))?;
        let Critical { identity, image, r#type } = payload.critical;
        if r#type != TYPE {
            return Err(format!("a signature is of the type {}", crate::rpc::shown(&r#type)));
        }
        let digest = image.docker_manifest_digest.parse::<Digest>().map_err(|error| error.to_string())?;
        Ok(Claim { digest, reference: identity.docker_reference })
    }
}

impl Claim {
    /// Tells why it speaks of another image.
    pub(super) fn is_of(&self, digests: &[Digest]) -> Result<(), String> {
        if digests.contains(&self.digest) {
            return Ok(());
        }
        Err(format!("a signature is for {}, which is another image", self.digest))
    }
}

fn to_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    STANDARD.decode(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}
