//! `expires`: from what is written to the two lines of a response. Pure: the time comes in.

use std::time::{Duration, UNIX_EPOCH};

use crate::config::value;
use crate::http::variable::Template;

/// `expires [modified] time | epoch | max | off;`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expires {
    Off,
    Epoch,
    Max,
    At {
        kind: Kind,
        /// Of the day for `Daily`; may be negative otherwise.
        seconds: i64,
    },
    /// With variables: read for each response.
    Computed {
        value: Template,
        is_modified: bool,
    },
}

/// What a time is counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The response.
    Access,
    /// `modified`: its Last-Modified, when there is one.
    Modified,
    /// `@time`: midnight; the next such time.
    Daily,
}

/// Why a value is none, as it follows `"expires" directive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("invalid value")]
    Value,
    #[error("daily time value must be less than 24 hours")]
    Daily,
    #[error("daily time cannot be used with \"modified\" parameter")]
    ModifiedDaily,
}

const DAY: i64 = 24 * 60 * 60;

impl Expires {
    /// Reads a value without variables.
    pub fn parse(text: &[u8], is_modified: bool) -> Result<Expires, Invalid> {
        if !is_modified {
            match text {
                b"epoch" => return Ok(Expires::Epoch),
                b"max" => return Ok(Expires::Max),
                b"off" => return Ok(Expires::Off),
                _ => {}
            }
        }
        let own = if is_modified { Kind::Modified } else { Kind::Access };
        let (kind, is_negative, time) = match text {
            [b'@', ..] if is_modified => return Err(Invalid::ModifiedDaily),
            [b'@', time @ ..] => (Kind::Daily, false, time),
            [b'-', time @ ..] => (own, true, time),
            [b'+', time @ ..] | time => (own, false, time),
        };
        let time = std::str::from_utf8(time).ok().and_then(value::seconds).ok_or(Invalid::Value)?;
        let seconds = i64::try_from(time.as_secs()).map_err(|_| Invalid::Value)?;
        if kind == Kind::Daily && seconds > DAY {
            return Err(Invalid::Daily);
        }
        Ok(Expires::At {
            kind,
            seconds: if is_negative { 0_i64.saturating_sub(seconds) } else { seconds },
        })
    }

    /// The two lines at this moment; none for `off`.
    pub fn at(&self, moment: Moment) -> Option<Fixed> {
        let fixed = |date: &str, cache_control: &str| {
            Some(Fixed { date: date.to_owned(), cache_control: cache_control.to_owned() })
        };
        let (kind, seconds) = match self {
            Expires::Off | Expires::Computed { .. } => return None,
            Expires::Epoch => return fixed("Thu, 01 Jan 1970 00:00:01 GMT", "no-cache"),
            Expires::Max => return fixed("Thu, 31 Dec 2037 23:55:55 GMT", "max-age=315360000"),
            Expires::At { kind, seconds } => (*kind, *seconds),
        };
        let now = moment.now;
        if seconds == 0 && kind != Kind::Daily {
            return Some(Fixed { date: date(now), cache_control: "max-age=0".to_owned() });
        }
        let from = match (kind, moment.last_modified) {
            (Kind::Modified, Some(modified)) => i64::try_from(modified).unwrap_or(now),
            _ => now,
        };
        let until = match kind {
            Kind::Daily => moment.next_daily,
            Kind::Access | Kind::Modified => from.saturating_add(seconds),
        };
        let max_age = until.saturating_sub(now);
        let is_past = max_age < 0 || (seconds < 0 && !moment.is_computed);
        let cache_control =
            if is_past { "no-cache".to_owned() } else { format!("max-age={max_age}") };
        Some(Fixed { date: date(until), cache_control })
    }
}

/// What a value is looked at with. Seconds since the epoch.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub now: i64,
    pub last_modified: Option<u64>,
    /// When the time of day of a `Daily` comes next.
    pub next_daily: i64,
    /// The value came out of variables: a time before Last-Modified that is still to come is not
    /// `no-cache` then.
    pub is_computed: bool,
}

/// Values of `Expires` and `Cache-Control`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed {
    pub date: String,
    pub cache_control: String,
}

/// IMF-fixdate, within the years that it has digits for.
fn date(seconds: i64) -> String {
    const YEAR_9999: u64 = 253_402_300_799;
    let seconds = u64::try_from(seconds).unwrap_or_default().min(YEAR_9999);
    #[expect(clippy::arithmetic_side_effects, reason = "the year is 9999 at most")]
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Any value: what is accepted has a date that can be read again, and a sane Cache-Control.
#[expect(clippy::arithmetic_side_effects, reason = "the property that is tested")]
pub fn fuzz_expires(data: &[u8]) {
    for is_modified in [false, true] {
        let Ok(expires) = Expires::parse(data, is_modified) else { continue };
        for (now, last_modified) in [(0, None), (1_795_332_916, Some(784_111_777))] {
            let moment =
                Moment { now, last_modified, next_daily: now + 1, is_computed: is_modified };
            let Some(Fixed { date, cache_control }) = expires.at(moment) else { continue };
            assert!(crate::http1::date::parse(date.as_bytes()).is_some(), "{date}");
            let age = cache_control.strip_prefix("max-age=");
            assert!(
                cache_control == "no-cache" || age.is_some_and(|age| age.parse::<u64>().is_ok())
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT
    const NOW: i64 = 784_111_777;

    fn lines(
        text: &str,
        is_modified: bool,
        last_modified: Option<u64>,
    ) -> Option<(String, String)> {
        let expires = Expires::parse(text.as_bytes(), is_modified).unwrap();
        let moment = Moment { now: NOW, last_modified, next_daily: NOW + 5, is_computed: false };
        expires.at(moment).map(|fixed| (fixed.date, fixed.cache_control))
    }

    #[test]
    fn every_form() {
        let past = Some(NOW as u64 - 3600);
        for (text, is_modified, modified, date, cache_control) in [
            ("1h", false, past, "Sun, 06 Nov 1994 09:49:37 GMT", "max-age=3600"),
            ("+1h", false, None, "Sun, 06 Nov 1994 09:49:37 GMT", "max-age=3600"),
            ("-1h", false, None, "Sun, 06 Nov 1994 07:49:37 GMT", "no-cache"),
            ("0", false, None, "Sun, 06 Nov 1994 08:49:37 GMT", "max-age=0"),
            ("-0", false, None, "Sun, 06 Nov 1994 08:49:37 GMT", "max-age=0"),
            ("2h", true, past, "Sun, 06 Nov 1994 09:49:37 GMT", "max-age=3600"),
            ("30m", true, past, "Sun, 06 Nov 1994 08:19:37 GMT", "no-cache"),
            ("2h", true, None, "Sun, 06 Nov 1994 10:49:37 GMT", "max-age=7200"),
            ("@15h30m", false, None, "Sun, 06 Nov 1994 08:49:42 GMT", "max-age=5"),
            ("@0", false, None, "Sun, 06 Nov 1994 08:49:42 GMT", "max-age=5"),
            ("epoch", false, None, "Thu, 01 Jan 1970 00:00:01 GMT", "no-cache"),
            ("max", false, None, "Thu, 31 Dec 2037 23:55:55 GMT", "max-age=315360000"),
        ] {
            let expected = Some((date.to_owned(), cache_control.to_owned()));
            assert_eq!(lines(text, is_modified, modified), expected, "{text}");
        }
        assert_eq!(lines("off", false, None), None);
    }

    #[test]
    fn what_is_no_value() {
        let refused = |text: &str, is_modified| {
            Expires::parse(text.as_bytes(), is_modified).unwrap_err().to_string()
        };
        for text in ["", "x", "@", "--1", "5ms", "@-1h", "Epoch", "1h1d"] {
            assert_eq!(refused(text, false), "invalid value", "{text}");
        }
        assert_eq!(refused("max", true), "invalid value");
        assert_eq!(refused("@25h", false), "daily time value must be less than 24 hours");
        assert_eq!(refused("@1h", true), "daily time cannot be used with \"modified\" parameter");
        assert!(Expires::parse(b"@24h", false).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes(data: Vec<u8>) {
            fuzz_expires(&data);
        }

        #[test]
        fn likely_values(data in "[@+-]?([0-9]{1,12}[yMwdhms]?){1,2}") {
            fuzz_expires(data.as_bytes());
        }
    }
}
