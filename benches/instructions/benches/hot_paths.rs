//! Instructions of the hot paths, beside what they took when the figures below were recorded.
//!
//! Counted by valgrind, so that neither the disk nor what else the machine does has a part in it. Waiting, contention and
//! caches have none either: what those cost is measured by the other benchmarks.
//!
//! Reads of the store take one of two numbers by chance, six percent apart, wherever that comes from; the greater is recorded.
//!
//! `scripts/bench instructions` fails if a path takes more than it did, but for a small allowance. A change that is worth
//! its instructions changes the figure.

use atlas::ops::{Operations, ScanOptions};
use atlas_instructions::{CELLS, Store, cell, value};
use futures::TryStreamExt;
use gungraun::{Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use std::hint::black_box;

/// Read by `scripts/bench`, which has other compilers' instructions told and not judged.
#[expect(dead_code, reason = "it is for the script")]
const RECORDED_WITH: &str = "rustc 1.95.0 (59807616e 2026-04-14)";
/// How often each path is taken.
const TIMES: u64 = 100;
/// Percent over the recorded figure that are no news: what the C library chooses for a processor, hash seeds, where the build lies.
const ALLOWANCE: u64 = 12;

fn recorded(instructions_each: u64, times: u64) -> LibraryBenchmarkConfig {
    let limit = instructions_each * times * (100 + ALLOWANCE) / 100;
    let mut config = LibraryBenchmarkConfig::default();
    if option_env!("ATLAS_INSTRUCTIONS_UNJUDGED").is_some() {
        return config;
    }
    config.tool(Callgrind::default().hard_limits([(EventKind::Ir, limit)]).clone());
    config
}

#[library_benchmark(config = recorded(1_760, TIMES))]
#[bench::usual(Store::remembered())]
fn begin_and_end(store: Store) -> Store {
    store.runtime.block_on(async {
        for _ in 0..TIMES {
            let _ = black_box(store.atlas.begin().await.expect("it begins"));
        }
    });
    store
}

#[library_benchmark(config = recorded(4_370, TIMES))]
#[bench::usual(Store::remembered())]
fn read_from_memory(store: Store) -> Store {
    read(store)
}

#[library_benchmark(config = recorded(7_283, TIMES))]
#[bench::usual(Store::forgetful())]
fn read_from_store(store: Store) -> Store {
    read(store)
}

fn read(store: Store) -> Store {
    store.runtime.block_on(async {
        for number in 0..TIMES {
            let tx = store.atlas.begin().await.expect("it begins");
            black_box(tx.get(&store.table, &cell(number)).await.expect("a read"));
        }
    });
    store
}

// Two reads and two writes.
#[library_benchmark(config = recorded(49_740, TIMES))]
#[bench::usual(Store::remembered())]
fn transfer(store: Store) -> Store {
    store.runtime.block_on(async {
        for number in 0..TIMES {
            let tx = store.atlas.begin().await.expect("it begins");
            let cells = [cell(number), cell(CELLS - 1 - number)];
            black_box(tx.get_many(&store.table, &cells).await.expect("reads"));
            for cell in cells {
                tx.put(&store.table, cell, value(number)).await.expect("a write");
            }
            tx.commit().await.expect("a commit");
        }
    });
    store
}

// By the cell.
#[library_benchmark(config = recorded(13_000, CELLS))]
#[bench::usual(Store::remembered())]
fn load(store: Store) -> Store {
    store.runtime.block_on(async {
        let tx = store.atlas.begin().await.expect("it begins");
        for number in CELLS..2 * CELLS {
            tx.put(&store.table, cell(number), value(number)).await.expect("a write");
        }
        tx.commit().await.expect("a commit");
    });
    store
}

// By the row.
#[library_benchmark(config = recorded(1_080, CELLS))]
#[bench::usual(Store::remembered())]
fn scan(store: Store) -> Store {
    store.runtime.block_on(async {
        let tx = store.atlas.begin().await.expect("it begins");
        let mut cells = tx.scan(&store.table, ScanOptions::default()).await.expect("a scan");
        let mut found = 0;
        while let Some(cell) = cells.try_next().await.expect("a cell") {
            black_box(cell);
            found += 1;
        }
        assert_eq!(found, CELLS);
    });
    store
}

#[library_benchmark(config = recorded(500, TIMES))]
#[bench::usual(Store::remembered())]
fn timestamps(store: Store) -> Store {
    store.runtime.block_on(async {
        for _ in 0..TIMES {
            black_box(store.atlas.fresh_timestamp().await.expect("a number"));
        }
    });
    store
}

library_benchmark_group!(
    name = hot_paths,
    benchmarks = [begin_and_end, read_from_memory, read_from_store, transfer, load, scan, timestamps]
);

main!(library_benchmark_groups = hot_paths);
