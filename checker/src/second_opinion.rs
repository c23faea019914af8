//! A second opinion on append workloads, from a checker that somebody else wrote.
//!
//! `adya` knows nothing of timestamps: it infers the order of the appends from the lists that were read, and looks for
//! cycles. So it can't be misled by a layer, or by a checker, that believes its own timestamps. It sees less: it knows
//! no ranges, no deletes and no final state but what is told to it as one more read.
//!
//! It is told: each get of a list as a read, each put as the append of its last element, an unknown outcome without
//! what it read (if it did not commit, its reads must not order anything), and the clock's order of all beginnings and
//! ends. Its names for transactions are those of the reports: `T` and the start timestamp.

use crate::history::{History, Op, Row, Status, Transaction};
use crate::invariants::APPEND_TABLE;
use crate::report::Report;
use crate::value;
use adya::history::{Id, Interner, Mop, OpType, ReadValue, Scalar};
use std::fmt;
use std::time::Duration;

/// How long it may look for a cycle in each knot of transactions before it says that it does not know.
const SEARCH_TIME_MAX: Duration = Duration::from_secs(20);

/// How many explanations of each kind are kept.
const EXPLAINED_PER_KIND: usize = 2;

/// What the other checker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The history keeps the model, as far as can be seen.
    Holds,
    /// It does not.
    Broken,
    /// It could not tell: nothing was appended twice to any list, or the search took too long.
    Undecided,
}

/// A second opinion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opinion {
    /// What was asked: the name of a consistency model, as Elle spells it.
    pub model: String,
    /// The answer.
    pub verdict: Verdict,
    /// The kinds of anomalies it found, by its names.
    pub kinds: Vec<String>,
    /// Why, a few of each kind.
    pub explanations: Vec<String>,
}

/// How the two opinions relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Both find anomalies, or neither does.
    Agree,
    /// Only the replay found something: not alarming, it sees more.
    OnlyReplay,
    /// Only the other checker found something: one of the two is wrong, and the run must count as failed.
    OnlyOther,
    /// The other checker could not tell.
    Undecided,
}

/// Why there is no second opinion.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotAppend {
    /// An operation that is none of an append workload.
    #[error("transaction {start_ts}: {problem}; only append workloads have a second opinion")]
    Operation {
        /// Of the transaction.
        start_ts: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The other checker does not know the model.
    #[error("no consistency model is called {0}")]
    Model(String),
}

/// Asks for the model that the table of the lists promises: strict serializability if it is serializable, by the
/// first line or by `serializable`, and strong snapshot isolation otherwise.
pub fn second_opinion(history: &History, serializable: &[String]) -> Result<Opinion, NotAppend> {
    let mut named = history.header.serializable_tables.iter().chain(serializable);
    let is_serializable = named.any(|table| table == APPEND_TABLE);
    ask(history, if is_serializable { "strict-serializable" } else { "strong-snapshot-isolation" })
}

/// Asks whether a history keeps a model.
pub fn ask(history: &History, model: &str) -> Result<Opinion, NotAppend> {
    let known = adya::model::canonical(model).ok_or_else(|| NotAppend::Model(model.to_owned()))?;
    let options = adya::Opts { models: vec![known.to_owned()], timeout: SEARCH_TIME_MAX, ..adya::Opts::default() };
    let report = adya::check(&converted(history)?, adya::Workload::ListAppend, &options);
    let explanations = report.anomalies.iter().flat_map(|(kind, anomalies)| {
        anomalies.iter().take(EXPLAINED_PER_KIND).map(move |anomaly| format!("{kind}: {}", anomaly.explanation))
    });
    Ok(Opinion {
        model: model.to_owned(),
        verdict: match report.valid {
            adya::Valid::True => Verdict::Holds,
            adya::Valid::False => Verdict::Broken,
            adya::Valid::Unknown => Verdict::Undecided,
        },
        kinds: report.anomaly_types.clone(),
        explanations: explanations.collect(),
    })
}

impl Opinion {
    /// Compares it with the replay of the same history.
    pub fn compare(&self, report: &Report) -> Comparison {
        match (self.verdict, report.is_clean()) {
            (Verdict::Holds, true) | (Verdict::Broken, false) => Comparison::Agree,
            (Verdict::Holds, false) => Comparison::OnlyReplay,
            (Verdict::Broken, true) => Comparison::OnlyOther,
            (Verdict::Undecided, _) => Comparison::Undecided,
        }
    }
}

impl fmt::Display for Opinion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Holds => "holds",
            Verdict::Broken => "is BROKEN",
            Verdict::Undecided => "can't be decided",
        };
        writeln!(f, "second opinion (adya): {} {verdict}", self.model)?;
        for explanation in &self.explanations {
            writeln!(f, "    {}", explanation.replace('\n', "\n    "))?;
        }
        Ok(())
    }
}

/// A beginning or an end, sorted by the clock. At one nanosecond all begin before any ends: only what is certain to
/// lie before the other counts as order.
type Event = (u64, bool, usize);

fn converted(history: &History) -> Result<adya::History, NotAppend> {
    let mut events: Vec<Event> = Vec::with_capacity(history.transactions.len() * 2);
    for (at, transaction) in history.transactions.iter().enumerate() {
        events.push((transaction.begin_ns, false, at));
        events.push((transaction.end_ns.max(transaction.begin_ns), true, at));
    }
    events.sort_unstable();
    let mut names = Interner::default();
    let mut ops = Vec::with_capacity(events.len() + 2);
    for (time, is_end, at) in events {
        let transaction = &history.transactions[at];
        let kind = match (is_end, transaction.status) {
            (false, _) => OpType::Invoke,
            (true, Status::Committed) => OpType::Ok,
            (true, Status::Aborted) => OpType::Fail,
            (true, Status::Unknown) => OpType::Info,
        };
        let value = micro_operations(transaction, kind == OpType::Ok, &mut names)?;
        // A process of its own for each attempt pairs its two ends; the order within a client is that of the clock.
        ops.push(operation(kind, transaction.start_ts, at, value, time));
    }
    ops.extend(final_reads(history, &mut names)?);
    Ok(adya::History::from_ops(ops, names))
}

fn operation(kind: OpType, index: u64, process: usize, value: Vec<Mop>, time: u64) -> adya::history::Op {
    let (process, time) = (i64::try_from(process).ok(), i64::try_from(time).ok());
    adya::history::Op { index, kind, process, value, time }
}

fn micro_operations(transaction: &Transaction, with_reads: bool, names: &mut Interner) -> Result<Vec<Mop>, NotAppend> {
    let wrong = |problem| NotAppend::Operation { start_ts: transaction.start_ts, problem };
    let ops = transaction.ops.iter().map(|op| match op {
        Op::Get { cell, value } => {
            let key = key(&cell.table, &cell.row, names);
            let value = match (with_reads, value) {
                (false, _) => ReadValue::Nil,
                (true, None) => ReadValue::List(Vec::new()),
                (true, Some(list)) => ReadValue::List(elements(list, names).ok_or_else(|| wrong(NO_LIST))?),
            };
            Ok(Mop::Read { key, value })
        }
        Op::Put { cell, value } => {
            let key = key(&cell.table, &cell.row, names);
            let list = elements(value, names).ok_or_else(|| wrong(NO_LIST))?;
            let value = *list.last().ok_or_else(|| wrong("it put an empty list"))?;
            Ok(Mop::Append { key, value })
        }
        Op::Delete { .. } => Err(wrong("it deleted a list")),
        Op::Scan(_) => Err(wrong("it scanned")),
    });
    ops.collect()
}

const NO_LIST: &str = "a value is not a JSON array of integers";

fn key(table: &str, row: &str, names: &mut Interner) -> Id {
    names.intern(Scalar::Str(format!("{table}/{row}")))
}

fn elements(list: &str, names: &mut Interner) -> Option<Vec<Id>> {
    Some(value::list(list)?.into_iter().map(|element| names.intern(Scalar::Int(element))).collect())
}

/// The final state, as one more transaction after all others that read every list.
fn final_reads(history: &History, names: &mut Interner) -> Result<Vec<adya::history::Op>, NotAppend> {
    let after =
        history.transactions.iter().map(|transaction| transaction.start_ts).max().unwrap_or(0).saturating_add(1);
    let wrong = |problem| NotAppend::Operation { start_ts: after, problem };
    let rows: Vec<&Row> =
        history.final_state.iter().filter_map(|state| state.tables.get(APPEND_TABLE)).flatten().collect();
    let mut reads = Vec::new();
    for (row, _, list) in rows {
        let list = elements(list, names).ok_or_else(|| wrong(NO_LIST))?;
        reads.push(Mop::Read { key: key(APPEND_TABLE, row, names), value: ReadValue::List(list) });
    }
    if reads.is_empty() {
        return Ok(Vec::new());
    }
    let time = history.transactions.iter().map(|transaction| transaction.end_ns).max().unwrap_or(0);
    let process = history.transactions.len();
    let invoke = operation(OpType::Invoke, after, process, Vec::new(), time);
    Ok(vec![invoke, operation(OpType::Ok, after, process, reads, time)])
}
