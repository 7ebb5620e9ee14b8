//! Converts one layer: contents go into the image at once, all else into a draft that waits for its turn.
//!
//! Whatever can be said of an entry without the layers beneath is said here. Attributes that mean something to the machine
//! that made the image, not to the image, are left out.

use std::io::Read;

use crate::erofs::{self, Contents, Meta, WriterError, Xattrs};

use super::apply::{self, AUFS, Failure, OPAQUE, WHITEOUT};
use super::budget::Budget;
use super::draft::{Change, Draft, Finished, Step};
use super::error::{EntryError, LayerError};
use super::stream::{Stream, Totals};
use super::tar::{Entry, Kind, Source, TarReader};

/// A layer that was read to its end.
#[derive(Debug)]
pub(super) struct Converted {
    pub(super) steps: Finished,
    pub(super) totals: Totals,
    /// Extended attributes that were left out, as Linux could not store them either, or as they are none of the image's
    /// business.
    pub(super) skipped_xattrs: u64,
}

/// Converts the layer in `blob`. `told` is told after each piece how many bytes of it there were, and ends this with an
/// error.
pub(super) fn convert(
    blob: Box<dyn Read + Send>,
    blob_size: Option<u64>,
    contents: &mut Contents,
    budget: &Budget<'_>,
    told: &mut dyn FnMut(u64) -> Result<(), LayerError>,
) -> Result<Converted, LayerError> {
    let mut draft = Draft::new(contents.spool());
    let mut skipped_xattrs = 0;
    let totals = std::thread::scope(|scope| {
        let stream = Stream::start(scope, blob, blob_size, budget, told)?;
        let mut tar = TarReader::new(stream);
        while let Some(entry) = tar.next()? {
            budget.entry()?;
            let step = one(&mut tar, contents, budget, entry, &mut skipped_xattrs)?;
            if let Some(step) = step {
                budget.spool(draft.push(&step).map_err(LayerError::Write)?)?;
            }
        }
        tar.into_source().finish()
    })?;
    contents.sync().map_err(write_error)?;
    Ok(Converted { steps: draft.finish().map_err(LayerError::Write)?, totals, skipped_xattrs })
}

fn one<S: Source<Error = LayerError>>(
    tar: &mut TarReader<S>,
    contents: &mut Contents,
    budget: &Budget<'_>,
    entry: Entry,
    skipped: &mut u64,
) -> Result<Option<Step>, LayerError> {
    let change = match look(tar, contents, budget, &entry, skipped) {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(None),
        Err(failure) => return Err(failure.named(&entry.path)),
    };
    let (change, meta, xattrs) = change;
    let Entry { path, target, .. } = entry;
    let target = if matches!(change, Change::HardLink | Change::Symlink) { target } else { Vec::new() };
    Ok(Some(Step { change, path, target, meta, xattrs }))
}

/// What an entry does, and its contents written; nothing for entries that mean nothing.
fn look<S: Source<Error = LayerError>>(
    tar: &mut TarReader<S>,
    contents: &mut Contents,
    budget: &Budget<'_>,
    entry: &Entry,
    skipped: &mut u64,
) -> Result<Option<(Change, Meta, Xattrs)>, Failure> {
    let path = apply::parts(&entry.path, budget.limits)?;
    if path.iter().any(|part| part.starts_with(AUFS) && *part != OPAQUE) {
        return Ok(None);
    }
    match path.split_last() {
        None if entry.kind != Kind::Dir => return Err(EntryError::Root.into()),
        Some((_, folders)) if folders.iter().any(|part| part.starts_with(WHITEOUT)) => {
            return Err(EntryError::Whiteout.into());
        }
        Some((name, _)) if name.starts_with(WHITEOUT) => {
            return Ok(Some((Change::Whiteout, Meta::IMPLIED, Xattrs::default())));
        }
        _ => {}
    }
    if entry.kind == Kind::HardLink {
        return Ok(Some((Change::HardLink, Meta::IMPLIED, Xattrs::default())));
    }
    let meta = meta(entry)?;
    let xattrs = xattrs(entry, budget, skipped)?;
    let change = match entry.kind {
        Kind::Dir => Change::Dir,
        Kind::File => {
            contents.begin(entry.size, &xattrs).map_err(write_error)?;
            tar.contents(|piece| contents.append(piece).map_err(write_error))?;
            Change::File(contents.end().map_err(write_error)?)
        }
        Kind::Symlink => Change::Symlink,
        Kind::Char => Change::Char(device(entry)?),
        Kind::Block => Change::Block(device(entry)?),
        Kind::Fifo => Change::Fifo,
        Kind::HardLink => unreachable!("hard links were taken care of"),
    };
    Ok(Some((change, meta, xattrs)))
}

fn write_error(error: WriterError) -> LayerError {
    match error {
        WriterError::Io(error) => LayerError::Write(error),
        WriterError::TooLarge => LayerError::Limit { what: "bytes of disk", limit: 1 << 44 },
        WriterError::Size => LayerError::Write(std::io::Error::other(error)),
    }
}

fn meta(entry: &Entry) -> Result<Meta, EntryError> {
    Ok(Meta {
        // Permissions of symbolic links mean nothing, and Linux always shows them like this.
        mode: if entry.kind == Kind::Symlink { 0o777 } else { entry.mode },
        uid: u32::try_from(entry.uid).map_err(|_| EntryError::Owner)?,
        gid: u32::try_from(entry.gid).map_err(|_| EntryError::Owner)?,
        mtime: entry.mtime,
        mtime_ns: entry.mtime_ns,
    })
}

fn device(entry: &Entry) -> Result<u32, EntryError> {
    erofs::device(entry.major, entry.minor).ok_or(EntryError::Device)
}

fn xattrs(entry: &Entry, budget: &Budget<'_>, skipped: &mut u64) -> Result<Xattrs, EntryError> {
    if entry.xattrs.is_empty() {
        return Ok(Xattrs::default());
    }
    let size: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    let limit = budget.limits.xattrs;
    if size > limit {
        return Err(EntryError::Limit { what: "extended attributes", limit: limit as u64 });
    }
    let kept = entry.xattrs.iter().filter(|(name, _)| belongs(name));
    *skipped += entry.xattrs.iter().filter(|(name, _)| !belongs(name)).count() as u64;
    Xattrs::new(kept.map(|(name, value)| (name.as_slice(), value.as_slice()))).map_err(|_| EntryError::Xattrs)
}

/// Whether an attribute is part of an image. SELinux labels are the builder's policy, and attributes of overlayfs would
/// speak to the overlay that the guest lays over the image.
fn belongs(name: &[u8]) -> bool {
    Xattrs::can_hold(name)
        && name != b"security.selinux"
        && !name.starts_with(b"trusted.overlay.")
        && !name.starts_with(b"user.overlay.")
}
