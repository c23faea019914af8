//! The commits that open transactions could conflict with.
//!
//! The leader remembers every commit since the oldest open snapshot, by a hash of the cell. Two cells with the same
//! hash can only cause a conflict too many, which a retry resolves; never one too few.

use super::reads::ReadRange;
use atlas_kvs::{Cell, TableRef, Timestamp};
use foldhash::quality::RandomState;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::sync::{Arc, LazyLock};

/// How many writes are remembered at most, about 60 bytes each; of a cell written again and again every one counts.
/// Transactions older than what is remembered are checked against the store.
const CELLS_MAX: usize = 1 << 20;

/// Tests make it smaller by a fail point, so that not only transactions over a million cells get behind the window.
fn cells_max() -> usize {
    fail::fail_point!("conflict_window::cells_max", |cells| {
        cells.and_then(|cells| cells.parse().ok()).unwrap_or(CELLS_MAX)
    });
    CELLS_MAX
}

/// A fingerprint of a value; `None` for a tombstone.
pub(crate) type ValueHash = Option<[u8; 32]>;

/// A cell a transaction writes, as the conflict check sees it.
#[derive(Clone, Debug)]
pub(crate) struct ConflictKey {
    pub(crate) hash: u64,
    pub(crate) table: TableRef,
    pub(crate) cell: Cell,
    /// What will be written, for tables that compare values.
    pub(crate) written: Option<Arc<ValueHash>>,
    /// The transaction leaves the value as it read it.
    pub(crate) touch: bool,
    /// Overlapping writers of this cell conflict.
    pub(crate) excludes_writers: bool,
    /// The table checks reads, so that ranges may have been read around this cell.
    pub(crate) seen_by_ranges: bool,
}

static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::default);

/// Takes what is a hash already, and keyed, as it is.
#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("only hashes of cells are looked up");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl ConflictKey {
    pub(crate) fn hash_of(table: &TableRef, cell: &Cell) -> u64 {
        HASHER.hash_one((table.name(), &cell.row, &cell.column))
    }

    pub(crate) fn new(table: &TableRef, cell: &Cell) -> ConflictKey {
        ConflictKey {
            hash: ConflictKey::hash_of(table, cell),
            table: table.clone(),
            cell: cell.clone(),
            written: None,
            touch: false,
            excludes_writers: true,
            seen_by_ranges: false,
        }
    }

    /// True if a committed write is no conflict although it overlaps: both leave the same value there.
    pub(crate) fn tolerates(&self, committed: Option<&ValueHash>) -> bool {
        self.touch && committed.is_some() && self.written.as_deref() == committed
    }
}

pub(crate) fn value_hash(value: Option<&[u8]>) -> ValueHash {
    value.map(|bytes| *blake3::hash(bytes).as_bytes())
}

// Small, because there are very many: few tables compare values.
#[derive(Debug)]
struct LastWrite {
    commit_ts: Timestamp,
    written: Option<Arc<ValueHash>>,
}

/// The last commit of each cell, since some timestamp.
#[derive(Debug)]
pub(crate) struct ConflictWindow {
    // Invariant: holds the last write of every cell committed at or above `floor`.
    floor: Timestamp,
    last_writes: HashMap<u64, LastWrite, BuildHasherDefault<AsItIs>>,
    // The same for tables that check reads, in the order of cells.
    ordered: HashMap<TableRef, BTreeMap<Cell, Timestamp>>,
    commits: VecDeque<Remembered>,
    // Invariant: the number of hashes in `commits`.
    remembered: usize,
    /// Up to here it is known of every commit whether it was applied.
    landed: Timestamp,
    /// Members that were admitted and have not committed.
    not_applied: BTreeSet<Timestamp>,
}

#[derive(Debug)]
struct Remembered {
    commit_ts: Timestamp,
    hashes: Vec<u64>,
    ordered: Vec<(TableRef, Cell)>,
}

impl ConflictWindow {
    /// A window that knows of no commit below `floor`.
    pub(crate) fn new(floor: Timestamp) -> ConflictWindow {
        ConflictWindow {
            floor,
            last_writes: HashMap::default(),
            ordered: HashMap::new(),
            commits: VecDeque::new(),
            remembered: 0,
            landed: floor.previous(),
            not_applied: BTreeSet::new(),
        }
    }

    /// Commits below this were forgotten.
    pub(crate) fn floor(&self) -> Timestamp {
        self.floor
    }

    /// The commit at or above `checked_from` that wrote `key`'s cell last, if it is a conflict.
    pub(crate) fn conflict(&self, key: &ConflictKey, checked_from: Timestamp) -> Option<Timestamp> {
        debug_assert!(checked_from >= self.floor, "an older transaction is checked against the store first");
        let last = self.last_writes.get(&key.hash)?;
        (last.commit_ts >= checked_from && !self.tolerates(key, last)).then_some(last.commit_ts)
    }

    /// A write that is not in the store may never be: then what lies there is what an earlier commit has left, which may be
    /// another value.
    fn tolerates(&self, key: &ConflictKey, last: &LastWrite) -> bool {
        key.tolerates(last.written.as_deref())
            && last.commit_ts <= self.landed
            && !self.not_applied.contains(&last.commit_ts)
    }

    /// Whether nothing is known yet of what becomes of a commit.
    pub(crate) fn is_on_its_way(&self, commit_ts: Timestamp) -> bool {
        commit_ts > self.landed
    }

    /// A member that was admitted has not committed.
    pub(crate) fn not_applied(&mut self, commit_ts: Timestamp) {
        self.not_applied.insert(commit_ts);
    }

    /// What became of commits up to `commit_ts` is known.
    pub(crate) fn landed(&mut self, commit_ts: Timestamp) {
        self.landed = self.landed.max(commit_ts);
    }

    /// A commit at or above `checked_from` that changed what was read of `range`, and the cell it wrote.
    pub(crate) fn range_conflict(&self, range: &ReadRange, checked_from: Timestamp) -> Option<(Cell, Timestamp)> {
        let cells = self.ordered.get(&range.table)?;
        let bounds = range.bounds();
        // A range that ends before it begins holds nothing, and the map does not take it.
        if range.rows.is_empty() {
            return None;
        }
        let mut changed =
            cells.range(bounds).filter(|(cell, commit_ts)| **commit_ts >= checked_from && range.contains(cell));
        changed.next().map(|(cell, commit_ts)| (cell.clone(), *commit_ts))
    }

    /// Remembers a commit. Commits come in the order of their timestamps.
    pub(crate) fn insert(&mut self, commit_ts: Timestamp, keys: &[ConflictKey]) {
        if keys.is_empty() {
            return;
        }
        self.last_writes.reserve(keys.len());
        for key in keys {
            self.last_writes.insert(key.hash, LastWrite { commit_ts, written: key.written.clone() });
        }
        let mut ordered = Vec::new();
        for key in keys.iter().filter(|key| key.seen_by_ranges) {
            // A copy: the cell may be part of something large, such as the page of a scan.
            let cell = Cell::copy_from(&key.cell.row, &key.cell.column);
            match self.ordered.get_mut(&key.table) {
                Some(cells) => drop(cells.insert(cell.clone(), commit_ts)),
                None => drop(self.ordered.insert(key.table.clone(), [(cell.clone(), commit_ts)].into())),
            }
            ordered.push((key.table.clone(), cell));
        }
        self.remembered += keys.len();
        let hashes = keys.iter().map(|key| key.hash).collect();
        self.commits.push_back(Remembered { commit_ts, hashes, ordered });
    }

    /// Forgets commits that no open snapshot can conflict with: those below `oldest_read_ts`.
    pub(crate) fn forget_below(&mut self, oldest_read_ts: Timestamp) {
        let cells_max = cells_max();
        while let Some(oldest) = self.commits.front() {
            if oldest.commit_ts >= oldest_read_ts && self.remembered <= cells_max {
                break;
            }
            // Those on their way are above every snapshot: whoever is told to check against the store would never get above
            // them.
            if oldest.commit_ts > self.landed {
                break;
            }
            let Remembered { commit_ts, hashes, ordered } = self.commits.pop_front().expect("there is a front");
            self.forget_ordered(commit_ts, ordered);
            self.remembered -= hashes.len();
            for hash in hashes {
                if let Entry::Occupied(last) = self.last_writes.entry(hash)
                    && last.get().commit_ts == commit_ts
                {
                    last.remove();
                }
            }
            self.floor = self.floor.max(commit_ts.next());
        }
        self.not_applied = self.not_applied.split_off(&self.floor);
    }

    fn forget_ordered(&mut self, commit_ts: Timestamp, written: Vec<(TableRef, Cell)>) {
        for (table, cell) in written {
            let Some(cells) = self.ordered.get_mut(&table) else { continue };
            if cells.get(&cell) == Some(&commit_ts) {
                cells.remove(&cell);
            }
            if cells.is_empty() {
                self.ordered.remove(&table);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ts(number: u64) -> Timestamp {
        Timestamp::saturating(number)
    }

    fn key(row: &str) -> ConflictKey {
        ConflictKey::new(&TableRef::new("t").expect("a name"), &Cell::copy_from(row, "c"))
    }

    #[test]
    fn a_commit_at_or_above_the_snapshot_conflicts_and_one_below_does_not() {
        let mut window = ConflictWindow::new(ts(1));
        window.insert(ts(10), &[key("a")]);
        assert_eq!(window.conflict(&key("a"), ts(10)), Some(ts(10)));
        assert_eq!(window.conflict(&key("a"), ts(11)), None);
        assert_eq!(window.conflict(&key("b"), ts(1)), None);
    }

    #[test]
    fn forgetting_raises_the_floor_and_keeps_later_writes_of_the_same_cell() {
        let mut window = ConflictWindow::new(ts(1));
        window.insert(ts(10), &[key("a"), key("b")]);
        window.insert(ts(20), &[key("a")]);
        window.landed(ts(20));
        window.forget_below(ts(15));
        assert_eq!(window.floor(), ts(11));
        assert_eq!(window.conflict(&key("a"), ts(12)), Some(ts(20)));
        assert_eq!(window.conflict(&key("b"), ts(12)), None);
    }

    #[test]
    fn a_touch_tolerates_the_same_value_only() {
        let mut window = ConflictWindow::new(ts(1));
        let written = |value: &str| Some(Arc::new(value_hash(Some(value.as_bytes()))));
        window.insert(ts(10), &[ConflictKey { written: written("x"), ..key("a") }]);
        let touch = |value: &str, touch| ConflictKey { written: written(value), touch, ..key("a") };
        assert_eq!(window.conflict(&touch("x", true), ts(5)), Some(ts(10)), "it may never be applied");
        window.landed(ts(10));
        assert_eq!(window.conflict(&touch("x", true), ts(5)), None);
        assert_eq!(window.conflict(&touch("y", true), ts(5)), Some(ts(10)));
        assert_eq!(window.conflict(&touch("x", false), ts(5)), Some(ts(10)));
    }

    #[test]
    fn what_was_not_applied_is_never_tolerated() {
        let mut window = ConflictWindow::new(ts(1));
        let written = Some(Arc::new(value_hash(Some(b"x"))));
        let touch = ConflictKey { written, touch: true, ..key("a") };
        window.insert(ts(10), std::slice::from_ref(&touch));
        window.not_applied(ts(10));
        window.landed(ts(20));
        assert_eq!(window.conflict(&touch, ts(5)), Some(ts(10)));
        window.insert(ts(30), std::slice::from_ref(&touch));
        window.landed(ts(30));
        assert_eq!(window.conflict(&touch, ts(5)), None);
    }

    #[test]
    fn what_is_on_its_way_is_not_forgotten() {
        let mut window = ConflictWindow::new(ts(1));
        window.insert(ts(10), &[key("a")]);
        window.forget_below(ts(100));
        assert_eq!(window.floor(), ts(1));
        window.landed(ts(10));
        window.forget_below(ts(100));
        assert_eq!(window.floor(), ts(11));
    }
}
