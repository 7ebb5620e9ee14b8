//! What a hostile stream can do: nothing, and it is told.

use std::fs;
use std::os::unix::fs::symlink;

use boxlite_copy::{Kind, Root, UnpackError, UnpackOptions};

use crate::{seen, unpacked};
use boxlite_tricks::stream::{archive, entry, finish, pax};
use boxlite_tricks::{FILE, Trick, file, folder, tricks};

#[test]
fn no_trick_leaves_the_destination_and_each_is_told() {
    let place = tempfile::tempdir().unwrap();
    let outside = place.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("canary"), "alive").unwrap();
    fs::write(place.path().join("canary"), "alive").unwrap();
    let before = seen(&outside);
    let tricks = tricks(outside.to_str().unwrap());
    assert!(tricks.len() >= 50);
    for (number, Trick { what, stream, rename }) in tricks.into_iter().enumerate() {
        let inside = place.path().join(format!("inside-{number}"));
        fs::create_dir(&inside).unwrap();
        let root = rename.map_or(Root::Contents, |name| Root::Named(name.into()));
        let refused = unpacked(&stream, &inside, &root, UnpackOptions::default());
        assert!(refused.is_err(), "{what}: {refused:?}");
        assert_eq!(seen(&outside), before, "{what}");
        assert_eq!(fs::read_to_string(place.path().join("canary")).unwrap(), "alive", "{what}");
        let left = seen(&inside);
        assert!(
            !left.keys().any(|path| path.windows(9).any(|part| part == b".boxlite-")),
            "{what}: {left:?}"
        );
    }
}

#[test]
fn a_stream_that_is_cut_anywhere_is_an_error_and_leaves_no_half_file() {
    let whole =
        archive(&[folder(b"d"), entry(b"d/f", FILE, b"", &[7; 700]), pax("mtime", b"1.5"), file(b"d/g")]);
    let end = whole.len() - 1024;
    for length in 0..end {
        let inside = tempfile::tempdir().unwrap();
        let cut = unpacked(&whole[..length], inside.path(), &Root::Contents, UnpackOptions::default());
        assert!(cut.is_err(), "{length}");
        for (path, what) in seen(inside.path()) {
            let expected = match path.as_slice() {
                b"d" => "folder",
                b"d/f" => "file 700",
                b"d/g" => "file 5",
                other => panic!("{}", other.escape_ascii()),
            };
            assert!(what.starts_with(expected), "{length}: {what}");
        }
    }
}

#[test]
fn a_stream_has_to_be_what_it_was_said_to_be() {
    let (one, two) = (file(b"d"), [folder(b"d"), file(b"d/f")].concat());
    let link = entry(b"d", boxlite_tricks::LINK, b"x", b"");
    let fifo = entry(b"d", b'6', b"", b"");
    let fits = |stream: &[u8], kind| {
        let inside = tempfile::tempdir().unwrap();
        let options = UnpackOptions { kind: Some(kind), ..UnpackOptions::default() };
        let root = Root::Named("new".into());
        match unpacked(&archive(&[stream.to_vec()]), inside.path(), &root, options) {
            Ok(_) => true,
            Err(UnpackError::Announced) => {
                assert!(kind == Kind::File || fs::read_dir(inside.path()).unwrap().next().is_none());
                false
            }
            Err(other) => panic!("{other}"),
        }
    };
    let kinds = [Kind::File, Kind::Folder, Kind::Symlink, Kind::Other];
    assert_eq!(kinds.map(|kind| fits(&one, kind)), [true, false, false, false]);
    assert_eq!(kinds.map(|kind| fits(&two, kind)), [false, true, false, false]);
    assert_eq!(kinds.map(|kind| fits(&link, kind)), [false, false, true, false]);
    assert_eq!(kinds.map(|kind| fits(&fifo, kind)), [false, false, false, true]);
    assert_eq!(kinds.map(|kind| fits(b"", kind)), [false, false, false, true]);
    assert!(!fits(&[file(b"d"), file(b"d")].concat(), Kind::File), "a second entry");
}

#[test]
fn limits_hold() {
    let inside = tempfile::tempdir().unwrap();
    let stream = archive(&[file(b"a"), file(b"b"), file(b"c")]);
    let limited = |options| unpacked(&stream, inside.path(), &Root::Contents, options);
    let entries = UnpackOptions { max_entries: 2, ..UnpackOptions::default() };
    assert!(matches!(limited(entries), Err(UnpackError::Limit(2, _))));
    let bytes = UnpackOptions { max_bytes: 12, ..UnpackOptions::default() };
    assert!(matches!(limited(bytes), Err(UnpackError::Limit(12, _))));
    assert_eq!(limited(UnpackOptions::default()).unwrap().bytes, 15);
}

#[test]
fn what_is_there_is_replaced_only_if_it_may_be() {
    let inside = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("canary"), "alive").unwrap();
    symlink(outside.path().join("canary"), inside.path().join("f")).unwrap();
    let stream = archive(&[file(b"f")]);
    let keep = UnpackOptions { overwrite: false, ..UnpackOptions::default() };
    let kept = unpacked(&stream, inside.path(), &Root::Contents, keep);
    assert!(matches!(kept, Err(UnpackError::Exists(_))), "{kept:?}");
    unpacked(&stream, inside.path(), &Root::Contents, UnpackOptions::default()).unwrap();
    // The link was replaced, and not written through.
    assert!(fs::symlink_metadata(inside.path().join("f")).unwrap().is_file());
    assert_eq!(fs::read_to_string(outside.path().join("canary")).unwrap(), "alive");
}

#[test]
fn a_program_gets_no_rights_that_were_not_asked_for() {
    use std::os::unix::fs::MetadataExt;
    let inside = tempfile::tempdir().unwrap();
    let mut set = file(b"f");
    let mut header: [u8; 512] = set[..512].try_into().unwrap();
    header[100..108].copy_from_slice(b"0006755\0");
    set = finish(header, b"owned");
    let mode = |options| {
        unpacked(&archive(&[set.clone()]), inside.path(), &Root::Contents, options).unwrap();
        fs::metadata(inside.path().join("f")).unwrap().mode() & 0o7777
    };
    assert_eq!(mode(UnpackOptions::default()), 0o755);
    assert_eq!(mode(UnpackOptions { special_bits: true, ..UnpackOptions::default() }), 0o6755);
}
