//! How the workloads write numbers, names and lists into values that must be unique in the run.
//!
//! A *tagged* value is `<content>#<tag>`: the content is what the workload means, the tag makes it unique, for example
//! `-5#c3.17` for the seventeenth put of client 3. The tag is what follows the last `#`; it may be anything without
//! one. An *append* value is a JSON array of integers, `[3,1,17]`; it is unique because the appended element is.

/// Puts a tag behind a content.
///
/// ```
/// assert_eq!(atlas_checker::value::tagged(-5, "c3.17"), "-5#c3.17");
/// ```
pub fn tagged(content: impl std::fmt::Display, tag: impl std::fmt::Display) -> String {
    format!("{content}#{tag}")
}

/// What stands before the tag; none if there is no tag.
pub fn content(value: &str) -> Option<&str> {
    value.rsplit_once('#').map(|(content, _)| content)
}

/// The number before the tag.
///
/// ```
/// assert_eq!(atlas_checker::value::number("-5#c3.17"), Some(-5));
/// assert_eq!(atlas_checker::value::number("-5"), None);
/// ```
pub fn number(value: &str) -> Option<i64> {
    content(value)?.parse().ok()
}

/// Writes a list for the append workload.
///
/// ```
/// assert_eq!(atlas_checker::value::encode_list(&[3, 1, 17]), "[3,1,17]");
/// ```
pub fn encode_list(elements: &[i64]) -> String {
    let elements: Vec<String> = elements.iter().map(i64::to_string).collect();
    format!("[{}]", elements.join(","))
}

/// Reads a list of the append workload.
pub fn list(value: &str) -> Option<Vec<i64>> {
    serde_json::from_str(value).ok()
}
