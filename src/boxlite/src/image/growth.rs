//! A blob while it is written, for those who read it at the same time.
//!
//! ```text
//!             begin              grow …           complete
//!   expected ───────▶ growing ──────────▶ growing ─────────▶ complete
//!       │                │                                  ▲
//!       │ fail           │ fail                             │ there: it was there already
//!       ▼                ▼                                  │
//!     failed           failed                    expected ──┘
//! ```
//!
//! One writes, any number reads. Readers wait while there is nothing to read; what ends their waiting is the writer: a
//! [`Guard`] makes sure that a blob that is not complete has failed once its writer has gone.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::digest::Digest;

/// A blob, and how far it is.
#[derive(Debug)]
pub(super) struct Growth {
    digest: Digest,
    size: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
enum State {
    Expected,
    Growing { file: Arc<File>, bytes: u64 },
    Complete { file: Arc<File> },
    Failed,
}

impl Growth {
    pub(super) fn new(digest: Digest, size: u64) -> Arc<Self> {
        Arc::new(Self { digest, size, state: Mutex::new(State::Expected), changed: Condvar::new() })
    }

    pub(super) fn digest(&self) -> Digest {
        self.digest
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Whether all of it is there.
    pub(super) fn is_complete(&self) -> bool {
        matches!(*self.lock(), State::Complete { .. })
    }

    /// It is in this file, of which `bytes` are right.
    pub(super) fn begin(&self, file: Arc<File>, bytes: u64) {
        self.set(|state| *state = State::Growing { file, bytes });
    }

    /// So many bytes are there now.
    pub(super) fn grow(&self, to: u64) {
        self.set(|state| {
            if let State::Growing { bytes, .. } = state {
                *bytes = to;
            }
        });
    }

    /// All bytes are there, and they are the right ones.
    pub(super) fn complete(&self) {
        self.set(|state| {
            if let State::Growing { file, .. } = state {
                *state = State::Complete { file: file.clone() };
            }
        });
    }

    /// It was complete before anybody began.
    pub(super) fn there(&self, file: File) {
        self.set(|state| *state = State::Complete { file: Arc::new(file) });
    }

    /// Nobody writes it any more. A complete one stays so.
    pub(super) fn fail(&self) {
        self.set(|state| {
            if !matches!(state, State::Complete { .. }) {
                *state = State::Failed;
            }
        });
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is more than `at` bytes, or all; tells the file and how many there are.
    fn wait(&self, at: u64) -> io::Result<(Arc<File>, u64)> {
        let mut state = self.lock();
        loop {
            match &*state {
                State::Complete { file } => return Ok((file.clone(), self.size)),
                State::Growing { file, bytes } if *bytes > at || *bytes == self.size => {
                    return Ok((file.clone(), *bytes));
                }
                State::Failed => return Err(io::Error::other("the blob does not arrive")),
                State::Expected | State::Growing { .. } => {}
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Reads it from the start, as it arrives.
    pub(super) fn reader(self: &Arc<Self>) -> Follow {
        Follow { growth: self.clone(), file: None, at: 0, bytes: 0 }
    }
}

/// Ends the waiting of all readers: blobs that are not complete when this is dropped have failed.
#[derive(Debug)]
pub(super) struct Guard<'a>(pub(super) &'a [Arc<Growth>]);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        for growth in self.0 {
            growth.fail();
        }
    }
}

/// Reads a blob while it is written.
#[derive(Debug)]
pub(super) struct Follow {
    growth: Arc<Growth>,
    file: Option<Arc<File>>,
    at: u64,
    /// Bytes known to be there.
    bytes: u64,
}

impl Read for Follow {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.growth.size || buffer.is_empty() {
            return Ok(0);
        }
        let file = match &self.file {
            Some(file) if self.at < self.bytes => file,
            _ => {
                let (file, bytes) = self.growth.wait(self.at)?;
                self.bytes = bytes;
                self.file.insert(file)
            }
        };
        let most = usize::try_from(self.bytes - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let length = file.read_at(&mut buffer[..most], self.at)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_reader_sees_what_is_written_while_it_reads_and_then_the_end() {
        let growth = Growth::new(Digest::of(b"x"), 6);
        let mut file = tempfile::tempfile().unwrap();
        let mut reader = growth.reader();
        std::thread::scope(|scope| {
            let read = scope.spawn(move || {
                let mut text = String::new();
                reader.read_to_string(&mut text).map(|_| text)
            });
            file.write_all(b"abc").unwrap();
            growth.begin(Arc::new(file.try_clone().unwrap()), 3);
            file.write_all(b"def").unwrap();
            growth.grow(6);
            assert_eq!(read.join().unwrap().unwrap(), "abcdef");
        });
    }

    #[test]
    fn a_reader_of_what_never_comes_is_told_so() {
        let growths = [Growth::new(Digest::of(b"x"), 6)];
        std::thread::scope(|scope| {
            let mut reader = growths[0].reader();
            let read = scope.spawn(move || reader.read(&mut [0; 8]).unwrap_err());
            drop(Guard(&growths));
            assert!(read.join().unwrap().to_string().contains("does not arrive"));
        });
        growths[0].there(tempfile::tempfile().unwrap());
        growths[0].fail();
        assert_eq!(growths[0].wait(0).unwrap().1, 6, "complete stays complete");
    }
}
