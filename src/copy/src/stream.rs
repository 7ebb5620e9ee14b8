//! A tar stream, read entry by entry.
//!
//! ```text
//!   header ─▶ (PAX or GNU: what the next header cannot say) ─▶ header ─▶ content, padded to blocks ─▶ ... ─▶ zero block
//! ```
//!
//! Read are ustar, PAX, and GNU's long names and sparse files in all four of its formats. Whatever has a length is bounded
//! before it is stored, and numbers are exact or an error.

use std::io::{self, Read};

use crate::number;
use crate::pax;
use crate::sparse::{MapText, SparseMap};
use crate::{MAX_PATH, MAX_XATTR};

/// Everything is in blocks of this size.
pub(crate) const BLOCK: usize = 512;
/// The most extended attributes of one entry.
const MAX_XATTRS: usize = 256;
/// The longest name that GNU's format may give, with its zero byte.
const MAX_LONG: u64 = MAX_PATH as u64 + 1;

/// Why a stream is not understood.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// Reading failed.
    #[error("the stream cannot be read")]
    Read(#[source] io::Error),
    /// It ends before its end.
    #[error("the stream ends in the middle")]
    Truncated,
    /// Something in it cannot be.
    #[error("{0}")]
    Malformed(&'static str),
    /// Something in it is larger than it may be.
    #[error("{what} is larger than {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// What is allowed.
        limit: usize,
    },
    /// An entry of a kind that is not known.
    #[error("the stream has an entry of the unknown type '{}'", .0.escape_ascii())]
    Type(u8),
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    File,
    HardLink,
    Symlink,
    Folder,
    Fifo,
    Device,
}

/// What the headers say of an entry. Its content comes from [`Entries::read`].
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Type,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    /// Where the content goes, if not into one piece from the start.
    pub(crate) sparse: Option<SparseMap>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The entries of a stream.
pub(crate) struct Entries<'a> {
    input: &'a mut dyn Read,
    /// Content of the current entry that was not read yet, and the padding behind it.
    left: u64,
    padding: u64,
}

/// What a PAX header, or one of GNU's, says of the next entry.
#[derive(Debug, Default)]
struct Extra {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The real name, the real size and the version of a sparse file.
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_major: Option<u64>,
    /// The extents of versions 0.0 and 0.1, offset and length by turns.
    sparse_numbers: Vec<u64>,
}

impl<'a> Entries<'a> {
    pub(crate) fn new(input: &'a mut dyn Read) -> Self {
        Self { input, left: 0, padding: 0 }
    }

    /// Content that is left of the current entry.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// Reads content of the current entry; 0 at its end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        loop {
            match self.input.read(&mut buffer[..most]) {
                Ok(0) => return Err(StreamError::Truncated),
                Ok(count) => {
                    self.left -= count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// The next entry, once what is left of the one before has been passed over; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, StreamError> {
        let mut extra = Extra::default();
        loop {
            self.pass()?;
            let mut header = [0; BLOCK];
            self.input.read_exact(&mut header).map_err(failed)?;
            if header == [0; BLOCK] {
                return Ok(None);
            }
            check(&header)?;
            let size = number::decode_unsigned(&header[124..136]).ok_or(BAD_NUMBER)?;
            match header[156] {
                b'x' => {
                    let text = self.whole(size, pax::LIMIT as u64, "a PAX header")?;
                    extra.take(&text)?;
                }
                b'g' => {
                    // What holds for all entries is a comment at most: names and sizes there would be a trick.
                    let text = self.whole(size, pax::LIMIT as u64, "a PAX header")?;
                    for record in pax::records(&text) {
                        if !matches!(record?.0, b"comment" | b"hdrcharset" | b"mtime" | b"atime" | b"ctime") {
                            return Err(StreamError::Malformed(
                                "a global PAX header says more than a comment",
                            ));
                        }
                    }
                }
                b'L' => extra.path = Some(self.name(size)?),
                b'K' => extra.link = Some(self.name(size)?),
                kind => return self.entry(&header, kind, size, extra).map(Some),
            }
        }
    }

    /// Passes over what is left of the current entry.
    fn pass(&mut self) -> Result<(), StreamError> {
        let mut rest = self.left + self.padding;
        (self.left, self.padding) = (0, 0);
        let mut buffer = [0; 16 << 10];
        while rest > 0 {
            let most = usize::try_from(rest).unwrap_or(usize::MAX).min(buffer.len());
            self.input.read_exact(&mut buffer[..most]).map_err(failed)?;
            rest -= most as u64;
        }
        Ok(())
    }

    fn begin(&mut self, size: u64) -> Result<(), StreamError> {
        // Nothing of this size exists; and with the padding it would not be a number any more.
        if size > i64::MAX.unsigned_abs() {
            return Err(StreamError::Malformed("an entry has an impossible size"));
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    /// The whole content of an entry that describes another one.
    fn whole(&mut self, size: u64, limit: u64, what: &'static str) -> Result<Vec<u8>, StreamError> {
        if size > limit {
            return Err(StreamError::TooLarge { what, limit: usize::try_from(limit).unwrap_or(usize::MAX) });
        }
        self.begin(size)?;
        let mut content = vec![0; usize::try_from(size).unwrap_or_default()];
        self.input.read_exact(&mut content).map_err(failed)?;
        self.left = 0;
        Ok(content)
    }

    fn name(&mut self, size: u64) -> Result<Vec<u8>, StreamError> {
        let mut name = self.whole(size, MAX_LONG, "a long name")?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn entry(
        &mut self,
        header: &[u8; BLOCK],
        kind: u8,
        size: u64,
        extra: Extra,
    ) -> Result<Entry, StreamError> {
        let short = |value: Option<u64>| value.and_then(|value| u32::try_from(value).ok()).ok_or(BAD_NUMBER);
        let mut path = match (extra.sparse_name, extra.path) {
            (Some(name), _) | (None, Some(name)) => name,
            (None, None) => ustar_path(header),
        };
        let kind = match kind {
            // Before there was a type for folders, their names said it.
            0 | b'0' | b'7' if path.ends_with(b"/") => Type::Folder,
            0 | b'0' | b'7' | b'S' => Type::File,
            b'1' => Type::HardLink,
            b'2' => Type::Symlink,
            b'3' | b'4' => Type::Device,
            b'5' => Type::Folder,
            b'6' => Type::Fifo,
            other => return Err(StreamError::Type(other)),
        };
        path.truncate(MAX_PATH + 1);
        // Only files have content, whatever the size says.
        let stored = if kind == Type::File { extra.size.unwrap_or(size) } else { 0 };
        self.begin(stored)?;
        if kind != Type::File && extra.size.unwrap_or(size) > 0 && kind != Type::HardLink {
            return Err(StreamError::Malformed("an entry without content has a size"));
        }
        let sparse = match (header[156], extra.sparse_size, extra.sparse_major) {
            (b'S', ..) => Some(self.old_map(header)?),
            (_, Some(size), Some(1)) => Some(self.map_text(size)?),
            (_, Some(size), _) => Some(map_of(size, &extra.sparse_numbers)?),
            (_, None, None) => None,
            (_, None, Some(_)) => return Err(StreamError::Malformed("a sparse file has no size")),
        };
        if sparse.as_ref().is_some_and(|map| kind != Type::File || map.stored() != self.left) {
            return Err(StreamError::Malformed("the map of a sparse file does not fit its content"));
        }
        let signed = number::decode(&header[136..148]).ok_or(BAD_NUMBER)?;
        Ok(Entry {
            path,
            link: extra.link.unwrap_or_else(|| text(&header[157..257]).to_vec()),
            kind,
            mode: short(number::decode_unsigned(&header[100..108]))? & 0o7777,
            uid: short(extra.uid.or_else(|| number::decode_unsigned(&header[108..116])))?,
            gid: short(extra.gid.or_else(|| number::decode_unsigned(&header[116..124])))?,
            mtime: extra.mtime.unwrap_or((signed, 0)),
            sparse,
            xattrs: extra.xattrs,
        })
    }

    /// GNU's first format: four extents in the header, more in blocks behind it.
    fn old_map(&mut self, header: &[u8; BLOCK]) -> Result<SparseMap, StreamError> {
        let size = number::decode_unsigned(&header[483..495]).ok_or(BAD_NUMBER)?;
        let mut map = SparseMap::new(size);
        let mut fields = header[386..482].to_vec();
        let mut more = header[482] != 0;
        loop {
            for extent in fields.chunks_exact(24) {
                if extent[0] == 0 {
                    break;
                }
                let offset = number::decode_unsigned(&extent[..12]).ok_or(BAD_NUMBER)?;
                let length = number::decode_unsigned(&extent[12..]).ok_or(BAD_NUMBER)?;
                map.push(offset, length)?;
            }
            if !more {
                return Ok(map);
            }
            // A block without an extent would make this endless.
            if map.is_full() {
                return Err(StreamError::Malformed("the map of a sparse file has no end"));
            }
            let mut block = [0; BLOCK];
            self.input.read_exact(&mut block).map_err(failed)?;
            if block[0] == 0 {
                return Err(StreamError::Malformed("the map of a sparse file has an empty block"));
            }
            fields = block[..504].to_vec();
            more = block[504] != 0;
        }
    }

    /// Version 1.0: the map is text in front of the content.
    fn map_text(&mut self, size: u64) -> Result<SparseMap, StreamError> {
        let mut map = MapText::new(size);
        let mut block = [0; BLOCK];
        loop {
            let rest = self.left.checked_sub(BLOCK as u64);
            self.left = rest.ok_or(StreamError::Malformed("the map of a sparse file is cut"))?;
            self.input.read_exact(&mut block).map_err(failed)?;
            if map.take(&block)? {
                return Ok(map.finish());
            }
        }
    }
}

const BAD_NUMBER: StreamError = StreamError::Malformed("a header has a number that cannot be");

fn failed(error: io::Error) -> StreamError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        StreamError::Truncated
    } else {
        StreamError::Read(error)
    }
}

/// The sum over a header counts its own field as spaces.
fn check(header: &[u8; BLOCK]) -> Result<(), StreamError> {
    let sum: i64 = header
        .iter()
        .enumerate()
        .map(|(at, byte)| i64::from(if (148..156).contains(&at) { b' ' } else { *byte }))
        .sum();
    if number::decode(&header[148..156]) == Some(sum) {
        Ok(())
    } else {
        Err(StreamError::Malformed("a header has a wrong checksum: this is no tar stream, or a damaged one"))
    }
}

/// What stands in a field before its first zero byte.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn ustar_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = text(&header[..100]);
    // GNU's own magic has other fields where the prefix is.
    let prefix = if &header[257..263] == b"ustar\0" { text(&header[345..500]) } else { &[] };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

fn map_of(size: u64, numbers: &[u64]) -> Result<SparseMap, StreamError> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(StreamError::Malformed("the map of a sparse file is cut"));
    }
    let mut map = SparseMap::new(size);
    pairs.iter().try_for_each(|[offset, length]| map.push(*offset, *length))?;
    Ok(map)
}

impl Extra {
    fn take(&mut self, text: &[u8]) -> Result<(), StreamError> {
        for record in pax::records(text) {
            let (key, value) = record?;
            let number = || number::decimal(value).ok_or(BAD_NUMBER);
            match key {
                b"path" => self.path = Some(path(value)?),
                b"linkpath" => self.link = Some(path(value)?),
                b"size" => self.size = Some(number()?),
                b"uid" => self.uid = Some(number()?),
                b"gid" => self.gid = Some(number()?),
                b"mtime" => self.mtime = Some(pax::time(value).ok_or(BAD_NUMBER)?),
                b"GNU.sparse.name" => self.sparse_name = Some(path(value)?),
                b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse_size = Some(number()?),
                b"GNU.sparse.major" => self.sparse_major = Some(number()?),
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse_numbers.push(number()?),
                b"GNU.sparse.map" => {
                    let numbers =
                        value.split(|byte| *byte == b',').map(|part| number::decimal(part).ok_or(BAD_NUMBER));
                    self.sparse_numbers = numbers.collect::<Result<_, _>>()?;
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattr(name, value)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), StreamError> {
        if value.len() > MAX_XATTR || self.xattrs.len() >= MAX_XATTRS {
            return Err(StreamError::TooLarge { what: "an extended attribute", limit: MAX_XATTR });
        }
        if name.is_empty() || name.len() > 255 || name.contains(&0) {
            return Err(StreamError::Malformed("an extended attribute has an impossible name"));
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }
}

fn path(value: &[u8]) -> Result<Vec<u8>, StreamError> {
    if value.len() > MAX_PATH {
        return Err(StreamError::TooLarge { what: "a path", limit: MAX_PATH });
    }
    Ok(value.to_vec())
}
