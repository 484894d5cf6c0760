//! Reads the head of a request off its connection, up to where its server and its URI are known.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use smallvec::SmallVec;

use super::action::Action;
use super::close::Close;
use super::connection::Connection;
use super::request::Request;
use super::variable::GaveUp;
use crate::clock;
use crate::error_log::Level;
use crate::http1::header::Known;
use crate::http1::host::parse_host;
use crate::http1::refusal::{Quoted, Refusal};
use crate::http1::request::{Limits, Rules};
use crate::http1::{Progress, request, uri};
use crate::io::Buffer;
use crate::io::select::yield_now;
use crate::io::stream::Failure;
use crate::io::timer::{self, Wait};
use crate::shard::{ConnectionGuard, Generation, Stage};

/// How reading a head can end other than with a head.
pub enum NoHead {
    Refused(Refusal),
    Close(Close),
}

impl From<Close> for NoHead {
    fn from(close: Close) -> Self {
        NoHead::Close(close)
    }
}

/// A head while it is read: what that goes by, and what is known of it.
struct Reading {
    rules: Rules,
    header_timeout: Duration,
    has_uri: bool,
    has_server: bool,
}

impl Reading {
    /// Before anything is known: by the settings of the address's default server.
    fn of(c: &Connection, r: &Request) -> Self {
        Reading {
            rules: limits(c, r).into(),
            header_timeout: *c.settings(r).core.client_header_timeout,
            has_uri: false,
            has_server: false,
        }
    }

    /// The size of the next buffer.
    fn buffer_size(&self, buffer: &Buffer) -> usize {
        match &self.rules {
            Rules { limits, .. } if buffer.capacity() == 0 => limits.first,
            Rules { behind_host: Some(limits), .. } | Rules { limits, .. } => limits.size,
        }
    }
}

fn limits(c: &Connection, r: &Request) -> Limits {
    let core = &c.settings(r).core;
    let buffers = *core.large_client_header_buffers;
    Limits {
        first: *core.client_header_buffer_size,
        number: buffers.number,
        size: buffers.size,
        count_max: *core.max_headers,
        ignore_invalid_headers: *core.ignore_invalid_headers,
        underscores_in_headers: *core.underscores_in_headers,
    }
}

/// Receives until a whole head is there, and its server and its normalised URI are found. Something
/// has come: the first bytes, the end, or an error.
pub async fn read_head(
    c: &Connection,
    guard: &ConnectionGuard,
    r: &mut Request,
    is_first: bool,
) -> Result<(), NoHead> {
    let mut reading = Reading::of(c, r);
    let mut deadline = None;
    if !r.buffer.is_empty() {
        c.action.set(if r.pipelined {
            Action::ReadingPipelinedRequestLine
        } else {
            Action::ReadingRequestLine
        });
        deadline = Some(begin_request(c, guard, r, reading.header_timeout));
    }

    loop {
        if !r.buffer.is_empty() {
            match read_lines(c, r, &mut reading) {
                Ok(Progress::Complete { len }) => {
                    r.head_len = len;
                    break;
                }
                Ok(Progress::Partial { in_headers }) => c.action.set(if in_headers {
                    Action::ReadingRequestHeaders
                } else {
                    Action::ReadingRequestLine
                }),
                Err(refusal) => {
                    log_dropped(c, r);
                    return Err(NoHead::Refused(refusal));
                }
            }
        }
        let limit = match deadline {
            Some(deadline) => Duration::from_millis(u64::saturating_sub(deadline, timer::now_ms())),
            None => reading.header_timeout,
        };
        if r.buffer.spare() == 0 {
            let filled = r.head.filled_with_empty_lines(reading.rules.limits.first);
            if filled > 0 {
                drop_empty_lines(c, r, filled, limit).await?;
            }
        }
        let mut buffer = std::mem::take(&mut r.buffer);
        if buffer.spare() == 0 {
            buffer.grow(buffer.len().saturating_add(reading.buffer_size(&buffer)));
        }
        let (received, buffer) = match c.stream.try_recv_into(&mut buffer) {
            // If the time is up before the rest is here, the logs tell of what is.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                c.stream.recv_keeping(buffer, limit, Wait::Busy).await
            }
            received => (received.map_err(Failure::Io), buffer),
        };
        r.buffer = buffer;
        match received {
            Ok(0) if deadline.is_none() && !is_first => {
                let text = format_args!("client {} closed keepalive connection", c.client.address);
                c.log(r, Level::Info, text);
                return Err(Close::ClientClosedKeepalive.into());
            }
            Ok(0) if deadline.is_none() => {
                c.log(r, Level::Info, format_args!("client closed connection"));
                return Err(Close::ClientClosedKeepalive.into());
            }
            Ok(0) => return Err(Close::ClientAborted.into()),
            Ok(_) => {
                if deadline.is_none() {
                    c.action.set(Action::ReadingRequestLine);
                    deadline = Some(begin_request(c, guard, r, reading.header_timeout));
                }
            }
            Err(failure) => return Err(Close::from(failure).into()),
        }
    }
    log_dropped(c, r);
    r.method = r.head.method_kind;
    c.action.set(Action::Processing);
    Ok(())
}

/// Empty lines ahead of a head may be any number. They are not kept, and a client that sends them faster
/// than they are read holds up neither the others nor its own timeout.
async fn drop_empty_lines(
    c: &Connection,
    r: &mut Request,
    len: usize,
    limit: Duration,
) -> Result<(), Close> {
    if limit.is_zero() {
        return Err(Close::ClientTimedOut);
    }
    r.buffer.consume(len);
    r.head.clear();
    let turn = c.stream.timer().within(limit, Wait::Busy, yield_now()).await;
    Ok(turn.map_err(Failure::from)?)
}

/// Reads on in what has been received of the head. Behind the request line the URI is known, and the
/// server as soon as the host is: whatever happens from then on happens in that server.
fn read_lines(c: &Connection, r: &mut Request, reading: &mut Reading) -> Result<Progress, Refusal> {
    let mut read = request::parse(r.buffer.as_slice(), &reading.rules, &mut r.head);
    if !reading.has_uri && r.head.is_line_read() {
        reading.has_uri = true;
        // What is wrong with the target comes before the lines that follow it: of those nothing is
        // known then.
        if let Err(refusal) = set_uri(r, *c.settings(r).core.merge_slashes) {
            r.head.forget_headers();
            return Err(refusal);
        }
    }
    if !reading.has_server && (r.head.names_host() || r.head.is_read()) {
        reading.has_server = true;
        let generation = Rc::clone(&r.generation);
        find_server(c, &generation, r);
        // The first buffer is there already.
        let chosen = Limits { first: reading.rules.limits.first, ..limits(c, r) };
        if r.head.names_host() && chosen != reading.rules.limits {
            reading.rules.behind_host = Some(chosen);
            r.head.clear();
            read = request::parse(r.buffer.as_slice(), &reading.rules, &mut r.head);
        }
    }
    read
}

fn log_dropped(c: &Connection, r: &Request) {
    if r.head.dropped.is_empty() {
        return;
    }
    c.action.set(Action::ReadingRequestHeaders);
    for line in &r.head.dropped {
        let text = Quoted::new(line.of(r.bytes()));
        c.log(r, Level::Info, format_args!("client sent invalid header line: \"{text}\""));
    }
}

/// The first byte of a request is here: it counts, and its head's time runs.
fn begin_request(
    c: &Connection,
    guard: &ConnectionGuard,
    r: &mut Request,
    header_timeout: Duration,
) -> u64 {
    guard.enter(Stage::Reading);
    r.started = clock::steady();
    c.requests.set(c.requests.get().saturating_add(1));
    c.shard.counters.requests.add(1);
    timer::now_ms().saturating_add(header_timeout.as_millis() as u64)
}

/// Takes host and port from the target or the Host header, and chooses the server by name.
fn find_server(c: &Connection, generation: &Generation, r: &mut Request) {
    let field = || r.head.headers.find(Known::Host).map(|field| field.value).zip(r.head.host);
    let target = r.head.target_host;
    let target = target.and_then(|span| Some((span, parse_host(span.of(r.buffer.as_slice()))?)));
    if let Some((span, host)) = target.or_else(field) {
        let value = span.of(r.buffer.as_slice());
        r.host.extend_from_slice(host.name.of(value));
        if host.has_upper_case {
            r.host.make_ascii_lowercase();
        }
        r.host_port = host.port.map(|port| SmallVec::from_slice(port.of(value)));
    }
    let address = generation.http().address(r.address);
    if address.names.is_empty() {
        return;
    }
    let found = address.names.find(&r.host).or_else(|| {
        if r.host.is_empty() {
            // No host is no text for a regex, even for one that matches everything.
            return None;
        }
        for (regex, server) in &address.names.regex {
            match regex.matches(&r.host, r.captures.get_mut()) {
                Ok(false) => {}
                Ok(true) => {
                    r.set_named_captures(regex);
                    return Some(*server);
                }
                Err(GaveUp) => {
                    // The default server answers, with an error.
                    r.give_up(c, regex);
                    return None;
                }
            }
        }
        None
    });
    if let Some(server) = found {
        r.server = server;
        r.location = generation.http().server(server).level;
    }
}

fn set_uri(r: &mut Request, merge_slashes: bool) -> Result<(), Refusal> {
    let raw = r.head.path.of(r.buffer.as_slice());
    let args = if raw.first() == Some(&b'/') {
        let normalised =
            uri::normalise(raw, merge_slashes, &mut r.uri).inspect_err(|_| r.uri.clear())?;
        if !normalised.changed {
            r.uri.clear();
            r.uri.extend_from_slice(normalised.path.of(raw));
        }
        r.escape = normalised.has_escapes;
        normalised.args
    } else {
        // An absolute-form target without a path.
        r.uri.push(b'/');
        uri::split(raw).1
    };
    if let Some(args) = args {
        let is_known_empty = args.start == args.end && (args.end as usize) < raw.len();
        r.args.extend_from_slice(args.of(raw));
        if is_known_empty {
            // Ahead of a fragment; those that end with the target are not known, as in nginx.
            r.set_args(Some(Vec::new()));
        }
    }
    Ok(())
}
