//! How much a volume may hold.
//!
//! ```text
//!   used = sum of the sizes of regular files + 4 KiB for each name
//! ```
//!
//! Files are counted by their size, not by what they occupy, so that a hole cannot be filled beyond the quota later. A
//! file without a name still counts while the guest knows it: it occupies the disk for as long. Names count so that
//! empty files, links and folders are bounded as well.
//!
//! It is counted once when the share is made and then kept. What the host adds meanwhile is counted the next time.
//!
//! A guest that asks for more gets ENOSPC, as from a full disk. Programs expect it, unlike EDQUOT, and STATFS says the
//! same: the quota is the size of the file system.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::io::Errno;

/// What each name counts.
pub(crate) const NAME: u64 = 4096;

/// Folders within folders that are counted. One descriptor is open for each.
const MAX_DEPTH: usize = 512;

/// See the module.
#[derive(Debug)]
pub(crate) struct Quota {
    pub(crate) limit: u64,
    pub(crate) used: u64,
}

impl Quota {
    /// Counts what is there.
    pub(crate) fn count(root: BorrowedFd<'_>, limit: u64) -> Result<Self, Errno> {
        Ok(Self { limit, used: count(root)? })
    }

    /// Takes room for so many more bytes.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), Errno> {
        let used = self.used.saturating_add(bytes);
        // What does not grow always fits, even if the host has filled the volume beyond its quota.
        if bytes > 0 && used > self.limit {
            return Err(Errno::NOSPC);
        }
        self.used = used;
        Ok(())
    }

    pub(crate) fn shrink(&mut self, bytes: u64) {
        self.used = self.used.saturating_sub(bytes);
    }

    pub(crate) fn free(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

/// The size that counts.
pub(crate) fn size(stat: &rustix::fs::Stat) -> u64 {
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
        u64::try_from(stat.st_size).unwrap_or(0)
    } else {
        0
    }
}

/// Goes through one file system, depth first, and follows no link.
fn count(root: BorrowedFd<'_>) -> Result<u64, Errno> {
    let stat = fstat(root)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(size(&stat).saturating_add(NAME));
    }
    let device = stat.st_dev;
    let folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut open = vec![Dir::new(openat(root, c".", folder, Mode::empty())?)?];
    let mut linked = HashSet::new();
    let mut used = NAME;
    while let Some(current) = open.last_mut() {
        let Some(entry) = current.read() else {
            open.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let parent = current.fd()?;
        let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // It was removed meanwhile.
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        if stat.st_dev != device {
            continue;
        }
        used = used.saturating_add(NAME);
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let below = match openat(parent.as_fd(), name, folder, Mode::empty()) {
                Ok(below) => below,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(errno) => return Err(errno),
            };
            if open.len() >= MAX_DEPTH {
                return Err(Errno::NAMETOOLONG);
            }
            open.push(Dir::new(below)?);
        } else if stat.st_nlink < 2 || linked.insert(stat.st_ino) {
            used = used.saturating_add(size(&stat));
        }
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn sizes_and_names_count_and_links_count_once() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("a")).unwrap();
        fs::write(at("a/b"), [0; 1000]).unwrap();
        fs::hard_link(at("a/b"), at("c")).unwrap();
        symlink("/", at("d")).unwrap();
        let file = fs::File::open(folder.path()).unwrap();
        let quota = Quota::count(file.as_fd(), 1 << 20).unwrap();
        assert_eq!(quota.used, 1000 + 5 * NAME);
    }

    #[test]
    fn a_full_volume_does_not_grow_but_shrinks() {
        let mut quota = Quota { limit: 100, used: 90 };
        assert_eq!(quota.grow(11), Err(Errno::NOSPC));
        assert_eq!(quota.grow(10), Ok(()));
        assert_eq!((quota.grow(0), quota.free()), (Ok(()), 0));
        assert_eq!(quota.grow(u64::MAX), Err(Errno::NOSPC));
        quota.shrink(1000);
        assert_eq!(quota.used, 0);
    }
}
