//! `ip_hash`: the same server for the same client, told by the first three bytes of an IPv4 address
//! or all of an IPv6 one.

use std::net::IpAddr;

use smallvec::SmallVec;

use super::{Shares, Tried, first_usable};
use crate::http::upstream::peer::Member;

/// Where a request has got to in the sequence that its client's address makes.
#[derive(Debug, Clone)]
pub struct Walk {
    address: SmallVec<[u8; 16]>,
    hash: u64,
}

impl Walk {
    /// A client on a unix socket has the address zero.
    pub fn new(client: Option<IpAddr>) -> Self {
        let address = match client {
            Some(IpAddr::V4(ip)) => SmallVec::from_slice(&ip.octets()[..3]),
            Some(IpAddr::V6(ip)) => SmallVec::from_slice(&ip.octets()),
            None => SmallVec::from_slice(&[0; 3]),
        };
        Walk { address, hash: 89 }
    }

    pub fn pick(
        &mut self,
        shares: &Shares,
        members: &[Member],
        tried: &Tried,
        tries: &mut u8,
        now_ms: u64,
    ) -> Option<usize> {
        first_usable(members, tried, tries, now_ms, || shares.holder(self.next()))
    }

    #[expect(clippy::arithmetic_side_effects, reason = "the hash is below 6271 each time")]
    fn next(&mut self) -> u64 {
        for byte in &self.address {
            self.hash = (self.hash * 113 + u64::from(*byte)) % 6271;
        }
        self.hash
    }
}

#[cfg(test)]
mod tests {
    use super::super::Picker;
    use super::super::tests::{peer, set};
    use super::*;
    use crate::http::modules::upstream::{Balance, Peer};

    fn pick(peers: Vec<Peer>, client: &str) -> Option<usize> {
        let set = set(peers, &Balance::IpHash);
        Picker::new(&set, client.parse().ok(), Vec::new).pick(&set, 0)
    }

    /// From 89 over 127, 0, 0: 3913, 3199, 4040; on over the same: 5135, 3323, 5510.
    #[test]
    fn the_sequence() {
        let mut walk = Walk::new("127.0.0.1".parse().ok());
        assert_eq!([walk.next(), walk.next()], [4040, 5510]);
        let mut zero = Walk::new(None);
        assert_eq!(zero.next(), 89 * 113 % 6271 * 113 % 6271 * 113 % 6271);
    }

    #[test]
    fn the_last_byte_of_ipv4_does_not_count_and_of_ipv6_does() {
        let three = || vec![peer(1), peer(1), peer(1)];
        let same: Vec<_> = (0..9).map(|n| pick(three(), &format!("10.1.2.{n}"))).collect();
        assert!(same.iter().all(|at| *at == same[0]));
        let others: Vec<_> = (0..9).map(|n| pick(three(), &format!("fd00::{n}"))).collect();
        assert!(others.iter().any(|at| *at != others[0]));
    }

    #[test]
    fn a_down_server_keeps_its_share_and_others_take_over() {
        let client = "127.0.0.1";
        let three = vec![peer(1), peer(2), peer(1)];
        let usual = pick(three.clone(), client).unwrap();
        let other = (usual + 1) % 3;
        let with_down = |at: usize| {
            let mut peers = three.clone();
            peers[at].down = true;
            pick(peers, client).unwrap()
        };
        assert_eq!(with_down(other), usual);
        assert_ne!(with_down(usual), usual);
    }
}
