//! The head of an upstream's response: what is accepted, and what it means.

use super::framing::{self, BodyLength};
use super::header::{Field, Headers, Known};
use super::header_line::{HeaderLine, Invalid, Line, NameRules};
use super::plain;
use super::refusal::{Quoted, ResponseRefusal};
use super::status_line::{NotAStatusLine, PROTOCOL, StatusLine};
use super::{ConnectionOption, Progress, Span, decimal_digit};

/// How the first line is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A status line; what does not begin like one is a response of HTTP/0.9.
    Http,
    /// A status line, a `Status` header, or neither (uwsgi; RFC 3875 section 6).
    Cgi,
}

/// A response head; cleared and used again, so that its lists are allocated once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseHead {
    pub code: u16,
    /// Code and text to be sent on (`404 Not Found`). Empty when there is none and `code` decides.
    pub status: Span,
    /// Major and minor version; `None` without a status line.
    pub version: Option<(u16, u16)>,
    /// Not a head at all: every byte is body, and the answer goes out without a head.
    pub is_http09: bool,
    /// All lines but `duplicates`, in their order.
    pub headers: Headers,
    /// Lines that came again and are left out, each for one log line.
    pub duplicates: Vec<Duplicate>,
    /// What the head says, before [`Self::body_for`].
    pub body: BodyLength,
    /// What `Content-Length` says, also where there is no body.
    pub content_length: Option<u64>,
    /// `Close` if any `Connection` line says so.
    pub connection: ConnectionOption,
    scan: Scan,
}

/// A header of which the first line counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duplicate {
    pub left_out: Field,
    pub kept: Field,
}

impl Duplicate {
    /// The warning for the error log.
    pub fn text(&self, buf: &[u8]) -> String {
        format!(
            "upstream sent duplicate header line: \"{}\", previous value: \"{}\", ignored",
            quote(buf, self.left_out),
            quote(buf, self.kept)
        )
    }
}

/// How far a head has been read. Bytes before `position` are not looked at again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Scan {
    stage: Stage,
    position: usize,
    status_line: StatusLine,
    header_line: HeaderLine,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    StatusLine,
    /// No header line has been looked at.
    FirstHeader,
    Headers,
    Complete,
}

impl ResponseHead {
    pub fn clear(&mut self) {
        let (mut headers, mut duplicates) =
            (std::mem::take(&mut self.headers), std::mem::take(&mut self.duplicates));
        headers.clear();
        duplicates.clear();
        *self = ResponseHead { headers, duplicates, ..ResponseHead::default() };
    }

    /// Where the body ends (RFC 9112 section 6.3). After a 101 that becomes a tunnel it does not
    /// matter.
    pub fn body_for(&self, request_is_head: bool) -> BodyLength {
        match self.code {
            _ if self.is_http09 => BodyLength::UntilClose,
            _ if request_is_head => BodyLength::None,
            204 | 304 => BodyLength::None,
            // Passed on as a final response, by nginx's lights; never chunked.
            100..=199 if self.body == BodyLength::Chunked => BodyLength::UntilClose,
            _ => self.body,
        }
    }

    /// Whether the server may be asked again on this connection, by version and `Connection`: HTTP/1.1
    /// without `close`. An HTTP/1.0 server is not believed, whatever it says. After a 1xx the response
    /// is still to come.
    pub fn keep_alive(&self) -> bool {
        self.version.is_some_and(|version| version >= (1, 1))
            && self.code >= 200
            && self.connection != ConnectionOption::Close
    }
}

/// Reads as much of the head as there is; it must fit in `max` bytes (`proxy_buffer_size`).
///
/// `buf` begins with the first byte of the response. On `Partial` the call is repeated with more
/// bytes after the same ones. Informational responses are heads like others: what comes next is
/// read with a cleared head, from the byte after this one.
pub fn parse(
    buf: &[u8],
    form: Form,
    max: usize,
    head: &mut ResponseHead,
) -> Result<Progress, ResponseRefusal> {
    let (end, is_full) = if buf.len() < max { (buf.len(), false) } else { (max, true) };
    let buf = buf.get(..end).unwrap_or(buf);

    if head.scan.stage == Stage::StatusLine {
        read_status_line(buf, form, head)?;
    }
    if head.scan.stage == Stage::FirstHeader && head.scan.position < end {
        head.scan.stage = Stage::Headers;
        take_plain_headers(buf, head)?;
    }
    if head.scan.stage == Stage::Headers {
        read_headers(buf, form, head)?;
    }
    match head.scan.stage {
        Stage::Complete => Ok(Progress::Complete { len: head.scan.position }),
        _ if is_full => Err(ResponseRefusal::HeaderTooBig),
        stage => Ok(Progress::Partial { in_headers: stage != Stage::StatusLine }),
    }
}

fn read_status_line(
    buf: &[u8],
    form: Form,
    head: &mut ResponseHead,
) -> Result<(), ResponseRefusal> {
    let scan = &mut head.scan;
    match (scan.status_line.scan(buf, &mut scan.position, buf.len()), form) {
        (Ok(false), _) => {}
        (Ok(true), _) => {
            scan.stage = Stage::FirstHeader;
            let line = &scan.status_line;
            head.version = Some((line.major, line.minor));
            head.code = line.code;
            head.status = line.status;
        }
        // Stricter than nginx: what such a line was to say, two readers may take differently, and
        // nothing of what follows it may reach the client raw.
        (Err(NotAStatusLine), _) if buf.starts_with(PROTOCOL) => {
            return Err(ResponseRefusal::InvalidStatusLine);
        }
        (Err(NotAStatusLine), Form::Cgi) => {
            scan.stage = Stage::FirstHeader;
            scan.position = 0;
        }
        (Err(NotAStatusLine), Form::Http) => {
            scan.stage = Stage::Complete;
            scan.position = 0;
            head.is_http09 = true;
            head.code = 200;
            head.body = BodyLength::UntilClose;
            head.connection = ConnectionOption::Close;
        }
    }
    Ok(())
}

/// More header lines than most responses have; room for them is written to for each.
const PLAIN_FIELDS_MAX: usize = 32;

/// Takes the lines that httparse reads as nginx does, if the head is complete. Whatever it leaves
/// is for [`read_headers`], which would have come to the same result.
fn take_plain_headers(buf: &[u8], head: &mut ResponseHead) -> Result<(), ResponseRefusal> {
    let mut fields = [httparse::EMPTY_HEADER; PLAIN_FIELDS_MAX];
    let received = buf.get(head.scan.position..).unwrap_or_default();
    let Ok(httparse::Status::Complete((_, headers))) =
        httparse::parse_headers(received, &mut fields)
    else {
        return Ok(());
    };
    for header in headers {
        let Some((field, next)) = plain::field(buf, head.scan.position, header) else { break };
        head.field_read(buf, field)?;
        head.scan.position = next;
    }
    Ok(())
}

/// The reader that decides what is valid. Goes on where the last call, or httparse, has stopped.
fn read_headers(buf: &[u8], form: Form, head: &mut ResponseHead) -> Result<(), ResponseRefusal> {
    loop {
        let scan = &mut head.scan;
        match scan.header_line.scan(buf, &mut scan.position, buf.len(), NameRules::Response) {
            Ok(Line::Field) => {
                let HeaderLine { name, value, .. } = scan.header_line;
                let known = Known::of(name.of(buf));
                head.field_read(buf, Field { name, value, known })?;
            }
            Ok(Line::End) => {
                head.headers_read(buf, form)?;
                head.scan.stage = Stage::Complete;
                return Ok(());
            }
            Ok(Line::Partial) => return Ok(()),
            Err(Invalid { start, at }) => {
                return Err(ResponseRefusal::InvalidHeader {
                    seen: Quoted::new(buf.get(start..at).unwrap_or_default()),
                    offender: buf.get(at).copied().unwrap_or_default(),
                });
            }
        }
    }
}

fn quote(buf: &[u8], field: Field) -> Quoted {
    Quoted::line(field.name.of(buf), field.value.of(buf))
}

impl ResponseHead {
    /// The rules about one line, applied as it comes.
    fn field_read(&mut self, buf: &[u8], field: Field) -> Result<(), ResponseRefusal> {
        let value = field.value.of(buf);
        let previous = self.headers.find(field.known);
        match (field.known, previous) {
            (Known::ContentLength | Known::TransferEncoding, Some(previous)) => {
                let (line, previous) = (quote(buf, field), quote(buf, previous));
                return Err(ResponseRefusal::DuplicateHeader { line, previous });
            }
            (Known::ContentLength, None) => {
                if self.headers.contains(Known::TransferEncoding) {
                    return Err(ResponseRefusal::ContentLengthAndTransferEncoding);
                }
                let length = framing::parse_content_length(value).ok_or_else(|| {
                    ResponseRefusal::InvalidContentLength { line: quote(buf, field) }
                })?;
                self.content_length = Some(length);
            }
            (Known::TransferEncoding, None) => {
                if self.headers.contains(Known::ContentLength) {
                    return Err(ResponseRefusal::ContentLengthAndTransferEncoding);
                }
                if !framing::is_chunked(value) {
                    let value = Quoted::new(value);
                    return Err(ResponseRefusal::UnknownTransferEncoding { value });
                }
            }
            (Known::Connection, _) => match (self.connection, ConnectionOption::of(value)) {
                (ConnectionOption::Close, _) | (_, ConnectionOption::None) => {}
                (_, said) => self.connection = said,
            },
            (
                Known::Status
                | Known::ContentType
                | Known::Date
                | Known::Server
                | Known::Etag
                | Known::LastModified
                | Known::Location
                | Known::Refresh
                | Known::Expires
                | Known::XAccelRedirect
                | Known::XAccelExpires
                | Known::XAccelLimitRate,
                Some(kept),
            ) => {
                self.duplicates.push(Duplicate { left_out: field, kept });
                return Ok(());
            }
            _ => {}
        }
        self.headers.push(field);
        Ok(())
    }

    /// The rules that need the whole head.
    fn headers_read(&mut self, buf: &[u8], form: Form) -> Result<(), ResponseRefusal> {
        self.body = match self.content_length {
            Some(length) => BodyLength::Length(length),
            None if self.headers.contains(Known::TransferEncoding) => BodyLength::Chunked,
            None => BodyLength::UntilClose,
        };
        if form == Form::Cgi && self.version.is_none() {
            self.cgi_status(buf)?;
        }
        Ok(())
    }

    /// RFC 3875 section 6.2 and 6.3.3: a status without a status line.
    fn cgi_status(&mut self, buf: &[u8]) -> Result<(), ResponseRefusal> {
        let Some(field) = self.headers.find(Known::Status) else {
            self.code = if self.headers.contains(Known::Location) { 302 } else { 200 };
            return Ok(());
        };
        let value = field.value.of(buf);
        let code = match *value {
            // It would be part of the status line.
            _ if value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') => None,
            [a, b, c] => status_code([a, b, c]),
            // "2000 OK" would reach the client as another status than it has here.
            [a, b, c, after, ..] if !after.is_ascii_digit() => status_code([a, b, c]),
            _ => None,
        };
        self.code =
            code.ok_or_else(|| ResponseRefusal::InvalidStatus { value: Quoted::new(value) })?;
        // "200OK" would make a status line that is none: then the code alone counts.
        if let Some(b' ' | b'.') = value.get(3) {
            self.status = field.value;
        }
        Ok(())
    }
}

fn status_code(digits: [u8; 3]) -> Option<u16> {
    let [hundreds, tens, units] = digits.map(|byte| decimal_digit(byte).map(u16::from));
    #[expect(clippy::arithmetic_side_effects, reason = "three digits make at most 999")]
    Some(hundreds? * 100 + tens? * 10 + units?)
}

/// However a head arrives and whoever tokenises it, the result is the same, and it is clean.
pub fn fuzz_response(data: &[u8]) {
    for (form, max) in [(Form::Http, 4096), (Form::Cgi, 4096), (Form::Http, 40), (Form::Cgi, 40)] {
        let mut head = ResponseHead::default();
        let whole = parse(data, form, max, &mut head);

        let mut slow_head = ResponseHead::default();
        let mut slow = Ok(Progress::Partial { in_headers: false });
        // One byte at a time, httparse never sees a complete head.
        for end in 0..=data.len() {
            slow = parse(data.get(..end).unwrap_or_default(), form, max, &mut slow_head);
            if !matches!(slow, Ok(Progress::Partial { .. })) {
                break;
            }
        }
        assert_eq!(whole, slow);
        if let Ok(Progress::Complete { len }) = whole {
            let without_scan =
                |head: &ResponseHead| ResponseHead { scan: Scan::default(), ..head.clone() };
            assert_eq!(without_scan(&head), without_scan(&slow_head));
            assert!(len <= data.len().min(max));
            assert_clean(data, &head);
        }
    }
}

fn assert_clean(data: &[u8], head: &ResponseHead) {
    assert!(head.code <= 999);
    let status = head.status.of(data);
    assert!(!status.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t'));
    assert!(status.is_empty() || status.starts_with(format!("{:03}", head.code).as_bytes()));
    for field in &head.headers {
        let (name, value) = (field.name.of(data), field.value.of(data));
        assert!(!name.is_empty());
        assert!(!name.iter().any(|&byte| byte <= b' ' || byte == b':' || byte == 0x7f));
        assert!(!value.iter().any(|byte| b"\0\r\n".contains(byte)));
        assert!(!value.starts_with(b" ") && !value.ends_with(b" "));
        assert_eq!(field.known, Known::of(name));
    }
    for known in [Known::ContentLength, Known::TransferEncoding, Known::Server, Known::Location] {
        assert!(head.headers.find_all(known).count() <= 1);
    }
    assert!(!head.headers.contains(Known::ContentLength) || head.content_length.is_some());
    assert_ne!(head.body, BodyLength::None);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http1::refusal::NO_VALID_HEADER;

    fn read(text: &[u8], form: Form) -> (Result<Progress, ResponseRefusal>, ResponseHead) {
        fuzz_response(text);
        let mut head = ResponseHead::default();
        (parse(text, form, 4096, &mut head), head)
    }

    fn refusal(text: &str, form: Form) -> String {
        read(text.as_bytes(), form).0.expect_err(text).to_string()
    }

    #[test]
    fn a_plain_response() {
        let text = b"HTTP/1.1 404 Not Found at all\r\nServer: s\r\nContent-Length: 3\r\n\
            Set-Cookie: a\r\nX-_(y): z \r\nSet-Cookie: b\r\nServer: t\r\n\r\nabc";
        let (result, head) = read(text, Form::Http);
        assert_eq!(result, Ok(Progress::Complete { len: text.len() - 3 }));
        assert_eq!(head.code, 404);
        assert_eq!(head.status.of(text), b"404 Not Found at all");
        assert_eq!(head.version, Some((1, 1)));
        assert_eq!(head.body, BodyLength::Length(3));
        assert_eq!(head.headers.len(), 5);
        assert_eq!(head.headers.find_all(Known::SetCookie).count(), 2);
        assert!(head.keep_alive());
        assert_eq!(
            head.duplicates.iter().map(|duplicate| duplicate.text(text)).collect::<Vec<_>>(),
            ["upstream sent duplicate header line: \"Server: t\", previous value: \"Server: s\", \
              ignored"]
        );
        let mut head = head;
        head.clear();
        assert_eq!(head, ResponseHead::default());
    }

    #[test]
    fn bodies() {
        let body = |text: &str, is_head| {
            let (result, head) = read(text.as_bytes(), Form::Http);
            assert!(matches!(result, Ok(Progress::Complete { .. })), "{text:?}");
            (head.body_for(is_head), head.content_length)
        };
        let length = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(body(length, false), (BodyLength::Length(5), Some(5)));
        assert_eq!(body(length, true), (BodyLength::None, Some(5)));
        let no_content = "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(body(no_content, false), (BodyLength::None, Some(5)));
        assert_eq!(body("HTTP/1.1 304 \n\n", false), (BodyLength::None, None));
        assert_eq!(body("HTTP/1.1 200\n\n", false), (BodyLength::UntilClose, None));
        let chunked = "HTTP/1.1 200\ntransfer-encoding: CHUNKED\n\n";
        assert_eq!(body(chunked, false), (BodyLength::Chunked, None));
        let upgrade = "HTTP/1.1 101 Switching\nTransfer-Encoding: chunked\n\n";
        assert_eq!(body(upgrade, false), (BodyLength::UntilClose, None));
        assert_eq!(body("<html>", true), (BodyLength::UntilClose, None));
    }

    #[test]
    fn what_is_no_status_line_is_http_0_9() {
        for text in ["hello", "\r\n", "http/1.1 200 OK\r\n\r\n", "HTTP 200 OK\r\n\r\n"] {
            let (result, head) = read(text.as_bytes(), Form::Http);
            assert_eq!(result, Ok(Progress::Complete { len: 0 }));
            assert!(head.is_http09 && !head.keep_alive());
        }
        let (result, head) = read(b"HTT", Form::Http);
        assert_eq!(result, Ok(Progress::Partial { in_headers: false }));
        assert!(!head.is_http09);
    }

    #[test]
    fn what_begins_like_a_status_line_must_be_one() {
        for text in
            ["HTTP/1.1 20 OK", "HTTP/0.9 200 OK", "HTTP/", "HTTP/1.1 200 O\rK", "HTTP/1.1 200 \0"]
        {
            for form in [Form::Http, Form::Cgi] {
                let text = format!("{text}\r\nContent-Length: 5\r\n\r\nhello");
                assert_eq!(refusal(&text, form), NO_VALID_HEADER);
            }
        }
        assert_eq!(read(b"HTTP/", Form::Http).0, Ok(Progress::Partial { in_headers: false }));
    }

    #[test]
    fn keeping_the_connection() {
        let keep = |text: &str| read(text.as_bytes(), Form::Http).1.keep_alive();
        assert!(keep("HTTP/1.1 200\n\n"));
        assert!(keep("HTTP/1.2 200\n\n"));
        assert!(keep("HTTP/2.0 200\n\n"));
        assert!(!keep("HTTP/1.1 100\n\n"));
        assert!(!keep("HTTP/1.0 200\nConnection: keep-alive\n\n"));
        assert!(!keep("HTTP/1.1 200\nConnection: x, Close\nConnection: keep-alive\n\n"));
        let head = read(b"Connection: keep-alive\n\n", Form::Cgi).1;
        assert!(head.connection == ConnectionOption::KeepAlive && !head.keep_alive());
    }

    #[test]
    fn cgi_status() {
        let status = |text: &'static str| {
            let (result, head) = read(text.as_bytes(), Form::Cgi);
            assert_eq!(result, Ok(Progress::Complete { len: text.len() }));
            (head.code, head.status.of(text.as_bytes()))
        };
        assert_eq!(status("HTTP/1.0 403 No\nStatus: 200 OK\n\n"), (403, &b"403 No"[..]));
        assert_eq!(status("Status: 404 Nowhere\r\n\r\n"), (404, &b"404 Nowhere"[..]));
        assert_eq!(status("A: b\nStatus: 404\n\n"), (404, &b""[..]));
        assert_eq!(status("Status: 403.1 x\n\n"), (403, &b"403.1 x"[..]));
        assert_eq!(status("Status: 200OK\n\n"), (200, &b""[..]));
        assert_eq!(status("Location: /x\n\n"), (302, &b""[..]));
        assert_eq!(status("Status: 201\nLocation: /x\n\n"), (201, &b""[..]));
        assert_eq!(status("HTTP_X: y\n\n"), (200, &b""[..]));
        assert_eq!(status("\r\n"), (200, &b""[..]));
        for value in ["abc", "4", "40", "", "2000 OK", "20x", "200 O\x01K"] {
            assert_eq!(
                refusal(&format!("Status: {value}\n\n"), Form::Cgi),
                format!("upstream sent invalid status \"{}\"", Quoted::new(value.as_bytes()))
            );
        }
        assert_eq!(
            refusal("hello world\n\n", Form::Cgi),
            "upstream sent invalid header: \"hello\\x20...\""
        );
    }

    #[test]
    fn refusals() {
        for (headers, wanted) in [
            (
                "Content-Length: 2\nContent-Length: 2\n",
                "upstream sent duplicate header line: \"Content-Length: 2\", \
              previous value: \"Content-Length: 2\"",
            ),
            (
                "Transfer-Encoding: chunked\nTransfer-Encoding: chunked\n",
                "upstream sent duplicate header line: \"Transfer-Encoding: chunked\", \
              previous value: \"Transfer-Encoding: chunked\"",
            ),
            (
                "Content-Length: 2\nTransfer-Encoding: chunked\n",
                "upstream sent \"Content-Length\" and \"Transfer-Encoding\" headers at the same time",
            ),
            (
                "Transfer-Encoding: chunked\nContent-Length: 2\n",
                "upstream sent \"Content-Length\" and \"Transfer-Encoding\" headers at the same time",
            ),
            (
                "Transfer-Encoding: gzip, chunked\n",
                "upstream sent unknown \"Transfer-Encoding\": \"gzip, chunked\"",
            ),
            (
                "Content-Length: -1\n",
                "upstream sent invalid \"Content-Length\" header: \"Content-Length: -1\"",
            ),
            (
                "Content-Length\n",
                "upstream sent invalid \"Content-Length\" header: \"Content-Length: \"",
            ),
            ("Foo : 1\n", "upstream sent invalid header: \"Foo\\x20...\""),
            ("Foo: 1\r2\n", "upstream sent invalid header: \"Foo: 1\\x0d...\""),
            ("Foo: 1\n 2\n", "upstream sent invalid header: \"\\x20...\""),
            (": 1\n", "upstream sent invalid header: \"\\x3a...\""),
        ] {
            assert_eq!(refusal(&format!("HTTP/1.1 200 OK\n{headers}\n"), Form::Http), wanted);
        }
    }

    #[test]
    fn a_head_has_a_size() {
        let text = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody";
        let parse = |buf: &[u8], max| parse(buf, Form::Http, max, &mut ResponseHead::default());
        assert_eq!(parse(text, 25), Ok(Progress::Complete { len: 25 }));
        assert_eq!(parse(text, 24), Err(ResponseRefusal::HeaderTooBig));
        assert_eq!(parse(&text[..24], 25), Ok(Progress::Partial { in_headers: true }));
        assert_eq!(parse(&text[..24], 24), Err(ResponseRefusal::HeaderTooBig));
        assert_eq!(parse(&text[..10], 10), Err(ResponseRefusal::HeaderTooBig));
    }

    /// Pieces that heads are made of, and that attacks are made of.
    fn pieces() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop::sample::select(vec![
            &b"HTTP/1.1 200 OK\r\n"[..],
            b"HTTP/1.0 404\n",
            b"HTTP/",
            b"HTTP",
            b"1.1 ",
            b"101",
            b".1 x",
            b"\r\n",
            b"\r\n\r\n",
            b"\n",
            b"\r",
            b" ",
            b"\t",
            b":",
            b"\0",
            b"\xff",
            b"Status: 200 OK\r\n",
            b"Status: 4\r\n",
            b"Status: 2000\n",
            b"Location: /x\n",
            b"Server: a\r\n",
            b"Server: b \t\r\n",
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Connection: close\r\n",
            b"A: b\r\r\n",
            b"A_(: \t b  \r\n",
            b"A\n",
            b"A: \x01\xe9\r\n",
            b"HTTP/1.1 x\r\n",
        ]);
        prop::collection::vec(piece, 0..10).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_bytes(data: Vec<u8>) {
            fuzz_response(&data);
        }

        #[test]
        fn any_pieces(data in pieces()) {
            fuzz_response(&data);
        }

        #[test]
        fn any_headers(data in pieces()) {
            fuzz_response(&[b"HTTP/1.1 200 OK\r\n", data.as_slice(), b"\r\n\r\n"].concat());
        }
    }
}
