//! What others have left, said or named is not believed further than it has to be.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use boxlite::image::{Digest, ImageError, PolicyFile, Reference, Used};
use serde_json::{Value, json};

use crate::layout::{Layout, Packed};
use crate::tar::Layer;
use crate::{Home, chain};

fn layers(text: &str) -> Vec<(Vec<u8>, Packed)> {
    vec![(Layer::new().file("f", text.repeat(9000)).bytes(), Packed::Gzip)]
}

fn layout(home: &Home, folder: &str, name: &str, text: &str) -> Layout {
    let mut layout = Layout::new(&home.path(folder));
    layout.image(&layers(text), name);
    layout
}

/// Where a blob lies, by what it is for.
fn blob(home: &Home, kind: &str, digest: &str) -> std::path::PathBuf {
    home.path("blobs").join(kind).join(digest.strip_prefix("sha256:").unwrap())
}

#[test]
fn what_an_earlier_download_has_left_does_no_harm_whatever_it_is() {
    for left in
        [&b"garbage that is no gzip"[..], b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03garbage", &[0; 64]]
    {
        let home = Home::new();
        let folder = layout(&home, "l", "app", "contents").folder;
        let image = home.load(&folder).unwrap().remove(0);
        home.store.remove("app", &Used::new()).unwrap();
        fs::write(blob(&home, "partial", &image.layers[0]), left).unwrap();
        assert_eq!(home.load(&folder).unwrap(), [image]);
        assert!(fs::read_dir(home.path("blobs/partial")).unwrap().next().is_none());
    }
}

#[test]
fn a_manifest_that_lies_about_a_size_costs_nobody_a_layer() {
    let home = Home::new();
    let good = home.load(&layout(&home, "good", "good", "contents").folder).unwrap().remove(0);
    let mut evil = Layout::new(&home.path("evil"));
    let descriptor = evil.manifest(&layers("contents"), &crate::layout::config());
    let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
    let mut manifest: Value = serde_json::from_slice(&fs::read(evil.path(&digest)).unwrap()).unwrap();
    let size = manifest["layers"][0]["size"].as_u64().unwrap();
    manifest["layers"][0]["size"] = json!(size + 1);
    let descriptor = evil.document("application/vnd.oci.image.manifest.v1+json", &manifest);
    evil.add(descriptor, Some("evil"));
    let error = chain(&home.load(&evil.folder).unwrap_err());
    assert!(error.contains(&format!("{size} bytes instead of {}", size + 1)), "{error}");
    home.store.save(&["good".to_owned()], &mut Vec::new(), &mut |_| Ok(())).unwrap();
    assert_eq!(home.store.list().unwrap(), [good]);
}

#[test]
fn an_archive_cannot_call_its_image_by_the_digest_of_another() {
    let home = Home::new();
    let other = Digest::of(b"another");
    let error = home.load(&layout(&home, "l", &format!("good.example/x@{other}"), "x").folder).unwrap_err();
    assert!(chain(&error).contains("another one's digest"), "{}", chain(&error));
    assert!(home.store.get(&format!("good.example/x@{other}")).unwrap_err().is_not_found());
}

#[test]
fn an_image_is_refused_under_a_name_that_the_policy_has_rules_for_however_it_got_the_name() {
    let home = Home::new();
    let policy = json!({
        "default": [{ "type": "insecureAcceptAnything" }],
        "transports": { "docker": { "registry.example": [{ "type": "reject" }] } },
    });
    fs::write(home.path("policy.json"), policy.to_string()).unwrap();
    home.load(&layout(&home, "l", "registry.example/app:1", "x").folder).unwrap();
    let image = home.store.get("registry.example/app:1").unwrap();
    home.store.tag("registry.example/app:1", &"other:1".parse().unwrap()).unwrap();
    let may = |reference: &str, policy: PolicyFile| {
        let name: Option<Reference> =
            home.store.get(reference).unwrap().name.map(|name| name.parse().unwrap());
        home.store.clone().with_policy(policy).check_policy(&image.digest, name.as_ref())
    };
    let policy = || PolicyFile::Named(home.path("policy.json"));
    let error = chain(&may("registry.example/app:1", policy()).unwrap_err());
    assert!(error.contains("registry.example/app:1"), "{error}");
    assert!(may(&format!("registry.example/app@{}", image.digest), policy()).is_err());
    may("other:1", policy()).unwrap();
    may(&image.digest, policy()).unwrap();
    may("registry.example/app:1", PolicyFile::First(vec![home.path("nothing")])).unwrap();
    // A policy that is there and cannot be read refuses all.
    std::os::unix::fs::symlink(home.path("nowhere"), home.path("dangling")).unwrap();
    assert!(
        may("other:1", PolicyFile::First(vec![home.path("dangling"), home.path("policy.json")])).is_err()
    );
    assert!(may("other:1", PolicyFile::Named(home.path("nothing"))).is_err());
}

#[test]
fn nothing_is_swept_away_while_a_record_cannot_be_read() {
    let home = Home::new();
    let image = home.load(&layout(&home, "l", "app", "x").folder).unwrap().remove(0);
    let other = home.load(&layout(&home, "l2", "other", "y").folder).unwrap().remove(0);
    let record = home.path("images").join(format!("{}.json", image.digest.strip_prefix("sha256:").unwrap()));
    let good = fs::read(&record).unwrap();
    fs::write(&record, "{\"version\":9}\n{}").unwrap();
    let used = Used::from([(image.digest.clone(), vec!["box".to_owned()])]);
    let pruned = home.store.prune(true, &used).unwrap();
    assert!(pruned.incomplete && pruned.deleted == [other.digest]);
    fs::write(&record, good).unwrap();
    assert_eq!(home.store.list().unwrap(), std::slice::from_ref(&image));
    home.store.save(&["app".to_owned()], &mut Vec::new(), &mut |_| Ok(())).unwrap();
    home.store.disk(&image.digest, &mut |_| Ok(())).unwrap();
}

#[test]
fn a_watch_that_panics_leaves_nothing_locked() {
    let home = Home::new();
    let folder = layout(&home, "l", "app", &"contents".repeat(100)).folder;
    let load = || home.store.load(&folder, &mut |_| panic!("the caller has a flaw"));
    assert!(catch_unwind(AssertUnwindSafe(load)).is_err());
    home.load(&folder).unwrap();
    assert!(matches!(home.store.prune(false, &Used::new()), Ok(pruned) if !pruned.incomplete));
    assert!(matches!(home.store.get("nothing"), Err(ImageError::NotFound { .. })));
}
