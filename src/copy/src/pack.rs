//! Writes a tree as a tar stream.
//!
//! ```text
//!   the tree's own entry ─▶ its children, each folder before what is in it ─▶ two zero blocks
//! ```
//!
//! Folders are held open from the root down and entered by name without following links, so the walk cannot be led out
//! of the tree by whoever changes it meanwhile. What changes under the walk's hands is packed as it was found, left out and
//! counted, or, where the size was said already, filled with zeros and counted.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, fgetxattr, flistxattr, fstat, major, minor, openat,
    readlinkat, statat,
};
use rustix::io::Errno;

use crate::encoder::{Head, pad};
use crate::name::{self, Escaped};
use crate::root::Root;
use crate::source::Source;
use crate::sparse::SparseMap;
use crate::stream::BLOCK;
use crate::summary::{Progress, Summary};
use crate::{BUFFER, MAX_PATH, MAX_XATTR};

/// How deep a tree may be.
pub const MAX_DEPTH: usize = 2048;
/// How many files with several names are remembered, and how long these names are together. Of those beyond, each name is
/// packed as a file of its own.
const LINKS: usize = 1 << 20;
const LINK_BYTES: usize = 64 << 20;
/// The most bytes of the extended attributes of one file.
const XATTRS: usize = 512 << 10;

/// What is packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackOptions {
    /// Extended attributes too: `user.*` and `security.capability`.
    pub keep_xattrs: bool,
    /// Device nodes too.
    pub devices: bool,
}

/// Why a tree was not packed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// Something in the tree cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Its path in the stream.
        path: Escaped,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The tree is too deep.
    #[error("{0} lies deeper than {MAX_DEPTH} folders, or its path is longer than {MAX_PATH} bytes")]
    TooDeep(Escaped),
    /// The stream cannot be written.
    #[error("the stream cannot be written")]
    Write(#[source] io::Error),
}

/// Names and values.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

struct Level {
    folder: Dir,
    /// Length of the path of this folder.
    path: usize,
}

struct Packer<'a> {
    out: &'a mut dyn Write,
    options: PackOptions,
    progress: &'a mut dyn FnMut(Progress),
    summary: Summary,
    path: Vec<u8>,
    links: HashMap<(u64, u64), Vec<u8>>,
    link_bytes: usize,
    buffer: Vec<u8>,
    /// For the names of extended attributes.
    names: Vec<u8>,
}

impl Source {
    /// Writes it as a tar stream, its first entry under the name that `root` says.
    ///
    /// # Errors
    /// When a part of it cannot be read, it is too deep, or the stream fails.
    pub fn pack(
        &self,
        root: &Root,
        options: PackOptions,
        out: &mut dyn Write,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Summary, PackError> {
        let path = match root {
            Root::Named(name) => name.as_bytes().to_vec(),
            Root::Contents => b".".to_vec(),
        };
        let mut packer = Packer {
            out,
            options,
            progress,
            summary: Summary::default(),
            path,
            links: HashMap::new(),
            link_bytes: 0,
            buffer: vec![0; BUFFER],
            names: vec![0; if options.keep_xattrs { MAX_XATTR } else { 0 }],
        };
        packer.tree(self)?;
        packer.out.write_all(&[0; 2 * BLOCK]).map_err(PackError::Write)?;
        packer.out.flush().map_err(PackError::Write)?;
        Ok(packer.summary)
    }
}

impl Packer<'_> {
    fn failed(&self, error: impl Into<io::Error>) -> PackError {
        PackError::Read { path: Escaped::new(&self.path), source: error.into() }
    }

    fn tree(&mut self, source: &Source) -> Result<(), PackError> {
        let name =
            CString::new(source.entry.as_bytes()).map_err(|_| self.failed(io::ErrorKind::InvalidInput))?;
        let mut levels = Vec::new();
        match self.entry(source.folder.as_fd(), &name) {
            Ok(Some(folder)) => levels.push(Level { folder, path: self.path.len() }),
            Ok(None) => {}
            Err(error) => return Err(error),
        }
        while let Some(level) = levels.last_mut() {
            self.path.truncate(level.path);
            let Some(entry) = level.folder.read() else {
                levels.pop();
                continue;
            };
            let entry = entry.map_err(|errno| self.failed(errno))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            name::join(&mut self.path, name.to_bytes());
            if self.path.len() > MAX_PATH || levels.len() >= MAX_DEPTH {
                return Err(PackError::TooDeep(Escaped::new(&self.path)));
            }
            let Some(level) = levels.last() else { break };
            let folder = level.folder.fd().map_err(|errno| self.failed(errno))?;
            match self.entry(folder, name) {
                Ok(Some(folder)) => levels.push(Level { folder, path: self.path.len() }),
                Ok(None) => {}
                // Removed, or replaced by something else, since its folder was read.
                Err(PackError::Read { source, .. }) if matches!(source.raw_os_error(), Some(code) if gone(Errno::from_raw_os_error(code))) =>
                {
                    self.summary.skipped.vanished += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Packs one entry; gives the folder that it is.
    fn entry(&mut self, folder: BorrowedFd<'_>, name: &CStr) -> Result<Option<Dir>, PackError> {
        let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| self.failed(errno))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened =
                    openat(folder, name, flags, Mode::empty()).map_err(|errno| self.failed(errno))?;
                let stat = fstat(&opened).map_err(|errno| self.failed(errno))?;
                let xattrs = self.xattrs(opened.as_fd())?;
                let mut path = self.path.clone();
                path.push(b'/');
                self.head(Head { path: &path, kind: b'5', xattrs: &xattrs, ..head(&stat) })?;
                return Dir::new(opened).map(Some).map_err(|errno| self.failed(errno));
            }
            FileType::RegularFile => self.file(folder, name)?,
            FileType::Symlink => {
                let target = readlinkat(folder, name, Vec::new());
                // No link any more.
                let target = target.map_err(|errno| if errno == Errno::INVAL { Errno::NOENT } else { errno });
                let target = target.map_err(|errno| self.failed(errno))?;
                let path = self.path.clone();
                let target = target.to_bytes();
                self.head(Head { path: &path, link: target, kind: b'2', mode: 0o777, ..head(&stat) })?;
            }
            FileType::Fifo => {
                let path = self.path.clone();
                self.head(Head { path: &path, kind: b'6', ..head(&stat) })?;
            }
            FileType::Socket => self.summary.skipped.sockets += 1,
            kind @ (FileType::CharacterDevice | FileType::BlockDevice) if self.options.devices => {
                let path = self.path.clone();
                let device = (major(stat.st_rdev), minor(stat.st_rdev));
                let kind = if kind == FileType::CharacterDevice { b'3' } else { b'4' };
                self.head(Head { path: &path, kind, device, ..head(&stat) })?;
            }
            _ => self.summary.skipped.devices += 1,
        }
        Ok(None)
    }

    fn head(&mut self, head: Head<'_>) -> Result<(), PackError> {
        head.write(self.out).map_err(PackError::Write)?;
        self.summary.entries += 1;
        (self.progress)(self.summary.progress());
        Ok(())
    }

    fn file(&mut self, folder: BorrowedFd<'_>, name: &CStr) -> Result<(), PackError> {
        // What has become a FIFO meanwhile must not make this wait.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = openat(folder, name, flags, Mode::empty()).map_err(|errno| self.failed(errno))?;
        let stat = fstat(&file).map_err(|errno| self.failed(errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.failed(Errno::NOENT));
        }
        let path = self.path.clone();
        if stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&key).cloned() {
                return self.head(Head { path: &path, link: &first, kind: b'1', ..head(&stat) });
            }
            if self.links.len() < LINKS && self.link_bytes + path.len() <= LINK_BYTES {
                self.link_bytes += path.len();
                self.links.insert(key, path.clone());
            }
        }
        let xattrs = self.xattrs(file.as_fd())?;
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        let mut file = File::from(file);
        let base = Head { path: &path, kind: b'0', xattrs: &xattrs, ..head(&stat) };
        let map = if u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(512) < size {
            self.map(&mut file, size)?
        } else {
            None
        };
        match map {
            Some(map) => {
                let text = map.to_text();
                let stored = text.len() as u64 + map.stored();
                self.head(Head { size: stored, sparse_size: Some(size), ..base })?;
                self.out.write_all(&text).map_err(PackError::Write)?;
                for extent in map.extents() {
                    file.seek(SeekFrom::Start(extent.offset)).map_err(|error| self.failed(error))?;
                    self.content(&mut file, extent.length)?;
                }
                pad(self.out, stored).map_err(PackError::Write)
            }
            None => {
                self.head(Head { size, ..base })?;
                self.content(&mut file, size)?;
                pad(self.out, size).map_err(PackError::Write)
            }
        }
    }

    /// Where the content of a file with holes is; `None` where the file system does not say.
    fn map(&mut self, file: &mut File, size: u64) -> Result<Option<SparseMap>, PackError> {
        use rustix::fs::{SeekFrom as From, seek};
        let mut map = SparseMap::new(size);
        let mut at = 0;
        while at < size {
            let data = match seek(&*file, From::Data(at)) {
                Ok(data) if data < size => data,
                Ok(_) | Err(Errno::NXIO) => break,
                Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                    file.rewind().map_err(|error| self.failed(error))?;
                    return Ok(None);
                }
                Err(errno) => return Err(self.failed(errno)),
            };
            let hole = seek(&*file, From::Hole(data)).map_err(|errno| self.failed(errno))?.min(size);
            // The last extent that fits takes all the rest.
            let end = if map.extents().len() + 1 >= crate::sparse::MAX_EXTENTS { size } else { hole };
            // One that goes back or does not move comes from a file that changes right now.
            if end <= data || map.push(data, end - data).is_err() {
                break;
            }
            at = end;
        }
        Ok(Some(map))
    }

    /// Writes so much content, from where the file is; what it has not any more as zeros.
    fn content(&mut self, file: &mut File, length: u64) -> Result<(), PackError> {
        let mut left = length;
        let mut short = false;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let count = if short {
                self.buffer[..most].fill(0);
                most
            } else {
                match file.read(&mut self.buffer[..most]) {
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(self.failed(error)),
                }
            };
            if count == 0 {
                short = true;
                self.summary.shrunk += 1;
                continue;
            }
            self.out.write_all(&self.buffer[..count]).map_err(PackError::Write)?;
            left -= count as u64;
            self.summary.bytes += count as u64;
            (self.progress)(self.summary.progress());
        }
        Ok(())
    }

    /// The extended attributes that are packed.
    fn xattrs(&mut self, file: BorrowedFd<'_>) -> Result<Xattrs, PackError> {
        if !self.options.keep_xattrs {
            return Ok(Vec::new());
        }
        let length = match flistxattr(file, &mut self.names[..]) {
            Ok(0) | Err(Errno::OPNOTSUPP | Errno::ACCESS | Errno::PERM) => return Ok(Vec::new()),
            Ok(length) => length,
            // No file system has so many.
            Err(Errno::RANGE) => {
                self.summary.skipped.xattrs += 1;
                return Ok(Vec::new());
            }
            Err(errno) => return Err(self.failed(errno)),
        };
        let names = self.names.get(..length).unwrap_or_default();
        let (mut all, mut bytes) = (Vec::new(), 0);
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            if !name.starts_with(b"user.") && name != b"security.capability" {
                continue;
            }
            let mut value = vec![0; MAX_XATTR];
            match fgetxattr(file, name, &mut value[..]) {
                Ok(length) if bytes + length <= XATTRS && all.len() < 256 => {
                    value.truncate(length);
                    bytes += length;
                    all.push((name.to_vec(), value));
                }
                _ => self.summary.skipped.xattrs += 1,
            }
        }
        Ok(all)
    }
}

/// Whether something has gone, or become something that cannot be entered without following it.
fn gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::STALE)
}

fn head(stat: &Stat) -> Head<'static> {
    Head {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or_default()),
        ..Head::default()
    }
}
