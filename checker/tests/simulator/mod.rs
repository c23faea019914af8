//! A small multi-version store, run single-threaded from a seed, that writes down its own history.
//!
//! It shares no code with the checker but the types of a history. Clients interleave by chance: each begins, waits,
//! and later runs its body and commits, so that snapshots overlap. A [`Bug`] breaks one rule of it.

#![allow(dead_code, reason = "each test program uses a part of it")]

mod transaction;
pub(crate) mod workloads;

use atlas_checker::history::{FinalState, Header, History, Op, Row, Transaction};
use std::collections::BTreeMap;
use workloads::Workload;

/// A generator of numbers that looks random enough: splitmix64.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.next() % 100 < chance
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// A rule that the store breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    None,
    SkipConflictCheck,
    SkipRecheck,
    /// The recheck looks at the cells that were there, not at those that were absent.
    RecheckIgnoresAbsence,
    /// Some acknowledged commits are never applied.
    ForgetsCommits,
    /// Some commits are applied without their last write.
    TornCommits,
    /// Some aborted transactions leave their writes.
    AbortsLeak,
    /// Some reads see more than their snapshot.
    ReadsTheLatest,
    /// Some snapshots lie before commits that were acknowledged.
    OldSnapshots,
}

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) workload: Workload,
    pub(crate) serializable: bool,
    pub(crate) attempts: usize,
    pub(crate) clients: usize,
    pub(crate) seed: u64,
    /// The snapshot is below the watermark, as it is where one leader commits for all; else it is the start.
    pub(crate) by_watermark: bool,
    pub(crate) faults: bool,
    pub(crate) bug: Bug,
}

impl Settings {
    pub(crate) fn new(workload: Workload, seed: u64) -> Self {
        let by_watermark = seed % 2 == 1;
        Self {
            workload,
            serializable: true,
            attempts: 300,
            clients: 6,
            seed,
            by_watermark,
            faults: true,
            bug: Bug::None,
        }
    }
}

/// Why an attempt really ended as it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Truth {
    Committed(u64),
    WriteConflict,
    ReadConflict,
    Fault,
    ReadOnly,
}

pub(crate) struct Run {
    pub(crate) history: History,
    /// Of each transaction of the history.
    pub(crate) truth: Vec<Truth>,
}

#[derive(Clone)]
struct Version {
    commit_ts: u64,
    start_ts: u64,
    value: Option<String>,
}

type Cells = BTreeMap<(String, String), Vec<Version>>;

pub(crate) struct Store {
    pub(crate) rng: Rng,
    settings: Settings,
    header: Header,
    tables: BTreeMap<String, Cells>,
    ts: u64,
    watermark: u64,
    ns: u64,
    tags: u64,
    history: Vec<Transaction>,
    truth: Vec<Truth>,
}

/// An open transaction.
pub(crate) struct Tx<'s> {
    store: &'s mut Store,
    pub(crate) client: usize,
    start_ts: u64,
    read_ts: u64,
    begin_ns: u64,
    ops: Vec<Op>,
    own: BTreeMap<(String, String, String), Option<String>>,
}

struct Open {
    start_ts: u64,
    read_ts: u64,
    begin_ns: u64,
}

/// What a scan is asked for.
#[derive(Clone, Default)]
pub(crate) struct Range {
    pub(crate) start_row: Option<String>,
    pub(crate) end_row: Option<String>,
    pub(crate) start_col: Option<String>,
    pub(crate) end_col: Option<String>,
    pub(crate) reverse: bool,
    /// How many cells to take.
    pub(crate) limit: Option<usize>,
}

pub(crate) fn run(settings: Settings) -> Run {
    let mut store = Store::new(settings.clone());
    store.attempt_setup();
    let mut open: Vec<Option<Open>> = (0..settings.clients).map(|_| None).collect();
    while store.history.len() < settings.attempts {
        let client = store.rng.below(settings.clients);
        match open[client].take() {
            None => open[client] = Some(store.begin()),
            Some(begun) => store.attempt(client, begun, |tx| settings.workload.body(tx)),
        }
    }
    store.finish()
}

impl Store {
    fn new(settings: Settings) -> Self {
        let header = settings.workload.header(settings.serializable);
        let (tables, history, truth) = Default::default();
        let rng = Rng::new(settings.seed);
        Self { rng, settings, header, tables, ts: 0, watermark: 0, ns: 0, tags: 0, history, truth }
    }

    fn attempt_setup(&mut self) {
        let begun = self.begin();
        let faults = std::mem::replace(&mut self.settings.faults, false);
        let bug = std::mem::replace(&mut self.settings.bug, Bug::None);
        let workload = self.settings.workload;
        self.attempt(0, begun, |tx| workload.setup(tx));
        self.settings.faults = faults;
        self.settings.bug = bug;
    }

    fn fresh_ts(&mut self) -> u64 {
        self.ts += 1 + self.rng.below(2) as u64;
        self.ts
    }

    fn tick(&mut self) -> u64 {
        self.ns += 1 + self.rng.below(10) as u64;
        self.ns
    }

    fn begin(&mut self) -> Open {
        let begin_ns = self.tick();
        let watermark = self.watermark;
        let start_ts = self.fresh_ts();
        let mut read_ts = if self.settings.by_watermark { watermark + 1 } else { start_ts };
        if self.settings.bug == Bug::OldSnapshots && self.rng.percent(10) {
            // Not before the set-up, on which the bodies rely.
            read_ts = read_ts.saturating_sub(10).max(8).min(read_ts);
        }
        Open { start_ts, read_ts, begin_ns }
    }

    fn attempt(&mut self, client: usize, begun: Open, body: impl FnOnce(&mut Tx<'_>)) {
        let Open { start_ts, read_ts, begin_ns } = begun;
        let (ops, own) = Default::default();
        let mut tx = Tx { store: self, client, start_ts, read_ts, begin_ns, ops, own };
        body(&mut tx);
        tx.commit();
    }

    fn visible(&self, table: &str, key: &(String, String), below: u64) -> Option<String> {
        let versions = self.tables.get(table)?.get(key)?.iter().filter(|version| version.commit_ts < below);
        let newest = match self.is_free(table) {
            true => versions.max_by_key(|version| version.start_ts),
            false => versions.max_by_key(|version| version.commit_ts),
        };
        newest?.value.clone()
    }

    fn is_free(&self, table: &str) -> bool {
        self.header.no_conflict_tables.iter().any(|free| free == table)
    }

    fn is_serializable(&self, table: &str) -> bool {
        self.header.serializable_tables.iter().any(|known| known == table)
    }

    fn apply(&mut self, start_ts: u64, commit_ts: u64, writes: Vec<((String, String, String), Option<String>)>) {
        for ((table, row, col), value) in writes {
            let versions = self.tables.entry(table).or_default().entry((row, col)).or_default();
            versions.push(Version { commit_ts, start_ts, value });
        }
        self.watermark = self.watermark.max(commit_ts);
    }

    fn finish(mut self) -> Run {
        let mut tables: BTreeMap<String, Vec<Row>> = BTreeMap::new();
        for name in self.settings.workload.tables() {
            tables.insert((*name).to_owned(), Vec::new());
        }
        for (name, cells) in &self.tables {
            let values = cells.keys().filter_map(|key| Some((key, self.visible(name, key, u64::MAX)?)));
            let rows = values.map(|((row, col), value)| (row.as_str().into(), col.as_str().into(), value.into()));
            tables.insert(name.clone(), rows.collect());
        }
        let faults = self.truth.iter().filter(|truth| **truth == Truth::Fault).count() as u64;
        // As a run writes it: of a snapshot above every commit.
        let last_start = self.history.iter().map(|transaction| transaction.start_ts).max().unwrap_or(0);
        let read_ts = Some(last_start.max(self.watermark) + 1);
        let final_state = Some(FinalState { tables, read_ts, faults: Some(faults) });
        let transactions = std::mem::take(&mut self.history);
        Run { history: History { header: self.header, transactions, final_state }, truth: self.truth }
    }
}
