//! Wall-clock time as text, made once a second for each shard: the `Date` header and the times of
//! the logs.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tz::TimeZone;

/// The wall clock of a thread, with its texts for the current second.
#[derive(Debug)]
pub struct Clock {
    zone: TimeZone,
    second: u64,
    texts: Texts,
}

/// What one second looks like.
#[derive(Debug, Default)]
pub struct Texts {
    /// `Sun, 22 Nov 2026 07:35:16 GMT`
    pub http: String,
    /// `22/Nov/2026:07:35:16 +0000`
    pub access_log: String,
    /// `2026-11-22T07:35:16+00:00`
    pub iso8601: String,
    /// `2026/11/22 07:35:16`
    pub error_log: String,
}

impl Clock {
    pub fn new() -> Self {
        // Without a readable time zone the logs are in UTC, as with every C library.
        let zone = TimeZone::local().unwrap_or_else(|_| TimeZone::utc());
        Clock { zone, second: u64::MAX, texts: Texts::default() }
    }

    /// Time since the epoch.
    pub fn now() -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    /// The texts for the second `unix_s`.
    pub fn texts(&mut self, unix_s: u64) -> &Texts {
        if self.second != unix_s {
            self.second = unix_s;
            let offset_s = self
                .zone
                .find_local_time_type(unix_s as i64)
                .map_or(0, tz::timezone::LocalTimeType::ut_offset);
            self.texts.make(unix_s, offset_s);
        }
        &self.texts
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

impl Texts {
    fn make(&mut self, unix_s: u64, offset_s: i32) {
        let time = UNIX_EPOCH + Duration::from_secs(unix_s);
        self.http = httpdate::fmt_http_date(time);

        let local_s = unix_s.saturating_add_signed(i64::from(offset_s));
        let (year, month, day) = civil_from_days(local_s / 86400);
        let of_day = local_s % 86400;
        let (h, m, s) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        let sign = if offset_s < 0 { '-' } else { '+' };
        let (zone_h, zone_m) = (offset_s.abs() / 3600, offset_s.abs() / 60 % 60);
        let name = MONTHS[month as usize - 1];

        self.access_log.clear();
        self.iso8601.clear();
        self.error_log.clear();
        let _ = write!(
            self.access_log,
            "{day:02}/{name}/{year}:{h:02}:{m:02}:{s:02} {sign}{zone_h:02}{zone_m:02}"
        );
        let _ = write!(
            self.iso8601,
            "{year}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}{sign}{zone_h:02}:{zone_m:02}"
        );
        let _ = write!(self.error_log, "{year}/{month:02}/{day:02} {h:02}:{m:02}:{s:02}");
    }
}

/// Year, month (1 to 12) and day of a day number since 1970-01-01, in the Gregorian calendar
/// (Howard Hinnant's `civil_from_days`).
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_second_in_four_forms() {
        let mut texts = Texts::default();
        texts.make(1_795_332_916, 0);
        assert_eq!(texts.http, "Sun, 22 Nov 2026 07:35:16 GMT");
        assert_eq!(texts.access_log, "22/Nov/2026:07:35:16 +0000");
        assert_eq!(texts.iso8601, "2026-11-22T07:35:16+00:00");
        assert_eq!(texts.error_log, "2026/11/22 07:35:16");
        texts.make(1_795_332_916, -12_600);
        assert_eq!(texts.access_log, "22/Nov/2026:04:05:16 -0330");
        texts.make(1_795_332_916, 19_800);
        assert_eq!(texts.iso8601, "2026-11-22T13:05:16+05:30");
    }

    #[test]
    fn the_calendar() {
        assert_eq!(civil_from_days(0), (1970, 1, 1));
        assert_eq!(civil_from_days(11_016), (2000, 2, 29));
        assert_eq!(civil_from_days(47_540), (2100, 2, 28));
        assert_eq!(civil_from_days(47_541), (2100, 3, 1));
    }
}
