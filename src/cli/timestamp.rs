//! `atlas timestamp`: the four commands by which a backup is taken and restored by hand.

use super::Context;
use super::args::{ReadPunchTableArgs, TimestampArgs, TimestampCommand};
use super::connect::{self, Access, connect};
use super::output::{Reply, count};
use super::timestamp_file::{self, Target};
use crate::config::duration_text;
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

/// `atlas read-punch-table`: from the wall clock to a timestamp.
pub(crate) async fn read_punch_table(args: &ReadPunchTableArgs, context: &Context) -> Result<Reply> {
    let now = jiff::Timestamp::now().as_millisecond();
    let millis = match (&args.date_time, args.epoch_ms) {
        (Some(text), _) => parse_time(text, now)?,
        (None, given) => given.unwrap_or(now),
    };
    let asked = jiff::Timestamp::from_millisecond(millis)
        .map_err(|_| Error::Usage(format!("{millis} is no time: it is too far from 1970")))?;
    let found = connect(context, Access::Existing).await?.punched(millis).await?;
    let found = found.ok_or_else(|| Error::NotFound { what: format!("timestamp from {asked} or before") })?;
    let (ts, time) = (found.timestamp, rfc3339(found.millis)?);
    let table = format!("The timestamp at {asked} is: {ts}\nIt was issued at about {time}");
    let data = json!({
        "timestamp": ts,
        "timestamp_str": ts.to_string(),
        "wall_clock": time,
        "wall_clock_ms": found.millis,
        "asked_ms": millis,
    });
    Ok(Reply::new(data, ts.to_string(), table))
}

/// Milliseconds since 1970 at a time as people write it.
fn parse_time(text: &str, now_ms: i64) -> Result<i64> {
    let ago = text.strip_prefix('-').and_then(|ago| duration_text::parse(ago).ok());
    if let Some(ago) = ago {
        return Ok(now_ms.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)));
    }
    let time = text.parse::<jiff::Timestamp>();
    time.map(jiff::Timestamp::as_millisecond)
        .map_err(|_| Error::Usage(format!("'{text}' is no time: write 2026-05-06T07:08:09Z, or -2h for two hours ago")))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let now = 10_000_000;
        assert_eq!(parse_time("1970-01-01T00:00:01.5Z", now).expect("a time"), 1_500);
        assert_eq!(parse_time("1970-01-01T01:00:00+01:00", now).expect("a time"), 0);
        assert_eq!(parse_time("-2h", now).expect("a time"), now - 7_200_000);
        assert_eq!(parse_time("-500ms", now).expect("a time"), now - 500);
        for text in ["", "-", "2h", "-2", "noon", "1970-01-01", "-2d"] {
            assert_eq!(parse_time(text, now).expect_err(text).exit_code(), crate::exit::USAGE, "{text}");
        }
    }
}
