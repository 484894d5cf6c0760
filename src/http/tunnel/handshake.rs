//! What an Upgrade header asks for, and whether both sides of a WebSocket handshake are as RFC 6455
//! says. Bytes in, verdicts out.

use tungstenite::handshake::derive_accept_key;

use crate::error_log::escape;
use crate::http1::header::{Headers, Known};
use crate::http1::is_token;
use crate::http1::request::{Method, RequestHead, Version};

/// What the value of an Upgrade header asks for; of several protocols the greatest counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asked {
    /// It names no protocol.
    #[default]
    Nothing,
    Other,
    WebSocket,
    /// A protocol that would take further requests past the configuration: HTTP/2 or TLS.
    Refused,
}

/// Reads the value of an Upgrade header. `allowed` are the names of `proxy_upgrade_allow`, in lower
/// case.
pub fn asked(value: &[u8], allowed: &[Box<str>]) -> Asked {
    names(value).map(|name| asked_by(name, allowed)).max().unwrap_or_default()
}

/// Whether a WebSocket is among what the value of an Upgrade header asks for.
pub fn names_websocket(value: &[u8]) -> bool {
    names(value).any(is_websocket)
}

/// The names in an Upgrade header (RFC 9110 section 7.8), versions among them. Every run of token
/// characters is taken for one: a server may read a malformed list in ways of its own.
fn names(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| !is_token(byte)).filter(|name| !name.is_empty())
}

fn asked_by(name: &[u8], allowed: &[Box<str>]) -> Asked {
    let is_allowed = || allowed.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(name));
    if is_websocket(name) {
        Asked::WebSocket
    } else if is_refused(name) && !is_allowed() {
        Asked::Refused
    } else {
        Asked::Other
    }
}

fn is_websocket(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"websocket")
}

/// HTTP/2 with its drafts (`h2c-14`), and TLS (RFC 2817).
fn is_refused(name: &[u8]) -> bool {
    let starts_with = |start: &[u8]| {
        name.get(..start.len()).is_some_and(|found| found.eq_ignore_ascii_case(start))
    };
    [b"h2c".as_slice(), b"h2", b"tls"].iter().any(|known| known.eq_ignore_ascii_case(name))
        || starts_with(b"h2c-")
        || starts_with(b"h2-")
}

/// What of a WebSocket handshake is not as RFC 6455 says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("the method is not GET")]
    Method,
    #[error("the protocol is not HTTP/1.1")]
    Protocol,
    #[error("no \"{0}\" header")]
    Missing(&'static str),
    #[error("duplicate \"{0}\" header")]
    Duplicate(&'static str),
    #[error("\"Sec-WebSocket-Version\" is not 13")]
    Version,
    #[error("\"Sec-WebSocket-Key\" is not 16 bytes in base64")]
    Key,
    #[error("\"Upgrade\" is not \"websocket\"")]
    Upgrade,
    #[error("\"Sec-WebSocket-Accept\" does not match the key")]
    Accept,
}

/// The opening handshake of a client (RFC 6455 section 4.2.1). Its Upgrade is known already; its
/// Connection is this proxy's to write.
pub fn check_request(head: &RequestHead, bytes: &[u8]) -> Result<(), Invalid> {
    if head.method_kind != Method::Get {
        return Err(Invalid::Method);
    }
    if head.version != Version::Http11 {
        return Err(Invalid::Protocol);
    }
    if only(&head.headers, bytes, b"sec_websocket_version", VERSION)? != b"13" {
        return Err(Invalid::Version);
    }
    if !is_key(only(&head.headers, bytes, b"sec_websocket_key", KEY)?) {
        return Err(Invalid::Key);
    }
    Ok(())
}

/// A server's 101 to that request (RFC 6455 sections 4.1 and 4.2.2).
pub fn check_response(
    request: &RequestHead,
    request_bytes: &[u8],
    headers: &Headers,
    bytes: &[u8],
) -> Result<(), Invalid> {
    if !only(headers, bytes, b"upgrade", "Upgrade")?.eq_ignore_ascii_case(b"websocket") {
        return Err(Invalid::Upgrade);
    }
    let key = only(&request.headers, request_bytes, b"sec_websocket_key", KEY)?;
    let accept = only(headers, bytes, b"sec_websocket_accept", ACCEPT)?;
    if accept != derive_accept_key(key).as_bytes() {
        return Err(Invalid::Accept);
    }
    Ok(())
}

const VERSION: &str = "Sec-WebSocket-Version";
const KEY: &str = "Sec-WebSocket-Key";
const ACCEPT: &str = "Sec-WebSocket-Accept";

/// The value of a header that must be there once.
fn only<'a>(
    headers: &Headers,
    bytes: &'a [u8],
    variable_name: &[u8],
    name: &'static str,
) -> Result<&'a [u8], Invalid> {
    let mut fields = headers.find_name(bytes, variable_name);
    let field = fields.next().ok_or(Invalid::Missing(name))?;
    match fields.next() {
        None => Ok(field.value.of(bytes).trim_ascii()),
        Some(_) => Err(Invalid::Duplicate(name)),
    }
}

/// 16 bytes in base64: 22 characters and two of padding. What the last character says beyond the
/// 128th bit is not looked at.
fn is_key(text: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    text.strip_suffix(b"==").is_some_and(|digits| digits.len() == 22 && digits.iter().all(is_digit))
}

/// A value of Connection without what belongs to an upgrade that is not passed on.
pub fn without_upgrade(connection: &[u8], out: &mut Vec<u8>) {
    let is_kept = |option: &&[u8]| {
        !option.is_empty()
            && !option.eq_ignore_ascii_case(b"upgrade")
            && !option.eq_ignore_ascii_case(HTTP2_SETTINGS)
    };
    let options = connection.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    for (n, option) in options.filter(is_kept).enumerate() {
        if n > 0 {
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(option);
    }
}

/// The header that a client sends with `Upgrade: h2c` (RFC 7540 section 3.2.1).
pub const HTTP2_SETTINGS: &[u8] = b"HTTP2-Settings";

/// Why a 101 makes no tunnel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSwitch {
    #[error("upstream switched protocols without being asked")]
    Unasked,
    #[error("upstream switched protocols before it had the request body")]
    BeforeBody,
    #[error("upstream switched to \"{0}\", see \"proxy_upgrade_allow\"")]
    Refused(String),
    #[error("upstream sent invalid WebSocket handshake: {0}")]
    Invalid(#[from] Invalid),
}

/// A refused protocol that a 101 names.
pub fn check_switched(
    headers: &Headers,
    bytes: &[u8],
    allowed: &[Box<str>],
) -> Result<(), BadSwitch> {
    for field in headers.find_all(Known::Upgrade) {
        let value = field.value.of(bytes);
        if asked(value, allowed) == Asked::Refused {
            return Err(BadSwitch::Refused(escape(value).to_string()));
        }
    }
    Ok(())
}

/// Any bytes: case says nothing, a list asks for no less than each of its parts, and what is left of
/// a Connection has no upgrade in it.
pub fn fuzz_handshake(data: &[u8]) {
    let all = asked(data, &[]);
    assert_eq!(asked(&data.to_ascii_uppercase(), &[]), all);
    for name in names(data) {
        assert!(asked(name, &[]) <= all);
    }
    assert!(all != Asked::WebSocket || names_websocket(data));
    let allowed = ["h2c", "h2", "tls"].map(Box::from);
    assert!(asked(data, &allowed) <= all);

    let mut left = Vec::new();
    without_upgrade(data, &mut left);
    let mut again = Vec::new();
    without_upgrade(&left, &mut again);
    assert_eq!(left, again);
    assert!(
        !left
            .split(|&byte| byte == b',')
            .any(|part| { part.trim_ascii().eq_ignore_ascii_case(b"upgrade") })
    );

    if is_key(data) {
        assert_eq!(data.len(), 24);
        assert_eq!(derive_accept_key(data).len(), 28);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http1::Progress;
    use crate::http1::request::{self, Rules};
    use crate::http1::response::{self, Form, ResponseHead};

    #[test]
    fn what_an_upgrade_header_asks_for() {
        for (value, expected) in [
            ("", Asked::Nothing),
            (" , ", Asked::Nothing),
            ("websocket", Asked::WebSocket),
            ("WebSocket", Asked::WebSocket),
            ("foo/1, websocket", Asked::WebSocket),
            ("websocket/13", Asked::WebSocket),
            ("foo/1", Asked::Other),
            ("websockets", Asked::Other),
            ("h2cd", Asked::Other),
            ("HTTP/2.0", Asked::Other),
            ("h2c", Asked::Refused),
            ("H2", Asked::Refused),
            ("h2-14", Asked::Refused),
            ("h2c-16", Asked::Refused),
            ("TLS/1.2", Asked::Refused),
            ("tls", Asked::Refused),
            ("websocket, h2c", Asked::Refused),
            ("websocket\th2c", Asked::Refused),
            ("\"h2c\"", Asked::Refused),
            ("\u{b}h2c;q=1", Asked::Refused),
        ] {
            assert_eq!(asked(value.as_bytes(), &[]), expected, "{value:?}");
        }
        let allowed = ["h2c".into(), "tls".into()];
        assert_eq!(asked(b"H2C", &allowed), Asked::Other);
        assert_eq!(asked(b"TLS/1.0, HTTP/1.1", &allowed), Asked::Other);
        assert_eq!(asked(b"h2c, h2", &allowed), Asked::Refused);
        assert_eq!(asked(b"websocket, h2c", &allowed), Asked::WebSocket);
    }

    const VALID: &str = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    fn request_head(text: &str) -> RequestHead {
        let mut head = RequestHead::default();
        let parsed = request::parse(text.as_bytes(), &Rules::default(), &mut head);
        assert_eq!(parsed, Ok(Progress::Complete { len: text.len() }), "{text}");
        head
    }

    #[test]
    fn requests() {
        let check = |old: &str, new: &str| {
            assert!(VALID.contains(old));
            let text = VALID.replace(old, new);
            check_request(&request_head(&text), text.as_bytes())
        };
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let key_line = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let version_line = "Sec-WebSocket-Version: 13\r\n";
        assert_eq!(check("a", "a"), Ok(()));
        assert_eq!(check(key, "AAAAAAAAAAAAAAAAAAAA+/=="), Ok(()));
        assert_eq!(check("GET", "POST"), Err(Invalid::Method));
        assert_eq!(check("GET", "HEAD"), Err(Invalid::Method));
        assert_eq!(check("HTTP/1.1", "HTTP/1.0"), Err(Invalid::Protocol));
        assert_eq!(check(version_line, ""), Err(Invalid::Missing(VERSION)));
        assert_eq!(check(": 13", ": 8"), Err(Invalid::Version));
        assert_eq!(check(": 13", ": 13, 8"), Err(Invalid::Version));
        assert_eq!(check(version_line, &version_line.repeat(2)), Err(Invalid::Duplicate(VERSION)));
        assert_eq!(check(key_line, ""), Err(Invalid::Missing(KEY)));
        assert_eq!(check(key_line, &key_line.repeat(2)), Err(Invalid::Duplicate(KEY)));
        for bad in [
            "",
            "x",
            "dGhlIHNhbXBsZSBub25jZQ=",
            "dGhlIHNhbXBsZSBub25jZQAA",
            "dGhlIHNhbXBsZSBub25jZ===",
            "dGhlIHNhbXBsZSBub25jZQAA==",
            "dGhlIHNhbXBsZSBub25jZ-==",
            "dGhl IHNhbXBsZSBub25jZ==",
        ] {
            assert_eq!(check(key, bad), Err(Invalid::Key), "{bad}");
        }
    }

    #[test]
    fn responses() {
        let request = request_head(VALID);
        let check = |fields: &str| {
            let text = format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n");
            let mut head = ResponseHead::default();
            let parsed = response::parse(text.as_bytes(), Form::Http, 4096, &mut head);
            assert_eq!(parsed, Ok(Progress::Complete { len: text.len() }), "{text}");
            check_response(&request, VALID.as_bytes(), &head.headers, text.as_bytes())
        };
        let accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
        let upgrade = "upgrade: WebSocket\r\n";
        assert_eq!(check(&format!("{upgrade}{accept}")), Ok(()));
        assert_eq!(check(accept), Err(Invalid::Missing("Upgrade")));
        assert_eq!(check(&format!("Upgrade: foo\r\n{accept}")), Err(Invalid::Upgrade));
        assert_eq!(check(&format!("Upgrade: websocket, x\r\n{accept}")), Err(Invalid::Upgrade));
        assert_eq!(check(upgrade), Err(Invalid::Missing(ACCEPT)));
        assert_eq!(check(&format!("{upgrade}{accept}{accept}")), Err(Invalid::Duplicate(ACCEPT)));
        // The accept is compared with its case.
        assert_eq!(
            check(&format!("{upgrade}{}", accept.replace("s3pP", "S3pP"))),
            Err(Invalid::Accept)
        );
    }

    #[test]
    fn a_connection_without_its_upgrade() {
        for (value, left) in [
            ("upgrade", ""),
            ("Upgrade, HTTP2-Settings", ""),
            ("keep-alive, Upgrade", "keep-alive"),
            ("close ,upgrade,\tX", "close, X"),
            ("close", "close"),
        ] {
            let mut out = Vec::new();
            without_upgrade(value.as_bytes(), &mut out);
            assert_eq!(out.escape_ascii().to_string(), left, "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(data in proptest::collection::vec(any::<u8>(), 0..40)) {
            fuzz_handshake(&data);
        }

        #[test]
        fn any_list(
            text in "((h2c?|tls|TLS|websocket|upgrade|HTTP2-Settings|foo)(-14|/1)?[, \t;]{0,2}){0,5}"
        ) {
            fuzz_handshake(text.as_bytes());
        }

        #[test]
        fn any_key(text in "[A-Za-z0-9+/]{20,24}={0,3}") {
            fuzz_handshake(text.as_bytes());
        }
    }
}
