//! One thread, one core, and all it owns: the ring, the listeners, the connections, the upstream
//! pools, the logs. All of it is `Rc`: sharing with another shard does not compile.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use crate::channel;
use crate::clock;
use crate::counters::{Counters, OwnCounters};
use crate::error_log::{Files, Level, Log};
use crate::http::listener::Listener;
use crate::http::modules::access_log::{AccessLogs, LogWriters};
use crate::http::request::{Request, Requests};
use crate::http::server::{Http, LocationId, ResolverId, ServerId};
use crate::http::tunnel::engine::Tunnels;
use crate::http::upstream::Upstreams;
use crate::http1::encode::HttpDate;
use crate::io::runtime::{self, Ring};
use crate::io::select::Signal;
use crate::io::timer::{self, Wait};
use crate::modules::Config;
use crate::resolver::Resolver;

/// What a shard is started with.
pub struct Start {
    pub id: usize,
    pub shards: usize,
    pub ring: Ring,
    pub config: Arc<Config>,
    pub listening: Vec<channel::Listening>,
    pub files: Arc<Files>,
    /// Those of every shard.
    pub counters: Arc<[Counters]>,
    pub inbox: channel::Inbox,
    pub events: channel::Events,
}

/// A shard's own state. Everything here is touched by its thread alone.
pub struct Shard {
    pub id: usize,
    pub hostname: String,
    pub counters: OwnCounters,
    pub access_logs: LogWriters,
    pub tunnels: Tunnels,
    /// For whoever begins to read a head.
    pub requests: Requests,
    generation: RefCell<Rc<Generation>>,
    listeners: RefCell<Vec<Rc<Listener>>>,
    files: Arc<Files>,
    quitting: Cell<bool>,
    /// Raised when the last connection of a quitting shard is gone.
    empty: Signal,
    date: RefCell<HttpDate>,
    serial: Cell<u64>,
    serial_step: u64,
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
    pub fn http(&self) -> &Http {
        match &self.config.http {
            Some(http) => http,
            None => unreachable!("a request without an http block"),
        }
    }

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

    pub fn is_quitting(&self) -> bool {
        self.quitting.get()
    }

    /// Connection numbers are unique in the process: shard `n` of `N` counts n+1, n+1+N, …
    pub fn next_serial(&self) -> u64 {
        let serial = self.serial.get();
        self.serial.set(serial + self.serial_step);
        serial
    }

    pub fn with_http_date<T>(&self, use_it: impl FnOnce(&[u8]) -> T) -> T {
        use_it(self.date.borrow_mut().get(clock::now().as_secs()))
    }

    /// Writes what the access logs hold back for lack of time (not what `buffer=` holds back).
    pub fn flush_logs(&self) {
        self.access_logs.flush_pending();
    }

    /// Whether another connection fits under `worker_connections`.
    pub fn has_room(&self) -> bool {
        let limit = *self.generation.borrow().config.events.worker_connections;
        self.counters.connections.get() < limit as u64
    }

    /// Counts a connection until the guard is dropped.
    pub fn count_connection(self: &Rc<Self>) -> ConnectionGuard {
        self.counters.connections.add(1);
        self.counters.accepted.add(1);
        ConnectionGuard { shard: Rc::clone(self), stage: Cell::new(Stage::Waiting) }
    }

    pub fn log_main(&self, level: Level, text: std::fmt::Arguments<'_>) {
        self.generation.borrow().main_log.say(level, text);
    }

    /// Starts a task; a panic in it is logged at alert and ends nothing else.
    pub fn spawn(self: &Rc<Self>, what: &'static str, task: impl Future<Output = ()> + 'static) {
        let shard = Rc::clone(self);
        runtime::spawn(task, move |text| {
            shard.counters.panics.add(1);
            shard.log_main(Level::Alert, format_args!("panic in a {what}: {text}"));
        });
    }

    /// Takes the listening sockets of a configuration: known ones go on under the new settings, new
    /// ones start, those no longer there stop.
    fn listen(self: &Rc<Self>, generation: &Rc<Generation>, listening: Vec<channel::Listening>) {
        for entry in listening {
            let known = self.listeners.borrow().iter().find(|l| l.name() == &*entry.name).cloned();
            match known {
                Some(listener) => listener.bind(generation, entry.address),
                None => match Listener::new(&entry.name, entry.socket, generation, entry.address) {
                    Ok(listener) => {
                        let listener = Rc::new(listener);
                        self.listeners.borrow_mut().push(Rc::clone(&listener));
                        self.spawn("listener", listener.accept(Rc::clone(self)));
                    }
                    Err(e) => self.log_main(
                        Level::Emerg,
                        format_args!("listening on {} failed: {e}", entry.name),
                    ),
                },
            }
        }
        self.listeners.borrow_mut().retain(|listener| {
            let stays = listener.is_bound_to(generation);
            if !stays {
                listener.close();
            }
            stays
        });
    }

    fn begin_quit(self: &Rc<Self>) {
        self.quitting.set(true);
        for listener in self.listeners.borrow_mut().drain(..) {
            listener.close();
        }
        timer::interrupt(Wait::Idle);
        self.tunnels.begin_quit();
        // A task's turn comes after the listeners': they take what is in their queues first.
        let shard = Rc::clone(self);
        self.spawn("quit", async move { shard.raise_if_empty() });
    }

    fn raise_if_empty(&self) {
        if self.quitting.get() && self.counters.connections.get() == 0 {
            self.empty.raise();
        }
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

/// A shard's whole life, on its own thread.
pub fn run(start: Start) {
    let (id, events) = (start.id, start.events.clone());
    let ended = match start.ring.run(live(start)) {
        Ok(ended) => ended,
        Err(e) => Err(format!("the ring could not be set up: {e}")),
    };
    events.send(channel::Event::Ended { shard: id, failure: ended.err() });
}

async fn live(start: Start) -> Result<(), String> {
    let Start { id, shards, config, listening, files, counters, inbox, events, .. } = start;
    let access_logs = LogWriters::default();
    let generation = Generation::new(config, &files, &access_logs).map_err(|e| e.to_string())?;
    let generation = Rc::new(generation);
    let shard = Rc::new(Shard {
        id,
        hostname: crate::os::hostname(),
        counters: OwnCounters::new(counters, id),
        access_logs,
        tunnels: Tunnels::new().map_err(|e| e.to_string())?,
        requests: Requests::default(),
        generation: RefCell::new(Rc::clone(&generation)),
        listeners: RefCell::default(),
        files,
        quitting: Cell::new(false),
        empty: Signal::default(),
        date: RefCell::default(),
        serial: Cell::new(id as u64 + 1),
        serial_step: shards as u64,
    });
    shard.spawn("clock", timer::run_clock());
    shard.spawn("tunnel engine", Tunnels::run(Rc::clone(&shard)));
    shard.spawn("log writer", LogWriters::write_behind(Rc::clone(&shard)));
    shard.spawn("upstream keeper", Upstreams::keep(Rc::clone(&shard)));
    shard.listen(&generation, listening);
    events.send(channel::Event::Ready { shard: id });

    let mut inbox = inbox.open().map_err(|e| e.to_string())?;
    let obey = async {
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
                            Upstreams::look_up_due(&shard, &next);
                            shard.listen(&next, listening);
                        }
                        Err(e) => shard.log_main(Level::Emerg, format_args!("{e}")),
                    }
                    events.send(channel::Event::Reloaded { shard: id });
                }
                channel::Command::FlushLogs => shard.access_logs.flush_all(),
                channel::Command::Quit => shard.begin_quit(),
                channel::Command::CloseAll => {
                    timer::interrupt(Wait::Busy);
                    shard.tunnels.close_all(&shard);
                }
                channel::Command::Exit => return,
            }
        }
    };
    crate::io::select::either(obey, shard.empty.wait()).await;
    shard.access_logs.flush_all();
    Ok(())
}
