//! Where the content of a sparse file is; the rest are holes.
//!
//! A map's extents are in order, do not overlap and do not leave the file, and there are not too many of them. A map
//! that breaks this cannot be made.

use crate::number;
use crate::stream::StreamError;

/// How many extents a map may have. A file with more is packed with the last ones as one, and not unpacked.
pub(crate) const MAX_EXTENTS: usize = 1 << 18;

/// A piece of a file with content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SparseMap {
    size: u64,
    extents: Vec<Extent>,
}

impl SparseMap {
    /// A file of this size with nothing but a hole.
    pub(crate) fn new(size: u64) -> Self {
        Self { size, extents: Vec::new() }
    }

    /// The size of the file, with its holes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    pub(crate) fn is_full(&self) -> bool {
        self.extents.len() >= MAX_EXTENTS
    }

    /// How much content there is.
    pub(crate) fn stored(&self) -> u64 {
        // Extents lie one after the other in the file, so the sum is its size at most.
        self.extents.iter().fold(0, |sum, extent| sum + extent.length)
    }

    /// Adds an extent behind the others. One without length marks the end and adds nothing.
    pub(crate) fn push(&mut self, offset: u64, length: u64) -> Result<(), StreamError> {
        let before = self.extents.last().map_or(0, |last| last.offset + last.length);
        let end = offset.checked_add(length).filter(|end| offset >= before && *end <= self.size);
        if end.is_none() {
            return Err(StreamError::Malformed("the map of a sparse file has extents that cannot be"));
        }
        if length > 0 {
            if self.is_full() {
                return Err(StreamError::TooLarge { what: "the map of a sparse file", limit: MAX_EXTENTS });
            }
            self.extents.push(Extent { offset, length });
        }
        Ok(())
    }

    /// The map as text, as version 1.0 of GNU's format puts it in front of the content, in whole blocks.
    pub(crate) fn to_text(&self) -> Vec<u8> {
        // A hole at the end is told by an extent of nothing behind it.
        let end = self.extents.last().map_or(0, |last| last.offset + last.length);
        let last = (end < self.size).then_some(Extent { offset: self.size, length: 0 });
        let count = self.extents.len() + usize::from(last.is_some());
        let mut text = format!("{count}\n").into_bytes();
        for extent in self.extents.iter().chain(&last) {
            text.extend_from_slice(format!("{}\n{}\n", extent.offset, extent.length).as_bytes());
        }
        text.resize(text.len().next_multiple_of(512), 0);
        text
    }
}

/// Reads a map that was written as by [`SparseMap::to_text`], block by block.
#[derive(Debug)]
pub(crate) struct MapText {
    map: SparseMap,
    line: Vec<u8>,
    /// How many numbers are to come; `None` before the count of extents is known.
    left: Option<u64>,
    offset: Option<u64>,
}

impl MapText {
    pub(crate) fn new(size: u64) -> Self {
        Self { map: SparseMap::new(size), line: Vec::new(), left: None, offset: None }
    }

    /// Takes the next block; true when the map is complete with it.
    pub(crate) fn take(&mut self, block: &[u8]) -> Result<bool, StreamError> {
        for byte in block {
            if self.left == Some(0) {
                break;
            }
            if *byte != b'\n' {
                // The largest number has 20 digits.
                if self.line.len() == 20 {
                    return Err(StreamError::Malformed(
                        "the map of a sparse file has a number that is too long",
                    ));
                }
                self.line.push(*byte);
                continue;
            }
            let number = number::decimal(&self.line)
                .ok_or(StreamError::Malformed("the map of a sparse file has something that is no number"))?;
            self.line.clear();
            self.number(number)?;
        }
        Ok(self.left == Some(0))
    }

    fn number(&mut self, number: u64) -> Result<(), StreamError> {
        let Some(left) = &mut self.left else {
            if usize::try_from(number).map_or(true, |count| count > MAX_EXTENTS + 1) {
                return Err(StreamError::TooLarge { what: "the map of a sparse file", limit: MAX_EXTENTS });
            }
            self.left = Some(number * 2);
            return Ok(());
        };
        *left = left.saturating_sub(1);
        match self.offset.take() {
            Some(offset) => self.map.push(offset, number)?,
            None => self.offset = Some(number),
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> SparseMap {
        self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_takes_no_extent_that_overlaps_goes_back_or_leaves_the_file() {
        let mut map = SparseMap::new(100);
        map.push(10, 20).unwrap();
        for (offset, length) in [(29, 1), (0, 5), (90, 11), (u64::MAX, 2), (101, 0), (5, 0)] {
            assert!(map.push(offset, length).is_err(), "{offset} {length}");
        }
        map.push(30, 1).unwrap();
        map.push(100, 0).unwrap();
        assert_eq!((map.stored(), map.extents().len()), (21, 2));
    }

    #[test]
    fn a_map_is_read_back_from_its_text_in_any_number_of_blocks() {
        let mut map = SparseMap::new(u64::MAX);
        for at in 0..200 {
            map.push(at * 1_000_000, 17).unwrap();
        }
        let text = map.to_text();
        let mut reader = MapText::new(u64::MAX);
        let mut blocks = text.chunks(512);
        while !reader.take(blocks.next().unwrap()).unwrap() {}
        assert_eq!(blocks.next(), None);
        assert_eq!(reader.finish(), map);
    }

    #[test]
    fn a_text_that_is_no_map_is_refused_before_it_is_stored() {
        for text in [
            "99999999\n",
            "18446744073709551616\n",
            "1\n-1\n",
            "1\n111111111111111111111",
            "1\n\n",
            "2\n8\n1\n0\n1\n",
        ] {
            assert!(MapText::new(100).take(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
