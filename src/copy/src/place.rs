//! Where a copy goes: the rules of `docker cp`.

use std::ffi::{OsStr, OsString};

use crate::root::Root;
use crate::source::Kind;

/// What is at the place that a copy is to go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Nothing, in a folder that is there.
    Missing,
    /// A folder.
    Folder,
    /// Anything else.
    File,
}

/// What is copied.
#[derive(Clone, Copy, Debug)]
pub struct Copied<'a> {
    /// What it is.
    pub kind: Kind,
    /// Its name, if it has one.
    pub name: Option<&'a OsStr>,
    /// What is in a folder, not the folder.
    pub contents: bool,
}

/// Where the first entry of the stream goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Into the destination, which is a folder.
    Into(Root),
    /// In the place of the destination, under its own name.
    As,
}

/// Why a copy has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// A folder was asked for that is not there.
    #[error("the destination folder does not exist")]
    NoFolder,
    /// A folder was asked for, and a file is there.
    #[error("the destination is no folder")]
    NoFolderThere,
    /// A folder cannot take the place of a file.
    #[error("a folder cannot be copied over a file")]
    FolderOverFile,
    /// What is copied has no name to go under.
    #[error("what is copied has no name: name the destination")]
    NoName,
}

/// Decides. `slash`: the destination was written with `/` at its end.
///
/// # Errors
/// When there is no place.
pub fn place(there: Destination, slash: bool, copied: Copied<'_>) -> Result<Placement, PlaceError> {
    let folder = copied.kind == Kind::Folder;
    match there {
        Destination::Missing if slash && !folder => Err(PlaceError::NoFolder),
        Destination::File if folder => Err(PlaceError::FolderOverFile),
        Destination::File if slash => Err(PlaceError::NoFolderThere),
        Destination::Missing | Destination::File => Ok(Placement::As),
        Destination::Folder if copied.contents => Ok(Placement::Into(Root::Contents)),
        Destination::Folder => {
            let name: OsString = copied.name.ok_or(PlaceError::NoName)?.to_owned();
            Ok(Placement::Into(Root::Named(name)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_go_where_docker_puts_them() {
        use Destination as D;
        let into = |name: &str| Ok(Placement::Into(Root::Named(name.into())));
        let file = Copied { kind: Kind::File, name: Some(OsStr::new("f")), contents: false };
        let link = Copied { kind: Kind::Symlink, ..file };
        let folder = Copied { kind: Kind::Folder, name: Some(OsStr::new("d")), contents: false };
        let contents = Copied { contents: true, ..folder };
        let nameless = Copied { name: None, ..folder };
        for (there, slash, copied, expected) in [
            (D::Missing, false, file, Ok(Placement::As)),
            (D::Missing, true, file, Err(PlaceError::NoFolder)),
            (D::File, false, file, Ok(Placement::As)),
            (D::File, true, file, Err(PlaceError::NoFolderThere)),
            (D::Folder, false, file, into("f")),
            (D::Folder, true, link, into("f")),
            (D::Missing, false, link, Ok(Placement::As)),
            (D::Missing, false, folder, Ok(Placement::As)),
            (D::Missing, true, folder, Ok(Placement::As)),
            (D::Missing, false, contents, Ok(Placement::As)),
            (D::File, false, folder, Err(PlaceError::FolderOverFile)),
            (D::File, false, contents, Err(PlaceError::FolderOverFile)),
            (D::Folder, false, folder, into("d")),
            (D::Folder, true, folder, into("d")),
            (D::Folder, false, contents, Ok(Placement::Into(Root::Contents))),
            (D::Folder, false, nameless, Err(PlaceError::NoName)),
        ] {
            assert_eq!(place(there, slash, copied), expected, "{there:?} {slash} {copied:?}");
        }
    }
}
