//! What the numbers were measured with: the versions of everything, and how much memory and disk is used.

use crate::contenders::postgres;
use crate::shared::machine::kib_of;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;

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
