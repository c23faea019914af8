//! Sorted loads: a table file is written beside the database and taken into it as a whole.
//!
//! Nothing goes through the log or a memtable, and compaction has nothing to merge: each byte is written once. The file lies
//! in the staging directory until then, which the next opener empties.

use crate::db::Db;
use crate::errors::{io_failed, unavailable};
use crate::keys;
use crate::owner::make_private_dir;
use crate::store::{check_ts, check_write};
use atlas_kvs::{Cell, KvsError, Result, SortedSink, TableRef, Timestamp};
use rocksdb::{ErrorKind, SstFileWriter};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

static NUMBER: AtomicU64 = AtomicU64::new(0);

pub(crate) fn load_sorted(
    db: &Db,
    staging_root: &Path,
    table: &TableRef,
    fill: &mut dyn FnMut(&mut SortedSink<'_>) -> Result<()>,
) -> Result<()> {
    // Before anything is written.
    db.check_versioned(table)?;
    make_private_dir(staging_root)?;
    let file = Unfinished(staging_root.join(format!("load-{}.sst", NUMBER.fetch_add(1, Ordering::Relaxed))));
    let options = db.table_options();
    let mut writer = SstFileWriter::create(&options);
    let failed = |error| write_failed(&file.0, error);
    writer.open(&file.0).map_err(failed)?;
    let mut is_empty = true;
    fill(&mut |cell: &Cell, ts: Timestamp, value: &[u8]| {
        check_ts(ts)?;
        check_write(cell, value)?;
        is_empty = false;
        writer.put(keys::of_version(cell, ts), value).map_err(|error| write_failed(&file.0, error))
    })?;
    if is_empty {
        return Ok(());
    }
    // Synced with it.
    writer.finish().map_err(failed)?;
    drop(writer);
    db.take_in(table, &file.0)
}

fn write_failed(path: &Path, error: rocksdb::Error) -> KvsError {
    let reason = format!("{} can't be written: {error}", path.display());
    match error.kind() {
        ErrorKind::IOError => unavailable(reason, error),
        _ => KvsError::Backend { reason, source: Some(Box::new(error)) },
    }
}

/// A file that is removed unless the database has it.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            let error = io_failed("remove", &self.0, error);
            tracing::warn!(%error, "a file stays until the store is opened again");
        }
    }
}
