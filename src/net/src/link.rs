//! The Ethernet link to the guest: frames over a Unix stream, each behind its length in 32 bits, big-endian. QEMU's
//! `-netdev stream` and libkrun's unixstream backend speak the same.
//!
//! ```text
//!   VMM ──▶ Inbox   one read is many frames, and maybe a part of one
//!   VMM ◀── Outbox  whole frames gather here, and leave in chunks
//! ```
//!
//! A chunk is handed to the kernel only when the socket has room for all of it. So a helper that is killed leaves no half
//! frame behind, and the next one can go on with the same socket. What the guest had half sent then is skipped: the
//! [`Inbox`] of a resumed link looks for something that can only be the beginning of a frame.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};

use crate::capture::Capture;
use crate::rate::Bucket;

/// The length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// The length in front of a frame.
const LENGTH: usize = 4;
/// The longest frame that is understood: an IP packet of 64 KiB in its header.
const LONGEST: usize = ETHERNET + (64 << 10);
/// What is read at once.
const READ: usize = 256 << 10;
/// What is written at once. A stream socket has room for this much whenever it says that it can be written: then at most a
/// quarter of its buffer, which has 208 KiB unless the host says otherwise, is in use.
const CHUNK: usize = 104 << 10;
/// How much may wait to be written before nobody may add to it.
const FULL: usize = 1 << 20;

/// What became of reading.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// There is more to look at.
    Some,
    /// There is nothing now.
    Empty,
    /// The VMM has gone.
    End,
}

/// What has come from the guest.
#[derive(Debug)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    /// Where the next frame begins, and where what was read ends.
    start: usize,
    end: usize,
    /// How the beginning of a frame is recognized, while it is not known where one is.
    lost: Option<[u8; 6]>,
}

impl Inbox {
    /// `resync`: the guest may be in the middle of a frame; its hardware address tells where the next one begins.
    pub(crate) fn new(resync: Option<[u8; 6]>) -> Self {
        Self { bytes: vec![0; READ + LENGTH + LONGEST], start: 0, end: 0, lost: resync }
    }

    /// Reads what there is, once.
    pub(crate) fn read(&mut self, link: BorrowedFd<'_>) -> io::Result<Read> {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        loop {
            match recv(link.as_raw_fd(), &mut self.bytes[self.end..], MsgFlags::MSG_DONTWAIT) {
                Ok(0) | Err(Errno::ECONNRESET) => return Ok(Read::End),
                Ok(read) => {
                    self.end += read;
                    return Ok(Read::Some);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(Read::Empty),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The next whole frame.
    ///
    /// # Errors
    ///
    /// When a length cannot be one: nothing that follows can be understood.
    pub(crate) fn next(&mut self) -> io::Result<Option<std::ops::Range<usize>>> {
        if self.lost.is_some() && !self.find() {
            return Ok(None);
        }
        let Some(length) = self.length_at(self.start) else { return Ok(None) };
        if !(ETHERNET..=LONGEST).contains(&length) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
        }
        let frame = self.start + LENGTH..self.start + LENGTH + length;
        if frame.end > self.end {
            return Ok(None);
        }
        self.start = frame.end;
        Ok(Some(frame))
    }

    /// A frame that [`Inbox::next`] has found since the last read.
    pub(crate) fn frame(&self, at: std::ops::Range<usize>) -> &[u8] {
        &self.bytes[at]
    }

    fn length_at(&self, at: usize) -> Option<usize> {
        let length = self.bytes[at..self.end].first_chunk::<LENGTH>()?;
        usize::try_from(u32::from_be_bytes(*length)).ok()
    }

    /// Skips what cannot be the beginning of a frame. `false`: it takes more bytes to know.
    fn find(&mut self) -> bool {
        let Some(mac) = self.lost else { return true };
        while self.start + LENGTH + ETHERNET <= self.end {
            let header = self.start + LENGTH;
            let plausible =
                self.length_at(self.start).is_some_and(|length| (ETHERNET..=LONGEST).contains(&length))
                    && self.bytes[header + 6..header + 12] == mac
                    && [[0x08, 0x00], [0x08, 0x06], [0x86, 0xdd]]
                        .iter()
                        .any(|kind| self.bytes[header + 12..header + 14] == *kind);
            if plausible {
                self.lost = None;
                return true;
            }
            self.start += 1;
        }
        false
    }
}

/// What is to go to the guest.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    /// How much at the front of `bytes` has gone.
    gone: usize,
    /// Where each frame ends that has not gone as a whole.
    ends: VecDeque<usize>,
    pub(crate) frames: u64,
    pub(crate) total: u64,
    /// Where frames of both directions are written down, if anywhere.
    pub(crate) capture: Option<Capture>,
}

impl Outbox {
    /// Whether it has room for another frame. An answer to a frame that finds none is lost, as on any link.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes.len() - self.gone < FULL
    }

    /// Whether anything waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.gone == self.bytes.len()
    }

    /// Adds a frame of this kind and this many bytes behind the Ethernet header, which `fill` writes.
    pub(crate) fn push<R>(
        &mut self,
        header: &[u8; ETHERNET],
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        // Lengths are of IP packets.
        let whole = u32::try_from(ETHERNET + length).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&whole.to_be_bytes());
        self.bytes.extend_from_slice(header);
        let at = self.bytes.len();
        self.bytes.resize(at + length, 0);
        self.ends.push_back(self.bytes.len());
        self.frames += 1;
        self.total += u64::from(whole);
        let filled = fill(&mut self.bytes[at..]);
        if let Some(capture) = &mut self.capture {
            capture.add(&self.bytes[at - ETHERNET..]);
        }
        filled
    }

    /// Writes as long as the socket takes whole chunks and `limit` lets them. `false`: there is more.
    pub(crate) fn flush(&mut self, link: BorrowedFd<'_>, limit: &mut Bucket) -> io::Result<bool> {
        while !self.is_empty() {
            if !limit.is_open(Instant::now()) {
                return Ok(false);
            }
            if !is_writable(link)? {
                return Ok(false);
            }
            let chunk = self.chunk();
            match send(
                link.as_raw_fd(),
                &self.bytes[self.gone..chunk],
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            ) {
                Ok(sent) => {
                    limit.take(sent as u64);
                    self.has_gone(sent);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }

    /// The end of what goes at once: whole frames, at most a chunk of them, and at least one.
    fn chunk(&self) -> usize {
        let fits = |end: &&usize| **end - self.gone <= CHUNK;
        let last = self.ends.iter().take_while(fits).last().or_else(|| self.ends.front());
        last.copied().unwrap_or(self.bytes.len())
    }

    fn has_gone(&mut self, sent: usize) {
        self.gone += sent;
        while self.ends.front().is_some_and(|end| *end <= self.gone) {
            self.ends.pop_front();
        }
        if self.is_empty() {
            self.bytes.clear();
            self.gone = 0;
        } else if self.gone > FULL {
            self.bytes.drain(..self.gone);
            self.ends.iter_mut().for_each(|end| *end -= self.gone);
            self.gone = 0;
        }
    }
}

fn is_writable(link: BorrowedFd<'_>) -> io::Result<bool> {
    let mut asked = [PollFd::new(link, PollFlags::POLLOUT)];
    match poll(&mut asked, PollTimeout::ZERO) {
        Ok(_) => Ok(asked[0].any().unwrap_or(false)),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// The link of a switch.
#[derive(Debug)]
pub(crate) struct Link {
    socket: OwnedFd,
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox,
}

impl Link {
    pub(crate) fn new(socket: OwnedFd, resync: Option<[u8; 6]>) -> Self {
        Self { socket, inbox: Inbox::new(resync), outbox: Outbox::default() }
    }

    /// See [`Inbox::read`].
    pub(crate) fn read(&mut self) -> io::Result<Read> {
        self.inbox.read(self.socket.as_fd())
    }

    /// See [`Outbox::flush`].
    pub(crate) fn flush(&mut self, limit: &mut Bucket) -> io::Result<bool> {
        self.outbox.flush(self.socket.as_fd(), limit)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    const GUEST: [u8; 6] = [2, 0xb0, 0x0c, 0, 0, 2];

    fn header() -> [u8; ETHERNET] {
        let mut header = [0; ETHERNET];
        header[6..12].copy_from_slice(&GUEST);
        header[12] = 8;
        header
    }

    fn wire(lengths: &[usize]) -> Vec<u8> {
        let mut outbox = Outbox::default();
        for (number, length) in lengths.iter().enumerate() {
            outbox.push(&header(), *length, |bytes| bytes.fill(u8::try_from(number).unwrap()));
        }
        outbox.bytes
    }

    fn lengths(inbox: &mut Inbox) -> Vec<usize> {
        std::iter::from_fn(|| inbox.next().unwrap()).map(|frame| inbox_length(&frame)).collect()
    }

    fn inbox_length(frame: &std::ops::Range<usize>) -> usize {
        frame.len() - ETHERNET
    }

    #[test]
    fn frames_come_out_as_they_went_in_wherever_the_stream_is_cut() {
        let wire = wire(&[0, 1, 50, 1500]);
        for cut in 0..=wire.len() {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let mut inbox = Inbox::new(None);
            let mut found = Vec::new();
            for part in [&wire[..cut], &wire[cut..]] {
                theirs.write_all(part).unwrap();
                if !part.is_empty() {
                    assert_eq!(inbox.read(ours.as_fd()).unwrap(), Read::Some);
                }
                found.extend(lengths(&mut inbox));
            }
            assert_eq!(found, [0, 1, 50, 1500], "cut at {cut}");
            assert_eq!(inbox.read(ours.as_fd()).unwrap(), Read::Empty);
            drop(theirs);
            assert_eq!(inbox.read(ours.as_fd()).unwrap(), Read::End);
        }
    }

    #[test]
    fn a_length_that_cannot_be_one_is_an_error() {
        for length in [0_u32, 13, 14 + 65537, u32::MAX] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(&length.to_be_bytes()).unwrap();
            let mut inbox = Inbox::new(None);
            inbox.read(ours.as_fd()).unwrap();
            assert!(inbox.next().is_err(), "{length}");
        }
    }

    #[test]
    fn a_resumed_link_finds_the_next_frame_from_any_point_of_the_last_one() {
        let wire = wire(&[700, 20, 30]);
        let second = LENGTH + ETHERNET + 700;
        for cut in 1..=second {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let mut inbox = Inbox::new(Some(GUEST));
            let mut found = Vec::new();
            // In small parts, so that the search has to wait in between.
            for part in wire[cut..].chunks(7) {
                theirs.write_all(part).unwrap();
                inbox.read(ours.as_fd()).unwrap();
                found.extend(lengths(&mut inbox));
            }
            assert_eq!(found, [20, 30], "cut at {cut}");
        }
    }

    #[test]
    fn only_whole_frames_are_written_and_all_of_them_arrive() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut outbox = Outbox::default();
        let mut pushed = 0;
        for length in [1500, 65520, 64, 9000].into_iter().cycle() {
            if !outbox.has_room() {
                break;
            }
            outbox.push(&header(), length, |bytes| bytes.fill(7));
            pushed += 1;
        }
        let mut inbox = Inbox::new(None);
        let mut found = 0;
        loop {
            let done = outbox.flush(ours.as_fd(), &mut Bucket::new(0, Instant::now())).unwrap();
            theirs.set_nonblocking(true).unwrap();
            // Whatever has been written by now ends with a frame.
            while inbox.read(theirs.as_fd()).unwrap() == Read::Some {
                found += lengths(&mut inbox).len();
            }
            assert_eq!(inbox.start, inbox.end);
            if done {
                break;
            }
        }
        assert_eq!(found, pushed);
        assert!(outbox.is_empty() && outbox.bytes.is_empty() && outbox.ends.is_empty());
        assert_eq!(theirs.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_socket_whose_other_end_has_gone_is_an_error_and_no_signal() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let mut outbox = Outbox::default();
        outbox.push(&header(), 10, |_| ());
        assert!(outbox.flush(ours.as_fd(), &mut Bucket::new(0, Instant::now())).is_err());
    }
}
