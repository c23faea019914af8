//! Timestamps as operators write them: on the command line, and in files of one decimal line.

use crate::{Error, Result};
use atlas_kvs::Timestamp;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// No file of one timestamp is longer, and what is given by mistake may be endless.
const FILE_LEN_MAX: usize = 1024;

/// A timestamp as an argument.
pub(crate) fn parse_argument(text: &str) -> std::result::Result<Timestamp, String> {
    let digits = text.strip_prefix('-').filter(|rest| !rest.is_empty()).unwrap_or(text);
    if text.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err("a timestamp is a decimal number".to_owned());
    }
    if digits.len() < text.len() {
        return Err("a timestamp is never negative".to_owned());
    }
    let too_large = || format!("a timestamp is at most {}", Timestamp::MAX);
    let ts = text.parse::<u64>().ok().and_then(Timestamp::new).ok_or_else(too_large)?;
    if ts < Timestamp::FIRST { Err(format!("timestamps start at {}", Timestamp::FIRST)) } else { Ok(ts) }
}

/// Reads a file of exactly one timestamp.
///
/// # Errors
/// [`Error::NotFound`] if there is no such file, [`Error::Usage`] if it holds anything else.
pub(crate) fn read(path: &Path) -> Result<Timestamp> {
    let place = path.display();
    let mut content = Vec::new();
    let opened = File::open(path).and_then(|file| file.take(FILE_LEN_MAX as u64 + 1).read_to_end(&mut content));
    match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Error::NotFound { what: format!("timestamp file {place}") });
        }
        Err(error) => return Err(Error::io(format!("reading the timestamp file {place}"), error)),
        Ok(_) => {}
    }
    parse_content(&content).map_err(|reason| {
        Error::Usage(format!(
            "the timestamp file {place} {reason}; it must hold one decimal line, as `atlas timestamp fetch --file` writes it"
        ))
    })
}

fn parse_content(content: &[u8]) -> std::result::Result<Timestamp, String> {
    if content.len() > FILE_LEN_MAX {
        return Err(format!("has more than {FILE_LEN_MAX} bytes"));
    }
    let text = std::str::from_utf8(content).map_err(|_| "is not text".to_owned())?;
    if text.trim().is_empty() {
        return Err("is empty".to_owned());
    }
    let lines = text.lines().count();
    if lines != 1 {
        return Err(format!("has {lines} lines"));
    }
    let line = text.trim();
    parse_argument(line).map_err(|reason| format!("holds '{}': {reason}", line.escape_debug()))
}

/// A file that a timestamp will be written to. Made before the timestamp is fetched, so that a place that can't be
/// written to is told first.
#[derive(Debug)]
pub(crate) struct Target {
    path: PathBuf,
    parent: PathBuf,
}

impl Target {
    /// Makes the directories above `path`.
    pub(crate) fn prepare(path: &Path) -> Result<Target> {
        // Something like /dev/stdout would be replaced by a file.
        if path.symlink_metadata().is_ok_and(|found| !found.is_file()) {
            return Err(Error::Usage(format!("{} is there and is no regular file", path.display())));
        }
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        std::fs::create_dir_all(&parent)
            .map_err(|error| Error::io(format!("making the directory {}", parent.display()), error))?;
        Ok(Target { path: path.to_owned(), parent })
    }

    /// Writes the one line. After a crash the file is the old one or the new one, never a part of it.
    pub(crate) fn write(self, ts: Timestamp) -> Result<()> {
        let write = || -> std::io::Result<()> {
            use std::os::unix::fs::PermissionsExt;
            let permissions = std::fs::Permissions::from_mode(0o644);
            let mut file =
                tempfile::Builder::new().prefix(".timestamp-").permissions(permissions).tempfile_in(&self.parent)?;
            writeln!(file, "{ts}")?;
            file.as_file().sync_all()?;
            file.persist(&self.path).map_err(|error| error.error)?;
            File::open(&self.parent)?.sync_all()
        };
        write().map_err(|error| Error::io(format!("writing the timestamp file {}", self.path.display()), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_decimal_line_is_read_and_nothing_else() {
        for (content, wanted) in [
            ("5", Ok(5)),
            ("5\n", Ok(5)),
            (" 5\t\r\n", Ok(5)),
            ("0005\n", Ok(5)),
            ("9223372036854775807\n", Ok(i64::MAX as u64)),
            ("", Err("is empty")),
            ("\n", Err("is empty")),
            ("5\n6\n", Err("has 2 lines")),
            ("5\n\n", Err("has 2 lines")),
            ("\n5\n", Err("has 2 lines")),
            ("abc\n", Err("holds 'abc': a timestamp is a decimal number")),
            ("-\n", Err("holds '-': a timestamp is a decimal number")),
            ("+5\n", Err("holds '+5': a timestamp is a decimal number")),
            ("-5\n", Err("holds '-5': a timestamp is never negative")),
            ("0\n", Err("holds '0': timestamps start at 1")),
            ("5 6\n", Err("holds '5 6': a timestamp is a decimal number")),
            ("9223372036854775808\n", Err("holds '9223372036854775808': a timestamp is at most 9223372036854775807")),
            (
                "99999999999999999999999\n",
                Err("holds '99999999999999999999999': a timestamp is at most 9223372036854775807"),
            ),
        ] {
            let result = parse_content(content.as_bytes()).map(Timestamp::get);
            assert_eq!(result, wanted.map_err(str::to_owned), "{content:?}");
        }
        assert_eq!(parse_content(b"\xff\xfe"), Err("is not text".to_owned()));
        assert_eq!(parse_content(&[b'1'; 2000]), Err("has more than 1024 bytes".to_owned()));
    }

    #[test]
    fn a_missing_file_is_not_found_and_a_wrong_one_is_wrong_usage() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("deep/er/x.timestamp");
        assert_eq!(read(&path).expect_err("it is missing").exit_code(), crate::exit::NOT_FOUND);
        Target::prepare(&path).expect("parents are made").write(Timestamp::FIRST).expect("it is written");
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "1\n");
        assert_eq!(read(&path).expect("it reads back"), Timestamp::FIRST);
        let second = Timestamp::saturating(7);
        Target::prepare(&path).expect("it may be there").write(second).expect("it is replaced");
        assert_eq!(read(&path).expect("it reads back"), second);
        assert_eq!(std::fs::read_dir(dir.path().join("deep/er")).expect("a directory").count(), 1);
        std::fs::write(&path, "1\n2\n").expect("two lines");
        assert_eq!(read(&path).expect_err("two lines").exit_code(), crate::exit::USAGE);
        assert_eq!(Target::prepare(dir.path()).expect_err("a directory").exit_code(), crate::exit::USAGE);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(content in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let _ = parse_content(&content);
        }

        #[test]
        fn what_is_written_is_read(number in 1..=i64::MAX as u64) {
            let ts = Timestamp::saturating(number);
            proptest::prop_assert_eq!(parse_content(format!("{ts}\n").as_bytes()), Ok(ts));
        }
    }
}
