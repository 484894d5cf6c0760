//! What `proxy_*` and `uwsgi_*` have in common: one upstream exchange, two protocols. The rows of
//! both families are made from one list here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::core::{Buffers, TempPath};
use crate::config::diagnostic::{Fault, Outcome, fault};
use crate::config::setting::{List, Setting, inherit};
use crate::config::value::Args;
use crate::http::pace;
use crate::http::server::UpstreamId;
use crate::http::upstream::local;
use crate::http::upstream::rest::PIECE_MAX;
use crate::http::variable::Template;
use crate::modules::Build;

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
    pub force_ranges: Setting<bool>,
    /// Bytes; `None`: the system's.
    pub socket_rcvbuf: Setting<Option<usize>>,
    pub socket_sndbuf: Setting<Option<usize>>,
    /// `None`: the system chooses the local address.
    pub bind: Setting<Option<Bind>>,
    /// Bytes a second read of a response; 0 is no limit.
    pub limit_rate: Setting<pace::Size>,
    /// Names, lower case.
    pub hide_header: List<Box<[u8]>>,
    pub pass_header: List<Box<[u8]>>,
    pub ignore_headers: Setting<IgnoreHeaders>,

    /// Response headers not passed on: the family's defaults and `hide_header`, without
    /// `pass_header`. Lower case and sorted; made once when the level is complete.
    pub hidden: Arc<[Box<[u8]>]>,
}

/// `*_bind address[:port] [transparent];`
#[derive(Debug, Clone)]
pub struct Bind {
    pub address: BindAddress,
    /// The address may be another host's.
    pub is_transparent: bool,
}

#[derive(Debug, Clone)]
pub enum BindAddress {
    Fixed {
        /// Port 0: any.
        address: SocketAddr,
        /// As written.
        text: Arc<str>,
    },
    Template(Template),
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
    /// Of a response in a cache, which is none here: no exchange ever ends with it.
    pub const UPDATING: NextUpstream = NextUpstream(1 << 12);

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
            intercept_errors, pass_request_headers, pass_request_body, socket_keepalive, force_ranges,
            socket_rcvbuf, socket_sndbuf, bind, limit_rate, hide_header, pass_header, ignore_headers);
    }
}

/// What tells the two families apart when an address is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Uwsgi,
}

impl Protocol {
    /// The port of an address without one; uwsgi has none.
    pub const fn default_port(self) -> Option<u16> {
        match self {
            Protocol::Http => Some(80),
            Protocol::Uwsgi => None,
        }
    }
}

/// The rows of a family: `rows!(proxy, "proxy_", "proxy_temp 1 2")`.
macro_rules! rows {
    ($module:ident, $prefix:literal, $temp_path:literal) => {{
        use $crate::config::directive::{Contexts, Count, Directive};
        use $crate::config::value::Args;
        use $crate::http::modules::core::{buffers, temp_path};
        use $crate::http::modules::exchange;
        use $crate::http::pace;
        const LEVELS: Contexts = Contexts::HTTP_SERVER_LOCATION;
        const ONE: Count = Count::Exactly(1);
        const MANY: Count = Count::AtLeast(1);
        &[
            Directive::new(concat!($prefix, "bind"), LEVELS, Count::Between(1, 2))
                .syntax("address[:port] [transparent] | off")
                .default("off")
                .doc(
                    "The local address of connections to servers. `transparent`: it may be another \
                      host's, such as `$remote_addr`.",
                )
                .differs(
                    "`transparent` takes CAP_NET_RAW, which is given up with `user`: run as root, or \
                      start with the capability as the user.",
                )
                .set(|b, args| {
                    let bind = exchange::bind(b, args)?;
                    args.fill(&mut b.level().$module.exchange.bind, |_| Ok(bind))
                }),
            Directive::new(concat!($prefix, "buffer_size"), LEVELS, ONE)
                .syntax("size")
                .default("4k")
                .doc("What a response head must fit in; also the buffer of a tunnel.")
                .set(|b, args| args.fill(&mut b.level().$module.exchange.buffer_size, Args::size)),
            Directive::new(concat!($prefix, "buffering"), LEVELS, ONE)
                .syntax("on | off")
                .default("on")
                .doc("Whether a response is read ahead of what the client takes.")
                .set(|b, args| args.fill(&mut b.level().$module.exchange.buffering, Args::flag)),
            Directive::new(concat!($prefix, "buffers"), LEVELS, Count::Exactly(2))
                .syntax("number size")
                .default("8 4k")
                .doc("Buffers for the response of one request.")
                .set(|b, args| args.fill(&mut b.level().$module.exchange.buffers, buffers)),
            Directive::new(concat!($prefix, "busy_buffers_size"), LEVELS, ONE)
                .syntax("size")
                .doc(
                    "How much of the buffers may be on its way to the client; two of them when \
                      absent.",
                )
                .set(|b, args| {
                    args.fill(&mut b.level().$module.exchange.busy_buffers_size, |args| {
                        args.size().map(Some)
                    })
                }),
            Directive::new(concat!($prefix, "connect_timeout"), LEVELS, ONE)
                .syntax("time")
                .default("60s")
                .doc("How long to wait for a connection.")
                .set(|b, args| {
                    args.fill(&mut b.level().$module.exchange.connect_timeout, Args::time)
                }),
            Directive::new(concat!($prefix, "force_ranges"), LEVELS, ONE)
                .syntax("on | off")
                .default("off")
                .doc("Whether a byte range is cut out of any 200, whatever its `Accept-Ranges` says.")
                .set(|b, args| {
                    args.fill(&mut b.level().$module.exchange.force_ranges, Args::flag)
                }),
            Directive::new(concat!($prefix, "hide_header"), LEVELS, ONE)
                .syntax("field")
                .doc("A response header that is not passed on.")
                .set(|b, args| {
                    b.level().$module.exchange.hide_header.add(exchange::header_name(args))
                }),
            Directive::new(concat!($prefix, "ignore_client_abort"), LEVELS, ONE)
                .syntax("on | off")
                .default("off")
                .doc("Whether an exchange goes on when the client has gone.")
                .set(|b, args| {
                    args.fill(&mut b.level().$module.exchange.ignore_client_abort, Args::flag)
                }),
            Directive::new(concat!($prefix, "ignore_headers"), LEVELS, MANY)
                .syntax("field ...")
                .doc("Response headers that are not acted on.")
                .set(|b, args| {
                    let before = b.level().$module.exchange.ignore_headers.get().copied();
                    let headers = exchange::ignore_headers(b, args, before.unwrap_or_default())?;
                    b.level().$module.exchange.ignore_headers.set(headers);
                    Ok(())
                }),
            Directive::new(concat!($prefix, "intercept_errors"), LEVELS, ONE)
                .syntax("on | off")
                .default("off")
                .doc("Whether `error_page` applies to responses from 300 on.")
                .set(|b, args| {
                    args.fill(&mut b.level().$module.exchange.intercept_errors, Args::flag)
                }),
            Directive::new(concat!($prefix, "limit_rate"), LEVELS, ONE)
                .syntax("rate")
                .default("0")
                .doc(
                    "How many bytes of a response are read a second; 0 is no limit. Only with \
                      buffering.",
                )
                .set(|b, args| {
                    let rate = pace::Size::parse(b, args)?;
                    args.fill(&mut b.level().$module.exchange.limit_rate, |_| Ok(rate))
                }),
            Directive::new(concat!($prefix, "max_temp_file_size"), LEVELS, ONE)
                .syntax("size")
                .default("1024m")
                .doc("How much of a response may go to a temporary file; 0 is none.")
                .set(|b, args| {
                    args.fill(&mut b.level().$module.exchange.max_temp_file_size, |args| {
                        args.size().map(|size| size as u64)
                    })
                }),
            Directive::new(concat!($prefix, "next_upstream"), LEVELS, MANY)
                .syntax(
                    "error | timeout | invalid_header | http_500 | http_502 | http_503 | http_504 \
                     | http_403 | http_404 | http_429 | non_idempotent | off ...",
                )
                .default("error timeout")
                .doc("When a request is passed to the next server.")
                .set(|b, args| {
                    let before = b.level().$module.exchange.next_upstream.get().copied();
                    let conditions = exchange::next_upstream(b, args, before.unwrap_or_default())?;
                    b.level().$module.exchange.next_upstream.set(conditions);
                    Ok(())
                }),
            Directive::new(concat!($prefix, "next_upstream_timeout"), LEVELS, ONE)
                .syntax("time")
                .default("0")
                .doc("How long servers are tried; 0 is no limit.")
                .set(|b, args| {
                    args.fill(&mut b.level().$module.exchange.next_upstream_timeout, Args::time)
                }),
            Directive::new(concat!($prefix, "next_upstream_tries"), LEVELS, ONE)
                .syntax("number")
                .default("0")
                .doc("How many servers are tried; 0 is all.")
                .set(|b, args| {
                    args.fill(&mut b.level().$module.exchange.next_upstream_tries, Args::number)
                }),
            Directive::new(concat!($prefix, "pass_header"), LEVELS, ONE)
                .syntax("field")
                .doc("A response header that is passed on although it is hidden by default.")
                .set(|b, args| {
                    b.level().$module.exchange.pass_header.add(exchange::header_name(args))
                }),
            Directive::new(concat!($prefix, "pass_request_body"), LEVELS, ONE)
                .syntax("on | off")
                .default("on")
                .doc("Whether the request's body is sent on.")
                .set(|b, args| {
                    args.fill(&mut b.level().$module.exchange.pass_request_body, Args::flag)
                }),
            Directive::new(concat!($prefix, "pass_request_headers"), LEVELS, ONE)
                .syntax("on | off")
                .default("on")
                .doc("Whether the request's headers are sent on.")
                .set(|b, args| {
                    args.fill(&mut b.level().$module.exchange.pass_request_headers, Args::flag)
                }),
            Directive::new(concat!($prefix, "read_timeout"), LEVELS, ONE)
                .syntax("time")
                .default("60s")
                .doc("How long to wait for a response head, and between two reads.")
                .set(|b, args| args.fill(&mut b.level().$module.exchange.read_timeout, Args::time)),
            Directive::new(concat!($prefix, "request_buffering"), LEVELS, ONE)
                .syntax("on | off")
                .default("on")
                .doc("Whether a request body is read whole before a server is contacted.")
                .set(|b, args| {
                    args.fill(&mut b.level().$module.exchange.request_buffering, Args::flag)
                }),
            Directive::new(concat!($prefix, "send_timeout"), LEVELS, ONE)
                .syntax("time")
                .default("60s")
                .doc("How long to wait between two writes.")
                .set(|b, args| args.fill(&mut b.level().$module.exchange.send_timeout, Args::time)),
            Directive::new(concat!($prefix, "socket_keepalive"), LEVELS, ONE)
                .syntax("on | off")
                .default("off")
                .doc("Whether TCP probes idle connections.")
                .set(|b, args| {
                    args.fill(&mut b.level().$module.exchange.socket_keepalive, Args::flag)
                }),
            Directive::new(concat!($prefix, "socket_rcvbuf"), LEVELS, ONE)
                .syntax("size")
                .doc("The receive buffer (SO_RCVBUF) of sockets to servers; the system's when absent.")
                .set(|b, args| {
                    args.fill(&mut b.level().$module.exchange.socket_rcvbuf, |args| {
                        args.size().map(Some)
                    })
                }),
            Directive::new(concat!($prefix, "socket_sndbuf"), LEVELS, ONE)
                .syntax("size")
                .doc("The send buffer (SO_SNDBUF) of sockets to servers; the system's when absent.")
                .set(|b, args| {
                    args.fill(&mut b.level().$module.exchange.socket_sndbuf, |args| {
                        args.size().map(Some)
                    })
                }),
            Directive::new(concat!($prefix, "temp_file_write_size"), LEVELS, ONE)
                .syntax("size")
                .doc("How much is written to a temporary file at once; two buffers when absent, and 64k once there is a file.")
                .set(|b, args| {
                    args.fill(&mut b.level().$module.exchange.temp_file_write_size, |args| {
                        args.size().map(Some)
                    })
                }),
            Directive::new(concat!($prefix, "temp_path"), LEVELS, Count::Between(1, 4))
                .syntax("path [level1 [level2 [level3]]]")
                .default($temp_path)
                .doc("Where temporary files with responses are made.")
                .set(|b, args| {
                    let path = temp_path(b, args)?;
                    args.fill(&mut b.level().$module.exchange.temp_path, |_| Ok(path))
                }),
        ]
    }};
}
pub(crate) use rows;

/// `address[:port] [transparent]`, or `off`.
pub fn bind(b: &mut Build, args: Args<'_>) -> Outcome<Option<Bind>> {
    let text = args.at(0);
    if args.len() == 1 && text == "off" {
        return Ok(None);
    }
    let template = b.http.names.template(text)?;
    let address = if template.has_variables() {
        BindAddress::Template(template)
    } else {
        match local::parse(text) {
            Some(address) => BindAddress::Fixed { address, text: text.into() },
            None => return fault!("invalid address \"{text}\""),
        }
    };
    let is_transparent = match args.all().get(1).map(String::as_str) {
        None => false,
        Some("transparent") => true,
        Some(other) => return fault!("invalid parameter \"{other}\""),
    };
    Ok(Some(Bind { address, is_transparent }))
}

pub fn header_name(args: Args<'_>) -> Box<[u8]> {
    args.at(0).to_ascii_lowercase().into_bytes().into()
}

const NEXT_UPSTREAM: [(&str, NextUpstream); 13] = [
    ("error", NextUpstream::ERROR),
    ("timeout", NextUpstream::TIMEOUT),
    ("invalid_header", NextUpstream::INVALID_HEADER),
    ("non_idempotent", NextUpstream::NON_IDEMPOTENT),
    ("http_500", NextUpstream::HTTP_500),
    ("http_502", NextUpstream::HTTP_502),
    ("http_503", NextUpstream::HTTP_503),
    ("http_504", NextUpstream::HTTP_504),
    ("http_403", NextUpstream::HTTP_403),
    ("http_404", NextUpstream::HTTP_404),
    ("http_429", NextUpstream::HTTP_429),
    ("updating", NextUpstream::UPDATING),
    ("off", NextUpstream::OFF),
];

const IGNORE_HEADERS: [(&str, IgnoreHeaders); 9] = [
    ("X-Accel-Redirect", IgnoreHeaders::X_ACCEL_REDIRECT),
    ("X-Accel-Expires", IgnoreHeaders::X_ACCEL_EXPIRES),
    ("X-Accel-Limit-Rate", IgnoreHeaders::X_ACCEL_LIMIT_RATE),
    ("X-Accel-Buffering", IgnoreHeaders::X_ACCEL_BUFFERING),
    ("X-Accel-Charset", IgnoreHeaders::X_ACCEL_CHARSET),
    ("Expires", IgnoreHeaders::EXPIRES),
    ("Cache-Control", IgnoreHeaders::CACHE_CONTROL),
    ("Set-Cookie", IgnoreHeaders::SET_COOKIE),
    ("Vary", IgnoreHeaders::VARY),
];

pub fn next_upstream(b: &mut Build, args: Args<'_>, before: NextUpstream) -> Outcome<NextUpstream> {
    let words = NEXT_UPSTREAM.map(|(word, bit)| (word, bit.0));
    bits(b, args, &words, before.0).map(NextUpstream)
}

pub fn ignore_headers(
    b: &mut Build,
    args: Args<'_>,
    before: IgnoreHeaders,
) -> Outcome<IgnoreHeaders> {
    let words = IGNORE_HEADERS.map(|(word, bit)| (word, bit.0));
    bits(b, args, &words, before.0).map(IgnoreHeaders)
}

/// Adds words to a set, which may be done in several lines; one that is repeated gets a warning.
pub fn bits(b: &mut Build, args: Args<'_>, words: &[(&str, u16)], before: u16) -> Outcome<u16> {
    let mut bits = before;
    for word in args.all() {
        let bit = crate::config::value::choice(word, words)?;
        if bits & bit != 0 {
            b.warn(Some(args.place()), format!("duplicate value \"{word}\""));
        }
        bits |= bit;
    }
    Ok(bits)
}

impl Settings {
    fn largest_buffer(&self) -> usize {
        self.buffers.size.max(*self.buffer_size)
    }

    /// `*_busy_buffers_size`: bytes that may be on their way to the client.
    pub fn busy_size(&self) -> usize {
        self.busy_buffers_size.unwrap_or(self.largest_buffer().saturating_mul(2))
    }

    /// `*_temp_file_write_size`: bytes written to a temporary file at once.
    pub fn write_size(&self) -> usize {
        self.temp_file_write_size.unwrap_or(self.largest_buffer().saturating_mul(2))
    }

    /// The same for what follows once there is a file.
    pub fn spill_size(&self) -> usize {
        self.temp_file_write_size.unwrap_or(self.write_size().max(PIECE_MAX))
    }

    /// Sizes that follow from others when absent, and sets that are empty then.
    pub fn fill_absent(&mut self) {
        self.busy_buffers_size = Setting::of(None);
        self.temp_file_write_size = Setting::of(None);
        self.socket_rcvbuf = Setting::of(None);
        self.socket_sndbuf = Setting::of(None);
        self.ignore_headers = Setting::of(IgnoreHeaders::default());
    }

    /// Checks the sizes of a complete level against each other, and makes the list of hidden
    /// headers out of the family's own (lower case) and the level's.
    pub fn finish(&mut self, family: &str, hidden: &[&str]) -> Outcome {
        let buffers = *self.buffers;
        if buffers.number < 2 {
            return fault!("there must be at least 2 \"{family}_buffers\"");
        }
        let largest = self.largest_buffer();
        let at_least = format!(
            "must be equal to or greater than the maximum of the value of \"{family}_buffer_size\" \
             and one of the \"{family}_buffers\""
        );
        let busy = self.busy_size();
        if busy < largest {
            return fault!("\"{family}_busy_buffers_size\" {at_least}");
        }
        if busy > buffers.number.saturating_sub(1).saturating_mul(buffers.size) {
            return fault!(
                "\"{family}_busy_buffers_size\" must be less than the size of all \
                 \"{family}_buffers\" minus one buffer"
            );
        }
        if self.write_size() < largest {
            return fault!("\"{family}_temp_file_write_size\" {at_least}");
        }
        let max = *self.max_temp_file_size;
        if max != 0 && max < largest as u64 {
            return Err(Fault::new(format!(
                "\"{family}_max_temp_file_size\" must be equal to zero to disable temporary files \
                 usage or {at_least}"
            )));
        }
        let mut names: Vec<Box<[u8]>> = hidden.iter().map(|name| name.as_bytes().into()).collect();
        names.extend(self.hide_header.iter().cloned());
        names.retain(|name| !self.pass_header.contains(name));
        names.sort();
        names.dedup();
        self.hidden = names.into();
        Ok(())
    }
}
