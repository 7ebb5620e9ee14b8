//! Names in folders: finding, making, moving and removing them.
//!
//! Invariant: the host is given a descriptor of a folder and one [`Name`], never a path, and follows no symbolic link.
//! However folders are moved meanwhile, that cannot leave the volume.
//!
//! What is made is made anew and for its owner alone, then given to whom it belongs, and only then gets its mode.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid, chmodat, chownat, fstat, ftruncate, linkat,
    mkdirat, mknodat, openat, readlinkat, renameat_with, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::files::Access;
use crate::handle::Handle;
use crate::inode::{FIRST, Inode};
use crate::names::Name;
use crate::quota::{self, NAME};
use crate::request::Header;
use crate::share::Share;
use crate::violation::{Refusal, Violation};
use crate::wire::{Put, ROOT};

const O_EXCL: u32 = 0o200;
const O_TRUNC: u32 = 0o1000;
const SET_GROUP: u32 = 0o2000;
const PERMISSIONS: u32 = 0o7777;

/// How a file is looked at without opening it.
const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// For the guest's owner of what it makes. It is no id that all ones stand for.
fn user(raw: Option<u32>) -> Result<Option<Uid>, Refusal> {
    if raw == Some(u32::MAX) { Err(Errno::INVAL.into()) } else { Ok(raw.map(Uid::from_raw)) }
}

fn group(raw: Option<u32>) -> Result<Option<Gid>, Refusal> {
    if raw == Some(u32::MAX) { Err(Errno::INVAL.into()) } else { Ok(raw.map(Gid::from_raw)) }
}

/// Gives a file to somebody, by a descriptor that may be O_PATH.
pub(crate) fn give(fd: &OwnedFd, uid: Option<u32>, gid: Option<u32>) -> Result<(), Refusal> {
    let (uid, gid) = (user(uid)?, group(gid)?);
    if uid.is_some() || gid.is_some() {
        chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

impl Share {
    /// Sets a mode by way of /proc, because a descriptor with O_PATH cannot. The entry leads to the file itself.
    pub(crate) fn set_mode(&self, fd: &OwnedFd, mode: u32) -> Result<(), Refusal> {
        let name = fd.as_raw_fd().to_string();
        let mode = Mode::from_raw_mode(mode & PERMISSIONS);
        Ok(chmodat(&self.descriptors, name.as_str(), mode, AtFlags::empty())?)
    }

    // ---- finding ----

    /// Finds a name, and remembers the file.
    pub(crate) fn find(&mut self, parent: &Inode, name: &Name) -> Result<(u64, Stat), Refusal> {
        let fd = openat(&parent.fd, name.as_c_str(), LOOK, Mode::empty())?;
        let stat = fstat(&fd)?;
        let node = self.inodes.remember(parent.volume, fd, &stat)?;
        Ok((node, stat))
    }

    pub(crate) fn lookup(&mut self, parent: u64, name: &Name, out: &mut Vec<u8>) -> Result<(), Refusal> {
        if parent == ROOT {
            let found = (FIRST..).zip(&self.volumes).find(|(_, volume)| volume.name == *name);
            let (node, _) = found.ok_or(Errno::NOENT)?;
            return self.put_volume(node, out);
        }
        let parent = self.folder(parent)?;
        let (node, stat) = self.find(&parent, name)?;
        self.put_entry(node, parent.volume, &stat, out)
    }

    /// The entry of a volume in the share's root.
    pub(crate) fn put_volume(&self, node: u64, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let inode = self.inode(node)?;
        let stat = fstat(&inode.fd)?;
        self.put_entry(node, inode.volume, &stat, out)
    }

    pub(crate) fn read_link(&self, node: u64, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let inode = self.inode(node)?;
        if inode.kind != FileType::Symlink {
            return Err(Errno::INVAL.into());
        }
        let target = readlinkat(&inode.fd, c"", Vec::new())?;
        out.put_bytes(target.as_bytes());
        Ok(())
    }

    // ---- making ----

    /// Makes something while there is room for its name.
    fn make<T>(
        &mut self,
        volume: usize,
        make: impl FnOnce(&mut Self) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        self.attached_mut(volume)?.grow(NAME)?;
        let made = make(self);
        if made.is_err() {
            self.attached_mut(volume)?.shrink(NAME);
        }
        made
    }

    /// Gives what was just made to its owner and sets its mode. Undoes it if that fails.
    fn finish(
        &mut self,
        header: &Header,
        parent: &Inode,
        name: &Name,
        fd: OwnedFd,
        mode: u32,
    ) -> Result<(u64, Stat), Refusal> {
        let finished = self.own(header, parent, &fd, mode).and_then(|()| {
            let stat = fstat(&fd)?;
            let node = self.inodes.remember(parent.volume, fd, &stat)?;
            Ok((node, stat, FileType::from_raw_mode(stat.st_mode)))
        });
        match finished {
            Ok((node, stat, _)) => Ok((node, stat)),
            Err(refusal) => {
                self.undo(parent, name);
                Err(refusal)
            }
        }
    }

    /// Removes what could not be finished.
    fn undo(&self, parent: &Inode, name: &Name) {
        let removed = match unlinkat(&parent.fd, name.as_c_str(), AtFlags::empty()) {
            Err(Errno::ISDIR) => unlinkat(&parent.fd, name.as_c_str(), AtFlags::REMOVEDIR),
            removed => removed,
        };
        // Whoever asked gets the first error, and the host keeps something empty.
        if let Err(errno) = removed {
            tracing::warn!(%errno, "what could not be finished in a volume cannot be removed");
        }
    }

    fn own(&self, header: &Header, parent: &Inode, fd: &OwnedFd, mode: u32) -> Result<(), Refusal> {
        let owner = self.attached(parent.volume)?.owner;
        let kind = FileType::from_raw_mode(fstat(fd)?.st_mode);
        // The host's kernel has given the group of such a folder to what was made in it.
        let inherits = fstat(&parent.fd)?.st_mode & SET_GROUP != 0;
        let gid = owner.groups().created(header.gid).filter(|_| !inherits);
        give(fd, owner.users().created(header.uid), gid)?;
        match kind {
            FileType::Symlink => Ok(()),
            FileType::Directory if inherits => self.set_mode(fd, mode | SET_GROUP),
            _ => self.set_mode(fd, mode),
        }
    }

    /// A regular file that was not there before, opened.
    fn make_file(
        &mut self,
        header: &Header,
        parent: &Inode,
        name: &Name,
        access: Access,
        mode: u32,
    ) -> Result<(u64, Stat, OwnedFd), Refusal> {
        self.make(parent.volume, |share| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
            let flags = flags | access.flags();
            let file = openat(&parent.fd, name.as_c_str(), flags, Mode::RUSR | Mode::WUSR)?;
            // By way of the open file: the name may be another's by now.
            let number = file.as_raw_fd().to_string();
            let looked =
                openat(&share.descriptors, number.as_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
            let fd = looked.inspect_err(|_| share.undo(parent, name))?;
            let (node, stat) = share.finish(header, parent, name, fd, mode)?;
            Ok((node, stat, file))
        })
    }

    pub(crate) fn create(
        &mut self,
        header: &Header,
        name: &Name,
        flags: u32,
        mode: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let parent = self.folder(header.node)?;
        let access = Access::new(flags)?;
        self.handles.admit()?;
        let (node, stat, file) = match self.make_file(header, &parent, name, access, mode) {
            Err(Refusal { errno: Errno::EXIST, .. }) if flags & O_EXCL == 0 => {
                let (node, _) = self.find(&parent, name)?;
                let inode = self.inode(node)?;
                if inode.kind == FileType::Directory {
                    return Err(Errno::ISDIR.into());
                }
                let file = self.reopen(&inode, access.flags())?;
                if flags & O_TRUNC != 0 && access.write {
                    let before = quota::size(&fstat(&file)?);
                    ftruncate(&file, 0)?;
                    self.attached_mut(parent.volume)?.shrink(before);
                }
                let stat = fstat(&file)?;
                (node, stat, file)
            }
            made => made?,
        };
        let handle = self.add_handle(node, Handle::File { file: File::from(file), writable: access.write });
        self.put_entry(node, parent.volume, &stat, out)?;
        out.put_u64(handle);
        out.put_zeros(8);
        Ok(())
    }

    pub(crate) fn make_folder(
        &mut self,
        header: &Header,
        name: &Name,
        mode: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let parent = self.folder(header.node)?;
        let (node, stat) = self.make(parent.volume, |share| {
            mkdirat(&parent.fd, name.as_c_str(), Mode::RWXU)?;
            let fd = share.look_at_new(&parent, name, FileType::Directory)?;
            share.finish(header, &parent, name, fd, mode)
        })?;
        self.put_entry(node, parent.volume, &stat, out)
    }

    pub(crate) fn make_node(
        &mut self,
        header: &Header,
        name: &Name,
        mode: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let parent = self.folder(header.node)?;
        let kind = FileType::from_raw_mode(mode);
        let (node, stat) = match kind {
            FileType::RegularFile => {
                let access = Access { read: false, write: true };
                let (node, stat, _) = self.make_file(header, &parent, name, access, mode)?;
                (node, stat)
            }
            FileType::Fifo | FileType::Socket => self.make(parent.volume, |share| {
                mknodat(&parent.fd, name.as_c_str(), kind, Mode::RUSR | Mode::WUSR, 0)?;
                let fd = share.look_at_new(&parent, name, kind)?;
                share.finish(header, &parent, name, fd, mode)
            })?,
            FileType::CharacterDevice | FileType::BlockDevice => {
                return Err(Violation::Device.refuse(Errno::PERM));
            }
            _ => return Err(Errno::INVAL.into()),
        };
        self.put_entry(node, parent.volume, &stat, out)
    }

    pub(crate) fn make_link(
        &mut self,
        header: &Header,
        name: &Name,
        target: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let parent = self.folder(header.node)?;
        let (node, stat) = self.make(parent.volume, |share| {
            symlinkat(target, &parent.fd, name.as_c_str())?;
            let fd = share.look_at_new(&parent, name, FileType::Symlink)?;
            share.finish(header, &parent, name, fd, 0)
        })?;
        self.put_entry(node, parent.volume, &stat, out)
    }

    /// Looks at what was made a moment ago. If a host program has put something else there, that is left alone: it must
    /// be of the same kind, belong to this process and have no other name.
    fn look_at_new(&self, parent: &Inode, name: &Name, kind: FileType) -> Result<OwnedFd, Refusal> {
        let fd = openat(&parent.fd, name.as_c_str(), LOOK, Mode::empty())?;
        let stat = fstat(&fd)?;
        let ours = stat.st_uid == rustix::process::geteuid().as_raw();
        let single = kind == FileType::Directory || stat.st_nlink == 1;
        if FileType::from_raw_mode(stat.st_mode) != kind || !ours || !single {
            return Err(Errno::STALE.into());
        }
        Ok(fd)
    }

    pub(crate) fn link(
        &mut self,
        old: u64,
        parent: u64,
        name: &Name,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let parent = self.folder(parent)?;
        let old_inode = self.inode(old)?;
        if old_inode.volume != parent.volume {
            return Err(Violation::Volume.refuse(Errno::XDEV));
        }
        match old_inode.kind {
            FileType::RegularFile | FileType::Symlink | FileType::Fifo | FileType::Socket => {}
            FileType::CharacterDevice | FileType::BlockDevice => {
                return Err(Violation::Device.refuse(Errno::PERM));
            }
            _ => return Err(Errno::PERM.into()),
        }
        let number = old_inode.fd.as_raw_fd().to_string();
        let (node, stat) = self.make(parent.volume, |share| {
            // What is followed is the entry in /proc, which leads to the file itself.
            let flags = AtFlags::SYMLINK_FOLLOW;
            linkat(&share.descriptors, number.as_str(), &parent.fd, name.as_c_str(), flags)?;
            let fd = openat(&share.descriptors, number.as_str(), LOOK & !OFlags::NOFOLLOW, Mode::empty())?;
            let stat = fstat(&fd)?;
            Ok((share.inodes.remember(parent.volume, fd, &stat)?, stat))
        })?;
        self.put_entry(node, parent.volume, &stat, out)
    }

    // ---- moving and removing ----

    /// A file that may be about to lose a name, if somebody has to know.
    fn watch(&self, parent: &Inode, name: &Name) -> Result<Option<(OwnedFd, Stat)>, Refusal> {
        if self.attached(parent.volume)?.quota.is_none() {
            return Ok(None);
        }
        let Ok(fd) = openat(&parent.fd, name.as_c_str(), LOOK, Mode::empty()) else { return Ok(None) };
        let stat = fstat(&fd)?;
        Ok(Some((fd, stat)))
    }

    /// Counts the name that it has lost, and the file as well if it is nowhere any more.
    fn lost(&mut self, volume: usize, watched: Option<(OwnedFd, Stat)>) -> Result<(), Refusal> {
        let Some((fd, before)) = watched else { return Ok(()) };
        let after = fstat(&fd)?;
        let known = self.inodes.knows(volume, &after);
        let volume = self.attached_mut(volume)?;
        if after.st_nlink == 0 && !known {
            volume.shrink(quota::size(&after).saturating_add(NAME));
        } else if after.st_nlink > 0 && after.st_nlink < before.st_nlink {
            volume.shrink(NAME);
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self, parent: u64, name: &Name, folder: bool) -> Result<(), Refusal> {
        let parent = self.folder(parent)?;
        let watched = self.watch(&parent, name)?;
        let flags = if folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        unlinkat(&parent.fd, name.as_c_str(), flags)?;
        self.lost(parent.volume, watched)
    }

    pub(crate) fn rename(
        &mut self,
        parent: u64,
        name: &Name,
        new_parent: u64,
        new_name: &Name,
        flags: u32,
    ) -> Result<(), Refusal> {
        let how = RenameFlags::from_bits_retain(flags);
        if ![RenameFlags::empty(), RenameFlags::NOREPLACE, RenameFlags::EXCHANGE].contains(&how) {
            return Err(Errno::INVAL.into());
        }
        if new_parent == ROOT {
            return Err(Violation::Volume.refuse(Errno::XDEV));
        }
        let (parent, new_parent) = (self.folder(parent)?, self.folder(new_parent)?);
        if parent.volume != new_parent.volume {
            return Err(Violation::Volume.refuse(Errno::XDEV));
        }
        let watched = self.watch(&new_parent, new_name)?;
        renameat_with(parent.fd.as_fd(), name.as_c_str(), new_parent.fd.as_fd(), new_name.as_c_str(), how)?;
        self.lost(new_parent.volume, watched)
    }
}
