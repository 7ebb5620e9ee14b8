//! The host's end of a connection: a Unix socket, and what it did not take yet.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, socket};
use vm_memory::{VolatileMemoryError, VolatileSlice, WriteVolatile};

/// A backlog with more memory than this gives it back as soon as it is empty.
const KEPT: usize = 64 << 10;

/// See the module.
///
/// The socket does not block and is watched for edges, so what it can do is remembered until it says otherwise.
#[derive(Debug)]
pub(crate) struct HostEnd {
    stream: UnixStream,
    writable: bool,
    /// What was accepted from the guest and not written yet: `backlog[done..]`. Credit bounds it.
    backlog: Vec<u8>,
    done: usize,
}

/// What reading has brought.
#[derive(Debug)]
pub(crate) enum Reading {
    Data(usize),
    Nothing,
    End,
    Failed,
}

impl HostEnd {
    /// An accepted connection.
    pub(crate) fn accepted(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, writable: true, backlog: Vec::new(), done: 0 })
    }

    /// Connects to a listening socket. Never waits: a listener whose queue is full refuses.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self { stream: UnixStream::from(fd), writable: true, backlog: Vec::new(), done: 0 })
    }

    /// For the event loop.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// The socket can be written to again.
    pub(crate) fn writable(&mut self) {
        self.writable = true;
    }

    /// Takes all of `segments`: writes what the socket takes, keeps the rest. Returns how much was written.
    ///
    /// # Errors
    /// When nobody will ever read it.
    pub(crate) fn forward(&mut self, segments: &[VolatileSlice<'_>]) -> io::Result<u32> {
        let mut written = 0;
        for segment in segments {
            let mut rest = *segment;
            while !rest.is_empty() && self.writable && self.backlog.is_empty() {
                // Straight from guest memory: no copy where the reader keeps up.
                match (&self.stream).write_volatile(&rest) {
                    Ok(count) => {
                        written += count;
                        rest = rest.offset(count).map_err(io::Error::other)?;
                    }
                    Err(VolatileMemoryError::IOError(error)) => self.after_error(error)?,
                    Err(error) => return Err(io::Error::other(error)),
                }
            }
            self.keep(&rest);
        }
        u32::try_from(written).map_err(io::Error::other)
    }

    /// Writes what was kept, as much as the socket takes.
    ///
    /// # Errors
    /// When nobody will ever read it.
    pub(crate) fn flush(&mut self) -> io::Result<u32> {
        let mut written = 0;
        while self.writable && self.done < self.backlog.len() {
            match (&self.stream).write(&self.backlog[self.done..]) {
                Ok(count) => {
                    written += count;
                    self.done += count;
                }
                Err(error) => self.after_error(error)?,
            }
        }
        if self.done == self.backlog.len() {
            self.discard();
        }
        u32::try_from(written).map_err(io::Error::other)
    }

    /// Throws away what was kept.
    pub(crate) fn discard(&mut self) {
        self.done = 0;
        self.backlog.clear();
        if self.backlog.capacity() > KEPT {
            self.backlog = Vec::new();
        }
    }

    fn keep(&mut self, segment: &VolatileSlice<'_>) {
        if segment.is_empty() {
            return;
        }
        if self.done > 0 && self.done >= self.backlog.len() / 2 {
            self.backlog.drain(..self.done);
            self.done = 0;
        }
        let start = self.backlog.len();
        self.backlog.resize(start + segment.len(), 0);
        segment.copy_to(&mut self.backlog[start..]);
    }

    fn after_error(&mut self, error: io::Error) -> io::Result<()> {
        match error.kind() {
            ErrorKind::Interrupted => Ok(()),
            ErrorKind::WouldBlock => {
                self.writable = false;
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Reads what there is.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Reading {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Reading::End,
                Ok(count) => return Reading::Data(count),
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock => return Reading::Nothing,
                    _ => return Reading::Failed,
                },
            }
        }
    }

    /// There is something to read: not just the end.
    pub(crate) fn has_data(&self) -> bool {
        matches!(recv(self.stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK), Ok(1..))
    }

    /// Shuts down a direction. The only failure is that the other side is gone, which the event loop says as well.
    pub(crate) fn shutdown(&self, direction: Shutdown) {
        if let Err(error) = self.stream.shutdown(direction) {
            tracing::debug!(%error, "the host's end is gone already");
        }
    }
}
