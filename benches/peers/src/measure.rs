//! What one contender did in one round, and what medians make of it.

use crate::disk;
use crate::shared::processor::{busy_seconds, cpu_seconds};
pub(crate) use crate::shared::statistics::median;
use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::{Duration, Instant};

/// What clients did.
pub(crate) struct Work {
    /// Transactions.
    pub(crate) operations: u64,
    /// What rates count: cells of a bulk load, transactions otherwise.
    pub(crate) units: u64,
    pub(crate) retries: u64,
    /// Cells that were read and not there.
    pub(crate) missing: u64,
    nanos: Histogram<u64>,
}

impl Work {
    pub(crate) fn none() -> Work {
        let nanos = Histogram::new_with_max(60_000_000_000, 3).expect("the bounds are right");
        Work { operations: 0, units: 0, retries: 0, missing: 0, nanos }
    }

    pub(crate) fn count(&mut self, begun: Instant, units: u64, retries: u64, missing: u64) {
        self.operations += 1;
        self.units += units;
        self.retries += retries;
        self.missing += missing;
        self.nanos.saturating_record(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn add(mut self, other: &Work) -> Work {
        self.operations += other.operations;
        self.units += other.units;
        self.retries += other.retries;
        self.missing += other.missing;
        self.nanos.add(&other.nanos).expect("histograms of the same shape");
        self
    }

    /// Microseconds that this share of transactions took at most.
    pub(crate) fn micros_at(&self, share: f64) -> f64 {
        self.nanos.value_at_quantile(share) as f64 / 1e3
    }
}

/// One contender in one round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) retries_percent: f64,
    pub(crate) fsyncs_per_operation: f64,
    pub(crate) cpu_us_per_operation: f64,
    pub(crate) cores_used: f64,
    pub(crate) cores_of_others: f64,
    pub(crate) missing: u64,
}

#[cfg(test)]
impl Sample {
    /// One of which nothing but its rate matters.
    pub(crate) fn of_rate(per_second: f64) -> Sample {
        Sample {
            per_second,
            p50_us: 0.0,
            p99_us: 0.0,
            retries_percent: 0.0,
            fsyncs_per_operation: 0.0,
            cpu_us_per_operation: 0.0,
            cores_used: 0.0,
            cores_of_others: 0.0,
            missing: 0,
        }
    }
}

/// `count_syncs` tells how many syncs there were so far.
pub(crate) fn measure(count_syncs: impl Fn() -> Result<u64>, work: impl FnOnce() -> Result<Work>) -> Result<Sample> {
    let syncs = count_syncs()?;
    let (cpu, busy, begun) = (cpu_seconds(), busy_seconds(), Instant::now());
    let work = work()?;
    let (seconds, cpu, busy) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu, busy_seconds() - busy);
    let syncs = count_syncs()? - syncs;
    ensure!(work.operations > 0, "nothing was done");
    let operations = work.operations as f64;
    Ok(Sample {
        per_second: work.units as f64 / seconds,
        p50_us: work.micros_at(0.5),
        p99_us: work.micros_at(0.99),
        retries_percent: 100.0 * work.retries as f64 / operations,
        fsyncs_per_operation: syncs as f64 / operations,
        cpu_us_per_operation: cpu * 1e6 / operations,
        cores_used: cpu / seconds,
        cores_of_others: (busy - cpu).max(0.0) / seconds,
        missing: work.missing,
    })
}

/// Syncs of this process.
pub(crate) fn own_syncs() -> Result<u64> {
    Ok(disk::syncs())
}

/// Waits until what the last round left to be done in the background is done, so that the next one does not pay for it;
/// not longer than `patience`.
pub(crate) fn settle(patience: Duration) {
    const WINDOW: Duration = Duration::from_millis(100);
    let until = Instant::now() + patience;
    while Instant::now() < until {
        let before = cpu_seconds();
        std::thread::sleep(WINDOW);
        if cpu_seconds() - before < WINDOW.as_secs_f64() / 20.0 {
            return;
        }
    }
}

/// The ratio of each round, both sides in the same one.
pub(crate) fn paired(ours: &[Sample], theirs: &[Sample]) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(ours, theirs)| ours.per_second / theirs.per_second).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(rates: &[f64]) -> Vec<Sample> {
        rates.iter().map(|rate| Sample::of_rate(*rate)).collect()
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn ratios_are_those_of_the_rounds() {
        // The disk was ten times slower in the second round, for both: the ratio of medians would not know.
        let ratios = paired(&samples(&[100.0, 10.0, 120.0]), &samples(&[50.0, 5.0, 40.0]));
        assert_eq!(ratios, [2.0, 2.0, 3.0]);
        assert_eq!(median(ratios), 2.0);
    }

    #[test]
    fn latencies_are_told_in_microseconds() {
        let mut work = Work::none();
        let begun = Instant::now().checked_sub(Duration::from_millis(5)).expect("the machine is up for longer");
        work.count(begun, 1, 0, 0);
        assert!((5_000.0..6_000.0).contains(&work.micros_at(0.5)), "{}", work.micros_at(0.5));
    }
}
