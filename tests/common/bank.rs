//! Transfers that leave a record in the transaction that makes them, so that whoever comes after a crash can tell what
//! the balances must be: the records that are there, and nothing else, added up.

use super::{cell, number, scan_cells, table, text};
use atlas::ops::{BeginOptions, ScanOptions};
use atlas::schema::ConflictHandler;
use atlas::transaction::Transaction;
use atlas::{Atlas, Result, TableRef, Timestamp};
use rand::Rng;
use std::collections::BTreeMap;
use std::time::Duration;

const ACCOUNTS: usize = 12;
const OPENING_BALANCE: i64 = 1000;
/// Together more than the pipeline takes in these tests.
const LARGE: usize = 3000;

#[derive(Clone)]
pub struct Bank {
    pub atlas: Atlas,
    accounts: TableRef,
    records: TableRef,
    ballast: TableRef,
    size: usize,
}

/// Every record there is: what it says, by its id.
pub type Records = BTreeMap<String, String>;

impl Bank {
    /// The bank of a store; opened, if it is not yet.
    pub async fn open(atlas: &Atlas) -> Bank {
        Bank::of_size(atlas, ACCOUNTS).await
    }

    /// As [`open`](Self::open), with as many accounts as that.
    pub async fn of_size(atlas: &Atlas, size: usize) -> Bank {
        let bank = Bank {
            atlas: atlas.clone(),
            accounts: table(atlas, "accounts", ConflictHandler::RetryOnWriteWriteCell).await,
            records: table(atlas, "records", ConflictHandler::IgnoreAll).await,
            ballast: table(atlas, "ballast", ConflictHandler::RetryOnWriteWrite).await,
            size,
        };
        let tx = begin(atlas).await;
        if scan_cells(&tx, &bank.accounts, ScanOptions::default()).await.is_empty() {
            for account in 0..size {
                let balance = OPENING_BALANCE.to_string();
                tx.put(&bank.accounts, cell(&account.to_string()), balance).await.expect("a write is buffered");
            }
            tx.commit().await.expect("the bank opens");
        }
        bank
    }

    /// One attempt at a transfer between random accounts; large ones are put ahead of the pipeline.
    pub async fn transfer(&self, id: &str, large: bool) -> Result<Timestamp> {
        let (from, to, amount) = {
            let mut rng = rand::rng();
            let from = rng.random_range(0..self.size);
            let to = (from + rng.random_range(1..self.size)) % self.size;
            (from, to, rng.random_range(1..50i64))
        };
        let tx = self.atlas.transactions().begin(BeginOptions::default()).await?;
        let cells = [cell(&from.to_string()), cell(&to.to_string())];
        let found = tx.get_many(&self.accounts, &cells).await?;
        let balances: Vec<i64> =
            found.iter().map(|value| number(value.as_ref().expect("accounts are there"))).collect();
        tx.put(&self.accounts, cells[0].clone(), (balances[0] - amount).to_string()).await?;
        tx.put(&self.accounts, cells[1].clone(), (balances[1] + amount).to_string()).await?;
        tx.put(&self.records, cell(id), format!("{from} {to} {amount} {large}")).await?;
        if large {
            tx.put(&self.ballast, cell(id), vec![b'.'; LARGE]).await?;
        }
        Ok(tx.commit().await?.expect("a transfer writes"))
    }

    /// Checks that no transfer is there in part, and answers the records.
    pub async fn check(&self) -> Records {
        let tx = begin(&self.atlas).await;
        let records: Records = scan_cells(&tx, &self.records, ScanOptions::default())
            .await
            .into_iter()
            .map(|(cell, value)| (text(&cell.row), text(&value)))
            .collect();
        let mut expected = vec![OPENING_BALANCE; self.size];
        let mut large_ones = Vec::new();
        for (id, record) in &records {
            let words: Vec<&str> = record.split(' ').collect();
            let amount: i64 = words[2].parse().expect("an amount");
            expected[words[0].parse::<usize>().expect("an account")] -= amount;
            expected[words[1].parse::<usize>().expect("an account")] += amount;
            if words[3] == "true" {
                large_ones.push(id.clone());
            }
        }
        let cells: Vec<_> = (0..self.size).map(|account| cell(&account.to_string())).collect();
        let found = tx.get_many(&self.accounts, &cells).await.expect("the accounts can be read");
        let balances: Vec<i64> =
            found.iter().map(|value| number(value.as_ref().expect("accounts are there"))).collect();
        assert_eq!(balances, expected, "the balances are not what the records add up to");
        assert_eq!(balances.iter().sum::<i64>(), OPENING_BALANCE * self.size as i64);
        let ballast = scan_cells(&tx, &self.ballast, ScanOptions::default()).await;
        assert!(ballast.iter().all(|(_, value)| value.len() == LARGE));
        let ballast: Vec<String> = ballast.iter().map(|(cell, _)| text(&cell.row)).collect();
        assert_eq!(ballast, large_ones, "a large transfer is there in part");
        records
    }
}

/// On a machine that is busy a lease may run out and be taken up again.
async fn begin(atlas: &Atlas) -> Transaction {
    for _ in 0..300 {
        match atlas.begin().await {
            Ok(tx) => return tx,
            Err(error) if error.is_retriable() => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => panic!("no transaction begins: {error}"),
        }
    }
    panic!("no transaction begins, however long one waits");
}
