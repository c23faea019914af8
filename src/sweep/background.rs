//! Walks over tables, for what no queue knows: imports and restores by other means, what a crash left.
//!
//! A walk is interrupted by a crash or by whoever does not want to wait; where it was stands in the store after each
//! batch, and the next one goes on there.

use super::batch::{How, Tally, unless_gone};
use super::progress::WalkProgress;
use super::state::Shared;
use crate::ops::{Progress, ProgressSink, SweepReport, SweepRequest, SweptTableReport};
use crate::schema::{SweepStrategy, TableSpec};
use crate::transaction::entry::TransactionsFloor;
use crate::{Error, Result};
use atlas_kvs::{Cell, CellVersions, RowRange, TableKind, TableRef, Timestamp, VersionScan};
use futures::TryStreamExt;
use std::sync::Arc;

impl Shared {
    /// Sweeps whole tables.
    pub(super) async fn walk(self: &Arc<Self>, request: &SweepRequest, progress: &ProgressSink) -> Result<SweepReport> {
        for (name, number) in [
            ("read-limit", request.read_limit),
            ("candidate-batch-hint", request.candidate_batch),
            ("delete-batch-hint", request.delete_batch),
        ] {
            if number == 0 {
                return Err(Error::Usage(format!("{name} must be 1 at least")));
            }
        }
        if !request.dry_run {
            // Told before the first batch, also where there is nothing to remove.
            drop(self.gate.permit().await?);
        }
        let tables = self.tables_to_walk(request).await?;
        let sweep_ts = self.grant().await?;
        let mut report = SweepReport { sweep_ts, dry_run: request.dry_run, tables: Vec::new() };
        for (table, spec) in tables {
            report.tables.push(self.walk_table(&table, spec.sweep_strategy, request, sweep_ts, progress).await?);
        }
        let windows = &self.manager.core().entries.windows().windows;
        let is_whole = request.table.is_none() && request.from_row.is_none() && !request.dry_run;
        // From the first cell to the last, and by a timestamp above all that a restore left.
        if is_whole
            && report.tables.iter().all(|table| !table.resumed)
            && windows.iter().all(|window| window.until.is_some_and(|until| until <= sweep_ts))
        {
            // What a restore left is gone now, or carries what it means: `_transactions` need not keep it. In tables of which
            // nothing is to go it stays, and needs no entries either: windows are kept for ever, what was rolled back may
            // lose its entry, and the entries of what committed without carrying its timestamp never go.
            let windows = windows.len();
            TransactionsFloor::update(self.manager.kvs().clone(), |floor| TransactionsFloor {
                windows_settled: floor.windows_settled.max(windows),
                ..floor
            })
            .await?;
        }
        Ok(report)
    }

    async fn tables_to_walk(&self, request: &SweepRequest) -> Result<Vec<(TableRef, TableSpec)>> {
        let core = self.manager.core();
        if let Some(table) = &request.table {
            return Ok(vec![(table.clone(), core.schema.spec(table).await?)]);
        }
        let mut tables = Vec::new();
        for found in core.kvs.tables().await? {
            if found.kind == TableKind::Versioned && !found.table.is_internal() {
                let spec = TableSpec::from_description(&found)?;
                tables.push((found.table, spec));
            }
        }
        Ok(tables)
    }

    async fn walk_table(
        self: &Arc<Self>,
        table: &TableRef,
        strategy: SweepStrategy,
        request: &SweepRequest,
        sweep_ts: Timestamp,
        progress: &ProgressSink,
    ) -> Result<SweptTableReport> {
        let core = self.manager.core();
        let kvs = core.kvs.clone();
        // A dry run looks at everything, and leaves no trace.
        let interrupted = match (&request.from_row, request.dry_run) {
            (None, false) => WalkProgress::load(kvs.clone(), table).await?,
            _ => None,
        };
        let mut report = SweptTableReport {
            table: table.to_string(),
            strategy: strategy.to_string(),
            resumed: interrupted.is_some(),
            ..SweptTableReport::default()
        };
        if strategy == SweepStrategy::Nothing {
            return Ok(report);
        }
        let rows = RowRange { start: request.from_row.clone().unwrap_or_default(), end: None };
        let mut after = interrupted;
        let mut tally = Tally::default();
        loop {
            let (found, is_last) = self.candidates(table, rows.clone(), after.take(), request, sweep_ts).await?;
            after = found.last().map(|found| found.cell.clone());
            let delete_batch = request.delete_batch as usize;
            // As it is now: somebody may have changed it since the walk began.
            let Some(strategy) = unless_gone(self.strategy_of(table).await.map(Some))? else { break };
            let how = How { sweep_ts, strategy, dry_run: request.dry_run, delete_batch, heeds_strategy: true };
            let batch = unless_gone(self.sweep_cells(table, found, how).await)?;
            tally.add(batch);
            progress(Progress {
                step: format!("sweep {table}"),
                done: tally.cells,
                total: None,
                unit: "cells".to_owned(),
            });
            let rest = if is_last { None } else { after.clone() };
            // A walk over a part of the table says nothing of the whole.
            if !request.dry_run && request.from_row.is_none() {
                WalkProgress::store(kvs.clone(), table, rest.clone()).await?;
            }
            if rest.is_none() {
                break;
            }
            tokio::time::sleep(request.pause).await;
        }
        (report.cells, report.versions) = (tally.cells, tally.versions);
        (report.deleted, report.bytes, report.rolled_back) = (tally.deleted, tally.bytes, tally.rolled_back);
        Ok(report)
    }

    /// The next cells of a table, and whether there are none behind them.
    async fn candidates(
        &self,
        table: &TableRef,
        rows: RowRange,
        after: Option<Cell>,
        request: &SweepRequest,
        sweep_ts: Timestamp,
    ) -> Result<(Vec<CellVersions>, bool)> {
        let page_size = request.candidate_batch as usize;
        let scan = VersionScan { after, page_size, ..VersionScan::new(rows, sweep_ts) };
        let mut found = self.manager.kvs().scan_versions(table, scan);
        let (mut candidates, mut versions) = (Vec::new(), 0);
        while let Some(cell) = found.try_next().await? {
            versions += cell.versions.len();
            candidates.push(cell);
            if candidates.len() >= page_size || versions >= request.read_limit as usize {
                return Ok((candidates, false));
            }
        }
        Ok((candidates, true))
    }
}
