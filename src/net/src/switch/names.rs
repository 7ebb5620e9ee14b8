//! Questions for names, as datagrams and as streams, and their answers.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{MsgFlags, recv};
use socket2::Socket;

use super::{BUFFERS, Switch, kind};
use crate::dns::Question;
use crate::dns::stream::{self, StreamFrames};
use crate::exchange;
use crate::packet::Packet;
use crate::reply;
use crate::table::Key;
use crate::tcp::{Connection, Ends};

/// A stream of questions: the resolver's end of a connection to the gateway.
#[derive(Debug)]
pub(super) struct Stream {
    socket: UnixStream,
    questions: StreamFrames,
    answers: Vec<u8>,
    pub(super) used: Instant,
    /// Questions whose answers have not come.
    waiting: usize,
}

/// Who waits for an answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asker {
    Datagram { guest: SocketAddr, gateway: SocketAddr },
    Stream(Key),
}

impl Switch {
    /// A connection to the gateway's resolver: this side of it is another Unix stream.
    pub(super) fn open_stream(
        &mut self,
        ends: Ends,
        packet: &Packet<'_>,
        now: smoltcp::time::Instant,
    ) -> io::Result<()> {
        let (host, socket) = UnixStream::pair()?;
        host.set_nonblocking(true)?;
        socket.set_nonblocking(true)?;
        let host = Socket::from(OwnedFd::from(host));
        let connection = Connection::outbound(host, ends, packet.whole, None, BUFFERS[2].1, &self.spec, now)?;
        let stream = Stream {
            socket,
            questions: StreamFrames::default(),
            answers: Vec::new(),
            used: Instant::now(),
            waiting: 0,
        };
        let key = self.streams.insert(stream);
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        let event = EpollEvent::new(flags, key.pack(kind::STREAM));
        let added = self.epoll.add(&stream.socket, event).map_err(io::Error::from);
        if let Err(error) = added.and_then(|()| self.add(connection).map(drop)) {
            self.streams.remove(key);
            return Err(error);
        }
        Ok(())
    }

    pub(super) fn stream(&mut self, key: Key) {
        let mut asked = Vec::new();
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.used = Instant::now();
        let ended = stream.pump(&mut self.scratch, &mut asked);
        stream.waiting += asked.len();
        for message in asked {
            self.ask(message, Asker::Stream(key));
        }
        if ended {
            self.streams.remove(key);
        }
    }

    pub(super) fn ask(&mut self, message: Vec<u8>, asker: Asker) {
        self.question += 1;
        let (id, stream) = (self.question, matches!(asker, Asker::Stream(_)));
        if self.resolver.ask(Question { id, message, stream }) {
            self.askers.insert(id, asker);
        } else {
            self.counters.dropped += 1;
        }
    }

    pub(super) fn answers(&mut self) {
        while let Some(answer) = self.resolver.take() {
            let Some(asker) = self.askers.remove(&answer.id) else { continue };
            match asker {
                Asker::Datagram { .. } if answer.message.is_empty() => {}
                Asker::Datagram { guest, gateway } => {
                    reply::udp(&mut self.link.outbox, &self.spec, gateway, guest, &answer.message);
                }
                Asker::Stream(key) => {
                    if let Some(stream) = self.streams.get_mut(key) {
                        stream.waiting = stream.waiting.saturating_sub(1);
                        if !answer.message.is_empty() {
                            stream.answers.extend(stream::frame(&answer.message));
                        }
                        self.stream(key);
                    }
                }
            }
        }
    }
}

impl Stream {
    /// Reads questions and writes answers. `true`: it is over.
    fn pump(&mut self, scratch: &mut [u8], asked: &mut Vec<Vec<u8>>) -> bool {
        use std::io::Write;
        while !self.answers.is_empty() {
            match self.socket.write(&self.answers) {
                Ok(written) => drop(self.answers.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return true,
            }
        }
        // Who does not read its answers is not heard.
        while self.answers.len() < exchange::LONGEST {
            match recv(self.socket.as_raw_fd(), scratch, MsgFlags::MSG_DONTWAIT) {
                // A client that has ended its half still reads.
                Ok(0) => return self.answers.is_empty() && self.waiting == 0,
                Ok(read) => {
                    if self.questions.push(&scratch[..read]).is_err() {
                        return true;
                    }
                    asked.extend(std::iter::from_fn(|| self.questions.next()));
                }
                Err(Errno::EAGAIN) => return false,
                Err(Errno::EINTR) => {}
                Err(_) => return true,
            }
        }
        false
    }
}
