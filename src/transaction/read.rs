//! Decides which version of a cell a transaction sees.
//!
//! A version written by W is visible at `read_ts` exactly when W committed below it. The entry of W is the only
//! witness of that (a commit timestamp beside the value is a copy of it):
//!
//! ```text
//!   start(W) ──── commit(W) ──┤ read_ts            visible
//!   start(W) ─────────────────┤ read_ts ─ commit   look further down
//!   start(W) ── rolled back ──┤ read_ts            look further down
//!   start(W) ─────────────────┤ read_ts  (no entry)
//!        pipeline:     W can commit only at or above read_ts, or never: look further down
//!        step by step: W may hold a commit timestamp below read_ts already: wait for it, or roll it back
//! ```

use super::core::{CommitPath, Core};
use super::entry::Fate;
use super::step_by_step::StepByStep;
use super::value;
use crate::rule::Rule;
use crate::{Error, Result};
use atlas_kvs::{Cell, CellBound, FlatPage, Scan, TableRef, Timestamp, Value};
use bytes::Bytes;
use futures::stream::{Stream, StreamExt};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a read waits for a renewal of the lease that is late, and how often it looks.
const WAIT_FOR_RENEWAL: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A cell whose newest version below some bound was found; whether it is visible is still to be seen.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) cell: Cell,
    pub(crate) version: Value,
}

/// What the conflict check does about a version whose writer is undecided.
#[derive(Clone, Copy)]
pub(crate) enum Rivals<'a> {
    /// Skips it: the pipeline's leader decides that writer after the one who checks, or never.
    DecidedLater,
    /// Decides it, on behalf of the transaction that holds the locks of the cell.
    DecideFor(&'a StepByStep, Timestamp),
}

impl Rivals<'_> {
    async fn decide(self, writer: Timestamp) -> Result<Fate> {
        match self {
            Rivals::DecidedLater => Ok(Fate::Undecided),
            Rivals::DecideFor(steps, start_ts) => steps.decide_rival(writer, start_ts).await,
        }
    }
}

impl Core {
    /// What a reader at `read_ts` sees of cells, in the order given.
    pub(crate) async fn read_cells(
        &self,
        table: &TableRef,
        cells: Vec<Cell>,
        read_ts: Timestamp,
    ) -> Result<Vec<Option<Bytes>>> {
        let mut values = vec![None; cells.len()];
        let moment = self.cells.as_ref().map(|cells| cells.moment());
        let mut bounds = Vec::new();
        let mut places = Vec::new();
        for (place, cell) in cells.into_iter().enumerate() {
            match self.cells.as_ref().and_then(|cells| cells.get(table, &cell, read_ts)) {
                Some(content) => values[place] = content,
                None => {
                    bounds.push(CellBound::new(cell, read_ts));
                    places.push(place);
                }
            }
        }
        if !bounds.is_empty() {
            let found = self.kvs.get(table, &bounds).await?;
            let mut open = Vec::new();
            for ((place, bound), version) in places.into_iter().zip(bounds).zip(found) {
                let Some(version) = version else { continue };
                match self.seen_at_once(version.ts, &version.bytes, read_ts) {
                    Some(header) => {
                        let content = (!header.tombstone).then(|| value::content(header, version.bytes));
                        if let (Some(cells), Some(moment)) = (&self.cells, moment) {
                            cells.bring_in(moment, table, &bound.cell, read_ts, version.ts, content.as_ref());
                        }
                        values[place] = content;
                    }
                    None => open.push((place, Candidate { cell: bound.cell, version })),
                }
            }
            for (place, content) in self.go_down(table, open, read_ts).await? {
                values[place] = content;
            }
        }
        self.check_not_swept(table, read_ts).await?;
        Ok(values)
    }

    /// What a reader at `read_ts` sees of one cell.
    pub(crate) async fn read_cell(&self, table: &TableRef, cell: &Cell, read_ts: Timestamp) -> Result<Option<Bytes>> {
        if let Some(content) = self.cells.as_ref().and_then(|cells| cells.get(table, cell, read_ts)) {
            self.check_not_swept(table, read_ts).await?;
            return Ok(content);
        }
        Ok(self.read_cells(table, vec![cell.clone()], read_ts).await?.pop().flatten())
    }

    /// What a reader sees of a range, a page at a time. Cells without a visible value come with `None`. The first page is
    /// of `first_page` cells, for a reader who wants no more; should that not be enough, pages are as long as requested.
    pub(crate) fn read_pages<'a>(
        &'a self,
        table: &'a TableRef,
        request: Scan,
        first_page: usize,
    ) -> impl Stream<Item = Result<Vec<(Cell, Option<Bytes>)>>> + Send + 'a {
        async_stream::try_stream! {
            let read_ts = request.read_before;
            let mut is_short = first_page < request.page_size;
            let mut pages = self.kvs.scan_pages(table, Scan { page_size: first_page, ..request.clone() });
            while let Some(page) = pages.next().await {
                let page = self.resolve_page(table, page?, read_ts).await?;
                self.check_not_swept(table, read_ts).await?;
                let after = page.last().filter(|_| is_short && page.len() >= first_page).map(|(cell, _)| cell.clone());
                yield page;
                if after.is_some() {
                    is_short = false;
                    pages = self.kvs.scan_pages(table, Scan { after, ..request.clone() });
                }
            }
            // Also of a range in which nothing was found.
            self.check_not_swept(table, read_ts).await?;
        }
    }

    /// What a reader sees of cells whose newest version below its snapshot was found.
    async fn resolve_page(
        &self,
        table: &TableRef,
        found: Vec<(Cell, Value)>,
        read_ts: Timestamp,
    ) -> Result<Vec<(Cell, Option<Bytes>)>> {
        let mut open = Vec::new();
        let seen = found.into_iter().enumerate().map(|(place, (cell, version))| {
            match self.seen_at_once(version.ts, &version.bytes, read_ts) {
                Some(header) => {
                    let value = (!header.tombstone).then(|| value::content(header, version.bytes));
                    (cell, value)
                }
                None => {
                    open.push((place, Candidate { cell: cell.clone(), version }));
                    (cell, None)
                }
            }
        });
        let mut seen: Vec<_> = seen.collect();
        for (place, content) in self.go_down(table, open, read_ts).await? {
            seen[place].1 = content;
        }
        Ok(seen)
    }

    /// Leaves in a page what a reader sees: the content of visible versions. Other cells are hidden.
    pub(crate) async fn resolve_flat(&self, table: &TableRef, page: &mut FlatPage, read_ts: Timestamp) -> Result<()> {
        let mut open = Vec::new();
        for place in 0..page.len() {
            let found = page.get(place);
            match self.seen_at_once(found.ts, found.value, read_ts) {
                Some(header) if !header.tombstone => page.cut(place, header.len()),
                Some(_) => page.hide(place),
                None => {
                    let version = Value { ts: found.ts, bytes: Bytes::copy_from_slice(found.value) };
                    open.push((place, Candidate { cell: found.cell(), version }));
                    page.hide(place);
                }
            }
        }
        for (place, content) in self.go_down(table, open, read_ts).await? {
            if let Some(content) = content {
                page.show(place, &content);
            }
        }
        self.check_not_swept(table, read_ts).await
    }

    /// The header of a version that is visible by what it says itself; for all others more has to be looked at.
    fn seen_at_once(&self, ts: Timestamp, version: &[u8], read_ts: Timestamp) -> Option<value::Header> {
        let header = value::header(version).filter(|_| ts != Timestamp::SENTINEL)?;
        match self.entries.fate_of_inlined(header.commit_ts?) {
            Fate::Committed(commit_ts) if commit_ts < read_ts => Some(header),
            _ => None,
        }
    }

    /// After each read, in this one place: what was not found may have been removed without a trace, for a reader that
    /// comes too late. A process whose lease is over has nobody who keeps its snapshots. One that runs late with a renewal
    /// is waited for: if the renewal succeeds, nobody else has begun meanwhile, and what was read is whole.
    pub(crate) async fn check_not_swept(&self, table: &TableRef, read_ts: Timestamp) -> Result<()> {
        if !Rule::CheckSwept.is_kept() {
            return Ok(());
        }
        let begun = tokio::time::Instant::now();
        while let Err(error) = self.oracle.check_held() {
            if self.oracle.lost_error().is_some() || begun.elapsed() > WAIT_FOR_RENEWAL {
                return Err(error);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.swept.check(table, read_ts)
    }

    /// Goes down from each candidate to the version visible at `read_ts`, and answers the contents of those that have
    /// one: `None` for a tombstone.
    async fn go_down(
        &self,
        table: &TableRef,
        mut open: Vec<(usize, Candidate)>,
        read_ts: Timestamp,
    ) -> Result<Vec<(usize, Option<Bytes>)>> {
        let mut visible = Vec::new();
        while !open.is_empty() {
            let looked_up = self.look_up_writers(table, &open).await?;
            let mut deeper = Vec::new();
            for (place, Candidate { cell, version }) in open {
                if version.ts == Timestamp::SENTINEL {
                    self.check_sentinel(table, &cell, read_ts).await?;
                    continue;
                }
                let (header, content) = value::decode(table, &cell, &version.bytes)?;
                let fate = match header.commit_ts {
                    Some(commit_ts) => self.entries.fate_of_inlined(commit_ts),
                    None => looked_up.get(&version.ts).copied().unwrap_or(Fate::Undecided),
                };
                match fate {
                    Fate::Committed(commit_ts) if commit_ts < read_ts => {
                        visible.push((place, (!header.tombstone).then_some(content)));
                    }
                    Fate::Committed(_) | Fate::RolledBack | Fate::Undecided => {
                        deeper.push((place, CellBound::new(cell, version.ts)));
                    }
                }
            }
            open = self.fetch_deeper(table, deeper).await?;
        }
        Ok(visible)
    }

    pub(super) async fn fetch_deeper(
        &self,
        table: &TableRef,
        deeper: Vec<(usize, CellBound)>,
    ) -> Result<Vec<(usize, Candidate)>> {
        if deeper.is_empty() {
            return Ok(Vec::new());
        }
        let (places, bounds): (Vec<usize>, Vec<CellBound>) = deeper.into_iter().unzip();
        let found = self.kvs.get(table, &bounds).await?;
        Ok(places
            .into_iter()
            .zip(bounds)
            .zip(found)
            .filter_map(|((place, bound), version)| {
                version.map(|version| (place, Candidate { cell: bound.cell, version }))
            })
            .collect())
    }

    /// The fates of the writers that did not leave their commit timestamp beside the data.
    async fn look_up_writers(
        &self,
        table: &TableRef,
        open: &[(usize, Candidate)],
    ) -> Result<BTreeMap<Timestamp, Fate>> {
        let mut fates = self.fates_of_writers(table, open.iter().map(|(_, candidate)| candidate)).await?;
        if let CommitPath::StepByStep(steps) = &self.path {
            for (writer, fate) in &mut fates {
                if *fate == Fate::Undecided {
                    *fate = steps.settle_writer(*writer).await?;
                }
            }
        }
        Ok(fates)
    }

    /// The fates of those writers as they stand, in one call.
    pub(super) async fn fates_of_writers(
        &self,
        table: &TableRef,
        candidates: impl Iterator<Item = &Candidate>,
    ) -> Result<BTreeMap<Timestamp, Fate>> {
        let mut writers = Vec::new();
        for Candidate { cell, version } in candidates {
            if version.ts != Timestamp::SENTINEL {
                let header = value::header(&version.bytes).ok_or_else(|| value::damaged(table, cell))?;
                if header.commit_ts.is_none() {
                    writers.push(version.ts);
                }
            }
        }
        if writers.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.entries.fates(&writers).await
    }

    /// A reader that found nothing but a sentinel came too late, unless the cell has no committed version at all: then
    /// nothing was taken from this reader (the sentinel is left over from versions that do not count any more).
    async fn check_sentinel(&self, table: &TableRef, cell: &Cell, read_ts: Timestamp) -> Result<()> {
        let bounds = [CellBound::new(cell.clone(), Timestamp::MAX)];
        let versions = self.kvs.versions(table, &bounds).await?.pop().unwrap_or_default();
        for version in versions.iter().rev().filter(|version| version.ts != Timestamp::SENTINEL) {
            let header = value::header(&version.prefix).ok_or_else(|| value::damaged(table, cell))?;
            let fate = match header.commit_ts {
                Some(commit_ts) => self.entries.fate_of_inlined(commit_ts),
                None => self.entries.fate(version.ts).await?,
            };
            if matches!(fate, Fate::Committed(_)) {
                return Err(Error::TooOld { table: table.clone(), read_ts });
            }
        }
        Ok(())
    }

    /// The newest committed version of each cell, whenever it committed: its commit timestamp and its content (`None`
    /// for a tombstone). Undecided versions are settled where commits go step by step, and skipped where the
    /// pipeline's leader will decide them after us.
    pub(crate) async fn newest_committed(
        &self,
        table: &TableRef,
        cells: &[Cell],
        rivals: Rivals<'_>,
    ) -> Result<Vec<Option<(Timestamp, Option<Bytes>)>>> {
        let mut newest = vec![None; cells.len()];
        let mut open: Vec<(usize, CellBound)> = cells
            .iter()
            .enumerate()
            .map(|(place, cell)| (place, CellBound::new(cell.clone(), Timestamp::MAX)))
            .collect();
        while !open.is_empty() {
            let candidates = self.fetch_deeper(table, open).await?;
            let known = self.fates_of_writers(table, candidates.iter().map(|(_, candidate)| candidate)).await?;
            let mut deeper = Vec::new();
            for (place, Candidate { cell, version }) in candidates {
                if version.ts == Timestamp::SENTINEL {
                    continue;
                }
                let (header, content) = value::decode(table, &cell, &version.bytes)?;
                let fate = match header.commit_ts {
                    Some(commit_ts) => self.entries.fate_of_inlined(commit_ts),
                    None => match known.get(&version.ts).copied().unwrap_or(Fate::Undecided) {
                        Fate::Undecided => rivals.decide(version.ts).await?,
                        decided => decided,
                    },
                };
                match fate {
                    Fate::Committed(commit_ts) => {
                        newest[place] = Some((commit_ts, (!header.tombstone).then_some(content)));
                    }
                    Fate::RolledBack | Fate::Undecided => deeper.push((place, CellBound::new(cell, version.ts))),
                }
            }
            open = deeper;
        }
        Ok(newest)
    }
}
