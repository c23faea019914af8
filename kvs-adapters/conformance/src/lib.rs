//! The contract of a store as a library of tests.
//!
//! Every sentence of [`atlas_kvs::KeyValueService`] is a named case, a function that runs on a fresh store. An adapter
//! says how to make a store and gets one test for each case:
//!
//! ```
//! use atlas_kvs::KeyValueService;
//! use atlas_kvs_conformance::{Factory, conformance_tests};
//! use atlas_kvs_memory::MemoryStore;
//! use std::sync::Arc;
//!
//! struct Memory;
//!
//! impl Factory for Memory {
//!     type Place = (); // A persistent store has its temporary directory here.
//!
//!     async fn place(&self) {}
//!
//!     async fn open(&self, (): &()) -> Arc<dyn KeyValueService> {
//!         Arc::new(MemoryStore::new())
//!     }
//! }
//!
//! conformance_tests!(Memory);
//! # fn main() {}
//! ```
//!
//! No case is skipped. What a store says in its [`Capabilities`](atlas_kvs::Capabilities) decides which promise is
//! tested: the capability, or the plain refusal of it.

pub mod cases;
mod list;
mod store;
mod support;

pub use store::{Factory, TestStore, run};
