//! The phases of a request, in order (http-core, section 6), and the redirects between them.

use std::rc::Rc;
use std::sync::Arc;

use super::action::Action;
use super::body;
use super::close::Close;
use super::connection::{self, Connection};
use super::location::{Found, Handler, LocationTree};
use super::modules::access::{self, Gate, Next};
use super::modules::core::{self, ErrorPage, ErrorPageStatus, ErrorPageTarget, Maps, TryFilesLast};
use super::modules::rewrite::{self, Rewritten};
use super::modules::static_files::{self, Validators, Verdict};
use super::modules::{realip, status, stub_status};
use super::request::{Request, URI_CHANGES_MAX};
use super::response::{self, Head, Length, Status};
use super::server::{Http, LocationId};
use super::upstream::exchange;
use super::upstream::protocol::SetOutFor;
use super::variable::{GaveUp, Template};
use super::{fault, special_response, value};
use crate::error_log::{Level, escape};
use crate::http1::encode;
use crate::http1::framing::BodyLength;
use crate::http1::header::Known;
use crate::http1::request::{Method, Version};
use crate::http1::uri::{escape_refresh, escape_uri};
use crate::io::timer;

/// What a phase or a content handler leaves to be done.
#[derive(Debug)]
pub enum Outcome {
    /// The response is complete, or as complete as it will get.
    Done,
    /// An error page, or the built-in one, is to be sent.
    Status(u16),
    /// The request starts again with another URI.
    Internal { uri: Vec<u8>, args: Option<Vec<u8>> },
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
    fault::at(r, "before the phases");
    let early = read_body_early(c, r).await?;
    let outcome = match early {
        // Not even the server is known for certain, or whether the body is read.
        _ if r.has_given_up() => Outcome::Status(500),
        Some(status) => Outcome::Status(status),
        None => run(c, r, Enter::ServerRewrite).await?,
    };
    follow(c, r, outcome).await
}

/// `client_body_early_read`: the status that a body ends with which cannot be read.
async fn read_body_early(c: &Connection, r: &mut Request) -> Result<Option<u16>, Close> {
    let predicates = &c.settings(r).core.client_body_early_read;
    if predicates.is_empty() {
        return Ok(None);
    }
    if !predicates.iter().any(|wish| value::is_true(&value::expanded(wish, c, r))) {
        return Ok(None);
    }
    // What the server takes is all that is read before its location is known.
    let max = *c.settings(r).core.client_max_body_size;
    if matches!(r.head.body, BodyLength::Length(length) if max > 0 && length > max) {
        return Ok(None);
    }
    body::refusal(body::read_all(c, r).await)
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
    // Where there is no location, the steps of the server are done already.
    while r.location != http.server(r.server).level {
        match rewrite::run(c, r, http) {
            Rewritten::Respond(outcome) => return respond(c, r, outcome).await,
            Rewritten::Stay => break,
            Rewritten::Relocate => {
                leave_location(c, r);
                if count_uri_change(c, r, UriChange::Rewrite) {
                    return Ok(Outcome::Status(500));
                }
                if let Some(outcome) = enter_location(c, r, http) {
                    return Ok(outcome);
                }
            }
        }
    }
    realip::run(c, r);
    if let Some(status) = control_access(c, r, http).await {
        return Ok(Outcome::Status(status));
    }
    let tried = try_files(c, r, http);
    if r.has_given_up() {
        return Ok(Outcome::Status(500));
    }
    if let Some(outcome) = tried {
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
    let Ok(search) = find(&server.locations, http, r) else {
        // What was not found out may have been a refusal.
        c.log(r, Level::Error, format_args!("matching the locations took too many steps"));
        return Some(Outcome::Status(500));
    };
    let found = match search {
        Search::None => server.level,
        Search::Prefix(location) | Search::Final(location) | Search::AutoRedirect(location) => {
            location
        }
    };
    r.location = found;
    let core = &http.location(found).settings.core;
    if *core.internal && !r.internal {
        return Some(Outcome::Status(404));
    }
    r.location = http.for_method(r.location, value::method(r));
    let length = match r.head.body {
        BodyLength::Length(length) => length,
        BodyLength::Chunked if r.body.is_held => r.body.decoded,
        _ => 0,
    };
    let max = *core.client_max_body_size;
    if max > 0 && length > max {
        let text = format_args!("client intended to send too large body: {length} bytes");
        c.log(r, Level::Error, text);
        // Nobody gets it, not even who makes the error page.
        body::abandon(r);
        return Some(Outcome::Status(413));
    }
    if let Search::AutoRedirect(_) = search {
        let mut target = Vec::new();
        escape_uri(http.location(found).name.as_bytes(), &mut target);
        if !r.args.is_empty() {
            target.push(b'?');
            target.extend_from_slice(&r.args);
        }
        r.response.location = Some(target);
        return Some(Outcome::Status(301));
    }
    None
}

/// Every location that a request comes through can end the connection, not only the last one, which
/// is asked when the response begins.
fn leave_location(c: &Connection, r: &mut Request) {
    r.keepalive = r.keepalive && connection::may_keep_alive(c, r);
}

/// The access phase: everybody who controls access is asked, and `satisfy` weighs what they say.
async fn control_access(c: &Connection, r: &mut Request, http: &Http) -> Option<u16> {
    let settings = &http.location(r.location).settings.access;
    if settings.rules.is_empty() {
        return None;
    }
    let mut gate = Gate::new(*settings.satisfy);
    let refused = match gate.take(access::check(c, r)) {
        Next::Open => None,
        Next::Shut(status) => Some(status),
        Next::Ask => {
            let refused = gate.refusal();
            if refused == Some(403) {
                access::forbidden(c, r);
            }
            refused
        }
    };
    if matches!(refused, Some(401 | 407)) && !settings.auth_delay.is_zero() {
        c.log(r, Level::Info, format_args!("delaying unauthorized request"));
        timer::sleep(*settings.auth_delay).await;
    }
    refused
}

enum Search {
    None,
    /// A regex of an outer level may still be preferred.
    Prefix(LocationId),
    /// By `=` or a regex: no regex of an outer level has a say.
    Final(LocationId),
    AutoRedirect(LocationId),
}

/// http-core, section 5. Each regex that matches on the way leaves its captures.
fn find(tree: &LocationTree, http: &Http, r: &mut Request) -> Result<Search, GaveUp> {
    let mut best = Search::None;
    let mut regexes_allowed = true;
    match tree.find_prefix(&r.uri) {
        Found::Exact(location) => return Ok(Search::Final(location)),
        Found::AutoRedirect(location) => return Ok(Search::AutoRedirect(location)),
        Found::Prefix { location, no_regex } => {
            regexes_allowed = !no_regex;
            best = Search::Prefix(location);
            let nested = &http.location(location).nested;
            if !nested.is_empty() {
                match find(nested, http, r)? {
                    Search::None => {}
                    Search::Prefix(inner) => best = Search::Prefix(inner),
                    found => return Ok(found),
                }
            }
        }
        Found::None => {}
    }
    if regexes_allowed {
        for (regex, location) in &tree.regexes {
            if regex.matches(&r.uri, r.captures.get_mut())? {
                r.set_named_captures(regex);
                let nested = &http.location(*location).nested;
                let inner = if nested.is_empty() { Search::None } else { find(nested, http, r)? };
                return Ok(match inner {
                    Search::None => Search::Final(*location),
                    inner => inner,
                });
            }
        }
    }
    Ok(best)
}

/// How a URI comes to be changed.
#[derive(Clone, Copy)]
enum UriChange<'a> {
    Rewrite,
    /// The URI that is to come.
    InternalRedirect(&'a [u8]),
    NamedLocation(&'a str),
}

/// One more change of the URI; true when that is one too many.
fn count_uri_change(c: &Connection, r: &mut Request, change: UriChange<'_>) -> bool {
    if r.uri_changes >= URI_CHANGES_MAX {
        // Past the limit: not even an error page may change it again.
        r.uri_changes = URI_CHANGES_MAX + 1;
        let cycle = "rewrite or internal redirection cycle while";
        match change {
            UriChange::Rewrite => {
                let uri = escape(&r.uri);
                c.log(r, Level::Error, format_args!("{cycle} processing \"{uri}\""));
            }
            UriChange::InternalRedirect(uri) => {
                let uri = escape(uri);
                c.log(r, Level::Error, format_args!("{cycle} internally redirecting to \"{uri}\""));
            }
            UriChange::NamedLocation(name) => {
                let text = format_args!("{cycle} redirect to named location \"{name}\"");
                c.log(r, Level::Error, text);
            }
        }
        return true;
    }
    r.uri_changes = r.uri_changes.saturating_add(1);
    r.uri_is_original = false;
    false
}

fn redirect_internally(
    c: &Connection,
    r: &mut Request,
    uri: Vec<u8>,
    args: Option<Vec<u8>>,
) -> Option<u16> {
    leave_location(c, r);
    if count_uri_change(c, r, UriChange::InternalRedirect(&uri)) {
        return Some(500);
    }
    r.uri = uri;
    r.set_args(args);
    r.set_out_for = SetOutFor::Nobody;
    c.action.set(Action::Processing);
    r.internal = true;
    r.rewritten_in_place = false;
    r.uri_follows_alias = false;
    // The server is one of those that the request comes through.
    let generation = Rc::clone(&r.generation);
    r.location = generation.http().server(r.server).level;
    leave_location(c, r);
    None
}

fn redirect_to_named(c: &Connection, r: &mut Request, name: &str) -> Option<u16> {
    let was_original = r.uri_is_original;
    leave_location(c, r);
    // It counts also when there is no such location, and when the URI is empty.
    if count_uri_change(c, r, UriChange::NamedLocation(name)) {
        return Some(500);
    }
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
    r.uri_is_original = was_original;
    r.set_out_for = SetOutFor::Nobody;
    r.internal = true;
    r.location = generation.http().for_method(*location, value::method(r));
    None
}

/// `try_files`: the first candidate that exists becomes the URI; otherwise the last one decides.
fn try_files(c: &Connection, r: &mut Request, http: &Http) -> Option<Outcome> {
    let location = http.location(r.location);
    let files = location.settings.core.try_files.get()?;
    if let Some(status) = static_files::misplaced_alias(c, r) {
        return Some(Outcome::Status(status));
    }
    let root = &*location.settings.core.root;
    let mut path = Vec::new();
    value::document_root(c, r, &mut path);
    let root_len = path.len();
    for candidate in &files.candidates {
        let name = name_to_try(&candidate.path, root.maps, c, r);
        path.truncate(root_len);
        path.extend_from_slice(&name);
        if static_files::is_there(c, r, &path, candidate.is_directory) {
            match root.maps {
                Maps::Whole => r.uri = name,
                Maps::Behind(len) => {
                    r.uri.truncate(len);
                    r.uri.extend_from_slice(&name);
                }
                // A directory is looked for where the alias leads anyway.
                Maps::Nothing if candidate.is_directory => {}
                Maps::Nothing => {
                    r.uri = name;
                    r.uri_follows_alias = true;
                }
            }
            return None;
        }
    }
    Some(match &files.last {
        TryFilesLast::Code(code) => Outcome::Status(*code),
        TryFilesLast::Named(name) => Outcome::Named(Arc::clone(name)),
        TryFilesLast::Uri(uri) => {
            let uri = name_to_try(uri, root.maps, c, r);
            if uri.starts_with(b"@") {
                Outcome::Named(String::from_utf8_lossy(&uri).into())
            } else {
                // Args that are not there are empty ones here, as in nginx.
                let (uri, args) = split_args(uri);
                Outcome::Internal { uri, args: Some(args.unwrap_or_default()) }
            }
        }
    })
}

/// A parameter of `try_files`. Of one with variables, as with `$uri`, the location's name is left out
/// where an alias stands for it: also of the last one, which is a URI, as in nginx.
fn name_to_try(template: &Template, maps: Maps, c: &Connection, r: &Request) -> Vec<u8> {
    let mut name = value::expanded(template, c, r);
    if let Maps::Behind(len) = maps
        && template.has_variables()
        && r.uri.get(..len).is_some_and(|prefix| name.starts_with(prefix))
    {
        name.drain(..len);
    }
    name
}

/// An internal redirect to `uri[?args]`.
fn internal(uri: Vec<u8>) -> Outcome {
    let (uri, args) = split_args(uri);
    Outcome::Internal { uri, args }
}

fn split_args(mut uri: Vec<u8>) -> (Vec<u8>, Option<Vec<u8>>) {
    let args = memchr::memchr(b'?', &uri).map(|at| uri.split_off(at).split_off(1));
    (uri, args)
}

/// What `return` and a rewrite to a URL ask for.
async fn respond(
    c: &Connection,
    r: &mut Request,
    answer: rewrite::Answer,
) -> Result<Outcome, Close> {
    if !matches!(answer, rewrite::Answer::Status(400..) | rewrite::Answer::Rewritten { .. })
        && let Some(status) = body::begin_discard(c, r).await?
    {
        return Ok(Outcome::Status(status));
    }
    match answer {
        // An error gets its page, the rest is sent as it is.
        rewrite::Answer::Status(code @ 400..) => Ok(Outcome::Status(code)),
        rewrite::Answer::Status(code) => send_text(c, r, code, &[]).await,
        rewrite::Answer::Redirect { code, location }
        | rewrite::Answer::Rewritten { code, location } => {
            r.response.location = Some(location);
            Ok(Outcome::Status(code))
        }
        rewrite::Answer::Text { code, text } => send_text(c, r, code, &text).await,
    }
}

/// A text of the configuration, its type told by the URI.
async fn send_text(
    c: &Connection,
    r: &mut Request,
    code: u16,
    text: &[u8],
) -> Result<Outcome, Close> {
    let generation = Rc::clone(&r.generation);
    let core = &generation.http().location(r.location).settings.core;
    let content_type = core::content_type(core, &r.uri);
    let head = Head {
        status: Status::Own(code),
        content_type: content_type.as_deref().map(str::as_bytes),
        length: Length::Known(text.len() as u64),
        ..Head::default()
    };
    if let Some(outcome) = meet_conditions(c, r, code).await? {
        return Ok(outcome);
    }
    response::send(c, r, &head, &[text]).await?;
    Ok(Outcome::Done)
}

/// Conditions hold for a text too, which has neither time nor tag: what they make of it, if it is not
/// to be sent.
async fn meet_conditions(
    c: &Connection,
    r: &mut Request,
    code: u16,
) -> Result<Option<Outcome>, Close> {
    if r.response.status_override.unwrap_or(code) != 200 {
        return Ok(None);
    }
    match static_files::verdict(r, &c.settings(r).core, &Validators::default()) {
        Verdict::Proceed => Ok(None),
        Verdict::PreconditionFailed => Ok(Some(Outcome::Status(412))),
        Verdict::NotModified => {
            let head = Head { status: Status::Settled(304), ..Head::default() };
            response::send(c, r, &head, &[]).await?;
            Ok(Some(Outcome::Done))
        }
    }
}

/// GET and HEAD of a text made on the spot: the whole of a content handler that shows something.
/// `line`, if any, comes before what the configuration adds.
pub async fn send_made(
    c: &Connection,
    r: &mut Request,
    content_type: &str,
    line: Option<(&[u8], &[u8])>,
    make: impl FnOnce() -> String,
) -> Result<Outcome, Close> {
    if !matches!(r.method, Method::Get | Method::Head) {
        return Ok(Outcome::Status(405));
    }
    if let Some(status) = body::begin_discard(c, r).await? {
        return Ok(Outcome::Status(status));
    }
    if let Some(outcome) = meet_conditions(c, r, 200).await? {
        return Ok(outcome);
    }
    let text = make();
    let head = Head {
        content_type: Some(content_type.as_bytes()),
        length: Length::Known(text.len() as u64),
        ..Head::default()
    };
    response::begin(c, r, &head);
    if let Some((name, value)) = line {
        encode::header(name, value, &mut r.response.head);
    }
    response::send_begun(c, r, &[text.as_bytes()]).await?;
    Ok(Outcome::Done)
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
        // `try_files … =200`: there is nothing to say.
        0..=200 | 202..=203 | 205..=299 => return Err(Close::Silently),
        400 | 413 | 414 | 495..=497 | 500 | 501 => r.keepalive = false,
        _ => {}
    }
    // What `X-Accel-Redirect` came with is of no error's page.
    r.response.kept.content_type = None;
    let generation = Rc::clone(&r.generation);
    let core = &generation.http().location(r.location).settings.core;
    let Some(page) = error_page(r, core, code) else {
        r.response.status_override = None;
        return built_in(c, r, code).await;
    };
    r.only_built_in_pages = !*core.recursive_error_pages;
    // A page that takes the status's place may want the body; for any other, who waits for
    // `100 Continue` is told the status instead.
    if !matches!(page.answer, ErrorPageStatus::OfTarget | ErrorPageStatus::Code(200)) {
        r.head.expect_continue = false;
    }
    r.response.status_override = match page.answer {
        // Of 494 to 497 the client never hears.
        ErrorPageStatus::Original => Some(special_response::status(code)),
        ErrorPageStatus::Code(code) => Some(code),
        ErrorPageStatus::OfTarget => None,
    };
    match &page.target {
        ErrorPageTarget::Uri(uri) => {
            if r.method != Method::Head {
                r.method = Method::Get;
            }
            Ok(internal(value::expanded(uri, c, r)))
        }
        ErrorPageTarget::Named(name) => Ok(Outcome::Named(Arc::clone(name))),
        ErrorPageTarget::Url(url) => {
            let location = value::expanded(url, c, r);
            if location.starts_with(b"@") {
                return Ok(Outcome::Named(String::from_utf8_lossy(&location).into()));
            }
            if location.starts_with(b"/") {
                // Out of variables: a URI all the same.
                if r.method != Method::Head {
                    r.method = Method::Get;
                }
                return Ok(internal(location));
            }
            r.response.location = Some(location);
            let redirect = match page.answer {
                ErrorPageStatus::Code(code @ (301 | 302 | 303 | 307 | 308)) => code,
                _ => 302,
            };
            r.response.status_override = None;
            built_in(c, r, redirect).await
        }
    }
}

/// The page that the location of an error has for it, unless the location of an earlier one lets its
/// page have none, or the request is in a cycle.
pub fn error_page<'a>(r: &Request, core: &'a core::Settings, code: u16) -> Option<&'a ErrorPage> {
    if r.only_built_in_pages || r.uri_changes > URI_CHANGES_MAX {
        return None;
    }
    core.error_page.iter().find(|page| page.codes.contains(&code))
}

/// The built-in page of a status, or an empty response where there is none.
async fn built_in(c: &Connection, r: &mut Request, code: u16) -> Result<Outcome, Close> {
    // Who waits for `100 Continue` is told what there is instead.
    r.head.expect_continue = false;
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
    if *core.msie_refresh && matches!(code, 301 | 302) && connection::is_msie(r) {
        return refresh(c, r).await;
    }
    let page = special_response::page(code, *core.server_tokens, padded);
    r.response.kept.keep_for_page();
    let location = r.response.location.take();
    let head = Head {
        status: Status::Own(special_response::status(code)),
        content_type: page.map(|_| special_response::CONTENT_TYPE.as_bytes()),
        length: match page {
            Some(page) => Length::Known(page.length() as u64),
            None if matches!(code, 204 | 304) => Length::None,
            None => Length::Known(0),
        },
        location: location.as_deref(),
        ..Head::default()
    };
    if body::begin_discard(c, r).await?.is_some() {
        r.keepalive = false;
    }
    c.action.set(Action::SendingResponse);
    match page {
        Some(page) => response::send(c, r, &head, &page.pieces).await?,
        None => response::send(c, r, &head, &[]).await?,
    }
    Ok(Outcome::Done)
}

/// `msie_refresh`: a page that leads on, in place of a redirect.
async fn refresh(c: &Connection, r: &mut Request) -> Result<Outcome, Close> {
    let mut page = b"<html><head><meta http-equiv=\"Refresh\" content=\"0; URL=".to_vec();
    let location = r.response.location.take().unwrap_or_default();
    escape_refresh(&location, &mut page);
    page.extend_from_slice(b"\"></head><body></body></html>\r\n");
    let head = Head {
        content_type: Some(special_response::CONTENT_TYPE.as_bytes()),
        length: Length::Known(page.len() as u64),
        ..Head::default()
    };
    response::send(c, r, &head, &[&page]).await?;
    Ok(Outcome::Done)
}
