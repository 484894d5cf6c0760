//! Panics on demand, for tests of what one leaves behind. Only a build with debug assertions has them.

use std::rc::Rc;

use super::request::Request;
use crate::io::select::Signal;

thread_local! {
    static IN_SHARD: Rc<Signal> = Rc::default();
}

/// Panics where a request asks for it, by a line `X-Ringx-Panic: PLACE`. The shard itself is a place
/// too: see [`in_shard`].
#[inline]
#[track_caller]
pub fn at(r: &Request, place: &str) {
    if cfg!(debug_assertions) {
        let asks = |name: &[u8]| name.eq_ignore_ascii_case(b"X-Ringx-Panic");
        let mut lines = r.head.headers.iter().filter(|line| asks(r.text(line.name)));
        assert!(
            !lines.clone().any(|line| r.text(line.value) == place.as_bytes()),
            "asked for {place}"
        );
        if lines.any(|line| r.text(line.value) == b"in the shard") {
            IN_SHARD.with(|signal| signal.raise());
        }
    }
}

/// Waits, and panics when a request on this shard has asked for that.
pub async fn in_shard() {
    if cfg!(debug_assertions) {
        let signal = IN_SHARD.with(Rc::clone);
        signal.wait().await;
        panic!("asked for in the shard");
    }
    std::future::pending().await
}

/// Panics where a tunnel is to carry `X-Ringx-Panic`.
#[inline]
#[track_caller]
pub fn among(bytes: &[u8]) {
    if cfg!(debug_assertions) {
        assert!(memchr::memmem::find(bytes, b"X-Ringx-Panic").is_none(), "asked for in a tunnel");
    }
}
