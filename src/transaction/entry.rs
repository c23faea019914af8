//! The one witness of a commit: entries of `_transactions`, and the windows in which they do not count.
//!
//! An entry maps `start_ts` to a commit timestamp or to *rolled back*, and is written once. A restore cannot unwrite
//! what committed at or above the backup timestamp B, because the copy may hold any part of it. It writes a *cleaned
//! window* [B, F) instead, and from then on a commit timestamp in a window means *rolled back*, wherever it is met:
//!
//! ```text
//!   commits   ──────x────x──┤B  x   x x   x  ├F────x──────x──>
//!                  count       rolled back        count
//! ```
//!
//! Everybody who wants to know the fate of a writer asks [`CleanedWindows::fate`]; there is no second way.

use crate::rule::Rule;
use crate::schema::{MetaRecord, TRANSACTIONS_TABLE, internal};
use crate::{Error, Result};
use atlas_kvs::{Cell, KeyValueService, TableRef, Timestamp};
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The table of entries.
pub fn transactions_table() -> TableRef {
    internal(TRANSACTIONS_TABLE)
}

/// What `_transactions` holds for a start timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Committed at this timestamp.
    Committed(Timestamp),
    /// Never committed, and never will.
    RolledBack,
}

/// What became of a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its writes count from this timestamp on.
    Committed(Timestamp),
    /// Its writes never count.
    RolledBack,
    /// No entry: it is running, or dead.
    Undecided,
}

const VERSION: u8 = 1;
const ROLLED_BACK: u8 = 0;
const COMMITTED: u8 = 1;
/// Committed, and every version it wrote carries the commit timestamp itself: nobody has to look here.
const SELF_CONTAINED: u8 = 2;

impl Entry {
    /// Where the entry of `start_ts` lies. The order of rows is the order of start timestamps: a byte that tells
    /// how many bytes follow, then the number without leading zeros.
    pub fn cell(start_ts: Timestamp) -> Cell {
        let number = start_ts.get().to_be_bytes();
        let zeros = (start_ts.get().leading_zeros() / 8) as usize;
        let mut row = BytesMut::with_capacity(9);
        row.put_u8((number.len() - zeros) as u8);
        row.put_slice(&number[zeros..]);
        Cell { row: row.freeze(), column: Bytes::from_static(b"t") }
    }

    /// The start timestamp an entry lies at.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a cell that [`Entry::cell`] can't have made.
    pub fn start_ts_of(cell: &Cell) -> Result<Timestamp> {
        let damaged =
            || Error::corrupt(format!("table {TRANSACTIONS_TABLE}, row {cell}"), "this is no start timestamp");
        let (len, digits) = cell.row.split_first().ok_or_else(damaged)?;
        if usize::from(*len) != digits.len() || digits.len() > 8 || digits.first() == Some(&0) || cell.column != "t" {
            return Err(damaged());
        }
        let number = digits.iter().fold(0u64, |number, digit| number << 8 | u64::from(*digit));
        Timestamp::new(number).ok_or_else(damaged)
    }

    /// The bytes of the entry.
    pub fn encode(self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(10);
        bytes.put_u8(VERSION);
        match self {
            Entry::RolledBack => bytes.put_u8(ROLLED_BACK),
            Entry::Committed(commit_ts) => {
                bytes.put_u8(COMMITTED);
                bytes.put_u64(commit_ts.get());
            }
        }
        bytes.freeze()
    }

    /// The bytes of an entry whose versions all carry the commit timestamp.
    pub(crate) fn encode_self_contained(commit_ts: Timestamp) -> Bytes {
        let mut bytes = BytesMut::with_capacity(10);
        bytes.put_u8(VERSION);
        bytes.put_u8(SELF_CONTAINED);
        bytes.put_u64(commit_ts.get());
        bytes.freeze()
    }

    /// True for the bytes of an entry that may go when nobody can commit at its start timestamp any more: one that was
    /// rolled back, which an absence then says as well, or one that says what its versions say themselves.
    pub(crate) fn may_go(bytes: &[u8]) -> bool {
        matches!(bytes, [VERSION, ROLLED_BACK] | [VERSION, SELF_CONTAINED, ..])
            || !Rule::KeepEntriesOfBareVersions.is_kept()
    }

    /// The entry of these bytes.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for bytes that [`Entry::encode`] can't have made, naming the transaction.
    pub fn decode(start_ts: Timestamp, bytes: &[u8]) -> Result<Entry> {
        let entry = match bytes {
            [VERSION, ROLLED_BACK] => Some(Entry::RolledBack),
            [VERSION, COMMITTED | SELF_CONTAINED, number @ ..] => <[u8; 8]>::try_from(number)
                .ok()
                .and_then(|number| Timestamp::new(u64::from_be_bytes(number)))
                // Commit timestamps are drawn after start timestamps; zero and MAX are never drawn.
                .filter(|commit_ts| commit_ts.is_data() && *commit_ts > start_ts)
                .map(Entry::Committed),
            _ => None,
        };
        entry.ok_or_else(|| {
            Error::corrupt(format!("table {TRANSACTIONS_TABLE}, start timestamp {start_ts}"), "the entry can't be read")
        })
    }
}

/// Commit timestamps from `from` (inclusive) to `until` (exclusive) that do not count any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanedWindow {
    /// The backup timestamp that was restored.
    pub from: Timestamp,
    /// The fast-forward timestamp; `None` while the restore is under way.
    pub until: Option<Timestamp>,
}

/// Below this, a transaction without an entry was rolled back: entries that say no more than that were removed, and
/// nobody can commit there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionsFloor {
    /// The first start timestamp of which that does not hold.
    pub below: Timestamp,
    /// How many cleaned windows were settled by a walk over every table. While there are more, the floor does not pass
    /// the beginning of the first that is not.
    #[serde(default)]
    pub windows_settled: usize,
}

impl Default for TransactionsFloor {
    fn default() -> TransactionsFloor {
        TransactionsFloor { below: Timestamp::FIRST, windows_settled: 0 }
    }
}

impl TransactionsFloor {
    /// The record in the store.
    pub fn in_store(kvs: Arc<dyn KeyValueService>) -> MetaRecord<TransactionsFloor> {
        MetaRecord::new(kvs, "transactions-floor")
    }

    /// The floor of a store, at the beginning of time if there is no record.
    pub async fn load(kvs: Arc<dyn KeyValueService>) -> Result<TransactionsFloor> {
        Ok(TransactionsFloor::in_store(kvs).load().await?.map(|(floor, _)| floor).unwrap_or_default())
    }

    /// Replaces the record by what `change` makes of it.
    ///
    /// # Errors
    /// Those of the store; nothing is promised then.
    pub(crate) async fn update(
        kvs: Arc<dyn KeyValueService>,
        change: impl Fn(TransactionsFloor) -> TransactionsFloor,
    ) -> Result<TransactionsFloor> {
        let record = TransactionsFloor::in_store(kvs);
        let mut loaded = record.load().await?;
        loop {
            let found = loaded.as_ref().map(|(floor, _)| *floor).unwrap_or_default();
            let wanted = change(found);
            if wanted == found {
                return Ok(found);
            }
            match record.replace(loaded.as_ref().map(|(_, bytes)| bytes), Some(&wanted)).await? {
                crate::schema::Replaced::Done(_) => return Ok(wanted),
                crate::schema::Replaced::Other(other) => loaded = other,
            }
        }
    }
}

/// All cleaned windows of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanedWindows {
    /// In the order they were made.
    pub windows: Vec<CleanedWindow>,
}

impl CleanedWindows {
    /// The record in the store.
    pub fn in_store(kvs: Arc<dyn KeyValueService>) -> MetaRecord<CleanedWindows> {
        MetaRecord::new(kvs, "cleaned-windows")
    }

    /// The windows of a store, none if there is no record.
    pub async fn load(kvs: Arc<dyn KeyValueService>) -> Result<CleanedWindows> {
        Ok(CleanedWindows::in_store(kvs).load().await?.map(|(windows, _)| windows).unwrap_or_default())
    }

    /// True if a commit at this timestamp does not count.
    pub fn hides(&self, commit_ts: Timestamp) -> bool {
        self.windows.iter().any(|window| commit_ts >= window.from && window.until.is_none_or(|until| commit_ts < until))
    }

    /// What an entry, or a commit timestamp found in a version, means.
    pub fn fate(&self, entry: Option<Entry>) -> Fate {
        match entry {
            None => Fate::Undecided,
            Some(Entry::RolledBack) => Fate::RolledBack,
            Some(Entry::Committed(commit_ts)) if self.hides(commit_ts) => Fate::RolledBack,
            Some(Entry::Committed(commit_ts)) => Fate::Committed(commit_ts),
        }
    }

    /// The window of a restore that has not been completed.
    pub fn open_window(&self) -> Option<CleanedWindow> {
        self.windows.iter().copied().find(|window| window.until.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ts(number: u64) -> Timestamp {
        Timestamp::new(number).expect("a small number")
    }

    proptest! {
        #[test]
        fn cells_of_entries_sort_by_start_timestamp(a in 1u64..1 << 62, shift in 0u32..62, b in 1u64..1 << 20) {
            let (a, b) = (ts((a >> shift).max(1)), ts(b));
            prop_assert_eq!(a.cmp(&b), Entry::cell(a).cmp(&Entry::cell(b)));
            prop_assert_eq!(Entry::start_ts_of(&Entry::cell(a)).expect("it was made"), a);
        }

        #[test]
        fn any_bytes_are_an_entry_or_damage(row in proptest::collection::vec(any::<u8>(), 0..12),
                                            bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let _ = Entry::start_ts_of(&Cell::copy_from(&row, "t"));
            let _ = Entry::decode(ts(5), &bytes);
        }
    }

    #[test]
    fn entries_that_may_go_are_those_that_nobody_needs() {
        assert!(Entry::may_go(&Entry::RolledBack.encode()));
        assert!(!Entry::may_go(&Entry::Committed(ts(9)).encode()), "a version may need it");
        let bytes = Entry::encode_self_contained(ts(9));
        assert!(Entry::may_go(&bytes));
        assert_eq!(Entry::decode(ts(5), &bytes).expect("it was encoded"), Entry::Committed(ts(9)));
        assert!(Entry::decode(ts(9), &bytes).is_err(), "a commit at its own start");
    }

    #[test]
    fn entries_survive_their_encoding() {
        for entry in [Entry::RolledBack, Entry::Committed(ts(9))] {
            assert_eq!(Entry::decode(ts(5), &entry.encode()).expect("it was encoded"), entry);
        }
        assert!(Entry::decode(ts(9), &Entry::Committed(ts(9)).encode()).is_err(), "a commit at its own start");
    }

    #[test]
    fn a_commit_in_a_window_counts_as_rolled_back() {
        let windows = CleanedWindows {
            windows: vec![
                CleanedWindow { from: ts(10), until: Some(ts(20)) },
                CleanedWindow { from: ts(30), until: None },
            ],
        };
        let fates: Vec<bool> = [9, 10, 19, 20, 29, 30, 1000].into_iter().map(|n| windows.hides(ts(n))).collect();
        assert_eq!(fates, [false, true, true, false, false, true, true]);
        assert_eq!(windows.fate(Some(Entry::Committed(ts(15)))), Fate::RolledBack);
        assert_eq!(windows.fate(Some(Entry::Committed(ts(25)))), Fate::Committed(ts(25)));
        assert_eq!(windows.open_window(), Some(CleanedWindow { from: ts(30), until: None }));
    }
}
