//! The demo's own account of what was committed.

use super::data;
use atlas_kvs::{Cell, TableRef, Timestamp};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// A commit that was acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Committed {
    pub(super) commit_ts: Timestamp,
    pub(super) table: TableRef,
    pub(super) writes: Vec<(Cell, Bytes)>,
    /// By how much it changed the number of flights.
    pub(super) flights: i64,
    /// Whether it booked flights that were not there, and was not part of loading.
    pub(super) is_booking: bool,
}

/// Acknowledged commits, in the order in which they were acknowledged.
#[derive(Debug, Default)]
pub(super) struct Log {
    commits: Mutex<Vec<Committed>>,
}

/// Both tables at one moment.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) tables: BTreeMap<TableRef, BTreeMap<Cell, Bytes>>,
    /// The number of flights, added up from what each commit changed.
    pub(super) flights: i64,
}

impl Log {
    pub(super) fn add(&self, committed: Committed) {
        self.commits.lock().push(committed);
    }

    pub(super) fn len(&self) -> usize {
        self.commits.lock().len()
    }

    /// Flights booked by all commits.
    pub(super) fn booked(&self) -> i64 {
        self.commits.lock().iter().filter(|commit| commit.is_booking).map(|commit| commit.flights).sum()
    }

    /// How many commits are at or above `ts`.
    pub(super) fn count_from(&self, ts: Timestamp) -> u64 {
        self.commits.lock().iter().filter(|commit| commit.commit_ts >= ts).count() as u64
    }

    /// What the commits below `ts` make, in the order of their timestamps.
    pub(super) fn state_below(&self, ts: Timestamp) -> State {
        let mut commits: Vec<Committed> =
            self.commits.lock().iter().filter(|commit| commit.commit_ts < ts).cloned().collect();
        commits.sort_by_key(|commit| commit.commit_ts);
        let mut state = State::default();
        for table in [data::airports(), data::routes()] {
            state.tables.insert(table, BTreeMap::new());
        }
        for commit in commits {
            state.tables.entry(commit.table).or_default().extend(commit.writes);
            state.flights += commit.flights;
        }
        state
    }
}
