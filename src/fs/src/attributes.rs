//! What is known about files, and changing it.

use std::fs::File;

use rustix::fs::{
    AtFlags, FileType, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, fstat, fstatvfs, ftruncate,
    utimensat,
};
use rustix::io::Errno;

use crate::entries::give;
use crate::files::{clear_set_ids, end};
use crate::handle::Handle;
use crate::inode::Inode;
use crate::owner::Forbidden;
use crate::quota;
use crate::request::Changes;
use crate::share::Share;
use crate::violation::{Refusal, Violation};
use crate::wire::{Put, ROOT, set};

/// Seconds for which the guest believes a name or attributes. The host may change files behind its back.
const VALID: u64 = 1;

/// What files are measured in.
const BLOCK: u32 = 4096;

/// The layout has an unsigned number where the kernel means a signed one.
fn seconds(host: i64) -> u64 {
    host.cast_unsigned()
}

/// A number that the host has wider than the protocol.
fn narrow(value: impl TryInto<u32>) -> u32 {
    value.try_into().unwrap_or(u32::MAX)
}

fn put_times(stat: &Stat, out: &mut Vec<u8>) {
    out.put_u64(seconds(stat.st_atime));
    out.put_u64(seconds(stat.st_mtime));
    out.put_u64(seconds(stat.st_ctime));
    out.put_u32(narrow(stat.st_atime_nsec));
    out.put_u32(narrow(stat.st_mtime_nsec));
    out.put_u32(narrow(stat.st_ctime_nsec));
}

/// The attributes of the share's root, of which the host has nothing.
fn put_root(volumes: usize, out: &mut Vec<u8>) {
    out.put_u64(ROOT);
    out.put_zeros(5 * 8 + 3 * 4);
    out.put_u32(FileType::Directory.as_raw_mode() | 0o755);
    out.put_u32(narrow(volumes.saturating_add(2)));
    out.put_zeros(3 * 4);
    out.put_u32(BLOCK);
    out.put_u32(0);
}

impl Share {
    fn put_attributes(&self, volume: usize, stat: &Stat, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let owner = self.attached(volume)?.owner;
        out.put_u64(stat.st_ino);
        out.put_u64(u64::try_from(stat.st_size).unwrap_or(0));
        out.put_u64(u64::try_from(stat.st_blocks).unwrap_or(0));
        put_times(stat, out);
        out.put_u32(stat.st_mode);
        out.put_u32(narrow(stat.st_nlink));
        out.put_u32(owner.users().show(stat.st_uid));
        out.put_u32(owner.groups().show(stat.st_gid));
        out.put_u32(narrow(stat.st_rdev));
        out.put_u32(narrow(stat.st_blksize));
        out.put_u32(0);
        Ok(())
    }

    /// A file as the reply to LOOKUP and to what makes one.
    pub(crate) fn put_entry(
        &self,
        node: u64,
        volume: usize,
        stat: &Stat,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        out.put_u64(node);
        out.put_u64(0);
        out.put_u64(VALID);
        out.put_u64(VALID);
        out.put_zeros(8);
        self.put_attributes(volume, stat, out)
    }

    pub(crate) fn get_attributes(
        &self,
        node: u64,
        handle: Option<u64>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        out.put_u64(VALID);
        out.put_zeros(8);
        if node == ROOT {
            put_root(self.volumes.len(), out);
            return Ok(());
        }
        let inode = self.inode(node)?;
        if let Some(handle) = handle {
            self.handles.get(node, handle)?;
        }
        self.put_attributes(inode.volume, &fstat(&inode.fd)?, out)
    }

    /// Owner, mode, size and times, in this order: each may undo what the next one sets.
    pub(crate) fn set_attributes(
        &mut self,
        node: u64,
        changes: &Changes,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let inode = self.inode(node)?;
        let valid = changes.valid;
        let handle = if valid & set::FH != 0 { Some(self.handles.get(node, changes.handle)?) } else { None };
        if matches!(inode.kind, FileType::CharacterDevice | FileType::BlockDevice) {
            return Err(Violation::Device.refuse(Errno::PERM));
        }
        if valid & (set::UID | set::GID) != 0 {
            self.set_owner(&inode, changes)?;
        }
        if valid & set::MODE != 0 {
            if inode.kind == FileType::Symlink {
                return Err(Errno::OPNOTSUPP.into());
            }
            self.set_mode(&inode.fd, changes.mode)?;
        }
        if valid & set::SIZE != 0 {
            self.set_size(&inode, handle.as_deref(), changes)?;
        }
        if valid & (set::ATIME | set::MTIME) != 0 {
            set_times(&inode, changes)?;
        }
        self.get_attributes(node, None, out)
    }

    fn set_owner(&self, inode: &Inode, changes: &Changes) -> Result<(), Refusal> {
        let owner = self.attached(inode.volume)?.owner;
        let stat = fstat(&inode.fd)?;
        let uid = (changes.valid & set::UID != 0).then_some(changes.uid);
        let gid = (changes.valid & set::GID != 0).then_some(changes.gid);
        let refused = |Forbidden| Violation::Owner.refuse(Errno::PERM);
        let uid = uid.map(|uid| owner.users().changed(stat.st_uid, uid)).transpose().map_err(refused)?;
        let gid = gid.map(|gid| owner.groups().changed(stat.st_gid, gid)).transpose().map_err(refused)?;
        give(&inode.fd, uid.flatten(), gid.flatten())
    }

    fn set_size(&mut self, inode: &Inode, handle: Option<&Handle>, changes: &Changes) -> Result<(), Refusal> {
        let size = end(changes.size, 0)?;
        if inode.kind == FileType::Directory {
            return Err(Errno::ISDIR.into());
        }
        let opened;
        let file = if let Some(handle) = handle {
            handle.writable()?
        } else {
            opened = File::from(self.reopen(inode, OFlags::WRONLY)?);
            &opened
        };
        let before = quota::size(&fstat(file)?);
        let volume = self.attached_mut(inode.volume)?;
        let growth = size.saturating_sub(before);
        volume.grow(growth)?;
        let cut = ftruncate(file, size);
        volume.shrink(if cut.is_err() { growth } else { before.saturating_sub(size) });
        cut?;
        if changes.valid & set::KILL_SUIDGID != 0 {
            clear_set_ids(file)?;
        }
        Ok(())
    }

    /// The size of the file system: of the quota, if there is one.
    pub(crate) fn file_system(&self, node: u64, out: &mut Vec<u8>) -> Result<(), Refusal> {
        if node == ROOT {
            out.put_zeros(5 * 8);
            out.put_u32(BLOCK);
            out.put_u32(255);
            out.put_u32(BLOCK);
            out.put_zeros(7 * 4);
            return Ok(());
        }
        let inode = self.inode(node)?;
        let host = fstatvfs(&inode.fd)?;
        let (mut blocks, mut free, mut available) = (host.f_blocks, host.f_bfree, host.f_bavail);
        let unit = if host.f_frsize == 0 { u64::from(BLOCK) } else { host.f_frsize };
        if let Some(quota) = &self.attached(inode.volume)?.quota {
            // One that is smaller than a block is shown as one, or programs would take the volume for a pseudo one.
            blocks = quota.limit.div_ceil(unit);
            free = free.min(quota.free() / unit);
            available = available.min(quota.free() / unit);
        }
        for number in [blocks, free, available, host.f_files, host.f_ffree] {
            out.put_u64(number);
        }
        out.put_u32(narrow(host.f_bsize));
        out.put_u32(narrow(host.f_namemax));
        out.put_u32(narrow(unit));
        out.put_zeros(7 * 4);
        Ok(())
    }
}

fn set_times(inode: &Inode, changes: &Changes) -> Result<(), Refusal> {
    let time = |valid: u32, now: u32, sec: u64, nsec: u32| {
        if changes.valid & valid == 0 {
            Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }
        } else if changes.valid & now != 0 {
            Timespec { tv_sec: 0, tv_nsec: UTIME_NOW }
        } else {
            Timespec { tv_sec: sec.cast_signed(), tv_nsec: nsec.into() }
        }
    };
    let times = Timestamps {
        last_access: time(set::ATIME, set::ATIME_NOW, changes.atime, changes.atime_nsec),
        last_modification: time(set::MTIME, set::MTIME_NOW, changes.mtime, changes.mtime_nsec),
    };
    Ok(utimensat(&inode.fd, c"", &times, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_have_the_length_that_the_kernel_expects() {
        let mut out = Vec::new();
        put_root(3, &mut out);
        assert_eq!(out.len(), 88);
        let mode = u32::from_ne_bytes(*out[60..].first_chunk().unwrap());
        assert_eq!(mode, 0o040_755);
    }
}
