//! After a 101: bytes both ways until both sides have ended (proxy, section 10).
//!
//! Each direction receives into the shard's one scratch buffer and sends at once; only what the
//! other side does not take is kept, and then nothing more is read until it is gone. An end of one
//! side is passed on to the other, and the other direction goes on.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::time::Duration;

use super::action::Action;
use super::close::Close;
use super::connection::Connection;
use super::modules::exchange::Settings;
use super::request::Request;
use super::upstream::exchange::Family;
use super::upstream::relay;
use crate::error_log::Level;
use crate::http1::framing::BodyLength;
use crate::io::select::{Either, either, yield_now};
use crate::io::timer::{Expired, Timer, Wait};
use crate::io::{Buffer, Stream, timer};

/// Bytes moved at once.
const SCRATCH: usize = 64 << 10;
/// Full scratch buffers that one direction moves before others have their turn.
const BUDGET: usize = 16;

thread_local! {
    static SCRATCH_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
}

/// What a tunnel has carried, and when last.
#[derive(Debug)]
struct Traffic {
    to_client: Cell<u64>,
    to_upstream: Cell<u64>,
    active_ms: Cell<u64>,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ToUpstream,
    ToClient,
}

/// How a tunnel ends before both sides have closed it.
#[derive(Debug)]
enum End {
    Failed {
        reading_from: Way,
        error: io::Error,
    },
    /// Nothing moved either way.
    TimedOut,
    /// The side that this way leads to took nothing of what waited for it.
    NotTaken(Way),
    Interrupted,
}

/// How long a tunnel waits.
#[derive(Debug)]
struct Limits {
    /// `*_read_timeout`
    silence: Duration,
    /// `send_timeout`
    to_client: Duration,
    /// `*_send_timeout`
    to_upstream: Duration,
}

/// Sends the 101 on and carries bytes until the end. The request is logged by the caller.
pub async fn run(
    c: &Connection,
    r: &mut Request,
    upstream: &Stream,
    settings: &Settings,
) -> Result<(), Close> {
    let family = c.exchange.get().unwrap_or(Family::Proxy);
    let generation = std::rc::Rc::clone(&r.generation);
    let location = generation.http().location(r.location);
    r.keepalive = false;
    relay::put_head(c, r, family, location, BodyLength::None);
    if *location.settings.core.tcp_nodelay {
        c.stream.set_nodelay();
        upstream.set_nodelay();
    }

    // Head and whatever the upstream sent right behind it go out together.
    let ahead = std::mem::take(&mut r.upstream_bytes);
    let behind_head = &ahead.as_slice()[r.upstream_head_len..];
    let send_timeout = *location.settings.core.send_timeout;
    let head_len = r.response.head.len() as u64;
    let mut slices = [IoSlice::new(&r.response.head), IoSlice::new(behind_head)];
    let (sent, result) = c.stream.send_all(&mut slices, send_timeout).await;
    r.response.head_sent = true;
    r.response.head_bytes += head_len.min(sent);
    r.response.bytes_sent += sent;
    result?;
    drop(ahead);

    c.action.set(Action::ProxyingUpgraded);
    // What the client sent behind its head is the tunnel's first bytes.
    let first = r.buffer.as_slice()[r.head_len..].to_vec();
    r.buffer.truncate(r.head_len);

    let traffic = Traffic {
        to_client: Cell::new(0),
        to_upstream: Cell::new(0),
        active_ms: Cell::new(timer::now_ms()),
    };
    let limits = Limits {
        silence: *settings.read_timeout,
        to_client: send_timeout,
        to_upstream: *settings.send_timeout,
    };
    let end = carry(c, upstream, first, &traffic, &limits).await;
    r.response.bytes_sent += traffic.to_client.get();
    if let Some(attempt) = r.attempts.last_mut() {
        attempt.bytes_received += traffic.to_client.get();
        attempt.bytes_sent += traffic.to_upstream.get();
    }
    match end {
        Ok(()) => r.response.complete = true,
        Err(End::TimedOut) => {
            r.response.complete = true;
            let text = format_args!("upstream timed out (110: Connection timed out)");
            c.log(r, Level::Info, text);
        }
        Err(End::NotTaken(Way::ToUpstream)) => {
            let text = format_args!("upstream timed out (110: Connection timed out)");
            c.log(r, Level::Info, text);
        }
        Err(End::NotTaken(Way::ToClient)) => return Err(Close::ClientTimedOut),
        Err(End::Failed { error, reading_from }) => {
            let level = match reading_from {
                Way::ToUpstream => Level::Info,
                Way::ToClient => Level::Error,
            };
            c.log_errno(r, level, format_args!("recv() failed"), &error);
        }
        Err(End::Interrupted) => return Err(Close::Interrupted),
    }
    Ok(())
}

async fn carry(
    c: &Connection,
    upstream: &Stream,
    first: Vec<u8>,
    traffic: &Traffic,
    limits: &Limits,
) -> Result<(), End> {
    let to_upstream = async {
        send(upstream, &first, traffic, Way::ToUpstream, limits).await?;
        drop(first);
        direction(&c.stream, upstream, traffic, Way::ToUpstream, limits).await
    };
    let to_client = direction(upstream, &c.stream, traffic, Way::ToClient, limits);
    let both = both(to_upstream, to_client);
    match either(both, until_silent(&c.stream, traffic, limits.silence)).await {
        Either::First(ended) => ended,
        Either::Second(end) => Err(end),
    }
}

/// Runs two directions until both are done or one has failed.
async fn both(
    a: impl Future<Output = Result<(), End>>,
    b: impl Future<Output = Result<(), End>>,
) -> Result<(), End> {
    let mut a = std::pin::pin!(a);
    let mut b = std::pin::pin!(b);
    match either(a.as_mut(), b.as_mut()).await {
        Either::First(ended) => {
            ended?;
            b.await
        }
        Either::Second(ended) => {
            ended?;
            a.await
        }
    }
}

/// Ends when nothing has moved either way for the time of `proxy_read_timeout`. Activity only notes
/// the time; this looks when the earliest moment has come.
async fn until_silent(client: &Stream, traffic: &Traffic, silence: Duration) -> End {
    let silence_ms = silence.as_millis() as u64;
    loop {
        let until = traffic.active_ms.get() + silence_ms;
        let left = until.saturating_sub(timer::now_ms());
        if left == 0 {
            return End::TimedOut;
        }
        let wait = std::future::pending::<()>();
        let limit = Duration::from_millis(left);
        if let Err(Expired::Interrupted) = client.timer().within(limit, Wait::Busy, wait).await {
            return End::Interrupted;
        }
    }
}

/// One direction: until its source has ended, which is passed on.
async fn direction(
    from: &Stream,
    to: &Stream,
    traffic: &Traffic,
    way: Way,
    limits: &Limits,
) -> Result<(), End> {
    let failed = |error| End::Failed { reading_from: way, error };
    let mut full = 0;
    loop {
        match step(from, to, traffic, way) {
            Ok(Step::Moved { filled_scratch }) => {
                if !filled_scratch {
                    full = 0;
                    from.readable_unlimited().await.map_err(failed)?;
                } else if full == BUDGET {
                    full = 0;
                    yield_now().await;
                } else {
                    full += 1;
                }
            }
            Ok(Step::Blocked { kept }) => {
                full = 0;
                send(to, kept.as_slice(), traffic, way, limits).await?;
            }
            Ok(Step::Nothing) => from.readable_unlimited().await.map_err(failed)?,
            Ok(Step::End) => {
                to.shutdown_write();
                return Ok(());
            }
            Err(error) => return Err(failed(error)),
        }
    }
}

/// What one receive and send came to.
enum Step {
    Moved {
        filled_scratch: bool,
    },
    /// The other side did not take these.
    Blocked {
        kept: Buffer,
    },
    Nothing,
    End,
}

fn step(from: &Stream, to: &Stream, traffic: &Traffic, way: Way) -> io::Result<Step> {
    SCRATCH_BUFFER.with_borrow_mut(|scratch| {
        let received = match from.try_recv(scratch) {
            Ok(0) => return Ok(Step::End),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Nothing),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                return Ok(Step::Moved { filled_scratch: true });
            }
            Err(e) => return Err(e),
        };
        let bytes = &scratch[..received];
        let sent = match to.try_send(&[IoSlice::new(bytes)]) {
            Ok(sent) => sent,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(e) => return Err(e),
        };
        traffic.moved(way, sent);
        if sent == received {
            return Ok(Step::Moved { filled_scratch: received == scratch.len() });
        }
        let mut kept = Buffer::with_capacity(received - sent);
        kept.extend(&bytes[sent..]);
        Ok(Step::Blocked { kept })
    })
}

/// Sends bytes that had to wait.
async fn send(
    to: &Stream,
    mut bytes: &[u8],
    traffic: &Traffic,
    way: Way,
    limits: &Limits,
) -> Result<(), End> {
    // A timer of its own: the stream's may be in use for what comes the other way.
    let timer = Timer::new();
    let limit = match way {
        Way::ToClient => limits.to_client,
        Way::ToUpstream => limits.to_upstream,
    };
    let failed = |error| End::Failed { reading_from: way, error };
    while !bytes.is_empty() {
        match to.try_send(&[IoSlice::new(bytes)]) {
            Ok(sent) => {
                traffic.moved(way, sent);
                bytes = &bytes[sent..];
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                match timer.within(limit, Wait::Busy, to.writable_unlimited()).await {
                    Ok(writable) => writable.map_err(failed)?,
                    Err(Expired::Elapsed) => return Err(End::NotTaken(way)),
                    Err(Expired::Interrupted) => return Err(End::Interrupted),
                }
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

impl Traffic {
    fn moved(&self, way: Way, bytes: usize) {
        let counter = match way {
            Way::ToClient => &self.to_client,
            Way::ToUpstream => &self.to_upstream,
        };
        counter.set(counter.get() + bytes as u64);
        self.active_ms.set(timer::now_ms());
    }
}
