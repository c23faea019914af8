//! The history of a run as it is written, and what is counted on the way.

use super::Latency;
use crate::{Error, Result};
use atlas_checker::history::{FinalState, Header, Status, Transaction, Writer, encode_transaction};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use std::fs::File;
use std::io::BufWriter;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// The longest latency that is told apart, in microseconds.
const LATENCY_MAX_US: u64 = 600_000_000;

/// Notes attempts from many clients.
pub(super) struct Recorder {
    /// One clock for all clients.
    started: Instant,
    history: Mutex<Option<Writer<BufWriter<File>>>>,
    path: Option<PathBuf>,
    error: Mutex<Option<std::io::Error>>,
    has_error: AtomicBool,
    latency: Mutex<Histogram<u64>>,
    committed: AtomicU64,
    aborted: AtomicU64,
    conflicts: AtomicU64,
    unknown: AtomicU64,
    not_begun: AtomicU64,
}

/// How many attempts ended how.
pub(super) struct Counts {
    pub(super) committed: u64,
    pub(super) aborted: u64,
    pub(super) conflicts: u64,
    pub(super) unknown: u64,
    pub(super) not_begun: u64,
}

impl Recorder {
    /// Begins a history, for its user's eyes only: it holds what was read.
    pub(super) fn new(path: Option<&Path>, header: &Header) -> Result<Recorder> {
        let history = match path {
            None => None,
            Some(path) => {
                let opened = File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
                let file = opened.map_err(|error| Error::io(format!("making {}", path.display()), error))?;
                let writer = Writer::new(BufWriter::new(file), header);
                Some(writer.map_err(|error| Error::io(format!("writing {}", path.display()), error))?)
            }
        };
        let latency = Histogram::new_with_max(LATENCY_MAX_US, 3).expect("these bounds are fine");
        Ok(Recorder {
            started: Instant::now(),
            history: Mutex::new(history),
            path: path.map(Path::to_owned),
            error: Mutex::new(None),
            has_error: AtomicBool::new(false),
            latency: Mutex::new(latency),
            committed: AtomicU64::new(0),
            aborted: AtomicU64::new(0),
            conflicts: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            not_begun: AtomicU64::new(0),
        })
    }

    pub(super) fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn not_begun(&self) {
        self.not_begun.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// True once the history could not be written: to go on would prove nothing.
    pub(super) fn failed(&self) -> bool {
        self.has_error.load(Ordering::Relaxed)
    }

    pub(super) fn note(&self, attempt: &Transaction, took: Duration) {
        let count = match attempt.status {
            Status::Committed => &self.committed,
            Status::Aborted => &self.aborted,
            Status::Unknown => &self.unknown,
        };
        if attempt.is_conflict() {
            self.conflicts.fetch_add(1, Ordering::Relaxed);
        }
        if attempt.status == Status::Committed {
            self.latency.lock().saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
        }
        if self.path.is_some() {
            // Encoded outside the lock.
            let written = encode_transaction(attempt)
                .and_then(|line| self.history.lock().as_mut().map_or(Ok(()), |history| history.encoded(line)));
            if let Err(error) = written {
                *self.error.lock() = Some(error);
                self.has_error.store(true, Ordering::Relaxed);
            }
        }
        // Last: whoever counts to a number finds that many lines.
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends the history with what stands in the tables.
    pub(super) fn finish(&self, state: &FinalState) -> Result<()> {
        let failed = self.error.lock().take();
        let written = match (failed, self.history.lock().take()) {
            (Some(error), _) => Err(error),
            (None, Some(history)) => history.finish(state),
            (None, None) => Ok(()),
        };
        let path = self.path.as_deref().unwrap_or(Path::new("the history"));
        written.map_err(|error| Error::io(format!("writing {}", path.display()), error))
    }

    pub(super) fn counts(&self) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            committed: count(&self.committed),
            aborted: count(&self.aborted),
            conflicts: count(&self.conflicts),
            unknown: count(&self.unknown),
            not_begun: count(&self.not_begun),
        }
    }

    pub(super) fn latency(&self) -> Latency {
        let latency = self.latency.lock();
        let at = |quantile| latency.value_at_quantile(quantile);
        let mut histogram: Vec<(u64, u64)> = latency
            .iter_log(64, 2.0)
            .map(|range| (range.value_iterated_to() + 1, range.count_since_last_iteration()))
            .collect();
        // Nothing before the first and behind the last.
        histogram.drain(..histogram.iter().take_while(|(_, count)| *count == 0).count());
        Latency {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: latency.max(),
            histogram,
        }
    }
}
