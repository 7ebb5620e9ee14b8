//! Random histories of a file tree, cut into layers, must give the last state of the tree.
//!
//! A history is a list of states; a layer is what changed between two of them, in random order, with whiteouts for what
//! went, or opaque folders. The model is a map from paths to nodes: nothing of the code under test decides what is right.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::Home;
use crate::layout::{Layout, Packed};
use crate::snapshot::{Mount, Node, Snapshot, assert_same, is_root, snapshot};
use crate::tar::{Header, Layer};

/// A file of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Model {
    kind: Kind,
    mode: u32,
    owner: u32,
    mtime: i64,
    xattr: Option<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Dir,
    File { byte: u8, size: usize },
    Symlink(String),
    Device(u64, u64),
    Fifo,
}

type State = BTreeMap<String, Model>;

/// Few names, so that histories meet themselves.
fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c-", "d.d", "é"]), 1..4)
        .prop_map(|parts| parts.join("/"))
}

fn kind() -> impl Strategy<Value = Kind> {
    let sizes = prop::sample::select(vec![0usize, 1, 100, 3000, 4095, 4096, 5000, 12_288, 20_001]);
    prop_oneof![
        3 => Just(Kind::Dir),
        4 => (any::<u8>(), sizes).prop_map(|(byte, size)| Kind::File { byte, size }),
        1 => "[a-z/.]{1,300}".prop_map(Kind::Symlink),
        1 => (0..4096u64, 0..1_048_576u64).prop_map(|(major, minor)| Kind::Device(major, minor)),
        1 => Just(Kind::Fifo),
    ]
}

fn model() -> impl Strategy<Value = Model> {
    let mtime = prop_oneof![0..1i64 << 33, Just(1i64 << 33), -1000..0i64];
    (kind(), 0..0o10000u32, any::<u32>(), mtime, prop::option::weighted(0.2, any::<u8>())).prop_map(
        |(kind, mode, owner, mtime, xattr)| {
            let mode = if matches!(kind, Kind::Symlink(_)) { 0o777 } else { mode };
            // Only root's attributes may be on what is neither a file nor a folder.
            Model { kind, mode, owner, mtime, xattr }
        },
    )
}

/// What happens between two states: paths that get something new, or go.
fn change() -> impl Strategy<Value = Vec<(String, Option<Model>)>> {
    prop::collection::vec((path(), prop::option::weighted(0.8, model())), 1..12)
}

fn remove(state: &mut State, path: &str) {
    let beneath = format!("{path}/");
    state.retain(|other, _| other != path && !other.starts_with(&beneath));
}

/// The next state. Where something would be beneath what is no folder, a folder takes its place.
fn next(state: &State, change: &[(String, Option<Model>)]) -> State {
    let mut state = state.clone();
    for (path, model) in change {
        let Some(model) = model else {
            remove(&mut state, path);
            continue;
        };
        for (at, _) in path.match_indices('/') {
            let folder = &path[..at];
            if state.get(folder).is_none_or(|node| node.kind != Kind::Dir) {
                remove(&mut state, folder);
                let folder_model = Model { kind: Kind::Dir, mode: 0o755, owner: 1, mtime: 1, xattr: None };
                state.insert(folder.to_owned(), folder_model);
            }
        }
        if model.kind != Kind::Dir || state.get(path).is_none_or(|node| node.kind != Kind::Dir) {
            remove(&mut state, path);
        }
        state.insert(path.clone(), model.clone());
    }
    state
}

/// A folder that both states have is emptied by an opaque mark instead of whiteouts when `opaque` says so.
fn layer(before: &State, after: &State, opaque: u64, seed: u64) -> Vec<u8> {
    let is_dir = |state: &State, path: &str| state.get(path).is_some_and(|node| node.kind == Kind::Dir);
    let parent = |path: &str| path.rsplit_once('/').map_or(String::new(), |(parent, _)| parent.to_owned());
    let mut emptied: Vec<String> = after
        .keys()
        .filter(|path| is_dir(before, path) && is_dir(after, path))
        .enumerate()
        .filter(|(n, _)| opaque >> (n % 64) & 1 == 1)
        .map(|(_, path)| path.clone())
        .collect();
    emptied.sort();
    let is_emptied = |path: &str| emptied.iter().any(|folder| path.starts_with(&format!("{folder}/")));
    // Entries, each with those parents before it that are new folders: `tar` writes them so, and umoci needs it.
    let mut entries: Vec<(String, Header, Vec<u8>, Option<u8>)> = Vec::new();
    for (path, model) in after {
        if before.get(path) != Some(model) || is_emptied(path) || emptied.contains(path) {
            let (header, contents) = entry(path, model);
            entries.push((path.clone(), header, contents, model.xattr));
        }
    }
    for folder in &emptied {
        entries.push((
            format!("{folder}/.wh..wh..opq"),
            Header::new(b'0', format!("{folder}/.wh..wh..opq")),
            vec![],
            None,
        ));
    }
    for path in before.keys().filter(|path| !after.contains_key(*path) && !is_emptied(path)) {
        // A whiteout has a folder to be in: what goes with its folder needs none.
        if parent(path).is_empty() || is_dir(after, &parent(path)) {
            let (folder, name) =
                path.rsplit_once('/').map_or(("", path.as_str()), |(folder, name)| (folder, name));
            let whiteout = format!("{folder}/.wh.{name}");
            entries.push((whiteout.clone(), Header::new(b'0', whiteout), vec![], None));
        }
    }
    // A random order that keeps folders before what is in them.
    entries.sort_by_key(|(path, ..)| {
        let mix =
            path.bytes().fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        (path.matches('/').count(), mix)
    });
    let mut layer = Layer::new().dir("./");
    for (_, header, contents, xattr) in entries {
        if let Some(byte) = xattr {
            layer = layer.pax(&[("SCHILY.xattr.trusted.t", &[byte]), ("SCHILY.xattr.security.s", b"s")]);
        }
        layer = layer.entry(&header, &contents);
    }
    layer.bytes()
}

fn entry(path: &str, model: &Model) -> (Header, Vec<u8>) {
    let kind = match model.kind {
        Kind::Dir => b'5',
        Kind::File { .. } => b'0',
        Kind::Symlink(_) => b'2',
        Kind::Device(..) => b'3',
        Kind::Fifo => b'6',
    };
    let mut header = Header::new(kind, path);
    (header.mode, header.uid, header.gid) = (model.mode, model.owner.into(), u64::from(model.owner / 2));
    header.mtime = model.mtime;
    let mut contents = Vec::new();
    match &model.kind {
        Kind::File { byte, size } => contents = vec![*byte; *size],
        Kind::Symlink(target) => header.target = target.clone().into_bytes(),
        Kind::Device(major, minor) => header.device = (*major, *minor),
        Kind::Dir | Kind::Fifo => {}
    }
    (header, contents)
}

fn expected(state: &State) -> Snapshot {
    let mut wanted = Snapshot::new();
    for (path, model) in state {
        let (type_bits, data, device) = match &model.kind {
            Kind::Dir => (0o040_000, Vec::new(), 0),
            Kind::File { byte, size } => (0o100_000, vec![*byte; *size], 0),
            Kind::Symlink(target) => (0o120_000, target.clone().into_bytes(), 0),
            Kind::Device(major, minor) => (0o020_000, Vec::new(), nix::sys::stat::makedev(*major, *minor)),
            Kind::Fifo => (0o010_000, Vec::new(), 0),
        };
        let mut xattrs = BTreeMap::new();
        if let Some(byte) = model.xattr {
            xattrs.insert(b"trusted.t".to_vec(), vec![byte]);
            xattrs.insert(b"security.s".to_vec(), b"s".to_vec());
        }
        let node = Node {
            mode: type_bits | model.mode,
            uid: model.owner,
            gid: model.owner / 2,
            mtime: (model.mtime, 0),
            links: u64::from(type_bits != 0o040_000),
            device,
            data,
            xattrs,
        };
        wanted.insert(path.clone().into_bytes(), node);
    }
    wanted
}

#[test]
fn random_histories_end_in_their_last_state() {
    if !is_root() {
        return;
    }
    let history = (prop::collection::vec(change(), 1..5), any::<u64>(), any::<u64>());
    let mut runner = TestRunner::new(Config { cases: 40, failure_persistence: None, ..Config::default() });
    runner
        .run(&history, |(changes, opaque, seed)| {
            let mut state = State::new();
            let mut layers = Vec::new();
            for (number, change) in changes.iter().enumerate() {
                let after = next(&state, change);
                let mark = opaque.rotate_left(u32::try_from(number).unwrap() * 7);
                layers.push((layer(&state, &after, mark, seed), Packed::Plain));
                state = after;
            }
            let home = Home::new();
            let mut layout = Layout::new(&home.path("layout"));
            layout.image(&layers, "random");
            let disk = home.disk(&layout.folder);
            let mut actual = snapshot(Mount::new(&disk).path());
            actual.remove(b"".as_slice());
            assert_same(&actual, &expected(&state));
            Ok(())
        })
        .unwrap();
}
