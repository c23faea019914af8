//! The leader of the pipeline: decides alone who commits, and in which order.
//!
//! It drains what is waiting, and for each member in order checks conflicts against the window of recent commits and the
//! members ahead, draws the commit timestamp and adds data, sweep entries and commit entry to the batch. Then, in this
//! order and for the group as a whole:
//!
//! ```text
//!   apply and sync ──> publish the watermark ──> acknowledge
//!        │                    │
//!        │                    └ before the acknowledgement: whoever begins after it must see the commit
//!        └ before the watermark: a reader must not see what a crash can take back
//! ```
//!
//! **Where the store can write two groups at the same time**, the next one takes off while the one before is on its way.
//! However they are written, they land in the order of their commits: what is published is everything up to a commit. The
//! later group has been checked against the earlier one, and has seen nothing of it: whether that one commits makes no
//! difference to it.
//!
//! **Where it writes one group at a time**, the next one gathers while the one before is on its way: its members are checked and
//! numbered, so that whoever loses to them can see them and come again ([`super::dependency`]).

use super::cell_cache::CellCache;
use super::claim::Claim;
use super::company::Company;
use super::core::SchemaCache;
use super::dependency::OnTheirWay;
use super::entry::Fate;
use super::flights::{Event, Flight, Flights, Written, next_event};
use super::group::{Accepted, Group, build_batch, not_applied, refuse_all, take_out_of_batch, writers_of};
use super::pipeline::{Member, Payload, Request, Verdict};
use super::reservations::{Loser, Reservations};
use super::settle_group::{REOPEN_PAUSE, SETTLE_WITHIN, Waiting, tell_unknown};
use super::step::{CommitStep, reach};
use super::table::TransactionTable;
use super::tracker::SnapshotTracker;
use super::window::ConflictWindow;
use super::writer::Writer;
use crate::Error;
use crate::rule::Rule;
use crate::timestamp::{BatchFence, TimestampOracle};
use atlas_kvs::{AtomicBatch, Durability, KeyValueService, KvsError, Timestamp};
use futures::future::BoxFuture;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

/// After this many losses the cells of a large transaction are reserved for its next attempt.
const LOSSES_BEFORE_RESERVATION: u32 = 2;

#[derive(Debug)]
pub(super) struct Leader {
    pub(super) kvs: Arc<dyn KeyValueService>,
    /// What batches carry where others can reach the store.
    pub(super) fence: Option<Arc<BatchFence>>,
    pub(super) oracle: Arc<TimestampOracle>,
    pub(super) tracker: Arc<SnapshotTracker>,
    pub(super) published: Arc<Notify>,
    pub(super) entries: Arc<TransactionTable>,
    pub(super) schema: Arc<SchemaCache>,
    pub(super) cells: Option<Arc<CellCache>>,
    pub(super) durability: Durability,
    pub(super) group_size_max: usize,
    /// How many requests are taken into a group at a time.
    pub(super) taken_max: usize,
    /// How many groups may be on their way at the same time.
    pub(super) flights_max: usize,
    /// What later attempts may see of members that were admitted, where groups go one after the other.
    pub(super) on_their_way: Option<Arc<OnTheirWay>>,
    /// Who is waited for before a group takes off.
    pub(super) company: Company,
    /// When the last group took off.
    pub(super) took_off: Instant,
    /// Somebody has lost to a commit that is on its way, since the last group took off.
    pub(super) is_contended: bool,
    /// A thread that writes while the leader goes on, once there was need of one.
    pub(super) writer: Option<Writer>,
    /// Start timestamps below this belong to an earlier epoch, whose transactions are void.
    pub(super) first_ts: Timestamp,
    pub(super) window: ConflictWindow,
    pub(super) window_floor: Arc<AtomicU64>,
    /// Start timestamps of this epoch with the entry *rolled back*; the leader alone writes entries, so it need not
    /// ask the store.
    pub(super) rolled_back: BTreeSet<Timestamp>,
    pub(super) reserved: Reservations,
    /// Nobody else may open this store for commits in this process before the leader has ended. `None` where the
    /// lease of the store sees to it.
    pub(super) _claim: Option<Claim>,
}

/// The leader has to end in the middle of its work.
pub(super) enum Ended {
    /// The store is closed, or was not settled when it had to be.
    Unsettled { stop: Option<oneshot::Sender<()>> },
    /// Somebody else commits on the store now.
    TakenOver,
}

/// What is left to do when a group has landed.
struct Landing {
    markers: Vec<oneshot::Sender<()>>,
    stop: Option<oneshot::Sender<()>>,
    /// The leader has to end.
    ended: Option<Ended>,
}

impl Leader {
    /// Until it is told to stop, nobody is left who could ask, or `gone` says that the runtime of those who ask is gone.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Request>, gone: impl Future<Output = ()>) {
        let mut gone = std::pin::pin!(gone);
        let mut flights = Flights::default();
        let mut is_left_alone = false;
        loop {
            let may_ask = !is_left_alone && self.may_ask(&flights);
            let landing = match next_event(&mut flights, may_ask, is_left_alone, &mut queue, &mut gone).await {
                Event::RuntimeIsGone => return self.end_with_runtime(flights, queue).await,
                Event::NobodyIsLeft if flights.is_empty() => return,
                Event::NobodyIsLeft => {
                    is_left_alone = true;
                    continue;
                }
                Event::Asked(first) => {
                    let group = self.gather(Some(first), &mut queue, &mut flights).await;
                    if !flights.have_room(self.flights_max) {
                        flights.gathering = group;
                        continue;
                    }
                    if !group.writes_nothing() {
                        let (flight, write) = self.take_off(group).await;
                        flights.take_off(flight, write);
                        continue;
                    }
                    // Nothing to write, but somebody may wait to hear that all is written. Never behind one on its way.
                    Landing { markers: group.markers, stop: group.stop, ended: None }
                }
                Event::Landed(flight, written) => self.land(flight, written, &mut flights, &mut queue).await,
            };
            let Landing { markers, stop, ended } = landing;
            // Known from the lease: nothing may be called settled, whatever the group was.
            let ended = ended.or_else(|| self.oracle.lost_error().map(|_| Ended::TakenOver));
            if let Some(ended) = ended {
                // Markers and whoever waits behind them see their answers vanish, which says that nothing is settled.
                return self.end(ended, stop, flights, queue).await;
            }
            if !flights.gathering.writes_nothing() {
                // Before anything is said to be decided: these are numbered. Nobody waits to hear of that, because nothing is
                // gathered beside a group that goes alone.
                debug_assert!(markers.is_empty() && stop.is_none(), "nothing is gathered behind a marker");
                let group = self.gather(None, &mut queue, &mut flights).await;
                let (flight, write) = self.take_off(group).await;
                flights.take_off(flight, write);
            }
            if flights.is_empty() && (!markers.is_empty() || (queue.is_empty() && flights.held.is_none())) {
                // No commit is on its way, and later ones are numbered above what was issued so far: everything at or
                // below the last number issued is decided.
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

    /// Ends in the middle of its work. Nobody is left without an answer.
    async fn end(
        mut self,
        ended: Ended,
        stop: Option<oneshot::Sender<()>>,
        mut flights: Flights,
        mut queue: mpsc::Receiver<Request>,
    ) {
        let never_left = flights.take_gathering();
        match ended {
            Ended::TakenOver => {
                refuse_all(never_left, || self.replaced());
                self.land_all(&mut flights, &mut queue).await;
                let held = flights.held.and_then(|held| held.refuse(|| self.replaced()));
                self.end_replaced(queue, [stop, held]).await;
            }
            Ended::Unsettled { stop: late } => {
                let reason = "it was lost before a group of commits was settled";
                let lost = || Error::Unavailable { what: "the store".to_owned(), reason: reason.to_owned() };
                refuse_all(never_left, lost);
                let held = flights.held.and_then(|held| held.refuse(lost));
                for stop in [stop, late, held].into_iter().flatten() {
                    let _ = stop.send(());
                }
                refuse_all_to_come(queue, reason).await;
            }
        }
    }

    /// Ends because nobody is left who could hear of it. What is being written is waited for: the store must not be taken away
    /// from under a write.
    async fn end_with_runtime(mut self, mut flights: Flights, mut queue: mpsc::Receiver<Request>) {
        let reason = "its runtime was shut down";
        let refusal = || Error::Unavailable { what: "the store".to_owned(), reason: reason.to_owned() };
        refuse_all(flights.take_gathering(), refusal);
        while let Some((flight, written)) = flights.next().await {
            let _ = self.land(flight, written, &mut flights, &mut queue).await;
        }
        refuse_all_to_come(queue, reason).await;
    }

    /// Whether there is room for whoever comes next: in a group that may take off, or in one that gathers beside those on
    /// their way.
    fn may_ask(&self, flights: &Flights) -> bool {
        let gathers = self.on_their_way.is_some() && !flights.one_goes_alone();
        let room = flights.have_room(self.flights_max) || gathers && !flights.gathering.is_full(self.group_size_max);
        flights.held.is_none() && room
    }

    /// Ends because another owner has begun. Whoever is still waiting is told that nothing was applied.
    async fn end_replaced(self, mut queue: mpsc::Receiver<Request>, stops: [Option<oneshot::Sender<()>>; 2]) {
        queue.close();
        while let Some(request) = queue.recv().await {
            if let Some(stop) = request.refuse(|| self.replaced()) {
                let _ = stop.send(());
            }
        }
        for stop in stops.into_iter().flatten() {
            let _ = stop.send(());
        }
    }

    pub(super) fn replaced(&self) -> Error {
        self.oracle.lose("the fence in the store was raised by another instance")
    }

    /// Takes what is waiting, admits it in order, and stops at the limits of a group, or before what has to wait until the
    /// groups on their way have landed.
    async fn gather(
        &mut self,
        first: Option<Request>,
        queue: &mut mpsc::Receiver<Request>,
        flights: &mut Flights,
    ) -> Group {
        let mut group = flights.take_gathering();
        let mut next = first;
        let mut taken = 0;
        let may_wait = flights.is_empty() && self.durability == Durability::Synced;
        let mut wait = None;
        loop {
            let may_take = flights.held.is_none() && taken < self.taken_max && !group.is_full(self.group_size_max);
            let Some(request) = next.take().or_else(|| may_take.then(|| queue.try_recv().ok()).flatten()) else {
                // Who asks for something else is kept waiting by nobody, and waits for nobody.
                let commits = may_take && !queue.is_closed() && !group.commits.is_empty() && !group.goes_alone();
                if commits && wait.get_or_insert_with(|| self.company.wait(may_wait)).goes_on(group.commits.len()) {
                    // No timer is so fine, and whoever is waited for may need the processor.
                    std::thread::yield_now();
                    continue;
                }
                break;
            };
            match request {
                Request::Commit(member, reply) => {
                    flights.beside(self.admit(member, reply, &mut group)).await;
                }
                // What they are told is about everything that came before, and who is rolled back may be on his way.
                alone @ (Request::RollBack(..) | Request::Marker(_) | Request::Stop(_)) if !flights.is_empty() => {
                    flights.held = Some(alone);
                }
                // One start timestamp has one entry: who commits in this group or has committed is not rolled back.
                Request::RollBack(start_ts, reply)
                    if group.commits(start_ts) || self.entries.has_committed(start_ts) =>
                {
                    let reason = format!("transaction {start_ts} is being committed, or is already");
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
            // Also those who are refused: those on their way must be looked after.
            taken += 1;
        }
        // One that was cut short says nothing.
        if let Some(wait) = wait.filter(|_| !group.goes_alone()) {
            self.company.waited(wait, group.commits.len());
        }
        group
    }

    /// Decides whether a member may commit, and numbers it. Steps 3, 6, 7 and 9.
    async fn admit(&mut self, mut member: Box<Member>, reply: oneshot::Sender<Verdict>, group: &mut Group) {
        if group.rolls_back(member.start_ts) && Rule::RefuseRolledBack.is_kept() {
            let _ = reply.send(Verdict::HasEntry);
            return;
        }
        if let Some(verdict) = self.refusal(&member) {
            let lost = matches!(verdict, Verdict::Conflict { .. } | Verdict::ReadConflict { .. });
            self.is_contended |= self.lost_to_one_on_its_way(&verdict);
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
        if let Some(on_their_way) = &self.on_their_way {
            // Whoever is next sees it from now on. Where he does not, it is his turn when this one was answered.
            let may_be_seen = on_their_way.admit(commit_ts, &member);
            if may_be_seen {
                drop(member.turn.take());
            }
        }
        reach(CommitStep::RecheckReads, start_ts).await;
        self.reserved.remove(member.work_id);
        reach(CommitStep::CheckLocks, start_ts).await;
        group.size += member.payload.size();
        group.commits.push(Accepted { member, commit_ts, reply });
    }

    fn refusal(&self, member: &Member) -> Option<Verdict> {
        // Below the floor its entry may have been removed, and an absence has been taken for *rolled back* since.
        let below_floor = member.start_ts < self.entries.floor() && Rule::RefuseBelowFloor.is_kept();
        let rolled_back = self.rolled_back.contains(&member.start_ts) && Rule::RefuseRolledBack.is_kept();
        if below_floor || member.start_ts < self.first_ts || rolled_back {
            return Some(Verdict::HasEntry);
        }
        if member.dependency.as_ref().is_some_and(|dependency| dependency.is_lost()) {
            return Some(Verdict::DependencyLost);
        }
        // Here and not before it entered: whoever begins after the change must find this member applied, or refused.
        if let Some(table) = self.schema.changed_since(&member.reads.tables, member.base) {
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

    fn lost_to_one_on_its_way(&self, verdict: &Verdict) -> bool {
        match verdict {
            Verdict::Conflict { committed_at: Some(at), .. } | Verdict::ReadConflict { committed_at: at, .. } => {
                self.window.is_on_its_way(*at)
            }
            _ => false,
        }
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
    async fn take_off(&mut self, mut group: Group) -> (Box<Flight>, BoxFuture<'static, Written>) {
        self.refuse_without_locks(&mut group);
        let fence = self.fence.as_ref().filter(|_| Rule::GuardBatches.is_kept());
        let batch = build_batch(&mut group).await.guarded(fence.map(|fence| fence.guard()));
        self.reach_the_record(&group).await;
        self.took_off = Instant::now();
        // Those who have lost come again soon, and need the leader while this group is written.
        let write = if std::mem::take(&mut self.is_contended) { self.write_beside(&batch) } else { self.write(&batch) };
        (Box::new(Flight { group, batch }), write)
    }

    /// Again, right before they are written: they were admitted while the group before this one was on its way.
    fn refuse_without_locks(&mut self, group: &mut Group) {
        if group.commits.iter().all(|accepted| accepted.member.locks.is_empty()) {
            return;
        }
        let mut refused = Vec::new();
        for accepted in group.take(|accepted| !accepted.member.locks.is_empty()) {
            match accepted.member.locks.iter().find_map(|locks| locks.check().err()) {
                Some(error) => refused.push((accepted, Verdict::Failed(error))),
                None => group.put_back(accepted),
            }
        }
        group.commits.sort_by_key(|accepted| accepted.commit_ts);
        if !refused.is_empty() {
            self.take_out(refused, group, None, &mut Group::default());
        }
    }

    async fn reach_the_record(&self, group: &Group) {
        if let Some(first) = group.commits.first() {
            reach(CommitStep::RecordCommit, first.member.start_ts).await;
        }
        if let Some(last) = group.last_commit()
            && !Rule::ApplyBeforePublish.is_kept()
        {
            self.tracker.publish(last);
        }
    }

    fn write(&self, batch: &AtomicBatch) -> BoxFuture<'static, Written> {
        let durability = if Rule::SyncBeforePublish.is_kept() { self.durability } else { Durability::Relaxed };
        let (kvs, batch) = (self.kvs.clone(), batch.clone());
        Box::pin(async move { kvs.apply(batch, durability).await })
    }

    /// As [`write`](Self::write); where the store would keep the leader's thread waiting, another thread waits.
    fn write_beside(&mut self, batch: &AtomicBatch) -> BoxFuture<'static, Written> {
        let apart = self.on_their_way.is_some() && self.durability == Durability::Synced && atlas_kvs::may_wait();
        if apart && self.writer.is_none() {
            self.writer = Writer::spawn(self.kvs.clone());
        }
        match &self.writer {
            Some(writer) if apart && Rule::SyncBeforePublish.is_kept() => {
                match writer.write(batch.clone(), self.durability) {
                    Some(write) => write,
                    None => {
                        // It has ended, and the next one may do better.
                        self.writer = None;
                        self.write(batch)
                    }
                }
            }
            _ => self.write(batch),
        }
    }

    /// What follows when the store has answered for the group that took off first.
    async fn land(
        &mut self,
        flight: Box<Flight>,
        written: Written,
        flights: &mut Flights,
        queue: &mut mpsc::Receiver<Request>,
    ) -> Landing {
        let Flight { mut group, mut batch } = *flight;
        let (markers, mut stop) = (std::mem::take(&mut group.markers), group.stop.take());
        let mut written = written;
        let ended = loop {
            match written {
                Ok(()) => {
                    self.applied(group, &batch).await;
                    break None;
                }
                Err(error) if error.is_indeterminate() => {
                    // Whoever settles has to see that somebody wants it to end.
                    flights.held = stop.take().map(Request::Stop).or(flights.held.take());
                    break self.settle_unknown(group, error, flights, queue).await.err();
                }
                // Nothing was applied, and nothing of ours will be any more.
                Err(KvsError::GuardFailed { .. }) => {
                    refuse_all(group, || self.replaced());
                    break Some(Ended::TakenOver);
                }
                // Nothing was applied. A table that is gone concerns its own writers, not the others of the group.
                Err(KvsError::NoSuchTable(table)) => {
                    let writers = writers_of(&table, &batch);
                    if writers.is_empty() {
                        // Not a table of a member: one of our own is gone, and nobody can commit.
                        self.refuse(group, &KvsError::NoSuchTable(table), &mut flights.gathering);
                        break None;
                    }
                    let error = || Error::NotFound { what: format!("table '{table}'") };
                    let gone = group.take(|accepted| writers.contains(&accepted.member.start_ts));
                    let refused = gone.into_iter().map(|accepted| (accepted, Verdict::Failed(error())));
                    self.take_out(refused.collect(), &mut group, Some(&mut batch), &mut flights.gathering);
                    if group.writes_nothing() {
                        break None;
                    }
                }
                Err(error) => {
                    self.refuse(group, &error, &mut flights.gathering);
                    break None;
                }
            }
            self.reach_the_record(&group).await;
            written = flights.beside(self.write(&batch)).await;
        };
        Landing { markers, stop, ended }
    }

    /// Tells the members of a group that nothing of it was applied.
    fn refuse(&mut self, mut group: Group, error: &KvsError, gathering: &mut Group) {
        let refused = group.take(|_| true).into_iter().map(|accepted| (accepted, Verdict::Failed(not_applied(error))));
        self.take_out(refused.collect(), &mut Group::default(), None, gathering);
        refuse_all(group, || not_applied(error));
    }

    /// Members of `group` that will not commit are answered, and with them those who depend on anything: in the group and its
    /// batch, if there is one already, and in the one that gathers behind it.
    fn take_out(
        &mut self,
        mut refused: Vec<(Accepted, Verdict)>,
        group: &mut Group,
        batch: Option<&mut AtomicBatch>,
        gathering: &mut Group,
    ) {
        if !refused.is_empty() && self.on_their_way.is_some() && Rule::RefuseDependents.is_kept() {
            let dependents = [group.take(Accepted::depends), gathering.take(Accepted::depends)].into_iter().flatten();
            refused.extend(dependents.map(|accepted| (accepted, Verdict::DependencyLost)));
        }
        let mut commits: Vec<Timestamp> = refused.iter().map(|(accepted, _)| accepted.commit_ts).collect();
        commits.sort_unstable();
        for commit_ts in &commits {
            self.window.not_applied(*commit_ts);
        }
        if let Some(batch) = batch {
            take_out_of_batch(refused.iter().map(|(accepted, _)| accepted.member.start_ts).collect(), group, batch);
        }
        if let Some(on_their_way) = self.on_their_way.as_ref().filter(|_| !commits.is_empty()) {
            // Before anybody is told: what he does next must not be refused for it.
            on_their_way.lost(&commits);
            self.published.notify_waiters();
        }
        for (accepted, verdict) in refused {
            let _ = accepted.reply.send(verdict);
        }
    }

    /// What becomes of a group is not known. Whoever has read of it begins anew when it is.
    pub(super) fn lose_the_unknown(&mut self, group: &Group, gathering: &mut Group) {
        let Some(on_their_way) = self.on_their_way.clone() else { return };
        on_their_way.unsettled(&group.commit_timestamps().collect::<Vec<_>>());
        let dependents = gathering.take(Accepted::depends).into_iter();
        let refused = dependents.map(|accepted| (accepted, Verdict::DependencyLost)).collect();
        self.take_out(refused, &mut Group::default(), None, gathering);
    }

    /// Sends away who was admitted and has not left, while nothing can.
    pub(super) fn refuse_gathered(&mut self, flights: &mut Flights, reason: &str) {
        let group = flights.take_gathering();
        if !group.writes_nothing() {
            let error = KvsError::Unavailable { reason: reason.to_owned(), source: None };
            self.refuse(group, &error, &mut flights.gathering);
        }
    }

    /// Waits for a while for the groups on their way, when there will be no more, and tells their members what became of
    /// them.
    async fn land_all(&mut self, flights: &mut Flights, queue: &mut mpsc::Receiver<Request>) {
        let deadline = Instant::now() + SETTLE_WITHIN;
        while let Ok(Some((flight, written))) = timeout_at(deadline, flights.next()).await {
            // Nobody waits for the rest of it: what goes alone was not behind another.
            let _ = self.land(flight, written, flights, queue).await;
        }
        let mut unanswered: Vec<Waiting> =
            flights.give_up().into_iter().flat_map(|group| group.commits).map(Waiting::new).collect();
        tell_unknown(&mut unanswered, "the store did not answer before somebody else took over");
    }

    /// A group is in the store.
    async fn applied(&mut self, group: Group, batch: &AtomicBatch) {
        if !group.commits.is_empty() {
            self.company.landed(group.commits.len(), batch.ops.len(), self.took_off.elapsed());
        }
        let last = group.last_commit();
        let cells = self.cells.clone();
        if Rule::NoteBeforePublish.is_kept() {
            if let Some(cells) = &cells {
                group.note_in(cells, batch);
            }
            self.acknowledge(group).await;
        } else {
            self.acknowledge(group).await;
            tokio::time::sleep(REOPEN_PAUSE).await;
            if let Some(cells) = &cells {
                cells.note_batch(batch);
            }
        }
        if let (Some(last), false) = (last, Rule::PublishBeforeAnswer.is_kept()) {
            tokio::time::sleep(REOPEN_PAUSE).await;
            self.tracker.publish(last);
        }
    }

    /// What the store says of every other group on its way. Those it has not applied are told so; answered are those that
    /// it has, and may have.
    pub(super) async fn drain(&mut self, flights: &mut Flights, deadline: Instant) -> (Vec<Group>, Vec<Group>) {
        let (mut applied, mut unknown) = (Vec::new(), Vec::new());
        loop {
            let next = match &self.fence {
                // What comes late does not pass the fence that is raised next, and the entries tell what came before.
                Some(_) => timeout_at(deadline, flights.next()).await,
                // A store that is opened again must not be in use.
                None => Ok(flights.next().await),
            };
            match next {
                Ok(Some((flight, Ok(())))) => applied.push(flight.group),
                Ok(Some((flight, Err(error)))) if error.is_indeterminate() => unknown.push(flight.group),
                Ok(Some((flight, Err(KvsError::GuardFailed { .. })))) => refuse_all(flight.group, || self.replaced()),
                Ok(Some((flight, Err(error)))) => self.refuse(flight.group, &error, &mut flights.gathering),
                Ok(None) => return (applied, unknown),
                Err(_) => {
                    unknown.extend(flights.give_up());
                    return (applied, unknown);
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
            self.window.landed(last.commit_ts);
            if let Some(on_their_way) = &self.on_their_way {
                // After the watermark: whoever begins in between sees it twice, and not never.
                on_their_way.landed(last.commit_ts);
            }
            self.published.notify_waiters();
        }
        if let Some(first) = first {
            reach(CommitStep::Published, first).await;
        }
        for accepted in group.commits {
            let Accepted { mut member, commit_ts, reply } = accepted;
            // Not when the answer is taken up: others wait for it.
            drop(member.turn.take());
            let _ = reply.send(Verdict::Committed { commit_ts, _member: Some(member) });
        }
        for (start_ts, reply) in group.roll_backs {
            self.rolled_back.insert(start_ts);
            self.entries.remember(start_ts, Fate::RolledBack);
            let _ = reply.send(Ok(()));
        }
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

impl Request {
    /// Tells who asked that nothing of it was applied. A request to stop is handed back.
    pub(super) fn refuse(self, refusal: impl Fn() -> Error) -> Option<oneshot::Sender<()>> {
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
