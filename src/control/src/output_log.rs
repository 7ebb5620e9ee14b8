//! What a box's main command writes, kept in a file of bounded size: every byte, with its stream and its time.
//!
//! ```text
//!   file     8 bytes "BXLOG\0\0\1", the last of them the version; then records
//!   record   stream (1 byte: 1 standard output, 2 standard error) │ time (8 bytes) │ length (4 bytes) │ bytes
//! ```
//!
//! Numbers are big endian; the time is nanoseconds since the Unix epoch. A record holds what was read at once, so it begins
//! and ends anywhere in a line. When a file is large it is moved aside to `….1`; there are never more than two. A record
//! that a crash has cut off at the end of a file is cut away by the next writer, and not shown by a reader.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::files::rotated;

/// How a file begins.
const MAGIC: [u8; 8] = *b"BXLOG\0\0\x01";
/// Bytes of a record before its content.
const HEADER: usize = 13;
/// The most bytes of a record; one that claims more is damaged.
pub const RECORD: usize = 1 << 20;
/// The size at which a file is moved aside, in bytes.
pub const ROTATE_AT: u64 = 10 << 20;

/// One of a command's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl OutputStream {
    fn byte(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }
}

/// What was written at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputRecord {
    /// By which stream.
    pub stream: OutputStream,
    /// When it arrived, nanoseconds since the Unix epoch.
    pub time_unix_nanos: u64,
    /// What.
    pub bytes: Vec<u8>,
}

/// The one writer of a box's log.
#[derive(Debug)]
pub struct OutputLog {
    path: PathBuf,
    file: File,
    size: u64,
    rotate_at: u64,
}

impl OutputLog {
    /// Opens a log to append to it, and cuts off what a killed predecessor has not written whole.
    ///
    /// # Errors
    /// When the file cannot be made, read or cut.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path)?;
        let whole = whole_length(&mut file)?;
        file.set_len(whole)?;
        file.seek(SeekFrom::Start(whole))?;
        let mut log = Self { path: path.to_owned(), file, size: whole, rotate_at: ROTATE_AT };
        if whole == 0 {
            log.file.write_all(&MAGIC)?;
            log.size = MAGIC.len() as u64;
        }
        Ok(log)
    }

    /// Appends a record of at most [`RECORD`] bytes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, record: &OutputRecord) -> io::Result<()> {
        let length = u32::try_from(record.bytes.len()).ok().filter(|_| record.bytes.len() <= RECORD);
        let length = length.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        if self.size + (HEADER + record.bytes.len()) as u64 > self.rotate_at && self.size > MAGIC.len() as u64
        {
            fs::rename(&self.path, rotated(&self.path))?;
            *self = Self { rotate_at: self.rotate_at, ..Self::open(&self.path)? };
        }
        let mut whole = Vec::with_capacity(HEADER + record.bytes.len());
        whole.push(record.stream.byte());
        whole.extend_from_slice(&record.time_unix_nanos.to_be_bytes());
        whole.extend_from_slice(&length.to_be_bytes());
        whole.extend_from_slice(&record.bytes);
        self.file.write_all(&whole)?;
        self.size += whole.len() as u64;
        Ok(())
    }
}

/// How many bytes of a file are whole records; 0 when it is no log.
fn whole_length(file: &mut File) -> io::Result<u64> {
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(0))?;
    let mut magic = [0; MAGIC.len()];
    if size < MAGIC.len() as u64 || file.read_exact(&mut magic).is_err() || magic != MAGIC {
        return Ok(0);
    }
    let mut reader = BufReader::new(file);
    let mut at = MAGIC.len() as u64;
    loop {
        let mut header = [0; HEADER];
        if size - at < HEADER as u64 {
            return Ok(at);
        }
        reader.read_exact(&mut header)?;
        let Some((_, _, length)) = parse_header(header) else { return Ok(at) };
        let next = at + (HEADER + length) as u64;
        if next > size {
            return Ok(at);
        }
        reader.seek_relative(i64::try_from(length).unwrap_or(i64::MAX))?;
        at = next;
    }
}

fn parse_header(header: [u8; HEADER]) -> Option<(OutputStream, u64, usize)> {
    let [stream, t0, t1, t2, t3, t4, t5, t6, t7, l0, l1, l2, l3] = header;
    let stream = match stream {
        1 => OutputStream::Stdout,
        2 => OutputStream::Stderr,
        _ => return None,
    };
    let length =
        usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).ok().filter(|length| *length <= RECORD);
    Some((stream, u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]), length?))
}

/// Reads one file of a log, also while it is written.
#[derive(Debug)]
pub struct OutputReader {
    file: File,
    /// Where the next record begins.
    at: u64,
}

impl OutputReader {
    /// Reads an open file from its beginning.
    pub fn new(file: File) -> Self {
        Self { file, at: 0 }
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The next whole record; `None` when there is none yet. What follows a damaged record is not read.
    ///
    /// # Errors
    /// When the file cannot be read, or is no log.
    pub fn read(&mut self) -> io::Result<Option<OutputRecord>> {
        let size = self.file.metadata()?.len();
        if self.at == 0 {
            if size < MAGIC.len() as u64 {
                return Ok(None);
            }
            let mut magic = [0; MAGIC.len()];
            self.read_at(0, &mut magic)?;
            if magic != MAGIC {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "it is no log, or of another version",
                ));
            }
            self.at = MAGIC.len() as u64;
        }
        if size.saturating_sub(self.at) < HEADER as u64 {
            return Ok(None);
        }
        let mut header = [0; HEADER];
        self.read_at(self.at, &mut header)?;
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a record of the log is damaged");
        let (stream, time_unix_nanos, length) = parse_header(header).ok_or_else(damaged)?;
        let next = self.at + (HEADER + length) as u64;
        if next > size {
            return Ok(None);
        }
        let mut bytes = vec![0; length];
        self.read_at(self.at + HEADER as u64, &mut bytes)?;
        self.at = next;
        Ok(Some(OutputRecord { stream, time_unix_nanos, bytes }))
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(number: u64, bytes: &[u8]) -> OutputRecord {
        let stream = if number.is_multiple_of(2) { OutputStream::Stdout } else { OutputStream::Stderr };
        OutputRecord { stream, time_unix_nanos: number, bytes: bytes.to_vec() }
    }

    fn all(path: &Path) -> Vec<OutputRecord> {
        let mut reader = OutputReader::new(File::open(path).unwrap());
        std::iter::from_fn(|| reader.read().unwrap()).collect()
    }

    #[test]
    fn a_log_that_was_cut_at_any_byte_loses_its_last_record_alone_and_can_be_continued() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("output.log");
        let written = [record(0, b"one"), record(1, b""), record(2, b"\0\xff\n")];
        {
            let mut log = OutputLog::open(&path).unwrap();
            written.iter().for_each(|record| log.write(record).unwrap());
        }
        let whole = fs::read(&path).unwrap();
        for end in 0..=whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            let kept = if end < MAGIC.len() { Vec::new() } else { all(&path) };
            assert_eq!(kept, written[..kept.len()], "cut at {end}");
            assert!(end < whole.len() || kept.len() == 3);
            OutputLog::open(&path).unwrap().write(&record(9, b"next")).unwrap();
            assert_eq!(all(&path), [&kept[..], &[record(9, b"next")]].concat(), "cut at {end}");
        }
    }

    #[test]
    fn a_reader_of_a_file_that_is_moved_aside_reads_it_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("output.log");
        let mut log = OutputLog { rotate_at: 100, ..OutputLog::open(&path).unwrap() };
        let mut reader = OutputReader::new(File::open(&path).unwrap());
        for number in 0..10 {
            log.write(&record(number, &[b'x'; 20])).unwrap();
        }
        assert!(rotated(&path).exists());
        let kept: Vec<u64> =
            std::iter::from_fn(|| reader.read().unwrap()).map(|r| r.time_unix_nanos).collect();
        assert_eq!(kept, [0, 1], "33 bytes each, behind 8");
        assert_eq!(all(&path).last(), Some(&record(9, &[b'x'; 20])));
    }

    #[test]
    fn a_huge_length_is_refused_before_it_is_allocated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("output.log");
        let header = [&MAGIC[..], &[1; 9], &u32::MAX.to_be_bytes()].concat();
        fs::write(&path, header).unwrap();
        assert!(OutputReader::new(File::open(&path).unwrap()).read().is_err());
    }

    proptest! {
        #[test]
        fn no_file_makes_a_reader_or_a_writer_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), with_magic: bool) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("output.log");
            let bytes = if with_magic { [&MAGIC[..], &bytes].concat() } else { bytes };
            fs::write(&path, bytes).unwrap();
            let mut reader = OutputReader::new(File::open(&path).unwrap());
            while let Ok(Some(_)) = reader.read() {}
            let written = record(1, b"after");
            OutputLog::open(&path).unwrap().write(&written).unwrap();
            let last = std::iter::from_fn({
                let mut reader = OutputReader::new(File::open(&path).unwrap());
                move || reader.read().unwrap()
            }).last();
            prop_assert_eq!(last, Some(written));
        }
    }
}
