//! The packet of uwsgi without its body: header and block of variables (uwsgi, section 3).

mod block;
mod headers;

use std::fmt;

use self::headers::Left;
pub use self::headers::fuzz_client_headers;
use super::{BodyForm, Message, put_client_upgrade};
use crate::error_log::Level;
use crate::http::body;
use crate::http::connection::Connection;
use crate::http::location::Location;
use crate::http::modules::uwsgi::{self, About, Piece, UwsgiKeepalive, VarsLimit};
use crate::http::request::Request;
use crate::http::tunnel::handshake::{self, Asked};
use crate::http::value;
use crate::http1::framing::BodyLength;
use crate::http1::header::Known;
use crate::uwsgi::{self as packet, BlockSize};

/// A uwsgi packet without its body. `streams` tells that the body has not been read yet.
pub fn uwsgi(
    c: &Connection,
    r: &Request,
    location: &Location,
    streams: bool,
    message: &mut Message,
) -> Result<BodyForm, Refused> {
    let settings = &location.settings.uwsgi;
    message.is_head = r.is_head();
    message.is_packet = true;
    put_upgrade(c, r, settings, &mut message.upgrade);
    let allowed = &location.settings.websocket.upgrade_allow;
    message.asked = handshake::asked(&message.upgrade, allowed);
    let is_refused = message.asked == Asked::Refused;
    let was_chunked = r.head.body == BodyLength::Chunked;
    let in_chunks = was_chunked && streams;
    let is_given_up = body::is_given_up(r);

    // The header is written last, when the length is known.
    message.bytes.extend_from_slice(&[0; packet::HEADER_LENGTH]);
    for piece in &settings.plan.pieces {
        match piece {
            Piece::Constant(pairs) => message.bytes.extend_from_slice(pairs),
            Piece::Dynamic { about: About::Upgrade, .. } if is_refused => {}
            Piece::Dynamic { about: About::Length, .. } if in_chunks => {}
            // Nothing of it will come, whatever the client said.
            Piece::Dynamic { about: About::Length, encoded_key, if_not_empty, .. }
                if is_given_up =>
            {
                message.put_made(encoded_key, *if_not_empty, |_| {});
            }
            Piece::Dynamic { encoded_key, value, if_not_empty, .. } => {
                message.put_made(encoded_key, *if_not_empty, |out| value::expand(value, c, r, out));
            }
        }
    }
    if settings.plan.default_host {
        message.put_made(DEFAULT_HOST, false, |out| put_host(r, out));
    }
    let passes_headers = *settings.exchange.pass_request_headers;
    if passes_headers {
        let left = Left {
            suppressed: &settings.plan.suppressed,
            coding: !in_chunks,
            upgrade: is_refused,
            connection: *settings.keepalive != UwsgiKeepalive::Off
                && !r.head.headers.contains(Known::Upgrade),
        };
        headers::put(r.buffer.as_slice(), r.head.headers.as_slice(), &left, message);
    } else if in_chunks && !settings.plan.suppressed.contains(TRANSFER_ENCODING) {
        message.put_made(CODING, false, |out| out.extend_from_slice(b"chunked"));
    }
    message.bytes.extend_from_slice(settings.string.as_bytes());

    check_limit(r, settings, message)?;
    let Ok(length) = packet::block_length(message.block_length()) else {
        return Err(too_big(r, message));
    };
    let header = packet::header(*settings.modifier1, length, *settings.modifier2);
    #[expect(clippy::indexing_slicing, reason = "they begin with its place")]
    let place = &mut message.bytes[..packet::HEADER_LENGTH];
    place.copy_from_slice(&header);

    Ok(match *settings.exchange.pass_request_body && body::is_announced(r) {
        true if in_chunks => BodyForm::Chunked,
        true => BodyForm::Plain,
        false => BodyForm::None,
    })
}

const DEFAULT_HOST: &[u8] = b"\x09\x00HTTP_HOST";
const TRANSFER_ENCODING: &[u8] = b"TRANSFER_ENCODING";
const CODING: &[u8] = b"\x16\x00HTTP_TRANSFER_ENCODING";

/// The value of `HTTP_UPGRADE`: that of its `uwsgi_param`, or the client's.
fn put_upgrade(c: &Connection, r: &Request, settings: &uwsgi::Settings, out: &mut Vec<u8>) {
    if let Some(value) = &settings.plan.upgrade {
        value::expand(value, c, r, out);
    } else if r.head.headers.contains(Known::Upgrade) && *settings.exchange.pass_request_headers {
        put_client_upgrade(r, out);
    }
}

/// `$host`, and the port if the request named one.
fn put_host(r: &Request, out: &mut Vec<u8>) {
    if r.host.is_empty() {
        out.extend_from_slice(r.generation.http().server(r.server).name.as_bytes());
    } else {
        out.extend_from_slice(&r.host);
    }
    if let Some(port) = &r.host_port
        && !port.is_empty()
    {
        out.push(b':');
        out.extend_from_slice(port);
    }
}

/// Why there is no packet to send.
#[derive(Debug)]
pub struct Refused {
    pub status: u16,
    pub level: Level,
    text: String,
    /// For the end of the log line.
    pub hint: Option<Hint>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// `uwsgi_vars_limit`. Variables are counted when there can be too many of them.
fn check_limit(r: &Request, settings: &uwsgi::Settings, message: &Message) -> Result<(), Refused> {
    let Some(VarsLimit { size, count }) = *settings.vars_limit else { return Ok(()) };
    let variables_max = settings.plan.variables_max.saturating_add(r.head.headers.len());
    let is_too_big = size > 0 && message.block_length() > size;
    if !is_too_big && (count == 0 || variables_max <= count) {
        return Ok(());
    }
    let found = message.block_size(r.buffer.as_slice());
    if !is_too_big && found.variables <= count {
        return Ok(());
    }
    let text = format!("{found}: more than \"uwsgi_vars_limit {size} {count}\" lets pass");
    Err(Refused { status: 431, level: Level::Error, text, hint: None })
}

/// More than a packet can carry.
fn too_big(r: &Request, message: &Message) -> Refused {
    let text = format!("uwsgi request is too big: {}", message.block_length());
    let hint = message.hint(r.buffer.as_slice());
    Refused { status: 500, level: Level::Alert, text, hint }
}

/// What may explain a server that hangs up without an answer (uwsgi, section 9.5).
#[derive(Debug)]
pub struct Hint(BlockSize);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, ", {}: check the server's buffer-size", self.0)
    }
}
