//! The files that the guest knows, each by a number and with a descriptor that stays with it.
//!
//! ```text
//!             LOOKUP, CREATE, ...: count 1         FORGET: count to 0, and no handle is open
//!   unknown ─────────────────────────────▶ known ──────────────────────────────────────────▶ gone
//!                                          │   ▲
//!                                          └───┘ LOOKUP: count + 1, OPEN: pinned
//! ```
//!
//! Invariants:
//! * A number is never given out twice, so one that is gone cannot mean another file.
//! * A descriptor is O_PATH. It says which file is meant and opens nothing.
//! * The roots of volumes have the numbers from [`FIRST`] on and are never gone.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::violation::{Refusal, Violation};

/// The number of the first volume's root. The share's own is 1.
pub(crate) const FIRST: u64 = 2;

/// One file of the host.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) fd: OwnedFd,
    /// Which of the volumes it is in.
    pub(crate) volume: usize,
    /// A file never changes its kind.
    pub(crate) kind: FileType,
    key: Key,
}

/// Volume, device and number on the host. The volume is part of it: what two volumes share is read-only in one of them,
/// perhaps.
type Key = (usize, u64, u64);

fn key(volume: usize, stat: &Stat) -> Key {
    (volume, stat.st_dev, stat.st_ino)
}

#[derive(Debug)]
struct Known {
    inode: Arc<Inode>,
    lookups: u64,
    handles: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Inodes {
    known: HashMap<u64, Known>,
    numbers: HashMap<Key, u64>,
    roots: u64,
    next: u64,
    limit: usize,
}

impl Inodes {
    /// With the roots of the volumes, which have been checked.
    pub(crate) fn new(roots: Vec<(OwnedFd, Stat)>, limit: usize) -> Self {
        let mut inodes = Self {
            known: HashMap::new(),
            numbers: HashMap::new(),
            roots: FIRST,
            next: FIRST,
            limit: limit.saturating_add(roots.len()),
        };
        for (volume, (fd, stat)) in roots.into_iter().enumerate() {
            inodes.add(volume, fd, &stat);
        }
        inodes.roots = inodes.next;
        inodes
    }

    fn add(&mut self, volume: usize, fd: OwnedFd, stat: &Stat) -> u64 {
        let number = self.next;
        // It would take centuries to come to the end.
        self.next = self.next.saturating_add(1);
        let key = key(volume, stat);
        let inode = Arc::new(Inode { fd, volume, kind: FileType::from_raw_mode(stat.st_mode), key });
        self.known.insert(number, Known { inode, lookups: 1, handles: 0 });
        self.numbers.insert(key, number);
        number
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Arc<Inode>> {
        self.known.get(&number).map(|known| &known.inode)
    }

    pub(crate) fn knows(&self, volume: usize, stat: &Stat) -> bool {
        self.numbers.contains_key(&key(volume, stat))
    }

    /// Whether the guest knows nothing but the roots.
    pub(crate) fn is_unused(&self) -> bool {
        self.known.keys().all(|number| *number < self.roots)
    }

    /// Whether there is room without a thought. Beyond that, only what the guest asks for by name is remembered.
    pub(crate) fn is_roomy(&self) -> bool {
        self.known.len() < self.limit / 2
    }

    /// The guest learns of a file once more.
    pub(crate) fn remember(&mut self, volume: usize, fd: OwnedFd, stat: &Stat) -> Result<u64, Refusal> {
        if let Some(number) = self.numbers.get(&key(volume, stat))
            && let Some(known) = self.known.get_mut(number)
        {
            known.lookups = known.lookups.saturating_add(1);
            return Ok(*number);
        }
        if self.known.len() >= self.limit {
            return Err(Violation::Flood.refuse(Errno::NFILE));
        }
        Ok(self.add(volume, fd, stat))
    }

    /// The guest forgets a file so many times. Returns it if it is gone.
    pub(crate) fn forget(&mut self, number: u64, lookups: u64) -> Result<Option<Arc<Inode>>, Refusal> {
        let known = self.known.get_mut(&number).ok_or(Violation::Node.refuse(Errno::NOENT))?;
        known.lookups = known.lookups.saturating_sub(lookups);
        Ok(self.collect(number))
    }

    /// A handle of it was opened.
    pub(crate) fn pin(&mut self, number: u64) {
        if let Some(known) = self.known.get_mut(&number) {
            known.handles = known.handles.saturating_add(1);
        }
    }

    /// A handle of it was closed. Returns it if it is gone.
    pub(crate) fn unpin(&mut self, number: u64) -> Option<Arc<Inode>> {
        let known = self.known.get_mut(&number)?;
        known.handles = known.handles.saturating_sub(1);
        self.collect(number)
    }

    fn collect(&mut self, number: u64) -> Option<Arc<Inode>> {
        let known = self.known.get(&number)?;
        if number < self.roots || known.lookups > 0 || known.handles > 0 {
            return None;
        }
        let known = self.known.remove(&number)?;
        self.numbers.remove(&known.inode.key);
        Some(known.inode)
    }

    /// All but the roots are gone, and returned.
    pub(crate) fn clear(&mut self) -> Vec<Arc<Inode>> {
        let roots = self.roots;
        for (_, known) in self.known.iter_mut().filter(|(number, _)| **number < roots) {
            known.handles = 0;
        }
        let gone: Vec<_> = self.known.extract_if(|number, _| *number >= roots).collect();
        gone.into_iter()
            .map(|(_, known)| {
                self.numbers.remove(&known.inode.key);
                known.inode
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;

    use rustix::fs::fstat;

    use super::*;

    fn open(path: &Path) -> (OwnedFd, Stat) {
        let fd = OwnedFd::from(File::open(path).unwrap());
        let stat = fstat(&fd).unwrap();
        (fd, stat)
    }

    #[test]
    fn a_number_is_not_given_out_twice_and_goes_with_its_last_handle() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), "").unwrap();
        let mut inodes = Inodes::new(vec![open(folder.path())], 1);
        let look = |inodes: &mut Inodes| {
            let (fd, stat) = open(&folder.path().join("a"));
            inodes.remember(0, fd, &stat)
        };
        let number = look(&mut inodes).unwrap();
        assert_eq!(look(&mut inodes), Ok(number));
        inodes.pin(number);
        assert!(inodes.forget(number, u64::MAX).unwrap().is_none(), "a handle is open");
        assert!(inodes.unpin(number).is_some());
        assert!(inodes.get(number).is_none());
        assert!(inodes.forget(number, 1).is_err());
        assert_ne!(look(&mut inodes).unwrap(), number);
    }

    #[test]
    fn a_root_stays_and_the_limit_holds() {
        let folder = tempfile::tempdir().unwrap();
        let mut inodes = Inodes::new(vec![open(folder.path())], 0);
        assert!(inodes.forget(FIRST, u64::MAX).unwrap().is_none());
        assert!(inodes.get(FIRST).is_some());
        let (fd, stat) = open(Path::new("/"));
        assert_eq!(inodes.remember(0, fd, &stat), Err(Violation::Flood.refuse(Errno::NFILE)));
        assert!(inodes.clear().is_empty());
        assert!(inodes.get(FIRST).is_some());
    }
}
