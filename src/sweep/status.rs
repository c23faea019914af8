//! How sweep is: for people, and for those who watch it.

use super::holds::{SweepPins, now_ms};
use super::progress::{WalkProgress, update};
use super::state::{Shared, Sweeper};
use crate::backup::lock::this_holder;
use crate::ops::{BackupLockRecord, SweepPause, SweepShard, SweepStatus, SweepTable};
use crate::schema::{MetaRecord, TableSpec};
use crate::transaction::sweep_queue::SHARDS;
use crate::{Result, punch};
use atlas_kvs::{TableKind, Timestamp};
use serde::{Deserialize, Serialize};

/// The record of a pause; empty after it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Pause {
    paused: Option<SweepPause>,
}

impl Shared {
    fn pause_record(&self) -> MetaRecord<Pause> {
        MetaRecord::new(self.manager.kvs().clone(), "sweep-paused")
    }

    /// Who paused sweep, if anybody did.
    pub(super) async fn paused(&self) -> Result<Option<SweepPause>> {
        Ok(self.pause_record().load().await?.and_then(|(record, _)| record.paused))
    }

    /// Milliseconds of wall-clock time since `ts` was issued, as far as the punch table knows.
    async fn age_ms(&self, ts: Timestamp) -> Result<Option<u64>> {
        let then = punch::wall_clock_millis(self.manager.kvs(), ts).await?;
        // A clock that was set back makes it no age.
        Ok(then.and_then(|then| u64::try_from(now_ms().saturating_sub(then)).ok()))
    }
}

impl Sweeper {
    /// Stops background sweep, over restarts too, until [`resume`](Self::resume). A batch under way is finished.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn pause(&self, reason: &str) -> Result<()> {
        let since = format!("{:.0}", jiff::Timestamp::now());
        let pause = SweepPause { holder: this_holder(), reason: reason.to_owned(), since };
        update(&self.shared.pause_record(), |_| Some(Pause { paused: Some(pause.clone()) })).await
    }

    /// Lets background sweep go on.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn resume(&self) -> Result<()> {
        update(&self.shared.pause_record(), |found| found?.paused.as_ref().map(|_| Pause::default())).await?;
        self.shared.view.lock().stands_still = None;
        Ok(())
    }

    /// How sweep is, and why it stands still if it does.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn status(&self, backup_lock: Option<BackupLockRecord>) -> Result<SweepStatus> {
        let shared = &self.shared;
        let core = shared.manager.core();
        let last_timestamp = core.oracle.last_issued();
        let mut shards = Vec::new();
        for shard in 0..SHARDS {
            let swept_below = shared.progress_of(shard).await?.below;
            let behind = last_timestamp.next().get().saturating_sub(swept_below.get());
            let behind_ms = if behind == 0 { Some(0) } else { shared.age_ms(swept_below).await? };
            shards.push(SweepShard { shard, swept_below, behind, behind_ms });
        }
        let mut tables = Vec::new();
        for found in core.kvs.tables().await? {
            if found.kind != TableKind::Versioned || found.table.is_internal() {
                continue;
            }
            let spec = TableSpec::from_description(&found)?;
            let swept = core.swept.of(&found.table).swept;
            let behind_ms = match swept {
                Some(swept) => shared.age_ms(swept).await?,
                None => None,
            };
            let interrupted = WalkProgress::load(core.kvs.clone(), &found.table).await?;
            tables.push(SweepTable {
                strategy: spec.sweep_strategy.to_string(),
                swept,
                behind_ms,
                interrupted_at: interrupted.map(|after| after.row.escape_ascii().to_string()),
                table: found.table,
            });
        }
        let paused = shared.paused().await?;
        // Pins lie in the store, also before this process has looked for the first time. Transactions come and go: one is
        // told only if sweep was held back by one when it looked last.
        let pin = SweepPins::oldest(core.kvs.clone()).await?;
        let open = core.tracker.oldest_open();
        let (sweep_ts, failed, held_by) = {
            let view = shared.view.lock();
            let held_by = match &pin {
                Some(pin) if open.is_none_or(|open| pin.ts <= open) => Some(pin.told()),
                _ => open.and(view.held_by.clone()),
            };
            (view.sweep_ts, view.stands_still.clone(), held_by)
        };
        let stands_still = if let Some(lock) = &backup_lock {
            Some(format!("the backup lock is held by {} since {}: {}", lock.holder, lock.since, lock.reason))
        } else if let Some(pause) = &paused {
            Some(format!("paused by {} since {}: {}", pause.holder, pause.since, pause.reason))
        } else if !shared.config.enabled {
            Some("the configuration says `sweep.enabled: false`".to_owned())
        } else {
            failed
        };
        let transactions_floor = core.path.writes_commit_timestamps().then(|| core.entries.floor());
        Ok(SweepStatus {
            enabled: shared.config.enabled,
            paused,
            stands_still,
            backup_lock,
            sweep_ts,
            held_by,
            last_timestamp,
            shards,
            tables,
            transactions_floor,
            totals: shared.totals.told(),
        })
    }
}
