//! The prober: one thread of the process that asks the servers of checked groups whether they are
//! well (`health_check`), and tells all shards through the groups' zones.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::zone::SharedPeer;
use crate::error_log::{Errno, Files, Level, Log, OpenError};
use crate::http::modules::exchange::{self, Bind, BindAddress};
use crate::http::modules::health_check::{BODY_MAX, Check, Initial, Plan, Stage};
use crate::http::modules::upstream::Upstream;
use crate::http::server::{Http, UpstreamId};
use crate::io::client::{Client, ClientError};
use crate::io::runtime::{self, Ring};
use crate::io::stream::{Address, Failure, NewSocket, Transparent};
use crate::io::timer::{self, Timer, Wait};
use crate::io::{Buffer, Stream};
use crate::modules::Config;

/// Probes of one group that are under way at a time.
const PROBES_MAX: usize = 64;
/// How often a group with names is looked at for addresses that have come or gone.
const PERIOD: Duration = Duration::from_secs(1);

/// What the prober is started with.
pub struct Start {
    pub ring: Ring,
    pub config: Arc<Config>,
    pub files: Arc<Files>,
    /// It ends when the other end of this is closed.
    pub bell: UnixStream,
}

/// Whether there is anything to ask.
pub fn is_needed(config: &Config) -> bool {
    config.http.as_ref().is_some_and(|http| !http.health_checks.is_empty())
}

/// What servers are under a configuration that begins, whoever has checked them before.
pub fn begin(http: &Http) {
    for (at, upstream) in http.upstreams.iter().enumerate() {
        let checks = || checks_of(http, UpstreamId(at as u32)).map(|(_, check)| check);
        if checks().next().is_none() {
            upstream.zone.set_all_unhealthy(false);
        } else if checks().any(|check| check.plan.initial == Initial::Checking) {
            upstream.zone.set_all_unhealthy(true);
        }
    }
}

fn checks_of(http: &Http, upstream: UpstreamId) -> impl Iterator<Item = (usize, &Check)> {
    http.health_checks.iter().enumerate().filter(move |(_, check)| check.upstream == upstream)
}

/// The prober's whole life, on its own thread.
pub fn run(start: Start) {
    let Start { ring, config, files, bell } = start;
    let log = Log::open(&config.process.error_log, &files);
    let ended = match ring.run(runtime::contain(live(config, &files, bell))) {
        Ok(Ok(Ok(()))) => return,
        Ok(Ok(Err(e))) => e,
        Ok(Err(text)) => format!("panic: {text}"),
        Err(e) => format!("the ring could not be set up: {e}"),
    };
    if let Ok(log) = log {
        log.say(Level::Alert, format_args!("servers are not checked any more: {ended}"));
    }
}

async fn live(config: Arc<Config>, files: &Files, bell: UnixStream) -> Result<(), String> {
    let Some(http) = &config.http else { return Ok(()) };
    runtime::spawn_service(timer::run_clock, |_| {});
    for (at, _) in http.upstreams.iter().enumerate() {
        let upstream = UpstreamId(at as u32);
        if checks_of(http, upstream).next().is_some() {
            let group = Group::new(&config, http, upstream, files).map_err(|e| e.to_string())?;
            Group::spawn(&Rc::new(group), Group::keep);
        }
    }
    let bell = Stream::new(bell.into()).map_err(|e| e.to_string())?;
    // Nothing is ever sent.
    let _ = bell.recv_unlimited(Buffer::with_capacity(1)).await;
    Ok(())
}

/// A group that is checked.
struct Group {
    config: Arc<Config>,
    upstream: UpstreamId,
    /// Its checks, by their number in the configuration, and their logs.
    checks: Vec<(usize, Log)>,
    /// By a check's place in `checks`, and by address.
    health: RefCell<HashMap<(usize, Arc<str>), Health>>,
    slots: Slots,
}

/// What one check knows of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Health {
    state: State,
    /// In a row.
    fails: u32,
    passes: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Healthy,
    Unhealthy,
    /// Not asked yet, and not to be used before it is.
    Checking,
}

impl Health {
    fn new(state: State) -> Self {
        Health { state, fails: 0, passes: 0 }
    }

    /// Takes in a probe's result; tells whether that changes the state, apart from `Checking`.
    fn record(&mut self, passed: bool, plan: &Plan) -> bool {
        let (count, limit, next) = if passed {
            self.fails = 0;
            (&mut self.passes, plan.passes, State::Healthy)
        } else {
            self.passes = 0;
            (&mut self.fails, plan.fails, State::Unhealthy)
        };
        *count = count.saturating_add(1);
        // The first answer decides where nothing is known.
        let is_news = self.state != next && (*count >= limit || self.state == State::Checking);
        if is_news {
            self.state = next;
        }
        is_news
    }
}

impl Group {
    fn new(
        config: &Arc<Config>,
        http: &Http,
        upstream: UpstreamId,
        files: &Files,
    ) -> Result<Self, OpenError> {
        let log = |check: &Check| {
            let targets = &http.location(check.location).settings.core.error_log;
            let targets = if targets.is_empty() { &config.process.error_log } else { targets };
            Log::open(targets, files)
        };
        let checks = checks_of(http, upstream).map(|(at, check)| Ok((at, log(check)?)));
        Ok(Group {
            config: Arc::clone(config),
            upstream,
            checks: checks.collect::<Result<_, OpenError>>()?,
            health: RefCell::default(),
            slots: Slots { free: Cell::new(PROBES_MAX), waiting: RefCell::default() },
        })
    }

    #[allow(clippy::unreachable, reason = "`live` makes groups only of an http block's upstreams")]
    fn http(&self) -> &Http {
        match &self.config.http {
            Some(http) => http,
            None => unreachable!("a group without an http block"),
        }
    }

    fn upstream(&self) -> &Upstream {
        self.http().upstream(self.upstream)
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "`checks` tells places in the list of this configuration, and `at` counts it"
    )]
    fn check(&self, at: usize) -> &Check {
        &self.http().health_checks[self.checks[at].0]
    }

    #[expect(clippy::indexing_slicing, reason = "`at` counts these checks")]
    fn log(&self, at: usize) -> &Log {
        &self.checks[at].1
    }

    fn spawn<F: Future<Output = ()> + 'static>(this: &Rc<Self>, task: impl FnOnce(Rc<Self>) -> F) {
        let group = Rc::clone(this);
        runtime::spawn(task(Rc::clone(this)), move |text| {
            group.log(0).say(Level::Alert, format_args!("panic in health checks: {text}"));
        });
    }

    /// Starts to watch what is there, and what comes.
    async fn keep(self: Rc<Self>) {
        loop {
            self.watch_new();
            if self.upstream().names.is_empty() {
                return;
            }
            timer::sleep(PERIOD).await;
        }
    }

    fn watch_new(self: &Rc<Self>) {
        let addresses = self.addresses();
        let count = addresses.len() as u32;
        for (number, (address, is_unhealthy)) in (1..).zip(addresses) {
            for at in 0..self.checks.len() {
                let key = (at, Arc::clone(&address));
                if self.health.borrow().contains_key(&key) {
                    continue;
                }
                let health = Health::new(self.first_state(at, is_unhealthy));
                self.health.borrow_mut().insert(key, health);
                // All are asked at once, and from then on one after the other.
                let intervals = self.check(at).plan.interval.saturating_mul(number);
                let second = intervals.checked_div(count).unwrap_or_default();
                let address = Arc::clone(&address);
                Group::spawn(self, move |group| group.watch(at, address, second));
            }
            // The zone may know it anew.
            self.tell(&address);
        }
    }

    fn first_state(&self, at: usize, is_unhealthy: bool) -> State {
        let is_mandatory = |at: usize| self.check(at).plan.initial != Initial::Healthy;
        match is_unhealthy {
            false => State::Healthy,
            true if is_mandatory(at) => State::Checking,
            // Because of another check, which may not have been made.
            true if (0..self.checks.len()).any(is_mandatory) => State::Healthy,
            true => State::Unhealthy,
        }
    }

    /// The servers that requests may be passed to, each address once, and whether they are kept from
    /// them.
    fn addresses(&self) -> Vec<(Arc<str>, bool)> {
        let mut addresses: Vec<(Arc<str>, bool)> = Vec::new();
        for (address, peer) in self.upstream().zone.peers() {
            if !self.is_used(&address, &peer) {
                continue;
            }
            match addresses.iter_mut().find(|(known, _)| *known == address) {
                Some((_, is_unhealthy)) => *is_unhealthy |= peer.is_unhealthy(),
                None => addresses.push((address, peer.is_unhealthy())),
            }
        }
        addresses
    }

    fn is_used(&self, address: &str, peer: &Arc<SharedPeer>) -> bool {
        let mut named =
            self.upstream().peers.iter().filter(|peer| *peer.name == *address).peekable();
        if named.peek().is_some() {
            return named.any(|peer| !peer.down);
        }
        // Found by a shard that still has it: the zone and this copy are two.
        Arc::strong_count(peer) > 2
    }

    /// Asks one server time and again, as long as it is there.
    async fn watch(self: Rc<Self>, at: usize, address: Arc<str>, second: Duration) {
        let check = self.check(at);
        let settings = &self.http().location(check.location).settings.proxy.exchange;
        let Some(target) = target(&address, check.plan.port) else { return };
        let mut period = second;
        let mut wait = Duration::ZERO;
        loop {
            timer::sleep(wait.saturating_add(jitter(&check.plan))).await;
            if !self.has(&address) {
                self.health.borrow_mut().remove(&(at, address));
                return;
            }
            let slot = self.slots.take().await;
            let began = timer::now_precise();
            let stage = Cell::new(Stage::Connecting);
            let result = runtime::contain(probe(check, settings, &target, &stage)).await;
            let result = result.unwrap_or_else(|text| Err(Cause::Panic(text)));
            drop(slot);
            self.record(at, &address, stage.get(), &result);
            wait = period.saturating_sub(timer::now_precise().saturating_sub(began));
            period = check.plan.interval;
        }
    }

    fn has(&self, address: &str) -> bool {
        let peers = self.upstream().zone.peers();
        peers.iter().any(|(known, peer)| **known == *address && self.is_used(known, peer))
    }

    fn record(&self, at: usize, address: &Arc<str>, stage: Stage, result: &Result<(), Cause>) {
        let (check, log) = (self.check(at), self.log(at));
        let of = Of { check, upstream: &self.upstream().name, address };
        if let Err(cause) = result {
            log.say(cause.level(), format_args!("{cause} while {stage}, {of}"));
            if matches!(cause, Cause::Socket { .. }) {
                return;
            }
        }
        let passed = result.is_ok();
        let is_news = match self.health.borrow_mut().get_mut(&(at, Arc::clone(address))) {
            Some(health) => health.record(passed, &check.plan),
            None => false,
        };
        self.tell(address);
        match (is_news, passed) {
            (false, _) => {}
            (true, true) => {
                log.say(Level::Notice, format_args!("peer is healthy while {stage}, {of}"));
            }
            (true, false) => {
                log.say(Level::Warn, format_args!("peer is unhealthy while {stage}, {of}"));
            }
        }
    }

    /// Tells the shards what all checks together say of an address.
    fn tell(&self, address: &Arc<str>) {
        let health = self.health.borrow();
        let is_ill = |at| {
            let health = health.get(&(at, Arc::clone(address)));
            health.is_some_and(|health| health.state != State::Healthy)
        };
        let is_unhealthy = (0..self.checks.len()).any(is_ill);
        for (known, peer) in self.upstream().zone.peers() {
            if known == *address {
                peer.set_unhealthy(is_unhealthy);
            }
        }
    }
}

/// `health check "m" of peer 127.0.0.1:81 in upstream "u", port 82`
struct Of<'a> {
    check: &'a Check,
    upstream: &'a str,
    address: &'a str,
}

impl fmt::Display for Of<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Of { check, upstream, address } = self;
        let name = &check.tests.name;
        write!(f, "health check \"{name}\" of peer {address} in upstream \"{upstream}\"")?;
        check.plan.port.map_or(Ok(()), |port| write!(f, ", port {port}"))
    }
}

/// Where a probe goes: the server's address, maybe at another port.
fn target(address: &str, port: Option<u16>) -> Option<Address> {
    if let Some(path) = address.strip_prefix("unix:") {
        return Some(Address::Unix(path.into()));
    }
    let mut address: SocketAddr = address.parse().ok()?;
    address.set_port(port.unwrap_or(address.port()));
    Some(Address::Inet(address))
}

/// From nothing to the plan's `jitter`.
fn jitter(plan: &Plan) -> Duration {
    if plan.jitter.is_zero() {
        return Duration::ZERO;
    }
    let drawn = u128::from_ne_bytes(crate::os::random_bytes()) as u32;
    plan.jitter.mul_f64(f64::from(drawn) / f64::from(u32::MAX))
}

// One probe.

/// Why a server did not pass.
#[derive(Debug, thiserror::Error)]
enum Cause {
    /// Of this process, which has no descriptor left for the probe: it tells nothing of the server.
    #[error("socket(){} failed ({})", to(.address), Errno::of(source))]
    Socket { address: Address, source: io::Error },
    #[error("{call}{} failed ({})", to(.address), Errno::of(source))]
    Connect { call: &'static str, address: Address, source: io::Error },
    #[error("setsockopt({}) failed ({})", .0.name, Errno::of(&.0.error))]
    Transparent(Transparent),
    #[error("send() failed ({})", Errno::of(.0))]
    Send(io::Error),
    #[error("recv() failed ({})", Errno::of(.0))]
    Receive(io::Error),
    #[error("upstream {0}")]
    Answer(ClientError),
    #[error("upstream timed out (110: Connection timed out)")]
    TimedOut,
    #[error("the response with status {status} does not pass")]
    Unfit { status: u16 },
    #[error("panic in a health check: {0}")]
    Panic(String),
}

/// A unix socket is named, an address not: it stands at the end of the line.
fn to(address: &Address) -> String {
    match address {
        Address::Inet(_) => String::new(),
        Address::Unix(path) => format!(" to unix:{}", path.display()),
    }
}

impl Cause {
    fn level(&self) -> Level {
        match self {
            Cause::Panic(_) | Cause::Socket { .. } => Level::Alert,
            Cause::Unfit { .. } => Level::Info,
            _ => Level::Error,
        }
    }
}

impl From<ClientError> for Cause {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Io(error) => Cause::Receive(error),
            other => Cause::Answer(other),
        }
    }
}

/// Asks a server once, with a new connection: `proxy_connect_timeout` for that, and
/// `proxy_read_timeout` for everything that follows.
async fn probe(
    check: &Check,
    settings: &exchange::Settings,
    address: &Address,
    stage: &Cell<Stage>,
) -> Result<(), Cause> {
    let failed = |call| move |source| Cause::Connect { call, address: address.clone(), source };
    let socket = NewSocket::to(address)
        .map_err(|source| Cause::Socket { address: address.clone(), source })?;
    // One that depends on the request is not known here.
    if let Some(Bind { address: BindAddress::Fixed { address, .. }, is_transparent }) =
        &*settings.bind
    {
        if *is_transparent {
            socket.set_transparent().map_err(Cause::Transparent)?;
        }
        socket.bind(*address).map_err(failed("bind()"))?;
    }
    let stream = match socket.connect(*settings.connect_timeout).await {
        Ok(stream) => stream,
        Err(Failure::Io(error)) => return Err(failed("connect()")(error)),
        Err(Failure::TimedOut | Failure::Interrupted) => return Err(Cause::TimedOut),
    };
    let timer = Timer::new();
    let asked = timer.within(*settings.read_timeout, Wait::Busy, ask(check, stream, stage)).await;
    asked.unwrap_or(Err(Cause::TimedOut))
}

async fn ask(check: &Check, stream: Stream, stage: &Cell<Stage>) -> Result<(), Cause> {
    stage.set(Stage::Sending);
    let mut client = Client::new(stream).map_err(Cause::Send)?;
    client.send(&check.request).await.map_err(Cause::Send)?;
    stage.set(Stage::ReadingHead);
    let head = client.head().await?;
    let unfit = Cause::Unfit { status: head.status };
    match check.tests.head_passes(head.status, &head.headers) {
        Ok(passed) => stage.set(passed),
        Err(failed) => {
            stage.set(failed);
            return Err(unfit);
        }
    }
    if !check.tests.looks_at_body() {
        return Ok(());
    }
    stage.set(Stage::CheckingBody);
    let body = client.body(&head, BODY_MAX).await?;
    if check.tests.body_passes(&body) { Ok(()) } else { Err(unfit) }
}

/// How many probes may still begin.
struct Slots {
    free: Cell<usize>,
    waiting: RefCell<VecDeque<Waker>>,
}

/// Given back when dropped.
struct Slot<'a>(&'a Slots);

impl Slots {
    async fn take(&self) -> Slot<'_> {
        std::future::poll_fn(|cx| {
            if let Some(left) = self.free.get().checked_sub(1) {
                self.free.set(left);
                return Poll::Ready(Slot(self));
            }
            self.waiting.borrow_mut().push_back(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.free.set(self.0.free.get().saturating_add(1));
        if let Some(next) = self.0.waiting.borrow_mut().pop_front() {
            next.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use super::*;

    fn plan(fails: u32, passes: u32) -> Plan {
        Plan {
            interval: Duration::from_secs(5),
            jitter: Duration::ZERO,
            fails,
            passes,
            port: None,
            initial: Initial::Healthy,
        }
    }

    /// What a row of results does: `+` and `-` as they change the state, `.` where they do not.
    fn course(first: State, results: &str, plan: &Plan) -> String {
        let mut health = Health::new(first);
        let course = results.chars().map(|result| {
            let is_news = health.record(result == '+', plan);
            assert!(!is_news || (health.state == State::Healthy) == (result == '+'));
            if is_news { result } else { '.' }
        });
        course.collect()
    }

    #[test]
    fn failures_and_passes_count_in_a_row() {
        assert_eq!(course(State::Healthy, "+--+", &plan(1, 1)), ".-.+");
        assert_eq!(course(State::Healthy, "--+---", &plan(3, 1)), ".....-");
        assert_eq!(course(State::Healthy, "-+-+++", &plan(1, 2)), "-...+.");
        assert_eq!(course(State::Unhealthy, "++", &plan(1, 2)), ".+");
    }

    #[test]
    fn the_first_answer_decides_where_nothing_is_known() {
        assert_eq!(course(State::Checking, "+-", &plan(3, 3)), "+.");
        assert_eq!(course(State::Checking, "-+++", &plan(3, 3)), "-..+");
    }

    #[test]
    fn targets() {
        let shown = |address, port| target(address, port).map(|target| format!("{target:?}"));
        assert_eq!(shown("127.0.0.1:81", None), Some("Inet(127.0.0.1:81)".to_owned()));
        assert_eq!(shown("[::1]:81", Some(82)), Some("Inet([::1]:82)".to_owned()));
        assert_eq!(shown("unix:/a:b", Some(82)), Some("Unix(\"/a:b\")".to_owned()));
        assert_eq!(shown("a:81", None), None);
    }

    #[test]
    fn jitter_is_a_part_of_what_is_allowed() {
        let allowed = Duration::from_millis(100);
        let plan = Plan { jitter: allowed, ..plan(1, 1) };
        let drawn: Vec<_> = (0..50).map(|_| jitter(&plan)).collect();
        assert!(drawn.iter().all(|drawn| *drawn <= allowed));
        assert!(drawn.iter().any(|other| *other != drawn[0]));
    }

    #[test]
    fn no_more_probes_than_slots() {
        let slots = Slots { free: Cell::new(1), waiting: RefCell::default() };
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(first) = pin!(slots.take()).poll(&mut cx) else { panic!() };
        let mut second = pin!(slots.take());
        assert!(second.as_mut().poll(&mut cx).is_pending());
        drop(first);
        assert!(second.as_mut().poll(&mut cx).is_ready());
    }
}
