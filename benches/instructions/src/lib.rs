//! What the counted paths work on: a store in memory with some cells, on a runtime of one thread, so that every run takes
//! the same steps.

use atlas::config::{AtlasConfig, ByteSize, CommitModeChoice, KvsConfig};
use atlas::ops::Operations;
use atlas::schema::TableSpec;
use atlas::{Atlas, Cell, TableRef};
use bytes::Bytes;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Cells that are there before anything is counted.
pub const CELLS: u64 = 1_000;

/// A store and what runs it.
pub struct Store {
    pub runtime: Runtime,
    pub atlas: Atlas,
    pub table: TableRef,
}

impl Store {
    /// With the newest versions of cells in memory, all of which were read.
    pub fn remembered() -> Store {
        let store = Store::filled(ByteSize(64 << 20));
        store.runtime.block_on(async {
            let tx = store.atlas.begin().await.expect("a transaction begins");
            for number in 0..CELLS {
                tx.get(&store.table, &cell(number)).await.expect("a read").expect("it is there");
            }
        });
        store
    }

    /// With nothing but the store itself to read from.
    pub fn forgetful() -> Store {
        Store::filled(ByteSize(0))
    }

    fn filled(cell_cache: ByteSize) -> Store {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let mut config = AtlasConfig { key_value_service: KvsConfig::Memory {}, ..AtlasConfig::default() };
        config.transactions.cell_cache = cell_cache;
        config.transactions.commit_mode = CommitModeChoice::Pipeline;
        config.sweep.enabled = false;
        let table = TableRef::new("accounts").expect("a name");
        let atlas = runtime.block_on(async {
            let atlas = Atlas::open_unserved(config, Duration::from_secs(5)).await.expect("the store opens");
            atlas.create_table(&table, &TableSpec::default()).await.expect("a table");
            let tx = atlas.begin().await.expect("a transaction begins");
            for number in 0..CELLS {
                tx.put(&table, cell(number), value(number)).await.expect("a write");
            }
            tx.commit().await.expect("a commit");
            atlas
        });
        Store { runtime, atlas, table }
    }
}

/// One of the cells.
pub fn cell(number: u64) -> Cell {
    Cell::copy_from(format!("account-{number:08}"), "b")
}

/// 100 bytes.
pub fn value(number: u64) -> Bytes {
    let mut value = vec![b'.'; 100];
    value[..8].copy_from_slice(&number.to_be_bytes());
    Bytes::from(value)
}
