//! The kinds of archives that hold images, and how the right image is found in them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use boxlite::image::Digest;
use serde_json::{Value, json};

use crate::layout::{Layout, Packed, architecture, config};
use crate::snapshot::{is_root, run};
use crate::tar::{Header, Layer};
use crate::{Home, chain};

fn layer(text: &str) -> Vec<u8> {
    Layer::new().file("which", text).bytes()
}

/// What the file `which` says in the image, found in the disk's bytes: it is inlined there.
fn says(home: &Home, path: &Path, text: &str) -> bool {
    let disk = fs::read(home.disk(path)).unwrap();
    disk.windows(text.len()).any(|window| window == text.as_bytes())
}

/// A tar file of a folder.
fn packed(folder: &Path, to: &Path, arguments: &[&str]) -> PathBuf {
    run(Command::new("tar").args(arguments).arg("-cf").arg(to).arg("-C").arg(folder).arg("."));
    to.to_owned()
}

fn for_other_machine() -> Value {
    let mut config = config();
    config["architecture"] = json!("mips64le");
    config
}

#[test]
fn an_oci_archive_is_like_the_folder_it_was_made_of_compressed_or_not() {
    for arguments in [&[][..], &["--gzip"], &["--zstd"], &["--format=pax"], &["--format=gnu"]] {
        let home = Home::new();
        let mut layout = Layout::new(&home.path("layout"));
        layout.image(&[(layer("from an archive"), Packed::Gzip)], "some/name:tag");
        let archive = packed(&layout.folder, &home.path("image.tar"), arguments);
        assert!(says(&home, &archive, "from an archive"), "{arguments:?}");
        let image = home.store.get("some/name:tag").unwrap();
        assert_eq!(image.info.references, ["docker.io/some/name:tag"]);
        assert_eq!(image.config.entrypoint, ["/bin/app"]);
        assert_eq!((image.config.cmd.len(), image.config.env.as_slice()), (0, ["A=b".to_owned()].as_slice()));
        assert_eq!((image.config.user.as_str(), image.config.working_dir.as_str()), ("7:8", "/w"));
        assert_eq!(image.config.exposed_ports, ["80/tcp"]);
        assert_eq!(image.info.created.as_deref(), Some("2024-05-06T07:08:09Z"));
        assert_eq!(image.info.architecture, architecture());
    }
}

/// `docker save` before version 25: a folder for each layer, the same layer a second time as a symbolic link.
fn docker_archive(first: &[u8], second: &[u8], config: &Value, tags: &[&str]) -> Vec<u8> {
    let mut config = config.clone();
    let ids: Vec<String> = [first, second, first].iter().map(|layer| Digest::of(layer).to_string()).collect();
    config["rootfs"] = json!({ "type": "layers", "diff_ids": ids });
    let config = serde_json::to_vec(&config).unwrap();
    let name = format!("{}.json", Digest::of(&config).hex());
    let layers = ["aa/layer.tar", "bb/layer.tar", "cc/layer.tar"];
    let list = json!([{ "Config": name, "RepoTags": tags, "Layers": layers }]);
    Layer::new()
        .dir("aa/")
        .file("aa/layer.tar", first)
        .file("bb/layer.tar", second)
        .symlink("cc/layer.tar", "../aa/layer.tar")
        .file(&name, &config)
        .file("manifest.json", serde_json::to_vec(&list).unwrap())
        .bytes()
}

#[test]
fn old_archives_of_docker_save_are_read_with_their_links() {
    let home = Home::new();
    let path = home.path("saved.tar");
    let second = Layer::new().file("which", "second").file("more", "more contents").bytes();
    fs::write(
        &path,
        docker_archive(&layer("first layer"), &second, &config(), &["app:1", "host.example/app:2"]),
    )
    .unwrap();
    assert!(says(&home, &path, "more contents"));
    assert!(says(&home, &path, "first layer"));
    let image = home.store.get("app:1").unwrap();
    assert_eq!(image.info.references, ["docker.io/library/app:1", "host.example/app:2"]);
}

#[test]
fn old_archives_whose_contents_are_not_what_they_say_are_refused() {
    let path = |home: &Home| home.path("saved.tar");
    let archive = docker_archive(&layer("first"), &layer("second"), &config(), &["app"]);
    let text = String::from_utf8_lossy(&archive).into_owned();
    for (from, to, words) in [
        ("second", "SECOND", "the content has the digest"),
        ("/bin/app", "/bin/xyz", "has the digest"),
        ("../aa/layer.tar", "../dd/layer.tar", "wrong checksum"),
    ] {
        let home = Home::new();
        fs::write(path(&home), text.replace(from, to)).unwrap();
        let refusal = home.refusal_of(&path(&home));
        assert!(refusal.contains(words), "{refusal}");
    }
    let home = Home::new();
    let endless = Layer::new().symlink("manifest.json", "other").symlink("other", "manifest.json").bytes();
    fs::write(path(&home), endless).unwrap();
    assert!(home.refusal_of(&path(&home)).contains("no index.json and no manifest.json"));
}

#[test]
fn archives_made_by_skopeo_are_read() {
    let home = Home::new();
    let mut layout = Layout::new(&home.path("layout"));
    layout.image(&[(layer("by skopeo"), Packed::Gzip)], "test");
    for kind in ["oci-archive", "docker-archive"] {
        let archive = home.path(kind);
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy"])
            .arg(format!("oci:{}:test", layout.folder.display()))
            .arg(format!("{kind}:{}:made/by:skopeo", archive.display())));
        let home = Home::new();
        assert!(says(&home, &archive, "by skopeo"), "{kind}");
        home.store.get("made/by:skopeo").unwrap();
    }
}

#[test]
fn the_image_for_this_machine_is_chosen() {
    let home = Home::new();
    let mut layout = Layout::new(&home.path("layout"));
    let other = layout.manifest(&[(layer("other"), Packed::Plain)], &for_other_machine());
    let ours = layout.manifest(&[(layer("ours here"), Packed::Plain)], &config());
    let with = |mut descriptor: Value, architecture: &str| {
        descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
        descriptor
    };
    let attestation = {
        let mut descriptor = with(other.clone(), "unknown");
        descriptor["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
        descriptor
    };
    let inner = json!({
        "schemaVersion": 2,
        "manifests": [attestation, with(other, "mips64le"), with(ours, architecture())],
    });
    let inner = layout.document("application/vnd.oci.image.index.v1+json", &inner);
    let middle = layout.document(
        "application/vnd.oci.image.index.v1+json",
        &json!({ "schemaVersion": 2, "manifests": [inner] }),
    );
    layout.add(middle, Some("multi"));
    assert!(says(&home, &layout.folder, "ours here"));
}

#[test]
fn an_image_for_other_machines_is_refused_with_their_names() {
    let home = Home::new();
    let mut layout = Layout::new(&home.path("layout"));
    let other = layout.manifest(&[(layer("other"), Packed::Plain)], &for_other_machine());
    layout.add(other, Some("other"));
    let refusal = home.refusal_of(&layout.folder);
    assert!(refusal.contains("linux/mips64le") && refusal.contains(architecture()), "{refusal}");
}

#[test]
fn indexes_that_never_end_are_refused() {
    let home = Home::new();
    let mut layout = Layout::new(&home.path("layout"));
    let mut index = layout.manifest(&[(layer("x"), Packed::Plain)], &config());
    for _ in 0..6 {
        let list = json!({ "schemaVersion": 2, "manifests": [index] });
        index = layout.document("application/vnd.oci.image.index.v1+json", &list);
    }
    layout.add(index, Some("deep"));
    assert!(home.refusal_of(&layout.folder).contains("too deep"));

    let home = Home::new();
    let mut layout = Layout::new(&home.path("layout"));
    let other = layout.manifest(&[], &for_other_machine());
    let mut index = json!({ "schemaVersion": 2, "manifests": vec![other; 20] });
    for _ in 0..2 {
        let document = layout.document("", &index);
        index = json!({ "schemaVersion": 2, "manifests": vec![document; 20] });
    }
    let wide = layout.document("", &index);
    layout.add(wide, Some("wide"));
    assert!(home.refusal_of(&layout.folder).contains("too many documents"));
}

#[test]
fn documents_that_are_too_large_or_lead_out_of_the_folder_are_refused() {
    let home = Home::new();
    let layout = Layout::new(&home.path("layout"));
    let index = |text: String| fs::write(layout.folder.join("index.json"), text).unwrap();
    index(format!("{{{}}}", " ".repeat(5 << 20)));
    assert!(home.refusal_of(&layout.folder).contains("4 MiB"));
    for digest in ["sha256:../../../../etc/passwd", "sha256:", "../x", "sha512:00"] {
        index(json!({ "schemaVersion": 2, "manifests": [{ "digest": digest, "size": 1 }] }).to_string());
        assert!(home.refusal_of(&layout.folder).contains("is no digest"), "{digest}");
    }
    index(r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#.into());
    assert!(home.refusal_of(&layout.folder).contains("neither"));
    index("[".repeat(100_000));
    assert!(home.refusal_of(&layout.folder).contains("cannot be read"));
    index(r#"{"schemaVersion":2,"manifests":[]}"#.into());
    assert!(home.refusal_of(&layout.folder).contains("holds no image"));
}

#[test]
fn what_is_no_archive_at_all_is_refused() {
    let home = Home::new();
    let file = |contents: &[u8]| {
        fs::write(home.path("file"), contents).unwrap();
        home.refusal_of(&home.path("file"))
    };
    assert!(file(b"").contains("no index.json"));
    assert!(file(b"hello").contains("no tar archive"));
    assert!(file(&[b'x'; 5000]).contains("no tar archive"));
    assert!(file(&Layer::new().file("f", "").bytes()).contains("no index.json"));
    assert!(
        file(&Layer::new().raw(&Header { size: Some(5000), ..Header::new(b'0', "f") }, b"").bytes())
            .contains("in the middle")
    );
    assert!(home.refusal_of(Path::new("/nonexistent/archive")).contains("cannot open"));
    assert!(home.refusal_of(Path::new("/dev/zero")).contains("not a regular file"));
    fs::create_dir(home.path("empty")).unwrap();
    assert!(home.refusal_of(&home.path("empty")).contains("no index.json"));
    let fifo = home.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(home.refusal_of(&fifo).contains("not a regular file"));
}

#[test]
fn artifacts_and_encrypted_layers_are_no_images() {
    let home = Home::new();
    let mut layout = Layout::new(&home.path("layout"));
    let config = layout.document("application/vnd.oci.empty.v1+json", &json!({}));
    let manifest = layout.document("", &json!({ "schemaVersion": 2, "config": config, "layers": [] }));
    layout.add(manifest, None);
    assert!(home.refusal_of(&layout.folder).contains("no rootfs"));

    let home = Home::new();
    let mut layout = Layout::new(&home.path("layout"));
    let bytes = layer("secret");
    let mut config = crate::layout::config();
    config["rootfs"] = json!({ "diff_ids": [Digest::of(&bytes).to_string()] });
    let config = layout.document("", &config);
    let digest = layout.blob(&bytes).to_string();
    let layers = json!([{ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "digest": digest, "size": bytes.len() }]);
    let manifest = layout.document("", &json!({ "schemaVersion": 2, "config": config, "layers": layers }));
    layout.add(manifest, None);
    assert!(home.refusal_of(&layout.folder).contains("encrypted"));
}

#[test]
fn a_whole_distribution_is_the_same_as_unpacked_by_umoci() {
    // A tar file made by `mmdebstrap`, say. Small images of every feature are compared in any case.
    let archive = std::env::var_os("BOXLITE_TEST_ROOTFS");
    let (Some(archive), true) = (archive, is_root()) else {
        println!("BOXLITE_TEST_ROOTFS is not set: no distribution was compared");
        return;
    };
    let home = Home::new();
    let layout = home.path("layout");
    let umoci = |arguments: &[&str]| run(Command::new("umoci").args(arguments));
    let text = layout.display().to_string();
    umoci(&["init", "--layout", &text]);
    let image = format!("{text}:test");
    umoci(&["new", "--image", &image]);
    umoci(&["raw", "add-layer", "--image", &image, archive.to_str().unwrap()]);
    umoci(&["unpack", "--image", &image, home.path("bundle").to_str().unwrap()]);
    let disk = home.disk(&layout);
    let ours = crate::snapshot::snapshot(crate::snapshot::Mount::new(&disk).path());
    crate::snapshot::assert_same(&ours, &crate::snapshot::snapshot(&home.path("bundle/rootfs")));
}

#[test]
fn errors_read_as_one_sentence_each() {
    let home = Home::new();
    let error = home.load(Path::new("/nonexistent")).unwrap_err();
    assert_eq!(chain(&error), "cannot open /nonexistent: No such file or directory (os error 2)");
}
