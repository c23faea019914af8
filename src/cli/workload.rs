//! `atlas workload`.

use super::Context;
use super::args::{WorkloadCheckArgs, WorkloadCommand, WorkloadRunArgs};
use super::connect::{Access, connect};
use super::output::{Reply, Verdict, columns, count, pairs};
use crate::workload::{self, Kind, Latency, Plan};
use crate::{Error, Result, exit};
use atlas_checker::second_opinion::{Verdict as Opinion, second_opinion};
use atlas_checker::{History, Minimums, Options, Report};
use serde_json::{Value, json};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::Duration;

/// How long a run takes if nobody says.
const USUAL_TIME: Duration = Duration::from_secs(10);
/// How wide the longest bar of a histogram is.
const BAR_WIDTH: u64 = 40;

pub(crate) async fn run(command: WorkloadCommand, context: &Context) -> Result<Reply> {
    match command {
        WorkloadCommand::List => Ok(list()),
        WorkloadCommand::Run(args) => run_one(args, context).await,
        WorkloadCommand::Check(args) => {
            // A large history takes seconds, and reading files blocks.
            let checked = tokio::task::spawn_blocking(move || check(&args)).await;
            checked.map_err(|_| Error::Interrupted)?
        }
    }
}

fn list() -> Reply {
    let about = |kind: &Kind| json!({"name": kind.to_string(), "about": kind.about()});
    let names: Vec<String> = Kind::ALL.iter().map(Kind::to_string).collect();
    let table =
        columns(["NAME", "WHAT IT KEEPS"], Kind::ALL.iter().map(|kind| [kind.to_string(), kind.about().into()]));
    Reply::new(json!({"workloads": Kind::ALL.iter().map(about).collect::<Vec<_>>()}), names.join("\n"), table)
}

async fn run_one(args: WorkloadRunArgs, context: &Context) -> Result<Reply> {
    let seconds = args.seconds.map(Duration::from_secs);
    let plan = Plan {
        tasks: args.tasks,
        time: if args.commits.is_some() { seconds } else { Some(seconds.unwrap_or(USUAL_TIME)) },
        commits: args.commits,
        seed: args.seed,
        rate: args.rate,
        serializable: args.serializable,
        history: args.history,
        keep: args.keep,
        ..Plan::new(args.kind)
    };
    let operations = connect(context, Access::Create).await?;
    let reporter = context.reporter();
    let report = workload::run(operations, &plan, reporter.sink()).await?;
    drop(reporter);
    let per_second = report.committed * 1000 / report.took_ms.max(1);
    let mut rows = vec![
        ("workload", format!("{}, seed {}", report.workload, report.seed)),
        (
            "committed",
            format!("{} by {} clients in {} ms", count(report.committed), report.tasks, count(report.took_ms)),
        ),
        ("commits per second", count(per_second)),
        ("aborted", format!("{}, {} of them by conflict", count(report.aborted), count(report.conflicts))),
        ("unknown", count(report.unknown)),
        ("could not begin", count(report.not_begun)),
        (
            "p50, p99, longest",
            format!(
                "{} µs, {} µs, {} µs",
                count(report.latency.p50_us),
                count(report.latency.p99_us),
                count(report.latency.max_us)
            ),
        ),
    ];
    if let Some(history) = &report.history {
        rows.push(("history", history.display().to_string()));
    }
    let plain = rows.iter().map(|(name, value)| format!("{name}\t{value}")).collect::<Vec<_>>().join("\n");
    let mut table = format!("{}\n\n{}", pairs(rows), histogram(&report.latency));
    if let Some(history) = &report.history {
        table.push_str(&format!("\n\nJudge it: atlas workload check {}", history.display()));
    }
    Ok(Reply::new(json!(report), plain, table))
}

/// A bar for each range of latencies.
fn histogram(latency: &Latency) -> String {
    let most = latency.histogram.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    let bar = |count: u64| "#".repeat(usize::try_from(count * BAR_WIDTH / most).unwrap_or(0));
    columns(
        ["BELOW µs", "COMMITS", ""],
        latency.histogram.iter().map(|(below, number)| [count(*below), count(*number), bar(*number)]),
    )
}

fn check(args: &WorkloadCheckArgs) -> Result<Reply> {
    let history = read(&args.history)?;
    let options = Options {
        serializable: args.serializable.clone(),
        minimums: Minimums {
            committed: args.min_commits,
            conflicts: args.min_conflicts,
            faults: args.min_faults,
            ..Minimums::default()
        },
        shown_per_kind: args.show as u64,
    };
    let report = atlas_checker::check(&history, &options);
    let second = match history.header.workload.as_str() {
        // The one workload that a checker by somebody else understands.
        "append" => Some(second_opinion(&history, &args.serializable).map_err(|error| unfit(&args.history, &error))?),
        _ => None,
    };
    let is_refuted = second.as_ref().is_some_and(|opinion| opinion.verdict == Opinion::Broken);
    let anomalies = report.counts.values().sum::<u64>() + u64::from(is_refuted);
    let mut table = report.to_string();
    if let Some(opinion) = &second {
        let explained: String = opinion.explanations.iter().map(|why| format!("\n  {why}")).collect();
        table =
            format!("{}\n\nsecond opinion: {} {}{explained}", table.trim_end(), opinion.model, told(opinion.verdict));
    }
    let plain = match anomalies {
        0 => "no anomaly".to_owned(),
        _ => {
            let counted = report.counts.iter().map(|(kind, count)| format!("{kind}\t{count}"));
            let second = is_refuted.then(|| "second-opinion\t1".to_owned());
            counted.chain(second).collect::<Vec<_>>().join("\n")
        }
    };
    let mut data = data(&report);
    data["second_opinion"] = second.as_ref().map_or(Value::Null, |opinion| {
        json!({
            "model": opinion.model, "verdict": told(opinion.verdict), "kinds": opinion.kinds, "explanations": opinion.explanations,
        })
    });
    let mut reply = Reply::new(data, plain, table.trim_end());
    if anomalies > 0 {
        let message = format!("{anomalies} anomalies in {}", args.history.display());
        reply.verdict = Some(Verdict { code: "ANOMALIES", message, exit_code: exit::DAMAGED });
    }
    Ok(reply)
}

fn told(opinion: Opinion) -> &'static str {
    match opinion {
        Opinion::Holds => "holds",
        Opinion::Broken => "is broken",
        Opinion::Undecided => "is undecided: the history is too long for it",
    }
}

fn unfit(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::corrupt(path.display().to_string(), error.to_string())
}

fn read(path: &Path) -> Result<History> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::NotFound { what: format!("history {}", path.display()) });
        }
        opened => opened.map_err(|error| Error::io(format!("opening {}", path.display()), error))?,
    };
    History::read(BufReader::new(file)).map_err(|error| Error::corrupt(path.display().to_string(), error.to_string()))
}

fn data(report: &Report) -> Value {
    let stats = &report.stats;
    let anomalies: Vec<Value> = report
        .anomalies
        .iter()
        .map(|found| json!({"kind": found.kind.name(), "message": found.message, "picture": found.picture}))
        .collect();
    let counts: serde_json::Map<String, Value> =
        report.counts.iter().map(|(kind, count)| (kind.name().to_owned(), json!(count))).collect();
    json!({
        "anomalies": anomalies,
        "counts": counts,
        "transactions": stats.transactions,
        "committed": stats.committed,
        "committed_writers": stats.committed_writers,
        "aborted": stats.aborted,
        "conflicts": stats.conflicts,
        "unknown": stats.unknown,
        "unknown_committed": stats.unknown_committed,
        "unknown_aborted": stats.unknown_aborted,
        "reads_checked": stats.reads,
        "reads_rechecked": stats.rechecked,
        "final_cells": stats.final_cells,
        "invariant_checks": stats.invariants,
    })
}
