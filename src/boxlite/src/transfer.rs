//! The host's end of a bulk transfer: a connection of its own to the agent, used by a thread that may block.
//!
//! ```text
//!   future ──▶ connect, hello ──▶ thread: request, data, result ──▶ future
//!     └──── dropped: the connection is shut down, and the thread fails at its next read or write
//! ```
//!
//! `boxlite_portal::transfer` says what is said. What arrives is the word of a machine that is not trusted: sizes are bounded
//! by the frames, text is cut and escaped before it is shown, and names are nothing but data.

use std::io::{self, BufReader, ErrorKind as IoKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use boxlite_control::SocketPath;
use boxlite_portal::hello::{self, Hello};
use boxlite_portal::transfer::{self, DataReader, DataWriter, Kind};
use boxlite_portal::v1::transfer_request::Operation;
use boxlite_portal::v1::{TransferInfo, TransferRequest, TransferResult, transfer_failure};
use boxlite_portal::version;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use crate::error::{Error, ErrorKind, Result};
use crate::litebox::LiteBox;
use crate::rpc;
use crate::runtime::blocking;

/// How much is read from the connection at once.
const READ: usize = 256 << 10;

/// A connection that is about to carry one transfer. For a thread that may block.
#[derive(Debug)]
pub(crate) struct Transfer {
    input: BufReader<UnixStream>,
    output: UnixStream,
    what: &'static str,
}

/// Ends the connection when the one who waits for it goes away.
struct Hangup(Option<UnixStream>);

impl Drop for Hangup {
    fn drop(&mut self) {
        if let Some(stream) = self.0.take() {
            // One that is closed already needs no more.
            stream.shutdown(Shutdown::Both).unwrap_or_default();
        }
    }
}

impl LiteBox {
    /// Runs a transfer on a thread that may block. `what` begins its errors: "cannot copy".
    pub(crate) async fn transfer<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(Transfer) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let turn = self.link().transfer().await;
        let turn = turn.map_err(|e| Error::new(ErrorKind::Internal, what.to_owned()).with_source(e))?;
        let connect = self.dial(what);
        let stream = match tokio::time::timeout(rpc::DEADLINE, connect).await {
            Ok(stream) => stream?,
            Err(_) => {
                let message = format!("{what}: the box did not answer within {:?}", rpc::DEADLINE);
                return Err(Error::new(ErrorKind::Portal, message));
            }
        };
        let failed = |e: io::Error| Error::new(ErrorKind::Portal, what.to_owned()).with_source(e);
        let hangup = stream.try_clone().map_err(failed)?;
        let output = stream.try_clone().map_err(failed)?;
        let mut hangup = Hangup(Some(hangup));
        let transfer = Transfer { input: BufReader::with_capacity(READ, stream), output, what };
        let outcome = blocking(move || {
            let outcome = work(transfer);
            drop(turn);
            outcome
        })
        .await;
        // The thread has closed its ends.
        hangup.0 = None;
        outcome
    }

    async fn dial(&self, what: &'static str) -> Result<UnixStream> {
        let portal = |e: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(ErrorKind::Portal, what.to_owned()).with_source(e)
        };
        let path = SocketPath::new(self.link().socket()).map_err(|e| portal(e.into()))?;
        let stream = tokio::net::UnixStream::connect(path.path()).await;
        let mut stream = stream.map_err(|e| self.unreachable(e.into()))?;
        hello::send(&mut stream, &Hello::new(rpc::BUILD)).await.map_err(|e| portal(e.into()))?;
        let peer = hello::receive(&mut stream).await.map_err(|e| portal(e.into()))?;
        if peer.version < version::FILES {
            let message = format!("{what}: the box was started by an older BoxLite that cannot move files");
            return Err(Error::new(ErrorKind::Unsupported, message).with_hint("restart the box"));
        }
        let stream = stream.into_std().and_then(|stream| stream.set_nonblocking(false).map(|()| stream));
        stream.map_err(|e| portal(e.into()))
    }
}

impl Transfer {
    fn broken(&self, error: io::Error) -> Error {
        let text = match error.kind() {
            IoKind::UnexpectedEof | IoKind::BrokenPipe | IoKind::ConnectionReset => "the connection was lost",
            IoKind::InvalidData => "the box does not keep to the protocol",
            _ => "the connection failed",
        };
        Error::new(ErrorKind::Portal, format!("{}: {text}", self.what)).with_source(error)
    }

    fn request(&mut self, operation: Operation) -> Result<()> {
        let request = TransferRequest { operation: Some(operation) };
        let sent = self.output.write_all(&transfer::MAGIC);
        let sent = sent.and_then(|()| transfer::write_message(&mut self.output, Kind::Request, &request));
        sent.map_err(|e| self.broken(e))
    }

    fn result(&self, result: TransferResult) -> Result<TransferResult> {
        use transfer_failure::Kind as Failure;
        let Some(failure) = result.failure else { return Ok(result) };
        let kind = match failure.kind() {
            Failure::NotFound => ErrorKind::NotFound,
            Failure::AlreadyExists => ErrorKind::AlreadyExists,
            Failure::WrongKind | Failure::Invalid => ErrorKind::InvalidArgument,
            Failure::NoSpace => ErrorKind::ResourceExhausted,
            Failure::PermissionDenied | Failure::Other | Failure::Unspecified => ErrorKind::Storage,
        };
        Err(Error::new(kind, format!("{}: {}", self.what, rpc::shown(&failure.message))))
    }

    /// Has the box send something. `take` gets what it says of it, and the data, which it may leave unread.
    pub(crate) fn download<T>(
        mut self,
        operation: Operation,
        take: impl FnOnce(&TransferInfo, &mut dyn Read) -> Result<T>,
    ) -> Result<(T, TransferResult)> {
        self.request(operation)?;
        let info: TransferInfo = match transfer::read_header(&mut self.input).map_err(|e| self.broken(e))? {
            Some((Kind::Info, length)) => {
                transfer::read_message(&mut self.input, length).map_err(|e| self.broken(e))?
            }
            Some((Kind::Result, length)) => {
                let result = transfer::read_message(&mut self.input, length).map_err(|e| self.broken(e))?;
                self.result(result)?;
                return Err(self.broken(IoKind::InvalidData.into()));
            }
            Some(_) => return Err(self.broken(IoKind::InvalidData.into())),
            None => return Err(self.broken(IoKind::UnexpectedEof.into())),
        };
        let mut data = DataReader::new(&mut self.input);
        let taken = take(&info, &mut data);
        // Why the box has stopped sending says more than that it did. One that goes on sending is left talking.
        let taken = match taken {
            Err(error) if !data.ended() => return Err(error),
            taken => taken,
        };
        let end = data.finish();
        let result = end.and_then(|end| match end {
            (Kind::Result, length) => transfer::read_message(&mut self.input, length),
            _ => Err(IoKind::InvalidData.into()),
        });
        let result = result.map_err(|e| self.broken(e)).and_then(|result| self.result(result));
        match (taken, result) {
            (Ok(taken), Ok(result)) => Ok((taken, result)),
            (_, Err(error)) | (Err(error), Ok(_)) => Err(error),
        }
    }

    /// Sends something to the box: what `give` writes.
    pub(crate) fn upload(
        mut self,
        operation: Operation,
        give: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<TransferResult> {
        self.request(operation)?;
        // A box that has failed says so at once, and does not want the rest.
        let looking = self.output.try_clone().map_err(|e| self.broken(e))?;
        let mut answered = false;
        let given = {
            let mut data = DataWriter::new(&mut self.output, |_: &mut UnixStream| {
                answered = answered || has_answer(&looking)?;
                if answered { Err(io::Error::other("the box has answered")) } else { Ok(()) }
            });
            give(&mut data).map(|()| data.flush())
        };
        match given {
            Ok(Ok(())) => {
                transfer::write_frame(&mut self.output, Kind::End, &[]).map_err(|e| self.broken(e))?;
            }
            _ if answered => {}
            Ok(Err(error)) => return Err(self.broken(error)),
            // Ours to tell; the box sees the end of the connection and throws away what it has.
            Err(error) => return Err(error),
        }
        let result = transfer::expect_message(&mut self.input, Kind::Result).map_err(|e| self.broken(e))?;
        self.result(result)
    }
}

/// Whether the box has said something, or hung up.
fn has_answer(stream: &UnixStream) -> io::Result<bool> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(stream.as_raw_fd(), &mut [0], flags) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use boxlite_portal::v1::{ReadRequest, TransferFailure, WriteRequest};

    /// A transfer, and the guest's end of it on a thread of its own.
    fn with_guest<T: Send + 'static>(
        guest: impl FnOnce(UnixStream) -> T + Send + 'static,
    ) -> (Transfer, std::thread::JoinHandle<T>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let guest = std::thread::spawn(move || {
            let mut theirs = theirs;
            theirs.read_exact(&mut [0; 4]).unwrap();
            let _: TransferRequest = transfer::expect_message(&mut theirs, Kind::Request).unwrap();
            guest(theirs)
        });
        let output = ours.try_clone().unwrap();
        (Transfer { input: BufReader::new(ours), output, what: "cannot test" }, guest)
    }

    fn failure(kind: transfer_failure::Kind) -> TransferResult {
        let failure = TransferFailure { kind: kind.into(), message: "no \x1b[31m space".into() };
        TransferResult { failure: Some(failure), ..Default::default() }
    }

    fn read() -> Operation {
        Operation::Read(ReadRequest::default())
    }

    fn write() -> Operation {
        Operation::Write(WriteRequest::default())
    }

    fn all(_: &TransferInfo, data: &mut dyn Read) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = data.read_to_end(&mut bytes);
        read.map_err(|e| Error::new(ErrorKind::Storage, "reading failed").with_source(e))?;
        Ok(bytes)
    }

    #[test]
    fn what_the_box_sends_arrives() {
        let (transfer, guest) = with_guest(|mut stream| {
            transfer::write_message(&mut stream, Kind::Info, &TransferInfo::default()).unwrap();
            transfer::write_frame(&mut stream, Kind::Data, b"abc").unwrap();
            transfer::write_message(&mut stream, Kind::Result, &TransferResult::default()).unwrap();
            stream
        });
        assert_eq!(transfer.download(read(), all).unwrap().0, b"abc");
        guest.join().unwrap();
    }

    #[test]
    fn a_failure_of_the_box_is_told_escaped_wherever_it_comes() {
        for after in 0..3 {
            let (transfer, guest) = with_guest(move |mut stream| {
                if after > 0 {
                    transfer::write_message(&mut stream, Kind::Info, &TransferInfo::default()).unwrap();
                }
                if after > 1 {
                    transfer::write_frame(&mut stream, Kind::Data, b"abc").unwrap();
                }
                let kind = transfer_failure::Kind::NoSpace;
                transfer::write_message(&mut stream, Kind::Result, &failure(kind)).unwrap();
                stream
            });
            let error = transfer.download(read(), all).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
            assert!(error.to_string().contains("\\u{1b}"), "{error}");
            guest.join().unwrap();
        }
    }

    #[test]
    fn a_box_that_hangs_up_or_talks_nonsense_is_an_error() {
        let hang_up: fn(UnixStream) = drop;
        let half: fn(UnixStream) = |mut stream| {
            transfer::write_message(&mut stream, Kind::Info, &TransferInfo::default()).unwrap();
            stream.write_all(&[3, 0, 0, 1, 0, 7]).unwrap();
        };
        let nonsense: fn(UnixStream) = |mut stream| stream.write_all(&[0xff; 64]).unwrap();
        let endless: fn(UnixStream) = |mut stream| {
            transfer::write_message(&mut stream, Kind::Info, &TransferInfo::default()).unwrap();
            transfer::write_frame(&mut stream, Kind::End, &[]).unwrap();
        };
        for guest in [hang_up, half, nonsense, endless] {
            let (transfer, guest) = with_guest(guest);
            let error = transfer.download(read(), all).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Portal | ErrorKind::Storage), "{error:?}");
            guest.join().unwrap();
        }
    }

    #[test]
    fn a_box_that_has_failed_is_not_sent_the_rest() {
        let (transfer, guest) = with_guest(|mut stream| {
            let kind = transfer_failure::Kind::NotFound;
            transfer::write_message(&mut stream, Kind::Result, &failure(kind)).unwrap();
            let mut read = 0;
            let mut buffer = vec![0; 1 << 20];
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) | Err(_) => return read,
                    Ok(count) => read += count,
                }
            }
        });
        let endless = |data: &mut dyn Write| loop {
            if let Err(e) = data.write_all(&[0; 1 << 16]) {
                return Err(Error::new(ErrorKind::Storage, "cut").with_source(e));
            }
        };
        assert_eq!(transfer.upload(write(), endless).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(guest.join().unwrap() < 64 << 20, "it was told long before");
    }

    #[test]
    fn a_giver_that_fails_ends_the_transfer_with_its_own_error() {
        let (transfer, guest) = with_guest(|mut stream| {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            all.is_empty()
        });
        let fails = |_: &mut dyn Write| Err(Error::new(ErrorKind::Config, "mine"));
        assert_eq!(transfer.upload(write(), fails).unwrap_err().kind(), ErrorKind::Config);
        assert!(guest.join().unwrap(), "the guest sees the end and no End");
    }
}
