//! Whose turn it is after a lost conflict.
//!
//! Where one leader commits for all, a loser knows which commit it lost to, and that trying anew is of use as soon as
//! that commit can be seen. On a cell that many want, all losers would then try at once, and all but one lose again. So
//! losers of a cell try one after the other; whoever comes fresh tries at once:
//!
//! ```text
//!   fresh ──────────────────────────> try
//!   loser ── turn ── commit is seen ─> try ── turn is given back
//!   loser ──────────── turn ──────────────────── commit is seen ─> try
//! ```
//!
//! Where groups of commits go one after the other, a commit that was admitted is seen at once, and the turn ends when the attempt is
//! admitted ([`super::dependency`]): the next loser builds on it. Elsewhere it is seen when it is durable, and the turn lasts
//! until the attempt was answered.
//!
//! Nobody waits for a turn for long, and nobody holds one while it waits for another. A turn promises nothing: what
//! decides is the conflict check.

use super::dependency::Dependency;
use super::pipeline::Pipeline;
use crate::Error;
use atlas_kvs::Timestamp;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Cells share this many turns.
const TURNS: usize = 1024;
/// How long a turn, or the sight of a commit, is waited for.
const PATIENCE: Duration = Duration::from_millis(200);

/// The turns of a store.
#[derive(Debug)]
pub(crate) struct Turns(Box<[Arc<Mutex<()>>]>);

impl Default for Turns {
    fn default() -> Turns {
        Turns((0..TURNS).map(|_| Arc::default()).collect())
    }
}

/// What was lost, and to which commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    what: u64,
    committed_at: Timestamp,
}

impl Lost {
    /// What an error says of a conflict with a commit; nothing for other errors.
    pub(crate) fn by(error: &Error) -> Option<Lost> {
        let mut hasher = DefaultHasher::new();
        let committed_at = match error {
            Error::Conflict { table, cell, committed_at, .. } => {
                (table, cell).hash(&mut hasher);
                committed_at
            }
            Error::ReadConflict { table, what, committed_at, .. } => {
                (table, what).hash(&mut hasher);
                committed_at
            }
            _ => return None,
        };
        Some(Lost { what: hasher.finish(), committed_at: (*committed_at)? })
    }
}

/// What an attempt after a lost conflict begins with.
#[derive(Debug, Default)]
pub(crate) struct NextAttempt {
    /// Until the next one's turn.
    pub(crate) turn: Option<OwnedMutexGuard<()>>,
    /// What is on its way and may be seen; nothing if it sees what is in the store.
    pub(crate) dependency: Option<Dependency>,
}

impl Turns {
    /// Waits for the turn, and until a new attempt sees the commit that this one lost to. The turn lasts until the attempt is
    /// admitted where the next one sees it then, and else until it has ended.
    ///
    /// Cancel safe.
    pub(crate) async fn after(&self, lost: Lost, pipeline: &Pipeline) -> NextAttempt {
        let turn = self.0[lost.what as usize % TURNS].clone();
        let turn = tokio::time::timeout(PATIENCE, turn.lock_owned()).await.ok();
        let dependency = pipeline.build_on(lost.committed_at);
        if dependency.is_none() {
            // The group of that commit may fail; then it will never be seen.
            let _ = tokio::time::timeout(PATIENCE, pipeline.published(lost.committed_at)).await;
        }
        NextAttempt { turn, dependency }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atlas_kvs::{Cell, TableRef};

    #[test]
    fn only_conflicts_with_a_commit_are_waited_for() {
        let table = TableRef::new("t").expect("a name");
        let conflict = |row: &str, committed_at| Error::Conflict {
            table: table.clone(),
            cell: Cell::copy_from(row, "c"),
            committed_at,
            read_ts: Timestamp::FIRST,
        };
        let at = Some(Timestamp::saturating(9));
        let lost = Lost::by(&conflict("a", at)).expect("a conflict");
        assert_eq!(lost.committed_at, Timestamp::saturating(9));
        assert_eq!(Lost::by(&conflict("a", at)), Some(lost));
        assert_ne!(Lost::by(&conflict("b", at)), Some(lost), "another cell has another turn");
        assert_eq!(Lost::by(&conflict("a", None)), None, "it is reserved for somebody");
        assert_eq!(Lost::by(&Error::Interrupted), None);
    }
}
