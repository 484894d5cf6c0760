//! What `websocket_metrics on` counts in one tunnel.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::frame::{Event, Opcode};

/// The code of a Close frame that has none (RFC 6455 section 7.1.5).
const NO_STATUS: u16 = 1005;

/// A side of a tunnel: who has sent a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Upstream,
}

impl Side {
    pub const BOTH: [Side; 2] = [Side::Client, Side::Upstream];

    #[must_use]
    pub const fn other(self) -> Side {
        match self {
            Side::Client => Side::Upstream,
            Side::Upstream => Side::Client,
        }
    }

    /// Its part of what exists once for each.
    #[inline]
    pub fn of<T>(self, both: &[T; 2]) -> &T {
        let [client, upstream] = both;
        match self {
            Side::Client => client,
            Side::Upstream => upstream,
        }
    }

    #[inline]
    pub fn of_mut<T>(self, both: &mut [T; 2]) -> &mut T {
        let [client, upstream] = both;
        match self {
            Side::Client => client,
            Side::Upstream => upstream,
        }
    }
}

/// What one side has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Direction {
    /// Frames by [`Opcode`], in its order.
    pub frames: [u64; 6],
    /// Text and binary messages whose last frame has begun.
    pub messages: u64,
    /// Of the first Close frame: 1005 if it had no code.
    pub close_code: Option<u16>,
    /// The latest Ping, while the other side has not answered it. Earlier ones need no answer of
    /// their own (RFC 6455 section 5.5.3).
    ping: Option<Ping>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Ping {
    hash: u64,
    at: Duration,
}

/// Both directions of a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    pub from_client: Direction,
    pub from_upstream: Direction,
    /// From the latest answered Ping of either side to its Pong, as seen here.
    pub ping_rtt: Option<Duration>,
}

impl Direction {
    /// Frames of one kind.
    #[expect(clippy::indexing_slicing, reason = "six opcodes, six counts")]
    pub fn frames_of(&self, opcode: Opcode) -> u64 {
        self.frames[opcode as usize]
    }
}

impl Metrics {
    /// `from` has sent what `event` says, and it was seen at `now`, by any clock that does not go
    /// back.
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "six opcodes, six counts; 2^64 frames never come"
    )]
    pub fn note(&mut self, from: Side, event: Event, now: Duration) {
        let (sender, receiver) = match from {
            Side::Client => (&mut self.from_client, &mut self.from_upstream),
            Side::Upstream => (&mut self.from_upstream, &mut self.from_client),
        };
        match event {
            Event::Frame { opcode, fin, .. } => {
                sender.frames[opcode as usize] += 1;
                sender.messages += u64::from(fin && !opcode.is_control());
            }
            Event::Closed(code) => {
                sender.close_code.get_or_insert(code.unwrap_or(NO_STATUS));
            }
            Event::Ping(hash) => sender.ping = Some(Ping { hash, at: now }),
            Event::Pong(hash) => {
                if let Some(ping) = receiver.ping.take_if(|ping| ping.hash == hash) {
                    self.ping_rtt = Some(now.saturating_sub(ping.at));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn frame(opcode: Opcode, fin: bool) -> Event {
        Event::Frame { opcode, fin, payload: 1 }
    }

    #[test]
    fn frames_and_messages_are_counted_by_side() {
        let mut metrics = Metrics::default();
        for event in [
            frame(Opcode::Text, false),
            frame(Opcode::Ping, true),
            frame(Opcode::Continuation, false),
            frame(Opcode::Continuation, true),
            frame(Opcode::Binary, true),
        ] {
            metrics.note(Side::Client, event, ms(0));
        }
        metrics.note(Side::Upstream, frame(Opcode::Pong, true), ms(0));

        assert_eq!(metrics.from_client.frames, [2, 1, 1, 0, 1, 0]);
        assert_eq!(metrics.from_client.messages, 2);
        assert_eq!(metrics.from_upstream.frames, [0, 0, 0, 0, 0, 1]);
        assert_eq!(metrics.from_upstream.messages, 0);
        assert_eq!(metrics.from_upstream.frames_of(Opcode::Pong), 1);
    }

    #[test]
    fn the_first_close_counts() {
        let mut metrics = Metrics::default();
        metrics.note(Side::Client, Event::Closed(Some(1001)), ms(0));
        metrics.note(Side::Client, Event::Closed(Some(1000)), ms(0));
        assert_eq!(metrics.from_client.close_code, Some(1001));
        assert_eq!(metrics.from_upstream.close_code, None);
        metrics.note(Side::Upstream, Event::Closed(None), ms(0));
        assert_eq!(metrics.from_upstream.close_code, Some(1005));
    }

    #[test]
    fn a_pong_of_the_other_side_gives_the_round_trip_time() {
        for (pinging, ponging) in [(Side::Client, Side::Upstream), (Side::Upstream, Side::Client)] {
            let mut metrics = Metrics::default();
            metrics.note(pinging, Event::Ping(7), ms(100));
            metrics.note(pinging, Event::Pong(7), ms(110));
            metrics.note(ponging, Event::Pong(8), ms(120));
            assert_eq!(metrics.ping_rtt, None);
            metrics.note(ponging, Event::Pong(7), ms(130));
            assert_eq!(metrics.ping_rtt, Some(ms(30)));
            // Answered once.
            metrics.note(ponging, Event::Pong(7), ms(999));
            assert_eq!(metrics.ping_rtt, Some(ms(30)));
        }
    }

    #[test]
    fn only_the_latest_ping_waits_and_both_sides_may() {
        let mut metrics = Metrics::default();
        metrics.note(Side::Client, Event::Ping(1), ms(0));
        metrics.note(Side::Client, Event::Ping(2), ms(10));
        metrics.note(Side::Upstream, Event::Ping(2), ms(15));
        metrics.note(Side::Upstream, Event::Pong(1), ms(20));
        assert_eq!(metrics.ping_rtt, None);
        metrics.note(Side::Upstream, Event::Pong(2), ms(30));
        assert_eq!(metrics.ping_rtt, Some(ms(20)));
        metrics.note(Side::Client, Event::Pong(2), ms(40));
        assert_eq!(metrics.ping_rtt, Some(ms(25)));
    }
}
