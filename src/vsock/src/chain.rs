//! Descriptor chains as lists of memory segments, and packets in them.
//!
//! The header may lie in a descriptor of its own, share one with the payload, or be cut in pieces. A segment is in guest
//! memory from end to end, or the chain is malformed.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

use crate::packet::{HEADER, Header};

/// The most segments of one chain: a payload of 64 KiB in pages, its header, and some to spare.
const MAX_SEGMENTS: usize = 64;

/// A chain from the guest that is no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// Its descriptors are not as they must be.
    Chain,
    /// It is shorter than its header says.
    Short(Header),
}

/// Reads a packet from the guest. Leaves exactly its payload in `segments`.
pub(crate) fn read<'m>(
    memory: &'m GuestMemoryMmap,
    chain: DescriptorChain<&'m GuestMemoryMmap>,
    segments: &mut Vec<VolatileSlice<'m>>,
) -> Result<Header, Malformed> {
    segments.clear();
    gather(memory, chain, false, segments).ok_or(Malformed::Chain)?;
    let mut bytes = [0; HEADER];
    let mut at = 0;
    let mut whole = 0;
    for segment in segments.iter_mut() {
        let count = segment.copy_to(&mut bytes[at..]);
        at += count;
        if count < segment.len() {
            *segment = segment.offset(count).map_err(|_| Malformed::Chain)?;
            break;
        }
        whole += 1;
    }
    if at < HEADER {
        return Err(Malformed::Chain);
    }
    segments.drain(..whole);

    let header = Header::decode(&bytes);
    let mut rest = usize::try_from(header.len).map_err(|_| Malformed::Short(header))?;
    let mut used = 0;
    for segment in segments.iter_mut() {
        if rest == 0 {
            break;
        }
        let count = segment.len().min(rest);
        *segment = segment.subslice(0, count).map_err(|_| Malformed::Chain)?;
        rest -= count;
        used += 1;
    }
    segments.truncate(used);
    if rest > 0 { Err(Malformed::Short(header)) } else { Ok(header) }
}

/// Appends a chain's segments if the device may write all of them, and returns their length.
pub(crate) fn writable<'m>(
    memory: &'m GuestMemoryMmap,
    chain: DescriptorChain<&'m GuestMemoryMmap>,
    segments: &mut Vec<VolatileSlice<'m>>,
) -> Option<usize> {
    gather(memory, chain, true, segments)
}

fn gather<'m>(
    memory: &'m GuestMemoryMmap,
    chain: DescriptorChain<&'m GuestMemoryMmap>,
    writable: bool,
    segments: &mut Vec<VolatileSlice<'m>>,
) -> Option<usize> {
    let access = if writable { Permissions::Write } else { Permissions::Read };
    let limit = segments.len() + MAX_SEGMENTS;
    let mut total = 0usize;
    for descriptor in chain {
        if descriptor.is_write_only() != writable {
            return None;
        }
        let len = usize::try_from(descriptor.len()).ok()?;
        if len == 0 {
            // An indirect table has room for 65535 of them.
            return None;
        }
        for segment in memory.get_slices(descriptor.addr(), len, access).ok()? {
            if segments.len() == limit {
                return None;
            }
            segments.push(segment.ok()?);
        }
        total = total.checked_add(len)?;
    }
    Some(total)
}

/// Writes `parts` one after the other, and returns how many bytes there was room for.
pub(crate) fn write(segments: &[VolatileSlice<'_>], parts: &[&[u8]]) -> usize {
    let mut segments = segments.iter().copied();
    let mut room = segments.next();
    let mut written = 0;
    for mut part in parts.iter().copied() {
        while let Some(segment) = room.filter(|_| !part.is_empty()) {
            let count = segment.len().min(part.len());
            segment.copy_from(&part[..count]);
            written += count;
            part = &part[count..];
            room = segment.offset(count).ok().filter(|rest| !rest.is_empty()).or_else(|| segments.next());
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::packet::{Credit, HOST_CID, Op, STREAM};

    const NEXT: u32 = VRING_DESC_F_NEXT;
    const WRITE: u32 = VRING_DESC_F_WRITE;

    fn header(len: u32) -> Header {
        Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: 1,
            dst_port: 2,
            len,
            kind: STREAM,
            op: Op::Data,
            flags: 0,
            credit: Credit::default(),
        }
    }

    /// Two regions side by side, so that a buffer may lie across their border at 0x10000.
    fn memory() -> GuestMemoryMmap {
        let halves = [(GuestAddress(0), 0x1_0000), (GuestAddress(0x1_0000), 0x1_0000)];
        GuestMemoryMmap::from_ranges(&halves).unwrap()
    }

    /// What the device makes of a chain of (address, length, flags).
    fn read_chain(
        memory: &GuestMemoryMmap,
        descriptors: &[(u64, u32, u32)],
    ) -> Result<(Header, Vec<u8>), Malformed> {
        let queue = MockSplitQueue::new(memory, 128);
        let raw: Vec<_> = descriptors
            .iter()
            .map(|(at, len, flags)| {
                RawDescriptor::from(Descriptor::new(*at, *len, u16::try_from(*flags).unwrap(), 0))
            })
            .collect();
        let chain = queue.build_desc_chain(&raw).unwrap();
        // The chain borrows the memory that the caller has, not the queue.
        let mut segments = Vec::new();
        let header = read(memory, chain, &mut segments)?;
        let mut payload = Vec::new();
        for segment in &segments {
            let start = payload.len();
            payload.resize(start + segment.len(), 0);
            segment.copy_to(&mut payload[start..]);
        }
        Ok((header, payload))
    }

    #[test]
    fn a_packet_is_found_however_it_is_cut() {
        let memory = memory();
        let mut bytes = header(1000).encode().to_vec();
        bytes.extend((0..1000u32).map(|number| u8::try_from(number % 251).unwrap()));
        // At the end of the first region, into the second.
        let at = 0x1_0000 - 500;
        memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        let cuts: [&[u32]; 5] = [&[1044], &[44, 1000], &[10, 20, 14, 1000], &[100, 400, 544], &[44, 2000]];
        for cut in cuts {
            let mut next = at;
            let mut descriptors = Vec::new();
            for (number, len) in cut.iter().enumerate() {
                let flags = if number + 1 < cut.len() { NEXT } else { 0 };
                descriptors.push((next, *len, flags));
                next += u64::from(*len);
            }
            let (found, payload) = read_chain(&memory, &descriptors).unwrap();
            assert_eq!(found, header(1000));
            assert_eq!(payload, &bytes[HEADER..], "{cut:?}");
        }
    }

    #[test]
    fn a_header_that_says_more_than_there_is_is_malformed() {
        let memory = memory();
        for len in [1001, 0x10_0000, u32::MAX] {
            memory.write_slice(&header(len).encode(), GuestAddress(0x8000)).unwrap();
            let result = read_chain(&memory, &[(0x8000, 1044, 0)]);
            assert_eq!(result, Err(Malformed::Short(header(len))));
        }
    }

    #[test]
    fn a_chain_that_is_not_readable_guest_memory_is_malformed() {
        let memory = memory();
        let broken: [&[(u64, u32, u32)]; 7] = [
            &[(0x8000, 43, 0)],
            &[(0x8000, 1044, WRITE)],
            &[(0x8000, 44, NEXT), (0x9000, 1000, WRITE)],
            &[(0x2_0000 - 100, 1044, 0)],
            &[(u64::MAX - 10, 1044, 0)],
            &[(0x8000, 44, NEXT), (0x9000, u32::MAX - 100, 0)],
            &[(0x8000, 44, NEXT), (0x9000, 0, 0)],
        ];
        for chain in broken {
            assert_eq!(read_chain(&memory, chain), Err(Malformed::Chain), "{chain:x?}");
        }
        let endless: Vec<_> = (0..100).map(|number| (0x8000 + number * 50, 50, NEXT)).collect();
        assert_eq!(read_chain(&memory, &endless), Err(Malformed::Chain));
    }

    #[test]
    fn writing_stops_where_the_segments_do() {
        let memory = memory();
        let segments: Vec<_> = [(0x8000, 3), (0x9000, 4)]
            .iter()
            .map(|(at, len)| memory.get_slices(GuestAddress(*at), *len, Permissions::Write).unwrap())
            .flat_map(|slices| slices.map(Result::unwrap))
            .collect();
        assert_eq!(write(&segments, &[b"ab", b"cdefghij"]), 7);
        let mut found = [0; 5];
        memory.read_slice(&mut found[..3], GuestAddress(0x8000)).unwrap();
        assert_eq!(&found[..3], b"abc");
        memory.read_slice(&mut found, GuestAddress(0x9000)).unwrap();
        assert_eq!(&found, b"defg\0");
    }
}
