//! The disk as all contenders of this process share it: how often it is synced, how long that takes, and what a slower
//! disk would do.

// The one unsafe thing here is to stand in front of two functions of libc.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

static SYNCS: AtomicU64 = AtomicU64::new(0);
static DELAY_US: AtomicU64 = AtomicU64::new(0);

/// How often anything in this process has synced a file.
pub(crate) fn syncs() -> u64 {
    SYNCS.load(Ordering::Relaxed)
}

/// Adds this to every sync from now on, whoever asks for it.
pub(crate) fn delay(micros: u64) {
    DELAY_US.store(micros, Ordering::Relaxed);
}

fn count_and_delay() {
    SYNCS.fetch_add(1, Ordering::Relaxed);
    let delay = DELAY_US.load(Ordering::Relaxed);
    if delay > 0 {
        std::thread::sleep(Duration::from_micros(delay));
    }
}

/// Counts, delays and does what libc's function of this name does. RocksDB's log and `File::sync_data` come here;
/// `sync_file_range` does not: it only begins to write, and nobody waits for it.
#[unsafe(no_mangle)]
extern "C" fn fdatasync(descriptor: i32) -> i32 {
    count_and_delay();
    // SAFETY: the caller keeps its descriptor open for the duration of the call.
    let descriptor = unsafe { rustix::fd::BorrowedFd::borrow_raw(descriptor) };
    // A system call of its own, not libc's function: that would be this one.
    if rustix::fs::fdatasync(descriptor).is_ok() { 0 } else { -1 }
}

/// As [`fdatasync`], for `File::sync_all`.
#[unsafe(no_mangle)]
extern "C" fn fsync(descriptor: i32) -> i32 {
    count_and_delay();
    // SAFETY: the caller keeps its descriptor open for the duration of the call.
    let descriptor = unsafe { rustix::fd::BorrowedFd::borrow_raw(descriptor) };
    if rustix::fs::fsync(descriptor).is_ok() { 0 } else { -1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::disk::probe;
    use anyhow::Result;

    #[test]
    fn syncs_of_files_are_counted() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let before = syncs();
        assert!(probe(directory.path())? > 0.0);
        assert!(syncs() >= before + 200);
        Ok(())
    }
}
