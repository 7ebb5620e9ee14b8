//! From a pipe or a terminal into the output.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use boxlite_portal::limits;
use tokio::io::unix::AsyncFd;

use super::output::{Output, Stream};

thread_local! {
    /// What was just read, on its way into a backlog: one buffer for all pumps of the thread, because none of them
    /// waits while it uses it.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; limits::CHUNK]);
}

/// Moves everything into the stream, then closes the stream.
pub async fn run(source: Arc<AsyncFd<OwnedFd>>, output: Arc<Output>, stream: Stream) {
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
