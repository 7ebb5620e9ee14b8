//! The database of a home: which boxes there are, and what each was asked to be.
//!
//! SQLite with a write-ahead log: readers never wait, writers wait for each other. A transaction is on the disk when it has
//! been committed. What a box *does* is not in here: its monitor publishes that in the box's folder.
//!
//! A row alone is no box, and a folder alone is none either: see `docs/storage.md` for the order of the two.
//!
//! How to change the schema: add a step to [`MIGRATIONS`], never touch one that is there; add a fixture of the version before
//! to the tests.

mod boxes;
mod error;
mod volumes;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

pub(crate) use error::StoreError;
pub(crate) use volumes::VolumeRow;

/// The file in the home folder.
pub(crate) const FILE: &str = "boxlite.db";
/// The index of its log, beside it for as long as it is open: a file that stands for memory.
pub(crate) const SHARED_MEMORY: &str = "boxlite.db-shm";
/// How long a writer waits for others. Each of them takes milliseconds.
const BUSY: Duration = Duration::from_secs(30);
/// How long one who cannot wait in SQLite sleeps before the next attempt.
const RETRY: Duration = Duration::from_millis(2);
/// Says in the file's header that it is ours: "BXLT".
const APPLICATION_ID: i32 = 0x4258_4c54;
/// Connections that are kept for the next who needs one.
const SPARE: usize = 4;

/// Each step leads from the version of its index to the next one. `user_version` in the file's header says which have been
/// made, and can be read without knowing the rest.
const MIGRATIONS: &[&str] = &[
    // 1: boxes.
    "CREATE TABLE boxes (
        id TEXT PRIMARY KEY NOT NULL,
        name TEXT UNIQUE,
        created_unix_nanos INTEGER NOT NULL,
        image_digest TEXT NOT NULL,
        record TEXT NOT NULL
    ) STRICT, WITHOUT ROWID",
    // 2: volumes.
    "CREATE TABLE volumes (
        name TEXT PRIMARY KEY NOT NULL,
        created_unix_nanos INTEGER NOT NULL,
        quota_bytes INTEGER,
        anonymous INTEGER NOT NULL,
        labels TEXT NOT NULL
    ) STRICT, WITHOUT ROWID",
];

/// The database.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    /// Connections that nobody uses now. Only taken out and put back under the lock, never used under it.
    spare: Mutex<Vec<Connection>>,
}

impl Store {
    /// Opens the database of a home, and makes it or brings it up to date.
    pub(crate) fn open(home: &Path) -> Result<Self, StoreError> {
        let store = Self { path: home.join(FILE), spare: Mutex::default() };
        let mut connection = store.connect()?;
        migrate(&mut connection, &store.path)?;
        store.put_back(connection);
        Ok(store)
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_back(&self, connection: Connection) {
        let mut spare = self.spare();
        if spare.len() < SPARE {
            spare.push(connection);
        }
    }

    fn connect(&self) -> Result<Connection, StoreError> {
        let failed = |source| StoreError::Open { path: self.path.clone(), source };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        // `NOFOLLOW` looks at every part of the path, and the home itself may be reached through a link.
        let path = self.path.parent().and_then(|home| home.canonicalize().ok()).map(|home| home.join(FILE));
        let connection =
            Connection::open_with_flags(path.as_ref().unwrap_or(&self.path), flags).map_err(failed)?;
        let prepare = || {
            connection.busy_timeout(BUSY)?;
            log_ahead(&connection)?;
            // A box that was created is there after a loss of power.
            connection.pragma_update(None, "synchronous", "full")?;
            connection.pragma_update(None, "foreign_keys", true)
        };
        prepare().map_err(failed)?;
        Ok(connection)
    }

    /// Runs something on a connection of its own.
    fn with<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let taken = self.spare().pop();
        let mut connection = match taken {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let done = work(&mut connection)?;
        // After an error a connection may be in any state, and is closed.
        self.put_back(connection);
        Ok(done)
    }

    fn failed(&self, what: &'static str) -> impl Fn(rusqlite::Error) -> StoreError + '_ {
        move |source| StoreError::Sql { what, path: self.path.clone(), source }
    }
}

/// Makes the database one with a write-ahead log, which it stays. SQLite does not wait for others who do the same at this
/// moment, as it does for other locks: two who both read and both want to write would wait for each other.
fn log_ahead(connection: &Connection) -> rusqlite::Result<()> {
    let until = Instant::now() + BUSY;
    loop {
        match connection.pragma_update(None, "journal_mode", "wal") {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && Instant::now() < until =>
            {
                std::thread::sleep(RETRY);
            }
            done => return done,
        }
    }
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Sql { what: "bring up to date", path: path.to_owned(), source };
    let version = |connection: &Connection| {
        let version = connection.pragma_query_value(None, "user_version", |row| row.get::<_, u32>(0));
        version.map(|version| usize::try_from(version).unwrap_or(usize::MAX)).map_err(failed)
    };
    let newer =
        |version: usize| StoreError::Newer { path: path.to_owned(), version, known: MIGRATIONS.len() };
    match version(connection)? {
        current if current == MIGRATIONS.len() => return Ok(()),
        current if current > MIGRATIONS.len() => return Err(newer(current)),
        _ => {}
    }
    // Under the lock of a writer: of several who come at once one does it, and the others find it done.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let current = version(&transaction)?;
    if current > MIGRATIONS.len() {
        return Err(newer(current));
    }
    for step in &MIGRATIONS[current..] {
        transaction.execute_batch(step).map_err(failed)?;
    }
    let last = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    transaction.pragma_update(None, "user_version", last).map_err(failed)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
    transaction.commit().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_of_a_later_version_is_left_alone_and_says_so() {
        let home = tempfile::tempdir().unwrap();
        drop(Store::open(home.path()).unwrap());
        let connection = Connection::open(home.path().join(FILE)).unwrap();
        connection.pragma_update(None, "user_version", 900).unwrap();
        let error = Store::open(home.path()).unwrap_err();
        assert!(matches!(error, StoreError::Newer { version: 900, .. }), "{error:?}");
    }

    #[test]
    fn a_file_that_is_no_database_is_an_error_and_stays_as_it_is() {
        let home = tempfile::tempdir().unwrap();
        let noise = "this is no database. ".repeat(1000);
        std::fs::write(home.path().join(FILE), &noise).unwrap();
        Store::open(home.path()).unwrap_err();
        assert_eq!(std::fs::read_to_string(home.path().join(FILE)).unwrap(), noise);
    }

    #[test]
    fn many_who_open_a_new_home_at_once_make_one_database() {
        for _ in 0..20 {
            let home = tempfile::tempdir().unwrap();
            let together = std::sync::Barrier::new(8);
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        together.wait();
                        drop(Store::open(home.path()).unwrap());
                    });
                }
            });
        }
    }

    #[test]
    fn a_home_behind_a_link_opens_and_a_database_behind_a_link_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        std::fs::create_dir(&home).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&home, &link).unwrap();
        drop(Store::open(&link).unwrap());
        let other = folder.path().join("other");
        std::fs::create_dir(&other).unwrap();
        std::os::unix::fs::symlink(home.join(FILE), other.join(FILE)).unwrap();
        Store::open(&other).unwrap_err();
    }
}
