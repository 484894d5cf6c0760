//! The upstream behind `scripts/bench`: as fast as one epoll thread can be, and the same for every
//! proxy, so that what is measured is the proxy.
//!
//! ```text
//! bench-upstream [--until-eof] --http 127.0.0.1:0 --uwsgi 127.0.0.1:0 --uwsgi unix:/run/x.sock
//! ```
//!
//! Each listener prints one line once it accepts (`http 127.0.0.1:40123`), in the order given; port
//! 0 lets the kernel choose. With `--until-eof` the process ends when standard input closes, so it
//! cannot outlive whoever started it.
//!
//! HTTP/1.1: keepalive; `/bytes/N` answers N bytes of a repeated pattern, `/ws` is a WebSocket that
//! echoes, any other path answers 12 bytes.
//! uwsgi: one packet and its `CONTENT_LENGTH` bytes of body are read, the 12 bytes are answered with
//! a `Content-Length`, and the connection is closed, as uWSGI does.
//!
//! Everything is bounded: connections, the head held for one, the body asked for.

mod descriptors;
mod echo;

use std::cmp::Ordering;
use std::io::{self, IoSlice, Write as _};
use std::mem;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use slab::Slab;
use tungstenite::handshake::derive_accept_key;

use crate::echo::Echo;

/// Connections open at once; one more is closed as soon as it is accepted.
const CONNECTIONS_MAX: usize = 8192;
/// Bytes of an HTTP request head; a uwsgi packet cannot be longer than 65539 anyway.
const HEAD_MAX: usize = 65_536;
/// Bytes that `/bytes/N` may ask for.
const BODY_MAX: usize = 64 << 20;
/// Bytes read, and bytes of pattern written, in one go.
const CHUNK: usize = 65_536;
/// Bytes read in one go from a WebSocket: a frame of 64 KiB, header and all, in one piece.
const ECHO_CHUNK: usize = 2 * CHUNK;
/// Pending connections the kernel may queue (`net.core.somaxconn` caps it).
const BACKLOG: i32 = 4096;
/// Connections accepted from one listener before the others get their turn.
const ACCEPTS_PER_EVENT: usize = 64;

/// What every path but `/bytes/N` answers.
const HELLO: &[u8] = b"Hello ringx\n";
/// What `/bytes/N` repeats. A divisor of [`CHUNK`], so that chunks join without a seam.
const PATTERN: &[u8; 16] = b"0123456789abcdef";

fn main() -> ExitCode {
    match parse_arguments().and_then(|arguments| Upstream::new(arguments)?.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-upstream: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    listeners: Vec<(Protocol, String)>,
    until_eof: bool,
}

fn parse_arguments() -> io::Result<Arguments> {
    use lexopt::ValueExt;
    use lexopt::prelude::Long;

    let usage = |error: lexopt::Error| io::Error::new(io::ErrorKind::InvalidInput, error);
    let mut arguments = Arguments { listeners: Vec::new(), until_eof: false };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next().map_err(usage)? {
        let protocol = match argument {
            Long("http") => Protocol::Http,
            Long("uwsgi") => Protocol::Uwsgi,
            Long("until-eof") => {
                arguments.until_eof = true;
                continue;
            }
            other => return Err(usage(other.unexpected())),
        };
        let address = parser.value().and_then(ValueExt::string).map_err(usage)?;
        arguments.listeners.push((protocol, address));
    }
    if arguments.listeners.is_empty() {
        return Err(usage("give at least one --http ADDRESS or --uwsgi ADDRESS".into()));
    }
    Ok(arguments)
}

/// The event loop and all it owns.
///
/// Tokens: a listener's index, then standard input, then the connections by slab key.
struct Upstream {
    epoll: OwnedFd,
    listeners: Vec<(Protocol, OwnedFd)>,
    connections: Slab<Connection>,
    /// Where every read lands: a connection only copies what it cannot use yet.
    scratch: Vec<u8>,
    /// [`CHUNK`] bytes of [`PATTERN`].
    pattern: Vec<u8>,
}

impl Upstream {
    fn new(arguments: Arguments) -> io::Result<Self> {
        descriptors::raise_limit(CONNECTIONS_MAX + 64);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut listeners = Vec::new();
        for (token, (protocol, address)) in arguments.listeners.into_iter().enumerate() {
            let (socket, name) = listen(&address)?;
            epoll::add(&epoll, &socket, EventData::new_u64(token as u64), EventFlags::IN)?;
            println!("{} {name}", protocol.name());
            listeners.push((protocol, socket));
        }
        if arguments.until_eof {
            let token = EventData::new_u64(listeners.len() as u64);
            epoll::add(&epoll, io::stdin(), token, EventFlags::RDHUP)?;
        }
        Ok(Self {
            epoll,
            listeners,
            connections: Slab::with_capacity(256),
            scratch: vec![0; ECHO_CHUNK],
            pattern: PATTERN.repeat(CHUNK / PATTERN.len()),
        })
    }

    /// Runs until standard input closes or the listeners fail.
    fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(512);
        let stdin = self.listeners.len();
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let token = event.data.u64() as usize;
                match token.cmp(&stdin) {
                    Ordering::Less => self.accept(token)?,
                    Ordering::Equal => return Ok(()),
                    Ordering::Greater => self.wake(token - stdin - 1)?,
                }
            }
        }
    }

    fn accept(&mut self, listener: usize) -> io::Result<()> {
        let Some((protocol, socket)) = self.listeners.get(listener) else { return Ok(()) };
        for _ in 0..ACCEPTS_PER_EVENT {
            let socket = match rustix::net::accept_with(
                socket,
                SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            ) {
                Ok(socket) => socket,
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => break,
                Err(error) => return Err(error.into()),
            };
            if self.connections.len() == CONNECTIONS_MAX {
                continue;
            }
            // Fails on a unix socket, which has nothing to delay.
            let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
            let mut connection = Connection::new(*protocol, socket);
            // The request is usually there already: a uwsgi exchange then never enters epoll.
            let wants = connection.advance(&mut self.scratch, &self.pattern);
            let Some(flags) = wants.flags() else { continue };
            let entry = self.connections.vacant_entry();
            let token = EventData::new_u64((self.listeners.len() + 1 + entry.key()) as u64);
            epoll::add(&self.epoll, &connection.socket, token, flags)?;
            connection.registered = wants;
            entry.insert(connection);
        }
        Ok(())
    }

    /// Acts on a connection's event. One that was meant for an earlier holder of the same key does
    /// no harm: the sockets are non-blocking.
    fn wake(&mut self, key: usize) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(key) else { return Ok(()) };
        let wants = connection.advance(&mut self.scratch, &self.pattern);
        let Some(flags) = wants.flags() else {
            self.connections.remove(key);
            return Ok(());
        };
        if wants != connection.registered {
            let token = EventData::new_u64((self.listeners.len() + 1 + key) as u64);
            epoll::modify(&self.epoll, &connection.socket, token, flags)?;
            connection.registered = wants;
        }
        Ok(())
    }
}

/// Opens a non-blocking listening socket on `HOST:PORT` or `unix:PATH`, and says where it is.
fn listen(address: &str) -> io::Result<(OwnedFd, String)> {
    let (socket, name) = if let Some(path) = address.strip_prefix("unix:") {
        remove_stale_socket(Path::new(path))?;
        (OwnedFd::from(UnixListener::bind(path)?), address.to_owned())
    } else {
        let listener = TcpListener::bind(address)?;
        let name = listener.local_addr()?.to_string();
        (OwnedFd::from(listener), name)
    };
    rustix::io::ioctl_fionbio(&socket, true)?;
    // The standard library chose a backlog; a benchmark wants a deep one.
    rustix::net::listen(&socket, BACKLOG)?;
    Ok((socket, name))
}

fn remove_stale_socket(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.file_type().is_socket() => std::fs::remove_file(path),
        // Anything else there is not ours: let bind() name it.
        _ => Ok(()),
    }
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    Input,
    Output,
    /// Nothing: it is done and may be dropped.
    Close,
}

impl Wants {
    fn flags(self) -> Option<EventFlags> {
        match self {
            Self::Input => Some(EventFlags::IN),
            Self::Output => Some(EventFlags::OUT),
            Self::Close => None,
        }
    }
}

struct Connection {
    socket: OwnedFd,
    exchange: Exchange,
    /// Set once a 101 is sent: then there are no more requests.
    echo: Option<Echo>,
    /// Received and not yet used: part of a head, or requests behind one being answered.
    /// At most [`HEAD_MAX`] + [`CHUNK`] bytes.
    held: Vec<u8>,
    output: Output,
    /// What epoll was last told to wait for.
    registered: Wants,
}

impl Connection {
    fn new(protocol: Protocol, socket: OwnedFd) -> Self {
        Self {
            socket,
            exchange: Exchange { protocol, state: State::Head },
            echo: None,
            held: Vec::new(),
            output: Output::default(),
            registered: Wants::Input,
        }
    }

    /// Sends what is due, reads once, answers every request that is complete.
    fn advance(&mut self, scratch: &mut [u8], pattern: &[u8]) -> Wants {
        if let Some(echo) = &mut self.echo {
            return echo.advance(&self.socket, scratch);
        }
        // Output was pending: requests may be held behind it.
        if self.output.is_pending() {
            let wants = self.serve(&[], pattern);
            if wants != Wants::Input {
                return wants;
            }
        }
        let Some(scratch) = scratch.get_mut(..CHUNK) else { return Wants::Close };
        match rustix::io::read(&self.socket, &mut *scratch) {
            Ok(0) => Wants::Close,
            Ok(length) => self.serve(scratch.get(..length).unwrap_or_default(), pattern),
            Err(Errno::AGAIN | Errno::INTR) => Wants::Input,
            Err(_) => Wants::Close,
        }
    }

    fn serve(&mut self, received: &[u8], pattern: &[u8]) -> Wants {
        let mut held = mem::take(&mut self.held);
        // The usual request arrives whole and is read where it landed.
        let input = if held.is_empty() {
            received
        } else {
            held.extend_from_slice(received);
            held.as_slice()
        };
        let mut rest = input;
        let wants = loop {
            match self.output.flush(&self.socket, pattern) {
                Ok(()) => match self.output.then {
                    Then::Keep => {}
                    Then::Close => break Wants::Close,
                    Then::Echo => {
                        // What a hasty client sent without waiting for the 101.
                        let mut early = rest.to_vec();
                        return self.echo.insert(Echo::default()).answer(&self.socket, &mut early);
                    }
                },
                Err(Errno::AGAIN | Errno::INTR) => break Wants::Output,
                Err(_) => break Wants::Close,
            }
            let (used, answer) = self.exchange.take(rest);
            rest = rest.get(used..).unwrap_or_default();
            match answer {
                Some(answer) => self.output.start(answer),
                None => break Wants::Input,
            }
        };
        let left = rest.len();
        if held.is_empty() {
            held.extend_from_slice(received.get(received.len() - left..).unwrap_or_default());
        } else {
            held.drain(..held.len() - left);
        }
        self.held = held;
        wants
    }
}

/// A response on its way: the rest of its head, then the rest of its body.
#[derive(Default)]
struct Output {
    head: Vec<u8>,
    /// 0 <= `head_sent` <= `head.len()`.
    head_sent: usize,
    body: Body,
    /// 0 <= `body_sent` <= `body.len()`.
    body_sent: usize,
    then: Then,
}

impl Output {
    fn start(&mut self, answer: Answer) {
        self.head.clear();
        self.head_sent = 0;
        self.body = answer.body;
        self.body_sent = 0;
        self.then = answer.then;
        let connection = match answer.then {
            Then::Keep => "keep-alive",
            Then::Close => "close",
            Then::Echo => "upgrade",
        };
        // Writing to memory does not fail.
        let _ = write!(self.head, "HTTP/1.1 {}\r\n", answer.status.line());
        let _ = match answer.status {
            Status::SwitchingProtocols { accept } => write!(
                self.head,
                "Upgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n",
                accept.escape_ascii(),
            ),
            Status::Ok | Status::BadRequest => write!(
                self.head,
                "Content-Type: text/plain\r\nContent-Length: {}\r\n",
                answer.body.len(),
            ),
        };
        let _ = write!(self.head, "Connection: {connection}\r\n\r\n");
    }

    fn is_pending(&self) -> bool {
        self.head_sent < self.head.len() || self.body_sent < self.body.len()
    }

    /// Sends until nothing is left or the socket refuses; the usual response is one `writev`.
    fn flush(&mut self, socket: &OwnedFd, pattern: &[u8]) -> Result<(), Errno> {
        while self.is_pending() {
            let head = self.head.get(self.head_sent..).unwrap_or_default();
            let body = self.body.slice(self.body_sent, pattern);
            let sent = rustix::io::writev(socket, &[IoSlice::new(head), IoSlice::new(body)])?;
            let of_head = sent.min(head.len());
            self.head_sent += of_head;
            self.body_sent += sent - of_head;
        }
        Ok(())
    }
}

/// What follows a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Then {
    #[default]
    Keep,
    Close,
    /// WebSocket frames.
    Echo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Hello,
    /// So many bytes of [`PATTERN`], repeated.
    Pattern(usize),
}

impl Default for Body {
    fn default() -> Self {
        Self::Pattern(0)
    }
}

impl Body {
    fn len(self) -> usize {
        match self {
            Self::Hello => HELLO.len(),
            Self::Pattern(length) => length,
        }
    }

    /// The next bytes to send once `sent` are gone; empty at the end.
    fn slice(self, sent: usize, pattern: &[u8]) -> &[u8] {
        match self {
            Self::Hello => HELLO.get(sent..).unwrap_or_default(),
            Self::Pattern(length) => {
                let chunk = pattern.get(sent % CHUNK..).unwrap_or_default();
                chunk.get(..length.saturating_sub(sent)).unwrap_or(chunk)
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    SwitchingProtocols {
        /// `Sec-WebSocket-Accept` (RFC 6455 section 4.2.2): base64 of a SHA-1.
        accept: [u8; 28],
    },
    Ok,
    BadRequest,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Self::SwitchingProtocols { .. } => "101 Switching Protocols",
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
        }
    }
}

/// What a request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    status: Status,
    body: Body,
    then: Then,
}

impl Answer {
    const REFUSAL: Self =
        Self { status: Status::BadRequest, body: Body::Pattern(0), then: Then::Close };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http,
    Uwsgi,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Uwsgi => "uwsgi",
        }
    }

    fn parse(self, input: &[u8]) -> Head {
        match self {
            Self::Http => parse_http(input),
            Self::Uwsgi => parse_uwsgi(input),
        }
    }
}

/// One connection's requests, as values: bytes in, answers out.
struct Exchange {
    protocol: Protocol,
    state: State,
}

enum State {
    /// Before the end of a request's head.
    Head,
    /// The head is read; `left` bytes of the body are to come before `answer` is due.
    Body { left: u64, answer: Answer },
}

impl Exchange {
    /// Uses bytes of `input`, at most until one request is complete. Returns how many were used,
    /// and the answer then due; without one, all that can be used is, and more input is needed.
    fn take(&mut self, input: &[u8]) -> (usize, Option<Answer>) {
        let mut used = 0;
        if matches!(self.state, State::Head) {
            match self.protocol.parse(input) {
                Head::Partial if input.len() < HEAD_MAX => return (0, None),
                Head::Partial | Head::Malformed => return (input.len(), Some(Answer::REFUSAL)),
                Head::Complete { length, body_length, answer } => {
                    used = length;
                    self.state = State::Body { left: body_length, answer };
                }
            }
        }
        let State::Body { left, answer } = &mut self.state else { return (used, None) };
        let skipped = (*left).min((input.len() - used) as u64);
        *left -= skipped;
        used += skipped as usize;
        if *left > 0 {
            return (used, None);
        }
        let answer = *answer;
        self.state = State::Head;
        (used, Some(answer))
    }
}

/// A request's head, as far as this upstream cares.
#[derive(Debug, PartialEq, Eq)]
enum Head {
    Partial,
    Malformed,
    Complete {
        /// 0 < `length` <= the input's length.
        length: usize,
        body_length: u64,
        answer: Answer,
    },
}

/// HTTP/1.x (RFC 9112), enough for what proxies send: a chunked request body is refused.
fn parse_http(input: &[u8]) -> Head {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(input) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Head::Partial,
        Err(_) => return Head::Malformed,
    };
    let mut body_length = 0;
    // HTTP/1.0 may keep a connection too, but no proxy here needs that.
    let mut then = if request.version == Some(1) { Then::Keep } else { Then::Close };
    let mut upgrade = Upgrade::default();
    for header in request.headers.iter() {
        upgrade.note(header);
        if header.name.eq_ignore_ascii_case("content-length") {
            let Some(value) = parse_decimal(header.value) else { return Head::Malformed };
            body_length = value;
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Head::Malformed;
        } else if header.name.eq_ignore_ascii_case("connection")
            && header.value.eq_ignore_ascii_case(b"close")
        {
            then = Then::Close;
        }
    }
    let target = request.path.unwrap_or_default();
    let answer = if path_of(target) == "/ws" {
        let accept = upgrade.accept().filter(|_| request.method == Some("GET"));
        let Some(accept) = accept else { return Head::Malformed };
        let status = Status::SwitchingProtocols { accept };
        Answer { status, body: Body::default(), then: Then::Echo }
    } else {
        let Some(body) = body_of(target) else { return Head::Malformed };
        Answer { status: Status::Ok, body, then }
    };
    Head::Complete { length, body_length, answer }
}

/// What of a request makes it the start of a WebSocket (RFC 6455 section 4.2.1).
#[derive(Default)]
struct Upgrade<'a> {
    websocket: bool,
    connection: bool,
    version: bool,
    key: Option<&'a [u8]>,
}

impl<'a> Upgrade<'a> {
    fn note(&mut self, header: &httparse::Header<'a>) {
        let has = |token: &str| {
            let mut tokens = header.value.split(|byte| *byte == b',');
            tokens.any(|one| one.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
        };
        let is = |name| header.name.eq_ignore_ascii_case(name);
        if is("upgrade") {
            self.websocket |= has("websocket");
        } else if is("connection") {
            self.connection |= has("upgrade");
        } else if is("sec-websocket-version") {
            self.version |= has("13");
        } else if is("sec-websocket-key") {
            self.key = Some(header.value);
        }
    }

    /// `None`: it is no such request.
    fn accept(&self) -> Option<[u8; 28]> {
        // Base64 of 16 bytes.
        let key = self.key.filter(|key| key.len() == 24)?;
        let complete = self.websocket && self.connection && self.version;
        if complete { derive_accept_key(key).into_bytes().try_into().ok() } else { None }
    }
}

fn path_of(target: &str) -> &str {
    target.split('?').next().unwrap_or_default()
}

/// `/bytes/N` asks for N bytes, anything else for [`HELLO`]; `None` when N is no number or too big.
fn body_of(target: &str) -> Option<Body> {
    let Some(number) = path_of(target).strip_prefix("/bytes/") else { return Some(Body::Hello) };
    let length = usize::try_from(parse_decimal(number.as_bytes())?).ok()?;
    (length <= BODY_MAX).then_some(Body::Pattern(length))
}

/// A uwsgi packet: modifier1, the size of the variables (16 bits, little-endian), modifier2, then
/// per variable its name and its value, each after its own 16-bit size.
fn parse_uwsgi(input: &[u8]) -> Head {
    let Some((&[modifier1, low, high, _], rest)) = input.split_first_chunk::<4>() else {
        return Head::Partial;
    };
    if modifier1 != 0 {
        return Head::Malformed;
    }
    let size = usize::from(u16::from_le_bytes([low, high]));
    let Some(mut variables) = rest.get(..size) else { return Head::Partial };
    let mut body_length = 0;
    while !variables.is_empty() {
        let (Some(name), Some(value)) = (take_sized(&mut variables), take_sized(&mut variables))
        else {
            return Head::Malformed;
        };
        // An empty value is how "no body" is said.
        if name == b"CONTENT_LENGTH" && !value.is_empty() {
            let Some(value) = parse_decimal(value) else { return Head::Malformed };
            body_length = value;
        }
    }
    let answer = Answer { status: Status::Ok, body: Body::Hello, then: Then::Close };
    Head::Complete { length: 4 + size, body_length, answer }
}

/// Takes a 16-bit size and as many bytes off the front of `input`.
fn take_sized<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (size, rest) = input.split_first_chunk::<2>()?;
    let (value, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*size)))?;
    *input = rest;
    Some(value)
}

/// Digits only, as `Content-Length` is defined (RFC 9110 section 8.6); no sign, no overflow.
fn parse_decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Any bytes, to either protocol, cut anywhere: what is used is never more than what came, and a
/// cut changes no answer.
#[cfg(test)]
fn fuzz_exchange(data: &[u8]) {
    for protocol in [Protocol::Http, Protocol::Uwsgi] {
        let whole = answers(protocol, &[data]);
        let (first, second) = data.split_at(data.len() / 2);
        assert_eq!(whole, answers(protocol, &[first, second]), "{protocol:?}");
    }
}

/// The answers to `pieces` received one after the other, up to the first that no request follows.
#[cfg(test)]
fn answers(protocol: Protocol, pieces: &[&[u8]]) -> Vec<Answer> {
    let mut exchange = Exchange { protocol, state: State::Head };
    let mut held = Vec::new();
    let mut answers = Vec::new();
    for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            let (used, answer) = exchange.take(&held);
            assert!(used <= held.len());
            held.drain(..used);
            let Some(answer) = answer else { break };
            answers.push(answer);
            if answer.then != Then::Keep {
                return answers;
            }
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;

    fn ok(body: Body, then: Then) -> Answer {
        Answer { status: Status::Ok, body, then }
    }

    fn packet(variables: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        for text in variables.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&(text.len() as u16).to_le_bytes());
            block.extend_from_slice(text.as_bytes());
        }
        let size = (block.len() as u16).to_le_bytes();
        [&[0, size[0], size[1], 0], block.as_slice()].concat()
    }

    #[test]
    fn http_requests_follow_each_other() {
        let input = b"GET /a HTTP/1.1\r\n\r\n\
            POST /bytes/65536?x HTTP/1.1\r\ncontent-length: 4\r\n\r\nbody\
            GET / HTTP/1.1\r\nConnection: close\r\n\r\n";
        let expected = [
            ok(Body::Hello, Then::Keep),
            ok(Body::Pattern(65536), Then::Keep),
            ok(Body::Hello, Then::Close),
        ];
        assert_eq!(answers(Protocol::Http, &[input]), expected);
        let bytes: Vec<&[u8]> = input.chunks(1).collect();
        assert_eq!(answers(Protocol::Http, &bytes), expected);
    }

    #[test]
    fn http_refuses_what_it_cannot_frame() {
        for input in [
            "GET\r\n\r\n",
            "GET /bytes/x HTTP/1.1\r\n\r\n",
            "GET /bytes/99999999999999999999 HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ] {
            assert_eq!(
                answers(Protocol::Http, &[input.as_bytes()]),
                [Answer::REFUSAL],
                "{input:?}"
            );
        }
    }

    /// The example of RFC 6455 section 1.3, as nginx passes it on.
    const UPGRADE: &str = "GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

    #[test]
    fn a_websocket_is_opened_and_echoes() {
        let (ours, mut client) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut scratch = vec![0; CHUNK];
        let mut connection = Connection::new(Protocol::Http, OwnedFd::from(ours));
        // The first frame comes with the request, the second after the 101.
        client.write_all(UPGRADE.as_bytes()).unwrap();
        client.write_all(b"\x82\x83\0\0\0\0one").unwrap();
        assert_eq!(connection.advance(&mut scratch, &[]), Wants::Input);
        client.write_all(b"\x82\x83\x01\x01\x01\x01uvn").unwrap();
        assert_eq!(connection.advance(&mut scratch, &[]), Wants::Input);
        drop(connection);
        let mut response = Vec::new();
        client.read_to_end(&mut response).unwrap();
        let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nConnection: upgrade\r\n\r\n";
        let frames = b"\x82\x03one\x82\x03two".as_slice();
        let expected = [head.as_bytes(), frames].concat();
        assert_eq!(response, expected, "{}", response.escape_ascii());
    }

    #[test]
    fn a_websocket_that_lacks_something_is_refused() {
        for (what, instead) in [
            ("GET", "POST"),
            ("websocket", "h2c"),
            ("Connection: upgrade", "Connection: close"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="),
            ("Version: 13", "Version: 8"),
        ] {
            let request = UPGRADE.replacen(what, instead, 1);
            assert_ne!(request, UPGRADE);
            assert_eq!(
                answers(Protocol::Http, &[request.as_bytes()]),
                [Answer::REFUSAL],
                "{request:?}"
            );
        }
    }

    #[test]
    fn a_head_without_an_end_is_refused() {
        let endless = [b"GET /".as_slice(), &vec![b'a'; HEAD_MAX]].concat();
        assert_eq!(answers(Protocol::Http, &[&endless]), [Answer::REFUSAL]);
    }

    #[test]
    fn uwsgi_waits_for_the_body() {
        let head = packet(&[("REQUEST_METHOD", "POST"), ("CONTENT_LENGTH", "4")]);
        assert_eq!(answers(Protocol::Uwsgi, &[&head, b"bod"]), []);
        assert_eq!(
            answers(Protocol::Uwsgi, &[&head, b"bod", b"y"]),
            [ok(Body::Hello, Then::Close)]
        );
        let without = packet(&[("CONTENT_LENGTH", "")]);
        assert_eq!(answers(Protocol::Uwsgi, &[&without]), [ok(Body::Hello, Then::Close)]);
    }

    #[test]
    fn uwsgi_refuses_a_block_that_does_not_add_up() {
        assert_eq!(answers(Protocol::Uwsgi, &[&[0, 3, 0, 0, 9, 0, b'A']]), [Answer::REFUSAL]);
        assert_eq!(answers(Protocol::Uwsgi, &[&[1, 0, 0, 0]]), [Answer::REFUSAL]);
    }

    #[test]
    fn a_large_body_arrives_through_a_small_socket() {
        let (ours, mut client) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let pattern = PATTERN.repeat(CHUNK / PATTERN.len());
        let mut scratch = vec![0; CHUNK];
        let mut connection = Connection::new(Protocol::Http, OwnedFd::from(ours));
        let length = 3 * CHUNK + 5;
        write!(client, "GET /bytes/{length} HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        let reader = std::thread::spawn(move || {
            let mut response = Vec::new();
            client.read_to_end(&mut response).unwrap();
            response
        });
        while connection.advance(&mut scratch, &pattern) != Wants::Close {
            std::thread::yield_now();
        }
        drop(connection);
        let response = reader.join().unwrap();
        let body = response.len() - length;
        assert!(response.starts_with(b"HTTP/1.1 200 OK\r\n"));
        assert!(response[..body].ends_with(b"\r\n\r\n"));
        assert!(response[body..].iter().zip(PATTERN.iter().cycle()).all(|(a, b)| a == b));
    }

    proptest! {
        #[test]
        fn any_bytes(data in prop::collection::vec(any::<u8>(), 0..256)) {
            fuzz_exchange(&data);
        }

        #[test]
        fn nearly_http(data in "(GET|POST) /(bytes/[0-9]{0,3})? HTTP/1\\.[01]\r\n(Content-Length: [0-9]{1,2}\r\n)?\r\n[a-z]{0,40}") {
            fuzz_exchange(data.as_bytes());
        }

        #[test]
        fn nearly_uwsgi(size in 0_u16..40, block in prop::collection::vec(0_u8..8, 0..40)) {
            let [low, high] = size.to_le_bytes();
            fuzz_exchange(&[&[0, low, high, 0], block.as_slice()].concat());
        }
    }
}
