//! Lets files with the same contents share their blocks.
//!
//! Of files with the same size and hash, only the first in the order of inodes is a candidate, and each file is compared
//! with one candidate at most: the work is linear in the bytes, whatever collides.

use std::hash::{BuildHasher, RandomState};
use std::io;

use hashbrown::HashTable;

use super::BLOCK;
use super::space::Space;
use super::tree::{Body, Extent, Ino, Tree};
use super::writer::living;

/// Bytes compared at once.
const PIECE: usize = 256 << 10;

/// Of all living files with blocks; how many bytes are saved. Blocks that nothing refers to any more are among the dead.
/// Nothing when `going` said no.
pub(super) fn share(
    space: &Space,
    tree: &mut Tree,
    going: &mut dyn FnMut() -> bool,
) -> io::Result<Option<u64>> {
    let hasher = RandomState::new();
    let mut first: HashTable<u32> = HashTable::new();
    let mut saved = 0;
    for ino in living(tree) {
        let Some(extent) = extent(tree, ino) else { continue };
        let hash = |extent: &Extent| hasher.hash_one(key(extent));
        let of = |number: &u32| extent_of(tree, *number);
        let same = |number: &u32| of(number).is_some_and(|known| key(&known) == key(&extent));
        let Some(known) = first.find(hash(&extent), same).and_then(of) else {
            first.insert_unique(hash(&extent), ino.0, |number| of(number).map_or(0, |extent| hash(&extent)));
            continue;
        };
        let Some(same) = are_same(space, &known, &extent, going)? else { return Ok(None) };
        if same {
            if let Body::File(shared) = &mut tree.inodes[ino.0 as usize].body {
                shared.first_block = known.first_block;
            }
            tree.dead.push((extent.first_block, extent.blocks));
            saved += u64::from(extent.blocks) * BLOCK as u64;
        }
    }
    Ok(Some(saved))
}

/// What files must have in common to be compared. The number of blocks is not the same when attributes leave one of them
/// less room for its tail.
fn key(extent: &Extent) -> (u64, u32, u64) {
    (extent.size, extent.blocks, extent.hash)
}

fn extent(tree: &Tree, ino: Ino) -> Option<Extent> {
    extent_of(tree, ino.0)
}

/// The extent of a file that has blocks.
fn extent_of(tree: &Tree, number: u32) -> Option<Extent> {
    match &tree.inode(Ino(number)).body {
        Body::File(extent) if extent.blocks > 0 => Some(*extent),
        _ => None,
    }
}

/// Compares the blocks of two extents with as many of them.
fn are_same(
    space: &Space,
    a: &Extent,
    b: &Extent,
    going: &mut dyn FnMut() -> bool,
) -> io::Result<Option<bool>> {
    let at = |extent: &Extent| u64::from(extent.first_block) * BLOCK as u64;
    let (a_at, b_at, length) = (at(a), at(b), u64::from(a.blocks) * BLOCK as u64);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let mut done = 0;
    while done < length {
        if !going() {
            return Ok(None);
        }
        let piece = usize::try_from(length - done).unwrap_or(usize::MAX).min(PIECE);
        for (bytes, at) in [(&mut a, a_at), (&mut b, b_at)] {
            bytes.resize(piece, 0);
            space.read(bytes, at + done)?;
        }
        if a != b {
            return Ok(Some(false));
        }
        done += piece as u64;
    }
    Ok(Some(true))
}
