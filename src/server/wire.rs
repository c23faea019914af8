//! What things look like on the wire.
//!
//! Our own types become messages without fail. Messages come from others, and one that makes no sense is
//! [`Malformed`]: the server answers it with a usage error, the client with "the answer makes no sense".

mod sweep;

use super::proto as pb;
use crate::ops::{
    BackupInfo, BackupLockRecord, BackupRequest, BeginOptions, DoctorFinding, FindingLevel, Progress, ScanOptions,
    StoreOwner, StoreStatus, TableInfo,
};
use crate::schema::{ConflictHandler, SweepStrategy, TableChange, TableSpec};
use crate::{Cell, ColumnSelection, Error, RowRange, TableRef, Timestamp, exit};
use atlas_kvs::{KvsError, TableKind};
use bytes::Bytes;
use prost::Message;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;
use tonic::{Code, Status};
use uuid::Uuid;

/// The server does not know the transaction, or does no longer.
pub(super) const UNKNOWN_TRANSACTION: &str = "UNKNOWN_TRANSACTION";

/// An error travels in the headers of its answer, and a client takes no more than 16 KiB of those.
const SENTENCE_LEN_MAX: usize = 3 << 10;
const STATUS_MESSAGE_LEN_MAX: usize = 1 << 10;

// ---- errors

/// What is told about an error.
pub(super) fn detail_of(error: &Error) -> pb::ErrorDetail {
    pb::ErrorDetail {
        code: error.code().to_owned(),
        message: shortened(error.to_string(), SENTENCE_LEN_MAX),
        hint: error.hint().map(|hint| shortened(hint, SENTENCE_LEN_MAX)),
        // Nothing was applied, and whoever connects anew finds the new owner. For us ourselves it is final.
        retriable: error.is_retriable() || matches!(error, Error::LostLeadership { .. }),
        exit_code: error.exit_code().into(),
        commit_ts: match error {
            Error::UnknownOutcome { commit_ts, .. } => commit_ts.map(Timestamp::get),
            _ => None,
        },
    }
}

/// The status that carries an error.
pub(super) fn status_of(error: &Error) -> Status {
    status_of_detail(&detail_of(error))
}

/// The status that carries what is told about an error.
pub(super) fn status_of_detail(detail: &pb::ErrorDetail) -> Status {
    let message = shortened(detail.message.clone(), STATUS_MESSAGE_LEN_MAX);
    Status::with_details(grpc_code(&detail.code), message, detail.encode_to_vec().into())
}

/// The error that a status carries, if the service itself made it.
pub(super) fn error_of(status: &Status) -> Option<Error> {
    detail_in(status).map(error_of_detail)
}

/// What a status tells about an error, if the service itself made it.
pub(super) fn detail_in(status: &Status) -> Option<pb::ErrorDetail> {
    pb::ErrorDetail::decode(status.details()).ok().filter(|detail| !detail.code.is_empty())
}

pub(super) fn error_of_detail(detail: pb::ErrorDetail) -> Error {
    Error::Remote {
        code: detail.code,
        message: detail.message,
        hint: detail.hint,
        retriable: detail.retriable,
        exit_code: u8::try_from(detail.exit_code).unwrap_or(exit::FAILURE),
    }
}

/// For clients that know gRPC only; ours looks at the details.
fn grpc_code(code: &str) -> Code {
    match code {
        "USAGE" | "CONSTRAINT" | "READ_ONLY" | "WRONG_TABLE_KIND" => Code::InvalidArgument,
        "TOO_LARGE" => Code::OutOfRange,
        "NOT_FOUND" | UNKNOWN_TRANSACTION => Code::NotFound,
        "ALREADY_EXISTS" => Code::AlreadyExists,
        "CONFLICT" | "READ_CONFLICT" | "LOCKS_LOST" | "ROLLED_BACK" | "TOO_OLD" | "PRE_COMMIT_CONDITION" => {
            Code::Aborted
        }
        "LOCK_TIMEOUT" | "TRANSACTION_TIMED_OUT" => Code::DeadlineExceeded,
        "LOCK_HELD" | "REFUSED" | "STORE_IN_USE" | "TRANSACTION_CLOSED" | "LOST_LEADERSHIP" | "CONFIG" => {
            Code::FailedPrecondition
        }
        "UNAVAILABLE" | "NODES_MISSING" => Code::Unavailable,
        "CORRUPT" | "BACKUP_VOID" => Code::DataLoss,
        "UNKNOWN_OUTCOME" | "INDETERMINATE" => Code::Unknown,
        "PERMISSION" => Code::PermissionDenied,
        "UNAUTHENTICATED" => Code::Unauthenticated,
        "INTERRUPTED" => Code::Cancelled,
        _ => Code::Internal,
    }
}

fn shortened(mut text: String, len_max: usize) -> String {
    if text.len() > len_max {
        text.truncate(text.floor_char_boundary(len_max));
        text.push('…');
    }
    text
}

/// A message that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

impl Malformed {
    fn new(reason: impl Into<String>) -> Malformed {
        Malformed(reason.into())
    }

    /// As the server sees it: the caller did something wrong.
    pub(super) fn in_request(self) -> Status {
        status_of(&Error::Usage(self.0))
    }

    /// As the client sees it: the service can't be used.
    pub(super) fn in_answer(self) -> Error {
        Error::Unavailable { what: "the server's answer".to_owned(), reason: self.0 }
    }
}

/// A field that has to be there.
pub(super) fn required<T>(field: Option<T>, name: &str) -> Result<T, Malformed> {
    field.ok_or_else(|| Malformed(format!("the field '{name}' is missing")))
}

// ---- simple things

pub(super) fn timestamp(number: u64) -> Result<Timestamp, Malformed> {
    Timestamp::new(number)
        .ok_or_else(|| Malformed(format!("{number} is no timestamp: the greatest is {}", Timestamp::MAX)))
}

pub(super) fn table(name: &str) -> Result<TableRef, Malformed> {
    TableRef::new(name).map_err(|error: KvsError| Malformed(error.to_string()))
}

pub(super) fn id(bytes: &[u8], name: &str) -> Result<Uuid, Malformed> {
    Uuid::from_slice(bytes).map_err(|_| Malformed(format!("the field '{name}' must have 16 bytes")))
}

fn id_text(text: &str, name: &str) -> Result<Uuid, Malformed> {
    Uuid::parse_str(text).map_err(|_| Malformed(format!("the field '{name}' is no UUID")))
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

// ---- backup lock

impl From<BackupLockRecord> for pb::BackupLockRecord {
    fn from(record: BackupLockRecord) -> pb::BackupLockRecord {
        pb::BackupLockRecord {
            lock_id: record.lock_id.to_string(),
            holder: record.holder,
            reason: record.reason,
            since: record.since,
            renewal: record.renewal,
            lease_ms: record.lease_ms,
            renewed_at: record.renewed_at,
        }
    }
}

impl TryFrom<pb::BackupLockRecord> for BackupLockRecord {
    type Error = Malformed;

    fn try_from(record: pb::BackupLockRecord) -> Result<BackupLockRecord, Malformed> {
        Ok(BackupLockRecord {
            lock_id: id_text(&record.lock_id, "lock_id")?,
            holder: record.holder,
            reason: record.reason,
            since: record.since,
            renewal: record.renewal,
            lease_ms: record.lease_ms,
            renewed_at: record.renewed_at,
        })
    }
}

// ---- tables

fn handler_to_wire(handler: ConflictHandler) -> pb::ConflictHandler {
    match handler {
        ConflictHandler::IgnoreAll => pb::ConflictHandler::IgnoreAll,
        ConflictHandler::RetryOnWriteWrite => pb::ConflictHandler::RetryOnWriteWrite,
        ConflictHandler::RetryOnWriteWriteCell => pb::ConflictHandler::RetryOnWriteWriteCell,
        ConflictHandler::RetryOnValueChanged => pb::ConflictHandler::RetryOnValueChanged,
        ConflictHandler::Serializable => pb::ConflictHandler::Serializable,
        ConflictHandler::SerializableCell => pb::ConflictHandler::SerializableCell,
        ConflictHandler::SerializableIndex => pb::ConflictHandler::SerializableIndex,
        ConflictHandler::RetryOnWriteWriteMigration => pb::ConflictHandler::RetryOnWriteWriteMigration,
        ConflictHandler::SerializableLockLevelMigration => pb::ConflictHandler::SerializableLockLevelMigration,
    }
}

/// `None` for one that is not specified. A number that this version does not know may promise more than it can keep, so
/// it is not taken as the usual.
fn handler_from_wire(number: i32) -> Result<Option<ConflictHandler>, Malformed> {
    Ok(match pb::ConflictHandler::try_from(number) {
        Ok(pb::ConflictHandler::Unspecified) => None,
        Ok(pb::ConflictHandler::IgnoreAll) => Some(ConflictHandler::IgnoreAll),
        Ok(pb::ConflictHandler::RetryOnWriteWrite) => Some(ConflictHandler::RetryOnWriteWrite),
        Ok(pb::ConflictHandler::RetryOnWriteWriteCell) => Some(ConflictHandler::RetryOnWriteWriteCell),
        Ok(pb::ConflictHandler::RetryOnValueChanged) => Some(ConflictHandler::RetryOnValueChanged),
        Ok(pb::ConflictHandler::Serializable) => Some(ConflictHandler::Serializable),
        Ok(pb::ConflictHandler::SerializableCell) => Some(ConflictHandler::SerializableCell),
        Ok(pb::ConflictHandler::SerializableIndex) => Some(ConflictHandler::SerializableIndex),
        Ok(pb::ConflictHandler::RetryOnWriteWriteMigration) => Some(ConflictHandler::RetryOnWriteWriteMigration),
        Ok(pb::ConflictHandler::SerializableLockLevelMigration) => {
            Some(ConflictHandler::SerializableLockLevelMigration)
        }
        Err(_) => return Err(Malformed(format!("conflict handler {number} is unknown"))),
    })
}

fn strategy_to_wire(strategy: SweepStrategy) -> pb::SweepStrategy {
    match strategy {
        SweepStrategy::Nothing => pb::SweepStrategy::Nothing,
        SweepStrategy::Conservative => pb::SweepStrategy::Conservative,
        SweepStrategy::Thorough => pb::SweepStrategy::Thorough,
    }
}

fn strategy_from_wire(number: i32) -> Result<Option<SweepStrategy>, Malformed> {
    Ok(match pb::SweepStrategy::try_from(number) {
        Ok(pb::SweepStrategy::Unspecified) => None,
        Ok(pb::SweepStrategy::Nothing) => Some(SweepStrategy::Nothing),
        Ok(pb::SweepStrategy::Conservative) => Some(SweepStrategy::Conservative),
        Ok(pb::SweepStrategy::Thorough) => Some(SweepStrategy::Thorough),
        Err(_) => return Err(Malformed(format!("sweep strategy {number} is unknown"))),
    })
}

impl From<TableSpec> for pb::TableSpec {
    fn from(spec: TableSpec) -> pb::TableSpec {
        pb::TableSpec {
            conflict_handler: handler_to_wire(spec.conflict_handler).into(),
            sweep_strategy: strategy_to_wire(spec.sweep_strategy).into(),
        }
    }
}

impl TryFrom<pb::TableSpec> for TableSpec {
    type Error = Malformed;

    fn try_from(spec: pb::TableSpec) -> Result<TableSpec, Malformed> {
        Ok(TableSpec::default().changed(&spec.try_into()?))
    }
}

impl From<TableChange> for pb::TableSpec {
    fn from(change: TableChange) -> pb::TableSpec {
        pb::TableSpec {
            conflict_handler: change.conflict_handler.map(handler_to_wire).unwrap_or_default().into(),
            sweep_strategy: change.sweep_strategy.map(strategy_to_wire).unwrap_or_default().into(),
        }
    }
}

impl TryFrom<pb::TableSpec> for TableChange {
    type Error = Malformed;

    fn try_from(spec: pb::TableSpec) -> Result<TableChange, Malformed> {
        Ok(TableChange {
            conflict_handler: handler_from_wire(spec.conflict_handler)?,
            sweep_strategy: strategy_from_wire(spec.sweep_strategy)?,
        })
    }
}

impl From<TableInfo> for pb::TableInfo {
    fn from(info: TableInfo) -> pb::TableInfo {
        let kind = match info.kind {
            TableKind::Versioned => pb::TableKind::Versioned,
            TableKind::Atomic => pb::TableKind::Atomic,
        };
        pb::TableInfo {
            table: info.table.name().to_owned(),
            kind: kind.into(),
            spec: info.spec.map(Into::into),
            versions: info.versions,
            bytes: info.bytes,
            cells: info.cells,
            sentinels: info.sentinels,
            exact: info.exact,
        }
    }
}

impl TryFrom<pb::TableInfo> for TableInfo {
    type Error = Malformed;

    fn try_from(info: pb::TableInfo) -> Result<TableInfo, Malformed> {
        let kind = match pb::TableKind::try_from(info.kind) {
            Ok(pb::TableKind::Versioned) => TableKind::Versioned,
            Ok(pb::TableKind::Atomic) => TableKind::Atomic,
            Ok(pb::TableKind::Unspecified) | Err(_) => {
                return Err(Malformed(format!("kind {} of table '{}' is unknown", info.kind, info.table)));
            }
        };
        Ok(TableInfo {
            table: table(&info.table)?,
            kind,
            spec: info.spec.map(TryInto::try_into).transpose()?,
            versions: info.versions,
            bytes: info.bytes,
            cells: info.cells,
            sentinels: info.sentinels,
            exact: info.exact,
        })
    }
}

pub(super) fn table_infos(infos: Vec<pb::TableInfo>) -> Result<Vec<TableInfo>, Malformed> {
    infos.into_iter().map(TryInto::try_into).collect()
}

// ---- transactions

impl From<BeginOptions> for pb::BeginRequest {
    fn from(options: BeginOptions) -> pb::BeginRequest {
        pb::BeginRequest {
            read_only: options.read_only,
            at: options.at.map(Timestamp::get),
            timeout_ms: options.timeout.map(millis),
            lost_to: options.lost_to.map(Timestamp::get),
        }
    }
}

impl TryFrom<pb::BeginRequest> for BeginOptions {
    type Error = Malformed;

    fn try_from(request: pb::BeginRequest) -> Result<BeginOptions, Malformed> {
        Ok(BeginOptions {
            read_only: request.read_only,
            at: request.at.map(timestamp).transpose()?,
            timeout: request.timeout_ms.map(Duration::from_millis),
            lost_to: request.lost_to.map(timestamp).transpose()?,
        })
    }
}

impl From<Cell> for pb::Cell {
    fn from(cell: Cell) -> pb::Cell {
        pb::Cell { row: cell.row, column: cell.column }
    }
}

impl From<pb::Cell> for Cell {
    fn from(cell: pb::Cell) -> Cell {
        Cell { row: cell.row, column: cell.column }
    }
}

impl From<(Cell, Bytes)> for pb::FoundCell {
    fn from((cell, value): (Cell, Bytes)) -> pb::FoundCell {
        pb::FoundCell { row: cell.row, column: cell.column, value }
    }
}

impl From<pb::FoundCell> for (Cell, Bytes) {
    fn from(found: pb::FoundCell) -> (Cell, Bytes) {
        (Cell { row: found.row, column: found.column }, found.value)
    }
}

impl From<(Cell, Option<Bytes>)> for pb::CellWrite {
    fn from((cell, value): (Cell, Option<Bytes>)) -> pb::CellWrite {
        pb::CellWrite { row: cell.row, column: cell.column, value }
    }
}

impl From<pb::CellWrite> for (Cell, Option<Bytes>) {
    fn from(write: pb::CellWrite) -> (Cell, Option<Bytes>) {
        (Cell { row: write.row, column: write.column }, write.value)
    }
}

pub(super) fn scan_request(transaction_id: Bytes, table: &TableRef, scan: ScanOptions) -> pb::ScanRequest {
    let columns = match scan.columns {
        ColumnSelection::All => None,
        ColumnSelection::Exactly(columns) => {
            Some(pb::scan_request::Columns::Exactly(pb::ColumnSet { columns: columns.into_iter().collect() }))
        }
        ColumnSelection::Range { start, end } => Some(pb::scan_request::Columns::Range(pb::ColumnRange { start, end })),
    };
    pb::ScanRequest {
        transaction_id,
        table: table.name().to_owned(),
        rows: Some(pb::RowRange { start: scan.rows.start, end: scan.rows.end }),
        columns,
        reverse: scan.reverse,
        limit: scan.limit,
        page_size: u32::try_from(scan.page_size).unwrap_or(u32::MAX),
    }
}

/// The options of a scan; a page has at most `page_size_max` cells.
pub(super) fn scan_options(request: pb::ScanRequest, page_size_max: usize) -> ScanOptions {
    let columns = match request.columns {
        None => ColumnSelection::All,
        Some(pb::scan_request::Columns::Exactly(set)) => ColumnSelection::Exactly(set.columns.into_iter().collect()),
        Some(pb::scan_request::Columns::Range(range)) => ColumnSelection::Range { start: range.start, end: range.end },
    };
    ScanOptions {
        rows: request.rows.map_or_else(RowRange::all, |rows| RowRange { start: rows.start, end: rows.end }),
        columns,
        reverse: request.reverse,
        limit: request.limit,
        page_size: usize::try_from(request.page_size).unwrap_or(page_size_max).min(page_size_max),
        bypass_cache: false,
    }
}

// ---- backup

impl From<BackupRequest> for pb::CreateBackupRequest {
    fn from(request: BackupRequest) -> pb::CreateBackupRequest {
        pb::CreateBackupRequest {
            repository: Bytes::copy_from_slice(request.repository.as_os_str().as_bytes()),
            name: request.name,
            reason: request.reason,
            portable: request.portable,
            rate_limit: request.rate_limit,
        }
    }
}

impl TryFrom<pb::CreateBackupRequest> for BackupRequest {
    type Error = Malformed;

    fn try_from(request: pb::CreateBackupRequest) -> Result<BackupRequest, Malformed> {
        let repository = PathBuf::from(OsString::from_vec(request.repository.to_vec()));
        // The two processes need not have the same working directory.
        if !repository.is_absolute() {
            return Err(Malformed::new("the directory of the repository must be absolute"));
        }
        let pb::CreateBackupRequest { name, reason, portable, rate_limit, .. } = request;
        Ok(BackupRequest { repository, name, reason, portable, rate_limit })
    }
}

impl From<Progress> for pb::Progress {
    fn from(progress: Progress) -> pb::Progress {
        pb::Progress { step: progress.step, done: progress.done, total: progress.total, unit: progress.unit }
    }
}

impl From<pb::Progress> for Progress {
    fn from(progress: pb::Progress) -> Progress {
        Progress { step: progress.step, done: progress.done, total: progress.total, unit: progress.unit }
    }
}

impl From<BackupInfo> for pb::BackupInfo {
    fn from(info: BackupInfo) -> pb::BackupInfo {
        pb::BackupInfo {
            id: info.id,
            state: info.state,
            backup_ts: info.backup_ts.map(Timestamp::get),
            fast_forward_ts: info.fast_forward_ts.map(Timestamp::get),
            started: info.started,
            took_ms: info.took_ms,
            snapshot_ms: info.snapshot_ms,
            bytes: info.bytes,
            files: info.files,
            store: info.store,
            namespace: info.namespace,
            method: info.method,
        }
    }
}

impl TryFrom<pb::BackupInfo> for BackupInfo {
    type Error = Malformed;

    fn try_from(info: pb::BackupInfo) -> Result<BackupInfo, Malformed> {
        Ok(BackupInfo {
            id: info.id,
            state: info.state,
            backup_ts: info.backup_ts.map(timestamp).transpose()?,
            fast_forward_ts: info.fast_forward_ts.map(timestamp).transpose()?,
            started: info.started,
            took_ms: info.took_ms,
            snapshot_ms: info.snapshot_ms,
            bytes: info.bytes,
            files: info.files,
            store: info.store,
            namespace: info.namespace,
            method: info.method,
        })
    }
}

// ---- administration

impl From<StoreStatus> for pb::StoreStatus {
    fn from(status: StoreStatus) -> pb::StoreStatus {
        pb::StoreStatus {
            namespace: status.namespace,
            store: status.store,
            location: status.location,
            store_id: status.store_id.to_string(),
            owner_pid: status.owner_pid,
            owner: status.owner.map(Into::into),
            commit_mode: status.commit_mode,
            epoch: status.epoch,
            last_timestamp: status.last_timestamp.get(),
            timestamp_bound: status.timestamp_bound.get(),
            immutable_ts: status.immutable_ts.get(),
            open_transactions: status.open_transactions,
            tables: status.tables.into_iter().map(Into::into).collect(),
            backup_lock: status.backup_lock.map(Into::into),
            last_backup: status.last_backup.map(Into::into),
            uptime_ms: status.uptime_ms,
            version: status.version,
        }
    }
}

impl TryFrom<pb::StoreStatus> for StoreStatus {
    type Error = Malformed;

    fn try_from(status: pb::StoreStatus) -> Result<StoreStatus, Malformed> {
        Ok(StoreStatus {
            namespace: status.namespace,
            store: status.store,
            location: status.location,
            store_id: id_text(&status.store_id, "store_id")?,
            owner_pid: status.owner_pid,
            owner: status.owner.map(Into::into),
            commit_mode: status.commit_mode,
            epoch: status.epoch,
            last_timestamp: timestamp(status.last_timestamp)?,
            timestamp_bound: timestamp(status.timestamp_bound)?,
            immutable_ts: timestamp(status.immutable_ts)?,
            open_transactions: status.open_transactions,
            tables: table_infos(status.tables)?,
            backup_lock: status.backup_lock.map(TryInto::try_into).transpose()?,
            last_backup: status.last_backup.map(TryInto::try_into).transpose()?,
            uptime_ms: status.uptime_ms,
            version: status.version,
        })
    }
}

impl From<StoreOwner> for pb::StoreOwner {
    fn from(owner: StoreOwner) -> pb::StoreOwner {
        let StoreOwner { program, pid, host, address, since, lease_ms, lease_age_ms } = owner;
        pb::StoreOwner { program, pid, host, address, since, lease_ms, lease_age_ms }
    }
}

impl From<pb::StoreOwner> for StoreOwner {
    fn from(owner: pb::StoreOwner) -> StoreOwner {
        let pb::StoreOwner { program, pid, host, address, since, lease_ms, lease_age_ms } = owner;
        StoreOwner { program, pid, host, address, since, lease_ms, lease_age_ms }
    }
}

impl From<DoctorFinding> for pb::DoctorFinding {
    fn from(finding: DoctorFinding) -> pb::DoctorFinding {
        let level = match finding.level {
            FindingLevel::Ok => pb::FindingLevel::Ok,
            FindingLevel::Warn => pb::FindingLevel::Warn,
            FindingLevel::Fail => pb::FindingLevel::Fail,
        };
        pb::DoctorFinding { check: finding.check, level: level.into(), message: finding.message, hint: finding.hint }
    }
}

impl TryFrom<pb::DoctorFinding> for DoctorFinding {
    type Error = Malformed;

    fn try_from(finding: pb::DoctorFinding) -> Result<DoctorFinding, Malformed> {
        let level = match pb::FindingLevel::try_from(finding.level) {
            Ok(pb::FindingLevel::Ok) => FindingLevel::Ok,
            Ok(pb::FindingLevel::Warn) => FindingLevel::Warn,
            Ok(pb::FindingLevel::Fail) => FindingLevel::Fail,
            Ok(pb::FindingLevel::Unspecified) | Err(_) => {
                return Err(Malformed(format!("level {} of check '{}' is unknown", finding.level, finding.check)));
            }
        };
        Ok(DoctorFinding { check: finding.check, level, message: finding.message, hint: finding.hint })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two sides must agree on every variant, or a script that looks at exit codes works offline only.
    #[test]
    fn an_error_keeps_its_code_sentence_hint_retriability_and_exit_code() {
        let cell = || Cell::copy_from("row", "column");
        let table = || TableRef::new("accounts").expect("well formed");
        let ts = Timestamp::saturating;
        let errors = [
            Error::Conflict { table: table(), cell: cell(), committed_at: Some(ts(4)), read_ts: ts(2) },
            Error::LockTimeout { what: "a row lock".to_owned(), waited_ms: 10 },
            Error::LocksLost { start_ts: ts(3) },
            Error::TooOld { table: table(), read_ts: ts(3) },
            Error::TimedOut { start_ts: ts(3), limit_ms: 5 },
            Error::UnknownOutcome { start_ts: ts(3), commit_ts: None, reason: "the disk".to_owned() },
            Error::ReadOnly { start_ts: ts(3) },
            Error::TooLarge { what: "a value".to_owned(), len: 2, limit: 1 },
            Error::NotFound { what: "backup 'x'".to_owned() },
            Error::AlreadyExists { what: "table 't'".to_owned() },
            Error::BackupLockHeld { holder: "h".to_owned(), since: "s".to_owned(), reason: "r".to_owned() },
            Error::BackupVoid { reason: "lost".to_owned() },
            Error::NodesMissing { what: "w".to_owned(), reason: "r".to_owned() },
            Error::refused("no", "do that instead"),
            Error::StoreInUse { place: "/data".to_owned(), pid: Some(7) },
            Error::corrupt("file", "bits"),
            Error::Config { place: "atlas.yml".to_owned(), reason: "no".to_owned() },
            Error::Usage("what?".to_owned()),
            Error::LostLeadership { reason: "epoch 2".to_owned() },
            Error::Unavailable { what: "it".to_owned(), reason: "gone".to_owned() },
            Error::Interrupted,
            Error::io("reading", std::io::Error::from(std::io::ErrorKind::PermissionDenied)),
            Error::io("reading", std::io::Error::other("disk")),
            Error::Kvs(KvsError::NoSuchTable(table())),
            Error::Kvs(KvsError::Indeterminate { reason: "lost".to_owned(), source: None }),
            Error::Kvs(KvsError::Closed),
        ];
        for error in errors {
            let remote = error_of(&status_of(&error)).expect("details are there");
            assert_eq!(remote.code(), error.code());
            assert_eq!(remote.to_string(), error.to_string());
            assert_eq!(remote.hint(), error.hint(), "{error}");
            // What is final for a server that was replaced is not for its clients.
            let retriable = error.is_retriable() || error.code() == "LOST_LEADERSHIP";
            assert_eq!(remote.is_retriable(), retriable, "{error}");
            assert_eq!(remote.exit_code(), error.exit_code(), "{error}");
        }
    }

    #[test]
    fn a_long_sentence_is_cut_between_characters() {
        let status = status_of(&Error::Usage("ü".repeat(100_000)));
        assert!(status.message().len() < 1100 && status.details().len() < 4000);
        assert!(error_of(&status).expect("details are there").to_string().ends_with('…'));
    }

    #[test]
    fn a_status_from_the_way_carries_no_error() {
        assert!(error_of(&Status::unavailable("connection reset")).is_none());
        assert!(error_of(&Status::with_details(Code::Unknown, "x", Bytes::from_static(b"\xff\xff"))).is_none());
    }
}
