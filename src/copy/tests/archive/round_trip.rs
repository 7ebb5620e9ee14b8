//! What is packed comes back as it was.

use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use boxlite_copy::{Copied, Owner, Root, Source, Target, UnpackOptions, unpack};
use proptest::prelude::*;

use crate::{packed, seen, unpacked};

fn keep() -> UnpackOptions {
    let owner = if rustix::process::geteuid().is_root() { Owner::Keep } else { Owner::Caller };
    UnpackOptions { owner, special_bits: true, ..UnpackOptions::default() }
}

fn times(path: &Path, seconds: i64, nanos: i64) {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// One thing in a random tree.
#[derive(Clone, Debug)]
enum Thing {
    File { size: usize, mode: u32 },
    Holes { at: Vec<u32> },
    Folder { mode: u32 },
    Link(Vec<u8>),
    Hard,
    Fifo,
}

fn thing() -> impl Strategy<Value = Thing> {
    prop_oneof![
        (0..300_000_usize, 0..0o10000_u32).prop_map(|(size, mode)| Thing::File { size, mode: mode | 0o400 }),
        proptest::collection::vec(0..4_000_000_u32, 0..6).prop_map(|at| Thing::Holes { at }),
        (0..0o1000_u32).prop_map(|mode| Thing::Folder { mode: mode | 0o700 }),
        proptest::collection::vec(1..=255_u8, 1..200).prop_map(Thing::Link),
        Just(Thing::Hard),
        Just(Thing::Fifo),
    ]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = (1..=255_u8).prop_filter("no slash", |byte| *byte != b'/');
    proptest::collection::vec(byte, 1..120).prop_filter("a name", |name| name != b"." && name != b"..")
}

fn build(root: &Path, things: &[(Vec<u8>, usize, Thing, i64, i64)]) {
    use std::io::{Seek, SeekFrom, Write};
    let mut folders = vec![root.to_owned()];
    let mut files = Vec::new();
    let mut all = Vec::new();
    for (name, folder, thing, seconds, nanos) in things {
        let path = folders[folder % folders.len()].join(std::ffi::OsString::from_vec(name.clone()));
        if path.symlink_metadata().is_ok() {
            continue;
        }
        let mut mode = None;
        match thing {
            Thing::File { size, mode: wanted } => {
                let content: Vec<u8> = (0..*size).map(|at| u8::try_from(at % 253).unwrap()).collect();
                fs::write(&path, content).unwrap();
                files.push(path.clone());
                mode = Some(*wanted);
            }
            Thing::Holes { at } => {
                let mut file = fs::File::create(&path).unwrap();
                file.set_len(5_000_000).unwrap();
                for at in at {
                    file.seek(SeekFrom::Start(u64::from(*at))).unwrap();
                    file.write_all(b"content").unwrap();
                }
            }
            Thing::Folder { mode: wanted } => {
                fs::create_dir(&path).unwrap();
                folders.push(path.clone());
                mode = Some(*wanted);
            }
            Thing::Link(target) => symlink(std::ffi::OsStr::from_bytes(target), &path).unwrap(),
            Thing::Hard => match files.first() {
                Some(first) => fs::hard_link(first, &path).unwrap(),
                None => continue,
            },
            Thing::Fifo => {
                let mode = rustix::fs::Mode::from_raw_mode(0o600);
                rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
            }
        }
        if let Some(mode) = mode {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        all.push((path, *seconds, *nanos));
    }
    for (path, seconds, nanos) in all.into_iter().rev() {
        times(&path, seconds, nanos);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_comes_back(
        things in proptest::collection::vec(
            (name(), any::<usize>(), thing(), -3_000_000_000..20_000_000_000_i64, 0..1_000_000_000_i64), 0..20,
        ),
    ) {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        // The file system says which times it can keep.
        let probe = from.path().join("probe");
        fs::write(&probe, "").unwrap();
        let things: Vec<_> = things
            .into_iter()
            .map(|(name, folder, thing, seconds, nanos)| {
                times(&probe, seconds, nanos);
                let kept = fs::metadata(&probe).unwrap();
                (name, folder, thing, kept.mtime(), kept.mtime_nsec())
            })
            .collect();
        fs::remove_file(&probe).unwrap();
        build(from.path(), &things);
        let (stream, _) = packed(&from.path().join("."), &Root::Contents);
        unpacked(&stream, to.path(), &Root::Contents, keep()).unwrap();
        prop_assert_eq!(seen(to.path()), seen(from.path()));
    }
}

#[test]
fn holes_stay_holes_and_travel_as_such() {
    use std::io::{Seek, SeekFrom, Write};
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut file = fs::File::create(from.path().join("f")).unwrap();
    file.set_len(1 << 40).unwrap();
    for at in [0, 1 << 30, (1 << 40) - 7] {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(b"content").unwrap();
    }
    drop(file);
    let (stream, summary) = packed(&from.path().join("f"), &Root::Named("f".into()));
    assert!(stream.len() < 100_000, "{}", stream.len());
    assert!(summary.bytes < 100_000, "{summary:?}");
    unpacked(&stream, to.path(), &Root::Named("g".into()), keep()).unwrap();
    let meta = fs::metadata(to.path().join("g")).unwrap();
    assert_eq!(meta.len(), 1 << 40);
    assert!(meta.blocks() * 512 < 100_000, "{}", meta.blocks());
    let mut file = fs::File::open(to.path().join("g")).unwrap();
    let mut content = [0; 7];
    file.seek(SeekFrom::Start(1 << 30)).unwrap();
    std::io::Read::read_exact(&mut file, &mut content).unwrap();
    assert_eq!(&content, b"content");
}

#[test]
fn extended_attributes_come_back() {
    let (from, to) = (tempfile::tempdir_in("/var/tmp").unwrap(), tempfile::tempdir_in("/var/tmp").unwrap());
    fs::write(from.path().join("f"), "x").unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(from.path().join("f"), "user.note", b"a\0b", flags).unwrap();
    let (stream, _) = packed(&from.path().join("f"), &Root::Named("f".into()));
    let summary = unpacked(&stream, to.path(), &Root::Named("f".into()), keep()).unwrap();
    assert_eq!(summary.skipped.xattrs, 0);
    let mut value = [0; 16];
    let length = rustix::fs::getxattr(to.path().join("f"), "user.note", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"a\0b");
}

#[test]
fn sockets_and_devices_are_left_out_and_counted() {
    let from = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.path().join("s")).unwrap();
    let (_, summary) = packed(from.path(), &Root::Named("d".into()));
    assert_eq!((summary.entries, summary.skipped.sockets), (1, 1));
    let (_, summary) = packed(Path::new("/dev/null"), &Root::Named("null".into()));
    assert_eq!((summary.entries, summary.skipped.devices), (0, 1));
}

#[test]
fn a_copy_goes_where_its_target_says() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::create_dir_all(at("src/sub")).unwrap();
    fs::write(at("src/f"), "new").unwrap();
    fs::create_dir(at("there")).unwrap();
    symlink("there", at("link")).unwrap();
    let copy = |from: &Path, to: &Path| -> Result<(), String> {
        let source = Source::open(from, false).map_err(|error| error.to_string())?;
        let copied = Copied { kind: source.kind(), name: source.name(), contents: source.is_contents() };
        let target = Target::open(to).map_err(|error| error.to_string())?;
        let (folder, root) = target.place(copied).map_err(|error| error.to_string())?;
        let wire = if source.is_contents() { Root::Contents } else { Root::Named("x".into()) };
        let (stream, _) = packed(from, &wire);
        let done = unpack(folder, &root, UnpackOptions::default(), &mut stream.as_slice(), &mut |_| {});
        done.map(drop).map_err(|error| error.to_string())
    };
    copy(&at("src/f"), &at("new")).unwrap();
    copy(&at("src/f"), &at("link")).unwrap();
    copy(&at("src"), &at("made")).unwrap();
    copy(&at("src"), &at("there/")).unwrap();
    copy(&at("src/."), &at("merged")).unwrap();
    copy(&at("src/."), &at("there/sub2")).unwrap();
    for path in
        ["new", "there/f", "made/f", "made/sub", "there/src/f", "merged/f", "merged/sub", "there/sub2/f"]
    {
        assert!(at(path).exists(), "{path}");
    }
    assert!(copy(&at("src/f"), &at("none/")).unwrap_err().contains("does not exist"));
    assert!(copy(&at("src/f"), &at("none/x")).is_err());
    assert!(copy(&at("src"), &at("new")).unwrap_err().contains("over a file"));
    assert!(copy(&at("src/none"), &at("x")).is_err());
    assert!(copy(&at("src/f/"), &at("x")).is_err());
}
