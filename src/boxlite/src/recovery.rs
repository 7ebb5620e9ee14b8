//! The end of boxes, and what is done about those that were killed half-way.
//!
//! ```text
//!   boxes/<id>/  ──rename──▶  tmp/removed-<id>/  ──▶  its row is deleted  ──▶  nothing
//!   the box exists            it does not any more
//! ```
//!
//! While the creator of a box that is not detached lives, it holds the lock `owner` in the folder. Recovery runs whenever a
//! runtime is opened. It decides under a box's locks, keeps them until it has done what it decided, and never fails the
//! runtime. It sends no signal to anybody: what a killed monitor leaves ends by itself, see `docs/storage.md`.

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use boxlite_control::{Admission, BoxFiles, EventKind, Order, State, StatusFile, admit, step};

use crate::error::{Error, ErrorKind, Result, storage};
use crate::home::{DRAFT, FileLock, Held, TRASH};
use crate::monitor::{self, Observed};
use crate::record::{BoxRecord, read_bounded};
use crate::runtime::RuntimeInner;
use crate::store::StoreError;
use crate::volume::VolumeSource;

/// How long a box may take to be gone after its end: its monitor says good-bye and removes files.
pub(crate) const RELEASE: Duration = Duration::from_secs(30);
/// How often a lock that a monitor still holds is tried again.
const RELEASE_LOOK: Duration = Duration::from_millis(10);
/// The record of a box of the time before there was a database.
const OLD_RECORD: &str = "box.json";
/// The largest of them, in bytes.
const OLD_RECORD_LIMIT: u64 = 4 << 20;

impl RuntimeInner {
    /// What a box does. The end of one whose monitor was killed is written down on the way.
    pub(crate) fn look(&self, record: &BoxRecord) -> Result<Observed> {
        let files = self.home.files(&record.id);
        match monitor::observe(&files)? {
            Observed::Crashed(_) => {
                // Whoever holds the lock now is about to publish a state.
                let Held::ByUs(lock) = FileLock::attempt_existing(&files.lock())? else {
                    return monitor::observe(&files);
                };
                self.record_crash(record, &lock)
            }
            observed => Ok(observed),
        }
    }

    /// Writes down the end of a box whose monitor was killed, under its lock.
    fn record_crash(&self, record: &BoxRecord, _lock: &FileLock) -> Result<Observed> {
        let files = self.home.files(&record.id);
        // Another may have done it before we had the lock.
        let Observed::Crashed(update) = monitor::observe(&files)? else { return monitor::observe(&files) };
        if let State::Failed { error, .. } = &update.state {
            tracing::warn!(id = record.id, error = error.messages.join(": "), "a box was lost");
            let error = Some(error.messages.join(": "));
            self.tell(record, EventKind::Exited { exit: None, reason: None, error, restart_millis: None });
        }
        let sockets =
            [files.control_socket(), files.portal_socket(), files.boot_socket(), files.share_socket()];
        for socket in sockets {
            match fs::remove_file(&socket) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(error = %e, socket = %socket.display(), "cannot remove a socket");
                }
                _ => {}
            }
        }
        StatusFile::write(&files, &update)
            .map_err(|e| storage(format!("cannot write {}", files.state().display()), e))?;
        Ok(Observed::Ended(update))
    }

    /// Waits until no monitor has the box any more: it may still be at its last work when the final state is known.
    /// Returns the box's lock, or `None` when its folder is gone.
    fn released(&self, id: &str) -> Result<Option<FileLock>> {
        let files = self.home.files(id);
        let deadline = Instant::now() + RELEASE;
        loop {
            match FileLock::attempt_existing(&files.lock())? {
                Held::ByUs(lock) => return Ok(Some(lock)),
                Held::ByAnother => {}
                Held::Gone if !files.folder().is_dir() => return Ok(None),
                // Never started: the lock is made by the first who wants it.
                Held::Gone => {
                    if let Some(lock) = FileLock::attempt(&files.lock())? {
                        return Ok(Some(lock));
                    }
                }
            }
            let observed = monitor::observe(&files)?;
            if matches!(observed, Observed::Live(_))
                && let Admission::Refuse(refusal) = admit(observed.phase(), Order::Remove)
            {
                let error = Error::new(ErrorKind::InvalidState, format!("box {id}: {refusal}"));
                return Err(match refusal.hint() {
                    Some(hint) => error.with_hint(hint),
                    None => error,
                });
            }
            if Instant::now() >= deadline {
                let message = format!("the monitor of box {id} does not end");
                return Err(Error::new(ErrorKind::Engine, message));
            }
            thread::sleep(RELEASE_LOOK);
        }
    }

    /// Waits until nobody runs the box, and lets it go again.
    pub(crate) fn wait_released(&self, id: &str) -> Result<()> {
        self.released(id).map(drop)
    }

    pub(crate) fn remove(&self, record: &BoxRecord) -> Result<()> {
        if let Some(_lock) = self.released(&record.id)? {
            step::reached("library", "remove-locked");
            self.discard(record)?;
        } else {
            self.boxes.delete(&record.id)?;
        }
        self.held().remove(&record.id);
        Ok(())
    }

    /// Takes a folder away at once, then deletes it. The caller holds its lock.
    fn discard(&self, record: &BoxRecord) -> Result<()> {
        let files = self.home.files(&record.id);
        let trash = self.home.trash(&record.id);
        let changing = self.home.lock()?;
        match fs::rename(files.folder(), &trash) {
            Ok(()) => {
                step::reached("library", "remove-renamed");
                self.tell(record, EventKind::Removed);
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(storage(format!("cannot remove {}", files.folder().display()), e)),
        }
        self.boxes.delete(&record.id)?;
        let anonymous = record.volumes.iter().any(|volume| matches!(volume.source, VolumeSource::Managed(_)));
        // What is in the trash is nobody's: others may help to delete it.
        drop(changing);
        step::reached("library", "remove-deleted");
        delete(&trash)?;
        if anonymous { self.drop_anonymous_volumes() } else { Ok(()) }
    }

    /// Clears away what killed processes left. What cannot be cleared away is told and left.
    pub(crate) fn recover(&self) {
        let told = |what: &str, error: &Error| tracing::warn!(error = %error.report(), "{what}");
        let entries = fs::read_dir(self.home.tmp()).into_iter().flatten().flatten();
        for entry in entries {
            if let Err(error) = recover_draft(&entry.path()) {
                told("what was left behind cannot be cleared away", &error);
            }
        }
        // Folders first: one that becomes a box meanwhile has its row by the time that rows are read.
        match self.folders() {
            Ok(folders) => match self.boxes.ids() {
                Ok(rows) => self.match_folders_and_rows(&folders, &rows.into_iter().collect()),
                Err(error) => told("boxes cannot be looked through", &error.into()),
            },
            Err(error) => told("boxes cannot be looked through", &error),
        }
        if let Err(error) = self.drop_anonymous_volumes() {
            told("volumes of boxes that have gone cannot be removed", &error);
        }
        match self.boxes.all() {
            Ok(records) => {
                for record in &records {
                    if let Err(error) = self.recover_box(record) {
                        told("a box cannot be looked at", &error);
                    }
                }
            }
            Err(error) => told("boxes cannot be looked through", &error.into()),
        }
    }

    /// A row without a folder is a box that has been removed; a folder without a row one that was never finished.
    fn match_folders_and_rows(&self, folders: &[String], rows: &HashSet<String>) {
        for id in rows.iter().filter(|id| self.is_gone(id)) {
            if let Err(error) = self.boxes.delete(id) {
                tracing::warn!(id, %error, "a removed box is still in the database");
            }
        }
        for id in folders.iter().filter(|id| !rows.contains(*id)) {
            if let Err(error) = self.recover_folder(id) {
                tracing::warn!(id, error = %error.report(), "a folder without a box cannot be cleared away");
            }
        }
    }

    fn recover_folder(&self, id: &str) -> Result<()> {
        let files = self.home.files(id);
        let old = files.folder().join(OLD_RECORD);
        if let Some(bytes) = read_bounded(&old, OLD_RECORD_LIMIT)? {
            return self.adopt(id, &String::from_utf8_lossy(&bytes));
        }
        let _owner = match FileLock::attempt_existing(&files.owner())? {
            Held::ByUs(lock) => lock,
            // Its maker is at work, or has gone with it.
            Held::ByAnother | Held::Gone => return Ok(()),
        };
        // Under the lock of its maker nobody finishes it any more: now the answer holds.
        if self.boxes.get(id)?.is_some() {
            return Ok(());
        }
        tracing::info!(id, "removing a box that was never finished");
        let trash = self.home.trash(id);
        match fs::rename(files.folder(), &trash) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(storage(format!("cannot remove {}", files.folder().display()), e)),
            Ok(()) => delete(&trash),
        }
    }

    /// Takes a box of the time before the database over.
    fn adopt(&self, id: &str, old: &str) -> Result<()> {
        let failed = |e| storage(format!("the record of box {id} is damaged"), e);
        let mut record = BoxRecord { id: id.to_owned(), ..BoxRecord::decode(old).map_err(failed)? };
        loop {
            match self.boxes.insert(&record, |other| self.is_gone(other)) {
                // A newer box has its name: the box is worth more than what it was called.
                Err(StoreError::NameTaken(name)) => {
                    tracing::warn!(id, name, "a box has lost its name");
                    record.name = None;
                }
                outcome => return Ok(outcome?),
            }
        }
    }

    fn recover_box(&self, record: &BoxRecord) -> Result<()> {
        let observed = self.look(record)?;
        if !record.auto_remove || matches!(observed, Observed::Live(_)) {
            return Ok(());
        }
        let files = self.home.files(&record.id);
        // A detached box has no owner to wait for.
        let _owner = match FileLock::attempt_existing(&files.owner())? {
            Held::ByUs(lock) => lock,
            Held::ByAnother | Held::Gone => return Ok(()),
        };
        let Some(_lock) = FileLock::attempt(&files.lock())? else { return Ok(()) };
        // Under both locks nobody can start it any more: now the answer holds.
        match monitor::observe(&files)? {
            Observed::Live(_) => return Ok(()),
            Observed::NeverStarted if record.detach => return Ok(()),
            Observed::NeverStarted | Observed::Ended(_) | Observed::Crashed(_) => {}
        }
        tracing::info!(id = record.id, "removing a box that was left behind");
        self.discard(record)
    }
}

/// Deletes a folder that others may be deleting as well.
pub(crate) fn delete(folder: &Path) -> Result<()> {
    // Of boxes' making in part: deeper, perhaps, than a stack.
    let remove = || {
        let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else { return Ok(()) };
        let name = std::ffi::CString::new(name.as_bytes())?;
        boxlite_copy::remove_tree(fs::File::open(parent)?.as_fd(), &name)
    };
    match remove() {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(storage(format!("cannot remove {}", folder.display()), e))
        }
        _ => Ok(()),
    }
}

/// Deletes an entry of `tmp` that belongs to nobody.
fn recover_draft(entry: &Path) -> Result<()> {
    let name = entry.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with(TRASH) {
        return delete(entry);
    }
    if !name.starts_with(DRAFT) {
        return Ok(());
    }
    match FileLock::attempt_existing(&BoxFiles::new(entry).owner())? {
        // Held until the folder is away: its maker, should it come late, fails and starts anew.
        Held::ByUs(_owner) => {
            let trash = entry.with_file_name(name.replacen(DRAFT, TRASH, 1));
            match fs::rename(entry, &trash) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
                Err(e) => Err(storage(format!("cannot remove {}", entry.display()), e)),
                Ok(()) => delete(&trash),
            }
        }
        Held::ByAnother => Ok(()),
        // Made a moment ago or abandoned before anything was in it: an empty folder goes, any other stays.
        Held::Gone => match fs::remove_dir(entry) {
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Ok(())
            }
            Err(e) => Err(storage(format!("cannot remove {}", entry.display()), e)),
            Ok(()) => Ok(()),
        },
    }
}
