//! A batch of cells: what goes of each, and the steps that take it away.

use super::plan::{Stored, plan};
use super::state::Shared;
use super::step::{SweepStep, reach};
use crate::backup::clean::DeletionFloor;
use crate::rule::Rule;
use crate::schema::SweepStrategy;
use crate::transaction::entry::Fate;
use crate::transaction::{damaged, header};
use crate::{Error, Result};
use atlas_kvs::{Cell, CellTimestamps, CellVersionRange, CellVersions, KvsError, TableRef, Timestamp, Version};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a batch found and did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) cells: u64,
    pub(super) versions: u64,
    pub(super) deleted: u64,
    pub(super) bytes: u64,
    pub(super) rolled_back: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: Tally) {
        self.cells += other.cells;
        self.versions += other.versions;
        self.deleted += other.deleted;
        self.bytes += other.bytes;
        self.rolled_back += other.rolled_back;
    }
}

/// How a batch is worked off.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    pub(super) sweep_ts: Timestamp,
    pub(super) strategy: SweepStrategy,
    pub(super) dry_run: bool,
    /// Most versions to remove in one call, and under one permit.
    pub(super) delete_batch: usize,
    /// It ends when the table's strategy is changed to `Nothing`.
    pub(super) heeds_strategy: bool,
}

/// What goes of one cell, or a part of it.
#[derive(Debug, PartialEq, Eq)]
struct Doomed {
    cell: Cell,
    /// Versions, oldest first.
    delete: Vec<Timestamp>,
    sentinel: SentinelStep,
}

/// What happens to the sentinel of a cell before anything of the cell is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SentinelStep {
    Leave,
    Add,
    Remove,
}

/// Cuts what goes into groups of at most `size` versions. A cell of which more goes is cut too, and its oldest versions
/// come first: what is left in between is what a crash there would leave.
fn groups(doomed: Vec<Doomed>, size: usize) -> Vec<Vec<Doomed>> {
    let size = size.max(1);
    let (mut groups, mut group, mut room) = (Vec::new(), Vec::new(), size);
    for Doomed { cell, mut delete, mut sentinel } in doomed {
        while delete.len() > room {
            let rest = delete.split_off(room);
            group.push(Doomed { cell: cell.clone(), delete: std::mem::replace(&mut delete, rest), sentinel });
            sentinel = SentinelStep::Leave;
            groups.push(std::mem::take(&mut group));
            room = size;
        }
        room -= delete.len();
        group.push(Doomed { cell, delete, sentinel });
        if room == 0 {
            groups.push(std::mem::take(&mut group));
            room = size;
        }
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

impl Shared {
    /// Sweeps cells of which all versions below the sweep timestamp are known.
    pub(super) async fn sweep_cells(
        self: &Arc<Self>,
        table: &TableRef,
        found: Vec<CellVersions>,
        how: How,
    ) -> Result<Tally> {
        let mut tally = Tally { cells: found.len() as u64, ..Tally::default() };
        if how.strategy == SweepStrategy::Nothing {
            return Ok(tally);
        }
        let fates = self.fates_of(table, &found, how, &mut tally).await?;
        reach(SweepStep::Decided);
        let mut doomed = Vec::new();
        for CellVersions { cell, versions } in found {
            let has_sentinel = versions.first().is_some_and(|version| version.ts == Timestamp::SENTINEL);
            let mut stored = Vec::with_capacity(versions.len());
            for version in versions.iter().filter(|version| version.ts != Timestamp::SENTINEL) {
                stored.push(self.stored(table, &cell, version, &fates)?);
            }
            tally.versions += stored.len() as u64;
            let plan = plan(&stored, how.sweep_ts, how.strategy);
            tally.deleted += plan.delete.len() as u64;
            tally.bytes += plan.bytes;
            let sentinel = match how.strategy {
                // Left from when the table was conservative. Readers that come too late are told by the table's timestamp.
                SweepStrategy::Thorough if has_sentinel => SentinelStep::Remove,
                _ if plan.sentinel && !has_sentinel => SentinelStep::Add,
                _ => SentinelStep::Leave,
            };
            if !plan.delete.is_empty() || sentinel == SentinelStep::Remove {
                doomed.push(Doomed { cell, delete: plan.delete, sentinel });
            }
        }
        if !how.dry_run {
            // A permit for each group: whoever acquires the backup lock waits for one of them, and not for a cell with
            // millions of versions.
            for group in groups(doomed, how.delete_batch) {
                if how.heeds_strategy && self.strategy_of(table).await? == SweepStrategy::Nothing {
                    break;
                }
                let deleted = group.iter().map(|doomed| doomed.delete.len() as u64).sum();
                let (shared, table) = (self.clone(), table.clone());
                // In a task of its own: whoever stops waiting must not leave a deletion without its permit.
                let removal = async move { shared.remove(&table, group, how).await };
                if Rule::SweepUnderPermit.is_kept() {
                    self.gate.run(removal).await?
                } else {
                    removal.await?
                }
                self.slow_down(deleted).await;
            }
            self.totals.add(tally);
        }
        Ok(tally)
    }

    /// As it is now.
    pub(super) async fn strategy_of(&self, table: &TableRef) -> Result<SweepStrategy> {
        Ok(self.manager.core().schema.spec(table).await?.sweep_strategy)
    }

    /// The fates of those who wrote these versions and did not leave their commit timestamp beside the data. Those that
    /// have none are rolled back; a dry run counts them.
    async fn fates_of(
        &self,
        table: &TableRef,
        found: &[CellVersions],
        how: How,
        tally: &mut Tally,
    ) -> Result<BTreeMap<Timestamp, Fate>> {
        let mut writers = Vec::new();
        for CellVersions { cell, versions } in found {
            for version in versions.iter().filter(|version| version.ts != Timestamp::SENTINEL) {
                let header = header(&version.prefix).ok_or_else(|| damaged(table, cell))?;
                if header.commit_ts.is_none() {
                    writers.push(version.ts);
                }
            }
        }
        writers.sort_unstable();
        writers.dedup();
        if writers.is_empty() {
            return Ok(BTreeMap::new());
        }
        let core = self.manager.core();
        let before = core.entries.fates(&writers).await?;
        let undecided = before.values().filter(|fate| **fate == Fate::Undecided).count() as u64;
        tally.rolled_back += undecided;
        if undecided == 0 {
            return Ok(before);
        }
        if how.dry_run {
            let as_if = |(writer, fate)| (writer, if fate == Fate::Undecided { Fate::RolledBack } else { fate });
            return Ok(before.into_iter().map(as_if).collect());
        }
        core.decide_ended(&writers).await
    }

    fn stored(
        &self,
        table: &TableRef,
        cell: &Cell,
        version: &Version,
        fates: &BTreeMap<Timestamp, Fate>,
    ) -> Result<Stored> {
        let header = header(&version.prefix).ok_or_else(|| damaged(table, cell))?;
        let fate = match header.commit_ts {
            Some(commit_ts) => self.manager.core().entries.fate_of_inlined(commit_ts),
            None => fates.get(&version.ts).copied().unwrap_or(Fate::Undecided),
        };
        Ok(Stored { ts: version.ts, fate, tombstone: header.tombstone, len: version.len })
    }

    /// Takes versions away. Under a permit of the gate.
    async fn remove(&self, table: &TableRef, doomed: Vec<Doomed>, how: How) -> Result<()> {
        let thorough = how.strategy == SweepStrategy::Thorough;
        let core = self.manager.core();
        self.raise_deletion_floor(how.sweep_ts).await?;
        core.swept.raise(table, how.sweep_ts, thorough).await?;
        reach(SweepStep::WrittenDown);
        // After it was written down, and before anything goes: if the lease is over, a successor may have begun that has
        // not read it.
        core.oracle.check_held()?;
        let with = |step| doomed.iter().filter(move |doomed| doomed.sentinel == step).map(|doomed| doomed.cell.clone());
        let sentinels: Vec<Cell> = with(SentinelStep::Add).collect();
        if Rule::SentinelBeforeDelete.is_kept() {
            self.add_sentinels(table, &sentinels).await?;
        }
        reach(SweepStep::SentinelsWritten);
        let ranges: Vec<CellVersionRange> = with(SentinelStep::Remove)
            .map(|cell| CellVersionRange { cell, before: Timestamp::FIRST, include_sentinel: true })
            .collect();
        if !ranges.is_empty() {
            core.kvs.delete_version_ranges(table, &ranges).await?;
        }
        let named = doomed.into_iter().filter(|doomed| !doomed.delete.is_empty());
        let named: Vec<CellTimestamps> =
            named.map(|Doomed { cell, delete, .. }| CellTimestamps { cell, timestamps: delete }).collect();
        if !named.is_empty() {
            // Again, since the sentinels may have taken long: a process that has lost the store removes nothing any more.
            core.oracle.check_held()?;
            core.kvs.delete_versions(table, &named).await?;
        }
        if !Rule::SentinelBeforeDelete.is_kept() {
            self.add_sentinels(table, &sentinels).await?;
        }
        reach(SweepStep::Deleted);
        Ok(())
    }

    async fn add_sentinels(&self, table: &TableRef, cells: &[Cell]) -> Result<()> {
        if cells.is_empty() || !Rule::SentinelsFirst.is_kept() {
            return Ok(());
        }
        self.manager.kvs().add_sentinels(table, cells).await?;
        self.totals.sentinels.fetch_add(cells.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// The state below this timestamp is not whole any more, from now on: a copy that is made later must not be taken for
    /// it. The sweep timestamp stands for all commits that can justify a deletion, which lie below it.
    pub(super) async fn raise_deletion_floor(&self, sweep_ts: Timestamp) -> Result<()> {
        let justifying = sweep_ts.previous();
        if self.deletion_floor.load(Ordering::Acquire) >= justifying.get() {
            return Ok(());
        }
        DeletionFloor::raise(self.manager.kvs().clone(), justifying).await?;
        self.deletion_floor.fetch_max(justifying.get(), Ordering::AcqRel);
        Ok(())
    }
}

/// A table that is gone has nothing to sweep.
pub(super) fn unless_gone<T: Default>(result: Result<T>) -> Result<T> {
    match result {
        Err(Error::Kvs(KvsError::NoSuchTable(_)) | Error::NotFound { .. }) => Ok(T::default()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doomed(row: &str, versions: &[u64], sentinel: SentinelStep) -> Doomed {
        Doomed {
            cell: Cell::copy_from(row, "c"),
            delete: versions.iter().copied().map(Timestamp::saturating).collect(),
            sentinel,
        }
    }

    #[test]
    fn a_cell_with_many_versions_is_cut_the_oldest_first() {
        use SentinelStep::{Add, Leave, Remove};
        let cells = vec![
            doomed("a", &[1, 2], Leave),
            doomed("b", &[1, 2, 3, 4, 5, 6, 7], Add),
            doomed("c", &[1], Leave),
            doomed("d", &[], Remove),
        ];
        let cut = groups(cells, 3);
        let expected = vec![
            vec![doomed("a", &[1, 2], Leave), doomed("b", &[1], Add)],
            vec![doomed("b", &[2, 3, 4], Leave)],
            vec![doomed("b", &[5, 6, 7], Leave)],
            vec![doomed("c", &[1], Leave), doomed("d", &[], Remove)],
        ];
        assert_eq!(cut, expected);
        assert!(groups(Vec::new(), 3).is_empty());
    }
}
