//! The head of a request: what is accepted, and what it means (RFC 9112, nginx's limits).

use std::mem::MaybeUninit;

use super::framing::{self, BodyLength};
use super::header::{Field, Headers, Known};
use super::header_line::{HeaderLine, Invalid, Line, NameRules};
use super::host::{self, Host};
use super::limits::Buffers;
use super::plain;
use super::refusal::{Quoted, Refusal};
use super::request_line::RequestLine;
use super::{ConnectionOption, Progress, Span};

pub use super::limits::{Limits, Rules};
pub use super::method::{Method, Version};

/// A request head; cleared and used again, so that its lists are allocated once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHead {
    /// The request line without its end; of a refused one, what has been received.
    pub line: Span,
    pub method: Span,
    pub method_kind: Method,
    /// As sent.
    pub target: Span,
    /// From the first `/`, arguments and fragment included: what `$request_uri` shows. Of an
    /// absolute-form target without a path it is empty, and `/` is meant, or begins with `?`.
    pub path: Span,
    /// `host[:port]` of an absolute-form (or CONNECT's authority-form) target, valid by
    /// [`host::parse_host`]; it wins over the `Host` header.
    pub target_host: Option<Span>,
    /// The parts of the `Host` header's value.
    pub host: Option<Host>,
    pub version: Version,
    pub headers: Headers,
    /// Lines with an odd name that were left out, without line end, each for one log line.
    pub dropped: Vec<Span>,
    pub body: BodyLength,
    /// The last `Connection` line that says something.
    pub connection: ConnectionOption,
    /// `Expect: 100-continue`, in HTTP/1.1.
    pub expect_continue: bool,
    scan: Scan,
}

impl RequestHead {
    /// Bytes of the lines that were read whole: what there is of a refused head.
    #[expect(clippy::arithmetic_side_effects, reason = "the head starts before its lines do")]
    pub fn read_len(&self) -> usize {
        self.scan.line_start - self.scan.head_start
    }

    /// Nothing is known of what was read behind the request line: its target is refused.
    pub fn forget_headers(&mut self) {
        self.headers.clear();
        self.dropped.clear();
        self.scan.line_start = self.scan.headers_start;
    }

    /// Whether the request line has been read and accepted, but perhaps for the host in it.
    pub fn is_line_read(&self) -> bool {
        matches!(self.scan.stage, Stage::Headers | Stage::Complete)
    }

    /// The protocol as the client named it, with what is behind it in the line. It is known as soon as it
    /// begins, but empty as long as the line has not been accepted.
    pub fn protocol(&self) -> Option<Span> {
        let start = self.scan.request_line.protocol? as usize;
        let end = if self.is_line_read() { self.line.end as usize } else { start };
        Some(Span::new(start, end))
    }

    /// Whether the target or a `Host` line has named the host; what follows may still be refused.
    pub fn names_host(&self) -> bool {
        self.scan.names_host
    }

    /// Bytes of empty lines that have filled the first buffer, once or more often, before the request
    /// line. They are not needed: a cleared head reads what is behind them to the same end.
    pub fn filled_with_empty_lines(&self, first: usize) -> usize {
        match self.scan.stage {
            Stage::EmptyLines => {
                let last = self.scan.position.checked_rem(first).unwrap_or(self.scan.position);
                self.scan.position.saturating_sub(last)
            }
            _ => 0,
        }
    }

    /// Whether the last line has been read; the head may still be refused for what it says.
    pub fn is_read(&self) -> bool {
        self.scan.stage == Stage::Complete
    }

    pub fn clear(&mut self) {
        let (mut headers, mut dropped) =
            (std::mem::take(&mut self.headers), std::mem::take(&mut self.dropped));
        headers.clear();
        dropped.clear();
        *self = RequestHead { headers, dropped, ..RequestHead::default() };
    }
}

/// How far a head has been read. Bytes before `position` are not looked at again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Scan {
    stage: Stage,
    position: usize,
    /// The first byte of the head, after empty lines.
    head_start: usize,
    /// The first byte of the current line.
    line_start: usize,
    /// The first byte behind the request line.
    headers_start: usize,
    buffers: Buffers,
    request_line: RequestLine,
    header_line: HeaderLine,
    /// The request line or a `Host` line has named the host.
    names_host: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    EmptyLines,
    RequestLine,
    Headers,
    Complete,
}

/// Reads as much of the head as there is.
///
/// `buf` holds what has been received since the previous request's end. On `Partial` the call is
/// repeated with more bytes after the same ones; what was read is not read again, so that a head
/// that arrives slowly costs no more. After `Complete` or a refusal, [`RequestHead::clear`] comes
/// first. A refused head holds what was read of the request line, for the log and the error page.
pub fn parse(buf: &[u8], rules: &Rules, head: &mut RequestHead) -> Result<Progress, Refusal> {
    if skip_empty_lines(buf, &rules.limits, head) {
        take_plain_lines(buf, rules, head)?;
    }
    parse_bytewise(buf, rules, head)
}

/// RFC 9112 section 2.2: empty lines before the request line. Whether it now begins.
fn skip_empty_lines(buf: &[u8], limits: &Limits, head: &mut RequestHead) -> bool {
    let scan = &mut head.scan;
    if scan.stage != Stage::EmptyLines {
        return false;
    }
    let rest = buf.get(scan.position..).unwrap_or_default();
    let empty = rest.iter().take_while(|&&byte| matches!(byte, b'\r' | b'\n')).count();
    scan.position = scan.position.saturating_add(empty);
    if empty == rest.len() {
        return false;
    }
    scan.stage = Stage::RequestLine;
    scan.head_start = scan.position;
    scan.line_start = scan.position;
    scan.buffers = Buffers::first(limits, scan.position);
    scan.request_line = RequestLine::at(scan.position);
    true
}

/// Takes the lines that httparse reads as nginx does, if the head is complete. Whatever it leaves
/// is for [`parse_bytewise`], which would have come to the same result.
fn take_plain_lines(buf: &[u8], rules: &Rules, head: &mut RequestHead) -> Result<(), Refusal> {
    let start = head.scan.position;
    let mut fields = [const { MaybeUninit::uninit() }; plain::FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let received = buf.get(start..).unwrap_or_default();
    let status = parsed.parse_with_uninit_headers(received, &mut fields);
    if !matches!(status, Ok(httparse::Status::Complete(_))) {
        return Ok(());
    }

    let Some((line, span, next)) = plain::request_line(buf, start, &parsed) else { return Ok(()) };
    if !head.scan.fits(&rules.limits, next) {
        return Ok(());
    }
    head.scan.request_line = line;
    head.request_line_read(span);
    head.begin_headers(next, &rules.limits);

    for header in parsed.headers {
        let at = head.scan.position;
        let Some((field, next)) = plain::field(buf, at, header) else { break };
        let limits = rules.at(head.scan.names_host);
        if !plain::is_plain_name(header.name) || !head.scan.fits(limits, next) {
            break;
        }
        // It counts as read also when what it says is refused.
        head.scan.line_read(next, limits);
        head.field_read(buf, limits, field)?;
    }
    Ok(())
}

/// The reader that decides what is valid. Goes on where the last call, or httparse, has stopped.
fn parse_bytewise(buf: &[u8], rules: &Rules, head: &mut RequestHead) -> Result<Progress, Refusal> {
    loop {
        let limits = rules.at(head.scan.names_host);
        let bound = head.scan.buffers.bound(limits, head.scan.line_start);
        let (end, is_full) = (bound.min(buf.len()), bound <= buf.len());
        match head.scan.stage {
            Stage::EmptyLines => return Ok(Progress::Partial { in_headers: false }),

            Stage::RequestLine => {
                let scan = &mut head.scan;
                let done = scan.request_line.scan(buf, &mut scan.position, end);
                if done == Ok(false) && !is_full {
                    return Ok(Progress::Partial { in_headers: false });
                }
                head.request_line_read(received_line(buf, head.scan.line_start, end));
                if !done? {
                    return Err(Refusal::UriTooLong);
                }
                head.begin_headers(head.scan.position, limits);
                if !head.scan.request_line.has_valid_host(buf) {
                    head.target_host = None;
                    return Err(Refusal::InvalidTargetHost);
                }
            }

            Stage::Headers => {
                let names = NameRules::Request { underscores: limits.underscores_in_headers };
                let scan = &mut head.scan;
                let start = scan.line_start;
                match scan.header_line.scan(buf, &mut scan.position, end, names) {
                    Ok(Line::Field) => {
                        let line = scan.header_line;
                        let end_of_line = scan.position;
                        scan.line_read(end_of_line, limits);
                        if line.odd_name && limits.ignore_invalid_headers {
                            head.dropped.push(received_line(buf, start, end));
                        } else {
                            let known = Known::of(line.name.of(buf));
                            let field = Field { name: line.name, value: line.value, known };
                            head.field_read(buf, limits, field)?;
                        }
                    }
                    Ok(Line::End) => {
                        let end_of_head = scan.position;
                        scan.line_read(end_of_head, limits);
                        head.scan.stage = Stage::Complete;
                        head.headers_read(buf)?;
                    }
                    Ok(Line::Partial) => {
                        let line = buf.get(start..end).unwrap_or_default();
                        return match line {
                            _ if !is_full => Ok(Progress::Partial { in_headers: true }),
                            // nginx says so only right behind the request line, later it blames the
                            // line before, which was not too long.
                            [] => Err(Refusal::HeaderTooLarge),
                            _ => Err(Refusal::HeaderLineTooLong { line: Quoted::new(line) }),
                        };
                    }
                    Err(Invalid { start, at }) => {
                        return Err(Refusal::InvalidHeaderLine {
                            seen: Quoted::new(buf.get(start..at).unwrap_or_default()),
                            offender: buf.get(at).copied().unwrap_or_default(),
                        });
                    }
                }
            }

            Stage::Complete => return Ok(Progress::Complete { len: head.scan.position }),
        }
    }
}

impl Scan {
    /// Whether the current line keeps the limits if the next one starts at `next`.
    fn fits(&self, limits: &Limits, next: usize) -> bool {
        self.buffers.fit(limits, self.line_start, next)
    }

    /// The next line starts at `next`, and the current one fits.
    fn line_read(&mut self, next: usize, limits: &Limits) {
        self.buffers.hold(limits, self.line_start, next);
        self.position = next;
        self.line_start = next;
    }
}

/// The line that starts at `start`, as far as it has been received.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "start and a number of bytes of buf that lie behind it"
)]
fn received_line(buf: &[u8], start: usize, end: usize) -> Span {
    let line = buf.get(start..end).unwrap_or_default();
    let len = memchr::memchr2(b'\r', b'\n', line).unwrap_or(line.len());
    Span::new(start, start + len)
}

impl RequestHead {
    /// Also of a line that is refused, as far as it goes.
    fn request_line_read(&mut self, line: Span) {
        self.line = line;
        let parts = &self.scan.request_line;
        self.method = parts.method;
        self.method_kind = parts.method_kind;
        self.target = parts.target;
        self.path = parts.path;
        self.target_host = parts.host;
        self.version = parts.version;
    }

    /// The request line is accepted; behind it, at `next`, begins the first header line.
    fn begin_headers(&mut self, next: usize, limits: &Limits) {
        self.scan.line_read(next, limits);
        self.scan.headers_start = next;
        self.scan.names_host = self.target_host.is_some();
        self.scan.stage = match self.version {
            Version::Http09 => Stage::Complete,
            Version::Http10 | Version::Http11 => Stage::Headers,
        };
    }

    /// The rules about one line, applied as it comes.
    fn field_read(&mut self, buf: &[u8], limits: &Limits, field: Field) -> Result<(), Refusal> {
        if self.headers.len() >= limits.count_max {
            return Err(Refusal::TooManyHeaders);
        }
        let value = field.value.of(buf);
        let quote = |field: Field| Quoted::line(field.name.of(buf), field.value.of(buf));
        match field.known {
            Known::Host => {
                if let Some(previous) = self.headers.find(Known::Host) {
                    let (line, previous) = (quote(field), quote(previous));
                    return Err(Refusal::DuplicateHost { line, previous });
                }
                self.host = host::parse_host(value);
                if self.host.is_none() {
                    // The log shows it.
                    self.headers.push(field);
                    return Err(Refusal::InvalidHost);
                }
                self.scan.names_host = true;
            }
            Known::Connection => match ConnectionOption::of(value) {
                ConnectionOption::None => {}
                said => self.connection = said,
            },
            Known::ContentLength
            | Known::TransferEncoding
            | Known::ContentRange
            | Known::Expect
            | Known::Authorization
            | Known::ProxyAuthorization
            | Known::IfModifiedSince
            | Known::IfUnmodifiedSince
            | Known::IfMatch
            | Known::IfNoneMatch
            | Known::IfRange => {
                if let Some(previous) = self.headers.find(field.known) {
                    let (line, previous) = (quote(field), quote(previous));
                    return Err(Refusal::DuplicateHeader { line, previous });
                }
            }
            _ => {}
        }
        self.headers.push(field);
        Ok(())
    }

    /// The rules that need the whole head, in nginx's order.
    fn headers_read(&mut self, buf: &[u8]) -> Result<(), Refusal> {
        if self.version >= Version::Http11 && !self.headers.contains(Known::Host) {
            return Err(Refusal::MissingHost);
        }
        if let Some(field) = self.headers.find(Known::ContentLength) {
            let length = framing::parse_content_length(field.value.of(buf));
            self.body = BodyLength::Length(length.ok_or(Refusal::InvalidContentLength)?);
        }
        if let Some(field) = self.headers.find(Known::TransferEncoding) {
            if self.version < Version::Http11 {
                return Err(Refusal::TransferEncodingInHttp10);
            }
            let value = field.value.of(buf);
            if !framing::is_chunked(value) {
                return Err(Refusal::UnknownTransferEncoding { value: Quoted::new(value) });
            }
            if self.body != BodyLength::None {
                return Err(Refusal::ContentLengthAndTransferEncoding);
            }
            self.body = BodyLength::Chunked;
        }
        match self.method_kind {
            Method::Trace => return Err(Refusal::Trace),
            Method::Connect => return Err(Refusal::Connect),
            _ => {}
        }
        let expect = self.headers.find(Known::Expect).map(|field| field.value.of(buf));
        self.expect_continue = self.version >= Version::Http11
            && expect.is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
        Ok(())
    }
}

/// However a head arrives and whoever tokenises it, the result is the same, and it is clean.
pub fn fuzz_request(data: &[u8]) {
    let (wide, tight) = (Limits::default(), TIGHT);
    for rules in [
        wide.into(),
        tight.into(),
        Rules { limits: wide, behind_host: Some(tight) },
        Rules { limits: tight, behind_host: Some(wide) },
    ] {
        let mut head = RequestHead::default();
        let whole = parse(data, &rules, &mut head);

        let mut bytewise_head = RequestHead::default();
        skip_empty_lines(data, &rules.limits, &mut bytewise_head);
        let bytewise = parse_bytewise(data, &rules, &mut bytewise_head);
        assert_eq!(whole, bytewise);
        assert_same(&head, &bytewise_head);

        let mut slow_head = RequestHead::default();
        let mut slow = Ok(Progress::Partial { in_headers: false });
        for end in 0..=data.len() {
            slow = parse(data.get(..end).unwrap_or_default(), &rules, &mut slow_head);
            if !matches!(slow, Ok(Progress::Partial { .. })) {
                break;
            }
        }
        assert_eq!(whole, slow);
        if whole.is_ok() {
            assert_same(&head, &slow_head);
        }
        if let Ok(Progress::Complete { len }) = whole {
            assert_clean(data, len, &rules, &head);
        }
    }
}

/// Limits that short input reaches.
const TIGHT: Limits = Limits {
    first: 28,
    number: 2,
    size: 24,
    count_max: 3,
    ignore_invalid_headers: false,
    underscores_in_headers: true,
};

/// Equal but for what only guides the reading.
fn assert_same(left: &RequestHead, right: &RequestHead) {
    let without_scan = |head: &RequestHead| RequestHead { scan: Scan::default(), ..head.clone() };
    assert_eq!(without_scan(left), without_scan(right));
}

#[expect(clippy::arithmetic_side_effects, reason = "the property that is tested")]
fn assert_clean(data: &[u8], len: usize, rules: &Rules, head: &RequestHead) {
    assert!(len <= data.len());
    assert_eq!(data.get(len - 1), Some(&b'\n'));
    assert!(!head.method.is_empty() && head.method.of(data).iter().all(|&b| b > b' ' && b < 0x7f));
    assert!(!head.target.of(data).iter().any(|&byte| byte <= b' ' || byte == 0x7f));
    assert!(matches!(head.path.of(data).first(), None | Some(b'/' | b'?')));
    let count_max = [Some(&rules.limits), rules.behind_host.as_ref()];
    let count_max = count_max.into_iter().flatten().map(|limits| limits.count_max).max();
    assert!(Some(head.headers.len()) <= count_max);
    for field in &head.headers {
        let (name, value) = (field.name.of(data), field.value.of(data));
        assert!(!name.is_empty());
        assert!(!name.iter().any(|&byte| byte <= b' ' || byte == b':' || byte == 0x7f));
        assert!(!value.iter().any(|byte| b"\0\r\n".contains(byte)));
        assert!(!value.starts_with(b" ") && !value.ends_with(b" "));
        assert_eq!(field.known, Known::of(name));
    }
    for known in [Known::Host, Known::ContentLength, Known::TransferEncoding] {
        assert!(head.headers.find_all(known).count() <= 1);
    }
    let lengths =
        [Known::ContentLength, Known::TransferEncoding].map(|known| head.headers.contains(known));
    let body_agrees = match head.body {
        BodyLength::None => lengths == [false, false],
        BodyLength::Length(_) => lengths == [true, false],
        BodyLength::Chunked => lengths == [false, true] && head.version == Version::Http11,
        BodyLength::UntilClose => false,
    };
    assert!(body_agrees);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &[u8]) -> (Result<Progress, Refusal>, RequestHead) {
        read_with(text, &Limits::default())
    }

    fn read_with(text: &[u8], limits: &Limits) -> (Result<Progress, Refusal>, RequestHead) {
        fuzz_request(text);
        let mut head = RequestHead::default();
        (parse(text, &(*limits).into(), &mut head), head)
    }

    fn refusal(text: &str) -> (u16, String) {
        let (result, _) = read(text.as_bytes());
        let refusal = result.expect_err(text);
        (refusal.status(), refusal.to_string())
    }

    #[test]
    fn a_plain_request() {
        let text = b"\r\n\nGET /a?b#c HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\
            Expect: 100-Continue\r\nConnection: close\r\nConnection: x, keep-alive\r\n\r\nabc";
        let (result, head) = read(text);
        assert_eq!(result, Ok(Progress::Complete { len: text.len() - 3 }));
        assert_eq!(head.line.of(text), b"GET /a?b#c HTTP/1.1");
        assert_eq!(head.method.of(text), b"GET");
        assert_eq!(head.method_kind, Method::Get);
        assert_eq!(head.target.of(text), b"/a?b#c");
        assert_eq!(head.path, head.target);
        assert_eq!(head.version, Version::Http11);
        assert_eq!(head.body, BodyLength::Length(3));
        assert_eq!(head.connection, ConnectionOption::KeepAlive);
        assert!(head.expect_continue);
        assert_eq!(head.headers.len(), 5);
        assert_eq!(
            head.headers.find(Known::Host).map(|field| field.value.of(text)),
            Some(&b"h"[..])
        );
    }

    #[test]
    fn a_cleared_head_is_new() {
        let mut head = RequestHead::default();
        let limits = Rules::default();
        let first =
            b"POST http://h/ HTTP/1.1\r\nHost: h\r\na_b: c\r\nTransfer-Encoding: Chunked\r\n\r\n";
        assert!(matches!(parse(first, &limits, &mut head), Ok(Progress::Complete { .. })));
        assert_eq!(head.body, BodyLength::Chunked);
        assert_eq!(head.dropped.len(), 1);
        head.clear();
        assert_eq!(head, RequestHead::default());
    }

    #[test]
    fn absolute_form_and_http_0_9() {
        let text = b"GET http://a:8?x HTTP/1.0\n\n";
        let (result, head) = read(text);
        assert_eq!(result, Ok(Progress::Complete { len: text.len() }));
        assert_eq!(head.target_host.map(|host| host.of(text)), Some(&b"a:8"[..]));
        assert_eq!(head.path.of(text), b"?x");

        let text = b"GET /x\r\nHost: h\r\n";
        let (result, head) = read(text);
        assert_eq!(result, Ok(Progress::Complete { len: 8 }));
        assert_eq!(head.version, Version::Http09);
        assert_eq!(head.line.of(text), b"GET /x");
    }

    #[test]
    fn odd_names_are_left_out_or_kept() {
        let text = b"GET / HTTP/1.0\r\na_b: 1\r\nX(: 2\r\nC: 3\r\n\r\n";
        let names = |limits: &Limits| {
            let (result, head) = read_with(text, limits);
            assert!(matches!(result, Ok(Progress::Complete { .. })));
            let join = |spans: Vec<Span>| {
                spans
                    .iter()
                    .map(|span| String::from_utf8_lossy(span.of(text)))
                    .collect::<Vec<_>>()
                    .join("|")
            };
            (join(head.headers.iter().map(|field| field.name).collect()), join(head.dropped))
        };
        let limits = Limits::default();
        assert_eq!(names(&limits), ("C".into(), "a_b: 1|X(: 2".into()));
        let underscores = Limits { underscores_in_headers: true, ..limits };
        assert_eq!(names(&underscores), ("a_b|C".into(), "X(: 2".into()));
        let all = Limits { ignore_invalid_headers: false, ..limits };
        assert_eq!(names(&all), ("a_b|X(|C".into(), String::new()));
    }

    #[test]
    fn a_server_with_rules_of_its_own() {
        let limits = Limits::default();
        let underscores = Limits { underscores_in_headers: true, ..limits };
        let names = |text: &[u8]| {
            let mut head = RequestHead::default();
            let rules = Rules { limits, behind_host: Some(underscores) };
            parse(text, &rules, &mut head).unwrap();
            head.headers.iter().map(|field| field.name.of(text).to_vec()).collect::<Vec<_>>()
        };
        let text = b"GET / HTTP/1.1\r\na_b: 1\r\nHost: a\r\nc_d: 1\r\n\r\n";
        assert_eq!(names(text), [b"Host".to_vec(), b"c_d".to_vec()]);
        let text = b"GET http://a/ HTTP/1.1\r\na_b: 1\r\nHost: b\r\n\r\n";
        assert_eq!(names(text), [b"a_b".to_vec(), b"Host".to_vec()]);
    }

    /// A head with lines of these lengths behind its request line, those of nine bytes `Host: a`.
    fn head_of(lines: &[usize]) -> Vec<u8> {
        let mut text = b"GET / HTTP/1.1\r\n".to_vec();
        for &len in lines {
            let start = text.len();
            text.extend_from_slice(if len == 9 { b"Host: a" } else { b"A: " });
            text.resize(start + len - 2, b'a');
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"\r\n");
        text
    }

    /// With a first buffer of a kilobyte.
    fn sized(number: usize, size: usize) -> Limits {
        Limits { number, size, ..Limits::default() }
    }

    fn verdict(rules: &Rules, text: &[u8]) -> &'static str {
        match parse(text, rules, &mut RequestHead::default()) {
            Ok(Progress::Complete { .. }) => "read",
            Err(Refusal::UriTooLong) => "uri",
            Err(Refusal::HeaderLineTooLong { .. }) => "line",
            Err(Refusal::HeaderTooLarge) => "head",
            _ => "?",
        }
    }

    #[test]
    fn lines_are_packed_into_buffers() {
        for (limits, lines, wanted) in [
            // The first buffer comes on top of the large ones.
            (sized(1, 8192), &[9, 300, 7908][..], "read"),
            (sized(1, 8192), &[9, 300, 8190], "read"),
            (sized(1, 8192), &[9, 300, 8193], "line"),
            (sized(4, 8192), &[9, 8190, 8190, 8190, 8190], "read"),
            (sized(4, 8192), &[9, 8192, 8192, 8192, 8190], "read"),
            // The empty line lies in a buffer as well.
            (sized(4, 8192), &[9, 8192, 8192, 8192, 8191], "line"),
            (sized(4, 8192), &[9, 8192, 8192, 8192, 8192], "head"),
            // What a buffer has left is lost to a line that does not fit.
            (sized(4, 8192), &[9, 4100, 4100, 4100, 4100], "read"),
            (sized(4, 8192), &[9, 4100, 4100, 4100, 4100, 4100], "line"),
            (sized(2, 1024), &[9, 500, 480, 500, 500, 500, 500], "read"),
            (sized(2, 1024), &[9, 500, 520, 520, 520], "line"),
            // In the first buffer a line may be longer than a large one, but not move to one.
            (sized(1, 512), &[9, 997], "read"),
            (sized(1, 512), &[9, 998], "read"),
            (sized(1, 512), &[9, 1000], "line"),
            (sized(1, 512), &[9, 600, 500], "read"),
            (sized(1, 512), &[9, 600, 500, 12], "head"),
        ] {
            let text = head_of(lines);
            fuzz_request(&text);
            assert_eq!(verdict(&limits.into(), &text), wanted, "{limits:?} {lines:?}");
        }
    }

    #[test]
    fn empty_lines_fill_the_first_buffer_over_and_over() {
        let rules = Rules::from(sized(1, 512));
        let behind = |empty: usize, lines: &[usize]| {
            let text = [b"\n".repeat(empty), head_of(lines)].concat();
            let mut head = RequestHead::default();
            assert!(matches!(
                parse(&text[..empty], &rules, &mut head),
                Ok(Progress::Partial { .. })
            ));
            let filled = head.filled_with_empty_lines(rules.limits.first);
            assert_eq!(filled, empty / 1024 * 1024);
            assert_eq!(verdict(&rules, &text), verdict(&rules, &text[filled..]));
            verdict(&rules, &text)
        };
        assert_eq!(behind(0, &[9, 999]), "read");
        assert_eq!(behind(1, &[9, 999]), "line");
        for full in [1024, 40 * 1024] {
            assert_eq!(behind(full - 1, &[9]), "read");
            assert_eq!(behind(full, &[9, 999]), "read");
            assert_eq!(behind(full + 2, &[9, 997]), "read");
            assert_eq!(behind(full + 2, &[9, 998]), "line");
        }
    }

    #[test]
    fn a_server_with_buffers_of_its_own() {
        let (small, large, tiny) = (sized(2, 2048), sized(4, 8192), sized(1, 512));
        for (limits, chosen, lines, wanted) in [
            (small, large, &[9, 8192][..], "read"),
            (small, large, &[9, 8193], "line"),
            (small, large, &[9, 8000, 8000, 8000, 8000], "read"),
            (small, large, &[9, 8000, 8000, 8000, 8000, 8000], "line"),
            (large, small, &[9, 2049], "line"),
            (large, small, &[9, 2000, 2000], "read"),
            (large, small, &[9, 2000, 2000, 2000], "line"),
            // What came before the host keeps its buffer, and counts as one.
            (large, small, &[8000, 9, 2000], "read"),
            (large, small, &[8000, 9, 2000, 2000], "line"),
            // All that are left came before it. What the last one has left is there.
            (large, small, &[8000, 8000, 8000, 9], "read"),
            (large, small, &[8000, 8000, 8000, 9, 181], "read"),
            (large, small, &[8000, 8000, 8000, 9, 2000], "line"),
            (large, tiny, &[5000, 9, 3000], "read"),
            (large, tiny, &[5000, 9, 3182], "line"),
        ] {
            let rules = Rules { limits, behind_host: Some(chosen) };
            assert_eq!(verdict(&rules, &head_of(lines)), wanted, "{rules:?} {lines:?}");
        }
    }

    #[test]
    fn refusals() {
        for (text, status, wanted) in [
            ("GET / HTTP/1.1\r\n\r\n", 400, "client sent HTTP/1.1 request without \"Host\" header"),
            ("GET / HTTP/1.1\r\nHost:\r\n", 400, "client sent invalid host header"),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n",
                400,
                "client sent duplicate host header: \"Host: b\", previous value: \"Host: a\"",
            ),
            (
                "GET / HTTP/1.0\r\nContent-Length: 1\r\ncontent-length: 1\r\n",
                400,
                "client sent duplicate header line: \"content-length: 1\", \
              previous value: \"Content-Length: 1\"",
            ),
            (
                "GET / HTTP/1.0\r\nIf-Range: 1\r\nIf-Range: 2\r\n",
                400,
                "client sent duplicate header line: \"If-Range: 2\", previous value: \"If-Range: 1\"",
            ),
            (
                "GET / HTTP/1.0\r\nContent-Length: +1\r\n\r\n",
                400,
                "client sent invalid \"Content-Length\" header",
            ),
            (
                "GET / HTTP/1.0\r\nContent-Length:\r\n\r\n",
                400,
                "client sent invalid \"Content-Length\" header",
            ),
            (
                "GET / HTTP/1.0\r\nContent-Length: \t1\r\n\r\n",
                400,
                "client sent invalid \"Content-Length\" header",
            ),
            (
                "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
                400,
                "client sent HTTP/1.0 request with \"Transfer-Encoding\" header",
            ),
            (
                "GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
                400,
                "client sent \"Content-Length\" and \"Transfer-Encoding\" headers at the same time",
            ),
            (
                "GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\nContent-Length: 0\r\n\r\n",
                501,
                "client sent unknown \"Transfer-Encoding\": \"gzip, chunked\"",
            ),
            (
                "GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
                501,
                "client sent unknown \"Transfer-Encoding\": \"\\x0Bchunked\"",
            ),
            (
                "GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding\r\n\r\n",
                501,
                "client sent unknown \"Transfer-Encoding\": \"\"",
            ),
            ("TRACE / HTTP/1.1\r\nHost: h\r\n\r\n", 405, "client sent TRACE method"),
            ("CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", 405, "client sent CONNECT method"),
            (
                "GET / HTTP/1.1\r\nHost : h\r\n",
                400,
                "client sent invalid header line: \"Host\\x20...\"",
            ),
            (
                "GET / HTTP/1.1\r\n Host: h\r\n",
                400,
                "client sent invalid header line: \"\\x20...\"",
            ),
            (
                "GET / HTTP/1.1\r\nA: b\r\n c\r\n",
                400,
                "client sent invalid header line: \"\\x20...\"",
            ),
            (
                "GET / HTTP/1.1\r\nA: b\rc\r\n",
                400,
                "client sent invalid header line: \"A: b\\x0d...\"",
            ),
            ("GET / HTTP/2.0\r\n", 505, "client sent invalid version"),
        ] {
            assert_eq!(refusal(text), (status, wanted.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn limits_are_nginx_s() {
        let line = |len: usize| {
            let mut text = vec![b'a'; len];
            text[..5].copy_from_slice(b"GET /");
            text[len - 11..].copy_from_slice(b" HTTP/1.0\r\n");
            text
        };
        let limits = Rules::default();
        let mut head = RequestHead::default();
        assert_eq!(
            parse(&line(8192), &limits, &mut head),
            Ok(Progress::Partial { in_headers: true })
        );
        for text in [&line(8193)[..], &line(8193)[..8192]] {
            head.clear();
            assert_eq!(parse(text, &limits, &mut head), Err(Refusal::UriTooLong));
            assert!(head.line.of(text).starts_with(b"GET /aaa"));
            assert_eq!(head.method_kind, Method::Get);
        }

        let request = |line_len: usize, lines: usize| {
            let mut text = b"GET / HTTP/1.0\r\n".to_vec();
            for _ in 0..lines {
                let start = text.len();
                text.extend_from_slice(b"A: ");
                text.resize(start + line_len - 2, b'a');
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"\r\n");
            text
        };
        let mut verdict = |text: &[u8]| {
            head.clear();
            parse(text, &limits, &mut head).map_err(|refusal| refusal.to_string())
        };
        assert!(verdict(&request(8192, 1)).is_ok());
        let long = verdict(&request(8193, 1)).expect_err("too long");
        assert!(long.starts_with("client sent too long header line: \"A: aaa"));
        assert!(long.ends_with("aa...\""));
        assert_eq!(long.len(), "client sent too long header line: \"...\"".len() + Quoted::LEN_MAX);
        assert!(verdict(&request(8190, 4)).is_ok());
        assert_eq!(verdict(&request(8192, 4)), Err("client sent too large request".into()));
        assert!(verdict(&request(5, 1000)).is_ok());
        assert_eq!(verdict(&request(5, 1001)), Err("client sent too many header lines".into()));
    }

    #[test]
    fn a_refused_line_is_there_for_the_log() {
        let text = b"GET /\x01bc HTTP/1.1\r\n";
        let (result, head) = read(text);
        assert_eq!(result, Err(Refusal::InvalidRequest));
        assert_eq!(head.line.of(text), b"GET /\x01bc HTTP/1.1");
        assert_eq!(head.method.of(text), b"GET");
    }

    #[test]
    fn httparse_takes_a_common_head_whole() {
        let text = b"GET /index.html?x=1 HTTP/1.1\r\nHost: example.com\r\nUser-Agent: w (x; y)\r\n\
            Accept:*/*\r\nEmpty:\r\nTrailing: spaces  \r\nCookie: a=b; c=\"d\"\r\n\r\n";
        let (limits, mut head) = (Limits::default(), RequestHead::default());
        assert!(skip_empty_lines(text, &limits, &mut head));
        assert_eq!(take_plain_lines(text, &limits.into(), &mut head), Ok(()));
        assert_eq!(head.scan.position, text.len() - 2);
        assert_eq!(head.headers.len(), 6);
    }

    /// Pieces that heads are made of, and that attacks are made of.
    fn pieces() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop::sample::select(vec![
            &b"GET "[..],
            b"POST ",
            b"CONNECT ",
            b"TRACE ",
            b"get ",
            b"/",
            b"/a%20b?c=d#e",
            b"http://h",
            b"h:80",
            b"[::1]",
            b" ",
            b"\t",
            b" HTTP/1.1\r\n",
            b" HTTP/1.0\n",
            b" HTTP/2.0\r\n",
            b"HTTP/",
            b"1.1",
            b"\r\n",
            b"\r\n\r\n",
            b"\n",
            b"\r",
            b"Host: h\r\n",
            b"Host: a..b\r\n",
            b"Content-Length: 5\r\n",
            b"Content-Length: \t5 \r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: gzip\r\n",
            b"a_b: c\r\n",
            b"A: b\t\r\n",
            b"A:\t b  \r\n",
            b"A : b\r\n",
            b"A\r\n",
            b"A: \xe9\xff\x01\r\n",
            b"\xff",
            b"\0",
            b"\x7f",
            b":",
            b"Expect: 100-continue\r\n",
            b"Connection: close\r\n",
            b"X: y\r\r\n",
            b"!#$: z\n",
        ]);
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_bytes(data: Vec<u8>) {
            fuzz_request(&data);
        }

        /// Against nginx's buffers, told in another way.
        #[test]
        fn any_lines(
            first in 1_usize..120,
            number in 1_usize..4,
            size in 1_usize..60,
            lines in prop::collection::vec(5_usize..70, 0..12),
        ) {
            let (mut room, mut left, mut fits) = (first, number, true);
            for len in [&[16], &lines[..], &[2]].concat() {
                if len > room {
                    fits &= left > 0 && len <= size;
                    left = left.saturating_sub(1);
                    room = size.max(len);
                }
                room -= len;
            }
            let rules = Rules::from(Limits { first, number, size, ..Limits::default() });
            // Of version 1.0 none has to be the host.
            let text = String::from_utf8(head_of(&lines)).unwrap().replace("/1.1", "/1.0");
            let text = text.replace("Host:", "Best:");
            prop_assert_eq!(verdict(&rules, text.as_bytes()) == "read", fits);
        }

        #[test]
        fn any_pieces(data in pieces()) {
            fuzz_request(&data);
        }

        #[test]
        fn any_headers(data in pieces()) {
            fuzz_request(&[b"GET /x HTTP/1.1\r\nHost: h\r\n", data.as_slice(), b"\r\n\r\n"].concat());
        }
    }
}
