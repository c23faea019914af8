//! Anomalies told as stories: `tests/stories/*.story`, each with its steps, what comes of them and what is left in the
//! store, under snapshot isolation and where reads are checked.
//!
//! ```text
//! # What it is about.
//! setup CELL=VALUE…                 committed before anybody begins
//! WHO begin
//! WHO get CELL -> VALUE             or `nothing`
//! WHO put CELL VALUE
//! WHO delete CELL
//! WHO scan FROM..TO [limit N] [reverse] -> CELL=VALUE…
//! WHO columns ROW FROM..TO -> COLUMN=VALUE…
//! WHO commit -> committed           or `nothing to write`, or the code of an error
//! WHO abort
//! versions CELL: WHO…               writers of the committed versions, newest first; other versions are rolled back
//! ```
//!
//! A line that begins with `snapshot:` or `serializable:` is for that isolation only.

use crate::common::*;
use atlas::kvs_api::CellBound;
use atlas::ops::ScanOptions;
use atlas::schema::ConflictHandler;
use atlas::transaction::Transaction;
use atlas::transaction::entry::{Entry, transactions_table};
use atlas::{Cell, ColumnSelection, RowRange, TableRef, Timestamp};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Which lines of a story are for which handler.
const LEVELS: [(&str, ConflictHandler); 4] = [
    ("snapshot", ConflictHandler::RetryOnWriteWrite),
    ("snapshot", ConflictHandler::RetryOnWriteWriteCell),
    ("serializable", ConflictHandler::Serializable),
    ("serializable", ConflictHandler::SerializableCell),
];
const STORIES_MIN: usize = 16;

/// One telling of a story. Its rows have a prefix of their own, so that all stories can share a table.
struct Telling<'a> {
    store: &'a TestStore,
    table: TableRef,
    prefix: String,
    open: BTreeMap<String, Transaction>,
    names: BTreeMap<Timestamp, String>,
    place: String,
}

/// Every story, under each handler. Stories say which versions there are at their end: nothing is swept.
pub(crate) async fn every_story_ends_as_told(lane: Lane) {
    let store = TestStore::open_unswept(lane).await;
    let stories = stories();
    assert!(stories.len() >= STORIES_MIN, "{} stories were found", stories.len());
    for (level, handler) in LEVELS {
        let table = store.table(handler).await;
        for (name, text) in &stories {
            let mut telling = Telling {
                store: &store,
                table: table.clone(),
                prefix: format!("{name} "),
                open: BTreeMap::new(),
                names: BTreeMap::new(),
                place: String::new(),
            };
            for (number, line) in text.lines().enumerate() {
                telling.place = format!("{name}.story:{}, {handler}: {line}", number + 1);
                telling.tell(level, line).await;
            }
        }
    }
}

fn stories() -> Vec<(String, String)> {
    let directory = crate::common::checkout::directory().join("tests/stories");
    let files = std::fs::read_dir(&directory).expect("the stories can be listed");
    let mut paths: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    let name = |path: &Path| path.file_stem().expect("a name").to_string_lossy().into_owned();
    paths.iter().map(|path| (name(path), std::fs::read_to_string(path).expect("a story can be read"))).collect()
}

impl Telling<'_> {
    async fn tell(&mut self, level: &str, line: &str) {
        let line = line.trim();
        let line = match line.split_once(": ") {
            Some((only, rest)) if LEVELS.iter().any(|(level, _)| *level == only) => {
                if only != level {
                    return;
                }
                rest.trim()
            }
            _ => line,
        };
        if line.is_empty() || line.starts_with('#') {
            return;
        }
        let (step, expected) = match line.split_once(" -> ") {
            Some((step, expected)) => (step, Some(expected.trim())),
            None => (line, None),
        };
        let words: Vec<&str> = step.split_whitespace().collect();
        match (&words[..], expected) {
            (["setup", cells @ ..], None) => self.set_up(cells).await,
            (["versions", cell, writers @ ..], None) => {
                self.check_versions(cell.strip_suffix(':').expect("a cell ends with a colon"), writers).await;
            }
            ([who, "begin"], None) => {
                let tx = self.store.begin().await;
                self.names.insert(tx.start_ts(), (*who).to_owned());
                assert!(self.open.insert((*who).to_owned(), tx).is_none(), "{}: began already", self.place);
            }
            ([who, "get", cell], Some(expected)) => {
                let value = self.of(who).get(&self.table, &self.cell(cell)).await.expect("a cell can be read");
                self.is(value.as_ref().map(text).as_deref().unwrap_or("nothing"), expected);
            }
            ([who, "put", cell, value], None) => {
                let value = (*value).to_owned();
                self.of(who).put(&self.table, self.cell(cell), value).await.expect("a write is buffered");
            }
            ([who, "delete", cell], None) => {
                self.of(who).delete(&self.table, self.cell(cell)).await.expect("a deletion is buffered");
            }
            ([who, "scan", range, options @ ..], Some(expected)) => {
                let cells = scan_cells(self.of(who), &self.table, self.scan_options(range, options)).await;
                let found = cells.iter().map(|(cell, value)| format!("{}={}", self.shown(cell), text(value)));
                self.are(found.collect(), expected);
            }
            ([who, "columns", row, range], Some(expected)) => {
                let (start, end) = bounds(range);
                let row = format!("{}{row}", self.prefix);
                let selected: ColumnSelection = columns(start, end);
                let found =
                    self.of(who).get_row(&self.table, row.as_bytes(), selected).await.expect("a row can be read");
                self.are(
                    found.iter().map(|(column, value)| format!("{}={}", text(column), text(value))).collect(),
                    expected,
                );
            }
            ([who, "commit"], Some(expected)) => {
                let tx = self.open.remove(*who).expect("it began");
                let outcome = match tx.commit().await {
                    Ok(Some(_)) => "committed".to_owned(),
                    Ok(None) => "nothing to write".to_owned(),
                    Err(error) => error.code().to_owned(),
                };
                self.is(&outcome, expected);
            }
            ([who, "abort"], None) => self.open.remove(*who).expect("it began").abort(),
            _ => panic!("{}: not understood", self.place),
        }
    }

    async fn set_up(&mut self, cells: &[&str]) {
        let tx = self.store.begin().await;
        self.names.insert(tx.start_ts(), "setup".to_owned());
        for cell in cells {
            let (cell, value) = cell.split_once('=').expect("a cell and its value");
            tx.put(&self.table, self.cell(cell), value.to_owned()).await.expect("a write is buffered");
        }
        commit(tx).await;
    }

    /// Raw cells: who wrote the versions that count, and that no other one can ever count.
    async fn check_versions(&self, name: &str, expected: &[&str]) {
        let kvs = self.store.atlas.transactions().kvs();
        let bound = CellBound::new(self.cell(name), Timestamp::MAX);
        let versions = kvs.versions(&self.table, &[bound]).await.expect("versions can be listed").pop();
        let mut starts: Vec<Timestamp> = versions.unwrap_or_default().iter().map(|version| version.ts).collect();
        starts.sort_unstable();
        let mut committed = Vec::new();
        for start_ts in starts.into_iter().rev() {
            let entry =
                kvs.get_atomic(&transactions_table(), &[Entry::cell(start_ts)]).await.expect("an entry is read");
            let entry = entry.into_iter().next().flatten();
            match entry.map(|bytes| Entry::decode(start_ts, &bytes).expect("an entry")) {
                Some(Entry::Committed(_)) => committed.push(self.names[&start_ts].as_str()),
                Some(Entry::RolledBack) => (),
                None => panic!("{}: {name} has a version of {start_ts} that is undecided", self.place),
            }
        }
        assert_eq!(committed, expected, "{}", self.place);
    }

    fn of(&self, who: &str) -> &Transaction {
        self.open.get(who).unwrap_or_else(|| panic!("{}: {who} has not begun", self.place))
    }

    fn cell(&self, name: &str) -> Cell {
        let (row, column) = name.split_once('/').expect("a row and a column");
        Cell::copy_from(format!("{}{row}", self.prefix), column)
    }

    fn shown(&self, cell: &Cell) -> String {
        let row = text(&cell.row);
        format!("{}/{}", row.strip_prefix(&self.prefix).expect("a row of this story"), text(&cell.column))
    }

    fn scan_options(&self, range: &str, options: &[&str]) -> ScanOptions {
        let (start, end) = bounds(range);
        let rows = RowRange::new(format!("{}{start}", self.prefix), format!("{}{end}", self.prefix));
        let mut scan = ScanOptions { rows, ..ScanOptions::default() };
        let mut words = options.iter();
        while let Some(word) = words.next() {
            match *word {
                "limit" => scan.limit = Some(words.next().and_then(|limit| limit.parse().ok()).expect("a limit")),
                "reverse" => scan.reverse = true,
                _ => panic!("{}: not understood: {word}", self.place),
            }
        }
        scan
    }

    #[track_caller]
    fn is(&self, found: &str, expected: &str) {
        assert_eq!(found, expected, "{}", self.place);
    }

    #[track_caller]
    fn are(&self, found: Vec<String>, expected: &str) {
        self.is(if found.is_empty() { "nothing".to_owned() } else { found.join(" ") }.as_str(), expected);
    }
}

fn bounds(range: &str) -> (&str, &str) {
    range.split_once("..").expect("a range has two ends")
}
