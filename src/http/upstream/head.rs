//! The head of the upstream's answer, translated for the client (proxy, sections 4 and 6), and what
//! it says about the response that is not passed on.

use std::io::IoSlice;

use super::exchange::Family;
use super::protocol::contains;
use super::window::Window;
use crate::http::close::Close;
use crate::http::connection::Connection;
use crate::http::count;
use crate::http::location::Location;
use crate::http::modules::exchange::{IgnoreHeaders, Settings};
use crate::http::modules::proxy::{Redirect, cookie};
use crate::http::modules::static_files::range::{self, Selection};
use crate::http::modules::static_files::{self, Validators};
use crate::http::request::Request;
use crate::http::response::{self, Head, Length, Status};
use crate::http::value;
use crate::http1::framing::BodyLength;
use crate::http1::header::{Field, Known};
use crate::http1::request::Version;
use crate::http1::trailer::Trailers;
use crate::http1::{Span, date, encode};

/// Translates the head (proxy, sections 4 and 6).
pub fn put_head(
    c: &Connection,
    r: &mut Request,
    family: Family,
    location: &Location,
    length: BodyLength,
) {
    if r.upstream_head.is_http09 {
        // No head came, so none is sent: every byte is passed on, and the end is the close.
        r.response.status = 9;
        r.response.head.clear();
        r.response.chunked = false;
        r.response.has_trailers = false;
        r.keepalive = false;
        return;
    }
    if (100..200).contains(&r.upstream_head.code) && r.upstream_head.code != 101 {
        // nginx takes it for the response; the client does not, and would take the next one for it.
        r.keepalive = false;
    }
    let settings = settings_of(family, location);
    let redirected = redirected_location(c, r, family, location);
    // Both are put back as soon as the fixed lines are written beside them: values of the other lines
    // may tell of them.
    let bytes = std::mem::take(&mut r.upstream_bytes);
    let upstream = std::mem::take(&mut r.upstream_head);
    let raw = bytes.as_slice();
    let has = |known| upstream.headers.find(known).is_some();
    let hides = |name: &[u8]| contains(&settings.hidden, name);

    let content_type = upstream
        .headers
        .find(Known::ContentType)
        .filter(|_| !hides(b"content-type"))
        .map(|field| field.value.of(raw));
    if content_type.is_some() {
        r.response.kept.content_type = None;
    }
    if has(Known::Location) {
        r.response.location = None;
    }
    let core = &location.settings.core;
    let absolute =
        redirected.as_deref().filter(|location| response::becomes_absolute(core, location));
    let window = r.response.window;
    let head = Head {
        status: if window.is_some() { Status::Settled(206) } else { Status::Own(upstream.code) },
        status_text: (!upstream.status.is_empty()).then(|| upstream.status.of(raw)),
        content_type,
        length: match (length, upstream.content_length) {
            _ if upstream.code == 101 => Length::None,
            // `proxy_method HEAD`: of what is announced nothing will come.
            (BodyLength::None, Some(_)) if r.message.is_head() && !r.is_head() => Length::Known(0),
            // The page for another status: there is none, whatever the 304 says of what it stands for.
            (BodyLength::None, Some(_)) if r.response.status_override.is_some() && !r.is_head() => {
                Length::Known(0)
            }
            (BodyLength::Length(n), _) | (BodyLength::None, Some(n)) => {
                Length::Known(window.map_or(n, |window| window.take))
            }
            // The first says nothing of whether the client's response has no body either.
            (BodyLength::None, None) | (BodyLength::Chunked | BodyLength::UntilClose, _) => {
                Length::Unknown
            }
        },
        last_modified: None,
        location: absolute,
        server: hides(b"server") || (family == Family::Uwsgi && !has(Known::Server)),
        date: hides(b"date") || (family == Family::Uwsgi && !has(Known::Date)),
        upgrade: upstream.code == 101,
    };
    response::begin(c, r, &head);
    let location_is_put = absolute.is_some();
    r.upstream_head = upstream;
    r.upstream_bytes = bytes;
    for at in 0..r.upstream_head.headers.len() {
        let Some(&field) = r.upstream_head.headers.as_slice().get(at) else { break };
        let skipped = match field.known {
            Known::ContentType
            | Known::ContentLength
            | Known::Connection
            | Known::KeepAlive
            | Known::TransferEncoding => true,
            // Ranges are ringx's to speak of.
            Known::AcceptRanges => *settings.force_ranges,
            Known::Location => location_is_put,
            _ => false,
        };
        if skipped || hides(field.name.of(r.upstream_bytes.as_slice())) {
            continue;
        }
        let rewritten = match field.known {
            Known::Location => redirected.clone(),
            _ => rewritten(c, r, family, location, field),
        };
        let raw = r.upstream_bytes.as_slice();
        let value = rewritten.as_deref().unwrap_or(field.value.of(raw));
        encode::header(field.name.of(raw), value, &mut r.response.head);
    }
    // A server that sends trailers does so behind chunks.
    r.response.has_trailers |=
        r.response.chunked && passes_trailers(family, location) && length == BodyLength::Chunked;
    let content_range = window.map(|window| window.content_range());
    let range_line: Option<(&[u8], &[u8])> = match &content_range {
        Some(range) => Some((b"Content-Range", range.as_bytes())),
        None if *settings.force_ranges && is_cut(r, *core.max_ranges) => {
            Some((b"Accept-Ranges", b"bytes"))
        }
        None => None,
    };
    response::finish_with(c, r, range_line);
}

fn settings_of(family: Family, location: &Location) -> &Settings {
    match family {
        Family::Proxy => &location.settings.proxy.exchange,
        Family::Uwsgi => &location.settings.uwsgi.exchange,
    }
}

/// `proxy_pass_trailers`
pub fn passes_trailers(family: Family, location: &Location) -> bool {
    family == Family::Proxy && *location.settings.proxy.pass_trailers
}

/// `uwsgi_decode_chunked`
pub fn decodes_chunked(family: Family, location: &Location) -> bool {
    family == Family::Proxy || *location.settings.uwsgi.decode_chunked
}

/// `X-Accel-Limit-Rate`: it holds for whatever the client gets, be that another location's.
pub fn take_limit_rate(r: &mut Request, settings: &Settings) {
    if let Some(field) = r.upstream_head.headers.find(Known::XAccelLimitRate)
        && !settings.ignore_headers.contains(IgnoreHeaders::X_ACCEL_LIMIT_RATE)
        && let Ok(text) = std::str::from_utf8(field.value.of(r.upstream_bytes.as_slice()))
        && let Some(rate) = crate::config::value::number(text)
    {
        r.response.limit_rate = Some(rate as u64);
    }
}

/// The Location that the client gets in place of the server's.
fn redirected_location(
    c: &Connection,
    r: &mut Request,
    family: Family,
    location: &Location,
) -> Option<Vec<u8>> {
    let field = r.upstream_head.headers.find(Known::Location)?;
    if family != Family::Proxy || contains(&location.settings.proxy.exchange.hidden, b"location") {
        return None;
    }
    redirect(c, r, location, field.value)
}

/// What a line that goes on among the others becomes; `None`: it goes as it came.
fn rewritten(
    c: &Connection,
    r: &mut Request,
    family: Family,
    location: &Location,
    field: Field,
) -> Option<Vec<u8>> {
    let proxy = &location.settings.proxy;
    match field.known {
        _ if family != Family::Proxy => None,
        Known::Refresh => refreshed(c, r, location, field.value),
        Known::SetCookie if proxy.rewrites_cookies => {
            let cookie = field.value.of(r.upstream_bytes.as_slice()).to_vec();
            cookie::rewritten(c, r, proxy, &cookie)
        }
        _ => None,
    }
}

/// `proxy_redirect` on a Location, or on the URL of a Refresh.
fn redirect(c: &Connection, r: &mut Request, location: &Location, url: Span) -> Option<Vec<u8>> {
    let proxy = &location.settings.proxy;
    let url = url.of(r.upstream_bytes.as_slice());
    match &*proxy.redirect {
        Redirect::Default => {
            let pass = proxy.pass.get().filter(|pass| !pass.url.is_empty())?;
            let rest = url.strip_prefix(pass.url.as_bytes())?;
            let (rest, to) = match &pass.uri {
                Some(uri) => {
                    (rest.strip_prefix(uri.as_bytes())?, location.prefix.as_deref()?.as_bytes())
                }
                None => (rest.strip_prefix(b"/")?, b"/".as_slice()),
            };
            Some([to, rest].concat())
        }
        Redirect::Rules(rules) => {
            let url = url.to_vec();
            rules.apply(c, r, &url)
        }
    }
}

/// The same for the part of a Refresh behind `url=`.
fn refreshed(c: &Connection, r: &mut Request, location: &Location, value: Span) -> Option<Vec<u8>> {
    const URL: &[u8] = b"url=";
    let text = value.of(r.upstream_bytes.as_slice());
    let at = text.windows(URL.len()).position(|part| part.eq_ignore_ascii_case(URL))?;
    let kept = at.saturating_add(URL.len());
    let start = (value.start as usize).saturating_add(kept);
    let url = redirect(c, r, location, Span::new(start, value.end as usize))?;
    let kept = value.of(r.upstream_bytes.as_slice()).get(..kept)?;
    Some([kept, &url].concat())
}

/// Whether a range could be cut out of this response.
fn is_cut(r: &Request, ranges_max: u64) -> bool {
    r.upstream_head.code == 200
        // The page for another status is sent whole.
        && r.response.status_override.is_none_or(|status| status == 200)
        && r.upstream_head.content_length.is_some()
        && r.version() > Version::Http09
        && ranges_max > 0
}

/// `*_force_ranges`: the part of the body that the client wants goes to `r.response.window`. The
/// error is the length of a body that has nothing of it: 416.
pub fn select_range(c: &Connection, r: &mut Request, location: &Location) -> Result<(), u64> {
    let Some(length) = r.upstream_head.content_length else { return Ok(()) };
    if !is_cut(r, *location.settings.core.max_ranges) {
        return Ok(());
    }
    let header = |known| r.head.headers.find(known).map(|field| r.text(field.value));
    let Some(range) = header(Known::Range) else { return Ok(()) };
    let raw = r.upstream_bytes.as_slice();
    let sent = |known| r.upstream_head.headers.find(known).map(|field| field.value.of(raw));
    let current = Validators {
        last_modified: sent(Known::LastModified).and_then(date::parse),
        etag: sent(Known::Etag),
    };
    if let Some(if_range) = header(Known::IfRange)
        && !static_files::is_range_allowed(c, r, if_range, &current)
    {
        return Ok(());
    }
    match range::select(range, length, 1) {
        Selection::Whole => Ok(()),
        Selection::NotSatisfiable => Err(length),
        Selection::Ranges(ranges) => {
            r.response.window = ranges.first().map(|range| Window::new(range.clone(), length));
            Ok(())
        }
    }
}

/// Headers that outlive a response that is given up for another location's (`X-Accel-Redirect`).
const KEPT: [Known; 5] = [
    Known::SetCookie,
    Known::ContentDisposition,
    Known::CacheControl,
    Known::Expires,
    Known::AcceptRanges,
];

/// Keeps those of the upstream's head for the response to come, rewritten as if it were passed on.
pub fn keep_for_redirect(c: &Connection, r: &mut Request, family: Family, location: &Location) {
    for at in 0..r.upstream_head.headers.len() {
        let Some(&field) = r.upstream_head.headers.as_slice().get(at) else { break };
        if field.known == Known::ContentType {
            let value = field.value.of(r.upstream_bytes.as_slice());
            // An empty one is none: then the type is the other response's.
            r.response.kept.content_type = (!value.is_empty()).then(|| value.into());
        } else if KEPT.contains(&field.known) {
            let rewritten = rewritten(c, r, family, location, field);
            let raw = r.upstream_bytes.as_slice();
            let value = rewritten.as_deref().unwrap_or(field.value.of(raw));
            encode::header(field.name.of(raw), value, &mut r.response.kept.lines);
        }
    }
}

/// A 401 whose page is another's to give still says how to log in.
pub fn keep_for_page(r: &mut Request) {
    if r.upstream_head.code != 401 {
        return;
    }
    let raw = r.upstream_bytes.as_slice();
    for field in r.upstream_head.headers.find_all(Known::WwwAuthenticate) {
        encode::header(field.name.of(raw), field.value.of(raw), &mut r.response.kept.lines);
    }
}

/// A range that is not in the body: the page in its place goes with what else the upstream said.
pub fn keep_for_not_satisfiable(c: &Connection, r: &mut Request, settings: &Settings, length: u64) {
    let raw = r.upstream_bytes.as_slice();
    let lines = &mut r.response.kept.lines;
    for field in &r.upstream_head.headers {
        let name = field.name.of(raw);
        let is_of_the_body = matches!(
            field.known,
            Known::ContentType
                | Known::ContentLength
                | Known::Connection
                | Known::KeepAlive
                | Known::TransferEncoding
                | Known::AcceptRanges
        );
        if !is_of_the_body && !contains(&settings.hidden, name) {
            encode::header(name, field.value.of(raw), lines);
        }
    }
    static_files::settle_not_satisfiable(c, r, length);
}

/// Whether `early_hints` lets a 103 through to this client.
pub fn wants_early_hints(c: &Connection, r: &Request, location: &Location) -> bool {
    let conditions = &location.settings.core.early_hints;
    r.version() >= Version::Http11
        && conditions.iter().any(|condition| value::is_true(&value::expanded(condition, c, r)))
}

/// Sends on the 103 that has just been read.
pub async fn send_early_hints(
    c: &Connection,
    r: &mut Request,
    family: Family,
    location: &Location,
) -> Result<(), Close> {
    let hidden = &settings_of(family, location).hidden;
    let raw = r.upstream_bytes.as_slice();
    let mut hints = b"HTTP/1.1 103 Early Hints\r\n".to_vec();
    for field in &r.upstream_head.headers {
        let name = field.name.of(raw);
        let is_of_connection = matches!(
            field.known,
            Known::Connection | Known::KeepAlive | Known::TransferEncoding | Known::ContentLength
        );
        if !is_of_connection && !contains(hidden, name) {
            encode::header(name, field.value.of(raw), &mut hints);
        }
    }
    hints.extend_from_slice(b"\r\n");
    let limit = *location.settings.core.send_timeout;
    let (sent, result) = c.stream.send_all(&mut [IoSlice::new(&hints)], limit).await;
    count::add(&mut r.response.bytes_sent, sent);
    Ok(result?)
}

/// Fields that have no place behind a body (RFC 9110 section 6.5.1): whoever merges trailers into the
/// head would have a message with other framing, another target, another user, or another format.
const NO_TRAILERS: [&[u8]; 37] = [
    // Framing, and what is the connection's own.
    b"content-length",
    b"transfer-encoding",
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"upgrade",
    // Routing.
    b"host",
    b"location",
    b"max-forwards",
    // Cookies, which are rewritten in the head.
    b"set-cookie",
    b"set-cookie2",
    b"cookie",
    // Request modifiers and response controls.
    b"age",
    b"warning",
    b"cache-control",
    b"date",
    b"expect",
    b"expires",
    b"if-match",
    b"if-modified-since",
    b"if-none-match",
    b"if-range",
    b"if-unmodified-since",
    b"pragma",
    b"range",
    b"retry-after",
    b"vary",
    // Authentication.
    b"authentication-info",
    b"authorization",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"www-authenticate",
    // The content's format.
    b"content-encoding",
    b"content-range",
    b"content-type",
];

/// The upstream's trailers that the client gets, in front of those of the configuration.
pub fn put_trailers(r: &mut Request, settings: &Settings, trailers: Box<Trailers>) {
    for field in trailers.headers() {
        let name = field.name.of(trailers.bytes());
        let has_no_place = NO_TRAILERS.iter().any(|other| other.eq_ignore_ascii_case(name));
        if r.response.has_trailers && !has_no_place && !contains(&settings.hidden, name) {
            let value = field.value.of(trailers.bytes());
            encode::header(name, value, &mut r.response.trailers);
        }
    }
    r.upstream_trailers = Some(trailers);
}
