//! Trees of files for bulk transfers: packed, and unpacked into their place.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use boxlite_copy::{
    Copied, Kind, Owner, PackError, PackOptions, Root, Source, Summary, Target, UnpackError, UnpackOptions,
    unpack,
};
use boxlite_portal::v1::{FileKind, PackRequest, TransferInfo, TransferResult, UnpackRequest};

use super::error::{self, FileError};
use super::path::BoxPath;
use crate::agent::Running;
use crate::console;

/// The name in a stream of a tree that has none of its own. Whoever unpacks gives it one.
const NAMELESS: &str = "root";

/// A tree that was found and is yet to be packed.
#[derive(Debug)]
pub struct Tree {
    source: Source,
    root: Root,
}

/// Finds what is to be packed.
///
/// # Errors
/// When nothing is there.
pub fn open(request: &PackRequest) -> Result<(Tree, TransferInfo), FileError> {
    let path = BoxPath::new(request.path.clone())?;
    let source = Source::open(path.as_path(), request.follow_symlinks)
        .map_err(|error| FileError::new(error::kind_of(&error.source), console::chain(&error)))?;
    let kind = match source.kind() {
        Kind::File => FileKind::File,
        Kind::Folder => FileKind::Folder,
        Kind::Symlink => FileKind::Symlink,
        Kind::Other => FileKind::Special,
    };
    let root = match source.name() {
        _ if source.is_contents() => Root::Contents,
        Some(name) => Root::Named(name.to_owned()),
        None => Root::Named(NAMELESS.into()),
    };
    let info = TransferInfo {
        kind: kind.into(),
        name: source.name().map(|name| name.as_bytes().to_vec()).unwrap_or_default(),
        contents: source.is_contents(),
        size: source.size_hint(),
    };
    Ok((Tree { source, root }, info))
}

impl Tree {
    /// Packs it.
    ///
    /// # Errors
    /// When a part of it cannot be read, or the stream fails.
    pub fn pack(self, out: &mut dyn Write) -> Result<TransferResult, FileError> {
        let options = PackOptions { keep_xattrs: true, devices: false };
        let packed = self.source.pack(&self.root, options, out, &mut |_| {});
        packed.map(told).map_err(|error| {
            let kind = match &error {
                PackError::Read { source, .. } => error::kind_of(source),
                _ => error::Kind::Other,
            };
            FileError::new(kind, console::chain(&error))
        })
    }
}

/// A place that was found for a tree.
#[derive(Debug)]
pub struct Place {
    folder: OwnedFd,
    root: Root,
    options: UnpackOptions,
}

/// Finds the place for what is to be unpacked.
///
/// # Errors
/// When there is none.
pub fn place(request: &UnpackRequest, running: &Running) -> Result<Place, FileError> {
    let path = BoxPath::new(request.path.clone())?;
    let owner = if request.keep_owner {
        Owner::Keep
    } else {
        let (uid, gid) = running.owner(&request.owner)?;
        Owner::Fixed(uid, gid)
    };
    let mut options = UnpackOptions {
        owner,
        overwrite: !request.keep_existing,
        special_bits: true,
        // The memory of a box is its commands'.
        direct: true,
        ..UnpackOptions::default()
    };
    let failed = |error: boxlite_copy::TargetError| {
        let kind = match &error {
            boxlite_copy::TargetError::Open { source, .. } => error::kind_of(source),
            _ => error::Kind::WrongKind,
        };
        FileError::new(kind, console::chain(&error))
    };
    if request.archive {
        let folder = Target::open_folder(path.as_path()).map_err(failed)?;
        return Ok(Place { folder, root: Root::Contents, options });
    }
    let kind = match request.kind() {
        FileKind::File => Kind::File,
        FileKind::Folder => Kind::Folder,
        FileKind::Symlink => Kind::Symlink,
        FileKind::Special | FileKind::Unspecified => Kind::Other,
    };
    let name = (!request.name.is_empty()).then(|| OsStr::from_bytes(&request.name));
    let target = Target::open(path.as_path()).map_err(failed)?;
    let (folder, root) = target.place(Copied { kind, name, contents: request.contents }).map_err(failed)?;
    options.kind = (root != Root::Contents).then_some(kind);
    let folder = folder.try_clone_to_owned().map_err(super::entry::system("open", &path))?;
    Ok(Place { folder, root, options })
}

impl Place {
    /// Unpacks there what comes.
    ///
    /// # Errors
    /// When the stream is refused, or the system would not.
    pub fn unpack(self, data: &mut dyn Read) -> Result<TransferResult, FileError> {
        let unpacked = unpack(self.folder.as_fd(), &self.root, self.options, data, &mut |_| {});
        unpacked.map(told).map_err(|error| {
            let kind = match &error {
                UnpackError::Write { source, .. } => error::kind_of(source),
                UnpackError::Exists(_) => error::Kind::AlreadyExists,
                UnpackError::Kind(_) | UnpackError::NoFolder(_) => error::Kind::WrongKind,
                _ => error::Kind::Invalid,
            };
            FileError::new(kind, console::chain(&error))
        })
    }
}

fn told(summary: Summary) -> TransferResult {
    TransferResult {
        failure: None,
        entries: summary.entries,
        bytes: summary.bytes,
        skipped_sockets: summary.skipped.sockets,
        skipped_devices: summary.skipped.devices,
        skipped_xattrs: summary.skipped.xattrs,
        changed: summary.shrunk + summary.skipped.vanished,
    }
}
