//! What can go wrong, by what the caller can do about it.
//!
//! Every error has a stable code in capitals (for programs), a sentence (for people), often a hint what to do next,
//! and one answer to the question that matters to a transaction: may the same work simply be tried again?

use atlas_kvs::{Cell, KvsError, TableRef, Timestamp};

/// The result of an operation of the layer.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another transaction wrote the same cell and committed first. Nothing of this transaction is visible.
    #[error(
        "write-write conflict on {table}:{cell} (committed at {}, we read below {read_ts})",
        .committed_at.map_or_else(|| "an unknown timestamp".to_owned(), |ts| ts.to_string())
    )]
    Conflict {
        /// The table.
        table: TableRef,
        /// The cell both wrote.
        cell: Cell,
        /// Commit timestamp of the other, where known.
        committed_at: Option<Timestamp>,
        /// The snapshot this transaction read.
        read_ts: Timestamp,
    },
    /// Something read was changed by a transaction that committed first (serializable tables). Nothing is visible.
    #[error(
        "read-write conflict on {table}:{what} (changed at {}, we read below {read_ts})",
        .committed_at.map_or_else(|| "an unknown timestamp".to_owned(), |ts| ts.to_string())
    )]
    ReadConflict {
        /// The table.
        table: TableRef,
        /// The cell or range that changed.
        what: String,
        /// Commit timestamp of the change; not known of a writer that was still committing.
        committed_at: Option<Timestamp>,
        /// The snapshot this transaction read.
        read_ts: Timestamp,
    },
    /// The promises of a table were changed while the transaction used it. Nothing of this transaction is visible.
    #[error("table '{table}' was changed while transaction {start_ts} used it")]
    TableChanged {
        /// The table.
        table: TableRef,
        /// The transaction.
        start_ts: Timestamp,
    },
    /// What the transaction has read was being written and was lost before it was durable. Nothing of this transaction is
    /// visible.
    #[error("what transaction {start_ts} has read was lost before it was durable")]
    DependencyLost {
        /// The transaction.
        start_ts: Timestamp,
    },
    /// Locks could not be had in time. Nothing of this transaction is visible.
    #[error("{what} was not granted within {waited_ms} ms")]
    LockTimeout {
        /// Which lock.
        what: String,
        /// How long we waited, in milliseconds.
        waited_ms: u64,
    },
    /// Locks expired or their service restarted before the commit point. Nothing of this transaction is visible.
    #[error("the locks of transaction {start_ts} were lost before it committed")]
    LocksLost {
        /// The transaction.
        start_ts: Timestamp,
    },
    /// Somebody rolled this transaction back before it committed. Nothing of it is visible.
    #[error("transaction {start_ts} was rolled back before it committed")]
    RolledBack {
        /// The transaction.
        start_ts: Timestamp,
    },
    /// The snapshot was swept: versions it would need are gone.
    #[error("the snapshot below {read_ts} is too old for {table}: versions it needs were swept")]
    TooOld {
        /// The table.
        table: TableRef,
        /// The snapshot.
        read_ts: Timestamp,
    },
    /// The transaction ran longer than it may. Nothing of it is visible.
    #[error("transaction {start_ts} ran longer than its {limit_ms} ms")]
    TimedOut {
        /// The transaction.
        start_ts: Timestamp,
        /// Its limit in milliseconds.
        limit_ms: u64,
    },
    /// The answer at the commit point was lost and could not be settled: the transaction may be committed, or may not.
    /// Never tried again automatically.
    #[error("it is not known whether transaction {start_ts} committed: {reason}")]
    UnknownOutcome {
        /// The transaction.
        start_ts: Timestamp,
        /// The commit timestamp it has if it committed, where one is known to have been drawn.
        commit_ts: Option<Timestamp>,
        /// What happened.
        reason: String,
    },
    /// A read or write after commit or abort has begun.
    #[error("transaction {start_ts} is {state}: it takes no more reads and writes")]
    TransactionClosed {
        /// The transaction.
        start_ts: Timestamp,
        /// What it is.
        state: &'static str,
    },
    /// A write in a read-only transaction.
    #[error("transaction {start_ts} is read-only")]
    ReadOnly {
        /// The transaction.
        start_ts: Timestamp,
    },
    /// Over a limit; nothing was written.
    #[error("{what} has {len} bytes; the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A table's constraint refused a write; nothing was written.
    #[error("constraint '{constraint}' of table '{table}' refused {cell}: {reason}")]
    Constraint {
        /// The table.
        table: TableRef,
        /// The constraint's name.
        constraint: Box<str>,
        /// The cell.
        cell: Cell,
        /// What is wrong.
        reason: String,
    },
    /// A pre-commit condition did not hold; nothing is visible.
    #[error("a pre-commit condition of transaction {start_ts} does not hold: {reason}")]
    PreCommitCondition {
        /// The transaction.
        start_ts: Timestamp,
        /// What it said.
        reason: String,
    },
    /// Something that was named does not exist.
    #[error("there is no {what}")]
    NotFound {
        /// What, with its name.
        what: String,
    },
    /// Something that was to be made is there already, in another form.
    #[error("{what} exists already")]
    AlreadyExists {
        /// What, with its name.
        what: String,
    },
    /// The backup lock is held, so nothing is physically removed and no second holder is let in.
    #[error("the backup lock is held by {holder} since {since}: {reason}")]
    BackupLockHeld {
        /// Who holds it.
        holder: String,
        /// Since when, RFC 3339.
        since: String,
        /// What for.
        reason: String,
    },
    /// The backup lock was lost while a backup ran: the backup is void.
    #[error("the backup lock was lost while the backup ran, so the backup is void: {reason}")]
    BackupVoid {
        /// How it was lost.
        reason: String,
    },
    /// Nodes of a cluster did not do their part, so the whole is worth nothing and was given up.
    #[error("{what}: {reason}")]
    NodesMissing {
        /// What was to be done, by which nodes it was not.
        what: String,
        /// What they said.
        reason: String,
    },
    /// Refused because it would do harm.
    #[error("{what}")]
    Refused {
        /// What was refused and why.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// Another process owns the store.
    #[error("{place} is in use by process {}", .pid.map_or_else(|| "(unknown)".to_owned(), |pid| pid.to_string()))]
    StoreInUse {
        /// Which store.
        place: String,
        /// Its owner's process id, where it is known.
        pid: Option<u32>,
    },
    /// Another process owns a store that several can reach, and is alive.
    #[error("the store is in use by {owner}")]
    StoreOwned {
        /// Which process, where, and since when.
        owner: String,
    },
    /// Damage found.
    #[error("damage in {place}: {reason}")]
    Corrupt {
        /// Where.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A configuration that can't be used.
    #[error("{place}: {reason}")]
    Config {
        /// File, line and key.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// An argument that can't be used.
    #[error("{0}")]
    Usage(String),
    /// This instance may no longer issue timestamps or commit: another one took over.
    #[error("this instance lost the ownership of timestamps: {reason}")]
    LostLeadership {
        /// What it saw.
        reason: String,
    },
    /// The service can't be reached or stopped taking work. Nothing was applied.
    #[error("{what} is unavailable: {reason}")]
    Unavailable {
        /// What.
        what: String,
        /// Why.
        reason: String,
    },
    /// An operation ended by its caller.
    #[error("interrupted")]
    Interrupted,
    /// An error of the operating system.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, on which path.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// An error told by the server that owns the store.
    #[error("{message}")]
    Remote {
        /// Its code.
        code: String,
        /// Its sentence.
        message: String,
        /// Its hint.
        hint: Option<String>,
        /// Whether the same work may be tried again.
        retriable: bool,
        /// The exit code it stands for.
        exit_code: u8,
    },
    /// An error of the store.
    #[error(transparent)]
    Kvs(#[from] KvsError),
}

/// Exit codes of the program; append-only.
pub mod exit {
    /// Done.
    pub const OK: u8 = 0;
    /// Failed for a reason without a code of its own.
    pub const FAILURE: u8 = 1;
    /// Called wrongly.
    pub const USAGE: u8 = 2;
    /// Done in part.
    pub const PARTIAL: u8 = 3;
    /// Cell, table or backup not found.
    pub const NOT_FOUND: u8 = 4;
    /// A conflict, or a lock held by another.
    pub const CONFLICT: u8 = 5;
    /// No connection, or no answer in time.
    pub const UNAVAILABLE: u8 = 6;
    /// Verification failed or damage was found.
    pub const DAMAGED: u8 = 7;
    /// Bad configuration.
    pub const CONFIG: u8 = 8;
    /// Refused by a safety check.
    pub const REFUSED: u8 = 9;
    /// The doctor found failures.
    pub const DOCTOR: u8 = 10;
    /// Not permitted.
    pub const PERMISSION: u8 = 11;
    /// A server lost its store to another process.
    pub const LOST: u8 = 12;
    /// Interrupted from the keyboard.
    pub const INTERRUPTED: u8 = 130;
    /// Asked to terminate.
    pub const TERMINATED: u8 = 143;
}

impl Error {
    /// Refuses `what`, with a hint what to do instead.
    pub fn refused(what: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Refused { what: what.into(), hint: hint.into() }
    }

    /// Damage at a place.
    pub fn corrupt(place: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Corrupt { place: place.into(), reason: reason.into() }
    }

    /// An error of the operating system while doing `what`.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Error {
        Error::Io { what: what.into(), source }
    }

    /// The stable code, in capitals.
    pub fn code(&self) -> &str {
        match self {
            Error::Conflict { .. } => "CONFLICT",
            Error::ReadConflict { .. } => "READ_CONFLICT",
            Error::TableChanged { .. } => "TABLE_CHANGED",
            Error::DependencyLost { .. } => "DEPENDENCY_LOST",
            Error::LockTimeout { .. } => "LOCK_TIMEOUT",
            Error::LocksLost { .. } => "LOCKS_LOST",
            Error::RolledBack { .. } => "ROLLED_BACK",
            Error::TooOld { .. } => "TOO_OLD",
            Error::TimedOut { .. } => "TRANSACTION_TIMED_OUT",
            Error::UnknownOutcome { .. } => "UNKNOWN_OUTCOME",
            Error::TransactionClosed { .. } => "TRANSACTION_CLOSED",
            Error::ReadOnly { .. } => "READ_ONLY",
            Error::TooLarge { .. } | Error::Kvs(KvsError::TooLarge { .. }) => "TOO_LARGE",
            Error::Constraint { .. } => "CONSTRAINT",
            Error::PreCommitCondition { .. } => "PRE_COMMIT_CONDITION",
            Error::NotFound { .. } | Error::Kvs(KvsError::NoSuchTable(_)) => "NOT_FOUND",
            Error::AlreadyExists { .. } => "ALREADY_EXISTS",
            Error::BackupLockHeld { .. } => "LOCK_HELD",
            Error::BackupVoid { .. } => "BACKUP_VOID",
            Error::NodesMissing { .. } => "NODES_MISSING",
            Error::Refused { .. } => "REFUSED",
            Error::StoreInUse { .. } | Error::StoreOwned { .. } | Error::Kvs(KvsError::InUse { .. }) => "STORE_IN_USE",
            Error::Corrupt { .. } | Error::Kvs(KvsError::Corrupt { .. }) => "CORRUPT",
            Error::Config { .. } | Error::Kvs(KvsError::Misconfigured { .. }) => "CONFIG",
            Error::Usage(_) | Error::Kvs(KvsError::InvalidTableName { .. }) => "USAGE",
            Error::LostLeadership { .. } => "LOST_LEADERSHIP",
            Error::Unavailable { .. } | Error::Kvs(KvsError::Unavailable { .. }) => "UNAVAILABLE",
            Error::Interrupted => "INTERRUPTED",
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => "PERMISSION",
            Error::Io { .. } => "IO",
            Error::Remote { code, .. } => code,
            Error::Kvs(KvsError::AccessDenied { .. }) => "PERMISSION",
            Error::Kvs(KvsError::Backend { source: Some(source), .. })
                if io_kind(source.as_ref()) == Some(std::io::ErrorKind::PermissionDenied) =>
            {
                "PERMISSION"
            }
            Error::Kvs(KvsError::Indeterminate { .. }) => "INDETERMINATE",
            Error::Kvs(KvsError::WrongTableKind { .. }) => "WRONG_TABLE_KIND",
            Error::Kvs(_) => "STORE",
        }
    }

    /// The exit code of a program that ends with this error.
    pub fn exit_code(&self) -> u8 {
        match self.code() {
            "USAGE" | "TOO_LARGE" => exit::USAGE,
            "NOT_FOUND" => exit::NOT_FOUND,
            "CONFLICT" | "READ_CONFLICT" | "TABLE_CHANGED" | "DEPENDENCY_LOST" | "LOCK_HELD" | "ALREADY_EXISTS" => {
                exit::CONFLICT
            }
            "UNAVAILABLE" | "LOCK_TIMEOUT" => exit::UNAVAILABLE,
            "CORRUPT" | "BACKUP_VOID" => exit::DAMAGED,
            "NODES_MISSING" => exit::PARTIAL,
            "CONFIG" => exit::CONFIG,
            "REFUSED" | "STORE_IN_USE" => exit::REFUSED,
            "LOST_LEADERSHIP" => exit::LOST,
            "PERMISSION" => exit::PERMISSION,
            "INTERRUPTED" => exit::INTERRUPTED,
            _ => match self {
                Error::Remote { exit_code, .. } => *exit_code,
                _ => exit::FAILURE,
            },
        }
    }

    /// True if nothing of the transaction is or will be visible and the same work may succeed when done anew.
    pub fn is_retriable(&self) -> bool {
        match self {
            Error::Conflict { .. }
            | Error::ReadConflict { .. }
            | Error::TableChanged { .. }
            | Error::DependencyLost { .. }
            | Error::LockTimeout { .. }
            | Error::LocksLost { .. }
            | Error::RolledBack { .. }
            | Error::TooOld { .. } => true,
            Error::Kvs(error) => error.is_retriable(),
            Error::Unavailable { .. } => true,
            Error::Remote { retriable, .. } => *retriable,
            _ => false,
        }
    }

    /// What to do next, where there is something to say beyond the sentence.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Refused { hint, .. } => Some(hint.clone()),
            Error::Remote { hint, .. } => hint.clone(),
            Error::BackupLockHeld { .. } => {
                Some("see `atlas backup-lock --status`; `atlas backup-lock --release` ends an abandoned one".to_owned())
            }
            Error::StoreInUse { pid: Some(pid), .. } | Error::Kvs(KvsError::InUse { pid: Some(pid), .. }) => {
                Some(format!(
                    "if process {pid} is `atlas serve`, commands without --offline ask it, and it needs no second one; otherwise wait \
                     for it, or stop it"
                ))
            }
            Error::StoreOwned { .. } => Some(
                "wait for that process or end it; or start a server that takes over when it ends: `atlas serve --standby`"
                    .to_owned(),
            ),
            Error::LostLeadership { .. } => {
                Some("open the store again, or start the server again: it waits for its turn".to_owned())
            }
            Error::Kvs(KvsError::NoSuchTable(_)) => Some(TABLE_HINT.to_owned()),
            Error::NotFound { what } => missing_hint(what),
            Error::AlreadyExists { what } if what.starts_with("backup '") => {
                Some("choose another --name; `atlas backup list` shows the ones there are".to_owned())
            }
            Error::TooLarge { what, .. } => limit_hint(what),
            Error::Io { what, source } if is_full(source.kind()) => Some(free_space(what)),
            Error::Kvs(
                error @ (KvsError::Unavailable { reason, source } | KvsError::Indeterminate { reason, source }),
            ) => {
                let full = source.as_deref().and_then(|source| io_kind(source)).is_some_and(is_full)
                    || error.to_string().contains("No space left on device");
                full.then(|| free_space(reason))
            }
            Error::NodesMissing { .. } => {
                Some("every node is needed: repeat the command when all of them work".to_owned())
            }
            Error::TooOld { .. } => Some(
                "what it would see was swept: read a newer state; `atlas timestamp fetch --file` keeps one readable for a \
                 while"
                    .to_owned(),
            ),
            Error::UnknownOutcome { .. } => {
                Some("read what the transaction would have written before doing it again".to_owned())
            }
            _ => None,
        }
    }
}

const TABLE_HINT: &str = "`atlas table list` shows the tables, `atlas table create` makes one";

/// Where what is missing could be looked for.
fn missing_hint(what: &str) -> Option<String> {
    const KINDS: [(&str, &str); 4] = [
        ("table '", TABLE_HINT),
        ("backup '", "`atlas backup list` with the same --repo shows the ones there are"),
        (
            "complete backup in ",
            "`atlas backup list` with the same --repo shows what there is, `atlas backup create` makes one",
        ),
        ("backup repository ", "name another with --repo, or make one: `atlas backup create --to DIRECTORY`"),
    ];
    // Some say so themselves, and some name a command that helps.
    let said = what.contains(" any more") || what.contains('`');
    KINDS.iter().find(|(kind, _)| !said && what.starts_with(kind)).map(|(_, hint)| (*hint).to_owned())
}

fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<std::io::ErrorKind> {
    error.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
}

fn is_full(kind: std::io::ErrorKind) -> bool {
    matches!(kind, std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// Which directory is full, as far as the sentence names a path.
fn free_space(sentence: &str) -> String {
    let path = sentence.split_whitespace().find(|word| word.starts_with('/'));
    match path.map(|path| std::path::Path::new(path.trim_end_matches([':', ',', ';']))) {
        Some(path) => format!("free space in {}", path.parent().unwrap_or(path).display()),
        None => "free space on the disk of the store".to_owned(),
    }
}

/// Which key of the configuration sets a limit.
fn limit_hint(what: &str) -> Option<String> {
    let key = if what.starts_with("what transaction") {
        "transactions.writeSizeMax"
    } else if what.contains("value") {
        "transactions.valueSizeMax"
    } else {
        return None;
    };
    Some(format!("the limit is `{key}` of the configuration; divide what is written, or raise it"))
}
