//! What is checked: sound scenarios, and mutations of them that the checker must refute.

use crate::rules::{Barrier, CopyOrder, Program, Publish, Readers, Rules, Scenario, Step, StepReads, batch, steps};

fn counters(path: fn(&'static [u8], &'static [u8]) -> Program) -> Vec<Program> {
    vec![path(&[0], &[0]), path(&[0], &[0]), path(&[0], &[0])]
}

fn torn(path: fn(&'static [u8], &'static [u8]) -> Program) -> Vec<Program> {
    vec![path(&[], &[0, 1]), path(&[0, 1], &[]), path(&[1], &[1])]
}

fn skew(path: fn(&'static [u8], &'static [u8]) -> Program) -> Vec<Program> {
    vec![path(&[0, 1], &[0]), path(&[0, 1], &[1]), path(&[0, 1], &[])]
}

fn ring(path: fn(&'static [u8], &'static [u8]) -> Program) -> Vec<Program> {
    vec![path(&[0], &[1]), path(&[1], &[0]), path(&[0], &[1])]
}

/// Both paths on the same cells: name, programs, serializable.
fn mixes() -> Vec<(&'static str, Vec<Program>, bool)> {
    vec![
        ("1 step + 2 batch, one cell", vec![steps(&[0], &[0]), batch(&[0], &[0]), batch(&[0], &[0])], false),
        ("2 step + 1 batch, one cell", vec![steps(&[0], &[0]), steps(&[0], &[0]), batch(&[0], &[0])], false),
        (
            "step writes 2 cells, reader, batch",
            vec![steps(&[], &[0, 1]), batch(&[0, 1], &[]), batch(&[1], &[1])],
            false,
        ),
        (
            "batch writes 2 cells, step reader, step",
            vec![batch(&[], &[0, 1]), steps(&[0, 1], &[]), steps(&[1], &[1])],
            false,
        ),
        ("skew step/batch + reader, ser.", vec![steps(&[0, 1], &[0]), batch(&[0, 1], &[1]), batch(&[0, 1], &[])], true),
        ("ring step/batch/step, ser.", vec![steps(&[0], &[1]), batch(&[1], &[0]), steps(&[0], &[1])], true),
        ("ring batch/step/batch, ser.", vec![batch(&[0], &[1]), steps(&[1], &[0]), batch(&[0], &[1])], true),
    ]
}

pub fn sound() -> Vec<Scenario> {
    let a = Rules::step_by_step;
    let b = Rules::pipeline;
    let mut out = vec![
        Scenario::new("A   3 counters on one cell", a(), counters(steps)),
        Scenario::new("A   2-cell writer, reader, writer", a(), torn(steps)),
        Scenario::new("A   write skew + reader, ser.", a(), skew(steps)).serializable(),
        Scenario::new("A   ring of 3, ser.", a(), ring(steps)).serializable(),
        Scenario::new("B   3 counters on one cell, restart", b(), counters(batch)).with_restart(),
        Scenario::new("B   2-cell writer, reader, writer, restart", b(), torn(batch)).with_restart(),
        Scenario::new("B   write skew + reader, ser., restart", b(), skew(batch)).serializable().with_restart(),
        Scenario::new("B   ring of 3, ser., restart", b(), ring(batch)).serializable().with_restart(),
    ];
    for (tag, rules) in [
        ("C1 shared locks, readers resolve", Rules::mixed_shared_locks()),
        ("C2 shared locks, watermark held", Rules::mixed_held_watermark()),
        ("C3 locks, one commit order", Rules::mixed_one_order()),
        ("C4 one arbiter, no locks", Rules::mixed_one_arbiter()),
    ] {
        for (name, programs, serializable) in mixes() {
            let s = Scenario::new(format!("{tag}: {name}"), rules.clone(), programs);
            let s = if serializable { s.serializable() } else { s };
            out.push(s.with_cleaner().with_restart());
        }
    }
    out.extend([
        Scenario::new("D/A backup, settled, any copy order", a(), vec![steps(&[], &[0, 1]), steps(&[0], &[0])])
            .with_backup(),
        Scenario::new("D/B backup, settled, any copy order", b(), vec![batch(&[], &[0, 1]), batch(&[0], &[0])])
            .with_backup(),
        Scenario::new("D/B backup, 3 transactions", b(), torn(batch)).with_backup(),
        Scenario::new(
            "D/C4 backup, settled, any copy order",
            Rules::mixed_one_arbiter(),
            vec![steps(&[], &[0, 1]), batch(&[0], &[0])],
        )
        .with_backup()
        .with_cleaner(),
        Scenario::new("E/A conservative sweep", a(), sweep(steps)).with_sweep(),
        Scenario::new("E/B conservative sweep", b(), sweep(batch)).with_sweep(),
        Scenario::new(
            "E/C4 conservative sweep",
            Rules::mixed_one_arbiter(),
            vec![steps(&[], &[0]), batch(&[], &[0]), batch(&[0], &[])],
        )
        .with_sweep()
        .with_cleaner(),
        Scenario::new("E/A thorough sweep, reads validate the lock", a(), sweep(steps)).with_sweep().change(thorough),
        Scenario::new("E/B thorough sweep, reads validate the lock", b(), sweep(batch)).with_sweep().change(thorough),
    ]);
    out
}

fn sweep(path: fn(&'static [u8], &'static [u8]) -> Program) -> Vec<Program> {
    vec![path(&[], &[0]), path(&[], &[0]), path(&[0], &[])]
}

fn thorough(r: &mut Rules) {
    r.sentinels = false;
    r.reads_validate_lock = true;
}

/// Drops one step.
fn without(r: &mut Rules, step: Step) {
    r.steps.retain(|s| *s != step);
}

/// Moves one step to just before another.
fn before(r: &mut Rules, step: Step, other: Step) {
    without(r, step);
    let at = r.steps.iter().position(|s| *s == other).expect("the step is there");
    r.steps.insert(at, step);
}

/// Every set of three transactions over two cells (up to swapping the cells), each with any reads and any writes.
pub fn all_programs(paths: &[fn(&'static [u8], &'static [u8]) -> Program]) -> Vec<Vec<Program>> {
    const SETS: [&[u8]; 4] = [&[], &[0], &[1], &[0, 1]];
    let swap = |set: usize| [0, 2, 1, 3][set];
    let mut kinds = vec![];
    for path in 0..paths.len() {
        for (reads, writes) in (0..4).flat_map(|r| (0..4).map(move |w| (r, w))) {
            if reads + writes > 0 {
                kinds.push((path, reads, writes));
            }
        }
    }
    let mut out = vec![];
    for (i, &a) in kinds.iter().enumerate() {
        for (j, &b) in kinds.iter().enumerate().skip(i) {
            for &c in &kinds[j..] {
                let mut mirror: Vec<_> = [a, b, c].iter().map(|&(p, r, w)| (p, swap(r), swap(w))).collect();
                mirror.sort_unstable();
                // Two or more readers tell no more than one.
                let readers = [a, b, c].iter().filter(|k| k.2 == 0).count();
                if readers < 2 && vec![a, b, c] <= mirror {
                    out.push([a, b, c].iter().map(|&(p, r, w)| paths[p](SETS[r], SETS[w])).collect());
                }
            }
        }
    }
    out
}

/// `all_programs` under one variant of the rules.
pub fn sweep_of_programs(variant: &str) -> Vec<Scenario> {
    let (rules, paths): (Rules, Vec<fn(&'static [u8], &'static [u8]) -> Program>) = match variant {
        "A" => (Rules::step_by_step(), vec![steps]),
        "B" => (Rules::pipeline(), vec![batch]),
        "C1" => (Rules::mixed_shared_locks(), vec![steps, batch]),
        "C2" => (Rules::mixed_held_watermark(), vec![steps, batch]),
        "C3" => (Rules::mixed_one_order(), vec![steps, batch]),
        _ => (Rules::mixed_one_arbiter(), vec![steps, batch]),
    };
    let mut out = vec![];
    for programs in all_programs(&paths) {
        let s = Scenario::new(format!("{variant} {programs:?}"), rules.clone(), programs);
        out.push(s.clone());
        out.push(s.serializable());
    }
    out
}

pub fn mutations() -> Vec<Scenario> {
    use Step::*;
    let a = Rules::step_by_step;
    let b = Rules::pipeline;
    let c1 = Rules::mixed_shared_locks;
    let c2 = Rules::mixed_held_watermark;
    let c3 = Rules::mixed_one_order;
    let c4 = Rules::mixed_one_arbiter;
    let two = || vec![steps(&[0], &[0]), steps(&[0], &[0])];
    let write_read = || vec![steps(&[], &[0]), steps(&[0], &[])];
    let observed = || vec![steps(&[0], &[1]), steps(&[], &[0]), steps(&[0, 1], &[])];
    let pair = || vec![steps(&[0], &[1]), steps(&[1], &[0])];
    let mut out = vec![
        Scenario::new("A no lock check", a(), two()).change(|r| without(r, LockCheck)),
        Scenario::new("A lock check before the data put", a(), two()).change(|r| before(r, LockCheck, Put(0))),
        Scenario::new("A lock check before commit_ts (after the put)", a(), two())
            .change(|r| before(r, LockCheck, TakeCommitTs)),
        Scenario::new("A lock check before commit_ts, 3 counters", a(), counters(steps))
            .change(|r| before(r, LockCheck, TakeCommitTs)),
        Scenario::new("A lock check before commit_ts, ring of 3, ser.", a(), ring(steps))
            .serializable()
            .change(|r| before(r, LockCheck, TakeCommitTs)),
        Scenario::new("A lock check before commit_ts, sweep", a(), sweep(steps))
            .with_sweep()
            .change(|r| before(r, LockCheck, TakeCommitTs)),
        Scenario::new("A unlock before PUE, 3 counters", a(), counters(steps)).change(|r| before(r, Unlock, Pue)),
        Scenario::new("A unlock before PUE, ring of 3, ser.", a(), ring(steps))
            .serializable()
            .change(|r| before(r, Unlock, Pue)),
        Scenario::new("A no write-write check", a(), two()).change(|r| without(r, WwCheck)),
        Scenario::new("A write-write check before the locks", a(), two()).change(|r| before(r, WwCheck, Lock(0))),
        Scenario::new("A write-write check ignores undecided versions", a(), two())
            .change(|r| r.ww_check_rolls_back = false),
        Scenario::new("A commit_ts before the data put", a(), write_read()).change(|r| before(r, TakeCommitTs, Put(0))),
        Scenario::new("A data put after PUE", a(), write_read()).change(|r| {
            without(r, Put(1));
            before(r, Put(0), Ack)
        }),
        Scenario::new("A write-write check rolls back lock holders (AtlasDB)", a(), two())
            .change(|r| r.ww_check_spares_the_living = false),
        Scenario::new("A unlock before PUE", a(), two()).change(|r| before(r, Unlock, Pue)),
        Scenario::new("A unlock before PUE + check ignores undecided", a(), two()).change(|r| {
            before(r, Unlock, Pue);
            r.ww_check_rolls_back = false
        }),
        Scenario::new("A ack before PUE", a(), two()).change(|r| before(r, Ack, Pue)),
        Scenario::new("A reader skips an undecided version", a(), write_read())
            .change(|r| r.readers = Readers::SkipUndecided),
        Scenario::new("A no serializable re-check", a(), pair()).serializable().change(|r| {
            without(r, Recheck(0));
            without(r, Recheck(1))
        }),
        Scenario::new("A re-check before commit_ts (no reader around)", a(), pair())
            .serializable()
            .change(|r| before(r, Recheck(0), TakeCommitTs)),
        Scenario::new("A re-check before commit_ts, with a reader", a(), observed()).serializable().change(|r| {
            before(r, Recheck(0), TakeCommitTs);
            before(r, Recheck(1), TakeCommitTs)
        }),
        Scenario::new("A re-check before the data put", a(), pair())
            .serializable()
            .change(|r| before(r, Recheck(0), Put(0))),
        Scenario::new("A re-check skips undecided versions", a(), pair())
            .serializable()
            .change(|r| r.recheck_skips_undecided = true),
        Scenario::new("A re-check waits for younger writers too", a(), pair())
            .serializable()
            .change(|r| r.recheck_waits_for_younger = true),
        Scenario::new("B publish before apply", b(), vec![batch(&[], &[0]), batch(&[0], &[])])
            .change(|r| r.publish = Publish::BeforeApply),
        Scenario::new("B publish before sync", b(), vec![batch(&[], &[0]), batch(&[0], &[])])
            .with_restart()
            .change(|r| r.publish = Publish::BeforeSync),
        Scenario::new("B ack before publish", b(), vec![batch(&[], &[0]), batch(&[0], &[])])
            .change(|r| r.ack_before_publish = true),
        Scenario::new("B conflicts counted from start_ts", b(), vec![batch(&[0], &[0]), batch(&[0], &[0])])
            .change(|r| r.conflicts_from_start_ts = true),
        Scenario::new("B start_ts taken before read_ts", b(), counters(batch))
            .change(|r| r.start_ts_before_read_ts = true),
        Scenario::new("B write check blind to commits ahead", b(), vec![batch(&[0], &[0]), batch(&[0], &[0])])
            .change(|r| r.pipeline_checks_ahead = false),
        Scenario::new("B re-check blind to commits ahead", b(), vec![batch(&[0], &[1]), batch(&[1], &[0])])
            .serializable()
            .change(|r| r.pipeline_checks_ahead = false),
    ];
    for (name, programs, serializable) in mixes() {
        let s = Scenario::new(format!("C naive: {name}"), Rules::mixed_naive(), programs);
        out.push(if serializable { s.serializable() } else { s });
    }
    let sb = || vec![steps(&[0], &[0]), batch(&[0], &[0])];
    let ring_sb = || vec![steps(&[0], &[1]), batch(&[1], &[0])];
    out.extend([
        Scenario::new("C1 pipeline ignores the locks", c1(), sb()).change(|r| r.pipeline_takes_locks = false),
        Scenario::new("C1 pipeline looks at locks, does not hold them", c1(), sb())
            .change(|r| r.pipeline_drops_locks_before_apply = true),
        Scenario::new("C1 pipeline check ignores undecided", c1(), sb()).change(|r| r.ww_check_rolls_back = false),
        Scenario::new("C1 step readers at start_ts", c1(), vec![batch(&[], &[0]), steps(&[0], &[])])
            .change(|r| r.step_reads = StepReads::AtStartTs),
        Scenario::new("C1 pipeline readers skip undecided", c1(), vec![steps(&[], &[0]), batch(&[0], &[])])
            .change(|r| r.readers = Readers::SkipUndecided),
        Scenario::new(
            "C1 ack does not wait for the watermark",
            c1(),
            vec![steps(&[], &[0]), batch(&[], &[1]), batch(&[0], &[])],
        )
        .change(|r| r.ack_waits_for_watermark = false),
        Scenario::new("C1 step re-check does not wait for the pipeline", c1(), ring_sb())
            .serializable()
            .change(|r| r.recheck_waits_for_pipeline = false),
        Scenario::new("C1 pipeline re-check skips undecided", c1(), ring_sb())
            .serializable()
            .change(|r| r.pipeline_skips_undecided = true),
        Scenario::new("C2 step commit does not hold the watermark", c2(), vec![steps(&[], &[0]), batch(&[0], &[])])
            .change(|r| r.step_commits_hold_watermark = false),
        Scenario::new("C3 pipeline ignores the locks", c3(), sb()).change(|r| r.pipeline_takes_locks = false),
        Scenario::new("C3 lease not checked in the pipeline", c3(), sb()).change(|r| r.pipeline_checks_lease = false),
        Scenario::new("C3 step check ignores undecided", c3(), two()).change(|r| r.ww_check_rolls_back = false),
        Scenario::new("C4 submit before the data put", c4(), vec![steps(&[], &[0]), batch(&[0], &[])])
            .change(|r| r.steps = vec![Lease, Submit, Put(0)]),
        Scenario::new("C4 apply overwrites a roll-back", c4(), sb()).with_cleaner().change(|r| r.apply_is_blind = true),
        Scenario::new("C4 step readers at start_ts", c4(), vec![batch(&[], &[0]), steps(&[0], &[])])
            .change(|r| r.step_reads = StepReads::AtStartTs),
        Scenario::new("C4 write check blind to commits ahead", c4(), sb()).change(|r| r.pipeline_checks_ahead = false),
    ]);
    let one_a = || vec![steps(&[], &[0, 1])];
    let one_b = || vec![batch(&[], &[0, 1])];
    for order in [CopyOrder::EntriesFirst, CopyOrder::CellsFirst] {
        let chain_a = || vec![steps(&[], &[0, 1]), steps(&[0], &[0])];
        let chain_b = || vec![batch(&[], &[0, 1]), batch(&[0], &[0]), batch(&[1], &[1])];
        for (tag, rules, programs) in [("D/A", a(), chain_a()), ("D/B", b(), chain_b())] {
            out.push(Scenario::new(format!("{tag} no barrier, {order:?}"), rules, programs).with_backup().change(
                |r| {
                    r.barrier = Barrier::None;
                    r.copy_order = order
                },
            ));
        }
    }
    out.extend([
        Scenario::new("D/A barrier waits for locks only", a(), one_a())
            .with_backup()
            .change(|r| r.barrier = Barrier::LocksReleased),
        Scenario::new("D/B barrier waits for locks only", b(), one_b())
            .with_backup()
            .change(|r| r.barrier = Barrier::LocksReleased),
        Scenario::new("D/C4 no barrier, any order", c4(), one_a()).with_backup().change(|r| r.barrier = Barrier::None),
        Scenario::new("D/A commit_ts before data put, no barrier", a(), one_a()).with_backup().change(|r| {
            before(r, TakeCommitTs, Put(0));
            r.barrier = Barrier::None
        }),
        Scenario::new("D/A fast_forward_ts before the copy", a(), one_a())
            .with_backup()
            .change(|r| r.fast_forward_before_copy = true),
        Scenario::new("E/B no sentinel", b(), sweep(batch)).with_sweep().change(|r| r.sentinels = false),
        Scenario::new("E/A no sentinel", a(), sweep(steps)).with_sweep().change(|r| r.sentinels = false),
        Scenario::new("E/A delete before sentinel", a(), sweep(steps))
            .with_sweep()
            .change(|r| r.delete_before_sentinel = true),
        Scenario::new("E/A sweep_ts ignores open readers", a(), sweep(steps))
            .with_sweep()
            .change(|r| r.sweep_ignores_readers = true),
        Scenario::new("E/A registered after read_ts is chosen", a(), sweep(steps))
            .with_sweep()
            .change(|r| r.register_before_read_ts = false),
        Scenario::new("E/B thorough, registered after read_ts", b(), sweep(batch)).with_sweep().change(|r| {
            thorough(r);
            r.register_before_read_ts = false
        }),
    ]);
    out
}
