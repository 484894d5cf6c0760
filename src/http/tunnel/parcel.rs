//! A tunnel on its way: to another shard, or to the process that takes over. Its sockets are
//! descriptors, all the rest is bytes, so both ways are one.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::carry::{self, Means, Tunnel};
use super::record::{self, Logs, Record};
use super::{Ending, Server};
use crate::http::upstream::Upstreams;

/// Of what the bytes of a [`Parcel`] mean. Goes up with each change of any type that is in there: two
/// processes with different ones do not understand each other.
pub const VERSION: u16 = 1;

/// A tunnel that belongs to nobody at the moment.
#[derive(Debug)]
pub struct Parcel {
    /// The client's and the upstream's.
    pub sockets: [OwnedFd; 2],
    pub bytes: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    carried: carry::Packed,
    record: record::Packed,
    server: Destination,
}

/// A [`Server`] by its names.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Destination {
    upstream: Arc<str>,
    name: Arc<str>,
    /// By the machine's monotonic clock.
    began_ms: Option<u64>,
}

/// Why a tunnel is lost on its way.
#[derive(Debug, thiserror::Error)]
pub enum Damaged {
    #[error(transparent)]
    Pipe(#[from] carry::PipeLost),
    #[error("a tunnel cannot be packed or unpacked: {0}")]
    Content(#[from] postcard::Error),
}

/// Whether its bytes can be understood.
pub fn is_whole(parcel: &Parcel) -> bool {
    postcard::from_bytes::<Content>(&parcel.bytes).is_ok()
}

/// Takes a tunnel apart. Nobody may look at its sockets any more.
pub(super) fn pack(tunnel: Tunnel, ending: &Ending, m: &mut Means<'_>) -> Result<Parcel, Damaged> {
    let (sockets, carried) = tunnel.pack(m)?;
    let Server { upstream, name, active } = &ending.server;
    let content = Content {
        carried,
        record: ending.record.pack(),
        server: Destination {
            upstream: Arc::clone(upstream),
            name: Arc::clone(name),
            began_ms: active.as_ref().map(crate::http::upstream::peer::Active::began_ms),
        },
    };
    Ok(Parcel { sockets, bytes: postcard::to_stdvec(&content)? })
}

/// Puts it together for another shard, where it finds its server and its logs by their names.
pub(super) fn unpack(
    parcel: Parcel,
    upstreams: &Upstreams,
    logs: &mut Logs<'_>,
) -> Result<(Tunnel, Ending), Damaged> {
    let Content { carried, record, server } = postcard::from_bytes(&parcel.bytes)?;
    let Destination { upstream, name, began_ms } = server;
    let active = began_ms.and_then(|began_ms| upstreams.resume(&upstream, &name, began_ms));
    let ending =
        Ending { record: Record::unpack(record, logs), server: Server { upstream, name, active } };
    Ok((Tunnel::unpack(parcel.sockets, carried), ending))
}

/// The bytes of a tunnel that has said nothing yet.
#[cfg(test)]
pub fn sample() -> Vec<u8> {
    use std::os::unix::net::UnixDatagram;

    use super::pipe::Pipes;
    use crate::counters::Counters;

    let (client, upstream) = UnixDatagram::pair().unwrap();
    let limits = carry::Limits {
        silence_ms: 60_000,
        untaken_ms: [60_000, 60_000],
        idle: None,
        answer_ms: 5000,
        close_spread_ms: Some(1000),
        half_close: true,
        reset_timedout: false,
    };
    let tunnel = Tunnel::new(client.into(), upstream.into(), limits, true, true, 1_000_000);
    let counters = Counters::default();
    let mut means = Means {
        scratch: &mut [0; super::flow::SCRATCH],
        pipes: &mut Pipes::default(),
        counters: &counters.tunnels,
        now_ms: 1_000_000,
    };
    let (_, carried) = tunnel.pack(&mut means).unwrap();
    let server =
        Destination { upstream: "app".into(), name: "1.2.3.4:5".into(), began_ms: Some(7) };
    postcard::to_stdvec(&Content { carried, record: record::Packed::sample(), server }).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a release sends, the next one has to understand: if this fails, [`VERSION`] goes up.
    #[test]
    fn the_bytes_are_those_of_the_version() {
        assert_eq!(VERSION, 1);
        let bytes = sample();
        let sum = crc32fast::hash(&bytes);
        assert_eq!((bytes.len(), format!("{sum:08x}").as_str()), (226, "74a38e87"));
        let content: Content = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(postcard::to_stdvec(&content).unwrap(), bytes);
    }
}
