//! The parts of atlas that several threads share, compiled with the mutexes and tasks of `shuttle`, which decides at each
//! of them who goes on.
//!
//! The modules are those of the crate itself, taken by their paths: not a line is different, but for the choice of a stripe. What they use of `tokio`
//! and `parking_lot` comes from wrappers of the same names. Atomics are the usual ones: between two accesses of one
//! nothing is explored, as if each were part of the step before it.

#![allow(dead_code, unused_imports, unreachable_pub, reason = "the explorations use some of each module")]

// The few things that are used of `tokio_util` are made here, of shuttle's parts.
extern crate self as tokio_util;
// What the faulty store of the tests knows the layer by.
extern crate self as atlas;

#[path = "../../../src/clock.rs"]
pub mod clock;
#[path = "../../../src/error.rs"]
mod error;
#[path = "../../../src/lock/mod.rs"]
pub mod lock;
#[path = "../../../src/ops.rs"]
pub mod ops;
#[path = "../../../src/planted.rs"]
pub mod planted;
#[path = "../../../src/rule.rs"]
mod rule;
#[path = "../../../src/schema/mod.rs"]
pub mod schema;
#[path = "../../../src/timestamp/mod.rs"]
pub mod timestamp;

#[path = "../../../src/transaction"]
mod transaction {
    #[path = "stripe.rs"]
    mod of_threads;

    // Any stripe, instead of the one of the thread: all threads of an exploration are one.
    pub(crate) mod stripe {
        pub(crate) use super::of_threads::CachePadded;
        use shuttle::rand::Rng;

        // Two are enough to be apart. With more, whoever takes all of them takes so many steps that others are always
        // done before.
        pub(crate) const STRIPES: usize = 2;

        pub(crate) fn own() -> usize {
            shuttle::rand::thread_rng().gen_range(0..STRIPES)
        }
    }
    pub(crate) mod tracker;
}

#[path = "../../../src/backup"]
pub mod backup {
    pub mod lock;
}

#[path = "../../common"]
mod common {
    pub(crate) mod chaos;
    pub(crate) mod clock;
    pub(crate) mod faulty;
}

pub mod explore;
pub mod sync;
pub mod task;

pub use atlas_kvs as kvs_api;
pub use atlas_kvs::{Cell, ColumnSelection, RowRange, TableRef, Timestamp};
pub use error::{Error, Result, exit};
