//! One entry of a folder, or the entries of one: look, make, remove, rename.
//!
//! A path is resolved once, to the folder that holds its last component; from there on everything happens relative to
//! that open folder and without following links, so that whoever changes the tree meanwhile cannot redirect it.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use boxlite_portal::v1::{FileInfo, FileKind};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, readlinkat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};

use super::error::{FileError, Kind};
use super::path::BoxPath;

/// Entries in one message of a listing.
pub const BATCH: usize = 256;
const FOLDER: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_CLOEXEC);

/// What is known of a path.
///
/// # Errors
/// When nothing is there, or it cannot be looked at.
pub fn stat(path: &BoxPath, follow: bool) -> Result<FileInfo, FileError> {
    let failed = |errno: Errno| FileError::system("look at", path.as_bytes(), &errno.into());
    let Ok((parent, name)) = path.split() else {
        let folder = open_folder(path.as_path()).map_err(failed)?;
        return info(&folder, c".", b"/").map_err(failed);
    };
    let parent = open_parent(parent).map_err(failed)?;
    let wanted = to_c(name)?;
    let info = info(&parent, &wanted, name.as_bytes()).map_err(failed)?;
    let slash = path.as_bytes().ends_with(b"/");
    if info.kind() == FileKind::Symlink && (follow || slash) {
        let stat = fstatat(&parent, wanted.as_c_str(), AtFlags::empty()).map_err(failed)?;
        if slash && kind(&stat) != FileKind::Folder {
            return Err(failed(Errno::ENOTDIR));
        }
        return Ok(describe(&stat, name.as_bytes(), Vec::new()));
    }
    if slash && info.kind() != FileKind::Folder {
        return Err(failed(Errno::ENOTDIR));
    }
    Ok(info)
}

/// Gives the entries of a folder to `each`, in batches, until it says that it wants no more.
///
/// # Errors
/// When it is no folder, or cannot be read.
pub fn list(path: &BoxPath, mut each: impl FnMut(Vec<FileInfo>) -> bool) -> Result<(), FileError> {
    let failed = |errno: Errno| FileError::system("list", path.as_bytes(), &errno.into());
    let folder = open_folder(path.as_path()).map_err(failed)?;
    let again = folder.try_clone().map_err(|error| FileError::system("list", path.as_bytes(), &error))?;
    let mut entries = Dir::from_fd(again).map_err(failed)?;
    let mut batch = Vec::new();
    for entry in entries.iter() {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match info(&folder, name, name.to_bytes()) {
            Ok(info) => batch.push(info),
            // Removed since it was read.
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(failed(errno)),
        }
        if batch.len() == BATCH && !each(std::mem::take(&mut batch)) {
            return Ok(());
        }
    }
    if !batch.is_empty() {
        each(batch);
    }
    Ok(())
}

/// Makes a folder that belongs to `owner`; with `parents` also those above it that are missing.
///
/// # Errors
/// When something is there (unless it is a folder and `parents` was asked for), or it cannot be made.
pub fn make_folder(path: &BoxPath, parents: bool, mode: u32, owner: (u32, u32)) -> Result<(), FileError> {
    let mut missing = Vec::new();
    let mut at = path.as_path();
    loop {
        match at.try_exists() {
            Ok(true) if !missing.is_empty() => break,
            Ok(true) if at.file_name().is_none() => {
                let exists = Errno::EEXIST;
                return if parents { Ok(()) } else { Err(failed_to_make(path, exists)) };
            }
            _ => {}
        }
        let Some((parent, name)) = at.parent().zip(at.file_name()) else {
            return Err(path.split().err().unwrap_or_else(|| failed_to_make(path, Errno::EINVAL)));
        };
        missing.push(name);
        at = parent;
        if !parents {
            break;
        }
    }
    let failed = |errno| failed_to_make(path, errno);
    let mut folder = open_parent(at).map_err(failed)?;
    while let Some(name) = missing.pop() {
        let name = to_c(name)?;
        let last = missing.is_empty();
        let wanted = Mode::from_bits_truncate(if last { mode } else { 0o755 });
        match mkdirat(&folder, name.as_c_str(), Mode::S_IRWXU) {
            Ok(()) => {
                let made = openat(&folder, name.as_c_str(), FOLDER | OFlag::O_NOFOLLOW, Mode::empty());
                folder = made.map_err(failed)?;
                fchown(&folder, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))
                    .map_err(failed)?;
                fchmod(&folder, wanted).map_err(failed)?;
            }
            // It may be a link to a folder, which is as good.
            Err(Errno::EEXIST) if parents => {
                folder = openat(&folder, name.as_c_str(), OFlag::O_PATH | FOLDER, Mode::empty())
                    .map_err(failed)?;
            }
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(())
}

fn failed_to_make(path: &BoxPath, errno: Errno) -> FileError {
    FileError::system("make the folder", path.as_bytes(), &errno.into())
}

/// Removes a file, a link, an empty folder, or with `recursive` a folder with all that is in it.
///
/// # Errors
/// When nothing is there, or something of it cannot be removed: what was removed before stays removed.
pub fn remove(path: &BoxPath, recursive: bool) -> Result<(), FileError> {
    let failed = |errno: Errno| FileError::system("remove", path.as_bytes(), &errno.into());
    let (parent, name) = path.split()?;
    let parent = open_parent(parent).map_err(failed)?;
    let name = to_c(name)?;
    if recursive {
        return boxlite_copy::remove_tree(parent.as_fd(), &name).map_err(system("remove", path));
    }
    match unlinkat(&parent, name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => unlinkat(&parent, name.as_c_str(), UnlinkatFlags::RemoveDir).map_err(failed),
        other => other.map_err(failed),
    }
}

/// Gives something another name, in place of what has that name unless `keep_existing`.
///
/// # Errors
/// When it is not there, the new name is in the way, or the system would not.
pub fn rename(from: &BoxPath, to: &BoxPath, keep_existing: bool) -> Result<(), FileError> {
    let failed = |path: &BoxPath, errno: Errno| FileError::system("rename", path.as_bytes(), &errno.into());
    let ((old_parent, old), (new_parent, new)) = (from.split()?, to.split()?);
    let old_parent = open_parent(old_parent).map_err(|errno| failed(from, errno))?;
    let new_parent = open_parent(new_parent).map_err(|errno| failed(to, errno))?;
    let flags = if keep_existing { RenameFlags::RENAME_NOREPLACE } else { RenameFlags::empty() };
    let (old, new) = (to_c(old)?, to_c(new)?);
    renameat2(&old_parent, old.as_c_str(), &new_parent, new.as_c_str(), flags)
        .map_err(|errno| failed(if errno == Errno::EEXIST { to } else { from }, errno))
}

/// Opens a folder to read it; the path may lead through links.
fn open_folder(path: &Path) -> nix::Result<OwnedFd> {
    nix::fcntl::open(path, FOLDER, Mode::empty())
}

/// Opens a folder to go on from it.
fn open_parent(path: &Path) -> nix::Result<OwnedFd> {
    nix::fcntl::open(path, OFlag::O_PATH | FOLDER, Mode::empty())
}

fn to_c(name: &OsStr) -> Result<CString, FileError> {
    CString::new(name.as_bytes()).map_err(|_| FileError::new(Kind::Invalid, "a name contains a zero byte"))
}

/// What is known of an entry, itself and not what it may lead to.
fn info(folder: impl AsFd, name: &CStr, shown: &[u8]) -> nix::Result<FileInfo> {
    let stat = fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let target = match kind(&stat) {
        FileKind::Symlink => readlinkat(&folder, name)?.into_vec(),
        _ => Vec::new(),
    };
    Ok(describe(&stat, shown, target))
}

fn kind(stat: &FileStat) -> FileKind {
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => FileKind::File,
        SFlag::S_IFDIR => FileKind::Folder,
        SFlag::S_IFLNK => FileKind::Symlink,
        _ => FileKind::Special,
    }
}

fn describe(stat: &FileStat, name: &[u8], link_target: Vec<u8>) -> FileInfo {
    FileInfo {
        name: name.to_vec(),
        kind: kind(stat).into(),
        size: u64::try_from(stat.st_size).unwrap_or_default(),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified_seconds: stat.st_mtime,
        modified_nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
        link_target,
    }
}

/// What the system says as an error of a file, for those who work on open files.
pub fn system(attempt: &str, path: &BoxPath) -> impl Fn(io::Error) -> FileError {
    move |error| FileError::system(attempt, path.as_bytes(), &error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn at(folder: &tempfile::TempDir, name: &str) -> BoxPath {
        BoxPath::new(folder.path().join(name).into_os_string().into_vec()).unwrap()
    }

    fn me() -> (u32, u32) {
        (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
    }

    fn names(path: &BoxPath) -> Vec<String> {
        let mut all = Vec::new();
        list(path, |batch| {
            all.extend(batch.into_iter().map(|info| String::from_utf8(info.name).unwrap()));
            true
        })
        .unwrap();
        all.sort();
        all
    }

    #[test]
    fn a_link_is_shown_as_itself_unless_it_is_to_be_followed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "12345").unwrap();
        symlink("file", folder.path().join("link")).unwrap();
        let link = stat(&at(&folder, "link"), false).unwrap();
        assert_eq!((link.kind(), link.link_target.as_slice()), (FileKind::Symlink, &b"file"[..]));
        let file = stat(&at(&folder, "link"), true).unwrap();
        assert_eq!((file.kind(), file.size, file.name.as_slice()), (FileKind::File, 5, &b"link"[..]));
        assert_eq!(stat(&at(&folder, "file/"), false).unwrap_err().kind, Kind::WrongKind);
        assert_eq!(stat(&at(&folder, "none"), false).unwrap_err().kind, Kind::NotFound);
        assert_eq!(stat(&BoxPath::new(b"/".to_vec()).unwrap(), false).unwrap().kind(), FileKind::Folder);
    }

    #[test]
    fn a_large_folder_is_listed_in_batches_and_completely() {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..2 * BATCH + 3 {
            fs::write(folder.path().join(format!("{i:04}")), "").unwrap();
        }
        let all = names(&at(&folder, ""));
        assert_eq!((all.len(), all.last().unwrap().as_str()), (2 * BATCH + 3, "0514"));
        let mut batches = 0;
        list(&at(&folder, ""), |_| {
            batches += 1;
            false
        })
        .unwrap();
        assert_eq!(batches, 1, "who wants no more gets no more");
        assert_eq!(list(&at(&folder, "0000"), |_| true).unwrap_err().kind, Kind::WrongKind);
    }

    #[test]
    fn folders_are_made_with_their_parents_if_asked() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(make_folder(&at(&folder, "a/b"), false, 0o700, me()).unwrap_err().kind, Kind::NotFound);
        make_folder(&at(&folder, "a/b/c"), true, 0o2700, me()).unwrap();
        make_folder(&at(&folder, "a/b/c"), true, 0o700, me()).unwrap();
        let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("a"), mode("a/b/c")), (0o755, 0o2700));
        assert_eq!(fs::metadata(folder.path().join("a")).unwrap().uid(), me().0);
        assert_eq!(make_folder(&at(&folder, "a"), false, 0o700, me()).unwrap_err().kind, Kind::AlreadyExists);
        symlink("a", folder.path().join("link")).unwrap();
        make_folder(&at(&folder, "link/d"), true, 0o700, me()).unwrap();
        assert!(folder.path().join("a/d").is_dir());
        fs::write(folder.path().join("file"), "").unwrap();
        assert_eq!(make_folder(&at(&folder, "file/x"), true, 0o700, me()).unwrap_err().kind, Kind::WrongKind);
        make_folder(&BoxPath::new(b"/".to_vec()).unwrap(), true, 0o700, me()).unwrap();
    }

    #[test]
    fn a_tree_is_removed_and_what_its_links_lead_to_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "").unwrap();
        fs::create_dir_all(folder.path().join("tree/a/b/c")).unwrap();
        for name in ["tree/x", "tree/a/y", "tree/a/b/c/z"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        symlink(&kept, folder.path().join("tree/a/link")).unwrap();
        assert_eq!(remove(&at(&folder, "tree"), false).unwrap_err().kind, Kind::WrongKind);
        remove(&at(&folder, "tree"), true).unwrap();
        assert_eq!(names(&at(&folder, "")), ["kept"]);
        assert!(kept.join("file").exists());
        symlink(&kept, folder.path().join("link")).unwrap();
        remove(&at(&folder, "link"), true).unwrap();
        assert!(kept.join("file").exists());
        assert_eq!(remove(&at(&folder, "none"), true).unwrap_err().kind, Kind::NotFound);
        assert_eq!(remove(&BoxPath::new(b"/".to_vec()).unwrap(), true).unwrap_err().kind, Kind::Invalid);
    }

    #[test]
    fn renaming_replaces_only_what_may_be_replaced() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "a").unwrap();
        fs::write(folder.path().join("b"), "b").unwrap();
        let kept = rename(&at(&folder, "a"), &at(&folder, "b"), true).unwrap_err();
        assert_eq!(kept.kind, Kind::AlreadyExists);
        assert!(kept.message.contains("/b: "), "{kept}");
        rename(&at(&folder, "a"), &at(&folder, "b"), false).unwrap();
        assert_eq!(fs::read(folder.path().join("b")).unwrap(), b"a");
        assert_eq!(rename(&at(&folder, "a"), &at(&folder, "c"), false).unwrap_err().kind, Kind::NotFound);
    }
}
