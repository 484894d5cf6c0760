//! Wall-clock time of a shard, and the `Date` header made from it once a second.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since the epoch.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// `Sun, 22 Nov 2026 07:35:16 GMT`, kept while its second lasts (RFC 9110 section 5.6.7).
#[derive(Debug, Default)]
pub struct HttpDate {
    unix_s: u64,
    text: String,
}

impl HttpDate {
    pub fn at(&mut self, unix_s: u64) -> &[u8] {
        if self.unix_s != unix_s || self.text.is_empty() {
            self.unix_s = unix_s;
            self.text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(unix_s));
        }
        self.text.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_changes_with_its_second() {
        let mut date = HttpDate::default();
        assert_eq!(date.at(1_795_332_916), b"Sun, 22 Nov 2026 07:35:16 GMT");
        assert_eq!(date.at(1_795_332_916), b"Sun, 22 Nov 2026 07:35:16 GMT");
        assert_eq!(date.at(1_795_332_917), b"Sun, 22 Nov 2026 07:35:17 GMT");
    }
}
