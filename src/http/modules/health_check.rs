//! The health check module: which groups are asked whether their servers are well, how, and what an
//! answer must look like. Who asks is `http/upstream/health.rs`.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, USER_AGENT};
use http::{HeaderMap, Uri};

use super::exchange::Pass;
use super::proxy;
use super::upstream::Upstream;
use crate::config::diagnostic::{Fault, Outcome, Place, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::setting::Own;
use crate::config::value::{Args, milliseconds, number};
use crate::http::location::{Handler, Location};
use crate::http::server::{LocationId, UpstreamId};
use crate::http::variable::Regex;
use crate::io::client::Request;
use crate::modules::Build;

/// Bytes of a body that are looked at.
pub const BODY_MAX: usize = 256 << 10;

#[derive(Debug, Clone, Default)]
pub struct Settings {
    asked: Own<Vec<Asked>>,
}

/// One `health_check` while the configuration is read.
#[derive(Debug, Clone)]
struct Asked {
    place: Place,
    plan: Plan,
    uri: Uri,
    /// Of `match`.
    tests: Option<Box<str>>,
}

/// One `health_check`: what is done to every server of a group.
#[derive(Debug)]
pub struct Check {
    pub upstream: UpstreamId,
    /// Where it is written: its timeouts, its log and its local address hold.
    pub location: LocationId,
    pub plan: Plan,
    pub request: Request,
    pub tests: Arc<Match>,
}

/// When servers are asked, and what follows from the answers.
#[derive(Debug, Clone)]
pub struct Plan {
    pub interval: Duration,
    /// Each probe comes later by a part of it, drawn by lot.
    pub jitter: Duration,
    /// So many failures in a row make a server unhealthy.
    pub fails: u32,
    /// So many passes in a row make it healthy again.
    pub passes: u32,
    /// In place of a server's own.
    pub port: Option<u16>,
    pub initial: Initial,
}

/// What a server is before the first answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initial {
    Healthy,
    /// `mandatory`: it gets no requests.
    Checking,
    /// `mandatory persistent`: the same, unless it was healthy before a reload.
    CheckingUnlessKnown,
}

/// What an answer must be like: the tests of a `match` block, all of which it has to pass.
#[derive(Debug)]
pub struct Match {
    pub name: Box<str>,
    status: Vec<StatusTest>,
    headers: Vec<HeaderTest>,
    body: Vec<BodyTest>,
}

#[derive(Debug)]
struct StatusTest {
    codes: Vec<RangeInclusive<u16>>,
    /// None of them.
    is_negated: bool,
}

#[derive(Debug)]
struct HeaderTest {
    name: HeaderName,
    expected: Expected,
}

#[derive(Debug)]
enum Expected {
    Present,
    Absent,
    Is(Box<[u8]>),
    IsNot(Box<[u8]>),
    Matches(Regex),
    MatchesNot(Regex),
}

#[derive(Debug)]
struct BodyTest {
    regex: Regex,
    is_negated: bool,
}

/// What a probe has come to: the `while …` of its log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Connecting,
    Sending,
    ReadingHead,
    CheckingStatus,
    CheckingHeader,
    CheckingBody,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Connecting => "connecting to upstream",
            Stage::Sending => "sending request to upstream",
            Stage::ReadingHead => "reading response header from upstream",
            Stage::CheckingStatus => "checking status code",
            Stage::CheckingHeader => "checking header",
            Stage::CheckingBody => "checking body",
        })
    }
}

const NO_REQUEST: &str = "there is no client's request whose variables could be looked at";

pub const DIRECTIVES: &[Directive<Build>] = &[
    Directive::new("health_check", Contexts::LOCATION, Count::AtLeast(0))
        .syntax(
            "[interval=time] [jitter=time] [fails=number] [passes=number] [uri=uri] [port=number] \
             [mandatory [persistent]] [match=name] [keepalive_time=time]",
        )
        .doc(
            "Asks every server of the group that the location's `proxy_pass` names whether it is \
             well, each `interval` (5s) and at most `jitter` later: `GET uri` (`/`). After `fails` \
             (1) failures in a row it gets no requests until it has passed `passes` (1) times in a \
             row; with `mandatory` it gets none before it has passed once. An answer passes with a \
             status from 200 to 399, or the tests of a `match` block; of several checks of a group \
             all have to pass.",
        )
        .differs(
            "no `zone` is needed; what is unhealthy stays so over a reload; of `proxy_set_header` \
             the constant values are sent; each probe has its own connection, whatever \
             `keepalive_time` says; `type=grpc` and `uwsgi_pass` are not supported.",
        )
        .set(health_check),
    Directive::new("match", Contexts::HTTP, Count::Exactly(1))
        .syntax("name")
        .doc(
            "Tests for `health_check match=name`, all of which an answer has to pass: `status 200`, \
             `status 200-399 404`, `status ! 500`; `header Name`, `header ! Name`, `header Name = \
             value`, `header Name != value`, `header Name ~ regex`, `header Name !~ regex`; `body ~ \
             regex`, `body !~ regex`. Of a body the first 256 KiB are looked at.",
        )
        .differs("`require` is not supported, because there is no request with variables.")
        .table(open_match, test, close_match),
];

/// `health_check [parameter ...];`
fn health_check(b: &mut Build, args: Args<'_>) -> Outcome {
    let mut asked = Asked {
        place: args.place().clone(),
        plan: Plan {
            interval: Duration::from_secs(5),
            jitter: Duration::ZERO,
            fails: 1,
            passes: 1,
            port: None,
            initial: Initial::Healthy,
        },
        uri: Uri::from_static("/"),
        tests: None,
    };
    for parameter in args.all() {
        asked.parameter(parameter)?;
    }
    let own = &mut b.level().health_check.asked;
    let mut all = own.get().cloned().unwrap_or_default();
    all.push(asked);
    own.set(all);
    Ok(())
}

impl Asked {
    fn parameter(&mut self, parameter: &str) -> Outcome {
        let invalid = || fault!("invalid parameter \"{parameter}\"");
        let plan = &mut self.plan;
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let count = || number(value).and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
        match (name, parameter.contains('=')) {
            ("interval", true) => match milliseconds(value).filter(|time| !time.is_zero()) {
                Some(time) => plan.interval = time,
                None => return invalid(),
            },
            ("jitter", true) => match milliseconds(value) {
                Some(time) => plan.jitter = time,
                None => return invalid(),
            },
            ("fails", true) => match count() {
                Some(count) => plan.fails = count,
                None => return invalid(),
            },
            ("passes", true) => match count() {
                Some(count) => plan.passes = count,
                None => return invalid(),
            },
            ("uri", true) => match Uri::try_from(value) {
                Ok(uri) if value.starts_with('/') => self.uri = uri,
                _ => return fault!("invalid uri in \"{parameter}\""),
            },
            ("port", true) => match count().and_then(|n| u16::try_from(n).ok()) {
                Some(port) => plan.port = Some(port),
                None => return fault!("invalid port in \"{parameter}\""),
            },
            ("mandatory", false) => plan.initial = Initial::Checking,
            ("persistent", false) if plan.initial != Initial::Healthy => {
                plan.initial = Initial::CheckingUnlessKnown;
            }
            ("persistent", false) => {
                return fault!("parameter \"persistent\" should be placed after \"mandatory\"");
            }
            ("match", true) if !value.is_empty() => self.tests = Some(value.into()),
            ("keepalive_time", true) if milliseconds(value).is_some() => {}
            ("type", true) => {
                return fault!("\"{parameter}\" is not supported: servers are asked by HTTP/1.1");
            }
            _ => return invalid(),
        }
        Ok(())
    }
}

// The tests of a `match` block.

fn open_match(b: &mut Build, args: Args<'_>) -> Outcome {
    let name = args.at(0);
    if b.http.matches.iter().any(|known| *known.name == *name) {
        return fault!("duplicate match \"{name}\"");
    }
    b.http.match_block = Some(Match::new(name));
    Ok(())
}

fn test(b: &mut Build, args: Args<'_>) -> Outcome {
    let Some(block) = &mut b.http.match_block else { return Ok(()) };
    block.add(args.name(), args.all())
}

#[allow(clippy::unnecessary_wraps)]
fn close_match(b: &mut Build, _: &Place) -> Outcome {
    let block = b.http.match_block.take();
    b.http.matches.extend(block.map(Arc::new));
    Ok(())
}

impl Match {
    fn new(name: &str) -> Self {
        Match { name: name.into(), status: Vec::new(), headers: Vec::new(), body: Vec::new() }
    }

    /// That of a `health_check` without `match`.
    fn usual() -> Self {
        let status = vec![StatusTest { codes: vec![200..=399], is_negated: false }];
        Match { status, ..Match::new("") }
    }

    /// One line of the block.
    fn add(&mut self, name: &str, words: &[String]) -> Outcome {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match name {
            "status" => self.status.push(status_test(&words)?),
            "header" => self.headers.push(header_test(&words)?),
            "body" => self.body.push(body_test(&words)?),
            "require" => return fault!("\"require\" is not supported: {NO_REQUEST}"),
            _ => return fault!("unknown directive \"{name}\""),
        }
        Ok(())
    }

    /// Whether status and headers are as they should be; tells the last stage, or the one that they
    /// did not pass.
    pub fn head_passes(&self, status: u16, headers: &HeaderMap) -> Result<Stage, Stage> {
        if !self.status.iter().all(|test| test.passes(status)) {
            return Err(Stage::CheckingStatus);
        }
        if !self.headers.iter().all(|test| test.passes(headers)) {
            return Err(Stage::CheckingHeader);
        }
        Ok(if self.headers.is_empty() { Stage::CheckingStatus } else { Stage::CheckingHeader })
    }

    pub fn looks_at_body(&self) -> bool {
        !self.body.is_empty()
    }

    /// The same for the first [`BODY_MAX`] bytes of the body.
    pub fn body_passes(&self, body: &[u8]) -> bool {
        self.body.iter().all(|test| {
            // A search that is given up for its cost passes no test.
            test.regex.compiled.is_match(body).is_ok_and(|found| found != test.is_negated)
        })
    }
}

impl StatusTest {
    fn passes(&self, status: u16) -> bool {
        self.codes.iter().any(|codes| codes.contains(&status)) != self.is_negated
    }
}

impl HeaderTest {
    /// A header that comes several times is what any of its lines is.
    fn passes(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(&self.name).iter().map(HeaderValue::as_bytes);
        let mut any = |is: &dyn Fn(&[u8]) -> bool| values.any(is);
        match &self.expected {
            Expected::Present => any(&|_| true),
            Expected::Absent => !any(&|_| true),
            Expected::Is(value) => any(&|found| *found == **value),
            Expected::IsNot(value) => !any(&|found| *found == **value),
            Expected::Matches(regex) => {
                any(&|found| regex.compiled.is_match(found).is_ok_and(|found| found))
            }
            Expected::MatchesNot(regex) => {
                values.all(|found| regex.compiled.is_match(found).is_ok_and(|found| !found))
            }
        }
    }
}

/// `[!] code|code-code ...`
fn status_test(words: &[&str]) -> Outcome<StatusTest> {
    let (is_negated, codes) = match words {
        ["!", codes @ ..] => (true, codes),
        codes => (false, codes),
    };
    if codes.is_empty() {
        return fault!("invalid number of arguments in \"status\"");
    }
    let codes = codes.iter().map(|text| status_codes(text));
    Ok(StatusTest { codes: codes.collect::<Outcome<_>>()?, is_negated })
}

fn status_codes(text: &str) -> Outcome<RangeInclusive<u16>> {
    let code = |text| number(text).and_then(|n| u16::try_from(n).ok());
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (code(first), code(last)) {
        (Some(first @ 100..=999), Some(last @ 100..=999)) if first <= last => Ok(first..=last),
        _ => fault!("invalid status \"{text}\""),
    }
}

/// `Name`, `! Name`, `Name = value`, `Name != value`, `Name ~ regex`, `Name !~ regex`
fn header_test(words: &[&str]) -> Outcome<HeaderTest> {
    let value = |text: &str| text.as_bytes().into();
    let (name, expected) = match words {
        ["!", name] => (name, Expected::Absent),
        [name] => (name, Expected::Present),
        [name, "=", text] => (name, Expected::Is(value(text))),
        [name, "!=", text] => (name, Expected::IsNot(value(text))),
        [name, "~", regex] => (name, Expected::Matches(Regex::compile(regex, false)?)),
        [name, "!~", regex] => (name, Expected::MatchesNot(Regex::compile(regex, false)?)),
        [_, operator, _] => return fault!("invalid operator \"{operator}\" in \"header\""),
        _ => return fault!("invalid number of arguments in \"header\""),
    };
    match HeaderName::try_from(*name) {
        Ok(name) => Ok(HeaderTest { name, expected }),
        Err(_) => fault!("invalid header name \"{name}\""),
    }
}

/// `~ regex`, `!~ regex`
fn body_test(words: &[&str]) -> Outcome<BodyTest> {
    match words {
        ["~", regex] => Ok(BodyTest { regex: Regex::compile(regex, false)?, is_negated: false }),
        ["!~", regex] => Ok(BodyTest { regex: Regex::compile(regex, false)?, is_negated: true }),
        [operator, _] => fault!("invalid operator \"{operator}\" in \"body\""),
        _ => fault!("invalid number of arguments in \"body\""),
    }
}

// Frozen.

/// The checks of all locations, once everything that they name is known. Groups with a mandatory one
/// begin without a healthy server.
pub fn freeze(
    locations: &[Location],
    upstreams: &[Upstream],
    matches: &[Arc<Match>],
) -> Outcome<Vec<Check>> {
    let usual = Arc::new(Match::usual());
    let mut checks = Vec::new();
    for (at, location) in locations.iter().enumerate() {
        for asked in location.settings.health_check.asked.get().into_iter().flatten() {
            let refused = |text: String| Fault::at(text, asked.place.clone());
            let (upstream, pass) =
                group(location, upstreams).map_err(|text| refused(text.into()))?;
            let tests = match &asked.tests {
                None => &usual,
                Some(name) => matches
                    .iter()
                    .find(|known| known.name == *name)
                    .ok_or_else(|| refused(format!("there is no \"match\" block \"{name}\"")))?,
            };
            if asked.plan.initial != Initial::Healthy
                && let Some(upstream) = upstreams.get(upstream.0 as usize)
            {
                upstream.zone.begin_unhealthy();
            }
            checks.push(Check {
                upstream,
                location: LocationId(at as u32),
                plan: asked.plan.clone(),
                request: request(&asked.uri, &location.settings.proxy.head, &pass.host),
                tests: Arc::clone(tests),
            });
        }
    }
    Ok(checks)
}

/// What a location's checks are about.
fn group<'a>(
    location: &'a Location,
    upstreams: &[Upstream],
) -> Result<(UpstreamId, &'a proxy::ProxyPass), &'static str> {
    let pass = match (location.handler, location.settings.proxy.pass.get()) {
        (Some(Handler::Proxy), Some(pass)) => pass,
        (Some(Handler::Uwsgi), _) => {
            return Err(
                "\"health_check\" is not supported with \"uwsgi_pass\": servers are asked \
                        by HTTP/1.1",
            );
        }
        _ => return Err("\"health_check\" needs a \"proxy_pass\" in the same location"),
    };
    match &pass.target {
        Pass::Template(_) => Err("\"health_check\" is not supported with variables in \
                                  \"proxy_pass\": it takes an \"upstream\" block"),
        Pass::Upstream(id) => match upstreams.get(id.0 as usize) {
            Some(upstream) if upstream.explicit => Ok((*id, pass)),
            _ => Err("\"health_check\" is not supported with an address in \"proxy_pass\": it \
                      takes an \"upstream\" block"),
        },
    }
}

/// What servers are asked: of the location's headers those that are the same for every request.
fn request(uri: &Uri, plan: &proxy::HeadPlan, proxy_host: &str) -> Request {
    /// About the connection or a body, which are the probe's own.
    const LEFT_OUT: [&str; 7] = [
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "te",
        "transfer-encoding",
        "upgrade",
    ];
    let mut request = Request::default();
    *request.uri_mut() = uri.clone();
    let headers = request.headers_mut();
    let host =
        plan.host.as_ref().and_then(|host| host.as_literal()).filter(|host| !host.is_empty());
    let host = HeaderValue::from_bytes(host.unwrap_or(proxy_host.as_bytes()));
    // One that cannot be sent is as good as none.
    headers.insert(HOST, host.unwrap_or(HeaderValue::from_static("")));
    for line in &plan.lines {
        let name = HeaderName::try_from(&*line.name);
        let value = line.value.as_literal().map(HeaderValue::from_bytes);
        if let (Ok(name), Some(Ok(value))) = (name, value)
            && !LEFT_OUT.contains(&name.as_str())
        {
            headers.append(name, value);
        }
    }
    let agent = HeaderValue::from_static("ringx health check");
    headers.entry(USER_AGENT).or_insert(agent);
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    request
}

/// Any lines of a `match` block: refused in words, or a test that has a result.
pub fn fuzz_match(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut block = Match::new("x");
    for line in text.split(';') {
        let mut words = line.split_whitespace().map(str::to_owned);
        let name = words.next().unwrap_or_default();
        if let Err(fault) = block.add(&name, &words.collect::<Vec<_>>()) {
            assert!(!fault.text.is_empty());
        }
    }
    let mut headers = HeaderMap::new();
    headers.insert(HOST, HeaderValue::from_static("a"));
    for status in [100, 200, 999] {
        let passes = block.head_passes(status, &headers);
        let by_hand = block.status.iter().all(|test| test.passes(status));
        assert_eq!(passes != Err(Stage::CheckingStatus), by_hand);
    }
    block.body_passes(data);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::variable::Template;

    fn tests(lines: &str) -> Match {
        let mut block = Match::new("x");
        for line in lines.split(';').filter(|line| !line.trim().is_empty()) {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            block.add(&words[0], &words[1..]).unwrap();
        }
        block
    }

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let lines = lines.iter().map(|(name, value)| {
            (HeaderName::try_from(*name).unwrap(), HeaderValue::from_static(value))
        });
        lines.collect()
    }

    #[test]
    fn statuses() {
        for (lines, passed, failed) in [
            ("status 200", vec![200], vec![199, 201, 500]),
            ("status ! 500", vec![200, 501], vec![500]),
            ("status 200-399", vec![200, 399], vec![199, 400]),
            ("status ! 301-303 307", vec![300, 304, 308], vec![301, 302, 303, 307]),
            ("status 200 404", vec![200, 404], vec![201]),
            ("status 200-299; status ! 204", vec![200, 299], vec![204, 300]),
            ("", vec![100, 500, 999], vec![]),
        ] {
            let block = tests(lines);
            let passes = |status| block.head_passes(status, &HeaderMap::new());
            for status in passed {
                assert_eq!(passes(status), Ok(Stage::CheckingStatus), "{lines}: {status}");
            }
            for status in failed {
                assert_eq!(passes(status), Err(Stage::CheckingStatus), "{lines}: {status}");
            }
        }
        let usual = Match::usual();
        assert!(usual.head_passes(399, &HeaderMap::new()).is_ok() && !usual.looks_at_body());
        assert!(usual.head_passes(101, &HeaderMap::new()).is_err());
    }

    #[test]
    fn header_lines() {
        let found = headers(&[("Content-Type", "text/html"), ("X-A", "one"), ("X-A", "two")]);
        for (line, passes) in [
            ("header content-type", true),
            ("header X-B", false),
            ("header ! X-B", true),
            ("header ! X-A", false),
            ("header Content-Type = text/html", true),
            ("header Content-Type = text/plain", false),
            ("header Content-Type != text/plain", true),
            ("header Content-Type != text/html", false),
            ("header X-A = two", true),
            ("header X-A != two", false),
            ("header X-A ~ ^tw", true),
            ("header X-A ~ w$", false),
            ("header X-A !~ w$", true),
            ("header X-A !~ ^one$", false),
            // One that is not there is nothing, and so not something.
            ("header X-B = x", false),
            ("header X-B != x", true),
            ("header X-B ~ x", false),
            ("header X-B !~ x", true),
        ] {
            let result = tests(line).head_passes(200, &found);
            let stage = Stage::CheckingHeader;
            assert_eq!(result, if passes { Ok(stage) } else { Err(stage) }, "{line}");
        }
    }

    #[test]
    fn bodies() {
        for (lines, body, passes) in [
            ("body ~ Welcome", "<p>Welcome to it", true),
            ("body ~ Welcome", "welcome", false),
            ("body ~ (?i)Welcome", "welcome", true),
            ("body !~ Error", "all is well", true),
            ("body !~ Error", "an Error", false),
            ("body ~ ^a; body ~ b$", "ab", true),
            ("body ~ ^a; body ~ b$", "a", false),
            ("status 200", "", true),
        ] {
            let block = tests(lines);
            assert_eq!(block.looks_at_body(), lines.contains("body"));
            assert_eq!(block.body_passes(body.as_bytes()), passes, "{lines}: {body}");
        }
    }

    #[test]
    fn a_search_that_is_given_up_passes_nothing() {
        let costly = "a".repeat(60) + "b";
        for line in ["body ~ ^(a|aa)+(?=c)$", "body !~ ^(a|aa)+(?=c)$"] {
            assert!(!tests(line).body_passes(costly.as_bytes()), "{line}");
        }
    }

    #[test]
    fn words_that_are_no_tests() {
        for (line, text) in [
            ("status", "invalid number of arguments in \"status\""),
            ("status !", "invalid number of arguments in \"status\""),
            ("status x", "invalid status \"x\""),
            ("status 99", "invalid status \"99\""),
            ("status 300-200", "invalid status \"300-200\""),
            ("status 200-", "invalid status \"200-\""),
            ("status !500", "invalid status \"!500\""),
            ("header", "invalid number of arguments in \"header\""),
            ("header a b", "invalid number of arguments in \"header\""),
            ("header a: = b", "invalid header name \"a:\""),
            ("header a < b", "invalid operator \"<\" in \"header\""),
            ("body x", "invalid number of arguments in \"body\""),
            ("body = x", "invalid operator \"=\" in \"body\""),
            ("foo x", "unknown directive \"foo\""),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let fault = Match::new("x").add(&words[0], &words[1..]).unwrap_err();
            assert_eq!(fault.text, text);
        }
    }

    #[test]
    fn a_request_has_the_headers_that_never_change() {
        let line = |name: &str, value: &[u8]| proxy::SetHeader {
            name: name.into(),
            value: Template::literal(value),
        };
        let plan = proxy::HeadPlan {
            host: Some(Template::literal(b"example.org")),
            lines: vec![line("X-A", b"1"), line("Connection", b"upgrade"), line("X-B", b"\n")],
            ..proxy::HeadPlan::default()
        };
        let asked = request(&Uri::from_static("/x?y"), &plan, "u");
        let shown: Vec<_> = asked.headers().iter().collect();
        let shown: Vec<_> = shown.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        assert_eq!(
            shown,
            [
                ("host", "example.org"),
                ("x-a", "1"),
                ("user-agent", "ringx health check"),
                ("connection", "close")
            ]
        );
        assert_eq!(asked.uri(), "/x?y");
        let plain = request(&Uri::from_static("/"), &proxy::HeadPlan::default(), "u");
        assert_eq!(plain.headers()[HOST], "u");
    }

    proptest! {
        #[test]
        fn any_lines(text in "((status|header|body) [!~= 0-9a-c-]{0,12};){0,4}") {
            fuzz_match(text.as_bytes());
        }
    }
}
