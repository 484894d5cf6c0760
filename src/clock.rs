//! Wall-clock time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since the epoch.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
