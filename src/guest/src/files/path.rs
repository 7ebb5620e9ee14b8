//! Paths that a host names.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use super::error::{FileError, Kind};

/// An absolute path in the container without a zero byte, no longer than the system takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoxPath(OsString);

impl BoxPath {
    /// Checks a path. A relative one is taken from the root, as Docker does.
    ///
    /// # Errors
    /// When it is empty, too long, or has a zero byte.
    pub fn new(path: Vec<u8>) -> Result<Self, FileError> {
        let invalid = |what: &str| FileError::new(Kind::Invalid, format!("the path {what}"));
        if path.is_empty() {
            return Err(invalid("is empty"));
        }
        if path.len() >= libc::PATH_MAX.cast_unsigned() as usize - 1 {
            return Err(invalid("is too long"));
        }
        if path.contains(&0) {
            return Err(invalid("contains a zero byte"));
        }
        let absolute = if path.starts_with(b"/") { path } else { [b"/", path.as_slice()].concat() };
        Ok(Self(OsString::from_vec(absolute)))
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The folder that it is in and its last component.
    ///
    /// # Errors
    /// When it has none: it is the root, or ends in `..`.
    pub fn split(&self) -> Result<(&Path, &OsStr), FileError> {
        let path = self.as_path();
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok((parent, name)),
            _ => Err(FileError::new(
                Kind::Invalid,
                format!("{} names no entry of a folder", self.as_bytes().escape_ascii()),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_absolute_and_can_be_passed_to_the_system() {
        assert_eq!(BoxPath::new(b"tmp/x".to_vec()).unwrap().as_bytes(), b"/tmp/x");
        assert_eq!(BoxPath::new(b"/tmp/".to_vec()).unwrap().as_bytes(), b"/tmp/");
        for bad in [&b""[..], b"/a\0b", &[b'a'; 5000]] {
            assert_eq!(BoxPath::new(bad.to_vec()).unwrap_err().kind, Kind::Invalid);
        }
    }

    #[test]
    fn a_path_is_split_at_its_last_component_unless_it_has_none() {
        let split = |path: &[u8]| {
            BoxPath::new(path.to_vec()).unwrap().split().map(|(a, b)| (a.to_owned(), b.to_owned()))
        };
        assert_eq!(split(b"/a/b/").unwrap(), ("/a".into(), "b".into()));
        assert_eq!(split(b"a").unwrap(), ("/".into(), "a".into()));
        for none in [&b"/"[..], b"/a/..", b"//"] {
            assert!(split(none).is_err());
        }
    }
}
