//! A tunnel as bytes, without its sockets: for its way to another thread or process. Between two
//! steps of it nothing else belongs to it; times are of the machine's monotonic clock, which all
//! processes have in common.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::{Closing, Limits, Means, Stage, Tunnel, Way};
use crate::http::tunnel::frame::Follower;
use crate::http::tunnel::metrics::{Metrics, Side};

/// What a [`Tunnel`] is, but for its sockets and for what a look at them tells again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// By [`Side`] of the source.
    ways: [PackedWay; 2],
    limits: Limits,
    active_ms: u64,
    data_ms: u64,
    closing: Option<Closing>,
    metrics: Option<Box<Metrics>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PackedWay {
    stage: Stage,
    /// What the receiver has not taken, those in the pipe first.
    pending: Vec<u8>,
    source_closed: bool,
    close_passed: bool,
    close_is_due: bool,
    header_left: u8,
    follower: Option<Follower>,
    bytes: u64,
}

impl Tunnel {
    /// Takes it apart. Whoever packs it has to keep everybody else from its sockets. `Err`: what is in
    /// a pipe cannot be had, and the tunnel is lost.
    pub fn pack(mut self, m: &mut Means<'_>) -> Result<([OwnedFd; 2], Packed), PipeLost> {
        let packed = Side::BOTH.map(|from| self.way(from).pack(m));
        self.release(m.pipes, m.counters, m.now_ms);
        let [client, upstream] = packed;
        let Tunnel { sockets, limits, active_ms, data_ms, closing, metrics, .. } = self;
        let ways = [client?, upstream?];
        Ok((sockets, Packed { ways, limits, active_ms, data_ms, closing, metrics }))
    }

    /// Puts it together again. Both of its directions are to be run then.
    pub fn unpack(sockets: [OwnedFd; 2], packed: Packed) -> Self {
        let Packed { ways, limits, active_ms, data_ms, closing, metrics } = packed;
        Tunnel {
            sockets,
            ways: ways.map(Way::unpack),
            limits,
            active_ms,
            data_ms,
            carried_ms: active_ms,
            closing,
            close_at_ms: u64::MAX,
            is_in_post: false,
            metrics,
        }
    }
}

/// Bytes that could not be read out of a pipe.
#[derive(Debug, thiserror::Error)]
#[error("read() of a pipe failed")]
pub struct PipeLost(#[from] std::io::Error);

impl Way {
    fn pack(&mut self, m: &mut Means<'_>) -> Result<PackedWay, PipeLost> {
        let mut pending = Vec::with_capacity(self.pending());
        if let Some(pipe) = &mut self.pipe {
            while pipe.held() > 0 {
                let taken = pipe.take(&mut m.scratch[..])?;
                pending.extend_from_slice(m.scratch.get(..taken).unwrap_or_default());
            }
        }
        pending.extend_from_slice(self.backlog.as_ref().map_or(&[], |backlog| backlog.as_slice()));
        Ok(PackedWay {
            stage: self.stage,
            pending,
            source_closed: self.source_closed,
            close_passed: self.close_passed,
            close_is_due: self.close_is_due,
            header_left: self.header_left,
            follower: self.follower.take(),
            bytes: self.bytes,
        })
    }

    fn unpack(packed: PackedWay) -> Self {
        let mut way = Way {
            stage: packed.stage,
            source_closed: packed.source_closed,
            close_passed: packed.close_passed,
            close_is_due: packed.close_is_due,
            header_left: packed.header_left,
            bytes: packed.bytes,
            ..Way::new(packed.follower)
        };
        way.keep(&packed.pending);
        way
    }
}
