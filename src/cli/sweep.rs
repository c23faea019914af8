//! `atlas sweep`: old versions, removed by hand; and how it goes where that is done by itself.

use super::Context;
use super::args::{SweepArgs, SweepCommand};
use super::backup_lock::by_hand;
use super::connect::{Access, connect};
use super::output::{Reply, age, columns, count, pairs, size, visible};
use crate::ops::{Operations, SweepReport, SweepRequest, SweepShard, SweepStatus, SweptTableReport};
use crate::{Error, Result};
use serde_json::json;
use std::time::Duration;

pub(crate) async fn run(args: SweepArgs, context: &Context) -> Result<Reply> {
    let selectors = usize::from(args.all) + usize::from(args.table.is_some());
    let Some(command) = &args.command else {
        if selectors + usize::from(context.globals.namespace.is_some()) != 1 {
            return Err(Error::Usage("say one of --all, --namespace and --table".to_owned()));
        }
        return sweep(args, context).await;
    };
    if selectors > 0 {
        return Err(Error::Usage(format!("{} is about all of the store", context.words)));
    }
    let operations = connect(context, Access::Existing).await?;
    match command {
        SweepCommand::Status => Ok(show(&operations.sweep_status().await?)),
        SweepCommand::Pause { reason } => {
            let reason = reason.clone().unwrap_or_else(|| format!("paused {}", by_hand()));
            let status = operations.sweep_pause(&reason).await?;
            let people = "Nothing is swept by itself until `atlas sweep resume`";
            Ok(Reply::new(json!({"paused": status.paused}), "paused", people))
        }
        SweepCommand::Resume => {
            let status = operations.sweep_resume().await?;
            let people = match &status.stands_still {
                Some(why) => format!("Sweep may go on, and it stands still: {}", visible(why.as_bytes())),
                None => "Sweep goes on".to_owned(),
            };
            Ok(Reply::new(json!({"paused": status.paused, "stands_still": status.stands_still}), "resumed", people))
        }
    }
}

async fn sweep(args: SweepArgs, context: &Context) -> Result<Reply> {
    let request = SweepRequest {
        table: args.table,
        from_row: args.row,
        dry_run: args.dry_run,
        pause: Duration::from_millis(args.sleep),
        read_limit: args.read_limit,
        candidate_batch: args.candidate_batch_hint,
        delete_batch: args.delete_batch_hint,
    };
    let operations = connect(context, Access::Existing).await?;
    if request.from_row.is_none() && !request.dry_run {
        say_where_it_goes_on(&*operations, &request, context).await?;
    }
    let reporter = context.reporter();
    let report = operations.sweep(request, reporter.sink()).await?;
    drop(reporter);
    Ok(summary(&report))
}

/// Before it begins: it may take long.
async fn say_where_it_goes_on(operations: &dyn Operations, request: &SweepRequest, context: &Context) -> Result<()> {
    for found in operations.sweep_status().await?.tables {
        if let Some(row) = found.interrupted_at
            && request.table.as_ref().is_none_or(|wanted| *wanted == found.table)
        {
            let row = visible(row.as_bytes());
            context.note(&format!("Table {}: a sweep was interrupted at row {row}, and goes on there", found.table));
        }
    }
    Ok(())
}

fn summary(report: &SweepReport) -> Reply {
    let mut total = SweptTableReport::default();
    for table in &report.tables {
        total.cells += table.cells;
        total.versions += table.versions;
        total.deleted += table.deleted;
        total.bytes += table.bytes;
        total.rolled_back += table.rolled_back;
    }
    let line = |kind: &str, swept: &SweptTableReport| {
        let SweptTableReport { cells, versions, deleted, bytes, .. } = swept;
        format!("{kind}\tcells={cells}\tversions={versions}\tdeleted={deleted}\tbytes={bytes}")
    };
    let mut plain: Vec<_> = report.tables.iter().map(|swept| line(&format!("table\t{}", swept.table), swept)).collect();
    plain.push(line("total", &total));
    let deleted = if report.dry_run { "would be deleted" } else { "were deleted" };
    let mut people = format!(
        "{} cells with {} versions were examined; {} versions of {} {deleted}",
        count(total.cells),
        count(total.versions),
        count(total.deleted),
        size(total.bytes),
    );
    people.push_str(&format!("\nWhat readers at or above {} need was kept", report.sweep_ts));
    if !report.tables.is_empty() {
        let rows = report.tables.iter().map(|swept| {
            [
                swept.table.clone(),
                swept.strategy.clone(),
                count(swept.cells),
                count(swept.versions),
                count(swept.deleted),
                size(swept.bytes),
                if swept.resumed { "from where it was interrupted".to_owned() } else { String::new() },
            ]
        });
        let header = ["TABLE", "SWEEP", "CELLS", "VERSIONS", "DELETED", "BYTES", ""];
        people.push_str(&format!("\n\n{}", columns(header, rows)));
    }
    let mut data = json!(report);
    data["total"] = json!({
        "cells": total.cells,
        "versions": total.versions,
        "deleted": total.deleted,
        "bytes": total.bytes,
        "rolled_back": total.rolled_back,
    });
    Reply::new(data, plain.join("\n"), people)
}

/// The shard that is farthest behind.
fn last_of(shards: &[SweepShard]) -> Option<&SweepShard> {
    shards.iter().max_by_key(|shard| shard.behind)
}

/// How far behind it is, in a line.
pub(crate) fn lag(status: &SweepStatus) -> String {
    let mut line = match last_of(&status.shards) {
        None => "has no queue".to_owned(),
        Some(shard) => {
            let time = shard.behind_ms.map_or_else(String::new, |behind| format!(", {}", age(behind)));
            let noun = if shard.behind == 1 { "timestamp" } else { "timestamps" };
            format!("{} {noun}{time} behind", count(shard.behind))
        }
    };
    if let Some(why) = &status.stands_still {
        line.push_str(&format!("; stands still: {}", visible(why.as_bytes())));
    } else if let Some(holder) = &status.held_by {
        line.push_str(&format!("; held back by {}", visible(holder.as_bytes())));
    }
    line
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn show(status: &SweepStatus) -> Reply {
    let lock_age = status.backup_lock.as_ref().and_then(|lock| age_of(&lock.since));
    let lock = match &status.backup_lock {
        None => "free".to_owned(),
        Some(lock) => {
            let since = lock_age.map_or_else(|| format!("since {}", lock.since), |ms| format!("for {}", age(ms)));
            let (holder, reason) = (visible(lock.holder.as_bytes()), visible(lock.reason.as_bytes()));
            format!("held by {holder} {since}: {reason}")
        }
    };
    let floor = match status.transactions_floor {
        Some(floor) => format!("entries below {floor} are removed"),
        None => "all entries are kept: commits go step by step here".to_owned(),
    };
    let totals = &status.totals;
    let rows = vec![
        ("sweep", lag(status)),
        ("enabled", status.enabled.to_string()),
        ("paused", status.paused.as_ref().map_or_else(|| "no".to_owned(), |pause| visible(pause.reason.as_bytes()))),
        ("backup lock", lock),
        ("sweep timestamp", or_dash(status.sweep_ts)),
        ("held back by", status.held_by.as_ref().map_or_else(|| "-".to_owned(), |by| visible(by.as_bytes()))),
        ("last timestamp", status.last_timestamp.to_string()),
        ("_transactions", floor),
        ("cells examined", totals.cells.to_string()),
        ("versions deleted", totals.deleted.to_string()),
        ("bytes freed", totals.bytes.to_string()),
        ("sentinels written", totals.sentinels.to_string()),
        ("entries removed", totals.transactions.to_string()),
        ("failures", totals.failures.to_string()),
    ];
    let plain = rows.iter().map(|(name, value)| format!("{name}\t{value}"));
    let shards = status.shards.iter().map(|shard| {
        let SweepShard { shard, swept_below, behind, behind_ms } = shard;
        format!("shard\t{shard}\tswept_below={swept_below}\tbehind={behind}\tbehind_ms={}", or_dash(*behind_ms))
    });
    let tables = status.tables.iter().map(|found| {
        format!(
            "table\t{}\tstrategy={}\tswept={}\tbehind_ms={}\tinterrupted_at={}",
            found.table,
            found.strategy,
            or_dash(found.swept),
            or_dash(found.behind_ms),
            found.interrupted_at.as_ref().map_or_else(|| "-".to_owned(), |row| visible(row.as_bytes())),
        )
    });
    let plain = plain.chain(shards).chain(tables).collect::<Vec<_>>().join("\n");
    let mut people = pairs(rows);
    let shards = status.shards.iter().map(|shard| {
        let behind = count(shard.behind);
        [shard.shard.to_string(), shard.swept_below.to_string(), behind, shard.behind_ms.map_or("-".to_owned(), age)]
    });
    people.push_str(&format!("\n\n{}", columns(["SHARD", "SWEPT BELOW", "BEHIND", "TIME"], shards)));
    if !status.tables.is_empty() {
        let tables = status.tables.iter().map(|found| {
            [
                found.table.to_string(),
                found.strategy.clone(),
                or_dash(found.swept),
                found.behind_ms.map_or("-".to_owned(), age),
                found.interrupted_at.as_ref().map_or("-".to_owned(), |row| visible(row.as_bytes())),
            ]
        });
        let header = ["TABLE", "SWEEP", "SWEPT BELOW", "TIME", "INTERRUPTED AT ROW"];
        people.push_str(&format!("\n\n{}", columns(header, tables)));
    }
    let mut data = json!(status);
    data["backup_lock_age_ms"] = json!(lock_age);
    Reply::new(data, plain, people)
}

/// Milliseconds since then; nothing for a time that can't be read, or is yet to come.
fn age_of(since: &str) -> Option<u64> {
    let then = since.parse::<jiff::Timestamp>().ok()?;
    u64::try_from(jiff::Timestamp::now().as_millisecond().saturating_sub(then.as_millisecond())).ok()
}
