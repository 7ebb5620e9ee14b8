//! Writes EROFS images: one read-only file per container image, made in one streaming pass.
//!
//! File contents are written to the output as they arrive, by several writers at once if need be; the tree (names, inodes,
//! attributes) is kept compactly in memory, within a budget; metadata follows the data, and the superblock is written last.
//!
//! ```text
//!  block 0             1 … d             d+1 … m-1             m … end
//! ┌──────────────────┬─────────────────┬─────────────────────┬──────────────────────────────────────────┐
//! │ 1024: superblock │ file contents,  │ full blocks of      │ inodes: 64 bytes, extended attributes,   │
//! │       (128 bytes)│ whole blocks    │ directories         │ then the inline tail of the contents     │
//! └──────────────────┴─────────────────┴─────────────────────┴──────────────────────────────────────────┘
//!                                                             ▲ meta_blkaddr; inode = m * 4096 + nid * 32
//! ```
//!
//! The format is the kernel's (`Documentation/filesystems/erofs.rst`, section "On-disk details", and the structures in
//! `fs/erofs/erofs_fs.h`), of which this uses the plain part, readable by every kernel since 5.4:
//!
//! * blocks of 4096 bytes; superblock with CRC-32C (`SB_CHKSUM`); no incompatible feature;
//! * *extended* inodes only: 64 bits of size, 32 bits of owner and link count, times in nanoseconds;
//! * two data layouts. `FLAT_PLAIN`: all blocks in a row from `raw_blkaddr`. `FLAT_INLINE`: the same for the full
//!   blocks, but the last, partial one (the *tail*) directly behind inode and attributes, in one and the same block. A
//!   tail is inlined whenever it fits; until then tails wait in a scratch file;
//! * attributes inline behind their inode, never shared;
//! * directories as blocks of entries sorted by name bytes: 12 bytes each (nid, name offset, type), then the names.
//!
//! Blocks full of zeros are left as holes of the output file, and what upper layers deleted or replaced is punched out
//! of it: both cost address space (32 bits of blocks, 16 TiB), but no storage. The same holds for what writers took and
//! did not need.
//!
//! Files with the same contents share their blocks: found by a hash that is made while they are written, and compared byte
//! by byte before anything is shared. Their tails stay their own.
//!
//! With one writer of contents, output is a function of the calls made: same input, same bytes. With several at once, the
//! places of contents differ from run to run, and nothing else does: not one byte of the metadata but the block numbers
//! of contents (and, with those, of what follows them).

mod boot;
mod contents;
mod crc32c;
mod dir;
mod format;
mod output;
mod share;
mod space;
mod spool;
mod tree;
mod writer;
mod xattr;

#[cfg(test)]
mod tests;

pub(crate) use boot::boot_disk;
pub(crate) use contents::Contents;
pub(crate) use format::device;
pub(crate) use spool::{Spool, SpoolReader, Spooled};
pub(crate) use tree::{Extent, Ino, Kind, Meta, Node, Tree, TreeError, TreeLimits};
pub(crate) use writer::{Writer, WriterError};
pub(crate) use xattr::Xattrs;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;
/// The longest name of a directory entry.
pub(crate) const NAME_MAX: usize = 255;
