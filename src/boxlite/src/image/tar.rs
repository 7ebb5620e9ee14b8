//! Reads tar streams: ustar, GNU long names, and PAX extended headers, as Go's `archive/tar` understands them, which is
//! what builds and unpacks nearly all images.
//!
//! ```text
//! 512 bytes   extended header 'x' ┐ contents: lines "<length> <key>=<value>\n"
//! 512 bytes   long name 'L'       ┤ contents: the name            any of these, bounded together
//! 512 bytes   long target 'K'     ┘ contents: the target
//! 512 bytes   header: name, mode, owner, size, time, kind, target …, all in octal text (or base 256)
//! size bytes  contents, padded to 512
//! …
//! 1024 zeros  end
//! ```
//!
//! Sizes and names are hostile: nothing is allocated by a size that a header claims, but what is limited here.

use super::error::TarError;

const BLOCK: usize = 512;
/// The most that extended headers and long names of one entry may have together.
pub(super) const EXTENDED_MAX: u64 = 1 << 20;

/// Where a tar stream comes from.
pub(super) trait Source {
    /// What can go wrong here.
    type Error: From<TarError>;

    /// The next bytes, at least one unless the stream has ended. They stay next until consumed.
    fn fill(&mut self) -> Result<&[u8], Self::Error>;

    /// Takes bytes that [`Source::fill`] gave.
    fn consume(&mut self, count: usize);

    /// Passes over bytes; false when there are not as many.
    fn skip(&mut self, mut count: u64) -> Result<bool, Self::Error> {
        while count > 0 {
            let have = self.fill()?.len();
            if have == 0 {
                return Ok(false);
            }
            let take = usize::try_from(count).unwrap_or(usize::MAX).min(have);
            self.consume(take);
            count -= take as u64;
        }
        Ok(true)
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Dir,
    Fifo,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    /// As it stands in the archive.
    pub(super) path: Vec<u8>,
    /// Of links.
    pub(super) target: Vec<u8>,
    /// Permission bits: at most 0o7777.
    pub(super) mode: u16,
    pub(super) uid: u64,
    pub(super) gid: u64,
    /// Bytes of contents that follow.
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) mtime_ns: u32,
    pub(super) major: u64,
    pub(super) minor: u64,
    /// Name and value.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads entries one after the other.
#[derive(Debug)]
pub(super) struct TarReader<S> {
    source: S,
    position: u64,
    /// Of the current entry's contents.
    left: u64,
    padding: u64,
    ended: bool,
}

/// What extended headers say about the entry that follows them.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    long_path: Option<Vec<u8>>,
    long_target: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: bool,
    /// Bytes read for all this.
    bytes: u64,
}

impl<S: Source> TarReader<S> {
    pub(super) fn new(source: S) -> Self {
        Self { source, position: 0, left: 0, padding: 0, ended: false }
    }

    /// What follows the end mark included.
    pub(super) fn into_source(self) -> S {
        self.source
    }

    /// Where in the stream the next byte stands; right after [`TarReader::next`], the first of the contents.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The next entry; what is left of the one before is passed over.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, S::Error> {
        if self.ended {
            return Ok(None);
        }
        self.finish_contents()?;
        let mut extended = Extended::default();
        loop {
            let at = self.position;
            let Some(block) = self.header()? else {
                self.ended = true;
                let dangling = extended.bytes > 0;
                return if dangling { Err(TarError::Dangling { at }.into()) } else { Ok(None) };
            };
            let header = Header { block: &block, at };
            header.verify()?;
            let kind = header.block[156];
            match kind {
                b'x' | b'g' | b'L' | b'K' => {
                    let bytes = self.extension(&header, &mut extended)?;
                    let done = match kind {
                        b'x' => extended.pax(&bytes),
                        // Defaults for all that follows, which no builder of images uses, and which Go's reader does
                        // not apply either; `git archive` writes one with a comment.
                        b'g' => Some(()),
                        b'L' => long_name(&bytes).map(|name| extended.long_path = Some(name)),
                        _ => long_name(&bytes).map(|name| extended.long_target = Some(name)),
                    };
                    done.ok_or(TarError::Extended { at })?;
                }
                b'S' => return Err(TarError::Sparse { at }.into()),
                _ if extended.sparse => return Err(TarError::Sparse { at }.into()),
                _ => {
                    let entry = header.entry(extended)?;
                    self.left = entry.size;
                    self.padding = entry.size.next_multiple_of(BLOCK as u64) - entry.size;
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Hands the current entry's contents on, in pieces.
    pub(super) fn contents(
        &mut self,
        mut sink: impl FnMut(&[u8]) -> Result<(), S::Error>,
    ) -> Result<(), S::Error> {
        while self.left > 0 {
            let piece = self.source.fill()?;
            if piece.is_empty() {
                return Err(TarError::Truncated.into());
            }
            let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(piece.len());
            sink(&piece[..length])?;
            self.advance(length);
            self.left -= length as u64;
        }
        Ok(())
    }

    fn finish_contents(&mut self) -> Result<(), S::Error> {
        let rest = self.left + self.padding;
        if !self.source.skip(rest)? {
            return Err(TarError::Truncated.into());
        }
        self.position += rest;
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    fn advance(&mut self, count: usize) {
        self.source.consume(count);
        self.position += count as u64;
    }

    /// Reads a block, or nothing at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, S::Error> {
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            let piece = self.source.fill()?;
            if piece.is_empty() {
                return if have == 0 { Ok(None) } else { Err(TarError::Truncated.into()) };
            }
            let length = piece.len().min(BLOCK - have);
            block[have..have + length].copy_from_slice(&piece[..length]);
            self.advance(length);
            have += length;
        }
        Ok(Some(block))
    }

    /// Reads a header, or nothing at the end mark. Streams that just end after an entry pass, as everywhere.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, S::Error> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        let at = self.position;
        match self.block()? {
            Some(block) if block != [0; BLOCK] => Err(TarError::HalfEnd { at }.into()),
            _ => Ok(None),
        }
    }

    /// Contents of an extended header, with their padding.
    fn extension(&mut self, header: &Header<'_>, extended: &mut Extended) -> Result<Vec<u8>, S::Error> {
        let size = header.size()?;
        let at = header.at;
        // Empty ones count as well: their number must not be without bound.
        extended.bytes = extended.bytes.saturating_add(size).saturating_add(BLOCK as u64);
        if extended.bytes > EXTENDED_MAX {
            return Err(TarError::ExtendedSize { at, size: extended.bytes, limit: EXTENDED_MAX }.into());
        }
        let mut bytes = Vec::new();
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        self.contents(|piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        self.finish_contents()?;
        Ok(bytes)
    }
}

/// A header block and where it stands.
struct Header<'a> {
    block: &'a [u8; BLOCK],
    at: u64,
}

impl Header<'_> {
    fn verify(&self) -> Result<(), TarError> {
        let wrong = TarError::Checksum { at: self.at };
        let stored = octal(&self.block[148..156]).ok_or(wrong.clone())?;
        // The checksum counts as spaces. Every entry comes through here: plain sums are what the compiler makes fast.
        let field = &self.block[148..156];
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        let unsigned = sum(self.block) - sum(field) + 8 * u64::from(b' ');
        // Some old programs added signed bytes: 256 less for each that is negative.
        let high = |bytes: &[u8]| bytes.iter().filter(|byte| **byte >= 0x80).count() as u64;
        let negative = 256 * (high(self.block) - high(field));
        let same = stored == unsigned || stored.checked_add(negative) == Some(unsigned);
        if same { Ok(()) } else { Err(wrong) }
    }

    fn bad(&self, field: &'static str) -> TarError {
        TarError::Field { at: self.at, field }
    }

    fn number(&self, range: std::ops::Range<usize>, field: &'static str) -> Result<u64, TarError> {
        let value = number(&self.block[range]).ok_or(self.bad(field))?;
        u64::try_from(value).map_err(|_| self.bad(field))
    }

    fn size(&self) -> Result<u64, TarError> {
        self.checked_size(self.number(124..136, "size")?)
    }

    /// Positions of what follows must be numbers still.
    fn checked_size(&self, size: u64) -> Result<u64, TarError> {
        const MOST: u64 = i64::MAX.cast_unsigned() / 2;
        if size <= MOST { Ok(size) } else { Err(self.bad("size")) }
    }

    /// The entry, given what extended headers say of it.
    fn entry(&self, extended: Extended) -> Result<Entry, TarError> {
        let block = self.block;
        let magic = &block[257..265];
        let ustar = magic.starts_with(b"ustar\0");
        let path = extended.long_path.or(extended.path).unwrap_or_else(|| {
            let name = text(&block[..100]);
            let prefix = if ustar { text(&block[345..500]) } else { b"" };
            if prefix.is_empty() { name.to_vec() } else { [prefix, name].join(&b'/') }
        });
        let target = extended.long_target.or(extended.target);
        let kind = match block[156] {
            // Before directories had a kind of their own, they were files with a slash at the end.
            0 if path.ends_with(b"/") => Kind::Dir,
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            kind => return Err(TarError::Kind { at: self.at, kind }),
        };
        let size = match (block[156], extended.size) {
            // Some programs give hard links the size of their file, but no contents follow.
            (b'1'..=b'6', _) => 0,
            (_, Some(size)) => self.checked_size(size)?,
            (_, None) => self.size()?,
        };
        let device = matches!(kind, Kind::Char | Kind::Block) && magic.starts_with(b"ustar");
        let (major, minor) = if device {
            (self.number(329..337, "device number")?, self.number(337..345, "device number")?)
        } else {
            (0, 0)
        };
        let uid = extended.uid.map_or_else(|| self.number(108..116, "owner"), Ok)?;
        let gid = extended.gid.map_or_else(|| self.number(116..124, "group"), Ok)?;
        let (mtime, mtime_ns) = match extended.mtime {
            Some(time) => time,
            None => (number(&block[136..148]).ok_or(self.bad("time"))?, 0),
        };
        let mode = self.number(100..108, "mode")? & 0o7777;
        Ok(Entry {
            kind,
            path,
            target: target.unwrap_or_else(|| text(&block[157..257]).to_vec()),
            mode: u16::try_from(mode).map_err(|_| self.bad("mode"))?,
            uid,
            gid,
            size,
            mtime,
            mtime_ns,
            major,
            minor,
            xattrs: extended.xattrs,
        })
    }
}

impl Extended {
    /// Takes in the lines of a PAX header; nothing when they are malformed.
    fn pax(&mut self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            // "<length> <key>=<value>\n", where the length counts the whole line.
            let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
            let length: usize = decimal(&bytes[..space])?.try_into().ok()?;
            let line = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
            bytes = &bytes[length..];
            let equals = line.iter().position(|byte| *byte == b'=')?;
            let (key, value) = (&line[..equals], &line[equals + 1..]);
            self.record(key, value)?;
        }
        Some(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        // An empty value takes back what was said before, and the header counts again.
        let given = (!value.is_empty()).then_some(value);
        match key {
            b"path" => self.path = given.map(<[u8]>::to_vec),
            b"linkpath" => self.target = given.map(<[u8]>::to_vec),
            b"size" => self.size = given.map(decimal).map_or(Some(None), |n| n.map(Some))?,
            b"uid" => self.uid = given.map(decimal).map_or(Some(None), |n| n.map(Some))?,
            b"gid" => self.gid = given.map(decimal).map_or(Some(None), |n| n.map(Some))?,
            b"mtime" => self.mtime = given.map(time).map_or(Some(None), |time| time.map(Some))?,
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(known, _)| known != name);
                    // An empty value takes the record back (pax, POSIX): that is how all builders of images read it.
                    if !value.is_empty() {
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Some(())
    }
}

/// A field up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

fn long_name(bytes: &[u8]) -> Option<Vec<u8>> {
    let name = text(bytes);
    (!name.is_empty()).then(|| name.to_vec())
}

/// A number in octal text or, when its first bit is set, in base 256.
fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return i64::try_from(octal(field)?).ok();
    }
    // Two's complement; the marking bit does not count, the next one is the sign.
    let negative = first & 0x40 != 0;
    let start = i128::from(first & 0x3f) - if negative { 0x40 } else { 0 };
    let value =
        rest.iter().try_fold(start, |value, byte| value.checked_mul(256)?.checked_add(i128::from(*byte)))?;
    i64::try_from(value).ok()
}

/// Octal digits, spaces before and spaces or NULs behind; nothing at all is 0.
fn octal(field: &[u8]) -> Option<u64> {
    let field = field.trim_ascii_start();
    let end = field.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(field.len());
    let (digits, rest) = field.split_at(end);
    if !rest.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return None;
    }
    digits.iter().try_fold(0u64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// Seconds since 1970 with a fraction, rounded down to nanoseconds: "1700000000.25", "-1.5".
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |text| (true, text));
    let dot = text.iter().position(|byte| *byte == b'.').unwrap_or(text.len());
    let seconds = i64::try_from(decimal(&text[..dot])?).ok()?;
    let fraction = text.get(dot + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |n: usize| fraction.get(n).map_or(0, |byte| u32::from(byte - b'0'));
    let nanos = (0..9).fold(0, |value, n| value * 10 + digit(n));
    match (negative, nanos) {
        (false, nanos) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, nanos) => Some((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes in pieces of a given size.
    struct Pieces<'a> {
        bytes: &'a [u8],
        most: usize,
    }

    impl Source for Pieces<'_> {
        type Error = TarError;

        fn fill(&mut self) -> Result<&[u8], TarError> {
            Ok(&self.bytes[..self.bytes.len().min(self.most)])
        }

        fn consume(&mut self, count: usize) {
            self.bytes = &self.bytes[count..];
        }
    }

    fn read(bytes: &[u8], most: usize) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
        let mut tar = TarReader::new(Pieces { bytes, most });
        let mut found = Vec::new();
        while let Some(entry) = tar.next()? {
            let mut contents = Vec::new();
            tar.contents(|piece| {
                contents.extend_from_slice(piece);
                Ok(())
            })?;
            found.push((entry, contents));
        }
        Ok(found)
    }

    /// By the `tar` crate.
    fn written(format: impl Fn() -> tar::Header, path: &str, contents: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = format();
        header.set_mode(0o640);
        header.set_uid(3_000_000);
        header.set_gid(5);
        header.set_mtime(1 << 40);
        header.set_size(contents.len() as u64);
        builder.append_data(&mut header, path, contents).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn what_another_program_writes_is_read_in_pieces_of_any_size() {
        let long = "n".repeat(90) + "/" + &"m".repeat(200);
        for format in [tar::Header::new_gnu, tar::Header::new_ustar] {
            for (path, size) in [("short", 0), ("a/b", 511), (long.as_str(), 512), ("x", 1025)] {
                // Only GNU's format has long names of any kind.
                if path == long && format().as_gnu().is_none() {
                    continue;
                }
                let contents = vec![b'c'; size];
                let bytes = written(format, path, &contents);
                for most in [1, 7, 512, 100_000] {
                    let found = read(&bytes, most).unwrap();
                    let [(entry, data)] = found.as_slice() else { panic!("{found:?}") };
                    assert_eq!((entry.path.as_slice(), data), (path.as_bytes(), &contents));
                    assert_eq!(
                        (entry.mode, entry.uid, entry.gid, entry.mtime),
                        (0o640, 3_000_000, 5, 1 << 40)
                    );
                }
            }
        }
    }

    #[test]
    fn checksums_of_signed_bytes_are_accepted_and_wrong_ones_are_not() {
        let mut bytes = written(tar::Header::new_gnu, "name", b"");
        bytes[..3].copy_from_slice(b"\xff\x80\x7f");
        bytes[148..156].fill(b' ');
        let unsigned: i32 = bytes[..512].iter().map(|byte| i32::from(*byte)).sum();
        let signed: i32 = bytes[..512].iter().map(|byte| i32::from(byte.cast_signed())).sum();
        assert!(unsigned - signed > 256);
        for (sum, good) in [(unsigned, true), (signed, true), (unsigned - 256, false), (signed - 1, false)] {
            bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            assert_eq!(read(&bytes, 512).is_ok(), good, "{sum}");
        }
    }

    #[test]
    fn numbers_are_read_in_octal_and_in_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"64a\0"), None);
        assert_eq!(number(b"6 4\0"), None);
        assert_eq!(number(b"\x80\0\0\x01\0"), Some(256));
        assert_eq!(number(b"\xff\xff\xff\xfe"), Some(-2));
        assert_eq!(number(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), None);
        assert_eq!(number(b"\xc0\0\0\0\0\0\0\0\0\0\0\0"), None);
        assert_eq!(number(b""), None);
    }

    #[test]
    fn times_have_fractions_and_may_lie_before_1970() {
        assert_eq!(time(b"12"), Some((12, 0)));
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"12.0000000019"), Some((12, 1)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        for bad in [b"".as_slice(), b"-", b".5", b"1.x", b"1.-5", b"99999999999999999999"] {
            assert_eq!(time(bad), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic_or_run_for_ever(
            mut bytes in prop::collection::vec(any::<u8>(), 0..4096),
            kinds in prop::collection::vec(prop::sample::select(b"0125xLKg3S\0".to_vec()), 8),
        ) {
            // Headers with a checksum that fits, or nothing behind it would ever be looked at.
            for (block, kind) in bytes.chunks_exact_mut(512).step_by(2).zip(kinds) {
                block[100..148].fill(b'0');
                block[124..136].copy_from_slice(b"00000000777\0");
                block[156] = kind;
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            }
            let whole = read(&bytes, 100_000);
            prop_assert_eq!(whole, read(&bytes, 3));
        }
    }
}
