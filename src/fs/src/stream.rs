//! The share over a byte stream: requests and replies back to back, each as long as its header says.
//!
//! ```text
//!   ─▶ header (40 bytes, with the length of all) │ the rest ─▶ answer ─▶ header (16 bytes) │ body ─▶
//! ```
//!
//! A request is no longer than 1 MiB and 4 KiB. Whoever says otherwise cannot be understood any more: it ends there.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use crate::request::{Header, WRITE};
use crate::share::{Answer, Data, Share};
use crate::violation::Violation;
use crate::wire::{IN_HEADER, OUT_HEADER, WRITE_FIELDS, out_header};
use crate::{MAX_DATA, MAX_REQUEST};

/// Why serving a stream has ended before its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// A length that no request has.
    #[error("a request says that it has {0} bytes")]
    Length(u32),
    /// The end came within a request.
    #[error("a request is cut off")]
    Truncated,
    /// The socket failed.
    #[error("the stream cannot be read or written")]
    Io(#[source] io::Error),
}

/// The data of one request, and room for its reply.
struct Buffers<'a> {
    arrived: &'a [u8],
    reply: &'a mut [u8],
}

impl Data for Buffers<'_> {
    fn arrived(&self) -> usize {
        self.arrived.len()
    }

    fn room(&self) -> usize {
        MAX_DATA
    }

    fn store(&mut self, file: &File, offset: u64, len: usize) -> io::Result<usize> {
        let mut rest = self.arrived.get(..len).ok_or(ErrorKind::InvalidInput)?;
        let mut at = offset;
        while !rest.is_empty() {
            match file.write_at(rest, at) {
                Ok(0) => break,
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    at = at.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if rest.len() == len => return Err(error),
                // What was written counts. The guest comes back for the error.
                Err(_) => break,
            }
        }
        Ok(len.saturating_sub(rest.len()))
    }

    fn load(&mut self, file: &File, offset: u64, len: usize) -> io::Result<usize> {
        let end = OUT_HEADER.saturating_add(len);
        let mut filled = 0usize;
        while let Some(rest) = self.reply.get_mut(OUT_HEADER.saturating_add(filled)..end)
            && !rest.is_empty()
        {
            let at = offset.saturating_add(u64::try_from(filled).unwrap_or(u64::MAX));
            match file.read_at(rest, at) {
                Ok(0) => break,
                Ok(count) => filled = filled.saturating_add(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if filled == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(filled)
    }
}

/// Reads a header. `None`: the stream has ended before it.
fn read_header(stream: &mut UnixStream) -> Result<Option<[u8; IN_HEADER]>, StreamError> {
    let mut bytes = [0; IN_HEADER];
    let mut filled = 0usize;
    while let Some(rest) = bytes.get_mut(filled..)
        && !rest.is_empty()
    {
        match stream.read(rest) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(StreamError::Truncated),
            Ok(count) => filled = filled.saturating_add(count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(StreamError::Io(error)),
        }
    }
    Ok(Some(bytes))
}

impl Share {
    /// Serves a guest on a connected socket, on this thread, until the guest closes it. Shutting down a clone of the socket
    /// ends it as well. What the guest had open is closed then, so that the share can be served again.
    ///
    /// # Errors
    /// When the guest does not keep to the protocol, or the socket fails.
    pub fn serve_stream(&mut self, stream: UnixStream) -> Result<(), StreamError> {
        let result = self.exchange(stream);
        self.end_session();
        if matches!(result, Err(StreamError::Length(_) | StreamError::Truncated)) {
            self.record(Violation::Message);
        }
        result
    }

    fn exchange(&mut self, mut stream: UnixStream) -> Result<(), StreamError> {
        // As long as the longest, so that nothing is cleared for each.
        let mut reply = vec![0; OUT_HEADER + MAX_DATA];
        let mut request = vec![0; MAX_REQUEST];
        let mut out = Vec::new();
        while let Some(bytes) = read_header(&mut stream)? {
            let header = Header::parse(&bytes).map_err(|_| StreamError::Truncated)?;
            let rest = usize::try_from(header.len).ok().and_then(|len| len.checked_sub(IN_HEADER));
            let rest = rest
                .filter(|rest| *rest <= MAX_REQUEST - IN_HEADER)
                .and_then(|rest| request.get_mut(..rest))
                .ok_or(StreamError::Length(header.len))?;
            stream.read_exact(rest).map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => StreamError::Truncated,
                _ => StreamError::Io(error),
            })?;
            let has_data = header.opcode == WRITE;
            let (fields, arrived) =
                if has_data { rest.split_at(WRITE_FIELDS.min(rest.len())) } else { (&*rest, &[][..]) };
            let answer = {
                let mut data = Buffers { arrived, reply: &mut reply };
                self.answer(&header, fields, &mut data, &mut out)
            };
            let (error, len) = match answer {
                Answer::Silence => continue,
                Answer::Error(errno) => (Some(errno), 0),
                Answer::Loaded(len) => (None, len),
                Answer::Body => {
                    let len = out.len();
                    if let Some(body) = reply.get_mut(OUT_HEADER..OUT_HEADER.saturating_add(len)) {
                        body.copy_from_slice(&out);
                    }
                    (None, len)
                }
            };
            if let Some(start) = reply.get_mut(..OUT_HEADER) {
                start.copy_from_slice(&out_header(header.unique, error, len));
            }
            let whole = reply.get(..OUT_HEADER.saturating_add(len)).unwrap_or_default();
            stream.write_all(whole).map_err(StreamError::Io)?;
        }
        Ok(())
    }
}
