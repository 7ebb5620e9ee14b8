//! What can go wrong with a file, in the terms of the portal.

use std::io;

use boxlite_portal::v1::{TransferFailure, transfer_failure};
use nix::errno::Errno;
use tonic::{Code, Status};

/// What a failure is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something that is needed is not there.
    NotFound,
    /// Something is in the way.
    AlreadyExists,
    /// The system forbids it.
    PermissionDenied,
    /// What is there is of another kind than asked for.
    WrongKind,
    /// A limit of the machine.
    NoSpace,
    /// The request makes no sense.
    Invalid,
    /// Anything else.
    Other,
}

/// A failure, with a sentence that says what was attempted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FileError {
    /// What it is about.
    pub kind: Kind,
    /// The sentence.
    pub message: String,
}

impl FileError {
    /// A failure of this kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// What the system said to an attempt, such as `open`, on a path.
    pub fn system(attempt: &str, path: &[u8], error: &io::Error) -> Self {
        let reason = match error.raw_os_error() {
            Some(code) => Errno::from_raw(code).desc().to_owned(),
            None => error.to_string(),
        };
        Self::new(kind_of(error), format!("cannot {attempt} {}: {reason}", path.escape_ascii()))
    }
}

/// The kind of an error of the system's.
pub fn kind_of(error: &io::Error) -> Kind {
    if error.raw_os_error() == Some(libc::ELOOP) {
        return Kind::WrongKind;
    }
    match error.kind() {
        io::ErrorKind::NotFound => Kind::NotFound,
        io::ErrorKind::AlreadyExists => Kind::AlreadyExists,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Kind::PermissionDenied,
        io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::DirectoryNotEmpty
        | io::ErrorKind::CrossesDevices => Kind::WrongKind,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::NoSpace,
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidFilename => Kind::Invalid,
        _ => Kind::Other,
    }
}

impl From<FileError> for Status {
    fn from(error: FileError) -> Self {
        let code = match error.kind {
            Kind::NotFound => Code::NotFound,
            Kind::AlreadyExists => Code::AlreadyExists,
            Kind::PermissionDenied => Code::PermissionDenied,
            Kind::WrongKind => Code::FailedPrecondition,
            Kind::NoSpace => Code::ResourceExhausted,
            Kind::Invalid => Code::InvalidArgument,
            Kind::Other => Code::Unknown,
        };
        Self::new(code, error.message)
    }
}

impl From<FileError> for TransferFailure {
    fn from(error: FileError) -> Self {
        use transfer_failure::Kind as Wire;
        let kind = match error.kind {
            Kind::NotFound => Wire::NotFound,
            Kind::AlreadyExists => Wire::AlreadyExists,
            Kind::PermissionDenied => Wire::PermissionDenied,
            Kind::WrongKind => Wire::WrongKind,
            Kind::NoSpace => Wire::NoSpace,
            Kind::Invalid => Wire::Invalid,
            Kind::Other => Wire::Other,
        };
        // A name may be long, a frame is not.
        let mut message = error.message;
        let cut = (0..=4096.min(message.len())).rev().find(|at| message.is_char_boundary(*at));
        message.truncate(cut.unwrap_or_default());
        Self { kind: kind.into(), message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_attempt_the_path_and_the_reason() {
        let error = FileError::system("open", b"/a\nb", &io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(error.to_string(), "cannot open /a\\nb: No such file or directory");
        assert_eq!(error.kind, Kind::NotFound);
    }

    #[test]
    fn every_code_of_the_system_that_users_meet_has_its_kind() {
        for (code, kind) in [
            (libc::ENOENT, Kind::NotFound),
            (libc::EEXIST, Kind::AlreadyExists),
            (libc::EACCES, Kind::PermissionDenied),
            (libc::EROFS, Kind::PermissionDenied),
            (libc::ENOTDIR, Kind::WrongKind),
            (libc::ENOTEMPTY, Kind::WrongKind),
            (libc::ELOOP, Kind::WrongKind),
            (libc::EXDEV, Kind::WrongKind),
            (libc::ENOSPC, Kind::NoSpace),
            (libc::EDQUOT, Kind::NoSpace),
            (libc::ENAMETOOLONG, Kind::Invalid),
            (libc::EIO, Kind::Other),
        ] {
            assert_eq!(kind_of(&io::Error::from_raw_os_error(code)), kind, "{code}");
        }
    }
}
