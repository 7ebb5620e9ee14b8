//! Creates empty qcow2 overlays: a few hundred bytes of header, whatever the size.
//!
//! ```text
//!  cluster 0             1                 2                   3 …
//! ┌─────────────────────┬─────────────────┬───────────────────┬───────────────────────────┐
//! │ header, extensions, │ refcount table: │ refcount block:   │ L1 table: zeros, nothing  │
//! │ backing file's name │ one entry       │ clusters in use:1 │ is in the overlay yet     │
//! └─────────────────────┴─────────────────┴───────────────────┴───────────────────────────┘
//! ```
//!
//! Version 3 of the format, as QEMU's `docs/interop/qcow2.rst` has it; big endian, clusters of 64 KiB.

use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use boxlite_control::DiskFormat;

use super::DiskError;

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Bytes of the disk that one entry of the L1 table stands for: an L2 table is one cluster of 8-byte entries.
const PER_L1_ENTRY: u64 = CLUSTER / 8 * CLUSTER;
/// The first cluster of the L1 table.
const L1_CLUSTER: u64 = 3;
/// Clusters that one refcount block counts (16 bits each), which bounds the L1 table made here.
const PER_REFCOUNT_BLOCK: u64 = CLUSTER / 2;
const HEADER_LENGTH: u32 = 104;
/// The longest backing file name that the format allows.
const NAME_MAX: usize = 1023;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const SECTOR: u64 = 512;

/// The largest disk: 1 PiB; the L1 table then has 16 MiB.
const SIZE_MAX: u64 = 1 << 50;

/// Creates `path`, which must not exist, as an empty overlay of `size` bytes over `backing`.
///
/// Not synced: an overlay counts only once the box that owns it was recorded.
pub(crate) fn create_overlay(
    path: &Path,
    backing: &Path,
    format: DiskFormat,
    size: u64,
) -> Result<(), DiskError> {
    if size == 0 || size > SIZE_MAX || !size.is_multiple_of(SECTOR) {
        return Err(DiskError::Size(size));
    }
    let name = backing.as_os_str().as_bytes();
    // An absolute path cannot be taken for a protocol ("nbd:…") or for "json:…".
    if !backing.is_absolute() || name.len() > NAME_MAX {
        return Err(DiskError::Backing(backing.to_owned()));
    }
    let failed = |source| DiskError::io("create the disk", path, source);
    let l1_entries = size.div_ceil(PER_L1_ENTRY);
    let clusters = L1_CLUSTER + (l1_entries * 8).div_ceil(CLUSTER);
    debug_assert!(clusters <= PER_REFCOUNT_BLOCK);

    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let write = || {
        file.set_len(clusters * CLUSTER)?;
        file.write_all_at(&(2 * CLUSTER).to_be_bytes(), CLUSTER)?;
        let counts: Vec<u8> = (0..clusters).flat_map(|_| 1u16.to_be_bytes()).collect();
        file.write_all_at(&counts, 2 * CLUSTER)?;
        file.write_all_at(&header(size, l1_entries, name, format), 0)
    };
    write().map_err(|source| {
        // A file without a header is of no use; what matters is why it could not be written.
        std::fs::remove_file(path).unwrap_or_default();
        failed(source)
    })
}

fn header(size: u64, l1_entries: u64, backing: &[u8], format: DiskFormat) -> Vec<u8> {
    let l1_entries = u32::try_from(l1_entries).expect("the size is limited");
    let name_length = u32::try_from(backing.len()).expect("the name's length is limited");
    let format = match format {
        DiskFormat::Raw => b"raw".as_slice(),
        DiskFormat::Qcow2 => b"qcow2",
    };

    let mut extensions = Vec::new();
    extensions.extend_from_slice(&EXTENSION_BACKING_FORMAT.to_be_bytes());
    extensions.extend_from_slice(&u32::try_from(format.len()).expect("a short word").to_be_bytes());
    extensions.extend_from_slice(format);
    extensions.resize(extensions.len().next_multiple_of(8), 0);
    extensions.extend_from_slice(&[0; 8]); // end of extensions

    let name_at = u64::from(HEADER_LENGTH) + extensions.len() as u64;
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(b"QFI\xfb");
    out.extend_from_slice(&3u32.to_be_bytes()); // version
    out.extend_from_slice(&name_at.to_be_bytes());
    out.extend_from_slice(&name_length.to_be_bytes());
    out.extend_from_slice(&CLUSTER_BITS.to_be_bytes());
    out.extend_from_slice(&size.to_be_bytes());
    out.extend_from_slice(&0u32.to_be_bytes()); // not encrypted
    out.extend_from_slice(&l1_entries.to_be_bytes());
    out.extend_from_slice(&(L1_CLUSTER * CLUSTER).to_be_bytes());
    out.extend_from_slice(&CLUSTER.to_be_bytes()); // refcount table
    out.extend_from_slice(&1u32.to_be_bytes()); // its clusters
    out.extend_from_slice(&0u32.to_be_bytes()); // snapshots
    out.extend_from_slice(&0u64.to_be_bytes()); // their table
    out.extend_from_slice(&[0; 24]); // incompatible, compatible, autoclear features
    out.extend_from_slice(&4u32.to_be_bytes()); // refcounts of 2^4 bits
    out.extend_from_slice(&HEADER_LENGTH.to_be_bytes());
    debug_assert_eq!(out.len(), HEADER_LENGTH as usize);
    out.extend_from_slice(&extensions);
    out.extend_from_slice(backing);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(bytes: &[u8], at: usize) -> u64 {
        u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn an_overlay_names_its_backing_file_and_holds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.qcow2");
        create_overlay(&path, Path::new("/base.img"), DiskFormat::Raw, 100 << 30).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, 4 * CLUSTER);
        assert_eq!(&bytes[..8], b"QFI\xfb\0\0\0\x03");
        let name_at = usize::try_from(number(&bytes, 8)).unwrap();
        assert_eq!(&bytes[name_at..name_at + 10], b"/base.img\0");
        assert_eq!(number(&bytes, 24), 100 << 30);
        assert_eq!(bytes[36..40], 200u32.to_be_bytes());
        assert_eq!(bytes[112..115], *b"raw");
        assert_eq!(&bytes[2 * 65536..2 * 65536 + 10], b"\0\x01\0\x01\0\x01\0\x01\0\0");
    }

    #[test]
    fn a_disk_that_exists_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.qcow2");
        std::fs::write(&path, "precious").unwrap();
        let made = create_overlay(&path, Path::new("/base.img"), DiskFormat::Qcow2, 512);
        assert!(matches!(made, Err(DiskError::Io { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn sizes_and_paths_that_no_reader_accepts_are_refused() {
        let path = Path::new("/nonexistent/disk.qcow2");
        for size in [0, 511, SIZE_MAX + 512, u64::MAX] {
            let made = create_overlay(path, Path::new("/base"), DiskFormat::Raw, size);
            assert!(matches!(made, Err(DiskError::Size(_))));
        }
        for backing in ["base.img", "json:{}", &format!("/{}", "x".repeat(1023))] {
            let made = create_overlay(path, Path::new(backing), DiskFormat::Raw, 512);
            assert!(matches!(made, Err(DiskError::Backing(_))));
        }
    }

    /// QEMU's own judgement: it opens the overlay, writes to its last cluster and reads that back.
    #[test]
    fn qemu_reads_and_writes_overlays_of_any_size() {
        let program = "qemu-system-x86_64";
        if std::process::Command::new(program).arg("--version").output().is_err() {
            println!("there is no {program}: overlays are not opened");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base.img");
        std::fs::File::create(&base).unwrap().set_len(1 << 30).unwrap();
        std::fs::File::options().write(true).open(&base).unwrap().write_all_at(b"\x42", 100).unwrap();
        for (number, size) in [1 << 20, 1 << 30, (1 << 40) + 512, SIZE_MAX].into_iter().enumerate() {
            let path = folder.path().join(format!("{number}.qcow2"));
            create_overlay(&path, &base, DiskFormat::Raw, size).unwrap();
            let last = size - 512;
            let commands = format!(
                "info block -v\nqemu-io d \"read -P 0x42 100 1\"\nqemu-io d \"write -P 0x55 {last} 512\"\n\
                 qemu-io d \"read -P 0x55 {last} 512\"\nqemu-io d \"read -P 0 {} 512\"\nquit\n",
                last - 512
            );
            std::fs::write(folder.path().join("commands"), commands).unwrap();
            let output = std::process::Command::new(program)
                .args(["-M", "none", "-nodefaults", "-display", "none", "-monitor", "stdio", "-drive"])
                .arg(format!("if=none,id=d,format=qcow2,file={}", path.display()))
                .stdin(std::fs::File::open(folder.path().join("commands")).unwrap())
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{output:?}");
            assert!(text.contains(&format!("({size} bytes)")), "{size}: {text}");
            assert!(text.contains(&base.display().to_string()), "{size}: {text}");
            let done = text.lines().filter(|line| line.contains("ops; ")).count();
            assert_eq!(done, 4, "{size}: {text}");
            assert!(!text.contains("failed"), "{size}: {text}");
        }
    }
}
