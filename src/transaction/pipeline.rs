//! Mode B: commits of all waiting transactions share one atomic batch and one sync.
//!
//! This is the way in. One [leader](super::leader) decides; while one group is synced the next one gathers; there is no
//! timer, and only where syncs are slow a short wait for [company](super::company). Nothing in the leader waits for user code, and
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
use super::claim::Claim;
use super::company::Company;
use super::core::SchemaCache;
use super::dependency::{Dependency, OnTheirWay};
use super::group::{GROUP_MAX, GROUP_MAX_AT_ONCE};
use super::leader::Leader;
use super::leader_thread;
use super::reads::Reads;
use super::reservations::{Loser, Reservations};
use super::sweep_queue::Chunk;
use super::table::TransactionTable;
use super::tracker::{Registration, SnapshotTracker};
use super::unstamped::Unstamped;
use super::window::{ConflictKey, ConflictWindow};
use crate::lock::HeldLocks;
use crate::timestamp::TimestampOracle;
use crate::{Error, Result};
use atlas_kvs::{Cell, Durability, KeyValueService, TableRef, Timestamp};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Notify, OwnedMutexGuard, mpsc, oneshot};
use tokio::time::Instant;

/// How many requests wait in the queue; more wait before it.
const QUEUE: usize = 8192;

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
    /// Shared with who asks, for another attempt.
    pub(crate) keys: Arc<Vec<ConflictKey>>,
    /// The snapshot of the store that it read: the lower of its two, so that no change of a table is missed.
    pub(crate) base: Timestamp,
    /// What it read of tables that check reads, and every table it used.
    pub(crate) reads: Arc<Reads>,
    /// Locks of the application that must still be held.
    pub(crate) locks: Vec<Arc<HeldLocks>>,
    pub(crate) payload: Payload,
    /// What it writes, as a reader would see it.
    pub(crate) writes: Arc<LocalWriteBuffer>,
    /// What it has read that is not in the store yet.
    pub(crate) dependency: Option<Arc<Dependency>>,
    /// It is the turn of this piece of work, among those that lost the same conflict.
    pub(crate) turn: Option<OwnedMutexGuard<()>>,
    /// Keeps the snapshot registered until the outcome is known, even if the caller has gone.
    pub(crate) _registration: Option<Arc<Registration>>,
}

/// What a member adds to the batch besides its entry.
#[derive(Debug)]
pub(crate) enum Payload {
    /// Everything.
    Batch {
        /// Versions without their commit timestamp.
        data: Unstamped,
        /// What goes into sweep entries.
        queue: Vec<Chunk>,
        /// Bytes of both, about.
        size: usize,
    },
    /// Nothing: data and sweep entries were put ahead, and those puts have returned.
    PutAhead {
        /// The cells that were written, of all tables: conflict keys are of some.
        cells: Arc<[(TableRef, Cell)]>,
    },
}

impl Payload {
    /// Bytes that it adds to the batch, about.
    pub(crate) fn size(&self) -> usize {
        match self {
            Payload::Batch { size, .. } => *size,
            Payload::PutAhead { .. } => 0,
        }
    }
}

/// The leader's answer to a member.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Committed, durable and visible. The member comes back to be dropped where it was made: memory that another thread
    /// gives back is dear.
    Committed { commit_ts: Timestamp, _member: Option<Box<Member>> },
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
    /// What it depends on was lost. Nothing was applied.
    DependencyLost,
    /// Nothing was applied.
    Failed(Error),
    /// Nobody knows yet.
    Unknown {
        /// What it has if it committed.
        commit_ts: Option<Timestamp>,
        reason: String,
    },
}

/// What the leader is asked for.
#[derive(Debug)]
pub(super) enum Request {
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
    /// Told whenever a group was published, or lost.
    published: Arc<Notify>,
    /// Where a later attempt may see commits that are on their way.
    on_their_way: Option<Arc<OnTheirWay>>,
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
        // What a crash may take back it takes together with everything behind it: two connections promise no such order.
        let flights_max = if durability == Durability::Relaxed { 1 } else { kvs.batches_at_once().max(1) };
        let at_once = durability == Durability::Relaxed && kvs.writes_keep_waiting();
        let in_order = flights_max == 1;
        let on_their_way = in_order.then(Arc::<OnTheirWay>::default);
        let leader = Leader {
            kvs: kvs.clone(),
            fence: oracle.batch_fence(),
            oracle: oracle.clone(),
            tracker: tracker.clone(),
            published: published.clone(),
            entries,
            schema,
            cells,
            durability,
            group_size_max: size_max,
            taken_max: if at_once { GROUP_MAX_AT_ONCE } else { GROUP_MAX },
            flights_max,
            on_their_way: on_their_way.clone(),
            company: Company::default(),
            took_off: Instant::now(),
            is_contended: false,
            writer: None,
            first_ts,
            window: ConflictWindow::new(first_ts),
            window_floor: window_floor.clone(),
            rolled_back: BTreeSet::new(),
            reserved: Reservations::default(),
            _claim: claim,
        };
        leader_thread::spawn(&*kvs, move |gone| leader.run(queue, gone));
        Pipeline { requests, window_floor, oracle, tracker, published, on_their_way }
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

    /// What the next attempt of who lost to this commit may see although it is on its way.
    pub(crate) fn build_on(&self, lost_to: Timestamp) -> Option<Dependency> {
        self.on_their_way.as_ref()?.build_on(lost_to)
    }

    /// Waits until everything that `dependency` sees has landed: only then may anybody be told of it.
    ///
    /// # Errors
    /// [`Error::DependencyLost`], and [`Error::Unavailable`] if the leader ended before. Cancel safe.
    pub(crate) async fn landed(&self, dependency: &Dependency, start_ts: Timestamp) -> Result<()> {
        loop {
            let mut told = std::pin::pin!(self.published.notified());
            // Before the look, so that no telling is missed between the two.
            told.as_mut().enable();
            let published = self.tracker.watermark() >= dependency.last();
            // After the watermark: what passes a lost commit is published after the loss is known.
            if dependency.is_lost() {
                return Err(Error::DependencyLost { start_ts });
            }
            if published {
                return Ok(());
            }
            if self.requests.is_closed() {
                return Err(self.stopped());
            }
            tokio::select! {
                () = told => (),
                () = self.requests.closed() => (),
            }
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
