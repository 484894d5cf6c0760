//! What each shard counts: written by that shard alone, read by anyone.
//!
//! They live as long as the process, so a reload changes nothing about them.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A number with a single writer.
///
/// Because nobody else writes, a change is a relaxed load and a relaxed store: two plain moves on
/// every processor, where `fetch_add` would lock the cache line on each request. A reader sees some
/// recent value of each number; numbers that belong together may be of different moments.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// For the shard whose counter it is.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// For the shard whose counter it is.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "what is counted, one by one or in bytes, does not come to 2^64"
    )]
    pub fn add(&self, n: u64) {
        self.set(self.get() + n);
    }

    /// For the shard whose counter it is.
    #[expect(clippy::arithmetic_side_effects, reason = "what is taken off has been added before")]
    pub fn sub(&self, n: u64) {
        self.set(self.get() - n);
    }
}

/// One shard's counters. Alone on their cache lines, pairs of which are fetched together: a shard
/// that counts does not slow its neighbour.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    /// Requests whose first byte was received.
    pub requests: Counter,
    /// Client connections open now, those of tunnels included.
    pub connections: Counter,
    /// Of these, the ones whose request's head is being received.
    pub reading: Counter,
    /// Of these, the ones whose request is being answered, and tunnels.
    pub writing: Counter,
    /// Client connections so far.
    pub accepted: Counter,
    /// Client connections so far that were closed at once because there were too many.
    pub dropped: Counter,
    /// Requests waiting for a place at an upstream server (`queue`).
    pub queued: Counter,
    /// Idle upstream connections so far that this shard has let others have.
    pub lent: Counter,
    /// Those so far that it has had of others, instead of connecting.
    pub borrowed: Counter,
    /// Tasks that ended in a panic.
    pub panics: Counter,
    /// Times that the shard was started again after it had died. The master counts them, while there
    /// is no thread.
    pub restarts: Counter,
    pub tunnels: TunnelCounters,
}

/// What goes on after a 101.
#[derive(Debug, Default)]
pub struct TunnelCounters {
    /// Tunnels there are now.
    pub open: Counter,
    /// Tunnels so far.
    pub opened: Counter,
    /// Bytes moved either way through the shard's memory.
    pub bytes_copied: Counter,
    /// Bytes moved either way through a pipe.
    pub bytes_spliced: Counter,
    /// Changes of a direction from copying to splicing or back.
    pub mode_switches: Counter,
    /// Pipes that hold bytes now.
    pub pipes_in_use: Counter,
    /// Bytes received that the other side has not taken yet.
    pub backlog_bytes: Counter,
    /// WebSocket Close frames that the proxy sent itself.
    pub closes_sent: Counter,
    /// WebSocket frames seen, either way.
    pub websocket_frames: Counter,
    /// WebSocket messages completed, either way.
    pub websocket_messages: Counter,
    /// Tunnels so far that came from another shard or process.
    pub taken_over: Counter,
    /// Bytes moved either way per second, without their bursts: what `tunnel_rebalance` goes by.
    pub bytes_per_second: Counter,
}

/// What a shard carries, as the others see it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Tunnels there are now.
    pub tunnels: u64,
    /// [`TunnelCounters::bytes_per_second`].
    pub bytes_per_second: u64,
}

impl TunnelCounters {
    pub fn load(&self) -> Load {
        Load { tunnels: self.open.get(), bytes_per_second: self.bytes_per_second.get() }
    }

    /// Bytes moved either way so far.
    pub fn bytes(&self) -> u64 {
        self.bytes_copied.get().saturating_add(self.bytes_spliced.get())
    }

    /// By their names.
    pub fn named(&self) -> [(&'static str, &Counter); 12] {
        // Every field is named, so that a new counter cannot be forgotten here.
        let TunnelCounters {
            open,
            opened,
            bytes_copied,
            bytes_spliced,
            mode_switches,
            pipes_in_use,
            backlog_bytes,
            closes_sent,
            websocket_frames,
            websocket_messages,
            taken_over,
            bytes_per_second,
        } = self;
        [
            ("open", open),
            ("opened", opened),
            ("bytes_copied", bytes_copied),
            ("bytes_spliced", bytes_spliced),
            ("mode_switches", mode_switches),
            ("pipes_in_use", pipes_in_use),
            ("backlog_bytes", backlog_bytes),
            ("closes_sent", closes_sent),
            ("websocket_frames", websocket_frames),
            ("websocket_messages", websocket_messages),
            ("taken_over", taken_over),
            ("bytes_per_second", bytes_per_second),
        ]
    }
}

impl Counters {
    /// What there is of something now is nothing any more.
    fn clear_present(&self) {
        let TunnelCounters { open, pipes_in_use, backlog_bytes, bytes_per_second, .. } =
            &self.tunnels;
        let Counters { connections, reading, writing, queued, .. } = self;
        let of_tunnels = [open, pipes_in_use, backlog_bytes, bytes_per_second];
        for counter in [connections, reading, writing, queued].into_iter().chain(of_tunnels) {
            counter.set(0);
        }
    }

    fn add(&self, other: &Counters) {
        let of_shard = self.named().into_iter().zip(other.named());
        let of_tunnels = self.tunnels.named().into_iter().zip(other.tunnels.named());
        for ((_, sum), (_, counter)) in of_shard.chain(of_tunnels) {
            sum.add(counter.get());
        }
    }

    /// Those of the shard itself, by their names.
    pub fn named(&self) -> [(&'static str, &Counter); 11] {
        // Every field is named, so that a new counter cannot be forgotten here.
        let Counters {
            requests,
            connections,
            reading,
            writing,
            accepted,
            dropped,
            queued,
            lent,
            borrowed,
            panics,
            restarts,
            tunnels: _,
        } = self;
        [
            ("connections", connections),
            ("reading", reading),
            ("writing", writing),
            ("accepted", accepted),
            ("dropped", dropped),
            ("requests", requests),
            ("queued", queued),
            ("lent", lent),
            ("borrowed", borrowed),
            ("panics", panics),
            ("restarts", restarts),
        ]
    }
}

/// Those of all shards that there are or were, and what is counted for all of them together.
#[derive(Debug, Default)]
pub struct AllCounters {
    /// By the shard's number. A shard that was removed may still have connections when there is
    /// another one with its number: each thread counts by itself.
    shards: Mutex<Vec<Vec<Entry>>>,
    /// Client connections so far: their numbers. Once per connection, so shards may share it.
    numbers: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    counters: Arc<Counters>,
    /// By a thread that counts on.
    is_taken: bool,
}

impl AllCounters {
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<Entry>>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many shards are listed from now on, also those whose thread has not begun.
    pub fn make_room(&self, shards: usize) {
        let mut listed = self.lock();
        if listed.len() < shards {
            listed.resize_with(shards, Vec::new);
        }
    }

    /// Sums, by the shard's number, of all that its threads have counted.
    pub fn by_shard(&self) -> Vec<Counters> {
        let sum = |entries: &Vec<Entry>| {
            let sum = Counters::default();
            for entry in entries {
                sum.add(&entry.counters);
            }
            sum
        };
        self.lock().iter().map(sum).collect()
    }

    /// What the first so many shards carry, those that no thread runs at the moment left out.
    fn loads(&self, shards: usize, loads: &mut Vec<Load>) {
        loads.clear();
        for entries in self.lock().iter().take(shards) {
            if !entries.iter().any(|entry| entry.is_taken) {
                continue;
            }
            let mut sum = Load::default();
            for entry in entries {
                let Load { tunnels, bytes_per_second } = entry.counters.tunnels.load();
                sum.tunnels = sum.tunnels.saturating_add(tunnels);
                sum.bytes_per_second = sum.bytes_per_second.saturating_add(bytes_per_second);
            }
            loads.push(sum);
        }
    }

    /// For a new thread: those of one that is gone, if there are any, so that they go on.
    fn take(&self, shard: usize) -> Arc<Counters> {
        self.make_room(shard.saturating_add(1));
        let mut shards = self.lock();
        let Some(entries) = shards.get_mut(shard) else { return Arc::default() };
        if let Some(entry) = entries.iter_mut().find(|entry| !entry.is_taken) {
            entry.is_taken = true;
            return Arc::clone(&entry.counters);
        }
        let counters = Arc::default();
        entries.push(Entry { counters: Arc::clone(&counters), is_taken: true });
        counters
    }

    /// The thread that counted is gone, and with it whatever it had.
    pub fn give_back(&self, counters: &Arc<Counters>) {
        let mut shards = self.lock();
        let mut entries = shards.iter_mut().flatten();
        if let Some(entry) = entries.find(|entry| Arc::ptr_eq(&entry.counters, counters)) {
            counters.clear_present();
            entry.is_taken = false;
        }
    }
}

/// A shard's own counters, with a view on all the others.
#[derive(Debug)]
pub struct OwnCounters {
    all: Arc<AllCounters>,
    own: Arc<Counters>,
}

impl OwnCounters {
    /// For a thread, until [`AllCounters::give_back`].
    pub fn new(all: Arc<AllCounters>, shard: usize) -> Self {
        let own = all.take(shard);
        OwnCounters { all, own }
    }

    pub fn own(&self) -> &Arc<Counters> {
        &self.own
    }

    /// Those of every shard, in their order, as they are now.
    pub fn all(&self) -> Vec<Counters> {
        self.all.by_shard()
    }

    /// What the shards carry, of the first so many those that there are, in place of what was in
    /// `loads`.
    pub fn loads(&self, shards: usize, loads: &mut Vec<Load>) {
        self.all.loads(shards, loads);
    }

    /// A number that no other connection of the process has: they begin at one, as nginx's do.
    pub fn number_connection(&self) -> u64 {
        self.all.numbers.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }
}

impl Deref for OwnCounters {
    type Target = Counters;

    fn deref(&self) -> &Counters {
        &self.own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shard_writes_its_own_and_reads_all() {
        let all = Arc::<AllCounters>::default();
        let threads: Vec<_> = (0..2)
            .map(|shard| {
                let own = OwnCounters::new(Arc::clone(&all), shard);
                std::thread::spawn(move || {
                    for _ in 0..1000 {
                        own.requests.add(shard as u64 + 1);
                    }
                    own.connections.set(5);
                    own.connections.sub(shard as u64);
                    own.number_connection()
                })
            })
            .collect();
        let mut numbers: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2]);
        let seen: Vec<_> =
            all.by_shard().iter().map(|c| (c.requests.get(), c.connections.get())).collect();
        assert_eq!(seen, [(1000, 5), (2000, 4)]);
    }

    #[test]
    fn totals_outlive_threads_and_nothing_else_does() {
        let all = Arc::<AllCounters>::default();
        let first = OwnCounters::new(Arc::clone(&all), 1);
        first.requests.add(5);
        first.connections.add(2);
        first.tunnels.open.add(1);
        // Back while the first has not ended yet.
        let second = OwnCounters::new(Arc::clone(&all), 1);
        second.requests.add(1);
        second.connections.add(1);
        let seen = || {
            let shards = all.by_shard();
            assert_eq!(shards.len(), 2);
            let Counters { requests, connections, tunnels, .. } = &shards[1];
            (requests.get(), connections.get(), tunnels.open.get())
        };
        assert_eq!(seen(), (6, 3, 1));
        all.give_back(first.own());
        assert_eq!(seen(), (6, 1, 0));
        let third = OwnCounters::new(Arc::clone(&all), 1);
        assert!(Arc::ptr_eq(third.own(), first.own()));
        assert_eq!(third.requests.get(), 5);
        all.give_back(second.own());
        assert_eq!(seen(), (6, 0, 0));
    }

    #[test]
    fn who_has_not_begun_is_listed() {
        let all = Arc::<AllCounters>::default();
        all.make_room(2);
        let first = OwnCounters::new(Arc::clone(&all), 0);
        first.requests.add(1);
        all.make_room(1);
        let requests: Vec<_> = all.by_shard().iter().map(|c| c.requests.get()).collect();
        assert_eq!(requests, [1, 0]);
    }

    #[test]
    fn who_is_not_there_has_no_load() {
        let all = Arc::<AllCounters>::default();
        let [zero, one, two] = [0, 1, 2].map(|shard| OwnCounters::new(Arc::clone(&all), shard));
        zero.tunnels.open.set(5);
        zero.tunnels.bytes_per_second.set(7);
        one.tunnels.open.set(1);
        two.tunnels.open.set(2);
        let mut loads = vec![Load::default(); 9];
        let mut seen = |shards| {
            zero.loads(shards, &mut loads);
            loads.iter().map(|load| (load.tunnels, load.bytes_per_second)).collect::<Vec<_>>()
        };
        assert_eq!(seen(9), [(5, 7), (1, 0), (2, 0)]);
        assert_eq!(seen(2), [(5, 7), (1, 0)]);
        all.give_back(one.own());
        assert_eq!(seen(9), [(5, 7), (2, 0)]);
        all.give_back(zero.own());
        let again = OwnCounters::new(Arc::clone(&all), 0);
        assert_eq!(again.tunnels.load(), Load::default());
    }

    #[test]
    fn neighbours_share_no_cache_line() {
        let all = Arc::<AllCounters>::default();
        let [one, other] = [0, 1].map(|shard| OwnCounters::new(Arc::clone(&all), shard));
        let at = |counters: &OwnCounters| &raw const **counters as usize;
        assert_eq!((at(&one) % 128, at(&other) % 128), (0, 0));
    }
}
