//! Backup and restore.

pub mod lock;
