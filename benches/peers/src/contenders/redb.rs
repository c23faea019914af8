//! redb: one writer at a time, any number of readers.

use super::{CACHE_BYTES, Contender, Sum};
use crate::drive::{Attempt, Blocking, threads};
use crate::measure::Work;
use crate::shared::accounts::key;
use crate::workload::{Job, Operation};
use anyhow::{Context, Result};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::path::Path;
use std::sync::Arc;

const ACCOUNTS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("accounts");

pub(crate) struct Store {
    db: Database,
    durability: Durability,
}

impl Store {
    pub(crate) fn open(directory: &Path, sync: bool) -> Result<Store> {
        std::fs::create_dir_all(directory)?;
        let db = Database::builder().set_cache_size(CACHE_BYTES).create(directory.join("accounts.redb"))?;
        let tx = db.begin_write()?;
        tx.open_table(ACCOUNTS)?;
        tx.commit()?;
        Ok(Store { db, durability: if sync { Durability::Immediate } else { Durability::None } })
    }

    fn read(&self, operation: &Operation) -> Result<Attempt> {
        let tx = self.db.begin_read()?;
        let table = tx.open_table(ACCOUNTS)?;
        match operation {
            Operation::Read(account) => Ok(Attempt::read(table.get(&key(*account)[..])?.is_some())),
            Operation::MultiGet(accounts) => {
                let mut missing = 0;
                for account in accounts {
                    missing += u64::from(table.get(&key(*account)[..])?.is_none());
                }
                Ok(Attempt::Done { missing })
            }
            Operation::Scan { first, rows } => {
                let (mut found, mut bytes) = (0, 0);
                for row in table.range(&key(*first)[..]..)?.take(*rows) {
                    let (key, value) = row?;
                    bytes += key.value().len() + value.value().len();
                    found += 1;
                }
                std::hint::black_box(bytes);
                Ok(Attempt::Done { missing: (rows - found) as u64 })
            }
            _ => unreachable!("the others write"),
        }
    }

    fn write(&self, operation: &Operation) -> Result<Attempt> {
        let mut tx = self.db.begin_write()?;
        tx.set_durability(self.durability)?;
        let mut table = tx.open_table(ACCOUNTS)?;
        let attempt = match operation {
            Operation::Transfer(transfer) => {
                let (from, to) = (key(transfer.from), key(transfer.to));
                let (from_value, to_value) = {
                    let from = table.get(&from[..])?.context("an account is gone")?;
                    let to = table.get(&to[..])?.context("an account is gone")?;
                    transfer.apply(from.value(), to.value())?
                };
                table.insert(&from[..], &from_value[..])?;
                table.insert(&to[..], &to_value[..])?;
                Attempt::DONE
            }
            Operation::Put { account, value } => {
                table.insert(&key(*account)[..], &value[..])?;
                Attempt::DONE
            }
            // What it answers is the value that was there.
            Operation::ReadModifyWrite { account, value } => {
                Attempt::read(table.insert(&key(*account)[..], &value[..])?.is_some())
            }
            Operation::PutMany { first, values } => {
                for (account, value) in (*first..).zip(values) {
                    table.insert(&key(account)[..], &value[..])?;
                }
                Attempt::DONE
            }
            Operation::Read(_) | Operation::MultiGet(_) | Operation::Scan { .. } => unreachable!("they only read"),
        };
        drop(table);
        tx.commit()?;
        Ok(attempt)
    }
}

impl Blocking for Store {
    fn attempt(&self, operation: &Operation) -> Result<Attempt> {
        match operation {
            Operation::Read(_) | Operation::MultiGet(_) | Operation::Scan { .. } => self.read(operation),
            _ => self.write(operation),
        }
    }
}

impl Contender for Store {
    fn run(&self, job: &Arc<Job>, clients: usize, seed: u64) -> Result<Work> {
        threads(self, job, clients, seed)
    }

    fn sum(&self) -> Result<Sum> {
        let mut sum = Sum::default();
        for row in self.db.begin_read()?.open_table(ACCOUNTS)?.iter()? {
            sum.add(row?.1.value())?;
        }
        Ok(sum)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
