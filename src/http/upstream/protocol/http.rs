//! The request head of HTTP (proxy, sections 1 and 2).

use super::{BodyForm, Destination, DestinationUri, Message, Told, contains, put_client_upgrade};
use crate::http::connection::Connection;
use crate::http::location::Location;
use crate::http::modules::proxy::{self, HttpVersion};
use crate::http::request::Request;
use crate::http::tunnel::handshake::{self, Asked, HTTP2_SETTINGS};
use crate::http::value;
use crate::http1::framing::BodyLength;
use crate::http1::header::Known;
use crate::http1::uri::escape_uri;
use crate::http1::{Span, encode};

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
            encode::clean_method(out);
        }
        None => out.extend_from_slice(value::method(r)),
    }
    message.is_head = out.eq_ignore_ascii_case(b"HEAD");
    out.push(b' ');
    let uri_start = out.len();
    put_uri(r, location, destination.uri, out);
    // A path is decoded: `$uri` in the URI of a `proxy_pass` or in args may hold a space or a line's end.
    encode::clean_target(out, uri_start);
    message.uri = Span::new(uri_start, out.len());
    out.extend_from_slice(match version {
        HttpVersion::Http10 => b" HTTP/1.0\r\n",
        HttpVersion::Http11 => b" HTTP/1.1\r\n",
    });

    put_host(c, r, settings, destination.host, version, out);
    let is_refused = message.asked == Asked::Refused;
    let (mut says_upgrade, mut says_connection) = (false, false);
    let tells_of_body = settings.head.overrides_length || settings.head.overrides_encoding;
    for line in &settings.head.lines {
        let start = out.len();
        if is_refused && is_about_upgrade(&line.name) {
            put_line_without_upgrade(c, r, line, out);
        } else if put_line(c, r, line, out) {
            says_upgrade |= line.name.eq_ignore_ascii_case("upgrade");
            says_connection |= line.name.eq_ignore_ascii_case("connection");
            if tells_of_body {
                let (name, put) = (line.name.as_bytes(), out.get(start..).unwrap_or_default());
                let value = put.get(name.len()..).and_then(|put| put.strip_prefix(b": "));
                message.told.read(name, value.unwrap_or_default().trim_ascii());
            }
        }
    }
    if makes_websocket && !says_upgrade {
        out.extend_from_slice(b"Upgrade: websocket\r\n");
    }
    if makes_websocket && !says_connection {
        out.extend_from_slice(b"Connection: upgrade\r\n");
    }
    let body = put_length(c, r, settings, streams, out, &mut message.told);
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
        let start = out.len();
        value::expand(set_body, c, r, out);
        message.made_body = out.len().saturating_sub(start);
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
            r.put_request_uri(out);
            return;
        }
        DestinationUri::Replaces(uri) if !r.rewritten_in_place => {
            out.extend_from_slice(uri);
            // Of an `if` block, too, it is the location's name.
            location.prefix.as_deref().map_or(0, str::len).min(r.uri.len())
        }
        _ => 0,
    };
    #[expect(clippy::indexing_slicing, reason = "`replaced` is at most its length")]
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
    #[expect(clippy::indexing_slicing, reason = "what was put stands behind it")]
    let value = &mut out[value_start..];
    encode::clean_value(value);
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
    #[expect(clippy::indexing_slicing, reason = "what was put stands behind it")]
    let value = &mut out[value_start..];
    encode::clean_value(value);
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
    told: &mut Told,
) -> BodyForm {
    let says_length = !settings.head.overrides_length;
    if let Some(set_body) = &*settings.set_body {
        if says_length {
            let length = value::expanded(set_body, c, r).len();
            encode::header_number(b"Content-Length", length as u64, out);
            told.length = Some(length as u64);
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
        Some(n) if says_length => {
            told.length = Some(n);
            encode::header_number(b"Content-Length", n, out);
        }
        None if !settings.head.overrides_encoding => {
            told.chunked = true;
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        _ => {}
    }
    if passes { form } else { BodyForm::None }
}
