//! How a setting inherits is its type: [`Setting`] takes the nearest value,
//! [`List`] is replaced whole, [`Own`] does not inherit.

use std::ops::Deref;

/// A single value: the innermost level that sets it wins.
///
/// Reading one is a plain dereference. It is set at the latest when the http level is finished,
/// because every directive's row names a default (a test goes through all rows and proves it).
#[derive(Debug, Clone)]
pub struct Setting<T>(Option<T>);

impl<T> Setting<T> {
    pub const fn unset() -> Self {
        Setting(None)
    }

    pub const fn of(value: T) -> Self {
        Setting(Some(value))
    }

    pub fn is_set(&self) -> bool {
        self.0.is_some()
    }

    pub fn set(&mut self, value: T) {
        self.0 = Some(value);
    }

    pub fn get(&self) -> Option<&T> {
        self.0.as_ref()
    }
}

impl<T: Clone> Setting<T> {
    pub fn inherit(&mut self, outer: &Self) {
        if self.0.is_none() {
            self.0.clone_from(&outer.0);
        }
    }
}

impl<T> Default for Setting<T> {
    fn default() -> Self {
        Setting::unset()
    }
}

impl<T> Deref for Setting<T> {
    type Target = T;

    #[allow(
        clippy::unreachable,
        reason = "every row with a default has it set at the top level, which a test checks by loading"
    )]
    fn deref(&self) -> &T {
        match &self.0 {
            Some(value) => value,
            None => unreachable!("a setting without a default was read"),
        }
    }
}

/// A list that an inner level replaces as a whole once it has one entry of its own.
#[derive(Debug, Clone)]
pub struct List<T> {
    entries: Option<Vec<T>>,
    /// It takes no more.
    is_closed: bool,
}

impl<T> List<T> {
    pub fn push(&mut self, value: T) {
        if !self.is_closed {
            self.entries.get_or_insert_default().push(value);
        }
    }

    /// An empty list that inherits nothing and stays empty, whatever comes behind, as `access_log off`
    /// makes one.
    pub fn close(&mut self) {
        *self = List { entries: Some(Vec::new()), is_closed: true };
    }

    pub fn is_set(&self) -> bool {
        self.entries.is_some()
    }

    pub fn entries_mut(&mut self) -> &mut [T] {
        self.entries.as_deref_mut().unwrap_or_default()
    }
}

impl<T: Clone> List<T> {
    pub fn inherit(&mut self, outer: &Self) {
        if self.entries.is_none() {
            self.entries.clone_from(&outer.entries);
        }
    }
}

impl<T> Default for List<T> {
    fn default() -> Self {
        List { entries: None, is_closed: false }
    }
}

impl<T> Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.entries.as_deref().unwrap_or_default()
    }
}

/// A value that belongs to its own level alone (`proxy_pass`, `return`, `try_files`).
#[derive(Debug, Clone)]
pub struct Own<T>(Option<T>);

impl<T> Own<T> {
    pub fn set(&mut self, value: T) {
        self.0 = Some(value);
    }

    pub fn get(&self) -> Option<&T> {
        self.0.as_ref()
    }

    pub fn is_set(&self) -> bool {
        self.0.is_some()
    }
}

impl<T> Default for Own<T> {
    fn default() -> Self {
        Own(None)
    }
}

/// Inherits the named fields from the outer level; a field left out is the level's own.
macro_rules! inherit {
    ($inner:ident, $outer:ident: $($field:ident),+ $(,)?) => {
        $($inner.$field.inherit(&$outer.$field);)+
    };
}
pub(crate) use inherit;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_value_wins() {
        let mut inner: Setting<i32> = Setting::unset();
        inner.inherit(&Setting::of(1));
        assert_eq!(*inner, 1);
        let mut inner = Setting::of(2);
        inner.inherit(&Setting::of(1));
        assert_eq!(*inner, 2);
    }

    #[test]
    fn a_list_is_replaced_whole() {
        let mut outer = List::default();
        outer.push(1);
        outer.push(2);
        let mut inner = List::default();
        inner.inherit(&outer);
        assert_eq!(*inner, [1, 2]);
        let mut inner = List::default();
        inner.push(3);
        inner.inherit(&outer);
        assert_eq!(*inner, [3]);
        let mut inner: List<i32> = List::default();
        inner.close();
        inner.inherit(&outer);
        assert!(inner.is_empty());
    }
}
