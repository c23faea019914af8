//! What RocksDB says, told by what the caller can do about it.

use atlas_kvs::{KvsError, TableRef};
use rocksdb::ErrorKind;
use std::fmt::Write;
use std::io;
use std::path::Path;

/// A read failed; nothing was changed.
pub(crate) fn read_failed(table: &TableRef, error: rocksdb::Error) -> KvsError {
    match error.kind() {
        ErrorKind::Corruption => KvsError::corrupt(format!("table '{table}'"), error.into_string()),
        ErrorKind::IOError
        | ErrorKind::Incomplete
        | ErrorKind::TimedOut
        | ErrorKind::Aborted
        | ErrorKind::Busy
        | ErrorKind::TryAgain => unavailable(format!("a read of table '{table}' failed: {error}"), error),
        // The table was dropped between the look-up of its column family and the read.
        ErrorKind::ColumnFamilyDropped => KvsError::NoSuchTable(table.clone()),
        ErrorKind::ShutdownInProgress => KvsError::Closed,
        _ => KvsError::Backend {
            reason: format!("a read of table '{table}' failed: {error}"),
            source: Some(Box::new(error)),
        },
    }
}

/// The database could not be opened.
pub(crate) fn open_failed(path: &Path, error: rocksdb::Error) -> KvsError {
    let said = error.to_string();
    let says = |texts: &[&str]| texts.iter().any(|text| said.contains(text));
    let place = path.display();
    if says(&["Permission denied", "Operation not permitted", "Read-only file system"]) {
        let denied = io::Error::new(io::ErrorKind::PermissionDenied, error);
        return KvsError::Backend { reason: format!("can't open {place}: {said}"), source: Some(Box::new(denied)) };
    }
    if says(&["No space left", "Disk quota exceeded"]) {
        return unavailable(format!("can't open {place}: {said}"), error);
    }
    if says(&["While lock file", "lock hold by current process"]) {
        return KvsError::InUse { place: place.to_string(), pid: None };
    }
    // Our files were listed or recorded a moment ago: one that is absent or short was lost, not never made.
    let damaged = error.kind() == ErrorKind::Corruption || says(&["No such file", "too short", "truncated"]);
    if damaged {
        return KvsError::corrupt(place.to_string(), said);
    }
    KvsError::Backend { reason: format!("can't open {place}: {said}"), source: Some(Box::new(error)) }
}

/// A directory or file beside the database could not be used.
pub(crate) fn io_failed(doing: &str, path: &Path, error: io::Error) -> KvsError {
    let reason = format!("can't {doing} {}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::Interrupted => {
            KvsError::Unavailable { reason, source: Some(Box::new(error)) }
        }
        _ => KvsError::Backend { reason, source: Some(Box::new(error)) },
    }
}

/// Nothing was applied; try again.
pub(crate) fn unavailable(reason: String, error: rocksdb::Error) -> KvsError {
    KvsError::Unavailable { reason, source: Some(Box::new(error)) }
}

/// A key that this crate can't have written.
pub(crate) fn corrupt_key(table: &TableRef, key: &[u8]) -> KvsError {
    let mut reason = String::from("no cell has the key ");
    for byte in key {
        write!(reason, "{byte:02x}").expect("a string takes everything that is written to it");
    }
    KvsError::corrupt(format!("table '{table}'"), reason)
}
