//! Signatures that lie beside an image in its registry, as cosign stores them.
//!
//! The signatures of the manifest `sha256:<hex>` are the layers of another manifest, with the tag `sha256-<hex>.sig` in
//! the same repository: each layer is the payload of a signature, and an annotation of it is the signature.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::SIGNATURES_MAX;
use super::error::{Malformed, PolicyError, shown};
use super::signature::{PAYLOAD_MAX, SIGNATURE_MAX};
use crate::image::Digest;

/// The largest manifest that is read, in bytes: as large as that of an image may be.
pub(crate) const MANIFEST_MAX: usize = 4 << 20;

const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// The tag of the manifest that holds the signatures of the manifest or index `digest`.
pub(crate) fn tag(digest: &Digest) -> String {
    format!("sha256-{}.sig", digest.hex())
}

/// The signatures that `manifest` leads to: digest and size in bytes of each payload, and the signature over it.
///
/// Layers that are no payload, or have no signature, are passed over. There are at most [`SIGNATURES_MAX`] signatures,
/// no payload has more than [`PAYLOAD_MAX`] bytes, and no signature more than [`SIGNATURE_MAX`].
pub(crate) fn parse(manifest: &[u8]) -> Result<Vec<(Digest, u64, String)>, PolicyError> {
    read(manifest)
        .map_err(|source| PolicyError::Document { what: "the manifest of the image's signatures", source })
}

fn read(manifest: &[u8]) -> Result<Vec<(Digest, u64, String)>, Malformed> {
    if manifest.len() > MANIFEST_MAX {
        return Err(Malformed::new(format!("it has more than {MANIFEST_MAX} bytes")));
    }
    let manifest: Manifest =
        serde_json::from_slice(manifest).map_err(|error| Malformed::new(shown(&error.to_string())))?;
    if manifest.schema_version != 2 {
        return Err(Malformed::new("it is not of schema version 2"));
    }
    let mut signatures = Vec::new();
    for layer in manifest.layers {
        let signature = layer.annotations.and_then(|mut annotations| annotations.remove(SIGNATURE));
        let (PAYLOAD, Some(signature)) = (layer.media_type.as_str(), signature) else { continue };
        if signatures.len() == SIGNATURES_MAX {
            return Err(Malformed::new(format!("it has more than {SIGNATURES_MAX} signatures")));
        }
        if layer.size > PAYLOAD_MAX as u64 || signature.len() > SIGNATURE_MAX {
            return Err(Malformed::new("one of its signatures is larger than any signature"));
        }
        let digest = layer.digest.parse();
        let digest = digest.map_err(|error: crate::image::DigestError| Malformed::new(error.to_string()))?;
        signatures.push((digest, layer.size, signature));
    }
    Ok(signatures)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(kind: &str, size: u64, annotations: &str) -> String {
        let digest = Digest::of(b"payload");
        format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size},"annotations":{annotations}}}"#)
    }

    fn manifest(layers: &[String]) -> String {
        format!(r#"{{"schemaVersion":2,"config":{{}},"layers":[{}]}}"#, layers.join(","))
    }

    fn signed(size: u64, signature: &str) -> String {
        layer(PAYLOAD, size, &format!(r#"{{"{SIGNATURE}":"{signature}","dev.sigstore.cosign/bundle":"x"}}"#))
    }

    fn error(manifest: &str) -> String {
        let PolicyError::Document { source, .. } = parse(manifest.as_bytes()).unwrap_err() else { panic!() };
        source.to_string()
    }

    #[test]
    fn the_tag_of_signatures_is_that_of_cosign() {
        let hex = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!(tag(&Digest::of(b"hello")), format!("sha256-{hex}.sig"));
    }

    #[test]
    fn every_layer_with_a_signature_is_one() {
        let other = layer("application/vnd.oci.image.layer.v1.tar", 1, &format!(r#"{{"{SIGNATURE}":"no"}}"#));
        let text = manifest(&[
            signed(7, "one"),
            other,
            layer(PAYLOAD, 7, "null"),
            layer(PAYLOAD, 7, "{}"),
            signed(8, "two"),
        ]);
        let digest = Digest::of(b"payload");
        assert_eq!(parse(text.as_bytes()).unwrap(), [(digest, 7, "one".into()), (digest, 8, "two".into())]);
        assert_eq!(parse(manifest(&[]).as_bytes()).unwrap(), []);
    }

    #[test]
    fn what_is_no_manifest_of_signatures_is_an_error() {
        for text in ["", "null", "[]", "{}", r#"{"schemaVersion":2}"#, r#"{"schemaVersion":2,"layers":null}"#]
        {
            error(text);
        }
        let good = manifest(&[signed(7, "one")]);
        error(&good[..good.len() - 1]);
        error(&good.replace("sha256:", "sha256:../"));
        error(&good.replace(":7", ":-7"));
        error(&good.replace(":7", ":1e30"));
        error(&"[".repeat(1_000_000));
        assert!(error(&good.replace(":2", ":1")).contains("schema version"));
    }

    #[test]
    fn number_and_size_of_signatures_are_bounded() {
        let most = vec![signed(PAYLOAD_MAX as u64, &"A".repeat(SIGNATURE_MAX)); SIGNATURES_MAX];
        assert_eq!(parse(manifest(&most).as_bytes()).unwrap().len(), SIGNATURES_MAX);
        let more = vec![signed(1, "A"); SIGNATURES_MAX + 1];
        assert!(error(&manifest(&more)).contains("more than 128 signatures"));
        assert!(error(&manifest(&[signed(PAYLOAD_MAX as u64 + 1, "A")])).contains("larger"));
        assert!(error(&manifest(&[signed(1, &"A".repeat(SIGNATURE_MAX + 1))])).contains("larger"));
        assert!(error(&" ".repeat(10 << 20)).contains("bytes"));
    }
}
