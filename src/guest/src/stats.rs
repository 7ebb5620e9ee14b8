//! What machine and container use now, as the kernel's own files tell it.
//!
//! A file that does not exist counts as zero: a container that has not been created uses nothing, and a kernel without a
//! controller counts nothing. Whatever else goes wrong is an error, so that no number is made up.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use boxlite_portal::v1::StatsResponse;
use nix::errno::Errno;
use nix::sys::statvfs::statvfs;

use crate::process::cgroup;

/// The most that is read of one file. The longest, a cgroup's memory.stat, has a few KiB.
const MAX_FILE: u64 = 64 << 10;
/// The unit in which the kernel counts what a disk has read and written, whatever its own is, in bytes.
const SECTOR: u64 = 512;

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The system would not tell.
    #[error("cannot read {}", .path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What it told is not understood.
    #[error("{} does not say what it should", .0.display())]
    Content(PathBuf),
}

/// Where to look.
#[derive(Clone, Debug)]
pub struct Places {
    /// The container's cgroup.
    pub cgroup: PathBuf,
    /// What the kernel says of the machine's memory.
    pub memory: PathBuf,
    /// What the kernel has counted for each disk.
    pub disks: Vec<PathBuf>,
    /// Where the writable layer is mounted.
    pub writable: Option<PathBuf>,
}

/// Measures everything that is measured there; the rest stays zero.
///
/// # Errors
/// At the first file that exists and cannot be read or understood.
pub fn measure(places: &Places) -> Result<StatsResponse, StatsError> {
    let container = |name: &str| places.cgroup.join(name);
    let used = number(&container("memory.current"), whole)?;
    let droppable = number(&container("memory.stat"), |text| cgroup::value(text, "inactive_file"))?;
    let mut stats = StatsResponse {
        cpu_nanos: number(&container("cpu.stat"), |text| cgroup::value(text, "usage_usec"))?
            .saturating_mul(1000),
        // The two were not counted at the same moment.
        memory_bytes: used.saturating_sub(droppable),
        tasks: number(&container("pids.current"), whole)?,
        oom_kills: number(&container("memory.events"), |text| cgroup::value(text, "oom_kill"))?,
        ..StatsResponse::default()
    };
    if let Some(text) = read(&places.memory)? {
        let value = |name| meminfo(&text, name).ok_or_else(|| StatsError::Content(places.memory.clone()));
        stats.memory_total_bytes = value("MemTotal")?;
        stats.memory_available_bytes = value("MemAvailable")?;
    }
    for path in &places.disks {
        let Some(text) = read(path)? else { continue };
        let (read, written) = disk(&text).ok_or_else(|| StatsError::Content(path.clone()))?;
        stats.disk_read_bytes = stats.disk_read_bytes.saturating_add(read);
        stats.disk_written_bytes = stats.disk_written_bytes.saturating_add(written);
    }
    if let Some(path) = &places.writable {
        (stats.disk_total_bytes, stats.disk_used_bytes) = space(path)?;
    }
    Ok(stats)
}

/// The number that `parse` finds in a file; zero if there is no such file.
fn number(path: &Path, parse: impl FnOnce(&str) -> Option<u64>) -> Result<u64, StatsError> {
    match read(path)? {
        Some(text) => parse(&text).ok_or_else(|| StatsError::Content(path.to_owned())),
        None => Ok(0),
    }
}

/// A small file's text; `None` if there is no such file.
fn read(path: &Path) -> Result<Option<String>, StatsError> {
    let mut text = String::new();
    let result = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    match result {
        Ok(count) if count as u64 > MAX_FILE => Err(StatsError::Content(path.to_owned())),
        Ok(_) => Ok(Some(text)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(source) => Err(StatsError::Read { path: path.to_owned(), source }),
    }
}

/// A file of a cgroup that is removed while it is open is found in neither way.
fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// A file that holds one number.
fn whole(text: &str) -> Option<u64> {
    text.trim_ascii_end().parse().ok()
}

/// A value of /proc/meminfo, in bytes. Its lines look like `MemTotal:  2048 kB`.
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(':').map(str::to_owned);
    let value = text.lines().find_map(value)?;
    value.trim().strip_suffix(" kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1024)
}

/// What a disk has read and written, in bytes, from its statistics: the third and the seventh number are sectors.
fn disk(text: &str) -> Option<(u64, u64)> {
    let bytes = |at: usize| text.split_ascii_whitespace().nth(at)?.parse::<u64>().ok()?.checked_mul(SECTOR);
    Some((bytes(2)?, bytes(6)?))
}

/// Size of a file system and how much of it is used, in bytes; zero if nothing is there.
fn space(path: &Path) -> Result<(u64, u64), StatsError> {
    match statvfs(path) {
        Ok(told) => {
            let bytes = |blocks: u64| blocks.saturating_mul(told.fragment_size());
            Ok((bytes(told.blocks()), bytes(told.blocks().saturating_sub(told.blocks_free()))))
        }
        Err(Errno::ENOENT) => Ok((0, 0)),
        Err(errno) => Err(StatsError::Read { path: path.to_owned(), source: errno.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const DISK: &str = "  100  20  300  40  500  60  700  80  0  90  100  0  0  0  0  5  6\n";

    fn places(folder: &Path) -> Places {
        let file = |name: &str, text: &str| {
            fs::write(folder.join(name), text).unwrap();
            folder.join(name)
        };
        file("cpu.stat", "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n");
        file("memory.current", "5000\n");
        file("memory.stat", "anon 1\nworkingset_inactive_file 7\ninactive_file 2000\n");
        file("memory.events", "low 0\nhigh 0\nmax 9\noom 8\noom_kill 3\noom_group_kill 1\n");
        file("pids.current", "12\n");
        Places {
            cgroup: folder.to_owned(),
            memory: file("meminfo", "MemTotal:   2048 kB\nMemFree:  1 kB\nMemAvailable:     1024 kB\n"),
            disks: vec![file("vdb", DISK), file("vdc", DISK), folder.join("gone")],
            writable: None,
        }
    }

    #[test]
    fn what_the_kernel_says_is_put_together() {
        let folder = tempfile::tempdir().unwrap();
        let expected = StatsResponse {
            cpu_nanos: 1_500_000,
            memory_bytes: 3000,
            memory_total_bytes: 2 << 20,
            memory_available_bytes: 1 << 20,
            tasks: 12,
            disk_read_bytes: 2 * 300 * 512,
            disk_written_bytes: 2 * 700 * 512,
            oom_kills: 3,
            ..StatsResponse::default()
        };
        assert_eq!(measure(&places(folder.path())).unwrap(), expected);
    }

    #[test]
    fn before_there_is_anything_to_measure_it_is_zero() {
        let nowhere = PathBuf::from("/nowhere");
        let disks = vec![nowhere.join("vdb")];
        let writable = Some(nowhere.join("writable"));
        let places = Places { cgroup: nowhere.clone(), memory: nowhere.join("meminfo"), disks, writable };
        assert_eq!(measure(&places).unwrap(), StatsResponse::default());
    }

    #[test]
    fn what_exists_and_is_not_understood_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        let long = "x".repeat(1 << 20);
        for (name, text) in [
            ("cpu.stat", "nothing here\n"),
            ("memory.current", "max\n"),
            ("memory.stat", "inactive_file many\n"),
            ("pids.current", ""),
            ("meminfo", "MemTotal: 5 kB\n"),
            ("meminfo", "MemTotal: 5 kB\nMemAvailable: 18446744073709551615 kB\n"),
            ("vdc", "1 2 3 4 5 6\n"),
            ("pids.current", &long),
        ] {
            let path = folder.path().join(name);
            let before = fs::read(&path).unwrap();
            fs::write(&path, text).unwrap();
            let error = measure(&places).unwrap_err();
            assert!(matches!(&error, StatsError::Content(named) if *named == path), "{name}: {error:?}");
            fs::write(&path, before).unwrap();
        }
        fs::remove_file(folder.path().join("cpu.stat")).unwrap();
        fs::create_dir(folder.path().join("cpu.stat")).unwrap();
        assert!(matches!(measure(&places), Err(StatsError::Read { .. })));
    }

    #[test]
    fn the_space_of_a_file_system_is_that_of_the_system() {
        let folder = tempfile::tempdir().unwrap();
        let (total, used) = space(folder.path()).unwrap();
        assert!(total > 0 && used <= total);
    }
}
