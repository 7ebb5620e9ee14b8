//! From a pipe or a terminal into the output.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use boxlite_portal::limits;
use tokio::io::unix::AsyncFd;

use super::output::{Output, Stream};

thread_local! {
    /// What was just read, on its way into a backlog: one buffer for all pumps of the thread, because none of them
    /// waits while it uses it.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; limits::CHUNK]);
}

/// A descriptor that can be shared between a pump and a writer, as a terminal is.
#[derive(Clone, Debug)]
pub struct Descriptor(Arc<OwnedFd>);

impl Descriptor {
    /// Makes it non-blocking.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFL)?;
        let flags = nix::fcntl::OFlag::from_bits_retain(flags) | nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(flags))?;
        Ok(Self(Arc::new(fd)))
    }

    /// Registers it with the runtime.
    ///
    /// # Errors
    /// What the system says.
    pub fn watch(fd: OwnedFd) -> io::Result<Arc<AsyncFd<Self>>> {
        Ok(Arc::new(AsyncFd::new(Self::new(fd)?)?))
    }
}

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Moves everything into the stream, then closes the stream.
pub async fn run(source: Arc<AsyncFd<Descriptor>>, output: Arc<Output>, stream: Stream) {
    loop {
        let room = output.room(stream).await.min(limits::CHUNK);
        let Ok(mut ready) = source.readable().await else { break };
        let read = ready.try_io(|source| {
            SCRATCH.with_borrow_mut(|scratch| {
                let read = nix::unistd::read(source.get_ref(), &mut scratch[..room])?;
                output.push(stream, &scratch[..read]);
                Ok(read)
            })
        });
        match read {
            // The end. EIO is how the last terminal of a session says it.
            Ok(Ok(0) | Err(_)) => break,
            Ok(Ok(_)) | Err(_) => {}
        }
    }
    output.close(stream);
}
