//! One owner at a time: a locked file that names its holder.
//!
//! The lock is the operating system's, taken on `data_dir/owner` and given back by it when the holder ends, however it
//! ends. The number inside the file is only a message to whoever finds the lock taken.

use crate::errors::io_failed;
use atlas_kvs::{KvsError, Result};
use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// How often an opener looks again.
const POLL: Duration = Duration::from_millis(20);
/// An opener looks at least this long: a passing [`owner_pid`] holds the lock for a moment too.
const WAIT_MIN: Duration = Duration::from_millis(60);

/// The right to use a data directory, held until dropped.
#[derive(Debug)]
pub struct OwnerLock {
    data_dir: PathBuf,
    file: File,
}

impl OwnerLock {
    /// Takes the lock of a data directory, which is created (mode 0700) if absent. While another process, or another
    /// part of this one, holds it, looks again every few milliseconds for as long as `wait`.
    ///
    /// Cancel safe: a dropped call holds nothing.
    ///
    /// # Errors
    /// [`KvsError::InUse`] with the holder's number when the time is over; [`KvsError::Backend`] if the directory or
    /// the lock file can't be made.
    pub async fn acquire(data_dir: impl Into<PathBuf>, wait: Duration) -> Result<OwnerLock> {
        let data_dir = data_dir.into();
        let deadline = Instant::now() + wait.max(WAIT_MIN);
        loop {
            let attempt = tokio::task::spawn_blocking({
                let data_dir = data_dir.clone();
                move || OwnerLock::try_acquire(data_dir)
            });
            match attempt.await.map_err(|_| KvsError::Closed)? {
                Err(KvsError::InUse { .. }) if Instant::now() < deadline => tokio::time::sleep(POLL).await,
                done => return done,
            }
        }
    }

    /// The directory that is locked.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    fn try_acquire(data_dir: PathBuf) -> Result<OwnerLock> {
        make_private_dir(&data_dir)?;
        let path = data_dir.join("owner");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| io_failed("open", &path, error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(KvsError::InUse { place: data_dir.display().to_string(), pid: read_pid(&mut file) });
            }
            Err(TryLockError::Error(error)) => return Err(io_failed("lock", &path, error)),
        }
        // Written, not synced: after a crash of the machine nobody holds the lock, and nobody asks for the number.
        let written = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
        match written {
            Ok(()) => {}
            // The lock protects, not the text: on a full disk what is there can still be read.
            Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                tracing::debug!(%error, path = %path.display(), "the holder of the lock is not named");
            }
            Err(error) => return Err(io_failed("write", &path, error)),
        }
        Ok(OwnerLock { data_dir, file })
    }
}

impl Drop for OwnerLock {
    fn drop(&mut self) {
        // The next holder must not be introduced by our number. Failure is harmless: the lock goes with the file.
        let _ = self.file.set_len(0);
    }
}

/// The process that holds the lock of a data directory now, if one does and has left its number.
///
/// A short blocking call.
pub fn owner_pid(data_dir: impl AsRef<Path>) -> Option<u32> {
    let mut file = File::open(data_dir.as_ref().join("owner")).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => read_pid(&mut file),
        Ok(()) | Err(TryLockError::Error(_)) => None,
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Makes a directory and its parents, and closes it to everybody else whatever the umask says.
pub(crate) fn make_private_dir(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(0o700)))
        .map_err(|error| io_failed("make", path, error))
}
