//! The value of `Host`, which is also the authority of an absolute-form target.

use super::{Span, decimal_digit};

/// A valid `host[:port]`. The spans are relative to the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Without port and without one trailing dot; an IPv6 literal keeps its brackets.
    pub name: Span,
    /// The digits after the colon; empty for a bare colon.
    pub port: Option<Span>,
    /// Must be lower-cased before names are compared.
    pub has_upper_case: bool,
}

/// Reads `value`; `None` if nginx says `client sent invalid host header` to it.
///
/// RFC 9110 section 7.2, RFC 3986 section 3.2.2 (`reg-name`), except that `%` need not begin an
/// escape, `..` is refused, and the port must be one.
pub fn parse_host(value: &[u8]) -> Option<Host> {
    let literal = value.first() == Some(&b'[');
    let name_end = if literal { ip_literal_len(value)? } else { reg_name_len(value) };

    let (mut name, rest) = value.split_at_checked(name_end)?;
    #[expect(clippy::arithmetic_side_effects, reason = "name_end <= value.len()")]
    let port = match rest {
        [] => None,
        [b':', digits @ ..] if is_port(digits) => Some(Span::new(name_end + 1, value.len())),
        _ => return None,
    };
    if !literal {
        name = name.strip_suffix(b".").unwrap_or(name);
        if name.is_empty() || name.ends_with(b".") || has_empty_label(name) {
            return None;
        }
    }
    let has_upper_case = name.iter().fold(0, |any, byte| any | u8::from(byte.is_ascii_uppercase()));
    Some(Host { name: Span::new(0, name.len()), port, has_upper_case: has_upper_case != 0 })
}

/// Whether two dots follow one another.
fn has_empty_label(name: &[u8]) -> bool {
    let behind = name.get(1..).unwrap_or_default();
    // The dot alone has no bit that differs from it.
    name.iter().zip(behind).any(|(a, b)| (a ^ b'.') | (b ^ b'.') == 0)
}

/// Length of `[…]` at the start of `value`.
#[expect(clippy::arithmetic_side_effects, reason = "end < value.len()")]
fn ip_literal_len(value: &[u8]) -> Option<usize> {
    let end = memchr::memchr(b']', value)?;
    let address = value.get(1..end)?;
    let valid = address.iter().all(|&byte| is_host_byte(byte) || byte == b':');
    (valid && !address.is_empty()).then_some(end + 1)
}

fn reg_name_len(value: &[u8]) -> usize {
    value.iter().position(|&byte| !is_host_byte(byte)).unwrap_or(value.len())
}

/// `unreserved`, `sub-delims` and `%` of RFC 3986.
fn is_host_byte(byte: u8) -> bool {
    #[expect(clippy::indexing_slicing, reason = "every byte has a place in it")]
    HOST_BYTES[usize::from(byte)]
}

/// Every request has a host: one look for each of its bytes.
#[expect(clippy::indexing_slicing, reason = "done by the compiler, which would say so")]
static HOST_BYTES: [bool; 256] = {
    let mut is_host_byte = [false; 256];
    let mut byte = 0_u8;
    while byte < 0x80 {
        is_host_byte[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"-._~!$&'()*+,;=%";
    let mut at = 0;
    while at < others.len() {
        is_host_byte[others[at] as usize] = true;
        at += 1;
    }
    is_host_byte
};

/// Nothing, or decimal digits up to 65535.
fn is_port(digits: &[u8]) -> bool {
    #[expect(clippy::arithmetic_side_effects, reason = "no more than 65535 * 10 + 9")]
    let number = digits.iter().try_fold(0_u32, |number, &byte| {
        let digit = decimal_digit(byte)?;
        Some(number * 10 + u32::from(digit)).filter(|&number| number <= 65535)
    });
    number.is_some()
}

/// The parts of a host that is accepted lie in order within the value, and are clean.
#[expect(clippy::arithmetic_side_effects, reason = "the property that is tested")]
pub fn fuzz_host(data: &[u8]) {
    let Some(host) = parse_host(data) else { return };
    let name = host.name.of(data);
    assert!(!name.is_empty());
    assert_eq!(host.has_upper_case, name.iter().any(u8::is_ascii_uppercase));
    assert!(!data.iter().any(|&byte| byte <= b' ' || byte >= 0x7f || b"/@\\\"?#".contains(&byte)));
    if let Some(port) = host.port {
        assert!(port.of(data).iter().all(u8::is_ascii_digit));
        assert_eq!(port.end as usize, data.len());
        assert_eq!(data.get(port.start as usize - 1), Some(&b':'));
        assert!(host.name.end < port.start);
    }
    // Without its port and dot it is the same host.
    let again = parse_host(name).map(|host| host.name);
    assert_eq!(again, Some(host.name));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(value: &str) -> Option<(&str, Option<&str>)> {
        let text = |span: Span| &value[span.start as usize..span.end as usize];
        parse_host(value.as_bytes()).map(|host| (text(host.name), host.port.map(text)))
    }

    #[test]
    fn accepted() {
        assert_eq!(parts("example.com"), Some(("example.com", None)));
        assert_eq!(parts("example.com."), Some(("example.com", None)));
        assert_eq!(parts("a.:80"), Some(("a", Some("80"))));
        assert_eq!(parts("a:"), Some(("a", Some(""))));
        assert_eq!(parts("a:65535"), Some(("a", Some("65535"))));
        assert_eq!(parts("[::1]"), Some(("[::1]", None)));
        assert_eq!(parts("[::1]:8080"), Some(("[::1]", Some("8080"))));
        assert_eq!(parts("a_b~!$&'()*+,;=%zz"), Some(("a_b~!$&'()*+,;=%zz", None)));
        assert_eq!(parts(".a"), Some((".a", None)));
        assert!(parse_host(b"eXample").is_some_and(|host| host.has_upper_case));
        assert!(parse_host(b"example").is_some_and(|host| !host.has_upper_case));
    }

    #[test]
    fn refused() {
        for value in [
            "",
            ".",
            "..",
            "a..",
            "a..b",
            ":80",
            ":",
            ".:80",
            "a b",
            "a/b",
            "a@b",
            "a\"b",
            "a\\b",
            "a#b",
            "a?b",
            "<a>",
            "a\x7f",
            "é",
            "a\0b",
            "a\tb",
            "[::1",
            "[::1]x",
            "[::1].",
            "[]",
            "[a/b]",
            "a:x",
            "a:65536",
            "a:80:80",
            "a:-1",
            "a: 80",
            "a:99999999999999999999",
        ] {
            assert_eq!(parts(value), None, "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(data: Vec<u8>) {
            fuzz_host(&data);
        }

        #[test]
        fn likely_bytes(data in "[]a-cA-C.:\\[0-9%_/@ -]{0,12}") {
            fuzz_host(data.as_bytes());
        }
    }
}
