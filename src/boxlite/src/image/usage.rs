//! What images take on the disk, and the removal of what nobody uses.

use std::collections::BTreeSet;

use serde::Serialize;

use super::blobs::allocated;
use super::digest::Digest;
use super::document;
use super::error::ImageError;
use super::record::Record;
use super::store::{ImageStore, Used, discard, names_in};

/// What images take on the disk of this machine. All sizes are bytes of allocated blocks, as `du` counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Usage {
    /// Images.
    pub images: usize,
    /// Images that boxes use.
    pub active: usize,
    /// All disks.
    pub disk_bytes: u64,
    /// All blobs: layers as they came, manifests, configurations.
    pub blob_bytes: u64,
    /// Records, names, locks; downloads and disks that are not complete.
    pub other_bytes: u64,
    /// Of all these, what belongs to no image that a box uses.
    pub reclaimable_bytes: u64,
}

impl Usage {
    /// All together.
    pub fn total_bytes(&self) -> u64 {
        self.disk_bytes + self.blob_bytes + self.other_bytes
    }
}

/// What a prune removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Pruned {
    /// Names that are gone.
    pub untagged: Vec<String>,
    /// Digests of images that are gone.
    pub deleted: Vec<String>,
    /// Bytes that are free now, by the size of what was removed.
    pub freed_bytes: u64,
    /// Whether files without an image were left, as somebody is loading, pulling or saving, or a record is damaged.
    pub incomplete: bool,
}

impl ImageStore {
    /// What images take.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn usage(&self, used: &Used) -> Result<Usage, ImageError> {
        let (blobs, partial) = self.blobs.usage()?;
        let records = self.records()?;
        let (active, idle): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|record| used.contains_key(&record.digest.0.to_string()));
        let mut usage = Usage {
            images: active.len() + idle.len(),
            active: active.len(),
            blob_bytes: blobs.iter().map(|(_, size)| size).sum(),
            other_bytes: partial,
            reclaimable_bytes: partial,
            ..Usage::default()
        };
        let kept: BTreeSet<Digest> =
            active.iter().flat_map(|record| record.blobs().collect::<Vec<_>>()).collect();
        usage.reclaimable_bytes +=
            blobs.iter().filter(|(digest, _)| !kept.contains(digest)).map(|(_, size)| size).sum::<u64>();
        let names = names_in(&self.folder)?;
        let disks: BTreeSet<Digest> = active.iter().map(|record| record.chain()).collect();
        for chain in self.disks.chains(&names) {
            let size = allocated(&self.disks.path(&chain))?;
            usage.disk_bytes += size;
            if !disks.contains(&chain) {
                usage.reclaimable_bytes += size;
            }
        }
        for name in names.iter().filter(|name| !name.ends_with(super::disks::DISK_SUFFIX)) {
            usage.other_bytes += allocated(&self.folder.join(name))?;
        }
        Ok(usage)
    }

    /// Removes images without a name, or all that no box in `used` has; and files that belong to no image.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn prune(&self, all: bool, used: &Used) -> Result<Pruned, ImageError> {
        let mut pruned = Pruned::default();
        self.sweep_drafts()?;
        {
            let _lock = self.lock()?;
            let mut refs = self.refs()?;
            for digest in self.digests()? {
                let text = digest.to_string();
                let names = refs.of(&digest);
                if used.contains_key(&text) || !(all || names.is_empty()) {
                    continue;
                }
                for name in &names {
                    refs.refs.remove(name);
                }
                if !names.is_empty() {
                    self.put_refs(&refs)?;
                }
                pruned.untagged.extend(names);
                if let Ok(record) = self.record(&digest) {
                    pruned.freed_bytes += self.disk_alone(&record.chain(), &digest)?;
                }
                self.delete(&digest)?;
                pruned.deleted.push(text);
            }
            // Of a record that cannot be read nobody knows which disk it has.
            let records = self.all_records()?;
            let chains =
                records.map(|records| records.iter().map(Record::chain).collect::<BTreeSet<Digest>>());
            for chain in self.disks.chains(&names_in(&self.folder)?) {
                if chains.as_ref().is_some_and(|chains| !chains.contains(&chain)) {
                    pruned.freed_bytes += allocated(&self.disks.path(&chain))?;
                    self.disks.remove(&chain)?;
                }
            }
            for name in names_in(&self.folder)?.iter().filter(|name| name.ends_with(document::DRAFT_SUFFIX)) {
                discard(&self.folder.join(name));
            }
        }
        match self.sweep_blobs()? {
            Some(freed) => pruned.freed_bytes += freed,
            None => pruned.incomplete = true,
        }
        Ok(pruned)
    }

    /// What a disk takes that no image but this one has; else 0.
    fn disk_alone(&self, chain: &Digest, digest: &Digest) -> Result<u64, ImageError> {
        let shared = self.records()?.iter().any(|other| other.digest.0 != *digest && other.chain() == *chain);
        if shared { Ok(0) } else { allocated(&self.disks.path(chain)) }
    }
}
