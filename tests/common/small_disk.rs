//! A disk that is soon full.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A file system of its own, as small as it is told to be, unmounted when dropped.
pub struct SmallDisk {
    path: PathBuf,
    // Goes last: it is mounted there.
    _dir: Option<TempDir>,
}

impl SmallDisk {
    /// Nothing where nothing may be mounted, unless this lane is required.
    pub fn mount(lane: &str) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let mut disk = SmallDisk::mount_at(dir.path(), 64, lane)?;
        disk._dir = Some(dir);
        Some(disk)
    }

    /// As [`mount`](Self::mount), on a directory, with so many MiB. The directory stays when it is unmounted.
    pub fn mount_at(path: &Path, mib: u32, lane: &str) -> Option<SmallDisk> {
        let size = format!("size={mib}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).output();
        if mounted.as_ref().is_ok_and(|output| output.status.success()) {
            return Some(SmallDisk { path: path.to_owned(), _dir: None });
        }
        let required = std::env::var("ATLAS_REQUIRE_LANES").unwrap_or_default();
        assert!(!required.split(',').any(|required| required.trim() == lane), "the disk can't be mounted: {mounted:?}");
        eprintln!("SKIP: no file system can be mounted here, so no disk was filled: {mounted:?}");
        None
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Writes until nothing goes in any more, and again while somebody makes room for a moment.
    pub fn fill(&self) {
        let mut file = OpenOptions::new().create(true).append(true).open(self.ballast()).expect("a file can be opened");
        for block in [1 << 20, 64 << 10, 4 << 10] {
            while file.write_all(&vec![1; block]).is_ok() {}
        }
    }

    pub fn clear(&self) {
        std::fs::remove_file(self.ballast()).expect("the ballast can be removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
