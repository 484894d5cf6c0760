//! Idle connections of one upstream on one shard (proxy, section 12): the most recently used of a
//! server is taken first, the one idle longest makes room.

use std::sync::Arc;
use std::time::Duration;

use super::exchange::Family;
use super::lent::{Lent, LentConnection, Local};
use super::trial::Trial;
use crate::http::modules::upstream::{Keepalive, PeerAddress, Upstream};
use crate::http::server::LocationId;
use crate::io::{Stream, timer};

/// How long a uwsgi connection is idle where the configuration does not say: gunicorn closes after
/// two seconds.
const UWSGI_IDLE: Duration = Duration::from_secs(1);

/// A connection to an upstream server, in use or idle.
#[derive(Debug)]
pub struct UpstreamConnection {
    pub stream: Stream,
    /// Requests that it has carried, with the one under way.
    pub requests: u64,
    pub opened_ms: u64,
    /// It has carried a request before: then a failure may be the server's idle close.
    pub reused: bool,
    pub request: RequestSent,
}

/// How much of the request under way an upstream connection has carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestSent {
    /// An early answer to half of a request leaves a connection on which whatever comes next would be
    /// read as the other half.
    Partly,
    /// All there is, but a head that announces another body than it has.
    Wholly,
    AsAnnounced,
}

impl UpstreamConnection {
    pub fn new(stream: Stream) -> Self {
        UpstreamConnection {
            stream,
            requests: 0,
            opened_ms: timer::now_ms(),
            reused: false,
            request: RequestSent::Partly,
        }
    }
}

#[derive(Debug)]
struct Idle {
    address: PeerAddress,
    family: Family,
    /// The location that opened it.
    location: LocationId,
    connection: UpstreamConnection,
    since_ms: u64,
    /// When it is no longer good.
    until_ms: u64,
}

/// What a connection is wanted for.
#[derive(Debug, Clone, Copy)]
pub struct Use<'a> {
    pub address: &'a PeerAddress,
    pub family: Family,
    pub location: LocationId,
    pub location_name: &'a Arc<str>,
}

#[derive(Debug)]
pub struct Pool {
    keepalive: Option<Keepalive>,
    /// The one idle longest first.
    idle: Vec<Idle>,
    /// At most so many count among the idle ones and are lent to other shards.
    lent_most: usize,
    /// How uwsgi servers take to being asked again.
    pub trial: Trial,
}

impl Idle {
    fn serves(&self, wanted: Use<'_>, is_local: bool) -> bool {
        self.address == *wanted.address
            && self.family == wanted.family
            && (!is_local || self.location == wanted.location)
    }
}

/// A connection that is to carry another request.
#[derive(Debug)]
pub struct Taken {
    pub connection: UpstreamConnection,
    /// The shard that had lent it.
    pub lender: Option<usize>,
}

/// One that is lent.
fn borrow(
    lent: &Lent,
    wanted: Use<'_>,
    is_local: bool,
    now_ms: u64,
) -> Option<(UpstreamConnection, Option<usize>)> {
    let lent = lent.take(wanted, is_local, now_ms)?;
    let LentConnection { socket, requests, opened_ms, lender, .. } = lent;
    let stream = Stream::new(socket).ok()?;
    let connection = UpstreamConnection { requests, opened_ms, ..UpstreamConnection::new(stream) };
    Some((connection, Some(lender)))
}

impl Pool {
    pub fn new(upstream: &Upstream) -> Self {
        let keepalive = (upstream.explicit && upstream.keepalive.idle.connections > 0)
            .then_some(upstream.keepalive);
        Pool { keepalive, idle: Vec::new(), lent_most: 0, trial: Trial::default() }
    }

    /// Whether anything is kept.
    pub fn is_on(&self) -> bool {
        self.keepalive.is_some()
    }

    /// Takes an idle connection to this address whose server has neither closed it nor sent anything
    /// unasked for: one of its own, or one that is lent, by whichever shard.
    pub fn take(&mut self, wanted: Use<'_>, now_ms: u64, lent: &Lent) -> Option<Taken> {
        let is_local = self.keepalive?.idle.is_local;
        loop {
            let (mut connection, lender) = match self.take_own(wanted, is_local, now_ms) {
                Some(connection) => (connection, None),
                None => borrow(lent, wanted, is_local, now_ms)?,
            };
            if connection.stream.is_quiet() {
                connection.reused = true;
                return Some(Taken { connection, lender });
            }
            if wanted.family == Family::Uwsgi && connection.requests == 1 {
                self.trial.was_closed();
            }
        }
    }

    fn take_own(
        &mut self,
        wanted: Use<'_>,
        is_local: bool,
        now_ms: u64,
    ) -> Option<UpstreamConnection> {
        loop {
            let at = self.idle.iter().rposition(|idle| idle.serves(wanted, is_local))?;
            let Idle { connection, until_ms, .. } = self.idle.remove(at);
            if now_ms < until_ms {
                return Some(connection);
            }
        }
    }

    /// Lends what has been idle for so long; how many those are.
    pub fn lend(
        &mut self,
        idle_ms: u64,
        now_ms: u64,
        lent: &Lent,
        lender: usize,
        name_of: impl Fn(LocationId) -> Option<Arc<str>>,
    ) -> u64 {
        let is_local = self.keepalive.is_some_and(|keepalive| keepalive.idle.is_local);
        let is_needed = |idle: &Idle| now_ms.saturating_sub(idle.since_ms) < idle_ms;
        let count = self.idle.iter().position(is_needed).unwrap_or(self.idle.len());
        let mut put = 0_usize;
        for idle in self.idle.drain(..count) {
            let Idle { address, family, location, connection, until_ms, .. } = idle;
            let own = || Some(Local { id: location, name: name_of(location)? });
            let local = is_local.then(own).flatten();
            let UpstreamConnection { stream, requests, opened_ms, .. } = connection;
            if now_ms < until_ms
                && local.is_some() == is_local
                && let Ok(socket) = stream.into_fd()
            {
                put = put.saturating_add(1);
                lent.put(LentConnection {
                    socket,
                    address,
                    family,
                    local,
                    requests,
                    opened_ms,
                    until_ms,
                    lender,
                });
            }
        }
        self.lent_most = self.lent_most.saturating_add(put);
        put as u64
    }

    /// Keeps a connection whose response was complete, unless a limit says otherwise.
    pub fn give(
        &mut self,
        of: Use<'_>,
        connection: UpstreamConnection,
        now_ms: u64,
        lent: &Lent,
        lender: usize,
    ) {
        let Some(keepalive) = self.keepalive else { return };
        let age_ms = now_ms.saturating_sub(connection.opened_ms);
        if connection.requests >= keepalive.requests
            || u128::from(age_ms) > keepalive.time.as_millis()
        {
            return;
        }
        if self.idle.len() >= keepalive.idle.connections {
            self.idle.remove(0);
        }
        let room = keepalive.idle.connections.saturating_sub(self.idle.len()).saturating_sub(1);
        if self.lent_most > room {
            self.lent_most = lent.keep_most(lender, room);
        }
        let idle = match of.family {
            Family::Uwsgi if !keepalive.has_timeout => UWSGI_IDLE.min(keepalive.timeout),
            _ => keepalive.timeout,
        };
        let until_ms = now_ms.saturating_add(idle.as_millis() as u64);
        let Use { address, family, location, .. } = of;
        let (address, since_ms) = (address.clone(), now_ms);
        self.idle.push(Idle { address, family, location, connection, since_ms, until_ms });
    }

    /// Closes all.
    pub fn clear(&mut self) {
        self.idle.clear();
    }

    /// Closes what has been idle too long or was closed by its server.
    pub fn sweep(&mut self, now_ms: u64) {
        let trial = &mut self.trial;
        self.idle.retain(|idle| {
            let is_open = idle.connection.stream.is_quiet();
            if !is_open && idle.family == Family::Uwsgi && idle.connection.requests == 1 {
                trial.was_closed();
            }
            is_open && now_ms < idle.until_ms
        });
    }

    /// Takes the idle connections of an earlier pool of the same upstream, as many as fit; with
    /// `local` those of the locations that are the same `still`.
    pub fn take_over(&mut self, old: &mut Pool, still: impl Fn(LocationId) -> bool) {
        let Some(keepalive) = self.keepalive else { return };
        self.lent_most = old.lent_most;
        let mut idle: Vec<Idle> = old.idle.drain(..).collect();
        if keepalive.idle.is_local {
            idle.retain(|idle| still(idle.location));
        }
        let surplus = idle.len().saturating_sub(keepalive.idle.connections);
        self.idle.extend(idle.drain(..).skip(surplus));
    }
}
