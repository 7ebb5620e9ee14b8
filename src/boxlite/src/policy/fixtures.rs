//! Keys and signatures for the tests. Those in constants were made with the command `openssl`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

use super::signature::Signature;
use crate::image::Digest;

/// A key that signs, P-256.
pub(super) struct TestKey(EcdsaKeyPair);

impl TestKey {
    pub(super) fn new() -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap())
    }

    /// The public key.
    pub(super) fn pem(&self) -> String {
        // SEQUENCE { SEQUENCE { OID id-ecPublicKey, OID P-256 }, BIT STRING point }
        let mut der = vec![0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
        der.extend([0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00]);
        der.extend(self.0.public_key().as_ref());
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }

    pub(super) fn sign(&self, payload: Vec<u8>) -> Signature {
        let signature = self.0.sign(&SystemRandom::new(), &payload).unwrap();
        Signature { payload, signature: STANDARD.encode(signature) }
    }
}

/// What a signature says, as cosign writes it.
pub(super) fn payload(reference: &str, digest: &Digest) -> Vec<u8> {
    format!(
        concat!(
            r#"{{"critical":{{"identity":{{"docker-reference":"{reference}"}},"#,
            r#""image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"#,
            r#""optional":null}}"#
        ),
        reference = reference,
        digest = digest
    )
    .into_bytes()
}

/// What the signatures below are for.
pub(super) const MESSAGE: &[u8] = br#"{"a message":"to be signed"}"#;

/// Kind of key and hash, the key, and a signature in base64.
pub(super) const SIGNED: [(&str, &str, &str); 6] = [
    ("ecdsa-p256", P256, P256_SIGNATURE),
    ("ecdsa-p384 sha384", P384, P384_SHA384_SIGNATURE),
    ("ecdsa-p384 sha256", P384, P384_SHA256_SIGNATURE),
    ("ed25519", ED25519, ED25519_SIGNATURE),
    ("rsa-2048", RSA_2048, RSA_2048_SIGNATURE),
    ("rsa-4096", RSA_4096, RSA_4096_SIGNATURE),
];

const P256: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEs4CMG89iX1oY9nG5NB4dRcepynZK
NBFWW1NrjymzkGA0QFYJ5B37aZM/EIXG1ulFQZg4CCKXqXnQ2e/Yvn84hQ==
-----END PUBLIC KEY-----
";

const P384: &str = "-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEx94gDCNmZkKfswz3d5XbOg1OjPDRlSXS
fLWg7YndmDof1Orf8f05adhcW0P0/nxyzp8Go4HsqYYkmxmeuonVC6K9fhFbyizE
k1j+aqjxeRF70bJ8+4lFkZ0FRu0prMgO
-----END PUBLIC KEY-----
";

const ED25519: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAXttDVVs1I/mg9TeN5dwIFS9tBA1w4QV562gwF1bYBEM=
-----END PUBLIC KEY-----
";

const RSA_2048: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAlAJ1qc+8m0TPifYV76Gb
zEE6rw10RbT9J9brXe5VE+7qqSgt2yP1ph6I5RmFPnBvDUgLTO5l1oaQwO/+DADG
kybzn9FVb/Vt/byt/O6aB+2r0ODTES+rLB9rHxLRk+A4fFVhWgB1k4vneshK5yJ1
uY5300BzbAIn0q+vtuyaHWdvb/zKAim4kIOlNuocBxFjqG9ptkEWU98SKuubQKun
EmR+hyiqSHvx6qePTsZpePNDP2eBDF/EtL0se2wChdi55CR8S0FEkTZdmKucLE00
2kAjgJ4PVROiww2v5H3wQvRKvn6AvpfM5icMUjIw1UAGjEmxeEzNDp/z+YXMbTUe
jQIDAQAB
-----END PUBLIC KEY-----
";

const RSA_4096: &str = "-----BEGIN PUBLIC KEY-----
MIICIjANBgkqhkiG9w0BAQEFAAOCAg8AMIICCgKCAgEAmQStmea87/6O69e74x8t
ycFoKZ8SyjHynDD7NOrZaSyPOfW/rAJmOPqkF5FQz8yTxVJlV4vCYsorOK1424lR
GMwus6CwYTixdkxf3oIA2OXmyiTpZ2R7IQ/E3C6k4VdAmVTQFjV06CAtJjd9pLzi
eGUG5q7sk1vvojPZiHlleFqDv+njAgK1sYiVE5AIVHxJB+6tiYk8G4ukBU7tZEk5
zzGlWkQRqU3ohX7ipJR78jUwnmqo28Th2mD6YlMp0mEd/Q7GuR40WC2WIJlqU0v9
BDNn42GUtKcBT86WvN5LNhB/wrI02eXEGuvLEjFbf8+dKvMlQypwrFbAvpjTigFd
EtfPoZ5RKO/F5fyQqIxYFMdklK5UKmikqoVbVZr20FEn+nNt4tEO5/RgoFH5RcTY
4EsM8hqFW8FxFPqkEvEGw1sHTcNZkImW0K+tVKqbMD1kXQiSQByyGDSrCpguSpzX
i7C0tcOz//MYEY9uV7gE5e2zoPygYo7ZeotgfEOmUbZZ38qy4kTTteBv6POJUGyk
pWWGXL1Hkz7CtCsunGDi9dCyQ1c8aPOvEz5hHNWk9mQCoU633C/yAk8QypdJeXwU
gckIs5C0Db8R/WUI7lWuYR4JPgv37UQ5ep2SE5SIfvMCnS4W1eAfRcsrCSVrSVsj
iY82z+s21+Gcv+IEb8+MhEsCAwEAAQ==
-----END PUBLIC KEY-----
";

const P256_SIGNATURE: &str =
    "MEUCIQDicoCZ5uNhPvON8I4RBiyHmPpDiIufWA60RdKdDerycgIgfvByEkxqDlbcOyPYHY2vLSNSXizR2y1FPady70vfZ3g=";

const P384_SHA384_SIGNATURE: &str = concat!(
    "MGUCMQCa7zmcJmjovjEhqoDWCqqO2RwsA4bBNb5eBc8uSjkiRPw8V00kclZ5f38dTwZJgjcCMCOzt2KQRh0/zQj6NFq9vgEWTT/y",
    "VaqpbPfV1O3UPRr1VqcSywaw5Pzhg4VcyKO83g==",
);

const P384_SHA256_SIGNATURE: &str = concat!(
    "MGQCMBt+rhZPaQvORliGW/dIXUqehPVn5M0ZE9TcBK6BWNe1TzEkjk7vlE3EsHPAw17+BgIwVIhghNN6hFC/lHjLLKUAv1rf3V/D",
    "OK8uyXHMRE2Put8aqqd/rc2tTwPzsu1QthRZ",
);

const ED25519_SIGNATURE: &str =
    "GWMn4ZRgVjuUC7m3KbNZWV3s2LcXDOr1wFS3aKnrz/fWRaSk+9LFynoAl24wdmzck0Ru9WyHwuzrs8Mi3DVsCQ==";

const RSA_2048_SIGNATURE: &str = concat!(
    "cpgWQGtt0RMOiYSkQtKPvHIvpXE2LJrwZ8JYOyfGAHljjcx6G2x/xictQOPgG7CzXHl5iDvhQkoXlJ4MCsK8eseIicVoopi6VR7T",
    "K0yOSmDXfYK8yFb5NwaXlGgER5+252LsG9QwZ2CdurQZbliFRGj/CaRflTOEg5CUlH+PY2iBlE9/LjlvasD/y7an8rTYndjoA6Y4",
    "Dq6k/qSBocvq3lYfywy9VqC2hQ/iG4H3sU/Y8uji9mg9v0uMmJfN9ZMxx34GhYrt5KMTOpkKVBX+aNSJaxPDm7vWjpq/iyykIBxr",
    "5iHT+Qmlf2F+2gFdFTslY/BG5N9KrckuHRfDBcK2uw==",
);

const RSA_4096_SIGNATURE: &str = concat!(
    "LalZqmnOGJUFvhgeICanVuvJBEi5keKd2ls1rkiyewE4PSKY03UON96HaVkrjN3vs/W/oXRSG0FZnUPM26TbSZJo70//g25Dvw/z",
    "B6Pmeg3aHDD9h3rIC3vkNQVf9YO3vvHGCFUkCNRGynARzzCgT4jJUrYN/d1g2nG8/XGISM4voLnjtGaIdJqyDY4H7QVuu0Wtd1Yw",
    "1eW7fn7tFigc1sEK+vHExIz4wRCsPMX5dVqeZLRwxh9DGrHPDPps/4Q30MZsbLdd163qrDBVanqDG6J11dlMfs7WAP38/wCNQEN+",
    "23X8BbJxg1MjhOrcMmO6XLOZ+ycsS3YNGgEvH7qk0Z0tnI85VAjQXF1X9KMq0+afx2vLm0iC2J6pwlnCQb00UoCJ6QHj6Rhu7MDO",
    "G4IugLn47zmFdndWbzDDyOMgHRvDvI2Iv+eAuzHK9COLCKh2GqowKIudZo/80dnpr95OXDHwfqGSXR55sIGLZeJxbRFjWIDJzhpG",
    "D2FYwvSPzDO5rQRRhPTKSK8obCuLKNh3br5IhAanebF0Ji1TLCjK1X7yarsw2Sm81TIBmM0PQFYTv1Gnt+TFOHQr0aYeg7Dukf7P",
    "3hBbc0CwAEbHdivfqu1NIp4O0oWqkppJCYon2KEpQsTZiJ7XlWZLlZGfujJIm9kdzDQAejDq/ftLGLZiH3U=",
);

/// A curve that is not supported.
pub(super) const P521: &str = "-----BEGIN PUBLIC KEY-----
MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQBmFEc8sebEkXVeYotu47qVaTHjuGA
DtMmtQptjPIp0W3+whX8T5LNf8Jw735jzyxMfRsgiPv+GvohJGJ9zubfHWAAFeIG
BfspPeaT6QGrdWvMho4uj49mVbZmDv+DBGoK6HJPv2UrIOPV2+nHWZp4roOvG3Gy
WuOOTITsT4a70+PtOVg=
-----END PUBLIC KEY-----
";

/// A key that is too short.
pub(super) const RSA_1024: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQD2gkfoN/ZYPhHADSpVy24V/KiU
Cn5gQeiG9xeHPufWMmnjypqlirAgDT7D9ZQPW11SGcKcT3X7sYDx2jP/kC8Xtb2w
NCFKrUWJ8jPZ/3yLuDP+srpMYp1nsi7yrwup7ZxKEGOQtXxPeSOvAW7myWrVYinz
8gOAwbA5KVZ8y8tejwIDAQAB
-----END PUBLIC KEY-----
";
