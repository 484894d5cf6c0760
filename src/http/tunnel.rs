//! After a 101: bytes both ways until both sides have ended (proxy, section 10).
//!
//! The two sockets leave the HTTP code: connection, request, buffers and the configuration they
//! came under are let go, and what stays of them is a [`Ending`], prepared for the last log lines.
//! The shard's [`engine`] carries the bytes.

pub mod carry;
pub mod engine;
pub mod flow;
pub mod frame;
pub mod handshake;
pub mod metrics;
pub mod parcel;
pub mod pipe;
pub mod rebalance;
pub mod record;
pub mod wheel;

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use carry::{End, Limits, Tunnel};
use handshake::Asked;
use metrics::Side;
use record::{Ended, Record};

use super::action::Action;
use super::close::Close;
use super::connection::Connection;
use super::count;
use super::modules::exchange::Settings;
use super::modules::websocket;
use super::request::Request;
use super::upstream::exchange::Family;
use super::upstream::head;
use super::upstream::peer::Active;
use crate::error_log::Level;
use crate::http1::framing::BodyLength;
use crate::io::{Buffer, Stream};
use crate::shard::Shard;

/// A tunnel that is to be: all of it but the client's socket.
pub struct Opening {
    upstream: OwnedFd,
    limits: Limits,
    /// What the client sent behind its head: the tunnel's first bytes.
    first: Buffer,
    /// What the upstream sent behind its head, which has been passed on.
    behind_head: Buffer,
    /// The bytes are WebSocket frames and somebody asks for them.
    follows: bool,
    metrics: bool,
    ending: Ending,
}

/// What is left to do when a tunnel ends.
pub struct Ending {
    record: Record,
    server: Server,
}

/// The upstream server of a tunnel.
pub struct Server {
    /// The name of its upstream, and its own as `$upstream_addr` shows it.
    pub upstream: Arc<str>,
    pub name: Arc<str>,
    /// It has a connection less when this is dropped. Nothing where the configuration does not know
    /// it any more.
    pub active: Option<Active>,
}

/// Sends the 101 on and gives the sockets to the shard's engine: the connection ends with
/// [`Close::Tunnelled`], or with what went wrong.
pub async fn open(
    c: &Connection,
    r: &mut Request,
    upstream: Stream,
    settings: &Settings,
    server: Server,
) -> Close {
    let family = c.exchange.get().map_or(Family::Proxy, |exchange| exchange.family);
    let generation = Rc::clone(&r.generation);
    let location = generation.http().location(r.location);
    r.keepalive = false;
    head::put_head(c, r, family, location, BodyLength::None);
    if *location.settings.core.tcp_nodelay {
        c.stream.set_nodelay();
        upstream.set_nodelay();
    }

    c.action.set(Action::ProxyingUpgraded);
    // Head and whatever the upstream sent right behind it go out together.
    let mut behind_head = Buffer::empty();
    // Its head could not be made, and has become an error's.
    let is_refused = r.response.status == 500 && r.response.status_override.is_none();
    if is_refused {
        r.upstream_bytes.truncate(r.upstream_head_len);
    }
    behind_head.extend(r.behind_upstream_head());
    let head_len = r.response.head.len() as u64;
    let mut slices = [IoSlice::new(&r.response.head), IoSlice::new(behind_head.as_slice())];
    let (sent, result) = c.stream.send_all(&mut slices, *location.settings.core.send_timeout).await;
    r.response.head_sent = true;
    count::add(&mut r.response.head_bytes, head_len.min(sent));
    count::add(&mut r.response.bytes_sent, sent);
    if let Err(failure) = result {
        return failure.into();
    }
    if is_refused {
        return Close::Orderly;
    }

    let mut first = Buffer::empty();
    first.extend(r.behind_head());
    r.buffer.truncate(r.head_len);
    let websocket = &location.settings.websocket;
    let is_websocket = r.message.asked() == Asked::WebSocket;
    let upstream = match upstream.into_fd() {
        Ok(upstream) => upstream,
        Err(e) => return Close::Io(e),
    };
    Close::Tunnelled(Box::new(Opening {
        upstream,
        limits: Limits {
            silence_ms: settings.read_timeout.as_millis() as u64,
            untaken_ms: [
                location.settings.core.send_timeout.as_millis() as u64,
                settings.send_timeout.as_millis() as u64,
            ],
            idle: websocket.idle_timeout.filter(|_| is_websocket),
            answer_ms: location.settings.core.lingering_timeout.as_millis() as u64,
            close_spread_ms: websocket
                .close_spread
                .filter(|_| is_websocket)
                .map(|spread| spread.as_millis() as u64),
            half_close: *websocket.half_close,
            reset_timedout: *location.settings.core.reset_timedout_connection,
        },
        first,
        behind_head,
        follows: is_websocket && follows(websocket),
        metrics: is_websocket && *websocket.metrics,
        ending: Ending { record: Record::new(c, r), server },
    }))
}

/// Whether anything asks for the frames: their headers are only read then.
fn follows(settings: &websocket::Settings) -> bool {
    *settings.metrics || settings.close_spread.is_some() || settings.idle_timeout.is_some()
}

impl Ending {
    /// The log lines of a tunnel that has ended.
    fn log(&self, shard: &Shard, tunnel: &Tunnel, end: &End) {
        self.log_error(shard, end);
        let client = tunnel.socket(Side::Client);
        if let End::NotTaken(Side::Client) = end
            && tunnel.limits.reset_timedout
        {
            let linger = Some(std::time::Duration::ZERO);
            let _ = rustix::net::sockopt::set_socket_linger(client, linger);
        }
        let to_client = tunnel.bytes_from(Side::Upstream);
        self.record.write_access(
            &shard.access_logs,
            &Ended {
                to_client,
                from_upstream: to_client,
                to_upstream: tunnel.bytes_from(Side::Client),
                complete: match end {
                    End::Finished | End::Silent | End::NotTaken(Side::Upstream) | End::Closed => {
                        true
                    }
                    // A reset is an end like another, for who has said what it had to say.
                    End::Failed { call, .. } => *call == carry::RECEIVING,
                    End::NotTaken(Side::Client) | End::Interrupted | End::Panicked(_) => false,
                },
                client,
                websocket: tunnel.metrics(),
            },
        );
    }

    /// In nginx's words, where nginx has some.
    fn log_error(&self, shard: &Shard, end: &End) {
        let record = &self.record;
        let timed_out = "upstream timed out (110: Connection timed out)";
        match end {
            End::Finished | End::Closed | End::Interrupted => {}
            End::Silent | End::NotTaken(Side::Upstream) => {
                record.log(Level::Info, format_args!("{timed_out}"), None);
            }
            End::NotTaken(Side::Client) => {
                let text = "client timed out (110: Connection timed out)";
                record.log(Level::Info, format_args!("{text}"), None);
            }
            End::Failed { side, call, error } => {
                let level = match side {
                    Side::Client => Level::Info,
                    Side::Upstream => Level::Error,
                };
                record.log(level, format_args!("{call} failed"), error.raw_os_error());
            }
            End::Panicked(text) => {
                shard.counters.panics.add(1);
                record.log(Level::Alert, format_args!("panic in a tunnel: {text}"), None);
            }
        }
    }
}

impl std::fmt::Debug for Opening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opening")
    }
}
