//! First committer wins: of two committed writers of a cell one is in the other one's snapshot.

use super::classify::Reading;
use crate::index::CellId;
use crate::report::{Findings, Kind};
use crate::story::{Story, name};
use crate::timeline::{Timeline, Version, Witness};

pub(super) fn check(timeline: &Timeline<'_, '_>, findings: &mut Findings) {
    for cell in 0..timeline.index.cells.len() {
        if timeline.index.table_of(cell).no_conflict {
            continue;
        }
        let mut earlier: Option<Version<'_>> = None;
        for &version in timeline.versions(cell).iter().filter(|version| timeline.is_committed(version.txn)) {
            // Versions stand in the order of their commits: if the one before was seen, so were all before it.
            if let Some(first) = earlier.filter(|first| first.commit_ts >= timeline.index.txn(version.txn).read_ts)
                && !is_touch(timeline, cell, first, version)
            {
                conflict(timeline, findings, cell, first, version);
            }
            earlier = Some(version);
        }
    }
}

/// In a touch table a writer may leave the value as it is. That takes nothing from the others: what they read still
/// stands when they commit. (The layer refuses some of them all the same.)
fn is_touch(timeline: &Timeline<'_, '_>, cell: CellId, first: Version<'_>, second: Version<'_>) -> bool {
    let read_ts = timeline.index.txn(second.txn).read_ts;
    let committed = timeline.versions(cell).iter().filter(|version| timeline.is_committed(version.txn));
    let before = committed.take_while(|version| version.commit_ts < read_ts).last();
    timeline.index.table_of(cell).touch && first.value == before.and_then(|version| version.value)
}

fn conflict(
    timeline: &Timeline<'_, '_>,
    findings: &mut Findings,
    cell: CellId,
    first: Version<'_>,
    second: Version<'_>,
) {
    let by = Witness::Transaction(second.txn);
    let mut read = None;
    timeline.index.observe(second.txn, |seen| {
        if seen.cell == cell && seen.own.is_none() {
            read = Some(Reading { by, cell, below: 0, got: seen.got, seen: Some(seen) });
        }
    });
    let kind = if read.is_some() { Kind::LostUpdate } else { Kind::WriteConflict };
    findings.add(kind, || {
        let other = Witness::Transaction(first.txn);
        let message = format!(
            "{} and {} both wrote {} and committed at {} and {}; the second one's snapshot ends below {}, so it had to lose",
            name(timeline, other),
            name(timeline, by),
            timeline.index.cell_name(cell),
            first.commit_ts,
            second.commit_ts,
            timeline.index.txn(second.txn).read_ts,
        );
        let mut story = Story::new(timeline, &[other, by], &[cell]);
        if let Some(read) = read {
            story.read(by, read.what(timeline), None);
        }
        (message, vec![first.txn, second.txn], story.draw())
    });
}
