//! `least_conn` and `least_time`: the server with the least on its hands for its weight.

use super::{Tried, round_robin, take};
use crate::http::modules::upstream::{Rank, Until};
use crate::http::upstream::peer::Member;

/// The longest average of `least_time`, in milliseconds.
const LONGEST_MS: u64 = 5000;
/// Averages that are nearer than this are the same.
const STEP_MS: u64 = 20;

/// First among the primary servers, then among the backups. Those that tie take turns.
pub fn pick(members: &[Member], tried: &mut Tried, rank: Rank, now_ms: u64) -> Option<usize> {
    if members.len() == 1 {
        return round_robin::pick(members, tried, now_ms);
    }
    let among = |tried: &Tried, backup| {
        let usable = |at: usize, member: &Member| {
            member.peer.backup == backup && !tried.contains(at) && member.is_usable(now_ms)
        };
        let mut best: Option<(usize, Load)> = None;
        let mut ties = false;
        for (at, member) in members.iter().enumerate().filter(|(at, m)| usable(*at, m)) {
            let load = Load::of(member, rank, now_ms);
            match &best {
                Some((_, least)) if load.compare(least).is_gt() => {}
                Some((_, least)) if load.compare(least).is_eq() => ties = true,
                _ => (best, ties) = (Some((at, load)), false),
            }
        }
        let (best, least) = best?;
        if !ties {
            return Some(best);
        }
        round_robin::step(members, |at, member| {
            usable(at, member) && Load::of(member, rank, now_ms).compare(&least).is_eq()
        })
    };
    let best = among(tried, false).or_else(|| among(tried, true))?;
    take(members, tried, best, now_ms);
    Some(best)
}

/// What a server has to do, and its weight: compared as fractions.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    work: u64,
    weight: u32,
}

impl Load {
    pub fn of(member: &Member, rank: Rank, now_ms: u64) -> Self {
        let active = member.state.active() as u64;
        let work = match rank {
            Rank::Active => active,
            Rank::Time { until, inflight } => active
                .saturating_add(1)
                .saturating_mul(expected_ms(member, until, inflight, now_ms)),
        };
        Load { work, weight: member.peer.weight }
    }

    #[expect(clippy::arithmetic_side_effects, reason = "64 bits times 32 fit in 128")]
    pub fn compare(&self, other: &Load) -> std::cmp::Ordering {
        let this = u128::from(self.work) * u128::from(other.weight);
        this.cmp(&(u128::from(other.work) * u128::from(self.weight)))
    }
}

/// How long an answer takes: the average, which fades while nothing is asked, or the time that open
/// requests have waited already where that is longer.
fn expected_ms(member: &Member, until: Until, inflight: bool, now_ms: u64) -> u64 {
    let average = member.state.average_ms(until) as u64;
    let since = now_ms.saturating_sub(member.state.failures().checked_ms);
    let halvings = since.checked_div(member.timeout_ms()).unwrap_or(0).min(63);
    let mut expected = average >> halvings;
    if inflight {
        expected = expected.max(member.state.waiting_ms(now_ms));
    }
    (expected / STEP_MS).saturating_add(1).saturating_mul(STEP_MS).min(LONGEST_MS)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{members, peer};
    use super::*;
    use crate::http::modules::upstream::Peer;
    use crate::http::upstream::peer::Active;

    fn busy(members: &[Member], counts: &[usize]) -> Vec<Active> {
        members
            .iter()
            .zip(counts)
            .flat_map(|(member, &n)| (0..n).map(|_| Active::take(member, None, 0).unwrap()))
            .collect()
    }

    fn next(members: &[Member], rank: Rank, now_ms: u64) -> Option<usize> {
        pick(members, &mut Tried::default(), rank, now_ms)
    }

    #[test]
    fn the_least_for_its_weight() {
        for (weights, counts, expected) in [
            ([1, 1, 1], [2, 1, 3], 1),
            ([1, 1, 1], [2, 1, 0], 2),
            ([4, 1, 1], [3, 1, 1], 0),
            ([4, 1, 1], [5, 1, 2], 1),
            ([3, 2, 1], [3, 1, 1], 1),
        ] {
            let members = members(weights.map(peer).to_vec());
            let _active = busy(&members, &counts);
            assert_eq!(next(&members, Rank::Active, 0), Some(expected), "{weights:?} {counts:?}");
        }
    }

    #[test]
    fn ties_are_round_robin_and_a_clear_choice_leaves_the_round_alone() {
        let members = members(vec![peer(1), peer(1), peer(1)]);
        let order: Vec<_> = (0..4).map(|_| next(&members, Rank::Active, 0).unwrap()).collect();
        assert_eq!(order, [0, 1, 2, 0]);
        let active = busy(&members, &[1, 1, 0]);
        assert_eq!(next(&members, Rank::Active, 0), Some(2));
        drop(active);
        assert_eq!(next(&members, Rank::Active, 0), Some(1));
    }

    #[test]
    fn backups_are_compared_too() {
        let backup = Peer { backup: true, ..peer(1) };
        let members = members(vec![Peer { down: true, ..peer(1) }, backup.clone(), backup]);
        let _active = busy(&members, &[0, 1, 0]);
        assert_eq!(next(&members, Rank::Active, 0), Some(2));
    }

    #[test]
    fn averages_fade_rise_in_steps_and_end() {
        let time = |member: &Member, now| expected_ms(member, Until::Header, false, now);
        let members =
            members(vec![Peer { fail_timeout: std::time::Duration::from_secs(1), ..peer(1) }]);
        let member = &members[0];
        assert_eq!(time(member, 0), 20);
        // 400 * 0.05, then 20 * 0.95 + 400 * 0.05.
        member.state.answered(400, 9);
        assert_eq!(time(member, 0), 40);
        member.state.answered(400, 9);
        assert_eq!(time(member, 0), 40);
        member.state.answered(1000, 9);
        assert_eq!((time(member, 999), time(member, 1000), time(member, 2000)), (100, 60, 40));
        assert_eq!(time(member, u64::MAX), 20);
        member.state.answered(10_000_000, 9);
        assert_eq!(time(member, 0), 5000);
        assert_eq!(expected_ms(member, Until::LastByte, false, 0), 20);
    }

    #[test]
    fn the_quicker_server_until_it_is_busy() {
        let members = members(vec![peer(1), peer(1)]);
        members[0].state.answered(2000, 2000);
        let rank = Rank::Time { until: Until::LastByte, inflight: false };
        // 120 against (1 + n) * 20.
        for n in 0..5 {
            let _active = busy(&members, &[0, n]);
            assert_eq!(next(&members, rank, 0), Some(1), "{n}");
        }
        let _active = busy(&members, &[0, 6]);
        assert_eq!(next(&members, rank, 0), Some(0));
    }

    #[test]
    fn open_requests_count_with_inflight() {
        let members = members(vec![peer(1), peer(1)]);
        members[1].state.answered(2000, 2000);
        let _active = busy(&members, &[1, 0]);
        let rank = |inflight| Rank::Time { until: Until::Header, inflight };
        assert_eq!(next(&members, rank(false), 500), Some(0));
        assert_eq!(next(&members, rank(true), 500), Some(1));
    }
}
