//! The workloads: what each one's clients do.

mod append;
mod bank;
mod busy;
mod once;
mod pairs;
mod random;
mod ring;
mod transient;

use super::attempt::{Attempt, Table};
use crate::{Error, Result};
use async_trait::async_trait;
use rand::rngs::StdRng;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A workload.
pub(super) trait Workload: Send + Sync {
    /// What it reads and writes.
    fn tables(&self) -> Vec<Table>;

    /// What has to be there before the clients begin, if anything.
    fn set_up(&self) -> Option<Box<dyn Job>>;

    /// The next piece of work of a client.
    fn next(&self, client: u64, random: &mut StdRng) -> Box<dyn Job>;
}

/// A piece of work. What it does depends on what it reads only, so that it can be done again.
#[async_trait]
pub(super) trait Job: Send + Sync {
    async fn attempt(&self, attempt: &mut Attempt<'_>) -> Result<()>;
}

/// Which workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Transfers between accounts.
    Bank,
    /// Pairs of numbers whose sum must not fall below zero.
    WriteSkew,
    /// Rows that name each other in a ring, permuted.
    Ring,
    /// Rows that come and go with their index entries.
    TransientRows,
    /// One counter that everybody raises.
    SingleBusyCell,
    /// One counter that most only touch.
    SingleBusyCellTouch,
    /// A few counters, several raised at a time.
    MultipleBusyCells,
    /// Cells that are written once and deleted once.
    WriteOnceDeleteOnce,
    /// Anything, in tables of every kind.
    Random,
    /// Lists that grow at their end.
    Append,
}

impl Kind {
    /// Every workload.
    pub const ALL: [Kind; 10] = [
        Kind::Bank,
        Kind::WriteSkew,
        Kind::Ring,
        Kind::TransientRows,
        Kind::SingleBusyCell,
        Kind::SingleBusyCellTouch,
        Kind::MultipleBusyCells,
        Kind::WriteOnceDeleteOnce,
        Kind::Random,
        Kind::Append,
    ];

    /// What it is for, in a line.
    pub fn about(self) -> &'static str {
        match self {
            Kind::Bank => "money is moved and never made: the sum is the same in every snapshot",
            Kind::WriteSkew => "pairs whose sum stays at or above zero, which only serializable tables keep",
            Kind::Ring => "a ring of rows is permuted: every snapshot shows one whole ring",
            Kind::TransientRows => "rows and their index entries come and go together",
            Kind::SingleBusyCell => "one counter: no update is lost",
            Kind::SingleBusyCellTouch => "one counter that most leave as it is, in a table that allows touches",
            Kind::MultipleBusyCells => "a few counters, several raised in one transaction",
            Kind::WriteOnceDeleteOnce => "what was deleted does not come back",
            Kind::Random => "gets, puts, deletes, scans of rows and columns, an index; tables of every isolation",
            Kind::Append => "lists that grow, for checkers that know no timestamps",
        }
    }

    pub(super) fn workload(self) -> Arc<dyn Workload> {
        match self {
            Kind::Bank => Arc::new(bank::Bank),
            Kind::WriteSkew => Arc::new(pairs::Pairs),
            Kind::Ring => Arc::new(ring::Ring),
            Kind::TransientRows => Arc::new(transient::Transient),
            Kind::SingleBusyCell => Arc::new(busy::Busy { cells: 1, touch: false }),
            Kind::SingleBusyCellTouch => Arc::new(busy::Busy { cells: 1, touch: true }),
            Kind::MultipleBusyCells => Arc::new(busy::Busy { cells: 8, touch: false }),
            Kind::WriteOnceDeleteOnce => Arc::new(once::Once::default()),
            Kind::Random => Arc::new(random::Random),
            Kind::Append => Arc::new(append::Append::default()),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Bank => "bank",
            Kind::WriteSkew => "write-skew",
            Kind::Ring => "ring",
            Kind::TransientRows => "transient-rows",
            Kind::SingleBusyCell => "single-busy-cell",
            Kind::SingleBusyCellTouch => "single-busy-cell-touch",
            Kind::MultipleBusyCells => "multiple-busy-cells",
            Kind::WriteOnceDeleteOnce => "write-once-delete-once",
            Kind::Random => "random",
            Kind::Append => "append",
        })
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.to_string() == name).ok_or_else(|| {
            let names: Vec<String> = Kind::ALL.iter().map(Kind::to_string).collect();
            Error::Usage(format!("'{name}' is no workload; there are {}", names.join(", ")))
        })
    }
}
