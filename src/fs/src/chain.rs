//! One descriptor chain: a request, and room for its reply.
//!
//! ```text
//!   readable: header │ fields │ data of a WRITE      writable: header │ body, or data of a READ
//! ```
//!
//! Where the parts are cut does not matter. Descriptors that lie side by side in guest memory are one segment, so that a
//! file is read and written in few calls. A segment is in guest memory from end to end, or the chain is malformed.
//!
//! The guest may change its memory at any time. So header and fields are copied once, and only the copy is looked at.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};

use virtio_queue::DescriptorChain;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryMmap, Permissions, ReadVolatile, VolatileMemoryError,
    VolatileSlice, WriteVolatile,
};

use crate::MAX_REQUEST;
use crate::request::{Header, WRITE};
use crate::share::Data;
use crate::wire::{IN_HEADER, OUT_HEADER, WRITE_FIELDS};

/// The most descriptors of one chain: a megabyte in pages, and some to spare.
const MAX_DESCRIPTORS: usize = 1024;

/// A list of segments, of which some at the front are used up.
#[derive(Debug, Default)]
struct Segments<'m> {
    list: Vec<VolatileSlice<'m>>,
    len: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Chain<'m> {
    readable: Segments<'m>,
    writable: Segments<'m>,
}

/// It is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl<'m> Segments<'m> {
    fn add(&mut self, memory: &'m GuestMemoryMmap, run: Run) -> Result<(), Malformed> {
        let access = if run.writable { Permissions::Write } else { Permissions::Read };
        for segment in memory.get_slices(run.at, run.len, access).map_err(|_| Malformed)? {
            self.list.push(segment.map_err(|_| Malformed)?);
        }
        self.len = self.len.checked_add(run.len).ok_or(Malformed)?;
        Ok(())
    }

    /// What remains behind the first `count` bytes.
    fn after(&self, count: usize) -> impl Iterator<Item = VolatileSlice<'m>> + '_ {
        let mut left = count;
        self.list.iter().filter_map(move |segment| {
            let skipped = left.min(segment.len());
            left -= skipped;
            segment.offset(skipped).ok().filter(|rest| !rest.is_empty())
        })
    }

    /// Copies from what is behind the first `start` bytes. Returns how many there were.
    fn copy_to(&self, start: usize, bytes: &mut [u8]) -> usize {
        let mut filled = 0;
        for segment in self.after(start) {
            let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) else { break };
            filled += segment.copy_to(rest);
        }
        filled
    }

    fn copy_from(&self, start: usize, mut bytes: &[u8]) -> usize {
        let mut written = 0;
        for segment in self.after(start) {
            let (part, rest) = bytes.split_at(segment.len().min(bytes.len()));
            segment.copy_from(part);
            written += part.len();
            bytes = rest;
            if bytes.is_empty() {
                break;
            }
        }
        written
    }
}

/// Descriptors side by side.
#[derive(Clone, Copy, Debug)]
struct Run {
    at: GuestAddress,
    len: usize,
    writable: bool,
}

impl<'m> Chain<'m> {
    pub(crate) fn new(
        memory: &'m GuestMemoryMmap,
        descriptors: DescriptorChain<&'m GuestMemoryMmap>,
    ) -> Result<Self, Malformed> {
        let mut chain = Self::default();
        let mut run: Option<Run> = None;
        for (number, descriptor) in descriptors.enumerate() {
            if number == MAX_DESCRIPTORS {
                return Err(Malformed);
            }
            let len = usize::try_from(descriptor.len()).map_err(|_| Malformed)?;
            let writable = descriptor.is_write_only();
            match &mut run {
                _ if len == 0 => {}
                Some(run) if run.writable && !writable => return Err(Malformed),
                Some(run)
                    if run.writable == writable
                        && u64::try_from(run.len).ok().and_then(|len| run.at.0.checked_add(len))
                            == Some(descriptor.addr().0) =>
                {
                    run.len = run.len.checked_add(len).ok_or(Malformed)?;
                }
                current => {
                    if let Some(finished) = current.replace(Run { at: descriptor.addr(), len, writable }) {
                        chain.add(memory, finished)?;
                    }
                }
            }
        }
        if let Some(finished) = run {
            chain.add(memory, finished)?;
        }
        Ok(chain)
    }

    fn add(&mut self, memory: &'m GuestMemoryMmap, run: Run) -> Result<(), Malformed> {
        if run.writable { self.writable.add(memory, run) } else { self.readable.add(memory, run) }
    }

    /// Copies what is not data, with the fields into `fields`. A request is as long as its header says, and no longer than
    /// what there is.
    pub(crate) fn request(&mut self, fields: &mut Vec<u8>) -> Result<Header, Malformed> {
        let mut bytes = [0; IN_HEADER];
        if self.readable.copy_to(0, &mut bytes) < IN_HEADER {
            return Err(Malformed);
        }
        let header = Header::parse(&bytes).map_err(|_| Malformed)?;
        let len = usize::try_from(header.len).map_err(|_| Malformed)?;
        if len < IN_HEADER || len > self.readable.len || len > MAX_REQUEST {
            return Err(Malformed);
        }
        self.readable.len = len;
        let rest = len - IN_HEADER;
        let wanted = if header.opcode == WRITE { rest.min(WRITE_FIELDS) } else { rest };
        fields.clear();
        fields.resize(wanted, 0);
        self.readable.copy_to(IN_HEADER, fields);
        Ok(header)
    }

    /// Whether there is room for any reply at all.
    pub(crate) fn is_answerable(&self) -> bool {
        self.writable.len >= OUT_HEADER
    }

    /// Writes a reply, whose body may have been loaded already. Returns how many bytes there are.
    pub(crate) fn reply(&self, header: &[u8; OUT_HEADER], body: &[u8], loaded: usize) -> u32 {
        let start = self.writable.copy_from(0, header);
        let written = start.saturating_add(self.writable.copy_from(OUT_HEADER, body)).saturating_add(loaded);
        u32::try_from(written).unwrap_or(u32::MAX)
    }
}

fn into_io(error: VolatileMemoryError) -> io::Error {
    match error {
        VolatileMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    }
}

impl Data for Chain<'_> {
    fn arrived(&self) -> usize {
        self.readable.len.saturating_sub(IN_HEADER + WRITE_FIELDS)
    }

    fn room(&self) -> usize {
        self.writable.len.saturating_sub(OUT_HEADER)
    }

    fn store(&mut self, file: &File, offset: u64, len: usize) -> io::Result<usize> {
        let mut file = file;
        file.seek(SeekFrom::Start(offset))?;
        transfer(self.readable.after(IN_HEADER + WRITE_FIELDS), len, |segment| file.write_volatile(segment))
    }

    fn load(&mut self, file: &File, offset: u64, len: usize) -> io::Result<usize> {
        let mut file = file;
        file.seek(SeekFrom::Start(offset))?;
        transfer(self.writable.after(OUT_HEADER), len, |segment| file.read_volatile(segment))
    }
}

/// Moves up to `len` bytes, segment by segment, until one says that there is no more.
fn transfer<'m>(
    segments: impl Iterator<Item = VolatileSlice<'m>>,
    len: usize,
    mut step: impl FnMut(&mut VolatileSlice<'m>) -> Result<usize, VolatileMemoryError>,
) -> io::Result<usize> {
    let mut moved = 0usize;
    for segment in segments {
        let wanted = segment.len().min(len.saturating_sub(moved));
        let Ok(mut rest) = segment.subslice(0, wanted) else { break };
        while !rest.is_empty() {
            match step(&mut rest).map_err(into_io) {
                Ok(0) => return Ok(moved),
                Ok(count) => {
                    moved = moved.saturating_add(count);
                    let Ok(left) = rest.offset(count) else { return Ok(moved) };
                    rest = left;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if moved == 0 => return Err(error),
                // What was moved counts. The guest comes back for the error.
                Err(_) => return Ok(moved),
            }
        }
        if moved >= len {
            break;
        }
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::Bytes;

    use super::*;

    const NEXT: u32 = VRING_DESC_F_NEXT;
    const WRITABLE: u32 = VRING_DESC_F_WRITE;

    /// Two regions side by side, so that a buffer may lie across their border at 0x40000.
    fn memory() -> GuestMemoryMmap {
        let halves = [(GuestAddress(0), 0x4_0000), (GuestAddress(0x4_0000), 0x4_0000)];
        GuestMemoryMmap::from_ranges(&halves).unwrap()
    }

    /// What the device makes of a chain of (address, length, flags).
    fn chain<'m>(
        memory: &'m GuestMemoryMmap,
        queue: &'m MockSplitQueue<'_, GuestMemoryMmap>,
        descriptors: &[(u64, u32, u32)],
    ) -> Result<Chain<'m>, Malformed> {
        let raw: Vec<_> = descriptors
            .iter()
            .map(|(at, len, flags)| {
                RawDescriptor::from(Descriptor::new(*at, *len, u16::try_from(*flags).unwrap(), 0))
            })
            .collect();
        Chain::new(memory, queue.build_desc_chain(&raw).unwrap())
    }

    /// A header that says so, and zeros.
    fn put_header(memory: &GuestMemoryMmap, at: u64, len: u32, opcode: u32) {
        memory.write_slice(&[len.to_ne_bytes(), opcode.to_ne_bytes()].concat(), GuestAddress(at)).unwrap();
    }

    #[test]
    fn a_request_is_found_however_it_is_cut() {
        let memory = memory();
        let queue = MockSplitQueue::new(&memory, 2048);
        let at = 0x4_0000 - 50;
        put_header(&memory, at, 100, 1);
        memory.write_slice(&[7; 60], GuestAddress(at + 40)).unwrap();
        for cut in [&[100][..], &[40, 60], &[1, 38, 2, 59], &[50, 50], &[100, 30]] {
            let mut next = at;
            let mut descriptors = Vec::new();
            for len in cut {
                descriptors.push((next, *len, NEXT));
                next += u64::from(*len);
            }
            descriptors.push((0x6_0000, 8, WRITABLE | NEXT));
            descriptors.push((0x7_0000, 8, WRITABLE));
            let mut chain = chain(&memory, &queue, &descriptors).unwrap();
            let mut fields = Vec::new();
            let header = chain.request(&mut fields).unwrap();
            assert_eq!((header.len, header.opcode, &*fields), (100, 1, &[7; 60][..]), "{cut:?}");
            assert!(chain.is_answerable());
            assert_eq!(chain.reply(&[9; OUT_HEADER], b"no room", 0), 16);
            let mut written = [0; 8];
            memory.read_slice(&mut written, GuestAddress(0x7_0000)).unwrap();
            assert_eq!(written, [9; 8]);
        }
    }

    #[test]
    fn descriptors_side_by_side_are_one_segment() {
        let memory = memory();
        let queue = MockSplitQueue::new(&memory, 2048);
        let pages: Vec<_> = (0..16).map(|page| (0x1_8000 + page * 0x1000, 0x1000, WRITABLE | NEXT)).collect();
        let chain = chain(&memory, &queue, &pages).unwrap();
        assert_eq!((chain.writable.list.len(), chain.room()), (1, 0x1_0000 - OUT_HEADER));
    }

    #[test]
    fn a_chain_that_is_no_request_is_malformed() {
        let memory = memory();
        let queue = MockSplitQueue::new(&memory, 2048);
        put_header(&memory, 0x1_8000, 60, 1);
        let broken: [&[(u64, u32, u32)]; 7] = [
            &[(0x1_8000, 39, 0)],
            &[(0x1_8000, 59, 0)],
            &[(0x1_8000, 60, WRITABLE)],
            &[(0x7_0000, 16, WRITABLE | NEXT), (0x1_8000, 60, 0)],
            &[(0x8_0000 - 10, 60, 0)],
            &[(u64::MAX - 10, 60, 0)],
            &[(0x1_8000, 60, NEXT), (0x1_8000 + 60, u32::MAX - 100, 0)],
        ];
        for descriptors in broken {
            let result =
                chain(&memory, &queue, descriptors).and_then(|mut chain| chain.request(&mut Vec::new()));
            assert_eq!(result, Err(Malformed), "{descriptors:x?}");
        }
        let endless: Vec<_> = (0..1100).map(|_| (0x1_8000, 60, NEXT)).collect();
        assert!(chain(&memory, &queue, &endless).is_err());
    }

    #[test]
    fn a_header_that_lies_about_the_length_is_malformed() {
        let memory = memory();
        let queue = MockSplitQueue::new(&memory, 2048);
        for len in [0, 39, 61, u32::MAX] {
            put_header(&memory, 0x1_8000, len, 1);
            let mut chain = chain(&memory, &queue, &[(0x1_8000, 60, 0)]).unwrap();
            assert_eq!(chain.request(&mut Vec::new()), Err(Malformed), "{len}");
        }
    }

    #[test]
    fn data_goes_between_a_file_and_scattered_memory() {
        let memory = memory();
        let queue = MockSplitQueue::new(&memory, 2048);
        put_header(&memory, 0x1_8000, 80 + 300, WRITE);
        let data: Vec<u8> = (0..300u32).map(|number| u8::try_from(number % 251).unwrap()).collect();
        memory.write_slice(&data[..200], GuestAddress(0x2_0000)).unwrap();
        memory.write_slice(&data[200..], GuestAddress(0x3_0000)).unwrap();
        let mut chain = chain(
            &memory,
            &queue,
            &[
                (0x1_8000, 80, NEXT),
                (0x2_0000, 200, NEXT),
                (0x3_0000, 100, NEXT),
                (0x6_0000, 100, WRITABLE | NEXT),
                (0x7_0000, 1000, WRITABLE),
            ],
        )
        .unwrap();
        let mut fields = Vec::new();
        chain.request(&mut fields).unwrap();
        assert_eq!((fields.len(), chain.arrived(), chain.room()), (WRITE_FIELDS, 300, 1084));
        let file = tempfile::tempfile().unwrap();
        assert_eq!(chain.store(&file, 7, 300).unwrap(), 300);
        assert_eq!(file.metadata().unwrap().len(), 307);
        assert_eq!(chain.load(&file, 7, 1000).unwrap(), 300, "the file has no more");
        let mut loaded = [0; 300];
        memory.read_slice(&mut loaded[..84], GuestAddress(0x6_0000 + 16)).unwrap();
        memory.read_slice(&mut loaded[84..], GuestAddress(0x7_0000)).unwrap();
        assert_eq!(loaded, *data);
        assert_eq!(chain.load(&file, 7, 10).unwrap(), 10, "no more than was asked for");
    }
}
