//! Typed tables: keys that sort as they should, and values of the application's own types.
//!
//! An entity is one row with one column. Its key is a tuple, written in the tuple encoding of FoundationDB, which keeps
//! the order of its elements and which other languages can read and write; its value is whatever serde knows, written
//! by postcard:
//!
//! ```text
//!   const ACCOUNTS: TableDef<(String, u64), Account> = TableDef::new("accounts");
//!
//!   ("berlin", 7) ──tuple──> row  02 b e r l i n 00 15 07        column  v
//!   Account { … } ──serde──> value
//! ```
//!
//! Where keys grow at one end, as those that begin with a time or a counter, a table of a distributed store has all its
//! load in one place. [`TableDef::hashed`] puts eight bytes of a hash in front of each key; such a table has no useful
//! order, and is scanned as a whole or not at all.

mod codec;
mod def;
mod scan;
mod table;

pub use def::{TableDef, TableKey, TableValue};
pub use foundationdb_tuple as tuple;
pub use scan::TypedScan;
pub use table::TypedTable;
