//! Public keys: PEM files with a SubjectPublicKeyInfo (RFC 5280, 4.1.2.7), as `cosign public-key` writes them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;

/// The largest file of keys, in bytes.
const LIMIT: u64 = 1 << 20;

/// Object identifiers, as DER has them: algorithms (RFC 5480, RFC 8017, RFC 8410), then curves.
const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const EDWARDS: &[u8] = &[0x2b, 0x65, 0x70];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];

/// A key that signatures are verified with. The hash is SHA-256 for all that need one, as cosign signs.
pub(super) struct Key {
    key: UnparsedPublicKey<Vec<u8>>,
}

impl Key {
    /// Whether this key made the signature.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        self.key.verify(message, signature).is_ok()
    }
}

/// The keys in a file; tells why they cannot be used.
pub(super) fn read(path: &Path) -> Result<Vec<Key>, String> {
    let mut pem = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LIMIT).read_to_end(&mut pem));
    read.map_err(|error| format!("the key {} cannot be read: {error}", path.display()))?;
    parse(&pem).map_err(|reason| format!("the key {} {reason}", path.display()))
}

/// The keys in a PEM text, at least one.
pub(super) fn parse(pem: &[u8]) -> Result<Vec<Key>, String> {
    let mut keys = Vec::new();
    for section in SubjectPublicKeyInfoDer::pem_slice_iter(pem) {
        let der = section.map_err(|error| format!("is no PEM text: {error}"))?;
        keys.push(key(&der).ok_or("is of no kind that is supported: ECDSA P-256 or P-384, Ed25519, RSA")?);
    }
    if keys.is_empty() { Err("has no `PUBLIC KEY` in it".into()) } else { Ok(keys) }
}

fn key(der: &[u8]) -> Option<Key> {
    let (outer, rest) = element(der, SEQUENCE)?;
    let (algorithm, bits) = element(outer, SEQUENCE)?;
    let (bits, after) = element(bits, BIT_STRING)?;
    let (kind, parameters) = element(algorithm, OBJECT_IDENTIFIER)?;
    // Keys are whole bytes.
    let (0, key) = bits.split_first().map(|(unused, key)| (*unused, key))? else { return None };
    if !rest.is_empty() || !after.is_empty() {
        return None;
    }
    let algorithm: &'static dyn VerificationAlgorithm = match kind {
        EC => {
            let (curve, rest) = element(parameters, OBJECT_IDENTIFIER)?;
            match curve {
                _ if !rest.is_empty() => return None,
                P256 => &ECDSA_P256_SHA256_ASN1,
                P384 => &ECDSA_P384_SHA256_ASN1,
                _ => return None,
            }
        }
        RSA => &RSA_PKCS1_2048_8192_SHA256,
        EDWARDS => &ED25519,
        _ => return None,
    };
    Some(Key { key: UnparsedPublicKey::new(algorithm, key.to_vec()) })
}

/// Tags of DER (X.690).
const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// The contents of the element at the start, which must have this tag, and what follows it. Lengths up to 65535 bytes, in
/// the one shortest form that DER allows.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, der) = der.split_first()?;
    let (&first, der) = der.split_first()?;
    let (length, der) = match first {
        0..=0x7f => (usize::from(first), der),
        0x81 => (usize::from(*der.first()?), &der[1..]),
        0x82 => (usize::from(u16::from_be_bytes([*der.first()?, *der.get(1)?])), &der[2..]),
        _ => return None,
    };
    let shortest = match first {
        0x81 => length >= 0x80,
        0x82 => length >= 0x100,
        _ => true,
    };
    (found == tag && shortest && length <= der.len()).then(|| der.split_at(length))
}
