//! One bulk transfer, from its request to the host's close. `boxlite_portal::transfer` says what is said.
//!
//! ```text
//!   request ──▶ pack, read:    info ──▶ data … ──▶ result ──▶ host closes
//!          └──▶ unpack, write: data … end, taken as it comes ──▶ result ──▶ host closes
//! ```
//!
//! All of it blocks, on a thread inside the container's mount namespace. A host that goes away ends it at the next read or
//! write, and what was being written disappears.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use boxlite_portal::transfer::{self, DataReader, DataWriter, Kind};
use boxlite_portal::v1::transfer_request::Operation;
use boxlite_portal::v1::{
    FileKind, ReadRequest, TransferInfo, TransferRequest, TransferResult, WriteRequest,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::content::{self, Draft, How};
use super::error::{FileError, Kind as ErrorKind};
use super::path::BoxPath;
use super::tree;
use crate::agent::Running;

/// How long the request may take to arrive, and the host to close at the end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much is read from the connection at once.
const READ: usize = 256 << 10;

/// The two directions of a transfer's connection.
type Input = BufReader<UnixStream>;

/// Serves the transfer of a connection whose magic has been read. Blocks until the host has closed it.
///
/// # Errors
/// When the connection fails, or the host does not keep to the protocol.
pub fn serve(socket: OwnedFd, running: Result<&Running, FileError>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL)?);
    fcntl(&socket, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    // The calls of a Unix socket are those of any stream socket.
    let mut output = UnixStream::from(socket);
    let mut input = BufReader::with_capacity(READ, output.try_clone()?);
    output.set_read_timeout(Some(PATIENCE))?;
    let request: TransferRequest = transfer::expect_message(&mut input, Kind::Request)?;
    output.set_read_timeout(None)?;
    let invalid = || FileError::new(ErrorKind::Invalid, "the transfer is of an unknown kind");
    match request.operation {
        Some(Operation::Read(request)) => {
            let outcome = running.and_then(|_| read(&request));
            download(&mut output, outcome, |file, out| copy(&mut file.take(limit(request.length)), out))?;
        }
        #[cfg(feature = "hostile")]
        Some(Operation::Pack(request)) if crate::hostile::copy::is_asked(&request) => {
            crate::hostile::copy::answer(&request, &mut output)?;
        }
        Some(Operation::Pack(request)) => {
            let outcome = running.and_then(|_| tree::open(&request));
            download(&mut output, outcome, |tree, out| tree.pack(out))?;
        }
        Some(Operation::Write(request)) => {
            let outcome = running.and_then(|running| Receiver::new(&request, running));
            upload(&mut input, &mut output, outcome, |receiver, data| receiver.receive(data))?;
        }
        Some(Operation::Unpack(request)) => {
            let outcome = running.and_then(|running| tree::place(&request, running));
            upload(&mut input, &mut output, outcome, |place, data| place.unpack(data))?;
        }
        None => answer(&mut output, Err(running.err().unwrap_or_else(invalid)))?,
    }
    // The host closes; what it may still send is not wanted.
    output.set_read_timeout(Some(PATIENCE))?;
    let mut rest = [0; 4096];
    while input.read(&mut rest)? > 0 {}
    Ok(())
}

fn answer(output: &mut UnixStream, outcome: Result<TransferResult, FileError>) -> io::Result<()> {
    let result =
        outcome.unwrap_or_else(|error| TransferResult { failure: Some(error.into()), ..Default::default() });
    transfer::write_message(output, Kind::Result, &result)
}

/// Sends what was opened, if it was, and the result.
fn download<T>(
    output: &mut UnixStream,
    opened: Result<(T, TransferInfo), FileError>,
    send: impl FnOnce(T, &mut dyn Write) -> Result<TransferResult, FileError>,
) -> io::Result<()> {
    let (source, info) = match opened {
        Ok(opened) => opened,
        Err(error) => return answer(output, Err(error)),
    };
    transfer::write_message(output, Kind::Info, &info)?;
    let mut data = DataWriter::new(output, |_| Ok(()));
    let outcome = send(source, &mut data);
    data.flush()?;
    answer(output, outcome)
}

/// Takes what the host sends, and tells how that went: a failure at once, though the host may go on for a while.
fn upload<T>(
    input: &mut Input,
    output: &mut UnixStream,
    opened: Result<T, FileError>,
    take: impl FnOnce(T, &mut dyn Read) -> Result<TransferResult, FileError>,
) -> io::Result<()> {
    let mut data = DataReader::new(input);
    match opened.and_then(|target| take(target, &mut data)) {
        Ok(result) => match data.finish()? {
            (Kind::End, _) => answer(output, Ok(result)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        },
        Err(error) => {
            answer(output, Err(error))?;
            data.finish().map(drop)
        }
    }
}

fn limit(length: u64) -> u64 {
    if length == 0 { u64::MAX } else { length }
}

fn read(request: &ReadRequest) -> Result<(File, TransferInfo), FileError> {
    let path = BoxPath::new(request.path.clone())?;
    let (file, size) = content::open(&path, request.offset, request.length)?;
    Ok((file, TransferInfo { kind: FileKind::File.into(), size, ..Default::default() }))
}

/// Moves all bytes from one to the other.
fn copy(from: &mut dyn Read, to: &mut dyn Write) -> Result<TransferResult, FileError> {
    let mut buffer = vec![0; READ];
    let mut bytes = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(TransferResult { entries: 1, bytes, ..Default::default() }),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(FileError::system("move", b"the content", &error)),
        };
        to.write_all(&buffer[..count]).map_err(|error| FileError::system("move", b"the content", &error))?;
        bytes += count as u64;
    }
}

/// A file that takes what the host sends.
enum Receiver {
    Draft(Draft),
    Append(File),
}

impl Receiver {
    fn new(request: &WriteRequest, running: &Running) -> Result<Self, FileError> {
        let path = BoxPath::new(request.path.clone())?;
        let owner = running.owner(&request.owner)?;
        let how = How { mode: request.mode, owner, keep_existing: request.keep_existing };
        if request.append {
            return content::append(&path, how).map(Self::Append);
        }
        Draft::begin(&path, how).map(Self::Draft)
    }

    fn receive(self, data: &mut dyn Read) -> Result<TransferResult, FileError> {
        match self {
            Self::Append(mut file) => copy(data, &mut file),
            Self::Draft(mut draft) => {
                let result = copy(data, &mut draft)?;
                draft.commit()?;
                Ok(result)
            }
        }
    }
}
