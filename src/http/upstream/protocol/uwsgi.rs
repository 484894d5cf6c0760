//! The packet of uwsgi without its body: header and block of variables (uwsgi, section 3).

use smallvec::SmallVec;

use super::{BY_REFERENCE, BodyForm, Message, put_client_upgrade};
use crate::http::body;
use crate::http::connection::Connection;
use crate::http::location::Location;
use crate::http::modules::uwsgi::{self, Piece};
use crate::http::request::Request;
use crate::http::tunnel::handshake::{self, Asked, HTTP2_SETTINGS};
use crate::http::value;
use crate::http1::framing::BodyLength;
use crate::http1::header::{Field, Known};
use crate::uwsgi as packet;

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
    fn names_that_become_one_variable() {
        assert!(same_variable(b"X-Name", b"x_name"));
        assert!(!same_variable(b"X-Name", b"X-Nam"));
    }
}
