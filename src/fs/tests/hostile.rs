//! What a hostile kernel asks for. Each is refused, counted where it is a trick, and changes nothing outside.

mod client;

use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::fs::symlink;
use std::path::Path;

use boxlite_fs::{StreamError, Violation};
use client::*;

/// What one case does, and what must come of it.
struct Case {
    what: &'static str,
    act: fn(&mut World) -> Result<Vec<u8>, i32>,
    errno: i32,
    trick: Option<Violation>,
}

fn case(
    what: &'static str,
    errno: i32,
    trick: Option<Violation>,
    act: fn(&mut World) -> Result<Vec<u8>, i32>,
) -> Case {
    Case { what, act, errno, trick }
}

fn done<T>(result: Result<T, i32>) -> Result<Vec<u8>, i32> {
    result.map(|_| Vec::new())
}

fn lookup(world: &mut World, name: &[u8]) -> Result<Vec<u8>, i32> {
    world.client.call(LOOKUP, RW, fields().name(name))
}

/// Number and handle of `ro/a`.
fn read_only_file(world: &mut World) -> (u64, u64) {
    let node = world.client.lookup(RO, "a").unwrap();
    let handle = world.client.open(node, 0).unwrap();
    (node, handle)
}

fn writable_file(world: &mut World) -> (u64, u64) {
    let node = world.client.lookup(RW, "a").unwrap();
    let handle = world.client.open(node, 2).unwrap();
    (node, handle)
}

fn xattr(name: &[u8], value: &[u8]) -> Fields {
    fields().u32(u32::try_from(value.len()).unwrap()).u32(0).name(name).bytes(value)
}

fn mknod(mode: u32) -> Fields {
    fields().u32(mode).u32(0x103).u32(0).u32(0).name(b"made")
}

fn create() -> Fields {
    fields().u32(2).u32(0o644).u32(0).u32(0).name(b"made")
}

#[rustfmt::skip]
fn names() -> Vec<Case> {
    let name = Some(Violation::Name);
    vec![
        case("look up ..", EINVAL, name, |w| lookup(w, b"..")),
        case("look up .", EINVAL, name, |w| lookup(w, b".")),
        case("look up nothing", EINVAL, name, |w| lookup(w, b"")),
        case("look up an absolute path", EINVAL, name, |w| lookup(w, b"/etc/passwd")),
        case("look up a path", EINVAL, name, |w| lookup(w, b"sub/../../canary/secret")),
        case("look up a slash at the end", EINVAL, name, |w| lookup(w, b"sub/")),
        case("look up a NUL within", EINVAL, name, |w| lookup(w, b"a\0b")),
        case("look up a long name", ENAMETOOLONG, None, |w| lookup(w, &[b'x'; 256])),
        case("look up a huge name", ENAMETOOLONG, None, |w| lookup(w, &[b'x'; 1 << 20])),
        case("look up without a NUL", EINVAL, Some(Violation::Message), |w| w.client.call(LOOKUP, RW, fields().bytes(b"a"))),
        case("look up .. of the root", EINVAL, name, |w| w.client.call(LOOKUP, ROOT, fields().name(b".."))),
        case("look up in a file", ENOTDIR, None, |w| done(w.client.lookup(FILE, "a"))),
        case("look up through a link", ENOTDIR, None, |w| {
            let link = w.client.lookup(RW, "out").unwrap();
            done(w.client.lookup(link, "secret"))
        }),
        case("make a folder outside", EINVAL, name, |w| done(w.client.mkdir(RW, "../made"))),
        case("make a file outside", EINVAL, name, |w| done(w.client.create(RW, "../canary/made", 2, 0o644))),
        case("make a link outside", EINVAL, name, |w| w.client.call(SYMLINK, RW, fields().name(b"../made").name(b"x"))),
        case("make a node outside", EINVAL, name, |w| {
            w.client.call(MKNOD, RW, fields().u32(0o100_644).u32(0).u32(0).u32(0).name(b"../made"))
        }),
        case("remove what is outside", EINVAL, name, |w| done(w.client.unlink(RW, "../canary/secret"))),
        case("remove a folder outside", EINVAL, name, |w| w.client.call(RMDIR, RW, fields().name(b"../canary/sub"))),
        case("remove ..", EINVAL, name, |w| w.client.call(RMDIR, RW, fields().name(b".."))),
        case("move to the outside", EINVAL, name, |w| w.client.call(RENAME, RW, fields().u64(RW).name(b"a").name(b"../a"))),
        case("move from the outside", EINVAL, name, |w| {
            w.client.call(RENAME, RW, fields().u64(RW).name(b"../canary/secret").name(b"s"))
        }),
        case("move with a third name", EINVAL, name, |w| {
            w.client.call(RENAME, RW, fields().u64(RW).name(b"a").name(b"b").name(b"c"))
        }),
        case("link to the outside", EINVAL, name, |w| {
            let a = w.client.lookup(RW, "a").unwrap();
            w.client.call(LINK, RW, fields().u64(a).name(b"../a"))
        }),
        case("make a file where a link leads outside", ELOOP, Some(Violation::Special), |w| {
            done(w.client.create(RW, "escape", 2, 0o644))
        }),
    ]
}

#[rustfmt::skip]
fn numbers() -> Vec<Case> {
    let (node, handle) = (Some(Violation::Node), Some(Violation::Handle));
    vec![
        case("a forged number", ENOENT, node, |w| done(w.client.open(u64::MAX, 0))),
        case("the number 0", ENOENT, node, |w| w.client.call(GETATTR, 0, fields().u32(0).u32(0).u64(0))),
        case("write by a forged number", ENOENT, node, |w| w.client.call(SETATTR, 99, setattr(8, &[]))),
        case("a number that was forgotten", ENOENT, node, |w| {
            let a = w.client.lookup(RW, "a").unwrap();
            w.client.forget(a, 1);
            done(w.client.open(a, 0))
        }),
        case("forget more than there is", ENOENT, node, |w| {
            let a = w.client.lookup(RW, "a").unwrap();
            w.client.forget(a, u64::MAX);
            w.client.forget(a, u64::MAX);
            done(w.client.opendir(a))
        }),
        case("forget a list that is cut off", ENOENT, Some(Violation::Message), |w| {
            w.client.send(BATCH_FORGET, 0, &fields().u32(u32::MAX).u32(0).u64(RW).u64(1).0);
            done(w.client.lookup(RW, "missing"))
        }),
        case("link a forged number", ENOENT, node, |w| w.client.call(LINK, RW, fields().u64(77).name(b"made"))),
        case("move into a forged folder", ENOENT, node, |w| w.client.call(RENAME, RW, fields().u64(77).name(b"a").name(b"b"))),
        case("a forged handle", EBADF, handle, |w| done(w.client.read(FILE, u64::MAX, 0, 1))),
        case("a handle that was closed", EBADF, handle, |w| {
            let (node, handle) = writable_file(w);
            w.client.release(node, handle).unwrap();
            done(w.client.write(node, handle, 0, b"x"))
        }),
        case("close a handle twice", EBADF, handle, |w| {
            let (node, handle) = writable_file(w);
            w.client.release(node, handle).unwrap();
            done(w.client.release(node, handle))
        }),
        case("the handle of another file", EBADF, handle, |w| {
            let (_, handle) = read_only_file(w);
            done(w.client.write(FILE, handle, 0, b"x"))
        }),
        case("a writable handle for a read-only file", EROFS, Some(Violation::ReadOnly), |w| {
            let (_, handle) = writable_file(w);
            done(w.client.write(RO, handle, 0, b"x"))
        }),
        case("read a folder as a file", EBADF, handle, |w| {
            let handle = w.client.opendir(RW).unwrap();
            done(w.client.read(RW, handle, 0, 4096))
        }),
        case("read a file as a folder", EBADF, handle, |w| {
            let (node, handle) = writable_file(w);
            w.client.call(READDIR, node, span(handle, 0, 4096))
        }),
        case("write by a handle for reading", EBADF, handle, |w| {
            let handle = w.client.open(FILE, 0).unwrap();
            done(w.client.write(FILE, handle, 0, b"x"))
        }),
        case("truncate by a handle for reading", EBADF, handle, |w| {
            let handle = w.client.open(FILE, 0).unwrap();
            w.client.call(SETATTR, FILE, setattr(8 | 64, &[(AT_FH, handle)]))
        }),
        case("allocate by a handle for reading", EBADF, handle, |w| {
            let handle = w.client.open(FILE, 0).unwrap();
            w.client.call(FALLOCATE, FILE, fields().u64(handle).u64(0).u64(4096).u32(0).u32(0))
        }),
    ]
}

#[rustfmt::skip]
fn kinds() -> Vec<Case> {
    let special = Some(Violation::Special);
    fn open(world: &mut World, name: &str) -> Result<Vec<u8>, i32> {
        let node = world.client.lookup(RW, name).unwrap();
        done(world.client.open(node, 2))
    }
    vec![
        case("open a link", ELOOP, special, |w| open(w, "escape")),
        case("open a FIFO", ENXIO, special, |w| open(w, "fifo")),
        case("open a device", ENXIO, special, |w| open(w, "device")),
        case("open a socket", ENXIO, special, |w| open(w, "socket")),
        case("create over a FIFO", ENXIO, special, |w| done(w.client.create(RW, "fifo", 2, 0o644))),
        case("create over a device", ENXIO, special, |w| done(w.client.create(RW, "device", 2, 0o644))),
        case("truncate a link", ELOOP, special, |w| {
            let node = w.client.lookup(RW, "escape").unwrap();
            w.client.call(SETATTR, node, setattr(8, &[]))
        }),
        case("truncate a FIFO", ENXIO, special, |w| {
            let node = w.client.lookup(RW, "fifo").unwrap();
            w.client.call(SETATTR, node, setattr(8, &[]))
        }),
        case("open a folder as a file", EISDIR, None, |w| open(w, "sub")),
        case("open a link as a folder", ENOTDIR, None, |w| {
            let node = w.client.lookup(RW, "out").unwrap();
            done(w.client.opendir(node))
        }),
        case("open with a fourth access", EINVAL, None, |w| done(w.client.open(FILE, 3))),
        case("make a character device", EPERM, Some(Violation::Device), |w| w.client.call(MKNOD, RW, mknod(0o020_666))),
        case("make a block device", EPERM, Some(Violation::Device), |w| w.client.call(MKNOD, RW, mknod(0o060_666))),
        case("make nothing known", EINVAL, None, |w| w.client.call(MKNOD, RW, mknod(0o170_666))),
        case("change a device's mode", EPERM, Some(Violation::Device), |w| {
            let node = w.client.lookup(RW, "device").unwrap();
            w.client.call(SETATTR, node, setattr(1, &[(AT_MODE, 0o666)]))
        }),
        case("link a device", EPERM, Some(Violation::Device), |w| {
            let node = w.client.lookup(RW, "device").unwrap();
            w.client.call(LINK, RW, fields().u64(node).name(b"made"))
        }),
        case("change a link's mode", EOPNOTSUPP, None, |w| {
            let node = w.client.lookup(RW, "escape").unwrap();
            w.client.call(SETATTR, node, setattr(1, &[(AT_MODE, 0o777)]))
        }),
        case("an attribute of a link", EPERM, None, |w| {
            let node = w.client.lookup(RW, "escape").unwrap();
            w.client.call(SETXATTR, node, xattr(b"user.x", b"x"))
        }),
        case("link into another volume", EXDEV, Some(Violation::Volume), |w| {
            let node = w.client.lookup(RO, "a").unwrap();
            w.client.call(LINK, RW, fields().u64(node).name(b"made"))
        }),
        case("move into another volume", EXDEV, Some(Violation::Volume), |w| {
            w.client.call(RENAME, RW, fields().u64(RO).name(b"a").name(b"made"))
        }),
        case("exchange with another volume", EXDEV, Some(Violation::Volume), |w| {
            w.client.call(RENAME2, RW, fields().u64(RO).u32(2).u32(0).name(b"a").name(b"a"))
        }),
        case("move into the root", EXDEV, Some(Violation::Volume), |w| {
            w.client.call(RENAME, RW, fields().u64(ROOT).name(b"a").name(b"made"))
        }),
        case("give a file away", EPERM, Some(Violation::Owner), |w| {
            w.client.call(SETATTR, MINE, setattr(2, &[(AT_UID, 5)]))
        }),
        case("give a file to all ones", EPERM, Some(Violation::Owner), |w| {
            w.client.call(SETATTR, MINE, setattr(4, &[(AT_GID, u64::from(u32::MAX))]))
        }),
        case("make a program privileged", EOPNOTSUPP, Some(Violation::Attribute), |w| {
            w.client.call(SETXATTR, FILE, xattr(b"security.capability", b"x"))
        }),
        case("mark an overlay", EOPNOTSUPP, Some(Violation::Attribute), |w| {
            w.client.call(SETXATTR, RW, xattr(b"trusted.overlay.opaque", b"y"))
        }),
        case("set an access list", EOPNOTSUPP, Some(Violation::Attribute), |w| {
            w.client.call(SETXATTR, RW, xattr(b"system.posix_acl_access", b"y"))
        }),
        case("remove what is not the user's", EOPNOTSUPP, Some(Violation::Attribute), |w| {
            w.client.call(REMOVEXATTR, FILE, fields().name(b"security.selinux"))
        }),
        case("an attribute without a name", EINVAL, None, |w| w.client.call(SETXATTR, FILE, xattr(b"user.", b"x"))),
        case("an attribute with a long name", ERANGE, None, |w| w.client.call(SETXATTR, FILE, xattr(&[b'u'; 256], b"x"))),
        case("an attribute with a NUL in its name", EINVAL, Some(Violation::Name), |w| {
            w.client.call(GETXATTR, FILE, fields().u32(0).u32(0).name(b"user.a\0b"))
        }),
        case("an attribute with a huge value", 7, None, |w| w.client.call(SETXATTR, FILE, xattr(b"user.x", &[0; 65537]))),
        case("an attribute that lies about its length", EINVAL, Some(Violation::Message), |w| {
            w.client.call(SETXATTR, FILE, fields().u32(u32::MAX).u32(0).name(b"user.x").bytes(b"x"))
        }),
    ]
}

#[rustfmt::skip]
fn read_only() -> Vec<Case> {
    let trick = Some(Violation::ReadOnly);
    vec![
        case("create in a read-only volume", EROFS, trick, |w| w.client.call(CREATE, RO, create())),
        case("make a folder", EROFS, trick, |w| done(w.client.mkdir(RO, "made"))),
        case("make a node", EROFS, trick, |w| w.client.call(MKNOD, RO, mknod(0o100_644))),
        case("make a link", EROFS, trick, |w| w.client.call(SYMLINK, RO, fields().name(b"made").name(b"x"))),
        case("unlink", EROFS, trick, |w| done(w.client.unlink(RO, "a"))),
        case("remove a folder", EROFS, trick, |w| w.client.call(RMDIR, RO, fields().name(b"sub"))),
        case("move within", EROFS, trick, |w| w.client.call(RENAME, RO, fields().u64(RO).name(b"a").name(b"b"))),
        case("move out", EROFS, trick, |w| w.client.call(RENAME2, RO, fields().u64(RW).u32(0).u32(0).name(b"a").name(b"b"))),
        case("link", EROFS, trick, |w| {
            let (node, _) = read_only_file(w);
            w.client.call(LINK, RO, fields().u64(node).name(b"made"))
        }),
        case("link into it", EROFS, trick, |w| {
            let (node, _) = writable_file(w);
            w.client.call(LINK, RO, fields().u64(node).name(b"made"))
        }),
        case("open for writing", EROFS, trick, |w| {
            let (node, _) = read_only_file(w);
            done(w.client.open(node, 1))
        }),
        case("open for reading and writing", EROFS, trick, |w| {
            let (node, _) = read_only_file(w);
            done(w.client.open(node, 2))
        }),
        case("open and truncate", EROFS, trick, |w| {
            let (node, _) = read_only_file(w);
            done(w.client.open(node, 0o1000))
        }),
        case("write", EROFS, trick, |w| {
            let (node, handle) = read_only_file(w);
            done(w.client.write(node, handle, 0, b"x"))
        }),
        case("truncate", EROFS, trick, |w| {
            let (node, _) = read_only_file(w);
            w.client.call(SETATTR, node, setattr(8, &[]))
        }),
        case("touch", EROFS, trick, |w| w.client.call(SETATTR, RO, setattr(16 | 128, &[]))),
        case("change the mode", EROFS, trick, |w| w.client.call(SETATTR, RO, setattr(1, &[(AT_MODE, 0o777)]))),
        case("allocate", EROFS, trick, |w| {
            let (node, handle) = read_only_file(w);
            w.client.call(FALLOCATE, node, fields().u64(handle).u64(0).u64(1 << 20).u32(0).u32(0))
        }),
        case("set an attribute", EROFS, trick, |w| w.client.call(SETXATTR, RO, xattr(b"user.x", b"x"))),
        case("remove an attribute", EROFS, trick, |w| w.client.call(REMOVEXATTR, RO, fields().name(b"user.x"))),
        case("copy a range", EROFS, trick, |w| w.client.call(COPY_FILE_RANGE, RO, fields().bytes(&[0; 56]))),
        case("create in the root", EROFS, trick, |w| w.client.call(CREATE, ROOT, create())),
        case("remove a volume", EROFS, trick, |w| w.client.call(RMDIR, ROOT, fields().name(b"rw"))),
        case("unlink a volume", EROFS, trick, |w| done(w.client.unlink(ROOT, "file"))),
        case("rename a volume", EROFS, trick, |w| w.client.call(RENAME, ROOT, fields().u64(ROOT).name(b"rw").name(b"x"))),
        case("change the root's mode", EROFS, trick, |w| w.client.call(SETATTR, ROOT, setattr(1, &[(AT_MODE, 0o777)]))),
        case("set an attribute of the root", EROFS, trick, |w| w.client.call(SETXATTR, ROOT, xattr(b"user.x", b"x"))),
        case("link into the root", EROFS, trick, |w| w.client.call(LINK, ROOT, fields().u64(FILE).name(b"made"))),
    ]
}

#[rustfmt::skip]
fn lengths() -> Vec<Case> {
    let message = Some(Violation::Message);
    vec![
        case("write more than was sent", EINVAL, message, |w| {
            let (node, handle) = writable_file(w);
            w.client.call(WRITE, node, span(handle, 0, u32::MAX).bytes(b"x"))
        }),
        case("write without fields", EINVAL, message, |w| w.client.call(WRITE, FILE, fields().u64(1))),
        case("write beyond all files", EINVAL, None, |w| {
            let (node, handle) = writable_file(w);
            done(w.client.write(node, handle, u64::MAX - 1, b"xyz"))
        }),
        case("write at the last byte", EINVAL, None, |w| {
            let (node, handle) = writable_file(w);
            done(w.client.write(node, handle, i64::MAX.cast_unsigned(), b"x"))
        }),
        case("read beyond all files", EINVAL, None, |w| {
            let (node, handle) = writable_file(w);
            done(w.client.read(node, handle, u64::MAX, u32::MAX))
        }),
        case("truncate to more than there can be", EINVAL, None, |w| w.client.call(SETATTR, FILE, setattr(8, &[(AT_SIZE, u64::MAX)]))),
        case("allocate more than there can be", EINVAL, None, |w| {
            let (node, handle) = writable_file(w);
            w.client.call(FALLOCATE, node, fields().u64(handle).u64(u64::MAX).u64(u64::MAX).u32(0).u32(0))
        }),
        case("a time that is none", EINVAL, None, |w| {
            let mut body = setattr(32, &[(AT_MTIME, 1)]);
            body.0[60..64].copy_from_slice(&u32::MAX.to_ne_bytes());
            w.client.call(SETATTR, FILE, body)
        }),
        case("set attributes without all fields", EINVAL, message, |w| w.client.call(SETATTR, FILE, fields().u64(8))),
        case("look up without anything", EINVAL, message, |w| w.client.call(LOOKUP, RW, fields())),
        case("read a folder at a place that is none", EINVAL, None, |w| {
            let handle = w.client.opendir(RW).unwrap();
            w.client.call(READDIR, RW, span(handle, u64::MAX, 4096))
        }),
        case("read a folder into too little", EINVAL, None, |w| {
            let handle = w.client.opendir(RW).unwrap();
            w.client.call(READDIR, RW, span(handle, 0, 8))
        }),
        case("a link to too much", ENAMETOOLONG, None, |w| w.client.call(SYMLINK, RW, fields().name(b"made").name(&[b'x'; 4096]))),
        case("an unknown operation", ENOSYS, None, |w| w.client.call(4000, RW, fields().bytes(&[255; 500]))),
        case("map memory", ENOSYS, None, |w| w.client.call(48, RW, fields().bytes(&[0; 40]))),
        case("an ioctl", ENOSYS, None, |w| w.client.call(39, RW, fields().bytes(&[0; 40]))),
    ]
}

#[test]
fn every_trick_is_refused_counted_and_changes_nothing_outside() {
    let all: Vec<_> = [names(), numbers(), kinds(), read_only(), lengths()].into_iter().flatten().collect();
    assert!(all.len() >= 100, "{}", all.len());
    for Case { what, act, errno, trick } in all {
        let mut world = World::new();
        let before = world.untouchable();
        assert_eq!(act(&mut world), Err(errno), "{what}");
        assert_eq!(world.untouchable(), before, "{what}");
        match trick {
            Some(kind) => assert!(world.violations.count(kind) > 0, "{what} is counted"),
            None => assert_eq!(world.violations.total(), 0, "{what} is no trick"),
        }
        assert_eq!(world.client.lookup(ROOT, "rw"), Ok(RW), "it is still there after {what}");
        world.end().unwrap();
    }
}

#[test]
fn sizes_that_a_guest_lies_about_are_cut() {
    let mut world = World::new();
    let handle = world.client.opendir(RW).unwrap();
    for (plus, opcode) in [(false, READDIR), (true, READDIRPLUS)] {
        assert_eq!(world.client.call(opcode, RW, span(handle, 0, 0)).unwrap(), b"");
        let all = world.client.call(opcode, RW, span(handle, 0, u32::MAX)).unwrap();
        assert!(!all.is_empty() && all.len() <= 1 << 20, "{plus}");
    }
    let (node, file) = writable_file(&mut world);
    world.client.call(SETATTR, node, setattr(8, &[(AT_SIZE, 1 << 40)])).unwrap();
    assert_eq!(world.client.read(node, file, 0, u32::MAX).unwrap().len(), 1 << 20);
}

#[test]
fn a_folder_that_the_host_moves_away_leads_no_further_up() {
    let mut world = World::new();
    let sub = world.client.lookup(RW, "sub").unwrap();
    fs::write(world.at("rw/sub/x"), "").unwrap();
    fs::rename(world.at("rw/sub"), world.at("canary/moved")).unwrap();
    let before = world.untouchable();
    assert_eq!(world.client.call(LOOKUP, sub, fields().name(b"..")), Err(EINVAL));
    assert_eq!(world.client.call(LOOKUP, sub, fields().name(b"../secret")), Err(EINVAL));
    assert!(world.client.lookup(sub, "x").is_ok(), "it is the same folder");
    assert_eq!(world.untouchable(), before);
}

/// Lets the host change something between what the guest learns and what it does with it.
fn swapped(
    swap: impl Fn(&Path),
    act: impl Fn(&mut World, u64) -> Result<Vec<u8>, i32>,
) -> Result<Vec<u8>, i32> {
    let mut world = World::new();
    let node = world.client.lookup(RW, "a").unwrap();
    swap(world.folder.path());
    let before = world.untouchable();
    let result = act(&mut world, node);
    assert_eq!(world.untouchable(), before);
    result
}

#[test]
fn a_link_that_the_host_puts_in_place_of_a_file_is_not_followed() {
    let to_link = |folder: &Path| {
        fs::remove_file(folder.join("rw/a")).unwrap();
        symlink("../canary/secret", folder.join("rw/a")).unwrap();
    };
    let opened = swapped(to_link, |world, node| {
        let handle = world.client.open(node, 2)?;
        world.client.write(node, handle, 0, b"INSIDE")?;
        world.client.call(SETATTR, node, setattr(1 | 2, &[(AT_MODE, 0o777), (AT_UID, 9)]))?;
        world.client.read(node, handle, 0, 99)
    });
    assert_eq!(opened.unwrap(), b"INSIDE", "the file that was looked up, though it has no name any more");
    let created = swapped(to_link, |world, _| done(world.client.create(RW, "a", 0o1000 | 2, 0o644)));
    assert_eq!(created, Err(ELOOP));
}

#[test]
fn a_folder_that_the_host_replaces_by_a_link_is_not_followed() {
    let to_link = |folder: &Path| {
        fs::remove_dir(folder.join("rw/sub")).unwrap();
        symlink("../canary", folder.join("rw/sub")).unwrap();
    };
    let made = swapped(to_link, |world, _| {
        let sub = world.client.lookup(RW, "sub").unwrap();
        done(world.client.create(sub, "made", 2, 0o644))
    });
    assert_eq!(made, Err(ENOTDIR));
}

#[test]
fn a_host_that_swaps_names_all_the_time_is_never_followed_outside() {
    let mut world = World::new();
    let before = world.untouchable();
    let (file, spare) = (world.at("rw/racing"), world.at("rw/spare"));
    fs::write(&file, "inside").unwrap();
    symlink("../canary/secret", &spare).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &file, rustix::fs::CWD, &spare, flags).unwrap();
            }
        });
        let mut opened = 0;
        for _ in 0..3000 {
            if let Ok((node, handle)) = world.client.create(RW, "racing", 2, 0o644) {
                opened += 1;
                assert_eq!(world.client.read(node, handle, 0, 6).unwrap(), b"inside");
                world.client.release(node, handle).unwrap();
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(opened > 0);
    });
    assert_eq!(world.untouchable(), before);
}

#[test]
fn handles_are_bounded() {
    let mut world = World::new();
    let mut opened = 0u32;
    let errno = loop {
        match world.client.open(FILE, 0) {
            Ok(_) => opened += 1,
            Err(errno) => break errno,
        }
        assert!(opened <= 16 << 10);
    };
    assert_eq!(errno, 23);
    assert_eq!(world.violations.count(Violation::Flood), 1);
}

#[test]
fn garbage_ends_the_stream_with_an_error_and_without_a_panic() {
    for len in [0u32, 1, 39, (1 << 20) + 4097, u32::MAX] {
        let mut world = World::new();
        let mut message = world.client.message(GETATTR, ROOT, &[0; 16]);
        message[..4].copy_from_slice(&len.to_ne_bytes());
        world.client.stream.write_all(&message).unwrap();
        let violations = world.violations.clone();
        assert!(matches!(world.end(), Err(StreamError::Length(found)) if found == len));
        assert_eq!(violations.count(Violation::Message), 1);
    }
    for cut in [1, 39, 40, 55] {
        let mut world = World::new();
        let message = world.client.message(GETATTR, ROOT, &[0; 16]);
        world.client.stream.write_all(&message[..cut]).unwrap();
        world.client.stream.shutdown(Shutdown::Write).unwrap();
        assert!(matches!(world.end(), Err(StreamError::Truncated)), "{cut}");
    }
}

#[test]
fn every_operation_survives_every_length_and_any_bytes() {
    let mut world = World::new();
    let before = world.untouchable();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    // FORGET, INTERRUPT and BATCH_FORGET have no answer; SYNCFS writes the whole disk.
    for opcode in (0..60).filter(|opcode| ![2, 36, 42, 50].contains(opcode)) {
        for len in (0..110).step_by(3) {
            for node in [0, ROOT, RW, RO, FILE, MINE, random()] {
                let body: Vec<u8> = (0..len)
                    .map(|_| {
                        let bits = random();
                        let byte = u8::try_from(bits >> 8 & 0xff).unwrap();
                        if bits & 3 == 0 { byte } else { 0 }
                    })
                    .collect();
                drop(world.client.call(opcode, node, Fields(body)));
                if opcode == INIT || opcode == DESTROY {
                    world.client.init(7, 38).unwrap();
                }
            }
        }
    }
    assert_eq!(world.untouchable(), before);
    world.end().unwrap();
}
