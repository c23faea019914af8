//! Deletes cells for good: for those who must be able to say that nothing is left.
//!
//! A deletion is a version like any other, and what it hides goes when sweep comes. Here the caller waits for that: until
//! no reader can need what was there, and until it is gone, the deletion itself included. Who reads the past of the
//! table later is told that he comes too late. Backups keep what they have, and the names of the cells stay in the sweep
//! queue until their partition is dropped.

use super::batch::{How, Tally};
use super::state::Shared;
use crate::ops::HardDeleted;
use crate::schema::SweepStrategy;
use crate::transaction::RunOptions;
use crate::{Error, Result};
use atlas_kvs::{Cell, CellBound, CellTimestamps, CellVersions, TableRef, Timestamp};
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether readers are still in the way.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Shared {
    pub(super) async fn hard_delete(
        self: &Arc<Self>,
        table: &TableRef,
        cells: &[Cell],
        patience: Duration,
    ) -> Result<HardDeleted> {
        if cells.is_empty() {
            return Err(Error::Usage("name at least one cell to delete".to_owned()));
        }
        // Asked before anything is done: a lock that is held is no reason to delete half of it.
        drop(self.gate.permit().await?);
        let work = async |tx: crate::transaction::Transaction| {
            for cell in cells {
                tx.delete(table, cell.clone()).await?;
            }
            Ok::<_, Error>(())
        };
        let outcome = self.manager.run(RunOptions::default(), work).await?;
        let commit_ts = outcome.commit_ts.unwrap_or(Timestamp::FIRST);
        let sweep_ts = self.grant_above(commit_ts, patience).await?;
        let core = self.manager.core();
        let bounds: Vec<CellBound> = cells.iter().map(|cell| CellBound::new(cell.clone(), sweep_ts)).collect();
        let versions = core.kvs.versions(table, &bounds).await?;
        let found = cells.iter().zip(versions).filter(|(_, versions)| !versions.is_empty());
        let found: Vec<_> = found.map(|(cell, versions)| CellVersions { cell: cell.clone(), versions }).collect();
        // As on a thorough table, whatever the table's own strategy: the deletion goes too.
        let how = How {
            sweep_ts,
            strategy: SweepStrategy::Thorough,
            dry_run: false,
            delete_batch: self.config.batch_cells as usize,
            heeds_strategy: false,
        };
        let Tally { deleted, .. } = self.sweep_cells(table, found, how).await?;
        self.check_gone(table, cells, commit_ts).await?;
        Ok(HardDeleted { commit_ts, versions: deleted })
    }

    /// Waits until sweep is granted a timestamp above a commit.
    async fn grant_above(&self, commit_ts: Timestamp, patience: Duration) -> Result<Timestamp> {
        let begun = tokio::time::Instant::now();
        loop {
            let sweep_ts = self.grant().await?;
            if sweep_ts > commit_ts {
                return Ok(sweep_ts);
            }
            if begun.elapsed() >= patience {
                let held_by = self.held_by().unwrap_or_else(|| "an open transaction".to_owned());
                return Err(Error::Unavailable {
                    what: "the hard delete".to_owned(),
                    reason: format!(
                        "the cells are deleted for readers since {commit_ts}, but {held_by} may still read what was \
                         there; do it again when that has ended"
                    ),
                });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Nothing below the deletion is left; what was written again later is no concern of it.
    async fn check_gone(&self, table: &TableRef, cells: &[Cell], commit_ts: Timestamp) -> Result<()> {
        let bounds: Vec<CellBound> = cells.iter().map(|cell| CellBound::new(cell.clone(), commit_ts)).collect();
        let left = self.manager.kvs().versions(table, &bounds).await?;
        let left: Vec<CellTimestamps> = cells
            .iter()
            .zip(left)
            .map(|(cell, versions)| CellTimestamps {
                cell: cell.clone(),
                timestamps: versions.iter().map(|version| version.ts).filter(|ts| *ts != Timestamp::SENTINEL).collect(),
            })
            .filter(|left| !left.timestamps.is_empty())
            .collect();
        match left.first() {
            None => Ok(()),
            Some(first) => Err(Error::Unavailable {
                what: "the hard delete".to_owned(),
                reason: format!("cell {} of table '{table}' still has versions; do it again", first.cell),
            }),
        }
    }
}
