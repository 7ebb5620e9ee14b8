//! What a box has mounted over its image: folders and files of the host, named volumes, memory.

use std::path::{Component, Path, PathBuf};

use boxlite_control::{MountSource, MountSpec, ShareVolume};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::options::{limits, validate_name};
use crate::record::BoxRecord;

/// A folder or a single file of the host, or a named volume, that a box sees at a path of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VolumeSpec {
    /// The place on the host. It is resolved once, when the box is created: a leading `~` or `~/` is the home folder of the
    /// user (`$HOME`), a relative path starts from the current folder, and links are followed. What is mounted is the place
    /// found then, whatever becomes of a link. Not UTF-8 is refused. Empty when [`managed_volume`](Self::managed_volume) is
    /// given.
    pub host_path: PathBuf,
    /// The name of a volume of this home instead, which is made if there is none. An empty name means one of the box's own,
    /// which is removed with it. `None`: a place on the host.
    pub managed_volume: Option<String>,
    /// Where the box sees it: an absolute path, not `/` and not below `/proc`. It is made if the image has nothing there.
    pub guest_path: String,
    /// The host refuses every write. Default false.
    pub read_only: bool,
    /// A place on the host that does not exist is made, as a folder. Otherwise, which is the default, it is an error.
    pub create: bool,
}

impl VolumeSpec {
    /// A place on the host.
    pub fn host(host_path: impl Into<PathBuf>, guest_path: impl Into<String>) -> Self {
        Self { host_path: host_path.into(), guest_path: guest_path.into(), ..Self::default() }
    }

    /// A named volume.
    pub fn managed(name: impl Into<String>, guest_path: impl Into<String>) -> Self {
        Self { managed_volume: Some(name.into()), guest_path: guest_path.into(), ..Self::default() }
    }

    /// Lets the host refuse writes.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Makes a folder on the host if it is missing.
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }
}

/// A file system in memory that a box sees at a path. It is empty at each start of the box.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TmpfsSpec {
    /// Where the box sees it; as in [`VolumeSpec::guest_path`].
    pub guest_path: String,
    /// How much it holds at most, in bytes. `None`: half of the box's memory.
    pub size_bytes: Option<u64>,
    /// Permissions of its root, 0 to 0o7777. `None`: 0o1777.
    pub mode: Option<u32>,
    /// The box cannot write to it. Default false.
    pub read_only: bool,
}

impl TmpfsSpec {
    /// One of the default size.
    pub fn new(guest_path: impl Into<String>) -> Self {
        Self { guest_path: guest_path.into(), ..Self::default() }
    }

    /// Sets how much it holds at most, in bytes.
    #[must_use]
    pub fn size(mut self, bytes: u64) -> Self {
        self.size_bytes = Some(bytes);
        self
    }

    /// Sets the permissions of its root.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }
}

/// Something that is mounted in a box.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MountInfo {
    /// `bind`, `volume` or `tmpfs`.
    pub kind: &'static str,
    /// The place on the host, or the name of the volume; `None` for memory.
    pub source: Option<String>,
    /// Where the box sees it.
    pub guest_path: String,
    /// It cannot be written.
    pub read_only: bool,
}

/// What a box has mounted.
pub(crate) fn mounts(record: &BoxRecord) -> Vec<MountInfo> {
    let volumes = record.volumes.iter().map(|volume| {
        let (kind, source) = match &volume.source {
            VolumeSource::Host(path) => ("bind", Some(path.display().to_string())),
            VolumeSource::Managed(name) => ("volume", Some(name.clone())),
            VolumeSource::Anonymous => ("volume", None),
        };
        MountInfo { kind, source, guest_path: volume.target.clone(), read_only: volume.read_only }
    });
    let memory = record.container.mounts.iter().map(|mount| MountInfo {
        kind: "tmpfs",
        source: None,
        guest_path: mount.target.clone(),
        read_only: mount.read_only,
    });
    volumes.chain(memory).collect()
}

/// A volume of a box, as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeRecord {
    pub(crate) source: VolumeSource,
    pub(crate) target: String,
    pub(crate) read_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum VolumeSource {
    /// A resolved place on the host.
    Host(PathBuf),
    /// A volume of the home.
    Managed(String),
    /// One that is to get a name when the box is made.
    Anonymous,
}

/// What the options ask for, resolved: volumes for the share, and memory.
pub(crate) fn resolve(
    volumes: &[VolumeSpec],
    tmpfs: &[TmpfsSpec],
) -> Result<(Vec<VolumeRecord>, Vec<MountSpec>)> {
    let mut targets = Vec::new();
    let mut taken = |path: &str| -> Result<String> {
        let target = guest_path(path)?;
        if targets.contains(&target) {
            return Err(invalid(format!("two mounts have the place `{target}`")));
        }
        targets.push(target.clone());
        Ok(target)
    };
    let mut records = Vec::new();
    for volume in volumes {
        let target = taken(&volume.guest_path)?;
        let source = match &volume.managed_volume {
            Some(_) if !volume.host_path.as_os_str().is_empty() => {
                return Err(invalid(format!(
                    "the volume on `{target}` is named and has a place on the host"
                )));
            }
            Some(name) if name.is_empty() => VolumeSource::Anonymous,
            Some(name) => {
                validate_name(name)?;
                VolumeSource::Managed(name.clone())
            }
            None => VolumeSource::Host(host_path(&volume.host_path, volume.create)?),
        };
        records.push(VolumeRecord { source, target, read_only: volume.read_only });
    }
    let mut mounts = Vec::new();
    for memory in tmpfs {
        let target = taken(&memory.guest_path)?;
        if memory.size_bytes == Some(0) {
            return Err(invalid(format!("the memory on `{target}` has no bytes")));
        }
        if memory.mode.is_some_and(|mode| mode > 0o7777) {
            return Err(invalid(format!(
                "the mode of the memory on `{target}` has more than permission bits"
            )));
        }
        let (bytes, mode) = (memory.size_bytes.unwrap_or_default(), memory.mode.unwrap_or_default());
        mounts.push(MountSpec {
            target,
            read_only: memory.read_only,
            source: MountSource::Tmpfs { bytes, mode },
        });
    }
    if records.len() > limits::MAX_VOLUMES {
        return Err(invalid(format!("a box has at most {} volumes", limits::MAX_VOLUMES)));
    }
    Ok((records, mounts))
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, message)
}

/// An absolute path without `.`, `..` and empty parts.
pub(crate) fn guest_path(path: &str) -> Result<String> {
    let shown = path.escape_debug();
    if !path.starts_with('/') || path.contains('\0') {
        return Err(invalid(format!("`{shown}` is no place in a box: it must begin with `/`")));
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    match parts.first() {
        None => Err(invalid(format!("`{shown}` is the whole of a box: nothing can be mounted there"))),
        Some(&"proc") => Err(invalid(format!("`{shown}` is the kernel's: nothing can be mounted there"))),
        Some(_) => Ok(format!("/{}", parts.join("/"))),
    }
}

/// The place on the host that a path leads to now.
fn host_path(path: &Path, create: bool) -> Result<PathBuf> {
    let shown = path.display();
    if path.as_os_str().is_empty() {
        return Err(invalid("a volume has neither a place on the host nor a name".into()));
    }
    let expanded = expand_home(path)?;
    if create {
        std::fs::create_dir_all(&expanded)
            .map_err(|e| invalid(format!("cannot make the folder {shown} for a volume")).with_source(e))?;
    }
    let real = expanded.canonicalize().map_err(|e| {
        let error = invalid(format!("there is no {shown} on the host for a volume"));
        let missing = e.kind() == std::io::ErrorKind::NotFound;
        let error = error.with_source(e);
        if missing { error.with_hint("make it before, or ask for it to be made") } else { error }
    })?;
    let meta = real.metadata().map_err(|e| invalid(format!("cannot look at {shown}")).with_source(e))?;
    if !meta.is_dir() && !meta.is_file() {
        return Err(invalid(format!("{shown} is neither a folder nor a file")));
    }
    if real.to_str().is_none() {
        return Err(invalid(format!("the place of {shown} is not UTF-8")));
    }
    Ok(real)
}

fn expand_home(path: &Path) -> Result<PathBuf> {
    let mut components = path.components();
    if components.next() != Some(Component::Normal("~".as_ref())) {
        return Ok(path.to_owned());
    }
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let home =
        home.ok_or_else(|| invalid(format!("{} begins with `~`, and HOME is not set", path.display())))?;
    Ok(Path::new(&home).join(components.as_path()))
}

/// The share and the mounts of a box with these volumes, whose managed ones lie where `place` says.
pub(crate) fn share(
    records: &[VolumeRecord],
    place: impl Fn(&str) -> Result<(PathBuf, Option<u64>)>,
) -> Result<(Vec<ShareVolume>, Vec<MountSpec>)> {
    let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
    for (index, record) in records.iter().enumerate() {
        let (path, quota) = match &record.source {
            VolumeSource::Host(path) => (path.clone(), None),
            VolumeSource::Managed(name) => place(name)?,
            VolumeSource::Anonymous => {
                return Err(Error::new(ErrorKind::Internal, "a volume of the box has no name"));
            }
        };
        let name = index.to_string();
        volumes.push(ShareVolume { name: name.clone(), path, read_only: record.read_only, quota });
        mounts.push(MountSpec {
            target: record.target.clone(),
            read_only: record.read_only,
            source: MountSource::Volume(name),
        });
    }
    Ok((volumes, mounts))
}

/// Mounts in an order in which none hides one that came before: outer places first.
pub(crate) fn in_order(mut mounts: Vec<MountSpec>) -> Vec<MountSpec> {
    mounts.sort_by_key(|mount| mount.target.matches('/').count());
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(volumes: &[VolumeSpec]) -> Result<Vec<VolumeRecord>> {
        resolve(volumes, &[]).map(|(records, _)| records)
    }

    #[test]
    fn a_place_in_a_box_is_made_normal() {
        for (path, normal) in [
            ("/data", "/data"),
            ("//a/./b/", "/a/b"),
            ("/a/../b", "/b"),
            ("/../x", "/x"),
            ("/sys/x", "/sys/x"),
        ] {
            assert_eq!(guest_path(path).unwrap(), normal);
        }
        for bad in ["", "data", "/", "/a/..", "/./", "/proc", "/x/../proc/1", "/a\0b"] {
            assert_eq!(guest_path(bad).unwrap_err().kind(), ErrorKind::InvalidArgument, "{bad:?}");
        }
    }

    #[test]
    fn a_place_on_the_host_is_resolved_once() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("first")).unwrap();
        std::os::unix::fs::symlink("first", real.join("link")).unwrap();
        let found = records(&[VolumeSpec::host(real.join("link"), "/data")]).unwrap();
        assert_eq!(found[0].source, VolumeSource::Host(real.join("first")));
        std::fs::write(real.join("file"), "").unwrap();
        records(&[VolumeSpec::host(real.join("file"), "/data")]).unwrap();
    }

    #[test]
    fn what_is_missing_is_an_error_unless_it_is_to_be_made() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("a/b");
        let error = records(&[VolumeSpec::host(&missing, "/data")]).unwrap_err();
        assert!(error.hint().is_some(), "{error}");
        assert!(!missing.exists());
        records(&[VolumeSpec::host(&missing, "/data").create(true)]).unwrap();
        assert!(missing.is_dir());
    }

    #[test]
    fn special_files_and_two_volumes_in_one_place_are_refused() {
        let null = VolumeSpec::host("/dev/null", "/data");
        assert!(records(&[null]).unwrap_err().to_string().contains("neither"));
        let tmp = || VolumeSpec::host("/tmp", "/data/");
        assert!(
            records(&[tmp(), VolumeSpec::managed("x", "//data")]).unwrap_err().to_string().contains("two")
        );
        let error = resolve(&[tmp()], &[TmpfsSpec::new("/data")]).unwrap_err();
        assert!(error.to_string().contains("two"), "{error}");
        assert!(records(&[VolumeSpec { managed_volume: Some("n".into()), ..tmp() }]).is_err());
        assert!(records(&[VolumeSpec::managed("../x", "/data")]).is_err());
        assert!(records(&[VolumeSpec { guest_path: "/data".into(), ..VolumeSpec::default() }]).is_err());
    }

    #[test]
    fn memory_has_a_size_and_a_mode_that_can_be() {
        let mounts = |memory: TmpfsSpec| resolve(&[], &[memory]).map(|(_, mounts)| mounts);
        let made = mounts(TmpfsSpec::new("/scratch").size(1 << 20).mode(0o700)).unwrap();
        assert_eq!(made[0].source, MountSource::Tmpfs { bytes: 1 << 20, mode: 0o700 });
        assert!(mounts(TmpfsSpec::new("/scratch").size(0)).is_err());
        assert!(mounts(TmpfsSpec::new("/scratch").mode(0o10000)).is_err());
    }

    #[test]
    fn outer_places_are_mounted_before_inner_ones() {
        let mount = |target: &str| MountSpec {
            target: target.into(),
            read_only: false,
            source: MountSource::Tmpfs { bytes: 0, mode: 0 },
        };
        let ordered = in_order(vec![mount("/a/b/c"), mount("/z"), mount("/a/b")]);
        let targets: Vec<&str> = ordered.iter().map(|mount| mount.target.as_str()).collect();
        assert_eq!(targets, ["/z", "/a/b", "/a/b/c"]);
    }
}
