//! `hash key consistent`: points on a ring, so that few keys move when a server comes or goes. As
//! `Cache::Memcached::Fast` lays them.

use std::collections::HashMap;
use std::sync::Arc;

use super::{TRIES_MAX, Tried, round_robin};
use crate::http::upstream::peer::Member;

/// Points for each unit of weight.
const POINTS: u64 = 160;
/// Points of a whole ring: SRV records tell weights of up to 65535, and each shard lays a ring anew
/// with every change. Weights that add up to more than 2048 get shares of it.
const POINTS_MAX: u64 = 2048 * POINTS;

/// The points of the primary servers, by their hashes. Addresses of one name share its points.
#[derive(Debug)]
pub struct Ring {
    points: Vec<Point>,
    /// As written after `server`.
    servers: Vec<Arc<str>>,
    primaries: usize,
}

#[derive(Debug)]
struct Point {
    hash: u32,
    /// An index into the ring's servers.
    server: u32,
}

impl Ring {
    pub fn new(members: &[Member]) -> Self {
        let primaries = members.iter().filter(|member| !member.peer.backup);
        let (servers, weights) = weights_by_server(primaries.clone());
        let mut points = Vec::new();
        for ((at, server), count) in servers.iter().enumerate().zip(point_counts(&weights)) {
            let base = base(server);
            let mut previous = 0_u32;
            for _ in 0..count {
                let mut hash = base.clone();
                hash.update(&previous.to_le_bytes());
                previous = hash.finalize();
                points.push(Point { hash: previous, server: at as u32 });
            }
        }
        points.sort_by_key(|point| point.hash);
        points.dedup_by_key(|point| point.hash);
        Ring { points, servers, primaries: primaries.count() }
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
            let server = self.points.get(point.checked_rem(self.points.len())?)?.server;
            let server = self.servers.get(server as usize)?;
            let best = round_robin::step(members, |at, member| {
                !member.peer.backup
                    && !tried.contains(at)
                    && member.peer.server == *server
                    && member.is_usable(now_ms)
            });
            if best.is_some() {
                return best;
            }
            *point = point.wrapping_add(1);
            *tries = tries.saturating_add(1);
        }
        None
    }
}

/// The servers, each once, and their weights: the points of two that are written alike are the same,
/// as far as the lighter one's go.
#[expect(clippy::indexing_slicing, reason = "`known` tells where a weight was pushed")]
fn weights_by_server<'a>(members: impl Iterator<Item = &'a Member>) -> (Vec<Arc<str>>, Vec<u32>) {
    let (mut servers, mut weights): (Vec<Arc<str>>, Vec<u32>) = (Vec::new(), Vec::new());
    let mut known: HashMap<&str, usize> = HashMap::new();
    for member in members {
        let at = *known.entry(&*member.peer.server).or_insert_with(|| {
            let at = weights.len();
            servers.push(Arc::clone(&member.peer.server));
            weights.push(0);
            at
        });
        weights[at] = weights[at].max(member.peer.weight);
    }
    (servers, weights)
}

/// How many points each weight gets: nginx's number, or where these are too many in all its share of
/// those there may be, to the nearest point. Not divided by what the weights have in common: a
/// server that comes or goes would change that, and with it where every key belongs.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "64 bits: 2^24 weights of 32 bits times 160; where it divides, `total` is above 2048"
)]
fn point_counts(weights: &[u32]) -> Vec<u64> {
    if let [_] = weights {
        // Wherever its points are, they are its own.
        return vec![1];
    }
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let count = |weight: &u32| match u64::from(*weight) {
        weight if total * POINTS <= POINTS_MAX => weight * POINTS,
        // Every server has at least one.
        weight => ((weight * POINTS_MAX + total / 2) / total).max(1),
    };
    weights.iter().map(count).collect()
}

/// What the points of a server start from: host, a zero, port.
fn base(server: &str) -> crc32fast::Hasher {
    let (host, port) = match server.split_at_checked(5) {
        Some((scheme, path)) if scheme.eq_ignore_ascii_case("unix:") => (path, ""),
        _ => match server.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, port),
            _ => (server, ""),
        },
    };
    let mut base = crc32fast::Hasher::new();
    base.update(host.as_bytes());
    base.update(&[0]);
    base.update(port.as_bytes());
    base
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Picker;
    use super::super::tests::{by_key, members, peer, set};
    use super::*;
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

    #[test]
    fn heavy_weights_do_not_make_a_heavy_ring() {
        assert_eq!(point_counts(&[1, 2047]), [160, 2047 * 160]);
        // A 65536th of 327680 is 5.
        assert_eq!(point_counts(&[65535, 1]), [327_675, 5]);
        assert_eq!(point_counts(&[u32::MAX, 1]), [327_680, 1]);
        assert_eq!(point_counts(&[65535; 4]), [81_920; 4]);
        let ring = Ring::new(&members(vec![written("a:80", 65535), written("b:80", 1)]));
        let of_light = ring.points.iter().filter(|point| point.server == 1).count();
        let of_heavy = ring.points.len() - of_light;
        assert_eq!(of_light, 5);
        // But for a few whose hashes are another's too.
        assert!((327_600..=327_675).contains(&of_heavy), "{of_heavy}");
    }

    #[test]
    fn servers_written_alike_count_once() {
        let alike = |weight: u32| Peer { name: weight.to_string().into(), ..written("a", weight) };
        let ring = Ring::new(&members(vec![alike(65535), alike(60000), alike(2)]));
        assert_eq!(ring.points.len(), 1);
        let peers = vec![alike(1000), alike(900), written("b", 1000)];
        let (servers, weights) = weights_by_server(members(peers).iter());
        assert_eq!((servers.len(), weights.as_slice()), (2, &[1000, 1000][..]));
    }

    proptest! {
        #[test]
        fn shares_are_those_of_the_weights(
            weights in proptest::collection::vec(1..=u32::MAX, 2..300),
        ) {
            let counts = point_counts(&weights);
            let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            let all: u64 = counts.iter().sum();
            prop_assert!(all <= POINTS_MAX + weights.len() as u64, "{all}");
            for (weight, count) in weights.iter().zip(counts) {
                let exact = f64::from(*weight) * POINTS_MAX as f64 / total as f64;
                prop_assert!(count >= 1 && (count as f64 - exact).abs() <= 1.0, "{count} {exact}");
            }
        }

        /// As nginx does it, as long as that is not too much.
        #[test]
        fn light_weights_have_160_points_for_each_unit(
            weights in proptest::collection::vec(1..=100_u32, 2..20),
        ) {
            let expected: Vec<u64> =
                weights.iter().map(|weight| u64::from(*weight) * 160).collect();
            prop_assert_eq!(point_counts(&weights), expected);
        }
    }
}
