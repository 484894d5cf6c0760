//! The map module: a variable whose value depends on that of others, through a table of keys,
//! wildcards and regexes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::config::diagnostic::{Outcome, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::value::Args;
use crate::http::computed::{Chooser, Computed, Texts};
use crate::http::connection::Connection;
use crate::http::request::Request;
use crate::http::value;
use crate::http::variable::{GaveUp, Regex, Template, VariableSlot};
use crate::modules::Build;

pub const DIRECTIVES: &[Directive<Build>] = &[
    Directive::new("map", Contexts::HTTP, Count::Exactly(2))
        .syntax("string $variable { ... }")
        .doc("A variable with the value that stands beside the key the string matches.")
        .differs(
            "the variable cannot be named like a built-in one or a family (`$http_…`); a request for \
             which the match of a regex takes too many steps is answered 500.",
        )
        .table(open, entry, |b, _| {
            let Some((slot, map, texts)) = b.http.map.take().map(Draft::finish) else {
                return Ok(());
            };
            let volatile = map.volatile;
            b.http.compute(slot, Computed { volatile, texts, chooser: Chooser::Map(map.map) });
            Ok(())
        }),
    Directive::no_effect("map_hash_bucket_size", Contexts::HTTP, Count::Exactly(1), HASHES)
        .set(|_, args| args.number().map(drop)),
    Directive::no_effect("map_hash_max_size", Contexts::HTTP, Count::Exactly(1), HASHES)
        .set(|_, args| args.number().map(drop)),
];

const HASHES: &str = "tables size themselves";

/// A `map` block.
#[derive(Debug, Default)]
pub struct Map {
    source: Template,
    keys: Keys,
    /// The source is a host: a trailing dot does not count.
    hostnames: bool,
    regexes: Vec<(Regex, u32)>,
    default: u32,
}

/// Keys that are compared whole, or at one end: lower case, each with the number of its text.
#[derive(Debug, Default)]
struct Keys {
    exact: HashMap<Box<[u8]>, u32>,
    /// `*.d` under `.d`; `.d` is here and in `exact`.
    suffixes: HashMap<Box<[u8]>, u32>,
    /// `w.*` under `w.`
    prefixes: HashMap<Box<[u8]>, u32>,
}

/// A `map` block while it is read.
#[derive(Debug)]
pub struct Draft {
    slot: VariableSlot,
    map: Map,
    texts: Texts,
    has_default: bool,
    volatile: bool,
}

struct Finished {
    map: Map,
    volatile: bool,
}

impl Draft {
    fn finish(self) -> (VariableSlot, Finished, Texts) {
        (self.slot, Finished { map: self.map, volatile: self.volatile }, self.texts)
    }
}

/// `map string $variable {`
fn open(b: &mut Build, args: Args<'_>) -> Outcome {
    let source = b.http.names.template(args.at(0))?;
    let slot = b.http.names.make_computed(args.at(1))?;
    b.http.map = Some(Draft {
        slot,
        map: Map { source, ..Map::default() },
        texts: Texts::default(),
        has_default: false,
        volatile: false,
    });
    Ok(())
}

/// A line of the block: `key value;` or one of the words with a meaning of their own.
fn entry(b: &mut Build, args: Args<'_>) -> Outcome {
    // Out of the way of the names, which the line may add to.
    let Some(mut draft) = b.http.map.take() else { return Ok(()) };
    let done = draft.line(b, args);
    b.http.map = Some(draft);
    done
}

impl Draft {
    fn line(&mut self, b: &mut Build, args: Args<'_>) -> Outcome {
        let key = args.name();
        let text = match (key, args.all()) {
            ("hostnames", []) => {
                self.map.hostnames = true;
                return Ok(());
            }
            ("volatile", []) => {
                self.volatile = true;
                return Ok(());
            }
            (_, [text]) => text,
            _ => return fault!("invalid number of the map parameters"),
        };
        let number = self.texts.add(b.http.names.template(text)?);
        if key == "default" {
            if self.has_default {
                return fault!("duplicate default map parameter");
            }
            self.has_default = true;
            self.map.default = number;
            return Ok(());
        }
        if let Some(pattern) = key.strip_prefix('~') {
            let (pattern, caseless) = match pattern.strip_prefix('*') {
                Some(pattern) => (pattern, true),
                None => (pattern, false),
            };
            let regex = b.http.names.regex(pattern, caseless)?;
            self.map.regexes.push((regex, number));
            return Ok(());
        }
        let key = key.strip_prefix('\\').unwrap_or(key);
        match self.map.keys.add(key, self.map.hostnames, number) {
            Added::Yes => Ok(()),
            // In lower case, as it is compared; nginx says it so too.
            Added::Conflict => fault!("conflicting parameter \"{}\"", key.to_ascii_lowercase()),
            Added::Invalid => fault!("invalid hostname or wildcard \"{key}\""),
        }
    }
}

impl Map {
    /// Looks the request's source up, behind what is in `out`.
    #[expect(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        reason = "expanding only appends to out: start <= end <= out.len()"
    )]
    pub fn choose(&self, c: &Connection, r: &Request, out: &mut Vec<u8>) -> u32 {
        let start = out.len();
        value::expand(&self.source, c, r, out);
        if self.hostnames && out.len() > start && out.ends_with(b".") {
            out.pop();
        }
        let end = out.len();
        let number = if self.regexes.is_empty() {
            let source = &mut out[start..];
            source.make_ascii_lowercase();
            self.keys.find(source)
        } else {
            // Regexes see the source as it is: the keys get a copy.
            out.extend_from_within(start..end);
            let (source, lower) = out[start..].split_at_mut(end - start);
            lower.make_ascii_lowercase();
            self.keys.find(lower).or_else(|| self.find_regex(source, c, r))
        };
        out.truncate(start);
        number.unwrap_or(self.default)
    }

    /// The first regex that matches; its groups are set. One that is given up ends the search: the
    /// request is not answered by what is found in its place.
    fn find_regex(&self, source: &[u8], c: &Connection, r: &Request) -> Option<u32> {
        if source.is_empty() {
            return None;
        }
        for (regex, number) in &self.regexes {
            let matched = regex.matches(source, &mut r.captures.borrow_mut());
            match matched {
                Ok(false) => {}
                Ok(true) => {
                    r.set_named_captures(regex);
                    return Some(*number);
                }
                Err(GaveUp) => {
                    r.give_up(c, regex);
                    return None;
                }
            }
        }
        None
    }
}

enum Added {
    Yes,
    /// The key is there already.
    Conflict,
    Invalid,
}

impl Keys {
    fn add(&mut self, key: &str, hostnames: bool, number: u32) -> Added {
        let key = key.to_ascii_lowercase();
        if !hostnames {
            return add(&mut self.exact, &key, number);
        }
        let stars = key.matches('*').count();
        if key.contains("..") || key.contains('\0') || stars > 1 {
            return Added::Invalid;
        }
        if key.len() > 1
            && let Some(bare) = key.strip_prefix('.')
        {
            return match add(&mut self.exact, bare, number) {
                Added::Yes => add(&mut self.suffixes, &key, number),
                conflict => conflict,
            };
        }
        if key.len() > 2 {
            if let Some(suffix) = key.strip_prefix('*').filter(|key| key.starts_with('.')) {
                return add(&mut self.suffixes, suffix, number);
            }
            if let Some(prefix) = key.strip_suffix('*').filter(|key| key.ends_with('.')) {
                return add(&mut self.prefixes, prefix, number);
            }
        }
        if stars > 0 {
            return Added::Invalid;
        }
        add(&mut self.exact, &key, number)
    }

    /// For a source in lower case: its own key, the longest suffix, the longest prefix.
    fn find(&self, source: &[u8]) -> Option<u32> {
        if let Some(number) = self.exact.get(source) {
            return Some(*number);
        }
        if !self.suffixes.is_empty() {
            // `.a.b` of `x.a.b`, then `.b`: the longest one first.
            let dots = memchr::memchr_iter(b'.', source).filter(|at| *at > 0);
            let mut suffixes = dots.filter_map(|at| source.get(at..));
            if let Some(number) = suffixes.find_map(|suffix| self.suffixes.get(suffix)) {
                return Some(*number);
            }
        }
        if !self.prefixes.is_empty() {
            // `a.b.` of `a.b.x`, then `a.`
            let dots = memchr::memrchr_iter(b'.', source).filter(|at| *at > 0);
            let prefixes = dots.filter_map(|at| source.get(..=at));
            let mut prefixes = prefixes.filter(|prefix| prefix.len() < source.len());
            return prefixes.find_map(|prefix| self.prefixes.get(prefix)).copied();
        }
        None
    }
}

fn add(keys: &mut HashMap<Box<[u8]>, u32>, key: &str, number: u32) -> Added {
    match keys.entry(key.as_bytes().into()) {
        Entry::Vacant(entry) => {
            entry.insert(number);
            Added::Yes
        }
        Entry::Occupied(_) => Added::Conflict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(hostnames: bool, keys: &[&str]) -> Keys {
        let mut table = Keys::default();
        for (number, key) in (1..).zip(keys) {
            assert!(matches!(table.add(key, hostnames, number), Added::Yes), "{key}");
        }
        table
    }

    #[test]
    fn wildcards_are_keys_like_others_without_hostnames() {
        let keys = keys(false, &["", "A", "*.b", ".b", "a..b", "*"]);
        for (source, number) in
            [("", 1), ("a", 2), ("*.b", 3), (".b", 4), ("a..b", 5), ("*", 6), ("x.b", 0), ("b", 0)]
        {
            assert_eq!(keys.find(source.as_bytes()).unwrap_or_default(), number, "{source}");
        }
    }

    #[test]
    fn exact_then_longest_suffix_then_longest_prefix() {
        let keys = keys(true, &["a.org", "*.Org", "*.x.org", ".y.org", "www.*", "www.b.*", "."]);
        for (source, number) in [
            ("a.org", 1),
            ("b.org", 2),
            ("org", 0),
            (".org", 0),
            ("q.x.org", 3),
            ("r.q.x.org", 3),
            ("x.org", 2),
            ("y.org", 4),
            ("z.y.org", 4),
            ("www.c", 5),
            ("www.", 0),
            ("www.b.c", 6),
            ("www.b", 5),
            (".", 7),
            ("", 0),
        ] {
            assert_eq!(keys.find(source.as_bytes()).unwrap_or_default(), number, "{source}");
        }
    }

    #[test]
    fn keys_that_cannot_be() {
        let mut keys = keys(true, &["a.org", "*.b.org", "c.*"]);
        for key in ["a..b", "*.*", "a*", "*", "a.*.b", "*a.b", "**"] {
            assert!(matches!(keys.add(key, true, 9), Added::Invalid), "{key}");
        }
        for key in ["A.org", ".a.org", "*.b.org", ".b.org", "C.*"] {
            assert!(matches!(keys.add(key, true, 9), Added::Conflict), "{key}");
        }
    }
}
