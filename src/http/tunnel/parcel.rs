//! A tunnel on its way: to another shard, or to the process that takes over. Its sockets are
//! descriptors, all the rest is bytes, so both ways are one.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::carry::{self, Means, Tunnel};
use super::record::{self, Logs, Record};
use super::{Ending, Server};
use crate::error_log::{Files, LogFile, OpenError};
use crate::http::upstream::Upstreams;
use crate::http::upstream::peer::{Active, Place};

/// Of what the bytes of a [`Parcel`] mean. Goes up with each change of any type that is in there: two
/// processes with different ones do not understand each other.
pub const VERSION: u16 = 2;

/// A tunnel that belongs to nobody at the moment.
#[derive(Debug)]
pub struct Parcel {
    /// The client's and the upstream's.
    pub sockets: [OwnedFd; 2],
    pub bytes: Vec<u8>,
    /// What stays as it is until somebody has it again, within this process.
    pub held: Held,
}

/// What a tunnel has in its process besides its bytes.
#[derive(Debug, Default)]
pub struct Held {
    /// At the upstream server.
    place: Option<Place>,
    /// Its logs: whoever gets it may not be allowed to open them.
    logs: Vec<Arc<LogFile>>,
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
pub(super) fn pack(tunnel: Tunnel, ending: Ending, m: &mut Means<'_>) -> Result<Parcel, Damaged> {
    let (sockets, carried) = tunnel.pack(m)?;
    let Ending { record, server: Server { upstream, name, active } } = ending;
    let began_ms = active.as_ref().map(Active::began_ms);
    let server = Destination { upstream, name, began_ms };
    let held = Held { place: active.and_then(Active::park), logs: record.files() };
    let content = Content { carried, record: record.pack(), server };
    Ok(Parcel { sockets, bytes: postcard::to_stdvec(&content)?, held })
}

/// Opens the logs of tunnels that come from another process, each once. What could not be opened.
pub fn open_logs(parcels: &mut [Parcel], files: &Files) -> Vec<OpenError> {
    let mut opened: Vec<(PathBuf, Option<Arc<LogFile>>)> = Vec::new();
    let mut failed = Vec::new();
    for parcel in parcels {
        let Ok(content) = postcard::from_bytes::<Content>(&parcel.bytes) else { continue };
        for path in content.record.files() {
            let known =
                opened.iter().find(|(known, _)| known == path).map(|(_, file)| file.clone());
            let file = known.unwrap_or_else(|| {
                let file = files.open(path).map_err(|error| failed.push(error)).ok();
                opened.push((path.to_owned(), file.clone()));
                file
            });
            parcel.held.logs.extend(file);
        }
    }
    failed
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
    // It has a place of its own again.
    drop(parcel.held.place);
    let ending =
        Ending { record: Record::unpack(record, logs), server: Server { upstream, name, active } };
    drop(parcel.held.logs);
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
    let mut scratch: Box<[u8; super::flow::SCRATCH]> =
        vec![0; super::flow::SCRATCH].into_boxed_slice().try_into().unwrap();
    let mut means = Means {
        scratch: &mut scratch,
        pipes: &mut Pipes::default(),
        counters: &counters.tunnels,
        post: None,
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
        assert_eq!(VERSION, 2);
        let bytes = sample();
        let sum = crc32fast::hash(&bytes);
        assert_eq!((bytes.len(), format!("{sum:08x}").as_str()), (224, "23cab4ef"));
        let content: Content = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(postcard::to_stdvec(&content).unwrap(), bytes);
    }
}
