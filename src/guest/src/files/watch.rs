//! Telling what happens to a file or in a folder: inotify(7), inside the container's mount namespace.
//!
//! ```text
//!   thread inside ──adds watches (each new folder, if asked)──▶ inotify ──▶ events ──▶ bounded queue ──▶ stream
//! ```
//!
//! A watch is on an inode, so the names are put together here: each watched folder is known by its path below the start.
//! What was lost, in the kernel's queue or because a folder could not be watched in time, shows as an overflow.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use boxlite_portal::v1::{WatchEvent, WatchResponse, watch_event::Kind};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::sync::mpsc;

use super::entry::system;
use super::error::{FileError, Kind as ErrorKind};
use super::path::BoxPath;

/// The most folders that one watch covers.
const FOLDERS: usize = 8192;
/// How often it is looked whether somebody still listens, in milliseconds.
const LOOK: u16 = 500;

const EVENTS: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_CLOSE_WRITE)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO);

/// A started watch.
#[derive(Debug)]
pub struct Watch {
    inotify: Inotify,
    start: PathBuf,
    recursive: bool,
    /// Paths below the start.
    watched: HashMap<WatchDescriptor, PathBuf>,
    root: WatchDescriptor,
}

impl Watch {
    /// Starts to watch.
    ///
    /// # Errors
    /// When nothing is there, there are too many folders, or the system would not.
    pub fn start(path: &BoxPath, recursive: bool) -> Result<Self, FileError> {
        let failed = |errno: Errno| system("watch", path)(errno.into());
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed)?;
        let start = path.as_path().to_owned();
        let root = inotify.add_watch(&start, EVENTS).map_err(failed)?;
        let mut watch =
            Self { inotify, start, recursive, watched: HashMap::from([(root, PathBuf::new())]), root };
        if recursive {
            watch.cover(Path::new("")).map_err(|full| match full {
                Uncovered::TooMany => FileError::new(
                    ErrorKind::NoSpace,
                    format!("{} has more than {FOLDERS} folders to watch", path.as_bytes().escape_ascii()),
                ),
                Uncovered::System(errno) => failed(errno),
            })?;
        }
        Ok(watch)
    }

    /// Watches the folders below one that is watched. Links are not followed.
    fn cover(&mut self, below: &Path) -> Result<(), Uncovered> {
        let mut pending = vec![below.to_owned()];
        while let Some(folder) = pending.pop() {
            // One that has gone again needs no watch.
            let Ok(entries) = std::fs::read_dir(self.start.join(&folder)) else { continue };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let inner = folder.join(entry.file_name());
                    if self.add(&inner)? {
                        pending.push(inner);
                    }
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, below: &Path) -> Result<bool, Uncovered> {
        if self.watched.len() >= FOLDERS {
            return Err(Uncovered::TooMany);
        }
        let flags = EVENTS | AddWatchFlags::IN_ONLYDIR | AddWatchFlags::IN_DONT_FOLLOW;
        match self.inotify.add_watch(&self.start.join(below), flags) {
            Ok(descriptor) => {
                self.watched.insert(descriptor, below.to_owned());
                Ok(true)
            }
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(false),
            Err(errno) => Err(Uncovered::System(errno)),
        }
    }

    /// Sends what happens until nobody listens any more, or what is watched has gone. Blocks.
    pub fn run<E>(mut self, sender: &mpsc::Sender<Result<WatchResponse, E>>) {
        loop {
            match self.next() {
                Ok(events) if events.is_empty() => {}
                Ok(events) => {
                    let last = events.iter().any(|event| event.kind() == Kind::Gone);
                    if sender.blocking_send(Ok(WatchResponse { events })).is_err() || last {
                        return;
                    }
                }
                Err(errno) => {
                    return crate::console::line(format_args!("cannot watch files: {errno}"));
                }
            }
            if sender.is_closed() {
                return;
            }
        }
    }

    fn next(&mut self) -> nix::Result<Vec<WatchEvent>> {
        let mut ready = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::from(LOOK)) {
            Ok(0) | Err(Errno::EINTR) => return Ok(Vec::new()),
            Ok(_) => {}
            Err(errno) => return Err(errno),
        }
        let mut told = Vec::new();
        match self.inotify.read_events() {
            Ok(events) => events.into_iter().for_each(|event| self.tell(event, &mut told)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        Ok(told)
    }

    fn tell(&mut self, event: InotifyEvent, told: &mut Vec<WatchEvent>) {
        let mask = event.mask;
        if mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return told.push(WatchEvent { kind: Kind::Overflow.into(), ..Default::default() });
        }
        if mask.contains(AddWatchFlags::IN_IGNORED) {
            self.watched.remove(&event.wd);
            return;
        }
        let Some(folder) = self.watched.get(&event.wd).cloned() else { return };
        let is_folder = mask.contains(AddWatchFlags::IN_ISDIR);
        if mask.intersects(AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF) {
            // That of any other is told by the folder that it is in.
            if event.wd == self.root {
                told.push(WatchEvent { kind: Kind::Gone.into(), ..Default::default() });
            }
            return;
        }
        let kind = [
            (AddWatchFlags::IN_CREATE, Kind::Created),
            (AddWatchFlags::IN_CLOSE_WRITE, Kind::Written),
            (AddWatchFlags::IN_ATTRIB, Kind::Attributes),
            (AddWatchFlags::IN_DELETE, Kind::Removed),
            (AddWatchFlags::IN_MOVED_FROM, Kind::MovedFrom),
            (AddWatchFlags::IN_MOVED_TO, Kind::MovedTo),
        ];
        let Some((_, kind)) = kind.into_iter().find(|(flag, _)| mask.contains(*flag)) else { return };
        let name = event.name.unwrap_or_default();
        let path = if name.is_empty() { folder } else { folder.join(&name) };
        // Changes of a watched folder's own attributes are told by its parent, and by itself if it is the start.
        if kind == Kind::Attributes && name.is_empty() && event.wd != self.root {
            return;
        }
        told.push(WatchEvent {
            kind: kind.into(),
            path: OsStr::as_bytes(path.as_os_str()).to_vec(),
            cookie: event.cookie,
            folder: is_folder,
        });
        if !(self.recursive && is_folder) {
            return;
        }
        match kind {
            Kind::Created | Kind::MovedTo => self.arrived(&path, told),
            Kind::MovedFrom => self.left(&path),
            _ => {}
        }
    }

    /// A folder has come. What was made in it before it was watched is told as made now.
    fn arrived(&mut self, path: &Path, told: &mut Vec<WatchEvent>) {
        let covered = self.add(path).and_then(|there| if there { self.cover(path) } else { Ok(()) });
        if covered.is_err() {
            return told.push(WatchEvent { kind: Kind::Overflow.into(), ..Default::default() });
        }
        let mut pending = vec![path.to_owned()];
        while let Some(folder) = pending.pop() {
            for entry in std::fs::read_dir(self.start.join(&folder)).into_iter().flatten().flatten() {
                let inner = folder.join(entry.file_name());
                let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
                told.push(WatchEvent {
                    kind: Kind::Created.into(),
                    path: OsStr::as_bytes(inner.as_os_str()).to_vec(),
                    cookie: 0,
                    folder: is_folder,
                });
                if told.len() >= FOLDERS {
                    return told.push(WatchEvent { kind: Kind::Overflow.into(), ..Default::default() });
                }
                if is_folder {
                    pending.push(inner);
                }
            }
        }
    }

    /// A folder has left: what happens in it is no longer told under its old name.
    fn left(&mut self, path: &Path) {
        let inotify = &self.inotify;
        self.watched.retain(|descriptor, watched| {
            let gone = watched.starts_with(path);
            if gone {
                // One that has just been removed is as well.
                inotify.rm_watch(*descriptor).unwrap_or_default();
            }
            !gone
        });
    }
}

enum Uncovered {
    TooMany,
    System(Errno),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::ffi::OsStringExt;

    struct Seen {
        events: mpsc::Receiver<Result<WatchResponse, ()>>,
        pending: std::collections::VecDeque<WatchEvent>,
    }

    impl Seen {
        fn of(folder: &Path, recursive: bool) -> Self {
            let path = BoxPath::new(folder.as_os_str().to_owned().into_vec()).unwrap();
            let watch = Watch::start(&path, recursive).unwrap();
            let (sender, events) = mpsc::channel(4);
            std::thread::spawn(move || watch.run(&sender));
            Self { events, pending: std::collections::VecDeque::new() }
        }

        fn next(&mut self) -> (Kind, String) {
            while self.pending.is_empty() {
                self.pending.extend(self.events.blocking_recv().unwrap().unwrap().events);
            }
            let event = self.pending.pop_front().unwrap();
            (event.kind(), String::from_utf8(event.path).unwrap())
        }

        /// Reads up to this event.
        fn until(&mut self, kind: Kind, path: &str) {
            while self.next() != (kind, path.to_owned()) {}
        }
    }

    #[test]
    fn what_happens_in_a_folder_is_told_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut seen = Seen::of(folder.path(), false);
        fs::write(folder.path().join("a"), "x").unwrap();
        fs::rename(folder.path().join("a"), folder.path().join("b")).unwrap();
        fs::remove_file(folder.path().join("b")).unwrap();
        let told: Vec<_> = (0..5).map(|_| seen.next()).collect();
        let expected = [
            (Kind::Created, "a"),
            (Kind::Written, "a"),
            (Kind::MovedFrom, "a"),
            (Kind::MovedTo, "b"),
            (Kind::Removed, "b"),
        ];
        assert_eq!(told, expected.map(|(kind, path)| (kind, path.to_owned())));
    }

    #[test]
    fn folders_that_come_later_are_watched_too() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("old")).unwrap();
        let mut seen = Seen::of(folder.path(), true);
        fs::write(folder.path().join("old/x"), "").unwrap();
        seen.until(Kind::Written, "old/x");
        fs::create_dir_all(folder.path().join("new/deep")).unwrap();
        seen.until(Kind::Created, "new/deep");
        fs::write(folder.path().join("new/deep/y"), "").unwrap();
        seen.until(Kind::Created, "new/deep/y");
        fs::rename(folder.path().join("new"), folder.path().join("other")).unwrap();
        seen.until(Kind::MovedTo, "other");
        fs::write(folder.path().join("other/deep/z"), "").unwrap();
        seen.until(Kind::Created, "other/deep/z");
    }

    #[test]
    fn the_end_of_what_is_watched_is_the_last_event() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let mut seen = Seen::of(&file, false);
        fs::write(&file, "more").unwrap();
        seen.until(Kind::Written, "");
        fs::remove_file(&file).unwrap();
        seen.until(Kind::Gone, "");
        assert!(seen.events.blocking_recv().is_none());
    }

    #[test]
    fn nothing_to_watch_is_an_error() {
        let path = BoxPath::new(b"/does/not/exist".to_vec()).unwrap();
        assert_eq!(Watch::start(&path, true).unwrap_err().kind, ErrorKind::NotFound);
    }
}
