//! The rewrite module: `return`, `rewrite`, `set`, `if`, `break`, as a list of steps run in order.

mod run;

use crate::config::setting::Setting;
use crate::http::server::LocationId;
use crate::http::variable::Template;
use crate::http::variable::VariableSlot;
pub use run::{Answer, Rewritten, run};
use std::sync::Arc;

#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The level's own steps, in the order written. Not inherited.
    pub steps: Vec<Step>,
    pub log: Setting<bool>,
}

#[derive(Debug, Clone)]
pub enum Step {
    Return(Return),
    Set {
        slot: VariableSlot,
        value: Template,
    },
    Rewrite(Arc<Rewrite>),
    Break,
    /// `if (condition) { … }`: the block is an unnamed location with steps of its own.
    If {
        condition: Condition,
        location: LocationId,
    },
}

/// `return CODE [TEXT];` or `return URL;`
#[derive(Debug, Clone)]
pub struct Return {
    pub code: u16,
    /// The body, or the Location of a 301, 302, 303, 307 or 308.
    pub text: Option<Template>,
}

#[derive(Debug)]
pub struct Rewrite {
    pub regex: crate::http::variable::Regex,
    pub replacement: Template,
    /// REPL ended in `?`: the request's args are not appended.
    pub drop_args: bool,
    pub flag: RewriteFlag,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RewriteFlag {
    /// Go on with the next step, find a location at the end.
    None,
    Last,
    Break,
    Redirect,
    Permanent,
}

#[derive(Debug, Clone)]
pub enum Condition {
    True(Template),
    Equal { left: Template, right: Template, negate: bool },
    Match { value: Template, regex: Arc<crate::http::variable::Regex>, negate: bool },
    File { path: Template, test: FileTest, negate: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileTest {
    File,
    Directory,
    Exists,
    Executable,
}
