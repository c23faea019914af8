//! Runs the checker and tells what it found.

use crate::mutations::Mutation;
use crate::properties;
use crate::protocol::Protocol;
use crate::rules::Scenario;
use crate::scenarios::sets_of_programs;
use crate::state::{Action, Entry, State, Told};
use stateright::{Checker, HasDiscoveries, Model};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

type Trace = Vec<(State, Option<Action>)>;

/// What an exploration came to.
pub(crate) struct Explored {
    pub(crate) states: usize,
    pub(crate) depth: usize,
    pub(crate) broken: Vec<(&'static str, Trace)>,
}

fn explore(scenario: &Scenario, threads: usize, depth: usize, until: HasDiscoveries) -> Explored {
    let model = Protocol { scenario: scenario.clone() };
    let checker = model.checker().target_max_depth(depth).threads(threads).finish_when(until).spawn_bfs().join();
    let discoveries = checker.discoveries().into_iter();
    let mut broken: Vec<(&str, Trace)> = discoveries.map(|(name, path)| (name, path.into_vec())).collect();
    broken.sort_by_key(|(name, _)| *name);
    Explored { states: checker.unique_state_count(), depth: checker.max_depth(), broken }
}

/// The whole space, up to the first property that does not hold.
pub(crate) fn explore_all(scenario: &Scenario, threads: usize) -> Explored {
    explore(scenario, threads, usize::MAX, HasDiscoveries::AnyFailures)
}

/// A history that breaks the property, of those that are at most this many states long.
fn broken_within(scenario: &Scenario, property: &'static str, depth: usize) -> Option<Trace> {
    let until = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let broken = explore(scenario, 1, depth, until).broken.into_iter();
    broken.filter(|(name, _)| *name == property).map(|(_, trace)| trace).next()
}

/// Whether the scenario breaks the property.
#[cfg(test)]
pub(crate) fn is_broken(scenario: &Scenario, property: &'static str) -> bool {
    broken_within(scenario, property, usize::MAX).is_some()
}

/// The shortest history that breaks the property. The checker keeps the last one it met, so what it finds is a bound
/// for the next search.
fn shortest(scenario: &Scenario, property: &'static str) -> Option<Trace> {
    let mut best = broken_within(scenario, property, usize::MAX)?;
    while let Some(shorter) = broken_within(scenario, property, best.len() - 1).filter(|it| it.len() < best.len()) {
        best = shorter;
    }
    Some(best)
}

/// Explores the scenarios; true if every property holds in every state of each.
pub(crate) fn verify_all(scenarios: impl Iterator<Item = Scenario>) -> bool {
    println!("{:<60} {:>9} {:>6} {:>6}  result", "scenario", "states", "depth", "s");
    let (begun, mut good, mut count) = (Instant::now(), true, 0);
    for scenario in scenarios {
        let begun = Instant::now();
        let explored = explore_all(&scenario, 2);
        let result = match explored.broken.first() {
            None => format!("all {} properties hold", properties::ALL.len()),
            Some((property, _)) => format!("BROKEN: {property}"),
        };
        let seconds = begun.elapsed().as_secs_f32();
        println!("{:<60} {:>9} {:>6} {seconds:>6.1}  {result}", scenario.name, explored.states, explored.depth);
        if let Some((_, trace)) = explored.broken.into_iter().next() {
            print_trace(trace);
            good = false;
        }
        count += 1;
    }
    println!("{count} scenarios, {:.0} s", begun.elapsed().as_secs_f32());
    good && count > 0
}

/// Looks for the shortest history in which each mutation breaks what it is said to; true if each does.
pub(crate) fn refute_all(mutations: impl Iterator<Item = Mutation>) -> bool {
    let (mut good, mut count) = (true, 0);
    for Mutation { scenario, breaks } in mutations {
        count += 1;
        let Some(trace) = shortest(&scenario, breaks) else {
            good = false;
            println!("{}\n  NOT REFUTED: '{breaks}' holds\n", scenario.name);
            continue;
        };
        println!("{}\n  breaks '{breaks}' in {} steps", scenario.name, trace.len() - 1);
        print_trace(trace);
        println!();
    }
    println!("{count} mutations, {}", if good { "each refuted" } else { "NOT ALL REFUTED" });
    good && count > 0
}

/// `--all-programs` stops after this long and says how far it came.
const BUDGET: Duration = Duration::from_secs(150);

/// Checks one path under every set of three programs; prints one line.
pub(crate) fn verify_all_programs(path: &str) -> bool {
    let Some(work) = sets_of_programs(path) else {
        eprintln!("there is no path '{path}'; the paths are A, B and AHEAD");
        return false;
    };
    let (begun, total, queue) = (Instant::now(), work.len(), Mutex::new(work));
    let (done, states, broken) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while begun.elapsed() < BUDGET {
                    let Some(scenario) = queue.lock().expect("no panic holds the queue").pop() else { return };
                    let explored = explore_all(&scenario, 1);
                    done.fetch_add(1, Relaxed);
                    states.fetch_add(explored.states, Relaxed);
                    for (property, trace) in explored.broken.into_iter().take(1) {
                        if broken.fetch_add(1, Relaxed) < 3 {
                            println!("{} BROKEN: {property}", scenario.name);
                            print_trace(trace);
                        }
                    }
                }
            });
        }
    });
    println!(
        "{path}: {} of {total} sets of programs, {} states, {} broken, {:.0} s",
        done.into_inner(),
        states.into_inner(),
        broken.load(Relaxed),
        begun.elapsed().as_secs_f32()
    );
    broken.into_inner() == 0
}

pub(crate) fn print_trace(trace: Trace) {
    let states: Vec<State> = trace.iter().map(|(state, _)| state.clone()).skip(1).collect();
    for (number, (action, after)) in trace.iter().filter_map(|(_, action)| *action).zip(states).enumerate() {
        println!("    {:>2}. {}", number + 1, describe(action, &after));
    }
}

fn describe(action: Action, after: &State) -> String {
    let mut out = format!("{action:?}");
    let Some(i) = action.by() else { return out };
    let tx = &after.tx[i as usize];
    match action {
        Action::Begin(_) => out += &format!("  -> read_ts {}, start_ts {}", tx.read_ts, tx.start),
        Action::Resolve(_) => {
            let rolled_back = after.entries.iter().filter(|(_, entry)| **entry == Entry::RolledBack);
            let rolled_back: Vec<_> = rolled_back.map(|(start, _)| *start).collect();
            out += &format!("  -> reads (cell, version) {:?}, rolled back {rolled_back:?}", tx.reads);
        }
        action if action.draws_commit_ts() => out += &format!("  -> commit_ts {}", tx.commit),
        _ => {}
    }
    if tx.told == Told::Aborted {
        out += "  -> aborts";
    }
    out
}
