//! Which server is next: smooth weighted round robin (proxy, section 11). Pure.

use smallvec::SmallVec;

use super::peer::PeerState;
use crate::http::modules::upstream::Peer;

/// The peers that a request has tried already.
#[derive(Debug, Default)]
pub struct Tried(SmallVec<[u64; 2]>);

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

/// The next peer for a request, and marks it as tried. First the primary servers, then the backups.
pub fn pick(
    peers: &[Peer],
    states: &mut [PeerState],
    tried: &mut Tried,
    now_ms: u64,
) -> Option<usize> {
    if let [only] = peers {
        // A server without alternative is never taken out.
        let usable = !only.down && states.first()?.has_room(only) && !tried.contains(0);
        tried.insert(0);
        return usable.then_some(0);
    }
    round_robin(peers, states, tried, now_ms, false)
        .or_else(|| round_robin(peers, states, tried, now_ms, true))
}

fn round_robin(
    peers: &[Peer],
    states: &mut [PeerState],
    tried: &mut Tried,
    now_ms: u64,
    backup: bool,
) -> Option<usize> {
    let mut total = 0;
    let mut best: Option<(usize, i64)> = None;
    for (at, (peer, state)) in peers.iter().zip(states.iter_mut()).enumerate() {
        if peer.backup != backup || tried.contains(at) || !state.is_usable(peer, now_ms) {
            continue;
        }
        state.current_weight += state.effective_weight;
        total += state.effective_weight;
        if state.effective_weight < i64::from(peer.weight) {
            state.effective_weight += 1;
        }
        // The first one wins a tie.
        if best.is_none_or(|(_, weight)| state.current_weight > weight) {
            best = Some((at, state.current_weight));
        }
    }
    let (best, _) = best?;
    states[best].current_weight -= total;
    states[best].picked(&peers[best], now_ms);
    tried.insert(best);
    Some(best)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::http::modules::upstream::PeerAddress;

    fn peer(weight: u32) -> Peer {
        Peer {
            address: PeerAddress::Unix("/x".into()),
            name: "unix:/x".into(),
            weight,
            max_conns: 0,
            max_fails: 1,
            fail_timeout: Duration::from_secs(10),
            backup: false,
            down: false,
        }
    }

    fn states(peers: &[Peer]) -> Vec<PeerState> {
        peers.iter().map(PeerState::new).collect()
    }

    fn picks(
        peers: &[Peer],
        states: &mut [PeerState],
        now_ms: u64,
        n: usize,
    ) -> Vec<Option<usize>> {
        (0..n).map(|_| pick(peers, states, &mut Tried::default(), now_ms)).collect()
    }

    #[test]
    fn weights_are_spread_smoothly() {
        let peers = [peer(5), peer(1), peer(1)];
        let mut states = states(&peers);
        let order: String = picks(&peers, &mut states, 0, 7)
            .into_iter()
            .map(|p| ["A", "B", "C"][p.unwrap()])
            .collect();
        assert_eq!(order, "AABACAA");
    }

    #[test]
    fn a_failed_server_is_out_for_its_time_and_then_gets_one_trial() {
        let peers = [peer(1), peer(1)];
        let mut states = states(&peers);
        assert!(states[0].failed(&peers[0], 1000));
        assert!(picks(&peers, &mut states, 2000, 4).iter().all(|p| *p == Some(1)));
        let trial = picks(&peers, &mut states, 11_001, 4);
        assert_eq!(trial.iter().filter(|p| **p == Some(0)).count(), 1);
        states[0].succeeded();
        assert_eq!(states[0].fails, 0);
        let after = picks(&peers, &mut states, 11_002, 4);
        assert_eq!(after.iter().filter(|p| **p == Some(0)).count(), 2);
    }

    #[test]
    fn a_success_before_the_trial_forgives_nothing() {
        let peers = [peer(1), peer(1)];
        let mut states = states(&peers);
        states[0].failed(&peers[0], 1000);
        states[0].succeeded();
        assert_eq!(states[0].fails, 1);
    }

    #[test]
    fn backups_come_when_no_primary_can() {
        let mut peers = [peer(1), peer(1), peer(1)];
        peers[2].backup = true;
        let mut states = states(&peers);
        let mut tried = Tried::default();
        let order: Vec<_> = (0..4).map(|_| pick(&peers, &mut states, &mut tried, 0)).collect();
        assert_eq!(order, [Some(0), Some(1), Some(2), None]);
    }

    #[test]
    fn a_single_server_is_tried_once_and_never_out() {
        let peers = [peer(1)];
        let mut states = states(&peers);
        for now in 0..5 {
            states[0].failed(&peers[0], now);
            let mut tried = Tried::default();
            assert_eq!(pick(&peers, &mut states, &mut tried, now), Some(0));
            assert_eq!(pick(&peers, &mut states, &mut tried, now), None);
        }
    }

    #[test]
    fn max_conns_is_a_limit() {
        let mut peers = [peer(1)];
        peers[0].max_conns = 2;
        let mut states = states(&peers);
        states[0].active = 2;
        assert_eq!(pick(&peers, &mut states, &mut Tried::default(), 0), None);
    }
}
