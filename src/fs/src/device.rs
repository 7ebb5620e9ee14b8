//! The share as a vhost-user device: what QEMU calls `vhost-user-fs-device`.
//!
//! ```text
//!        ┌──────────────▶ wait ◀─────────────┐
//!        │                  │ kicks          │
//!        │                  ▼                │
//!        │    each ring: a batch of requests │ more of them: without waiting
//!        │                  │                │
//!        │                  ▼                │
//!        └─── one message of the VMM ────────┘
//! ```
//!
//! Ring 0 is for what must not wait behind requests, as FORGET; all others carry requests. One thread answers one request
//! after the other, and interrupts the guest after each, if it wants to be.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use boxlite_vsock::vhost_user::{Description, Frontend, Ring};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};
use vm_memory::GuestMemoryMmap;

use crate::chain::Chain;
use crate::request::is_unanswered;
use crate::share::{Answer, Share};
use crate::violation::Violation;
use crate::wire::out_header;

/// One for what is urgent, and more for requests than any VMM asks for: it uses as many as it likes.
const RINGS: u16 = 9;

/// The event of the vhost-user socket. Smaller numbers are the rings' kicks.
const FRONTEND: u64 = 64;

/// Requests of one ring before it is another's turn.
const BATCH: usize = 32;

/// Why serving has ended before the VMM has.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Waiting for events failed.
    #[error("the device cannot wait for events")]
    Wait(#[source] std::io::Error),
    /// The rings cannot be set up.
    #[error("the device has no rings")]
    Rings(#[source] virtio_queue::Error),
    /// The VMM broke the vhost-user protocol or asked for what cannot be done.
    #[error("a vhost-user message failed")]
    Frontend(#[source] vhost::vhost_user::Error),
}

/// A share that waits for its VMM.
#[derive(Debug)]
pub struct Device {
    share: Share,
}

/// The buffers of one request after the other.
#[derive(Debug, Default)]
struct Scratch {
    fields: Vec<u8>,
    body: Vec<u8>,
}

impl Device {
    /// Makes the device. Nothing happens before it is served.
    #[must_use]
    pub fn new(share: Share) -> Self {
        Self { share }
    }

    /// Serves a VMM on a connected vhost-user socket, on this thread, until the VMM closes it. Shutting down a clone of
    /// the socket ends it as well.
    ///
    /// # Errors
    /// When the VMM does not keep to the protocol or the host is out of resources.
    pub fn serve(mut self, vhost_user: UnixStream) -> Result<(), ServeError> {
        let wait_failed = |errno: Errno| ServeError::Wait(errno.into());
        let epoll = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(wait_failed)?);
        let description = Description {
            rings: RINGS,
            config: Vec::new(),
            protocol: VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK,
        };
        let frontend = Frontend::new(description, Arc::clone(&epoll)).map_err(ServeError::Rings)?;
        let frontend = Arc::new(Mutex::new(frontend));
        epoll.add(&vhost_user, EpollEvent::new(EpollFlags::EPOLLIN, FRONTEND)).map_err(wait_failed)?;
        let mut messages = BackendReqHandler::from_stream(vhost_user, Arc::clone(&frontend));
        let mut scratch = Scratch::default();
        let mut events = [EpollEvent::empty(); 16];
        let mut more = false;
        loop {
            let timeout = if more { EpollTimeout::ZERO } else { EpollTimeout::NONE };
            let count = match epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(wait_failed(errno)),
            };
            let mut message = false;
            for event in events.iter().take(count) {
                if event.data() == FRONTEND {
                    message = true;
                } else if let Ok(number) = usize::try_from(event.data())
                    && let Some(ring) = lock(&frontend).rings.get_mut(number)
                {
                    ring.take_kick();
                }
            }
            more = self.work(&frontend, &mut scratch);
            if message {
                match messages.handle_request() {
                    Ok(()) => {}
                    Err(
                        VhostError::Disconnected | VhostError::PartialMessage | VhostError::SocketBroken(_),
                    ) => return Ok(()),
                    Err(error) => return Err(ServeError::Frontend(error)),
                }
                if lock(&frontend).take_restarted() {
                    self.share.end_session();
                }
                // The message may have started a ring that has buffers already.
                more = true;
            }
        }
    }

    /// Works on all rings. `true`: there is more to do at once.
    fn work(&mut self, frontend: &Mutex<Frontend>, scratch: &mut Scratch) -> bool {
        let mut frontend = lock(frontend);
        let Frontend { memory: Some(memory), rings, .. } = &mut *frontend else { return false };
        let mut more = false;
        for ring in rings.iter_mut().filter(|ring| ring.is_running()) {
            more |= answer_ring(&mut self.share, memory, ring, scratch);
        }
        more
    }
}

/// Answers a batch. `true`: there are more.
fn answer_ring(share: &mut Share, memory: &GuestMemoryMmap, ring: &mut Ring, scratch: &mut Scratch) -> bool {
    ring.stop_listening(memory);
    for _ in 0..BATCH {
        let Some(descriptors) = ring.pop(memory) else { return ring.listen(memory) };
        let head = descriptors.head_index();
        let written = Chain::new(memory, descriptors)
            .map_or(None, |chain| answer_chain(share, chain, scratch))
            .unwrap_or_else(|| {
                // There is nowhere to say so.
                share.record(Violation::Message);
                0
            });
        ring.give_back(memory, head, written);
        ring.notify(memory);
    }
    true
}

/// Answers one request. Returns the length of the reply, or `None` if it is no request.
fn answer_chain(share: &mut Share, mut chain: Chain<'_>, scratch: &mut Scratch) -> Option<u32> {
    let header = chain.request(&mut scratch.fields).ok()?;
    if !chain.is_answerable() && !is_unanswered(header.opcode) {
        return None;
    }
    let answer = share.answer(&header, &scratch.fields, &mut chain, &mut scratch.body);
    let (error, body, loaded) = match answer {
        Answer::Silence => return Some(0),
        Answer::Error(errno) => (Some(errno), &[][..], 0),
        Answer::Body => (None, &*scratch.body, 0),
        Answer::Loaded(len) => (None, &[][..], len),
    };
    let len = body.len().saturating_add(loaded);
    Some(chain.reply(&out_header(header.unique, error, len), body, loaded))
}

/// One thread uses it, and it stays consistent between calls.
fn lock(frontend: &Mutex<Frontend>) -> MutexGuard<'_, Frontend> {
    frontend.lock().unwrap_or_else(PoisonError::into_inner)
}
