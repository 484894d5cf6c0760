//! The upstream module: groups of servers, frozen. What changes while running (failures, active
//! connections, idle pools) lives in `http/upstream/`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::resolver;
use super::sticky::Sticky;
use crate::config::address::{Address, Form, Host};
use crate::config::diagnostic::{Fault, Outcome, Place, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::setting::{Setting, inherit};
use crate::config::value::{Args, milliseconds, number, seconds, size};
use crate::http::server::ResolverId;
use crate::http::upstream::zone::Zone;
use crate::http::variable::Template;
use crate::modules::Build;

/// One `upstream` block, or the implicit group behind a literal `proxy_pass` or `uwsgi_pass`.
#[derive(Debug)]
pub struct Upstream {
    pub name: Arc<str>,
    /// Every address of every server, in order: a name with three addresses is three peers.
    pub peers: Vec<Peer>,
    pub keepalive: Keepalive,
    pub balance: Arc<Balance>,
    pub sticky: Option<Sticky>,
    /// Servers that are not in `peers` but looked up while running.
    pub names: Vec<ServerName>,
    pub queue: Option<QueueLimits>,
    /// What shards share of it.
    pub zone: Arc<Zone>,
    /// False for the implicit group of a literal address: it never keeps connections.
    pub explicit: bool,
}

/// How the next server is chosen.
#[derive(Debug, Default)]
pub enum Balance {
    #[default]
    RoundRobin,
    Least(Rank),
    IpHash,
    Hash {
        key: Template,
        consistent: bool,
    },
    Random(Draws),
}

/// What servers are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    /// Requests under way (`least_conn`).
    Active,
    /// How long answers take, for each request under way (`least_time`).
    Time {
        until: Until,
        /// Requests without an answer yet count with the time that they have waited.
        inflight: bool,
    },
}

/// What of an answer is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    Header,
    LastByte,
}

/// `random`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draws {
    One,
    /// `two`: the better of two.
    Two(Rank),
}

#[derive(Debug, Clone)]
pub struct Peer {
    /// The address as it is written after `server`.
    pub server: Arc<str>,
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
    /// Only requests that are bound to it.
    pub drain: bool,
    /// What a request that is bound to it is known by, in place of one made of its address.
    pub route: Option<Arc<str>>,
}

/// `server name resolve`: a server whose addresses are looked up while running.
#[derive(Debug)]
pub struct ServerName {
    pub host: Box<str>,
    /// Of `service=`: what SRV records are asked for.
    pub service: Option<Box<str>>,
    /// That of every address; an SRV record tells its own.
    pub port: u16,
    /// What its peers are like, apart from their addresses.
    pub like: Peer,
    /// How many peers of other servers stand before its own.
    pub after: usize,
    pub resolver: ResolverId,
    /// `resolver_timeout`
    pub timeout: Duration,
}

/// The same while the block is read.
#[derive(Debug)]
pub struct ServerNameDraft {
    host: Box<str>,
    service: Option<Box<str>>,
    port: u16,
    like: Peer,
    after: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PeerAddress {
    Inet(SocketAddr),
    Unix(PathBuf),
}

/// `keepalive`, `keepalive_requests`, `keepalive_time`, `keepalive_timeout` of an upstream block.
#[derive(Debug, Clone, Copy)]
pub struct Keepalive {
    pub idle: Idle,
    pub requests: u64,
    pub time: Duration,
    pub timeout: Duration,
    /// `keepalive_timeout` was written.
    pub has_timeout: bool,
}

/// `keepalive connections [local]`
#[derive(Debug, Clone, Copy, Default)]
pub struct Idle {
    /// Kept by each shard; zero: none.
    pub connections: usize,
    /// Used again by the location alone that opened it.
    pub is_local: bool,
}

/// `queue number [timeout=time]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Requests that wait on each shard.
    pub most: usize,
    pub timeout: Duration,
}

/// The directives of an `upstream` block.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub keepalive: Setting<Idle>,
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
    /// `zone`
    pub zone: Option<Arc<str>>,
    pub balance: Option<Balance>,
    pub sticky: Option<Sticky>,
    /// Servers that are looked up while running.
    pub names: Vec<ServerNameDraft>,
    pub queue: Option<QueueLimits>,
    /// `resolver` and `resolver_timeout`
    pub resolver: resolver::Settings,
}

const UPSTREAM: Contexts = Contexts::UPSTREAM;
const ONE: Count = Count::Exactly(1);
const NONE: Count = Count::Exactly(0);

pub const DIRECTIVES: &[Directive<Build>] = &[
    Directive::new("upstream", Contexts::HTTP, ONE)
        .syntax("name")
        .doc("A group of servers that `proxy_pass` and `uwsgi_pass` can name.")
        .block(UPSTREAM, open_upstream, close_upstream),
    Directive::new("server", UPSTREAM, Count::AtLeast(1))
        .syntax(
            "address [weight=n] [max_conns=n] [max_fails=n] [fail_timeout=time] [backup] [down] \
             [drain] [route=id] [resolve] [service=name]",
        )
        .doc(
            "A server of the group: a host with an optional port, or a unix socket; a name with \
              several addresses is several servers. With `resolve` the name is looked up again \
              whenever its addresses are out of date, with `service` as SRV records.",
        )
        .differs("Each shard looks names up by itself.")
        .set(server),
    Directive::new("keepalive", UPSTREAM, Count::Between(1, 2))
        .syntax("connections [local]")
        .default("32 local")
        .doc(
            "How many idle connections each shard keeps; 0 keeps none. With `local` a connection is \
             used again by the location alone that opened it.",
        )
        .set(keepalive),
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
    Directive::new("zone", UPSTREAM, Count::Between(1, 2))
        .syntax("name [size]")
        .doc(
            "The group's state is kept over a reload: what has failed stays out. Shards share it \
             with and without one.",
        )
        .differs("The size is checked and then not used: the state takes what it needs.")
        .set(zone),
    Directive::new("hash", UPSTREAM, Count::Between(1, 2))
        .syntax("key [consistent]")
        .doc(
            "The same server for the same key. With `consistent` few keys move when servers come or \
             go.",
        )
        .differs(
            "With `consistent` weights that add up to more than 2048 share 327680 points, in place \
             of 160 points for each unit.",
        )
        .set(hash),
    Directive::new("ip_hash", UPSTREAM, NONE)
        .doc(
            "The same server for the same client: the first three bytes of an IPv4 address, all of \
             an IPv6 one.",
        )
        .set(|b, args| balance(b, args, Balance::IpHash)),
    Directive::new("least_conn", UPSTREAM, NONE)
        .doc("The server with the fewest requests under way for its weight.")
        .differs("Requests under way are counted for all shards.")
        .set(|b, args| balance(b, args, Balance::Least(Rank::Active))),
    Directive::new("least_time", UPSTREAM, Count::Between(1, 2))
        .syntax("header | last_byte [inflight]")
        .doc(
            "The server with the shortest average time to an answer's head or end, for its weight \
             and its requests under way.",
        )
        .differs("Each shard measures on its own.")
        .set(least_time),
    Directive::new("random", UPSTREAM, Count::Between(0, 2))
        .syntax("[two [least_conn | least_time[=header | =last_byte]]]")
        .doc("A server by lot; with `two` the better of two.")
        .set(random),
    Directive::new("queue", UPSTREAM, Count::Between(1, 2))
        .syntax("number [timeout=time]")
        .doc(
            "How many requests wait on each shard, and for how long (60s), while every server that \
             can be asked has `max_conns` requests or, on a unix socket, a full backlog: first come, \
             first served. More, or for longer, is a 502. It stands behind the balancing method.",
        )
        .differs("It is there: in nginx it is part of the commercial version.")
        .set(queue),
];

impl Balance {
    /// Whether servers are compared by their requests under way.
    pub fn compares_active(&self) -> bool {
        matches!(self, Balance::Least(_) | Balance::Random(Draws::Two(_)))
    }

    /// nginx has no backups beside the methods that hash and draw.
    fn supports_backup(&self) -> bool {
        matches!(self, Balance::RoundRobin | Balance::Least(_))
    }
}

/// Sets the method of the block being read; one that was there before is forgotten, and with it what
/// sessions are bound by.
fn balance(b: &mut Build, args: Args<'_>, method: Balance) -> Outcome {
    let Some(upstream) = b.http.upstream_block() else { return Ok(()) };
    if upstream.queue.is_some() {
        return fault!("\"queue\" should be placed after the \"{}\" directive", args.name());
    }
    let is_redefined = upstream.sticky.take().is_some() || upstream.balance.is_some();
    upstream.balance = Some(method);
    if is_redefined {
        b.warn(Some(args.place()), "load balancing method redefined");
    }
    Ok(())
}

/// `queue number [timeout=time]`
fn queue(b: &mut Build, args: Args<'_>) -> Outcome {
    let Some(upstream) = b.http.upstream_block() else { return Ok(()) };
    if upstream.queue.is_some() {
        return Err(args.duplicate());
    }
    let Some(most) = number(args.at(0)).filter(|most| *most > 0) else {
        return fault!("invalid value \"{}\" in \"queue\" directive", args.at(0));
    };
    let timeout = match (args.len(), args.at(1).strip_prefix("timeout=").and_then(milliseconds)) {
        (1, _) => Duration::from_secs(60),
        (_, Some(timeout)) => timeout,
        (_, None) => return invalid_parameter(args.at(1)),
    };
    upstream.queue = Some(QueueLimits { most, timeout });
    Ok(())
}

fn invalid_parameter<T>(parameter: &str) -> Outcome<T> {
    fault!("invalid parameter \"{parameter}\"")
}

/// `hash key [consistent]`
fn hash(b: &mut Build, args: Args<'_>) -> Outcome {
    let consistent = match args.at(1) {
        "" => false,
        "consistent" => true,
        other => return invalid_parameter(other),
    };
    let key = b.http.names.template(args.at(0))?;
    balance(b, args, Balance::Hash { key, consistent })
}

/// `random [two [method]]`
fn random(b: &mut Build, args: Args<'_>) -> Outcome {
    let draws = match (args.at(0), args.at(1)) {
        ("", _) => Draws::One,
        ("two", "" | "least_conn") => Draws::Two(Rank::Active),
        ("two", method) => match method.strip_prefix("least_time").map(until) {
            Some(Some(until)) => Draws::Two(Rank::Time { until, inflight: false }),
            _ => return invalid_parameter(method),
        },
        (other, _) => return invalid_parameter(other),
    };
    balance(b, args, Balance::Random(draws))
}

/// What follows `least_time` of `random two`.
fn until(text: &str) -> Option<Until> {
    match text {
        "" | "=header" => Some(Until::Header),
        "=last_byte" => Some(Until::LastByte),
        _ => None,
    }
}

/// `least_time header | last_byte [inflight]`
fn least_time(b: &mut Build, args: Args<'_>) -> Outcome {
    let until = match args.at(0) {
        "header" => Until::Header,
        "last_byte" => Until::LastByte,
        other => return invalid_parameter(other),
    };
    let inflight = match args.at(1) {
        "" => false,
        "inflight" => true,
        other => return invalid_parameter(other),
    };
    balance(b, args, Balance::Least(Rank::Time { until, inflight }))
}

/// `keepalive connections [local]`
fn keepalive(b: &mut Build, args: Args<'_>) -> Outcome {
    let idle = |args: Args<'_>| match number(args.at(0)) {
        Some(connections) if matches!(args.at(1), "" | "local") => {
            Ok(Idle { connections, is_local: args.at(1) == "local" })
        }
        Some(_) => invalid_parameter(args.at(1)),
        None => fault!("invalid value \"{}\" in \"keepalive\" directive", args.at(0)),
    };
    args.fill(&mut settings(b).keepalive, idle)
}

/// `zone name [size]`
fn zone(b: &mut Build, args: Args<'_>) -> Outcome {
    /// Eight pages.
    const SMALLEST: usize = 32 << 10;
    let name = args.at(0);
    if name.is_empty() {
        return fault!("invalid zone name \"{name}\"");
    }
    let size = match args.len() {
        1 => None,
        _ => match size(args.at(1)) {
            None => return fault!("invalid zone size \"{}\"", args.at(1)),
            Some(size) if size < SMALLEST => return fault!("zone \"{name}\" is too small"),
            size => size,
        },
    };
    let name = b.http.zones.declare(name, size)?;
    if let Some(upstream) = b.http.upstream_block() {
        upstream.zone = Some(name);
    }
    Ok(())
}

/// The zones of all upstreams while they are read: several groups may name one.
#[derive(Debug, Default)]
pub struct Zones(Vec<(Arc<str>, Option<usize>)>);

impl Zones {
    fn declare(&mut self, name: &str, size: Option<usize>) -> Outcome<Arc<str>> {
        let at = self.0.iter().position(|(known, _)| **known == *name).unwrap_or_else(|| {
            self.0.push((name.into(), None));
            self.0.len().saturating_sub(1)
        });
        #[expect(clippy::indexing_slicing, reason = "found there, or put there")]
        let (name, known) = &mut self.0[at];
        match (size, &*known) {
            (Some(size), Some(known)) if *known != size => fault!(
                "the size {size} of shared memory zone \"{name}\" conflicts with already \
                 declared size {known}"
            ),
            (Some(size), _) => {
                *known = Some(size);
                Ok(Arc::clone(name))
            }
            (None, _) => Ok(Arc::clone(name)),
        }
    }

    /// One of them must have told the size.
    pub fn check(&self) -> Outcome {
        match self.0.iter().find(|(_, size)| size.is_none()) {
            Some((name, _)) => {
                Err(Fault::nowhere(format!("zero size shared memory zone \"{name}\"")))
            }
            None => Ok(()),
        }
    }
}

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
    if upstream.is_some_and(|upstream| upstream.peers.is_empty() && upstream.names.is_empty()) {
        return fault!("no servers are inside upstream");
    }
    Ok(())
}

/// `server address [parameter ...];`
fn server(b: &mut Build, args: Args<'_>) -> Outcome {
    let mut peer = Peer { server: args.at(0).into(), ..Peer::default() };
    let mut resolve = false;
    let mut service = None;
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
            ("backup", false) => {
                let method = b.http.upstream_block().and_then(|block| block.balance.as_ref());
                if method.is_some_and(|method| !method.supports_backup()) {
                    return fault!("balancing method does not support parameter \"backup\"");
                }
                peer.backup = true;
            }
            ("down", false) => peer.down = true,
            ("drain", false) => peer.drain = true,
            ("resolve", false) => resolve = true,
            ("service", true) if value.is_empty() => return fault!("service is empty"),
            ("service", true) => service = Some(value),
            ("route", true) => peer.route = Some(route(value)?),
            _ => return invalid(),
        }
    }
    let failed = |error| Fault::new(format!("{error} in upstream \"{}\"", args.at(0)));
    let address = Address::parse(args.at(0), Form::Peer).map_err(failed)?;
    let port = address.port();
    if service.is_some() {
        let name = args.at(0);
        if !resolve {
            return fault!("service upstream \"{name}\" requires \"resolve\" parameter");
        }
        if port.is_some() {
            return fault!("service upstream \"{name}\" may not have port");
        }
        if !matches!(address.host, Host::Name(_)) {
            return fault!("service upstream \"{name}\" requires domain name");
        }
    }
    let port = port.unwrap_or(80);
    if let (Host::Name(host), true) = (&address.host, resolve) {
        if let Some(upstream) = b.http.upstream_block() {
            upstream.names.push(ServerNameDraft {
                host: host.as_str().into(),
                service: service.map(|service| service_name(service, host).into()),
                port,
                like: peer,
                after: upstream.peers.len(),
            });
        }
        return Ok(());
    }
    let peers = peers(&address, port, &peer).map_err(failed)?;
    if let Some(upstream) = b.http.upstream_block() {
        upstream.peers.extend(peers);
    }
    Ok(())
}

/// What SRV records stand under: `http` means the usual `_http._tcp`, one with dots is as it is.
fn service_name(service: &str, host: &str) -> String {
    if service.contains('.') {
        format!("{service}.{host}")
    } else {
        format!("_{service}._tcp.{host}")
    }
}

/// `route=id`: what a session is bound to this server by.
fn route(id: &str) -> Outcome<Arc<str>> {
    const LONGEST: usize = 32;
    if id.is_empty() {
        return fault!("route is empty");
    }
    if id.len() > LONGEST {
        return fault!("route is longer than {LONGEST}");
    }
    Ok(id.into())
}

/// One without an address and with every parameter at its default.
impl Default for Peer {
    fn default() -> Self {
        Peer {
            server: "".into(),
            address: PeerAddress::Unix(PathBuf::new()),
            name: "".into(),
            weight: 1,
            max_conns: 0,
            max_fails: 1,
            fail_timeout: Duration::from_secs(10),
            backup: false,
            down: false,
            drain: false,
            route: None,
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
    pub fn freeze(
        mut self,
        defaults: &Settings,
        resolver: &resolver::Settings,
    ) -> Outcome<Upstream> {
        self.resolver.inherit(resolver);
        let names = self.freeze_names()?;
        let settings = &mut self.settings;
        let has_timeout = settings.keepalive_timeout.is_set();
        inherit!(settings, defaults: keepalive, keepalive_requests, keepalive_time,
            keepalive_timeout);
        let name = &self.name;
        let peers = if self.explicit {
            let mut servers = self.peers.iter().chain(names.iter().map(|name| &name.like));
            if servers.all(|peer| peer.backup) {
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
            zone: Arc::new(Zone::new(self.zone, &peers)),
            balance: Arc::new(self.balance.unwrap_or_default()),
            sticky: self.sticky,
            peers,
            names,
            queue: self.queue,
            keepalive: Keepalive {
                idle: if self.explicit { *settings.keepalive } else { Idle::default() },
                requests: *settings.keepalive_requests,
                time: *settings.keepalive_time,
                timeout: *settings.keepalive_timeout,
                has_timeout,
            },
            explicit: self.explicit,
        })
    }

    /// What is looked up while running takes a resolver, and a state to keep it in.
    fn freeze_names(&mut self) -> Outcome<Vec<ServerName>> {
        let names = std::mem::take(&mut self.names);
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let (name, place) = (&self.name, &self.place);
        if self.zone.is_none() {
            return Err(Fault::nowhere(format!(
                "resolving names at run time requires upstream \"{name}\" in {place} to be in \
                 shared memory"
            )));
        }
        let Some(resolver) = *self.resolver.servers else {
            return Err(Fault::nowhere(format!(
                "no resolver defined to resolve names at run time in upstream \"{name}\" in {place}"
            )));
        };
        let timeout = *self.resolver.timeout;
        let freeze = |draft: ServerNameDraft| ServerName {
            host: draft.host,
            service: draft.service,
            port: draft.port,
            like: draft.like,
            after: draft.after,
            resolver,
            timeout,
        };
        Ok(names.into_iter().map(freeze).collect())
    }
}
