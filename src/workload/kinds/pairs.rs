//! Write skew: one of two numbers is lowered if both together allow it.

use super::{Job, Workload};
use crate::Result;
use crate::schema::ConflictHandler;
use crate::workload::attempt::{Attempt, Table};
use async_trait::async_trait;
use rand::Rng;
use rand::rngs::StdRng;

const TABLE: &str = "pairs";
const COLUMNS: [&str; 2] = ["a", "b"];
const PAIRS: usize = 6;
/// Raised to so much again when a pair is used up.
const FULL: i64 = 3;

pub(super) struct Pairs;

fn pair(number: usize) -> String {
    format!("pair {number}")
}

impl Workload for Pairs {
    fn tables(&self) -> Vec<Table> {
        vec![Table { name: TABLE, handler: ConflictHandler::SerializableCell }]
    }

    fn set_up(&self) -> Option<Box<dyn Job>> {
        Some(Box::new(Fill))
    }

    fn next(&self, _client: u64, random: &mut StdRng) -> Box<dyn Job> {
        Box::new(Take { row: pair(random.random_range(0..PAIRS)), column: random.random_range(0..2) })
    }
}

struct Fill;

#[async_trait]
impl Job for Fill {
    async fn attempt(&self, attempt: &mut Attempt<'_>) -> Result<()> {
        for number in 0..PAIRS {
            for column in COLUMNS {
                attempt.put(TABLE, &pair(number), column, FULL).await?;
            }
        }
        Ok(())
    }
}

struct Take {
    row: String,
    column: usize,
}

#[async_trait]
impl Job for Take {
    async fn attempt(&self, attempt: &mut Attempt<'_>) -> Result<()> {
        let mut numbers = [0; 2];
        for (number, column) in numbers.iter_mut().zip(COLUMNS) {
            *number = attempt.get_number(TABLE, &self.row, column).await?.unwrap_or(0);
        }
        let here = numbers[self.column];
        // A rule over both cells, kept by writing one of them: it holds only if the other one stands.
        let after = if numbers[0] + numbers[1] >= 1 { here - 1 } else { here + FULL };
        attempt.put(TABLE, &self.row, COLUMNS[self.column], after).await
    }
}
