//! Which server is next: the balancing methods (proxy, section 11). Pure: time and chance come in
//! as arguments.

pub mod round_robin;

use smallvec::SmallVec;

use super::peer::{Member, PeerSet};
use crate::http::modules::upstream::Balance;

/// What a balancing method works out once for a set of servers.
#[derive(Debug)]
pub struct Balancer;

/// One request's way through the servers.
#[derive(Debug, Default)]
pub struct Picker {
    tried: Tried,
}

/// The peers that a request has tried already.
#[derive(Debug, Default)]
pub struct Tried(SmallVec<[u64; 2]>);

impl Balancer {
    pub fn new(_: &Balance, _: &[Member]) -> Self {
        Balancer
    }
}

impl Picker {
    /// The next server, marked as tried.
    pub fn pick(&mut self, set: &PeerSet, now_ms: u64) -> Option<usize> {
        round_robin::pick(&set.members, &mut self.tried, now_ms)
    }
}

impl Tried {
    pub fn contains(&self, peer: usize) -> bool {
        self.0.get(peer / 64).is_some_and(|word| word & (1 << (peer % 64)) != 0)
    }

    pub fn insert(&mut self, peer: usize) {
        if self.0.len() <= peer / 64 {
            self.0.resize(peer / 64 + 1, 0);
        }
        self.0[peer / 64] |= 1 << (peer % 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::modules::upstream::Peer;
    use crate::http::upstream::zone::Zone;

    pub fn peer(weight: u32) -> Peer {
        Peer { weight, ..Peer::default() }
    }

    pub fn members(peers: Vec<Peer>) -> Vec<Member> {
        PeerSet::new(peers, &Balance::RoundRobin, &Zone::default(), None).members
    }
}
