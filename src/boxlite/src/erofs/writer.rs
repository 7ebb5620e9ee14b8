//! From contents and tree to an image file: see the [module](super) for the layout.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::sync::Arc;

use super::contents::Contents;
use super::dir::{self, Entry, Packing};
use super::format::{self, INODE_SIZE, Layout, SLOT, Super};
use super::output::Output;
use super::share;
use super::space::Space;
use super::spool::Tails;
use super::tree::{Body, Ino, Tree, TreeLimits};
use super::xattr::{self, Xattrs};
use super::{BLOCK, Meta};

/// The root's nid. Not 0: inode numbers derive from it, and an entry numbered 0 reads as deleted to some programs.
const ROOT_NID: u16 = 2;
/// Partly filled metadata blocks that are remembered for inodes that fit into their rest.
const OPEN_BLOCKS: usize = 1024;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriterError {
    #[error("cannot write the image file")]
    Io(#[from] io::Error),
    #[error("the image has more than 16 TiB, which EROFS cannot address")]
    TooLarge,
    #[error("a file has another size than was said")]
    Size,
}

/// What became of an image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stats {
    /// Length of the file, holes included.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// Writes one image.
#[derive(Debug)]
pub(crate) struct Writer {
    space: Arc<Space>,
    tree: Tree,
}

impl Writer {
    /// `file` and `scratch` are empty files; the latter is of no use afterwards.
    pub(crate) fn new(file: File, scratch: File, limits: TreeLimits) -> Self {
        Self { space: Arc::new(Space::new(file, scratch)), tree: Tree::new(limits) }
    }

    pub(crate) fn tree(&mut self) -> &mut Tree {
        &mut self.tree
    }

    /// Writes contents of files into this image; any number of them may do so at once.
    pub(crate) fn contents(&self) -> Contents {
        Contents::new(self.space.clone())
    }

    /// Puts a file of so many bytes with these contents: the short way for those who have them at hand.
    pub(crate) fn put_file(
        &mut self,
        dir: Ino,
        name: &[u8],
        meta: Meta,
        size: u64,
        from: &mut dyn io::Read,
    ) -> Result<(), PutFileError> {
        let mut contents = self.contents();
        contents.begin(size, &Xattrs::default())?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => contents.append(&buffer[..length])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(PutFileError::Read(error)),
            }
        }
        let extent = contents.end()?;
        contents.close()?;
        self.tree.put(dir, name, meta, &Xattrs::default(), super::Node::File(extent))?;
        Ok(())
    }

    /// Lets files with the same contents share their blocks; how many bytes that saves. All contents must be closed, and
    /// no names may follow. `going` is asked before each piece of work whether to go on; nothing comes back if it said no.
    pub(crate) fn share(&mut self, going: &mut dyn FnMut() -> bool) -> Result<Option<u64>, WriterError> {
        Ok(share::share(&self.space, &mut self.tree, going)?)
    }

    /// Writes metadata and superblock; the file is then an image (not yet synced). All contents must be closed.
    pub(crate) fn finish(self, uuid: [u8; 16]) -> Result<(File, Stats), WriterError> {
        let Self { space, mut tree } = self;
        let mut output = Output::new(&space);
        let plan = Plan::new(&mut tree, block(output.position())?)?;
        for ino in living(&tree) {
            if matches!(tree.inode(ino).body, Body::Dir(_)) {
                plan.write_dir_blocks(&tree, ino, &mut output)?;
            }
        }
        let meta_block = block(output.position())?;
        debug_assert_eq!(meta_block, plan.meta_block);
        plan.write_inodes(&tree, &mut Tails::new(&space), &mut output)?;
        // fsck.erofs reads the header of attributes behind every inode, those without any included: there must be
        // something behind the last one.
        output.append(&[0])?;
        let bytes = output.finish()?;
        let inodes = plan.places.len() as u64;
        let first = Super { root_nid: ROOT_NID, inodes, blocks: block(bytes)?, meta_block, uuid }.encode();
        let dead = std::mem::take(&mut tree.dead);
        let dead = dead
            .iter()
            .map(|(first, blocks)| (u64::from(*first) * BLOCK as u64, u64::from(*blocks) * BLOCK as u64));
        let space = Arc::into_inner(space)
            .ok_or_else(|| io::Error::other("contents of the image are still being written"))?;
        let file = space.finish(bytes, dead, &first)?;
        Ok((file, Stats { bytes, inodes }))
    }
}

/// Why a file could not be put.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PutFileError {
    #[error("cannot read the contents")]
    Read(#[source] io::Error),
    #[error(transparent)]
    Write(#[from] WriterError),
    #[error(transparent)]
    Tree(#[from] super::TreeError),
}

/// The inodes that have a name, in the order in which they were made.
pub(super) fn living(tree: &Tree) -> impl Iterator<Item = Ino> + use<> {
    let living: Vec<u32> =
        (0..).zip(&tree.inodes).filter(|(_, inode)| inode.links > 0).map(|(n, _)| n).collect();
    living.into_iter().map(Ino)
}

pub(super) fn tail_length(size: u64) -> usize {
    usize::try_from(size % BLOCK as u64).expect("less than a block")
}

/// Whether inode, attributes and tail fit into one block.
pub(super) fn fits_inline(xattrs: usize, tail: usize) -> bool {
    INODE_SIZE + xattrs + tail <= BLOCK
}

pub(super) fn block(position: u64) -> Result<u32, WriterError> {
    u32::try_from(position / BLOCK as u64).map_err(|_| WriterError::TooLarge)
}

/// Where one inode goes.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// In slots from the start of the metadata.
    nid: u32,
    ino: Ino,
}

/// Where everything goes that is written at the end.
#[derive(Debug)]
struct Plan {
    /// Living inodes, in the order of their place.
    places: Vec<Place>,
    /// By inode.
    nids: Vec<u32>,
    /// Of directories, by inode: their size and first block. (Unused for others.)
    dirs: Vec<(u64, u32)>,
    meta_block: u32,
}

impl Plan {
    fn new(tree: &mut Tree, first_block: u32) -> Result<Self, WriterError> {
        let mut next_block = u64::from(first_block);
        let mut slots = Slots::default();
        let mut plan =
            Self { places: Vec::new(), nids: vec![0; tree.inodes.len()], dirs: Vec::new(), meta_block: 0 };
        plan.dirs.resize(tree.inodes.len(), (0, 0));
        for ino in living(tree) {
            let number = ino.0 as usize;
            if matches!(tree.inode(ino).body, Body::Dir(_)) {
                tree.sort(ino);
                let mut packing = Packing::default();
                with_dots(tree, ino, |name, _| {
                    packing.add(name.len());
                });
                let (blocks, tail) = packing.finish();
                let start = u32::try_from(next_block).map_err(|_| WriterError::TooLarge)?;
                plan.dirs[number] = (blocks * BLOCK as u64 + tail as u64, start);
                let inline = fits_inline(tree.xattrs(tree.inode(ino)).len(), tail);
                next_block += blocks + u64::from(tail > 0 && !inline);
            }
            let xattrs = tree.xattrs(tree.inode(ino)).len();
            let slot = slots.take(INODE_SIZE + xattrs + plan.inline_length(tree, ino));
            let nid = u32::try_from(slot).map_err(|_| WriterError::TooLarge)?;
            plan.nids[number] = nid;
            plan.places.push(Place { nid, ino });
        }
        plan.meta_block = u32::try_from(next_block).map_err(|_| WriterError::TooLarge)?;
        plan.places.sort_unstable_by_key(|place| place.nid);
        Ok(plan)
    }

    fn size(&self, tree: &Tree, ino: Ino) -> u64 {
        match &tree.inode(ino).body {
            Body::File(extent) => extent.size,
            Body::Dir(_) => self.dirs[ino.0 as usize].0,
            Body::Symlink { length, .. } => u64::from(*length),
            Body::Char(_) | Body::Block(_) | Body::Fifo | Body::Socket => 0,
        }
    }

    /// Bytes of contents behind the inode. Symbolic links that do not fit there get a block of the metadata for
    /// themselves, see [`Plan::write_inodes`].
    fn inline_length(&self, tree: &Tree, ino: Ino) -> usize {
        let inode = tree.inode(ino);
        let tail = tail_length(self.size(tree, ino));
        match &inode.body {
            Body::File(extent) if extent.tail_at.is_none() => 0,
            _ if fits_inline(tree.xattrs(inode).len(), tail) => tail,
            _ => 0,
        }
    }

    /// The whole blocks of a directory.
    fn write_dir_blocks(&self, tree: &Tree, dir: Ino, output: &mut Output<'_>) -> io::Result<()> {
        let inline = self.inline_length(tree, dir) > 0;
        self.each_dir_block(tree, dir, |bytes, last| {
            if last && inline {
                return Ok(());
            }
            output.append(bytes)?;
            output.pad()
        })
    }

    /// Encodes a directory block by block; tells which is the last one.
    fn each_dir_block(
        &self,
        tree: &Tree,
        dir: Ino,
        mut write: impl FnMut(&[u8], bool) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(BLOCK);
        let mut entries: Vec<Entry<'_>> = Vec::new();
        let mut packing = Packing::default();
        let mut result = Ok(());
        with_dots(tree, dir, |name, ino| {
            if packing.add(name.len()) {
                bytes.clear();
                dir::encode(&entries, &mut bytes);
                entries.clear();
                if result.is_ok() {
                    result = write(&bytes, false);
                }
            }
            let nid = u64::from(self.nids[ino.0 as usize]);
            entries.push(Entry { name, nid, file_type: file_type(&tree.inode(ino).body) });
        });
        result?;
        bytes.clear();
        dir::encode(&entries, &mut bytes);
        write(&bytes, true)
    }

    fn write_inodes(&self, tree: &Tree, tails: &mut Tails<'_>, output: &mut Output<'_>) -> io::Result<()> {
        let start = output.position();
        // Contents of symbolic links that are too long to be inlined, behind all inodes.
        let mut long_links: Vec<&[u8]> = Vec::new();
        let end = self.places.last().map_or(0, |place| {
            let xattrs = tree.xattrs(tree.inode(place.ino)).len();
            let length = INODE_SIZE + xattrs + self.inline_length(tree, place.ino);
            u64::from(place.nid) * SLOT as u64 + length as u64
        });
        let long_links_block = (start + end).div_ceil(BLOCK as u64);
        for place in &self.places {
            let inode = tree.inode(place.ino);
            let xattrs = tree.xattrs(inode);
            let inline = self.inline_length(tree, place.ino);
            let (place_field, links) = match &inode.body {
                Body::File(extent) => (extent.first_block, inode.links),
                Body::Dir(dir) => (self.dirs[place.ino.0 as usize].1, dir.subdirs + 2),
                Body::Symlink { .. } if inline == 0 => {
                    let at = long_links_block + long_links.len() as u64;
                    long_links.extend(tree.target(place.ino));
                    (u32::try_from(at).map_err(io::Error::other)?, inode.links)
                }
                Body::Char(device) | Body::Block(device) => (*device, inode.links),
                Body::Symlink { .. } | Body::Fifo | Body::Socket => (0, inode.links),
            };
            let encoded = format::Inode {
                layout: if inline > 0 { Layout::Inline } else { Layout::Plain },
                xattr_count: xattr::count(xattrs.len()),
                mode: type_bits(&inode.body) | inode.meta.mode,
                size: self.size(tree, place.ino),
                place: place_field,
                ino: place.nid,
                uid: inode.meta.uid,
                gid: inode.meta.gid,
                mtime: inode.meta.mtime,
                mtime_ns: inode.meta.mtime_ns,
                links,
            };
            output.pad_to(start + u64::from(place.nid) * SLOT as u64)?;
            output.append(&encoded.encode())?;
            output.append(xattrs)?;
            if inline == 0 {
                continue;
            }
            match &inode.body {
                Body::File(extent) => {
                    if let Some(at) = extent.tail_at {
                        output.append(tails.read(at.get(), inline)?)?;
                    }
                }
                Body::Dir(_) => {
                    self.each_dir_block(
                        tree,
                        place.ino,
                        |bytes, last| {
                            if last { output.append(bytes) } else { Ok(()) }
                        },
                    )?
                }
                _ => output.append(tree.target(place.ino).unwrap_or_default())?,
            }
        }
        for target in long_links {
            output.pad()?;
            output.append(target)?;
        }
        Ok(())
    }
}

/// All entries of a sorted directory in the order of their names, its two dots among them.
fn with_dots<'a>(tree: &'a Tree, dir: Ino, mut each: impl FnMut(&'a [u8], Ino)) {
    let mut dots = [(b".".as_slice(), dir), (b"..".as_slice(), tree.parent(dir))].into_iter().peekable();
    for (_, link) in tree.children(dir) {
        let name = tree.name(link);
        while let Some((dot, ino)) = dots.next_if(|(dot, _)| *dot < name) {
            each(dot, ino);
        }
        each(name, link.ino);
    }
    for (dot, ino) in dots {
        each(dot, ino);
    }
}

/// Gives out places in the metadata.
#[derive(Debug, Default)]
struct Slots {
    /// Slots given out so far, and all of earlier blocks.
    end: u64,
    /// Blocks with a rest: free slots, and where they begin. At most [`OPEN_BLOCKS`].
    open: BTreeSet<(usize, u64)>,
}

impl Slots {
    /// A place for so many bytes: within one block if they fit into one, from the start of a block otherwise.
    fn take(&mut self, bytes: usize) -> u64 {
        const PER_BLOCK: usize = BLOCK / SLOT;
        let need = bytes.div_ceil(SLOT);
        if self.end == 0 {
            // The first to ask is the root.
            self.end = PER_BLOCK as u64;
            let first = u64::from(ROOT_NID);
            self.open.insert((PER_BLOCK - usize::from(ROOT_NID), first));
        }
        let found = self.open.range((need, 0)..).next().copied();
        if let Some((room, at)) = found {
            self.open.remove(&(room, at));
            self.keep(room - need, at + need as u64);
            return at;
        }
        let at = self.end;
        let blocks = need.div_ceil(PER_BLOCK);
        self.end += (blocks * PER_BLOCK) as u64;
        self.keep(blocks * PER_BLOCK - need, at + need as u64);
        at
    }

    fn keep(&mut self, room: usize, at: u64) {
        // Nothing is smaller than an inode.
        if room * SLOT < INODE_SIZE {
            return;
        }
        self.open.insert((room, at));
        if self.open.len() > OPEN_BLOCKS {
            self.open.pop_first();
        }
    }
}

fn type_bits(body: &Body) -> u16 {
    match body {
        Body::Fifo => 0o010_000,
        Body::Char(_) => 0o020_000,
        Body::Dir(_) => 0o040_000,
        Body::Block(_) => 0o060_000,
        Body::File(_) => 0o100_000,
        Body::Symlink { .. } => 0o120_000,
        Body::Socket => 0o140_000,
    }
}

fn file_type(body: &Body) -> u8 {
    match body {
        Body::File(_) => 1,
        Body::Dir(_) => 2,
        Body::Char(_) => 3,
        Body::Block(_) => 4,
        Body::Fifo => 5,
        Body::Socket => 6,
        Body::Symlink { .. } => 7,
    }
}
