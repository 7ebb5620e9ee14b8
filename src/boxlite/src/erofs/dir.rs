//! Directory contents: entries sorted by name bytes and packed into blocks, each block on its own:
//!
//! ```text
//! nid u64, name offset u16, type u8, 0 │ … one per entry │ names, one behind the other │ zeros
//! ```
//!
//! The first name offset tells how many entries a block has. The last block ends with its last name.

use super::BLOCK;

/// Bytes of an entry without its name.
const ENTRY: usize = 12;

/// One entry of a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) file_type: u8,
}

/// How entries fall into blocks.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Packing {
    blocks: u64,
    used: usize,
}

impl Packing {
    /// Adds an entry; true when it begins a new block.
    pub(super) fn add(&mut self, name: usize) -> bool {
        let full = self.used + ENTRY + name > BLOCK;
        if full {
            self.blocks += 1;
            self.used = 0;
        }
        self.used += ENTRY + name;
        full
    }

    /// Full blocks and the bytes of the last, partial one.
    pub(super) fn finish(self) -> (u64, usize) {
        if self.used == BLOCK { (self.blocks + 1, 0) } else { (self.blocks, self.used) }
    }
}

/// Appends one block's entries to `out`, without padding at its end.
pub(super) fn encode(entries: &[Entry<'_>], out: &mut Vec<u8>) {
    let mut offset = entries.len() * ENTRY;
    for entry in entries {
        out.extend_from_slice(&entry.nid.to_le_bytes());
        let at = u16::try_from(offset).expect("entries of one block have offsets within it");
        out.extend_from_slice(&at.to_le_bytes());
        out.extend_from_slice(&[entry.file_type, 0]);
        offset += entry.name.len();
    }
    for entry in entries {
        out.extend_from_slice(entry.name);
    }
    debug_assert!(offset <= BLOCK);
}
