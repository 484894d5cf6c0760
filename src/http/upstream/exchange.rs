//! One exchange, start to end, for both protocols: what `proxy_pass` and `uwsgi_pass` do.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::balance::Picker;
use super::dynamic::{self, LookupError, Target};
use super::peer::{Active, Member, PeerSet};
use super::pool::UpstreamConnection;
use super::protocol::{self, BodyForm, Destination};
use super::{Attempt, Group, head, local, relay};
use crate::clock;
use crate::error_log::{Level, escape};
use crate::http::action::Action;
use crate::http::body::{self, BodyError};
use crate::http::close::Close;
use crate::http::connection::{Connection, client_address};
use crate::http::location::Location;
use crate::http::modules::exchange::{IgnoreHeaders, NextUpstream, Pass, Settings};
use crate::http::modules::proxy::HttpVersion;
use crate::http::modules::sticky::Sticky;
use crate::http::modules::upstream::{Balance, Peer, PeerAddress, Upstream};
use crate::http::phase::Outcome;
use crate::http::request::Request;
use crate::http::tunnel;
use crate::http::tunnel::handshake::{self, Asked, BadSwitch};
use crate::http::value;
use crate::http1::framing::BodyLength;
use crate::http1::header::Known;
use crate::http1::refusal::ResponseRefusal;
use crate::http1::request::Method;
use crate::http1::response::{self, Form, NO_VALID_HEADER};
use crate::http1::uri::unescape;
use crate::http1::{Progress, chunked};
use crate::io::select::{Either, either};
use crate::io::stream::{Address, Failure, NewSocket};
use crate::io::timer::{self, Wait};
use crate::io::{Buffer, Stream};

/// A client that leaves is noticed at the latest this long after: an exchange that is over sooner
/// never looks.
const CLIENT_WATCH_AFTER: Duration = Duration::from_millis(100);
/// Bytes of a temporary file sent at once.
const FILE_PIECE: usize = 64 << 10;

thread_local! {
    /// Whether this shard has told that some upgrade was not passed on.
    static TOLD_OF_REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// Which directives, and which protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Proxy,
    Uwsgi,
}

impl Family {
    /// The upstream as the error log shows it.
    pub fn url(self, r: &Request) -> Option<Vec<u8>> {
        let address = &r.attempts.last()?.address;
        let mut url = match self {
            Family::Proxy => b"http://".to_vec(),
            Family::Uwsgi => b"uwsgi://".to_vec(),
        };
        url.extend_from_slice(address.as_bytes());
        if address.starts_with("unix:") {
            url.push(b':');
        }
        url.extend_from_slice(r.message.uri());
        Some(url)
    }

    fn settings(self, location: &Location) -> &Settings {
        match self {
            Family::Proxy => &location.settings.proxy.exchange,
            Family::Uwsgi => &location.settings.uwsgi.exchange,
        }
    }

    fn form(self) -> Form {
        match self {
            Family::Proxy => Form::Http,
            Family::Uwsgi => Form::Cgi,
        }
    }
}

/// `proxy_pass`
pub async fn proxy(c: &Connection, r: &mut Request) -> Result<Outcome, Close> {
    exchange(c, r, Family::Proxy).await
}

/// `uwsgi_pass`
pub async fn uwsgi(c: &Connection, r: &mut Request) -> Result<Outcome, Close> {
    exchange(c, r, Family::Uwsgi).await
}

async fn exchange(c: &Connection, r: &mut Request, family: Family) -> Result<Outcome, Close> {
    c.exchange.set(Some(family));
    let outcome = run(c, r, family).await;
    if outcome.is_ok() {
        c.exchange.set(None);
    }
    outcome
}

/// What does not change from one server to the next.
struct Exchange<'a> {
    c: &'a Connection,
    family: Family,
    location: &'a Location,
    settings: &'a Settings,
    upstream: &'a Upstream,
    group: &'a Group,
    /// Of a proxied request.
    destination: Option<Destination<'a>>,
    body: BodyForm,
    /// The body goes out as it comes in, to the first server only.
    streams: bool,
}

async fn run(c: &Connection, r: &mut Request, family: Family) -> Result<Outcome, Close> {
    let generation = Rc::clone(&r.generation);
    let http = generation.http();
    let location = http.location(r.location);
    let settings = family.settings(location);
    let pass = match family {
        Family::Proxy => location.settings.proxy.pass.get().map(|pass| &pass.target),
        Family::Uwsgi => location.settings.uwsgi.pass.get().map(|pass| &pass.target),
    };
    let Some(pass) = pass else { return Ok(Outcome::Status(500)) };
    let resolved;
    let (upstream, group, destination) = match pass {
        Pass::Upstream(id) => {
            let destination = location.settings.proxy.pass.get().map(Destination::from);
            (http.upstream(*id), generation.upstreams.group(*id), destination)
        }
        Pass::Template(template) => {
            let mut value = match dynamic::resolve(c, r, http, template, family) {
                Ok(value) => value,
                Err(status) => return Ok(Outcome::Status(status)),
            };
            if let Target::Name { name, port } = &value.target {
                // A client whose body is still to be read is found gone by that.
                let ignore = *settings.ignore_client_abort || body::is_announced(r);
                // On the heap: every connection's task has room for what stands in a request's way.
                let found = dynamic::look_up(c, r, &generation, name, *port, ignore);
                value.target = match Box::pin(found).await {
                    Ok(target) => target,
                    Err(LookupError::Status(status)) => return Ok(Outcome::Status(status)),
                    Err(LookupError::Close(close)) => return Err(close),
                };
            }
            resolved = value;
            let (upstream, group) = match &resolved.target {
                Target::Group(id) => (http.upstream(*id), generation.upstreams.group(*id)),
                Target::Literal(upstream, group) => (&**upstream, &**group),
                Target::Name { .. } => return Ok(Outcome::Status(502)),
            };
            (upstream, group, Some(resolved.destination()))
        }
    };

    let mut exchange = Exchange {
        c,
        family,
        location,
        settings,
        upstream,
        group,
        destination,
        body: BodyForm::None,
        streams: false,
    };
    if r.body.was_streamed && !body::forget_streamed(r) {
        // It went to the first upstream as it came, and no copy was kept.
        return Ok(Outcome::Status(502));
    }
    exchange.streams = streams_body(&exchange, r);
    if !exchange.streams {
        match body::read_all(c, r).await {
            Ok(()) => {}
            Err(BodyError::Status(status)) => return Ok(Outcome::Status(status)),
            Err(BodyError::Close(close)) => return Err(close),
        }
    }
    match exchange.build_message(r) {
        Ok(form) => exchange.body = form,
        Err(status) => return Ok(Outcome::Status(status)),
    }
    if let Err(status) = exchange.check_upgrade(r) {
        return Ok(Outcome::Status(status));
    }
    exchange.try_servers(r).await
}

/// Whether the body goes out as it comes in. A chunked one needs a protocol that can say so.
fn streams_body(exchange: &Exchange<'_>, r: &Request) -> bool {
    if *exchange.settings.request_buffering
        || !body::is_announced(r)
        || r.body.is_started()
        || body::is_here(r)
    {
        return false;
    }
    let proxy = &exchange.location.settings.proxy;
    match (exchange.family, r.head.body) {
        (Family::Proxy, _) if proxy.set_body.is_some() => false,
        (Family::Proxy, BodyLength::Chunked) => *proxy.http_version == HttpVersion::Http11,
        (Family::Uwsgi, BodyLength::Chunked) => false,
        _ => true,
    }
}

/// Why one server did not answer.
#[derive(Debug)]
struct Failed {
    condition: NextUpstream,
    status: u16,
    /// Nothing has been sent to it: even a request that must not be repeated can go elsewhere.
    unsent: bool,
    /// It had answered on this connection before: it may have closed it meanwhile.
    reused: bool,
}

/// How trying one server can end without an answer.
enum NoAnswer {
    Failed(Failed),
    /// The client's side ended it.
    Client(BodyError),
}

impl From<Failed> for NoAnswer {
    fn from(failed: Failed) -> Self {
        NoAnswer::Failed(failed)
    }
}

impl From<Close> for NoAnswer {
    fn from(close: Close) -> Self {
        NoAnswer::Client(BodyError::Close(close))
    }
}

impl Exchange<'_> {
    fn build_message(&self, r: &mut Request) -> Result<BodyForm, u16> {
        let mut message = std::mem::take(&mut r.message);
        message.clear();
        let form = match self.family {
            Family::Proxy => {
                let Some(destination) = self.destination else { return Err(500) };
                Ok(protocol::http(
                    self.c,
                    r,
                    self.location,
                    destination,
                    self.streams,
                    &mut message,
                ))
            }
            Family::Uwsgi => protocol::uwsgi(self.c, r, self.location, &mut message),
        };
        r.message = message;
        form.map_err(|length| {
            self.c.log(r, Level::Alert, format_args!("uwsgi request is too big: {length}"));
            500
        })
    }

    /// What asks for a WebSocket must be the handshake of one.
    fn check_upgrade(&self, r: &Request) -> Result<(), u16> {
        if let Some(upgrade) = r.message.refused_upgrade()
            && !TOLD_OF_REFUSED.replace(true)
        {
            let shown = escape(upgrade);
            let text = format_args!(
                "upgrade to \"{shown}\" is not passed on, see \"proxy_upgrade_allow\""
            );
            self.c.log(r, Level::Notice, text);
        }
        if !self.is_strict(r) {
            return Ok(());
        }
        handshake::check_request(&r.head, r.bytes()).map_err(|invalid| {
            let text = format_args!("client sent invalid WebSocket handshake: {invalid}");
            self.c.log(r, Level::Info, text);
            400
        })
    }

    /// Whether a WebSocket was asked for, by the rules.
    fn is_strict(&self, r: &Request) -> bool {
        client_asks(r)
            && r.message.asked() == Asked::WebSocket
            && *self.location.settings.websocket.strict
    }

    /// Whether a 101 makes a tunnel.
    fn check_switch(&self, r: &Request) -> Result<(), BadSwitch> {
        if r.message.upgrade().is_empty() || !client_asks(r) {
            return Err(BadSwitch::Unasked);
        }
        if r.body.is_abandoned || (body::is_announced(r) && !r.body.is_done()) {
            // The client's next bytes are its request's body: nothing to build a tunnel on.
            return Err(BadSwitch::BeforeBody);
        }
        let (headers, bytes) = (&r.upstream_head.headers, r.upstream_bytes.as_slice());
        handshake::check_switched(headers, bytes, &self.location.settings.websocket.upgrade_allow)?;
        if self.is_strict(r) {
            handshake::check_response(&r.head, r.bytes(), headers, bytes)?;
        }
        Ok(())
    }

    async fn try_servers(&self, r: &mut Request) -> Result<Outcome, Close> {
        let set = self.group.peers();
        let is_single = set.members.len() == 1;
        let began_ms = timer::now_ms();
        let client = client_address(self.c, r).ip;
        let mut picker = Picker::new(&set, client, || match &*self.upstream.balance {
            Balance::Hash { key, .. } => value::expanded(key, self.c, r),
            _ => Vec::new(),
        });
        let bound = self.bound(r, &set, began_ms);
        let mut tries_left = self.tries(&set.members);
        let mut starts_group = true;
        let mut now_ms = began_ms;
        loop {
            let picked = match bound {
                Some(at) if picker.pick_bound(&set, at, now_ms) => Some(at),
                _ => picker.pick(&set, now_ms),
            };
            let Some(at) = picked else {
                return Ok(Outcome::Status(self.no_live(r, starts_group)));
            };
            let member = &set.members[at];
            if let Some(sticky) = &self.upstream.sticky {
                sticky.put_cookie(self.c, r, member.id());
            }
            r.attempts.push(Attempt {
                address: Arc::clone(&member.peer.name),
                status: 0,
                connect: None,
                header: None,
                response: None,
                response_length: 0,
                bytes_sent: 0,
                bytes_received: 0,
                starts_group: std::mem::take(&mut starts_group),
            });
            let active = Active::new(&member.state, now_ms);
            tries_left = if is_single { 0 } else { tries_left.saturating_sub(1) };
            let started = clock::now();
            let failed = match self.ask(r, &member.peer, started).await {
                Ok(connection) => match self.unwanted_status(r) {
                    Some(failed) if tries_left > 0 && self.allows_next(r, &failed, began_ms) => {
                        failed
                    }
                    _ => {
                        member.state.succeeded();
                        let delivery = Delivery { set: &set, member, connection, active, started };
                        return self.deliver(r, delivery).await;
                    }
                },
                Err(NoAnswer::Failed(failed)) => failed,
                Err(NoAnswer::Client(BodyError::Status(status))) => {
                    return Ok(Outcome::Status(status));
                }
                Err(NoAnswer::Client(BodyError::Close(close))) => return Err(close),
            };
            drop(active);
            if let Some(attempt) = r.attempts.last_mut() {
                attempt.status = failed.status;
                attempt.response = Some(clock::now().saturating_sub(started));
            }
            now_ms = timer::now_ms();
            if !is_single {
                self.count_failure(r, member, failed.condition, now_ms);
            }
            if failed.reused && failed.condition == NextUpstream::ERROR {
                // The server may have closed an idle connection: that is one more try.
                tries_left += 1;
            }
            if tries_left == 0 || !self.allows_next(r, &failed, began_ms) {
                return Ok(Outcome::Status(failed.status));
            }
        }
    }

    /// The server that the request's session is bound to.
    fn bound(&self, r: &Request, set: &PeerSet, now_ms: u64) -> Option<usize> {
        let id = self.upstream.sticky.as_ref()?.bound(self.c, r, now_ms)?;
        set.members.iter().position(|member| member.id().as_bytes() == id)
    }

    /// Keeps the session that an answer began, when that is due.
    fn learn(&self, r: &Request, member: &Member, is_over: bool) {
        if let Some(Sticky::Learn(learn)) = &self.upstream.sticky
            && learn.at_header != is_over
            && !learn.learn(self.c, r, member.id(), timer::now_ms())
        {
            let text = format_args!(
                "could not allocate node in sticky session zone \"{}\", expiring least recently \
                 used session",
                learn.sessions.name
            );
            self.c.log(r, Level::Warn, text);
        }
    }

    /// How many servers may be tried.
    fn tries(&self, members: &[Member]) -> usize {
        let there = members.iter().filter(|member| !member.peer.down).count().max(1);
        match *self.settings.next_upstream_tries {
            0 => there,
            most => there.min(most),
        }
    }

    fn no_live(&self, r: &mut Request, starts_group: bool) -> u16 {
        self.c.action.set(Action::ConnectingToUpstream);
        r.attempts.push(Attempt {
            address: Arc::clone(&self.upstream.name),
            status: 502,
            connect: None,
            header: None,
            response: Some(Duration::ZERO),
            response_length: 0,
            bytes_sent: 0,
            bytes_received: 0,
            starts_group,
        });
        self.c.log(r, Level::Error, format_args!("no live upstreams"));
        502
    }

    /// Whether the configuration lets another server be tried after this failure.
    fn allows_next(&self, r: &Request, failed: &Failed, began_ms: u64) -> bool {
        let listed = *self.settings.next_upstream;
        if listed.contains(NextUpstream::OFF) || !listed.contains(failed.condition) {
            return false;
        }
        if !failed.unsent && (self.streams || !is_repeatable(r, listed)) {
            return false;
        }
        let limit = self.settings.next_upstream_timeout.as_millis();
        limit == 0 || u128::from(timer::now_ms().saturating_sub(began_ms)) < limit
    }

    fn count_failure(&self, r: &Request, member: &Member, condition: NextUpstream, now_ms: u64) {
        if condition == NextUpstream::HTTP_403 || condition == NextUpstream::HTTP_404 {
            return;
        }
        if member.failed(now_ms) {
            self.c.log(r, Level::Warn, format_args!("upstream server temporarily disabled"));
        }
    }

    /// A status that `next_upstream` lists.
    fn unwanted_status(&self, r: &Request) -> Option<Failed> {
        let condition = match r.upstream_head.code {
            500 => NextUpstream::HTTP_500,
            502 => NextUpstream::HTTP_502,
            503 => NextUpstream::HTTP_503,
            504 => NextUpstream::HTTP_504,
            403 => NextUpstream::HTTP_403,
            404 => NextUpstream::HTTP_404,
            429 => NextUpstream::HTTP_429,
            _ => return None,
        };
        let status = r.upstream_head.code;
        self.settings.next_upstream.contains(condition).then_some(Failed {
            condition,
            status,
            unsent: false,
            reused: false,
        })
    }

    /// Connects or reuses, sends the request, reads the head of the answer.
    async fn ask(
        &self,
        r: &mut Request,
        peer: &Peer,
        started: Duration,
    ) -> Result<UpstreamConnection, NoAnswer> {
        self.c.action.set(Action::ConnectingToUpstream);
        let idle = self.group.pool.borrow_mut().take(&peer.address, r.location);
        let mut connection = match idle {
            Some(connection) => connection,
            None => UpstreamConnection::new(self.connect(r, peer).await?),
        };
        connection.requests += 1;
        connection.request_is_sent = false;
        if let Some(attempt) = r.attempts.last_mut() {
            attempt.connect = Some(clock::now().saturating_sub(started));
        }
        self.c.action.set(Action::SendingRequestToUpstream);
        let send_error = match self.send(r, &connection.stream).await? {
            SendEnd::Open => {
                connection.request_is_sent = self.sends_what_it_announces(r);
                None
            }
            SendEnd::Failed(Failure::Io(e)) => Some(e),
            SendEnd::Failed(_) | SendEnd::Answered => None,
        };
        self.read_head(r, &connection, send_error).await?;
        if let Some(attempt) = r.attempts.last_mut() {
            if attempt.status == 0 {
                attempt.status = r.upstream_head.code;
            }
            attempt.header = Some(clock::now().saturating_sub(started));
        }
        Ok(connection)
    }

    /// False where a head told of a body that is then kept back (`proxy_pass_request_body off`): the
    /// next request on that connection would be read as the body.
    fn sends_what_it_announces(&self, r: &Request) -> bool {
        let proxy = &self.location.settings.proxy;
        !body::is_announced(r)
            || self.body != BodyForm::None
            || proxy.set_body.is_some()
            || proxy.head.overrides_length
    }

    /// Whether a client that leaves does not end the exchange. One whose request body is still being
    /// read is found gone by that.
    fn ignores_abort(&self, r: &Request) -> bool {
        *self.settings.ignore_client_abort || (self.streams && !r.body.is_done())
    }

    async fn connect(&self, r: &mut Request, peer: &Peer) -> Result<Stream, NoAnswer> {
        let address = match &peer.address {
            PeerAddress::Inet(address) => Address::Inet(*address),
            PeerAddress::Unix(path) => Address::Unix(path.clone()),
        };
        let connected = match NewSocket::to(&address) {
            Ok(socket) => {
                if let Err(failed) = local::prepare(self.c, r, self.settings, &socket) {
                    self.c.log_errno(r, failed.level, format_args!("{failed}"), &failed.error);
                    return Err(NoAnswer::Client(BodyError::Status(500)));
                }
                let connect = socket.connect(*self.settings.connect_timeout);
                watching_client(self.c, r, connect, self.ignores_abort(r)).await?
            }
            Err(e) => Err(Failure::Io(e)),
        };
        match connected {
            Ok(stream) => {
                if *self.settings.socket_keepalive {
                    stream.set_keepalive();
                }
                Ok(stream)
            }
            Err(Failure::Io(e)) => {
                let (level, to) = match &peer.address {
                    PeerAddress::Unix(path) => {
                        let gone = e.kind() == io::ErrorKind::NotFound;
                        let level = if gone { Level::Crit } else { Level::Error };
                        (level, format!(" to unix:{}", path.display()))
                    }
                    PeerAddress::Inet(_) => (Level::Error, String::new()),
                };
                self.c.log_errno(r, level, format_args!("connect(){to} failed"), &e);
                Err(Failed::error(true).into())
            }
            Err(failure) => Err(self.timed_out(r, &failure, true)),
        }
    }

    fn timed_out(&self, r: &Request, failure: &Failure, unsent: bool) -> NoAnswer {
        if matches!(failure, Failure::Interrupted) {
            return Close::Interrupted.into();
        }
        self.c.log(r, Level::Error, format_args!("upstream timed out (110: Connection timed out)"));
        Failed { condition: NextUpstream::TIMEOUT, status: 504, unsent, reused: false }.into()
    }

    /// Sends head and body. A server that stops listening may have answered: then the error is kept
    /// for the case that it has not.
    async fn send(&self, r: &mut Request, stream: &Stream) -> Result<SendEnd, NoAnswer> {
        let limit = *self.settings.send_timeout;
        let mut sent = Sent::default();
        {
            let mut slices = r.message.slices(r.buffer.as_slice());
            if self.body == BodyForm::Plain && !self.streams && r.body.file.is_none() {
                slices.push(IoSlice::new(r.body.memory.as_slice()));
            }
            send_listening(stream, &mut slices, limit, &mut sent).await;
        }
        if sent.is_open() && self.body != BodyForm::None {
            if self.streams {
                stream.set_nodelay();
                self.stream_body(r, stream, &mut sent).await?;
            } else if r.body.file.is_some() {
                self.send_file(r, stream, &mut sent).await;
            }
        }
        if let Some(attempt) = r.attempts.last_mut() {
            attempt.bytes_sent += sent.bytes;
        }
        match sent.end {
            SendEnd::Failed(failure) if !matches!(failure, Failure::Io(_)) => {
                Err(self.timed_out(r, &failure, sent.bytes == 0))
            }
            end => Ok(end),
        }
    }

    /// The body of an unbuffered request, piece by piece.
    async fn stream_body(
        &self,
        r: &mut Request,
        stream: &Stream,
        sent: &mut Sent,
    ) -> Result<(), NoAnswer> {
        let limit = *self.settings.send_timeout;
        r.body.was_streamed = true;
        while sent.is_open() {
            let span = match either(body::next(self.c, r), stream.readable_unlimited()).await {
                Either::First(Ok(Some(span))) => span,
                Either::First(Ok(None)) => break,
                Either::First(Err(error)) => return Err(NoAnswer::Client(error)),
                Either::Second(_) => {
                    // It answers already.
                    body::abandon(r);
                    sent.end = SendEnd::Answered;
                    break;
                }
            };
            body::check_size(self.c, r, span).map_err(NoAnswer::Client)?;
            let piece = body::piece(r, span);
            let mut head = [0; 18];
            if self.body == BodyForm::Chunked {
                let head = chunked::chunk_head(piece.len(), &mut head);
                let mut slices = [IoSlice::new(head), IoSlice::new(piece), IoSlice::new(b"\r\n")];
                send_listening(stream, &mut slices, limit, sent).await;
            } else {
                send_listening(stream, &mut [IoSlice::new(piece)], limit, sent).await;
            }
            body::consume(r, span);
        }
        if sent.is_open() && self.body == BodyForm::Chunked {
            send_listening(stream, &mut [IoSlice::new(chunked::LAST_CHUNK)], limit, sent).await;
        }
        Ok(())
    }

    /// The body out of its temporary file.
    async fn send_file(&self, r: &Request, stream: &Stream, sent: &mut Sent) {
        let Some(file) = &r.body.file else { return };
        let mut piece = vec![0; FILE_PIECE];
        let mut offset = 0;
        while sent.is_open() && offset < file.len() {
            match file.read_at(offset, &mut piece) {
                Ok(0) => break,
                Ok(n) => {
                    offset += n as u64;
                    let mut slices = [IoSlice::new(&piece[..n])];
                    send_listening(stream, &mut slices, *self.settings.send_timeout, sent).await;
                }
                Err(e) => {
                    let path = file.path().display();
                    self.c.log_errno(r, Level::Crit, format_args!("pread() \"{path}\" failed"), &e);
                    sent.end = SendEnd::Failed(Failure::Io(e));
                }
            }
        }
    }

    /// Reads until the head is whole: `r.upstream_bytes` then holds it and what came behind it.
    async fn read_head(
        &self,
        r: &mut Request,
        connection: &UpstreamConnection,
        send_error: Option<io::Error>,
    ) -> Result<(), NoAnswer> {
        let size = *self.settings.buffer_size;
        // Bytes of all early hints so far.
        let mut hints = 0;
        let until_ms = timer::now_ms() + self.settings.read_timeout.as_millis() as u64;
        r.upstream_head.clear();
        r.upstream_bytes = Buffer::with_capacity(size);
        loop {
            let left = Duration::from_millis(until_ms.saturating_sub(timer::now_ms()));
            let buffer = std::mem::take(&mut r.upstream_bytes);
            let ignore_abort = *self.settings.ignore_client_abort;
            let (received, buffer) =
                receive_watching_client(self.c, r, &connection.stream, buffer, left, ignore_abort)
                    .await?;
            r.upstream_bytes = buffer;
            self.c.action.set(Action::ReadingUpstreamHead);
            if let Some(attempt) = r.attempts.last_mut() {
                attempt.bytes_received += *received.as_ref().unwrap_or(&0) as u64;
            }
            match received {
                Ok(0) => {
                    if let Some(e) = &send_error {
                        self.c.action.set(Action::SendingRequestToUpstream);
                        self.c.log_errno(r, Level::Error, format_args!("writev() failed"), e);
                    } else {
                        let text = format_args!("upstream prematurely closed connection");
                        self.c.log(r, Level::Error, text);
                    }
                    return Err(Failed::broken(connection.reused).into());
                }
                Ok(_) => {}
                Err(Failure::Io(e)) => {
                    self.c.log_errno(r, Level::Error, format_args!("recv() failed"), &e);
                    return Err(Failed::broken(connection.reused).into());
                }
                Err(failure) => return Err(self.timed_out(r, &failure, false)),
            }
            loop {
                match self.parse_head(r, size)? {
                    Parsed::Partial => break,
                    Parsed::Whole => return Ok(()),
                    Parsed::EarlyHints { len } => {
                        self.take_early_hints(r, len, &mut hints).await?;
                    }
                }
            }
            if r.upstream_bytes.spare() == 0 {
                let limit = r.upstream_bytes.len() + 1;
                r.upstream_bytes.grow(limit);
            }
        }
    }

    fn parse_head(&self, r: &mut Request, size: usize) -> Result<Parsed, NoAnswer> {
        let bytes = r.upstream_bytes.as_slice();
        match response::parse(bytes, self.family.form(), size, &mut r.upstream_head) {
            Ok(Progress::Partial { .. }) => Ok(Parsed::Partial),
            Ok(Progress::Complete { len })
                if self.family == Family::Proxy && r.upstream_head.code == 103 && len > 0 =>
            {
                Ok(Parsed::EarlyHints { len })
            }
            Ok(Progress::Complete { len }) => {
                if r.upstream_head.is_http09 {
                    self.c.log(r, Level::Error, format_args!("{NO_VALID_HEADER}"));
                }
                r.upstream_head_len = len;
                for duplicate in &r.upstream_head.duplicates {
                    let text = duplicate.text(r.upstream_bytes.as_slice());
                    self.c.log(r, Level::Warn, format_args!("{text}"));
                }
                Ok(Parsed::Whole)
            }
            Err(refusal) => {
                self.log_refusal(r, &refusal);
                Err(Failed::invalid_header().into())
            }
        }
    }

    /// A 103: sent on where `early_hints` says so, otherwise read over.
    async fn take_early_hints(
        &self,
        r: &mut Request,
        len: usize,
        total: &mut usize,
    ) -> Result<(), NoAnswer> {
        if r.upstream_head.version < Some((1, 1)) {
            let text = format_args!("upstream sent HTTP/1.0 response with early hints");
            self.c.log(r, Level::Error, text);
            return Err(Failed::invalid_header().into());
        }
        if let Some(attempt) = r.attempts.last_mut() {
            attempt.status = r.upstream_head.code;
        }
        if head::wants_early_hints(self.c, r, self.location) {
            *total += len;
            if *total > *self.settings.buffer_size {
                self.c.log(r, Level::Info, format_args!("upstream sent too big early hints"));
            } else {
                head::send_early_hints(self.c, r, self.family, self.location).await?;
                self.c.action.set(Action::ReadingUpstreamHead);
            }
        }
        r.upstream_bytes.consume(len);
        r.upstream_bytes.compact();
        r.upstream_head.clear();
        Ok(())
    }

    fn log_refusal(&self, r: &Request, refusal: &ResponseRefusal) {
        self.c.log(r, Level::Error, format_args!("{refusal}"));
    }

    /// `X-Accel-Redirect`: the response is another location's to give.
    fn accel_redirect(&self, r: &mut Request) -> Option<Outcome> {
        let field = r.upstream_head.headers.find(Known::XAccelRedirect)?;
        if self.settings.ignore_headers.contains(IgnoreHeaders::X_ACCEL_REDIRECT) {
            return None;
        }
        let target = field.value.of(r.upstream_bytes.as_slice()).to_vec();
        if target.first() == Some(&b'@') {
            return Some(Outcome::Named(String::from_utf8_lossy(&target).into()));
        }
        let end = memchr::memchr(b'?', &target).unwrap_or(target.len());
        let (raw, args) = target.split_at(end);
        let mut uri = Vec::new();
        unescape(raw, &mut uri);
        let is_unsafe = uri.is_empty()
            || uri.contains(&0)
            || uri.split(|&b| b == b'/').any(|segment| segment == b"..");
        if is_unsafe {
            let shown = escape(&target);
            self.c.log(r, Level::Error, format_args!("unsafe URI \"{shown}\" was detected"));
            return Some(Outcome::Status(404));
        }
        if r.method != Method::Head {
            r.method = Method::Get;
        }
        let args = args.strip_prefix(b"?").unwrap_or_default().to_vec();
        Some(Outcome::Internal { uri, args })
    }

    /// Hands the answer to the client, or to the tunnel.
    async fn deliver(&self, r: &mut Request, delivery: Delivery<'_>) -> Result<Outcome, Close> {
        let Delivery { set, member, connection, active, started } = delivery;
        let code = r.upstream_head.code;
        self.learn(r, member, false);
        if code == 101 {
            if let Err(bad) = self.check_switch(r) {
                self.c.log(r, Level::Error, format_args!("{bad}"));
                set_response_time(r, started);
                return Ok(Outcome::Status(502));
            }
            self.learn(r, member, true);
            set_response_time(r, started);
            return Err(tunnel::open(self.c, r, connection.stream, self.settings, active).await);
        }
        if let Some(outcome) = self.accel_redirect(r) {
            self.learn(r, member, true);
            head::keep_for_redirect(r);
            set_response_time(r, started);
            return Ok(outcome);
        }
        if code >= 300
            && *self.settings.intercept_errors
            && self.location.settings.core.error_page.iter().any(|page| page.codes.contains(&code))
        {
            self.learn(r, member, true);
            head::keep_for_page(r);
            set_response_time(r, started);
            return Ok(Outcome::Status(code));
        }
        if *self.settings.force_ranges
            && let Err(length) = head::select_range(r, self.location)
        {
            head::keep_for_not_satisfiable(r, self.settings, length);
            set_response_time(r, started);
            return Ok(Outcome::Status(416));
        }
        let relayed = relay::run(self.c, r, &connection.stream, self.family, self.location).await;
        set_response_time(r, started);
        // The server is done with: it does not wait for a client that is slow to take the rest.
        drop(active);
        let relayed = relayed?;
        self.learn(r, member, true);
        if set.balancer.measures()
            && let Some(attempt) = r.attempts.last()
        {
            let ms = |time: Option<Duration>| time.unwrap_or_default().as_millis() as u64;
            member.state.answered(ms(attempt.header), ms(attempt.response));
        }
        // A pool of an earlier configuration is swept by nobody.
        let is_current = Rc::ptr_eq(&r.generation, &self.c.shard.generation());
        if relayed.is_clean
            && is_current
            && connection.request_is_sent
            && self.family == Family::Proxy
            && r.upstream_head.keep_alive()
            && !self.c.shard.is_quitting()
        {
            let now_ms = timer::now_ms();
            let mut pool = self.group.pool.borrow_mut();
            pool.give(&member.peer.address, r.location, connection, now_ms);
        } else {
            drop(connection);
        }
        relayed.finish(r).await?;
        Ok(Outcome::Done)
    }
}

/// An answer whose head is there, and whose it is.
struct Delivery<'a> {
    set: &'a PeerSet,
    member: &'a Member,
    connection: UpstreamConnection,
    active: Active,
    started: Duration,
}

/// Whether the client has asked for an upgrade at all: a configuration may send one on its own.
fn client_asks(r: &Request) -> bool {
    r.head.headers.contains(Known::Upgrade)
}

fn set_response_time(r: &mut Request, started: Duration) {
    if let Some(attempt) = r.attempts.last_mut() {
        attempt.response = Some(clock::now().saturating_sub(started));
    }
}

/// POST, LOCK and PATCH go to another server only when the configuration says `non_idempotent`.
fn is_repeatable(r: &Request, listed: NextUpstream) -> bool {
    let changes = match r.method {
        Method::Post | Method::Patch => true,
        Method::Other => r.text(r.head.method) == b"LOCK",
        _ => false,
    };
    !changes || listed.contains(NextUpstream::NON_IDEMPOTENT)
}

impl Failed {
    fn error(unsent: bool) -> Self {
        Failed { condition: NextUpstream::ERROR, status: 502, unsent, reused: false }
    }

    fn broken(reused: bool) -> Self {
        Failed { condition: NextUpstream::ERROR, status: 502, unsent: false, reused }
    }

    fn invalid_header() -> Self {
        Failed {
            condition: NextUpstream::INVALID_HEADER,
            status: 502,
            unsent: false,
            reused: false,
        }
    }
}

/// What has been read of the answer.
enum Parsed {
    Partial,
    /// A 103, of so many bytes.
    EarlyHints {
        len: usize,
    },
    /// The final head.
    Whole,
}

/// How far sending a request has got.
#[derive(Debug, Default)]
struct Sent {
    bytes: u64,
    end: SendEnd,
}

#[derive(Debug, Default)]
enum SendEnd {
    #[default]
    Open,
    /// The server answers already: it wants no more.
    Answered,
    Failed(Failure),
}

impl Sent {
    fn is_open(&self) -> bool {
        matches!(self.end, SendEnd::Open)
    }
}

/// Sends all of the slices, and listens while the socket is full: a server that answers before it
/// has read everything may never read on.
async fn send_listening(
    stream: &Stream,
    mut slices: &mut [IoSlice<'_>],
    limit: Duration,
    sent: &mut Sent,
) {
    while sent.is_open() {
        while slices.first().is_some_and(|slice| slice.is_empty()) {
            slices = &mut slices[1..];
        }
        if slices.is_empty() {
            return;
        }
        match stream.try_send(slices) {
            Ok(n) => {
                sent.bytes += n as u64;
                IoSlice::advance_slices(&mut slices, n);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let ready = either(stream.writable_unlimited(), stream.readable_unlimited());
                match stream.timer().within(limit, Wait::Busy, ready).await {
                    Ok(Either::First(Ok(()))) => {}
                    Ok(Either::Second(Ok(()))) => sent.end = SendEnd::Answered,
                    Ok(Either::First(Err(e)) | Either::Second(Err(e))) => {
                        sent.end = SendEnd::Failed(e.into());
                    }
                    Err(expired) => sent.end = SendEnd::Failed(expired.into()),
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => sent.end = SendEnd::Failed(e.into()),
        }
    }
}

/// One receive from the upstream. A client that leaves meanwhile ends the exchange, unless that is
/// to be ignored.
pub async fn receive_watching_client(
    c: &Connection,
    r: &mut Request,
    upstream: &Stream,
    buffer: Buffer,
    limit: Duration,
    ignore_abort: bool,
) -> Result<(Result<usize, Failure>, Buffer), Close> {
    let receive = upstream.recv(buffer, limit, Wait::Busy);
    watching_client(c, r, receive, ignore_abort).await
}

/// Waits for something of the upstream's side, which is dropped when the client leaves.
pub async fn watching_client<F: Future>(
    c: &Connection,
    r: &mut Request,
    future: F,
    ignore_abort: bool,
) -> Result<F::Output, Close> {
    let mut future = pin!(future);
    let client = &c.stream;
    let quick = client.timer().within(CLIENT_WATCH_AFTER, Wait::Busy, future.as_mut()).await;
    match quick {
        Ok(output) => Ok(output),
        Err(_) if ignore_abort => Ok(future.await),
        Err(_) => match either(future.as_mut(), client_left(client)).await {
            Either::First(output) => Ok(output),
            Either::Second(()) => Err(client_aborted(c, r)),
        },
    }
}

/// The client has left while an upstream worked for it.
pub fn client_aborted(c: &Connection, r: &mut Request) -> Close {
    let text = "client prematurely closed connection, so upstream connection is closed too";
    c.log(r, Level::Info, format_args!("{text}"));
    if !r.response.head_sent {
        r.response.status = 499;
    }
    Close::ClientAbortedExchange
}

/// Ends when the client has closed its side. Bytes that it sends ahead hide that, as with nginx:
/// then this waits for ever.
pub async fn client_left(client: &Stream) {
    if client.readable_unlimited().await.is_ok() && client.has_unread_bytes() {
        std::future::pending::<()>().await;
    }
}
