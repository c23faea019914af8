//! Finds the line of a key in a YAML text.
//!
//! Values that were merged from several places no longer know where they came from. When one of them is wrong, the
//! text is read once more along the path of the key, and the parser's own position at that key is the answer. It works
//! for every notation that YAML has, which a search by text would not.

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::fmt;

/// The line, counted from 1, of the key at the end of `path`; nothing if there is no such key.
pub(super) fn line_of(text: &str, path: &[String]) -> Option<usize> {
    let (key, blocks) = path.split_last()?;
    let error = At { key, blocks }.deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
    error.to_string().contains(FOUND).then(|| error.location().map(|location| location.line())).flatten()
}

/// What the reading ends with when it stands at the key; any other end means that the key is not there.
const FOUND: &str = "the key is here";

struct At<'a> {
    key: &'a str,
    blocks: &'a [String],
}

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for At<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a block of keys")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (wanted, is_last) = self.blocks.first().map_or((self.key, true), |block| (block.as_str(), false));
        while let Some(is_wanted) = map.next_key_seed(Key { wanted, is_last })? {
            if is_wanted {
                return map.next_value_seed(At { key: self.key, blocks: &self.blocks[1..] });
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

struct Key<'a> {
    wanted: &'a str,
    is_last: bool,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        match key == self.wanted {
            true if self.is_last => Err(E::custom(FOUND)),
            is_wanted => Ok(is_wanted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, path: &str) -> Option<usize> {
        line_of(text, &path.split('.').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn finds_the_line_of_a_key_in_any_notation() {
        let text = "# comment\natlasdb:\n  namespace: a\n  server: {http: off,\n    grpc: off}\nother: 1\n";
        assert_eq!(line(text, "atlasdb"), Some(2));
        assert_eq!(line(text, "atlasdb.namespace"), Some(3));
        assert_eq!(line(text, "atlasdb.server.http"), Some(4));
        assert_eq!(line(text, "atlasdb.server.grpc"), Some(5));
        assert_eq!(line(text, "other"), Some(6));
        assert_eq!(line(text, "atlasdb.missing"), None);
        assert_eq!(line(text, "other.below"), None);
        assert_eq!(line("", "x"), None);
    }
}
