//! The directory the demo works in: one it made, and nobody else's.

use crate::{Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// By this file the demo knows its own directory again.
const MARKER: &str = ".atlas-demo";
const PARTS: [&str; 3] = ["store", "backups", "restored"];

/// A directory of the demo, locked against a second one.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Takes a directory that is missing, empty, or left by an earlier demo, and clears what that one left.
    ///
    /// # Errors
    /// [`Error::Refused`] for any other directory, or while another demo works in it.
    pub(super) fn take(path: &Path) -> Result<Directory> {
        let marker = path.join(MARKER);
        if !marker.exists() {
            match std::fs::read_dir(path).map(|mut entries| entries.next().is_some()) {
                Ok(false) => {}
                Ok(true) => {
                    return Err(Error::refused(
                        format!("{} was not made by the demo, which destroys what is in it", path.display()),
                        "name a new directory: atlas demo --dir DIR",
                    ));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => make(path)?,
                Err(error) => return Err(Error::io(format!("looking into {}", path.display()), error)),
            }
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&marker)
            .map_err(|error| Error::io(format!("making {}", marker.display()), error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::refused(
                    format!("another demo works in {}", path.display()),
                    "wait for it, or name another directory: atlas demo --dir DIR",
                ));
            }
            Err(TryLockError::Error(error)) => {
                return Err(Error::io(format!("locking {}", marker.display()), error));
            }
        }
        let directory = Directory { path: path.to_owned(), _lock: lock };
        for part in PARTS {
            directory.clear(part)?;
        }
        Ok(directory)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    /// Absolute, as a backup request wants it.
    pub(super) fn backups(&self) -> PathBuf {
        let path = self.path.join("backups");
        std::path::absolute(&path).unwrap_or(path)
    }

    pub(super) fn restored(&self) -> PathBuf {
        self.path.join("restored")
    }

    pub(super) fn destroy_store(&self) -> Result<()> {
        self.clear("store")
    }

    /// Removes everything the demo made, the marker last.
    pub(super) fn remove(self) -> Result<()> {
        for part in PARTS {
            self.clear(part)?;
        }
        let marker = self.path.join(MARKER);
        std::fs::remove_file(&marker).map_err(|error| Error::io(format!("removing {}", marker.display()), error))?;
        match std::fs::remove_dir(&self.path) {
            // Somebody put something of their own beside it, or mounted it: theirs to keep.
            Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy) => Ok(()),
            result => result.map_err(|error| Error::io(format!("removing {}", self.path.display()), error)),
        }
    }

    fn clear(&self, part: &str) -> Result<()> {
        let path = self.path.join(part);
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::io(format!("removing {}", path.display()), error))
            }
            _ => Ok(()),
        }
    }
}

fn make(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|error| Error::io(format!("making {}", path.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_directory_of_its_own_is_touched() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let foreign = dir.path().join("foreign");
        std::fs::create_dir_all(foreign.join("store")).expect("a directory");
        let error = Directory::take(&foreign).expect_err("it is somebody's");
        assert_eq!(error.exit_code(), crate::exit::REFUSED);
        assert!(foreign.join("store").exists());

        let own = dir.path().join("deep/own");
        let first = Directory::take(&own).expect("it is new");
        assert_eq!(Directory::take(&own).expect_err("it is taken").exit_code(), crate::exit::REFUSED);
        std::fs::create_dir_all(first.store().join("x")).expect("a directory");
        drop(first);
        let second = Directory::take(&own).expect("it is left by a demo");
        assert!(!second.store().exists());
        second.remove().expect("it is removed");
        assert!(!own.exists());
    }
}
