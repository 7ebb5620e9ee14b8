//! Removes a tree, however deep it is and whoever fills it meanwhile.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

/// Names that are read before any of them is removed.
const BATCH: usize = 256;
/// Folders that are open at the same time. Below that, a tree is moved up before it is gone on with.
const OPEN: usize = 512;

/// Removes a file, a link, or a folder with all that is in it. Links are removed, never followed.
///
/// # Errors
/// When nothing is there, or something of it cannot be removed: what was removed before stays removed.
pub fn remove_tree(folder: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return Ok(other?),
    }
    loop {
        let top = enter(folder, name)?;
        empty(&top)?;
        match unlinkat(folder, name, AtFlags::REMOVEDIR) {
            // Somebody fills it while it is emptied: once more, as long as that goes on.
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            other => return Ok(other?),
        }
    }
}

fn enter(folder: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    openat(folder, name, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Removes everything below a folder, deepest first.
fn empty(top: &OwnedFd) -> io::Result<()> {
    use std::os::fd::AsFd;
    let mut levels: Vec<(OwnedFd, CString)> = Vec::new();
    loop {
        let folder = levels.last().map_or(top.as_fd(), |(folder, _)| folder.as_fd());
        let mut below = None;
        let mut names = some_names(folder)?;
        let was_empty = names.is_empty();
        while let Some(name) = names.pop() {
            match unlinkat(folder, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR) => match unlinkat(folder, &name, AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(Errno::NOTEMPTY | Errno::EXIST) => {
                        below = Some(name);
                        break;
                    }
                    Err(errno) => return Err(errno.into()),
                },
                Err(errno) => return Err(errno.into()),
            }
        }
        match below {
            Some(name) if levels.len() >= OPEN => {
                // So deep that descriptors would run out: what is below comes up to the top, and goes on from there.
                lift(top.as_fd(), folder, &name)?;
            }
            Some(name) => match enter(folder, &name) {
                Ok(entered) => levels.push((entered, name)),
                // Replaced meanwhile.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(errno.into()),
            },
            None if was_empty => {
                let Some((_, name)) = levels.pop() else { return Ok(()) };
                let above = levels.last().map_or(top.as_fd(), |(folder, _)| folder.as_fd());
                match unlinkat(above, &name, AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            None => {}
        }
    }
}

/// Moves a folder to the top under a free name.
fn lift(top: BorrowedFd<'_>, folder: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    for number in 0..=u32::MAX {
        let free = CString::new(format!(".boxlite-lifted-{number}"))?;
        match rustix::fs::renameat_with(folder, name, top, &free, rustix::fs::RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            Err(Errno::NOENT) | Ok(()) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// A batch of the names that a folder has now; none if it is empty.
fn some_names(folder: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
        if names.len() == BATCH {
            break;
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, mkdirat};
    use std::fs;
    use std::os::fd::AsFd;

    #[test]
    fn a_tree_is_removed_and_what_its_links_lead_to_is_not() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("kept")).unwrap();
        fs::write(folder.path().join("kept/file"), "").unwrap();
        fs::create_dir_all(folder.path().join("tree/a/b")).unwrap();
        for name in 0..3 * BATCH {
            fs::write(folder.path().join(format!("tree/a/{name}")), "").unwrap();
        }
        std::os::unix::fs::symlink(folder.path().join("kept"), folder.path().join("tree/a/link")).unwrap();
        let open = fs::File::open(folder.path()).unwrap();
        remove_tree(open.as_fd(), c"tree").unwrap();
        assert!(!folder.path().join("tree").exists() && folder.path().join("kept/file").exists());
        assert_eq!(remove_tree(open.as_fd(), c"tree").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_deep_tree_needs_neither_a_deep_stack_nor_many_descriptors() {
        let folder = tempfile::tempdir().unwrap();
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut level = openat(CWD, folder.path(), flags, Mode::empty()).unwrap();
        for _ in 0..5000 {
            mkdirat(&level, c"d", Mode::RWXU).unwrap();
            mkdirat(&level, c"e", Mode::RWXU).unwrap();
            level = openat(&level, c"d", flags, Mode::empty()).unwrap();
        }
        drop(level);
        let open = fs::File::open(folder.path()).unwrap();
        let small = std::thread::Builder::new().stack_size(256 << 10);
        small.spawn(move || remove_tree(open.as_fd(), c"d")).unwrap().join().unwrap().unwrap();
        let open = fs::File::open(folder.path()).unwrap();
        remove_tree(open.as_fd(), c"e").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
