//! Writing versions.
//!
//! A version and the entry that scans find its cell by are written at the same time, and the write returns when both
//! are on a quorum. Before that anything may be there of it: a version without an entry is one that never was
//! acknowledged, and an entry without a version is passed over by scans.

use crate::errors::{Attempt, Trouble, backend};
use crate::read::{key_of, number, split_value};
use crate::session::Cluster;
use crate::table::Table;
use atlas_kvs::{Cell, Timestamp, Value};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// How far the clock is put ahead where another process's clock was: at first, and at most.
const AHEAD_FIRST: Duration = Duration::from_millis(100);
const AHEAD_MAX: Duration = Duration::from_secs(3600);

/// Versions to write, by cell: however many a cell gets, it is entered in the index once.
#[derive(Debug, Default)]
pub(crate) struct Puts {
    cells: HashMap<Cell, Vec<Value>>,
}

impl Puts {
    pub(crate) fn add(&mut self, cell: Cell, value: Value) {
        self.cells.entry(cell).or_default().push(value);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }
}

impl Cluster {
    /// Writes versions of several tables, some cells at a time. After the first failure no more are begun.
    pub(crate) async fn put(&self, puts: &[(Arc<Table>, Puts)]) -> Attempt<()> {
        let mut writes = Vec::new();
        for (table, puts) in puts {
            writes.extend(puts.cells.iter().map(|(cell, values)| self.put_cell(table, cell, values)));
        }
        stream::iter(writes).buffer_unordered(self.config.concurrency).try_collect().await
    }

    async fn put_cell(&self, table: &Table, cell: &Cell, values: &[Value]) -> Attempt<()> {
        let key = key_of(cell);
        let versions: Vec<_> =
            values.iter().map(|value| self.put_version(table, cell, value.ts, &value.bytes)).collect();
        let versions = stream::iter(versions).buffer_unordered(self.config.concurrency).try_collect();
        let ((), ()) = futures::try_join!(self.enter(table, &key), versions)?;
        Ok(())
    }

    async fn put_version(&self, table: &Table, cell: &Cell, ts: Timestamp, value: &Bytes) -> Attempt<()> {
        let (head, rest) = split_value(value);
        let len = i32::try_from(value.len()).expect("the limit of values is below the greatest number");
        let values = (&cell.row, &cell.column, number(ts), len, head, rest, self.clock.next());
        self.write(&table.versioned().put, &values, "writing a version").await
    }

    /// A sentinel is the one version that is removed and written again, maybe by another process. One whose clock is
    /// behind that of the remover would write what the removal still hides, so what was written is read back, and written
    /// again by a later clock until it is there.
    pub(crate) async fn add_sentinels(&self, table: &Arc<Table>, cells: &[Cell]) -> Attempt<()> {
        let mut missing: BTreeSet<&Cell> = cells.iter().collect();
        let mut ahead = AHEAD_FIRST;
        loop {
            let mut puts = Puts::default();
            for cell in &missing {
                puts.add((*cell).clone(), Value { ts: Timestamp::SENTINEL, bytes: Bytes::new() });
            }
            self.put(&[(Arc::clone(table), puts)]).await?;
            let cells: Vec<&Cell> = missing.iter().copied().collect();
            let there = self.each(&cells, |cell| self.newest(table, cell, Timestamp::FIRST)).await?;
            missing =
                cells.into_iter().zip(there).filter_map(|(cell, there)| there.is_none().then_some(cell)).collect();
            let Some(first) = missing.first() else { return Ok(()) };
            if ahead > AHEAD_MAX {
                let reason = format!(
                    "the sentinel of {first} in table '{}' was removed by a process whose clock is more than {} s ahead",
                    table.name,
                    AHEAD_MAX.as_secs()
                );
                return Err(Trouble::Final(backend(reason, None)));
            }
            let by_ms = ahead.as_millis() as u64;
            tracing::warn!(table = %table.name, by_ms, "a clock of the cluster's users runs ahead; so do write timestamps now");
            self.clock.run_ahead(ahead);
            ahead *= 2;
        }
    }
}
