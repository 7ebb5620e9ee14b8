//! Why an image cannot be read, converted or found.

use std::io;
use std::path::PathBuf;

use super::digest::{Digest, DigestError};
use super::platform::PlatformError;
use super::reference::ReferenceError;
use crate::policy::PolicyError;
use crate::registry::{RegistryError, RegistryErrorKind};

/// The caller asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

/// Why an operation on images failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A file of the host cannot be used.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The path leads to something that holds no image.
    #[error("{path} is no OCI layout, OCI archive or `docker save` archive: {reason}")]
    Unknown {
        /// The path.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The archive itself, not a layer in it, is broken.
    #[error("the archive is broken")]
    Archive(#[source] LayerError),
    /// A document of the image (index, manifest, configuration) is broken.
    #[error("{what} of the image cannot be read: {reason}")]
    Document {
        /// Which.
        what: String,
        /// Why.
        reason: String,
    },
    /// A document is not what its digest says.
    #[error("{what} of the image has the digest {actual} instead of {expected}")]
    DocumentDigest {
        /// Which.
        what: String,
        /// What the image says.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// A blob that the image refers to is not in the archive.
    #[error("the archive lacks {0}")]
    Missing(String),
    /// The image is for other machines.
    #[error("the image is not for {wanted}, but for {}", if available.is_empty() { "nothing known".into() } else { available.join(", ") })]
    Platform {
        /// This machine's platform.
        wanted: String,
        /// The image's platforms.
        available: Vec<String>,
    },
    /// The image has more layers than allowed.
    #[error("the image has {count} layers, {limit} are allowed")]
    Layers {
        /// Layers of the image.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// A layer cannot be used.
    #[error("layer {number} ({digest}) cannot be used")]
    Layer {
        /// Counted from the lowest, which is 1.
        number: usize,
        /// The blob's digest, or that of its content where blobs have none.
        digest: Digest,
        /// Why.
        source: LayerError,
    },
    /// A layer did not arrive as it should.
    #[error("the layer {digest} did not arrive as it should")]
    Blob {
        /// Of the blob.
        digest: Digest,
        /// Why.
        source: LayerError,
    },
    /// A layer of an image is not in the store any more.
    #[error("the layer {digest} is not here")]
    MissingBlob {
        /// Of the blob.
        digest: Digest,
    },
    /// The disk of an image cannot be believed any more, and cannot be made anew.
    #[error("the disk of the image {digest} is damaged and cannot be made anew from its layers")]
    Rebuild {
        /// Of the image.
        digest: Digest,
        /// Why.
        source: Box<ImageError>,
    },
    /// A registry did not give what it was asked for.
    #[error("cannot pull {reference}")]
    Registry {
        /// The full name of what was asked for.
        reference: String,
        /// Why.
        source: Box<RegistryError>,
    },
    /// None of the registries that are searched gave the image.
    #[error("cannot pull {reference} from any registry that is searched: {}", tried.iter().map(|(_, why)| why.as_str()).collect::<Vec<_>>().join("; "))]
    Searched {
        /// The name that was given, without a registry.
        reference: String,
        /// Each registry, and why not from there, with all causes.
        tried: Vec<(String, String)>,
        /// Whether all of them said that they have no such image.
        absent: bool,
    },
    /// Nothing could be pulled by a name, for a reason that lies in what came.
    #[error("cannot pull {reference} from {registry}")]
    Pull {
        /// The full name of what was asked for.
        reference: String,
        /// Where it was asked for.
        registry: String,
        /// Why.
        source: Box<ImageError>,
    },
    /// The signature policy refuses the image, or cannot be read.
    #[error("the signature policy does not let the image run")]
    Policy(#[source] PolicyError),
    /// Boxes use the image.
    #[error("the image {reference} is in use by {}", boxes.join(", "))]
    InUse {
        /// What was to be removed.
        reference: String,
        /// Names or ids of the boxes.
        boxes: Vec<String>,
    },
    /// A tag was to have a digest.
    #[error("`{name}` has a digest: it is no name that can be given")]
    TagWithDigest {
        /// The name.
        name: String,
    },
    /// A platform makes no sense.
    #[error("cannot use the platform")]
    BadPlatform(#[from] PlatformError),
    /// The disk made of the image cannot be written.
    #[error("cannot write the image's disk")]
    Disk(#[source] io::Error),
    /// A reference makes no sense.
    #[error("cannot use the image reference")]
    Reference(#[from] ReferenceError),
    /// A digest makes no sense.
    #[error("cannot use the digest")]
    Digest(#[from] DigestError),
    /// The image is not in the store.
    #[error("there is no image `{reference}`")]
    NotFound {
        /// What was asked for.
        reference: String,
        /// References that look alike.
        similar: Vec<String>,
    },
    /// Several images begin with the same digits.
    #[error("`{prefix}` begins the digests of several images")]
    Ambiguous {
        /// What was asked for.
        prefix: String,
    },
    /// A file of the store was written by another version, or by something else.
    #[error("{path} is not understood: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Somebody holds the lock of the store and does not end.
    #[error("another process changes the image store for too long")]
    Busy,
    /// The caller asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl ImageError {
    /// Whether the image that was asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::NotFound { .. } => true,
            Self::Registry { source, .. } => source.is_not_found(),
            Self::Searched { absent, .. } => *absent,
            _ => false,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { similar, .. } if !similar.is_empty() => {
                Some(format!("there are: {}", similar.join(", ")))
            }
            Self::NotFound { .. } => {
                Some("`boxlite pull` it, or load it from an archive: `boxlite load -i image.tar`".into())
            }
            Self::Registry { source, .. } => source.hint().or_else(|| match source.kind() {
                RegistryErrorKind::Unreachable => {
                    Some("images can also be loaded from an archive: `boxlite load -i image.tar`".into())
                }
                _ => None,
            }),
            Self::Pull { source, .. } => source.hint(),
            Self::Policy(source) => source.hint(),
            Self::InUse { .. } => Some("remove these boxes first".into()),
            Self::MissingBlob { .. } | Self::Rebuild { .. } => Some("pull or load the image again".into()),
            Self::Format { path, .. } if path.ends_with("refs.json") => Some(format!(
                "the names of the images are lost, the images are not: remove {}, then name them with `boxlite tag`, or pull \
                 or load them again",
                path.display()
            )),
            Self::Format { .. } => Some("pull or load the image again; `boxlite rmi` removes it".into()),
            Self::Ambiguous { .. } => Some("give more digits".into()),
            Self::Unknown { .. } => {
                Some("`skopeo copy docker://… oci-archive:image.tar` or `docker save -o image.tar …` make archives".into())
            }
            _ => None,
        }
    }

    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::Io { action, path: path.into(), source: source.into() }
    }
}

/// Why a layer cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The blob cannot be read.
    #[error("cannot read the blob")]
    Read(#[source] io::Error),
    /// The compressed data are broken.
    #[error("the compressed data are broken")]
    Decompress(#[source] io::Error),
    /// The tar stream is broken.
    #[error("the tar stream is broken")]
    Tar(#[from] TarError),
    /// An entry cannot be used.
    #[error("entry `{entry}` cannot be used")]
    Entry {
        /// Its path, with what cannot be printed escaped.
        entry: String,
        /// Why.
        source: EntryError,
    },
    /// The image as a whole is too large.
    #[error("more than {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// What comes out is out of proportion to what went in.
    #[error("{compressed} bytes became more than {uncompressed}: more than {limit} times as much")]
    Ratio {
        /// Bytes in.
        compressed: u64,
        /// Bytes out.
        uncompressed: u64,
        /// The limit.
        limit: u64,
    },
    /// The blob is not what the manifest says.
    #[error("the blob has the digest {actual} instead of {expected}")]
    BlobDigest {
        /// By the manifest.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// The content is not what the configuration says.
    #[error("the content has the digest {actual} instead of {expected}")]
    ContentDigest {
        /// By the configuration (`diff_ids`).
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// The blob's size is not what the manifest says.
    #[error("the blob has {actual} bytes instead of {expected}")]
    BlobSize {
        /// By the manifest.
        expected: u64,
        /// What it is.
        actual: u64,
    },
    /// The disk cannot be written.
    #[error("cannot write the image's disk")]
    Write(#[source] io::Error),
    /// The caller asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Why a tar stream is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// It ends within an entry.
    #[error("it ends in the middle of an entry")]
    Truncated,
    /// A header's checksum is wrong.
    #[error("the header at {at} has a wrong checksum")]
    Checksum {
        /// Position of the header.
        at: u64,
    },
    /// A single block of zeros, then data.
    #[error("data follow half an end mark at {at}")]
    HalfEnd {
        /// Position of the data.
        at: u64,
    },
    /// A field of a header makes no sense.
    #[error("the header at {at} has a bad {field}")]
    Field {
        /// Position of the header.
        at: u64,
        /// The field.
        field: &'static str,
    },
    /// An extended header makes no sense.
    #[error("the extended header at {at} is malformed")]
    Extended {
        /// Position of the header.
        at: u64,
    },
    /// Extended headers or long names larger than any use of them.
    #[error("the extended header at {at} has {size} bytes, {limit} are allowed")]
    ExtendedSize {
        /// Position of the header.
        at: u64,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// Extended headers without end, or with nothing to extend.
    #[error("extended headers at {at} belong to no entry")]
    Dangling {
        /// Position of the header.
        at: u64,
    },
    /// An entry of a kind that cannot be part of an image.
    #[error("the entry at {at} is of the unknown kind `{}`", kind.escape_ascii())]
    Kind {
        /// Position of the header.
        at: u64,
        /// Its type flag.
        kind: u8,
    },
    /// Sparse files are stored in GNU's own ways.
    #[error("the entry at {at} is a sparse file, which is not supported")]
    Sparse {
        /// Position of the header.
        at: u64,
    },
}

/// Why an entry of a layer cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// Something about it is larger than allowed.
    #[error("its {what} is larger than {limit}")]
    Limit {
        /// What.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A name with NUL in it, or of more than 255 bytes.
    #[error("its name has NUL in it or a part of more than 255 bytes")]
    Name,
    /// The target of a symbolic link is empty, too long or has NUL in it.
    #[error("the target of the symbolic link cannot be used")]
    Target,
    /// Only a folder can be at the top.
    #[error("it would replace the root folder")]
    Root,
    /// A part of the path was made a file by the same layer.
    #[error("its path leads through a file of the same layer, {depth} from the end")]
    NotADirectory {
        /// How far up.
        depth: usize,
    },
    /// Symbolic links in the path lead round and round.
    #[error("symbolic links in its path lead too far")]
    Loop,
    /// A whiteout hides no usable name, or stands where a folder should be.
    #[error("it is a whiteout that hides nothing or holds files")]
    Whiteout,
    /// A hard link to what does not exist.
    #[error("the target of the hard link does not exist")]
    LinkTarget,
    /// A hard link to a folder.
    #[error("the target of the hard link is a folder")]
    LinkToDirectory,
    /// Linux has no such device.
    #[error("its device number has too many bits")]
    Device,
    /// User or group is more than 32 bits.
    #[error("its owner has more than 32 bits")]
    Owner,
    /// An extended attribute cannot be stored.
    #[error("its extended attributes cannot be stored")]
    Xattrs,
}

/// Bytes for messages: escaped and cut.
pub(super) fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 200;
    let cut = bytes.len().min(MOST);
    let more = if bytes.len() > MOST { "…" } else { "" };
    format!("{}{more}", bytes[..cut].escape_ascii())
}
