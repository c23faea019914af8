//! The socket in the data directory.
//!
//! It is private before anybody can reach it: it is bound inside a new directory that only its owner may enter, gets
//! its mode there, and is then moved to its name in one step, over the file that a dead owner may have left. Whoever
//! binds holds the owner's lock of the directory, so no living owner is replaced; that is asked again all the same.
//!
//! The name of a socket has at most 107 bytes. Where the path is longer, the directory is opened and the socket is
//! reached through `/proc/self/fd`, which names the same file in few bytes and leaves nothing behind.

use crate::{Error, Result};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as BlockingListener;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};

const SOCKET_NAME: &str = "atlas.sock";
const STAGING_PREFIX: &str = ".atlas-sock-";

/// `sun_path` of Linux, without the zero at its end.
const PATH_LEN_MAX: usize = 107;

/// How long a connection may take to be established; only a crowded owner lets it wait at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the owner of `data_dir` is reached.
pub fn socket_path(data_dir: &Path) -> PathBuf {
    data_dir.join(SOCKET_NAME)
}

/// A path short enough for a socket; valid while it lives.
struct ShortPath {
    path: PathBuf,
    // The number in the path means this file.
    _directory: Option<File>,
}

impl ShortPath {
    fn new(directory: &Path, name: &str) -> io::Result<ShortPath> {
        let path = directory.join(name);
        if path.as_os_str().len() <= PATH_LEN_MAX {
            return Ok(ShortPath { path, _directory: None });
        }
        let file = File::open(directory)?;
        let path = Path::new("/proc/self/fd").join(file.as_raw_fd().to_string());
        if !path.exists() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the path has more than {PATH_LEN_MAX} bytes, and there is no /proc to shorten it"),
            ));
        }
        Ok(ShortPath { path: path.join(name), _directory: Some(file) })
    }
}

/// The owner's end.
#[derive(Debug)]
pub(super) struct OwnerSocket {
    pub(super) listener: UnixListener,
    pub(super) file: SocketFile,
}

/// The file of a socket; removed with this, unless somebody else's stands there by then.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let found = std::fs::symlink_metadata(&self.path);
        if found.is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity) {
            // A file that stays is taken for what it is: nobody listens behind it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Binds the socket of `data_dir`, which the caller owns.
pub(super) async fn bind(data_dir: &Path) -> Result<OwnerSocket> {
    refuse_living_owner(data_dir).await?;
    let directory = data_dir.to_owned();
    let (listener, file) = tokio::task::spawn_blocking(move || bind_privately(&directory))
        .await
        .map_err(|error| Error::io("binding a socket", io::Error::other(error)))?
        .map_err(|error| Error::io(format!("binding {}", socket_path(data_dir).display()), error))?;
    let listener = UnixListener::from_std(listener)
        .map_err(|error| Error::io(format!("listening on {}", file.path.display()), error))?;
    Ok(OwnerSocket { listener, file })
}

async fn refuse_living_owner(data_dir: &Path) -> Result<()> {
    let path = socket_path(data_dir);
    match std::fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(format!("looking at {}", path.display()), error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(Error::refused(
                format!("{} is not a socket", path.display()),
                "something else made it; move it out of the data directory",
            ));
        }
        Ok(_) => {}
    }
    match open(data_dir).await {
        Err(error) if is_dead(&error) => Ok(()),
        Ok(stream) => Err(Error::StoreInUse { place: data_dir.display().to_string(), pid: peer_pid(&stream) }),
        // Somebody is there, but too busy to let us in, or not ours to ask.
        Err(_) => Err(Error::StoreInUse { place: data_dir.display().to_string(), pid: None }),
    }
}

fn bind_privately(data_dir: &Path) -> io::Result<(BlockingListener, SocketFile)> {
    remove_leftovers(data_dir)?;
    let staging = tempfile::Builder::new()
        .prefix(STAGING_PREFIX)
        .permissions(std::fs::Permissions::from_mode(0o700))
        .tempdir_in(data_dir)?;
    let staged = staging.path().join("s");
    let listener = BlockingListener::bind(&ShortPath::new(staging.path(), "s")?.path)?;
    std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    let metadata = std::fs::symlink_metadata(&staged)?;
    let file = SocketFile { path: socket_path(data_dir), identity: (metadata.dev(), metadata.ino()) };
    std::fs::rename(&staged, &file.path)?;
    Ok((listener, file))
}

/// Removes what a process left that was killed while it bound its socket.
fn remove_leftovers(data_dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(data_dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(STAGING_PREFIX) && entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Connects to the owner of `data_dir`.
pub(super) async fn open(data_dir: &Path) -> io::Result<UnixStream> {
    let short = ShortPath::new(data_dir, SOCKET_NAME)?;
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(&short.path)).await??;
    // A data directory that others may write to could hold anybody's socket.
    let server_uid = stream.peer_cred()?.uid();
    let directory_uid = std::fs::metadata(data_dir)?.uid();
    if server_uid != directory_uid && !is_trusted(server_uid) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("the process that answers belongs to user {server_uid}"),
        ));
    }
    Ok(stream)
}

/// True if nobody listens: there is no socket, or its owner is gone.
pub(super) fn is_dead(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory)
}

/// True for the users that may use this process's socket.
pub(super) fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

fn peer_pid(stream: &UnixStream) -> Option<u32> {
    stream.peer_cred().ok()?.pid().and_then(|pid| u32::try_from(pid).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_for_its_user_and_for_root() {
        let own = rustix::process::geteuid().as_raw();
        assert!(is_trusted(own) && is_trusted(0) && !is_trusted(own + 1));
    }

    #[test]
    fn a_short_path_is_used_as_it_is_and_a_long_one_is_shortened() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let plain = ShortPath::new(directory.path(), "s").expect("short");
        assert_eq!(plain.path, directory.path().join("s"));
        let deep = directory.path().join("d".repeat(200));
        std::fs::create_dir(&deep).expect("made");
        let short = ShortPath::new(&deep, SOCKET_NAME).expect("shortened");
        assert!(short.path.as_os_str().len() <= PATH_LEN_MAX);
        std::fs::write(&short.path, b"here").expect("written");
        assert_eq!(std::fs::read(deep.join(SOCKET_NAME)).expect("read"), b"here");
    }

    #[tokio::test]
    async fn what_stands_there_and_is_not_ours_is_not_removed() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let first = bind(directory.path()).await.expect("bound");
        std::fs::remove_file(first.file.path()).expect("removed");
        std::fs::write(first.file.path(), b"somebody else's").expect("written");
        drop(first);
        assert!(socket_path(directory.path()).exists());
        let error = bind(directory.path()).await.expect_err("not a socket");
        assert_eq!(error.code(), "REFUSED");
    }
}
