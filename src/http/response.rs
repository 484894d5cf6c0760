//! The response head in nginx's order (http-core, section 9), and sending to the client.

use std::io::IoSlice;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use super::action::Action;
use super::close::Close;
use super::connection::{self, Connection};
use super::request::Request;
use super::{special_response, value};
use crate::http1::encode;
use crate::http1::request::Version;

/// How the client learns where the body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    Known(u64),
    /// Chunked for a client that can take it, otherwise until the connection closes.
    Unknown,
    /// There is no body and nothing is said of one: 204, 304, and HEAD of unknown length.
    None,
}

/// The lines with a fixed place.
#[derive(Debug)]
pub struct Head<'a> {
    pub status: u16,
    /// The upstream's code and text, passed on as received.
    pub status_text: Option<&'a [u8]>,
    pub content_type: Option<&'a [u8]>,
    pub length: Length,
    pub last_modified: Option<u64>,
    pub location: Option<&'a [u8]>,
    /// Whether `Server` and `Date` are ours to send.
    pub server: bool,
    pub date: bool,
    /// `Connection: upgrade` of a 101.
    pub upgrade: bool,
}

impl Default for Head<'_> {
    fn default() -> Self {
        Head {
            status: 200,
            status_text: None,
            content_type: None,
            length: Length::None,
            last_modified: None,
            location: None,
            server: true,
            date: true,
            upgrade: false,
        }
    }
}

/// Writes the lines with a fixed place and decides about chunks and keepalive. What follows (an
/// upstream's headers, an entity tag) is appended to `r.response.head`; then comes [`finish`].
pub fn begin(c: &Connection, r: &mut Request, head: &Head<'_>) {
    let generation = Rc::clone(&r.generation);
    let core = &generation.http().location(r.location).settings.core;
    // An error page keeps the status it is for.
    let (status, status_text) = match r.response.status_override {
        Some(status) => (status, None),
        None => (head.status, head.status_text),
    };
    r.response.status = status;
    r.response.is_bodiless = r.is_head() || matches!(status, 204 | 304);
    // Made here, a 204 tells of no content at all; an upstream's is passed on as it came.
    let is_own_204 = status == 204 && status_text.is_none();
    let length = match head.length {
        _ if is_own_204 => Length::None,
        Length::Unknown if r.response.is_bodiless => Length::None,
        length => length,
    };
    r.response.chunked = length == Length::Unknown
        && status >= 200
        && r.version() >= Version::Http11
        && *core.chunked_transfer_encoding;
    let until_close = length == Length::Unknown && !r.response.chunked;
    r.keepalive = r.keepalive && !until_close && !head.upgrade && connection::may_keep_alive(c, r);

    let mut out = std::mem::take(&mut r.response.head);
    out.clear();
    match status_text {
        Some(text) => {
            out.extend_from_slice(b"HTTP/1.1 ");
            out.extend_from_slice(text);
            out.extend_from_slice(b"\r\n");
        }
        None => encode::status_line(status, &mut out),
    }
    if head.server {
        let name = special_response::server_name(*core.server_tokens);
        encode::header(b"Server", name.as_bytes(), &mut out);
    }
    if head.date {
        c.shard.with_http_date(|date| encode::header(b"Date", date, &mut out));
    }
    if let Some(content_type) = head.content_type.filter(|_| !is_own_204) {
        encode::header(b"Content-Type", content_type, &mut out);
    }
    if let Length::Known(n) = length {
        encode::header_number(b"Content-Length", n, &mut out);
    }
    if let Some(modified) = head.last_modified {
        let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(modified));
        encode::header(b"Last-Modified", date.as_bytes(), &mut out);
    }
    if let Some(location) = head.location {
        out.extend_from_slice(b"Location: ");
        absolute_location(c, r, location, &mut out);
        out.extend_from_slice(b"\r\n");
    }
    if r.response.chunked {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    if head.upgrade {
        out.extend_from_slice(b"Connection: upgrade\r\n");
    } else if r.keepalive {
        out.extend_from_slice(b"Connection: keep-alive\r\n");
        if let Some(seconds) = core.keepalive_timeout.header {
            out.extend_from_slice(b"Keep-Alive: timeout=");
            out.extend_from_slice(itoa::Buffer::new().format(seconds).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    } else {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    if !r.response.set_cookie.is_empty() {
        out.extend_from_slice(&r.response.set_cookie);
    }
    r.response.head = out;
}

/// A Location that starts with `/` is made absolute, as `absolute_redirect` and its friends say.
pub fn absolute_location(c: &Connection, r: &Request, location: &[u8], out: &mut Vec<u8>) {
    let generation = Rc::clone(&r.generation);
    let core = &generation.http().location(r.location).settings.core;
    if location.first() != Some(&b'/') || !*core.absolute_redirect {
        out.extend_from_slice(location);
        return;
    }
    out.extend_from_slice(b"http://");
    let name = generation.http().server(r.server).name.as_bytes();
    let local = c.local_address();
    if *core.server_name_in_redirect && !name.is_empty() {
        out.extend_from_slice(name);
    } else if !r.host.is_empty() {
        out.extend_from_slice(&r.host);
    } else if let Some(local) = local {
        let _ = std::fmt::Write::write_fmt(&mut value::Text(out), format_args!("{}", local.ip()));
    } else {
        out.extend_from_slice(b"localhost");
    }
    if let Some(local) = local
        && *core.port_in_redirect
        && local.port() != 80
    {
        out.push(b':');
        out.extend_from_slice(itoa::Buffer::new().format(local.port()).as_bytes());
    }
    out.extend_from_slice(location);
}

/// Adds what the configuration adds, and the empty line.
pub fn finish(c: &Connection, r: &mut Request) {
    let generation = Rc::clone(&r.generation);
    let headers = &generation.http().location(r.location).settings.headers;
    for add in headers.add_header.iter() {
        if !add.always && !is_plain_success(r.response.status) {
            continue;
        }
        // The value may look at the head so far: it is built beside it.
        let value = value::expanded(&add.value, c, r);
        if !value.is_empty() {
            encode::header(add.name.as_bytes(), &value, &mut r.response.head);
        }
    }
    r.response.head.extend_from_slice(b"\r\n");
}

/// The statuses that `add_header` without `always` is for.
fn is_plain_success(status: u16) -> bool {
    matches!(status, 200 | 201 | 204 | 206 | 301 | 302 | 303 | 304 | 307 | 308)
}

/// Sends the finished head with the first body bytes behind it, in one call. An HTTP/0.9 client gets
/// the body alone.
pub async fn send_head(
    c: &Connection,
    r: &mut Request,
    body: &mut [IoSlice<'_>],
) -> Result<(), Close> {
    c.action.set(Action::SendingResponse);
    let head = if r.version() == Version::Http09 { 0 } else { r.response.head.len() };
    let mut slices: smallvec::SmallVec<[IoSlice<'_>; 6]> = smallvec::SmallVec::new();
    slices.push(IoSlice::new(&r.response.head[..head]));
    slices.extend(body.iter().map(|slice| IoSlice::new(slice)));
    let limit = *c.settings(r).core.send_timeout;
    let (sent, result) = c.stream.send_all(&mut slices, limit).await;
    drop(slices);
    r.response.head_sent = true;
    r.response.bytes_sent += sent;
    r.response.head_bytes += sent.min(head as u64);
    Ok(result?)
}

/// Sends more of the body.
pub async fn send_body(
    c: &Connection,
    r: &mut Request,
    body: &mut [IoSlice<'_>],
) -> Result<(), Close> {
    c.action.set(Action::SendingResponse);
    let limit = *c.settings(r).core.send_timeout;
    let (sent, result) = c.stream.send_all(body, limit).await;
    r.response.bytes_sent += sent;
    Ok(result?)
}

/// A whole response out of memory.
pub async fn send(
    c: &Connection,
    r: &mut Request,
    head: &Head<'_>,
    body: &[&[u8]],
) -> Result<(), Close> {
    begin(c, r, head);
    finish(c, r);
    let mut slices: smallvec::SmallVec<[IoSlice<'_>; 4]> = smallvec::SmallVec::new();
    if !r.response.is_bodiless {
        slices.extend(body.iter().map(|part| IoSlice::new(part)));
    }
    send_head(c, r, &mut slices).await?;
    r.response.complete = true;
    Ok(())
}
