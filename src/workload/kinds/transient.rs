//! Transient rows: rows come and go with their index entries.

use super::{Job, Workload};
use crate::Result;
use crate::schema::ConflictHandler;
use crate::workload::attempt::{Attempt, Range, Table};
use async_trait::async_trait;
use rand::Rng;
use rand::rngs::StdRng;

const TABLE: &str = "transient";
const INDEX: &str = "transient_index";
const COLUMN: &str = "row";
const ROWS: usize = 30;
const LOOK_EVERY: u32 = 6;

pub(super) struct Transient;

impl Workload for Transient {
    fn tables(&self) -> Vec<Table> {
        vec![
            Table { name: TABLE, handler: ConflictHandler::RetryOnWriteWrite },
            // Its rows follow from those of the other table, which sees to it that two writers exclude each other.
            Table { name: INDEX, handler: ConflictHandler::SerializableIndex },
        ]
    }

    fn set_up(&self) -> Option<Box<dyn Job>> {
        None
    }

    fn next(&self, _client: u64, random: &mut StdRng) -> Box<dyn Job> {
        if random.random_ratio(1, LOOK_EVERY) {
            return Box::new(Look);
        }
        Box::new(Toggle { row: format!("row {:02}", random.random_range(0..ROWS)) })
    }
}

struct Look;

#[async_trait]
impl Job for Look {
    async fn attempt(&self, attempt: &mut Attempt<'_>) -> Result<()> {
        attempt.scan(INDEX, &Range::default()).await?;
        attempt.scan(TABLE, &Range::default()).await.map(drop)
    }
}

struct Toggle {
    row: String,
}

#[async_trait]
impl Job for Toggle {
    async fn attempt(&self, attempt: &mut Attempt<'_>) -> Result<()> {
        if attempt.get(TABLE, &self.row, COLUMN).await?.is_some() {
            attempt.delete(TABLE, &self.row, COLUMN).await?;
            return attempt.delete(INDEX, &self.row, COLUMN).await;
        }
        attempt.put(TABLE, &self.row, COLUMN, "there").await?;
        attempt.put(INDEX, &self.row, COLUMN, "there").await
    }
}
