//! Panics on demand, for tests of what one leaves behind. Only a build with debug assertions has them.

use super::request::Request;

/// Panics where a request asks for it, by a line `X-Ringx-Panic: PLACE`.
#[inline]
#[track_caller]
pub fn at(r: &Request, place: &str) {
    if cfg!(debug_assertions) {
        let asks = |name: &[u8]| name.eq_ignore_ascii_case(b"X-Ringx-Panic");
        let mut lines = r.head.headers.iter().filter(|line| asks(r.text(line.name)));
        assert!(!lines.any(|line| r.text(line.value) == place.as_bytes()), "asked for {place}");
    }
}

/// Panics where a tunnel is to carry `X-Ringx-Panic`.
#[inline]
#[track_caller]
pub fn among(bytes: &[u8]) {
    if cfg!(debug_assertions) {
        assert!(memchr::memmem::find(bytes, b"X-Ringx-Panic").is_none(), "asked for in a tunnel");
    }
}
