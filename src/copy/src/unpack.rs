//! Makes a tree out of a tar stream, below one folder.
//!
//! ```text
//!   entry ─▶ name taken apart ─▶ its folder, reached component by component ─▶ made under a name of its own ─▶ renamed
//! ```
//!
//! What holds, whatever the stream says and whoever changes the tree meanwhile:
//!
//! * A folder is entered from its parent, which is open, by one component and without following a link. `..` is no
//!   component. So every folder that is entered lies below the first.
//! * Nothing is written through a name: files, links and FIFOs are made under a new name and renamed. A file that cannot
//!   be replaced because something is mounted on it is written in place, if it is a regular file and no link.
//! * Whatever is made and does not get its name is removed again.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, XattrFlags, chownat,
    fchmod, fchown, fsetxattr, fstat, ftruncate, futimens, linkat, mkdirat, mknodat, openat, renameat_with,
    statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use crate::BUFFER;
use crate::direct::Direct;
use crate::name::{self, BadName, Escaped};
use crate::root::{Renaming, Root};
use crate::source::Kind;
use crate::stream::{Entries, Entry, StreamError, Type};
use crate::summary::{Progress, Summary};
use crate::temporary::Temporary;

/// Runs of zeros of this length become holes.
const HOLE: usize = 4096;

/// From this length on a file is large, in bytes.
const LARGE: u64 = 8 << 20;

/// Whose the files will be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// Of whoever unpacks.
    #[default]
    Caller,
    /// As the stream says.
    Keep,
    /// User and group.
    Fixed(u32, u32),
}

/// How to unpack.
#[derive(Clone, Copy, Debug)]
pub struct UnpackOptions {
    /// Whose the files will be.
    pub owner: Owner,
    /// What is there is replaced; otherwise it is an error.
    pub overwrite: bool,
    /// Extended attributes `user.*`; with `special_bits` also `security.capability`.
    pub keep_xattrs: bool,
    /// Set-user-id and set-group-id bits of files. Without, an unpacked program has no more rights than whoever runs it.
    pub special_bits: bool,
    /// What the one who sends the stream has said that it is: then it has to be that, and a single entry unless it is a
    /// folder. `None`: whatever comes.
    pub kind: Option<Kind>,
    /// Large files are written around the page cache, where the file system can do that.
    pub direct: bool,
    /// The most entries.
    pub max_entries: u64,
    /// The most content, in bytes.
    pub max_bytes: u64,
}

impl Default for UnpackOptions {
    fn default() -> Self {
        Self {
            owner: Owner::Caller,
            overwrite: true,
            keep_xattrs: true,
            special_bits: false,
            kind: None,
            direct: false,
            max_entries: u64::MAX,
            max_bytes: u64::MAX,
        }
    }
}

/// Why a stream was not unpacked, or not to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The stream is not understood, or ends too early.
    #[error("the archive cannot be read")]
    Stream(#[from] StreamError),
    /// The stream has a name that could leave the destination.
    #[error("the archive has an entry {name}, which is refused: {why}")]
    Name {
        /// The name.
        name: Escaped,
        /// What is wrong with it.
        why: BadName,
    },
    /// On the way to an entry is something that is no folder: a link, most likely.
    #[error("the archive has an entry {0} that lies below something that is no folder")]
    NoFolder(Escaped),
    /// A hard link to something that is no file below the destination.
    #[error("the archive has a hard link {0} to something that is no file of the destination")]
    Link(Escaped),
    /// A device node.
    #[error("the archive has a device node {0}, which is refused")]
    Device(Escaped),
    /// It is not what it was said to be.
    #[error("the archive is not what it was said to be")]
    Announced,
    /// Something is in the way.
    #[error("{0} is there already")]
    Exists(Escaped),
    /// A folder is in the way of something else, or the reverse.
    #[error("{0} is there already, and of another kind")]
    Kind(Escaped),
    /// There is more in it than it may have.
    #[error("the archive has more than {0} {1}")]
    Limit(u64, &'static str),
    /// The system would not.
    #[error("cannot {what} {path}")]
    Write {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: Escaped,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// An open folder on the way to the current entry.
struct Open {
    /// Length of its path.
    path: usize,
    folder: OwnedFd,
    /// What is set when it is left: filling a folder changes its times, and its mode may forbid it.
    attributes: Option<Attributes>,
}

#[derive(Clone, Copy)]
struct Attributes {
    mode: u32,
    mtime: (i64, u32),
}

struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    options: UnpackOptions,
    summary: Summary,
    /// The folders on the way to the last entry, and their path.
    open: Vec<Open>,
    path: Vec<u8>,
    buffer: Vec<u8>,
    progress: &'a mut dyn FnMut(Progress),
}

/// Unpacks a stream below `folder`; its first entry under the name that `root` says.
///
/// # Errors
/// At the first entry that is refused or cannot be made. What was made before stays; a file has all of its content, or
/// what it had.
pub fn unpack(
    folder: BorrowedFd<'_>,
    root: &Root,
    options: UnpackOptions,
    input: &mut dyn io::Read,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, UnpackError> {
    let refused = |name: &[u8], why| UnpackError::Name { name: Escaped::new(name), why };
    let root_name = match root {
        Root::Named(name) => name.as_bytes(),
        Root::Contents => b"",
    };
    let mut renaming = Renaming::new(root).map_err(|why| refused(root_name, why))?;
    let mut entries = Entries::new(input);
    let mut unpacker = Unpacker {
        root: folder,
        options,
        summary: Summary::default(),
        open: Vec::new(),
        path: Vec::new(),
        buffer: vec![0; BUFFER],
        progress,
    };
    while let Some(mut entry) = entries.next()? {
        if unpacker.summary.entries >= options.max_entries {
            return Err(UnpackError::Limit(options.max_entries, "entries"));
        }
        if let Some(kind) = options.kind
            && !fits(kind, entry.kind, unpacker.summary.entries)
        {
            return Err(UnpackError::Announced);
        }
        entry.path = renaming.apply(&entry.path).map_err(|why| refused(&entry.path, why))?;
        if entry.kind == Type::HardLink {
            entry.link = renaming.apply(&entry.link).map_err(|why| refused(&entry.link, why))?;
        }
        unpacker.entry(&entry, &mut entries)?;
        unpacker.summary.entries += 1;
        (unpacker.progress)(unpacker.summary.progress());
    }
    unpacker.leave(0)?;
    // What cannot be packed, a socket for one, comes as nothing.
    if unpacker.summary.entries == 0 && !matches!(options.kind, None | Some(Kind::Other)) {
        return Err(UnpackError::Announced);
    }
    Ok(unpacker.summary)
}

/// Whether such an entry may come in this place of a stream that was said to be this.
fn fits(kind: Kind, entry: Type, place: u64) -> bool {
    match (kind, place) {
        (Kind::Folder, 1..) => true,
        (_, 1..) => false,
        (Kind::File, _) => entry == Type::File,
        (Kind::Folder, _) => entry == Type::Folder,
        (Kind::Symlink, _) => entry == Type::Symlink,
        (Kind::Other, _) => matches!(entry, Type::Fifo | Type::Device),
    }
}

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Unpacker<'_> {
    fn failed(&self, what: &'static str, path: &[u8], error: impl Into<io::Error>) -> UnpackError {
        UnpackError::Write { what, path: Escaped::new(path), source: error.into() }
    }

    fn entry(&mut self, entry: &Entry, entries: &mut Entries<'_>) -> Result<(), UnpackError> {
        // The folder itself: it is there, and stays as it is.
        if entry.path.is_empty() {
            return if entry.kind == Type::Folder {
                Ok(())
            } else {
                Err(UnpackError::Kind(Escaped::new(b".")))
            };
        }
        let (parent, name) = name::split(&entry.path);
        self.enter(parent)?;
        let name =
            CString::new(name).map_err(|error| self.failed("make", &entry.path, io::Error::other(error)))?;
        match entry.kind {
            Type::Folder => self.folder(entry, &name),
            Type::File => self.file(entry, &name, entries),
            Type::Symlink => self.symlink(entry, &name),
            Type::HardLink => self.hard_link(entry, &name),
            Type::Fifo => self.fifo(entry, &name),
            Type::Device => Err(UnpackError::Device(Escaped::new(&entry.path))),
        }
    }

    fn parent(&self) -> BorrowedFd<'_> {
        self.open.last().map_or(self.root, |open| open.folder.as_fd())
    }

    /// Leaves folders until so many are open.
    fn leave(&mut self, depth: usize) -> Result<(), UnpackError> {
        while self.open.len() > depth {
            let Some(open) = self.open.pop() else { break };
            if let Some(Attributes { mode, mtime }) = open.attributes {
                let path = self.path.get(..open.path).unwrap_or_default();
                fchmod(&open.folder, Mode::from_raw_mode(mode))
                    .map_err(|errno| self.failed("set the mode of", path, errno))?;
                futimens(&open.folder, &times(mtime))
                    .map_err(|errno| self.failed("set the time of", path, errno))?;
            }
        }
        self.path.truncate(self.open.last().map_or(0, |open| open.path));
        Ok(())
    }

    /// Opens the folders on the way; those that are missing are made.
    fn enter(&mut self, folder: &[u8]) -> Result<(), UnpackError> {
        let shared = self.open.iter().take_while(|open| {
            let path = self.path.get(..open.path).unwrap_or_default();
            name::is_in(folder, path)
        });
        let shared = shared.count();
        self.leave(shared)?;
        let rest = folder.get(self.path.len()..).unwrap_or_default();
        let parts: Vec<&[u8]> = rest.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
        for part in parts {
            let name =
                CString::new(part).map_err(|error| self.failed("enter", folder, io::Error::other(error)))?;
            let opened = match openat(self.parent(), &name, FOLDER, Mode::empty()) {
                Err(Errno::NOENT) => {
                    mkdirat(self.parent(), &name, Mode::from_raw_mode(0o755))
                        .map_err(|errno| self.failed("make the folder", folder, errno))?;
                    let made = openat(self.parent(), &name, FOLDER, Mode::empty());
                    if let (Ok(made), Owner::Fixed(uid, gid)) = (&made, self.options.owner) {
                        own(made.as_fd(), uid, gid)
                            .map_err(|errno| self.failed("give away", folder, errno))?;
                    }
                    made
                }
                opened => opened,
            };
            let opened = opened.map_err(|errno| match errno {
                Errno::NOTDIR | Errno::LOOP => UnpackError::NoFolder(Escaped::new(folder)),
                errno => self.failed("enter", folder, errno),
            })?;
            name::join(&mut self.path, part);
            self.open.push(Open { path: self.path.len(), folder: opened, attributes: None });
        }
        Ok(())
    }

    fn folder(&mut self, entry: &Entry, name: &CString) -> Result<(), UnpackError> {
        let path = &entry.path;
        match mkdirat(self.parent(), name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(self.failed("make the folder", path, errno)),
        }
        let opened = openat(self.parent(), name, FOLDER, Mode::empty()).map_err(|errno| match errno {
            Errno::NOTDIR | Errno::LOOP => UnpackError::Kind(Escaped::new(path)),
            errno => self.failed("enter", path, errno),
        })?;
        if let Some((uid, gid)) = self.owner(entry) {
            own(opened.as_fd(), uid, gid).map_err(|errno| self.failed("give away", path, errno))?;
        }
        self.xattrs(opened.as_fd(), entry)?;
        let mode = entry.mode & if self.options.special_bits { 0o7777 } else { 0o1777 };
        self.path.clone_from(path);
        let attributes = Some(Attributes { mode, mtime: entry.mtime });
        self.open.push(Open { path: path.len(), folder: opened, attributes });
        Ok(())
    }

    fn owner(&self, entry: &Entry) -> Option<(u32, u32)> {
        match self.options.owner {
            Owner::Caller => None,
            Owner::Keep => Some((entry.uid, entry.gid)),
            Owner::Fixed(uid, gid) => Some((uid, gid)),
        }
    }

    fn xattrs(&mut self, file: BorrowedFd<'_>, entry: &Entry) -> Result<(), UnpackError> {
        for (name, value) in &entry.xattrs {
            let wanted = self.options.keep_xattrs
                && (name.starts_with(b"user.")
                    || (self.options.special_bits && name == b"security.capability"));
            if !wanted {
                self.summary.skipped.xattrs += 1;
                continue;
            }
            match fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => self.summary.skipped.xattrs += 1,
                Err(errno) => return Err(self.failed("set an attribute of", &entry.path, errno)),
            }
        }
        Ok(())
    }

    fn file(&mut self, entry: &Entry, name: &CString, entries: &mut Entries<'_>) -> Result<(), UnpackError> {
        let parent =
            self.parent().try_clone_to_owned().map_err(|error| self.failed("make", &entry.path, error))?;
        let (temporary, mut file) =
            Temporary::file(parent.as_fd()).map_err(|errno| self.failed("make", &entry.path, errno))?;
        self.content(entry, entries, &mut file)?;
        if let Some((uid, gid)) = self.owner(entry) {
            own(file.as_fd(), uid, gid).map_err(|errno| self.failed("give away", &entry.path, errno))?;
        }
        let mode = entry.mode & if self.options.special_bits { 0o7777 } else { 0o777 };
        fchmod(&file, Mode::from_raw_mode(mode))
            .map_err(|errno| self.failed("set the mode of", &entry.path, errno))?;
        self.xattrs(file.as_fd(), entry)?;
        futimens(&file, &times(entry.mtime))
            .map_err(|errno| self.failed("set the time of", &entry.path, errno))?;
        match self.publish(temporary, parent.as_fd(), entry, name) {
            Err(Some(Errno::BUSY)) => self.write_through(&mut file, parent.as_fd(), entry, name),
            other => other.map_err(|errno| self.in_the_way(entry, errno)),
        }
    }

    /// Gives what was made its name. `None`: something is there that is to stay.
    fn publish(
        &self,
        temporary: Temporary<'_>,
        parent: BorrowedFd<'_>,
        entry: &Entry,
        name: &CString,
    ) -> Result<(), Option<Errno>> {
        let flags = if self.options.overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match renameat_with(parent, temporary.name(), parent, name, flags) {
            Ok(()) => {
                // Two names of one file are not renamed onto each other: then the new one is too many.
                if entry.kind != Type::HardLink {
                    temporary.keep();
                }
                Ok(())
            }
            Err(Errno::EXIST) if !self.options.overwrite => Err(None),
            Err(errno) => Err(Some(errno)),
        }
    }

    fn in_the_way(&self, entry: &Entry, errno: Option<Errno>) -> UnpackError {
        match errno {
            None => UnpackError::Exists(Escaped::new(&entry.path)),
            Some(Errno::ISDIR | Errno::NOTDIR | Errno::EXIST | Errno::NOTEMPTY) => {
                UnpackError::Kind(Escaped::new(&entry.path))
            }
            Some(errno) => self.failed("make", &entry.path, errno),
        }
    }

    /// Writes the content of a new file into one on which something is mounted.
    fn write_through(
        &self,
        file: &mut File,
        parent: BorrowedFd<'_>,
        entry: &Entry,
        name: &CString,
    ) -> Result<(), UnpackError> {
        let failed = |error: io::Error| self.failed("write", &entry.path, error);
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let there = openat(parent, name, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        let stat = fstat(&there).map_err(|errno| failed(errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(UnpackError::Kind(Escaped::new(&entry.path)));
        }
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut there = File::from(there);
        ftruncate(&there, 0).map_err(|errno| failed(errno.into()))?;
        io::copy(file, &mut there).map(drop).map_err(failed)
    }

    fn content(
        &mut self,
        entry: &Entry,
        entries: &mut Entries<'_>,
        file: &mut File,
    ) -> Result<(), UnpackError> {
        let left = self.options.max_bytes.saturating_sub(self.summary.bytes);
        if entries.left() > left {
            return Err(UnpackError::Limit(self.options.max_bytes, "bytes"));
        }
        if self.options.direct
            && entry.sparse.is_none()
            && entries.left() >= LARGE
            && let Some(direct) =
                Direct::begin(file).map_err(|error| self.failed("write", &entry.path, error))?
        {
            return self.large(entry, entries, file, direct);
        }
        let whole = [crate::sparse::Extent { offset: 0, length: entries.left() }];
        let (extents, size) = match &entry.sparse {
            Some(map) => (map.extents(), map.size()),
            None => (&whole[..], entries.left()),
        };
        // Told to the file at the end, unless the last bytes are written.
        let mut end = 0;
        for extent in extents {
            let (mut at, mut left) = (extent.offset, extent.length);
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
                let count = fill(entries, &mut self.buffer[..most])?;
                let bytes = &self.buffer[..count];
                if !is_hole(bytes) {
                    let written = if at == end { Ok(at) } else { file.seek(SeekFrom::Start(at)) };
                    let written = written.and_then(|_| file.write_all(bytes));
                    written.map_err(|error| self.failed("write", &entry.path, error))?;
                    end = at + count as u64;
                }
                at += count as u64;
                left -= count as u64;
                self.summary.bytes += count as u64;
                (self.progress)(self.summary.progress());
            }
        }
        if end != size {
            ftruncate(&*file, size).map_err(|errno| self.failed("write", &entry.path, errno))?;
        }
        Ok(())
    }

    /// Writes the content of a large file that has no map of its holes.
    fn large(
        &mut self,
        entry: &Entry,
        entries: &mut Entries<'_>,
        file: &File,
        mut direct: Direct,
    ) -> Result<(), UnpackError> {
        let (mut at, size) = (0, entries.left());
        while at < size {
            let written = direct.write(at, |buffer| {
                let most = usize::try_from(size - at).unwrap_or(usize::MAX).min(buffer.len());
                let count = fill(entries, &mut buffer[..most])?;
                Ok::<_, StreamError>((count, !is_hole(&buffer[..count])))
            });
            let count = written.map_err(|error| self.failed("write", &entry.path, error))??;
            at += count as u64;
            self.summary.bytes += count as u64;
            (self.progress)(self.summary.progress());
        }
        direct.finish().map_err(|error| self.failed("write", &entry.path, error))?;
        // The last bytes may be a hole.
        ftruncate(file, size).map_err(|errno| self.failed("write", &entry.path, errno))
    }

    fn symlink(&mut self, entry: &Entry, name: &CString) -> Result<(), UnpackError> {
        let target = CString::new(entry.link.as_slice());
        let target =
            target.map_err(|error| self.failed("make the link", &entry.path, io::Error::other(error)))?;
        let parent = self.parent();
        let made = Temporary::other(parent, |name| symlinkat(&target, parent, name));
        let temporary = made.map_err(|errno| self.failed("make the link", &entry.path, errno))?;
        self.finish(temporary, parent, entry, name)
    }

    fn fifo(&mut self, entry: &Entry, name: &CString) -> Result<(), UnpackError> {
        let parent = self.parent();
        // Its mode is set where it is made: later that would be through a name.
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let made = Temporary::other(parent, |name| mknodat(parent, name, FileType::Fifo, mode, 0));
        let temporary = made.map_err(|errno| self.failed("make the FIFO", &entry.path, errno))?;
        self.finish(temporary, parent, entry, name)
    }

    /// Owner, time and name of what has no content.
    fn finish(
        &self,
        temporary: Temporary<'_>,
        parent: BorrowedFd<'_>,
        entry: &Entry,
        name: &CString,
    ) -> Result<(), UnpackError> {
        if let Some((uid, gid)) = self.owner(entry) {
            chownat(
                parent,
                temporary.name(),
                Some(Uid::from_raw(uid)),
                Some(Gid::from_raw(gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .map_err(|errno| self.failed("give away", &entry.path, errno))?;
        }
        utimensat(parent, temporary.name(), &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| self.failed("set the time of", &entry.path, errno))?;
        self.publish(temporary, parent, entry, name).map_err(|errno| self.in_the_way(entry, errno))
    }

    fn hard_link(&mut self, entry: &Entry, name: &CString) -> Result<(), UnpackError> {
        let no_file = || UnpackError::Link(Escaped::new(&entry.path));
        let (folder, file) = name::split(&entry.link);
        let file = CString::new(file).map_err(|_| no_file())?;
        let mut at =
            self.root.try_clone_to_owned().map_err(|error| self.failed("link", &entry.path, error))?;
        for part in folder.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            let part = CString::new(part).map_err(|_| no_file())?;
            at = openat(&at, &part, FOLDER, Mode::empty()).map_err(|_| no_file())?;
        }
        let stat = statat(&at, &file, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| no_file())?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(no_file());
        }
        let parent = self.parent();
        // What may have taken the file's place since is linked as itself, and never what it leads to.
        let made = Temporary::other(parent, |name| linkat(&at, &file, parent, name, AtFlags::empty()));
        let temporary = made.map_err(|errno| self.failed("link", &entry.path, errno))?;
        self.publish(temporary, parent, entry, name).map_err(|errno| self.in_the_way(entry, errno))
    }
}

fn is_hole(bytes: &[u8]) -> bool {
    bytes.len() >= HOLE && bytes.iter().all(|byte| *byte == 0)
}

/// Reads until the buffer is full or the content at its end.
fn fill(entries: &mut Entries<'_>, buffer: &mut [u8]) -> Result<usize, StreamError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match entries.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    if filled == 0 { Err(StreamError::Truncated) } else { Ok(filled) }
}

fn own(file: BorrowedFd<'_>, uid: u32, gid: u32) -> rustix::io::Result<()> {
    fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.min(999_999_999).into() };
    Timestamps { last_access: time, last_modification: time }
}
