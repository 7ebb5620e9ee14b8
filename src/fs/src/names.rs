//! Names as they come from the guest.
//!
//! Invariant: a [`Name`] is one component. It is not empty, not `.` or `..`, has no `/` and no NUL, and is no longer than
//! 255 bytes. The host resolves nothing but names, each relative to a descriptor of its folder, and so cannot be led
//! elsewhere.

use std::ffi::{CStr, CString};

use rustix::io::Errno;

/// The longest name that Linux knows.
pub(crate) const MAX_NAME: usize = 255;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name(CString);

/// Why bytes are no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotAName {
    /// Any program may try one that is too long.
    TooLong,
    /// The guest's kernel resolves paths itself and never asks for this.
    Forged,
}

impl NotAName {
    pub(crate) fn errno(self) -> Errno {
        match self {
            Self::TooLong => Errno::NAMETOOLONG,
            Self::Forged => Errno::INVAL,
        }
    }
}

impl Name {
    pub(crate) fn new(bytes: &[u8]) -> Result<Self, NotAName> {
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
            return Err(NotAName::Forged);
        }
        if bytes.len() > MAX_NAME {
            return Err(NotAName::TooLong);
        }
        CString::new(bytes).map(Self).map_err(|_| NotAName::Forged)
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_component() {
        for good in [&b"a"[..], b"...", b".a", b"a b", b"\xff\xfe", &[b'x'; 255]] {
            assert!(Name::new(good).is_ok(), "{good:?}");
        }
        for bad in [&b""[..], b".", b"..", b"/", b"a/", b"/a", b"a/b", b"../a", b"a\0", b"\0"] {
            assert_eq!(Name::new(bad), Err(NotAName::Forged), "{bad:?}");
        }
        assert_eq!(Name::new(&[b'x'; 256]), Err(NotAName::TooLong));
    }
}
