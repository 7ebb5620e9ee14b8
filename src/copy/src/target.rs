//! The place that a copy goes to, found once by its path.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::name::Escaped;
use crate::place::{Copied, Destination, PlaceError, Placement, place};
use crate::root::Root;

/// Why a copy cannot go to a path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The path, or the folder that it is in, cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// The path.
        path: Escaped,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no place for it.
    #[error("cannot copy to {path}: {why}")]
    Place {
        /// The path.
        path: Escaped,
        /// Why.
        why: PlaceError,
    },
}

/// See the module. Links on the way, and at the end, were followed; from here on none is.
#[derive(Debug)]
pub struct Target {
    path: Escaped,
    /// The folder that is there, else the one that it is in.
    folder: OwnedFd,
    name: OsString,
    there: Destination,
    slash: bool,
}

impl Target {
    /// Finds it.
    ///
    /// # Errors
    /// When the folder that it is in is not there.
    pub fn open(path: &Path) -> Result<Self, TargetError> {
        let bytes = path.as_os_str().as_bytes();
        let shown = Escaped::new(bytes);
        let failed = |source: io::Error| TargetError::Open { path: Escaped::new(bytes), source };
        let slash = bytes.ends_with(b"/") || bytes.ends_with(b"/.") || bytes == b".";
        let (real, there) = match path.canonicalize() {
            Ok(real) if real.is_dir() => (real, Destination::Folder),
            Ok(real) => (real, Destination::File),
            // A link to nowhere is there, and leads nowhere.
            Err(error) if error.kind() != io::ErrorKind::NotFound || path.is_symlink() => {
                return Err(failed(error));
            }
            Err(_) => (path.to_owned(), Destination::Missing),
        };
        if there == Destination::Folder {
            let folder = open_folder(&real).map_err(failed)?;
            return Ok(Self { path: shown, folder, name: OsString::new(), there, slash });
        }
        let (Some(parent), Some(name)) = (real.parent(), real.file_name()) else {
            return Err(failed(io::ErrorKind::NotFound.into()));
        };
        let parent = if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() };
        let folder = open_folder(&parent).map_err(failed)?;
        Ok(Self { path: shown, folder, name: name.to_owned(), there, slash })
    }

    /// A folder that is there, into which a stream is unpacked as it is.
    ///
    /// # Errors
    /// When it is none.
    pub fn open_folder(path: &Path) -> Result<OwnedFd, TargetError> {
        let failed = |source| TargetError::Open { path: Escaped::new(path.as_os_str().as_bytes()), source };
        open_folder(path).map_err(failed)
    }

    /// The folder in which to unpack what is copied, and the name for it.
    ///
    /// # Errors
    /// When there is no place for it.
    pub fn place(&self, copied: Copied<'_>) -> Result<(BorrowedFd<'_>, Root), TargetError> {
        let refused = |why| TargetError::Place { path: self.path.clone(), why };
        let root = match place(self.there, self.slash, copied).map_err(refused)? {
            Placement::Into(root) => root,
            Placement::As => Root::Named(self.name.clone()),
        };
        Ok((self.folder.as_fd(), root))
    }
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}
