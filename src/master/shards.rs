//! The shards' threads as the master sees them: started, pinned, told things, joined.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::failure::Failure;
use super::listening::Listening;
use crate::channel::{self, Command, Event, Events, Outbox};
use crate::counters;
use crate::error_log::{Errno, Files, Level, Log};
use crate::http::server::Address;
use crate::io::runtime::{self, Ring};
use crate::modules::Config;
use crate::modules::process::{CpuAffinity, Settings};
use crate::os;
use crate::shard::{self, Heartbeat, Start};

/// All shards, ended ones included.
#[derive(Default)]
pub struct Shards {
    handles: Vec<Handle>,
}

struct Handle {
    outbox: Outbox,
    /// `None` once joined.
    thread: Option<JoinHandle<()>>,
    stage: Stage,
    /// Reloads it has not answered yet.
    reloads: usize,
    heartbeat: Option<Heartbeat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Starting,
    Serving,
    Ended,
}

/// What shards are started with, all alike.
#[derive(Debug)]
pub struct Common {
    pub ring: Ring,
    pub files: Arc<Files>,
    pub events: Events,
    /// The master has capabilities that a shard must not have.
    pub gives_up_capabilities: bool,
    /// How often a shard is to show that it runs.
    pub beats: Option<Duration>,
}

impl Shards {
    /// Starts `count` threads, each on the cores that the configuration gives it.
    pub fn start(
        count: usize,
        common: &Common,
        config: &Arc<Config>,
        listening: &Listening,
        mut say: impl FnMut(Level, fmt::Arguments<'_>),
    ) -> Result<Self, Failure> {
        let available = os::available_cores();
        let counters = counters::for_shards(count);
        let mut shards = Shards::default();
        for id in 0..count {
            let (outbox, inbox) = channel::pair().map_err(Failure::call("socketpair"))?;
            let heartbeat = common.beats.map(Heartbeat::new);
            let start = Start {
                id,
                shards: count,
                ring: common.ring,
                config: Arc::clone(config),
                listening: listening.of_shard(id, addresses(config))?,
                files: Arc::clone(&common.files),
                counters: Arc::clone(&counters),
                heartbeat: heartbeat.clone(),
                inbox,
                events: common.events.clone(),
            };
            let cores = cores_of(id, &config.process, &available);
            say(Level::Notice, format_args!("start shard {id} on {}", Cores(&cores)));
            let gives_up_capabilities = common.gives_up_capabilities;
            let thread = thread::Builder::new()
                .name(format!("ringx shard {id}"))
                .spawn(move || live(start, &cores, gives_up_capabilities))
                .map_err(Failure::call("pthread_create"))?;
            shards.handles.push(Handle {
                outbox,
                thread: Some(thread),
                stage: Stage::Starting,
                reloads: 0,
                heartbeat,
            });
        }
        Ok(shards)
    }

    /// Tells every shard that has not ended.
    pub fn tell(&self, command: impl Fn() -> Command) {
        for handle in self.handles.iter().filter(|handle| handle.stage != Stage::Ended) {
            handle.outbox.send(command());
        }
    }

    /// Gives every shard a new configuration, and copies of the sockets it listens on. Nothing is
    /// sent unless every copy could be made.
    pub fn reload(&mut self, config: &Arc<Config>, listening: &Listening) -> Result<(), Failure> {
        let copies: Result<Vec<_>, _> = (0..self.handles.len())
            .map(|shard| listening.of_shard(shard, addresses(config)))
            .collect();
        for (handle, listening) in self.handles.iter_mut().zip(copies?) {
            if handle.stage != Stage::Ended {
                handle.outbox.send(Command::Reload { config: Arc::clone(config), listening });
                handle.reloads = handle.reloads.saturating_add(1);
            }
        }
        Ok(())
    }

    /// [`Event::Ready`]: whether that was the last one.
    pub fn is_ready(&mut self, shard: usize) -> bool {
        if let Some(handle) = self.handles.get_mut(shard) {
            handle.stage = Stage::Serving;
        }
        self.handles.iter().all(|handle| handle.stage == Stage::Serving)
    }

    /// [`Event::Reloaded`].
    pub fn has_reloaded(&mut self, shard: usize) {
        if let Some(handle) = self.handles.get_mut(shard) {
            handle.reloads = handle.reloads.saturating_sub(1);
        }
    }

    /// [`Event::Ended`]: whether it had come as far as serving.
    pub fn has_ended(&mut self, shard: usize) -> bool {
        let Some(handle) = self.handles.get_mut(shard) else { return false };
        let served = handle.stage == Stage::Serving;
        handle.stage = Stage::Ended;
        handle.reloads = 0;
        if let Some(thread) = handle.thread.take() {
            // A panic has been told by the event.
            let _ = thread.join();
        }
        served
    }

    /// Whether some shard may still accept under a configuration before the last.
    pub fn are_reloading(&self) -> bool {
        self.handles.iter().any(|handle| handle.reloads > 0)
    }

    /// Whether all that are there serve under the last configuration.
    pub fn are_settled(&self) -> bool {
        !self.are_reloading() && self.handles.iter().all(|handle| handle.stage != Stage::Starting)
    }

    pub fn serving(&self) -> usize {
        self.handles.iter().filter(|handle| handle.stage == Stage::Serving).count()
    }

    /// One that serves and has not shown for so long that it runs.
    pub fn find_silent(&self, limit: Duration) -> Option<usize> {
        self.handles.iter().position(|handle| {
            handle.stage == Stage::Serving
                && handle.heartbeat.as_ref().is_some_and(|heart| heart.is_silent_for(limit))
        })
    }

    pub fn are_ended(&self) -> bool {
        self.handles.iter().all(|handle| handle.stage == Stage::Ended)
    }

    pub fn len(&self) -> usize {
        self.handles.len()
    }
}

/// What a configuration listens on.
pub fn addresses(config: &Config) -> &[Address] {
    config.http.as_ref().map(|http| http.addresses.as_slice()).unwrap_or_default()
}

/// A shard's thread.
fn live(start: Start, cores: &[usize], gives_up_capabilities: bool) {
    let (shard, events) = (start.id, start.events.clone());
    settle(&start, cores);
    // Last: a better priority takes a capability.
    if gives_up_capabilities && let Err(e) = os::clear_capabilities() {
        let failure = Some(format!("capset() failed ({})", Errno::of(&e)));
        return events.send(Event::Ended { shard, failure });
    }
    // The shard says itself that it has ended, unless it panics.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| shard::run(start))) {
        let text = runtime::panic_text(&*panic);
        events.send(Event::Ended { shard, failure: Some(format!("panic: {text}")) });
    }
}

/// Priority and cores; one that is refused is logged, and the shard goes on without.
fn settle(start: &Start, cores: &[usize]) {
    let alert = |text: fmt::Arguments<'_>| {
        if let Ok(log) = Log::open(&start.config.process.error_log, &start.files) {
            log.say(Level::Alert, text);
        }
    };
    let nice = *start.config.process.worker_priority;
    if nice != 0
        && let Err(e) = os::set_priority(nice)
    {
        alert(format_args!("setpriority({nice}) failed ({})", Errno::of(&e)));
    }
    if !cores.is_empty()
        && let Err(e) = os::pin(cores)
    {
        alert(format_args!("sched_setaffinity() failed ({})", Errno::of(&e)));
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
