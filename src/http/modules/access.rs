//! The access module: `allow` and `deny` by the client's address, and `satisfy`, which weighs the
//! verdicts of everybody who controls access (edge-modules, section 3).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::config::address::ipv4;
use crate::config::diagnostic::{Outcome, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::setting::{List, Setting, inherit};
use crate::config::value::{self, Args};
use crate::error_log::Level;
use crate::http::connection::{Connection, client_address};
use crate::http::request::Request;
use crate::modules::Build;

#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// In the order written; the first that matches decides.
    pub rules: List<Rule>,
    pub satisfy: Setting<Satisfy>,
    /// How long a 401 is held back.
    pub auth_delay: Setting<Duration>,
}

/// One `allow` or `deny`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub source: Source,
    pub allows: bool,
}

/// Whom a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    All,
    /// Network and mask, as numbers; the network's bits outside of the mask are zero.
    V4(u32, u32),
    V6(u128, u128),
    /// Clients of unix sockets.
    Unix,
}

/// What it takes to be let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Satisfy {
    /// Nobody refuses.
    All,
    /// Somebody grants.
    Any,
}

/// What one of those who control access says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    NoOpinion,
    Granted,
    Refused(u16),
}

/// What a verdict means for the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The next one is to be asked.
    Ask,
    /// Nobody else is to be asked.
    Open,
    /// It ends with this status.
    Shut(u16),
}

/// Weighs verdicts in the order they come (`satisfy`).
#[derive(Debug)]
pub struct Gate {
    satisfy: Satisfy,
    refused: Option<u16>,
}

impl Gate {
    pub fn new(satisfy: Satisfy) -> Self {
        Gate { satisfy, refused: None }
    }

    pub fn take(&mut self, verdict: Verdict) -> Next {
        match (verdict, self.satisfy) {
            (Verdict::NoOpinion, _) | (Verdict::Granted, Satisfy::All) => Next::Ask,
            (Verdict::Granted, Satisfy::Any) => Next::Open,
            (Verdict::Refused(status @ (401 | 403 | 407)), Satisfy::Any) => {
                // Who could still name himself is told so.
                if !matches!(self.refused, Some(401 | 407)) {
                    self.refused = Some(status);
                }
                Next::Ask
            }
            (Verdict::Refused(status), _) => Next::Shut(status),
        }
    }

    /// The refusal that is left when all were asked.
    pub fn refusal(self) -> Option<u16> {
        self.refused
    }
}

impl Settings {
    pub fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer: rules, satisfy, auth_delay);
    }
}

const LEVELS: Contexts = Contexts::HTTP_SERVER_LOCATION;
const LIMITED: Contexts = LEVELS.or(Contexts::LIMIT_EXCEPT);

pub const DIRECTIVES: &[Directive<Build>] = &[
    Directive::new("allow", LIMITED, Count::Exactly(1))
        .syntax("address | CIDR | unix: | all")
        .doc("Clients that are let in; the first `allow` or `deny` that matches decides.")
        .set(|b, args| rule(b, args, true)),
    Directive::new("auth_delay", LEVELS, Count::Exactly(1))
        .syntax("time")
        .default("0")
        .doc("How long an answer of 401 is held back, against guessing of passwords.")
        .set(|b, args| args.fill(&mut b.level().access.auth_delay, Args::time)),
    Directive::new("deny", LIMITED, Count::Exactly(1))
        .syntax("address | CIDR | unix: | all")
        .doc("Clients that get 403; the first `allow` or `deny` that matches decides.")
        .set(|b, args| rule(b, args, false)),
    Directive::new("satisfy", LEVELS, Count::Exactly(1))
        .syntax("all | any")
        .default("all")
        .doc("Whether all that control access must let a request in, or one of them is enough.")
        .set(|b, args| {
            args.fill(&mut b.level().access.satisfy, |args| {
                args.choice(&[("all", Satisfy::All), ("any", Satisfy::Any)])
            })
        }),
];

fn rule(b: &mut Build, args: Args<'_>, allows: bool) -> Outcome {
    let text = args.at(0);
    let Some(source) = Source::parse(text) else { return fault!("invalid parameter \"{text}\"") };
    if source.meaningless_bits {
        b.warn(Some(args.place()), format!("low address bits of {text} are meaningless"));
    }
    b.level().access.rules.add(Rule { source: source.source, allows })
}

/// A source as read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parsed {
    pub source: Source,
    /// The address had bits outside of its mask.
    pub meaningless_bits: bool,
}

impl Source {
    /// `all`, `unix:`, an address, or `address/bits`.
    pub fn parse(text: &str) -> Option<Parsed> {
        let exact = |source| Some(Parsed { source, meaningless_bits: false });
        match text {
            "all" => return exact(Source::All),
            "unix:" => return exact(Source::Unix),
            _ => {}
        }
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(value::number(bits)?)),
            None => (text, None),
        };
        // The last one is how nginx tells that there is none.
        if let Some(address) = ipv4(address).filter(|address| !address.is_broadcast()) {
            let address = address.to_bits();
            let bits = u32::try_from(bits.unwrap_or(32)).ok().filter(|bits| *bits <= 32)?;
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(bits)).unwrap_or(0);
            let source = Source::V4(address & mask, mask);
            return Some(Parsed { source, meaningless_bits: address & !mask != 0 });
        }
        let address = address.parse::<Ipv6Addr>().ok()?.to_bits();
        let bits = u32::try_from(bits.unwrap_or(128)).ok().filter(|bits| *bits <= 128)?;
        let mask = u128::MAX.checked_shl(128_u32.saturating_sub(bits)).unwrap_or(0);
        let source = Source::V6(address & mask, mask);
        Some(Parsed { source, meaningless_bits: address & !mask != 0 })
    }

    fn holds_v4(self, address: Ipv4Addr) -> bool {
        match self {
            Source::All => true,
            Source::V4(network, mask) => address.to_bits() & mask == network,
            Source::V6(..) | Source::Unix => false,
        }
    }

    fn holds_v6(self, address: Ipv6Addr) -> bool {
        match self {
            Source::All => true,
            Source::V6(network, mask) => address.to_bits() & mask == network,
            Source::V4(..) | Source::Unix => false,
        }
    }
}

/// What the rules say to a client; `None` stands for a unix socket.
pub fn judge(rules: &[Rule], client: Option<IpAddr>) -> Option<bool> {
    let is_for_v4 = |rule: &Rule| matches!(rule.source, Source::All | Source::V4(..));
    let matching = match client {
        None => rules.iter().find(|rule| matches!(rule.source, Source::All | Source::Unix)),
        Some(IpAddr::V4(address)) => rules.iter().find(|rule| rule.source.holds_v4(address)),
        // A mapped address is its IPv4 address, if there are rules for such.
        Some(IpAddr::V6(address)) => match address.to_ipv4_mapped() {
            Some(mapped) if rules.iter().any(is_for_v4) => {
                rules.iter().find(|rule| rule.source.holds_v4(mapped))
            }
            _ => rules.iter().find(|rule| rule.source.holds_v6(address)),
        },
    };
    matching.map(|rule| rule.allows)
}

/// What `allow` and `deny` of the request's location say.
pub fn check(c: &Connection, r: &Request) -> Verdict {
    let settings = &c.settings(r).access;
    match judge(&settings.rules, client_address(c, r).ip) {
        None => Verdict::NoOpinion,
        Some(true) => Verdict::Granted,
        Some(false) => {
            // With `satisfy any` it may yet be let in: see [`forbidden`].
            if *settings.satisfy == Satisfy::All {
                forbidden(c, r);
            }
            Verdict::Refused(403)
        }
    }
}

/// The line about a 403 that was left when all had been asked.
pub fn forbidden(c: &Connection, r: &Request) {
    c.log(r, Level::Error, format_args!("access forbidden by rule"));
}

/// Any text: what is read keeps its network inside of its mask, and holds its own address.
pub fn fuzz_source(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Some(parsed) = Source::parse(&text) else { return };
    let address = text.split_once('/').map_or(&*text, |(address, _)| address);
    match parsed.source {
        Source::V4(network, mask) => {
            assert_eq!(network & !mask, 0);
            assert!(ipv4(address).is_some_and(|address| parsed.source.holds_v4(address)));
        }
        Source::V6(network, mask) => {
            assert_eq!(network & !mask, 0);
            assert!(address.parse().is_ok_and(|address| parsed.source.holds_v6(address)));
        }
        Source::All | Source::Unix => assert!(!parsed.meaningless_bits),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(lines: &[&str]) -> Vec<Rule> {
        let rule = |line: &&str| {
            let (verb, source) = line.split_once(' ').unwrap();
            let source = Source::parse(source).unwrap().source;
            Rule { source, allows: verb == "allow" }
        };
        lines.iter().map(rule).collect()
    }

    fn judged(lines: &[&str], client: &str) -> Option<bool> {
        judge(&rules(lines), client.parse().ok())
    }

    #[test]
    fn sources() {
        let v4 = |a: [u8; 4], bits: u32| {
            Source::V4(u32::from_be_bytes(a), u32::MAX.checked_shl(32 - bits).unwrap_or(0))
        };
        let source = |text| Source::parse(text).map(|parsed| parsed.source);
        assert_eq!(source("all"), Some(Source::All));
        assert_eq!(source("unix:"), Some(Source::Unix));
        assert_eq!(source("1.2.3.4"), Some(v4([1, 2, 3, 4], 32)));
        assert_eq!(source("10.0.0.0/8"), Some(v4([10, 0, 0, 0], 8)));
        assert_eq!(source("0.0.0.0/0"), Some(v4([0; 4], 0)));
        assert_eq!(source("010.0.0.1"), Some(v4([10, 0, 0, 1], 32)));
        assert_eq!(source("::/0"), Some(Source::V6(0, 0)));
        assert_eq!(source("::1"), Some(Source::V6(1, u128::MAX)));
        for bad in [
            "",
            "ALL",
            "unix",
            "unix:/x",
            "localhost",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.256",
            "1.2.3.4/",
            "1.2.3.4/33",
            "1.2.3.4/x",
            "1.2.3.4/255.0.0.0",
            "255.255.255.255",
            "255.255.255.255/8",
            "::/129",
            "[::1]",
            "1.2.3.4:80",
            "/8",
        ] {
            assert_eq!(Source::parse(bad), None, "{bad}");
        }
        assert!(Source::parse("1.2.3.4/24").unwrap().meaningless_bits);
        assert!(Source::parse("2001:db8::1/32").unwrap().meaningless_bits);
        assert!(!Source::parse("1.2.3.0/24").unwrap().meaningless_bits);
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let lines = ["deny 10.1.2.3", "allow 10.0.0.0/8", "allow 2001:db8::/32", "deny all"];
        assert_eq!(judged(&lines, "10.1.2.3"), Some(false));
        assert_eq!(judged(&lines, "10.1.2.4"), Some(true));
        assert_eq!(judged(&lines, "11.0.0.1"), Some(false));
        assert_eq!(judged(&lines, "2001:db8::5"), Some(true));
        assert_eq!(judged(&lines, "2001:db9::5"), Some(false));
        assert_eq!(judged(&lines, "unix"), Some(false));
        assert_eq!(judged(&["deny 10.0.0.0/8"], "11.0.0.1"), None);
        assert_eq!(judged(&["allow unix:", "deny all"], "unix"), Some(true));
        assert_eq!(judged(&["allow unix:", "deny all"], "127.0.0.1"), Some(false));
    }

    #[test]
    fn a_mapped_address_is_tested_as_ipv4() {
        assert_eq!(judged(&["deny 10.0.0.0/8"], "::ffff:10.0.0.1"), Some(false));
        assert_eq!(judged(&["deny 10.0.0.0/8", "allow ::/0"], "::ffff:11.0.0.1"), None);
        assert_eq!(judged(&["deny ::ffff:0:0/96"], "::ffff:10.0.0.1"), Some(false));
    }

    #[test]
    fn satisfy() {
        use Verdict::{Granted, NoOpinion, Refused};
        let passed = |satisfy, verdicts: &[Verdict]| {
            let mut gate = Gate::new(satisfy);
            for verdict in verdicts {
                match gate.take(*verdict) {
                    Next::Ask => {}
                    Next::Open => return None,
                    Next::Shut(status) => return Some(status),
                }
            }
            gate.refusal()
        };
        for (verdicts, all, any) in [
            (&[NoOpinion, NoOpinion][..], None, None),
            (&[Refused(403), Granted], Some(403), None),
            (&[Granted, Refused(401)], Some(401), None),
            (&[Refused(403), Refused(401)], Some(403), Some(401)),
            (&[Refused(401), Refused(403)], Some(401), Some(401)),
            (&[Refused(407), Refused(403)], Some(407), Some(407)),
            (&[Refused(403), NoOpinion], Some(403), Some(403)),
            (&[NoOpinion, Granted], None, None),
            (&[Refused(403), Refused(500), Granted], Some(403), Some(500)),
        ] {
            assert_eq!(passed(Satisfy::All, verdicts), all, "all: {verdicts:?}");
            assert_eq!(passed(Satisfy::Any, verdicts), any, "any: {verdicts:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text(text in "[0-9a-f.:/]{0,20}|([0-9]{1,3}\\.){3}[0-9]{1,3}(/[0-9]{1,3})?|all|unix:") {
            fuzz_source(text.as_bytes());
        }

        #[test]
        fn any_bytes(data: Vec<u8>) {
            fuzz_source(&data);
        }
    }
}
