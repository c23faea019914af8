//! One of the clients of a run: it takes one piece of work after the other, and notes each of its attempts.

use super::Plan;
use super::attempt::{Attempt, Tables};
use super::kinds::{Job, Workload};
use super::record::Recorder;
use crate::ops::{BeginOptions, Operations};
use crate::{Error, Result};
use atlas_checker::history::{Client as ClientName, Status, Transaction};
use atlas_kvs::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// After so many losses another piece of work is as good.
const ATTEMPTS_MAX: u32 = 50;
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// A client.
pub(super) struct Client {
    number: u64,
    operations: Arc<dyn Operations>,
    tables: Arc<Tables>,
    recorder: Arc<Recorder>,
    random: StdRng,
    attempts: u64,
    /// The time between two pieces of work, and when the next one is due.
    every: Option<Duration>,
    due: Instant,
}

impl Client {
    pub(super) fn new(
        number: u64,
        plan: &Plan,
        operations: Arc<dyn Operations>,
        tables: Arc<Tables>,
        recorder: Arc<Recorder>,
    ) -> Client {
        let every =
            plan.rate.map(|rate| Duration::from_secs(1).mul_f64(f64::from(plan.tasks) / f64::from(rate.max(1))));
        let mut random = StdRng::seed_from_u64(plan.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        // Not all at the same moment.
        let due = Instant::now() + every.unwrap_or_default().mul_f64(random.random_range(0.0..1.0));
        Client { number, operations, tables, recorder, random, attempts: 0, every, due }
    }

    /// Does one piece of work, again after conflicts.
    pub(super) async fn work(&mut self, workload: &dyn Workload, over: &AtomicBool) {
        if let Some(every) = self.every {
            tokio::time::sleep_until(self.due).await;
            self.due += every;
        }
        let job = workload.next(self.number, &mut self.random);
        let mut lost_to = None;
        for number in 1..=ATTEMPTS_MAX {
            match self.attempt(&*job, lost_to).await {
                Ok(()) => return,
                // Nothing is repeated whose outcome is not known. What can't succeed would only be noise.
                Err(error) if !error.is_retriable() || over.load(Ordering::Relaxed) => {
                    tracing::debug!(%error, "a piece of work of the workload was given up");
                    // A store that fails at once must not keep everybody else from running.
                    tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                    return;
                }
                // At once, every other time: what it lost to is perhaps on its way still.
                Err(
                    Error::Conflict { committed_at: Some(committed_at), .. }
                    | Error::ReadConflict { committed_at: Some(committed_at), .. },
                ) if self.random.random() => lost_to = Some(committed_at),
                Err(_) => {
                    lost_to = None;
                    let pause = Duration::from_micros(self.random.random_range(50..=400)) * number;
                    tokio::time::sleep(pause.min(PAUSE_MAX)).await;
                }
            }
        }
    }

    /// One attempt, noted whatever becomes of it.
    pub(super) async fn attempt(&mut self, job: &dyn Job, lost_to: Option<Timestamp>) -> Result<()> {
        let begin_ns = self.recorder.now_ns();
        let began = Instant::now();
        let tx = match self.operations.begin_transaction(BeginOptions { lost_to, ..BeginOptions::default() }).await {
            Ok(tx) => tx,
            Err(error) => {
                self.recorder.not_begun();
                return Err(error);
            }
        };
        self.attempts += 1;
        let (start_ts, read_ts, tentative) = (tx.start_ts().get(), tx.read_ts().get(), tx.is_tentative());
        let mut attempt = Attempt::new(&*tx, &self.tables, format!("c{}.{}", self.number, self.attempts));
        let done = job.attempt(&mut attempt).await;
        let ops = attempt.into_ops();
        let outcome = match done {
            Ok(()) => tx.commit().await,
            Err(error) => {
                // It is gone with its client in any case.
                let _ = tx.abort().await;
                Err(error)
            }
        };
        let end_ns = self.recorder.now_ns();
        let (status, commit_ts, reason) = match &outcome {
            Ok(commit_ts) => (Status::Committed, commit_ts.map(|ts| ts.get()), None),
            Err(Error::UnknownOutcome { commit_ts, .. }) => (Status::Unknown, commit_ts.map(|ts| ts.get()), None),
            Err(error) if is_unknown(error) => (Status::Unknown, None, None),
            Err(error) => (Status::Aborted, None, Some(reason(error))),
        };
        let line = 0;
        let client = ClientName::Number(self.number);
        let noted = Transaction {
            line,
            client,
            status,
            start_ts,
            read_ts,
            tentative,
            commit_ts,
            begin_ns,
            end_ns,
            reason,
            ops,
        };
        self.recorder.note(&noted, began.elapsed());
        outcome.map(drop)
    }
}

/// The outcome of a commit that nobody was told. A server that did not answer may have committed too.
fn is_unknown(error: &Error) -> bool {
    error.code() == "UNKNOWN_OUTCOME" || error.code() == "INDETERMINATE"
}

/// `conflict`, as the checker counts it, or the code of the error.
fn reason(error: &Error) -> String {
    match error.code() {
        "CONFLICT" | "READ_CONFLICT" => "conflict".to_owned(),
        other => other.to_lowercase(),
    }
}
