//! How RocksDB is opened by those who use it without atlas.

use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, Options};

/// As atlas sets it, so far as it is said there: blocks in memory, blooms, compression.
pub(crate) fn options(cache_bytes: usize) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(cache_bytes));
    blocks.set_bloom_filter(10.0, false);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&blocks);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_bytes_per_sync(1 << 20);
    options.set_max_background_jobs(2);
    options
}
