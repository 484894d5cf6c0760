//! The shards' threads as the master sees them: started, pinned, told things, joined, and started again
//! when they have died.

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::failure::Failure;
use super::listening::Listening;
use crate::channel::{self, Command, Event, Events, Life, Outbox};
use crate::counters::{AllCounters, Counters, Load, OwnCounters};
use crate::error_log::{Errno, Files, Level, Log};
use crate::http::server::Address;
use crate::http::tunnel::parcel::Parcel;
use crate::http::tunnel::rebalance;
use crate::io::runtime::{self, Ring};
use crate::modules::Config;
use crate::modules::process::{CpuAffinity, Settings};
use crate::os;
use crate::shard::{self, Heartbeat, Start};

/// All shards.
#[derive(Default)]
pub struct Shards {
    available: Vec<usize>,
    /// Those of the configuration, by their numbers.
    members: Vec<Member>,
    /// The threads of those that it has no more, until they have ended.
    leaving: Vec<Handle>,
    /// Threads so far.
    lives: u64,
    /// Tunnels that no shard has: nobody serves at the moment.
    homeless: Vec<Parcel>,
    /// All have served: from now on a shard that dies is started again.
    have_started: bool,
}

struct Member {
    state: State,
    deaths: Deaths,
}

enum State {
    Lives(Handle),
    /// It has died, or could not be started, and is started again.
    Down {
        until: Instant,
    },
    Ended,
}

/// A thread.
struct Handle {
    life: Life,
    outbox: Outbox,
    thread: JoinHandle<()>,
    /// The thread for the kernel, as soon as it runs.
    kernel_thread: Arc<OnceLock<Pid>>,
    place: Place,
    counters: Arc<Counters>,
    /// Since when it serves.
    serves: Option<Instant>,
    /// Reloads it has not answered yet.
    reloads: usize,
    /// It was told to end, and others have come beside it.
    is_straggler: bool,
    heartbeat: Option<Heartbeat>,
    /// Tunnels that it is to have had, by the time that it has taken all that it was given.
    due: Cell<u64>,
}

/// What a thread is given of the machine.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// Empty: any.
    cores: Vec<usize>,
    nice: i32,
}

/// How often a shard has died, one time soon after the other.
#[derive(Debug, Default, Clone, Copy)]
struct Deaths(u32);

impl Deaths {
    /// Whoever has served so long starts again as if for the first time.
    const FORGOTTEN: Duration = Duration::from_secs(60);
    const PAUSE_MAX: Duration = Duration::from_secs(30);

    /// One more, after so long a life: the pause before the next one.
    fn pause_after(&mut self, served: Duration) -> Duration {
        if served >= Self::FORGOTTEN {
            self.0 = 0;
        }
        let doublings = self.0.checked_sub(1);
        self.0 = self.0.saturating_add(1);
        let pause = doublings.map(|n| 1_u64.checked_shl(n).unwrap_or(u64::MAX));
        Duration::from_secs(pause.unwrap_or(0)).min(Self::PAUSE_MAX)
    }
}

/// What shards are started with, all alike.
#[derive(Debug)]
pub struct Common {
    pub ring: Ring,
    pub counters: Arc<AllCounters>,
    pub files: Arc<Files>,
    pub events: Events,
    /// The master has capabilities that a shard must not have.
    pub gives_up_capabilities: bool,
    /// How often a shard is to show that it runs.
    pub beats: Option<Duration>,
}

/// What a shard is started with: all alike, and of now.
pub struct Now<'a> {
    pub common: &'a Common,
    pub config: &'a Arc<Config>,
    pub listening: &'a Listening,
    pub say: &'a dyn Fn(Level, fmt::Arguments<'_>),
}

/// Whose thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// It had not come as far as serving, nor had the process.
    AtStart,
    /// It can be started again.
    Member,
    /// It had left.
    Leaver,
}

impl Handle {
    /// What it carries, with what is on its way to it.
    fn load(&self) -> Load {
        let tunnels = &self.counters.tunnels;
        let under_way = self.due.get().saturating_sub(tunnels.taken_over.get());
        let load = tunnels.load();
        Load { tunnels: load.tunnels.saturating_add(under_way), ..load }
    }

    /// Another configuration gives it another place. The master may do what the thread may not any
    /// more.
    fn move_to(
        &mut self,
        place: Place,
        available: &[usize],
        say: &dyn Fn(Level, fmt::Arguments<'_>),
    ) {
        if self.place == place {
            return;
        }
        let thread = *self.kernel_thread.wait();
        if place.nice != self.place.nice {
            // Zero is what it would have been started with.
            let nice = if place.nice == 0 { os::priority().unwrap_or(0) } else { place.nice };
            set_priority(thread, nice, say);
        }
        if place.cores != self.place.cores {
            let cores = if place.cores.is_empty() { available } else { &place.cores };
            pin(thread, cores, say);
        }
        self.place = place;
    }

    fn take(&self, parcels: Vec<Parcel>) {
        let taken = self.counters.tunnels.taken_over.get();
        self.due.set(self.due.get().max(taken).saturating_add(parcels.len() as u64));
        self.outbox.send(Command::TakeTunnels(parcels));
    }
}

impl Place {
    fn of(shard: usize, settings: &Settings, available: &[usize]) -> Self {
        let cores = cores_of(shard, settings, available);
        Place { cores, nice: *settings.worker_priority }
    }
}

impl Shards {
    /// Starts as many threads as there are sockets for, each on the cores that the configuration gives
    /// it.
    pub fn start(now: &Now<'_>) -> Result<Self, Failure> {
        let mut shards = Shards { available: os::available_cores(), ..Shards::default() };
        // The first one serves, and is asked, while the others are being started.
        now.common.counters.make_room(now.listening.shards());
        for shard in 0..now.listening.shards() {
            let handle = shards.begin(shard, now)?;
            shards.members.push(Member { state: State::Lives(handle), deaths: Deaths::default() });
        }
        Ok(shards)
    }

    /// A new thread for a shard.
    fn begin(&mut self, shard: usize, now: &Now<'_>) -> Result<Handle, Failure> {
        let Now { common, config, listening, say } = now;
        let life = Life { shard, number: self.lives };
        self.lives = self.lives.saturating_add(1);
        let (outbox, inbox) = channel::pair().map_err(Failure::call("socketpair"))?;
        let listening = listening.of_shard(shard, addresses(config))?;
        let own = OwnCounters::new(Arc::clone(&common.counters), shard);
        let counters = Arc::clone(own.own());
        let heartbeat = common.beats.map(Heartbeat::new);
        let start = Start {
            life,
            ring: common.ring,
            config: Arc::clone(config),
            listening,
            files: Arc::clone(&common.files),
            counters: own,
            heartbeat: heartbeat.clone(),
            inbox,
            events: common.events.clone(),
        };
        let place = Place::of(shard, &config.process, &self.available);
        say(Level::Notice, format_args!("start shard {shard} on {}", Cores(&place.cores)));
        let gives_up_capabilities = common.gives_up_capabilities;
        let kernel_thread = Arc::<OnceLock<Pid>>::default();
        let (number, cores, nice) = (Arc::clone(&kernel_thread), place.cores.clone(), place.nice);
        let spawned =
            thread::Builder::new().name(format!("ringx shard {shard}")).spawn(move || {
                let _ = number.set(os::this_thread());
                live(start, &cores, nice, gives_up_capabilities);
            });
        match spawned {
            Ok(thread) => {
                let (serves, reloads) = (None, 0);
                let due = Cell::new(counters.tunnels.taken_over.get());
                Ok(Handle {
                    life,
                    outbox,
                    thread,
                    kernel_thread,
                    place,
                    counters,
                    serves,
                    reloads,
                    is_straggler: false,
                    heartbeat,
                    due,
                })
            }
            Err(e) => {
                common.counters.give_back(&counters);
                Err(Failure::call("pthread_create")(e))
            }
        }
    }

    /// Gives tunnels to the shards that are to have more ([`rebalance::deal`]). Those of a shard do not
    /// go back to it, unless there is no other.
    pub fn place(&mut self, from: Option<Life>, parcels: Vec<Parcel>) {
        let members = self.members.iter().filter_map(|member| match &member.state {
            State::Lives(handle) if handle.serves.is_some() => Some(handle),
            _ => None,
        });
        let serving: Vec<&Handle> = members.collect();
        let giver = serving.iter().position(|handle| Some(handle.life) == from);
        if serving.len() <= usize::from(giver.is_some()) {
            if let Some(own) = self.living().find(|handle| Some(handle.life) == from) {
                return own.take(parcels);
            }
            return self.homeless.extend(parcels);
        }
        let loads: Vec<_> = serving.iter().map(|handle| handle.load()).collect();
        let counts = rebalance::deal(&loads, giver, parcels.len());
        let mut parcels = parcels.into_iter();
        for (handle, count) in serving.into_iter().zip(counts).filter(|(_, count)| *count > 0) {
            handle.take(parcels.by_ref().take(count).collect());
        }
    }

    /// Gives a shard its tunnels back, or to others when it has died.
    pub fn give_back(&mut self, life: Life, parcels: Vec<Parcel>) {
        if let Some(handle) = self.living().find(|handle| handle.life == life) {
            return handle.take(parcels);
        }
        self.place(None, parcels);
    }

    /// What could not be placed, because nobody served, is tried again.
    pub fn place_homeless(&mut self) {
        let parcels = std::mem::take(&mut self.homeless);
        if !parcels.is_empty() {
            self.place(None, parcels);
        }
    }

    /// Closes what cannot be placed any more; how many those are.
    pub fn abandon_homeless(&mut self) -> usize {
        std::mem::take(&mut self.homeless).len()
    }

    /// Those that serve, or have served.
    pub fn serving(&self) -> Vec<Life> {
        let serving = self.living().filter(|handle| handle.serves.is_some());
        serving.map(|handle| handle.life).collect()
    }

    /// Gives every shard a new configuration, and copies of the sockets it listens on; starts and
    /// releases shards, so that there are as many as there are sockets for. Nothing has changed unless
    /// every copy could be made.
    pub fn reload(&mut self, now: &Now<'_>) -> Result<(), Failure> {
        let count = now.listening.shards();
        let copies: Result<Vec<_>, _> = (0..count.min(self.members.len()))
            .map(|shard| now.listening.of_shard(shard, addresses(now.config)))
            .collect();
        for (member, listening) in self.members.iter_mut().zip(copies?) {
            if let State::Lives(handle) = &mut member.state {
                let place = Place::of(handle.life.shard, &now.config.process, &self.available);
                handle.move_to(place, &self.available, now.say);
                let config = Arc::clone(now.config);
                handle.outbox.send(Command::Reload { config, listening });
                handle.reloads = handle.reloads.saturating_add(1);
            }
        }
        for shard in count..self.members.len() {
            self.release(shard, now);
        }
        self.members.truncate(count);
        let at = Instant::now();
        while self.members.len() < count {
            let (state, deaths) = (State::Down { until: at }, Deaths::default());
            self.members.push(Member { state, deaths });
        }
        self.start_due(at, now);
        Ok(())
    }

    /// Starts a thread for every shard, though those before still finish what they have: they were told
    /// to end.
    pub fn start_beside(&mut self, now: &Now<'_>) -> Result<(), Failure> {
        let mut beside = Vec::new();
        for shard in 0..now.listening.shards() {
            beside.push(self.begin(shard, now)?);
        }
        let mut before = std::mem::take(&mut self.members).into_iter();
        for handle in beside {
            let (state, deaths) = match before.next() {
                Some(Member { state, deaths }) => (Some(state), deaths),
                None => (None, Deaths::default()),
            };
            self.leaving.extend(state.and_then(State::straggling));
            self.members.push(Member { state: State::Lives(handle), deaths });
        }
        self.leaving.extend(before.filter_map(|member| member.state.straggling()));
        Ok(())
    }

    /// The configuration does not have it any more. One that is down comes back for those who wait in
    /// the queues of its sockets.
    fn release(&mut self, shard: usize, now: &Now<'_>) {
        let Some(member) = self.members.get_mut(shard) else { return };
        let handle = match std::mem::replace(&mut member.state, State::Ended) {
            State::Lives(handle) => handle,
            State::Down { .. } => match self.begin(shard, now) {
                Ok(handle) => handle,
                Err(failure) => return (now.say)(Level::Alert, format_args!("{failure}")),
            },
            State::Ended => return,
        };
        (now.say)(Level::Notice, format_args!("gracefully shutting down shard {shard}"));
        handle.outbox.send(Command::Leave);
        self.leaving.push(handle);
    }

    /// Closes what is under way in those that others have come beside.
    pub fn close_stragglers(&self) {
        let stragglers = self.leaving.iter().filter(|handle| handle.is_straggler);
        stragglers.for_each(|handle| handle.outbox.send(Command::CloseAll));
    }

    /// When the next shard is to be started again.
    pub fn next_start(&self) -> Option<Instant> {
        let until = |member: &Member| match member.state {
            State::Down { until } => Some(until),
            State::Lives(_) | State::Ended => None,
        };
        self.members.iter().filter_map(until).min()
    }

    /// Starts those whose time has come. One that cannot be started now is tried again later.
    pub fn start_due(&mut self, at: Instant, now: &Now<'_>) {
        for shard in 0..self.members.len() {
            let is_due =
                |member: &Member| matches!(member.state, State::Down { until } if until <= at);
            if !self.members.get(shard).is_some_and(is_due) {
                continue;
            }
            let begun = self.begin(shard, now);
            let Some(Member { state, deaths }) = self.members.get_mut(shard) else { return };
            *state = match begun {
                Ok(handle) => {
                    if deaths.0 > 0 {
                        handle.counters.restarts.add(1);
                    }
                    State::Lives(handle)
                }
                Err(failure) => {
                    (now.say)(Level::Alert, format_args!("shard {shard}: {failure}"));
                    State::down(at, deaths.pause_after(Duration::ZERO))
                }
            };
        }
    }

    fn living(&self) -> impl Iterator<Item = &Handle> {
        let lives = |member| match member {
            &Member { state: State::Lives(ref handle), .. } => Some(handle),
            _ => None,
        };
        self.members.iter().filter_map(lives).chain(&self.leaving)
    }

    fn find(&mut self, life: Life) -> Option<&mut Handle> {
        let lives = |member| match member {
            &mut Member { state: State::Lives(ref mut handle), .. } => Some(handle),
            _ => None,
        };
        let mut living = self.members.iter_mut().filter_map(lives).chain(&mut self.leaving);
        living.find(|handle| handle.life == life)
    }

    /// Tells every shard that has not ended.
    pub fn tell(&self, command: impl Fn() -> Command) {
        self.living().for_each(|handle| handle.outbox.send(command()));
    }

    /// Has what has retired closed: until that is done, shards count as reloading.
    pub fn close_leaving(&mut self) {
        let lives = |member| match member {
            &mut Member { state: State::Lives(ref mut handle), .. } => Some(handle),
            _ => None,
        };
        for handle in self.members.iter_mut().filter_map(lives).chain(&mut self.leaving) {
            handle.outbox.send(Command::CloseLeaving);
            handle.reloads = handle.reloads.saturating_add(1);
        }
    }

    /// [`Event::Ready`]: whether all serve now.
    pub fn is_ready(&mut self, life: Life) -> bool {
        if let Some(handle) = self.find(life) {
            handle.serves = Some(Instant::now());
        }
        let serves = |member: &Member| match &member.state {
            State::Lives(handle) => handle.serves.is_some(),
            State::Down { .. } | State::Ended => false,
        };
        let all_serve = self.members.iter().all(serves);
        self.have_started |= all_serve;
        self.place_homeless();
        all_serve
    }

    /// [`Event::Reloaded`].
    pub fn has_reloaded(&mut self, life: Life) {
        if let Some(handle) = self.find(life) {
            handle.reloads = handle.reloads.saturating_sub(1);
        }
    }

    /// [`Event::Ended`]. Nothing of it is there any more after this.
    pub fn has_ended(&mut self, life: Life, common: &Common) -> Lost {
        let bury = |handle: Handle| {
            // A panic has been told by the event.
            let _ = handle.thread.join();
            common.counters.give_back(&handle.counters);
            handle.outbox.take_back()
        };
        if let Some(at) = self.leaving.iter().position(|handle| handle.life == life) {
            let untaken = bury(self.leaving.swap_remove(at));
            self.homeless.extend(untaken);
            return Lost::Leaver;
        }
        let have_started = self.have_started;
        let is_it = |member: &&mut Member| matches!(&member.state, State::Lives(handle) if handle.life == life);
        let Some(member) = self.members.iter_mut().find(is_it) else { return Lost::Leaver };
        let state = std::mem::replace(&mut member.state, State::Ended);
        let State::Lives(handle) = state else { return Lost::Leaver };
        let (at, serves) = (Instant::now(), handle.serves);
        self.homeless.extend(bury(handle));
        if serves.is_none() && !have_started {
            return Lost::AtStart;
        }
        let served = serves.map(|since| at.saturating_duration_since(since)).unwrap_or_default();
        member.state = State::down(at, member.deaths.pause_after(served));
        Lost::Member
    }

    /// Whether some shard may still accept under a configuration before the last.
    pub fn are_reloading(&self) -> bool {
        self.living().any(|handle| handle.reloads > 0)
    }

    /// Whether some go on though the configuration does not have them.
    pub fn are_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Whether all have served, and all that are there serve under the last configuration. One that
    /// is down is not waited for.
    pub fn are_settled(&self) -> bool {
        let is_starting = |member: &Member| match &member.state {
            State::Lives(handle) => handle.serves.is_none(),
            State::Down { .. } | State::Ended => false,
        };
        self.have_started && !self.are_reloading() && !self.members.iter().any(is_starting)
    }

    /// How many of the configuration's shards serve, and how many it has.
    pub fn count(&self) -> (usize, usize) {
        let serves = |member: &&Member| matches!(&member.state, State::Lives(handle) if handle.serves.is_some());
        (self.members.iter().filter(serves).count(), self.members.len())
    }

    /// One that serves, or finishes what it has, and has not shown for so long that it runs. One that
    /// is down is not expected to.
    pub fn find_silent(&self, limit: Duration) -> Option<usize> {
        let is_silent = |handle: &&Handle| {
            handle.serves.is_some()
                && handle.heartbeat.as_ref().is_some_and(|heart| heart.is_silent_for(limit))
        };
        self.living().find(is_silent).map(|handle| handle.life.shard)
    }

    pub fn are_ended(&self) -> bool {
        self.living().next().is_none()
    }
}

impl State {
    /// The shard, if there is one, that is told to end and has others beside it.
    fn straggling(self) -> Option<Handle> {
        match self {
            State::Lives(handle) => Some(Handle { is_straggler: true, ..handle }),
            State::Down { .. } | State::Ended => None,
        }
    }

    fn down(at: Instant, pause: Duration) -> Self {
        State::Down { until: at.checked_add(pause).unwrap_or(at) }
    }
}

/// What a configuration listens on.
pub fn addresses(config: &Config) -> &[Address] {
    config.http.as_ref().map(|http| http.addresses.as_slice()).unwrap_or_default()
}

/// A shard's thread.
fn live(start: Start, cores: &[usize], nice: i32, gives_up_capabilities: bool) {
    let (life, events) = (start.life, start.events.clone());
    settle(&start, cores, nice);
    let lived = || {
        // Last: a better priority takes a capability.
        if gives_up_capabilities {
            let failed = |e| format!("capset() failed ({})", Errno::of(&e));
            os::clear_capabilities().map_err(failed)?;
        }
        shard::run(start)
    };
    let ended = catch_unwind(AssertUnwindSafe(lived))
        .unwrap_or_else(|panic| Err(format!("panic: {}", runtime::panic_text(&*panic))));
    events.send(Event::Ended { life, failure: ended.err() });
}

/// Priority and cores; one that is refused is logged, and the shard goes on without.
fn settle(start: &Start, cores: &[usize], nice: i32) {
    let say = |level, text: fmt::Arguments<'_>| {
        if let Ok(log) = Log::open(&start.config.process.error_log, &start.files) {
            log.say(level, text);
        }
    };
    let thread = os::this_thread();
    if nice != 0 {
        set_priority(thread, nice, &say);
    }
    if !cores.is_empty() {
        pin(thread, cores, &say);
    }
}

fn set_priority(thread: Pid, nice: i32, say: &dyn Fn(Level, fmt::Arguments<'_>)) {
    if let Err(e) = os::set_priority(thread, nice) {
        say(Level::Alert, format_args!("setpriority({nice}) failed ({})", Errno::of(&e)));
    }
}

fn pin(thread: Pid, cores: &[usize], say: &dyn Fn(Level, fmt::Arguments<'_>)) {
    if let Err(e) = os::pin(thread, cores) {
        say(Level::Alert, format_args!("sched_setaffinity() failed ({})", Errno::of(&e)));
    }
}

/// The cores of a shard: those of `worker_cpu_affinity`, or one each in turn.
fn cores_of(shard: usize, settings: &Settings, available: &[usize]) -> Vec<usize> {
    settings.worker_cpu_affinity.get().unwrap_or(&CpuAffinity::Auto(None)).cpus(shard, available)
}

/// `core 3`, `cores 0,2`, `any core`
struct Cores<'a>(&'a [usize]);

impl fmt::Display for Cores<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("any core"),
            [core] => write!(f, "core {core}"),
            [first, rest @ ..] => {
                write!(f, "cores {first}")?;
                rest.iter().try_for_each(|core| write!(f, ",{core}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_before_the_next_life_grows_and_is_forgotten() {
        let mut deaths = Deaths::default();
        let mut pause = |served| deaths.pause_after(Duration::from_secs(served)).as_secs();
        assert_eq!([5, 0, 59, 1, 0, 7, 0, 3].map(&mut pause), [0, 1, 2, 4, 8, 16, 30, 30]);
        assert_eq!([60, 0, 1000].map(&mut pause), [0, 1, 0]);
        let mut deaths = Deaths(u32::MAX - 1);
        for _ in 0..3 {
            assert_eq!(deaths.pause_after(Duration::ZERO), Deaths::PAUSE_MAX);
        }
    }

    #[test]
    fn cores_as_configured_or_one_each() {
        let mut settings = Settings::default();
        assert_eq!(cores_of(0, &settings, &[2, 5]), [2]);
        assert_eq!(cores_of(3, &settings, &[2, 5]), [5]);
        assert!(cores_of(0, &settings, &[]).is_empty());
        settings.worker_cpu_affinity.set(CpuAffinity::Masks(vec![vec![0, 2], vec![1]]));
        assert_eq!(cores_of(0, &settings, &[2, 5]), [0, 2]);
        assert_eq!(cores_of(7, &settings, &[2, 5]), [1]);
    }

    #[test]
    fn cores_in_words() {
        assert_eq!(Cores(&[]).to_string(), "any core");
        assert_eq!(Cores(&[3]).to_string(), "core 3");
        assert_eq!(Cores(&[0, 2, 5]).to_string(), "cores 0,2,5");
    }
}
