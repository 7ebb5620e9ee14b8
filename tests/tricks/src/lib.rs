//! Hostile tar streams: what a box might send instead of the files that were asked for.

pub mod stream;

use stream::{archive, entry, finish, pax, sized};

/// The type of an entry.
pub const FILE: u8 = b'0';
const HARD: u8 = b'1';
/// The type of an entry.
pub const LINK: u8 = b'2';
/// The type of an entry.
pub const FOLDER: u8 = b'5';

/// A file.
#[must_use]
pub fn file(path: &[u8]) -> Vec<u8> {
    entry(path, FILE, b"", b"owned")
}

/// A folder.
#[must_use]
pub fn folder(path: &[u8]) -> Vec<u8> {
    entry(path, FOLDER, b"", b"")
}

/// Header fields that lie.
fn broken(change: impl FnOnce(&mut [u8; 512])) -> Vec<u8> {
    let good = file(b"d/f");
    let mut header: [u8; 512] = good[..512].try_into().unwrap();
    change(&mut header);
    finish(header, b"owned")
}

/// An old GNU sparse entry with these extents.
fn sparse(extents: &[(u64, u64)], size: u64, more: bool, content: &[u8]) -> Vec<u8> {
    let good = sized(b"d/f", b'S', b"", b"", content.len() as u64);
    let mut header: [u8; 512] = good[..512].try_into().unwrap();
    header[257..265].copy_from_slice(b"ustar  \0");
    for (at, (offset, length)) in extents.iter().enumerate() {
        let start = 386 + 24 * at;
        header[start..start + 12].copy_from_slice(format!("{offset:011o}\0").as_bytes());
        header[start + 12..start + 24].copy_from_slice(format!("{length:011o}\0").as_bytes());
    }
    header[482] = u8::from(more);
    header[483..495].copy_from_slice(format!("{size:011o}\0").as_bytes());
    finish(header, content)
}

/// See [`tricks`].
type Raw = (&'static str, Vec<Vec<u8>>, Option<&'static str>);

/// One trick.
#[derive(Clone, Debug)]
pub struct Trick {
    /// What it is.
    pub what: &'static str,
    /// The stream.
    pub stream: Vec<u8>,
    /// What its root is renamed to; `None`: it is what is in a folder, and unpacked under its own names.
    pub rename: Option<&'static str>,
}

/// All tricks, against a folder outside of the destination and the file `canary` in it and beside it.
#[must_use]
pub fn tricks(outside: &str) -> Vec<Trick> {
    let trick = |(what, entries, rename): Raw| Trick { what, stream: archive(&entries), rename };
    raw(outside).into_iter().map(trick).collect()
}

fn raw(outside: &str) -> Vec<Raw> {
    let canary = format!("{outside}/canary");
    let (outside, canary) = (outside.as_bytes(), canary.as_bytes());
    let long = [b'a'; 300];
    vec![
        ("a name with ..", vec![file(b"../canary")], None),
        ("a name with .. inside", vec![folder(b"d"), file(b"d/../../canary")], None),
        ("an absolute name", vec![file(canary)], None),
        ("an absolute name by PAX", vec![pax("path", canary), file(b"d")], None),
        ("a name with .. by PAX", vec![pax("path", b"../canary"), file(b"d")], None),
        ("a name with .. by GNU's long name", vec![entry(b"l", b'L', b"", b"../canary\0"), file(b"d")], None),
        ("an empty name", vec![file(b"")], None),
        ("a name with a zero byte by PAX", vec![pax("path", b"a\0b"), file(b"d")], None),
        ("a name with an empty part", vec![file(b"d//f")], None),
        ("a component that is too long", vec![pax("path", &long), file(b"d")], None),
        ("a path that is too long", vec![pax("path", &b"a/".repeat(2500)), file(b"d")], None),
        ("a file below a link of the stream", vec![entry(b"d", LINK, outside, b""), file(b"d/canary")], None),
        (
            "a folder in the place of a link of the stream",
            vec![entry(b"d", LINK, outside, b""), folder(b"d"), file(b"d/canary")],
            None,
        ),
        (
            "a file below a link that leads upwards",
            vec![entry(b"d", LINK, b"..", b""), file(b"d/canary")],
            None,
        ),
        (
            "a link as root, and a file below it",
            vec![entry(b"d", LINK, outside, b""), file(b"d/canary")],
            Some("new"),
        ),
        ("a second root", vec![folder(b"d"), file(b"e/canary")], Some("new")),
        ("a root that is ..", vec![folder(b".."), file(b"../canary")], Some("new")),
        ("a hard link to the outside", vec![folder(b"d"), entry(b"d/f", HARD, b"../canary", b"")], None),
        ("a hard link to an absolute path", vec![folder(b"d"), entry(b"d/f", HARD, canary, b"")], None),
        (
            "a hard link by PAX to an absolute path",
            vec![pax("linkpath", canary), entry(b"d", HARD, b"x", b"")],
            None,
        ),
        ("a hard link to a link", vec![entry(b"l", LINK, canary, b""), entry(b"f", HARD, b"l", b"")], None),
        (
            "a hard link through a link",
            vec![entry(b"l", LINK, outside, b""), entry(b"f", HARD, b"l/canary", b"")],
            None,
        ),
        ("a hard link to a folder", vec![folder(b"d"), entry(b"f", HARD, b"d", b"")], None),
        ("a hard link to nothing", vec![entry(b"f", HARD, b"none", b"")], None),
        ("a character device", vec![entry(b"dev", b'3', b"", b"")], None),
        ("a block device", vec![entry(b"dev", b'4', b"", b"")], None),
        ("an unknown type", vec![entry(b"f", b'Q', b"", b"")], None),
        ("a folder with a size", vec![entry(b"d", FOLDER, b"", b"owned")], None),
        ("a folder over a file", vec![file(b"f"), folder(b"f")], None),
        ("a file over a folder", vec![folder(b"d"), file(b"d")], None),
        ("a file below a file", vec![file(b"f"), file(b"f/x")], None),
        ("a negative size", vec![broken(|header| header[124..136].fill(0xff))], None),
        (
            "a size beyond all numbers",
            vec![broken(|header| header[124] = 0x80), broken(|header| header[124..136].fill(0x81))],
            None,
        ),
        ("a huge size by PAX", vec![pax("size", b"18446744073709551615"), file(b"f")], None),
        ("a size that is no number", vec![pax("size", b"1e9"), file(b"f")], None),
        (
            "an owner that is no number",
            vec![broken(|header| header[108..116].copy_from_slice(b"zzzzzzz\0"))],
            None,
        ),
        ("an owner that does not fit", vec![pax("uid", b"4294967296"), file(b"f")], None),
        ("a PAX header that claims to be huge", vec![sized(b"x", b'x', b"", b"", 1 << 32)], None),
        ("a PAX record that lies", vec![entry(b"x", b'x', b"", b"99 path=f\n"), file(b"f")], None),
        (
            "a global PAX header with a path",
            vec![entry(b"x", b'g', b"", b"13 path=../x\n"), file(b"f")],
            None,
        ),
        ("a long name that is too long", vec![sized(b"l", b'L', b"", b"", 1 << 20)], None),
        (
            "a wrong checksum",
            vec![{
                let mut bad = file(b"f");
                bad[0] ^= 1;
                bad
            }],
            None,
        ),
        ("noise", vec![vec![0x5a; 2048]], None),
        ("extents that overlap", vec![sparse(&[(0, 4), (2, 4)], 100, false, b"12345678")], None),
        ("extents that go back", vec![sparse(&[(50, 4), (0, 4)], 100, false, b"12345678")], None),
        ("an extent beyond the file", vec![sparse(&[(98, 4)], 100, false, b"1234")], None),
        ("a map that does not fit its content", vec![sparse(&[(0, 4)], 100, false, b"12345678")], None),
        ("a map without an end", vec![sparse(&[(0, 4)], 100, true, b"1234"), vec![0; 512]], None),
        (
            "a map as text that is cut",
            vec![
                [
                    pax("GNU.sparse.major", b"1"),
                    pax("GNU.sparse.realsize", b"9"),
                    entry(b"f", FILE, b"", b"9999\n"),
                ]
                .concat(),
            ],
            None,
        ),
        (
            "a map with too many extents",
            vec![
                [
                    pax("GNU.sparse.major", b"1"),
                    pax("GNU.sparse.realsize", b"9"),
                    entry(b"f", FILE, b"", b"99999999\n"),
                ]
                .concat(),
            ],
            None,
        ),
        ("an attribute with no name", vec![pax("SCHILY.xattr.", b"x"), file(b"f")], None),
    ]
}
