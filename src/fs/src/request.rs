//! Requests, as the guest's kernel writes them.
//!
//! Invariant: an [`Operation`] is well formed. Its names are single components and its fields were all there. Whether it
//! may be done is for `guard` and for those who do it.

use rustix::io::Errno;

use crate::names::{Name, NotAName};
use crate::violation::{Refusal, Violation};
use crate::wire::{IN_HEADER, Reader};

/// The longest target of a symbolic link that Linux knows, without its NUL.
const MAX_TARGET: usize = 4095;

/// The number of the operation WRITE, whose data a transport may leave where it is.
pub(crate) const WRITE: u32 = 16;

/// FORGET, INTERRUPT and BATCH_FORGET are never answered, not even when they are wrong.
pub(crate) fn is_unanswered(opcode: u32) -> bool {
    matches!(opcode, 2 | 36 | 42)
}

/// Who asks for what about which file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Length of the whole request.
    pub(crate) len: u32,
    pub(crate) opcode: u32,
    pub(crate) unique: u64,
    pub(crate) node: u64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Header {
    pub(crate) fn parse(bytes: &[u8; IN_HEADER]) -> Result<Self, Errno> {
        let mut reader = Reader::new(bytes);
        Ok(Self {
            len: reader.u32()?,
            opcode: reader.u32()?,
            unique: reader.u64()?,
            node: reader.u64()?,
            uid: reader.u32()?,
            gid: reader.u32()?,
        })
    }
}

/// What a SETATTR sets, if `valid` says so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Changes {
    pub(crate) valid: u32,
    pub(crate) handle: u64,
    pub(crate) size: u64,
    pub(crate) atime: u64,
    pub(crate) mtime: u64,
    pub(crate) atime_nsec: u32,
    pub(crate) mtime_nsec: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What INIT says about the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Greeting {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) max_readahead: u32,
    pub(crate) abilities: u32,
}

/// A range of a file, or of what a folder holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) handle: u64,
    pub(crate) offset: u64,
    pub(crate) size: u32,
}

/// See the module.
#[derive(Debug)]
pub(crate) enum Operation<'a> {
    Init(Greeting),
    Destroy,
    Interrupt,
    Forget {
        lookups: u64,
    },
    BatchForget {
        list: Reader<'a>,
        count: u32,
    },
    Lookup {
        name: Name,
    },
    GetAttr {
        handle: Option<u64>,
    },
    SetAttr(Changes),
    ReadLink,
    SymLink {
        name: Name,
        target: &'a [u8],
    },
    MkNod {
        name: Name,
        mode: u32,
    },
    MkDir {
        name: Name,
        mode: u32,
    },
    Unlink {
        name: Name,
    },
    RmDir {
        name: Name,
    },
    Rename {
        name: Name,
        new_parent: u64,
        new_name: Name,
        flags: u32,
    },
    Link {
        old: u64,
        name: Name,
    },
    Create {
        name: Name,
        flags: u32,
        mode: u32,
    },
    Open {
        flags: u32,
    },
    Read(Span),
    Write {
        span: Span,
        flags: u32,
    },
    Flush {
        handle: u64,
    },
    Release {
        handle: u64,
    },
    Fsync {
        handle: u64,
        flags: u32,
    },
    Fallocate {
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    },
    Lseek {
        handle: u64,
        offset: u64,
        whence: u32,
    },
    CopyFileRange,
    StatFs,
    SyncFs,
    SetXattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: u32,
    },
    GetXattr {
        name: &'a [u8],
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    RemoveXattr {
        name: &'a [u8],
    },
    OpenDir,
    ReadDir(Span),
    ReadDirPlus(Span),
    ReleaseDir {
        handle: u64,
    },
    FsyncDir {
        handle: u64,
        flags: u32,
    },
    /// What this server does not know. It touches nothing.
    Unknown,
}

fn malformed(errno: Errno) -> Refusal {
    Violation::Message.refuse(errno)
}

/// The next string, which must be a name.
fn name(reader: &mut Reader<'_>) -> Result<Name, Refusal> {
    Name::new(reader.string().map_err(malformed)?).map_err(|error| match error {
        NotAName::TooLong => error.errno().into(),
        NotAName::Forged => Violation::Name.refuse(error.errno()),
    })
}

/// The name is all that there still is. Bytes behind its NUL would be a NUL within it.
fn last_name(reader: &mut Reader<'_>) -> Result<Name, Refusal> {
    let name = name(reader)?;
    reader.end().map_err(|errno| Violation::Name.refuse(errno))?;
    Ok(name)
}

fn last_string<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Refusal> {
    let string = reader.string().map_err(malformed)?;
    reader.end().map_err(|errno| Violation::Name.refuse(errno))?;
    Ok(string)
}

fn span(reader: &mut Reader<'_>) -> Result<Span, Refusal> {
    let mut fields = || Ok(Span { handle: reader.u64()?, offset: reader.u64()?, size: reader.u32()? });
    fields().map_err(malformed)
}

fn changes(reader: &mut Reader<'_>) -> Result<Changes, Errno> {
    let valid = reader.u32()?;
    reader.skip(4)?;
    let handle = reader.u64()?;
    let size = reader.u64()?;
    reader.skip(8)?;
    let (atime, mtime) = (reader.u64()?, reader.u64()?);
    reader.skip(8)?;
    let (atime_nsec, mtime_nsec) = (reader.u32()?, reader.u32()?);
    reader.skip(4)?;
    let mode = reader.u32()?;
    reader.skip(4)?;
    let (uid, gid) = (reader.u32()?, reader.u32()?);
    Ok(Changes { valid, handle, size, atime, mtime, atime_nsec, mtime_nsec, mode, uid, gid })
}

impl<'a> Operation<'a> {
    /// `fields` is what follows the header, without the data of a WRITE.
    pub(crate) fn parse(opcode: u32, fields: &'a [u8]) -> Result<Self, Refusal> {
        let reader = &mut Reader::new(fields);
        Ok(match opcode {
            1 => Self::Lookup { name: last_name(reader)? },
            6 => {
                let name = name(reader)?;
                let target = last_string(reader)?;
                if target.is_empty() {
                    return Err(Errno::NOENT.into());
                }
                if target.len() > MAX_TARGET {
                    return Err(Errno::NAMETOOLONG.into());
                }
                Self::SymLink { name, target }
            }
            8..=13 | 35 | 45 => Self::parse_entry(opcode, reader)?,
            21..=24 => Self::parse_attribute(opcode, reader)?,
            15 => Self::Read(span(reader)?),
            28 => Self::ReadDir(span(reader)?),
            44 => Self::ReadDirPlus(span(reader)?),
            WRITE => {
                let span = span(reader)?;
                Self::Write { span, flags: reader.u32().map_err(malformed)? }
            }
            _ => Self::parse_plain(opcode, reader).map_err(malformed)?,
        })
    }

    /// What makes, moves or removes a name.
    fn parse_entry(opcode: u32, reader: &mut Reader<'a>) -> Result<Self, Refusal> {
        Ok(match opcode {
            8 => {
                let mode = reader.u32().map_err(malformed)?;
                reader.skip(12).map_err(malformed)?;
                Self::MkNod { mode, name: last_name(reader)? }
            }
            9 => {
                let mode = reader.u32().map_err(malformed)?;
                reader.skip(4).map_err(malformed)?;
                Self::MkDir { mode, name: last_name(reader)? }
            }
            10 => Self::Unlink { name: last_name(reader)? },
            11 => Self::RmDir { name: last_name(reader)? },
            12 => {
                let new_parent = reader.u64().map_err(malformed)?;
                Self::Rename { new_parent, flags: 0, name: name(reader)?, new_name: last_name(reader)? }
            }
            13 => {
                let old = reader.u64().map_err(malformed)?;
                Self::Link { old, name: last_name(reader)? }
            }
            35 => {
                let (flags, mode) = (reader.u32().map_err(malformed)?, reader.u32().map_err(malformed)?);
                reader.skip(8).map_err(malformed)?;
                Self::Create { flags, mode, name: last_name(reader)? }
            }
            45 => {
                let new_parent = reader.u64().map_err(malformed)?;
                let flags = reader.u32().map_err(malformed)?;
                reader.skip(4).map_err(malformed)?;
                Self::Rename { new_parent, flags, name: name(reader)?, new_name: last_name(reader)? }
            }
            _ => Self::Unknown,
        })
    }

    /// What is about extended attributes.
    fn parse_attribute(opcode: u32, reader: &mut Reader<'a>) -> Result<Self, Refusal> {
        Ok(match opcode {
            21 => {
                let (size, flags) = (reader.u32().map_err(malformed)?, reader.u32().map_err(malformed)?);
                let name = reader.string().map_err(malformed)?;
                let value = reader.rest();
                if u32::try_from(value.len()) != Ok(size) {
                    return Err(malformed(Errno::INVAL));
                }
                Self::SetXattr { name, value, flags }
            }
            22 => {
                let size = reader.u32().map_err(malformed)?;
                reader.skip(4).map_err(malformed)?;
                Self::GetXattr { size, name: last_string(reader)? }
            }
            23 => Self::ListXattr { size: reader.u32().map_err(malformed)? },
            24 => Self::RemoveXattr { name: last_string(reader)? },
            _ => Self::Unknown,
        })
    }

    /// What has no names.
    fn parse_plain(opcode: u32, reader: &mut Reader<'a>) -> Result<Self, Errno> {
        Ok(match opcode {
            2 => Self::Forget { lookups: reader.u64()? },
            3 => {
                let flags = reader.u32()?;
                reader.skip(4)?;
                let handle = reader.u64()?;
                Self::GetAttr { handle: (flags & crate::wire::GETATTR_FH != 0).then_some(handle) }
            }
            4 => Self::SetAttr(changes(reader)?),
            5 => Self::ReadLink,
            14 => Self::Open { flags: reader.u32()? },
            17 => Self::StatFs,
            18 => Self::Release { handle: reader.u64()? },
            20 => Self::Fsync { handle: reader.u64()?, flags: reader.u32()? },
            25 => Self::Flush { handle: reader.u64()? },
            26 => Self::Init(Greeting {
                major: reader.u32()?,
                minor: reader.u32()?,
                max_readahead: reader.u32()?,
                abilities: reader.u32()?,
            }),
            27 => Self::OpenDir,
            29 => Self::ReleaseDir { handle: reader.u64()? },
            30 => Self::FsyncDir { handle: reader.u64()?, flags: reader.u32()? },
            36 => Self::Interrupt,
            38 => Self::Destroy,
            42 => {
                let count = reader.u32()?;
                reader.skip(4)?;
                Self::BatchForget { list: *reader, count }
            }
            43 => Self::Fallocate {
                handle: reader.u64()?,
                offset: reader.u64()?,
                length: reader.u64()?,
                mode: reader.u32()?,
            },
            46 => Self::Lseek { handle: reader.u64()?, offset: reader.u64()?, whence: reader.u32()? },
            47 => Self::CopyFileRange,
            50 => Self::SyncFs,
            _ => Self::Unknown,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Enough for every operation, as far as it has names and numbers.
    fn plausible() -> Vec<u8> {
        let mut bytes = vec![0; 88];
        bytes.extend(b"name\0other\0");
        bytes
    }

    #[test]
    fn a_request_that_is_cut_off_anywhere_is_refused_or_shorter() {
        for opcode in 0..64 {
            for len in 0..plausible().len() {
                // What counts is that it returns.
                drop(Operation::parse(opcode, &plausible()[..len]));
            }
        }
        let setattr = vec![0; 88];
        assert!(Operation::parse(4, &setattr).is_ok());
        assert!(Operation::parse(4, &setattr[..80]).is_err());
    }

    #[test]
    fn a_nul_within_a_name_is_a_trick() {
        let refusal = Operation::parse(1, b"a\0b\0").unwrap_err();
        assert_eq!(refusal, Violation::Name.refuse(Errno::INVAL));
        let refusal = Operation::parse(1, b"ab").unwrap_err();
        assert_eq!(refusal, Violation::Message.refuse(Errno::INVAL));
    }

    #[test]
    fn the_value_of_an_attribute_is_as_long_as_it_says() {
        let mut bytes = vec![5, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(b"user.a\0value");
        assert!(matches!(Operation::parse(21, &bytes), Ok(Operation::SetXattr { value: b"value", .. })));
        bytes.pop();
        assert!(Operation::parse(21, &bytes).is_err());
    }
}
