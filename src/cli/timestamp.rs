//! `atlas timestamp`: the four commands by which a backup is taken and restored by hand.

use super::Context;
use super::args::{TimestampArgs, TimestampCommand};
use super::connect::{self, Access, connect};
use super::output::{Reply, count};
use super::timestamp_file::{self, Target};
use crate::{Error, Result};
use atlas_kvs::Timestamp;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// How long a timestamp in a file is protected from sweep: time enough to take the backup lock.
const HOLD: Duration = Duration::from_secs(600);

pub(crate) async fn run(args: TimestampArgs, context: &Context) -> Result<Reply> {
    let TimestampArgs { file, timestamp, command } = args;
    match command {
        TimestampCommand::Fetch { immutable, date_time } => {
            if timestamp.is_some() {
                return Err(Error::Usage("timestamp fetch takes no --timestamp: it fetches one".to_owned()));
            }
            fetch(file.as_deref(), immutable, date_time, context).await
        }
        TimestampCommand::CleanTransactions { dry_run, .. } => {
            let ts = given_timestamp(file.as_deref(), timestamp)?;
            clean_transactions(ts, dry_run, context).await
        }
        TimestampCommand::FastForward { allow_large_jump } => {
            let ts = given_timestamp(file.as_deref(), timestamp)?;
            fast_forward(ts, allow_large_jump, context).await
        }
    }
}

fn given_timestamp(file: Option<&Path>, timestamp: Option<Timestamp>) -> Result<Timestamp> {
    match (file, timestamp) {
        (Some(file), None) => timestamp_file::read(file),
        (None, Some(ts)) => Ok(ts),
        (None, None) => Err(Error::Usage("say which timestamp: --file FILE or --timestamp TS".to_owned())),
        (Some(_), Some(_)) => Err(Error::Usage("--file and --timestamp exclude each other".to_owned())),
    }
}

async fn fetch(file: Option<&Path>, immutable: bool, date_time: bool, context: &Context) -> Result<Reply> {
    let target = file.map(Target::prepare).transpose()?;
    let operations = connect(context, Access::Create).await?;
    let (ts, kind) = match immutable {
        true => (operations.immutable_timestamp().await?, "immutable"),
        false if target.is_some() => (operations.pin_fresh_timestamp(HOLD).await?, "fresh"),
        false => (operations.fresh_timestamp().await?, "fresh"),
    };
    let mut data = json!({"timestamp": ts, "timestamp_str": ts.to_string(), "kind": kind});
    let mut plain = ts.to_string();
    let mut table = format!("The {kind} timestamp is: {ts}");
    if date_time {
        let time = match operations.wall_clock_millis(ts).await? {
            Some(millis) => Some(rfc3339(millis)?),
            None => None,
        };
        data["wall_clock"] = json!(time);
        let time = time.as_deref().unwrap_or("unknown");
        plain.push_str(&format!("\n{time}"));
        table.push_str(&format!("\nWall clock datetime of {kind} timestamp is: {time}"));
    }
    if let (Some(target), Some(file)) = (target, file) {
        target.write(ts)?;
        data["file"] = json!(file);
        table.push_str(&format!("\nWritten to {}", file.display()));
    }
    Ok(Reply::new(data, plain, table))
}

fn rfc3339(millis: i64) -> Result<String> {
    jiff::Timestamp::from_millisecond(millis)
        .map(|time| time.to_string())
        .map_err(|error| Error::corrupt("the wall clock of the store", error.to_string()))
}

async fn clean_transactions(ts: Timestamp, dry_run: bool, context: &Context) -> Result<Reply> {
    let config = &context.config()?.config;
    context.backend.check_exists(config).await?;
    let reporter = context.reporter();
    let summary = context.backend.clean_transactions(config, ts, dry_run, reporter.sink()).await;
    let summary = summary.map_err(|error| only_stopped("clean-transactions", error))?;
    let verb = if dry_run { "would be rolled back" } else { "were rolled back" };
    let mut table = format!(
        "{} of {} entries of _transactions committed at or above {ts} and {verb}; {} of them had been before",
        count(summary.rolled_back),
        count(summary.scanned),
        count(summary.already),
    );
    for (start_ts, commit_ts) in &summary.examples {
        table.push_str(&format!("\n  [start={start_ts}, commit={commit_ts}]"));
    }
    let mut data = json!(summary);
    data["timestamp"] = json!(ts);
    data["dry_run"] = json!(dry_run);
    Ok(Reply::new(data, summary.rolled_back.to_string(), table).noted())
}

async fn fast_forward(ts: Timestamp, allow_large_jump: bool, context: &Context) -> Result<Reply> {
    let config = &context.config()?.config;
    context.backend.check_exists(config).await?;
    let summary = context.backend.fast_forward(config, ts, allow_large_jump).await;
    let summary = summary.map_err(|error| only_stopped("fast-forward", error))?;
    let is_changed = summary.after > summary.before;
    let table = match is_changed {
        true => format!("Timestamps go on above {} (the bound was {})", summary.after, summary.before),
        false => format!("Nothing to do: timestamps go on above {} already, and never back to {ts}", summary.before),
    };
    let data = json!({"before": summary.before, "after": summary.after, "changed": is_changed});
    let mut reply = Reply::new(data, summary.after.to_string(), table);
    if is_changed {
        reply = reply.noted();
    } else {
        // In every form: a script that has the wrong file would never know.
        reply
            .warnings
            .push(format!("nothing was changed: timestamp {ts} is at or below the bound, {}", summary.before));
    }
    Ok(reply)
}

/// These two change what a running process believes, so they never run beside one.
fn only_stopped(command: &str, error: Error) -> Error {
    if !connect::is_in_use(&error) {
        return error;
    }
    Error::refused(
        format!("timestamp {command} works on a stopped store only, and {error}"),
        "stop that process first, and start it again when the restore is complete",
    )
}
