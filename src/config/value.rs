//! The arguments of a statement, and the value syntaxes they share (http-core, section 1.2).

use std::ops::RangeInclusive;
use std::time::Duration;

use super::diagnostic::{Fault, Outcome, Place, fault};
use super::setting::{List, Own, Setting};
use super::tree::Statement;

/// A statement's arguments, for its own check.
#[derive(Debug, Clone, Copy)]
pub struct Args<'a> {
    statement: &'a Statement,
}

impl<'a> Args<'a> {
    pub fn new(statement: &'a Statement) -> Self {
        Args { statement }
    }

    pub fn name(self) -> &'a str {
        self.statement.name()
    }

    pub fn place(self) -> &'a Place {
        &self.statement.place
    }

    /// Whether a block follows.
    pub fn has_block(self) -> bool {
        self.statement.block.is_some()
    }

    /// The arguments after the name.
    pub fn all(self) -> &'a [String] {
        self.statement.words.get(1..).unwrap_or_default()
    }

    pub fn len(self) -> usize {
        self.all().len()
    }

    pub fn is_empty(self) -> bool {
        self.all().is_empty()
    }

    /// The argument at `index`, from 0; empty when there are fewer.
    pub fn at(self, index: usize) -> &'a str {
        self.all().get(index).map_or("", String::as_str)
    }

    /// Every argument from `index` on.
    pub fn from(self, index: usize) -> &'a [String] {
        self.all().get(index..).unwrap_or_default()
    }

    pub fn duplicate(self) -> Fault {
        Fault::new(format!("\"{}\" directive is duplicate", self.name()))
    }

    pub fn invalid_value(self) -> Fault {
        Fault::new(format!("\"{}\" directive invalid value", self.name()))
    }

    pub fn invalid_number(self) -> Fault {
        Fault::new(format!("\"{}\" directive invalid number", self.name()))
    }

    /// Fills a setting of this level, once.
    pub fn fill<T>(self, slot: &mut Setting<T>, value: impl FnOnce(Self) -> Outcome<T>) -> Outcome {
        if slot.is_set() {
            return Err(self.duplicate());
        }
        slot.set(value(self)?);
        Ok(())
    }

    /// `on` or `off`.
    pub fn flag(self) -> Outcome<bool> {
        flag(self.at(0)).ok_or_else(|| {
            Fault::new(format!(
                "invalid value \"{}\" in \"{}\" directive, it must be \"on\" or \"off\"",
                self.at(0),
                self.name()
            ))
        })
    }

    /// One of a few words.
    pub fn choice<T: Copy>(self, words: &[(&str, T)]) -> Outcome<T> {
        choice(self.at(0), words)
    }

    /// Bytes: the argument at `index` as a size of memory.
    pub fn size_at(self, index: usize) -> Outcome<usize> {
        size(self.at(index)).ok_or_else(|| self.invalid_value())
    }

    pub fn size(self) -> Outcome<usize> {
        self.size_at(0)
    }

    /// Bytes of a file or a body.
    pub fn offset(self) -> Outcome<u64> {
        offset(self.at(0)).ok_or_else(|| self.invalid_value())
    }

    /// A time that is kept in milliseconds.
    pub fn time(self) -> Outcome<Duration> {
        milliseconds(self.at(0)).ok_or_else(|| self.invalid_value())
    }

    pub fn number(self) -> Outcome<usize> {
        number(self.at(0)).ok_or_else(|| self.invalid_number())
    }

    pub fn number64(self) -> Outcome<u64> {
        self.number().map(|number| number as u64)
    }

    /// `…_hash_max_size` or `…_hash_bucket_size` of a table that nginx always builds.
    pub fn table_size(self) -> Outcome {
        const CACHE_LINE: usize = 64;
        const BUCKET_MAX: usize = 65536 - CACHE_LINE;
        let (name, size) = (self.name(), self.number()?);
        let (table, is_bucket) = match name.strip_suffix("_bucket_size") {
            Some(table) => (table, true),
            None => (name.strip_suffix("_max_size").unwrap_or(name), false),
        };
        if size == 0 {
            return Err(Fault::nowhere(format!(
                "could not build {table}, you should increase {name}: 0"
            )));
        }
        let size = size.checked_next_multiple_of(CACHE_LINE).unwrap_or(usize::MAX);
        if is_bucket && size > BUCKET_MAX {
            return Err(Fault::nowhere(format!(
                "could not build {table}, too large {name}: {size}"
            )));
        }
        Ok(())
    }

    /// The size of nginx's pools of memory.
    pub fn pool_size(self) -> Outcome<usize> {
        match self.size()? {
            0..112 => fault!("the pool size must be no less than 112"),
            size if !size.is_multiple_of(16) => {
                fault!("the pool size must be a multiple of 16")
            }
            size => Ok(size),
        }
    }

    /// A number within bounds.
    pub fn number_between(self, low: usize, high: usize) -> Outcome<usize> {
        let number = self.number()?;
        if (low..=high).contains(&number) {
            Ok(number)
        } else {
            fault!("value must be between {low} and {high}")
        }
    }
}

impl<T> Own<T> {
    /// Fails when this level already has one.
    pub fn expect_unset(&self, args: Args<'_>) -> Outcome {
        if self.is_set() { Err(args.duplicate()) } else { Ok(()) }
    }
}

impl<T> List<T> {
    /// Adds one entry of this level.
    pub fn add(&mut self, value: T) -> Outcome {
        self.push(value);
        Ok(())
    }
}

/// `on`, `off`, in any case.
pub fn flag(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("on") {
        Some(true)
    } else if text.eq_ignore_ascii_case("off") {
        Some(false)
    } else {
        None
    }
}

/// One of a few words, in any case.
pub fn choice<T: Copy>(text: &str, words: &[(&str, T)]) -> Outcome<T> {
    match words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)) {
        Some((_, value)) => Ok(*value),
        None => fault!("invalid value \"{text}\""),
    }
}

/// Digits only.
pub fn number(text: &str) -> Option<usize> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|number| isize::try_from(*number).is_ok())
}

/// Digits and `k` or `m`.
pub fn size(text: &str) -> Option<usize> {
    let kilobytes = text.strip_suffix(['k', 'K']).map(|digits| (digits, 1 << 10));
    let megabytes = text.strip_suffix(['m', 'M']).map(|digits| (digits, 1 << 20));
    let (digits, scale) = kilobytes.or(megabytes).unwrap_or((text, 1));
    number(digits)?.checked_mul(scale).filter(|size| isize::try_from(*size).is_ok())
}

/// Digits and `k`, `m` or `g`.
pub fn offset(text: &str) -> Option<u64> {
    let size = match text.strip_suffix(['g', 'G']) {
        Some(digits) => number(digits)?.checked_mul(1 << 30)?,
        None => size(text)?,
    };
    u64::try_from(size).ok().filter(|size| i64::try_from(*size).is_ok())
}

/// A time where `ms` makes sense and months do not.
pub fn milliseconds(text: &str) -> Option<Duration> {
    time(text, Unit::Week..=Unit::Millisecond)
}

/// A time in whole seconds: takes years and months, not `ms`.
pub fn seconds(text: &str) -> Option<Duration> {
    time(text, Unit::Year..=Unit::Second)
}

/// Units in descending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Unit {
    Year,
    Month,
    Week,
    Day,
    Hour,
    Minute,
    Second,
    Millisecond,
}

impl Unit {
    const fn milliseconds(self) -> u64 {
        const DAY: u64 = 86_400_000;
        match self {
            Unit::Year => 365 * DAY,
            Unit::Month => 30 * DAY,
            Unit::Week => 7 * DAY,
            Unit::Day => DAY,
            Unit::Hour => 3_600_000,
            Unit::Minute => 60_000,
            Unit::Second => 1000,
            Unit::Millisecond => 1,
        }
    }
}

/// `number[unit]` one or more times, each unit smaller than the one before.
///
/// A number followed by a space is seconds, and so is a last one without unit, whatever stands before
/// it.
fn time(text: &str, units: RangeInclusive<Unit>) -> Option<Duration> {
    let mut rest = text;
    let mut total: u64 = 0;
    let mut last_unit: Option<Unit> = None;
    let mut has_digits = false;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        has_digits |= digits > 0;
        let (value, after) = rest.split_at(digits);
        let value: u64 = if value.is_empty() { 0 } else { value.parse().ok()? };
        let (unit, length) = match after.as_bytes() {
            [] => {
                total = total.checked_add(value.checked_mul(1000)?)?;
                break;
            }
            [b'y', ..] => (Unit::Year, 1),
            [b'M', ..] => (Unit::Month, 1),
            [b'w', ..] => (Unit::Week, 1),
            [b'd', ..] => (Unit::Day, 1),
            [b'h', ..] => (Unit::Hour, 1),
            [b'm', b's', ..] => (Unit::Millisecond, 2),
            [b'm', ..] => (Unit::Minute, 1),
            [b's' | b' ', ..] => (Unit::Second, 1),
            _ => return None,
        };
        if !units.contains(&unit) || last_unit.is_some_and(|last| unit <= last) {
            return None;
        }
        last_unit = Some(unit);
        total = total.checked_add(value.checked_mul(unit.milliseconds())?)?;
        rest = after.get(length..)?.trim_start_matches(' ');
    }
    let fits = has_digits && i64::try_from(total).is_ok();
    fits.then_some(Duration::from_millis(total))
}

/// Any text: no syntax panics, and what one accepts another does not contradict.
pub fn fuzz_value(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(size) = size(&text) {
        assert_eq!(offset(&text), Some(size as u64));
    }
    if let Some(number) = number(&text) {
        assert_eq!(size(&text), Some(number));
        if let Some(time) = milliseconds(&text) {
            assert_eq!(time, Duration::from_secs(number as u64));
        }
    }
    if let (Some(a), Some(b)) = (milliseconds(&text), seconds(&text)) {
        assert_eq!(a, b);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_and_offsets() {
        assert_eq!(size("0"), Some(0));
        assert_eq!(size("8k"), Some(8192));
        assert_eq!(size("1M"), Some(1 << 20));
        for bad in ["", "k", "1g", "-1", "1 k", "1.5k", "1kk", "99999999999999999999", "+1"] {
            assert_eq!(size(bad), None, "{bad}");
        }
        assert_eq!(offset("1G"), Some(1 << 30));
        assert_eq!(offset("9999999999g"), None);
    }

    #[test]
    fn times() {
        let ms = |text| milliseconds(text).map(|time| time.as_millis());
        assert_eq!(ms("60"), Some(60_000));
        assert_eq!(ms("500ms"), Some(500));

        assert_eq!(ms("1h 30"), Some(3_630_000));
        assert_eq!(ms("1w2d3h4m5s6ms"), Some(788_645_006));
        assert_eq!(ms("1 2"), Some(3000));
        assert_eq!(ms("5ms3"), Some(3005));
        for bad in ["", "1y", "1M", "x", "1x", "s", "1s1m", "1m1m", "1 1 1", "-1", "1 m", " 1s"] {
            assert_eq!(ms(bad), None, "{bad}");
        }
        assert_eq!(seconds("1y1M"), Some(Duration::from_secs(395 * 86_400)));
        assert_eq!(seconds("5ms"), None);
    }

    proptest! {
        #[test]
        fn any_text(text in "[0-9a-zA-Z ]{0,12}|[0-9]{1,3}(y|M|w|d|h|m|s|ms|k|g| ){0,3}") {
            fuzz_value(text.as_bytes());
        }
    }
}
