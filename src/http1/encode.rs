//! Writing heads: status lines, header lines, dates.

use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

use super::is_token;

/// nginx's phrase for a status, `None` for codes it has none for.
pub fn reason(code: u16) -> Option<&'static str> {
    Some(match code {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Moved Temporarily",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Time-out",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Request Entity Too Large",
        414 => "Request-URI Too Large",
        415 => "Unsupported Media Type",
        416 => "Requested Range Not Satisfiable",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Temporarily Unavailable",
        504 => "Gateway Time-out",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => return None,
    })
}

/// Appends `HTTP/1.1 404 Not Found` and CRLF. A code without a phrase keeps its space (RFC 9112
/// section 4). The version is ringx's own, whatever the client's.
pub fn status_line(code: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    let phrase = reason(code).unwrap_or_default();
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{code:03} {phrase}\r\n");
}

/// Appends `name: value` and CRLF. The caller answers for what is in them.
pub fn header(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "lengths in memory: isize::MAX at most, each"
    )]
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Makes a field's value out of what a variable may have brought along: CR, LF and NUL, which would
/// end the line or the field in the eyes of some, become spaces (RFC 9110 section 5.5).
#[expect(clippy::arithmetic_side_effects, clippy::indexing_slicing, reason = "at < rest.len()")]
pub fn clean_value(value: &mut [u8]) {
    let mut rest = value;
    while let Some(at) = memchr::memchr3(b'\r', b'\n', 0, rest) {
        rest[at] = b' ';
        rest = &mut rest[at + 1..];
    }
}

/// The same for a URI, from `from` on: control characters are escaped.
pub fn clean_uri(out: &mut Vec<u8>, from: usize) {
    escape_where(out, from, |byte| *byte < b' ' || *byte == 0x7f);
}

/// The same for the target of a request line, which a space would end (RFC 9112 section 3).
pub fn clean_target(out: &mut Vec<u8>, from: usize) {
    escape_where(out, from, |byte| *byte <= b' ' || *byte == 0x7f);
}

/// The same for the method of a request line, which is a token (RFC 9110 section 9.1): what cannot be in
/// one becomes `_`.
pub fn clean_method(method: &mut [u8]) {
    for byte in method {
        if !is_token(*byte) {
            *byte = b'_';
        }
    }
}

fn escape_where(out: &mut Vec<u8>, from: usize, is_control: fn(&u8) -> bool) {
    let Some(first) = out.get(from..).and_then(|uri| uri.iter().position(is_control)) else {
        return;
    };
    #[expect(clippy::arithmetic_side_effects, reason = "a place in out")]
    let rest = out.split_off(from + first);
    for byte in rest {
        if is_control(&byte) {
            let _ = write!(out, "%{byte:02X}");
        } else {
            out.push(byte);
        }
    }
}

pub fn header_number(name: &[u8], value: u64, out: &mut Vec<u8>) {
    header(name, itoa::Buffer::new().format(value).as_bytes(), out);
}

/// A date as `Date` and `Last-Modified` show it (IMF-fixdate, RFC 9110 section 5.6.7), formatted once
/// a second.
#[derive(Clone, Debug)]
pub struct HttpDate {
    unix_seconds: u64,
    text: [u8; DATE_LEN],
}

const DATE_LEN: usize = 29;
/// The last second of the year 9999: later ones have no four-digit year.
const UNIX_SECONDS_MAX: u64 = 253_402_300_799;

impl Default for HttpDate {
    fn default() -> Self {
        HttpDate { unix_seconds: 0, text: *b"Thu, 01 Jan 1970 00:00:00 GMT" }
    }
}

impl HttpDate {
    pub fn get(&mut self, unix_seconds: u64) -> &[u8; DATE_LEN] {
        if self.unix_seconds != unix_seconds {
            let seconds = Duration::from_secs(unix_seconds.min(UNIX_SECONDS_MAX));
            #[expect(clippy::arithmetic_side_effects, reason = "the year is 9999 at most")]
            let date = httpdate::HttpDate::from(UNIX_EPOCH + seconds);
            // Always the whole array: the form has a fixed length.
            let _ = write!(self.text.as_mut_slice(), "{date}");
            self.unix_seconds = unix_seconds;
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_variable_brings_along_ends_no_line() {
        let mut value = b"a\r\nb\0\tc".to_vec();
        clean_value(&mut value);
        assert_eq!(value, b"a  b \tc");
        let mut uri = b"GET /a b\r\n\x7f\xc3".to_vec();
        clean_uri(&mut uri, 4);
        assert_eq!(uri, b"GET /a b%0D%0A%7F\xc3");
        let mut uri = b"GET /a b\r\n\x7f\xc3\t".to_vec();
        clean_target(&mut uri, 4);
        assert_eq!(uri, b"GET /a%20b%0D%0A%7F\xc3%09");
        let mut method = b"M-SEARCH / HTTP/1.1\r\n".to_vec();
        clean_method(&mut method);
        assert_eq!(method, b"M-SEARCH___HTTP_1.1__");
    }

    #[test]
    fn status_lines() {
        let line = |code| {
            let mut out = Vec::new();
            status_line(code, &mut out);
            String::from_utf8(out).expect("ASCII")
        };
        assert_eq!(line(404), "HTTP/1.1 404 Not Found\r\n");
        assert_eq!(line(418), "HTTP/1.1 418 \r\n");
        assert_eq!(line(7), "HTTP/1.1 007 \r\n");
    }

    #[test]
    fn headers() {
        let mut out = Vec::new();
        header(b"A", b"b", &mut out);
        header_number(b"Content-Length", u64::MAX, &mut out);
        assert_eq!(out, b"A: b\r\nContent-Length: 18446744073709551615\r\n");
    }

    #[test]
    fn dates() {
        let mut date = HttpDate::default();
        assert_eq!(date.get(0), b"Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(date.get(784_111_777), b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date.get(784_111_777), b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date.get(u64::MAX), b"Fri, 31 Dec 9999 23:59:59 GMT");
    }
}
