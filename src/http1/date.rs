//! Dates in headers, read as nginx reads them. What the time does not depend on is not looked at: the
//! day of the week, which need not be the right one, the zone, and whatever follows.

use super::decimal_digit;
use super::encode::HttpDate;

/// The seconds since 1970 that a date means, in any of the three forms of RFC 9110 section 5.6.7.
pub fn parse(value: &[u8]) -> Option<u64> {
    // Behind the day of the week there is a comma, but for the form of asctime().
    let at = value.iter().position(|byte| matches!(byte, b',' | b' '))?;
    let (end, rest) = value.get(at..)?.split_first()?;
    let mut rest = Rest(rest);
    while rest.byte(b' ').is_some() {}
    if *end == b' ' { rest.asctime() } else { rest.date() }
}

/// What of a date is still to be read.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    /// `06 Nov 1994 08:49:37` or `06-Nov-94 08:49:37`.
    fn date(&mut self) -> Option<u64> {
        let day = self.number(2)?;
        let separator = self.any()?;
        let month = self.month()?;
        self.byte(separator)?;
        let year = match separator {
            b' ' => self.number(4)?,
            b'-' => match self.number(2)? {
                year @ ..70 => year.saturating_add(2000),
                year => year.saturating_add(1900),
            },
            _ => return None,
        };
        self.byte(b' ')?;
        let time = self.time()?;
        seconds(year, month, day, time)
    }

    /// `Nov  6 08:49:37 1994`
    fn asctime(&mut self) -> Option<u64> {
        let month = self.month()?;
        self.byte(b' ')?;
        let _ = self.byte(b' ');
        let day = self.number(2).or_else(|| self.number(1))?;
        self.byte(b' ')?;
        let time = self.time()?;
        self.byte(b' ')?;
        seconds(self.number(4)?, month, day, time)
    }

    /// From 1 on.
    fn month(&mut self) -> Option<u16> {
        const NAMES: [&[u8]; 12] = [
            b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov",
            b"Dec",
        ];
        let (name, rest) = self.0.split_at_checked(3)?;
        self.0 = rest;
        (1..).zip(NAMES).find_map(|(month, known)| (known == name).then_some(month))
    }

    /// The second of the day.
    fn time(&mut self) -> Option<u32> {
        let hour = self.number(2).filter(|hour| *hour < 24)?;
        self.byte(b':')?;
        let minute = self.number(2).filter(|minute| *minute < 60)?;
        self.byte(b':')?;
        let second = self.number(2).filter(|second| *second < 60)?;
        #[expect(clippy::arithmetic_side_effects, reason = "a day has 86400 seconds")]
        Some((u32::from(hour) * 60 + u32::from(minute)) * 60 + u32::from(second))
    }

    /// Of so many digits: four at most.
    fn number(&mut self, digits: usize) -> Option<u16> {
        let (text, rest) = self.0.split_at_checked(digits)?;
        let number = text.iter().try_fold(0_u16, |number, &byte| {
            number.checked_mul(10)?.checked_add(decimal_digit(byte)?.into())
        })?;
        self.0 = rest;
        Some(number)
    }

    fn byte(&mut self, expected: u8) -> Option<()> {
        self.0 = self.0.strip_prefix(&[expected])?;
        Some(())
    }

    fn any(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }
}

fn seconds(year: u16, month: u16, day: u16, time: u32) -> Option<u64> {
    let (year, month, day) = (i64::from(year), i64::from(month), i64::from(day));
    if !(1..=days_of(month, year)).contains(&day) {
        return None;
    }
    #[expect(clippy::arithmetic_side_effects, reason = "years have four digits")]
    {
        // Years that begin in March have the leap day at their end.
        let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
        let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
        let days = year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1;
        // From the first of March of the year 0 to 1970.
        let since_1970 = days - 719_468;
        u64::try_from(since_1970 * 86_400 + i64::from(time)).ok()
    }
}

fn days_of(month: i64, year: i64) -> i64 {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// A date that is understood is written and understood again.
pub fn fuzz_date(data: &[u8]) {
    let Some(seconds) = parse(data) else { return };
    assert_eq!(parse(HttpDate::default().get(seconds)), Some(seconds));
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_forms_are_the_same_time() {
        for form in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(parse(form.as_bytes()), Some(784_111_777), "{form}");
        }
    }

    #[test]
    fn what_the_time_does_not_depend_on() {
        for date in [
            "Mon, 06 Nov 1994 08:49:37 GMT",
            "x,06 Nov 1994 08:49:37",
            ",   06 Nov 1994 08:49:37 CET and so on",
            "Mon Nov 06 08:49:37 1994 or so",
            "Sun Nov 6 08:49:37 1994",
        ] {
            assert_eq!(parse(date.as_bytes()), Some(784_111_777), "{date}");
        }
    }

    #[test]
    fn what_is_no_date() {
        for date in [
            "",
            ",",
            "yesterday",
            "06 Nov 1994 08:49:37 GMT",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun, 06 nov 1994 08:49:37 GMT",
            "Sun, 06 November 1994 08:49:37 GMT",
            "Sun, 06-Nov 1994 08:49:37 GMT",
            "Sun, 06/Nov/1994 08:49:37 GMT",
            "Sun, 06 Nov 1994  08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49",
            "Sun, 06 Nov 1994 24:49:37 GMT",
            "Sun, 06 Nov 1994 08:60:37 GMT",
            "Sun, 06 Nov 1994 08:49:60 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 31 Nov 1994 08:49:37 GMT",
            "Wed, 29 Feb 1995 08:49:37 GMT",
            "Thu, 29 Feb 2100 08:49:37 GMT",
            "Wed, 31 Dec 1969 23:59:59 GMT",
            "Sat, 01 Jan 0000 00:00:00 GMT",
            "Sun Nov   6 08:49:37 1994",
        ] {
            assert_eq!(parse(date.as_bytes()), None, "{date}");
        }
        assert_eq!(parse(b"\xff"), None);
    }

    proptest! {
        #[test]
        fn any_bytes(data: Vec<u8>) {
            fuzz_date(&data);
        }

        #[test]
        fn any_second(seconds in 0..253_402_300_800_u64) {
            let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
            prop_assert_eq!(parse(date.as_bytes()), Some(seconds));
        }

        #[test]
        fn likely_dates(data in "Sun, [0-9]{2} (Feb|Nov) [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT") {
            fuzz_date(data.as_bytes());
        }
    }
}
