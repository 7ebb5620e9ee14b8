//! Where cosign keeps signatures in a registry: a manifest of its own beside the image, found by its tag.

use serde::Deserialize;

use super::PolicyError;
use crate::image::Digest;

const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// Signatures of one image that are looked at.
const MOST: usize = 128;
/// The largest payload, in bytes.
const PAYLOAD_MAX: u64 = 1 << 20;

/// The tag under which the signatures of a manifest or index are.
pub(crate) fn tag(digest: &Digest) -> String {
    format!("sha256-{}.sig", digest.hex())
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

/// The signatures in such a manifest: digest and size of each payload, and the signature in base64. Layers that are
/// something else are passed over.
pub(crate) fn parse(manifest: &[u8]) -> Result<Vec<(Digest, u64, String)>, PolicyError> {
    let broken = |reason: String| PolicyError::Signatures { reason };
    let manifest: Manifest = serde_json::from_slice(manifest).map_err(|error| broken(error.to_string()))?;
    let mut found = Vec::new();
    for layer in manifest.layers {
        if layer.media_type != PAYLOAD {
            continue;
        }
        let signature = layer.annotations.and_then(|mut annotations| annotations.remove(ANNOTATION));
        let Some(signature) = signature else { continue };
        if layer.size > PAYLOAD_MAX {
            return Err(broken(format!("a payload has {} bytes, {PAYLOAD_MAX} are allowed", layer.size)));
        }
        if found.len() == MOST {
            return Err(broken(format!("there are more than {MOST}")));
        }
        let digest =
            layer.digest.parse().map_err(|error: crate::image::DigestError| broken(error.to_string()))?;
        found.push((digest, layer.size, signature));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn layer(kind: &str, annotated: bool) -> serde_json::Value {
        let mut layer = json!({ "mediaType": kind, "digest": Digest::of(b"p").to_string(), "size": 1 });
        if annotated {
            layer["annotations"] = json!({ ANNOTATION: "c2ln" });
        }
        layer
    }

    fn read(layers: &[serde_json::Value]) -> Result<Vec<(Digest, u64, String)>, PolicyError> {
        parse(json!({ "schemaVersion": 2, "layers": layers }).to_string().as_bytes())
    }

    #[test]
    fn signatures_are_found_among_other_things() {
        let found = read(&[layer("text/plain", true), layer(PAYLOAD, false), layer(PAYLOAD, true)]).unwrap();
        assert_eq!(found, [(Digest::of(b"p"), 1, "c2ln".to_owned())]);
        assert_eq!(read(&[]).unwrap(), []);
    }

    #[test]
    fn what_is_broken_or_without_end_is_refused() {
        let many: Vec<_> = (0..=MOST).map(|_| layer(PAYLOAD, true)).collect();
        assert!(read(&many).is_err());
        let mut huge = layer(PAYLOAD, true);
        huge["size"] = json!(u64::MAX);
        assert!(read(&[huge]).is_err());
        let mut bad = layer(PAYLOAD, true);
        bad["digest"] = json!("sha256:../x");
        assert!(read(&[bad]).is_err());
        assert!(parse(b"[").is_err());
    }
}
