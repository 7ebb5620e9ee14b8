//! The guest's console, kept in a file of bounded size.
//!
//! The pipe is always read, whatever becomes of the file: a VMM never waits for its console. What a guest writes lands in
//! the file as it is; the tail that goes into messages is escaped.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::text;

/// The size at which the file is moved aside, in bytes. There are never more than two.
const ROTATE_AT: u64 = 1 << 20;
/// The most bytes that a message quotes.
const TAIL: usize = 4 << 10;
/// The most lines that a message quotes, and the longest of them, in bytes.
const TAIL_LINES: usize = 20;
const TAIL_LINE: usize = 300;

/// The last bytes of a console.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail(Arc<Mutex<Vec<u8>>>);

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = &bytes[bytes.len().saturating_sub(TAIL)..];
        let excess = (tail.len() + bytes.len()).saturating_sub(TAIL);
        tail.drain(..excess);
        tail.extend_from_slice(bytes);
    }

    /// The last lines, fit to be shown.
    pub(super) fn lines(&self) -> Vec<String> {
        let tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = tail.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let lines: Vec<_> =
            lines.filter(|line| !line.is_empty()).map(|line| text::escape(line, TAIL_LINE)).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].to_vec()
    }
}

/// Reads a console to its end, which comes when the last process that could write to it has ended.
pub(super) async fn record(console: OwnedFd, path: PathBuf, tail: Tail) {
    let mut console = match pipe::Receiver::from_owned_fd(console) {
        Ok(console) => console,
        Err(error) => return tracing::error!(%error, "cannot read the console"),
    };
    let mut log = Log::open(&path);
    let mut buffer = vec![0; 8 << 10];
    loop {
        match console.read(&mut buffer).await {
            Ok(0) => return,
            Ok(read) => {
                tail.push(&buffer[..read]);
                log.write(&buffer[..read]);
            }
            Err(error) => return tracing::error!(%error, "cannot read the console"),
        }
    }
}

/// A file that is moved aside when it is large. After an error it stays closed until the next rotation is due.
struct Log<'a> {
    path: &'a Path,
    file: Option<File>,
    size: u64,
}

impl<'a> Log<'a> {
    fn open(path: &'a Path) -> Self {
        let mut log = Self { path, file: None, size: 0 };
        log.reopen();
        log
    }

    fn reopen(&mut self) {
        let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(self.path);
        match opened.and_then(|file| Ok((file.metadata()?.len(), file))) {
            Ok((size, file)) => (self.size, self.file) = (size, Some(file)),
            Err(error) => self.give_up(&error),
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.size.saturating_add(bytes.len() as u64) > ROTATE_AT {
            let mut aside = self.path.as_os_str().to_owned();
            aside.push(".1");
            self.file = None;
            self.size = 0;
            match fs::rename(self.path, aside) {
                Ok(()) => self.reopen(),
                Err(error) => self.give_up(&error),
            }
        }
        self.size = self.size.saturating_add(bytes.len() as u64);
        let written = self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes));
        if let Err(error) = written {
            self.give_up(&error);
        }
    }

    /// A guest can fill a disk, so this is said at most once in a megabyte of console.
    fn give_up(&mut self, error: &io::Error) {
        tracing::warn!(path = %self.path.display(), %error, "the console's log is incomplete");
        self.file = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn recorded(chunks: &[&[u8]]) -> (tempfile::TempDir, PathBuf, Tail) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let (read, write) = nix::unistd::pipe().unwrap();
        let tail = Tail::default();
        let task = tokio::spawn(record(read, path.clone(), tail.clone()));
        let chunks: Vec<Vec<u8>> = chunks.iter().map(|chunk| chunk.to_vec()).collect();
        let writer = tokio::task::spawn_blocking(move || {
            let mut write = File::from(write);
            for chunk in chunks {
                write.write_all(&chunk).unwrap();
            }
        });
        writer.await.unwrap();
        task.await.unwrap();
        (folder, path, tail)
    }

    #[tokio::test]
    async fn the_file_has_every_byte_and_the_tail_is_fit_to_be_shown() {
        let (_keep, path, tail) = recorded(&[b"one\r\n\x1b[31mtwo", b"\xff\nthree"]).await;
        assert_eq!(fs::read(path).unwrap(), b"one\r\n\x1b[31mtwo\xff\nthree");
        assert_eq!(tail.lines(), ["one", "\\u{1b}[31mtwo\\xff", "three"]);
    }

    #[tokio::test]
    async fn a_flood_fills_two_files_and_not_the_disk() {
        let flood = vec![b'x'; 5 << 20];
        let (_keep, path, tail) = recorded(&[&flood, b"\nlast words\n"]).await;
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert!(size(&path) <= ROTATE_AT);
        assert!(size(&path.with_extension("log.1")) <= ROTATE_AT);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 2);
        assert_eq!(tail.lines().last().unwrap(), "last words");
        assert!(tail.lines()[0].len() <= TAIL_LINE + 3);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_does_not_stop_the_reading() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let tail = Tail::default();
        let task = tokio::spawn(record(read, "/nonexistent/console.log".into(), tail.clone()));
        tokio::task::spawn_blocking(move || File::from(write).write_all(&vec![b'\n'; 3 << 20]).unwrap())
            .await
            .unwrap();
        task.await.unwrap();
    }

    #[test]
    fn the_tail_is_the_end_however_it_arrives() {
        let tail = Tail::default();
        for line in 0..10_000 {
            tail.push(format!("{line}\n").as_bytes());
        }
        let lines = tail.lines();
        assert_eq!(lines.len(), TAIL_LINES);
        assert_eq!(lines.last().unwrap(), "9999");
    }
}
