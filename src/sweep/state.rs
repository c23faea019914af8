//! Sweep of one store: what its parts share, and the loop that works in the background.

use super::batch::Tally;
use super::holds::SweepPins;
use super::step::{SweepStep, reach};
use super::targeted::Shard;
use crate::backup::PhysicalDeletionGate;
use crate::config::SweepConfig;
use crate::ops::{HardDeleted, ProgressSink, SweepReport, SweepRequest, SweepTotals};
use crate::rule::Rule;
use crate::transaction::TransactionManager;
use crate::transaction::sweep_queue::SHARDS;
use crate::{Error, Result};
use atlas_kvs::{Cell, TableRef, Timestamp};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The first wait after a failure; each further one is twice as long.
const BACK_OFF_FIRST: Duration = Duration::from_millis(500);

/// What a pause means to a round that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pausing {
    /// The round ends behind the batch under way.
    Heeded,
    /// Somebody who knows of the pause wants this round.
    Ignored,
}

/// Sweeps one store. Cloning is cheap; there must be one, with its clones, in the process that owns the store.
#[derive(Clone, Debug)]
pub struct Sweeper {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) manager: TransactionManager,
    pub(super) gate: PhysicalDeletionGate,
    pub(super) config: SweepConfig,
    pub(super) shards: Vec<tokio::sync::Mutex<Shard>>,
    pub(super) totals: Totals,
    /// The greatest deletion floor that is known to stand in the store.
    pub(super) deletion_floor: AtomicU64,
    /// Below this, this process has removed every entry that may go.
    pub(super) entries_gone_below: AtomicU64,
    pub(super) view: Mutex<View>,
}

/// What `status` tells, as of the last look.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) sweep_ts: Option<Timestamp>,
    pub(super) held_by: Option<String>,
    pub(super) stands_still: Option<String>,
}

/// What was done since the store was opened.
#[derive(Debug, Default)]
pub(super) struct Totals {
    cells: AtomicU64,
    deleted: AtomicU64,
    bytes: AtomicU64,
    rolled_back: AtomicU64,
    pub(super) sentinels: AtomicU64,
    pub(super) entries: AtomicU64,
    pub(super) partitions: AtomicU64,
    pub(super) transactions: AtomicU64,
    pub(super) failures: AtomicU64,
}

impl Totals {
    pub(super) fn add(&self, tally: Tally) {
        self.cells.fetch_add(tally.cells, Ordering::Relaxed);
        self.deleted.fetch_add(tally.deleted, Ordering::Relaxed);
        self.bytes.fetch_add(tally.bytes, Ordering::Relaxed);
        self.rolled_back.fetch_add(tally.rolled_back, Ordering::Relaxed);
    }

    pub(super) fn told(&self) -> SweepTotals {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        SweepTotals {
            cells: of(&self.cells),
            deleted: of(&self.deleted),
            bytes: of(&self.bytes),
            sentinels: of(&self.sentinels),
            rolled_back: of(&self.rolled_back),
            entries: of(&self.entries),
            partitions: of(&self.partitions),
            transactions: of(&self.transactions),
            failures: of(&self.failures),
        }
    }
}

impl Sweeper {
    /// Sweeps the store of `manager`; every deletion passes `gate`.
    pub fn new(manager: TransactionManager, gate: PhysicalDeletionGate, config: SweepConfig) -> Sweeper {
        let shared = Shared {
            manager,
            gate,
            config,
            shards: (0..SHARDS).map(|_| tokio::sync::Mutex::default()).collect(),
            totals: Totals::default(),
            deletion_floor: AtomicU64::new(0),
            entries_gone_below: AtomicU64::new(0),
            view: Mutex::default(),
        };
        Sweeper { shared: Arc::new(shared) }
    }

    /// Sweeps in the background until the store is closed. What fails is told, and tried again later.
    pub async fn run(self) {
        let config = &self.shared.config;
        let mut wait = config.interval;
        let mut back_off = BACK_OFF_FIRST;
        loop {
            tokio::time::sleep(wait).await;
            if self.shared.manager.is_closed() {
                return;
            }
            match self.round_unless_paused().await {
                Ok(()) => (wait, back_off) = (config.interval, BACK_OFF_FIRST),
                Err(_) if self.shared.manager.is_closed() => return,
                // Not a failure: it is what the lock is for.
                Err(Error::BackupLockHeld { .. }) => (wait, back_off) = (config.interval, BACK_OFF_FIRST),
                Err(error) => {
                    self.shared.totals.failures.fetch_add(1, Ordering::Relaxed);
                    // A store that wants to be opened again after a failed write gets it, unless that is being done: it
                    // may be why we failed the first time.
                    if back_off > BACK_OFF_FIRST {
                        self.shared.manager.core().mender.after(&error).await;
                    }
                    tracing::warn!(%error, wait_ms = back_off.as_millis() as u64, "sweep failed and is tried again");
                    (wait, back_off) = (back_off, (back_off * 2).min(config.back_off_max));
                }
            }
        }
    }

    async fn round_unless_paused(&self) -> Result<()> {
        let paused = self.shared.paused().await;
        let outcome = match paused {
            Ok(None) => self.round_as(Pausing::Heeded).await,
            Ok(Some(pause)) => {
                self.shared.view.lock().stands_still =
                    Some(format!("paused by {} since {}: {}", pause.holder, pause.since, pause.reason));
                return Ok(());
            }
            Err(error) => Err(error),
        };
        self.shared.view.lock().stands_still = match &outcome {
            Ok(()) => None,
            Err(error) => Some(error.to_string()),
        };
        outcome
    }

    /// Works off all that can be worked off now, also where sweep is disabled or paused.
    ///
    /// # Errors
    /// [`Error::BackupLockHeld`]; those of the store. What was not done is done by the next round.
    pub async fn round(&self) -> Result<()> {
        self.round_as(Pausing::Ignored).await
    }

    async fn round_as(&self, pausing: Pausing) -> Result<()> {
        let sweep_ts = self.shared.grant().await?;
        reach(SweepStep::Granted);
        self.shared.work_off_queue(sweep_ts, pausing).await?;
        self.shared.let_entries_go(sweep_ts, pausing).await
    }

    /// Sweeps whole tables; see [`Operations::sweep`](crate::ops::Operations::sweep).
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::BackupLockHeld`]; those of the store. Cancel safe: what was done is done.
    pub async fn walk(&self, request: &SweepRequest, progress: &ProgressSink) -> Result<SweepReport> {
        self.shared.walk(request, progress).await
    }

    /// Deletes cells and all their versions; see [`Operations::hard_delete`](crate::ops::Operations::hard_delete).
    ///
    /// # Errors
    /// As there.
    pub async fn hard_delete(&self, table: &TableRef, cells: &[Cell], patience: Duration) -> Result<HardDeleted> {
        self.shared.hard_delete(table, cells, patience).await
    }
}

impl Shared {
    /// A timestamp to sweep by. The order matters for those who pin: they write the pin first, and draw a backup
    /// timestamp after it. A pin that is not seen here was written after the bound was read, so that timestamp lies above
    /// the bound.
    pub(super) async fn grant(&self) -> Result<Timestamp> {
        let bound = self.manager.immutable_ts().await?;
        let pin = SweepPins::oldest(self.manager.kvs().clone()).await?;
        let pin = pin.filter(|_| Rule::PinByTimestamp.is_kept());
        let tracker = &self.manager.core().tracker;
        let bound = if Rule::SweepBelowReaders.is_kept() { bound } else { Timestamp::MAX };
        let granted = tracker.grant_sweep(pin.as_ref().map_or(bound, |pin| pin.ts.min(bound)));
        let held_by = match (&pin, tracker.oldest_open()) {
            (Some(pin), _) if pin.ts <= granted => Some(pin.told()),
            (_, Some(oldest)) if oldest <= granted => Some(format!("an open transaction, which reads at {oldest}")),
            _ => None,
        };
        let mut view = self.view.lock();
        (view.sweep_ts, view.held_by) = (Some(granted), held_by);
        Ok(granted)
    }

    /// Whether a round has to end here. Looked at before every batch, and between the look-ups of many writers: a round over a
    /// long queue takes hours.
    pub(super) async fn has_to_end(&self, pausing: Pausing) -> Result<bool> {
        Ok(self.manager.is_closed() || (pausing == Pausing::Heeded && self.paused().await?.is_some()))
    }

    pub(super) fn held_by(&self) -> Option<String> {
        self.view.lock().held_by.clone()
    }

    /// Rests as long as the limit on deletions wants it after so many.
    pub(super) async fn slow_down(&self, deleted: u64) {
        let limit = u64::from(self.config.deletes_per_second);
        if limit > 0 && deleted > 0 {
            tokio::time::sleep(Duration::from_millis(deleted.saturating_mul(1000) / limit)).await;
        }
    }
}
