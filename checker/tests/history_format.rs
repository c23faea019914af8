//! The file format: exactly what the README says, every error with its line, and no panic whatever the bytes.

#![allow(clippy::unwrap_used, reason = "a test ends where an assumption fails")]

use atlas_checker::history::{Client, Line, ReadError, Reader, Status};
use atlas_checker::{History, Kind, Minimums, Options, check};
use proptest::prelude::*;

const HEADER: &str = r#"{"workload":"random","serializable_tables":["s"],"no_conflict_tables":[],"touch_tables":[]}"#;

fn read(lines: &[&str]) -> Result<History, ReadError> {
    History::read(lines.join("\n").as_bytes())
}

fn with_ops(ops: &str) -> String {
    format!(
        r#"{{"client":7,"status":"committed","start_ts":5,"read_ts":4,"commit_ts":6,"begin_ns":1,"end_ns":2,"ops":[{ops}]}}"#
    )
}

#[test]
fn a_line_of_each_kind_is_read() {
    let ops = [
        r#"{"op":"get","table":"t","row":"r","col":"c","value":null}"#,
        r#"{"op":"put","table":"t","row":"r","col":"c","value":"v"}"#,
        r#"{"op":"delete","table":"t","row":"r","col":"c"}"#,
        r#"{"op":"scan","table":"t","start_row":"a","end_col":"d","reverse":true,"consumed_to":["r","c"],"rows":[["r","c","v"]]}"#,
    ];
    let last = r#"{"final":{"tables":{"t":[["r","c","v"]],"empty":[]},"faults":3}}"#;
    let history = read(&[HEADER, &with_ops(&ops.join(",")), "", last]).unwrap();
    assert_eq!(history.header.serializable_tables, ["s"]);
    let transaction = &history.transactions[0];
    assert_eq!((transaction.line, transaction.client.clone()), (2, Client::Number(7)));
    assert_eq!((transaction.status, transaction.commit_ts), (Status::Committed, Some(6)));
    assert_eq!(transaction.ops.len(), 4);
    let state = history.final_state.as_ref().unwrap();
    assert_eq!((state.tables.len(), state.faults, state.read_ts), (2, Some(3), None));

    let mut written = Vec::new();
    history.write(&mut written).unwrap();
    let written = String::from_utf8(written).unwrap();
    let lines: Vec<&str> = written.lines().collect();
    assert_eq!(lines[0], HEADER);
    for op in ops {
        assert!(lines[1].contains(op), "{op} in {}", lines[1]);
    }
}

#[test]
fn notes_of_the_runner_are_ignored_beside_operations_only() {
    let noted = with_ops("").replace("\"client\"", "\"error\":\"lost\",\"client\"");
    assert!(read(&[HEADER, &noted]).is_ok());
    let misspelt = with_ops(r#"{"op":"scan","table":"t","rows":[],"end_rows":"x"}"#);
    assert!(read(&[HEADER, &misspelt]).is_err(), "a bound that is ignored makes the verdict wrong");
}

#[test]
fn every_error_names_its_line_and_its_cause() {
    let get = |rest: &str| with_ops(&format!(r#"{{"op":"get","table":"t","row":"r"{rest}}}"#));
    let cases: [(&[&str], u64, &str); 14] = [
        (&[], 1, "there is none"),
        (&["{}"], 1, "workload"),
        (&[HEADER, "{"], 2, "EOF"),
        (&[HEADER, "", "nonsense"], 3, "expected"),
        (&[HEADER, &with_ops(r#"{"op":"cas"}"#)], 2, "operation 1: unknown op \"cas\""),
        (&[HEADER, &with_ops(r#"{"table":"t"}"#)], 2, "has no \"op\""),
        (&[HEADER, &get(r#","value":null"#)], 2, "has no \"col\""),
        (&[HEADER, &get(r#","col":"c""#)], 2, "has no \"value\""),
        (&[HEADER, &get(r#","col":"c","value":"v","rows":[]"#)], 2, "a get has no field \"rows\""),
        (&[HEADER, &with_ops(r#"{"op":"put","table":"t","row":"r","col":"c","value":null}"#)], 2, "not null"),
        (&[HEADER, &with_ops(r#"{"op":"scan","table":"t"}"#)], 2, "has no \"rows\""),
        (&[HEADER, &with_ops("").replace(",\"commit_ts\":6", "")], 2, "commit_ts"),
        (&[HEADER, &with_ops("").replace("committed", "done")], 2, "unknown variant `done`"),
        (&[HEADER, r#"{"final":{"tables":{}}}"#, &with_ops("")], 3, "must be the last line"),
    ];
    for (lines, line, cause) in cases {
        let error = read(lines).expect_err("it is wrong");
        let ReadError::Line { line: at, problem } = &error else { panic!("{error}") };
        assert_eq!(*at, line, "{error}");
        assert!(problem.contains(cause), "wanted {cause:?} in {error}");
    }
}

#[test]
fn a_line_has_a_limit() {
    let long = format!("{HEADER}\n{}\n", with_ops(&r#"{"op":"delete","table":"t","row":"r","col":"c"},"#.repeat(100)));
    let mut reader = Reader::with_line_limit(long.as_bytes(), 1000).unwrap();
    assert!(reader.next_line().unwrap_err().to_string().contains("longer than 1000 bytes"));
}

#[test]
fn a_run_that_did_nothing_is_no_success() {
    let history = read(&[HEADER]).unwrap();
    let minimums = Minimums {
        committed: 1,
        committed_writers: 1,
        conflicts: 1,
        unknown: 1,
        faults: 1,
        invariants: 1,
        final_state: true,
    };
    assert!(check(&history, &Options::default()).is_clean());
    let options = Options { minimums, shown_per_kind: 9, ..Options::default() };
    let report = check(&history, &options);
    assert_eq!(report.count(Kind::Vacuous), 7, "{report}");

    let enough = [
        r#"{"client":1,"status":"committed","start_ts":1,"read_ts":1,"commit_ts":2,"begin_ns":1,"end_ns":2,"ops":[{"op":"put","table":"busy","row":"b","col":"counter","value":"0#1"}]}"#,
        r#"{"client":2,"status":"aborted","start_ts":3,"read_ts":3,"commit_ts":null,"begin_ns":1,"end_ns":2,"ops":[]}"#,
        r#"{"client":3,"status":"unknown","start_ts":4,"read_ts":4,"commit_ts":null,"begin_ns":1,"end_ns":2,"ops":[]}"#,
        r#"{"final":{"tables":{"busy":[["b","counter","0#1"]]},"faults":1}}"#,
    ];
    let header = HEADER.replace("random", "single-busy-cell");
    let history = read(&[&[&*header][..], &enough[..]].concat()).unwrap();
    let report = check(&history, &options);
    assert!(report.is_clean(), "{report}");
}

#[test]
fn an_abort_for_another_reason_is_no_conflict() {
    let aborted = r#"{"client":2,"status":"aborted","reason":"fault","start_ts":3,"read_ts":3,"commit_ts":null,"begin_ns":1,"end_ns":2,"ops":[]}"#;
    let stats = check(&read(&[HEADER, aborted]).unwrap(), &Options::default()).stats;
    assert_eq!((stats.aborted, stats.conflicts), (1, 0));
}

/// What was being written when it was read may never have committed.
#[test]
fn what_a_tentative_attempt_read_counts_if_it_committed() {
    let lost = r#"{"client":1,"status":"aborted","start_ts":4,"read_ts":4,"commit_ts":null,"begin_ns":3,"end_ns":6,"ops":[{"op":"put","table":"t","row":"r","col":"c","value":"v"}]}"#;
    let sees = r#"{"client":2,"status":"aborted","start_ts":9,"read_ts":8,"commit_ts":null,"begin_ns":5,"end_ns":7,"ops":[{"op":"get","table":"t","row":"r","col":"c","value":"v"}]}"#;
    let stands = r#"{"client":3,"status":"committed","start_ts":5,"read_ts":5,"commit_ts":7,"begin_ns":4,"end_ns":20,"ops":[{"op":"put","table":"t","row":"other","col":"c","value":"w"}]}"#;
    let earlier = r#"{"client":4,"status":"committed","start_ts":10,"read_ts":6,"commit_ts":null,"begin_ns":8,"end_ns":9,"ops":[]}"#;
    let is_clean =
        |sees: &str| check(&read(&[HEADER, lost, sees, stands, earlier]).unwrap(), &Options::default()).is_clean();
    assert!(!is_clean(sees), "it read what never was, and could see what the next one does not");
    let tentative = sees.replace(r#""read_ts""#, r#""tentative":true,"read_ts""#);
    assert!(is_clean(&tentative));
    assert!(!is_clean(&tentative.replace("aborted", "committed")), "it was told that it read right");
}

fn read_all(bytes: &[u8]) {
    if let Ok(history) = History::read(bytes) {
        // Whatever can be read can be checked, drawn, and asked about.
        let _ = check(&history, &Options::default()).to_string();
        let _ = atlas_checker::second_opinion(&history, &[]);
    }
    if let Ok(mut reader) = Reader::new(bytes) {
        while let Ok(Some(Line::Transaction(_))) = reader.next_line() {}
    }
}

/// A history with everything in it, as a quarry for damaged ones.
fn example() -> Vec<u8> {
    let ops = r#"{"op":"get","table":"t","row":"r","col":"c","value":null},{"op":"put","table":"t","row":"r","col":"c","value":"v"},{"op":"delete","table":"t","row":"s","col":"c"},{"op":"scan","table":"t","start_row":"a","reverse":true,"consumed_to":["r","c"],"rows":[["r","c","v"]]}"#;
    let unknown = with_ops(ops).replace("committed", "unknown").replace(":6", ":null").replace(":5", ":7");
    let last = r#"{"final":{"tables":{"t":[["r","c","v"]]},"read_ts":9,"faults":3}}"#;
    [HEADER, &with_ops(ops), &unknown, last].join("\n").into_bytes()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        read_all(&bytes);
        read_all(&[HEADER.as_bytes(), b"\n", &bytes].concat());
    }

    #[test]
    fn a_damaged_history_never_panics(
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut bytes = example();
        for (at, byte) in &damage {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        read_all(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        read_all(&bytes);
    }

    #[test]
    fn numbers_at_the_edge_never_panic(numbers in proptest::collection::vec(prop_oneof![0..3u64, u64::MAX - 2..=u64::MAX], 10)) {
        let text = String::from_utf8(example()).expect("it is text");
        let fields = ["start_ts", "read_ts", "commit_ts", "begin_ns", "end_ns"];
        let lines: Vec<String> = text.lines().enumerate().map(|(at, line)| {
            if !(1..3).contains(&at) {
                return line.to_owned();
            }
            let mut value: serde_json::Value = serde_json::from_str(line).expect("it is JSON");
            for (number, field) in fields.iter().enumerate() {
                if !value[*field].is_null() {
                    value[*field] = numbers[(at - 1) * 5 + number].into();
                }
            }
            value.to_string()
        }).collect();
        read_all(lines.join("\n").as_bytes());
    }
}
