//! Bank: money is moved, never made. The sum over all accounts is that of the transaction that opened them.

use super::Look;
use crate::timeline::Witness;
use crate::value;
use std::collections::HashMap;

const TABLE: &str = "accounts";
const COLUMN: &str = "balance";

pub(super) fn check(look: &mut Look<'_, '_, '_>) {
    let Some(opening) = after_each_commit(look) else { return };
    for (by, rows) in look.whole_views(TABLE) {
        // Whoever looked before the accounts were opened saw none.
        if rows.is_empty() {
            continue;
        }
        look.looks += 1;
        let balances = rows.iter().filter(|(_, col, _)| *col == COLUMN).map(|(.., balance)| value::number(balance));
        match balances.sum::<Option<i64>>() {
            Some(sum) if sum == opening => {}
            Some(sum) => look.broken(&[by], &[], format!("saw accounts of {sum} in all, not of {opening}")),
            None => look.broken(&[by], &[], "saw a balance that is not <number>#<tag>".into()),
        }
    }
}

/// Adds up what every commit changes; returns the sum of the first one.
fn after_each_commit(look: &mut Look<'_, '_, '_>) -> Option<i64> {
    let index = look.timeline.index;
    let mut balances = HashMap::new();
    let mut opening = None;
    for txn in look.commits() {
        let mut change = 0;
        let mut cells = Vec::new();
        for write in index.writes(txn) {
            if index.table_of(write.cell).name == TABLE && index.cells[write.cell].col == COLUMN {
                let balance = write.value.and_then(value::number).unwrap_or(0);
                change += balance - balances.insert(write.cell, balance).unwrap_or(0);
                cells.push(write.cell);
            }
        }
        if cells.is_empty() {
            continue;
        }
        if opening.is_none() {
            opening = Some(change);
            continue;
        }
        look.looks += 1;
        if change != 0 {
            let problem = format!("changed the sum of all accounts by {change} in the order of commits");
            look.broken(&[Witness::Transaction(txn)], &cells, problem);
        }
    }
    opening
}
