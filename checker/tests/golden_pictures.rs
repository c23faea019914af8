//! Pictures and whole reports, as people see them: `tests/pictures/NAME.jsonl` gives `tests/pictures/NAME.txt`.
//!
//! `ATLAS_BLESS=1` writes what is given instead of comparing it; read the difference before committing it.

#![allow(clippy::unwrap_used, reason = "a test ends where an assumption fails")]

use atlas_checker::{History, Options, check};
use std::path::Path;

fn golden(name: &str) {
    let directory = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("tests/pictures");
    let history = std::fs::read(directory.join(format!("{name}.jsonl"))).unwrap();
    let report = check(&History::read(&history[..]).unwrap(), &Options::default()).to_string();
    let expected = directory.join(format!("{name}.txt"));
    if std::env::var_os("ATLAS_BLESS").is_some() {
        std::fs::write(expected, report).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(expected).unwrap();
    assert!(report == expected, "--- {name}: expected\n{expected}\n--- {name}: given\n{report}");
}

#[test]
fn an_aborted_read() {
    golden("aborted_read");
}

#[test]
fn a_lost_update() {
    golden("lost_update");
}

#[test]
fn a_write_skew() {
    golden("write_skew");
}

#[test]
fn an_unknown_outcome_seen_by_one() {
    golden("torn_outcome");
}

#[test]
fn an_order_against_the_clock() {
    golden("real_time");
}

#[test]
fn a_commit_that_is_gone() {
    golden("durability");
}
