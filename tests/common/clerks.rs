//! Clerks who make transfers and write down what they were told, and whether it was true.

use super::bank::Bank;
use atlas::Error;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// What callers were told.
#[derive(Clone, Default)]
pub struct Told {
    pub acknowledged: BTreeSet<String>,
    pub failed: BTreeSet<String>,
    pub unknown: BTreeSet<String>,
    /// Failed or unknown, and not for a conflict.
    pub refused: usize,
}

impl Told {
    /// Checks that what was acknowledged is there and what failed is not, and answers the unknown ones that are there.
    pub async fn check(&self, bank: &Bank, when: &str) -> BTreeSet<String> {
        let records: BTreeSet<String> = bank.check().await.into_keys().collect();
        let lost: Vec<_> = self.acknowledged.difference(&records).collect();
        assert!(lost.is_empty(), "{when}: acknowledged and lost: {lost:?}");
        let undead: Vec<_> = self.failed.intersection(&records).collect();
        assert!(undead.is_empty(), "{when}: reported as failed and there: {undead:?}");
        self.unknown.intersection(&records).cloned().collect()
    }
}

/// Tasks at work until they are stopped.
pub struct Clerks {
    told: Arc<Mutex<Told>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Clerks {
    /// So many tasks; where some are to be large, every other transfer puts its data ahead.
    pub fn start(bank: &Bank, name: &'static str, count: usize, some_large: bool, told: &Arc<Mutex<Told>>) -> Clerks {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..count)
            .map(|clerk| {
                let (bank, told, stop) = (bank.clone(), told.clone(), stop.clone());
                tokio::spawn(work(bank, format!("{name}-{clerk}"), some_large, told, stop))
            })
            .collect();
        Clerks { told: told.clone(), stop, tasks }
    }

    /// Waits until so many more transfers were acknowledged.
    pub async fn acknowledge(&self, more: usize) {
        let before = self.told.lock().acknowledged.len();
        until("an acknowledged transfer", || self.told.lock().acknowledged.len() >= before + more).await;
    }

    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("the task ends");
        }
    }
}

async fn work(bank: Bank, name: String, some_large: bool, told: Arc<Mutex<Told>>, stop: Arc<AtomicBool>) {
    for transfer in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let id = format!("{name}-{transfer:06}");
        let outcome = bank.transfer(&id, some_large && transfer % 2 == 1).await;
        let refused = matches!(&outcome, Err(error) if !matches!(error, Error::Conflict { .. }));
        {
            let mut told = told.lock();
            match outcome {
                Ok(_) => told.acknowledged.insert(id),
                Err(Error::UnknownOutcome { .. }) => told.unknown.insert(id),
                Err(_) => told.failed.insert(id),
            };
            told.refused += usize::from(refused);
        }
        if refused {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Waits for something that must come, in steps, for two minutes at most.
pub async fn until(what: &str, mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !there() {
        assert!(Instant::now() < deadline, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
