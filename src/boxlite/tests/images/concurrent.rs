//! Several layers at once: what comes out is what comes out of one after the other, and what goes wrong ends all of them.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};

use boxlite::image::{Built, Cancelled, Digest, ImageError, LayerSource, Limits, Progress, build};

use crate::chain;
use crate::snapshot::{Mount, is_root, run, snapshot};
use crate::tar::{Header, Layer};

type Blob = Box<dyn Read + Send>;

/// A door that opens once, for all who wait at it.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicUsize,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let open = self.open.lock().unwrap();
        drop(self.opened.wait_while(open, |open| !*open).unwrap());
    }
}

/// Bytes that can be read once a gate has opened; or an error then.
struct Gated {
    gate: Arc<Gate>,
    bytes: Option<Cursor<Vec<u8>>>,
}

impl Read for Gated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.gate.pass();
        self.bytes.as_mut().ok_or_else(|| io::Error::other("the download was given up"))?.read(buffer)
    }
}

fn source(
    bytes: &[u8],
    open: impl FnOnce(Vec<u8>) -> io::Result<Blob> + Send + 'static,
) -> LayerSource<'static> {
    let (diff_id, bytes) = (Digest::of(bytes), bytes.to_vec());
    LayerSource { open: Box::new(move || open(bytes)), blob: None, diff_id }
}

fn plain(bytes: &[u8]) -> LayerSource<'static> {
    source(bytes, |bytes| Ok(Box::new(Cursor::new(bytes))))
}

fn make(
    layers: Vec<LayerSource<'_>>,
    image: &Path,
    limits: &Limits,
    watch: &mut dyn FnMut(Progress) -> Result<(), Cancelled>,
) -> Result<Built, ImageError> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(image).unwrap();
    build(layers, &Digest::of(b""), file, tempfile::tempfile().unwrap(), limits, watch)
}

/// Builds plain layers into an image that `fsck.erofs` finds to be sound.
fn sound(layers: &[Layer], image: &Path) -> Built {
    let layers = layers.iter().map(|layer| plain(&layer.clone().bytes())).collect();
    let built = make(layers, image, &Limits::default(), &mut |_| Ok(()));
    let built = built.unwrap_or_else(|error| panic!("{}", chain(&error)));
    run(Command::new("fsck.erofs").arg("--extract").arg(image));
    built
}

fn refusal(layers: &[Vec<u8>], limits: &Limits) -> String {
    let folder = tempfile::tempdir().unwrap();
    let layers = layers.iter().map(|layer| plain(layer)).collect();
    chain(&make(layers, &folder.path().join("image"), limits, &mut |_| Ok(())).unwrap_err())
}

/// Bytes that do not repeat, of a kind.
fn noise(kind: u64, length: usize) -> Vec<u8> {
    let word = |n: u64| (n ^ kind << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).to_le_bytes();
    (0..).flat_map(word).take(length).collect()
}

#[test]
fn an_upper_layer_that_is_complete_first_is_applied_last() {
    let folder = tempfile::tempdir().unwrap();
    let lower = Layer::new().file("gone", "lower").file("both", "lower").bytes();
    let upper = Layer::new().file(".wh.gone", "").file("both", "upper").bytes();
    let (gate, length) = (Arc::new(Gate::default()), upper.len() as u64);
    let held = gate.clone();
    let waiting = source(&lower, |bytes| Ok(Box::new(Gated { gate: held, bytes: Some(Cursor::new(bytes)) })));
    let built =
        make(vec![waiting, plain(&upper)], &folder.path().join("image"), &Limits::default(), &mut |step| {
            if matches!(step, Progress::Layer { layer: 2, bytes, .. } if bytes == length) {
                gate.open();
            }
            Ok(())
        });
    // The root and the one file that both layers have.
    assert_eq!(built.unwrap().inodes, 2);
    assert_eq!(Arc::strong_count(&gate), 1);
}

#[test]
fn the_lowest_layer_that_failed_is_named_while_another_one_waits() {
    let folder = tempfile::tempdir().unwrap();
    let (to_lower, reading) = channel();
    let (to_upper, failing) = channel();
    let lower = source(b"", move |_| {
        reading.recv().unwrap();
        to_upper.send(()).unwrap();
        Err(io::Error::other("the registry does not have it"))
    });
    struct Waiting(std::sync::mpsc::Sender<()>, std::sync::mpsc::Receiver<()>);
    impl Read for Waiting {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            self.0.send(()).unwrap();
            self.1.recv().unwrap();
            Err(io::Error::other("the download was given up"))
        }
    }
    let upper = source(b"", |_| Ok(Box::new(Waiting(to_lower, failing))));
    let made = make(vec![lower, upper], &folder.path().join("image"), &Limits::default(), &mut |_| Ok(()));
    let error = chain(&made.unwrap_err());
    assert!(error.contains("layer 1") && error.contains("the registry does not have it"), "{error}");
}

#[test]
fn a_failure_is_told_at_once_so_that_nobody_waits_for_a_download_and_is_told_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (gate, bad) = (Arc::new(Gate::default()), vec![1; 1024]);
    let held = gate.clone();
    let waiting = source(b"", |_| Ok(Box::new(Gated { gate: held, bytes: None })));
    let error =
        make(vec![waiting, plain(&bad)], &folder.path().join("image"), &Limits::default(), &mut |step| {
            if step == Progress::Stopping {
                gate.open();
            }
            Ok(())
        });
    assert!(matches!(error, Err(ImageError::Layer { number: 2, .. })), "{error:?}");
}

#[test]
fn a_layer_that_fails_ends_those_that_would_go_on_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    // A file of all the bytes that a file can have.
    let endless =
        Layer::new().raw(&Header { size: Some(1 << 42), ..Header::new(b'0', "f") }, b"").unfinished();
    let endless = || source(&endless, |header| Ok(Box::new(Cursor::new(header).chain(io::repeat(0)))));
    let layers = vec![endless(), endless(), plain(b"this is no tar stream, whatever it may be"), endless()];
    let mut limits = Limits::default();
    (limits.bytes, limits.ratio) = (u64::MAX, u64::MAX);
    let error = chain(&make(layers, &folder.path().join("image"), &limits, &mut |_| Ok(())).unwrap_err());
    assert!(error.contains("layer 3") && error.contains("in the middle"), "{error}");
}

#[test]
fn cancelling_while_all_layers_wait_ends_all_and_opens_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let (gate, opened) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
    let layer = |_| {
        let (gate, opened) = (gate.clone(), opened.clone());
        source(b"", move |_| {
            opened.fetch_add(1, Ordering::SeqCst);
            Ok(Box::new(Gated { gate, bytes: None }))
        })
    };
    let layers: Vec<_> = (0..6).map(layer).collect();
    let mut told_after = 0;
    let made = make(layers, &folder.path().join("image"), &Limits::default(), &mut |_| {
        if *gate.open.lock().unwrap() {
            told_after += 1;
        }
        if gate.waiting.load(Ordering::SeqCst) < 4 {
            return Ok(());
        }
        gate.open();
        Err(Cancelled)
    });
    assert!(matches!(made, Err(ImageError::Cancelled(_))), "{made:?}");
    assert_eq!((told_after, opened.load(Ordering::SeqCst)), (0, 4));
    assert_eq!((Arc::strong_count(&gate), Arc::strong_count(&opened)), (1, 1));
}

#[test]
fn a_watch_that_panics_takes_the_threads_along() {
    let folder = tempfile::tempdir().unwrap();
    let endless =
        Layer::new().raw(&Header { size: Some(1 << 42), ..Header::new(b'0', "f") }, b"").unfinished();
    let endless = || source(&endless, |header| Ok(Box::new(Cursor::new(header).chain(io::repeat(0)))));
    let mut limits = Limits::default();
    (limits.bytes, limits.ratio) = (u64::MAX, u64::MAX);
    let watch = &mut |_| panic!("the program that embeds this has a bug");
    let build = || make(vec![endless(), endless()], &folder.path().join("image"), &limits, watch);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(build)).is_err());
}

#[test]
fn limits_hold_for_all_layers_together() {
    let entries = |layer: usize| {
        let files = (0..30).map(|n| format!("{layer}-{n}"));
        files.fold(Layer::new(), |layer, name| layer.file(&name, "")).bytes()
    };
    let layers: Vec<_> = (0..4).map(entries).collect();
    let mut limits = Limits::default();
    limits.entries = 119;
    assert!(refusal(&layers, &limits).contains("more than 119 entries"));
    limits.entries = 120;
    let folder = tempfile::tempdir().unwrap();
    let all = layers.iter().map(|layer| plain(layer)).collect();
    assert_eq!(make(all, &folder.path().join("image"), &limits, &mut |_| Ok(())).unwrap().inodes, 121);

    let layers: Vec<_> = (0..4).map(|n| Layer::new().file("f", noise(n, 1 << 20)).bytes()).collect();
    limits.bytes = 4 << 20;
    assert!(refusal(&layers, &limits).contains("more than 4194304 uncompressed bytes"));

    // Of links, only names and targets count: they wait on disk, and are limited there already.
    let links = |layer: usize| {
        let links = (0..200).map(|n| format!("{layer}-{n}"));
        links.fold(Layer::new(), |layer, name| layer.symlink(&name, &"t".repeat(4000))).bytes()
    };
    let mut limits = Limits::default();
    limits.memory = 256 << 10;
    let error = refusal(&(0..4).map(links).collect::<Vec<_>>(), &limits);
    assert!(error.contains("262144 bytes of memory"), "{error}");
}

#[test]
fn sizes_that_are_only_claimed_cost_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let claim =
        |size| Layer::new().raw(&Header { size: Some(size), ..Header::new(b'0', "f") }, b"few").bytes();
    for (size, reason) in [(1 << 40, "in the middle"), (1 << 45, "bytes of disk")] {
        let layers = (0..4).map(|_| plain(&claim(size))).collect();
        let error = chain(&make(layers, &image, &Limits::default(), &mut |_| Ok(())).unwrap_err());
        assert!(error.contains(reason), "{error}");
        assert!(image.metadata().unwrap().blocks() * 512 < 1 << 20);
    }
}

#[test]
fn layers_and_files_of_nothing_are_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let empty = vec![Layer::new(); 9];
    assert_eq!(sound(&empty, &folder.path().join("image")).inodes, 1);
    let files: Vec<_> = (0..9).map(|n| Layer::new().file(&format!("f{n}"), "")).collect();
    let built = sound(&files, &folder.path().join("image"));
    assert_eq!((built.inodes, built.shared_bytes), (10, 0));
    assert!(make(Vec::new(), &folder.path().join("image"), &Limits::default(), &mut |_| Ok(())).is_ok());
}

#[test]
fn the_same_layers_give_the_same_tree_with_the_same_numbers() {
    // Sizes around blocks, chunks of blocks, and runs of their own.
    let sizes = [1, 4095, 4096, 4097, 100_000, (1 << 20) - 1, 1 << 20, 3 << 20];
    let layer = |n: usize| {
        let files = sizes.iter().enumerate().map(|(m, size)| (format!("d{}/f{n}-{m}", m % 3), *size));
        let layer = files.fold(Layer::new(), |layer, (name, size)| layer.file(&name, noise(n as u64, size)));
        let layer = layer.file("every", n.to_string().repeat(5000));
        if n > 3 {
            layer.file(&format!("d1/.wh.f{}-4", n - 3), "").file("d2/.wh..wh..opq", "")
        } else {
            layer
        }
    };
    let layers: Vec<_> = (0..12).map(layer).collect();
    let folder = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let image = folder.path().join("image");
        let built = sound(&layers, &image);
        if !is_root() {
            println!("not root: images are not mounted");
            return;
        }
        let mount = Mount::new(&image);
        let tree = snapshot(mount.path());
        let number = |name: &[u8]| {
            let name = std::ffi::OsStr::new(std::str::from_utf8(name).unwrap()).to_owned();
            mount.path().join(name).symlink_metadata().unwrap().ino()
        };
        let numbers: Vec<_> = tree.keys().map(|name| number(name)).collect();
        seen.push((tree, numbers, built.inodes, built.content_bytes, built.shared_bytes));
    }
    assert!(seen.windows(2).all(|two| two[0] == two[1]));
    let tree = &seen[0].0;
    assert_eq!(tree[b"every".as_slice()].data, "11".repeat(5000).as_bytes());
    assert_eq!(tree[b"d1/f11-4".as_slice()].data, noise(11, 100_000));
    assert!(!tree.contains_key(b"d1/f8-4".as_slice()) && !tree.contains_key(b"d2/f10-2".as_slice()));
}

#[test]
fn files_of_the_same_contents_share_their_blocks_over_all_layers() {
    let (folder, size) = (tempfile::tempdir().unwrap(), 3 << 20);
    let image = folder.path().join("image");
    let data = noise(1, size + 100);
    let mut other = data.clone();
    other[size / 2] ^= 1;
    let layers = [
        // Gone in the end, so it is nobody's first copy.
        Layer::new().file("first", &data),
        Layer::new().file("a", &data).hard_link("a2", "a").file("small", "s").file("other", &other),
        Layer::new().file("b", &data).hard_link("b2", "b").file("small2", "s"),
        Layer::new().file(".wh.first", "").pax(&[("SCHILY.xattr.user.x", b"y")]).file("c", &data),
    ];
    let built = sound(&layers, &image);
    assert_eq!(built.shared_bytes, 2 * size as u64);
    let stored = image.metadata().unwrap().blocks() * 512;
    assert!((2 * size as u64..2 * size as u64 + (1 << 20)).contains(&stored), "{stored} bytes are stored");
    if !is_root() {
        println!("not root: images are not mounted");
        return;
    }
    let tree = snapshot(Mount::new(&image).path());
    for name in ["a", "a2", "b", "b2", "c"] {
        assert!(tree[name.as_bytes()].data == data, "{name}");
    }
    assert!(tree[b"other".as_slice()].data == other);
    assert!(!tree.contains_key(b"first".as_slice()));
}

#[test]
fn layers_with_large_windows_wait_for_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let layer = |n: u64| {
        let layer = Layer::new().file(&format!("f{n}"), noise(n, 300_000)).bytes();
        let mut packed = zstd::Encoder::new(Vec::new(), 1).unwrap();
        packed.window_log(27).unwrap();
        io::copy(&mut layer.as_slice(), &mut packed).unwrap();
        let packed = packed.finish().unwrap();
        // A window that needs the permit, by the frame's header.
        assert_eq!(packed[5] >> 3, 17);
        // Two frames: the permit is not asked for twice.
        let packed = [packed, zstd::encode_all(&[][..], 1).unwrap()].concat();
        source(&layer, |_| Ok(Box::new(Cursor::new(packed))))
    };
    let layers = (0..6).map(layer).collect();
    let built = make(layers, &folder.path().join("image"), &Limits::default(), &mut |_| Ok(())).unwrap();
    assert_eq!(built.inodes, 7);
}

#[test]
fn a_blob_that_is_longer_than_its_size_is_read_no_further() {
    let folder = tempfile::tempdir().unwrap();
    let layer = Layer::new().bytes();
    let endless = source(&layer, |bytes| Ok(Box::new(Cursor::new(bytes).chain(io::repeat(0)))));
    let endless = LayerSource { blob: Some((Digest::of(b""), layer.len() as u64)), ..endless };
    let made = make(vec![endless], &folder.path().join("image"), &Limits::default(), &mut |_| Ok(()));
    let error = chain(&made.unwrap_err());
    assert!(error.contains("bytes instead of 1024"), "{error}");
}
