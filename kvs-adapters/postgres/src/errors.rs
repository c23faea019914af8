//! What the server says, told by what the caller can do about it.
//!
//! Two things decide: what the server said (its SQLSTATE), and when. An `ERROR` always means that the transaction was
//! rolled back. A connection that ends means so too, unless the server may have been told to commit before:
//!
//! ```text
//!   BEGIN ── statements ── COMMIT ──────────── answer
//!   └──── nothing applied ────┘└─ not known ─┘
//!   a statement of its own: not known from the moment it was sent
//! ```

use crate::config::PostgresConfig;
use crate::tls;
use atlas_kvs::{KvsError, TableKind, TableRef};
use deadpool_postgres::{HookError, PoolError, TimeoutType};
use std::error::Error as _;
use std::time::Duration;
use tokio_postgres::error::{DbError, Severity, SqlState};

/// Why an attempt did not succeed.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// For the caller to know.
    Final(KvsError),
    /// Nothing was applied, and the same attempt made again at once is likely to succeed. The error counts if not.
    Again(KvsError),
}

pub(crate) type Attempt<T> = Result<T, Trouble>;

impl From<KvsError> for Trouble {
    fn from(error: KvsError) -> Trouble {
        Trouble::Final(error)
    }
}

/// What the connection gave instead of an answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nothing was sent: the connection was lost before, or the statement could not be prepared.
    Unsent(tokio_postgres::Error),
    /// An error in place of the answer.
    Answer(tokio_postgres::Error),
    /// No answer for this long.
    Silence(Duration),
    /// The same while a statement was prepared: nothing of it was sent.
    UnsentSilence(Duration),
}

pub(crate) type Answer<T> = Result<T, Failure>;

impl Failure {
    pub(crate) fn db_error(&self) -> Option<&DbError> {
        match self {
            Failure::Unsent(error) | Failure::Answer(error) => error.as_db_error(),
            Failure::Silence(_) | Failure::UnsentSilence(_) => None,
        }
    }

    pub(crate) fn is(&self, state: &SqlState) -> bool {
        self.db_error().is_some_and(|error| error.code() == state)
    }

    /// True if the statement names a table that is not there.
    pub(crate) fn misses_table(&self) -> bool {
        self.is(&SqlState::UNDEFINED_TABLE) || self.is(&SqlState::INVALID_SCHEMA_NAME)
    }

    /// True if the connection is as usable as before: the server refused a statement and said so.
    pub(crate) fn spares_connection(&self) -> bool {
        self.db_error().is_some_and(|error| !ends_connection(error))
    }
}

/// What a lost answer may hide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stakes {
    /// Nothing: it was a read.
    Read,
    /// A write in a transaction that the server was not told to commit.
    Uncommitted,
    /// A write that may have been committed.
    Committed,
}

/// What a failure means.
pub(crate) fn explain(failure: Failure, stakes: Stakes) -> Trouble {
    let lost = stakes == Stakes::Committed;
    if let Failure::Unsent(error) = &failure
        && let Some(reason) = tls::distrust(error)
    {
        let reason = format!("the encrypted connection failed, check host, sslmode and root certificate: {reason}");
        return Trouble::Final(misconfigured(reason, None));
    }
    match failure {
        Failure::Silence(waited) if lost => Trouble::Final(indeterminate(silent(waited), None)),
        Failure::Silence(waited) | Failure::UnsentSilence(waited) => Trouble::Final(unavailable(silent(waited), None)),
        Failure::Unsent(error) => match error.as_db_error() {
            Some(_) => of_state(error, stakes),
            None if is_connection_loss(&error) => Trouble::Again(unavailable(chain(&error), Some(error))),
            // Told by the client library, which can't log in with what it was given.
            None if is_about_login(&error) => Trouble::Final(denied(
                format!("the server asks for a login that can't be given, check user and password: {}", chain(&error)),
                error,
            )),
            None if error.to_string().contains("TLS handshake") => {
                Trouble::Final(misconfigured(format!("{}; check sslmode and the server", chain(&error)), Some(error)))
            }
            None => Trouble::Final(backend(chain(&error), error)),
        },
        Failure::Answer(error) => match error.as_db_error() {
            // Between the commit and the message that it ended a server can still be told to stop.
            Some(db) if lost && ends_connection(db) => Trouble::Final(indeterminate(chain(&error), Some(error))),
            Some(_) => of_state(error, stakes),
            None if lost => Trouble::Final(indeterminate(chain(&error), Some(error))),
            None if is_connection_loss(&error) => {
                let again = stakes == Stakes::Read;
                let error = unavailable(chain(&error), Some(error));
                if again { Trouble::Again(error) } else { Trouble::Final(error) }
            }
            None => Trouble::Final(backend(chain(&error), error)),
        },
    }
}

fn silent(waited: Duration) -> String {
    format!("the server did not answer within {} s", waited.as_secs())
}

/// What an error that the server sent means, given that nothing was applied.
fn of_state(error: tokio_postgres::Error, stakes: Stakes) -> Trouble {
    let Some(db) = error.as_db_error() else { return Trouble::Final(backend(chain(&error), error)) };
    let reason = chain(&error);
    match db.code().code() {
        // Serialization failure, deadlock: the server chose us to give way.
        "40001" | "40P01" => Trouble::Again(unavailable(reason, Some(error))),
        "XX001" | "XX002" => Trouble::Final(KvsError::corrupt("the database", reason)),
        "28000" | "28P01" => {
            Trouble::Final(denied(format!("the server refuses the login, check user and password: {reason}"), error))
        }
        "3D000" => Trouble::Final(misconfigured(format!("{reason}; create the database first"), Some(error))),
        "42501" => Trouble::Final(denied(format!("{reason}; grant the user what it needs"), error)),
        // Shut down, restarted, terminated by an administrator.
        "57P01" | "57P02" | "57P03" | "57P05" if stakes == Stakes::Read => {
            Trouble::Again(unavailable(reason, Some(error)))
        }
        // Cancelled or timed out; locked; read-only after a fail-over; idle for too long; I/O.
        "57014" | "55P03" | "25006" | "25P03" | "25P04" | "58000" | "58030" => {
            Trouble::Final(unavailable(reason, Some(error)))
        }
        // Connections, resources (disk full, out of memory, too many connections), operator's intervention.
        state if ["08", "53", "57"].contains(&&state[..2]) => Trouble::Final(unavailable(reason, Some(error))),
        _ => Trouble::Final(backend(reason, error)),
    }
}

/// A connection could not be had.
pub(crate) fn no_connection(error: PoolError, config: &PostgresConfig) -> Trouble {
    let place = config.place();
    match error {
        PoolError::Closed => Trouble::Final(KvsError::Closed),
        PoolError::Timeout(TimeoutType::Wait) => {
            let (size, waited) = (config.pool_size, config.pool_timeout.as_millis());
            Trouble::Final(unavailable(format!("all {size} connections to {place} were in use for {waited} ms"), None))
        }
        PoolError::Timeout(TimeoutType::Create | TimeoutType::Recycle) => {
            let waited = config.connect_timeout.as_millis();
            Trouble::Final(unavailable(format!("no connection to {place} within {waited} ms"), None))
        }
        PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => {
            let trouble = explain(Failure::Unsent(error), Stakes::Uncommitted);
            // The server was asked a moment ago: the next attempt is the caller's to time.
            let (Trouble::Final(error) | Trouble::Again(error)) = trouble;
            Trouble::Final(in_context(&format!("no connection to {place}"), error))
        }
        PoolError::PostCreateHook(HookError::Message(reason)) => {
            Trouble::Final(misconfigured(format!("{place}: {reason}"), None))
        }
        PoolError::NoRuntimeSpecified => {
            Trouble::Final(KvsError::Backend { reason: "the pool has no runtime".to_owned(), source: None })
        }
    }
}

fn in_context(context: &str, error: KvsError) -> KvsError {
    match error {
        KvsError::Unavailable { reason, source } => {
            KvsError::Unavailable { reason: format!("{context}: {reason}"), source }
        }
        KvsError::Backend { reason, source } => KvsError::Backend { reason: format!("{context}: {reason}"), source },
        KvsError::AccessDenied { reason, source } => {
            KvsError::AccessDenied { reason: format!("{context}: {reason}"), source }
        }
        KvsError::Misconfigured { reason, source } => {
            KvsError::Misconfigured { reason: format!("{context}: {reason}"), source }
        }
        other => other,
    }
}

fn ends_connection(error: &DbError) -> bool {
    // Old servers and poolers say it in the language of the server only: take what is not plainly an error as the end.
    !matches!(error.parsed_severity(), Some(Severity::Error))
}

fn is_connection_loss(error: &tokio_postgres::Error) -> bool {
    error.is_closed() || error.source().is_some_and(|source| source.is::<std::io::Error>())
}

/// True if the library gave up before the server could refuse: no password where one is asked for, or a method of
/// logging in that it does not know. It has no other way to tell.
fn is_about_login(error: &tokio_postgres::Error) -> bool {
    let text = error.to_string();
    text.starts_with("authentication error") || chain(error).contains("password missing")
}

/// An error with its causes, which tokio-postgres leaves out of its own text. Details, which may show data, are not in.
fn chain(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{} ({})", db.message(), db.code().code());
    }
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

pub(crate) fn unavailable(reason: String, error: Option<tokio_postgres::Error>) -> KvsError {
    KvsError::Unavailable { reason, source: error.map(Into::into) }
}

fn indeterminate(reason: String, error: Option<tokio_postgres::Error>) -> KvsError {
    KvsError::Indeterminate { reason, source: error.map(Into::into) }
}

fn backend(reason: String, error: tokio_postgres::Error) -> KvsError {
    KvsError::Backend { reason, source: Some(error.into()) }
}

fn denied(reason: String, error: tokio_postgres::Error) -> KvsError {
    KvsError::AccessDenied { reason, source: Some(error.into()) }
}

pub(crate) fn misconfigured(reason: String, error: Option<tokio_postgres::Error>) -> KvsError {
    KvsError::Misconfigured { reason, source: error.map(Into::into) }
}

pub(crate) fn wrong_kind(table: &TableRef, kind: TableKind) -> KvsError {
    let actual = match kind {
        TableKind::Versioned => "versioned",
        TableKind::Atomic => "atomic",
    };
    KvsError::WrongTableKind { table: table.clone(), actual }
}

/// A row of a statement of ours that is not what the statement gives.
pub(crate) fn unexpected(place: &str, error: tokio_postgres::Error) -> Trouble {
    Trouble::Final(KvsError::corrupt(place, chain(&error)))
}
