//! What the main command of a box has written.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::SystemTime;

use boxlite_control::{OutputReader, OutputRecord, OutputStream, rotated};
use bytes::Bytes;

use crate::changes::Changes;
use crate::error::{Error, ErrorKind, Result, storage};
use crate::info::time;
use crate::litebox::LiteBox;
use crate::monitor::{Monitor, Observed, unix_nanos};
use crate::record::read_bounded;
use crate::runtime::blocking;

/// The largest console log, in bytes; it is moved aside at a megabyte.
const CONSOLE_LIMIT: u64 = 4 << 20;

/// Which of a command's outputs something was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogSource {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What a main command wrote at once: bytes, which begin and end anywhere in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogChunk {
    /// When it arrived.
    pub time: SystemTime,
    /// Where it was written to.
    pub source: LogSource,
    /// What.
    pub bytes: Bytes,
}

/// What of a log is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Waits for more, until the box has come to its end.
    pub follow: bool,
    /// What was written since then.
    pub since: Option<SystemTime>,
    /// What was written until then.
    pub until: Option<SystemTime>,
    /// Of what is there only so many lines at the end.
    pub tail: Option<u64>,
}

impl LiteBox {
    /// What the main command has written, over all runs of the box. About 20 MiB of it are kept.
    ///
    /// # Errors
    /// When the box keeps no output, has been removed, or its log cannot be read.
    pub async fn logs(&self, options: LogOptions) -> Result<LogStream> {
        let record = self.record();
        if !record.log {
            let message = format!("box {} was created to keep no output", self.id());
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let monitor = match self.look()? {
            Observed::Live(_) if options.follow => Monitor::attach(&self.inner.files).await?,
            _ => None,
        };
        let (path, folder) = (self.inner.files.output_log(), self.inner.files.logs());
        let failed = |e| storage(format!("cannot read {}", path.display()), e);
        // Watched before it is read, so that nothing falls in between.
        let changes = if monitor.is_some() { Some(Changes::of(&folder).map_err(failed)?) } else { None };
        let files = Files::open(path.clone()).map_err(failed)?;
        let mut stream = LogStream { files, cut: Cut::default(), options, monitor, changes };
        if let Some(tail) = stream.options.tail {
            let mut files = Files::open(path.clone()).map_err(failed)?;
            let (since, until) = stream.times();
            let lines = blocking(move || {
                let mut lines = Lines::default();
                while let Some(record) = files.next().map_err(|e| storage("cannot read a log", e))? {
                    if (since..=until).contains(&record.time_unix_nanos) {
                        lines.count(&record);
                    }
                }
                Ok(lines.seen)
            })
            .await?;
            stream.cut.skip = lines.saturating_sub(tail);
        }
        Ok(stream)
    }

    /// What the guest's console has shown: its kernel and its agent. About 2 MiB of it are kept. It comes from the box,
    /// and may hold anything, control characters of terminals included.
    ///
    /// # Errors
    /// When the box has been removed, or its console's log cannot be read.
    pub async fn console(&self) -> Result<Vec<u8>> {
        let (console, removed) = (self.inner.files.console_log(), !self.inner.files.folder().is_dir());
        if removed {
            return Err(self.removed());
        }
        blocking(move || {
            let mut all = read_bounded(&rotated(&console), CONSOLE_LIMIT)?.unwrap_or_default();
            all.extend(read_bounded(&console, CONSOLE_LIMIT)?.unwrap_or_default());
            Ok(all)
        })
        .await
    }
}

/// A log that is read: see [`LiteBox::logs`].
#[derive(Debug)]
pub struct LogStream {
    files: Files,
    cut: Cut,
    options: LogOptions,
    /// There as long as there may be more.
    monitor: Option<Monitor>,
    changes: Option<Changes>,
}

impl LogStream {
    /// The next bytes; `None` at the end: that of the log, or when it is followed, that of the box.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn next(&mut self) -> Result<Option<LogChunk>> {
        let (since, until) = self.times();
        loop {
            let record = self.files.next().map_err(|e| self.failed(e))?;
            let Some(record) = record else {
                let (Some(monitor), Some(changes)) = (&self.monitor, &self.changes) else { return Ok(None) };
                tokio::select! {
                    changed = changes.next() => changed.map_err(|e| self.failed(e))?,
                    // What it wrote last is in the log before its end is told.
                    _ = monitor.ended() => self.monitor = None,
                }
                continue;
            };
            if record.time_unix_nanos > until {
                return Ok(None);
            }
            if record.time_unix_nanos < since {
                continue;
            }
            let OutputRecord { stream, time_unix_nanos, .. } = record;
            let bytes = self.cut.rest(record);
            if bytes.is_empty() {
                continue;
            }
            let source = match stream {
                OutputStream::Stdout => LogSource::Stdout,
                OutputStream::Stderr => LogSource::Stderr,
            };
            return Ok(Some(LogChunk { time: time(time_unix_nanos), source, bytes }));
        }
    }

    fn times(&self) -> (u64, u64) {
        (self.options.since.map_or(0, unix_nanos), self.options.until.map_or(u64::MAX, unix_nanos))
    }

    fn failed(&self, error: io::Error) -> Error {
        storage(format!("cannot read {}", self.files.path.display()), error)
    }
}

/// The records of a log, over the two files that it may be.
#[derive(Debug)]
struct Files {
    path: PathBuf,
    older: Option<OutputReader>,
    current: Option<(OutputReader, (u64, u64))>,
}

impl Files {
    fn open(path: PathBuf) -> io::Result<Self> {
        let mut files = Self { older: None, current: None, path };
        // In this order: a file that is moved aside in between is read as the current one, and nothing is read twice.
        files.current = files.open_current()?;
        if let Some(older) = open(&rotated(&files.path))? {
            let identity = identity(&older)?;
            if files.current.as_ref().is_none_or(|(_, current)| *current != identity) {
                files.older = Some(OutputReader::new(older));
            }
        }
        Ok(files)
    }

    fn open_current(&self) -> io::Result<Option<(OutputReader, (u64, u64))>> {
        match open(&self.path)? {
            Some(file) => {
                let identity = identity(&file)?;
                Ok(Some((OutputReader::new(file), identity)))
            }
            None => Ok(None),
        }
    }

    fn next(&mut self) -> io::Result<Option<OutputRecord>> {
        if let Some(older) = &mut self.older {
            if let Some(record) = older.read()? {
                return Ok(Some(record));
            }
            self.older = None;
        }
        loop {
            if let Some((reader, _)) = &mut self.current
                && let Some(record) = reader.read()?
            {
                return Ok(Some(record));
            }
            let there = self.open_current()?;
            match (&mut self.current, &there) {
                (Some((reader, identity)), Some((_, new))) if new != identity => {
                    // It was moved aside, and has all its records now, those too that came after the last look.
                    if let Some(record) = reader.read()? {
                        return Ok(Some(record));
                    }
                }
                (None, Some(_)) => {}
                _ => return Ok(None),
            }
            self.current = there;
        }
    }
}

fn open(path: &std::path::Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|meta| (meta.dev(), meta.ino()))
}

/// Counts the lines of two streams that are mixed: a line counts where it begins.
#[derive(Debug)]
struct Lines {
    seen: u64,
    at_start: [bool; 2],
}

impl Default for Lines {
    fn default() -> Self {
        Self { seen: 0, at_start: [true; 2] }
    }
}

impl Lines {
    fn count(&mut self, record: &OutputRecord) {
        for byte in &record.bytes {
            self.byte(record.stream, *byte);
        }
    }

    /// Takes one byte in. True: it is the first of a line.
    fn byte(&mut self, stream: OutputStream, byte: u8) -> bool {
        let at_start = &mut self.at_start[stream as usize];
        let first = *at_start;
        self.seen += u64::from(first);
        *at_start = byte == b'\n';
        first
    }
}

/// Leaves out the first lines.
#[derive(Debug, Default)]
struct Cut {
    /// How many.
    skip: u64,
    lines: Lines,
    /// Whether the line of each stream is left out.
    out: [bool; 2],
}

impl Cut {
    fn rest(&mut self, record: OutputRecord) -> Bytes {
        if self.skip == 0 {
            return record.bytes.into();
        }
        let mut kept = Vec::new();
        for byte in record.bytes {
            if self.lines.byte(record.stream, byte) {
                self.out[record.stream as usize] = self.lines.seen <= self.skip;
            }
            if !self.out[record.stream as usize] {
                kept.push(byte);
            }
        }
        kept.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use boxlite_control::OutputLog;

    fn record(stream: OutputStream, bytes: &str) -> OutputRecord {
        OutputRecord { stream, time_unix_nanos: 1, bytes: bytes.as_bytes().to_vec() }
    }

    #[test]
    fn the_last_lines_are_those_that_began_last_whatever_the_chunks() {
        use OutputStream::{Stderr, Stdout};
        let records = [
            record(Stdout, "one\ntw"),
            record(Stderr, "err\n"),
            record(Stdout, "o\nthree\n"),
            record(Stdout, "unfinished"),
        ];
        let mut lines = Lines::default();
        records.iter().for_each(|record| lines.count(record));
        assert_eq!(lines.seen, 5);
        for (tail, expected) in [
            (0, ""),
            (1, "unfinished"),
            (2, "three\nunfinished"),
            (3, "err\nthree\nunfinished"),
            (4, "twerr\no\nthree\nunfinished"),
            (9, "one\ntwerr\no\nthree\nunfinished"),
        ] {
            let mut cut = Cut { skip: lines.seen.saturating_sub(tail), ..Cut::default() };
            let kept: Vec<u8> = records.iter().flat_map(|record| cut.rest(record.clone()).to_vec()).collect();
            assert_eq!(String::from_utf8(kept).unwrap(), expected, "tail {tail}");
        }
    }

    #[test]
    fn a_log_that_is_moved_aside_while_it_is_read_is_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("output.log");
        let mut log = OutputLog::open(&path).unwrap();
        log.write(&record(OutputStream::Stdout, "a")).unwrap();
        let mut files = Files::open(path.clone()).unwrap();
        assert_eq!(files.next().unwrap().unwrap().bytes, b"a");
        log.write(&record(OutputStream::Stdout, "b")).unwrap();
        std::fs::rename(&path, rotated(&path)).unwrap();
        let mut next = OutputLog::open(&path).unwrap();
        next.write(&record(OutputStream::Stdout, "c")).unwrap();
        assert_eq!(files.next().unwrap().unwrap().bytes, b"b");
        assert_eq!(files.next().unwrap().unwrap().bytes, b"c");
        assert_eq!(files.next().unwrap(), None);
        let mut both = Files::open(path).unwrap();
        let all: Vec<u8> =
            std::iter::from_fn(|| both.next().unwrap()).flat_map(|record| record.bytes).collect();
        assert_eq!(all, b"abc");
    }
}
