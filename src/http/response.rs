//! The response head in nginx's order (http-core, section 9), and sending to the client.

use std::io::{self, IoSlice};
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use smallvec::SmallVec;

use super::action::Action;
use super::close::Close;
use super::connection::{self, Connection};
use super::modules::core;
use super::modules::headers::{self, lines};
use super::request::Request;
use super::{body, count, fault, pace, special_response, value};
use crate::clock;
use crate::http1::request::Version;
use crate::http1::{chunked, encode};
use crate::io::select::{Either, either, yield_now};
use crate::io::stream::Failure;
use crate::io::timer::{self, Wait};

/// How the client learns where the body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    Known(u64),
    /// Chunked for a client that can take it, otherwise until the connection closes.
    Unknown,
    /// There is no body and nothing is said of one: 204, 304, and HEAD of unknown length.
    None,
}

/// A status, by who has the last word on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// What the response is by itself: an error page has the status that it is for instead.
    Own(u16),
    /// What the request's conditions, or its range, have made of that: a page sent with 200 is a 304
    /// or 206 like any other.
    Settled(u16),
}

/// The lines with a fixed place.
#[derive(Debug)]
pub struct Head<'a> {
    pub status: Status,
    /// The upstream's code and text, passed on as received with a status of its own.
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
            status: Status::Own(200),
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
    let location = generation.http().location(r.location);
    let core = &location.settings.core;
    let (status, status_text) = match (head.status, r.response.status_override) {
        (Status::Own(status), None) => (status, head.status_text),
        (Status::Settled(status), _) | (Status::Own(_), Some(status)) => (status, None),
    };
    r.response.status = status;
    r.response.is_bodiless = r.is_head() || matches!(status, 204 | 304);
    // Made here, a 204 tells of no content at all; an upstream's is passed on as it came, but for its
    // length (RFC 9110 section 8.6).
    let is_own_204 = status == 204 && status_text.is_none();
    let length = match head.length {
        _ if status == 204 => Length::None,
        Length::Unknown if r.response.is_bodiless => Length::None,
        length => length,
    };
    let can_chunk = status >= 200
        && !r.response.is_bodiless
        && r.version() >= Version::Http11
        && *core.chunked_transfer_encoding;
    // Trailers need chunks, also where the length is known.
    r.response.has_trailers = can_chunk
        && length != Length::None
        && headers::asks_for_trailers(&location.settings.headers, status);
    r.response.trailers.clear();
    r.response.chunked = can_chunk && (length == Length::Unknown || r.response.has_trailers);
    let until_close = length == Length::Unknown && !r.response.chunked;
    r.keepalive = r.keepalive && !until_close && !head.upgrade && connection::may_keep_alive(c, r);

    if status == 206 {
        // The page in place of a 416 has a range of its own.
        lines::remove_before(&mut r.response.kept.lines, usize::MAX, b"content-range");
    }
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
        c.shard.with_http_date(|date| {
            fault::at(r, "while the date is borrowed");
            encode::header(b"Date", date, &mut out);
        });
    }
    let kept_type = r.response.kept.content_type.as_deref();
    if let Some(content_type) = kept_type.or(head.content_type)
        && !is_own_204
        && !content_type.is_empty()
    {
        encode::header(b"Content-Type", content_type, &mut out);
    }
    if let Length::Known(n) = length
        && !r.response.chunked
    {
        encode::header_number(b"Content-Length", n, &mut out);
    }
    if let Some(modified) = head.last_modified {
        encode::header(b"Last-Modified", http_date(modified).as_bytes(), &mut out);
    }
    // That of a redirect outlives it when another status is put in its place.
    let kept_location = r.response.location.take();
    // One that is not made absolute is one of the list.
    let (absolute, relative) = match head.location.or(kept_location.as_deref()) {
        Some(location) if becomes_absolute(core, location) => (Some(location), None),
        location => (None, location),
    };
    if let Some(location) = absolute {
        out.extend_from_slice(b"Location: ");
        let start = out.len();
        put_absolute_location(c, r, location, &mut out);
        encode::clean_uri(&mut out, start);
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
    r.response.list_at = out.len();
    out.extend_from_slice(&r.response.set_cookie);
    out.extend_from_slice(&r.response.kept.lines);
    if let Some(location) = relative {
        out.extend_from_slice(b"Location: ");
        let start = out.len();
        out.extend_from_slice(location);
        encode::clean_uri(&mut out, start);
        out.extend_from_slice(b"\r\n");
    }
    r.response.head = out;
}

/// Whether a Location of ringx's own making gets scheme and host: `absolute_redirect`.
pub fn becomes_absolute(core: &core::Settings, location: &[u8]) -> bool {
    location.first() == Some(&b'/') && *core.absolute_redirect
}

/// A Location with scheme and host, as `server_name_in_redirect` and `port_in_redirect` say.
fn put_absolute_location(c: &Connection, r: &Request, location: &[u8], out: &mut Vec<u8>) {
    let generation = Rc::clone(&r.generation);
    let core = &generation.http().location(r.location).settings.core;
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

/// Seconds since 1970 as a date of HTTP. It has four digits for the year, and a file may be of any
/// time: what is later is of the last second that can be told.
pub fn http_date(seconds: u64) -> String {
    const LAST: u64 = 253_402_300_799;
    let since = Duration::from_secs(seconds.min(LAST));
    UNIX_EPOCH.checked_add(since).map(httpdate::fmt_http_date).unwrap_or_default()
}

/// Decides how fast it goes, adds what the configuration adds, and the empty line.
pub fn finish(c: &Connection, r: &mut Request) {
    finish_with(c, r, None);
}

/// The same, with one line more behind what the configuration adds: there nginx, too, speaks of
/// ranges.
pub fn finish_with(c: &Connection, r: &mut Request, line: Option<(&[u8], &[u8])>) {
    let generation = Rc::clone(&r.generation);
    let headers = &generation.http().location(r.location).settings.headers;
    r.response.pace = pace::of_response(c, r);
    if headers.is_used {
        headers::put(c, r, headers);
    }
    if r.has_given_up() {
        return be_nothing_but_an_error(c, r);
    }
    if let Some((name, value)) = line {
        encode::header(name, value, &mut r.response.head);
    }
    r.response.head.extend_from_slice(b"\r\n");
}

/// A head that went by what could not be decided becomes that of an empty 500: no page, whose head
/// might go by the same.
fn be_nothing_but_an_error(c: &Connection, r: &mut Request) {
    let core = &c.settings(r).core;
    let name = special_response::server_name(*core.server_tokens);
    let head = &mut r.response.head;
    head.clear();
    encode::status_line(500, head);
    encode::header(b"Server", name.as_bytes(), head);
    c.shard.with_http_date(|date| encode::header(b"Date", date, head));
    head.extend_from_slice(b"Content-Length: 0\r\nConnection: close\r\n\r\n");
    r.response.status = 500;
    r.response.status_override = None;
    r.response.list_at = r.response.head.len();
    r.response.chunked = false;
    r.response.has_trailers = false;
    r.response.is_bodiless = true;
    r.keepalive = false;
}

/// Sends the finished head with the first body bytes behind it, in one call; they are a chunk where
/// the response is chunked. An HTTP/0.9 client gets the body alone.
pub async fn send_head(
    c: &Connection,
    r: &mut Request,
    body: &mut [IoSlice<'_>],
) -> Result<(), Close> {
    c.action.set(Action::SendingResponse);
    let head: &[u8] = if r.version() == Version::Http09 { b"" } else { &r.response.head };
    let head_len = head.len() as u64;
    let mut chunk_head = [0; chunked::CHUNK_HEAD_MAX];
    let mut slices: Slices<'_> = SmallVec::new();
    slices.push(IoSlice::new(head));
    push_body(&mut slices, body, r.response.chunked, &mut chunk_head);
    let limit = *c.settings(r).core.send_timeout;
    let mut pace = r.response.pace;
    let moved = r.response.bytes_sent;
    let (sent, result) = match &mut pace {
        None => c.stream.send_all(&mut slices, limit).await,
        Some(pace) => pace::send_all(&c.stream, pace, moved, &mut slices, limit).await,
    };
    drop(slices);
    r.response.pace = pace;
    r.response.head_sent = true;
    count::add(&mut r.response.bytes_sent, sent);
    count::add(&mut r.response.head_bytes, sent.min(head_len));
    Ok(result?)
}

/// Sends more of the body.
pub async fn send_body(
    c: &Connection,
    r: &mut Request,
    body: &mut [IoSlice<'_>],
) -> Result<(), Close> {
    c.action.set(Action::SendingResponse);
    let mut chunk_head = [0; chunked::CHUNK_HEAD_MAX];
    let mut slices: Slices<'_> = SmallVec::new();
    push_body(&mut slices, body, r.response.chunked, &mut chunk_head);
    let limit = *c.settings(r).core.send_timeout;
    let moved = r.response.bytes_sent;
    let (sent, result) = match &mut r.response.pace {
        None => c.stream.send_all(&mut slices, limit).await,
        Some(pace) => pace::send_all(&c.stream, pace, moved, &mut slices, limit).await,
    };
    count::add(&mut r.response.bytes_sent, sent);
    Ok(result?)
}

/// Sends of a body that is not chunked what the client takes at once, as the pace allows. Returns how
/// many bytes that were.
pub fn send_some(c: &Connection, r: &mut Request, body: &[u8]) -> Result<usize, Close> {
    c.action.set(Action::SendingResponse);
    let mut sent = 0;
    while let Some(left) = body.get(sent..)
        && !left.is_empty()
    {
        let moved = r.response.bytes_sent;
        let most = match &mut r.response.pace {
            None => left.len(),
            Some(pace) => match pace.allowed(moved, clock::steady().as_secs(), timer::now_ms()) {
                Ok(most) => left.len().min(usize::try_from(most).unwrap_or(usize::MAX)),
                Err(_) => break,
            },
        };
        match c.stream.try_send(&[IoSlice::new(left.get(..most).unwrap_or(left))]) {
            Ok(n) => {
                sent = sent.saturating_add(n);
                count::add(&mut r.response.bytes_sent, n as u64);
                if let Some(pace) = &mut r.response.pace {
                    pace.account(moved, r.response.bytes_sent, timer::now_ms());
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Failure::Io(e).into()),
        }
    }
    Ok(sent)
}

/// Waits until more can be sent.
pub async fn ready(c: &Connection, r: &mut Request) -> Result<(), Close> {
    let hold = r.response.pace.map_or(Duration::ZERO, |pace| pace.hold(timer::now_ms()));
    if hold.is_zero() {
        let (limit, may_come) = (*c.settings(r).core.send_timeout, body::is_unwanted(r));
        writable(c, limit, may_come, || body::discard_some(c, r)).await?;
    } else {
        pace::hold(&c.stream, hold).await?;
    }
    Ok(())
}

/// Waits until the client takes bytes of a response. One that writes all of its body before it reads
/// gets that far: while something `may_come` that nobody wants, `discard` throws away what is there,
/// and says whether there may be more.
pub async fn writable(
    c: &Connection,
    limit: Duration,
    may_come: bool,
    discard: impl FnMut() -> Result<bool, Failure>,
) -> Result<(), Failure> {
    if may_come {
        Box::pin(writable_discarding(c, limit, discard)).await
    } else {
        c.stream.writable(limit).await
    }
}

async fn writable_discarding(
    c: &Connection,
    limit: Duration,
    mut discard: impl FnMut() -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let taken = async {
        loop {
            match either(c.stream.writable_unlimited(), c.stream.readable_unlimited()).await {
                Either::First(result) => return result.map_err(Failure::Io),
                Either::Second(result) => result?,
            }
            if !discard()? {
                return c.stream.writable_unlimited().await.map_err(Failure::Io);
            }
            // A client that is always ahead leaves others their turn, and its own time runs out.
            yield_now().await;
        }
    };
    c.stream.timer().within(limit, Wait::Busy, taken).await?
}

/// What comes after the last byte of the body: of a chunked one its end, with trailers. Then the
/// response is complete.
pub async fn end_body(c: &Connection, r: &mut Request) -> Result<(), Close> {
    if r.response.chunked {
        let end = headers::end_of_chunked(c, r);
        let limit = *c.settings(r).core.send_timeout;
        let (sent, result) = c.stream.send_all(&mut [IoSlice::new(&end)], limit).await;
        count::add(&mut r.response.bytes_sent, sent);
        result?;
    }
    r.response.complete = true;
    Ok(())
}

type Slices<'a> = SmallVec<[IoSlice<'a>; 6]>;

fn push_body<'a>(
    slices: &mut Slices<'a>,
    body: &'a [IoSlice<'_>],
    is_chunked: bool,
    chunk_head: &'a mut [u8; chunked::CHUNK_HEAD_MAX],
) {
    let parts = body.iter().map(|part| IoSlice::new(part));
    let length: usize = body.iter().map(|part| part.len()).sum();
    if !is_chunked {
        slices.extend(parts);
    } else if length > 0 {
        slices.push(IoSlice::new(chunked::chunk_head(length, chunk_head)));
        slices.extend(parts);
        slices.push(IoSlice::new(b"\r\n"));
    }
}

/// A whole response out of memory.
pub async fn send(
    c: &Connection,
    r: &mut Request,
    head: &Head<'_>,
    body: &[&[u8]],
) -> Result<(), Close> {
    begin(c, r, head);
    send_begun(c, r, body).await
}

/// The same behind a head that has been begun.
pub async fn send_begun(c: &Connection, r: &mut Request, body: &[&[u8]]) -> Result<(), Close> {
    finish(c, r);
    let mut slices: SmallVec<[IoSlice<'_>; 4]> = SmallVec::new();
    if !r.response.is_bodiless {
        slices.extend(body.iter().map(|part| IoSlice::new(part)));
    }
    send_head(c, r, &mut slices).await?;
    end_body(c, r).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The modification time of a file is anything.
    #[test]
    fn dates_have_four_digits_of_a_year() {
        assert_eq!(http_date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(http_date(253_402_300_799), "Fri, 31 Dec 9999 23:59:59 GMT");
        for late in [253_402_300_800, i64::MAX as u64, u64::MAX] {
            assert_eq!(http_date(late), "Fri, 31 Dec 9999 23:59:59 GMT");
        }
    }
}
