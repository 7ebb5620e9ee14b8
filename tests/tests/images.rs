//! Images come from a real registry, have names, are saved, and go: `pull`, `login`, `images`, `tag`, `save`, `rmi`, `prune`.
//!
//! What goes wrong on the way is told in `image_faults.rs`, and signatures in `image_policy.rs`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use boxlite_tests::disk;
use boxlite_tests::proxy::{Fault, Proxy, Rule};
use boxlite_tests::puller::{Puller, small_image};
use boxlite_tests::registry::{FAR_NAME, Manner, PASSWORD, Registry, USER};
use boxlite_tests::story::{PATIENCE, eventually, images};
use serde_json::{Value, json};

/// An empty registry and the proxy that counts what is asked of it.
fn counted() -> (Registry, Proxy) {
    let registry = Registry::start();
    let proxy = Proxy::before(registry.address());
    (registry, proxy)
}

/// Digest of the manifest of a tag in a layout.
fn digest(layout: &Path, tag: &str) -> String {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let named = |entry: &&Value| {
        entry["annotations"]["org.opencontainers.image.ref.name"].as_str().is_none_or(|name| name == tag)
    };
    index["manifests"].as_array().unwrap().iter().find(named).unwrap()["digest"].as_str().unwrap().to_owned()
}

fn document(layout: &Path, digest: &str) -> Value {
    let file = layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

#[test]
fn the_prepared_images_are_served_as_others_expect_them() {
    let registry = Registry::start();
    registry.add_image("layers");
    registry.add_image("platforms");
    let folder = tempfile::tempdir().unwrap();
    for image in ["layers:latest", "layers:docker", "layers:mixed", "platforms:latest", "platforms:docker"] {
        let copied = Command::new("skopeo")
            .args([
                "--insecure-policy",
                "copy",
                "--quiet",
                "--all",
                "--preserve-digests",
                "--src-tls-verify=false",
            ])
            .arg(format!("docker://{}/{image}", registry.host()))
            .arg(format!("dir:{}", folder.path().join(image).display()))
            .output()
            .unwrap();
        assert!(copied.status.success(), "{image}: {}", String::from_utf8_lossy(&copied.stderr));
        let manifest = fs::read(folder.path().join(image).join("manifest.json")).unwrap();
        let (name, tag) = image.split_once(':').unwrap();
        let layout = images().join(format!("{name}.oci"));
        let wanted = digest(&layout, tag);
        let stored =
            fs::read(layout.join("blobs/sha256").join(wanted.trim_start_matches("sha256:"))).unwrap();
        assert!(manifest == stored, "{image}");
    }
}

#[test]
fn an_image_of_a_loopback_registry_needs_no_configuration_and_runs() {
    let registry = Registry::start();
    registry.add_image("debian");
    let puller = Puller::new();
    let reference = format!("{}/debian:bookworm", registry.host());
    assert_eq!(puller.pull(&reference).success().out(), format!("{reference}\n"));
    let run = puller.boxlite(&["run", "--rm", "--pull", "never", &reference, "cat", "/etc/os-release"]);
    let told = run.run().success();
    assert_eq!(told.out(), release_of_debian());
}

/// `/etc/os-release` of the image as tar reads it.
fn release_of_debian() -> String {
    let tar = Command::new("tar")
        .args(["-xOf"])
        .arg(images().join("debian.rootfs.tar"))
        .arg("./usr/lib/os-release")
        .output();
    String::from_utf8(tar.unwrap().stdout).unwrap()
}

#[test]
fn a_run_pulls_what_is_missing() {
    let (registry, proxy) = counted();
    registry.add_image("platforms");
    let puller = Puller::new();
    let reference = format!("{}/platforms", proxy.host());
    let run = |policy: &str| puller.boxlite(&["run", "--rm", "-q", "--pull", policy, &reference]).run();

    let told = run("never").code(125);
    assert!(told.err().contains(&reference) && proxy.seen().is_empty(), "{}", told.err());
    assert_eq!(run("missing").success().out(), "linux/amd64\n");
    let asked = proxy.seen().len();
    assert_eq!(run("missing").success().out(), "linux/amd64\n");
    assert_eq!(proxy.seen().len(), asked, "what is there is not asked for");
    assert_eq!(run("always").success().out(), "linux/amd64\n");
    let again = proxy.seen().split_off(asked);
    assert!(!again.is_empty() && again.iter().all(|seen| !seen.is_blob()), "{again:?}");
}

#[test]
fn a_certificate_of_a_private_authority_is_accepted_when_it_is_known_and_never_else() {
    let registry = Registry::with(Manner { tls: true, ..Manner::default() });
    let image = small_image();
    registry.add(image.path(), "small");
    let (host, reference) = (registry.host(), format!("{}/small:latest", registry.host()));
    let with = |settings: Value| {
        let puller = Puller::new();
        let mut entry = json!({"host": host});
        entry.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        puller.configure(&json!({"image_registries": [entry]}));
        puller
    };
    let trusting = with(json!({"ca_file": registry.authority()}));
    assert_eq!(trusting.pull(&reference).success().out(), format!("{reference}\n"));
    let careless = with(json!({"skip_verify": true}));
    careless.pull(&reference).success();
    disk::assert_same(&careless.tree(), &trusting.tree());

    for strict in [Puller::new(), with(json!({}))] {
        let told = strict.pull(&reference).code(1);
        let text = told.err().to_lowercase();
        assert!(text.contains(&host) && text.contains("certificate") && text.contains("hint:"), "{text}");
        assert!(strict.images().is_empty());
    }
}

#[test]
fn a_registry_with_a_login_is_entered_with_it_and_with_nothing_else() {
    let registry = Registry::with(Manner { login: true, ..Manner::default() });
    let proxy = Proxy::before(registry.address());
    let image = small_image();
    registry.add(image.path(), "small");
    let (host, reference) = (proxy.host(), format!("{}/small:latest", proxy.host()));
    let puller = Puller::new();
    let login = |password: &str| {
        puller.boxlite(&["login", "-u", USER, "--password-stdin", &host]).input(format!("{password}\n")).run()
    };

    let told = puller.pull(&reference).code(1);
    assert!(
        told.err().contains(&format!("boxlite login {host}")) && told.err().contains("hint:"),
        "{}",
        told.err()
    );
    login("wrong").code(1);
    assert!(!puller.home().join("auth.json").exists(), "a login that was refused is not kept");
    login(PASSWORD).success();
    assert_eq!(fs::metadata(puller.home().join("auth.json")).unwrap().mode() & 0o777, 0o600);
    puller.pull(&reference).success();
    let tree = puller.tree();
    puller.boxlite(&["logout", &host]).run().success();
    puller.boxlite(&["rmi", &reference]).run().success();
    puller.pull(&reference).code(1);

    // Docker's own file is read as well.
    let pair = write(puller.user(), "pair", &format!("{USER}:{PASSWORD}"));
    let encoded = Command::new("base64").arg("-w0").arg(pair).output().unwrap();
    let encoded = String::from_utf8(encoded.stdout).unwrap();
    fs::create_dir(puller.user().join(".docker")).unwrap();
    let file = json!({"auths": {&host: {"auth": encoded}}});
    write(&puller.user().join(".docker"), "config.json", &file.to_string());
    puller.pull(&reference).success();
    disk::assert_same(&puller.tree(), &tree);
    for seen in proxy.seen() {
        assert!(!seen.target().contains(PASSWORD), "{seen:?}");
    }
}

fn write(folder: &Path, name: &str, text: &str) -> std::path::PathBuf {
    fs::write(folder.join(name), text).unwrap();
    folder.join(name)
}

#[test]
fn credentials_do_not_follow_a_redirect_to_another_host() {
    let registry = Registry::with(Manner { login: true, ..Manner::default() });
    // Layers lie elsewhere, as those of all large registries do; elsewhere is a registry that knows no login.
    let open = Registry::start();
    let image = small_image();
    registry.add(image.path(), "small");
    open.add(image.path(), "small");
    let (front, elsewhere) = (Proxy::before(registry.address()), Proxy::before(open.address()));
    front.rule(Rule::on("/blobs/", Fault::Redirect(elsewhere.address())));
    let puller = Puller::new();
    let auth = json!({"basic": {"username": USER, "password": PASSWORD}});
    puller
        .configure(&json!({"image_registries": [{"host": front.host(), "transport": "http", "auth": auth}]}));
    puller.pull(&format!("{}/small", front.host())).success();
    let seen = elsewhere.seen();
    assert!(seen.iter().filter(|seen| seen.is_blob()).count() >= 4, "{seen:?}");
    assert!(seen.iter().all(|seen| seen.request.field("Authorization").is_none()), "{seen:?}");
}

#[test]
fn two_pulls_at_once_download_each_blob_once() {
    let (registry, proxy) = counted();
    registry.add_image("platforms");
    let image = small_image();
    registry.add(image.path(), "small");
    // Slow enough that the two meet.
    proxy.rule(Rule::on("/blobs/", Fault::Throttle(1_500_000)));
    for name in ["small", "platforms"] {
        let puller = Puller::new();
        let before = proxy.seen().len();
        let reference = format!("{}/{name}", proxy.host());
        std::thread::scope(|scope| {
            let pulls = [0, 1].map(|_| scope.spawn(|| puller.boxlite(&["pull", "-q", &reference]).run()));
            for pull in pulls {
                pull.join().unwrap().success();
            }
        });
        let seen = proxy.seen().split_off(before);
        let mut blobs: Vec<_> =
            seen.iter().filter(|seen| seen.is_blob()).map(|seen| (seen.target(), seen.sent)).collect();
        blobs.sort_unstable();
        assert!(blobs.len() >= 2 && blobs.windows(2).all(|pair| pair[0].0 != pair[1].0), "{name}: {blobs:?}");
        assert_eq!(puller.images().len(), 1);
    }
}

#[test]
fn a_pull_that_was_killed_goes_on_where_it_was() {
    let (registry, proxy) = counted();
    registry.add_image("debian");
    let puller = Puller::new();
    let reference = format!("{}/debian:bookworm", proxy.host());
    let size: u64 = {
        let layout = images().join("debian.oci");
        let manifest = document(&layout, &digest(&layout, "bookworm"));
        manifest["layers"].as_array().unwrap().iter().map(|layer| layer["size"].as_u64().unwrap()).sum()
    };
    proxy.rule(Rule::on("/blobs/", Fault::Throttle(size)));
    let mut pull = puller.boxlite(&["pull", "-q", &reference]).start();
    eventually("half of it has come", PATIENCE, || proxy.blob_bytes() > size / 2);
    pull.kill();
    assert!(puller.images().is_empty());
    proxy.heal();
    puller.pull(&reference).success();
    let seen = proxy.seen();
    assert!(
        seen.iter().any(|seen| seen.is_blob() && seen.request.field("Range").is_some()),
        "no range was asked for"
    );
    let sent = proxy.blob_bytes();
    assert!(sent < size * 12 / 10, "{sent} bytes for {size}");

    let other = Puller::new();
    other.pull(&format!("{}/debian:bookworm", registry.host())).success();
    disk::assert_same(&puller.tree(), &other.tree());
}

#[test]
fn fifteen_layers_are_what_umoci_makes_of_them() {
    let registry = Registry::start();
    registry.add_image("layers");
    let wanted = images().join("layers.oci/tree.txt");
    let wanted = fs::read_to_string(&wanted);
    let mut first: Option<String> = None;
    for tag in ["latest", "docker", "mixed"] {
        let puller = Puller::new();
        puller.pull(&format!("{}/layers:{tag}", registry.host())).success();
        let tree = puller.tree();
        if let Some(first) = &first {
            disk::assert_same(&tree, first);
            continue;
        }
        if disk::lists_are_complete() {
            disk::assert_same(&tree, wanted.as_ref().expect("the list that build.sh makes as root"));
        }
        first = Some(tree);
    }
}

#[test]
fn the_platform_that_is_asked_for_is_pulled() {
    let registry = Registry::start();
    registry.add_image("platforms");
    let reference = format!("{}/platforms", registry.host());
    let architecture = |puller: &Puller| puller.images()[0]["architecture"].as_str().unwrap().to_owned();
    for tag in ["latest", "docker"] {
        let reference = format!("{reference}:{tag}");
        let here = Puller::new();
        here.pull(&reference).success();
        assert_eq!(architecture(&here), "amd64");
        for platform in ["linux/arm64", "linux/arm64/v8"] {
            let there = Puller::new();
            there.boxlite(&["pull", "-q", "--platform", platform, &reference]).run().success();
            assert_eq!(architecture(&there), "arm64");
            assert!(there.tree().contains("/platform file") && !there.tree().contains("/bin/busybox "));
        }
        let none = Puller::new();
        let told = none.boxlite(&["pull", "-q", "--platform", "linux/s390x", &reference]).run().code(1);
        assert!(told.err().contains("linux/s390x") && told.err().contains("linux/arm64"), "{}", told.err());
        for wrong in ["linux", "linux/", "/amd64", "linux/arm64/v8/x"] {
            none.boxlite(&["pull", "-q", "--platform", wrong, &reference]).run().code(1);
        }
        assert!(none.images().is_empty());
    }
}

#[test]
fn a_name_without_a_registry_is_searched_for_in_order() {
    let ((first, before_first), (second, before_second)) = (counted(), counted());
    let image = small_image();
    first.add(image.path(), "only-first");
    second.add(image.path(), "only-second");
    second.add(image.path(), "library/nowhere-but-below-library");
    for (registry, repository) in [(&first, "both"), (&second, "both")] {
        registry.add(image.path(), repository);
    }
    let puller = Puller::new();
    let hosts = [before_first.host(), before_second.host()];
    let entry = |host: &String| json!({"host": host, "transport": "http", "search": true});
    puller.configure(&json!({"image_registries": hosts.iter().map(entry).collect::<Vec<_>>()}));
    let pull = |name: &str| puller.pull(name).success().out();
    assert_eq!(pull("only-second"), format!("{}/only-second:latest\n", hosts[1]));
    assert_eq!(pull("both"), format!("{}/both:latest\n", hosts[0]));
    assert_eq!(pull("only-first"), format!("{}/only-first:latest\n", hosts[0]));
    let told = puller.pull("nowhere").code(1);
    let text = told.err();
    assert!(text.contains("nowhere") && hosts.iter().any(|host| text.contains(host)), "{text}");

    // The same on the command line, without a file.
    let other = Puller::new();
    let told = other.boxlite(&["--registry", &hosts[1], "--registry", &hosts[0], "pull", "-q", "both"]).run();
    assert_eq!(told.success().out(), format!("{}/both:latest\n", hosts[1]));
}

#[test]
fn mirrors_are_asked_first_and_a_dead_one_is_passed_over() {
    let ((registry, origin), (other, mirror)) = (counted(), counted());
    let image = small_image();
    registry.add(image.path(), "small");
    registry.add(image.path(), "only-here");
    other.add(image.path(), "small");
    // Bound and let go: nobody listens there.
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let puller = Puller::new();
    let entry = json!({"host": origin.host(), "transport": "http", "mirrors": [dead, mirror.host()]});
    puller.configure(&json!({"image_registries": [entry]}));
    let reference = format!("{}/small:latest", origin.host());
    // It keeps the name that it was asked for under.
    assert_eq!(puller.pull(&reference).success().out(), format!("{reference}\n"));
    assert!(origin.seen().is_empty() && mirror.blob_bytes() > 2_000_000);
    puller.boxlite(&["rmi", &reference]).run().success();
    puller.pull(&format!("{}/only-here", origin.host())).success();
    assert!(origin.seen().iter().any(|seen| seen.target().contains("/only-here/manifests/")));
}

#[test]
fn a_proxy_of_the_environment_or_of_the_settings_is_used_for_hosts_far_away() {
    let image = small_image();
    let (plain, through_plain) = counted();
    plain.add(image.path(), "small");
    let secure = Registry::with(Manner { tls: true, ..Manner::default() });
    let through_secure = Proxy::before(secure.address());
    secure.add(image.path(), "small");

    let reference = format!("{FAR_NAME}:5000/small");
    let http = json!({"host": format!("{FAR_NAME}:5000"), "transport": "http"});
    let puller = Puller::new();
    puller.configure(&json!({"image_registries": [http]}));
    let pull = puller
        .boxlite(&["pull", "-q", &reference])
        .env("http_proxy", format!("http://{}", through_plain.host()));
    pull.run().success();
    let start = format!("http://{FAR_NAME}:5000/v2/");
    assert!(
        through_plain.seen().iter().all(|seen| seen.target().starts_with(&start)),
        "{:?}",
        through_plain.seen()
    );

    let puller = Puller::new();
    let https = json!({"host": format!("{FAR_NAME}:5000"), "ca_file": secure.authority()});
    let proxy = json!({"https_proxy": format!("http://{}", through_secure.host())});
    puller.configure(&json!({"image_registries": [https], "image_registry_proxy": proxy}));
    puller.pull(&reference).success();
    let seen = through_secure.seen();
    assert!(
        !seen.is_empty()
            && seen.iter().all(|seen| seen.request.first.starts_with("CONNECT registry.test:5000"))
    );

    // This machine itself is never behind a proxy.
    let puller = Puller::new();
    let pull = puller.boxlite(&["pull", "-q"]).arg(format!("{}/small", plain.host()));
    pull.env("http_proxy", "http://127.0.0.1:9").env("https_proxy", "http://127.0.0.1:9").run().success();
}

#[test]
fn saving_and_loading_keeps_digest_and_content() {
    let registry = Registry::start();
    registry.add_image("layers");
    let layout = images().join("layers.oci");
    for tag in ["latest", "mixed"] {
        let (puller, other) = (Puller::new(), Puller::new());
        let reference = format!("{}/layers:{tag}", registry.host());
        puller.pull(&reference).success();
        let archive = other.user().join("saved.tar");
        puller.boxlite(&["save", "-o", archive.to_str().unwrap(), &reference]).run().success();
        let piped = puller.boxlite(&["save", &reference]).run().success();
        assert!(piped.stdout.len() as u64 == fs::metadata(&archive).unwrap().len());
        // Another tool finds the same manifest in it.
        let inspected = Command::new("skopeo")
            .args(["inspect", "--raw"])
            .arg(format!("oci-archive:{}", archive.display()))
            .output()
            .unwrap();
        let manifest: Value = serde_json::from_slice(&inspected.stdout).unwrap();
        assert_eq!(manifest, document(&layout, &digest(&layout, tag)));

        other.boxlite(&["load", "-q", "-i", archive.to_str().unwrap()]).run().success();
        assert_eq!(other.images()[0]["digest"], puller.images()[0]["digest"]);
        assert_eq!(other.references(), [reference]);
        disk::assert_same(&other.tree(), &puller.tree());
    }
}

#[test]
fn one_of_two_names_goes_and_the_image_stays() {
    let registry = Registry::start();
    let image = small_image();
    registry.add(image.path(), "small");
    let puller = Puller::new();
    let reference = format!("{}/small:latest", registry.host());
    puller.pull(&reference).success();
    puller.boxlite(&["tag", &reference, "other:name"]).run().success();
    let wanted = digest(image.path(), "latest");
    let quiet = puller.boxlite(&["images", "-q"]).run().success();
    assert_eq!(quiet.out(), format!("{wanted}\n"));
    assert_eq!(puller.references().len(), 2);

    let told = puller.boxlite(&["rmi", &reference]).run().success();
    assert_eq!(told.out(), format!("Untagged: {reference}\n"));
    let inspected = puller.boxlite(&["image", "inspect", "other:name"]).run().success();
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!((inspected.as_array().unwrap().len(), &inspected[0]["Digest"]), (1, &json!(wanted)));
    let told = puller.boxlite(&["rmi", "other:name"]).run().success();
    assert!(told.out().ends_with(&format!("Deleted: {wanted}\n")), "{}", told.out());
    assert!(disk::disks(puller.home()).is_empty() && puller.images().is_empty());
    puller.boxlite(&["rmi", "other:name"]).run().code(1);
    puller.boxlite(&["rmi", "-f", "other:name"]).run().success();
}

#[test]
fn a_moved_tag_leaves_an_image_without_a_name_that_prune_removes() {
    let registry = Registry::start();
    let (first, second) = (small_image(), images().join("platforms.oci"));
    registry.add(first.path(), "moving");
    let puller = Puller::new();
    let reference = format!("{}/moving:latest", registry.host());
    puller.pull(&reference).success();
    registry.add(&second, "moving");
    puller.pull(&reference).success();
    assert_eq!((puller.images().len(), puller.references()), (2, vec![reference]));
    let told = puller.boxlite(&["image", "prune", "-f"]).run().success();
    assert!(told.out().contains(&format!("Deleted: {}", digest(first.path(), "latest"))), "{}", told.out());
    assert_eq!((puller.images().len(), disk::disks(puller.home()).len()), (1, 1));
}

#[test]
fn an_image_stays_as_long_as_a_box_uses_it() {
    let registry = Registry::start();
    registry.add_image("platforms");
    let puller = Puller::new();
    let reference = format!("{}/platforms:latest", registry.host());
    let mut run = puller.boxlite(&["run", "-i", "--name", "user", &reference, "cat"]).start();
    puller.story.until_status("running");
    let refused = || {
        for words in [["rmi", &reference], ["rmi", "-f"]] {
            let told = puller.boxlite(&words).args((words[1] == "-f").then_some(&reference)).run().code(1);
            assert!(told.err().contains("user"), "{}", told.err());
        }
        puller.boxlite(&["image", "prune", "-a", "-f"]).run().success();
        assert_eq!((puller.images().len(), disk::disks(puller.home()).len()), (1, 1));
    };
    refused();
    drop(run.child.stdin.take());
    assert_eq!(run.wait().code(), Some(0));
    puller.story.until_status("stopped");
    refused();

    puller.boxlite(&["rm", "user"]).run().success();
    puller.boxlite(&["rmi", &reference]).run().success();
    assert!(disk::disks(puller.home()).is_empty());
}

#[test]
fn what_is_told_of_the_disk_is_what_is_on_it() {
    let registry = Registry::start();
    registry.add_image("debian");
    registry.add_image("platforms");
    let puller = Puller::new();
    puller.pull(&format!("{}/debian:bookworm", registry.host())).success();
    let reference = format!("{}/platforms", registry.host());
    puller.boxlite(&["run", &reference]).run().success();
    let told = || {
        let told = puller.boxlite(&["system", "df", "--format", "json"]).run().success();
        let told: Value = serde_json::from_slice(&told.stdout).unwrap();
        told["total"].as_u64().unwrap()
    };
    assert_eq!(told(), blocks(puller.home()));
    let full = told();
    puller.boxlite(&["image", "prune", "-a", "-f"]).run().success();
    assert_eq!(puller.images().len(), 1, "that of the stopped box stays");
    assert_eq!(told(), blocks(puller.home()));
    puller.boxlite(&["system", "prune", "-a", "-f"]).run().success();
    assert!(puller.images().is_empty() && puller.story.boxes().is_empty());
    assert_eq!(told(), blocks(puller.home()));
    assert!(told() < full / 2, "{} of {full} bytes are left", told());
}

/// Bytes of all blocks, a file with several names once, as `du` counts.
fn blocks(folder: &Path) -> u64 {
    let du = Command::new("du").args(["-s", "--block-size=1"]).arg(folder).output().unwrap();
    let text = String::from_utf8(du.stdout).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}
