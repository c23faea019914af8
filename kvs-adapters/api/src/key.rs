//! Order-preserving encoding of byte strings into one key.
//!
//! A part is written with each `00` doubled to `00 ff`, and ends in `00 00`. Since `00 00` is smaller than any
//! continuation of a part, the order of keys is the order of their parts, part by part, whatever bytes they hold; and
//! since the end of a part can be told from its content, two different lists of parts never give the same key.
//!
//! ```text
//!   "a"      61 00 00
//!   "a\0"    61 00 ff 00 00      after "a", before "a\x01"
//!   "a\x01"  61 01 00 00
//! ```

use std::fmt;

/// Appends one part and its end mark.
pub fn push_part(key: &mut Vec<u8>, part: &[u8]) {
    push_escaped(key, part);
    key.extend_from_slice(&[0, 0]);
}

/// Appends one part without its end mark: a prefix of every part that starts with these bytes.
pub fn push_escaped(key: &mut Vec<u8>, part: &[u8]) {
    let zeros = part.iter().filter(|&&byte| byte == 0).count();
    // With the end mark that mostly follows.
    key.reserve(part.len() + zeros + 2);
    if zeros == 0 {
        return key.extend_from_slice(part);
    }
    // Byte by byte: numbers begin with several zeros, and copying what lies between them costs more.
    for &byte in part {
        key.push(byte);
        if byte == 0 {
            key.push(0xff);
        }
    }
}

/// Bytes that [`push_part`] cannot have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedKey;

impl fmt::Display for MalformedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the key is not a sequence of escaped parts")
    }
}

impl std::error::Error for MalformedKey {}

/// Takes one part off the front of `key` and returns it with what is left.
///
/// # Errors
/// [`MalformedKey`] if there is no end mark or an escape that was never written.
pub fn split_part(key: &[u8]) -> Result<(Vec<u8>, &[u8]), MalformedKey> {
    let mut part = Vec::with_capacity(key.len());
    let mut rest = key;
    loop {
        let zero = rest.iter().position(|&byte| byte == 0).ok_or(MalformedKey)?;
        part.extend_from_slice(&rest[..zero]);
        match rest.get(zero + 1) {
            Some(0) => return Ok((part, &rest[zero + 2..])),
            Some(0xff) => part.push(0),
            _ => return Err(MalformedKey),
        }
        rest = &rest[zero + 2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(parts: &[&[u8]]) -> Vec<u8> {
        let mut key = Vec::new();
        parts.iter().for_each(|part| push_part(&mut key, part));
        key
    }

    #[test]
    fn keys_sort_as_their_parts_do() {
        let parts: [&[u8]; 9] = [b"", b"\0", b"\0\0", b"\0\xff", b"\x01", b"a", b"a\0", b"a\x01", b"\xff"];
        let mut lists: Vec<[&[u8]; 2]> = Vec::new();
        for row in parts {
            for column in parts {
                lists.push([row, column]);
            }
        }
        for a in &lists {
            for b in &lists {
                assert_eq!(a.cmp(b), encode(a).cmp(&encode(b)), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn what_was_pushed_is_split_again() {
        let key = encode(&[b"a\0b", b"", b"\0\xff\0"]);
        let (first, rest) = split_part(&key).expect("the key was pushed");
        let (second, rest) = split_part(rest).expect("the key was pushed");
        let (third, rest) = split_part(rest).expect("the key was pushed");
        assert_eq!((&first[..], &second[..], &third[..]), (&b"a\0b"[..], &b""[..], &b"\0\xff\0"[..]));
        assert!(rest.is_empty());
    }

    #[test]
    fn bytes_that_were_never_pushed_are_refused() {
        for bad in [&b""[..], b"a", b"a\0", b"a\0\x01b\0\0"] {
            assert_eq!(split_part(bad), Err(MalformedKey), "{bad:?}");
        }
    }
}
