//! The common case: lines that httparse has tokenised and that nginx reads in the same way.
//!
//! httparse tells how long names, values and targets are; where they lie, and that nothing about
//! them is read differently by nginx, is checked here. `None` always means: from this line on the
//! byte-wise reader decides.

use super::Span;
use super::header::{Field, Known};
use super::method::{Method, Version};
use super::request_line::{RequestLine, is_method_byte};

/// More header lines than a plain head has.
pub(super) const FIELDS_MAX: usize = 64;

/// The request line that starts at `start`, its span without line end, and where the next line
/// starts.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "the parts lie in buf one behind the other, and at most nine bytes more are asked for"
)]
pub(super) fn request_line(
    buf: &[u8],
    start: usize,
    parsed: &httparse::Request<'_, '_>,
) -> Option<(RequestLine, Span, usize)> {
    let (method, target) = (parsed.method?, parsed.path?);
    let version = match parsed.version? {
        0 => Version::Http10,
        1 => Version::Http11,
        _ => return None,
    };
    let kind = Method::of(method.as_bytes());
    let plain =
        method.bytes().all(is_method_byte) && kind != Method::Connect && target.starts_with('/');
    if !plain {
        return None;
    }
    let method = Span::new(start, start + method.len());
    let target_start = method.end as usize + 1;
    let target = Span::new(target_start, target_start + target.len());
    let line_end = target.end as usize + " HTTP/1.x".len();
    let next = after_line_end(buf, line_end)?;
    Some((RequestLine::plain(method, kind, target, version), Span::new(start, line_end), next))
}

/// The header line that starts at `at`, and where the next line starts.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "a place in buf, or one behind its end, plus the length of a part of buf"
)]
pub(super) fn field(
    buf: &[u8],
    at: usize,
    parsed: &httparse::Header<'_>,
) -> Option<(Field, usize)> {
    let name_end = at + parsed.name.len();
    if buf.get(name_end) != Some(&b':') {
        return None;
    }
    let value_start = skip_spaces(buf, name_end + 1);
    let value_end = value_start + parsed.value.len();
    // httparse trims tabs as well: then there is no line end here, as its value ends further on.
    let next = after_line_end(buf, skip_spaces(buf, value_end))?;
    let field = Field {
        name: Span::new(at, name_end),
        value: Span::new(value_start, value_end),
        known: Known::of(parsed.name.as_bytes()),
    };
    debug_assert_eq!(field.value.of(buf), parsed.value);
    Some((field, next))
}

/// A request header's name that no setting makes invalid.
pub(super) fn is_plain_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[expect(
    clippy::arithmetic_side_effects,
    reason = "at plus a number of bytes that lie in buf behind it"
)]
fn skip_spaces(buf: &[u8], at: usize) -> usize {
    let rest = buf.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|&&byte| byte == b' ').count()
}

#[expect(
    clippy::arithmetic_side_effects,
    reason = "the one or two bytes at this place have been seen in buf"
)]
fn after_line_end(buf: &[u8], at: usize) -> Option<usize> {
    match buf.get(at..)? {
        [b'\r', b'\n', ..] => Some(at + 2),
        [b'\n', ..] => Some(at + 1),
        _ => None,
    }
}
