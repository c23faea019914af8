//! A repository: a directory of backups, each a directory of its own.
//!
//! ```text
//!   REPO/20260102T030405Z-1f0a2b3c/manifest.json            written last: with it the backup is complete
//!                                  backup.timestamp         one line each, for the commands that work alone
//!                                  fast-forward.timestamp
//!                                  files/…                  the data; see [`Contents`](super::Contents)
//! ```
//!
//! Ids made here sort by time. Everything is readable by its owner only: a backup holds all data of the store.

use super::files::{self, io};
use super::manifest::{BACKUP_TIMESTAMP_FILE, FAST_FORWARD_TIMESTAMP_FILE, MANIFEST_FILE, Manifest, SIZE_MAX};
use super::timestamp_file::read_timestamp_file;
use crate::ops::BackupInfo;
use crate::{Error, Result};
use std::cmp::Reverse;
use std::path::{Path, PathBuf};

/// State of a backup whose manifest is there and sound.
pub const COMPLETE: &str = "complete";
/// State of a directory without a manifest: a backup under way, or one that was killed.
pub const INCOMPLETE: &str = "incomplete";
/// State of a backup whose manifest is not what was written.
pub const DAMAGED: &str = "damaged";

/// The word for the newest complete backup.
pub const LATEST: &str = "latest";

/// Longest id, in bytes.
const ID_LEN_MAX: usize = 100;

/// A directory of backups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    root: PathBuf,
}

impl Repository {
    /// The repository in this directory, which must exist. Blocks the thread for a moment.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it does not, [`Error::Refused`] if it is no directory.
    pub fn open(root: impl AsRef<Path>) -> Result<Repository> {
        let root = root.as_ref();
        match std::fs::metadata(root) {
            Ok(metadata) if metadata.is_dir() => Ok(Repository { root: files::real_path(root)? }),
            Ok(_) => Err(not_a_directory(root)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::NotFound { what: format!("backup repository {}", root.display()) })
            }
            Err(error) => Err(io("opening the backup repository", root)(error)),
        }
    }

    /// The repository in this directory, which is made if it is missing, for its owner only. Blocks the
    /// thread for a moment.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is no directory, [`Error::Io`].
    pub fn open_or_create(root: impl AsRef<Path>) -> Result<Repository> {
        let root = root.as_ref();
        if root.exists() && !root.is_dir() {
            return Err(not_a_directory(root));
        }
        files::make_dirs(&files::real_path(root)?)?;
        Repository::open(root)
    }

    /// Where it is: absolute, without symbolic links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of a backup.
    pub fn directory(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// All backups, newest first, whatever their state. Directories that can't be backups are left out.
    ///
    /// # Errors
    /// [`Error::Io`]. Cancel safe.
    pub async fn list(&self) -> Result<Vec<BackupInfo>> {
        self.blocking(Repository::list_now).await
    }

    /// One backup by its id, whatever its state, or the newest complete one by [`LATEST`].
    ///
    /// # Errors
    /// [`Error::NotFound`]. Cancel safe.
    pub async fn show(&self, id: &str) -> Result<BackupInfo> {
        let id = self.resolve(id).await?;
        self.blocking(move |repository| repository.info(&id)).await
    }

    /// The id that is meant: [`LATEST`] is the newest *complete* backup, anything else is itself.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none, [`Error::Usage`] for what can't be an id. Cancel safe.
    pub async fn resolve(&self, id: &str) -> Result<String> {
        let id = id.to_owned();
        self.blocking(move |repository| repository.resolve_now(&id)).await
    }

    /// The manifest of a complete backup.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such backup, [`Error::Corrupt`] if it is incomplete or damaged. Cancel safe.
    pub async fn manifest(&self, id: &str) -> Result<Manifest> {
        let id = id.to_owned();
        self.blocking(move |repository| repository.manifest_now(&id)).await
    }

    async fn blocking<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Repository) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let repository = self.clone();
        let running = tokio::task::spawn_blocking(move || work(&repository));
        // Reading has no panic of its own, so the only other end is that of the runtime.
        running.await.unwrap_or(Err(Error::Interrupted))
    }

    fn list_now(&self) -> Result<Vec<BackupInfo>> {
        let mut backups = Vec::new();
        for entry in files::read_dir(&self.root)? {
            let is_dir = entry.file_type().map_err(io("reading the type of", &entry.path()))?.is_dir();
            if let Some(id) = entry.file_name().to_str().filter(|id| is_dir && check_id(id).is_ok()) {
                match self.info(id) {
                    Ok(info) => backups.push(info),
                    // Removed while we looked: a backup that failed, or one that somebody does not want any more.
                    Err(_) if !entry.path().exists() => (),
                    Err(error) => return Err(error),
                }
            }
        }
        // Times of one clock first; where it stood still, the store's own time decides.
        backups.sort_by_cached_key(|backup| {
            (
                Reverse(backup.started.parse::<jiff::Timestamp>().ok()),
                Reverse(backup.backup_ts),
                Reverse(backup.id.clone()),
            )
        });
        Ok(backups)
    }

    fn resolve_now(&self, id: &str) -> Result<String> {
        if id == LATEST {
            let newest = self.list_now()?.into_iter().find(|backup| backup.state == COMPLETE);
            return newest
                .map(|backup| backup.id)
                .ok_or_else(|| Error::NotFound { what: format!("complete backup in {}", self.root.display()) });
        }
        check_id(id)?;
        match std::fs::metadata(self.directory(id)) {
            Ok(found) if found.is_dir() => Ok(id.to_owned()),
            Ok(_) => Err(self.no_such(id)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(self.no_such(id)),
            Err(error) => Err(io("looking for", &self.directory(id))(error)),
        }
    }

    pub(super) fn manifest_now(&self, id: &str) -> Result<Manifest> {
        check_id(id)?;
        let path = self.directory(id).join(MANIFEST_FILE);
        let place = path.display().to_string();
        match files::read_limited(&path, SIZE_MAX)? {
            Some(content) => {
                let manifest = Manifest::decode(&place, &content)?;
                // A directory under another name is a copy or a mix-up: it would be listed as what it is not.
                if manifest.id != id {
                    return Err(Error::corrupt(place, format!("it belongs to backup '{}'", manifest.id)));
                }
                Ok(manifest)
            }
            None if self.directory(id).is_dir() => Err(Error::corrupt(
                format!("backup '{id}' in {}", self.root.display()),
                format!("it has no {MANIFEST_FILE}: it was never completed, or the file was removed"),
            )),
            None => Err(self.no_such(id)),
        }
    }

    fn info(&self, id: &str) -> Result<BackupInfo> {
        let state = match self.manifest_now(id) {
            Ok(manifest) => return Ok(manifest.info()),
            Err(_) if !self.directory(id).join(MANIFEST_FILE).exists() => INCOMPLETE,
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(_) => DAMAGED,
        };
        let directory = self.directory(id);
        let modified = std::fs::metadata(&directory)
            .and_then(|metadata| metadata.modified())
            .map_err(io("reading the time of", &directory))?;
        // What can still be told; nothing of it is proven.
        Ok(BackupInfo {
            id: id.to_owned(),
            state: state.to_owned(),
            backup_ts: read_timestamp_file(&directory.join(BACKUP_TIMESTAMP_FILE)).ok(),
            fast_forward_ts: read_timestamp_file(&directory.join(FAST_FORWARD_TIMESTAMP_FILE)).ok(),
            started: jiff::Timestamp::try_from(modified).map(|time| time.to_string()).unwrap_or_default(),
            took_ms: 0,
            snapshot_ms: 0,
            bytes: 0,
            files: 0,
            store: String::new(),
            namespace: String::new(),
            method: String::new(),
        })
    }

    fn no_such(&self, id: &str) -> Error {
        Error::NotFound { what: format!("backup '{id}' in {}", self.root.display()) }
    }
}

fn not_a_directory(root: &Path) -> Error {
    Error::refused(
        format!("{} is no directory, so it can't be a backup repository", root.display()),
        "name a directory with --repo or --to",
    )
}

/// An id of this moment: the time in UTC, so that ids sort, and some random digits, so that they differ.
pub(super) fn new_id(now: jiff::Timestamp) -> String {
    format!("{}-{:08x}", now.strftime("%Y%m%dT%H%M%SZ"), rand::random::<u32>())
}

/// Whether a backup may have this id.
///
/// # Errors
/// [`Error::Usage`] with what is wrong.
pub fn check_id(id: &str) -> Result<()> {
    let reason = if id.is_empty() {
        "it is empty"
    } else if id.len() > ID_LEN_MAX {
        "it has more than 100 characters"
    } else if !id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        "it has letters, digits, '-', '_' and '.' only"
    } else if id.starts_with('.') {
        "it does not start with '.'"
    } else if id == LATEST {
        "this word means the newest one"
    } else {
        return Ok(());
    };
    Err(Error::Usage(format!("'{}' can't name a backup: {reason}", id.chars().take(120).collect::<String>())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_made_here_are_valid_and_sort_by_time() {
        let early: jiff::Timestamp = "2026-01-02T03:04:05Z".parse().expect("a time");
        let late: jiff::Timestamp = "2026-01-02T03:04:06Z".parse().expect("a time");
        assert!(new_id(early).starts_with("20260102T030405Z-"), "{}", new_id(early));
        assert!(check_id(&new_id(early)).is_ok() && new_id(early) < new_id(late) && new_id(early) != new_id(early));
    }

    #[test]
    fn names_that_could_lead_elsewhere_are_refused() {
        let long = "x".repeat(101);
        for bad in ["", ".", "..", ".hidden", "a/b", "a\\b", "a b", "ä", "latest", "a\0", &long] {
            assert!(matches!(check_id(bad), Err(Error::Usage(_))), "{bad:?}");
        }
        for good in ["nightly", "2026-01-02", "a.b_c-d", "-x", &long[..100]] {
            assert!(check_id(good).is_ok(), "{good:?}");
        }
    }
}
