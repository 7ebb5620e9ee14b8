//! The content of one file: read in a piece, or replaced as a whole.
//!
//! ```text
//!   new content ──▶ draft under a name of its own, same folder ──▶ owner, mode ──▶ renamed over the file
//!                        └── failure, or a host that goes away: removed
//! ```

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};

use super::entry::system;
use super::error::{FileError, Kind};
use super::path::BoxPath;

/// How often another name is tried for a draft.
const NAMES: u32 = 16;

/// Opens a file to read it, from an offset on. Gives how many bytes there are to read, as far as that is known.
///
/// # Errors
/// When it is not there, or no regular file.
pub fn open(path: &BoxPath, offset: u64, length: u64) -> Result<(File, u64), FileError> {
    let failed = system("read", path);
    // Opening a FIFO would wait for its writer.
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file =
        nix::fcntl::open(path.as_path(), flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    let mut file = File::from(file);
    let meta = file.metadata().map_err(&failed)?;
    if !meta.is_file() {
        let code = if meta.is_dir() { libc::EISDIR } else { libc::EINVAL };
        let mut error = failed(io::Error::from_raw_os_error(code));
        error.kind = Kind::WrongKind;
        return Err(error);
    }
    if offset > 0 {
        file.seek(SeekFrom::Start(offset)).map_err(&failed)?;
    }
    let rest = meta.len().saturating_sub(offset);
    Ok((file, if length == 0 { rest } else { rest.min(length) }))
}

/// How a file is to be written.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Permission bits; 0: those of the file that is replaced, else 0644.
    pub mode: u32,
    /// Who owns a new file.
    pub owner: (u32, u32),
    /// Something that is there is an error.
    pub keep_existing: bool,
}

/// New content that is not yet the file's. Dropped, it disappears.
#[derive(Debug)]
pub struct Draft {
    folder: OwnedFd,
    name: CString,
    /// `None` once it has been renamed or removed.
    draft: Option<CString>,
    file: File,
    how: How,
    path: BoxPath,
}

impl Draft {
    /// Begins to write a file; a link is followed to what it leads to.
    ///
    /// # Errors
    /// When the folder is not there, something that must stay is in the way, or nothing can be made.
    pub fn begin(path: &BoxPath, how: How) -> Result<Self, FileError> {
        let failed = |errno: Errno| system("write", path)(errno.into());
        let target = resolve(path)?;
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(failed(Errno::EISDIR));
        };
        let folder =
            nix::fcntl::open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(failed)?;
        let name = CString::new(name.as_bytes()).map_err(|_| failed(Errno::EINVAL))?;
        match fstatat(&folder, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(failed(errno)),
            Ok(_) if how.keep_existing => return Err(failed(Errno::EEXIST)),
            Ok(stat) if stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits() => {}
            Ok(_) => {
                let shown = path.as_bytes().escape_ascii();
                return Err(FileError::new(Kind::WrongKind, format!("cannot write {shown}: it is no file")));
            }
        }
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        for _ in 0..NAMES {
            let draft = draft_name().map_err(system("write", path))?;
            match openat(&folder, draft.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR) {
                Ok(file) => {
                    let (draft, file) = (Some(draft), File::from(file));
                    return Ok(Self { folder, name, draft, file, how, path: path.clone() });
                }
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Err(failed(Errno::EEXIST))
    }

    /// Makes what was written the content of the file.
    ///
    /// # Errors
    /// When owner or mode cannot be set, or something that must stay is in the way now.
    pub fn commit(mut self) -> Result<(), FileError> {
        let path = self.path.clone();
        let failed = |errno: Errno| system("write", &path)(errno.into());
        let Some(draft) = self.draft.clone() else { return Ok(()) };
        let regular = |stat: &libc::stat| stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits();
        let before =
            fstatat(&self.folder, self.name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW).ok().filter(regular);
        let owner = before.map_or(self.how.owner, |stat| (stat.st_uid, stat.st_gid));
        let mode = match (self.how.mode, before) {
            (0, Some(stat)) => stat.st_mode & 0o7777,
            (0, None) => 0o644,
            (mode, _) => mode & 0o7777,
        };
        fchown(&self.file, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1))).map_err(failed)?;
        fchmod(&self.file, Mode::from_bits_truncate(mode)).map_err(failed)?;
        let flags = if self.how.keep_existing { RenameFlags::RENAME_NOREPLACE } else { RenameFlags::empty() };
        match renameat2(&self.folder, draft.as_c_str(), &self.folder, self.name.as_c_str(), flags) {
            Ok(()) => {
                self.draft = None;
                Ok(())
            }
            // Something is mounted there: a file that is a volume, say. It cannot be replaced, only written.
            Err(Errno::EBUSY) => self.write_through(),
            Err(errno) => Err(failed(errno)),
        }
    }

    fn write_through(&mut self) -> Result<(), FileError> {
        let path = self.path.clone();
        let failed = system("write", &path);
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let target = openat(&self.folder, self.name.as_c_str(), flags, Mode::empty());
        let mut target = File::from(target.map_err(|errno| failed(errno.into()))?);
        if !target.metadata().map_err(&failed)?.is_file() {
            return Err(failed(io::Error::from_raw_os_error(libc::EINVAL)));
        }
        self.file.seek(SeekFrom::Start(0)).map_err(&failed)?;
        target.set_len(0).map_err(&failed)?;
        io::copy(&mut self.file, &mut target).map_err(&failed)?;
        Ok(())
    }
}

impl Write for Draft {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.file.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(draft) = self.draft.take()
            && let Err(errno) = unlinkat(&self.folder, draft.as_c_str(), UnlinkatFlags::NoRemoveDir)
        {
            crate::console::line(format_args!("cannot remove {draft:?}: {errno}"));
        }
    }
}

/// Opens a file to write behind its end; a new one belongs to `how.owner`.
///
/// # Errors
/// When it cannot be opened, or is no regular file.
pub fn append(path: &BoxPath, how: How) -> Result<File, FileError> {
    let failed = |errno: Errno| system("write", path)(errno.into());
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let target = resolve(path)?;
    let mode = if how.mode == 0 { 0o644 } else { how.mode & 0o7777 };
    let new = flags | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
    match nix::fcntl::open(&target, new, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(file) => {
            fchown(&file, Some(Uid::from_raw(how.owner.0)), Some(Gid::from_raw(how.owner.1)))
                .map_err(failed)?;
            fchmod(&file, Mode::from_bits_truncate(mode)).map_err(failed)?;
            Ok(file.into())
        }
        Err(Errno::EEXIST) if !how.keep_existing => {
            let file = nix::fcntl::open(&target, flags | OFlag::O_NOFOLLOW, Mode::empty()).map_err(failed)?;
            let stat = fstat(&file).map_err(failed)?;
            if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
                return Err(failed(Errno::EINVAL));
            }
            Ok(file.into())
        }
        Err(errno) => Err(failed(errno)),
    }
}

/// Where a path leads. What does not exist yet stays as it is named.
fn resolve(path: &BoxPath) -> Result<PathBuf, FileError> {
    let named = path.as_path();
    if path.as_bytes().ends_with(b"/") {
        return Err(system("write", path)(io::Error::from_raw_os_error(libc::EISDIR)));
    }
    match named.canonicalize() {
        Ok(real) => Ok(real),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let link = named.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
            if link { Err(system("write", path)(error)) } else { Ok(named.to_owned()) }
        }
        Err(error) => Err(system("write", path)(error)),
    }
}

/// A name that nobody can have guessed. The container's own /dev may lie.
fn draft_name() -> io::Result<CString> {
    let mut random = [0_u8; 8];
    // SAFETY: the kernel writes at most as many bytes as the array has.
    let filled = unsafe { libc::getrandom(random.as_mut_ptr().cast(), random.len(), 0) };
    if usize::try_from(filled) != Ok(random.len()) {
        return Err(io::Error::last_os_error());
    }
    let name = format!(".boxlite-{:016x}", u64::from_ne_bytes(random));
    CString::new(name).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn at(folder: &tempfile::TempDir, name: &str) -> BoxPath {
        BoxPath::new(folder.path().join(name).into_os_string().into_vec()).unwrap()
    }

    fn how() -> How {
        let owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        How { mode: 0, owner, keep_existing: false }
    }

    fn names(folder: &tempfile::TempDir) -> Vec<String> {
        let entries = fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_draft_becomes_the_file_or_disappears() {
        let folder = tempfile::tempdir().unwrap();
        let mut draft = Draft::begin(&at(&folder, "f"), how()).unwrap();
        draft.write_all(b"half").unwrap();
        assert!(!names(&folder).contains(&"f".to_owned()));
        drop(draft);
        assert!(names(&folder).is_empty());
        let mut draft = Draft::begin(&at(&folder, "f"), how()).unwrap();
        draft.write_all(b"whole").unwrap();
        draft.commit().unwrap();
        assert_eq!(names(&folder), ["f"]);
        assert_eq!(fs::read(folder.path().join("f")).unwrap(), b"whole");
        assert_eq!(fs::metadata(folder.path().join("f")).unwrap().mode() & 0o7777, 0o644);
    }

    #[test]
    fn a_file_that_is_replaced_keeps_its_mode_and_its_link() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f");
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o741)).unwrap();
        symlink("f", folder.path().join("link")).unwrap();
        let mut draft = Draft::begin(&at(&folder, "link"), how()).unwrap();
        draft.write_all(b"new").unwrap();
        draft.commit().unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o741);
        assert!(fs::symlink_metadata(folder.path().join("link")).unwrap().is_symlink());
    }

    #[test]
    fn what_must_stay_stays_and_what_is_no_file_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("f"), "old").unwrap();
        let keep = How { keep_existing: true, ..how() };
        assert_eq!(Draft::begin(&at(&folder, "f"), keep).unwrap_err().kind, Kind::AlreadyExists);
        let draft = Draft::begin(&at(&folder, "g"), keep).unwrap();
        fs::write(folder.path().join("g"), "first").unwrap();
        assert_eq!(draft.commit().unwrap_err().kind, Kind::AlreadyExists);
        assert_eq!(fs::read(folder.path().join("g")).unwrap(), b"first");
        fs::create_dir(folder.path().join("d")).unwrap();
        symlink("nowhere", folder.path().join("dangling")).unwrap();
        nix::unistd::mkfifo(&folder.path().join("fifo"), Mode::S_IRWXU).unwrap();
        for (name, kind) in [
            ("d", Kind::WrongKind),
            ("d/", Kind::WrongKind),
            ("fifo", Kind::WrongKind),
            ("none/x", Kind::NotFound),
            ("dangling", Kind::NotFound),
        ] {
            assert_eq!(Draft::begin(&at(&folder, name), how()).unwrap_err().kind, kind, "{name}");
        }
        assert_eq!(append(&at(&folder, "fifo"), how()).unwrap_err().kind, Kind::Other);
        assert_eq!(names(&folder), ["d", "dangling", "f", "fifo", "g"]);
    }

    #[test]
    fn appending_goes_behind_the_end_and_makes_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        append(&at(&folder, "f"), how()).unwrap().write_all(b"one").unwrap();
        append(&at(&folder, "f"), how()).unwrap().write_all(b"two").unwrap();
        assert_eq!(fs::read(folder.path().join("f")).unwrap(), b"onetwo");
    }

    #[test]
    fn a_piece_of_a_file_is_read_and_nothing_but_files() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("f"), "0123456789").unwrap();
        let (mut file, rest) = open(&at(&folder, "f"), 4, 3).unwrap();
        let mut piece = [0; 3];
        file.read_exact(&mut piece).unwrap();
        assert_eq!((&piece, rest), (b"456", 3));
        assert_eq!(open(&at(&folder, "f"), 4, 0).unwrap().1, 6);
        assert_eq!(open(&at(&folder, "f"), 40, 0).unwrap().1, 0);
        nix::unistd::mkfifo(&folder.path().join("fifo"), Mode::S_IRWXU).unwrap();
        for name in ["fifo", ""] {
            assert_eq!(open(&at(&folder, name), 0, 0).unwrap_err().kind, Kind::WrongKind, "{name}");
        }
    }
}
