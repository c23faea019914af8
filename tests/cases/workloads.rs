//! Every workload while the store fails by chance, judged by the checker.
//!
//! A run counts only if enough happened in it: commits, conflicts where the workload has any, and faults.

use crate::common::chaos::Chaos;
use crate::common::faulty::Faulty;
use crate::common::*;
use atlas::Cell;
use atlas::ops::{Operations, ScanOptions};
use atlas::workload::{self, Kind, Plan};
use atlas_checker::second_opinion::Verdict;
use atlas_checker::{History, Minimums, Options, check, second_opinion};
use futures::TryStreamExt;
use std::io::BufReader;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Of a thousand calls to the store so many go wrong.
const FAULTS_PER_MILLE: u32 = 10;
const TASKS: u32 = 12;
/// The longest that a call is held up where one takes microseconds: a holder of locks that waits for it keeps all the others
/// waiting, and shows in a fraction of the time what it can show.
const LATE_MAX_IN_MEMORY: Duration = Duration::from_millis(10);

/// So many commits, or what the environment wants of a longer run.
fn wanted(commits: u64) -> u64 {
    std::env::var("ATLAS_WORKLOAD_COMMITS").ok().and_then(|commits| commits.parse().ok()).unwrap_or(commits)
}

macro_rules! workload_lane {
    ($name:ident, $lane:ident, $commits:expr) => {
        mod $name {
            use crate::common::$lane;
            use crate::workloads::keeps_its_promise;
            use atlas::workload::Kind;

            workload_lane!($lane, $commits, [
                bank: Bank,
                write_skew: WriteSkew,
                ring: Ring,
                transient_rows: TransientRows,
                single_busy_cell: SingleBusyCell,
                single_busy_cell_touch: SingleBusyCellTouch,
                multiple_busy_cells: MultipleBusyCells,
                write_once_delete_once: WriteOnceDeleteOnce,
                random: Random,
                append: Append,
            ]);
        }
    };
    ($lane:ident, $commits:expr, [$($case:ident: $kind:ident,)*]) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                keeps_its_promise($lane, Kind::$kind, $commits).await;
            }
        )*
    };
}

pub(crate) async fn keeps_its_promise(lane: Lane, kind: Kind, commits: u64) {
    let commits = wanted(commits);
    let seed = rand::random();
    // Shown when the test fails.
    eprintln!("seed {seed}");
    let place = Place::new(lane.store);
    let faulty = Faulty::new(place.open().await);
    let mut config = place.config(lane);
    // Sweep fails with the store, and must not rest for longer than the run takes.
    config.sweep.back_off_max = config.sweep.interval.max(Duration::from_millis(500));
    let atlas = atlas::Atlas::with_store(config, Arc::new(faulty.clone())).await.expect("the store opens");
    let mut chaos = Chaos::new(seed, FAULTS_PER_MILLE);
    if lane.store == StoreKind::Memory {
        chaos = chaos.with_latency(Duration::ZERO, LATE_MAX_IN_MEMORY);
    }
    let faults = chaos.injected();
    let path = place.dir.join("history.jsonl");
    let plan = Plan {
        // On a cluster a transaction takes long, and of many that are in each other's way most are done in vain.
        tasks: if lane.store == StoreKind::Cassandra { TASKS / 2 } else { TASKS },
        time: None,
        commits: Some(commits),
        seed,
        history: Some(path.clone()),
        faults: Some(faults.clone()),
        keep: true,
        ..Plan::new(kind)
    };
    faulty.unleash(chaos);
    let report = workload::run(Arc::new(atlas.clone()), &plan, atlas::ops::no_progress()).await;
    faulty.heal();
    let report = report.expect("the workload runs");
    let swept = atlas.sweep_status().await.expect("a status").totals;
    assert!(
        swept.deleted > 0,
        "{kind} on {lane:?}, seed {seed}: nothing was swept, so nothing is shown of it: {swept:?}"
    );
    let history = History::read(BufReader::new(std::fs::File::open(&path).expect("there is a history")));
    let history = history.expect("the history can be read");
    let minimums = Minimums {
        committed: commits,
        committed_writers: commits / 4,
        // Nobody is in anybody's way where each cell has one writer.
        conflicts: if kind == Kind::WriteOnceDeleteOnce { 0 } else { commits / 200 },
        unknown: 0,
        faults: commits / 500,
        invariants: if kind == Kind::Random { 0 } else { commits / 20 },
        final_state: true,
    };
    let judged = check(&history, &Options { minimums, ..Options::default() });
    if !judged.is_clean() {
        let kept = std::env::temp_dir().join(format!("atlas-{kind}-{seed}.jsonl"));
        let _ = std::fs::copy(&path, &kept);
        panic!("{kind} on {lane:?}, seed {seed}, history kept in {}:\n{judged}", kept.display());
    }
    if kind == Kind::Append {
        let opinion = second_opinion(&history, &[]).expect("an append workload has a second opinion");
        assert_eq!(opinion.verdict, Verdict::Holds, "seed {seed}: {opinion:?}");
    }
    eprintln!(
        "{kind}: {} commits, {} conflicts, {} aborted in all, {} unknown, {} faults, {} versions swept, in {} ms",
        report.committed,
        report.conflicts,
        report.aborted,
        report.unknown,
        faults.load(Ordering::Relaxed),
        swept.deleted,
        report.took_ms
    );
    atlas.close().await.expect("the store closes");
    if lane.store != StoreKind::Memory {
        stands_after_a_restart(&place, lane, kind, &history).await;
    }
}

/// What the run left is there for the next process as well: durable, and not only remembered by the one that wrote it.
async fn stands_after_a_restart(place: &Place, lane: Lane, kind: Kind, history: &History) {
    let atlas = place.open_atlas(place.config(lane)).await;
    let left = history.final_state.as_ref().expect("the history ends with the final state");
    let tables = atlas.tables(false).await.expect("the tables can be listed");
    let tx = atlas.begin().await.expect("it begins");
    for (name, rows) in &left.tables {
        let stored = tables.iter().map(|found| &found.table).find(|table| {
            table.name().starts_with(&format!("workload.{kind}.")) && table.name().ends_with(&format!(".{name}"))
        });
        let cells =
            tx.scan(stored.expect("the run has left it"), ScanOptions::default()).await.expect("it can be read");
        let cells: Vec<(Cell, bytes::Bytes)> = cells.try_collect().await.expect("it can be read");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let found = cells.iter().map(|(cell, value)| (text(&cell.row), text(&cell.column), text(value)));
        let wanted = rows.iter().map(|(row, column, value)| (row.to_string(), column.to_string(), value.to_string()));
        assert!(found.eq(wanted), "{kind} on {lane:?}: table '{name}' is not as the run has left it");
    }
    tx.abort();
    atlas.close().await.expect("the store closes");
}
