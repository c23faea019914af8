//! A store that breaks one rule: each broken rule is found, and named by what it causes.

#![allow(clippy::unwrap_used, reason = "a test ends where an assumption fails")]

mod simulator;

use atlas_checker::{Kind, Options, check};
use simulator::workloads::Workload;
use simulator::{Bug, Settings, run};
use std::collections::BTreeMap;

const SEEDS: u64 = 20;

/// How often each kind was found over all seeds.
fn found_with(settings: impl Fn(u64) -> Settings) -> BTreeMap<Kind, u64> {
    let mut counts = BTreeMap::new();
    for seed in 0..SEEDS {
        for (kind, count) in check(&run(settings(seed)).history, &Options::default()).counts {
            *counts.entry(kind).or_default() += count;
        }
    }
    counts
}

fn expect(workload: Workload, bug: Bug, kinds: &[Kind]) {
    let found = found_with(|seed| Settings { bug, ..Settings::new(workload, seed) });
    for kind in kinds {
        assert!(found.contains_key(kind), "{workload:?} with {bug:?}: no {kind} in {found:?}");
    }
}

#[test]
fn a_skipped_conflict_check_loses_updates() {
    // The recheck of a serializable table would catch most of it: here only snapshots are promised.
    let settings =
        |workload, seed| Settings { serializable: false, bug: Bug::SkipConflictCheck, ..Settings::new(workload, seed) };
    for workload in [Workload::Bank, Workload::SingleBusyCell, Workload::MultipleBusyCells, Workload::Append] {
        let found = found_with(|seed| settings(workload, seed));
        let kinds = [Kind::LostUpdate, Kind::Invariant];
        assert!(kinds.iter().all(|kind| found.contains_key(kind)), "{workload:?}: {found:?}");
    }
    expect(Workload::Random, Bug::SkipConflictCheck, &[Kind::WriteConflict]);
}

#[test]
fn a_skipped_recheck_skews_writes() {
    expect(Workload::WriteSkew, Bug::SkipRecheck, &[Kind::WriteSkew, Kind::Invariant]);
    expect(Workload::WriteOnceDeleteOnce, Bug::SkipRecheck, &[Kind::PhantomSkew]);
    expect(Workload::Random, Bug::SkipRecheck, &[Kind::WriteSkew, Kind::PhantomSkew]);
    expect(Workload::Append, Bug::SkipRecheck, &[Kind::WriteSkew]);
}

#[test]
fn a_recheck_blind_to_absence_lets_phantoms_in() {
    let found = found_with(|seed| Settings {
        bug: Bug::RecheckIgnoresAbsence,
        faults: false,
        ..Settings::new(Workload::WriteOnceDeleteOnce, seed)
    });
    assert_eq!(found.keys().collect::<Vec<_>>(), [&Kind::PhantomSkew]);
}

#[test]
fn forgotten_commits_are_missed() {
    for workload in [Workload::Bank, Workload::Ring, Workload::TransientRows, Workload::Random] {
        expect(workload, Bug::ForgetsCommits, &[Kind::StaleRead]);
    }
    expect(Workload::Bank, Bug::ForgetsCommits, &[Kind::Durability]);
    expect(Workload::WriteOnceDeleteOnce, Bug::ForgetsCommits, &[Kind::Durability, Kind::Phantom]);
}

#[test]
fn torn_commits_show_read_skew() {
    expect(Workload::Bank, Bug::TornCommits, &[Kind::ReadSkew, Kind::Invariant]);
    expect(Workload::Ring, Bug::TornCommits, &[Kind::ReadSkew, Kind::Invariant]);
    expect(Workload::TransientRows, Bug::TornCommits, &[Kind::Invariant]);
}

#[test]
fn leaking_aborts_are_read() {
    for workload in [Workload::Bank, Workload::Ring, Workload::Random, Workload::Append, Workload::MultipleBusyCells] {
        expect(workload, Bug::AbortsLeak, &[Kind::AbortedRead]);
    }
}

#[test]
fn reads_beyond_the_snapshot_come_from_the_future() {
    for workload in [Workload::Bank, Workload::Random, Workload::Append, Workload::SingleBusyCell] {
        expect(workload, Bug::ReadsTheLatest, &[Kind::FutureRead]);
    }
}

#[test]
fn old_snapshots_break_real_time() {
    for workload in [Workload::Bank, Workload::Random, Workload::Append, Workload::SingleBusyCell] {
        expect(workload, Bug::OldSnapshots, &[Kind::RealTime]);
    }
}
