//! Random interleavings of a few transactions against a model of snapshot isolation.
//!
//! The model is a list of states, a state for each commit, and what each open transaction has written over the state
//! it began with. It knows nothing of timestamps, entries, locks or stores.
//!
//! A failure prints the shortest interleaving that still fails, and the seed; `ATLAS_MODEL_SEED=… cargo test` runs it
//! again.

use crate::common::*;
use atlas::ops::ScanOptions;
use atlas::schema::ConflictHandler;
use atlas::transaction::Transaction;
use atlas::{Atlas, Cell, Error, RowRange, TableRef, Timestamp};
use bytes::Bytes;
use futures::TryStreamExt;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

const TRANSACTIONS: usize = 4;
const ROWS: usize = 3;
const COLUMNS: usize = 2;

/// A cell: its place in one of the tables.
type Place = (usize, usize, usize);

/// The tables, by handler.
const HANDLERS: [ConflictHandler; 2] = [ConflictHandler::RetryOnWriteWriteCell, ConflictHandler::RetryOnValueChanged];

#[derive(Clone, Debug)]
enum Step {
    Begin(usize),
    /// Reads the state as of one of the commits so far.
    ReadPast(usize),
    Get(usize, Place),
    Scan {
        transaction: usize,
        table: usize,
        reverse: bool,
        limit: Option<u64>,
        page_size: usize,
    },
    Put(usize, Place, u8),
    /// Writes what it reads.
    Touch(usize, Place),
    Delete(usize, Place),
    Commit(usize),
    Abort(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let tx = || 0..TRANSACTIONS;
    let place = || (0..HANDLERS.len(), 0..ROWS, 0..COLUMNS);
    let step = prop_oneof![
        3 => tx().prop_map(Step::Begin),
        1 => (0usize..100).prop_map(Step::ReadPast),
        3 => (tx(), place()).prop_map(|(tx, place)| Step::Get(tx, place)),
        2 => (tx(), 0..HANDLERS.len(), any::<bool>(), proptest::option::of(0u64..4), 0usize..4).prop_map(
            |(transaction, table, reverse, limit, page_size)| Step::Scan { transaction, table, reverse, limit, page_size }
        ),
        6 => (tx(), place(), 0u8..3).prop_map(|(tx, place, value)| Step::Put(tx, place, value)),
        2 => (tx(), place()).prop_map(|(tx, place)| Step::Touch(tx, place)),
        2 => (tx(), place()).prop_map(|(tx, place)| Step::Delete(tx, place)),
        4 => tx().prop_map(Step::Commit),
        1 => tx().prop_map(Step::Abort),
    ];
    proptest::collection::vec(step, 1..60)
}

type State = BTreeMap<Place, u8>;

/// A transaction of the model.
struct Open {
    /// How many began before it.
    began: usize,
    /// How many commits it sees.
    sees: usize,
    writes: BTreeMap<Place, Option<u8>>,
}

/// The commits so far.
struct Model {
    /// Step by step, the newest version of a cell is that of the writer who began last; in the pipeline it is that of
    /// the last commit. The two differ where a touch committed after a later one did, and then in nothing but whether
    /// a change that began between the two conflicts with it: the value is the same. Both are allowed.
    newest_by_start: bool,
    began: usize,
    /// State `n` is what the first `n` commits made.
    states: Vec<State>,
    /// What each commit wrote.
    commits: Vec<Open>,
    commit_timestamps: Vec<Timestamp>,
}

impl Model {
    fn seen(&self, open: &Open) -> State {
        let mut state = self.states[open.sees].clone();
        apply(&mut state, &open.writes);
        state
    }

    /// First committer wins; where values are compared, a touch is no conflict if what stands is what it wrote.
    fn conflicts(&self, open: &Open) -> bool {
        open.writes.iter().any(|(place, written)| {
            let mut writers = self.commits.iter().enumerate().filter(|(_, commit)| commit.writes.contains_key(place));
            let newest = match self.newest_by_start {
                true => writers.max_by_key(|(_, commit)| commit.began),
                false => writers.next_back(),
            };
            let Some((_, newest)) = newest.filter(|(number, _)| *number >= open.sees) else { return false };
            let last = &newest.writes[place];
            let touch = self.states[open.sees].get(place).copied() == *written;
            !(HANDLERS[place.0].compares_values() && touch && last == written)
        })
    }

    fn commit(&mut self, open: Open, commit_ts: Timestamp) {
        let mut state = self.states.last().expect("there is the empty state").clone();
        apply(&mut state, &open.writes);
        self.states.push(state);
        self.commits.push(open);
        self.commit_timestamps.push(commit_ts);
    }
}

fn apply(state: &mut State, writes: &BTreeMap<Place, Option<u8>>) {
    for (place, value) in writes {
        match value {
            Some(value) => state.insert(*place, *value),
            None => state.remove(place),
        };
    }
}

/// Where the cells of one interleaving lie: the store is shared by all of them.
struct Ground<'a> {
    atlas: &'a Atlas,
    tables: &'a [TableRef],
    prefix: String,
    newest_by_start: bool,
}

impl Ground<'_> {
    fn cell(&self, (_, row, column): Place) -> Cell {
        Cell::copy_from(format!("{}{row}", self.prefix), format!("{column}"))
    }

    fn table(&self, place: Place) -> &TableRef {
        &self.tables[place.0]
    }

    async fn get(&self, tx: &Transaction, place: Place) -> Option<u8> {
        let found = tx.get(self.table(place), &self.cell(place)).await.expect("a cell can be read");
        found.map(|bytes| bytes[0])
    }

    async fn scan(
        &self,
        tx: &Transaction,
        table: usize,
        reverse: bool,
        limit: Option<u64>,
        page_size: usize,
    ) -> Vec<(Cell, u8)> {
        let rows = RowRange::prefix(self.prefix.clone());
        let options = ScanOptions { rows, reverse, limit, page_size, ..ScanOptions::default() };
        plain(scan_both_ways(tx, &self.tables[table], options).await)
    }

    /// What a table holds for who reads the past: what a scan gives and what it lends, each of which may come too late.
    async fn past(&self, tx: &Transaction, table: usize) -> [Result<Vec<(Cell, Bytes)>, Error>; 2] {
        let rows = RowRange::prefix(self.prefix.clone());
        let options = ScanOptions { rows, ..ScanOptions::default() };
        let given: Result<Vec<(Cell, Bytes)>, Error> = match tx.scan(&self.tables[table], options.clone()).await {
            Ok(cells) => cells.try_collect().await,
            Err(error) => Err(error),
        };
        [given, lent_cells(tx, &self.tables[table], options, usize::MAX).await]
    }

    fn expected(&self, state: &State, table: usize, reverse: bool, limit: Option<u64>) -> Vec<(Cell, u8)> {
        let of_table = state.iter().filter(|(place, _)| place.0 == table);
        let mut cells: Vec<(Cell, u8)> = of_table.map(|(place, value)| (self.cell(*place), *value)).collect();
        if reverse {
            cells.reverse();
        }
        cells.truncate(limit.map_or(usize::MAX, |limit| limit as usize));
        cells
    }
}

fn plain(cells: Vec<(Cell, Bytes)>) -> Vec<(Cell, u8)> {
    cells.into_iter().map(|(cell, value)| (cell, value[0])).collect()
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, step: &Step, found: T, expected: T) -> Result<(), TestCaseError> {
    if found == expected {
        return Ok(());
    }
    Err(TestCaseError::fail(format!("{what} at {step:?}: found {found:?}, expected {expected:?}")))
}

async fn run(ground: &Ground<'_>, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut model = Model {
        newest_by_start: ground.newest_by_start,
        began: 0,
        states: vec![State::new()],
        commits: Vec::new(),
        commit_timestamps: Vec::new(),
    };
    let mut open: BTreeMap<usize, (Transaction, Open)> = BTreeMap::new();
    for step in steps {
        match step {
            Step::Begin(number) => {
                let tx = ground.atlas.begin().await.expect("a transaction begins");
                model.began += 1;
                let of_model = Open { began: model.began, sees: model.commits.len(), writes: BTreeMap::new() };
                open.insert(*number, (tx, of_model));
            }
            Step::ReadPast(commit) => {
                if model.commits.is_empty() {
                    continue;
                }
                let commit = commit % model.commits.len();
                let options =
                    atlas::ops::BeginOptions { at: Some(model.commit_timestamps[commit]), ..Default::default() };
                let tx = ground.atlas.transactions().begin(options).await.expect("the past can be read");
                // Sweep goes on meanwhile, but leaves what can be seen at and above the snapshot of an open transaction.
                let is_kept = open.values().any(|(_, of_model)| of_model.sees <= commit);
                for table in 0..HANDLERS.len() {
                    let expected = ground.expected(&model.states[commit], table, false, None);
                    for found in ground.past(&tx, table).await {
                        match found {
                            Ok(cells) => same("the past", step, plain(cells), expected.clone())?,
                            Err(Error::TooOld { .. }) if !is_kept => (),
                            Err(error) => return Err(TestCaseError::fail(format!("the past at {step:?}: {error}"))),
                        }
                    }
                }
            }
            Step::Get(number, place) => {
                let Some((tx, of_model)) = open.get(number) else { continue };
                let expected = model.seen(of_model).get(place).copied();
                same("a read", step, ground.get(tx, *place).await, expected)?;
            }
            Step::Scan { transaction, table, reverse, limit, page_size } => {
                let Some((tx, of_model)) = open.get(transaction) else { continue };
                let expected = ground.expected(&model.seen(of_model), *table, *reverse, *limit);
                let found = ground.scan(tx, *table, *reverse, *limit, *page_size).await;
                same("a scan", step, found, expected)?;
            }
            Step::Put(number, place, value) => {
                let Some((tx, of_model)) = open.get_mut(number) else { continue };
                tx.put(ground.table(*place), ground.cell(*place), vec![*value]).await.expect("a write is buffered");
                of_model.writes.insert(*place, Some(*value));
            }
            Step::Touch(number, place) => {
                let Some((tx, of_model)) = open.get_mut(number) else { continue };
                let Some(value) = ground.get(tx, *place).await else { continue };
                tx.put(ground.table(*place), ground.cell(*place), vec![value]).await.expect("a write is buffered");
                of_model.writes.insert(*place, Some(value));
            }
            Step::Delete(number, place) => {
                let Some((tx, of_model)) = open.get_mut(number) else { continue };
                tx.delete(ground.table(*place), ground.cell(*place)).await.expect("a deletion is buffered");
                of_model.writes.insert(*place, None);
            }
            Step::Commit(number) => {
                let Some((tx, of_model)) = open.remove(number) else { continue };
                let conflict = !of_model.writes.is_empty() && model.conflicts(&of_model);
                match tx.commit().await {
                    Ok(Some(commit_ts)) => {
                        same("a conflict", step, false, conflict)?;
                        let last = model.commit_timestamps.last().copied().unwrap_or_default();
                        same("the order of commits", step, commit_ts > last, true)?;
                        model.commit(of_model, commit_ts);
                    }
                    Ok(None) => same("a commit without writes", step, of_model.writes.is_empty(), true)?,
                    Err(Error::Conflict { .. }) => same("a conflict", step, true, conflict)?,
                    Err(error) => return Err(TestCaseError::fail(format!("{step:?}: {error}"))),
                }
            }
            Step::Abort(number) => {
                if let Some((tx, _)) = open.remove(number) {
                    tx.abort();
                }
            }
        }
    }
    // Whoever comes last sees every commit and nothing else, once by cell and once by range.
    let last = Step::Begin(TRANSACTIONS);
    let tx = ground.atlas.begin().await.expect("a transaction begins");
    let state = model.states.last().expect("there is the empty state");
    let places: BTreeSet<Place> = (0..HANDLERS.len())
        .flat_map(|table| (0..ROWS).flat_map(move |row| (0..COLUMNS).map(move |column| (table, row, column))))
        .collect();
    for place in places {
        same("the end", &last, ground.get(&tx, place).await, state.get(&place).copied())?;
    }
    for table in 0..HANDLERS.len() {
        let found = ground.scan(&tx, table, true, None, 1).await;
        same("the end", &last, found, ground.expected(state, table, true, None))?;
    }
    Ok(())
}

/// Runs so many interleavings, one after the other, on one store.
pub(crate) fn check(lane: Lane, cases: u32) {
    let seed: u64 = match std::env::var("ATLAS_MODEL_SEED") {
        Ok(seed) => seed.parse().expect("ATLAS_MODEL_SEED is a number"),
        Err(_) => rand::rng().random(),
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    let store = runtime.block_on(TestStore::open(lane));
    let tables: Vec<TableRef> = HANDLERS.iter().map(|handler| runtime.block_on(store.table(*handler))).collect();
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let number = AtomicU64::new(0);
    let outcome = runner.run(&steps(), |steps| {
        let prefix = format!("{:08}/", number.fetch_add(1, Ordering::Relaxed));
        let ground = Ground { atlas: &store.atlas, tables: &tables, prefix, newest_by_start: !lane.is_pipeline() };
        runtime.block_on(run(&ground, &steps))
    });
    runtime.block_on(async { drop(store) });
    match outcome {
        Ok(()) => (),
        Err(TestError::Fail(reason, steps)) => {
            let steps: Vec<String> = steps.iter().map(|step| format!("    {step:?}")).collect();
            panic!("{reason}\n{}\nagain with ATLAS_MODEL_SEED={seed}", steps.join("\n"));
        }
        Err(TestError::Abort(reason)) => panic!("{reason}; seed {seed}"),
    }
}
