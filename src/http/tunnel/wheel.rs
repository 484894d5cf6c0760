//! Deadlines of many things at once: a hierarchical timer wheel with a tick of a millisecond.
//!
//! A deadline is written in digits of base 64. The highest digit in which it differs from now is
//! its level, the value of that digit its slot. So all that is in a slot is due later than all in
//! the slots before it and on the levels below, and nothing need be looked at until its slot begins:
//! then it fires, or moves to a lower level. Setting, moving and removing cost the same however
//! many deadlines there are.

/// Bits of a digit.
const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
/// Digits that 64 bits have: every moment has its place.
const LEVELS: usize = u64::BITS.div_ceil(BITS) as usize;
/// The list, after those of all slots, of what fires at once.
const DUE: u16 = (LEVELS * SLOTS) as u16;
/// The list of a key that has no deadline.
const ABSENT: u16 = u16::MAX;
/// The end of a list.
const NONE: u32 = u32::MAX;

/// Deadlines by key. Keys are small numbers, as a slab gives them: memory goes by the largest.
#[derive(Debug)]
pub struct Wheel {
    now: u64,
    len: usize,
    /// For every level, the slots that are not empty.
    occupied: [u64; LEVELS],
    /// The first key of every slot's list, and of [`DUE`].
    first: [u32; LEVELS * SLOTS + 1],
    nodes: Vec<Node>,
}

/// A key's place in a list.
#[derive(Clone, Copy, Debug)]
struct Node {
    deadline: u64,
    next: u32,
    previous: u32,
    /// Of a slot, [`DUE`], or [`ABSENT`].
    list: u16,
}

// One for every tunnel.
const _: () = assert!(size_of::<Node>() <= 24);

/// A slot that is not empty.
#[derive(Clone, Copy)]
struct Slot {
    list: u16,
    /// The first and the last moment that belong to it.
    start: u64,
    end: u64,
}

impl Wheel {
    /// Empty. Moments are milliseconds of any clock.
    pub fn new(now_ms: u64) -> Self {
        Self {
            now: now_ms,
            len: 0,
            occupied: [0; LEVELS],
            first: [NONE; LEVELS * SLOTS + 1],
            nodes: Vec::new(),
        }
    }

    /// Gives `key` its deadline, in place of the one it had. One that is already past fires at the
    /// next [`Self::advance`].
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "`nodes` is made long enough for the key, which a `u32` holds"
    )]
    pub fn set(&mut self, key: usize, deadline_ms: u64) {
        assert!(key < NONE as usize, "a key of a slab");
        if key >= self.nodes.len() {
            let empty = Node { deadline: 0, next: NONE, previous: NONE, list: ABSENT };
            self.nodes.resize(key + 1, empty);
        }
        let list = self.list_of(deadline_ms);
        self.nodes[key].deadline = deadline_ms;
        if self.nodes[key].list != list {
            self.remove(key);
            self.link(key, list);
        }
    }

    /// Takes the deadline of `key` away, if it has one.
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "a node in a list: that is one of `first`, its neighbours are nodes, and `len` counts it"
    )]
    pub fn remove(&mut self, key: usize) {
        let Some(node) = self.nodes.get_mut(key).filter(|node| node.list != ABSENT) else { return };
        let Node { next, previous, list, .. } = *node;
        node.list = ABSENT;
        self.len -= 1;
        match previous {
            NONE => self.first[usize::from(list)] = next,
            _ => self.nodes[previous as usize].next = next,
        }
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        } else if previous == NONE {
            self.note_empty(list);
        }
    }

    /// When to call [`Self::advance`]: not later than the earliest deadline, or where that has
    /// passed, than the moment of the latest advance. It may be earlier, and that call then fires
    /// nothing.
    #[expect(clippy::indexing_slicing, reason = "`first` ends with DUE's")]
    pub fn next_ms(&self) -> Option<u64> {
        if self.first[usize::from(DUE)] != NONE {
            return Some(self.now);
        }
        self.earliest_slot().map(|slot| slot.start)
    }

    /// Goes on to a moment. The keys whose deadlines it has reached are added to `fired`, in no
    /// particular order, and have no deadline any more. A moment before the latest one counts as
    /// that.
    pub fn advance(&mut self, now_ms: u64, fired: &mut Vec<usize>) {
        let now = now_ms.max(self.now);
        self.empty(DUE, fired);
        while let Some(slot) = self.earliest_slot().filter(|slot| slot.start <= now) {
            // Not past the slot: those after it are placed by their difference from `self.now`. If
            // the slot ends before `now`, all of it fires; if not, it is the last that has begun.
            self.now = now.min(slot.end);
            self.empty(slot.list, fired);
        }
        self.now = now;
    }

    /// How many keys have a deadline.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fires what is due of a list and puts the rest where it belongs now.
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "called with one of `first`: what is linked there is a node, and `len` counts it"
    )]
    fn empty(&mut self, list: u16, fired: &mut Vec<usize>) {
        let mut at = std::mem::replace(&mut self.first[usize::from(list)], NONE);
        self.note_empty(list);
        while at != NONE {
            let key = at as usize;
            let Node { deadline, next, .. } = self.nodes[key];
            at = next;
            self.nodes[key].list = ABSENT;
            self.len -= 1;
            if deadline <= self.now {
                fired.push(key);
            } else {
                self.link(key, self.list_of(deadline));
            }
        }
    }

    /// The list that a deadline belongs to.
    #[expect(clippy::arithmetic_side_effects, reason = "a level of 11 and a slot of 64: below DUE")]
    fn list_of(&self, deadline: u64) -> u16 {
        if deadline <= self.now {
            return DUE;
        }
        let level = (self.now ^ deadline).ilog2() / BITS;
        let slot = (deadline >> (level * BITS)) % SLOTS as u64;
        level as u16 * SLOTS as u16 + slot as u16
    }

    /// Puts a key that is in no list at the head of one.
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "the key is a node's, and the list is from `list_of`: DUE, or a slot of a level"
    )]
    fn link(&mut self, key: usize, list: u16) {
        let first = &mut self.first[usize::from(list)];
        let next = std::mem::replace(first, key as u32);
        if next != NONE {
            self.nodes[next as usize].previous = key as u32;
        }
        let node = &mut self.nodes[key];
        (node.next, node.previous, node.list) = (next, NONE, list);
        self.len += 1;
        if list != DUE {
            self.occupied[usize::from(list) / SLOTS] |= 1 << (usize::from(list) % SLOTS);
        }
    }

    #[expect(clippy::indexing_slicing, reason = "a list of `first` but DUE is a slot of a level")]
    fn note_empty(&mut self, list: u16) {
        if list != DUE {
            self.occupied[usize::from(list) / SLOTS] &= !(1 << (usize::from(list) % SLOTS));
        }
    }

    /// The lowest slot of the lowest level that has any.
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "a level that was found: one of 11, the highest from bit 60; of 64 slots one"
    )]
    fn earliest_slot(&self) -> Option<Slot> {
        let level = self.occupied.iter().position(|&slots| slots != 0)?;
        let slot = self.occupied[level].trailing_zeros();
        let shift = level as u32 * BITS;
        // The digits above are those of now; there are none above the highest.
        let above = u64::MAX.checked_shl(shift + BITS).unwrap_or(0);
        let start = (self.now & above) | (u64::from(slot) << shift);
        let list = level as u16 * SLOTS as u16 + slot as u16;
        Some(Slot { list, start, end: start | ((1 << shift) - 1) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn advance(wheel: &mut Wheel, now: u64) -> Vec<usize> {
        let mut fired = Vec::new();
        wheel.advance(now, &mut fired);
        fired.sort_unstable();
        fired
    }

    #[test]
    fn fires_at_its_millisecond() {
        let mut wheel = Wheel::new(1000);
        assert!(wheel.is_empty() && wheel.next_ms().is_none());
        wheel.set(3, 1000 + 60_000);
        wheel.set(70, 1001);
        assert_eq!(wheel.next_ms(), Some(1001));
        assert_eq!(advance(&mut wheel, 1000), []);
        assert_eq!(advance(&mut wheel, 1001), [70]);
        assert_eq!(advance(&mut wheel, 60_999), []);
        assert_eq!(wheel.len(), 1);
        assert_eq!(wheel.next_ms(), Some(61_000));
        assert_eq!(advance(&mut wheel, 61_000), [3]);
        assert!(wheel.is_empty() && wheel.next_ms().is_none());
    }

    #[test]
    fn a_deadline_in_the_past_fires_at_the_next_advance() {
        let mut wheel = Wheel::new(1000);
        wheel.set(0, 1000);
        wheel.set(1, 5);
        wheel.set(2, 1001);
        assert_eq!(wheel.next_ms(), Some(1000));
        // The clock cannot go back.
        assert_eq!(advance(&mut wheel, 1), [0, 1]);
        assert_eq!(wheel.next_ms(), Some(1001));
        assert_eq!(advance(&mut wheel, 1001), [2]);
    }

    #[test]
    fn moved_and_removed() {
        let mut wheel = Wheel::new(0);
        for key in 0..5 {
            wheel.set(key, 10);
        }
        wheel.set(0, 2000);
        wheel.set(4, 1);
        wheel.remove(2);
        wheel.remove(2);
        wheel.remove(99);
        assert_eq!(wheel.len(), 4);
        assert_eq!(advance(&mut wheel, 9), [4]);
        assert_eq!(advance(&mut wheel, 1999), [1, 3]);
        assert_eq!(advance(&mut wheel, u64::MAX), [0]);
        wheel.set(0, u64::MAX);
        assert_eq!(advance(&mut wheel, u64::MAX), [0]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set { key: usize, after: i64 },
        SetAt { key: usize, deadline: u64 },
        Remove { key: usize },
        Advance { by: u64 },
        AdvanceToNext,
    }

    /// Of every magnitude.
    fn span(bits: u32) -> impl Strategy<Value = u64> {
        (any::<u64>(), 64 - bits..64).prop_map(|(n, shift)| n >> shift)
    }

    fn step() -> impl Strategy<Value = Step> {
        let key = || 0..12_usize;
        prop_oneof![
            4 => (key(), span(40)).prop_map(|(key, n)| Step::Set { key, after: n as i64 }),
            1 => (key(), span(10)).prop_map(|(key, n)| Step::Set { key, after: -(n as i64) }),
            1 => (key(), any::<u64>()).prop_map(|(key, deadline)| Step::SetAt { key, deadline }),
            1 => key().prop_map(|key| Step::Remove { key }),
            2 => span(40).prop_map(|by| Step::Advance { by }),
            2 => Just(Step::AdvanceToNext),
        ]
    }

    /// The same, slowly.
    struct Model {
        now: u64,
        deadlines: BTreeMap<usize, u64>,
    }

    impl Model {
        fn advance(&mut self, now: u64) -> Vec<usize> {
            self.now = now;
            let due = |&(_, &deadline): &(&usize, &u64)| deadline <= now;
            let fired: Vec<_> = self.deadlines.iter().filter(due).map(|(&key, _)| key).collect();
            self.deadlines.retain(|_, deadline| *deadline > now);
            fired
        }

        fn earliest(&self) -> Option<u64> {
            self.deadlines.values().min().map(|&deadline| deadline.max(self.now))
        }
    }

    proptest! {
        #[test]
        fn as_a_sorted_map(
            start in prop_oneof![span(64), Just(0), Just(u64::MAX)],
            steps in prop::collection::vec(step(), 0..60),
        ) {
            let mut wheel = Wheel::new(start);
            let mut model = Model { now: start, deadlines: BTreeMap::new() };
            for step in steps {
                match step {
                    Step::Set { key, after } => {
                        let deadline = model.now.saturating_add_signed(after);
                        wheel.set(key, deadline);
                        model.deadlines.insert(key, deadline);
                    }
                    Step::SetAt { key, deadline } => {
                        wheel.set(key, deadline);
                        model.deadlines.insert(key, deadline);
                    }
                    Step::Remove { key } => {
                        wheel.remove(key);
                        model.deadlines.remove(&key);
                    }
                    Step::Advance { by } => {
                        let now = model.now.saturating_add(by);
                        prop_assert_eq!(advance(&mut wheel, now), model.advance(now));
                    }
                    Step::AdvanceToNext => {
                        let now = wheel.next_ms().unwrap_or(model.now);
                        prop_assert_eq!(advance(&mut wheel, now), model.advance(now));
                    }
                }
                prop_assert_eq!(wheel.len(), model.deadlines.len());
                prop_assert_eq!(wheel.is_empty(), model.deadlines.is_empty());
                let (next, earliest) = (wheel.next_ms(), model.earliest());
                prop_assert_eq!(next.is_some(), earliest.is_some());
                prop_assert!(next <= earliest && next.is_none_or(|next| next >= model.now));
            }

            // From one next moment to the next, each key fires in its own millisecond, after no more
            // moves than there are levels.
            let mut calls = 0;
            let keys = wheel.len();
            while let Some(next) = wheel.next_ms() {
                prop_assert_eq!(advance(&mut wheel, next), model.advance(next));
                calls += 1;
                prop_assert!(calls <= keys * LEVELS);
            }
            prop_assert!(model.deadlines.is_empty());
        }
    }
}
