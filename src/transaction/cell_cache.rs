//! The newest committed version of cells, in memory, where one leader commits for all.
//!
//! A reader whose snapshot lies above the commit of the newest version sees that version, and need not ask the store:
//!
//! ```text
//!   ── older commit ──── newest commit ─────┤ snapshot      answered here
//!   ── older commit ──┤ snapshot ── newest commit           the store is asked
//! ```
//!
//! What is held must be the newest that a snapshot can see, at every moment. Readers bring in what they have read, and
//! the leader replaces it:
//!
//! * The leader notes a commit here after it was applied and before it is published: nobody has a snapshot above it yet.
//!   Each note leaves a mark, so that a reader that read before the commit brings in nothing after it.
//! * A group whose outcome was unknown may have committed anything: all is forgotten before its commits are published.
//! * Whoever removes a table or what is in it makes everybody forget. What was committed before and is noted later finds
//!   nothing to replace: the leader brings nothing in.
//!
//! Overlapping writers may both commit where a table lets them. Then the version of the one that *started* last lies on
//! top, in the store as here.

use super::value;
use crate::rule::Rule;
use atlas_kvs::{AtomicBatch, BatchOp, Cell, TableRef, Timestamp};
use bytes::{Bytes, BytesMut};
use foldhash::quality::FixedState;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Weighter};
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How many marks there are. Cells that share one keep each other's readers from bringing something in, no more.
const MARKS: usize = 1 << 16;
/// How many latches there are: whoever changes a cell holds one.
const LATCHES: usize = 1 << 8;
/// What a cell takes besides its bytes, about.
const OVERHEAD: usize = 160;
/// Larger values are not held: they would drive out many cells.
const VALUE_LEN_MAX: usize = 64 << 10;

/// The newest committed versions of cells.
#[derive(Debug)]
pub(crate) struct CellCache {
    cells: Cache<Place, Newest, Weight>,
    /// The last commit of a cell of this hash.
    marks: Box<[AtomicU64]>,
    latches: Box<[Mutex<()>]>,
    /// Raised when everything is forgotten.
    generation: AtomicU64,
    /// Nothing is brought in any more.
    closed: AtomicBool,
    /// Of commits below this some have left no mark.
    marked_from: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    table: TableRef,
    cell: Cell,
}

/// A place as somebody asks for it.
struct PlaceRef<'a> {
    table: &'a TableRef,
    cell: &'a Cell,
}

impl Hash for PlaceRef<'_> {
    /// As a [`Place`].
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.table.hash(state);
        self.cell.hash(state);
    }
}

impl Equivalent<Place> for PlaceRef<'_> {
    fn equivalent(&self, place: &Place) -> bool {
        *self.cell == place.cell && *self.table == place.table
    }
}

#[derive(Clone, Debug)]
struct Newest {
    /// Where the version lies.
    start_ts: Timestamp,
    /// Snapshots above this see it.
    since: Timestamp,
    /// Nothing for a tombstone.
    content: Option<Bytes>,
}

#[derive(Clone, Debug)]
struct Weight;

impl Weighter<Place, Newest> for Weight {
    fn weight(&self, place: &Place, newest: &Newest) -> u64 {
        let names = place.cell.row.len() + place.cell.column.len();
        (OVERHEAD + names + newest.content.as_ref().map_or(0, Bytes::len)) as u64
    }
}

/// The moment before a read: what was read is brought in only if nothing was forgotten since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment(u64);

impl CellCache {
    /// A cache of at most `bytes`, for a store in which commits below `marked_from` were applied before. `None` for one
    /// that holds nothing.
    pub(crate) fn new(bytes: usize, marked_from: Timestamp) -> Option<CellCache> {
        if bytes == 0 {
            return None;
        }
        Some(CellCache {
            cells: Cache::with_weighter(bytes / (2 * OVERHEAD), bytes as u64, Weight),
            marks: (0..MARKS).map(|_| AtomicU64::new(0)).collect(),
            latches: (0..LATCHES).map(|_| Mutex::new(())).collect(),
            generation: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            marked_from: AtomicU64::new(marked_from.get()),
        })
    }

    /// What a snapshot sees of a cell, if it is known here: `Some(None)` if the cell was deleted.
    pub(crate) fn get(&self, table: &TableRef, cell: &Cell, read_ts: Timestamp) -> Option<Option<Bytes>> {
        let newest = self.cells.get(&PlaceRef { table, cell })?;
        (newest.since < read_ts).then_some(newest.content)
    }

    /// To be taken before the store is read.
    pub(crate) fn moment(&self) -> Moment {
        Moment(self.generation.load(Ordering::SeqCst))
    }

    /// Brings in what a reader has found to be visible at its snapshot.
    pub(crate) fn bring_in(
        &self,
        moment: Moment,
        table: &TableRef,
        cell: &Cell,
        read_ts: Timestamp,
        start_ts: Timestamp,
        content: Option<&Bytes>,
    ) {
        if content.is_some_and(|content| content.len() > VALUE_LEN_MAX) {
            return;
        }
        let hash = hash_of(table, cell);
        let _latch = self.latches[hash % LATCHES].lock();
        let overtaken = self.marks[hash % MARKS].load(Ordering::Relaxed) >= read_ts.get();
        if overtaken && Rule::BringInUnlessOvertaken.is_kept() {
            return;
        }
        // A snapshot of the past may have been followed by a commit of which nobody here knows.
        if read_ts.get() < self.marked_from.load(Ordering::SeqCst) {
            return;
        }
        if self.generation.load(Ordering::SeqCst) != moment.0 || self.closed.load(Ordering::SeqCst) {
            return;
        }
        let newest = Newest { start_ts, since: read_ts.previous(), content: content.cloned() };
        self.cells.insert(own(table, cell), newest);
    }

    /// Notes what a batch has committed. After it was applied, and before it is published.
    pub(crate) fn note_batch(&self, batch: &AtomicBatch) {
        for op in batch.ops.iter() {
            match op {
                BatchOp::Put { table, cell, ts, value } if !table.is_internal() => self.note(table, cell, *ts, value),
                _ => (),
            }
        }
    }

    fn note(&self, table: &TableRef, cell: &Cell, start_ts: Timestamp, version: &Bytes) {
        let Some((header, commit_ts)) = value::header(version).and_then(|header| Some((header, header.commit_ts?)))
        else {
            // Not one of the pipeline's, which all say when they committed.
            return self.forget(table, cell, Timestamp::MAX);
        };
        let hash = hash_of(table, cell);
        let _latch = self.latches[hash % LATCHES].lock();
        self.mark(hash, commit_ts);
        // What nobody has read is left out: writers alone must not drive out what readers want.
        let Some(held) = self.cells.peek(&PlaceRef { table, cell }) else { return };
        if held.start_ts > start_ts {
            return;
        }
        let content = (!header.tombstone).then(|| value::content_within(header, version));
        if content.is_some_and(|content| content.len() > VALUE_LEN_MAX) {
            self.cells.remove(&PlaceRef { table, cell });
            return;
        }
        // A copy of its own: the versions of a transaction lie in one piece of memory.
        let content = content.map(Bytes::copy_from_slice);
        self.cells.insert(own(table, cell), Newest { start_ts, since: commit_ts, content });
    }

    /// Under the latch of the hash, so that nobody else changes the mark meanwhile.
    fn mark(&self, hash: usize, commit_ts: Timestamp) {
        let mark = &self.marks[hash % MARKS];
        if mark.load(Ordering::Relaxed) < commit_ts.get() {
            mark.store(commit_ts.get(), Ordering::Relaxed);
        }
    }

    /// Forgets a cell that was committed at `commit_ts` by who put its data ahead.
    pub(crate) fn forget(&self, table: &TableRef, cell: &Cell, commit_ts: Timestamp) {
        let hash = hash_of(table, cell);
        let _latch = self.latches[hash % LATCHES].lock();
        self.mark(hash, commit_ts);
        self.cells.remove(&PlaceRef { table, cell });
    }

    /// Forgets everything, of commits up to `last` that were not noted one by one: a snapshot below them brings nothing in
    /// any more, now or later.
    pub(crate) fn forget_up_to(&self, last: Timestamp) {
        self.marked_from.fetch_max(last.next().get(), Ordering::SeqCst);
        self.forget_all();
    }

    /// Forgets everything, also what readers are about to bring in.
    pub(crate) fn forget_all(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        // All of them: whoever has looked at the generation before has brought in what is cleared now, and the leader does not
        // replace in the middle of it what he has found before.
        let latches: Vec<_> = self.latches.iter().map(|latch| latch.lock()).collect();
        self.cells.clear();
        drop(latches);
    }

    /// Forgets everything and holds nothing from now on: what lies in the store may change at any time.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.forget_all();
    }
}

/// A copy of its own: a name may be a part of something large.
fn own(table: &TableRef, cell: &Cell) -> Place {
    let mut names = BytesMut::with_capacity(cell.row.len() + cell.column.len());
    names.extend_from_slice(&cell.row);
    names.extend_from_slice(&cell.column);
    let mut row = names.freeze();
    let column = row.split_off(cell.row.len());
    Place { table: table.clone(), cell: Cell { row, column } }
}

/// The same in every process, so that simulated runs can be repeated. Whoever makes cells of one hash gains nothing.
fn hash_of(table: &TableRef, cell: &Cell) -> usize {
    FixedState::default().hash_one((table.name(), cell)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ts(number: u64) -> Timestamp {
        Timestamp::saturating(number)
    }

    fn table() -> TableRef {
        TableRef::new("t").expect("a name")
    }

    fn cell(row: &str) -> Cell {
        Cell::copy_from(row, "c")
    }

    fn cache() -> CellCache {
        CellCache::new(1 << 20, ts(10)).expect("it holds something")
    }

    fn read(cache: &CellCache, read_ts: u64, start: u64, content: &'static str) {
        let content = Bytes::from_static(content.as_bytes());
        cache.bring_in(cache.moment(), &table(), &cell("a"), ts(read_ts), ts(start), Some(&content));
    }

    fn committed(start: u64, commit: u64, content: Option<&str>) -> AtomicBatch {
        let value = value::encode(content.map(str::as_bytes), Some(ts(commit)));
        AtomicBatch::new(vec![BatchOp::Put { table: table(), cell: cell("a"), ts: ts(start), value }])
    }

    fn seen(cache: &CellCache, read_ts: u64) -> Option<Option<String>> {
        let found = cache.get(&table(), &cell("a"), ts(read_ts))?;
        Some(found.map(|content| String::from_utf8(content.to_vec()).expect("text")))
    }

    fn value_of(content: &str) -> Option<Option<String>> {
        Some(Some(content.to_owned()))
    }

    #[test]
    fn what_was_read_is_known_to_later_snapshots_only() {
        let cache = cache();
        read(&cache, 20, 11, "one");
        assert_eq!(seen(&cache, 19), None);
        assert_eq!(seen(&cache, 20), value_of("one"));
        assert_eq!(seen(&cache, 99), value_of("one"));
    }

    #[test]
    fn a_commit_replaces_what_was_read_for_snapshots_above_it() {
        let cache = cache();
        read(&cache, 20, 11, "one");
        cache.note_batch(&committed(21, 25, Some("two")));
        assert_eq!(seen(&cache, 25), None, "it is older than the commit");
        assert_eq!(seen(&cache, 26), value_of("two"));
        cache.note_batch(&committed(30, 31, None));
        assert_eq!(seen(&cache, 32), Some(None));
    }

    #[test]
    fn a_reader_that_was_overtaken_brings_nothing_in() {
        let cache = cache();
        cache.note_batch(&committed(21, 25, Some("two")));
        read(&cache, 25, 11, "one");
        assert_eq!(seen(&cache, 99), None);
        read(&cache, 26, 21, "two");
        assert_eq!(seen(&cache, 99), value_of("two"));
    }

    #[test]
    fn a_snapshot_older_than_the_marks_brings_nothing_in() {
        let cache = cache();
        read(&cache, 9, 3, "one");
        assert_eq!(seen(&cache, 99), None);
        read(&cache, 10, 3, "one");
        assert_eq!(seen(&cache, 99), value_of("one"));
    }

    #[test]
    fn of_overlapping_writers_the_one_that_started_last_lies_on_top() {
        let cache = cache();
        read(&cache, 20, 11, "one");
        cache.note_batch(&committed(23, 25, Some("started last")));
        cache.note_batch(&committed(21, 27, Some("committed last")));
        assert_eq!(seen(&cache, 99), value_of("started last"));
    }

    #[test]
    fn what_was_put_ahead_is_forgotten() {
        let cache = cache();
        read(&cache, 20, 11, "one");
        cache.forget(&table(), &cell("a"), ts(25));
        assert_eq!(seen(&cache, 99), None);
        read(&cache, 22, 11, "one");
        assert_eq!(seen(&cache, 99), None, "it was overtaken");
    }

    #[test]
    fn nothing_is_left_when_all_is_forgotten_and_nothing_comes_that_was_read_before() {
        let cache = cache();
        read(&cache, 20, 11, "one");
        let before = cache.moment();
        cache.forget_all();
        assert_eq!(seen(&cache, 99), None);
        let content = Bytes::from_static(b"one");
        cache.bring_in(before, &table(), &cell("a"), ts(20), ts(11), Some(&content));
        assert_eq!(seen(&cache, 99), None);
    }

    #[test]
    fn a_group_that_is_noted_while_all_is_forgotten_leaves_nothing() {
        const CELLS: usize = 500;
        const ROUNDS: usize = 200;
        let cache = cache();
        let cells: Vec<Cell> = (0..CELLS).map(|number| cell(&number.to_string())).collect();
        let value = value::encode(Some(b"two"), Some(ts(25)));
        let put = |cell: &Cell| BatchOp::Put { table: table(), cell: cell.clone(), ts: ts(21), value: value.clone() };
        let group = AtomicBatch::new(cells.iter().map(put).collect());
        let content = Bytes::from_static(b"one");
        for _ in 0..ROUNDS {
            for cell in &cells {
                cache.bring_in(cache.moment(), &table(), cell, ts(30), ts(11), Some(&content));
            }
            assert!(!cache.cells.is_empty());
            std::thread::scope(|scope| {
                scope.spawn(|| cache.note_batch(&group));
                scope.spawn(|| cache.forget_all());
            });
            assert_eq!(cache.cells.len(), 0);
        }
    }

    #[test]
    fn a_snapshot_below_commits_that_were_not_noted_brings_nothing_in() {
        let cache = cache();
        cache.forget_up_to(ts(30));
        read(&cache, 30, 11, "one");
        assert_eq!(seen(&cache, 99), None);
        read(&cache, 31, 11, "one");
        assert_eq!(seen(&cache, 99), value_of("one"));
    }

    #[test]
    fn a_closed_one_holds_nothing() {
        let cache = cache();
        read(&cache, 20, 11, "one");
        cache.close();
        read(&cache, 20, 11, "one");
        assert_eq!(seen(&cache, 99), None);
    }

    #[test]
    fn a_commit_that_nobody_has_read_before_is_left_out() {
        let cache = cache();
        cache.note_batch(&committed(21, 25, Some("two")));
        assert_eq!(seen(&cache, 99), None);
    }

    #[test]
    fn it_holds_no_more_than_it_may() {
        let cache = CellCache::new(64 << 10, ts(10)).expect("it holds something");
        for number in 0..10_000u64 {
            let content = Bytes::from(vec![0; 100]);
            let cell = cell(&number.to_string());
            cache.bring_in(cache.moment(), &table(), &cell, ts(20), ts(11), Some(&content));
        }
        assert!(cache.cells.weight() <= 64 << 10, "{}", cache.cells.weight());
        assert!(!cache.cells.is_empty());
        assert!(CellCache::new(0, ts(10)).is_none());
    }

    #[test]
    fn what_is_held_keeps_nothing_else_alive() {
        let large = Bytes::from(vec![b'x'; 1 << 20]);
        let place = own(&table(), &Cell { row: large.slice(..3), column: large.slice(3..4) });
        assert_eq!((&place.cell.row[..], &place.cell.column[..]), (&b"xxx"[..], &b"x"[..]));
        assert!(large.try_into_mut().is_ok(), "nobody else holds it");
    }

    #[test]
    fn what_is_held_of_a_commit_is_a_copy() {
        let cache = cache();
        read(&cache, 20, 11, "one");
        let batch = committed(12, 30, Some("two"));
        cache.note_batch(&batch);
        let held = cache.get(&table(), &cell("a"), ts(40)).flatten().expect("it is held");
        let [BatchOp::Put { value, .. }] = &batch.ops[..] else { panic!("one write") };
        assert!(!value.as_ptr_range().contains(&held.as_ptr()), "it would keep all that the transaction wrote");
    }
}
