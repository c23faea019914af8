//! What the numbers were measured on: the machine, the versions of everything, and how much memory and disk is used.

use crate::contenders::postgres;
use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) load_before: String,
}

impl Machine {
    pub(crate) fn look() -> Machine {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let processor =
            text("/proc/cpuinfo").lines().find_map(|line| Some(line.strip_prefix("model name")?.to_owned()));
        Machine {
            processor: processor.unwrap_or_default().trim_start_matches([' ', '\t', ':']).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: kib_of(&text("/proc/meminfo"), "MemTotal:").unwrap_or(0) >> 10,
            kernel: text("/proc/sys/kernel/osrelease"),
            load_before: text("/proc/loadavg"),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Machine { processor, cores, memory_mib, kernel, load_before } = self;
        write!(f, "{cores} × {processor}, {memory_mib} MiB, Linux {kernel}, load {load_before}")
    }
}

/// Versions of what is compared, as the lock file has them. That of librocksdb-sys is, behind the plus sign, RocksDB's.
pub(crate) fn versions() -> Result<BTreeMap<String, String>> {
    const NAMES: [&str; 7] = ["atlas", "rocksdb", "librocksdb-sys", "fjall", "redb", "surrealkv", "tokio-postgres"];
    let mut versions = BTreeMap::new();
    for name in NAMES {
        let version = locked_version(name).with_context(|| format!("{name} is not in the lock file"))?;
        versions.insert(name.to_owned(), version.to_owned());
    }
    if postgres::is_there() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (version, fsync) = runtime.block_on(postgres::about())?;
        versions.insert("PostgreSQL".to_owned(), format!("{version}, fsync {fsync}"));
    }
    Ok(versions)
}

fn locked_version(name: &str) -> Option<&'static str> {
    let lock = include_str!("../Cargo.lock");
    let package = lock.split(&format!("name = \"{name}\"\n")).nth(1)?;
    package.strip_prefix("version = \"")?.split('"').next()
}

/// The most memory this process has had since [`forget_peak_memory`].
pub(crate) fn peak_memory() -> Option<u64> {
    kib_of(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:").map(|kib| kib << 10)
}

/// Begins to count from what is in memory now. Where the kernel does not let us, the peak stays that of the process.
pub(crate) fn forget_peak_memory() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn kib_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Bytes of all files below a directory.
pub(crate) fn size_of(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        // A store that is open removes files meanwhile.
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += if metadata.is_dir() { size_of(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_has_a_version() -> Result<()> {
        let rocksdb = locked_version("rocksdb").context("it is there")?;
        assert!(rocksdb.starts_with("0."), "{rocksdb}");
        assert!(locked_version("nothing-of-this-name").is_none());
        Ok(())
    }

    #[test]
    fn peak_memory_is_known() {
        assert!(peak_memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
