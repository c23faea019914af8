//! What the cluster says, told by what the caller can do about it.
//!
//! Two things decide: what was said, and what was asked. Nobody knows what became of a write whose answer was lost, or
//! that the coordinator gave up waiting for: some replicas may have it, and may pass it on later.
//!
//! ```text
//!                             read           write            lightweight transaction
//!   no connection             not done       not done         not done
//!   Unavailable               not done       not done         not done, if it lacks the quorum for the promise;
//!                                                             not known, if it lacks the one for the commit
//!   time-outs, failures,      not done       not known        not known
//!   lost connections
//!   Overloaded                not done       not known        not known: also said when hints pile up midway
//!   the table is not there    look again     look again       look again
//! ```

use atlas_kvs::{KvsError, TableRef};
use scylla::errors::{
    ConnectionError, ConnectionPoolError, ConnectionSetupRequestErrorKind, DbError, ExecutionError, MetadataError,
    MetadataFetchErrorKind, NewSessionError, PrepareError, RequestAttemptError,
};
use scylla::statement::Consistency;
use std::error::Error;
use std::time::Duration;

/// Why an operation on a table did not succeed.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// For the caller to know.
    Final(KvsError),
    /// The CQL table is not there: it was dropped or emptied by somebody else, or a node has not heard of it yet.
    Missing(String),
}

pub(crate) type Attempt<T> = Result<T, Trouble>;

impl From<KvsError> for Trouble {
    fn from(error: KvsError) -> Trouble {
        Trouble::Final(error)
    }
}

impl Trouble {
    /// For operations whose CQL table is never dropped.
    pub(crate) fn into_error(self) -> KvsError {
        match self {
            Trouble::Final(error) => error,
            Trouble::Missing(reason) => backend(reason, None),
        }
    }
}

/// What was asked for when something went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stakes {
    /// Something that changes nothing.
    Read,
    /// A write with a write timestamp of its own: it may be sent again.
    Write,
    /// A lightweight transaction.
    Lightweight,
}

/// What became of a request that got no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nothing was done; later it may be.
    NotDone(Box<ExecutionError>),
    /// It may have been done, or be done later.
    NotKnown(Box<ExecutionError>),
    /// Nothing was done: the CQL table is not there.
    Missing(String),
    /// Nothing was done, and asking again will not help.
    Refused(Box<ExecutionError>),
    /// Nothing was sent: the store was closed.
    Closed,
    /// No answer for so long.
    Silence(Duration),
}

impl Failure {
    pub(crate) fn of(error: ExecutionError, stakes: Stakes) -> Failure {
        use ExecutionError as E;
        let error = Box::new(error);
        match &*error {
            E::EmptyPlan | E::ConnectionPoolError(_) | E::MetadataError(_) | E::SchemaAgreementError(_) => {
                Failure::NotDone(error)
            }
            E::PrepareError(prepare) => match prepare_failure(prepare) {
                Some(missing) => Failure::Missing(missing),
                None if is_refusal(prepare) => Failure::Refused(error),
                None => Failure::NotDone(error),
            },
            E::BadQuery(_) | E::UseKeyspaceError(_) => Failure::Refused(error),
            E::LastAttemptError(attempt) => match missing(attempt) {
                Some(reason) => Failure::Missing(reason),
                None => Failure::of_attempt(attempt.clone(), error, stakes),
            },
            _ if stakes == Stakes::Read => Failure::NotDone(error),
            _ => Failure::NotKnown(error),
        }
    }

    fn of_attempt(attempt: RequestAttemptError, error: Box<ExecutionError>, stakes: Stakes) -> Failure {
        use RequestAttemptError as A;
        match attempt {
            A::SerializationError(_) | A::CqlRequestSerialization(_) | A::RepreparedIdMissingInBatch => {
                Failure::Refused(error)
            }
            A::UnableToAllocStreamId => Failure::NotDone(error),
            A::DbError(db, _) => match db {
                DbError::SyntaxError
                | DbError::Invalid
                | DbError::Unauthorized
                | DbError::ConfigError
                | DbError::AlreadyExists { .. }
                | DbError::FunctionFailure { .. }
                | DbError::AuthenticationError => Failure::Refused(error),
                DbError::IsBootstrapping => Failure::NotDone(error),
                DbError::Unavailable { consistency, .. }
                    if stakes != Stakes::Lightweight
                        || matches!(consistency, Consistency::Serial | Consistency::LocalSerial) =>
                {
                    Failure::NotDone(error)
                }
                _ if stakes == Stakes::Read => Failure::NotDone(error),
                _ => Failure::NotKnown(error),
            },
            _ if stakes == Stakes::Read => Failure::NotDone(error),
            _ => Failure::NotKnown(error),
        }
    }

    /// What the caller gets to know, after this much was tried.
    pub(crate) fn explain(self, doing: &str) -> Trouble {
        match self {
            Failure::NotDone(error) => {
                Trouble::Final(unavailable(format!("{doing}: {}", chain(&*error)), Some(*error)))
            }
            Failure::NotKnown(error) => {
                Trouble::Final(indeterminate(format!("{doing}: {}", chain(&*error)), Some(*error)))
            }
            Failure::Missing(reason) => Trouble::Missing(reason),
            Failure::Refused(error) => {
                let said = format!("{doing}: {}", chain(&*error));
                Trouble::Final(match refusal(&error) {
                    Some(DbError::Unauthorized) => denied(format!("{said}; grant the user what it needs"), *error),
                    Some(DbError::AuthenticationError) => denied(format!("{said}; check user and password"), *error),
                    Some(DbError::ConfigError) => misconfigured(said, Some(*error)),
                    _ => backend(said, Some(*error)),
                })
            }
            Failure::Closed => Trouble::Final(KvsError::Closed),
            Failure::Silence(waited) => Trouble::Final(indeterminate(format!("{doing}: {}", silent(waited)), None)),
        }
    }
}

pub(crate) fn silent(waited: Duration) -> String {
    format!("no node answered within {} ms", waited.as_millis())
}

fn prepare_failure(error: &PrepareError) -> Option<String> {
    match error {
        PrepareError::AllAttemptsFailed { first_attempt } => missing(first_attempt),
        _ => None,
    }
}

fn is_refusal(error: &PrepareError) -> bool {
    matches!(
        error,
        PrepareError::AllAttemptsFailed {
            first_attempt: RequestAttemptError::DbError(
                DbError::SyntaxError | DbError::Invalid | DbError::Unauthorized | DbError::ConfigError,
                _
            )
        }
    )
}

/// What a node said when it refused to do it, or even to prepare it.
fn refusal(error: &ExecutionError) -> Option<&DbError> {
    match error {
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(said, _))
        | ExecutionError::PrepareError(PrepareError::AllAttemptsFailed {
            first_attempt: RequestAttemptError::DbError(said, _),
        }) => Some(said),
        _ => None,
    }
}

/// Cassandra has no code for this, only words.
fn missing(attempt: &RequestAttemptError) -> Option<String> {
    match attempt {
        RequestAttemptError::DbError(DbError::Invalid | DbError::ConfigError, message)
            if message.contains("does not exist")
                || message.contains("unconfigured table")
                || message.contains("Can't find a column family") =>
        {
            Some(message.clone())
        }
        _ => None,
    }
}

/// Why the cluster could not be connected to.
pub(crate) fn not_connected(error: NewSessionError, place: &str) -> KvsError {
    let reason = format!("no connection to {place}: {}", chain(&error));
    let refused = match &error {
        NewSessionError::MetadataError(MetadataError::ConnectionPoolError(pool)) => refuses_login(pool),
        NewSessionError::MetadataError(MetadataError::FetchError(fetch)) => {
            matches!(
                &fetch.error,
                MetadataFetchErrorKind::PrepareError(RequestAttemptError::DbError(
                    DbError::AuthenticationError | DbError::Unauthorized,
                    _
                ))
            )
        }
        NewSessionError::EmptyKnownNodesList | NewSessionError::IllegalConfig(_) => {
            return KvsError::Misconfigured { reason, source: Some(error.into()) };
        }
        _ => false,
    };
    match refused {
        true => {
            KvsError::AccessDenied { reason: format!("{reason}; check user and password"), source: Some(error.into()) }
        }
        false => KvsError::Unavailable { reason, source: Some(error.into()) },
    }
}

/// Nobody there answered as a cluster does within `patience`.
pub(crate) fn no_answer(place: &str, patience: Duration) -> KvsError {
    let reason = format!("no connection to {place}: no answer within {} s", patience.as_secs());
    KvsError::Unavailable { reason, source: None }
}

fn refuses_login(error: &ConnectionPoolError) -> bool {
    use ConnectionSetupRequestErrorKind as Kind;
    let ConnectionPoolError::Broken { last_connection_error: ConnectionError::ConnectionSetupRequestError(setup) } =
        error
    else {
        return false;
    };
    matches!(
        setup.get_error(),
        Kind::DbError(DbError::AuthenticationError | DbError::Unauthorized, _)
            | Kind::StartAuthSessionError(_)
            | Kind::AuthChallengeEvaluationError(_)
            | Kind::AuthFinishError(_)
            | Kind::MissingAuthentication
    )
}

type Source = Option<ExecutionError>;

pub(crate) fn unavailable(reason: String, source: Source) -> KvsError {
    KvsError::Unavailable { reason, source: source.map(Into::into) }
}

pub(crate) fn indeterminate(reason: String, source: Source) -> KvsError {
    KvsError::Indeterminate { reason, source: source.map(Into::into) }
}

pub(crate) fn backend(reason: String, source: Source) -> KvsError {
    KvsError::Backend { reason, source: source.map(Into::into) }
}

pub(crate) fn misconfigured(reason: String, source: Source) -> KvsError {
    KvsError::Misconfigured { reason, source: source.map(Into::into) }
}

fn denied(reason: String, error: ExecutionError) -> KvsError {
    KvsError::AccessDenied { reason, source: Some(error.into()) }
}

/// An answer that our statements can't have.
pub(crate) fn unexpected(what: impl std::fmt::Display) -> KvsError {
    backend(format!("an answer of the cluster makes no sense: {what}"), None)
}

pub(crate) fn wrong_kind(table: &TableRef, actual: atlas_kvs::TableKind) -> KvsError {
    let actual = match actual {
        atlas_kvs::TableKind::Versioned => "versioned",
        atlas_kvs::TableKind::Atomic => "atomic",
    };
    KvsError::WrongTableKind { table: table.clone(), actual }
}

/// An error with its causes, each said once, in one line: the driver writes some of its own in several.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use scylla::errors::WriteType;

    #[test]
    fn what_the_driver_says_in_several_lines_is_told_in_one() {
        let error = std::io::Error::other("it broke.\n        It implies that the other half was dropped.\n");
        assert_eq!(chain(&error), "it broke. It implies that the other half was dropped.");
    }

    fn db(error: DbError, message: &str) -> ExecutionError {
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, message.to_owned()))
    }

    fn unavailable_for(consistency: Consistency) -> ExecutionError {
        db(DbError::Unavailable { consistency, required: 2, alive: 1 }, "")
    }

    fn told(error: ExecutionError, stakes: Stakes) -> &'static str {
        match Failure::of(error, stakes).explain("test") {
            Trouble::Final(KvsError::Unavailable { .. }) => "not done",
            Trouble::Final(KvsError::Indeterminate { .. }) => "not known",
            Trouble::Final(KvsError::Backend { .. }) => "refused",
            Trouble::Final(KvsError::AccessDenied { .. }) => "not permitted",
            Trouble::Final(KvsError::Misconfigured { .. }) => "wrongly configured",
            Trouble::Missing(_) => "look again",
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_not_known_is_never_told_as_not_done() {
        let timeout = || {
            let consistency = Consistency::Serial;
            db(DbError::WriteTimeout { consistency, received: 1, required: 2, write_type: WriteType::Cas }, "")
        };
        let failure = || {
            let consistency = Consistency::Quorum;
            let write_type = WriteType::Simple;
            db(DbError::WriteFailure { consistency, received: 1, required: 2, numfailures: 1, write_type }, "")
        };
        let silence = || ExecutionError::RequestTimeout(Duration::from_secs(1));
        for stakes in [Stakes::Write, Stakes::Lightweight] {
            for error in [timeout(), failure(), silence(), db(DbError::Overloaded, ""), db(DbError::ServerError, "")] {
                assert_eq!(told(error.clone(), stakes), "not known", "{error}");
            }
            assert_eq!(told(unavailable_for(Consistency::Serial), stakes), "not done");
            assert_eq!(told(db(DbError::IsBootstrapping, ""), stakes), "not done");
            assert_eq!(told(db(DbError::SyntaxError, ""), stakes), "refused");
        }
        assert_eq!(told(unavailable_for(Consistency::Quorum), Stakes::Write), "not done");
        // The proposal was accepted, and its commit found too few replicas.
        assert_eq!(told(unavailable_for(Consistency::Quorum), Stakes::Lightweight), "not known");
    }

    #[test]
    fn failed_reads_did_nothing() {
        let consistency = Consistency::Quorum;
        let timeout = DbError::ReadTimeout { consistency, received: 1, required: 2, data_present: true };
        for error in [db(timeout, ""), db(DbError::Overloaded, ""), ExecutionError::RequestTimeout(Duration::ZERO)] {
            assert_eq!(told(error, Stakes::Read), "not done");
        }
        assert_eq!(told(db(DbError::SyntaxError, ""), Stakes::Read), "refused");
    }

    #[test]
    fn refusals_are_told_by_who_has_to_act() {
        for (said, expected) in [
            (DbError::Unauthorized, "not permitted"),
            (DbError::AuthenticationError, "not permitted"),
            (DbError::ConfigError, "wrongly configured"),
            (DbError::Invalid, "refused"),
        ] {
            for stakes in [Stakes::Read, Stakes::Write, Stakes::Lightweight] {
                assert_eq!(told(db(said.clone(), ""), stakes), expected, "{said:?}");
            }
        }
        let first_attempt = RequestAttemptError::DbError(DbError::Unauthorized, String::new());
        let preparing = ExecutionError::PrepareError(PrepareError::AllAttemptsFailed { first_attempt });
        assert_eq!(told(preparing, Stakes::Write), "not permitted");
    }

    #[test]
    fn missing_table_is_looked_for_again() {
        for stakes in [Stakes::Read, Stakes::Write, Stakes::Lightweight] {
            assert_eq!(told(db(DbError::Invalid, "table v_t_1 does not exist"), stakes), "look again");
            assert_eq!(told(db(DbError::Invalid, "unconfigured table v_t_1"), stakes), "look again");
        }
    }
}
