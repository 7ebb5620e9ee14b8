//! Extended attributes: those of the user, and no others.
//!
//! Others mean something to the host's kernel. `security.capability` would make a program privileged, `trusted.overlay`
//! would change what an overlay shows.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags, XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;

use crate::names::MAX_NAME;
use crate::quota::NAME;
use crate::share::Share;
use crate::violation::{Refusal, Violation};
use crate::wire::Put;

const PREFIX: &[u8] = b"user.";

/// The longest value, and the longest list of names, that Linux knows.
const MAX_VALUE: usize = 64 << 10;

/// `None`: not one of the user's.
fn users(name: &[u8]) -> Result<Option<CString>, Refusal> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(Errno::RANGE.into());
    }
    if !name.starts_with(PREFIX) {
        return Ok(None);
    }
    if name == PREFIX {
        return Err(Errno::INVAL.into());
    }
    CString::new(name).map(Some).map_err(|_| Violation::Name.refuse(Errno::INVAL))
}

/// The user's names of a file, each with its NUL.
fn names(file: &OwnedFd) -> Result<Vec<u8>, Refusal> {
    let mut all = vec![0; MAX_VALUE];
    let len = flistxattr(file, &mut all[..])?;
    all.truncate(len);
    Ok(all
        .split_inclusive(|byte| *byte == 0)
        .filter(|name| name.starts_with(PREFIX))
        .flatten()
        .copied()
        .collect())
}

/// Answers with a value, or with its length if that is what was asked for.
fn put_value(value: &[u8], size: u32, out: &mut Vec<u8>) -> Result<(), Refusal> {
    let len = u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?;
    if size == 0 {
        out.put_u32(len);
        out.put_u32(0);
    } else if len > size {
        return Err(Errno::RANGE.into());
    } else {
        out.put_bytes(value);
    }
    Ok(())
}

impl Share {
    /// Linux has them for regular files and folders only, which are all that can be opened.
    fn open_for_xattr(&self, node: u64) -> Result<OwnedFd, Refusal> {
        let inode = self.inode(node)?;
        if !matches!(inode.kind, FileType::RegularFile | FileType::Directory) {
            return Err(Errno::PERM.into());
        }
        self.reopen(&inode, OFlags::RDONLY)
    }

    pub(crate) fn get_xattr(
        &self,
        node: u64,
        name: &[u8],
        size: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        // The kernel itself asks for others all the time.
        let name = users(name)?.ok_or(Errno::OPNOTSUPP)?;
        let file = self.open_for_xattr(node)?;
        let mut value = vec![0; MAX_VALUE];
        let len = fgetxattr(&file, name.as_c_str(), &mut value[..])?;
        value.truncate(len);
        put_value(&value, size, out)
    }

    pub(crate) fn list_xattr(&self, node: u64, size: u32, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let listed = match self.open_for_xattr(node) {
            Ok(file) => names(&file)?,
            // It has none.
            Err(Refusal { errno: Errno::PERM | Errno::INVAL, trick: None }) => Vec::new(),
            Err(refusal) => return Err(refusal),
        };
        put_value(&listed, size, out)
    }

    /// With a quota, all values of a file together fit into the 4 KiB that its name counts.
    pub(crate) fn set_xattr(&self, node: u64, name: &[u8], value: &[u8], flags: u32) -> Result<(), Refusal> {
        let name = users(name)?.ok_or(Violation::Attribute.refuse(Errno::OPNOTSUPP))?;
        let flags = XattrFlags::from_bits_retain(flags);
        if ![XattrFlags::empty(), XattrFlags::CREATE, XattrFlags::REPLACE].contains(&flags) {
            return Err(Errno::INVAL.into());
        }
        if value.len() > MAX_VALUE {
            return Err(Errno::TOOBIG.into());
        }
        let file = self.open_for_xattr(node)?;
        let volume = self.inode(node)?.volume;
        if self.attached(volume)?.quota.is_some() {
            let mut total = name.as_bytes().len().saturating_add(value.len());
            for other in names(&file)?.split(|byte| *byte == 0).filter(|other| !other.is_empty()) {
                if other == name.as_bytes() {
                    continue;
                }
                let mut value = vec![0; MAX_VALUE];
                let len = fgetxattr(&file, other, &mut value[..])?;
                total = total.saturating_add(other.len()).saturating_add(len);
            }
            if u64::try_from(total).map_or(true, |total| total > NAME) {
                return Err(Errno::NOSPC.into());
            }
        }
        Ok(fsetxattr(&file, name.as_c_str(), value, flags)?)
    }

    pub(crate) fn remove_xattr(&self, node: u64, name: &[u8]) -> Result<(), Refusal> {
        let name = users(name)?.ok_or(Violation::Attribute.refuse(Errno::OPNOTSUPP))?;
        Ok(fremovexattr(self.open_for_xattr(node)?, name.as_c_str())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_users_names_pass() {
        assert!(users(b"user.a").unwrap().is_some());
        for other in
            [&b"security.capability"[..], b"trusted.a", b"system.posix_acl_access", b"USER.a", b"user"]
        {
            assert_eq!(users(other).unwrap(), None);
        }
        for wrong in [&b""[..], b"user.", &[b'u'; 256], b"user.a\0b"] {
            assert!(users(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_value_that_does_not_fit_is_not_cut() {
        let mut out = Vec::new();
        assert_eq!(put_value(b"four", 3, &mut out), Err(Errno::RANGE.into()));
        assert!(out.is_empty());
        put_value(b"four", 0, &mut out).unwrap();
        assert_eq!(out, [4, 0, 0, 0, 0, 0, 0, 0]);
    }
}
