//! Sound scenarios: the rules as they are. Every property must hold in every state that can be reached.

use crate::rules::Path::{Batch, PutAhead, StepByStep};
use crate::rules::{Path, Program, Reads, Rules, Scenario};

pub(crate) fn steps(reads: &'static [u8], writes: &'static [u8]) -> Program {
    Program::of(StepByStep, reads, writes)
}

pub(crate) fn batch(reads: &'static [u8], writes: &'static [u8]) -> Program {
    Program::of(Batch, reads, writes)
}

pub(crate) fn ahead(reads: &'static [u8], writes: &'static [u8]) -> Program {
    Program::of(PutAhead, reads, writes)
}

/// Everybody counts one cell up.
pub(crate) fn counters(paths: [Path; 3]) -> Vec<Program> {
    paths.map(|path| Program::of(path, &[0], &[0])).into()
}

/// A writer of two cells, a reader of both, and a writer of one.
pub(crate) fn torn(paths: [Path; 3]) -> Vec<Program> {
    vec![Program::of(paths[0], &[], &[0, 1]), Program::of(paths[1], &[0, 1], &[]), Program::of(paths[2], &[1], &[1])]
}

/// Two who read both cells and write one each, and a reader.
pub(crate) fn skew(paths: [Path; 3]) -> Vec<Program> {
    vec![
        Program::of(paths[0], &[0, 1], &[0]),
        Program::of(paths[1], &[0, 1], &[1]),
        Program::of(paths[2], &[0, 1], &[]),
    ]
}

/// Each reads what another one writes.
pub(crate) fn ring(paths: [Path; 3]) -> Vec<Program> {
    vec![Program::of(paths[0], &[0], &[1]), Program::of(paths[1], &[1], &[0]), Program::of(paths[2], &[0], &[1])]
}

/// Two look whether anything is in the range and then put something into it; a third looks at what is there.
pub(crate) fn phantoms(path: Path) -> Vec<Program> {
    vec![
        Program::range(path, Reads::Range, &[0]),
        Program::range(path, Reads::Range, &[1]),
        Program::range(path, Reads::Range, &[]),
    ]
}

/// The same with cells that are known by name.
pub(crate) fn absences(path: Path) -> Vec<Program> {
    vec![Program::of(path, &[1], &[0]), Program::of(path, &[0], &[1])]
}

/// Two writers of one cell and a reader.
pub(crate) fn overwritten(path: Path) -> Vec<Program> {
    vec![Program::of(path, &[], &[0]), Program::of(path, &[], &[0]), Program::of(path, &[0], &[])]
}

/// The former owner writes two cells; the successor's clients read both and write one.
pub(crate) fn torn_by_takeover(path: Path) -> Vec<Program> {
    vec![
        Program::of(path, &[], &[0, 1]),
        Program::of(path, &[0, 1], &[]).by_successor(),
        Program::of(path, &[1], &[1]).by_successor(),
    ]
}

/// Both owners' clients count one cell up, and a client of the former one reads it.
pub(crate) fn counters_over_takeover(path: Path) -> Vec<Program> {
    vec![
        Program::of(path, &[0], &[0]),
        Program::of(path, &[0], &[0]).by_successor(),
        Program::of(if path == PutAhead { Batch } else { path }, &[0], &[]),
    ]
}

/// Write skew of a former owner's client and a successor's.
pub(crate) fn skew_over_takeover(path: Path) -> Vec<Program> {
    vec![
        Program::range(path, Reads::Range, &[0]),
        Program::range(path, Reads::Range, &[1]).by_successor(),
        Program::of(path, &[0, 1], &[]).by_successor(),
    ]
}

/// A backup by the successor, of what the former owner has begun.
pub(crate) fn copied_after_takeover(path: Path) -> Vec<Program> {
    vec![Program::of(path, &[], &[0, 1]), Program::of(path, &[0], &[0]).by_successor()]
}

fn a() -> Rules {
    Rules::step_by_step()
}

fn b() -> Rules {
    Rules::pipeline()
}

/// On a store that compares the fence, too: data step by step go behind it.
pub(crate) fn a_with_fence() -> Rules {
    Rules { fence: true, ..a() }
}

/// Without sentinels.
pub(crate) fn thorough(rules: &mut Rules) {
    rules.sentinels = false;
    rules.readers_check_registration = true;
}

/// A list of scenarios, and a test for each.
macro_rules! scenarios {
    ($($name:ident => $scenario:expr,)*) => {
        pub(crate) fn all() -> Vec<Scenario> {
            vec![$(Scenario { name: stringify!($name).to_owned(), ..$scenario }),*]
        }

        #[cfg(test)]
        mod tests {
            $(
                #[test]
                fn $name() {
                    super::assert_sound(stringify!($name));
                }
            )*
        }
    };
}

#[cfg(test)]
fn assert_sound(name: &str) {
    let scenario = all().into_iter().find(|scenario| scenario.name == name).expect("it is in the list");
    let explored = crate::check::explore_all(&scenario, 1);
    if let Some((property, trace)) = explored.broken.into_iter().next() {
        crate::check::print_trace(trace);
        panic!("'{property}' does not hold");
    }
    println!("{} states, {} steps deep", explored.states, explored.depth);
}

const A: [Path; 3] = [StepByStep; 3];
const B: [Path; 3] = [Batch; 3];
/// Large transactions among small ones.
const LARGE: [Path; 3] = [PutAhead, Batch, PutAhead];

scenarios! {
    a_counters => Scenario::new(a(), counters(A)),
    a_torn => Scenario::new(a(), torn(A)),
    a_skew => Scenario::new(a(), skew(A)).serializable(),
    a_ring => Scenario::new(a(), ring(A)).serializable(),
    a_phantoms => Scenario::new(a(), phantoms(StepByStep)).serializable(),
    a_range_until_found => Scenario::new(a(), until_found(StepByStep)).serializable(),
    b_counters => Scenario::new(b(), counters(B)).with_restart(),
    b_torn => Scenario::new(b(), torn(B)).with_restart(),
    b_skew => Scenario::new(b(), skew(B)).serializable().with_restart(),
    b_ring => Scenario::new(b(), ring(B)).serializable().with_restart(),
    b_phantoms => Scenario::new(b(), phantoms(Batch)).serializable().with_restart(),
    b_range_until_found => Scenario::new(b(), until_found(Batch)).serializable().with_restart(),
    ahead_counters => Scenario::new(b(), counters(LARGE)).with_cleaner().with_restart(),
    ahead_torn => Scenario::new(b(), torn(LARGE)).with_cleaner().with_restart(),
    ahead_skew => Scenario::new(b(), skew([PutAhead, Batch, Batch])).serializable().with_cleaner().with_restart(),
    ahead_ring => Scenario::new(b(), ring(LARGE)).serializable().with_cleaner().with_restart(),
    ahead_phantoms => Scenario::new(b(), phantoms(PutAhead)).serializable().with_cleaner().with_restart(),

    a_backup => Scenario::new(a(), vec![steps(&[], &[0, 1]), steps(&[0], &[0])]).with_backup(),
    b_backup => Scenario::new(b(), vec![batch(&[], &[0, 1]), batch(&[0], &[0])]).with_backup(),
    ahead_backup => Scenario::new(b(), vec![ahead(&[], &[0, 1]), batch(&[0], &[0])]).with_backup().with_cleaner(),

    a_sweep => Scenario::new(a(), overwritten(StepByStep)).with_sweep(),
    b_sweep => Scenario::new(b(), overwritten(Batch)).with_sweep(),
    ahead_sweep => Scenario::new(b(), vec![ahead(&[], &[0]), batch(&[], &[0]), batch(&[0], &[])]).with_sweep().with_cleaner(),
    a_thorough_sweep => Scenario::new(a(), overwritten(StepByStep)).with_sweep().change(thorough),
    b_thorough_sweep => Scenario::new(b(), overwritten(Batch)).with_sweep().change(thorough),

    a_sweep_during_backup => Scenario::new(a(), vec![steps(&[], &[0]), steps(&[], &[0])]).with_sweep().with_backup(),
    b_sweep_during_backup => Scenario::new(b(), vec![batch(&[], &[0]), batch(&[], &[0])]).with_sweep().with_backup(),
    a_sweep_during_backup_by_hand => Scenario::new(a(), vec![steps(&[], &[0]), steps(&[], &[0])])
        .with_sweep().with_backup().change(|rules| rules.timestamp_before_lock = true),
    b_sweep_during_backup_by_hand => Scenario::new(b(), vec![batch(&[], &[0]), batch(&[], &[0])])
        .with_sweep().with_backup().change(|rules| rules.timestamp_before_lock = true),

    a_takeover_torn => Scenario::new(a(), torn_by_takeover(StepByStep)).with_takeover(),
    a_takeover_counters => Scenario::new(a(), counters_over_takeover(StepByStep)).with_takeover(),
    a_takeover_skew => Scenario::new(a(), skew_over_takeover(StepByStep)).serializable().with_takeover(),
    a_takeover_backup => Scenario::new(a(), copied_after_takeover(StepByStep)).with_takeover().with_backup(),
    // What `docs/guarantees.md` says: the look at the lease in step 9 saves work, and safety does not rest on it.
    a_takeover_without_the_look_in_step_9 => Scenario::new(a(), torn_by_takeover(StepByStep))
        .with_takeover().change(|rules| rules.check_locks_looks_at_lease = false),
    a_takeover_backup_without_the_look_in_step_9 => Scenario::new(a(), copied_after_takeover(StepByStep))
        .with_takeover().with_backup().change(|rules| rules.check_locks_looks_at_lease = false),
    // With a fence no clock need be right.
    a_fence_without_clock_torn => Scenario::new(a_with_fence(), torn_by_takeover(StepByStep))
        .with_takeover().with_clock_that_stands_still(),
    a_fence_without_clock_counters => Scenario::new(a_with_fence(), counters_over_takeover(StepByStep))
        .with_takeover().with_clock_that_stands_still(),
    a_fence_without_clock_skew => Scenario::new(a_with_fence(), skew_over_takeover(StepByStep))
        .serializable().with_takeover().with_clock_that_stands_still(),
    a_fence_without_clock_backup => Scenario::new(a_with_fence(), copied_after_takeover(StepByStep))
        .with_takeover().with_backup().with_clock_that_stands_still(),
    b_takeover_torn => Scenario::new(b(), torn_by_takeover(Batch)).with_takeover().with_clock_that_stands_still(),
    b_takeover_counters => Scenario::new(b(), counters_over_takeover(Batch))
        .with_takeover().with_clock_that_stands_still(),
    b_takeover_skew => Scenario::new(b(), skew_over_takeover(Batch))
        .serializable().with_takeover().with_clock_that_stands_still(),
    b_takeover_backup => Scenario::new(b(), copied_after_takeover(Batch))
        .with_takeover().with_backup().with_clock_that_stands_still(),
    ahead_takeover_torn => Scenario::new(b(), torn_by_takeover(PutAhead))
        .with_takeover().with_clock_that_stands_still(),
    ahead_takeover_counters => Scenario::new(b(), counters_over_takeover(PutAhead))
        .with_takeover().with_clock_that_stands_still(),
    ahead_takeover_backup => Scenario::new(b(), copied_after_takeover(PutAhead))
        .with_takeover().with_backup().with_clock_that_stands_still(),
}

/// A range that is read up to the first cell that is there was read up to it, and no further.
fn until_found(path: Path) -> Vec<Program> {
    vec![
        Program::of(path, &[], &[0]),
        Program::range(path, Reads::RangeUntilFound, &[1]),
        Program::range(path, Reads::RangeUntilFound, &[0]),
    ]
}

/// Every set of three transactions over two cells (up to swapping the cells), each with any reads and any writes, each
/// set once with snapshot isolation and once serializable. `None` for a path that there is not.
pub(crate) fn sets_of_programs(path: &str) -> Option<Vec<Scenario>> {
    let (rules, paths) = match path {
        "A" => (a(), vec![StepByStep]),
        "B" => (b(), vec![Batch]),
        "AHEAD" => (b(), vec![PutAhead, Batch]),
        _ => return None,
    };
    const SETS: [&[u8]; 4] = [&[], &[0], &[1], &[0, 1]];
    let swap = |set: usize| [0, 2, 1, 3][set];
    let mut kinds = Vec::new();
    for path in 0..paths.len() {
        let sets = (0..4).flat_map(|reads| (0..4).map(move |writes| (reads, writes)));
        kinds.extend(sets.filter(|(reads, writes)| reads + writes > 0).map(|(reads, writes)| (path, reads, writes)));
    }
    let mut out = Vec::new();
    for (i, &a) in kinds.iter().enumerate() {
        for (j, &b) in kinds.iter().enumerate().skip(i) {
            for &c in &kinds[j..] {
                let mut mirror = [a, b, c].map(|(path, reads, writes)| (path, swap(reads), swap(writes)));
                mirror.sort_unstable();
                // Two or more readers tell no more than one.
                let readers = [a, b, c].iter().filter(|kind| kind.2 == 0).count();
                if readers >= 2 || [a, b, c] > mirror {
                    continue;
                }
                let programs =
                    [a, b, c].map(|(path, reads, writes)| Program::of(paths[path], SETS[reads], SETS[writes]));
                let scenario = Scenario::new(rules.clone(), programs.into());
                let name = format!("{:?}", scenario.programs);
                out.push(Scenario { name: name.clone(), ..scenario.clone() });
                out.push(Scenario { name: format!("serializable {name}"), ..scenario.serializable() });
            }
        }
    }
    Some(out)
}
