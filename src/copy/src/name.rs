//! A path in a stream, taken apart. What cannot stay below a folder by its look is no name.
//!
//! What a name looks like says nothing of the symlinks on its way; see [`unpack`](mod@crate::unpack) for those.

use std::fmt;

use crate::MAX_PATH;

/// The longest component, in bytes: what Linux file systems take.
const MAX_COMPONENT: usize = 255;

/// Shows bytes of a stranger on one line of bounded length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Escaped(Vec<u8>);

impl Escaped {
    /// How much of a path is shown.
    const SHOWN: usize = 256;

    /// For these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.get(..Self::SHOWN + 1).unwrap_or(bytes).to_vec())
    }
}

impl fmt::Display for Escaped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get(..Self::SHOWN).filter(|shown| shown.len() < self.0.len()) {
            Some(shown) => write!(f, "'{}...'", shown.escape_ascii()),
            None => write!(f, "'{}'", self.0.escape_ascii()),
        }
    }
}

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadName {
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// It begins with `/`.
    #[error("it is absolute")]
    Absolute,
    /// It has a component `..`.
    #[error("it leads upwards")]
    Upwards,
    /// Two `/` in a row.
    #[error("it has an empty part")]
    EmptyPart,
    /// It holds a byte that ends a path.
    #[error("it has a zero byte")]
    Zero,
    /// It, or one of its components, is too long.
    #[error("it is too long")]
    TooLong,
    /// It is to be one component and is not.
    #[error("it has more than one part")]
    Parts,
    /// It does not begin as the first path of the stream.
    #[error("it is not below the first entry of the stream")]
    Stray,
}

/// The path without its `.` components and without a `/` at its end; empty for the folder itself.
pub(crate) fn clean(path: &[u8]) -> Result<Vec<u8>, BadName> {
    if path.is_empty() {
        return Err(BadName::Empty);
    }
    if path.len() > MAX_PATH {
        return Err(BadName::TooLong);
    }
    if path.contains(&0) {
        return Err(BadName::Zero);
    }
    if path.starts_with(b"/") {
        return Err(BadName::Absolute);
    }
    let mut out = Vec::with_capacity(path.len());
    for part in path.strip_suffix(b"/").unwrap_or(path).split(|byte| *byte == b'/') {
        match part {
            b"" => return Err(BadName::EmptyPart),
            b".." => return Err(BadName::Upwards),
            b"." => {}
            _ if part.len() > MAX_COMPONENT => return Err(BadName::TooLong),
            _ => join(&mut out, part),
        }
    }
    Ok(out)
}

/// Checks that these bytes name something directly in a folder.
pub(crate) fn component(name: &[u8]) -> Result<(), BadName> {
    match clean(name)? {
        cleaned if cleaned.is_empty() => Err(BadName::Empty),
        cleaned if cleaned != name || name.contains(&b'/') => Err(BadName::Parts),
        _ => Ok(()),
    }
}

/// Adds a component to a path.
pub(crate) fn join(path: &mut Vec<u8>, part: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(part);
}

/// The parent of a cleaned path, and the name in it; both are empty for the folder itself.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (&[], path),
    }
}

/// True when a cleaned path is the other one or below it.
pub(crate) fn is_in(path: &[u8], folder: &[u8]) -> bool {
    folder.is_empty()
        || path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_below_by_its_look_is_a_name() {
        for (path, expected) in [
            (&b"a/b"[..], Ok(&b"a/b"[..])),
            (b"./a/./b/", Ok(b"a/b")),
            (b".", Ok(b"")),
            (b"./", Ok(b"")),
            (b"...", Ok(b"...")),
            (b"a/..b", Ok(b"a/..b")),
            (b"\xff\n", Ok(b"\xff\n")),
            (b"", Err(BadName::Empty)),
            (b"/", Err(BadName::Absolute)),
            (b"/a", Err(BadName::Absolute)),
            (b"..", Err(BadName::Upwards)),
            (b"a/..", Err(BadName::Upwards)),
            (b"a/../b", Err(BadName::Upwards)),
            (b"./../a", Err(BadName::Upwards)),
            (b"a//b", Err(BadName::EmptyPart)),
            (b"a//", Err(BadName::EmptyPart)),
            (b"a\0b", Err(BadName::Zero)),
        ] {
            assert_eq!(clean(path), expected.map(<[u8]>::to_vec), "{}", path.escape_ascii());
        }
        assert_eq!(clean(&[b'a'; 256]), Err(BadName::TooLong));
        assert_eq!(clean(&b"a/".repeat(2049)), Err(BadName::TooLong));
    }

    #[test]
    fn a_component_is_one_plain_name() {
        assert_eq!(component(b"a"), Ok(()));
        for name in [&b""[..], b".", b"..", b"a/", b"a/b", b"/", b"./a", b"a\0"] {
            assert!(component(name).is_err(), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn what_is_shown_is_short_and_on_one_line() {
        assert_eq!(Escaped::new(b"a\n\x1b").to_string(), r"'a\n\x1b'");
        let shown = Escaped::new(&[b'x'; 4096]).to_string();
        assert_eq!((shown.len(), shown.ends_with("...'")), (256 + 5, true));
        assert!(is_in(b"a/b", b"a") && is_in(b"a", b"a") && is_in(b"a", b"") && !is_in(b"ab", b"a"));
        assert_eq!((split(b"a/b/c"), split(b"a")), ((&b"a/b"[..], &b"c"[..]), (&b""[..], &b"a"[..])));
    }
}
