//! Applies the draft of one layer to the tree of an image, once all layers beneath it have been.
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
//! * a hard link brings no mode or owner of its own.
//!
//! Sets what is resolved against what is in memory only: no name here ever reaches the host's file system.

use crate::erofs::{Ino, Kind as NodeKind, NAME_MAX, Node, Tree, TreeError};

use super::draft::{Change, Step, Steps};
use super::error::{Cancelled, EntryError, LayerError, shown};
use super::limits::Limits;

pub(super) const WHITEOUT: &[u8] = b".wh.";
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";
/// Marks of AUFS, which Docker used long ago; nothing of them belongs to the image.
pub(super) const AUFS: &[u8] = b".wh..wh.";
/// Symbolic links followed in one path, as many as Linux does.
const LINKS_MAX: usize = 40;
/// Entries between two questions whether to go on.
const LOOK: u32 = 4096;
/// Steps of one path, with those of all links in it.
const STEPS_MAX: usize = 2048;

/// Applies all steps of a layer. `going` is asked now and then whether to go on.
pub(super) fn apply(
    steps: &mut Steps,
    tree: &mut Tree,
    limits: &Limits,
    going: &mut dyn FnMut() -> Result<(), Cancelled>,
) -> Result<(), LayerError> {
    let mut count = 0u32;
    while let Some(step) = steps.next().map_err(LayerError::Write)? {
        one(tree, limits, &step).map_err(|failure| failure.named(&step.path))?;
        count = count.wrapping_add(1);
        if count.is_multiple_of(LOOK) {
            going()?;
        }
    }
    Ok(())
}

/// What goes wrong with an entry concerns it alone, or all.
pub(super) enum Failure {
    Entry(EntryError),
    Layer(LayerError),
}

impl Failure {
    /// The error, once it is known which entry has it.
    pub(super) fn named(self, path: &[u8]) -> LayerError {
        match self {
            Self::Entry(source) => LayerError::Entry { entry: shown(path), source },
            Self::Layer(error) => error,
        }
    }
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

fn one(tree: &mut Tree, limits: &Limits, step: &Step) -> Result<(), Failure> {
    let path = parts(&step.path, limits)?;
    let (meta, xattrs) = (step.meta, &step.xattrs);
    let Some((&name, folders)) = path.split_last() else {
        tree.describe(Tree::ROOT, meta, xattrs)?;
        return Ok(());
    };
    let node = match step.change {
        Change::Whiteout => return whiteout(tree, folders, name),
        Change::HardLink => return hard_link(tree, limits, folders, name, &step.target),
        Change::Dir => {
            let dir = make_folders(tree, folders)?;
            tree.put_dir(dir, name, meta, xattrs)?;
            return Ok(());
        }
        Change::File(extent) => Node::File(extent),
        Change::Symlink => Node::Symlink(&step.target),
        Change::Char(device) => Node::Char(device),
        Change::Block(device) => Node::Block(device),
        Change::Fifo => Node::Fifo,
    };
    let dir = make_folders(tree, folders)?;
    tree.put(dir, name, meta, xattrs, node)?;
    Ok(())
}

fn whiteout(tree: &mut Tree, folders: &[&[u8]], name: &[u8]) -> Result<(), Failure> {
    let Some(dir) = find_folder(tree, folders)? else { return Ok(()) };
    if name == OPAQUE {
        tree.opaque(dir);
        return Ok(());
    }
    match name.strip_prefix(WHITEOUT) {
        None | Some(b"" | b"." | b"..") => return Err(EntryError::Whiteout.into()),
        Some(hidden) => tree.whiteout(dir, hidden),
    };
    Ok(())
}

fn hard_link(
    tree: &mut Tree,
    limits: &Limits,
    folders: &[&[u8]],
    name: &[u8],
    target: &[u8],
) -> Result<(), Failure> {
    let target = parts(target, limits)?;
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
pub(super) fn parts<'a>(path: &'a [u8], limits: &Limits) -> Result<Vec<&'a [u8]>, EntryError> {
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
