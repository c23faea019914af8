//! Append: lists that grow at their end, by numbers that are appended once.

use super::{Job, Workload};
use crate::schema::ConflictHandler;
use crate::workload::attempt::{Attempt, Table};
use crate::{Error, Result};
use async_trait::async_trait;
use atlas_checker::value;
use rand::Rng;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const TABLE: &str = "lists";
const COLUMN: &str = "list";
const LISTS: usize = 8;
const OPS_MAX: usize = 4;
/// Elements of a list at most: then the client begins another one.
const LEN_MAX: usize = 64;

#[derive(Default)]
pub(super) struct Append {
    /// From where on to look for a list of each number that is not full.
    first_open: Arc<[AtomicU64; LISTS]>,
}

impl Workload for Append {
    fn tables(&self) -> Vec<Table> {
        vec![Table { name: TABLE, handler: ConflictHandler::SerializableCell }]
    }

    fn set_up(&self) -> Option<Box<dyn Job>> {
        None
    }

    fn next(&self, _client: u64, random: &mut StdRng) -> Box<dyn Job> {
        let ops = random.random_range(1..=OPS_MAX);
        let op = |random: &mut StdRng| (random.random_range(0..LISTS), random.random_bool(0.5));
        Box::new(Ops { ops: (0..ops).map(|_| op(random)).collect(), first_open: self.first_open.clone() })
    }
}

/// Lists to read, and whether something is appended to them.
struct Ops {
    ops: Vec<(usize, bool)>,
    first_open: Arc<[AtomicU64; LISTS]>,
}

#[async_trait]
impl Job for Ops {
    async fn attempt(&self, attempt: &mut Attempt<'_>) -> Result<()> {
        for (number, (list, append)) in self.ops.iter().enumerate() {
            let (row, mut elements) = newest(attempt, *list, &self.first_open[*list]).await?;
            if *append {
                // Numbers of its own for each attempt.
                elements.push(attempt.unique_number() * OPS_MAX as i64 + number as i64);
                attempt.put_exactly(TABLE, &row, COLUMN, &value::encode_list(&elements)).await?;
            }
        }
        Ok(())
    }
}

/// The newest of the lists of a number: one that is full is followed by another one.
async fn newest(attempt: &mut Attempt<'_>, list: usize, first_open: &AtomicU64) -> Result<(String, Vec<i64>)> {
    loop {
        let generation = first_open.load(Ordering::Relaxed);
        let row = format!("list {list}.{generation:04}");
        let Some(found) = attempt.get(TABLE, &row, COLUMN).await? else { return Ok((row, Vec::new())) };
        let elements = value::list(&found)
            .ok_or_else(|| Error::corrupt(format!("{TABLE}:{row}"), format!("'{found}' is no list")))?;
        if elements.len() < LEN_MAX {
            return Ok((row, elements));
        }
        // Whether or not this transaction commits: what it has read is full.
        first_open.fetch_max(generation + 1, Ordering::Relaxed);
    }
}
