//! Bytes of the FUSE protocol: reading them one field at a time, and writing them.
//!
//! The protocol is the kernel's `include/uapi/linux/fuse.h`, in the byte order of the machine. Reading never goes beyond
//! what there is: a message that ends too early is an error of its sender.

use rustix::io::Errno;

/// Length of what every request starts with.
pub(crate) const IN_HEADER: usize = 40;
/// Length of what every reply starts with.
pub(crate) const OUT_HEADER: usize = 16;
/// Length of the fields of a WRITE, behind the header and before its data.
pub(crate) const WRITE_FIELDS: usize = 40;

/// The number of the share's root.
pub(crate) const ROOT: u64 = 1;

/// The version of the protocol that is spoken. The minor one is the guest's if that is older.
pub(crate) const MAJOR: u32 = 7;
pub(crate) const MINOR: u32 = 38;
/// Replies have the layout that they have had since then.
pub(crate) const OLDEST_MINOR: u32 = 27;

/// Abilities that are agreed upon by INIT.
pub(crate) mod ability {
    pub(crate) const ASYNC_READ: u32 = 1 << 0;
    pub(crate) const BIG_WRITES: u32 = 1 << 5;
    pub(crate) const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub(crate) const DO_READDIRPLUS: u32 = 1 << 13;
    pub(crate) const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub(crate) const ASYNC_DIO: u32 = 1 << 15;
    pub(crate) const PARALLEL_DIROPS: u32 = 1 << 18;
    pub(crate) const MAX_PAGES: u32 = 1 << 22;
    pub(crate) const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
}

/// Flags of a reply to OPEN: nothing needs to be said when the file is closed.
pub(crate) const FOPEN_NOFLUSH: u32 = 1 << 5;

/// A flag of GETATTR: by handle, not by number.
pub(crate) const GETATTR_FH: u32 = 1;
/// A flag of WRITE: the suid and sgid bits go.
pub(crate) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// A flag of FSYNC: without the attributes.
pub(crate) const FSYNC_FDATASYNC: u32 = 1;

/// What a SETATTR sets.
pub(crate) mod set {
    pub(crate) const MODE: u32 = 1 << 0;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const FH: u32 = 1 << 6;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
    pub(crate) const KILL_SUIDGID: u32 = 1 << 11;
}

/// What is left of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_ne_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_ne_bytes)
    }

    pub(crate) fn skip(&mut self, count: usize) -> Result<(), Errno> {
        self.bytes(count).map(drop)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Errno> {
        let (first, rest) = self.0.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(first)
    }

    /// Up to the next NUL, which is taken as well.
    pub(crate) fn string(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
        let string = self.bytes(end)?;
        self.skip(1)?;
        Ok(string)
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Refuses what a string was followed by: a NUL within a name, for instance.
    pub(crate) fn end(&self) -> Result<(), Errno> {
        if self.0.is_empty() { Ok(()) } else { Err(Errno::INVAL) }
    }
}

/// Writing of fields, for replies.
pub(crate) trait Put {
    fn put_bytes(&mut self, bytes: &[u8]);

    fn put_u16(&mut self, value: u16) {
        self.put_bytes(&value.to_ne_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.put_bytes(&value.to_ne_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.put_bytes(&value.to_ne_bytes());
    }

    fn put_zeros(&mut self, count: usize);
}

impl Put for Vec<u8> {
    fn put_bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn put_zeros(&mut self, count: usize) {
        self.resize(self.len().saturating_add(count), 0);
    }
}

/// The header of a reply of so many further bytes.
pub(crate) fn out_header(unique: u64, error: Option<Errno>, body: usize) -> [u8; OUT_HEADER] {
    let len = u32::try_from(body.saturating_add(OUT_HEADER)).unwrap_or(u32::MAX);
    let code = error.map_or(0, |errno| -errno.raw_os_error());
    let mut header = [0; OUT_HEADER];
    header[..4].copy_from_slice(&len.to_ne_bytes());
    header[4..8].copy_from_slice(&code.to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_read_beyond_the_end() {
        let mut reader = Reader::new(&[1, 0, 0, 0, 7]);
        assert_eq!(reader.u32(), Ok(1));
        assert_eq!(reader.u32(), Err(Errno::INVAL));
        assert_eq!(reader.bytes(usize::MAX), Err(Errno::INVAL));
        assert_eq!(reader.string(), Err(Errno::INVAL), "there is no NUL");
        assert_eq!(reader.rest(), [7]);
        assert_eq!(reader.end(), Ok(()));
    }

    #[test]
    fn a_string_ends_at_its_nul() {
        let mut reader = Reader::new(b"ab\0c\0");
        assert_eq!(reader.string(), Ok(&b"ab"[..]));
        assert_eq!(reader.end(), Err(Errno::INVAL));
        assert_eq!(reader.string(), Ok(&b"c"[..]));
        assert_eq!(reader.end(), Ok(()));
    }

    #[test]
    fn an_error_is_a_negative_number() {
        let header = out_header(9, Some(Errno::NOENT), 0);
        assert_eq!(header[..8], [16, 0, 0, 0, 254, 255, 255, 255]);
    }
}
