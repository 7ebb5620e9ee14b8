//! The extended attributes of one inode, encoded as they follow it on disk:
//!
//! ```text
//! 12 bytes header (no shared attributes)   entry   entry   …     each entry padded to 4 bytes:
//!                                          name length u8, prefix u8, value length u16, name without prefix, value
//! ```

/// Bytes of the header (`erofs_xattr_ibody_header`).
const HEADER: usize = 12;
/// The most that `i_xattr_icount` can say: 12 bytes and 4 for each count above one.
const MOST: usize = HEADER + 4 * (u16::MAX as usize - 1);

/// Prefixes that have a number; a name with another one cannot be stored. The two ACL names are complete.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Why attributes cannot be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum XattrsError {
    /// Linux does not know this name space either.
    #[error("the name space of the attribute is not one of Linux")]
    NameSpace,
    /// The name behind its prefix is empty or has more than 255 bytes.
    #[error("the attribute's name is empty or longer than 255 bytes")]
    Name,
    /// Values have at most 64 KiB.
    #[error("the attribute's value has {0} bytes, 65535 are possible")]
    Value(usize),
    /// All attributes together must fit in about 256 KiB.
    #[error("the attributes have {0} bytes together, {MOST} are possible")]
    Total(usize),
}

/// Attributes of one inode; empty for nearly all inodes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Xattrs(Vec<u8>);

impl Xattrs {
    /// Encodes attributes given by full name, in the order of their names. Of one given twice, the last counts.
    pub(crate) fn new<'a>(
        attributes: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Self, XattrsError> {
        let sorted: std::collections::BTreeMap<&[u8], &[u8]> = attributes.into_iter().collect();
        let mut out = Vec::new();
        for (name, value) in sorted {
            let (number, rest) = split(name).ok_or(XattrsError::NameSpace)?;
            let length = u8::try_from(rest.len()).map_err(|_| XattrsError::Name)?;
            if rest.is_empty() && !matches!(number, 2 | 3) || rest.contains(&0) {
                return Err(XattrsError::Name);
            }
            let size = u16::try_from(value.len()).map_err(|_| XattrsError::Value(value.len()))?;
            if out.is_empty() {
                out.resize(HEADER, 0);
            }
            out.extend_from_slice(&[length, number]);
            out.extend_from_slice(&size.to_le_bytes());
            out.extend_from_slice(rest);
            out.extend_from_slice(value);
            out.resize(out.len().next_multiple_of(4), 0);
            if out.len() > MOST {
                return Err(XattrsError::Total(out.len()));
            }
        }
        Ok(Self(out))
    }

    /// Whether `name` is in a name space that can be stored.
    pub(crate) fn can_hold(name: &[u8]) -> bool {
        split(name).is_some()
    }

    /// What [`Xattrs::bytes`] gave.
    pub(crate) fn of_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// As on disk; empty when there are none.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// `i_xattr_icount` for attributes of so many bytes.
pub(super) fn count(bytes: usize) -> u16 {
    let count = if bytes == 0 { 0 } else { (bytes - HEADER) / 4 + 1 };
    u16::try_from(count).expect("attributes are at most MOST bytes")
}

fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(prefix, number)| {
        let rest = name.strip_prefix(*prefix)?;
        (!matches!(number, 2 | 3) || rest.is_empty()).then_some((*number, rest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_sorted_padded_and_stripped_of_their_prefix() {
        let given: [(&[u8], &[u8]); 2] = [(b"user.b", b"12345"), (b"security.capability", b"")];
        let xattrs = Xattrs::new(given).unwrap();
        let mut want = vec![0; 12];
        want.extend_from_slice(b"\x0a\x06\x00\x00capability\0\0");
        want.extend_from_slice(b"\x01\x01\x05\x00b12345\0\0");
        assert_eq!(xattrs.bytes(), want);
        assert_eq!(count(want.len()), 8);
        assert_eq!(count(0), 0);
    }

    #[test]
    fn names_without_a_number_and_oversized_parts_are_refused() {
        let one = |name: &[u8], value: &[u8]| Xattrs::new([(name, value)]).unwrap_err();
        assert_eq!(one(b"com.apple.provenance", b""), XattrsError::NameSpace);
        assert_eq!(one(b"system.posix_acl_accessory", b""), XattrsError::NameSpace);
        assert_eq!(one(b"user.", b""), XattrsError::Name);
        assert_eq!(one(&[b"user.".as_slice(), &[b'x'; 256]].concat(), b""), XattrsError::Name);
        assert_eq!(one(b"user.x", &[0; 65536]), XattrsError::Value(65536));
        let names: Vec<Vec<u8>> = (0..5).map(|n| format!("user.{n}").into_bytes()).collect();
        let value = vec![7; 65535];
        let many = names.iter().map(|name| (name.as_slice(), value.as_slice()));
        assert!(matches!(Xattrs::new(many).unwrap_err(), XattrsError::Total(_)));
    }
}
