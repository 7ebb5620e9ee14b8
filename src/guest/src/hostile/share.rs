//! Works on the host's share: where it is a stream, by speaking FUSE itself, without the kernel that keeps to the rules; where
//! it is a device, through the kernel, which owns it.
//!
//! The share has a volume that may be written, node 2, and one that may not, node 3; each has a file `file`.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// What came of it, for who asks for `/tricks/share`: those that got through, and how many were refused.
pub static OUTCOME: Mutex<Option<String>> = Mutex::new(None);

/// What the device calls itself.
const TAG: &str = "volumes";

const ROOT: u64 = 1;
const WRITABLE: u64 = 2;
const READ_ONLY: u64 = 3;

// From linux/fuse.h.
const LOOKUP: u32 = 1;
const SETATTR: u32 = 4;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const RMDIR: u32 = 11;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const SETXATTR: u32 = 21;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const CREATE: u32 = 35;

/// The fields of a message.
fn numbers(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn name(name: &[u8]) -> Vec<u8> {
    [name, b"\0"].concat()
}

/// Fields, then names that end in a zero byte.
fn named(values: &[u32], names: &[&[u8]]) -> Vec<u8> {
    let names = names.iter().flat_map(|one| name(one));
    numbers(values).into_iter().chain(names).collect()
}

fn call(mut host: &File, opcode: u32, node: u64, body: &[u8]) -> io::Result<i32> {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let unique = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let length = u32::try_from(40 + body.len()).map_err(io::Error::other)?;
    let mut message = numbers(&[length, opcode]);
    message.extend(unique.to_ne_bytes());
    message.extend(node.to_ne_bytes());
    message.extend(numbers(&[0, 0, 1, 0]));
    message.extend(body);
    host.write_all(&message)?;
    let mut head = [0; 16];
    host.read_exact(&mut head)?;
    let [a, b, c, d, e, f, g, h, ..] = head;
    let rest = u32::from_ne_bytes([a, b, c, d]).saturating_sub(16);
    io::copy(&mut Read::take(host, rest.into()), &mut io::sink())?;
    Ok(i32::from_ne_bytes([e, f, g, h]))
}

/// Takes the place of the kernel's client, if the agent is hostile: plays, and leaves empty folders where the volumes would
/// be.
///
/// # Errors
/// As [`play`], or when the folders cannot be made.
pub fn instead(host: &Arc<File>, folder: &Path) -> io::Result<bool> {
    if !super::is_on() {
        return Ok(false);
    }
    play(host)?;
    for name in ["0", "1"] {
        fs::create_dir_all(folder.join(name))?;
    }
    // The connection stays open as long as the machine.
    std::mem::forget(Arc::clone(host));
    Ok(true)
}

/// Plays all tricks, and keeps what came of it.
///
/// # Errors
/// When the host hangs up, which it must not at a single wrong request.
pub fn play(host: &File) -> io::Result<()> {
    let mut init = numbers(&[7, 38, 1 << 20, 0]);
    init.resize(64, 0);
    call(host, INIT, 0, &init)?;
    for node in [WRITABLE, READ_ONLY] {
        // As after a look-up, so that the numbers are known.
        call(host, LOOKUP, node, &name(b"file"))?;
    }
    let upwards: &[&[u8]] =
        &[b"..", b".", b"", b"/etc/passwd", b"../canary", b"sub/../../canary", b"file/", b"a\0b"];
    let mut tricks: Vec<(String, u32, u64, Vec<u8>)> = Vec::new();
    let mut trick = |what: &str, opcode, node, body| tricks.push((what.to_owned(), opcode, node, body));
    for path in upwards {
        let shown = path.escape_ascii();
        trick(&format!("look up {shown}"), LOOKUP, WRITABLE, name(path));
        trick(&format!("make the folder {shown}"), MKDIR, WRITABLE, named(&[0o755, 0], &[path]));
        trick(&format!("unlink {shown}"), UNLINK, WRITABLE, name(path));
        trick(&format!("rename to {shown}"), RENAME, WRITABLE, named(&[2, 0], &[b"file", path]));
        trick(&format!("link as {shown}"), SYMLINK, WRITABLE, named(&[], &[path, b"/etc/passwd"]));
        trick(&format!("create {shown}"), CREATE, WRITABLE, named(&[2, 0o644, 0, 0], &[path]));
    }
    trick("look up .. of the root", LOOKUP, ROOT, name(b".."));
    trick("look up without an end", LOOKUP, WRITABLE, b"file".to_vec());
    trick("a folder in the root", MKDIR, ROOT, named(&[0o755, 0], &[b"made"]));
    trick("remove a volume", RMDIR, ROOT, name(b"0"));
    trick("a device", MKNOD, WRITABLE, named(&[0o60_644, 0x800, 0, 0], &[b"disk"]));
    trick("create where nothing may be written", CREATE, READ_ONLY, named(&[2, 0o644, 0, 0], &[b"made"]));
    trick("unlink where nothing may be written", UNLINK, READ_ONLY, name(b"file"));
    trick("rename out of it", RENAME, READ_ONLY, named(&[2, 0], &[b"file", b"stolen"]));
    trick("link out of it", LINK, WRITABLE, named(&[3, 0], &[b"stolen"]));
    trick("change its mode", SETATTR, READ_ONLY, {
        let mut body = numbers(&[1, 0]);
        body.resize(88, 0xff);
        body
    });
    trick("an attribute of it", SETXATTR, READ_ONLY, named(&[1, 0], &[b"user.x", b""]));
    trick("write without opening", WRITE, READ_ONLY, {
        let mut body = numbers(&[0, 0, 0, 0, 4, 0, 0, 0, 0, 0]);
        body.extend(b"evil");
        body
    });
    for node in [0, 99, 1 << 40, u64::MAX] {
        trick(&format!("open node {node}"), OPEN, node, numbers(&[0, 0]));
        trick(&format!("list node {node}"), OPENDIR, node, numbers(&[0, 0]));
        trick(&format!("read handle {node}"), READ, node, numbers(&[7, 7, 0, 0, 4096, 0, 0, 0, 0, 0]));
        trick(&format!("read folder {node}"), READDIR, node, numbers(&[9, 9, 0, 0, 4096, 0, 0, 0, 0, 0]));
    }
    trick("no operation", 4_000_000, WRITABLE, Vec::new());
    let mut played = Vec::new();
    for (what, opcode, node, body) in tricks {
        played.push((what, call(host, opcode, node, &body)? == 0));
    }
    keep(&played)
}

/// What a root without shame tries on a share that its kernel has mounted, if there is one.
///
/// # Errors
/// When what came of it cannot be kept.
pub fn through_kernel(folder: &Path) -> io::Result<()> {
    let played = OUTCOME.lock().map_err(|_| io::ErrorKind::Other)?.is_some();
    if played || !super::is_on() {
        return Ok(());
    }
    let (writable, kept) = (folder.join("0"), folder.join("1"));
    let file = kept.join("file");
    let write = |path: &Path| fs::write(path, "evil").is_ok();
    let mut played = Vec::new();
    let mut trick = |what: &str, through: bool| played.push((what.to_owned(), through));
    trick("write", write(&file));
    trick("create", write(&kept.join("made")));
    trick("truncate", File::options().write(true).truncate(true).open(&file).is_ok());
    trick("change the mode", fs::set_permissions(&file, fs::Permissions::from_mode(0o777)).is_ok());
    trick("unlink", fs::remove_file(&file).is_ok());
    trick("rename out", fs::rename(&file, writable.join("stolen")).is_ok());
    trick("link out", fs::hard_link(&file, writable.join("stolen")).is_ok());
    trick("a folder in the root", fs::create_dir(folder.join("made")).is_ok());
    trick("remove a volume", fs::remove_dir(&writable).is_ok());
    trick("rename a volume", fs::rename(&writable, folder.join("other")).is_ok());
    let (kind, mode) = (SFlag::S_IFBLK, Mode::from_bits_truncate(0o666));
    trick("a device", mknod(&writable.join("disk"), kind, mode, makedev(8, 0)).is_ok());
    let none = None::<&str>;
    if let Err(errno) = mount(none, folder, none, MsFlags::MS_REMOUNT, none) {
        crate::console::line(format_args!("no remount: {errno}"));
    }
    trick("write after a remount", write(&file));
    let again = Path::new("/run/again");
    fs::create_dir_all(again)?;
    let mounted = mount(Some(TAG), again, Some("virtiofs"), MsFlags::empty(), none).is_ok();
    trick("write through a second mount", mounted && write(&again.join("1/file")));
    keep(&played)
}

fn keep(played: &[(String, bool)]) -> io::Result<()> {
    let through: Vec<&str> =
        played.iter().filter(|(_, through)| *through).map(|(what, _)| what.as_str()).collect();
    let refused = played.len() - through.len();
    let outcome = format!("{refused} refused; through: {through:?}");
    *OUTCOME.lock().map_err(|_| io::ErrorKind::Other)? = Some(outcome);
    Ok(())
}
