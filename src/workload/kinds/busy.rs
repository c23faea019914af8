//! Busy cells: counters that everybody raises, and counters that most only touch.

use super::{Job, Workload};
use crate::Result;
use crate::schema::ConflictHandler;
use crate::workload::attempt::{Attempt, Table};
use async_trait::async_trait;
use atlas_checker::value;
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeSet;

const TABLE: &str = "busy";
const COLUMN: &str = "counter";
/// One transaction in this many raises a counter that the others touch.
const RAISE_EVERY: u32 = 8;
const AT_ONCE_MAX: usize = 3;

pub(super) struct Busy {
    pub(super) cells: usize,
    pub(super) touch: bool,
}

fn row(number: usize) -> String {
    format!("cell {number}")
}

impl Workload for Busy {
    fn tables(&self) -> Vec<Table> {
        let handler = match self.touch {
            true => ConflictHandler::RetryOnValueChanged,
            false => ConflictHandler::RetryOnWriteWrite,
        };
        vec![Table { name: TABLE, handler }]
    }

    fn set_up(&self) -> Option<Box<dyn Job>> {
        Some(Box::new(Begin { rows: (0..self.cells).map(row).collect() }))
    }

    fn next(&self, _client: u64, random: &mut StdRng) -> Box<dyn Job> {
        let at_once = random.random_range(1..=AT_ONCE_MAX.min(self.cells));
        // In one order: what is written is the same whatever the order.
        let rows: BTreeSet<String> = (0..at_once).map(|_| row(random.random_range(0..self.cells))).collect();
        let only_touch = self.touch && !random.random_ratio(1, RAISE_EVERY);
        Box::new(Raise { rows: rows.into_iter().collect(), only_touch })
    }
}

struct Begin {
    rows: Vec<String>,
}

#[async_trait]
impl Job for Begin {
    async fn attempt(&self, attempt: &mut Attempt<'_>) -> Result<()> {
        for row in &self.rows {
            attempt.put(TABLE, row, COLUMN, 0).await?;
        }
        Ok(())
    }
}

struct Raise {
    rows: Vec<String>,
    only_touch: bool,
}

#[async_trait]
impl Job for Raise {
    async fn attempt(&self, attempt: &mut Attempt<'_>) -> Result<()> {
        for row in &self.rows {
            let found = attempt.get(TABLE, row, COLUMN).await?.unwrap_or_default();
            if self.only_touch {
                attempt.put_exactly(TABLE, row, COLUMN, &found).await?;
            } else {
                let number = value::number(&found).unwrap_or(0);
                attempt.put(TABLE, row, COLUMN, number + 1).await?;
            }
        }
        Ok(())
    }
}
