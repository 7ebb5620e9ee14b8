//! Headers of a tar stream, as they are written: ustar, with PAX in front where that does not hold it.

use std::io::{self, Write};

use crate::pax;
use crate::stream::BLOCK;

/// What stands in the header of one entry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) link: &'a [u8],
    /// The type as a byte: `0` file, `1` hard link, `2` symlink, `3` and `4` devices, `5` folder, `6` FIFO.
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Content that follows, the map of a sparse file included.
    pub(crate) size: u64,
    pub(crate) mtime: (i64, u32),
    pub(crate) device: (u32, u32),
    /// The size of a sparse file with its holes.
    pub(crate) sparse_size: Option<u64>,
    pub(crate) xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// The largest size, id and time that octal digits hold.
const MAX_SIZE: u64 = 0o77_777_777_777;
const MAX_ID: u32 = 0o7_777_777;

impl Head<'_> {
    /// Writes it.
    pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut records = Vec::new();
        if self.path.len() > 100 || !self.path.is_ascii() {
            pax::append(&mut records, b"path", self.path);
        }
        if self.link.len() > 100 || !self.link.is_ascii() {
            pax::append(&mut records, b"linkpath", self.link);
        }
        if self.size > MAX_SIZE {
            pax::append(&mut records, b"size", self.size.to_string().as_bytes());
        }
        for (key, id) in [(&b"uid"[..], self.uid), (b"gid", self.gid)] {
            if id > MAX_ID {
                pax::append(&mut records, key, id.to_string().as_bytes());
            }
        }
        let (seconds, nanos) = self.mtime;
        let whole = u64::try_from(seconds).ok().filter(|seconds| *seconds <= MAX_SIZE);
        if whole.is_none() || nanos != 0 {
            pax::append_time(&mut records, b"mtime", seconds, nanos);
        }
        if let Some(size) = self.sparse_size {
            pax::append(&mut records, b"GNU.sparse.major", b"1");
            pax::append(&mut records, b"GNU.sparse.minor", b"0");
            pax::append(&mut records, b"GNU.sparse.name", self.path);
            pax::append(&mut records, b"GNU.sparse.realsize", size.to_string().as_bytes());
        }
        for (name, value) in self.xattrs {
            pax::append(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        if !records.is_empty() {
            let head = Head {
                path: b"./PaxHeaders/entry",
                kind: b'x',
                mode: 0o644,
                size: records.len() as u64,
                ..Head::default()
            };
            out.write_all(&head.block(0))?;
            out.write_all(&records)?;
            pad(out, records.len() as u64)?;
        }
        out.write_all(&self.block(whole.unwrap_or_default()))
    }

    fn block(&self, seconds: u64) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let cut = |text: &[u8], most: usize| text.get(..most).unwrap_or(text).to_vec();
        let (path, link) = (cut(self.path, 100), cut(self.link, 100));
        block[..path.len()].copy_from_slice(&path);
        block[157..157 + link.len()].copy_from_slice(&link);
        octal(&mut block[100..108], u64::from(self.mode));
        octal(&mut block[108..116], u64::from(self.uid.min(MAX_ID)));
        octal(&mut block[116..124], u64::from(self.gid.min(MAX_ID)));
        octal(&mut block[124..136], self.size.min(MAX_SIZE));
        octal(&mut block[136..148], seconds);
        block[156] = self.kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        octal(&mut block[329..337], u64::from(self.device.0));
        octal(&mut block[337..345], u64::from(self.device.1));
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        // Six digits, a zero byte, a space.
        octal(&mut block[148..155], sum);
        block
    }
}

/// Octal digits that fill a field but for its last byte, which is zero. What does not fit is cut, and said by PAX.
fn octal(field: &mut [u8], mut value: u64) {
    let digits = field.len() - 1;
    for digit in field[..digits].iter_mut().rev() {
        *digit = b'0' + u8::try_from(value & 7).unwrap_or_default();
        value >>= 3;
    }
    field[digits] = 0;
}

/// Fills content of this size up to whole blocks.
pub(crate) fn pad(out: &mut dyn Write, size: u64) -> io::Result<()> {
    let short = size.next_multiple_of(BLOCK as u64) - size;
    out.write_all(&[0; BLOCK][..usize::try_from(short).unwrap_or_default()])
}
