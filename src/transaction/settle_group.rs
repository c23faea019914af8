//! The way out when the store has not answered for a group: nobody may be told what is not known.

use super::entry::{Entry, Fate};
use super::flights::{Flights, refuse_waiting};
use super::group::{Accepted, Group, entry_op};
use super::leader::{Ended, Leader};
use super::pipeline::{Member, Request, Verdict};
use super::tracker::Registration;
use crate::lock::HeldLocks;
use crate::rule::Rule;
use crate::timestamp::Raised;
use crate::{Error, Result};
use atlas_kvs::{AtomicBatch, Durability, KvsError, Timestamp};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// How long the leader tries to settle a group before it tells its members that their outcome is unknown.
pub(super) const SETTLE_WITHIN: Duration = Duration::from_secs(10);
/// Pauses between attempts to open the store again.
pub(super) const REOPEN_PAUSE: Duration = Duration::from_millis(200);

/// A member whose outcome is not known yet.
pub(super) struct Waiting {
    start_ts: Timestamp,
    commit_ts: Timestamp,
    /// It has committed, but is not to be seen before those that came before it are settled.
    is_applied: bool,
    /// Taken when it was told that nobody knows.
    reply: Option<oneshot::Sender<Verdict>>,
    /// Its snapshot stays registered until it is settled.
    _registration: Option<Arc<Registration>>,
    /// And the locks of the application are kept: who gets them next must find it decided.
    _locks: Vec<Arc<HeldLocks>>,
}

impl Waiting {
    pub(super) fn new(accepted: Accepted) -> Waiting {
        let Member { start_ts, _registration, locks, .. } = *accepted.member;
        let (commit_ts, reply) = (accepted.commit_ts, Some(accepted.reply));
        Waiting { start_ts, commit_ts, is_applied: false, reply, _registration, _locks: locks }
    }

    /// Of a group that the store has answered for.
    fn applied(accepted: Accepted) -> Waiting {
        Waiting { is_applied: true, ..Waiting::new(accepted) }
    }
}

/// What became of the members of a group, in their order.
struct Settled {
    fates: Vec<Fate>,
    /// Another owner has begun.
    taken_over: bool,
}

impl Leader {
    /// The way out of a group whose batch may or may not have been applied.
    pub(super) async fn settle_unknown(
        &mut self,
        group: Group,
        error: KvsError,
        flights: &mut Flights,
        queue: &mut mpsc::Receiver<Request>,
    ) -> std::result::Result<(), Ended> {
        tracing::error!(%error, members = group.commits.len(), "a group of commits was not answered; finding out what became of it");
        let deadline = Instant::now() + SETTLE_WITHIN;
        let reason = error.to_string();
        self.lose_the_unknown(&group, &mut flights.gathering);
        let mut roll_backs = group.roll_backs;
        let mut waiting: Vec<Waiting> = group.commits.into_iter().map(Waiting::new).collect();
        // Those behind it can't be published before it is settled. First of all: what is sent again finds none of ours on
        // its way.
        let (applied, unknown) = self.drain(flights, deadline).await;
        waiting.extend(unknown.into_iter().flat_map(|group| group.commits).map(Waiting::new));
        waiting.extend(applied.into_iter().flat_map(|group| group.commits).map(Waiting::applied));
        let last_commit = waiting.iter().map(|member| member.commit_ts).max();
        loop {
            match self.try_settle(&waiting, &roll_backs).await {
                Ok(settled) => {
                    if let Some(last_commit) = last_commit {
                        if let Some(cells) = self.cells.as_ref().filter(|_| Rule::ForgetTheUnknown.is_kept()) {
                            cells.forget_up_to(last_commit);
                        }
                        self.tracker.publish(last_commit);
                        for (member, fate) in waiting.iter().zip(&settled.fates) {
                            if !matches!(fate, Fate::Committed(_)) {
                                self.window.not_applied(member.commit_ts);
                            }
                        }
                        self.window.landed(last_commit);
                    }
                    if let Some(on_their_way) = &self.on_their_way {
                        // After the watermark: whoever builds on those behind them finds these in the store.
                        on_their_way.settled();
                    }
                    self.published.notify_waiters();
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
                        self.refuse_gathered(flights, &reason);
                        if let Some(stop) = refuse_waiting(queue, flights, &reason) {
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
                Fate::Committed(commit_ts) => Verdict::Committed { commit_ts, _member: None },
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
        let open = members.iter().filter(|member| !member.is_applied).map(|member| member.start_ts);
        let starts: Vec<Timestamp> = open.chain(roll_backs.iter().map(|(start, _)| *start)).collect();
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
        let fates = members.iter().map(|member| match member.is_applied {
            true => Fate::Committed(member.commit_ts),
            false => fate_of(&member.start_ts),
        });
        Ok(Settled { fates: fates.collect(), taken_over })
    }
}

/// On a thread of the leader's own by waiting: the runtime may be gone.
async fn pause(length: Duration) {
    if atlas_kvs::may_wait() { std::thread::sleep(length) } else { tokio::time::sleep(length).await }
}

pub(super) fn tell_unknown(waiting: &mut [Waiting], reason: &str) {
    for member in waiting {
        if let Some(reply) = member.reply.take() {
            let _ = reply.send(Verdict::Unknown { commit_ts: Some(member.commit_ts), reason: reason.to_owned() });
        }
    }
}
