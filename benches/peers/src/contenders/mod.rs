//! Who takes part: stores that can do the same work, each used as its documentation tells its users to.
//!
//! What is made equal: the key of 16 bytes and its value, 256 MiB of memory for what was read, and durability. With fsync
//! on, a transaction that was acknowledged survives the loss of power; with fsync off, it survives the end of the
//! process (redb: not even that, it has nothing in between).
//!
//! Before it is read only, a store is closed and opened again: everybody reads files, through warm caches.
//!
//! Scans look at every row and keep none. Where a contender lends rows for that, it does so here: atlas by `for_each`,
//! RocksDB by its raw iterator.

pub(crate) mod atlas;
pub(crate) mod fjall;
pub(crate) mod postgres;
pub(crate) mod redb;
pub(crate) mod rocksdb;
pub(crate) mod surrealkv;

use crate::measure::{Work, own_syncs};
use crate::workload::{Job, Workload};
use anyhow::Result;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// Memory for what was read, for each contender.
pub(crate) const CACHE_BYTES: usize = 256 << 20;

/// Whom one may ask to take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Name {
    Atlas,
    AtlasSerializable,
    Rocksdb,
    RocksdbOptimistic,
    RocksdbPessimistic,
    Fjall,
    Redb,
    Surrealkv,
    AtlasPostgres,
    AtlasPostgresSerializable,
    PostgresRepeatableRead,
    PostgresSerializable,
}

impl Name {
    pub(crate) const ALL: [Name; 12] = [
        Name::Atlas,
        Name::AtlasSerializable,
        Name::Rocksdb,
        Name::RocksdbOptimistic,
        Name::RocksdbPessimistic,
        Name::Fjall,
        Name::Redb,
        Name::Surrealkv,
        Name::AtlasPostgres,
        Name::AtlasPostgresSerializable,
        Name::PostgresRepeatableRead,
        Name::PostgresSerializable,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Name::Atlas => "atlas",
            Name::AtlasSerializable => "atlas, serializable",
            Name::Rocksdb => "RocksDB, raw",
            Name::RocksdbOptimistic => "OptimisticTransactionDB",
            Name::RocksdbPessimistic => "TransactionDB",
            Name::Fjall => "fjall, optimistic",
            Name::Redb => "redb",
            Name::Surrealkv => "surrealkv",
            Name::AtlasPostgres => "atlas on Postgres",
            Name::AtlasPostgresSerializable => "atlas on Postgres, serializable",
            Name::PostgresRepeatableRead => "Postgres REPEATABLE READ",
            Name::PostgresSerializable => "Postgres SERIALIZABLE",
        }
    }

    pub(crate) fn isolation(self) -> &'static str {
        match self {
            Name::Rocksdb => "none",
            Name::Atlas | Name::AtlasPostgres | Name::PostgresRepeatableRead => "snapshot",
            Name::RocksdbOptimistic => "conflicts of the keys that were read for update; snapshot reads",
            Name::RocksdbPessimistic => "locks on the keys that were read for update; snapshot reads",
            Name::Surrealkv => "snapshot",
            Name::AtlasSerializable
            | Name::AtlasPostgresSerializable
            | Name::PostgresSerializable
            | Name::Fjall
            | Name::Redb => "serializable",
        }
    }

    /// The form in which its users would write it.
    pub(crate) fn form(self) -> &'static str {
        match self {
            Name::Atlas | Name::AtlasPostgres => "run() with a task for each client",
            Name::AtlasSerializable | Name::AtlasPostgresSerializable => {
                "the same, and what was read is checked at the commit"
            }
            Name::Rocksdb => "get_pinned and one WriteBatch, a thread for each client",
            Name::RocksdbOptimistic => {
                "get_for_update, put, commit; repeated at once when busy; a thread for each client"
            }
            Name::RocksdbPessimistic => {
                "get_for_update in the order of keys, so that nobody waits in a circle; a thread for each client"
            }
            Name::Fjall => {
                "write_tx with SyncData or Buffer, repeated at once after conflicts; a thread for each client"
            }
            Name::Redb => "begin_write with Immediate or None, one writer at a time; a thread for each client",
            Name::Surrealkv => "Immediate or Eventual, repeated at once after conflicts; a task for each client",
            Name::PostgresRepeatableRead | Name::PostgresSerializable => {
                "prepared statements on a connection for each client, begin and reads in one round trip, writes and \
                 commit in another; one statement where one is enough"
            }
        }
    }

    pub(crate) fn is_atlas(self) -> bool {
        matches!(self, Name::Atlas | Name::AtlasSerializable | Name::AtlasPostgres | Name::AtlasPostgresSerializable)
    }

    /// True if it needs a server.
    pub(crate) fn is_on_postgres(self) -> bool {
        matches!(
            self,
            Name::AtlasPostgres
                | Name::AtlasPostgresSerializable
                | Name::PostgresRepeatableRead
                | Name::PostgresSerializable
        )
    }

    /// Those of atlas that it may be compared with, the fittest first: on the same store, and of the same isolation
    /// where that makes a difference.
    pub(crate) fn opponents(self) -> &'static [Name] {
        match self {
            Name::Rocksdb | Name::RocksdbOptimistic | Name::RocksdbPessimistic | Name::Surrealkv => &[Name::Atlas],
            Name::Fjall | Name::Redb => &[Name::AtlasSerializable, Name::Atlas],
            Name::PostgresRepeatableRead => &[Name::AtlasPostgres],
            Name::PostgresSerializable => &[Name::AtlasPostgresSerializable, Name::AtlasPostgres],
            _ => &[],
        }
    }

    /// True if it takes part in this row.
    pub(crate) fn does(self, workload: Workload) -> bool {
        match self {
            // Where a transaction reads something that it does not write, or nothing at all, the two do the same.
            Name::AtlasSerializable | Name::AtlasPostgresSerializable => workload == Workload::Transfer,
            Name::Atlas | Name::RocksdbOptimistic | Name::Fjall => true,
            _ => !matches!(workload, Workload::Ycsb(_)),
        }
    }

    /// True if transfers keep the sum.
    pub(crate) fn keeps_sums(self) -> bool {
        self != Name::Rocksdb
    }
}

/// An open store with its accounts.
pub(crate) trait Contender {
    /// Does work with that many clients.
    fn run(&self, job: &Arc<Job>, clients: usize, seed: u64) -> Result<Work>;

    /// How often its store was synced so far.
    fn syncs(&self) -> Result<u64> {
        own_syncs()
    }

    /// The sum and the number of all accounts that it was filled with.
    fn sum(&self) -> Result<Sum>;

    fn close(self: Box<Self>) -> Result<()>;
}

/// What all accounts hold together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) accounts: u64,
    pub(crate) money: u64,
}

impl Sum {
    pub(crate) fn add(&mut self, value: &[u8]) -> Result<()> {
        self.accounts += 1;
        self.money += crate::shared::accounts::balance(value)?;
        Ok(())
    }
}

/// Opens a store, or makes a new one. On a server it is always a new one.
pub(crate) fn open(name: Name, directory: &Path, sync: bool, clients_max: usize) -> Result<Box<dyn Contender>> {
    let directory = directory.join(format!("{name:?}").to_lowercase());
    Ok(match name {
        Name::Atlas | Name::AtlasSerializable => Box::new(atlas::Store::in_directory(name, &directory, sync)?),
        Name::AtlasPostgres | Name::AtlasPostgresSerializable => Box::new(atlas::Store::on_postgres(name, sync)?),
        Name::Rocksdb | Name::RocksdbOptimistic | Name::RocksdbPessimistic => {
            Box::new(rocksdb::Store::open(name, &directory, sync)?)
        }
        Name::Fjall => Box::new(fjall::Store::open(&directory, sync)?),
        Name::Redb => Box::new(redb::Store::open(&directory, sync)?),
        Name::Surrealkv => Box::new(surrealkv::Store::open(&directory, sync)?),
        Name::PostgresRepeatableRead | Name::PostgresSerializable => {
            Box::new(postgres::Store::open(name, sync, clients_max)?)
        }
    })
}
