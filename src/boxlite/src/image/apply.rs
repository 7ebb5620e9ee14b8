//! Applies the entries of one layer to the tree of an image.
//!
//! Names mean what they mean to `umoci` and containerd, which unpack into a folder:
//!
//! * paths are taken from the image's root, `.` and `..` resolved by text, so `../x` and `/x` are `x`;
//! * symbolic links *in* a path are followed within the image: an absolute target begins at its root, and `..` does not
//!   lead out of it. The last part of a path is never followed;
//! * folders that are missing are made, owned by root, mode 0755;
//! * what is there is replaced, except that a folder keeps what is in it when it is described again;
//! * a file of a lower layer that stands where a folder is needed gives way to it, as in an overlay; one of the same layer
//!   is an error;
//! * `.wh.NAME` hides NAME of lower layers, `.wh..wh..opq` all that lower layers have in its folder; what the same layer
//!   brings stays, wherever it stands;
//! * a hard link brings no mode or owner of its own;
//! * attributes that mean something to the machine that made the image, not to the image, are left out.
//!
//! Sets what is resolved against what is in memory only: no name here ever reaches the host's file system.

use crate::erofs::{
    self, Ino, Kind as NodeKind, Meta, NAME_MAX, Node, Tree, TreeError, Writer, WriterError, Xattrs,
};

use super::error::{EntryError, LayerError, shown};
use super::limits::Limits;
use super::tar::{Entry, Kind, Source, TarReader};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Marks of AUFS, which Docker used long ago; nothing of them belongs to the image.
const AUFS: &[u8] = b".wh..wh.";
/// Symbolic links followed in one path, as many as Linux does.
const LINKS_MAX: usize = 40;
/// Steps of one path, with those of all links in it.
const STEPS_MAX: usize = 2048;

/// What was left out of an image.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Skipped {
    /// Attributes that Linux could not store either, or that are none of the image's business.
    pub(super) xattrs: u64,
}

/// Applies all entries of a layer.
pub(super) fn apply<S: Source<Error = LayerError>>(
    tar: &mut TarReader<S>,
    writer: &mut Writer,
    limits: &Limits,
    entries: &mut u64,
    skipped: &mut Skipped,
) -> Result<(), LayerError> {
    while let Some(entry) = tar.next()? {
        *entries += 1;
        if *entries > limits.entries {
            return Err(LayerError::Limit { what: "entries", limit: limits.entries });
        }
        let named = |error| match error {
            Failure::Entry(source) => LayerError::Entry { entry: shown(&entry.path), source },
            Failure::Layer(error) => error,
        };
        one(tar, writer, limits, &entry, skipped).map_err(named)?;
    }
    Ok(())
}

/// What goes wrong with an entry concerns it alone, or all.
enum Failure {
    Entry(EntryError),
    Layer(LayerError),
}

impl From<EntryError> for Failure {
    fn from(error: EntryError) -> Self {
        Self::Entry(error)
    }
}

impl From<LayerError> for Failure {
    fn from(error: LayerError) -> Self {
        Self::Layer(error)
    }
}

impl From<TreeError> for Failure {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Entries(limit) => Self::Layer(LayerError::Limit { what: "entries", limit }),
            TreeError::Memory(limit) => {
                Self::Layer(LayerError::Limit { what: "bytes of memory for names and attributes", limit })
            }
            TreeError::NameTooLong(_) | TreeError::BadName => Self::Entry(EntryError::Name),
            TreeError::BadTarget => Self::Entry(EntryError::Target),
        }
    }
}

impl From<WriterError> for Failure {
    fn from(error: WriterError) -> Self {
        Self::Layer(write_error(error))
    }
}

pub(super) fn write_error(error: WriterError) -> LayerError {
    match error {
        WriterError::Io(error) => LayerError::Write(error),
        WriterError::TooLarge => LayerError::Limit { what: "bytes of disk", limit: 1 << 44 },
    }
}

fn one<S: Source<Error = LayerError>>(
    tar: &mut TarReader<S>,
    writer: &mut Writer,
    limits: &Limits,
    entry: &Entry,
    skipped: &mut Skipped,
) -> Result<(), Failure> {
    let path = parts(&entry.path, limits)?;
    if path.iter().any(|part| part.starts_with(AUFS) && *part != OPAQUE) {
        return Ok(());
    }
    let Some((&name, folders)) = path.split_last() else {
        return root(writer, limits, entry, skipped);
    };
    if folders.iter().any(|part| part.starts_with(WHITEOUT)) {
        return Err(EntryError::Whiteout.into());
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        return whiteout(writer.tree(), folders, name, hidden);
    }
    if entry.kind == Kind::HardLink {
        return hard_link(writer.tree(), limits, folders, name, entry);
    }
    let meta = meta(entry)?;
    let xattrs = xattrs(entry, limits, skipped)?;
    let node = match entry.kind {
        Kind::Dir => {
            let dir = make_folders(writer.tree(), folders)?;
            writer.tree().put_dir(dir, name, meta, &xattrs)?;
            return Ok(());
        }
        Kind::File => {
            tar.contents(|piece| writer.append(piece).map_err(write_error))?;
            Node::File(writer.end_file(&xattrs)?)
        }
        Kind::Symlink => Node::Symlink(&entry.target),
        Kind::Char => Node::Char(device(entry)?),
        Kind::Block => Node::Block(device(entry)?),
        Kind::Fifo => Node::Fifo,
        Kind::HardLink => unreachable!("hard links were taken care of"),
    };
    let dir = make_folders(writer.tree(), folders)?;
    writer.tree().put(dir, name, meta, &xattrs, node)?;
    Ok(())
}

/// An entry for the root folder itself.
fn root(writer: &mut Writer, limits: &Limits, entry: &Entry, skipped: &mut Skipped) -> Result<(), Failure> {
    if entry.kind != Kind::Dir {
        return Err(EntryError::Root.into());
    }
    let (meta, xattrs) = (meta(entry)?, xattrs(entry, limits, skipped)?);
    writer.tree().describe(Tree::ROOT, meta, &xattrs)?;
    Ok(())
}

fn whiteout(tree: &mut Tree, folders: &[&[u8]], name: &[u8], hidden: &[u8]) -> Result<(), Failure> {
    let Some(dir) = find_folder(tree, folders)? else { return Ok(()) };
    if name == OPAQUE {
        tree.opaque(dir);
        return Ok(());
    }
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(EntryError::Whiteout.into());
    }
    tree.whiteout(dir, hidden);
    Ok(())
}

fn hard_link(
    tree: &mut Tree,
    limits: &Limits,
    folders: &[&[u8]],
    name: &[u8],
    entry: &Entry,
) -> Result<(), Failure> {
    let target = parts(&entry.target, limits)?;
    let (last, before) = target.split_last().ok_or(EntryError::LinkToDirectory)?;
    let found = match find_folder(tree, before)? {
        Some(dir) => tree.lookup(dir, last),
        None => None,
    };
    let target = found.ok_or(EntryError::LinkTarget)?;
    if tree.kind(target) == NodeKind::Dir {
        return Err(EntryError::LinkToDirectory.into());
    }
    let dir = make_folders(tree, folders)?;
    // A file that was packed twice links to itself the second time. Making folders may also have replaced the target,
    // when that was a file of a lower layer in the way.
    match find_folder(tree, before)?.and_then(|dir| tree.lookup(dir, last)) {
        Some(still) if still == target => tree.link(dir, name, target)?,
        _ => return Err(EntryError::LinkTarget.into()),
    }
    Ok(())
}

/// The parts of a path from the image's root, without `.` and `..`.
fn parts<'a>(path: &'a [u8], limits: &Limits) -> Result<Vec<&'a [u8]>, EntryError> {
    if path.len() > limits.path {
        return Err(EntryError::Limit { what: "path", limit: limits.path as u64 });
    }
    let mut parts = Vec::with_capacity(16);
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    if parts.len() > limits.depth {
        return Err(EntryError::Limit { what: "depth", limit: limits.depth as u64 });
    }
    if parts.iter().any(|part| part.len() > NAME_MAX || part.contains(&0)) {
        return Err(EntryError::Name);
    }
    Ok(parts)
}

/// The folder at a path; nothing when it does not exist.
fn find_folder(tree: &Tree, path: &[&[u8]]) -> Result<Option<Ino>, EntryError> {
    let mut walk = Walk::new(path);
    while let Some(part) = walk.next()? {
        let Some(next) = tree.lookup(walk.at, &part) else { return Ok(None) };
        match tree.kind(next) {
            NodeKind::Dir => walk.at = next,
            NodeKind::Symlink => walk.follow(tree, next)?,
            _ => return Ok(None),
        }
        walk.up(tree);
    }
    Ok(Some(walk.at))
}

/// The folder at a path; what is missing of it is made.
fn make_folders(tree: &mut Tree, path: &[&[u8]]) -> Result<Ino, Failure> {
    // Nearly always all of it is there and nothing is a link.
    let mut at = Tree::ROOT;
    let plain = path.iter().all(|part| match tree.lookup(at, part) {
        Some(next) if tree.kind(next) == NodeKind::Dir => {
            at = next;
            true
        }
        _ => false,
    });
    if plain {
        return Ok(at);
    }
    let mut walk = Walk::new(path);
    while let Some(part) = walk.next()? {
        match tree.lookup(walk.at, &part).map(|next| (next, tree.kind(next))) {
            Some((next, NodeKind::Dir)) => walk.at = next,
            Some((next, NodeKind::Symlink)) => walk.follow(tree, next)?,
            Some(_) if tree.is_of_this_layer(walk.at, &part) => {
                return Err(EntryError::NotADirectory { depth: walk.todo.len() + 1 }.into());
            }
            _ => walk.at = tree.imply_dir(walk.at, &part)?,
        }
        walk.up(tree);
    }
    Ok(walk.at)
}

/// A walk along a path, with its symbolic links.
struct Walk {
    at: Ino,
    /// Parts that are to come, the next one last.
    todo: Vec<Vec<u8>>,
    links: usize,
    steps: usize,
}

impl Walk {
    fn new(path: &[&[u8]]) -> Self {
        let todo = path.iter().rev().map(|part| part.to_vec()).collect();
        Self { at: Tree::ROOT, todo, links: 0, steps: 0 }
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>, EntryError> {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Err(EntryError::Loop);
        }
        Ok(self.todo.pop())
    }

    /// Goes on with the target of a link.
    fn follow(&mut self, tree: &Tree, link: Ino) -> Result<(), EntryError> {
        self.links += 1;
        let target = tree.target(link).unwrap_or_default();
        if self.links > LINKS_MAX {
            return Err(EntryError::Loop);
        }
        if target.starts_with(b"/") {
            self.at = Tree::ROOT;
        }
        let parts = target.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
        self.todo.extend(parts.rev().map(<[u8]>::to_vec));
        if self.todo.iter().any(|part| part.len() > NAME_MAX) {
            return Err(EntryError::Name);
        }
        Ok(())
    }

    /// Takes the `..` that come next; at the root they lead nowhere.
    fn up(&mut self, tree: &Tree) {
        while self.todo.last().is_some_and(|part| part == b"..") {
            self.todo.pop();
            self.steps += 1;
            self.at = tree.parent(self.at);
        }
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

fn xattrs(entry: &Entry, limits: &Limits, skipped: &mut Skipped) -> Result<Xattrs, EntryError> {
    if entry.xattrs.is_empty() {
        return Ok(Xattrs::default());
    }
    let size: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    if size > limits.xattrs {
        return Err(EntryError::Limit { what: "extended attributes", limit: limits.xattrs as u64 });
    }
    let kept = entry.xattrs.iter().filter(|(name, _)| belongs(name));
    skipped.xattrs += entry.xattrs.iter().filter(|(name, _)| !belongs(name)).count() as u64;
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
