//! Servers whose names are looked up while running (`server name resolve`): when that is due, and
//! what becomes of the group's peers.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::{Group, Upstreams};
use crate::error_log::Level;
use crate::http::modules::upstream::{Peer, PeerAddress, ServerName, Upstream};
use crate::http::server::{Http, UpstreamId};
use crate::io::timer;
use crate::resolver::{Endpoint, Failure};
use crate::shard::{Generation, Shard};

/// The shortest time between two lookups of a name.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a lookup may take where the configuration sets no limit.
const LIMIT: Duration = Duration::from_secs(30);

/// What a shard knows of one name.
#[derive(Debug, Default)]
pub struct Lookup {
    found: RefCell<Vec<Peer>>,
    /// When it is to be looked up again.
    due_ms: Cell<u64>,
    under_way: Cell<bool>,
}

impl Upstreams {
    /// Looks up what is out of date: a task for each name.
    pub fn look_up_due(shard: &Rc<Shard>, generation: &Rc<Generation>) {
        let upstreams = generation.config.http.iter().flat_map(|http| &http.upstreams);
        let now_ms = timer::now_ms();
        for (at, _) in upstreams.enumerate().filter(|(_, upstream)| !upstream.names.is_empty()) {
            let id = UpstreamId(at as u32);
            for (name, lookup) in generation.upstreams.group(id).lookups.iter().enumerate() {
                if lookup.due_ms.get() > now_ms || lookup.under_way.replace(true) {
                    continue;
                }
                let (shard_of, generation) = (Rc::clone(shard), Rc::clone(generation));
                shard.spawn("name lookup", async move {
                    look_up(&shard_of, &generation, id, name).await;
                });
            }
        }
    }
}

async fn look_up(shard: &Shard, generation: &Generation, id: UpstreamId, at: usize) {
    let upstream = generation.http().upstream(id);
    let group = generation.upstreams.group(id);
    #[expect(
        clippy::indexing_slicing,
        reason = "a group has a lookup for each name of its upstream, and `at` counts them"
    )]
    let (name, lookup) = (&upstream.names[at], &group.lookups[at]);
    let _under_way = UnderWay(&lookup.under_way);
    let resolver = generation.resolver(name.resolver);
    let limit = if name.timeout.is_zero() { LIMIT } else { name.timeout };
    let answer = match &name.service {
        Some(service) => resolver
            .endpoints(service, limit)
            .await
            .map(|found| (of_services(name, &found.values), found.until_ms)),
        None => resolver.addresses(&name.host, limit).await.map(|found| {
            let address = |ip: &std::net::IpAddr| SocketAddr::from((*ip, name.port));
            (found.values.iter().map(|ip| peer(&name.like, address(ip))).collect(), found.until_ms)
        }),
    };
    let soon_ms = timer::now_ms().saturating_add(PAUSE.as_millis() as u64);
    let (peers, due_ms) = match answer {
        Ok((peers, until_ms)) => (peers, until_ms),
        Err(failure) => {
            let asked = name.service.as_deref().unwrap_or(&name.host);
            shard.log_main(Level::Error, format_args!("{asked} could not be resolved ({failure})"));
            if failure != Failure::NotFound {
                // What was found before is better than nothing.
                let limit_ms = limit.as_millis() as u64;
                lookup.due_ms.set(soon_ms.max(timer::now_ms().saturating_add(limit_ms)));
                return;
            }
            (Vec::new(), soon_ms)
        }
    };
    lookup.due_ms.set(due_ms.max(soon_ms));
    if lookup.put(peers) {
        group.replace(group.peers_now(upstream));
    }
}

/// A lookup, until dropped.
struct UnderWay<'a>(&'a Cell<bool>);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

fn peer(like: &Peer, address: SocketAddr) -> Peer {
    Peer { address: PeerAddress::Inet(address), name: address.to_string().into(), ..like.clone() }
}

/// Those of the lowest priority are primaries, the rest their backups (RFC 2782).
fn of_services(name: &ServerName, endpoints: &[Endpoint]) -> Vec<Peer> {
    let first = endpoints.iter().map(|endpoint| endpoint.priority).min();
    let mut peers: Vec<Peer> = Vec::new();
    for endpoint in endpoints {
        let mut peer = peer(&name.like, endpoint.address);
        peer.backup |= Some(endpoint.priority) != first;
        if peer.weight == 1 && endpoint.weight > 0 {
            peer.weight = u32::from(endpoint.weight);
        }
        if peers.iter().all(|known| known.address != peer.address) {
            peers.push(peer);
        }
    }
    peers
}

/// Whether a server goes on as it was.
fn is_same(one: &Peer, other: &Peer) -> bool {
    one.address == other.address && one.weight == other.weight && one.backup == other.backup
}

impl Lookup {
    /// Keeps what was found. What was there before stays where it was: servers like to answer in
    /// another order each time. Tells whether anything changed.
    fn put(&self, peers: Vec<Peer>) -> bool {
        let mut found = self.found.borrow_mut();
        let before = found.len();
        found.retain(|known| peers.iter().any(|peer| is_same(known, peer)));
        let mut changed = found.len() != before;
        for peer in peers {
            if !found.iter().any(|known| is_same(known, &peer)) {
                found.push(peer);
                changed = true;
            }
        }
        changed
    }
}

impl Group {
    /// The peers of the servers that never change, with those of the names where these stand.
    fn peers_now(&self, upstream: &Upstream) -> Vec<Peer> {
        let mut peers = Vec::new();
        let mut names = upstream.names.iter().zip(&self.lookups).peekable();
        for at in 0..=upstream.peers.len() {
            while let Some((_, lookup)) = names.next_if(|(name, _)| name.after <= at) {
                peers.extend(lookup.found.borrow().iter().cloned());
            }
            peers.extend(upstream.peers.get(at).cloned());
        }
        peers
    }
}

/// Goes on with the addresses that an earlier configuration found for the same names.
pub fn take_over(new: (&Upstreams, Option<&Http>), old: (&Upstreams, Option<&Http>)) {
    let (Some(http), Some(before)) = (new.1, old.1) else { return };
    for (upstream, group) in http.upstreams.iter().zip(&new.0.groups) {
        let known = before.upstreams.iter().zip(&old.0.groups);
        let Some((old_upstream, old_group)) =
            known.into_iter().find(|(known, _)| known.name == upstream.name)
        else {
            continue;
        };
        let mut changed = false;
        for (name, lookup) in upstream.names.iter().zip(&group.lookups) {
            let is_same = |other: &ServerName| {
                (&other.host, &other.service, other.port) == (&name.host, &name.service, name.port)
            };
            let mut known = old_upstream.names.iter().zip(&old_group.lookups);
            let Some((_, known)) = known.find(|(other, _)| is_same(other)) else { continue };
            let peers = known.found.borrow();
            let like = |old: &Peer| Peer {
                address: old.address.clone(),
                name: old.name.clone(),
                // Of a service, these are the records'.
                weight: if name.service.is_some() { old.weight } else { name.like.weight },
                backup: if name.service.is_some() { old.backup } else { name.like.backup },
                ..name.like.clone()
            };
            changed |= lookup.put(peers.iter().map(like).collect());
        }
        if changed {
            group.replace(group.peers_now(upstream));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::server::ResolverId;

    fn inet(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 80).into()
    }

    fn name(like: Peer) -> ServerName {
        ServerName {
            host: "a".into(),
            service: None,
            port: 80,
            like,
            after: 0,
            resolver: ResolverId(0),
            timeout: Duration::ZERO,
        }
    }

    #[test]
    fn the_lowest_priority_is_primary_and_weights_are_the_records() {
        let endpoint = |last, priority, weight| Endpoint { address: inet(last), priority, weight };
        let endpoints = [endpoint(1, 20, 7), endpoint(2, 10, 0), endpoint(3, 10, 5)];
        let shape = |like: Peer| {
            let peers = of_services(&name(like), &endpoints);
            peers.iter().map(|peer| (peer.weight, peer.backup)).collect::<Vec<_>>()
        };
        assert_eq!(shape(Peer::default()), [(7, true), (1, false), (5, false)]);
        let heavy = Peer { weight: 3, ..Peer::default() };
        assert_eq!(shape(heavy), [(3, true), (3, false), (3, false)]);
        let backup = Peer { backup: true, ..Peer::default() };
        assert_eq!(shape(backup), [(7, true), (1, true), (5, true)]);
    }

    #[test]
    fn only_a_change_is_one_and_what_stays_stays_in_place() {
        let lookup = Lookup::default();
        let put = |all: &[u8]| {
            lookup.put(all.iter().map(|last| peer(&Peer::default(), inet(*last))).collect())
        };
        let now = || -> Vec<String> {
            lookup.found.borrow().iter().map(|peer| peer.name.to_string()).collect()
        };
        assert!(put(&[1, 2]) && !put(&[2, 1]));
        assert_eq!(now(), ["10.0.0.1:80", "10.0.0.2:80"]);
        assert!(put(&[3, 2]));
        assert_eq!(now(), ["10.0.0.2:80", "10.0.0.3:80"]);
        assert!(put(&[]) && !put(&[]));
        let heavy = Peer { weight: 2, ..Peer::default() };
        assert!(put(&[1]) && lookup.put(vec![peer(&heavy, inet(1))]));
    }
}
