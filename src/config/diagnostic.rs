//! What is said about a configuration: errors and warnings in nginx's words, with their place.

use std::fmt;
use std::sync::Arc;

use crate::error_log::Level;

/// Where a statement stands. `Display` is the tail of nginx's line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The file's full name, and the line on which the statement ended.
    File { path: Arc<str>, line: u32 },
    /// The argument of `-g`.
    CommandLine,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { path, line } => write!(f, "{path}:{line}"),
            Place::CommandLine => f.write_str("command line"),
        }
    }
}

/// One line to the operator: `[emerg] unknown directive "foo" in /p/x.conf:3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    pub level: Level,
    pub text: String,
    /// `None`: what is wrong shows only when everything is read (`unknown "x" variable`).
    pub place: Option<Place>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", level_name(self.level), self.text)?;
        match &self.place {
            Some(place) => write!(f, " in {place}"),
            None => Ok(()),
        }
    }
}

/// The word for a level, in lines and in the `error_log` directive.
pub const fn level_name(level: Level) -> &'static str {
    match level {
        Level::Emerg => "emerg",
        Level::Alert => "alert",
        Level::Crit => "crit",
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Notice => "notice",
        Level::Info => "info",
        Level::Debug => "debug",
    }
}

/// Why a statement is refused; its place is added by whoever knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub text: String,
    pub at: At,
}

/// Where a fault is to be reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// At the statement being read.
    Statement,
    /// At an earlier statement.
    Place(Place),
    /// Nowhere in particular.
    Nowhere,
}

/// What a directive's own check returns.
pub type Outcome<T = ()> = Result<T, Fault>;

impl Fault {
    pub fn new(text: impl Into<String>) -> Self {
        Fault { text: text.into(), at: At::Statement }
    }

    pub fn at(text: impl Into<String>, place: Place) -> Self {
        Fault { text: text.into(), at: At::Place(place) }
    }

    pub fn nowhere(text: impl Into<String>) -> Self {
        Fault { text: text.into(), at: At::Nowhere }
    }

    /// The line to print, for a fault met at `here`.
    pub fn located(self, here: &Place) -> Diagnostic {
        let place = match self.at {
            At::Statement => Some(here.clone()),
            At::Place(place) => Some(place),
            At::Nowhere => None,
        };
        Diagnostic { level: Level::Emerg, text: self.text, place }
    }
}

/// `Err` of a formatted [`Fault`] at the current statement.
macro_rules! fault {
    ($($text:tt)*) => { Err($crate::config::diagnostic::Fault::new(format!($($text)*))) };
}
pub(crate) use fault;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_like_nginx() {
        let place = Place::File { path: "/p/x.conf".into(), line: 3 };
        let line = Fault::new("unknown directive \"foo\"").located(&place);
        assert_eq!(line.to_string(), "[emerg] unknown directive \"foo\" in /p/x.conf:3");
        let line = Fault::new("x").located(&Place::CommandLine);
        assert_eq!(line.to_string(), "[emerg] x in command line");
        let line = Fault::nowhere("unknown \"x\" variable").located(&place);
        assert_eq!(line.to_string(), "[emerg] unknown \"x\" variable");
    }
}
