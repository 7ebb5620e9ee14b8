//! A hostile guest as a list of bytes, for the fuzz targets and a property test.
//!
//! The bytes are instructions: write a descriptor, a header or an index anywhere in memory, let the device work, let host
//! programs connect, talk and go away. Nothing may panic, hang or grow.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::MAX_CONNECTIONS;
use crate::connection::{Connection, Payload};
use crate::packet::{Credit, HOST_CID, Header, Op, STREAM};
use crate::ring::Ring;
use crate::switch::Switch;
use crate::table::Token;

const GUEST: u64 = 3;
const DIALED: u32 = 1025;
const LISTENED: u32 = 1024;
const MEMORY: usize = 0x2_0000;
const SIZE: u16 = 8;
/// Where the tables and rings of a queue are, from its base on.
const AVAILABLE: u64 = 0x800;
const USED: u64 = 0xc00;
/// Programs of the host at a time.
const CLIENTS: usize = 8;

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let (byte, rest) = self.0.split_first().map_or((0, self.0), |(byte, rest)| (*byte, rest));
        self.0 = rest;
        byte
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    /// Mostly what makes sense, sometimes anything.
    fn address(&mut self) -> u64 {
        match self.byte() {
            0 => u64::from(self.u32()) << 32 | u64::from(self.u32()),
            1 => u64::MAX - u64::from(self.byte()),
            2 => u64::try_from(MEMORY).unwrap_or(0).saturating_sub(u64::from(self.byte())),
            page => 0x2000 + u64::from(page % 8) * 0x1000,
        }
    }

    fn header(&mut self) -> Header {
        let odd = self.byte();
        let small = odd & 8 == 0;
        Header {
            src_cid: if odd & 1 == 0 { GUEST } else { u64::from(self.u32()) },
            dst_cid: if odd & 2 == 0 { HOST_CID } else { u64::from(self.u32()) },
            src_port: if odd & 16 == 0 { LISTENED } else { u32::from(self.byte()) },
            dst_port: match self.byte() {
                port @ 0..8 => (1 << 30) + u32::from(port),
                port if port & 1 == 0 => DIALED,
                port => u32::from(port),
            },
            len: if small { u32::from(self.byte()) } else { self.u32() },
            kind: if odd & 4 == 0 { STREAM } else { self.u16() },
            op: Op::from(u16::from(self.byte() % 10)),
            flags: u32::from(self.byte()),
            credit: Credit {
                buf_alloc: self.u32(),
                fwd_cnt: if small { u32::from(self.byte()) } else { self.u32() },
            },
        }
    }
}

/// A listening socket of the host, whose file goes with it.
struct Listener {
    path: PathBuf,
    socket: UnixListener,
}

impl Listener {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vsock-fuzz-{}-{number}", std::process::id()));
        let socket = UnixListener::bind(&path).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        Self { path, socket }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).expect("the file is there");
    }
}

fn ring(memory: &GuestMemoryMmap, base: u64, event_idx: bool) -> Ring {
    let mut ring = Ring::new().expect("a ring");
    let queue = &mut ring.queue;
    let addresses = queue
        .try_set_size(SIZE)
        .and_then(|()| queue.try_set_desc_table_address(GuestAddress(base)))
        .and_then(|()| queue.try_set_avail_ring_address(GuestAddress(base + AVAILABLE)))
        .and_then(|()| queue.try_set_used_ring_address(GuestAddress(base + USED)));
    addresses.expect("addresses");
    queue.set_event_idx(event_idx);
    ring.enabled = true;
    ring.start();
    assert!(ring.queue.is_valid(memory));
    ring
}

/// Rings, chains and packets of a hostile guest.
///
/// # Panics
/// When the device does what it must not.
pub fn guest(bytes: &[u8]) {
    let mut input = Input(bytes);
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
    let event_idx = input.byte() & 1 == 0;
    let mut receive = ring(&memory, 0, event_idx);
    let mut transmit = ring(&memory, 0x1000, event_idx);
    let epoll = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll"));
    let (dialed, listened) = (Listener::new(), Listener::new());
    let listener = listened.socket.try_clone().expect("a socket");
    let mut switch = Switch::new(
        GUEST,
        Arc::clone(&epoll),
        vec![(LISTENED, listener)],
        HashMap::from([(DIALED, dialed.path.clone())]),
    );
    let mut clients: Vec<UnixStream> = Vec::new();

    while !input.0.is_empty() {
        let base = if input.byte() & 1 == 0 { 0 } else { 0x1000 };
        match input.byte() % 10 {
            0 | 1 => {
                let at = base + u64::from(input.byte() % 16) * 16;
                let (address, len) = (input.address(), input.u32());
                let len = if input.byte() & 3 == 0 { len } else { len % 0x1800 };
                let mut descriptor = address.to_le_bytes().to_vec();
                descriptor.extend(len.to_le_bytes());
                descriptor.extend(u16::from(input.byte() % 8).to_le_bytes());
                descriptor.extend(u16::from(input.byte() % 10).to_le_bytes());
                put(&memory, &descriptor, at);
            }
            2 | 3 => {
                let at = input.address();
                put(&memory, &input.header().encode(), at);
            }
            4 | 5 => {
                // One more chain is available, as a driver would say it.
                let index: u16 = memory.read_obj(GuestAddress(base + AVAILABLE + 2)).expect("memory");
                let slot = base + AVAILABLE + 4 + u64::from(index % SIZE) * 2;
                put(&memory, &u16::from(input.byte() % 10).to_le_bytes(), slot);
                put(&memory, &index.wrapping_add(1).to_le_bytes(), base + AVAILABLE + 2);
            }
            6 => put(&memory, &input.u16().to_le_bytes(), base + AVAILABLE + u64::from(input.byte() % 24)),
            7 => {
                if clients.len() < CLIENTS {
                    clients.extend(UnixStream::connect(&listened.path));
                }
                switch.accept(0);
            }
            8 => {
                clients.extend(dialed.socket.accept().map(|(stream, _)| stream));
                let which = usize::from(input.byte());
                if let Some(client) = which.checked_rem(clients.len()).and_then(|at| clients.get_mut(at)) {
                    client.set_nonblocking(true).expect("a socket");
                    // Whether it works is up to the other side.
                    match input.byte() % 4 {
                        0 => drop(client.write(&[7; 3000])),
                        1 => drop(client.read(&mut [0; 3000])),
                        2 => drop(client.shutdown(std::net::Shutdown::Write)),
                        _ => drop(clients.swap_remove(which % clients.len())),
                    }
                }
            }
            _ => {
                transmit.listen(&memory);
                receive.listen(&memory);
                switch.guest_restarted();
            }
        }
        work(&mut switch, &epoll, &memory, &mut transmit, &mut receive);
    }
    switch.sweep(Instant::now() + 2 * crate::ANSWER_TIMEOUT);
    switch.abandon();
    drop(clients);
    // With their programs gone, connections have nothing left to wait for.
    for _ in 0..4 {
        events(&mut switch, &epoll);
    }
    while let Ok((client, _)) = dialed.socket.accept() {
        drop(client);
        events(&mut switch, &epoll);
    }
    events(&mut switch, &epoll);
    assert_eq!(switch.connections(), 0, "connections stay behind");
}

fn put(memory: &GuestMemoryMmap, bytes: &[u8], at: u64) {
    // A guest cannot write outside of its memory either.
    drop(memory.write_slice(bytes, GuestAddress(at)));
}

fn work(
    switch: &mut Switch,
    epoll: &Epoll,
    memory: &GuestMemoryMmap,
    transmit: &mut Ring,
    receive: &mut Ring,
) {
    events(switch, epoll);
    transmit.stop_listening(memory);
    switch.take_from_guest(memory, transmit);
    let mut turns = 0;
    while transmit.listen(memory) {
        switch.take_from_guest(memory, transmit);
        turns += 1;
        assert!(turns < 100, "the transmit ring keeps the device busy");
    }
    transmit.notify(memory);
    switch.send_to_guest(memory, receive);
    receive.notify(memory);
    assert!(switch.connections() <= MAX_CONNECTIONS);
}

fn events(switch: &mut Switch, epoll: &Epoll) {
    let mut events = [EpollEvent::empty(); 64];
    let count = epoll.wait(&mut events, EpollTimeout::ZERO).expect("epoll");
    for event in &events[..count] {
        if let Some(token) = Token::from_bits(event.data()) {
            switch.socket_event(token, event.events());
        }
    }
}

/// The state machine of one connection, with packets and events in any order.
///
/// # Panics
/// When a bound does not hold.
pub fn connection(bytes: &[u8]) {
    const WINDOW: u32 = 4096;
    let mut input = Input(bytes);
    let mut connection = if input.byte() & 1 == 0 {
        Connection::dialed_by_host(WINDOW)
    } else {
        Connection::dialed_by_guest(WINDOW, input.header().credit)
    };
    while !input.0.is_empty() {
        match input.byte() % 12 {
            0..4 => {
                let header = input.header();
                if connection.receive(&header) == Payload::Forward {
                    assert!(header.len > 0 && header.len <= WINDOW);
                }
            }
            4 => connection.host_readable(),
            5 => connection.host_drained(),
            6 => connection.host_ended(),
            7 => connection.host_refuses(),
            8 => connection.host_failed(),
            9 => connection.forwarded(input.u32() % WINDOW),
            10 => {
                let count = connection.budget().min(input.u32());
                connection.send_data(count);
            }
            _ => {
                let owed = std::iter::from_fn(|| connection.next_control()).take(10).count();
                assert!(owed <= 4, "{owed} packets are owed at once");
            }
        }
        while connection.next_host_action().is_some() {}
        assert!(connection.buffered() <= WINDOW);
    }
    connection.host_failed();
    while connection.next_control().is_some() {}
    assert!(connection.is_finished());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn no_guest_breaks_the_device(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            super::guest(&bytes);
        }

        #[test]
        fn no_guest_breaks_a_connection(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            super::connection(&bytes);
        }
    }
}
