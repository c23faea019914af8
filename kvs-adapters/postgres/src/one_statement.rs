//! A batch as one statement, which is a transaction by itself.
//!
//! ```text
//!   WITH held AS (SELECT … FOR SHARE), b AS (INSERT …), a AS (INSERT …) SELECT 1 / (SELECT count(*) FROM held)
//!         └ runs first, and ends everything if it finds nothing                    └ of no held row: an error
//! ```
//!
//! One message instead of one for each table, for BEGIN and for COMMIT: each costs the server a round of parsing and the
//! caller a wake-up, which small batches feel most.
//!
//! The server runs what nobody reads from last: in the reverse of the order in which it is written, hence written in the
//! reverse of the order that all writers keep. It makes no promise about that; should it ever change, two
//! writers of the same places may wait for each other, one of them is told so, and tries again.
//!
//! Which tables a batch writes makes a statement of its own. There may be very many of them: only those that come again and
//! again are prepared, and few.

use crate::errors::{Attempt, Failure, Stakes, explain};
use crate::session::{Param, Server};
use crate::write::{Part, Stand, wave};
use atlas_kvs::Durability;
use parking_lot::Mutex;
use std::collections::HashMap;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

/// How many different statements are remembered.
const SHAPES_MAX: usize = 64;
/// A statement that is wanted so often is prepared.
const WANTED: u32 = 2;

/// The statements that batches have wanted lately.
#[derive(Debug, Default)]
pub(crate) struct Shapes {
    wanted: Mutex<HashMap<String, u32>>,
}

impl Shapes {
    /// Whether a statement is wanted often enough. Those that have to be forgotten for that are handed to `forget`.
    fn want(&self, sql: &str, forget: impl FnMut(String)) -> bool {
        let mut wanted = self.wanted.lock();
        if let Some(times) = wanted.get_mut(sql) {
            *times = times.saturating_add(1);
            return *times >= WANTED;
        }
        if wanted.len() >= SHAPES_MAX {
            wanted.drain().filter(|(_, times)| *times >= WANTED).map(|(sql, _)| sql).for_each(forget);
        }
        wanted.insert(sql.to_owned(), 1);
        false
    }
}

impl Server {
    /// Writes all parts, or nothing. `None` if it is not for one statement; nothing was written then.
    pub(crate) async fn write_as_one(&self, parts: &[Part<'_, '_>], durability: Durability) -> Attempt<Option<()>> {
        if wave(parts) < parts.len() {
            return Ok(None);
        }
        let sql = self.as_one(parts, durability);
        let forget = |sql: String| self.forget_statement(&sql);
        if !self.shapes.want(&sql, forget) {
            return Ok(None);
        }
        let params: Vec<Param<'_>> = parts.iter().flat_map(Part::params).collect();
        let mut session = self.session().await?;
        match session.execute(&sql, &params).await {
            Ok(_) => Ok(Some(())),
            // Nothing was written. One by one they will tell whose fault it is.
            Err(failure) if is_for_somebody(&failure) => Ok(None),
            Err(failure) => Err(explain(failure, Stakes::Committed)),
        }
    }

    fn as_one(&self, parts: &[Part<'_, '_>], durability: Durability) -> String {
        let mut first = 1;
        let mut queries = Vec::with_capacity(parts.len());
        let mut holds = "1";
        for (place, part) in parts.iter().enumerate() {
            queries.push(match part {
                Part::Guard(guard) => {
                    holds = "1 / (SELECT count(*) FROM held)";
                    format!("held AS MATERIALIZED ({})", guard.lock(self))
                }
                Part::Write(statement) => format!("w{place} AS ({})", statement.sql(self, &Stand::alone(first))),
            });
            first += part.params().len();
        }
        queries.reverse();
        // Until the end of the transaction, which is the end of the statement.
        let relaxed = match durability {
            Durability::Relaxed => ", set_config('synchronous_commit', 'off', true)",
            Durability::Synced => "",
        };
        format!("WITH {} SELECT {holds}{relaxed}", queries.join(", "))
    }
}

/// True if the server says that a table is not there, a guard does not hold, or another value stands in the way.
fn is_for_somebody(failure: &Failure) -> bool {
    failure.spares_connection()
        && (failure.misses_table()
            || [SqlState::DIVISION_BY_ZERO, SqlState::NOT_NULL_VIOLATION].iter().any(|state| failure.is(state)))
}

/// What statements are prepared with: their parameters have their types with them.
pub(crate) const NO_TYPES: &[Type] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(shapes: &Shapes, sql: &str) -> (bool, Vec<String>) {
        let mut forgotten = Vec::new();
        let is_wanted = shapes.want(sql, |sql| forgotten.push(sql));
        (is_wanted, forgotten)
    }

    #[test]
    fn what_comes_again_is_prepared_and_few_are_remembered() {
        let shapes = Shapes::default();
        assert_eq!(wanted(&shapes, "again"), (false, vec![]));
        assert_eq!(wanted(&shapes, "again"), (true, vec![]));
        for number in 1..SHAPES_MAX {
            assert_eq!(wanted(&shapes, &number.to_string()), (false, vec![]));
        }
        assert_eq!(wanted(&shapes, "again"), (true, vec![]));
        assert_eq!(wanted(&shapes, "one too many"), (false, vec!["again".to_owned()]), "only it was prepared");
        assert_eq!(shapes.wanted.lock().len(), 1);
        assert_eq!(wanted(&shapes, "again"), (false, vec![]));
    }
}
