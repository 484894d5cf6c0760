//! One exchange, start to end, for both protocols: what `proxy_pass` and `uwsgi_pass` do.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::ask::{Failed, NoAnswer};
use super::balance::Picker;
use super::dynamic::{self, LookupError, Target};
use super::peer::{Active, Member, PeerSet};
use super::pool::{RequestSent, UpstreamConnection};
use super::protocol::{self, BodyForm, Destination, SetOutFor};
use super::turn::{NoServer, Turn};
use super::{Attempt, Group, head, relay};
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
use crate::http::modules::upstream::{Balance, Upstream};
use crate::http::modules::uwsgi::ChunkedBody;
use crate::http::phase::Outcome;
use crate::http::request::Request;
use crate::http::tunnel;
use crate::http::tunnel::handshake::{self, Asked, BadSwitch};
use crate::http::value;
use crate::http1::framing::BodyLength;
use crate::http1::header::Known;
use crate::http1::request::Method;
use crate::http1::response::Form;
use crate::http1::uri::unescape;
use crate::io::timer;

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

/// An exchange under way, for the log.
#[derive(Debug, Clone, Copy)]
pub struct UnderWay {
    pub family: Family,
    /// Tries of exchanges before it: an error's page, too, may come from a server.
    earlier_attempts: usize,
}

impl UnderWay {
    /// The upstream as the error log shows it, once there is one.
    pub fn url(self, r: &Request) -> Option<Vec<u8>> {
        let address = r.attempts.get(self.earlier_attempts..)?.last()?.address.as_ref()?;
        let mut url = match self.family {
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
}

impl Family {
    fn settings(self, location: &Location) -> &Settings {
        match self {
            Family::Proxy => &location.settings.proxy.exchange,
            Family::Uwsgi => &location.settings.uwsgi.exchange,
        }
    }

    pub fn form(self) -> Form {
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
    c.exchange.set(Some(UnderWay { family, earlier_attempts: r.attempts.len() }));
    // What a server has said in an exchange before is over, also for variables.
    r.upstream_head.clear();
    r.upstream_trailers = None;
    let outcome = run(c, r, family).await;
    match outcome {
        // As in nginx, where `X-Accel-Redirect` ends no more than the reading of a head.
        Ok(Outcome::Internal { .. } | Outcome::Named(_)) | Err(_) => {}
        // Whatever comes now is about a request that this server has been asked.
        Ok(_) => c.action.set(Action::SendingToClient),
    }
    outcome
}

/// What does not change from one server to the next.
pub(super) struct Exchange<'a> {
    pub c: &'a Connection,
    pub family: Family,
    pub location: &'a Location,
    pub settings: &'a Settings,
    pub upstream: &'a Upstream,
    pub group: &'a Group,
    /// Of a proxied request.
    pub destination: Option<Destination<'a>>,
    pub body: BodyForm,
    /// The body goes out as it comes in, to the first server only.
    pub streams: bool,
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
    let to;
    let (mut target, destination) = match pass {
        Pass::Upstream(id) => {
            r.set_out_for = SetOutFor::Configured;
            (Target::Group(*id), location.settings.proxy.pass.get().map(Destination::from))
        }
        Pass::Template(template) => {
            let value = match dynamic::resolve(c, r, http, template, family) {
                Ok(value) => value,
                Err(status) => return Ok(Outcome::Status(status)),
            };
            to = Rc::new(value.to);
            r.set_out_for = SetOutFor::Computed(Rc::clone(&to));
            (value.target, Some(Destination::from(&*to)))
        }
    };
    if r.body.was_streamed && !body::forget_streamed(r) {
        // It went to the first upstream as it came, and no copy was kept.
        return Ok(Outcome::Status(502));
    }
    let streams = streams_body(family, location, settings, r);
    if !streams {
        match body::read_all(c, r).await {
            Ok(()) => {}
            Err(BodyError::Status(status)) => return Ok(Outcome::Status(status)),
            Err(BodyError::Close(close)) => return Err(close),
        }
    }
    r.begin_exchange();
    if let Target::Name { name, port } = &target {
        // A client whose body is still to be read is found gone by that.
        let ignore = *settings.ignore_client_abort || streams;
        // On the heap: every connection's task has room for what stands in a request's way.
        let found = dynamic::look_up(c, r, &generation, name, *port, ignore);
        target = match Box::pin(found).await {
            Ok(target) => target,
            Err(LookupError::Status(status)) => return Ok(Outcome::Status(status)),
            Err(LookupError::Close(close)) => return Err(close),
        };
    }
    let (upstream, group) = match &target {
        Target::Group(id) => (http.upstream(*id), generation.upstreams.group(*id)),
        Target::Literal(upstream, group) => (&**upstream, &**group),
        Target::Name { .. } => return Ok(Outcome::Status(502)),
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
        streams,
    };
    // As in nginx the request is made before the exchange begins: `$upstream_*` tell of those before it.
    let boundary = r.attempts.pop_if(|last| last.address.is_none());
    let form = exchange.build_message(r);
    r.attempts.extend(boundary);
    match form {
        // What is to be sent, or where, cannot be told.
        Ok(_) if r.has_given_up() => return Ok(Outcome::Status(500)),
        Ok(form) => exchange.body = form,
        Err(status) => return Ok(Outcome::Status(status)),
    }
    if let Err(status) = exchange.check_body(r) {
        return Ok(Outcome::Status(status));
    }
    if let Err(status) = exchange.check_upgrade(r) {
        return Ok(Outcome::Status(status));
    }
    exchange.try_servers(r).await
}

/// Whether the body goes out as it comes in. A chunked one needs a protocol that can say so.
fn streams_body(family: Family, location: &Location, settings: &Settings, r: &Request) -> bool {
    if *settings.request_buffering
        // Nothing of it goes out: it is read like any other, and does not keep the request from
        // being sent to another server.
        || !*settings.pass_request_body
        || !body::is_announced(r)
        || r.body.is_started()
    {
        return false;
    }
    let (proxy, uwsgi) = (&location.settings.proxy, &location.settings.uwsgi);
    match (family, r.head.body) {
        // Also when it is here already: the application reads chunks.
        (Family::Uwsgi, BodyLength::Chunked) => *uwsgi.chunked_body == ChunkedBody::Raw,
        _ if body::is_here(r) => false,
        (Family::Proxy, _) if proxy.set_body.is_some() => false,
        (Family::Proxy, BodyLength::Chunked) => *proxy.http_version == HttpVersion::Http11,
        _ => true,
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
            Family::Uwsgi => protocol::uwsgi(self.c, r, self.location, self.streams, &mut message),
        };
        r.message = message;
        form.map_err(|refused| {
            let text = format_args!("{refused}");
            self.c.log_explained(r, refused.level, text, None, refused.hint.as_ref());
            refused.status
        })
    }

    /// A body that is held must be all of what the head tells of: the server would take the next
    /// request for the rest.
    fn check_body(&self, r: &mut Request) -> Result<(), u16> {
        if self.streams || self.body == BodyForm::None {
            return Ok(());
        }
        let wanted = match r.head.body {
            BodyLength::Length(length) => length,
            BodyLength::Chunked => r.body.decoded,
            BodyLength::None | BodyLength::UntilClose => 0,
        };
        let held = r.body.held();
        if held == wanted {
            return Ok(());
        }
        let text = format_args!("request body of {wanted} bytes is not whole: {held} are there");
        self.c.log(r, Level::Alert, text);
        body::abandon(r);
        Err(500)
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
        client_asks_for_websocket(r) && self.asks_for_strict(r)
    }

    /// Whether the server was asked for a WebSocket, by the rules: the configuration may do so on its own.
    fn asks_for_strict(&self, r: &Request) -> bool {
        r.message.asked() == Asked::WebSocket && *self.location.settings.websocket.strict
    }

    /// Whether a 101 makes a tunnel.
    fn check_switch(&self, r: &Request, sent: RequestSent) -> Result<(), BadSwitch> {
        let is_asked = client_asks(r) && (client_asks_for_websocket(r) || !self.asks_for_strict(r));
        if r.message.upgrade().is_empty() || !is_asked {
            return Err(BadSwitch::Unasked);
        }
        let is_unread = r.body.is_abandoned || (body::is_announced(r) && !r.body.is_done());
        if is_unread || sent == RequestSent::Partly {
            // The client's next bytes, or the server's, are the request's body: nothing to build a tunnel
            // on.
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
        let mut began_ms = timer::now_ms();
        let client = client_address(self.c, r).ip;
        let mut picker = Picker::new(&set, client, || match &*self.upstream.balance {
            Balance::Hash { key, .. } => value::expanded(key, self.c, r),
            _ => Vec::new(),
        });
        let bound = self.bound(r, &set, began_ms);
        let mut tries_left = self.tries(&set.members);
        let mut now_ms = began_ms;
        // After a connection that had been used before and failed.
        let mut is_fresh = false;
        let mut turn = self.group.queue().map(|queue| Box::new(Turn::new(queue, &picker)));
        loop {
            let taken = match &mut turn {
                None => picker.take(&set, bound, None, now_ms).ok_or(NoServer::NoLive),
                Some(turn) => match turn.take_at_once(&mut picker, &set, bound) {
                    Some(taken) => taken,
                    // On the heap: every connection's task has room for what stands in its way.
                    None => Box::pin(self.wait_turn(r, turn, &mut picker, &set, bound)).await?,
                },
            };
            let waited = turn.as_ref().and_then(|turn| turn.waited());
            let (at, active) = match taken {
                Ok(taken) => taken,
                Err(why) => {
                    return Ok(Outcome::Status(self.no_server(r, why, waited)));
                }
            };
            #[expect(clippy::indexing_slicing, reason = "the picker has picked one of the set")]
            let member = &set.members[at];
            if let Some(sticky) = &self.upstream.sticky {
                sticky.put_cookie(self.c, r, member.id());
            }
            r.attempts.push(Attempt {
                address: Some(Arc::clone(&member.peer.name)),
                queue: waited,
                ..Attempt::default()
            });
            let started = clock::steady();
            let asked = self.ask(r, &member.peer, started, is_fresh).await;
            if let Some(turn) = &mut turn {
                if matches!(asked, Err(NoAnswer::BacklogFull)) {
                    // That was no try, and no failure.
                    turn.goes_on();
                    active.withdraw();
                    member.state.backlog_is_full(timer::now_ms());
                    picker.untry(at);
                    r.attempts.pop();
                    continue;
                }
                member.state.backlog_has_room();
                turn.end();
                // Of the time for all tries the wait is no part.
                let waited_ms = waited.unwrap_or_default().as_millis() as u64;
                began_ms = began_ms.saturating_add(waited_ms);
            }
            tries_left = if is_single { 0 } else { tries_left.saturating_sub(1) };
            let failed = match asked {
                Ok(connection) => match self.unwanted_status(r) {
                    Some(failed) if tries_left > 0 && self.allows_next(r, &failed, began_ms) => {
                        failed
                    }
                    _ => {
                        member.state.has_not_failed();
                        let delivery = Delivery { set: &set, member, connection, active, started };
                        return self.deliver(r, delivery).await;
                    }
                },
                Err(NoAnswer::Failed(failed)) => failed,
                // Only with a queue, and then it is dealt with above.
                Err(NoAnswer::BacklogFull) => return Ok(Outcome::Status(502)),
                Err(NoAnswer::Client(error)) => {
                    member.state.has_not_failed();
                    set_response_time(r, started);
                    return match error {
                        BodyError::Status(status) => Ok(Outcome::Status(status)),
                        BodyError::Close(close) => Err(close),
                    };
                }
            };
            drop(active);
            set_response_time(r, started);
            if let Some(attempt) = r.attempts.last_mut() {
                attempt.status = failed.status;
            }
            now_ms = timer::now_ms();
            // The server may have closed an idle connection: that is one more try.
            let was_idle = failed.reused && failed.condition == NextUpstream::ERROR;
            if was_idle {
                tries_left = tries_left.saturating_add(1);
                is_fresh = self.family == Family::Uwsgi;
            }
            // As in nginx a failure, but for uwsgi, whose servers keep connections for two seconds.
            let counts = !(was_idle && is_fresh);
            if !is_single && counts {
                self.count_failure(r, member, failed.condition, now_ms);
            }
            if failed.condition == NextUpstream::TIMEOUT {
                // As in nginx after the server was counted out, where every other failure comes before.
                let text = format_args!("upstream timed out (110: Connection timed out)");
                self.c.log(r, Level::Error, text);
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

    #[cold]
    fn no_server(&self, r: &mut Request, why: NoServer, waited: Option<Duration>) -> u16 {
        self.c.action.set(Action::ConnectingToUpstream);
        r.attempts.push(Attempt {
            address: Some(Arc::clone(&self.upstream.name)),
            queue: waited,
            status: 502,
            response: Some(Duration::ZERO),
            ..Attempt::default()
        });
        self.c.log(r, Level::Error, format_args!("{}", why.text()));
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

    #[cold]
    fn count_failure(&self, r: &Request, member: &Member, condition: NextUpstream, now_ms: u64) {
        if condition == NextUpstream::HTTP_403 || condition == NextUpstream::HTTP_404 {
            // It does as it should: the answer is another server's to give.
            member.state.has_not_failed();
        } else if member.failed(now_ms) {
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

    /// What the client gets in place of this answer, of which no more is kept than goes with that.
    fn replacement(&self, r: &mut Request) -> Option<Outcome> {
        let code = r.upstream_head.code;
        if self.intercepts(code) {
            head::keep_for_page(r);
            return Some(Outcome::Status(code));
        }
        let outcome = self.accel_redirect(r)?;
        head::keep_for_redirect(self.c, r, self.family, self.location);
        Some(outcome)
    }

    /// `*_intercept_errors`: the page of that status is the configuration's to give.
    fn intercepts(&self, code: u16) -> bool {
        let pages = &self.location.settings.core.error_page;
        code >= 300
            && *self.settings.intercept_errors
            && pages.iter().any(|page| page.codes.contains(&code))
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
        let args = args.strip_prefix(b"?").map(<[u8]>::to_vec);
        Some(Outcome::Internal { uri, args })
    }

    /// Hands the answer to the client, or to the tunnel.
    async fn deliver(&self, r: &mut Request, delivery: Delivery<'_>) -> Result<Outcome, Close> {
        // Dropped in reverse order: the place at the server is free when the connection is closed.
        let Delivery { set, member, active, connection, started } = delivery;
        let code = r.upstream_head.code;
        self.learn(r, member, false);
        if code == 101 {
            if let Err(bad) = self.check_switch(r, connection.request) {
                self.c.log(r, Level::Error, format_args!("{bad}"));
                set_response_time(r, started);
                return Ok(Outcome::Status(502));
            }
            self.learn(r, member, true);
            set_response_time(r, started);
            let server = tunnel::Server {
                upstream: Arc::clone(&self.upstream.name),
                name: Arc::clone(&member.peer.name),
                active: Some(active),
            };
            return Err(tunnel::open(self.c, r, connection.stream, self.settings, server).await);
        }
        if let Some(outcome) = self.replacement(r) {
            self.learn(r, member, true);
            set_response_time(r, started);
            // What is still to come of a body nobody waits for.
            let is_all_here = is_without_body(r) && r.behind_upstream_head().is_empty();
            self.let_go(r, &member.peer, connection, is_all_here);
            return Ok(outcome);
        }
        if *self.settings.force_ranges
            && let Err(length) = head::select_range(self.c, r, self.location)
        {
            head::keep_for_not_satisfiable(self.c, r, self.settings, length);
            set_response_time(r, started);
            return Ok(Outcome::Status(416));
        }
        let relayed = relay::run(self.c, r, &connection.stream, self.family, self.location).await;
        set_response_time(r, started);
        let is_clean = relayed.as_ref().is_ok_and(|relayed| relayed.is_clean);
        // The server is done with: it does not wait for a client that is slow to take the rest.
        self.let_go(r, &member.peer, connection, is_clean);
        drop(active);
        let relayed = relayed?;
        self.learn(r, member, true);
        if set.balancer.measures()
            && let Some(attempt) = r.attempts.last()
        {
            let ms = |time: Option<Duration>| time.unwrap_or_default().as_millis() as u64;
            member.state.answered(ms(attempt.header), ms(attempt.response));
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

/// Whether the server's answer is its head alone.
fn is_without_body(r: &Request) -> bool {
    matches!(
        r.upstream_head.body_for(r.message.is_head()),
        BodyLength::None | BodyLength::Length(0)
    )
}

/// Whether the client has asked for an upgrade at all: a configuration may send one on its own.
fn client_asks(r: &Request) -> bool {
    let mut fields = r.head.headers.find_all(Known::Upgrade);
    fields.any(|field| handshake::asked(r.text(field.value), &[]) != Asked::Nothing)
}

fn client_asks_for_websocket(r: &Request) -> bool {
    let mut fields = r.head.headers.find_all(Known::Upgrade);
    fields.any(|field| handshake::names_websocket(r.text(field.value)))
}

fn set_response_time(r: &mut Request, started: Duration) {
    if let Some(attempt) = r.attempts.last_mut() {
        attempt.response = Some(clock::steady().saturating_sub(started));
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
