//! A batch as one statement, which is a transaction by itself.
//!
//! ```text
//!   WITH b AS (INSERT …), a AS (INSERT …), held AS (SELECT … FOR SHARE) SELECT 1 / (SELECT count(*) FROM held)
//!        3                2                1                             0: reads the row; of none it is an error
//! ```
//!
//! One message instead of one for each table, for BEGIN and for COMMIT: each costs the server a round of parsing and the
//! caller a wake-up, which small batches feel most.
//!
//! The server runs what nobody reads from last: in the reverse of the order in which it is written, hence written in the
//! reverse of the order that all writers keep. It makes no promise about that; should it ever change, two
//! writers of the same places may wait for each other, one of them is told so, and tries again.
//!
//! What is committed lies in places of its own: rows are put as new ones, without looking for others there first. Where one
//! is in the way after all (a batch that is sent once more, a cell that is set again and again) the server refuses the
//! statement, and its tables are looked at first for a while.
//!
//! What is removed is looked for as the statement finds it when it begins, and what it has waited for meanwhile is not seen: a
//! batch that removes is never one statement.
//!
//! Which tables a batch writes makes a statement of its own. There may be very many of them: only those that come again and
//! again are prepared, and few.

use crate::errors::{Attempt, Failure, Stakes, explain};
use crate::session::{Param, Server};
use crate::write::{Part, Stand, wave};
use atlas_kvs::Durability;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

/// How many different statements are remembered.
const SHAPES_MAX: usize = 64;
/// A statement that is wanted so often is prepared, which each connection does once.
const WANTED: u32 = 3;
/// After a row was in the way: how often a statement looks first.
const LOOKS: u32 = 1_000;

/// The statements that batches have wanted lately.
#[derive(Debug, Default)]
pub(crate) struct Shapes {
    // Invariant: no more than SHAPES_MAX.
    wanted: Mutex<HashMap<String, Wanted>>,
    /// How often any of them was wanted.
    clock: AtomicU64,
}

#[derive(Debug)]
struct Wanted {
    /// Its text when all rows are new.
    new: String,
    times: u32,
    /// When it was wanted last.
    last: u64,
    /// How often it is to look before it puts.
    looks: u32,
}

/// How a batch becomes one statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// All rows are new ones.
    New,
    Looks,
}

impl Shapes {
    /// How to run a statement, with its two texts, that is wanted often enough. Those that have to be forgotten for that are
    /// handed to `forget`.
    fn want(&self, looks: &str, new: &str, mut forget: impl FnMut(&str)) -> Option<Way> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut shapes = self.wanted.lock();
        if let Some(wanted) = shapes.get_mut(looks) {
            wanted.last = now;
            wanted.times = wanted.times.saturating_add(1);
            if wanted.times < WANTED {
                return None;
            }
            if wanted.looks == 0 {
                return Some(Way::New);
            }
            wanted.looks -= 1;
            return Some(Way::Looks);
        }
        if shapes.len() >= SHAPES_MAX {
            // The older half: to look for the oldest each time would cost as much as what it saves.
            let mut lasts: Vec<u64> = shapes.values().map(|wanted| wanted.last).collect();
            let (_, &mut middle, _) = lasts.select_nth_unstable(SHAPES_MAX / 2);
            for (looks, wanted) in shapes.extract_if(|_, wanted| wanted.last < middle) {
                if wanted.times >= WANTED {
                    forget(&looks);
                    forget(&wanted.new);
                }
            }
        }
        shapes.insert(looks.to_owned(), Wanted { new: new.to_owned(), times: 1, last: now, looks: 0 });
        None
    }

    /// A row was in the way.
    fn collided(&self, looks: &str) {
        if let Some(wanted) = self.wanted.lock().get_mut(looks) {
            wanted.looks = LOOKS;
        }
    }
}

impl Server {
    /// Writes all parts, or nothing. `None` if it is not for one statement; nothing was written then.
    pub(crate) async fn write_as_one(&self, parts: &[Part<'_, '_>], durability: Durability) -> Attempt<Option<()>> {
        if wave(parts) < parts.len() || parts.iter().any(Part::removes) {
            return Ok(None);
        }
        let [looks, new] = [Way::Looks, Way::New].map(|way| self.as_one(parts, durability, way));
        let sql = match self.shapes.want(&looks, &new, |sql| self.forget_statement(sql)) {
            Some(Way::Looks) => &looks,
            Some(Way::New) => &new,
            None => return Ok(None),
        };
        let params: Vec<Param<'_>> = parts.iter().flat_map(Part::params).collect();
        let mut session = self.session().await?;
        match session.execute(sql, &params).await {
            Ok(_) => Ok(Some(())),
            // Nothing was written. One by one they find the row, or tell whose fault it is.
            Err(failure) if failure.spares_connection() && failure.is(&SqlState::UNIQUE_VIOLATION) => {
                self.shapes.collided(&looks);
                Ok(None)
            }
            Err(failure) if is_for_somebody(&failure) => Ok(None),
            Err(failure) => Err(explain(failure, Stakes::Committed)),
        }
    }

    fn as_one(&self, parts: &[Part<'_, '_>], durability: Durability, way: Way) -> String {
        let mut first = 1;
        let mut queries = Vec::with_capacity(parts.len());
        let mut holds = "1";
        for (place, part) in parts.iter().enumerate() {
            queries.push(match part {
                Part::Guard(guard) => {
                    holds = "1 / (SELECT count(*) FROM held)";
                    format!("held AS MATERIALIZED ({})", guard.lock(self))
                }
                Part::Write(statement) => {
                    let stand = Stand::alone(first);
                    let stand = if way == Way::New { stand.new_rows() } else { stand };
                    format!("w{place} AS ({})", statement.sql(self, &stand))
                }
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

    fn want(shapes: &Shapes, sql: &str) -> (Option<Way>, Vec<String>) {
        let mut forgotten = Vec::new();
        let way = shapes.want(sql, &format!("new {sql}"), |sql| forgotten.push(sql.to_owned()));
        (way, forgotten)
    }

    #[test]
    fn what_comes_again_is_prepared_and_the_older_half_is_forgotten() {
        let shapes = Shapes::default();
        for time in 1..=2 * WANTED {
            let way = (time >= WANTED).then_some(Way::New);
            assert_eq!(want(&shapes, "again"), (way, vec![]));
            assert_eq!(want(&shapes, "lately"), (way, vec![]));
        }
        for number in 2..SHAPES_MAX {
            assert_eq!(want(&shapes, &number.to_string()), (None, vec![]));
        }
        assert_eq!(want(&shapes, "lately"), (Some(Way::New), vec![]));
        let prepared = vec!["again".to_owned(), "new again".to_owned()];
        assert_eq!(want(&shapes, "one too many"), (None, prepared), "only it was prepared");
        assert_eq!(shapes.wanted.lock().len(), SHAPES_MAX / 2 + 1);
        assert_eq!(want(&shapes, "again"), (None, vec![]));
        assert_eq!(want(&shapes, "lately"), (Some(Way::New), vec![]));
    }

    #[test]
    fn after_a_row_was_in_the_way_it_looks_for_a_while() {
        let shapes = Shapes::default();
        shapes.collided("nobody knows it");
        for _ in 1..WANTED {
            assert_eq!(want(&shapes, "s").0, None);
        }
        assert_eq!(want(&shapes, "s").0, Some(Way::New));
        shapes.collided("s");
        for _ in 0..LOOKS {
            assert_eq!(want(&shapes, "s").0, Some(Way::Looks));
        }
        assert_eq!(want(&shapes, "s").0, Some(Way::New));
    }
}
