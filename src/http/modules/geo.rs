//! The geo module: a variable whose value depends on an address, through a table of networks or of
//! ranges.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use super::realip::forwarded;
use crate::config::address::ipv4;
use crate::config::cidr::{Cidr, Written};
use crate::config::diagnostic::{Outcome, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::value::Args;
use crate::http::computed::{Chooser, Computed, Texts};
use crate::http::connection::{Connection, client_address};
use crate::http::request::Request;
use crate::http::value;
use crate::http::variable::{Template, Variable, VariableSlot};
use crate::http1::header::Known;
use crate::modules::Build;

pub const DIRECTIVES: &[Directive<Build>] =
    &[Directive::new("geo", Contexts::HTTP, Count::Between(1, 2))
        .syntax("[$address] $variable { ... }")
        .doc("A variable with the value of the network or range that the address is in.")
        .differs(
            "the variable cannot be named like a built-in one or a family (`$http_…`); ranges are \
             not kept in a binary file beside an included one.",
        )
        .table(open, entry, |b, _| {
            let Some(draft) = b.http.geo.take() else { return Ok(()) };
            let (slot, volatile) = (draft.slot, draft.volatile);
            let (geo, texts) = draft.finish();
            b.http.compute(slot, Computed { volatile, texts, chooser: Chooser::Geo(geo) });
            Ok(())
        })];

/// A `geo` block.
#[derive(Debug)]
pub struct Geo {
    /// `None`: the client's address.
    source: Option<Variable>,
    proxies: Vec<Cidr>,
    proxy_recursive: bool,
    v4: Pieces<u32>,
    v6: Pieces<u128>,
}

/// The addresses of a family cut into pieces: the first address of each, in order, and the number of
/// its text. What comes before the first piece has no text.
#[derive(Debug)]
struct Pieces<T>(Box<[(T, u32)]>);

impl<T: Ord> Pieces<T> {
    fn find(&self, address: &T) -> u32 {
        let after = self.0.partition_point(|(first, _)| first <= address);
        after.checked_sub(1).and_then(|at| self.0.get(at)).map_or(Texts::EMPTY, |piece| piece.1)
    }
}

impl Geo {
    /// Looks the request's address up; a source is expanded behind what is in `out`.
    pub fn choose(&self, c: &Connection, r: &Request, out: &mut Vec<u8>) -> u32 {
        let address = match &self.source {
            None => client_address(c, r).ip,
            Some(variable) => {
                let start = out.len();
                value::append(variable, c, r, out);
                #[expect(clippy::indexing_slicing, reason = "expanding only appends to out")]
                let text = std::str::from_utf8(&out[start..]).ok();
                let address = text.and_then(|text| text.parse().ok());
                out.truncate(start);
                address
            }
        };
        let address = address.unwrap_or(NO_ADDRESS);
        self.find(if self.proxies.is_empty() { address } else { self.forwarded(address, r) })
    }

    /// The address that a trusted proxy names in X-Forwarded-For.
    fn forwarded(&self, address: IpAddr, r: &Request) -> IpAddr {
        let trusted = |address: Option<IpAddr>| {
            address.is_some_and(|address| self.proxies.iter().any(|p| p.contains(address)))
        };
        let lines = r.head.headers.iter().rev();
        let lines = lines.filter(|field| field.known == Known::XForwardedFor);
        let lines = lines.map(|field| r.text(field.value));
        let found = forwarded(Some(address), lines, trusted, self.proxy_recursive);
        found.map_or(address, |found| found.ip)
    }

    fn find(&self, address: IpAddr) -> u32 {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.find(&address.to_bits()),
            IpAddr::V6(address) => self.v6.find(&address.to_bits()),
        }
    }
}

/// What stands for a source that is no address.
const NO_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::BROADCAST);

/// A `geo` block while it is read.
#[derive(Debug)]
pub struct Draft {
    slot: VariableSlot,
    source: Option<Variable>,
    texts: Texts,
    /// Numbers of the texts, each of which is kept once.
    numbers: HashMap<Box<str>, u32>,
    /// The same the other way round, for warnings.
    written: Vec<Box<str>>,
    proxies: Vec<Cidr>,
    proxy_recursive: bool,
    volatile: bool,
    ranges: Option<Ranges>,
    /// By first address and number of bits: an outer network comes before those in it.
    v4: BTreeMap<(u32, u8), u32>,
    v6: BTreeMap<(u128, u8), u32>,
}

/// `ranges`: cut at every 65536th address as nginx does, which shows in what counts as an overlap.
#[derive(Debug, Default)]
struct Ranges {
    /// First and last address of each, both below 65536, and the number of its text; in order.
    by_high: BTreeMap<u16, Vec<(u16, u16, u32)>>,
    default: Option<u32>,
}

fn open(b: &mut Build, args: Args<'_>) -> Outcome {
    let source = match args.all() {
        [source, _] => match source.strip_prefix('$').filter(|name| !name.is_empty()) {
            Some(name) => Some(b.http.names.variable(name)?),
            None => return fault!("invalid variable name \"{source}\""),
        },
        _ => None,
    };
    let slot = b.http.names.make_computed(args.at(args.len().saturating_sub(1)))?;
    b.http.geo = Some(Draft {
        slot,
        source,
        texts: Texts::default(),
        numbers: HashMap::new(),
        written: vec!["".into()],
        proxies: Vec::new(),
        proxy_recursive: false,
        volatile: false,
        ranges: None,
        v4: BTreeMap::new(),
        v6: BTreeMap::new(),
    });
    Ok(())
}

fn entry(b: &mut Build, args: Args<'_>) -> Outcome {
    let Some(draft) = &mut b.http.geo else { return Ok(()) };
    let mut warnings = Vec::new();
    let done = draft.line(args, &mut warnings);
    for text in warnings {
        b.warn(Some(args.place()), text);
    }
    done
}

impl Draft {
    fn line(&mut self, args: Args<'_>, warnings: &mut Vec<String>) -> Outcome {
        let key = args.name();
        let value = match (key, args.all()) {
            ("ranges", []) => {
                if !self.v4.is_empty() || !self.v6.is_empty() {
                    return fault!(
                        "the \"ranges\" directive must be the first directive inside \"geo\" block"
                    );
                }
                self.ranges.get_or_insert_default();
                return Ok(());
            }
            ("proxy_recursive", []) => {
                self.proxy_recursive = true;
                return Ok(());
            }
            ("volatile", []) => {
                self.volatile = true;
                return Ok(());
            }
            (_, [value]) => value.as_str(),
            _ => return fault!("invalid number of the geo parameters"),
        };
        if key == "proxy" {
            let network = network(value, warnings)?;
            self.proxies.push(network);
            return Ok(());
        }
        if self.ranges.is_some() {
            return self.range(key, value, warnings);
        }
        match key {
            "delete" => {
                let removed = match network(value, warnings)? {
                    Cidr::V4 { first, bits } => self.v4.remove(&(first, bits)),
                    Cidr::V6 { first, bits } => self.v6.remove(&(first, bits)),
                };
                if removed.is_none() {
                    warnings.push(format!("no network \"{value}\" to delete"));
                }
            }
            "default" => {
                self.add(key, Cidr::V4 { first: 0, bits: 0 }, value, warnings);
                self.add(key, Cidr::V6 { first: 0, bits: 0 }, value, warnings);
            }
            _ => {
                let network = network(key, warnings)?;
                self.add(key, network, value, warnings);
            }
        }
        Ok(())
    }

    fn add(&mut self, key: &str, network: Cidr, value: &str, warnings: &mut Vec<String>) {
        let number = self.number(value);
        let old = match network {
            Cidr::V4 { first, bits } => self.v4.insert((first, bits), number),
            Cidr::V6 { first, bits } => self.v6.insert((first, bits), number),
        };
        if let Some(old) = old {
            let old = self.text(old);
            let text =
                format!("duplicate network \"{key}\", value: \"{value}\", old value: \"{old}\"");
            warnings.push(text);
        }
    }

    fn number(&mut self, value: &str) -> u32 {
        if let Some(number) = self.numbers.get(value) {
            return *number;
        }
        let number = self.texts.add(Template::literal(value.as_bytes()));
        self.numbers.insert(value.into(), number);
        self.written.push(value.into());
        number
    }

    fn text(&self, number: u32) -> &str {
        self.written.get(number as usize).map_or("", |text| text)
    }

    /// A line behind `ranges`.
    fn range(&mut self, key: &str, value: &str, warnings: &mut Vec<String>) -> Outcome {
        if key == "default" {
            let number = self.number(value);
            let old = self.ranges.as_mut().and_then(|ranges| ranges.default.replace(number));
            if let Some(old) = old {
                let old = self.text(old);
                warnings.push(format!(
                    "duplicate default geo range value: \"{value}\", old value: \"{old}\""
                ));
            }
            return Ok(());
        }
        let is_delete = key == "delete";
        let written = if is_delete { value } else { key };
        let Some((first, last)) = range(written) else {
            return fault!("invalid range \"{written}\"");
        };
        if is_delete {
            let ranges = self.ranges.get_or_insert_default();
            if !ranges.delete(first, last) {
                warnings.push(format!("no address range \"{written}\" to delete"));
            }
            return Ok(());
        }
        let number = self.number(value);
        let mut old = Vec::new();
        let added = self.ranges.get_or_insert_default().add(first, last, number, &mut old);
        for old in old {
            let old = self.text(old);
            warnings.push(format!(
                "duplicate range \"{written}\", value: \"{value}\", old value: \"{old}\""
            ));
        }
        match added {
            Ok(()) => Ok(()),
            Err(Overlap { first, last }) => {
                let (first, last) = (Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(last));
                fault!("range \"{written}\" overlaps \"{first}-{last}\"")
            }
        }
    }

    fn finish(self) -> (Geo, Texts) {
        let (v4, v6) = match self.ranges {
            Some(ranges) => {
                let default = ranges.default.unwrap_or(Texts::EMPTY);
                (ranges.pieces(default), vec![(0, default)])
            }
            None => (
                networks_to_pieces(self.v4.iter().map(|(&(first, bits), &number)| {
                    (u128::from(first), u128::from(u32::MAX) >> bits, number)
                })),
                networks_to_pieces(self.v6.iter().map(|(&(first, bits), &number)| {
                    (first, u128::MAX.checked_shr(u32::from(bits)).unwrap_or(0), number)
                })),
            ),
        };
        // A piece behind the last IPv4 address is no address's.
        let v4 = v4.iter().filter_map(|&(first, text)| Some((u32::try_from(first).ok()?, text)));
        let geo = Geo {
            source: self.source,
            proxies: self.proxies,
            proxy_recursive: self.proxy_recursive,
            v4: Pieces(v4.collect()),
            v6: Pieces(v6.into()),
        };
        (geo, self.texts)
    }
}

fn network(text: &str, warnings: &mut Vec<String>) -> Outcome<Cidr> {
    let Some(Written { network, has_low_bits }) = Cidr::parse(text) else {
        return fault!("invalid network \"{text}\"");
    };
    if has_low_bits {
        warnings.push(format!("low address bits of {text} are meaningless"));
    }
    Ok(network)
}

/// `a.b.c.d-e.f.g.h`
fn range(text: &str) -> Option<(u32, u32)> {
    let (first, last) = text.split_once('-')?;
    let address = |text: &str| ipv4(text).map(Ipv4Addr::to_bits);
    let (first, last) = (address(first)?, address(last)?);
    (first <= last).then_some((first, last))
}

/// Networks in order, an outer one before those in it, each with its first address, how many more
/// there are, and a text: the innermost network decides.
#[expect(clippy::arithmetic_side_effects, reason = "the last address of a network is one")]
fn networks_to_pieces(networks: impl Iterator<Item = (u128, u128, u32)>) -> Vec<(u128, u32)> {
    let mut pieces = vec![(0, Texts::EMPTY)];
    // The networks around the current address: last address and text.
    let mut around: Vec<(u128, u32)> = Vec::new();
    for (first, more, text) in networks {
        end_networks(&mut around, Some(first), &mut pieces);
        put_piece(&mut pieces, (first, text));
        around.push((first + more, text));
    }
    end_networks(&mut around, None, &mut pieces);
    pieces
}

/// Ends the networks whose last address is before `address`: what is around them goes on.
fn end_networks(
    around: &mut Vec<(u128, u32)>,
    address: Option<u128>,
    pieces: &mut Vec<(u128, u32)>,
) {
    while let Some((last, _)) = around.pop_if(|(last, _)| address.is_none_or(|a| *last < a)) {
        let text = around.last().map_or(Texts::EMPTY, |outer| outer.1);
        if let Some(next) = last.checked_add(1) {
            put_piece(pieces, (next, text));
        }
    }
}

/// Adds a piece; of two that begin at the same address the later one holds.
fn put_piece(pieces: &mut Vec<(u128, u32)>, piece: (u128, u32)) {
    if pieces.last().is_some_and(|last| last.0 == piece.0) {
        pieces.pop();
    }
    if pieces.last().is_none_or(|last| last.1 != piece.1) {
        pieces.push(piece);
    }
}

/// Part of a range that another one is neither inside nor outside of.
struct Overlap {
    first: u32,
    last: u32,
}

/// The parts of a range between multiples of 65536: the high half, first and last of the low half.
fn parts(first: u32, last: u32) -> impl Iterator<Item = (u16, u16, u16)> {
    let (first_high, last_high) = ((first >> 16) as u16, (last >> 16) as u16);
    (first_high..=last_high).map(move |high| {
        let start = if high == first_high { first as u16 } else { 0 };
        let end = if high == last_high { last as u16 } else { u16::MAX };
        (high, start, end)
    })
}

impl Ranges {
    /// Adds a range, which may be inside another one. `old` gets the texts that it replaces.
    #[expect(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        reason = "0 < at <= ranges.len() where it is used; from < start, and end < to"
    )]
    fn add(&mut self, first: u32, last: u32, text: u32, old: &mut Vec<u32>) -> Result<(), Overlap> {
        for (high, start, end) in parts(first, last) {
            let ranges = self.by_high.entry(high).or_default();
            let mut at = ranges.len();
            // From behind to the one that this one goes behind, or into.
            while at > 0 && end < ranges[at - 1].0 {
                at -= 1;
            }
            let Some(&(from, to, outer)) = at.checked_sub(1).and_then(|at| ranges.get(at)) else {
                ranges.insert(at, (start, end, text));
                continue;
            };
            if start > to {
                ranges.insert(at, (start, end, text));
            } else if (start, end) == (from, to) {
                old.push(outer);
                ranges[at - 1].2 = text;
            } else if start >= from && end <= to {
                let before = (start > from).then(|| (from, start - 1, outer));
                let after = (end < to).then(|| (end + 1, to, outer));
                let pieces = [before, Some((start, end, text)), after];
                ranges.splice(at - 1..at, pieces.into_iter().flatten());
            } else {
                let high = u32::from(high) << 16;
                let (from, to) = (u32::from(from), u32::from(to));
                return Err(Overlap { first: high | from, last: high | to });
            }
        }
        Ok(())
    }

    /// Removes a range that was added like this; false if there is none, or only parts of it.
    fn delete(&mut self, first: u32, last: u32) -> bool {
        let mut was_there = true;
        for (high, start, end) in parts(first, last) {
            let ranges = self.by_high.entry(high).or_default();
            let known = ranges.iter().position(|range| (range.0, range.1) == (start, end));
            match known {
                Some(at) => drop(ranges.remove(at)),
                None => was_there = false,
            }
        }
        was_there
    }

    #[expect(clippy::arithmetic_side_effects, reason = "of 33 bits, in 128")]
    fn pieces(&self, default: u32) -> Vec<(u128, u32)> {
        let mut pieces = vec![(0, default)];
        for (high, ranges) in &self.by_high {
            let high = u128::from(*high) << 16;
            for (start, end, text) in ranges {
                put_piece(&mut pieces, (high + u128::from(*start), *text));
                put_piece(&mut pieces, (high + u128::from(*end) + 1, default));
            }
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draft() -> Draft {
        Draft {
            slot: VariableSlot(0),
            source: None,
            texts: Texts::default(),
            numbers: HashMap::new(),
            written: vec!["".into()],
            proxies: Vec::new(),
            proxy_recursive: false,
            volatile: false,
            ranges: None,
            v4: BTreeMap::new(),
            v6: BTreeMap::new(),
        }
    }

    fn text_for(geo: &Geo, texts: &Texts, address: &str) -> String {
        let number = geo.find(address.parse().unwrap_or(NO_ADDRESS));
        let text = texts.get(number).and_then(Template::as_literal).unwrap();
        String::from_utf8(text.to_vec()).unwrap()
    }

    #[test]
    fn the_innermost_network_decides() {
        let mut draft = draft();
        let mut warnings = Vec::new();
        for (key, value) in [
            ("10.0.0.0/8", "a"),
            ("10.1.0.0/16", "b"),
            ("10.1.1.0/24", "c"),
            ("10.1.1.1", "d"),
            ("10.255.0.0/16", "e"),
            ("255.255.255.255", "f"),
            ("2001:db8::/32", "g"),
            ("ffff::/16", "h"),
        ] {
            let network = network(key, &mut warnings).unwrap();
            draft.add(key, network, value, &mut warnings);
        }
        let (geo, texts) = draft.finish();
        for (address, text) in [
            ("9.255.255.255", ""),
            ("10.0.0.0", "a"),
            ("10.0.255.255", "a"),
            ("10.1.0.0", "b"),
            ("10.1.1.0", "c"),
            ("10.1.1.1", "d"),
            ("10.1.1.2", "c"),
            ("10.1.2.0", "b"),
            ("10.2.0.0", "a"),
            ("10.255.255.255", "e"),
            ("11.0.0.0", ""),
            ("255.255.255.254", ""),
            ("255.255.255.255", "f"),
            ("no address", "f"),
            ("::ffff:10.1.1.1", "d"),
            ("2001:db8::1", "g"),
            ("2001:db9::", ""),
            ("ffff:ffff::", "h"),
        ] {
            assert_eq!(text_for(&geo, &texts, address), text, "{address}");
        }
        assert_eq!(warnings, [""; 0]);
    }

    fn add(ranges: &mut Ranges, text: &str, number: u32) -> Result<Vec<u32>, String> {
        let (first, last) = range(text).unwrap();
        let mut old = Vec::new();
        match ranges.add(first, last, number, &mut old) {
            Ok(()) => Ok(old),
            Err(Overlap { first, last }) => {
                Err(format!("{}-{}", Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(last)))
            }
        }
    }

    #[test]
    fn a_nested_range_splits_the_outer_one() {
        let mut ranges = Ranges::default();
        assert_eq!(add(&mut ranges, "1.0.0.0-1.0.0.255", 1), Ok(vec![]));
        assert_eq!(add(&mut ranges, "1.0.0.16-1.0.0.31", 2), Ok(vec![]));
        assert_eq!(add(&mut ranges, "0.0.0.0-0.0.0.0", 3), Ok(vec![]));
        assert_eq!(add(&mut ranges, "2.0.0.0-2.2.0.0", 4), Ok(vec![]));
        assert_eq!(add(&mut ranges, "1.0.0.16-1.0.0.31", 5), Ok(vec![2]));
        assert_eq!(add(&mut ranges, "1.0.0.8-1.0.0.20", 6), Err("1.0.0.16-1.0.0.31".to_owned()));
        assert_eq!(add(&mut ranges, "0.0.0.0-1.0.0.255", 6), Err("0.0.0.0-0.0.0.0".to_owned()));
        let pieces = Pieces(ranges.pieces(9).into());
        for (address, text) in [
            ("0.0.0.0", 3),
            ("0.0.0.1", 9),
            ("1.0.0.15", 1),
            ("1.0.0.16", 5),
            ("1.0.0.31", 5),
            ("1.0.0.32", 1),
            ("1.0.1.0", 9),
            ("2.1.255.255", 4),
            ("2.2.0.0", 4),
            ("2.2.0.1", 9),
            ("255.255.255.255", 9),
        ] {
            let bits = address.parse().map(Ipv4Addr::to_bits).unwrap();
            assert_eq!(pieces.find(&u128::from(bits)), text, "{address}");
        }
        let (first, last) = range("2.0.0.0-2.2.0.0").unwrap();
        assert!(ranges.delete(first, last) && !ranges.delete(first, last));
    }

    proptest! {
        #[test]
        fn pieces_say_what_the_networks_say(
            networks in proptest::collection::vec((any::<u8>(), 24_u8..=32), 0..12),
            address in any::<u8>(),
        ) {
            let mut draft = draft();
            for (at, (low, bits)) in networks.iter().enumerate() {
                let text = format!("10.0.0.{low}/{bits}");
                let network = network(&text, &mut Vec::new()).unwrap();
                draft.add(&text, network, &format!("{at}"), &mut Vec::new());
            }
            let by_hand = draft
                .v4
                .iter()
                .filter(|((first, bits), _)| {
                    Cidr::V4 { first: *first, bits: *bits }.contains([10, 0, 0, address].into())
                })
                .max_by_key(|((_, bits), _)| *bits)
                .map_or(Texts::EMPTY, |(_, number)| *number);
            let (geo, _) = draft.finish();
            prop_assert_eq!(geo.find([10, 0, 0, address].into()), by_hand);
        }
    }
}
