//! Under which name the first entry of a stream goes, and all that is below it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use crate::name::{self, BadName};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// Under this name. Packing, the stream begins with it; unpacking, it takes the place of the stream's own, so that
    /// the name is never the choice of who sends the stream.
    Named(OsString),
    /// The content of a folder alone. Packing, the stream begins with `./`; unpacking, its paths stay as they are.
    Contents,
}

/// Gives the paths of one stream the name that was chosen.
#[derive(Debug)]
pub(crate) struct Renaming<'a> {
    /// `None` to leave the paths as they are.
    to: Option<&'a [u8]>,
    /// The first component of the stream's first path; empty for a stream of contents.
    from: Option<Vec<u8>>,
}

impl<'a> Renaming<'a> {
    pub(crate) fn new(root: &'a Root) -> Result<Self, BadName> {
        let to = match root {
            Root::Named(name) => Some(name.as_bytes()),
            Root::Contents => None,
        };
        to.map(name::component).transpose()?;
        Ok(Self { to, from: None })
    }

    /// Where an entry, or what it links to, belongs.
    pub(crate) fn apply(&mut self, path: &[u8]) -> Result<Vec<u8>, BadName> {
        let path = name::clean(path)?;
        let Some(to) = self.to else { return Ok(path) };
        let from = self
            .from
            .get_or_insert_with(|| path.split(|byte| *byte == b'/').next().unwrap_or_default().to_vec());
        if !name::is_in(&path, from) {
            return Err(BadName::Stray);
        }
        let below = path.get(from.len()..).unwrap_or_default();
        let mut renamed = to.to_vec();
        if !below.is_empty() {
            name::join(&mut renamed, below.strip_prefix(b"/").unwrap_or(below));
        }
        if renamed.len() > crate::MAX_PATH { Err(BadName::TooLong) } else { Ok(renamed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renamed(root: &Root, paths: &[&str]) -> Result<Vec<String>, BadName> {
        let mut renaming = Renaming::new(root)?;
        paths.iter().map(|path| Ok(String::from_utf8(renaming.apply(path.as_bytes())?).unwrap())).collect()
    }

    #[test]
    fn the_first_component_of_the_first_path_is_replaced_everywhere() {
        let root = Root::Named("new".into());
        assert_eq!(renamed(&root, &["old/", "old/a", "./old/b/c"]).unwrap(), ["new", "new/a", "new/b/c"]);
        assert_eq!(renamed(&root, &["./", "./a", "b/c"]).unwrap(), ["new", "new/a", "new/b/c"]);
        assert_eq!(renamed(&Root::Contents, &["./", "a/b"]).unwrap(), ["", "a/b"]);
        assert_eq!(renamed(&root, &["old", "older"]), Err(BadName::Stray));
        assert_eq!(renamed(&root, &["old", "."]), Err(BadName::Stray));
    }

    #[test]
    fn a_name_that_is_no_component_is_refused() {
        for name in ["", ".", "..", "a/b", "/a", "a/"] {
            assert!(renamed(&Root::Named(name.into()), &["a"]).is_err(), "{name:?}");
        }
    }
}
