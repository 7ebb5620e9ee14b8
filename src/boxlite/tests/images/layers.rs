//! What layers mean: compared, entry by entry, with what `umoci unpack` makes of the same image.

use std::process::Command;

use crate::layout::{Layout, Packed};
use crate::snapshot::{Mount, Snapshot, assert_same, is_root, run, snapshot};
use crate::tar::{Header, Layer};
use crate::{Home, chain};

/// The image as umoci unpacks it.
fn unpacked_by_umoci(home: &Home, layout: &Layout) -> Snapshot {
    let bundle = home.path("bundle");
    run(Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:test", layout.folder.display()))
        .arg(&bundle));
    snapshot(&bundle.join("rootfs"))
}

/// Both ways lead to the same tree. The times of the folders `changed` are not compared: umoci sets that of its own work
/// where something is made or removed in a folder that is not described again.
fn compare(layers: &[Layer], changed: &[&str]) -> Snapshot {
    let home = Home::new();
    if !is_root() {
        home.disk(&home.layout(layers).folder);
        return Snapshot::new();
    }
    let layout = home.layout(layers);
    let disk = home.disk(&layout.folder);
    let mut ours = snapshot(Mount::new(&disk).path());
    let mut theirs = unpacked_by_umoci(&home, &layout);
    for path in changed {
        ours.get_mut(path.as_bytes()).unwrap().mtime = (0, 0);
        theirs.get_mut(path.as_bytes()).unwrap().mtime = (0, 0);
    }
    assert_same(&ours, &theirs);
    ours
}

fn root() -> Layer {
    Layer::new().dir("./")
}

#[test]
fn every_kind_of_file_keeps_all_that_is_said_of_it() {
    let long = "x".repeat(255);
    let deep = "d/".repeat(60) + "end";
    let pattern: Vec<u8> = (0..20_000u32).flat_map(|n| n.to_le_bytes()).collect();
    let mut base = root()
        .entry(&Header { mode: 0o4755, uid: 1, gid: 2, ..Header::new(b'0', "suid") }, b"s")
        .entry(&Header { mode: 0o1777, ..Header::new(b'5', "sticky") }, b"")
        .entry(&Header { mode: 0, ..Header::new(b'0', "none") }, b"")
        .entry(&Header { uid: 4_000_000_000, gid: 3_000_000, ..Header::new(b'0', "owner") }, b"o")
        .entry(&Header { mtime: -77, ..Header::new(b'0', "before-1970") }, b"")
        .entry(&Header { mtime: 9_000_000_000, ..Header::new(b'0', "late") }, b"")
        .entry(&Header { device: (1, 3), ..Header::new(b'3', "null") }, b"")
        .entry(&Header { device: (259, 70_000), ..Header::new(b'4', "block") }, b"")
        .entry(&Header::new(b'6', "fifo"), b"")
        .pax(&[("mtime", b"1700000000.123456789")])
        .file("nanos", "n")
        .pax(&[
            ("SCHILY.xattr.user.comment", b"hello\0world"),
            ("SCHILY.xattr.trusted.thing", &[7; 3000]),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        ])
        .file("xattrs", "with attributes")
        .pax(&[("SCHILY.xattr.user.on-a-folder", b"yes")])
        .dir("folder")
        .symlink("link", "/absolute/target")
        .symlink("long-link", &"t/".repeat(2000))
        .file(&long, "long name")
        .file("öäü ✓ \u{1}", "odd name")
        .file("big", &pattern)
        .hard_link("another-name", "big")
        .hard_link("symlink-too", "link")
        .hard_link("device-too", "null");
    for part in 1..=60 {
        base = base.dir(&deep[..part * 2 - 1]);
    }
    base = base.file(&deep, "deep");
    // Around the size of a block, where a tail is inlined or not.
    for size in [0usize, 1, 31, 32, 4000, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 8193] {
        base = base.file(&format!("size-{size}"), vec![b'a'; size]);
    }
    let tree = compare(&[base], &[]);
    if !tree.is_empty() {
        assert_eq!(tree[b"big".as_slice()].links, 2);
        assert_eq!(tree[b"nanos".as_slice()].mtime, (1_700_000_000, 123_456_789));
        assert_eq!(tree[b"xattrs".as_slice()].xattrs.len(), 3);
    }
}

#[test]
fn folders_of_many_blocks_are_sorted_so_that_every_name_is_found() {
    let mut layer = root().dir("many");
    for n in 0..5000u64 {
        let name =
            format!("many/{}-{}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15), "y".repeat((n % 97) as usize));
        layer = layer.file(&name, n.to_string());
    }
    // Names around the two dots.
    for name in ["!", "-", "...", ".a", "..a", ".-", "..-", "+", "\u{1}", "~"] {
        layer = layer.file(&format!("many/{name}"), name).file(name, name);
    }
    compare(&[layer], &[]);
}

#[test]
fn whiteouts_hide_what_lower_layers_have() {
    let base = root()
        .dir("keep")
        .file("keep/a", "a")
        .file("keep/b", "b")
        .dir("gone")
        .dir("gone/sub")
        .file("gone/sub/file", "x")
        .file("file", "old")
        .dir("opaque")
        .file("opaque/old", "old")
        .dir("opaque/dir")
        .file("opaque/dir/old", "old");
    let upper = Layer::new()
        .dir("keep")
        .file("keep/.wh.a", "")
        .file(".wh.gone", "")
        .file(".wh.file", "")
        .file(".wh.was-never-there", "")
        .dir("opaque")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", "new");
    let tree = compare(&[base, upper], &[]);
    let names: Vec<_> = tree.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    assert!(names.is_empty() || names == ["", "keep", "keep/b", "opaque", "opaque/new"], "{names:?}");
}

#[test]
fn whiteouts_leave_alone_what_their_own_layer_brings_wherever_they_stand() {
    let base = root().dir("d").file("d/old", "old").file("f", "old").dir("e").file("e/old", "old");
    let upper = Layer::new()
        .dir("d")
        .file("d/new", "new")
        .file("d/.wh..wh..opq", "")
        .file("f", "new")
        .file(".wh.f", "")
        .dir("e")
        .file("e/new", "new")
        .file(".wh.e", "");
    let tree = compare(&[base.clone(), upper], &["e"]);
    let Some(node) = tree.get(b"f".as_slice()) else { return };
    assert_eq!(node.data, b"new");
    assert!(!tree.contains_key(b"d/old".as_slice()) && !tree.contains_key(b"e/old".as_slice()));

    // The other way round.
    let upper = Layer::new()
        .dir("d")
        .file("d/.wh..wh..opq", "")
        .file("d/new", "new")
        .file(".wh.f", "")
        .file("f", "new")
        .file(".wh.e", "")
        .dir("e")
        .file("e/new", "new");
    assert_same(&compare(&[base, upper], &["e"]), &tree);
}

#[test]
fn a_hidden_folder_that_comes_back_for_a_file_in_it_is_a_new_folder() {
    let home = Home::new();
    let base = || root().entry(&Header { uid: 5, ..Header::new(b'5', "d") }, b"").file("d/old", "old");
    let first = home.tree(&[base(), Layer::new().file(".wh.d", "").file("d/new", "new")]);
    let home = Home::new();
    let second = home.tree(&[base(), Layer::new().file("d/new", "new").file(".wh.d", "")]);
    let (Some(first), Some(second)) = (first, second) else { return };
    assert_same(&first, &second);
    assert_eq!(first[b"d".as_slice()].uid, 0);
    assert_eq!(first.keys().filter(|path| path.starts_with(b"d/")).count(), 1);
}

#[test]
fn files_and_folders_replace_each_other() {
    let base = root()
        .dir("to-file")
        .file("to-file/x", "x")
        .file("to-dir", "f")
        .symlink("to-real", "/etc")
        .dir("again")
        .file("again/x", "x");
    let upper = Layer::new()
        .file("to-file", "now a file")
        .dir("to-dir")
        .file("to-dir/x", "x")
        .dir("to-real")
        .file("to-real/x", "x")
        .entry(&Header { mode: 0o700, uid: 9, ..Header::new(b'5', "again") }, b"");
    let tree = compare(&[base, upper], &[]);
    assert!(tree.is_empty() || tree.contains_key(b"again/x".as_slice()));
}

#[test]
fn hard_links_reach_into_lower_layers_and_survive_the_first_name() {
    let base = root().file("a", "shared").file("b", "other");
    let middle = Layer::new().hard_link("c", "a").hard_link("b", "/a");
    let upper = Layer::new().file(".wh.a", "");
    let tree = compare(&[base, middle, upper], &[]);
    assert!(tree.is_empty() || tree[b"c".as_slice()].links == 2);
}

#[test]
fn missing_folders_are_made() {
    compare(&[root().file("usr/share/doc/readme", "r")], &["", "usr", "usr/share", "usr/share/doc"]);
}

#[test]
fn symbolic_links_in_paths_are_followed_within_the_image_only() {
    let base = root()
        .dir("usr")
        .dir("usr/bin")
        .symlink("bin", "usr/bin")
        .symlink("abs", "/usr")
        .symlink("out", "../../../../usr")
        .symlink("usr/up", "..")
        .file("usr/bin/file", "f");
    let upper = Layer::new()
        .file("bin/tool", "t")
        .file("abs/in-usr", "a")
        .file("out/also-in-usr", "o")
        .file("usr/up/at-the-top", "u")
        .hard_link("abs/bin/link", "bin/file")
        .file("bin/.wh.file", "");
    let tree = compare(&[base, upper], &[]);
    assert!(tree.is_empty() || tree.contains_key(b"usr/also-in-usr".as_slice()));
}

#[test]
fn absolute_and_climbing_paths_stay_in_the_image() {
    let tree = compare(
        &[root()
            .dir("/etc")
            .file("/etc/passwd", "p")
            .file("../../../etc/shadow", "s")
            .file("etc/../etc/./x//", "dir")],
        &[],
    );
    assert!(tree.is_empty() || tree.contains_key(b"etc/shadow".as_slice()));
}

#[test]
fn a_file_of_a_lower_layer_gives_way_to_a_folder_that_is_needed() {
    let home = Home::new();
    let tree = home.tree(&[root().file("a", "file"), Layer::new().file("a/b", "beneath")]);
    let Some(tree) = tree else { return };
    assert_eq!(tree[b"a/b".as_slice()].data, b"beneath");
}

#[test]
fn attributes_of_other_systems_and_of_overlays_are_left_out() {
    let home = Home::new();
    let tree = home.tree(&[root()
        .pax(&[
            ("SCHILY.xattr.com.apple.provenance", b"mac"),
            ("SCHILY.xattr.security.selinux", b"label"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.kept", b"k"),
            // A record with an empty value takes the one before back.
            ("SCHILY.xattr.user.empty", b""),
            ("SCHILY.xattr.user.back", b"b"),
            ("SCHILY.xattr.user.back", b""),
        ])
        .file("f", "")]);
    let Some(tree) = tree else { return };
    assert_eq!(tree[b"f".as_slice()].xattrs.keys().collect::<Vec<_>>(), [b"user.kept".as_slice()]);
}

#[test]
fn a_layer_means_the_same_however_it_is_compressed() {
    let layer = root().file("f", vec![b'z'; 300_000]).file("g", "g");
    let mut trees = Vec::new();
    for packed in [Packed::Plain, Packed::Gzip, Packed::TwoGzip, Packed::Zstd] {
        let home = Home::new();
        let mut layout = Layout::new(&home.path("layout"));
        layout.image(&[(layer.clone().bytes(), packed)], "test");
        let images =
            home.load(&layout.folder).unwrap_or_else(|error| panic!("{packed:?}: {}", chain(&error)));
        let bytes = std::fs::read(home.store.get(&images[0].digest).unwrap().disk).unwrap();
        // All but the superblock, which has the identity of the image.
        trees.push(bytes[4096..].to_vec());
    }
    assert!(trees.iter().all(|tree| *tree == trees[0]));
}

#[test]
fn the_same_image_gives_the_same_bytes() {
    let mut layer = root();
    for n in 0..500 {
        layer = layer.dir(&format!("d{}", n % 7)).file(&format!("d{}/f{n}", n % 7), n.to_string().repeat(n));
    }
    let upper = Layer::new().file("d3/.wh.f3", "").file(".wh.d4", "");
    let bytes = |_| {
        let home = Home::new();
        let layout = home.layout(&[layer.clone(), upper.clone()]);
        std::fs::read(home.disk(&layout.folder)).unwrap()
    };
    assert!(bytes(1) == bytes(2));
}
