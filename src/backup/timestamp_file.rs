//! Files that hold one timestamp: a line of decimal digits, as operators exchange them between commands.

use super::files;
use crate::{Error, Result};
use atlas_kvs::Timestamp;
use std::path::Path;

/// Longest file read, in bytes. A timestamp has at most 19 digits; the rest is room for white space.
const LEN_MAX: u64 = 256;

/// The content of a timestamp file.
pub fn format_timestamp_line(ts: Timestamp) -> String {
    format!("{ts}\n")
}

/// Reads the content of a timestamp file: one line of decimal digits, white space around it allowed.
///
/// # Errors
/// What is wrong, as the end of a sentence.
pub fn parse_timestamp_line(text: &str) -> std::result::Result<Timestamp, String> {
    let mut lines = text.trim().lines();
    let line = lines.next().unwrap_or_default();
    if line.is_empty() {
        return Err("it is empty; one line with a timestamp is expected".to_owned());
    }
    if lines.next().is_some() {
        return Err("it has more than one line; one line with a timestamp is expected".to_owned());
    }
    // A sign is neither: `str::parse` would accept `+5`, which nobody writes by intention.
    if !line.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("'{}' is no timestamp: decimal digits only are expected", shown(line)));
    }
    line.parse()
        .ok()
        .and_then(Timestamp::new)
        .filter(|ts| ts.is_data())
        .ok_or_else(|| format!("{} is no timestamp: it must be above 0 and below {}", shown(line), Timestamp::MAX))
}

fn shown(line: &str) -> String {
    line.chars().take(40).flat_map(char::escape_default).collect()
}

/// Reads a timestamp file.
///
/// # Errors
/// [`Error::NotFound`] if there is none, [`Error::Usage`] naming the file and what is wrong with it, and
/// [`Error::Io`]. Blocks the thread for a moment.
pub fn read_timestamp_file(path: &Path) -> Result<Timestamp> {
    let unusable = |reason: String| Error::Usage(format!("{}: {reason}", path.display()));
    let content = match files::read_limited(path, LEN_MAX) {
        Ok(Some(content)) => content,
        Ok(None) => return Err(Error::NotFound { what: format!("file {}", path.display()) }),
        Err(Error::Corrupt { reason, .. }) => return Err(unusable(reason)),
        Err(error) => return Err(error),
    };
    let text = std::str::from_utf8(&content).map_err(|_| unusable("it is no text".to_owned()))?;
    parse_timestamp_line(text).map_err(unusable)
}

/// Writes a timestamp file, replacing one that is there: after a crash there is the old one or the new one. Makes
/// the directories above it where they are missing. Blocks the thread for a moment.
///
/// # Errors
/// [`Error::Io`].
pub fn write_timestamp_file(path: &Path, ts: Timestamp) -> Result<()> {
    if let Some(parent) = path.parent() {
        files::make_dirs(parent)?;
    }
    files::replace(path, format_timestamp_line(ts).as_bytes(), || Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit;
    use proptest::prelude::*;

    #[test]
    fn one_line_of_digits_is_a_timestamp() {
        for text in ["17", "17\n", " 17 \r\n", "0017"] {
            assert_eq!(parse_timestamp_line(text), Ok(Timestamp::saturating(17)), "{text:?}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "empty"),
            (" \n\n", "empty"),
            ("1\n2", "more than one line"),
            ("seventeen", "no timestamp"),
            ("-17", "no timestamp"),
            ("+17", "no timestamp"),
            ("1 7", "no timestamp"),
            ("0", "above 0"),
            ("9223372036854775807", "below"),
            ("99999999999999999999999999", "below"),
        ] {
            let error = parse_timestamp_line(text).expect_err(text);
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn files_are_read_as_they_were_written_and_bad_ones_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("new/backup.timestamp");
        assert_eq!(read_timestamp_file(&path).expect_err("it is not there").exit_code(), exit::NOT_FOUND);
        write_timestamp_file(&path, Timestamp::saturating(42)).expect("it can be written");
        assert_eq!(read_timestamp_file(&path).expect("it was written"), Timestamp::saturating(42));
        for content in [&b"1\n2\n"[..], b"\xff\xfe", &[b'1'; 1000]] {
            std::fs::write(&path, content).expect("it can be written");
            let error = read_timestamp_file(&path).expect_err("it is bad");
            assert_eq!(error.exit_code(), exit::USAGE);
            assert!(error.to_string().contains("backup.timestamp"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_timestamp_or_refused(text in ".{0,60}") {
            if let Ok(ts) = parse_timestamp_line(&text) {
                prop_assert_eq!(parse_timestamp_line(&format_timestamp_line(ts)), Ok(ts));
            }
        }
    }
}
