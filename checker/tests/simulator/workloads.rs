//! The bodies of the workloads, as the crate's README specifies their tables and values.

use super::{Range, Tx};
use atlas_checker::history::Header;
use atlas_checker::value::{content, encode_list, list, number, tagged};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Workload {
    Bank,
    WriteSkew,
    Ring,
    TransientRows,
    SingleBusyCell,
    SingleBusyCellTouch,
    MultipleBusyCells,
    WriteOnceDeleteOnce,
    Random,
    Append,
}

pub(crate) const ALL: [Workload; 10] = [
    Workload::Bank,
    Workload::WriteSkew,
    Workload::Ring,
    Workload::TransientRows,
    Workload::SingleBusyCell,
    Workload::SingleBusyCellTouch,
    Workload::MultipleBusyCells,
    Workload::WriteOnceDeleteOnce,
    Workload::Random,
    Workload::Append,
];

const ROWS: usize = 8;
const COLUMNS: [&str; 3] = ["c", "d", "e"];

impl Workload {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bank => "bank",
            Self::WriteSkew => "write-skew",
            Self::Ring => "ring",
            Self::TransientRows => "transient-rows",
            Self::SingleBusyCell => "single-busy-cell",
            Self::SingleBusyCellTouch => "single-busy-cell-touch",
            Self::MultipleBusyCells => "multiple-busy-cells",
            Self::WriteOnceDeleteOnce => "write-once-delete-once",
            Self::Random => "random",
            Self::Append => "append",
        }
    }

    pub(crate) fn tables(self) -> &'static [&'static str] {
        match self {
            Self::Bank => &["accounts"],
            Self::WriteSkew => &["pairs"],
            Self::Ring => &["ring"],
            Self::TransientRows => &["transient", "transient_index"],
            Self::SingleBusyCell | Self::SingleBusyCellTouch | Self::MultipleBusyCells => &["busy"],
            Self::WriteOnceDeleteOnce => &["once"],
            Self::Random => &["snapshot", "serial", "free", "touched"],
            Self::Append => &["lists"],
        }
    }

    pub(crate) fn header(self, serializable: bool) -> Header {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let serializable_tables = match self {
            _ if !serializable => Vec::new(),
            Self::Random => names(&["serial"]),
            _ => names(self.tables()),
        };
        let mut header = Header { workload: self.name().into(), serializable_tables, ..Header::default() };
        match self {
            Self::Random => {
                header.no_conflict_tables = names(&["free"]);
                header.touch_tables = names(&["touched"]);
            }
            Self::SingleBusyCellTouch => header.touch_tables = names(&["busy"]),
            _ => {}
        }
        header
    }

    pub(crate) fn setup(self, tx: &mut Tx<'_>) {
        match self {
            Self::Bank => {
                for account in 0..ROWS {
                    let value = tagged(100, tx.tag());
                    tx.put("accounts", &format!("a{account}"), "balance", &value);
                }
            }
            Self::WriteSkew => {
                for row in 0..ROWS / 2 {
                    for column in ["a", "b"] {
                        let value = tagged(20, tx.tag());
                        tx.put("pairs", &format!("p{row}"), column, &value);
                    }
                }
            }
            Self::Ring => {
                for row in 0..ROWS {
                    let value = tagged(format!("n{}", (row + 1) % ROWS), tx.tag());
                    tx.put("ring", &format!("n{row}"), "next", &value);
                }
            }
            Self::SingleBusyCell | Self::SingleBusyCellTouch | Self::MultipleBusyCells => {
                for row in 0..self.busy_rows() {
                    let value = tagged(0, tx.tag());
                    tx.put("busy", &format!("b{row}"), "counter", &value);
                }
            }
            Self::Append => {
                tx.get("lists", "k0", "list");
            }
            Self::TransientRows | Self::WriteOnceDeleteOnce | Self::Random => {
                // Those begin empty; reading is all there is to do.
                tx.scan(self.tables()[0], &Range::default());
            }
        }
    }

    fn busy_rows(self) -> usize {
        if self == Self::MultipleBusyCells { 4 } else { 1 }
    }

    pub(crate) fn body(self, tx: &mut Tx<'_>) {
        match self {
            Self::Bank => bank(tx),
            Self::WriteSkew => write_skew(tx),
            Self::Ring => ring(tx),
            Self::TransientRows => transient(tx),
            Self::SingleBusyCell | Self::MultipleBusyCells => busy(tx, self.busy_rows(), false),
            Self::SingleBusyCellTouch => busy(tx, 1, true),
            Self::WriteOnceDeleteOnce => once(tx),
            Self::Random => random(tx),
            Self::Append => append(tx),
        }
    }
}

fn bank(tx: &mut Tx<'_>) {
    if tx.rng().percent(30) {
        let reverse = tx.rng().percent(50);
        tx.scan("accounts", &Range { reverse, ..Range::default() });
        return;
    }
    let from = tx.rng().below(ROWS);
    let to = (from + 1 + tx.rng().below(ROWS - 1)) % ROWS;
    let amount = tx.rng().below(50) as i64;
    for (account, change) in [(from, -amount), (to, amount)] {
        let row = format!("a{account}");
        let balance = tx.get("accounts", &row, "balance").and_then(|value| number(&value)).unwrap();
        let value = tagged(balance + change, tx.tag());
        tx.put("accounts", &row, "balance", &value);
    }
}

fn write_skew(tx: &mut Tx<'_>) {
    let row = format!("p{}", tx.rng().below(ROWS / 2));
    let mut pair = [0, 0];
    if tx.rng().percent(50) {
        for (at, column) in ["a", "b"].into_iter().enumerate() {
            pair[at] = tx.get("pairs", &row, column).and_then(|value| number(&value)).unwrap();
        }
    } else {
        let range = Range { start_row: Some(row.clone()), end_row: Some(format!("{row}~")), ..Range::default() };
        for (at, (_, _, value)) in tx.scan("pairs", &range).iter().enumerate() {
            pair[at] = number(value).unwrap();
        }
    }
    if tx.rng().percent(20) {
        return;
    }
    let side = tx.rng().below(2);
    let change = if pair[0] + pair[1] >= 15 { -15 } else { 30 };
    let value = tagged(pair[side] + change, tx.tag());
    tx.put("pairs", &row, ["a", "b"][side], &value);
}

/// Takes out the row after one, and puts it in elsewhere.
fn ring(tx: &mut Tx<'_>) {
    let rows = tx.scan("ring", &Range::default());
    if tx.rng().percent(30) {
        return;
    }
    let next = |of: &str| {
        let row = rows.iter().find(|(row, ..)| row == of).unwrap();
        content(&row.2).unwrap().to_owned()
    };
    let first = format!("n{}", tx.rng().below(ROWS));
    let moved = next(&first);
    let after = next(&moved);
    let place = after.clone();
    let after_place = next(&place);
    for (row, to) in [(first, after), (place, moved.clone()), (moved, after_place)] {
        let value = tagged(to, tx.tag());
        tx.put("ring", &row, "next", &value);
    }
}

fn transient(tx: &mut Tx<'_>) {
    let row = format!("r{}", tx.rng().below(ROWS));
    let there = tx.get("transient", &row, "row").is_some();
    if tx.rng().percent(40) {
        tx.get("transient_index", &row, "row");
        tx.scan("transient_index", &Range { limit: Some(3), ..Range::default() });
        return;
    }
    for table in ["transient", "transient_index"] {
        if there {
            tx.delete(table, &row, "row");
        } else {
            let value = tx.tag().to_string();
            tx.put(table, &row, "row", &value);
        }
    }
}

fn busy(tx: &mut Tx<'_>, rows: usize, touch: bool) {
    let row = format!("b{}", tx.rng().below(rows));
    let value = tx.get("busy", &row, "counter").unwrap();
    if tx.rng().percent(30) {
        return;
    }
    if touch && tx.rng().percent(50) {
        tx.put("busy", &row, "counter", &value);
        return;
    }
    let value = tagged(number(&value).unwrap() + 1, tx.tag());
    tx.put("busy", &row, "counter", &value);
}

fn once(tx: &mut Tx<'_>) {
    let tag = tx.tag();
    let rows = tx.scan("once", &Range::default());
    if rows.is_empty() || tx.rng().percent(50) {
        tx.put("once", &format!("o{tag:06}"), "value", &format!("v{tag}"));
    } else {
        let row = tx.rng().pick(&rows).0.clone();
        tx.delete("once", &row, "value");
    }
}

fn append(tx: &mut Tx<'_>) {
    for _ in 0..1 + tx.rng().below(3) {
        // Keys retire, so that lists stay short.
        let key = format!("k{}", tx.tag() as usize / 60 * 3 + tx.rng().below(4));
        let value = tx.get("lists", &key, "list");
        if tx.rng().percent(60) {
            let mut elements = value.map_or_else(Vec::new, |value| list(&value).unwrap());
            elements.push(tx.tag() as i64);
            tx.put("lists", &key, "list", &encode_list(&elements));
        }
    }
}

fn random(tx: &mut Tx<'_>) {
    for _ in 0..1 + tx.rng().below(5) {
        let table = *tx.rng().pick(&["snapshot", "serial", "free", "touched"]);
        let row = format!("r{}", tx.rng().below(ROWS));
        let column = *tx.rng().pick(&COLUMNS);
        match tx.rng().below(10) {
            0..=2 => {
                tx.get(table, &row, column);
            }
            3 | 4 => random_scan(tx, table),
            5 => tx.delete(table, &row, column),
            6 => {
                for _ in 0..2 {
                    random_put(tx, table, &row, column);
                }
            }
            _ => random_put(tx, table, &row, column),
        }
    }
}

fn random_put(tx: &mut Tx<'_>, table: &str, row: &str, column: &str) {
    let value = match table {
        "touched" => format!("t{}", tx.rng().below(4)),
        _ => format!("v{}", tx.tag()),
    };
    tx.put(table, row, column, &value);
}

fn random_scan(tx: &mut Tx<'_>, table: &str) {
    let row = |tx: &mut Tx<'_>| {
        let row = tx.rng().below(ROWS);
        tx.rng().percent(60).then(|| format!("r{row}"))
    };
    let column = |tx: &mut Tx<'_>| {
        let column = *tx.rng().pick(&COLUMNS);
        tx.rng().percent(30).then(|| column.to_owned())
    };
    let (start_row, end_row) = (row(tx), row(tx));
    let (start_col, end_col) = (column(tx), column(tx));
    let reverse = tx.rng().percent(40);
    let limit = if tx.rng().percent(50) { Some(1 + tx.rng().below(4)) } else { None };
    tx.scan(table, &Range { start_row, end_row, start_col, end_col, reverse, limit });
}
