//! The file tree of an image while its layers are applied, bottom-up.
//!
//! Names are *links* (one per name in a directory), which lead to *inodes*. Both lie in vectors and refer to each other
//! by index; links are found through one hash table over (directory, name). Nothing is reused when something is
//! removed: a limit on what is ever made bounds the memory.
//!
//! Each link carries the number of the layer that *touched* it last: that made it, or something beneath it. A whiteout
//! hides what lower layers left and keeps what its own layer touched, wherever in the layer it stands. Invariant: what
//! contains a link touched by the current layer is itself touched by it.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU64;

use hashbrown::HashTable;

use super::NAME_MAX;
use super::xattr::Xattrs;

/// No link.
const NONE: u32 = u32::MAX;

/// An inode of one tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ino(pub(super) u32);

/// What all kinds of files have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Permission bits, with set-user-id, set-group-id and sticky: at most 0o7777.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970, rounded down.
    pub(crate) mtime: i64,
    /// Below one thousand million.
    pub(crate) mtime_ns: u32,
}

impl Meta {
    /// Of a directory that is needed but was never described: root's, 0755, at the epoch so that output does not vary.
    pub(crate) const IMPLIED: Meta = Meta { mode: 0o755, uid: 0, gid: 0, mtime: 0, mtime_ns: 0 };
}

/// Where the contents of a file lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(super) first_block: u32,
    /// Full blocks, and one for the tail unless that is in the spool.
    pub(super) blocks: u32,
    pub(super) size: u64,
    /// Position in the scratch file of the tail that goes behind the inode.
    pub(super) tail_at: Option<NonZeroU64>,
    /// XXH3-64 of the contents if they have blocks: files that differ in it are not the same.
    pub(super) hash: u64,
}

impl Extent {
    /// Bytes of an encoded extent.
    pub(crate) const ENCODED: usize = 32;

    /// For those who keep extents outside of a tree.
    pub(crate) fn encode(&self) -> [u8; Self::ENCODED] {
        let mut out = [0; Self::ENCODED];
        out[..4].copy_from_slice(&self.first_block.to_le_bytes());
        out[4..8].copy_from_slice(&self.blocks.to_le_bytes());
        out[8..16].copy_from_slice(&self.size.to_le_bytes());
        out[16..24].copy_from_slice(&self.tail_at.map_or(0, NonZeroU64::get).to_le_bytes());
        out[24..].copy_from_slice(&self.hash.to_le_bytes());
        out
    }

    /// What [`Extent::encode`] made.
    pub(crate) fn decode(bytes: &[u8; Self::ENCODED]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let half = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self {
            first_block: half(0),
            blocks: half(4),
            size: word(8),
            tail_at: NonZeroU64::new(word(16)),
            hash: word(24),
        }
    }
}

/// Something to be put into a directory that is not a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Node<'a> {
    File(Extent),
    Symlink(&'a [u8]),
    /// With [`super::device`].
    Char(u32),
    Block(u32),
    Fifo,
    #[cfg_attr(not(test), expect(dead_code, reason = "tar cannot express sockets; the format can"))]
    Socket,
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Symlink,
    Char,
    Block,
    Fifo,
    Socket,
}

/// What a tree may grow to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TreeLimits {
    /// Names ever made, over all layers, directories that were only implied among them.
    pub(crate) entries: u64,
    /// Bytes of all that is kept in memory.
    pub(crate) memory: u64,
}

/// Why the tree refuses a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TreeError {
    #[error("the image has more than {0} entries")]
    Entries(u64),
    #[error("names and attributes of the image need more than {0} bytes of memory")]
    Memory(u64),
    #[error("a name has {0} bytes, {NAME_MAX} are possible")]
    NameTooLong(usize),
    #[error("a name is empty, '.', '..' or has '/' or NUL in it")]
    BadName,
    #[error("a symbolic link's target is empty, has NUL in it or is longer than 4095 bytes")]
    BadTarget,
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) dir: Ino,
    pub(super) ino: Ino,
    /// Siblings in a list of no order (until [`Tree::sort`]).
    next: u32,
    previous: u32,
    name_at: u32,
    name_length: u8,
    /// Last layer that touched it.
    layer: u16,
}

#[derive(Debug)]
pub(super) enum Body {
    File(Extent),
    Dir(Dir),
    Symlink { at: u32, length: u16 },
    Char(u32),
    Block(u32),
    Fifo,
    Socket,
}

#[derive(Debug)]
pub(super) struct Dir {
    pub(super) parent: Ino,
    /// The link that leads here; [`NONE`] for the root.
    link: u32,
    first: u32,
    pub(super) children: u32,
    pub(super) subdirs: u32,
    /// Last layer that described this directory itself.
    described: u16,
    /// Last layer that hid everything of lower layers in it.
    pruned: u16,
}

#[derive(Debug)]
pub(super) struct Inode {
    pub(super) meta: Meta,
    /// Names that lead here; 0 when removed. (Of directories: 1.)
    pub(super) links: u32,
    xattrs: u32,
    pub(super) body: Body,
}

/// The tree. Layer 1 is current at first.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(super) inodes: Vec<Inode>,
    links: Vec<Link>,
    /// Names and targets of symbolic links.
    text: Vec<u8>,
    /// Distinct sets of attributes; number 0 is the empty one.
    xattrs: Vec<Xattrs>,
    xattr_bytes: usize,
    by_name: HashTable<u32>,
    by_xattrs: HashTable<u32>,
    hasher: RandomState,
    layer: u16,
    limits: TreeLimits,
    /// Blocks that nothing refers to any more: first and count.
    pub(super) dead: Vec<(u32, u32)>,
}

impl Tree {
    /// The directory at the top.
    pub(crate) const ROOT: Ino = Ino(0);

    pub(crate) fn new(limits: TreeLimits) -> Self {
        let root = Inode {
            meta: Meta::IMPLIED,
            links: 1,
            xattrs: 0,
            body: Body::Dir(Dir {
                parent: Self::ROOT,
                link: NONE,
                first: NONE,
                children: 0,
                subdirs: 0,
                described: 0,
                pruned: 0,
            }),
        };
        Self {
            inodes: vec![root],
            links: Vec::new(),
            text: Vec::new(),
            xattrs: vec![Xattrs::default()],
            xattr_bytes: 0,
            by_name: HashTable::new(),
            by_xattrs: HashTable::new(),
            hasher: RandomState::new(),
            layer: 1,
            limits,
            dead: Vec::new(),
        }
    }

    /// What is put from here on belongs to the next layer. Callers keep the number of layers below 65535.
    pub(crate) fn next_layer(&mut self) {
        self.layer = self.layer.checked_add(1).expect("the number of layers is limited");
    }

    /// What `dir` calls `name`.
    pub(crate) fn lookup(&self, dir: Ino, name: &[u8]) -> Option<Ino> {
        Some(self.links[self.find(dir, name)? as usize].ino)
    }

    /// Whether the current layer made, or put something beneath, what `dir` calls `name`.
    pub(crate) fn is_of_this_layer(&self, dir: Ino, name: &[u8]) -> bool {
        self.find(dir, name).is_some_and(|link| self.links[link as usize].layer == self.layer)
    }

    pub(crate) fn kind(&self, ino: Ino) -> Kind {
        match self.inode(ino).body {
            Body::File(_) => Kind::File,
            Body::Dir(_) => Kind::Dir,
            Body::Symlink { .. } => Kind::Symlink,
            Body::Char(_) => Kind::Char,
            Body::Block(_) => Kind::Block,
            Body::Fifo => Kind::Fifo,
            Body::Socket => Kind::Socket,
        }
    }

    /// Where a symbolic link leads; nothing for other kinds.
    pub(crate) fn target(&self, ino: Ino) -> Option<&[u8]> {
        match self.inode(ino).body {
            Body::Symlink { at, length } => Some(&self.text[at as usize..][..usize::from(length)]),
            _ => None,
        }
    }

    /// The directory that holds `dir`; of the root, the root.
    pub(crate) fn parent(&self, dir: Ino) -> Ino {
        self.dir(dir).parent
    }

    /// Puts a directory, in place of what has the name; an existing directory keeps what is in it.
    pub(crate) fn put_dir(
        &mut self,
        dir: Ino,
        name: &[u8],
        meta: Meta,
        xattrs: &Xattrs,
    ) -> Result<Ino, TreeError> {
        let ino = match self.lookup(dir, name) {
            Some(ino) if self.kind(ino) == Kind::Dir => ino,
            _ => self.make_dir(dir, name)?,
        };
        self.touch(ino);
        self.describe(ino, meta, xattrs)?;
        Ok(ino)
    }

    /// Puts a directory that only the path of something else tells of, in place of what has the name.
    pub(crate) fn imply_dir(&mut self, dir: Ino, name: &[u8]) -> Result<Ino, TreeError> {
        let ino = self.make_dir(dir, name)?;
        self.touch(ino);
        Ok(ino)
    }

    /// Sets what is said of a directory (the root, say) itself.
    pub(crate) fn describe(&mut self, dir: Ino, meta: Meta, xattrs: &Xattrs) -> Result<(), TreeError> {
        let xattrs = self.intern(xattrs)?;
        let layer = self.layer;
        let inode = &mut self.inodes[dir.0 as usize];
        inode.meta = meta;
        inode.xattrs = xattrs;
        self.dir_mut(dir).described = layer;
        Ok(())
    }

    /// Puts something that is not a directory, in place of what has the name.
    pub(crate) fn put(
        &mut self,
        dir: Ino,
        name: &[u8],
        meta: Meta,
        xattrs: &Xattrs,
        node: Node<'_>,
    ) -> Result<Ino, TreeError> {
        let body = match node {
            Node::File(extent) => Body::File(extent),
            Node::Symlink(target) => {
                let length = u16::try_from(target.len()).ok().filter(|length| (1..4096).contains(length));
                let length = length.filter(|_| !target.contains(&0)).ok_or(TreeError::BadTarget)?;
                Body::Symlink { at: self.add_text(target)?, length }
            }
            Node::Char(device) => Body::Char(device),
            Node::Block(device) => Body::Block(device),
            Node::Fifo => Body::Fifo,
            Node::Socket => Body::Socket,
        };
        let xattrs = self.intern(xattrs)?;
        let ino = self.add_inode(Inode { meta, links: 0, xattrs, body })?;
        self.link(dir, name, ino)?;
        Ok(ino)
    }

    /// Gives `ino`, which is not a directory, one more name, in place of what has it.
    pub(crate) fn link(&mut self, dir: Ino, name: &[u8], ino: Ino) -> Result<(), TreeError> {
        self.inodes[ino.0 as usize].links += 1;
        self.remove(dir, name);
        self.add_link(dir, name, ino)?;
        self.touch(dir);
        Ok(())
    }

    /// Hides what lower layers call `name` in `dir`; true when there was something.
    pub(crate) fn whiteout(&mut self, dir: Ino, name: &[u8]) -> bool {
        let Some(link) = self.find(dir, name) else { return false };
        let Link { layer, ino, .. } = self.links[link as usize];
        if layer != self.layer {
            self.remove_link(link);
        } else if self.kind(ino) == Kind::Dir {
            self.forget_description(ino);
            self.prune(ino);
        }
        true
    }

    /// Hides all that lower layers left in `dir`.
    pub(crate) fn opaque(&mut self, dir: Ino) {
        self.prune(dir);
    }

    /// Removes what lower layers left in a directory and in those of its subdirectories that stay because the current
    /// layer touched them. Each directory is gone through once per layer, however many whiteouts a layer has.
    fn prune(&mut self, dir: Ino) {
        let mut todo = vec![dir];
        while let Some(dir) = todo.pop() {
            let layer = self.layer;
            let body = self.dir_mut(dir);
            if body.pruned == layer {
                continue;
            }
            body.pruned = layer;
            let mut at = body.first;
            while at != NONE {
                let Link { next, ino, layer: touched, .. } = self.links[at as usize];
                if touched != layer {
                    self.remove_link(at);
                } else if self.kind(ino) == Kind::Dir {
                    self.forget_description(ino);
                    todo.push(ino);
                }
                at = next;
            }
        }
    }

    /// A hidden directory that comes back only because something is put beneath it has nothing of the hidden one.
    fn forget_description(&mut self, dir: Ino) {
        if self.dir(dir).described != self.layer {
            let inode = &mut self.inodes[dir.0 as usize];
            inode.meta = Meta::IMPLIED;
            inode.xattrs = 0;
        }
    }

    fn remove(&mut self, dir: Ino, name: &[u8]) {
        if let Some(link) = self.find(dir, name) {
            self.remove_link(link);
        }
    }

    /// Removes a name and, of a directory, everything beneath.
    fn remove_link(&mut self, link: u32) {
        let mut todo = vec![link];
        while let Some(link) = todo.pop() {
            let Link { ino, .. } = self.links[link as usize];
            self.unlink(link);
            let inode = &mut self.inodes[ino.0 as usize];
            inode.links -= 1;
            match &inode.body {
                Body::Dir(body) => {
                    let mut at = body.first;
                    while at != NONE {
                        todo.push(at);
                        at = self.links[at as usize].next;
                    }
                }
                Body::File(extent) if inode.links == 0 && extent.blocks > 0 => {
                    self.dead.push((extent.first_block, extent.blocks));
                }
                _ => {}
            }
        }
    }

    /// Takes a link out of its directory and the table. Its own `next` stays, for those who walk the list.
    fn unlink(&mut self, link: u32) {
        let Link { dir, ino, next, previous, name_at, name_length, .. } = self.links[link as usize];
        let name = &self.text[name_at as usize..][..usize::from(name_length)];
        let hash = self.hasher.hash_one((dir, name));
        if let Ok(entry) = self.by_name.find_entry(hash, |at| *at == link) {
            entry.remove();
        }
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        let is_dir = self.kind(ino) == Kind::Dir;
        if previous != NONE {
            self.links[previous as usize].next = next;
        }
        let body = self.dir_mut(dir);
        if previous == NONE {
            body.first = next;
        }
        body.children -= 1;
        body.subdirs -= u32::from(is_dir);
    }

    /// Marks a directory and what contains it as touched by the current layer.
    fn touch(&mut self, mut dir: Ino) {
        loop {
            let Dir { link, parent, .. } = *self.dir(dir);
            if link == NONE || self.links[link as usize].layer == self.layer {
                return;
            }
            self.links[link as usize].layer = self.layer;
            dir = parent;
        }
    }

    fn make_dir(&mut self, dir: Ino, name: &[u8]) -> Result<Ino, TreeError> {
        let ino = self.add_inode(Inode {
            meta: Meta::IMPLIED,
            links: 1,
            xattrs: 0,
            body: Body::Dir(Dir {
                parent: dir,
                link: NONE,
                first: NONE,
                children: 0,
                subdirs: 0,
                described: 0,
                pruned: 0,
            }),
        })?;
        self.remove(dir, name);
        let link = self.add_link(dir, name, ino)?;
        self.dir_mut(ino).link = link;
        self.touch(dir);
        Ok(ino)
    }

    fn add_link(&mut self, dir: Ino, name: &[u8], ino: Ino) -> Result<u32, TreeError> {
        let name_length = u8::try_from(name.len()).map_err(|_| TreeError::NameTooLong(name.len()))?;
        if matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return Err(TreeError::BadName);
        }
        let link = u32::try_from(self.links.len()).ok().filter(|link| u64::from(*link) < self.limits.entries);
        let link = link.filter(|link| *link != NONE).ok_or(TreeError::Entries(self.limits.entries))?;
        let name_at = self.add_text(name)?;
        let is_dir = self.kind(ino) == Kind::Dir;
        let layer = self.layer;
        let body = self.dir_mut(dir);
        let next = body.first;
        body.first = link;
        body.children += 1;
        body.subdirs += u32::from(is_dir);
        if next != NONE {
            self.links[next as usize].previous = link;
        }
        self.links.push(Link { dir, ino, next, previous: NONE, name_at, name_length, layer });
        let Self { by_name, links, text, hasher, .. } = self;
        let hash = |link: &u32| {
            let link = &links[*link as usize];
            hasher.hash_one((link.dir, &text[link.name_at as usize..][..usize::from(link.name_length)]))
        };
        by_name.insert_unique(hash(&link), link, hash);
        self.check_memory()?;
        Ok(link)
    }

    fn add_inode(&mut self, inode: Inode) -> Result<Ino, TreeError> {
        // One inode per name at most, and the root: the limit of names holds here too.
        let ino = u32::try_from(self.inodes.len()).map_err(|_| TreeError::Entries(self.limits.entries))?;
        self.inodes.push(inode);
        self.check_memory()?;
        Ok(Ino(ino))
    }

    fn add_text(&mut self, text: &[u8]) -> Result<u32, TreeError> {
        let end = self.text.len() + text.len();
        let at = u32::try_from(self.text.len()).ok().filter(|_| u32::try_from(end).is_ok());
        self.text.extend_from_slice(text);
        at.ok_or(TreeError::Memory(u64::from(u32::MAX)))
    }

    fn intern(&mut self, xattrs: &Xattrs) -> Result<u32, TreeError> {
        if xattrs.bytes().is_empty() {
            return Ok(0);
        }
        let Self { by_xattrs, xattrs: known, hasher, .. } = self;
        let hash = hasher.hash_one(xattrs.bytes());
        if let Some(number) = by_xattrs.find(hash, |number| known[*number as usize] == *xattrs) {
            return Ok(*number);
        }
        let number = u32::try_from(known.len()).map_err(|_| TreeError::Memory(self.limits.memory))?;
        known.push(xattrs.clone());
        by_xattrs.insert_unique(hash, number, |number| hasher.hash_one(known[*number as usize].bytes()));
        self.xattr_bytes += xattrs.bytes().len() + size_of::<Xattrs>();
        self.check_memory()?;
        Ok(number)
    }

    fn check_memory(&self) -> Result<(), TreeError> {
        // A hash table slot costs its value and a control byte, at 7/8 load at best and half of that at worst.
        const SLOT: usize = 11;
        // What the end takes for each inode: its place, and its place in a table of contents.
        const PLAN: usize = 32 + SLOT;
        let used = self.inodes.len() * (size_of::<Inode>() + PLAN)
            + self.links.len() * (size_of::<Link>() + SLOT)
            + self.text.len()
            + self.xattr_bytes;
        if used as u64 > self.limits.memory { Err(TreeError::Memory(self.limits.memory)) } else { Ok(()) }
    }

    fn find(&self, dir: Ino, name: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one((dir, name));
        let same = |link: &u32| {
            let link = &self.links[*link as usize];
            link.dir == dir && self.name(link) == name
        };
        self.by_name.find(hash, same).copied()
    }

    pub(super) fn inode(&self, ino: Ino) -> &Inode {
        &self.inodes[ino.0 as usize]
    }

    pub(super) fn xattrs(&self, inode: &Inode) -> &[u8] {
        self.xattrs[inode.xattrs as usize].bytes()
    }

    pub(super) fn name(&self, link: &Link) -> &[u8] {
        &self.text[link.name_at as usize..][..usize::from(link.name_length)]
    }

    /// Sorts the entries of a directory by name.
    pub(super) fn sort(&mut self, dir: Ino) {
        let mut order: Vec<u32> = self.children(dir).map(|(at, _)| at).collect();
        order.sort_unstable_by_key(|at| self.name(&self.links[*at as usize]));
        for (n, at) in order.iter().enumerate() {
            let link = &mut self.links[*at as usize];
            link.previous = if n == 0 { NONE } else { order[n - 1] };
            link.next = order.get(n + 1).copied().unwrap_or(NONE);
        }
        self.dir_mut(dir).first = order.first().copied().unwrap_or(NONE);
    }

    /// The entries of a directory.
    pub(super) fn children(&self, dir: Ino) -> impl Iterator<Item = (u32, &Link)> {
        let first = self.dir(dir).first;
        let get = |at: u32| self.links.get(at as usize).map(|link| (at, link));
        std::iter::successors(get(first), move |(_, link)| get(link.next))
    }

    /// Panics when `ino` is no directory: callers look at its kind first.
    fn dir(&self, ino: Ino) -> &Dir {
        match &self.inode(ino).body {
            Body::Dir(dir) => dir,
            body => panic!("not a directory: {body:?}"),
        }
    }

    fn dir_mut(&mut self, ino: Ino) -> &mut Dir {
        match &mut self.inodes[ino.0 as usize].body {
            Body::Dir(dir) => dir,
            body => panic!("not a directory: {body:?}"),
        }
    }
}
