//! `kill -9` at every step of a commit, while others commit: nothing acknowledged is lost, nothing is there in part.
//!
//! The program starts itself as a child that makes transfers and ends itself by SIGKILL when a commit
//! reaches a given step for the n-th time. The child writes each acknowledged transfer to a file; what it wrote
//! survives it. The parent sees to it that the child died of that signal and nothing else, opens the store, and adds up.

use crate::common::bank::{Bank, Records};
use crate::common::*;
use atlas::Timestamp;
use atlas::config::{AtlasConfig, ByteSize, CommitModeChoice};
use atlas::ops::Operations;
use atlas::sweep::SweepStep;
use atlas::transaction::CommitStep;
use atlas::transaction::sweep_queue::PARTITION;
use rand::Rng;
use rustix::process::{Signal, getpid, kill_process};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What tells the child what to do: `store`, `mode`, `directory`, `namespace`, `round`, `fail point` (or nothing) and
/// `hit`, lines of one.
const ORDERS: &str = "ATLAS_CRASH_ORDERS";
const TASKS: usize = 4;
/// More than any child lives to make.
const TRANSFERS_MAX: usize = 20_000;

fn config(lane: Lane, site: &Site) -> AtlasConfig {
    let mut config = site.config(lane);
    // Small transfers share batches, large ones put their data ahead.
    config.transactions.pipeline_size_max = ByteSize(1024);
    // On a server, who comes next waits for the lease of who was killed.
    config.leader.lease = Duration::from_secs(3);
    config
}

fn acknowledged_in(dir: &Path) -> PathBuf {
    dir.join("acknowledged")
}

// ---- the child

struct Orders {
    lane: Lane,
    site: Site,
    round: usize,
    fail_point: String,
    hit: usize,
}

impl Orders {
    fn given() -> Option<Orders> {
        let orders = std::env::var(ORDERS).ok()?;
        let lines: Vec<&str> = orders.split('\n').collect();
        let kinds = [StoreKind::Memory, StoreKind::Rocksdb, StoreKind::Postgres, StoreKind::Cassandra];
        let kind = kinds.into_iter().find(|kind| format!("{kind:?}") == lines[0]).expect("a store");
        let modes = [CommitModeChoice::Pipeline, CommitModeChoice::StepByStep];
        let mode = modes.into_iter().find(|mode| format!("{mode:?}") == lines[1]).expect("a mode");
        Some(Orders {
            lane: Lane { store: kind, mode, pipeline_size_max: SizeLimit::Default },
            site: Site { kind, dir: lines[2].into(), namespace: lines[3].to_owned() },
            round: lines[4].parse().expect("a round"),
            fail_point: lines[5].to_owned(),
            hit: lines[6].parse().expect("a number of hits"),
        })
    }
}

fn die() -> ! {
    kill_process(getpid(), Signal::KILL).expect("a process may end itself");
    // Nothing more happens on this thread, however long the signal takes.
    loop {
        std::thread::park();
    }
}

/// The child's life, when this program is started as one; otherwise there is nothing to do. The program must have a test
/// `child` that calls this.
pub(crate) fn child() {
    let Some(orders) = Orders::given() else { return };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    runtime.block_on(async {
        let bank = Bank::open(&orders.site.open_atlas(config(orders.lane, &orders.site)).await).await;
        if orders.fail_point == SweepStep::PartitionsDropped.fail_point() {
            // As much time goes by as a partition holds.
            for _ in 0..PARTITION / 10_000 + 1 {
                bank.atlas.fresh_timestamps(10_000).await.expect("numbers are issued");
            }
        }
        if !orders.fail_point.is_empty() {
            let left = AtomicUsize::new(orders.hit);
            let reached = move || {
                if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                    die();
                }
            };
            fail::cfg_callback(orders.fail_point.as_str(), reached).expect("fail points are built in");
        }
        let file = OpenOptions::new().create(true).append(true).open(acknowledged_in(&orders.site.dir));
        let file = Arc::new(file.expect("the file can be made"));
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let (bank, file, round) = (bank.clone(), file.clone(), orders.round);
                tokio::spawn(async move {
                    for transfer in 0..TRANSFERS_MAX {
                        let id = format!("{round:03}-{task}-{transfer:05}");
                        match bank.transfer(&id, transfer % 3 == 1).await {
                            // One call, so that a line is there or not.
                            Ok(commit_ts) => {
                                (&*file).write_all(format!("{id} {commit_ts}\n").as_bytes()).expect("a line")
                            }
                            Err(error) if error.is_retriable() => (),
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("the task ends");
        }
    });
}

// ---- the parent

/// What every round has to find again.
#[derive(Default)]
struct Known {
    acknowledged: BTreeMap<String, Timestamp>,
    records: Records,
    last_ts: Timestamp,
}

fn run_child(lane: Lane, site: &Site, round: usize, step: Option<&'static str>, hit: usize) {
    let fail_point = step.unwrap_or_default();
    let orders = format!(
        "{:?}\n{:?}\n{}\n{}\n{round}\n{fail_point}\n{hit}",
        lane.store,
        lane.mode,
        site.dir.display(),
        site.namespace
    );
    let said = format!("{lane:?}, round {round}, {step:?}, hit {hit}");
    let mut child = Command::new(std::env::current_exe().expect("this program has a file"))
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(ORDERS, orders)
        .stdout(Stdio::null())
        .spawn()
        .expect("the child starts");
    if step.is_none() {
        // No step at all: somewhere in the middle, after it has acknowledged a few.
        let lines =
            || std::fs::read(acknowledged_in(&site.dir)).map_or(0, |file| file.iter().filter(|b| **b == b'\n').count());
        let enough = lines() + hit;
        while lines() < enough && child.try_wait().expect("the child can be waited for").is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("the child can be killed");
    }
    let status = bounded::end_of(&mut child, &said);
    assert_eq!(status.signal(), Some(9), "{said}: the child ended otherwise: {status}");
}

async fn look(lane: Lane, site: &Site, known: &mut Known, said: &str) {
    let file = std::fs::read_to_string(acknowledged_in(&site.dir)).unwrap_or_default();
    for line in file.lines() {
        let (id, commit_ts) = line.split_once(' ').expect("a line has two words");
        known.acknowledged.insert(id.to_owned(), Timestamp::saturating(commit_ts.parse().expect("a timestamp")));
    }
    let atlas = site.open_atlas(config(lane, site)).await;
    let last_ts = atlas.fresh_timestamp().await.expect("a timestamp is issued");
    assert!(last_ts > known.last_ts, "{said}: time went back");
    assert!(known.acknowledged.values().all(|commit_ts| *commit_ts < last_ts), "{said}: time went back");
    known.last_ts = last_ts;
    let bank = Bank::open(&atlas).await;
    let records = bank.check().await;
    for id in known.acknowledged.keys() {
        assert!(records.contains_key(id), "{said}: {id} was acknowledged and is lost");
    }
    for (id, record) in &known.records {
        assert_eq!(records.get(id), Some(record), "{said}: {id} was there after an earlier crash");
    }
    assert_eq!(bank.check().await, records, "{said}: two looks differ");
    // And it goes on, over the same accounts, without bringing up anything that was not there.
    for attempt in 0.. {
        match bank.transfer(&format!("after {}", known.last_ts), attempt % 2 == 1).await {
            Ok(_) => break,
            Err(error) if error.is_retriable() && attempt < 100 => (),
            Err(error) => panic!("{said}: the store does not go on: {error}"),
        }
    }
    // What the crash left of a sweep is done again, and changes nothing that can be read.
    let before = bank.check().await;
    for attempt in 0.. {
        match atlas.sweeper().round().await {
            Ok(()) => break,
            Err(error) if error.is_retriable() && attempt < 100 => (),
            Err(error) => panic!("{said}: sweep does not go on: {error}"),
        }
    }
    known.records = bank.check().await;
    assert_eq!(known.records, before, "{said}: sweep took what can be read");
    assert!(records.iter().all(|(id, record)| known.records.get(id) == Some(record)));
    assert_eq!(known.records.len(), records.len() + 1, "{said}: something came up later");
    atlas.close().await.expect("the store closes");
}

/// So many crashes at each step of a commit, and as many anywhere: on as many stores at the same time, each of which has one
/// of each. Sweep runs beside it.
pub(crate) fn crash_at_every_step(lane: Lane, times: usize) {
    let steps = CommitStep::ALL.into_iter().map(|step| Some(step.fail_point())).chain([None]);
    crash_at(lane, &steps.collect::<Vec<_>>(), times, 60);
}

/// So many crashes at each step of a sweep, likewise. `has_floor`: entries of `_transactions` go on this store.
pub(crate) fn crash_at_every_step_of_a_sweep(lane: Lane, times: usize, has_floor: bool) {
    let steps = SweepStep::ALL.into_iter().filter(|step| has_floor || *step != SweepStep::FloorRaised);
    crash_at(lane, &steps.map(|step| Some(step.fail_point())).collect::<Vec<_>>(), times, 4);
}

fn crash_at(lane: Lane, steps: &[Option<&'static str>], times: usize, hits: usize) {
    if Orders::given().is_some() {
        return; // The child runs its own test only.
    }
    let stores = (0..times).map(|_| {
        let steps = steps.to_vec();
        std::thread::spawn(move || crash_once_at(lane, &steps, hits))
    });
    for store in stores.collect::<Vec<_>>() {
        if let Err(panic) = store.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

fn crash_once_at(lane: Lane, steps: &[Option<&'static str>], hits: usize) {
    let place = Place::new(lane.store);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    let mut known = Known::default();
    let mut round = 0;
    for step in steps.iter().copied() {
        // What is done seldom is not waited for so often.
        let is_rare = [SweepStep::PartitionsDropped, SweepStep::FloorRaised].map(SweepStep::fail_point);
        let hits = if step.is_some_and(|step| is_rare.contains(&step)) { 2 } else { hits };
        let hit = rand::rng().random_range(1..hits);
        let said = format!("round {round}, {step:?}, hit {hit}");
        run_child(lane, &place, round, step, hit);
        runtime.block_on(look(lane, &place, &mut known, &said));
        round += 1;
    }
    assert!(known.acknowledged.len() > round, "the children did their work: {}", known.acknowledged.len());
    eprintln!("{round} crashes, {} acknowledged transfers, none lost", known.acknowledged.len());
}
