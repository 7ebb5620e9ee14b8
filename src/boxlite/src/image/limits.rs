//! What an image may cost before it is refused.

use serde::Deserialize;

/// Limits on what is read from an archive or a registry. The defaults let all images pass that people run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Limits {
    /// Layers of an image.
    pub layers: usize,
    /// Entries of all layers together, with whiteouts and folders that are only implied.
    pub entries: u64,
    /// Uncompressed bytes of all layers together.
    pub bytes: u64,
    /// Uncompressed bytes for each compressed byte of a layer.
    pub ratio: u64,
    /// Uncompressed bytes of a layer up to which it may be compressed as well as it likes.
    pub ratio_from: u64,
    /// Bytes of an entry's whole path, and of a link's target.
    pub path: usize,
    /// Folders in an entry's path.
    pub depth: usize,
    /// Bytes of an entry's extended attributes.
    pub xattrs: usize,
    /// Bytes of memory for names, attributes and inodes. Four times as much of names and attributes may wait on disk until
    /// the layers beneath have been applied.
    pub memory: u64,
    /// Members of an archive that holds an image: blobs, not files of the image.
    pub members: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layers: 256,
            entries: 2_000_000,
            bytes: 64 << 30,
            ratio: 200,
            ratio_from: 64 << 20,
            path: 4095,
            depth: 256,
            xattrs: 64 << 10,
            memory: 512 << 20,
            members: 100_000,
        }
    }
}
