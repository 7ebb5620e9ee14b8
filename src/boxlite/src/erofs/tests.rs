//! Images judged by `fsck.erofs` and, for root, by the kernel.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use super::writer::Stats;
use super::*;

const LIMITS: TreeLimits = TreeLimits { entries: 1 << 20, memory: 1 << 30 };

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// Finishes an image in a file that `fsck.erofs` finds sound, contents included, and lets `look` at it mounted.
fn finish(writer: Writer, folder: &Path, look: impl FnOnce(&Path)) -> Stats {
    finish_checked(writer, folder, &["--extract"], look)
}

fn finish_checked(writer: Writer, folder: &Path, check: &[&str], look: impl FnOnce(&Path)) -> Stats {
    let (file, stats) = writer.finish([7; 16]).unwrap();
    assert_eq!(file.metadata().unwrap().len(), stats.bytes);
    let image = folder.join("image");
    run(Command::new("fsck.erofs").args(check).arg(&image));
    mounted(&image, look);
    stats
}

fn mounted(image: &Path, look: impl FnOnce(&Path)) {
    if !nix::unistd::geteuid().is_root() {
        println!("not root: images are not mounted");
        return;
    }
    struct Mount(tempfile::TempDir);
    impl Drop for Mount {
        fn drop(&mut self) {
            let done = Command::new("umount").arg(self.0.path()).status();
            assert!(done.is_ok_and(|status| status.success()) || std::thread::panicking());
        }
    }
    let mount = Mount(tempfile::tempdir().unwrap());
    run(Command::new("mount").args(["-t", "erofs", "-o", "ro,loop"]).arg(image).arg(mount.0.path()));
    look(mount.0.path());
}

fn writer(folder: &Path) -> Writer {
    let file = File::create_new(folder.join("image")).unwrap();
    Writer::new(file, tempfile::tempfile().unwrap(), LIMITS)
}

fn file(writer: &mut Writer, name: &str, contents: &[u8]) {
    let (size, from) = (contents.len() as u64, &mut io::Cursor::new(contents));
    writer.put_file(Tree::ROOT, name.as_bytes(), Meta::IMPLIED, size, from).unwrap();
}

fn extent(contents: &mut Contents, xattrs: &Xattrs, bytes: &[u8]) -> Extent {
    contents.begin(bytes.len() as u64, xattrs).unwrap();
    contents.append(bytes).unwrap();
    contents.end().unwrap()
}

#[test]
fn an_image_of_nothing_is_an_image() {
    let folder = tempfile::tempdir().unwrap();
    let stats = finish(writer(folder.path()), folder.path(), |root| {
        assert_eq!(fs::read_dir(root).unwrap().count(), 0);
    });
    assert_eq!((stats.inodes, stats.bytes), (1, 2 * BLOCK as u64));
}

#[test]
fn a_file_of_five_gib_of_zeros_costs_no_storage_and_its_end_is_where_it_belongs() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path());
    let zeros = vec![0; 1 << 20];
    let mut contents = writer.contents();
    contents.begin((5 << 30) + 7, &Xattrs::default()).unwrap();
    for _ in 0..5 << 10 {
        contents.append(&zeros).unwrap();
    }
    contents.append(b"the end").unwrap();
    let extent = contents.end().unwrap();
    contents.close().unwrap();
    writer.tree().put(Tree::ROOT, b"big", Meta::IMPLIED, &Xattrs::default(), Node::File(extent)).unwrap();
    file(&mut writer, "after", b"after");
    // fsck.erofs 1.5 crashes when it extracts a file of more than 4 GiB, those of mkfs.erofs included.
    finish_checked(writer, folder.path(), &[], |root| {
        let big = File::open(root.join("big")).unwrap();
        assert_eq!(big.metadata().unwrap().len(), (5 << 30) + 7);
        let mut end = [1; 16];
        big.read_exact_at(&mut end, (5 << 30) - 9).unwrap();
        assert_eq!(&end, b"\0\0\0\0\0\0\0\0\0the end");
        assert_eq!(fs::read(root.join("after")).unwrap(), b"after");
    });
    let meta = fs::metadata(folder.path().join("image")).unwrap();
    assert!(meta.len() > 5 << 30 && meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
}

#[test]
fn what_was_replaced_costs_no_storage() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path());
    for round in 1..=10 {
        file(&mut writer, "replaced", &vec![round; 4 << 20]);
    }
    file(&mut writer, "kept", &vec![99; 1 << 20]);
    finish(writer, folder.path(), |root| {
        assert!(fs::read(root.join("replaced")).unwrap() == vec![10; 4 << 20]);
        assert!(fs::read(root.join("kept")).unwrap() == vec![99; 1 << 20]);
    });
    let meta = fs::metadata(folder.path().join("image")).unwrap();
    assert!(meta.len() > 41 << 20 && meta.blocks() * 512 < 6 << 20, "{} blocks", meta.blocks());
}

#[test]
fn sockets_and_large_attributes_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path());
    let value = vec![b'v'; 20_000];
    let xattrs =
        Xattrs::new([(b"trusted.large".as_slice(), value.as_slice()), (b"user.small", b"s")]).unwrap();
    let tree = writer.tree();
    tree.put(Tree::ROOT, b"socket", Meta::IMPLIED, &Xattrs::default(), Node::Socket).unwrap();
    let dir = tree.put_dir(Tree::ROOT, b"dir", Meta::IMPLIED, &xattrs).unwrap();
    tree.put(dir, b"link", Meta::IMPLIED, &xattrs, Node::Symlink(b"target")).unwrap();
    let mut contents = writer.contents();
    let extent = extent(&mut contents, &xattrs, b"tail");
    contents.close().unwrap();
    writer.tree().put(dir, b"file", Meta::IMPLIED, &xattrs, Node::File(extent)).unwrap();
    finish(writer, folder.path(), |root| {
        assert!(fs::symlink_metadata(root.join("socket")).unwrap().file_type().is_socket());
        assert_eq!(fs::read_link(root.join("dir/link")).unwrap(), Path::new("target"));
        assert_eq!(fs::read(root.join("dir/file")).unwrap(), b"tail");
        for name in ["dir", "dir/file"] {
            let mut buffer = vec![0; 1 << 16];
            let length = rustix::fs::lgetxattr(root.join(name), "trusted.large", &mut buffer[..]).unwrap();
            assert!(buffer[..length] == value);
        }
    });
}

#[test]
fn every_alignment_of_inodes_attributes_and_tails_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path());
    let contents = |n: usize| vec![u8::try_from(n % 251).unwrap(); n * 37 % 4200];
    let mut written = writer.contents();
    for n in 0..2000 {
        let value = vec![b'x'; n * 13 % 300];
        let attribute = [(b"trusted.x".as_slice(), value.as_slice())];
        let xattrs = if n % 3 == 0 { Xattrs::new(attribute).unwrap() } else { Xattrs::default() };
        let extent = extent(&mut written, &xattrs, &contents(n));
        let name = format!("file-{n}");
        writer.tree().put(Tree::ROOT, name.as_bytes(), Meta::IMPLIED, &xattrs, Node::File(extent)).unwrap();
    }
    written.close().unwrap();
    finish(writer, folder.path(), |root| {
        for n in 0..2000 {
            assert!(fs::read(root.join(format!("file-{n}"))).unwrap() == contents(n), "file-{n}");
        }
    });
}

#[test]
fn a_folder_of_any_size_ends_well() {
    // Names of 243 bytes make entries of 255: blocks are filled to the last byte, or nearly.
    for count in [14, 15, 16, 17, 31, 32, 33] {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(folder.path());
        let name = |n: usize| format!("{n:0length$}", length = 240 + n % 7);
        for n in 0..count {
            file(&mut writer, &name(n), b"");
        }
        finish(writer, folder.path(), |root| {
            assert_eq!(fs::read_dir(root).unwrap().count(), count);
            assert!((0..count).all(|n| root.join(name(n)).exists()));
        });
    }
}

#[test]
fn bad_names_and_targets_are_refused() {
    let mut tree = Tree::new(LIMITS);
    for name in [b"".as_slice(), b".", b"..", b"a/b", b"a\0"] {
        let made = tree.put_dir(Tree::ROOT, name, Meta::IMPLIED, &Xattrs::default());
        assert_eq!(made.unwrap_err(), TreeError::BadName);
    }
    let made = tree.put_dir(Tree::ROOT, &[b'n'; 256], Meta::IMPLIED, &Xattrs::default());
    assert_eq!(made.unwrap_err(), TreeError::NameTooLong(256));
    for target in [b"".as_slice(), b"a\0", &[b't'; 4096]] {
        let made = tree.put(Tree::ROOT, b"l", Meta::IMPLIED, &Xattrs::default(), Node::Symlink(target));
        assert_eq!(made.unwrap_err(), TreeError::BadTarget);
    }
}

#[test]
fn the_boot_disk_has_the_agent_and_what_it_mounts_over() {
    let folder = tempfile::tempdir().unwrap();
    let agent: Vec<u8> = (0..300_001u32).flat_map(|n| n.to_le_bytes()).collect();
    fs::write(folder.path().join("agent"), &agent).unwrap();
    let image = folder.path().join("boot.erofs");
    boot_disk(&folder.path().join("agent"), &image).unwrap();
    let first = fs::read(&image).unwrap();
    boot_disk(&folder.path().join("agent"), &image).unwrap();
    assert!(first == fs::read(&image).unwrap());
    let left = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 2);
    run(Command::new("fsck.erofs").arg(&image));
    mounted(&image, |root| {
        let mut names: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(
            names,
            ["dev", "init", "proc", "run", "sys", "tmp"].map(|name| OsStr::from_bytes(name.as_bytes()))
        );
        assert_eq!(fs::metadata(root.join("init")).unwrap().mode(), 0o100_755);
        assert!(fs::read(root.join("init")).unwrap() == agent);
    });
}

#[test]
fn a_boot_disk_that_cannot_be_made_leaves_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("boot.erofs");
    fs::write(&image, "old").unwrap();
    let made = boot_disk(&folder.path().join("no-agent"), &image);
    assert!(matches!(made, Err(super::boot::BootDiskError::Agent { .. })));
    assert_eq!(fs::read(&image).unwrap(), b"old");
}

#[test]
fn files_that_only_have_the_same_hash_share_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path());
    let mut contents = writer.contents();
    for n in 1..=3u8 {
        let mut extent = extent(&mut contents, &Xattrs::default(), &vec![n; 3 * BLOCK]);
        extent.hash = 7;
        writer
            .tree()
            .put(Tree::ROOT, &[n + b'0'], Meta::IMPLIED, &Xattrs::default(), Node::File(extent))
            .unwrap();
    }
    contents.close().unwrap();
    assert_eq!(writer.share(&mut || true).unwrap(), Some(0));
    finish(writer, folder.path(), |root| {
        for n in 1..=3u8 {
            assert_eq!(fs::read(root.join(n.to_string())).unwrap(), vec![n; 3 * BLOCK]);
        }
    });
}

#[test]
fn contents_written_at_once_are_shared_however_they_were_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path());
    let data: Vec<u8> = (0..700_000u32).flat_map(|n| n.to_le_bytes()).collect();
    let extents = std::thread::scope(|scope| {
        let threads: Vec<_> = [1 << 20, 4096, 1000]
            .map(|piece| {
                let (mut contents, data) = (writer.contents(), &data);
                scope.spawn(move || {
                    let small = extent(&mut contents, &Xattrs::default(), &data[..5000]);
                    contents.begin(data.len() as u64, &Xattrs::default()).unwrap();
                    data.chunks(piece).for_each(|piece| contents.append(piece).unwrap());
                    let large = contents.end().unwrap();
                    contents.close().unwrap();
                    [small, large]
                })
            })
            .into_iter()
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    for (n, extent) in extents.iter().enumerate() {
        let name = n.to_string();
        let node = Node::File(*extent);
        writer.tree().put(Tree::ROOT, name.as_bytes(), Meta::IMPLIED, &Xattrs::default(), node).unwrap();
    }
    let blocks = (data.len() / BLOCK + 1) * BLOCK;
    assert_eq!(writer.share(&mut || true).unwrap(), Some(2 * blocks as u64));
    finish(writer, folder.path(), |root| {
        for n in 0..6 {
            let want = if n % 2 == 0 { &data[..5000] } else { data.as_slice() };
            assert!(fs::read(root.join(n.to_string())).unwrap() == want, "{n}");
        }
    });
}

#[test]
fn sharing_stops_when_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path());
    file(&mut writer, "a", &[1; BLOCK]);
    file(&mut writer, "b", &[1; BLOCK]);
    assert_eq!(writer.share(&mut || false).unwrap(), None);
}

#[test]
fn contents_of_another_size_than_was_said_are_refused() {
    let writer = writer(tempfile::tempdir().unwrap().path());
    let mut contents = writer.contents();
    contents.begin(10, &Xattrs::default()).unwrap();
    contents.append(b"less").unwrap();
    assert!(matches!(contents.end(), Err(WriterError::Size)));
    contents.begin(2, &Xattrs::default()).unwrap();
    assert!(matches!(contents.append(b"more"), Err(WriterError::Size)));
    assert!(matches!(contents.begin(1 << 45, &Xattrs::default()), Err(WriterError::TooLarge)));
}
