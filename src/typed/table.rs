//! A typed table as a transaction sees it.

use super::codec;
use super::def::{TableDef, TableKey, TableValue};
use super::scan::TypedScan;
use crate::Result;
use crate::transaction::Transaction;
use atlas_kvs::{Cell, TableRef};

/// A typed table within a transaction; see [`Transaction::table`].
#[derive(Clone, Debug)]
#[must_use = "a table by itself reads and writes nothing"]
pub struct TypedTable<'t, K, V> {
    pub(super) transaction: &'t Transaction,
    pub(super) table: TableRef,
    pub(super) def: TableDef<K, V>,
}

impl Transaction {
    /// A typed table in this transaction.
    ///
    /// ```
    /// # async fn example(atlas: &atlas::Atlas) -> atlas::Result<()> {
    /// use atlas::typed::TableDef;
    ///
    /// const BALANCES: TableDef<(String, u64), i64> = TableDef::new("balances");
    ///
    /// let tx = atlas.begin().await?;
    /// let key = ("berlin".to_owned(), 7);
    /// let balance = tx.table(&BALANCES).get(&key).await?.unwrap_or_default();
    /// tx.table(&BALANCES).put(&key, &(balance + 10)).await?;
    /// tx.commit().await?;
    /// # Ok(()) }
    /// ```
    pub fn table<K: TableKey, V: TableValue>(&self, def: &TableDef<K, V>) -> TypedTable<'_, K, V> {
        TypedTable { transaction: self, table: def.table(), def: *def }
    }
}

impl<'t, K: TableKey, V: TableValue> TypedTable<'t, K, V> {
    /// The value of a key, or nothing.
    ///
    /// # Errors
    /// As [`Transaction::get`], and [`Error::Corrupt`](crate::Error::Corrupt) with table and key for a value that is
    /// none of `V`. Cancel safe.
    pub async fn get(&self, key: &K) -> Result<Option<V>> {
        let cell = codec::cell(&self.def, key);
        let bytes = self.transaction.get(&self.table, &cell).await?;
        bytes.map(|bytes| codec::decode(&self.table, &cell, &bytes)).transpose()
    }

    /// The values of keys, in the order given; see [`get`](Self::get).
    pub async fn get_many<'k>(&self, keys: impl IntoIterator<Item = &'k K>) -> Result<Vec<Option<V>>> {
        let cells: Vec<Cell> = keys.into_iter().map(|key| codec::cell(&self.def, key)).collect();
        let found = self.transaction.get_many(&self.table, &cells).await?;
        let values = cells.iter().zip(found).map(|(cell, bytes)| {
            let value = bytes.map(|bytes| codec::decode(&self.table, cell, &bytes));
            value.transpose()
        });
        values.collect()
    }

    /// Buffers a value for a key.
    ///
    /// # Errors
    /// As [`Transaction::put`]; [`Error::TooLarge`](crate::Error::TooLarge) also for a key of more than
    /// [`NAME_LEN_MAX`](crate::transaction::NAME_LEN_MAX) encoded bytes, and
    /// [`Error::Usage`](crate::Error::Usage) for a value serde can't write.
    pub async fn put(&self, key: &K, value: &V) -> Result<()> {
        let bytes = codec::encode(&self.table, value)?;
        self.transaction.put(&self.table, codec::cell(&self.def, key), bytes).await
    }

    /// Buffers the deletion of a key; see [`put`](Self::put).
    pub async fn delete(&self, key: &K) -> Result<()> {
        self.transaction.delete(&self.table, codec::cell(&self.def, key)).await
    }

    /// A scan, to be narrowed down and started with [`TypedScan::stream`].
    pub fn scan(&self) -> TypedScan<'t, K, V> {
        TypedScan::new(self.clone_parts())
    }

    // By hand: a derived Clone would want keys and values to be Clone, which they need not be.
    fn clone_parts(&self) -> TypedTable<'t, K, V> {
        TypedTable { transaction: self.transaction, table: self.table.clone(), def: self.def }
    }
}
