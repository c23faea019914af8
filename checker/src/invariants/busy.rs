//! Busy cells: every commit raises a counter by one, so that it counts the commits. In a touch table a commit may
//! also repeat the value that stands there, which counts nothing.

use super::Look;
use crate::index::CellId;
use crate::timeline::{Version, Witness};
use crate::value;

const TABLE: &str = "busy";
const COLUMN: &str = "counter";

pub(super) fn check(look: &mut Look<'_, '_, '_>) {
    for cell in look.cells_of(TABLE, COLUMN) {
        let versions = look.committed_versions(cell);
        if let Some(first) = versions.first() {
            look.looks += 1;
            if first.value.and_then(value::number) != Some(0) {
                look.broken(&[Witness::Transaction(first.txn)], &[cell], "the counter does not begin with 0".into());
            }
        }
        for pair in versions.windows(2) {
            look.looks += 1;
            if let Some(problem) = problem(look, cell, &pair[0], &pair[1]) {
                let by = [Witness::Transaction(pair[0].txn), Witness::Transaction(pair[1].txn)];
                look.broken(&by, &[cell], problem);
            }
        }
    }
}

fn problem(look: &Look<'_, '_, '_>, cell: CellId, before: &Version<'_>, after: &Version<'_>) -> Option<String> {
    if look.timeline.index.table_of(cell).touch && before.value == after.value {
        return None;
    }
    let number = |version: &Version<'_>| version.value.and_then(value::number);
    match (number(before), number(after)) {
        (Some(before), Some(after)) if before.checked_add(1) == Some(after) => None,
        (Some(before), Some(after)) => Some(format!("the counter goes from {before} to {after}")),
        (_, None) => Some("the counter is no <number>#<tag> any more".into()),
        (None, Some(_)) => None,
    }
}
