//! The servers of an upstream and their state: weights, failures, requests under way (proxy,
//! sections 11 and 13). Pure: time comes in as milliseconds.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::sync::Arc;

use super::balance::Balancer;
use super::queue::Queue;
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
    backlog: Cell<Backlog>,
    shared: Arc<SharedPeer>,
    /// Requests under way count for all shards: something compares or limits them.
    shares_active: bool,
}

/// Of a unix socket: connections that its server has not accepted yet are as many as may be.
#[derive(Debug, Clone, Copy, Default)]
struct Backlog {
    /// It is full as far as is known; zero: it is not.
    full_until_ms: u64,
    /// How long it was taken to be full the last time.
    pause_ms: u64,
}

/// The longest time after which a full backlog is tried again.
const BACKLOG_PAUSE_MAX_MS: u64 = 50;

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

    /// Whether a new request would find a server.
    pub fn has_room(&self, now_ms: u64) -> bool {
        self.any_well(now_ms, |_, member| member.has_room(now_ms))
    }

    /// Whether one of the servers that would be asked if they had room is one of these.
    pub fn any_well(&self, now_ms: u64, is_one: impl Fn(usize, &Member) -> bool) -> bool {
        let is_single = self.members.len() == 1;
        self.members.iter().enumerate().any(|(at, member)| {
            let is_out = !is_single && member.is_out(now_ms);
            !member.peer.drain && member.is_well() && !is_out && is_one(at, member)
        })
    }

    /// How long until a backlog that is full may be tried again.
    pub fn backlog_ms(&self, now_ms: u64) -> Option<u64> {
        let full_until = |member: &Member| member.state.backlog.get().full_until_ms;
        let left = |member: &Member| full_until(member).checked_sub(now_ms).filter(|ms| *ms > 0);
        self.members.iter().filter_map(left).min()
    }
}

impl Member {
    /// Not down, not ill, not in its time-out, not full.
    pub fn is_usable(&self, now_ms: u64) -> bool {
        self.can_be_asked(now_ms) && !self.peer.drain && !self.is_out(now_ms)
    }

    /// What holds for a server without alternative too: not down, not ill, not full.
    pub fn can_be_asked(&self, now_ms: u64) -> bool {
        self.is_well() && self.has_room(now_ms)
    }

    /// Neither down nor ill.
    pub fn is_well(&self) -> bool {
        !self.peer.down && !self.state.shared.is_unhealthy()
    }

    fn has_room(&self, now_ms: u64) -> bool {
        let state = &self.state;
        (self.peer.max_conns == 0 || state.active() < self.peer.max_conns)
            && state.backlog.get().full_until_ms <= now_ms
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
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "`max_fails` is not 0 where it divides; weights have 32 bits of 64"
    )]
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
            backlog: Cell::default(),
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

    /// Its socket takes no more connections: it is left alone for a moment, twice as long each time.
    pub fn backlog_is_full(&self, now_ms: u64) {
        let pause_ms = self.backlog.get().pause_ms.saturating_mul(2).clamp(1, BACKLOG_PAUSE_MAX_MS);
        let full_until_ms = now_ms.saturating_add(pause_ms);
        self.backlog.set(Backlog { full_until_ms, pause_ms });
    }

    /// It has taken one, or has one less.
    pub fn backlog_has_room(&self) {
        self.backlog.set(Backlog::default());
    }

    /// Those of all shards: a server that is dead is found dead once.
    pub fn failures(&self) -> Failures {
        self.shared.failures()
    }

    /// An exchange that was no failure, however it ended, forgives only what came before the last trial.
    pub fn has_not_failed(&self) {
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
    /// Who waits for its place.
    queue: Option<Rc<Queue>>,
}

impl Active {
    /// The permission to ask a server; none while it has all the requests that it may have.
    pub fn take(member: &Member, queue: Option<&Rc<Queue>>, now_ms: u64) -> Option<Self> {
        let state = &member.state;
        if !state.begin(member.peer.max_conns) {
            return None;
        }
        state.active.set(state.active.get().saturating_add(1));
        state.began_ms.set(state.began_ms.get().wrapping_add(now_ms));
        Some(Active { state: Rc::clone(state), began_ms: now_ms, queue: queue.cloned() })
    }

    /// The same for one that was under way elsewhere: it has its place already.
    pub fn resume(member: &Member, queue: Option<&Rc<Queue>>, began_ms: u64) -> Self {
        let state = &member.state;
        if state.shares_active {
            state.shared.begin(0);
        }
        state.active.set(state.active.get().saturating_add(1));
        state.began_ms.set(state.began_ms.get().wrapping_add(began_ms));
        Active { state: Rc::clone(state), began_ms, queue: queue.cloned() }
    }

    /// It goes on elsewhere: its place stays taken meanwhile, and nobody who waits for one is called.
    pub fn park(mut self) -> Option<Place> {
        self.queue = None;
        let state = &self.state;
        state.shares_active.then(|| {
            state.shared.begin(0);
            Place(Arc::clone(&state.shared))
        })
    }

    pub fn began_ms(&self) -> u64 {
        self.began_ms
    }

    /// Gives the place back without calling anybody: the server was full all the same.
    pub fn withdraw(mut self) {
        self.queue = None;
    }
}

/// A place at a server, of a request that belongs to no shard at the moment.
#[derive(Debug)]
pub struct Place(Arc<SharedPeer>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.end();
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
        if let Some(queue) = &self.queue {
            state.backlog_has_room();
            queue.freed();
        }
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
        let active = Active::take(&old.members[1], None, 0);
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
                        let Some(active) = Active::take(&set.members[0], None, 0) else { continue };
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
        let active = Active::take(&one.members[0], None, 0);
        assert!(active.is_some() && !other.members[0].is_usable(0));
        assert!(Active::take(&other.members[0], None, 0).is_none());
        drop(active);
        assert!(other.members[0].is_usable(0));
    }

    #[test]
    fn a_full_backlog_is_left_alone_for_longer_and_longer() {
        let set = set(vec![peer("a")], &Zone::default(), None);
        let (member, mut now_ms, mut pauses) = (&set.members[0], 7, Vec::new());
        for _ in 0..8 {
            member.state.backlog_is_full(now_ms);
            assert!(!member.is_usable(now_ms) && !set.has_room(now_ms));
            assert!(set.any_well(now_ms, |_, _| true));
            let pause_ms = set.backlog_ms(now_ms).unwrap();
            pauses.push(pause_ms);
            now_ms += pause_ms;
            assert!(member.is_usable(now_ms) && set.backlog_ms(now_ms).is_none());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 50, 50]);
        member.state.backlog_is_full(now_ms);
        member.state.backlog_has_room();
        assert!(set.has_room(now_ms));
        member.state.backlog_is_full(now_ms);
        assert_eq!(set.backlog_ms(now_ms), Some(1));
    }

    #[test]
    fn an_ill_server_gets_nothing_and_a_draining_one_nothing_new() {
        let zone = Zone::default();
        let set = set(vec![peer("a"), Peer { drain: true, ..peer("b") }], &zone, None);
        assert!(set.members[0].is_usable(0));
        zone.peers()[0].1.set_unhealthy(true);
        assert!(!set.members[0].is_usable(0));
        assert!(set.members[1].can_be_asked(0) && !set.members[1].is_usable(0));
    }
}
