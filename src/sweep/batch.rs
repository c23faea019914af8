//! A batch of cells: what goes of each, and the steps that take it away.

use super::plan::{Plan, Stored, plan};
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
    /// Most versions to remove in one call.
    pub(super) delete_batch: usize,
}

/// What goes of one cell.
struct Doomed {
    cell: Cell,
    plan: Plan,
    has_sentinel: bool,
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
            if !plan.delete.is_empty() {
                doomed.push(Doomed { cell, plan, has_sentinel });
            }
        }
        if !how.dry_run {
            if !doomed.is_empty() {
                let (shared, table) = (self.clone(), table.clone());
                // In a task of its own: whoever stops waiting must not leave a deletion without its permit.
                let removal = async move { shared.remove(&table, doomed, how).await };
                if Rule::SweepUnderPermit.is_kept() { self.gate.run(removal).await? } else { removal.await? }
            }
            self.totals.add(tally);
        }
        Ok(tally)
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
        let wanted = doomed.iter().filter(|doomed| doomed.plan.sentinel && !doomed.has_sentinel);
        let sentinels: Vec<Cell> = wanted.map(|doomed| doomed.cell.clone()).collect();
        if Rule::SentinelBeforeDelete.is_kept() {
            self.add_sentinels(table, &sentinels).await?;
        }
        reach(SweepStep::SentinelsWritten);
        if thorough {
            // Left from when the table was conservative. Readers that come too late are told by the table's timestamp.
            let ranges: Vec<CellVersionRange> = doomed
                .iter()
                .filter(|doomed| doomed.has_sentinel)
                .map(|doomed| CellVersionRange {
                    cell: doomed.cell.clone(),
                    before: Timestamp::FIRST,
                    include_sentinel: true,
                })
                .collect();
            if !ranges.is_empty() {
                core.kvs.delete_version_ranges(table, &ranges).await?;
            }
        }
        let mut call: Vec<CellTimestamps> = Vec::new();
        let mut size = 0;
        for Doomed { cell, plan, .. } in doomed {
            size += plan.delete.len();
            call.push(CellTimestamps { cell, timestamps: plan.delete });
            // A cell is never torn apart: its versions go in one call, oldest first.
            if size >= how.delete_batch {
                core.kvs.delete_versions(table, &std::mem::take(&mut call)).await?;
                size = 0;
            }
        }
        if !call.is_empty() {
            core.kvs.delete_versions(table, &call).await?;
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
