//! How far ahead atlas wants to be, row by row.

use crate::contenders::Name;
use crate::workload::{Mix, Workload};

/// The least ratio of atlas to a peer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bar {
    pub(crate) least: f64,
    /// Against the number of clients at which the peer is fastest, not the same number.
    pub(crate) at_best: bool,
}

/// Timestamps in a second, in the process.
pub(crate) const TIMESTAMPS_IN_PROCESS: f64 = 20e6;
/// Timestamps in a second over the socket, with as many clients as there are at most.
pub(crate) const TIMESTAMPS_OVER_SOCKET: f64 = 300e3;
/// What 99 % of these calls may take, in microseconds.
pub(crate) const TIMESTAMP_P99_US: f64 = 2_000.0;
/// Speed of a backup's copy, and of a restore, as a share of `cp`.
pub(crate) const BACKUP: f64 = 0.7;
/// What is left of the writers' speed while a backup runs.
pub(crate) const WRITERS_DURING_BACKUP: f64 = 0.9;
/// What the median of latencies may grow by.
pub(crate) const GROWTH: f64 = 1.3;
/// Peak memory of the largest table besides caches, in bytes.
pub(crate) const MEMORY_BYTES: u64 = 1 << 30;

/// What atlas has to reach with these clients, where something is asked of it. `is_most`: there are no more clients in
/// any other arm.
pub(crate) fn bar(workload: Workload, sync: bool, is_most: bool, theirs: Name) -> Option<Bar> {
    let same_clients = |least| Some(Bar { least, at_best: false });
    match (workload, theirs) {
        (Workload::Transfer, Name::RocksdbOptimistic) if is_most => {
            Some(Bar { least: if sync { 1.5 } else { 1.0 }, at_best: true })
        }
        (Workload::Transfer, Name::PostgresSerializable) if is_most && sync => same_clients(2.0),
        (Workload::Read, Name::Rocksdb) => same_clients(0.7),
        (Workload::Scan, Name::Rocksdb) => same_clients(0.6),
        (Workload::Load, Name::Rocksdb) => same_clients(0.7),
        (
            Workload::Transfer | Workload::Update | Workload::Insert | Workload::Load | Workload::Ycsb(Mix::A | Mix::F),
            Name::Fjall | Name::Redb | Name::Surrealkv,
        ) if sync => same_clients(1.0),
        _ => None,
    }
}
