//! What the whole process knows about an upstream: requests under way at each server, its failures,
//! whether it is well. Shards share it by atomics; with `zone` the failures outlive a reload too.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::lent::Lent;
use super::peer::Failures;
use super::queue::Line;
use crate::http::modules::upstream::Peer;

/// What is known of one upstream.
#[derive(Debug, Default)]
pub struct Zone {
    /// Of the `zone` directive: then failures outlive a reload.
    name: Option<Arc<str>>,
    /// A server that is new here gets no requests before a health check has found it well.
    begins_unhealthy: AtomicBool,
    /// Locked when a set of peers is made, never for a request.
    peers: Mutex<Vec<Known>>,
    /// Of the requests that wait, where there is a `queue`.
    line: Mutex<Option<Arc<Line>>>,
    /// Idle connections that no shard holds.
    lent: Mutex<Arc<Lent>>,
}

#[derive(Debug, Clone)]
struct Known {
    /// As `$upstream_addr` shows it. A server written twice is here twice.
    address: Arc<str>,
    peer: Arc<SharedPeer>,
}

/// What is known of one server. On a cache line of its own: neighbours are counted by others.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct SharedPeer {
    /// Requests under way on all shards that count them here.
    active: AtomicUsize,
    /// An active health check found it ill: it gets no requests.
    unhealthy: AtomicBool,
    fails: AtomicU32,
    accessed_ms: AtomicU64,
    checked_ms: AtomicU64,
}

impl Zone {
    pub fn new(name: Option<Arc<str>>, peers: &[Peer]) -> Self {
        let zone = Zone { name, ..Zone::default() };
        zone.shared(peers);
        zone
    }

    /// `zone name`
    pub fn name(&self) -> Option<&Arc<str>> {
        self.name.as_ref()
    }

    /// What the shards' queues have in common.
    pub fn line(&self) -> Arc<Line> {
        Arc::clone(self.lock_line().get_or_insert_default())
    }

    fn lock_line(&self) -> MutexGuard<'_, Option<Arc<Line>>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the shards lend each other, under whichever configuration: who finds a server no more does
    /// not ask for it.
    pub fn lent(&self) -> Arc<Lent> {
        Arc::clone(&self.lock_lent())
    }

    fn lock_lent(&self) -> MutexGuard<'_, Arc<Lent>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of these servers, in their order. The ones that neither this set nor any other
    /// names are forgotten.
    pub fn shared(&self, peers: &[Peer]) -> Vec<Arc<SharedPeer>> {
        let mut known = self.lock();
        let mut before = std::mem::take(&mut *known);
        let mut shared = Vec::with_capacity(peers.len());
        for peer in peers {
            let at = before.iter().position(|known| known.address == peer.name);
            let entry = match at {
                Some(at) => before.remove(at),
                None => self.begin(&peer.name),
            };
            shared.push(Arc::clone(&entry.peer));
            known.push(entry);
        }
        known.extend(before.into_iter().filter(|known| Arc::strong_count(&known.peer) > 1));
        shared
    }

    fn begin(&self, address: &Arc<str>) -> Known {
        let peer = SharedPeer::default();
        peer.set_unhealthy(self.begins_unhealthy.load(Ordering::Relaxed));
        Known { address: Arc::clone(address), peer: Arc::new(peer) }
    }

    /// Servers get no requests before a health check has found them well (`mandatory`): those of now,
    /// and those that are found later.
    pub fn begin_unhealthy(&self) {
        self.begins_unhealthy.store(true, Ordering::Relaxed);
        self.set_all_unhealthy(true);
    }

    pub fn set_all_unhealthy(&self, unhealthy: bool) {
        for known in self.lock().iter() {
            known.peer.set_unhealthy(unhealthy);
        }
    }

    /// Every server that is known now, by address, for who looks at all of them.
    pub fn peers(&self) -> Vec<(Arc<str>, Arc<SharedPeer>)> {
        let copy = |known: &Known| (Arc::clone(&known.address), Arc::clone(&known.peer));
        self.lock().iter().map(copy).collect()
    }

    /// Takes over what an earlier configuration's zone knows of the same addresses. Without `zone`
    /// these get another chance.
    pub fn take_over(&self, old: &Zone) {
        // Who still waits under the earlier one came first.
        if let Some(line) = &*old.lock_line() {
            *self.lock_line() = Some(Arc::clone(line));
        }
        *self.lock_lent() = old.lent();
        if self.name != old.name {
            return;
        }
        let mut before = old.lock().clone();
        for known in self.lock().iter_mut() {
            if let Some(at) = before.iter().position(|old| old.address == known.address) {
                *known = before.remove(at);
                if self.name.is_none() {
                    known.peer.forgive();
                }
            }
        }
    }

    /// Keeps what an earlier configuration's zone knows of addresses that were found while running:
    /// they are found again as soon as a shard has the new one.
    pub fn keep_found(&self, old: &Zone) {
        if self.name != old.name {
            return;
        }
        let mut known = self.lock();
        let before = old.lock().clone();
        let is_new = |old: &Known| !known.iter().any(|known| known.address == old.address);
        let found: Vec<Known> = before.into_iter().filter(is_new).collect();
        known.extend(found);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Known>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SharedPeer {
    pub fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// One more request, unless so many are under way (zero: any number).
    pub fn begin(&self, most: usize) -> bool {
        if most == 0 {
            self.active.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        let more = |active: usize| (active < most).then(|| active.saturating_add(1));
        self.active.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Every [`SharedPeer::begin`] that said yes is ended once.
    pub fn end(&self) {
        self.active.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn is_unhealthy(&self) -> bool {
        self.unhealthy.load(Ordering::Relaxed)
    }

    /// Tells whether this is news.
    pub fn set_unhealthy(&self, unhealthy: bool) -> bool {
        self.unhealthy.swap(unhealthy, Ordering::Relaxed) != unhealthy
    }

    pub fn failures(&self) -> Failures {
        Failures {
            fails: self.fails.load(Ordering::Relaxed),
            accessed_ms: self.accessed_ms.load(Ordering::Relaxed),
            checked_ms: self.checked_ms.load(Ordering::Relaxed),
        }
    }

    /// One more failure; gives how many there are.
    pub fn failed(&self, now_ms: u64) -> u32 {
        self.accessed_ms.store(now_ms, Ordering::Relaxed);
        self.checked_ms.store(now_ms, Ordering::Relaxed);
        self.fails.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    pub fn checked(&self, now_ms: u64) {
        self.checked_ms.store(now_ms, Ordering::Relaxed);
    }

    pub fn forgive(&self) {
        self.fails.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> Peer {
        Peer { name: name.into(), ..Peer::default() }
    }

    #[test]
    fn an_address_stays_the_same_server() {
        let zone = Zone::new(None, &[peer("a"), peer("b"), peer("a")]);
        let first = zone.shared(&[peer("a"), peer("b"), peer("a")]);
        assert!(!Arc::ptr_eq(&first[0], &first[2]));
        let second = zone.shared(&[peer("c"), peer("a")]);
        assert!(Arc::ptr_eq(&first[0], &second[1]));
        // Someone still has the other two.
        assert_eq!(zone.peers().len(), 4);
        drop(first);
        zone.shared(&[peer("c"), peer("a")]);
        let left: Vec<_> = zone.peers().into_iter().map(|(address, _)| address).collect();
        assert_eq!(left, ["c".into(), "a".into()]);
    }

    #[test]
    fn a_zone_of_the_same_name_knows_what_the_last_one_knew() {
        let zone = |name: &str| Zone::new(Some(name.into()), &[peer("a"), peer("b")]);
        let old = zone("z");
        old.peers()[1].1.failed(7);
        for (name, fails) in [("z", 1), ("y", 0)] {
            let new = zone(name);
            new.take_over(&old);
            assert_eq!(new.peers()[1].1.failures().fails, fails);
        }
    }

    #[test]
    fn without_a_name_a_reload_forgives() {
        let [old, new] = [(); 2].map(|()| Zone::new(None, &[peer("a")]));
        let shared = &old.peers()[0].1;
        shared.failed(7);
        assert!(shared.begin(1));
        new.take_over(&old);
        let shared = &new.peers()[0].1;
        assert_eq!(shared.failures().fails, 0);
        assert!(!shared.begin(1) && shared.begin(0) && shared.active() == 2);
    }

    #[test]
    fn what_was_found_is_known_when_it_is_found_again() {
        let old = Zone::new(None, &[peer("a")]);
        let found = old.shared(&[peer("a"), peer("b")]);
        let new = Zone::new(None, &[peer("a")]);
        new.take_over(&old);
        new.keep_found(&old);
        let again = new.shared(&[peer("b"), peer("a")]);
        assert!(Arc::ptr_eq(&found[0], &again[1]) && Arc::ptr_eq(&found[1], &again[0]));
    }

    #[test]
    fn a_server_that_must_be_checked_begins_unhealthy() {
        let zone = Zone::new(None, &[peer("a")]);
        zone.begin_unhealthy();
        assert!(zone.shared(&[peer("a"), peer("b")]).iter().all(|peer| peer.is_unhealthy()));
        zone.set_all_unhealthy(false);
        assert!(zone.peers().iter().all(|(_, peer)| !peer.is_unhealthy()));
    }

    #[test]
    fn only_a_change_of_health_is_news() {
        let peer = SharedPeer::default();
        assert!(peer.set_unhealthy(true) && !peer.set_unhealthy(true) && peer.is_unhealthy());
    }
}
