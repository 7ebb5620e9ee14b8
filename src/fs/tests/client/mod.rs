//! A FUSE client of hand-made messages, and a world for it: volumes, and a canary that must stay as it is.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use boxlite_fs::{OwnerMap, Share, StreamError, Violations, Volume};
use tempfile::TempDir;

pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const SETATTR: u32 = 4;
pub const READLINK: u32 = 5;
pub const SYMLINK: u32 = 6;
pub const MKNOD: u32 = 8;
pub const MKDIR: u32 = 9;
pub const UNLINK: u32 = 10;
pub const RMDIR: u32 = 11;
pub const RENAME: u32 = 12;
pub const LINK: u32 = 13;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const WRITE: u32 = 16;
pub const STATFS: u32 = 17;
pub const RELEASE: u32 = 18;
pub const FSYNC: u32 = 20;
pub const SETXATTR: u32 = 21;
pub const GETXATTR: u32 = 22;
pub const LISTXATTR: u32 = 23;
pub const REMOVEXATTR: u32 = 24;
pub const FLUSH: u32 = 25;
pub const INIT: u32 = 26;
pub const OPENDIR: u32 = 27;
pub const READDIR: u32 = 28;
pub const RELEASEDIR: u32 = 29;
pub const FSYNCDIR: u32 = 30;
pub const CREATE: u32 = 35;
pub const DESTROY: u32 = 38;
pub const BATCH_FORGET: u32 = 42;
pub const FALLOCATE: u32 = 43;
pub const READDIRPLUS: u32 = 44;
pub const RENAME2: u32 = 45;
pub const LSEEK: u32 = 46;
pub const COPY_FILE_RANGE: u32 = 47;
pub const SYNCFS: u32 = 50;

/// The share's root, and the roots of its volumes.
pub const ROOT: u64 = 1;
pub const RW: u64 = 2;
pub const RO: u64 = 3;
pub const FILE: u64 = 4;
pub const SMALL: u64 = 5;
pub const MINE: u64 = 6;

/// What "small" may hold.
pub const QUOTA: u64 = 64 << 10;

pub const EPERM: i32 = 1;
pub const ENOENT: i32 = 2;
pub const EIO: i32 = 5;
pub const ENXIO: i32 = 6;
pub const EBADF: i32 = 9;
pub const EEXIST: i32 = 17;
pub const EXDEV: i32 = 18;
pub const ENOTDIR: i32 = 20;
pub const EISDIR: i32 = 21;
pub const EINVAL: i32 = 22;
pub const ENOSPC: i32 = 28;
pub const EROFS: i32 = 30;
pub const ERANGE: i32 = 34;
pub const ENAMETOOLONG: i32 = 36;
pub const ENOSYS: i32 = 38;
pub const ELOOP: i32 = 40;
pub const EPROTO: i32 = 71;
pub const EOPNOTSUPP: i32 = 95;

/// Fields of a message, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Fields(pub Vec<u8>);

impl Fields {
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub fn name(self, name: &[u8]) -> Self {
        self.bytes(name).bytes(b"\0")
    }
}

pub fn fields() -> Fields {
    Fields::default()
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(*bytes[at..].first_chunk().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(*bytes[at..].first_chunk().unwrap())
}

/// The attributes within a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    pub size: u64,
    pub mtime: u64,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
}

pub fn attributes(bytes: &[u8]) -> Attributes {
    Attributes {
        size: u64_at(bytes, 8),
        mtime: u64_at(bytes, 32),
        mode: u32_at(bytes, 60),
        nlink: u32_at(bytes, 64),
        uid: u32_at(bytes, 68),
        gid: u32_at(bytes, 72),
    }
}

/// A SETATTR: each field by its place.
pub fn setattr(valid: u32, set: &[(usize, u64)]) -> Fields {
    let mut bytes = vec![0; 88];
    bytes[..4].copy_from_slice(&valid.to_ne_bytes());
    for (at, value) in set {
        let wide = [8, 16, 32, 40].contains(at);
        let value = value.to_ne_bytes();
        let len = if wide { 8 } else { 4 };
        bytes[*at..*at + len].copy_from_slice(&value[..len]);
    }
    Fields(bytes)
}

pub const AT_FH: usize = 8;
pub const AT_SIZE: usize = 16;
pub const AT_ATIME: usize = 32;
pub const AT_MTIME: usize = 40;
pub const AT_MODE: usize = 68;
pub const AT_UID: usize = 76;
pub const AT_GID: usize = 80;

pub fn span(handle: u64, offset: u64, size: u32) -> Fields {
    fields().u64(handle).u64(offset).u32(size).u32(0).u64(0).u64(0)
}

/// A guest's kernel, as far as the share can see.
#[derive(Debug)]
pub struct Client {
    pub stream: UnixStream,
    unique: u64,
    pub uid: u32,
    pub gid: u32,
}

impl Client {
    pub fn message(&mut self, opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        self.unique += 2;
        let len = u32::try_from(40 + body.len()).unwrap();
        let header = fields().u32(len).u32(opcode).u64(self.unique).u64(node);
        header.u32(self.uid).u32(self.gid).u32(7).u32(0).bytes(body).0
    }

    pub fn send(&mut self, opcode: u32, node: u64, body: &[u8]) {
        let message = self.message(opcode, node, body);
        self.stream.write_all(&message).unwrap();
    }

    pub fn receive(&mut self) -> Result<Vec<u8>, i32> {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header).unwrap();
        assert_eq!(u64_at(&header, 8), self.unique, "the answer to another request");
        let mut body = vec![0; usize::try_from(u32_at(&header, 0)).unwrap() - 16];
        self.stream.read_exact(&mut body).unwrap();
        let error = i32::from_ne_bytes(*header[4..].first_chunk().unwrap());
        if error == 0 { Ok(body) } else { Err(-error) }
    }

    pub fn call(&mut self, opcode: u32, node: u64, body: Fields) -> Result<Vec<u8>, i32> {
        self.send(opcode, node, &body.0);
        self.receive()
    }

    pub fn init(&mut self, major: u32, minor: u32) -> Result<Vec<u8>, i32> {
        self.call(INIT, 0, fields().u32(major).u32(minor).u32(128 << 10).u32(u32::MAX).bytes(&[0; 48]))
    }

    pub fn lookup(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        self.call(LOOKUP, parent, fields().name(name.as_bytes())).map(|entry| u64_at(&entry, 0))
    }

    pub fn attributes(&mut self, node: u64) -> Attributes {
        let body = self.call(GETATTR, node, fields().u32(0).u32(0).u64(0)).unwrap();
        attributes(&body[16..])
    }

    pub fn open(&mut self, node: u64, flags: u32) -> Result<u64, i32> {
        self.call(OPEN, node, fields().u32(flags).u32(0)).map(|body| u64_at(&body, 0))
    }

    pub fn opendir(&mut self, node: u64) -> Result<u64, i32> {
        self.call(OPENDIR, node, fields().u32(0).u32(0)).map(|body| u64_at(&body, 0))
    }

    /// Number and handle of a new file.
    pub fn create(&mut self, parent: u64, name: &str, flags: u32, mode: u32) -> Result<(u64, u64), i32> {
        let body = fields().u32(flags).u32(mode).u32(0).u32(0).name(name.as_bytes());
        self.call(CREATE, parent, body).map(|body| (u64_at(&body, 0), u64_at(&body, 128)))
    }

    pub fn read(&mut self, node: u64, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        self.call(READ, node, span(handle, offset, size))
    }

    pub fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8]) -> Result<u32, i32> {
        let size = u32::try_from(data.len()).unwrap();
        self.call(WRITE, node, span(handle, offset, size).bytes(data)).map(|body| u32_at(&body, 0))
    }

    pub fn release(&mut self, node: u64, handle: u64) -> Result<(), i32> {
        self.call(RELEASE, node, fields().u64(handle).u32(0).u32(0).u64(0)).map(drop)
    }

    pub fn mkdir(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        let body = fields().u32(0o755).u32(0).name(name.as_bytes());
        self.call(MKDIR, parent, body).map(|entry| u64_at(&entry, 0))
    }

    pub fn unlink(&mut self, parent: u64, name: &str) -> Result<(), i32> {
        self.call(UNLINK, parent, fields().name(name.as_bytes())).map(drop)
    }

    /// Silently, as the protocol has it.
    pub fn forget(&mut self, node: u64, lookups: u64) {
        self.send(FORGET, node, &lookups.to_ne_bytes());
    }

    /// Blocks and free blocks of a volume, each of what the third says.
    pub fn statfs(&mut self, node: u64) -> (u64, u64, u64) {
        let body = self.call(STATFS, node, fields()).unwrap();
        (u64_at(&body, 0), u64_at(&body, 8), u64::from(u32_at(&body, 48)))
    }

    /// All names of a folder with their positions, read in pieces of `size`.
    pub fn names(&mut self, node: u64, handle: u64, plus: bool, size: u32) -> Vec<(String, u64)> {
        let (opcode, skip) = if plus { (READDIRPLUS, 128) } else { (READDIR, 0) };
        let mut found = Vec::new();
        let mut offset = 0;
        loop {
            let body = self.call(opcode, node, span(handle, offset, size)).unwrap();
            if body.is_empty() {
                return found;
            }
            assert!(body.len() <= usize::try_from(size).unwrap());
            let mut at = 0;
            while at < body.len() {
                let entry = &body[at + skip..];
                let len = usize::try_from(u32_at(entry, 16)).unwrap();
                let name = String::from_utf8(entry[24..24 + len].to_vec()).unwrap();
                offset = u64_at(entry, 8);
                found.push((name, offset));
                at += skip + 24 + len.next_multiple_of(8);
            }
        }
    }
}

/// Volumes, what is beside them, and a share that is being served.
pub struct World {
    pub folder: TempDir,
    pub client: Client,
    pub violations: Arc<Violations>,
    server: JoinHandle<Result<(), StreamError>>,
}

pub const SWAPPED: OwnerMap = OwnerMap { host: (1000, 1000), guest: (0, 0), privileged: true };
pub const UNPRIVILEGED: OwnerMap = OwnerMap { host: (0, 0), guest: (1000, 1000), privileged: false };

fn volume(folder: &Path, name: &str, read_only: bool, quota: Option<u64>) -> Volume {
    let root = fs::File::open(folder.join(name)).unwrap().into();
    let owner = if name == "mine" { UNPRIVILEGED } else { SWAPPED };
    Volume { name: name.to_owned(), root, read_only, owner, quota }
}

/// The folders and files, before anything is served.
pub fn tree() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for volume in ["rw", "ro", "small", "mine", "canary"] {
        fs::create_dir(at(volume)).unwrap();
        fs::write(at(volume).join("a"), "inside").unwrap();
        symlink("../canary/secret", at(volume).join("escape")).unwrap();
        symlink(at("canary"), at(volume).join("out")).unwrap();
        let modes = rustix::fs::Mode::from_raw_mode(0o666);
        let (fifo, device) = (at(volume).join("fifo"), at(volume).join("device"));
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, modes, 0).unwrap();
        // The one that is /dev/null.
        let (kind, number) = (rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3));
        rustix::fs::mknodat(rustix::fs::CWD, &device, kind, modes, number).unwrap();
        drop(std::os::unix::net::UnixListener::bind(at(volume).join("socket")).unwrap());
        fs::create_dir(at(volume).join("sub")).unwrap();
    }
    fs::write(at("canary/secret"), "the host's").unwrap();
    fs::write(at("file"), "a single file").unwrap();
    folder
}

pub fn volumes(folder: &Path) -> Vec<Volume> {
    vec![
        volume(folder, "rw", false, None),
        volume(folder, "ro", true, None),
        volume(folder, "file", false, None),
        volume(folder, "small", false, Some(QUOTA)),
        volume(folder, "mine", false, None),
    ]
}

impl World {
    pub fn new() -> Self {
        let mut world = Self::silent();
        world.client.init(7, 39).unwrap();
        world
    }

    /// One that has not been greeted yet.
    pub fn silent() -> Self {
        let folder = tree();
        let mut share = Share::new(volumes(folder.path())).unwrap();
        let violations = share.violations();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || share.serve_stream(theirs));
        let client = Client { stream: ours, unique: 0, uid: 0, gid: 0 };
        Self { folder, client, violations, server }
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub fn end(self) -> Result<(), StreamError> {
        drop(self.client);
        self.server.join().unwrap()
    }

    /// What must not change, whatever the guest does.
    pub fn untouchable(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        // Read first, so that this does not change what it looks at.
        for top in ["canary", "ro"] {
            snapshot(&self.at(top), &mut found);
        }
        let mut beside: Vec<_> =
            fs::read_dir(self.folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
        beside.sort();
        found.insert(self.folder.path().to_owned(), format!("{beside:?}"));
        found
    }
}

fn snapshot(path: &Path, found: &mut BTreeMap<PathBuf, String>) {
    let data = fs::symlink_metadata(path).unwrap();
    let kind = data.file_type();
    let content = if kind.is_file() {
        fs::read_to_string(path).unwrap()
    } else if kind.is_symlink() {
        fs::read_link(path).unwrap().display().to_string()
    } else {
        format!("{} {}", kind.is_fifo(), kind.is_char_device())
    };
    let facts =
        (data.mode(), data.uid(), data.gid(), data.nlink(), data.size(), data.mtime(), data.ctime_nsec());
    found.insert(path.to_owned(), format!("{facts:?} {content}"));
    if kind.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            snapshot(&entry.unwrap().path(), found);
        }
    }
}
