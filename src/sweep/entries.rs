//! Lets entries of `_transactions` go, which would grow with every transaction for ever.
//!
//! An entry is needed for as long as somebody may ask for it. Below a *floor* nobody has to: a version that is still
//! there carries its commit timestamp itself, and a writer without an entry was rolled back.
//!
//! ```text
//!   start_ts    ●   ●   ○   ●   ┤ floor ├   ●   ●   ○
//!               gone, but for those whose       kept
//!               versions do not say it
//! ```
//!
//! The floor is written down before the first entry goes. It does not pass what the queue was worked off to, where all
//! writers have ended and are decided; nor a backup lock that is held; nor, after a restore, the timestamp that was
//! restored, until every table was walked. The leader refuses a commit below it, so a commit there is impossible.
//!
//! Where commits go step by step, versions do not carry commit timestamps, and a commit is a compare-and-set of a client
//! that knows no floor. Those stores keep their entries.

pub use crate::transaction::entry::TransactionsFloor;

use super::state::{Pausing, Shared};
use super::step::{SweepStep, reach};
use crate::Result;
use crate::rule::Rule;
use crate::transaction::entry::{Entry, transactions_table};
use crate::transaction::sweep_queue::SHARDS;
use atlas_kvs::{AtomicBatch, AtomicScan, BatchOp, Cell, Durability, RowRange, Timestamp};
use bytes::Bytes;
use futures::TryStreamExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The floor moves by so many timestamps at least: moving it is a write.
const STRIDE: u64 = 1024;
/// Entries that are removed together.
const PAGE: usize = 4096;

impl Shared {
    /// Raises the floor as far as it may go, and removes what lies below it.
    pub(super) async fn let_entries_go(self: &Arc<Self>, sweep_ts: Timestamp, pausing: Pausing) -> Result<()> {
        let core = self.manager.core();
        if !core.path.writes_commit_timestamps() || self.has_to_end(pausing).await? {
            return Ok(());
        }
        let mut below = sweep_ts;
        for shard in 0..SHARDS {
            below = below.min(self.progress_of(shard).await?.below);
        }
        let settled = TransactionsFloor::load(core.kvs.clone()).await?.windows_settled;
        if Rule::RestoreHoldsFloor.is_kept()
            && let Some(window) = core
                .entries
                .windows()
                .windows
                .get(settled..)
                .and_then(|rest| rest.iter().map(|window| window.from).min())
        {
            below = below.min(window);
        }
        // After it was opened a process looks at everything once: the one before may have stopped in the middle.
        let from = Timestamp::saturating(self.entries_gone_below.load(Ordering::Acquire));
        if below.get() < from.get().saturating_add(STRIDE) {
            return Ok(());
        }
        let shared = self.clone();
        let raised = async move {
            let core = shared.manager.core();
            TransactionsFloor::update(core.kvs.clone(), |floor| TransactionsFloor {
                below: floor.below.max(below),
                ..floor
            })
            .await?;
            core.entries.raise_floor(below);
            Ok(())
        };
        self.gate.run(raised).await?;
        reach(SweepStep::FloorRaised);
        let mut after = from;
        while let Some(last) = self.remove_page(after, below).await? {
            after = last.next();
            if self.has_to_end(pausing).await? {
                return Ok(());
            }
            tokio::time::sleep(self.config.pause).await;
        }
        self.entries_gone_below.store(below.get(), Ordering::Release);
        Ok(())
    }

    /// Removes the next entries that may go. Answers the last one looked at, or nothing at the end.
    async fn remove_page(self: &Arc<Self>, from: Timestamp, below: Timestamp) -> Result<Option<Timestamp>> {
        let core = self.manager.core();
        let start = if from > Timestamp::FIRST { Entry::cell(from).row } else { Bytes::new() };
        let rows = RowRange::new(start, Entry::cell(below).row);
        let scan = AtomicScan { page_size: PAGE, ..AtomicScan::new(rows) };
        let mut found = core.kvs.scan_atomic(&transactions_table(), scan);
        let (mut gone, mut looked_at, mut last) = (Vec::new(), 0, None);
        while looked_at < PAGE {
            let Some((cell, bytes)) = found.try_next().await? else { break };
            looked_at += 1;
            let start_ts = Entry::start_ts_of(&cell)?;
            Entry::decode(start_ts, &bytes)?;
            if Entry::may_go(&bytes) {
                gone.push(cell);
            }
            last = Some(start_ts);
        }
        drop(found);
        if !gone.is_empty() {
            let shared = self.clone();
            self.gate.run(async move { shared.remove_entries(gone).await }).await?;
        }
        Ok(last)
    }

    async fn remove_entries(&self, gone: Vec<Cell>) -> Result<()> {
        let core = self.manager.core();
        let count = gone.len() as u64;
        let remove = |cell| BatchOp::Remove { table: transactions_table(), cell };
        let fence = core.oracle.batch_fence();
        let batch = AtomicBatch::new(gone.into_iter().map(remove).collect());
        // Behind the fence, where there is one: a successor has a floor of its own.
        core.kvs.apply(batch.guarded(fence.map(|fence| fence.guard())), Durability::Synced).await?;
        self.totals.transactions.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }
}
