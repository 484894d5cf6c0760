//! One thread, one core, and all it owns: the ring, the listeners, the connections, the upstream
//! pools, the logs. All of it is `Rc`: sharing with another shard does not compile.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use crate::channel::{self, LateTunnels, Life};
use crate::clock;
use crate::counters::{Counter, OwnCounters};
use crate::error_log::{Errno, Files, Level, Log};
use crate::http::fault;
use crate::http::listener::{End, Listener};
use crate::http::modules::access_log::{AccessLogs, LogWriters};
use crate::http::request::{Request, Requests};
use crate::http::server::{Http, LocationId, ResolverId, ServerId};
use crate::http::tunnel::engine::Tunnels;
use crate::http::tunnel::rebalance;
use crate::http::upstream::Upstreams;
use crate::http::upstream::outgoing::Relaying;
use crate::http1::encode::HttpDate;
use crate::io;
use crate::io::outbox;
use crate::io::runtime::{self, Ring};
use crate::io::select::{Signal, either};
use crate::io::timer::{self, Wait};
use crate::memory::Tide;
use crate::modules::Config;
use crate::os;
use crate::resolver::Resolver;

/// What a shard is started with.
pub struct Start {
    pub life: Life,
    pub ring: Ring,
    pub config: Arc<Config>,
    pub listening: Vec<channel::Listening>,
    pub files: Arc<Files>,
    pub counters: OwnCounters,
    /// Where it is to show that it runs.
    pub heartbeat: Option<Heartbeat>,
    pub inbox: channel::Inbox,
    pub events: channel::Events,
}

/// A shard's own state. Everything here is touched by its thread alone.
pub struct Shard {
    pub life: Life,
    pub hostname: String,
    pub counters: OwnCounters,
    pub access_logs: LogWriters,
    pub tunnels: Tunnels,
    /// For whoever begins to read a head.
    pub requests: Requests,
    pub relaying: Relaying,
    generation: RefCell<Rc<Generation>>,
    /// Those whose sockets are open: one that is to close is here until it has.
    listeners: RefCell<Vec<Rc<Listener>>>,
    pub files: Arc<Files>,
    duty: Cell<Duty>,
    /// Raised when a shard that is to end has nothing left.
    empty: Signal,
    date: RefCell<HttpDate>,
    room: Room,
    events: channel::Events,
    /// Raised when there is a new configuration.
    pub reloaded: Signal,
}

/// What a shard is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Duty {
    Serve,
    /// The configuration has no such shard any more. It finishes what it has; its sockets get no new
    /// connections, but what is on its way to them is served.
    Leave,
    /// The process ends.
    Quit(LateTunnels),
}

/// A configuration in force on this shard, and what the shard keeps for it. A request holds the
/// generation it began under; the last one to go frees it.
pub struct Generation {
    pub config: Arc<Config>,
    pub upstreams: Upstreams,
    /// By the index that settings name them with.
    pub resolvers: Vec<Rc<Resolver>>,
    /// By the index that settings name them with.
    pub access_logs: AccessLogs,
    /// The log of each distinct `error_log` setting, and which one a location uses.
    logs: Vec<Log>,
    log_of_location: Vec<u16>,
    main_log: Log,
}

impl Generation {
    pub fn new(
        config: Arc<Config>,
        files: &Files,
        access_logs: &LogWriters,
    ) -> Result<Self, crate::error_log::OpenError> {
        let main_log = Log::open(&config.process.error_log, files)?;
        let mut logs = Vec::new();
        let mut known: Vec<Vec<crate::error_log::Target>> = Vec::new();
        let mut log_of_location = Vec::new();
        if let Some(http) = &config.http {
            for location in &http.locations {
                let targets = location.settings.core.error_log.to_vec();
                let known_at = known.iter().position(|other| *other == targets);
                let index = known_at.unwrap_or(known.len());
                if known_at.is_none() {
                    logs.push(if targets.is_empty() {
                        main_log.clone()
                    } else {
                        Log::open(&targets, files)?
                    });
                    known.push(targets);
                }
                log_of_location.push(index as u16);
            }
        }
        let access_logs = access_logs.open(config.http.as_ref(), files)?;
        let upstreams = Upstreams::new(config.http.as_ref());
        let resolvers = config.http.iter().flat_map(|http| &http.resolvers).map(|servers| {
            let log = main_log.clone();
            Rc::new(Resolver::new(servers, move |level, text| log.say(level, text)))
        });
        let resolvers = resolvers.collect();
        Ok(Generation {
            config,
            upstreams,
            resolvers,
            access_logs,
            logs,
            log_of_location,
            main_log,
        })
    }

    /// The http configuration. Requests exist only where there is one.
    #[allow(
        clippy::unreachable,
        reason = "only an http block listens, and only listening brings requests"
    )]
    pub fn http(&self) -> &Http {
        match &self.config.http {
            Some(http) => http,
            None => unreachable!("a request without an http block"),
        }
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "ids are given out by the configuration that the list is made from"
    )]
    pub fn resolver(&self, id: ResolverId) -> &Rc<Resolver> {
        &self.resolvers[id.0 as usize]
    }

    /// The error log in force at a location.
    pub fn log(&self, location: LocationId) -> &Log {
        let index = self.log_of_location.get(location.0 as usize);
        index.and_then(|&index| self.logs.get(usize::from(index))).unwrap_or(&self.main_log)
    }

    pub fn main_log(&self) -> &Log {
        &self.main_log
    }

    pub fn server_level(&self, server: ServerId) -> LocationId {
        self.http().server(server).level
    }
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Generation")
    }
}

impl Shard {
    /// Takes back a request that has been reset.
    pub fn give_request(&self, r: Box<Request>) {
        self.requests.give(r, &self.generation.borrow());
    }

    /// The configuration for what begins now.
    pub fn generation(&self) -> Rc<Generation> {
        Rc::clone(&self.generation.borrow())
    }

    /// The shard finishes what is under way: a connection ends with its request.
    pub fn is_quitting(&self) -> bool {
        self.duty.get() != Duty::Serve
    }

    /// It does so because the process ends.
    pub fn is_ending(&self) -> bool {
        matches!(self.duty.get(), Duty::Quit(_))
    }

    /// Whether a tunnel that begins now is another process's.
    pub fn gives_late_tunnels(&self) -> bool {
        self.duty.get() == Duty::Quit(LateTunnels::Give)
    }

    /// Tells the master.
    pub fn tell(&self, event: channel::Event) {
        self.events.send(event);
    }

    /// Counts a connection that has been accepted elsewhere, and is a tunnel.
    pub fn guest(self: &Rc<Self>) -> ConnectionGuard {
        self.counters.connections.add(1);
        let guard = ConnectionGuard { shard: Rc::clone(self), stage: Cell::new(Stage::Waiting) };
        guard.enter(Stage::Writing);
        guard
    }

    pub fn with_http_date<T>(&self, use_it: impl FnOnce(&[u8]) -> T) -> T {
        use_it(self.date.borrow_mut().get(clock::seconds().unsigned_abs()))
    }

    /// Writes what the access logs hold back for lack of time (not what `buffer=` holds back).
    pub fn flush_logs(&self) {
        self.access_logs.flush_pending();
    }

    /// Whether another connection fits under `worker_connections`. When few places are left, those
    /// of connections that wait for a request are taken.
    pub fn has_room(&self) -> bool {
        let limit = *self.generation.borrow().config.events.worker_connections as u64;
        let open = self.counters.connections.get();
        let free = limit.saturating_sub(open);
        if free > limit / 16 {
            return true;
        }
        self.room.has_place(free, open.saturating_sub(limit), timer::now_ms(), || {
            let reused = timer::reuse(REUSED_MAX);
            if reused > 0 && self.room.tells(timer::now_ms()) {
                let text =
                    format_args!("{limit} worker_connections are not enough, reusing connections");
                self.log_main(Level::Warn, text);
            }
            reused
        })
    }

    /// Counts a connection until the guard is dropped.
    pub fn count_connection(self: &Rc<Self>) -> ConnectionGuard {
        self.counters.connections.add(1);
        self.counters.accepted.add(1);
        ConnectionGuard { shard: Rc::clone(self), stage: Cell::new(Stage::Waiting) }
    }

    #[cold]
    pub fn log_main(&self, level: Level, text: std::fmt::Arguments<'_>) {
        self.generation.borrow().main_log.say(level, text);
    }

    /// Starts a task; a panic in it is logged at alert and ends nothing else.
    pub fn spawn(self: &Rc<Self>, what: &'static str, task: impl Future<Output = ()> + 'static) {
        let shard = Rc::clone(self);
        runtime::spawn(task, move |text| shard.panicked(what, text));
    }

    /// Starts what the shard cannot do without: after a panic, which is logged, it begins anew.
    fn spawn_service<F>(
        self: &Rc<Self>,
        what: &'static str,
        make: impl Fn(Rc<Shard>) -> F + 'static,
    ) where
        F: Future<Output = ()> + 'static,
    {
        let (shard, told) = (Rc::clone(self), Rc::clone(self));
        runtime::spawn_service(
            move || make(Rc::clone(&shard)),
            move |text| told.panicked(what, text),
        );
    }

    /// Counts and logs a panic of no request.
    pub fn panicked(&self, what: &str, text: &str) {
        self.counters.panics.add(1);
        self.log_main(Level::Alert, format_args!("panic in a {what}: {text}"));
    }

    /// Takes the listening sockets of a configuration: known ones go on under the new settings, new
    /// ones start, those no longer there go on under the old ones, until they are to be closed.
    fn listen(self: &Rc<Self>, generation: &Rc<Generation>, listening: Vec<channel::Listening>) {
        for entry in listening {
            let goes_on = |l: &&Rc<Listener>| !l.is_closing() && l.has(&entry.socket);
            let known = self.listeners.borrow().iter().find(goes_on).cloned();
            match known {
                Some(listener) => listener.bind(generation, entry.address),
                None => match Listener::new(&entry.name, entry.socket, generation, entry.address) {
                    Ok(listener) => {
                        let listener = Rc::new(listener);
                        self.listeners.borrow_mut().push(Rc::clone(&listener));
                        self.spawn_service("listener", move |shard| {
                            Rc::clone(&listener).accept(shard)
                        });
                    }
                    Err(e) => self.log_main(
                        Level::Emerg,
                        format_args!("listening on {} failed: {e}", entry.name),
                    ),
                },
            }
        }
    }

    /// Closes the sockets that the configuration does not name, or all of a shard that leaves; `then`
    /// they are closed.
    fn close_leaving(self: &Rc<Self>, then: impl FnOnce() + 'static) {
        let generation = self.generation();
        let leaves = |l: &&Rc<Listener>| {
            !l.is_closing() && (self.is_quitting() || !l.is_bound_to(&generation))
        };
        let closing: Vec<_> = self.listeners.borrow().iter().filter(leaves).cloned().collect();
        for listener in &closing {
            listener.close(End::LetGo);
        }
        self.spawn("close", async move {
            for listener in closing {
                listener.gone().await;
            }
            then();
        });
    }

    fn close_listeners(&self, end: End) {
        for listener in self.listeners.borrow().iter() {
            listener.close(end);
        }
    }

    /// A listener has taken what it had to take, and its socket is closed.
    pub fn has_closed(&self, listener: &Rc<Listener>) {
        self.listeners.borrow_mut().retain(|other| !Rc::ptr_eq(other, listener));
        self.raise_if_empty();
    }

    /// Other shards, or another process, take them over.
    pub fn give_tunnels(self: &Rc<Self>) {
        self.spawn("hand-over", rebalance::give_all(Rc::clone(self)));
    }

    /// Lets the other shards have the upstream connections that have been idle for so long.
    pub fn lend(&self, idle: Duration) {
        let generation = self.generation();
        if let Some(http) = &generation.config.http {
            generation.upstreams.lend(http, self, idle);
        }
    }

    /// The configuration has one shard less.
    fn leave(self: &Rc<Self>) {
        self.duty.set(Duty::Leave);
        self.give_tunnels();
        self.lend(Duration::ZERO);
        timer::interrupt(Wait::Idle);
        self.raise_if_empty();
    }

    fn begin_quit(self: &Rc<Self>, end: End, late: LateTunnels) {
        self.duty.set(Duty::Quit(late));
        self.close_listeners(end);
        timer::interrupt(Wait::Idle);
        self.generation().upstreams.close_idle();
        match late {
            LateTunnels::Close => self.tunnels.begin_quit(),
            LateTunnels::Give => self.give_tunnels(),
        }
        self.raise_if_empty();
    }

    /// Whether the shard is to end and has nothing left: no connection, and no listener that may still
    /// take one out of its queue.
    fn is_empty(&self) -> bool {
        self.is_quitting()
            && self.counters.connections.get() == 0
            && self.listeners.borrow().is_empty()
    }

    fn raise_if_empty(&self) {
        if self.is_empty() {
            self.empty.raise();
        }
    }

    /// Waits until [`Shard::is_empty`]: also where tunnels have come since that was said.
    async fn emptied(&self) {
        while !self.is_empty() {
            self.empty.wait().await;
        }
    }

    /// The shard has failed: others have its listening sockets, and whoever is connected is told so by
    /// the end of the connection, with a line in the access log.
    async fn fail(self: &Rc<Self>) {
        /// What has not ended then is dropped.
        const PATIENCE: Duration = Duration::from_secs(1);
        self.duty.set(Duty::Quit(LateTunnels::Close));
        self.close_listeners(End::Abandon);
        timer::interrupt(Wait::Busy);
        self.tunnels.close_all(self);
        either(self.emptied(), runtime::pause(PATIENCE)).await;
    }
}

/// Connections ended at a time to make room.
const REUSED_MAX: usize = 32;

/// What a shard that runs out of `worker_connections` does about it.
#[derive(Debug, Default)]
struct Room {
    /// Connections that were told to end and, until their tasks run, are still counted.
    leaving: Cell<usize>,
    /// When it may be looked for connections to end again: that takes a look at all of them.
    looks_at_ms: Cell<u64>,
    /// The last look has found nothing.
    none_wait: Cell<bool>,
    tells_at_ms: Cell<u64>,
}

impl Room {
    /// Between two looks that are no need yet, or of which the first has found nothing.
    const LOOK_MS: u64 = 10;

    /// For one more connection, with so many places free, or connections over the limit.
    fn has_place(&self, free: u64, over: u64, now_ms: u64, reuse: impl FnOnce() -> usize) -> bool {
        if free > 0 {
            self.leaving.set(0);
        } else if self.leaving.get() > 0 && over < REUSED_MAX as u64 {
            self.leaving.set(self.leaving.get().saturating_sub(1));
            return true;
        }
        let is_soon = now_ms < self.looks_at_ms.get() && (free > 0 || self.none_wait.get());
        if is_soon || over >= REUSED_MAX as u64 {
            return free > 0;
        }
        let reused = reuse();
        self.looks_at_ms.set(now_ms.saturating_add(Self::LOOK_MS));
        self.none_wait.set(reused == 0);
        if free == 0 {
            self.leaving.set(reused.saturating_sub(1));
        }
        free > 0 || reused > 0
    }

    /// At most once a second.
    fn tells(&self, now_ms: u64) -> bool {
        let tells = now_ms >= self.tells_at_ms.get();
        if tells {
            self.tells_at_ms.set(now_ms.saturating_add(1000));
        }
        tells
    }
}

/// Counts down when a connection is gone.
pub struct ConnectionGuard {
    shard: Rc<Shard>,
    stage: Cell<Stage>,
}

/// What a connection is counted as besides being open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Waiting,
    Reading,
    Writing,
}

impl ConnectionGuard {
    pub fn enter(&self, stage: Stage) {
        let counter = |stage| match stage {
            Stage::Waiting => None,
            Stage::Reading => Some(&self.shard.counters.reading),
            Stage::Writing => Some(&self.shard.counters.writing),
        };
        if let Some(counter) = counter(self.stage.replace(stage)) {
            counter.sub(1);
        }
        if let Some(counter) = counter(stage) {
            counter.add(1);
        }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.enter(Stage::Waiting);
        self.shard.counters.connections.sub(1);
        self.shard.raise_if_empty();
    }
}

/// A shard's whole life, on its own thread. When this returns, nothing is left of it.
pub fn run(start: Start) -> Result<(), String> {
    let kept = OnceCell::new();
    let ended = match start.ring.run(live(start, &kept)) {
        Ok(ended) => ended,
        Err(e) => Err(format!("the ring could not be set up: {e}")),
    };
    debug_assert_eq!(kept.get().map_or(0, Weak::strong_count), 0, "somebody holds the shard");
    ended
}

async fn live(start: Start, kept: &OnceCell<Weak<Shard>>) -> Result<(), String> {
    let Start { life, config, listening, files, counters, heartbeat, inbox, events, ring, .. } =
        start;
    let access_logs = LogWriters::default();
    let generation = Generation::new(config, &files, &access_logs).map_err(|e| e.to_string())?;
    let generation = Rc::new(generation);
    let shard = Rc::new(Shard {
        hostname: crate::os::hostname(),
        life,
        counters,
        events: events.clone(),
        reloaded: Signal::default(),
        access_logs,
        tunnels: Tunnels::new(ring).map_err(|e| e.to_string())?,
        relaying: Relaying::default(),
        requests: Requests::default(),
        generation: RefCell::new(Rc::clone(&generation)),
        listeners: RefCell::default(),
        files,
        duty: Cell::new(Duty::Serve),
        empty: Signal::default(),
        date: RefCell::default(),
        room: Room::default(),
    });
    let _ = kept.set(Rc::downgrade(&shard));
    let mut inbox = inbox.open().map_err(|e| e.to_string())?;
    let serves = async {
        shard.spawn_service("clock", |_| timer::run_clock());
        shard.spawn_service("outbox", move |shard| {
            outbox::run(ring, move |e| {
                let errno = Errno::of(&e);
                let text = format_args!("io_uring failed, sends are made one by one ({errno})");
                shard.log_main(Level::Warn, text);
            })
        });
        shard.spawn_service("tunnel engine", Tunnels::run);
        shard.spawn_service("rebalancer", rebalance::run);
        shard.spawn_service("log writer", LogWriters::write_behind);
        shard.spawn_service("upstream keeper", Upstreams::keep);
        shard.spawn_service("memory keeper", keep_memory);
        if let Some(heartbeat) = heartbeat {
            heartbeat.beat();
            shard.spawn_service("heartbeat", move |_| heartbeat.clone().go_on());
        }
        shard.listen(&generation, listening);
        drop(generation);
        events.send(channel::Event::Ready { life });
        let obeys = either(obey(&shard, &mut inbox, &events, life), fault::in_shard());
        either(obeys, shard.emptied()).await;
    };
    let served = runtime::contain(shard.tunnels.beside(&shard, serves)).await;
    if served.is_err() {
        shard.counters.panics.add(1);
        // A second panic changes nothing: what is left is dropped.
        let _ = runtime::contain(shard.fail()).await;
    }
    shard.listeners.borrow_mut().clear();
    shard.tunnels.abandon(&shard);
    shard.access_logs.flush_all();
    served.map_err(|text| format!("panic: {text}"))
}

/// Does what the master says, until that is to end.
async fn obey(
    shard: &Rc<Shard>,
    inbox: &mut channel::OpenInbox,
    events: &channel::Events,
    life: Life,
) {
    loop {
        match inbox.next().await {
            channel::Command::Reload { config, listening } => {
                match Generation::new(config, &shard.files, &shard.access_logs) {
                    Ok(next) => {
                        let next = Rc::new(next);
                        let old = shard.generation();
                        next.upstreams.take_over(
                            next.config.http.as_ref(),
                            &old.upstreams,
                            old.config.http.as_ref(),
                        );
                        shard.generation.replace(Rc::clone(&next));
                        shard.requests.clear();
                        Upstreams::look_up_due(shard, &next);
                        shard.listen(&next, listening);
                        shard.reloaded.raise();
                    }
                    Err(e) => shard.log_main(Level::Emerg, format_args!("{e}")),
                }
                events.send(channel::Event::Reloaded { life });
            }
            channel::Command::Leave => shard.leave(),
            channel::Command::CloseLeaving => {
                let events = events.clone();
                shard.close_leaving(move || events.send(channel::Event::Reloaded { life }));
            }
            channel::Command::TakeTunnels(parcels) => shard.tunnels.take(shard, parcels),
            channel::Command::GiveTunnels => shard.give_tunnels(),
            channel::Command::FlushLogs => shard.access_logs.flush_all(),
            channel::Command::Quit { end, late } => shard.begin_quit(end, late),
            channel::Command::CloseAll => {
                timer::interrupt(Wait::Busy);
                shard.tunnels.close_all(shard);
            }
            channel::Command::Exit => return,
        }
    }
}

/// The shard's task that gives memory back behind the height of a load: what is kept for reuse, and
/// what the allocator holds.
async fn keep_memory(shard: Rc<Shard>) {
    /// How often it is looked how many connections there are.
    const PERIOD: Duration = Duration::from_secs(1);
    let mut tide = Tide::default();
    loop {
        if tide.has_fallen(shard.counters.connections.get(), timer::now_ms()) {
            shard.requests.clear();
            io::release_kept();
            os::release_memory();
        }
        timer::sleep_through(PERIOD).await;
    }
}

/// Shows that a shard's clock goes and that its tasks get their turns. Nothing of it is there without
/// a watchdog.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    every: Duration,
    /// When it was last, in milliseconds of [`timer::now_ms`].
    last: Arc<Counter>,
}

impl Heartbeat {
    pub fn new(every: Duration) -> Self {
        Heartbeat { every, last: Arc::default() }
    }

    fn beat(&self) {
        self.last.set(timer::now_ms());
    }

    async fn go_on(self) {
        loop {
            self.beat();
            timer::sleep_through(self.every).await;
        }
    }

    /// Whether it has stopped: as seen by the master.
    pub fn is_silent_for(&self, limit: Duration) -> bool {
        u128::from(timer::now_ms().saturating_sub(self.last.get())) > limit.as_millis()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_by_ending_what_waits() {
        let room = Room::default();
        let never = || -> usize { panic!("nothing is to be looked for") };
        // Few places: some are made before they are needed, but not at each connection.
        assert!(room.has_place(1, 0, 100, || 3));
        assert!(room.has_place(1, 0, 105, never));
        // None: those that leave make room for as many.
        assert!(room.has_place(0, 0, 105, || 2));
        assert!(room.has_place(0, 1, 105, never));
        assert!(room.has_place(0, 2, 105, || 1));
        // Nobody waits: that is not looked up again at once.
        assert!(!room.has_place(0, 0, 111, || 0));
        assert!(!room.has_place(0, 0, 115, never));
        assert!(room.has_place(0, 0, 121, || 1));
        // Whoever was to leave and did not is not made up for without end.
        assert!(!room.has_place(0, 32, 131, never));
    }

    #[test]
    fn the_warning_comes_once_a_second() {
        let room = Room::default();
        assert_eq!(
            [5, 6, 1004, 1005, 1006].map(|now| room.tells(now)),
            [true, false, false, true, false]
        );
    }
}
