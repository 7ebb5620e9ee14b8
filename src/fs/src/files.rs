//! Open files: reading, writing, and what else is done by handle.
//!
//! Data goes from the file to the guest's memory and back without a stop: see [`Data`].

use std::fs::File;
use std::io;

use rustix::fs::{
    FallocateFlags, FileType, Mode, OFlags, SeekFrom, fallocate, fchmod, fdatasync, fstat, fsync, seek,
    syncfs,
};
use rustix::io::Errno;

use crate::handle::Handle;
use crate::quota;
use crate::request::Span;
use crate::share::{Data, Share};
use crate::violation::{Refusal, Violation};
use crate::wire::{FOPEN_NOFLUSH, FSYNC_FDATASYNC, Put, ROOT, WRITE_KILL_SUIDGID};
use crate::{MAX_DATA, inode};

const SET_USER: u32 = 0o4000;
const SET_GROUP: u32 = 0o2000;
const GROUP_EXECUTES: u32 = 0o0010;

/// What a file is opened for. All other flags of the guest are its own kernel's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

impl Access {
    pub(crate) fn new(flags: u32) -> Result<Self, Refusal> {
        match flags & 0o3 {
            0 => Ok(Self { read: true, write: false }),
            1 => Ok(Self { read: false, write: true }),
            2 => Ok(Self { read: true, write: true }),
            _ => Err(Errno::INVAL.into()),
        }
    }

    pub(crate) fn flags(self) -> OFlags {
        match (self.read, self.write) {
            (true, true) => OFlags::RDWR,
            (false, true) => OFlags::WRONLY,
            _ => OFlags::RDONLY,
        }
    }
}

/// Where something ends, if a file can be that long.
pub(crate) fn end(offset: u64, length: u64) -> Result<u64, Refusal> {
    match offset.checked_add(length) {
        Some(end) if i64::try_from(end).is_ok() => Ok(end),
        _ => Err(Errno::INVAL.into()),
    }
}

fn into_errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// What a write by somebody without privileges does to a program that runs as its owner.
pub(crate) fn clear_set_ids(file: &File) -> Result<(), Refusal> {
    let mode = fstat(file)?.st_mode;
    let group = if mode & GROUP_EXECUTES == 0 { 0 } else { SET_GROUP };
    let cleared = mode & !(SET_USER | group);
    if cleared != mode {
        fchmod(file, Mode::from_raw_mode(cleared))?;
    }
    Ok(())
}

impl Share {
    pub(crate) fn open(&mut self, node: u64, flags: u32, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let inode = self.inode(node)?;
        if inode.kind == FileType::Directory {
            return Err(Errno::ISDIR.into());
        }
        self.handles.admit()?;
        let access = Access::new(flags)?;
        let read_only = self.attached(inode.volume)?.read_only;
        let file = if read_only {
            // Without a trace on the host, if this process may do that.
            match self.reopen(&inode, OFlags::RDONLY | OFlags::NOATIME) {
                Err(Refusal { errno: Errno::PERM, .. }) => self.reopen(&inode, OFlags::RDONLY)?,
                opened => opened?,
            }
        } else {
            self.reopen(&inode, access.flags())?
        };
        let writable = access.write && !read_only;
        let handle = self.add_handle(node, Handle::File { file: File::from(file), writable });
        out.put_u64(handle);
        out.put_u32(if writable { 0 } else { FOPEN_NOFLUSH });
        out.put_u32(0);
        Ok(())
    }

    pub(crate) fn read(&self, node: u64, span: &Span, data: &mut dyn Data) -> Result<usize, Refusal> {
        let handle = self.handles.get(node, span.handle)?;
        let file = handle.file()?;
        let size = usize::try_from(span.size).unwrap_or(usize::MAX).min(MAX_DATA).min(data.room());
        end(span.offset, u64::from(span.size))?;
        Ok(data.load(file, span.offset, size).map_err(|error| into_errno(&error))?)
    }

    pub(crate) fn write(
        &mut self,
        node: u64,
        span: &Span,
        flags: u32,
        data: &mut dyn Data,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let handle = self.handles.get(node, span.handle)?;
        let file = handle.writable()?;
        let size = usize::try_from(span.size).unwrap_or(usize::MAX);
        if size > data.arrived() || size > MAX_DATA {
            return Err(Violation::Message.refuse(Errno::INVAL));
        }
        let last = end(span.offset, u64::from(span.size))?;
        let volume = self.inode(node)?.volume;
        let volume = self.attached_mut(volume)?;
        let before = if volume.quota.is_some() { quota::size(&fstat(file)?) } else { last };
        let growth = last.saturating_sub(before);
        volume.grow(growth)?;
        let stored = data.store(file, span.offset, size);
        let written = stored.as_ref().map_or(0, |count| *count);
        let reached = span.offset.saturating_add(u64::try_from(written).unwrap_or(u64::MAX));
        volume.shrink(growth.saturating_sub(reached.saturating_sub(before)));
        stored.map_err(|error| into_errno(&error))?;
        if flags & WRITE_KILL_SUIDGID != 0 {
            clear_set_ids(file)?;
        }
        out.put_u32(u32::try_from(written).map_err(|_| Errno::IO)?);
        out.put_u32(0);
        Ok(())
    }

    pub(crate) fn sync_file(&self, node: u64, handle: u64, flags: u32) -> Result<(), Refusal> {
        let handle = self.handles.get(node, handle)?;
        let file = handle.file()?;
        Ok(if flags & FSYNC_FDATASYNC != 0 { fdatasync(file) } else { fsync(file) }?)
    }

    /// Of the volume that is meant, or of all.
    pub(crate) fn sync_all(&self, node: u64) -> Result<(), Refusal> {
        let only = if node == ROOT { None } else { Some(self.inode(node)?.volume) };
        for (root, (number, volume)) in (inode::FIRST..).zip(self.volumes.iter().enumerate()) {
            if volume.read_only || only.is_some_and(|only| only != number) {
                continue;
            }
            let inode = self.inode(root)?;
            syncfs(self.reopen(&inode, OFlags::RDONLY)?)?;
        }
        Ok(())
    }

    pub(crate) fn seek(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        whence: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let handle = self.handles.get(node, handle)?;
        let file = handle.file()?;
        if i64::try_from(offset).is_err() {
            return Err(Errno::NXIO.into());
        }
        let position = match whence {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL.into()),
        };
        out.put_u64(seek(file, position)?);
        Ok(())
    }

    /// With a quota, room can only be taken by making a file longer: what lies beyond its end would not count.
    pub(crate) fn allocate(
        &mut self,
        node: u64,
        handle: u64,
        (offset, length): (u64, u64),
        mode: u32,
    ) -> Result<(), Refusal> {
        let handle = self.handles.get(node, handle)?;
        let file = handle.writable()?;
        let mode = FallocateFlags::from_bits_retain(mode);
        let keep = mode.contains(FallocateFlags::KEEP_SIZE);
        let hole = mode == FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let zeros = mode & !FallocateFlags::KEEP_SIZE == FallocateFlags::ZERO_RANGE;
        if !(mode & !FallocateFlags::KEEP_SIZE).is_empty() && !hole && !zeros {
            return Err(Errno::OPNOTSUPP.into());
        }
        let last = end(offset, length)?;
        let volume = self.inode(node)?.volume;
        let volume = self.attached_mut(volume)?;
        let before = if volume.quota.is_some() { quota::size(&fstat(file)?) } else { last };
        let beyond = last.saturating_sub(before);
        if hole || (keep && beyond == 0) {
            return Ok(fallocate(file, mode, offset, length)?);
        }
        if keep {
            return Err(Errno::OPNOTSUPP.into());
        }
        volume.grow(beyond)?;
        let allocated = fallocate(file, mode, offset, length);
        if allocated.is_err() {
            volume.shrink(beyond);
        }
        Ok(allocated?)
    }
}
