//! The two steps that turn a copy of a store into the state at the backup timestamp.
//!
//! ```text
//!   commits in the copy   …x..x..┤B....x....x......x....├F
//!   clean-transactions at B      [B, open)                    a window in which no commit counts, written first,
//!                                                             then each entry of it is marked as rolled back
//!   fast-forward to F            [B, F')                      nothing below F' is ever issued again; the window is
//!                                                             closed, and transactions may start
//! ```
//!
//! Both are safe to repeat and to take up again after a crash. While a window is open the store starts no
//! transaction, so nothing new can be mistaken for something old.

use crate::ops::{Progress, ProgressSink};
use crate::schema::{MetaRecord, Replaced};
use crate::timestamp::{fast_forward_stored, read_stored};
use crate::transaction::entry::{CleanedWindow, CleanedWindows, Entry, TransactionsFloor, transactions_table};
use crate::{Error, Result};
use atlas_kvs::{AtomicScan, Cell, CheckAndSet, KeyValueService, RowRange, Timestamp};
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How many entries are marked at a time: enough for a store that syncs many writes at once.
const IN_FLIGHT: usize = 64;

/// How many entries are fetched at a time.
const PAGE: usize = 1024;

/// How many examples a report shows.
const EXAMPLES: usize = 10;

/// Progress is told every so many entries.
const TOLD_EVERY: u64 = 1000;

/// What deletions have destroyed: the state at or below this timestamp can't be restored from this store any more.
///
/// Whoever removes versions writes it, with compare-and-set, *before* the first removal it justifies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletionFloor {
    /// The greatest commit timestamp because of which an older version was removed.
    pub highest_justifying_commit: Timestamp,
}

impl DeletionFloor {
    /// The record in the store.
    pub fn in_store(kvs: Arc<dyn KeyValueService>) -> MetaRecord<DeletionFloor> {
        MetaRecord::new(kvs, "sweep-floor")
    }

    /// Records that something is about to be removed because of `ts`; never goes back.
    ///
    /// # Errors
    /// Those of the store: nothing may be removed then.
    pub async fn raise(kvs: Arc<dyn KeyValueService>, ts: Timestamp) -> Result<()> {
        let stored = DeletionFloor::in_store(kvs);
        let mut loaded = stored.load().await?;
        loop {
            let bytes = match &loaded {
                Some((floor, _)) if floor.highest_justifying_commit >= ts => return Ok(()),
                Some((_, bytes)) => Some(bytes),
                None => None,
            };
            let floor = DeletionFloor { highest_justifying_commit: ts };
            match stored.replace(bytes, Some(&floor)).await? {
                Replaced::Done(_) => return Ok(()),
                // Each round means that another one made progress.
                Replaced::Other(found) => loaded = found,
            }
        }
    }
}

/// What [`clean_transactions`] did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanReport {
    /// The backup timestamp given.
    pub backup_ts: Timestamp,
    /// What became of the cleaned window.
    pub window: WindowChange,
    /// Entries looked at.
    pub scanned: u64,
    /// Entries marked as rolled back by this run; in a dry run, those that would be.
    pub rolled_back: u64,
    /// Entries that said *rolled back* before, or lie in a window that an earlier restore closed.
    pub already: u64,
    /// The first few of those marked.
    pub examples: Vec<CleanedEntry>,
    /// Nothing was changed.
    pub dry_run: bool,
}

/// What became of the cleaned window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "change")]
pub enum WindowChange {
    /// A window was opened; `fast-forward` closes it.
    Opened,
    /// The window was open already: an earlier run was taken up again.
    Resumed,
    /// The timestamp lies in a window that an earlier restore closed. Nothing was looked at and nothing was changed:
    /// what is above it now was committed after that restore.
    AlreadyClosed {
        /// Where that window begins.
        from: Timestamp,
        /// Where it ends.
        until: Timestamp,
    },
}

/// A transaction that does not count any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanedEntry {
    /// The transaction.
    pub start_ts: Timestamp,
    /// Where it had committed.
    pub commit_ts: Timestamp,
}

/// What [`fast_forward`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FastForwardReport {
    /// The greatest number that may have been issued before.
    pub before: Timestamp,
    /// Nothing at or below this is issued from now on; the same as `before` if the timestamp was not above it.
    pub after: Timestamp,
    /// The cleaned window that was open, as it was closed.
    pub window_closed: Option<CleanedWindow>,
}

/// Declares every commit at or above `backup_ts` rolled back, whatever its start timestamp, on a store that nobody
/// uses. Memory is bounded; progress is told in entries. `dry_run` makes the same checks and changes nothing.
///
/// # Errors
/// [`Error::Refused`] if the timestamp was never issued by this store, if the state at it was destroyed by deletions,
/// or if a restore to another timestamp is under way; [`Error::Corrupt`] naming the transaction for an entry that
/// can't be read, which stops the run; errors of the store. In each case the run may be repeated.
///
/// Cancel safe: a dropped run has marked some entries, and another one marks the rest.
pub async fn clean_transactions(
    kvs: Arc<dyn KeyValueService>,
    backup_ts: Timestamp,
    dry_run: bool,
    progress: &ProgressSink,
) -> Result<CleanReport> {
    let (window, windows) = open_window(Arc::clone(&kvs), backup_ts, dry_run).await?;
    let mut report =
        CleanReport { backup_ts, window, scanned: 0, rolled_back: 0, already: 0, examples: Vec::new(), dry_run };
    if matches!(window, WindowChange::AlreadyClosed { .. }) {
        return Ok(report);
    }
    if !dry_run {
        // Entries below the floor may be missing from the copy, and what it says of them was true above the timestamp,
        // too: from here on the floor may not pass it until every table was walked.
        TransactionsFloor::update(Arc::clone(&kvs), |floor| TransactionsFloor {
            below: floor.below.min(backup_ts),
            ..floor
        })
        .await?;
    }
    // After the window: readers that know it need no marks, so a crash in the middle of them is no half state.
    mark_entries(kvs.as_ref(), &windows, &mut report, progress).await?;
    Ok(report)
}

/// Makes sure that a window is open at `backup_ts`. Answers what was done, and the windows closed earlier.
async fn open_window(
    kvs: Arc<dyn KeyValueService>,
    backup_ts: Timestamp,
    dry_run: bool,
) -> Result<(WindowChange, CleanedWindows)> {
    let record = CleanedWindows::in_store(Arc::clone(&kvs));
    let mut loaded = record.load().await?;
    loop {
        let (mut windows, bytes) = match loaded {
            Some((windows, bytes)) => (windows, Some(bytes)),
            None => (CleanedWindows::default(), None),
        };
        let closed = CleanedWindows {
            windows: windows.windows.iter().copied().filter(|window| window.until.is_some()).collect(),
        };
        match windows.open_window() {
            Some(open) if open.from != backup_ts => return Err(other_restore(open.from, backup_ts)),
            Some(_) => {
                check_restorable(kvs, backup_ts).await?;
                return Ok((WindowChange::Resumed, closed));
            }
            None => (),
        }
        if let Some((from, until)) = containing(&closed, backup_ts) {
            return Ok((WindowChange::AlreadyClosed { from, until }, closed));
        }
        check_restorable(Arc::clone(&kvs), backup_ts).await?;
        if dry_run {
            return Ok((WindowChange::Opened, closed));
        }
        windows.windows.push(CleanedWindow { from: backup_ts, until: None });
        match record.replace(bytes.as_ref(), Some(&windows)).await? {
            Replaced::Done(_) => return Ok((WindowChange::Opened, closed)),
            // Somebody else, or an earlier write of ours whose answer was lost: look again.
            Replaced::Other(found) => loaded = found,
        }
    }
}

fn other_restore(open: Timestamp, backup_ts: Timestamp) -> Error {
    Error::refused(
        format!("a restore to timestamp {open} is under way in this store, so it can't be cleaned at {backup_ts}"),
        format!("finish it: clean-transactions at {open}, then fast-forward with the same backup's file"),
    )
}

fn containing(closed: &CleanedWindows, ts: Timestamp) -> Option<(Timestamp, Timestamp)> {
    closed
        .windows
        .iter()
        .filter_map(|window| Some((window.from, window.until?)))
        .find(|(from, until)| (*from..*until).contains(&ts))
}

/// Whether the state at `backup_ts` can still be had from this store.
async fn check_restorable(kvs: Arc<dyn KeyValueService>, backup_ts: Timestamp) -> Result<()> {
    // A copy holds the bound as it was persisted before the backup timestamp was issued. A greater number is a slip
    // of the pen, and a window opened there could only be closed by losing that many timestamps.
    let bound = read_stored(Arc::clone(&kvs)).await?.map_or(Timestamp::FIRST, |record| record.bound);
    if backup_ts >= bound || !backup_ts.is_data() {
        return Err(Error::refused(
            format!("timestamp {backup_ts} was never issued by this store: its bound is {bound}"),
            "check that the timestamp belongs to this copy: it is in the backup's file backup.timestamp",
        ));
    }
    let Some((floor, _)) = DeletionFloor::in_store(kvs).load().await? else { return Ok(()) };
    if backup_ts <= floor.highest_justifying_commit {
        return Err(Error::refused(
            format!(
                "the state at timestamp {backup_ts} is not in this copy any more: versions were removed because of \
                 commits up to {}",
                floor.highest_justifying_commit
            ),
            "use a backup whose backup lock was held from before its timestamp until the copy was finished",
        ));
    }
    Ok(())
}

async fn mark_entries(
    kvs: &dyn KeyValueService,
    closed: &CleanedWindows,
    report: &mut CleanReport,
    progress: &ProgressSink,
) -> Result<()> {
    let table = transactions_table();
    // A store in which no transaction ever ran.
    if kvs.table(&table).await?.is_none() {
        return Ok(());
    }
    // All of the table: a transaction that began long before `backup_ts` may have committed after it.
    let mut entries = kvs.scan_atomic(&table, AtomicScan { page_size: PAGE, ..AtomicScan::new(RowRange::all()) });
    let mut marks = FuturesUnordered::new();
    while let Some((cell, bytes)) = entries.try_next().await? {
        report.scanned += 1;
        if report.scanned.is_multiple_of(TOLD_EVERY) {
            tell(progress, report.scanned);
        }
        let start_ts = Entry::start_ts_of(&cell)?;
        match Entry::decode(start_ts, &bytes)? {
            Entry::Committed(commit_ts) if commit_ts < report.backup_ts => (),
            // Hidden for good; a write would add nothing.
            Entry::Committed(commit_ts) if closed.hides(commit_ts) => report.already += 1,
            Entry::Committed(commit_ts) => {
                if report.examples.len() < EXAMPLES {
                    report.examples.push(CleanedEntry { start_ts, commit_ts });
                }
                if report.dry_run {
                    report.rolled_back += 1;
                    continue;
                }
                if marks.len() >= IN_FLIGHT {
                    count(&mut marks, report).await?;
                }
                marks.push(mark(kvs, start_ts, cell, bytes));
            }
            Entry::RolledBack => report.already += 1,
        }
    }
    while !marks.is_empty() {
        count(&mut marks, report).await?;
    }
    tell(progress, report.scanned);
    Ok(())
}

async fn count<F: Future<Output = Result<()>>>(
    marks: &mut FuturesUnordered<F>,
    report: &mut CleanReport,
) -> Result<()> {
    if let Some(marked) = marks.next().await {
        marked?;
        report.rolled_back += 1;
    }
    Ok(())
}

/// Replaces the entry, never removes it: a transaction without an entry looks as if it were still running.
async fn mark(kvs: &dyn KeyValueService, start_ts: Timestamp, cell: Cell, found: Bytes) -> Result<()> {
    let rolled_back = Entry::RolledBack.encode();
    match kvs.check_and_set(&transactions_table(), &cell, Some(found), Some(rolled_back.clone())).await? {
        CheckAndSet::Applied => Ok(()),
        // A mark of ours whose first answer was lost inside the store's client.
        CheckAndSet::Mismatch(Some(now)) if now == rolled_back => Ok(()),
        CheckAndSet::Mismatch(_) => Err(Error::refused(
            format!("the entry of transaction {start_ts} was changed while the store was being cleaned"),
            "stop every process that uses the store, then repeat the command",
        )),
    }
}

fn tell(progress: &ProgressSink, done: u64) {
    progress(Progress { step: "clean".to_owned(), done, total: None, unit: "entries".to_owned() });
}

/// Makes sure that no number up to and including `fast_forward_ts` is ever issued again, on a store that nobody
/// uses, and closes the window that [`clean_transactions`] opened. Never goes back: at or below the bound the bound
/// stays as it is.
///
/// The window is closed at `fast_forward_ts` or at the bound found in the copy, whichever is greater: both are above
/// everything the copy holds if the timestamp is the right one, and with one from another backup the bound still is.
///
/// # Errors
/// [`Error::Refused`] if an open window begins at or above `fast_forward_ts`, and for a jump over more than 2^40
/// unless `allow_large_jump`; nothing is changed then.
///
/// Cancel safe: repeat it.
pub async fn fast_forward(
    kvs: Arc<dyn KeyValueService>,
    fast_forward_ts: Timestamp,
    allow_large_jump: bool,
) -> Result<FastForwardReport> {
    let windows = CleanedWindows::load(Arc::clone(&kvs)).await?;
    if let Some(open) = windows.open_window().filter(|open| fast_forward_ts <= open.from) {
        return Err(Error::refused(
            format!(
                "fast-forward timestamp {fast_forward_ts} is not above {}, the backup timestamp this store was \
                 cleaned at",
                open.from
            ),
            "this is probably the content of backup.timestamp; the same backup's fast-forward.timestamp is meant",
        ));
    }
    // The bound first: after a crash here no transaction starts, because the window is open. The other way round the
    // store would look whole and issue numbers that are in the copy already.
    let jump = fast_forward_stored(Arc::clone(&kvs), fast_forward_ts, allow_large_jump).await?;
    // Everything in the copy lies at or below its bound, even if the timestamp given is that of an older backup.
    let window_closed = close_window(kvs, fast_forward_ts.max(jump.before.next())).await?;
    Ok(FastForwardReport { before: jump.before, after: jump.after, window_closed })
}

async fn close_window(kvs: Arc<dyn KeyValueService>, until: Timestamp) -> Result<Option<CleanedWindow>> {
    let record = CleanedWindows::in_store(kvs);
    let mut loaded = record.load().await?;
    loop {
        let Some((mut windows, bytes)) = loaded else { return Ok(None) };
        let Some(open) = windows.windows.iter_mut().find(|window| window.until.is_none()) else { return Ok(None) };
        open.until = Some(until);
        let closed = *open;
        match record.replace(Some(&bytes), Some(&windows)).await? {
            Replaced::Done(_) => return Ok(Some(closed)),
            Replaced::Other(found) => loaded = found,
        }
    }
}
