//! What a folder tree is, as values that can be compared.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Clone, PartialEq, Eq)]
pub struct Node {
    /// Type and permissions.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    /// Of all but directories.
    pub links: u64,
    pub device: u64,
    /// Contents of files, targets of links.
    pub data: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { mode, uid, gid, mtime, links, device, data, xattrs } = self;
        let start = data[..data.len().min(40)].escape_ascii();
        write!(f, "{mode:o} {uid}:{gid} {mtime:?} links={links} dev={device:x} {}:'{start}'", data.len())?;
        xattrs
            .iter()
            .try_for_each(|(k, v)| write!(f, " {}={}", k.escape_ascii(), v[..v.len().min(40)].escape_ascii()))
    }
}

pub type Snapshot = BTreeMap<Vec<u8>, Node>;

/// All there is in a folder, by path; the folder itself is the empty path.
pub fn snapshot(root: &Path) -> Snapshot {
    let mut found = Snapshot::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let full = root.join(&path);
        let meta = fs::symlink_metadata(&full).unwrap();
        let kind = meta.file_type();
        let mut data = Vec::new();
        if kind.is_file() {
            data = fs::read(&full).unwrap();
        } else if kind.is_symlink() {
            data = fs::read_link(&full).unwrap().into_os_string().into_vec();
        } else if kind.is_dir() {
            todo.extend(fs::read_dir(&full).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        }
        let node = Node {
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            links: if kind.is_dir() { 0 } else { meta.nlink() },
            device: meta.rdev(),
            data,
            xattrs: xattrs(&full),
        };
        found.insert(path.into_os_string().into_vec(), node);
    }
    found
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0u8; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0u8; 1 << 16];
            let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}

/// Says in a message where two trees differ.
pub fn assert_same(actual: &Snapshot, expected: &Snapshot) {
    let paths: std::collections::BTreeSet<_> = actual.keys().chain(expected.keys()).collect();
    let mut differences = Vec::new();
    for path in paths {
        let (a, e) = (actual.get(path), expected.get(path));
        if a != e {
            differences.push(format!("{}:\n    is     {a:?}\n    wanted {e:?}", path.escape_ascii()));
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

/// A mounted image.
pub struct Mount {
    folder: tempfile::TempDir,
}

impl Mount {
    pub fn new(image: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        run(Command::new("mount").args(["-t", "erofs", "-o", "ro,loop"]).arg(image).arg(folder.path()));
        Self { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(self.folder.path()).status();
        assert!(done.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The kernel's judgement needs root; the only reason for which a test here may do less.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("not root: images are not mounted");
    }
    root
}
