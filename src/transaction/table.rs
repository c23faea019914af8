//! Looking up the fate of writers in `_transactions`.

use super::entry::{CleanedWindows, Entry, Fate, TransactionsFloor, transactions_table};
use crate::Result;
use crate::rule::Rule;
use atlas_kvs::{Cell, KeyValueService, PutUnlessExists, TableRef, Timestamp};
use quick_cache::sync::Cache;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many fates are remembered; an entry takes about 50 bytes.
const CACHED: usize = 200_000;

/// The entries of a store, with a memory for those that can't change any more.
#[derive(Debug)]
pub(crate) struct TransactionTable {
    kvs: Arc<dyn KeyValueService>,
    table: TableRef,
    windows: CleanedWindows,
    // Holds decided fates only, windows applied: these never change while the store is open. An absent entry is not
    // a fact but a moment, and is never remembered.
    decided: Cache<u64, Fate>,
    // Below this an absent entry means *rolled back*.
    floor: AtomicU64,
}

impl TransactionTable {
    pub(crate) fn new(
        kvs: Arc<dyn KeyValueService>,
        windows: CleanedWindows,
        floor: TransactionsFloor,
    ) -> TransactionTable {
        let floor = AtomicU64::new(floor.below.get());
        TransactionTable { kvs, table: transactions_table(), windows, decided: Cache::new(CACHED), floor }
    }

    /// Below this nobody commits any more, and an absent entry means *rolled back*.
    pub(crate) fn floor(&self) -> Timestamp {
        Timestamp::saturating(self.floor.load(Ordering::Acquire))
    }

    /// Raises the floor, which stands in the store already and below which nothing was removed yet.
    pub(crate) fn raise_floor(&self, below: Timestamp) {
        self.floor.fetch_max(below.get(), Ordering::AcqRel);
    }

    pub(crate) fn windows(&self) -> &CleanedWindows {
        &self.windows
    }

    /// The fate that a commit timestamp found beside the data tells.
    pub(crate) fn fate_of_inlined(&self, commit_ts: Timestamp) -> Fate {
        self.windows.fate(Some(Entry::Committed(commit_ts)))
    }

    /// The fate of one writer, if it is known without asking the store.
    pub(crate) fn cached(&self, start_ts: Timestamp) -> Option<Fate> {
        self.decided.get(&start_ts.get())
    }

    /// The fates of writers, each asked for once.
    pub(crate) async fn fates(&self, start_timestamps: &[Timestamp]) -> Result<BTreeMap<Timestamp, Fate>> {
        let mut fates = BTreeMap::new();
        let mut unknown = Vec::new();
        for start_ts in start_timestamps {
            match self.cached(*start_ts) {
                Some(fate) => drop(fates.insert(*start_ts, fate)),
                None => unknown.push(*start_ts),
            }
        }
        unknown.sort_unstable();
        unknown.dedup();
        let mut below_floor = Vec::new();
        for (start_ts, fate) in self.look_up(&unknown).await? {
            // Looked at after the entry: one that was removed was so after the floor was raised.
            if fate == Fate::Undecided && start_ts < self.floor() {
                if Rule::LookTwiceBelowFloor.is_kept() {
                    below_floor.push(start_ts);
                    continue;
                }
                self.remember(start_ts, Fate::RolledBack);
                fates.insert(start_ts, Fate::RolledBack);
                continue;
            }
            self.remember(start_ts, fate);
            fates.insert(start_ts, fate);
        }
        // Once more: between the first look and the floor an entry may have come. Below the floor none comes any more, so
        // what is absent now stays so.
        for (start_ts, fate) in self.look_up(&below_floor).await? {
            let fate = if fate == Fate::Undecided { Fate::RolledBack } else { fate };
            self.remember(start_ts, fate);
            fates.insert(start_ts, fate);
        }
        Ok(fates)
    }

    /// The fates as the entries tell them at this moment.
    async fn look_up(&self, writers: &[Timestamp]) -> Result<Vec<(Timestamp, Fate)>> {
        let cells: Vec<Cell> = writers.iter().map(|start_ts| Entry::cell(*start_ts)).collect();
        let found = self.kvs.get_atomic(&self.table, &cells).await?;
        let decoded = writers.iter().zip(found).map(|(start_ts, bytes)| {
            let entry = bytes.map(|bytes| Entry::decode(*start_ts, &bytes)).transpose()?;
            Ok((*start_ts, self.windows.fate(entry)))
        });
        decoded.collect()
    }

    /// The fate of one writer.
    pub(crate) async fn fate(&self, start_ts: Timestamp) -> Result<Fate> {
        let fates = self.fates(&[start_ts]).await?;
        Ok(fates.get(&start_ts).copied().unwrap_or(Fate::Undecided))
    }

    /// Writes an entry where there is none; the entry that stands afterwards.
    pub(crate) async fn put_unless_exists(&self, start_ts: Timestamp, entry: Entry) -> Result<Entry> {
        if start_ts < self.floor() && self.fate(start_ts).await? == Fate::RolledBack {
            return Ok(Entry::RolledBack); // Its entry may have been removed, and must not come again as another one.
        }
        let answer = self.kvs.put_unless_exists(&self.table, &Entry::cell(start_ts), entry.encode()).await?;
        let standing = match answer {
            PutUnlessExists::Written => entry,
            PutUnlessExists::Exists(bytes) => Entry::decode(start_ts, &bytes)?,
        };
        self.remember(start_ts, self.windows.fate(Some(standing)));
        Ok(standing)
    }

    /// True if it is remembered that a writer has committed.
    pub(crate) fn has_committed(&self, start_ts: Timestamp) -> bool {
        matches!(self.cached(start_ts), Some(Fate::Committed(_)))
    }

    /// Remembers a fate that the caller has just made durable.
    pub(crate) fn remember(&self, start_ts: Timestamp, fate: Fate) {
        if fate != Fate::Undecided {
            self.decided.insert(start_ts.get(), fate);
        }
    }
}
