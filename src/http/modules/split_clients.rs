//! The `split_clients` module: a variable that divides clients by the hash of a string.

use crate::config::diagnostic::{Outcome, fault};
use crate::config::directive::{Contexts, Count, Directive};
use crate::config::value::Args;
use crate::http::computed::{Chooser, Computed, Texts};
use crate::http::connection::Connection;
use crate::http::request::Request;
use crate::http::value;
use crate::http::variable::{Template, VariableSlot};
use crate::modules::Build;

pub const DIRECTIVES: &[Directive<Build>] =
    &[Directive::new("split_clients", Contexts::HTTP, Count::Exactly(2))
        .syntax("string $variable { percent% value; ... * value; }")
        .doc("A variable with one of several values, by the hash of the string.")
        .differs("the variable cannot be named like a built-in one or a family (`$http_…`).")
        .table(open, entry, |b, _| {
            let Some(draft) = b.http.split_clients.take() else { return Ok(()) };
            let parts = thresholds(&draft.parts)?;
            let chooser = Chooser::SplitClients(SplitClients { source: draft.source, parts });
            b.http.compute(draft.slot, Computed { volatile: false, texts: draft.texts, chooser });
            Ok(())
        })];

/// All of them, in hundredths of a percent.
const ALL: u32 = 10_000;

/// A `split_clients` block.
#[derive(Debug)]
pub struct SplitClients {
    source: Template,
    parts: Vec<Part>,
}

/// Hashes below `end` that no part before takes, and the number of their text; `None`: all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    end: Option<u32>,
    text: u32,
}

/// A `split_clients` block while it is read.
#[derive(Debug)]
pub struct Draft {
    slot: VariableSlot,
    source: Template,
    texts: Texts,
    parts: Vec<Share>,
}

/// A line: hundredths of a percent (`None`: `*`), and the number of its text.
#[derive(Debug, Clone, Copy)]
struct Share {
    hundredths: Option<u32>,
    text: u32,
}

fn open(b: &mut Build, args: Args<'_>) -> Outcome {
    let source = b.http.names.template(args.at(0))?;
    let slot = b.http.names.make_computed(args.at(1))?;
    let (texts, parts) = (Texts::default(), Vec::new());
    b.http.split_clients = Some(Draft { slot, source, texts, parts });
    Ok(())
}

fn entry(b: &mut Build, args: Args<'_>) -> Outcome {
    let Some(draft) = &mut b.http.split_clients else { return Ok(()) };
    let share = args.name();
    let hundredths = match share {
        "*" => None,
        _ => match share.strip_suffix('%').and_then(hundredths) {
            Some(hundredths @ 1..) => Some(hundredths),
            _ => return fault!("invalid percent value \"{share}\""),
        },
    };
    let [text] = args.all() else {
        return fault!("invalid number of the split_clients parameters");
    };
    let text = draft.texts.add(Template::literal(text.as_bytes()));
    draft.parts.push(Share { hundredths, text });
    Ok(())
}

/// `12`, `12.5`, `12.34`, `.5`: a number with two decimals at most, in hundredths.
fn hundredths(text: &str) -> Option<u32> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if text.is_empty() || fraction.len() > 2 || !digits(whole) || !digits(fraction) {
        return None;
    }
    let number = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u32>().ok() };
    let scale = if fraction.len() == 1 { 10 } else { 1 };
    number(whole)?.checked_mul(100)?.checked_add(number(fraction)?.checked_mul(scale)?)
}

#[expect(
    clippy::arithmetic_side_effects,
    reason = "sum <= ALL before each share is added, and last <= 0xffff_ffff with it"
)]
fn thresholds(shares: &[Share]) -> Outcome<Vec<Part>> {
    let (mut sum, mut last) = (0_u64, 0_u64);
    let mut parts = Vec::with_capacity(shares.len());
    for share in shares {
        sum = match share.hundredths {
            Some(hundredths) => sum + u64::from(hundredths),
            // Whatever comes behind `*` is too much.
            None => u64::from(ALL),
        };
        if sum > u64::from(ALL) {
            return fault!("percent total is greater than 100%");
        }
        // The last hash belongs to whoever brings the sum to all.
        let end = share.hundredths.filter(|_| sum < u64::from(ALL)).map(|hundredths| {
            last += u64::from(hundredths) * 0xffff_ffff / u64::from(ALL);
            last as u32
        });
        parts.push(Part { end, text: share.text });
    }
    Ok(parts)
}

impl SplitClients {
    /// Hashes the request's string, behind what is in `out`.
    pub fn choose(&self, c: &Connection, r: &Request, out: &mut Vec<u8>) -> u32 {
        let start = out.len();
        value::expand(&self.source, c, r, out);
        #[expect(clippy::indexing_slicing, reason = "expanding only appends to out")]
        let hash = murmur_hash2(&out[start..]);
        out.truncate(start);
        find(&self.parts, hash)
    }
}

fn find(parts: &[Part], hash: u32) -> u32 {
    let part = parts.iter().find(|part| part.end.is_none_or(|end| hash < end));
    part.map_or(Texts::EMPTY, |part| part.text)
}

/// Austin Appleby's `MurmurHash2` with a seed of zero.
pub fn murmur_hash2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut word = u32::from_le_bytes(*word).wrapping_mul(M);
        word ^= word >> 24;
        hash = hash.wrapping_mul(M) ^ word.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (shift, byte) in [0, 8, 16].into_iter().zip(rest) {
            hash ^= u32::from(*byte) << shift;
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents() {
        for (text, expected) in [
            ("1", Some(100)),
            ("0.01", Some(1)),
            ("12.5", Some(1250)),
            ("12.34", Some(1234)),
            (".5", Some(50)),
            ("5.", Some(500)),
            ("100", Some(10_000)),
            ("0", Some(0)),
            ("", None),
            ("1.234", None),
            ("1.2.3", None),
            ("-1", None),
            ("+1", None),
            ("a", None),
            ("99999999", None),
        ] {
            assert_eq!(hundredths(text), expected, "{text}");
        }
    }

    #[test]
    fn thresholds_are_truncated_each_by_itself() {
        let share = |hundredths, text| Share { hundredths, text };
        let parts = thresholds(&[share(Some(50), 1), share(Some(200), 2), share(None, 3)]).unwrap();
        assert_eq!(
            parts,
            [
                Part { end: Some(21_474_836), text: 1 },
                Part { end: Some(21_474_836 + 85_899_345), text: 2 },
                Part { end: None, text: 3 },
            ]
        );
        let found = |hash| find(&parts, hash);
        assert_eq!((found(0), found(21_474_835), found(21_474_836)), (1, 1, 2));
        assert_eq!((found(107_374_181), found(u32::MAX)), (3, 3));
        let all = thresholds(&[share(Some(2500), 1), share(Some(7500), 2)]).unwrap();
        assert_eq!(find(&all, u32::MAX), 2);
        let some = thresholds(&[share(Some(2500), 1)]).unwrap();
        assert_eq!(find(&some, u32::MAX), Texts::EMPTY);
        assert!(thresholds(&[share(Some(5000), 1), share(Some(5001), 2)]).is_err());
        assert!(thresholds(&[share(None, 1), share(Some(1), 2)]).is_err());
    }

    /// `MurmurHash2(key, len, 0)`; that nginx splits alike is tested with nginx itself.
    #[test]
    fn murmur() {
        assert_eq!(murmur_hash2(b""), 0);
        assert_eq!(murmur_hash2(b"a"), 0x9268_5f5e);
        assert_eq!(murmur_hash2(b"abcd"), 0x2687_3021);
        assert_eq!(murmur_hash2(b"hello"), 0xe561_29cb);
    }
}
