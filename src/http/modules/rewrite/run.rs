//! Running the steps of one level against a request.

use std::rc::Rc;

use super::{Condition, FileTest, Return, Rewrite, RewriteFlag, Step};
use crate::error_log::{Level, escape};
use crate::http::connection::Connection;
use crate::http::pace;
use crate::http::request::Request;
use crate::http::server::Http;
use crate::http::value;
use crate::http::variable::GaveUp;
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
    Redirect { code: u16, location: Vec<u8> },
    Text { code: u16, text: Vec<u8> },
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
    let steps = &http.location(r.location).settings.rewrite.steps;
    if steps.is_empty() {
        return Rewritten::Stay;
    }
    let mut changed = false;
    match run_steps(c, r, http, steps, &mut changed) {
        Next::Respond(answer) => Rewritten::Respond(answer),
        Next::Last => Rewritten::Relocate,
        Next::Step if changed => Rewritten::Relocate,
        Next::Step | Next::Break => Rewritten::Stay,
    }
}

fn run_steps(
    c: &Connection,
    r: &mut Request,
    http: &Http,
    steps: &[Step],
    changed: &mut bool,
) -> Next {
    for step in steps {
        let next = match step {
            Step::Return(answer) => Next::Respond(answer_of(answer, c, r)),
            Step::Break => Next::Break,
            Step::Set { slot, value } => {
                let value = value::expanded(value, c, r);
                r.set_slot(*slot, &value);
                Next::Step
            }
            Step::SetArgs { value } => {
                r.args = value::expanded(value, c, r);
                r.uri_is_original = false;
                Next::Step
            }
            Step::SetLimitRate { value } => {
                let value = value::expanded(value, c, r);
                if let Some(rate) = pace::parse_size(&value) {
                    r.response.limit_rate = Some(rate);
                } else {
                    let text = escape(&value);
                    c.log(r, Level::Error, format_args!("invalid $limit_rate \"{text}\""));
                }
                Next::Step
            }
            Step::Rewrite(rewrite) => apply(rewrite, c, r, changed),
            Step::If { condition, location } => {
                let holds = holds(condition, c, r);
                if r.has_given_up() {
                    Next::Respond(Answer::Status(500))
                } else if holds {
                    // The block's settings are in force from here on.
                    r.location = *location;
                    let steps = &http.location(*location).settings.rewrite.steps;
                    run_steps(c, r, http, steps, changed)
                } else {
                    Next::Step
                }
            }
        };
        if r.has_given_up() {
            return Next::Respond(Answer::Status(500));
        }
        if !matches!(next, Next::Step) {
            return next;
        }
    }
    Next::Step
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

/// One `rewrite` step.
fn apply(rewrite: &Rewrite, c: &Connection, r: &mut Request, changed: &mut bool) -> Next {
    let uri = std::mem::take(&mut r.uri);
    let matched = rewrite.regex.matches(&uri, r.captures.get_mut());
    r.uri = uri;
    let Ok(matched) = matched else {
        r.give_up(c, &rewrite.regex);
        return Next::Step;
    };
    let generation = Rc::clone(&r.generation);
    let logs = *generation.http().location(r.location).settings.rewrite.log;
    if logs {
        let verb = if matched { "matches" } else { "does not match" };
        let uri = escape(&r.uri);
        c.log(r, Level::Notice, format_args!("\"{}\" {verb} \"{uri}\"", rewrite.regex.pattern));
    }
    if !matched {
        // Whatever was captured before is gone, too.
        r.captures.get_mut().clear();
        return Next::Step;
    }
    r.set_named_captures(&rewrite.regex);

    let redirect = match rewrite.flag {
        RewriteFlag::Permanent => Some(301),
        RewriteFlag::Redirect => Some(302),
        _ => None,
    };
    let Replaced { mut target, args_at } = expand_replacement(rewrite, redirect.is_some(), c, r);
    if let Some(code) = redirect {
        target = unescape_redirect(&target);
        if !rewrite.drop_args && !r.args.is_empty() {
            target.push(if args_at.is_some() { b'&' } else { b'?' });
            target.extend_from_slice(&r.args);
        }
        if logs {
            c.log(r, Level::Notice, format_args!("rewritten redirect: \"{}\"", escape(&target)));
        }
        return Next::Respond(Answer::Redirect { code, location: target });
    }

    if let Some(at) = args_at {
        let mut args = target.split_off(at);
        if !rewrite.drop_args && !r.args.is_empty() {
            args.push(b'&');
            args.extend_from_slice(&r.args);
        }
        r.args = args;
    } else if rewrite.drop_args {
        r.args.clear();
    }
    r.uri = target;
    r.uri_is_original = false;
    r.internal = true;
    *changed = true;
    if logs {
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

struct Replaced {
    target: Vec<u8>,
    /// Where the args begin that the replacement itself has: behind its `?`, which is kept in a
    /// redirect only. One that comes out of a capture or a variable is an ordinary character.
    args_at: Option<usize>,
}

/// The replacement's text. Captures are escaped where they stand in the args, or anywhere in a
/// redirect, if the client's path held escapes or `+` (http-core, section 11).
fn expand_replacement(rewrite: &Rewrite, redirects: bool, c: &Connection, r: &Request) -> Replaced {
    use crate::http::variable::{Part, Variable};
    let escape_captures = r.escape || has_plus(r.text(r.head.path));
    let (mut target, mut args_at) = (Vec::new(), None);
    for part in &rewrite.replacement.parts {
        match part {
            Part::Literal(text) => {
                for (n, piece) in text.split(|&byte| byte == b'?').enumerate() {
                    if n > 0 {
                        if redirects {
                            target.push(b'?');
                        }
                        args_at = Some(target.len());
                    }
                    target.extend_from_slice(piece);
                }
            }
            Part::Variable(Variable::Capture(n))
                if escape_captures && (redirects || args_at.is_some()) =>
            {
                let captures = r.captures.borrow();
                let value = captures.group(usize::from(*n)).unwrap_or_default();
                escape_args(value, &mut target);
            }
            Part::Variable(variable) => {
                value::append(variable, c, r, &mut target);
            }
        }
    }
    Replaced { target, args_at }
}

/// Whether the path of a target holds a `+`.
fn has_plus(target: &[u8]) -> bool {
    let path = target.iter().take_while(|&&byte| !matches!(byte, b'?' | b'#'));
    path.into_iter().any(|&byte| byte == b'+')
}

fn holds(condition: &Condition, c: &Connection, r: &mut Request) -> bool {
    match condition {
        Condition::True(value) => value::is_true(&value::expanded(value, c, r)),
        Condition::Equal { left, right, negate } => {
            (value::expanded(left, c, r) == value::expanded(right, c, r)) != *negate
        }
        Condition::Match { value, regex, negate } => {
            let value = value::expanded(value, c, r);
            let matched = regex.matches(&value, r.captures.get_mut());
            match matched {
                Ok(true) => r.set_named_captures(regex),
                Ok(false) => r.captures.get_mut().clear(),
                Err(GaveUp) => r.give_up(c, regex),
            }
            matched != Ok(*negate)
        }
        Condition::File { path, test, negate } => {
            let path = value::expanded(path, c, r);
            let path: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(&path);
            file_is(path, *test) != *negate
        }
    }
}

fn file_is(path: &std::ffi::OsStr, test: FileTest) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let Ok(found) = std::fs::metadata(path) else { return false };
    match test {
        FileTest::Exists => true,
        FileTest::File => found.is_file(),
        FileTest::Directory => found.is_dir(),
        FileTest::Executable => found.permissions().mode() & 0o111 != 0,
    }
}
