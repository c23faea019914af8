//! Clients: threads for stores that block, tasks for those that are awaited.

use crate::measure::Work;
use crate::workload::{Job, Operation};
use anyhow::{Result, anyhow};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::time::Instant;

/// What became of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    Done {
        missing: u64,
    },
    /// Another transaction was faster.
    Conflict,
}

impl Attempt {
    pub(crate) const DONE: Attempt = Attempt::Done { missing: 0 };

    /// A read of one cell, by whether it was there.
    pub(crate) fn read(found: bool) -> Attempt {
        Attempt::Done { missing: u64::from(!found) }
    }
}

/// A store that blocks the thread that calls it.
pub(crate) trait Blocking: Sync {
    fn attempt(&self, operation: &Operation) -> Result<Attempt>;
}

/// What a transaction took until it was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Performed {
    pub(crate) retries: u64,
    pub(crate) missing: u64,
}

/// A client of a store that is awaited.
pub(crate) trait Client: Send + Sync {
    fn perform(&self, operation: Operation) -> impl Future<Output = Result<Performed>> + Send;
}

/// As many threads as there are clients, until the job is done.
pub(crate) fn threads(store: &impl Blocking, job: &Job, clients: usize, seed: u64) -> Result<Work> {
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..clients as u64)
            .map(|client| {
                let random = StdRng::seed_from_u64(seed + client);
                scope.spawn(move || repeat(store, job, random))
            })
            .collect();
        started.into_iter().try_fold(Work::none(), |work, client| {
            let done = client.join().map_err(|_| anyhow!("a client panicked"))??;
            Ok(work.add(&done))
        })
    })
}

fn repeat(store: &impl Blocking, job: &Job, mut random: StdRng) -> Result<Work> {
    let mut work = Work::none();
    while let Some(operation) = job.next(&mut random) {
        let begun = Instant::now();
        let mut retries = 0;
        let missing = loop {
            match store.attempt(&operation)? {
                Attempt::Done { missing } => break missing,
                Attempt::Conflict => retries += 1,
            }
        };
        work.count(begun, operation.units(), retries, missing);
    }
    Ok(work)
}

/// A task for each client, until the job is done.
pub(crate) fn tasks<C: Client + 'static>(
    runtime: &tokio::runtime::Runtime,
    clients: impl IntoIterator<Item = C>,
    job: &Arc<Job>,
    seed: u64,
) -> Result<Work> {
    runtime.block_on(async {
        let started: Vec<_> = clients
            .into_iter()
            .zip(0..)
            .map(|(client, number)| {
                let random = StdRng::seed_from_u64(seed + number);
                tokio::spawn(repeat_awaited(client, job.clone(), random))
            })
            .collect();
        let mut work = Work::none();
        for client in started {
            work = work.add(&client.await??);
        }
        Ok(work)
    })
}

async fn repeat_awaited(client: impl Client, job: Arc<Job>, mut random: StdRng) -> Result<Work> {
    let mut work = Work::none();
    while let Some(operation) = job.next(&mut random) {
        let units = operation.units();
        let begun = Instant::now();
        let Performed { retries, missing } = client.perform(operation).await?;
        work.count(begun, units, retries, missing);
    }
    Ok(work)
}
