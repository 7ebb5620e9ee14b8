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
