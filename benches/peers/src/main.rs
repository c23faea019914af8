//! The same work on atlas and on what one would use instead, side by side in one run.
//!
//! ```text
//!   options ─ plan ─┬─ block: workload × keys × fsync ── contenders in alternating rounds ─┐
//!                   ├─ timestamps, backup, growth                                          ├─ report, chart
//!                   └─ bars: how far ahead atlas wants to be ──────────────────────────────┘
//! ```
//!
//! Nothing here fails because something is slow: bars are told as met or missed. What fails is a wrong sum, or a read
//! that found nothing. Run it with `scripts/bench peers`.

mod backup;
mod bars;
mod block;
mod chart;
mod contenders;
mod disk;
mod drive;
mod growth;
mod keys;
mod machine;
mod measure;
mod options;
mod report;
mod shared;
mod timestamps;
mod workload;

use anyhow::{Context, Result};
use clap::Parser;
use options::{Options, Plan, Row};
use report::Report;
use shared::disk::{empty_stores, remove_stores};

fn main() -> Result<()> {
    let plan = Plan::of(Options::parse())?;
    let stores = empty_stores(&plan.dir)?;
    let plan = Plan { dir: stores, ..plan };
    let mut report = Report::new(&plan)?;
    report.print_head();
    for row in &plan.rows {
        run(&plan, *row, &mut report)?;
        // After each row: a run of hours that is interrupted has said what it knew.
        write(&plan, &report)?;
    }
    remove_stores(&plan.dir)?;
    let [met, all] = report.bars();
    println!("\n{met} of {all} bars are met.");
    Ok(())
}

fn run(plan: &Plan, row: Row, report: &mut Report) -> Result<()> {
    match row {
        Row::Work(workload) => {
            for setting in block::settings(plan, workload) {
                eprintln!("{}, {} keys, fsync {}", workload.name(), setting.spread, setting.fsync);
                let block = block::run(plan, setting)?;
                report::print_block(&block);
                report.blocks.push(block);
            }
        }
        Row::Timestamps => {
            eprintln!("timestamps");
            report.timestamps = timestamps::run(plan)?;
            report::print_timestamps(&report.timestamps);
        }
        Row::Backup => {
            eprintln!("backup");
            let backup = backup::run(plan)?;
            report::print_backup(&backup);
            report.backup = Some(backup);
        }
        Row::Growth => {
            eprintln!("growth");
            let growth = growth::run(plan)?;
            report::print_growth(&growth);
            report.growth = Some(growth);
        }
    }
    Ok(())
}

fn write(plan: &Plan, report: &Report) -> Result<()> {
    if let Some(path) = &plan.json {
        let json = serde_json::to_string_pretty(report)?;
        std::fs::write(path, json).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &plan.svg {
        let svg = chart::draw(&report.blocks, &report.machine.to_string());
        std::fs::write(path, svg).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
