//! Every operation, as a well-behaved guest uses it.

mod client;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;

use boxlite_fs::{NewError, Share, Violation};
use client::*;

#[test]
fn the_greeting_says_what_is_spoken() {
    let mut world = World::silent();
    assert_eq!(world.client.init(7, 26), Err(EPROTO));
    assert_eq!(world.client.init(6, 99), Err(EPROTO));
    assert_eq!(world.client.lookup(ROOT, "rw"), Err(EIO), "it has not been greeted");
    let newer = world.client.init(8, 0).unwrap();
    assert_eq!(u32_at(&newer, 0), 7);
    let reply = world.client.init(7, 31).unwrap();
    assert_eq!((reply.len(), u32_at(&reply, 0), u32_at(&reply, 4)), (64, 7, 31));
    assert_eq!(u32_at(&reply, 20), 1 << 20, "the longest write");
    assert_eq!(u32_at(&world.client.init(7, 99).unwrap(), 4), 38);
    assert!(world.client.lookup(ROOT, "rw").is_ok());
    world.client.call(DESTROY, 0, fields()).unwrap();
    assert_eq!(world.client.lookup(ROOT, "rw"), Err(EIO));
    world.end().unwrap();
}

#[test]
fn the_root_has_the_volumes_and_nothing_else() {
    let mut world = World::new();
    let client = &mut world.client;
    let root = client.attributes(ROOT);
    assert_eq!((root.mode, root.uid, root.gid), (0o040_755, 0, 0));
    let handle = client.opendir(ROOT).unwrap();
    for (plus, size) in [(false, 64), (false, 4096), (true, 200), (true, 4096)] {
        let names: Vec<_> =
            client.names(ROOT, handle, plus, size).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [".", "..", "rw", "ro", "file", "small", "mine"]);
    }
    client.call(RELEASEDIR, ROOT, fields().u64(handle).u32(0).u32(0).u64(0)).unwrap();
    assert_eq!(client.lookup(ROOT, "file"), Ok(FILE));
    assert_eq!(client.lookup(ROOT, "canary"), Err(ENOENT));
    assert_eq!(client.attributes(FILE).size, 13);
    let file = client.open(FILE, 2).unwrap();
    assert_eq!(client.read(FILE, file, 2, 6).unwrap(), b"single");
    assert_eq!(world.violations.total(), 0);
}

#[test]
fn a_file_is_made_written_read_and_removed() {
    let mut world = World::new();
    let client = &mut world.client;
    let (node, handle) = client.create(RW, "new", 2, 0o100_640).unwrap();
    let data: Vec<u8> = (0..1u32 << 20).map(|number| u8::try_from(number % 251).unwrap()).collect();
    assert_eq!(client.write(node, handle, 5, &data), Ok(1 << 20));
    assert_eq!(client.read(node, handle, 5, 1 << 20).unwrap(), data);
    assert_eq!(client.read(node, handle, 0, 5).unwrap(), [0; 5]);
    assert_eq!(client.read(node, handle, 1 << 30, 5).unwrap(), b"");
    let found = client.attributes(node);
    assert_eq!((found.size, found.mode, found.uid), ((1 << 20) + 5, 0o100_640, 0));
    client.call(FLUSH, node, fields().u64(handle).u32(0).u32(0).u64(0)).unwrap();
    client.call(FSYNC, node, fields().u64(handle).u32(1).u32(0)).unwrap();
    client.call(SYNCFS, ROOT, fields().u64(0)).unwrap();
    let host = fs::metadata(world.folder.path().join("rw/new")).unwrap();
    assert_eq!((host.uid(), host.gid(), host.len()), (1000, 1000, (1 << 20) + 5));
    client.unlink(RW, "new").unwrap();
    assert_eq!(client.lookup(RW, "new"), Err(ENOENT));
    assert_eq!(client.read(node, handle, 0, 3).unwrap(), [0; 3], "it is still open");
    client.release(node, handle).unwrap();
    assert_eq!(client.read(node, handle, 0, 3), Err(EBADF));
    assert_eq!(world.violations.count(Violation::Handle), 1);
}

#[test]
fn an_existing_file_is_opened_by_create_unless_it_must_be_new() {
    let mut world = World::new();
    let client = &mut world.client;
    assert_eq!(client.create(RW, "a", 0o200 | 2, 0o644), Err(EEXIST));
    let (node, handle) = client.create(RW, "a", 2, 0o600).unwrap();
    assert_eq!(client.read(node, handle, 0, 99).unwrap(), b"inside");
    client.create(RW, "a", 0o1000 | 2, 0o600).unwrap();
    assert_eq!(client.read(node, handle, 0, 99).unwrap(), b"");
    assert_eq!(client.create(RW, "sub", 2, 0o600), Err(EISDIR));
    assert_eq!(client.create(RW, "escape", 2, 0o600), Err(ELOOP), "a link is not followed");
}

#[test]
fn folders_are_made_read_and_removed() {
    let mut world = World::new();
    let client = &mut world.client;
    let folder = client.mkdir(RW, "many").unwrap();
    for number in 0..300 {
        client.create(folder, &format!("file-{number:0>100}"), 2, 0o644).unwrap();
    }
    let handle = client.opendir(folder).unwrap();
    for plus in [false, true] {
        for size in [512, 4096, 1 << 17] {
            let mut names = client.names(folder, handle, plus, size);
            assert_eq!(names.len(), 302, "each once, {plus} {size}");
            // Reading goes on where it was, at any position.
            let (_, middle) = names[150].clone();
            let rest = client.call(READDIR, folder, span(handle, middle, 512)).unwrap();
            let len = usize::try_from(u32_at(&rest, 16)).unwrap();
            assert_eq!(rest[24..24 + len], *names[151].0.as_bytes());
            names.sort();
            names.dedup();
            assert_eq!(names.len(), 302);
        }
    }
    client.call(FSYNCDIR, folder, fields().u64(handle).u32(0).u32(0)).unwrap();
    assert_eq!(client.call(RMDIR, RW, fields().name(b"many")), Err(39), "it is not empty");
    for number in 0..300 {
        client.unlink(folder, &format!("file-{number:0>100}")).unwrap();
    }
    client.call(RMDIR, RW, fields().name(b"many")).unwrap();
    assert_eq!(world.violations.count(Violation::Handle), 0);
}

#[test]
fn the_way_up_from_a_volume_is_the_share() {
    let mut world = World::new();
    let handle = world.client.opendir(RW).unwrap();
    let body = world.client.call(READDIR, RW, span(handle, 0, 4096)).unwrap();
    let mut at = 0;
    let mut seen = false;
    while at < body.len() {
        let len = usize::try_from(u32_at(&body, at + 16)).unwrap();
        if body[at + 24..at + 24 + len] == *b".." {
            assert_eq!(u64_at(&body, at), ROOT);
            seen = true;
        }
        at += 24 + len.next_multiple_of(8);
    }
    assert!(seen);
}

#[test]
fn links_are_made_and_read_and_never_followed() {
    let mut world = World::new();
    let client = &mut world.client;
    let entry = client.call(SYMLINK, RW, fields().name(b"link").name(b"/etc/passwd")).unwrap();
    let link = u64_at(&entry, 0);
    assert_eq!(attributes(&entry[40..]).mode, 0o120_777);
    assert_eq!(client.call(READLINK, link, fields()).unwrap(), b"/etc/passwd");
    assert_eq!(client.lookup(link, "x"), Err(ENOTDIR));
    let a = client.lookup(RW, "a").unwrap();
    client.call(LINK, RW, fields().u64(a).name(b"b")).unwrap();
    assert_eq!((client.lookup(RW, "b"), client.attributes(a).nlink), (Ok(a), 2));
    client.call(LINK, RW, fields().u64(link).name(b"link2")).unwrap();
    assert_eq!(client.lookup(RW, "link2"), Ok(link));
    let host = fs::symlink_metadata(world.folder.path().join("rw/link")).unwrap();
    assert_eq!((host.uid(), host.nlink()), (1000, 2));
}

#[test]
fn nodes_are_files_fifos_and_sockets() {
    let mut world = World::new();
    for (number, mode) in [0o100_644, 0o010_600, 0o140_755].into_iter().enumerate() {
        let name = format!("node{number}");
        let body = fields().u32(mode).u32(0).u32(0).u32(0).name(name.as_bytes());
        let entry = world.client.call(MKNOD, RW, body).unwrap();
        assert_eq!(attributes(&entry[40..]).mode, mode);
    }
    let body = fields().u32(0o040_755).u32(0).u32(0).u32(0).name(b"folder");
    assert_eq!(world.client.call(MKNOD, RW, body), Err(EINVAL));
}

#[test]
fn names_move_replace_and_change_places() {
    let mut world = World::new();
    let client = &mut world.client;
    let sub = client.lookup(RW, "sub").unwrap();
    let a = client.lookup(RW, "a").unwrap();
    client.call(RENAME, RW, fields().u64(sub).name(b"a").name(b"b")).unwrap();
    assert_eq!((client.lookup(RW, "a"), client.lookup(sub, "b")), (Err(ENOENT), Ok(a)));
    let (other, _) = client.create(RW, "a", 2, 0o644).unwrap();
    let rename = |flags: u32| fields().u64(sub).u32(flags).u32(0).name(b"a").name(b"b");
    assert_eq!(client.call(RENAME2, RW, rename(1)), Err(EEXIST));
    client.call(RENAME2, RW, rename(2)).unwrap();
    assert_eq!((client.lookup(RW, "a"), client.lookup(sub, "b")), (Ok(a), Ok(other)));
    for flags in [3, 4, 8, u32::MAX] {
        assert_eq!(client.call(RENAME2, RW, rename(flags)), Err(EINVAL));
    }
    client.call(RENAME2, RW, rename(0)).unwrap();
    assert_eq!((client.lookup(RW, "a"), client.lookup(sub, "b")), (Err(ENOENT), Ok(a)));
}

#[test]
fn attributes_are_set() {
    let mut world = World::new();
    let client = &mut world.client;
    let a = client.lookup(RW, "a").unwrap();
    let body = client.call(SETATTR, a, setattr(1, &[(AT_MODE, 0o4711)])).unwrap();
    assert_eq!(attributes(&body[16..]).mode, 0o104_711);
    client.call(SETATTR, a, setattr(8, &[(AT_SIZE, 3)])).unwrap();
    assert_eq!(client.attributes(a).size, 3);
    client.call(SETATTR, a, setattr(16 | 32, &[(AT_ATIME, 5), (AT_MTIME, 6)])).unwrap();
    assert_eq!(client.attributes(a).mtime, 6);
    client.call(SETATTR, a, setattr(32 | 256, &[])).unwrap();
    assert!(client.attributes(a).mtime > 1_000_000_000);
    client.call(SETATTR, a, setattr(32, &[(AT_MTIME, (-5i64).cast_unsigned())])).unwrap();
    assert_eq!(client.attributes(a).mtime.cast_signed(), -5);
    // Owners are swapped: the guest's root is the caller.
    client.call(SETATTR, a, setattr(2 | 4, &[(AT_UID, 0), (AT_GID, 7)])).unwrap();
    let host = fs::metadata(world.folder.path().join("rw/a")).unwrap();
    assert_eq!((host.uid(), host.gid()), (1000, 7));
    assert_eq!(client.call(SETATTR, a, setattr(2, &[(AT_UID, u64::from(u32::MAX))])), Err(EINVAL));
    let link = client.lookup(RW, "escape").unwrap();
    client.call(SETATTR, link, setattr(2 | 32, &[(AT_UID, 9), (AT_MTIME, 6)])).unwrap();
    assert_eq!(client.attributes(link).mtime, 6);
    assert_eq!(client.call(SETATTR, link, setattr(1, &[(AT_MODE, 0o644)])), Err(EOPNOTSUPP));
}

#[test]
fn a_write_by_the_unprivileged_takes_the_suid_bit_away() {
    let mut world = World::new();
    let client = &mut world.client;
    let (node, handle) = client.create(RW, "suid", 2, 0o106_755).unwrap();
    assert_eq!(client.attributes(node).mode, 0o106_755);
    let kill = fields().u64(handle).u64(0).u32(1).u32(4).u64(0).u64(0).bytes(b"x");
    client.call(WRITE, node, kill).unwrap();
    assert_eq!(client.attributes(node).mode, 0o100_755);
    client.call(SETATTR, node, setattr(1, &[(AT_MODE, 0o2745)])).unwrap();
    client.call(SETATTR, node, setattr(8 | 64 | 1 << 11, &[(AT_FH, handle)])).unwrap();
    assert_eq!(
        client.attributes(node).mode,
        0o102_745,
        "without execution by the group it means something else"
    );
}

#[test]
fn what_is_made_belongs_to_its_maker_or_to_the_folders_group() {
    let mut world = World::new();
    let folder = world.folder.path().join("rw/sub");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o2775)).unwrap();
    rustix::fs::chown(&folder, None, Some(rustix::fs::Gid::from_raw(77))).unwrap();
    (world.client.uid, world.client.gid) = (5, 6);
    let client = &mut world.client;
    let sub = client.lookup(RW, "sub").unwrap();
    let (file, _) = client.create(sub, "file", 2, 0o644).unwrap();
    let made = client.mkdir(sub, "folder").unwrap();
    let (file, made) = (client.attributes(file), client.attributes(made));
    assert_eq!((file.uid, file.gid, file.mode), (5, 77, 0o100_644));
    assert_eq!((made.uid, made.gid, made.mode), (5, 77, 0o042_755));
    let (plain, _) = client.create(RW, "plain", 2, 0o644).unwrap();
    let plain = client.attributes(plain);
    assert_eq!((plain.uid, plain.gid), (5, 6));
}

#[test]
fn without_privileges_all_belongs_to_the_caller() {
    let mut world = World::new();
    (world.client.uid, world.client.gid) = (5, 6);
    let client = &mut world.client;
    let (node, _) = client.create(MINE, "new", 2, 0o644).unwrap();
    let made = client.attributes(node);
    assert_eq!((made.uid, made.gid), (1000, 1000), "the container's user");
    client.call(SETATTR, node, setattr(2 | 4, &[(AT_UID, 1000), (AT_GID, 1000)])).unwrap();
    assert_eq!(client.call(SETATTR, node, setattr(2, &[(AT_UID, 5)])), Err(EPERM));
    assert_eq!(client.call(SETATTR, node, setattr(4, &[(AT_GID, 0)])), Err(EPERM));
    assert_eq!(world.violations.count(Violation::Owner), 2);
    let host = fs::metadata(world.folder.path().join("mine/new")).unwrap();
    assert_eq!((host.uid(), host.gid()), (0, 0));
}

#[test]
fn room_is_allocated_and_holes_are_found() {
    let mut world = World::new();
    let client = &mut world.client;
    let (node, handle) = client.create(RW, "holes", 2, 0o644).unwrap();
    let fallocate =
        |mode: u32, offset: u64, len: u64| fields().u64(handle).u64(offset).u64(len).u32(mode).u32(0);
    client.call(FALLOCATE, node, fallocate(0, 0, 1 << 20)).unwrap();
    assert_eq!(client.attributes(node).size, 1 << 20);
    client.call(FALLOCATE, node, fallocate(1, 1 << 20, 4096)).unwrap();
    assert_eq!(client.attributes(node).size, 1 << 20);
    client.write(node, handle, 0, &[7; 8192]).unwrap();
    client.call(FALLOCATE, node, fallocate(3, 4096, 4096)).unwrap();
    assert_eq!(client.read(node, handle, 4096, 4096).unwrap(), [0; 4096]);
    client.call(FALLOCATE, node, fallocate(16, 0, 10)).unwrap();
    for mode in [2, 8, 32, 64, u32::MAX] {
        assert_eq!(client.call(FALLOCATE, node, fallocate(mode, 0, 4096)), Err(EOPNOTSUPP), "{mode}");
    }
    let lseek = |offset: u64, whence: u32| fields().u64(handle).u64(offset).u32(whence).u32(0);
    assert_eq!(u64_at(&client.call(LSEEK, node, lseek(0, 3)).unwrap(), 0), 0);
    assert_eq!(u64_at(&client.call(LSEEK, node, lseek(0, 4)).unwrap(), 0), 4096);
    assert_eq!(client.call(LSEEK, node, lseek(0, 0)), Err(EINVAL));
    assert_eq!(client.call(LSEEK, node, lseek(u64::MAX, 3)), Err(ENXIO));
}

#[test]
fn attributes_of_the_user_are_set_listed_and_removed() {
    let mut world = World::new();
    let client = &mut world.client;
    let a = client.lookup(RW, "a").unwrap();
    let set = |value: &[u8], flags: u32| {
        fields().u32(u32::try_from(value.len()).unwrap()).u32(flags).name(b"user.x").bytes(value)
    };
    let get = |size: u32| fields().u32(size).u32(0).name(b"user.x");
    client.call(SETXATTR, a, set(b"value", 0)).unwrap();
    assert_eq!(client.call(SETXATTR, a, set(b"again", 1)), Err(EEXIST));
    assert_eq!(u32_at(&client.call(GETXATTR, a, get(0)).unwrap(), 0), 5);
    assert_eq!(client.call(GETXATTR, a, get(5)).unwrap(), b"value");
    assert_eq!(client.call(GETXATTR, a, get(4)), Err(ERANGE));
    assert_eq!(client.call(LISTXATTR, a, fields().u32(100).u32(0)).unwrap(), b"user.x\0");
    client.call(REMOVEXATTR, a, fields().name(b"user.x")).unwrap();
    assert_eq!(client.call(GETXATTR, a, get(0)), Err(61));
    let other = fields().u32(0).u32(0).name(b"security.capability");
    assert_eq!(client.call(GETXATTR, a, other), Err(EOPNOTSUPP));
    assert_eq!(world.violations.total(), 0);
}

#[test]
fn a_quota_holds_and_what_is_removed_is_free_again() {
    let mut world = World::new();
    let client = &mut world.client;
    let (blocks, free, unit) = client.statfs(SMALL);
    assert_eq!(blocks * unit, QUOTA);
    let (node, handle) = client.create(SMALL, "big", 2, 0o644).unwrap();
    assert_eq!(client.write(node, handle, 0, &[1; 128 << 10]), Err(ENOSPC));
    client.write(node, handle, 0, &[1; 16 << 10]).unwrap();
    assert_eq!(client.statfs(SMALL).1, free - 5);
    for size in [1 << 20, 1 << 62] {
        assert_eq!(client.call(SETATTR, node, setattr(8, &[(AT_SIZE, size)])), Err(ENOSPC));
    }
    let fallocate = |mode: u32| fields().u64(handle).u64(0).u64(1 << 20).u32(mode).u32(0);
    assert_eq!(client.call(FALLOCATE, node, fallocate(0)), Err(ENOSPC));
    assert_eq!(client.call(FALLOCATE, node, fallocate(1)), Err(EOPNOTSUPP), "that would not count");
    assert_eq!(client.write(node, handle, 1 << 40, b"x"), Err(ENOSPC));
    // A second name of the same file, which the next rename does not take away.
    client.call(LINK, SMALL, fields().u64(node).name(b"same")).unwrap();
    let before = client.statfs(SMALL).1;
    for _ in 0..10 {
        client.call(RENAME, SMALL, fields().u64(SMALL).name(b"big").name(b"same")).unwrap();
    }
    assert_eq!(client.statfs(SMALL).1, before);
    client.unlink(SMALL, "same").unwrap();
    client.unlink(SMALL, "big").unwrap();
    assert_eq!(client.statfs(SMALL).1, free - 5, "it is open and occupies the disk");
    client.release(node, handle).unwrap();
    assert_eq!(client.statfs(SMALL).1, free - 5, "the guest knows it and could open it");
    client.forget(node, 2);
    assert_eq!(client.statfs(SMALL).1, free);
    let mut made = 0u32;
    while client.mkdir(SMALL, &format!("folder{made}")).is_ok() {
        made += 1;
        assert!(made < 100, "empty folders are bounded");
    }
    assert_eq!(u64::from(made), free * unit / 4096);
    assert_eq!(client.call(SYMLINK, SMALL, fields().name(b"l").name(b"t")), Err(ENOSPC));
    client.call(RMDIR, SMALL, fields().name(b"folder0")).unwrap();
}

#[test]
fn what_a_file_held_that_is_replaced_is_free_again() {
    let mut world = World::new();
    let client = &mut world.client;
    let free = client.statfs(SMALL).1;
    let (node, handle) = client.create(SMALL, "old", 2, 0o644).unwrap();
    client.write(node, handle, 0, &[1; 8192]).unwrap();
    client.release(node, handle).unwrap();
    client.forget(node, 1);
    client.create(SMALL, "new", 2, 0o644).unwrap();
    client.call(RENAME, SMALL, fields().u64(SMALL).name(b"new").name(b"old")).unwrap();
    assert_eq!(client.statfs(SMALL).1, free - 1);
}

#[test]
fn forgotten_files_are_gone_and_a_new_session_knows_none() {
    let mut world = World::new();
    let client = &mut world.client;
    let a = client.lookup(RW, "a").unwrap();
    assert_eq!(client.lookup(RW, "a"), Ok(a));
    client.forget(a, 1);
    assert!(client.open(a, 0).is_ok());
    client.init(7, 38).unwrap();
    assert_eq!(client.open(a, 0), Err(ENOENT));
    let a = client.lookup(RW, "a").unwrap();
    let sub = client.lookup(RW, "sub").unwrap();
    client.send(BATCH_FORGET, 0, &fields().u32(2).u32(0).u64(a).u64(1).u64(sub).u64(1).0);
    assert_eq!((client.open(a, 0), client.opendir(sub)), (Err(ENOENT), Err(ENOENT)));
}

#[test]
fn a_share_is_served_again_after_its_stream_has_ended() {
    let folder = tree();
    let mut share = Share::new(volumes(folder.path())).unwrap();
    for _ in 0..2 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        share.serve_stream(theirs).unwrap();
    }
}

#[test]
fn volumes_that_make_no_sense_are_refused() {
    let folder = tree();
    let with = |name: &str| {
        let mut all = volumes(folder.path());
        all[0].name = name.to_owned();
        Share::new(all)
    };
    for name in ["", ".", "..", "a/b", "a\0"] {
        assert!(matches!(with(name), Err(NewError::Name(_))), "{name:?}");
    }
    assert!(matches!(with("ro"), Err(NewError::Twice(_))));
    assert!(matches!(Share::new(Vec::new()), Err(NewError::Volumes(0))));
    let mut all = volumes(folder.path());
    all[0].root = fs::File::open("/dev/null").unwrap().into();
    assert!(matches!(Share::new(all), Err(NewError::Kind(_))));
}
