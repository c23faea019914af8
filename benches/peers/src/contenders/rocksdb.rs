//! RocksDB by itself: batches without any isolation, and its own optimistic and pessimistic transactions.

use super::{CACHE_BYTES, Contender, Name, Sum};
use crate::drive::{Attempt, Blocking, threads};
use crate::measure::Work;
use crate::shared::accounts::key;
use crate::shared::rocks;
use crate::workload::{Job, Operation, Transfer};
use anyhow::{Context, Result};
use rocksdb::{
    ColumnFamilyDescriptor, DB, DBAccess, DBRawIteratorWithThreadMode, DEFAULT_COLUMN_FAMILY_NAME, ErrorKind,
    IteratorMode, OptimisticTransactionDB, OptimisticTransactionOptions, SnapshotWithThreadMode, Transaction,
    TransactionDB, TransactionDBOptions, TransactionOptions, WriteBatch, WriteBatchWithTransaction, WriteOptions,
};
use std::path::Path;
use std::sync::Arc;

pub(crate) struct Store {
    engine: Engine,
    sync: bool,
}

enum Engine {
    Raw(DB),
    Optimistic(OptimisticTransactionDB),
    Pessimistic(TransactionDB),
}

impl Store {
    pub(crate) fn open(name: Name, directory: &Path, sync: bool) -> Result<Store> {
        Store::with_cache(name, directory, sync, CACHE_BYTES)
    }

    pub(crate) fn with_cache(name: Name, directory: &Path, sync: bool, cache_bytes: usize) -> Result<Store> {
        let options = rocks::options(cache_bytes);
        let engine = match name {
            Name::RocksdbOptimistic => Engine::Optimistic(OptimisticTransactionDB::open(&options, directory)?),
            Name::RocksdbPessimistic => {
                Engine::Pessimistic(TransactionDB::open(&options, &TransactionDBOptions::default(), directory)?)
            }
            // Opened by its name, so that there is a handle of it for reads in batches.
            _ => {
                let family = ColumnFamilyDescriptor::new(DEFAULT_COLUMN_FAMILY_NAME, options.clone());
                Engine::Raw(DB::open_cf_descriptors(&options, directory, [family])?)
            }
        };
        Ok(Store { engine, sync })
    }

    fn write_options(&self) -> WriteOptions {
        let mut options = WriteOptions::default();
        options.set_sync(self.sync);
        options
    }
}

impl Blocking for Store {
    fn attempt(&self, operation: &Operation) -> Result<Attempt> {
        match &self.engine {
            Engine::Raw(db) => raw(db, operation, &self.write_options()),
            Engine::Optimistic(db) => match operation {
                Operation::Read(_) | Operation::MultiGet(_) | Operation::Scan { .. } => read(&db.snapshot(), operation),
                Operation::PutMany { first, values } => {
                    Ok(done(db.write_opt(batch_of::<true>(*first, values), &self.write_options()))?)
                }
                _ => {
                    let options = OptimisticTransactionOptions::default();
                    transact(db.transaction_opt(&self.write_options(), &options), operation)
                }
            },
            Engine::Pessimistic(db) => match operation {
                Operation::Read(_) | Operation::MultiGet(_) | Operation::Scan { .. } => read(&db.snapshot(), operation),
                Operation::PutMany { first, values } => {
                    Ok(done(db.write_opt(batch_of::<true>(*first, values), &self.write_options()))?)
                }
                _ => transact(db.transaction_opt(&self.write_options(), &TransactionOptions::default()), operation),
            },
        }
    }
}

fn raw(db: &DB, operation: &Operation, write_options: &WriteOptions) -> Result<Attempt> {
    match operation {
        Operation::Read(account) => Ok(Attempt::read(db.get_pinned(key(*account))?.is_some())),
        Operation::MultiGet(accounts) => {
            let keys: Vec<_> = accounts.iter().map(|account| key(*account)).collect();
            let family = db.cf_handle(DEFAULT_COLUMN_FAMILY_NAME).context("it was opened by its name")?;
            let mut missing = 0;
            for found in db.batched_multi_get_cf(family, &keys, false) {
                missing += u64::from(found?.is_none());
            }
            Ok(Attempt::Done { missing })
        }
        Operation::Scan { first, rows } => scan(db.raw_iterator(), *first, *rows),
        Operation::Transfer(transfer) => {
            let from = db.get_pinned(key(transfer.from))?.context("an account is gone")?;
            let to = db.get_pinned(key(transfer.to))?.context("an account is gone")?;
            let (from, to) = transfer.apply(&from, &to)?;
            let mut batch = WriteBatch::default();
            batch.put(key(transfer.from), from);
            batch.put(key(transfer.to), to);
            db.write_opt(batch, write_options)?;
            Ok(Attempt::DONE)
        }
        Operation::Put { account, value } => {
            db.put_opt(key(*account), value, write_options)?;
            Ok(Attempt::DONE)
        }
        Operation::ReadModifyWrite { account, value } => {
            let found = db.get_pinned(key(*account))?.is_some();
            db.put_opt(key(*account), value, write_options)?;
            Ok(Attempt::read(found))
        }
        Operation::PutMany { first, values } => {
            db.write_opt(batch_of::<false>(*first, values), write_options)?;
            Ok(Attempt::DONE)
        }
    }
}

/// Reads at a snapshot, as read transactions of both kinds do.
fn read<D: DBAccess>(snapshot: &SnapshotWithThreadMode<'_, D>, operation: &Operation) -> Result<Attempt> {
    match operation {
        Operation::Read(account) => Ok(Attempt::read(snapshot.get_pinned(key(*account))?.is_some())),
        Operation::MultiGet(accounts) => {
            let mut missing = 0;
            for found in snapshot.multi_get(accounts.iter().map(|account| key(*account))) {
                missing += u64::from(found?.is_none());
            }
            Ok(Attempt::Done { missing })
        }
        Operation::Scan { first, rows } => scan(snapshot.raw_iterator(), *first, *rows),
        _ => unreachable!("the others write"),
    }
}

fn scan<D: DBAccess>(mut iterator: DBRawIteratorWithThreadMode<'_, D>, first: u64, rows: usize) -> Result<Attempt> {
    let (mut found, mut bytes) = (0, 0);
    iterator.seek(key(first));
    while let Some((key, value)) = iterator.item().filter(|_| found < rows) {
        bytes += key.len() + value.len();
        found += 1;
        iterator.next();
    }
    iterator.status()?;
    std::hint::black_box(bytes);
    Ok(Attempt::Done { missing: (rows - found) as u64 })
}

/// A transaction that writes; conflicts are told by it.
fn transact<D>(transaction: Transaction<'_, D>, operation: &Operation) -> Result<Attempt> {
    match write(&transaction, operation) {
        Ok(attempt) => match done(transaction.commit())? {
            Attempt::Conflict => Ok(Attempt::Conflict),
            Attempt::Done { .. } => Ok(attempt),
        },
        Err(error) => match error.downcast::<rocksdb::Error>() {
            Ok(error) => Ok(done(Err(error))?),
            Err(error) => Err(error),
        },
    }
}

fn write<D>(transaction: &Transaction<'_, D>, operation: &Operation) -> Result<Attempt> {
    match operation {
        Operation::Transfer(transfer) => {
            let (from, to) = locked(transaction, transfer)?;
            let (from, to) = transfer.apply(&from, &to)?;
            transaction.put(key(transfer.from), from)?;
            transaction.put(key(transfer.to), to)?;
            Ok(Attempt::DONE)
        }
        Operation::Put { account, value } => {
            transaction.put(key(*account), value)?;
            Ok(Attempt::DONE)
        }
        Operation::ReadModifyWrite { account, value } => {
            let found = transaction.get_for_update(key(*account), true)?.is_some();
            transaction.put(key(*account), value)?;
            Ok(Attempt::read(found))
        }
        _ => unreachable!("the others only read, or are one batch"),
    }
}

/// Both values, the smaller key first: whoever locks waits in one order.
fn locked<D>(transaction: &Transaction<'_, D>, transfer: &Transfer) -> Result<(Vec<u8>, Vec<u8>)> {
    let get = |account: u64| -> Result<Vec<u8>> {
        transaction.get_for_update(key(account), true)?.context("an account is gone")
    };
    if transfer.from < transfer.to {
        let from = get(transfer.from)?;
        Ok((from, get(transfer.to)?))
    } else {
        let to = get(transfer.to)?;
        Ok((get(transfer.from)?, to))
    }
}

fn batch_of<const TRANSACTION: bool>(first: u64, values: &[Vec<u8>]) -> WriteBatchWithTransaction<TRANSACTION> {
    let mut batch = WriteBatchWithTransaction::default();
    for (account, value) in (first..).zip(values) {
        batch.put(key(account), value);
    }
    batch
}

fn done(answer: std::result::Result<(), rocksdb::Error>) -> std::result::Result<Attempt, rocksdb::Error> {
    match answer {
        Ok(()) => Ok(Attempt::DONE),
        Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::TryAgain | ErrorKind::TimedOut) => {
            Ok(Attempt::Conflict)
        }
        Err(error) => Err(error),
    }
}

impl Contender for Store {
    fn run(&self, job: &Arc<Job>, clients: usize, seed: u64) -> Result<Work> {
        threads(self, job, clients, seed)
    }

    fn sum(&self) -> Result<Sum> {
        let mut sum = Sum::default();
        match &self.engine {
            Engine::Raw(db) => add(db.iterator(IteratorMode::Start), &mut sum)?,
            Engine::Optimistic(db) => add(db.iterator(IteratorMode::Start), &mut sum)?,
            Engine::Pessimistic(db) => add(db.iterator(IteratorMode::Start), &mut sum)?,
        }
        Ok(sum)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

type Item = std::result::Result<(Box<[u8]>, Box<[u8]>), rocksdb::Error>;

fn add(cells: impl Iterator<Item = Item>, sum: &mut Sum) -> Result<()> {
    for cell in cells {
        sum.add(&cell?.1)?;
    }
    Ok(())
}
