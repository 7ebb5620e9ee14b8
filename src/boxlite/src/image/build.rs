//! From layers to an EROFS image: one pass over each layer, bottom-up.

use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::AtomicU64;

use crate::erofs::{TreeLimits, Writer, WriterError};

use super::apply::{self, Skipped};
use super::digest::Digest;
use super::error::{ImageError, LayerError};
use super::limits::Limits;
use super::stream::{Stream, StreamLimits, Totals};
use super::tar::TarReader;
use super::{Progress, Watch};

/// One layer, lowest first: its bytes, and what they must turn out to be.
pub struct LayerSource<'a> {
    /// Opens the blob; called once, when its turn has come.
    pub open: Box<dyn FnOnce() -> io::Result<Box<dyn Read + Send>> + 'a>,
    /// Digest and size of the blob as it is stored, where the manifest says so.
    pub blob: Option<(Digest, u64)>,
    /// Digest of the tar stream in it.
    pub diff_id: Digest,
}

impl std::fmt::Debug for LayerSource<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerSource")
            .field("blob", &self.blob)
            .field("diff_id", &self.diff_id)
            .finish_non_exhaustive()
    }
}

/// An image that was built.
#[derive(Debug)]
#[non_exhaustive]
pub struct Built {
    /// The image file, complete but not synced.
    pub file: File,
    /// Its length, holes included.
    pub bytes: u64,
    /// Files and folders in it.
    pub inodes: u64,
    /// Uncompressed bytes of all layers.
    pub content_bytes: u64,
    /// Extended attributes that were left out, as they are not of Linux or of no meaning in an image.
    pub skipped_xattrs: u64,
}

/// Builds an EROFS image from layers.
///
/// `file` and `scratch` must be empty files, open for reading and writing. Unless this returns `Ok`, what is in `file` is
/// worthless. `identity` becomes the UUID of the file system: same layers and identity, same bytes.
///
/// # Errors
/// When a layer is broken, hostile, larger than `limits` or not what its digests say, or `watch` asked to stop.
pub fn build(
    layers: Vec<LayerSource<'_>>,
    identity: &Digest,
    file: File,
    scratch: File,
    limits: &Limits,
    watch: Watch<'_>,
) -> Result<Built, ImageError> {
    let count = layers.len();
    if count > limits.layers {
        return Err(ImageError::Layers { count, limit: limits.layers });
    }
    let tree = TreeLimits { entries: limits.entries, memory: limits.memory };
    let mut build =
        Build { writer: Writer::new(file, scratch, tree), entries: 0, bytes: 0, skipped: Skipped::default() };
    for (number, layer) in (1..).zip(layers) {
        if number > 1 {
            build.writer.tree().next_layer();
        }
        let digest = layer.blob.map_or(layer.diff_id, |(digest, _)| digest);
        let mut told = |bytes| watch(Progress::Layer { layer: number, layers: count, bytes });
        build.layer(layer, limits, &mut told).map_err(|source| match source {
            LayerError::Cancelled(cancelled) => ImageError::Cancelled(cancelled),
            source => ImageError::Layer { number, digest, source },
        })?;
        watch(Progress::Converted { layer: number, layers: count })?;
    }
    let Build { writer, bytes: content_bytes, skipped, .. } = build;
    if skipped.xattrs > 0 {
        tracing::debug!(count = skipped.xattrs, "extended attributes of the image were left out");
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&identity.bytes()[..16]);
    // Version 8: made up by other rules. Variant 1.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let (file, stats) = writer.finish(uuid).map_err(|error| match error {
        WriterError::Io(error) => ImageError::Disk(error),
        error => ImageError::Disk(io::Error::other(error)),
    })?;
    Ok(Built {
        file,
        bytes: stats.bytes,
        inodes: stats.inodes,
        content_bytes,
        skipped_xattrs: skipped.xattrs,
    })
}

struct Build {
    writer: Writer,
    /// So far, over all layers.
    entries: u64,
    bytes: u64,
    skipped: Skipped,
}

impl Build {
    fn layer(
        &mut self,
        layer: LayerSource<'_>,
        limits: &Limits,
        watch: &mut dyn FnMut(u64) -> Result<(), super::Cancelled>,
    ) -> Result<(), LayerError> {
        let blob = (layer.open)().map_err(LayerError::Read)?;
        let stream_limits = StreamLimits {
            left: limits.bytes.saturating_sub(self.bytes),
            total: limits.bytes,
            ratio: limits.ratio,
            ratio_from: limits.ratio_from,
        };
        let compressed = AtomicU64::new(0);
        let totals = std::thread::scope(|scope| {
            let stream = Stream::start(scope, blob, &compressed, stream_limits, watch);
            let mut tar = TarReader::new(stream);
            apply::apply(&mut tar, &mut self.writer, limits, &mut self.entries, &mut self.skipped)?;
            tar.into_source().finish()
        })?;
        self.bytes += totals.content_size;
        verify(&totals, layer.blob, layer.diff_id)
    }
}

fn verify(totals: &Totals, blob: Option<(Digest, u64)>, diff_id: Digest) -> Result<(), LayerError> {
    if let Some((digest, size)) = blob {
        if totals.blob_size != size {
            return Err(LayerError::BlobSize { expected: size, actual: totals.blob_size });
        }
        if totals.blob != digest {
            return Err(LayerError::BlobDigest { expected: digest, actual: totals.blob });
        }
    }
    if totals.content != diff_id {
        return Err(LayerError::ContentDigest { expected: diff_id, actual: totals.content });
    }
    Ok(())
}
