//! Typed tables: tuples as keys, structs as values, ranges in order. `cargo run --example 02_typed`

use anyhow::Context;
use atlas::Atlas;
use atlas::config::{AtlasConfig, KvsConfig};
use atlas::ops::Operations;
use atlas::schema::TableSpec;
use atlas::transaction::Transaction;
use atlas::typed::TableDef;
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Bank and number to account: the accounts of one bank lie side by side.
const ACCOUNTS: TableDef<(String, u64), Account> = TableDef::new("accounts");

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Account {
    owner: String,
    balance: i64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    typed(directory.path()).await
}

/// Opens two accounts, moves money, and prints what is there.
pub(crate) async fn typed(directory: &Path) -> anyhow::Result<()> {
    let store = KvsConfig::rocksdb(directory.join("store"));
    let atlas = Atlas::open(AtlasConfig { key_value_service: store, ..AtlasConfig::default() }).await?;
    atlas.create_table(&ACCOUNTS.table(), &TableSpec::default()).await?;

    let (ada, ben) = (("alpha".to_owned(), 1), ("alpha".to_owned(), 2));
    atlas
        .run(async |tx| {
            let accounts = tx.table(&ACCOUNTS);
            accounts.put(&ada, &Account { owner: "Ada".to_owned(), balance: 100 }).await?;
            accounts.put(&ben, &Account { owner: "Ben".to_owned(), balance: 0 }).await
        })
        .await?;
    atlas.run(async |tx| transfer(&tx, &ada, &ben, 30).await).await?;

    let tx = atlas.begin().await?;
    let mut found = tx.table(&ACCOUNTS).scan().prefix(&("alpha",)).reverse().stream().await?;
    while let Some(((bank, number), account)) = found.try_next().await? {
        println!("{bank}/{number}: {} has {}", account.owner, account.balance);
    }
    let balance = tx.table(&ACCOUNTS).get(&ben).await?.map(|account| account.balance);
    anyhow::ensure!(balance == Some(30), "the transfer was committed");
    drop(found);
    drop(tx);
    atlas.close().await?;
    Ok(())
}

async fn transfer(tx: &Transaction, from: &(String, u64), to: &(String, u64), amount: i64) -> anyhow::Result<()> {
    let accounts = tx.table(&ACCOUNTS);
    let mut payer = accounts.get(from).await?.context("no such payer")?;
    let mut payee = accounts.get(to).await?.context("no such payee")?;
    anyhow::ensure!(payer.balance >= amount, "{} has not enough", payer.owner);
    payer.balance -= amount;
    payee.balance += amount;
    accounts.put(from, &payer).await?;
    accounts.put(to, &payee).await?;
    Ok(())
}
