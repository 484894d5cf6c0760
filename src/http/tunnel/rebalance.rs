//! `tunnel_rebalance`: a shard that holds clearly more tunnels than the others, or moves clearly more
//! bytes, gives some away. The kernel deals out connections evenly, but not those that stay, nor what
//! they carry.
//!
//! Every shard publishes what it carries, and all come to the same targets by the same arithmetic: the
//! shards that give, and the master, which places what they give. If each measured the others, two
//! could disagree for long, and send tunnels to and fro.

use std::rc::Rc;
use std::time::Duration;

use super::engine::Which;
use crate::channel::Event;
use crate::counters::Load;
use crate::io::select::{Either, either, yield_now};
use crate::io::timer;
use crate::shard::Shard;

/// Tunnels given away in one go: while they are on their way they carry nothing.
const BATCH: usize = 32;
/// Tunnels over its target that a shard keeps, as the part of its target and at least so many: moving
/// has a price.
const TOLERANCE_PART: u64 = 20;
const TOLERANCE_MIN: u64 = 8;
/// Bytes per second of all shards together up to which they weigh nothing, and above which they weigh
/// the more. A core splices gigabytes: for one that is busy with less than a few hundredths of that,
/// nobody need move.
const SIGNIFICANT: f64 = (32_u64 << 20) as f64;
/// The part of the average that a shard's bytes may be above it, or below, as if they were even.
const CLEAR: f64 = 0.25;
/// The part, one of so many, of a change that counts in an interval: of one up, and of one down.
const RISE: u64 = 4;
const FALL: u64 = 32;
/// Who has said something this lately is not idle, however often shards compare.
const IDLE_MIN: Duration = Duration::from_secs(1);

/// A shard's bytes per second without their bursts.
///
/// The median of five intervals: two that are unlike the others, the ends of a burst or of a pause,
/// change nothing. From there it follows more slowly down than up: tunnels that have made room for what
/// comes and goes wait until it stays away.
#[derive(Debug, Default)]
struct Meter {
    /// Bytes so far, and when (milliseconds) that was.
    last: Option<(u64, u64)>,
    recent: [u64; 5],
    level: u64,
}

impl Meter {
    /// Bytes so far, at the end of an interval.
    fn note(&mut self, bytes: u64, now_ms: u64) -> u64 {
        let Some((before, since_ms)) = self.last.replace((bytes, now_ms)) else { return 0 };
        let moved = bytes.saturating_sub(before);
        let elapsed_ms = now_ms.saturating_sub(since_ms);
        let Some(rate) = moved.saturating_mul(1000).checked_div(elapsed_ms) else {
            return self.level;
        };
        let [_, b, c, d, e] = self.recent;
        self.recent = [b, c, d, e, rate];
        let mut sorted = self.recent;
        sorted.sort_unstable();
        let [_, _, median, ..] = sorted;
        self.level = if median > self.level {
            self.level.saturating_add(median.abs_diff(self.level).div_ceil(RISE))
        } else {
            self.level.saturating_sub(median.abs_diff(self.level).div_ceil(FALL))
        };
        self.level
    }
}

/// How the tunnels of all shards are to be spread over them.
#[derive(Debug)]
struct Spread {
    shards: f64,
    tunnels: f64,
    bytes_per_second: f64,
    /// The sum of all weights.
    weights: f64,
}

impl Spread {
    /// Of what the shards hold, and of tunnels that none of them holds now.
    fn new(loads: &[Load], under_way: usize) -> Self {
        let sum = |of: fn(&Load) -> u64| loads.iter().map(|load| of(load) as f64).sum::<f64>();
        let mut spread = Spread {
            shards: loads.len() as f64,
            tunnels: sum(|load| load.tunnels) + under_way as f64,
            bytes_per_second: sum(|load| load.bytes_per_second),
            weights: 0.0,
        };
        spread.weights = loads.iter().map(|load| spread.weight(*load)).sum();
        spread
    }

    /// A shard's part of all tunnels where one is the average: two at most, for one that moves no bytes
    /// when others do, and none for one that moves twice the average or more.
    fn weight(&self, load: Load) -> f64 {
        if self.bytes_per_second <= SIGNIFICANT {
            return 1.0;
        }
        let of_average = load.bytes_per_second as f64 * self.shards / self.bytes_per_second;
        // Nothing here jumps when the bytes change a little: neither do tunnels, then.
        let over = (of_average - 1.0) * (1.0 - SIGNIFICANT / self.bytes_per_second);
        let clearly_over = (over.abs() - CLEAR).max(0.0) / (1.0 - CLEAR);
        (1.0 - clearly_over.copysign(over)).max(0.0)
    }

    /// How many tunnels a shard is to have. Rounded up: otherwise one may go in circles.
    fn target(&self, load: Load) -> u64 {
        (self.tunnels * self.weight(load) / self.weights).ceil() as u64
    }

    /// The same if bytes did not count.
    fn even(&self) -> u64 {
        (self.tunnels / self.shards).ceil() as u64
    }
}

/// What a shard gives away.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Surplus {
    /// Those first that have been quiet longest.
    any: usize,
    /// Besides these, if they are idle.
    idle: usize,
}

/// Of what a shard has, all shards having all of that.
fn surplus(own: Load, all: &[Load]) -> Surplus {
    if all.len() < 2 {
        // Nobody to give to.
        return Surplus::default();
    }
    let spread = Spread::new(all, 0);
    let target = spread.target(own);
    let over = clearly_over(own.tunnels, target);
    // One that moves few bytes has the others' idle tunnels above what would be even.
    let any = clearly_over(own.tunnels, target.max(spread.even()));
    Surplus { any, idle: over.saturating_sub(any) }
}

fn clearly_over(tunnels: u64, target: u64) -> usize {
    let over = tunnels.saturating_sub(target);
    let is_clear = over > TOLERANCE_MIN.max(target / TOLERANCE_PART);
    if is_clear { usize::try_from(over).unwrap_or(usize::MAX) } else { 0 }
}

/// How many of so many tunnels, which no shard has now, each shard gets: whoever is furthest below its
/// target gets the next. None goes to the shard that gives them.
pub fn deal(loads: &[Load], giver: Option<usize>, count: usize) -> Vec<usize> {
    let spread = Spread::new(loads, count);
    let mut takers: Vec<(i64, usize)> = loads
        .iter()
        .enumerate()
        .filter(|(shard, _)| Some(*shard) != giver)
        .map(|(shard, load)| {
            let over = i128::from(load.tunnels).saturating_sub(i128::from(spread.target(*load)));
            (over as i64, shard)
        })
        .collect();
    let mut counts = vec![0_usize; loads.len()];
    for _ in 0..count {
        let Some((over, shard)) = takers.iter_mut().min_by_key(|(over, _)| *over) else { break };
        *over = over.saturating_add(1);
        if let Some(count) = counts.get_mut(*shard) {
            *count = count.saturating_add(1);
        }
    }
    counts
}

/// Gives away all tunnels there are now: another process takes over.
pub async fn give_all(shard: Rc<Shard>) {
    let _told = GaveAll(&shard);
    give(&shard, usize::MAX, Which::Any).await;
}

/// Tells the master, which waits for it, whatever becomes of the task.
struct GaveAll<'a>(&'a Shard);

impl Drop for GaveAll<'_> {
    fn drop(&mut self) {
        self.0.tell(Event::GaveAll { life: self.0.life });
    }
}

/// Gives so many of those away that there are now.
async fn give(shard: &Shard, most: usize, which: Which) {
    let open = usize::try_from(shard.counters.tunnels.open.get()).unwrap_or(usize::MAX);
    let mut left = most.min(open);
    while left > 0 {
        let parcels = shard.tunnels.give(shard, left.min(BATCH), which);
        if parcels.is_empty() {
            break;
        }
        left = left.saturating_sub(parcels.len());
        shard.tell(Event::Tunnels { life: shard.life, parcels });
        yield_now().await;
    }
}

/// The shard's task that looks after that.
pub async fn run(shard: Rc<Shard>) {
    let own = &shard.counters.tunnels;
    let mut meter = Meter::default();
    let mut loads = Vec::new();
    loop {
        let every = *shard.generation().config.process.tunnel_rebalance;
        let time = async {
            match every {
                Some(every) => timer::sleep(every).await,
                None => std::future::pending().await,
            }
        };
        if every.is_none() {
            meter = Meter::default();
            own.bytes_per_second.set(0);
        }
        if let Either::Second(()) = either(time, shard.reloaded.wait()).await {
            continue;
        }
        if shard.is_quitting() {
            own.bytes_per_second.set(0);
            return;
        }
        let now_ms = timer::now_ms();
        own.bytes_per_second.set(meter.note(own.bytes(), now_ms));
        // Others may have been there before.
        let shards = *shard.generation().config.process.worker_processes;
        shard.counters.loads(shards, &mut loads);
        if let (Some(every), [_, _, ..]) = (every, loads.as_slice()) {
            shard.lend(every);
        }
        let Surplus { any, idle } = surplus(own.load(), &loads);
        give(&shard, any, Which::Any).await;
        let idle_ms = every.unwrap_or_default().max(IDLE_MIN).as_millis() as u64;
        give(&shard, idle, Which::IdleSince(now_ms.saturating_sub(idle_ms))).await;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn load(tunnels: u64, bytes_per_second: u64) -> Load {
        Load { tunnels, bytes_per_second }
    }

    /// What the first shard gives away.
    fn of(loads: &[Load]) -> (usize, usize) {
        let Surplus { any, idle } = surplus(loads[0], loads);
        (any, idle)
    }

    /// The same where nothing moves.
    fn resting(tunnels: &[u64]) -> usize {
        let loads: Vec<_> = tunnels.iter().map(|tunnels| load(*tunnels, 0)).collect();
        let (any, idle) = of(&loads);
        assert_eq!(idle, 0);
        any
    }

    fn targets(loads: &[Load]) -> Vec<u64> {
        let spread = Spread::new(loads, 0);
        loads.iter().map(|load| spread.target(*load)).collect()
    }

    #[test]
    fn whoever_has_more_than_its_share_gives_the_rest_away() {
        assert_eq!(resting(&[1000, 0]), 500);
        assert_eq!(resting(&[1000, 0, 0, 0]), 750);
        assert_eq!(resting(&[0, 1000]), 0);
        // Nobody to give to.
        assert_eq!(resting(&[1000]), 0);
    }

    #[test]
    fn what_is_nearly_even_stays() {
        assert_eq!(resting(&[10, 0]), 0);
        assert_eq!(resting(&[18, 0]), 9);
        assert_eq!(resting(&[520, 480]), 0);
        assert_eq!(resting(&[560, 440]), 60);
        assert_eq!(resting(&[u64::MAX, u64::MAX]), 0);
    }

    #[test]
    fn whoever_moves_clearly_more_bytes_is_to_have_fewer() {
        let gib = 1024 * MIB;
        let of = |rates: &[u64]| {
            let loads: Vec<_> = rates.iter().map(|rate| load(100, *rate)).collect();
            targets(&loads)
        };
        // Not enough bytes, or about as many on both.
        assert_eq!(of(&[0, 32 * MIB]), [100, 100]);
        assert_eq!(of(&[10 * gib, 9 * gib]), [100, 100]);
        assert_eq!(of(&[u64::MAX, u64::MAX]), [100, 100]);
        // The more bytes, the more.
        assert_eq!(of(&[64 * MIB, 0]), [67, 134]);
        assert_eq!(of(&[128 * MIB, 0]), [34, 167]);
        assert_eq!(of(&[10 * gib, 0]), [1, 200]);
        assert_eq!(of(&[20 * gib, 10 * gib]), [89, 112]);
        // One of four, and two of them.
        assert_eq!(of(&[10 * gib, 0, 0, 0]), [0, 134, 134, 134]);
        assert_eq!(of(&[10 * gib, 0, 10 * gib, 0]), [1, 200, 1, 200]);
    }

    #[test]
    fn what_is_over_by_bytes_alone_goes_if_it_is_idle() {
        let gib = 1024 * MIB;
        assert_eq!(of(&[load(100, 10 * gib), load(100, 0)]), (0, 99));
        // Half of it is over by number.
        assert_eq!(of(&[load(100, 10 * gib), load(0, 0)]), (50, 49));
        // They are not sent back.
        assert_eq!(of(&[load(199, 0), load(1, 10 * gib)]), (0, 0));
        // A few may stay.
        assert_eq!(of(&[load(8, 10 * gib), load(0, 0)]), (0, 0));
    }

    #[test]
    fn parcels_go_to_whoever_is_furthest_below_its_target() {
        let gib = 1024 * MIB;
        let even = [load(10, 0), load(4, 0), load(7, 0)];
        assert_eq!(deal(&even, None, 6), [0, 5, 1]);
        assert_eq!(deal(&even, Some(1), 6), [2, 0, 4]);
        // Not to another busy one, though it has the fewest.
        let two_busy = [load(50, 10 * gib), load(1, 10 * gib), load(60, 0), load(40, 0)];
        assert_eq!(deal(&two_busy, Some(0), 30), [0, 0, 5, 25]);
        assert_eq!(deal(&[load(5, 0)], Some(0), 3), [0]);
        assert_eq!(deal(&[], None, 3), [0_usize; 0]);
    }

    #[test]
    fn a_meter_does_not_see_what_is_short() {
        let mut meter = Meter::default();
        let (mut bytes, mut now_ms) = (77, 5);
        let mut note = |rate: u64, elapsed_ms: u64| {
            bytes += rate * elapsed_ms / 1000;
            now_ms += elapsed_ms;
            meter.note(bytes, now_ms)
        };
        // What was before it began to look does not count.
        assert_eq!([1_000_000, 0, 0].map(|rate| note(rate, 1000)), [0, 0, 0]);
        assert_eq!([800, 800, 0, 0, 0, 0].map(|rate| note(rate, 1000)), [0; 6]);
        assert_eq!([800, 800, 800, 800].map(|rate| note(rate, 500)), [0, 0, 200, 350]);
        // At one and the same moment.
        assert_eq!(note(1000, 0), 350);
        for _ in 0..60 {
            note(800, 1000);
        }
        assert_eq!([800, 0, 0, 800].map(|rate| note(rate, 250)), [800; 4]);
        assert_eq!([800; 5].map(|rate| note(rate, 1000)), [800; 5]);
        assert_eq!([0, 0, 0, 0].map(|rate| note(rate, 1000)), [800, 800, 775, 750]);
        for _ in 0..300 {
            note(0, 1000);
        }
        assert_eq!(note(0, 1000), 0);
    }

    /// A shard whose idle tunnels say nothing and whose busy ones never rest.
    #[derive(Debug, Default)]
    struct Model {
        idle: u64,
        /// The bytes per second of each.
        busy: Vec<u64>,
        bytes: u64,
        meter: Meter,
        level: u64,
    }

    impl Model {
        fn load(&self) -> Load {
            load(self.idle + self.busy.len() as u64, self.level)
        }
    }

    fn loads(shards: &[Model]) -> Vec<Load> {
        shards.iter().map(Model::load).collect()
    }

    /// An interval of all shards. How many tunnels have moved.
    fn interval(shards: &mut [Model], now_ms: u64) -> usize {
        let mut moved = 0;
        for at in 0..shards.len() {
            let own = &mut shards[at];
            own.bytes += own.busy.iter().sum::<u64>();
            own.level = own.meter.note(own.bytes, now_ms);
            let Surplus { any, idle } = surplus(shards[at].load(), &loads(shards));
            for (mut most, are_idle) in [(any, false), (idle, true)] {
                while most > 0 {
                    let own = &mut shards[at];
                    let quiet = (own.idle as usize).min(most.min(BATCH));
                    own.idle -= quiet as u64;
                    let others = if are_idle { 0 } else { most.min(BATCH) - quiet };
                    let others = own.busy.split_off(own.busy.len() - others.min(own.busy.len()));
                    let count = quiet + others.len();
                    if count == 0 {
                        break;
                    }
                    let counts = deal(&loads(shards), Some(at), count);
                    assert_eq!((counts.iter().sum::<usize>(), counts[at]), (count, 0));
                    let (mut quiet, mut others) = (quiet, others.into_iter());
                    for (taker, count) in shards.iter_mut().zip(counts) {
                        let of_quiet = quiet.min(count);
                        quiet -= of_quiet;
                        taker.idle += of_quiet as u64;
                        taker.busy.extend(others.by_ref().take(count - of_quiet));
                    }
                    moved += count;
                    most -= count;
                }
            }
        }
        moved
    }

    /// So many intervals, beginning with a moment.
    fn intervals(shards: &mut [Model], seconds: std::ops::Range<u64>) -> usize {
        seconds.map(|second| interval(shards, second * 1000)).sum()
    }

    fn model(rates: impl Strategy<Value = u64>) -> impl Strategy<Value = Vec<Model>> {
        let busy = prop::collection::vec(rates, 0..30);
        let shard =
            (0_u64..400, busy).prop_map(|(idle, busy)| Model { idle, busy, ..Model::default() });
        prop::collection::vec(shard, 2..6)
    }

    proptest! {
        #[test]
        fn constant_bytes_come_to_rest(mut shards in model(0..100 * MIB)) {
            let all = |shards: &[Model]| loads(shards).iter().map(|load| load.tunnels).sum::<u64>();
            let before = all(&shards);
            intervals(&mut shards, 1..200);
            prop_assert_eq!(intervals(&mut shards, 200..250), 0, "{:?}", shards);
            prop_assert_eq!(all(&shards), before);
            // Nobody idle is where more than a target's tolerance is.
            let loads = loads(&shards);
            for (shard, target) in shards.iter().zip(targets(&loads)) {
                let tolerated = target + TOLERANCE_MIN.max(target / TOLERANCE_PART);
                prop_assert!(shard.idle == 0 || shard.load().tunnels <= tolerated, "{shards:?}");
            }
        }

        #[test]
        fn shards_at_rest_move_no_tunnel_twice(mut shards in model(0..10_000_u64)) {
            let all = loads(&shards);
            let share = Spread::new(&all, 0).even();
            let over: u64 = all.iter().map(|load| load.tunnels.saturating_sub(share)).sum();
            prop_assert!(intervals(&mut shards, 1..10) as u64 <= over);
            prop_assert_eq!(intervals(&mut shards, 10..20), 0);
        }

        #[test]
        fn bursts_move_nothing(rate in 0..10_000 * MIB, pause in 3_u64..20) {
            let mut shards = [Model::default(), Model::default()];
            for shard in &mut shards {
                shard.idle = 200;
            }
            for second in 1..200 {
                // A second's worth that lies across two intervals.
                let is_burst = second % (pause + 2) < 2;
                shards[1].busy = if is_burst { vec![rate] } else { Vec::new() };
                shards[1].idle = 199 + u64::from(!is_burst);
                prop_assert_eq!(interval(&mut shards, second * 1000), 0);
            }
        }

        #[test]
        fn for_what_comes_and_goes_they_move_once(
            rate in 200 * MIB..10_000 * MIB, on in 3_u64..8, off in 3_u64..8
        ) {
            let mut shards = [Model::default(), Model::default()];
            for shard in &mut shards {
                shard.idle = 200;
            }
            let mut moved = Vec::new();
            for second in 1..400 {
                let is_on = second % (on + off) < on;
                shards[1].busy = vec![if is_on { rate } else { 0 }];
                moved.push(interval(&mut shards, second * 1000));
            }
            prop_assert!(shards[1].idle < 130, "{}", shards[1].idle);
            // The level comes ever closer to its highest: what is at the edge of the tolerance may go
            // over it late, but once.
            let late: usize = moved[40..].iter().sum();
            prop_assert!((late as u64) < 2 * TOLERANCE_MIN, "{:?}", moved);
            prop_assert_eq!(moved[200..].iter().sum::<usize>(), 0, "{:?}", moved);
        }
    }
}
