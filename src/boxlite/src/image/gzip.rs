//! Decompresses gzip, member by member (RFC 1952).
//!
//! The checksum that each member ends with is not looked at: the digest of the content is checked in any case, and the
//! checksum costs a tenth of the time.

use std::io::{self, BufRead, Read};

use flate2::{Decompress, FlushDecompress, Status};

use super::input::Input;

/// Header fields that may follow the fixed ones.
const HEADER_CHECKSUM: u8 = 2;
const EXTRA: u8 = 4;
const NAME: u8 = 8;
const COMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;

/// Members behind each other are one stream; anything else behind the first is an error.
#[derive(Debug)]
pub(super) struct Members<'a, 'b> {
    input: &'a mut Input<'b>,
    inflate: Decompress,
    between: bool,
}

impl<'a, 'b> Members<'a, 'b> {
    pub(super) fn new(input: &'a mut Input<'b>) -> Self {
        Self { input, inflate: Decompress::new(false), between: true }
    }

    /// Begins the next member; false when there is none.
    fn begin(&mut self) -> io::Result<bool> {
        if self.input.fill_buf()?.is_empty() {
            return Ok(false);
        }
        let mut fixed = [0; 10];
        self.input.read_exact(&mut fixed)?;
        let flags = fixed[3];
        if !fixed.starts_with(b"\x1f\x8b\x08") || flags & RESERVED != 0 {
            return Err(broken("what follows is not compressed"));
        }
        if flags & EXTRA != 0 {
            let mut length = [0; 2];
            self.input.read_exact(&mut length)?;
            for _ in 0..u16::from_le_bytes(length) {
                self.byte()?;
            }
        }
        for text in [NAME, COMMENT] {
            while flags & text != 0 && self.byte()? != 0 {}
        }
        if flags & HEADER_CHECKSUM != 0 {
            self.input.read_exact(&mut [0; 2])?;
        }
        self.inflate.reset(false);
        self.between = false;
        Ok(true)
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    /// Ends a member: its checksum, and its size modulo 2^32.
    fn end(&mut self) -> io::Result<()> {
        let mut trailer = [0; 8];
        self.input.read_exact(&mut trailer)?;
        let [_, _, _, _, size @ ..] = trailer;
        if self.inflate.total_out() & u64::from(u32::MAX) != u64::from(u32::from_le_bytes(size)) {
            return Err(broken("there is not as much as it says"));
        }
        self.between = true;
        Ok(())
    }
}

impl Read for Members<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.between && !self.begin()? {
                return Ok(0);
            }
            let input = self.input.fill_buf()?;
            let ended = input.is_empty();
            let (read, written) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self.inflate.decompress(input, out, FlushDecompress::None);
            let status = status.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let length = |count: u64| usize::try_from(count).map_err(io::Error::other);
            let (read, written) =
                (length(self.inflate.total_in() - read)?, length(self.inflate.total_out() - written)?);
            self.input.consume(read);
            if status == Status::StreamEnd {
                self.end()?;
            }
            if written > 0 {
                return Ok(written);
            }
            if ended && status != Status::StreamEnd {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn broken(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::budget::Budget;
    use super::super::limits::Limits;
    use super::*;

    /// Hands out a few bytes at a time.
    struct Bit(io::Cursor<Vec<u8>>);

    impl Read for Bit {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let most = out.len().min(3);
            self.0.read(&mut out[..most])
        }
    }

    fn unpacked(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let limits = Limits::default();
        let budget = Budget::new(&limits);
        let blob = Box::new(Bit(io::Cursor::new(bytes.to_vec())));
        let mut input = Input::new(blob, None, Arc::default(), &budget);
        let mut out = Vec::new();
        Members::new(&mut input).read_to_end(&mut out).map(|_| out)
    }

    fn member(builder: flate2::GzBuilder, contents: &[u8]) -> Vec<u8> {
        let mut encoder = builder.read(contents, flate2::Compression::fast());
        let mut out = Vec::new();
        encoder.read_to_end(&mut out).unwrap();
        out
    }

    #[test]
    fn members_with_all_fields_and_with_none_are_one_stream() {
        let contents: Vec<u8> = (0..20_000u32).flat_map(|n| (n / 3).to_le_bytes()).collect();
        let all = flate2::GzBuilder::new().extra(vec![0, 1, 2]).filename("name").comment("comment");
        let mut with_checksum = member(flate2::GzBuilder::new(), b"checked");
        with_checksum[3] |= HEADER_CHECKSUM;
        with_checksum.splice(10..10, [7, 7]);
        let parts = [
            member(all, &contents),
            member(flate2::GzBuilder::new(), b""),
            with_checksum,
            member(flate2::GzBuilder::new(), &contents),
        ];
        let want = [contents.as_slice(), b"checked", &contents].concat();
        assert!(unpacked(&parts.concat()).unwrap() == want);
    }

    #[test]
    fn what_is_cut_off_or_lies_about_its_size_is_refused() {
        let whole = member(flate2::GzBuilder::new().filename("name"), b"some bytes");
        for cut in 1..whole.len() {
            assert_eq!(unpacked(&whole[..cut]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{cut}");
        }
        let mut longer = whole.clone();
        longer[whole.len() - 4] += 1;
        let mut reserved = whole.clone();
        reserved[3] |= 0x80;
        let mut garbage = whole.clone();
        garbage.extend_from_slice(b"something else");
        let mut broken = whole.clone();
        broken[15] = 0xff;
        for bad in [longer, reserved, garbage, broken] {
            assert_eq!(unpacked(&bad).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
