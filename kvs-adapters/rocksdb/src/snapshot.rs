//! Live snapshots: a RocksDB checkpoint, laid out as a data directory.
//!
//! ```text
//!   data_dir/staging/<name>/db/   *.sst      hard links: no bytes are copied, and compaction can't take them away
//!                                 *.log      copied up to where the log stood
//!                                 MANIFEST-* copied, CURRENT and OPTIONS-* written anew
//! ```
//!
//! The checkpoint is told never to flush first. A flush would turn every memtable into a small table file, as many as
//! there are tables, for compaction to merge again, and writers could come to wait for it; instead the log is copied,
//! which is at most `wal_bytes_max` long, and replayed by whoever opens the copy. Whoever copies a snapshot away opens
//! it as a store: it has everything but an owner.

use crate::db::Db;
use crate::errors::{io_failed, unavailable};
use crate::owner::make_private_dir;
use atlas_kvs::{KvsError, Result, SnapshotSummary};
use rocksdb::checkpoint::Checkpoint;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// RocksDB's word for "copy the log, however long it is".
const NEVER_FLUSH: u64 = u64::MAX;

/// Where snapshots are made.
pub(crate) fn staging_root(data_dir: &Path) -> PathBuf {
    data_dir.join("staging")
}

/// Makes the staging directory, and removes what an earlier owner left in it: without that owner no one knows
/// whether a snapshot there is whole.
pub(crate) fn clear_staging(data_dir: &Path) -> Result<()> {
    let root = staging_root(data_dir);
    make_private_dir(&root)?;
    let entries = fs::read_dir(&root).map_err(|error| io_failed("list", &root, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| io_failed("list", &root, error))?;
        let path = entry.path();
        let is_dir = entry.file_type().map_err(|error| io_failed("look at", &path, error))?.is_dir();
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|error| io_failed("remove", &path, error))?;
    }
    Ok(())
}

/// Makes a snapshot in `directory`. Blocks; no table may be created, truncated or dropped meanwhile, because the
/// copied log could then name a column family that the copied manifest does not know.
pub(crate) fn snapshot_into(db: &Db, staging_root: &Path, directory: &Path) -> Result<SnapshotSummary> {
    let inside = directory.strip_prefix(staging_root).is_ok_and(|rest| {
        rest.components().next().is_some()
            && rest.components().all(|part| matches!(part, std::path::Component::Normal(_)))
    });
    if !inside || directory.exists() {
        let wrong = if inside { "exists already".to_owned() } else { format!("is not in {}", staging_root.display()) };
        let reason = format!("no snapshot can be made in {}, which {wrong}", directory.display());
        return Err(KvsError::Backend { reason, source: None });
    }
    let made = make_snapshot(db, directory);
    if made.is_err() {
        // A half snapshot is of no use to anyone; if it can't be removed, the next opener does it.
        let _ = fs::remove_dir_all(directory);
    }
    made
}

fn make_snapshot(db: &Db, directory: &Path) -> Result<SnapshotSummary> {
    make_private_dir(directory)?;
    // First, so that what was acknowledged without a sync is in the copy and durable here too.
    db.sync()?;
    let checkpoint = directory.join("db");
    Checkpoint::new(&db.rocks)
        .and_then(|maker| maker.create_checkpoint_with_log_size(&checkpoint, NEVER_FLUSH))
        .map_err(|error| {
            unavailable(format!("no snapshot could be made in {}: {error}", directory.display()), error)
        })?;
    let summary = sync_files(&checkpoint)?;
    for dir in [&checkpoint, directory].into_iter().chain(directory.parent()) {
        sync(dir)?;
    }
    Ok(summary)
}

/// Syncs what was copied and counts everything. Table files are links to files that RocksDB synced when it wrote them.
fn sync_files(dir: &Path) -> Result<SnapshotSummary> {
    let mut summary = SnapshotSummary::default();
    for entry in fs::read_dir(dir).map_err(|error| io_failed("list", dir, error))? {
        let path = entry.map_err(|error| io_failed("list", dir, error))?.path();
        let metadata = fs::metadata(&path).map_err(|error| io_failed("look at", &path, error))?;
        if path.extension().is_none_or(|extension| extension != "sst") {
            sync(&path)?;
        }
        summary.files += 1;
        summary.bytes += metadata.len();
    }
    Ok(summary)
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| io_failed("sync", path, error))
}
