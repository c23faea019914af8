//! Building on commits that are on their way.
//!
//! Who loses a conflict loses it to a commit that was admitted: its place in the order is settled, what is missing is the
//! disk. The next attempt need not wait for that. It sees what is on its way, and depends on it:
//!
//! ```text
//!   ── in the store ──┤ base       admitted, on their way ──┤ read_ts ── start_ts
//!      read from there             read from here               = last admitted + 1
//! ```
//!
//! * Groups land in the order of their commits. When the commit of a dependent is durable, so is what it depends on.
//! * When a commit on its way is lost, all dependents are lost with it: they have read what never was.
//! * A dependent that writes nothing, and work that ends with an error of its own, waits until what it depends on has landed:
//!   nobody is told of what a crash can take back.
//! * Only attempts after a lost conflict depend on anything. All others see what is durable.
//!
//! Where several groups are on their way at the same time, the later may land without the earlier one, and nobody depends on
//! any. Without these, a cell that everybody wants is committed once for each group. After the commit dependencies of
//! Hekaton (Larson and others, 2011) and controlled lock violation (Graefe and others, 2013).

use super::buffer::LocalWriteBuffer;
use super::pipeline::{Member, Payload};
use super::window::ConflictKey;
use crate::rule::Rule;
use atlas_kvs::{Cell, ColumnSelection, RowRange, TableRef, Timestamp};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// On more commits than this nobody builds: whoever reads looks at each.
const COMMITS_MAX: usize = 512;

/// The commits on their way.
#[derive(Debug, Default)]
pub(crate) struct OnTheirWay {
    admitted: Mutex<Admitted>,
    /// How often some were lost. Raised before anything of that can be seen.
    losses: AtomicU64,
}

#[derive(Debug, Default)]
struct Admitted {
    /// In the order of their timestamps.
    commits: VecDeque<Arc<OnItsWay>>,
    /// Those of which it is not known here what a reader would see of them, in the same order.
    opaque: VecDeque<Timestamp>,
    /// What became of some is being found out: they are not among these, and perhaps they have committed.
    is_unsettled: bool,
}

#[derive(Debug)]
struct OnItsWay {
    commit_ts: Timestamp,
    /// Of the cells it writes.
    hashes: Box<[u64]>,
    writes: Arc<LocalWriteBuffer>,
}

/// What an attempt sees of commits that are on their way.
#[derive(Debug)]
pub(crate) struct Dependency {
    on_their_way: Arc<OnTheirWay>,
    /// Ascending, and never empty.
    commits: Vec<Arc<OnItsWay>>,
    /// How often some were lost when it began.
    losses: u64,
}

impl OnTheirWay {
    /// A member was admitted. Answers whether an attempt may build on it now.
    pub(crate) fn admit(&self, commit_ts: Timestamp, member: &Member) -> bool {
        let mut admitted = self.admitted.lock();
        match plain_writes(member) {
            Some(writes) => {
                let hashes = member.keys.iter().map(|key| key.hash).collect();
                admitted.commits.push_back(Arc::new(OnItsWay { commit_ts, hashes, writes }));
            }
            None => admitted.opaque.push_back(commit_ts),
        }
        admitted.may_be_built_on()
    }

    /// Every commit at or below `commit_ts` is in the store and published.
    pub(crate) fn landed(&self, commit_ts: Timestamp) {
        self.admitted.lock().retain(|commit| commit > commit_ts);
    }

    /// These, in ascending order, are not on their way any more, and whoever depends on anything is lost.
    pub(crate) fn lost(&self, commits: &[Timestamp]) {
        self.lose(&mut self.admitted.lock(), commits);
    }

    /// As [`lost`](Self::lost), of commits that may stand in the store all the same: until they are
    /// [`settled`](Self::settled) nobody builds on what is behind them.
    pub(crate) fn unsettled(&self, commits: &[Timestamp]) {
        let mut admitted = self.admitted.lock();
        admitted.is_unsettled = true;
        self.lose(&mut admitted, commits);
    }

    /// What became of the others is known, and published.
    pub(crate) fn settled(&self) {
        self.admitted.lock().is_unsettled = false;
    }

    fn lose(&self, admitted: &mut Admitted, commits: &[Timestamp]) {
        // Under the latch, with the removal: who builds on them is among those that are lost, or does not see them.
        self.losses.fetch_add(1, Ordering::AcqRel);
        admitted.retain(|commit| commits.binary_search(&commit).is_err());
    }

    /// What the next attempt of who lost to `lost_to` may see: everything that is on its way. Nothing if that has landed, or is
    /// not to be built on.
    ///
    /// To be asked before the attempt draws its start timestamp, and before it chooses its snapshot of the store: see
    /// [`Dependency::above`].
    pub(crate) fn build_on(self: &Arc<Self>, lost_to: Timestamp) -> Option<Dependency> {
        let admitted = self.admitted.lock();
        if admitted.commits.back()?.commit_ts < lost_to || !admitted.may_be_built_on() {
            return None;
        }
        // Under the latch: what is lost later raises it, what was lost before is not among these.
        let losses = self.losses.load(Ordering::Acquire);
        let commits = admitted.commits.iter().cloned().collect();
        Some(Dependency { on_their_way: self.clone(), commits, losses })
    }
}

impl Admitted {
    fn may_be_built_on(&self) -> bool {
        let may = self.opaque.is_empty() && self.commits.len() <= COMMITS_MAX;
        may && !(self.is_unsettled && Rule::BuildOnWhatIsKnown.is_kept())
    }

    fn retain(&mut self, keep: impl Fn(Timestamp) -> bool) {
        self.commits.retain(|commit| keep(commit.commit_ts));
        self.opaque.retain(|commit_ts| keep(*commit_ts));
    }
}

/// What a member writes, if that is all there is to know of it: of data that were put ahead it is not known, and of
/// overlapping writers the order of their timestamps does not tell which is seen.
fn plain_writes(member: &Member) -> Option<Arc<LocalWriteBuffer>> {
    let cells: usize = member.writes.tables().values().map(|writes| writes.len()).sum();
    let plain = matches!(member.payload, Payload::Batch { .. })
        && member.keys.len() == cells
        && member.keys.iter().all(|key| key.excludes_writers && key.written.is_none());
    plain.then(|| member.writes.clone())
}

impl Dependency {
    /// What of it a snapshot of the store below `base` does not see; nothing if it sees all.
    ///
    /// The snapshot was chosen after these commits were looked at, so that everything between it and the last of them
    /// is among them.
    pub(crate) fn above(mut self, base: Timestamp) -> Option<Dependency> {
        self.commits.retain(|commit| commit.commit_ts >= base);
        (!self.commits.is_empty()).then_some(self)
    }

    /// The last commit that is seen.
    pub(crate) fn last(&self) -> Timestamp {
        self.commits.last().expect("it depends on something").commit_ts
    }

    /// What the commits on their way have written to a cell: `Some(None)` if they deleted it.
    pub(crate) fn get(&self, table: &TableRef, cell: &Cell) -> Option<Option<Bytes>> {
        let hash = ConflictKey::hash_of(table, cell);
        let writers = self.commits.iter().rev().filter(|commit| commit.hashes.contains(&hash));
        writers.map(|commit| &commit.writes).find_map(|writes| writes.get(table, cell))
    }

    /// What they have written in a range, with `own` writes over it, in ascending order.
    pub(crate) fn with_own(
        &self,
        own: Vec<(Cell, Option<Bytes>)>,
        table: &TableRef,
        rows: &RowRange,
        columns: &ColumnSelection,
    ) -> Vec<(Cell, Option<Bytes>)> {
        let written = self.commits.iter().flat_map(|commit| commit.writes.range(table, rows, columns));
        let mut merged: BTreeMap<_, _> = written.collect();
        merged.extend(own);
        merged.into_iter().collect()
    }

    /// Whether something that was on its way then was lost: perhaps what is seen here.
    pub(crate) fn is_lost(&self) -> bool {
        self.on_their_way.losses.load(Ordering::Acquire) != self.losses && Rule::RefuseDependents.is_kept()
    }
}
