//! Variables: the names a configuration may use, strings that hold them, and their values.
//!
//! A [`Template`] is compiled when the configuration is loaded, so a request never looks at a name.

mod names;
mod regex;

use serde::{Deserialize, Serialize};

use super::modules::stub_status::Connections;
use super::tunnel::frame::Opcode;
use crate::proxy_protocol::Tlv;
pub use names::{Names, Settable, fuzz_template};
pub use regex::{Captures, GaveUp, Regex, SharedRegex};

/// A slot of a request's own variables (`set`, named captures).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VariableSlot(pub u16);

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

    /// Whether a variable is in it.
    pub fn uses(&self, variable: &Variable) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Variable(used) if used == variable))
    }

    pub fn has_variables(&self) -> bool {
        self.as_literal().is_none()
    }

    pub fn variables(&self) -> impl Iterator<Item = &Variable> {
        self.parts.iter().filter_map(|part| match part {
            Part::Variable(variable) => Some(variable),
            Part::Literal(_) => None,
        })
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
    /// There is no cache: it never has a value, as where nginx's is off.
    UpstreamCacheStatus,

    /// `$websocket_*`: only in the log line of a tunnel with `websocket_metrics on`.
    WebSocket(WebSocket),
}

/// What is known of the WebSocket frames of a tunnel (RFC 6455 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    ("upstream_cache_status", Variable::UpstreamCacheStatus),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_names_are_sorted() {
        assert!(FIXED.is_sorted_by(|a, b| a.0 < b.0));
    }
}
