//! One exchange with an upstream server: pick a peer, connect or reuse, send, read the head, go on
//! to the next peer or relay the response.

pub mod ask;
pub mod balance;
pub mod dynamic;
pub mod exchange;
pub mod head;
pub mod health;
pub mod lent;
pub mod local;
pub mod lookup;
pub mod outgoing;
pub mod peer;
pub mod pool;
pub mod protocol;
pub mod queue;
pub mod relay;
pub mod rest;
pub mod reuse;
pub mod trial;
pub mod turn;
pub mod watch;
pub mod window;
pub mod zone;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::modules::upstream::{Balance, Peer, Upstream};
use super::server::{Http, LocationId, UpstreamId};
use crate::io::timer;
use crate::shard::Shard;
use lent::Lent;
use lookup::Lookup;
use peer::{Active, PeerSet};
use pool::Pool;
use queue::Queue;
use zone::Zone;

/// One try, as the `$upstream_*` variables tell it.
#[derive(Debug, Clone, Default)]
pub struct Attempt {
    /// `127.0.0.1:81`, or the upstream's name when no peer could be taken. `None`: nobody could be
    /// asked, or it is no try, but stands where another exchange begins, see [`Attempt::boundary`].
    pub address: Option<Arc<str>>,
    /// How long the request waited for a place at it.
    pub queue: Option<Duration>,
    /// Zero: none.
    pub status: u16,
    pub connect: Option<Duration>,
    pub header: Option<Duration>,
    pub response: Option<Duration>,
    pub response_length: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
}

impl Attempt {
    /// What stands before the tries of every exchange but a request's first. It is listed as a try
    /// without a server where there has been none before it.
    pub fn boundary() -> Self {
        let zero = Some(Duration::ZERO);
        Attempt { connect: zero, header: zero, response: zero, ..Attempt::default() }
    }
}

/// What one configuration's upstreams are like on one shard: health, balance, idle connections.
pub struct Upstreams {
    groups: Vec<Group>,
}

/// One upstream on one shard.
pub struct Group {
    name: Arc<str>,
    balance: Arc<Balance>,
    /// What the other shards know too.
    zone: Arc<Zone>,
    peers: RefCell<Rc<PeerSet>>,
    pub pool: RefCell<Pool>,
    pub lent: Arc<Lent>,
    queue: Option<Rc<Queue>>,
    /// Of the servers whose names are looked up, in their order.
    lookups: Vec<Lookup>,
}

impl Upstreams {
    pub fn new(http: Option<&Http>) -> Self {
        let upstreams = http.map(|http| http.upstreams.as_slice()).unwrap_or_default();
        Upstreams { groups: upstreams.iter().map(Group::new).collect() }
    }

    /// What counts a request under way at a server that is known by its name; none when the
    /// configuration knows it no more.
    pub fn resume(&self, upstream: &str, server: &str, began_ms: u64) -> Option<Active> {
        let group = self.groups.iter().find(|group| *group.name == *upstream)?;
        let peers = group.peers();
        let member = peers.members.iter().find(|member| *member.peer.name == *server)?;
        Some(Active::resume(member, group.queue(), began_ms))
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "there is a group for each upstream of the configuration that gave the id"
    )]
    pub fn group(&self, id: UpstreamId) -> &Group {
        &self.groups[id.0 as usize]
    }

    /// Takes the idle connections of an earlier configuration whose servers are still there.
    pub fn take_over(&self, http: Option<&Http>, old: &Upstreams, before: Option<&Http>) {
        // A location keeps what is its own if it stands where it stood, under the same name.
        let still = |id: LocationId| {
            let name = |http: Option<&Http>| {
                http?.locations.get(id.0 as usize).map(|location| Arc::clone(&location.name))
            };
            name(http) == name(before)
        };
        for group in &self.groups {
            let Some(before) = old.groups.iter().find(|before| before.name == group.name) else {
                continue;
            };
            group.pool.borrow_mut().take_over(&mut before.pool.borrow_mut(), still);
        }
        lookup::take_over((self, http), (old, before));
    }

    /// Lends what has been idle for so long to the other shards of the same configuration, or a later
    /// one.
    pub fn lend(&self, http: &Http, shard: &Shard, idle: Duration) {
        let name_of = |id: LocationId| {
            http.locations.get(id.0 as usize).map(|location| Arc::clone(&location.name))
        };
        let (idle_ms, now_ms, lender) =
            (idle.as_millis() as u64, timer::now_ms(), shard.life.shard);
        for group in &self.groups {
            let mut pool = group.pool.borrow_mut();
            let lent = pool.lend(idle_ms, now_ms, &group.lent, lender, name_of);
            if lent > 0 {
                shard.counters.lent.add(lent);
            }
        }
    }

    /// Closes every idle connection, those that are lent, too: the process ends, or rests.
    pub fn close_idle(&self) {
        for group in &self.groups {
            group.pool.borrow_mut().clear();
            group.lent.clear();
        }
    }

    /// The shard's task that looks up the names whose addresses are out of date, and closes idle
    /// upstream connections whose time is up or whose server has closed them.
    pub async fn keep(shard: Rc<Shard>) {
        /// How often idle connections are looked at.
        const PERIOD: Duration = Duration::from_secs(1);
        loop {
            let generation = shard.generation();
            let now = timer::now_ms();
            for group in &generation.upstreams.groups {
                let mut pool = group.pool.borrow_mut();
                pool.sweep(now);
                for _ in 0..group.lent.sweep(now) {
                    pool.trial.was_closed();
                }
            }
            Upstreams::look_up_due(&shard, &generation);
            drop(generation);
            timer::sleep_through(PERIOD).await;
        }
    }
}

impl Group {
    fn new(upstream: &Upstream) -> Self {
        let peers = PeerSet::new(upstream.peers.clone(), &upstream.balance, &upstream.zone, None);
        Group {
            name: Arc::clone(&upstream.name),
            balance: Arc::clone(&upstream.balance),
            zone: Arc::clone(&upstream.zone),
            peers: RefCell::new(Rc::new(peers)),
            pool: RefCell::new(Pool::new(upstream)),
            lent: upstream.zone.lent(),
            queue: upstream.queue.map(|limits| Rc::new(Queue::new(limits, upstream.zone.line()))),
            lookups: upstream.names.iter().map(|_| Lookup::default()).collect(),
        }
    }

    /// The servers as they are now, for one request: it goes on with them whatever changes.
    pub fn peers(&self) -> Rc<PeerSet> {
        Rc::clone(&self.peers.borrow())
    }

    /// Other servers from now on (their names have other addresses). An address that was there
    /// before keeps its state.
    pub fn replace(&self, peers: Vec<Peer>) {
        let before = self.peers();
        let next = PeerSet::new(peers, &self.balance, &self.zone, Some(&before));
        *self.peers.borrow_mut() = Rc::new(next);
    }

    /// Where requests wait while all servers are full.
    pub fn queue(&self) -> Option<&Rc<Queue>> {
        self.queue.as_ref()
    }

    pub fn zone(&self) -> &Arc<Zone> {
        &self.zone
    }
}
