//! A `*_pass` with variables: its value is matched against the names of upstreams, then read as an
//! address (proxy, section 1).

use std::sync::Arc;
use std::time::Duration;

use super::Group;
use super::exchange::Family;
use super::protocol::{Destination, DestinationUri};
use crate::config::address::{Address, Form, Host};
use crate::error_log::{Level, escape};
use crate::http::connection::Connection;
use crate::http::modules::upstream::{Idle, Keepalive, Peer, PeerAddress, Upstream};
use crate::http::request::Request;
use crate::http::server::{Http, UpstreamId};
use crate::http::value;
use crate::http::variable::Template;

/// What the value of a `*_pass` came to, for one request.
pub struct Resolved {
    pub target: Target,
    host: String,
    uri: String,
}

pub enum Target {
    /// An upstream block, or an address that the configuration names elsewhere too.
    Group(UpstreamId),
    /// An address that only this request goes to.
    Literal(Box<Upstream>, Box<Group>),
}

impl Resolved {
    pub fn destination(&self) -> Destination<'_> {
        let uri = match self.uri.as_str() {
            "" => DestinationUri::Request,
            uri => DestinationUri::Whole(uri.as_bytes()),
        };
        Destination { host: self.host.as_bytes(), uri }
    }
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
    let value = String::from_utf8_lossy(&value);
    let log = |text: std::fmt::Arguments<'_>| c.log(r, Level::Error, text);
    let (rest, default_port, form) = match family {
        Family::Proxy => match value.split_at_checked("http://".len()) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http://") => {
                (rest, Some(80), Form::Url)
            }
            _ => {
                log(format_args!("invalid URL prefix in \"{}\"", escape(value.as_bytes())));
                return Err(500);
            }
        },
        Family::Uwsgi => (value.strip_prefix("uwsgi://").unwrap_or(&value), None, Form::Peer),
    };
    let address = Address::parse(rest, form).map_err(|error| {
        log(format_args!("{error} in upstream \"{}\"", escape(rest.as_bytes())));
        500u16
    })?;

    let port = address.port();
    let is_unix = matches!(address.host, Host::Unix(_));
    let host = match port {
        _ if is_unix => "localhost".to_owned(),
        Some(port) if Some(port) != default_port => format!("{}:{port}", address.host_text),
        _ => address.host_text.clone(),
    };
    let named = http.upstreams.iter().position(|upstream| {
        upstream.explicit
            && port.is_none()
            && upstream.name.eq_ignore_ascii_case(&address.host_text)
    });
    let target = match named {
        Some(at) => Target::Group(UpstreamId(at as u32)),
        None => literal(&address, port.or(default_port)).map_err(|problem| {
            match problem {
                Problem::NoPort => log(format_args!("no port in upstream \"{rest}\"")),
                Problem::IsName => {
                    let name = &address.host_text;
                    log(format_args!("no resolver defined to resolve {name}"));
                }
            }
            problem.status()
        })?,
    };
    Ok(Resolved { target, host, uri: address.uri })
}

enum Problem {
    NoPort,
    IsName,
}

impl Problem {
    fn status(&self) -> u16 {
        match self {
            Problem::NoPort => 500,
            Problem::IsName => 502,
        }
    }
}

/// A group of one, for an address that needs no name server.
fn literal(address: &Address, port: Option<u16>) -> Result<Target, Problem> {
    let peer_address = match (&address.host, port) {
        (Host::Unix(path), _) => PeerAddress::Unix(path.clone()),
        (Host::Ip(_), None) => return Err(Problem::NoPort),
        (Host::Ip(ip), Some(port)) => PeerAddress::Inet((*ip, port).into()),
        (Host::Name(_) | Host::Wildcard, _) => return Err(Problem::IsName),
    };
    let name: Arc<str> = match &peer_address {
        PeerAddress::Unix(_) => address.host_text.as_str().into(),
        PeerAddress::Inet(address) => address.to_string().into(),
    };
    let upstream = Upstream {
        name: name.clone(),
        peers: vec![Peer { address: peer_address, name, ..Peer::default() }],
        keepalive: Keepalive {
            idle: Idle::default(),
            requests: 0,
            time: Duration::ZERO,
            timeout: Duration::ZERO,
        },
        balance: Arc::default(),
        sticky: None,
        zone: Arc::default(),
        explicit: false,
    };
    let group = Group::new(&upstream);
    Ok(Target::Literal(Box::new(upstream), Box::new(group)))
}
