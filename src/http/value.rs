//! The value of a variable, or of a string that holds some, for one request.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::computed;
use super::connection::{Connection, client_address};
use super::location::Handler;
use super::modules::access_log::Escape;
use super::modules::core::{Maps, Root};
use super::request::{RefusedPart, Request};
use super::slots::Held;
use super::upstream::Attempt;
use super::upstream::protocol::SetOutFor;
use super::variable::{HeaderName, Part, Template, Variable, VariableSlot};
use crate::clock;
use crate::error_log::{Level, escape};
use crate::http1::framing::BodyLength;
use crate::http1::header::Known;
use crate::http1::request::Version;
use crate::local_time::LocalTime;
use crate::proxy_protocol::Tlv;

/// Appends a template's text.
pub fn expand(template: &Template, c: &Connection, r: &Request, out: &mut Vec<u8>) {
    for part in &template.parts {
        match part {
            Part::Literal(text) => out.extend_from_slice(text),
            Part::Variable(variable) => {
                append(variable, c, r, out);
            }
        }
    }
}

/// A template's text in memory of its own.
pub fn expanded(template: &Template, c: &Connection, r: &Request) -> Vec<u8> {
    let mut out = Vec::new();
    expand(template, c, r, &mut out);
    out
}

/// Neither empty nor "0": what `if`, `if=` and the like call true.
pub fn is_true(value: &[u8]) -> bool {
    !matches!(value, b"" | b"0")
}

/// Appends a log line: literal text as it is, variables escaped.
pub fn expand_log(
    template: &Template,
    escape: Escape,
    c: &Connection,
    r: &Request,
    out: &mut Vec<u8>,
) {
    for part in &template.parts {
        match part {
            Part::Literal(text) => out.extend_from_slice(text),
            Part::Variable(variable) => append_escaped(variable, escape, c, r, out),
        }
    }
}

/// Appends a variable as a log line shows it.
pub fn append_escaped(
    variable: &Variable,
    escape: Escape,
    c: &Connection,
    r: &Request,
    out: &mut Vec<u8>,
) {
    let start = out.len();
    if !append(variable, c, r, out) {
        missing(escape, out);
    } else if !is_always_plain(variable) {
        escape_tail(escape, start, out);
    }
}

/// Whether a value of it has digits, letters and the like alone: what every line holds.
fn is_always_plain(variable: &Variable) -> bool {
    matches!(
        variable,
        Variable::RemoteAddr
            | Variable::TimeLocal
            | Variable::TimeIso8601
            | Variable::Status
            | Variable::BodyBytesSent
            | Variable::BytesSent
            | Variable::RequestLength
            | Variable::RequestTime
            | Variable::Msec
    )
}

/// What a log line shows in place of a variable that has no value.
pub fn missing(escape: Escape, out: &mut Vec<u8>) {
    if escape == Escape::Default {
        out.push(b'-');
    }
}

/// What a log line cannot show as it is.
const SPECIAL: u8 = 1;
const SPECIAL_IN_JSON: u8 = 2;

/// Every line is full of bytes that need nothing: one look for each.
#[expect(clippy::indexing_slicing, reason = "done by the compiler, which would say so")]
static SPECIAL_BYTES: [u8; 256] = {
    let mut special = [SPECIAL; 256];
    let mut byte = 0;
    while byte < special.len() {
        special[byte] = match byte {
            0..0x20 | 0x22 | 0x5c => SPECIAL | SPECIAL_IN_JSON,
            0x7f.. => SPECIAL,
            _ => 0,
        };
        byte += 1;
    }
    special
};

/// Escapes what stands in `out` from `start` on. Most values need nothing.
fn escape_tail(escape: Escape, start: usize, out: &mut Vec<u8>) {
    let kind = match escape {
        Escape::Default => SPECIAL,
        Escape::Json => SPECIAL_IN_JSON,
        Escape::None => return,
    };
    #[expect(clippy::indexing_slicing, reason = "every byte has a place in it")]
    let is_special = |byte: u8| SPECIAL_BYTES[usize::from(byte)] & kind != 0;
    let tail = out.get(start..).unwrap_or_default();
    let Some(first) = tail.iter().position(|&byte| is_special(byte)) else { return };
    let raw = out.split_off(start.saturating_add(first));
    for byte in raw {
        if !is_special(byte) {
            out.push(byte);
            continue;
        }
        #[expect(clippy::indexing_slicing, reason = "16 digits, and four bits")]
        let hex = |n: u8| b"0123456789ABCDEF"[usize::from(n & 15)];
        match (escape, byte) {
            (Escape::Json, b'"' | b'\\') => out.extend([b'\\', byte]),
            (Escape::Json, b'\n') => out.extend(b"\\n"),
            (Escape::Json, b'\r') => out.extend(b"\\r"),
            (Escape::Json, b'\t') => out.extend(b"\\t"),
            (Escape::Json, 0x08) => out.extend(b"\\b"),
            (Escape::Json, 0x0c) => out.extend(b"\\f"),
            (Escape::Json, _) => {
                out.extend(b"\\u00");
                out.extend([hex(byte >> 4), hex(byte)]);
            }
            _ => out.extend([b'\\', b'x', hex(byte >> 4), hex(byte)]),
        }
    }
}

/// Appends a variable's value; tells whether there is one.
#[allow(clippy::too_many_lines)]
pub fn append(variable: &Variable, c: &Connection, r: &Request, out: &mut Vec<u8>) -> bool {
    match variable {
        Variable::Arg(name) => argument(&r.args, name.as_bytes()).is_some_and(|v| put(out, v)),
        Variable::Cookie(name) => cookie(r, name.as_bytes()).is_some_and(|v| put(out, v)),
        Variable::Http(name) => request_header(r, name, out),
        Variable::SentHttp(name) => sent_header(r, name, out),
        Variable::UpstreamHttp(name) => upstream_header(r, name, out),
        Variable::SentTrailer(name) => named_lines(&r.response.trailers, name, out),
        Variable::UpstreamTrailer(name) => upstream_trailer(r, name, out),
        Variable::UpstreamCookie(name) => {
            upstream_cookie(r, name.as_bytes()).is_some_and(|v| put(out, v))
        }
        Variable::Capture(n) => {
            r.captures.borrow().group(usize::from(*n)).is_some_and(|v| put(out, v))
        }
        Variable::Slot(slot) => computed::append(*slot, c, r, out),

        Variable::Overridden(of) => match r.slots.held(of.0) {
            Held::Bytes => {
                r.slots.put(of.0, out);
                true
            }
            _ => append(&of.1, c, r, out),
        },

        Variable::Args => r.known_args().is_some_and(|args| put(out, args)),
        Variable::IsArgs => put(out, if r.args.is_empty() { b"" } else { b"?" }),
        Variable::BinaryRemoteAddr => match client_address(c, r).ip {
            Some(IpAddr::V4(ip)) => put(out, &ip.octets()),
            Some(IpAddr::V6(ip)) => put(out, &ip.octets()),
            None => put(out, b"unix:"),
        },
        Variable::BodyBytesSent => number(out, r.response.body_bytes()),
        Variable::BytesSent => number(out, r.response.bytes_sent),
        Variable::Connection => number(out, c.serial),
        Variable::ConnectionRequests => number(out, c.requests.get()),
        Variable::ConnectionTime => seconds(out, clock::steady().saturating_sub(c.accepted)),
        Variable::ContentLength => {
            if r.body.is_done() && r.head.body == BodyLength::Chunked {
                return number(out, r.body.decoded);
            }
            known_header(r, Known::ContentLength, out)
        }
        Variable::ContentType => known_header(r, Known::ContentType, out),
        Variable::DocumentRoot => document_root(c, r, out),
        Variable::Host => {
            if r.host.is_empty() {
                put(out, r.generation.http().server(r.server).name.as_bytes())
            } else {
                put(out, &r.host)
            }
        }
        Variable::Hostname => put(out, c.shard.hostname.as_bytes()),
        Variable::Https => put(out, b""),
        Variable::Msec => seconds(out, clock::now()),
        Variable::Nothing => true,
        Variable::NginxVersion => put(out, crate::VERSION.as_bytes()),
        Variable::Pid => number(out, u64::from(std::process::id())),
        Variable::Pipe => put(out, if r.pipelined { b"p" } else { b"." }),
        Variable::RealpathRoot => realpath_root(c, r, out),
        Variable::RemoteAddr => put(out, client_address(c, r).address.as_bytes()),
        Variable::RemotePort => port(client_address(c, r).port, out),
        Variable::RealipRemoteAddr => put(out, c.client.address.as_bytes()),
        Variable::RealipRemotePort => port(c.client.port, out),
        Variable::ProxyProtocolAddr => {
            c.proxy_protocol().is_some_and(|header| put(out, header.source.address.as_bytes()))
        }
        Variable::ProxyProtocolPort => {
            c.proxy_protocol().is_some_and(|header| port(Some(header.source.port), out))
        }
        Variable::ProxyProtocolServerAddr => {
            c.proxy_protocol().is_some_and(|header| put(out, header.destination.address.as_bytes()))
        }
        Variable::ProxyProtocolServerPort => {
            c.proxy_protocol().is_some_and(|header| port(Some(header.destination.port), out))
        }
        Variable::ProxyProtocolTlv(tlv) => proxy_protocol_tlv(tlv, c, r, out),
        Variable::Connections(which) => number(out, which.count(&c.shard.counters.all())),
        Variable::RemoteUser => remote_user(r, out),
        Variable::Request => put(out, r.text(r.head.line)),
        Variable::RequestBody => {
            r.body.is_held && r.body.file.is_none() && put(out, r.body.memory.as_slice())
        }
        Variable::RequestBodyFile => r.body.file.as_ref().is_some_and(|file| {
            put(out, std::os::unix::ffi::OsStrExt::as_bytes(file.path().as_os_str()))
        }),
        Variable::RequestCompletion => put(out, completion(r.response.complete)),
        Variable::RequestFilename => request_filename(c, r, out),
        Variable::RequestId => put(out, r.id.get_or_init(crate::os::random_hex)),
        Variable::RequestLength => {
            let head = match r.refused {
                Some(RefusedPart::RequestLine) if !r.head.is_line_read() => 0,
                // Without the empty lines before it.
                _ => r.head.read_len(),
            };
            number(out, r.body.received.saturating_add(head as u64))
        }
        // That of a line which is not accepted is not known, but for the GET that a page makes of it.
        Variable::RequestMethod => {
            (r.head.is_line_read() || !r.uri_is_original) && put_known(out, method(r))
        }
        Variable::RequestPort => r.host_port.as_ref().is_none_or(|port| put(out, port)),
        Variable::IsRequestPort => {
            let has_port = r.host_port.as_ref().is_some_and(|port| !port.is_empty());
            put(out, if has_port { b":" } else { b"" })
        }
        Variable::RequestTime => seconds(out, r.elapsed()),
        Variable::RequestUri => r.put_request_uri(out),
        Variable::Scheme => put(out, b"http"),
        Variable::ServerAddr => {
            let _ = match c.local_address() {
                Some(address) => write!(Text(out), "{}", address.ip()),
                None => write!(Text(out), "{}", c.listener.name()),
            };
            true
        }
        Variable::ServerName => put(out, r.generation.http().server(r.server).name.as_bytes()),
        Variable::ServerPort => {
            c.local_address().is_none_or(|address| number(out, u64::from(address.port())))
        }
        Variable::ServerProtocol => {
            r.head.protocol().is_some_and(|protocol| put(out, r.text(protocol)))
        }
        Variable::LimitRate => {
            let response = &r.response;
            let in_force = response.pace.as_ref().map(super::pace::Pace::rate);
            number(out, in_force.or(response.limit_rate).unwrap_or_default())
        }
        Variable::Status => {
            let status = match r.response.status_override.unwrap_or(r.response.status) {
                0 if r.head.version == Version::Http09 && r.head_len > 0 => 9,
                status => status,
            };
            three_digits(out, status);
            true
        }
        Variable::TcpinfoRtt => tcp_info(c.stream.fd(), out, |info| info.tcpi_rtt),
        Variable::TcpinfoRttvar => tcp_info(c.stream.fd(), out, |info| info.tcpi_rttvar),
        Variable::TcpinfoSndCwnd => tcp_info(c.stream.fd(), out, |info| info.tcpi_snd_cwnd),
        Variable::TcpinfoRcvSpace => tcp_info(c.stream.fd(), out, |info| info.tcpi_rcv_space),
        Variable::TimeIso8601 => put(out, LocalTime::at(clock::seconds()).iso8601()),
        Variable::TimeLocal => put(out, LocalTime::at(clock::seconds()).common()),
        // Known as soon as the line is, also where nothing of it is accepted, or a rewrite leaves nothing.
        Variable::Uri => (r.head.is_line_read() || !r.uri_is_original) && put(out, &r.uri),

        Variable::ProxyHost => proxied_to(r).is_some_and(|(host, _)| put(out, host.as_bytes())),
        Variable::ProxyInternalBodyLength => {
            proxied_length(c, r).is_some_and(|length| number(out, length))
        }
        Variable::ProxyInternalChunked => {
            is_proxied(r)
                && proxied_length(c, r).is_none()
                && r.head.body == BodyLength::Chunked
                && put(out, b"chunked")
        }
        Variable::ProxyPort => proxied_to(r).is_some_and(|(_, port)| put(out, port.as_bytes())),
        Variable::ProxyAddXForwardedFor => {
            if known_header(r, Known::XForwardedFor, out) {
                out.extend_from_slice(b", ");
            }
            put(out, client_address(c, r).address.as_bytes())
        }
        Variable::UpstreamAddr => attempts(r, out, |a, out| {
            out.extend_from_slice(a.address.as_deref().unwrap_or_default().as_bytes());
        }),
        Variable::UpstreamStatus => attempts(r, out, |a, out| {
            if a.status == 0 {
                out.push(b'-');
            } else {
                three_digits(out, a.status);
            }
        }),
        Variable::UpstreamConnectTime => attempts(r, out, |a, out| time(out, a.connect)),
        Variable::UpstreamHeaderTime => attempts(r, out, |a, out| time(out, a.header)),
        Variable::UpstreamQueueTime => attempts(r, out, |a, out| time(out, a.queue)),
        Variable::UpstreamResponseTime => attempts(r, out, |a, out| time(out, a.response)),
        Variable::UpstreamResponseLength => attempts(r, out, |a, out| {
            number(out, a.response_length);
        }),
        Variable::UpstreamBytesSent => attempts(r, out, |a, out| {
            number(out, a.bytes_sent);
        }),
        Variable::UpstreamBytesReceived => attempts(r, out, |a, out| {
            number(out, a.bytes_received);
        }),

        // Known when a tunnel ends: see `access_log::Frozen`.
        Variable::UpstreamCacheStatus | Variable::WebSocket(_) => false,
    }
}

/// A variable that was given no value: one of `set` is empty, and that is worth a word.
pub fn uninitialized(slot: VariableSlot, c: &Connection, r: &Request) -> bool {
    let at = usize::from(slot.0);
    let http = r.generation.http();
    if !http.set_variables.get(at).is_some_and(|is_set| *is_set) {
        return false;
    }
    let bit = 1_u64.checked_shl(at as u32).unwrap_or(0);
    let told = r.told_uninitialized.get();
    if told & bit == 0 && *c.settings(r).rewrite.uninitialized_variable_warn {
        r.told_uninitialized.set(told | bit);
        let name = http.variable_names.get(at).map_or("", |name| name);
        c.log(r, Level::Warn, format_args!("using uninitialized \"{name}\" variable"));
    }
    true
}

/// The method as sent upstream and logged.
pub fn method(r: &Request) -> &[u8] {
    use crate::http1::request::Method;
    if r.method == r.head.method_kind {
        return r.text(r.head.method);
    }
    match r.method {
        Method::Head => b"HEAD",
        _ => b"GET",
    }
}

/// `text` formatted into bytes.
pub struct Text<'a>(pub &'a mut Vec<u8>);

impl std::fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// `$request_completion`
pub fn completion(is_complete: bool) -> &'static [u8] {
    if is_complete { b"OK" } else { b"" }
}

pub fn put(out: &mut Vec<u8>, value: &[u8]) -> bool {
    out.extend_from_slice(value);
    true
}

/// What is never empty when there is any.
fn put_known(out: &mut Vec<u8>, value: &[u8]) -> bool {
    !value.is_empty() && put(out, value)
}

pub fn number(out: &mut Vec<u8>, value: u64) -> bool {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    true
}

/// A status: every line of a log has one, and they are all of three digits.
fn three_digits(out: &mut Vec<u8>, status: u16) {
    match status {
        100..1000 => number(out, u64::from(status)),
        _ => write!(Text(out), "{status:03}").is_ok(),
    };
}

/// A port; nothing for none, which is a value as well.
fn port(port: Option<u16>, out: &mut Vec<u8>) -> bool {
    port.is_none_or(|port| port == 0 || number(out, u64::from(port)))
}

/// `$proxy_protocol_tlv_NAME`
fn proxy_protocol_tlv(tlv: &Tlv, c: &Connection, r: &Request, out: &mut Vec<u8>) -> bool {
    let Some(header) = c.proxy_protocol() else { return false };
    if let Tlv::Unknown(name) = tlv {
        c.log(r, Level::Error, format_args!("unknown PROXY protocol TLV \"{name}\""));
        return false;
    }
    match (header.tlv(tlv), tlv) {
        (Ok(Some(value)), Tlv::SslVerify) => {
            number(out, value.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
        }
        (Ok(value), _) => value.is_some_and(|value| put(out, value)),
        (Err(broken), _) => {
            c.log(r, Level::Error, format_args!("{broken}"));
            false
        }
    }
}

/// `12.034`: seconds and milliseconds.
pub fn seconds(out: &mut Vec<u8>, value: Duration) -> bool {
    let ms = value.as_millis() as u64;
    number(out, ms / 1000);
    let ms = ms % 1000;
    #[expect(clippy::arithmetic_side_effects, reason = "a digit is below 10")]
    let digit = |n: u64| b'0' + (n % 10) as u8;
    out.extend([b'.', digit(ms / 100), digit(ms / 10), digit(ms)]);
    true
}

/// The same, or `-`.
pub fn time(out: &mut Vec<u8>, value: Option<Duration>) {
    match value {
        Some(value) => {
            seconds(out, value);
        }
        None => out.push(b'-'),
    }
}

/// One item a try, joined by `, `; those of several exchanges by ` : `.
fn attempts(r: &Request, out: &mut Vec<u8>, item: impl Fn(&Attempt, &mut Vec<u8>)) -> bool {
    put_attempts(&r.attempts, out, item)
}

/// As nginx does it: a try without a server stands between exchanges, and is an item itself only where
/// it is the first, or stands behind another one.
pub fn put_attempts(
    attempts: &[Attempt],
    out: &mut Vec<u8>,
    item: impl Fn(&Attempt, &mut Vec<u8>),
) -> bool {
    let mut left = attempts.iter();
    let Some(first) = left.next() else { return false };
    item(first, out);
    while let Some(attempt) = left.next() {
        if attempt.address.is_some() {
            out.extend_from_slice(b", ");
            item(attempt, out);
        } else {
            out.extend_from_slice(b" : ");
            if let Some(behind) = left.next() {
                item(behind, out);
            }
        }
    }
    true
}

/// `$arg_NAME`: the raw value of the first `NAME=` in the args, whatever its case.
fn argument<'a>(args: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    args.split(|&b| b == b'&').find_map(|pair| {
        let (found, value) = split_once(pair, b'=')?;
        found.eq_ignore_ascii_case(name).then_some(value)
    })
}

/// `$cookie_NAME`: the first match over all Cookie lines.
pub fn cookie<'a>(r: &'a Request, name: &[u8]) -> Option<&'a [u8]> {
    r.head.headers.find_all(Known::Cookie).find_map(|field| cookie_in(r.text(field.value), name))
}

/// The pairs are separated by `;`; before one that does not match, by `,` too. The byte behind the name
/// is taken for the `=` that it should be, as nginx does: a bare `NAME;` hides the pair behind it.
fn cookie_in<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut rest = line;
    while !rest.is_empty() {
        if let Some(value) = value_of(rest, name) {
            return Some(value);
        }
        if let Some(behind) = behind_name(rest, name) {
            rest = behind.get(1..)?;
        }
        let end = memchr::memchr2(b';', b',', rest)?;
        let (_, behind) = rest.split_at(end).1.split_first()?;
        rest = without_spaces(behind);
    }
    None
}

fn upstream_cookie<'a>(r: &'a Request, name: &[u8]) -> Option<&'a [u8]> {
    let bytes = r.upstream_bytes.as_slice();
    let mut fields = r.upstream_head.headers.find_all(Known::SetCookie);
    fields.find_map(|field| value_of(field.value.of(bytes), name))
}

/// The value of a pair `name = value;` with this name at the front of `text`, whatever its case.
fn value_of<'a>(text: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let value = without_spaces(behind_name(text, name)?.strip_prefix(b"=")?);
    value.split(|byte| *byte == b';').next()
}

/// What is behind this name at the front of `text`, and behind spaces.
fn behind_name<'a>(text: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (found, rest) = text.split_at_checked(name.len())?;
    found.eq_ignore_ascii_case(name).then(|| without_spaces(rest))
}

/// Without the spaces in front.
fn without_spaces(mut text: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] = text {
        text = rest;
    }
    text
}

/// What is before the first such byte, and what is behind it.
fn split_once(text: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let (before, from) = text.split_at(memchr::memchr(byte, text)?);
    Some((before, from.split_first()?.1))
}

/// Joins values by `, ` (cookies by `; `); tells whether there was any.
fn joined<'a>(values: impl Iterator<Item = &'a [u8]>, separator: &[u8], out: &mut Vec<u8>) -> bool {
    let mut found = false;
    for value in values {
        if found {
            out.extend_from_slice(separator);
        }
        found = true;
        out.extend_from_slice(value);
    }
    found
}

fn request_header(r: &Request, name: &HeaderName, out: &mut Vec<u8>) -> bool {
    let separator: &[u8] = if name.0.as_ref() == b"cookie" { b"; " } else { b", " };
    let fields = r.head.headers.find_name(r.bytes(), &name.0);
    joined(fields.map(|field| r.text(field.value)), separator, out)
}

fn known_header(r: &Request, known: Known, out: &mut Vec<u8>) -> bool {
    joined(r.head.headers.find_all(known).map(|field| r.text(field.value)), b", ", out)
}

fn upstream_header(r: &Request, name: &HeaderName, out: &mut Vec<u8>) -> bool {
    let bytes = r.upstream_bytes.as_slice();
    let fields = r.upstream_head.headers.find_name(bytes, &name.0);
    joined(fields.map(|field| field.value.of(bytes)), b", ", out)
}

fn upstream_trailer(r: &Request, name: &HeaderName, out: &mut Vec<u8>) -> bool {
    r.upstream_trailers.as_ref().is_some_and(|trailers| {
        let fields = trailers.headers().find_name(trailers.bytes(), &name.0);
        joined(fields.map(|field| field.value.of(trailers.bytes())), b", ", out)
    })
}

/// Looked up in the head as it was sent. What nginx adds to it on its way is not seen.
fn sent_header(r: &Request, name: &HeaderName, out: &mut Vec<u8>) -> bool {
    let head = r.response.head.as_slice();
    match &*name.0 {
        // The request is over for its connection when it is logged.
        b"connection" if r.logged && r.response.status != 101 => return put(out, b"close"),
        b"keep_alive" if r.logged => return false,
        // Passed on or added, they are in the list; the proxy's own have a fixed place.
        b"server" | b"date" => {
            return named_lines(head.get(r.response.list_at..).unwrap_or_default(), name, out);
        }
        _ => {}
    }
    named_lines(split_once(head, b'\n').map_or(head, |(_, lines)| lines), name, out)
}

/// The values of the lines of that name.
fn named_lines(lines: &[u8], name: &HeaderName, out: &mut Vec<u8>) -> bool {
    let same = |header: &[u8]| {
        header.len() == name.0.len()
            && header.iter().zip(name.0.iter()).all(|(&h, &n)| {
                let h = h.to_ascii_lowercase();
                h == n || (h == b'-' && n == b'_')
            })
    };
    let values = lines.split(|&b| b == b'\n').filter_map(|line| {
        let (found, value) = split_once(line, b':')?;
        same(found).then(|| value.trim_ascii())
    });
    joined(values, b", ", out)
}

/// The user of Basic credentials, whether or not they are checked.
fn remote_user(r: &Request, out: &mut Vec<u8>) -> bool {
    let user = r.head.headers.find(Known::Authorization).and_then(|field| {
        let value = r.text(field.value);
        let (scheme, credentials) = value.split_at_checked(6)?;
        if !scheme.eq_ignore_ascii_case(b"basic ") {
            return None;
        }
        let mut decoded = base64(credentials.trim_ascii())?;
        decoded.truncate(memchr::memchr(b':', &decoded)?);
        (!decoded.is_empty()).then_some(decoded)
    });
    user.is_some_and(|user| put(out, &user))
}

/// RFC 4648 section 4, up to the padding, which is optional.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "each letter is in its range; of the count under 8 bits stay; three quarters of a head's text"
)]
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.split(|byte| *byte == b'=').next().unwrap_or_default();
    if text.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for &byte in text {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(out)
}

fn is_proxied(r: &Request) -> bool {
    r.generation.http().location(r.location).handler == Some(Handler::Proxy)
}

/// Bytes of the body that an HTTP upstream is sent, when they are known before it is sent.
fn proxied_length(c: &Connection, r: &Request) -> Option<u64> {
    if !is_proxied(r) {
        return None;
    }
    let proxy = &c.settings(r).proxy;
    if let Some(body) = &*proxy.set_body {
        return Some(expanded(body, c, r).len() as u64);
    }
    match r.head.body {
        BodyLength::Length(length) => Some(length),
        BodyLength::Chunked if !r.body.was_streamed && r.body.is_done() => Some(r.body.decoded),
        BodyLength::Chunked | BodyLength::None | BodyLength::UntilClose => None,
    }
}

/// Host and port that the location's `proxy_pass` has led to.
fn proxied_to(r: &Request) -> Option<(&str, &str)> {
    let pass = r.generation.http().location(r.location).settings.proxy.pass.get()?;
    match &r.set_out_for {
        SetOutFor::Nobody => None,
        SetOutFor::Configured => Some((&pass.host, &pass.port)),
        SetOutFor::Computed(to) => Some((&to.host, &to.port)),
    }
}

fn root(r: &Request) -> &Root {
    &r.generation.http().location(r.location).settings.core.root
}

/// `$document_root`
pub fn document_root(c: &Connection, r: &Request, out: &mut Vec<u8>) -> bool {
    let (root, start) = (root(r), out.len());
    expand(&root.path, c, r, out);
    let prefix = root.before(out.get(start..).unwrap_or_default());
    out.splice(start..start, prefix.iter().copied());
    true
}

fn realpath_root(c: &Connection, r: &Request, out: &mut Vec<u8>) -> bool {
    let mut path = Vec::new();
    document_root(c, r, &mut path);
    let path: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(&path);
    match std::fs::canonicalize(path) {
        Ok(real) => put(out, std::os::unix::ffi::OsStrExt::as_bytes(real.as_os_str())),
        Err(error) => {
            let path = escape(std::os::unix::ffi::OsStrExt::as_bytes(path));
            c.log_errno(r, Level::Crit, format_args!("realpath() \"{path}\" failed"), &error);
            false
        }
    }
}

/// The file that the current URI names: root plus URI, or alias in place of the location's name.
pub fn request_filename(c: &Connection, r: &Request, out: &mut Vec<u8>) -> bool {
    document_root(c, r, out);
    match root(r).maps {
        Maps::Whole => put(out, &r.uri),
        Maps::Behind(len) => put(out, r.uri.get(len..).unwrap_or_default()),
        Maps::Nothing if r.uri_follows_alias => put(out, &r.uri),
        Maps::Nothing => true,
    }
}

/// A value of the kernel's about a client's socket; none for one that is not TCP.
pub fn tcp_info(
    socket: BorrowedFd<'_>,
    out: &mut Vec<u8>,
    field: fn(&libc::tcp_info) -> u32,
) -> bool {
    crate::os::tcp_info(socket).is_ok_and(|info| number(out, u64::from(field(&info))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_found_by_name_in_any_case() {
        assert_eq!(argument(b"a=1&B=2&b=3", b"b"), Some(b"2".as_slice()));
        assert_eq!(argument(b"a&b=", b"a"), None);
        assert_eq!(argument(b"a&b=", b"b"), Some(b"".as_slice()));
        assert_eq!(argument(b"ab=1", b"b"), None);
    }

    #[test]
    fn cookies() {
        let found = |line: &'static str, name: &str| {
            cookie_in(line.as_bytes(), name.as_bytes()).map(|v| std::str::from_utf8(v).unwrap())
        };
        assert_eq!(found("a=1; b=2", "B"), Some("2"));
        assert_eq!(found("ab=1;a = 2 ;a=3", "a"), Some("2 "));
        assert_eq!(found("x, a=2", "a"), Some("2"));
        assert_eq!(found("b=x,a=2", "b"), Some("x,a=2"));
        assert_eq!(found("a", "a"), None);
        assert_eq!(found("a;a=", "a"), None);
        assert_eq!(found("a;b=1;a=", "a"), Some(""));
        assert_eq!(found("", "a"), None);
        assert_eq!(found("aa=1", "a"), None);
    }

    #[test]
    fn base64_with_and_without_padding() {
        assert_eq!(base64(b"dXNlcjpwYXNz").unwrap(), b"user:pass");
        assert_eq!(base64(b"dTpw").unwrap(), b"u:p");
        assert_eq!(base64(b"dTo=").unwrap(), b"u:");
        assert_eq!(base64(b"dTo").unwrap(), b"u:");
        assert_eq!(base64(b"dTo=x").unwrap(), b"u:");
        for not_base64 in [&b"d%"[..], b"dT_-", b"dTpwd"] {
            assert!(base64(not_base64).is_none());
        }
    }

    #[test]
    fn log_escapes() {
        let escaped = |escape, text: &[u8]| {
            let mut out = b"keep\"".to_vec();
            out.extend_from_slice(text);
            escape_tail(escape, 5, &mut out);
            String::from_utf8(out.split_off(5)).unwrap()
        };
        assert_eq!(escaped(Escape::Default, b"a\"b\\c\x01\x7f\xff"), r"a\x22b\x5Cc\x01\x7F\xFF");
        assert_eq!(escaped(Escape::Json, b"a\"b\\c\n\x01"), r#"a\"b\\c\n\u0001"#);
        assert_eq!(escaped(Escape::Default, b"plain"), "plain");
    }

    #[test]
    fn seconds_have_three_decimals() {
        let mut out = Vec::new();
        seconds(&mut out, Duration::from_millis(12_034));
        assert_eq!(out, b"12.034");
    }
}
