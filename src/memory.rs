//! When memory goes back to the system: behind the height of a load: a shard keeps buffers for reuse, and the
//! allocator what it was asked for, in pieces too small for itself to return.

/// A fall of fewer connections is none. One of them may have held much: the end of the last ones counts.
const FALL_MIN: u64 = 4;
/// Between two times: it takes a look at all memory that is free.
const PAUSE_MS: u64 = 5000;

/// How many connections a shard has had at most since it gave memory back. Pure.
#[derive(Debug, Default)]
pub struct Tide {
    height: u64,
    rests_until_ms: u64,
}

impl Tide {
    /// Looked at now and then: whether half of the connections, and enough of them, are gone.
    pub fn has_fallen(&mut self, open: u64, now_ms: u64) -> bool {
        self.height = self.height.max(open);
        let fall = self.height.saturating_sub(open);
        if fall < FALL_MIN.max(self.height / 2) || now_ms < self.rests_until_ms {
            return false;
        }
        self.height = open;
        self.rests_until_ms = now_ms.saturating_add(PAUSE_MS);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_back_when_half_of_the_connections_are_gone() {
        let mut tide = Tide::default();
        let mut now_ms = 0;
        let mut fell = |open| {
            now_ms += 1000;
            tide.has_fallen(open, now_ms)
        };
        assert_eq!([0, 500, 1000, 501].map(&mut fell), [false; 4]);
        assert!(fell(500));
        // Not at every connection that goes, and soon enough for the last ones.
        assert_eq!([400, 100, 20, 4, 4].map(&mut fell), [false, false, false, false, true]);
        assert_eq!([4, 4, 4, 4, 1, 0].map(&mut fell), [false, false, false, false, false, true]);
        assert_eq!([0, 3, 0, 0, 0, 0].map(&mut fell), [false; 6]);
    }
}
