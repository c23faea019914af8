//! Random: anything a transaction can do, in tables of every isolation.

use super::{Job, Workload};
use crate::Result;
use crate::schema::ConflictHandler;
use crate::workload::attempt::{Attempt, Range, Table};
use async_trait::async_trait;
use rand::Rng;
use rand::rngs::StdRng;

const SNAPSHOT: &str = "snapshot";
const SERIALIZABLE: &str = "serializable";
const UNCHECKED: &str = "unchecked";
const INDEX: &str = "index";
const TABLES: [&str; 3] = [SNAPSHOT, SERIALIZABLE, UNCHECKED];
const ROWS: usize = 12;
const COLUMNS: usize = 4;
const OPS_MAX: usize = 6;

pub(super) struct Random;

impl Workload for Random {
    fn tables(&self) -> Vec<Table> {
        vec![
            Table { name: SNAPSHOT, handler: ConflictHandler::RetryOnWriteWriteCell },
            Table { name: SERIALIZABLE, handler: ConflictHandler::Serializable },
            Table { name: UNCHECKED, handler: ConflictHandler::IgnoreAll },
            Table { name: INDEX, handler: ConflictHandler::SerializableIndex },
        ]
    }

    fn set_up(&self) -> Option<Box<dyn Job>> {
        None
    }

    fn next(&self, _client: u64, random: &mut StdRng) -> Box<dyn Job> {
        let ops = random.random_range(1..=OPS_MAX);
        Box::new(Steps((0..ops).map(|_| Step::draw(random)).collect()))
    }
}

enum Step {
    Get {
        table: &'static str,
        row: String,
        col: String,
    },
    Put {
        table: &'static str,
        row: String,
        col: String,
    },
    Delete {
        table: &'static str,
        row: String,
        col: String,
    },
    Scan {
        table: &'static str,
        range: Range,
    },
    /// A cell of the serializable table and its entry in the index, ordered by column.
    Indexed {
        row: String,
        col: String,
        delete: bool,
    },
}

impl Step {
    fn draw(random: &mut StdRng) -> Step {
        let table = TABLES[random.random_range(0..TABLES.len())];
        let (row, col) = (row(random.random_range(0..ROWS)), col(random.random_range(0..COLUMNS)));
        match random.random_range(0..10) {
            0..=2 => Step::Get { table, row, col },
            3..=4 => Step::Put { table, row, col },
            5 => Step::Delete { table, row, col },
            6 => Step::Indexed { row, col, delete: random.random_bool(0.3) },
            7 => Step::Scan { table: INDEX, range: range(random) },
            _ => Step::Scan { table, range: range(random) },
        }
    }
}

fn row(number: usize) -> String {
    format!("r{number:02}")
}

fn col(number: usize) -> String {
    format!("c{number}")
}

fn range(random: &mut StdRng) -> Range {
    let between = |random: &mut StdRng, count: usize| {
        let start = random.random_range(0..count);
        (start, random.random_range(start..=count))
    };
    let (start_row, end_row) = between(random, ROWS);
    let (start_col, end_col) = between(random, COLUMNS);
    let some_columns = random.random_bool(0.4);
    Range {
        start_row: random.random_bool(0.8).then(|| row(start_row)),
        end_row: random.random_bool(0.8).then(|| row(end_row)),
        start_col: some_columns.then(|| col(start_col)),
        end_col: some_columns.then(|| col(end_col)),
        reverse: random.random_bool(0.3),
        at_most: random.random_bool(0.4).then(|| random.random_range(1..4)),
    }
}

struct Steps(Vec<Step>);

#[async_trait]
impl Job for Steps {
    async fn attempt(&self, attempt: &mut Attempt<'_>) -> Result<()> {
        for step in &self.0 {
            match step {
                Step::Get { table, row, col } => drop(attempt.get(table, row, col).await?),
                Step::Put { table, row, col } => attempt.put(table, row, col, "x").await?,
                Step::Delete { table, row, col } => attempt.delete(table, row, col).await?,
                Step::Scan { table, range } => drop(attempt.scan(table, range).await?),
                Step::Indexed { row, col, delete: false } => {
                    attempt.put(SERIALIZABLE, row, col, "x").await?;
                    attempt.put(INDEX, col, row, "x").await?;
                }
                Step::Indexed { row, col, delete: true } => {
                    attempt.delete(SERIALIZABLE, row, col).await?;
                    attempt.delete(INDEX, col, row).await?;
                }
            }
        }
        Ok(())
    }
}
