//! The JSON of each kind of line, exactly as it stands in the file.

use super::{Client, Header, Status};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;

#[derive(Serialize, Deserialize)]
pub(super) struct HeaderLine {
    workload: String,
    #[serde(default)]
    serializable_tables: Vec<String>,
    #[serde(default)]
    no_conflict_tables: Vec<String>,
    #[serde(default)]
    touch_tables: Vec<String>,
}

impl From<HeaderLine> for Header {
    fn from(line: HeaderLine) -> Self {
        let HeaderLine { workload, serializable_tables, no_conflict_tables, touch_tables } = line;
        Self { workload, serializable_tables, no_conflict_tables, touch_tables }
    }
}

impl From<&Header> for HeaderLine {
    fn from(header: &Header) -> Self {
        let Header { workload, serializable_tables, no_conflict_tables, touch_tables } = header.clone();
        Self { workload, serializable_tables, no_conflict_tables, touch_tables }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum ClientField<'a> {
    Number(u64),
    Name(Cow<'a, str>),
}

impl From<ClientField<'_>> for Client {
    fn from(field: ClientField<'_>) -> Self {
        match field {
            ClientField::Number(number) => Self::Number(number),
            ClientField::Name(name) => Self::Name(name.into_owned()),
        }
    }
}

impl<'a> From<&'a Client> for ClientField<'a> {
    fn from(client: &'a Client) -> Self {
        match client {
            Client::Number(number) => Self::Number(*number),
            Client::Name(name) => Self::Name(Cow::Borrowed(name)),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum StatusField {
    Committed,
    Aborted,
    Unknown,
}

impl From<StatusField> for Status {
    fn from(field: StatusField) -> Self {
        match field {
            StatusField::Committed => Self::Committed,
            StatusField::Aborted => Self::Aborted,
            StatusField::Unknown => Self::Unknown,
        }
    }
}

impl From<Status> for StatusField {
    fn from(status: Status) -> Self {
        match status {
            Status::Committed => Self::Committed,
            Status::Aborted => Self::Aborted,
            Status::Unknown => Self::Unknown,
        }
    }
}

/// A transaction's line. Fields that are not named here are notes for people, and ignored.
#[derive(Serialize, Deserialize)]
pub(super) struct TransactionLine<'a> {
    #[serde(borrow)]
    pub(super) client: ClientField<'a>,
    pub(super) status: StatusField,
    pub(super) start_ts: u64,
    pub(super) read_ts: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) tentative: bool,
    // Must be there, even if it is null: a writer that forgets it would have its commits checked as unknown ones.
    #[serde(deserialize_with = "Option::deserialize")]
    pub(super) commit_ts: Option<u64>,
    pub(super) begin_ns: u64,
    pub(super) end_ns: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    pub(super) ops: Vec<OpField<'a>>,
}

/// An operation, before it is known to have the fields of its kind.
///
/// No other field is accepted here: a bound that was misspelt and ignored would make the verdict wrong.
#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct OpField<'a> {
    #[serde(borrow)]
    pub(super) op: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) table: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) row: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) col: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) start_row: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) end_row: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) start_col: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub(super) end_col: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) reverse: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) consumed_to: Option<(String, String)>,
    // Two layers, because a get says null where nothing was: the outer one is "not there at all".
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rows: Option<Vec<RowField>>,
}

pub(super) type RowField = (String, String, String);

fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(from).map(Some)
}

#[derive(Serialize, Deserialize)]
pub(super) struct FinalLine {
    #[serde(rename = "final")]
    pub(super) state: FinalFields,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FinalFields {
    pub(super) tables: BTreeMap<String, Vec<RowField>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) read_ts: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) faults: Option<u64>,
}
