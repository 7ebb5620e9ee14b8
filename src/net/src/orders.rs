//! Orders for the switch, from the thread that reads them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use boxlite_control::{NetOrder, NetReport};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Orders that may wait: whoever gives one waits for the answer.
const WAITING: usize = 4;

/// An order, and where its answer goes. There is always room for it.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) order: NetOrder,
    pub(crate) answer: SyncSender<NetReport>,
}

/// The switch's end.
#[derive(Debug)]
pub(crate) struct Orders {
    waiting: Receiver<Order>,
    wake: Arc<EventFd>,
}

/// The other end.
#[derive(Debug)]
pub(crate) struct Commander {
    to: SyncSender<Order>,
    wake: Arc<EventFd>,
}

/// A pair of ends.
pub(crate) fn pair() -> io::Result<(Commander, Orders)> {
    let (to, waiting) = sync_channel(WAITING);
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    Ok((Commander { to, wake: Arc::clone(&wake) }, Orders { waiting, wake }))
}

impl Commander {
    /// Gives an order and waits for the answer. `None`: the switch has gone.
    pub(crate) fn give(&self, order: NetOrder) -> Option<NetReport> {
        let (answer, answered) = sync_channel(1);
        self.to.send(Order { order, answer }).ok()?;
        self.wake.write(1).ok()?;
        answered.recv().ok()
    }
}

impl Orders {
    /// The next one that is there.
    pub(crate) fn next(&mut self) -> Option<Order> {
        // Its counter is cleared first: an order that comes later sets it again. Nothing to clear is no error.
        self.wake.read().ok();
        self.waiting.try_recv().ok()
    }
}

impl AsFd for Orders {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
