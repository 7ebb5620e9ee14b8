//! Archives, both ways: what comes back, what GNU tar makes of it, and what a hostile one can do.

mod hostile;
mod interop;
mod race;
mod round_trip;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use boxlite_copy::{PackOptions, Root, Source, Summary, UnpackError, UnpackOptions, unpack};

/// Packs what is at a path.
fn packed(path: &Path, root: &Root) -> (Vec<u8>, Summary) {
    let mut out = Vec::new();
    let options = PackOptions { keep_xattrs: true, devices: false };
    let source = Source::open(path, false).unwrap();
    let summary = source.pack(root, options, &mut out, &mut |_| {}).unwrap();
    (out, summary)
}

/// Unpacks below a folder.
fn unpacked(
    stream: &[u8],
    folder: &Path,
    root: &Root,
    options: UnpackOptions,
) -> Result<Summary, UnpackError> {
    let open = fs::File::open(folder).unwrap();
    unpack(std::os::fd::AsFd::as_fd(&open), root, options, &mut &stream[..], &mut |_| {})
}

/// All that can be seen of a tree, by path.
fn seen(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut all = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let below = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let content = if meta.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            String::from("folder")
        } else if meta.is_symlink() {
            format!("link {:?}", fs::read_link(&path).unwrap())
        } else if meta.is_file() {
            let bytes = fs::read(&path).unwrap();
            let sum =
                bytes.iter().fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            format!("file {} {sum}", bytes.len())
        } else {
            String::from("special")
        };
        let mode = if meta.is_symlink() { 0 } else { meta.mode() & 0o7777 };
        let (time, nanos) = (meta.mtime(), meta.mtime_nsec());
        if below.is_empty() {
            continue;
        }
        all.insert(
            below,
            format!("{content} {mode:o} {}:{} {time}.{nanos:09} {}", meta.uid(), meta.gid(), meta.nlink()),
        );
    }
    all
}
