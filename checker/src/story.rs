//! Draws the few transactions of an anomaly: when each began and ended, and what it did to the cells it is about.

use crate::history::{Op, Status};
use crate::index::{CellId, TxnId};
use crate::picture::{Picture, Rank};
use crate::text;
use crate::timeline::{Fate, Timeline, Witness};

pub(crate) struct Story<'t, 'i, 'h> {
    timeline: &'t Timeline<'i, 'h>,
    picture: Picture,
    actors: Vec<Witness>,
}

impl<'t, 'i, 'h> Story<'t, 'i, 'h> {
    /// With the transactions' beginnings, ends, and writes of `cells`, by logical time.
    pub(crate) fn new(timeline: &'t Timeline<'i, 'h>, actors: &[Witness], cells: &[CellId]) -> Self {
        let mut story = Self { timeline, picture: Picture::new("ts"), actors: Vec::new() };
        let mut actors = actors.to_vec();
        // Who began first stands left, so that most arrows lead to the right.
        actors.sort_by_key(|actor| match actor {
            Witness::Transaction(txn) => (story.snapshot(*actor), timeline.index.txn(*txn).start_ts),
            Witness::FinalState => (u64::MAX, u64::MAX),
        });
        for actor in actors {
            if story.actors.contains(&actor) {
                continue;
            }
            let lane = story.picture.lane(title(timeline, actor));
            story.actors.push(actor);
            match actor {
                Witness::Transaction(txn) => story.life(lane, txn, cells),
                Witness::FinalState => {
                    let at = story.snapshot(actor);
                    story.picture.event(at, Rank::Begin, lane, "the tables are read".into(), None);
                }
            }
        }
        story
    }

    /// With the transactions' beginnings and ends by the clock.
    pub(crate) fn by_clock(timeline: &'t Timeline<'i, 'h>, txns: &[TxnId]) -> Self {
        let mut story = Self { timeline, picture: Picture::new("ns"), actors: Vec::new() };
        for &txn in txns {
            let actor = Witness::Transaction(txn);
            let lane = story.picture.lane(title(timeline, actor));
            story.actors.push(actor);
            let transaction = timeline.index.txn(txn);
            let begin = format!("begin: start_ts {}, read_ts {}", transaction.start_ts, transaction.read_ts);
            let end = match transaction.commit_ts {
                Some(commit_ts) => format!("{}: commit_ts {commit_ts}", transaction.status.name()),
                None => transaction.status.name().to_owned(),
            };
            story.picture.event(transaction.begin_ns, Rank::Begin, lane, begin, None);
            story.picture.event(transaction.end_ns, Rank::Commit, lane, end, None);
        }
        story
    }

    fn life(&mut self, lane: usize, txn: TxnId, cells: &[CellId]) {
        let transaction = self.timeline.index.txn(txn);
        let begin = match transaction.start_ts == transaction.read_ts {
            true => format!("begin, sees commits below {}", transaction.read_ts),
            false => {
                format!("begin, sees commits below {} (start_ts {})", transaction.read_ts, transaction.start_ts)
            }
        };
        self.picture.event(transaction.read_ts, Rank::Begin, lane, begin, None);
        let (at, rank, end) = self.end(txn);
        let mut writes = self.writes(txn, cells).into_iter();
        let first = writes.next().map_or(end.to_owned(), |write| format!("{end}: {write}"));
        self.picture.event(at, rank, lane, first, None);
        for write in writes {
            self.picture.event(at, rank, lane, format!("  {write}"), None);
        }
    }

    /// When and how a transaction ended, in logical time.
    fn end(&self, txn: TxnId) -> (u64, Rank, &'static str) {
        let transaction = self.timeline.index.txn(txn);
        let commit_ts = self.timeline.commit_ts(txn).or(transaction.commit_ts);
        let last = commit_ts.unwrap_or(transaction.start_ts).max(transaction.read_ts);
        match (transaction.status, self.timeline.fate(txn)) {
            (Status::Committed, _) => (last, Rank::Commit, "commit"),
            (Status::Aborted, _) => (last, Rank::Abort, "abort"),
            (Status::Unknown, Fate::SeenCommitted(_)) => (last, Rank::Commit, "unknown, but seen"),
            (Status::Unknown, Fate::SeenAborted(_)) => (last, Rank::Abort, "unknown, but not seen"),
            (Status::Unknown, _) => (last, Rank::Abort, "unknown"),
        }
    }

    /// Everything it did to the cells, in program order.
    fn writes(&self, txn: TxnId, cells: &[CellId]) -> Vec<String> {
        let index = self.timeline.index;
        let names: Vec<String> = cells.iter().map(|cell| index.cell_name(*cell)).collect();
        let ops = index.txn(txn).ops.iter().filter_map(|op| {
            let (cell, action) = match op {
                Op::Put { cell, value } => (cell, format!("= {}", text::value(Some(value)))),
                Op::Delete { cell } => (cell, String::new()),
                Op::Get { .. } | Op::Scan(_) => return None,
            };
            let name = text::cell(&cell.table, &cell.row, &cell.col);
            let verb = if action.is_empty() { "delete" } else { "put" };
            names.contains(&name).then(|| format!("{verb} {name} {action}").trim_end().to_owned())
        });
        ops.collect()
    }

    /// Adds what somebody saw in its snapshot, with an arrow from who wrote it.
    pub(crate) fn read(&mut self, reader: Witness, text: String, writer: Option<TxnId>) {
        self.saw(reader, self.snapshot(reader), text, writer);
    }

    /// Adds what a transaction would have seen at its commit.
    pub(crate) fn recheck(&mut self, reader: TxnId, text: String, writer: Option<TxnId>) {
        let at = self.timeline.commit_ts(reader).unwrap_or(u64::MAX);
        self.saw(Witness::Transaction(reader), at, text, writer);
    }

    fn saw(&mut self, reader: Witness, at: u64, text: String, writer: Option<TxnId>) {
        let lane = |actor| self.actors.iter().position(|known| *known == actor);
        let from = writer.and_then(|writer| lane(Witness::Transaction(writer)));
        if let Some(lane) = lane(reader) {
            self.picture.event(at, Rank::Read, lane, text, from);
        }
    }

    fn snapshot(&self, reader: Witness) -> u64 {
        match reader {
            Witness::Transaction(txn) => self.timeline.index.txn(txn).read_ts,
            Witness::FinalState => {
                let state = self.timeline.index.history.final_state.as_ref();
                state.and_then(|state| state.read_ts).unwrap_or(u64::MAX)
            }
        }
    }

    pub(crate) fn draw(self) -> String {
        self.picture.draw()
    }
}

/// A transaction's name in sentences.
pub(crate) fn name(timeline: &Timeline<'_, '_>, actor: Witness) -> String {
    match actor {
        Witness::Transaction(txn) => format!("T{}", timeline.index.txn(txn).start_ts),
        Witness::FinalState => "the final state".to_owned(),
    }
}

fn title(timeline: &Timeline<'_, '_>, actor: Witness) -> String {
    let Witness::Transaction(txn) = actor else { return name(timeline, actor) };
    let transaction = timeline.index.txn(txn);
    let line = if transaction.line > 0 { format!(", line {}", transaction.line) } else { String::new() };
    let status = transaction.status.name();
    format!("{} (client {}{line}, {status})", name(timeline, actor), transaction.client)
}
