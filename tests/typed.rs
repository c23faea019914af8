//! Typed tables, as an application uses them.

use atlas::config::{AtlasConfig, KvsConfig};
use atlas::ops::Operations;
use atlas::schema::TableSpec;
use atlas::typed::TableDef;
use atlas::{Atlas, Cell, Error};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Account {
    owner: String,
    balance: i64,
}

const ACCOUNTS: TableDef<(String, u64), Account> = TableDef::new("accounts");
const SESSIONS: TableDef<u64, String> = TableDef::new("sessions").hashed();

async fn open() -> atlas::Result<Atlas> {
    let config = AtlasConfig { key_value_service: KvsConfig::Memory {}, ..AtlasConfig::default() };
    let atlas = Atlas::open(config).await?;
    atlas.create_table(&ACCOUNTS.table(), &TableSpec::default()).await?;
    atlas.create_table(&SESSIONS.table(), &TableSpec::default()).await?;
    Ok(atlas)
}

fn key(city: &str, number: u64) -> (String, u64) {
    (city.to_owned(), number)
}

/// Berlin 1, 2, 300 and Ber 5: committed, but for the last one of Berlin, which is an own write.
async fn with_accounts(atlas: &Atlas) -> atlas::Result<atlas::transaction::Transaction> {
    let tx = atlas.begin().await?;
    for (city, number) in [("berlin", 2), ("berlin", 1), ("ber", 5)] {
        let account = Account { owner: city.to_owned(), balance: number as i64 };
        tx.table(&ACCOUNTS).put(&key(city, number), &account).await?;
    }
    tx.commit().await?;
    let tx = atlas.begin().await?;
    tx.table(&ACCOUNTS).put(&key("berlin", 300), &Account::default()).await?;
    Ok(tx)
}

#[tokio::test]
async fn entities_are_read_written_and_deleted() -> atlas::Result<()> {
    let atlas = open().await?;
    let tx = with_accounts(&atlas).await?;
    let accounts = tx.table(&ACCOUNTS);
    assert_eq!(accounts.get(&key("berlin", 2)).await?.expect("it was put").balance, 2);
    accounts.delete(&key("berlin", 2)).await?;
    let found = accounts.get_many(&[key("berlin", 1), key("berlin", 2), key("berlin", 300)]).await?;
    let balances: Vec<_> = found.iter().map(|found| found.as_ref().map(|account| account.balance)).collect();
    assert_eq!(balances, [Some(1), None, Some(0)]);
    Ok(())
}

#[tokio::test]
async fn scans_are_in_the_order_of_the_keys_and_merge_own_writes() -> atlas::Result<()> {
    let atlas = open().await?;
    let tx = with_accounts(&atlas).await?;
    let scan = || tx.table(&ACCOUNTS).scan();
    let numbers = async |scan: atlas::typed::TypedScan<'_, (String, u64), Account>| {
        scan.stream().await?.map_ok(|((_, number), _)| number).try_collect::<Vec<_>>().await
    };
    assert_eq!(numbers(scan()).await?, [5, 1, 2, 300]);
    assert_eq!(numbers(scan().reverse().limit(2)).await?, [300, 2]);
    assert_eq!(numbers(scan().prefix(&("berlin",))).await?, [1, 2, 300]);
    assert_eq!(numbers(scan().prefix(&("berlin",)).reverse().limit(1)).await?, [300]);
    assert_eq!(numbers(scan().range(("berlin", 2)..("berlin", 300))).await?, [2]);
    assert_eq!(numbers(scan().range(("berlin", 2)..=("berlin", 300))).await?, [2, 300]);
    assert_eq!(numbers(scan().range(("ber",)..("berlin",))).await?, [5], "whole elements bound");
    Ok(())
}

#[tokio::test]
async fn a_hashed_table_is_scanned_as_a_whole_or_not_at_all() -> atlas::Result<()> {
    let atlas = open().await?;
    let tx = atlas.begin().await?;
    for number in 0..100 {
        tx.table(&SESSIONS).put(&number, &format!("session {number}")).await?;
    }
    tx.commit().await?;
    let tx = atlas.begin().await?;
    assert_eq!(tx.table(&SESSIONS).get(&42).await?.as_deref(), Some("session 42"));
    let mut found: Vec<_> = tx.table(&SESSIONS).scan().stream().await?.try_collect().await?;
    assert!(!found.is_sorted(), "the order is that of the hashes");
    found.sort();
    assert!(found.iter().map(|(number, _)| *number).eq(0..100));
    for scan in [tx.table(&SESSIONS).scan().prefix(&1u64), tx.table(&SESSIONS).scan().range(1u64..5)] {
        let Err(error) = scan.stream().await else { panic!("a hashed table has no ranges") };
        assert!(matches!(&error, Error::Usage(reason) if reason.contains("'sessions' is hashed")), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_no_entity_is_reported_with_table_and_key() -> atlas::Result<()> {
    let atlas = open().await?;
    let row = [&b"\x02berlin\0"[..], b"\x15\x01"].concat();
    let foreign = [
        (Cell::copy_from(&row, "v"), "value"),
        (Cell::copy_from(&row, "w"), "column"),
        (Cell::copy_from("\x15\x01", "v"), "key"),
    ];
    for (cell, part) in foreign {
        let tx = atlas.begin().await?;
        tx.put(&ACCOUNTS.table(), cell.clone(), &b"\xff\xff\xff"[..]).await?;
        let found: atlas::Result<Vec<_>> = tx.table(&ACCOUNTS).scan().stream().await?.try_collect().await;
        let error = found.expect_err("it is no entity");
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("table 'accounts'") && text.contains(part), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn a_key_over_the_limit_is_refused() -> atlas::Result<()> {
    let atlas = open().await?;
    let tx = atlas.begin().await?;
    let error = tx.table(&ACCOUNTS).put(&key(&"x".repeat(1500), 1), &Account::default()).await;
    assert!(matches!(error, Err(Error::TooLarge { .. })), "{error:?}");
    Ok(())
}
