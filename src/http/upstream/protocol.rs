//! What is sent to an upstream: the request head of HTTP (proxy, sections 1 and 2) and the variables
//! block of uwsgi (uwsgi, section 3). Built once per request, whatever number of servers is tried.

use std::io::IoSlice;

use smallvec::SmallVec;

use crate::http::body;
use crate::http::connection::Connection;
use crate::http::location::Location;
use crate::http::modules::proxy::{self, HttpVersion, ProxyPass};
use crate::http::modules::uwsgi::{self, Piece};
use crate::http::request::Request;
use crate::http::tunnel::handshake::{self, Asked, HTTP2_SETTINGS};
use crate::http::value;
use crate::http1::framing::BodyLength;
use crate::http1::header::{Field, Known};
use crate::http1::uri::escape_uri;
use crate::http1::{Span, encode};
use crate::uwsgi as packet;

/// A value at least this long is sent from where it was received instead of being copied.
const BY_REFERENCE: usize = 1024;

/// A request head for an upstream: bytes made here, with long values of the client's head between
/// them. Reused from request to request.
#[derive(Debug, Default)]
pub struct Message {
    bytes: Vec<u8>,
    /// Where in `bytes` a part of the client's head goes, in order.
    inserts: SmallVec<[(usize, Span); 2]>,
    /// Where the URI stands in an HTTP head, for the log.
    uri: Span,
    /// The method sent is HEAD: no body will come.
    is_head: bool,
    /// The value of Upgrade, whether it is sent or kept back.
    upgrade: Vec<u8>,
    /// What that value asks for.
    asked: Asked,
}

impl Message {
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.inserts.clear();
        self.uri = Span::default();
        self.is_head = false;
        self.upgrade.clear();
        self.asked = Asked::Nothing;
    }

    /// Whether what was asked for is a head alone.
    pub fn is_head(&self) -> bool {
        self.is_head
    }

    /// The Upgrade that was sent; empty when the server was not asked to switch protocols.
    pub fn upgrade(&self) -> &[u8] {
        match self.asked {
            Asked::WebSocket | Asked::Other => &self.upgrade,
            Asked::Nothing | Asked::Refused => b"",
        }
    }

    /// The Upgrade that was kept back.
    pub fn refused_upgrade(&self) -> Option<&[u8]> {
        (self.asked == Asked::Refused).then_some(&self.upgrade)
    }

    /// What the server was asked to become.
    pub fn asked(&self) -> Asked {
        self.asked
    }

    /// The URI as sent; empty for uwsgi.
    pub fn uri(&self) -> &[u8] {
        self.uri.of(&self.bytes)
    }

    /// The head as it goes out: `client_head` is what the request's spans refer to.
    pub fn slices<'a>(&'a self, client_head: &'a [u8]) -> SmallVec<[IoSlice<'a>; 6]> {
        let mut slices = SmallVec::new();
        let mut from = 0;
        for &(at, span) in &self.inserts {
            slices.push(IoSlice::new(&self.bytes[from..at]));
            slices.push(IoSlice::new(span.of(client_head)));
            from = at;
        }
        slices.push(IoSlice::new(&self.bytes[from..]));
        slices
    }

    fn len(&self) -> usize {
        self.bytes.len() + self.inserts.iter().map(|(_, span)| span.len()).sum::<usize>()
    }
}

/// Where a proxied request goes, as far as its head says so.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    /// `$proxy_host`
    pub host: &'a [u8],
    pub uri: DestinationUri<'a>,
}

/// The URI part of `proxy_pass`.
#[derive(Debug, Clone, Copy)]
pub enum DestinationUri<'a> {
    /// None: the client's own.
    Request,
    /// Stands for the location's name.
    Replaces(&'a [u8]),
    /// Out of variables: sent as it is.
    Whole(&'a [u8]),
}

impl<'a> From<&'a ProxyPass> for Destination<'a> {
    fn from(pass: &'a ProxyPass) -> Self {
        let uri = match &pass.uri {
            None => DestinationUri::Request,
            Some(uri) => DestinationUri::Replaces(uri.as_bytes()),
        };
        Destination { host: pass.host.as_bytes(), uri }
    }
}

/// How the body follows the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyForm {
    None,
    /// As it is: its length has been said.
    Plain,
    /// In chunks of our own making.
    Chunked,
}

/// The head of a proxied request. `streams` tells that the body has not been read yet.
pub fn http(
    c: &Connection,
    r: &Request,
    location: &Location,
    destination: Destination<'_>,
    streams: bool,
    message: &mut Message,
) -> BodyForm {
    let settings = &location.settings.proxy;
    let websocket = &location.settings.websocket;
    put_proxied_upgrade(c, r, location, &mut message.upgrade);
    message.asked = handshake::asked(&message.upgrade, &websocket.upgrade_allow);
    let makes_websocket = *websocket.enabled && message.asked == Asked::WebSocket;
    let version = if makes_websocket { HttpVersion::Http11 } else { *settings.http_version };

    let out = &mut message.bytes;
    match &*settings.method {
        Some(method) => {
            value::expand(method, c, r, out);
            encode::clean_value(out);
        }
        None => out.extend_from_slice(value::method(r)),
    }
    message.is_head = out.eq_ignore_ascii_case(b"HEAD");
    out.push(b' ');
    let uri_start = out.len();
    put_uri(r, location, destination.uri, out);
    // A path is decoded: `$uri` in the URI of a `proxy_pass` or in args may hold a line's end.
    encode::clean_uri(out, uri_start);
    message.uri = Span::new(uri_start, out.len());
    out.extend_from_slice(match version {
        HttpVersion::Http10 => b" HTTP/1.0\r\n",
        HttpVersion::Http11 => b" HTTP/1.1\r\n",
    });

    put_host(c, r, settings, destination.host, version, out);
    let is_refused = message.asked == Asked::Refused;
    let (mut says_upgrade, mut says_connection) = (false, false);
    for line in &settings.head.lines {
        if is_refused && is_about_upgrade(&line.name) {
            put_line_without_upgrade(c, r, line, out);
        } else if put_line(c, r, line, out) {
            says_upgrade |= line.name.eq_ignore_ascii_case("upgrade");
            says_connection |= line.name.eq_ignore_ascii_case("connection");
        }
    }
    if makes_websocket && !says_upgrade {
        out.extend_from_slice(b"Upgrade: websocket\r\n");
    }
    if makes_websocket && !says_connection {
        out.extend_from_slice(b"Connection: upgrade\r\n");
    }
    let body = put_length(c, r, settings, streams, out);
    if *settings.exchange.pass_request_headers {
        for field in &r.head.headers {
            let name = r.text(field.name);
            let untrue = is_refused && name.eq_ignore_ascii_case(HTTP2_SETTINGS);
            if !untrue && !contains(&settings.head.suppressed, name) {
                encode::header(name, r.text(field.value), out);
            }
        }
    }
    out.extend_from_slice(b"\r\n");
    if let Some(set_body) = &*settings.set_body {
        value::expand(set_body, c, r, out);
    }
    body
}

/// The value of Upgrade: that of the `proxy_set_header` lines, or what `websocket` makes of the
/// client's.
fn put_proxied_upgrade(c: &Connection, r: &Request, location: &Location, out: &mut Vec<u8>) {
    let lines = &location.settings.proxy.head.lines;
    for line in lines.iter().filter(|line| line.name.eq_ignore_ascii_case("upgrade")) {
        if !out.is_empty() {
            out.extend_from_slice(b", ");
        }
        value::expand(&line.value, c, r, out);
    }
    let websocket = &location.settings.websocket;
    if out.is_empty() && *websocket.enabled && r.head.headers.contains(Known::Upgrade) {
        put_client_upgrade(r, out);
        let asked = handshake::asked(out, &websocket.upgrade_allow);
        out.clear();
        if asked == Asked::WebSocket {
            out.extend_from_slice(b"websocket");
        }
    }
}

/// The client's Upgrade lines, joined.
fn put_client_upgrade(r: &Request, out: &mut Vec<u8>) {
    for (n, field) in r.head.headers.find_all(Known::Upgrade).enumerate() {
        if n > 0 {
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(r.text(field.value));
    }
}

/// Whether a header is only true of a request that asks for an upgrade.
fn is_about_upgrade(name: &str) -> bool {
    [b"Upgrade".as_slice(), b"Connection", HTTP2_SETTINGS]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(name.as_bytes()))
}

/// The URI to send (proxy, section 1).
fn put_uri(r: &Request, location: &Location, uri: DestinationUri<'_>, out: &mut Vec<u8>) {
    let replaced = match uri {
        DestinationUri::Whole(uri) => {
            if uri.starts_with(b"?") {
                out.push(b'/');
            }
            return out.extend_from_slice(uri);
        }
        DestinationUri::Request if r.uri_is_original && r.text(r.head.path).starts_with(b"/") => {
            return r.put_request_uri(out);
        }
        DestinationUri::Replaces(uri) if !r.rewritten_in_place => {
            out.extend_from_slice(uri);
            // Of an `if` block, too, it is the location's name.
            location.prefix.as_deref().map_or(0, str::len).min(r.uri.len())
        }
        _ => 0,
    };
    let rest = &r.uri[replaced..];
    if r.escape || r.internal {
        escape_uri(rest, out);
    } else {
        out.extend_from_slice(rest);
    }
    if !r.args.is_empty() {
        out.push(b'?');
        out.extend_from_slice(&r.args);
    }
}

/// Host is always the first line. An empty value falls back to `$proxy_host` in HTTP/1.1, and sends
/// nothing in HTTP/1.0.
fn put_host(
    c: &Connection,
    r: &Request,
    settings: &proxy::Settings,
    proxy_host: &[u8],
    version: HttpVersion,
    out: &mut Vec<u8>,
) {
    let start = out.len();
    out.extend_from_slice(b"Host: ");
    let value_start = out.len();
    match &settings.head.host {
        Some(host) => value::expand(host, c, r, out),
        None => out.extend_from_slice(proxy_host),
    }
    encode::clean_value(&mut out[value_start..]);
    if out.len() == value_start {
        match version {
            HttpVersion::Http10 => return out.truncate(start),
            HttpVersion::Http11 => out.extend_from_slice(proxy_host),
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// One `proxy_set_header` line; an empty value sends nothing. Tells whether there was one.
fn put_line(c: &Connection, r: &Request, line: &proxy::SetHeader, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    out.extend_from_slice(line.name.as_bytes());
    out.extend_from_slice(b": ");
    let value_start = out.len();
    value::expand(&line.value, c, r, out);
    encode::clean_value(&mut out[value_start..]);
    let has_value = out.len() > value_start;
    if has_value {
        out.extend_from_slice(b"\r\n");
    } else {
        out.truncate(start);
    }
    has_value
}

/// What is left of such a line when the upgrade is kept back: of Connection the other options.
fn put_line_without_upgrade(
    c: &Connection,
    r: &Request,
    line: &proxy::SetHeader,
    out: &mut Vec<u8>,
) {
    if line.name.eq_ignore_ascii_case("connection") {
        let mut left = Vec::new();
        handshake::without_upgrade(&value::expanded(&line.value, c, r), &mut left);
        encode::clean_value(&mut left);
        if !left.is_empty() {
            encode::header(line.name.as_bytes(), &left, out);
        }
    }
}

fn put_length(
    c: &Connection,
    r: &Request,
    settings: &proxy::Settings,
    streams: bool,
    out: &mut Vec<u8>,
) -> BodyForm {
    let says_length = !settings.head.overrides_length;
    if let Some(set_body) = &*settings.set_body {
        if says_length {
            let length = value::expanded(set_body, c, r).len();
            encode::header_number(b"Content-Length", length as u64, out);
        }
        return BodyForm::None;
    }
    let passes = *settings.exchange.pass_request_body;
    let (length, form) = match r.head.body {
        BodyLength::None | BodyLength::UntilClose => return BodyForm::None,
        BodyLength::Length(n) => (Some(n), BodyForm::Plain),
        BodyLength::Chunked if streams => (None, BodyForm::Chunked),
        BodyLength::Chunked => (Some(r.body.decoded), BodyForm::Plain),
    };
    match length {
        Some(n) if says_length => encode::header_number(b"Content-Length", n, out),
        None if !settings.head.overrides_encoding => {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        _ => {}
    }
    if passes { form } else { BodyForm::None }
}

/// Whether a sorted list of lower-case names has this one, whatever its case.
pub fn contains(names: &[Box<[u8]>], name: &[u8]) -> bool {
    names.iter().any(|known| known.len() == name.len() && known.eq_ignore_ascii_case(name))
}

/// A uwsgi packet without its body.
pub fn uwsgi(
    c: &Connection,
    r: &Request,
    location: &Location,
    message: &mut Message,
) -> Result<BodyForm, usize> {
    let settings = &location.settings.uwsgi;
    message.is_head = r.is_head();
    put_uwsgi_upgrade(c, r, settings, &mut message.upgrade);
    let allowed = &location.settings.websocket.upgrade_allow;
    message.asked = handshake::asked(&message.upgrade, allowed);
    let is_refused = message.asked == Asked::Refused;

    // The header is written last, when the length is known.
    message.bytes.extend_from_slice(&[0; packet::HEADER_LENGTH]);
    for piece in &settings.plan.pieces {
        if is_refused && is_upgrade_piece(piece) {
            continue;
        }
        put_piece(c, r, piece, &mut message.bytes).map_err(|()| too_big(message))?;
    }
    if settings.plan.default_host {
        put_default_host(r, &mut message.bytes).map_err(|()| too_big(message))?;
    }
    if *settings.exchange.pass_request_headers {
        put_client_headers(r, settings, message).map_err(|()| too_big(message))?;
    }
    message.bytes.extend_from_slice(settings.string.as_bytes());

    let length = message.len() - packet::HEADER_LENGTH;
    let Ok(length) = packet::block_length(length) else { return Err(length) };
    let header = packet::header(*settings.modifier1, length, *settings.modifier2);
    message.bytes[..packet::HEADER_LENGTH].copy_from_slice(&header);

    let sends_body = *settings.exchange.pass_request_body && body::is_announced(r);
    Ok(if sends_body { BodyForm::Plain } else { BodyForm::None })
}

/// The value of `HTTP_UPGRADE`: that of its `uwsgi_param`, or the client's.
fn put_uwsgi_upgrade(c: &Connection, r: &Request, settings: &uwsgi::Settings, out: &mut Vec<u8>) {
    let key = |param: &&uwsgi::Param| param.key.eq_ignore_ascii_case("HTTP_UPGRADE");
    if let Some(param) = settings.param.iter().find(key) {
        value::expand(&param.value, c, r, out);
    } else if *settings.exchange.pass_request_headers {
        put_client_upgrade(r, out);
    }
}

/// A parameter that passes on the client's wish. One that is constant is the configuration's own.
fn is_upgrade_piece(piece: &Piece) -> bool {
    let Piece::Dynamic { encoded_key, .. } = piece else { return false };
    let key = encoded_key.get(2..).and_then(|key| key.strip_prefix(b"HTTP_"));
    key.is_some_and(is_upgrade_variable)
}

/// `UPGRADE` and `HTTP2_SETTINGS`, or a header that becomes one of them.
fn is_upgrade_variable(name: &[u8]) -> bool {
    same_variable(name, b"UPGRADE") || same_variable(name, HTTP2_SETTINGS)
}

/// A single key or value does not fit: the block cannot either.
fn too_big(message: &Message) -> usize {
    message.len().max(packet::LENGTH_MAX + 1)
}

fn put_piece(c: &Connection, r: &Request, piece: &Piece, out: &mut Vec<u8>) -> Result<(), ()> {
    match piece {
        Piece::Constant(pairs) => out.extend_from_slice(pairs),
        Piece::Dynamic { encoded_key, value, if_not_empty } => {
            let start = out.len();
            out.extend_from_slice(encoded_key);
            let length_at = out.len();
            out.extend_from_slice(&[0; 2]);
            value::expand(value, c, r, out);
            let length = out.len() - length_at - 2;
            if length == 0 && *if_not_empty {
                out.truncate(start);
                return Ok(());
            }
            let length = u16::try_from(length).map_err(|_| ())?;
            out[length_at..length_at + 2].copy_from_slice(&length.to_le_bytes());
        }
    }
    Ok(())
}

/// `HTTP_HOST`: `$host`, and the port if the request named one.
fn put_default_host(r: &Request, out: &mut Vec<u8>) -> Result<(), ()> {
    let mut host = if r.host.is_empty() {
        r.generation.http().server(r.server).name.as_bytes().to_vec()
    } else {
        r.host.clone()
    };
    if let Some(port) = &r.host_port
        && !port.is_empty()
    {
        host.push(b':');
        host.extend_from_slice(port);
    }
    packet::put_pair(out, b"HTTP_HOST", &host).map_err(|_| ())
}

/// Every client header as `HTTP_NAME`: repeated ones are one variable, at the first one's place.
fn put_client_headers(
    r: &Request,
    settings: &uwsgi::Settings,
    message: &mut Message,
) -> Result<(), ()> {
    let fields = || r.head.headers.iter();
    let was_chunked = r.head.body == BodyLength::Chunked;
    for (at, field) in fields().enumerate() {
        let name = r.text(field.name);
        // The body has been decoded: its coding is no longer true of it. An upgrade may be kept back.
        let untrue = (was_chunked && field.known == Known::TransferEncoding)
            || (message.asked == Asked::Refused && is_upgrade_variable(name));
        if field.known == Known::Host || untrue || is_suppressed(settings, name) {
            continue;
        }
        let same = |other: &Field| same_variable(r.text(other.name), name);
        if fields().take(at).any(same) {
            continue;
        }
        let more: SmallVec<[&Field; 4]> = fields().skip(at + 1).filter(|f| same(f)).collect();
        put_variable(r, field, &more, message)?;
    }
    Ok(())
}

fn put_variable(
    r: &Request,
    field: &Field,
    more: &[&Field],
    message: &mut Message,
) -> Result<(), ()> {
    let name = r.text(field.name);
    let out = &mut message.bytes;
    let key_length = u16::try_from(name.len() + b"HTTP_".len()).map_err(|_| ())?;
    out.extend_from_slice(&key_length.to_le_bytes());
    packet::put_header_key(name, out);

    let separator: &[u8] = if field.known == Known::Cookie { b"; " } else { b", " };
    let length =
        field.value.len() + more.iter().map(|f| separator.len() + f.value.len()).sum::<usize>();
    let length = u16::try_from(length).map_err(|_| ())?;
    out.extend_from_slice(&length.to_le_bytes());
    if more.is_empty() && field.value.len() >= BY_REFERENCE {
        message.inserts.push((out.len(), field.value));
        return Ok(());
    }
    out.extend_from_slice(r.text(field.value));
    for field in more {
        out.extend_from_slice(separator);
        out.extend_from_slice(r.text(field.value));
    }
    Ok(())
}

fn is_suppressed(settings: &uwsgi::Settings, name: &[u8]) -> bool {
    settings
        .plan
        .suppressed
        .iter()
        .any(|key| key.strip_prefix(b"HTTP_").is_some_and(|key| same_variable(key, name)))
}

/// Whether two header names become the same variable.
fn same_variable(a: &[u8], b: &[u8]) -> bool {
    let fold = |byte: &u8| if *byte == b'-' { b'_' } else { byte.to_ascii_uppercase() };
    a.len() == b.len() && a.iter().map(fold).eq(b.iter().map(fold))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_stand_between_the_bytes() {
        let message = Message {
            bytes: b"abcd".to_vec(),
            inserts: SmallVec::from_slice(&[(1, Span::new(0, 2)), (4, Span::new(2, 3))]),
            ..Message::default()
        };
        let joined: Vec<u8> = message.slices(b"XYZ").iter().flat_map(|s| s.to_vec()).collect();
        assert_eq!(joined, b"aXYbcdZ");
        assert_eq!(message.len(), 7);
    }

    #[test]
    fn names_that_become_one_variable() {
        assert!(same_variable(b"X-Name", b"x_name"));
        assert!(!same_variable(b"X-Name", b"X-Nam"));
        let names: Vec<Box<[u8]>> = vec![b"host".as_slice().into(), b"te".as_slice().into()];
        assert!(contains(&names, b"Host") && !contains(&names, b"Hos"));
    }
}
