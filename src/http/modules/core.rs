//! The http core module: what a server and a location are, and everything about the client's side
//! of a connection.

mod content_type;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::setting::{List, Own, Setting};
use crate::http::variable::Template;
pub use content_type::content_type;

/// The core module's settings of one level.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    // The client's connection and the request head.
    pub client_header_timeout: Setting<Duration>,
    pub client_header_buffer_size: Setting<usize>,
    pub large_client_header_buffers: Setting<Buffers>,
    pub max_headers: Setting<usize>,
    pub ignore_invalid_headers: Setting<bool>,
    pub underscores_in_headers: Setting<bool>,
    pub merge_slashes: Setting<bool>,
    pub keepalive_timeout: Setting<KeepaliveTimeout>,
    pub keepalive_min_timeout: Setting<Duration>,
    pub keepalive_requests: Setting<u64>,
    pub keepalive_time: Setting<Duration>,
    pub lingering_close: Setting<LingeringClose>,
    pub lingering_time: Setting<Duration>,
    pub lingering_timeout: Setting<Duration>,
    pub reset_timedout_connection: Setting<bool>,
    pub send_timeout: Setting<Duration>,
    pub tcp_nodelay: Setting<bool>,

    // The request body.
    pub client_max_body_size: Setting<u64>,
    pub client_body_buffer_size: Setting<usize>,
    pub client_body_timeout: Setting<Duration>,
    pub client_body_temp_path: Setting<TempPath>,

    // Files.
    pub root: Setting<Root>,
    pub types: Setting<Arc<Types>>,
    pub default_type: Setting<Arc<str>>,
    pub index: List<Template>,
    pub try_files: Own<TryFiles>,
    pub etag: Setting<bool>,
    pub if_modified_since: Setting<IfModifiedSince>,
    pub max_ranges: Setting<u64>,
    pub log_not_found: Setting<bool>,

    // The response.
    pub error_page: List<ErrorPage>,
    pub recursive_error_pages: Setting<bool>,
    pub server_tokens: Setting<ServerTokens>,
    pub chunked_transfer_encoding: Setting<bool>,
    pub absolute_redirect: Setting<bool>,
    pub server_name_in_redirect: Setting<bool>,
    pub port_in_redirect: Setting<bool>,
    pub msie_padding: Setting<bool>,
    pub internal: Setting<bool>,
    pub error_log: List<crate::error_log::Target>,
}

/// `number size`, as in `large_client_header_buffers` and `proxy_buffers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffers {
    pub number: usize,
    pub size: usize,
}

/// `keepalive_timeout idle [header];`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepaliveTimeout {
    /// Zero: no keepalive at all.
    pub idle: Duration,
    /// Seconds said in a `Keep-Alive` response header.
    pub header: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LingeringClose {
    Off,
    On,
    Always,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfModifiedSince {
    Off,
    Exact,
    Before,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerTokens {
    Off,
    On,
    Build,
}

/// `client_body_temp_path path [level1 [level2 [level3]]];` The path is absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TempPath {
    pub path: PathBuf,
    /// Digits of the file's number that name each directory level; zero: no such level.
    pub levels: [u8; 3],
}

/// `root` and `alias` are one slot. The template's literal start is absolute (the prefix is
/// prepended at load to a relative path); a value that starts with a variable stays as written.
#[derive(Debug, Clone)]
pub struct Root {
    pub path: Template,
    pub is_alias: bool,
}

/// Extension to MIME type. Keys are lower case.
pub type Types = std::collections::HashMap<Box<[u8]>, Arc<str>>;

#[derive(Debug, Clone)]
pub struct TryFiles {
    /// Each is tested with root or alias; one that ends in `/` must be a directory.
    pub candidates: Vec<Template>,
    pub last: TryFilesLast,
}

#[derive(Debug, Clone)]
pub enum TryFilesLast {
    /// `/uri?args`: an internal redirect.
    Uri(Template),
    /// `@name`.
    Named(Arc<str>),
    /// `=code`.
    Code(u16),
}

/// One `error_page` line.
#[derive(Debug, Clone)]
pub struct ErrorPage {
    pub codes: Vec<u16>,
    pub answer: ErrorPageStatus,
    pub target: ErrorPageTarget,
}

/// The status sent with an error page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorPageStatus {
    /// No `=`: the original code.
    Original,
    /// `=CODE`.
    Code(u16),
    /// `=`: what the target produces.
    OfTarget,
}

#[derive(Debug, Clone)]
pub enum ErrorPageTarget {
    /// `/uri[?args]`: an internal redirect with GET.
    Uri(Template),
    /// `@name`.
    Named(Arc<str>),
    /// Anything else: a redirect to it.
    Url(Template),
}

impl Settings {
    pub fn inherit(&mut self, outer: &Self) {
        crate::config::setting::inherit!(self, outer: client_header_timeout, client_header_buffer_size,
            large_client_header_buffers, max_headers, ignore_invalid_headers, underscores_in_headers,
            merge_slashes, keepalive_timeout, keepalive_min_timeout, keepalive_requests, keepalive_time,
            lingering_close, lingering_time, lingering_timeout, reset_timedout_connection, send_timeout,
            tcp_nodelay, client_max_body_size, client_body_buffer_size, client_body_timeout,
            client_body_temp_path, root, types, default_type, index, etag, if_modified_since, max_ranges,
            log_not_found, error_page, recursive_error_pages, server_tokens, chunked_transfer_encoding,
            absolute_redirect, server_name_in_redirect, port_in_redirect, msie_padding, internal, error_log);
    }
}
