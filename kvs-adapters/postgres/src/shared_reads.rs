//! Reads of few cells share a statement.
//!
//! What a statement costs besides its walks is most of what it costs to read a cell: parsing, a snapshot, two messages, a
//! change of processes. So no more than a few statements read a table at the same time. Who comes meanwhile waits for the next
//! one, which asks for the cells of all who wait by then:
//!
//! ```text
//!   readers      a    b c d         e
//!   statements   [ a ]     [ b c d ]   [ e ]
//! ```
//!
//! Nobody joins a statement that was sent: its snapshot is older than the question.
//!
//! Tasks of their own send the statements, so that no reader depends on another one that goes away or is not polled. Whose
//! question was not sent soon (the server looks for cold cells, or the runtime of the task stands still) asks by itself, and so
//! do all whose statement failed for a reason that may be one of them, or whose task has ended.

use crate::errors::{Attempt, Trouble};
use crate::session::SILENCE;
use atlas_kvs::{CellBound, KvsError, TableRef, Value};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Statements that read a table at the same time.
const LANES: usize = 4;
/// Who reads more cells shares with nobody.
const FEW: usize = 16;
/// Cells of a shared statement.
const CELLS_MAX: usize = 64;
/// Whose question was not sent by then asks by itself. Many exchanges with a server nearby, and one or two with one far away.
const PATIENCE: Duration = Duration::from_millis(10);

type Values = Vec<Option<Value>>;

/// The tables that are being read.
#[derive(Debug, Default)]
pub(crate) struct SharedReads {
    // Invariant: a table is here as long as somebody sends statements for it.
    tables: Mutex<HashMap<TableRef, Table>>,
}

#[derive(Debug, Default)]
struct Table {
    /// How many tasks send statements.
    lanes: usize,
    waiting: VecDeque<Waiting>,
}

/// Somebody who waits for a statement.
#[derive(Debug)]
struct Waiting {
    cells: Vec<CellBound>,
    answer: oneshot::Sender<Attempt<Values>>,
    /// The question is in a statement.
    sent: Arc<AtomicBool>,
}

/// A task that sends statements for a table.
struct Lane {
    reads: Arc<SharedReads>,
    table: TableRef,
    /// It is not counted any more.
    ended: bool,
}

impl SharedReads {
    /// What `ask` answers for cells, perhaps with those of others: one value for each, in their order. It gives up after
    /// `limit`.
    ///
    /// Cancel safe. What was sent for a reader that has gone is not taken back.
    pub(crate) async fn get<F>(
        self: &Arc<Self>,
        table: &TableRef,
        cells: &[CellBound],
        limit: Duration,
        ask: impl Fn(TableRef, Vec<CellBound>) -> F + Clone + Send + 'static,
    ) -> Attempt<Values>
    where
        F: Future<Output = Attempt<Values>> + Send + 'static,
    {
        if let (true, Ok(runtime)) = ((1..=FEW).contains(&cells.len()), Handle::try_current()) {
            let (answer, mut answered) = oneshot::channel();
            let sent = Arc::new(AtomicBool::new(false));
            if let Some(lane) = self.wait(table, Waiting { cells: cells.to_vec(), answer, sent: Arc::clone(&sent) }) {
                runtime.spawn(lane.send_statements(ask.clone()));
            }
            let mut answer = timeout(PATIENCE, &mut answered).await;
            if answer.is_err() && sent.load(Ordering::SeqCst) {
                // Not asked once more while it is on its way: where the server is slow, that would make it slower. But not for
                // ever, either: nobody may be driving the task that is to hear of it.
                answer = timeout(limit.saturating_add(SILENCE), answered).await;
            }
            if let Ok(Ok(values)) = answer {
                return values;
            }
        }
        ask(table.clone(), cells.to_vec()).await
    }

    /// Waits in line. Answers a lane if there is room for one more.
    fn wait(self: &Arc<Self>, table: &TableRef, waiting: Waiting) -> Option<Lane> {
        let mut tables = self.tables.lock();
        let line = match tables.get_mut(table) {
            Some(line) => line,
            None => tables.entry(table.clone()).or_default(),
        };
        // Who has given up is not kept for tasks that may never come to him.
        while line.waiting.front().is_some_and(|first| first.answer.is_closed()) {
            line.waiting.pop_front();
        }
        line.waiting.push_back(waiting);
        (line.lanes < LANES).then(|| {
            line.lanes += 1;
            Lane { reads: Arc::clone(self), table: table.clone(), ended: false }
        })
    }
}

impl Lane {
    /// Until nobody waits.
    async fn send_statements<F>(mut self, ask: impl Fn(TableRef, Vec<CellBound>) -> F)
    where
        F: Future<Output = Attempt<Values>>,
    {
        while let Some(readers) = self.take() {
            let cells: Vec<_> = readers.iter().flat_map(|reader| reader.cells.iter().cloned()).collect();
            match ask(self.table.clone(), cells).await {
                Ok(values) => {
                    let mut values = values.into_iter();
                    for Waiting { cells, answer, .. } in readers {
                        // Perhaps nobody waits for it any more.
                        let _ = answer.send(Ok(values.by_ref().take(cells.len()).collect()));
                    }
                }
                Err(trouble) => tell(readers, trouble),
            }
        }
    }

    /// Those who wait, as many as one statement takes. Ends the lane if there are none: in one step, so that who comes
    /// next finds somebody to send his statement, or sees that there is room.
    fn take(&mut self) -> Option<Vec<Waiting>> {
        let mut tables = self.reads.tables.lock();
        let line = tables.get_mut(&self.table)?;
        let mut readers = Vec::new();
        let mut room = CELLS_MAX;
        while let Some(reader) = line.waiting.pop_front() {
            if reader.cells.len() > room {
                line.waiting.push_front(reader);
                break;
            }
            if !reader.answer.is_closed() {
                room -= reader.cells.len();
                reader.sent.store(true, Ordering::SeqCst);
                readers.push(reader);
            }
        }
        if !readers.is_empty() {
            return Some(readers);
        }
        self.ended = true;
        let nobody = leave(&mut tables, &self.table);
        debug_assert!(nobody.is_none_or(|table| table.waiting.is_empty()));
        None
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if !self.ended {
            // Not under the latch: whoever waits there is woken.
            let left = leave(&mut self.reads.tables.lock(), &self.table);
            drop(left);
        }
    }
}

/// One lane less. Who waits behind the last one, which was ended in the middle of its work, is handed back, and not left
/// waiting.
fn leave(tables: &mut HashMap<TableRef, Table>, table: &TableRef) -> Option<Table> {
    let line = tables.get_mut(table)?;
    line.lanes -= 1;
    if line.lanes == 0 { tables.remove(table) } else { None }
}

/// Tells those who shared a statement of its failure, if that is about all of them. The others hear nothing, and ask again,
/// each by itself: it may be about the cell of one of them.
fn tell(readers: Vec<Waiting>, trouble: Trouble) {
    let about_all = |trouble: &Trouble| match trouble {
        Trouble::Final(KvsError::NoSuchTable(table)) => Some(KvsError::NoSuchTable(table.clone())),
        Trouble::Final(KvsError::WrongTableKind { table, actual }) => {
            Some(KvsError::WrongTableKind { table: table.clone(), actual })
        }
        Trouble::Final(KvsError::Closed) => Some(KvsError::Closed),
        _ => None,
    };
    let is_alone = readers.len() == 1;
    for Waiting { answer, .. } in readers {
        if let Some(error) = about_all(&trouble) {
            let _ = answer.send(Err(error.into()));
        } else if is_alone {
            let _ = answer.send(Err(trouble));
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errors::unavailable;
    use atlas_kvs::{Cell, Timestamp};
    use futures::future::{BoxFuture, join_all};
    use futures::{FutureExt, poll};
    use std::ops::Range;
    use tokio::runtime::{Builder, Runtime};
    use tokio::sync::mpsc;

    const LONG: Duration = Duration::from_secs(3600);

    /// A statement as the server sees it: the cells it asks for, and where its answer goes.
    type Asked = (Vec<CellBound>, oneshot::Sender<Attempt<Values>>);

    struct Fake {
        reads: Arc<SharedReads>,
        statements: mpsc::UnboundedSender<Asked>,
        asked: mpsc::UnboundedReceiver<Asked>,
    }

    impl Fake {
        fn new() -> Fake {
            let (statements, asked) = mpsc::unbounded_channel();
            Fake { reads: Arc::default(), statements, asked }
        }

        /// A reader that has asked.
        async fn reader(&self, rows: Range<usize>) -> BoxFuture<'static, Result<Values, ()>> {
            let (reads, statements) = (Arc::clone(&self.reads), self.statements.clone());
            let cells: Vec<CellBound> = rows.map(bound).collect();
            let ask = move |_, cells| {
                let (answer, answered) = oneshot::channel();
                statements.send((cells, answer)).expect("somebody listens");
                async { answered.await.expect("it answers") }
            };
            let mut reader = async move { reads.get(&table(), &cells, LONG, ask).await.map_err(|_| ()) }.boxed();
            assert!(poll!(&mut reader).is_pending());
            // So that whoever sends for it does.
            tokio::task::yield_now().await;
            reader
        }

        /// As many as there are lanes, each with a statement of its own.
        async fn readers_under_way(&mut self) -> (Vec<BoxFuture<'static, Result<Values, ()>>>, Vec<Asked>) {
            let (mut readers, mut statements) = (Vec::new(), Vec::new());
            for row in 0..LANES {
                readers.push(self.reader(row..row + 1).await);
                statements.push(self.asked.recv().await.expect("it goes at once"));
            }
            (readers, statements)
        }

        /// The next statement, of which there is only one.
        async fn statement(&mut self) -> Asked {
            let statement = self.asked.recv().await.expect("a statement");
            assert!(self.asked.try_recv().is_err(), "there is another one");
            statement
        }

        async fn is_left_alone(&self) {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            assert!(self.reads.tables.lock().is_empty(), "something is left");
        }
    }

    fn table() -> TableRef {
        TableRef::new("t").expect("a name")
    }

    fn bound(row: usize) -> CellBound {
        CellBound::new(Cell::copy_from(row.to_string(), "c"), Timestamp::MAX)
    }

    fn value(bound: &CellBound) -> Option<Value> {
        Some(Value { ts: Timestamp::FIRST, bytes: bound.cell.row.clone() })
    }

    fn values(rows: Range<usize>) -> Result<Values, ()> {
        Ok(rows.map(|row| value(&bound(row))).collect())
    }

    fn answer((cells, answer): Asked) -> usize {
        let _ = answer.send(Ok(cells.iter().map(value).collect()));
        cells.len()
    }

    fn answer_all(statements: Vec<Asked>) {
        for statement in statements {
            answer(statement);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_while_statements_are_under_way_shares_the_next() {
        let mut fake = Fake::new();
        let (first, statements) = fake.readers_under_way().await;
        let later = [fake.reader(2..3).await, fake.reader(3..6).await, fake.reader(6..7).await];
        assert!(fake.asked.try_recv().is_err(), "they wait");
        answer_all(statements);
        assert_eq!(join_all(first).await, (0..LANES).map(|row| values(row..row + 1)).collect::<Vec<_>>());
        assert_eq!(answer(fake.statement().await), 5);
        assert_eq!(join_all(later).await, [values(2..3), values(3..6), values(6..7)], "each gets its own");
        fake.is_left_alone().await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_many_cells_or_none_waits_for_nobody() {
        let mut fake = Fake::new();
        let (_first, _statements) = fake.readers_under_way().await;
        for many in [2..3 + FEW, 0..0] {
            let reader = fake.reader(many.clone()).await;
            assert_eq!(answer(fake.statement().await), many.len());
            assert_eq!(reader.await, values(many));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_statement_takes_no_more_than_it_may() {
        let mut fake = Fake::new();
        let (first, statements) = fake.readers_under_way().await;
        let mut later = Vec::new();
        for _ in 0..CELLS_MAX / FEW {
            later.push(fake.reader(0..FEW).await);
        }
        later.push(fake.reader(0..1).await);
        answer_all(statements);
        join_all(first).await;
        let one = fake.asked.recv().await.expect("one");
        let two = fake.asked.recv().await.expect("two");
        assert_eq!([answer(one), answer(two)], [CELLS_MAX, 1]);
        assert!(join_all(later).await.iter().all(Result::is_ok));
        fake.is_left_alone().await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_away_keeps_nobody_from_an_answer() {
        let mut fake = Fake::new();
        let (first, statements) = fake.readers_under_way().await;
        let (gone, stays) = (fake.reader(2..3).await, fake.reader(3..4).await);
        drop((first, gone));
        answer_all(statements);
        let statement = fake.statement().await;
        assert_eq!(statement.0, [bound(3)], "nobody wants the other one");
        answer(statement);
        assert_eq!(stays.await, values(3..4));
        fake.is_left_alone().await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_not_polled_keeps_nobody_from_an_answer() {
        let mut fake = Fake::new();
        let (_unpolled, statements) = fake.readers_under_way().await;
        let reader = fake.reader(2..3).await;
        answer_all(statements);
        answer(fake.statement().await);
        assert_eq!(reader.await, values(2..3));
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_is_heard_by_who_causes_it() {
        let mut fake = Fake::new();
        let (first, statements) = fake.readers_under_way().await;
        let (fails, answered) = (fake.reader(2..3).await, fake.reader(3..4).await);
        answer_all(statements);
        join_all(first).await;
        let no = || Err(unavailable("no".to_owned(), None).into());
        let (cells, shared) = fake.statement().await;
        assert_eq!(cells.len(), 2);
        shared.send(no()).expect("somebody waits");
        let serving = async {
            for _ in 0..2 {
                let (cells, alone) = fake.asked.recv().await.expect("each asks by itself");
                let told = if cells == [bound(2)] { no() } else { Ok(cells.iter().map(value).collect()) };
                alone.send(told).expect("somebody waits");
            }
        };
        assert_eq!(tokio::join!(fails, answered, serving), (Err(()), values(3..4), ()));
        fake.is_left_alone().await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_about_the_table_or_one_reader_is_told_at_once() {
        let mut fake = Fake::new();
        let (mut first, mut statements) = fake.readers_under_way().await;
        let (alone, asked) = (first.remove(0), statements.remove(0));
        asked.1.send(Err(unavailable("no".to_owned(), None).into())).expect("somebody waits");
        assert_eq!(alone.await, Err(()));
        let later = [fake.reader(2..3).await, fake.reader(3..4).await];
        // The lane that is free now took the first of them.
        let (_, shared) = fake.statement().await;
        shared.send(Err(KvsError::NoSuchTable(table()).into())).expect("somebody waits");
        let (_, shared) = fake.statement().await;
        shared.send(Err(KvsError::NoSuchTable(table()).into())).expect("somebody waits");
        assert_eq!(join_all(later).await, [Err(()), Err(())]);
        answer_all(statements);
        join_all(first).await;
        fake.is_left_alone().await;
    }

    #[tokio::test(start_paused = true)]
    async fn whose_question_was_not_sent_soon_asks_by_itself() {
        let mut fake = Fake::new();
        let (mut first, statements) = fake.readers_under_way().await;
        let waits = fake.reader(2..3).await;
        let serving = async { answer(fake.statement().await) };
        assert_eq!(tokio::join!(waits, serving), (values(2..3), 1));
        // What was sent is waited for, and for longer than anybody waits for the server.
        let begun = tokio::time::Instant::now();
        let stuck = first.remove(0);
        let serving = async { answer(fake.statement().await) };
        assert_eq!(tokio::join!(stuck, serving), (values(0..1), 1));
        assert!(begun.elapsed() >= LONG);
        answer_all(statements);
        fake.is_left_alone().await;
    }

    /// A runtime that does nothing unless it is driven.
    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
    }

    #[test]
    fn the_end_of_a_runtime_leaves_nobody_waiting() {
        let (ending, other) = (runtime(), runtime());
        let mut fake = Fake::new();
        let (first, statements) = ending.block_on(fake.readers_under_way());
        let mut waits = other.block_on(fake.reader(2..3));
        drop(ending);
        drop((first, statements));
        other.block_on(async {
            assert!(poll!(&mut waits).is_pending());
            assert_eq!(answer(fake.statement().await), 1);
            assert_eq!(waits.await, values(2..3));
            fake.is_left_alone().await;
        });
    }

    #[test]
    fn a_runtime_that_nobody_drives_leaves_nobody_waiting() {
        let (still, other) = (runtime(), runtime());
        let mut fake = Fake::new();
        let under_way = still.block_on(fake.readers_under_way());
        other.block_on(async {
            for _ in 0..3 {
                let waits = fake.reader(2..3).await;
                let serving = async { answer(fake.statement().await) };
                assert_eq!(tokio::join!(waits, serving), (values(2..3), 1));
            }
            let kept: usize = fake.reads.tables.lock().values().map(|table| table.waiting.len()).sum();
            assert!(kept <= 1, "{kept} are kept that nobody will come to");
        });
        drop(under_way);
    }
}
