//! Calibrates the other checker on histories with known answers, and compares it with the replay.
//!
//! Its verdict is only worth something as long as these hold: it must pass what is good, and find each anomaly at the
//! weakest level that forbids it and at no weaker one.

#![allow(clippy::unwrap_used, reason = "a test ends where an assumption fails")]

mod simulator;

use atlas_checker::history::{CellName, Client, Header, Op, Status, Transaction};
use atlas_checker::second_opinion::{Comparison, NotAppend, Opinion, Verdict, ask};
use atlas_checker::value::encode_list;
use atlas_checker::{History, Options, check, second_opinion};
use simulator::workloads::Workload;
use simulator::{Bug, Settings, run};

const SEEDS: u64 = 15;

/// A transaction of a fixture: what it read and appended, in order, and how it ended.
struct Fixture {
    read_ts: u64,
    commit_ts: u64,
    status: Status,
    ops: Vec<(&'static str, Step)>,
}

enum Step {
    Reads(Vec<i64>),
    /// The list it leaves; its last element is the one that was appended.
    Leaves(Vec<i64>),
}
use Step::{Leaves, Reads};

fn committed(read_ts: u64, commit_ts: u64, ops: Vec<(&'static str, Step)>) -> Fixture {
    Fixture { read_ts, commit_ts, status: Status::Committed, ops }
}

/// All of them overlap in real time, so that only the lists order them.
fn history(serializable: bool, fixtures: Vec<Fixture>) -> History {
    let serializable_tables = if serializable { vec!["lists".to_owned()] } else { Vec::new() };
    let header = Header { workload: "append".into(), serializable_tables, ..Header::default() };
    let transactions = fixtures.into_iter().enumerate().map(|(client, fixture)| {
        let cell = |key: &str| CellName::new("lists", key, "list");
        let ops = fixture.ops.into_iter().map(|(key, step)| match step {
            Reads(list) if list.is_empty() => Op::Get { cell: cell(key), value: None },
            Reads(list) => Op::Get { cell: cell(key), value: Some(encode_list(&list).into()) },
            Leaves(list) => Op::Put { cell: cell(key), value: encode_list(&list).into() },
        });
        let ops: Vec<Op> = ops.collect();
        let wrote = ops.iter().any(|op| matches!(op, Op::Put { .. }));
        Transaction {
            line: 0,
            client: Client::Number(client as u64),
            status: fixture.status,
            start_ts: fixture.read_ts,
            read_ts: fixture.read_ts,
            tentative: false,
            commit_ts: wrote.then_some(fixture.commit_ts),
            begin_ns: client as u64,
            end_ns: 1000 + client as u64,
            reason: None,
            ops,
        }
    });
    History { header, transactions: transactions.collect(), final_state: None }
}

fn opinion(history: &History, model: &str) -> Opinion {
    ask(history, model).expect("it is an append history")
}

fn expect(history: &History, holds: &[&str], broken: &[(&str, &str)]) {
    for model in holds {
        let opinion = opinion(history, model);
        assert_eq!(opinion.verdict, Verdict::Holds, "{opinion}");
    }
    for (model, kind) in broken {
        let opinion = opinion(history, model);
        assert_eq!(opinion.verdict, Verdict::Broken, "{model}");
        assert!(opinion.kinds.iter().any(|found| found == kind), "{model}: wanted {kind}, got {:?}", opinion.kinds);
    }
}

#[test]
fn write_skew_breaks_serializability_and_not_snapshot_isolation() {
    let skew = history(
        true,
        vec![
            committed(1, 4, vec![("x", Reads(vec![])), ("y", Reads(vec![])), ("x", Leaves(vec![1]))]),
            committed(2, 5, vec![("x", Reads(vec![])), ("y", Reads(vec![])), ("y", Leaves(vec![2]))]),
        ],
    );
    expect(&skew, &["snapshot-isolation", "strong-snapshot-isolation"], &[("serializable", "G2-item")]);
    assert_eq!(second_opinion(&skew, &[]).unwrap().compare(&check(&skew, &Options::default())), Comparison::Agree);
}

#[test]
fn a_lost_update_breaks_snapshot_isolation() {
    let lost = history(
        false,
        vec![
            committed(1, 4, vec![("x", Reads(vec![])), ("x", Leaves(vec![1]))]),
            committed(2, 5, vec![("x", Reads(vec![])), ("x", Leaves(vec![2]))]),
            committed(7, 8, vec![("x", Reads(vec![2]))]),
        ],
    );
    expect(&lost, &["read-committed"], &[("snapshot-isolation", "lost-update"), ("serializable", "lost-update")]);
    assert_eq!(second_opinion(&lost, &[]).unwrap().compare(&check(&lost, &Options::default())), Comparison::Agree);
}

#[test]
fn read_skew_breaks_snapshot_isolation_and_not_read_committed() {
    let skew = history(
        false,
        vec![
            committed(
                1,
                2,
                vec![("x", Reads(vec![])), ("x", Leaves(vec![1])), ("y", Reads(vec![])), ("y", Leaves(vec![2]))],
            ),
            committed(3, 4, vec![("x", Reads(vec![])), ("y", Reads(vec![2]))]),
        ],
    );
    expect(&skew, &["read-committed"], &[("snapshot-isolation", "G-single-item")]);
    assert_eq!(second_opinion(&skew, &[]).unwrap().compare(&check(&skew, &Options::default())), Comparison::Agree);
}

#[test]
fn an_aborted_read_breaks_read_committed() {
    let mut fixtures = vec![
        committed(1, 2, vec![("x", Reads(vec![])), ("x", Leaves(vec![1]))]),
        committed(3, 4, vec![("x", Reads(vec![1])), ("y", Reads(vec![])), ("y", Leaves(vec![3]))]),
        committed(5, 6, vec![("y", Reads(vec![3]))]),
    ];
    fixtures[0].status = Status::Aborted;
    expect(&history(false, fixtures), &[], &[("read-committed", "G1a")]);
}

#[test]
fn a_stale_read_breaks_only_what_promises_real_time() {
    let mut stale = history(
        false,
        vec![
            committed(1, 2, vec![("x", Reads(vec![])), ("x", Leaves(vec![1]))]),
            committed(3, 4, vec![("x", Reads(vec![]))]),
            committed(5, 6, vec![("x", Reads(vec![1]))]),
        ],
    );
    (stale.transactions[0].begin_ns, stale.transactions[0].end_ns) = (0, 1);
    (stale.transactions[1].begin_ns, stale.transactions[1].end_ns) = (5, 6);
    let broken = [("strong-snapshot-isolation", "G-single-item-realtime")];
    expect(&stale, &["snapshot-isolation", "serializable"], &broken);
}

/// One that did not commit after all must not order others by what it read.
#[test]
fn an_unknown_one_that_nobody_saw_makes_no_skew() {
    let mut fixtures = vec![
        committed(1, 4, vec![("x", Reads(vec![])), ("y", Reads(vec![])), ("x", Leaves(vec![1]))]),
        committed(2, 5, vec![("x", Reads(vec![])), ("y", Reads(vec![])), ("y", Leaves(vec![2]))]),
        committed(7, 8, vec![("x", Reads(vec![1])), ("y", Reads(vec![]))]),
    ];
    fixtures[1].status = Status::Unknown;
    expect(&history(true, fixtures), &["serializable", "strict-serializable"], &[]);
}

#[test]
fn a_good_store_holds_in_both_opinions() {
    for serializable in [true, false] {
        for seed in 0..SEEDS {
            let history = run(Settings { serializable, ..Settings::new(Workload::Append, seed) }).history;
            let opinion = second_opinion(&history, &[]).unwrap();
            let report = check(&history, &Options::default());
            assert_eq!(opinion.compare(&report), Comparison::Agree, "seed {seed}\n{opinion}\n{report}");
            assert_eq!(opinion.verdict, Verdict::Holds);
        }
    }
}

/// Snapshot isolation alone is not serializable, and the other checker sees it by itself.
#[test]
fn snapshot_isolation_is_not_taken_for_more() {
    let broken = (0..SEEDS).filter(|seed| {
        let history = run(Settings { serializable: false, ..Settings::new(Workload::Append, *seed) }).history;
        opinion(&history, "serializable").verdict == Verdict::Broken
    });
    assert!(broken.count() > 0);
}

#[test]
fn both_find_a_store_that_breaks_a_rule() {
    let bugs = [Bug::SkipConflictCheck, Bug::SkipRecheck, Bug::ForgetsCommits, Bug::AbortsLeak, Bug::ReadsTheLatest];
    for bug in bugs {
        let mut agreed = 0;
        for seed in 0..SEEDS {
            // A lost update is what the missing conflict check causes where no recheck finds it.
            let serializable = bug != Bug::SkipConflictCheck;
            let history = run(Settings { bug, serializable, ..Settings::new(Workload::Append, seed) }).history;
            let opinion = second_opinion(&history, &[]).unwrap();
            let report = check(&history, &Options::default());
            let comparison = opinion.compare(&report);
            assert_ne!(comparison, Comparison::OnlyOther, "{bug:?}, seed {seed}\n{opinion}\n{report}");
            agreed += u64::from(comparison == Comparison::Agree && opinion.verdict == Verdict::Broken);
        }
        // It knows no timestamps, so some of what the replay finds is no contradiction to it.
        assert!(agreed * 3 > SEEDS, "{bug:?}: both found it on only {agreed} of {SEEDS} seeds");
    }
}

#[test]
fn other_workloads_and_models_are_refused() {
    let bank = run(Settings::new(Workload::Bank, 0)).history;
    assert!(matches!(second_opinion(&bank, &[]), Err(NotAppend::Operation { .. })));
    let append = run(Settings::new(Workload::Append, 0)).history;
    assert_eq!(ask(&append, "perfect"), Err(NotAppend::Model("perfect".into())));
}
