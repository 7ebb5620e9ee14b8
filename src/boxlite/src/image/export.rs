//! Saving: images as an OCI archive, out of the blobs as they came.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Watch;
use super::digest::Digest;
use super::error::{ImageError, LayerError};
use super::manifest::{INDEX, MANIFEST};
use super::record::Record;
use super::store::ImageStore;

/// What an image is called in an archive: in full, as containerd has it, and by its tag, as the specification has it.
const FULL_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

impl ImageStore {
    /// Writes images into an OCI archive (a tar file of an OCI image layout). Manifests and layers are the very bytes that
    /// came, so digests stay as they are.
    ///
    /// # Errors
    /// When there is no such image, a layer of it was damaged, or `out` cannot be written.
    pub fn save(
        &self,
        references: &[String],
        out: &mut dyn Write,
        watch: Watch<'_>,
    ) -> Result<(), ImageError> {
        let _using = self.use_blobs(watch)?;
        let refs = self.refs()?;
        let mut manifests: Vec<Value> = Vec::new();
        let mut blobs: BTreeSet<Digest> = BTreeSet::new();
        let mut saved: BTreeSet<(Digest, Option<String>)> = BTreeSet::new();
        for reference in references {
            let (digest, name) = self.find(reference, &refs)?;
            if !saved.insert((digest, name.clone())) {
                continue;
            }
            let record = self.record(&digest)?;
            for blob in record.blobs() {
                if !self.blobs.exists(&blob)? {
                    return Err(ImageError::MissingBlob { digest: blob });
                }
            }
            manifests.push(self.entry(&record, name.as_deref())?);
            blobs.extend(record.blobs());
        }
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        let mut tar = tar::Builder::new(out);
        let failed = |error| ImageError::io("write", "the archive", error);
        let document = |tar: &mut tar::Builder<&mut dyn Write>, name: &str, document: &Value| {
            let bytes = document.to_string().into_bytes();
            append(tar, name, bytes.len() as u64, bytes.as_slice())
        };
        document(&mut tar, "oci-layout", &json!({ "imageLayoutVersion": "1.0.0" })).map_err(failed)?;
        document(&mut tar, "index.json", &index).map_err(failed)?;
        for digest in blobs {
            watch(super::Progress::Waiting)?;
            self.export(&digest, &mut tar)?;
        }
        tar.finish().map_err(failed)
    }

    fn entry(&self, record: &Record, name: Option<&str>) -> Result<Value, ImageError> {
        let digest = record.digest.0;
        let bytes = self.blobs.document(&digest, super::manifest::DOCUMENT_MAX)?;
        let bytes = bytes.ok_or(ImageError::MissingBlob { digest })?;
        // Older manifests of Docker have another type, and say so themselves.
        let media_type = serde_json::from_slice::<Value>(&bytes)
            .ok()
            .and_then(|manifest| Some(manifest.get("mediaType")?.as_str()?.to_owned()))
            .unwrap_or_else(|| MANIFEST.to_owned());
        let mut entry = json!({
            "mediaType": media_type,
            "digest": digest.to_string(),
            "size": bytes.len(),
            "platform": { "os": record.config.os, "architecture": record.config.architecture },
        });
        if let Some(name) = name {
            let tag = name.rsplit_once(':').map_or(name, |(_, tag)| tag);
            entry["annotations"] = json!({ FULL_NAME: name, REF_NAME: tag });
        }
        Ok(entry)
    }

    /// Writes a blob, and refuses one that is not what its name says.
    fn export(&self, digest: &Digest, tar: &mut tar::Builder<&mut dyn Write>) -> Result<(), ImageError> {
        let path = self.blobs.path(digest);
        let file = self.blobs.open_blob(digest)?;
        let size = file.metadata().map_err(|error| ImageError::io("look at", &path, error))?.len();
        let mut contents = Hashing { inner: file, hash: Sha256::new() };
        append(tar, &format!("blobs/sha256/{}", digest.hex()), size, &mut contents)
            .map_err(|error| ImageError::io("write", "the archive", error))?;
        let actual = Digest::finish(contents.hash);
        if actual != *digest {
            self.blobs.remove(digest)?;
            let source = LayerError::BlobDigest { expected: *digest, actual };
            return Err(ImageError::Blob { digest: *digest, source });
        }
        Ok(())
    }
}

/// Appends a file that looks the same whoever writes it.
fn append(
    tar: &mut tar::Builder<&mut dyn Write>,
    name: &str,
    size: u64,
    contents: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, name, contents)
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}
