//! What the guest has opened.
//!
//! Invariant: a handle belongs to one file, and is used by requests about that file alone. Whether it may be written to
//! was decided when it was opened, by `guard`.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use rustix::io::Errno;

use crate::violation::{Refusal, Violation};

/// The most handles at a time.
pub(crate) const MAX_HANDLES: usize = 16 << 10;

/// What a handle is of.
#[derive(Debug)]
pub(crate) enum Handle {
    File {
        file: File,
        writable: bool,
    },
    Folder(File),
    /// The share's root, of which the host has nothing.
    Root,
}

/// All handles.
#[derive(Debug)]
pub(crate) struct Handles {
    open: HashMap<u64, (u64, Arc<Handle>)>,
    next: u64,
    limit: usize,
}

fn wrong() -> Refusal {
    Violation::Handle.refuse(Errno::BADF)
}

impl Handles {
    pub(crate) fn new(limit: usize) -> Self {
        Self { open: HashMap::new(), next: 1, limit }
    }

    /// Fails if there are too many already, before anything is opened.
    pub(crate) fn admit(&self) -> Result<(), Refusal> {
        if self.open.len() < self.limit { Ok(()) } else { Err(Violation::Flood.refuse(Errno::NFILE)) }
    }

    /// Whoever adds one has had it admitted.
    pub(crate) fn add(&mut self, node: u64, handle: Handle) -> u64 {
        let number = self.next;
        self.next = self.next.saturating_add(1);
        self.open.insert(number, (node, Arc::new(handle)));
        number
    }

    pub(crate) fn get(&self, node: u64, number: u64) -> Result<Arc<Handle>, Refusal> {
        match self.open.get(&number) {
            Some((owner, handle)) if *owner == node => Ok(Arc::clone(handle)),
            _ => Err(wrong()),
        }
    }

    pub(crate) fn remove(&mut self, node: u64, number: u64) -> Result<(), Refusal> {
        self.get(node, number)?;
        self.open.remove(&number);
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
        self.open.clear();
    }
}

impl Handle {
    pub(crate) fn file(&self) -> Result<&File, Refusal> {
        match self {
            Self::File { file, .. } => Ok(file),
            Self::Folder(_) | Self::Root => Err(wrong()),
        }
    }

    pub(crate) fn writable(&self) -> Result<&File, Refusal> {
        match self {
            Self::File { file, writable: true } => Ok(file),
            Self::File { .. } | Self::Folder(_) | Self::Root => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_of_one_file_only() {
        let mut handles = Handles::new(2);
        let number = handles.add(7, Handle::Root);
        assert!(handles.get(7, number).is_ok());
        assert_eq!(handles.get(8, number).unwrap_err(), wrong());
        assert_eq!(handles.remove(8, number), Err(wrong()));
        assert_eq!(handles.remove(7, number), Ok(()));
        assert_eq!(handles.remove(7, number), Err(wrong()));
    }

    #[test]
    fn there_are_only_so_many() {
        let mut handles = Handles::new(2);
        for _ in 0..2 {
            handles.admit().unwrap();
            handles.add(7, Handle::Root);
        }
        assert_eq!(handles.admit(), Err(Violation::Flood.refuse(Errno::NFILE)));
    }
}
