//! Tar streams as tests want them, hostile ones included: nothing is checked here.

use std::fmt::Write as _;

const BLOCK: usize = 512;

/// What a header says. Everything has a default.
#[derive(Clone)]
pub struct Header {
    pub path: Vec<u8>,
    pub kind: u8,
    pub target: Vec<u8>,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub size: Option<u64>,
    pub mtime: i64,
    pub device: (u64, u64),
}

impl Header {
    pub fn new(kind: u8, path: impl AsRef<[u8]>) -> Self {
        Self {
            path: path.as_ref().to_vec(),
            kind,
            target: Vec::new(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: None,
            mtime: 1_600_000_000,
            device: (0, 0),
        }
    }

    /// The block. Names are cut at 100 bytes.
    pub fn encode(&self, size: u64) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.path[..self.path.len().min(100)]);
        put(100, octal(u64::from(self.mode), 7).as_bytes());
        put(108, &number(self.uid, 7));
        put(116, &number(self.gid, 7));
        put(124, &number(self.size.unwrap_or(size), 11));
        put(136, &number(self.mtime.cast_unsigned(), 11));
        put(156, &[self.kind]);
        put(157, &self.target[..self.target.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, &number(self.device.0, 7));
        put(337, &number(self.device.1, 7));
        seal(&mut block);
        block
    }
}

/// Sets the checksum.
pub fn seal(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..155].copy_from_slice(octal(sum, 6).as_bytes());
    block[154] = 0;
}

fn octal(value: u64, digits: usize) -> String {
    format!("{value:0digits$o}\0")
}

/// Octal, or base 256 when it does not fit.
fn number(value: u64, digits: usize) -> Vec<u8> {
    let text = octal(value, digits);
    if text.len() == digits + 1 {
        return text.into_bytes();
    }
    let mut bytes = vec![if value >> 63 == 1 { 0xff } else { 0 }; digits + 1];
    let length = bytes.len().min(8);
    let from = bytes.len() - length;
    bytes[from..].copy_from_slice(&value.to_be_bytes()[8 - length..]);
    bytes[0] = if value >> 63 == 1 { 0xff } else { 0x80 };
    bytes
}

/// One layer in the making.
#[derive(Default, Clone)]
pub struct Layer {
    bytes: Vec<u8>,
}

impl Layer {
    pub fn new() -> Self {
        Self::default()
    }

    /// An entry as it is given; names that are too long are cut.
    pub fn raw(mut self, header: &Header, contents: &[u8]) -> Self {
        self.bytes.extend_from_slice(&header.encode(contents.len() as u64));
        self.bytes.extend_from_slice(contents);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// A PAX header of these records.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let contents: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.raw(&Header::new(b'x', "pax"), &contents)
    }

    /// An entry; names that are too long go into a PAX header.
    pub fn entry(self, header: &Header, contents: &[u8]) -> Self {
        let mut records: Vec<(&str, &[u8])> = Vec::new();
        if header.path.len() > 100 {
            records.push(("path", &header.path));
        }
        if header.target.len() > 100 {
            records.push(("linkpath", &header.target));
        }
        let layer = if records.is_empty() { self } else { self.pax(&records) };
        layer.raw(header, contents)
    }

    pub fn dir(self, path: &str) -> Self {
        self.entry(&Header { mode: 0o755, ..Header::new(b'5', path) }, b"")
    }

    pub fn file(self, path: &str, contents: impl AsRef<[u8]>) -> Self {
        self.entry(&Header::new(b'0', path), contents.as_ref())
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(&Header { target: target.into(), mode: 0o777, ..Header::new(b'2', path) }, b"")
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(&Header { target: target.into(), ..Header::new(b'1', path) }, b"")
    }

    pub fn bytes(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }

    /// Without the end mark.
    pub fn unfinished(self) -> Vec<u8> {
        self.bytes
    }
}

/// "<length> <key>=<value>\n", where the length counts itself.
pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    let mut text = String::new();
    write!(text, "{length} {key}=").unwrap();
    [text.as_bytes(), value, b"\n"].concat()
}
