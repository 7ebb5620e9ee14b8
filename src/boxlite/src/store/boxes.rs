//! The table of boxes.

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};

use super::{Store, StoreError};
use crate::record::BoxRecord;

/// What is read of a row.
const COLUMNS: &str = "SELECT id, name, created_unix_nanos, record FROM boxes";

/// A row as it is stored.
struct Raw {
    id: String,
    name: Option<String>,
    created_unix_nanos: u64,
    record: String,
}

impl Raw {
    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            name: row.get(1)?,
            created_unix_nanos: row.get::<_, i64>(2)?.unsigned_abs(),
            record: row.get(3)?,
        })
    }

    fn record(self) -> Result<BoxRecord, StoreError> {
        let Self { id, name, created_unix_nanos, record } = self;
        let decoded =
            BoxRecord::decode(&record).map_err(|source| StoreError::Record { id: id.clone(), source })?;
        Ok(BoxRecord { id, name, created_unix_nanos, ..decoded })
    }
}

impl Store {
    /// Adds a box. `is_gone` says of a box whether its folder has been removed: the monitor of one that removes itself
    /// leaves its row behind, which holds no name.
    pub(crate) fn insert(
        &self,
        record: &BoxRecord,
        is_gone: impl Fn(&str) -> bool,
    ) -> Result<(), StoreError> {
        let failed = self.failed("add a box to");
        let text = record.encode().map_err(|source| StoreError::Record { id: record.id.clone(), source })?;
        let created = i64::try_from(record.created_unix_nanos).unwrap_or(i64::MAX);
        self.with(|connection| {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
            if let Some(name) = &record.name {
                free_name(&transaction, name, is_gone, &failed)?;
            }
            transaction
                .execute(
                    "INSERT INTO boxes (id, name, created_unix_nanos, image_digest, record) VALUES (?, ?, ?, ?, ?)",
                    params![record.id, record.name, created, record.image_digest, text],
                )
                .map_err(&failed)?;
            transaction.commit().map_err(&failed)
        })
    }

    /// Whether a box could have this name.
    pub(crate) fn check_name(&self, name: &str, is_gone: impl Fn(&str) -> bool) -> Result<(), StoreError> {
        let failed = self.failed("read");
        let holder = self.with(|connection| holder(connection, name).map_err(&failed))?;
        match holder {
            Some(id) if !is_gone(&id) => Err(StoreError::NameTaken(name.to_owned())),
            _ => Ok(()),
        }
    }

    /// Gives a box another name, and returns the one before.
    pub(crate) fn rename(
        &self,
        id: &str,
        name: &str,
        is_gone: impl Fn(&str) -> bool,
    ) -> Result<Option<String>, StoreError> {
        let failed = self.failed("rename a box in");
        self.with(|connection| {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
            let before: Option<Option<String>> = transaction
                .query_row("SELECT name FROM boxes WHERE id = ?", [id], |row| row.get(0))
                .optional()
                .map_err(&failed)?;
            let before = before.ok_or_else(|| StoreError::NoBox(id.to_owned()))?;
            if before.as_deref() != Some(name) {
                free_name(&transaction, name, is_gone, &failed)?;
                transaction.execute("UPDATE boxes SET name = ? WHERE id = ?", [name, id]).map_err(&failed)?;
            }
            transaction.commit().map_err(&failed)?;
            Ok(before)
        })
    }

    /// Changes what a box is to be, and returns what it is then.
    pub(crate) fn update(
        &self,
        id: &str,
        change: impl FnOnce(&mut BoxRecord),
    ) -> Result<BoxRecord, StoreError> {
        let failed = self.failed("change a box in");
        self.with(|connection| {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
            let record = one(&transaction, "id = ?", id).map_err(&failed)?;
            let mut record = record.ok_or_else(|| StoreError::NoBox(id.to_owned()))?.record()?;
            change(&mut record);
            let text = record.encode().map_err(|source| StoreError::Record { id: id.to_owned(), source })?;
            transaction.execute("UPDATE boxes SET record = ? WHERE id = ?", [&text, id]).map_err(&failed)?;
            transaction.commit().map_err(&failed)?;
            Ok(record)
        })
    }

    /// Takes a box away, if it is there.
    pub(crate) fn delete(&self, id: &str) -> Result<(), StoreError> {
        let failed = self.failed("remove a box from");
        self.with(|connection| {
            connection.execute("DELETE FROM boxes WHERE id = ?", [id]).map(drop).map_err(&failed)
        })
    }

    /// The box of this id.
    pub(crate) fn get(&self, id: &str) -> Result<Option<BoxRecord>, StoreError> {
        self.one("id = ?", id)
    }

    /// The box of this name.
    pub(crate) fn by_name(&self, name: &str) -> Result<Option<BoxRecord>, StoreError> {
        self.one("name = ?", name)
    }

    fn one(&self, condition: &str, value: &str) -> Result<Option<BoxRecord>, StoreError> {
        let failed = self.failed("read");
        let raw = self.with(|connection| one(connection, condition, value).map_err(&failed))?;
        raw.map(Raw::record).transpose()
    }

    /// All boxes, the newest first. One whose record is damaged is left out, and told of in the log.
    pub(crate) fn all(&self) -> Result<Vec<BoxRecord>, StoreError> {
        let failed = self.failed("read");
        let raws = self.with(|connection| {
            let mut statement = connection
                .prepare(&format!("{COLUMNS} ORDER BY created_unix_nanos DESC, id"))
                .map_err(&failed)?;
            let rows = statement.query_map([], Raw::of).map_err(&failed)?;
            rows.collect::<rusqlite::Result<Vec<_>>>().map_err(&failed)
        })?;
        Ok(raws
            .into_iter()
            .filter_map(|raw| {
                let told = |error: &StoreError| tracing::warn!(%error, "a box cannot be read");
                raw.record().inspect_err(told).ok()
            })
            .collect())
    }

    /// Boxes whose id begins so, at most `most` of them. The start has been checked to be one of an id.
    pub(crate) fn by_start(&self, start: &str, most: usize) -> Result<Vec<BoxRecord>, StoreError> {
        let failed = self.failed("read");
        let raws = self.with(|connection| {
            // No id has a character behind `f`.
            let sql = format!("{COLUMNS} WHERE id >= ?1 AND id < ?1 || 'g' ORDER BY id LIMIT ?2");
            let mut statement = connection.prepare(&sql).map_err(&failed)?;
            let rows = statement
                .query_map(params![start, i64::try_from(most).unwrap_or(i64::MAX)], Raw::of)
                .map_err(&failed)?;
            rows.collect::<rusqlite::Result<Vec<_>>>().map_err(&failed)
        })?;
        raws.into_iter().map(Raw::record).collect()
    }

    /// The digest of each box's image, with what people call the box.
    pub(crate) fn images_in_use(&self) -> Result<Vec<(String, String)>, StoreError> {
        let failed = self.failed("read");
        self.with(|connection| {
            let sql = "SELECT image_digest, coalesce(name, id) FROM boxes";
            let mut statement = connection.prepare(sql).map_err(&failed)?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(&failed)?;
            rows.collect::<rusqlite::Result<Vec<_>>>().map_err(&failed)
        })
    }

    /// The ids of all boxes.
    pub(crate) fn ids(&self) -> Result<Vec<String>, StoreError> {
        let failed = self.failed("read");
        self.with(|connection| {
            let mut statement = connection.prepare("SELECT id FROM boxes").map_err(&failed)?;
            let rows = statement.query_map([], |row| row.get(0)).map_err(&failed)?;
            rows.collect::<rusqlite::Result<Vec<_>>>().map_err(&failed)
        })
    }
}

fn holder(connection: &Connection, name: &str) -> rusqlite::Result<Option<String>> {
    connection.query_row("SELECT id FROM boxes WHERE name = ?", [name], |row| row.get(0)).optional()
}

/// Sees to it that no row has this name.
fn free_name(
    connection: &Connection,
    name: &str,
    is_gone: impl Fn(&str) -> bool,
    failed: impl Fn(rusqlite::Error) -> StoreError,
) -> Result<(), StoreError> {
    match holder(connection, name).map_err(&failed)? {
        None => Ok(()),
        Some(id) if is_gone(&id) => {
            connection.execute("DELETE FROM boxes WHERE id = ?", [id]).map(drop).map_err(&failed)
        }
        Some(_) => Err(StoreError::NameTaken(name.to_owned())),
    }
}

fn one(connection: &Connection, condition: &str, value: &str) -> rusqlite::Result<Option<Raw>> {
    connection.query_row(&format!("{COLUMNS} WHERE {condition}"), [value], Raw::of).optional()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        (home, store)
    }

    fn record(id: &str, name: Option<&str>) -> BoxRecord {
        BoxRecord { id: id.into(), name: name.map(str::to_owned), ..BoxRecord::for_tests() }
    }

    fn nobody_is_gone(_: &str) -> bool {
        false
    }

    #[test]
    fn a_box_comes_back_as_it_was_added_by_id_and_by_name() {
        let (_home, store) = store();
        let added = record("0123456789ab", Some("web"));
        store.insert(&added, nobody_is_gone).unwrap();
        assert_eq!(store.get("0123456789ab").unwrap().as_ref(), Some(&added));
        assert_eq!(store.by_name("web").unwrap().as_ref(), Some(&added));
        assert_eq!(store.all().unwrap(), [added]);
        store.delete("0123456789ab").unwrap();
        assert_eq!(store.get("0123456789ab").unwrap(), None);
    }

    #[test]
    fn two_boxes_have_no_name_and_one_box_has_a_name() {
        let (_home, store) = store();
        store.insert(&record("0123456789a0", None), nobody_is_gone).unwrap();
        store.insert(&record("0123456789a1", None), nobody_is_gone).unwrap();
        store.insert(&record("0123456789a2", Some("web")), nobody_is_gone).unwrap();
        let error = store.insert(&record("0123456789a3", Some("web")), nobody_is_gone).unwrap_err();
        assert!(matches!(error, StoreError::NameTaken(_)));
        assert_eq!(
            store.rename("0123456789a0", "web", nobody_is_gone).unwrap_err().to_string(),
            error.to_string()
        );
        assert_eq!(store.ids().unwrap().len(), 3);
        assert_eq!(store.rename("0123456789a2", "www", nobody_is_gone).unwrap(), Some("web".into()));
        assert_eq!(store.rename("0123456789a0", "web", nobody_is_gone).unwrap(), None);
        assert_eq!(store.rename("0123456789a0", "web", nobody_is_gone).unwrap(), Some("web".into()));
    }

    #[test]
    fn a_box_that_has_removed_itself_gives_its_name_back() {
        let (_home, store) = store();
        store.insert(&record("0123456789a0", Some("web")), nobody_is_gone).unwrap();
        let gone = |id: &str| id == "0123456789a0";
        store.check_name("web", gone).unwrap();
        store.check_name("web", nobody_is_gone).unwrap_err();
        store.insert(&record("0123456789a1", Some("web")), gone).unwrap();
        assert_eq!(store.ids().unwrap(), ["0123456789a1"]);
    }

    #[test]
    fn the_start_of_an_id_finds_all_that_begin_so() {
        let (_home, store) = store();
        for id in ["ab0000000000", "abffffffffff", "ac0000000000"] {
            store.insert(&record(id, None), nobody_is_gone).unwrap();
        }
        let found = |start: &str| {
            store.by_start(start, 2).unwrap().into_iter().map(|record| record.id).collect::<Vec<_>>()
        };
        assert_eq!(found("ab"), ["ab0000000000", "abffffffffff"]);
        assert_eq!(found("abff"), ["abffffffffff"]);
        assert_eq!(found("ad"), [""; 0]);
    }

    #[test]
    fn a_change_is_made_whole_or_not_at_all() {
        let (_home, store) = store();
        store.insert(&record("0123456789ab", None), nobody_is_gone).unwrap();
        let changed = store.update("0123456789ab", |record| record.cpus = 7).unwrap();
        assert_eq!((changed.cpus, store.get("0123456789ab").unwrap().unwrap().cpus), (7, 7));
        assert!(matches!(store.update("ba9876543210", |_| {}), Err(StoreError::NoBox(_))));
    }

    #[test]
    fn a_damaged_record_hides_no_other_box() {
        let (home, store) = store();
        store.insert(&record("0123456789a0", None), nobody_is_gone).unwrap();
        store.insert(&record("0123456789a1", None), nobody_is_gone).unwrap();
        let connection = Connection::open(home.path().join(super::super::FILE)).unwrap();
        connection.execute("UPDATE boxes SET record = '{' WHERE id = '0123456789a0'", []).unwrap();
        assert_eq!(store.all().unwrap().len(), 1);
        assert!(matches!(store.get("0123456789a0"), Err(StoreError::Record { .. })));
    }

    #[test]
    fn writers_of_several_connections_lose_no_update() {
        let (home, store) = store();
        store.insert(&record("0123456789ab", None), nobody_is_gone).unwrap();
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let path = home.path().to_owned();
                std::thread::spawn(move || {
                    let store = Store::open(&path).unwrap();
                    for _ in 0..25 {
                        store.update("0123456789ab", |record| record.memory_mib += 1).unwrap();
                    }
                })
            })
            .collect();
        let before = BoxRecord::for_tests().memory_mib;
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        assert_eq!(store.get("0123456789ab").unwrap().unwrap().memory_mib, before + 100);
    }
}
