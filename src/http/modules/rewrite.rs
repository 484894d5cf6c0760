//! The rewrite module: `return`, `rewrite`, `set`, `if`, `break`, as a list of steps run in order.

mod run;

use std::sync::Arc;

use crate::config::diagnostic::{Outcome, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::setting::{Setting, inherit};
use crate::config::value::{Args, number};
use crate::http::draft::Kind;
use crate::http::server::LocationId;
use crate::http::variable::{Part, Settable, Template, VariableSlot};
use crate::modules::Build;
pub use run::{Answer, Rewritten, run};

#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The level's own steps, in the order written. Not inherited.
    pub steps: Vec<Step>,
    pub log: Setting<bool>,
    /// Whether the use of a variable before its `set` is mentioned in the log.
    pub uninitialized_variable_warn: Setting<bool>,
}

#[derive(Debug, Clone)]
pub enum Step {
    Return(Return),
    Set {
        slot: VariableSlot,
        value: Template,
    },
    /// `set $args value;`
    SetArgs {
        value: Template,
    },
    /// `set $limit_rate value;`
    SetLimitRate {
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

impl Settings {
    pub fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer: log, uninitialized_variable_warn);
    }
}

const STEPS: Contexts =
    Contexts::SERVER.or(Contexts::LOCATION).or(Contexts::IF_IN_SERVER).or(Contexts::IF_IN_LOCATION);

const SWITCHES: Contexts = Contexts::HTTP.or(STEPS);

pub const DIRECTIVES: &[Directive<Build>] = &[
    Directive::new("break", STEPS, Count::Exactly(0))
        .doc("Ends the steps of this module for the current location.")
        .set(|b, _| {
            step(b, Step::Break);
            Ok(())
        }),
    Directive::new("if", Contexts::SERVER, Count::AtLeast(1))
        .syntax("(condition)")
        .doc("Steps that are taken when the condition holds.")
        .block(Contexts::IF_IN_SERVER, open_if, |b, _| {
            b.http.close();
            Ok(())
        }),
    Directive::new("if", Contexts::LOCATION, Count::AtLeast(1))
        .syntax("(condition)")
        .doc("A part of the location that replaces it when the condition holds.")
        .block(Contexts::IF_IN_LOCATION, open_if, |b, _| {
            b.http.close();
            Ok(())
        }),
    Directive::new("return", STEPS, Count::Between(1, 2))
        .syntax("code [text | URL] | URL")
        .doc("Ends the request with a status and a text, or with a redirect.")
        .set(|b, args| {
            let answer = return_(b, args)?;
            step(b, Step::Return(answer));
            Ok(())
        }),
    Directive::new("rewrite", STEPS, Count::Between(2, 3))
        .syntax("regex replacement [last | break | redirect | permanent]")
        .doc("Replaces a URI that matches.")
        .set(|b, args| {
            let rewrite = rewrite(b, args)?;
            step(b, Step::Rewrite(Arc::new(rewrite)));
            Ok(())
        }),
    Directive::new("rewrite_log", SWITCHES, Count::Exactly(1))
        .syntax("on | off")
        .default("off")
        .doc("Whether the steps taken are mentioned in the error log, at `notice`.")
        .set(|b, args| args.fill(&mut b.level().rewrite.log, Args::flag)),
    Directive::new("set", STEPS, Count::Exactly(2))
        .syntax("$variable value")
        .doc("Gives a variable a value.")
        .differs(
            "of the built-in variables with fixed names only `$args` and `$limit_rate` can be set.",
        )
        .set(|b, args| {
            let Some(name) = args.at(0).strip_prefix('$').filter(|name| !name.is_empty()) else {
                return fault!("invalid variable name \"{}\"", args.at(0));
            };
            let variable = b.http.names.set_variable(name)?;
            let value = b.http.names.template(args.at(1))?;
            let set = match variable {
                Settable::Slot(slot) => Step::Set { slot, value },
                Settable::Args => Step::SetArgs { value },
                Settable::LimitRate => Step::SetLimitRate { value },
            };
            step(b, set);
            Ok(())
        }),
    Directive::new("uninitialized_variable_warn", SWITCHES, Count::Exactly(1))
        .syntax("on | off")
        .default("on")
        .doc("Whether the use of a variable before its `set` is mentioned in the error log.")
        .set(|b, args| args.fill(&mut b.level().rewrite.uninitialized_variable_warn, Args::flag)),
];

/// Adds a step to the level being read.
fn step(b: &mut Build, step: Step) {
    b.level().rewrite.steps.push(step);
}

/// Whether a redirect goes to this without looking at the status.
fn is_absolute(url: &str) -> bool {
    ["http://", "https://", "$scheme"].iter().any(|start| url.starts_with(start))
}

fn return_(b: &mut Build, args: Args<'_>) -> Outcome<Return> {
    let first = args.at(0);
    let (code, text) = match number(first) {
        Some(code @ 0..=999) => (code as u16, args.all().get(1)),
        None if args.len() == 1 && is_absolute(first) => (302, args.all().first()),
        _ => return fault!("invalid return code \"{first}\""),
    };
    // An empty text is none.
    let text = text.filter(|text| !text.is_empty());
    let text = text.map(|text| b.http.names.template(text)).transpose()?;
    Ok(Return { code, text })
}

fn rewrite(b: &mut Build, args: Args<'_>) -> Outcome<Rewrite> {
    let replacement = args.at(1);
    if replacement.is_empty() {
        return fault!("empty replacement");
    }
    let regex = b.http.names.regex(args.at(0), false)?;
    let redirects = is_absolute(replacement);
    let flag = match args.all().get(2).map(String::as_str) {
        Some("redirect") => RewriteFlag::Redirect,
        Some("permanent") => RewriteFlag::Permanent,
        Some("last" | "break") | None if redirects => RewriteFlag::Redirect,
        Some("last") => RewriteFlag::Last,
        Some("break") => RewriteFlag::Break,
        None => RewriteFlag::None,
        Some(other) => return fault!("invalid parameter \"{other}\""),
    };
    let (text, drop_args) = match replacement.strip_suffix('?') {
        Some(text) => (text, true),
        None => (replacement, false),
    };
    let replacement = b.http.names.template(text)?;
    Ok(Rewrite { regex, replacement, drop_args, flag })
}

fn open_if(b: &mut Build, args: Args<'_>) -> Outcome {
    let condition = condition(b, args)?;
    let location = b.http.next_id();
    step(b, Step::If { condition, location });
    let name = b.http.current().map(|level| level.name.clone()).unwrap_or_default();
    b.http.open(Kind::If, &name, args.place());
    Ok(())
}

/// `($v)`, `($v = s)`, `($v ~ re)`, `(-f path)`: the words between the parentheses.
fn condition(b: &mut Build, args: Args<'_>) -> Outcome<Condition> {
    let words = condition_words(args)?;
    let invalid = || fault!("invalid condition \"{}\"", words.first().copied().unwrap_or_default());
    let negated = |word: &str| word.starts_with('!');
    match words.as_slice() {
        [variable, rest @ ..] if variable.len() > 1 && variable.starts_with('$') => {
            let name = variable.strip_prefix('$').unwrap_or(variable);
            let value = Part::Variable(b.http.names.variable(name)?);
            let value = Template { parts: vec![value] };
            match rest {
                [] => Ok(Condition::True(value)),
                [operator @ ("=" | "!="), right] => Ok(Condition::Equal {
                    left: value,
                    right: b.http.names.template(right)?,
                    negate: negated(operator),
                }),
                [operator @ ("~" | "~*" | "!~" | "!~*"), pattern] => Ok(Condition::Match {
                    value,
                    regex: Arc::new(b.http.names.regex(pattern, operator.ends_with('*'))?),
                    negate: negated(operator),
                }),
                [operator, _] => fault!("unexpected \"{operator}\" in condition"),
                _ => invalid(),
            }
        }
        [operator, path] => {
            let test = match operator.strip_prefix('!').unwrap_or(operator) {
                "-f" => FileTest::File,
                "-d" => FileTest::Directory,
                "-e" => FileTest::Exists,
                "-x" => FileTest::Executable,
                _ => return invalid(),
            };
            let path = b.http.names.template(path)?;
            Ok(Condition::File { path, test, negate: negated(operator) })
        }
        _ => invalid(),
    }
}

/// Takes off the parentheses, which may be glued to the first and the last word.
fn condition_words(args: Args<'_>) -> Outcome<Vec<&str>> {
    let mut words: Vec<&str> = args.all().iter().map(String::as_str).collect();
    let Some(bare) = words.first().and_then(|first| first.strip_prefix('(')) else {
        return fault!("invalid condition \"{}\"", args.at(0));
    };
    words.splice(..1, [bare]);
    let shown = words.pop().unwrap_or_default();
    let Some(bare) = shown.strip_suffix(')') else {
        return fault!("invalid condition \"{shown}\"");
    };
    words.push(bare);
    // A parenthesis that stood alone leaves an empty word; a quoted empty string elsewhere stays.
    if words.last().is_some_and(|last| last.is_empty())
        && args.all().last().is_some_and(|w| w == ")")
    {
        words.pop();
    }
    if words.first().is_some_and(|first| first.is_empty()) {
        words.remove(0);
    }
    if words.is_empty() {
        return fault!("invalid condition \")\"");
    }
    Ok(words)
}
