//! The upstream module: groups of servers, frozen. What changes while running (failures, active
//! connections, idle pools) lives in `http/upstream/`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// One `upstream` block, or the implicit group behind a literal `proxy_pass` or `uwsgi_pass`.
#[derive(Debug)]
pub struct Upstream {
    pub name: Arc<str>,
    /// Every address of every server, in order: a name with three addresses is three peers.
    pub peers: Vec<Peer>,
    pub keepalive: Keepalive,
    /// False for the implicit group of a literal address: it never keeps connections.
    pub explicit: bool,
}

#[derive(Debug, Clone)]
pub struct Peer {
    pub address: PeerAddress,
    /// As `$upstream_addr` shows it: `127.0.0.1:8800`, `unix:/path`.
    pub name: Arc<str>,
    pub weight: u32,
    /// Zero: unlimited.
    pub max_conns: usize,
    /// Zero: never taken out.
    pub max_fails: u32,
    pub fail_timeout: Duration,
    pub backup: bool,
    pub down: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PeerAddress {
    Inet(SocketAddr),
    Unix(PathBuf),
}

/// `keepalive`, `keepalive_requests`, `keepalive_time`, `keepalive_timeout` of an upstream block.
#[derive(Debug, Clone, Copy)]
pub struct Keepalive {
    /// Idle connections kept by each shard; zero: none.
    pub connections: usize,
    pub requests: u64,
    pub time: Duration,
    pub timeout: Duration,
}
