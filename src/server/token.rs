//! The token that calls over TCP carry.
//!
//! The socket asks the system who is at its other end. A port of the loopback address can't: every user of the machine
//! reaches it. So whoever calls there proves that it can read a file that only the owner of the store, and root, can
//! read. The file is made when TCP is served first, and stays; removing it makes the next start write another one. A
//! store without a directory keeps a token in itself instead ([`store_token`](super::store_token)).

use super::wire;
use crate::{Error, Result};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response};
use axum::middleware::Next;
use rand::TryRngCore;
use rand::rngs::OsRng;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;

/// Name of the file in the data directory.
const TOKEN_NAME: &str = "server.token";
/// Environment variable that names the file, for clients that are not told it otherwise, and for servers that keep it
/// elsewhere than in the data directory.
pub const FILE_VARIABLE: &str = "ATLAS_SERVER_TOKEN_FILE";
const HEADER: &str = "authorization";
const SCHEME: &str = "Bearer ";
const TOKEN_LEN: usize = 32;
/// The one call that needs no token.
const FREE_CALL: &str = "atlas.v1.Identity/Prove";

/// Where the token of the server of `data_dir` is.
pub fn token_path(data_dir: &Path) -> PathBuf {
    data_dir.join(TOKEN_NAME)
}

/// A token. Not `Debug`: nobody shows it.
#[derive(Clone)]
pub(crate) struct Token(String);

impl Token {
    pub(super) fn random() -> io::Result<Token> {
        let mut token = [0; TOKEN_LEN];
        OsRng.try_fill_bytes(&mut token).map_err(io::Error::other)?;
        Ok(Token(hex::encode(token)))
    }

    pub(super) fn from_digits(digits: &str) -> Option<Token> {
        hex::decode(digits).is_ok_and(|token| token.len() == TOKEN_LEN).then(|| Token(digits.to_owned()))
    }

    pub(super) fn digits(&self) -> &str {
        &self.0
    }
}

/// Reads a token.
fn read(path: &Path) -> io::Result<Token> {
    let file = File::open(path)?;
    let mode = file.metadata()?.mode();
    if mode & 0o077 != 0 {
        let reason =
            format!("others may use it (mode {:04o}): `chmod 600` it, or remove it for a new one", mode & 0o7777);
        return Err(io::Error::new(ErrorKind::InvalidData, reason));
    }
    let mut text = String::new();
    file.take(1024).read_to_string(&mut text)?;
    if let Some(token) = Token::from_digits(text.trim()) {
        return Ok(token);
    }
    let reason =
        format!("it does not hold {} hexadecimal digits: remove it, and the server makes a new one", 2 * TOKEN_LEN);
    Err(io::Error::new(ErrorKind::InvalidData, reason))
}

/// Writes a new token. After a crash there is a whole file or none.
fn make(path: &Path) -> io::Result<Token> {
    let token = Token::random()?;
    let temporary = path.with_extension("token.tmp");
    // What a killed process left may have another mode, which opening it again would keep.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    writeln!(file, "{}", token.digits())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()?;
    Ok(token)
}

/// What a server lets in: any of a few tokens.
#[derive(Clone, Default)]
pub(super) struct Guard {
    /// Two of these are compared in the same time wherever they differ.
    wanted: Vec<blake3::Hash>,
    /// The file that one of them is in.
    path: Option<Arc<Path>>,
}

impl Guard {
    /// With the token in `path`, which is made if there is none. The caller owns the directory. Blocks for a moment.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that can't be used: the server must not guess what its owner wanted.
    pub(super) fn load(path: &Path) -> Result<Guard> {
        let token = match read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => make(path),
            result => result,
        };
        let token = token.map_err(|error| Error::io(format!("the server's token {}", path.display()), error))?;
        Ok(Guard { wanted: vec![blake3::hash(token.digits().as_bytes())], path: Some(path.into()) })
    }

    /// And whoever has this one.
    pub(super) fn and(mut self, token: &Token) -> Guard {
        self.wanted.push(blake3::hash(token.digits().as_bytes()));
        self
    }

    fn lets_in(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(HEADER).and_then(|value| value.to_str().ok()?.strip_prefix(SCHEME));
        given.is_some_and(|token| self.wanted.contains(&blake3::hash(token.as_bytes())))
    }

    fn refusal(&self, headers: &HeaderMap) -> Error {
        let problem =
            if headers.contains_key(HEADER) { "another token than" } else { "no token; over TCP a call needs" };
        let (place, hint) = match &self.path {
            Some(path) => (
                path.display().to_string(),
                format!(
                    "set {FILE_VARIABLE}={}, as a user that may read it, or use the socket beside it",
                    path.display()
                ),
            ),
            None => (
                "the store".to_owned(),
                format!(
                    "`atlas` with the store's configuration finds it; for other clients, start `atlas serve` with \
                     {FILE_VARIABLE}=FILE and give them that file"
                ),
            ),
        };
        Error::Remote {
            code: "UNAUTHENTICATED".to_owned(),
            message: format!("the call carries {problem} the one in {place}"),
            hint: Some(hint),
            retriable: false,
            exit_code: crate::exit::PERMISSION,
        }
    }
}

/// Lets a call through, or answers it. For [`axum::middleware::from_fn_with_state`].
pub(super) async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response<Body> {
    // By this call a client finds out whether it may show us its token at all.
    let is_free = request.uri().path().strip_prefix('/').is_some_and(|path| path == FREE_CALL);
    if is_free || guard.lets_in(request.headers()) {
        return next.run(request).await;
    }
    wire::status_of(&guard.refusal(request.headers())).into_http()
}

/// What a client shows; nothing over the socket.
#[derive(Clone, Default)]
pub(super) struct Credentials(Option<MetadataValue<Ascii>>);

impl Credentials {
    /// The token in a file. Blocks for a moment.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such file, [`Error::Io`] for one that can't be used.
    pub(super) fn read(path: &Path) -> Result<Credentials> {
        let token = read(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::NotFound { what: format!("token file {}", path.display()) },
            _ => Error::io(format!("the server's token {}", path.display()), error),
        })?;
        Ok(Credentials::of(&token))
    }

    /// This token.
    pub(super) fn of(token: &Token) -> Credentials {
        let mut value: MetadataValue<Ascii> =
            format!("{SCHEME}{}", token.digits()).parse().expect("a word, a space and digits are a header");
        value.set_sensitive(true);
        Credentials(Some(value))
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: tonic::Request<()>) -> std::result::Result<tonic::Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert(HEADER, token.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_is_made_once_for_its_owner_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = token_path(dir.path());
        std::fs::write(path.with_extension("token.tmp"), "left by a killed process").expect("written");
        let first = Guard::load(&path).expect("made");
        let text = std::fs::read_to_string(&path).expect("readable");
        assert_eq!(text.trim().len(), 64);
        assert_eq!(std::fs::metadata(&path).expect("there").mode() & 0o7777, 0o600);
        assert_eq!(Guard::load(&path).expect("read").wanted, first.wanted);
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 1);
        let other = Guard::load(&dir.path().join("other")).expect("made");
        assert_ne!(other.wanted, first.wanted);
    }

    #[test]
    fn a_token_that_others_may_read_or_that_is_none_is_not_used() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = token_path(dir.path());
        for (content, mode) in [("", 0o600), ("00", 0o600), (&"g".repeat(64), 0o600), (&"0".repeat(64), 0o640)] {
            std::fs::write(&path, content).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
            let error = Guard::load(&path).err().expect("refused");
            assert!(error.to_string().contains("server.token"), "{error}");
            assert!(Credentials::read(&path).is_err());
        }
    }

    #[test]
    fn only_the_whole_token_lets_in() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = token_path(dir.path());
        let guard = Guard::load(&path).expect("made");
        let token = std::fs::read_to_string(&path).expect("readable").trim().to_owned();
        let with =
            |value: &str| HeaderMap::from_iter([(axum::http::header::AUTHORIZATION, value.parse().expect("a value"))]);
        assert!(guard.lets_in(&with(&format!("Bearer {token}"))));
        for wrong in
            [token.clone(), format!("Bearer {}", &token[..63]), format!("Bearer {token}0"), "Bearer ".to_owned()]
        {
            assert!(!guard.lets_in(&with(&wrong)), "{wrong}");
        }
        assert!(!guard.lets_in(&HeaderMap::new()));
        let other = Token::random().expect("random bytes");
        let both = guard.clone().and(&other);
        assert!(both.lets_in(&with(&format!("Bearer {token}"))));
        assert!(both.lets_in(&with(&format!("Bearer {}", other.digits()))));
        assert!(!guard.lets_in(&with(&format!("Bearer {}", other.digits()))));
        assert!(!Guard::default().lets_in(&with("Bearer ")), "who was given no token lets nobody in");
    }
}
