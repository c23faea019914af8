//! Sweep on the wire.

use super::{Malformed, millis, pb, required, table, timestamp};
use crate::Timestamp;
use crate::ops::{
    HardDeleted, Punch, SweepPause, SweepReport, SweepRequest, SweepShard, SweepStatus, SweepTable, SweepTotals,
    SweptTableReport,
};
use std::time::Duration;

impl From<Punch> for pb::Punch {
    fn from(punch: Punch) -> pb::Punch {
        pb::Punch { timestamp: punch.timestamp.get(), millis: punch.millis }
    }
}

impl TryFrom<pb::Punch> for Punch {
    type Error = Malformed;

    fn try_from(punch: pb::Punch) -> Result<Punch, Malformed> {
        Ok(Punch { timestamp: timestamp(punch.timestamp)?, millis: punch.millis })
    }
}

impl From<SweepRequest> for pb::SweepRequest {
    fn from(request: SweepRequest) -> pb::SweepRequest {
        pb::SweepRequest {
            table: request.table.map(|table| table.name().to_owned()),
            from_row: request.from_row,
            dry_run: request.dry_run,
            pause_ms: millis(request.pause),
            read_limit: request.read_limit,
            candidate_batch: request.candidate_batch,
            delete_batch: request.delete_batch,
        }
    }
}

impl TryFrom<pb::SweepRequest> for SweepRequest {
    type Error = Malformed;

    fn try_from(request: pb::SweepRequest) -> Result<SweepRequest, Malformed> {
        Ok(SweepRequest {
            table: request.table.as_deref().map(table).transpose()?,
            from_row: request.from_row,
            dry_run: request.dry_run,
            pause: Duration::from_millis(request.pause_ms),
            read_limit: request.read_limit,
            candidate_batch: request.candidate_batch,
            delete_batch: request.delete_batch,
        })
    }
}

impl From<SweepReport> for pb::SweepReport {
    fn from(report: SweepReport) -> pb::SweepReport {
        pb::SweepReport {
            sweep_ts: report.sweep_ts.get(),
            dry_run: report.dry_run,
            tables: report.tables.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::SweepReport> for SweepReport {
    type Error = Malformed;

    fn try_from(report: pb::SweepReport) -> Result<SweepReport, Malformed> {
        Ok(SweepReport {
            sweep_ts: timestamp(report.sweep_ts)?,
            dry_run: report.dry_run,
            tables: report.tables.into_iter().map(Into::into).collect(),
        })
    }
}

impl From<SweptTableReport> for pb::SweptTable {
    fn from(report: SweptTableReport) -> pb::SweptTable {
        let SweptTableReport { table, strategy, cells, versions, deleted, bytes, rolled_back, resumed } = report;
        pb::SweptTable { table, strategy, cells, versions, deleted, bytes, rolled_back, resumed }
    }
}

impl From<pb::SweptTable> for SweptTableReport {
    fn from(report: pb::SweptTable) -> SweptTableReport {
        let pb::SweptTable { table, strategy, cells, versions, deleted, bytes, rolled_back, resumed } = report;
        SweptTableReport { table, strategy, cells, versions, deleted, bytes, rolled_back, resumed }
    }
}

impl From<SweepStatus> for pb::SweepStatus {
    fn from(status: SweepStatus) -> pb::SweepStatus {
        pb::SweepStatus {
            enabled: status.enabled,
            paused: status.paused.map(Into::into),
            stands_still: status.stands_still,
            backup_lock: status.backup_lock.map(Into::into),
            sweep_ts: status.sweep_ts.map(Timestamp::get),
            held_by: status.held_by,
            last_timestamp: status.last_timestamp.get(),
            shards: status.shards.into_iter().map(Into::into).collect(),
            tables: status.tables.into_iter().map(Into::into).collect(),
            transactions_floor: status.transactions_floor.map(Timestamp::get),
            totals: Some(status.totals.into()),
        }
    }
}

impl TryFrom<pb::SweepStatus> for SweepStatus {
    type Error = Malformed;

    fn try_from(status: pb::SweepStatus) -> Result<SweepStatus, Malformed> {
        Ok(SweepStatus {
            enabled: status.enabled,
            paused: status.paused.map(Into::into),
            stands_still: status.stands_still,
            backup_lock: status.backup_lock.map(TryInto::try_into).transpose()?,
            sweep_ts: status.sweep_ts.map(timestamp).transpose()?,
            held_by: status.held_by,
            last_timestamp: timestamp(status.last_timestamp)?,
            shards: status.shards.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            tables: status.tables.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            transactions_floor: status.transactions_floor.map(timestamp).transpose()?,
            totals: required(status.totals, "totals")?.into(),
        })
    }
}

impl From<SweepPause> for pb::SweepPause {
    fn from(pause: SweepPause) -> pb::SweepPause {
        pb::SweepPause { holder: pause.holder, reason: pause.reason, since: pause.since }
    }
}

impl From<pb::SweepPause> for SweepPause {
    fn from(pause: pb::SweepPause) -> SweepPause {
        SweepPause { holder: pause.holder, reason: pause.reason, since: pause.since }
    }
}

impl From<SweepShard> for pb::SweepShard {
    fn from(shard: SweepShard) -> pb::SweepShard {
        pb::SweepShard {
            shard: shard.shard.into(),
            swept_below: shard.swept_below.get(),
            behind: shard.behind,
            behind_ms: shard.behind_ms,
        }
    }
}

impl TryFrom<pb::SweepShard> for SweepShard {
    type Error = Malformed;

    fn try_from(shard: pb::SweepShard) -> Result<SweepShard, Malformed> {
        Ok(SweepShard {
            shard: u16::try_from(shard.shard).map_err(|_| Malformed(format!("{} is no shard", shard.shard)))?,
            swept_below: timestamp(shard.swept_below)?,
            behind: shard.behind,
            behind_ms: shard.behind_ms,
        })
    }
}

impl From<SweepTable> for pb::SweepTable {
    fn from(found: SweepTable) -> pb::SweepTable {
        pb::SweepTable {
            table: found.table.name().to_owned(),
            strategy: found.strategy,
            swept: found.swept.map(Timestamp::get),
            behind_ms: found.behind_ms,
            interrupted_at: found.interrupted_at,
        }
    }
}

impl TryFrom<pb::SweepTable> for SweepTable {
    type Error = Malformed;

    fn try_from(found: pb::SweepTable) -> Result<SweepTable, Malformed> {
        Ok(SweepTable {
            table: table(&found.table)?,
            strategy: found.strategy,
            swept: found.swept.map(timestamp).transpose()?,
            behind_ms: found.behind_ms,
            interrupted_at: found.interrupted_at,
        })
    }
}

impl From<SweepTotals> for pb::SweepTotals {
    fn from(totals: SweepTotals) -> pb::SweepTotals {
        let SweepTotals { cells, deleted, bytes, sentinels, rolled_back, entries, partitions, transactions, failures } =
            totals;
        pb::SweepTotals { cells, deleted, bytes, sentinels, rolled_back, entries, partitions, transactions, failures }
    }
}

impl From<pb::SweepTotals> for SweepTotals {
    fn from(totals: pb::SweepTotals) -> SweepTotals {
        let pb::SweepTotals {
            cells,
            deleted,
            bytes,
            sentinels,
            rolled_back,
            entries,
            partitions,
            transactions,
            failures,
        } = totals;
        SweepTotals { cells, deleted, bytes, sentinels, rolled_back, entries, partitions, transactions, failures }
    }
}

impl From<HardDeleted> for pb::HardDeleteResponse {
    fn from(done: HardDeleted) -> pb::HardDeleteResponse {
        pb::HardDeleteResponse { commit_ts: done.commit_ts.get(), versions: done.versions }
    }
}

impl TryFrom<pb::HardDeleteResponse> for HardDeleted {
    type Error = Malformed;

    fn try_from(done: pb::HardDeleteResponse) -> Result<HardDeleted, Malformed> {
        Ok(HardDeleted { commit_ts: timestamp(done.commit_ts)?, versions: done.versions })
    }
}
