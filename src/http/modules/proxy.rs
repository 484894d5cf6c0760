//! The proxy module: HTTP to an HTTP server, and the road of a WebSocket handshake.

use std::sync::Arc;

use super::exchange::{self, Pass};
use crate::config::setting::{List, Own, Setting, inherit};
use crate::http::variable::Template;

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
    Off,
    /// `from` is the `proxy_pass` URL, `to` the location's name.
    Default,
    Pairs(Vec<(Template, Template)>),
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
    /// `set_header` names Content-Length (or Transfer-Encoding): the default line is not sent.
    pub overrides_length: bool,
}

impl Settings {
    pub fn inherit(&mut self, outer: &Self) {
        self.exchange.inherit(&outer.exchange);
        inherit!(self, outer: http_version, method, set_header, set_body, redirect);
    }
}
