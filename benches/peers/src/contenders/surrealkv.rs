//! surrealkv: snapshot isolation.

use super::{CACHE_BYTES, Contender, Sum};
use crate::drive::{Attempt, Client, Performed, tasks};
use crate::measure::Work;
use crate::shared::accounts::key;
use crate::workload::{Job, Operation};
use anyhow::{Context, Result};
use std::path::Path;
use std::sync::Arc;
use surrealkv::{Durability, Error, LSMIterator, Mode, Transaction, Tree, TreeBuilder};

pub(crate) struct Store {
    runtime: tokio::runtime::Runtime,
    tree: Arc<Tree>,
    durability: Durability,
}

impl Store {
    pub(crate) fn open(directory: &Path, sync: bool) -> Result<Store> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        // It starts tasks of its own.
        let tree = {
            let _inside = runtime.enter();
            TreeBuilder::new().with_path(directory.to_owned()).with_block_cache_capacity(CACHE_BYTES as u64).build()?
        };
        let durability = if sync { Durability::Immediate } else { Durability::Eventual };
        Ok(Store { runtime, tree: Arc::new(tree), durability })
    }
}

struct Handle {
    tree: Arc<Tree>,
    durability: Durability,
}

impl Handle {
    fn read(&self, operation: &Operation) -> Result<u64> {
        let tx = self.tree.begin_with_mode(Mode::ReadOnly)?;
        match operation {
            Operation::Read(account) => Ok(u64::from(tx.get(&key(*account))?.is_none())),
            Operation::MultiGet(accounts) => {
                let mut missing = 0;
                for account in accounts {
                    missing += u64::from(tx.get(&key(*account))?.is_none());
                }
                Ok(missing)
            }
            Operation::Scan { first, rows } => Ok((rows - scan(&tx, *first, *rows, |_| Ok(()))?) as u64),
            _ => unreachable!("the others write"),
        }
    }

    async fn attempt(&self, operation: &Operation) -> Result<Attempt> {
        let mut tx = self.tree.begin()?.with_durability(self.durability);
        let attempt = write(&mut tx, operation)?;
        match tx.commit().await {
            Ok(()) => Ok(attempt),
            Err(Error::TransactionWriteConflict | Error::TransactionRetry) => Ok(Attempt::Conflict),
            Err(error) => Err(error.into()),
        }
    }
}

fn write(tx: &mut Transaction, operation: &Operation) -> Result<Attempt> {
    match operation {
        Operation::Transfer(transfer) => {
            let from = tx.get(&key(transfer.from))?.context("an account is gone")?;
            let to = tx.get(&key(transfer.to))?.context("an account is gone")?;
            let (from, to) = transfer.apply(&from, &to)?;
            tx.set(&key(transfer.from)[..], &from[..])?;
            tx.set(&key(transfer.to)[..], &to[..])?;
            Ok(Attempt::DONE)
        }
        Operation::Put { account, value } => {
            tx.set(&key(*account)[..], &value[..])?;
            Ok(Attempt::DONE)
        }
        Operation::ReadModifyWrite { account, value } => {
            let found = tx.get(&key(*account))?.is_some();
            tx.set(&key(*account)[..], &value[..])?;
            Ok(Attempt::read(found))
        }
        Operation::PutMany { first, values } => {
            for (account, value) in (*first..).zip(values) {
                tx.set(&key(account)[..], &value[..])?;
            }
            Ok(Attempt::DONE)
        }
        Operation::Read(_) | Operation::MultiGet(_) | Operation::Scan { .. } => unreachable!("they only read"),
    }
}

/// How many rows there were, up to `rows`.
fn scan(tx: &Transaction, first: u64, rows: usize, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<usize> {
    let mut cells = tx.range(&key(first)[..], b"account;")?;
    let (mut found, mut bytes) = (0, 0);
    cells.seek_first()?;
    while cells.valid() && found < rows {
        let value = cells.value()?;
        bytes += cells.key().user_key().len() + value.len();
        each(&value)?;
        found += 1;
        cells.next()?;
    }
    std::hint::black_box(bytes);
    Ok(found)
}

impl Client for Handle {
    async fn perform(&self, operation: Operation) -> Result<Performed> {
        if matches!(operation, Operation::Read(_) | Operation::MultiGet(_) | Operation::Scan { .. }) {
            return Ok(Performed { retries: 0, missing: self.read(&operation)? });
        }
        let mut retries = 0;
        loop {
            match self.attempt(&operation).await? {
                Attempt::Done { missing } => return Ok(Performed { retries, missing }),
                Attempt::Conflict => retries += 1,
            }
        }
    }
}

impl Contender for Store {
    fn run(&self, job: &Arc<Job>, clients: usize, seed: u64) -> Result<Work> {
        let handles = (0..clients).map(|_| Handle { tree: self.tree.clone(), durability: self.durability });
        tasks(&self.runtime, handles, job, seed)
    }

    fn sum(&self) -> Result<Sum> {
        let mut sum = Sum::default();
        let tx = self.tree.begin_with_mode(Mode::ReadOnly)?;
        scan(&tx, 0, usize::MAX, |value| sum.add(value))?;
        Ok(sum)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.runtime.block_on(self.tree.close())?)
    }
}
