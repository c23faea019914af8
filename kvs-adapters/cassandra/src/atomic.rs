//! Compare-and-set: a lightweight transaction on the partition of one cell.
//!
//! The entry of the index is written first, and is there when the transaction begins: otherwise a value could stand that
//! no scan finds. The transaction is sent once. Callers in this process wait for each other: transactions on one cell
//! that run at once hinder each other, up to the point where none of them gets anywhere in time.

use crate::catalog::verdict;
use crate::errors::Attempt;
use crate::read::key_of;
use crate::session::Cluster;
use crate::table::Table;
use atlas_kvs::{Cell, CheckAndSet};
use bytes::Bytes;
use std::hash::{DefaultHasher, Hash, Hasher};
use tokio::sync::{Mutex, MutexGuard};

const STRIPES: usize = 512;

/// Who may work on which cells.
#[derive(Debug)]
pub(crate) struct Turns {
    stripes: Vec<Mutex<()>>,
}

impl Turns {
    pub(crate) fn new() -> Turns {
        Turns { stripes: (0..STRIPES).map(|_| Mutex::new(())).collect() }
    }

    async fn take(&self, table: &Table, cell: &Cell) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        (table.id, cell).hash(&mut hasher);
        let stripe = usize::try_from(hasher.finish() % STRIPES as u64).unwrap_or(0);
        self.stripes[stripe].lock().await
    }
}

impl Cluster {
    pub(crate) async fn check_and_set(
        &self,
        table: &Table,
        turns: &Turns,
        cell: &Cell,
        expected: Option<&Bytes>,
        new: Option<&Bytes>,
    ) -> Attempt<CheckAndSet> {
        let (statements, doing) = (table.atomic(), "comparing and setting a cell");
        let (r, c) = (&cell.row, &cell.column);
        let _turn = turns.take(table, cell).await;
        let rows = match (expected, new) {
            (None, None) => {
                let standing = self.value_of(table, cell).await?;
                return Ok(standing.map_or(CheckAndSet::Applied, |value| CheckAndSet::Mismatch(Some(value))));
            }
            (None, Some(new)) => {
                self.enter(table, &key_of(cell)).await.map_err(harmless)?;
                self.compare(&statements.insert, &(r, c, new), doing).await?
            }
            // Where a value stands, there is an entry.
            (Some(expected), Some(new)) => self.compare(&statements.replace, &(new, r, c, expected), doing).await?,
            (Some(expected), None) => self.compare(&statements.remove, &(r, c, expected), doing).await?,
        };
        let (applied, standing) = verdict(&rows, "v")?;
        Ok(if applied { CheckAndSet::Applied } else { CheckAndSet::Mismatch(standing) })
    }
}

/// An entry of the index that may or may not be there has changed no cell.
fn harmless(trouble: crate::errors::Trouble) -> crate::errors::Trouble {
    use crate::errors::Trouble;
    match trouble {
        Trouble::Final(atlas_kvs::KvsError::Indeterminate { reason, source }) => {
            Trouble::Final(atlas_kvs::KvsError::Unavailable { reason, source })
        }
        other => other,
    }
}
