//! A table as this process knows it: where it lies, its statements, and what was learnt of its index.

use crate::buckets::Buckets;
use crate::names;
use crate::statement::{Statement, Use};
use atlas_kvs::{TableKind, TableRef};
use uuid::Uuid;

/// One incarnation of a table. It ends when the table is dropped or emptied.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: TableRef,
    pub(crate) kind: TableKind,
    pub(crate) id: Uuid,
    pub(crate) buckets: Buckets,
    pub(crate) cells: Cells,
    pub(crate) index: Index,
}

/// The statements on the cells of a table.
#[derive(Debug)]
pub(crate) enum Cells {
    Versioned(Box<Versioned>),
    Atomic(Box<Atomic>),
}

#[derive(Debug)]
pub(crate) struct Versioned {
    /// r, c, bound: the newest version below.
    pub(crate) newest: Statement,
    /// r, c, bound: all versions below, oldest first, without their values. Asks all replicas.
    pub(crate) versions: Statement,
    /// r, c, bound: timestamps and write timestamps of all versions below, oldest first. Asks all replicas.
    pub(crate) write_times: Statement,
    /// r, c, ts, len, head, rest, write timestamp.
    pub(crate) put: Statement,
    /// Write timestamp, r, c, ts: one version. Waits for all replicas.
    pub(crate) delete: Statement,
}

#[derive(Debug)]
pub(crate) struct Atomic {
    /// r, c.
    pub(crate) get: Statement,
    /// r, c, value.
    pub(crate) insert: Statement,
    /// Value, r, c, expected value.
    pub(crate) replace: Statement,
    /// r, c, expected value.
    pub(crate) remove: Statement,
}

/// The statements on the index of a table. `kind` tells what a row of a bucket is.
#[derive(Debug)]
pub(crate) struct Index {
    /// Bucket, kind, key, write timestamp.
    pub(crate) put: Statement,
    /// Write timestamp, bucket, kind, key.
    pub(crate) remove: Statement,
    /// Bucket, kind: all keys.
    pub(crate) keys: Statement,
    /// Bucket, kind, number of keys: the first keys.
    pub(crate) first: Statement,
    /// Bucket, lower kind and key (inclusive), upper kind and key (exclusive), number: keys with write timestamps.
    pub(crate) forward: Statement,
    /// The same, the last key first.
    pub(crate) backward: Statement,
}

impl Table {
    pub(crate) fn new(keyspace: &str, name: TableRef, kind: TableKind, id: Uuid, keys_max: usize) -> Table {
        let cells = format!("{keyspace}.{}", names::cells(&name, kind, id));
        let index = format!("{keyspace}.{}", names::index(&name, id));
        let cells = match kind {
            TableKind::Versioned => Cells::Versioned(Box::new(Versioned::new(&cells))),
            TableKind::Atomic => Cells::Atomic(Box::new(Atomic::new(&cells))),
        };
        Table { name, kind, id, buckets: Buckets::new(keys_max), cells, index: Index::new(&index) }
    }

    /// The statements of a versioned table, which whoever has one of another kind must not ask for.
    pub(crate) fn versioned(&self) -> &Versioned {
        match &self.cells {
            Cells::Versioned(versioned) => versioned,
            Cells::Atomic(_) => unreachable!("the kind was checked when the table was looked up"),
        }
    }

    pub(crate) fn atomic(&self) -> &Atomic {
        match &self.cells {
            Cells::Atomic(atomic) => atomic,
            Cells::Versioned(_) => unreachable!("the kind was checked when the table was looked up"),
        }
    }

    /// What makes the CQL tables. Nothing happens to those that are there.
    pub(crate) fn definitions(keyspace: &str, name: &TableRef, kind: TableKind, id: Uuid) -> [String; 2] {
        let cells = format!("{keyspace}.{}", names::cells(name, kind, id));
        let index = format!("{keyspace}.{}", names::index(name, id));
        let (cells_id, index_id) = (names::derived_id(id, "cells"), names::derived_id(id, "index"));
        // Leveled: a cell that is often written is then in few files, whatever its age.
        let leveled = "compaction = {'class': 'LeveledCompactionStrategy'}";
        let cells = match kind {
            TableKind::Versioned => format!(
                "CREATE TABLE IF NOT EXISTS {cells} \
                 (r blob, c blob, ts bigint, len int, head blob, rest blob, PRIMARY KEY ((r, c), ts)) \
                 WITH CLUSTERING ORDER BY (ts DESC) AND ID = {cells_id} AND {leveled}"
            ),
            TableKind::Atomic => format!(
                "CREATE TABLE IF NOT EXISTS {cells} (r blob, c blob, v blob, PRIMARY KEY ((r, c))) \
                 WITH ID = {cells_id} AND {leveled}"
            ),
        };
        let index = format!(
            "CREATE TABLE IF NOT EXISTS {index} \
             (bucket blob, kind tinyint, key blob, x boolean, PRIMARY KEY ((bucket), kind, key)) \
             WITH ID = {index_id} AND {leveled}"
        );
        [cells, index]
    }

    /// What removes the CQL tables.
    pub(crate) fn removals(keyspace: &str, name: &TableRef, kind: TableKind, id: Uuid) -> [String; 2] {
        [names::cells(name, kind, id), names::index(name, id)]
            .map(|table| format!("DROP TABLE IF EXISTS {keyspace}.{table}"))
    }
}

impl Versioned {
    fn new(cells: &str) -> Versioned {
        let of_cell = format!("FROM {cells} WHERE r = ? AND c = ?");
        Versioned {
            newest: Statement::new(Use::Read, format!("SELECT ts, len, head, rest {of_cell} AND ts < ? LIMIT 1")),
            versions: Statement::new(
                Use::ReadAll,
                format!("SELECT ts, len, head {of_cell} AND ts < ? ORDER BY ts ASC"),
            ),
            write_times: Statement::new(
                Use::ReadAll,
                format!("SELECT ts, WRITETIME(len) {of_cell} AND ts < ? ORDER BY ts ASC"),
            ),
            put: Statement::new(
                Use::Write,
                format!("INSERT INTO {cells} (r, c, ts, len, head, rest) VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?"),
            ),
            delete: Statement::new(
                Use::Delete,
                format!("DELETE FROM {cells} USING TIMESTAMP ? WHERE r = ? AND c = ? AND ts = ?"),
            ),
        }
    }
}

impl Atomic {
    fn new(cells: &str) -> Atomic {
        let lightweight = |text| Statement::new(Use::Lightweight, text);
        Atomic {
            get: Statement::new(Use::ReadSerial, format!("SELECT v FROM {cells} WHERE r = ? AND c = ?")),
            insert: lightweight(format!("INSERT INTO {cells} (r, c, v) VALUES (?, ?, ?) IF NOT EXISTS")),
            replace: lightweight(format!("UPDATE {cells} SET v = ? WHERE r = ? AND c = ? IF v = ?")),
            remove: lightweight(format!("DELETE FROM {cells} WHERE r = ? AND c = ? IF v = ?")),
        }
    }
}

impl Index {
    fn new(index: &str) -> Index {
        let slice = |order: &str| {
            let text = format!(
                "SELECT key, WRITETIME(x) FROM {index} WHERE bucket = ? AND (kind, key) >= (?, ?) \
                 AND (kind, key) < (?, ?) ORDER BY kind {order}, key {order} LIMIT ?"
            );
            Statement::new(Use::Read, text)
        };
        Index {
            put: Statement::new(
                Use::Write,
                format!("INSERT INTO {index} (bucket, kind, key, x) VALUES (?, ?, ?, true) USING TIMESTAMP ?"),
            ),
            remove: Statement::new(
                Use::Write,
                format!("DELETE FROM {index} USING TIMESTAMP ? WHERE bucket = ? AND kind = ? AND key = ?"),
            ),
            keys: Statement::new(Use::Read, format!("SELECT key FROM {index} WHERE bucket = ? AND kind = ?")),
            first: Statement::new(Use::Read, format!("SELECT key FROM {index} WHERE bucket = ? AND kind = ? LIMIT ?")),
            forward: slice("ASC"),
            backward: slice("DESC"),
        }
    }
}
