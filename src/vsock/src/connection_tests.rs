//! The state machine between models of its two ends, and against arbitrary input.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::packet::{HOST_CID, STREAM};

const WINDOW: u32 = 64;
const GUEST_BUFFER: u32 = 48;
const SOCKET: usize = 20;

fn packet(op: Op, flags: u32, len: u32, credit: Credit) -> Header {
    Header { src_cid: 3, dst_cid: HOST_CID, src_port: 7, dst_port: 8, len, kind: STREAM, op, flags, credit }
}

/// A guest that keeps to the protocol.
#[derive(Debug, Default)]
struct Guest {
    dials: bool,
    open: bool,
    closed: bool,
    /// What is still to be sent, and what came.
    unsent: VecDeque<u8>,
    received: Vec<u8>,
    unread: VecDeque<u8>,
    read: u32,
    sent: u32,
    peer: Credit,
    shut: u32,
    peer_shut: u32,
    out: VecDeque<(Header, Vec<u8>)>,
}

impl Guest {
    fn credit(&self) -> Credit {
        Credit { buf_alloc: GUEST_BUFFER, fwd_cnt: self.read }
    }

    fn put(&mut self, op: Op, flags: u32, data: Vec<u8>) {
        let len = u32::try_from(data.len()).unwrap();
        self.out.push_back((packet(op, flags, len, self.credit()), data));
    }

    fn send(&mut self, count: usize) {
        let free = self.peer.buf_alloc - self.sent.wrapping_sub(self.peer.fwd_cnt);
        let may = self.open && !self.closed && self.shut & SHUTDOWN_SEND == 0;
        let count = if may { count.min(self.unsent.len()).min(free as usize) } else { 0 };
        if self.peer_shut & SHUTDOWN_RECEIVE != 0 {
            self.unsent.clear();
        } else if count > 0 {
            let data: Vec<u8> = self.unsent.drain(..count).collect();
            self.sent = self.sent.wrapping_add(u32::try_from(count).unwrap());
            self.put(Op::Data, 0, data);
        }
    }

    fn read(&mut self, count: usize) {
        let count = count.min(self.unread.len());
        self.received.extend(self.unread.drain(..count));
        self.read = self.read.wrapping_add(u32::try_from(count).unwrap());
        // As Linux does: when everything was read.
        if count > 0 && self.unread.is_empty() && self.open && !self.closed {
            self.put(Op::CreditUpdate, 0, Vec::new());
        }
        self.answer_the_end();
    }

    fn shut(&mut self, flags: u32) {
        if self.open && !self.closed && self.shut | flags != self.shut {
            self.shut |= flags;
            self.put(Op::Shutdown, self.shut, Vec::new());
        }
    }

    fn answer_the_end(&mut self) {
        if self.peer_shut == SHUTDOWN_BOTH && self.unread.is_empty() && !self.closed {
            self.closed = true;
            self.put(Op::Reset, 0, Vec::new());
        }
    }

    fn receive(&mut self, control: Control, data: &[u8]) {
        assert!(
            !self.closed || control.op == Op::Reset || !self.out.is_empty() || self.shut == SHUTDOWN_BOTH
        );
        self.peer = control.credit;
        match control.op {
            Op::Request => {
                assert!(!self.dials && !self.open);
                self.open = true;
                self.put(Op::Response, 0, Vec::new());
            }
            Op::Response => {
                assert!(self.dials && !self.open);
                self.open = true;
            }
            Op::Data => {
                assert!(self.open && self.peer_shut & SHUTDOWN_SEND == 0, "data after its end");
                self.unread.extend(data);
                assert!(self.unread.len() <= GUEST_BUFFER as usize, "more than there is room for");
            }
            Op::Shutdown => {
                self.peer_shut |= control.flags;
                self.answer_the_end();
            }
            Op::CreditRequest => self.put(Op::CreditUpdate, 0, Vec::new()),
            Op::CreditUpdate => {}
            Op::Reset => self.closed = true,
            Op::Unknown(_) => panic!("an unknown packet"),
        }
    }
}

/// The host program and its socket, with room for a few bytes in each direction.
#[derive(Debug, Default)]
struct Host {
    unsent: VecDeque<u8>,
    received: Vec<u8>,
    up: VecDeque<u8>,
    down: VecDeque<u8>,
    write_ended: bool,
    read_ended: bool,
}

#[derive(Debug)]
struct World {
    guest: Guest,
    host: Host,
    connection: Connection,
    backlog: VecDeque<u8>,
    buffers: usize,
}

#[derive(Clone, Debug)]
enum Step {
    GuestSends(usize),
    GuestReads(usize),
    GuestEnds,
    GuestProvides(usize),
    HostWrites(usize),
    HostReads(usize),
    HostEnds,
    Takes,
    Turn,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..40usize).prop_map(Step::GuestSends),
        3 => (1..40usize).prop_map(Step::GuestReads),
        1 => Just(Step::GuestEnds),
        3 => (1..4usize).prop_map(Step::GuestProvides),
        4 => (1..40usize).prop_map(Step::HostWrites),
        3 => (1..40usize).prop_map(Step::HostReads),
        1 => Just(Step::HostEnds),
        8 => Just(Step::Takes),
        8 => Just(Step::Turn),
    ]
}

impl World {
    fn new(dials: bool, from_guest: Vec<u8>, from_host: Vec<u8>) -> Self {
        let guest = Guest { dials, unsent: from_guest.into(), ..Guest::default() };
        let connection = if dials {
            Connection::dialed_by_guest(WINDOW, guest.credit())
        } else {
            Connection::dialed_by_host(WINDOW)
        };
        let host = Host { unsent: from_host.into(), ..Host::default() };
        Self { guest, host, connection, backlog: VecDeque::new(), buffers: 0 }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::GuestSends(count) => self.guest.send(count),
            Step::GuestReads(count) => self.guest.read(count),
            Step::GuestEnds if self.guest.unsent.is_empty() => self.guest.shut(SHUTDOWN_SEND),
            Step::GuestEnds => {}
            Step::GuestProvides(count) => self.buffers = (self.buffers + count).min(8),
            Step::HostWrites(count) => {
                let room = SOCKET - self.host.down.len();
                let count = count.min(room).min(self.host.unsent.len());
                self.host.down.extend(self.host.unsent.drain(..count));
                if count > 0 {
                    self.connection.host_readable();
                }
            }
            Step::HostReads(count) => {
                let count = count.min(self.host.up.len());
                self.host.received.extend(self.host.up.drain(..count));
                self.flush();
            }
            Step::HostEnds if self.host.unsent.is_empty() => {
                self.host.write_ended = true;
                self.connection.host_readable();
            }
            Step::HostEnds => {}
            Step::Takes => self.take(),
            Step::Turn => self.turn(),
        }
        while let Some(action) = self.connection.next_host_action() {
            match action {
                HostAction::ShutdownWrite => {
                    assert!(self.backlog.is_empty(), "the end comes before the data");
                    self.host.read_ended = true;
                }
                HostAction::ShutdownRead => {}
            }
        }
        assert!(self.connection.buffered() <= WINDOW);
        assert_eq!(self.connection.buffered() as usize, self.backlog.len());
    }

    fn take(&mut self) {
        let Some((header, data)) = self.guest.out.pop_front() else { return };
        if self.connection.is_gone() {
            return;
        }
        if self.connection.receive(&header) == Payload::Forward {
            self.backlog.extend(data);
            self.flush();
        }
    }

    fn flush(&mut self) {
        let count = (SOCKET - self.host.up.len()).min(self.backlog.len());
        self.host.up.extend(self.backlog.drain(..count));
        self.connection.forwarded(u32::try_from(count).unwrap());
    }

    fn turn(&mut self) {
        if self.buffers == 0 || !self.connection.wants_to_send() {
            return;
        }
        if let Some(control) = self.connection.next_control() {
            self.buffers -= 1;
            self.guest.receive(control, &[]);
            return;
        }
        let budget = (self.connection.budget() as usize).min(self.host.down.len());
        if budget > 0 {
            self.buffers -= 1;
            let data: Vec<u8> = self.host.down.drain(..budget).collect();
            let credit = self.connection.send_data(u32::try_from(budget).unwrap());
            self.guest.receive(Control { op: Op::Data, flags: 0, credit }, &data);
        } else if self.host.write_ended {
            self.connection.host_ended();
        } else {
            self.connection.host_drained();
        }
    }

    /// Everybody does what is left to do.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            if self.connection.is_finished() {
                return;
            }
            for step in [
                Step::GuestProvides(8),
                Step::Turn,
                Step::Takes,
                Step::GuestReads(7),
                Step::GuestSends(9),
                Step::GuestEnds,
                Step::HostReads(6),
                Step::HostWrites(8),
                Step::HostEnds,
            ] {
                self.run(&step);
            }
        }
        panic!("a stall: {self:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn nothing_is_lost_reordered_or_stuck_whatever_the_pace(
        dials: bool,
        from_guest in prop::collection::vec(any::<u8>(), 0..400),
        from_host in prop::collection::vec(any::<u8>(), 0..400),
        steps in prop::collection::vec(step(), 0..300),
    ) {
        let mut world = World::new(dials, from_guest.clone(), from_host.clone());
        for step in &steps {
            world.run(step);
        }
        world.finish();
        world.guest.read(usize::MAX);
        prop_assert_eq!(&world.guest.received, &from_host);
        world.host.received.extend(world.host.up.drain(..));
        prop_assert_eq!(&world.host.received, &from_guest);
        prop_assert!(world.host.read_ended);
    }

    #[test]
    fn a_guest_that_closes_at_any_time_loses_nothing_that_it_had_sent(
        from_guest in prop::collection::vec(any::<u8>(), 0..400),
        from_host in prop::collection::vec(any::<u8>(), 0..400),
        steps in prop::collection::vec(step(), 0..200),
        by_reset: bool,
    ) {
        let mut world = World::new(true, from_guest.clone(), from_host);
        for step in &steps {
            world.run(step);
        }
        let sent = from_guest.len() - world.guest.unsent.len();
        if by_reset {
            world.guest.put(Op::Reset, 0, Vec::new());
        } else {
            world.guest.put(Op::Shutdown, SHUTDOWN_BOTH, Vec::new());
        }
        world.guest.closed = true;
        world.guest.shut = SHUTDOWN_BOTH;
        world.guest.unsent.clear();
        world.finish();
        world.host.received.extend(world.host.up.drain(..));
        prop_assert_eq!(&world.host.received[..], &from_guest[..sent]);
    }

    #[test]
    fn arbitrary_packets_and_events_never_break_a_bound(
        dialed_by_guest: bool,
        inputs in prop::collection::vec(
            (0..12u8, 0..9u16, any::<u32>(), 0..4u32, (any::<u32>(), any::<u32>())),
            0..200,
        ),
    ) {
        let mut connection = if dialed_by_guest {
            Connection::dialed_by_guest(WINDOW, Credit { buf_alloc: u32::MAX, fwd_cnt: 5 })
        } else {
            Connection::dialed_by_host(WINDOW)
        };
        for (what, op, number, flags, (buf_alloc, fwd_cnt)) in inputs {
            match what {
                0..4 => {
                    let len = if op % 2 == 0 { number } else { number % 32 };
                    let header = packet(Op::from(op), flags, len, Credit { buf_alloc, fwd_cnt });
                    if connection.receive(&header) == Payload::Forward {
                        prop_assert!(len <= WINDOW);
                    }
                }
                4 => connection.host_readable(),
                5 => connection.host_drained(),
                6 => connection.host_ended(),
                7 if number % 8 == 0 => connection.host_refuses(),
                8 if number % 16 == 0 => connection.host_failed(),
                9 => connection.forwarded(number % WINDOW),
                10 => {
                    let count = connection.budget().min(number);
                    let before = connection.budget();
                    connection.send_data(count);
                    prop_assert_eq!(connection.budget(), before - count);
                }
                _ => {
                    // What is owed is bounded: each packet is sent once, then there is peace.
                    let owed = std::iter::from_fn(|| connection.next_control()).take(10).count();
                    prop_assert!(owed <= 4, "{} packets", owed);
                }
            }
            prop_assert!(std::iter::from_fn(|| connection.next_host_action()).take(5).count() <= 2);
            prop_assert!(connection.buffered() <= WINDOW);
            if connection.is_gone() {
                prop_assert!(!connection.wants_to_send());
            }
        }
        // Whatever happened, the host can always bring it to its end.
        connection.host_failed();
        while connection.next_control().is_some() {}
        prop_assert!(connection.is_finished());
    }
}

fn open() -> Connection {
    let mut connection = Connection::dialed_by_guest(WINDOW, Credit { buf_alloc: 100, fwd_cnt: 0 });
    assert_eq!(connection.next_control().map(|control| control.op), Some(Op::Response));
    connection
}

fn op(connection: &mut Connection) -> Option<Op> {
    connection.next_control().map(|control| control.op)
}

#[test]
fn more_data_than_there_is_room_for_is_a_reset() {
    let mut connection = open();
    assert_eq!(connection.receive(&packet(Op::Data, 0, WINDOW, Credit::default())), Payload::Forward);
    assert_eq!(connection.receive(&packet(Op::Data, 0, 1, Credit::default())), Payload::Discard);
    assert_eq!(op(&mut connection), Some(Op::Reset));
    assert!(!connection.is_finished(), "what had been accepted is delivered");
    connection.forwarded(WINDOW);
    assert!(connection.is_finished());
}

#[test]
fn data_after_its_end_is_a_reset() {
    let mut connection = open();
    let credit = Credit { buf_alloc: 100, fwd_cnt: 0 };
    assert_eq!(connection.receive(&packet(Op::Shutdown, SHUTDOWN_SEND, 0, credit)), Payload::Discard);
    assert_eq!(connection.next_host_action(), Some(HostAction::ShutdownWrite));
    assert_eq!(connection.receive(&packet(Op::Data, 0, 1, credit)), Payload::Discard);
    assert_eq!(op(&mut connection), Some(Op::Reset));
}

#[test]
fn a_count_that_runs_ahead_or_back_gives_no_room() {
    let mut connection = open();
    connection.send_data(60);
    for fwd_cnt in [61, u32::MAX, 1 << 31] {
        let update = packet(Op::CreditUpdate, 0, 0, Credit { buf_alloc: 100, fwd_cnt });
        assert_eq!(connection.receive(&update), Payload::Discard);
        assert_eq!(connection.budget(), 40, "count {fwd_cnt}");
    }
    let update = packet(Op::CreditUpdate, 0, 0, Credit { buf_alloc: 100, fwd_cnt: 60 });
    assert_eq!(connection.receive(&update), Payload::Discard);
    assert_eq!(connection.budget(), 100);
    let update = packet(Op::CreditUpdate, 0, 0, Credit { buf_alloc: 10, fwd_cnt: 60 });
    assert_eq!(connection.receive(&update), Payload::Discard);
    assert_eq!(connection.budget(), 10);
}

#[test]
fn counters_go_past_four_gigabytes() {
    const STEP: u32 = 1 << 20;
    let mut connection = Connection::dialed_by_guest(STEP, Credit { buf_alloc: STEP, fwd_cnt: 0 });
    assert_eq!(op(&mut connection), Some(Op::Response));
    let mut total = 0u32;
    for _ in 0..5000 {
        let credit = Credit { buf_alloc: STEP, fwd_cnt: total };
        assert_eq!(connection.receive(&packet(Op::Data, 0, STEP, credit)), Payload::Forward);
        connection.forwarded(STEP);
        assert_eq!(connection.budget(), STEP);
        total = total.wrapping_add(STEP);
        assert_eq!(connection.send_data(STEP).fwd_cnt, total);
    }
}

#[test]
fn credit_is_asked_for_once_and_again_after_it_came() {
    let mut connection = open();
    connection.send_data(100);
    assert_eq!(op(&mut connection), None, "there is nothing to send");
    connection.host_readable();
    assert_eq!(op(&mut connection), Some(Op::CreditRequest));
    let stuck = packet(Op::CreditUpdate, 0, 0, Credit { buf_alloc: 100, fwd_cnt: 0 });
    assert_eq!(connection.receive(&stuck), Payload::Discard);
    assert_eq!(op(&mut connection), None);
    let room = packet(Op::CreditUpdate, 0, 0, Credit { buf_alloc: 100, fwd_cnt: 100 });
    assert_eq!(connection.receive(&room), Payload::Discard);
    connection.send_data(100);
    assert_eq!(op(&mut connection), Some(Op::CreditRequest));
}

#[test]
fn a_guest_is_told_of_room_by_quarters_and_when_it_asks() {
    let mut connection = open();
    let credit = Credit { buf_alloc: 100, fwd_cnt: 0 };
    assert_eq!(connection.receive(&packet(Op::Data, 0, 16, credit)), Payload::Forward);
    connection.forwarded(15);
    assert_eq!(op(&mut connection), None);
    connection.forwarded(1);
    let update = connection.next_control().unwrap();
    assert_eq!((update.op, update.credit), (Op::CreditUpdate, Credit { buf_alloc: WINDOW, fwd_cnt: 16 }));
    assert_eq!(connection.receive(&packet(Op::CreditRequest, 0, 0, credit)), Payload::Discard);
    assert_eq!(op(&mut connection), Some(Op::CreditUpdate));
}

#[test]
fn a_host_that_does_not_read_is_reported_and_its_data_discarded() {
    let mut connection = open();
    let credit = Credit { buf_alloc: 100, fwd_cnt: 0 };
    assert_eq!(connection.receive(&packet(Op::Data, 0, 10, credit)), Payload::Forward);
    connection.host_refuses();
    assert!(connection.discards());
    let shutdown = connection.next_control().unwrap();
    assert_eq!((shutdown.op, shutdown.flags), (Op::Shutdown, SHUTDOWN_RECEIVE));
    assert_eq!(connection.receive(&packet(Op::Data, 0, WINDOW, credit)), Payload::Discard);
    assert_eq!(connection.buffered(), 0);
    connection.host_ended();
    let shutdown = connection.next_control().unwrap();
    assert_eq!((shutdown.op, shutdown.flags), (Op::Shutdown, SHUTDOWN_BOTH));
    assert!(connection.awaits_guest());
    assert_eq!(connection.receive(&packet(Op::Reset, 0, 0, credit)), Payload::Discard);
    assert!(connection.is_finished());
}

#[test]
fn a_program_that_gives_up_before_the_guest_answers_leaves_nothing_behind() {
    let mut connection = Connection::dialed_by_host(WINDOW);
    connection.host_refuses();
    connection.host_ended();
    assert!(connection.is_finished());

    let mut connection = Connection::dialed_by_host(WINDOW);
    assert_eq!(op(&mut connection), Some(Op::Request));
    assert!(connection.awaits_guest());
    connection.host_refuses();
    connection.host_ended();
    assert_eq!(op(&mut connection), Some(Op::Reset));
    assert!(connection.is_finished());
}

#[test]
fn a_guest_that_answers_with_nonsense_is_reset() {
    for nonsense in [Op::Request, Op::Data, Op::Shutdown, Op::CreditUpdate, Op::Unknown(0), Op::Unknown(99)] {
        let mut connection = Connection::dialed_by_host(WINDOW);
        assert_eq!(op(&mut connection), Some(Op::Request));
        assert_eq!(connection.receive(&packet(nonsense, 3, 1, Credit::default())), Payload::Discard);
        assert_eq!(op(&mut connection), Some(Op::Reset), "{nonsense:?}");
    }
}

#[test]
fn a_guest_that_restarts_forgets_what_it_knew_and_still_gets_what_waits_for_it() {
    let mut connection = open();
    connection.forgotten();
    assert!(connection.is_finished());
    let mut connection = Connection::dialed_by_host(WINDOW);
    connection.forgotten();
    assert_eq!(op(&mut connection), Some(Op::Request));
}
