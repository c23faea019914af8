//! fjall: its optimistic transactions, which are serializable.

use super::{CACHE_BYTES, Contender, Sum};
use crate::drive::{Attempt, Blocking, threads};
use crate::measure::Work;
use crate::shared::accounts::key;
use crate::workload::{Job, Operation};
use anyhow::{Context, Result};
use fjall::{
    KeyspaceCreateOptions, OptimisticTxDatabase, OptimisticTxKeyspace, OptimisticWriteTx, PersistMode, Readable,
};
use std::path::Path;
use std::sync::Arc;

pub(crate) struct Store {
    db: OptimisticTxDatabase,
    accounts: OptimisticTxKeyspace,
    mode: PersistMode,
}

impl Store {
    pub(crate) fn open(directory: &Path, sync: bool) -> Result<Store> {
        let db = OptimisticTxDatabase::builder(directory).cache_size(CACHE_BYTES as u64).open()?;
        let accounts = db.keyspace("accounts", KeyspaceCreateOptions::default)?;
        Ok(Store { db, accounts, mode: if sync { PersistMode::SyncData } else { PersistMode::Buffer } })
    }

    fn write(&self, tx: &mut OptimisticWriteTx, operation: &Operation) -> Result<Attempt> {
        match operation {
            Operation::Transfer(transfer) => {
                let from = tx.get(&self.accounts, key(transfer.from))?.context("an account is gone")?;
                let to = tx.get(&self.accounts, key(transfer.to))?.context("an account is gone")?;
                let (from, to) = transfer.apply(&from, &to)?;
                tx.insert(&self.accounts, key(transfer.from), from);
                tx.insert(&self.accounts, key(transfer.to), to);
                Ok(Attempt::DONE)
            }
            Operation::Put { account, value } => {
                tx.insert(&self.accounts, key(*account), &value[..]);
                Ok(Attempt::DONE)
            }
            Operation::ReadModifyWrite { account, value } => {
                let found = tx.get(&self.accounts, key(*account))?.is_some();
                tx.insert(&self.accounts, key(*account), &value[..]);
                Ok(Attempt::read(found))
            }
            Operation::PutMany { first, values } => {
                for (account, value) in (*first..).zip(values) {
                    tx.insert(&self.accounts, key(account), &value[..]);
                }
                Ok(Attempt::DONE)
            }
            Operation::Read(_) | Operation::MultiGet(_) | Operation::Scan { .. } => unreachable!("they only read"),
        }
    }
}

impl Blocking for Store {
    fn attempt(&self, operation: &Operation) -> Result<Attempt> {
        match operation {
            Operation::Read(account) => {
                Ok(Attempt::read(self.db.read_tx().get(&self.accounts, key(*account))?.is_some()))
            }
            Operation::MultiGet(accounts) => {
                let snapshot = self.db.read_tx();
                let mut missing = 0;
                for account in accounts {
                    missing += u64::from(snapshot.get(&self.accounts, key(*account))?.is_none());
                }
                Ok(Attempt::Done { missing })
            }
            Operation::Scan { first, rows } => {
                let (mut found, mut bytes) = (0, 0);
                for row in self.db.read_tx().range(&self.accounts, key(*first)..).take(*rows) {
                    let (key, value) = row.into_inner()?;
                    bytes += key.len() + value.len();
                    found += 1;
                }
                std::hint::black_box(bytes);
                Ok(Attempt::Done { missing: (rows - found) as u64 })
            }
            _ => {
                let mut tx = self.db.write_tx()?.durability(Some(self.mode));
                let attempt = self.write(&mut tx, operation)?;
                Ok(if tx.commit()?.is_ok() { attempt } else { Attempt::Conflict })
            }
        }
    }
}

impl Contender for Store {
    fn run(&self, job: &Arc<Job>, clients: usize, seed: u64) -> Result<Work> {
        threads(self, job, clients, seed)
    }

    fn sum(&self) -> Result<Sum> {
        let mut sum = Sum::default();
        for row in self.db.read_tx().iter(&self.accounts) {
            sum.add(&row.value()?)?;
        }
        Ok(sum)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
