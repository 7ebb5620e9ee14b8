//! One of the share's volumes: a folder or a regular file of the host, and what the guest may do with it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Stat, fstat};
use rustix::io::Errno;

use crate::NewError;
use crate::names::Name;
use crate::owner::OwnerMap;
use crate::quota::Quota;

/// What is shared, and how.
#[derive(Debug)]
pub struct Volume {
    /// Its entry in the share's root: one component.
    pub name: String,
    /// A folder or a regular file of the host, opened with O_PATH or for reading.
    pub root: OwnedFd,
    /// Nothing in it can be changed by the guest.
    pub read_only: bool,
    /// Whose files are whose.
    pub owner: OwnerMap,
    /// The most bytes that it may hold: sizes of files, and 4 KiB for each name.
    pub quota: Option<u64>,
}

/// A volume that has been checked. Its root is with the inodes.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) name: Name,
    pub(crate) read_only: bool,
    pub(crate) owner: OwnerMap,
    pub(crate) quota: Option<Quota>,
    pub(crate) is_folder: bool,
    /// The root's number on the host.
    pub(crate) ino: u64,
}

impl Attached {
    pub(crate) fn new(volume: Volume) -> Result<(Self, OwnedFd, Stat), NewError> {
        let Volume { name, root, read_only, owner, quota } = volume;
        let checked = Name::new(name.as_bytes()).map_err(|_| NewError::Name(name.clone()))?;
        let stat =
            fstat(&root).map_err(|errno| NewError::Root { name: name.clone(), source: errno.into() })?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(kind, FileType::Directory | FileType::RegularFile) {
            return Err(NewError::Kind(name));
        }
        let quota = match quota.filter(|_| !read_only) {
            Some(limit) => match Quota::count(root.as_fd(), limit) {
                Ok(quota) => Some(quota),
                Err(errno) => return Err(NewError::Count { name, source: errno.into() }),
            },
            None => None,
        };
        let is_folder = kind == FileType::Directory;
        let attached = Self { name: checked, read_only, owner, quota, is_folder, ino: stat.st_ino };
        Ok((attached, root, stat))
    }

    /// Takes room for so many bytes, if there is a quota.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), Errno> {
        self.quota.as_mut().map_or(Ok(()), |quota| quota.grow(bytes))
    }

    pub(crate) fn shrink(&mut self, bytes: u64) {
        if let Some(quota) = &mut self.quota {
            quota.shrink(bytes);
        }
    }
}
