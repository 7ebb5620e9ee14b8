//! What a home takes on the disk, and the removal of what is not used.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use crate::error::{ErrorKind, Result, storage};
use crate::image::Pruned;
use crate::runtime::{BoxliteRuntime, RuntimeInner, blocking};
use crate::store;

/// What a home folder takes on the disk, in bytes of allocated blocks, folders included: as `du` counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DiskUsage {
    /// Boxes: their writable layers and logs.
    pub boxes: UsageGroup,
    /// Images: their disks, their layers as they came, downloads under way.
    pub images: UsageGroup,
    /// Volumes; those that no box has are not in use.
    pub volumes: UsageGroup,
    /// What all boxes share and can be made again.
    pub cache_bytes: u64,
    /// What is being made or removed, logins, settings.
    pub other_bytes: u64,
}

/// A part of [`DiskUsage`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UsageGroup {
    /// How many there are.
    pub count: usize,
    /// How many of them are in use: boxes that run, images that boxes have.
    pub active: usize,
    /// What they take.
    pub bytes: u64,
    /// What removing those that are not in use would free.
    pub reclaimable_bytes: u64,
}

impl DiskUsage {
    /// All together.
    pub fn total_bytes(&self) -> u64 {
        self.boxes.bytes + self.images.bytes + self.volumes.bytes + self.cache_bytes + self.other_bytes
    }
}

/// What [`BoxliteRuntime::prune`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SystemPruned {
    /// Ids of boxes.
    pub boxes: Vec<String>,
    /// Images.
    pub images: Pruned,
    /// By how much the home is smaller now.
    pub freed_bytes: u64,
}

impl BoxliteRuntime {
    /// What the home takes on the disk. Others may change it meanwhile.
    ///
    /// # Errors
    /// When a file or folder cannot be looked at.
    pub async fn disk_usage(&self) -> Result<DiskUsage> {
        let inner = self.shared();
        blocking(move || inner.disk_usage()).await
    }

    /// Removes boxes that do not run; images without a name or, with `all`, every image that no box uses; and files that
    /// belong to nothing.
    ///
    /// # Errors
    /// When something cannot be removed. What was removed by then stays so.
    pub async fn prune(&self, all: bool) -> Result<SystemPruned> {
        let before = self.disk_usage().await?.total_bytes();
        let mut pruned = SystemPruned::default();
        for info in self.list_info().await? {
            // Who has just created one is about to start it.
            if info.status.is_active() || self.inner().has_owner(&info.id)? {
                continue;
            }
            match self.remove(&info.id, false).await {
                Ok(()) => pruned.boxes.push(info.id),
                // Started or removed meanwhile.
                Err(error) if matches!(error.kind(), ErrorKind::InvalidState | ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        pruned.images = self.images().prune(all).await?;
        pruned.freed_bytes = before.saturating_sub(self.disk_usage().await?.total_bytes());
        Ok(pruned)
    }
}

impl RuntimeInner {
    fn disk_usage(&self) -> Result<DiskUsage> {
        let mut seen = HashSet::new();
        let mut take = |path: &Path| allocated(path, &mut seen);
        let mut usage = DiskUsage::default();
        for info in self.list()? {
            let bytes = take(self.home.files(&info.id).folder())?;
            usage.boxes.count += 1;
            usage.boxes.bytes += bytes;
            if info.status.is_active() {
                usage.boxes.active += 1;
            } else {
                usage.boxes.reclaimable_bytes += bytes;
            }
        }
        // The folder itself, and boxes whose records are damaged.
        usage.boxes.bytes += take(&self.home.boxes())?;
        let images = self.image_usage()?;
        usage.images = UsageGroup {
            count: images.images,
            active: images.active,
            bytes: take(&self.home.images())? + take(&self.home.root().join("blobs"))?,
            reclaimable_bytes: images.reclaimable_bytes,
        };
        for volume in self.volume_uses()? {
            let bytes = take(&volume.place)?;
            usage.volumes.count += 1;
            usage.volumes.bytes += bytes;
            if volume.used {
                usage.volumes.active += 1;
            } else {
                usage.volumes.reclaimable_bytes += bytes;
            }
        }
        usage.volumes.bytes += take(&self.home.volumes())?;
        usage.cache_bytes = take(&self.home.cache())?;
        // Memory that those share who have the database open, this process among them. It goes with the last of them.
        take(&self.home.root().join(store::SHARED_MEMORY))?;
        usage.other_bytes = take(self.home.root())?;
        Ok(usage)
    }
}

/// What a tree takes, in bytes of allocated blocks.
pub(crate) fn of_tree(path: &Path) -> Result<u64> {
    allocated(path, &mut HashSet::new())
}

/// What a file, or a folder with all below it, takes; what was counted before is left out. What vanishes meanwhile takes
/// nothing, and neither does what lies so deep that it has no path: boxes fill volumes as they like.
fn allocated(path: &Path, seen: &mut HashSet<(u64, u64)>) -> Result<u64> {
    let failed = |path: &Path, error: io::Error| storage(format!("cannot look at {}", path.display()), error);
    let passed =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename);
    let mut bytes = 0;
    let mut pending = vec![path.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(error) if passed(&error) => continue,
            Err(error) => return Err(failed(&path, error)),
        };
        if !seen.insert((meta.dev(), meta.ino())) {
            continue;
        }
        bytes += meta.blocks() * 512;
        if meta.is_dir() {
            match fs::read_dir(&path) {
                Ok(entries) => {
                    for entry in entries {
                        pending.push(entry.map_err(|error| failed(&path, error))?.path());
                    }
                }
                Err(error) if passed(&error) => {}
                Err(error) => return Err(failed(&path, error)),
            }
        }
    }
    Ok(bytes)
}
