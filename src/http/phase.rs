//! The phases of a request, in order (http-core, section 6), and the redirects between them.

use std::rc::Rc;
use std::sync::Arc;

use super::action::Action;
use super::body;
use super::close::Close;
use super::connection::Connection;
use super::location::{Found, Handler, LocationTree};
use super::modules::core::{self, ErrorPageStatus, ErrorPageTarget, TryFilesLast};
use super::modules::rewrite::{self, Rewritten};
use super::modules::{realip, static_files, status, stub_status};
use super::request::{Request, URI_CHANGES_MAX};
use super::response::{self, Head, Length};
use super::server::{Http, LocationId};
use super::upstream::exchange;
use super::variable::Captures;
use super::{special_response, value};
use crate::error_log::Level;
use crate::http1::framing::BodyLength;
use crate::http1::header::Known;
use crate::http1::request::{Method, Version};

/// What a phase or a content handler leaves to be done.
#[derive(Debug)]
pub enum Outcome {
    /// The response is complete, or as complete as it will get.
    Done,
    /// An error page, or the built-in one, is to be sent.
    Status(u16),
    /// The request starts again with another URI.
    Internal { uri: Vec<u8>, args: Vec<u8> },
    /// It goes on in a named location, URI and method unchanged.
    Named(Arc<str>),
}

/// Where a (re)start enters.
enum Enter {
    ServerRewrite,
    /// A named location's own rewrite steps.
    Location,
}

/// Answers the request whose head has been read.
pub async fn answer(c: &Connection, r: &mut Request) -> Result<(), Close> {
    r.keepalive = true;
    realip::run(c, r);
    let outcome = run(c, r, Enter::ServerRewrite).await?;
    follow(c, r, outcome).await
}

/// Answers with a status that was decided before any phase.
pub async fn answer_status(c: &Connection, r: &mut Request, code: u16) -> Result<(), Close> {
    follow(c, r, Outcome::Status(code)).await
}

async fn follow(c: &Connection, r: &mut Request, mut outcome: Outcome) -> Result<(), Close> {
    loop {
        outcome = match outcome {
            Outcome::Done => return Ok(()),
            Outcome::Status(code) => special(c, r, code).await?,
            Outcome::Internal { uri, args } => match redirect_internally(c, r, uri, args) {
                Some(status) => Outcome::Status(status),
                None => run(c, r, Enter::ServerRewrite).await?,
            },
            Outcome::Named(name) => match redirect_to_named(c, r, &name) {
                Some(status) => Outcome::Status(status),
                None => run(c, r, Enter::Location).await?,
            },
        };
    }
}

async fn run(c: &Connection, r: &mut Request, enter: Enter) -> Result<Outcome, Close> {
    let generation = Rc::clone(&r.generation);
    let http = generation.http();
    if let Enter::ServerRewrite = enter {
        r.location = http.server(r.server).level;
        if let Rewritten::Respond(outcome) = rewrite::run(c, r, http) {
            return respond(c, r, outcome).await;
        }
        if let Some(outcome) = enter_location(c, r, http) {
            return Ok(outcome);
        }
    }
    loop {
        match rewrite::run(c, r, http) {
            Rewritten::Respond(outcome) => return respond(c, r, outcome).await,
            Rewritten::Stay => break,
            Rewritten::Relocate => {
                if count_uri_change(c, r, "processing") {
                    return Ok(Outcome::Status(500));
                }
                if let Some(outcome) = enter_location(c, r, http) {
                    return Ok(outcome);
                }
            }
        }
    }
    realip::run(c, r);
    if let Some(outcome) = try_files(c, r, http) {
        return Ok(outcome);
    }
    match http.location(r.location).handler {
        Some(Handler::Proxy) => exchange::proxy(c, r).await,
        Some(Handler::Uwsgi) => exchange::uwsgi(c, r).await,
        Some(Handler::Status) => status::serve(c, r).await,
        Some(Handler::StubStatus) => stub_status::serve(c, r).await,
        None => static_files::serve(c, r).await,
    }
}

/// Finds the location of the current URI and makes the checks that come with it.
fn enter_location(c: &Connection, r: &mut Request, http: &Http) -> Option<Outcome> {
    let server = http.server(r.server);
    r.rewritten_in_place = false;
    let mut captures = std::mem::take(r.captures.get_mut());
    let search = find(&server.locations, http, &r.uri, &mut captures);
    *r.captures.get_mut() = captures;
    match search {
        Search::None => r.location = server.level,
        Search::Prefix(location) => r.location = location,
        Search::Regex(location, regex) => {
            r.location = location;
            r.set_named_captures(&regex);
        }
        Search::AutoRedirect(location) => {
            r.location = location;
            let mut target = http.location(location).name.as_bytes().to_vec();
            if !r.args.is_empty() {
                target.push(b'?');
                target.extend_from_slice(&r.args);
            }
            r.response.location = Some(target);
            return Some(Outcome::Status(301));
        }
    }
    let core = &http.location(r.location).settings.core;
    if *core.internal && !r.internal {
        return Some(Outcome::Status(404));
    }
    if let BodyLength::Length(length) = r.head.body
        && *core.client_max_body_size > 0
        && length > *core.client_max_body_size
        && !r.body.is_started()
        && !r.in_error_page
    {
        let text = format_args!("client intended to send too large body: {length} bytes");
        c.log(r, Level::Error, text);
        return Some(Outcome::Status(413));
    }
    None
}

enum Search {
    None,
    Prefix(LocationId),
    Regex(LocationId, Arc<super::variable::Regex>),
    AutoRedirect(LocationId),
}

/// http-core, section 5.
fn find(tree: &LocationTree, http: &Http, uri: &[u8], captures: &mut Captures) -> Search {
    let mut best = Search::None;
    let mut regexes_allowed = true;
    match tree.find_prefix(uri) {
        Found::Exact(location) => return Search::Prefix(location),
        Found::AutoRedirect(location) => return Search::AutoRedirect(location),
        Found::Prefix { location, no_regex } => {
            regexes_allowed = !no_regex;
            best = Search::Prefix(location);
            let nested = &http.location(location).nested;
            if !nested.is_empty() {
                match find(nested, http, uri, captures) {
                    Search::None => {}
                    Search::Prefix(inner) => best = Search::Prefix(inner),
                    found => return found,
                }
            }
        }
        Found::None => {}
    }
    if regexes_allowed {
        for (regex, location) in &tree.regexes {
            if regex.matches(uri, captures) {
                let nested = &http.location(*location).nested;
                let inner = if nested.is_empty() {
                    Search::None
                } else {
                    let mut inner_captures = captures.clone();
                    let inner = find(nested, http, uri, &mut inner_captures);
                    if let Search::Regex(..) = inner {
                        *captures = inner_captures;
                    }
                    inner
                };
                return match inner {
                    Search::None => Search::Regex(*location, Arc::clone(regex)),
                    inner => inner,
                };
            }
        }
    }
    best
}

/// One more change of the URI; true when that is one too many.
fn count_uri_change(c: &Connection, r: &mut Request, what: &str) -> bool {
    if r.uri_changes >= URI_CHANGES_MAX {
        // Past the limit: not even an error page may change it again.
        r.uri_changes = URI_CHANGES_MAX + 1;
        let uri = crate::error_log::escape(&r.uri);
        c.log(
            r,
            Level::Error,
            format_args!("rewrite or internal redirection cycle while {what} \"{uri}\""),
        );
        return true;
    }
    r.uri_changes += 1;
    r.uri_is_original = false;
    false
}

fn redirect_internally(
    c: &Connection,
    r: &mut Request,
    uri: Vec<u8>,
    args: Vec<u8>,
) -> Option<u16> {
    r.uri = uri;
    r.args = args;
    if count_uri_change(c, r, "internally redirecting to") {
        return Some(500);
    }
    r.internal = true;
    r.escape = true;
    None
}

fn redirect_to_named(c: &Connection, r: &mut Request, name: &str) -> Option<u16> {
    if r.uri.is_empty() {
        let text = format_args!("empty URI in redirect to named location \"{name}\"");
        c.log(r, Level::Error, text);
        return Some(500);
    }
    let generation = Rc::clone(&r.generation);
    let Some(location) = generation.http().server(r.server).named.get(name) else {
        c.log(r, Level::Error, format_args!("could not find named location \"{name}\""));
        return Some(500);
    };
    let was_original = r.uri_is_original;
    if count_uri_change(c, r, "redirect to named location") {
        return Some(500);
    }
    r.uri_is_original = was_original;
    r.internal = true;
    r.location = *location;
    None
}

/// `try_files`: the first candidate that exists becomes the URI; otherwise the last one decides.
fn try_files(c: &Connection, r: &mut Request, http: &Http) -> Option<Outcome> {
    let location = http.location(r.location);
    let files = location.settings.core.try_files.get()?;
    for candidate in &files.candidates {
        let uri = value::expanded(candidate, c, r);
        let wants_directory = uri.ends_with(b"/");
        let mut path = Vec::new();
        value::file_for(&uri, c, r, &mut path);
        let path: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(&path);
        let is_there = std::fs::metadata(path).is_ok_and(|found| found.is_dir() == wants_directory);
        if is_there {
            r.uri = uri;
            return None;
        }
    }
    Some(match &files.last {
        TryFilesLast::Code(code) => Outcome::Status(*code),
        TryFilesLast::Named(name) => Outcome::Named(Arc::clone(name)),
        TryFilesLast::Uri(uri) => internal(value::expanded(uri, c, r)),
    })
}

/// An internal redirect to `uri[?args]`.
pub fn internal(uri: Vec<u8>) -> Outcome {
    match memchr::memchr(b'?', &uri) {
        Some(at) => Outcome::Internal { args: uri[at + 1..].to_vec(), uri: uri[..at].to_vec() },
        None => Outcome::Internal { uri, args: Vec::new() },
    }
}

/// What `return` and a rewrite to a URL ask for.
async fn respond(
    c: &Connection,
    r: &mut Request,
    answer: rewrite::Answer,
) -> Result<Outcome, Close> {
    match answer {
        rewrite::Answer::Status(code) => Ok(Outcome::Status(code)),
        rewrite::Answer::Redirect { code, location } => {
            r.response.location = Some(location);
            Ok(Outcome::Status(code))
        }
        rewrite::Answer::Text { code, text } => {
            if body::is_announced(r) && r.head.expect_continue && !discard_before(c, r).await? {
                return Ok(Outcome::Status(400));
            }
            let generation = Rc::clone(&r.generation);
            let core = &generation.http().location(r.location).settings.core;
            let content_type = core::content_type(core, &r.uri);
            let head = Head {
                status: code,
                content_type: content_type.as_deref().map(str::as_bytes),
                length: Length::Known(text.len() as u64),
                ..Head::default()
            };
            response::send(c, r, &head, &[&text]).await?;
            Ok(Outcome::Done)
        }
    }
}

/// Who waits for `100 Continue` gets it when something is about to take the body; false: it is bad.
async fn discard_before(c: &Connection, r: &mut Request) -> Result<bool, Close> {
    match body::discard(c, r).await {
        Ok(()) => Ok(true),
        Err(body::BodyError::Status(_)) => Ok(false),
        Err(body::BodyError::Close(close)) => Err(close),
    }
}

/// An error page, as the configuration says or built in (http-core, section 7).
async fn special(c: &Connection, r: &mut Request, code: u16) -> Result<Outcome, Close> {
    if r.response.head_sent {
        // Too late for a page: what was promised cannot be completed.
        return Err(Close::Truncated);
    }
    match code {
        408 | 444 | 499 => {
            r.response.status = code;
            return Err(Close::Silently);
        }
        400 | 413 | 414 | 494..=497 | 500 | 501 => r.keepalive = false,
        _ => {}
    }
    let generation = Rc::clone(&r.generation);
    let core = &generation.http().location(r.location).settings.core;
    let in_cycle = r.uri_changes > URI_CHANGES_MAX;
    if !in_cycle && (!r.in_error_page || *core.recursive_error_pages) {
        let page = core.error_page.iter().find(|page| page.codes.contains(&code));
        if let Some(page) = page {
            r.in_error_page = true;
            r.response.status_override = match page.answer {
                ErrorPageStatus::Original => Some(code),
                ErrorPageStatus::Code(code) => Some(code),
                ErrorPageStatus::OfTarget => None,
            };
            match &page.target {
                ErrorPageTarget::Uri(uri) => {
                    if r.method != Method::Head {
                        r.method = Method::Get;
                    }
                    return Ok(internal(value::expanded(uri, c, r)));
                }
                ErrorPageTarget::Named(name) => return Ok(Outcome::Named(Arc::clone(name))),
                ErrorPageTarget::Url(url) => {
                    let location = value::expanded(url, c, r);
                    r.response.location = Some(location);
                    let redirect = match page.answer {
                        ErrorPageStatus::Code(code @ (301 | 302 | 303 | 307 | 308)) => code,
                        _ => 302,
                    };
                    r.response.status_override = None;
                    return built_in(c, r, redirect).await;
                }
            }
        }
    }
    r.response.status_override = None;
    built_in(c, r, code).await
}

/// The built-in page of a status, or an empty response where there is none.
async fn built_in(c: &Connection, r: &mut Request, code: u16) -> Result<Outcome, Close> {
    let generation = Rc::clone(&r.generation);
    let core = &generation.http().location(r.location).settings.core;
    let padded = *core.msie_padding
        && r.head.headers.find(Known::UserAgent).is_some_and(|agent| {
            let minor = match r.version() {
                Version::Http09 => None,
                Version::Http10 => Some(0),
                Version::Http11 => Some(1),
            };
            special_response::is_padded_for(r.text(agent.value), minor)
        });
    let page = special_response::page(code, *core.server_tokens, padded);
    let location = r.response.location.take();
    let head = Head {
        status: special_response::status(code),
        content_type: page.map(|_| special_response::CONTENT_TYPE.as_bytes()),
        length: match page {
            Some(page) => Length::Known(page.length() as u64),
            None if matches!(code, 204 | 304) => Length::None,
            None => Length::Known(0),
        },
        location: location.as_deref(),
        ..Head::default()
    };
    c.action.set(Action::SendingResponse);
    match page {
        Some(page) => response::send(c, r, &head, &page.pieces).await?,
        None => response::send(c, r, &head, &[]).await?,
    }
    Ok(Outcome::Done)
}
