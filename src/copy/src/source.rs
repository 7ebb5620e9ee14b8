//! What is to be packed: one file, link or folder, found once by its path.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, openat, statat};

use crate::name::Escaped;

/// What something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink,
    /// A FIFO, a socket or a device.
    Other,
}

impl Kind {
    pub(crate) fn of(stat: &Stat) -> Self {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Folder,
            FileType::Symlink => Self::Symlink,
            _ => Self::Other,
        }
    }
}

/// Why there is nothing to pack.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {path}")]
pub struct SourceError {
    path: Escaped,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// See the module.
#[derive(Debug)]
pub struct Source {
    /// The folder that holds it; the folder itself where it has no name in one.
    pub(crate) folder: OwnedFd,
    /// Its name there; `.` for the folder itself.
    pub(crate) entry: OsString,
    kind: Kind,
    size: u64,
    name: Option<OsString>,
    contents: bool,
}

impl Source {
    /// Finds it. Links on the way are followed; the last component only with `follow`, or when the path ends in `/`.
    ///
    /// # Errors
    /// When nothing is there, or a path with `/` at its end leads to no folder.
    pub fn open(path: &Path, follow: bool) -> Result<Self, SourceError> {
        let failed =
            |source: io::Error| SourceError { path: Escaped::new(path.as_os_str().as_bytes()), source };
        let bytes = path.as_os_str().as_bytes();
        let contents = bytes == b"." || bytes.ends_with(b"/.");
        let slash = bytes.ends_with(b"/") || contents || bytes.ends_with(b"/..") || bytes == b"..";
        let own_name = path.file_name().map(OsStr::to_owned).filter(|_| !contents || bytes != b".");
        // `Path` takes a `.` at the end for nothing, and `..` for no name.
        let (folder, entry) = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if !slash => {
                let linked = follow && path.is_symlink();
                let real = if linked { path.canonicalize().map_err(failed)? } else { PathBuf::new() };
                let (parent, name) = match (linked, real.parent(), real.file_name()) {
                    (true, Some(parent), Some(name)) => (parent, name),
                    (true, ..) => (real.as_path(), OsStr::new(".")),
                    _ => (parent, name),
                };
                (open_folder(parent).map_err(failed)?, name.to_owned())
            }
            _ => (open_folder(path).map_err(failed)?, OsString::from(".")),
        };
        let stat =
            statat(&folder, &entry, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| failed(errno.into()))?;
        let kind = Kind::of(&stat);
        let size = if kind == Kind::File { u64::try_from(stat.st_size).unwrap_or_default() } else { 0 };
        Ok(Self { folder, entry, kind, size, name: own_name, contents })
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The last component of its path, if it has one.
    pub fn name(&self) -> Option<&OsStr> {
        self.name.as_deref()
    }

    /// The path asked for what is in a folder, not for the folder.
    pub fn is_contents(&self) -> bool {
        self.contents
    }

    /// The size of a file; 0 for all else.
    pub fn size_hint(&self) -> u64 {
        self.size
    }
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    Ok(openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}
