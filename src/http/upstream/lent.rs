//! Idle upstream connections that shards lend each other (`tunnel_rebalance`): one that its shard has not
//! needed for a while lies where any shard finds it that would otherwise connect.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::exchange::Family;
use super::pool::Use;
use crate::http::modules::upstream::PeerAddress;
use crate::http::server::LocationId;
use crate::io::stream::is_quiet;

/// The connections of one upstream that are lent. Locked only where there are some.
#[derive(Debug, Default)]
pub struct Lent {
    count: AtomicUsize,
    shelf: Mutex<Shelf>,
}

#[derive(Debug, Default)]
struct Shelf {
    /// The one idle longest first.
    connections: Vec<LentConnection>,
    swept_ms: u64,
    /// Of those that are being looked at, and not here meanwhile.
    out: usize,
}

/// A location that keeps its connections to itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    pub id: LocationId,
    pub name: Arc<str>,
}

/// A connection that belongs to no shard at the moment. The times are those of
/// [`crate::io::timer::now_ms`], which all shards have in common.
#[derive(Debug)]
pub struct LentConnection {
    pub socket: OwnedFd,
    pub address: PeerAddress,
    pub family: Family,
    /// With `local`: the location that alone may use it, in any configuration that has it at the same
    /// place.
    pub local: Option<Local>,
    /// Requests that it has carried.
    pub requests: u64,
    pub opened_ms: u64,
    /// When it is no longer good.
    pub until_ms: u64,
    /// The shard in whose place it counts among the `keepalive` connections.
    pub lender: usize,
}

impl Lent {
    /// Between two looks at what lies there, whichever shard looks.
    const SWEEP: Duration = Duration::from_secs(1);

    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn with<T>(&self, use_it: impl FnOnce(&mut Shelf) -> T) -> T {
        let mut shelf: MutexGuard<'_, Shelf> =
            self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        let result = use_it(&mut shelf);
        self.count.store(shelf.connections.len().saturating_add(shelf.out), Ordering::Relaxed);
        result
    }

    /// Lends one.
    pub fn put(&self, connection: LentConnection) {
        self.with(|shelf| shelf.connections.push(connection));
    }

    /// The one for this address that was needed last.
    pub fn take(&self, wanted: Use<'_>, is_local: bool, now_ms: u64) -> Option<LentConnection> {
        if self.count() == 0 {
            return None;
        }
        let is_its =
            |local: &Local| local.id == wanted.location && local.name == *wanted.location_name;
        self.with(|shelf| {
            let serves = |lent: &LentConnection| {
                lent.address == *wanted.address
                    && lent.family == wanted.family
                    && (!is_local || lent.local.as_ref().is_some_and(is_its))
                    && now_ms < lent.until_ms
            };
            let at = shelf.connections.iter().rposition(serves)?;
            Some(shelf.connections.remove(at))
        })
    }

    /// Closes what this shard has lent beyond so many; how many are left of it, at most.
    pub fn keep_most(&self, lender: usize, most: usize) -> usize {
        if self.count() == 0 {
            return 0;
        }
        let is_its = |lent: &LentConnection| lent.lender == lender;
        let (own, out, _closed) = self.with(|shelf| {
            let own = shelf.connections.iter().filter(|lent| is_its(lent)).count();
            let mut over = own.saturating_sub(most);
            let goes = |lent: &mut LentConnection| {
                let goes = over > 0 && is_its(lent);
                over = over.saturating_sub(usize::from(goes));
                goes
            };
            let closed: Vec<_> = shelf.connections.extract_if(.., goes).collect();
            (own, shelf.out, closed)
        });
        own.min(most).saturating_add(out)
    }

    /// Closes what has been idle too long or was closed by its server; how many of these are uwsgi
    /// connections that have carried one request. Meanwhile the others find nothing, and need not wait.
    pub fn sweep(&self, now_ms: u64) -> u32 {
        if self.count() == 0 {
            return 0;
        }
        let mut connections = self.with(|shelf| {
            let passed_ms = now_ms.saturating_sub(shelf.swept_ms);
            if u128::from(passed_ms) < Self::SWEEP.as_millis() {
                return Vec::new();
            }
            shelf.swept_ms = now_ms;
            shelf.out = shelf.connections.len();
            std::mem::take(&mut shelf.connections)
        });
        if connections.is_empty() {
            return 0;
        }
        let mut closed = 0_u32;
        connections.retain(|lent| {
            let is_open = is_quiet(lent.socket.as_fd());
            if !is_open && lent.family == Family::Uwsgi && lent.requests == 1 {
                closed = closed.saturating_add(1);
            }
            is_open && now_ms < lent.until_ms
        });
        self.with(|shelf| {
            shelf.out = 0;
            shelf.connections.splice(..0, connections).for_each(drop);
        });
        closed
    }

    /// Closes all: nobody is left to use them.
    pub fn clear(&self) {
        drop(self.with(|shelf| std::mem::take(&mut shelf.connections)));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn address(port: u16) -> PeerAddress {
        PeerAddress::Inet(([127, 0, 0, 1], port).into())
    }

    /// With the server's end.
    fn lent(port: u16, lender: usize, requests: u64) -> (LentConnection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (socket, address, family) = (ours.into(), address(port), Family::Proxy);
        let lent = LentConnection {
            socket,
            address,
            family,
            local: None,
            requests,
            opened_ms: 0,
            until_ms: 1000,
            lender,
        };
        (lent, theirs)
    }

    fn take(shelf: &Lent, port: u16, family: Family, now_ms: u64) -> Option<u64> {
        shelf
            .take(wanted(&address(port), family, &"/".into()), false, now_ms)
            .map(|lent| lent.requests)
    }

    fn wanted<'a>(address: &'a PeerAddress, family: Family, name: &'a Arc<str>) -> Use<'a> {
        Use { address, family, location: LocationId(1), location_name: name }
    }

    #[test]
    fn a_location_gets_its_own_alone() {
        let shelf = Lent::default();
        let put = |id, name: &str| {
            let (connection, server) = lent(80, 0, 1);
            let local = Some(Local { id: LocationId(id), name: name.into() });
            shelf.put(LentConnection { local, ..connection });
            server
        };
        let _servers = [put(2, "/"), put(1, "/moved"), put(1, "/")];
        let take = || {
            let (address, name) = (address(80), "/".into());
            let taken = shelf.take(wanted(&address, Family::Proxy, &name), true, 0)?;
            Some((taken.local?.id.0, shelf.count()))
        };
        assert_eq!([take(), take()], [Some((1, 2)), None]);
    }

    #[test]
    fn the_last_of_the_address_is_taken_first() {
        let shelf = Lent::default();
        let _servers: Vec<_> = [(80, 1), (81, 2), (80, 3)]
            .map(|(port, requests)| {
                let (connection, server) = lent(port, 0, requests);
                shelf.put(connection);
                server
            })
            .into();
        assert_eq!(take(&shelf, 82, Family::Proxy, 0), None);
        assert_eq!(take(&shelf, 80, Family::Uwsgi, 0), None);
        assert_eq!(take(&shelf, 80, Family::Proxy, 1000), None);
        assert_eq!(take(&shelf, 80, Family::Proxy, 999), Some(3));
        assert_eq!(take(&shelf, 80, Family::Proxy, 0), Some(1));
        assert_eq!((take(&shelf, 80, Family::Proxy, 0), shelf.count()), (None, 1));
    }

    #[test]
    fn each_shard_has_its_own_limit() {
        let shelf = Lent::default();
        let _servers: Vec<_> = [(0, 1), (1, 2), (0, 3), (0, 4)]
            .map(|(lender, requests)| {
                let (connection, server) = lent(80, lender, requests);
                shelf.put(connection);
                server
            })
            .into();
        let kept = [(0, 4), (1, 1), (2, 0)].map(|(lender, most)| shelf.keep_most(lender, most));
        assert_eq!((kept, shelf.count()), ([3, 1, 0], 4));
        assert_eq!((shelf.keep_most(0, 1), shelf.count()), (1, 2));
        let left = [(); 3].map(|()| take(&shelf, 80, Family::Proxy, 0));
        assert_eq!(left, [Some(4), Some(2), None]);
    }

    #[test]
    fn what_is_closed_or_too_old_is_swept() {
        let shelf = Lent::default();
        let put = |requests, until_ms| {
            let (connection, server) = lent(80, 0, requests);
            shelf.put(LentConnection { until_ms, ..connection });
            server
        };
        let servers = [put(1, 9000), put(2, 9000), put(3, 1500)];
        shelf.sweep(1000);
        assert_eq!(shelf.count(), 3);
        let [_first, closed, _third] = servers;
        drop(closed);
        shelf.sweep(1999);
        assert_eq!(shelf.count(), 3, "some shard has just looked");
        assert_eq!(shelf.sweep(2000), 0, "HTTP servers are not on trial");
        assert_eq!((shelf.count(), take(&shelf, 80, Family::Proxy, 2000)), (1, Some(1)));
    }
}
