//! What became of the transactions of former owners, where commits go step by step.
//!
//! An owner knows the commits of its own that are under way. Those of a former owner were known to that process alone,
//! which may be dead, or asleep with an entry in its hands. What they left in the store is the sweep queue: every
//! transaction puts its entry there before its data, and its data before it draws a commit timestamp. So whoever comes
//! later reads the queue, and writes *rolled back* for each writer that has no entry:
//!
//! ```text
//!   former owner   queue ── data ── commit_ts ──┆ asleep ┆───────────────────── entry ✗ finds "rolled back"
//!   this owner                                  takes over ── reads the queue ── "rolled back" ── a copy is made
//! ```
//!
//! A commit timestamp is drawn only while the lease is held, and the lease is looked at after the number was chosen.
//! Who has one when this owner began therefore had its queue entry in the store by then, and whoever has none yet
//! never gets one. (Where batches carry a fence, the store refuses late queue entries and data by itself.)
//!
//! The queue is read once for each owner, page by page, and from a *mark* on: no transaction that started below it can
//! commit any more unless it has. Owners move the mark while they live, so that a crash leaves about a minute of
//! transactions to be looked at, and an orderly end leaves none. The mark states a fact that stays true whoever has
//! found it out and however late it is written; so it only ever grows, and a lost one costs a longer walk, no more.

use super::entry::{Entry, Fate};
use super::sweep_queue::{self, SHARDS, sweep_queue_table};
use super::table::TransactionTable;
use crate::schema::{MetaRecord, Replaced};
use crate::{Error, Result};
use atlas_kvs::{Cell, KeyValueService, Scan, Timestamp};
use futures::stream::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::Mutex;

/// Writers whose fate is looked up, and decided, together.
const PAGE: usize = 256;
/// Roll-backs on their way at a time.
const ROLL_BACKS: usize = 16;
/// After how many writers a long walk says where it is.
const TOLD_EVERY: u64 = 100_000;

/// No transaction that started below this can commit any more, unless it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecidedMark {
    /// The first start timestamp of which that is not known.
    pub below: Timestamp,
}

impl DecidedMark {
    /// The record in the store.
    pub fn in_store(kvs: Arc<dyn KeyValueService>) -> MetaRecord<DecidedMark> {
        MetaRecord::new(kvs, "decided")
    }
}

/// The transactions that began before this owner did.
#[derive(Debug)]
pub(crate) struct Predecessors {
    kvs: Arc<dyn KeyValueService>,
    entries: Arc<TransactionTable>,
    mark: MetaRecord<DecidedMark>,
    // The first number of this owner: what started below it is not ours.
    first: Timestamp,
    // Held during the walk: whoever wants it at the same time waits for the same end.
    walk: Mutex<Walk>,
}

/// How far the walk has come. Kept when it fails or its caller goes away, so that the next one goes on there.
#[derive(Debug)]
enum Walk {
    NotBegun,
    At { from: Timestamp, shard: u16, after: Option<Cell> },
    Done,
}

/// What a walk has met.
#[derive(Debug, Default)]
struct Tally {
    writers: u64,
    rolled_back: u64,
}

impl Predecessors {
    /// Those of an owner whose first number is `first`.
    pub(crate) fn new(kvs: Arc<dyn KeyValueService>, entries: Arc<TransactionTable>, first: Timestamp) -> Predecessors {
        let mark = DecidedMark::in_store(kvs.clone());
        Predecessors { kvs, entries, mark, first, walk: Mutex::new(Walk::NotBegun) }
    }

    /// Returns when no transaction of a former owner can commit any more. Costs nothing once it has succeeded.
    ///
    /// Cancel safe; after an error or a dropped call, the next one goes on where this one was.
    ///
    /// # Errors
    /// Those of the store, and [`Error::Corrupt`] for a queue that can't be read.
    pub(crate) async fn decide(&self) -> Result<()> {
        let mut walk = self.walk.lock().await;
        if let Walk::NotBegun = *walk {
            let from = self.mark.load().await?.map_or(Timestamp::FIRST, |(mark, _)| mark.below);
            *walk = Walk::At { from, shard: 0, after: None };
        }
        let mut tally = Tally::default();
        while let Walk::At { from, shard, after } = &*walk {
            let (from, shard, after) = (*from, *shard, after.clone());
            if from >= self.first || shard == SHARDS {
                *walk = Walk::Done;
                break;
            }
            let last = self.decide_page(from, shard, after, &mut tally).await?;
            *walk = match last {
                Some(last) => Walk::At { from, shard, after: Some(last) },
                None => Walk::At { from, shard: shard + 1, after: None },
            };
        }
        if tally.writers > 0 {
            tracing::info!(tally.writers, tally.rolled_back, "the transactions of former owners are decided");
            // Without it the next owner walks the same way again, which is no reason to fail.
            if let Err(error) = self.raise_mark(self.first).await {
                tracing::warn!(%error, "the mark below which all transactions are decided was not moved");
            }
        }
        Ok(())
    }

    /// True once [`decide`](Self::decide) has succeeded. Waits for nobody who is at it.
    pub(crate) fn are_decided(&self) -> bool {
        self.walk.try_lock().is_ok_and(|walk| matches!(*walk, Walk::Done))
    }

    /// Decides the next writers of a shard. Answers the last entry looked at, or nothing at the end of the shard.
    async fn decide_page(
        &self,
        from: Timestamp,
        shard: u16,
        after: Option<Cell>,
        tally: &mut Tally,
    ) -> Result<Option<Cell>> {
        let rows = sweep_queue::rows_between(shard, from, self.first);
        // Entries lie at their writer's start timestamp: those of this owner are not seen.
        let scan = Scan { after, page_size: PAGE, ..Scan::new(rows, self.first) };
        let mut entries = self.kvs.scan(&sweep_queue_table(), scan);
        let mut writers: Vec<Timestamp> = Vec::with_capacity(PAGE);
        let mut last = None;
        while writers.len() < PAGE {
            let Some((entry, _)) = entries.try_next().await? else {
                last = None;
                break;
            };
            let writer = sweep_queue::writer_of(&entry)?;
            // A large transaction has several entries in a row.
            if writer >= from && writer < self.first && writers.last() != Some(&writer) {
                writers.push(writer);
            }
            last = Some(entry);
        }
        drop(entries);
        tally.rolled_back += self.decide_writers(&writers).await?;
        let told = tally.writers / TOLD_EVERY;
        tally.writers += writers.len() as u64;
        if tally.writers / TOLD_EVERY > told {
            tracing::info!(shard, shards = SHARDS, tally.writers, "deciding the transactions of former owners");
        }
        Ok(last)
    }

    /// Writes *rolled back* for those without an entry. Their locks were those of another process and say nothing: it
    /// is the write that decides, and a writer that comes later finds it.
    async fn decide_writers(&self, writers: &[Timestamp]) -> Result<u64> {
        let fates = self.entries.fates(writers).await?;
        let undecided = writers.iter().copied().filter(|writer| fates.get(writer) == Some(&Fate::Undecided));
        let roll_backs = undecided.map(|writer| self.entries.put_unless_exists(writer, Entry::RolledBack));
        // Collected first: a stream of borrowing closures would have to be general over lifetimes to be sent.
        let roll_backs: Vec<_> = roll_backs.collect();
        futures::stream::iter(roll_backs)
            .buffer_unordered(ROLL_BACKS)
            .try_fold(
                0,
                |count, standing| async move { Ok::<_, Error>(count + u64::from(standing == Entry::RolledBack)) },
            )
            .await
    }

    /// Moves the mark up to `below`, never back.
    pub(crate) async fn raise_mark(&self, below: Timestamp) -> Result<()> {
        let mut loaded = self.mark.load().await?;
        loop {
            if loaded.as_ref().is_some_and(|(mark, _)| mark.below >= below) {
                return Ok(());
            }
            let expected = loaded.as_ref().map(|(_, bytes)| bytes);
            match self.mark.replace(expected, Some(&DecidedMark { below })).await? {
                Replaced::Done(_) => return Ok(()),
                Replaced::Other(found) => loaded = found,
            }
        }
    }
}
