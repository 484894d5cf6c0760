//! `random`: by lot, in shares of the weights; with `two` the better of two.

use std::cell::Cell;

use super::least::Load;
use super::{Shares, TRIES_MAX, Tried, first_usable};
use crate::http::modules::upstream::Draws;
use crate::http::upstream::peer::Member;

/// Numbers that spread well and need not be secret: Vigna's splitmix64.
#[derive(Debug)]
pub struct Chance(Cell<u64>);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Chance(Cell::new(seed))
    }

    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

#[expect(clippy::indexing_slicing, reason = "the shares are of these members")]
pub fn pick(
    draws: Draws,
    shares: &Shares,
    chance: &Chance,
    members: &[Member],
    tried: &Tried,
    tries: &mut u8,
    now_ms: u64,
) -> Option<usize> {
    let draw = || shares.holder(chance.next());
    let Draws::Two(rank) = draws else {
        return first_usable(members, tried, tries, now_ms, draw);
    };
    let mut first = None;
    while *tries <= TRIES_MAX {
        let at = draw()?;
        if first != Some(at) && !tried.contains(at) && members[at].is_usable(now_ms) {
            let Some(before) = first else {
                first = Some(at);
                *tries = tries.saturating_add(1);
                continue;
            };
            let [this, other] = [at, before].map(|at| Load::of(&members[at], rank, now_ms));
            return Some(if this.compare(&other).is_gt() { before } else { at });
        }
        *tries = tries.saturating_add(1);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::Picker;
    use super::super::tests::{peer, set};
    use super::*;
    use crate::http::modules::upstream::{Balance, Rank};
    use crate::http::upstream::peer::Active;

    /// The generator's published first values for the seed 1234567.
    #[test]
    fn splitmix64() {
        let chance = Chance::new(1_234_567);
        let first = [chance.next(), chance.next(), chance.next()];
        assert_eq!(
            first,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    fn counts(draws: Draws, weights: [u32; 3], busy: usize) -> [usize; 3] {
        let mut set = set(weights.map(peer).to_vec(), &Balance::Random(draws));
        set.balancer = super::super::Balancer::new(&Balance::Random(draws), &set.members, 1);
        let _active: Vec<_> = (0..busy).map(|_| Active::take(&set.members[0], None, 0)).collect();
        let mut counts = [0; 3];
        for _ in 0..6000 {
            counts[Picker::default().pick(&set, 0).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn shares_are_those_of_the_weights() {
        let [a, b, c] = counts(Draws::One, [1, 2, 3], 0);
        assert!((850..1150).contains(&a) && (1850..2150).contains(&b), "{a} {b} {c}");
    }

    #[test]
    fn of_two_the_less_busy_one() {
        let [busy, ..] = counts(Draws::Two(Rank::Active), [1, 1, 1], 1);
        assert_eq!(busy, 0);
        assert!(counts(Draws::One, [1, 1, 1], 1)[0] > 1500);
    }
}
