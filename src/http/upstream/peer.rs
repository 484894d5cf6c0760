//! The state of one upstream server: weights and failures (proxy, sections 11 and 13). Pure: time
//! comes in as milliseconds.

use crate::http::modules::upstream::Peer;

#[derive(Debug, Clone, Default)]
pub struct PeerState {
    /// Smooth weighted round robin.
    pub current_weight: i64,
    pub effective_weight: i64,
    /// Requests under way.
    pub active: usize,
    pub fails: u32,
    /// When it failed last.
    pub accessed_ms: u64,
    /// When it failed last or was tried again since.
    pub checked_ms: u64,
}

impl PeerState {
    pub fn new(peer: &Peer) -> Self {
        PeerState { effective_weight: i64::from(peer.weight), ..PeerState::default() }
    }

    /// Not down, not in its time-out, not full.
    pub fn is_usable(&self, peer: &Peer, now_ms: u64) -> bool {
        !peer.down && !self.is_out(peer, now_ms) && self.has_room(peer)
    }

    pub fn has_room(&self, peer: &Peer) -> bool {
        peer.max_conns == 0 || self.active < peer.max_conns
    }

    fn is_out(&self, peer: &Peer, now_ms: u64) -> bool {
        peer.max_fails > 0
            && self.fails >= peer.max_fails
            && now_ms.saturating_sub(self.checked_ms) <= timeout_ms(peer)
    }

    /// It was picked: after its time-out this is the one trial.
    pub fn picked(&mut self, peer: &Peer, now_ms: u64) {
        if now_ms.saturating_sub(self.checked_ms) > timeout_ms(peer) {
            self.checked_ms = now_ms;
        }
    }

    /// True when this failure takes it out.
    pub fn failed(&mut self, peer: &Peer, now_ms: u64) -> bool {
        self.fails += 1;
        self.accessed_ms = now_ms;
        self.checked_ms = now_ms;
        if peer.max_fails > 0 {
            self.effective_weight -= i64::from(peer.weight) / i64::from(peer.max_fails);
            self.effective_weight = self.effective_weight.max(0);
        }
        peer.max_fails > 0 && self.fails >= peer.max_fails
    }

    /// A success forgives only what came before the last trial.
    pub fn succeeded(&mut self) {
        if self.accessed_ms < self.checked_ms {
            self.fails = 0;
        }
    }
}

fn timeout_ms(peer: &Peer) -> u64 {
    peer.fail_timeout.as_millis() as u64
}
