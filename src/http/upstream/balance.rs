//! Which server is next: the balancing methods (proxy, section 11). Pure: time and chance come in
//! as arguments.

pub mod consistent;
pub mod hash;
pub mod ip_hash;
pub mod least;
pub mod random;
pub mod round_robin;

use std::net::IpAddr;
use std::rc::Rc;

use smallvec::SmallVec;

use super::peer::{Active, Member, PeerSet};
use super::queue::Queue;
use crate::http::modules::upstream::{Balance, Draws, Rank};
use consistent::Ring;
use random::Chance;

/// Servers looked at for one request before a method that hashes or draws leaves the choice to round
/// robin.
const TRIES_MAX: u8 = 20;

/// A balancing method, with what it works out once for a set of servers.
#[derive(Debug)]
pub enum Balancer {
    RoundRobin,
    Least(Rank),
    IpHash(Shares),
    Hash(Shares),
    Consistent(Ring),
    Random(Draws, Shares, Chance),
}

/// The primary servers, each with its share of a number: the weights.
#[derive(Debug)]
pub struct Shares {
    /// Where each share ends, and whose it is.
    ends: Vec<(u64, usize)>,
    total: u64,
}

/// One request's way through the servers.
#[derive(Debug, Default, Clone)]
pub struct Picker {
    tried: Tried,
    /// Servers that could not be taken.
    tries: u8,
    way: Way,
}

/// What the method goes by.
#[derive(Debug, Default, Clone)]
enum Way {
    #[default]
    Any,
    Address(ip_hash::Walk),
    Key(hash::Walk),
    /// An index into the ring's points.
    Point(usize),
}

/// The peers that a request has tried already.
#[derive(Debug, Default, Clone)]
pub struct Tried(SmallVec<[u64; 2]>);

impl Balancer {
    pub fn new(balance: &Balance, members: &[Member], seed: u64) -> Self {
        let shares = || Shares::new(members);
        match balance {
            Balance::RoundRobin => Balancer::RoundRobin,
            Balance::Least(rank) => Balancer::Least(*rank),
            Balance::IpHash => Balancer::IpHash(shares()),
            Balance::Hash { consistent: false, .. } => Balancer::Hash(shares()),
            Balance::Hash { consistent: true, .. } => Balancer::Consistent(Ring::new(members)),
            Balance::Random(draws) => Balancer::Random(*draws, shares(), Chance::new(seed)),
        }
    }

    /// Whether answers are timed.
    pub fn measures(&self) -> bool {
        matches!(
            self,
            Balancer::Least(Rank::Time { .. })
                | Balancer::Random(Draws::Two(Rank::Time { .. }), ..)
        )
    }
}

impl Picker {
    /// For a request of this client, and with this key where servers are chosen by one.
    pub fn new(set: &PeerSet, client: Option<IpAddr>, key: impl FnOnce() -> Vec<u8>) -> Self {
        let way = match &set.balancer {
            Balancer::IpHash(_) => Way::Address(ip_hash::Walk::new(client)),
            Balancer::Hash(_) => Way::Key(hash::Walk::new(key())),
            Balancer::Consistent(ring) => match key() {
                key if key.is_empty() => Way::Any,
                key => Way::Point(ring.find(crc32fast::hash(&key))),
            },
            Balancer::RoundRobin | Balancer::Least(_) | Balancer::Random(..) => Way::Any,
        };
        Picker { tried: Tried::default(), tries: 0, way }
    }

    /// The next server with a place at it, marked as tried. When another shard takes the last place
    /// after a server was chosen, that server is full and the choice is made again.
    pub fn take(
        &mut self,
        set: &PeerSet,
        bound: Option<usize>,
        queue: Option<&Rc<Queue>>,
        now_ms: u64,
    ) -> Option<(usize, Active)> {
        loop {
            let at = match bound {
                Some(at) if self.pick_bound(set, at, now_ms) => at,
                _ => self.pick(set, now_ms)?,
            };
            #[expect(clippy::indexing_slicing, reason = "one of these was picked")]
            let member = &set.members[at];
            match Active::take(member, queue, now_ms) {
                Some(active) => return Some((at, active)),
                None => self.untry(at),
            }
        }
    }

    /// A server that could not be asked, for no fault of its own, can be chosen again.
    pub fn untry(&mut self, at: usize) {
        self.tried.remove(at);
    }

    /// Chooses as at the beginning, only not what has been tried.
    pub fn rewind(&mut self, fresh: &Picker) {
        self.tries = fresh.tries;
        self.way.clone_from(&fresh.way);
    }

    /// Whether there is a server that has not been tried and would be asked if it had room.
    pub fn has_hope(&self, set: &PeerSet, bound: Option<usize>, now_ms: u64) -> bool {
        let is_untried = |at: usize| !self.tried.contains(at);
        let is_bound = |at: usize| {
            set.members
                .get(at)
                .is_some_and(|member| is_untried(at) && member.is_well() && !member.is_out(now_ms))
        };
        set.any_well(now_ms, |at, _| is_untried(at)) || bound.is_some_and(is_bound)
    }

    /// The next server, marked as tried.
    pub fn pick(&mut self, set: &PeerSet, now_ms: u64) -> Option<usize> {
        let Picker { tried, tries, way } = self;
        let members = set.members.as_slice();
        let found = match (&set.balancer, way) {
            (Balancer::Least(rank), _) => return least::pick(members, tried, *rank, now_ms),
            (Balancer::IpHash(shares), Way::Address(walk)) => {
                walk.pick(shares, members, tried, tries, now_ms)
            }
            (Balancer::Hash(shares), Way::Key(walk)) => {
                walk.pick(shares, members, tried, tries, now_ms)
            }
            (Balancer::Consistent(ring), Way::Point(point)) => {
                ring.pick(point, members, tried, tries, now_ms)
            }
            (Balancer::Random(draws, shares, chance), _) => {
                random::pick(*draws, shares, chance, members, tried, tries, now_ms)
            }
            _ => None,
        };
        match found {
            Some(at) => {
                take(members, tried, at, now_ms);
                Some(at)
            }
            None => round_robin::pick(members, tried, now_ms),
        }
    }

    /// The server that a request is bound to, marked as tried, if it can be asked: one that is
    /// drained can.
    pub fn pick_bound(&mut self, set: &PeerSet, at: usize, now_ms: u64) -> bool {
        let is_free = set.members.get(at).is_some_and(|member| {
            !self.tried.contains(at) && member.can_be_asked(now_ms) && !member.is_out(now_ms)
        });
        if is_free {
            take(&set.members, &mut self.tried, at, now_ms);
        }
        is_free
    }
}

#[expect(clippy::indexing_slicing, reason = "one of these was picked")]
fn take(members: &[Member], tried: &mut Tried, at: usize, now_ms: u64) {
    members[at].picked(now_ms);
    tried.insert(at);
}

/// Of the candidates in turn the first that can be taken, until the request's tries are used up.
#[expect(clippy::indexing_slicing, reason = "candidates are from the shares of these members")]
fn first_usable(
    members: &[Member],
    tried: &Tried,
    tries: &mut u8,
    now_ms: u64,
    mut candidate: impl FnMut() -> Option<usize>,
) -> Option<usize> {
    while *tries <= TRIES_MAX {
        let at = candidate()?;
        if !tried.contains(at) && members[at].is_usable(now_ms) {
            return Some(at);
        }
        *tries = tries.saturating_add(1);
    }
    None
}

impl Shares {
    #[expect(clippy::arithmetic_side_effects, reason = "64 bits: the sum of 2^32 weights")]
    fn new(members: &[Member]) -> Self {
        let mut total = 0;
        let mut ends = Vec::with_capacity(members.len());
        for (at, member) in members.iter().enumerate().filter(|(_, member)| !member.peer.backup) {
            total += u64::from(member.peer.weight);
            ends.push((total, at));
        }
        Shares { ends, total }
    }

    /// Whose share a number lies in, taken modulo the total; `None` where there is nothing to
    /// choose from.
    fn holder(&self, number: u64) -> Option<usize> {
        if self.ends.len() < 2 {
            return None;
        }
        let number = number.checked_rem(self.total)?;
        let at = self.ends.partition_point(|&(end, _)| end <= number);
        Some(self.ends.get(at)?.1)
    }
}

impl Tried {
    pub fn contains(&self, peer: usize) -> bool {
        self.0.get(peer / 64).is_some_and(|word| word & (1 << (peer % 64)) != 0)
    }

    pub fn remove(&mut self, peer: usize) {
        if let Some(word) = self.0.get_mut(peer / 64) {
            *word &= !(1 << (peer % 64));
        }
    }

    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "a 64th of a number, and the word of that number is made sure of"
    )]
    pub fn insert(&mut self, peer: usize) {
        if self.0.len() <= peer / 64 {
            self.0.resize(peer / 64 + 1, 0);
        }
        self.0[peer / 64] |= 1 << (peer % 64);
    }
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::modules::upstream::{Peer, Until};
    use crate::http::upstream::zone::Zone;
    use crate::http::variable::Template;

    pub fn peer(weight: u32) -> Peer {
        Peer { weight, ..Peer::default() }
    }

    pub fn members(peers: Vec<Peer>) -> Vec<Member> {
        set(peers, &Balance::RoundRobin).members
    }

    pub fn set(peers: Vec<Peer>, balance: &Balance) -> PeerSet {
        PeerSet::new(peers, balance, &Zone::default(), None)
    }

    pub fn by_key(consistent: bool) -> Balance {
        Balance::Hash { key: Template::default(), consistent }
    }

    fn every_method() -> Vec<Balance> {
        let time = Rank::Time { until: Until::LastByte, inflight: true };
        vec![
            Balance::RoundRobin,
            Balance::Least(Rank::Active),
            Balance::Least(time),
            Balance::IpHash,
            by_key(false),
            by_key(true),
            Balance::Random(Draws::One),
            Balance::Random(Draws::Two(Rank::Active)),
            Balance::Random(Draws::Two(time)),
        ]
    }

    #[test]
    fn a_bound_request_gets_its_server_once_even_a_drained_one() {
        let drained = Peer { drain: true, ..peer(1) };
        for balance in every_method() {
            let set = set(vec![peer(1), drained.clone(), peer(1)], &balance);
            let mut picker = Picker::new(&set, None, || b"key".to_vec());
            assert!(picker.pick_bound(&set, 1, 0) && !picker.pick_bound(&set, 1, 0));
            assert!(!picker.pick_bound(&set, 3, 0));
            set.members[2].failed(0);
            assert!(!picker.pick_bound(&set, 2, 0));
        }
    }

    proptest! {
        /// Whatever the method: each usable server once, no other ever, primaries before backups.
        #[test]
        fn every_usable_server_is_tried_once(
            kinds in proptest::collection::vec((1..4u32, 0..6u8, any::<bool>()), 1..9),
            key in proptest::collection::vec(any::<u8>(), 0..9),
            client in any::<Option<[u8; 4]>>(),
        ) {
            let peers: Vec<Peer> = kinds
                .iter()
                .enumerate()
                .map(|(n, &(weight, kind, _))| Peer {
                    name: n.to_string().into(),
                    server: n.to_string().into(),
                    backup: kind == 0,
                    down: kind == 1,
                    drain: kind == 2,
                    ..peer(weight)
                })
                .collect();
            for balance in every_method() {
                let set = set(peers.clone(), &balance);
                if set.members.len() == 1 {
                    continue;
                }
                for (member, &(_, _, fails)) in set.members.iter().zip(&kinds) {
                    if fails {
                        member.failed(1);
                    }
                }
                let usable = |at: &usize| set.members[*at].is_usable(2);
                let is_backup = |at: &usize| set.members[*at].peer.backup;
                let mut picker = Picker::new(&set, client.map(IpAddr::from), || key.clone());
                let order: Vec<usize> =
                    std::iter::from_fn(|| picker.pick(&set, 2)).take(99).collect();
                let mut sorted = order.clone();
                sorted.sort_unstable();
                let expected: Vec<usize> = (0..set.members.len()).filter(usable).collect();
                prop_assert_eq!(&sorted, &expected, "{:?}", balance);
                prop_assert!(order.is_sorted_by_key(is_backup), "{:?}", balance);
            }
        }
    }
}
