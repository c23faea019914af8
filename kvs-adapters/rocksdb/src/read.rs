//! Reads of single cells.
//!
//! Each read has a tier. [`Tier::Memory`] is for threads of the async runtime: RocksDB answers from memtables and the
//! block cache, and where it would have to touch a file it says `Incomplete` instead, and the cell is reported as
//! missed. [`Tier::Disk`] misses nothing: it is for blocking threads, and for reads that are short all the same ([`crate::misses`]).

use crate::db::{Db, RawIterator};
use crate::errors::{corrupt_key, read_failed};
use crate::keys;
use atlas_kvs::{Cell, CellBound, Result, TableKind, TableRef, Timestamp, Value, Version};
use bytes::Bytes;
use rocksdb::{ErrorKind, ReadOptions, ReadTier};
use std::sync::atomic::Ordering;

/// How far a read may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    /// Memory only; never waits for anything.
    Memory,
    /// Files too.
    Disk,
}

impl Tier {
    pub(crate) fn options(self) -> ReadOptions {
        let mut options = ReadOptions::default();
        if self == Tier::Memory {
            options.set_read_tier(ReadTier::BlockCache);
            options.set_background_purge_on_iterator_cleanup(true);
        }
        options
    }

    /// True if the error only says that this tier does not reach far enough.
    pub(crate) fn falls_short(self, error: &rocksdb::Error) -> bool {
        self == Tier::Memory && error.kind() == ErrorKind::Incomplete
    }
}

/// Answers in the order of the questions, and which questions are still open.
#[derive(Debug)]
pub(crate) struct Answers<T> {
    pub(crate) found: Vec<Option<T>>,
    /// Ascending positions of cells that the tier could not read.
    pub(crate) missed: Vec<usize>,
}

impl<T: Clone> Answers<T> {
    fn none_of(len: usize) -> Answers<T> {
        Answers { found: vec![None; len], missed: Vec::new() }
    }

    /// Every question is open.
    pub(crate) fn all_missed(len: usize) -> Answers<T> {
        Answers { found: vec![None; len], missed: (0..len).collect() }
    }
}

impl Db {
    /// The newest version below each bound.
    pub(crate) fn get(&self, table: &TableRef, bounds: &[CellBound], tier: Tier) -> Result<Answers<Value>> {
        let Some(catalog) = self.catalog(tier) else {
            return Ok(Answers::all_missed(bounds.len()));
        };
        let family = self.family(&catalog, table, TableKind::Versioned)?;
        drop(catalog);
        let mut answers = Answers::none_of(bounds.len());
        let mut iterator = self.rocks.raw_iterator_cf_opt(&family, point_options(tier));
        let mut key = Vec::new();
        for index in in_key_order(bounds) {
            let bound = &bounds[index];
            if bound.read_before == Timestamp::SENTINEL {
                continue; // Nothing lies below zero.
            }
            key.clear();
            keys::push_cell(&mut key, &bound.cell);
            let cell_len = key.len();
            keys::push_timestamp(&mut key, bound.read_before.previous());
            iterator.seek(&key);
            match iterator.item() {
                Some((found, value)) => {
                    if let Some(ts) = timestamp_within(table, found, &key[..cell_len])? {
                        answers.found[index] = Some(Value { ts, bytes: Bytes::copy_from_slice(value) });
                    }
                }
                None => match iterator.status() {
                    Ok(()) => {}
                    Err(error) if tier.falls_short(&error) => answers.missed.push(index),
                    Err(error) => return Err(read_failed(table, error)),
                },
            }
        }
        answers.missed.sort_unstable();
        self.count(bounds.len() - answers.missed.len(), tier);
        Ok(answers)
    }

    /// The value of each cell of an atomic table.
    pub(crate) fn get_atomic(&self, table: &TableRef, cells: &[Cell], tier: Tier) -> Result<Answers<Bytes>> {
        let Some(catalog) = self.catalog(tier) else {
            return Ok(Answers::all_missed(cells.len()));
        };
        let family = self.family(&catalog, table, TableKind::Atomic)?;
        drop(catalog);
        let mut answers = Answers::none_of(cells.len());
        let options = tier.options();
        let mut key = Vec::new();
        for (index, cell) in cells.iter().enumerate() {
            key.clear();
            keys::push_cell(&mut key, cell);
            match self.rocks.get_pinned_cf_opt(&family, &key, &options) {
                Ok(value) => answers.found[index] = value.map(|value| Bytes::copy_from_slice(&value)),
                Err(error) if tier.falls_short(&error) => answers.missed.push(index),
                Err(error) => return Err(read_failed(table, error)),
            }
        }
        self.count(cells.len() - answers.missed.len(), tier);
        Ok(answers)
    }

    /// The catalog, unless a thread of the runtime would have to wait for it.
    ///
    /// Recursive, which here means: past a change of tables that is itself waiting for a slow write. Readers hold the
    /// lock for a moment only and can't starve it.
    pub(crate) fn catalog(&self, tier: Tier) -> Option<parking_lot::RwLockReadGuard<'_, crate::db::Catalog>> {
        match tier {
            Tier::Memory => self.tables.try_read_recursive(),
            Tier::Disk => Some(self.tables.read_recursive()),
        }
    }

    fn count(&self, answered: usize, tier: Tier) {
        let counter = match tier {
            Tier::Memory => &self.reads.without_io,
            Tier::Disk => &self.reads.with_io,
        };
        counter.fetch_add(answered as u64, Ordering::Relaxed);
    }
}

/// The versions of `cell` from the one under the iterator to the oldest, turned round: oldest first. Leaves the
/// iterator behind the cell, or invalid.
pub(crate) fn versions_here(table: &TableRef, iterator: &mut RawIterator<'_>, cell: &[u8]) -> Result<Vec<Version>> {
    let mut versions = Vec::new();
    while let Some((key, value)) = iterator.item() {
        let Some(ts) = timestamp_within(table, key, cell)? else { break };
        let prefix = Bytes::copy_from_slice(&value[..value.len().min(Version::PREFIX_LEN)]);
        versions.push(Version { ts, len: value.len() as u64, prefix });
        iterator.next();
    }
    versions.reverse();
    Ok(versions)
}

/// The timestamp of `key` if it is a version of `cell`.
pub(crate) fn timestamp_within(table: &TableRef, key: &[u8], cell: &[u8]) -> Result<Option<Timestamp>> {
    keys::timestamp_within(key, cell).transpose().map_err(|_| corrupt_key(table, key))
}

/// Reads of one cell: RocksDB asks the filters of the cell, and stops where the cell ends.
pub(crate) fn point_options(tier: Tier) -> ReadOptions {
    let mut options = tier.options();
    options.set_prefix_same_as_start(true);
    options
}

/// The order in which one iterator meets all bounds on its way forward.
pub(crate) fn in_key_order(bounds: &[CellBound]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..bounds.len()).collect();
    if bounds.len() > 1 {
        order.sort_unstable_by(|&a, &b| {
            let (a, b) = (&bounds[a], &bounds[b]);
            a.cell.cmp(&b.cell).then(b.read_before.cmp(&a.read_before))
        });
    }
    order
}
