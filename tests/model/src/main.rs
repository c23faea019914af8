//! Exhaustive check of the commit protocol of atlas: every interleaving of a few transactions on two cells, with
//! crashes, lost locks, a backup, a sweep and a second server.
//!
//! ```text
//! atlas-model [WORD]                   sound scenarios, all or those with the word in their names
//! atlas-model --mutations [WORD]       leaves out one rule at a time; prints the shortest history that goes wrong
//! atlas-model --all-programs A|B|AHEAD one path under every set of three transactions over two cells
//! ```
//!
//! The exit code is 1 when a sound scenario breaks, when a mutation breaks nothing, or breaks something else than it
//! is said to.

mod check;
mod mutations;
mod properties;
mod protocol;
mod rules;
mod scenarios;
mod state;
mod upkeep;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let word = arguments.iter().find(|argument| !argument.starts_with("--")).cloned().unwrap_or_default();
    let flag = arguments.iter().find(|argument| argument.starts_with("--")).map(String::as_str);
    let good = match flag {
        None => check::verify_all(scenarios::all().into_iter().filter(|scenario| scenario.name.contains(&word))),
        Some("--mutations") => {
            check::refute_all(mutations::all().into_iter().filter(|mutation| mutation.scenario.name.contains(&word)))
        }
        Some("--all-programs") => check::verify_all_programs(&word),
        Some(other) => {
            eprintln!("'{other}' is not known; the flags are --mutations and --all-programs");
            return ExitCode::from(2);
        }
    };
    ExitCode::from(u8::from(!good))
}
