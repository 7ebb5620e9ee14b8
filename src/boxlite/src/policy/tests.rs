//! Policies, and the images that they let run.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

use super::*;

/// What stands before the point of a key for P-256 and before one of Ed25519 in a SubjectPublicKeyInfo.
const P256_HEAD: &str = "3059301306072a8648ce3d020106082a8648ce3d030107034200";
const ED25519_HEAD: &str = "302a300506032b6570032100";

struct Signer {
    pair: EcdsaKeyPair,
}

impl Signer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
        Self { pair }
    }

    fn pem(&self) -> String {
        pem(P256_HEAD, self.pair.public_key().as_ref())
    }

    fn sign(&self, payload: &Value) -> Signature {
        let payload = payload.to_string().into_bytes();
        let signature = self.pair.sign(&SystemRandom::new(), &payload).unwrap();
        Signature { payload, signature: STANDARD.encode(signature) }
    }
}

fn pem(head: &str, key: &[u8]) -> String {
    let mut der: Vec<u8> =
        (0..head.len()).step_by(2).map(|at| u8::from_str_radix(&head[at..at + 2], 16).unwrap()).collect();
    der.extend(key);
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
}

fn payload(digest: &Digest, reference: &str) -> Value {
    json!({
        "critical": {
            "identity": { "docker-reference": reference },
            "image": { "docker-manifest-digest": digest.to_string() },
            "type": "cosign container image signature",
        },
        "optional": { "creator": "somebody" },
    })
}

fn policy(document: &Value) -> Policy {
    Policy::parse(document.to_string().as_bytes()).unwrap()
}

/// A policy that wants signatures by this key.
fn signed(pem: &str, identity: Option<Value>) -> Policy {
    let mut requirement = json!({ "type": "sigstoreSigned", "keyData": STANDARD.encode(pem) });
    if let Some(identity) = identity {
        requirement["signedIdentity"] = identity;
    }
    policy(
        &json!({ "default": [{ "type": "reject" }], "transports": { "docker": { "host:5000": [requirement] } } }),
    )
}

const APP: Origin<'static> =
    Origin::Registry { registry: "host:5000", repository: "ns/app", tag: Some("v1"), digest: None };

fn why(result: Result<(), PolicyError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn the_most_specific_scope_decides() {
    let accept = json!([{ "type": "insecureAcceptAnything" }]);
    let reject = json!([{ "type": "reject" }]);
    let policy = policy(&json!({
        "default": reject,
        "transports": {
            "docker": {
                "host:5000/ns/app:v1": accept,
                "host:5000/ns/app": reject,
                "host:5000": accept,
                "*.example.com": accept,
                "docker.io/library": accept,
            },
            "oci-archive": { "/srv": accept },
            "docker-archive": { "": accept },
        },
    }));
    let may = |registry, repository, tag| {
        let origin = Origin::Registry { registry, repository, tag: Some(tag), digest: None };
        policy.check(&origin, &[], &[]).is_ok()
    };
    assert!(may("host:5000", "ns/app", "v1"));
    assert!(!may("host:5000", "ns/app", "v2"));
    assert!(may("host:5000", "ns/application", "v2"));
    assert!(!may("host", "ns/application", "v2"), "another port is another host");
    assert!(may("a.b.example.com", "x", "y"));
    assert!(!may("example.com", "x", "y"));
    assert!(may("docker.io", "library/busybox", "latest") && !may("docker.io", "library2/busybox", "latest"));
    let archive = |transport, path| {
        policy.check(&Origin::Archive { transport, path: Path::new(path) }, &[], &[]).is_ok()
    };
    assert!(archive("oci-archive", "/srv/a/b.tar") && !archive("oci-archive", "/srvx/b.tar"));
    assert!(!archive("oci", "/srv/a") && archive("docker-archive", "/x"));
}

#[test]
fn an_image_runs_when_the_key_of_the_policy_signed_it_and_only_then() {
    let (signer, other) = (Signer::new(), Signer::new());
    let digest = Digest::of(b"manifest");
    let policy = signed(&signer.pem(), None);
    assert!(policy.verdict_without_signatures(&APP).unwrap());
    let good = signer.sign(&payload(&digest, "host:5000/ns/app:v1"));
    let check = |signatures: &[Signature]| policy.check(&APP, &[digest], signatures);
    check(std::slice::from_ref(&good)).unwrap();
    assert!(why(check(&[])).contains("there is none"));
    let wrong = other.sign(&payload(&digest, "host:5000/ns/app:v1"));
    assert!(why(check(std::slice::from_ref(&wrong))).contains("not made by a key"));
    check(&[wrong, good.clone()]).unwrap();
    // Of an index that led to the manifest.
    let index = Digest::of(b"index");
    policy
        .check(
            &APP,
            &[Digest::of(b"another"), index],
            &[signer.sign(&payload(&index, "host:5000/ns/app:v1"))],
        )
        .unwrap();

    let another = why(policy.check(&APP, &[Digest::of(b"another")], std::slice::from_ref(&good)));
    assert!(another.contains("another image") && another.contains("host:5000"), "{another}");
    for at in 0..good.payload.len() {
        let mut changed = good.clone();
        changed.payload[at] ^= 1;
        assert!(why(check(&[changed])).contains("not made by a key"));
    }
    let mut cut = good.clone();
    cut.signature.truncate(8);
    assert!(check(&[cut, Signature { signature: "?".into(), ..good }]).is_err());
}

#[test]
fn what_a_signature_names_has_to_be_the_image_as_the_policy_wants_it() {
    let signer = Signer::new();
    let digest = Digest::of(b"manifest");
    let by_digest =
        Origin::Registry { registry: "host:5000", repository: "ns/app", tag: None, digest: Some(&digest) };
    let table = [
        (None, "host:5000/ns/app:v1", true, true),
        (None, "host:5000/ns/app:v2", false, true),
        (None, "host:5000/ns/app", false, false),
        (Some(json!({ "type": "matchExact" })), "host:5000/ns/app:v1", true, false),
        (Some(json!({ "type": "matchRepository" })), "host:5000/ns/app", true, true),
        (Some(json!({ "type": "matchRepository" })), "host:5000/ns/other:v1", false, false),
        (
            Some(json!({ "type": "exactRepository", "dockerRepository": "a/b" })),
            "docker.io/a/b:1",
            true,
            true,
        ),
        (Some(json!({ "type": "exactReference", "dockerReference": "a/b:1" })), "a/b:1", true, true),
        (Some(json!({ "type": "exactReference", "dockerReference": "a/b:1" })), "a/b:2", false, false),
        (
            Some(
                json!({ "type": "remapIdentity", "prefix": "host:5000/ns", "signedPrefix": "vendor.example/x" }),
            ),
            "vendor.example/x/app:v1",
            true,
            true,
        ),
        (
            Some(
                json!({ "type": "remapIdentity", "prefix": "host:5000/n", "signedPrefix": "vendor.example/x" }),
            ),
            "vendor.example/xs/app:v1",
            false,
            false,
        ),
    ];
    for (identity, reference, tagged, digested) in table {
        let policy = signed(&signer.pem(), identity.clone());
        let signature = [signer.sign(&payload(&digest, reference))];
        assert_eq!(policy.check(&APP, &[digest], &signature).is_ok(), tagged, "{identity:?} {reference}");
        assert_eq!(
            policy.check(&by_digest, &[digest], &signature).is_ok(),
            digested,
            "{identity:?} {reference}"
        );
    }
}

#[test]
fn payloads_that_are_not_what_they_should_be_are_refused_though_they_are_signed() {
    let signer = Signer::new();
    let digest = Digest::of(b"manifest");
    let policy = signed(&signer.pem(), None);
    let good = payload(&digest, "host:5000/ns/app:v1");
    let mut unknown = good.clone();
    unknown["critical"]["more"] = json!(1);
    let mut beside = good.clone();
    beside["beside"] = json!(1);
    let mut kind = good.clone();
    kind["critical"]["type"] = json!("atomic container signature");
    let mut none = good.clone();
    none["critical"].as_object_mut().unwrap().remove("image");
    for bad in [unknown, beside, kind, none, json!([]), json!("x")] {
        assert!(policy.check(&APP, &[digest], &[signer.sign(&bad)]).is_err(), "{bad}");
    }
    let mut bare = good;
    bare["optional"] = Value::Null;
    policy.check(&APP, &[digest], &[signer.sign(&bare)]).unwrap();
}

#[test]
fn all_requirements_of_a_scope_must_hold() {
    let (first, second) = (Signer::new(), Signer::new());
    let digest = Digest::of(b"manifest");
    let requirement =
        |signer: &Signer| json!({ "type": "sigstoreSigned", "keyDatas": [STANDARD.encode(signer.pem())] });
    let both = policy(&json!({ "default": [requirement(&first), requirement(&second)] }));
    let by = |signer: &Signer| signer.sign(&payload(&digest, "host:5000/ns/app:v1"));
    assert!(both.check(&APP, &[digest], &[by(&first)]).is_err());
    both.check(&APP, &[digest], &[by(&second), by(&first)]).unwrap();
    let reject = policy(&json!({ "default": [requirement(&first), { "type": "reject" }] }));
    assert!(reject.verdict_without_signatures(&APP).is_err());
    let archive = Origin::Archive { transport: "oci", path: Path::new("/x") };
    assert!(why(both.check(&archive, &[digest], &[by(&first), by(&second)])).contains("no name"));
}

#[test]
fn keys_are_read_from_files_and_of_several_kinds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    let wants = policy(&json!({ "default": [{ "type": "sigstoreSigned", "keyPath": path }] }));
    let digest = Digest::of(b"manifest");
    let said = payload(&digest, "host:5000/ns/app:v1");
    let signer = Signer::new();
    let signature = [signer.sign(&said)];
    assert!(why(wants.check(&APP, &[digest], &signature)).contains("cannot be read"));
    std::fs::write(&path, "nothing").unwrap();
    assert!(why(wants.check(&APP, &[digest], &signature)).contains("no `PUBLIC KEY`"));
    std::fs::write(&path, pem("3003020101", b"")).unwrap();
    assert!(why(wants.check(&APP, &[digest], &signature)).contains("no kind that is supported"));
    std::fs::write(&path, signer.pem()).unwrap();
    wants.check(&APP, &[digest], &signature).unwrap();

    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
    std::fs::write(&path, pem(ED25519_HEAD, pair.public_key().as_ref())).unwrap();
    let payload = said.to_string().into_bytes();
    let edwards = STANDARD.encode(pair.sign(&payload));
    wants.check(&APP, &[digest], &[Signature { payload, signature: edwards }]).unwrap();
    assert!(wants.check(&APP, &[digest], &signature).is_err());
}

#[test]
fn what_is_not_offered_refuses_its_scope_and_leaves_the_others_alone() {
    let policy = policy(&json!({
        "default": [{ "type": "insecureAcceptAnything" }],
        "transports": { "docker": {
            "gpg.example": [{ "type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k" }],
            "rekor.example": [{ "type": "sigstoreSigned", "keyPath": "/k", "rekorPublicKeyPath": "/r" }],
            "fulcio.example": [{ "type": "sigstoreSigned", "fulcio": { "caPath": "/c" }, "rekorPublicKeyPath": "/r" }],
        } },
    }));
    policy.check(&APP, &[], &[]).unwrap();
    for registry in ["gpg.example", "rekor.example", "fulcio.example"] {
        let origin = Origin::Registry { registry, repository: "x", tag: None, digest: None };
        assert!(why(policy.check(&origin, &[], &[])).contains("not supported"), "{registry}");
    }
}

#[test]
fn a_policy_that_is_not_understood_is_no_policy() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for text in [
        "",
        "{}",
        "[]",
        r#"{"default":[]}"#,
        r#"{"default":[{"type":"acceptAnything"}]}"#,
        r#"{"default":[{"type":"reject","keyPath":"/x"}]}"#,
        r#"{"default":[{"type":"reject"}],"more":1}"#,
        r#"{"default":[{"type":"reject"}],"default":[{"type":"insecureAcceptAnything"}]}"#,
        r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a":[{"type":"reject"}],"a":[{"type":"insecureAcceptAnything"}]}}}"#,
        r#"{"default":[{"type":"sigstoreSigned"}]}"#,
        r#"{"default":[{"type":"sigstoreSigned","keyPath":"/a","keyData":"YQ=="}]}"#,
        r#"{"default":[{"type":"sigstoreSigned","keyPaths":[]}]}"#,
        r#"{"default":[{"type":"sigstoreSigned","keyData":"?"}]}"#,
        r#"{"default":[{"type":"sigstoreSigned","keyPath":"/a","signedIdentity":{"type":"any"}}]}"#,
        r#"{"default":[{"type":"sigstoreSigned","keyPath":"/a","signedIdentity":{"type":"exactReference","dockerReference":"a"}}]}"#,
        &deep,
    ] {
        assert!(Policy::parse(text.as_bytes()).is_err(), "{}", &text[..text.len().min(200)]);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.json");
    assert!(matches!(Policy::read(&path), Err(PolicyError::Read { .. })));
    std::fs::write(&path, vec![b' '; 2 << 20]).unwrap();
    assert!(Policy::read(&path).unwrap_err().to_string().contains("more than"));
}
