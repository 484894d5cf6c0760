//! The proxy module: HTTP to an HTTP server, and the road of a WebSocket handshake.

pub mod cookie;
pub mod rewrite;

use std::sync::Arc;

use self::cookie::FlagsRule;
use self::rewrite::{Pattern, Rule, Rules};
use super::core;
use super::exchange::{self, Pass, Protocol};
use crate::config::address::{Address, Form, Host, strip_scheme};
use crate::config::diagnostic::{Fault, Outcome, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::setting::{List, Own, Setting, inherit};
use crate::config::value::Args;
use crate::http::draft::Kind;
use crate::http::location::Handler;
use crate::http::variable::Template;
use crate::modules::Build;

#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub exchange: exchange::Settings,
    pub pass: Own<ProxyPass>,
    pub http_version: Setting<HttpVersion>,
    pub method: Setting<Option<Template>>,
    /// Name as written, value. Replaced whole by an inner level.
    pub set_header: List<SetHeader>,
    pub set_body: Setting<Option<Template>>,
    pub redirect: Setting<Redirect>,
    pub cookie_domain: Setting<Rules>,
    pub cookie_path: Setting<Rules>,
    /// Empty: `off`.
    pub cookie_flags: Setting<Vec<FlagsRule>>,
    pub pass_trailers: Setting<bool>,

    /// Whether cookies are looked at.
    pub rewrites_cookies: bool,
    /// Read for its check; there is nothing like it on Linux.
    pub send_lowat: Setting<usize>,

    /// The request lines that this level sends, made once from `set_header` and the defaults.
    pub head: Arc<HeadPlan>,
}

/// `proxy_pass URL;`
#[derive(Debug, Clone)]
pub struct ProxyPass {
    pub target: Pass,
    /// `$proxy_host`: host part, with the port when it is not the default one; the upstream's name
    /// for groups; `localhost` for unix sockets.
    pub host: Arc<str>,
    /// `$proxy_port`.
    pub port: Arc<str>,
    /// The URI part after host and port, when there is one: replaces the matched location prefix.
    pub uri: Option<Arc<str>>,
    /// The URL as the log shows it, without the URI: `http://127.0.0.1:8800` or `http://unix:/p:`.
    pub url: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpVersion {
    Http10,
    Http11,
}

#[derive(Debug, Clone)]
pub struct SetHeader {
    pub name: Box<str>,
    pub value: Template,
}

#[derive(Debug, Clone)]
pub enum Redirect {
    /// `from` is the `proxy_pass` URL, `to` the location's name.
    Default,
    Rules(Rules),
}

/// What is sent after the request line, worked out at load (proxy.md, section 2).
#[derive(Debug, Clone, Default)]
pub struct HeadPlan {
    /// The value of Host: always the first line. `None`: `$proxy_host`.
    pub host: Option<Template>,
    /// The other `proxy_set_header` lines in order; an empty value sends nothing.
    pub lines: Vec<SetHeader>,
    /// Client headers that are not passed on: the hop-by-hop ones and every name that `set_header`
    /// mentions. Lower case and sorted.
    pub suppressed: Vec<Box<[u8]>>,
    /// `set_header` names Content-Length: the default line is not sent.
    pub overrides_length: bool,
    /// The same for Transfer-Encoding.
    pub overrides_encoding: bool,
}

impl Settings {
    pub fn inherit(&mut self, outer: &Self) {
        self.exchange.inherit(&outer.exchange);
        inherit!(self, outer: http_version, method, set_header, set_body, redirect, cookie_domain,
            cookie_path, cookie_flags, pass_trailers, send_lowat);
        self.rewrites_cookies = !(self.cookie_domain.0.is_empty()
            && self.cookie_path.0.is_empty()
            && self.cookie_flags.is_empty());
    }
}

const LEVELS: Contexts = Contexts::HTTP_SERVER_LOCATION;
const ONE: Count = Count::Exactly(1);
const PASS: Contexts = Contexts::LOCATION.or(Contexts::IF_IN_LOCATION).or(Contexts::LIMIT_EXCEPT);

pub const EXCHANGE: &[Directive<Build>] = exchange::rows!(proxy, "proxy_", "proxy_temp 1 2");

pub const DIRECTIVES: &[Directive<Build>] = &[
    Directive::new("proxy_cookie_domain", LEVELS, Count::Between(1, 2))
        .syntax("off | domain replacement")
        .default("off")
        .doc("How the `domain` of cookies is rewritten: by the first domain, or `~regex`, that fits.")
        .set(|b, args| {
            let mut rules = rewrite::collect(&b.level().proxy.cookie_domain, args)?;
            if let [domain, to] = args.all() {
                // A dot in front is neither here nor there: a cookie keeps its own.
                let (from, to) = if let Some(regex) = domain.strip_prefix('~') {
                    (Pattern::Regex(Arc::new(b.http.names.regex(regex, true)?)), to.as_str())
                } else {
                    let domain = domain.strip_prefix('.').unwrap_or(domain);
                    let from = Pattern::Domain(b.http.names.template(domain)?);
                    (from, to.strip_prefix('.').unwrap_or(to))
                };
                rules.push(Rule { from, to: b.http.names.template(to)? });
            }
            b.level().proxy.cookie_domain.set(Rules(rules));
            Ok(())
        }),
    Directive::new("proxy_cookie_flags", LEVELS, Count::AtLeast(1))
        .syntax("off | cookie [flag ...]")
        .default("off")
        .doc(
            "Flags that are set on the cookies of a name, or `~regex`: `secure`, `httponly`, \
             `samesite=strict|lax|none`; or removed: `nosecure`, `nohttponly`, `nosamesite`.",
        )
        .set(proxy_cookie_flags),
    Directive::new("proxy_cookie_path", LEVELS, Count::Between(1, 2))
        .syntax("off | path replacement")
        .default("off")
        .doc("How the `path` of cookies is rewritten: by the first prefix, or `~regex`, that fits.")
        .set(|b, args| {
            let mut rules = rewrite::collect(&b.level().proxy.cookie_path, args)?;
            if let [path, to] = args.all() {
                let from = match path.strip_prefix('~') {
                    // With and without `*` the case does not count.
                    Some(regex) => {
                        let regex = regex.strip_prefix('*').unwrap_or(regex);
                        Pattern::Regex(Arc::new(b.http.names.regex(regex, true)?))
                    }
                    None => Pattern::Prefix(b.http.names.template(path)?),
                };
                rules.push(Rule { from, to: b.http.names.template(to)? });
            }
            b.level().proxy.cookie_path.set(Rules(rules));
            Ok(())
        }),
    Directive::new("proxy_http_version", LEVELS, ONE)
        .syntax("1.0 | 1.1")
        .default("1.1")
        .doc("The version spoken to servers.")
        .differs("`2` is not supported.")
        .set(|b, args| {
            args.fill(&mut b.level().proxy.http_version, |args| {
                args.choice(&[("1.0", HttpVersion::Http10), ("1.1", HttpVersion::Http11)])
            })
        }),
    Directive::new("proxy_method", LEVELS, ONE)
        .syntax("method")
        .doc("The method sent in place of the client's.")
        .set(|b, args| {
            let method = b.http.names.template(args.at(0))?;
            args.fill(&mut b.level().proxy.method, |_| Ok(Some(method)))
        }),
    Directive::new("proxy_pass", PASS, ONE)
        .syntax("URL")
        .doc(
            "The server or group that answers. A URI in it replaces the location's part of the \
              request's.",
        )
        .differs("`https` is not supported; a name is resolved when the configuration is loaded.")
        .set(proxy_pass),
    Directive::new("proxy_pass_trailers", LEVELS, ONE)
        .syntax("on | off")
        .default("off")
        .doc("Whether what a server sends behind a chunked body is passed on.")
        .differs(
            "Fields about framing, routing, authentication or the format of the content are left \
             out (RFC 9110 section 6.5.1).",
        )
        .set(|b, args| args.fill(&mut b.level().proxy.pass_trailers, Args::flag)),
    Directive::new("proxy_redirect", LEVELS, Count::Between(1, 2))
        .syntax("default | off | from to")
        .default("default")
        .doc(
            "How `Location` and `Refresh` of a response are rewritten: by the first prefix, or \
              `~regex`, that matches.",
        )
        .set(proxy_redirect),
    Directive::new("proxy_set_body", LEVELS, ONE)
        .syntax("value")
        .doc("The body sent in place of the client's.")
        .set(|b, args| {
            let body = b.http.names.template(args.at(0))?;
            args.fill(&mut b.level().proxy.set_body, |_| Ok(Some(body)))
        }),
    Directive::new("proxy_set_header", LEVELS, Count::Exactly(2))
        .syntax("field value")
        .doc(
            "A header line to send in place of the client's; nothing is sent when the value is \
              empty.",
        )
        .set(|b, args| {
            let value = b.http.names.template(args.at(1))?;
            b.level().proxy.set_header.add(SetHeader { name: args.at(0).into(), value })
        }),
    Directive::new("proxy_send_lowat", LEVELS, ONE)
        .syntax("size")
        .default("0")
        .doc("How little a send buffer may have to take, on systems other than Linux.")
        .differs("it is taken with a warning, as by nginx on Linux.")
        .set(|b, args| {
            args.fill(&mut b.level().proxy.send_lowat, Args::size)?;
            if *b.level().proxy.send_lowat > 0 {
                let text = "\"proxy_send_lowat\" is not supported, ignored";
                b.warn(Some(args.place()), text.to_owned());
            }
            Ok(())
        }),
    Directive::no_effect("proxy_headers_hash_bucket_size", LEVELS, ONE, "tables size themselves")
        .set(core::table_size),
    Directive::no_effect("proxy_headers_hash_max_size", LEVELS, ONE, "tables size themselves")
        .set(core::table_size),
];

/// Response headers not passed on unless `proxy_pass_header` says so.
pub const HIDDEN: &[&str] = &[
    "date",
    "server",
    "x-accel-buffering",
    "x-accel-charset",
    "x-accel-expires",
    "x-accel-limit-rate",
    "x-accel-redirect",
    "x-pad",
];

/// Client headers that are never passed on.
const SUPPRESSED: &[&str] = &[
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// `proxy_pass URL;`
fn proxy_pass(b: &mut Build, args: Args<'_>) -> Outcome {
    b.level().proxy.pass.expect_unset(args)?;
    let text = args.at(0);
    let template = b.http.names.template(text)?;
    let pass = if template.has_variables() {
        let none: Arc<str> = "".into();
        ProxyPass {
            target: Pass::Template(template),
            host: none.clone(),
            port: none.clone(),
            uri: None,
            url: none,
        }
    } else {
        fixed_pass(b, args)?
    };
    b.level().proxy.pass.set(pass);
    b.http.set_handler(Handler::Proxy);
    Ok(())
}

fn fixed_pass(b: &mut Build, args: Args<'_>) -> Outcome<ProxyPass> {
    let text = args.at(0);
    if strip_scheme(text, "https://").is_some() {
        return fault!("\"https\" in \"proxy_pass\" is not supported");
    }
    let Some(rest) = strip_scheme(text, "http://") else {
        return fault!("invalid URL prefix");
    };
    let address = Address::parse(rest, Form::Url)
        .map_err(|error| Fault::new(format!("{error} in upstream \"{rest}\"")))?;
    let target = Pass::Upstream(b.http.upstream(
        &address,
        Protocol::Http.default_port(),
        false,
        args.place(),
    )?);
    let takes_uri = matches!(
        b.http.current().map(|level| &level.kind),
        Some(Kind::Prefix { .. } | Kind::Exact)
    );
    if !address.uri.is_empty() && !takes_uri {
        return fault!(
            "\"proxy_pass\" cannot have URI part in location given by regular expression, or inside \
             named location, or inside \"if\" statement, or inside \"limit_except\" block"
        );
    }
    let is_unix = matches!(address.host, Host::Unix(_));
    let host_text = &address.host_text;
    let port = address.port().filter(|_| !is_unix);
    let host: Arc<str> = match port {
        _ if is_unix => "localhost".into(),
        Some(port) if port != 80 => format!("{host_text}:{port}").into(),
        _ => host_text.as_str().into(),
    };
    let url = match port {
        _ if is_unix => format!("http://{host_text}:"),
        Some(port) => format!("http://{host_text}:{port}"),
        None => format!("http://{host_text}"),
    };
    Ok(ProxyPass {
        target,
        host,
        port: if is_unix { "".into() } else { port.unwrap_or(80).to_string().into() },
        uri: Some(address.uri).filter(|uri| !uri.is_empty()).map(Into::into),
        url: url.into(),
    })
}

/// `proxy_redirect default | off | from to;`
fn proxy_redirect(b: &mut Build, args: Args<'_>) -> Outcome {
    let is_off = args.len() == 1 && args.at(0) == "off";
    let mut rules = match b.level().proxy.redirect.get() {
        Some(Redirect::Rules(rules)) if !rules.0.is_empty() && !is_off => rules.0.clone(),
        Some(_) => return Err(args.duplicate()),
        None => Vec::new(),
    };
    match args.all() {
        [off] if off == "off" => {}
        [word] if word == "default" && b.reads_defaults() => {
            b.level().proxy.redirect.set(Redirect::Default);
            return Ok(());
        }
        [word] if word == "default" => {
            let (from, to) = default_redirect(b)?;
            rules.push(Rule { from: Pattern::Prefix(from), to });
        }
        [from, to] => {
            let from = match from.strip_prefix('~') {
                Some(pattern) => {
                    let is_caseless = pattern.starts_with('*');
                    let pattern = pattern.strip_prefix('*').unwrap_or(pattern);
                    Pattern::Regex(Arc::new(b.http.names.regex(pattern, is_caseless)?))
                }
                None => Pattern::Prefix(b.http.names.template(from)?),
            };
            rules.push(Rule { from, to: b.http.names.template(to)? });
        }
        _ => return fault!("invalid parameter \"{}\"", args.at(0)),
    }
    b.level().proxy.redirect.set(Redirect::Rules(Rules(rules)));
    Ok(())
}

/// `proxy_cookie_flags off | cookie [flag …];`
fn proxy_cookie_flags(b: &mut Build, args: Args<'_>) -> Outcome {
    let is_off = args.len() == 1 && args.at(0) == "off";
    let mut rules = match b.level().proxy.cookie_flags.get() {
        Some(rules) if rules.is_empty() || is_off => return Err(args.duplicate()),
        Some(rules) => rules.clone(),
        None => Vec::new(),
    };
    if !is_off {
        let name = args.at(0);
        if args.len() == 1 {
            return fault!("invalid parameter \"{name}\"");
        }
        let name = match name.strip_prefix('~') {
            Some(regex) => cookie::Name::Regex(Arc::new(b.http.names.regex(regex, true)?)),
            None => cookie::Name::Is(b.http.names.template(name)?),
        };
        let flags = args.from(1).iter().map(|flag| b.http.names.template(flag));
        rules.push(FlagsRule { name, flags: flags.collect::<Outcome<_>>()? });
    }
    b.level().proxy.cookie_flags.set(rules);
    Ok(())
}

/// `default` written out: the URL of `proxy_pass` becomes the location's name.
fn default_redirect(b: &mut Build) -> Outcome<(Template, Template)> {
    let name = b.http.current().map(|level| level.name.clone()).unwrap_or_default();
    let Some(pass) = b.level().proxy.pass.get() else {
        return fault!(
            "\"proxy_redirect default\" should be placed after the \"proxy_pass\" directive"
        );
    };
    if matches!(pass.target, Pass::Template(_)) {
        return fault!(
            "\"proxy_redirect default\" cannot be used with \"proxy_pass\" directive with variables"
        );
    }
    let (from, to) = match &pass.uri {
        Some(uri) => (format!("{}{uri}", pass.url), &*name),
        None => (format!("{}/", pass.url), "/"),
    };
    Ok((Template::literal(from.as_bytes()), Template::literal(to.as_bytes())))
}

impl Settings {
    pub fn fill_absent(&mut self) {
        self.exchange.fill_absent();
        self.method = Setting::of(None);
        self.set_body = Setting::of(None);
    }

    /// What a request of this level sends after its first line (proxy, section 2).
    pub fn head_plan(&self) -> HeadPlan {
        let suppressed = SUPPRESSED.iter().map(|name| name.as_bytes().into()).collect();
        let mut plan = HeadPlan { suppressed, ..HeadPlan::default() };
        for header in self.set_header.iter() {
            let name = header.name.to_ascii_lowercase();
            plan.overrides_length |= name == "content-length";
            plan.overrides_encoding |= name == "transfer-encoding";
            // The last Host is the one that is sent, first of all lines.
            if name == "host" {
                plan.host = Some(header.value.clone());
            } else if header.value.as_literal() != Some(b"") {
                plan.lines.push(header.clone());
            }
            plan.suppressed.push(name.into_bytes().into());
        }
        plan.suppressed.sort();
        plan.suppressed.dedup();
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_of_a_websocket_location() {
        let mut settings = Settings::default();
        for (name, value) in
            [("Connection", "upgrade"), ("Host", "a"), ("X-Gone", ""), ("HOST", "b")]
        {
            let value = Template::literal(value.as_bytes());
            settings.set_header.push(SetHeader { name: name.into(), value });
        }
        let plan = settings.head_plan();
        assert_eq!(plan.host, Some(Template::literal(b"b")));
        let lines: Vec<_> = plan.lines.iter().map(|line| &*line.name).collect();
        assert_eq!(lines, ["Connection"]);
        assert!(!plan.overrides_length);
        assert!(plan.suppressed.is_sorted());
        let has = |name: &str| plan.suppressed.iter().any(|known| **known == *name.as_bytes());
        assert!(has("x-gone") && has("upgrade") && has("host") && !has("cookie"));
    }
}
