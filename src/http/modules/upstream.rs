//! The upstream module: groups of servers, frozen. What changes while running (failures, active
//! connections, idle pools) lives in `http/upstream/`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::address::{Address, Form, Host};
use crate::config::diagnostic::{Fault, Outcome, Place, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::setting::{Setting, inherit};
use crate::config::value::{Args, number, seconds};
use crate::modules::Build;

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

/// The directives of an `upstream` block.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub keepalive: Setting<usize>,
    pub keepalive_requests: Setting<u64>,
    pub keepalive_time: Setting<Duration>,
    pub keepalive_timeout: Setting<Duration>,
}

/// A group while it is read: a block, or the target of a `*_pass` that may become one.
#[derive(Debug)]
pub struct UpstreamDraft {
    pub name: Arc<str>,
    /// The port written in a `*_pass`.
    pub port: Option<u16>,
    /// The port a `*_pass` means when none is written.
    pub default_port: Option<u16>,
    /// There is an `upstream` block.
    pub explicit: bool,
    /// The block, or the first `*_pass`.
    pub place: Place,
    pub settings: Settings,
    /// What the `*_pass` names.
    pub address: Address,
    /// Servers of the block.
    pub peers: Vec<Peer>,
}

const UPSTREAM: Contexts = Contexts::UPSTREAM;
const ONE: Count = Count::Exactly(1);
const BALANCING: &str = "servers are balanced by weighted round robin";

pub const DIRECTIVES: &[Directive<Build>] = &[
    Directive::new("upstream", Contexts::HTTP, ONE)
        .syntax("name")
        .doc("A group of servers that `proxy_pass` and `uwsgi_pass` can name.")
        .block(UPSTREAM, open_upstream, close_upstream),
    Directive::new("server", UPSTREAM, Count::AtLeast(1))
        .syntax(
            "address [weight=n] [max_conns=n] [max_fails=n] [fail_timeout=time] [backup] [down]",
        )
        .doc(
            "A server of the group: a host with an optional port, or a unix socket; a name with \
              several addresses is several servers.",
        )
        .differs("`resolve`, `service`, `route` and `drain` are not supported.")
        .set(server),
    Directive::new("keepalive", UPSTREAM, Count::Between(1, 2))
        .syntax("connections [local]")
        .default("32")
        .doc("How many idle connections each shard keeps; 0 keeps none.")
        .set(|b, args| {
            let count = |args: Args<'_>| match number(args.at(0)) {
                Some(count) if matches!(args.at(1), "" | "local") => Ok(count),
                Some(_) => fault!("invalid parameter \"{}\"", args.at(1)),
                None => {
                    fault!("invalid value \"{}\" in \"keepalive\" directive", args.at(0))
                }
            };
            args.fill(&mut settings(b).keepalive, count)
        }),
    Directive::new("keepalive_requests", UPSTREAM, ONE)
        .syntax("number")
        .default("1000")
        .doc("How many requests one upstream connection may carry.")
        .set(|b, args| args.fill(&mut settings(b).keepalive_requests, Args::number64)),
    Directive::new("keepalive_time", UPSTREAM, ONE)
        .syntax("time")
        .default("1h")
        .doc("How old an upstream connection may become.")
        .set(|b, args| args.fill(&mut settings(b).keepalive_time, Args::time)),
    Directive::new("keepalive_timeout", UPSTREAM, ONE)
        .syntax("time")
        .default("60s")
        .doc("How long an idle upstream connection is kept.")
        .set(|b, args| args.fill(&mut settings(b).keepalive_timeout, Args::time)),
    Directive::no_effect(
        "zone",
        UPSTREAM,
        Count::Between(1, 2),
        "servers are the same for all shards without one",
    ),
    Directive::refused("hash", BALANCING),
    Directive::refused("ip_hash", BALANCING),
    Directive::refused("least_conn", BALANCING),
    Directive::refused("least_time", BALANCING),
    Directive::refused("random", BALANCING),
    Directive::refused("sticky", BALANCING),
    Directive::refused("queue", "a request that finds no server is answered at once"),
];

/// The settings of the block being read; outside of one, what blocks start from.
fn settings(b: &mut Build) -> &mut Settings {
    match b.http.upstream_at.and_then(|at| b.http.upstreams.get_mut(at)) {
        Some(upstream) => &mut upstream.settings,
        None => &mut b.http.upstream_defaults,
    }
}

fn open_upstream(b: &mut Build, args: Args<'_>) -> Outcome {
    // The name is taken as it is: it may look like anything.
    let name = args.at(0);
    let host_text = name.to_owned();
    let address =
        Address { host: Host::Name(host_text.clone()), host_text, ports: None, uri: String::new() };
    let id = b.http.upstream(&address, None, true, args.place())?;
    b.http.upstream_at = Some(id.0 as usize);
    Ok(())
}

fn close_upstream(b: &mut Build, _: &Place) -> Outcome {
    let upstream = b.http.upstream_at.take().and_then(|at| b.http.upstreams.get(at));
    if upstream.is_some_and(|upstream| upstream.peers.is_empty()) {
        return fault!("no servers are inside upstream");
    }
    Ok(())
}

/// `server address [parameter ...];`
fn server(b: &mut Build, args: Args<'_>) -> Outcome {
    let mut peer = Peer::default();
    for parameter in args.from(1) {
        let invalid = || fault!("invalid parameter \"{parameter}\"");
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let number = || number(value);
        match (name, parameter.contains('=')) {
            ("weight", true) => match number().and_then(|n| u32::try_from(n).ok()) {
                Some(weight) if weight > 0 => peer.weight = weight,
                _ => return invalid(),
            },
            ("max_conns", true) => match number() {
                Some(count) => peer.max_conns = count,
                None => return invalid(),
            },
            ("max_fails", true) => match number().and_then(|n| u32::try_from(n).ok()) {
                Some(count) => peer.max_fails = count,
                None => return invalid(),
            },
            ("fail_timeout", true) => match seconds(value) {
                Some(time) => peer.fail_timeout = time,
                None => return invalid(),
            },
            ("backup", false) => peer.backup = true,
            ("down", false) => peer.down = true,
            ("resolve" | "drain", false) | ("service" | "route", true) => {
                return fault!("\"{name}\" parameter of upstream servers is not supported");
            }
            _ => return invalid(),
        }
    }
    let failed = |error| Fault::new(format!("{error} in upstream \"{}\"", args.at(0)));
    let address = Address::parse(args.at(0), Form::Peer).map_err(failed)?;
    let peers = peers(&address, address.port().unwrap_or(80), &peer).map_err(failed)?;
    if let Some(upstream) = b.http.upstream_at.and_then(|at| b.http.upstreams.get_mut(at)) {
        upstream.peers.extend(peers);
    }
    Ok(())
}

/// One without an address and with every parameter at its default.
impl Default for Peer {
    fn default() -> Self {
        Peer {
            address: PeerAddress::Unix(PathBuf::new()),
            name: "".into(),
            weight: 1,
            max_conns: 0,
            max_fails: 1,
            fail_timeout: Duration::from_secs(10),
            backup: false,
            down: false,
        }
    }
}

/// A peer for every address that the host has now.
fn peers(
    address: &Address,
    port: u16,
    like: &Peer,
) -> Result<Vec<Peer>, crate::config::address::AddressError> {
    if let Host::Unix(path) = &address.host {
        let name = address.host_text.as_str().into();
        return Ok(vec![Peer { address: PeerAddress::Unix(path.clone()), name, ..like.clone() }]);
    }
    let addresses = address.resolve(port)?.into_iter();
    Ok(addresses
        .map(|address| Peer {
            address: PeerAddress::Inet(address),
            name: address.to_string().into(),
            ..like.clone()
        })
        .collect())
}

impl UpstreamDraft {
    pub fn freeze(mut self, defaults: &Settings) -> Outcome<Upstream> {
        let settings = &mut self.settings;
        inherit!(settings, defaults: keepalive, keepalive_requests, keepalive_time,
            keepalive_timeout);
        let name = &self.name;
        let peers = if self.explicit {
            if self.peers.iter().all(|peer| peer.backup) {
                let text = format!("no servers in upstream \"{name}\"");
                return Err(Fault::at(text, self.place));
            }
            self.peers
        } else {
            let is_unix = matches!(self.address.host, Host::Unix(_));
            let Some(port) = self.port.or(self.default_port).or(is_unix.then_some(0)) else {
                let text = format!("no port in upstream \"{name}\"");
                return Err(Fault::at(text, self.place));
            };
            match peers(&self.address, port, &Peer::default()) {
                Ok(peers) => peers,
                Err(error) => {
                    let text = format!("{error} in upstream \"{name}\"");
                    return Err(Fault::at(text, self.place));
                }
            }
        };
        Ok(Upstream {
            name: self.name,
            peers,
            keepalive: Keepalive {
                connections: if self.explicit { *settings.keepalive } else { 0 },
                requests: *settings.keepalive_requests,
                time: *settings.keepalive_time,
                timeout: *settings.keepalive_timeout,
            },
            explicit: self.explicit,
        })
    }
}
