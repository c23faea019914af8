//! Ring: every row names the next one, and following them from any row visits all of them once.

use super::{Found, Look};
use crate::value;
use std::collections::HashMap;

const TABLE: &str = "ring";
const COLUMN: &str = "next";

pub(super) fn check(look: &mut Look<'_, '_, '_>) {
    for (by, rows) in look.whole_views(TABLE) {
        // Whoever looked before the ring was laid saw nothing.
        if !rows.is_empty() {
            look.looks += 1;
            if let Some(problem) = problem(&rows) {
                look.broken(&[by], &[], problem);
            }
        }
    }
}

fn problem(rows: &[Found<'_>]) -> Option<String> {
    let next: HashMap<&str, Option<&str>> =
        rows.iter().filter(|(_, col, _)| *col == COLUMN).map(|(row, _, next)| (*row, value::content(next))).collect();
    let first = rows[0].0;
    let mut at = first;
    for step in 1..=next.len() {
        match next.get(at).copied().flatten() {
            None => return Some(format!("saw a ring that ends at {}", crate::text::plain(at))),
            Some(to) => at = to,
        }
        if at == first && step < next.len() {
            return Some(format!("saw a ring that closes after {step} of {} rows", next.len()));
        }
    }
    (at != first).then(|| format!("saw a ring that never comes back to {}", crate::text::plain(first)))
}
