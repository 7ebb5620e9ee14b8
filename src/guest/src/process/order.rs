//! What a child is told to become, and how that travels.
//!
//! An [`Order`] is complete: names are resolved, defaults are filled in. It goes as one frame over a Unix stream socket,
//! to the spawner or to the container's first process, with the descriptors that the child gets attached to the frame's
//! first byte:
//!
//! ```text
//!   offset  size  meaning
//!   0       1     kind
//!   1       4     length of the body, big-endian, at most MAX_BODY
//!   5       n     body
//! ```

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Length of a frame's header.
pub const HEADER: usize = 5;
/// The largest body. An order is hardly larger than the portal message that it was made from; twice the portal's limit
/// leaves room for the defaults and the groups.
pub const MAX_BODY: usize = 2 * boxlite_portal::limits::MESSAGE;
/// The most descriptors in one frame.
pub const MAX_FDS: usize = 8;

/// A process to become.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Order {
    /// Program and arguments; empty means: idle.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub args: Vec<Vec<u8>>,
    /// The complete environment.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub env: Vec<Vec<u8>>,
    /// Working directory, absolute.
    #[prost(bytes = "vec", tag = "3")]
    pub cwd: Vec<u8>,
    /// User id.
    #[prost(uint32, tag = "4")]
    pub uid: u32,
    /// Group id.
    #[prost(uint32, tag = "5")]
    pub gid: u32,
    /// Supplementary groups.
    #[prost(uint32, repeated, tag = "6")]
    pub groups: Vec<u32>,
    /// Capabilities as a bit set; see [`crate::container::capabilities`].
    #[prost(uint64, tag = "7")]
    pub capabilities: u64,
    /// Resource limits, by number.
    #[prost(message, repeated, tag = "8")]
    pub rlimits: Vec<Limit>,
    /// Standard input is a terminal that the process shall control.
    #[prost(bool, tag = "9")]
    pub terminal: bool,
}

/// One resource limit.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Limit {
    /// `RLIMIT_*`.
    #[prost(uint32, tag = "1")]
    pub resource: u32,
    /// The soft limit.
    #[prost(uint64, tag = "2")]
    pub soft: u64,
    /// The hard limit.
    #[prost(uint64, tag = "3")]
    pub hard: u64,
}

/// What a frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// To the spawner: fork a process into the container. Body: an [`Order`]. Descriptors: cgroup, status, three of
    /// standard I/O.
    Exec = 1,
    /// To the spawner: create the container. Body: the bundle's path. Descriptors: the first process's channel.
    Create = 2,
    /// To the first process: become the main command. Body: an [`Order`]. Descriptors: status, three of standard I/O.
    Main = 3,
}

/// One received frame.
#[derive(Debug)]
pub struct Frame {
    /// What it is about.
    pub kind: Kind,
    /// Its body.
    pub body: Vec<u8>,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// The header of a frame.
///
/// # Errors
/// E2BIG when the body is too large.
pub fn header(kind: Kind, body: &[u8]) -> io::Result<[u8; HEADER]> {
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_BODY);
    let [a, b, c, d] = length.ok_or_else(|| io::Error::from_raw_os_error(libc::E2BIG))?.to_be_bytes();
    Ok([kind as u8, a, b, c, d])
}

/// Sends `bytes` with descriptors attached to the first of them. Returns how many bytes went.
///
/// # Errors
/// What the system says, `WouldBlock` included.
pub fn send_with_fds(socket: RawFd, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let rights = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    Ok(sendmsg::<()>(socket, &[IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None)?)
}

/// Receives one frame from a blocking socket; `None` at the end of the stream.
///
/// # Errors
/// When the socket fails or what arrives is no frame.
pub fn receive(socket: &mut UnixStream) -> io::Result<Option<Frame>> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let mut head = [0; HEADER];
    let mut space = cmsg_space!([RawFd; MAX_FDS]);
    let mut fds = Vec::new();
    let read = {
        let mut slices = [IoSliceMut::new(&mut head)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = control {
                // SAFETY: the kernel has just installed these descriptors for this message; nobody else knows them.
                fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        message.bytes
    };
    if read == 0 {
        return Ok(None);
    }
    socket.read_exact(&mut head[read..])?;
    let [kind, a, b, c, d] = head;
    let kind = match kind {
        1 => Kind::Exec,
        2 => Kind::Create,
        3 => Kind::Main,
        _ => return Err(invalid()),
    };
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).map_err(|_| invalid())?;
    if length > MAX_BODY {
        return Err(invalid());
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body)?;
    Ok(Some(Frame { kind, body, fds }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_frame_arrives_with_its_body_and_its_descriptors() {
        let (mut there, mut here) = UnixStream::pair().unwrap();
        let (probe, passed) = UnixStream::pair().unwrap();
        let head = header(Kind::Exec, b"body").unwrap();
        assert_eq!(send_with_fds(there.as_raw_fd(), &head, &[passed.as_raw_fd()]).unwrap(), HEADER);
        there.write_all(b"body").unwrap();
        let mut frame = receive(&mut here).unwrap().unwrap();
        assert_eq!((frame.kind, frame.body.as_slice(), frame.fds.len()), (Kind::Exec, &b"body"[..], 1));
        let mut received = UnixStream::from(frame.fds.remove(0));
        received.write_all(b"!").unwrap();
        let mut byte = [0];
        (&probe).read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"!");
    }

    #[test]
    fn the_end_between_two_frames_is_an_end_and_within_one_an_error() {
        let (there, mut here) = UnixStream::pair().unwrap();
        drop(there);
        assert!(receive(&mut here).unwrap().is_none());
        let (mut there, mut here) = UnixStream::pair().unwrap();
        there.write_all(&[1, 0, 0]).unwrap();
        drop(there);
        assert!(receive(&mut here).is_err());
    }

    #[test]
    fn a_body_beyond_the_limit_is_refused_before_it_is_allocated() {
        let (mut there, mut here) = UnixStream::pair().unwrap();
        there.write_all(&[1, 0xff, 0xff, 0xff, 0xff]).unwrap();
        assert_eq!(receive(&mut here).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(header(Kind::Exec, &vec![0; MAX_BODY + 1]).is_err());
    }
}
