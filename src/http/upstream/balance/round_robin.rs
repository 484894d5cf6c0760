//! Smooth weighted round robin: nginx's default, and what the other methods fall back on.

use super::{Tried, take};
use crate::http::upstream::peer::Member;

/// The next server for a request, marked as tried. First the primary servers, then the backups.
pub fn pick(members: &[Member], tried: &mut Tried, now_ms: u64) -> Option<usize> {
    if let [only] = members {
        // A server without alternative is never taken out.
        return (only.can_be_asked(now_ms) && !only.peer.drain).then_some(0);
    }
    let among = |tried: &Tried, backup| {
        step(members, |at, member| {
            member.peer.backup == backup && !tried.contains(at) && member.is_usable(now_ms)
        })
    };
    let best = among(tried, false).or_else(|| among(tried, true))?;
    take(members, tried, best, now_ms);
    Some(best)
}

/// One step of the smooth round over the members that take part in it.
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "`best` is one of these; weights have 32 bits, and a step takes off as much as it adds"
)]
pub fn step(members: &[Member], takes_part: impl Fn(usize, &Member) -> bool) -> Option<usize> {
    let mut total = 0;
    let mut best: Option<(usize, i64)> = None;
    for (at, member) in members.iter().enumerate().filter(|(at, member)| takes_part(*at, member)) {
        let state = &member.state;
        let effective = state.effective_weight.get();
        let current = state.current_weight.get() + effective;
        state.current_weight.set(current);
        total += effective;
        if effective < i64::from(member.peer.weight) {
            state.effective_weight.set(effective + 1);
        }
        // The first one wins a tie.
        if best.is_none_or(|(_, weight)| current > weight) {
            best = Some((at, current));
        }
    }
    let (best, current) = best?;
    members[best].state.current_weight.set(current - total);
    Some(best)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{members, peer};
    use super::*;
    use crate::http::modules::upstream::Peer;
    use crate::http::upstream::peer::Active;

    fn picks(members: &[Member], now_ms: u64, n: usize) -> Vec<Option<usize>> {
        (0..n).map(|_| pick(members, &mut Tried::default(), now_ms)).collect()
    }

    #[test]
    fn weights_are_spread_smoothly() {
        let members = members(vec![peer(5), peer(1), peer(1)]);
        let order: String =
            picks(&members, 0, 7).into_iter().map(|p| ["A", "B", "C"][p.unwrap()]).collect();
        assert_eq!(order, "AABACAA");
    }

    #[test]
    fn a_failed_server_is_out_for_its_time_and_then_gets_one_trial() {
        let members = members(vec![peer(1), peer(1)]);
        assert!(members[0].failed(1000));
        assert!(picks(&members, 2000, 4).iter().all(|p| *p == Some(1)));
        assert!(picks(&members, 11_000, 4).iter().all(|p| *p == Some(1)));
        let trial = picks(&members, 11_001, 4);
        assert_eq!(trial.iter().filter(|p| **p == Some(0)).count(), 1);
        members[0].state.has_not_failed();
        assert_eq!(members[0].state.failures().fails, 0);
        let after = picks(&members, 11_002, 4);
        assert_eq!(after.iter().filter(|p| **p == Some(0)).count(), 2);
    }

    #[test]
    fn a_success_before_the_trial_forgives_nothing() {
        let members = members(vec![peer(1), peer(1)]);
        members[0].failed(1000);
        members[0].state.has_not_failed();
        assert_eq!(members[0].state.failures().fails, 1);
    }

    #[test]
    fn backups_come_when_no_primary_can() {
        let backup = Peer { backup: true, ..peer(1) };
        let members = members(vec![peer(1), peer(1), backup]);
        let mut tried = Tried::default();
        let order: Vec<_> = (0..4).map(|_| pick(&members, &mut tried, 0)).collect();
        assert_eq!(order, [Some(0), Some(1), Some(2), None]);
    }

    #[test]
    fn a_single_server_is_never_out() {
        let members = members(vec![peer(1)]);
        for now in 0..5 {
            members[0].failed(now);
            assert_eq!(pick(&members, &mut Tried::default(), now), Some(0));
        }
    }

    #[test]
    fn max_conns_is_a_limit() {
        let members = members(vec![Peer { max_conns: 2, ..peer(1) }]);
        let active = [(); 2].map(|()| Active::take(&members[0], None, 0));
        assert_eq!(pick(&members, &mut Tried::default(), 0), None);
        drop(active);
        assert_eq!(pick(&members, &mut Tried::default(), 0), Some(0));
    }
}
