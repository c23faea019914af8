//! `atlas status`.

use super::Context;
use super::connect::{Access, connect};
use super::output::{Reply, count, millis, pairs, size};
use super::{backup_lock, sweep, table};
use crate::Result;
use crate::ops::{Connection, StoreOwner, StoreStatus, SweepStatus};
use serde_json::json;

pub(crate) async fn run(context: &Context) -> Result<Reply> {
    let operations = connect(context, Access::Existing).await?;
    let connection = operations.connection();
    let status = operations.status().await?;
    let swept = operations.sweep_status().await?;
    let rows = rows(&status, &swept, &connection);
    let plain = rows.iter().map(|(name, value)| format!("{name}\t{value}")).collect::<Vec<_>>();
    let tables = status.tables.iter().map(|info| {
        let cells = info.cells.map_or_else(|| "-".to_owned(), |cells| cells.to_string());
        format!("table\t{}\tcells={cells}\tversions={}\tbytes={}", info.table, info.versions, info.bytes)
    });
    let plain = plain.into_iter().chain(tables).collect::<Vec<_>>().join("\n");
    let mut text = pairs(rows);
    if let Some(record) = &status.backup_lock {
        text.push_str(&format!("\n\nThe backup lock\n{}", backup_lock::show(record)));
    }
    if !status.tables.is_empty() {
        text.push_str(&format!("\n\n{}", table::table_of(&status.tables)));
    }
    let mut data = json!(status);
    data["connection"] = json!(connection);
    data["sweep"] = json!({
        "behind": swept.shards.iter().map(|shard| shard.behind).max(),
        "behind_ms": swept.shards.iter().filter_map(|shard| shard.behind_ms).max(),
        "stands_still": swept.stands_still,
        "held_by": swept.held_by,
    });
    Ok(Reply::new(data, plain, text))
}

fn rows(status: &StoreStatus, swept: &SweepStatus, connection: &Connection) -> Vec<(&'static str, String)> {
    let owner = match connection {
        Connection::Local => "nobody; opened for this command".to_owned(),
        Connection::Remote { address, .. } => {
            let uptime = millis(status.uptime_ms);
            match &status.owner {
                Some(StoreOwner { program, pid, host, .. }) => {
                    format!("{}, process {pid} on {} for {uptime}, at {address}", shown(program), shown(host))
                }
                None => format!("process {} for {uptime}, at {address}", status.owner_pid),
            }
        }
    };
    let lease = match (&status.owner, connection) {
        (Some(owner), Connection::Remote { .. }) => {
            Some(format!("{}, renewed {} ago", millis(owner.lease_ms), millis(owner.lease_age_ms)))
        }
        _ => None,
    };
    let lock = match &status.backup_lock {
        Some(record) => format!("held by {}", super::output::visible(record.holder.as_bytes())),
        None => "free".to_owned(),
    };
    let last_backup = match &status.last_backup {
        Some(backup) => format!("{}, {}, {}, {}", backup.id, backup.state, backup.started, size(backup.bytes)),
        None => "none".to_owned(),
    };
    let mut rows = vec![
        ("namespace", status.namespace.clone()),
        ("store", format!("{} in {}", status.store, status.location)),
        ("store id", status.store_id.to_string()),
        ("owner", owner),
        ("commit mode", status.commit_mode.clone()),
        ("epoch", status.epoch.to_string()),
        ("last timestamp", status.last_timestamp.to_string()),
        ("timestamp bound", status.timestamp_bound.to_string()),
        ("immutable timestamp", status.immutable_ts.to_string()),
        ("open transactions", count(status.open_transactions)),
        ("sweep", sweep::lag(swept)),
        ("backup lock", lock),
        ("last backup", last_backup),
        ("version", status.version.clone()),
    ];
    // Beside its owner.
    rows.splice(4..4, lease.map(|lease| ("lease", lease)));
    rows
}

/// What another process says of itself is for the screen only after a look at it.
fn shown(text: &str) -> String {
    super::output::visible(text.as_bytes())
}
