//! What can be set, and what RocksDB is told because of it.

use crate::keys;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, Options, SliceTransform,
    WriteBufferManager,
};
use std::path::PathBuf;
use std::time::Duration;

const MIB: usize = 1024 * 1024;

/// How a [`RocksStore`](crate::RocksStore) is opened.
#[derive(Clone, Debug)]
pub struct RocksConfig {
    /// Where everything lies; created with mode 0700 if absent.
    pub data_dir: PathBuf,
    /// Memory for blocks read from disk, indexes and filters included, in bytes. Shared by all tables.
    pub block_cache_bytes: usize,
    /// Memory for writes not yet in table files, in bytes. Shared by all tables; a soft limit.
    pub write_buffer_bytes: usize,
    /// Length of the log at which tables are written out, in bytes. It bounds what an opener has to replay and what
    /// a snapshot has to copy.
    pub wal_bytes_max: u64,
    /// Whether plain writes and deletes wait for the disk. Atomic operations, changes of tables and synced batches do
    /// so in any case. Without it a crash of the machine, not of the process, may take back the last plain writes.
    pub sync: bool,
    /// How long to wait for another owner of `data_dir` to let go.
    pub wait_for_owner: Duration,
    /// Table files kept open at a time. Files beyond it are opened for each read that needs them.
    pub max_open_files: u32,
    /// Threads of RocksDB for flushes and compactions.
    pub background_jobs: u32,
}

impl RocksConfig {
    /// The defaults for a directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> RocksConfig {
        RocksConfig { data_dir: data_dir.into(), ..RocksConfig::default() }
    }
}

impl Default for RocksConfig {
    fn default() -> RocksConfig {
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get());
        RocksConfig {
            data_dir: PathBuf::from("atlas-data"),
            block_cache_bytes: 256 * MIB,
            write_buffer_bytes: 128 * MIB,
            wal_bytes_max: 128 * MIB as u64,
            sync: true,
            wait_for_owner: Duration::from_secs(2),
            max_open_files: 512,
            background_jobs: cores.clamp(2, 8) as u32,
        }
    }
}

/// Everything RocksDB is told: once for the database and once for each column family.
pub(crate) struct RocksOptions {
    pub(crate) database: Options,
    pub(crate) table: Options,
    pub(crate) catalog: Options,
}

impl RocksOptions {
    pub(crate) fn new(config: &RocksConfig) -> RocksOptions {
        let cache = Cache::new_lru_cache(config.block_cache_bytes);
        RocksOptions { database: database_options(config), table: table_options(&cache), catalog: catalog_options() }
    }
}

fn catalog_options() -> Options {
    let mut options = Options::default();
    // A few records. RocksDB sizes its log files by the largest write buffer, and a new store has only this one.
    options.set_write_buffer_size(MIB);
    options
}

fn database_options(config: &RocksConfig) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_max_open_files(i32::try_from(config.max_open_files).unwrap_or(i32::MAX));
    options.set_max_background_jobs(i32::try_from(config.background_jobs).unwrap_or(i32::MAX));
    options.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager(config.write_buffer_bytes, false));
    options.set_max_total_wal_size(config.wal_bytes_max);
    // A torn record at the end of the log was never acknowledged. Everything before it is kept and nothing behind it,
    // so that what survives is a prefix of what was written.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    // Point reads run on threads of the async runtime while they need no I/O. Closing their iterator must not
    // delete files there.
    options.set_avoid_unnecessary_blocking_io(true);
    // Write-back in small steps, so that a synced commit does not wait behind a flood of dirty pages.
    options.set_bytes_per_sync(MIB as u64);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(16 * MIB);
    options.set_stats_persist_period_sec(0);
    options
}

/// One set of options for both kinds of tables: see [`keys::prefix`].
fn table_options(cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_block_size(8 * 1024);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks.set_bloom_filter(10.0, false);
    // In pieces, of which a read needs one each: of a file of 64 MiB the whole filter and index are most of a MiB, which is more
    // than a part of a small cache holds, and each read of a large store would bring them in anew. Files of earlier versions have
    // them as a whole until they are compacted.
    blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    blocks.set_partition_filters(true);
    blocks.set_metadata_block_size(4 * 1024);
    blocks.set_pin_top_level_index_and_filter(true);
    // The prefix is the whole cell: whole keys in the filter would be a second entry for each version that no read
    // asks for. Atomic keys are their own prefix.
    blocks.set_whole_key_filtering(false);

    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_prefix_extractor(SliceTransform::create("atlas.cell", keys::prefix, None));
    // RocksDB makes the filter of a memtable when it makes the memtable, full size, and every table has one: at the
    // usual 0.1 a few dozen idle tables would fill the write buffer with empty filters. Two percent of 16 MiB are
    // still 16 bits a key for keys and values of 100 bytes.
    options.set_write_buffer_size(16 * MIB);
    options.set_memtable_prefix_bloom_ratio(0.02);
    options.set_max_write_buffer_number(4);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_compression_type(DBCompressionType::Lz4);
    // Sweep leaves runs of deletions behind, and queues consist of them. Files that are mostly deletions are compacted
    // soon, or scans would wade through them.
    options.add_compact_on_deletion_collector_factory(128 * 1024, 32 * 1024, 0.5);
    options
}
