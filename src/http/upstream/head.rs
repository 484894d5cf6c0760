//! The head of the upstream's answer, translated for the client (proxy, sections 4 and 6).

use super::exchange::Family;
use super::protocol::contains;
use crate::http::connection::Connection;
use crate::http::location::Location;
use crate::http::modules::proxy::Redirect;
use crate::http::request::Request;
use crate::http::response::{self, Head, Length};
use crate::http::value;
use crate::http1::encode;
use crate::http1::framing::BodyLength;
use crate::http1::header::{Field, Known};

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
        r.keepalive = false;
        return;
    }
    let settings = match family {
        Family::Proxy => &location.settings.proxy.exchange,
        Family::Uwsgi => &location.settings.uwsgi.exchange,
    };
    // Both are put back below: the head is written beside them.
    let bytes = std::mem::take(&mut r.upstream_bytes);
    let upstream = std::mem::take(&mut r.upstream_head);
    let raw = bytes.as_slice();
    let has = |known| upstream.headers.find(known).is_some();
    let hides = |name: &[u8]| contains(&settings.hidden, name);

    let content_type = upstream.headers.find(Known::ContentType);
    let head = Head {
        status: upstream.code,
        status_text: (!upstream.status.is_empty()).then(|| upstream.status.of(raw)),
        content_type: content_type
            .filter(|_| !hides(b"content-type"))
            .map(|field| field.value.of(raw)),
        length: match (length, upstream.content_length) {
            _ if upstream.code == 101 => Length::None,
            // `proxy_method HEAD`: of what is announced nothing will come.
            (BodyLength::None, Some(_)) if r.message.is_head() && !r.is_head() => Length::Known(0),
            (BodyLength::Length(n), _) | (BodyLength::None, Some(n)) => Length::Known(n),
            (BodyLength::None, None) => Length::None,
            (BodyLength::Chunked | BodyLength::UntilClose, _) => Length::Unknown,
        },
        last_modified: None,
        location: None,
        server: hides(b"server") || (family == Family::Uwsgi && !has(Known::Server)),
        date: hides(b"date") || (family == Family::Uwsgi && !has(Known::Date)),
        upgrade: upstream.code == 101,
    };
    response::begin(c, r, &head);
    for field in &upstream.headers {
        let skipped = matches!(
            field.known,
            Known::ContentType
                | Known::ContentLength
                | Known::Connection
                | Known::KeepAlive
                | Known::TransferEncoding
        );
        let name = field.name.of(raw);
        if skipped || hides(name) {
            continue;
        }
        let rewritten = matches!(field.known, Known::Location | Known::Refresh)
            && family == Family::Proxy
            && put_redirect(c, r, location, *field, raw);
        if !rewritten {
            encode::header(name, field.value.of(raw), &mut r.response.head);
        }
    }
    response::finish(c, r);
    r.upstream_head = upstream;
    r.upstream_bytes = bytes;
}

/// `proxy_redirect`: true when it applied and the line has been written.
fn put_redirect(
    c: &Connection,
    r: &mut Request,
    location: &Location,
    field: Field,
    raw: &[u8],
) -> bool {
    let proxy = &location.settings.proxy;
    let value = field.value.of(raw);
    // Of Refresh, what follows `url=`.
    let start = match field.known {
        Known::Refresh => {
            let url = value.windows(4).position(|part| part.eq_ignore_ascii_case(b"url="));
            match url {
                Some(at) => at + 4,
                None => return false,
            }
        }
        _ => 0,
    };
    let url = &value[start..];
    let replaced = match &*proxy.redirect {
        Redirect::Off => None,
        Redirect::Default => proxy.pass.get().and_then(|pass| {
            let rest = url.strip_prefix(pass.url.as_bytes())?;
            let (rest, to) = match &pass.uri {
                Some(uri) => (rest.strip_prefix(uri.as_bytes())?, location.name.as_bytes()),
                None => (rest.strip_prefix(b"/")?, b"/".as_slice()),
            };
            Some([to, rest].concat())
        }),
        Redirect::Pairs(pairs) => pairs.iter().find_map(|(from, to)| {
            let from = value::expanded(from, c, r);
            let rest = url.strip_prefix(from.as_slice())?;
            let mut replaced = value::expanded(to, c, r);
            replaced.extend_from_slice(rest);
            Some(replaced)
        }),
    };
    let Some(replaced) = replaced else { return false };
    let mut out = std::mem::take(&mut r.response.head);
    out.extend_from_slice(field.name.of(raw));
    out.extend_from_slice(b": ");
    out.extend_from_slice(&value[..start]);
    if field.known == Known::Location {
        response::absolute_location(c, r, &replaced, &mut out);
    } else {
        out.extend_from_slice(&replaced);
    }
    out.extend_from_slice(b"\r\n");
    r.response.head = out;
    true
}
