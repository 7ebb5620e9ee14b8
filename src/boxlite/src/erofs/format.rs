//! The structures on disk, little endian, as byte arrays. Offsets are those of `fs/erofs/erofs_fs.h`.

use super::{BLOCK, crc32c::crc32c};

const MAGIC: u32 = 0xe0f5_e1e2;
/// The superblock carries a checksum.
const COMPAT_SB_CHKSUM: u32 = 1;
/// Timestamps of inodes are modification times.
const COMPAT_MTIME: u32 = 2;

/// Where the superblock begins in block 0.
pub(super) const SUPER_OFFSET: usize = 1024;
/// Bytes of an extended inode.
pub(super) const INODE_SIZE: usize = 64;
/// Inodes begin at multiples of this; a nid counts them from the start of the metadata.
pub(super) const SLOT: usize = 32;

/// What the superblock says.
#[derive(Debug)]
pub(super) struct Super {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    pub(super) meta_block: u32,
    pub(super) uuid: [u8; 16],
}

impl Super {
    /// The whole of block 0.
    pub(super) fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| {
            block[SUPER_OFFSET + at..][..bytes.len()].copy_from_slice(bytes);
        };
        put(0, &MAGIC.to_le_bytes());
        // 4: checksum, below.
        put(8, &(COMPAT_SB_CHKSUM | COMPAT_MTIME).to_le_bytes());
        put(12, &[BLOCK.trailing_zeros().to_le_bytes()[0]]); // blkszbits
        // 13: sb_extslots = 0.
        put(14, &self.root_nid.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        // 24: build_time and build_time_nsec = 0: only compact inodes use them, and output must not vary.
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.meta_block.to_le_bytes());
        // 44: xattr_blkaddr = 0: no shared attributes.
        put(48, &self.uuid);
        // 64: volume_name; 80: feature_incompat = 0; the rest is of features not used.
        let checksum = crc32c(&block[SUPER_OFFSET..]);
        block[SUPER_OFFSET + 4..][..4].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// How an inode's contents are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// All blocks in a row.
    Plain,
    /// Full blocks in a row, the tail behind the inode.
    Inline,
}

/// What an extended inode says.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) layout: Layout,
    /// Size field of the attributes, see `i_xattr_icount`.
    pub(super) xattr_count: u16,
    /// Type and permission bits.
    pub(super) mode: u16,
    pub(super) size: u64,
    /// First block of the contents, or the device number.
    pub(super) place: u32,
    pub(super) ino: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    pub(super) mtime_ns: u32,
    pub(super) links: u32,
}

impl Inode {
    pub(super) fn encode(&self) -> [u8; INODE_SIZE] {
        let layout: u16 = match self.layout {
            Layout::Plain => 0,
            Layout::Inline => 2,
        };
        let mut out = [0; INODE_SIZE];
        let mut put = |at: usize, bytes: &[u8]| out[at..][..bytes.len()].copy_from_slice(bytes);
        put(0, &(1 | (layout << 1)).to_le_bytes()); // bit 0: extended
        put(2, &self.xattr_count.to_le_bytes());
        put(4, &self.mode.to_le_bytes());
        put(8, &self.size.to_le_bytes());
        put(16, &self.place.to_le_bytes());
        put(20, &self.ino.to_le_bytes());
        put(24, &self.uid.to_le_bytes());
        put(28, &self.gid.to_le_bytes());
        put(32, &self.mtime.to_le_bytes());
        put(40, &self.mtime_ns.to_le_bytes());
        put(44, &self.links.to_le_bytes());
        out
    }
}

/// A device number as inodes hold it: the kernel's `new_encode_dev`. `None` when a part has too many bits: 12 for the
/// major, 20 for the minor number.
pub(crate) fn device(major: u64, minor: u64) -> Option<u32> {
    let major = u32::try_from(major).ok().filter(|major| *major < 1 << 12)?;
    let minor = u32::try_from(minor).ok().filter(|minor| *minor < 1 << 20)?;
    Some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_packed_like_the_kernel_does_and_oversized_ones_refused() {
        assert_eq!(device(1, 3), Some(0x0103));
        assert_eq!(device(0xfff, 0xf_ffff), Some(0xffff_ffff));
        assert_eq!(device(8, 0x123), Some(0x0010_0823));
        assert_eq!(device(0x1000, 0), None);
        assert_eq!(device(0, 0x10_0000), None);
        assert_eq!(device(u64::MAX, u64::MAX), None);
    }
}
