//! Opens a store, writes and reads in transactions. `cargo run --example 01_hello`

use atlas::config::AtlasConfig;
use atlas::ops::Operations;
use atlas::schema::TableSpec;
use atlas::{Atlas, Cell, TableRef};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    hello(directory.path()).await
}

/// Greets twice, and counts how often.
pub async fn hello(directory: &std::path::Path) -> anyhow::Result<()> {
    let atlas = Atlas::open(AtlasConfig::default().with_data_dir(directory.join("store"))).await?;
    let greetings = TableRef::new("greetings")?;
    atlas.create_table(&greetings, &TableSpec::default()).await?;

    let cell = Cell::copy_from("world", "count");
    for _ in 0..2 {
        // Done anew by itself if another transaction was faster.
        let count = atlas
            .run(async |tx| {
                let seen = tx.get(&greetings, &cell).await?.map_or(Ok(0), |bytes| text(&bytes)?.parse::<u64>().map_err(anyhow::Error::from))?;
                tx.put(&greetings, cell.clone(), (seen + 1).to_string()).await?;
                anyhow::Ok(seen + 1)
            })
            .await?;
        println!("hello, world, for the {count}. time");
    }
    atlas.close().await?;
    Ok(())
}

fn text(bytes: &[u8]) -> anyhow::Result<&str> {
    Ok(std::str::from_utf8(bytes)?)
}
