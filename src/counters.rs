//! What each shard counts: written by that shard alone, read by anyone.
//!
//! They live as long as the process, so a reload changes nothing about them.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
    /// Tasks that ended in a panic.
    pub panics: Counter,
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
}

/// Counters for as many shards, zeroes all.
pub fn for_shards(count: usize) -> Arc<[Counters]> {
    (0..count).map(|_| Counters::default()).collect()
}

/// A shard's own counters, with a view on all the others.
#[derive(Debug)]
pub struct OwnCounters {
    all: Arc<[Counters]>,
    shard: usize,
}

impl OwnCounters {
    /// # Panics
    /// When there is no such shard.
    pub fn new(all: Arc<[Counters]>, shard: usize) -> Self {
        assert!(shard < all.len(), "no counters for shard {shard}");
        OwnCounters { all, shard }
    }

    /// Those of every shard, in their order.
    pub fn all(&self) -> &[Counters] {
        &self.all
    }
}

impl Deref for OwnCounters {
    type Target = Counters;

    #[expect(clippy::indexing_slicing, reason = "looked at when it was made")]
    fn deref(&self) -> &Counters {
        &self.all[self.shard]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shard_writes_its_own_and_reads_all() {
        let all = for_shards(2);
        let threads: Vec<_> = (0..2)
            .map(|shard| {
                let own = OwnCounters::new(Arc::clone(&all), shard);
                std::thread::spawn(move || {
                    for _ in 0..1000 {
                        own.requests.add(shard as u64 + 1);
                    }
                    own.connections.set(5);
                    own.connections.sub(shard as u64);
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let reader = OwnCounters::new(all, 0);
        let seen: Vec<_> =
            reader.all().iter().map(|c| (c.requests.get(), c.connections.get())).collect();
        assert_eq!(seen, [(1000, 5), (2000, 4)]);
    }

    #[test]
    fn neighbours_share_no_cache_line() {
        let all = for_shards(2);
        let at = |n: usize| &raw const all[n] as usize;
        assert_eq!(at(0) % 128, 0);
        assert_eq!((at(1) - at(0)) % 128, 0);
    }
}
