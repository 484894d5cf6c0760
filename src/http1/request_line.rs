//! The request line, byte by byte, as nginx reads it (RFC 9112 section 3); the authority on what
//! is a valid one.

use super::Span;
use super::host;
use super::method::{Method, Version};
use super::refusal::Refusal;

/// The state between two calls, and the parts found so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RequestLine {
    state: State,
    pub method: Span,
    pub method_kind: Method,
    pub target: Span,
    /// From the first `/`, or from the `?` of an absolute-form target without a path.
    pub path: Span,
    /// `host[:port]` of an absolute-form or authority-form target.
    pub host: Option<Span>,
    /// Where `HTTP/` begins.
    pub protocol: Option<u32>,
    pub version: Version,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Method,
    BeforeTarget,
    Scheme,
    SchemeColon,
    SchemeSlash,
    HostStart,
    Host,
    IpLiteral,
    HostEnd,
    Port,
    /// The rest of the target, to the next space.
    Path,
    AfterTarget,
    /// Within `HTTP/`; how many of its bytes have been seen.
    Protocol(usize),
    Major,
    /// After a major version of 1.
    MajorEnd,
    /// The number so far, and how many digits it has.
    Minor(u16, u8),
    AfterVersion,
    LineCr,
    /// After a CR where there is no version yet.
    UnversionedCr,
    Done,
}

const PROTOCOL: &[u8] = b"HTTP/";
const MINOR_DIGITS_MAX: u8 = 3;

impl RequestLine {
    /// A line that httparse has split: an origin-form target and one of two versions.
    pub fn plain(method: Span, method_kind: Method, target: Span, version: Version) -> Self {
        let (state, path, host) = (State::Done, target, None);
        let protocol = target.end.checked_add(1);
        RequestLine { state, method, method_kind, target, path, host, protocol, version }
    }

    /// Reads on at `*position`, up to `end`; whether the line is complete. The first call starts at
    /// the first byte of the method.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "the byte at this place has been seen in buf"
    )]
    pub fn scan(&mut self, buf: &[u8], position: &mut usize, end: usize) -> Result<bool, Refusal> {
        while self.state != State::Done && *position < end {
            let Some(&byte) = buf.get(*position) else { break };
            self.state = self.step(buf, byte, *position)?;
            *position += 1;
        }
        if self.state != State::Done {
            return Ok(false);
        }
        if self.version == Version::Http09 && self.method_kind != Method::Get {
            return Err(Refusal::InvalidHttp09Method);
        }
        Ok(true)
    }

    /// Whether the authority, if there is one, is host and port: of a line that is complete. If it is
    /// not, the line is refused, but its other parts are known.
    pub fn has_valid_host(&self, buf: &[u8]) -> bool {
        self.host.is_none_or(|host| host::parse_host(host.of(buf)).is_some())
    }

    fn step(&mut self, buf: &[u8], byte: u8, at: usize) -> Result<State, Refusal> {
        let next = match (self.state, byte) {
            (State::Method, b' ') if at as u32 > self.method.start => {
                self.method.end = at as u32;
                self.method_kind = Method::of(self.method.of(buf));
                State::BeforeTarget
            }
            (State::Method, _) => {
                if !is_method_byte(byte) {
                    return Err(Refusal::InvalidMethod);
                }
                State::Method
            }

            (State::BeforeTarget, b' ') => State::BeforeTarget,
            (State::BeforeTarget, _) => {
                self.target = Span::new(at, at);
                match byte {
                    _ if self.method_kind == Method::Connect => self.host_byte(buf, byte, at)?,
                    b'/' => self.path_start(at),
                    b'a'..=b'z' | b'A'..=b'Z' => State::Scheme,
                    _ => return Err(Refusal::InvalidRequest),
                }
            }

            (State::Scheme, b':') => State::SchemeColon,
            (State::Scheme, b'+' | b'-' | b'.') => State::Scheme,
            (State::Scheme, _) if byte.is_ascii_alphanumeric() => State::Scheme,
            (State::SchemeColon, b'/') => State::SchemeSlash,
            (State::SchemeSlash, b'/') => State::HostStart,

            (State::HostStart, _) => self.host_byte(buf, byte, at)?,
            (State::Host, b'-' | b'.') => State::Host,
            (State::Host, _) if byte.is_ascii_alphanumeric() => State::Host,
            (State::IpLiteral, b']') => State::HostEnd,
            // Which of them make an address is for `host::parse_host`.
            (State::IpLiteral, _) if byte.is_ascii_alphanumeric() => State::IpLiteral,
            (State::IpLiteral, _) if b":-._~!$&'()*+,;=".contains(&byte) => State::IpLiteral,
            (State::Host | State::HostEnd, b':') | (State::Port, b'0'..=b'9') => State::Port,
            (State::Host | State::HostEnd | State::Port, _) => self.authority_end(buf, byte, at)?,

            (State::Path, b' ') => {
                self.target_end(at);
                State::AfterTarget
            }
            (State::Path, b'\r' | b'\n') => {
                self.target_end(at);
                self.without_version(byte)
            }
            (State::Path, 0..0x20 | 0x7f) => return Err(Refusal::InvalidRequest),
            (State::Path, _) => State::Path,

            (State::AfterTarget, b' ') => State::AfterTarget,
            (State::AfterTarget, b'\r' | b'\n') | (State::UnversionedCr, b'\n') => {
                self.without_version(byte)
            }
            (State::AfterTarget, b'H') => {
                self.protocol = Some(at as u32);
                State::Protocol(1)
            }
            #[expect(clippy::arithmetic_side_effects, reason = "seen < PROTOCOL.len()")]
            (State::Protocol(seen), _) if PROTOCOL.get(seen) == Some(&byte) => {
                if seen + 1 == PROTOCOL.len() { State::Major } else { State::Protocol(seen + 1) }
            }

            (State::Major, b'1') => State::MajorEnd,
            (State::Major, b'2'..=b'9') | (State::MajorEnd, b'0'..=b'9') => {
                return Err(Refusal::VersionNotSupported);
            }
            (State::MajorEnd, b'.') => State::Minor(0, 0),
            #[expect(clippy::arithmetic_side_effects, reason = "a number of three digits at most")]
            (State::Minor(number, digits), b'0'..=b'9') if digits < MINOR_DIGITS_MAX => {
                let number = number * 10 + u16::from(byte - b'0');
                self.version = if number == 0 { Version::Http10 } else { Version::Http11 };
                State::Minor(number, digits + 1)
            }
            (State::Minor(_, 1..) | State::AfterVersion, b' ') => State::AfterVersion,
            (State::Minor(_, 1..) | State::AfterVersion, b'\r') => State::LineCr,
            (State::Minor(_, 1..) | State::AfterVersion | State::LineCr, b'\n') => State::Done,

            _ => return Err(Refusal::InvalidRequest),
        };
        Ok(next)
    }

    /// The first byte of an authority.
    fn host_byte(&mut self, buf: &[u8], byte: u8, at: usize) -> Result<State, Refusal> {
        self.host = Some(Span::new(at, at));
        match byte {
            b'[' => Ok(State::IpLiteral),
            b'-' | b'.' => Ok(State::Host),
            _ if byte.is_ascii_alphanumeric() => Ok(State::Host),
            // An authority without a host has the same verdict as a bad host: behind the line.
            b':' if self.method_kind != Method::Connect => Ok(State::Port),
            b'/' | b'?' | b' ' if self.method_kind != Method::Connect => {
                self.authority_end(buf, byte, at)
            }
            _ => Err(Refusal::InvalidRequest),
        }
    }

    /// What comes after `host` or `host:port`.
    fn authority_end(&mut self, buf: &[u8], byte: u8, at: usize) -> Result<State, Refusal> {
        let host = Span { end: at as u32, ..self.host.unwrap_or_default() };
        self.host = Some(host);
        if self.method_kind == Method::Connect {
            // RFC 9112 section 3.2.3: authority-form has a port, and nothing else.
            let has_port = self.state == State::Port && !host.of(buf).ends_with(b":");
            if byte != b' ' || !has_port {
                return Err(Refusal::InvalidRequest);
            }
        }
        match byte {
            b'/' | b'?' => Ok(self.path_start(at)),
            b' ' => {
                self.path = Span::new(at, at);
                self.target_end(at);
                Ok(State::AfterTarget)
            }
            _ => Err(Refusal::InvalidRequest),
        }
    }

    fn path_start(&mut self, at: usize) -> State {
        self.path = Span::new(at, at);
        State::Path
    }

    fn target_end(&mut self, at: usize) {
        self.target.end = at as u32;
        self.path.end = at as u32;
    }

    fn without_version(&mut self, line_end: u8) -> State {
        if line_end == b'\r' {
            // Unless a LF follows, it is not a line of HTTP/0.9, and the answer has a head.
            return State::UnversionedCr;
        }
        self.version = Version::Http09;
        State::Done
    }

    /// A scanner for a line whose method begins at `start`.
    pub fn at(start: usize) -> Self {
        RequestLine { method: Span::new(start, start), ..Self::default() }
    }
}

/// nginx is narrower than RFC 9110's `token`.
pub(super) fn is_method_byte(byte: u8) -> bool {
    matches!(byte, b'A'..=b'Z' | b'_' | b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &str) -> Result<Option<RequestLine>, Refusal> {
        let (mut line, mut position) = (RequestLine::at(0), 0);
        let done = line.scan(text.as_bytes(), &mut position, text.len())?;
        Ok(done.then_some(line))
    }

    fn has_valid_host(text: &str) -> bool {
        scan(text).unwrap().unwrap().has_valid_host(text.as_bytes())
    }

    /// method, path, host, version
    fn parts(text: &str) -> (&str, &str, Option<&str>, Version) {
        let line = scan(text).expect("accepted").expect("complete");
        let part = |span: Span| &text[span.start as usize..span.end as usize];
        (part(line.method), part(line.path), line.host.map(part), line.version)
    }

    #[test]
    fn accepted() {
        use Version::{Http09, Http10, Http11};
        assert_eq!(parts("GET / HTTP/1.1\r\n"), ("GET", "/", None, Http11));
        assert_eq!(parts("GET / HTTP/1.1\n"), ("GET", "/", None, Http11));
        assert_eq!(parts("GET   /é?a#b   HTTP/1.0  \r\n"), ("GET", "/é?a#b", None, Http10));
        assert_eq!(parts("M-SEARCH_ / HTTP/1.999\n"), ("M-SEARCH_", "/", None, Http11));
        assert_eq!(parts("GET / HTTP/1.000\n"), ("GET", "/", None, Http10));
        assert_eq!(parts("GET /x\r\n"), ("GET", "/x", None, Http09));
        assert_eq!(parts("GET /x  \n"), ("GET", "/x", None, Http09));
        assert_eq!(parts("GET a+b-c.1://h/x HTTP/1.1\n"), ("GET", "/x", Some("h"), Http11));
        assert_eq!(parts("GET http://h:80/x HTTP/1.1\n"), ("GET", "/x", Some("h:80"), Http11));
        assert_eq!(parts("GET http://h:/x HTTP/1.1\n"), ("GET", "/x", Some("h:"), Http11));
        assert_eq!(parts("GET http://h HTTP/1.1\n"), ("GET", "", Some("h"), Http11));
        assert_eq!(parts("GET http://h?x=1 HTTP/1.1\n"), ("GET", "?x=1", Some("h"), Http11));
        assert_eq!(parts("GET http://[::1]:8/ HTTP/1.1\n"), ("GET", "/", Some("[::1]:8"), Http11));
        assert_eq!(parts("CONNECT h:443 HTTP/1.1\n"), ("CONNECT", "", Some("h:443"), Http11));
    }

    #[test]
    fn refused() {
        use Refusal::{InvalidHttp09Method, InvalidMethod, InvalidRequest, VersionNotSupported};
        for (text, refusal) in [
            ("get / HTTP/1.1\n", InvalidMethod),
            ("G1 / HTTP/1.1\n", InvalidMethod),
            ("GET\t/ HTTP/1.1\n", InvalidMethod),
            (" GET / HTTP/1.1\n", InvalidMethod),
            ("\x16\x03\x01", InvalidMethod),
            ("GET\r\n", InvalidMethod),
            ("GET \t/ HTTP/1.1\n", InvalidRequest),
            ("GET * HTTP/1.1\n", InvalidRequest),
            ("OPTIONS * HTTP/1.1\n", InvalidRequest),
            ("GET ?x HTTP/1.1\n", InvalidRequest),
            ("GET rel HTTP/1.1\n", InvalidRequest),
            ("GET \r\n", InvalidRequest),
            ("GET http:/h/ HTTP/1.1\n", InvalidRequest),
            ("GET http://u@h/ HTTP/1.1\n", InvalidRequest),
            ("GET http://a_b/ HTTP/1.1\n", InvalidRequest),
            ("GET http://h:8x/ HTTP/1.1\n", InvalidRequest),
            ("GET http://h\n", InvalidRequest),
            ("GET /a\tb HTTP/1.1\n", InvalidRequest),
            ("GET /a\x7f HTTP/1.1\n", InvalidRequest),
            ("GET /a\0 HTTP/1.1\n", InvalidRequest),
            ("GET /a b HTTP/1.1\n", InvalidRequest),
            ("GET / http/1.1\n", InvalidRequest),
            ("GET / HTTP/0.9\n", InvalidRequest),
            ("GET / HTTP/1\n", InvalidRequest),
            ("GET / HTTP/1.\n", InvalidRequest),
            ("GET / HTTP/1. 1\n", InvalidRequest),
            ("GET / HTTP/1.1000\n", InvalidRequest),
            ("GET / HTTP/1.1x\n", InvalidRequest),
            ("GET / HTTP/1.1 x\n", InvalidRequest),
            ("GET / HTTP/1.1\rx\n", InvalidRequest),
            ("GET /\rx\n", InvalidRequest),
            ("GET / HTTP/2.0\n", VersionNotSupported),
            ("GET / HTTP/10.0\n", VersionNotSupported),
            ("PRI * HTTP/2.0\n", InvalidRequest),
            ("POST /\n", InvalidHttp09Method),
            ("CONNECT /x HTTP/1.1\n", InvalidRequest),
            ("CONNECT h HTTP/1.1\n", InvalidRequest),
            ("CONNECT h: HTTP/1.1\n", InvalidRequest),
            ("CONNECT h:1/x HTTP/1.1\n", InvalidRequest),
            ("CONNECT http://h:1 HTTP/1.1\n", InvalidRequest),
        ] {
            assert_eq!(scan(text), Err(refusal), "{text:?}");
        }
    }

    #[test]
    fn a_bad_host_leaves_the_other_parts() {
        use Version::{Http09, Http11};
        assert_eq!(parts("GET http:///x?y HTTP/1.1\n"), ("GET", "/x?y", Some(""), Http11));
        assert_eq!(parts("GET http://:80/x HTTP/1.1\n"), ("GET", "/x", Some(":80"), Http11));
        assert_eq!(parts("GET http:// HTTP/1.1\n"), ("GET", "", Some(""), Http11));
        assert_eq!(parts("POST http://?x HTTP/1.1\n"), ("POST", "?x", Some(""), Http11));
        assert_eq!(parts("GET http:///x\n"), ("GET", "/x", Some(""), Http09));
        assert_eq!(scan("POST http:///x\n"), Err(Refusal::InvalidHttp09Method));
        for target in [":///x", "://:80/x", "://", "://?x", "://a..b/", "://h:65536/", "://[]/"] {
            assert!(!has_valid_host(&format!("GET http{target} HTTP/1.1\n")), "{target}");
        }
        assert!(!has_valid_host("CONNECT a..b:80 HTTP/1.1\n"));
        assert!(has_valid_host("GET http://[::1]:8/ HTTP/1.1\n"));
        assert!(has_valid_host("GET / HTTP/1.1\n"));
    }

    #[test]
    fn the_verdict_comes_with_the_byte() {
        assert_eq!(scan("GET /very/long"), Ok(None));
        assert_eq!(scan("GET / HTTP/2"), Err(Refusal::VersionNotSupported));
        assert_eq!(scan("g"), Err(Refusal::InvalidMethod));
    }
}
