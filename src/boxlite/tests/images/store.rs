//! The store: what it finds, what it forgets, and that processes do not get into each other's way.

use std::fs;
use std::sync::Barrier;

use boxlite::image::{ImageError, Progress, Reference, Used};

use crate::layout::{Layout, Packed};
use crate::tar::Layer;
use crate::{Home, chain};

fn layout(home: &Home, folder: &str, name: &str, contents: &str) -> Layout {
    let mut layout = Layout::new(&home.path(folder));
    layout.image(&[(Layer::new().file("f", contents).bytes(), Packed::Gzip)], name);
    layout
}

fn names(home: &Home) -> Vec<String> {
    home.store.list().unwrap().into_iter().flat_map(|image| image.references).collect()
}

#[test]
fn an_image_is_found_by_all_its_names_and_digests() {
    let home = Home::new();
    let image = home.load(&layout(&home, "l", "busybox:1.36", "x").folder).unwrap().remove(0);
    let hex = image.digest.strip_prefix("sha256:").unwrap();
    for name in [
        "busybox:1.36",
        "docker.io/busybox:1.36",
        "docker.io/library/busybox:1.36",
        "index.docker.io/library/busybox:1.36",
        &image.digest,
        hex,
        &hex[..12],
        &image.digest[..20],
    ] {
        assert_eq!(home.store.info(name).unwrap(), image, "{name}");
    }
    assert_eq!(home.store.disk(&image.digest, &mut |_| Ok(())).unwrap(), home.store.get(hex).unwrap().disk);
    for name in ["busybox", "busybox:1.3", &hex[..11], &format!("{}0", &hex[..12]), "sha256:00"] {
        assert!(home.store.get(name).is_err(), "{name}");
    }
}

#[test]
fn what_is_not_there_is_told_apart_and_what_is_alike_is_named() {
    let home = Home::new();
    let error = home.store.get("busybox").unwrap_err();
    assert!(error.is_not_found());
    assert!(error.hint().unwrap().contains("boxlite load"));
    home.load(&layout(&home, "l", "busybox:1.36", "x").folder).unwrap();
    let error = home.store.get("bussybox").unwrap_err();
    assert_eq!(error.hint().unwrap(), "there are: busybox:1.36");
    let error = home.store.disk(&format!("sha256:{}", "0".repeat(64)), &mut |_| Ok(())).unwrap_err();
    assert!(error.is_not_found());
    assert!(!home.store.get("Not A Name").unwrap_err().is_not_found());
}

#[test]
fn loading_again_makes_nothing_anew() {
    let home = Home::new();
    let layout = layout(&home, "l", "app", "x");
    let image = home.load(&layout.folder).unwrap().remove(0);
    // Were it read again, it would fail.
    fs::remove_dir_all(layout.folder.join("blobs/sha256")).unwrap();
    let layout = self::layout(&home, "l2", "app", "x");
    let mut steps = Vec::new();
    let again = home.store.load(&layout.folder, &mut |step| {
        steps.push(step);
        Ok(())
    });
    assert_eq!(again.unwrap(), [image]);
    assert_eq!(steps, []);
}

#[test]
fn a_name_leads_to_what_was_loaded_last() {
    let home = Home::new();
    let old = home.load(&layout(&home, "l1", "app", "old").folder).unwrap().remove(0);
    let new = home.load(&layout(&home, "l2", "app", "new").folder).unwrap().remove(0);
    assert_eq!(home.store.info("app").unwrap(), new);
    assert!(home.store.info(&old.digest).unwrap().references.is_empty());
    assert_eq!(home.store.list().unwrap().len(), 2);
}

#[test]
fn names_can_be_given_by_the_caller() {
    let home = Home::new();
    let layout = layout(&home, "l", "app", "x");
    let name: Reference = "other:tag".parse().unwrap();
    home.store.load_as(&layout.folder, &[name], &mut |_| Ok(())).unwrap();
    assert_eq!(names(&home), ["docker.io/library/other:tag"]);
}

#[test]
fn an_image_goes_with_its_last_name() {
    let home = Home::new();
    let folder = layout(&home, "l", "app", "x").folder;
    let image = home.load(&folder).unwrap().remove(0);
    let other: Reference = "other".parse().unwrap();
    home.store.load_as(&folder, &[other], &mut |_| Ok(())).unwrap();

    let removed = home.store.remove("app", &Used::new()).unwrap();
    assert_eq!((removed.untagged.len(), removed.deleted), (1, None));
    let removed = home.store.remove("other", &Used::new()).unwrap();
    assert_eq!(removed.deleted, Some(image.digest.clone()));
    assert!(home.store.remove("other", &Used::new()).unwrap_err().is_not_found());
    let left: Vec<_> = fs::read_dir(home.path("images")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == "lock" || name == "users" || name == "refs.json"), "{left:?}");
    assert!(fs::read_dir(home.path("blobs/sha256")).unwrap().next().is_none());

    home.load(&folder).unwrap();
    let removed = home.store.remove(&image.digest[..24], &Used::new()).unwrap();
    assert_eq!(
        (removed.untagged, removed.deleted),
        (vec!["docker.io/library/app:latest".into()], Some(image.digest))
    );
}

#[test]
fn what_killed_processes_left_is_cleared_away() {
    let home = Home::new();
    let zeros = "0".repeat(64);
    let draft = home.path("tmp").join(format!("image-{zeros}.erofs"));
    let orphan = home.path("images").join(format!("{zeros}.erofs"));
    let foreign = home.path("tmp").join("of-somebody-else");
    for path in [&draft, &orphan, &foreign] {
        fs::write(path, "left").unwrap();
    }
    fs::write(home.path("images").join("refs.json.new"), "{").unwrap();
    let folder = layout(&home, "l", "app", "x").folder;
    let image = home.load(&folder).unwrap().remove(0);
    assert!(!draft.exists() && foreign.exists());
    let partial = home.path("blobs/partial").join(&zeros);
    let unknown = home.path("blobs/sha256").join(&zeros);
    for path in [&partial, &unknown] {
        fs::write(path, vec![1; 5000]).unwrap();
    }
    let pruned = home.store.prune(false, &Used::new()).unwrap();
    assert!(pruned.deleted.is_empty() && !pruned.incomplete && pruned.freed_bytes >= 3 * 4096, "{pruned:?}");
    assert!([&orphan, &partial, &unknown].iter().all(|path| !path.exists()));
    assert_eq!(home.load(&folder).unwrap(), [image], "what is wanted stays");

    // What somebody still works on stays.
    let file = fs::File::create(&draft).unwrap();
    let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).unwrap();
    home.load(&layout(&home, "l2", "app", "y").folder).unwrap();
    assert!(draft.exists());
    drop(lock);
}

#[test]
fn a_half_written_disk_of_a_killed_process_is_written_anew() {
    let home = Home::new();
    let folder = layout(&home, "l", "app", "x").folder;
    let image = home.load(&folder).unwrap().remove(0);
    let path = home.store.disk(&image.digest, &mut |_| Ok(())).unwrap();
    let (disk, good) = (path.file_name().unwrap(), fs::read(&path).unwrap());
    home.store.remove("app", &Used::new()).unwrap();
    for folder in ["tmp/image-", "images/"] {
        fs::write(home.path(&format!("{folder}{}", disk.to_str().unwrap())), vec![7; 1 << 20]).unwrap();
    }
    home.load(&folder).unwrap();
    assert!(fs::read(home.store.disk(&image.digest, &mut |_| Ok(())).unwrap()).unwrap() == good);
}

#[test]
fn many_load_and_remove_the_same_image_at_once() {
    let home = Home::new();
    let folder = layout(&home, "l", "app", &"contents".repeat(10_000)).folder;
    let barrier = Barrier::new(6);
    std::thread::scope(|scope| {
        for number in 0..6 {
            let (home, folder, barrier) = (&home, &folder, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for _ in 0..10 {
                    if number < 5 {
                        match home.load(folder) {
                            Ok(_) => {}
                            // Removed between its loading and its listing.
                            Err(error) => assert!(error.is_not_found(), "{}", chain(&error)),
                        }
                    } else {
                        match home.store.remove("app", &Used::new()) {
                            Ok(_) => {}
                            Err(error) => assert!(error.is_not_found(), "{}", chain(&error)),
                        }
                    }
                }
            });
        }
    });
    home.disk(&folder);
    assert_eq!(names(&home), ["docker.io/library/app:latest"]);
    assert!(fs::read_dir(home.path("tmp")).unwrap().next().is_none());
}

#[test]
fn who_waits_for_another_process_can_stop_waiting() {
    let home = Home::new();
    let folder = layout(&home, "l", "app", "x").folder;
    home.load(&folder).unwrap();
    let disk = home.store.get("app").unwrap().disk;
    home.store.remove("app", &Used::new()).unwrap();
    let draft = format!("tmp/image-{}", disk.file_name().unwrap().to_str().unwrap());
    let draft = fs::File::create(home.path(&draft)).unwrap();
    let _lock = nix::fcntl::Flock::lock(draft, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let mut waited = 0;
    let stopped = home.store.load(&folder, &mut |step| {
        assert_eq!(step, Progress::Waiting);
        waited += 1;
        if waited < 3 { Ok(()) } else { Err(boxlite::image::Cancelled) }
    });
    assert!(matches!(stopped, Err(ImageError::Cancelled(_))));
}

#[test]
fn documents_of_another_version_are_not_guessed_at() {
    let home = Home::new();
    home.load(&layout(&home, "l", "app", "x").folder).unwrap();
    let refs = home.path("images").join("refs.json");
    for (text, words) in
        [(r#"{"version":3,"refs":"new"}"#, "version 3"), ("{", "not understood"), ("", "not understood")]
    {
        fs::write(&refs, text).unwrap();
        let error = chain(&home.store.list().unwrap_err());
        assert!(error.contains(words) && error.contains("refs.json"), "{error}");
        assert!(home.load(&home.path("l")).is_err());
        assert_eq!(fs::read_to_string(&refs).unwrap(), text);
    }
}
