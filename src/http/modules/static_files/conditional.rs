//! Conditional requests: whether the client's copy of a file is still the current one (RFC 9110
//! section 13). Header values and validators in, verdict out.

use crate::http::modules::core::IfModifiedSince;
use crate::http1::date;

/// What a client can tell the state of a file by (RFC 9110 section 8.8).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Validators<'a> {
    /// Seconds since 1970; `None` when the time cannot be said in a header.
    pub last_modified: Option<u64>,
    /// With its quotes; `None` with `etag off`.
    pub etag: Option<&'a [u8]>,
}

/// The values of the request's `If-…` headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conditions<'a> {
    pub matches: Option<&'a [u8]>,
    pub none_match: Option<&'a [u8]>,
    pub modified_since: Option<&'a [u8]>,
    pub unmodified_since: Option<&'a [u8]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The response goes its way.
    Proceed,
    /// 304: the client has what it would get.
    NotModified,
    /// 412: the client did not want what it would get.
    PreconditionFailed,
}

/// Looks at all conditions in nginx's order. Unlike RFC 9110 section 13.2.2, where the entity tag
/// settles it when both are there, 304 takes a "not modified" of each header that is present.
pub fn evaluate(
    conditions: &Conditions<'_>,
    current: &Validators<'_>,
    if_modified_since: IfModifiedSince,
) -> Verdict {
    let Conditions { matches, none_match, modified_since, unmodified_since } = *conditions;

    let is_failed = unmodified_since.is_some_and(|date| !is_unmodified_since(date, current))
        || matches.is_some_and(|tags| !has_tag(tags, current.etag, Comparison::Strong));
    if is_failed {
        return Verdict::PreconditionFailed;
    }
    let is_modified = modified_since
        .is_some_and(|date| is_modified_since(date, current, if_modified_since))
        || none_match.is_some_and(|tags| !has_tag(tags, current.etag, Comparison::Weak));
    let is_asked = modified_since.is_some() || none_match.is_some();
    if is_asked && !is_modified { Verdict::NotModified } else { Verdict::Proceed }
}

/// Whether `If-Range` lets the ranges stand (RFC 9110 section 13.1.5): they are parts of the same
/// state of the file that the client has other parts of.
pub fn is_range_allowed(if_range: &[u8], current: &Validators<'_>) -> bool {
    if if_range.len() >= 2 && if_range.ends_with(b"\"") {
        return current.etag == Some(if_range);
    }
    current.last_modified.is_some() && date::parse(if_range) == current.last_modified
}

/// A date that cannot be read counts as older than any file.
fn is_unmodified_since(date: &[u8], current: &Validators<'_>) -> bool {
    match (date::parse(date), current.last_modified) {
        (Some(since), Some(modified)) => modified <= since,
        _ => false,
    }
}

fn is_modified_since(date: &[u8], current: &Validators<'_>, mode: IfModifiedSince) -> bool {
    match (date::parse(date), current.last_modified) {
        (Some(since), Some(modified)) => match mode {
            IfModifiedSince::Off => true,
            IfModifiedSince::Exact => modified != since,
            IfModifiedSince::Before => modified > since,
        },
        _ => true,
    }
}

/// RFC 9110 section 8.8.3.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    /// `W/` in front of a tag is not looked at.
    Weak,
}

/// Whether a list of entity tags, or `*`, has the current one. Ours has no comma, so the list falls
/// apart at commas even when a foreign tag holds one.
fn has_tag(tags: &[u8], etag: Option<&[u8]>, comparison: Comparison) -> bool {
    if tags == b"*" {
        return true;
    }
    let Some(etag) = etag else { return false };
    tags.split(|&byte| byte == b',').any(|tag| {
        let tag = tag.trim_ascii();
        let opaque = match comparison {
            Comparison::Strong => tag,
            Comparison::Weak => tag.strip_prefix(b"W/").unwrap_or(tag),
        };
        opaque == etag
    })
}

/// Whatever the headers hold: only a present `If-Match` or `If-Unmodified-Since` fails a request,
/// and only a present `If-None-Match` or `If-Modified-Since` spares the client the body.
pub fn fuzz_conditional(data: &[u8]) {
    let current = Validators { last_modified: Some(784_111_777), etag: Some(b"\"2ebc-a\"") };
    let mut lines =
        data.split(|&byte| byte == b'\n').map(|line| (!line.is_empty()).then_some(line));
    let mut next = || lines.next().flatten();
    let conditions = Conditions {
        matches: next(),
        none_match: next(),
        modified_since: next(),
        unmodified_since: next(),
    };
    for mode in [IfModifiedSince::Off, IfModifiedSince::Exact, IfModifiedSince::Before] {
        let asked = match evaluate(&conditions, &current, mode) {
            Verdict::Proceed => true,
            Verdict::NotModified => {
                conditions.none_match.is_some() || conditions.modified_since.is_some()
            }
            Verdict::PreconditionFailed => {
                conditions.matches.is_some() || conditions.unmodified_since.is_some()
            }
        };
        assert!(asked, "{conditions:?}");
    }
    if is_range_allowed(data, &current) {
        assert!(Some(data) == current.etag || date::parse(data) == current.last_modified);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CURRENT: Validators<'_> =
        Validators { last_modified: Some(784_111_777), etag: Some(b"\"6553f100-64\"") };
    const SAME: &[u8] = b"Sun, 06 Nov 1994 08:49:37 GMT";
    const EARLIER: &[u8] = b"Sun, 06 Nov 1994 08:49:36 GMT";
    const LATER: &[u8] = b"Sun, 06 Nov 1994 08:49:38 GMT";
    const ETAG: &[u8] = b"\"6553f100-64\"";
    const OTHER: &[u8] = b"\"6553f100-65\"";

    fn verdict(conditions: Conditions<'_>) -> Verdict {
        evaluate(&conditions, &CURRENT, IfModifiedSince::Exact)
    }

    #[test]
    fn without_conditions_the_response_goes_its_way() {
        assert_eq!(verdict(Conditions::default()), Verdict::Proceed);
    }

    #[test]
    fn if_modified_since_by_mode() {
        use IfModifiedSince::{Before, Exact, Off};
        let rows: [(IfModifiedSince, &[u8], Verdict); 9] = [
            (Exact, SAME, Verdict::NotModified),
            (Exact, LATER, Verdict::Proceed),
            (Exact, EARLIER, Verdict::Proceed),
            (Before, SAME, Verdict::NotModified),
            (Before, LATER, Verdict::NotModified),
            (Before, EARLIER, Verdict::Proceed),
            (Off, SAME, Verdict::Proceed),
            (Before, b"yesterday", Verdict::Proceed),
            (Exact, b"Sunday, 06-Nov-94 08:49:37 GMT", Verdict::NotModified),
        ];
        for (mode, date, expected) in rows {
            let conditions = Conditions { modified_since: Some(date), ..Conditions::default() };
            let date = String::from_utf8_lossy(date);
            assert_eq!(evaluate(&conditions, &CURRENT, mode), expected, "{mode:?} {date}");
        }
    }

    #[test]
    fn all_forms_of_a_date_are_the_same_time() {
        for date in ["Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            let date = Some(date.as_bytes());
            let conditions = Conditions { modified_since: date, ..Conditions::default() };
            assert_eq!(verdict(conditions), Verdict::NotModified, "{date:?}");
        }
    }

    #[test]
    fn if_unmodified_since() {
        let rows: [(&[u8], Verdict); 4] = [
            (SAME, Verdict::Proceed),
            (LATER, Verdict::Proceed),
            (EARLIER, Verdict::PreconditionFailed),
            (b"tomorrow", Verdict::PreconditionFailed),
        ];
        for (date, expected) in rows {
            let conditions = Conditions { unmodified_since: Some(date), ..Conditions::default() };
            assert_eq!(verdict(conditions), expected);
        }
    }

    #[test]
    fn if_match_is_strong() {
        let rows: [(&[u8], Verdict); 6] = [
            (ETAG, Verdict::Proceed),
            (b"*", Verdict::Proceed),
            (b"\"a\", \"6553f100-64\" ,\"b\"", Verdict::Proceed),
            (b"W/\"6553f100-64\"", Verdict::PreconditionFailed),
            (OTHER, Verdict::PreconditionFailed),
            (b"6553f100-64", Verdict::PreconditionFailed),
        ];
        for (tags, expected) in rows {
            let conditions = Conditions { matches: Some(tags), ..Conditions::default() };
            assert_eq!(verdict(conditions), expected, "{}", String::from_utf8_lossy(tags));
        }
    }

    #[test]
    fn if_none_match_is_weak() {
        let rows: [(&[u8], Verdict); 6] = [
            (ETAG, Verdict::NotModified),
            (b"*", Verdict::NotModified),
            (b"W/\"6553f100-64\"", Verdict::NotModified),
            (b"\"a\",\tW/\"6553f100-64\"", Verdict::NotModified),
            (OTHER, Verdict::Proceed),
            (b"\"6553f100-64\"x", Verdict::Proceed),
        ];
        for (tags, expected) in rows {
            let conditions = Conditions { none_match: Some(tags), ..Conditions::default() };
            assert_eq!(verdict(conditions), expected, "{}", String::from_utf8_lossy(tags));
        }
    }

    #[test]
    fn a_304_takes_every_header_that_is_there() {
        let both = |date, tags| {
            let (date, tags) = (Some(date), Some(tags));
            verdict(Conditions { modified_since: date, none_match: tags, ..Default::default() })
        };
        assert_eq!(both(SAME, ETAG), Verdict::NotModified);
        assert_eq!(both(EARLIER, ETAG), Verdict::Proceed);
        assert_eq!(both(SAME, OTHER), Verdict::Proceed);
    }

    #[test]
    fn a_failed_precondition_comes_before_a_304() {
        let conditions =
            Conditions { matches: Some(OTHER), none_match: Some(ETAG), ..Default::default() };
        assert_eq!(verdict(conditions), Verdict::PreconditionFailed);
    }

    #[test]
    fn without_an_etag_only_the_star_matches() {
        let current = Validators { etag: None, ..CURRENT };
        let of = |matches, none_match| {
            let conditions = Conditions { matches, none_match, ..Default::default() };
            evaluate(&conditions, &current, IfModifiedSince::Exact)
        };
        assert_eq!(of(Some(b"*"), None), Verdict::Proceed);
        assert_eq!(of(Some(ETAG), None), Verdict::PreconditionFailed);
        assert_eq!(of(None, Some(ETAG)), Verdict::Proceed);
        assert_eq!(of(None, Some(b"*")), Verdict::NotModified);
    }

    #[test]
    fn if_range_wants_the_very_same_state() {
        for (value, allowed) in [
            (ETAG, true),
            (OTHER, false),
            (b"W/\"6553f100-64\"".as_slice(), false),
            (b"\"", false),
            (SAME, true),
            (LATER, false),
            (EARLIER, false),
            (b"never", false),
        ] {
            assert_eq!(is_range_allowed(value, &CURRENT), allowed);
        }
        assert!(!is_range_allowed(b"never", &Validators::default()));
    }

    proptest! {
        #[test]
        fn any_bytes(data: Vec<u8>) {
            fuzz_conditional(&data);
        }

        #[test]
        fn likely_values(
            data in "((\\*|W/|\"2ebc-a\"|\"a\"|,| |Sun, 06 Nov 1994 08:49:3[67] GMT){0,3}\n){0,4}",
        ) {
            fuzz_conditional(data.as_bytes());
        }
    }
}
