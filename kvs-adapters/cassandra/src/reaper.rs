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

use crate::buckets::{ENTRY, partition};
use crate::clock::Clock;
use crate::errors::Attempt;
use crate::read::cell_of;
use crate::session::Cluster;
use crate::table::Table;
use crate::walk::IndexEntry;
use atlas_kvs::{TableKind, Timestamp};
use std::sync::{Arc, Weak};
use tokio::sync::mpsc;

/// Entries that wait; further ones are told of again by the next scan.
const WAITING_MAX: usize = 1_024;

/// Where scans leave what they have met.
#[derive(Clone, Debug)]
pub(crate) struct Reaper {
    met: mpsc::Sender<(Arc<Table>, IndexEntry)>,
}

impl Reaper {
    /// Works until the cluster is closed or forgotten.
    pub(crate) fn start(cluster: &Arc<Cluster>) -> Reaper {
        let (met, mut waiting) = mpsc::channel::<(Arc<Table>, IndexEntry)>(WAITING_MAX);
        let cluster: Weak<Cluster> = Arc::downgrade(cluster);
        tokio::spawn(async move {
            while let Some((table, entry)) = waiting.recv().await {
                let Some(cluster) = cluster.upgrade().filter(|cluster| cluster.check_open().is_ok()) else { return };
                if let Err(trouble) = cluster.reap(&table, &entry).await {
                    tracing::debug!(table = %table.name, ?trouble, "an entry of the index stays for now");
                }
            }
        });
        Reaper { met }
    }

    /// Takes note of an entry whose cell showed nothing.
    pub(crate) fn tell(&self, cluster: &Cluster, table: &Arc<Table>, entry: IndexEntry) {
        if Clock::is_older(entry.written, cluster.config.index_grace) {
            // No matter if there are too many.
            let _ = self.met.try_send((Arc::clone(table), entry));
        }
    }
}

impl Cluster {
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
