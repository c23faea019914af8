//! Works the queue off: each shard from its oldest entry on, as far as readers allow.
//!
//! ```text
//!   queue of a shard   w1   w2   w3 │ w4   w5   w6 ──┤ sweep_ts
//!                      worked off   │ a stretch  ┆ w6 committed above sweep_ts: the shard waits here
//! ```
//!
//! Below the sweep timestamp no writer runs, so none can come that is not there yet. One without an entry is rolled
//! back. One whose commit is at or above the timestamp is too young: what it hides may still be read, and its entry is
//! the only one that will ever name it; so the shard stops there, until the next timestamp.

use super::batch::{How, unless_gone};
use super::progress::ShardProgress;
use super::state::{Pausing, Shared};
use super::step::{SweepStep, reach};
use crate::rule::Rule;
use crate::transaction::entry::Fate;
use crate::transaction::sweep_queue::{self, SHARDS, SweepWrite, sweep_queue_table};
use crate::{Error, Result};
use atlas_kvs::{Cell, CellBound, CellVersions, Scan, TableRef, Timestamp};
use futures::TryStreamExt;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// How long the progress of an idle shard may be known to this process alone.
const STORE_AFTER: Duration = Duration::from_secs(60);

/// How many partitions before those that are finished are dropped once more, the first time that a process drops any: a
/// store may have come back later to clear up behind an earlier drop, and its process may have ended before.
const LOOK_BACK: u64 = 64;

/// The queue is read for so many batches of cells at a time, at most. What is sorted together lies close together, where some
/// stores walk instead of looking for each cell, and a cell that was written often is looked at once.
///
/// It begins with one, and twice as many follow what was soon worked off to its end: of what is interrupted all is looked at once
/// more.
const BATCHES_AT_ONCE: usize = 64;
/// What takes longer is followed by half as many: where sweep is told to be slow, what is written down of it must not be old.
const SOON: Duration = Duration::from_secs(10);
/// And for about so many bytes of entries, which limits what is held where names are long.
const BYTES_AT_ONCE: usize = 16 << 20;

/// What this process knows of a shard, which the store may not know yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) progress: ShardProgress,
    stored_at: Instant,
    looked_back: bool,
}

/// A shard as this process works it off.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) known: Option<Known>,
    /// For how many batches the queue is read next.
    batches: usize,
}

impl Default for Shard {
    fn default() -> Shard {
        Shard { known: None, batches: 1 }
    }
}

/// An entry of the queue.
struct Entry {
    writer: Timestamp,
    chunk: u32,
    writes: Vec<SweepWrite>,
}

/// What is read of the queue together.
struct Stretch {
    entries: Vec<Entry>,
    /// There is nothing behind it below the sweep timestamp.
    is_last: bool,
}

/// How far a stretch was worked off.
struct Reached {
    progress: ShardProgress,
    /// What comes next is too young.
    waits: bool,
}

impl Shared {
    /// Works all shards off. Answers whether anything was there.
    pub(super) async fn work_off_queue(self: &Arc<Self>, sweep_ts: Timestamp, pausing: Pausing) -> Result<bool> {
        let (mut any, mut failed) = (false, None);
        for shard in 0..SHARDS {
            // What stands in the way of one shard need not stand in that of the others.
            match self.work_off_shard(shard, sweep_ts, pausing).await {
                Ok(worked) => any |= worked,
                Err(error @ Error::BackupLockHeld { .. }) => return Err(error),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(any), Err)
    }

    async fn work_off_shard(self: &Arc<Self>, shard: u16, sweep_ts: Timestamp, pausing: Pausing) -> Result<bool> {
        // Two at once would do the same work twice.
        let mut this = self.shards[usize::from(shard)].lock().await;
        let kvs = self.manager.kvs();
        let mut progress = match this.known {
            Some(Known { progress, .. }) => progress,
            None => ShardProgress::load(kvs.clone(), shard).await?,
        };
        let mut stored_at = this.known.as_ref().map(|known| known.stored_at);
        let mut looked_back = this.known.is_some_and(|known| known.looked_back);
        let mut any = false;
        while progress.below < sweep_ts && !self.has_to_end(pausing).await? {
            // Until it is worked off: an error, or whoever does not wait for the end, leaves it so.
            let batches = std::mem::replace(&mut this.batches, 1);
            let began = Instant::now();
            let stretch = self.next_stretch(shard, progress, sweep_ts, batches).await?;
            let has_worked = !stretch.entries.is_empty();
            any |= has_worked;
            let Some(reached) = self.work_off(stretch, progress, sweep_ts, pausing).await? else { break };
            progress = reached.progress;
            // Where there was nothing to do, how far it has come is a write that can wait.
            if has_worked || stored_at.is_none_or(|at| at.elapsed() >= STORE_AFTER) {
                progress.advance(kvs.clone(), shard).await?;
                stored_at = Some(Instant::now());
                reach(SweepStep::ProgressMoved);
            }
            this.batches = match began.elapsed() < SOON {
                true if has_worked => (batches * 2).min(BATCHES_AT_ONCE),
                true => batches,
                false => (batches / 2).max(1),
            };
            // Before partitions are dropped, too: what keeps them from being dropped must not make the next round begin here
            // again.
            this.known = stored_at.map(|stored_at| Known { progress, stored_at, looked_back });
            progress = self.drop_finished(shard, progress, &mut looked_back).await?;
            this.known = stored_at.map(|stored_at| Known { progress, stored_at, looked_back });
            if reached.waits {
                break;
            }
            if has_worked {
                tokio::time::sleep(self.config.pause).await;
            }
        }
        Ok(any)
    }

    /// How far a shard is, as far as anybody knows.
    pub(super) async fn progress_of(&self, shard: u16) -> Result<ShardProgress> {
        // Not waited for: whoever works the shard off may take long.
        if let Ok(shard) = self.shards[usize::from(shard)].try_lock()
            && let Some(known) = shard.known
        {
            return Ok(known.progress);
        }
        ShardProgress::load(self.manager.kvs().clone(), shard).await
    }

    /// The next entries of a shard, about as many as name so many batches of cells.
    async fn next_stretch(
        &self,
        shard: u16,
        progress: ShardProgress,
        sweep_ts: Timestamp,
        batches: usize,
    ) -> Result<Stretch> {
        let rows = sweep_queue::rows_between(shard, progress.below, sweep_ts);
        // Right there, and not from the beginning of the partition: what is worked off costs nothing any more.
        let after = Some(sweep_queue::before(shard, progress.below, progress.chunk));
        // Entries lie at their writer's start timestamp: those of writers that may still run are not seen.
        let mut found = self.manager.kvs().scan(&sweep_queue_table(), Scan { after, ..Scan::new(rows, sweep_ts) });
        let most_cells = (self.config.batch_cells as usize).saturating_mul(batches);
        let (mut entries, mut cells, mut bytes) = (Vec::new(), 0, 0);
        while let Some((place, value)) = found.try_next().await? {
            let (writer, writes) = sweep_queue::decode(&place, &value.bytes)?;
            let chunk = sweep_queue::chunk_of(&place)?;
            if (writer, chunk) < (progress.below, progress.chunk) || writer >= sweep_ts {
                continue;
            }
            cells += writes.len();
            bytes += value.bytes.len();
            entries.push(Entry { writer, chunk, writes });
            if cells >= most_cells || bytes >= BYTES_AT_ONCE {
                return Ok(Stretch { entries, is_last: false });
            }
        }
        Ok(Stretch { entries, is_last: true })
    }

    /// Sweeps what the entries name, up to the first that is too young. Answers how far the shard is then, or nothing if
    /// it has to wait at the very first, or to end in the middle.
    async fn work_off(
        self: &Arc<Self>,
        mut stretch: Stretch,
        progress: ShardProgress,
        sweep_ts: Timestamp,
        pausing: Pausing,
    ) -> Result<Option<Reached>> {
        let Some(old) = self.count_old(&stretch.entries, sweep_ts, pausing).await? else { return Ok(None) };
        let mut tables: BTreeMap<String, Vec<Cell>> = BTreeMap::new();
        for entry in &mut stretch.entries[..old] {
            for SweepWrite { table, cell, .. } in std::mem::take(&mut entry.writes) {
                match tables.get_mut(&table) {
                    Some(cells) => cells.push(cell),
                    None => drop(tables.insert(table, vec![cell])),
                }
            }
        }
        let batch = self.config.batch_cells as usize;
        let mut since_a_look = None;
        for (table, mut cells) in tables {
            // An entry that names no table can't be worked off, and must not be passed over.
            let table = TableRef::new(&table).map_err(|error| Error::corrupt("the sweep queue", error.to_string()))?;
            cells.sort_unstable();
            cells.dedup();
            for cells in cells.chunks(batch) {
                if since_a_look.is_none_or(|since| since + cells.len() > batch) {
                    if since_a_look.is_some() {
                        tokio::time::sleep(self.config.pause).await;
                    }
                    if self.has_to_end(pausing).await? {
                        return Ok(None);
                    }
                    since_a_look = Some(0);
                }
                since_a_look = since_a_look.map(|since| since + cells.len());
                unless_gone(self.sweep_named(&table, cells, sweep_ts).await)?;
            }
        }
        self.totals.entries.fetch_add(old as u64, Ordering::Relaxed);
        if old == stretch.entries.len() && stretch.is_last {
            let progress = ShardProgress { below: sweep_ts, chunk: 0, ..progress };
            return Ok(Some(Reached { progress, waits: false }));
        }
        Ok(stretch.entries[..old].last().map(|last| Reached {
            progress: ShardProgress { below: last.writer, chunk: last.chunk + 1, ..progress },
            waits: old < stretch.entries.len(),
        }))
    }

    /// How many of the entries come before the first that is too young; nothing if the round has to end meanwhile.
    async fn count_old(&self, entries: &[Entry], sweep_ts: Timestamp, pausing: Pausing) -> Result<Option<usize>> {
        let core = self.manager.core();
        let mut old = 0;
        for some in entries.chunks(self.config.batch_cells as usize) {
            // Each may take as long as a batch of cells: writers that are undecided are rolled back one by one.
            if old > 0 {
                tokio::time::sleep(self.config.pause).await;
                if self.has_to_end(pausing).await? {
                    return Ok(None);
                }
            }
            let mut writers: Vec<Timestamp> = some.iter().map(|entry| entry.writer).collect();
            writers.dedup();
            let fates = core.decide_ended(&writers).await?;
            // A restore may have undone a writer, and not those who committed before and share its entry. All of them lie
            // below where the restore begins.
            let within_a_restore = core.entries.windows().windows.iter().any(|undone| undone.from > sweep_ts);
            let is_young = |entry: &Entry| match fates.get(&entry.writer) {
                Some(Fate::Committed(at)) => *at >= sweep_ts && Rule::KeepYoungEntries.is_kept(),
                Some(Fate::RolledBack) => within_a_restore && Rule::KeepSharesOfTheUndone.is_kept(),
                _ => false,
            };
            match some.iter().position(is_young) {
                Some(place) => return Ok(Some(old + place)),
                None => old += some.len(),
            }
        }
        Ok(Some(old))
    }

    /// Sweeps cells by name.
    async fn sweep_named(self: &Arc<Self>, table: &TableRef, cells: &[Cell], sweep_ts: Timestamp) -> Result<()> {
        let core = self.manager.core();
        let strategy = self.strategy_of(table).await?;
        if strategy == crate::schema::SweepStrategy::Nothing {
            return Ok(());
        }
        let bounds: Vec<CellBound> = cells.iter().map(|cell| CellBound::new(cell.clone(), sweep_ts)).collect();
        let versions = core.kvs.versions(table, &bounds).await?;
        let found = cells.iter().zip(versions).filter(|(_, versions)| !versions.is_empty());
        let found = found.map(|(cell, versions)| CellVersions { cell: cell.clone(), versions }).collect();
        let delete_batch = self.config.batch_cells as usize;
        let how = How { sweep_ts, strategy, dry_run: false, delete_batch, heeds_strategy: true };
        self.sweep_cells(table, found, how).await.map(drop)
    }

    /// Drops the partitions that are worked off: as a whole, which leaves no tombstone for each entry.
    async fn drop_finished(
        self: &Arc<Self>,
        shard: u16,
        progress: ShardProgress,
        looked_back: &mut bool,
    ) -> Result<ShardProgress> {
        let finished = sweep_queue::partition_of(progress.below);
        if finished <= progress.dropped {
            return Ok(progress);
        }
        let first = progress.dropped.saturating_sub(if *looked_back { 0 } else { LOOK_BACK });
        let (shared, rows) = (self.clone(), sweep_queue::partitions(shard, first, finished));
        let dropped = async move {
            let core = shared.manager.core();
            core.oracle.check_held()?;
            Ok(core.kvs.delete_rows(&sweep_queue_table(), &rows).await?)
        };
        self.gate.run(dropped).await?;
        *looked_back = true;
        reach(SweepStep::PartitionsDropped);
        self.totals.partitions.fetch_add(finished - progress.dropped, Ordering::Relaxed);
        let progress = ShardProgress { dropped: finished, ..progress };
        progress.advance(self.manager.kvs().clone(), shard).await?;
        Ok(progress)
    }
}
