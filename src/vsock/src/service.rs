//! The event loop: one thread for the vhost-user socket, the rings and all connections.
//!
//! ```text
//!        ┌──────────────▶ wait ──────────────┐
//!        │                                   ▼
//!        │              kicks, sockets: note what became possible
//!        │                                   ▼
//!        │              guest to host: take packets     ┐ a batch each, so that
//!        │              host to guest: give turns       ┘ neither starves the other
//!        │                                   ▼
//!        │              interrupt the guest, once for each ring
//!        │                                   ▼
//!        └────────────── one message of the VMM
//! ```
//!
//! The transmit ring is emptied before each message of the VMM and at its end. So what a guest had sent before it was
//! stopped, or had died, is delivered.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags, EpollTimeout};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use crate::frontend::Frontend;
use crate::ring::MAX_SIZE;
use crate::switch::{BATCH, Pause, SWEEP, Switch};
use crate::table::Token;
use crate::{FLUSH_TIMEOUT, ServeError};

/// Packets for the guest.
pub(crate) const RECEIVE: usize = 0;
/// Packets from the guest.
pub(crate) const TRANSMIT: usize = 1;
/// Receive, transmit, and one for events of the transport, of which the device has none.
pub(crate) const RINGS: u16 = 3;

/// The event of the vhost-user socket. Smaller numbers are the rings' kicks, larger ones listening sockets.
const FRONTEND: u64 = 16;

/// The event of a listening socket.
pub(crate) fn listener_event(number: usize) -> u64 {
    u64::try_from(number).map_or(u64::MAX, |number| FRONTEND + 1 + number)
}

/// See the module.
pub(crate) struct Service {
    epoll: Arc<Epoll>,
    frontend: Arc<Mutex<Frontend>>,
    switch: Switch,
    messages: BackendReqHandler<Mutex<Frontend>>,
    /// The socket that `messages` reads, as it is watched.
    socket: UnixStream,
    next_sweep: Instant,
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// There is more to do at once.
    Continue,
    /// Nothing happens before the next event.
    Wait,
}

impl Service {
    pub(crate) fn new(
        epoll: Arc<Epoll>,
        frontend: Frontend,
        switch: Switch,
        socket: UnixStream,
    ) -> Result<Self, ServeError> {
        epoll
            .add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, FRONTEND))
            .map_err(|errno| ServeError::Wait(errno.into()))?;
        let frontend = Arc::new(Mutex::new(frontend));
        let connection = socket.try_clone().map_err(ServeError::Wait)?;
        let messages = BackendReqHandler::from_stream(connection, Arc::clone(&frontend));
        Ok(Self { epoll, frontend, switch, messages, socket, next_sweep: Instant::now() })
    }

    /// Serves until the VMM has gone.
    pub(crate) fn run(mut self) -> Result<(), ServeError> {
        self.switch.watch_listeners(true);
        let mut events = [EpollEvent::empty(); 64];
        let mut next = Next::Wait;
        let result = loop {
            let message = self.wait(&mut events, next)?;
            next = self.exchange();
            if message {
                self.empty_transmit_ring();
                match self.messages.handle_request() {
                    Ok(()) => {}
                    Err(
                        VhostError::Disconnected | VhostError::PartialMessage | VhostError::SocketBroken(_),
                    ) => {
                        break Ok(());
                    }
                    Err(error) => break Err(ServeError::Frontend(error)),
                }
                if lock(&self.frontend).take_restarted() {
                    self.switch.guest_restarted();
                }
                // The message may have started a ring that has buffers already.
                next = Next::Continue;
            }
        };
        self.deliver_the_rest(&mut events)?;
        result
    }

    /// Waits, and notes what has become possible. `true`: the VMM has something to say.
    fn wait(&mut self, events: &mut [EpollEvent], next: Next) -> Result<bool, ServeError> {
        let timeout = match next {
            Next::Continue => EpollTimeout::ZERO,
            Next::Wait if self.switch.wants_sweep() => {
                let left = self.next_sweep.saturating_duration_since(Instant::now());
                // Rounded up, or the last millisecond would be spent turning.
                EpollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(EpollTimeout::ZERO)
            }
            Next::Wait => EpollTimeout::NONE,
        };
        let count = match self.epoll.wait(events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(ServeError::Wait(errno.into())),
        };
        let mut message = false;
        for event in &events[..count] {
            let number = event.data();
            if let Some(token) = Token::from_bits(number) {
                self.switch.socket_event(token, event.events());
            } else if number == FRONTEND {
                message = true;
            } else if let Some(listener) = number.checked_sub(FRONTEND + 1) {
                self.switch.accept(usize::try_from(listener).unwrap_or(usize::MAX));
            } else if let Ok(ring) = usize::try_from(number)
                && let Some(ring) = lock(&self.frontend).rings.get_mut(ring)
            {
                ring.take_kick();
            }
        }
        let now = Instant::now();
        if self.switch.wants_sweep() && now >= self.next_sweep {
            self.switch.sweep(now);
            self.next_sweep = now + SWEEP;
        }
        Ok(message)
    }

    /// Works on both rings.
    fn exchange(&mut self) -> Next {
        let mut frontend = lock(&self.frontend);
        let Frontend { memory: Some(memory), rings, .. } = &mut *frontend else { return Next::Wait };
        let mut next = Next::Wait;

        let transmit = &mut rings[TRANSMIT];
        transmit.stop_listening(memory);
        if self.switch.take_from_guest(memory, transmit) == Pause::Fair || transmit.listen(memory) {
            next = Next::Continue;
        }
        transmit.notify(memory);

        let receive = &mut rings[RECEIVE];
        receive.stop_listening(memory);
        match self.switch.send_to_guest(memory, receive) {
            Pause::Idle => {}
            Pause::Fair => next = Next::Continue,
            // Only now is the guest asked to kick when it provides buffers.
            Pause::Starved if receive.listen(memory) => next = Next::Continue,
            Pause::Starved => {}
        }
        receive.notify(memory);
        next
    }

    /// Takes what is in the transmit ring, at most two rings full: a guest that still runs may be adding to it.
    fn empty_transmit_ring(&mut self) {
        let mut frontend = lock(&self.frontend);
        let Frontend { memory: Some(memory), rings, .. } = &mut *frontend else { return };
        let ring = &mut rings[TRANSMIT];
        for _ in 0..2 * usize::from(MAX_SIZE) / BATCH {
            if self.switch.take_from_guest(memory, ring) != Pause::Fair {
                break;
            }
        }
        ring.notify(memory);
    }

    /// The guest is gone. Host programs still get what it had sent, as long as they read.
    fn deliver_the_rest(&mut self, events: &mut [EpollEvent]) -> Result<(), ServeError> {
        // Closed on the other side, it would be ready all the time.
        self.epoll.delete(&self.socket).map_err(|errno| ServeError::Wait(errno.into()))?;
        self.switch.abandon();
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        while self.switch.connections() > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(
                    connections = self.switch.connections(),
                    "nobody reads what the guest had sent"
                );
                break;
            }
            let timeout = EpollTimeout::try_from(left).unwrap_or(EpollTimeout::ZERO);
            let count = match self.epoll.wait(events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(ServeError::Wait(errno.into())),
            };
            for event in &events[..count] {
                if let Some(token) = Token::from_bits(event.data()) {
                    self.switch.socket_event(token, event.events());
                }
            }
        }
        Ok(())
    }
}

/// One thread uses it, and it stays consistent between calls.
fn lock(frontend: &Mutex<Frontend>) -> MutexGuard<'_, Frontend> {
    frontend.lock().unwrap_or_else(PoisonError::into_inner)
}
