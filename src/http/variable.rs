//! Variables: the names a configuration may use, strings that hold them, and their values.
//!
//! A [`Template`] is compiled when the configuration is loaded, so a request never looks at a name.

use std::sync::Arc;

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
    /// `$1` to `$9`
    Capture(u8),
    /// Made by `set` or a named group.
    Slot(VariableSlot),

    // The request.
    Args,
    IsArgs,
    BinaryRemoteAddr,
    BodyBytesSent,
    BytesSent,
    Connection,
    ConnectionRequests,
    ConnectionTime,
    ContentLength,
    ContentType,
    DocumentRoot,
    Host,
    Hostname,
    Https,
    Msec,
    NginxVersion,
    Pid,
    Pipe,
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
    ProxyPort,
    ProxyAddXForwardedFor,
    UpstreamAddr,
    UpstreamStatus,
    UpstreamConnectTime,
    UpstreamHeaderTime,
    UpstreamResponseTime,
    UpstreamResponseLength,
    UpstreamBytesSent,
    UpstreamBytesReceived,
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
    ("content_length", Variable::ContentLength),
    ("content_type", Variable::ContentType),
    ("document_root", Variable::DocumentRoot),
    ("document_uri", Variable::Uri),
    ("host", Variable::Host),
    ("hostname", Variable::Hostname),
    ("https", Variable::Https),
    ("is_args", Variable::IsArgs),
    ("is_request_port", Variable::IsRequestPort),
    ("msec", Variable::Msec),
    ("nginx_version", Variable::NginxVersion),
    ("pid", Variable::Pid),
    ("pipe", Variable::Pipe),
    ("proxy_add_x_forwarded_for", Variable::ProxyAddXForwardedFor),
    ("proxy_host", Variable::ProxyHost),
    ("proxy_port", Variable::ProxyPort),
    ("query_string", Variable::Args),
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
    ("upstream_response_length", Variable::UpstreamResponseLength),
    ("upstream_response_time", Variable::UpstreamResponseTime),
    ("upstream_status", Variable::UpstreamStatus),
    ("uri", Variable::Uri),
];

/// The value behind one regex match: subject text and where each group lies in it.
#[derive(Debug, Default, Clone)]
pub struct Captures {
    pub subject: Vec<u8>,
    pub groups: smallvec::SmallVec<[Option<(u32, u32)>; 10]>,
}

impl Captures {
    pub fn group(&self, n: usize) -> Option<&[u8]> {
        let (start, end) = (*self.groups.get(n)?)?;
        self.subject.get(start as usize..end as usize)
    }
}

pub type SharedRegex = Arc<Regex>;
