//! `atlas workload`: transactions that are known to go wrong where isolation does, and a history of what they saw.
//!
//! ```text
//!   workload ── jobs ──> client ── attempt ─┬─ reads, writes, commit ──> store
//!   (what to do)         (one of many)      └─ one line for each attempt ──> history ──> checker
//! ```
//!
//! Nothing is judged here. The history says what each attempt was told, in the order in which it asked; the checker is a
//! crate of its own that knows nothing of this one. The names of tables and columns are those the checker's README
//! gives; in the store they have the run's own prefix, so that each run begins with empty tables.

mod attempt;
mod client;
mod kinds;
mod record;

use crate::Result;
use crate::ops::{BeginOptions, Operations, Progress, ProgressSink, ScanOptions};
use crate::schema::{ConflictHandler, TableSpec};
use atlas_checker::history::{FinalState, Header, Row};
use atlas_kvs::TableRef;
use attempt::Tables;
use client::Client;
use futures::TryStreamExt;
pub use kinds::Kind;
use record::Recorder;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// How long the set-up and the last look at the tables may take where the store fails now and then.
const PERSIST_FOR: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_millis(50);
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which workload.
    pub kind: Kind,
    /// How many clients work at a time.
    pub tasks: u32,
    /// For how long; `None`: until there are enough commits.
    pub time: Option<Duration>,
    /// How many commits are enough; `None`: until the time is over.
    pub commits: Option<u64>,
    /// The same seed chooses the same work for each client.
    pub seed: u64,
    /// How many pieces of work are begun in a second, by all clients together; `None`: as many as can be.
    pub rate: Option<u32>,
    /// Make every table of the workload serializable.
    pub serializable: bool,
    /// Where the history goes.
    pub history: Option<PathBuf>,
    /// Leave the tables in the store.
    pub keep: bool,
    /// Where somebody counts the faults he injects, for the history.
    pub faults: Option<Arc<AtomicU64>>,
}

impl Plan {
    /// A plan for this workload: 8 clients for ten seconds.
    pub fn new(kind: Kind) -> Plan {
        Plan {
            kind,
            tasks: 8,
            time: Some(Duration::from_secs(10)),
            commits: None,
            seed: 1,
            rate: None,
            serializable: false,
            history: None,
            keep: false,
            faults: None,
        }
    }
}

/// What a run did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The workload.
    pub workload: String,
    /// Clients.
    pub tasks: u32,
    /// Seed.
    pub seed: u64,
    /// How long the clients worked, in milliseconds.
    pub took_ms: u64,
    /// Attempts that committed, those of the set-up included.
    pub committed: u64,
    /// Attempts that did not.
    pub aborted: u64,
    /// Of those, how many because of another transaction.
    pub conflicts: u64,
    /// Attempts whose outcome their client was not told.
    pub unknown: u64,
    /// Transactions that could not even begin.
    pub not_begun: u64,
    /// Of committed attempts from begin to answer, in microseconds.
    pub latency: Latency,
    /// Where the history is.
    pub history: Option<PathBuf>,
}

/// Latencies in microseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Latency {
    /// Half of them are below.
    pub p50_us: u64,
    /// 90 % are below.
    pub p90_us: u64,
    /// 99 % are below.
    pub p99_us: u64,
    /// 99.9 % are below.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
    /// How many fell into each range that doubles: the upper end, and how many.
    pub histogram: Vec<(u64, u64)>,
}

/// Runs a workload.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) if the history can't be written; those of the store if its tables can't be made, filled, or read at
/// the end. What fails in between is what the history is about.
///
/// Dropping the future stops the clients; the history then has no last line.
pub async fn run(operations: Arc<dyn Operations>, plan: &Plan, progress: ProgressSink) -> Result<Report> {
    let tables = make_tables(&*operations, plan).await?;
    let recorder = Arc::new(Recorder::new(plan.history.as_deref(), &header(plan, &tables))?);
    let ran = run_in(&operations, plan, &tables, &recorder, &progress).await;
    if !plan.keep {
        for table in tables.all() {
            if let Err(error) = operations.drop_table(&table.stored).await {
                // They are in nobody's way, and what was found out counts more.
                tracing::warn!(table = %table.stored, %error, "a table of the workload could not be removed");
            }
        }
    }
    ran
}

async fn run_in(
    operations: &Arc<dyn Operations>,
    plan: &Plan,
    tables: &Arc<Tables>,
    recorder: &Arc<Recorder>,
    progress: &ProgressSink,
) -> Result<Report> {
    let workload = plan.kind.workload();
    set_up(operations, plan, tables, recorder).await?;
    let started = Instant::now();
    let over = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for number in 1..=u64::from(plan.tasks) {
        let mut client = Client::new(number, plan, operations.clone(), tables.clone(), recorder.clone());
        let (workload, over) = (workload.clone(), over.clone());
        clients.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                client.work(&*workload, &over).await;
            }
        });
    }
    let set_up_commits = recorder.committed();
    loop {
        let commits = recorder.committed() - set_up_commits;
        progress(Progress {
            step: format!("workload {}", plan.kind),
            done: commits,
            total: plan.commits,
            unit: "commits".to_owned(),
        });
        let enough = plan.commits.is_some_and(|wanted| commits >= wanted);
        let late = plan.time.is_some_and(|time| started.elapsed() >= time);
        if enough || late || recorder.failed() {
            break;
        }
        let left = plan.time.map_or(PROGRESS_EVERY, |time| time.saturating_sub(started.elapsed()));
        let look_again = if plan.commits.is_some() { Duration::from_millis(20) } else { PROGRESS_EVERY };
        tokio::time::sleep(left.min(look_again)).await;
    }
    over.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        if let Err(error) = ended
            && let Ok(panic) = error.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
    }
    let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let mut state = final_state(&**operations, tables).await?;
    state.faults = plan.faults.as_ref().map(|faults| faults.load(Ordering::Relaxed));
    recorder.finish(&state)?;
    let counts = recorder.counts();
    Ok(Report {
        workload: plan.kind.to_string(),
        tasks: plan.tasks,
        seed: plan.seed,
        took_ms,
        committed: counts.committed,
        aborted: counts.aborted,
        conflicts: counts.conflicts,
        unknown: counts.unknown,
        not_begun: counts.not_begun,
        latency: recorder.latency(),
        history: plan.history.clone(),
    })
}

fn header(plan: &Plan, tables: &Tables) -> Header {
    let names = |wanted: fn(ConflictHandler) -> bool| {
        tables.all().iter().filter(|table| wanted(table.handler)).map(|table| table.name.to_owned()).collect()
    };
    Header {
        workload: plan.kind.to_string(),
        serializable_tables: names(ConflictHandler::checks_reads),
        no_conflict_tables: names(|handler| !handler.checks_write_conflicts()),
        touch_tables: names(ConflictHandler::compares_values),
    }
}

/// Tables of this run's own: whatever an earlier run has left is under another name.
async fn make_tables(operations: &dyn Operations, plan: &Plan) -> Result<Arc<Tables>> {
    let deadline = Instant::now() + PERSIST_FOR;
    let run = persist(deadline, async || operations.fresh_timestamp().await).await?;
    let tables = Tables::new(plan, run)?;
    for table in tables.all() {
        let spec = TableSpec::with_handler(table.handler);
        persist(deadline, async || operations.create_table(&table.stored, &spec).await).await?;
    }
    Ok(Arc::new(tables))
}

/// Does something again until it works, fails for good, or took too long.
async fn persist<T>(deadline: Instant, work: impl AsyncFn() -> Result<T>) -> Result<T> {
    loop {
        match work().await {
            Err(error) if Instant::now() < deadline && error.is_retriable() => tokio::time::sleep(PAUSE).await,
            result => return result,
        }
    }
}

/// All of it in one transaction: nobody ever sees half of it.
async fn set_up(
    operations: &Arc<dyn Operations>,
    plan: &Plan,
    tables: &Arc<Tables>,
    recorder: &Arc<Recorder>,
) -> Result<()> {
    let Some(job) = plan.kind.workload().set_up() else { return Ok(()) };
    let mut client = Client::new(0, plan, operations.clone(), tables.clone(), recorder.clone());
    let deadline = Instant::now() + PERSIST_FOR;
    loop {
        match client.attempt(&*job, None).await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() < deadline && error.is_retriable() => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(error),
        }
    }
}

async fn final_state(operations: &dyn Operations, tables: &Tables) -> Result<FinalState> {
    persist(Instant::now() + PERSIST_FOR, async || read_everything(operations, tables).await).await
}

async fn read_everything(operations: &dyn Operations, tables: &Tables) -> Result<FinalState> {
    let tx = operations.begin_transaction(BeginOptions { read_only: true, ..BeginOptions::default() }).await?;
    let mut found = BTreeMap::new();
    for table in tables.all() {
        let mut cells = tx.scan(&table.stored, ScanOptions::default()).await?;
        let mut rows: Vec<Row> = Vec::new();
        while let Some((cell, value)) = cells.try_next().await? {
            rows.push((attempt::text(&cell.row)?, attempt::text(&cell.column)?, attempt::text(&value)?));
        }
        found.insert(table.name.to_owned(), rows);
    }
    let read_ts = Some(tx.read_ts().get());
    tx.abort().await?;
    Ok(FinalState { tables: found, read_ts, faults: None })
}

/// The name of a workload's table in the store.
fn stored_name(plan: &Plan, run: atlas_kvs::Timestamp, table: &str) -> Result<TableRef> {
    Ok(TableRef::new(format!("workload.{}.{run}.{table}", plan.kind))?)
}
