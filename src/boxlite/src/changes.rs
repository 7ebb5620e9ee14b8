//! Waiting for files of a folder to change, with inotify(7).

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe;

/// One read of changes, in bytes; room for several with the longest names.
const EVENTS: usize = 8 << 10;

/// What happens in one folder. Nothing is missed between two waits.
#[derive(Debug)]
pub(crate) struct Changes {
    /// To the runtime a descriptor of inotify is what the reading end of a pipe is: it becomes readable, and is read.
    watch: pipe::Receiver,
}

impl Changes {
    /// Watches from now on. Must be called within a runtime.
    pub(crate) fn of(folder: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let what = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(folder, what)?;
        let watch = inotify.as_fd().try_clone_to_owned()?;
        Ok(Self { watch: pipe::Receiver::from_owned_fd_unchecked(watch)? })
    }

    /// Waits until something has happened since the last wait. May be cancelled.
    pub(crate) async fn next(&self) -> io::Result<()> {
        loop {
            self.watch.readable().await?;
            // What it was does not matter: whoever waits looks for himself.
            match self.watch.try_read(&mut [0; EVENTS]) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}
