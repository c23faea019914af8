//! The cases: every sentence of the contract, by subject.
//!
//! Each is a function on a fresh store that panics if the store breaks the promise in its name. They are listed once,
//! in [`conformance_tests`](crate::conformance_tests); a test sees to it that none is forgotten there.

pub mod atomics;
pub mod batches;
pub mod deletes;
pub mod lifecycle;
pub mod model;
pub mod names;
pub mod reads;
pub mod scans;
pub mod tables;
pub mod version_scans;
pub mod writes;
