//! Byte ranges: what a `Range` header asks for (RFC 9110 section 14.2), and how the parts of a file
//! are laid out in the body.

use std::ops::Range;

use smallvec::{SmallVec, smallvec};

use crate::http1::encode;

/// `max_ranges` of this and more is no limit; it is the directive's default.
pub const RANGES_UNLIMITED: u64 = i32::MAX as u64;

/// The largest position of a file, and so the largest number a header may hold.
const POSITION_MAX: u64 = i64::MAX as u64;

/// Without a limit on their number, many small ranges may not cost more than the whole file: each
/// counts as its bytes and `PART_COST`, and `PARTS_FREE` are on the house.
const PART_COST: u64 = 256;
const PARTS_FREE: u64 = 4096;

/// Most requests for ranges ask for one.
pub type Ranges = SmallVec<[Range<u64>; 1]>;

/// What part of the file is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// 200: the header does not apply, or asks for more than the file.
    Whole,
    /// 206: not empty, and no range is empty or ends behind the file.
    Ranges(Ranges),
    /// 416: not a list of ranges, or none of them is in the file.
    NotSatisfiable,
}

/// Reads a `Range` header for a file of `length` bytes.
pub fn select(value: &[u8], length: u64, ranges_max: u64) -> Selection {
    let specs = match value.split_at_checked(UNIT.len()) {
        Some((unit, specs)) if unit.eq_ignore_ascii_case(UNIT) && !specs.is_empty() => specs,
        _ => return Selection::Whole,
    };
    let mut ranges = Ranges::new();
    let mut total: u64 = 0;
    for text in specs.split(|&byte| byte == b',') {
        let Some(spec) = Spec::parse(text) else { return Selection::NotSatisfiable };
        let range = spec.within(length);
        if range.is_empty() {
            if range.start == 0 {
                // Of an empty file, everything was asked for.
                return Selection::Whole;
            }
            continue;
        }
        if ranges.len() as u64 >= ranges_max {
            return Selection::Whole;
        }
        total = total.saturating_add(range.end.saturating_sub(range.start));
        ranges.push(range);
    }
    if ranges.is_empty() {
        return Selection::NotSatisfiable;
    }
    let cost = total.saturating_add(PART_COST.saturating_mul(ranges.len() as u64));
    let is_too_dear = ranges_max >= RANGES_UNLIMITED && cost > length.saturating_add(PARTS_FREE);
    if total > length || is_too_dear { Selection::Whole } else { Selection::Ranges(ranges) }
}

const UNIT: &[u8] = b"bytes=";

/// One element of the list (RFC 9110 section 14.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spec {
    /// `a-`
    From(u64),
    /// `a-b`, the last byte included; b may be less than a.
    Between(u64, u64),
    /// `-n`
    Last(u64),
}

impl Spec {
    /// Spaces may stand around the numbers, but not between a leading `-` and its number.
    fn parse(text: &[u8]) -> Option<Self> {
        let text = skip_spaces(text);
        if let Some(suffix) = text.strip_prefix(b"-") {
            let (count, rest) = number(suffix)?;
            return skip_spaces(rest).is_empty().then_some(Spec::Last(count));
        }
        let (first, rest) = number(text)?;
        let rest = skip_spaces(skip_spaces(rest).strip_prefix(b"-")?);
        if rest.is_empty() {
            return Some(Spec::From(first));
        }
        let (last, rest) = number(rest)?;
        skip_spaces(rest).is_empty().then_some(Spec::Between(first, last))
    }

    /// What there is of it in a file of `length` bytes: `end <= length`, and empty (maybe with
    /// `start > end`) when there is nothing.
    fn within(self, length: u64) -> Range<u64> {
        match self {
            Spec::From(first) => first..length,
            Spec::Between(first, last) => first..last.saturating_add(1).min(length),
            Spec::Last(count) => length.saturating_sub(count)..length,
        }
    }
}

fn skip_spaces(text: &[u8]) -> &[u8] {
    let spaces = text.iter().take_while(|&&byte| byte == b' ').count();
    text.get(spaces..).unwrap_or_default()
}

/// The digits at the start, at least one, and what follows them.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text.split_at_checked(digits)?;
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (number <= POSITION_MAX).then_some((number, rest))
}

/// A body out of a file, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub parts: SmallVec<[Part; 1]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What stands before the bytes of the file: delimiter and header lines of one part of several,
    /// or, with no bytes behind it, the end of a multipart body.
    pub head: Vec<u8>,
    pub range: Range<u64>,
}

impl Layout {
    /// Nothing but bytes of the file.
    pub fn plain(range: Range<u64>) -> Self {
        Layout { parts: smallvec![Part { head: Vec::new(), range }] }
    }

    /// `multipart/byteranges` (RFC 9110 section 14.6) out of a file of `length` bytes.
    pub fn multipart(
        ranges: Ranges,
        length: u64,
        content_type: Option<&[u8]>,
        boundary: &str,
    ) -> Self {
        let part = |range: Range<u64>| {
            let mut head = format!("\r\n--{boundary}\r\n").into_bytes();
            if let Some(content_type) = content_type {
                encode::header(b"Content-Type", content_type, &mut head);
            }
            let content_range = content_range(&range, length);
            encode::header(b"Content-Range", content_range.as_bytes(), &mut head);
            head.extend_from_slice(b"\r\n");
            Part { head, range }
        };
        let end = Part { head: format!("\r\n--{boundary}--\r\n").into_bytes(), range: 0..0 };
        Layout { parts: ranges.into_iter().map(part).chain([end]).collect() }
    }

    /// Bytes of the whole body.
    pub fn length(&self) -> u64 {
        #[expect(
            clippy::arithmetic_side_effects,
            reason = "of a file, less than 2^63, and of what is in memory"
        )]
        let part = |part: &Part| part.head.len() as u64 + (part.range.end - part.range.start);
        self.parts.iter().map(part).sum()
    }
}

/// The value of `Content-Range` with a 206 (RFC 9110 section 14.4). The range is not empty.
pub fn content_range(range: &Range<u64>, length: u64) -> String {
    format!("bytes {}-{}/{length}", range.start, range.end.saturating_sub(1))
}

/// The value of `Content-Range` with a 416.
pub fn content_range_of_none(length: u64) -> String {
    format!("bytes */{length}")
}

/// For files of any length: what is selected is in the file, costs no more than it may, and is what
/// its own `Content-Range` asks for.
#[expect(clippy::arithmetic_side_effects, reason = "the property that is tested")]
pub fn fuzz_range(data: &[u8]) {
    let lengths = [0, 1, 10, 5000, POSITION_MAX];
    for (length, ranges_max) in lengths
        .into_iter()
        .flat_map(|length| [(length, 0), (length, 2), (length, RANGES_UNLIMITED)])
    {
        let Selection::Ranges(ranges) = select(data, length, ranges_max) else { continue };
        assert!(!ranges.is_empty() && ranges.len() as u64 <= ranges_max);
        assert!(ranges.iter().all(|range| range.start < range.end && range.end <= length));
        let total: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        assert!(total <= length);

        for range in &ranges {
            let text = content_range(range, length);
            let slash = text.find('/').unwrap_or(text.len());
            let again = text.get("bytes ".len()..slash).unwrap_or_default();
            let again = select(format!("Bytes={again}").as_bytes(), length, 1);
            assert_eq!(again, Selection::Ranges(smallvec![range.clone()]));
        }
        let heads_max = 200 * (ranges.len() as u64 + 1);
        let layout = Layout::multipart(ranges, length, Some(b"text/html"), "B");
        assert!(layout.length() <= total + heads_max);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(value: &str, length: u64) -> Selection {
        select(value.as_bytes(), length, RANGES_UNLIMITED)
    }

    fn ranges<const N: usize>(ranges: [Range<u64>; N]) -> Selection {
        Selection::Ranges(ranges.into_iter().collect())
    }

    fn one(range: Range<u64>) -> Selection {
        Selection::Ranges(smallvec![range])
    }

    #[test]
    fn one_range() {
        assert_eq!(of("bytes=0-9", 100), one(0..10));
        assert_eq!(of("BYTES=5-5", 100), one(5..6));
        assert_eq!(of("bytes=90-200", 100), one(90..100));
        assert_eq!(of("bytes=90-", 100), one(90..100));
        assert_eq!(of("bytes=-10", 100), one(90..100));
        assert_eq!(of("bytes=-1000", 100), one(0..100));
        assert_eq!(of("bytes= 1 - 2 ", 100), one(1..3));
        assert_eq!(of("bytes= -2 ", 100), one(98..100));
        assert_eq!(of("bytes=0-9223372036854775807", 100), one(0..100));
    }

    #[test]
    fn what_is_not_about_bytes_is_not_looked_at() {
        for value in ["", "bytes", "bytes=", "lines=0-1", "byte=0-1", "bytes 0-1", " bytes=0-1"] {
            assert_eq!(of(value, 100), Selection::Whole, "{value}");
        }
    }

    #[test]
    fn bad_syntax_is_not_satisfiable() {
        for list in [
            "x",
            "-",
            "a-1",
            "0",
            "0-x",
            "0--1",
            "- 1",
            "0-1,",
            ",0-1",
            "0-1,,2-3",
            "0-1;2-3",
            "0-1 2-3",
            "--1",
            "0-1,x",
            " ",
            "\t0-1",
            "+1-2",
            "9223372036854775808-",
            "0-99999999999999999999",
        ] {
            assert_eq!(of(&format!("bytes={list}"), 100), Selection::NotSatisfiable, "{list}");
        }
    }

    #[test]
    fn what_is_not_in_the_file_is_skipped() {
        for list in ["100-", "100-200", "-0", "5-4", "100-,-0"] {
            assert_eq!(of(&format!("bytes={list}"), 100), Selection::NotSatisfiable, "{list}");
        }
        assert_eq!(of("bytes=100-,0-1,-0,5-4", 100), one(0..2));
    }

    #[test]
    fn an_empty_file() {
        for list in ["0-", "0-5", "-5", "-0", "5-,0-"] {
            assert_eq!(of(&format!("bytes={list}"), 0), Selection::Whole, "{list}");
        }
        for list in ["1-", "5-9", "x"] {
            assert_eq!(of(&format!("bytes={list}"), 0), Selection::NotSatisfiable, "{list}");
        }
    }

    #[test]
    fn several_ranges_in_the_order_asked_for() {
        assert_eq!(of("bytes=0-0, -1,5-6", 100), ranges([0..1, 99..100, 5..7]));
        assert_eq!(of("bytes=0-49,50-99", 100), ranges([0..50, 50..100]));
        assert_eq!(of("bytes=0-49,50-99,0-0", 100), Selection::Whole);
    }

    #[test]
    fn too_many_ranges_get_the_whole_file() {
        let two = |value: &str| select(value.as_bytes(), 100, 2);
        assert_eq!(two("bytes=0-0,2-2"), ranges([0..1, 2..3]));
        assert_eq!(two("bytes=0-0,2-2,4-4"), Selection::Whole);
        // Those that are skipped do not count.
        assert_eq!(two("bytes=0-0,200-,2-2"), ranges([0..1, 2..3]));
        assert_eq!(select(b"bytes=0-0", 100, 0), Selection::Whole);
    }

    #[test]
    fn many_small_ranges_may_not_cost_more_than_the_file() {
        let list = |count: usize| format!("bytes=0-0{}", ",0-0".repeat(count - 1));
        // 17 * 257 = 4369 <= 1000 + 4096; 20 * 257 = 5140 is more.
        assert!(matches!(of(&list(17), 1000), Selection::Ranges(_)));
        assert_eq!(of(&list(20), 1000), Selection::Whole);
        assert!(matches!(select(list(20).as_bytes(), 1000, 20), Selection::Ranges(_)));
    }

    #[test]
    fn a_multipart_body() {
        let layout =
            Layout::multipart(smallvec![0..2, 98..100], 100, Some(b"text/html"), "00000042");
        let heads: Vec<_> =
            layout.parts.iter().map(|part| std::str::from_utf8(&part.head).unwrap()).collect();
        assert_eq!(
            heads,
            [
                "\r\n--00000042\r\nContent-Type: text/html\r\nContent-Range: bytes 0-1/100\r\n\r\n",
                "\r\n--00000042\r\nContent-Type: text/html\r\nContent-Range: bytes 98-99/100\r\n\r\n",
                "\r\n--00000042--\r\n",
            ]
        );
        assert_eq!(layout.length() as usize, heads.concat().len() + 4);

        let untyped = Layout::multipart(smallvec![0..2], 100, None, "B");
        assert_eq!(untyped.parts[0].head, b"\r\n--B\r\nContent-Range: bytes 0-1/100\r\n\r\n");
    }

    #[test]
    fn values_of_content_range() {
        assert_eq!(content_range(&(0..10), 100), "bytes 0-9/100");
        assert_eq!(content_range_of_none(100), "bytes */100");
    }

    proptest! {
        #[test]
        fn any_bytes(data: Vec<u8>) {
            fuzz_range(&[b"bytes=", data.as_slice()].concat());
            fuzz_range(&data);
        }

        #[test]
        fn likely_lists(list in "[ 0-9]{0,3}-[ 0-9]{0,3}(,[0-9]{0,2}-[0-9]{0,2}){0,30}") {
            fuzz_range(format!("bytes={list}").as_bytes());
        }

        #[test]
        fn a_range_is_clipped_to_the_file(first in 0u64..200, last in 0u64..200, length in 1u64..100) {
            let expected = if first < length && first <= last {
                one(first..(last + 1).min(length))
            } else {
                Selection::NotSatisfiable
            };
            prop_assert_eq!(of(&format!("bytes={first}-{last}"), length), expected);
        }
    }
}
