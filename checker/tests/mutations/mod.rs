//! Each way in which a good history is falsified, and by what names the checker may call it.

mod find;
mod form;
mod meaning;
mod reads;

use crate::simulator::workloads::Workload;
use crate::simulator::{Rng, Truth};
use atlas_checker::{History, Kind};

/// Falsifies a history; what it did, or none if the history has no place for it.
type Apply = fn(&mut History, &[Truth], &mut Rng) -> Option<String>;

pub(crate) struct Mutation {
    pub(crate) name: &'static str,
    /// One of these must be found.
    pub(crate) kinds: &'static [Kind],
    pub(crate) workload: Workload,
    pub(crate) apply: Apply,
}

const STALE: &[Kind] = &[Kind::StaleRead, Kind::ReadSkew];

const fn mutation(name: &'static str, kinds: &'static [Kind], workload: Workload, apply: Apply) -> Mutation {
    Mutation { name, kinds, workload, apply }
}

pub(crate) const MUTATIONS: &[Mutation] = &[
    mutation("a get returns the version before", STALE, Workload::Bank, reads::older),
    mutation("a get returns the version before (mixed tables)", STALE, Workload::Random, reads::older),
    mutation("a get returns nothing", STALE, Workload::Bank, reads::missing),
    mutation("one of two reads of a commit is stale", &[Kind::ReadSkew], Workload::Bank, reads::skewed),
    mutation("a get returns a later version", &[Kind::FutureRead], Workload::Bank, reads::newer),
    mutation("a get returns a later version (mixed)", &[Kind::FutureRead], Workload::Random, reads::newer),
    mutation("a get returns an aborted value", &[Kind::AbortedRead], Workload::Bank, reads::aborted),
    mutation("a get returns an intermediate value", &[Kind::IntermediateRead], Workload::Random, reads::intermediate),
    mutation("a get returns another cell's value", &[Kind::ThinAirRead], Workload::Bank, reads::elsewhere),
    mutation("a get returns a value nobody put", &[Kind::ThinAirRead], Workload::Random, reads::invented),
    mutation("a get misses the own put", &[Kind::Internal], Workload::Random, reads::own_missed),
    mutation("a get returns the own put before it", &[Kind::Internal], Workload::Bank, reads::own_early),
    mutation("a scan loses a row", &[Kind::Phantom], Workload::Random, reads::row_lost),
    mutation("a scan returns a deleted row", &[Kind::Phantom], Workload::Random, reads::row_resurrected),
    mutation("a scan returns a row of the future", &[Kind::FutureRead], Workload::Random, reads::row_of_the_future),
    mutation("a scan claims to have seen everything", &[Kind::Phantom], Workload::Random, reads::prefix_as_whole),
    mutation("an unknown one is half seen", &[Kind::TornOutcome], Workload::Bank, reads::half_seen),
    mutation("two start timestamps are one", &[Kind::DuplicateStartTs], Workload::Random, form::same_start),
    mutation("two commit timestamps are one", &[Kind::DuplicateCommitTs], Workload::Random, form::same_commit),
    mutation("a snapshot after the start", &[Kind::TimestampOrder], Workload::Random, form::late_snapshot),
    mutation("commit timestamps swapped", &[Kind::TimestampOrder], Workload::Random, form::swapped_commits),
    mutation("a commit without timestamp", &[Kind::TimestampOrder], Workload::Random, form::no_commit_ts),
    mutation("a reader with a commit timestamp", &[Kind::TimestampOrder], Workload::Random, form::reader_commit_ts),
    mutation("a value put twice", &[Kind::DuplicateValue], Workload::Random, form::value_twice),
    mutation("an end before the beginning", &[Kind::Malformed], Workload::Random, form::backwards),
    mutation("a scan out of order", &[Kind::Malformed], Workload::Random, form::rows_out_of_order),
    mutation("a scan beyond what it consumed", &[Kind::Malformed], Workload::Random, form::rows_beyond_consumed),
    mutation("the final state out of order", &[Kind::Malformed], Workload::Bank, form::final_out_of_order),
    mutation(
        "an acknowledged commit is not seen later",
        &[Kind::RealTime],
        Workload::Bank,
        form::too_late_for_its_snapshot,
    ),
    mutation("starts against the clock", &[Kind::RealTime], Workload::Random, form::starts_swapped),
    mutation("a later reader sees less", &[Kind::RealTime], Workload::Random, form::snapshot_set_back),
    mutation(
        "a committed one calls itself aborted",
        &[Kind::AbortedRead],
        Workload::Bank,
        meaning::committed_to_aborted,
    ),
    mutation("a loser calls itself committed", &[Kind::LostUpdate], Workload::Bank, meaning::loser_commits),
    mutation(
        "a loser calls itself committed (mixed)",
        &[Kind::WriteConflict, Kind::LostUpdate],
        Workload::Random,
        meaning::loser_commits,
    ),
    mutation(
        "a blind loser calls itself committed",
        &[Kind::WriteConflict],
        Workload::Random,
        meaning::blind_loser_commits,
    ),
    mutation("a skewed one calls itself committed", &[Kind::WriteSkew], Workload::WriteSkew, meaning::skewed_commits),
    mutation(
        "one that missed a row calls itself committed",
        &[Kind::PhantomSkew],
        Workload::WriteOnceDeleteOnce,
        meaning::skewed_commits,
    ),
    mutation("the final state loses a cell", &[Kind::Durability], Workload::Bank, meaning::final_loses),
    mutation("the final state loses a cell (mixed)", &[Kind::Durability], Workload::Random, meaning::final_loses),
    mutation("the final state is of an earlier time", &[Kind::RealTime], Workload::Bank, meaning::final_of_earlier),
    mutation("the final state is empty and of no time", &[Kind::RealTime], Workload::Random, meaning::final_of_nothing),
    mutation("the final state is older", &[Kind::Durability], Workload::Bank, meaning::final_older),
    mutation("the final state holds an aborted value", &[Kind::AbortedRead], Workload::Bank, meaning::final_aborted),
    mutation(
        "the final state forgets what was seen",
        &[Kind::TornOutcome],
        Workload::Bank,
        meaning::final_forgets_unknown,
    ),
    mutation("money appears", &[Kind::Invariant], Workload::Bank, meaning::other_number),
    mutation("a counter jumps", &[Kind::Invariant], Workload::SingleBusyCell, meaning::other_number),
    mutation("a counter jumps (touch)", &[Kind::Invariant], Workload::SingleBusyCellTouch, meaning::other_number),
    mutation("a counter jumps (several)", &[Kind::Invariant], Workload::MultipleBusyCells, meaning::other_number),
    mutation("a pair falls below zero", &[Kind::Invariant], Workload::WriteSkew, meaning::negative_number),
    mutation("the ring is cut", &[Kind::Invariant], Workload::Ring, meaning::ring_cut),
    mutation("a list forgets its first element", &[Kind::Invariant], Workload::Append, meaning::list_rewritten),
    mutation("a row without its index entry", &[Kind::Invariant], Workload::TransientRows, meaning::half_a_row),
    mutation("a cell comes back", &[Kind::Invariant], Workload::WriteOnceDeleteOnce, meaning::comes_back),
];
