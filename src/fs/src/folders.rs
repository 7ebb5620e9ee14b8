//! Reading folders.
//!
//! The position in a folder is the host's own, so that it stays what it means while names come and go. In the share's root
//! it is a number: `.`, `..`, and the volumes.

use std::fs::File;

use rustix::fs::{FileType, OFlags, RawDir, SeekFrom, fdatasync, fsync, seek};
use rustix::io::Errno;

use crate::MAX_DATA;
use crate::handle::Handle;
use crate::inode::{FIRST, Inode};
use crate::names::Name;
use crate::request::Span;
use crate::share::Share;
use crate::violation::{Refusal, Violation};
use crate::wire::{FSYNC_FDATASYNC, Put, ROOT};

/// Bytes of one entry besides its name, and of its attributes if they are asked for.
const ENTRY: usize = 24;
const ATTRIBUTES: usize = 128;

/// The most that is read of a folder in one go: a name of any length fits.
const CHUNK: usize = 32 << 10;

/// One name in a folder.
#[derive(Clone, Copy, Debug)]
struct Entry<'a> {
    name: &'a [u8],
    ino: u64,
    kind: u32,
    /// Where reading goes on behind it.
    next: u64,
}

fn is_dots(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

fn padding(name: &[u8]) -> usize {
    name.len().next_multiple_of(8).saturating_sub(name.len())
}

/// The kind as `d_type` has it.
fn kind(kind: FileType) -> u32 {
    kind.as_raw_mode() >> 12
}

impl Entry<'_> {
    fn len(&self, plus: bool) -> usize {
        let attributes = if plus { ATTRIBUTES } else { 0 };
        attributes.saturating_add(ENTRY).saturating_add(self.name.len()).saturating_add(padding(self.name))
    }

    fn put(&self, out: &mut Vec<u8>) -> Result<(), Refusal> {
        out.put_u64(self.ino);
        out.put_u64(self.next);
        out.put_u32(u32::try_from(self.name.len()).map_err(|_| Errno::NAMETOOLONG)?);
        out.put_u32(self.kind);
        out.put_bytes(self.name);
        out.put_zeros(padding(self.name));
        Ok(())
    }
}

impl Share {
    pub(crate) fn open_folder(&mut self, node: u64, out: &mut Vec<u8>) -> Result<(), Refusal> {
        self.handles.admit()?;
        let handle = if node == ROOT {
            Handle::Root
        } else {
            let inode = self.folder(node)?;
            Handle::Folder(File::from(self.reopen(&inode, OFlags::RDONLY | OFlags::DIRECTORY)?))
        };
        let handle = self.add_handle(node, handle);
        out.put_u64(handle);
        out.put_zeros(8);
        Ok(())
    }

    pub(crate) fn sync_folder(&self, node: u64, handle: u64, flags: u32) -> Result<(), Refusal> {
        match &*self.handles.get(node, handle)? {
            Handle::Root => Ok(()),
            Handle::Folder(folder) if flags & FSYNC_FDATASYNC != 0 => Ok(fdatasync(folder)?),
            Handle::Folder(folder) => Ok(fsync(folder)?),
            Handle::File { .. } => Err(Violation::Handle.refuse(Errno::BADF)),
        }
    }

    /// As many entries as fit into what was asked for. `plus`: each with its attributes.
    pub(crate) fn read_folder(
        &mut self,
        node: u64,
        span: &Span,
        plus: bool,
        room: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let limit = usize::try_from(span.size).unwrap_or(usize::MAX).min(MAX_DATA).min(room);
        match &*self.handles.get(node, span.handle)? {
            Handle::Root => self.read_root(span.offset, plus, limit, out),
            Handle::Folder(folder) => self.read_host(node, folder, span.offset, plus, limit, out),
            Handle::File { .. } => Err(Violation::Handle.refuse(Errno::BADF)),
        }
    }

    fn read_root(&self, offset: u64, plus: bool, limit: usize, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let folder = kind(FileType::Directory);
        let dots = [(&b"."[..], ROOT, folder, 0), (b"..", ROOT, folder, 0)];
        let volumes = (FIRST..).zip(&self.volumes).map(|(node, volume)| {
            let kind = if volume.is_folder { folder } else { kind(FileType::RegularFile) };
            (volume.name.as_c_str().to_bytes(), volume.ino, kind, node)
        });
        let all = (1..).zip(dots.into_iter().chain(volumes));
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        for (next, (name, ino, kind, node)) in all.skip(skipped) {
            let entry = Entry { name, ino, kind, next };
            if out.len().saturating_add(entry.len(plus)) > limit {
                break;
            }
            if plus && node == 0 {
                out.put_zeros(ATTRIBUTES);
            } else if plus {
                self.put_volume(node, out)?;
            }
            entry.put(out)?;
        }
        Ok(())
    }

    fn read_host(
        &mut self,
        node: u64,
        folder: &File,
        offset: u64,
        plus: bool,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let inode = self.inode(node)?;
        seek(folder, SeekFrom::Start(offset))?;
        let mut buffer = Vec::with_capacity(CHUNK);
        let mut entries = RawDir::new(folder, buffer.spare_capacity_mut());
        while let Some(read) = entries.next() {
            let read = match read {
                Ok(read) => read,
                // What was read before is not lost. The guest comes back for the error.
                Err(_) if !out.is_empty() => break,
                Err(errno) => return Err(errno.into()),
            };
            let name = read.file_name().to_bytes();
            let up = name == b".." && self.is_root(node);
            let entry = Entry {
                name,
                ino: if up { ROOT } else { read.ino() },
                kind: kind(read.file_type()),
                next: read.next_entry_cookie(),
            };
            if out.len().saturating_add(entry.len(plus)) > limit {
                if out.is_empty() && limit > 0 {
                    return Err(Errno::INVAL.into());
                }
                break;
            }
            if plus {
                self.put_found(&inode, name, out)?;
            }
            entry.put(out)?;
        }
        Ok(())
    }

    fn is_root(&self, node: u64) -> bool {
        node.checked_sub(FIRST)
            .and_then(|number| usize::try_from(number).ok())
            .is_some_and(|number| number < self.volumes.len())
    }

    /// The attributes of a name that was read, or zeros: then the guest asks for it when it needs it. That is so if it
    /// knows many files already.
    fn put_found(&mut self, parent: &Inode, name: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        if !is_dots(name)
            && self.inodes.is_roomy()
            && let Ok(name) = Name::new(name)
            && let Ok((node, stat)) = self.find(parent, &name)
        {
            return self.put_entry(node, parent.volume, &stat, out);
        }
        out.put_zeros(ATTRIBUTES);
        Ok(())
    }
}
