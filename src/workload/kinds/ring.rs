//! Ring permutation: two neighbours in a ring change places.

use super::{Job, Workload};
use crate::schema::ConflictHandler;
use crate::workload::attempt::{Attempt, Range, Table};
use crate::{Error, Result};
use async_trait::async_trait;
use atlas_checker::value;
use rand::Rng;
use rand::rngs::StdRng;

const TABLE: &str = "ring";
const COLUMN: &str = "next";
const ROWS: usize = 24;
const LOOK_EVERY: u32 = 8;

pub(super) struct Ring;

fn row(number: usize) -> String {
    format!("row {number:02}")
}

impl Workload for Ring {
    fn tables(&self) -> Vec<Table> {
        vec![Table { name: TABLE, handler: ConflictHandler::RetryOnWriteWrite }]
    }

    fn set_up(&self) -> Option<Box<dyn Job>> {
        Some(Box::new(Lay))
    }

    fn next(&self, _client: u64, random: &mut StdRng) -> Box<dyn Job> {
        if random.random_ratio(1, LOOK_EVERY) {
            return Box::new(Look);
        }
        Box::new(Swap { from: row(random.random_range(0..ROWS)) })
    }
}

struct Lay;

#[async_trait]
impl Job for Lay {
    async fn attempt(&self, attempt: &mut Attempt<'_>) -> Result<()> {
        for number in 0..ROWS {
            attempt.put(TABLE, &row(number), COLUMN, row((number + 1) % ROWS)).await?;
        }
        Ok(())
    }
}

struct Look;

#[async_trait]
impl Job for Look {
    async fn attempt(&self, attempt: &mut Attempt<'_>) -> Result<()> {
        attempt.scan(TABLE, &Range::default()).await.map(drop)
    }
}

/// `from -> a -> b -> to` becomes `from -> b -> a -> to`.
struct Swap {
    from: String,
}

#[async_trait]
impl Job for Swap {
    async fn attempt(&self, attempt: &mut Attempt<'_>) -> Result<()> {
        let a = next(attempt, &self.from).await?;
        let b = next(attempt, &a).await?;
        let to = next(attempt, &b).await?;
        attempt.put(TABLE, &self.from, COLUMN, &b).await?;
        attempt.put(TABLE, &b, COLUMN, &a).await?;
        attempt.put(TABLE, &a, COLUMN, &to).await
    }
}

async fn next(attempt: &mut Attempt<'_>, row: &str) -> Result<String> {
    let found = attempt.get(TABLE, row, COLUMN).await?;
    match found.as_deref().and_then(value::content) {
        Some(next) => Ok(next.to_owned()),
        None => Err(Error::corrupt(format!("the ring at {row}"), "it ends here")),
    }
}
