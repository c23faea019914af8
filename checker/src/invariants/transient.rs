//! Transient rows: a row and its entry in the index come and go together.

use super::Look;
use crate::index::CellId;
use crate::timeline::Witness;
use std::collections::BTreeMap;

const TABLE: &str = "transient";
const INDEX: &str = "transient_index";
const COLUMN: &str = "row";

/// Of a row and of its index entry: its cell, and whether it was there.
type Both = [Option<(CellId, bool)>; 2];

pub(super) fn check(look: &mut Look<'_, '_, '_>) {
    look.snapshots(&[TABLE, INDEX], |look, by, seen| {
        let mut rows: BTreeMap<&str, Both> = BTreeMap::new();
        for (cell, value) in seen {
            insert(look, &mut rows, *cell, value.is_some());
        }
        for (row, both) in rows {
            // Whoever saw only one of them can't tell.
            if both.iter().all(Option::is_some) {
                judge(look, by, row, both);
            }
        }
    });
    after_each_commit(look);
}

fn after_each_commit(look: &mut Look<'_, '_, '_>) {
    let mut rows: BTreeMap<&str, Both> = BTreeMap::new();
    for txn in look.commits() {
        let mut touched = Vec::new();
        for write in look.timeline.index.writes(txn) {
            touched.extend(insert(look, &mut rows, write.cell, write.value.is_some()));
        }
        touched.sort_unstable();
        touched.dedup();
        for row in touched {
            judge(look, Witness::Transaction(txn), row, rows[row]);
        }
    }
}

fn insert<'h>(
    look: &Look<'_, '_, 'h>,
    rows: &mut BTreeMap<&'h str, Both>,
    cell: CellId,
    is_there: bool,
) -> Option<&'h str> {
    let index = look.timeline.index;
    let info = &index.cells[cell];
    let side = [TABLE, INDEX].iter().position(|table| *table == index.table_of(cell).name)?;
    if info.col != COLUMN {
        return None;
    }
    rows.entry(info.row).or_default()[side] = Some((cell, is_there));
    Some(info.row)
}

fn judge(look: &mut Look<'_, '_, '_>, by: Witness, row: &str, both: Both) {
    look.looks += 1;
    let there = both.map(|side| side.is_some_and(|(_, is_there)| is_there));
    if there[0] != there[1] {
        let which = if there[0] { "is there without its index entry" } else { "is gone, but its index entry is there" };
        let cells: Vec<CellId> = both.iter().flatten().map(|(cell, _)| *cell).collect();
        look.broken(&[by], &cells, format!("the row {} {which}", crate::text::plain(row)));
    }
}
