//! From a name to what an image consists of: index, manifest and configuration, wherever they come from.

use super::config::ImageConfig;
use super::digest::Digest;
use super::error::{ImageError, LayerError};
use super::limits::Limits;
use super::manifest::{Configuration, Descriptor, Document, broken, is_layer};
use super::platform::Platform;

/// Indexes within indexes.
const DEPTH_MAX: usize = 4;
/// Documents read for one request.
const DOCUMENTS_MAX: usize = 1024;

/// What holds the documents of images.
pub(super) trait Documents {
    /// The bytes of a manifest or index, not verified.
    fn manifest(&mut self, what: &str, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError>;
    /// The bytes of a configuration, not verified.
    fn configuration(&mut self, what: &str, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError>;
}

/// A layer, as manifest and configuration tell of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layer {
    /// Of the blob as it is stored.
    pub(super) blob: Digest,
    /// Bytes of the blob.
    pub(super) size: u64,
    /// Of the tar stream in it.
    pub(super) diff_id: Digest,
}

/// An image whose documents are all there and verified, and whose layers are not yet.
#[derive(Debug, Clone)]
pub(super) struct Resolved {
    /// The manifest's.
    pub(super) digest: Digest,
    pub(super) manifest: Vec<u8>,
    /// Of the index that led to the manifest, where one did.
    pub(super) index: Option<Digest>,
    pub(super) config_digest: Digest,
    pub(super) configuration: Vec<u8>,
    pub(super) config: ImageConfig,
    /// Lowest first.
    pub(super) layers: Vec<Layer>,
}

impl Resolved {
    /// Identifies the contents of all layers together: images with the same layers have the same disk. As the OCI image
    /// specification defines ChainID.
    pub(super) fn chain(&self) -> Digest {
        chain(self.layers.iter().map(|layer| &layer.diff_id))
    }

    /// All blobs that belong to it.
    pub(super) fn blobs(&self) -> impl Iterator<Item = Digest> {
        let documents = [self.digest, self.config_digest];
        documents.into_iter().chain(self.layers.iter().map(|layer| layer.blob))
    }
}

/// The ChainID of layers, lowest first; of none, the digest of nothing.
pub(super) fn chain<'a>(mut diff_ids: impl Iterator<Item = &'a Digest>) -> Digest {
    let Some(first) = diff_ids.next() else { return Digest::of(b"") };
    diff_ids.fold(*first, |below, layer| Digest::of(format!("{below} {layer}").as_bytes()))
}

/// Goes through documents until it finds images for one platform.
#[derive(Debug)]
pub(super) struct Resolver<'a, D> {
    documents: D,
    wanted: &'a Platform,
    limits: &'a Limits,
    read: usize,
    /// Platforms seen that are not wanted.
    others: Vec<String>,
}

impl<'a, D: Documents> Resolver<'a, D> {
    pub(super) fn new(documents: D, wanted: &'a Platform, limits: &'a Limits) -> Self {
        Self { documents, wanted, limits, read: 0, others: Vec::new() }
    }

    /// The images of an index without a digest of its own (`index.json`), each with the descriptor that led to it.
    pub(super) fn all<'d>(
        &mut self,
        list: &'d [Descriptor],
    ) -> Result<Vec<(&'d Descriptor, Resolved)>, ImageError> {
        let mut found = Vec::new();
        for descriptor in list.iter().filter(|descriptor| !descriptor.is_attestation()) {
            if let Some(image) = self.follow(descriptor, None, 1)? {
                found.push((descriptor, image));
            }
        }
        Ok(found)
    }

    /// The image of a manifest or index whose bytes are at hand and have this digest.
    pub(super) fn one(&mut self, digest: Digest, bytes: Vec<u8>) -> Result<Resolved, ImageError> {
        let found = self.document(digest, bytes, None, 1)?;
        found.ok_or_else(|| self.not_for_this())
    }

    pub(super) fn documents_mut(&mut self) -> &mut D {
        &mut self.documents
    }

    /// Remembers platforms that were there and are not wanted.
    pub(super) fn add_others(&mut self, others: Vec<String>) {
        self.others.extend(others);
    }

    /// Why nothing was found.
    pub(super) fn not_for_this(&mut self) -> ImageError {
        let mut available = std::mem::take(&mut self.others);
        available.sort();
        available.dedup();
        available.truncate(20);
        ImageError::Platform { wanted: self.wanted.to_string(), available }
    }

    /// Whether there were images, for other platforms.
    pub(super) fn saw_others(&self) -> bool {
        !self.others.is_empty()
    }

    /// The image behind a descriptor.
    fn follow(
        &mut self,
        descriptor: &Descriptor,
        index: Option<Digest>,
        depth: usize,
    ) -> Result<Option<Resolved>, ImageError> {
        if depth > DEPTH_MAX {
            return Err(broken("the index", "indexes lie too deep within each other"));
        }
        if !self.is_wanted(descriptor.platform.as_ref()) {
            return Ok(None);
        }
        let digest = descriptor.digest()?;
        let what = format!("manifest {digest}");
        self.count()?;
        let bytes = self.documents.manifest(&what, descriptor)?;
        let bytes = verified(&what, descriptor, bytes)?;
        self.document(digest, bytes, index, depth)
    }

    fn document(
        &mut self,
        digest: Digest,
        bytes: Vec<u8>,
        index: Option<Digest>,
        depth: usize,
    ) -> Result<Option<Resolved>, ImageError> {
        match Document::parse(&format!("manifest {digest}"), &bytes)? {
            Document::Manifest { config, layers } => self.image(digest, bytes, index, &config, &layers),
            Document::Index(list) => {
                // The outermost index is what a name leads to, and what is signed.
                let index = Some(index.unwrap_or(digest));
                for descriptor in list.iter().filter(|descriptor| !descriptor.is_attestation()) {
                    if let Some(image) = self.follow(descriptor, index, depth + 1)? {
                        return Ok(Some(image));
                    }
                }
                Ok(None)
            }
        }
    }

    fn image(
        &mut self,
        digest: Digest,
        manifest: Vec<u8>,
        index: Option<Digest>,
        config: &Descriptor,
        layers: &[Descriptor],
    ) -> Result<Option<Resolved>, ImageError> {
        let config_digest = config.digest()?;
        let what = format!("configuration {config_digest}");
        self.count()?;
        let bytes = self.documents.configuration(&what, config)?;
        let bytes = verified(&what, config, bytes)?;
        let configuration = Configuration::parse(&what, &bytes)?;
        if !self.is_wanted(Some(&configuration.platform)) {
            return Ok(None);
        }
        check_count(&what, layers.len(), configuration.diff_ids.len())?;
        if layers.len() > self.limits.layers {
            return Err(ImageError::Layers { count: layers.len(), limit: self.limits.layers });
        }
        let what = format!("manifest {digest}");
        let mut all = Vec::new();
        for ((number, layer), diff_id) in (1..).zip(layers).zip(configuration.diff_ids) {
            if !is_layer(layer.media_type.as_deref()) {
                let media_type = layer.media_type.as_deref().unwrap_or_default();
                return Err(broken(&what, &format!("its layers are of type {media_type}")));
            }
            if layer.size > self.limits.bytes {
                // Compression makes nothing larger, or not by much.
                let source = LayerError::Limit { what: "uncompressed bytes", limit: self.limits.bytes };
                return Err(ImageError::Layer { number, digest: layer.digest()?, source });
            }
            all.push(Layer { blob: layer.digest()?, size: layer.size, diff_id });
        }
        Ok(Some(Resolved {
            digest,
            manifest,
            index,
            config_digest,
            configuration: bytes,
            config: configuration.config,
            layers: all,
        }))
    }

    /// Whether a platform, if one is given, is the wanted one. Others are kept for the message.
    fn is_wanted(&mut self, platform: Option<&Platform>) -> bool {
        let other = platform.filter(|platform| !platform.satisfies(self.wanted));
        if self.others.len() < DOCUMENTS_MAX {
            self.others.extend(other.map(ToString::to_string));
        }
        other.is_none()
    }

    fn count(&mut self) -> Result<(), ImageError> {
        self.read += 1;
        if self.read > DOCUMENTS_MAX {
            return Err(broken("the index", "it leads to too many documents"));
        }
        Ok(())
    }
}

/// Refuses bytes that are not what their descriptor says.
fn verified(what: &str, descriptor: &Descriptor, bytes: Vec<u8>) -> Result<Vec<u8>, ImageError> {
    let expected = descriptor.digest()?;
    let actual = Digest::of(&bytes);
    if actual != expected {
        return Err(ImageError::DocumentDigest { what: what.to_owned(), expected, actual });
    }
    if bytes.len() as u64 != descriptor.size {
        return Err(broken(what, "its size is not what is said of it"));
    }
    Ok(bytes)
}

pub(super) fn check_count(what: &str, layers: usize, diff_ids: usize) -> Result<(), ImageError> {
    if layers == diff_ids {
        return Ok(());
    }
    Err(broken(what, &format!("it tells of {diff_ids} layers, the manifest of {layers}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_what_the_specification_says() {
        let (a, b, c) = (Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c"));
        assert_eq!(chain([&a].into_iter()), a);
        let ab = Digest::of(format!("{a} {b}").as_bytes());
        assert_eq!(chain([&a, &b].into_iter()), ab);
        assert_eq!(chain([&a, &b, &c].into_iter()), Digest::of(format!("{ab} {c}").as_bytes()));
    }
}
