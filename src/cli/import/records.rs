//! Rows out of CSV and JSON lines.

use super::ImportFormat;
use crate::Error;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;
use std::io::{BufRead, Read};

/// No line of JSON is longer: a value of the greatest length, written with escapes, still fits.
const LINE_LEN_MAX: u64 = 512 << 20;

/// One row.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) row: String,
    pub(super) columns: Vec<(String, String)>,
}

/// Why a file can't be imported, and where.
#[derive(Debug)]
pub(super) struct Malformed {
    line: Option<u64>,
    reason: Reason,
}

#[derive(Debug)]
enum Reason {
    Content(String),
    Io(std::io::Error),
}

impl Malformed {
    fn at(line: u64, reason: impl Into<String>) -> Malformed {
        Malformed { line: Some(line), reason: Reason::Content(reason.into()) }
    }

    pub(super) fn in_file(self, name: &str) -> Error {
        match (self.line, self.reason) {
            (Some(line), Reason::Content(reason)) => Error::Usage(format!("{name}, line {line}: {reason}")),
            (None, Reason::Content(reason)) => Error::Usage(format!("{name}: {reason}")),
            (_, Reason::Io(error)) => Error::io(format!("reading {name}"), error),
        }
    }
}

impl From<std::io::Error> for Malformed {
    fn from(error: std::io::Error) -> Malformed {
        Malformed { line: None, reason: Reason::Io(error) }
    }
}

type Result<T> = std::result::Result<T, Malformed>;

/// The rows of a file, one after the other.
pub(super) enum Records {
    Csv { reader: csv::Reader<Box<dyn BufRead + Send>>, names: Vec<String>, key: usize },
    Jsonl { reader: Box<dyn BufRead + Send>, line: u64, key: Option<String> },
}

impl Records {
    /// Reads the header, where there is one.
    pub(super) fn open(
        format: ImportFormat,
        file: Box<dyn BufRead + Send>,
        row_key: Option<String>,
    ) -> Result<Records> {
        if format == ImportFormat::Jsonl {
            return Ok(Records::Jsonl { reader: file, line: 0, key: row_key });
        }
        let mut reader = csv::ReaderBuilder::new().has_headers(true).from_reader(file);
        let names: Vec<String> = reader.headers().map_err(csv_error)?.iter().map(str::to_owned).collect();
        if names.is_empty() {
            return Err(Malformed::at(1, "there is no header line that names the fields"));
        }
        if let Some(twice) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
            return Err(Malformed::at(1, format!("the header names the field '{}' twice", twice.1)));
        }
        let key = match row_key {
            None => 0,
            Some(wanted) => names.iter().position(|name| *name == wanted).ok_or_else(|| {
                Malformed::at(
                    1,
                    format!("there is no field '{wanted}' (--row-key); the fields are {}", names.join(", ")),
                )
            })?,
        };
        Ok(Records::Csv { reader, names, key })
    }

    /// The next row, or nothing at the end.
    pub(super) fn next_record(&mut self) -> Result<Option<Record>> {
        match self {
            Records::Csv { reader, names, key } => next_of_csv(reader, names, *key),
            Records::Jsonl { reader, line, key } => next_of_jsonl(&mut **reader, line, key),
        }
    }
}

fn next_of_csv(
    reader: &mut csv::Reader<Box<dyn BufRead + Send>>,
    names: &[String],
    key: usize,
) -> Result<Option<Record>> {
    let mut fields = csv::StringRecord::new();
    if !reader.read_record(&mut fields).map_err(csv_error)? {
        return Ok(None);
    }
    let line = fields.position().map_or(0, csv::Position::line);
    let row = fields.get(key).unwrap_or_default();
    if row.is_empty() {
        return Err(Malformed::at(line, format!("the field '{}' names the row and is empty", names[key])));
    }
    let columns = names.iter().zip(&fields).enumerate().filter(|(at, _)| *at != key);
    let columns = columns.map(|(_, (name, value))| (name.clone(), value.to_owned())).collect();
    Ok(Some(Record { row: row.to_owned(), columns }))
}

fn csv_error(error: csv::Error) -> Malformed {
    let line = error.position().map(csv::Position::line);
    let reason = match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("there are {len} fields; the header has {expected_len}")
        }
        csv::ErrorKind::Utf8 { err, .. } => format!("field {} is not UTF-8 text", err.field() + 1),
        _ => error.to_string(),
    };
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error.into(),
        _ => Malformed { line, reason: Reason::Content(reason) },
    }
}

fn next_of_jsonl(reader: &mut dyn BufRead, line: &mut u64, key: &mut Option<String>) -> Result<Option<Record>> {
    let text = loop {
        let mut bytes = Vec::new();
        if reader.take(LINE_LEN_MAX).read_until(b'\n', &mut bytes)? == 0 {
            return Ok(None);
        }
        *line += 1;
        if bytes.len() as u64 == LINE_LEN_MAX {
            return Err(Malformed::at(*line, format!("the line has more than {LINE_LEN_MAX} bytes")));
        }
        let text = String::from_utf8(bytes).map_err(|_| Malformed::at(*line, "the line is not UTF-8 text"))?;
        let text = text.strip_prefix('\u{feff}').filter(|_| *line == 1).map_or(text.clone(), str::to_owned);
        if !text.trim().is_empty() {
            break text;
        }
    };
    parse_object(&text, key).map(Some).map_err(|reason| Malformed::at(*line, reason))
}

fn parse_object(text: &str, key: &mut Option<String>) -> std::result::Result<Record, String> {
    let Fields(fields) = serde_json::from_str(text).map_err(|error| {
        // Its own line number is always 1 here.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or(&message).to_owned();
        format!("this is not a JSON object: {message}, at character {}", error.column())
    })?;
    if let Some((at, _)) =
        fields.iter().enumerate().find(|(at, (name, _))| fields[..*at].iter().any(|(n, _)| n == name))
    {
        return Err(format!("the object has the field '{}' twice", fields[at].0));
    }
    // The first field of the first object names the rows of all of them.
    let key = match key {
        Some(key) => key,
        None => key.insert(fields.first().ok_or("the object has no fields")?.0.clone()),
    };
    let mut row = None;
    let mut columns = Vec::new();
    for (name, value) in fields {
        let value = text_of(&value)?;
        if name == *key {
            row = value;
        } else {
            columns.extend(value.map(|value| (name, value)));
        }
    }
    let row = row.ok_or_else(|| format!("the field '{key}', which names the row, is missing"))?;
    if row.is_empty() {
        return Err(format!("the field '{key}' names the row and is empty"));
    }
    Ok(Record { row, columns })
}

/// A string without its quotes, everything else as it is written (numbers lose nothing), and nothing for `null`.
fn text_of(value: &RawValue) -> std::result::Result<Option<String>, String> {
    match value.get() {
        "null" => Ok(None),
        text if text.starts_with('"') => serde_json::from_str(text).map(Some).map_err(|error| error.to_string()),
        text => Ok(Some(text.to_owned())),
    }
}

/// The fields of an object in their order, which a map would lose.
struct Fields(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Fields, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn read(format: ImportFormat, text: &[u8], row_key: Option<&str>) -> std::result::Result<Vec<Record>, String> {
        let file = Box::new(Cursor::new(text.to_vec()));
        let told = |error: Malformed| error.in_file("f").to_string();
        let mut records = Records::open(format, file, row_key.map(str::to_owned)).map_err(told)?;
        let mut rows = Vec::new();
        while let Some(record) = records.next_record().map_err(told)? {
            rows.push(record);
        }
        Ok(rows)
    }

    fn record(row: &str, columns: &[(&str, &str)]) -> Record {
        let columns = columns.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Record { row: row.to_owned(), columns }
    }

    #[test]
    fn csv_rows_are_named_by_the_first_field_or_the_one_asked_for() {
        let text = b"id,name,note\n1,ann,\"a, b\nc\"\n2,bob,\n";
        let rows = read(ImportFormat::Csv, text, None).expect("it is well formed");
        let wanted =
            [record("1", &[("name", "ann"), ("note", "a, b\nc")]), record("2", &[("name", "bob"), ("note", "")])];
        assert_eq!(rows, wanted);
        let rows =
            read(ImportFormat::Csv, b"\xef\xbb\xbfid,name\r\n1,ann\r\n", Some("name")).expect("it is well formed");
        assert_eq!(rows, [record("ann", &[("id", "1")])]);
        assert_eq!(read(ImportFormat::Csv, b"id\n", None), Ok(vec![]));
    }

    #[test]
    fn malformed_csv_is_told_by_its_line() {
        for (text, wanted) in [
            (&b""[..], "f, line 1: there is no header line that names the fields"),
            (b"a,b\n1,2\n1\n", "f, line 3: there are 1 fields; the header has 2"),
            (b"a,b\n1,\"x\ny\"\n1,2,3\n", "f, line 4: there are 3 fields; the header has 2"),
            (b"a,b\n,2\n", "f, line 2: the field 'a' names the row and is empty"),
            (b"a,b\n1,\xff\n", "f, line 2: field 2 is not UTF-8 text"),
            (b"a,a\n1,2\n", "f, line 1: the header names the field 'a' twice"),
        ] {
            assert_eq!(read(ImportFormat::Csv, text, None), Err(wanted.to_owned()), "{text:?}");
        }
        let wanted = Err("f, line 1: there is no field 'x' (--row-key); the fields are a, b".to_owned());
        assert_eq!(read(ImportFormat::Csv, b"a,b\n1,2\n", Some("x")), wanted);
    }

    #[test]
    fn json_values_are_kept_as_they_are_written() {
        let text = b"{\"z\":\"r\\u0031\",\"a\":12345678901234567890123.50,\"b\":null,\"c\":{\"x\": [1]},\"d\":true}\n\n{\"a\":\"\",\"z\":2}";
        let rows = read(ImportFormat::Jsonl, text, None).expect("it is well formed");
        let first = record("r1", &[("a", "12345678901234567890123.50"), ("c", "{\"x\": [1]}"), ("d", "true")]);
        assert_eq!(rows, [first, record("2", &[("a", "")])]);
    }

    #[test]
    fn malformed_json_is_told_by_its_line() {
        for (text, wanted) in [
            (&b"{\"a\":1}\n{\"b\":1}\n"[..], "f, line 2: the field 'a', which names the row, is missing"),
            (b"{\"a\":1}\n\n[1]\n", "f, line 3: this is not a JSON object"),
            (b"{\"a\":1} x\n", "f, line 1: this is not a JSON object"),
            (b"{\"a\":1\n", "f, line 1: this is not a JSON object"),
            (b"{}\n", "f, line 1: the object has no fields"),
            (b"{\"a\":1,\"a\":2}\n", "f, line 1: the object has the field 'a' twice"),
            (b"{\"a\":\"\"}\n", "f, line 1: the field 'a' names the row and is empty"),
            (b"{\"a\":null}\n", "f, line 1: the field 'a', which names the row, is missing"),
            (b"\xff\n", "f, line 1: the line is not UTF-8 text"),
        ] {
            let message = read(ImportFormat::Jsonl, text, None).expect_err(wanted);
            assert!(message.starts_with(wanted), "{text:?} gave {message:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(text in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = read(ImportFormat::Csv, &text, None);
            let _ = read(ImportFormat::Jsonl, &text, None);
        }

        #[test]
        fn csv_reads_back_what_was_written(rows in proptest::collection::vec(("[a-z]{1,5}", "\\PC{0,20}"), 0..10)) {
            let mut writer = csv::Writer::from_writer(Vec::new());
            writer.write_record(["row", "column"]).expect("in memory");
            for (row, value) in &rows {
                writer.write_record([row, value]).expect("in memory");
            }
            let text = writer.into_inner().expect("in memory");
            let wanted: Vec<Record> = rows.iter().map(|(row, value)| record(row, &[("column", value)])).collect();
            proptest::prop_assert_eq!(read(ImportFormat::Csv, &text, None), Ok(wanted));
        }
    }
}
