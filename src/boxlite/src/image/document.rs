//! Documents of the store: JSON behind one line that says which version it is and what it hashes to.
//!
//! ```text
//! {"version":2,"sha256":"<hex of what follows this line>"}
//! {…}
//! ```
//!
//! The first line is readable without knowing the rest. A document is replaced by a rename and synced, so a crash leaves
//! the old one or the new one; one that was changed by anything else is noticed and never half believed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::ImageError;

/// Version of all documents of the store.
pub(super) const VERSION: u32 = 2;
/// How a document ends its name while it is written.
pub(super) const DRAFT_SUFFIX: &str = ".new";
/// The largest document that is read, in bytes: names of tens of thousands of images.
const LIMIT: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
    #[serde(default)]
    sha256: String,
}

/// Reads a document; nothing when there is none.
pub(super) fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>, ImageError> {
    let mut bytes = Vec::new();
    let read =
        File::open(path).and_then(|file| io::Read::read_to_end(&mut io::Read::take(file, LIMIT), &mut bytes));
    match read {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ImageError::io("read", path, error)),
    }
    let bad = |reason: String| ImageError::Format { path: path.to_owned(), reason };
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (head, body) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    let head: Head = serde_json::from_slice(head).map_err(|error| bad(error.to_string()))?;
    if head.version != VERSION {
        return Err(bad(format!("it has version {}, this program knows version {VERSION}", head.version)));
    }
    if Digest::of(body).hex() != head.sha256 {
        return Err(bad("it is damaged: its checksum is wrong".into()));
    }
    serde_json::from_slice(body).map(Some).map_err(|error| bad(error.to_string()))
}

/// Writes a document: all of it or, after a crash, the old one. There must be one writer at a time.
pub(super) fn write<T: Serialize>(path: &Path, document: &T) -> Result<(), ImageError> {
    let write = || -> io::Result<()> {
        let body = serde_json::to_vec(document)?;
        let mut bytes = serde_json::to_vec(&Head { version: VERSION, sha256: Digest::of(&body).hex() })?;
        bytes.push(b'\n');
        bytes.extend(body);
        // There is one writer, so one name will do; what a killed one left is overwritten.
        let mut draft = path.as_os_str().to_owned();
        draft.push(DRAFT_SUFFIX);
        let draft = Path::new(&draft);
        let mut file = File::create(draft)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(draft, path)?;
        match path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|error| ImageError::io("write", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_reads_back_and_no_changed_byte_of_it_is_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        assert_eq!(read::<Vec<String>>(&path).unwrap(), None);
        let document = vec!["some".to_owned(), "names".to_owned()];
        write(&path, &document).unwrap();
        assert_eq!(read::<Vec<String>>(&path).unwrap(), Some(document.clone()));
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(read::<Vec<String>>(&path).is_err(), "byte {at}");
        }
        for cut in 0..good.len() {
            fs::write(&path, &good[..cut]).unwrap();
            assert!(read::<Vec<String>>(&path).is_err(), "cut at {cut}");
        }
    }
}
