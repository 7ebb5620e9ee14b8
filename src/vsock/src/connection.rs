//! The state of one connection, and nothing else: no socket, no guest memory, no clock.
//!
//! Inputs are packets from the guest and events of the host's socket. Outputs are levels rather than a queue of
//! actions: what is owed to the guest is a handful of flags, so nothing here can grow, whatever the guest does and
//! however long it provides no buffer to receive in.
//!
//! # States
//!
//! A connection is a link to the guest and two directions, which end independently of each other.
//!
//! ```text
//!  link      host dials                     guest dials
//!                │                               │
//!           Requesting ──REQUEST──▶ Requested    │
//!                                       │        │ (RESPONSE is owed)
//!                                RESPONSE        │
//!                                       ▼        ▼
//!                                      Open ◀────┘
//!            guest has shut down both   │   │
//!            or broke the protocol,     │   │ RST
//!            or the host's socket failed│   │
//!                                       ▼   ▼
//!                          Resetting ──RST─▶ Gone        (the guest's ports are free again)
//!
//!  to host   Flowing ──guest sends no more──▶ Draining ──all of it written──▶ Ended   (shutdown(Write) on the socket)
//!               └────────┴── the host's end does not read ──▶ Refused        (SHUTDOWN(RECEIVE), data is discarded)
//!
//!  to guest  Flowing ──end of the host's stream──▶ Ended                                          (SHUTDOWN(SEND))
//!               └────── guest receives no more ──▶ Ended                             (shutdown(Read) on the socket)
//! ```
//!
//! Once SHUTDOWN has told the guest of both directions, it answers with RST. A connection whose link is gone stays
//! until its host end has got everything that the guest had sent: a guest may close, or die, right after its last word.
//!
//! # Credit
//!
//! Each side tells the other the size of its receive buffer and how much was taken out of it. To the host, that is
//! [`window`](Connection::new) and the bytes written to the socket; what is not written yet is at most `window` bytes,
//! and a guest that sends more is reset. To the guest there is no buffer at all: the socket is read only when the guest
//! has room, so a guest that does not read stops the host's writer, and the end of the stream is known only after the
//! last byte was sent.

use crate::packet::{Credit, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Requesting,
    Requested,
    Open,
    Resetting,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ToHost {
    Flowing,
    Draining,
    Ended,
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ToGuest {
    Flowing,
    Ended,
}

/// What to do with a packet's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Payload {
    /// There is none, or nobody wants it.
    Discard,
    /// All of it goes to the host, after what is buffered; [`Connection::forwarded`] then says how much was written.
    Forward,
}

/// A packet without payload for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Control {
    pub(crate) op: Op,
    pub(crate) flags: u32,
    pub(crate) credit: Credit,
}

/// What to do with the host's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostAction {
    /// Shut down writing: everything that the guest sent was written.
    ShutdownWrite,
    /// Shut down reading: the guest receives no more.
    ShutdownRead,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Connection {
    link: Link,
    to_host: ToHost,
    to_guest: ToGuest,

    /// Size of the buffer for data to the host.
    window: u32,
    /// Bytes received from the guest, written to the host, and told to the guest as written; all modulo 2^32.
    /// Invariant: `announced <= written <= received <= written + window`.
    received: u32,
    written: u32,
    announced: u32,

    /// Bytes sent to the guest, modulo 2^32, and what the guest last said of its buffer.
    /// Invariant: `peer.fwd_cnt <= sent`.
    sent: u32,
    peer: Credit,

    /// The host's socket may have something to read: data, its end or an error.
    readable: bool,
    guest_receives: bool,
    response_owed: bool,
    update_owed: bool,
    credit_requested: bool,
    shutdown_sent: u32,
    write_shut: bool,
    read_shut: bool,
}

impl Connection {
    fn new(link: Link, window: u32) -> Self {
        Self {
            link,
            to_host: ToHost::Flowing,
            to_guest: ToGuest::Flowing,
            window,
            received: 0,
            written: 0,
            announced: 0,
            sent: 0,
            peer: Credit::default(),
            readable: false,
            guest_receives: true,
            response_owed: false,
            update_owed: false,
            credit_requested: false,
            shutdown_sent: 0,
            write_shut: false,
            read_shut: false,
        }
    }

    /// A connection that a host program opened. The guest is to be asked.
    pub(crate) fn dialed_by_host(window: u32) -> Self {
        Self::new(Link::Requesting, window)
    }

    /// A connection that the guest asked for with a packet of this credit, and that the host has accepted.
    pub(crate) fn dialed_by_guest(window: u32, credit: Credit) -> Self {
        let mut connection = Self::new(Link::Open, window);
        connection.response_owed = true;
        connection.take_credit(credit);
        connection
    }

    // ---- packets from the guest ----

    /// Takes a packet of this connection; of its header, the ports were checked and nothing else.
    pub(crate) fn receive(&mut self, header: &Header) -> Payload {
        match self.link {
            Link::Open => self.receive_open(header),
            Link::Requested if header.op == Op::Response => {
                self.link = Link::Open;
                self.take_credit(header.credit);
                Payload::Discard
            }
            Link::Requesting | Link::Requested | Link::Resetting if header.op == Op::Reset => {
                self.close(Link::Gone);
                Payload::Discard
            }
            Link::Requesting | Link::Requested => {
                self.close(Link::Resetting);
                Payload::Discard
            }
            Link::Resetting | Link::Gone => Payload::Discard,
        }
    }

    fn receive_open(&mut self, header: &Header) -> Payload {
        self.take_credit(header.credit);
        match header.op {
            Op::Data => return self.receive_data(header.len),
            Op::CreditUpdate => {}
            Op::CreditRequest => self.update_owed = true,
            Op::Shutdown => {
                if header.flags & SHUTDOWN_SEND != 0 && self.to_host == ToHost::Flowing {
                    self.to_host = ToHost::Draining;
                    self.end_if_drained();
                }
                if header.flags & SHUTDOWN_RECEIVE != 0 {
                    self.guest_receives = false;
                    self.to_guest = ToGuest::Ended;
                }
                // The guest may say it in one packet or in two.
                if !self.guest_receives && self.to_host != ToHost::Flowing {
                    self.close(Link::Resetting);
                }
            }
            Op::Reset => self.close(Link::Gone),
            Op::Request | Op::Response | Op::Unknown(_) => self.close(Link::Resetting),
        }
        Payload::Discard
    }

    fn receive_data(&mut self, len: u32) -> Payload {
        let fits = len <= self.window.saturating_sub(self.buffered());
        match self.to_host {
            // Data that was on its way when the guest was told that nobody reads. It counts as read.
            ToHost::Refused if fits => {
                self.received = self.received.wrapping_add(len);
                self.written = self.received;
                Payload::Discard
            }
            ToHost::Flowing if fits => {
                self.received = self.received.wrapping_add(len);
                if len == 0 { Payload::Discard } else { Payload::Forward }
            }
            // More than it was given room for, or something after its end.
            _ => {
                self.close(Link::Resetting);
                Payload::Discard
            }
        }
    }

    fn take_credit(&mut self, credit: Credit) {
        // Two threads of a guest may send in the other order than they read the counter, so a count can be stale. A
        // stale or invented one is ignored, which can only cost the guest room of its own.
        if credit.fwd_cnt.wrapping_sub(self.peer.fwd_cnt) <= self.in_flight() {
            self.peer.fwd_cnt = credit.fwd_cnt;
        }
        self.peer.buf_alloc = credit.buf_alloc;
        if self.peer_free() > 0 {
            self.credit_requested = false;
        }
    }

    // ---- events of the host's socket ----

    /// The socket may have something to read.
    pub(crate) fn host_readable(&mut self) {
        self.readable = true;
    }

    /// Reading said that there is nothing at the moment.
    pub(crate) fn host_drained(&mut self) {
        self.readable = false;
    }

    /// Reading came to the end of the stream.
    pub(crate) fn host_ended(&mut self) {
        self.readable = false;
        self.to_guest = ToGuest::Ended;
        // A program that went away before the guest had answered needs no connection any more.
        if self.to_host == ToHost::Refused {
            match self.link {
                Link::Requesting => self.close(Link::Gone),
                Link::Requested => self.close(Link::Resetting),
                Link::Open | Link::Resetting | Link::Gone => {}
            }
        }
    }

    /// Nobody will ever read what is written to the socket. What is buffered may be thrown away.
    pub(crate) fn host_refuses(&mut self) {
        if self.to_host != ToHost::Ended {
            self.to_host = ToHost::Refused;
            self.written = self.received;
        }
    }

    /// The socket is of no use any more.
    pub(crate) fn host_failed(&mut self) {
        self.host_refuses();
        self.reset();
    }

    /// This many more bytes of what the guest sent were written to the socket.
    pub(crate) fn forwarded(&mut self, count: u32) {
        self.written = self.written.wrapping_add(count.min(self.buffered()));
        self.end_if_drained();
        // A quarter of the window keeps the guest sending without a packet for every packet. A guest that is out of
        // room is told at the latest when everything was written, since the window is more than its quarter.
        let unannounced = self.written.wrapping_sub(self.announced);
        if self.to_host == ToHost::Flowing && unannounced >= self.window.div_ceil(4) {
            self.update_owed = true;
        }
    }

    /// Ends the connection for the guest. The host still gets what the guest had sent.
    pub(crate) fn reset(&mut self) {
        match self.link {
            Link::Requesting | Link::Gone => self.close(Link::Gone),
            Link::Requested | Link::Open | Link::Resetting => self.close(Link::Resetting),
        }
    }

    /// The guest's driver has started anew and knows nothing of the connection, unless it was never told of it.
    pub(crate) fn forgotten(&mut self) {
        if self.link != Link::Requesting {
            self.close(Link::Gone);
        }
    }

    /// There is no guest any more.
    pub(crate) fn abandoned(&mut self) {
        self.close(Link::Gone);
    }

    fn close(&mut self, link: Link) {
        self.link = link;
        self.readable = false;
        self.to_guest = ToGuest::Ended;
        self.guest_receives = false;
        if self.to_host == ToHost::Flowing {
            self.to_host = ToHost::Draining;
        }
        self.end_if_drained();
    }

    fn end_if_drained(&mut self) {
        if self.to_host == ToHost::Draining && self.buffered() == 0 {
            self.to_host = ToHost::Ended;
        }
    }

    // ---- what is to be done ----

    /// There is something to send to the guest. [`next_control`](Self::next_control) comes first, then data.
    pub(crate) fn wants_to_send(&self) -> bool {
        self.control_due().is_some() || (self.readable && self.budget() > 0)
    }

    /// The next packet without payload, which counts as sent.
    pub(crate) fn next_control(&mut self) -> Option<Control> {
        let (op, flags) = self.control_due()?;
        match op {
            Op::Request => self.link = Link::Requested,
            Op::Reset => self.link = Link::Gone,
            Op::Response => self.response_owed = false,
            Op::Shutdown => self.shutdown_sent |= flags,
            Op::CreditRequest => self.credit_requested = true,
            Op::CreditUpdate | Op::Data | Op::Unknown(_) => {}
        }
        Some(Control { op, flags, credit: self.announce() })
    }

    fn control_due(&self) -> Option<(Op, u32)> {
        match self.link {
            Link::Requesting => return Some((Op::Request, 0)),
            Link::Resetting => return Some((Op::Reset, 0)),
            Link::Requested | Link::Gone => return None,
            Link::Open => {}
        }
        if self.response_owed {
            return Some((Op::Response, 0));
        }
        let shutdown = self.shutdown_due();
        if shutdown & !self.shutdown_sent != 0 {
            return Some((Op::Shutdown, shutdown));
        }
        if self.update_owed {
            return Some((Op::CreditUpdate, 0));
        }
        let starved = self.readable && self.to_guest == ToGuest::Flowing && self.peer_free() == 0;
        (starved && !self.credit_requested).then_some((Op::CreditRequest, 0))
    }

    fn shutdown_due(&self) -> u32 {
        let send = if self.to_guest == ToGuest::Ended { SHUTDOWN_SEND } else { 0 };
        let receive = match self.to_host {
            ToHost::Ended | ToHost::Refused => SHUTDOWN_RECEIVE,
            ToHost::Flowing | ToHost::Draining => 0,
        };
        send | receive
    }

    /// How many bytes may be read from the host's socket, because the guest has room for them.
    pub(crate) fn budget(&self) -> u32 {
        let open = self.link == Link::Open && !self.response_owed && self.to_guest == ToGuest::Flowing;
        if open { self.peer_free() } else { 0 }
    }

    /// Counts data as sent to the guest, at most [`budget`](Self::budget) bytes. Returns the credit for its packets.
    pub(crate) fn send_data(&mut self, count: u32) -> Credit {
        debug_assert!(count <= self.budget(), "sending more than the guest has room for");
        self.sent = self.sent.wrapping_add(count);
        self.announce()
    }

    fn announce(&mut self) -> Credit {
        self.announced = self.written;
        self.update_owed = false;
        Credit { buf_alloc: self.window, fwd_cnt: self.written }
    }

    /// What is to be done to the host's socket; ask until there is nothing.
    pub(crate) fn next_host_action(&mut self) -> Option<HostAction> {
        if self.to_host == ToHost::Ended && !self.write_shut {
            self.write_shut = true;
            return Some(HostAction::ShutdownWrite);
        }
        if !self.guest_receives && !self.read_shut {
            self.read_shut = true;
            return Some(HostAction::ShutdownRead);
        }
        None
    }

    /// What was received and is not written yet is not wanted any more.
    pub(crate) fn discards(&self) -> bool {
        self.to_host == ToHost::Refused
    }

    /// The guest knows nothing of the connection any more: its ports may be used again.
    pub(crate) fn is_gone(&self) -> bool {
        self.link == Link::Gone
    }

    /// There is nothing left to do for anybody.
    pub(crate) fn is_finished(&self) -> bool {
        self.is_gone() && matches!(self.to_host, ToHost::Ended | ToHost::Refused)
    }

    /// Guest and host may exchange data.
    pub(crate) fn is_open(&self) -> bool {
        self.link == Link::Open
    }

    /// The next step is the guest's, and it owes it at once.
    pub(crate) fn awaits_guest(&self) -> bool {
        match self.link {
            Link::Requested => true,
            Link::Open => self.shutdown_sent == SHUTDOWN_BOTH,
            Link::Requesting | Link::Resetting | Link::Gone => false,
        }
    }

    /// Bytes received from the guest and not written to the host.
    pub(crate) fn buffered(&self) -> u32 {
        self.received.wrapping_sub(self.written)
    }

    fn in_flight(&self) -> u32 {
        self.sent.wrapping_sub(self.peer.fwd_cnt)
    }

    fn peer_free(&self) -> u32 {
        self.peer.buf_alloc.saturating_sub(self.in_flight())
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
