//! Archives that mean harm, or were cut off: refused with a clear word, in bounded time and memory, and nothing is left.

use std::io::{self, Read};
use std::time::Instant;

use boxlite::image::{Cancelled, Digest, ImageError, LayerSource, Limits, build};
use serde_json::json;

use crate::layout::{Layout, Packed, config};
use crate::tar::{Header, Layer, seal};
use crate::{Home, chain};

fn refusal(layers: &[Layer]) -> String {
    Home::new().refusal(layers)
}

#[track_caller]
fn assert_says(text: &str, words: &[&str]) {
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

/// Builds from a stream that is not stored anywhere.
fn build_of(stream: impl Read + Send + 'static, limits: &Limits) -> Result<(), ImageError> {
    let stream: Box<dyn Read + Send> = Box::new(stream);
    let layer =
        LayerSource { open: Box::new(|| Ok(stream)), blob: None, diff_id: Digest::of(b"something else") };
    let file = tempfile::tempfile().unwrap();
    build(vec![layer], &Digest::of(b""), file, tempfile::tempfile().unwrap(), limits, &mut |_| Ok(()))
        .map(|_| ())
}

/// A tar stream of as many empty files as are read from it.
struct Endless {
    number: u64,
    make: fn(u64) -> Vec<u8>,
    block: io::Cursor<Vec<u8>>,
}

impl Endless {
    fn new(make: fn(u64) -> Vec<u8>) -> Self {
        Self { number: 0, make, block: io::Cursor::default() }
    }
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.block.read(buffer)?;
        if length > 0 {
            return Ok(length);
        }
        self.block = io::Cursor::new((self.make)(self.number));
        self.number += 1;
        self.block.read(buffer)
    }
}

#[test]
fn ten_million_entries_end_at_the_limit() {
    let mut limits = Limits::default();
    limits.entries = 50_000;
    let endless = Endless::new(|n| Layer::new().file(&format!("f{n}"), "").unfinished());
    let start = Instant::now();
    let error = build_of(endless, &limits).unwrap_err();
    assert_says(&chain(&error), &["layer 1", "50000 entries"]);
    assert!(start.elapsed().as_secs() < 20);
}

#[test]
fn folders_that_are_only_implied_count_as_well() {
    let mut limits = Limits::default();
    limits.entries = 20_000;
    let endless = Endless::new(|n| Layer::new().file(&format!("{n}/{}f", "d/".repeat(40)), "").unfinished());
    assert_says(&chain(&build_of(endless, &limits).unwrap_err()), &["20000 entries"]);
}

#[test]
fn memory_for_names_and_attributes_is_limited() {
    let mut limits = Limits::default();
    limits.memory = 1 << 20;
    let names = Endless::new(|n| Layer::new().file(&format!("{}{n}", "n".repeat(80)), "").unfinished());
    assert_says(&chain(&build_of(names, &limits).unwrap_err()), &["memory"]);
    let xattrs = Endless::new(|n| {
        let value = n.to_string().repeat(5000);
        Layer::new().pax(&[("SCHILY.xattr.user.x", value.as_bytes())]).file("f", "").unfinished()
    });
    assert_says(&chain(&build_of(xattrs, &limits).unwrap_err()), &["memory"]);
}

#[test]
fn a_great_many_whiteouts_of_a_large_folder_end_in_time() {
    let mut layer = Layer::new();
    for n in 0..3000 {
        layer = layer.file(&format!("d/{n}"), "");
    }
    for _ in 0..3000 {
        layer = layer.file("d/.wh..wh..opq", "").file(".wh.d", "");
    }
    let start = Instant::now();
    let home = Home::new();
    home.disk(&home.layout(&[Layer::new().file("d/old", ""), layer]).folder);
    assert!(start.elapsed().as_secs() < 20);
}

#[test]
fn a_compression_bomb_goes_off_in_nobodys_face() {
    let layer = Layer::new().file("zeros", vec![0; 3 << 20]).bytes();
    let home = Home::new();
    let mut layout = Layout::new(&home.path("layout"));
    layout.image(&[(layer.clone(), Packed::Zstd)], "bomb");
    let mut limits = Limits::default();
    limits.ratio_from = 1 << 20;
    let store = home.store.clone().with_limits(limits);
    let error = store.load(&layout.folder, &mut |_| Ok(())).unwrap_err();
    assert_says(&chain(&error), &["layer 1", "200 times"]);
    // What is not out of proportion is limited as a whole.
    let home = Home::new();
    let mut layout = Layout::new(&home.path("layout"));
    layout.image(&[(layer, Packed::Plain)], "bomb");
    let mut limits = Limits::default();
    limits.bytes = 2 << 20;
    let store = home.store.clone().with_limits(limits);
    let error = store.load(&layout.folder, &mut |_| Ok(())).unwrap_err();
    assert_says(&chain(&error), &["2097152 uncompressed bytes"]);
}

#[test]
fn a_stream_cut_anywhere_is_refused() {
    let layer = Layer::new()
        .dir("d")
        .pax(&[("SCHILY.xattr.user.a", b"b")])
        .file("d/f", vec![b'x'; 1500])
        .hard_link("g", "d/f")
        .unfinished();
    let limits = Limits::default();
    for cut in 0..layer.len() {
        let error = build_of(io::Cursor::new(layer[..cut].to_vec()), &limits).unwrap_err();
        let error = chain(&error);
        // At the end of an entry there is a stream that just lacks its end mark: its digest is another one.
        let whole = cut.is_multiple_of(512)
            && (error.contains("the content has") || error.contains("belong to no entry"));
        assert!(whole || error.contains("in the middle"), "{cut}: {error}");
    }
}

#[test]
fn compressed_data_cut_anywhere_are_refused() {
    let layer =
        Layer::new().file("f", (0..3000u32).flat_map(|n| n.to_be_bytes()).collect::<Vec<_>>()).bytes();
    for packed in [Packed::Gzip, Packed::Zstd] {
        let blob = packed.pack(&layer);
        for cut in (1..blob.len()).step_by(97).chain(blob.len() - 12..blob.len()) {
            let cut_off: Box<dyn Read + Send> = Box::new(io::Cursor::new(blob[..cut].to_vec()));
            let source =
                LayerSource { open: Box::new(|| Ok(cut_off)), blob: None, diff_id: Digest::of(&layer) };
            let (file, scratch) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            let made =
                build(vec![source], &Digest::of(b""), file, scratch, &Limits::default(), &mut |_| Ok(()));
            assert!(made.is_err(), "{packed:?} cut at {cut}");
        }
    }
}

#[test]
fn what_follows_a_compressed_stream_is_no_part_of_an_image() {
    let home = Home::new();
    let mut layout = Layout::new(&home.path("layout"));
    let layer = Layer::new().file("f", "").bytes();
    let blob = [Packed::Gzip.pack(&layer), b"and something else".to_vec()].concat();
    let config = layout.document("", &{
        let mut config = config();
        config["rootfs"] = json!({ "diff_ids": [Digest::of(&layer).to_string()] });
        config
    });
    let layers = json!([{ "digest": layout.blob(&blob).to_string(), "size": blob.len() }]);
    let manifest = layout.document("", &json!({ "schemaVersion": 2, "config": config, "layers": layers }));
    layout.add(manifest, Some("test"));
    assert_says(&home.refusal_of(&layout.folder), &["compressed data are broken"]);
}

#[test]
fn blobs_and_documents_that_are_not_what_their_digest_says_are_refused() {
    let home = Home::new();
    let mut layout = Layout::new(&home.path("layout"));
    let layer = Layer::new().file("f", "contents").bytes();
    layout.image(&[(layer.clone(), Packed::Plain)], "test");
    let path = layout.path(&Digest::of(&layer));
    let index = std::fs::read_to_string(layout.folder.join("index.json")).unwrap();

    let mut changed = layer.clone();
    changed[512] = b'C';
    std::fs::write(&path, &changed).unwrap();
    assert_says(&home.refusal_of(&layout.folder), &["the blob has the digest"]);

    std::fs::write(&path, [layer.clone(), vec![0; 512]].concat()).unwrap();
    assert_says(&home.refusal_of(&layout.folder), &["bytes instead of"]);

    std::fs::remove_file(&path).unwrap();
    assert_says(&home.refusal_of(&layout.folder), &["lacks the layer"]);

    let manifest: serde_json::Value = serde_json::from_str(&index).unwrap();
    let digest: Digest = manifest["manifests"][0]["digest"].as_str().unwrap().parse().unwrap();
    let mut bytes = std::fs::read(layout.path(&digest)).unwrap();
    bytes.push(b' ');
    std::fs::write(layout.path(&digest), bytes).unwrap();
    assert_says(&home.refusal_of(&layout.folder), &["has the digest"]);
}

#[test]
fn contents_that_are_not_what_the_configuration_says_are_refused() {
    let home = Home::new();
    let mut layout = Layout::new(&home.path("layout"));
    let blob = Packed::Gzip.pack(&Layer::new().file("f", "").bytes());
    let mut config = config();
    config["rootfs"] = json!({ "diff_ids": [Digest::of(b"other").to_string()] });
    let config = layout.document("", &config);
    let layers = json!([{ "digest": layout.blob(&blob).to_string(), "size": blob.len() }]);
    let manifest = layout.document("", &json!({ "schemaVersion": 2, "config": config, "layers": layers }));
    layout.add(manifest, Some("test"));
    assert_says(&home.refusal_of(&layout.folder), &["the content has the digest"]);
}

#[test]
fn hard_links_that_lead_nowhere_or_round_are_refused() {
    for layer in [
        Layer::new().hard_link("a", "b").hard_link("b", "a"),
        Layer::new().hard_link("a", "a"),
        Layer::new().hard_link("a", "/etc/passwd"),
        Layer::new().file("f", "").hard_link("a", "f/x"),
    ] {
        assert_says(&refusal(&[layer]), &["entry `a`", "does not exist"]);
    }
    assert_says(&refusal(&[Layer::new().dir("d").hard_link("a", "d")]), &["is a folder"]);
    assert_says(&refusal(&[Layer::new().hard_link("a", "/")]), &["is a folder"]);
}

#[test]
fn a_file_that_was_packed_twice_is_there_once() {
    let home = Home::new();
    let tree = home.tree(&[Layer::new().file("f", "contents").hard_link("f", "f")]);
    let Some(tree) = tree else { return };
    assert_eq!(
        (tree[b"f".as_slice()].links, tree[b"f".as_slice()].data.as_slice()),
        (1, b"contents".as_slice())
    );
}

#[test]
fn symbolic_links_that_lead_round_are_refused() {
    let layer = Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", "");
    assert_says(&refusal(&[layer]), &["entry `a/x`", "too far"]);
    let deep = "l/".repeat(40);
    let layer = Layer::new().symlink("l", "/l/l/l/l").file(&format!("{deep}x"), "");
    assert_says(&refusal(&[layer]), &["too far"]);
}

#[test]
fn a_file_of_the_same_layer_is_no_folder() {
    assert_says(
        &refusal(&[Layer::new().file("a", "").file("a/b", "")]),
        &["entry `a/b`", "file of the same layer"],
    );
}

#[test]
fn the_root_stays_a_folder() {
    for kind in [b'0', b'2', b'3', b'6'] {
        let header = Header { target: b"/etc".to_vec(), ..Header::new(kind, "./") };
        assert_says(&refusal(&[Layer::new().entry(&header, b"")]), &["root folder"]);
    }
}

#[test]
fn whiteouts_of_nothing_are_refused() {
    for name in [".wh.", ".wh..", ".wh...", "d/.wh."] {
        let layer = Layer::new().dir("d").file(name, "");
        assert_says(&refusal(&[layer]), &["whiteout"]);
    }
    assert_says(&refusal(&[Layer::new().file(".wh.d/f", "")]), &["whiteout"]);
}

#[test]
fn names_are_limited() {
    let long = "n".repeat(10_000);
    assert_says(&refusal(&[Layer::new().file(&long, "")]), &["path", "4095"]);
    assert_says(&refusal(&[Layer::new().file(&"n".repeat(256), "")]), &["255 bytes"]);
    assert_says(&refusal(&[Layer::new().file(&"d/".repeat(1000), "")]), &["depth", "256"]);
    assert_says(&refusal(&[Layer::new().pax(&[("path", b"a\0b")]).file("x", "")]), &["NUL"]);
    assert_says(&refusal(&[Layer::new().symlink("l", &"t".repeat(5000))]), &["target"]);
    let escaped = refusal(&[Layer::new().pax(&[("path", b"\x1b[2Jevil\xff/\0")]).file("x", "")]);
    assert_says(&escaped, &[r"\x1b[2Jevil\xff"]);
}

#[test]
fn numbers_out_of_range_are_refused() {
    let file = |header: Header| Layer::new().raw(&header, b"");
    for size in [u64::MAX, i64::MAX.cast_unsigned(), 1 << 63] {
        assert_says(&refusal(&[file(Header { size: Some(size), ..Header::new(b'0', "f") })]), &["bad size"]);
    }
    assert_says(
        &refusal(&[file(Header { size: Some(1 << 40), ..Header::new(b'0', "f") })]),
        &["in the middle"],
    );
    assert_says(&refusal(&[Layer::new().pax(&[("size", b"-1")]).file("f", "")]), &["malformed"]);
    assert_says(
        &refusal(&[Layer::new().pax(&[("size", b"99999999999999999999")]).file("f", "")]),
        &["malformed"],
    );
    assert_says(&refusal(&[Layer::new().pax(&[("uid", b"4294967296")]).file("f", "")]), &["owner"]);
    for device in [(1 << 12, 0), (0, 1 << 20), (u64::MAX >> 1, 1)] {
        assert_says(&refusal(&[file(Header { device, ..Header::new(b'3', "dev") })]), &["device number"]);
    }
}

#[test]
fn extended_headers_are_limited_and_checked() {
    let huge = Header { size: Some(10 << 30), ..Header::new(b'x', "pax") };
    assert_says(&refusal(&[Layer::new().raw(&huge, b"")]), &["extended header", "1048576"]);
    let huge = Header { size: Some(10 << 30), ..Header::new(b'L', "././@LongLink") };
    assert_says(&refusal(&[Layer::new().raw(&huge, b"")]), &["extended header", "1048576"]);
    let endless = Endless::new(|_| Layer::new().raw(&Header::new(b'g', "g"), b"").unfinished());
    assert_says(&chain(&build_of(endless, &Limits::default()).unwrap_err()), &["extended header"]);
    for contents in [
        "5 a",
        "0 a=b\n",
        "99 a=b\n",
        "6 a=b\n\n",
        "x a=b\n",
        "6 ab\n",
        "18446744073709551622 a=b\n",
        "999999999999999999999999 a",
    ] {
        let layer = Layer::new().raw(&Header::new(b'x', "pax"), contents.as_bytes()).file("f", "");
        assert_says(&refusal(&[layer]), &["malformed"]);
    }
    assert_says(&refusal(&[Layer::new().pax(&[("path", b"x")])]), &["belong to no entry"]);
    let value = vec![b'v'; 70_000];
    let layer = Layer::new().pax(&[("SCHILY.xattr.user.v", &value)]).file("f", "");
    assert_says(&refusal(&[layer]), &["extended attributes", "65536"]);
}

#[test]
fn headers_are_checked() {
    let mut block = Header::new(b'0', "f").encode(0);
    block[0] ^= 1;
    let error = build_of(io::Cursor::new(block.to_vec()), &Limits::default()).unwrap_err();
    assert_says(&chain(&error), &["wrong checksum"]);
    let mut block = Header::new(b'0', "f").encode(0);
    block[124..136].copy_from_slice(b"0000000009z\0");
    seal(&mut block);
    let error = build_of(io::Cursor::new(block.to_vec()), &Limits::default()).unwrap_err();
    assert_says(&chain(&error), &["bad size"]);
    assert_says(&refusal(&[Layer::new().raw(&Header::new(b'M', "f"), b"")]), &["unknown kind `M`"]);
    assert_says(&refusal(&[Layer::new().raw(&Header::new(b'S', "f"), b"")]), &["sparse"]);
    assert_says(&refusal(&[Layer::new().pax(&[("GNU.sparse.major", b"1")]).file("f", "")]), &["sparse"]);
    let half = [vec![0; 512], Layer::new().file("f", "").bytes()].concat();
    let error = build_of(io::Cursor::new(half), &Limits::default()).unwrap_err();
    assert_says(&chain(&error), &["half an end mark"]);
}

#[test]
fn loading_stops_when_it_is_told_to() {
    let home = Home::new();
    let layout = home.layout(&[Layer::new().file("f", vec![1; 5 << 20])]);
    let mut steps = 0;
    let stopped = home.store.load(&layout.folder, &mut |_| {
        steps += 1;
        if steps < 3 { Ok(()) } else { Err(Cancelled) }
    });
    assert!(matches!(stopped, Err(ImageError::Cancelled(_))), "{stopped:?}");
    assert_eq!(steps, 3);
    assert!(std::fs::read_dir(home.path("tmp")).unwrap().next().is_none());
    assert_eq!(home.store.list().unwrap(), []);
}

#[test]
fn an_image_of_too_many_layers_is_refused() {
    let layers: Vec<Layer> = (0..257).map(|n| Layer::new().file("f", n.to_string())).collect();
    assert_says(&refusal(&layers), &["257 layers", "256"]);
}
