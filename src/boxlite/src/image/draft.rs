//! What a layer does to an image, in the order of its entries, without the contents of its files: written while the layer
//! is converted, read back once all layers beneath it have been applied.
//!
//! It waits in the scratch file, so any number of layers may wait. Nothing here is hostile any more but the names.

use std::io::{self, Read};

use crate::erofs::{Extent, Meta, Spool, SpoolReader, Spooled, Xattrs};

/// What happens at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Dir,
    File(Extent),
    HardLink,
    Symlink,
    Char(u32),
    Block(u32),
    Fifo,
    Whiteout,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) change: Change,
    /// As it stands in the archive.
    pub(super) path: Vec<u8>,
    /// Of links.
    pub(super) target: Vec<u8>,
    pub(super) meta: Meta,
    pub(super) xattrs: Xattrs,
}

/// Bytes of a step in front of path, target and attributes.
const FIXED: usize = 1 + 2 + 4 + 4 + 8 + 4 + 3 * 4 + Extent::ENCODED;

/// Writes steps.
#[derive(Debug)]
pub(super) struct Draft {
    spool: Spool,
    step: Vec<u8>,
}

impl Draft {
    pub(super) fn new(spool: Spool) -> Self {
        Self { spool, step: Vec::new() }
    }

    /// Appends a step; how many bytes that took.
    pub(super) fn push(&mut self, step: &Step) -> io::Result<u64> {
        let out = &mut self.step;
        out.clear();
        let mut body = [0; Extent::ENCODED];
        let kind = match step.change {
            Change::Dir => 0,
            Change::File(extent) => {
                body = extent.encode();
                1
            }
            Change::HardLink => 2,
            Change::Symlink => 3,
            Change::Char(device) => {
                body[..4].copy_from_slice(&device.to_le_bytes());
                4
            }
            Change::Block(device) => {
                body[..4].copy_from_slice(&device.to_le_bytes());
                5
            }
            Change::Fifo => 6,
            Change::Whiteout => 7,
        };
        out.push(kind);
        out.extend_from_slice(&step.meta.mode.to_le_bytes());
        out.extend_from_slice(&step.meta.uid.to_le_bytes());
        out.extend_from_slice(&step.meta.gid.to_le_bytes());
        out.extend_from_slice(&step.meta.mtime.to_le_bytes());
        out.extend_from_slice(&step.meta.mtime_ns.to_le_bytes());
        let parts = [step.path.as_slice(), &step.target, step.xattrs.bytes()];
        for part in parts {
            let length = u32::try_from(part.len()).map_err(io::Error::other)?;
            out.extend_from_slice(&length.to_le_bytes());
        }
        out.extend_from_slice(&body);
        debug_assert_eq!(out.len(), FIXED);
        for part in parts {
            out.extend_from_slice(part);
        }
        self.spool.write(out)?;
        Ok(out.len() as u64)
    }

    pub(super) fn finish(self) -> io::Result<Finished> {
        Ok(Finished(self.spool.finish()?))
    }
}

/// All steps of a layer.
#[derive(Debug)]
pub(super) struct Finished(Spooled);

impl Finished {
    pub(super) fn into_steps(self) -> Steps {
        Steps(self.0.into_reader())
    }
}

/// Reads steps.
#[derive(Debug)]
pub(super) struct Steps(SpoolReader);

impl Steps {
    /// The next step, or nothing at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Step>> {
        let mut fixed = [0; FIXED];
        if self.0.read(&mut fixed[..1])? == 0 {
            return Ok(None);
        }
        self.0.read_exact(&mut fixed[1..])?;
        let mut rest = fixed.as_slice();
        let [kind] = take(&mut rest);
        let meta = Meta {
            mode: u16::from_le_bytes(take(&mut rest)),
            uid: u32::from_le_bytes(take(&mut rest)),
            gid: u32::from_le_bytes(take(&mut rest)),
            mtime: i64::from_le_bytes(take(&mut rest)),
            mtime_ns: u32::from_le_bytes(take(&mut rest)),
        };
        let lengths = [(); 3].map(|()| u32::from_le_bytes(take(&mut rest)) as usize);
        let body: [u8; Extent::ENCODED] = take(&mut rest);
        let device = u32::from_le_bytes(take(&mut body.as_slice()));
        let change = match kind {
            0 => Change::Dir,
            1 => Change::File(Extent::decode(&body)),
            2 => Change::HardLink,
            3 => Change::Symlink,
            4 => Change::Char(device),
            5 => Change::Block(device),
            6 => Change::Fifo,
            7 => Change::Whiteout,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "the scratch file has changed")),
        };
        let mut part = |length: usize| {
            let mut bytes = vec![0; length];
            self.0.read_exact(&mut bytes).map(|()| bytes)
        };
        let [path, target, xattrs] = lengths;
        Ok(Some(Step {
            change,
            path: part(path)?,
            target: part(target)?,
            meta,
            xattrs: Xattrs::of_bytes(part(xattrs)?),
        }))
    }
}

/// The next bytes of a step's fixed part.
fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (taken, rest) = bytes.split_first_chunk().expect("the fixed part has all fixed fields");
    *bytes = rest;
    *taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erofs::{TreeLimits, Writer};

    #[test]
    fn steps_are_read_back_as_they_were_written() {
        let file = || tempfile::tempfile().unwrap();
        let writer = Writer::new(file(), file(), TreeLimits { entries: 1, memory: 1 });
        let mut contents = writer.contents();
        let value = vec![b'v'; 60_000];
        let xattrs = Xattrs::new([(b"user.x".as_slice(), value.as_slice())]).unwrap();
        contents.begin(5000, &xattrs).unwrap();
        contents.append(&[1; 5000]).unwrap();
        let extent = contents.end().unwrap();
        let changes = [
            Change::Dir,
            Change::File(extent),
            Change::HardLink,
            Change::Symlink,
            Change::Char(1),
            Change::Block(u32::MAX),
            Change::Fifo,
            Change::Whiteout,
        ];
        let step = |n: usize, change: &Change| Step {
            change: *change,
            path: vec![b'p'; n * 500],
            target: vec![b't'; n * 400],
            meta: Meta { mode: 0o7777, uid: u32::MAX, gid: 1, mtime: -1, mtime_ns: 999_999_999 },
            xattrs: if n.is_multiple_of(2) { xattrs.clone() } else { Xattrs::default() },
        };
        let mut draft = Draft::new(contents.spool());
        let mut bytes = 0;
        // More than a chunk of the scratch file, and two drafts in turns.
        let mut other = Draft::new(contents.spool());
        for (n, change) in changes.iter().enumerate() {
            bytes += draft.push(&step(n, change)).unwrap();
            other.push(&step(n + 1, change)).unwrap();
        }
        assert!(bytes > 240_000);
        for (first, draft) in [(0, draft), (1, other)] {
            let mut steps = draft.finish().unwrap().into_steps();
            for (n, change) in (first..).zip(&changes) {
                assert!(steps.next().unwrap() == Some(step(n, change)), "{change:?}");
            }
            assert_eq!(steps.next().unwrap(), None);
        }
        let empty = Draft::new(contents.spool()).finish().unwrap();
        assert_eq!(empty.into_steps().next().unwrap(), None);
    }
}
