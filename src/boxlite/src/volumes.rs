//! The named volumes of a home: folders that belong to no box and stay until they are removed.
//!
//! ```text
//!   row in the database ──▶ volumes/<name>/   made when it is first needed
//!   volumes/<name>/ ──rename──▶ tmp/removed-… ──▶ row deleted ──▶ nothing
//! ```
//!
//! The row is the volume. What a crash leaves is a row without a folder, which is an empty volume, or something in `tmp`, which
//! belongs to nobody. Whether a box uses a volume is decided under the home's lock, under which boxes come to be as well.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::error::{Error, ErrorKind, Result, storage};
use crate::home::{TRASH, new_id};
use crate::lifecycle::BoxUpdate;
use crate::monitor::unix_nanos;
use crate::options::{limits, validate_labels, validate_name};
use crate::record::BoxRecord;
use crate::recovery;
use crate::runtime::{BoxliteRuntime, RuntimeInner, blocking};
use crate::store::VolumeRow;
use crate::usage;
use crate::volume::{self, VolumeRecord, VolumeSource};

/// What a new volume is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VolumeOptions {
    /// How much it holds at most, in bytes: the sizes of its files, and 4 KiB for each file and folder. `None`: as much as
    /// the host has.
    pub quota_bytes: Option<u64>,
    /// Labels; at most 256 KiB in all.
    pub labels: BTreeMap<String, String>,
}

/// A volume as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created_at: SystemTime,
    /// Where its files lie on the host.
    pub path: PathBuf,
    /// See [`VolumeOptions::quota_bytes`].
    pub quota_bytes: Option<u64>,
    /// What it takes on the disk, in bytes.
    pub size_bytes: u64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// It was made for one box, and goes with it.
    pub anonymous: bool,
    /// The boxes that have it, by name or id.
    pub used_by: Vec<String>,
}

/// The volumes of a runtime.
#[derive(Clone, Debug)]
pub struct VolumeHandle {
    inner: Arc<RuntimeInner>,
}

impl BoxliteRuntime {
    /// Its volumes.
    pub fn volumes(&self) -> VolumeHandle {
        VolumeHandle { inner: self.shared() }
    }
}

impl VolumeHandle {
    /// Makes a volume.
    ///
    /// # Errors
    /// `AlreadyExists` when there is one of this name; when the name or an option is invalid.
    pub async fn create(&self, name: &str, options: VolumeOptions) -> Result<VolumeInfo> {
        validate_name(name)?;
        validate_labels(&options.labels)?;
        if options.quota_bytes == Some(0) {
            return Err(Error::new(ErrorKind::InvalidArgument, "a volume of no bytes is of no use"));
        }
        let (inner, name) = (self.inner.clone(), name.to_owned());
        blocking(move || {
            let (row, added) = inner.boxes.add_volume(&new_row(&name, options, false))?;
            if !added {
                let message = format!("there is a volume `{name}` already");
                return Err(Error::new(ErrorKind::AlreadyExists, message));
            }
            inner.volume_folder(&name)?;
            inner.volume_info(row, &inner.boxes.all()?)
        })
        .await
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// When the database or a folder cannot be read.
    pub async fn list(&self) -> Result<Vec<VolumeInfo>> {
        let inner = self.inner.clone();
        blocking(move || {
            let boxes = inner.boxes.all()?;
            inner.boxes.volumes()?.into_iter().map(|row| inner.volume_info(row, &boxes)).collect()
        })
        .await
    }

    /// The volume of this name.
    ///
    /// # Errors
    /// `NotFound` when there is none; when the database or its folder cannot be read.
    pub async fn get(&self, name: &str) -> Result<VolumeInfo> {
        let (inner, name) = (self.inner.clone(), name.to_owned());
        blocking(move || {
            let row = inner.boxes.volume(&name)?.ok_or_else(|| no_volume(&name))?;
            inner.volume_info(row, &inner.boxes.all()?)
        })
        .await
    }

    /// Removes a volume with all that is in it.
    ///
    /// # Errors
    /// `NotFound` when there is none; `InvalidState` when a box has it.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let (inner, name) = (self.inner.clone(), name.to_owned());
        blocking(move || inner.remove_volume(&name)).await
    }

    /// Removes the volumes that no box has and that were made for one box; with `all` every volume that no box has. Gives their
    /// names.
    ///
    /// # Errors
    /// When one cannot be removed. What was removed by then stays so.
    pub async fn prune(&self, all: bool) -> Result<Vec<String>> {
        let inner = self.inner.clone();
        blocking(move || {
            let mut removed = Vec::new();
            for row in inner.boxes.volumes()? {
                if !(all || row.anonymous) {
                    continue;
                }
                match inner.remove_volume(&row.name) {
                    Ok(()) => removed.push(row.name),
                    Err(error) if matches!(error.kind(), ErrorKind::InvalidState | ErrorKind::NotFound) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(removed)
        })
        .await
    }
}

/// See [`RuntimeInner::volume_uses`].
pub(crate) struct VolumeUse {
    pub(crate) place: PathBuf,
    pub(crate) used: bool,
}

fn no_volume(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no volume `{}`", name.escape_debug()))
}

fn new_row(name: &str, options: VolumeOptions, anonymous: bool) -> VolumeRow {
    VolumeRow {
        name: name.to_owned(),
        created_unix_nanos: unix_nanos(SystemTime::now()),
        quota_bytes: options.quota_bytes,
        anonymous,
        labels: options.labels,
    }
}

/// Whether a box has a volume.
fn uses(record: &BoxRecord, name: &str) -> bool {
    record.volumes.iter().any(|volume| volume.source == VolumeSource::Managed(name.to_owned()))
}

impl RuntimeInner {
    fn volume_place(&self, name: &str) -> PathBuf {
        self.home.volumes().join(name)
    }

    /// The folder of a volume, made if it is missing.
    fn volume_folder(&self, name: &str) -> Result<PathBuf> {
        let place = self.volume_place(name);
        match fs::DirBuilder::new().mode(0o755).create(&place) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(storage(format!("cannot make {}", place.display()), e)),
        }
        place.canonicalize().map_err(|e| storage(format!("cannot resolve {}", place.display()), e))
    }

    /// Where a box's volume of this name lies, and how much it may hold.
    pub(crate) fn managed_volume(&self, name: &str) -> Result<(PathBuf, Option<u64>)> {
        let row = self.boxes.volume(name)?.ok_or_else(|| {
            no_volume(name).with_hint(format!("`boxlite volume create {name}` makes an empty one"))
        })?;
        Ok((self.volume_folder(name)?, row.quota_bytes))
    }

    /// Makes the volumes that a new box names, and gives names to those that are its own. The caller holds the home's lock.
    pub(crate) fn claim_volumes(&self, record: &mut BoxRecord) -> Result<()> {
        for volume in &mut record.volumes {
            let (name, anonymous) = match &volume.source {
                VolumeSource::Host(_) => continue,
                VolumeSource::Managed(name) => (name.clone(), false),
                VolumeSource::Anonymous => (format!("{}{}", new_id()?, new_id()?), true),
            };
            self.boxes.add_volume(&new_row(&name, VolumeOptions::default(), anonymous))?;
            self.volume_folder(&name)?;
            volume.source = VolumeSource::Managed(name);
        }
        Ok(())
    }

    /// The volumes of a box after a change; `None` when it changes none. The caller holds the home's lock.
    pub(crate) fn changed_volumes(&self, id: &str, change: &BoxUpdate) -> Result<Option<Vec<VolumeRecord>>> {
        if change.add_volumes.is_empty() && change.remove_volumes.is_empty() {
            return Ok(None);
        }
        let record = self.boxes.get(id)?;
        let mut record =
            record.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("box {id} has been removed")))?;
        for place in &change.remove_volumes {
            let target = volume::guest_path(place)?;
            let before = record.volumes.len();
            record.volumes.retain(|volume| volume.target != target);
            if record.volumes.len() == before {
                let message = format!("box {id} has no volume on `{target}`");
                return Err(Error::new(ErrorKind::NotFound, message));
            }
        }
        let (added, _) = volume::resolve(&change.add_volumes, &[])?;
        for volume in &added {
            let taken = record.volumes.iter().map(|other| &other.target);
            let mut taken = taken.chain(record.container.mounts.iter().map(|mount| &mount.target));
            if taken.any(|target| *target == volume.target) {
                let message = format!("box {id} has something mounted on `{}` already", volume.target);
                return Err(Error::new(ErrorKind::AlreadyExists, message));
            }
        }
        record.volumes.extend(added);
        if record.volumes.len() > limits::MAX_VOLUMES {
            let message = format!("a box has at most {} volumes", limits::MAX_VOLUMES);
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        self.claim_volumes(&mut record)?;
        Ok(Some(record.volumes))
    }

    fn remove_volume(&self, name: &str) -> Result<()> {
        let changing = self.home.lock()?;
        self.boxes.volume(name)?.ok_or_else(|| no_volume(name))?;
        let users: Vec<String> = self.users(name, &self.boxes.all()?);
        if !users.is_empty() {
            let message = format!("the volume `{name}` is in use by {}", users.join(", "));
            return Err(Error::new(ErrorKind::InvalidState, message).with_hint("remove those boxes before"));
        }
        let place = self.volume_place(name);
        let trash = self.home.tmp().join(format!("{TRASH}{}", new_id()?));
        match fs::rename(&place, &trash) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(storage(format!("cannot remove {}", place.display()), e)),
        }
        self.boxes.delete_volume(name)?;
        drop(changing);
        recovery::delete(&trash)
    }

    /// The boxes that have a volume, by name or id. One whose folder has gone has none any more.
    fn users(&self, name: &str, boxes: &[BoxRecord]) -> Vec<String> {
        let with = boxes.iter().filter(|record| uses(record, name) && !self.is_gone(&record.id));
        with.map(|record| record.name.clone().unwrap_or_else(|| record.id.clone())).collect()
    }

    /// Where each volume lies, and whether a box has it.
    pub(crate) fn volume_uses(&self) -> Result<Vec<VolumeUse>> {
        let boxes = self.boxes.all()?;
        let volumes = self.boxes.volumes()?.into_iter();
        let of = |row: VolumeRow| VolumeUse {
            place: self.volume_place(&row.name),
            used: !self.users(&row.name, &boxes).is_empty(),
        };
        Ok(volumes.map(of).collect())
    }

    /// Removes the volumes that were made for a box that has gone.
    pub(crate) fn drop_anonymous_volumes(&self) -> Result<()> {
        for row in self.boxes.volumes()?.into_iter().filter(|row| row.anonymous) {
            match self.remove_volume(&row.name) {
                Err(error) if !matches!(error.kind(), ErrorKind::InvalidState | ErrorKind::NotFound) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn volume_info(&self, row: VolumeRow, boxes: &[BoxRecord]) -> Result<VolumeInfo> {
        let path = self.volume_place(&row.name);
        Ok(VolumeInfo {
            created_at: SystemTime::UNIX_EPOCH + Duration::from_nanos(row.created_unix_nanos),
            size_bytes: usage::of_tree(&path)?,
            used_by: self.users(&row.name, boxes),
            path,
            quota_bytes: row.quota_bytes,
            labels: row.labels,
            anonymous: row.anonymous,
            name: row.name,
        })
    }
}
