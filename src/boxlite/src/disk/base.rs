//! The empty file system beneath the disks of boxes: a sparse raw file, made once per size and shared, read-only, by
//! every box. The next smaller size that exists is taken; the guest grows the file system online to what was asked.
//!
//! Made by `mke2fs`, so that the features and the on-disk state are exactly those that the kernel's developers test.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::DiskError;

/// Sizes that are made, in GiB, ascending.
const SIZES: [u64; 3] = [1, 10, 100];

/// Named one by one, so that the result does not depend on the host's `mke2fs.conf`.
///
/// * `has_journal`: a box that was killed mounts again, with all that it had synced.
/// * `resize_inode`, `64bit`: room for group descriptors, so that growing online moves nothing; when it is used up the
///   kernel goes on with `meta_bg` by itself.
/// * `metadata_csum`: what the guest reads back is checked; and groups need no initialization.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                        large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

/// `discard`: holes are punched, which read as zeros, so mke2fs marks inode tables as zeroed. With `nodiscard` it would
/// leave that to the kernel, and each box would write hundreds of MiB of zeros in the background.
const EXTENDED: &str = "discard,lazy_journal_init=1,root_owner=0:0";

/// Blocks of 4 KiB, one inode of 256 bytes for each 16 KiB, nothing reserved for root, a journal of 16 MiB.
const ARGUMENTS: [&str; 16] = [
    "-q", "-F", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-J", "size=16", "-O", FEATURES, "-E",
    EXTENDED,
];

/// The path of the largest base of at most `gib` GiB in the folder `cache`, which must exist. Makes it if it is not
/// there; of several processes one does, and the others wait.
pub(crate) fn ensure(cache: &Path, gib: u64) -> Result<PathBuf, DiskError> {
    let size = SIZES.into_iter().rev().find(|size| *size <= gib).ok_or(DiskError::TooSmall)?;
    let path = cache.join(format!("ext4-{size}g-v1.img"));
    if path.exists() {
        return Ok(path);
    }
    let _lock = lock(&cache.join("ext4.lock"))?;
    if path.exists() {
        return Ok(path);
    }
    // Of a process that was killed: nobody else makes one while we hold the lock.
    let draft = cache.join(format!("ext4-{size}g-v1.img.new"));
    let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft);
    let file = open.map_err(|error| DiskError::io("create", &draft, error))?;
    file.set_len(size << 30).map_err(|error| DiskError::io("resize", &draft, error))?;
    format(&draft)?;
    let publish = || {
        file.set_permissions(fs::Permissions::from_mode(0o400))?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        File::open(cache)?.sync_all()
    };
    publish().map_err(|error| DiskError::io("write", &path, error))?;
    Ok(path)
}

/// Whether bases can be had, and how.
pub(crate) fn available(cache: &Path) -> Result<String, DiskError> {
    match mke2fs() {
        Ok(program) => Ok(format!("file systems are made by {}", program.display())),
        Err(error) => {
            let ready = |size| cache.join(format!("ext4-{size}g-v1.img")).exists();
            if SIZES.into_iter().all(ready) {
                Ok("all empty file systems are there".into())
            } else {
                Err(error)
            }
        }
    }
}

fn format(file: &Path) -> Result<(), DiskError> {
    let program = mke2fs()?;
    let mut command = Command::new(&program);
    command.env_clear().env("MKE2FS_CONFIG", "/dev/null").args(ARGUMENTS).arg(file).stdin(Stdio::null());
    let output = command.output().map_err(|error| DiskError::io("run", &program, error))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let message = message.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("; ");
    Err(DiskError::Mke2fs { status: output.status, message })
}

/// PATH of users often lacks the folders where it lies.
fn mke2fs() -> Result<PathBuf, DiskError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
    let system = ["/sbin", "/usr/sbin"].map(PathBuf::from);
    let executable = |file: &PathBuf| {
        fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    folders.chain(system).map(|folder| folder.join("mke2fs")).find(executable).ok_or(DiskError::NoMke2fs)
}

/// Held until dropped. Formatting takes milliseconds, so waiting needs no deadline: the holder ends or is killed, and
/// the kernel releases its lock.
fn lock(path: &Path) -> Result<Flock<File>, DiskError> {
    let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let mut file = open.map_err(|error| DiskError::io("open", path, error))?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusive) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EINTR)) => file = back,
            Err((_, errno)) => return Err(DiskError::io("lock", path, io::Error::from(errno))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_largest_base_that_is_not_larger_than_asked_is_made_and_costs_almost_nothing() {
        let cache = tempfile::tempdir().unwrap();
        for (asked, name, most) in [
            (1, "ext4-1g-v1.img", 2),
            (9, "ext4-1g-v1.img", 2),
            (10, "ext4-10g-v1.img", 8),
            (5000, "ext4-100g-v1.img", 8),
        ] {
            let start = std::time::Instant::now();
            let path = ensure(cache.path(), asked).unwrap();
            let took = start.elapsed();
            assert_eq!(path, cache.path().join(name));
            let meta = fs::metadata(&path).unwrap();
            println!("{name}: {} KiB, {took:?}", meta.blocks() / 2);
            assert!(meta.blocks() * 512 < most << 20, "{name} takes {} KiB", meta.blocks() / 2);
        }
        let names = fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = names.filter(|name| name.to_string_lossy().ends_with(".new")).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn a_base_is_a_sound_file_system_whose_inode_tables_need_no_zeroing() {
        let cache = tempfile::tempdir().unwrap();
        let path = ensure(cache.path(), 1).unwrap();
        let check = Command::new("/sbin/e2fsck").args(["-fn"]).arg(&path).output().unwrap();
        assert!(check.status.success(), "{check:?}");
        let dump = Command::new("/sbin/dumpe2fs").arg(&path).output().unwrap();
        let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
        assert_eq!(dump.matches("ITABLE_ZEROED").count(), 8, "{dump}");
        assert!(dump.contains("Reserved block count:     0"), "{dump}");
    }

    #[test]
    fn one_base_is_made_however_many_ask_at_once() {
        let cache = tempfile::tempdir().unwrap();
        let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
        let inodes: Vec<u64> = std::thread::scope(|scope| {
            let asking: Vec<_> =
                (0..8).map(|_| scope.spawn(|| inode(ensure(cache.path(), 1).unwrap()))).collect();
            asking.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(inodes.iter().all(|inode| *inode == inodes[0]), "{inodes:?}");
    }

    #[test]
    fn what_a_killed_process_left_is_replaced() {
        let cache = tempfile::tempdir().unwrap();
        fs::write(cache.path().join("ext4-1g-v1.img.new"), "half").unwrap();
        let path = ensure(cache.path(), 2).unwrap();
        assert_eq!(fs::metadata(path).unwrap().len(), 1 << 30);
    }

    #[test]
    fn less_than_the_smallest_base_is_refused() {
        let cache = tempfile::tempdir().unwrap();
        assert!(matches!(ensure(cache.path(), 0), Err(DiskError::TooSmall)));
    }
}
