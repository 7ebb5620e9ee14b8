//! GNU tar understands what is packed, and what it makes is unpacked.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use boxlite_copy::{Owner, Root, UnpackOptions};

use crate::{packed, seen, unpacked};

fn tree() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("d/e")).unwrap();
    fs::write(at("d/f"), "content").unwrap();
    fs::hard_link(at("d/f"), at("d/g")).unwrap();
    symlink("../elsewhere", at("d/l")).unwrap();
    let long = "n".repeat(180);
    fs::write(at(&format!("d/e/{long}")), "long").unwrap();
    symlink("t".repeat(150), at("d/e/long-link")).unwrap();
    let mut sparse = fs::File::create(at("d/sparse")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    for at in 0..30 {
        sparse.seek(SeekFrom::Start(at * 1_500_000)).unwrap();
        sparse.write_all(b"content").unwrap();
    }
    folder
}

fn options() -> UnpackOptions {
    let owner = if rustix::process::geteuid().is_root() { Owner::Keep } else { Owner::Caller };
    UnpackOptions { owner, special_bits: true, ..UnpackOptions::default() }
}

#[test]
fn gnu_tar_unpacks_what_is_packed() {
    let (from, to) = (tree(), tempfile::tempdir().unwrap());
    let (stream, _) = packed(&from.path().join("d"), &Root::Named("d".into()));
    let mut tar = Command::new("tar");
    tar.arg("-xpf").arg("-").arg("-C").arg(to.path()).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut tar = tar.spawn().unwrap();
    tar.stdin.take().unwrap().write_all(&stream).unwrap();
    let output = tar.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(seen(to.path()), seen(from.path()));
}

#[test]
fn what_gnu_tar_packs_in_any_of_its_formats_is_unpacked() {
    let from = tree();
    for format in [
        &["--format=gnu", "--sparse"][..],
        &["--format=gnu"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=oldgnu", "--sparse"],
    ] {
        let to = tempfile::tempdir().unwrap();
        let tar = Command::new("tar")
            .args(format)
            .arg("-cf")
            .arg("-")
            .arg("-C")
            .arg(from.path())
            .arg("d")
            .output()
            .unwrap();
        assert!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
        unpacked(&tar.stdout, to.path(), &Root::Named("d".into()), options())
            .unwrap_or_else(|error| panic!("{format:?}: {error:?}"));
        // Only PAX knows parts of a second.
        let whole = |tree: &std::path::Path| -> Vec<_> {
            seen(tree)
                .into_iter()
                .map(|(path, what)| (path, what.split('.').next().unwrap().to_owned()))
                .collect()
        };
        assert_eq!(whole(to.path()), whole(from.path()), "{format:?}");
    }
}
