//! Results on standard output, everything else on standard error.
//!
//! A command answers with a [`Reply`], which holds the result in all three forms, or streams cells. In JSON there is
//! exactly one document, also on failure and also when a stream breaks off: `ok` and `error` are written last, because
//! only then is it known which it is.

use super::args::Format;
use crate::{Error, Result, exit};
use comfy_table::{ColumnConstraint, Table, Width, presets};
use serde_json::{Map, Value, json};
use std::io::{ErrorKind, Write};

const SCHEMA: &str = "atlas.cli/v1";

/// How many cells of a scan are lined up with each other in a table.
const PAGE_ROWS: usize = 200;

/// A result in every form.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    /// For programs.
    pub(crate) data: Value,
    /// For scripts: lines without a last line break. Empty for nothing at all.
    pub(crate) plain: String,
    /// For people: the same.
    pub(crate) table: String,
    /// What people are told on standard error where standard output is for scripts.
    pub(crate) note: Option<String>,
    /// What somebody should know though the command did its work.
    pub(crate) warnings: Vec<String>,
    /// Set if the command did its work and the answer is bad news.
    pub(crate) verdict: Option<Verdict>,
}

/// Bad news that is not an error of the command itself.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) exit_code: u8,
}

impl Reply {
    pub(crate) fn new(data: Value, plain: impl Into<String>, table: impl Into<String>) -> Reply {
        Reply { data, plain: plain.into(), table: table.into(), ..Reply::default() }
    }

    /// With its sentence for people also on standard error, in plain form.
    pub(crate) fn noted(self) -> Reply {
        Reply { note: Some(self.table.clone()), ..self }
    }

    /// A reply that is complete as it was streamed.
    pub(crate) fn streamed() -> Reply {
        Reply::default()
    }
}

/// An error, with what was done before it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// What was done, for programs.
    pub(crate) details: Option<Value>,
    /// The same for people.
    pub(crate) note: Option<String>,
}

/// How a command ended.
pub(crate) type Outcome = std::result::Result<Reply, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { error, details: None, note: None }
    }
}

/// Standard output of one command.
pub(crate) struct Output {
    format: Format,
    command: &'static str,
    out: Box<dyn Write + Send>,
    stream: Option<CellStream>,
    broken_pipe: bool,
    is_done: bool,
}

#[derive(Default)]
struct CellStream {
    count: u64,
    page: Vec<[String; 3]>,
    widths: Option<Vec<u16>>,
}

impl Output {
    pub(crate) fn new(format: Format, command: &'static str, out: Box<dyn Write + Send>) -> Output {
        Output { format, command, out, stream: None, broken_pipe: false, is_done: false }
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// True if whoever read us has enough. That is no failure of ours.
    pub(crate) fn pipe_is_broken(&self) -> bool {
        self.broken_pipe
    }

    fn write(&mut self, text: &str) -> Result<()> {
        let result = self.out.write_all(text.as_bytes());
        self.check(result)
    }

    pub(crate) fn flush(&mut self) -> Result<()> {
        let result = self.out.flush();
        self.check(result)
    }

    fn check(&mut self, result: std::io::Result<()>) -> Result<()> {
        result.map_err(|error| {
            self.broken_pipe |= error.kind() == ErrorKind::BrokenPipe;
            Error::io("writing to standard output", error)
        })
    }

    fn write_lines(&mut self, text: &str) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.write(text.strip_suffix('\n').unwrap_or(text))?;
        self.write("\n")
    }

    /// Prints a result, or ends what was streamed.
    pub(crate) fn reply(&mut self, reply: &Reply) -> Result<()> {
        if self.is_done {
            return Ok(());
        }
        if self.stream.is_some() {
            self.end_stream(None)?;
        } else {
            match self.format {
                Format::Table => self.write_lines(&reply.table)?,
                Format::Plain => self.write_lines(&reply.plain)?,
                Format::Json => self.write_envelope(reply)?,
            }
        }
        self.is_done = true;
        self.flush()
    }

    fn write_envelope(&mut self, reply: &Reply) -> Result<()> {
        let mut envelope = Map::new();
        envelope.insert("schema".to_owned(), SCHEMA.into());
        envelope.insert("command".to_owned(), self.command.into());
        envelope.insert("ok".to_owned(), reply.verdict.is_none().into());
        envelope.insert("data".to_owned(), reply.data.clone());
        if let Some(verdict) = &reply.verdict {
            let error = json!({"code": verdict.code, "message": verdict.message, "hint": null, "retryable": false});
            envelope.insert("error".to_owned(), error);
        }
        envelope.insert("warnings".to_owned(), reply.warnings.clone().into());
        self.write(&format!("{}\n", Value::Object(envelope)))
    }

    /// In JSON, prints the failure; in other forms, only ends what was streamed.
    pub(crate) fn failure(&mut self, failure: &Failure) -> Result<()> {
        if self.is_done {
            return Ok(());
        }
        let error = error_object(failure);
        if self.stream.is_some() {
            self.end_stream(Some(error))?;
        } else if self.format == Format::Json {
            let envelope =
                json!({"schema": SCHEMA, "command": self.command, "ok": false, "error": error, "warnings": []});
            self.write(&format!("{envelope}\n"))?;
        }
        self.is_done = true;
        self.flush()
    }

    /// Starts a stream of cells. `head` are the members of `data` in front of them.
    pub(crate) fn begin_cells(&mut self, head: &Map<String, Value>) -> Result<()> {
        self.stream = Some(CellStream::default());
        if self.format != Format::Json {
            return Ok(());
        }
        let mut head = Value::Object(head.clone()).to_string();
        head.pop();
        let comma = if head.len() > 1 { "," } else { "" };
        let command = Value::from(self.command);
        self.write(&format!(r#"{{"schema":"{SCHEMA}","command":{command},"data":{head}{comma}"cells":["#))
    }

    /// Prints one cell.
    pub(crate) fn cell(&mut self, row: &str, column: &str, value: &str) -> Result<()> {
        let stream = self.stream.as_mut().expect("begin_cells comes first");
        stream.count += 1;
        match self.format {
            Format::Plain => {
                let line = format!("{}\t{}\t{}\n", one_line(row), one_line(column), one_line(value));
                self.write(&line)
            }
            Format::Json => {
                let comma = if stream.count > 1 { "," } else { "" };
                let cell = json!({"row": row, "column": column, "value": value});
                self.write(&format!("{comma}{cell}"))
            }
            Format::Table => {
                stream.page.push([row.to_owned(), column.to_owned(), value.to_owned()]);
                if stream.page.len() < PAGE_ROWS { Ok(()) } else { self.write_page() }
            }
        }
    }

    fn write_page(&mut self) -> Result<()> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let mut table = bare_table();
        if stream.widths.is_none() {
            table.set_header(["ROW", "COLUMN", "VALUE"]);
        }
        table.add_rows(std::mem::take(&mut stream.page));
        if let Some(widths) = &stream.widths {
            table.set_constraints(widths.iter().map(|width| ColumnConstraint::LowerBoundary(Width::Fixed(*width))));
        } else {
            // Later pages line up with the first one as far as they can.
            stream.widths = Some(table.column_max_content_widths().into_iter().map(|width| width + 2).collect());
        }
        let text = finish_table(&mut table);
        self.write_lines(&text)
    }

    fn end_stream(&mut self, error: Option<Value>) -> Result<()> {
        let count = self.stream.as_ref().map_or(0, |stream| stream.count);
        match self.format {
            Format::Plain => Ok(()),
            Format::Table => {
                if count == 0 {
                    return if error.is_none() { self.write_lines("(no cells)") } else { Ok(()) };
                }
                if self.stream.as_ref().is_some_and(|stream| !stream.page.is_empty()) {
                    self.write_page()
                } else {
                    Ok(())
                }
            }
            Format::Json => match error {
                None => self.write(&format!("],\"count\":{count}}},\"ok\":true,\"warnings\":[]}}\n")),
                Some(error) => {
                    self.write(&format!("],\"count\":{count}}},\"ok\":false,\"error\":{error},\"warnings\":[]}}\n"))
                }
            },
        }
    }
}

fn error_object(failure: &Failure) -> Value {
    let error = &failure.error;
    let mut object = json!({
        "code": error.code(),
        "message": error.to_string(),
        "hint": error.hint(),
        "retryable": error.is_retriable(),
    });
    if let (Some(details), Value::Object(object)) = (&failure.details, &mut object) {
        object.insert("details".to_owned(), details.clone());
    }
    object
}

/// The envelope of a command line that could not even be parsed.
pub(crate) fn usage_envelope(command: &str, message: &str) -> String {
    let error = json!({"code": "USAGE", "message": message, "hint": null, "retryable": false});
    debug_assert_eq!(Error::Usage(String::new()).exit_code(), exit::USAGE);
    json!({"schema": SCHEMA, "command": command, "ok": false, "error": error, "warnings": []}).to_string()
}

/// Lines of columns under a header.
pub(crate) fn columns<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = bare_table();
    table.set_header(header);
    table.add_rows(rows);
    finish_table(&mut table)
}

/// A name and a value a line.
pub(crate) fn pairs(rows: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut table = bare_table();
    table.add_rows(rows.into_iter().map(|(name, value)| [name.to_owned(), value]));
    finish_table(&mut table)
}

fn bare_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

fn finish_table(table: &mut Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Bytes as people can read them on a terminal, which control characters must not reach.
pub(crate) fn visible(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        Ok(text) => {
            let mut result = String::with_capacity(text.len());
            for c in text.chars() {
                if c.is_control() { result.extend(c.escape_default()) } else { result.push(c) }
            }
            result
        }
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

/// A text as part of a line: what would end the line or the field is written with a backslash.
fn one_line(text: &str) -> std::borrow::Cow<'_, str> {
    if !text.contains(['\t', '\n', '\r', '\\']) {
        return text.into();
    }
    let mut line = String::with_capacity(text.len() + text.len() / 8);
    let mut rest = text;
    while let Some(at) = rest.find(['\t', '\n', '\r', '\\']) {
        line.push_str(&rest[..at]);
        line.push_str(match rest.as_bytes()[at] {
            b'\t' => "\\t",
            b'\n' => "\\n",
            b'\r' => "\\r",
            _ => "\\\\",
        });
        rest = &rest[at + 1..];
    }
    line.push_str(rest);
    line.into()
}

/// A number as people read it.
pub(crate) fn count(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}

/// A number of bytes as people read it.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// A duration as people read it.
pub(crate) fn millis(millis: u64) -> String {
    if millis < 10_000 { format!("{millis} ms") } else { format!("{:.1} s", millis as f64 / 1000.0) }
}

/// How long ago something was, as people read it: the larger it is, the less exactly.
pub(crate) fn age(age_ms: u64) -> String {
    match age_ms / 1000 {
        0..120 => millis(age_ms),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn printed(format: Format, print: impl FnOnce(&mut Output)) -> String {
        let page = Page::default();
        print(&mut Output::new(format, "kv scan", Box::new(page.clone())));
        String::from_utf8(page.0.lock().clone()).expect("output is text")
    }

    fn broken() -> Failure {
        Failure::from(Error::NotFound { what: "table 't'".to_owned() })
    }

    #[test]
    fn each_form_prints_its_part_of_a_reply() {
        let reply = || Reply::new(json!({"timestamp": 5}), "5", "The fresh timestamp is: 5");
        let print = |format| printed(format, |output| output.reply(&reply()).expect("it prints"));
        assert_eq!(print(Format::Plain), "5\n");
        assert_eq!(print(Format::Table), "The fresh timestamp is: 5\n");
        let envelope: Value = serde_json::from_str(&print(Format::Json)).expect("one document");
        let wanted = json!({"schema": "atlas.cli/v1", "command": "kv scan", "ok": true, "data": {"timestamp": 5}, "warnings": []});
        assert_eq!(envelope, wanted);
    }

    #[test]
    fn failures_are_printed_in_json_only() {
        let print = |format| printed(format, |output| output.failure(&broken()).expect("it prints"));
        assert_eq!(print(Format::Plain), "");
        assert_eq!(print(Format::Table), "");
        let envelope: Value = serde_json::from_str(&print(Format::Json)).expect("one document");
        assert_eq!(envelope["ok"], false);
        assert_eq!(envelope["error"]["code"], "NOT_FOUND");
        assert_eq!(envelope["error"]["retryable"], false);
    }

    #[test]
    fn a_stream_is_one_document_however_it_ends() {
        for (cells, fails) in [(0, false), (1, false), (3, false), (0, true), (2, true)] {
            let text = printed(Format::Json, |output| {
                let head = Map::from_iter([("table".to_owned(), Value::from("t"))]);
                output.begin_cells(&head).expect("it prints");
                for index in 0..cells {
                    output.cell(&format!("r{index}"), "c\"", "v\n").expect("it prints");
                }
                if fails {
                    output.failure(&broken()).expect("it prints");
                } else {
                    output.reply(&Reply::streamed()).expect("it prints");
                }
            });
            let envelope: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert_eq!(envelope["ok"], !fails);
            assert_eq!(envelope["data"]["count"], cells);
            assert_eq!(envelope["data"]["cells"].as_array().map(Vec::len), Some(cells));
            assert_eq!(envelope.get("error").is_some(), fails);
        }
    }

    #[test]
    fn plain_cells_are_a_line_each_whatever_they_hold() {
        let text = printed(Format::Plain, |output| {
            output.begin_cells(&Map::new()).expect("it prints");
            output.cell("r", "c", "a\tb\nc\\").expect("it prints");
            output.reply(&Reply::streamed()).expect("it prints");
        });
        assert_eq!(text, "r\tc\ta\\tb\\nc\\\\\n");
    }

    #[test]
    fn pages_of_a_table_line_up() {
        let text = printed(Format::Table, |output| {
            output.begin_cells(&Map::new()).expect("it prints");
            for index in 0..=PAGE_ROWS {
                output.cell(&format!("row{index}"), "c", "v").expect("it prints");
            }
            output.reply(&Reply::streamed()).expect("it prints");
        });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), PAGE_ROWS + 2);
        assert_eq!(lines[0], "ROW     COLUMN  VALUE");
        assert_eq!(lines[1], "row0    c       v");
        assert_eq!(lines[PAGE_ROWS + 1], "row200  c       v");
    }

    #[test]
    fn an_age_is_told_in_one_number() {
        let told = |seconds: u64| age(seconds * 1000);
        assert_eq!([age(7), told(119), told(120), told(7_199)], ["7 ms", "119.0 s", "2 min", "119 min"]);
        assert_eq!([told(7_200), told(172_799), told(172_800)], ["2 h", "47 h", "2 days"]);
    }

    #[test]
    fn control_characters_never_reach_a_terminal() {
        assert_eq!(visible(b"plain \xc3\xa4"), "plain ä");
        assert_eq!(visible(b"a\x1b[31m\n"), "a\\u{1b}[31m\\n");
        assert_eq!(visible(b"\xff\x00a"), "\\xff\\x00a");
    }
}
