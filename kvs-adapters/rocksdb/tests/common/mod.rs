//! Short words for what the tests of this store say over and over.

#![allow(dead_code, reason = "each test file uses some of them")]

use atlas_kvs::{Cell, CellBound, KeyValueService, RowRange, Scan, TableKind, TableRef, Timestamp, Value};
use atlas_kvs_rocksdb::{RocksConfig, RocksStore};
use bytes::Bytes;
use futures::TryStreamExt;
use std::path::Path;
use std::time::Duration;

pub(crate) fn table(name: &str) -> TableRef {
    TableRef::new(name).expect("the name is a table name")
}

pub(crate) fn ts(number: u64) -> Timestamp {
    Timestamp::new(number).expect("the number is a timestamp")
}

pub(crate) fn value(number: u64, content: impl AsRef<[u8]>) -> Value {
    Value { ts: ts(number), bytes: Bytes::copy_from_slice(content.as_ref()) }
}

pub(crate) fn config(dir: &Path) -> RocksConfig {
    RocksConfig { wait_for_owner: Duration::from_millis(100), ..RocksConfig::new(dir) }
}

pub(crate) async fn open(dir: &Path) -> RocksStore {
    RocksStore::open(config(dir)).await.expect("the store opens")
}

pub(crate) async fn versioned(store: &RocksStore, name: &str) -> TableRef {
    let table = table(name);
    store.create_table(&table, TableKind::Versioned, Bytes::new()).await.expect("a table can be created");
    table
}

/// The newest value of a cell as text.
pub(crate) async fn get(store: &RocksStore, table: &TableRef, row: &str, column: &str) -> Option<String> {
    let bound = CellBound::new(Cell::copy_from(row, column), Timestamp::MAX);
    let found = store.get(table, &[bound]).await.expect("a cell can be read");
    found[0].as_ref().map(|value| String::from_utf8_lossy(&value.bytes).into_owned())
}

pub(crate) async fn scan(store: &RocksStore, table: &TableRef) -> Vec<(Cell, Value)> {
    let request = Scan::new(RowRange::all(), Timestamp::MAX);
    store.scan(table, request).try_collect().await.expect("a table can be scanned")
}

/// Opens the database below a closed store with nothing but RocksDB.
pub(crate) fn raw(dir: &Path) -> rocksdb::DB {
    let path = dir.join("db");
    let options = rocksdb::Options::default();
    let families = rocksdb::DB::list_cf(&options, &path).expect("the families can be listed");
    rocksdb::DB::open_cf(&options, &path, families).expect("RocksDB opens")
}

/// The one column family of a table.
pub(crate) fn family_of(dir: &Path, table: &TableRef) -> String {
    let families = rocksdb::DB::list_cf(&rocksdb::Options::default(), dir.join("db")).expect("they can be listed");
    let prefix = format!("t.{table}~");
    let mut of_table = families.into_iter().filter(|name| name.starts_with(&prefix));
    of_table.next().expect("the table has a family")
}
