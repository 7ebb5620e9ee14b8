//! Writing a large file around the page cache, while more of it is being read.
//!
//! ```text
//!   reader ──▶ queue (2 buffers) ──▶ thread: pwrite
//!      ◀────── empty ones ◀────────────┘
//! ```
//!
//! Content that nobody has asked for yet has no business in memory, and the way through the page cache costs a machine whose
//! processor is the bottleneck more than the file itself. A file system that cannot do it gets the same writes in the usual
//! way, and so do the last bytes, which are no whole blocks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::BUFFER;

/// What offset, length and memory of a direct write have to be a multiple of: no device has larger blocks.
const BLOCK: usize = 4096;
/// How many buffers there are.
const BUFFERS: usize = 3;

/// Memory at the border of a block.
struct Buffer {
    memory: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new() -> Self {
        let memory = vec![0; BUFFER + BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK).min(BLOCK);
        Self { memory, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + BUFFER]
    }
}

struct Piece {
    buffer: Buffer,
    length: usize,
    at: u64,
}

/// A file that is being written. Dropped, it waits for the write that is going on.
pub(crate) struct Direct {
    queue: Option<SyncSender<Piece>>,
    empty: Receiver<Buffer>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Direct {
    /// Begins to write, if the file can be written that way.
    pub(crate) fn begin(file: &File) -> io::Result<Option<Self>> {
        let file = file.try_clone()?;
        match set(&file, true) {
            Ok(()) => {}
            Err(Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        let (queue, pieces) = sync_channel::<Piece>(BUFFERS - 1);
        let (used, empty) = channel();
        for _ in 0..BUFFERS {
            // The receiver is here.
            used.send(Buffer::new()).map_err(io::Error::other)?;
        }
        let write = move || {
            for mut piece in pieces {
                write_piece(&file, &mut piece)?;
                // Whoever fills them may have gone.
                drop(used.send(piece.buffer));
            }
            // Others go on with the file. One that could not be written nobody goes on with.
            Ok(set(&file, false)?)
        };
        let thread = std::thread::Builder::new().name("copy-write".to_owned()).spawn(write)?;
        Ok(Some(Self { queue: Some(queue), empty, thread: Some(thread) }))
    }

    /// Has `fill` fill a buffer from its beginning, as far as it says, and writes that at this position unless it says that
    /// it need not be. Gives the length.
    pub(crate) fn write<E>(
        &mut self,
        at: u64,
        fill: impl FnOnce(&mut [u8]) -> Result<(usize, bool), E>,
    ) -> Result<Result<usize, E>, io::Error> {
        let Ok(mut buffer) = self.empty.recv() else {
            return Err(self.ended());
        };
        let (length, wanted) = match fill(buffer.bytes()) {
            Ok(filled) => filled,
            Err(error) => return Ok(Err(error)),
        };
        let piece = Piece { buffer, length: if wanted { length } else { 0 }, at };
        match &self.queue {
            Some(queue) if queue.send(piece).is_ok() => Ok(Ok(length)),
            _ => Err(self.ended()),
        }
    }

    /// Waits until all of it is written.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.join()
    }

    fn join(&mut self) -> io::Result<()> {
        self.queue = None;
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(io::Error::other("the writer has panicked")),
        }
    }

    /// Why the writer has ended before its time.
    fn ended(&mut self) -> io::Error {
        self.join().err().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        // Dropped without an end, there was an error before; a second one says nothing more.
        self.join().unwrap_or_default();
    }
}

fn write_piece(file: &File, piece: &mut Piece) -> io::Result<()> {
    let (length, at) = (piece.length, piece.at);
    let bytes = &piece.buffer.bytes()[..length];
    if !length.is_multiple_of(BLOCK) {
        set(file, false)?;
    }
    match file.write_all_at(bytes, at) {
        // It can after all not be done: then from now on in the usual way.
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            set(file, false)?;
            file.write_all_at(bytes, at)
        }
        other => other,
    }
}

fn set(file: &File, direct: bool) -> rustix::io::Result<()> {
    let flags = fcntl_getfl(file)?;
    let wanted = if direct { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT };
    if wanted == flags { Ok(()) } else { fcntl_setfl(file, wanted) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(file: &File, content: &[u8]) -> io::Result<()> {
        let Some(mut direct) = Direct::begin(file)? else { panic!("this file system cannot do it") };
        let mut at = 0;
        while at < content.len() {
            let piece = &content[at..content.len().min(at + BUFFER)];
            let fill = |buffer: &mut [u8]| {
                buffer[..piece.len()].copy_from_slice(piece);
                Ok::<_, io::Error>((piece.len(), true))
            };
            at += direct.write(at as u64, fill)??;
        }
        direct.finish()
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|at| u8::try_from((at / 7) % 251).unwrap()).collect()
    }

    #[test]
    fn whatever_the_length_all_of_it_arrives_and_the_file_is_as_any_other_afterwards() {
        for length in [1, BLOCK, BUFFER, BUFFER + 1, 5 * BUFFER + BLOCK, 7 * BUFFER - 1] {
            let path = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
            let content = pattern(length);
            written(path.as_file(), &content).unwrap();
            assert!(!fcntl_getfl(path.as_file()).unwrap().contains(OFlags::DIRECT));
            assert!(std::fs::read(path.path()).unwrap() == content, "{length}");
        }
    }

    #[test]
    fn an_error_of_the_writer_is_told_and_ends_it() {
        let path = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        let read_only = File::open(path.path()).unwrap();
        let error = written(&read_only, &pattern(20 * BUFFER)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::BADF.raw_os_error()));
    }

    #[test]
    fn what_need_not_be_written_is_a_hole() {
        use std::os::unix::fs::MetadataExt;
        let path = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        let mut direct = Direct::begin(path.as_file()).unwrap().unwrap();
        for (number, wanted) in [(0, true), (1, false), (2, true)] {
            let filled = direct.write(number * BUFFER as u64, |buffer| {
                buffer.fill(u8::from(wanted));
                Ok::<_, io::Error>((buffer.len(), wanted))
            });
            assert_eq!(filled.unwrap().unwrap(), BUFFER);
        }
        direct.finish().unwrap();
        let data = path.as_file().metadata().unwrap();
        assert_eq!((data.len(), data.blocks() * 512), (3 * BUFFER as u64, 2 * BUFFER as u64));
    }

    #[test]
    fn a_file_that_is_given_up_stops_to_be_written() {
        let path = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        let mut direct = Direct::begin(path.as_file()).unwrap().unwrap();
        let given_up = direct.write(0, |_| Err(io::Error::other("cut")));
        assert!(given_up.unwrap().is_err());
        drop(direct);
        assert_eq!(path.as_file().metadata().unwrap().len(), 0);
    }
}
