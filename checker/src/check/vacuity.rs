//! Whether the run did enough for its success to mean anything.

use super::Minimums;
use crate::history::History;
use crate::report::{Findings, Kind};

pub(super) fn check(history: &History, minimums: &Minimums, findings: &mut Findings) {
    let stats = *findings.stats();
    let counts = [
        ("commits", stats.committed, minimums.committed),
        ("commits that wrote", stats.committed_writers, minimums.committed_writers),
        ("conflicts", stats.conflicts, minimums.conflicts),
        ("unknown outcomes", stats.unknown, minimums.unknown),
        ("injected faults", stats.faults.unwrap_or(0), minimums.faults),
        ("looks at the workload's invariant", stats.invariants.unwrap_or(0), minimums.invariants),
    ];
    for (what, count, minimum) in counts {
        if count < minimum {
            let message = format!("the run had {count} {what}, and needs at least {minimum} to mean anything");
            findings.add(Kind::Vacuous, || (message, Vec::new(), String::new()));
        }
    }
    if minimums.final_state && history.final_state.is_none() {
        let message = "the history does not end with the final state, so durability was not checked".to_owned();
        findings.add(Kind::Vacuous, || (message, Vec::new(), String::new()));
    }
}
