//! Lines of a response head under construction: found, replaced, taken out. `from` is where the
//! lines in question begin; the head is whole lines, each with its CRLF.

use std::ops::Range;

use memchr::memchr;

use crate::http1::encode;

/// One line: where it lies, CRLF included, and where its value does.
struct Line {
    whole: Range<usize>,
    value: Range<usize>,
}

/// The first line of that name, in any case, from `from` on.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "the line has been found in head, and is as long as a name and a colon"
)]
fn find(head: &[u8], from: usize, name: &[u8]) -> Option<Line> {
    let mut start = from;
    while let Some(rest) = head.get(start..)
        && let Some(lf) = memchr(b'\n', rest)
    {
        let end = start + lf + 1;
        let is_named = rest.get(..name.len()).is_some_and(|n| n.eq_ignore_ascii_case(name))
            && rest.get(name.len()) == Some(&b':');
        if is_named {
            let value_start = (start + name.len() + b": ".len()).min(end - 1);
            let value_end = if head.get(end - 2) == Some(&b'\r') { end - 2 } else { end - 1 };
            let value = value_start..value_end.max(value_start);
            return Some(Line { whole: start..end, value });
        }
        start = end;
    }
    None
}

/// The value of the first line of that name.
pub fn value<'a>(head: &'a [u8], from: usize, name: &[u8]) -> Option<&'a [u8]> {
    find(head, from, name).and_then(|line| head.get(line.value))
}

/// Takes out the lines of that name that begin before `end`; tells how many bytes they were.
#[expect(clippy::arithmetic_side_effects, reason = "lines that were in head: no more than it had")]
pub fn remove_before(head: &mut Vec<u8>, end: usize, name: &[u8]) -> usize {
    let mut removed = 0;
    while let Some(line) = find(head, 0, name).filter(|line| line.whole.start + removed < end) {
        removed += line.whole.len();
        head.drain(line.whole);
    }
    removed
}

/// Makes the first line of that name this one, or appends it, or takes it out when there is no
/// value.
pub fn set(head: &mut Vec<u8>, from: usize, name: &[u8], value: &[u8]) {
    let found = find(head, from, name);
    match found {
        Some(line) if value.is_empty() => drop(head.drain(line.whole)),
        Some(line) => {
            let mut text = Vec::new();
            encode::header(name, value, &mut text);
            head.splice(line.whole, text);
        }
        None if value.is_empty() => {}
        None => encode::header(name, value, head),
    }
}

/// Gives the first line of that name this value, which keeps its spelling, and takes the others
/// out; appends a line when there is none.
pub fn replace(head: &mut Vec<u8>, from: usize, name: &[u8], value: &[u8]) {
    let Some(line) = find(head, from, name) else { return encode::header(name, value, head) };
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "lengths in memory: isize::MAX at most, each"
    )]
    let end = line.value.start + value.len() + b"\r\n".len();
    head.splice(line.value, value.iter().copied());
    while let Some(other) = find(head, end, name) {
        head.drain(other.whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "HTTP/1.1 200 OK\r\nETag: x\r\nA: 1\r\netag: y\r\nEtag:\r\n";

    fn done(act: impl Fn(&mut Vec<u8>)) -> String {
        let mut head = HEAD.as_bytes().to_vec();
        act(&mut head);
        String::from_utf8(head).unwrap()
    }

    #[test]
    fn values() {
        assert_eq!(value(HEAD.as_bytes(), 0, b"etag"), Some(&b"x"[..]));
        assert_eq!(value(HEAD.as_bytes(), 20, b"ETAG"), Some(&b"y"[..]));
        assert_eq!(value(b"A:\r\n", 0, b"a"), Some(&b""[..]));
        assert_eq!(value(HEAD.as_bytes(), 0, b"eta"), None);
        assert_eq!(value(b"", 0, b"a"), None);
        assert_eq!(value(HEAD.as_bytes(), 999, b"a"), None);
    }

    #[test]
    fn setting() {
        assert_eq!(
            done(|head| set(head, 0, b"ETag", b"long one")),
            "HTTP/1.1 200 OK\r\nETag: long one\r\nA: 1\r\netag: y\r\nEtag:\r\n"
        );
        assert_eq!(
            done(|head| set(head, 0, b"etag", b"")),
            "HTTP/1.1 200 OK\r\nA: 1\r\netag: y\r\nEtag:\r\n"
        );
        assert_eq!(done(|head| set(head, 0, b"B", b"2")), format!("{HEAD}B: 2\r\n"));
        assert_eq!(done(|head| set(head, 0, b"B", b"")), HEAD);
    }

    #[test]
    fn replacing() {
        assert_eq!(
            done(|head| replace(head, 17, b"ETag", b"")),
            "HTTP/1.1 200 OK\r\nETag: \r\nA: 1\r\n"
        );
        assert_eq!(
            done(|head| replace(head, 27, b"ETag", b"zz")),
            "HTTP/1.1 200 OK\r\nETag: x\r\nA: 1\r\netag: zz\r\n"
        );
        assert_eq!(done(|head| replace(head, 0, b"B", b"2")), format!("{HEAD}B: 2\r\n"));
    }

    #[test]
    fn removing() {
        let mut head = HEAD.as_bytes().to_vec();
        assert_eq!(remove_before(&mut head, 26, b"etag"), 9);
        assert_eq!(head, b"HTTP/1.1 200 OK\r\nA: 1\r\netag: y\r\nEtag:\r\n");
        assert_eq!(remove_before(&mut head, 10, b"etag"), 0);
    }
}
