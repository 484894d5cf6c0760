//! Running the steps of one level against a request.

use rustix::fs::{FileType, Mode, Stat};

use super::{Condition, FileTest, Return, Rewrite, RewriteFlag, Step};
use crate::error_log::{Level, escape};
use crate::http::connection::Connection;
use crate::http::modules::static_files;
use crate::http::pace;
use crate::http::request::Request;
use crate::http::server::Http;
use crate::http::value;
use crate::http::variable::{Part, Regex, Template, Variable};
use crate::http1::uri::{escape_args, unescape_redirect};

/// What the steps of a level amount to.
#[derive(Debug)]
pub enum Rewritten {
    /// On with the location that has been reached.
    Stay,
    /// The URI was changed: a location is to be found again.
    Relocate,
    Respond(Answer),
}

/// What `return` and redirecting rewrites answer with.
#[derive(Debug)]
pub enum Answer {
    Status(u16),
    Redirect {
        code: u16,
        location: Vec<u8>,
    },
    /// The redirect of a `rewrite`: unlike that of a `return`, nginx takes it for an error's page, before
    /// which nobody looks at the body.
    Rewritten {
        code: u16,
        location: Vec<u8>,
    },
    Text {
        code: u16,
        text: Vec<u8>,
    },
}

/// How running went on after one step.
enum Next {
    Step,
    /// `break`, or `rewrite … break`.
    Break,
    /// `rewrite … last`.
    Last,
    Respond(Answer),
}

/// Runs the steps of the request's current location.
pub fn run(c: &Connection, r: &mut Request, http: &Http) -> Rewritten {
    let settings = &http.location(r.location).settings.rewrite;
    if settings.steps.is_empty() {
        return Rewritten::Stay;
    }
    let mut run = Run { c, http, logs: *settings.log, uri_changed: false, has_rewritten: false };
    match run.steps(r, &settings.steps) {
        Next::Respond(answer) => Rewritten::Respond(answer),
        Next::Last => Rewritten::Relocate,
        Next::Step if run.uri_changed => Rewritten::Relocate,
        Next::Step | Next::Break => Rewritten::Stay,
    }
}

/// A level's steps as they are taken.
struct Run<'a> {
    c: &'a Connection,
    http: &'a Http,
    /// `rewrite_log` of the level itself: its blocks of `if` are not asked.
    logs: bool,
    /// The URI was changed, and its location has not been found yet.
    uri_changed: bool,
    /// A `rewrite` has matched.
    has_rewritten: bool,
}

impl Run<'_> {
    fn steps(&mut self, r: &mut Request, steps: &[Step]) -> Next {
        for step in steps {
            let next = self.step(r, step);
            if r.has_given_up() {
                return Next::Respond(Answer::Status(500));
            }
            if !matches!(next, Next::Step) {
                return next;
            }
        }
        Next::Step
    }

    fn step(&mut self, r: &mut Request, step: &Step) -> Next {
        match step {
            Step::Return(answer) => return Next::Respond(answer_of(answer, self.c, r)),
            Step::Break => {
                r.rewritten_in_place |= self.uri_changed;
                return Next::Break;
            }
            Step::Set { slot, value } => {
                let value = self.value(r, value);
                r.set_slot(*slot, &value);
            }
            Step::SetArgs { value } => {
                let args = self.value(r, value);
                r.set_args(Some(args));
                r.uri_is_original = false;
            }
            Step::SetLimitRate { value } => {
                let value = self.value(r, value);
                if let Some(rate) = pace::parse_size(&value) {
                    r.response.limit_rate = Some(rate);
                } else {
                    let text = escape(&value);
                    self.c.log(r, Level::Error, format_args!("invalid $limit_rate \"{text}\""));
                }
            }
            Step::Rewrite(rewrite) => return self.rewrite(r, rewrite),
            Step::If { condition, location } => {
                let holds = self.holds(r, condition);
                if r.has_given_up() {
                    // Whatever it came to: nobody knows whether it holds.
                    return Next::Respond(Answer::Status(500));
                }
                if holds {
                    // The block's settings are in force from here on.
                    r.location = *location;
                    return self.steps(r, &self.http.location(*location).settings.rewrite.steps);
                }
            }
        }
        Next::Step
    }

    /// The text of a step, but for `return` and `rewrite`. Until a `rewrite` has matched, nginx escapes
    /// captures in it as in a redirect.
    fn value(&self, r: &Request, template: &Template) -> Vec<u8> {
        let mut value = Vec::new();
        for part in &template.parts {
            match part {
                Part::Literal(text) => value.extend_from_slice(text),
                Part::Variable(Variable::Capture(n))
                    if !self.has_rewritten && must_escape_captures(r) =>
                {
                    put_escaped_capture(*n, r, &mut value);
                }
                Part::Variable(variable) => {
                    value::append(variable, self.c, r, &mut value);
                }
            }
        }
        value
    }

    /// One `rewrite` step.
    fn rewrite(&mut self, r: &mut Request, rewrite: &Rewrite) -> Next {
        let uri = std::mem::take(&mut r.uri);
        let matched = self.matches(r, &rewrite.regex, &uri);
        r.uri = uri;
        if !matched {
            return Next::Step;
        }
        self.has_rewritten = true;
        let redirect = match rewrite.flag {
            RewriteFlag::Permanent => Some(301),
            RewriteFlag::Redirect => Some(302),
            _ => None,
        };
        let c = self.c;
        let Replaced { mut target, args_at } =
            expand_replacement(rewrite, redirect.is_some(), c, r);
        if let Some(code) = redirect {
            target = unescape_redirect(&target);
            if !rewrite.drop_args && !r.args.is_empty() {
                target.push(if args_at.is_some() { b'&' } else { b'?' });
                target.extend_from_slice(&r.args);
            }
            if self.logs {
                let text = format_args!("rewritten redirect: \"{}\"", escape(&target));
                c.log(r, Level::Notice, text);
            }
            return Next::Respond(Answer::Rewritten { code, location: target });
        }

        if let Some(at) = args_at {
            let mut args = target.split_off(at);
            if !rewrite.drop_args && !r.args.is_empty() {
                args.push(b'&');
                args.extend_from_slice(&r.args);
            }
            r.set_args(Some(args));
        } else if rewrite.drop_args && r.known_args().is_some() {
            r.set_args(Some(Vec::new()));
        }
        r.uri = target;
        r.uri_is_original = false;
        r.internal = true;
        self.uri_changed = true;
        if self.logs {
            let (uri, args) = (escape(&r.uri), escape(&r.args));
            c.log(r, Level::Notice, format_args!("rewritten data: \"{uri}\", args: \"{args}\""));
        }
        if r.uri.is_empty() {
            c.log(r, Level::Error, format_args!("the rewritten URI has a zero length"));
            return Next::Respond(Answer::Status(500));
        }
        match rewrite.flag {
            RewriteFlag::Break => {
                r.rewritten_in_place = true;
                Next::Break
            }
            RewriteFlag::Last => Next::Last,
            _ => Next::Step,
        }
    }

    /// Whether a regex of a step matches. What it captures takes the place of what was captured before;
    /// when it does not match, that is gone, too.
    fn matches(&self, r: &mut Request, regex: &Regex, subject: &[u8]) -> bool {
        let Ok(matched) = regex.matches(subject, r.captures.get_mut()) else {
            r.give_up(self.c, regex);
            return false;
        };
        if matched {
            r.set_named_captures(regex);
        } else {
            r.captures.get_mut().clear();
        }
        if self.logs {
            let verb = if matched { "matches" } else { "does not match" };
            let (pattern, subject) = (&regex.pattern, escape(subject));
            self.c.log(r, Level::Notice, format_args!("\"{pattern}\" {verb} \"{subject}\""));
        }
        matched
    }

    fn holds(&self, r: &mut Request, condition: &Condition) -> bool {
        match condition {
            Condition::True(value) => value::is_true(&self.value(r, value)),
            Condition::Equal { left, right, negate } => {
                (self.value(r, left) == self.value(r, right)) != *negate
            }
            Condition::Match { value, regex, negate } => {
                let value = self.value(r, value);
                self.matches(r, regex, &value) != *negate
            }
            Condition::File { path, test, negate } => {
                let path = self.value(r, path);
                let found = static_files::look_up(self.c, r, &path);
                found.is_some_and(|stat| is_file(&stat, *test)) != *negate
            }
        }
    }
}

fn answer_of(answer: &Return, c: &Connection, r: &mut Request) -> Answer {
    let code = answer.code;
    match &answer.text {
        None if matches!(code, 301 | 302 | 303 | 307 | 308) => {
            Answer::Redirect { code, location: Vec::new() }
        }
        None => Answer::Status(code),
        Some(text) => {
            // The text may name the status.
            r.response.status = code;
            let text = value::expanded(text, c, r);
            match code {
                301 | 302 | 303 | 307 | 308 => Answer::Redirect { code, location: text },
                _ => Answer::Text { code, text },
            }
        }
    }
}

struct Replaced {
    target: Vec<u8>,
    /// Where the args begin that the replacement itself has: behind its first `?`, which is kept in a
    /// redirect only. One that comes out of a capture or a variable is an ordinary character.
    args_at: Option<usize>,
}

/// The replacement's text. Captures are escaped where they stand in the args, or anywhere in a
/// redirect.
fn expand_replacement(rewrite: &Rewrite, redirects: bool, c: &Connection, r: &Request) -> Replaced {
    let must_escape = must_escape_captures(r);
    let (mut target, mut args_at) = (Vec::new(), None);
    for part in &rewrite.replacement.parts {
        match part {
            Part::Literal(text) => {
                // A later one is part of the args.
                let first = text.iter().position(|&byte| byte == b'?' && args_at.is_none());
                let (path, args) = text.split_at(first.unwrap_or(text.len()));
                target.extend_from_slice(path);
                if let [mark, args @ ..] = args {
                    if redirects {
                        target.push(*mark);
                    }
                    args_at = Some(target.len());
                    target.extend_from_slice(args);
                }
            }
            Part::Variable(Variable::Capture(n))
                if must_escape && (redirects || args_at.is_some()) =>
            {
                put_escaped_capture(*n, r, &mut target);
            }
            Part::Variable(variable) => {
                value::append(variable, c, r, &mut target);
            }
        }
    }
    Replaced { target, args_at }
}

fn put_escaped_capture(n: u8, r: &Request, out: &mut Vec<u8>) {
    let captures = r.captures.borrow();
    escape_args(captures.group(usize::from(n)).unwrap_or_default(), out);
}

/// Whether captures are escaped at all, where they may be: if the client's path held escapes or `+`
/// (http-core, section 11).
fn must_escape_captures(r: &Request) -> bool {
    r.escape || has_plus(r.text(r.head.path))
}

/// Whether the path of a target holds a `+`.
fn has_plus(target: &[u8]) -> bool {
    let path = target.iter().take_while(|&&byte| !matches!(byte, b'?' | b'#'));
    path.into_iter().any(|&byte| byte == b'+')
}

fn is_file(stat: &Stat, test: FileTest) -> bool {
    let mode = stat.st_mode;
    match (test, FileType::from_raw_mode(mode)) {
        // A device or a FIFO is nothing to nginx.
        (FileTest::Exists, kind) => kind.is_file() || kind.is_dir(),
        (FileTest::File, kind) => kind.is_file(),
        (FileTest::Directory, kind) => kind.is_dir(),
        (FileTest::Executable, _) => Mode::from_raw_mode(mode).contains(Mode::XUSR),
    }
}
