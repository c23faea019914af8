//! Write once, delete once: each cell is put once and deleted once, and looked at all the time.

use super::{Job, Workload};
use crate::Result;
use crate::schema::ConflictHandler;
use crate::workload::attempt::{Attempt, Range, Table};
use async_trait::async_trait;
use rand::Rng;
use rand::rngs::StdRng;
use std::sync::atomic::{AtomicU64, Ordering};

const TABLE: &str = "once";
const COLUMN: &str = "value";
/// How far behind the newest cell deletions are.
const BEHIND: u64 = 40;

#[derive(Default)]
pub(super) struct Once {
    /// How many cells were given out to be put.
    put: AtomicU64,
    /// How many were given out to be deleted.
    deleted: AtomicU64,
}

fn row(number: u64) -> String {
    format!("row {number:08}")
}

impl Workload for Once {
    fn tables(&self) -> Vec<Table> {
        vec![Table { name: TABLE, handler: ConflictHandler::RetryOnWriteWriteCell }]
    }

    fn set_up(&self) -> Option<Box<dyn Job>> {
        None
    }

    fn next(&self, _client: u64, random: &mut StdRng) -> Box<dyn Job> {
        let newest = self.put.load(Ordering::Relaxed);
        match random.random_range(0..4) {
            0 if newest > self.deleted.load(Ordering::Relaxed) + BEHIND => {
                Box::new(Delete { row: row(self.deleted.fetch_add(1, Ordering::Relaxed)) })
            }
            1 | 2 => {
                let from = newest.saturating_sub(random.random_range(0..2 * BEHIND));
                Box::new(Look { from: row(from), to: row(from + BEHIND) })
            }
            _ => Box::new(Put { row: row(self.put.fetch_add(1, Ordering::Relaxed)) }),
        }
    }
}

struct Put {
    row: String,
}

#[async_trait]
impl Job for Put {
    async fn attempt(&self, attempt: &mut Attempt<'_>) -> Result<()> {
        attempt.put(TABLE, &self.row, COLUMN, "once").await
    }
}

struct Delete {
    row: String,
}

#[async_trait]
impl Job for Delete {
    async fn attempt(&self, attempt: &mut Attempt<'_>) -> Result<()> {
        // Its put may have been lost: then there is nothing to delete.
        if attempt.get(TABLE, &self.row, COLUMN).await?.is_some() {
            attempt.delete(TABLE, &self.row, COLUMN).await?;
        }
        Ok(())
    }
}

struct Look {
    from: String,
    to: String,
}

#[async_trait]
impl Job for Look {
    async fn attempt(&self, attempt: &mut Attempt<'_>) -> Result<()> {
        let range = Range { start_row: Some(self.from.clone()), end_row: Some(self.to.clone()), ..Range::default() };
        attempt.scan(TABLE, &range).await.map(drop)
    }
}
