//! Checks histories of transactions, without knowing the layer that made them.
//!
//! A run of transactions leaves a [history]: what every attempt read, wrote and was told. [`check`] replays it by its
//! own timestamps and reports what no snapshot-isolated store, with serializable tables where they are named, could
//! have answered: each [`Anomaly`] with the few transactions that show it and a picture of them. [`second_opinion()`]
//! asks a checker that somebody else wrote about runs of the append workload.
//!
//! The crate depends on no other one of this workspace, so that it shares no mistake with what it checks. Its README
//! defines the file format, and the tables and values of the workloads whose [invariants] it knows.
//!
//! ```
//! use atlas_checker::{History, Kind, Options, check};
//!
//! let history = br#"{"workload":"random"}
//! {"client":0,"status":"aborted","start_ts":1,"read_ts":1,"commit_ts":null,"begin_ns":0,"end_ns":9,"ops":[{"op":"put","table":"t","row":"r","col":"c","value":"a"}]}
//! {"client":1,"status":"committed","start_ts":2,"read_ts":2,"commit_ts":null,"begin_ns":5,"end_ns":12,"ops":[{"op":"get","table":"t","row":"r","col":"c","value":"a"}]}
//! "#;
//! let report = check(&History::read(&history[..])?, &Options::default());
//! assert_eq!(report.count(Kind::AbortedRead), 1);
//! assert!(report.anomalies[0].picture.contains("get t/r/c = \"a\""));
//! # Ok::<(), atlas_checker::history::ReadError>(())
//! ```

mod check;
pub mod history;
mod index;
pub mod invariants;
mod picture;
mod placement;
mod report;
pub mod second_opinion;
mod sightings;
mod story;
mod text;
mod timeline;
pub mod value;

pub use check::{Minimums, Options, check};
pub use history::History;
pub use report::{Anomaly, Kind, Report, Stats};
pub use second_opinion::second_opinion;
