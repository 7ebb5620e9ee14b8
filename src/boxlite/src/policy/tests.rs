use std::error::Error as _;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::fixtures::{TestKey, payload};
use super::*;

const ACCEPT: &str = r#"[{"type":"insecureAcceptAnything"}]"#;
const REJECT: &str = r#"[{"type":"reject"}]"#;

fn policy(json: &str) -> Policy {
    Policy::parse(json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {}", report(&error)))
}

/// A policy whose default is one requirement of type `sigstoreSigned`.
fn signed(fields: &str) -> Policy {
    policy(&format!(r#"{{"default":[{{"type":"sigstoreSigned",{fields}}}]}}"#))
}

fn key_data(key: &TestKey) -> String {
    format!(r#""keyData":"{}""#, STANDARD.encode(key.pem()))
}

fn registry<'a>(registry: &'a str, repository: &'a str, tag: &'a str) -> Origin<'a> {
    Origin::Registry { registry, repository, tag: Some(tag), digest: None }
}

fn archive<'a>(transport: &'static str, path: &'a str) -> Origin<'a> {
    Origin::Archive { transport, path: Path::new(path) }
}

fn report(error: &PolicyError) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn manifest() -> Digest {
    Digest::of(b"manifest")
}

/// The example of the manual page, with the type of scope that each image falls into.
#[test]
fn the_most_specific_scope_decides_alone() {
    let policy = policy(&format!(
        r#"{{
            "default": {REJECT},
            "transports": {{
                "docker": {{
                    "docker.io/openshift": {ACCEPT},
                    "docker.io/library/busybox": {ACCEPT},
                    "docker.io/library/busybox:bad": {REJECT},
                    "*.temporary-project.example.com": {ACCEPT},
                    "host.temporary-project.example.com": {REJECT},
                    "host.temporary-project.example.com/good/one": {ACCEPT},
                    "port.example.com:5000": {ACCEPT}
                }},
                "oci-archive": {{ "": {ACCEPT}, "/srv/bad": {REJECT}, "/srv/bad/good.tar": {ACCEPT} }},
                "docker-archive": {{ "/srv": {ACCEPT} }},
                "dir": {{ "": {ACCEPT} }}
            }}
        }}"#
    ));
    let cases = [
        (registry("docker.io", "openshift/hello", "1"), true),
        (registry("docker.io", "openshift/deep/hello", "1"), true),
        (registry("docker.io", "openshifts/hello", "1"), false),
        (registry("docker.io", "library/busybox", "latest"), true),
        (registry("docker.io", "library/busybox", "bad"), false),
        (registry("docker.io", "library/busyboxes", "latest"), false),
        (registry("docker.io", "library/busybox/bad", "bad"), true),
        (registry("docker.io", "library/debian", "12"), false),
        (registry("a.temporary-project.example.com", "x", "1"), true),
        (registry("a.b.temporary-project.example.com:5000", "x", "1"), true),
        (registry("temporary-project.example.com", "x", "1"), false),
        (registry("xtemporary-project.example.com", "x", "1"), false),
        (registry("host.temporary-project.example.com", "x", "1"), false),
        (registry("host.temporary-project.example.com", "good/one", "1"), true),
        (registry("port.example.com:5000", "x", "1"), true),
        (registry("port.example.com:5001", "x", "1"), false),
        (registry("port.example.com", "x", "1"), false),
        (archive("oci-archive", "/anything.tar"), true),
        (archive("oci-archive", ""), true),
        (archive("oci-archive", "/srv/bad/x.tar"), false),
        (archive("oci-archive", "/srv/bad/good.tar"), true),
        (archive("oci-archive", "/srv/badly/x.tar"), true),
        (archive("docker-archive", "/srv/x.tar"), true),
        (archive("docker-archive", ""), false),
        (archive("oci", "/srv"), false),
    ];
    for (origin, accepted) in cases {
        assert_eq!(policy.verdict_without_signatures(&origin).is_ok(), accepted, "{origin}");
        assert_eq!(policy.check(&origin, &[manifest()], &[]).is_ok(), accepted, "{origin}");
    }
}

#[test]
fn a_scope_with_a_digest_is_for_that_digest() {
    let digest = manifest();
    let json = format!(r#"{{"default":{REJECT},"transports":{{"docker":{{"h.x/a@{digest}":{ACCEPT}}}}}}}"#);
    let policy = policy(&json);
    let other = Digest::of(b"other");
    let origin =
        |digest| Origin::Registry { registry: "h.x", repository: "a", tag: Some("v1"), digest: Some(digest) };
    policy.check(&origin(&digest), &[digest], &[]).unwrap();
    policy.check(&origin(&other), &[other], &[]).unwrap_err();
    policy.check(&registry("h.x", "a", "v1"), &[digest], &[]).unwrap_err();
}

#[test]
fn an_image_asked_for_by_digest_has_it_whatever_the_policy_says() {
    let wanted = manifest();
    let origin = Origin::Registry { registry: "h.x", repository: "a", tag: None, digest: Some(&wanted) };
    let policy = Policy::accept_anything();
    policy.check(&origin, &[Digest::of(b"manifest of one platform"), wanted], &[]).unwrap();
    for digests in [&[Digest::of(b"other")][..], &[]] {
        let error = policy.check(&origin, digests, &[]).unwrap_err();
        assert!(matches!(error, PolicyError::Refused { source: Refusal::OtherDigest, .. }));
    }
}

#[test]
fn accepting_anything_needs_no_signature() {
    let policy = Policy::accept_anything();
    for origin in [registry("h.x", "a", "1"), archive("oci", "/a"), archive("docker-archive", "")] {
        assert!(!policy.verdict_without_signatures(&origin).unwrap());
        policy.check(&origin, &[manifest()], &[]).unwrap();
    }
}

#[test]
fn a_relative_path_of_an_archive_is_refused_and_not_looked_up() {
    for policy in
        [Policy::accept_anything(), policy(&format!(r#"{{"default":{ACCEPT},"transports":{{"oci":{{}}}}}}"#))]
    {
        let error = policy.verdict_without_signatures(&archive("oci", "a/b")).unwrap_err();
        assert!(matches!(error, PolicyError::Refused { source: Refusal::Path, .. }));
    }
}

#[test]
fn a_signed_image_is_accepted_by_whichever_signature_will_do() {
    let (key, other) = (TestKey::new(), TestKey::new());
    let policy = signed(&key_data(&key));
    let origin = registry("h.x", "a", "1");
    assert!(policy.verdict_without_signatures(&origin).unwrap());
    let good = key.sign(payload("h.x/a:1", &manifest()));
    policy.check(&origin, &[manifest()], std::slice::from_ref(&good)).unwrap();
    policy
        .check(&origin, &[Digest::of(b"one of an index"), manifest()], std::slice::from_ref(&good))
        .unwrap();
    let foreign = other.sign(payload("h.x/a:1", &manifest()));
    let stale = key.sign(payload("h.x/a:1", &Digest::of(b"last week's")));
    policy.check(&origin, &[manifest()], &[foreign, stale, good]).unwrap();
}

#[test]
fn a_signature_that_will_not_do_says_why() {
    let (key, other) = (TestKey::new(), TestKey::new());
    let policy = signed(&key_data(&key));
    let origin = registry("h.x", "a", "1");
    let check =
        |signatures: &[Signature]| report(&policy.check(&origin, &[manifest()], signatures).unwrap_err());
    let mut tampered = key.sign(payload("h.x/a:1", &Digest::of(b"evil")));
    tampered.payload = payload("h.x/a:1", &manifest());
    let foreign = other.sign(payload("h.x/a:1", &manifest()));
    for bad in [tampered.clone(), foreign] {
        assert!(check(&[bad]).contains("signature 1: no key of the requirement made it"));
    }
    let digest = key.sign(payload("h.x/a:1", &Digest::of(b"evil")));
    assert!(check(std::slice::from_ref(&digest)).contains("which is not that of the image"));
    for name in ["h.x/a:2", "h.x/a", "h.x/b:1", "o.x/a:1"] {
        let error = check(&[key.sign(payload(name, &manifest()))]);
        assert!(
            error.contains(&format!("it is for `{name}`, which is not what `matchRepoDigestOrExact`")),
            "{error}"
        );
    }
    let error = check(&[tampered, digest]);
    assert_eq!(
        error,
        format!(
            "the signature policy does not accept h.x/a:1: requirement 1 (`sigstoreSigned`) of the policy's default \
             is not satisfied: none of 2 signatures is accepted: signature 1: no key of the requirement made it; \
             signature 2: it is for the digest {}, which is not that of the image",
            Digest::of(b"evil")
        )
    );
    assert!(check(&[]).ends_with("it wants a signature, and the image has none"));
}

#[test]
fn an_image_without_digests_is_never_signed() {
    let key = TestKey::new();
    let good = key.sign(payload("h.x/a:1", &manifest()));
    signed(&key_data(&key)).check(&registry("h.x", "a", "1"), &[], &[good]).unwrap_err();
}

#[test]
fn all_requirements_hold_together() {
    let (vendor, local) = (TestKey::new(), TestKey::new());
    let policy = policy(&format!(
        r#"{{"default":[
            {{"type":"insecureAcceptAnything"}},
            {{"type":"sigstoreSigned",{},
              "signedIdentity":{{"type":"exactRepository","dockerRepository":"vendor.x/a"}}}},
            {{"type":"sigstoreSigned",{}}}
        ]}}"#,
        key_data(&vendor),
        key_data(&local)
    ));
    let origin = registry("h.x", "a", "1");
    let by_vendor = vendor.sign(payload("vendor.x/a", &manifest()));
    let by_local = local.sign(payload("h.x/a:1", &manifest()));
    policy.check(&origin, &[manifest()], &[by_vendor.clone(), by_local.clone()]).unwrap();
    let check = |signature| report(&policy.check(&origin, &[manifest()], &[signature]).unwrap_err());
    assert!(check(by_vendor).contains("requirement 3 (`sigstoreSigned`)"));
    assert!(check(by_local).contains("requirement 2 (`sigstoreSigned`)"));
    let error =
        policy.check(&origin, &[manifest()], &[local.sign(payload("vendor.x/a", &manifest()))]).unwrap_err();
    assert!(report(&error).contains("requirement 2"));
}

#[test]
fn any_of_several_keys_will_do() {
    let (one, two, three) = (TestKey::new(), TestKey::new(), TestKey::new());
    let folder = tempfile::tempdir().unwrap();
    let paths = [folder.path().join("one.pub"), folder.path().join("two.pub")];
    std::fs::write(&paths[0], one.pem()).unwrap();
    std::fs::write(&paths[1], two.pem()).unwrap();
    let datas = [STANDARD.encode(one.pem()), STANDARD.encode(two.pem())];
    let by_path = signed(&format!(r#""keyPaths":{}"#, serde_json::to_string(&paths).unwrap()));
    let by_data = signed(&format!(r#""keyDatas":{}"#, serde_json::to_string(&datas).unwrap()));
    for policy in [by_path, by_data] {
        let check = |key: &TestKey| {
            policy.check(
                &registry("h.x", "a", "1"),
                &[manifest()],
                &[key.sign(payload("h.x/a:1", &manifest()))],
            )
        };
        check(&one).unwrap();
        check(&two).unwrap();
        check(&three).unwrap_err();
    }
}

#[test]
fn a_key_that_cannot_be_used_is_not_passed_over() {
    let key = TestKey::new();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| -> PathBuf {
        std::fs::write(folder.path().join(name), content).unwrap();
        folder.path().join(name)
    };
    let good = file("good.pub", key.pem().as_bytes());
    let signature = key.sign(payload("h.x/a:1", &manifest()));
    let check = |paths: &[&Path]| {
        let policy = signed(&format!(r#""keyPaths":{}"#, serde_json::to_string(paths).unwrap()));
        policy.check(&registry("h.x", "a", "1"), &[manifest()], std::slice::from_ref(&signature))
    };
    check(&[&good]).unwrap();
    let mut huge = key.pem().into_bytes();
    huge.resize(usize::try_from(KEY_MAX).unwrap() + 1, b'\n');
    let bad = [
        (folder.path().join("missing.pub"), "No such file"),
        (folder.path().to_owned(), "no regular file"),
        (file("empty.pub", b""), "no PEM block"),
        (file("huge.pub", &huge), "more than 1048576 bytes"),
        (file("short.pub", super::fixtures::RSA_1024.as_bytes()), "1024 bits"),
    ];
    for (path, reason) in bad {
        let error = report(&check(&[&good, &path]).unwrap_err());
        assert!(error.contains(reason) && error.contains(path.to_str().unwrap()), "{error}");
    }
    let broken = signed(r#""keyDatas":["AAAA"]"#);
    let error = broken.check(&registry("h.x", "a", "1"), &[manifest()], &[signature]).unwrap_err();
    assert!(report(&error).contains("the key number 1 in the policy cannot be used"));
}

#[test]
fn a_key_is_read_anew_for_each_image() {
    let (old, new) = (TestKey::new(), TestKey::new());
    let file = tempfile::NamedTempFile::new().unwrap();
    let policy = signed(&format!(r#""keyPath":{}"#, serde_json::to_string(file.path()).unwrap()));
    let check = |key: &TestKey| {
        policy.check(&registry("h.x", "a", "1"), &[manifest()], &[key.sign(payload("h.x/a:1", &manifest()))])
    };
    std::fs::write(file.path(), old.pem()).unwrap();
    check(&old).unwrap();
    std::fs::write(file.path(), new.pem()).unwrap();
    check(&old).unwrap_err();
    check(&new).unwrap();
}

#[test]
fn archives_are_signed_only_for_names_that_the_policy_gives() {
    let key = TestKey::new();
    let signature = key.sign(payload("h.x/a:1", &manifest()));
    let check = |identity: &str| {
        let policy = signed(&format!(r#"{},"signedIdentity":{identity}"#, key_data(&key)));
        policy.check(&archive("oci-archive", "/a.tar"), &[manifest()], std::slice::from_ref(&signature))
    };
    check(r#"{"type":"exactReference","dockerReference":"h.x/a:1"}"#).unwrap();
    check(r#"{"type":"exactRepository","dockerRepository":"h.x/a"}"#).unwrap();
    for kind in ["matchExact", "matchRepoDigestOrExact", "matchRepository"] {
        check(&format!(r#"{{"type":"{kind}"}}"#)).unwrap_err();
    }
    check(r#"{"type":"remapIdentity","prefix":"h.x","signedPrefix":"h.x"}"#).unwrap_err();
}

#[test]
fn a_digest_in_place_of_a_tag_is_signed_by_any_tag() {
    let key = TestKey::new();
    let policy = signed(&key_data(&key));
    let digest = manifest();
    let origin = Origin::Registry { registry: "h.x", repository: "a", tag: Some("9"), digest: Some(&digest) };
    policy.check(&origin, &[digest], &[key.sign(payload("h.x/a:1", &digest))]).unwrap();
    policy.check(&origin, &[digest], &[key.sign(payload("h.x/b:1", &digest))]).unwrap_err();
}

#[test]
fn what_is_not_supported_refuses_its_scope_and_nothing_else() {
    let policy = policy(&format!(
        r#"{{"default":{ACCEPT},"transports":{{"docker":{{
            "gpg.x": [{{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}}],
            "mixed.x": [{{"type":"insecureAcceptAnything"}},
                        {{"type":"sigstoreSigned","keyPath":"/k","rekorPublicKeyPath":"/r"}}]
        }}}}}}"#
    ));
    let refused = |host| report(&policy.verdict_without_signatures(&registry(host, "a", "1")).unwrap_err());
    assert_eq!(
        refused("gpg.x"),
        "the signature policy does not accept gpg.x/a:1: requirement 1 (`signedBy`) of the scope `gpg.x` of the \
         transport `docker` is not satisfied: `signedBy`, a signature with GPG, is not supported, so nothing can satisfy it"
    );
    assert!(refused("mixed.x").contains("requirement 2"));
    assert!(!policy.verdict_without_signatures(&registry("other.x", "a", "1")).unwrap());
    assert!(policy.check(&registry("gpg.x", "a", "1"), &[manifest()], &[]).is_err());
}

#[test]
fn a_file_that_says_too_much_or_too_little_is_no_policy() {
    let signed = r#"{"type":"sigstoreSigned","keyPath":"/k"}"#;
    for (json, reason) in [
        (String::new(), "EOF"),
        ("null".into(), "it is no object"),
        ("{}".into(), "`default` is missing"),
        (r#"{"default":null}"#.into(), "`default`: it is no list"),
        (r#"{"default":[]}"#.into(), "`default`: there is no requirement"),
        (format!(r#"{{"default":{ACCEPT},"default":{ACCEPT}}}"#), "the key `default` stands twice"),
        (format!(r#"{{"default":{ACCEPT},"Default":{REJECT}}}"#), "the key `Default` is unknown"),
        (format!(r#"{{"default":{ACCEPT},"transports":null}}"#), "`transports`: it is no object"),
        (
            format!(r#"{{"default":{ACCEPT},"transports":{{"docker":[]}}}}"#),
            "the transport `docker`: it is no object",
        ),
        (
            format!(r#"{{"default":{ACCEPT},"transports":{{"docker":{{"h.x":[]}}}}}}"#),
            "the transport `docker`: the scope `h.x`: there is no requirement",
        ),
        (
            format!(r#"{{"default":{ACCEPT},"transports":{{"docker":{{"h.x":{REJECT},"h.x":{ACCEPT}}}}}}}"#),
            "the key `h.x` stands twice",
        ),
        (
            format!(r#"{{"default":{ACCEPT},"transports":{{"docker":{{"*x":{REJECT}}}}}}}"#),
            "the scope `*x`: a wildcard",
        ),
        (format!(r#"{{"default":[{signed},1]}}"#), "`default`: requirement 2: it is no object"),
        (format!(r#"{{"default":{ACCEPT}}} // a comment"#), "trailing characters"),
    ] {
        let error = Policy::parse(json.as_bytes()).unwrap_err();
        assert!(matches!(error, PolicyError::Document { .. }));
        assert!(report(&error).contains(reason), "{json}: {}", report(&error));
    }
}

#[test]
fn files_without_end_are_no_policies() {
    for text in ["[".repeat(1 << 19), r#"{"a":"#.repeat(1 << 17), " ".repeat(10 << 20)] {
        assert!(Policy::parse(text.as_bytes()).is_err());
    }
    let mut padded = format!(r#"{{"default":{ACCEPT}}}"#);
    padded.push_str(&" ".repeat((1 << 20) - padded.len()));
    assert!(Policy::parse(padded.as_bytes()).is_ok());
    padded.push(' ');
    assert!(report(&Policy::parse(padded.as_bytes()).unwrap_err()).contains("more than 1048576 bytes"));
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 40).unwrap();
    let error = Policy::read(file.path()).unwrap_err();
    assert!(matches!(error, PolicyError::Read { .. }) && report(&error).contains("more than 1048576 bytes"));
}

#[test]
fn a_policy_is_read_from_its_file_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.json");
    let error = Policy::read(&path).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()));
    assert!(matches!(Policy::read(folder.path()), Err(PolicyError::Read { .. })));
    std::fs::write(&path, format!(r#"{{"default":{REJECT}}}"#)).unwrap();
    let policy = Policy::read(&path).unwrap();
    assert!(policy.verdict_without_signatures(&registry("h.x", "a", "1")).is_err());
    std::fs::write(&path, "{").unwrap();
    let error = Policy::read(&path).unwrap_err();
    assert!(matches!(error, PolicyError::File { .. }) && error.to_string().contains(path.to_str().unwrap()));
}

#[test]
fn an_error_stays_short_whatever_is_in_the_signatures() {
    let key = TestKey::new();
    let policy = signed(&key_data(&key));
    let name = format!("h.x/{}:1", "a".repeat(200));
    let signatures = vec![key.sign(payload(&name, &manifest())); SIGNATURES_MAX];
    let origin = registry("h.x", "a", "1");
    let error = report(&policy.check(&origin, &[manifest()], &signatures).unwrap_err());
    assert!(error.contains("signature 8: ") && !error.contains("signature 9: "), "{error}");
    assert!(error.ends_with("and 120 more") && error.len() < 4096, "{error}");
    let hostile = key.sign(payload(&"\\n\\u001b[31m".repeat(1000), &manifest()));
    let error = report(&policy.check(&origin, &[manifest()], &[hostile]).unwrap_err());
    assert!(error.len() < 1024 && !error.contains(['\n', '\u{1b}']), "{error}");
    let more = vec![signatures[0].clone(); SIGNATURES_MAX + 1];
    let error = report(&policy.check(&origin, &[manifest()], &more).unwrap_err());
    assert!(error.ends_with("the image has 129 signatures, 128 are allowed"), "{error}");
}

#[test]
fn payloads_that_are_hostile_and_signed_are_refused() {
    let key = TestKey::new();
    let policy = signed(&key_data(&key));
    let good = String::from_utf8(payload("h.x/a:1", &manifest())).unwrap();
    for bad in [
        "[".repeat(signature::PAYLOAD_MAX),
        good.replace("null", &"[".repeat(1000)),
        good.replacen('{', r#"{"critical":{},"#, 1),
        format!("{good} {good}"),
        " ".repeat(10 << 20),
    ] {
        let signature = key.sign(bad.into_bytes());
        policy.check(&registry("h.x", "a", "1"), &[manifest()], &[signature]).unwrap_err();
    }
}
