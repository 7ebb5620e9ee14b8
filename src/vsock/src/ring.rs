//! One virtqueue: taking buffers from the guest, giving them back, and telling each other no more often than needed.
//!
//! The guest writes the ring and everything that it points to. Whatever does not add up marks the ring as broken; it is
//! then left alone until the guest's driver starts anew, so that no nonsense can keep the device busy.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestMemoryMmap, VolatileSlice};

use crate::chain;
use crate::packet::HEADER;

/// The most descriptors that a ring may have.
pub(crate) const MAX_SIZE: u16 = 1024;

/// A ring as the VMM has configured it.
#[derive(Debug)]
pub struct Ring {
    pub(crate) queue: Queue,
    /// Readable when the guest has added buffers.
    pub(crate) kick: Option<File>,
    /// Written to interrupt the guest.
    pub(crate) call: Option<File>,
    pub(crate) enabled: bool,
    broken: bool,
    /// Buffers were given back since the guest was last told.
    returned: bool,
    /// There was said to be another buffer.
    promised: bool,
    /// Where the ring stood when the VMM stopped it.
    pub(crate) stopped_at: Option<u16>,
}

/// Buffers that the guest has provided for receiving, taken but not used yet.
#[derive(Debug, Default)]
pub(crate) struct Room<'m> {
    slots: Vec<Slot>,
    segments: Vec<VolatileSlice<'m>>,
    /// The ring's position before the first slot.
    start: u16,
}

/// One buffer: room for a packet with a payload of up to `payload` bytes, at least one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    head: u16,
    first: usize,
    end: usize,
    pub(crate) payload: usize,
}

impl Room<'_> {
    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Bytes of payload that fit.
    pub(crate) fn payload(&self) -> usize {
        self.slots.iter().map(|slot| slot.payload).sum()
    }

    /// Writes a packet. What does not fit is cut off; callers look at [`Slot::payload`].
    fn fill(&self, slot: &Slot, header: &[u8; HEADER], payload: &[u8]) -> u32 {
        let written = chain::write(&self.segments[slot.first..slot.end], &[header, payload]);
        u32::try_from(written).unwrap_or(u32::MAX)
    }
}

impl Ring {
    pub(crate) fn new() -> Result<Self, virtio_queue::Error> {
        Ok(Self {
            queue: Queue::new(MAX_SIZE)?,
            kick: None,
            call: None,
            enabled: false,
            broken: false,
            returned: false,
            promised: false,
            stopped_at: None,
        })
    }

    /// The VMM has started it, so there are buffers to take.
    pub fn is_running(&self) -> bool {
        self.queue.ready() && self.enabled && !self.broken
    }

    /// Starts it, and forgets what an earlier driver did wrong.
    pub(crate) fn start(&mut self) {
        self.queue.set_ready(true);
        self.broken = false;
        self.returned = false;
        self.promised = false;
    }

    pub(crate) fn stop(&mut self) {
        self.queue.set_ready(false);
        self.stopped_at = Some(self.queue.next_avail());
    }

    fn give_up(&mut self, why: &str) {
        self.broken = true;
        tracing::warn!(why, "a virtqueue is broken and is ignored until the guest restarts it");
    }

    /// The next buffer that the guest has added.
    pub fn pop<'m>(&mut self, memory: &'m GuestMemoryMmap) -> Option<DescriptorChain<&'m GuestMemoryMmap>> {
        if !self.is_running() {
            return None;
        }
        let size = self.queue.size();
        let chain = match self.queue.iter(memory) {
            Ok(mut available) => available.next(),
            Err(_) => {
                self.give_up("its available index is out of range");
                return None;
            }
        };
        let promised = std::mem::take(&mut self.promised);
        let Some(chain) = chain else {
            if promised {
                self.give_up("it has entries that cannot be read");
            }
            return None;
        };
        if chain.head_index() >= size {
            self.give_up("a chain starts outside of the descriptor table");
            return None;
        }
        Some(chain)
    }

    /// Gives a buffer back, of which `len` bytes were written.
    pub fn give_back(&mut self, memory: &GuestMemoryMmap, head: u16, len: u32) {
        match self.queue.add_used(memory, head, len) {
            Ok(()) => self.returned = true,
            Err(_) => self.give_up("its used ring is outside of memory"),
        }
    }

    /// Takes buffers for `payload` bytes, or as many as there are, at most `max`. Ends with [`settle`](Self::settle).
    ///
    /// A buffer that cannot hold a packet goes back unused, at most a ring full of them: a guest that adds them as fast
    /// as they come back must not keep the device here.
    pub(crate) fn reserve<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        payload: usize,
        max: usize,
        room: &mut Room<'m>,
    ) {
        room.slots.clear();
        room.segments.clear();
        room.start = self.queue.next_avail();
        let mut total = 0;
        let mut unusable = 0;
        while unusable < self.queue.size()
            && room.slots.len() < max
            && (total < payload || room.slots.is_empty())
        {
            let Some(chain) = self.pop(memory) else { break };
            let head = chain.head_index();
            let first = room.segments.len();
            match chain::writable(memory, chain, &mut room.segments) {
                Some(len) if len > HEADER => {
                    let payload = len - HEADER;
                    total += payload;
                    room.slots.push(Slot { head, first, end: room.segments.len(), payload });
                }
                _ if room.slots.is_empty() => {
                    unusable += 1;
                    room.segments.truncate(first);
                    self.give_back(memory, head, 0);
                    room.start = self.queue.next_avail();
                }
                // Given back next time, when it comes first: what is untaken below has to be at the end.
                _ => break,
            }
        }
    }

    /// Fills the first slots of a reservation and puts the rest back for the next one.
    pub(crate) fn settle<'p>(
        &mut self,
        memory: &GuestMemoryMmap,
        room: &Room<'_>,
        packets: impl Iterator<Item = ([u8; HEADER], &'p [u8])>,
    ) {
        let mut position = room.start;
        for (slot, (header, payload)) in room.slots.iter().zip(packets) {
            let len = room.fill(slot, &header, payload);
            self.give_back(memory, slot.head, len);
            position = position.wrapping_add(1);
        }
        self.queue.set_next_avail(position);
    }

    /// Asks the guest to kick when it adds a buffer. `true`: it already has, and may not kick for that one.
    pub fn listen(&mut self, memory: &GuestMemoryMmap) -> bool {
        if !self.is_running() {
            return false;
        }
        match self.queue.enable_notification(memory) {
            Ok(more) => {
                self.promised = more;
                more
            }
            Err(_) => {
                self.give_up("its rings are outside of memory");
                false
            }
        }
    }

    /// Asks the guest not to kick while the ring is being worked on anyway.
    pub fn stop_listening(&mut self, memory: &GuestMemoryMmap) {
        if self.is_running() && self.queue.disable_notification(memory).is_err() {
            self.give_up("its rings are outside of memory");
        }
    }

    /// Interrupts the guest if buffers were given back and it wants to know.
    pub fn notify(&mut self, memory: &GuestMemoryMmap) {
        if !std::mem::take(&mut self.returned) {
            return;
        }
        match self.queue.needs_notification(memory) {
            Ok(false) => {}
            Ok(true) => {
                let result = self.call.as_mut().map_or(Ok(()), |call| call.write_all(&1u64.to_ne_bytes()));
                // A full counter means that the guest has many interrupts to take already.
                if result.is_err_and(|error| error.kind() != ErrorKind::WouldBlock) {
                    self.give_up("the guest cannot be interrupted");
                }
            }
            Err(_) => self.give_up("its available ring is outside of memory"),
        }
    }

    /// Resets the kick descriptor.
    pub fn take_kick(&mut self) {
        let mut counter = [0; 8];
        // It was readable, and nobody else reads it; an empty counter is as good as one that was reset.
        if let Some(Err(error)) = self.kick.as_mut().map(|kick| kick.read(&mut counter))
            && !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
        {
            self.give_up("its kick descriptor cannot be read");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const SIZE: u16 = 8;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2_0000)]).unwrap()
    }

    /// A ring in which the guest has provided buffers of these lengths.
    fn ring(memory: &GuestMemoryMmap, lengths: &[u32]) -> Ring {
        let guest = MockSplitQueue::new(memory, SIZE);
        let write = u16::try_from(VRING_DESC_F_WRITE).unwrap();
        let descriptors: Vec<_> = (0..)
            .zip(lengths)
            .map(|(number, len)| {
                RawDescriptor::from(Descriptor::new(0x8000 + number * 0x1000, *len, write, 0))
            })
            .collect();
        guest.add_desc_chains(&descriptors, 0).unwrap();
        let mut ring = Ring::new().unwrap();
        ring.queue = guest.create_queue().unwrap();
        // The mock leaves no room for the index behind the available ring.
        ring.queue.try_set_used_ring_address(GuestAddress(0x4000)).unwrap();
        ring.enabled = true;
        ring.start();
        ring
    }

    fn set_available_index(memory: &GuestMemoryMmap, ring: &Ring, index: u16) {
        memory.write_obj(index.to_le(), GuestAddress(ring.queue.avail_ring() + 2)).unwrap();
    }

    fn used_index(memory: &GuestMemoryMmap, ring: &Ring) -> u16 {
        u16::from_le(memory.read_obj(GuestAddress(ring.queue.used_ring() + 2)).unwrap())
    }

    #[test]
    fn buffers_that_were_not_needed_are_there_the_next_time() {
        let memory = memory();
        let mut ring = ring(&memory, &[144, 144, 144]);
        let mut room = Room::default();
        ring.reserve(&memory, 150, 8, &mut room);
        assert_eq!((room.slots().len(), room.payload()), (2, 200));
        ring.settle(&memory, &room, std::iter::once(([1; HEADER], &[7; 30][..])));
        assert_eq!(used_index(&memory, &ring), 1);
        let mut written = [0; 74];
        memory.read_slice(&mut written, GuestAddress(0x8000)).unwrap();
        assert_eq!((&written[..HEADER], &written[HEADER..]), (&[1; HEADER][..], &[7; 30][..]));

        ring.reserve(&memory, 1000, 8, &mut room);
        assert_eq!(room.slots().len(), 2);
        ring.settle(&memory, &room, std::iter::empty());
        assert_eq!(used_index(&memory, &ring), 1, "nothing was used");
    }

    #[test]
    fn a_buffer_that_cannot_hold_a_packet_goes_back_and_the_next_one_is_taken() {
        let memory = memory();
        let mut ring = ring(&memory, &[44, 10, 144, 44, 144]);
        let mut room = Room::default();
        ring.reserve(&memory, 150, 8, &mut room);
        assert_eq!((room.slots().len(), used_index(&memory, &ring)), (1, 2));
        ring.settle(&memory, &room, std::iter::once(([1; HEADER], &[][..])));
        ring.reserve(&memory, 150, 8, &mut room);
        assert_eq!((room.slots().len(), used_index(&memory, &ring)), (1, 4));
    }

    #[test]
    fn a_guest_that_keeps_adding_buffers_that_hold_nothing_does_not_keep_the_device() {
        let memory = memory();
        let mut ring = ring(&memory, &[10; 8]);
        let (available, used) = (ring.queue.avail_ring() + 2, ring.queue.used_ring() + 2);
        let mut room = Room::default();
        let returned = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // The same ones, offered again at once; not for ever, so that a device which takes them all is seen.
                for _ in 0..1_000_000 {
                    let used = u16::from_le(memory.read_obj(GuestAddress(used)).unwrap());
                    memory.write_obj((used.wrapping_add(SIZE)).to_le(), GuestAddress(available)).unwrap();
                    if returned.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let mut most = 0;
            for _ in 0..10_000 {
                let before = used_index(&memory, &ring);
                ring.reserve(&memory, 150, 8, &mut room);
                most = most.max(used_index(&memory, &ring).wrapping_sub(before));
            }
            returned.store(true, Ordering::Relaxed);
            assert_eq!(most, SIZE);
        });
        assert!(ring.is_running());
    }

    #[test]
    fn a_ring_that_lies_about_its_entries_is_left_alone_until_it_is_started_again() {
        let memory = memory();
        let mut ring = ring(&memory, &[144]);
        set_available_index(&memory, &ring, SIZE + 1);
        assert!(ring.pop(&memory).is_none());
        assert!(!ring.is_running());
        assert!(!ring.listen(&memory), "it must not keep the device busy");
        set_available_index(&memory, &ring, 1);
        assert!(ring.pop(&memory).is_none());
        ring.start();
        assert!(ring.pop(&memory).is_some());
    }

    #[test]
    fn a_chain_outside_of_the_table_breaks_the_ring() {
        let memory = memory();
        let mut ring = ring(&memory, &[144]);
        memory.write_obj(SIZE.to_le(), GuestAddress(ring.queue.avail_ring() + 4)).unwrap();
        assert!(ring.pop(&memory).is_none());
        assert!(!ring.is_running());
    }

    #[test]
    fn a_guest_is_interrupted_when_it_wants_to_be_and_buffers_were_given_back() {
        let memory = memory();
        let mut ring = ring(&memory, &[144, 144]);
        ring.queue.set_event_idx(true);
        let file = tempfile::tempfile().unwrap();
        ring.call = Some(file.try_clone().unwrap());
        let interrupts = || file.metadata().unwrap().len() / 8;
        let wanted_at = GuestAddress(ring.queue.avail_ring() + 4 + u64::from(SIZE) * 2);

        ring.notify(&memory);
        assert_eq!(interrupts(), 0, "nothing was given back");
        memory.write_obj(5u16.to_le(), wanted_at).unwrap();
        ring.give_back(&memory, 0, 0);
        ring.notify(&memory);
        assert_eq!(interrupts(), 0, "the guest does not want to know yet");
        memory.write_obj(1u16.to_le(), wanted_at).unwrap();
        ring.give_back(&memory, 1, 0);
        ring.notify(&memory);
        ring.notify(&memory);
        assert_eq!(interrupts(), 1);
    }
}
