//! What lies in the store: shared, counted, saved, and never believed once something has touched it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use boxlite::image::{ImageError, Used};

use crate::layout::{Layout, Packed};
use crate::tar::Layer;
use crate::{Home, chain};

/// An image of these layers; a second one of the same layers has another configuration.
fn load(home: &Home, folder: &str, name: &str, layers: &[(Layer, Packed)]) -> PathBuf {
    let mut layout = Layout::new(&home.path(folder));
    let layers: Vec<_> = layers.iter().map(|(layer, packed)| (layer.clone().bytes(), *packed)).collect();
    layout.image(&layers, name);
    home.load(&layout.folder).unwrap();
    layout.folder
}

fn layer(text: &str) -> Layer {
    Layer::new().file("f", text.repeat(3000)).file(text, "x")
}

/// All files below a folder, and the bytes that they take.
fn files(folder: &Path) -> (Vec<PathBuf>, u64) {
    let (mut found, mut size) = (Vec::new(), 0);
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let (below, bytes) = files(&path);
            found.extend(below);
            size += bytes;
        } else {
            size += fs::metadata(&path).unwrap().blocks() * 512;
            found.push(path);
        }
    }
    found.sort();
    (found, size)
}

#[test]
fn images_with_the_same_layers_have_one_disk_and_each_blob_is_there_once() {
    let home = Home::new();
    let (a, b) = ((layer("a"), Packed::Gzip), (layer("b"), Packed::Gzip));
    load(&home, "l1", "one", &[a.clone(), b.clone()]);
    // The same contents, compressed otherwise: another image on the same disk.
    load(&home, "l2", "two", &[a.clone(), (layer("b"), Packed::Zstd)]);
    load(&home, "l3", "three", std::slice::from_ref(&a));
    let (one, two, three) =
        (home.store.get("one").unwrap(), home.store.get("two").unwrap(), home.store.get("three").unwrap());
    assert_ne!(one.digest, two.digest);
    assert_eq!(one.disk, two.disk);
    assert_ne!(one.disk, three.disk);
    let blobs = || files(&home.path("blobs/sha256")).0.len();
    // Three layers, three configurations or fewer, three manifests.
    let layers: BTreeSet<_> =
        [&one, &two, &three].iter().flat_map(|image| image.info.layers.clone()).collect();
    assert_eq!(layers.len(), 3);

    let before = blobs();
    home.store.remove("one", &Used::new()).unwrap();
    assert!(one.disk.exists(), "the other image has it");
    assert!(blobs() < before);
    assert_eq!(home.store.disk(&two.digest, &mut |_| Ok(())).unwrap(), two.disk);
    home.store.remove("two", &Used::new()).unwrap();
    assert!(!one.disk.exists() && three.disk.exists());
    home.store.remove("three", &Used::new()).unwrap();
    assert_eq!(blobs(), 0);
}

#[test]
fn what_is_shown_as_used_is_what_the_files_take() {
    let home = Home::new();
    load(&home, "layouts/a", "a", &[(layer("a"), Packed::Gzip), (layer("b"), Packed::Plain)]);
    load(&home, "layouts/b", "b", &[(layer("a"), Packed::Gzip)]);
    fs::write(home.path("blobs/partial").join("0".repeat(64)), vec![1; 9999]).unwrap();
    let taken = || files(&home.path("images")).1 + files(&home.path("blobs")).1;
    let b = home.store.get("b").unwrap();
    let used = Used::from([(b.digest.clone(), vec!["box".to_owned()])]);
    let usage = home.store.usage(&used).unwrap();
    assert_eq!((usage.images, usage.active), (2, 1));
    assert_eq!(usage.total_bytes(), taken());
    let before = taken();
    let pruned = home.store.prune(true, &used).unwrap();
    assert_eq!(pruned.untagged, ["docker.io/library/a:latest"]);
    assert_eq!(home.store.usage(&used).unwrap().total_bytes(), taken());
    // Records and names count too, and are not what is promised.
    assert!(before - taken() >= usage.reclaimable_bytes && usage.reclaimable_bytes > 0);
    assert!(pruned.freed_bytes <= before - taken());
    assert_eq!(home.store.get("b").unwrap().info, b.info);
}

#[test]
fn an_image_that_a_box_uses_is_not_removed_but_may_lose_a_name() {
    let home = Home::new();
    let folder = load(&home, "l", "app:1", &[(layer("a"), Packed::Gzip)]);
    let image = home.store.get("app:1").unwrap();
    home.store.tag("app:1", &"app:2".parse().unwrap()).unwrap();
    let used = Used::from([(image.digest.clone(), vec!["work".to_owned()])]);
    assert_eq!(home.store.remove("app:2", &used).unwrap().deleted, None);
    for name in ["app:1", &image.digest] {
        let error = home.store.remove(name, &used).unwrap_err();
        assert!(matches!(&error, ImageError::InUse { boxes, .. } if boxes == &["work"]), "{error}");
    }
    assert_eq!(home.store.info("app:1").unwrap().references, ["docker.io/library/app:1"]);
    assert_eq!(home.store.prune(true, &used).unwrap().deleted, [""; 0]);
    home.load(&folder).unwrap();
}

#[test]
fn a_saved_image_has_the_digest_that_it_came_with() {
    let home = Home::new();
    load(
        &home,
        "l",
        "app:1",
        &[(layer("a"), Packed::Gzip), (layer("b"), Packed::Zstd), (layer("c"), Packed::Plain)],
    );
    home.store.tag("app:1", &"host.example/other:2".parse().unwrap()).unwrap();
    let digest = home.store.get("app:1").unwrap().digest;
    let mut archive = fs::File::create(home.path("saved.tar")).unwrap();
    let names = ["app:1".to_owned(), "host.example/other:2".to_owned(), "app:1".to_owned()];
    home.store.save(&names, &mut archive, &mut |_| Ok(())).unwrap();
    let other = Home::new();
    let loaded = other.load(&home.path("saved.tar")).unwrap();
    assert_eq!(loaded.len(), 1);
    assert_eq!(loaded[0].digest, digest);
    assert_eq!(loaded[0].references, ["docker.io/library/app:1", "host.example/other:2"]);
    assert!(
        home.store
            .save(&["nothing".to_owned()], &mut Vec::new(), &mut |_| Ok(()))
            .unwrap_err()
            .is_not_found()
    );
}

/// Each file of the store is changed in one byte, at its start, its middle and its end. The image then has the contents
/// that it had, or there is an error; and loading it again mends it.
#[test]
fn no_changed_byte_of_the_store_is_ever_believed() {
    let home = Home::new();
    let folder = load(&home, "layouts/l", "app", &[(layer("a"), Packed::Gzip), (layer("b"), Packed::Plain)]);
    let image = home.store.get("app").unwrap();
    let good = fs::read(home.store.disk(&image.digest, &mut |_| Ok(())).unwrap()).unwrap();
    let stored: Vec<_> = ["images", "blobs"].iter().flat_map(|name| files(&home.path(name)).0).collect();
    // Disk, its record, the image's record, names, two locks; manifest, configuration, two layers.
    assert_eq!(stored.len(), 10, "{stored:?}");
    let mut refused = 0;
    for path in &stored {
        for half in 0..=2 {
            // Records that were mended may be shorter or longer than before.
            let size = fs::metadata(path).unwrap().len();
            let at = (size * half / 2).min(size.saturating_sub(1));
            let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
            if size > 0 {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                let before = file.metadata().unwrap();
                // The clock of file times ticks slower than this loop.
                while (file.metadata().unwrap().ctime_nsec(), file.metadata().unwrap().ctime())
                    == (before.ctime_nsec(), before.ctime())
                {
                    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
                }
            }
            let tried = home.store.get("app").and_then(|found| {
                assert_eq!(found.digest, image.digest);
                assert_eq!(found.config, image.config);
                home.store.disk(&found.digest, &mut |_| Ok(()))
            });
            match tried {
                Ok(disk) => assert!(fs::read(disk).unwrap() == good, "{} at {at}", path.display()),
                Err(error) => {
                    refused += 1;
                    assert!(!chain(&error).is_empty() && error.hint().is_some(), "{error}");
                }
            }
            let mut archive = Vec::new();
            if home.store.save(&["app".to_owned()], &mut archive, &mut |_| Ok(())).is_ok() {
                fs::write(home.path("layouts/saved.tar"), &archive).unwrap();
                assert_eq!(
                    Home::new().load(&home.path("layouts/saved.tar")).unwrap()[0].digest,
                    image.digest
                );
            }
            if home.load(&folder).is_err() {
                // Names are the one thing that is nowhere else: they are not guessed, and the file is named.
                assert_eq!(path.file_name().unwrap(), "refs.json");
                fs::remove_file(path).unwrap();
                home.load(&folder).unwrap();
            }
            let mended = home.store.disk(&home.store.get("app").unwrap().digest, &mut |_| Ok(())).unwrap();
            assert!(fs::read(mended).unwrap() == good, "{} at {at}", path.display());
        }
    }
    assert!(refused > 3, "{refused}");
}

#[test]
fn a_disk_that_is_gone_or_touched_is_made_anew_and_without_layers_the_error_says_so() {
    let home = Home::new();
    let folder = load(&home, "l", "app", &[(layer("a"), Packed::Gzip)]);
    let image = home.store.get("app").unwrap();
    let good = fs::read(&image.disk).unwrap();
    fs::remove_file(&image.disk).unwrap();
    assert!(fs::read(home.store.disk(&image.digest, &mut |_| Ok(())).unwrap()).unwrap() == good);
    fs::write(&image.disk, "something else").unwrap();
    assert!(fs::read(home.store.disk(&image.digest, &mut |_| Ok(())).unwrap()).unwrap() == good);
    fs::remove_file(&image.disk).unwrap();
    let blob = home.path("blobs/sha256").join(image.info.layers[0].strip_prefix("sha256:").unwrap());
    fs::remove_file(&blob).unwrap();
    let error = home.store.disk(&image.digest, &mut |_| Ok(())).unwrap_err();
    assert!(chain(&error).contains("is not here"), "{}", chain(&error));
    assert_eq!(error.hint().unwrap(), "pull or load the image again");
    home.load(&folder).unwrap();
    assert!(fs::read(home.store.disk(&image.digest, &mut |_| Ok(())).unwrap()).unwrap() == good);
}

#[test]
fn removing_an_image_leaves_what_a_cut_download_of_another_one_has_brought() {
    let home = Home::new();
    load(&home, "l", "app", &[(layer("a"), Packed::Gzip)]);
    let cut =
        [home.path("blobs/partial").join("0".repeat(64)), home.path("blobs/sha256").join("1".repeat(64))];
    for path in &cut {
        fs::write(path, "brought").unwrap();
    }
    home.store.remove("app", &Used::new()).unwrap();
    let (left, _) = files(&home.path("blobs"));
    assert_eq!(left, cut);
    home.store.prune(false, &Used::new()).unwrap();
    assert_eq!(files(&home.path("blobs")).0, [""; 0].map(PathBuf::from));
}
