//! The names of the files of one box.

use std::path::{Path, PathBuf};

/// A box's folder, and what lies where in it. See `docs/storage.md`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoxFiles {
    folder: PathBuf,
}

impl BoxFiles {
    /// The files of the box in this folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The last published [`StatusFile`](crate::StatusFile). Written by the monitor alone.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Locked with `flock(2)` by the monitor as long as it lives.
    pub fn lock(&self) -> PathBuf {
        self.folder.join("lock")
    }

    /// Locked with `flock(2)` by the program that creates the box, and as long as it lives when it answers for it.
    pub fn owner(&self) -> PathBuf {
        self.folder.join("owner")
    }

    /// The writable layer.
    pub fn disk(&self) -> PathBuf {
        self.folder.join("disk.qcow2")
    }

    /// Where the monitor listens.
    pub fn control_socket(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// Where the VMM listens for connections to the guest's portal.
    pub fn portal_socket(&self) -> PathBuf {
        self.folder.join("portal.sock")
    }

    /// Where the monitor listens for the guest's boot channel.
    pub fn boot_socket(&self) -> PathBuf {
        self.folder.join("boot.sock")
    }

    /// Where the server of the box's volumes listens, for an engine whose guest reaches it over vsock.
    pub fn share_socket(&self) -> PathBuf {
        self.folder.join("share.sock")
    }

    /// The folder of the logs.
    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// The guest's console. Rotated once to `console.log.1`.
    pub fn console_log(&self) -> PathBuf {
        self.logs().join("console.log")
    }

    /// What the main command wrote, see [`output_log`](crate::output_log). Rotated once to `output.log.1`.
    pub fn output_log(&self) -> PathBuf {
        self.logs().join("output.log")
    }

    /// What monitor and VMM wrote to their standard error.
    pub fn shim_log(&self) -> PathBuf {
        self.logs().join("shim.log")
    }
}

/// The name of a log after it was moved aside, for the one before it.
pub fn rotated(log: &Path) -> PathBuf {
    let mut aside = log.as_os_str().to_owned();
    aside.push(".1");
    aside.into()
}
