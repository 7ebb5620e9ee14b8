//! A tree of files as a test compares it.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// All that can be seen of a tree, by path: kinds, content, links, modes and times.
///
/// # Panics
/// When a part of it cannot be read.
#[must_use]
pub fn seen(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut all = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let what = if meta.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            "folder".to_owned()
        } else if meta.is_symlink() {
            format!("link {:?}", fs::read_link(&path).unwrap())
        } else {
            let content = fs::read(&path).unwrap();
            let mut hasher = DefaultHasher::new();
            hasher.write(&content);
            format!("file {} {:x} {}", content.len(), hasher.finish(), meta.nlink())
        };
        let below = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let mode = if meta.is_symlink() { 0 } else { meta.mode() & 0o7777 };
        all.insert(below, format!("{what} {mode:o} {}.{:09}", meta.mtime(), meta.mtime_nsec()));
    }
    all
}
