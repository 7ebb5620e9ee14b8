//! A share and one session of it: a guest's kernel that has greeted it.
//!
//! ```text
//!            INIT                        DESTROY, another INIT, the transport has ended
//!   silent ────────▶ greeted ──────────────────────────────────────────────────────────▶ silent
//! ```
//!
//! A silent share answers nothing but INIT. Whenever it becomes silent, all files but the roots are forgotten and all
//! handles are closed.
//!
//! Each request passes, in this order: parsing, the session, the guard of read-only volumes, the operation itself.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::handle::{Handle, Handles, MAX_HANDLES};
use crate::inode::{Inode, Inodes};
use crate::request::{Greeting, Header, Operation, is_unanswered};
use crate::violation::{Refusal, Violation, Violations};
use crate::volume::{Attached, Volume};
use crate::wire::{MAJOR, MINOR, OLDEST_MINOR, Put, ROOT, ability};
use crate::{MAX_DATA, MAX_INODES, MAX_VOLUMES, NewError, guard, quota};

/// With this attribute of the root the guest says who its container's user is, as `uid:gid`.
const OWNER: &[u8] = b"user.boxlite.owner";

/// So many descriptors are left for everything else in the process.
const SPARE_DESCRIPTORS: usize = 256;

/// The data of a request and of its reply, wherever the transport has it.
///
/// Files are read and written at an offset, so that the position of a file never matters.
pub(crate) trait Data {
    /// How many bytes of data came with a WRITE.
    fn arrived(&self) -> usize;
    /// How many bytes a reply may have behind its header.
    fn room(&self) -> usize;
    /// Writes `len` bytes that arrived to a file. Returns how many it took.
    fn store(&mut self, file: &File, offset: u64, len: usize) -> io::Result<usize>;
    /// Fills the reply with up to `len` bytes of a file. Returns how many there were.
    fn load(&mut self, file: &File, offset: u64, len: usize) -> io::Result<usize>;
}

/// What is to be said to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing at all.
    Silence,
    /// What is in the buffer.
    Body,
    /// So many bytes that [`Data::load`] has put into the reply.
    Loaded(usize),
    /// That it failed.
    Error(Errno),
}

/// Folders and files of the host for one guest.
#[derive(Debug)]
pub struct Share {
    pub(crate) volumes: Vec<Attached>,
    pub(crate) inodes: Inodes,
    pub(crate) handles: Handles,
    /// The folder /proc/self/fd: what turns a descriptor that opens nothing into one that does.
    pub(crate) descriptors: OwnedFd,
    violations: Arc<Violations>,
    greeted: bool,
}

/// How many descriptors the process may have, after raising the limit as far as it goes.
fn descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current };
    current.and_then(|current| usize::try_from(current).ok()).unwrap_or(usize::MAX)
}

impl Share {
    /// Checks the volumes, and counts what those with a quota hold.
    ///
    /// # Errors
    /// When a volume cannot be shared.
    pub fn new(volumes: Vec<Volume>) -> Result<Self, NewError> {
        if volumes.is_empty() || volumes.len() > MAX_VOLUMES {
            return Err(NewError::Volumes(volumes.len()));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptors = openat(CWD, c"/proc/self/fd", flags, Mode::empty())
            .map_err(|errno| NewError::Proc(errno.into()))?;
        let mut attached: Vec<Attached> = Vec::new();
        let mut roots = Vec::new();
        for volume in volumes {
            let name = volume.name.clone();
            let (volume, root, stat) = Attached::new(volume)?;
            if attached.iter().any(|other| other.name == volume.name) {
                return Err(NewError::Twice(name));
            }
            attached.push(volume);
            roots.push((root, stat));
        }
        let descriptor_limit = descriptor_limit().saturating_sub(SPARE_DESCRIPTORS);
        let handles = MAX_HANDLES.min(descriptor_limit / 5);
        let inodes = MAX_INODES.min(descriptor_limit.saturating_sub(handles));
        Ok(Self {
            volumes: attached,
            inodes: Inodes::new(roots, inodes),
            handles: Handles::new(handles),
            descriptors,
            violations: Arc::default(),
            greeted: false,
        })
    }

    /// What the guest has tried, for whoever wants to know while the share is being served.
    #[must_use]
    pub fn violations(&self) -> Arc<Violations> {
        Arc::clone(&self.violations)
    }

    pub(crate) fn record(&self, trick: Violation) {
        self.violations.record(trick);
    }

    /// The session has ended.
    pub(crate) fn end_session(&mut self) {
        self.greeted = false;
        self.handles.clear();
        for inode in self.inodes.clear() {
            self.settle(&inode);
        }
    }

    /// Answers one request. `fields` is what follows the header, without the data of a WRITE.
    pub(crate) fn answer(
        &mut self,
        header: &Header,
        fields: &[u8],
        data: &mut dyn Data,
        out: &mut Vec<u8>,
    ) -> Answer {
        out.clear();
        let result = Operation::parse(header.opcode, fields)
            .and_then(|operation| self.admit(header, &operation).map(|()| operation))
            .and_then(|operation| self.perform(header, operation, data, out));
        match result {
            Ok(Answer::Body) if out.len() > data.room() => {
                self.record(Violation::Message);
                Answer::Error(Errno::IO)
            }
            Ok(answer) => answer,
            Err(Refusal { errno, trick }) => {
                if let Some(trick) = trick {
                    self.record(trick);
                }
                if is_unanswered(header.opcode) { Answer::Silence } else { Answer::Error(errno) }
            }
        }
    }

    /// Whether the session has begun and the file may be changed, if that is what it is about.
    fn admit(&self, header: &Header, operation: &Operation<'_>) -> Result<(), Refusal> {
        if !self.greeted && !matches!(operation, Operation::Init(_)) {
            return Err(Violation::Message.refuse(Errno::IO));
        }
        if self.is_introduction(header, operation) {
            return Ok(());
        }
        if guard::changes(operation) {
            let read_only = header.node == ROOT || self.attached(self.inode(header.node)?.volume)?.read_only;
            if read_only {
                return Err(Violation::ReadOnly.refuse(Errno::ROFS));
            }
        }
        Ok(())
    }

    /// Whether the guest says who its container's user is: an attribute of the root, which is nobody's file. It may do so
    /// until it knows a file, because from then on it has been told owners. It can only choose which of its own ids is
    /// the caller's.
    fn is_introduction(&self, header: &Header, operation: &Operation<'_>) -> bool {
        let named = matches!(operation, Operation::SetXattr { name, .. } if *name == OWNER);
        named && header.node == ROOT && self.inodes.is_unused()
    }

    fn introduce(&mut self, value: &[u8]) -> Result<(), Refusal> {
        let text = std::str::from_utf8(value).map_err(|_| Errno::INVAL)?;
        let (user, group) = text.split_once(':').ok_or(Errno::INVAL)?;
        let number = |text: &str| text.parse::<u32>().map_err(|_| Errno::INVAL);
        let guest = (number(user)?, number(group)?);
        self.volumes.iter_mut().for_each(|volume| volume.owner.guest = guest);
        Ok(())
    }

    fn perform(
        &mut self,
        header: &Header,
        operation: Operation<'_>,
        data: &mut dyn Data,
        out: &mut Vec<u8>,
    ) -> Result<Answer, Refusal> {
        let node = header.node;
        let done = match operation {
            Operation::Init(greeting) => self.greet(&greeting, out),
            Operation::Destroy => {
                self.end_session();
                Ok(())
            }
            Operation::Interrupt => return Ok(Answer::Silence),
            Operation::Forget { lookups } => {
                self.forget(node, lookups)?;
                return Ok(Answer::Silence);
            }
            Operation::BatchForget { mut list, count } => {
                for _ in 0..count {
                    let forgotten = (list.u64(), list.u64());
                    let (Ok(node), Ok(lookups)) = forgotten else {
                        return Err(Violation::Message.refuse(Errno::INVAL));
                    };
                    self.forget(node, lookups)?;
                }
                return Ok(Answer::Silence);
            }
            Operation::Lookup { name } => self.lookup(node, &name, out),
            Operation::GetAttr { handle } => self.get_attributes(node, handle, out),
            Operation::SetAttr(changes) => self.set_attributes(node, &changes, out),
            Operation::ReadLink => self.read_link(node, out),
            Operation::SymLink { name, target } => self.make_link(header, &name, target, out),
            Operation::MkNod { name, mode } => self.make_node(header, &name, mode, out),
            Operation::MkDir { name, mode } => self.make_folder(header, &name, mode, out),
            Operation::Unlink { name } => self.remove(node, &name, false),
            Operation::RmDir { name } => self.remove(node, &name, true),
            Operation::Rename { name, new_parent, new_name, flags } => {
                self.rename(node, &name, new_parent, &new_name, flags)
            }
            Operation::Link { old, name } => self.link(old, node, &name, out),
            Operation::Create { name, flags, mode } => self.create(header, &name, flags, mode, out),
            Operation::Open { flags } => self.open(node, flags, out),
            Operation::Read(span) => return self.read(node, &span, data).map(Answer::Loaded),
            Operation::Write { span, flags } => self.write(node, &span, flags, data, out),
            Operation::Flush { handle } => self.handles.get(node, handle).map(drop),
            Operation::Release { handle } | Operation::ReleaseDir { handle } => self.release(node, handle),
            Operation::Fsync { handle, flags } => self.sync_file(node, handle, flags),
            Operation::Fallocate { handle, offset, length, mode } => {
                self.allocate(node, handle, (offset, length), mode)
            }
            Operation::Lseek { handle, offset, whence } => self.seek(node, handle, offset, whence, out),
            Operation::StatFs => self.file_system(node, out),
            Operation::SyncFs => self.sync_all(node),
            Operation::SetXattr { name: OWNER, value, .. } if node == ROOT => self.introduce(value),
            Operation::SetXattr { name, value, flags } => self.set_xattr(node, name, value, flags),
            Operation::GetXattr { name, size } => self.get_xattr(node, name, size, out),
            Operation::ListXattr { size } => self.list_xattr(node, size, out),
            Operation::RemoveXattr { name } => self.remove_xattr(node, name),
            Operation::OpenDir => self.open_folder(node, out),
            Operation::ReadDir(span) => self.read_folder(node, &span, false, data.room(), out),
            Operation::ReadDirPlus(span) => self.read_folder(node, &span, true, data.room(), out),
            Operation::FsyncDir { handle, flags } => self.sync_folder(node, handle, flags),
            Operation::CopyFileRange | Operation::Unknown => Err(Errno::NOSYS.into()),
        };
        done.map(|()| Answer::Body)
    }

    fn greet(&mut self, greeting: &Greeting, out: &mut Vec<u8>) -> Result<(), Refusal> {
        self.end_session();
        if greeting.major < MAJOR || (greeting.major == MAJOR && greeting.minor < OLDEST_MINOR) {
            return Err(Errno::PROTO.into());
        }
        let abilities = greeting.abilities
            & (ability::ASYNC_READ
                | ability::BIG_WRITES
                | ability::AUTO_INVAL_DATA
                | ability::DO_READDIRPLUS
                | ability::READDIRPLUS_AUTO
                | ability::ASYNC_DIO
                | ability::PARALLEL_DIROPS
                | ability::MAX_PAGES
                | ability::HANDLE_KILLPRIV_V2);
        let max_data = u32::try_from(MAX_DATA).map_err(|_| Errno::OVERFLOW)?;
        out.put_u32(MAJOR);
        out.put_u32(MINOR.min(greeting.minor));
        out.put_u32(greeting.max_readahead.max(max_data));
        out.put_u32(abilities);
        // Requests at a time in the background, and how many of them are too many to start another.
        out.put_u16(64);
        out.put_u16(48);
        out.put_u32(max_data);
        // Times are exact to a nanosecond.
        out.put_u32(1);
        // Pages of one request.
        out.put_u16(256);
        out.put_zeros(34);
        // One of a newer protocol says INIT once more, as this one would.
        self.greeted = greeting.major == MAJOR;
        Ok(())
    }

    // ---- files that the guest knows ----

    pub(crate) fn inode(&self, node: u64) -> Result<Arc<Inode>, Refusal> {
        if node == ROOT {
            return Err(Errno::INVAL.into());
        }
        self.inodes.get(node).cloned().ok_or(Violation::Node.refuse(Errno::NOENT))
    }

    /// The same, which must be a folder.
    pub(crate) fn folder(&self, node: u64) -> Result<Arc<Inode>, Refusal> {
        let inode = self.inode(node)?;
        if inode.kind == FileType::Directory { Ok(inode) } else { Err(Errno::NOTDIR.into()) }
    }

    pub(crate) fn attached(&self, volume: usize) -> Result<&Attached, Refusal> {
        self.volumes.get(volume).ok_or(Errno::IO.into())
    }

    pub(crate) fn attached_mut(&mut self, volume: usize) -> Result<&mut Attached, Refusal> {
        self.volumes.get_mut(volume).ok_or(Errno::IO.into())
    }

    fn forget(&mut self, node: u64, lookups: u64) -> Result<(), Refusal> {
        if node != ROOT
            && let Some(inode) = self.inodes.forget(node, lookups)?
        {
            self.settle(&inode);
        }
        Ok(())
    }

    /// A file that the guest no longer knows: if it has no name either, it no longer counts.
    fn settle(&mut self, inode: &Inode) {
        if let Some(volume) = self.volumes.get_mut(inode.volume)
            && volume.quota.is_some()
            && let Ok(stat) = fstat(&inode.fd)
            && stat.st_nlink == 0
        {
            volume.shrink(quota::size(&stat).saturating_add(quota::NAME));
        }
    }

    /// Opens a file that is known.
    ///
    /// Invariant: what is opened is a regular file or a folder. Its kind is asked of the descriptor that is then opened,
    /// and a file never changes its kind. So the entry in /proc leads to this very file, and opening it waits for nobody
    /// and sets nothing off, as it may with a FIFO or a device.
    pub(crate) fn reopen(&self, inode: &Inode, flags: OFlags) -> Result<OwnedFd, Refusal> {
        let stat = fstat(&inode.fd)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::Directory => {}
            FileType::Symlink => return Err(Violation::Special.refuse(Errno::LOOP)),
            _ => return Err(Violation::Special.refuse(Errno::NXIO)),
        }
        let name = inode.fd.as_raw_fd().to_string();
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        Ok(openat(&self.descriptors, name.as_str(), flags, Mode::empty())?)
    }

    // ---- handles ----

    /// Whoever adds one has had it admitted.
    pub(crate) fn add_handle(&mut self, node: u64, handle: Handle) -> u64 {
        self.inodes.pin(node);
        self.handles.add(node, handle)
    }

    fn release(&mut self, node: u64, handle: u64) -> Result<(), Refusal> {
        self.handles.remove(node, handle)?;
        if let Some(inode) = self.inodes.unpin(node) {
            self.settle(&inode);
        }
        Ok(())
    }
}
