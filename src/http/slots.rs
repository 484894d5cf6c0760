//! The values of a request's own variables: set by `set` or a named group, or computed on first use
//! by `map`, `geo` and `split_clients`.
//!
//! A variable is computed while the request is only looked at, so the values stand in cells. Their
//! memory is kept from request to request.

use std::cell::{Cell, RefCell};

use super::variable::VariableSlot;

/// A value's memory beyond this is given back at the end of the request, in bytes.
const KEPT_MAX: usize = 256;
/// Computed variables that need one another, as deep as nginx goes.
const DEPTH_MAX: u8 = 100;

#[derive(Debug, Default)]
pub struct Slots {
    values: RefCell<Vec<Value>>,
    depth: Cell<u8>,
}

#[derive(Debug, Default, Clone)]
struct Value {
    held: Held,
    bytes: Vec<u8>,
}

/// What a slot holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    #[default]
    Nothing,
    /// Bytes of its own.
    Bytes,
    /// A text of the configuration, by its number among those of the variable.
    Text(u32),
    /// The same, of a variable that could not be computed.
    Undecided(u32),
    BeingComputed,
}

impl Slots {
    /// Empties every slot for the next request.
    pub fn clear(&mut self) {
        for value in self.values.get_mut() {
            value.held = Held::Nothing;
            if value.bytes.capacity() > KEPT_MAX {
                value.bytes = Vec::new();
            }
        }
        self.depth.set(0);
    }

    pub fn held(&self, slot: VariableSlot) -> Held {
        self.values.borrow().get(usize::from(slot.0)).map_or(Held::Nothing, |value| value.held)
    }

    /// Appends the bytes that a slot holds.
    pub fn put(&self, slot: VariableSlot, out: &mut Vec<u8>) {
        if let Some(value) = self.values.borrow().get(usize::from(slot.0)) {
            out.extend_from_slice(&value.bytes);
        }
    }

    pub fn set(&self, slot: VariableSlot, bytes: &[u8]) {
        self.change(slot, |value| {
            value.held = Held::Bytes;
            value.bytes.clear();
            value.bytes.extend_from_slice(bytes);
        });
    }

    /// The slot's variable is about to be computed; false: it is under way already, or too many are.
    pub fn begin(&self, slot: VariableSlot) -> bool {
        if self.held(slot) == Held::BeingComputed || self.depth.get() >= DEPTH_MAX {
            return false;
        }
        self.depth.set(self.depth.get().saturating_add(1));
        self.change(slot, |value| value.held = Held::BeingComputed);
        true
    }

    /// Ends what [`Slots::begin`] began. The slot keeps a text, or nothing of a volatile variable;
    /// bytes follow with [`Slots::set`].
    pub fn end(&self, slot: VariableSlot, held: Held) {
        self.depth.set(self.depth.get().saturating_sub(1));
        self.change(slot, |value| value.held = held);
    }

    fn change(&self, slot: VariableSlot, change: impl FnOnce(&mut Value)) {
        let at = usize::from(slot.0);
        let mut values = self.values.borrow_mut();
        if values.len() <= at {
            values.resize(at + 1, Value::default());
        }
        if let Some(value) = values.get_mut(at) {
            change(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: VariableSlot = VariableSlot(0);
    const B: VariableSlot = VariableSlot(3);

    fn text(slots: &Slots, slot: VariableSlot) -> Vec<u8> {
        let mut out = Vec::new();
        slots.put(slot, &mut out);
        out
    }

    #[test]
    fn values_last_until_the_next_request() {
        let mut slots = Slots::default();
        assert_eq!(slots.held(B), Held::Nothing);
        slots.set(B, b"one");
        slots.set(A, &[b'x'; KEPT_MAX + 1]);
        assert_eq!((slots.held(B), text(&slots, B)), (Held::Bytes, b"one".to_vec()));
        slots.clear();
        assert_eq!(slots.held(B), Held::Nothing);
        let values = slots.values.borrow();
        assert_eq!(values[0].bytes.capacity(), 0);
        assert!(values[3].bytes.capacity() > 0, "small memory is used again");
    }

    #[test]
    fn a_variable_does_not_need_itself() {
        let slots = Slots::default();
        assert!(slots.begin(A));
        assert!(slots.begin(B));
        assert!(!slots.begin(A));
        slots.end(B, Held::Text(7));
        assert_eq!(slots.held(B), Held::Text(7));
        slots.end(A, Held::Nothing);
        assert!(slots.begin(A), "a volatile variable is computed again");
    }

    #[test]
    fn a_chain_is_bounded() {
        let slots = Slots::default();
        let begun = (0..200).take_while(|n| slots.begin(VariableSlot(*n))).count();
        assert_eq!(begun, usize::from(DEPTH_MAX));
    }
}
