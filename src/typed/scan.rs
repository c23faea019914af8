//! Scans of typed tables.

use super::codec;
use super::def::{TableKey, TableValue};
use super::table::TypedTable;
use crate::ops::ScanOptions;
use crate::{Error, Result};
use atlas_kvs::{ColumnSelection, RowRange};
use foundationdb_tuple::TuplePack;
use futures::stream::{BoxStream, StreamExt};
use std::ops::RangeBounds;

/// A scan that is being described: everything, in order, unless narrowed down.
///
/// ```
/// # async fn example(tx: &atlas::transaction::Transaction) -> atlas::Result<()> {
/// use atlas::typed::TableDef;
/// use futures::TryStreamExt;
///
/// const BALANCES: TableDef<(String, u64), i64> = TableDef::new("balances");
///
/// let mut last_ten = tx.table(&BALANCES).scan().prefix(&("berlin",)).reverse().limit(10).stream().await?;
/// while let Some(((city, account), balance)) = last_ten.try_next().await? {
///     println!("{city}/{account}: {balance}");
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a scan reads nothing before it is made a stream"]
pub struct TypedScan<'t, K, V> {
    table: TypedTable<'t, K, V>,
    rows: Option<RowRange>,
    reverse: bool,
    limit: Option<u64>,
}

impl<'t, K: TableKey, V: TableValue> TypedScan<'t, K, V> {
    pub(super) fn new(table: TypedTable<'t, K, V>) -> TypedScan<'t, K, V> {
        TypedScan { table, rows: None, reverse: false, limit: None }
    }

    /// Only keys whose first elements are those of `prefix`, whole elements each: `("ber",)` does not find
    /// `("berlin", 7)`. Replaces an earlier prefix or range.
    pub fn prefix<P: TuplePack>(self, prefix: &P) -> TypedScan<'t, K, V> {
        TypedScan { rows: Some(codec::prefix_rows(prefix)), ..self }
    }

    /// Only keys in a range, as `a..b` or `a..=b`. A bound that is a shorter tuple stands for all keys that begin with
    /// it: `("a",)..=("b",)` holds `("b", 7)`. Replaces an earlier prefix or range.
    pub fn range<P: TuplePack>(self, range: impl RangeBounds<P>) -> TypedScan<'t, K, V> {
        TypedScan { rows: Some(codec::range_rows(&range)), ..self }
    }

    /// From the last key to the first.
    pub fn reverse(self) -> TypedScan<'t, K, V> {
        TypedScan { reverse: true, ..self }
    }

    /// At most this many entities.
    pub fn limit(self, limit: u64) -> TypedScan<'t, K, V> {
        TypedScan { limit: Some(limit), ..self }
    }

    /// The entities, fetched page by page; see [`Transaction::scan`](crate::transaction::Transaction::scan). The
    /// stream yields [`Error::Corrupt`] with table and key for an entity that can't be read, and goes on behind it if
    /// it is polled again.
    ///
    /// # Errors
    /// [`Error::Usage`] for a prefix or a range on a [hashed](super::TableDef::hashed) table.
    pub async fn stream(self) -> Result<BoxStream<'static, Result<(K, V)>>> {
        let TypedTable { transaction, table, def } = self.table;
        if def.is_hashed() && self.rows.is_some() {
            return Err(Error::Usage(format!(
                "table '{table}' is hashed: its rows are not in the order of its keys, so it can only be scanned as a \
                 whole"
            )));
        }
        let options = ScanOptions {
            rows: self.rows.unwrap_or_default(),
            columns: ColumnSelection::All,
            reverse: self.reverse,
            limit: self.limit,
            page_size: 0,
            bypass_cache: false,
        };
        let cells = transaction.scan(&table, options).await?;
        let entities = cells.map(move |found| {
            let (cell, bytes) = found?;
            Ok((codec::key(&def, &cell)?, codec::decode(&table, &cell, &bytes)?))
        });
        Ok(entities.boxed())
    }
}
