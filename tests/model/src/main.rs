//! Exhaustive check of the commit protocol of `atlas`.
//!
//! `cargo run --release` checks the sound variants; `-- --mutations` plants one defect at a time and prints the shortest
//! trace to the first broken property; `-- --all-programs A` (or B, C1 to C4) checks one variant under every set of three
//! transactions over two cells. A word after the flags selects scenarios by name.

mod model;
mod properties;
mod rules;
mod scenarios;

use model::{Action, Protocol, State};
use rules::Scenario;
use stateright::{Checker, HasDiscoveries, Model};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mutations = args.iter().any(|a| a == "--mutations");
    let filter = args.iter().find(|a| !a.starts_with("--")).cloned().unwrap_or_default();
    let scenarios = if mutations { scenarios::mutations() } else { scenarios::sound() };
    let chosen = scenarios.into_iter().filter(|s| s.name.contains(&filter));
    let mut failed = 0;
    if args.iter().any(|a| a == "--all-programs") {
        std::process::exit(i32::from(!verify_all_programs(&filter)));
    }
    if mutations {
        chosen.for_each(refute);
    } else {
        println!("{:<74} {:>10} {:>6} {:>6}  result", "model", "states", "depth", "s");
        chosen.for_each(|s| failed += usize::from(!verify(s)));
    }
    std::process::exit(i32::from(failed > 0));
}

fn verify(scenario: Scenario) -> bool {
    let name = scenario.name.clone();
    let begun = Instant::now();
    let checker =
        Protocol { scenario }.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let found = checker.discoveries();
    let result = match found.keys().next() {
        None => format!("all {} properties hold", properties::ALL.len()),
        Some(_) => format!("BROKEN: {:?}", found.keys().collect::<Vec<_>>()),
    };
    let seconds = begun.elapsed().as_secs_f32();
    println!("{name:<74} {:>10} {:>6} {seconds:>6.1}  {result}", checker.unique_state_count(), checker.max_depth());
    for (property, path) in found.iter().take(1) {
        println!("  {property}");
        print_trace(path.clone().into_vec());
    }
    found.is_empty()
}

/// `--all-programs` stops after this long and says how far it came.
const BUDGET: Duration = Duration::from_secs(150);

/// Checks one variant (A, B, C1 to C4) under every set of three programs; prints one line.
fn verify_all_programs(variant: &str) -> bool {
    let (begun, work) = (Instant::now(), scenarios::sweep_of_programs(variant));
    let total = work.len();
    let queue = Mutex::new(work);
    let (done, states, broken) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while begun.elapsed() < BUDGET {
                    let Some(scenario) = queue.lock().expect("no panic holds the queue").pop() else { return };
                    let (name, serializable) = (scenario.name.clone(), scenario.serializable);
                    let checker =
                        Protocol { scenario }.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
                    done.fetch_add(1, Relaxed);
                    states.fetch_add(checker.unique_state_count(), Relaxed);
                    for (property, path) in checker.discoveries().into_iter().take(1) {
                        if broken.fetch_add(1, Relaxed) < 3 {
                            println!("{name} serializable: {serializable} BROKEN: {property}");
                            print_trace(path.into_vec());
                        }
                    }
                }
            });
        }
    });
    println!(
        "{variant}: {}/{total} sets of programs, {} states, {} broken, {:.0} s",
        done.into_inner(),
        states.into_inner(),
        broken.load(Relaxed),
        begun.elapsed().as_secs_f32()
    );
    broken.into_inner() == 0
}

type Trace = Vec<(State, Option<Action>)>;

/// Explores the whole space once to list the broken properties, then deepens step by step to find the shortest trace to
/// each (the checker itself keeps the last trace it met, not the shortest).
fn refute(scenario: Scenario) {
    let (all, states) = explore(&scenario, usize::MAX);
    let mut found: Vec<(&str, Trace)> = vec![];
    let mut depth = 2;
    while found.len() < all.len() {
        for (property, trace) in explore(&scenario, depth).0 {
            if found.iter().all(|(p, _)| *p != property) {
                found.push((property, trace));
            }
        }
        depth += 1;
    }
    let list: Vec<String> = found.iter().map(|(p, trace)| format!("{p} ({} steps)", trace.len() - 1)).collect();
    let verdict = if list.is_empty() { "nothing broken".to_owned() } else { list.join(", ") };
    println!("{}\n  breaks: {verdict}   [{states} states]", scenario.name);
    if let Some((_, trace)) = found.into_iter().next() {
        print_trace(trace);
    }
    println!();
}

fn explore(scenario: &Scenario, depth: usize) -> (Vec<(&'static str, Trace)>, usize) {
    let model = Protocol { scenario: scenario.clone() };
    let checker =
        model.checker().target_max_depth(depth).threads(1).finish_when(HasDiscoveries::All).spawn_bfs().join();
    let mut found: Vec<(&str, Trace)> =
        checker.discoveries().into_iter().map(|(p, path)| (p, path.into_vec())).collect();
    found.sort_by_key(|(property, _)| *property);
    (found, checker.unique_state_count())
}

fn print_trace(path: Trace) {
    let states: Vec<State> = path.iter().map(|(s, _)| s.clone()).skip(1).collect();
    for (n, (action, after)) in path.iter().filter_map(|(_, a)| *a).zip(states).enumerate() {
        println!("    {:>2}. {}", n + 1, describe(action, &after));
    }
}

fn describe(action: Action, s: &State) -> String {
    let who = match action {
        Action::Begin(i) | Action::Resolve(i) | Action::Step(i, _) | Action::Assign(i) | Action::Apply(i) => Some(i),
        _ => None,
    };
    let Some(i) = who else { return format!("{action:?}") };
    let t = &s.tx[i as usize];
    let mut out = format!("{action:?}");
    match action {
        Action::Begin(_) => out += &format!("  -> read_ts {}, start_ts {}", t.read_ts, t.start),
        Action::Resolve(_) => {
            out += &format!("  -> reads (cell, version) {:?}, rolled back {:?}", t.reads, rolled_back(s))
        }
        Action::Assign(_) | Action::Step(_, rules::Step::TakeCommitTs) => {
            out += &format!("  -> commit_ts {}", t.commit)
        }
        _ => {}
    }
    if t.told == model::Told::Aborted {
        out += "  -> aborts";
    }
    out
}

fn rolled_back(s: &State) -> Vec<u8> {
    s.entries.iter().filter(|(_, e)| **e == model::Entry::RolledBack).map(|(start, _)| *start).collect()
}
