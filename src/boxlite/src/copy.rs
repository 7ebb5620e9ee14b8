//! Copying files between the host and a box, by Docker's rules.
//!
//! ```text
//!   into   host tree ──pack──▶ tar ──▶ agent: unpack, inside the container's mount namespace
//!   out    agent: pack ──▶ tar ──▶ unpack ──▶ host tree
//! ```
//!
//! What comes out of a box is hostile: `boxlite_copy` keeps it below the destination, whatever it claims to be called. On the
//! host nothing is made that has more rights than its maker: no device nodes, no set-user-id bits, and the caller's owner.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use boxlite_control::Order;
use boxlite_copy::{
    Copied, Kind, Owner, PackOptions, Progress, Root, Source, Summary, Target, UnpackOptions, unpack,
};
use boxlite_portal::v1::transfer_request::Operation;
use boxlite_portal::v1::{FileKind, PackRequest, TransferInfo, TransferResult, UnpackRequest};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::error::{Error, ErrorKind, Result};
use crate::launch::StartHow;
use crate::litebox::LiteBox;

/// Pieces of a stream that wait for the other side, and how large they are at most.
const QUEUE: usize = 4;
const PIECE: usize = 256 << 10;
const INTO: &str = "cannot copy into the box";
const OUT: &str = "cannot copy out of the box";
/// The name in a stream of what has none of its own. Whoever unpacks gives it another.
const NAMELESS: &str = "root";

/// How files are copied.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyOptions {
    /// Folders with all that is in them; otherwise a folder is refused. Default true.
    pub recursive: bool,
    /// What is there is replaced; otherwise it is an error. Default true.
    pub overwrite: bool,
    /// When what is to be copied is a symbolic link, what it leads to is copied. Links inside a folder stay links. Default
    /// false.
    pub follow_symlinks: bool,
    /// User and group ids are kept. Out of a box that needs root. Default false: into a box files belong to
    /// [`owner`](Self::owner), out of it to the caller.
    pub keep_owner: bool,
    /// Who owns what is copied into a box: name, uid, `name:group` or `uid:gid`. `None`: the user of the main command.
    pub owner: Option<String>,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self { recursive: true, overwrite: true, follow_symlinks: false, keep_owner: false, owner: None }
    }
}

/// How far a copy has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyProgress {
    /// Files, folders and links so far.
    pub entries: u64,
    /// Bytes of their content so far, without holes.
    pub bytes: u64,
    /// How many there will be, where that is known: for a single file.
    pub total: Option<u64>,
}

/// What a copy did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopySummary {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of their content, without holes.
    pub bytes: u64,
    /// Sockets, which no archive can carry.
    pub skipped_sockets: u64,
    /// Device nodes.
    pub skipped_devices: u64,
    /// Extended attributes that the other side does not take.
    pub skipped_xattrs: u64,
    /// Files that changed or vanished while they were read.
    pub changed: u64,
}

impl CopySummary {
    /// What this side has done, and what either side has left out.
    fn of(ours: &TransferResult, packed: &TransferResult, unpacked: &TransferResult) -> Self {
        Self {
            entries: ours.entries,
            bytes: ours.bytes,
            skipped_sockets: packed.skipped_sockets,
            skipped_devices: packed.skipped_devices,
            skipped_xattrs: packed.skipped_xattrs.saturating_add(unpacked.skipped_xattrs),
            changed: packed.changed,
        }
    }
}

fn told(summary: Summary) -> TransferResult {
    TransferResult {
        failure: None,
        entries: summary.entries,
        bytes: summary.bytes,
        skipped_sockets: summary.skipped.sockets,
        skipped_devices: summary.skipped.devices,
        skipped_xattrs: summary.skipped.xattrs,
        changed: summary.shrunk + summary.skipped.vanished,
    }
}

fn local(what: &'static str) -> impl Fn(Box<dyn std::error::Error + Send + Sync>) -> Error {
    move |error| Error::new(ErrorKind::Storage, what).with_source(error)
}

fn refuse_folder(kind: Kind, options: &CopyOptions) -> Result<()> {
    if kind == Kind::Folder && !options.recursive {
        let message = "a folder is to be copied, and folders were excluded";
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    }
    Ok(())
}

impl LiteBox {
    /// Copies a file or folder of the host into the box, to any place that its processes see.
    ///
    /// As with Docker: a destination that does not exist becomes the copy; into a folder that is there the copy goes under
    /// its own name; a source that ends in `/.` is what is in a folder, not the folder; a destination that ends in `/` has
    /// to be a folder. A file has its old content or all of the new one, whatever happens.
    ///
    /// # Errors
    /// When a part of the source cannot be read, the destination has no place for it, or the connection is lost. What was
    /// copied by then stays.
    pub async fn copy_into(
        &self,
        source: impl AsRef<Path>,
        dest: &str,
        options: CopyOptions,
    ) -> Result<CopySummary> {
        self.copy_into_with(source, dest, options, |_| {}).await
    }

    /// As [`LiteBox::copy_into`]; `progress` is told how far it is, from a thread of its own.
    ///
    /// # Errors
    /// As [`LiteBox::copy_into`].
    pub async fn copy_into_with(
        &self,
        source: impl AsRef<Path>,
        dest: &str,
        options: CopyOptions,
        mut progress: impl FnMut(CopyProgress) + Send + 'static,
    ) -> Result<CopySummary> {
        let path = source.as_ref().to_owned();
        let source = crate::runtime::blocking(move || {
            let failed = |error: boxlite_copy::SourceError| {
                let missing = error.source.kind() == io::ErrorKind::NotFound;
                let kind = if missing { ErrorKind::NotFound } else { ErrorKind::Storage };
                Error::new(kind, INTO).with_source(error)
            };
            let source = Source::open(&path, options.follow_symlinks).map_err(failed)?;
            refuse_folder(source.kind(), &options)?;
            Ok((source, options))
        });
        let (source, options) = source.await?;
        self.ready(Order::Exec, StartHow::default()).await?;
        let root = match source.name() {
            _ if source.is_contents() => Root::Contents,
            Some(name) => Root::Named(name.to_owned()),
            None => Root::Named(NAMELESS.into()),
        };
        let kind = match source.kind() {
            Kind::File => FileKind::File,
            Kind::Folder => FileKind::Folder,
            Kind::Symlink => FileKind::Symlink,
            Kind::Other => FileKind::Special,
        };
        let request = UnpackRequest {
            path: dest.as_bytes().to_vec(),
            kind: kind.into(),
            name: source.name().map(|name| name.as_bytes().to_vec()).unwrap_or_default(),
            contents: source.is_contents(),
            archive: false,
            keep_owner: options.keep_owner,
            owner: options.owner.unwrap_or_default(),
            keep_existing: !options.overwrite,
        };
        self.transfer(INTO, move |transfer| {
            let mut packed = TransferResult::default();
            let total = (source.kind() == Kind::File).then(|| source.size_hint());
            let mut tell = |now: Progress| {
                progress(CopyProgress { entries: now.entries, bytes: now.bytes, total });
            };
            let options = PackOptions { keep_xattrs: true, devices: false };
            let unpacked = transfer.upload(Operation::Unpack(request), |out| {
                let summary = source.pack(&root, options, out, &mut tell);
                packed = told(summary.map_err(|error| local(INTO)(error.into()))?);
                Ok(())
            })?;
            Ok(CopySummary::of(&packed, &packed, &unpacked))
        })
        .await
    }

    /// Copies a file or folder of the box to the host, by the rules of [`LiteBox::copy_into`]. What the box sends cannot leave
    /// the destination.
    ///
    /// # Errors
    /// When a part of the source cannot be read, the destination has no place for it, the box sends something that is refused,
    /// or the connection is lost. What was copied by then stays.
    pub async fn copy_out(
        &self,
        source: &str,
        dest: impl AsRef<Path>,
        options: CopyOptions,
    ) -> Result<CopySummary> {
        self.copy_out_with(source, dest, options, |_| {}).await
    }

    /// As [`LiteBox::copy_out`]; `progress` is told how far it is, from a thread of its own.
    ///
    /// # Errors
    /// As [`LiteBox::copy_out`].
    pub async fn copy_out_with(
        &self,
        source: &str,
        dest: impl AsRef<Path>,
        options: CopyOptions,
        mut progress: impl FnMut(CopyProgress) + Send + 'static,
    ) -> Result<CopySummary> {
        self.ready(Order::Exec, StartHow::default()).await?;
        let request =
            PackRequest { path: source.as_bytes().to_vec(), follow_symlinks: options.follow_symlinks };
        let dest = dest.as_ref().to_owned();
        self.transfer(OUT, move |transfer| {
            let (unpacked, packed) = transfer.download(Operation::Pack(request), |info, data| {
                let copied = Described::of(info);
                refuse_folder(copied.kind, &options)?;
                let target = Target::open(&dest).map_err(place_error)?;
                let (folder, root) = target.place(copied.copied()).map_err(place_error)?;
                let total = (copied.kind == Kind::File).then_some(info.size);
                let mut tell = |now: Progress| {
                    progress(CopyProgress { entries: now.entries, bytes: now.bytes, total });
                };
                let options = UnpackOptions {
                    owner: if options.keep_owner { Owner::Keep } else { Owner::Caller },
                    overwrite: options.overwrite,
                    kind: (root != Root::Contents).then_some(copied.kind),
                    ..UnpackOptions::default()
                };
                let unpacked = unpack(folder.as_fd(), &root, options, data, &mut tell);
                unpacked.map(told).map_err(unpack_error)
            })?;
            Ok(CopySummary::of(&unpacked, &packed, &unpacked))
        })
        .await
    }

    /// Unpacks a tar archive into a folder of the box that is there.
    ///
    /// # Errors
    /// When the folder is not there, the archive is refused, reading fails, or the connection is lost.
    pub async fn copy_in_stream(
        &self,
        dest: &str,
        mut archive: impl AsyncRead + Unpin,
        options: CopyOptions,
    ) -> Result<CopySummary> {
        self.ready(Order::Exec, StartHow::default()).await?;
        let request = UnpackRequest {
            path: dest.as_bytes().to_vec(),
            archive: true,
            keep_owner: options.keep_owner,
            owner: options.owner.unwrap_or_default(),
            keep_existing: !options.overwrite,
            ..Default::default()
        };
        let (pieces, mut queue) = mpsc::channel::<io::Result<Bytes>>(QUEUE);
        let feed = async move {
            loop {
                let mut piece = Vec::with_capacity(PIECE);
                let read = (&mut archive).take(PIECE as u64).read_buf(&mut piece).await;
                let last = matches!(read, Ok(0) | Err(_));
                // The one who takes it may have had enough.
                if !matches!(read, Ok(0)) && pieces.send(read.map(|_| piece.into())).await.is_err() {
                    return;
                }
                if last {
                    return;
                }
            }
        };
        let work = self.transfer(INTO, move |transfer| {
            let unpacked = transfer.upload(Operation::Unpack(request), |out| {
                while let Some(piece) = queue.blocking_recv() {
                    let written = piece.and_then(|piece| out.write_all(&piece));
                    written.map_err(|error| local(INTO)(error.into()))?;
                }
                Ok(())
            })?;
            Ok(CopySummary::of(&unpacked, &TransferResult::default(), &unpacked))
        });
        let (outcome, ()) = tokio::join!(work, feed);
        outcome
    }

    /// Packs a file or folder of the box as a tar archive, under its own name.
    ///
    /// # Errors
    /// When a part of it cannot be read, writing fails, or the connection is lost.
    pub async fn copy_out_stream(
        &self,
        source: &str,
        mut archive: impl AsyncWrite + Unpin,
        options: CopyOptions,
    ) -> Result<CopySummary> {
        self.ready(Order::Exec, StartHow::default()).await?;
        let request =
            PackRequest { path: source.as_bytes().to_vec(), follow_symlinks: options.follow_symlinks };
        let (pieces, mut queue) = mpsc::channel::<Bytes>(QUEUE);
        let work = self.transfer(OUT, move |transfer| {
            let ((), packed) = transfer.download(Operation::Pack(request), |_, data| {
                let mut piece = vec![0; PIECE];
                loop {
                    let count = data.read(&mut piece).map_err(|error| local(OUT)(error.into()))?;
                    let nobody = || Error::new(ErrorKind::Storage, "nobody takes the archive any more");
                    match count {
                        0 => return Ok(()),
                        count => pieces
                            .blocking_send(Bytes::copy_from_slice(&piece[..count]))
                            .map_err(|_| nobody())?,
                    }
                }
            })?;
            Ok(CopySummary::of(&packed, &packed, &TransferResult::default()))
        });
        let write = async move {
            while let Some(piece) = queue.recv().await {
                archive.write_all(&piece).await?;
            }
            archive.flush().await
        };
        let (outcome, written) = tokio::join!(work, write);
        written.map_err(|error| local("cannot write the archive")(error.into()))?;
        outcome
    }
}

/// What a box says that it sends: believed as far as it decides a place, since the name is checked where it is used.
struct Described {
    kind: Kind,
    name: OsString,
    contents: bool,
}

impl Described {
    fn of(info: &TransferInfo) -> Self {
        let kind = match info.kind() {
            FileKind::File => Kind::File,
            FileKind::Folder => Kind::Folder,
            FileKind::Symlink => Kind::Symlink,
            FileKind::Special | FileKind::Unspecified => Kind::Other,
        };
        Self { kind, name: OsString::from_vec(info.name.clone()), contents: info.contents }
    }

    fn copied(&self) -> Copied<'_> {
        let name = (!self.name.is_empty()).then_some(self.name.as_os_str());
        Copied { kind: self.kind, name, contents: self.contents }
    }
}

fn place_error(error: boxlite_copy::TargetError) -> Error {
    let kind = match &error {
        boxlite_copy::TargetError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            ErrorKind::NotFound
        }
        boxlite_copy::TargetError::Open { .. } => ErrorKind::Storage,
        _ => ErrorKind::InvalidArgument,
    };
    Error::new(kind, OUT).with_source(error)
}

fn unpack_error(error: boxlite_copy::UnpackError) -> Error {
    use boxlite_copy::UnpackError as Unpack;
    let kind = match &error {
        Unpack::Exists(_) => ErrorKind::AlreadyExists,
        Unpack::Kind(_) => ErrorKind::InvalidArgument,
        // The box, not the host, is to blame.
        Unpack::Stream(_)
        | Unpack::Name { .. }
        | Unpack::NoFolder(_)
        | Unpack::Announced
        | Unpack::Link(_)
        | Unpack::Device(_) => ErrorKind::Portal,
        _ => ErrorKind::Storage,
    };
    Error::new(kind, OUT).with_source(error)
}
