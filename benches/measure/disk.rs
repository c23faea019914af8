//! The disk, and where on it stores are made.

use super::statistics::median;
use anyhow::{Context, Result};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The directory in `place` in which the stores of a benchmark lie.
const STORES: &str = "atlas-bench-stores";

/// An empty directory in `place`. What an earlier run left there goes; whatever else is in `place` is none of ours.
pub(crate) fn empty_stores(place: &Path) -> Result<PathBuf> {
    let directory = place.join(STORES);
    if directory.exists() {
        remove_stores(&directory)?;
    }
    std::fs::create_dir_all(&directory).with_context(|| format!("making {} for the stores", directory.display()))?;
    Ok(directory)
}

/// Removes what [`empty_stores`] has made.
pub(crate) fn remove_stores(directory: &Path) -> Result<()> {
    std::fs::remove_dir_all(directory).with_context(|| format!("removing the stores in {}", directory.display()))
}

/// The median time of a 4 KiB write with its sync, in microseconds.
pub(crate) fn probe(directory: &Path) -> Result<f64> {
    const WRITES: u64 = 200;
    let path = directory.join("fsync-probe");
    let file = std::fs::File::create(&path)?;
    let mut micros = Vec::new();
    for number in 0..WRITES {
        let begun = Instant::now();
        file.write_all_at(&[7; 4096], number * 4096)?;
        file.sync_data()?;
        micros.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    std::fs::remove_file(path)?;
    Ok(median(micros))
}
