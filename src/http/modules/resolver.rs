//! `resolver` and `resolver_timeout`: which name servers are asked for names that are met while
//! running. They are asked in `src/resolver.rs`.

use std::time::Duration;

use crate::config::address::{Address, Form, Host};
use crate::config::diagnostic::{Fault, Outcome, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::setting::{Setting, inherit};
use crate::config::value::{Args, seconds};
use crate::http::server::ResolverId;
use crate::modules::Build;
use crate::resolver::Servers;

#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `resolver`; `None` where no level has one.
    pub servers: Setting<Option<ResolverId>>,
    /// `resolver_timeout`; zero: none.
    pub timeout: Setting<Duration>,
}

impl Settings {
    pub fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer: servers, timeout);
    }

    /// There is no default.
    pub fn fill_absent(&mut self) {
        self.servers = Setting::of(None);
    }
}

const LEVELS: Contexts = Contexts::HTTP_SERVER_LOCATION.or(Contexts::UPSTREAM);

pub const DIRECTIVES: &[Directive<Build>] = &[
    Directive::new("resolver", LEVELS, Count::AtLeast(1))
        .syntax("address ... [valid=time] [ipv4=on|off] [ipv6=on|off]")
        .doc(
            "The name servers that are asked for names met while running, in rotation. Answers are \
             kept for the time they give, or for the one of `valid`.",
        )
        .differs(
            "Each question goes out from a port of its own. A server that cannot be reached costs no \
             time, and addresses of one family are used where those of the other could not be had.",
        )
        .set(|b, args| {
            if settings(b).servers.is_set() {
                return Err(args.duplicate());
            }
            let id = ResolverId(b.http.resolvers.len() as u32);
            b.http.resolvers.push(servers(args)?);
            settings(b).servers.set(Some(id));
            Ok(())
        }),
    Directive::new("resolver_timeout", LEVELS, Count::Exactly(1))
        .syntax("time")
        .default("30s")
        .doc("How long to wait for the answer of the name servers.")
        .set(|b, args| args.fill(&mut settings(b).timeout, Args::time)),
];

/// Those of the `upstream` block or the level being read.
#[allow(clippy::unreachable, reason = "at load, and `upstream_at` is set by adding that upstream")]
fn settings(b: &mut Build) -> &mut Settings {
    if b.http.upstream_at.is_none() {
        return &mut b.http.level().resolver;
    }
    match b.http.upstream_block() {
        Some(upstream) => &mut upstream.resolver,
        None => unreachable!("an upstream is read that is not there"),
    }
}

/// `address ... [valid=time] [ipv4=on|off] [ipv6=on|off]`
fn servers(args: Args<'_>) -> Outcome<Servers> {
    const PORT: u16 = 53;
    let mut servers = Servers { addresses: Vec::new(), valid: None, ipv4: true, ipv6: true };
    for argument in args.all() {
        let invalid = || fault!("invalid parameter: {argument}");
        let switch = |value: &str| match value {
            "on" => Some(true),
            "off" => Some(false),
            _ => None,
        };
        match argument.split_once('=') {
            Some(("valid", value)) => match seconds(value) {
                Some(time) => servers.valid = Some(time),
                None => return invalid(),
            },
            Some(("ipv4", value)) => match switch(value) {
                Some(on) => servers.ipv4 = on,
                None => return invalid(),
            },
            Some(("ipv6", value)) => match switch(value) {
                Some(on) => servers.ipv6 = on,
                None => return invalid(),
            },
            _ => {
                let failed = |error| Fault::new(format!("{error} in resolver \"{argument}\""));
                let address = Address::parse(argument, Form::Peer).map_err(failed)?;
                if matches!(address.host, Host::Unix(_)) {
                    return fault!("invalid host in resolver \"{argument}\"");
                }
                let port = address.port().unwrap_or(PORT);
                servers.addresses.extend(address.resolve(port).map_err(failed)?);
            }
        }
    }
    if !servers.ipv4 && !servers.ipv6 {
        return fault!("\"ipv4\" and \"ipv6\" cannot both be \"off\"");
    }
    if servers.addresses.is_empty() {
        return fault!("no name servers defined");
    }
    Ok(servers)
}
