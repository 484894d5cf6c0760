//! `tunnel_rebalance`: a shard that holds clearly more tunnels than the others gives some away. The
//! kernel deals out connections evenly, but not those that stay.

use std::rc::Rc;

use crate::channel::Event;
use crate::io::select::{Either, either, yield_now};
use crate::io::timer;
use crate::shard::Shard;

/// Tunnels given away in one go: while they are on their way they carry nothing.
const BATCH: usize = 32;
/// Tunnels over its share that a shard keeps, as the part of its share and at least so many: moving
/// has a price.
const TOLERANCE_PART: u64 = 20;
const TOLERANCE_MIN: u64 = 8;

/// How many tunnels of its `own` a shard gives away, all shards holding `all` of them.
pub fn surplus(own: u64, all: impl ExactSizeIterator<Item = u64>) -> usize {
    let shards = all.len() as u64;
    let total = all.fold(0_u64, u64::saturating_add);
    // Rounded up: otherwise one tunnel may go in circles.
    let Some(share) = total.saturating_add(shards.saturating_sub(1)).checked_div(shards) else {
        return 0;
    };
    let over = own.saturating_sub(share);
    let is_clear = over > TOLERANCE_MIN.max(share / TOLERANCE_PART);
    if is_clear { usize::try_from(over).unwrap_or(usize::MAX) } else { 0 }
}

/// Gives away all tunnels there are now: another process takes over.
pub async fn give_all(shard: Rc<Shard>) {
    let _told = GaveAll(&shard);
    give(&shard, usize::MAX).await;
}

/// Tells the master, which waits for it, whatever becomes of the task.
struct GaveAll<'a>(&'a Shard);

impl Drop for GaveAll<'_> {
    fn drop(&mut self) {
        self.0.tell(Event::GaveAll { life: self.0.life });
    }
}

/// Gives so many of those away that there are now.
async fn give(shard: &Shard, most: usize) {
    let open = usize::try_from(shard.counters.tunnels.open.get()).unwrap_or(usize::MAX);
    let mut left = most.min(open);
    while left > 0 {
        let parcels = shard.tunnels.give(shard, left.min(BATCH));
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
    loop {
        let every = *shard.generation().config.process.tunnel_rebalance;
        let time = async {
            match every {
                Some(every) => timer::sleep(every).await,
                None => std::future::pending().await,
            }
        };
        if let Either::Second(()) = either(time, shard.reloaded.wait()).await {
            continue;
        }
        if shard.is_quitting() {
            return;
        }
        let open = |counters: &crate::counters::Counters| counters.tunnels.open.get();
        let mut all = shard.counters.all();
        // Others may have been there before.
        all.truncate(*shard.generation().config.process.worker_processes);
        if let (Some(every), [_, _, ..]) = (every, all.as_slice()) {
            shard.lend(every);
        }
        give(&shard, surplus(open(&shard.counters), all.iter().map(open))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(own: u64, others: &[u64]) -> usize {
        let mut all = others.to_vec();
        all.push(own);
        surplus(own, all.into_iter())
    }

    #[test]
    fn whoever_has_more_than_its_share_gives_the_rest_away() {
        assert_eq!(of(1000, &[0]), 500);
        assert_eq!(of(1000, &[0, 0, 0]), 750);
        assert_eq!(of(0, &[1000]), 0);
        // Nobody to give to.
        assert_eq!(of(1000, &[]), 0);
    }

    #[test]
    fn what_is_nearly_even_stays() {
        assert_eq!(of(10, &[0]), 0);
        assert_eq!(of(18, &[0]), 9);
        assert_eq!(of(520, &[480]), 0);
        assert_eq!(of(560, &[440]), 60);
        assert_eq!(of(u64::MAX, &[u64::MAX]), 0);
    }
}
