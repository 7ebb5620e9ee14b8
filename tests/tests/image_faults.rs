//! What goes wrong on the way from a registry, or on the disk, ends in the right image or in an error that says what was
//! wrong with what: never in a wrong image.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use boxlite_tests::disk;
use boxlite_tests::proxy::{Fault, Proxy, Rule};
use boxlite_tests::puller::{Puller, small_image};
use boxlite_tests::registry::Registry;
use boxlite_tests::story::images;
use serde_json::{Value, json};

const SIZE: u64 = 700_000;

/// How a fault has to end.
#[derive(Clone, Copy)]
enum End {
    /// The pull gets over it.
    Works,
    /// An error with one of these words, in lower case.
    Fails(&'static [&'static str]),
    /// One or the other.
    Either(&'static [&'static str]),
}

/// A registry with an image behind a proxy, and what the image's disk holds.
struct Scene {
    // Ends with the scene.
    _registry: Registry,
    proxy: Proxy,
    repository: &'static str,
    good: String,
}

impl Scene {
    fn of(repository: &'static str, layout: &Path) -> Self {
        let registry = Registry::start();
        registry.add(layout, repository);
        let puller = Puller::new();
        puller.pull(&format!("{}/{repository}", registry.host())).success();
        let proxy = Proxy::before(registry.address());
        Self { good: puller.tree(), _registry: registry, proxy, repository }
    }

    /// Pulls into an empty home while these rules break what passes, and again without them.
    fn play(&self, name: &str, rules: &[Rule], end: End) {
        let (puller, host) = (Puller::new(), self.proxy.host());
        rules.iter().for_each(|rule| self.proxy.rule(rule.clone()));
        let before = self.proxy.seen().len();
        let told = puller.pull(&format!("{host}/{}", self.repository));
        assert!(self.proxy.seen()[before..].iter().any(|seen| seen.broken), "{name}: nothing was broken");
        self.proxy.heal();
        let worked = told.status.success();
        let words = match end {
            End::Works => &[][..],
            End::Fails(words) | End::Either(words) => words,
        };
        match end {
            End::Works => assert!(worked, "{name}: {}", told.err()),
            End::Fails(_) => assert!(!worked, "{name}: worked"),
            End::Either(_) => {}
        }
        if worked {
            disk::assert_same(&puller.tree(), &self.good);
        } else {
            assert_eq!(told.status.code(), Some(1), "{name}");
            let text = told.err();
            assert!(text.contains(&format!("{host}/{}:latest", self.repository)), "{name}: {text}");
            let lower = text.to_lowercase();
            assert!(words.iter().any(|word| lower.contains(word)), "{name}: {text}");
            assert!(
                puller.images().is_empty() && disk::disks(puller.home()).is_empty(),
                "{name}: something stays"
            );
        }
        puller.pull(&format!("{host}/{}", self.repository)).success();
        disk::assert_same(&puller.tree(), &self.good);
    }
}

fn blobs(fault: Fault) -> Rule {
    Rule::on("/blobs/", fault)
}

fn manifests(fault: Fault) -> Rule {
    Rule::on("/manifests/", fault)
}

fn small() -> (Scene, tempfile::TempDir) {
    let image = small_image();
    (Scene::of("small", image.path()), image)
}

#[test]
fn connections_that_break_now_and_then_are_gotten_over() {
    let (scene, _image) = small();
    scene.play("resets", &[blobs(Fault::CutAfter(SIZE / 2)).times(2)], End::Works);
    scene.play("closes", &[blobs(Fault::CloseAfter(SIZE / 3)).times(2)], End::Works);
    scene.play("a reset before the first byte", &[blobs(Fault::CutAfter(0)).times(1)], End::Works);
    scene.play("a reset of a manifest", &[manifests(Fault::CutAfter(10)).times(1)], End::Works);
    scene.play(
        "a length that was too large",
        &[blobs(Fault::LengthTooLarge(10)).times(1)],
        End::Either(&["length", "bytes"]),
    );
    scene.play("an answer that comes late", &[blobs(Fault::Delay(Duration::from_millis(300)))], End::Works);
    scene.play("a slow body", &[blobs(Fault::Throttle(2_000_000))], End::Works);
}

#[test]
fn statuses_that_pass_are_gotten_over() {
    let (scene, _image) = small();
    for (name, fault) in [
        ("429", Fault::Status(429, Some(1))),
        ("500", Fault::Status(500, None)),
        ("503", Fault::Status(503, Some(1))),
    ] {
        scene.play(&format!("{name} for a blob"), &[blobs(fault.clone()).times(1)], End::Works);
        scene.play(&format!("{name} for a manifest"), &[manifests(fault).times(1)], End::Works);
    }
}

#[test]
fn ranges_that_are_answered_wrongly_give_the_right_layer_all_the_same() {
    let (scene, _image) = small();
    let cut = || blobs(Fault::CutAfter(SIZE / 2)).times(1);
    for (name, fault) in [
        ("everything in place of a range", Fault::IgnoreRange),
        ("a range that begins elsewhere", Fault::WrongContentRange),
        ("no such range", Fault::RangeNotSatisfiable),
    ] {
        let words = &["range", "416"];
        scene.play(name, &[cut(), blobs(fault.clone()).of_ranges().times(1)], End::Either(words));
        let for_ever = if matches!(fault, Fault::IgnoreRange) { End::Works } else { End::Either(words) };
        scene.play(&format!("{name}, always"), &[cut(), blobs(fault).of_ranges()], for_ever);
    }
}

#[test]
fn a_byte_that_changed_on_the_way_is_never_accepted() {
    let (scene, _image) = small();
    let words = &["digest", "sha256"];
    // Start, middle and end of a layer of 3 * 700000 bytes in all; the config is hit by the first as well.
    for at in [0, SIZE / 2, SIZE] {
        scene.play(&format!("byte {at} of each blob"), &[blobs(Fault::Flip(at))], End::Fails(words));
    }
    scene.play("a byte of one layer, once", &[blobs(Fault::Flip(SIZE / 2)).times(2)], End::Either(words));
    // A manifest that is named by a tag may be anything: it then names things that are not there, or is none.
    scene.play(
        "a byte of the manifest",
        &[manifests(Fault::Flip(0))],
        End::Fails(&["manifest", "json", "instead of"]),
    );
}

#[test]
fn a_compressed_layer_is_never_accepted_with_another_byte() {
    let scene = Scene::of("platforms", &images().join("platforms.oci"));
    for at in [0, 9, 5000, 400_000] {
        scene.play(
            &format!("byte {at} of each blob"),
            &[blobs(Fault::Flip(at))],
            End::Fails(&["digest", "sha256"]),
        );
    }
    scene.play("a reset", &[blobs(Fault::CutAfter(300_000)).times(1)], End::Works);
    // What is named by its digest has it, and what the tag names is checked against what the registry says of it.
    let wrong = manifests(Fault::Flip(60));
    scene.play("a byte of each manifest", &[wrong], End::Fails(&["manifest", "json", "instead of"]));
}

#[test]
fn a_registry_that_stays_broken_is_an_error_that_says_how() {
    let (scene, _image) = small();
    for (name, fault, words) in [
        ("500", Fault::Status(500, None), &["500"][..]),
        ("404", Fault::Status(404, None), &["not found", "404", "does not have", "has no"]),
        ("403", Fault::Status(403, None), &["denied", "denies"]),
        ("401", Fault::Status(401, None), &["login", "401", "authentic", "unauthorized"]),
    ] {
        scene.play(&format!("{name} for blobs"), &[blobs(fault.clone())], End::Fails(words));
        scene.play(&format!("{name} for manifests"), &[manifests(fault)], End::Fails(words));
    }
}

#[test]
fn bodies_of_a_wrong_length_are_errors() {
    let (scene, _image) = small();
    let words = &["length", "bytes", "size", "short", "long", "end", "more than"];
    scene.play("always too short", &[blobs(Fault::LengthTooSmall(10))], End::Fails(words));
    scene.play("always too long", &[blobs(Fault::LengthTooLarge(10))], End::Either(words));
    scene.play("chunks without an end, once", &[blobs(Fault::TruncatedChunks(1000)).times(1)], End::Works);
    scene.play("chunks that never end", &[blobs(Fault::Endless)], End::Fails(words));
    scene.play("a manifest that never ends", &[manifests(Fault::Endless)], End::Fails(words));
}

#[test]
fn a_redirect_into_nothing_or_in_a_circle_ends() {
    let (scene, _image) = small();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let words = &["connect", "refused"];
    scene.play("to a closed port", &[blobs(Fault::Redirect(nobody))], End::Fails(words));
    let circle = blobs(Fault::Redirect(scene.proxy.address()));
    scene.play("in a circle", &[circle], End::Fails(&["redirect"]));
}

#[test]
fn manifests_that_lie_are_refused() {
    let (scene, _image) = small();
    let lie = |pointer: &'static str, value: Value| {
        manifests(Fault::rewrite(move |manifest| {
            if let Some(place) = manifest.pointer_mut(pointer) {
                *place = value.clone();
            }
        }))
    };
    let words =
        &["size", "bytes", "digest", "manifest", "layer", "length", "large", "media", "limit", "json"];
    for (name, rule) in [
        ("a negative size", lie("/layers/1/size", json!(-1))),
        ("a size of nothing", lie("/layers/1/size", json!(0))),
        ("one byte fewer", lie("/layers/1/size", json!(SIZE + 2560 - 1))),
        ("one byte more", lie("/layers/1/size", json!(SIZE * 2))),
        ("more than there is in the world", lie("/layers/1/size", json!(u64::MAX))),
        ("a huge configuration", lie("/config/size", json!(1_u64 << 40))),
        ("a digest that is a path", lie("/layers/0/digest", json!("sha256:../../../../etc/passwd"))),
        (
            "a digest of an unknown kind",
            lie("/layers/0/digest", json!("md5:d41d8cd98f00b204e9800998ecf8427e")),
        ),
        ("an unknown media type", lie("/layers/2/mediaType", json!("application/x-nonsense"))),
        ("no layers", lie("/layers", json!([]))),
        ("another schema", lie("/schemaVersion", json!(1))),
    ] {
        scene.play(name, &[rule], End::Fails(words));
    }
}

#[test]
fn a_server_that_falls_silent_is_given_up_and_asked_again() {
    let (scene, _image) = small();
    scene.play("a silent answer", &[blobs(Fault::Silence).times(1)], End::Works);
}

/// Files of a home in which something stands, in a fixed order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            found.extend(files(&path));
        } else if kind.is_file() && entry.metadata().unwrap().len() > 0 {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn a_byte_that_changed_on_the_disk_never_gives_another_content() {
    let image = small_image();
    let registry = Registry::start();
    registry.add(image.path(), "small");
    let puller = Puller::new();
    let reference = format!("{}/small:latest", registry.host());
    puller.pull(&reference).success();
    let tree = puller.tree();
    let inspect = || puller.boxlite(&["image", "inspect", &reference]).run();
    let inspected = inspect().success().out();
    let all = files(puller.home());
    assert!(all.len() >= 6, "{all:?}");
    for file in all.iter().filter(|file| file.extension().is_none_or(|ending| ending != "erofs")) {
        let good = fs::read(file).unwrap();
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 0x04;
        fs::write(file, &bad).unwrap();
        let name = file.strip_prefix(puller.home()).unwrap().display();

        let shown = inspect();
        assert!(!shown.status.success() || shown.out() == inspected, "{name}: {}", shown.out());
        let saved = puller.boxlite(&["save", &reference]).run();
        if saved.status.success() {
            let other = Puller::new();
            other.boxlite(&["load", "-q"]).input(saved.stdout).run().success();
            disk::assert_same(&other.tree(), &tree);
        } else {
            assert!(saved.err().len() > 20, "{name}: {}", saved.err());
        }
        // A pull repairs it, or says what is wrong.
        let pulled = puller.pull(&reference);
        if pulled.status.success() {
            disk::assert_same(&puller.tree(), &tree);
            assert_eq!(inspect().success().out(), inspected, "{name}");
        } else {
            assert!(pulled.err().len() > 20, "{name}: {}", pulled.err());
        }
        fs::write(file, &good).unwrap();
    }
}

#[test]
fn a_byte_that_changed_in_a_disk_does_not_reach_a_box() {
    let registry = Registry::start();
    registry.add_image("platforms");
    let puller = Puller::new();
    let reference = format!("{}/platforms:latest", registry.host());
    puller.pull(&reference).success();
    let disk = disk::disks(puller.home()).remove(0);
    let mut bytes = fs::read(&disk).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&disk, &bytes).unwrap();
    let told =
        puller.boxlite(&["run", "--rm", &reference, "/bin/busybox", "sha256sum", "/bin/busybox"]).run();
    if told.status.success() {
        let good = std::process::Command::new("sha256sum").arg("/bin/busybox").output().unwrap();
        assert_eq!(told.stdout[..64], good.stdout[..64]);
    } else {
        assert!(told.err().contains("disk") || told.err().contains("image"), "{}", told.err());
    }
}
