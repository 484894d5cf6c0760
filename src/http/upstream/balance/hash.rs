//! `hash key`: the same server for the same key, as `Cache::Memcached` spreads them.

use super::{Shares, Tried, first_usable};
use crate::http::upstream::peer::Member;

/// Where a request has got to in the sequence that its key makes.
#[derive(Debug, Clone)]
pub struct Walk {
    key: Vec<u8>,
    rehash: u32,
    sum: u64,
}

impl Walk {
    pub fn new(key: Vec<u8>) -> Self {
        Walk { key, rehash: 0, sum: 0 }
    }

    pub fn pick(
        &mut self,
        shares: &Shares,
        members: &[Member],
        tried: &Tried,
        tries: &mut u8,
        now_ms: u64,
    ) -> Option<usize> {
        if self.key.is_empty() {
            return None;
        }
        first_usable(members, tried, tries, now_ms, || shares.holder(self.next()))
    }

    /// The sum so far of `(crc32([n] key) >> 16) & 0x7fff`, `n` left out the first time.
    fn next(&mut self) -> u64 {
        let mut hash = crc32fast::Hasher::new();
        if self.rehash > 0 {
            hash.update(itoa::Buffer::new().format(self.rehash).as_bytes());
        }
        hash.update(&self.key);
        self.sum = self.sum.wrapping_add(u64::from(hash.finalize() >> 16 & 0x7fff));
        self.rehash = self.rehash.wrapping_add(1);
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::super::Picker;
    use super::super::tests::{by_key, peer, set};
    use super::*;

    /// `crc32` of "/a" is 0x69707b5c, of "1/a" 0xf2413f16, of "2/a" 0xf007814f (zlib).
    #[test]
    fn the_sequence() {
        let mut walk = Walk::new(b"/a".to_vec());
        let terms = [26_992, 29_249, 28_679];
        assert_eq!(walk.next(), terms[0]);
        assert_eq!(walk.next(), terms[0] + terms[1]);
        assert_eq!(walk.next(), terms[0] + terms[1] + terms[2]);
    }

    /// Keys "0" to "9" over weights 1, 2, 1: worked out with zlib's crc32.
    #[test]
    fn keys_go_where_nginx_sends_them() {
        let set = set(vec![peer(1), peer(2), peer(1)], &by_key(false));
        let picks = (b'0'..=b'9').map(|key| Picker::new(&set, None, || vec![key]).pick(&set, 0));
        let picks: Vec<usize> = picks.map(Option::unwrap).collect();
        assert_eq!(picks, [2, 0, 1, 1, 1, 1, 0, 2, 0, 2]);
    }

    #[test]
    fn without_a_key_it_is_round_robin() {
        let set = set(vec![peer(1), peer(1)], &by_key(false));
        let picks: Vec<_> =
            (0..4).map(|_| Picker::new(&set, None, Vec::new).pick(&set, 0).unwrap()).collect();
        assert_eq!(picks, [0, 1, 0, 1]);
    }
}
