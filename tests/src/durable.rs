//! What of a folder has reached the disk: a model of what a loss of power leaves.
//!
//! ```text
//!   what is promised                            by
//!   the contents of a file                      a sync of the file
//!   the names in a folder                       a sync of the folder
//!   a rename, in both folders or in neither     a sync of either
//! ```
//!
//! A sync of a new file promises nothing about its name: ext4 writes the name along, POSIX does not say so, and what needs
//! no such gift is right on every file system. Whatever was not promised may have reached the disk all the same, so there
//! are several ways to lose it: see [`Loss`]. Permissions and times are not in the model.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Everything below a folder, by its path from there. Folders come before what is in them.
pub type Tree = BTreeMap<PathBuf, Entry>;

/// Something that has a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    /// A folder.
    Folder,
    /// A file and its contents.
    File(Vec<u8>),
    /// A symbolic link and where it leads.
    Link(PathBuf),
}

/// Reads what lies below a folder, except what is left out and what is neither file, folder nor link: that has nothing
/// that could be lost.
///
/// # Errors
/// When something cannot be read.
pub fn read_tree(folder: &Path, leave_out: impl Fn(&Path) -> bool) -> io::Result<Tree> {
    let (mut tree, mut open) = (Tree::new(), vec![folder.to_owned()]);
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next)? {
            let (entry, path) = entry.map(|entry| (entry.file_type(), entry.path()))?;
            let kind = entry?;
            let name = path.strip_prefix(folder).map_err(io::Error::other)?.to_owned();
            if leave_out(&name) {
                continue;
            }
            if kind.is_dir() {
                tree.insert(name, Entry::Folder);
                open.push(path);
            } else if kind.is_file() {
                tree.insert(name, Entry::File(fs::read(path)?));
            } else if kind.is_symlink() {
                tree.insert(name, Entry::Link(fs::read_link(path)?));
            }
        }
    }
    Ok(tree)
}

/// Makes a folder that must not exist, and everything of a tree in it, anew.
///
/// # Errors
/// When something cannot be written.
pub fn write_tree(tree: &Tree, folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)?;
    for (name, entry) in tree {
        let path = folder.join(name);
        match entry {
            Entry::Folder => fs::create_dir(path)?,
            Entry::File(contents) => fs::write(path, contents)?,
            Entry::Link(to) => symlink(to, path)?,
        }
    }
    Ok(())
}

/// Something that is done to a file or folder. Paths lead from the folder that the model is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new empty file.
    File(PathBuf),
    /// A new empty folder.
    Folder(PathBuf),
    /// Bytes are written into a file.
    Write {
        /// The file.
        path: PathBuf,
        /// Where in it.
        at: usize,
        /// What.
        data: Vec<u8>,
    },
    /// A file is cut off, or continued with zeros.
    Resize {
        /// The file.
        path: PathBuf,
        /// Its new length.
        length: usize,
    },
    /// A name is replaced by another one, which may have been there.
    Rename {
        /// The name before.
        from: PathBuf,
        /// The name from now on.
        to: PathBuf,
    },
    /// A name is taken away from a file or an empty folder.
    Remove(PathBuf),
    /// A file's contents, or a folder's names, are synced.
    Sync(PathBuf),
}

/// What becomes of that which was done and not synced, when the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All of it is lost.
    Everything,
    /// Names have reached the disk, contents have not.
    Contents,
    /// Contents have reached the disk, names have not.
    Names,
    /// Names have reached the disk, and of contents the last write alone: the disk has taken it before the others.
    AllButTheLastWrite,
    /// All has reached the disk, of the last write its first half.
    HalfOfTheLastWrite,
    /// Nothing is lost.
    Nothing,
}

impl Loss {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Everything,
        Self::Contents,
        Self::Names,
        Self::AllButTheLastWrite,
        Self::HalfOfTheLastWrite,
        Self::Nothing,
    ];
}

/// Index of a node.
type Id = usize;
/// A name in a folder.
type Spot = (Id, OsString);

/// What has, or had, a name.
#[derive(Clone, Debug)]
enum Node {
    Folder { now: BTreeMap<OsString, Id>, synced: BTreeMap<OsString, Id> },
    File { now: Vec<u8>, synced: Vec<u8> },
    Link(PathBuf),
}

/// A change of names that no sync has promised yet.
#[derive(Clone, Debug)]
enum Named {
    Added(Spot, Id),
    Removed(Spot),
    Moved { from: Spot, to: Spot, node: Id },
}

impl Named {
    fn spots(&self) -> impl Iterator<Item = &Spot> {
        let (first, second) = match self {
            Self::Added(spot, _) | Self::Removed(spot) => (spot, None),
            Self::Moved { from, to, .. } => (from, Some(to)),
        };
        [first].into_iter().chain(second)
    }
}

/// The last change, when it was a write.
#[derive(Clone, Debug)]
struct LastWrite {
    file: Id,
    before: Vec<u8>,
    at: usize,
    data: Vec<u8>,
}

/// A folder on a disk that may lose its power.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The first one is the folder itself. Nothing is ever taken out: a node without a name is out of reach.
    nodes: Vec<Node>,
    unsynced: Vec<Named>,
    last: Option<LastWrite>,
}

impl Disk {
    /// A disk that has all of this safe.
    pub fn new(tree: &Tree) -> Self {
        let mut disk = Self { nodes: vec![Node::folder()], unsynced: Vec::new(), last: None };
        for (path, entry) in tree {
            let node = match entry {
                Entry::Folder => Node::folder(),
                Entry::File(contents) => Node::File { now: contents.clone(), synced: contents.clone() },
                Entry::Link(to) => Node::Link(to.clone()),
            };
            let id = disk.add(node);
            let (folder, name) = disk.spot(path);
            let (now, synced) = disk.names(folder);
            now.insert(name.clone(), id);
            synced.insert(name, id);
        }
        disk
    }

    /// Does what the program did.
    ///
    /// # Panics
    /// When that cannot have been done to what is there: then something was done that the model does not know.
    pub fn apply(&mut self, change: &Change) {
        self.last = None;
        match change {
            Change::File(path) => self.name_new(path, Node::File { now: Vec::new(), synced: Vec::new() }),
            Change::Folder(path) => self.name_new(path, Node::folder()),
            Change::Write { path, at, data } => self.write(path, *at, data),
            Change::Resize { path, length } => {
                let file = self.at(path);
                self.contents(file).0.resize(*length, 0);
            }
            Change::Rename { from, to } => {
                let (from, to) = (self.spot(from), self.spot(to));
                let node = self.names(from.0).0.remove(&from.1).expect("what is renamed is there");
                self.names(to.0).0.insert(to.1.clone(), node);
                self.unsynced.push(Named::Moved { from, to, node });
            }
            Change::Remove(path) => {
                let spot = self.spot(path);
                self.names(spot.0).0.remove(&spot.1).expect("what is removed is there");
                self.unsynced.push(Named::Removed(spot));
            }
            Change::Sync(path) => {
                let id = self.at(path);
                match &mut self.nodes[id] {
                    Node::File { now, synced } => synced.clone_from(now),
                    Node::Folder { .. } => self.sync_names(id),
                    Node::Link(_) => panic!("{}: a link is synced", path.display()),
                }
            }
        }
    }

    /// What is there when the power comes back.
    pub fn after(&self, loss: Loss) -> Tree {
        let (mut tree, mut open) = (Tree::new(), vec![(PathBuf::new(), 0)]);
        while let Some((path, id)) = open.pop() {
            let entry = match &self.nodes[id] {
                Node::Folder { now, synced } => {
                    let names = if matches!(loss, Loss::Everything | Loss::Names) { synced } else { now };
                    open.extend(names.iter().map(|(name, id)| (path.join(name), *id)));
                    Entry::Folder
                }
                Node::File { now, synced } => Entry::File(self.contents_after(loss, id, now, synced)),
                Node::Link(to) => Entry::Link(to.clone()),
            };
            if id != 0 {
                tree.insert(path, entry);
            }
        }
        tree
    }

    fn contents_after(&self, loss: Loss, file: Id, now: &[u8], synced: &[u8]) -> Vec<u8> {
        let last = self.last.as_ref().filter(|last| last.file == file);
        match (loss, last) {
            (Loss::Everything | Loss::Contents, _) | (Loss::AllButTheLastWrite, None) => synced.to_vec(),
            (Loss::AllButTheLastWrite, Some(last)) => written(synced, last.at, &last.data),
            (Loss::HalfOfTheLastWrite, Some(last)) => {
                written(&last.before, last.at, &last.data[..last.data.len() / 2])
            }
            (Loss::HalfOfTheLastWrite | Loss::Names | Loss::Nothing, _) => now.to_vec(),
        }
    }

    fn write(&mut self, path: &Path, at: usize, data: &[u8]) {
        let file = self.at(path);
        let now = self.contents(file).0;
        let before = std::mem::take(now);
        *now = written(&before, at, data);
        self.last = Some(LastWrite { file, before, at, data: data.to_vec() });
    }

    fn add(&mut self, node: Node) -> Id {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn name_new(&mut self, path: &Path, node: Node) {
        let (spot, id) = (self.spot(path), self.add(node));
        let before = self.names(spot.0).0.insert(spot.1.clone(), id);
        assert!(before.is_none(), "{} is made and was there", path.display());
        self.unsynced.push(Named::Added(spot, id));
    }

    /// What has this name now.
    fn at(&self, path: &Path) -> Id {
        path.iter().fold(0, |folder, name| match &self.nodes[folder] {
            Node::Folder { now, .. } => {
                *now.get(name).unwrap_or_else(|| panic!("{} is used and is not there", path.display()))
            }
            _ => panic!("{} leads through what is no folder", path.display()),
        })
    }

    fn spot(&self, path: &Path) -> Spot {
        let (folder, name) = (path.parent(), path.file_name());
        let folder = folder.unwrap_or_else(|| panic!("the folder itself is named anew"));
        (self.at(folder), name.map(OsStr::to_owned).expect("what has a parent has a name"))
    }

    /// The names in a folder, now and synced.
    fn names(&mut self, folder: Id) -> (&mut BTreeMap<OsString, Id>, &mut BTreeMap<OsString, Id>) {
        match &mut self.nodes[folder] {
            Node::Folder { now, synced } => (now, synced),
            other => panic!("{other:?} has no names in it"),
        }
    }

    /// The contents of a file, now and synced.
    fn contents(&mut self, file: Id) -> (&mut Vec<u8>, &mut Vec<u8>) {
        match &mut self.nodes[file] {
            Node::File { now, synced } => (now, synced),
            other => panic!("{other:?} has no contents"),
        }
    }

    /// Promises the names in a folder. A rename takes its other folder along, and there what was done to the same name
    /// before: the changes of one name reach the disk in their order.
    fn sync_names(&mut self, folder: Id) {
        let mut promised = vec![false; self.unsynced.len()];
        let mut spots: Vec<Spot> = Vec::new();
        // The later ones first: what takes an earlier one along is behind it.
        for (index, named) in self.unsynced.iter().enumerate().rev() {
            if named.spots().any(|spot| spot.0 == folder || spots.contains(spot)) {
                promised[index] = true;
                spots.extend(named.spots().cloned());
            }
        }
        let mut promised = promised.into_iter();
        let (done, rest) = std::mem::take(&mut self.unsynced)
            .into_iter()
            .partition(|_| promised.next().expect("one for each"));
        self.unsynced = rest;
        for named in done {
            match named {
                Named::Added((folder, name), node) => {
                    self.names(folder).1.insert(name, node);
                }
                Named::Removed((folder, name)) => {
                    self.names(folder).1.remove(&name);
                }
                Named::Moved { from, to, node } => {
                    self.names(from.0).1.remove(&from.1);
                    self.names(to.0).1.insert(to.1, node);
                }
            }
        }
    }
}

impl Node {
    fn folder() -> Self {
        Self::Folder { now: BTreeMap::new(), synced: BTreeMap::new() }
    }
}

/// Contents after a write; a gap before it reads as zeros.
fn written(before: &[u8], at: usize, data: &[u8]) -> Vec<u8> {
    let mut contents = before.to_vec();
    if data.is_empty() {
        return contents;
    }
    let end = at + data.len();
    contents.resize(contents.len().max(end), 0);
    contents[at..end].copy_from_slice(data);
    contents
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(contents: &str) -> Entry {
        Entry::File(contents.into())
    }

    fn tree<const N: usize>(entries: [(&str, Entry); N]) -> Tree {
        entries.into_iter().map(|(path, entry)| (path.into(), entry)).collect()
    }

    fn write(path: &str, at: usize, data: &str) -> Change {
        Change::Write { path: path.into(), at, data: data.into() }
    }

    fn rename(from: &str, to: &str) -> Change {
        Change::Rename { from: from.into(), to: to.into() }
    }

    fn sync(path: &str) -> Change {
        Change::Sync(path.into())
    }

    fn disk<const N: usize>(before: [(&str, Entry); N], changes: &[Change]) -> Disk {
        let mut disk = Disk::new(&tree(before));
        for change in changes {
            disk.apply(change);
        }
        disk
    }

    #[test]
    fn what_was_there_before_is_there_whatever_is_lost() {
        let before = [("a", Entry::Folder), ("a/b", file("b")), ("c", Entry::Link("/elsewhere".into()))];
        let disk = disk(before.clone(), &[]);
        for loss in Loss::ALL {
            assert_eq!(disk.after(loss), tree(before.clone()), "{loss:?}");
        }
    }

    #[test]
    fn a_new_file_needs_two_syncs_one_for_its_name_and_one_for_its_contents() {
        let made = [Change::File("a".into()), write("a", 0, "contents")];
        let with = |syncs: &[Change]| disk([], &[&made, syncs].concat());
        assert_eq!(with(&[]).after(Loss::Everything), tree([]));
        assert_eq!(with(&[]).after(Loss::Contents), tree([("a", file(""))]));
        assert_eq!(with(&[]).after(Loss::Names), tree([]));
        assert_eq!(with(&[]).after(Loss::Nothing), tree([("a", file("contents"))]));
        assert_eq!(with(&[sync("a")]).after(Loss::Everything), tree([]));
        assert_eq!(with(&[sync("")]).after(Loss::Everything), tree([("a", file(""))]));
        assert_eq!(with(&[sync("a"), sync("")]).after(Loss::Everything), tree([("a", file("contents"))]));
    }

    #[test]
    fn the_last_write_may_arrive_alone_or_in_half() {
        let writes = [write("a", 0, "1234"), write("a", 6, "5678")];
        let disk = disk([("a", file("......"))], &writes);
        assert_eq!(disk.after(Loss::Everything), tree([("a", file("......"))]));
        assert_eq!(disk.after(Loss::AllButTheLastWrite), tree([("a", file("......5678"))]));
        assert_eq!(disk.after(Loss::HalfOfTheLastWrite), tree([("a", file("1234..56"))]));
        assert_eq!(disk.after(Loss::Nothing), tree([("a", file("1234..5678"))]));
    }

    #[test]
    fn a_file_that_was_cut_off_has_its_end_until_it_is_synced() {
        let cut = Change::Resize { path: "a".into(), length: 2 };
        let before = [("a", file("1234"))];
        assert_eq!(
            disk(before.clone(), std::slice::from_ref(&cut)).after(Loss::Everything),
            tree(before.clone())
        );
        assert_eq!(disk(before, &[cut, sync("a")]).after(Loss::Everything), tree([("a", file("12"))]));
    }

    #[test]
    fn a_rename_is_in_both_folders_or_in_neither() {
        let before = [("a", Entry::Folder), ("a/x", file("x")), ("b", Entry::Folder)];
        let after = tree([("a", Entry::Folder), ("b", Entry::Folder), ("b/y", file("x"))]);
        let moved = |syncs: &[Change]| disk(before.clone(), &[&[rename("a/x", "b/y")], syncs].concat());
        assert_eq!(moved(&[]).after(Loss::Everything), tree(before.clone()));
        assert_eq!(moved(&[sync("a")]).after(Loss::Everything), after);
        assert_eq!(moved(&[sync("b")]).after(Loss::Everything), after);
    }

    #[test]
    fn the_sync_of_one_folder_brings_no_other_names_of_another() {
        let before = [("a", Entry::Folder), ("b", Entry::Folder)];
        let changes = [
            Change::File("a/other".into()),
            Change::Folder("a/draft".into()),
            Change::File("a/draft/lost".into()),
            rename("a/draft", "b/made"),
            Change::Folder("a/draft".into()),
            sync("b"),
        ];
        let left = tree([("a", Entry::Folder), ("b", Entry::Folder), ("b/made", Entry::Folder)]);
        assert_eq!(disk(before, &changes).after(Loss::Everything), left);
    }

    #[test]
    fn a_name_that_goes_round_ends_where_it_went() {
        let before = [("a", Entry::Folder), ("a/x", file("x")), ("b", Entry::Folder)];
        let changes = [rename("a/x", "b/x"), rename("b/x", "a/y"), rename("a/y", "y"), sync("b")];
        let left = disk(before.clone(), &changes).after(Loss::Everything);
        assert_eq!(left, tree([("a", Entry::Folder), ("a/y", file("x")), ("b", Entry::Folder)]));
        let left = disk(before, &[&changes[..], &[sync("")]].concat()).after(Loss::Everything);
        assert_eq!(left, tree([("a", Entry::Folder), ("b", Entry::Folder), ("y", file("x"))]));
    }

    #[test]
    fn a_file_that_is_replaced_is_the_old_one_until_the_folder_is_synced() {
        let before = [("a", file("old")), ("new", file("new"))];
        let replaced = [rename("new", "a")];
        assert_eq!(disk(before.clone(), &replaced).after(Loss::Everything), tree(before.clone()));
        let synced = [&replaced[..], &[sync("")]].concat();
        assert_eq!(disk(before, &synced).after(Loss::Everything), tree([("a", file("new"))]));
    }

    #[test]
    fn what_is_removed_is_there_until_the_folder_is_synced() {
        let before = [("a", Entry::Folder), ("a/x", file("x"))];
        let removed = [Change::Remove("a/x".into()), Change::Remove("a".into())];
        assert_eq!(disk(before.clone(), &removed).after(Loss::Everything), tree(before.clone()));
        assert_eq!(disk(before.clone(), &removed).after(Loss::Contents), tree([]));
        assert_eq!(disk(before, &[&removed[..], &[sync("")]].concat()).after(Loss::Everything), tree([]));
    }

    #[test]
    #[should_panic(expected = "x is used and is not there")]
    fn what_the_model_did_not_see_being_made_is_noticed() {
        disk([], &[sync("x")]);
    }

    #[test]
    fn a_tree_that_is_written_is_the_tree_that_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("there");
        let all = tree([("a", Entry::Folder), ("a/b", file("b")), ("c", Entry::Link("/elsewhere".into()))]);
        write_tree(&all, &there).unwrap();
        assert_eq!(read_tree(&there, |_| false).unwrap(), all);
        assert_eq!(read_tree(&there, |path| path == Path::new("a")).unwrap().len(), 1);
    }
}
