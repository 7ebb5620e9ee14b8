//! Public keys, and whether one of them made a signature.
//!
//! A key is a PEM block `PUBLIC KEY` (RFC 7468) with a `SubjectPublicKeyInfo` (RFC 5280) in DER:
//!
//! ```text
//!   SEQUENCE { SEQUENCE { OID algorithm, parameters }, BIT STRING key }
//! ```
//!
//! | algorithm | parameters | a signature is |
//! |---|---|---|
//! | `id-ecPublicKey` (RFC 5480) | P-256 | ECDSA with SHA-256, in DER |
//! | | P-384 | ECDSA with SHA-384, or with SHA-256, in DER: which of both depends on the program that signs |
//! | `id-Ed25519` (RFC 8410) | none | 64 bytes |
//! | `rsaEncryption` (RFC 3279) | NULL | PKCS #1 v1.5 with SHA-256; 2048 to 8192 bits |

use ring::signature as algorithm;
use rustls_pki_types::pem::{PemObject, SectionKind};

const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const NULL: u8 = 0x05;
const OID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    kind: Kind,
    public: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    P256,
    P384,
    Ed25519,
    Rsa,
}

impl Key {
    /// The one key that `pem` holds. Two are refused: which of them counts would be a guess.
    pub(super) fn parse(pem: &[u8]) -> Result<Self, String> {
        let mut found = None;
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
            match section {
                Ok((SectionKind::PublicKey, der)) if found.is_none() => found = Some(der),
                Ok((SectionKind::PublicKey, _)) => return Err("it holds more than one key".into()),
                Ok(_) => return Err("it holds something else than public keys".into()),
                Err(_) => return Err("its PEM is broken".into()),
            }
        }
        Self::from_der(&found.ok_or("it holds no PEM block `PUBLIC KEY`")?)
    }

    fn from_der(der: &[u8]) -> Result<Self, String> {
        const BROKEN: &str = "its DER is broken";
        let (algorithm, parameters, public) = key_info(der).ok_or(BROKEN)?;
        let kind = match algorithm {
            EC => match parameters {
                Some((OID, P256)) => Kind::P256,
                Some((OID, P384)) => Kind::P384,
                _ => return Err("its curve is neither P-256 nor P-384".into()),
            },
            ED25519 if parameters.is_none() => Kind::Ed25519,
            RSA if matches!(parameters, Some((NULL, []))) => Kind::Rsa,
            ED25519 | RSA => return Err(BROKEN.into()),
            _ => return Err("its algorithm is none of ECDSA, Ed25519 and RSA".into()),
        };
        match kind {
            // Uncompressed points; whether it lies on the curve is checked with each signature.
            Kind::P256 if public.len() == 65 && public[0] == 4 => {}
            Kind::P384 if public.len() == 97 && public[0] == 4 => {}
            Kind::Ed25519 if public.len() == 32 => {}
            Kind::Rsa => match modulus_bits(public).ok_or(BROKEN)? {
                2048..=8192 => {}
                bits => return Err(format!("it has {bits} bits, and 2048 to 8192 are allowed")),
            },
            _ => return Err(BROKEN.into()),
        }
        Ok(Self { kind, public: public.to_vec() })
    }

    /// Whether the owner of this key signed `message`.
    pub(super) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let by = |algorithm: &'static dyn algorithm::VerificationAlgorithm| {
            algorithm::UnparsedPublicKey::new(algorithm, &self.public).verify(message, signature).is_ok()
        };
        match self.kind {
            Kind::P256 => by(&algorithm::ECDSA_P256_SHA256_ASN1),
            Kind::P384 => by(&algorithm::ECDSA_P384_SHA384_ASN1) || by(&algorithm::ECDSA_P384_SHA256_ASN1),
            Kind::Ed25519 => by(&algorithm::ED25519),
            Kind::Rsa => by(&algorithm::RSA_PKCS1_2048_8192_SHA256),
        }
    }
}

/// A DER value: its tag and content.
type Value<'a> = (u8, &'a [u8]);

/// Algorithm, its parameters, and the bits of the key.
fn key_info(der: &[u8]) -> Option<(&[u8], Option<Value<'_>>, &[u8])> {
    let (info, rest) = expect(SEQUENCE, der)?;
    let (identifier, after) = expect(SEQUENCE, info)?;
    let (bits, end) = expect(BIT_STRING, after)?;
    let (algorithm, parameters) = expect(OID, identifier)?;
    let parameters = match parameters {
        [] => None,
        parameters => {
            let (value, []) = next(parameters)? else { return None };
            Some(value)
        }
    };
    // The first byte of a bit string counts the bits of the last that do not belong to it.
    match (rest, end, bits) {
        ([], [], [0, public @ ..]) => Some((algorithm, parameters, public)),
        _ => None,
    }
}

/// The length of the modulus in `RSAPublicKey` (RFC 8017): SEQUENCE { INTEGER modulus, INTEGER exponent }.
fn modulus_bits(der: &[u8]) -> Option<usize> {
    let (numbers, []) = expect(SEQUENCE, der)? else { return None };
    let (modulus, exponent) = expect(INTEGER, numbers)?;
    let (_, []) = expect(INTEGER, exponent)? else { return None };
    // A number whose highest bit is set has a zero byte before it, or it were negative; none else has one.
    match modulus {
        [0, first @ 0x80..=0xff, rest @ ..] => Some(bits(*first) + 8 * rest.len()),
        [first @ 1..=0x7f, rest @ ..] => Some(bits(*first) + 8 * rest.len()),
        _ => None,
    }
}

fn bits(byte: u8) -> usize {
    8 - byte.leading_zeros() as usize
}

fn expect(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let ((found, content), rest) = next(der)?;
    (found == tag).then_some((content, rest))
}

/// The first value, and what follows it. Lengths have the one shortest form that DER allows, of two bytes at most.
fn next(der: &[u8]) -> Option<(Value<'_>, &[u8])> {
    let (tag, length, rest) = match der {
        [tag, length @ 0..=0x7f, rest @ ..] => (*tag, usize::from(*length), rest),
        [tag, 0x81, length @ 0x80..=0xff, rest @ ..] => (*tag, usize::from(*length), rest),
        [tag, 0x82, high @ 1..=0xff, low, rest @ ..] => {
            (*tag, usize::from(*high) << 8 | usize::from(*low), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some(((tag, content), rest))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::super::fixtures::{self, TestKey};
    use super::*;

    fn pem(der: &[u8]) -> String {
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }

    fn der(pem: &str) -> Vec<u8> {
        STANDARD.decode(pem.lines().filter(|line| !line.starts_with('-')).collect::<String>()).unwrap()
    }

    #[test]
    fn keys_and_signatures_of_openssl_are_understood() {
        for (name, pem, signature) in fixtures::SIGNED {
            let key = Key::parse(pem.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut signature = STANDARD.decode(signature).unwrap();
            assert!(key.signed(fixtures::MESSAGE, &signature), "{name}");
            assert!(!key.signed(b"another message", &signature), "{name}");
            *signature.last_mut().unwrap() ^= 1;
            assert!(!key.signed(fixtures::MESSAGE, &signature), "{name}");
            assert!(!key.signed(fixtures::MESSAGE, b""), "{name}");
        }
    }

    #[test]
    fn a_signature_counts_for_no_other_key() {
        for (signer, _, signature) in fixtures::SIGNED {
            for (name, pem, _) in fixtures::SIGNED {
                let same = signer.split(' ').next() == name.split(' ').next();
                let key = Key::parse(pem.as_bytes()).unwrap();
                assert_eq!(
                    key.signed(fixtures::MESSAGE, &STANDARD.decode(signature).unwrap()),
                    same,
                    "{signer} {name}"
                );
            }
        }
    }

    #[test]
    fn keys_that_cannot_be_used_say_why() {
        let parse = |text: &str| Key::parse(text.as_bytes()).unwrap_err();
        assert_eq!(parse(fixtures::P521), "its curve is neither P-256 nor P-384");
        assert_eq!(parse(fixtures::RSA_1024), "it has 1024 bits, and 2048 to 8192 are allowed");
        assert_eq!(parse(""), "it holds no PEM block `PUBLIC KEY`");
        assert_eq!(parse("ssh-ed25519 AAAA"), "it holds no PEM block `PUBLIC KEY`");
        let key = TestKey::new().pem();
        assert_eq!(parse(&format!("{key}{key}")), "it holds more than one key");
        assert_eq!(parse(&key.replace("PUBLIC", "PRIVATE")), "it holds something else than public keys");
        assert_eq!(parse(&key.replace("-----END", "-----FIN")), "its PEM is broken");
        assert_eq!(parse(&key.replace("MF", "M?")), "its PEM is broken");
    }

    #[test]
    fn every_other_length_of_a_key_is_an_error() {
        for (name, text, _) in fixtures::SIGNED {
            let whole = der(text);
            assert!(Key::parse(pem(&whole).as_bytes()).is_ok());
            for length in 0..whole.len() {
                assert!(Key::from_der(&whole[..length]).is_err(), "{name} {length}");
            }
            let mut longer = whole.clone();
            longer.push(0);
            assert!(Key::from_der(&longer).is_err(), "{name}");
        }
    }

    #[test]
    fn no_damage_makes_another_key_or_a_panic() {
        for (name, text, signature) in fixtures::SIGNED {
            let signature = STANDARD.decode(signature).unwrap();
            let whole = der(text);
            // RSA keys are long, and each try costs a verification.
            for at in (0..whole.len()).step_by(1 + whole.len() / 100) {
                for mask in [0x01, 0x80, 0xff] {
                    let mut damaged = whole.clone();
                    damaged[at] ^= mask;
                    let key = Key::from_der(&damaged);
                    assert!(
                        key.is_err() || !key.unwrap().signed(fixtures::MESSAGE, &signature),
                        "{name} {at} {mask}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_key_has_nothing_in_it_that_does_not_belong_to_it() {
        let change = |pem: &str, at: usize, bytes: &[u8], lengths: &[usize]| {
            let mut changed = der(pem);
            changed.splice(at..at, bytes.iter().copied());
            for length in lengths {
                changed[*length] += u8::try_from(bytes.len()).unwrap();
            }
            Key::from_der(&changed)
        };
        let fixture = |name: &str| fixtures::SIGNED.iter().find(|signed| signed.0 == name).unwrap().1;
        let (ed25519, p256) = (fixture("ed25519"), fixture("ecdsa-p256"));
        assert!(change(ed25519, 0, &[], &[]).is_ok());
        // Parameters, a value after the key, one after the parameters, and one after everything.
        assert!(change(ed25519, 9, &[NULL, 0], &[1, 3]).is_err());
        assert!(change(ed25519, 44, &[NULL, 0], &[1]).is_err());
        assert!(change(p256, 23, &[NULL, 0], &[1, 3]).is_err());
        assert!(change(p256, 91, &[NULL, 0], &[]).is_err());
        // A compressed point begins with 2 or 3; a key's bits are whole bytes.
        for (at, byte) in [(26, 2), (26, 3), (26, 6), (25, 1)] {
            let mut changed = der(p256);
            changed[at] = byte;
            assert!(Key::from_der(&changed).is_err(), "{at} {byte}");
        }
    }

    #[test]
    fn lengths_have_their_shortest_form() {
        assert_eq!(next(&[2, 1, 7]), Some(((2, &[7][..]), &[][..])));
        for der in [
            &[2][..],
            &[2, 1],
            &[2, 0x80, 0, 0],
            &[2, 0x81, 1, 7],
            &[2, 0x82, 0, 0x80],
            &[2, 0x83, 0, 0, 1, 7],
            &[2, 0xff],
            &[2, 0x82, 0xff, 0xff, 0],
        ] {
            assert_eq!(next(der), None, "{der:?}");
        }
        let mut long = vec![4, 0x82, 1, 0];
        long.extend([0; 256]);
        assert!(next(&long).is_some());
    }

    #[test]
    fn the_length_of_a_modulus_is_that_of_its_number() {
        let key = |modulus: &[u8]| {
            let length = u8::try_from(modulus.len()).unwrap();
            [&[SEQUENCE, length + 5, INTEGER, length][..], modulus, &[INTEGER, 1, 3]].concat()
        };
        assert_eq!(modulus_bits(&key(&[0, 0x80, 1])), Some(16));
        assert_eq!(modulus_bits(&key(&[0x7f, 1])), Some(15));
        for bad in [&[][..], &[0], &[0, 0x7f], &[0, 0, 0x80], &[0x80, 1]] {
            assert_eq!(modulus_bits(&key(bad)), None, "{bad:?}");
        }
    }
}
