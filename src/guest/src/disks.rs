//! The disks of a box and the root folder made of them.
//!
//! ```text
//!   /dev/vdb  image, EROFS, read-only ──▶ image    ─┐ lower
//!                                                   ├─▶ root   (overlay)
//!   /dev/vdc  writable layer, ext4 ─────▶ writable ─┘ upper, work
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use boxlite_portal::v1::init_request::Share;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::share;

/// Why the disks could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The path is no block device below /dev.
    #[error("{} is no block device", .0.display())]
    NoDevice(PathBuf),
    /// A step failed.
    #[error("cannot {what} {}", .path.display())]
    Step {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn step<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DiskError + use<'a> {
    move |source| DiskError::Step { what, path: path.to_owned(), source }
}

/// The mounted disks.
#[derive(Debug)]
pub struct Disks {
    /// The container's root.
    pub root: PathBuf,
    /// Where the writable layer is mounted.
    pub layer: PathBuf,
    /// What the kernel has counted for each device.
    pub counts: Vec<PathBuf>,
    /// Where the host's share is mounted.
    pub share: Option<PathBuf>,
    /// The writable layer's file system, kept open to be synced.
    writable: OwnedFd,
    /// Where something is mounted, in the order of mounting.
    mounted: Mounted,
}

/// Mount points that are unmounted in reverse order if the whole does not come about.
#[derive(Debug)]
struct Mounted(Vec<PathBuf>);

impl Drop for Mounted {
    fn drop(&mut self) {
        for path in self.0.drain(..).rev() {
            if let Err(errno) = umount2(&path, MntFlags::MNT_DETACH) {
                crate::console::line(format_args!("cannot unmount {}: {errno}", path.display()));
            }
        }
    }
}

impl Disks {
    /// Mounts image and writable layer below `folder`, grows the latter to its device, and overlays them.
    ///
    /// # Errors
    /// At the first step that fails; nothing stays mounted then.
    pub fn mount(folder: &Path, image: &Path, writable: &Path) -> Result<Self, DiskError> {
        let counts = [image, writable].map(|device| {
            let metadata = fs::metadata(device).ok();
            let block = metadata.filter(|metadata| metadata.file_type().is_block_device());
            let block = block.filter(|_| device.starts_with("/dev"));
            block.map(|block| counts(block.rdev())).ok_or_else(|| DiskError::NoDevice(device.to_owned()))
        });
        let counts = counts.into_iter().collect::<Result<_, _>>()?;
        let mut mounted = Mounted(Vec::new());
        let place = |name: &str| {
            let path = folder.join(name);
            fs::create_dir_all(&path).map_err(step("make the folder", &path)).map(|()| path)
        };
        let (lower, layer, root) = (place("image")?, place("writable")?, place("root")?);

        mount(Some(image), &lower, Some("erofs"), MsFlags::MS_RDONLY, None::<&str>)
            .map_err(|errno| step("mount the image", image)(errno.into()))?;
        mounted.0.push(lower.clone());
        mount_writable(writable, &layer)
            .map_err(|errno| step("mount the writable layer", writable)(errno.into()))?;
        mounted.0.push(layer.clone());
        grow(writable, &layer).map_err(step("grow the writable layer", writable))?;

        let (upper, work) = (layer.join("upper"), layer.join("work"));
        make_upper(&upper, &lower).map_err(step("make the folder", &upper))?;
        fs::create_dir_all(&work).map_err(step("make the folder", &work))?;
        let options =
            format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .map_err(|errno| step("mount the container's root", &root)(errno.into()))?;
        mounted.0.push(root.clone());
        let writable = File::open(&layer).map_err(step("open", &layer))?.into();
        Ok(Self { root, layer, counts, share: None, writable, mounted })
    }

    /// Mounts the host's share beside them, below `folder`.
    ///
    /// # Errors
    /// What the system says.
    pub fn attach_share(&mut self, folder: &Path, share: &Share) -> Result<(), DiskError> {
        let place = folder.join("share");
        share::attach(share, &place).map_err(step("mount the host's share on", &place))?;
        self.mounted.0.push(place.clone());
        self.share = Some(place);
        Ok(())
    }

    /// Writes everything out and unmounts. What cannot be unmounted any more is at least written out.
    ///
    /// # Errors
    /// When something could not be written.
    pub fn unmount(mut self) -> io::Result<()> {
        nix::unistd::syncfs(&self.writable)?;
        drop(self.writable);
        for path in self.mounted.0.drain(..).rev() {
            if let Err(errno) = umount2(&path, MntFlags::empty()) {
                crate::console::line(format_args!("cannot unmount {}: {errno}", path.display()));
            }
        }
        Ok(())
    }
}

/// Where the kernel says how much has been read from and written to a device.
fn counts(device: libc::dev_t) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}/stat", libc::major(device), libc::minor(device)))
}

/// Without `noinit_itable`, the kernel writes the inode tables of a new file system in the background, which makes a
/// sparse disk grow for nothing. A kernel that does not know the option does not do that either.
fn mount_writable(device: &Path, target: &Path) -> nix::Result<()> {
    let with = |options: Option<&str>| mount(Some(device), target, Some("ext4"), MsFlags::empty(), options);
    match with(Some("noinit_itable")) {
        Err(Errno::EINVAL) => with(None),
        other => other,
    }
}

/// The root folder of the overlay has the owner and mode of its upper folder, so those of the image are taken over.
fn make_upper(upper: &Path, lower: &Path) -> io::Result<()> {
    match fs::create_dir(upper) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other?,
    }
    let image = fs::metadata(lower)?;
    std::os::unix::fs::chown(upper, Some(image.uid()), Some(image.gid()))?;
    fs::set_permissions(upper, fs::Permissions::from_mode(image.mode() & 0o7777))
}

nix::ioctl_read!(block_device_size, 0x12, 114, u64);
nix::ioctl_write_ptr!(ext4_resize, b'f', 16, u64);

/// Grows a mounted ext4 to its device.
fn grow(device: &Path, mounted: &Path) -> io::Result<()> {
    let mut file = File::open(device)?;
    let mut bytes = 0_u64;
    // SAFETY: BLKGETSIZE64 writes a 64-bit size to a variable of ours.
    unsafe { block_device_size(file.as_raw_fd(), &raw mut bytes) }?;
    let mut superblock = [0; SUPERBLOCK];
    file.seek(SeekFrom::Start(1024))?;
    file.read_exact(&mut superblock)?;
    let size = Ext4Size::parse(&superblock).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    let blocks = bytes / size.block;
    if blocks <= size.blocks {
        return Ok(());
    }
    let folder = File::open(mounted)?;
    // SAFETY: EXT4_IOC_RESIZE_FS reads the new number of blocks from a variable of ours.
    unsafe { ext4_resize(folder.as_raw_fd(), &raw const blocks) }?;
    Ok(())
}

/// How much of the superblock is read.
const SUPERBLOCK: usize = 0x154;

/// The size of an ext4 as its superblock says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ext4Size {
    block: u64,
    blocks: u64,
}

impl Ext4Size {
    fn parse(superblock: &[u8; SUPERBLOCK]) -> Option<Self> {
        let word = |at: usize| superblock[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        if superblock[0x38..0x3a] != [0x53, 0xef] {
            return None;
        }
        // The kernel knows blocks of 1 KiB to 64 KiB.
        let shift = word(0x18).filter(|shift| *shift <= 6)?;
        let wide = word(0x60)? & 0x80 != 0;
        let high = if wide { word(0x150)? } else { 0 };
        Some(Self { block: 1024 << shift, blocks: u64::from(word(0x4)?) | u64::from(high) << 32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> [u8; SUPERBLOCK] {
        let mut block = [0; SUPERBLOCK];
        block[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        block[0x18] = 2;
        block[0x4..0x8].copy_from_slice(&1000_u32.to_le_bytes());
        block[0x150] = 1;
        block
    }

    #[test]
    fn the_size_of_an_ext4_is_read_from_its_superblock() {
        let mut block = superblock();
        assert_eq!(Ext4Size::parse(&block), Some(Ext4Size { block: 4096, blocks: 1000 }));
        block[0x60] = 0x80;
        assert_eq!(Ext4Size::parse(&block), Some(Ext4Size { block: 4096, blocks: (1 << 32) + 1000 }));
    }

    #[test]
    fn a_superblock_that_makes_no_sense_is_refused() {
        let mut block = superblock();
        block[0x18] = 200;
        assert_eq!(Ext4Size::parse(&block), None);
        let mut block = superblock();
        block[0x38] = 0;
        assert_eq!(Ext4Size::parse(&block), None);
    }

    #[test]
    fn only_block_devices_below_dev_are_mounted() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["/dev/null", "/etc/passwd", "/dev/does-not-exist", "vdb"] {
            let error = Disks::mount(folder.path(), Path::new(path), Path::new("/dev/null")).unwrap_err();
            assert!(matches!(error, DiskError::NoDevice(_)), "{path}");
        }
    }
}
