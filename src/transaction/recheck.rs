//! Step 7 against the store: would every read give the same as of a later timestamp?
//!
//! A read is changed by a version that committed at or above the snapshot it was made in and below the timestamp it is
//! checked for. Versions decide, not values: a value that went from A to B and back to A was changed.

use super::core::Core;
use super::entry::Fate;
use super::read::Candidate;
use super::reads::Reads;
use super::step_by_step::StepByStep;
use super::value;
use crate::rule::Rule;
use crate::{Error, Result};
use atlas_kvs::{Cell, CellBound, Scan, TableRef, Timestamp};
use futures::StreamExt;

const PAGE_SIZE: usize = 256;

/// What is checked.
#[derive(Clone, Copy)]
pub(crate) struct Recheck<'a> {
    /// The transaction: its own versions change nothing.
    pub(crate) start_ts: Timestamp,
    /// The snapshot it read.
    pub(crate) read_ts: Timestamp,
    /// Commits at or above this come later than the transaction.
    pub(crate) before: Timestamp,
    /// What to do about versions whose writers are undecided.
    pub(crate) undecided: Undecided<'a>,
}

/// What the re-check does about a version whose writer is undecided.
#[derive(Clone, Copy)]
pub(crate) enum Undecided<'a> {
    /// Skips it: the pipeline's leader decides that writer after the one who checks, or never.
    DecidedLater,
    /// Waits for writers that started before the transaction, and gives up for one that started after it: two that
    /// waited for each other would wait for ever.
    WaitForEarlier(&'a StepByStep),
}

impl Recheck<'_> {
    fn conflict(&self, table: &TableRef, cell: &Cell, committed_at: Option<Timestamp>) -> Error {
        Error::ReadConflict { table: table.clone(), what: cell.to_string(), committed_at, read_ts: self.read_ts }
    }
}

impl Core {
    /// Reads everything again.
    ///
    /// # Errors
    /// [`Error::ReadConflict`] for the first read that was changed.
    pub(crate) async fn recheck(&self, reads: &Reads, recheck: Recheck<'_>) -> Result<()> {
        let mut rest = &reads.cells[..];
        while let Some(first) = rest.first() {
            let same = rest.iter().take(PAGE_SIZE).take_while(|key| key.table == first.table).count();
            let (page, later) = rest.split_at(same);
            let bounds: Vec<CellBound> =
                page.iter().map(|key| CellBound::new(key.cell.clone(), recheck.before)).collect();
            let found = self.kvs.get(&first.table, &bounds).await?;
            let candidates = bounds
                .into_iter()
                .zip(found)
                .filter_map(|(bound, version)| version.map(|version| Candidate { cell: bound.cell, version }));
            self.recheck_cells(&first.table, candidates.collect(), recheck).await?;
            rest = later;
        }
        for range in &reads.ranges {
            let mut scan = Scan::new(range.rows.clone(), recheck.before);
            scan.columns = range.columns.clone();
            let mut pages = self.kvs.scan(&range.table, scan).ready_chunks(PAGE_SIZE);
            while let Some(page) = pages.next().await {
                let mut candidates = Vec::with_capacity(page.len());
                for found in page {
                    let (cell, version) = found?;
                    if range.contains(&cell) {
                        candidates.push(Candidate { cell, version });
                    }
                }
                self.recheck_cells(&range.table, candidates, recheck).await?;
            }
        }
        Ok(())
    }

    /// Goes down from the newest version of each cell to the newest that committed before the end of the check.
    async fn recheck_cells(&self, table: &TableRef, candidates: Vec<Candidate>, recheck: Recheck<'_>) -> Result<()> {
        let mut open = candidates;
        while !open.is_empty() {
            let others = open.iter().filter(|candidate| candidate.version.ts != recheck.start_ts);
            let known = self.fates_of_writers(table, others).await?;
            let mut deeper = Vec::new();
            for Candidate { cell, version } in open {
                if version.ts == Timestamp::SENTINEL {
                    continue;
                }
                let header = value::header(&version.bytes).ok_or_else(|| value::damaged(table, &cell))?;
                let fate = if version.ts == recheck.start_ts {
                    Fate::Undecided // Our own write: what lies below it is what was read.
                } else {
                    match header.commit_ts {
                        Some(commit_ts) => self.entries.fate_of_inlined(commit_ts),
                        None => {
                            let known = known.get(&version.ts).copied().unwrap_or(Fate::Undecided);
                            self.fate_for_recheck(table, &cell, version.ts, known, recheck).await?
                        }
                    }
                };
                match fate {
                    Fate::Committed(at) if at < recheck.read_ts => (),
                    Fate::Committed(at) if at < recheck.before => {
                        return Err(recheck.conflict(table, &cell, Some(at)));
                    }
                    Fate::Committed(_) | Fate::RolledBack | Fate::Undecided => {
                        deeper.push((0, CellBound::new(cell, version.ts)));
                    }
                }
            }
            open = self.fetch_deeper(table, deeper).await?.into_iter().map(|(_, candidate)| candidate).collect();
        }
        Ok(())
    }

    async fn fate_for_recheck(
        &self,
        table: &TableRef,
        cell: &Cell,
        writer: Timestamp,
        known: Fate,
        recheck: Recheck<'_>,
    ) -> Result<Fate> {
        match (known, recheck.undecided) {
            (Fate::Undecided, Undecided::WaitForEarlier(steps))
                if writer < recheck.start_ts || !Rule::WaitForEarlierOnly.is_kept() =>
            {
                steps.settle_writer(writer).await
            }
            // It may hold a commit timestamp below ours already.
            (Fate::Undecided, Undecided::WaitForEarlier(_)) => Err(recheck.conflict(table, cell, None)),
            (fate, _) => Ok(fate),
        }
    }
}
