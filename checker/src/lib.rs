//! x

mod check;
pub mod history;
mod index;
mod picture;
mod placement;
mod report;
mod story;
mod text;
mod timeline;
mod invariants {
    pub(crate) fn check(_: &crate::timeline::Timeline<'_, '_>, _: &mut crate::report::Findings) -> Option<u64> {
        None
    }
}

pub use check::{Minimums, Options, check};
pub use report::{Anomaly, Kind, Report, Stats};
