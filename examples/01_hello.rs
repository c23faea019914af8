//! Opens a store, writes and reads in transactions. `cargo run --example 01_hello`

use anyhow::Context;
use atlas::config::{AtlasConfig, KvsConfig};
use atlas::ops::Operations;
use atlas::schema::TableSpec;
use atlas::{Atlas, Cell, TableRef};
use std::path::Path;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    hello(directory.path()).await
}

/// Greets twice, and counts how often.
pub(crate) async fn hello(directory: &Path) -> anyhow::Result<()> {
    let store = KvsConfig::rocksdb(directory.join("store"));
    let atlas = Atlas::open(AtlasConfig { key_value_service: store, ..AtlasConfig::default() }).await?;
    let greetings = TableRef::new("greetings")?;
    atlas.create_table(&greetings, &TableSpec::default()).await?;

    let cell = Cell::copy_from("world", "count");
    for _ in 0..2 {
        // The work is done anew by itself if another transaction was faster.
        let count = atlas
            .run(async |tx| {
                let seen = match tx.get(&greetings, &cell).await? {
                    Some(bytes) => std::str::from_utf8(&bytes)?.parse::<u64>().context("a count is a number")?,
                    None => 0,
                };
                tx.put(&greetings, cell.clone(), (seen + 1).to_string()).await?;
                anyhow::Ok(seen + 1)
            })
            .await?;
        println!("hello, world: {count}");
    }
    atlas.close().await?;
    Ok(())
}
