//! `hash key consistent`: points on a ring, so that few keys move when a server comes or goes. As
//! `Cache::Memcached::Fast` lays them.

use std::sync::Arc;

use super::{TRIES_MAX, Tried, round_robin};
use crate::http::upstream::peer::Member;

/// Points for each unit of weight.
const POINTS: u32 = 160;

/// The points of the primary servers, by their hashes. Addresses of one name share its points.
#[derive(Debug)]
pub struct Ring {
    points: Vec<Point>,
    primaries: usize,
}

#[derive(Debug)]
struct Point {
    hash: u32,
    /// As written after `server`.
    server: Arc<str>,
}

impl Ring {
    pub fn new(members: &[Member]) -> Self {
        let primaries = members.iter().filter(|member| !member.peer.backup);
        let mut points = Vec::new();
        for member in primaries.clone() {
            let base = base(&member.peer.server);
            let mut previous = 0_u32;
            for _ in 0..u64::from(member.peer.weight) * u64::from(POINTS) {
                let mut hash = base.clone();
                hash.update(&previous.to_le_bytes());
                previous = hash.finalize();
                points.push(Point { hash: previous, server: Arc::clone(&member.peer.server) });
            }
        }
        points.sort_by_key(|point| point.hash);
        points.dedup_by_key(|point| point.hash);
        Ring { points, primaries: primaries.count() }
    }

    /// The first point from a hash on; one past the last stands for the first.
    pub fn find(&self, hash: u32) -> usize {
        self.points.partition_point(|point| point.hash < hash)
    }

    /// From `point` on the first whose server can be taken.
    pub fn pick(
        &self,
        point: &mut usize,
        members: &[Member],
        tried: &Tried,
        tries: &mut u8,
        now_ms: u64,
    ) -> Option<usize> {
        if self.primaries < 2 {
            return None;
        }
        while *tries <= TRIES_MAX {
            let server = &self.points.get(*point % self.points.len())?.server;
            let best = round_robin::step(members, |at, member| {
                !member.peer.backup
                    && !tried.contains(at)
                    && member.peer.server == *server
                    && member.is_usable(now_ms)
            });
            if best.is_some() {
                return best;
            }
            *point += 1;
            *tries += 1;
        }
        None
    }
}

/// What the points of a server start from: host, a zero, port.
fn base(server: &str) -> crc32fast::Hasher {
    let is_unix = server.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("unix:"));
    let (host, port) = if is_unix {
        (&server[5..], "")
    } else {
        match server.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, port),
            _ => (server, ""),
        }
    };
    let mut base = crc32fast::Hasher::new();
    base.update(host.as_bytes());
    base.update(&[0]);
    base.update(port.as_bytes());
    base
}

#[cfg(test)]
mod tests {
    use super::super::Picker;
    use super::super::tests::{by_key, peer, set};
    use crate::http::modules::upstream::Peer;

    fn written(server: &str, weight: u32) -> Peer {
        Peer { server: server.into(), name: server.into(), ..peer(weight) }
    }

    /// Worked out with zlib's crc32 for three servers as they are written here.
    #[test]
    fn keys_go_where_nginx_sends_them() {
        let peers =
            vec![written("127.0.0.1:8001", 1), written("unix:/s", 2), written("localhost", 1)];
        let set = set(peers, &by_key(true));
        let picks = (b'a'..=b'p').map(|key| Picker::new(&set, None, || vec![key]).pick(&set, 0));
        let picks: Vec<usize> = picks.map(Option::unwrap).collect();
        assert_eq!(picks, [2, 0, 1, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn addresses_of_one_name_share_its_points_and_take_turns() {
        let peers = vec![
            Peer { name: "1".into(), ..written("a:80", 1) },
            Peer { name: "2".into(), ..written("a:80", 1) },
            Peer { name: "3".into(), down: true, ..written("b:80", 1) },
        ];
        let set = set(peers, &by_key(true));
        let picks: Vec<_> = (0..4)
            .map(|_| Picker::new(&set, None, || b"k".to_vec()).pick(&set, 0).unwrap())
            .collect();
        assert_eq!(picks, [0, 1, 0, 1]);
    }

    #[test]
    fn few_keys_move_when_a_server_is_added() {
        let servers = |n: usize| (0..n).map(|n| written(&format!("s{n}:80"), 1)).collect();
        let pick = |n, key: u32| {
            let set = set(servers(n), &by_key(true));
            Picker::new(&set, None, || key.to_string().into_bytes()).pick(&set, 0).unwrap()
        };
        let moved = (0..200).filter(|key| pick(4, *key) != pick(5, *key));
        let moved: Vec<u32> = moved.collect();
        assert!((10..90).contains(&moved.len()), "{}", moved.len());
        assert!(moved.iter().all(|key| pick(5, *key) == 4));
    }
}
