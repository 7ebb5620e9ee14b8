//! Why the database did not do what was asked.

use std::path::PathBuf;

use crate::error::{Error, ErrorKind};

/// See the module.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("cannot open the database {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("cannot {what} the database {path}")]
    Sql {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("the database {path} has version {version}, and this build knows versions up to {known}")]
    Newer { path: PathBuf, version: usize, known: usize },
    #[error("the record of box {id} in the database is damaged")]
    Record {
        id: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("there is a box named `{0}` already")]
    NameTaken(String),
    #[error("there is no box {0}")]
    NoBox(String),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        use rusqlite::ErrorCode;
        let code = match &error {
            StoreError::Open { source, .. } | StoreError::Sql { source, .. } => source.sqlite_error_code(),
            _ => None,
        };
        let (kind, hint) = match &error {
            StoreError::NameTaken(_) => {
                (ErrorKind::AlreadyExists, Some("choose another name, or remove that box"))
            }
            StoreError::NoBox(_) => (ErrorKind::NotFound, None),
            StoreError::Newer { .. } => (ErrorKind::Database, Some("use a newer boxlite")),
            _ => (
                ErrorKind::Database,
                match code {
                    Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                        Some("another process holds it for too long: is there a boxlite that was suspended?")
                    }
                    Some(ErrorCode::DiskFull) => Some("the disk of the home folder is full"),
                    Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                        Some("the home folder must be writable for this user")
                    }
                    Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Some(
                        "put a copy in its place, or move it away: boxes in `boxes/` are lost then, images are not",
                    ),
                    _ => None,
                },
            ),
        };
        let message = error.to_string();
        let outer = Self::new(kind, message).with_source_of(error);
        match hint {
            Some(hint) => outer.with_hint(hint),
            None => outer,
        }
    }
}
