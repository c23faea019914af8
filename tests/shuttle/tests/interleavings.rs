//! Every exploration holds in all of its schedules, and finds what is planted for it.
//!
//! `ATLAS_SCHEDULES=N cargo test --manifest-path tests/shuttle/Cargo.toml` looks at N schedules each.

use atlas_shuttle::explore::{ALL, Exploration};
use atlas_shuttle::planted::Mistake;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const SEED: u64 = 1;

fn shuttle_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(SEED, |since| since.subsec_nanos().into())
}

/// Runs it under so many schedules, drawn from the seed and counted as they begin.
fn look_at(exploration: Exploration, schedules: usize, seed: u64, begun: &Arc<AtomicUsize>) {
    let begun = begun.clone();
    let run = move || {
        begun.fetch_add(1, Ordering::Relaxed);
        (exploration.run)();
    };
    shuttle::check_random_with_seed(run, seed, schedules);
}

/// The first schedule in which the mistake showed.
fn found_in(exploration: Exploration, mistake: Mistake) -> Option<usize> {
    let begun = Arc::new(AtomicUsize::new(0));
    fail::cfg(mistake.fail_point(), "return").expect("fail points are built in");
    // What shows is a panic, which is not worth a trace here.
    let hook = take_hook();
    set_hook(Box::new(|_| ()));
    let held = catch_unwind(AssertUnwindSafe(|| look_at(exploration, exploration.schedules, SEED, &begun)));
    set_hook(hook);
    fail::remove(mistake.fail_point());
    held.is_err().then(|| begun.load(Ordering::Relaxed))
}

/// One test: mistakes are planted by fail points, which are those of the whole program.
#[test]
fn every_exploration_holds_and_finds_what_is_planted() {
    let wanted = std::env::var("ATLAS_SCHEDULES").ok().and_then(|schedules| schedules.parse().ok());
    let mut unnoticed = Vec::new();
    let mut planted = BTreeSet::new();
    for exploration in ALL {
        let (schedules, begun, started) = (wanted.unwrap_or(exploration.schedules), Arc::default(), Instant::now());
        // Other schedules each time where somebody wants more of them.
        let seed = wanted.map_or(SEED, |_| shuttle_seed());
        look_at(exploration, schedules, seed, &begun);
        assert_eq!(begun.load(Ordering::Relaxed), schedules);
        eprintln!("{}: {schedules} schedules in {} ms", exploration.name, started.elapsed().as_millis());
        assert!(!exploration.finds.is_empty(), "{} was never seen to find anything", exploration.name);
        for mistake in exploration.finds {
            planted.insert(mistake.fail_point());
            match found_in(exploration, *mistake) {
                Some(schedule) => eprintln!("  {mistake:?}: found in schedule {schedule}"),
                None => unnoticed.push(format!("{mistake:?} by '{}'", exploration.name)),
            }
        }
    }
    assert!(unnoticed.is_empty(), "not found: {unnoticed:#?}");
    assert_eq!(planted.len(), Mistake::ALL.len(), "a mistake is planted nowhere");
}
