//! A `*_pass` with variables: its value is matched against the names of upstreams, then read as an
//! address, or as a name that name servers are asked for (proxy, section 1).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Group;
use super::exchange::Family;
use super::protocol::ProxiedTo;
use super::watch::watching_client;
use crate::config::address::{Address, Form, Host, split_url, strip_scheme};
use crate::error_log::{Level, escape};
use crate::http::close::Close;
use crate::http::connection::Connection;
use crate::http::modules::upstream::{Idle, Keepalive, Peer, PeerAddress, Upstream};
use crate::http::request::Request;
use crate::http::server::{Http, UpstreamId};
use crate::http::value;
use crate::http::variable::Template;
use crate::resolver::Failure;
use crate::shard::Generation;

/// What the value of a `*_pass` came to, for one request.
pub struct Resolved {
    pub target: Target,
    pub to: ProxiedTo,
}

pub enum Target {
    /// An upstream block, or an address that the configuration names elsewhere too.
    Group(UpstreamId),
    /// To be looked up, once the request's body is there: [`look_up`].
    Name { name: String, port: Option<u16> },
    /// Addresses that only this request goes to.
    Literal(Box<Upstream>, Box<Group>),
}

/// The error is the status to answer with; why has been logged.
pub fn resolve(
    c: &Connection,
    r: &Request,
    http: &Http,
    template: &Template,
    family: Family,
) -> Result<Resolved, u16> {
    let value = value::expanded(template, c, r);
    let log = |text: std::fmt::Arguments<'_>| c.log(r, Level::Error, text);
    let (rest, default_port) = match family {
        Family::Proxy => {
            let Some(rest) = strip_scheme(&*value, "http://") else {
                log(format_args!("invalid URL prefix in \"{}\"", escape(&value)));
                return Err(500);
            };
            (rest, Some(80))
        }
        Family::Uwsgi => (strip_scheme(&*value, "uwsgi://").unwrap_or(&value), None),
    };
    // The URI is sent byte for byte; a name with other bytes than text has no address.
    let (address, uri) = match family {
        Family::Proxy => split_url(rest),
        Family::Uwsgi => (rest, b"".as_slice()),
    };
    let address =
        Address::parse(&String::from_utf8_lossy(address), Form::Peer).map_err(|error| {
            log(format_args!("{error} in upstream \"{}\"", escape(rest)));
            500u16
        })?;

    let written_port = address.port();
    let port = written_port.or(default_port);
    let is_unix = matches!(address.host, Host::Unix(_));
    let to = ProxiedTo {
        host: match written_port {
            _ if is_unix => "localhost".to_owned(),
            Some(port) if Some(port) != default_port => format!("{}:{port}", address.host_text),
            _ => address.host_text.clone(),
        },
        port: port.filter(|_| !is_unix).map(|port| port.to_string()).unwrap_or_default(),
        uri: uri.to_vec(),
    };
    let is_meant = |upstream: &Upstream| {
        upstream.name.eq_ignore_ascii_case(&address.host_text)
            && if upstream.explicit { written_port.is_none() } else { port_of(upstream) == port }
    };
    let target = match (http.upstreams.iter().position(is_meant), address.host, port) {
        (Some(at), ..) => Target::Group(UpstreamId(at as u32)),
        (None, Host::Unix(path), _) => {
            let name: Arc<str> = address.host_text.as_str().into();
            let peers = vec![Peer { address: PeerAddress::Unix(path), ..named(Arc::clone(&name)) }];
            Target::of(name, peers)
        }
        (None, Host::Ip(ip), Some(port)) => {
            let peer = inet((ip, port).into());
            Target::of(Arc::clone(&peer.name), vec![peer])
        }
        (None, ..) => Target::Name { name: address.host_text, port },
    };
    Ok(Resolved { target, to })
}

/// The addresses of a name, as the servers of a group: in their order, from one taken by chance on.
pub async fn look_up(
    c: &Connection,
    r: &mut Request,
    generation: &Generation,
    name: &str,
    port: Option<u16>,
    ignore_abort: bool,
) -> Result<Target, LookupError> {
    let Some(port) = port else {
        let shown = escape(name.as_bytes());
        c.log(r, Level::Error, format_args!("no port in upstream \"{shown}\""));
        return Err(LookupError::Status(500));
    };
    let settings = &generation.http().location(r.location).settings.resolver;
    let Some(id) = *settings.servers else {
        let shown = escape(name.as_bytes());
        c.log(r, Level::Error, format_args!("no resolver defined to resolve {shown}"));
        return Err(LookupError::Status(502));
    };
    let answer = generation.resolver(id).addresses(name, *settings.timeout);
    let found = match watching_client(c, r, answer, ignore_abort).await? {
        Ok(found) => found,
        Err(Failure::Interrupted) => return Err(Close::Interrupted.into()),
        Err(failure) => {
            let shown = escape(name.strip_suffix('.').unwrap_or(name).as_bytes());
            c.log(r, Level::Error, format_args!("{shown} could not be resolved ({failure})"));
            return Err(LookupError::Status(502));
        }
    };
    let chance = u128::from_ne_bytes(crate::os::random_bytes());
    let first = chance.checked_rem(found.values.len() as u128).unwrap_or_default() as usize;
    let (before, after) = found.values.split_at(first);
    let peers = after.iter().chain(before).map(|ip| inet((*ip, port).into())).collect();
    Ok(Target::of(name.into(), peers))
}

/// Why there is no group to go to.
pub enum LookupError {
    /// The status to answer with; why has been logged.
    Status(u16),
    Close(Close),
}

impl From<Close> for LookupError {
    fn from(close: Close) -> Self {
        LookupError::Close(close)
    }
}

/// The port of a literal address.
fn port_of(upstream: &Upstream) -> Option<u16> {
    match upstream.peers.first()?.address {
        PeerAddress::Inet(address) => Some(address.port()),
        PeerAddress::Unix(_) => None,
    }
}

fn named(name: Arc<str>) -> Peer {
    Peer { name, ..Peer::default() }
}

fn inet(address: SocketAddr) -> Peer {
    Peer { address: PeerAddress::Inet(address), ..named(address.to_string().into()) }
}

impl Target {
    /// A group that only this request goes to.
    fn of(name: Arc<str>, peers: Vec<Peer>) -> Self {
        let upstream = Upstream {
            name,
            peers,
            keepalive: Keepalive {
                idle: Idle::default(),
                requests: 0,
                time: Duration::ZERO,
                timeout: Duration::ZERO,
                has_timeout: false,
            },
            balance: Arc::default(),
            sticky: None,
            names: Vec::new(),
            queue: None,
            zone: Arc::default(),
            explicit: false,
        };
        let group = Group::new(&upstream);
        Target::Literal(Box::new(upstream), Box::new(group))
    }
}
