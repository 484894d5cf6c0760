//! The servers of an upstream and their state: weights, failures, requests under way (proxy,
//! sections 11 and 13). Pure: time comes in as milliseconds.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::sync::Arc;

use super::balance::Balancer;
use super::zone::{SharedPeer, Zone};
use crate::http::modules::sticky;
use crate::http::modules::upstream::{Balance, Peer, Until};

/// The servers of an upstream as they are now. A request keeps the set it began with.
#[derive(Debug)]
pub struct PeerSet {
    pub members: Vec<Member>,
    pub balancer: Balancer,
}

/// A server, and what the shard knows of it.
#[derive(Debug)]
pub struct Member {
    pub peer: Peer,
    /// The same for as long as the address stays, however the set changes.
    pub state: Rc<PeerState>,
    id: OnceCell<Arc<str>>,
}

/// What one shard knows of a server.
#[derive(Debug)]
pub struct PeerState {
    /// Smooth weighted round robin.
    pub current_weight: Cell<i64>,
    pub effective_weight: Cell<i64>,
    /// Requests under way on this shard, and the sum of the times when they began.
    active: Cell<usize>,
    began_ms: Cell<u64>,
    /// Averages for `least_time`: until the head, until the last byte. Milliseconds.
    header_ms: Cell<f64>,
    last_byte_ms: Cell<f64>,
    shared: Arc<SharedPeer>,
    /// Requests under way count for all shards: something compares or limits them.
    shares_active: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Failures {
    pub fails: u32,
    /// When it failed last.
    pub accessed_ms: u64,
    /// When it failed last or was tried again since.
    pub checked_ms: u64,
}

impl PeerSet {
    /// Members of `before` with the same address go on as they were.
    pub fn new(
        peers: Vec<Peer>,
        balance: &Balance,
        zone: &Zone,
        before: Option<&PeerSet>,
    ) -> PeerSet {
        let shared = zone.shared(&peers);
        let mut known: Vec<&Member> =
            before.map_or_else(Vec::new, |set| set.members.iter().collect());
        let members: Vec<Member> = peers
            .into_iter()
            .zip(shared)
            .map(|(peer, shared)| {
                let at = known.iter().position(|member| member.peer.name == peer.name);
                let state = match at {
                    Some(at) => known.remove(at).state.with_weight(&peer),
                    None => Rc::new(PeerState::new(&peer, balance, zone, shared)),
                };
                Member { peer, state, id: OnceCell::new() }
            })
            .collect();
        let seed = match balance {
            Balance::Random(_) => u128::from_ne_bytes(crate::os::random_bytes()) as u64,
            _ => 0,
        };
        let balancer = Balancer::new(balance, &members, seed);
        PeerSet { members, balancer }
    }
}

impl Member {
    /// Not down, not ill, not in its time-out, not full.
    pub fn is_usable(&self, now_ms: u64) -> bool {
        self.can_be_asked() && !self.peer.drain && !self.is_out(now_ms)
    }

    /// What holds for a server without alternative too: not down, not ill, not full.
    pub fn can_be_asked(&self) -> bool {
        !self.peer.down && !self.state.shared.is_unhealthy() && self.has_room()
    }

    fn has_room(&self) -> bool {
        self.peer.max_conns == 0 || self.state.active() < self.peer.max_conns
    }

    pub fn is_out(&self, now_ms: u64) -> bool {
        if self.peer.max_fails == 0 {
            return false;
        }
        let failures = self.state.failures();
        failures.fails >= self.peer.max_fails
            && now_ms.saturating_sub(failures.checked_ms) <= self.timeout_ms()
    }

    /// It was picked: after its time-out this is the one trial.
    pub fn picked(&self, now_ms: u64) {
        let checked_ms = self.state.failures().checked_ms;
        if now_ms.saturating_sub(checked_ms) > self.timeout_ms() {
            self.state.shared.checked(now_ms);
        }
    }

    /// True when this failure takes it out.
    pub fn failed(&self, now_ms: u64) -> bool {
        let (peer, state) = (&self.peer, &self.state);
        let fails = state.shared.failed(now_ms);
        if peer.max_fails == 0 {
            return false;
        }
        let less = i64::from(peer.weight) / i64::from(peer.max_fails);
        state.effective_weight.set((state.effective_weight.get() - less).max(0));
        fails >= peer.max_fails
    }

    /// What a session is bound to it by: its route, or one made of its address.
    pub fn id(&self) -> &Arc<str> {
        self.id.get_or_init(|| match &self.peer.route {
            Some(route) => Arc::clone(route),
            None => sticky::hex_md5(self.peer.name.as_bytes()).into(),
        })
    }

    pub fn timeout_ms(&self) -> u64 {
        self.peer.fail_timeout.as_millis() as u64
    }
}

impl PeerState {
    fn new(peer: &Peer, balance: &Balance, zone: &Zone, shared: Arc<SharedPeer>) -> Self {
        PeerState {
            current_weight: Cell::new(0),
            effective_weight: Cell::new(i64::from(peer.weight)),
            active: Cell::new(0),
            began_ms: Cell::new(0),
            header_ms: Cell::new(0.0),
            last_byte_ms: Cell::new(0.0),
            shared,
            shares_active: peer.max_conns > 0 || zone.name().is_some() || balance.compares_active(),
        }
    }

    /// The same state under a weight that may have changed.
    fn with_weight(self: &Rc<Self>, peer: &Peer) -> Rc<Self> {
        let most = i64::from(peer.weight);
        self.effective_weight.set(self.effective_weight.get().min(most));
        Rc::clone(self)
    }

    /// Requests under way: of all shards where that matters, else of this one.
    pub fn active(&self) -> usize {
        if self.shares_active { self.shared.active() } else { self.active.get() }
    }

    /// A request was answered well, so many milliseconds after it was sent.
    pub fn answered(&self, header_ms: u64, last_byte_ms: u64) {
        let add = |average: &Cell<f64>, ms: u64| {
            average.set(average.get() * 0.95 + ms as f64 * 0.05);
        };
        add(&self.header_ms, header_ms);
        add(&self.last_byte_ms, last_byte_ms);
    }

    /// How long answers took on average, the latest counting most.
    pub fn average_ms(&self, until: Until) -> f64 {
        match until {
            Until::Header => self.header_ms.get(),
            Until::LastByte => self.last_byte_ms.get(),
        }
    }

    /// How long the requests under way on this shard have waited, on average.
    pub fn waiting_ms(&self, now_ms: u64) -> u64 {
        let active = self.active.get() as u64;
        let waited = now_ms.saturating_mul(active).saturating_sub(self.began_ms.get());
        waited.checked_div(active).unwrap_or(0)
    }

    /// Those of all shards: a server that is dead is found dead once.
    pub fn failures(&self) -> Failures {
        self.shared.failures()
    }

    /// A success forgives only what came before the last trial.
    pub fn succeeded(&self) {
        let failures = self.failures();
        if failures.fails == 0 || failures.accessed_ms >= failures.checked_ms {
            return;
        }
        self.shared.forgive();
    }

    /// Counts one more request, unless so many are under way (zero: any number). The last place goes
    /// to one request only, whatever other shards do at the same time.
    fn begin(&self, most: usize) -> bool {
        if self.shares_active {
            return self.shared.begin(most);
        }
        most == 0 || self.active.get() < most
    }
}

/// A request under way at a server, counted until dropped.
#[derive(Debug)]
pub struct Active {
    state: Rc<PeerState>,
    began_ms: u64,
}

impl Active {
    /// The permission to ask a server; none while it has all the requests that it may have.
    pub fn take(member: &Member, now_ms: u64) -> Option<Self> {
        let state = &member.state;
        if !state.begin(member.peer.max_conns) {
            return None;
        }
        state.active.set(state.active.get() + 1);
        state.began_ms.set(state.began_ms.get().wrapping_add(now_ms));
        Some(Active { state: Rc::clone(state), began_ms: now_ms })
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let state = &self.state;
        if state.shares_active {
            state.shared.end();
        }
        state.active.set(state.active.get().saturating_sub(1));
        state.began_ms.set(state.began_ms.get().wrapping_sub(self.began_ms));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    fn peer(name: &str) -> Peer {
        Peer { name: name.into(), ..Peer::default() }
    }

    fn set(peers: Vec<Peer>, zone: &Zone, before: Option<&PeerSet>) -> PeerSet {
        PeerSet::new(peers, &Balance::RoundRobin, zone, before)
    }

    #[test]
    fn addresses_that_stay_keep_their_state() {
        let zone = Zone::default();
        let old = set(vec![peer("a"), peer("b")], &zone, None);
        old.members[1].failed(5);
        let active = Active::take(&old.members[1], 0);
        let new = set(vec![peer("b"), peer("c")], &zone, Some(&old));
        assert!(Rc::ptr_eq(&new.members[0].state, &old.members[1].state));
        assert_eq!(new.members[0].state.failures().fails, 1);
        assert_eq!(new.members[0].state.active(), 1);
        drop(active);
        assert_eq!(new.members[0].state.active(), 0);
        assert_eq!(new.members[1].state.failures().fails, 0);
    }

    #[test]
    fn one_shards_failures_are_the_others() {
        let zone = Zone::default();
        let [one, other] = [(); 2].map(|()| set(vec![peer("a")], &zone, None));
        one.members[0].failed(5);
        assert!(other.members[0].is_out(6) && !other.members[0].is_out(10_006));
    }

    #[test]
    fn the_last_place_is_taken_once() {
        let zone = Zone::default();
        let most = AtomicUsize::new(0);
        let under_way = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let set = set(vec![Peer { max_conns: 2, ..peer("a") }], &zone, None);
                    for _ in 0..2000 {
                        let Some(active) = Active::take(&set.members[0], 0) else { continue };
                        most.fetch_max(under_way.fetch_add(1, SeqCst) + 1, SeqCst);
                        under_way.fetch_sub(1, SeqCst);
                        drop(active);
                    }
                });
            }
        });
        assert!((1..=2).contains(&most.load(SeqCst)), "{most:?}");
    }

    #[test]
    fn max_conns_counts_all_shards() {
        let zone = Zone::default();
        let limited = || vec![Peer { max_conns: 1, ..peer("a") }];
        let [one, other] = [(); 2].map(|()| set(limited(), &zone, None));
        let active = Active::take(&one.members[0], 0);
        assert!(active.is_some() && !other.members[0].is_usable(0));
        assert!(Active::take(&other.members[0], 0).is_none());
        drop(active);
        assert!(other.members[0].is_usable(0));
    }

    #[test]
    fn an_ill_server_gets_nothing_and_a_draining_one_nothing_new() {
        let zone = Zone::default();
        let set = set(vec![peer("a"), Peer { drain: true, ..peer("b") }], &zone, None);
        assert!(set.members[0].is_usable(0));
        zone.peers()[0].1.set_unhealthy(true);
        assert!(!set.members[0].is_usable(0));
        assert!(set.members[1].can_be_asked() && !set.members[1].is_usable(0));
    }
}
