//! A directive is one row: where it may stand, what it takes, what it means when absent, what it
//! is for, and what it does. Checks, messages, defaults and the manual all read the row.

use super::diagnostic::{Outcome, Place};
use super::value::Args;

/// A set of places in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contexts(u16);

impl Contexts {
    pub const MAIN: Contexts = Contexts(1);
    pub const EVENTS: Contexts = Contexts(1 << 1);
    pub const HTTP: Contexts = Contexts(1 << 2);
    pub const SERVER: Contexts = Contexts(1 << 3);
    pub const LOCATION: Contexts = Contexts(1 << 4);
    pub const IF_IN_SERVER: Contexts = Contexts(1 << 5);
    pub const IF_IN_LOCATION: Contexts = Contexts(1 << 6);
    pub const LIMIT_EXCEPT: Contexts = Contexts(1 << 7);
    pub const UPSTREAM: Contexts = Contexts(1 << 8);
    pub const ANY: Contexts = Contexts((1 << 9) - 1);

    pub const HTTP_SERVER: Contexts = Contexts::HTTP.or(Contexts::SERVER);
    pub const HTTP_SERVER_LOCATION: Contexts = Contexts::HTTP_SERVER.or(Contexts::LOCATION);
    /// As before, and in `if` within a location.
    pub const LEVELS: Contexts = Contexts::HTTP_SERVER_LOCATION.or(Contexts::IF_IN_LOCATION);

    const NAMES: [(Contexts, &'static str); 9] = [
        (Contexts::MAIN, "main"),
        (Contexts::EVENTS, "events"),
        (Contexts::HTTP, "http"),
        (Contexts::SERVER, "server"),
        (Contexts::LOCATION, "location"),
        (Contexts::IF_IN_SERVER, "if in server"),
        (Contexts::IF_IN_LOCATION, "if in location"),
        (Contexts::LIMIT_EXCEPT, "limit_except"),
        (Contexts::UPSTREAM, "upstream"),
    ];

    #[must_use]
    pub const fn or(self, other: Contexts) -> Contexts {
        Contexts(self.0 | other.0)
    }

    pub const fn meets(self, other: Contexts) -> bool {
        self.0 & other.0 != 0
    }

    /// The places in nginx's manual's words.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.iter().filter(move |(context, _)| self.meets(*context)).map(|(_, name)| *name)
    }
}

/// How many arguments may follow the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    Exactly(usize),
    Between(usize, usize),
    AtLeast(usize),
}

impl Count {
    pub const fn allows(self, count: usize) -> bool {
        match self {
            Count::Exactly(n) => count == n,
            Count::Between(min, max) => min <= count && count <= max,
            Count::AtLeast(min) => min <= count,
        }
    }
}

/// How much of nginx's directive there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// As in nginx.
    Full,
    /// What is not as in nginx.
    Differs(&'static str),
    /// Taken and passed over, with one notice that says why.
    NoEffect(&'static str),
    /// Refused by name, with the reason.
    Refused {
        why: &'static str,
        /// The one argument that asks for nothing, and is taken: `gzip off;`.
        unless: Option<Word>,
    },
}

/// A word among arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    pub text: &'static str,
    /// What differs in case is another word: `auth_basic OFF;` asks for a password.
    pub is_exact: bool,
}

impl Word {
    pub fn is(self, argument: &str) -> bool {
        if self.is_exact { self.text == argument } else { self.text.eq_ignore_ascii_case(argument) }
    }
}

/// What a row does to the state `S` that is being built.
pub enum Action<S: 'static> {
    /// Nothing: [`Support::NoEffect`] and [`Support::Refused`].
    Pass,
    Set(fn(&mut S, Args<'_>) -> Outcome),
    /// A block of directives.
    Block {
        inside: Contexts,
        open: fn(&mut S, Args<'_>) -> Outcome,
        /// Takes the place of the closing brace.
        close: fn(&mut S, &Place) -> Outcome,
    },
    /// A block whose statements are data: `types`.
    Table {
        open: fn(&mut S, Args<'_>) -> Outcome,
        entry: fn(&mut S, Args<'_>) -> Outcome,
        close: fn(&mut S, &Place) -> Outcome,
    },
}

impl<S> Clone for Action<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Action<S> {}

/// One row.
pub struct Directive<S: 'static> {
    pub name: &'static str,
    pub contexts: Contexts,
    pub count: Count,
    /// The arguments as the manual shows them.
    pub syntax: &'static str,
    /// The arguments that hold when the directive is absent, as written in a file.
    pub default: Option<&'static str>,
    /// One sentence.
    pub doc: &'static str,
    pub support: Support,
    pub action: Action<S>,
}

impl<S> Clone for Directive<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Directive<S> {}

/// The rows of one nginx module, in manual order.
pub struct Module<S: 'static> {
    pub name: &'static str,
    /// In several tables, because `proxy_` and `uwsgi_` share one.
    pub tables: &'static [&'static [Directive<S>]],
}

impl<S> Module<S> {
    pub fn rows(&self) -> impl Iterator<Item = &'static Directive<S>> + Clone + use<S> {
        self.tables.iter().copied().flatten()
    }
}

impl<S> Directive<S> {
    /// A row to be completed with the functions below.
    pub const fn new(name: &'static str, contexts: Contexts, count: Count) -> Self {
        Directive {
            name,
            contexts,
            count,
            syntax: "",
            default: None,
            doc: "",
            support: Support::Full,
            action: Action::Pass,
        }
    }

    /// A directive that ringx takes and passes over; a setter may still check its arguments.
    pub const fn no_effect(
        name: &'static str,
        contexts: Contexts,
        count: Count,
        why: &'static str,
    ) -> Self {
        let mut row = Self::new(name, contexts, count);
        row.support = Support::NoEffect(why);
        row
    }

    /// Whether it is passed over and may be there once in a block: what has an effect says so itself.
    pub fn is_once_without_effect(&self) -> bool {
        const REPEATED: [&str; 2] = ["debug_connection", "thread_pool"];
        match self.support {
            Support::NoEffect(_) => !REPEATED.contains(&self.name),
            // Of those that take any number of words nginx adds up the words.
            Support::Refused { unless, .. } => unless.is_some() && self.count == Count::Exactly(1),
            Support::Full | Support::Differs(_) => false,
        }
    }

    /// A directive of nginx that ringx does not have.
    pub const fn refused(name: &'static str, why: &'static str) -> Self {
        let mut row = Self::new(name, Contexts::ANY, Count::AtLeast(0));
        row.support = Support::Refused { why, unless: None };
        row
    }

    /// A refused directive whose argument `word` is taken, because it asks for nothing; where and how
    /// it may stand is checked then.
    #[must_use]
    pub const fn unless(self, word: &'static str, contexts: Contexts, count: Count) -> Self {
        self.unless_word(Word { text: word, is_exact: false }, contexts, count)
    }

    /// The same for a word that has to be written so, and stand alone.
    #[must_use]
    pub const fn unless_exactly(self, word: &'static str, contexts: Contexts) -> Self {
        self.unless_word(Word { text: word, is_exact: true }, contexts, Count::Exactly(1))
    }

    const fn unless_word(mut self, word: Word, contexts: Contexts, count: Count) -> Self {
        if let Support::Refused { why, .. } = self.support {
            self.support = Support::Refused { why, unless: Some(word) };
            self.contexts = contexts;
            self.count = count;
        }
        self
    }

    #[must_use]
    pub const fn syntax(mut self, syntax: &'static str) -> Self {
        self.syntax = syntax;
        self
    }

    #[must_use]
    pub const fn default(mut self, arguments: &'static str) -> Self {
        self.default = Some(arguments);
        self
    }

    #[must_use]
    pub const fn doc(mut self, doc: &'static str) -> Self {
        self.doc = doc;
        self
    }

    #[must_use]
    pub const fn differs(mut self, how: &'static str) -> Self {
        self.support = Support::Differs(how);
        self
    }

    #[must_use]
    pub const fn set(mut self, set: fn(&mut S, Args<'_>) -> Outcome) -> Self {
        self.action = Action::Set(set);
        self
    }

    #[must_use]
    pub const fn block(
        mut self,
        inside: Contexts,
        open: fn(&mut S, Args<'_>) -> Outcome,
        close: fn(&mut S, &Place) -> Outcome,
    ) -> Self {
        self.action = Action::Block { inside, open, close };
        self
    }

    #[must_use]
    pub const fn table(
        mut self,
        open: fn(&mut S, Args<'_>) -> Outcome,
        entry: fn(&mut S, Args<'_>) -> Outcome,
        close: fn(&mut S, &Place) -> Outcome,
    ) -> Self {
        self.action = Action::Table { open, entry, close };
        self
    }

    pub fn is_block(&self) -> bool {
        matches!(self.action, Action::Block { .. } | Action::Table { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_have_names() {
        let names: Vec<_> = Contexts::LEVELS.names().collect();
        assert_eq!(names, ["http", "server", "location", "if in location"]);
        assert!(Contexts::ANY.meets(Contexts::UPSTREAM));
    }

    #[test]
    fn counts() {
        assert!(Count::Exactly(1).allows(1) && !Count::Exactly(1).allows(2));
        assert!(Count::Between(1, 2).allows(2) && !Count::Between(1, 2).allows(3));
        assert!(Count::AtLeast(1).allows(9) && !Count::AtLeast(1).allows(0));
    }
}
