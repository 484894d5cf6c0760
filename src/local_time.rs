//! Local time as the logs print it: worked out once a second in each thread.

use std::cell::Cell;
use std::sync::LazyLock;

use tz::{DateTime, TimeZone, UtcDateTime};

/// One second in the three forms that logs use. All ASCII.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalTime {
    /// Seconds since the epoch.
    pub unix: i64,
    error_log: [u8; 19],
    common: [u8; 26],
    iso8601: [u8; 25],
}

impl LocalTime {
    /// The local time of a second since the epoch, in the zone of `TZ` or /etc/localtime (UTC when
    /// neither can be read). Cheap when asked again for the same second by the same thread.
    pub fn at(unix: i64) -> Self {
        thread_local! {
            static LAST: Cell<Option<LocalTime>> = const { Cell::new(None) };
        }
        match LAST.get() {
            Some(last) if last.unix == unix => last,
            _ => {
                let time = Self::in_zone(unix, &ZONE);
                LAST.set(Some(time));
                time
            }
        }
    }

    /// `2026/11/22 07:35:16`, as in the error log.
    pub fn error_log(&self) -> &[u8] {
        &self.error_log
    }

    /// `22/Nov/2026:07:35:16 +0000`, as `$time_local`.
    pub fn common(&self) -> &[u8; 26] {
        &self.common
    }

    /// `2026-11-22T07:35:16+00:00`, as `$time_iso8601`.
    pub fn iso8601(&self) -> &[u8] {
        &self.iso8601
    }

    fn in_zone(unix: i64, zone: &TimeZone) -> Self {
        let time = DateTime::from_timespec(unix, 0, zone.as_ref())
            .or_else(|_| UtcDateTime::from_timespec(unix, 0)?.project(UTC.as_ref()));
        let Ok(time) = time else {
            // Beyond what a calendar can say; a wrong clock must not stop a log.
            return Self { unix, ..Self::in_zone(0, &UTC) };
        };

        let year = u32::try_from(time.year()).unwrap_or(0);
        let century = digits(year / 100);
        let year = digits(year);
        let month = digits(time.month().into());
        let name = MONTHS.get(usize::from(time.month()).wrapping_sub(1)).unwrap_or(&MONTHS[0]);
        let day = digits(time.month_day().into());
        let hour = digits(time.hour().into());
        let minute = digits(time.minute().into());
        let second = digits(time.second().into());
        let offset = time.local_time_type().ut_offset();
        let sign = if offset < 0 { b"-" } else { b"+" };
        let offset_minutes = offset.unsigned_abs() / 60;
        let zone_hour = digits(offset_minutes / 60);
        let zone_minute = digits(offset_minutes % 60);

        Self {
            unix,
            error_log: join([
                &century, &year, b"/", &month, b"/", &day, b" ", &hour, b":", &minute, b":",
                &second,
            ]),
            common: join([
                &day,
                b"/",
                *name,
                b"/",
                &century,
                &year,
                b":",
                &hour,
                b":",
                &minute,
                b":",
                &second,
                b" ",
                sign,
                &zone_hour,
                &zone_minute,
            ]),
            iso8601: join([
                &century,
                &year,
                b"-",
                &month,
                b"-",
                &day,
                b"T",
                &hour,
                b":",
                &minute,
                b":",
                &second,
                sign,
                &zone_hour,
                b":",
                &zone_minute,
            ]),
        }
    }
}

/// The next moment, in seconds since the epoch, at which the local clock shows this second of the
/// day (up to 24 hours): later today, or tomorrow.
pub fn next_daily(now: i64, second_of_day: i64) -> i64 {
    next_daily_in(now, second_of_day, &ZONE)
}

#[expect(
    clippy::arithmetic_side_effects,
    reason = "the clock of a system is some years from the epoch, of 10^11"
)]
fn next_daily_in(now: i64, second_of_day: i64, zone: &TimeZone) -> i64 {
    const DAY: i64 = 24 * 60 * 60;
    let offset = |unix: i64| {
        let time = DateTime::from_timespec(unix, 0, zone.as_ref());
        time.map_or(0, |time| i64::from(time.local_time_type().ut_offset()))
    };
    let local = now.saturating_add(offset(now));
    let midnight = local - local.rem_euclid(DAY);
    // The clock may be changed in between: the offset is that of the moment itself.
    let at = |local: i64| local - offset(local - offset(now));
    let today = at(midnight + second_of_day);
    if today > now { today } else { at(midnight + DAY + second_of_day) }
}

static ZONE: LazyLock<TimeZone> = LazyLock::new(|| {
    let zone = match std::env::var("TZ") {
        Ok(name) if !name.is_empty() => TimeZone::from_posix_tz(&name),
        Ok(_) => return TimeZone::utc(),
        Err(_) => TimeZone::local(),
    };
    zone.unwrap_or_else(|_| TimeZone::utc())
});

static UTC: LazyLock<TimeZone> = LazyLock::new(TimeZone::utc);

const MONTHS: [&[u8]; 12] = [
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
];

/// The last two digits of a number.
#[expect(clippy::arithmetic_side_effects, reason = "a decimal digit")]
fn digits(number: u32) -> [u8; 2] {
    [b'0' + (number / 10 % 10) as u8, b'0' + (number % 10) as u8]
}

/// The parts one after another. Their lengths add up to `N`.
fn join<const N: usize, const PARTS: usize>(parts: [&[u8]; PARTS]) -> [u8; N] {
    let mut out = [b' '; N];
    for (place, &byte) in out.iter_mut().zip(parts.into_iter().flatten()) {
        *place = byte;
    }
    out
}

#[cfg(test)]
mod tests {
    use std::str::from_utf8;

    use proptest::prelude::*;

    use super::*;

    fn texts(time: &LocalTime) -> [&str; 3] {
        [time.error_log(), time.common(), time.iso8601()].map(|text| from_utf8(text).unwrap())
    }

    #[test]
    fn in_utc() {
        assert_eq!(
            texts(&LocalTime::in_zone(1_795_332_916, &UTC)),
            ["2026/11/22 07:35:16", "22/Nov/2026:07:35:16 +0000", "2026-11-22T07:35:16+00:00"]
        );
    }

    #[test]
    fn east_and_west_of_it() {
        let kathmandu = TimeZone::fixed(5 * 3600 + 45 * 60).unwrap();
        assert_eq!(
            texts(&LocalTime::in_zone(1_795_332_916, &kathmandu)),
            ["2026/11/22 13:20:16", "22/Nov/2026:13:20:16 +0545", "2026-11-22T13:20:16+05:45"]
        );
        let newfoundland = TimeZone::fixed(-(3 * 3600 + 30 * 60)).unwrap();
        assert_eq!(texts(&LocalTime::in_zone(0, &newfoundland))[1], "31/Dec/1969:20:30:00 -0330");
    }

    #[test]
    fn summer_time_is_followed() {
        let berlin = TimeZone::from_posix_tz("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let winter = LocalTime::in_zone(1_767_225_600, &berlin);
        let summer = LocalTime::in_zone(1_782_864_000, &berlin);
        assert_eq!(texts(&winter)[1], "01/Jan/2026:01:00:00 +0100");
        assert_eq!(texts(&summer)[1], "01/Jul/2026:02:00:00 +0200");
    }

    #[test]
    fn the_next_time_of_day() {
        const HOUR: i64 = 3600;
        // 07:35:16.
        let now = 1_795_332_916;
        let midnight = now - (7 * HOUR + 35 * 60 + 16);
        assert_eq!(next_daily_in(now, 15 * HOUR, &UTC), midnight + 15 * HOUR);
        assert_eq!(next_daily_in(now, 7 * HOUR, &UTC), midnight + 31 * HOUR);
        assert_eq!(next_daily_in(midnight, 0, &UTC), midnight + 24 * HOUR);
        assert_eq!(next_daily_in(now, 24 * HOUR, &UTC), midnight + 24 * HOUR);
        let berlin = TimeZone::from_posix_tz("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        // 2026-03-29 00:00 UTC is 01:00 there; an hour later it is 03:00.
        let spring = 1_774_742_400;
        assert_eq!(next_daily_in(spring, 4 * HOUR, &berlin), spring + 2 * HOUR);
        assert_eq!(next_daily_in(spring, HOUR / 2, &berlin), spring + 22 * HOUR + HOUR / 2);
    }

    #[test]
    fn the_cache_follows_the_clock() {
        let first = LocalTime::at(100);
        assert_eq!(LocalTime::at(100), first);
        assert_ne!(LocalTime::at(101), first);
    }

    proptest! {
        #[test]
        fn any_second(unix in any::<i64>()) {
            let time = LocalTime::in_zone(unix, &UTC);
            prop_assert_eq!(time.unix, unix);
            for text in texts(&time) {
                prop_assert!(!text.ends_with("  "));
                prop_assert!(text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '));
            }
        }
    }
}
