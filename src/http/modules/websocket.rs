//! The websocket module: what may become a tunnel, and how a tunnel lives and ends. nginx has no such
//! module: it builds a tunnel on any 101 and never looks into it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::diagnostic::{Outcome, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::setting::{List, Setting, inherit};
use crate::config::value::{Args, milliseconds};
use crate::http1::is_token;
use crate::modules::Build;

#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `websocket`: a request for a WebSocket goes out as one without further lines.
    pub enabled: Setting<bool>,
    /// `websocket_strict`: both sides of the handshake must be as RFC 6455 says.
    pub strict: Setting<bool>,
    /// `websocket_idle_timeout`; `None`: off.
    pub idle_timeout: Setting<Option<IdleTimeout>>,
    /// `websocket_metrics`
    pub metrics: Setting<bool>,
    /// `websocket_close_spread`; `None`: a graceful quit leaves tunnels alone.
    pub close_spread: Setting<Option<Duration>>,
    /// `proxy_upgrade_allow`: names of protocols in lower case.
    pub upgrade_allow: List<Box<str>>,
    /// `proxy_half_close`
    pub half_close: Setting<bool>,
}

/// `websocket_idle_timeout time [data | any];`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdleTimeout {
    /// Never zero.
    pub time: Duration,
    pub counts: IdleCounts,
}

/// Which frames show that a tunnel is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdleCounts {
    /// Text, binary and their continuations: pings and pongs alone do not keep a tunnel open.
    Data,
    Any,
}

impl Settings {
    pub fn inherit(&mut self, outer: &Self) {
        inherit!(
            self,
            outer: enabled,
            strict,
            idle_timeout,
            metrics,
            close_spread,
            upgrade_allow,
            half_close
        );
    }
}

const LEVELS: Contexts = Contexts::HTTP_SERVER_LOCATION;
const ONE: Count = Count::Exactly(1);
const NOT_IN_NGINX: &str = "nginx does not have it.";

pub const DIRECTIVES: &[Directive<Build>] = &[
    Directive::new("websocket", LEVELS, ONE)
        .syntax("on | off")
        .default("off")
        .doc(
            "A request with `Upgrade: websocket` goes to the server of `proxy_pass` as HTTP/1.1 with \
             `Upgrade: websocket` and `Connection: upgrade`, whatever `proxy_http_version` is. A \
             `proxy_set_header` line for either that has a value stands. Other requests are as \
             without it, and so are those of `uwsgi_pass`, where nothing needs to be said.",
        )
        .differs(NOT_IN_NGINX)
        .set(|b, args| args.fill(&mut b.level().websocket.enabled, Args::flag)),
    Directive::new("websocket_strict", LEVELS, ONE)
        .syntax("on | off")
        .default("on")
        .doc(
            "Whether a WebSocket handshake must be one (RFC 6455, sections 4.2.1 and 4.2.2): a \
             request without a valid version and key is answered 400, a 101 that does not accept \
             that key becomes a 502.",
        )
        .differs(NOT_IN_NGINX)
        .set(|b, args| args.fill(&mut b.level().websocket.strict, Args::flag)),
    Directive::new("websocket_idle_timeout", LEVELS, Count::Between(1, 2))
        .syntax("time [data | any] | off")
        .default("off")
        .doc(
            "A WebSocket on which no frame has begun for so long is closed in good order. With \
             `data`, pings and pongs do not count.",
        )
        .differs(NOT_IN_NGINX)
        .set(|b, args| args.fill(&mut b.level().websocket.idle_timeout, idle_timeout)),
    Directive::new("websocket_metrics", LEVELS, ONE)
        .syntax("on | off")
        .default("off")
        .doc("Whether the frames of WebSockets are counted.")
        .differs(NOT_IN_NGINX)
        .set(|b, args| args.fill(&mut b.level().websocket.metrics, Args::flag)),
    Directive::new("websocket_close_spread", LEVELS, ONE)
        .syntax("time | off")
        .default("10s")
        .doc(
            "On a graceful quit WebSockets are sent Close frames, spread over this time so that not \
             all clients come back at once; with `off` they are left alone until they end or \
             `worker_shutdown_timeout` is over.",
        )
        .differs(NOT_IN_NGINX)
        .set(|b, args| {
            args.fill(&mut b.level().websocket.close_spread, |args| match args.at(0) {
                "off" => Ok(None),
                _ => args.time().map(Some),
            })
        }),
    Directive::new("proxy_upgrade_allow", LEVELS, Count::AtLeast(1))
        .syntax("protocol ...")
        .doc(
            "Protocols that may be tunnelled although they are refused by default, because a \
             connection that speaks them takes requests past every rule of this configuration: \
             `h2c`, `h2`, their drafts (`h2c-14`), `TLS`. Each by its own name, without a version.",
        )
        .differs(NOT_IN_NGINX)
        .set(upgrade_allow),
    Directive::new("proxy_half_close", LEVELS, ONE)
        .syntax("on | off")
        .default("on")
        .doc(
            "What the end of one side of a tunnel does: with `on` it is passed on and the other \
             direction goes on, with `off` both are closed.",
        )
        .differs("nginx has it for `stream` alone; in `http` it behaves as with `off`.")
        .set(|b, args| args.fill(&mut b.level().websocket.half_close, Args::flag)),
];

fn idle_timeout(args: Args<'_>) -> Outcome<Option<IdleTimeout>> {
    if args.at(0) == "off" {
        return match args.all() {
            [_, more] => fault!("invalid parameter \"{more}\""),
            _ => Ok(None),
        };
    }
    let counts = match args.all().get(1).map(String::as_str) {
        None | Some("any") => IdleCounts::Any,
        Some("data") => IdleCounts::Data,
        Some(other) => return fault!("invalid parameter \"{other}\""),
    };
    let time = milliseconds(args.at(0)).filter(|time| !time.is_zero());
    time.map(|time| Some(IdleTimeout { time, counts })).ok_or_else(|| args.invalid_value())
}

fn upgrade_allow(b: &mut Build, args: Args<'_>) -> Outcome {
    for name in args.all() {
        if name.is_empty() || !name.bytes().all(is_token) {
            return fault!("invalid protocol \"{name}\"");
        }
        b.level().websocket.upgrade_allow.add(name.to_ascii_lowercase().into())?;
    }
    Ok(())
}
