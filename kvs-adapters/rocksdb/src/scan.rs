//! Scans, a page at a time.
//!
//! A page is one call on one iterator, which is closed with it, so that a slow consumer pins neither blocks nor files;
//! the next page seeks to where this one ended. It ends after so many cells or bytes, whichever comes first, and after
//! so many steps, so that a long stretch without a visible cell does not become one long call. A page on a thread of the
//! runtime is so short that others hardly wait for it.
//!
//! Forward, the iterator stands on the newest version of a cell, backward on the oldest:
//!
//! ```text
//!   a│9 a│5 a│2   b│7   c│8 c│3                 read_before 6
//!   ▲   ✓ ──────▶ ▲ ──▶ ▲   ✓                   forward: to cell‖!5, take it, then behind the cell
//!       ✓   ▲ ◀── ▲ ◀────── ▲                   backward: up from the oldest while below 6, then before the cell
//! ```
//!
//! A short way is gone step by step, since a seek costs as much as several steps; a long way is one seek.

use crate::db::{Db, Family, RawIterator};
use crate::errors::{corrupt_key, read_failed};
use crate::keys;
use crate::names::Names;
use crate::page::{Cells, Collect, Next, Page, SharedCells};
use crate::read::{Tier, timestamp_within, versions_here};
use atlas_kvs::{
    AtomicScan, Cell, CellVersions, ColumnSelection, KvsError, Result, RowRange, Scan, TableKind, TableRef, Timestamp,
    VersionScan,
};
use bytes::Bytes;
use std::ops::Bound;

/// Steps that are tried before a seek.
const NEAR: usize = 4;
const BYTES_MAX: usize = 4 << 20;
const CELLS_MAX: usize = 10_000;
const STEPS_MAX: usize = 200_000;
/// Bytes that are read at a time past the cache.
const READ_AHEAD: usize = 512 << 10;
/// Of a page that is read on a thread of the runtime.
const MEMORY_BYTES_MAX: usize = 256 << 10;
const MEMORY_STEPS_MAX: usize = 2_000;
/// Deleted keys that RocksDB passes in one step on a thread of the runtime.
const MEMORY_SKIPS_MAX: u64 = 1_000;

/// The keys a scan is about, `lower` inclusive and `upper` exclusive, and how it goes through them.
#[derive(Clone, Debug)]
pub(crate) struct KeyRange {
    lower: Vec<u8>,
    upper: Option<Vec<u8>>,
    reverse: bool,
    page_size: usize,
    bypass_cache: bool,
}

impl KeyRange {
    pub(crate) fn of_scan(scan: &Scan) -> KeyRange {
        let mut range = KeyRange::of_rows(&scan.rows, scan.reverse, scan.page_size);
        if scan.rows.is_single() {
            range.narrow_to_columns(&scan.rows.start, &scan.columns);
        }
        range.bypass_cache = scan.bypass_cache;
        range.resume(scan.after.as_ref())
    }

    pub(crate) fn of_version_scan(scan: &VersionScan) -> KeyRange {
        KeyRange::of_rows(&scan.rows, false, scan.page_size).resume(scan.after.as_ref())
    }

    pub(crate) fn of_atomic_scan(scan: &AtomicScan) -> KeyRange {
        KeyRange::of_rows(&scan.rows, scan.reverse, scan.page_size).resume(scan.after.as_ref())
    }

    fn of_rows(rows: &RowRange, reverse: bool, page_size: usize) -> KeyRange {
        let upper = rows.end.as_ref().map(|end| keys::of_row(end));
        KeyRange { lower: keys::of_row(&rows.start), upper, reverse, page_size, bypass_cache: false }
    }

    /// In a scan of one row the columns are a range of keys too.
    fn narrow_to_columns(&mut self, row: &Bytes, columns: &ColumnSelection) {
        let before = |column: &Bytes| keys::of_cell(&Cell::new(row.clone(), column.clone()));
        match columns {
            ColumnSelection::All => {}
            ColumnSelection::Exactly(columns) => {
                self.raise_lower(columns.first().map(before));
                self.cut_upper(columns.last().map(|last| keys::behind(before(last))));
            }
            ColumnSelection::Range { start, end } => {
                self.raise_lower(Some(before(start)));
                self.cut_upper(end.as_ref().map(before));
            }
        }
    }

    /// Leaves out everything up to and including `after`.
    fn resume(mut self, after: Option<&Cell>) -> KeyRange {
        let bound = after.map(keys::of_cell);
        if self.reverse {
            self.cut_upper(bound)
        } else {
            self.raise_lower(bound.map(keys::behind))
        }
        self
    }

    fn raise_lower(&mut self, bound: Option<Vec<u8>>) {
        if let Some(bound) = bound.filter(|bound| *bound > self.lower) {
            self.lower = bound;
        }
    }

    fn cut_upper(&mut self, bound: Option<Vec<u8>>) {
        if let Some(bound) = bound.filter(|bound| self.upper.as_ref().is_none_or(|upper| bound < upper)) {
            self.upper = Some(bound);
        }
    }

    fn is_empty(&self) -> bool {
        self.upper.as_ref().is_some_and(|upper| *upper <= self.lower)
    }
}

/// An iterator over what is left of a scan, and how much of the page is used up.
struct Cursor<'a> {
    table: &'a TableRef,
    tier: Tier,
    iterator: RawIterator<'a>,
    cells_left: usize,
    bytes_left: usize,
    steps_left: usize,
}

/// What stands between a cursor and its next key.
enum Stop {
    /// The range is over.
    End,
    /// The tier does not reach the next key.
    FellShort,
}

impl<'a> Cursor<'a> {
    fn new(
        db: &'a Db,
        table: &'a TableRef,
        family: &Family<'a>,
        range: &KeyRange,
        from: &Next,
        tier: Tier,
        in_memory_max: usize,
    ) -> Cursor<'a> {
        let mut range = range.clone();
        if let Next::At(key) = from {
            if range.reverse { range.cut_upper(Some(key.clone())) } else { range.raise_lower(Some(key.clone())) }
        }
        let mut options = tier.options();
        // Without it a seek asks the filter of one cell, and the scan ends with that cell.
        options.set_total_order_seek(true);
        if tier == Tier::Memory {
            // What lies behind a long run of deletions is reported as out of reach, as if it were on disk.
            options.set_max_skippable_internal_keys(MEMORY_SKIPS_MAX);
        }
        if range.bypass_cache {
            options.fill_cache(false);
            // By itself it reads ahead only after some blocks, and each page begins anew.
            options.set_readahead_size(READ_AHEAD);
        }
        options.set_iterate_lower_bound(range.lower.clone());
        if let Some(upper) = range.upper {
            options.set_iterate_upper_bound(upper);
        }
        let mut iterator = db.rocks.raw_iterator_cf_opt(family, options);
        if range.reverse {
            iterator.seek_to_last()
        } else {
            iterator.seek_to_first()
        }
        let (cells_max, bytes_left, steps_left) = match tier {
            Tier::Memory => (in_memory_max, MEMORY_BYTES_MAX, MEMORY_STEPS_MAX),
            Tier::Disk => (CELLS_MAX, BYTES_MAX, STEPS_MAX),
        };
        Cursor { table, tier, iterator, cells_left: range.page_size.clamp(1, cells_max), bytes_left, steps_left }
    }

    fn key(&self) -> Option<&[u8]> {
        self.iterator.key()
    }

    /// Why there is no key.
    fn stop(&self) -> Result<Stop> {
        match self.iterator.status() {
            Ok(()) => Ok(Stop::End),
            Err(error) if self.tier.falls_short(&error) => Ok(Stop::FellShort),
            Err(error) => Err(read_failed(self.table, error)),
        }
    }

    fn page_is_full(&self) -> bool {
        self.cells_left == 0 || self.bytes_left == 0 || self.steps_left == 0
    }

    fn count(&mut self, bytes: usize) {
        self.cells_left -= 1;
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
    }

    fn forward(&mut self) {
        self.steps_left = self.steps_left.saturating_sub(1);
        self.iterator.next();
    }

    fn back(&mut self) {
        self.steps_left = self.steps_left.saturating_sub(1);
        self.iterator.prev();
    }

    /// Moves forward to the first key at or behind `target`.
    fn skip_to(&mut self, target: &[u8]) {
        for _ in 0..NEAR {
            if self.key().is_none_or(|key| key >= target) {
                return;
            }
            self.forward();
        }
        if self.key().is_some_and(|key| key < target) {
            self.steps_left = self.steps_left.saturating_sub(1);
            self.iterator.seek(target);
        }
    }

    /// Moves back to the last key before `target`.
    fn skip_before(&mut self, target: &[u8]) {
        for _ in 0..NEAR {
            if self.key().is_none_or(|key| key < target) {
                return;
            }
            self.back();
        }
        if self.key().is_some_and(|key| key >= target) {
            self.steps_left = self.steps_left.saturating_sub(1);
            self.iterator.seek_for_prev(target);
            if self.key() == Some(target) {
                self.iterator.prev();
            }
        }
    }

    /// The version under the cursor, if there is one and it is of `cell`.
    fn timestamp_within(&self, cell: &[u8]) -> Result<Option<Timestamp>> {
        self.key().map_or(Ok(None), |key| timestamp_within(self.table, key, cell))
    }
}

/// What a column selection says about a cell that a scan meets.
enum Selected {
    Yes,
    /// Not this cell. Forward: nothing before this key. Backward: nothing at or behind it.
    No(Vec<u8>),
}

fn select_forward(columns: &ColumnSelection, Names { row, column, .. }: &Names) -> Selected {
    let start = |column: &Bytes| Selected::No(keys::of_names(row, column));
    let next_row = || Selected::No(keys::behind(keys::of_row(row)));
    match columns {
        ColumnSelection::All => Selected::Yes,
        ColumnSelection::Exactly(columns) => {
            match columns.range::<[u8], _>((Bound::Included(&column[..]), Bound::Unbounded)).next() {
                Some(selected) if selected == column => Selected::Yes,
                Some(selected) => start(selected),
                None => next_row(),
            }
        }
        ColumnSelection::Range { start: first, .. } if column < first => start(first),
        ColumnSelection::Range { end: Some(end), .. } if column >= end => next_row(),
        ColumnSelection::Range { .. } => Selected::Yes,
    }
}

fn select_backward(columns: &ColumnSelection, Names { row, column, .. }: &Names) -> Selected {
    let before = |column: &Bytes| keys::of_names(row, column);
    let previous_row = || Selected::No(keys::of_row(row));
    match columns {
        ColumnSelection::All => Selected::Yes,
        ColumnSelection::Exactly(columns) => {
            match columns.range::<[u8], _>((Bound::Unbounded, Bound::Included(&column[..]))).next_back() {
                Some(selected) if selected == column => Selected::Yes,
                Some(selected) => Selected::No(keys::behind(before(selected))),
                None => previous_row(),
            }
        }
        ColumnSelection::Range { start, .. } if column < start => previous_row(),
        ColumnSelection::Range { end: Some(end), .. } if column >= end => Selected::No(before(end)),
        ColumnSelection::Range { .. } => Selected::Yes,
    }
}

impl Db {
    /// A page of a scan for the newest versions.
    pub(crate) fn scan_page<C: Collect>(
        &self,
        table: &TableRef,
        scan: &Scan,
        range: &KeyRange,
        from: &Next,
        tier: Tier,
    ) -> Result<Page<C::Items>> {
        let Some(family) = self.family_for_scan(table, TableKind::Versioned, tier)? else {
            return Ok(Page::short(C::Items::default(), from.clone()));
        };
        if range.is_empty() || scan.read_before == Timestamp::SENTINEL {
            return Ok(Page::full(C::Items::default(), Next::End));
        }
        let cursor = Cursor::new(self, table, &family, range, from, tier, C::IN_MEMORY_MAX);
        let cells = C::new(cursor.cells_left);
        if scan.reverse { page_backward(cursor, scan, from, cells) } else { page_forward(cursor, scan, from, cells) }
    }

    /// A page of a scan for all versions.
    pub(crate) fn version_page(
        &self,
        table: &TableRef,
        scan: &VersionScan,
        range: &KeyRange,
        from: &Next,
        tier: Tier,
    ) -> Result<Page<Vec<CellVersions>>> {
        let Some(family) = self.family_for_scan(table, TableKind::Versioned, tier)? else {
            return Ok(Page::short(Vec::new(), from.clone()));
        };
        if range.is_empty() || scan.read_before == Timestamp::SENTINEL {
            return Ok(Page::full(Vec::new(), Next::End));
        }
        // A cell of which the tier reaches only a part would have to be taken back: scans of versions are long anyway.
        debug_assert_eq!(tier, Tier::Disk, "scans of versions run on blocking threads");
        page_of_versions(Cursor::new(self, table, &family, range, from, tier, SharedCells::IN_MEMORY_MAX), scan)
    }

    /// A page of a scan of an atomic table.
    pub(crate) fn atomic_page(
        &self,
        table: &TableRef,
        scan: &AtomicScan,
        range: &KeyRange,
        from: &Next,
        tier: Tier,
    ) -> Result<Page<Vec<(Cell, Bytes)>>> {
        let Some(family) = self.family_for_scan(table, TableKind::Atomic, tier)? else {
            return Ok(Page::short(Vec::new(), from.clone()));
        };
        if range.is_empty() {
            return Ok(Page::full(Vec::new(), Next::End));
        }
        let cursor = Cursor::new(self, table, &family, range, from, tier, SharedCells::IN_MEMORY_MAX);
        page_of_atomic(cursor, scan.reverse, from)
    }

    /// The column family of a table, or nothing if a thread of the runtime would have to wait for it.
    fn family_for_scan(&self, table: &TableRef, kind: TableKind, tier: Tier) -> Result<Option<Family<'_>>> {
        self.catalog(tier).map(|catalog| self.family(&catalog, table, kind)).transpose()
    }
}

/// How far a page has come: nothing before it is of interest any more, and the next page begins there.
struct Reached {
    place: Place,
    /// Of the cell, where there is one.
    names: Names,
}

enum Place {
    /// Where the page began.
    Start,
    /// At the cell, of which nothing was taken.
    Cell,
    /// Done with the cell.
    DoneWithCell,
    Key(Vec<u8>),
}

/// What a page has come to.
enum Met {
    /// A version of a cell that is not done yet.
    Version(Timestamp),
    /// An older version of a cell of which one was taken.
    DoneBefore,
}

impl Reached {
    fn start() -> Reached {
        Reached { place: Place::Start, names: Names::default() }
    }

    fn come_to(&mut self, table: &TableRef, key: &[u8]) -> Result<Met> {
        let split = keys::split_timestamp(key).and_then(|(cell, ts)| Ok((ts, self.names.read(cell)?)));
        let (ts, is_same) = split.map_err(|_| corrupt_key(table, key))?;
        if is_same && matches!(self.place, Place::DoneWithCell) {
            return Ok(Met::DoneBefore);
        }
        self.place = Place::Cell;
        Ok(Met::Version(ts))
    }

    /// Where the next page begins, if this one, which began at `from`, goes forward.
    fn next_forward(self, from: &Next) -> Next {
        match self.place {
            Place::Start => from.clone(),
            Place::Cell => Next::At(self.names.into_cell()),
            Place::DoneWithCell => Next::At(keys::behind(self.names.into_cell())),
            Place::Key(key) => Next::At(key),
        }
    }

    /// Where the next page begins, if this one goes backward.
    fn next_backward(self, from: &Next) -> Next {
        match self.place {
            Place::Start => from.clone(),
            // A cell that is not done yet is read again by the next page.
            Place::Cell => Next::At(keys::behind(self.names.into_cell())),
            Place::DoneWithCell => Next::At(self.names.into_cell()),
            Place::Key(key) => Next::At(key),
        }
    }
}

fn page_forward<C: Collect>(mut cursor: Cursor<'_>, scan: &Scan, from: &Next, mut cells: C) -> Result<Page<C::Items>> {
    let mut reached = Reached::start();
    let selects = scan.columns != ColumnSelection::All;
    while !cursor.page_is_full() {
        let Some((key, value)) = cursor.iterator.item() else {
            return Ok(match cursor.stop()? {
                Stop::End => Page::full(cells.into_items(), Next::End),
                Stop::FellShort => Page::short(cells.into_items(), reached.next_forward(from)),
            });
        };
        let Met::Version(ts) = reached.come_to(cursor.table, key)? else {
            cursor.skip_to(&keys::behind(reached.names.cell().to_vec()));
            continue;
        };
        if selects && let Selected::No(target) = select_forward(&scan.columns, &reached.names) {
            cursor.skip_to(&target);
            reached.place = Place::Key(target);
            continue;
        }
        if ts >= scan.read_before {
            let mut target = reached.names.cell().to_vec();
            keys::push_timestamp(&mut target, scan.read_before.previous());
            cursor.skip_to(&target);
            continue;
        }
        cells.push(&reached.names, ts, value);
        let len = key.len() + value.len();
        cursor.count(len);
        reached.place = Place::DoneWithCell;
        cursor.forward();
    }
    Ok(Page::full(cells.into_items(), reached.next_forward(from)))
}

fn page_backward<C: Collect>(mut cursor: Cursor<'_>, scan: &Scan, from: &Next, mut cells: C) -> Result<Page<C::Items>> {
    let mut reached = Reached::start();
    let mut newest = Newest::default();
    let selects = scan.columns != ColumnSelection::All;
    while !cursor.page_is_full() {
        let Some(key) = cursor.key() else {
            return Ok(match cursor.stop()? {
                Stop::End => Page::full(cells.into_items(), Next::End),
                Stop::FellShort => Page::short(cells.into_items(), reached.next_backward(from)),
            });
        };
        let Met::Version(oldest_ts) = reached.come_to(cursor.table, key)? else {
            cursor.skip_before(reached.names.cell());
            continue;
        };
        if selects && let Selected::No(target) = select_backward(&scan.columns, &reached.names) {
            cursor.skip_before(&target);
            reached.place = Place::Key(target);
            continue;
        }
        if oldest_ts < scan.read_before {
            if let Err(FellShort) = newest.find(&mut cursor, reached.names.cell(), oldest_ts, scan.read_before)? {
                return Ok(Page::short(cells.into_items(), reached.next_backward(from)));
            }
            cells.push(&reached.names, newest.ts, &newest.value);
            cursor.count(reached.names.cell().len() + newest.value.len());
        }
        reached.place = Place::DoneWithCell;
        cursor.skip_before(reached.names.cell());
    }
    Ok(Page::full(cells.into_items(), reached.next_backward(from)))
}

struct FellShort;

/// The newest version of a cell that a scan sees on its way backward.
#[derive(Default)]
struct Newest {
    ts: Timestamp,
    value: Vec<u8>,
}

impl Newest {
    fn note(&mut self, ts: Timestamp, value: Option<&[u8]>) {
        self.ts = ts;
        self.value.clear();
        self.value.extend_from_slice(value.unwrap_or_default());
    }

    /// With the cursor on the oldest version of a cell: the newest below `read_before`. Leaves the cursor in the cell or
    /// before it.
    fn find(
        &mut self,
        cursor: &mut Cursor<'_>,
        cell_key: &[u8],
        oldest_ts: Timestamp,
        read_before: Timestamp,
    ) -> Result<std::result::Result<(), FellShort>> {
        self.note(oldest_ts, cursor.iterator.value());
        for _ in 0..NEAR {
            cursor.back();
            if cursor.key().is_none()
                && let Stop::FellShort = cursor.stop()?
            {
                return Ok(Err(FellShort));
            }
            match cursor.timestamp_within(cell_key)? {
                Some(ts) if ts < read_before => self.note(ts, cursor.iterator.value()),
                _ => return Ok(Ok(())),
            }
        }
        let mut target = cell_key.to_vec();
        keys::push_timestamp(&mut target, read_before.previous());
        cursor.iterator.seek(&target);
        match cursor.timestamp_within(cell_key)? {
            Some(ts) => {
                self.note(ts, cursor.iterator.value());
                Ok(Ok(()))
            }
            None => match cursor.stop()? {
                Stop::FellShort => Ok(Err(FellShort)),
                Stop::End => Err(lost_version(cursor.table, cell_key)),
            },
        }
    }
}

/// An iterator sees one state of the table, so what it showed once is still there.
fn lost_version(table: &TableRef, cell_key: &[u8]) -> KvsError {
    let reason = format!("a version of cell {} was seen and not found again", cell_key.escape_ascii());
    KvsError::corrupt(format!("table '{table}'"), reason)
}

fn page_of_versions(mut cursor: Cursor<'_>, scan: &VersionScan) -> Result<Page<Vec<CellVersions>>> {
    let mut cells = Cells::new(cursor.cells_left);
    let mut names = Names::default();
    loop {
        let Some(key) = cursor.key() else {
            cursor.stop()?;
            return Ok(Page::full(cells.into_items(), Next::End));
        };
        if cursor.page_is_full() {
            return Ok(Page::full(cells.into_items(), Next::At(key.to_vec())));
        }
        let split = keys::split_timestamp(key).and_then(|(cell, ts)| names.read(cell).map(|_| ts));
        let newest_ts = split.map_err(|_| corrupt_key(cursor.table, key))?;
        if newest_ts >= scan.read_before {
            let mut target = names.cell().to_vec();
            keys::push_timestamp(&mut target, scan.read_before.previous());
            cursor.skip_to(&target);
        }
        let versions = versions_here(cursor.table, &mut cursor.iterator, names.cell())?;
        cursor.steps_left = cursor.steps_left.saturating_sub(versions.len());
        if !versions.is_empty() {
            cursor.count(names.cell().len() + versions.len() * size_of::<atlas_kvs::Version>());
            cells.push(&names, &[], versions);
        }
    }
}

fn page_of_atomic(mut cursor: Cursor<'_>, reverse: bool, from: &Next) -> Result<Page<Vec<(Cell, Bytes)>>> {
    let mut cells = Cells::new(cursor.cells_left);
    let mut reached = Reached::start();
    let next = |reached: Reached| if reverse { reached.next_backward(from) } else { reached.next_forward(from) };
    while !cursor.page_is_full() {
        let Some((key, value)) = cursor.iterator.item() else {
            return Ok(match cursor.stop()? {
                Stop::End => Page::full(cells.into_items(), Next::End),
                Stop::FellShort => Page::short(cells.into_items(), next(reached)),
            });
        };
        reached.names.read(key).map_err(|_| corrupt_key(cursor.table, key))?;
        reached.place = Place::DoneWithCell;
        cells.push(&reached.names, value, ());
        let len = key.len() + value.len();
        cursor.count(len);
        if reverse { cursor.back() } else { cursor.forward() }
    }
    Ok(Page::full(cells.into_items(), next(reached)))
}
