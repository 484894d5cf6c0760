//! Idle connections of one upstream on one shard (proxy, section 12): the most recently used of a
//! server is taken first, the one idle longest makes room.

use crate::http::modules::upstream::{Keepalive, PeerAddress, Upstream};
use crate::http::server::LocationId;
use crate::io::{Stream, timer};

/// A connection to an upstream server, in use or idle.
#[derive(Debug)]
pub struct UpstreamConnection {
    pub stream: Stream,
    /// Requests that it has carried, with the one under way.
    pub requests: u64,
    pub opened_ms: u64,
    /// It has carried a request before: then a failure may be the server's idle close.
    pub reused: bool,
    /// All of the request under way has been sent. An early answer to half of a request leaves a
    /// connection on which the next one would be read as the other half.
    pub request_is_sent: bool,
}

impl UpstreamConnection {
    pub fn new(stream: Stream) -> Self {
        UpstreamConnection {
            stream,
            requests: 0,
            opened_ms: timer::now_ms(),
            reused: false,
            request_is_sent: false,
        }
    }
}

#[derive(Debug)]
struct Idle {
    address: PeerAddress,
    /// The location that opened it.
    location: LocationId,
    connection: UpstreamConnection,
    since_ms: u64,
}

#[derive(Debug)]
pub struct Pool {
    keepalive: Option<Keepalive>,
    /// The one idle longest first.
    idle: Vec<Idle>,
}

impl Pool {
    pub fn new(upstream: &Upstream) -> Self {
        let keepalive = (upstream.explicit && upstream.keepalive.idle.connections > 0)
            .then_some(upstream.keepalive);
        Pool { keepalive, idle: Vec::new() }
    }

    /// Takes an idle connection to this address whose server has neither closed it nor sent anything
    /// unasked for.
    pub fn take(
        &mut self,
        address: &PeerAddress,
        location: LocationId,
    ) -> Option<UpstreamConnection> {
        let is_local = self.keepalive?.idle.is_local;
        let fits =
            |idle: &Idle| idle.address == *address && (!is_local || idle.location == location);
        loop {
            let at = self.idle.iter().rposition(fits)?;
            let mut connection = self.idle.remove(at).connection;
            if connection.stream.is_quiet() {
                connection.reused = true;
                return Some(connection);
            }
        }
    }

    /// Keeps a connection whose response was complete, unless a limit says otherwise.
    pub fn give(
        &mut self,
        address: &PeerAddress,
        location: LocationId,
        connection: UpstreamConnection,
        now_ms: u64,
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
        let address = address.clone();
        self.idle.push(Idle { address, location, connection, since_ms: now_ms });
    }

    /// Closes what has been idle too long or was closed by its server.
    pub fn sweep(&mut self, now_ms: u64) {
        let Some(keepalive) = self.keepalive else { return };
        self.idle.retain(|idle| {
            u128::from(now_ms.saturating_sub(idle.since_ms)) < keepalive.timeout.as_millis()
                && idle.connection.stream.is_quiet()
        });
    }

    /// Takes the idle connections of an earlier pool of the same upstream, as many as fit; with
    /// `local` those of the locations that are the same `still`.
    pub fn take_over(&mut self, old: &mut Pool, still: impl Fn(LocationId) -> bool) {
        let Some(keepalive) = self.keepalive else { return };
        let mut idle: Vec<Idle> = old.idle.drain(..).collect();
        if keepalive.idle.is_local {
            idle.retain(|idle| still(idle.location));
        }
        let surplus = idle.len().saturating_sub(keepalive.idle.connections);
        self.idle.extend(idle.drain(..).skip(surplus));
    }
}
