//! What goes of a cell: a decision about values, without a store.

use crate::schema::SweepStrategy;
use crate::transaction::entry::Fate;
use atlas_kvs::Timestamp;

/// A version as the decision needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// Start timestamp of its writer.
    pub(super) ts: Timestamp,
    /// What became of the writer; not `Undecided` below the sweep timestamp.
    pub(super) fate: Fate,
    /// It deletes the cell.
    pub(super) tombstone: bool,
    /// Length of its content in bytes.
    pub(super) len: u64,
}

/// What goes of a cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Versions, oldest first.
    pub(super) delete: Vec<Timestamp>,
    /// Bytes of their contents.
    pub(super) bytes: u64,
    /// Somebody who comes too late must meet a sentinel.
    pub(super) sentinel: bool,
}

/// Decides. `versions` are those below `sweep_ts`, oldest first, the sentinel left out.
///
/// Readers at or above `sweep_ts` see the newest version, by start timestamp, that committed below their snapshot. The
/// newest that committed below `sweep_ts` is one they can all see or see past, so none sees what lies below it. That
/// holds for older versions with younger commits too, which only tables without conflict checks have: there the greater
/// start timestamp wins.
pub(super) fn plan(versions: &[Stored], sweep_ts: Timestamp, strategy: SweepStrategy) -> Plan {
    if strategy == SweepStrategy::Nothing {
        return Plan::default();
    }
    let kept = versions.iter().rposition(|version| matches!(version.fate, Fate::Committed(at) if at < sweep_ts));
    let mut plan = Plan::default();
    let mut shadowed = false;
    for (place, version) in versions.iter().enumerate() {
        let below = kept.is_some_and(|kept| place < kept);
        // Nobody sees the deletion of what is not there; removed last, because it is the newest.
        let bare = kept == Some(place) && version.tombstone && strategy == SweepStrategy::Thorough;
        if below || bare || version.fate == Fate::RolledBack {
            plan.delete.push(version.ts);
            plan.bytes += version.len;
            shadowed |= version.fate != Fate::RolledBack;
        }
    }
    // What was rolled back is missed by nobody.
    plan.sentinel = shadowed && strategy == SweepStrategy::Conservative;
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ts(number: u64) -> Timestamp {
        Timestamp::saturating(number)
    }

    fn committed(start: u64, commit: u64) -> Stored {
        Stored { ts: ts(start), fate: Fate::Committed(ts(commit)), tombstone: false, len: 1 }
    }

    fn deletion(start: u64, commit: u64) -> Stored {
        Stored { tombstone: true, ..committed(start, commit) }
    }

    fn rolled_back(start: u64) -> Stored {
        Stored { fate: Fate::RolledBack, ..committed(start, 1) }
    }

    fn deleted(versions: &[Stored], sweep_ts: u64, strategy: SweepStrategy) -> Vec<u64> {
        plan(versions, ts(sweep_ts), strategy).delete.into_iter().map(Timestamp::get).collect()
    }

    #[test]
    fn what_a_later_commit_hides_goes_and_that_commit_stays() {
        let versions = [committed(1, 2), rolled_back(3), committed(4, 5), committed(6, 20)];
        assert_eq!(deleted(&versions, 10, SweepStrategy::Conservative), [1, 3]);
        assert!(plan(&versions, ts(10), SweepStrategy::Conservative).sentinel);
        assert_eq!(deleted(&versions, 5, SweepStrategy::Conservative), [3], "a commit at the timestamp is too young");
        assert_eq!(deleted(&versions, 10, SweepStrategy::Nothing), [0; 0]);
    }

    #[test]
    fn a_deletion_stays_behind_a_sentinel_and_goes_where_sweep_is_thorough() {
        let versions = [committed(1, 2), deletion(3, 4), rolled_back(5)];
        assert_eq!(deleted(&versions, 10, SweepStrategy::Conservative), [1, 5]);
        assert_eq!(deleted(&versions, 10, SweepStrategy::Thorough), [1, 3, 5]);
        assert!(!plan(&versions, ts(10), SweepStrategy::Thorough).sentinel);
        assert_eq!(deleted(&versions, 4, SweepStrategy::Thorough), [5], "the deletion is too young");
    }

    #[test]
    fn what_was_rolled_back_needs_no_sentinel() {
        let planned = plan(&[rolled_back(1), committed(2, 3)], ts(10), SweepStrategy::Conservative);
        assert_eq!((planned.delete, planned.sentinel), (vec![ts(1)], false));
    }

    /// The value that a reader sees, as `read` decides it: the newest version that committed below its snapshot.
    fn seen(versions: &[Stored], read_ts: u64) -> Option<Timestamp> {
        let visible = |version: &&Stored| matches!(version.fate, Fate::Committed(at) if at < ts(read_ts));
        versions.iter().rev().find(visible).filter(|version| !version.tombstone).map(|version| version.ts)
    }

    proptest! {
        #[test]
        fn readers_at_or_above_see_the_same(
            written in proptest::collection::vec((1u64..4, 1u64..12, any::<bool>(), any::<bool>()), 0..8),
            sweep_ts in 1u64..40,
            thorough in any::<bool>(),
        ) {
            let mut start = 0;
            let versions: Vec<Stored> = written.into_iter().map(|(step, took, tombstone, counts)| {
                start += step;
                let fate = if counts { Fate::Committed(ts(start + took)) } else { Fate::RolledBack };
                Stored { ts: ts(start), fate, tombstone, len: 1 }
            }).take_while(|version| version.ts < ts(sweep_ts)).collect();
            let strategy = if thorough { SweepStrategy::Thorough } else { SweepStrategy::Conservative };
            let planned = plan(&versions, ts(sweep_ts), strategy);
            // However far the deletion has come, oldest first.
            for gone in 0..=planned.delete.len() {
                let rest: Vec<Stored> = versions.iter().copied()
                    .filter(|version| !planned.delete[..gone].contains(&version.ts)).collect();
                for read_ts in sweep_ts..60 {
                    prop_assert_eq!(seen(&rest, read_ts), seen(&versions, read_ts), "at {}", read_ts);
                }
                // A reader that comes too late sees what it should, or nothing where a sentinel stands.
                for read_ts in 1..sweep_ts {
                    let (now, before) = (seen(&rest, read_ts), seen(&versions, read_ts));
                    prop_assert!(now == before || now.is_none() && (planned.sentinel || thorough));
                }
            }
            let sorted = planned.delete.windows(2).all(|pair| pair[0] < pair[1]);
            prop_assert!(sorted);
        }
    }
}
