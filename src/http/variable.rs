//! Variables: the names a configuration may use, strings that hold them, and their values.
//!
//! A [`Template`] is compiled when the configuration is loaded, so a request never looks at a name.

use std::fmt::Write;
use std::sync::Arc;

use fancy_regex::{BytesMode, CompileError, ParseError, RegexBuilder};

use super::modules::stub_status::Connections;
use super::tunnel::frame::Opcode;
use crate::config::diagnostic::{Fault, Outcome, fault};
use crate::proxy_protocol::Tlv;

/// A slot of a request's own variables (`set`, named captures).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VariableSlot(pub u16);

/// A regular expression of the configuration, with the slots its named groups fill.
#[derive(Debug)]
pub struct Regex {
    /// As written, for the log.
    pub pattern: Box<str>,
    pub compiled: fancy_regex::Regex,
    /// Group number and slot of each named group.
    pub named: Vec<(usize, VariableSlot)>,
}

/// A string with variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    pub parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Literal(Box<[u8]>),
    Variable(Variable),
}

impl Template {
    pub fn literal(text: &[u8]) -> Self {
        let parts = if text.is_empty() { Vec::new() } else { vec![Part::Literal(text.into())] };
        Template { parts }
    }

    /// The text, when there is no variable in it.
    pub fn as_literal(&self) -> Option<&[u8]> {
        match self.parts.as_slice() {
            [] => Some(b""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }
}

/// Every variable ringx knows (http-core section 13, proxy section 14).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variable {
    // Families: the name's variable part, lower case, `_` as in the configuration.
    /// `$arg_NAME`
    Arg(Box<str>),
    /// `$cookie_NAME`
    Cookie(Box<str>),
    /// `$http_NAME`
    Http(HeaderName),
    /// `$sent_http_NAME`
    SentHttp(HeaderName),
    /// `$upstream_http_NAME`
    UpstreamHttp(HeaderName),
    /// `$upstream_cookie_NAME`
    UpstreamCookie(Box<str>),
    /// `$sent_trailer_NAME`
    SentTrailer(HeaderName),
    /// `$upstream_trailer_NAME`
    UpstreamTrailer(HeaderName),
    /// A member of a family that some `set` gives a value: that one, or the family's.
    Overridden(Box<(VariableSlot, Variable)>),
    /// `$1` to `$9`
    Capture(u8),
    /// Made by `set`, a named group, `map`, `geo` or `split_clients`.
    Slot(VariableSlot),
    /// `$proxy_protocol_tlv_NAME`
    ProxyProtocolTlv(Tlv),

    // The request.
    Args,
    IsArgs,
    LimitRate,
    BinaryRemoteAddr,
    BodyBytesSent,
    BytesSent,
    Connection,
    ConnectionRequests,
    ConnectionTime,
    /// `$connections_active` and so on: of all shards together.
    Connections(Connections),
    ContentLength,
    ContentType,
    DocumentRoot,
    Host,
    Hostname,
    Https,
    Msec,
    /// Empty: `$http2`, `$http3` of a connection that speaks neither.
    Nothing,
    NginxVersion,
    Pid,
    Pipe,
    ProxyProtocolAddr,
    ProxyProtocolPort,
    ProxyProtocolServerAddr,
    ProxyProtocolServerPort,
    RealipRemoteAddr,
    RealipRemotePort,
    RealpathRoot,
    RemoteAddr,
    RemotePort,
    RemoteUser,
    Request,
    RequestBody,
    RequestBodyFile,
    RequestCompletion,
    RequestFilename,
    RequestId,
    RequestLength,
    RequestMethod,
    RequestPort,
    IsRequestPort,
    RequestTime,
    RequestUri,
    Scheme,
    ServerAddr,
    ServerName,
    ServerPort,
    ServerProtocol,
    Status,
    TcpinfoRtt,
    TcpinfoRttvar,
    TcpinfoSndCwnd,
    TcpinfoRcvSpace,
    TimeIso8601,
    TimeLocal,
    Uri,

    // The upstream exchange.
    ProxyHost,
    ProxyInternalBodyLength,
    ProxyInternalChunked,
    ProxyPort,
    ProxyAddXForwardedFor,
    UpstreamAddr,
    UpstreamStatus,
    UpstreamConnectTime,
    UpstreamHeaderTime,
    UpstreamQueueTime,
    UpstreamResponseTime,
    UpstreamResponseLength,
    UpstreamBytesSent,
    UpstreamBytesReceived,

    /// `$websocket_*`: only in the log line of a tunnel with `websocket_metrics on`.
    WebSocket(WebSocket),
}

/// What is known of the WebSocket frames of a tunnel (RFC 6455 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebSocket {
    /// `$websocket_frames_in`, `$websocket_frames_out`: frames of any kind.
    Frames(Way),
    /// `$websocket_messages_in`, `…_out`: data messages, whatever the number of their frames.
    Messages(Way),
    /// `$websocket_text_in` and so on: frames of one kind.
    FramesOf(Opcode, Way),
    /// `$websocket_close_code_in`, `…_out`: the status code of the Close frame; no value before one
    /// with a code was seen.
    CloseCode(Way),
    /// `$websocket_ping_rtt`: seconds with milliseconds from the latest answered Ping to its Pong;
    /// no value before the first one.
    PingRtt,
}

/// Which way frames went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client.
    In,
    /// To the client.
    Out,
}

/// A header name out of a variable's name: lower case, `_` where the header has `-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderName(pub Box<[u8]>);

/// Fixed names in alphabetical order; the families are told by their prefixes.
pub const FIXED: &[(&str, Variable)] = &[
    ("args", Variable::Args),
    ("binary_remote_addr", Variable::BinaryRemoteAddr),
    ("body_bytes_sent", Variable::BodyBytesSent),
    ("bytes_sent", Variable::BytesSent),
    ("connection", Variable::Connection),
    ("connection_requests", Variable::ConnectionRequests),
    ("connection_time", Variable::ConnectionTime),
    ("connections_active", Variable::Connections(Connections::Active)),
    ("connections_reading", Variable::Connections(Connections::Reading)),
    ("connections_waiting", Variable::Connections(Connections::Waiting)),
    ("connections_writing", Variable::Connections(Connections::Writing)),
    ("content_length", Variable::ContentLength),
    ("content_type", Variable::ContentType),
    ("document_root", Variable::DocumentRoot),
    ("document_uri", Variable::Uri),
    ("host", Variable::Host),
    ("hostname", Variable::Hostname),
    ("http2", Variable::Nothing),
    ("http3", Variable::Nothing),
    ("https", Variable::Https),
    ("is_args", Variable::IsArgs),
    ("is_request_port", Variable::IsRequestPort),
    ("limit_rate", Variable::LimitRate),
    ("msec", Variable::Msec),
    ("nginx_version", Variable::NginxVersion),
    ("pid", Variable::Pid),
    ("pipe", Variable::Pipe),
    ("proxy_add_x_forwarded_for", Variable::ProxyAddXForwardedFor),
    ("proxy_host", Variable::ProxyHost),
    ("proxy_internal_body_length", Variable::ProxyInternalBodyLength),
    ("proxy_internal_chunked", Variable::ProxyInternalChunked),
    ("proxy_port", Variable::ProxyPort),
    ("proxy_protocol_addr", Variable::ProxyProtocolAddr),
    ("proxy_protocol_port", Variable::ProxyProtocolPort),
    ("proxy_protocol_server_addr", Variable::ProxyProtocolServerAddr),
    ("proxy_protocol_server_port", Variable::ProxyProtocolServerPort),
    ("query_string", Variable::Args),
    ("realip_remote_addr", Variable::RealipRemoteAddr),
    ("realip_remote_port", Variable::RealipRemotePort),
    ("realpath_root", Variable::RealpathRoot),
    ("remote_addr", Variable::RemoteAddr),
    ("remote_port", Variable::RemotePort),
    ("remote_user", Variable::RemoteUser),
    ("request", Variable::Request),
    ("request_body", Variable::RequestBody),
    ("request_body_file", Variable::RequestBodyFile),
    ("request_completion", Variable::RequestCompletion),
    ("request_filename", Variable::RequestFilename),
    ("request_id", Variable::RequestId),
    ("request_length", Variable::RequestLength),
    ("request_method", Variable::RequestMethod),
    ("request_port", Variable::RequestPort),
    ("request_time", Variable::RequestTime),
    ("request_uri", Variable::RequestUri),
    ("scheme", Variable::Scheme),
    ("server_addr", Variable::ServerAddr),
    ("server_name", Variable::ServerName),
    ("server_port", Variable::ServerPort),
    ("server_protocol", Variable::ServerProtocol),
    ("status", Variable::Status),
    ("tcpinfo_rcv_space", Variable::TcpinfoRcvSpace),
    ("tcpinfo_rtt", Variable::TcpinfoRtt),
    ("tcpinfo_rttvar", Variable::TcpinfoRttvar),
    ("tcpinfo_snd_cwnd", Variable::TcpinfoSndCwnd),
    ("time_iso8601", Variable::TimeIso8601),
    ("time_local", Variable::TimeLocal),
    ("upstream_addr", Variable::UpstreamAddr),
    ("upstream_bytes_received", Variable::UpstreamBytesReceived),
    ("upstream_bytes_sent", Variable::UpstreamBytesSent),
    ("upstream_connect_time", Variable::UpstreamConnectTime),
    ("upstream_header_time", Variable::UpstreamHeaderTime),
    ("upstream_queue_time", Variable::UpstreamQueueTime),
    ("upstream_response_length", Variable::UpstreamResponseLength),
    ("upstream_response_time", Variable::UpstreamResponseTime),
    ("upstream_status", Variable::UpstreamStatus),
    ("uri", Variable::Uri),
    ("websocket_binary_in", Variable::WebSocket(WebSocket::FramesOf(Opcode::Binary, Way::In))),
    ("websocket_binary_out", Variable::WebSocket(WebSocket::FramesOf(Opcode::Binary, Way::Out))),
    ("websocket_close_code_in", Variable::WebSocket(WebSocket::CloseCode(Way::In))),
    ("websocket_close_code_out", Variable::WebSocket(WebSocket::CloseCode(Way::Out))),
    ("websocket_closes_in", Variable::WebSocket(WebSocket::FramesOf(Opcode::Close, Way::In))),
    ("websocket_closes_out", Variable::WebSocket(WebSocket::FramesOf(Opcode::Close, Way::Out))),
    (
        "websocket_continuations_in",
        Variable::WebSocket(WebSocket::FramesOf(Opcode::Continuation, Way::In)),
    ),
    (
        "websocket_continuations_out",
        Variable::WebSocket(WebSocket::FramesOf(Opcode::Continuation, Way::Out)),
    ),
    ("websocket_frames_in", Variable::WebSocket(WebSocket::Frames(Way::In))),
    ("websocket_frames_out", Variable::WebSocket(WebSocket::Frames(Way::Out))),
    ("websocket_messages_in", Variable::WebSocket(WebSocket::Messages(Way::In))),
    ("websocket_messages_out", Variable::WebSocket(WebSocket::Messages(Way::Out))),
    ("websocket_ping_rtt", Variable::WebSocket(WebSocket::PingRtt)),
    ("websocket_pings_in", Variable::WebSocket(WebSocket::FramesOf(Opcode::Ping, Way::In))),
    ("websocket_pings_out", Variable::WebSocket(WebSocket::FramesOf(Opcode::Ping, Way::Out))),
    ("websocket_pongs_in", Variable::WebSocket(WebSocket::FramesOf(Opcode::Pong, Way::In))),
    ("websocket_pongs_out", Variable::WebSocket(WebSocket::FramesOf(Opcode::Pong, Way::Out))),
    ("websocket_text_in", Variable::WebSocket(WebSocket::FramesOf(Opcode::Text, Way::In))),
    ("websocket_text_out", Variable::WebSocket(WebSocket::FramesOf(Opcode::Text, Way::Out))),
];

/// The value behind one regex match: subject text and where each group lies in it.
#[derive(Debug, Default, Clone)]
pub struct Captures {
    pub subject: Vec<u8>,
    pub groups: smallvec::SmallVec<[Option<(u32, u32)>; 10]>,
    /// A match was given up for its cost: nobody knows what it would have come to.
    pub gave_up: bool,
}

impl Captures {
    pub fn group(&self, n: usize) -> Option<&[u8]> {
        let (start, end) = (*self.groups.get(n)?)?;
        self.subject.get(start as usize..end as usize)
    }
}

pub type SharedRegex = Arc<Regex>;

impl Regex {
    /// Compiles a pattern as PCRE without UTF reads it: over bytes, with ASCII classes.
    ///
    /// Named groups are not bound to slots yet: [`Names::regex`] does that.
    pub fn compile(pattern: &str, caseless: bool) -> Outcome<Regex> {
        // A character outside ASCII is its bytes, in a class too.
        let mut bytes = String::with_capacity(pattern.len());
        for c in pattern.chars() {
            if c.is_ascii() {
                bytes.push(c);
            } else {
                let mut utf8 = [0; 4];
                for byte in c.encode_utf8(&mut utf8).bytes() {
                    _ = write!(bytes, "\\x{byte:02x}");
                }
            }
        }
        let build = |pattern: &str| {
            RegexBuilder::new(pattern)
                .bytes_mode(BytesMode::Ascii)
                .case_insensitive(caseless)
                .build()
        };
        // As written first, for what an error says.
        let mut compiled =
            build(&bytes).map_err(|error| Fault::new(compile_failed(pattern, &error)))?;
        if let Some(bytes) = with_dollars_of_pcre(&bytes)
            && let Ok(translated) = build(&bytes)
        {
            compiled = translated;
        }
        Ok(Regex { pattern: pattern.into(), compiled, named: Vec::new() })
    }

    /// Whether the subject matches; if so, `captures` holds the subject and its groups. A match
    /// that is given up for its cost counts as none, and is noted there.
    pub fn matches(&self, subject: &[u8], captures: &mut Captures) -> bool {
        let found = match self.compiled.captures(subject) {
            Ok(Some(found)) => found,
            Ok(None) => return false,
            Err(_) => {
                captures.gave_up = true;
                return false;
            }
        };
        captures.subject.clear();
        captures.subject.extend_from_slice(subject);
        captures.groups.clear();
        captures.groups.extend(
            found.iter().map(|group| group.map(|group| (group.start() as u32, group.end() as u32))),
        );
        true
    }
}

/// The pattern with each `$` as PCRE means it: the end, or before a line feed that is the end. `None`:
/// there is none, or the pattern changes by itself what `$` means.
fn with_dollars_of_pcre(pattern: &str) -> Option<String> {
    if !pattern.contains('$') || pattern.contains("(?m") || pattern.contains("(?x") {
        return None;
    }
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut chars = pattern.chars().peekable();
    let mut in_class = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                out.push(c);
                out.extend(chars.next());
                continue;
            }
            '[' if !in_class => {
                in_class = true;
                out.push(c);
                // A `]` that comes first does not close.
                out.extend(chars.next_if_eq(&'^'));
                out.extend(chars.next_if_eq(&']'));
                continue;
            }
            ']' => in_class = false,
            '$' if !in_class => {
                out.push_str("(?:\\n?\\z)");
                continue;
            }
            _ => {}
        }
        out.push(c);
    }
    Some(out)
}

/// `pcre2_compile() failed: missing closing parenthesis in "("`
fn compile_failed(pattern: &str, error: &fancy_regex::Error) -> String {
    use fancy_regex::Error;
    let (text, at) = match error {
        Error::ParseError(at, error) => {
            let text = match error {
                ParseError::UnclosedOpenParen => return closing_parenthesis(pattern),
                ParseError::InvalidRepeat | ParseError::TargetNotRepeatable => {
                    "quantifier does not follow a repeatable item".to_owned()
                }
                ParseError::TrailingBackslash => "\\ at end of pattern".to_owned(),
                ParseError::InvalidClass => "missing terminating ] for character class".to_owned(),
                ParseError::InvalidGroupName => "subpattern name expected".to_owned(),
                ParseError::InvalidBackref => "reference to non-existent subpattern".to_owned(),
                ParseError::GeneralParseError(_) if has_stray_closing(pattern) => {
                    "unmatched closing parenthesis".to_owned()
                }
                other => lower_first(&other.to_string()),
            };
            (text, Some(*at))
        }
        Error::CompileError(error) => match &**error {
            CompileError::LookBehindNotConst => {
                ("lookbehind assertion is not fixed length".to_owned(), None)
            }
            other => (lower_first(&other.to_string()), None),
        },
        other => (lower_first(&other.to_string()), None),
    };
    // Offsets are those of the escaped pattern: the same as long as the pattern is ASCII.
    match at.filter(|_| pattern.is_ascii()).and_then(|at| pattern.get(at..)) {
        Some(rest) if !rest.is_empty() => {
            format!("pcre2_compile() failed: {text} in \"{pattern}\" at \"{rest}\"")
        }
        _ => format!("pcre2_compile() failed: {text} in \"{pattern}\""),
    }
}

fn closing_parenthesis(pattern: &str) -> String {
    format!("pcre2_compile() failed: missing closing parenthesis in \"{pattern}\"")
}

/// Whether a `)` closes nothing, outside of escapes and classes.
fn has_stray_closing(pattern: &str) -> bool {
    let mut depth = 0_usize;
    let mut in_class = false;
    let mut bytes = pattern.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'[' => in_class = true,
            b']' => in_class = false,
            b'(' if !in_class => depth += 1,
            b')' if !in_class => match depth.checked_sub(1) {
                Some(outer) => depth = outer,
                None => return true,
            },
            _ => {}
        }
    }
    false
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// The variables a configuration makes and uses: names to slots, and strings to templates.
///
/// A name may be used before the `set` or the group that makes it, so a use of an unknown name takes
/// a slot; whether all of them were made is asked at the end ([`Names::check`]).
#[derive(Debug, Default)]
pub struct Names {
    slots: Vec<SlotName>,
    /// Members of families that a `set` anywhere gives a value, lower case.
    overridden: Vec<Box<str>>,
}

#[derive(Debug)]
struct SlotName {
    name: Box<str>,
    is_made: bool,
    /// It was `set` that made it: without a value it is empty, and there.
    is_set: bool,
}

/// What `set` may write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settable {
    Slot(VariableSlot),
    Args,
    LimitRate,
}

impl Names {
    /// Compiles a string with variables.
    pub fn template(&mut self, text: &str) -> Outcome<Template> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(dollar) = rest.find('$') {
            push_literal(&mut parts, &rest[..dollar]);
            let after = &rest[dollar + 1..];
            if let Some(digit @ b'1'..=b'9') = after.as_bytes().first() {
                parts.push(Part::Variable(Variable::Capture(digit - b'0')));
                rest = &after[1..];
                continue;
            }
            let (in_brackets, after) = match after.strip_prefix('{') {
                Some(after) => (true, after),
                None => (false, after),
            };
            let length = after.bytes().take_while(|b| is_name_byte(*b)).count();
            let (name, tail) = after.split_at(length);
            if in_brackets && !tail.starts_with('}') {
                return fault!("the closing bracket in \"{name}\" variable is missing");
            }
            if name.is_empty() {
                return fault!("invalid variable name");
            }
            parts.push(Part::Variable(self.variable(name)?));
            rest = if in_brackets { &tail[1..] } else { tail };
        }
        push_literal(&mut parts, rest);
        Ok(Template { parts })
    }

    /// The variable of this name, known already or to be made somewhere.
    pub fn variable(&mut self, name: &str) -> Outcome<Variable> {
        let name = name.to_ascii_lowercase();
        if let Some(variable) = fixed(&name) {
            return Ok(variable.clone());
        }
        if let Some(variable) = of_family(&name) {
            if self.overridden.iter().any(|overridden| **overridden == *name) {
                let slot = self.slot(&name)?;
                return Ok(Variable::Overridden(Box::new((slot, variable))));
            }
            return Ok(variable);
        }
        if is_not_supported(&name) {
            return fault!("the \"{name}\" variable is not supported");
        }
        self.slot(&name).map(Variable::Slot)
    }

    /// Notes that there is a `set` for this name, ahead of all uses of it.
    pub fn note_set(&mut self, name: &str) {
        let name = name.to_ascii_lowercase();
        if of_family(&name).is_some() {
            self.overridden.push(name.into());
        }
    }

    /// Compiles a regex and binds its named groups.
    pub fn regex(&mut self, pattern: &str, caseless: bool) -> Outcome<Regex> {
        let mut regex = Regex::compile(pattern, caseless)?;
        let named: Vec<(usize, String)> = regex
            .compiled
            .capture_names()
            .enumerate()
            .filter_map(|(group, name)| Some((group, name?.to_owned())))
            .collect();
        for (group, name) in named {
            match self.make(&name)? {
                Settable::Slot(slot) => regex.named.push((group, slot)),
                Settable::Args | Settable::LimitRate => {
                    return fault!("a group cannot set the \"{name}\" variable");
                }
            }
        }
        Ok(regex)
    }

    /// The variable that a `set $name` or a named group writes to.
    pub fn make(&mut self, name: &str) -> Outcome<Settable> {
        let name = name.to_ascii_lowercase();
        match fixed(&name) {
            Some(Variable::Args) if name == "args" => return Ok(Settable::Args),
            Some(Variable::LimitRate) => return Ok(Settable::LimitRate),
            Some(_) => return fault!("the duplicate \"{name}\" variable"),
            None => {}
        }
        if is_not_supported(&name) {
            return fault!("setting the \"{name}\" variable is not supported");
        }
        let slot = self.slot(&name)?;
        if let Some(made) = self.slots.get_mut(usize::from(slot.0)) {
            made.is_made = true;
        }
        Ok(Settable::Slot(slot))
    }

    /// [`Names::make`] for `set`: what nothing else has made yet has a value from the start.
    pub fn set_variable(&mut self, name: &str) -> Outcome<Settable> {
        let known = |slot: &SlotName| slot.is_made && slot.name.eq_ignore_ascii_case(name);
        let is_new = !self.slots.iter().any(known);
        let variable = self.make(name)?;
        if let Settable::Slot(slot) = variable
            && let Some(made) = self.slots.get_mut(usize::from(slot.0))
        {
            made.is_set |= is_new;
        }
        Ok(variable)
    }

    /// Which of the slots `set` has made.
    pub fn set_slots(&self) -> Vec<bool> {
        self.slots.iter().map(|slot| slot.is_set).collect()
    }

    /// The variable that a `map`, `geo` or `split_clients` block computes; `text` is `$name`.
    pub fn make_computed(&mut self, text: &str) -> Outcome<VariableSlot> {
        match text.strip_prefix('$') {
            Some(name) if !name.is_empty() => match self.make(name)? {
                Settable::Slot(slot) => Ok(slot),
                Settable::Args | Settable::LimitRate => {
                    fault!("computing the \"{name}\" variable is not supported")
                }
            },
            _ => fault!("invalid variable name \"{text}\""),
        }
    }

    fn slot(&mut self, name: &str) -> Outcome<VariableSlot> {
        let known = self.slots.iter().position(|slot| *slot.name == *name);
        let at = known.unwrap_or(self.slots.len());
        let Ok(slot) = u16::try_from(at) else { return fault!("too many variables") };
        if known.is_none() {
            self.slots.push(SlotName { name: name.into(), is_made: false, is_set: false });
        }
        Ok(VariableSlot(slot))
    }

    /// Fails when a name is used that nothing makes.
    pub fn check(&self) -> Outcome {
        match self.slots.iter().find(|slot| !slot.is_made) {
            Some(slot) => Err(Fault::nowhere(format!("unknown \"{}\" variable", slot.name))),
            None => Ok(()),
        }
    }

    /// The names in the order of their slots.
    pub fn into_names(self) -> Vec<Box<str>> {
        self.slots.into_iter().map(|slot| slot.name).collect()
    }
}

/// Variables of nginx that ringx does not have.
fn is_not_supported(name: &str) -> bool {
    NOT_SUPPORTED.contains(&name)
        || NOT_SUPPORTED_FAMILIES.iter().any(|prefix| name.starts_with(prefix))
}

const NOT_SUPPORTED: &[&str] = &[
    "ancient_browser",
    "date_gmt",
    "date_local",
    "fastcgi_path_info",
    "fastcgi_script_name",
    "gzip_ratio",
    "invalid_referer",
    "limit_conn_status",
    "limit_req_status",
    "modern_browser",
    "msie",
    "quic",
    "secure_link",
    "secure_link_expires",
    "slice_range",
    "ssl_cipher",
    "ssl_ciphers",
    "ssl_client_cert",
    "ssl_client_escaped_cert",
    "ssl_client_fingerprint",
    "ssl_client_i_dn",
    "ssl_client_s_dn",
    "ssl_client_serial",
    "ssl_client_verify",
    "ssl_curve",
    "ssl_curves",
    "ssl_protocol",
    "ssl_server_name",
    "ssl_session_id",
    "ssl_session_reused",
    "uid_got",
    "uid_reset",
    "uid_set",
    "upstream_cache_status",
];

const NOT_SUPPORTED_FAMILIES: &[&str] = &[];

fn fixed(name: &str) -> Option<&'static Variable> {
    let at = FIXED.binary_search_by(|(fixed, _)| (*fixed).cmp(name)).ok()?;
    FIXED.get(at).map(|(_, variable)| variable)
}

/// A variable of a family: its name says what to look up.
fn of_family(name: &str) -> Option<Variable> {
    let header = |name: &str| HeaderName(name.as_bytes().into());
    if let Some(name) = name.strip_prefix("arg_") {
        Some(Variable::Arg(name.into()))
    } else if let Some(name) = name.strip_prefix("cookie_") {
        Some(Variable::Cookie(name.into()))
    } else if let Some(name) = name.strip_prefix("http_") {
        Some(Variable::Http(header(name)))
    } else if let Some(name) = name.strip_prefix("sent_http_") {
        Some(Variable::SentHttp(header(name)))
    } else if let Some(name) = name.strip_prefix("sent_trailer_") {
        Some(Variable::SentTrailer(header(name)))
    } else if let Some(name) = name.strip_prefix("upstream_trailer_") {
        Some(Variable::UpstreamTrailer(header(name)))
    } else if let Some(name) = name.strip_prefix("upstream_http_") {
        Some(Variable::UpstreamHttp(header(name)))
    } else if let Some(name) = name.strip_prefix("proxy_protocol_tlv_") {
        Some(Variable::ProxyProtocolTlv(Tlv::named(name)))
    } else {
        name.strip_prefix("upstream_cookie_").map(|name| Variable::UpstreamCookie(name.into()))
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn push_literal(parts: &mut Vec<Part>, text: &str) {
    if !text.is_empty() {
        parts.push(Part::Literal(text.as_bytes().into()));
    }
}

impl Template {
    /// Whether a variable is in it.
    pub fn uses(&self, variable: &Variable) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Variable(used) if used == variable))
    }

    pub fn has_variables(&self) -> bool {
        self.as_literal().is_none()
    }
}

/// Any text: a template holds its literal bytes in order, and a regex search stays in its subject.
pub fn fuzz_template(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut names = Names::default();
    if let Ok(template) = names.template(&text) {
        let mut rest: &[u8] = text.as_bytes();
        for part in &template.parts {
            if let Part::Literal(literal) = part {
                assert!(!literal.is_empty());
                let at = memchr::memmem::find(rest, literal).expect("literals are of the text");
                rest = &rest[at + literal.len()..];
            }
        }
    }
    let (pattern, subject) = data.split_at(data.len() / 2);
    if let Ok(regex) = Regex::compile(&String::from_utf8_lossy(pattern), true) {
        let mut captures = Captures::default();
        if regex.matches(subject, &mut captures) {
            assert_eq!(captures.subject, subject);
            for n in 0..captures.groups.len() {
                assert_eq!(captures.group(n).is_some(), captures.groups[n].is_some());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text_of(error: Fault) -> String {
        error.text
    }

    #[test]
    fn fixed_names_are_sorted() {
        assert!(FIXED.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn templates() {
        let mut names = Names::default();
        let template = names.template("a$URI${args}b$1$21$http_x_y$own.$own").unwrap();
        assert_eq!(
            template.parts,
            [
                Part::Literal(b"a".as_slice().into()),
                Part::Variable(Variable::Uri),
                Part::Variable(Variable::Args),
                Part::Literal(b"b".as_slice().into()),
                Part::Variable(Variable::Capture(1)),
                Part::Variable(Variable::Capture(2)),
                Part::Literal(b"1".as_slice().into()),
                Part::Variable(Variable::Http(HeaderName(b"x_y".as_slice().into()))),
                Part::Variable(Variable::Slot(VariableSlot(0))),
                Part::Literal(b".".as_slice().into()),
                Part::Variable(Variable::Slot(VariableSlot(0))),
            ]
        );
        assert_eq!(names.check().map_err(text_of), Err("unknown \"own\" variable".into()));
        assert_eq!(names.make("OWN"), Ok(Settable::Slot(VariableSlot(0))));
        assert_eq!(names.check(), Ok(()));
        assert_eq!(names.make("args"), Ok(Settable::Args));
        assert_eq!(
            names.make("uri").map_err(text_of),
            Err("the duplicate \"uri\" variable".into())
        );
        assert_eq!(&*names.into_names()[0], "own");
    }

    #[test]
    fn broken_templates() {
        let mut names = Names::default();
        for (text, error) in [
            ("$", "invalid variable name"),
            ("a$-", "invalid variable name"),
            ("${}", "invalid variable name"),
            ("${a", "the closing bracket in \"a\" variable is missing"),
            ("${a-b}", "the closing bracket in \"a\" variable is missing"),
            ("$ssl_protocol", "the \"ssl_protocol\" variable is not supported"),
        ] {
            assert_eq!(names.template(text).map_err(text_of), Err(error.into()), "{text}");
        }
    }

    #[test]
    fn regexes_run_on_bytes() {
        let found = |pattern, caseless, subject: &[u8]| {
            let mut captures = Captures::default();
            let regex = Regex::compile(pattern, caseless).unwrap();
            regex.matches(subject, &mut captures).then(|| captures.group(0).unwrap().to_vec())
        };
        assert_eq!(found("^/a.c$", false, b"/a\xffc"), Some(b"/a\xffc".to_vec()));
        assert_eq!(found("é", false, "/é".as_bytes()), Some("é".as_bytes().to_vec()));
        assert_eq!(found("[é]$", false, "/é".as_bytes()), Some(b"\xa9".to_vec()));
        assert_eq!(found("\\w+", false, "é_1".as_bytes()), Some(b"_1".to_vec()));
        assert_eq!(found("[^/]+", false, b"/\xc3"), Some(b"\xc3".to_vec()));
        assert_eq!(found("B", true, b"abc"), Some(b"b".to_vec()));
        assert_eq!(found("a(?!b)", false, b"abac\xff"), Some(b"a".to_vec()));
        assert_eq!(found("(a)\\1\\xff", false, b"aa\xff"), Some(b"aa\xff".to_vec()));
        assert_eq!(found("(x+x+)+y", false, &[b'x'; 60]), None);
        assert_eq!(found("^/a$", false, b"/a\n"), Some(b"/a\n".to_vec()));
        assert_eq!(found("^/a$", false, b"/a\n\n"), None);
        assert_eq!(found("^/a\\$[]$]", false, b"/a$$"), Some(b"/a$$".to_vec()));
        assert_eq!(found("a$|b", false, b"b"), Some(b"b".to_vec()));
    }

    #[test]
    fn named_groups_have_slots() {
        let mut names = Names::default();
        let regex = names.regex("^/(?<a>x)(y)?(?P<b>z)", false).unwrap();
        assert_eq!(regex.named, [(1, VariableSlot(0)), (3, VariableSlot(1))]);
        let mut captures = Captures::default();
        assert!(regex.matches(b"/xz", &mut captures));
        assert_eq!(captures.group(1), Some(b"x".as_slice()));
        assert_eq!(captures.group(2), None);
        assert_eq!(captures.group(3), Some(b"z".as_slice()));
        assert_eq!(captures.group(4), None);
    }

    #[test]
    fn broken_regexes_read_like_pcre() {
        for (pattern, error) in [
            ("(", "missing closing parenthesis in \"(\""),
            ("a(b", "missing closing parenthesis in \"a(b\""),
            ("[a", "missing terminating ] for character class in \"[a\""),
            ("a)", "unmatched closing parenthesis in \"a)\" at \")\""),
            ("*a", "quantifier does not follow a repeatable item in \"*a\" at \"*a\""),
        ] {
            let text = Regex::compile(pattern, false).map_err(text_of).unwrap_err();
            assert_eq!(text, format!("pcre2_compile() failed: {error}"), "{pattern}");
        }
    }

    proptest! {
        #[test]
        fn any_template(text in "[a${}1-3_ é]{0,20}") {
            fuzz_template(text.as_bytes());
        }

        #[test]
        fn any_bytes(data in proptest::collection::vec(any::<u8>(), 0..40)) {
            fuzz_template(&data);
        }
    }
}
