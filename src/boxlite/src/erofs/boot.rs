//! The boot disk: a tiny image, shared by all boxes, with the guest agent as `/init` and the folders it mounts over.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::tree::{Meta, Tree, TreeLimits};
use super::writer::{PutFileError, Writer, WriterError};
use super::xattr::Xattrs;

/// What the agent mounts over.
const FOLDERS: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];
const LIMITS: TreeLimits = TreeLimits { entries: 64, memory: 1 << 20 };

/// Why the boot disk could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootDiskError {
    #[error("cannot read the guest agent {path}")]
    Agent { path: PathBuf, source: io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot write the boot disk")]
    Image(#[from] WriterError),
    #[error("cannot build the boot disk")]
    Build(#[from] PutFileError),
}

/// Makes a boot disk of the agent at `agent` and puts it, complete and synced, at `out`, in place of what is there.
pub(crate) fn boot_disk(agent: &Path, out: &Path) -> Result<(), BootDiskError> {
    let unreadable = |source| BootDiskError::Agent { path: agent.to_owned(), source };
    let unwritable = |source| BootDiskError::Write { path: out.to_owned(), source };
    let agent = File::open(agent).map_err(unreadable)?;
    let size = agent.metadata().map_err(unreadable)?.len();
    let mut contents = Hashing { inner: agent, hash: Sha256::new() };
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".boot-disk-").tempfile_in(folder).map_err(unwritable)?;
    let spool = tempfile::tempfile_in(folder).map_err(unwritable)?;

    let mut writer = Writer::new(file.reopen().map_err(unwritable)?, spool, LIMITS);
    for name in FOLDERS {
        let made = writer.tree().put_dir(Tree::ROOT, name.as_bytes(), Meta::IMPLIED, &Xattrs::default());
        made.map_err(PutFileError::Tree)?;
    }
    writer.put_file(Tree::ROOT, b"init", Meta::IMPLIED, size, &mut contents)?;
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&contents.hash.finalize()[..16]);
    let (image, _) = writer.finish(uuid)?;
    image.sync_all().map_err(unwritable)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    image.set_permissions(mode).map_err(unwritable)?;
    file.persist(out).map_err(|error| unwritable(error.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(unwritable)
}

struct Hashing {
    inner: File,
    hash: Sha256,
}

impl io::Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}
