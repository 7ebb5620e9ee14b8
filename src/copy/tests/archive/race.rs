//! Somebody else changes the tree while it is packed or unpacked.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use boxlite_copy::{PackOptions, Root, Source, UnpackOptions};

use crate::{seen, unpacked};
use boxlite_tricks::stream::{archive, entry};

/// Does something over and over while something else is done.
fn beside<T>(again: impl Fn() + Sync, work: impl FnOnce() -> T) -> T {
    /// Also after a panic.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                again();
            }
        });
        let _over = Over(&over);
        work()
    })
}

#[test]
fn a_folder_that_is_swapped_for_a_link_is_never_unpacked_through() {
    let place = tempfile::tempdir().unwrap();
    let (inside, outside) = (place.path().join("inside"), place.path().join("outside"));
    fs::create_dir(&inside).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), "alive").unwrap();
    symlink(&outside, place.path().join("link")).unwrap();
    let before = seen(&outside);
    let mut entries = vec![];
    for _ in 0..200 {
        // Between the two the folder is left and entered again.
        entries.push(entry(b"d/f", b'0', b"", b"owned"));
        entries.push(entry(b"other/f", b'0', b"", b"owned"));
        entries.push(entry(b"h", b'1', b"d/f", b""));
    }
    let stream = archive(&entries);
    let flags = rustix::fs::RenameFlags::EXCHANGE;
    let (d, link) = (inside.join("d"), place.path().join("link"));
    let swap = || {
        fs::create_dir(&d).unwrap_or_default();
        let swapped = rustix::fs::renameat_with(rustix::fs::CWD, &d, rustix::fs::CWD, &link, flags);
        swapped.unwrap_or_default();
    };
    let (mut good, mut refused) = (0, 0);
    beside(swap, || {
        for _ in 0..200 {
            match unpacked(&stream, &inside, &Root::Contents, UnpackOptions::default()) {
                Ok(_) => good += 1,
                Err(_) => refused += 1,
            }
        }
    });
    assert_eq!(seen(&outside), before, "{good} good, {refused} refused");
    assert!(refused > 0, "nothing was swapped in time: {good} good");
}

#[test]
fn a_tree_that_changes_is_packed_and_nothing_outside_of_it() {
    let place = tempfile::tempdir().unwrap();
    let (inside, outside) = (place.path().join("inside"), place.path().join("outside"));
    fs::create_dir_all(inside.join("d")).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "SECRET".repeat(100)).unwrap();
    symlink(&outside, place.path().join("link")).unwrap();
    symlink(outside.join("secret"), place.path().join("file-link")).unwrap();
    fs::write(inside.join("f"), vec![1; 100_000]).unwrap();
    let flags = rustix::fs::RenameFlags::EXCHANGE;
    let cwd = rustix::fs::CWD;
    let (d, f) = (inside.join("d"), inside.join("f"));
    let (link, file_link) = (place.path().join("link"), place.path().join("file-link"));
    let swap = || {
        for (a, b) in [(&d, &link), (&f, &file_link)] {
            rustix::fs::renameat_with(cwd, a, cwd, b, flags).unwrap_or_default();
        }
        fs::OpenOptions::new().write(true).open(&f).and_then(|file| file.set_len(50)).unwrap_or_default();
        fs::remove_file(inside.join("x")).or_else(|_| fs::write(inside.join("x"), "x")).unwrap_or_default();
    };
    // What it swaps in and truncates may be the secret itself, seen from inside: only its content must not be packed.
    beside(swap, || {
        for _ in 0..300 {
            let source = Source::open(&inside, false).unwrap();
            let mut out = Vec::new();
            source.pack(&Root::Contents, PackOptions::default(), &mut out, &mut |_| {}).unwrap();
            assert!(!out.windows(12).any(|part| part == b"SECRETSECRET"));
            let target = tempfile::tempdir().unwrap();
            unpacked(&out, target.path(), &Root::Contents, UnpackOptions::default()).unwrap();
        }
    });
}
