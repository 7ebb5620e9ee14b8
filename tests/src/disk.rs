//! What the disk of an image holds, as a list that can be compared: see `tests/images/tree.py`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The disks of the images of a home.
pub fn disks(home: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(home.join("images")).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.path());
    files.filter(|file| file.extension().is_some_and(|ending| ending == "erofs")).collect()
}

/// The list of the only disk of a home.
pub fn tree_of_only_image(home: &Path) -> String {
    let disks = disks(home);
    assert_eq!(disks.len(), 1, "{disks:?}");
    tree(&disks[0])
}

/// The list of a disk, as the kernel reads it. Another user than root cannot mount: what `fsck.erofs` extracts lacks
/// owners and devices, and is good to be compared with another list of this kind.
pub fn tree(disk: &Path) -> String {
    run(Command::new("fsck.erofs").arg(disk));
    let folder = tempfile::Builder::new().prefix("boxlite-tree-").tempdir().expect("a temporary folder");
    if nix::unistd::geteuid().is_root() {
        let mount = Mount::new(disk, folder.path());
        return list(mount.place);
    }
    let place = folder.path().join("root");
    run(Command::new("fsck.erofs").arg(format!("--extract={}", place.display())).arg(disk));
    list(&place)
}

/// Whether a list of this kind has owners and devices.
pub fn lists_are_complete() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The list of a folder.
pub fn list(folder: &Path) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/tree.py");
    String::from_utf8(run(Command::new("python3").arg(script).arg(folder))).expect("ASCII")
}

/// Fails the test with the lines in which two lists differ.
pub fn assert_same(actual: &str, expected: &str) {
    if actual == expected {
        return;
    }
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    let (is, wanted) = (lines(actual), lines(expected));
    let shown = |sign: &str, lines: Vec<&String>| {
        lines.iter().take(20).map(|line| format!("{sign} {line}\n")).collect::<String>()
    };
    let (more, fewer) =
        (is.difference(&wanted).collect::<Vec<_>>(), wanted.difference(&is).collect::<Vec<_>>());
    panic!("{} lines differ\n{}{}", more.len() + fewer.len(), shown("is    ", more), shown("wanted", fewer));
}

struct Mount<'a> {
    place: &'a Path,
}

impl<'a> Mount<'a> {
    fn new(disk: &Path, place: &'a Path) -> Self {
        run(Command::new("mount").args(["-t", "erofs", "-o", "ro,loop"]).arg(disk).arg(place));
        Self { place }
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(self.place).status();
        assert!(done.is_ok_and(|status| status.success()) || std::thread::panicking(), "it stays mounted");
    }
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{error}", output.status);
    output.stdout
}
