//! Write skew: two numbers may each fall as long as their sum does not fall below zero. Only a serializable table
//! keeps that; under snapshot isolation it is allowed to break, and is not looked at.

use super::Look;
use crate::index::CellId;
use crate::timeline::Witness;
use crate::value;
use std::collections::BTreeMap;

const TABLE: &str = "pairs";
const COLUMNS: [&str; 2] = ["a", "b"];

pub(super) fn check(look: &mut Look<'_, '_, '_>) {
    if !look.is_serializable(TABLE) {
        return;
    }
    look.snapshots(&[TABLE], |look, by, seen| {
        let mut pairs: BTreeMap<&str, [Option<(CellId, i64)>; 2]> = BTreeMap::new();
        for (cell, value) in seen {
            insert(look, &mut pairs, *cell, value.and_then(value::number));
        }
        for (row, pair) in pairs {
            judge(look, by, row, pair);
        }
    });
    after_each_commit(look);
}

fn after_each_commit(look: &mut Look<'_, '_, '_>) {
    let mut pairs: BTreeMap<&str, [Option<(CellId, i64)>; 2]> = BTreeMap::new();
    for txn in look.commits() {
        let mut touched = Vec::new();
        for write in look.timeline.index.writes(txn) {
            touched.extend(insert(look, &mut pairs, write.cell, write.value.and_then(value::number)));
        }
        touched.dedup();
        for row in touched {
            judge(look, Witness::Transaction(txn), row, pairs[row]);
        }
    }
}

/// Returns the row if the cell is one of a pair.
fn insert<'h>(
    look: &Look<'_, '_, 'h>,
    pairs: &mut BTreeMap<&'h str, [Option<(CellId, i64)>; 2]>,
    cell: CellId,
    number: Option<i64>,
) -> Option<&'h str> {
    let index = look.timeline.index;
    let info = &index.cells[cell];
    let column = COLUMNS.iter().position(|col| *col == info.col).filter(|_| index.table_of(cell).name == TABLE)?;
    pairs.entry(info.row).or_default()[column] = number.map(|number| (cell, number));
    Some(info.row)
}

fn judge(look: &mut Look<'_, '_, '_>, by: Witness, row: &str, pair: [Option<(CellId, i64)>; 2]) {
    let [Some((a_cell, a)), Some((b_cell, b))] = pair else { return };
    look.looks += 1;
    if a.saturating_add(b) < 0 {
        let problem = format!("the pair {} is {a} and {b}, below zero together", crate::text::plain(row));
        look.broken(&[by], &[a_cell, b_cell], problem);
    }
}
