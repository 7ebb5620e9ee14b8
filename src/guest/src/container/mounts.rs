//! What a caller wants mounted in the container, checked.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use boxlite_portal::v1::{Mount, mount::Source};

use super::spec::Extra;

/// The most mounts.
const MAX: usize = 256;
/// Permissions of a file system in memory unless the caller says otherwise.
const TMPFS_MODE: u32 = 0o1777;

/// A mount that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMount {
    /// Too many.
    #[error("there are more than {MAX} mounts")]
    TooMany,
    /// Not an absolute normal path below the root.
    #[error("{0} is no place for a mount")]
    Target(String),
    /// Two in one place.
    #[error("two mounts have the place {0}")]
    Twice(String),
    /// Neither volume nor memory, or a volume whose name is none.
    #[error("the mount on {0} has no source")]
    Source(String),
    /// A volume without a share to take it from.
    #[error("the mount on {0} needs the host's share, and there is none")]
    NoShare(String),
}

/// Reads a caller's mounts. Volumes are entries of `share`.
///
/// # Errors
/// At the first that cannot be.
pub fn read(mounts: &[Mount], share: Option<&Path>) -> Result<Vec<Extra>, BadMount> {
    if mounts.len() > MAX {
        return Err(BadMount::TooMany);
    }
    let mut all: Vec<Extra> = Vec::new();
    for mount in mounts {
        let shown = || mount.target.escape_ascii().to_string();
        let target = target(&mount.target).ok_or_else(|| BadMount::Target(shown()))?;
        if all.iter().any(|other| other.target == target) {
            return Err(BadMount::Twice(shown()));
        }
        let access = if mount.read_only { "ro" } else { "rw" };
        let extra = match &mount.source {
            Some(Source::Volume(name)) if plain(name) => {
                let share = share.ok_or_else(|| BadMount::NoShare(shown()))?;
                let options = ["rbind", "rprivate", "nodev", access];
                Extra {
                    target,
                    kind: "bind",
                    source: share.join(name),
                    options: options.map(str::to_owned).to_vec(),
                }
            }
            Some(Source::TmpfsBytes(bytes)) => {
                let mode = if mount.tmpfs_mode == 0 { TMPFS_MODE } else { mount.tmpfs_mode & 0o7777 };
                let mut options: Vec<String> = ["nosuid", "nodev", access].map(str::to_owned).to_vec();
                options.push(format!("mode={mode:o}"));
                if *bytes > 0 {
                    options.push(format!("size={bytes}"));
                }
                Extra { target, kind: "tmpfs", source: PathBuf::from("tmpfs"), options }
            }
            Some(Source::Volume(_)) | None => return Err(BadMount::Source(shown())),
        };
        all.push(extra);
    }
    Ok(all)
}

fn target(bytes: &[u8]) -> Option<PathBuf> {
    let path = Path::new(OsStr::from_bytes(bytes));
    let mut components = path.components();
    let absolute = components.next() == Some(Component::RootDir);
    let below = components.clone().next().is_some();
    let normal = components.all(|component| matches!(component, Component::Normal(_)));
    (absolute && below && normal && !bytes.contains(&0)).then(|| path.components().collect())
}

fn plain(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(target: &str, name: &str) -> Mount {
        Mount {
            target: target.into(),
            read_only: true,
            source: Some(Source::Volume(name.into())),
            tmpfs_mode: 0,
        }
    }

    fn memory(target: &str, bytes: u64) -> Mount {
        Mount { source: Some(Source::TmpfsBytes(bytes)), read_only: false, ..volume(target, "") }
    }

    #[test]
    fn volumes_are_bound_and_memory_is_made() {
        let share = Path::new("/run/share");
        let read =
            read(&[volume("/data/", "3"), memory("/scratch", 1 << 20), memory("/more", 0)], Some(share));
        let read = read.unwrap();
        assert_eq!(
            (read[0].target.as_path(), read[0].source.as_path()),
            (Path::new("/data"), Path::new("/run/share/3"))
        );
        assert!(read[0].options.contains(&"ro".to_owned()));
        assert_eq!(read[1].options, ["nosuid", "nodev", "rw", "mode=1777", "size=1048576"]);
        assert_eq!(read[2].options, ["nosuid", "nodev", "rw", "mode=1777"]);
    }

    #[test]
    fn what_cannot_be_mounted_is_refused() {
        let share = Some(Path::new("/run/share"));
        for target in ["", "/", "data", "/a/../b", "/./a/..", "//", "/a\0b"] {
            let refused = read(&[volume(target, "0")], share);
            assert!(matches!(refused, Err(BadMount::Target(_))), "{target:?}: {refused:?}");
        }
        for name in ["", ".", "..", "a/b", "a\0b"] {
            assert!(matches!(read(&[volume("/a", name)], share), Err(BadMount::Source(_))), "{name:?}");
        }
        assert!(matches!(read(&[volume("/a", "0"), memory("/a/", 0)], share), Err(BadMount::Twice(_))));
        assert!(matches!(read(&[volume("/a", "0")], None), Err(BadMount::NoShare(_))));
        assert_eq!(read(&vec![memory("/a", 0); MAX + 1], share), Err(BadMount::TooMany));
    }
}
