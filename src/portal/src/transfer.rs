//! Bulk transfers: a portal connection that carries one stream of bytes instead of HTTP/2.
//!
//! After the hellos the host sends [`MAGIC`] where HTTP/2 has its preface, then frames:
//!
//! ```text
//!   offset  size  meaning
//!   0       1     kind
//!   1       4     length of the body, big-endian; bounded by the kind
//!   5       n     body
//!
//!   host                                          guest
//!    |----- Request (pack, read) ------------------>|      to the host
//!    |<---- Info, Data, Data, ..., Result ----------|
//!    |----- close --------------------------------->|
//!
//!    |----- Request (unpack, write) --------------->|      to the guest
//!    |----- Data, Data, ..., End ------------------>|
//!    |<---- Result ---------------------------------|      at any time: a host that sees it sends no more
//!    |----- close --------------------------------->|
//! ```
//!
//! * The host closes, always: a virtual socket may lose what is in flight when its guest end does.
//! * A guest that has failed sends its result and goes on reading until `End` or the close, so that neither side waits
//!   for the other; a host looks for a result before each frame that it sends.
//! * A connection that ends in the middle is a failed transfer, on both sides.
//!
//! Reading and writing block. Both sides move bulk data on threads of their own, because the bytes come from and go to
//! files, which block in any case.

use std::io::{self, Read, Write};

use prost::Message;

/// What the host sends first; HTTP/2 begins with `PRI `.
pub const MAGIC: [u8; 4] = *b"BULK";

/// The most bytes in one frame of data.
pub const DATA: usize = 256 << 10;

/// The most bytes in any other frame.
pub const MESSAGE: usize = 64 << 10;

/// Length of a frame's header.
pub const HEADER: usize = 5;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A [`TransferRequest`](crate::v1::TransferRequest).
    Request = 1,
    /// A [`TransferInfo`](crate::v1::TransferInfo).
    Info = 2,
    /// Bytes.
    Data = 3,
    /// The last data has been sent. Empty.
    End = 4,
    /// A [`TransferResult`](crate::v1::TransferResult).
    Result = 5,
}

impl Kind {
    /// The kind of this number.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Request,
            2 => Self::Info,
            3 => Self::Data,
            4 => Self::End,
            5 => Self::Result,
            _ => return None,
        })
    }

    /// The most bytes that such a frame has.
    pub fn limit(self) -> usize {
        match self {
            Self::Data => DATA,
            Self::End => 0,
            Self::Request | Self::Info | Self::Result => MESSAGE,
        }
    }
}

/// Writes one frame.
///
/// # Errors
/// When the body is too long for its kind, or the stream fails.
pub fn write_frame(stream: &mut impl Write, kind: Kind, body: &[u8]) -> io::Result<()> {
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "a frame is too long");
    let length =
        u32::try_from(body.len()).ok().filter(|_| body.len() <= kind.limit()).ok_or_else(too_long)?;
    let [a, b, c, d] = length.to_be_bytes();
    let header = [kind as u8, a, b, c, d];
    let mut parts = [io::IoSlice::new(&header), io::IoSlice::new(body)];
    let mut left = &mut parts[..];
    while left.iter().any(|part| !part.is_empty()) {
        match stream.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => io::IoSlice::advance_slices(&mut left, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes a message as a frame.
///
/// # Errors
/// As [`write_frame`].
pub fn write_message(stream: &mut impl Write, kind: Kind, message: &impl Message) -> io::Result<()> {
    write_frame(stream, kind, &message.encode_to_vec())
}

/// Reads the header of the next frame, and checks it. `None` at the end of the stream.
///
/// # Errors
/// When the stream fails, ends within a header, or what it says makes no sense.
pub fn read_header(stream: &mut impl Read) -> io::Result<Option<(Kind, usize)>> {
    let mut header = [0; HEADER];
    let mut filled = 0;
    while filled < HEADER {
        match stream.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let [kind, length @ ..] = header;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    let kind = Kind::from_byte(kind).filter(|kind| length <= kind.limit());
    let kind = kind.ok_or_else(|| invalid("the peer sent a frame that cannot be"))?;
    Ok(Some((kind, length)))
}

/// Reads the body of a frame whose header was read, as a message.
///
/// # Errors
/// When the stream ends too early, or the message cannot be decoded.
pub fn read_message<M: Message + Default>(stream: &mut impl Read, length: usize) -> io::Result<M> {
    // Bounded by the limit of its kind.
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    M::decode(body.as_slice()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Reads the next frame, which must be of this kind.
///
/// # Errors
/// When the stream fails or ends, or something else comes.
pub fn expect_message<M: Message + Default>(stream: &mut impl Read, kind: Kind) -> io::Result<M> {
    match read_header(stream)? {
        Some((found, length)) if found == kind => read_message(stream, length),
        Some(_) => Err(invalid("the peer sent another frame than the protocol has here")),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// The data of a transfer as a stream to write to, in frames as large as they may be.
#[derive(Debug)]
pub struct DataWriter<'a, W, F> {
    stream: &'a mut W,
    buffer: Vec<u8>,
    /// Asked before each frame: an error ends the writing.
    go_on: F,
}

impl<'a, W: Write, F: FnMut(&mut W) -> io::Result<()>> DataWriter<'a, W, F> {
    /// A writer into frames of `stream`. `go_on` is asked before each of them.
    pub fn new(stream: &'a mut W, go_on: F) -> Self {
        Self { stream, buffer: Vec::with_capacity(DATA), go_on }
    }

    fn send(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            (self.go_on)(self.stream)?;
            write_frame(self.stream, Kind::Data, &self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }
}

impl<W: Write, F: FnMut(&mut W) -> io::Result<()>> Write for DataWriter<'_, W, F> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.buffer.is_empty() && data.len() >= DATA {
            (self.go_on)(self.stream)?;
            write_frame(self.stream, Kind::Data, &data[..DATA])?;
            return Ok(DATA);
        }
        let taken = data.len().min(DATA - self.buffer.len());
        self.buffer.extend_from_slice(&data[..taken]);
        if self.buffer.len() == DATA {
            self.send()?;
        }
        Ok(taken)
    }

    /// Sends what is buffered as a frame of its own.
    fn flush(&mut self) -> io::Result<()> {
        self.send()?;
        self.stream.flush()
    }
}

/// The data of a transfer as a stream to read from. It ends at the first frame that is no data.
#[derive(Debug)]
pub struct DataReader<'a, R> {
    stream: &'a mut R,
    left: usize,
    last: Option<(Kind, usize)>,
}

impl<'a, R: Read> DataReader<'a, R> {
    /// A reader of the data frames of `stream`.
    pub fn new(stream: &'a mut R) -> Self {
        Self { stream, left: 0, last: None }
    }

    /// Whether all data has been read.
    pub fn ended(&self) -> bool {
        self.last.is_some()
    }

    /// Reads to the end of the data, throws it away, and gives the header of the frame that ended it.
    ///
    /// # Errors
    /// When the stream fails or ends before.
    pub fn finish(mut self) -> io::Result<(Kind, usize)> {
        let mut rest = [0; 16 << 10];
        loop {
            if let Some(last) = self.last {
                return Ok(last);
            }
            if self.read(&mut rest)? == 0 && self.last.is_none() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl<R: Read> Read for DataReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            if self.last.is_some() || buffer.is_empty() {
                return Ok(0);
            }
            match read_header(self.stream)? {
                Some((Kind::Data, length)) => self.left = length,
                Some(other) => self.last = Some(other),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let room = buffer.len().min(self.left);
        let count = self.stream.read(&mut buffer[..room])?;
        if count == 0 && room > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{TransferInfo, TransferResult};
    use proptest::prelude::*;

    fn written(data: &[u8], piece: usize) -> Vec<u8> {
        let mut wire = Vec::new();
        let mut writer = DataWriter::new(&mut wire, |_| Ok(()));
        data.chunks(piece).for_each(|piece| writer.write_all(piece).unwrap());
        writer.flush().unwrap();
        drop(writer);
        write_frame(&mut wire, Kind::End, &[]).unwrap();
        wire
    }

    #[test]
    fn data_arrives_as_it_was_written_whatever_the_pieces() {
        let data: Vec<u8> = (0..3 * DATA + 17).map(|i| u8::try_from(i % 251).unwrap()).collect();
        for piece in [1000, 65_537, DATA - 1, DATA, DATA + 1, data.len()] {
            let wire = written(&data, piece);
            let mut wire = wire.as_slice();
            let mut reader = DataReader::new(&mut wire);
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            assert!(read == data, "{piece}");
            assert_eq!(reader.finish().unwrap(), (Kind::End, 0));
            assert!(wire.is_empty());
        }
    }

    #[test]
    fn a_stream_that_is_cut_anywhere_is_an_error() {
        let wire = written(b"0123456789", 4);
        for end in 0..wire.len() {
            let mut cut = &wire[..end];
            assert!(DataReader::new(&mut cut).finish().is_err(), "{end}");
        }
    }

    #[test]
    fn a_result_ends_the_data_and_can_be_read_after_it() {
        let mut wire = Vec::new();
        write_message(&mut wire, Kind::Info, &TransferInfo { size: 7, ..Default::default() }).unwrap();
        write_frame(&mut wire, Kind::Data, b"abc").unwrap();
        write_message(&mut wire, Kind::Result, &TransferResult { bytes: 3, ..Default::default() }).unwrap();
        let mut wire = wire.as_slice();
        assert_eq!(expect_message::<TransferInfo>(&mut wire, Kind::Info).unwrap().size, 7);
        let (kind, length) = DataReader::new(&mut wire).finish().unwrap();
        assert_eq!(kind, Kind::Result);
        assert_eq!(read_message::<TransferResult>(&mut wire, length).unwrap().bytes, 3);
    }

    #[test]
    fn a_frame_longer_than_its_kind_allows_is_refused_before_it_is_read() {
        for (kind, length) in
            [(Kind::Data, DATA + 1), (Kind::End, 1), (Kind::Result, MESSAGE + 1), (Kind::Info, usize::MAX)]
        {
            let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
            let header = [&[kind as u8][..], &length].concat();
            assert!(read_header(&mut header.as_slice()).is_err(), "{kind:?}");
            assert!(write_frame(&mut io::sink(), kind, &vec![0; kind.limit() + 1]).is_err());
        }
        assert!(read_header(&mut &[0, 0, 0, 0, 0][..]).is_err());
        assert!(read_header(&mut &[6, 0, 0, 0, 0][..]).is_err());
    }

    #[test]
    fn a_writer_that_is_told_to_stop_sends_no_more() {
        let mut wire = Vec::new();
        let stop = |_: &mut Vec<u8>| Err(io::Error::other("enough"));
        let mut writer = DataWriter::new(&mut wire, stop);
        writer.write_all(b"abc").unwrap();
        assert!(writer.flush().is_err());
        assert!(wire.is_empty());
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            // Any answer will do, as long as there is one.
            drop(DataReader::new(&mut bytes.as_slice()).finish());
        }
    }
}
