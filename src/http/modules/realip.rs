//! The realip module: the client's address as a trusted proxy names it, in a header or in the PROXY
//! protocol.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::config::cidr::{Cidr, Written};
use crate::config::diagnostic::{Outcome, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::setting::{List, Setting, inherit};
use crate::config::value::Args;
use crate::http::connection::Connection;
use crate::http::request::Request;
use crate::http1::header::Known;
use crate::modules::Build;

#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Empty: the connection's address is the client's.
    pub set_real_ip_from: List<Trusted>,
    pub real_ip_header: Setting<Source>,
    pub real_ip_recursive: Setting<bool>,
}

/// Peers whose word counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trusted {
    Network(Cidr),
    /// Whoever connects to a unix socket.
    Unix,
}

/// Where the address is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The first line of this name: lower case.
    Header(Box<[u8]>),
    /// All its lines, the last one first.
    XForwardedFor,
    ProxyProtocol,
}

impl Settings {
    pub fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer: set_real_ip_from, real_ip_header, real_ip_recursive);
    }

    fn trusts(&self, peer: Option<IpAddr>) -> bool {
        self.set_real_ip_from.iter().any(|trusted| match (trusted, peer) {
            (Trusted::Network(network), Some(peer)) => network.contains(peer),
            (Trusted::Unix, None) => true,
            _ => false,
        })
    }
}

const LEVELS: Contexts = Contexts::HTTP_SERVER_LOCATION;
const ONE: Count = Count::Exactly(1);

pub const DIRECTIVES: &[Directive<Build>] = &[
    Directive::new("real_ip_header", LEVELS, ONE)
        .syntax("field | X-Real-IP | X-Forwarded-For | proxy_protocol")
        .default("X-Real-IP")
        .doc("The request header, or else the PROXY protocol, that names the client's address.")
        .set(|b, args| {
            args.fill(&mut b.level().realip.real_ip_header, |args| {
                Ok(match args.at(0) {
                    "X-Forwarded-For" => Source::XForwardedFor,
                    "proxy_protocol" => Source::ProxyProtocol,
                    name => Source::Header(name.to_ascii_lowercase().into_bytes().into()),
                })
            })
        }),
    Directive::new("real_ip_recursive", LEVELS, ONE)
        .syntax("on | off")
        .default("off")
        .doc("Whether the client is the last address that is not trusted, not just the last one.")
        .set(|b, args| args.fill(&mut b.level().realip.real_ip_recursive, Args::flag)),
    Directive::new("set_real_ip_from", LEVELS, ONE)
        .syntax("address | CIDR | hostname | unix:")
        .doc("A peer that is trusted to name the client's address.")
        .set(|b, args| {
            for trusted in trusted(b, args)? {
                b.level().realip.set_real_ip_from.push(trusted);
            }
            Ok(())
        }),
];

fn trusted(b: &mut Build, args: Args<'_>) -> Outcome<Vec<Trusted>> {
    let text = args.at(0);
    if text == "unix:" {
        return Ok(vec![Trusted::Unix]);
    }
    if let Some(Written { network, has_low_bits }) = Cidr::parse(text) {
        if has_low_bits {
            let warning = format!("low address bits of {text} are meaningless");
            b.warn(Some(args.place()), warning);
        }
        return Ok(vec![Trusted::Network(network)]);
    }
    let found = std::net::ToSocketAddrs::to_socket_addrs(&(text, 0));
    let mut networks = Vec::new();
    for address in found.into_iter().flatten() {
        let trusted = Trusted::Network(Cidr::of(address.ip()));
        if !networks.contains(&trusted) {
            networks.push(trusted);
        }
    }
    if networks.is_empty() {
        return fault!("host not found in set_real_ip_from \"{text}\"");
    }
    Ok(networks)
}

/// The address of the client, by the settings in force; once a request.
pub fn run(c: &Connection, r: &mut Request) {
    let settings = &c.settings(r).realip;
    if settings.set_real_ip_from.is_empty() || r.real_client().is_some() {
        return;
    }
    if let Some(found) = find(settings, c, r) {
        r.set_real_client(found);
    }
}

fn find(settings: &Settings, c: &Connection, r: &Request) -> Option<Found> {
    let peer = c.client.ip;
    let trusts = |peer| settings.trusts(peer);
    let recursive = *settings.real_ip_recursive;
    match &*settings.real_ip_header {
        Source::XForwardedFor => {
            let fields = r.head.headers.iter().rev();
            let fields = fields.filter(|field| field.known == Known::XForwardedFor);
            forwarded(peer, fields.map(|field| r.text(field.value)), trusts, recursive)
        }
        Source::Header(name) => {
            let named = |field: &&crate::http1::header::Field| {
                r.text(field.name).eq_ignore_ascii_case(name)
            };
            let field = r.head.headers.iter().find(named)?;
            forwarded(peer, std::iter::once(r.text(field.value)), trusts, recursive)
        }
        Source::ProxyProtocol => {
            let header = c.proxy_protocol()?;
            let address = std::iter::once(header.source.address.as_bytes());
            let found = forwarded(peer, address, trusts, recursive)?;
            Some(Found { port: Some(header.source.port), ..found })
        }
    }
}

/// An address that a proxy has named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub ip: IpAddr,
    pub port: Option<u16>,
}

/// Follows lists of addresses, `lines` from the last to the first, each list from right to left, as
/// long as whoever said so is trusted: `peer` for the first one (`None` is a unix socket). Without
/// `recursive` one step is all.
pub fn forwarded<'a>(
    peer: Option<IpAddr>,
    lines: impl Iterator<Item = &'a [u8]>,
    trusts: impl Fn(Option<IpAddr>) -> bool,
    recursive: bool,
) -> Option<Found> {
    let mut by = peer;
    let mut found = None;
    for line in lines {
        let mut rest = Some(line);
        while let Some(list) = rest {
            if !trusts(by) {
                return found;
            }
            let (last, before) = split_last(list);
            let Some(address) = address(last) else { return found };
            found = Some(address);
            by = Some(address.ip);
            if !recursive {
                return found;
            }
            rest = before;
        }
    }
    found
}

/// The last element of a list that is divided by commas and spaces, and what is before it.
fn split_last(list: &[u8]) -> (&[u8], Option<&[u8]>) {
    let is_separator = |byte: &u8| matches!(byte, b' ' | b',');
    let mut list = list;
    while let [rest @ .., end] = list
        && is_separator(end)
    {
        list = rest;
    }
    match list.iter().rposition(is_separator) {
        // A separator at the very start is taken for a part of the element.
        #[expect(
            clippy::arithmetic_side_effects,
            clippy::indexing_slicing,
            reason = "at < list.len()"
        )]
        Some(at @ 1..) => (&list[at + 1..], Some(&list[..at])),
        _ => (list, None),
    }
}

/// `1.2.3.4`, `1.2.3.4:55`, `2001:db8::1`, `[2001:db8::1]:55`. The address of all is nobody's.
fn address(text: &[u8]) -> Option<Found> {
    let text = std::str::from_utf8(text).ok()?;
    let found = if let Ok(ip) = text.parse() {
        Found { ip, port: None }
    } else {
        let address: SocketAddr = text.parse().ok()?;
        Found { ip: address.ip(), port: Some(address.port()) }
    };
    (found.port != Some(0) && found.ip != Ipv4Addr::BROADCAST).then_some(found)
}

/// Any lists: what is found stands in them, and without trust nothing is.
pub fn fuzz_forwarded(data: &[u8]) {
    let lines: Vec<&[u8]> = data.split(|&b| b == b'\n').collect();
    let peer = Some(IpAddr::from([127, 0, 0, 1]));
    let find = |trusts: fn(Option<IpAddr>) -> bool, recursive| {
        forwarded(peer, lines.iter().rev().copied(), trusts, recursive)
    };
    assert_eq!(find(|_| false, true), None);
    let last = find(|_| true, false);
    let first = find(|_| true, true);
    assert_eq!(last.is_some(), first.is_some());
    if let Some(last) = last {
        let line = lines.last().copied().unwrap_or_default();
        assert_eq!(address(split_last(line).0), Some(last));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(lines: &[&str], recursive: bool) -> String {
        let trusts = |peer: Option<IpAddr>| match peer {
            Some(IpAddr::V4(peer)) => matches!(peer.octets()[0], 10 | 127),
            Some(IpAddr::V6(_)) => false,
            None => true,
        };
        let lines = lines.iter().rev().map(|line| line.as_bytes());
        match forwarded(Some([127, 0, 0, 1].into()), lines, trusts, recursive) {
            Some(Found { ip, port: Some(port) }) => format!("{ip} {port}"),
            Some(Found { ip, port: None }) => ip.to_string(),
            None => "-".to_owned(),
        }
    }

    #[test]
    fn the_last_address() {
        for (line, expected) in [
            ("1.2.3.4", "1.2.3.4"),
            ("5.6.7.8, 1.2.3.4", "1.2.3.4"),
            ("5.6.7.8 1.2.3.4", "1.2.3.4"),
            ("5.6.7.8,1.2.3.4 , ,", "1.2.3.4"),
            (",1.2.3.4", "-"),
            ("x,,1.2.3.4", "1.2.3.4"),
            ("1.2.3.4:55", "1.2.3.4 55"),
            ("1.2.3.4:0", "-"),
            ("1.2.3.4:65536", "-"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]:55", "2001:db8::1 55"),
            ("[2001:db8::1]", "-"),
            ("::ffff:1.2.3.4", "::ffff:1.2.3.4"),
            ("255.255.255.255", "-"),
            ("255.255.255.255:1", "-"),
            ("", "-"),
            (",", "-"),
            ("1.2.3.4, x", "-"),
            ("unix:", "-"),
        ] {
            assert_eq!(found(&[line], false), expected, "{line}");
        }
        assert_eq!(found(&["1.1.1.1", "2.2.2.2"], false), "2.2.2.2");
    }

    #[test]
    fn back_to_the_last_one_that_is_not_trusted() {
        for (lines, expected) in [
            (vec!["1.2.3.4, 10.0.0.1"], "1.2.3.4"),
            (vec!["9.9.9.9, 1.2.3.4, 10.0.0.1"], "1.2.3.4"),
            (vec!["10.0.0.2, 10.0.0.1"], "10.0.0.2"),
            (vec!["x, 10.0.0.1"], "10.0.0.1"),
            (vec!["1.2.3.4", "10.0.0.2, 10.0.0.1"], "1.2.3.4"),
            (vec!["1.2.3.4, 10.0.0.3", "10.0.0.2", "10.0.0.1"], "1.2.3.4"),
            (vec!["1.2.3.4", "5.6.7.8, 10.0.0.1"], "5.6.7.8"),
            (vec!["1.2.3.4", "x"], "-"),
            (vec!["1.2.3.4:5, 10.0.0.1:6"], "1.2.3.4 5"),
        ] {
            assert_eq!(found(&lines, true), expected, "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn any_lists(text in "([0-9.:, x\n\\[\\]]|10\\.0\\.0\\.1|::1){0,20}") {
            fuzz_forwarded(text.as_bytes());
        }
    }
}
