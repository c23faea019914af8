//! Mode B: commits of all waiting transactions share one atomic batch and one sync.
//!
//! One task, the leader, decides alone. It drains what is waiting, and for each member in order checks conflicts
//! against the window of recent commits and the members ahead, draws the commit timestamp and adds data, sweep entries
//! and commit entry to the batch. Then, in this order and for the group as a whole:
//!
//! ```text
//!   apply and sync ──> publish the watermark ──> acknowledge
//!        │                    │
//!        │                    └ before the acknowledgement: whoever begins after it must see the commit
//!        └ before the watermark: a reader must not see what a crash can take back
//! ```
//!
//! While one group is synced the next one gathers; there is no timer. Nothing in the leader waits for user code, and
//! nothing but the batch waits for the store.
//!
//! **When the store does not answer** for a group, every member is *unknown*: the batch may be in the log. The leader
//! takes no more work until it has closed and opened the store, which turns the log into the truth, and has settled
//! each member: an entry that stands is a commit; where none stands it writes *rolled back*, so that none can appear
//! later. Members that can't be settled in time are told that their outcome is unknown, and settled all the same.
//!
//! **Where others can reach the store**, every batch carries the fence of its owner, so that a successor's store takes
//! none of a leader that slept. There opening the store again would prove nothing: the batch may be on its way inside a
//! server. The leader raises the fence by a generation instead, which no earlier batch can pass. When the fence shows
//! that somebody took over, the leader ends, and whoever comes later is told so.

use super::buffer::LocalWriteBuffer;
use super::cell_cache::CellCache;
use super::core::SchemaCache;
use super::entry::{Entry, Fate, transactions_table};
use super::leader_thread;
use super::reads::Reads;
use super::reservations::{Loser, Reservations};
use super::step::{CommitStep, reach};
use super::sweep_queue::sweep_queue_table;
use super::table::TransactionTable;
use super::tracker::{Registration, SnapshotTracker};
use super::value;
use super::window::{ConflictKey, ConflictWindow};
use crate::lock::HeldLocks;
use crate::rule::Rule;
use crate::timestamp::{BatchFence, Raised, TimestampOracle};
use crate::{Error, Result};
use atlas_kvs::{AtomicBatch, BatchOp, Cell, Durability, KeyValueService, KvsError, Ownership, TableRef, Timestamp};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

/// How many requests wait in the queue; more wait before it.
const QUEUE: usize = 8192;
/// How many transactions share a batch at most.
const GROUP_MAX: usize = 4096;
/// How long the leader tries to settle a group before it tells its members that their outcome is unknown.
const SETTLE_WITHIN: Duration = Duration::from_secs(10);
/// Pauses between attempts to open the store again.
const REOPEN_PAUSE: Duration = Duration::from_millis(200);
/// After this many losses the cells of a large transaction are reserved for its next attempt.
const LOSSES_BEFORE_RESERVATION: u32 = 2;

/// A transaction at the door of the pipeline.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) start_ts: Timestamp,
    /// Commits below this were checked against the store already.
    pub(crate) checked_from: Timestamp,
    /// The same for all attempts of one piece of work.
    pub(crate) work_id: u64,
    /// How often this piece of work has lost a conflict.
    pub(crate) losses: u32,
    /// When the transaction began.
    pub(crate) began: Instant,
    pub(crate) keys: Vec<ConflictKey>,
    /// The snapshot it read.
    pub(crate) read_ts: Timestamp,
    /// What it read of tables that check reads, and every table it used.
    pub(crate) reads: Arc<Reads>,
    /// Locks of the application that must still be held.
    pub(crate) locks: Vec<Arc<HeldLocks>>,
    pub(crate) payload: Payload,
    /// Keeps the snapshot registered until the outcome is known, even if the caller has gone.
    pub(crate) _registration: Option<Arc<Registration>>,
}

/// What a member adds to the batch besides its entry.
#[derive(Debug)]
pub(crate) enum Payload {
    /// Everything.
    Batch {
        /// Unstamped versions.
        data: Vec<(TableRef, Cell, BytesMut)>,
        /// Sweep entries.
        queue: Vec<(Cell, Bytes)>,
        /// Bytes of both, about.
        size: usize,
    },
    /// Nothing: data and sweep entries were put ahead, and those puts have returned.
    PutAhead {
        /// The cells that were written, of all tables: conflict keys are of some.
        cells: Arc<[(TableRef, Cell)]>,
    },
}

/// The leader's answer to a member.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Committed at this timestamp, durable and visible.
    Committed(Timestamp),
    /// Somebody else committed this cell first.
    Conflict { table: TableRef, cell: Cell, committed_at: Option<Timestamp> },
    /// Somebody committed first what the member has read.
    ReadConflict { table: TableRef, cell: Cell, committed_at: Timestamp },
    /// The promises of a table it used have changed since it began.
    TableChanged(TableRef),
    /// The window does not reach back to the member's snapshot: check against the store and come again.
    TooOldForWindow,
    /// The start timestamp has an entry already.
    HasEntry,
    /// Nothing was applied.
    Failed(Error),
    /// Nobody knows yet.
    Unknown {
        /// What it has if it committed.
        commit_ts: Option<Timestamp>,
        reason: String,
    },
}

#[derive(Debug)]
enum Request {
    Commit(Box<Member>, oneshot::Sender<Verdict>),
    RollBack(Timestamp, oneshot::Sender<Result<()>>),
    Marker(oneshot::Sender<()>),
    Lost(Box<Loser>),
    Release(u64),
    Stop(oneshot::Sender<()>),
}

/// How groups of commits are written.
#[derive(Debug)]
pub(crate) struct Groups {
    pub(crate) durability: Durability,
    /// Most bytes of a group.
    pub(crate) size_max: usize,
    /// The right to commit on a store with one owner.
    pub(crate) claim: Option<Claim>,
}

/// The way into the pipeline.
#[derive(Debug)]
pub(crate) struct Pipeline {
    requests: mpsc::Sender<Request>,
    window_floor: Arc<AtomicU64>,
    oracle: Arc<TimestampOracle>,
    tracker: Arc<SnapshotTracker>,
    /// Told whenever a group was published.
    published: Arc<Notify>,
}

impl Pipeline {
    /// Starts the leader. Commits at or below the tracker's watermark are applied; of those the window knows nothing.
    pub(crate) fn start(
        kvs: Arc<dyn KeyValueService>,
        oracle: Arc<TimestampOracle>,
        tracker: Arc<SnapshotTracker>,
        entries: Arc<TransactionTable>,
        schema: Arc<SchemaCache>,
        cells: Option<Arc<CellCache>>,
        groups: Groups,
    ) -> Pipeline {
        let Groups { durability, size_max, claim } = groups;
        let (requests, queue) = mpsc::channel(QUEUE);
        let first_ts = tracker.watermark().next();
        let window_floor = Arc::new(AtomicU64::new(first_ts.get()));
        let published = Arc::new(Notify::new());
        let leader = Leader {
            kvs,
            fence: oracle.batch_fence(),
            oracle: oracle.clone(),
            tracker: tracker.clone(),
            published: published.clone(),
            entries,
            schema,
            cells,
            durability,
            group_size_max: size_max,
            first_ts,
            window: ConflictWindow::new(first_ts),
            window_floor: window_floor.clone(),
            rolled_back: BTreeSet::new(),
            reserved: Reservations::default(),
            _claim: claim,
        };
        leader_thread::spawn(&*leader.kvs.clone(), move |gone| leader.run(queue, gone));
        Pipeline { requests, window_floor, oracle, tracker, published }
    }

    /// Commits below this can't be checked by the leader any more.
    pub(crate) fn window_floor(&self) -> Timestamp {
        Timestamp::saturating(self.window_floor.load(Ordering::Acquire))
    }

    /// Hands a transaction over. From the moment it is queued the leader finishes it, whatever becomes of the caller.
    /// `keep` is called when there is room for the member, so that no caller who stops waiting leaves something that
    /// counts for ever.
    pub(crate) async fn commit(&self, member: Member, keep: impl FnOnce() -> Result<()>) -> Verdict {
        let (reply, verdict) = oneshot::channel();
        let Ok(room) = self.requests.reserve().await else { return Verdict::Failed(self.stopped()) };
        if let Err(error) = keep() {
            return Verdict::Failed(error);
        }
        room.send(Request::Commit(Box::new(member), reply));
        // A leader that vanishes takes its answer along, not necessarily the write.
        verdict.await.unwrap_or_else(|_| Verdict::Unknown {
            commit_ts: None,
            reason: "the commit pipeline ended before it answered".to_owned(),
        })
    }

    /// Waits until whoever begins has a snapshot above a commit that was met in a conflict: before that the same work can
    /// only lose again. Ends when the commit is seen, not if its group fails.
    pub(crate) async fn published(&self, commit_ts: Timestamp) {
        loop {
            let mut told = std::pin::pin!(self.published.notified());
            // Before the look, so that no telling is missed between the two.
            told.as_mut().enable();
            if self.tracker.watermark() >= commit_ts {
                return;
            }
            told.await;
        }
    }

    /// Writes *rolled back* for a transaction that put data ahead and can't commit.
    pub(crate) async fn roll_back(&self, start_ts: Timestamp) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::RollBack(start_ts, reply)).await.map_err(|_| self.stopped())?;
        answer.await.map_err(|_| self.stopped())?
    }

    /// Waits until every commit with a timestamp drawn before this call is applied, and lifts the watermark to the
    /// last timestamp issued.
    pub(crate) async fn settle(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Marker(reply)).await.map_err(|_| self.stopped())?;
        answer.await.map_err(|_| self.stopped())
    }

    /// Tells the leader of a large transaction that lost: after a few losses its cells are reserved for its next attempt.
    pub(crate) async fn lost(&self, loser: Loser) {
        let _ = self.requests.send(Request::Lost(Box::new(loser))).await;
    }

    /// Gives up the reservations of a piece of work that will not come again.
    pub(crate) fn release(&self, work_id: u64) {
        // A full queue is no reason to wait: the reservation runs out by itself.
        let _ = self.requests.try_send(Request::Release(work_id));
    }

    /// Finishes what is queued and ends the leader.
    pub(crate) async fn stop(&self) {
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request::Stop(reply)).await.is_ok() {
            let _ = answer.await;
        }
    }

    /// Why there is no leader any more.
    fn stopped(&self) -> Error {
        self.oracle.lost_error().unwrap_or_else(|| Error::Unavailable {
            what: "the commit pipeline".to_owned(),
            reason: "it was stopped".to_owned(),
        })
    }
}

#[derive(Debug)]
struct Leader {
    kvs: Arc<dyn KeyValueService>,
    /// What batches carry where others can reach the store.
    fence: Option<Arc<BatchFence>>,
    oracle: Arc<TimestampOracle>,
    tracker: Arc<SnapshotTracker>,
    published: Arc<Notify>,
    entries: Arc<TransactionTable>,
    schema: Arc<SchemaCache>,
    cells: Option<Arc<CellCache>>,
    durability: Durability,
    group_size_max: usize,
    /// Start timestamps below this belong to an earlier epoch, whose transactions are void.
    first_ts: Timestamp,
    window: ConflictWindow,
    window_floor: Arc<AtomicU64>,
    /// Start timestamps of this epoch with the entry *rolled back*; the leader alone writes entries, so it need not
    /// ask the store.
    rolled_back: BTreeSet<Timestamp>,
    reserved: Reservations,
    /// Nobody else may open this store for commits in this process before the leader has ended. `None` where the
    /// lease of the store sees to it.
    _claim: Option<Claim>,
}

/// A member that is part of the batch.
struct Accepted {
    member: Box<Member>,
    commit_ts: Timestamp,
    reply: oneshot::Sender<Verdict>,
}

/// A member whose outcome is not known yet.
struct Waiting {
    start_ts: Timestamp,
    commit_ts: Timestamp,
    /// Taken when it was told that nobody knows.
    reply: Option<oneshot::Sender<Verdict>>,
    /// Its snapshot stays registered until it is settled.
    _registration: Option<Arc<Registration>>,
    /// And the locks of the application are kept: who gets them next must find it decided.
    _locks: Vec<Arc<HeldLocks>>,
}

impl From<Accepted> for Waiting {
    fn from(accepted: Accepted) -> Waiting {
        let Member { start_ts, _registration, locks, .. } = *accepted.member;
        let (commit_ts, reply) = (accepted.commit_ts, Some(accepted.reply));
        Waiting { start_ts, commit_ts, reply, _registration, _locks: locks }
    }
}

/// The leader has to end in the middle of its work.
enum Ended {
    /// The store is closed, or was not settled when it had to be.
    Unsettled { stop: Option<oneshot::Sender<()>> },
    /// Somebody else commits on the store now.
    TakenOver,
}

/// The right to commit on a store with one owner, of one leader in the process.
///
/// A second leader would begin transactions while a batch of the first is on its way: their snapshots would miss
/// commits below them, and their windows conflicts. Timestamps alone can't fence a write that is under way.
#[derive(Debug)]
pub(crate) struct Claim {
    store: usize,
}

static CLAIMED: parking_lot::Mutex<BTreeSet<usize>> = parking_lot::Mutex::new(BTreeSet::new());

impl Claim {
    /// Claims a store, unless another leader has it.
    pub(crate) fn try_new(kvs: &dyn KeyValueService) -> Option<Claim> {
        let store = match kvs.ownership() {
            Ownership::Exclusive(shared) => Arc::as_ptr(&shared).addr(),
            Ownership::Shared => return None,
        };
        let is_first = CLAIMED.lock().insert(store);
        // Made only then, and when the latch is free: one that is dropped gives the store up.
        is_first.then(|| Claim { store })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.lock().remove(&self.store);
    }
}

/// What became of the members of a group, in their order.
struct Settled {
    fates: Vec<Fate>,
    /// Another owner has begun.
    taken_over: bool,
}

/// What shares one batch.
#[derive(Default)]
struct Group {
    commits: Vec<Accepted>,
    roll_backs: Vec<(Timestamp, oneshot::Sender<Result<()>>)>,
    markers: Vec<oneshot::Sender<()>>,
    stop: Option<oneshot::Sender<()>>,
}

impl Group {
    fn commits(&self, start_ts: Timestamp) -> bool {
        self.commits.iter().any(|accepted| accepted.member.start_ts == start_ts)
    }

    fn rolls_back(&self, start_ts: Timestamp) -> bool {
        self.roll_backs.iter().any(|(rolled_back, _)| *rolled_back == start_ts)
    }
}

impl Leader {
    /// Until it is told to stop, nobody is left who could ask, or `gone` says that the runtime of those who ask is gone.
    async fn run(mut self, mut queue: mpsc::Receiver<Request>, gone: impl Future<Output = ()>) {
        let mut gone = std::pin::pin!(gone);
        loop {
            let first = tokio::select! {
                biased;
                first = queue.recv() => first,
                () = &mut gone => return refuse_all_to_come(queue, "its runtime was shut down").await,
            };
            let Some(first) = first else { return };
            let mut group = self.gather(first, &mut queue).await;
            let stop = group.stop.take();
            let markers = std::mem::take(&mut group.markers);
            // Markers and whoever waits behind them see their answers vanish, which says that nothing is settled.
            match self.commit_group(group, &mut queue).await {
                // Known from the lease: nothing may be called settled, whatever the group was.
                Ok(()) if self.oracle.lost_error().is_some() => return self.end_replaced(queue, stop).await,
                Ok(()) => (),
                Err(Ended::TakenOver) => return self.end_replaced(queue, stop).await,
                Err(Ended::Unsettled { stop: late }) => {
                    for stop in [stop, late].into_iter().flatten() {
                        let _ = stop.send(());
                    }
                    return refuse_all_to_come(queue, "it was lost before a group of commits was settled").await;
                }
            }
            if !markers.is_empty() || queue.is_empty() {
                // Between groups no commit is on its way, and later ones are numbered above what was issued so far:
                // everything at or below the last number issued is decided.
                self.tracker.publish(self.oracle.last_issued());
            }
            for marker in markers {
                let _ = marker.send(());
            }
            self.forget();
            if let Some(stop) = stop {
                // First: who stops need not wait for those who come too late.
                let _ = stop.send(());
                return refuse_all_to_come(queue, "it was closed").await;
            }
        }
    }

    /// Ends because another owner has begun. Whoever is still waiting is told that nothing was applied.
    async fn end_replaced(self, mut queue: mpsc::Receiver<Request>, stop: Option<oneshot::Sender<()>>) {
        queue.close();
        while let Some(request) = queue.recv().await {
            if let Some(stop) = request.refuse(|| self.replaced()) {
                let _ = stop.send(());
            }
        }
        if let Some(stop) = stop {
            let _ = stop.send(());
        }
    }

    fn replaced(&self) -> Error {
        self.oracle.lose("the fence in the store was raised by another instance")
    }

    /// Takes what is waiting, admits it in order, and stops at the limits of a group.
    async fn gather(&mut self, first: Request, queue: &mut mpsc::Receiver<Request>) -> Group {
        let mut group = Group::default();
        let mut size = 0;
        let mut taken = 0;
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Commit(member, reply) => {
                    size += match &member.payload {
                        Payload::Batch { size, .. } => *size,
                        Payload::PutAhead { .. } => 0,
                    };
                    self.admit(member, reply, &mut group).await;
                }
                // One start timestamp has one entry: who commits in this group is not rolled back in it.
                Request::RollBack(start_ts, reply) if group.commits(start_ts) => {
                    let reason = format!("transaction {start_ts} is being committed");
                    let _ = reply.send(Err(Error::Unavailable { what: "the roll-back".to_owned(), reason }));
                }
                Request::RollBack(start_ts, reply) => group.roll_backs.push((start_ts, reply)),
                Request::Marker(reply) => group.markers.push(reply),
                Request::Lost(loser) => self.reserve_for_loser(&loser),
                Request::Release(work_id) => self.reserved.remove(work_id),
                Request::Stop(reply) => {
                    group.stop = Some(reply);
                    break;
                }
            }
            taken += 1;
            let full = size >= self.group_size_max || taken >= GROUP_MAX;
            next = if full { None } else { queue.try_recv().ok() };
        }
        group
    }

    /// Decides whether a member may commit, and numbers it. Steps 3, 6, 7 and 9.
    async fn admit(&mut self, member: Box<Member>, reply: oneshot::Sender<Verdict>, group: &mut Group) {
        if group.rolls_back(member.start_ts) && Rule::RefuseRolledBack.is_kept() {
            let _ = reply.send(Verdict::HasEntry);
            return;
        }
        if let Some(verdict) = self.refusal(&member) {
            let lost = matches!(verdict, Verdict::Conflict { .. } | Verdict::ReadConflict { .. });
            if lost && matches!(member.payload, Payload::PutAhead { .. }) {
                self.reserve_for_loser(&Loser {
                    work_id: member.work_id,
                    losses: member.losses,
                    // Cells it reads too, where reads are checked. What it reads of ranges can't be reserved.
                    keys: member.keys.iter().chain(&member.reads.cells).cloned().collect(),
                    took: member.began.elapsed(),
                });
            }
            let _ = reply.send(verdict);
            return;
        }
        let start_ts = member.start_ts;
        reach(CommitStep::CheckWriteConflicts, start_ts).await;
        // After the conflict check and in the order of the queue: the order of commit timestamps is the order in
        // which members were checked against each other.
        let commit_ts = match self.oracle.fresh().await {
            Ok(commit_ts) => commit_ts,
            Err(error) => {
                let _ = reply.send(Verdict::Failed(error));
                return;
            }
        };
        reach(CommitStep::TakeCommitTs, start_ts).await;
        // Before the batch is applied: the members behind must see this one. If the batch fails, conflicts with it
        // are too many, never too few.
        if Rule::SeeMembersAhead.is_kept() {
            self.window.insert(commit_ts, &member.keys);
        }
        reach(CommitStep::RecheckReads, start_ts).await;
        self.reserved.remove(member.work_id);
        reach(CommitStep::CheckLocks, start_ts).await;
        group.commits.push(Accepted { member, commit_ts, reply });
    }

    fn refusal(&self, member: &Member) -> Option<Verdict> {
        // Below the floor its entry may have been removed, and an absence has been taken for *rolled back* since.
        let below_floor = member.start_ts < self.entries.floor() && Rule::RefuseBelowFloor.is_kept();
        let rolled_back = self.rolled_back.contains(&member.start_ts) && Rule::RefuseRolledBack.is_kept();
        if below_floor || member.start_ts < self.first_ts || rolled_back {
            return Some(Verdict::HasEntry);
        }
        // Here and not before it entered: whoever begins after the change must find this member applied, or refused.
        if let Some(table) = self.schema.changed_since(&member.reads.tables, member.read_ts) {
            return Some(Verdict::TableChanged(table.clone()));
        }
        if let Some(error) = member.locks.iter().find_map(|locks| locks.check().err()) {
            return Some(Verdict::Failed(error));
        }
        if member.checked_from < self.window.floor() {
            return Some(Verdict::TooOldForWindow);
        }
        let write_conflict = if Rule::CheckWrites.is_kept() { self.write_conflict(member) } else { None };
        write_conflict.or_else(|| if Rule::RecheckReads.is_kept() { self.read_conflict(member) } else { None })
    }

    fn write_conflict(&self, member: &Member) -> Option<Verdict> {
        let since = counted_from(member);
        let conflict = member.keys.iter().filter(|key| key.excludes_writers).find_map(|key| {
            let conflict = self.window.conflict(key, since).map(Some);
            conflict
                .or_else(|| self.reserved.is_for_another(key.hash, member.work_id).then_some(None))
                .map(|at| (key, at))
        });
        conflict.map(|(key, committed_at)| Verdict::Conflict {
            table: key.table.clone(),
            cell: key.cell.clone(),
            committed_at,
        })
    }

    /// Step 7: against everything that committed since the member's snapshot, and the members ahead of it. Own writes
    /// are not in the window yet.
    fn read_conflict(&self, member: &Member) -> Option<Verdict> {
        let since = counted_from(member);
        let cell = member
            .reads
            .cells
            .iter()
            .find_map(|key| self.window.conflict(key, since).map(|at| (&key.table, key.cell.clone(), at)));
        let changed =
            cell.or_else(|| {
                member.reads.ranges.iter().find_map(|range| {
                    self.window.range_conflict(range, since).map(|(cell, at)| (&range.table, cell, at))
                })
            });
        changed.map(|(table, cell, committed_at)| Verdict::ReadConflict { table: table.clone(), cell, committed_at })
    }

    /// A large transaction takes long from snapshot to commit and could lose to small ones for ever. After a few
    /// losses the others have to wait for its next attempt.
    fn reserve_for_loser(&mut self, loser: &Loser) {
        if loser.losses >= LOSSES_BEFORE_RESERVATION {
            self.reserved.add(loser);
        }
    }

    /// Steps 4, 5 and 10 for all members at once.
    async fn commit_group(
        &mut self,
        mut group: Group,
        queue: &mut mpsc::Receiver<Request>,
    ) -> std::result::Result<(), Ended> {
        if group.commits.is_empty() && group.roll_backs.is_empty() {
            return Ok(());
        }
        let fence = self.fence.as_ref().filter(|_| Rule::GuardBatches.is_kept());
        let mut batch = build_batch(&mut group).await.guarded(fence.map(|fence| fence.guard()));
        let durability = if Rule::SyncBeforePublish.is_kept() { self.durability } else { Durability::Relaxed };
        loop {
            if let Some(first) = group.commits.first() {
                reach(CommitStep::RecordCommit, first.member.start_ts).await;
            }
            if let Some(last) = group.commits.last()
                && !Rule::ApplyBeforePublish.is_kept()
            {
                self.tracker.publish(last.commit_ts);
            }
            match self.kvs.apply(batch.clone(), durability).await {
                Ok(()) => {
                    let last = group.commits.last().map(|accepted| accepted.commit_ts);
                    if Rule::NoteBeforePublish.is_kept() {
                        self.note_in_cells(&group, &batch);
                        self.acknowledge(group).await;
                    } else {
                        let noted = Group { commits: Vec::new(), ..Group::default() };
                        self.acknowledge(group).await;
                        tokio::time::sleep(REOPEN_PAUSE).await;
                        self.note_in_cells(&noted, &batch);
                    }
                    if let (Some(last), false) = (last, Rule::PublishBeforeAnswer.is_kept()) {
                        tokio::time::sleep(REOPEN_PAUSE).await;
                        self.tracker.publish(last);
                    }
                    return Ok(());
                }
                Err(error) if error.is_indeterminate() => return self.settle_unknown(group, error, queue).await,
                // Nothing was applied, and nothing of ours will be any more.
                Err(KvsError::GuardFailed { .. }) => {
                    refuse_all(group, || self.replaced());
                    return Err(Ended::TakenOver);
                }
                // Nothing was applied. A table that is gone concerns its own writers, not the others of the group.
                Err(KvsError::NoSuchTable(table)) => {
                    drop_writers_of(&table, &mut group, &mut batch);
                    if group.commits.is_empty() && group.roll_backs.is_empty() {
                        return Ok(());
                    }
                }
                Err(error) => {
                    refuse_all(group, || not_applied(&error));
                    return Ok(());
                }
            }
        }
    }

    /// Before the group is published: nobody has a snapshot above it that could be shown what it has replaced.
    fn note_in_cells(&self, group: &Group, batch: &AtomicBatch) {
        let Some(cells) = &self.cells else { return };
        cells.note_batch(batch);
        for accepted in &group.commits {
            if let Payload::PutAhead { cells: written } = &accepted.member.payload {
                for (table, cell) in written.iter() {
                    cells.forget(table, cell, accepted.commit_ts);
                }
            }
        }
    }

    async fn acknowledge(&mut self, group: Group) {
        let first = group.commits.first().map(|accepted| accepted.member.start_ts);
        if let Some(first) = first {
            reach(CommitStep::Recorded, first).await;
        }
        for accepted in &group.commits {
            self.entries.remember(accepted.member.start_ts, Fate::Committed(accepted.commit_ts));
            if !Rule::SeeMembersAhead.is_kept() {
                self.window.insert(accepted.commit_ts, &accepted.member.keys);
            }
        }
        if let Some(last) = group.commits.last().filter(|_| Rule::PublishBeforeAnswer.is_kept()) {
            // After the sync, before the answers, in the order of commits.
            self.tracker.publish(last.commit_ts);
            self.published.notify_waiters();
        }
        if let Some(first) = first {
            reach(CommitStep::Published, first).await;
        }
        for accepted in group.commits {
            let _ = accepted.reply.send(Verdict::Committed(accepted.commit_ts));
        }
        for (start_ts, reply) in group.roll_backs {
            self.rolled_back.insert(start_ts);
            self.entries.remember(start_ts, Fate::RolledBack);
            let _ = reply.send(Ok(()));
        }
    }

    /// The way out of a group whose batch may or may not have been applied.
    async fn settle_unknown(
        &mut self,
        group: Group,
        error: KvsError,
        queue: &mut mpsc::Receiver<Request>,
    ) -> std::result::Result<(), Ended> {
        tracing::error!(%error, members = group.commits.len(), "a group of commits was not answered; finding out what became of it");
        let deadline = Instant::now() + SETTLE_WITHIN;
        let last_commit = group.commits.last().map(|accepted| accepted.commit_ts);
        let reason = error.to_string();
        let mut waiting: Vec<Waiting> = group.commits.into_iter().map(Waiting::from).collect();
        let mut roll_backs = group.roll_backs;
        loop {
            match self.try_settle(&waiting, &roll_backs).await {
                Ok(settled) => {
                    if let Some(last_commit) = last_commit {
                        if let Some(cells) = self.cells.as_ref().filter(|_| Rule::ForgetTheUnknown.is_kept()) {
                            cells.forget_up_to(last_commit);
                        }
                        self.tracker.publish(last_commit);
                    }
                    return self.tell_settled(settled, waiting, roll_backs, &reason);
                }
                Err(error @ (Error::Kvs(KvsError::Closed) | Error::LostLeadership { .. })) => {
                    // For good: whoever opens it next settles what is left.
                    tracing::warn!(%error, "the store was lost before a group of commits was settled");
                    tell_unknown(&mut waiting, &reason);
                    return Err(if self.oracle.lost_error().is_some() {
                        Ended::TakenOver
                    } else {
                        Ended::Unsettled { stop: None }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "what became of the group can't be found out yet");
                    if Instant::now() >= deadline {
                        tell_unknown(&mut waiting, &reason);
                        if let Some(stop) = refuse_waiting(queue, &reason) {
                            return Err(Ended::Unsettled { stop: Some(stop) });
                        }
                    }
                    if queue.is_closed() && queue.is_empty() {
                        // Nobody is left who could ask; holding on to the store would keep it from its next opener.
                        tell_unknown(&mut waiting, &reason);
                        return Err(Ended::Unsettled { stop: None });
                    }
                    pause(REOPEN_PAUSE).await;
                }
            }
            roll_backs.retain(|(_, reply)| !reply.is_closed());
        }
    }

    /// Tells everybody what became of him.
    fn tell_settled(
        &mut self,
        settled: Settled,
        waiting: Vec<Waiting>,
        roll_backs: Vec<(Timestamp, oneshot::Sender<Result<()>>)>,
        reason: &str,
    ) -> std::result::Result<(), Ended> {
        for (member, fate) in waiting.into_iter().zip(settled.fates) {
            let Some(reply) = member.reply else { continue };
            let _ = reply.send(match fate {
                Fate::Committed(commit_ts) => Verdict::Committed(commit_ts),
                Fate::RolledBack | Fate::Undecided if settled.taken_over => Verdict::Failed(self.replaced()),
                Fate::RolledBack | Fate::Undecided => Verdict::Failed(Error::Unavailable {
                    what: "the store".to_owned(),
                    reason: format!("{reason}; the transaction was rolled back"),
                }),
            });
        }
        for (start_ts, reply) in roll_backs {
            if settled.taken_over {
                let _ = reply.send(Err(self.replaced()));
            } else {
                self.rolled_back.insert(start_ts);
                let _ = reply.send(Ok(()));
            }
        }
        if settled.taken_over {
            tracing::warn!("another instance took over; every member of the group is settled");
            return Err(Ended::TakenOver);
        }
        tracing::warn!("the store answers again and every member of the group is settled");
        Ok(())
    }

    /// Sees to it that no batch sent so far can arrive any more. True if another owner has done so, for good.
    async fn stop_late_batches(&self) -> Result<bool> {
        match &self.fence {
            // It is in the log that is replayed now, or it is gone.
            None => self.kvs.reopen().await.map(|()| false).map_err(Error::from),
            Some(fence) => match fence.raise_generation().await {
                Ok(Raised::Ours) => Ok(false),
                Ok(Raised::TakenOver { epoch }) => {
                    self.oracle.lose(&format!("the fence in the store was raised to epoch {epoch}"));
                    Ok(true)
                }
                Err(Error::LostLeadership { reason }) => Err(self.oracle.lose(&reason)),
                Err(error) => Err(error),
            },
        }
    }

    /// Reads which entries stand when none can come any more, and writes *rolled back* where none does.
    async fn try_settle(
        &mut self,
        members: &[Waiting],
        roll_backs: &[(Timestamp, oneshot::Sender<Result<()>>)],
    ) -> Result<Settled> {
        let taken_over = self.stop_late_batches().await?;
        let starts: Vec<Timestamp> =
            members.iter().map(|member| member.start_ts).chain(roll_backs.iter().map(|(start, _)| *start)).collect();
        let fates = self.entries.fates(&starts).await?;
        let fate_of = |start_ts: &Timestamp| fates.get(start_ts).copied().unwrap_or(Fate::Undecided);
        let undecided: Vec<Timestamp> =
            starts.iter().copied().filter(|start_ts| fate_of(start_ts) == Fate::Undecided).collect();
        // After a takeover entries are no longer ours to write, and none of ours can come: absent is final.
        if !taken_over && !undecided.is_empty() {
            let ops = undecided.iter().map(|start_ts| entry_op(*start_ts, Entry::RolledBack)).collect();
            let guard = self.fence.as_ref().map(|fence| fence.guard());
            self.kvs.apply(AtomicBatch::new(ops).guarded(guard), Durability::Synced).await?;
            for start_ts in &undecided {
                self.rolled_back.insert(*start_ts);
                self.entries.remember(*start_ts, Fate::RolledBack);
            }
        }
        Ok(Settled { fates: members.iter().map(|member| fate_of(&member.start_ts)).collect(), taken_over })
    }

    /// Forgets what no open snapshot needs.
    fn forget(&mut self) {
        let oldest = self.tracker.immutable_ts();
        self.window.forget_below(oldest);
        self.window_floor.store(self.window.floor().get(), Ordering::Release);
        // Who began before `oldest` has ended: a start timestamp is never below its snapshot.
        self.rolled_back = self.rolled_back.split_off(&oldest);
    }
}

/// Commits at or above this conflict with the member.
fn counted_from(member: &Member) -> Timestamp {
    match Rule::CountFromSnapshot.is_kept() {
        true => member.checked_from,
        false => member.checked_from.max(member.start_ts),
    }
}

fn entry_op(start_ts: Timestamp, entry: Entry) -> BatchOp {
    BatchOp::Set { table: transactions_table(), cell: Entry::cell(start_ts), value: entry.encode() }
}

/// Takes the data out of the members and puts it into a batch, commit timestamps filled in.
async fn build_batch(group: &mut Group) -> AtomicBatch {
    let mut batch = AtomicBatch::default();
    let queue_table = sweep_queue_table();
    for accepted in &mut group.commits {
        let (start_ts, commit_ts) = (accepted.member.start_ts, accepted.commit_ts);
        if let Payload::Batch { data, queue, .. } = &mut accepted.member.payload {
            reach(CommitStep::EnqueueForSweep, start_ts).await;
            for (cell, value) in queue.drain(..) {
                batch.ops.push(BatchOp::Put { table: queue_table.clone(), cell, ts: start_ts, value });
            }
            reach(CommitStep::PutData, start_ts).await;
            for (table, cell, unstamped) in data.drain(..) {
                let value = value::stamp(unstamped, commit_ts);
                batch.ops.push(BatchOp::Put { table, cell, ts: start_ts, value });
            }
        }
        // Versions of the batch carry the commit timestamp; those that were put ahead do not.
        batch.ops.push(match &accepted.member.payload {
            Payload::Batch { .. } => BatchOp::Set {
                table: transactions_table(),
                cell: Entry::cell(start_ts),
                value: Entry::encode_self_contained(commit_ts),
            },
            Payload::PutAhead { .. } => entry_op(start_ts, Entry::Committed(commit_ts)),
        });
    }
    for (start_ts, _) in &group.roll_backs {
        batch.ops.push(entry_op(*start_ts, Entry::RolledBack));
    }
    batch
}

/// Takes the members that write to a table that is gone out of the group and its batch.
fn drop_writers_of(gone: &TableRef, group: &mut Group, batch: &mut AtomicBatch) {
    let writers: BTreeSet<Timestamp> = batch
        .ops
        .iter()
        .filter_map(|op| match op {
            BatchOp::Put { table, ts, .. } if table == gone => Some(*ts),
            _ => None,
        })
        .collect();
    if writers.is_empty() {
        // Not a table of a member: one of our own is gone, and nobody can commit.
        let error = KvsError::NoSuchTable(gone.clone());
        return refuse_all(std::mem::take(group), || not_applied(&error));
    }
    let entries: BTreeSet<Cell> = writers.iter().map(|start_ts| Entry::cell(*start_ts)).collect();
    batch.ops.retain(|op| match op {
        BatchOp::Put { ts, .. } => !writers.contains(ts),
        BatchOp::Set { cell, .. } | BatchOp::Remove { cell, .. } => !entries.contains(cell),
    });
    for accepted in std::mem::take(&mut group.commits) {
        if writers.contains(&accepted.member.start_ts) {
            let error = Error::NotFound { what: format!("table '{gone}'") };
            let _ = accepted.reply.send(Verdict::Failed(error));
        } else {
            group.commits.push(accepted);
        }
    }
}

fn not_applied(error: &KvsError) -> Error {
    Error::Unavailable { what: "the store".to_owned(), reason: format!("nothing was applied: {error}") }
}

fn refuse_all(group: Group, refusal: impl Fn() -> Error) {
    for accepted in group.commits {
        let _ = accepted.reply.send(Verdict::Failed(refusal()));
    }
    for (_, reply) in group.roll_backs {
        let _ = reply.send(Err(refusal()));
    }
}

impl Request {
    /// Tells who asked that nothing of it was applied. A request to stop is handed back.
    fn refuse(self, refusal: impl Fn() -> Error) -> Option<oneshot::Sender<()>> {
        match self {
            Request::Commit(_, reply) => drop(reply.send(Verdict::Failed(refusal()))),
            Request::RollBack(_, reply) => drop(reply.send(Err(refusal()))),
            Request::Stop(reply) => return Some(reply),
            // Their senders see the closed channel.
            Request::Marker(_) | Request::Lost(_) | Request::Release(_) => (),
        }
        None
    }
}

/// Sends away who queued up while the store is closed: nothing of theirs was applied.
/// A request to stop is handed back.
fn refuse_waiting(queue: &mut mpsc::Receiver<Request>, reason: &str) -> Option<oneshot::Sender<()>> {
    let mut stop = None;
    let refusal = || Error::Unavailable { what: "the store".to_owned(), reason: reason.to_owned() };
    while let Ok(request) = queue.try_recv() {
        stop = request.refuse(refusal).or(stop);
    }
    stop
}

/// Takes nothing more, and sends away who came behind the end, also who has room in the queue and is about to fill it:
/// nobody is left without an answer.
async fn refuse_all_to_come(mut queue: mpsc::Receiver<Request>, reason: &str) {
    queue.close();
    let refusal = || Error::Unavailable { what: "the store".to_owned(), reason: reason.to_owned() };
    while let Some(request) = queue.recv().await {
        if let Some(stop) = request.refuse(refusal) {
            let _ = stop.send(());
        }
    }
}

/// On a thread of the leader's own by waiting: the runtime may be gone.
async fn pause(length: Duration) {
    if atlas_kvs::may_wait() { std::thread::sleep(length) } else { tokio::time::sleep(length).await }
}

fn tell_unknown(waiting: &mut [Waiting], reason: &str) {
    for member in waiting {
        if let Some(reply) = member.reply.take() {
            let _ = reply.send(Verdict::Unknown { commit_ts: Some(member.commit_ts), reason: reason.to_owned() });
        }
    }
}

/// The data of a transaction as the batch takes it, commit timestamps still open.
pub(crate) fn unstamped(buffer: &LocalWriteBuffer) -> Vec<(TableRef, Cell, BytesMut)> {
    buffer
        .tables()
        .iter()
        .flat_map(|(table, writes)| {
            writes.iter().map(|(cell, value)| (table.clone(), cell.clone(), value::encode_unstamped(value.as_deref())))
        })
        .collect()
}
