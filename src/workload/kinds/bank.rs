//! Bank: money is moved between accounts.

use super::{Job, Workload};
use crate::Result;
use crate::schema::ConflictHandler;
use crate::workload::attempt::{Attempt, Range, Table};
use async_trait::async_trait;
use rand::Rng;
use rand::rngs::StdRng;

const TABLE: &str = "accounts";
const COLUMN: &str = "balance";
const ACCOUNTS: usize = 50;
const OPENING: i64 = 100;
/// One transaction in this many looks at all accounts.
const AUDIT_EVERY: u32 = 10;

pub(super) struct Bank;

fn account(number: usize) -> String {
    format!("account {number:03}")
}

impl Workload for Bank {
    fn tables(&self) -> Vec<Table> {
        vec![Table { name: TABLE, handler: ConflictHandler::RetryOnWriteWriteCell }]
    }

    fn set_up(&self) -> Option<Box<dyn Job>> {
        Some(Box::new(Open))
    }

    fn next(&self, _client: u64, random: &mut StdRng) -> Box<dyn Job> {
        if random.random_ratio(1, AUDIT_EVERY) {
            return Box::new(Audit);
        }
        let from = random.random_range(0..ACCOUNTS);
        let to = (from + random.random_range(1..ACCOUNTS)) % ACCOUNTS;
        Box::new(Transfer { from: account(from), to: account(to), amount: random.random_range(1..=20) })
    }
}

struct Open;

#[async_trait]
impl Job for Open {
    async fn attempt(&self, attempt: &mut Attempt<'_>) -> Result<()> {
        for number in 0..ACCOUNTS {
            attempt.put(TABLE, &account(number), COLUMN, OPENING).await?;
        }
        Ok(())
    }
}

struct Audit;

#[async_trait]
impl Job for Audit {
    async fn attempt(&self, attempt: &mut Attempt<'_>) -> Result<()> {
        attempt.scan(TABLE, &Range::default()).await.map(drop)
    }
}

struct Transfer {
    from: String,
    to: String,
    amount: i64,
}

#[async_trait]
impl Job for Transfer {
    async fn attempt(&self, attempt: &mut Attempt<'_>) -> Result<()> {
        let from = attempt.get_number(TABLE, &self.from, COLUMN).await?.unwrap_or(0);
        let to = attempt.get_number(TABLE, &self.to, COLUMN).await?.unwrap_or(0);
        if from < self.amount {
            return Ok(());
        }
        attempt.put(TABLE, &self.from, COLUMN, from - self.amount).await?;
        attempt.put(TABLE, &self.to, COLUMN, to + self.amount).await
    }
}
