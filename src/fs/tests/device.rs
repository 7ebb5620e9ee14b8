//! The device over the vhost-user protocol, with a VMM and a driver of a few lines.

mod client;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use boxlite_fs::{Device, ServeError, Share, Violation, Violations};
use client::*;
use tempfile::TempDir;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// Where the VMM says that it has guest memory.
const VMM: u64 = 0x7f00_0000_0000;
const MEMORY: usize = 16 << 20;
/// Each ring has a megabyte: descriptors, available ring, used ring, requests. Replies lie behind all of them.
const RING: u64 = 1 << 20;
const REPLY: u64 = 8 << 20;
const SIZE: u16 = 512;

struct Guest {
    folder: TempDir,
    violations: Arc<Violations>,
    memory: GuestMemoryMmap,
    vmm: Frontend,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    positions: Vec<u16>,
    messages: Client,
    server: JoinHandle<Result<(), ServeError>>,
}

impl Guest {
    fn new() -> Self {
        let folder = tree();
        let share = Share::new(volumes(folder.path())).unwrap();
        let violations = share.violations();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || Device::new(share).serve(theirs));
        let vmm = Frontend::from_stream(ours, 2);
        let shared = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(shared);
        file.set_len(u64::try_from(MEMORY).unwrap()).unwrap();
        let region = FileOffset::new(file.try_clone().unwrap(), 0);
        let memory =
            GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), MEMORY, Some(region))]).unwrap();
        // Makes the messages; nobody is at its other end.
        let messages = World::new().client;
        let mut guest = Self {
            folder,
            violations,
            memory,
            vmm,
            kicks: Vec::new(),
            calls: Vec::new(),
            positions: Vec::new(),
            messages,
            server,
        };
        guest.start(&file);
        guest
    }

    fn start(&mut self, memory: &File) {
        self.vmm.set_owner().unwrap();
        let features = self.vmm.get_features().unwrap();
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.vmm.set_features(features & (1 << 32 | protocol)).unwrap();
        let offered = self.vmm.get_protocol_features().unwrap();
        assert!(offered.contains(VhostUserProtocolFeatures::MQ));
        self.vmm.set_protocol_features(VhostUserProtocolFeatures::MQ).unwrap();
        assert!(self.vmm.get_queue_num().unwrap() >= 2);
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: u64::try_from(MEMORY).unwrap(),
            userspace_addr: VMM,
            mmap_offset: 0,
            mmap_handle: memory.as_raw_fd(),
        };
        self.vmm.set_mem_table(&[region]).unwrap();
        for (ring, base) in [(0, 0), (1, RING)] {
            let (kick, call) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
            self.vmm.set_vring_num(ring, SIZE).unwrap();
            self.vmm.set_vring_base(ring, 0).unwrap();
            let config = VringConfigData {
                queue_max_size: SIZE,
                queue_size: SIZE,
                flags: 0,
                desc_table_addr: VMM + base,
                avail_ring_addr: VMM + base + 0x4000,
                used_ring_addr: VMM + base + 0x8000,
                log_addr: None,
            };
            self.vmm.set_vring_addr(ring, &config).unwrap();
            self.vmm.set_vring_call(ring, &call).unwrap();
            self.vmm.set_vring_kick(ring, &kick).unwrap();
            self.vmm.set_vring_enable(ring, true).unwrap();
            self.kicks.push(kick);
            self.calls.push(call);
            self.positions.push(0);
        }
    }

    /// Has the device work on a chain of (address, length, writable). Returns how many bytes it says it has written.
    fn exchange(&mut self, ring: usize, chain: &[(u64, u32, bool)]) -> u32 {
        let base = RING * u64::try_from(ring).unwrap();
        let (next, write) =
            (u16::try_from(VRING_DESC_F_NEXT).unwrap(), u16::try_from(VRING_DESC_F_WRITE).unwrap());
        for (number, (at, len, writable)) in (0u16..).zip(chain) {
            let last = usize::from(number) + 1 == chain.len();
            let flags = if last { 0 } else { next } | if *writable { write } else { 0 };
            let link = if last { 0 } else { number + 1 };
            let mut bytes = at.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend([flags.to_le_bytes(), link.to_le_bytes()].concat());
            self.memory.write_slice(&bytes, GuestAddress(base + 16 * u64::from(number))).unwrap();
        }
        let position = self.positions[ring];
        let slot = u64::from(position % SIZE);
        self.memory.write_obj(0u16, GuestAddress(base + 0x4000 + 4 + 2 * slot)).unwrap();
        self.positions[ring] = position.wrapping_add(1);
        let available = GuestAddress(base + 0x4000 + 2);
        self.memory
            .store(self.positions[ring].to_le(), available, std::sync::atomic::Ordering::SeqCst)
            .unwrap();
        self.kicks[ring].write(1).unwrap();
        loop {
            let used = GuestAddress(base + 0x8000 + 2);
            let used: u16 = self.memory.load(used, std::sync::atomic::Ordering::SeqCst).unwrap();
            if used == self.positions[ring] {
                break;
            }
            self.calls[ring].read().unwrap();
        }
        self.memory.read_obj(GuestAddress(base + 0x8000 + 4 + 8 * slot + 4)).unwrap()
    }

    /// A request, with its data and its reply in one piece each.
    fn call(&mut self, opcode: u32, node: u64, body: Fields) -> Result<Vec<u8>, i32> {
        let request = self.messages.message(opcode, node, &body.0);
        let at = RING + 0x1_0000;
        self.memory.write_slice(&request, GuestAddress(at)).unwrap();
        let len = u32::try_from(request.len()).unwrap();
        let written = self.exchange(1, &[(at, len, false), (REPLY, 16, true), (REPLY + 16, 2 << 20, true)]);
        let mut reply = vec![0; usize::try_from(written).unwrap()];
        self.memory.read_slice(&mut reply, GuestAddress(REPLY)).unwrap();
        assert_eq!(u32_at(&reply, 0), written);
        let error = i32::from_ne_bytes(*reply[4..].first_chunk().unwrap());
        if error == 0 { Ok(reply[16..].to_vec()) } else { Err(-error) }
    }

    fn init(&mut self) {
        let body = fields().u32(7).u32(39).u32(128 << 10).u32(u32::MAX).bytes(&[0; 48]);
        assert_eq!(self.call(INIT, 0, body).unwrap().len(), 64);
    }

    fn end(self) {
        drop(self.vmm);
        self.server.join().unwrap().unwrap();
    }
}

#[test]
fn a_guest_writes_and_reads_a_file() {
    let mut guest = Guest::new();
    guest.init();
    let body = fields().u32(2).u32(0o644).u32(0).u32(0).name(b"new");
    let made = guest.call(CREATE, RW, body).unwrap();
    let (node, handle) = (u64_at(&made, 0), u64_at(&made, 128));
    let data: Vec<u8> = (0..200_000u32).map(|number| u8::try_from(number % 251).unwrap()).collect();
    let write = span(handle, 3, 200_000).bytes(&data);
    assert_eq!(u32_at(&guest.call(WRITE, node, write).unwrap(), 0), 200_000);
    assert_eq!(guest.call(READ, node, span(handle, 3, 1 << 20)).unwrap(), data);
    let host = std::fs::read(guest.folder.path().join("rw/new")).unwrap();
    assert_eq!(host[3..], data);
    assert_eq!(guest.violations.total(), 0);
    guest.end();
}

#[test]
fn what_is_urgent_has_a_ring_of_its_own_and_no_reply() {
    let mut guest = Guest::new();
    guest.init();
    let a = u64_at(&guest.call(LOOKUP, RW, fields().name(b"a")).unwrap(), 0);
    let forget = guest.messages.message(FORGET, a, &1u64.to_ne_bytes());
    guest.memory.write_slice(&forget, GuestAddress(0x1_0000)).unwrap();
    assert_eq!(guest.exchange(0, &[(0x1_0000, u32::try_from(forget.len()).unwrap(), false)]), 0);
    assert_eq!(guest.call(OPEN, a, fields().u32(0).u32(0)), Err(ENOENT));
    guest.end();
}

#[test]
fn a_chain_that_is_no_request_comes_back_unused_and_is_counted() {
    let mut guest = Guest::new();
    guest.init();
    let lie = guest.messages.message(GETATTR, ROOT, &[0; 16]);
    guest.memory.write_slice(&lie, GuestAddress(0x1_0000)).unwrap();
    let broken: [&[(u64, u32, bool)]; 5] = [
        &[(0x1_0000, 56, false)],
        &[(0x1_0000, 56, false), (REPLY, 15, true)],
        &[(0x1_0000, 55, false), (REPLY, 200, true)],
        &[(REPLY, 200, true), (0x1_0000, 56, false)],
        &[(0x1_0000, 56, false), (u64::MAX - 5, 200, true)],
    ];
    for (number, chain) in (1..).zip(broken) {
        assert_eq!(guest.exchange(1, chain), 0, "{chain:x?}");
        assert_eq!(guest.violations.count(Violation::Message), number, "{chain:x?}");
    }
    // Room for an error, but not for what was asked for.
    assert_eq!(guest.exchange(1, &[(0x1_0000, 56, false), (REPLY, 20, true)]), 16);
    assert!(guest.call(GETATTR, ROOT, fields().u64(0).u64(0)).is_ok());
    guest.end();
}
