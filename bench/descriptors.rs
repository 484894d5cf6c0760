//! How many sockets a program of the benchmark may hold.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Lets the process hold `wanted` descriptors, where the hard limit allows it.
pub fn raise_limit(wanted: usize) {
    let wanted = wanted as u64;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(limit.maximum.map_or(wanted, |maximum| wanted.min(maximum)));
        // Refused means fewer connections, and the call that wants one more will say so.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}
