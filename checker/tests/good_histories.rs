//! Histories of a store that keeps its promises: nothing may be found in them.

#![allow(clippy::unwrap_used, reason = "a test ends where an assumption fails")]

mod simulator;

use atlas_checker::{History, Kind, Options, Report, check};
use simulator::workloads::{ALL, Workload};
use simulator::{Rng, Run, Settings, run};

const SEEDS: u64 = 40;

fn expect_clean(history: &History, what: &str) -> Report {
    let report = check(history, &Options::default());
    assert!(report.is_clean(), "{what}\n{report}");
    report
}

#[test]
fn every_workload_is_clean_on_every_seed() {
    for workload in ALL {
        let (mut looks, mut conflicts, mut unknown) = (0, 0, 0);
        for seed in 0..SEEDS {
            let Run { history, .. } = run(Settings::new(workload, seed));
            let report = expect_clean(&history, &format!("{workload:?}, seed {seed}"));
            looks += report.stats.invariants.unwrap_or(u64::from(workload == Workload::Random));
            conflicts += report.stats.conflicts;
            unknown += report.stats.unknown;
        }
        assert!(looks > 0 && conflicts > 0 && unknown > 0, "{workload:?}: {looks} {conflicts} {unknown}");
    }
}

#[test]
fn unknown_ones_are_found_out_about() {
    let (mut committed, mut aborted) = (0, 0);
    for seed in 0..SEEDS {
        let report = check(&run(Settings::new(Workload::Random, seed)).history, &Options::default());
        committed += report.stats.unknown_committed;
        aborted += report.stats.unknown_aborted;
    }
    assert!(committed > 50 && aborted > 50, "{committed} committed, {aborted} aborted");
}

/// Write skew is allowed where the table is not serializable, and only there.
#[test]
fn write_skew_is_clean_under_snapshot_isolation() {
    let mut skewed = 0;
    for seed in 0..SEEDS {
        let settings = Settings { serializable: false, ..Settings::new(Workload::WriteSkew, seed) };
        let history = run(settings).history;
        expect_clean(&history, &format!("seed {seed}"));
        let asked = Options { serializable: vec!["pairs".into()], ..Options::default() };
        skewed += check(&history, &asked).count(Kind::WriteSkew);
    }
    assert!(skewed > 0, "no seed had a write skew to find");
}

/// Whoever knows less must not see more: acknowledgements and commit timestamps are taken away at random.
#[test]
fn forgetting_outcomes_makes_no_anomaly() {
    let (mut reads, mut excused) = (0, 0);
    for workload in ALL {
        for seed in 0..SEEDS {
            let mut history = run(Settings::new(workload, seed)).history;
            let mut rng = Rng::new(seed ^ 0xf00d);
            let mut forgotten = 0;
            for transaction in history.transactions.iter_mut().skip(1).filter(|transaction| transaction.wrote()) {
                if transaction.status == atlas_checker::history::Status::Committed && rng.percent(15) {
                    transaction.status = atlas_checker::history::Status::Unknown;
                    forgotten += 1;
                    if rng.percent(60) {
                        transaction.commit_ts = None;
                    }
                }
            }
            assert!(forgotten > 0);
            let report = expect_clean(&history, &format!("{workload:?}, seed {seed}, {forgotten} forgotten"));
            reads += report.stats.reads;
            excused += report.stats.excused;
        }
    }
    // If much were excused, clean would mean little.
    assert!(excused * 200 < reads, "{excused} of {reads} reads prove nothing");
}

#[test]
fn a_file_gives_back_what_was_written() {
    for workload in ALL {
        let history = run(Settings::new(workload, 7)).history;
        let mut file = Vec::new();
        history.write(&mut file).unwrap();
        let mut read = History::read(&file[..]).unwrap();
        for (at, transaction) in read.transactions.iter_mut().enumerate() {
            assert_eq!(std::mem::take(&mut transaction.line), at as u64 + 2);
        }
        assert_eq!(read, history);
    }
}
