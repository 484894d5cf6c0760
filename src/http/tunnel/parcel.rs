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
