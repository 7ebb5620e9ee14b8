//! From a pipe or a terminal into the output.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use boxlite_portal::limits;
use nix::fcntl::{FcntlArg, fcntl};
use tokio::io::unix::AsyncFd;

use super::output::{Output, Stream};

thread_local! {
    /// What was just read, on its way into a backlog: one buffer for all pumps of the thread, because none of them
    /// waits while it uses it.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; limits::CHUNK]);
}

/// What a terminal can hold between its two sides: the kernel's buffer of 64 KiB and those of the line discipline.
const TERMINAL: usize = 80 << 10;

/// How much a source can hold. Its process may have changed that, for a pipe.
pub fn capacity(source: &impl AsFd) -> usize {
    // A terminal has no such number.
    fcntl(source, FcntlArg::F_GETPIPE_SZ).ok().and_then(|size| usize::try_from(size).ok()).unwrap_or(TERMINAL)
}

/// Moves everything into the stream, then closes the stream.
pub async fn run(source: Arc<AsyncFd<OwnedFd>>, output: Arc<Output>, stream: Stream) {
    loop {
        let Ok(mut ready) = source.readable().await else { break };
        // After the wait for data, so that nothing happens between the answer and the push: a reader that came in
        // between would lose what it needs.
        let room = output.room(stream).await.min(limits::CHUNK);
        let read = ready.try_io(|source| {
            SCRATCH.with_borrow_mut(|scratch| {
                let read = nix::unistd::read(source.get_ref(), &mut scratch[..room])?;
                output.push(stream, &scratch[..read]);
                Ok(read)
            })
        });
        // EIO is how the last terminal of a session says that this is the end.
        if let Ok(Ok(0) | Err(_)) = read {
            break;
        }
    }
    output.close(stream);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_that_its_process_has_enlarged_is_known_to_hold_more() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        assert_eq!(capacity(&reader), 64 << 10);
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(256 << 10)).unwrap();
        assert_eq!(capacity(&reader), 256 << 10);
        assert_eq!(capacity(&std::fs::File::open("/dev/null").unwrap()), TERMINAL);
    }
}
