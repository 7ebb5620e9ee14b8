//! Signatures: what a policy asks for is checked before a layer is fetched.

use std::fs;
use std::path::Path;
use std::process::Command;

use boxlite_tests::layout;
use boxlite_tests::proxy::Proxy;
use boxlite_tests::puller::{Puller, small_image};
use boxlite_tests::registry::{Registry, openssl};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// An image in a registry, and two keys, of which the policy trusts the first.
struct Scene {
    registry: Registry,
    proxy: Proxy,
    image: TempDir,
    keys: TempDir,
    // The registry serves them from there.
    signatures: Vec<TempDir>,
}

impl Scene {
    fn new() -> Self {
        let registry = Registry::start();
        let image = small_image();
        registry.add(image.path(), "signed");
        let keys = tempfile::tempdir().unwrap();
        for name in ["trusted", "other"] {
            let key = format!("{name}.key");
            openssl(keys.path(), &["ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", &key]);
            openssl(keys.path(), &["ec", "-in", &key, "-pubout", "-out", &format!("{name}.pub")]);
        }
        let proxy = Proxy::before(registry.address());
        Self { registry, proxy, image, keys, signatures: Vec::new() }
    }

    fn reference(&self) -> String {
        format!("{}/signed:latest", self.proxy.host())
    }

    fn digest(&self) -> String {
        let index: Value =
            serde_json::from_slice(&fs::read(self.image.path().join("index.json")).unwrap()).unwrap();
        index["manifests"][0]["digest"].as_str().unwrap().to_owned()
    }

    /// Signs as cosign does, and puts the signature where cosign puts it.
    fn sign(&mut self, key: &str, digest: &str, identity: &str) {
        let payload = json!({
            "critical": {
                "identity": {"docker-reference": identity},
                "image": {"docker-manifest-digest": digest},
                "type": "cosign container image signature",
            },
            "optional": {},
        });
        let payload = payload.to_string();
        let signature = self.signature(key, &payload);
        let folder = attachment(payload.as_bytes(), &signature);
        self.registry.add(folder.path(), "signed");
        let index: Value =
            serde_json::from_slice(&fs::read(folder.path().join("index.json")).unwrap()).unwrap();
        let tag = format!("{}.sig", self.digest().replace(':', "-"));
        self.registry.name("signed", &tag, index["manifests"][0]["digest"].as_str().unwrap());
        self.signatures.push(folder);
    }

    /// ECDSA over the payload, in base64.
    fn signature(&self, key: &str, payload: &str) -> String {
        fs::write(self.keys.path().join("payload"), payload).unwrap();
        let key = format!("{key}.key");
        openssl(self.keys.path(), &["dgst", "-sha256", "-sign", &key, "-out", "signature", "payload"]);
        let encoded = Command::new("base64").arg("-w0").arg(self.keys.path().join("signature")).output();
        String::from_utf8(encoded.unwrap().stdout).unwrap()
    }

    /// A home with this requirement for this repository; everything else is refused.
    fn puller(&self, requirement: Value) -> Puller {
        let puller = Puller::new();
        let scope = format!("{}/signed", self.proxy.host());
        let policy = json!({
            "default": [{"type": "reject"}],
            "transports": {"docker": {scope: [requirement]}},
        });
        puller.write("policy.json", &policy);
        puller
    }

    fn trusted(&self) -> Value {
        json!({
            "type": "sigstoreSigned",
            "keyPath": self.keys.path().join("trusted.pub"),
            "signedIdentity": {"type": "matchRepository"},
        })
    }

    /// The pull is refused with these words, and no layer was asked for.
    fn refused(&self, puller: &Puller, words: &[&str]) {
        let before = self.proxy.seen().len();
        let told = puller.pull(&self.reference()).code(1);
        let text = told.err();
        assert!(text.contains(&self.reference()), "{text}");
        assert!(words.iter().any(|word| text.to_lowercase().contains(word)), "{text}");
        let layers = layers(self.image.path());
        let seen = self.proxy.seen().split_off(before);
        let fetched = seen.iter().filter(|seen| layers.iter().any(|layer| seen.target().contains(&**layer)));
        assert_eq!(fetched.count(), 0, "a layer was asked for");
        assert!(puller.images().is_empty());
    }
}

/// Digests of an image's layers.
fn layers(layout: &Path) -> Vec<String> {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap().trim_start_matches("sha256:");
    let manifest = fs::read(layout.join("blobs/sha256").join(digest)).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let layers = manifest["layers"].as_array().unwrap().iter();
    layers.map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
}

/// The manifest that holds a signature, as an OCI layout.
fn attachment(payload: &[u8], signature: &str) -> TempDir {
    let folder = layout::of_layers(&[payload.to_vec()], &json!({}));
    let read = |name: &Path| serde_json::from_slice::<Value>(&fs::read(name).unwrap()).unwrap();
    let mut index = read(&folder.path().join("index.json"));
    let blobs = folder.path().join("blobs/sha256");
    let digest = index["manifests"][0]["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    let mut manifest = read(&blobs.join(digest));
    let layer = &mut manifest["layers"][0];
    layer["mediaType"] = json!("application/vnd.dev.cosign.simplesigning.v1+json");
    layer["annotations"] = json!({"dev.cosignproject.cosign/signature": signature});
    let manifest = manifest.to_string();
    let digest: String = Sha256::digest(&manifest).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(blobs.join(&digest), &manifest).unwrap();
    index["manifests"][0]["digest"] = json!(format!("sha256:{digest}"));
    index["manifests"][0]["size"] = json!(manifest.len());
    // A tag of its own: that of the image stays with the image.
    index["manifests"][0]["annotations"] = json!({"org.opencontainers.image.ref.name": "signature"});
    fs::write(folder.path().join("index.json"), index.to_string()).unwrap();
    folder
}

#[test]
fn an_image_that_is_signed_as_asked_is_pulled() {
    let mut scene = Scene::new();
    let (digest, reference) = (scene.digest(), scene.reference());
    scene.sign("trusted", &digest, &reference);
    let puller = scene.puller(scene.trusted());
    puller.pull(&reference).success();
    assert_eq!(puller.images().len(), 1);
}

#[test]
fn an_image_without_a_signature_is_refused_before_a_layer_is_fetched() {
    let scene = Scene::new();
    scene.refused(&scene.puller(scene.trusted()), &["signature", "signed"]);
    // Under no policy it is an image like any other.
    let puller = Puller::new();
    puller.pull(&scene.reference()).success();
}

#[test]
fn a_signature_of_another_key_image_or_name_is_refused_before_a_layer_is_fetched() {
    let words = &["signature", "signed"];
    let other = format!("sha256:{}", "0".repeat(64));
    for (key, digest, identity) in [
        ("other", None, None),
        ("trusted", Some(other.as_str()), None),
        ("trusted", None, Some("registry.test/another/image:latest")),
    ] {
        let mut scene = Scene::new();
        let (right, reference) = (scene.digest(), scene.reference());
        scene.sign(key, digest.unwrap_or(&right), identity.unwrap_or(&reference));
        scene.refused(&scene.puller(scene.trusted()), words);
    }
}

#[test]
fn a_signature_that_was_tampered_with_is_refused_before_a_layer_is_fetched() {
    let scene = Scene::new();
    let payload = |digest: &str| {
        json!({
            "critical": {
                "identity": {"docker-reference": scene.reference()},
                "image": {"docker-manifest-digest": digest},
                "type": "cosign container image signature",
            },
            "optional": null,
        })
        .to_string()
    };
    let signature = scene.signature("trusted", &payload(&format!("sha256:{}", "1".repeat(64))));
    let folder = attachment(payload(&scene.digest()).as_bytes(), &signature);
    scene.registry.add(folder.path(), "signed");
    let index: Value = serde_json::from_slice(&fs::read(folder.path().join("index.json")).unwrap()).unwrap();
    let tag = format!("{}.sig", scene.digest().replace(':', "-"));
    scene.registry.name("signed", &tag, index["manifests"][0]["digest"].as_str().unwrap());
    scene.refused(&scene.puller(scene.trusted()), &["signature", "signed"]);
}

#[test]
fn what_a_policy_rejects_or_cannot_be_checked_is_refused() {
    let mut scene = Scene::new();
    let (digest, reference) = (scene.digest(), scene.reference());
    scene.sign("trusted", &digest, &reference);
    scene.refused(&scene.puller(json!({"type": "reject"})), &["policy", "reject"]);
    let by_gpg = json!({"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/no/such/key"});
    scene.refused(&scene.puller(by_gpg), &["signedby", "not supported"]);
    // The file is at fault, not the image.
    let broken = scene.puller(json!({"type": "no-such-type"}));
    let told = broken.pull(&reference).code(1);
    assert!(told.err().contains("policy.json") && told.err().contains("no-such-type"), "{}", told.err());
    assert!(broken.images().is_empty());
    scene.puller(json!({"type": "insecureAcceptAnything"})).pull(&reference).success();
}

#[test]
fn a_policy_that_the_configuration_names_wins() {
    let scene = Scene::new();
    let puller = Puller::new();
    let strict = puller.user().join("strict.json");
    fs::write(&strict, json!({"default": [{"type": "reject"}]}).to_string()).unwrap();
    puller.write("policy.json", &json!({"default": [{"type": "insecureAcceptAnything"}]}));
    puller.configure(&json!({"signature_policy": strict}));
    scene.refused(&puller, &["policy", "reject"]);
    puller.configure(&json!({}));
    puller.pull(&scene.reference()).success();
}
