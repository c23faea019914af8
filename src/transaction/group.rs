//! A group of commits: what shares one batch.

use super::cell_cache::CellCache;
use super::entry::{Entry, transactions_table};
use super::pipeline::{Member, Payload, Verdict};
use super::step::{CommitStep, reach};
use super::sweep_queue::{self, sweep_queue_table};
use crate::{Error, Result};
use atlas_kvs::{AtomicBatch, BatchOp, Cell, KvsError, TableRef, Timestamp};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::oneshot;

/// How many transactions share a batch at most.
pub(super) const GROUP_MAX: usize = 4096;
/// How many requests are taken into a group at a time where writing it waits for no disk and no network: there is little to share
/// then, and while the leader takes whoever comes there is soon nobody left who would do anything beside it.
pub(super) const GROUP_MAX_AT_ONCE: usize = 16;

/// A member that is part of the batch.
pub(super) struct Accepted {
    pub(super) member: Box<Member>,
    pub(super) commit_ts: Timestamp,
    pub(super) reply: oneshot::Sender<Verdict>,
}

impl Accepted {
    /// True if it has read what is not in the store yet.
    pub(super) fn depends(&self) -> bool {
        self.member.dependency.is_some()
    }
}

/// What shares one batch.
#[derive(Default)]
pub(super) struct Group {
    pub(super) commits: Vec<Accepted>,
    pub(super) roll_backs: Vec<(Timestamp, oneshot::Sender<Result<()>>)>,
    pub(super) markers: Vec<oneshot::Sender<()>>,
    pub(super) stop: Option<oneshot::Sender<()>>,
    /// Bytes of its data, about.
    pub(super) size: usize,
}

impl Group {
    pub(super) fn commits(&self, start_ts: Timestamp) -> bool {
        self.commits.iter().any(|accepted| accepted.member.start_ts == start_ts)
    }

    pub(super) fn rolls_back(&self, start_ts: Timestamp) -> bool {
        self.roll_backs.iter().any(|(rolled_back, _)| *rolled_back == start_ts)
    }

    /// True if nothing is to be written for it.
    pub(super) fn writes_nothing(&self) -> bool {
        self.commits.is_empty() && self.roll_backs.is_empty()
    }

    /// True if it takes nobody in any more; bytes are of its data.
    pub(super) fn is_full(&self, size_max: usize) -> bool {
        self.size >= size_max || self.commits.len() >= GROUP_MAX
    }

    /// True if it is written alone: when it has landed nothing is on its way, and nobody has seen what it rolls back.
    pub(super) fn goes_alone(&self) -> bool {
        !self.roll_backs.is_empty() || !self.markers.is_empty() || self.stop.is_some()
    }

    /// Where its members commit, if they do.
    pub(super) fn commit_timestamps(&self) -> impl Iterator<Item = Timestamp> + '_ {
        self.commits.iter().map(|accepted| accepted.commit_ts)
    }

    pub(super) fn last_commit(&self) -> Option<Timestamp> {
        self.commits.last().map(|accepted| accepted.commit_ts)
    }

    /// Takes those out of it, in their order.
    pub(super) fn take(&mut self, which: impl Fn(&Accepted) -> bool) -> Vec<Accepted> {
        if !self.commits.iter().any(&which) {
            return Vec::new();
        }
        let (taken, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.commits).into_iter().partition(which);
        self.commits = kept;
        self.size -= taken.iter().map(|accepted| accepted.member.payload.size()).sum::<usize>();
        taken
    }

    /// Puts one back that was taken out. Whoever does so sees to the order.
    pub(super) fn put_back(&mut self, accepted: Accepted) {
        self.size += accepted.member.payload.size();
        self.commits.push(accepted);
    }

    /// Tells the memory of cells what the group has committed. Before the group is published: nobody has a snapshot above it yet
    /// that could be shown what it has replaced.
    pub(super) fn note_in(&self, cells: &CellCache, batch: &AtomicBatch) {
        cells.note_batch(batch);
        for accepted in &self.commits {
            if let Payload::PutAhead { cells: written } = &accepted.member.payload {
                for (table, cell) in written.iter() {
                    cells.forget(table, cell, accepted.commit_ts);
                }
            }
        }
    }
}

pub(super) fn entry_op(start_ts: Timestamp, entry: Entry) -> BatchOp {
    BatchOp::Set { table: transactions_table(), cell: Entry::cell(start_ts), value: entry.encode() }
}

/// Takes the data out of the members and puts it into a batch, commit timestamps filled in.
pub(super) async fn build_batch(group: &mut Group) -> AtomicBatch {
    let mut ops = Vec::with_capacity(ops_of(group));
    for accepted in &mut group.commits {
        let (start_ts, commit_ts) = (accepted.member.start_ts, accepted.commit_ts);
        if let Payload::Batch { data, .. } = &mut accepted.member.payload {
            reach(CommitStep::EnqueueForSweep, start_ts).await;
            reach(CommitStep::PutData, start_ts).await;
            ops.extend(data.stamp(start_ts, commit_ts));
        }
        // Versions of the batch carry the commit timestamp; those that were put ahead do not.
        ops.push(match &accepted.member.payload {
            Payload::Batch { .. } => BatchOp::Set {
                table: transactions_table(),
                cell: Entry::cell(start_ts),
                value: Entry::encode_self_contained(commit_ts),
            },
            Payload::PutAhead { .. } => entry_op(start_ts, Entry::Committed(commit_ts)),
        });
    }
    ops.extend(sweep_ops(group));
    for (start_ts, _) in &group.roll_backs {
        ops.push(entry_op(*start_ts, Entry::RolledBack));
    }
    AtomicBatch::new(ops)
}

/// What the members leave for sweep. Nothing of who put ahead, which includes his sweep entries.
fn sweep_ops(group: &Group) -> impl Iterator<Item = BatchOp> {
    let members = group.commits.iter().filter_map(|accepted| match &accepted.member.payload {
        Payload::Batch { queue, .. } => Some((accepted.member.start_ts, &queue[..])),
        Payload::PutAhead { .. } => None,
    });
    let table = sweep_queue_table();
    let entries = sweep_queue::merged(members).into_iter();
    entries.map(move |(ts, cell, value)| BatchOp::Put { table: table.clone(), cell, ts, value })
}

/// How many writes the batch of a group has.
fn ops_of(group: &Group) -> usize {
    let of_member = |accepted: &Accepted| match &accepted.member.payload {
        Payload::Batch { data, queue, .. } => data.len() + queue.len() + 1,
        Payload::PutAhead { .. } => 1,
    };
    group.commits.iter().map(of_member).sum::<usize>() + group.roll_backs.len()
}

/// The members whose data in a batch are of this table, by their start timestamps. The sweep queue is nobody's: entries are shared.
pub(super) fn writers_of(table: &TableRef, batch: &AtomicBatch) -> BTreeSet<Timestamp> {
    if *table == sweep_queue_table() {
        return BTreeSet::new();
    }
    let written = batch.ops.iter().filter_map(|op| match op {
        BatchOp::Put { table: written, ts, .. } if written == table => Some(*ts),
        _ => None,
    });
    written.collect()
}

/// Takes out of a batch what these have put into it, who are no members of the group any more.
pub(super) fn take_out_of_batch(writers: BTreeSet<Timestamp>, group: &Group, batch: &mut AtomicBatch) {
    let entries: BTreeSet<Cell> = writers.iter().map(|start_ts| Entry::cell(*start_ts)).collect();
    let queue = sweep_queue_table();
    let ops = Arc::make_mut(&mut batch.ops);
    ops.retain(|op| match op {
        BatchOp::Put { table, ts, .. } => *table != queue && !writers.contains(ts),
        BatchOp::Set { cell, .. } | BatchOp::Remove { cell, .. } => !entries.contains(cell),
    });
    // Anew: the entry of one who is gone may have held the cells of others.
    ops.extend(sweep_ops(group));
}

pub(super) fn not_applied(error: &KvsError) -> Error {
    Error::Unavailable { what: "the store".to_owned(), reason: format!("nothing was applied: {error}") }
}

pub(super) fn refuse_all(group: Group, refusal: impl Fn() -> Error) {
    for accepted in group.commits {
        let _ = accepted.reply.send(Verdict::Failed(refusal()));
    }
    for (_, reply) in group.roll_backs {
        let _ = reply.send(Err(refusal()));
    }
}
