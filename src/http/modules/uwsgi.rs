//! The uwsgi module: HTTP to an application server that speaks the uwsgi protocol.

use std::sync::Arc;

use super::exchange::{self, Pass, Protocol};
use crate::config::address::{Address, Form, Host, strip_scheme};
use crate::config::diagnostic::{Fault, Outcome, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::setting::{List, Own, Setting, inherit};
use crate::config::value::{self, Args};
use crate::http::location::Handler;
use crate::http::tunnel::handshake::HTTP2_SETTINGS;
use crate::http::variable::{Part, Template, Variable};
use crate::modules::Build;
use crate::uwsgi::{NameSet, same_variable};

#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub exchange: exchange::Settings,
    pub pass: Own<UwsgiPass>,
    pub param: List<Param>,
    pub modifier1: Setting<u8>,
    pub modifier2: Setting<u8>,
    pub string: Setting<Arc<str>>,
    pub decode_chunked: Setting<bool>,
    pub chunked_body: Setting<ChunkedBody>,
    pub keepalive: Setting<UwsgiKeepalive>,
    /// `None`: `off`.
    pub vars_limit: Setting<Option<VarsLimit>>,

    /// The variables block of this level, worked out once from `param`.
    pub plan: Arc<BlockPlan>,
}

/// `uwsgi_pass address;`
#[derive(Debug, Clone)]
pub struct UwsgiPass {
    pub target: Pass,
    /// As the log shows it: `uwsgi://127.0.0.1:3031` or `uwsgi://unix:/path:`.
    pub url: Arc<str>,
}

/// `uwsgi_param KEY value [if_not_empty];`
#[derive(Debug, Clone)]
pub struct Param {
    pub key: Box<str>,
    pub value: Template,
    pub if_not_empty: bool,
}

/// `uwsgi_chunked_body buffered | raw;`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkedBody {
    /// Read whole, decoded and sent with its length.
    Buffered,
    /// Sent in chunks as it comes, where requests are not buffered.
    Raw,
}

/// `uwsgi_keepalive off | on | assume;`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UwsgiKeepalive {
    Off,
    /// After a response that says `Connection: keep-alive`.
    On,
    /// After one that does not say `close`.
    Assume,
}

/// `uwsgi_vars_limit size [count];`: what a block may have. 0: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VarsLimit {
    /// Bytes.
    pub size: usize,
    /// Variables.
    pub count: usize,
}

/// The block in pieces: constant runs are encoded at load, only the rest is made for each request.
#[derive(Debug, Clone, Default)]
pub struct BlockPlan {
    pub pieces: Vec<Piece>,
    /// The most variables that there can be, but for those out of the client's headers.
    pub variables_max: usize,
    /// Client headers that are not sent because a `HTTP_*` key stands for them.
    pub suppressed: NameSet,
    /// Whether the default `HTTP_HOST` is sent (no param names it).
    pub default_host: bool,
    /// What the server is told of the body's length.
    pub length: LengthTold,
    /// The value of the `HTTP_UPGRADE` that stands for the client's.
    pub upgrade: Option<Template>,
}

/// `uwsgi_param CONTENT_LENGTH`: a server that is not told the truth takes what there is of a body for
/// the next packet, or the next packet for a body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LengthTold {
    #[default]
    Nothing,
    /// `$content_length`
    Truly,
    Otherwise,
}

#[derive(Debug, Clone)]
pub enum Piece {
    /// Encoded pairs, ready to send.
    Constant(Box<[u8]>),
    Dynamic {
        /// Two bytes of length, then the key.
        encoded_key: Box<[u8]>,
        value: Template,
        if_not_empty: bool,
        about: About,
    },
}

/// What a variable that passes something on is about, where that may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    Anything,
    /// `CONTENT_LENGTH`
    Length,
    /// `HTTP_UPGRADE`, `HTTP_HTTP2_SETTINGS`: the client's wish, that may be kept back.
    Upgrade,
}

impl About {
    fn of(key: &str) -> Self {
        let is_header =
            |name| key.strip_prefix("HTTP_").is_some_and(|key| same_variable(key.as_bytes(), name));
        if key == "CONTENT_LENGTH" {
            About::Length
        } else if is_header(b"Upgrade") || is_header(HTTP2_SETTINGS) {
            About::Upgrade
        } else {
            About::Anything
        }
    }
}

impl Settings {
    pub fn inherit(&mut self, outer: &Self) {
        self.exchange.inherit(&outer.exchange);
        inherit!(self, outer: param, modifier1, modifier2, string, decode_chunked, chunked_body,
            keepalive, vars_limit);
    }
}

const LEVELS: Contexts = Contexts::HTTP_SERVER_LOCATION;
const ONE: Count = Count::Exactly(1);

pub const EXCHANGE: &[Directive<Build>] = exchange::rows!(uwsgi, "uwsgi_", "uwsgi_temp 1 2");

pub const DIRECTIVES: &[Directive<Build>] = &[
    Directive::new("uwsgi_chunked_body", LEVELS, ONE)
        .syntax("buffered | raw")
        .default("buffered")
        .doc(
            "How a request's chunked body is sent. `buffered`: whole, with `CONTENT_LENGTH` and without \
             `HTTP_TRANSFER_ENCODING`. `raw`, with `uwsgi_request_buffering off`: in chunks as it comes, with \
             `HTTP_TRANSFER_ENCODING` and without `CONTENT_LENGTH`, for applications that use uWSGI's \
             `chunked_read`; no other server is tried then.",
        )
        .differs("Not in nginx, which sends both variables, and the body decoded.")
        .set(|b, args| {
            args.fill(&mut b.level().uwsgi.chunked_body, |args| {
                args.choice(&[("buffered", ChunkedBody::Buffered), ("raw", ChunkedBody::Raw)])
            })
        }),
    Directive::new("uwsgi_decode_chunked", LEVELS, ONE)
        .syntax("on | off")
        .default("on")
        .doc(
            "Whether a response with `Transfer-Encoding: chunked` is decoded and framed anew. `off`: the \
             chunks are passed on as they are, within the framing of the client's response.",
        )
        .differs("Not in nginx, which does as with `off`.")
        .set(|b, args| args.fill(&mut b.level().uwsgi.decode_chunked, Args::flag)),
    Directive::new("uwsgi_keepalive", LEVELS, ONE)
        .syntax("off | on | assume")
        .default("off")
        .doc(
            "Whether a connection is used again, of those that `keepalive` lets the group keep: when a response \
             whose end was certain says `Connection: keep-alive`, or with `assume` does not say `close`. gunicorn \
             keeps connections, uWSGI never does. One is idle for at most 1 s, unless there is a \
             `keepalive_timeout`. A request with a body needs `uwsgi_param CONTENT_LENGTH $content_length`. The \
             client's `Connection` and `Keep-Alive` are not sent then, unless it asks for an upgrade.",
        )
        .differs("Not in nginx.")
        .set(|b, args| {
            args.fill(&mut b.level().uwsgi.keepalive, |args| {
                args.choice(&[
                    ("off", UwsgiKeepalive::Off),
                    ("on", UwsgiKeepalive::On),
                    ("assume", UwsgiKeepalive::Assume),
                ])
            })
        }),
    Directive::new("uwsgi_modifier1", LEVELS, ONE)
        .syntax("number")
        .default("0")
        .doc("The first modifier of the packet: 0 is WSGI.")
        .set(|b, args| args.fill(&mut b.level().uwsgi.modifier1, modifier)),
    Directive::new("uwsgi_modifier2", LEVELS, ONE)
        .syntax("number")
        .default("0")
        .doc("The second modifier of the packet.")
        .set(|b, args| args.fill(&mut b.level().uwsgi.modifier2, modifier)),
    Directive::new("uwsgi_param", LEVELS, Count::Between(2, 3))
        .syntax("key value [if_not_empty]")
        .doc(
            "A variable of the packet; `HTTP_X` stands for the client's header X. A client can set no other \
             variable than `HTTP_X`; headers of one variable (`X-A` and, where `underscores_in_headers` lets \
             it pass, `X_A`) are joined.",
        )
        .differs(
            "The value of a key `UWSGI_...` must be constant, or nothing that a client has a say in (`$scheme`): \
             uWSGI takes it for code to load, or for a setting of the application. nginx does not join `X-A` and `X_A`.",
        )
        .set(uwsgi_param),
    Directive::new("uwsgi_pass", Contexts::LOCATION.or(Contexts::IF_IN_LOCATION), ONE)
        .syntax("address")
        .doc("The uwsgi server or group that answers: `host:port`, `unix:path`, a group's name.")
        .differs("`suwsgi` is not supported; a name is resolved when the configuration is loaded.")
        .set(uwsgi_pass),
    Directive::new("uwsgi_string", LEVELS, ONE)
        .syntax("string")
        .default("\"\"")
        .doc("Bytes appended to the variables of the packet.")
        .set(|b, args| args.fill(&mut b.level().uwsgi.string, |args| Ok(args.at(0).into()))),
    Directive::new("uwsgi_vars_limit", LEVELS, Count::Between(1, 2))
        .syntax("size [count] | off")
        .default("off")
        .doc(
            "What the server takes: the bytes of all variables (uWSGI's `buffer-size`, 4096 as it comes), and \
             how many there may be (`max-vars`, 128). A request with more is answered with 431 and not sent. \
             0: no limit.",
        )
        .differs("Not in nginx.")
        .set(|b, args| args.fill(&mut b.level().uwsgi.vars_limit, vars_limit)),
];

/// Response headers not passed on unless `uwsgi_pass_header` says so.
pub const HIDDEN: &[&str] = &[
    "x-accel-buffering",
    "x-accel-charset",
    "x-accel-expires",
    "x-accel-limit-rate",
    "x-accel-redirect",
];

fn modifier(args: Args<'_>) -> Outcome<u8> {
    args.number_between(0, 255).map(|number| number as u8)
}

fn vars_limit(args: Args<'_>) -> Outcome<Option<VarsLimit>> {
    if args.at(0) == "off" && args.len() == 1 {
        return Ok(None);
    }
    let count = match args.all().get(1) {
        Some(text) => value::number(text).ok_or_else(|| args.invalid_number())?,
        None => 0,
    };
    Ok(Some(VarsLimit { size: args.size_at(0)?, count }))
}

fn uwsgi_param(b: &mut Build, args: Args<'_>) -> Outcome {
    let if_not_empty = match args.all().get(2).map(String::as_str) {
        None => false,
        Some("if_not_empty") => true,
        Some(other) => return fault!("invalid parameter \"{other}\""),
    };
    let key = args.at(0);
    let value = b.http.names.template(args.at(1))?;
    if key.starts_with("UWSGI_") && !value.variables().all(is_the_servers_own) {
        // Whoever could bring something into it would run code in the application.
        return fault!(
            "the value of \"uwsgi_param {key}\" must be constant: uWSGI loads code or changes settings by it, \
             and variables may hold what a client has sent"
        );
    }
    b.level().uwsgi.param.add(Param { key: key.into(), value, if_not_empty })
}

/// Whether no client has a say in a variable: `uwsgi_param UWSGI_SCHEME $scheme` is a common line.
fn is_the_servers_own(variable: &Variable) -> bool {
    use Variable::{Hostname, Https, NginxVersion, Pid, Scheme, ServerAddr, ServerPort};
    matches!(variable, Hostname | Https | NginxVersion | Pid | Scheme | ServerAddr | ServerPort)
}

fn uwsgi_pass(b: &mut Build, args: Args<'_>) -> Outcome {
    b.level().uwsgi.pass.expect_unset(args)?;
    let text = args.at(0);
    let template = b.http.names.template(text)?;
    let pass = if template.has_variables() {
        UwsgiPass { target: Pass::Template(template), url: "".into() }
    } else {
        if strip_scheme(text, "suwsgi://").is_some() {
            return fault!("\"suwsgi\" in \"uwsgi_pass\" is not supported");
        }
        let rest = strip_scheme(text, "uwsgi://").unwrap_or(text);
        let address = Address::parse(rest, Form::Peer)
            .map_err(|error| Fault::new(format!("{error} in upstream \"{rest}\"")))?;
        let default_port = Protocol::Uwsgi.default_port();
        let target =
            Pass::Upstream(b.http.upstream(&address, default_port, false, args.place())?);
        let url = match (&address.host, address.port()) {
            (Host::Unix(_), _) => format!("uwsgi://{}:", address.host_text),
            (_, Some(port)) => format!("uwsgi://{}:{port}", address.host_text),
            (_, None) => format!("uwsgi://{}", address.host_text),
        };
        UwsgiPass { target, url: url.into() }
    };
    b.level().uwsgi.pass.set(pass);
    b.http.set_handler(Handler::Uwsgi);
    Ok(())
}

impl Settings {
    pub fn fill_absent(&mut self) {
        self.exchange.fill_absent();
    }

    /// The variables of this level with all that is constant encoded (uwsgi, sections 1 and 3).
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "counts words of the configuration, in memory"
    )]
    pub fn block_plan(&self) -> BlockPlan {
        let mut plan = BlockPlan { default_host: true, ..BlockPlan::default() };
        // What is appended may be pairs: one is 4 bytes at least, and may be any.
        plan.variables_max = self.param.len() + 1 + self.string.get().map_or(0, |s| s.len() / 4);
        let mut constant: Vec<u8> = Vec::new();
        for Param { key, value, if_not_empty } in self.param.iter() {
            let literal = value.as_literal();
            if &**key == "CONTENT_LENGTH" {
                // Of several the last one counts.
                plan.length = match *value.parts {
                    [Part::Variable(Variable::ContentLength)] => LengthTold::Truly,
                    _ => LengthTold::Otherwise,
                };
            }
            if let Some(name) = key.strip_prefix("HTTP_") {
                plan.default_host &= name != "HOST";
                plan.suppressed.add(name.as_bytes());
                if plan.upgrade.is_none() && same_variable(name.as_bytes(), b"Upgrade") {
                    plan.upgrade = Some(value.clone());
                }
                // A header that is given no value is not sent.
                if literal == Some(b"") {
                    continue;
                }
            }
            match literal {
                Some(b"") if *if_not_empty => {}
                Some(value) => {
                    push_string(&mut constant, key.as_bytes());
                    push_string(&mut constant, value);
                }
                None => {
                    if !constant.is_empty() {
                        plan.pieces.push(Piece::Constant(std::mem::take(&mut constant).into()));
                    }
                    let mut encoded_key = Vec::with_capacity(2 + key.len());
                    push_string(&mut encoded_key, key.as_bytes());
                    plan.pieces.push(Piece::Dynamic {
                        encoded_key: encoded_key.into(),
                        value: value.clone(),
                        if_not_empty: *if_not_empty,
                        about: About::of(key),
                    });
                }
            }
        }
        if !constant.is_empty() {
            plan.pieces.push(Piece::Constant(constant.into()));
        }
        plan
    }
}

/// Two bytes of length, low one first, and the bytes. Words of a configuration are far shorter than
/// the 65535 bytes that the length can tell.
fn push_string(block: &mut Vec<u8>, text: &[u8]) {
    block.extend_from_slice(&(text.len() as u16).to_le_bytes());
    block.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_runs_are_encoded() {
        let mut settings = Settings::default();
        let uri = Template { parts: vec![Part::Variable(Variable::Uri)] };
        let literal = |text: &str| Template::literal(text.as_bytes());
        for (key, value, if_not_empty) in [
            ("A", literal("b"), false),
            ("HTTP_PROXY", literal(""), false),
            ("C", literal(""), false),
            ("D", literal(""), true),
            ("PATH_INFO", uri.clone(), false),
            ("HTTP_HOST", literal("h"), false),
            ("CONTENT_LENGTH", uri.clone(), true),
            ("HTTP_UPGRADE", uri.clone(), false),
            ("HTTP_HTTP2_SETTINGS", uri.clone(), false),
            ("UPGRADE", uri, false),
        ] {
            settings.param.push(Param { key: key.into(), value, if_not_empty });
        }
        let plan = settings.block_plan();
        assert!(!plan.default_host);
        assert!(plan.suppressed.contains(b"Host") && plan.suppressed.contains(b"proxy"));
        assert!(!plan.suppressed.contains(b"Path-Info"));
        assert!(plan.upgrade.is_some());
        assert_eq!(plan.variables_max, 11);
        let shown: Vec<String> = plan
            .pieces
            .iter()
            .map(|piece| match piece {
                Piece::Constant(bytes) => bytes.escape_ascii().to_string(),
                Piece::Dynamic { encoded_key, about, .. } => {
                    format!("{}=? {about:?}", encoded_key.escape_ascii())
                }
            })
            .collect();
        assert_eq!(
            shown,
            [
                "\\x01\\x00A\\x01\\x00b\\x01\\x00C\\x00\\x00",
                "\\t\\x00PATH_INFO=? Anything",
                "\\t\\x00HTTP_HOST\\x01\\x00h",
                "\\x0e\\x00CONTENT_LENGTH=? Length",
                "\\x0c\\x00HTTP_UPGRADE=? Upgrade",
                "\\x13\\x00HTTP_HTTP2_SETTINGS=? Upgrade",
                "\\x07\\x00UPGRADE=? Anything",
            ]
        );
    }
    #[test]
    fn the_last_content_length_counts() {
        let length = Template { parts: vec![Part::Variable(Variable::ContentLength)] };
        let five = Template::literal(b"5");
        for (values, told) in [
            (vec![&length], LengthTold::Truly),
            (vec![&five, &length], LengthTold::Truly),
            (vec![&length, &five], LengthTold::Otherwise),
            (vec![], LengthTold::Nothing),
        ] {
            let mut settings = Settings::default();
            for value in values {
                settings.param.push(Param {
                    key: "CONTENT_LENGTH".into(),
                    value: value.clone(),
                    if_not_empty: false,
                });
            }
            assert_eq!(settings.block_plan().length, told);
        }
    }
}
