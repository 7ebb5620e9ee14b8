//! Signatures as cosign makes them, and what they say ("simple signing").
//!
//! What is signed are the bytes of a JSON document:
//!
//! ```json
//! {"critical": {"type": "cosign container image signature",
//!               "image": {"docker-manifest-digest": "sha256:…"},
//!               "identity": {"docker-reference": "registry.example/repository:tag"}},
//!  "optional": null}
//! ```

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::error::{Malformed, PolicyError, shown};
use super::identity::Named;
use super::json::Json;
use super::key::Key;
use crate::image::Digest;

/// The largest document that is signed, in bytes. It has a few hundred of them; `optional` may add some.
pub(crate) const PAYLOAD_MAX: usize = 64 << 10;
/// The longest signature in base64, in bytes. That of the longest RSA key, 8192 bits, has 1368.
pub(crate) const SIGNATURE_MAX: usize = 4 << 10;

const TYPE: &str = "cosign container image signature";

/// A signature of an image, as it was found: nothing of it has been checked but its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub(crate) struct Signature {
    /// The document that is signed, byte for byte. At most [`PAYLOAD_MAX`] bytes.
    pub(crate) payload: Vec<u8>,
    /// The signature over it, in base64. At most [`SIGNATURE_MAX`] bytes.
    pub(crate) signature: String,
}

/// A signature as it is kept in a JSON document, with the payload in base64.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    payload: String,
    signature: String,
}

impl From<Signature> for Stored {
    fn from(signature: Signature) -> Self {
        Self { payload: STANDARD.encode(signature.payload), signature: signature.signature }
    }
}

impl TryFrom<Stored> for Signature {
    type Error = PolicyError;

    fn try_from(stored: Stored) -> Result<Self, PolicyError> {
        let malformed =
            |reason| PolicyError::Document { what: "the signature", source: Malformed::new(reason) };
        if stored.payload.len() > PAYLOAD_MAX.div_ceil(3) * 4 {
            return Err(malformed(TOO_LARGE.to_owned()));
        }
        let payload =
            STANDARD.decode(stored.payload).map_err(|_| malformed("its payload is no base64".to_owned()))?;
        let signature = Self { payload, signature: stored.signature };
        signature.check_size().map_err(malformed)?;
        Ok(signature)
    }
}

const TOO_LARGE: &str = "it is larger than any signature";

impl Signature {
    fn check_size(&self) -> Result<(), String> {
        if self.payload.len() > PAYLOAD_MAX || self.signature.len() > SIGNATURE_MAX {
            return Err(TOO_LARGE.into());
        }
        Ok(())
    }

    /// What it says, if one of `keys` made it. Not a byte of the payload is understood before that is known.
    pub(super) fn verify(&self, keys: &[Key]) -> Result<Payload, String> {
        self.check_size()?;
        let signature = STANDARD.decode(self.signature.trim()).map_err(|_| "it is no base64")?;
        if !keys.iter().any(|key| key.signed(&self.payload, &signature)) {
            return Err("no key of the requirement made it".into());
        }
        Payload::parse(&self.payload).map_err(|error| error.within("what it signs").to_string())
    }
}

/// What a signature says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Payload {
    /// The manifest that it is for.
    pub(super) digest: Digest,
    /// The name that it gives to it.
    pub(super) reference: Named,
}

impl Payload {
    fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut payload = Json::parse(bytes)?.object()?;
        let mut critical = payload.need("critical")?.object().map_err(|error| error.within("`critical`"))?;
        // Free, but there: cosign writes `null` when there is nothing to say.
        if !matches!(payload.need("optional")?, Json::Null | Json::Object(_)) {
            return Err(Malformed::new("`optional` is no object"));
        }
        payload.end()?;
        let kind = critical.need("type")?.text()?;
        if kind != TYPE {
            return Err(Malformed::new(format!("the type `{}` is not `{TYPE}`", shown(&kind))));
        }
        let digest = only(critical.need("image")?, "docker-manifest-digest")?;
        let reference = only(critical.need("identity")?, "docker-reference")?;
        critical.end().map_err(|error| error.within("`critical`"))?;
        let digest =
            digest.parse().map_err(|error: crate::image::DigestError| Malformed::new(error.to_string()))?;
        let reference = Named::parse(&reference)
            .ok_or_else(|| Malformed::new(format!("`{}` is no image name", shown(&reference))))?;
        Ok(Self { digest, reference })
    }
}

/// The text that is the one field of an object.
fn only(json: Json, name: &'static str) -> Result<String, Malformed> {
    let mut fields = json.object()?;
    let text = fields.text(name)?.ok_or_else(|| Malformed::new(format!("`{name}` is missing")))?;
    fields.end()?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{TestKey, payload};
    use super::*;

    fn parse(text: &str) -> Result<Payload, Malformed> {
        Payload::parse(text.as_bytes())
    }

    #[test]
    fn what_cosign_and_skopeo_write_is_understood() {
        let digest = Digest::of(b"x");
        let cosign = format!(
            concat!(
                r#"{{"critical":{{"identity":{{"docker-reference":"h.x/a"}},"#,
                r#""image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"#,
                r#""optional":null}}"#
            ),
            digest = digest
        );
        assert_eq!(parse(&cosign).unwrap(), Payload { digest, reference: Named::parse("h.x/a").unwrap() });
        let skopeo =
            cosign.replace("null", r#"{"creator":"containers/image 5.22.0","timestamp":1669650000}"#);
        assert_eq!(parse(&skopeo).unwrap().digest, digest);
        let free = cosign.replace("null", r#"{"anything":[1,{"deep":true}]}"#);
        assert_eq!(parse(&free).unwrap().digest, digest);
    }

    #[test]
    fn anything_else_in_what_is_signed_is_an_error() {
        let good = String::from_utf8(payload("h.x/a:1", &Digest::of(b"x"))).unwrap();
        assert!(parse(&good).is_ok());
        for (from, to) in [
            (r#""critical""#, r#""Critical""#),
            (r#""critical":{"#, r#""critical":{"more":1,"#),
            (r#""critical":{"#, r#""critical":{"type":"cosign container image signature","#),
            (r#""optional""#, r#""free":1,"optional""#),
            (r#","optional":null"#, ""),
            (r#""optional":null"#, r#""optional":1"#),
            (r#""optional":null"#, r#""optional":{"a":1,"a":2}"#),
            ("cosign container image signature", "atomic container signature"),
            (r#"{"docker-manifest-digest""#, r#"{"more":1,"docker-manifest-digest""#),
            ("docker-manifest-digest", "manifest-digest"),
            ("sha256:", "sha512:"),
            ("sha256:", "SHA256:"),
            (r#"{"docker-reference""#, r#"{"more":1,"docker-reference""#),
            ("h.x/a:1", ""),
            ("h.x/a:1", "h.x/A B"),
            (r#""h.x/a:1""#, "null"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            assert!(parse(&bad).is_err(), "{bad}");
        }
        assert!(parse(&format!("{good}{good}")).is_err());
        assert!(parse("null").is_err());
    }

    #[test]
    fn a_payload_is_not_read_before_its_signature_is_verified() {
        let (key, other) = (TestKey::new(), TestKey::new());
        let keys = [Key::parse(key.pem().as_bytes()).unwrap()];
        let nonsense = key.sign(b"nonsense".to_vec());
        assert!(nonsense.verify(&keys).unwrap_err().starts_with("what it signs: "));
        assert_eq!(
            other.sign(b"nonsense".to_vec()).verify(&keys).unwrap_err(),
            "no key of the requirement made it"
        );
        assert_eq!(nonsense.verify(&[]).unwrap_err(), "no key of the requirement made it");
        let no_base64 = Signature { signature: "no base64".into(), ..nonsense };
        assert_eq!(no_base64.verify(&keys).unwrap_err(), "it is no base64");
    }

    #[test]
    fn sizes_are_bounded_whichever_way_a_signature_comes_in() {
        let key = TestKey::new();
        let keys = [Key::parse(key.pem().as_bytes()).unwrap()];
        let large = key.sign(vec![b' '; PAYLOAD_MAX + 1]);
        assert_eq!(large.verify(&keys).unwrap_err(), TOO_LARGE);
        let long = Signature { payload: Vec::new(), signature: "A".repeat(SIGNATURE_MAX + 1) };
        assert_eq!(long.verify(&keys).unwrap_err(), TOO_LARGE);
        for bad in [large, long] {
            let text = serde_json::to_string(&bad).unwrap();
            assert!(serde_json::from_str::<Signature>(&text).is_err());
        }
        let most = Signature { payload: vec![7; PAYLOAD_MAX], signature: "A".repeat(SIGNATURE_MAX) };
        let text = serde_json::to_string(&most).unwrap();
        assert_eq!(serde_json::from_str::<Signature>(&text).unwrap(), most);
    }

    #[test]
    fn a_signature_is_kept_as_base64_and_read_back_strictly() {
        let signature = Signature { payload: vec![0, 255], signature: "c2ln".into() };
        let text = serde_json::to_string(&signature).unwrap();
        assert_eq!(text, r#"{"payload":"AP8=","signature":"c2ln"}"#);
        assert_eq!(serde_json::from_str::<Signature>(&text).unwrap(), signature);
        for bad in
            [text.replace("AP8=", "?"), text.replace('}', r#","x":1}"#), text.replace("payload", "load")]
        {
            assert!(serde_json::from_str::<Signature>(&bad).is_err(), "{bad}");
        }
    }
}
