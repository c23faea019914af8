//! Removes entries of the index that lead nowhere.
//!
//! An entry outlives the versions of its cell: while somebody deletes the last one, somebody else may be putting another,
//! and its entry must stay. Scans tell of entries whose cell showed nothing. One is removed when three things are true,
//! looked at in this order:
//!
//! 1. it was written long ago (`index_grace`), so no put that wrote this entry, or an older one, can still return:
//!    puts are given up after a fraction of that time;
//! 2. after that was seen, all replicas say that the cell is empty;
//! 3. it was not written again: the removal carries the write timestamp of the entry that was seen, and every newer one
//!    wins over it.
//!
//! Rows that were deleted as a whole may never be scanned again, so the reaper comes back to them by itself when their
//! entries are old enough. A process that ends before leaves them to a scan, or to the next deletion of these rows.

use crate::buckets::{ENTRY, partition};
use crate::clock::Clock;
use crate::errors::Attempt;
use crate::read::cell_of;
use crate::scan::rows_range;
use crate::session::Cluster;
use crate::table::Table;
use crate::walk::{IndexEntry, Walk};
use atlas_kvs::{RowRange, TableKind, Timestamp};
use std::sync::{Arc, Weak};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Entries that wait; further ones are told of again by the next scan.
const WAITING_MAX: usize = 1_024;

/// How often the rows of one deletion are come back to, if something was in the way: a node that was down, or a clock that
/// ran ahead when an entry was written.
const VISITS_MAX: u32 = 20;
/// Entries that are fetched at a time on the way back to deleted rows.
const PAGE: usize = 256;

/// Where scans leave what they have met, and deletions what they have deleted.
#[derive(Clone, Debug)]
pub(crate) struct Reaper {
    met: mpsc::Sender<(Arc<Table>, IndexEntry)>,
    deleted: mpsc::Sender<Deleted>,
}

/// Rows of which everything was deleted.
#[derive(Debug)]
struct Deleted {
    table: Arc<Table>,
    rows: RowRange,
    at: Instant,
    /// How often somebody has come back already.
    visits: u32,
}

impl Reaper {
    /// Works until the cluster is closed or forgotten.
    pub(crate) fn start(cluster: &Arc<Cluster>) -> Reaper {
        let (met, mut waiting) = mpsc::channel::<(Arc<Table>, IndexEntry)>(WAITING_MAX);
        let deleted = come_back(cluster);
        let cluster: Weak<Cluster> = Arc::downgrade(cluster);
        tokio::spawn(async move {
            while let Some((table, entry)) = waiting.recv().await {
                let Some(cluster) = cluster.upgrade().filter(|cluster| cluster.check_open().is_ok()) else { return };
                if let Err(trouble) = cluster.reap(&table, &entry).await {
                    tracing::debug!(table = %table.name, ?trouble, "an entry of the index stays for now");
                }
            }
        });
        Reaper { met, deleted }
    }

    /// Takes note of rows that were deleted.
    pub(crate) fn come_back_to(&self, table: &Arc<Table>, rows: RowRange) {
        // No matter if there are too many: the next deletion of these rows, or a scan, finds them.
        let _ = self.deleted.try_send(Deleted { table: Arc::clone(table), rows, at: Instant::now(), visits: 0 });
    }

    /// Takes note of an entry whose cell showed nothing.
    pub(crate) fn tell(&self, cluster: &Cluster, table: &Arc<Table>, entry: IndexEntry) {
        if Clock::is_older(entry.written, cluster.config.index_grace) {
            // No matter if there are too many.
            let _ = self.met.try_send((Arc::clone(table), entry));
        }
    }
}

/// Works as the other one does, on deleted rows whose entries have become old.
fn come_back(cluster: &Arc<Cluster>) -> mpsc::Sender<Deleted> {
    let (deleted, mut waiting) = mpsc::channel::<Deleted>(WAITING_MAX);
    // Weak: the last one who tells of deletions ends the task.
    let again = deleted.downgrade();
    // Twice: an entry that was written right before the deletion must have become old, and not nearly.
    let grace = cluster.config.index_grace * 2;
    let cluster: Weak<Cluster> = Arc::downgrade(cluster);
    tokio::spawn(async move {
        while let Some(Deleted { table, rows, at, visits }) = waiting.recv().await {
            tokio::time::sleep_until(at + grace).await;
            let Some(cluster) = cluster.upgrade().filter(|cluster| cluster.check_open().is_ok()) else { return };
            let left = match cluster.reap_rows(&table, &rows).await {
                Ok(left) => left,
                Err(trouble) => {
                    tracing::debug!(table = %table.name, ?trouble, "the index of deleted rows stays for now");
                    true
                }
            };
            if left
                && visits < VISITS_MAX
                && let Some(again) = again.upgrade()
            {
                let _ = again.try_send(Deleted { table, rows, at: Instant::now(), visits: visits + 1 });
            }
        }
    });
    deleted
}

impl Cluster {
    /// Answers whether entries were too young.
    async fn reap_rows(&self, table: &Table, rows: &RowRange) -> Attempt<bool> {
        let mut walk = Walk::new(rows_range(rows), false, PAGE);
        let mut young = false;
        loop {
            self.check_open()?;
            let mut old = Vec::with_capacity(PAGE);
            let mut is_last = false;
            while old.len() < PAGE && !is_last {
                match walk.next(self, table).await? {
                    Some(entry) if Clock::is_older(entry.written, self.config.index_grace) => old.push(entry),
                    Some(_) => young = true,
                    None => is_last = true,
                }
            }
            self.each(&old, |entry| self.reap(table, entry)).await?;
            if is_last {
                return Ok(young);
            }
        }
    }

    async fn reap(&self, table: &Table, entry: &IndexEntry) -> Attempt<()> {
        let cell = cell_of(&entry.key, table)?;
        let empty = match table.kind {
            TableKind::Versioned => self.versions_of(table, &cell, Timestamp::MAX).await?.is_empty(),
            // Linearizable: what was proposed before is decided by it.
            TableKind::Atomic => self.value_of(table, &cell).await?.is_none(),
        };
        if empty {
            let values = (entry.written, partition(&entry.prefix), ENTRY, &entry.key);
            self.write(&table.index.remove, &values, "removing an entry of the index").await?;
        }
        Ok(())
    }
}
