//! What a copy tells of itself.

/// How far a copy has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Content of files, without holes.
    pub bytes: u64,
    /// Files, folders and everything else that has a name.
    pub entries: u64,
}

/// What a copy did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Content of files, without holes.
    pub bytes: u64,
    /// Files, folders and everything else that has a name.
    pub entries: u64,
    /// Files that were cut short while they were read. The rest of their announced size is zeros.
    pub shrunk: u64,
    /// What is not part of the copy.
    pub skipped: Skipped,
}

/// How much of what was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Sockets: no stream can carry one.
    pub sockets: u64,
    /// Device nodes, unless they were asked for.
    pub devices: u64,
    /// Extended attributes that the file system does not take or give.
    pub xattrs: u64,
    /// What went away, or became something else, after its folder had been read.
    pub vanished: u64,
}

impl Summary {
    pub(crate) fn progress(&self) -> Progress {
        Progress { bytes: self.bytes, entries: self.entries }
    }
}
