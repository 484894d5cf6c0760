//! The sticky module: requests of one session go to one server, told by a cookie, by a route in the
//! request, or by what was learned from earlier answers.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use md5::{Digest, Md5};

use crate::clock;
use crate::config::diagnostic::{Fault, Outcome, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::value::{Args, seconds, size};
use crate::http::connection::Connection;
use crate::http::request::Request;
use crate::http::value;
use crate::http::variable::Template;
use crate::http1::encode;
use crate::modules::Build;

/// `sticky` of an upstream block.
#[derive(Debug)]
pub enum Sticky {
    Cookie(Box<Cookie>),
    /// The first value that is not empty names the server.
    Route(Vec<Template>),
    Learn(Learn),
}

/// A cookie that names the server, set with every response.
#[derive(Debug, Default)]
pub struct Cookie {
    name: Box<str>,
    expires: Option<Expires>,
    domain: Option<Template>,
    path: Option<Template>,
    httponly: bool,
    secure: bool,
    samesite: Option<Template>,
}

#[derive(Debug, Clone, Copy)]
enum Expires {
    After(Duration),
    Max,
}

/// Sessions that servers began: a response's `create` value is found again as a request's `lookup`
/// value.
#[derive(Debug)]
pub struct Learn {
    create: Vec<Template>,
    lookup: Vec<Template>,
    pub sessions: Arc<Sessions>,
    /// Learn as soon as a response's head is there.
    pub at_header: bool,
}

/// What was learned: a session's key and the id of its server. Shared by all shards, bounded.
#[derive(Debug)]
pub struct Sessions {
    pub name: Box<str>,
    /// Bytes, as configured.
    size: usize,
    timeout: Duration,
    known: Mutex<Known>,
}

#[derive(Debug, Default, Clone)]
struct Known {
    by_key: HashMap<Key, Session>,
    /// Keys by the order of their last use.
    by_use: BTreeMap<u64, Key>,
    uses: u64,
}

type Key = [u8; 16];

#[derive(Debug, Clone)]
struct Session {
    server: Arc<str>,
    used_ms: u64,
    /// Where it stands in `by_use`.
    at: u64,
}

/// What one session is reckoned to take of its zone's size.
const SESSION_SIZE: usize = 128;
/// Eight pages.
const SMALLEST_ZONE: usize = 32 << 10;

pub const DIRECTIVES: &[Directive<Build>] =
    &[Directive::new("sticky", Contexts::UPSTREAM, Count::AtLeast(2))
        .syntax(
            "cookie name [expires=time | max] [domain=string] [path=string] [httponly] [secure] \
             [samesite=strict | lax | none | $variable]; sticky route $variable ...; sticky learn \
             create=$variable lookup=$variable zone=name:size [timeout=time] [header]",
        )
        .doc(
            "Binds a session to the server that served it first. After the balancing method, which \
             chooses for new sessions.",
        )
        .differs(
            "A session of an upgraded connection is learned with the 101, not with the end of the \
             tunnel.",
        )
        .set(sticky)];

fn sticky(b: &mut Build, args: Args<'_>) -> Outcome {
    let is_set = b.http.upstream_block().is_some_and(|upstream| upstream.sticky.is_some());
    if is_set {
        return Err(wrong("is duplicate"));
    }
    let sticky = match args.at(0) {
        "cookie" => Sticky::Cookie(Box::new(cookie(b, args)?)),
        "route" => Sticky::Route(
            args.from(1).iter().map(|text| b.http.names.template(text)).collect::<Outcome<_>>()?,
        ),
        "learn" => Sticky::Learn(learn(b, args)?),
        other => return fault!("unknown parameter \"{other}\""),
    };
    if let Some(upstream) = b.http.upstream_block() {
        upstream.sticky = Some(sticky);
    }
    Ok(())
}

/// `"sticky" directive is duplicate`
fn wrong(what: impl std::fmt::Display) -> Fault {
    Fault::new(format!("\"sticky\" directive {what}"))
}

fn no_value(name: &str) -> Fault {
    wrong(format_args!("no value for \"{name}\""))
}

fn invalid(name: &str) -> Fault {
    wrong(format_args!("invalid \"{name}\" parameter value"))
}

fn cookie(b: &mut Build, args: Args<'_>) -> Outcome<Cookie> {
    let mut cookie = Cookie { name: args.at(1).into(), ..Cookie::default() };
    for parameter in args.from(2) {
        let (name, value) = match parameter.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (parameter.as_str(), None),
        };
        let value = |name| match value {
            Some("") | None => Err(no_value(name)),
            Some(value) => Ok(value),
        };
        match name {
            "expires" => {
                cookie.expires = Some(match value(name)? {
                    "max" => Expires::Max,
                    time => Expires::After(seconds(time).ok_or_else(|| invalid(name))?),
                });
            }
            "domain" => cookie.domain = Some(b.http.names.template(value(name)?)?),
            "path" => cookie.path = Some(b.http.names.template(value(name)?)?),
            "samesite" => {
                let value = value(name)?;
                if !value.contains('$') && !is_samesite(value.as_bytes()) {
                    return Err(invalid(name));
                }
                cookie.samesite = Some(b.http.names.template(value)?);
            }
            "httponly" if !parameter.contains('=') => cookie.httponly = true,
            "secure" if !parameter.contains('=') => cookie.secure = true,
            _ => return fault!("unknown parameter \"{parameter}\""),
        }
    }
    Ok(cookie)
}

fn is_samesite(value: &[u8]) -> bool {
    [b"strict".as_slice(), b"lax", b"none"].iter().any(|word| value.eq_ignore_ascii_case(word))
}

fn learn(b: &mut Build, args: Args<'_>) -> Outcome<Learn> {
    let (mut create, mut lookup, mut zone) = (Vec::new(), Vec::new(), None);
    let mut timeout = Duration::from_secs(600);
    let mut at_header = false;
    for parameter in args.from(1) {
        match parameter.split_once('=') {
            None if parameter == "header" => at_header = true,
            None if matches!(parameter.as_str(), "create" | "lookup" | "zone" | "timeout") => {
                return Err(no_value(parameter));
            }
            Some((name @ ("create" | "lookup" | "zone" | "timeout"), "")) => {
                return Err(no_value(name));
            }
            Some(("create", value)) => create.push(b.http.names.template(value)?),
            Some(("lookup", value)) => lookup.push(b.http.names.template(value)?),
            Some(("timeout", value)) => {
                timeout = seconds(value).ok_or_else(|| invalid("timeout"))?;
            }
            Some(("zone", value)) => {
                let (name, text) = value.split_once(':').ok_or_else(|| invalid("zone"))?;
                let size = size(text).ok_or_else(|| invalid("zone"))?;
                if name.is_empty() {
                    return Err(invalid("zone"));
                }
                if size < SMALLEST_ZONE {
                    return Err(wrong("zone is too small"));
                }
                zone = Some((name, size));
            }
            _ => return fault!("unknown parameter \"{parameter}\""),
        }
    }
    let missing = |name: &str| Err(wrong(format_args!("\"{name}\" parameter is not specified")));
    if create.is_empty() {
        return missing("create");
    }
    if lookup.is_empty() {
        return missing("lookup");
    }
    let Some((name, size)) = zone else { return missing("zone") };
    let known = b.http.sessions.iter().find(|sessions| *sessions.name == *name);
    let sessions = match known {
        Some(known) if known.size == size => Arc::clone(known),
        Some(known) => {
            return fault!(
                "the size {size} of shared memory zone \"{name}\" conflicts with already declared \
                 size {}",
                known.size
            );
        }
        None => {
            let sessions = Arc::new(Sessions::new(name, size, timeout));
            b.http.sessions.push(Arc::clone(&sessions));
            sessions
        }
    };
    Ok(Learn { create, lookup, sessions, at_header })
}

impl Sticky {
    /// The id of the server that a request is bound to.
    pub fn bound(&self, c: &Connection, r: &Request, now_ms: u64) -> Option<Vec<u8>> {
        match self {
            Sticky::Cookie(cookie) => value::cookie(r, cookie.name.as_bytes()).map(<[u8]>::to_vec),
            Sticky::Route(routes) => first_value(routes, c, r),
            Sticky::Learn(learn) => {
                let session = first_value(&learn.lookup, c, r)?;
                let server = learn.sessions.find(&key(&session), now_ms)?;
                Some(server.as_bytes().to_vec())
            }
        }
    }

    /// Writes the response's line for the server that was chosen, where there is one.
    pub fn put_cookie(&self, c: &Connection, r: &mut Request, id: &str) {
        let Sticky::Cookie(cookie) = self else { return };
        let line = cookie.line(id, c, r);
        r.response.set_cookie = line;
    }
}

impl Cookie {
    /// `Set-Cookie: name=id; …`
    fn line(&self, id: &str, c: &Connection, r: &Request) -> Vec<u8> {
        let expanded = |template: &Option<Template>| {
            let mut text = value::expanded(template.as_ref()?, c, r);
            encode::clean_value(&mut text);
            (!text.is_empty()).then_some(text)
        };
        let [domain, path] = [&self.domain, &self.path].map(expanded);
        let samesite = expanded(&self.samesite).filter(|value| is_samesite(value));
        let mut line = format!("Set-Cookie: {}={id}", self.name).into_bytes();
        if let Some(expires) = self.expires {
            line.extend_from_slice(expires.attributes(clock::now()).as_bytes());
        }
        let mut attribute = |name: &str, value: &[u8]| {
            line.extend_from_slice(name.as_bytes());
            line.extend_from_slice(value);
        };
        if let Some(domain) = domain {
            attribute("; domain=", &domain);
        }
        if self.httponly {
            attribute("; httponly", b"");
        }
        if self.secure {
            attribute("; secure", b"");
        }
        if let Some(samesite) = samesite {
            attribute("; samesite=", &samesite.to_ascii_lowercase());
        }
        if let Some(path) = path {
            attribute("; path=", &path);
        }
        line.extend_from_slice(b"\r\n");
        line
    }
}

impl Expires {
    /// `; expires=Sun, 22-Nov-26 08:48:29 GMT; max-age=3600`, `now` being the time since the epoch.
    fn attributes(self, now: Duration) -> String {
        match self {
            Expires::Max => "; expires=Thu, 31-Dec-37 23:55:55 GMT; max-age=315360000".to_owned(),
            Expires::After(time) => {
                /// The last second that an HTTP date can tell.
                const LAST: u64 = 253_402_300_799;
                let at = now.as_secs().saturating_add(time.as_secs()).min(LAST);
                // `Sun, 22 Nov 2026 08:48:29 GMT`
                #[expect(clippy::arithmetic_side_effects, reason = "the year is 9999 at most")]
                let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(at));
                #[expect(clippy::string_slice, reason = "29 characters of ASCII")]
                let (day, month, year, clock) =
                    (&date[..7], &date[8..11], &date[12..16], &date[16..]);
                // Two digits of a year are the seventies to 2037.
                let year = if year > "2037" { year } else { year.get(2..).unwrap_or(year) };
                let age = time.as_secs();
                format!("; expires={day}-{month}-{year}{clock}; max-age={age}")
            }
        }
    }
}

impl Learn {
    /// Keeps the session that an answer began. False: for want of room another was forgotten.
    pub fn learn(&self, c: &Connection, r: &Request, server: &Arc<str>, now_ms: u64) -> bool {
        match first_value(&self.create, c, r) {
            Some(session) => self.sessions.learn(key(&session), server, now_ms),
            None => true,
        }
    }
}

fn first_value(templates: &[Template], c: &Connection, r: &Request) -> Option<Vec<u8>> {
    templates.iter().map(|template| value::expanded(template, c, r)).find(|text| !text.is_empty())
}

fn key(session: &[u8]) -> Key {
    Md5::digest(session).into()
}

/// 32 digits, lower case.
#[expect(clippy::indexing_slicing, reason = "half a byte is less than sixteen")]
pub fn hex_md5(text: &[u8]) -> String {
    let digit = |n: u8| char::from(b"0123456789abcdef"[usize::from(n & 15)]);
    key(text).iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

impl Sessions {
    fn new(name: &str, size: usize, timeout: Duration) -> Self {
        Sessions { name: name.into(), size, timeout, known: Mutex::default() }
    }

    /// The server of a session, which this is a use of.
    fn find(&self, key: &Key, now_ms: u64) -> Option<Arc<str>> {
        let mut known = self.lock();
        known.expire(now_ms, self.timeout);
        let server = Arc::clone(&known.by_key.get(key)?.server);
        known.keep(*key, &server, now_ms);
        Some(server)
    }

    /// False: for want of room the one used longest ago was forgotten.
    fn learn(&self, key: Key, server: &Arc<str>, now_ms: u64) -> bool {
        let mut known = self.lock();
        known.expire(now_ms, self.timeout);
        let has_room =
            known.by_key.contains_key(&key) || known.by_key.len() < self.size / SESSION_SIZE;
        if !has_room {
            known.forget_oldest();
        }
        known.keep(key, server, now_ms);
        has_room
    }

    /// Goes on with the sessions of an earlier configuration's zone of the same name and size.
    pub fn take_over(&self, old: &Sessions) {
        if self.name == old.name && self.size == old.size {
            let known = old.lock().clone();
            *self.lock() = known;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn keep(&mut self, key: Key, server: &Arc<str>, now_ms: u64) {
        self.uses = self.uses.saturating_add(1);
        let session = Session { server: Arc::clone(server), used_ms: now_ms, at: self.uses };
        if let Some(before) = self.by_key.insert(key, session) {
            self.by_use.remove(&before.at);
        }
        self.by_use.insert(self.uses, key);
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.by_use.pop_first() {
            self.by_key.remove(&key);
        }
    }

    fn expire(&mut self, now_ms: u64, timeout: Duration) {
        while let Some(session) = self.by_use.values().next().and_then(|key| self.by_key.get(key))
            && u128::from(now_ms.saturating_sub(session.used_ms)) > timeout.as_millis()
        {
            self.forget_oldest();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_md5_of_the_address() {
        // RFC 1321, appendix A.5.
        assert_eq!(hex_md5(b"abc"), "900150983cd24fb0d6963f7d28e17f72");
    }

    #[test]
    fn dates_are_a_cookies() {
        let now = Duration::from_secs(1_795_333_525);
        let expires = Expires::After(Duration::from_secs(3600)).attributes(now);
        assert_eq!(expires, "; expires=Sun, 22-Nov-26 08:45:25 GMT; max-age=3600");
        let far = Expires::After(Duration::from_secs(10_000 * 86_400)).attributes(now);
        assert!(far.starts_with("; expires=Thu, 09-Apr-2054 07:45:25 GMT"), "{far}");
        assert!(Expires::Max.attributes(now).ends_with("-37 23:55:55 GMT; max-age=315360000"));
    }

    #[test]
    fn sessions_are_used_forgotten_and_bounded() {
        let sessions = Sessions::new("z", SESSION_SIZE * 2, Duration::from_secs(10));
        let server: Arc<str> = "s".into();
        let [a, b, c] = [key(b"a"), key(b"b"), key(b"c")];
        assert!(sessions.learn(a, &server, 0) && sessions.learn(b, &server, 1000));
        // Known already: no room is needed.
        assert!(sessions.learn(a, &server, 2000));
        assert!(sessions.find(&b, 3000).is_some());
        // The one used longest ago makes room.
        assert!(!sessions.learn(c, &server, 4000));
        assert!(sessions.find(&a, 4000).is_none());
        assert!(sessions.find(&b, 5000).is_some());
        assert!(sessions.find(&b, 15_000).is_some() && sessions.find(&c, 15_000).is_none());
        assert!(sessions.find(&b, 25_001).is_none());
        let known = sessions.lock();
        assert!(known.by_key.is_empty() && known.by_use.is_empty());
    }

    #[test]
    fn a_reload_keeps_sessions() {
        let server: Arc<str> = "s".into();
        let old = Sessions::new("z", 32 << 10, Duration::from_secs(10));
        old.learn(key(b"a"), &server, 0);
        for (name, found) in [("z", true), ("y", false)] {
            let new = Sessions::new(name, 32 << 10, Duration::from_secs(10));
            new.take_over(&old);
            assert_eq!(new.find(&key(b"a"), 1).is_some(), found);
        }
    }
}
