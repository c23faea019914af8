//! Many tasks that move flights between routes and book new ones.

use super::data::{self, Route};
use super::log::{Committed, Log};
use crate::ops::{BeginOptions, Operations};
use crate::{Error, Result};
use atlas_kvs::{TableRef, Timestamp};
use bytes::Bytes;
use rand::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};

/// Half of the work falls on this many routes, so that tasks meet.
const BUSY_ROUTES: usize = 64;
/// One transaction in this many books new flights; the others move some.
const BOOKING_EVERY: u32 = 10;
const FLIGHTS_AT_ONCE: i64 = 5;
const ATTEMPTS_MAX: u32 = 100;

/// Tasks at work. Dropping it ends them.
pub(super) struct Workload {
    tasks: JoinSet<Result<()>>,
    shared: Arc<Shared>,
}

struct Shared {
    operations: Arc<dyn Operations>,
    log: Arc<Log>,
    routes: Vec<Route>,
    table: TableRef,
    is_over: AtomicBool,
    conflicts: AtomicU64,
}

#[derive(Clone, Copy)]
enum Job {
    Move { from: usize, to: usize, flights: i64 },
    Book { route: usize, flights: i64 },
}

impl Workload {
    pub(super) fn start(operations: Arc<dyn Operations>, log: Arc<Log>, tasks: u32) -> Result<Workload> {
        let shared = Arc::new(Shared {
            operations,
            log,
            routes: data::parse_routes()?,
            table: data::routes(),
            is_over: AtomicBool::new(false),
            conflicts: AtomicU64::new(0),
        });
        let mut set = JoinSet::new();
        for _ in 0..tasks {
            let shared = shared.clone();
            set.spawn(async move { shared.work().await });
        }
        Ok(Workload { tasks: set, shared })
    }

    /// Lets the tasks work on for a while. Ends at once with the error of a task that failed.
    pub(super) async fn go_on(&mut self, time: Duration) -> Result<()> {
        match tokio::time::timeout(time, self.tasks.join_next()).await {
            Err(_) => Ok(()),
            Ok(ended) => ended.map_or(Ok(()), flatten),
        }
    }

    /// Lets each task finish its transaction. Answers how many were done again after conflicts.
    pub(super) async fn stop(mut self) -> Result<u64> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            flatten(ended)?;
        }
        Ok(self.shared.conflicts.load(Ordering::Relaxed))
    }
}

fn flatten(ended: std::result::Result<Result<()>, JoinError>) -> Result<()> {
    ended.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Err(Error::Interrupted),
    })
}

impl Shared {
    async fn work(&self) -> Result<()> {
        while !self.is_over.load(Ordering::Relaxed) {
            let job = self.choose();
            let mut attempt = 1;
            while let Err(error) = self.attempt(job).await {
                match error {
                    Error::UnknownOutcome { .. } => return Err(not_provable(&error)),
                    // After so many losses another job is as good.
                    error if error.is_retriable() && attempt < ATTEMPTS_MAX => {
                        self.conflicts.fetch_add(1, Ordering::Relaxed);
                        attempt += 1;
                        let pause = rand::rng().random_range(100..=500 * u64::from(attempt.min(20)));
                        tokio::time::sleep(Duration::from_micros(pause)).await;
                    }
                    error if error.is_retriable() && matches!(error, Error::Conflict { .. }) => break,
                    error => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn choose(&self) -> Job {
        let mut rng = rand::rng();
        let mut route = || match rng.random_bool(0.5) {
            true => rng.random_range(0..BUSY_ROUTES),
            false => rng.random_range(0..self.routes.len()),
        };
        let (from, to) = (route(), route());
        let flights = rng.random_range(1..=FLIGHTS_AT_ONCE);
        if from == to || rng.random_ratio(1, BOOKING_EVERY) {
            Job::Book { route: from, flights }
        } else {
            Job::Move { from, to, flights }
        }
    }

    /// One transaction. What it wrote is in the log only once its commit was acknowledged.
    async fn attempt(&self, job: Job) -> Result<()> {
        let transaction = self.operations.begin_transaction(BeginOptions::default()).await?;
        let (indices, changes, flights) = match job {
            Job::Move { from, to, flights } => (vec![from, to], vec![-flights, flights], 0),
            Job::Book { route, flights } => (vec![route], vec![flights], flights),
        };
        let cells: Vec<_> = indices.iter().map(|index| data::flights_cell(&self.routes[*index].row)).collect();
        let values = transaction.get(&self.table, &cells).await?;
        let mut writes = Vec::with_capacity(cells.len());
        for ((cell, value), change) in cells.into_iter().zip(values).zip(changes) {
            let value = value.ok_or_else(|| Error::corrupt(format!("{}:{cell}", self.table), "the cell is gone"))?;
            let after = data::parse_flights(&cell, &value)? + change;
            if after < 0 {
                // Nothing left to move from here.
                return transaction.abort().await;
            }
            writes.push((cell, Bytes::from(after.to_string())));
        }
        let buffered = writes.iter().map(|(cell, value)| (cell.clone(), Some(value.clone()))).collect();
        transaction.write(&self.table, buffered).await?;
        let start_ts = transaction.start_ts();
        let commit_ts = transaction.commit().await?.ok_or_else(|| no_timestamp(start_ts))?;
        let table = self.table.clone();
        self.log.add(Committed { commit_ts, table, writes, flights, is_booking: flights != 0 });
        Ok(())
    }
}

/// With one outcome unknown there are two right states, and no telling which: there is nothing to prove any more.
fn not_provable(error: &Error) -> Error {
    Error::corrupt(
        "the log of the demo",
        format!("{error}, so what a restore must hold is not known; start the demo again"),
    )
}

pub(super) fn no_timestamp(start_ts: Timestamp) -> Error {
    Error::corrupt(format!("transaction {start_ts}"), "it wrote cells and was committed without a timestamp")
}
