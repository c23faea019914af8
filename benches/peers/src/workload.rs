//! The work that all contenders do: what a transaction consists of, and how clients come by the next one.

use crate::keys::{Keys, Spread};
use crate::shared::accounts::{moved, opening_value, random_bytes};
use anyhow::Result;
use rand::rngs::StdRng;
use rand::{Rng, RngCore};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Cells of one transaction when a store is filled.
pub(crate) const LOAD_BATCH: u64 = 1000;
const CELLS_PER_MULTI_GET: usize = 100;
const ROWS_PER_SCAN: usize = 1000;
/// The longest scan of YCSB E; lengths are uniform.
const ROWS_PER_YCSB_SCAN: usize = 100;
const INSERTED_LEN: usize = 1024;
/// More inserts than are ever on their way at once.
const IN_FLIGHT_MAX: u64 = 256;

/// What is measured in one row of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    Transfer,
    Read,
    MultiGet,
    Scan,
    Update,
    Insert,
    Load,
    Ycsb(Mix),
}

/// The mixes of YCSB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mix {
    /// Half reads, half updates.
    A,
    /// 95 % reads, 5 % updates.
    B,
    /// Reads.
    C,
    /// 95 % reads of what was inserted last, 5 % inserts.
    D,
    /// 95 % short scans, 5 % inserts.
    E,
    /// Half reads, half changes of what was read.
    F,
}

impl Workload {
    pub(crate) const ALL: [Workload; 13] = [
        Workload::Transfer,
        Workload::Read,
        Workload::MultiGet,
        Workload::Scan,
        Workload::Update,
        Workload::Insert,
        Workload::Load,
        Workload::Ycsb(Mix::A),
        Workload::Ycsb(Mix::B),
        Workload::Ycsb(Mix::C),
        Workload::Ycsb(Mix::D),
        Workload::Ycsb(Mix::E),
        Workload::Ycsb(Mix::F),
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Workload::Transfer => "transfer",
            Workload::Read => "read",
            Workload::MultiGet => "multi-get",
            Workload::Scan => "scan",
            Workload::Update => "update",
            Workload::Insert => "insert",
            Workload::Load => "load",
            Workload::Ycsb(Mix::A) => "ycsb-a",
            Workload::Ycsb(Mix::B) => "ycsb-b",
            Workload::Ycsb(Mix::C) => "ycsb-c",
            Workload::Ycsb(Mix::D) => "ycsb-d",
            Workload::Ycsb(Mix::E) => "ycsb-e",
            Workload::Ycsb(Mix::F) => "ycsb-f",
        }
    }

    pub(crate) fn about(self) -> &'static str {
        match self {
            Workload::Transfer => "transactions of 2 reads and 2 writes",
            Workload::Read => "transactions that read one cell",
            Workload::MultiGet => "transactions that read 100 cells",
            Workload::Scan => "transactions that scan 1,000 rows",
            Workload::Update => "transactions that overwrite one cell",
            Workload::Insert => "transactions that insert a value of 1 KiB, unread",
            Workload::Load => "cells of a bulk load, 1,000 in each transaction, counted one by one",
            Workload::Ycsb(Mix::A) => "YCSB A: half reads, half updates",
            Workload::Ycsb(Mix::B) => "YCSB B: 95 % reads, 5 % updates",
            Workload::Ycsb(Mix::C) => "YCSB C: reads",
            Workload::Ycsb(Mix::D) => "YCSB D: 95 % reads of the latest, 5 % inserts",
            Workload::Ycsb(Mix::E) => "YCSB E: 95 % scans of up to 100 rows, 5 % inserts",
            Workload::Ycsb(Mix::F) => "YCSB F: half reads, half read-modify-writes",
        }
    }

    /// True if it writes, so that durability counts.
    pub(crate) fn writes(self) -> bool {
        !matches!(self, Workload::Read | Workload::MultiGet | Workload::Scan | Workload::Ycsb(Mix::C))
    }

    /// True if it picks among the accounts that are there.
    pub(crate) fn picks_keys(self) -> bool {
        !matches!(self, Workload::Insert | Workload::Load)
    }

    /// True if a read may find nothing: a row that another client is about to insert.
    pub(crate) fn may_miss(self) -> bool {
        matches!(self, Workload::Ycsb(Mix::D | Mix::E))
    }

    /// How the keys of this row are spread; mixes of YCSB are what they are.
    pub(crate) fn spreads(self, asked: &[Spread]) -> Vec<Spread> {
        match self {
            Workload::Ycsb(_) => vec![Spread::Zipfian],
            Workload::Insert | Workload::Load => vec![Spread::Uniform],
            _ => asked.to_vec(),
        }
    }
}

/// One transaction.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Transfer(Transfer),
    Read(u64),
    MultiGet(Vec<u64>),
    Scan { first: u64, rows: usize },
    Put { account: u64, value: Vec<u8> },
    ReadModifyWrite { account: u64, value: Vec<u8> },
    PutMany { first: u64, values: Vec<Vec<u8>> },
}

impl Operation {
    /// What rates count of it.
    pub(crate) fn units(&self) -> u64 {
        match self {
            Operation::PutMany { values, .. } => values.len() as u64,
            _ => 1,
        }
    }
}

/// What is in one contender's store. Each has its own: they insert at their own pace.
#[derive(Debug)]
pub(crate) struct Population {
    pub(crate) accounts: u64,
    pub(crate) value_len: usize,
    inserted: AtomicU64,
}

impl Population {
    pub(crate) fn new(accounts: u64, value_len: usize) -> Population {
        Population { accounts, value_len, inserted: AtomicU64::new(0) }
    }

    /// The first of `count` accounts that nobody had before.
    fn grow(&self, count: u64) -> u64 {
        self.accounts + self.inserted.fetch_add(count, Ordering::Relaxed)
    }

    /// The last account that is there for all that is known: those behind it may still be on their way.
    fn last_known(&self) -> u64 {
        let inserted = self.inserted.load(Ordering::Relaxed);
        self.accounts + inserted.saturating_sub(IN_FLIGHT_MAX) - 1
    }

    fn value(&self, random: &mut StdRng) -> Vec<u8> {
        random_bytes(random, self.value_len)
    }
}

/// When clients stop.
#[derive(Debug)]
pub(crate) enum End {
    At(Instant),
    /// After so many transactions.
    After {
        left: AtomicU64,
    },
    /// When this many cells are loaded by transactions of `batch` cells.
    Loaded {
        left: AtomicU64,
        batch: u64,
    },
}

/// What the clients of one contender do in one round.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) workload: Workload,
    pub(crate) keys: Keys,
    pub(crate) population: Arc<Population>,
    pub(crate) end: End,
}

impl Job {
    /// Fills an empty store, or writes every account once more.
    pub(crate) fn fill(accounts: u64, value_len: usize) -> Arc<Job> {
        Arc::new(Job {
            workload: Workload::Load,
            keys: Keys::new(Spread::Uniform, accounts),
            population: Arc::new(Population::new(0, value_len)),
            end: End::Loaded { left: AtomicU64::new(accounts), batch: LOAD_BATCH },
        })
    }

    /// The next transaction; nothing when the round is over.
    pub(crate) fn next(&self, random: &mut StdRng) -> Option<Operation> {
        match &self.end {
            End::At(end) => (Instant::now() < *end).then(|| self.draw(random)),
            End::After { left } => {
                let take = |left: u64| left.checked_sub(1);
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
                Some(self.draw(random))
            }
            End::Loaded { left, batch } => {
                let take = |left: u64| (left > 0).then(|| left.saturating_sub(*batch));
                let left = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
                let count = left.min(*batch);
                let values = (0..count).map(|_| opening_value(random, self.population.value_len)).collect();
                Some(Operation::PutMany { first: self.population.grow(count), values })
            }
        }
    }

    fn draw(&self, random: &mut StdRng) -> Operation {
        let population = &self.population;
        let read = |random: &mut StdRng| Operation::Read(self.keys.draw(random));
        let update =
            |random: &mut StdRng| Operation::Put { account: self.keys.draw(random), value: population.value(random) };
        let insert =
            |random: &mut StdRng| Operation::Put { account: population.grow(1), value: population.value(random) };
        let percent = random.random_range(0..100);
        match self.workload {
            Workload::Transfer => Operation::Transfer(Transfer::draw(random, &self.keys)),
            Workload::Read | Workload::Ycsb(Mix::C) => read(random),
            Workload::MultiGet => {
                Operation::MultiGet((0..CELLS_PER_MULTI_GET).map(|_| self.keys.draw(random)).collect())
            }
            Workload::Scan => {
                let rows = ROWS_PER_SCAN.min(population.accounts as usize);
                Operation::Scan { first: self.first_of(rows, random), rows }
            }
            Workload::Update => update(random),
            // Anywhere in the table, as the identities of new things are, and never twice as far as chance can tell.
            Workload::Insert => {
                Operation::Put { account: random.next_u64() | 1 << 63, value: random_bytes(random, INSERTED_LEN) }
            }
            Workload::Load => unreachable!("a load ends when everything is loaded"),
            Workload::Ycsb(Mix::A) if percent < 50 => read(random),
            Workload::Ycsb(Mix::B) if percent < 95 => read(random),
            Workload::Ycsb(Mix::A | Mix::B) => update(random),
            Workload::Ycsb(Mix::D) if percent < 95 => {
                Operation::Read(population.last_known().saturating_sub(self.keys.rank(random)))
            }
            Workload::Ycsb(Mix::E) if percent < 95 => {
                Operation::Scan { first: self.keys.draw(random), rows: random.random_range(1..=ROWS_PER_YCSB_SCAN) }
            }
            Workload::Ycsb(Mix::D | Mix::E) => insert(random),
            Workload::Ycsb(Mix::F) if percent < 50 => read(random),
            Workload::Ycsb(Mix::F) => {
                Operation::ReadModifyWrite { account: self.keys.draw(random), value: population.value(random) }
            }
        }
    }

    /// Where a scan of that many rows can begin.
    fn first_of(&self, rows: usize, random: &mut StdRng) -> u64 {
        self.keys.draw(random).min(self.population.accounts.saturating_sub(rows as u64))
    }
}

/// Money that moves between two accounts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub(crate) from: u64,
    pub(crate) to: u64,
    amount: u64,
}

impl Transfer {
    fn draw(random: &mut StdRng, keys: &Keys) -> Transfer {
        let from = keys.draw(random);
        let mut to = keys.draw(random);
        while to == from {
            to = keys.draw(random);
        }
        Transfer { from, to, amount: random.random_range(1..=10) }
    }

    /// The two values after the transfer.
    pub(crate) fn apply(&self, from: &[u8], to: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
        moved(self.amount, from, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::accounts::{balance, with_balance};
    use rand::SeedableRng;
    use std::time::Duration;

    #[test]
    fn transfers_keep_the_sum() -> Result<()> {
        let mut random = StdRng::seed_from_u64(1);
        let keys = Keys::new(Spread::Zipfian, 10);
        for _ in 0..1000 {
            let transfer = Transfer::draw(&mut random, &keys);
            assert_ne!(transfer.from, transfer.to);
            let (from, to) = transfer.apply(&with_balance(&[0; 8], 3), &with_balance(&[0; 8], 4))?;
            assert_eq!(balance(&from)? + balance(&to)?, 7);
        }
        Ok(())
    }

    #[test]
    fn a_load_is_of_as_many_cells_as_asked_for() {
        let mut random = StdRng::seed_from_u64(1);
        let population = Arc::new(Population::new(10, 8));
        let end = End::Loaded { left: AtomicU64::new(2500), batch: 1000 };
        let keys = Keys::new(Spread::Uniform, 10);
        let job = Job { workload: Workload::Load, keys, population, end };
        let mut seen = Vec::new();
        while let Some(Operation::PutMany { first, values }) = job.next(&mut random) {
            seen.push((first, values.len()));
        }
        assert_eq!(seen, [(10, 1000), (1010, 1000), (2010, 500)]);
    }

    #[test]
    fn mixes_are_what_they_say() {
        let mut random = StdRng::seed_from_u64(1);
        let population = Arc::new(Population::new(1000, 8));
        let shares = |mix, random: &mut StdRng| {
            let end = End::At(Instant::now() + Duration::from_secs(600));
            let keys = Keys::new(Spread::Zipfian, 1000);
            let job = Job { workload: Workload::Ycsb(mix), keys, population: population.clone(), end };
            let (mut writes, mut scans) = (0, 0);
            for _ in 0..10_000 {
                match job.next(random) {
                    Some(Operation::Put { .. } | Operation::ReadModifyWrite { .. }) => writes += 1,
                    Some(Operation::Scan { .. }) => scans += 1,
                    _ => {}
                }
            }
            (writes / 100, scans / 100)
        };
        for (mix, writes, scans) in
            [(Mix::A, 50, 0), (Mix::B, 5, 0), (Mix::C, 0, 0), (Mix::D, 5, 0), (Mix::E, 5, 95), (Mix::F, 50, 0)]
        {
            let found: (i32, i32) = shares(mix, &mut random);
            assert!(found.0.abs_diff(writes) <= 2 && found.1.abs_diff(scans) <= 2, "{mix:?}: {found:?}");
        }
    }
}
