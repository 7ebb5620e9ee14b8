//! Files and folders that hold images: what is in them, without unpacking anything.
//!
//! Three kinds are told apart by what is inside: an OCI layout folder; an OCI archive, which is a tar file of such a
//! folder; and the older archives of `docker save`, with a `manifest.json` and layers in folders of their own. Archives
//! may be compressed as a whole: they are then unpacked into a temporary file without a name first.
//!
//! Members of tar files are found through an index of their positions, made in one pass that reads headers only. Their
//! names are keys of that index and nothing else. In folders, only paths made of a strictly parsed digest are opened.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::build::LayerSource;
use super::config::ImageConfig;
use super::digest::Digest;
use super::error::{ImageError, LayerError, TarError};
use super::limits::Limits;
use super::manifest::{
    CONFIG, DOCUMENT_MAX, Descriptor, DockerImage, Document, MANIFEST, broken, layer_type, parse,
};
use super::platform::Platform;
use super::reference::Reference;
use super::resolve::{Documents, Layer, Resolved, Resolver};
use super::stream::Compression;
use super::tar::{Kind, Source, TarReader};
use super::{Progress, Watch};

/// Links from member to member.
const LINKS_MAX: usize = 8;

const FULL_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An opened archive or layout.
#[derive(Debug)]
pub struct Archive {
    files: Files,
    kind: ArchiveKind,
    images: Vec<FoundImage>,
}

/// What an archive is: in the words of containers/image, by which signature policies name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ArchiveKind {
    OciFolder,
    OciArchive,
    DockerArchive,
}

impl ArchiveKind {
    /// The name of the transport.
    pub(super) fn transport(self) -> &'static str {
        match self {
            Self::OciFolder => "oci",
            Self::OciArchive => "oci-archive",
            Self::DockerArchive => "docker-archive",
        }
    }
}

/// An image in an archive that can run on this machine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FoundImage {
    /// The manifest's digest. The older archives of `docker save` have none: theirs is made of what is in them.
    pub digest: Digest,
    /// Names the archive gives it.
    pub references: Vec<Reference>,
    /// How it wants to be run.
    pub config: ImageConfig,
    pub(super) image: Resolved,
    /// Members that hold layers, in older archives; elsewhere blobs are found by their digest.
    members: BTreeMap<Digest, Vec<u8>>,
}

impl Archive {
    /// Opens a folder or file and finds the images for `platform` in it. `scratch` is a folder for temporary files without
    /// a name.
    ///
    /// # Errors
    /// When the path leads to something else, or what is there is broken, hostile, or for other machines only.
    pub fn open(
        path: &Path,
        platform: &Platform,
        scratch: &Path,
        limits: &Limits,
        watch: Watch<'_>,
    ) -> Result<Self, ImageError> {
        let meta = std::fs::metadata(path).map_err(|error| ImageError::io("open", path, error))?;
        let files = if meta.is_dir() {
            Files::Folder(path.to_owned())
        } else {
            Files::Tar(TarFile::open(path, scratch, limits, watch)?)
        };
        let unknown = |reason: &str| ImageError::Unknown { path: path.to_owned(), reason: reason.to_owned() };
        let mut resolver = Resolver::new(Held { files: &files, given: BTreeMap::new() }, platform, limits);
        let (kind, images) = if let Some(index) = files.root_document("index.json")? {
            let kind = match files {
                Files::Folder(_) => ArchiveKind::OciFolder,
                Files::Tar(_) => ArchiveKind::OciArchive,
            };
            (kind, oci(&files, &mut resolver, &index)?)
        } else if let Some(list) = files.root_document("manifest.json")? {
            if matches!(files, Files::Folder(_)) {
                return Err(unknown("an unpacked `docker save` archive; give the archive itself"));
            }
            (ArchiveKind::DockerArchive, docker(&files, &mut resolver, &list, limits, watch)?)
        } else {
            return Err(unknown("it has no index.json and no manifest.json"));
        };
        if images.is_empty() {
            return Err(if resolver.saw_others() {
                resolver.not_for_this()
            } else {
                unknown("it holds no image")
            });
        }
        Ok(Self { files, kind, images })
    }

    /// The images for the platform that was asked for.
    pub fn images(&self) -> &[FoundImage] {
        &self.images
    }

    pub(super) fn kind(&self) -> ArchiveKind {
        self.kind
    }

    /// The layers of an image of this archive, lowest first.
    pub fn layers<'a>(&'a self, image: &'a FoundImage) -> Vec<LayerSource<'a>> {
        let source = |layer: &'a Layer| LayerSource {
            open: Box::new(move || self.blob(image, &layer.blob)),
            blob: Some((layer.blob, layer.size)),
            diff_id: layer.diff_id,
        };
        image.image.layers.iter().map(source).collect()
    }

    /// A layer's blob.
    pub(super) fn blob(&self, image: &FoundImage, digest: &Digest) -> io::Result<Box<dyn Read + Send>> {
        match image.members.get(digest) {
            Some(name) => self.files.open_member(name),
            None => self.files.open_blob(digest),
        }
    }
}

/// The documents of an archive, and those that were read before under other names.
#[derive(Debug)]
struct Held<'a> {
    files: &'a Files,
    given: BTreeMap<Digest, Vec<u8>>,
}

impl Documents for Held<'_> {
    fn manifest(&mut self, what: &str, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let digest = descriptor.digest()?;
        if let Some(bytes) = self.given.remove(&digest) {
            return Ok(bytes);
        }
        let bytes = self.files.blob_document(what, &digest)?;
        bytes.ok_or_else(|| ImageError::Missing(what.to_owned()))
    }

    fn configuration(&mut self, what: &str, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        self.manifest(what, descriptor)
    }
}

/// The images of an OCI layout.
fn oci(
    files: &Files,
    resolver: &mut Resolver<'_, Held<'_>>,
    index: &[u8],
) -> Result<Vec<FoundImage>, ImageError> {
    let Document::Index(list) = Document::parse("index.json", index)? else {
        return Err(broken("index.json", "it is a manifest, not an index"));
    };
    let mut images: Vec<FoundImage> = Vec::new();
    for (descriptor, image) in resolver.all(&list)? {
        for layer in &image.layers {
            if files.size_of(&layer.blob)?.is_none() {
                return Err(ImageError::Missing(format!("the layer {}", layer.blob)));
            }
        }
        add(&mut images, image, references(descriptor)?, BTreeMap::new());
    }
    Ok(images)
}

fn add(
    images: &mut Vec<FoundImage>,
    image: Resolved,
    references: Vec<Reference>,
    members: BTreeMap<Digest, Vec<u8>>,
) {
    let known = images.iter().position(|known| known.digest == image.digest);
    let at = known.unwrap_or_else(|| {
        let (digest, config) = (image.digest, image.config.clone());
        images.push(FoundImage { digest, references: Vec::new(), config, image, members });
        images.len() - 1
    });
    for reference in references {
        if !images[at].references.contains(&reference) {
            images[at].references.push(reference);
        }
    }
}

/// The images of an older archive of `docker save`. They have no manifests, so each gets one: the same archive, the same
/// digest.
fn docker(
    files: &Files,
    resolver: &mut Resolver<'_, Held<'_>>,
    list: &[u8],
    limits: &Limits,
    watch: Watch<'_>,
) -> Result<Vec<FoundImage>, ImageError> {
    let list: Vec<DockerImage> = parse("manifest.json", list)?;
    let mut images = Vec::new();
    let mut hashed: HashMap<Vec<u8>, Summary> = HashMap::new();
    for image in list {
        let name = normalized(image.config.as_bytes());
        let what = format!("configuration {}", super::error::shown(&name));
        let Some(config) = files.member_document(&what, &name)? else {
            return Err(ImageError::Missing(what));
        };
        let config_digest = Digest::of(&config);
        // It is named by its digest.
        let stem = image.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
        if let Some(expected) = Digest::from_hex(stem)
            && expected != config_digest
        {
            return Err(ImageError::DocumentDigest { what, expected, actual: config_digest });
        }
        let mut layers = Vec::new();
        let mut members = BTreeMap::new();
        let names = image.layers.unwrap_or_default();
        if names.len() > limits.layers {
            return Err(ImageError::Layers { count: names.len(), limit: limits.layers });
        }
        for member in names {
            let name = normalized(member.as_bytes());
            // Images of one archive have layers in common.
            let summary = match hashed.get(&name) {
                Some(summary) => *summary,
                None => {
                    let found = files.summary(&name, watch)?;
                    let summary = found.ok_or_else(|| ImageError::Missing(super::error::shown(&name)))?;
                    *hashed.entry(name.clone()).or_insert(summary)
                }
            };
            layers.push(json!({
                "mediaType": summary.media_type,
                "digest": summary.digest.to_string(),
                "size": summary.size,
            }));
            members.insert(summary.digest, name);
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": config_digest.to_string(), "size": config.len() },
            "layers": layers,
        });
        let manifest = serde_json::to_vec(&manifest).map_err(|error| broken(&what, &error.to_string()))?;
        resolver.documents_mut().given.insert(config_digest, config);
        let resolved = match resolver.one(Digest::of(&manifest), manifest) {
            Ok(resolved) => resolved,
            Err(ImageError::Platform { available, .. }) => {
                resolver.add_others(available);
                continue;
            }
            Err(error) => return Err(error),
        };
        let tags = image.repo_tags.unwrap_or_default();
        let references = tags.iter().map(|tag| tag.parse()).collect::<Result<Vec<Reference>, _>>()?;
        add(&mut images, resolved, references, members);
    }
    Ok(images)
}

/// The name that an index gives an image: containerd's, which is always full, or the standard one.
///
/// The standard one is free text. Like podman, a bare word is taken for a name; but `latest`, which is what tools write
/// when they were given no name, is none.
fn references(descriptor: &Descriptor) -> Result<Vec<Reference>, ImageError> {
    let name = match (descriptor.annotation(FULL_NAME), descriptor.annotation(REF_NAME)) {
        (Some(name), _) => name,
        (None, Some(name)) if name != "latest" => name,
        _ => return Ok(Vec::new()),
    };
    Ok(vec![name.parse()?])
}

/// What holds the documents and blobs.
#[derive(Debug)]
enum Files {
    Folder(PathBuf),
    Tar(TarFile),
}

impl Files {
    /// One of the documents at the top, which have fixed names.
    fn root_document(&self, name: &'static str) -> Result<Option<Vec<u8>>, ImageError> {
        match self {
            Self::Folder(folder) => folder_document(name, &folder.join(name)),
            Self::Tar(tar) => tar.document(name, name.as_bytes()),
        }
    }

    fn blob_document(&self, what: &str, digest: &Digest) -> Result<Option<Vec<u8>>, ImageError> {
        match self {
            Self::Folder(folder) => folder_document(what, &blob_path(folder, digest)),
            Self::Tar(tar) => tar.document(what, &blob_name(digest)),
        }
    }

    fn member_document(&self, what: &str, name: &[u8]) -> Result<Option<Vec<u8>>, ImageError> {
        match self {
            Self::Folder(_) => Ok(None),
            Self::Tar(tar) => tar.document(what, name),
        }
    }

    fn size_of(&self, digest: &Digest) -> Result<Option<u64>, ImageError> {
        match self {
            Self::Folder(folder) => {
                let path = blob_path(folder, digest);
                match std::fs::metadata(&path) {
                    Ok(meta) => Ok(Some(meta.len())),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(ImageError::io("open", path, error)),
                }
            }
            Self::Tar(tar) => Ok(tar.find(&blob_name(digest)).map(|section| section.end - section.at)),
        }
    }

    fn open_blob(&self, digest: &Digest) -> io::Result<Box<dyn Read + Send>> {
        match self {
            Self::Folder(folder) => Ok(Box::new(open_plain(&blob_path(folder, digest))?)),
            Self::Tar(tar) => tar.open_member(&blob_name(digest)),
        }
    }

    fn open_member(&self, name: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        match self {
            Self::Folder(_) => Err(io::ErrorKind::NotFound.into()),
            Self::Tar(tar) => tar.open_member(name),
        }
    }

    /// What a manifest says of a member that is a layer; nothing when there is no such member.
    fn summary(&self, name: &[u8], watch: Watch<'_>) -> Result<Option<Summary>, ImageError> {
        let section = match self {
            Self::Folder(_) => None,
            Self::Tar(tar) => tar.find(name),
        };
        let Some(mut section) = section else { return Ok(None) };
        let failed = |error| ImageError::Archive(LayerError::Read(error));
        let size = section.end - section.at;
        let (mut hash, mut buffer, mut media_type) = (Sha256::new(), vec![0; 256 << 10], None);
        let mut bytes = 0;
        loop {
            let length = match section.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            };
            media_type.get_or_insert_with(|| layer_type(Compression::of(&buffer[..length])));
            hash.update(&buffer[..length]);
            bytes += length as u64;
            watch(Progress::Unpacking { bytes })?;
        }
        let media_type = media_type.unwrap_or_else(|| layer_type(Compression::None));
        Ok(Some(Summary { digest: Digest::finish(hash), size, media_type }))
    }
}

/// A layer in an older archive.
#[derive(Debug, Clone, Copy)]
struct Summary {
    digest: Digest,
    size: u64,
    media_type: &'static str,
}

fn blob_path(folder: &Path, digest: &Digest) -> PathBuf {
    folder.join("blobs").join("sha256").join(digest.hex())
}

fn blob_name(digest: &Digest) -> Vec<u8> {
    format!("blobs/sha256/{}", digest.hex()).into_bytes()
}

/// Opens a regular file; nothing else is waited for.
fn open_plain(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

fn folder_document(what: &str, path: &Path) -> Result<Option<Vec<u8>>, ImageError> {
    match open_plain(path) {
        Ok(file) => read_document(what, file).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ImageError::io("open", path, error)),
    }
}

fn read_document(what: &str, from: impl Read) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    let read = from.take(DOCUMENT_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| broken(what, &error.to_string()))?;
    if bytes.len() as u64 > DOCUMENT_MAX {
        return Err(broken(what, "it has more than 4 MiB"));
    }
    Ok(bytes)
}

/// A tar file and where its members are.
#[derive(Debug)]
struct TarFile {
    members: HashMap<Vec<u8>, Member>,
}

#[derive(Debug, Clone)]
enum Member {
    File(Section),
    /// To another member: layers that old versions of Docker found to be the same.
    Link(Vec<u8>),
}

/// A part of a file, as a stream.
#[derive(Debug, Clone)]
struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let length = self.file.read_at(&mut buffer[..most], self.at)?;
        if length == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += length as u64;
        Ok(length)
    }
}

impl TarFile {
    fn open(path: &Path, scratch: &Path, limits: &Limits, watch: Watch<'_>) -> Result<Self, ImageError> {
        let file = open_plain(path).map_err(|error| ImageError::io("open", path, error))?;
        let file = plain_tar(file, path, scratch, limits, watch)?;
        let length = file.metadata().map_err(|error| ImageError::io("read", path, error))?.len();
        let file = Arc::new(file);
        let mut tar = TarReader::new(FileSource::new(file.clone(), length));
        let (mut members, mut names) = (HashMap::new(), 0);
        let archive_error = |error| match error {
            // Not even the first header: this never was one.
            LayerError::Tar(TarError::Checksum { at: 0 }) => {
                ImageError::Unknown { path: path.to_owned(), reason: "it is no tar archive".into() }
            }
            LayerError::Tar(TarError::Truncated) if length < 512 => {
                ImageError::Unknown { path: path.to_owned(), reason: "it is no tar archive".into() }
            }
            error => ImageError::Archive(error),
        };
        while let Some(entry) = tar.next().map_err(archive_error)? {
            let name = normalized(&entry.path);
            let member = match entry.kind {
                Kind::File => {
                    let at = tar.position();
                    let end = at.saturating_add(entry.size);
                    if end > length {
                        return Err(ImageError::Archive(TarError::Truncated.into()));
                    }
                    Member::File(Section { file: file.clone(), at, end })
                }
                Kind::HardLink => Member::Link(normalized(&entry.target)),
                Kind::Symlink => {
                    let folder = entry.path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
                    Member::Link(normalized(&[&entry.path[..folder], &entry.target].concat()))
                }
                Kind::Dir | Kind::Char | Kind::Block | Kind::Fifo => continue,
            };
            let target = if let Member::Link(target) = &member { target.len() } else { 0 };
            names += (name.len() + target) as u64;
            if name.len().max(target) > limits.path || names > limits.memory / 4 {
                let limit = limits.memory / 4;
                return Err(ImageError::Archive(LayerError::Limit {
                    what: "bytes of members' names",
                    limit,
                }));
            }
            members.insert(name, member);
            if members.len() > limits.members {
                let limit = limits.members as u64;
                return Err(ImageError::Archive(LayerError::Limit { what: "members", limit }));
            }
        }
        Ok(Self { members })
    }

    fn find(&self, name: &[u8]) -> Option<Section> {
        let mut name = name;
        for _ in 0..=LINKS_MAX {
            match self.members.get(name)? {
                Member::File(section) => return Some(section.clone()),
                Member::Link(target) => name = target,
            }
        }
        None
    }

    fn open_member(&self, name: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "the archive lacks the member");
        Ok(Box::new(self.find(name).ok_or_else(missing)?))
    }

    fn document(&self, what: &str, name: &[u8]) -> Result<Option<Vec<u8>>, ImageError> {
        self.find(name).map(|section| read_document(what, section)).transpose()
    }
}

/// Unpacks an archive that is compressed as a whole.
fn plain_tar(
    file: File,
    path: &Path,
    scratch: &Path,
    limits: &Limits,
    watch: Watch<'_>,
) -> Result<File, ImageError> {
    let mut start = [0; 4];
    let unreadable = |error| ImageError::io("read", path, error);
    let length = file.read_at(&mut start, 0).map_err(unreadable)?;
    let compressed = BufReader::with_capacity(
        256 << 10,
        Section {
            at: 0,
            end: file.metadata().map_err(unreadable)?.len(),
            file: Arc::new(file.try_clone().map_err(unreadable)?),
        },
    );
    let mut from: Box<dyn Read> = match Compression::of(&start[..length]) {
        Compression::None => return Ok(file),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(compressed)),
        Compression::Zstd => {
            Box::new(zstd::stream::read::Decoder::with_buffer(compressed).map_err(unreadable)?)
        }
    };
    let unwritable = |error| ImageError::io("write a temporary file in", scratch, error);
    let to = tempfile::tempfile_in(scratch).map_err(unwritable)?;
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => return Ok(to),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ImageError::Archive(LayerError::Decompress(error))),
        };
        to.write_all_at(&buffer[..length], bytes).map_err(unwritable)?;
        bytes += length as u64;
        if bytes > limits.bytes {
            let limit = limits.bytes;
            return Err(ImageError::Archive(LayerError::Limit { what: "uncompressed bytes", limit }));
        }
        watch(Progress::Unpacking { bytes })?;
    }
}

/// A name from the archive's root, without `.` and `..`: a key, never a path.
fn normalized(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// A tar stream in a file: what is passed over is not read.
struct FileSource {
    file: Arc<File>,
    length: u64,
    /// Position of the first byte in `buffer[used..]`.
    position: u64,
    buffer: Vec<u8>,
    used: usize,
}

impl FileSource {
    fn new(file: Arc<File>, length: u64) -> Self {
        Self { file, length, position: 0, buffer: Vec::new(), used: 0 }
    }
}

impl Source for FileSource {
    type Error = LayerError;

    fn fill(&mut self) -> Result<&[u8], LayerError> {
        if self.used == self.buffer.len() {
            // Headers are all that is wanted, one here and one there.
            self.buffer.resize(4096, 0);
            self.used = 0;
            let read = self.file.read_at(&mut self.buffer, self.position);
            self.buffer.truncate(match read {
                Ok(length) => length,
                Err(_) => 0,
            });
            read.map_err(LayerError::Read)?;
        }
        Ok(&self.buffer[self.used..])
    }

    fn consume(&mut self, count: usize) {
        self.used += count;
        self.position += count as u64;
    }

    fn skip(&mut self, count: u64) -> Result<bool, LayerError> {
        let buffered = self.buffer.len() - self.used;
        match usize::try_from(count) {
            Ok(count) if count <= buffered => self.consume(count),
            _ => {
                self.position = self.position.saturating_add(count);
                self.buffer.clear();
                self.used = 0;
            }
        }
        Ok(self.position <= self.length)
    }
}
