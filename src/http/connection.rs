//! A client's connection: reading heads, answering one request after the other, and the end.

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use super::action::Action;
use super::body::{self, BodyError};
use super::close::Close;
use super::fault;
use super::listener::Listener;
use super::modules::Settings;
use super::modules::core::{self, KeepaliveDisable, LingeringClose};
use super::phase;
use super::reading::{NoHead, read_head};
use super::request::{RefusedPart, Request};
use super::upstream::exchange::UnderWay;
use super::user_agent::Browser;
use crate::clock;
use crate::error_log::{Context, Level};
use crate::http1::header::Known;
use crate::http1::refusal::{Quoted, Refusal};
use crate::http1::request::{Method, Version};
use crate::io::runtime::contain;
use crate::io::select::{in_turn, yield_now};
use crate::io::stream::Failure;
use crate::io::timer::{self, Wait};
use crate::io::{Buffer, Pooled, Stream};
use crate::proxy_protocol::{self, Broken};
use crate::shard::{ConnectionGuard, Shard, Stage};

/// What outlives a request: the socket and who is at its other end.
pub struct Connection {
    pub shard: Rc<Shard>,
    pub stream: Stream,
    pub listener: Rc<Listener>,
    /// `$connection`: unique in the process.
    pub serial: u64,
    pub client: ClientAddress,
    pub accepted: Duration,
    /// Requests so far, with the one under way.
    pub requests: Cell<u64>,
    pub action: Cell<Action>,
    pub exchange: Cell<Option<UnderWay>>,
    local: OnceCell<Option<SocketAddr>>,
    /// What a balancer sent ahead (`listen … proxy_protocol`), if it names addresses.
    proxy_protocol: OnceCell<Box<proxy_protocol::Header>>,
}

/// The peer of a client's connection, or the client it speaks for.
#[derive(Debug, Default)]
pub struct ClientAddress {
    /// `127.0.0.1`, `::1`, `unix:`.
    pub address: String,
    pub ip: Option<IpAddr>,
    pub port: Option<u16>,
}

impl From<Option<SocketAddr>> for ClientAddress {
    fn from(peer: Option<SocketAddr>) -> Self {
        match peer {
            Some(peer) => ClientAddress {
                address: peer.ip().to_string(),
                ip: Some(peer.ip()),
                port: Some(peer.port()),
            },
            None => ClientAddress { address: "unix:".into(), ip: None, port: None },
        }
    }
}

/// Who the client is: the peer, unless a trusted proxy has named another one for this request.
pub fn client_address<'a>(c: &'a Connection, r: &'a Request) -> &'a ClientAddress {
    r.real_client().unwrap_or(&c.client)
}

impl Connection {
    pub fn new(
        shard: &Rc<Shard>,
        listener: &Rc<Listener>,
        stream: Stream,
        client: ClientAddress,
    ) -> Self {
        Connection {
            shard: Rc::clone(shard),
            listener: Rc::clone(listener),
            stream,
            serial: shard.counters.number_connection(),
            client,
            accepted: clock::steady(),
            requests: Cell::new(0),
            action: Cell::new(Action::WaitingForRequest),
            exchange: Cell::new(None),
            local: OnceCell::new(),
            proxy_protocol: OnceCell::new(),
        }
    }

    /// The settings in force: those of the location that the request has reached.
    pub fn settings<'r>(&self, r: &'r Request) -> &'r Settings {
        &r.generation.http().location(r.location).settings
    }

    /// The local end, asked of the kernel when it is first needed.
    pub fn local_address(&self) -> Option<SocketAddr> {
        *self.local.get_or_init(|| {
            let name = rustix::net::getsockname(self.stream.fd()).ok()?;
            SocketAddr::try_from(name).ok()
        })
    }

    /// What the PROXY protocol said of the connection.
    pub fn proxy_protocol(&self) -> Option<&proxy_protocol::Header> {
        self.proxy_protocol.get().map(|header| &**header)
    }

    /// A line in the error log, with everything nginx says about the connection and the request.
    #[cold]
    pub fn log(&self, r: &Request, level: Level, text: fmt::Arguments<'_>) {
        self.write_log(r, level, text, None, None);
    }

    /// The same after a failed system call.
    #[cold]
    pub fn log_errno(
        &self,
        r: &Request,
        level: Level,
        text: fmt::Arguments<'_>,
        error: &std::io::Error,
    ) {
        self.write_log(r, level, text, error.raw_os_error(), None);
    }

    /// The same, with or without an error, and with more at the end of the line.
    #[cold]
    pub fn log_explained(
        &self,
        r: &Request,
        level: Level,
        text: fmt::Arguments<'_>,
        error: Option<&std::io::Error>,
        note: Option<impl fmt::Display>,
    ) {
        let errno = error.and_then(std::io::Error::raw_os_error);
        match note {
            Some(note) => self.write_log(r, level, text, errno, Some(format_args!("{note}"))),
            None => self.write_log(r, level, text, errno, None),
        }
    }

    fn write_log(
        &self,
        r: &Request,
        level: Level,
        text: fmt::Arguments<'_>,
        errno: Option<i32>,
        note: Option<fmt::Arguments<'_>>,
    ) {
        let log = r.generation.log(r.location);
        if !log.enabled(level) {
            return;
        }
        if self.action.get() == Action::Keepalive {
            // There is no request to tell of, and nginx says no more either.
            return log.write(level, Some(self.serial), text, errno, &Context::default());
        }
        self.with_log_context(r, self.action.get(), |context| {
            let context = Context { note, ..*context };
            log.write(level, Some(self.serial), text, errno, &context);
        });
    }

    /// What nginx says about the connection and the request at the end of a line.
    pub fn with_log_context<T>(
        &self,
        r: &Request,
        action: Action,
        use_it: impl FnOnce(&Context<'_>) -> T,
    ) -> T {
        let upstream = self.exchange.get().and_then(|exchange| exchange.url(r));
        let mut line = r.text(r.head.line);
        if line.is_empty() && r.head_len == 0 && !r.started.is_zero() {
            // As far as it has come.
            let mut lines = r.bytes().split(|byte| matches!(byte, b'\r' | b'\n'));
            line = lines.next().unwrap_or_default();
        }
        let header = |known| r.head.headers.find(known).map(|field| r.text(field.value));
        use_it(&Context {
            action: action.phrase(),
            client: Some(&client_address(self, r).address),
            server: Some(if r.started.is_zero() {
                self.listener.name()
            } else {
                &r.generation.http().server(r.server).name
            }),
            request: (!line.is_empty()).then_some(line),
            upstream: upstream.as_deref(),
            host: header(Known::Host),
            referrer: header(Known::Referer),
            note: None,
        })
    }
}

/// Serves a connection to its end, or until it becomes a tunnel.
pub async fn serve(c: Connection, guard: ConnectionGuard) {
    // Out of reach of what may panic.
    let mut current = None;
    let answered = contain(pin!(answer_requests(&c, &guard, &mut current))).await;
    let close = match answered {
        Ok(Close::Tunnelled(opening)) => {
            drop(current);
            let Connection { shard, stream, .. } = c;
            return match stream.into_fd() {
                Ok(socket) => shard.tunnels.open(&shard, socket, guard, *opening),
                Err(e) => shard.log_main(Level::Crit, format_args!("a tunnel is lost: {e}")),
            };
        }
        other => other,
    };
    let mut r = current.unwrap_or_else(|| take_request(&c));
    let close = match close {
        Ok(close) => close,
        Err(text) => {
            // With a word on what it was doing: that is what can be done again.
            c.shard.counters.panics.add(1);
            if r.response.bytes_sent == 0 {
                r.response.status = 500;
            }
            c.log(&r, Level::Alert, format_args!("panic: {text}"));
            return Box::pin(end(&c, &mut r, Close::Panicked)).await;
        }
    };
    Box::pin(end(&c, &mut r, close)).await;
    let (generation, address) = c.listener.binding();
    r.reset(generation, address);
    r.buffer = Buffer::empty();
    c.shard.give_request(r);
}

fn take_request(c: &Connection) -> Box<Request> {
    let (generation, address) = c.listener.binding();
    c.shard.requests.take(generation, address)
}

/// Answers one request after the other; tells why it was the last. `current` is the one under way.
async fn answer_requests(
    c: &Connection,
    guard: &ConnectionGuard,
    current: &mut Option<Box<Request>>,
) -> Close {
    let mut keepalive = None;
    let (generation, address) = c.listener.binding();
    if generation.http().address(address).proxy_protocol {
        let r = current.insert(c.shard.requests.take(generation, address));
        if let Err(close) = Box::pin(read_proxy_protocol(c, r)).await {
            return close;
        }
    } else {
        drop(generation);
    }
    loop {
        let r = match current.take() {
            // The next one has begun to come already; the first may be behind a header of the PROXY
            // protocol.
            Some(mut r) if !r.buffer.is_empty() => {
                r.pipelined = keepalive.is_some();
                let r = current.insert(r);
                if r.pipelined {
                    // Who is always ahead is never waited for: the others get their turn all the same.
                    yield_now().await;
                }
                r
            }
            // An idle connection holds no request, and no configuration.
            last => {
                if let Some(last) = last {
                    c.shard.give_request(last);
                }
                let buffer = match wait_for_request(c, keepalive).await {
                    Ok(buffer) => buffer,
                    Err(close) => return close,
                };
                let r = current.insert(take_request(c));
                r.buffer = buffer;
                r
            }
        };
        let answered = match read_head(c, guard, r, keepalive.is_none()).await {
            Ok(()) => {
                guard.enter(Stage::Writing);
                // What a request needs while it is answered, an idle connection has no room for.
                Pooled::new(|| phase::answer(c, r)).await
            }
            Err(NoHead::Refused(refusal)) => Box::pin(refuse(c, r, &refusal)).await,
            Err(NoHead::Close(close)) => return close,
        };
        if let Err(close) = answered {
            return close;
        }
        if let Some(unsent) = r.response.unsent.take() {
            // A client that is slow to take it costs no more than that.
            if let Err(close) = Box::pin(unsent.send(c, r)).await {
                return close;
            }
        }
        let is_body_valid = body::discard_received(c, r).is_ok();
        if !r.keepalive || !is_body_valid || is_last(c, r) {
            return Close::Orderly;
        }
        if !r.body.is_done() {
            c.action.set(Action::ClosingRequest);
            match Box::pin(body::discard(c, r)).await {
                Ok(()) => {}
                Err(BodyError::Close(close)) => return close,
                Err(BodyError::Status(_)) => return Close::Orderly,
            }
        }
        log_request(c, r);
        keepalive = Some(Keepalive::after(c, r));
        let (generation, address) = c.listener.binding();
        r.reset(generation, address);
        c.exchange.set(None);
        guard.enter(Stage::Waiting);
    }
}

/// Whether the shard is to end by now, so that no further request would be waited for.
fn is_last(c: &Connection, r: &Request) -> bool {
    c.shard.is_quitting()
        && r.buffer.len() <= r.head_len
        && Keepalive::after(c, r).min_timeout.is_zero()
}

/// Waits for the first bytes of a request, with no more than a buffer for them: one operation of the
/// ring waits and receives. An empty one: whoever receives again is told the end.
async fn wait_for_request(c: &Connection, keepalive: Option<Keepalive>) -> Result<Buffer, Close> {
    let (limit, wait) = match keepalive {
        None => {
            c.action.set(Action::WaitingForRequest);
            (default_settings(c, |core| *core.client_header_timeout), Wait::Due)
        }
        Some(Keepalive { timeout, min_timeout }) => {
            c.action.set(Action::Keepalive);
            if !min_timeout.is_zero() {
                // A wait that is given up and gone on with is one that takes nothing.
                match c.stream.readable(min_timeout, Wait::Due).await {
                    Ok(()) => return Ok(Buffer::empty()),
                    // From now on it may be closed at any time.
                    Err(Failure::TimedOut) => {}
                    Err(failure) => return Err(Close::from(failure)),
                }
            }
            (timeout.saturating_sub(min_timeout), Wait::Idle)
        }
    };
    let buffer = Buffer::with_capacity(default_settings(c, |core| *core.client_header_buffer_size));
    match in_turn(pin!(c.stream.recv(buffer, limit, wait))).await {
        (Ok(_), buffer) => Ok(buffer),
        (Err(Failure::TimedOut), _) if keepalive.is_some() => Err(Close::KeepaliveTimedOut),
        (Err(failure), _) => Err(Close::from(failure)),
    }
}

/// A setting of the address's default server.
fn default_settings<T>(c: &Connection, get: impl FnOnce(&core::Settings) -> T) -> T {
    let (generation, address) = c.listener.binding();
    let http = generation.http();
    let level = http.server(http.address(address).default_server).level;
    get(&http.location(level).settings.core)
}

/// How long the next request is waited for: what the location of the last one says.
#[derive(Debug, Clone, Copy)]
struct Keepalive {
    timeout: Duration,
    /// Not even a shard that ends closes the connection before.
    min_timeout: Duration,
}

impl Keepalive {
    fn after(c: &Connection, r: &Request) -> Self {
        let core = &c.settings(r).core;
        let timeout = core.keepalive_timeout.idle;
        Keepalive { timeout, min_timeout: (*core.keepalive_min_timeout).min(timeout) }
    }
}

/// Receives the header that a balancer sends ahead. It has to be whole in what comes first; the
/// request may follow it at once.
async fn read_proxy_protocol(c: &Connection, r: &mut Request) -> Result<(), Close> {
    c.action.set(Action::ReadingProxyProtocol);
    let core = &c.settings(r).core;
    let (size, timeout) = (*core.client_header_buffer_size, *core.client_header_timeout);
    let (received, buffer) = c.stream.recv(Buffer::with_capacity(size), timeout, Wait::Due).await;
    r.buffer = buffer;
    if received? == 0 {
        c.log(r, Level::Info, format_args!("client closed connection"));
        return Err(Close::ClientClosedKeepalive);
    }
    match proxy_protocol::parse(r.bytes()) {
        Ok(proxy_protocol::Received { header, len }) => {
            if let Some(header) = header {
                // Nothing else sets it.
                let _ = c.proxy_protocol.set(Box::new(header));
            }
            r.buffer.consume(len);
            r.buffer.compact();
        }
        Err(broken) => {
            match broken {
                Broken::Line => {
                    let line = Quoted::new(Broken::line(r.bytes()));
                    c.log(r, Level::Error, format_args!("{broken}: \"{line}\""));
                }
                Broken::Version(_) | Broken::TooLarge => {
                    c.log(r, Level::Error, format_args!("{broken}"));
                }
                Broken::TooShort => {}
            }
            return Err(Close::Silently);
        }
    }
    let (generation, address) = c.listener.binding();
    if !Rc::ptr_eq(&generation, &r.generation) {
        r.reset(generation, address);
    }
    Ok(())
}

/// Answers a head that cannot be accepted, and closes.
async fn refuse(c: &Connection, r: &mut Request, refusal: &Refusal) -> Result<(), Close> {
    r.keepalive = false;
    // Without a version even HEAD gets the page: there is nothing else to send.
    let has_head = r.head.version > Version::Http09;
    r.method = if has_head { r.head.method_kind } else { Method::Get };
    let (part, action) = if *refusal == Refusal::InvalidTargetHost && !r.uri.is_empty() {
        (RefusedPart::TargetHost, Action::ReadingRequestLine)
    } else if refusal.is_of_request_line() {
        (RefusedPart::RequestLine, Action::ReadingRequestLine)
    } else {
        (RefusedPart::Headers, Action::ReadingRequestHeaders)
    };
    r.refused = Some(part);
    c.action.set(action);
    show_unread_line(r);
    c.log(r, Level::Info, format_args!("{refusal}"));
    let code = refusal.status();
    // What came with the refused head is neither its body nor a next request.
    r.head_len = r.buffer.len();
    r.head.expect_continue = false;
    body::abandon(r);
    phase::answer_status(c, r, code).await
}

/// The request line as far as it was read is what the logs show.
fn show_unread_line(r: &mut Request) {
    if r.head.line.is_empty() && r.head_len == 0 {
        let line = r.buffer.as_slice();
        let end = memchr::memchr2(b'\r', b'\n', line).unwrap_or(line.len());
        r.head.line = crate::http1::Span::new(0, end);
    }
}

/// The last things: the log line, a linger if the client may still be sending, the close.
async fn end(c: &Connection, r: &mut Request, close: Close) {
    if !r.started.is_zero()
        && matches!(close, Close::ClientTimedOut | Close::ClientAborted | Close::Io(_))
    {
        show_unread_line(r);
    }
    if let Some((level, text)) = close.line() {
        if c.action.get() != Action::Keepalive {
            c.log(r, level, format_args!("{text}"));
        }
    } else if let Close::Io(e) = &close {
        log_failure(c, r, e);
    }
    if !r.started.is_zero() && !r.logged {
        if r.response.status == 0 {
            r.response.status = match close {
                Close::ClientTimedOut | Close::BodyTimedOut => 408,
                Close::ClientAborted | Close::Io(_) if r.head_len > 0 => 499,
                Close::ClientAborted | Close::Io(_) => 400,
                _ => 0,
            };
        }
        let lingers = should_linger(c, r, &close);
        if r.response.status == 400 {
            // Whoever looks into the log for it should not have to wait for the client.
            log_request(c, r);
            c.shard.flush_logs();
        }
        if lingers {
            linger(c, r).await;
        }
        log_request(c, r);
    }
    // On disk before the client can see the end.
    c.shard.flush_logs();
    let is_for_reset = match close {
        // Of one that has sent nothing there is nothing to take back.
        Close::ClientTimedOut | Close::BodyTimedOut => !r.started.is_zero(),
        Close::Silently => r.response.status == 444,
        _ => false,
    };
    if is_for_reset && *c.settings(r).core.reset_timedout_connection {
        c.stream.reset();
    }
}

/// What has failed is told by nginx's name for it, as people look for that.
#[cold]
fn log_failure(c: &Connection, r: &Request, error: &std::io::Error) {
    let text = match c.action.get() {
        Action::Keepalive => {
            let text = format_args!("client {} closed keepalive connection", c.client.address);
            return c.log_errno(r, Level::Info, text, error);
        }
        Action::SendingResponse | Action::SendingToClient | Action::ProxyingUpgraded => {
            "writev() failed"
        }
        // Whatever else was going on: nothing that receives fails so.
        _ if error.kind() == std::io::ErrorKind::BrokenPipe => "writev() failed",
        _ => "recv() failed",
    };
    c.log_errno(r, Level::Info, format_args!("{text}"), error);
}

fn should_linger(c: &Connection, r: &Request, close: &Close) -> bool {
    if !matches!(close, Close::Orderly | Close::Truncated) {
        return false;
    }
    match *c.settings(r).core.lingering_close {
        LingeringClose::Off => false,
        LingeringClose::Always => true,
        LingeringClose::On => {
            // Where a refused request ends, nobody knows: more of it may be on its way.
            r.response.status == 400
                || r.head_len == 0
                || r.buffer.len() > r.head_len
                || r.body.is_abandoned
                || (body::is_announced(r) && !r.body.is_done())
                // The close would be a reset, which overtakes what of the answer is still on its way.
                || c.stream.has_unread_bytes().is_ok_and(|has| has)
        }
    }
}

/// Half-closes, then reads and throws away for a while, so that the client gets the response and
/// not a reset (RFC 9112 section 9.6).
async fn linger(c: &Connection, r: &mut Request) {
    c.action.set(Action::ClosingRequest);
    c.stream.shutdown_write();
    let core = &c.settings(r).core;
    let (total, each) = (*core.lingering_time, *core.lingering_timeout);
    let until = timer::now_ms().saturating_add(total.as_millis() as u64);
    let mut buffer = Buffer::with_capacity(4 << 10);
    loop {
        let left = Duration::from_millis(until.saturating_sub(timer::now_ms()));
        if left.is_zero() {
            return;
        }
        buffer.clear();
        let (received, returned) = c.stream.recv(buffer, left.min(each), Wait::Due).await;
        buffer = returned;
        if !matches!(received, Ok(n) if n > 0) {
            return;
        }
    }
}

/// The access log's lines for a finished request.
pub fn log_request(c: &Connection, r: &mut Request) {
    if r.logged {
        return;
    }
    r.logged = true;
    c.action.set(Action::LoggingRequest);
    fault::at(r, "before the log line");
    super::modules::access_log::write(c, r);
}

/// Whether the connection may go on after this request, before the response is known.
pub fn may_keep_alive(c: &Connection, r: &Request) -> bool {
    let core = &c.settings(r).core;
    let disable = *core.keepalive_disable;
    r.version() > Version::Http09
        && r.wants_keepalive()
        && !core.keepalive_timeout.idle.is_zero()
        && c.requests.get() < *core.keepalive_requests
        && r.started.saturating_sub(c.accepted) <= *core.keepalive_time
        && !(disable.contains(KeepaliveDisable::MSIE6)
            && r.head.method_kind == Method::Post
            && matches!(browser(r), Browser::Msie { old: true }))
        && !(disable.contains(KeepaliveDisable::SAFARI) && browser(r) == Browser::Safari)
        && !c.shard.is_quitting()
        // Where the configuration in force does not have the address, this answer is the last.
        && c.listener.is_bound_to(&c.shard.generation())
}

/// Whether `msie_refresh` applies.
pub fn is_msie(r: &Request) -> bool {
    matches!(browser(r), Browser::Msie { .. })
}

fn browser(r: &Request) -> Browser {
    let agent = r.head.headers.find(Known::UserAgent);
    agent.map_or(Browser::Other, |agent| Browser::of(r.text(agent.value)))
}
