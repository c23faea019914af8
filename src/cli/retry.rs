//! Small transactions of the command line, done again after conflicts.

use crate::Result;
use crate::ops::{BeginOptions, Operations, TransactionOps};
use atlas_kvs::Timestamp;
use rand::Rng;
use std::time::Duration;

const ATTEMPTS_MAX: u32 = 20;

/// Runs `work` in a transaction and commits it, anew after a conflict. Nothing is done again once the outcome of a
/// commit is unknown.
pub(crate) async fn in_transaction<T>(
    operations: &dyn Operations,
    work: impl AsyncFn(&dyn TransactionOps) -> Result<T>,
) -> Result<(T, Option<Timestamp>)> {
    let mut attempt = 1;
    loop {
        match once(operations, &work).await {
            Err(error) if error.is_retriable() && attempt < ATTEMPTS_MAX => {
                tracing::debug!(attempt, %error, "the transaction is done again");
                tokio::time::sleep(pause_before(attempt)).await;
                attempt += 1;
            }
            result => return result,
        }
    }
}

async fn once<T>(
    operations: &dyn Operations,
    work: &impl AsyncFn(&dyn TransactionOps) -> Result<T>,
) -> Result<(T, Option<Timestamp>)> {
    let transaction = operations.begin_transaction(BeginOptions::default()).await?;
    let result = work(&*transaction).await?;
    Ok((result, transaction.commit().await?))
}

/// Longer with every attempt, up to about a second, and never the same for two who met.
pub(crate) fn pause_before(attempt: u32) -> Duration {
    let ceiling_ms = 2u64 << attempt.min(9);
    Duration::from_micros(rand::rng().random_range(500..=ceiling_ms * 1000))
}
