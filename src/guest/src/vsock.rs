//! Stream sockets to the host, for tokio.
//!
//! What is here works for any stream socket; the tests serve over Unix sockets with it.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use boxlite_portal::ports;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, Shutdown, SockFlag, SockType, VsockAddr, bind, connect, getpeername,
    listen, send, sendmsg, shutdown, socket,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::descriptor::watch;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 64;

/// Dials a port of the host, and waits for the answer.
///
/// # Errors
/// What the system says.
pub fn dial_host(port: u32) -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(fd.as_raw_fd(), &VsockAddr::new(ports::HOST_CID, port))?;
    Ok(fd)
}

/// A connected stream socket.
#[derive(Debug)]
pub struct Socket {
    fd: AsyncFd<OwnedFd>,
}

impl Socket {
    /// Takes a connected socket over.
    ///
    /// # Errors
    /// When it cannot be registered with the runtime.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: watch(fd)? })
    }

    /// Gives the socket back, which is still non-blocking.
    pub fn into_fd(self) -> OwnedFd {
        self.fd.into_inner()
    }
}

impl TryFrom<StdUnixStream> for Socket {
    type Error = io::Error;

    fn try_from(stream: StdUnixStream) -> io::Result<Self> {
        Self::new(stream.into())
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.fd.poll_read_ready(cx))?;
            let unfilled = buf.initialize_unfilled();
            match ready.try_io(|fd| nix::unistd::read(fd.get_ref(), unfilled).map_err(io::Error::from)) {
                Ok(Ok(count)) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl Socket {
    fn poll_io(
        &self,
        cx: &mut Context<'_>,
        mut work: impl FnMut(i32) -> nix::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.fd.poll_write_ready(cx))?;
            match ready.try_io(|fd| work(fd.as_raw_fd()).map_err(io::Error::from)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_io(cx, |fd| send(fd, data, MsgFlags::MSG_NOSIGNAL))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_io(cx, |fd| sendmsg::<()>(fd, data, &[], MsgFlags::MSG_NOSIGNAL, None))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match shutdown(self.fd.as_raw_fd(), Shutdown::Write) {
            // The peer was quicker.
            Ok(()) | Err(Errno::ENOTCONN) => Poll::Ready(Ok(())),
            Err(errno) => Poll::Ready(Err(errno.into())),
        }
    }
}

/// Gives connections from the host.
#[derive(Debug)]
pub struct Listener {
    fd: AsyncFd<OwnedFd>,
    /// The socket is a virtio one, so peers have a context id.
    vsock: bool,
}

impl Listener {
    /// Listens on a vsock port.
    ///
    /// # Errors
    /// What the system says.
    pub fn vsock(port: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
        bind(fd.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
        listen(&fd, Backlog::new(BACKLOG)?)?;
        Ok(Self { fd: watch(fd)?, vsock: true })
    }

    /// Listens on a Unix socket.
    ///
    /// # Errors
    /// What the system says.
    pub fn unix(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        Ok(Self { fd: watch(listener.into())?, vsock: false })
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// When the listening socket fails.
    pub async fn accept(&self) -> io::Result<Socket> {
        loop {
            let mut ready = self.fd.readable().await?;
            let accepted = match ready.try_io(|fd| accept(fd.as_raw_fd()).map_err(io::Error::from)) {
                Ok(Ok(fd)) => fd,
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ECONNABORTED) => continue,
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => continue,
            };
            if !self.vsock || is_host(&accepted) {
                return Socket::new(accepted);
            }
        }
    }
}

fn accept(fd: i32) -> nix::Result<OwnedFd> {
    // SAFETY: null pointers say that the peer's address is not asked for.
    let accepted = unsafe {
        libc::accept4(
            fd,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        )
    };
    // SAFETY: the kernel has just opened it for us.
    Errno::result(accepted).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The portal gives root in the container. A process in it can dial this machine's own ports as well, by its own context
/// id or over loopback, and must find nothing.
fn is_host(fd: &OwnedFd) -> bool {
    getpeername::<VsockAddr>(fd.as_raw_fd()).is_ok_and(|peer| peer.cid() == ports::HOST_CID)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn bytes_go_both_ways_and_half_close_ends_one_direction_only() {
        let (a, b) = StdUnixStream::pair().unwrap();
        let (mut a, mut b) = (Socket::try_from(a).unwrap(), Socket::try_from(b).unwrap());
        a.write_all(b"ping").await.unwrap();
        a.shutdown().await.unwrap();
        let mut all = Vec::new();
        b.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"ping");
        b.write_all(b"pong").await.unwrap();
        drop(b);
        all.clear();
        a.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"pong");
    }

    #[tokio::test]
    async fn writing_to_a_peer_that_has_gone_is_an_error_and_no_signal() {
        let (a, b) = StdUnixStream::pair().unwrap();
        drop(b);
        let mut a = Socket::try_from(a).unwrap();
        assert_eq!(a.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
