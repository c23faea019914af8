//! Compare-and-set: one statement that writes if it may and tells what stands if it may not.
//!
//! A statement sees the rows that were committed when it began, but whether it may write is decided by the row as it
//! is when its turn comes. So it may be refused because of a value that it does not see. Then what it tells makes no
//! sense (it was refused, although what it saw was what it expected), and it is simply asked again: in between
//! somebody else has made progress. What it tells otherwise stood at one moment during the call.

use crate::catalog::column;
use crate::errors::{Attempt, Stakes, Trouble, unavailable};
use crate::session::{Param, Server};
use atlas_kvs::{Cell, CheckAndSet, TableKind, TableRef};
use bytes::Bytes;

/// Far more than happens to anyone who is not stopped between a statement and the next.
const REFUSALS_MAX: usize = 100;

impl Server {
    pub(crate) async fn check_and_set(
        &self,
        table: &TableRef,
        cell: &Cell,
        expected: Option<&Bytes>,
        new: Option<&Bytes>,
    ) -> Attempt<CheckAndSet> {
        let name = self.names.table(table, TableKind::Atomic);
        let (row, col) = (&cell.row[..], &cell.column[..]);
        let (old_value, new_value) = (expected.map(|value| &value[..]), new.map(|value| &value[..]));
        let mut params: Vec<Param<'_>> = vec![&row, &col];
        let write = match (&old_value, &new_value) {
            (None, None) => return self.check_absence(table, cell).await,
            (None, Some(new)) => {
                params.push(new);
                format!(
                    "INSERT INTO {name} (\"row\", col, val) VALUES ($1::bytea, $2::bytea, $3::bytea) \
                     ON CONFLICT (\"row\", col) DO NOTHING"
                )
            }
            (Some(old), Some(new)) => {
                params.extend([new as Param<'_>, old]);
                format!(
                    "UPDATE {name} SET val = $3::bytea WHERE \"row\" = $1::bytea AND col = $2::bytea AND val = $4::bytea"
                )
            }
            (Some(old), None) => {
                params.push(old);
                format!("DELETE FROM {name} WHERE \"row\" = $1::bytea AND col = $2::bytea AND val = $3::bytea")
            }
        };
        let sql = format!(
            "WITH written AS ({write} RETURNING 1) SELECT w.done, CASE WHEN w.done THEN NULL \
               ELSE (SELECT t.val FROM {name} t WHERE t.\"row\" = $1::bytea AND t.col = $2::bytea) END \
             FROM (SELECT EXISTS (SELECT 1 FROM written) AS done) w"
        );
        let mut session = self.session().await?;
        for _ in 0..REFUSALS_MAX {
            let rows = match session.query(&sql, &params).await {
                Ok(rows) => rows,
                Err(failure) => {
                    drop(session);
                    return Err(self.table_trouble(failure, table, TableKind::Atomic, Stakes::Committed).await);
                }
            };
            let Some(row) = rows.first() else { continue };
            let done: bool = column(row, 0, table.name())?;
            let standing: Option<&[u8]> = column(row, 1, table.name())?;
            if done {
                return Ok(CheckAndSet::Applied);
            }
            if standing != old_value {
                return Ok(CheckAndSet::Mismatch(standing.map(Bytes::copy_from_slice)));
            }
        }
        Err(Trouble::Final(unavailable(format!("too many others write {cell} of table '{table}'"), None)))
    }

    async fn check_absence(&self, table: &TableRef, cell: &Cell) -> Attempt<CheckAndSet> {
        let mut standing = self.get_atomic(table, std::slice::from_ref(cell)).await?;
        Ok(match standing.pop().flatten() {
            None => CheckAndSet::Applied,
            standing => CheckAndSet::Mismatch(standing),
        })
    }
}
