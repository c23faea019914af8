//! Text of a history, made fit to be shown.

/// How many characters of a name or value are shown.
const CHARACTERS_MAX: usize = 40;

/// A name as it is shown: one line of printable ASCII, not too long.
pub(crate) fn plain(name: &str) -> String {
    let mut shown: String = name.chars().take(CHARACTERS_MAX).flat_map(char::escape_default).collect();
    if name.chars().nth(CHARACTERS_MAX).is_some() {
        shown.push_str("...");
    }
    shown.replace("\\'", "'")
}

/// A value as it is shown: in quotes, or `absent`.
pub(crate) fn value(value: Option<&str>) -> String {
    value.map_or_else(|| "absent".to_owned(), |value| format!("\"{}\"", plain(value)))
}

/// A cell as it is shown.
pub(crate) fn cell(table: &str, row: &str, col: &str) -> String {
    format!("{}/{}/{}", plain(table), plain(row), plain(col))
}
