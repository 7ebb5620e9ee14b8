//! The files of a box, as its processes see them.

use std::io::Read as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use boxlite_control::Order;
use boxlite_portal::v1;
use boxlite_portal::v1::transfer_request::Operation;
use bytes::Bytes;
use futures_util::Stream;
use tonic::{Code, Status};

use crate::error::{Error, ErrorKind, Result};
use crate::launch::StartHow;
use crate::litebox::LiteBox;
use crate::rpc;

/// The most events of a watch that wait for their reader on this side; the box keeps more, and says when it loses some.
const EVENTS: usize = 1024;

/// The files of a running box. Paths are absolute in the box, and resolved as its processes see them: volumes, `/tmp` and
/// whatever else is mounted there can be reached. A relative path starts from `/`.
///
/// A box that was only created is started, as by [`LiteBox::exec`].
#[derive(Clone, Debug)]
pub struct Files {
    target: LiteBox,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink,
    /// A device, a FIFO or a socket.
    Special,
}

impl FileKind {
    /// A stable lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Folder => "folder",
            Self::Symlink => "symlink",
            Self::Special => "special",
        }
    }

    fn of(kind: v1::FileKind) -> Self {
        match kind {
            v1::FileKind::File => Self::File,
            v1::FileKind::Folder => Self::Folder,
            v1::FileKind::Symlink => Self::Symlink,
            v1::FileKind::Special | v1::FileKind::Unspecified => Self::Special,
        }
    }
}

/// What a box says of a file of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileInfo {
    /// Its name: the last component of its path. Bytes, since names need not be UTF-8.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: FileKind,
    /// Its size in bytes.
    pub size: u64,
    /// Permission bits, 0 to 0o7777.
    pub mode: u32,
    /// User id of its owner in the box.
    pub uid: u32,
    /// Group id of its owner in the box.
    pub gid: u32,
    /// The last change of its content.
    pub modified_at: SystemTime,
    /// Where a symbolic link leads; empty for all else.
    pub link_target: Vec<u8>,
}

impl FileInfo {
    fn of(info: v1::FileInfo) -> Self {
        let seconds = Duration::from_secs(info.modified_seconds.unsigned_abs());
        let nanos = Duration::from_nanos(u64::from(info.modified_nanos.min(999_999_999)));
        let whole = if info.modified_seconds < 0 {
            SystemTime::UNIX_EPOCH.checked_sub(seconds)
        } else {
            SystemTime::UNIX_EPOCH.checked_add(seconds)
        };
        let modified_at = whole.and_then(|time| time.checked_add(nanos));
        Self {
            kind: FileKind::of(info.kind()),
            name: info.name,
            size: info.size,
            mode: info.mode & 0o7777,
            uid: info.uid,
            gid: info.gid,
            modified_at: modified_at.unwrap_or(SystemTime::UNIX_EPOCH),
            link_target: info.link_target,
        }
    }
}

/// How [`Files::write`] writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteOptions {
    /// Permission bits. `None`: those of the file that is replaced, else 0o644.
    pub mode: Option<u32>,
    /// Who owns a new file: name, uid, `name:group` or `uid:gid`. `None`: the user of the main command.
    pub owner: Option<String>,
    /// The content goes behind the end of what is there, not in its place. Then a failure can leave a part of it.
    pub append: bool,
    /// A file that is there is an error.
    pub keep_existing: bool,
}

/// What happened to a file that is watched, or in a folder that is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileEvent {
    /// What.
    pub kind: FileEventKind,
    /// To what: a path below the one that is watched, empty for that itself.
    pub path: Vec<u8>,
    /// The two halves of a move have the same number; 0 for all else.
    pub cookie: u32,
    /// It is a folder.
    pub folder: bool,
}

/// See [`FileEvent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileEventKind {
    /// It was made.
    Created,
    /// Its content was changed, and whoever changed it has closed it.
    Written,
    /// Its permissions, owner or times were changed.
    Attributes,
    /// It was removed.
    Removed,
    /// It was moved from here.
    MovedFrom,
    /// It was moved to here.
    MovedTo,
    /// What is watched has gone itself: the last event.
    Gone,
    /// Events were lost: look again.
    Overflow,
}

impl FileEvent {
    fn of(event: v1::WatchEvent) -> Self {
        use v1::watch_event::Kind;
        let kind = match event.kind() {
            Kind::Created => FileEventKind::Created,
            Kind::Written => FileEventKind::Written,
            Kind::Attributes => FileEventKind::Attributes,
            Kind::Removed => FileEventKind::Removed,
            Kind::MovedFrom => FileEventKind::MovedFrom,
            Kind::MovedTo => FileEventKind::MovedTo,
            Kind::Gone => FileEventKind::Gone,
            Kind::Overflow | Kind::Unspecified => FileEventKind::Overflow,
        };
        Self { kind, path: event.path, cookie: event.cookie, folder: event.folder }
    }
}

/// Reads what happens to watched files. Dropped, it ends the watch.
#[derive(Debug)]
pub struct FileWatch {
    events: tokio::sync::mpsc::Receiver<Result<FileEvent>>,
    task: tokio::task::JoinHandle<()>,
}

impl FileWatch {
    /// The next event; `None` after the last one.
    ///
    /// # Errors
    /// When the connection to the box is lost.
    pub async fn next(&mut self) -> Result<Option<FileEvent>> {
        self.events.recv().await.transpose()
    }
}

impl Stream for FileWatch {
    type Item = Result<FileEvent>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(context)
    }
}

impl Drop for FileWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl LiteBox {
    /// Its files.
    pub fn files(&self) -> Files {
        Files { target: self.clone() }
    }
}

impl Files {
    async fn portal(&self) -> Result<boxlite_portal::client::Portal> {
        self.target.ready(Order::Exec, StartHow::default()).await?;
        let connected = self.target.live().await?;
        if connected.version() < boxlite_portal::version::FILES {
            let message = "the box was started by an older BoxLite that knows nothing of files";
            return Err(Error::new(ErrorKind::Unsupported, message).with_hint("restart the box"));
        }
        Ok(connected)
    }

    /// What is known of a file; of a symbolic link itself, not of what it leads to.
    ///
    /// # Errors
    /// `NotFound` when nothing is there; when the box does not answer.
    pub async fn stat(&self, path: &str) -> Result<FileInfo> {
        self.look(path, false).await
    }

    /// As [`Files::stat`], of what a symbolic link leads to.
    ///
    /// # Errors
    /// As [`Files::stat`].
    pub async fn stat_followed(&self, path: &str) -> Result<FileInfo> {
        self.look(path, true).await
    }

    async fn look(&self, path: &str, follow: bool) -> Result<FileInfo> {
        let mut files = self.portal().await?.files();
        let request = v1::StatRequest { path: path.as_bytes().to_vec(), follow };
        let answer = call("cannot look at a file", files.stat(request)).await?;
        Ok(FileInfo::of(answer.info.unwrap_or_default()))
    }

    /// Whether something is there. A symbolic link is, wherever it leads.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub async fn exists(&self, path: &str) -> Result<bool> {
        match self.stat(path).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The entries of a folder, by name, without `.` and `..`; at most `limit` of them.
    ///
    /// # Errors
    /// When it is no folder; `ResourceExhausted` when it has more entries.
    pub async fn list(&self, path: &str, limit: usize) -> Result<Vec<FileInfo>> {
        const WHAT: &str = "cannot list a folder";
        let mut files = self.portal().await?.files();
        let request = v1::ListRequest { path: path.as_bytes().to_vec() };
        let mut stream = call(WHAT, files.list(request)).await?;
        let mut all = Vec::new();
        loop {
            let message = tokio::time::timeout(rpc::DEADLINE, stream.message()).await;
            let message = message.map_err(|_| {
                Error::new(
                    ErrorKind::Portal,
                    format!("{WHAT}: the box did not answer within {:?}", rpc::DEADLINE),
                )
            })?;
            let Some(message) = message.map_err(|status| refused(WHAT, &status))? else { break };
            all.extend(message.entries.into_iter().map(FileInfo::of));
            if all.len() > limit {
                let message = format!("{WHAT}: it has more than {limit} entries");
                return Err(Error::new(ErrorKind::ResourceExhausted, message));
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Makes a folder, of the user of the main command.
    ///
    /// # Errors
    /// `AlreadyExists` when something is there; `NotFound` when the folder above it is not.
    pub async fn make_folder(&self, path: &str) -> Result<()> {
        self.make(path, false).await
    }

    /// Makes a folder and those above it that are missing. One that is there already is no error.
    ///
    /// # Errors
    /// When something else is in the way.
    pub async fn make_folders(&self, path: &str) -> Result<()> {
        self.make(path, true).await
    }

    async fn make(&self, path: &str, parents: bool) -> Result<()> {
        let mut files = self.portal().await?.files();
        let request = v1::MakeFolderRequest { path: path.as_bytes().to_vec(), parents, ..Default::default() };
        call("cannot make a folder", files.make_folder(request)).await.map(drop)
    }

    /// Removes a file, a symbolic link or an empty folder.
    ///
    /// # Errors
    /// `NotFound` when nothing is there; when it is a folder with something in it.
    pub async fn remove(&self, path: &str) -> Result<()> {
        self.take_away(path, false).await
    }

    /// Removes a file, a symbolic link, or a folder with all that is in it.
    ///
    /// # Errors
    /// `NotFound` when nothing is there; when a part of it cannot be removed.
    pub async fn remove_all(&self, path: &str) -> Result<()> {
        self.take_away(path, true).await
    }

    async fn take_away(&self, path: &str, recursive: bool) -> Result<()> {
        let mut files = self.portal().await?.files();
        let request = v1::RemoveRequest { path: path.as_bytes().to_vec(), recursive };
        // A large tree takes its time.
        let answer = files.remove(request).await;
        answer.map(drop).map_err(|status| refused("cannot remove a file", &status))
    }

    /// Gives a file or folder another path on the same file system, in place of a file that is there.
    ///
    /// # Errors
    /// `NotFound` when it is not there; when the new path is that of a folder with something in it, or on another file system.
    pub async fn rename(&self, from: &str, to: &str) -> Result<()> {
        let mut files = self.portal().await?.files();
        let (from, to) = (from.as_bytes().to_vec(), to.as_bytes().to_vec());
        let request = v1::RenameRequest { from, to, keep_existing: false };
        call("cannot rename a file", files.rename(request)).await.map(drop)
    }

    /// The content of a file.
    ///
    /// # Errors
    /// When it is no regular file, or cannot be read; `ResourceExhausted` when it has more than `limit` bytes.
    pub async fn read(&self, path: &str, limit: usize) -> Result<Vec<u8>> {
        let content = self.read_range(path, 0, limit as u64 + 1).await?;
        if content.len() > limit {
            let message = format!("cannot read a file: it has more than {limit} bytes");
            return Err(Error::new(ErrorKind::ResourceExhausted, message));
        }
        Ok(content)
    }

    /// A piece of a file: at most `length` bytes from `offset` on. Less when the file ends before.
    ///
    /// # Errors
    /// When it is no regular file, or cannot be read.
    pub async fn read_range(&self, path: &str, offset: u64, length: u64) -> Result<Vec<u8>> {
        const WHAT: &str = "cannot read a file";
        self.target.ready(Order::Exec, StartHow::default()).await?;
        if length == 0 {
            return Ok(Vec::new());
        }
        let request = v1::ReadRequest { path: path.as_bytes().to_vec(), offset, length };
        self.target
            .transfer(WHAT, move |transfer| {
                let (content, _) = transfer.download(Operation::Read(request), |_, data| {
                    let mut content = Vec::new();
                    let read = data.take(length).read_to_end(&mut content);
                    read.map_err(|e| Error::new(ErrorKind::Portal, WHAT).with_source(e))?;
                    Ok(content)
                })?;
                Ok(content)
            })
            .await
    }

    /// Makes this the content of a file, which is made if it is missing. It has its old content or all of the new one,
    /// whatever happens.
    ///
    /// # Errors
    /// When the folder is missing, something that is no file is there, or it cannot be written.
    pub async fn write(&self, path: &str, content: impl Into<Bytes>) -> Result<()> {
        self.write_with(path, content, WriteOptions::default()).await
    }

    /// As [`Files::write`], with options.
    ///
    /// # Errors
    /// As [`Files::write`]; `AlreadyExists` when a file is there that is to stay.
    pub async fn write_with(
        &self,
        path: &str,
        content: impl Into<Bytes>,
        options: WriteOptions,
    ) -> Result<()> {
        const WHAT: &str = "cannot write a file";
        self.target.ready(Order::Exec, StartHow::default()).await?;
        if options.mode.is_some_and(|mode| mode > 0o7777) {
            return Err(Error::new(ErrorKind::InvalidArgument, "a mode has no more than permission bits"));
        }
        let content: Bytes = content.into();
        let request = v1::WriteRequest {
            path: path.as_bytes().to_vec(),
            mode: options.mode.unwrap_or_default(),
            owner: options.owner.unwrap_or_default(),
            append: options.append,
            keep_existing: options.keep_existing,
        };
        self.target
            .transfer(WHAT, move |transfer| {
                transfer
                    .upload(Operation::Write(request), |data| {
                        let written = data.write_all(&content);
                        written.map_err(|e| Error::new(ErrorKind::Portal, WHAT).with_source(e))
                    })
                    .map(drop)
            })
            .await
    }

    /// Watches a file, or what happens in a folder; with `recursive` also in all folders below it, those that come later
    /// included. The watch has begun when this returns.
    ///
    /// # Errors
    /// `NotFound` when nothing is there; `ResourceExhausted` when there are too many folders.
    pub async fn watch(&self, path: &str, recursive: bool) -> Result<FileWatch> {
        const WHAT: &str = "cannot watch a file";
        let mut files = self.portal().await?.files();
        let request = v1::WatchRequest { path: path.as_bytes().to_vec(), recursive };
        let mut stream = call(WHAT, files.watch(request)).await?;
        let begun = tokio::time::timeout(rpc::DEADLINE, stream.message()).await;
        match begun {
            Ok(Ok(Some(_))) => {}
            Ok(Err(status)) => return Err(refused(WHAT, &status)),
            Ok(Ok(None)) | Err(_) => {
                return Err(Error::new(
                    ErrorKind::Portal,
                    format!("{WHAT}: the box does not say that it has begun"),
                ));
            }
        }
        let (sender, events) = tokio::sync::mpsc::channel(EVENTS);
        let task = tokio::spawn(async move {
            loop {
                let told = match stream.message().await {
                    Ok(None) => return,
                    Ok(Some(message)) => {
                        message.events.into_iter().map(|event| Ok(FileEvent::of(event))).collect()
                    }
                    Err(status) => vec![Err(refused(WHAT, &status))],
                };
                for event in told {
                    let last = event.is_err();
                    if sender.send(event).await.is_err() || last {
                        return;
                    }
                }
            }
        });
        Ok(FileWatch { events, task })
    }
}

/// Makes a call about files, within a deadline.
async fn call<T>(what: &str, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T> {
    match tokio::time::timeout(rpc::DEADLINE, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(refused(what, &status)),
        Err(_) => {
            let message = format!("{what}: the box did not answer within {:?}", rpc::DEADLINE);
            Err(Error::new(ErrorKind::Portal, message))
        }
    }
}

/// As [`rpc::refused`], with the codes as the files' service means them.
fn refused(what: &str, status: &Status) -> Error {
    let kind = match status.code() {
        Code::PermissionDenied => ErrorKind::Storage,
        // What is there is of another kind: but the agent says the same of a container that does not run.
        Code::FailedPrecondition => ErrorKind::InvalidState,
        Code::Unknown if !status.message().is_empty() => ErrorKind::Storage,
        _ => return rpc::refused(what, status),
    };
    Error::new(kind, format!("{what}: {}", rpc::shown(status.message())))
}
