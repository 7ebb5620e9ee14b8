//! The table of volumes.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};

use super::{Store, StoreError};

const COLUMNS: &str = "SELECT name, created_unix_nanos, quota_bytes, anonymous, labels FROM volumes";

/// A volume of the home, as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeRow {
    pub(crate) name: String,
    pub(crate) created_unix_nanos: u64,
    pub(crate) quota_bytes: Option<u64>,
    /// It belongs to the box that it was made for, and goes with it.
    pub(crate) anonymous: bool,
    pub(crate) labels: BTreeMap<String, String>,
}

impl VolumeRow {
    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        let labels: String = row.get(4)?;
        Ok(Self {
            name: row.get(0)?,
            created_unix_nanos: row.get::<_, i64>(1)?.unsigned_abs(),
            quota_bytes: row.get::<_, Option<i64>>(2)?.map(i64::unsigned_abs),
            anonymous: row.get(3)?,
            // Written by us; a later version may know more of it.
            labels: serde_json::from_str(&labels).unwrap_or_default(),
        })
    }
}

impl Store {
    /// Adds a volume, unless there is one of its name. Gives the one that is there then, and whether it was added.
    pub(crate) fn add_volume(&self, volume: &VolumeRow) -> Result<(VolumeRow, bool), StoreError> {
        let failed = self.failed("add a volume to");
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let labels = serde_json::to_string(&volume.labels)
            .map_err(|source| StoreError::Record { id: volume.name.clone(), source })?;
        self.with(|connection| {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
            if let Some(there) = one(&transaction, &volume.name).map_err(&failed)? {
                return Ok((there, false));
            }
            transaction
                .execute(
                    "INSERT INTO volumes (name, created_unix_nanos, quota_bytes, anonymous, labels) VALUES (?, ?, ?, ?, ?)",
                    params![
                        volume.name,
                        number(volume.created_unix_nanos),
                        volume.quota_bytes.map(number),
                        volume.anonymous,
                        labels
                    ],
                )
                .map_err(&failed)?;
            transaction.commit().map_err(&failed)?;
            Ok((volume.clone(), true))
        })
    }

    /// The volume of this name.
    pub(crate) fn volume(&self, name: &str) -> Result<Option<VolumeRow>, StoreError> {
        let failed = self.failed("read");
        self.with(|connection| one(connection, name).map_err(&failed))
    }

    /// All volumes, by name.
    pub(crate) fn volumes(&self) -> Result<Vec<VolumeRow>, StoreError> {
        let failed = self.failed("read");
        self.with(|connection| {
            let mut statement = connection.prepare(&format!("{COLUMNS} ORDER BY name")).map_err(&failed)?;
            let rows = statement.query_map([], VolumeRow::of).map_err(&failed)?;
            rows.collect::<rusqlite::Result<Vec<_>>>().map_err(&failed)
        })
    }

    /// Takes a volume away, if it is there.
    pub(crate) fn delete_volume(&self, name: &str) -> Result<(), StoreError> {
        let failed = self.failed("remove a volume from");
        self.with(|connection| {
            connection.execute("DELETE FROM volumes WHERE name = ?", [name]).map(drop).map_err(&failed)
        })
    }
}

fn one(connection: &Connection, name: &str) -> rusqlite::Result<Option<VolumeRow>> {
    connection.query_row(&format!("{COLUMNS} WHERE name = ?"), [name], VolumeRow::of).optional()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str) -> VolumeRow {
        VolumeRow {
            name: name.into(),
            created_unix_nanos: 7,
            quota_bytes: Some(1 << 40),
            anonymous: false,
            labels: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
        }
    }

    #[test]
    fn a_volume_comes_back_as_it_was_added_and_is_added_once() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        assert_eq!(store.add_volume(&row("v")).unwrap(), (row("v"), true));
        let other = VolumeRow { quota_bytes: None, ..row("v") };
        assert_eq!(store.add_volume(&other).unwrap(), (row("v"), false));
        store.add_volume(&row("a")).unwrap();
        assert_eq!(store.volumes().unwrap(), [row("a"), row("v")]);
        store.delete_volume("v").unwrap();
        store.delete_volume("v").unwrap();
        assert_eq!(store.volume("v").unwrap(), None);
    }

    #[test]
    fn a_database_of_the_first_version_gets_the_table() {
        let home = tempfile::tempdir().unwrap();
        let first = Connection::open(home.path().join(super::super::FILE)).unwrap();
        first.execute_batch(super::super::MIGRATIONS[0]).unwrap();
        first.pragma_update(None, "user_version", 1).unwrap();
        drop(first);
        let store = Store::open(home.path()).unwrap();
        store.add_volume(&row("v")).unwrap();
        assert_eq!(store.ids().unwrap(), [""; 0]);
    }
}
