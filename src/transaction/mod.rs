//! Transactions.

pub mod entry;
mod value;
