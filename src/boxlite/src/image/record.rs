//! What the store knows of one image, and of names.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::config::ImageConfig;
use super::digest::Digest;
use super::error::ImageError;
use super::reference::Reference;
use super::resolve::{self, Resolved};
use crate::policy;

/// Ways by which the same image came that are remembered.
const ORIGINS_MAX: usize = 16;

/// `<manifest>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Of the manifest.
    pub(super) digest: Text,
    pub(super) configuration: Text,
    /// Lowest first.
    pub(super) layers: Vec<LayerRecord>,
    pub(super) config: ImageConfig,
    /// How it came here: what a signature policy is asked about. The latest is the last.
    pub(super) origins: Vec<Origin>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    pub(super) digest: Text,
    pub(super) size: u64,
    pub(super) diff_id: Text,
}

impl From<&LayerRecord> for resolve::Layer {
    fn from(layer: &LayerRecord) -> Self {
        Self { blob: layer.digest.0, size: layer.size, diff_id: layer.diff_id.0 }
    }
}

/// A digest in a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Text(pub(super) Digest);

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.0.to_string()
    }
}

impl TryFrom<String> for Text {
    type Error = super::DigestError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

/// One way by which an image came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// `docker` for registries, else the transport of an archive, as signature policies name them.
    pub(super) transport: String,
    /// The full reference, or the archive's path.
    pub(super) name: String,
    /// Of the index that led to the manifest.
    pub(super) index: Option<Text>,
    /// Signatures that were found with it; looked for only when a policy asked for some.
    pub(super) signatures: Vec<policy::Signature>,
}

impl Origin {
    /// Asks a policy about an image that came this way.
    pub(super) fn check(&self, policy: &policy::Policy, digest: Digest) -> Result<(), ImageError> {
        let digests: Vec<Digest> =
            [Some(digest), self.index.map(|text| text.0)].into_iter().flatten().collect();
        let reference: Reference;
        let origin = match policy::transport(&self.transport) {
            Some(transport) => policy::Origin::Archive { transport, path: Path::new(&self.name) },
            None => {
                reference = self.name.parse()?;
                registry_origin(&reference)
            }
        };
        policy.check(&origin, &digests, &self.signatures).map_err(ImageError::Policy)
    }
}

/// A reference as a policy sees it.
pub(super) fn registry_origin(reference: &Reference) -> policy::Origin<'_> {
    policy::Origin::Registry {
        registry: reference.registry(),
        repository: reference.repository(),
        tag: reference.tag(),
        digest: reference.digest(),
    }
}

impl Record {
    pub(super) fn new(image: &Resolved) -> Self {
        let layer = |layer: &resolve::Layer| LayerRecord {
            digest: Text(layer.blob),
            size: layer.size,
            diff_id: Text(layer.diff_id),
        };
        Self {
            digest: Text(image.digest),
            configuration: Text(image.config_digest),
            layers: image.layers.iter().map(layer).collect(),
            config: image.config.clone(),
            origins: Vec::new(),
        }
    }

    /// Remembers one more way, in place of the same one before.
    pub(super) fn came_by(&mut self, origin: Origin) {
        self.origins.retain(|known| (&known.transport, &known.name) != (&origin.transport, &origin.name));
        self.origins.push(origin);
        if self.origins.len() > ORIGINS_MAX {
            self.origins.remove(0);
        }
    }

    /// Identifies the image's disk.
    pub(super) fn chain(&self) -> Digest {
        resolve::chain(self.layers.iter().map(|layer| &layer.diff_id.0))
    }

    /// All blobs that belong to it.
    pub(super) fn blobs(&self) -> impl Iterator<Item = Digest> {
        let documents = [self.digest.0, self.configuration.0];
        documents.into_iter().chain(self.layers.iter().map(|layer| layer.digest.0))
    }

    /// Refuses an image that no way of coming here makes acceptable under the policy, or that it would not accept under
    /// the name that the image is asked for by.
    pub(super) fn check(&self, policy: &policy::Policy, name: Option<&Reference>) -> Result<(), ImageError> {
        let mut refused = None;
        for origin in self.origins.iter().rev() {
            match origin.check(policy, self.digest.0) {
                Ok(()) => {
                    refused = None;
                    break;
                }
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        if let Some(error) = refused {
            return Err(error);
        }
        let Some(name) = name else { return Ok(()) };
        let indexes = self.origins.iter().filter_map(|origin| Some(origin.index?.0));
        let digests: Vec<Digest> = std::iter::once(self.digest.0).chain(indexes).collect();
        let mut signatures: Vec<policy::Signature> = Vec::new();
        for signature in self.origins.iter().flat_map(|origin| &origin.signatures) {
            if !signatures.contains(signature) {
                signatures.push(signature.clone());
            }
        }
        policy.check(&registry_origin(name), &digests, &signatures).map_err(ImageError::Policy)
    }
}

/// `refs.json`: full names, and the manifests that they lead to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refs {
    pub(super) refs: BTreeMap<String, Text>,
}

impl Refs {
    /// All names of an image.
    pub(super) fn of(&self, digest: &Digest) -> Vec<String> {
        self.refs.iter().filter(|(_, to)| to.0 == *digest).map(|(name, _)| name.clone()).collect()
    }
}
