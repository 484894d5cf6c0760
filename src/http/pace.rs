//! How fast bytes may go: `limit_rate` towards a client, `proxy_limit_rate` from a server
//! (http-core, section 14; proxy, section 8). The arithmetic is pure: time comes in as arguments.

use std::io::IoSlice;
use std::num::NonZeroU64;
use std::time::Duration;

use smallvec::SmallVec;

use super::connection::Connection;
use super::request::Request;
use super::variable::Template;
use super::{count, value};
use crate::clock;
use crate::config::diagnostic::Outcome;
use crate::config::value::{Args, size};
use crate::error_log::{Level, escape};
use crate::http1::Span;
use crate::io::Stream;
use crate::io::stream::Failure;
use crate::io::timer::{self, Wait};
use crate::modules::Build;

/// A size, in bytes, that may hold variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Size {
    Fixed(u64),
    Template(Template),
}

impl Size {
    pub fn parse(b: &mut Build, args: Args<'_>) -> Outcome<Size> {
        let template = b.http.names.template(args.at(0))?;
        if template.has_variables() {
            return Ok(Size::Template(template));
        }
        Ok(Size::Fixed(args.size()? as u64))
    }

    /// What it comes to for this request: 0 when it is no size.
    fn of(&self, c: &Connection, r: &Request) -> u64 {
        match self {
            Size::Fixed(size) => *size,
            Size::Template(template) => {
                let text = value::expanded(template, c, r);
                parse_size(&text).unwrap_or_else(|| {
                    c.log(r, Level::Error, format_args!("invalid size \"{}\"", escape(&text)));
                    0
                })
            }
        }
    }
}

/// A size made at run time, in bytes.
pub fn parse_size(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok().and_then(size).map(|size| size as u64)
}

/// A limit in force, and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Bytes a second.
    rate: NonZeroU64,
    /// Bytes that go first, at any speed.
    after: u64,
    /// Second of the clock at which it began.
    began_s: u64,
    /// Nothing goes before this millisecond.
    held_until_ms: u64,
}

impl Pace {
    /// `None`: a rate of 0 is no limit.
    pub fn new(rate: u64, after: u64, began_s: u64) -> Option<Self> {
        Some(Pace { rate: NonZeroU64::new(rate)?, after, began_s, held_until_ms: 0 })
    }

    pub fn rate(&self) -> u64 {
        self.rate.get()
    }

    /// How much may go at once when `moved` bytes have; never 0. `Err`: nothing for so long.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "64 bits times the seconds of a clock (not 2^50), times 1000, fit in 127; the rate is not 0"
    )]
    pub fn allowed(&mut self, moved: u64, now_s: u64, now_ms: u64) -> Result<u64, Duration> {
        let held = self.hold(now_ms);
        if !held.is_zero() {
            return Err(held);
        }
        let rate = i128::from(self.rate.get());
        let seconds = i128::from(now_s.saturating_sub(self.began_s)) + 1;
        let limit = rate * seconds - (i128::from(moved) - i128::from(self.after));
        if limit > 0 {
            return Ok(u64::try_from(limit).unwrap_or(u64::MAX));
        }
        let wait_ms = u64::try_from(-limit * 1000 / rate + 1).unwrap_or(u64::MAX);
        self.held_until_ms = now_ms.saturating_add(wait_ms);
        Err(Duration::from_millis(wait_ms))
    }

    /// `moved` bytes have become `now_moved`: those take their time.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "64 bits times 1000 fit in 128; the rate is not 0"
    )]
    pub fn account(&mut self, moved: u64, now_moved: u64, now_ms: u64) {
        let counted = now_moved.saturating_sub(moved.max(self.after));
        let hold_ms = u128::from(counted) * 1000 / u128::from(self.rate.get());
        let hold_ms = u64::try_from(hold_ms).unwrap_or(u64::MAX);
        self.held_until_ms = now_ms.saturating_add(hold_ms);
    }

    /// How long nothing goes from now on; zero when something may.
    pub fn hold(&self, now_ms: u64) -> Duration {
        Duration::from_millis(self.held_until_ms.saturating_sub(now_ms))
    }
}

/// The limit for a response that is about to begin: what the request was given by `set $limit_rate`
/// or `X-Accel-Limit-Rate`, or the location's.
pub fn of_response(c: &Connection, r: &Request) -> Option<Pace> {
    let core = &c.settings(r).core;
    let rate = match (r.response.limit_rate, &*core.limit_rate) {
        (None, Size::Fixed(0)) | (Some(0), _) => return None,
        (Some(rate), _) => rate,
        (None, size) => size.of(c, r),
    };
    let after = if rate == 0 { 0 } else { core.limit_rate_after.of(c, r) };
    Pace::new(rate, after, r.started.as_secs())
}

/// The limit for reading a server's response, from now on.
pub fn of_upstream(c: &Connection, r: &Request, rate: &Size) -> Option<Pace> {
    match rate {
        Size::Fixed(0) => None,
        rate => Pace::new(rate.of(c, r), 0, clock::steady().as_secs()),
    }
}

/// The first `most` bytes of the slices.
pub fn clip<'a>(slices: &'a [IoSlice<'_>], most: u64) -> SmallVec<[IoSlice<'a>; 8]> {
    let mut left = usize::try_from(most).unwrap_or(usize::MAX);
    let mut clipped = SmallVec::new();
    for slice in slices {
        let part = Span::new(0, left.min(slice.len())).of(slice);
        left = left.saturating_sub(part.len());
        if !part.is_empty() {
            clipped.push(IoSlice::new(part));
        }
    }
    clipped
}

/// Sends everything at this pace, `moved` bytes having gone before; each time the socket is full
/// `limit` is what it may stay so. Returns how many bytes went out, also when it failed.
pub async fn send_all(
    stream: &Stream,
    pace: &mut Pace,
    moved: u64,
    mut slices: &mut [IoSlice<'_>],
    limit: Duration,
) -> (u64, Result<(), Failure>) {
    let mut total = 0;
    loop {
        IoSlice::advance_slices(&mut slices, 0);
        if slices.is_empty() {
            return (total, Ok(()));
        }
        let before = moved.saturating_add(total);
        let most = match pace.allowed(before, clock::steady().as_secs(), timer::now_ms()) {
            Ok(most) => most,
            Err(wait) => {
                if let Err(failure) = hold(stream, wait).await {
                    return (total, Err(failure));
                }
                continue;
            }
        };
        let result = stream.try_send(&clip(slices, most));
        match result {
            Ok(sent) => {
                count::add(&mut total, sent as u64);
                pace.account(before, moved.saturating_add(total), timer::now_ms());
                IoSlice::advance_slices(&mut slices, sent);
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                if let Err(failure) = stream.writable(limit).await {
                    return (total, Err(failure));
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return (total, Err(e.into())),
        }
    }
}

/// Lets `wait` pass on the stream's timer; only an interrupt ends it sooner.
pub async fn hold(stream: &Stream, wait: Duration) -> Result<(), Failure> {
    let passed = stream.timer().within(wait, Wait::Busy, std::future::pending::<()>()).await;
    match passed.map_err(Failure::from) {
        Ok(()) | Err(Failure::TimedOut) => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// Any numbers: what goes in any second is never more than the rate allows up to then, and a wait is
/// never for nothing.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "of a fuzz input: a panic is what is looked for"
)]
pub fn fuzz_pace(data: &[u8]) {
    let mut numbers = data
        .chunks(2)
        .map(|pair| pair.iter().fold(0u64, |number, byte| (number << 8) | u64::from(*byte)));
    let mut next = || numbers.next().unwrap_or_default();
    let (rate, after) = (next(), next());
    let Some(mut pace) = Pace::new(rate, after, 0) else { return };
    let (mut moved, mut now_ms) = (0, 0);
    for wanted in data.chunks(2).map(|pair| pair.len() as u64 * 700) {
        match pace.allowed(moved, now_ms / 1000, now_ms) {
            Ok(most) => {
                assert!(most > 0);
                let sent = most.min(wanted);
                pace.account(moved, moved + sent, now_ms);
                moved += sent;
                assert!(moved <= after + rate * (now_ms / 1000 + 1));
            }
            Err(wait) => {
                assert!(!wait.is_zero());
                now_ms += wait.as_millis() as u64;
                assert!(pace.hold(now_ms).is_zero());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_arithmetic_of_the_reference() {
        assert_eq!(Pace::new(0, 5, 0), None);
        let mut pace = Pace::new(1000, 0, 10).unwrap();
        assert_eq!(pace.allowed(0, 10, 0), Ok(1000));
        assert_eq!(pace.allowed(400, 10, 0), Ok(600));
        assert_eq!(pace.allowed(400, 12, 0), Ok(2600));
        // Sent ahead of its time: -limit * 1000 / rate + 1.
        assert_eq!(pace.allowed(1500, 10, 0), Err(Duration::from_millis(501)));
        assert_eq!(pace.hold(100), Duration::from_millis(401));
        assert_eq!(pace.allowed(1500, 11, 501), Ok(500));
        // Of n bytes: n * 1000 / rate.
        pace.account(1500, 2000, 501);
        assert_eq!(pace.allowed(2000, 11, 1000), Err(Duration::from_millis(1)));
        assert_eq!(pace.allowed(2000, 12, 1001), Ok(1000));
    }

    #[test]
    fn the_first_bytes_are_free() {
        let mut pace = Pace::new(1000, 5000, 0).unwrap();
        assert_eq!(pace.allowed(0, 0, 0), Ok(6000));
        pace.account(0, 4000, 0);
        assert!(pace.hold(0).is_zero());
        pace.account(4000, 5500, 0);
        assert_eq!(pace.hold(0), Duration::from_millis(500));
    }

    #[test]
    fn a_clock_that_was_set_back_allows_the_first_second() {
        let mut pace = Pace::new(1000, 0, 10).unwrap();
        assert_eq!(pace.allowed(0, 3, 0), Ok(1000));
    }

    #[test]
    fn slices_are_clipped() {
        let slices = [IoSlice::new(b"abc"), IoSlice::new(b""), IoSlice::new(b"defg")];
        for (most, expected) in [(0, ""), (2, "ab"), (3, "abc"), (5, "abcde"), (99, "abcdefg")] {
            let clipped: Vec<u8> = clip(&slices, most).iter().flat_map(|s| s.to_vec()).collect();
            assert_eq!(clipped, expected.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn any_numbers(data in proptest::collection::vec(any::<u8>(), 0..60)) {
            fuzz_pace(&data);
        }
    }
}
