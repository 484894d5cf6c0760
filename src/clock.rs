//! What time it is, and how much has passed.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::io::timer;

/// Time since the epoch. Goes as the system's clock is set: for dates, and for nothing that is
/// measured or waited for.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Seconds of [`now`], at the kernel's tick: for what is written down to the second, in every request.
pub fn seconds() -> i64 {
    clock_gettime(ClockId::RealtimeCoarse).tv_sec
}

/// Time since the epoch as if the system's clock had not been set since the process began: seconds
/// begin when those of [`now`] did then. For what is measured.
#[expect(clippy::arithmetic_side_effects, reason = "years, of the 10^11 that a Duration holds")]
pub fn steady() -> Duration {
    let passed = timer::now_precise();
    passed + offset(passed)
}

/// A moment of [`steady`] by the machine's monotonic clock, which all its processes have in common.
pub fn monotonic(steady: Duration) -> Duration {
    steady.saturating_sub(offset(timer::now_precise()))
}

/// The other way round.
pub fn of_monotonic(monotonic: Duration) -> Duration {
    monotonic.saturating_add(offset(timer::now_precise()))
}

fn offset(passed: Duration) -> Duration {
    static OFFSET: OnceLock<Duration> = OnceLock::new();
    *OFFSET.get_or_init(|| now().saturating_sub(passed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_are_alike_while_nobody_sets_one() {
        let (before, steady, after) = (now(), steady(), now());
        let about = Duration::from_secs(5);
        assert!(before.saturating_sub(about) < steady && steady < after + about);
        assert!(super::steady() >= steady);
        assert_eq!(of_monotonic(monotonic(steady)), steady);
    }
}
