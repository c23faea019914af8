//! Append: lists only grow at their end, so of any two that were seen of a key one is the beginning of the other.

use super::Look;
use crate::index::CellId;
use crate::timeline::Witness;
use crate::value;
use std::collections::HashMap;

pub(crate) const TABLE: &str = "lists";
const COLUMN: &str = "list";

pub(super) fn check(look: &mut Look<'_, '_, '_>) {
    let mut longest: HashMap<CellId, (Witness, Vec<i64>)> = HashMap::new();
    let mut shorter: Vec<(CellId, Witness, Vec<i64>)> = Vec::new();
    look.snapshots(&[TABLE], |look, by, seen| {
        for (cell, list) in seen.iter().filter_map(|(cell, value)| value.map(|value| (*cell, value))) {
            look.looks += 1;
            let Some(list) = value::list(list) else {
                look.broken(&[by], &[cell], "saw a list that is not a JSON array of integers".into());
                continue;
            };
            let known = longest.entry(cell).or_insert_with(|| (by, Vec::new()));
            let (by, list) = if list.len() > known.1.len() { std::mem::replace(known, (by, list)) } else { (by, list) };
            // Only against the longest one: it is their judge, and it may still grow.
            if !known.1.starts_with(&list) {
                shorter.push((cell, by, list));
            }
        }
    });
    for (cell, by, list) in shorter {
        let (other, longest) = &longest[&cell];
        if !longest.starts_with(&list) {
            let common = list.iter().zip(longest).take_while(|(one, other)| one == other).count();
            let problem = format!("saw two lists that part after {common} elements");
            look.broken(&[by, *other], &[cell], problem);
        }
    }
    after_each_commit(look);
}

fn after_each_commit(look: &mut Look<'_, '_, '_>) {
    for cell in look.cells_of(TABLE, COLUMN) {
        let mut before: Vec<i64> = Vec::new();
        for version in look.committed_versions(cell) {
            look.looks += 1;
            let after = version.value.and_then(value::list).unwrap_or_default();
            if after.len() <= before.len() || !after.starts_with(&before) {
                let problem = format!("its list does not continue that of {} elements before it", before.len());
                look.broken(&[Witness::Transaction(version.txn)], &[cell], problem);
            }
            before = after;
        }
    }
}
