//! What can be set, and where it comes from.
//!
//! Every value has a default that works; a file, the environment and flags override it, in this order. The shape of
//! the file is AtlasDB's: one block named `atlasdb`, and `atlasdb-runtime` for what may change while the store runs.

mod check;
mod layers;
mod load;
mod place;
mod stores;

pub use load::{COMMENTED, Environment, Loaded, Origin, Setting, Sources, load};
pub use stores::{CassandraKvs, PostgresKvs, Secret, SslModeChoice};

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Everything that is read once, when a store is opened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AtlasConfig {
    /// Name of the application's data; a store belongs to one namespace.
    pub namespace: String,
    /// The store below.
    pub key_value_service: KvsConfig,
    /// Who issues timestamps, on a store that several processes can reach.
    pub leader: LeaderConfig,
    /// Limits and time-outs of transactions.
    pub transactions: TransactionConfig,
    /// Addresses `atlas serve` listens on besides the socket in the data directory.
    pub server: ServerConfig,
    /// Defaults of `atlas backup`.
    pub backup: BackupConfig,
    /// How old versions are removed.
    pub sweep: SweepConfig,
}

/// What may change while the store runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RuntimeConfig {
    /// What `atlas serve` writes to its log. `ATLAS_LOG`, `-q` and `-v` go before it.
    pub log_level: LogLevel,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// What somebody should look at.
    Warn,
    /// What an operator wants to know afterwards.
    #[default]
    Info,
    /// Each operation.
    Debug,
    /// Each step of each operation.
    Trace,
}

/// The store below, chosen by `type`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type", deny_unknown_fields)]
pub enum KvsConfig {
    /// RocksDB in a directory, owned by one process.
    #[serde(rename_all = "camelCase")]
    Rocksdb {
        /// The directory.
        #[serde(default = "default_data_dir")]
        data_dir: PathBuf,
        /// Memory for blocks read from disk, in bytes.
        #[serde(default = "default_block_cache")]
        block_cache: ByteSize,
        /// Whether a commit waits until it would survive the loss of power.
        #[serde(default = "yes")]
        sync: bool,
    },
    /// A schema in a PostgreSQL database.
    Postgres(PostgresKvs),
    /// A keyspace in a Cassandra or Scylla cluster.
    Cassandra(CassandraKvs),
    /// In memory, gone with the process.
    Memory {},
}

/// A number of bytes, written as `64MiB`, `1GiB` or plain digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Limits and time-outs of transactions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TransactionConfig {
    /// Longest value of a cell.
    pub value_size_max: ByteSize,
    /// Most bytes one transaction may write: names, values and 32 bytes for each cell.
    pub write_size_max: ByteSize,
    /// Transactions with more to write than this put their data ahead of the commit pipeline.
    pub pipeline_size_max: ByteSize,
    /// Most bytes of one group of commits.
    pub group_size_max: ByteSize,
    /// Most bytes of cells that are kept in memory where commits go through the pipeline, so that reads of what was read or
    /// written lately ask no store; 0 for none.
    pub cell_cache: ByteSize,
    /// A transaction older than this is aborted.
    #[serde(with = "duration_text")]
    pub timeout: Duration,
    /// How long to wait for locks (step by step) and for other transactions.
    #[serde(with = "duration_text")]
    pub lock_timeout: Duration,
    /// How often `run` does the work again after conflicts.
    pub attempts_max: u32,
    /// `pipeline`, `step_by_step`, or `auto`: what fits the store.
    pub commit_mode: CommitModeChoice,
}

/// Who issues timestamps, on a store that several processes can reach. One process leads; its lease lies in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LeaderConfig {
    /// How long others wait after the last sign of life before they take over.
    #[serde(with = "duration_text")]
    pub lease: Duration,
}

/// How transactions commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommitModeChoice {
    /// The pipeline where batches are atomic (RocksDB, Postgres), step by step elsewhere.
    #[default]
    Auto,
    /// Groups of commits in one batch.
    Pipeline,
    /// Each commit by itself, with locks.
    StepByStep,
}

/// Where `atlas serve` listens besides its socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Health, status and metrics over HTTP; `off` for none.
    pub http: String,
    /// gRPC over TCP; `off` for none.
    pub grpc: String,
}

/// Defaults of `atlas backup`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BackupConfig {
    /// Repository where none is named: a directory.
    pub repository: PathBuf,
    /// How long a live backup's lock outlives its last renewal.
    #[serde(with = "duration_text")]
    pub lock_lease: Duration,
    /// A backup lock that is held for longer is told by `doctor`.
    #[serde(with = "duration_text")]
    pub lock_held_long: Duration,
    /// How long a backup waits for transactions that have a commit timestamp below its own; after that they are rolled
    /// back. Where commits go by the pipeline, there is nothing to wait for.
    #[serde(with = "duration_text")]
    pub settle_timeout: Duration,
    /// Most bytes that a live backup copies in a second, so that the store has its disk and its processors for others. 0: no
    /// limit.
    pub rate_limit: ByteSize,
}

/// How old versions are removed while the store is in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SweepConfig {
    /// Whether it is done by itself.
    pub enabled: bool,
    /// How long to rest when everything was swept; also how long after the store was opened it begins.
    #[serde(with = "duration_text")]
    pub interval: Duration,
    /// How long to rest between two batches, so that sweep leaves the store to others.
    #[serde(with = "duration_text")]
    pub pause: Duration,
    /// Most cells of one batch.
    pub batch_cells: u32,
    /// Most versions removed in a second; 0 for any number.
    pub deletes_per_second: u32,
    /// How long to wait at most before a round that failed is tried again; waits grow up to it.
    #[serde(with = "duration_text")]
    pub back_off_max: Duration,
}

fn default_data_dir() -> PathBuf {
    PathBuf::from("./data/atlas")
}

fn default_block_cache() -> ByteSize {
    ByteSize(64 << 20)
}

fn yes() -> bool {
    true
}

impl Default for AtlasConfig {
    fn default() -> AtlasConfig {
        AtlasConfig {
            namespace: "default".to_owned(),
            key_value_service: KvsConfig::default(),
            leader: LeaderConfig::default(),
            transactions: TransactionConfig::default(),
            server: ServerConfig::default(),
            backup: BackupConfig::default(),
            sweep: SweepConfig::default(),
        }
    }
}

impl KvsConfig {
    /// RocksDB in a directory, with everything else as usual.
    pub fn rocksdb(data_dir: impl Into<PathBuf>) -> KvsConfig {
        KvsConfig::Rocksdb { data_dir: data_dir.into(), block_cache: default_block_cache(), sync: yes() }
    }
}

impl Default for KvsConfig {
    fn default() -> KvsConfig {
        KvsConfig::rocksdb(default_data_dir())
    }
}

impl Default for LeaderConfig {
    fn default() -> LeaderConfig {
        LeaderConfig { lease: Duration::from_secs(10) }
    }
}

impl Default for TransactionConfig {
    fn default() -> TransactionConfig {
        TransactionConfig {
            value_size_max: ByteSize(64 << 20),
            write_size_max: ByteSize(256 << 20),
            pipeline_size_max: ByteSize(1 << 20),
            group_size_max: ByteSize(8 << 20),
            cell_cache: ByteSize(64 << 20),
            timeout: Duration::from_secs(3600),
            lock_timeout: Duration::from_secs(60),
            attempts_max: 50,
            commit_mode: CommitModeChoice::Auto,
        }
    }
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig { http: "127.0.0.1:8421".to_owned(), grpc: "127.0.0.1:8422".to_owned() }
    }
}

impl Default for BackupConfig {
    fn default() -> BackupConfig {
        BackupConfig {
            repository: PathBuf::from("./data/backups"),
            lock_lease: Duration::from_secs(60),
            lock_held_long: Duration::from_secs(24 * 3600),
            settle_timeout: Duration::from_secs(60),
            rate_limit: ByteSize(0),
        }
    }
}

impl Default for SweepConfig {
    fn default() -> SweepConfig {
        SweepConfig {
            enabled: true,
            interval: Duration::from_secs(5),
            pause: Duration::from_millis(5),
            batch_cells: 1_000,
            deletes_per_second: 0,
            back_off_max: Duration::from_secs(60),
        }
    }
}

impl ByteSize {
    /// As a length.
    pub fn len(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// True for no bytes at all.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl std::fmt::Display for ByteSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (unit, size) =
            UNITS.into_iter().find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size)).unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / size)
    }
}

impl std::str::FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<ByteSize, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = text[digits.len()..].to_ascii_lowercase();
        let size = UNITS
            .iter()
            .find(|(name, _)| unit.is_empty() && *name == "B" || name.eq_ignore_ascii_case(&unit))
            .map(|(_, size)| *size);
        let number = digits.trim().parse::<u64>().ok();
        number.zip(size).and_then(|(number, size)| number.checked_mul(size)).map(ByteSize).ok_or_else(|| {
            format!("'{text}' is no size: write bytes as digits, or with B, KiB, MiB or GiB behind them")
        })
    }
}

impl Serialize for ByteSize {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a size: digits, or digits with B, KiB, MiB or GiB behind them")]
        enum Form {
            Number(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(number) => Ok(ByteSize(number)),
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// Durations as `500ms`, `30s`, `5m`, `2h`.
pub mod duration_text {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    /// Reads `500ms`, `30s`, `5m` or `2h`.
    ///
    /// # Errors
    /// A sentence that names the forms allowed.
    pub fn parse(text: &str) -> Result<Duration, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let millis = match &text[digits.len()..] {
            "ms" => Some(1),
            "s" => Some(1000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            _ => None,
        };
        let number = digits.parse::<u64>().ok();
        number
            .zip(millis)
            .and_then(|(number, millis)| number.checked_mul(millis))
            .map(Duration::from_millis)
            .ok_or_else(|| format!("'{text}' is no duration: write digits followed by ms, s, m or h"))
    }

    /// Writes the shortest exact form.
    pub fn format(duration: Duration) -> String {
        let millis = duration.as_millis();
        match millis {
            0 => "0s".to_owned(),
            _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
            _ if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
            _ if millis.is_multiple_of(1000) => format!("{}s", millis / 1000),
            _ => format!("{millis}ms"),
        }
    }

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format(*duration))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
