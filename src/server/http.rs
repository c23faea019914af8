//! Health, status and metrics over HTTP, for people and for Prometheus.
//!
//! Every user of the machine reaches it, so it tells names and numbers only: nothing of the data, no paths, and nothing
//! that people wrote for each other.

use super::services::Api;
use crate::ops::{BackupLockRecord, StoreStatus, SweepStatus};
use crate::{Error, Result};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use std::fmt::Write;
use std::time::Duration;
use tokio::sync::watch;

/// How long the store may take to answer before it counts as not there.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn router(api: Api) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .with_state(api)
}

/// While another process owns the store: alive, and not ready. `owner` is what is known of that process.
pub(super) fn standby_router(owner: watch::Receiver<String>) -> Router {
    let not_ready = || async { (StatusCode::SERVICE_UNAVAILABLE, Json(serde_json::json!({"code": "STANDBY"}))) };
    let status = async move || Json(serde_json::json!({"state": "standby", "owner": *owner.borrow()}));
    Router::new()
        .route("/healthz", get(async || "standby\n"))
        .route("/readyz", get(not_ready))
        .route("/status", get(status))
        .route("/metrics", get(standby_metrics))
}

async fn standby_metrics() -> Response {
    let mut text = MetricsText(String::new());
    text.leading(false);
    text.into_response()
}

/// Ready means: the store answers, and new work is taken.
async fn ready(State(api): State<Api>) -> Response {
    if api.transactions.is_draining() {
        return unavailable(&super::services::shutting_down());
    }
    match in_time(api.operations.backup_lock_status()).await {
        Ok(_) => "ready\n".into_response(),
        Err(error) => unavailable(&error),
    }
}

async fn status(State(api): State<Api>) -> Response {
    match in_time(api.operations.status()).await {
        Ok(status) => Json(public(&status)).into_response(),
        Err(error) => unavailable(&error),
    }
}

/// What everybody may know of a status.
fn public(status: &StoreStatus) -> serde_json::Value {
    let mut public = serde_json::json!(status);
    if let Some(fields) = public.as_object_mut() {
        fields.remove("location");
        fields.insert("state".to_owned(), serde_json::json!("leading"));
        let held = status.backup_lock.as_ref();
        fields.insert("backup_lock".to_owned(), serde_json::json!(held.map(json_of_lock)));
    }
    public
}

fn json_of_lock(lock: &BackupLockRecord) -> serde_json::Value {
    serde_json::json!({"since": lock.since, "renewal": lock.renewal, "lease_ms": lock.lease_ms})
}

async fn metrics(State(api): State<Api>) -> Response {
    let both = async { Ok((api.operations.status().await?, api.operations.sweep_status().await?)) };
    match in_time(both).await {
        Ok((status, swept)) => {
            let mut text = metrics_text(&status, api.transactions.open_count());
            text.sweep(&swept);
            text.into_response()
        }
        Err(error) => unavailable(&error),
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(STORE_TIMEOUT, answer).await.unwrap_or_else(|_| {
        let reason = format!("no answer within {} s", STORE_TIMEOUT.as_secs());
        Err(Error::Unavailable { what: "the store".to_owned(), reason })
    })
}

fn unavailable(error: &Error) -> Response {
    // The sentence may name paths; it is in the server's log.
    tracing::warn!(%error, "the store does not answer for HTTP");
    let body = serde_json::json!({ "code": error.code() });
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

/// The status in the text format of Prometheus.
fn metrics_text(status: &StoreStatus, held: usize) -> MetricsText {
    let mut text = MetricsText(String::new());
    text.leading(true);
    text.family("atlas_info", "gauge", "What is running; always 1.");
    let labels = [("namespace", &status.namespace), ("store", &status.store), ("version", &status.version)]
        .map(|(name, value)| (name, value.as_str()));
    text.sample("atlas_info", &labels, 1);
    let plain = [
        ("atlas_uptime_seconds", "gauge", "Since the store was opened.", status.uptime_ms / 1000),
        ("atlas_open_transactions", "gauge", "Open transactions.", status.open_transactions),
        ("atlas_server_transactions", "gauge", "Open transactions of clients of the server.", held as u64),
        ("atlas_last_timestamp", "counter", "Last timestamp issued.", status.last_timestamp.get()),
        ("atlas_timestamp_bound", "counter", "Persisted upper bound of timestamps.", status.timestamp_bound.get()),
        ("atlas_immutable_timestamp", "gauge", "No transaction below this is open.", status.immutable_ts.get()),
        ("atlas_timestamp_epoch", "counter", "Epoch of the timestamp oracle.", status.epoch),
        ("atlas_backup_lock_held", "gauge", "1 while the backup lock is held.", status.backup_lock.is_some().into()),
        ("atlas_tables", "gauge", "Tables of applications.", status.tables.len() as u64),
    ];
    for (name, kind, help, value) in plain {
        text.family(name, kind, help);
        text.sample(name, &[], value);
    }
    text.family("atlas_table_versions", "gauge", "Stored versions, estimated.");
    for info in &status.tables {
        text.sample("atlas_table_versions", &[("table", info.table.name())], info.versions);
    }
    text.family("atlas_table_bytes", "gauge", "Bytes, estimated.");
    for info in &status.tables {
        text.sample("atlas_table_bytes", &[("table", info.table.name())], info.bytes);
    }
    if let Some(backup) = &status.last_backup {
        text.family("atlas_last_backup_bytes", "gauge", "Bytes of the last backup.");
        text.sample("atlas_last_backup_bytes", &[], backup.bytes);
        if let Ok(started) = backup.started.parse::<jiff::Timestamp>() {
            text.family("atlas_last_backup_started_seconds", "gauge", "When the last backup was started, Unix time.");
            text.sample("atlas_last_backup_started_seconds", &[], started.as_second());
        }
    }
    text
}

struct MetricsText(String);

impl MetricsText {
    fn leading(&mut self, leads: bool) {
        self.family("atlas_leading", "gauge", "1 if this process owns the store, 0 while it stands by.");
        self.sample("atlas_leading", &[], u8::from(leads));
    }

    /// How sweep is. Reasons are what people wrote for each other, so there are none here.
    fn sweep(&mut self, status: &SweepStatus) {
        self.family("atlas_sweep_lag_timestamps", "gauge", "Timestamps that a shard of sweep is behind.");
        for shard in &status.shards {
            self.sample("atlas_sweep_lag_timestamps", &[("shard", &shard.shard.to_string())], shard.behind);
        }
        self.family("atlas_sweep_lag_seconds", "gauge", "The same in wall-clock time, where it is known.");
        for shard in &status.shards {
            if let Some(behind_ms) = shard.behind_ms {
                self.sample("atlas_sweep_lag_seconds", &[("shard", &shard.shard.to_string())], behind_ms / 1000);
            }
        }
        let totals = &status.totals;
        let plain = [
            ("atlas_sweep_paused", "gauge", "1 while somebody has paused sweep.", status.paused.is_some().into()),
            ("atlas_sweep_stands_still", "gauge", "1 while nothing is swept.", status.stands_still.is_some().into()),
            ("atlas_sweep_cells", "counter", "Cells that sweep has looked at.", totals.cells),
            ("atlas_sweep_deleted_versions", "counter", "Versions that sweep has removed.", totals.deleted),
            ("atlas_sweep_deleted_bytes", "counter", "Bytes of the contents of those.", totals.bytes),
            ("atlas_sweep_sentinels", "counter", "Sentinels that sweep has written.", totals.sentinels),
            ("atlas_sweep_removed_entries", "counter", "Entries of _transactions removed.", totals.transactions),
            ("atlas_sweep_failures", "counter", "Batches that failed and are tried again.", totals.failures),
        ];
        for (name, kind, help, value) in plain {
            self.family(name, kind, help);
            self.sample(name, &[], value);
        }
    }

    fn into_response(self) -> Response {
        let content_type = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
        ([content_type], self.0).into_response()
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a string takes everything");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        writeln!(self.0, "{name}{labels} {value}").expect("a string takes everything");
    }
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_with_quotes_and_line_ends_stays_one_label() {
        let mut text = MetricsText(String::new());
        text.sample("atlas_info", &[("namespace", "a\"b\\c\nd")], 1);
        assert_eq!(text.0, "atlas_info{namespace=\"a\\\"b\\\\c\\nd\"} 1\n");
    }
}
