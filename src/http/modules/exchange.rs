//! What `proxy_*` and `uwsgi_*` have in common: one upstream exchange, two protocols. The rows of
//! both families are made from one list here.

use std::sync::Arc;
use std::time::Duration;

use super::core::{Buffers, TempPath};
use crate::config::setting::{List, Setting, inherit};
use crate::http::server::UpstreamId;
use crate::http::variable::Template;

/// The settings of one family (`proxy_` or `uwsgi_`) at one level.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub connect_timeout: Setting<Duration>,
    pub send_timeout: Setting<Duration>,
    pub read_timeout: Setting<Duration>,
    pub buffering: Setting<bool>,
    pub request_buffering: Setting<bool>,
    pub buffer_size: Setting<usize>,
    pub buffers: Setting<Buffers>,
    pub busy_buffers_size: Setting<Option<usize>>,
    pub max_temp_file_size: Setting<u64>,
    pub temp_file_write_size: Setting<Option<usize>>,
    pub temp_path: Setting<TempPath>,
    pub next_upstream: Setting<NextUpstream>,
    /// Zero: as many as there are servers.
    pub next_upstream_tries: Setting<usize>,
    /// Zero: no limit.
    pub next_upstream_timeout: Setting<Duration>,
    pub ignore_client_abort: Setting<bool>,
    pub intercept_errors: Setting<bool>,
    pub pass_request_headers: Setting<bool>,
    pub pass_request_body: Setting<bool>,
    pub socket_keepalive: Setting<bool>,
    /// Names, lower case.
    pub hide_header: List<Box<[u8]>>,
    pub pass_header: List<Box<[u8]>>,
    pub ignore_headers: Setting<IgnoreHeaders>,

    /// Response headers not passed on: the family's defaults and `hide_header`, without
    /// `pass_header`. Lower case and sorted; made once when the level is complete.
    pub hidden: Arc<[Box<[u8]>]>,
}

/// Conditions of `*_next_upstream`: a set of words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NextUpstream(pub u16);

impl NextUpstream {
    pub const ERROR: NextUpstream = NextUpstream(1);
    pub const TIMEOUT: NextUpstream = NextUpstream(1 << 1);
    pub const INVALID_HEADER: NextUpstream = NextUpstream(1 << 2);
    pub const HTTP_500: NextUpstream = NextUpstream(1 << 3);
    pub const HTTP_502: NextUpstream = NextUpstream(1 << 4);
    pub const HTTP_503: NextUpstream = NextUpstream(1 << 5);
    pub const HTTP_504: NextUpstream = NextUpstream(1 << 6);
    pub const HTTP_403: NextUpstream = NextUpstream(1 << 7);
    pub const HTTP_404: NextUpstream = NextUpstream(1 << 8);
    pub const HTTP_429: NextUpstream = NextUpstream(1 << 9);
    pub const NON_IDEMPOTENT: NextUpstream = NextUpstream(1 << 10);
    /// `off`: never try another server.
    pub const OFF: NextUpstream = NextUpstream(1 << 11);

    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Words of `*_ignore_headers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IgnoreHeaders(pub u16);

impl IgnoreHeaders {
    pub const X_ACCEL_REDIRECT: IgnoreHeaders = IgnoreHeaders(1);
    pub const X_ACCEL_EXPIRES: IgnoreHeaders = IgnoreHeaders(1 << 1);
    pub const X_ACCEL_LIMIT_RATE: IgnoreHeaders = IgnoreHeaders(1 << 2);
    pub const X_ACCEL_BUFFERING: IgnoreHeaders = IgnoreHeaders(1 << 3);
    pub const X_ACCEL_CHARSET: IgnoreHeaders = IgnoreHeaders(1 << 4);
    pub const EXPIRES: IgnoreHeaders = IgnoreHeaders(1 << 5);
    pub const CACHE_CONTROL: IgnoreHeaders = IgnoreHeaders(1 << 6);
    pub const SET_COOKIE: IgnoreHeaders = IgnoreHeaders(1 << 7);
    pub const VARY: IgnoreHeaders = IgnoreHeaders(1 << 8);

    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Where a `*_pass` sends its requests.
#[derive(Debug, Clone)]
pub enum Pass {
    /// A fixed target: an upstream block, or an implicit one made of the addresses that the name had
    /// at load.
    Upstream(UpstreamId),
    /// The value holds variables: matched for each request against upstream names, then read as an
    /// address, then resolved.
    Template(Template),
}

impl Settings {
    pub fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer: connect_timeout, send_timeout, read_timeout, buffering, request_buffering,
            buffer_size, buffers, busy_buffers_size, max_temp_file_size, temp_file_write_size, temp_path,
            next_upstream, next_upstream_tries, next_upstream_timeout, ignore_client_abort,
            intercept_errors, pass_request_headers, pass_request_body, socket_keepalive, hide_header,
            pass_header, ignore_headers);
    }
}
