//! The standard input of one execution.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;

use super::terminal;

/// Where input goes.
#[derive(Debug)]
pub enum Input {
    /// There is none, or it was closed.
    Closed,
    /// A pipe: closing it is its end.
    Pipe(Arc<AsyncFd<OwnedFd>>),
    /// A terminal: its end is a character.
    Terminal {
        /// The controlling side.
        master: Arc<AsyncFd<OwnedFd>>,
        /// The last byte written ended a line.
        at_line_start: bool,
    },
}

impl Input {
    /// Writes all of `data`, as fast as the process reads. Returns how much was written: less if nobody reads any more.
    pub async fn write(&mut self, data: &[u8]) -> usize {
        let target = match self {
            Input::Closed => return 0,
            Input::Pipe(target) | Input::Terminal { master: target, .. } => Arc::clone(target),
        };
        let written = write_all(&target, data).await;
        if written < data.len() {
            *self = Input::Closed;
        } else if let (Input::Terminal { at_line_start, .. }, Some(last)) = (self, data.last()) {
            *at_line_start = matches!(last, b'\n' | b'\r');
        }
        written
    }

    /// Ends the input.
    pub async fn close(&mut self) {
        if let Input::Terminal { master, at_line_start } = &*self {
            let end = terminal::end_of_input(master.get_ref(), *at_line_start);
            // Whoever does not read it has no use for it.
            write_all(master, &end).await;
        }
        *self = Input::Closed;
    }
}

async fn write_all(target: &AsyncFd<OwnedFd>, data: &[u8]) -> usize {
    let mut written = 0;
    while written < data.len() {
        let Ok(mut ready) = target.writable().await else { return written };
        match ready
            .try_io(|target| nix::unistd::write(target.get_ref(), &data[written..]).map_err(io::Error::from))
        {
            Ok(Ok(count)) => written += count,
            Ok(Err(_)) => return written,
            Err(_would_block) => {}
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;

    fn pipe() -> (File, Input) {
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        (File::from(reader), Input::Pipe(Arc::new(crate::descriptor::watch(writer).unwrap())))
    }

    #[tokio::test]
    async fn what_is_written_arrives_and_close_is_the_end() {
        let (mut reader, mut input) = pipe();
        assert_eq!(input.write(b"hello").await, 5);
        input.close().await;
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"hello");
        assert_eq!(input.write(b"late").await, 0);
    }

    #[tokio::test]
    async fn a_process_that_closed_its_end_is_known_by_the_count() {
        let (reader, mut input) = pipe();
        drop(reader);
        assert_eq!(input.write(b"hello").await, 0);
    }

    #[tokio::test]
    async fn writing_waits_for_the_process_to_read() {
        let (mut reader, mut input) = pipe();
        let data = vec![1; 200_000];
        let write = tokio::spawn(async move { input.write(&data).await });
        tokio::task::yield_now().await;
        assert!(!write.is_finished(), "a pipe does not hold this much");
        let read = tokio::task::spawn_blocking(move || {
            let mut all = vec![0; 200_000];
            reader.read_exact(&mut all).map(|()| reader)
        });
        let _reader = read.await.unwrap().unwrap();
        assert_eq!(write.await.unwrap(), 200_000);
    }
}
