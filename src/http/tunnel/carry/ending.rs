//! The end that ringx brings about: when it is due, and the Close frames that tell of it.

use super::{Closing, End, Means, Stage, Tunnel};
use crate::http::count;
use crate::http::modules::websocket::{IdleCounts, IdleTimeout};
use crate::http::tunnel::frame;
use crate::http::tunnel::metrics::Side;

impl Tunnel {
    /// Begins to close it with this code: a Close frame to either side as soon as the frame under
    /// way is complete, then a wait for the answers. False: its bytes are not followed, so no frame
    /// can be put between them.
    pub fn close(&mut self, code: u16, now_ms: u64) -> bool {
        if self.ways.iter().any(|way| way.followed().is_none()) {
            return false;
        }
        if self.closing.is_none() {
            self.closing =
                Some(Closing { code, until_ms: now_ms.saturating_add(self.limits.answer_ms) });
        }
        true
    }

    /// Sends the Close frame that is due, if it can be put in here.
    pub(super) fn put_close(&mut self, from: Side, m: &mut Means<'_>) -> Result<(), End> {
        let Some(Closing { code, .. }) = self.closing else { return Ok(()) };
        let way = self.way(from);
        if way.stage != Stage::Open {
            return Ok(());
        }
        if way.close_passed || way.followed().is_none() {
            // A Close frame has passed already, or there is no telling where one could go.
            way.stage = Stage::Closed;
            return Ok(());
        }
        if way.pending() > 0 || !(way.close_is_due || way.is_at_boundary()) {
            return Ok(());
        }
        way.stage = Stage::Closed;
        let frame = close_frame(from, code);
        let sent = self.send(from, &frame)?;
        m.counters.closes_sent.add(1);
        count::add(&mut self.way(from).bytes, sent as u64);
        if sent < frame.len() {
            #[expect(clippy::indexing_slicing, reason = "less was sent than there is")]
            let left = &frame[sent..];
            self.way(from).keep(left);
        }
        Ok(())
    }

    /// The last moment: sends Close frames where that can be done at once.
    pub fn close_now(&mut self, code: u16, m: &mut Means<'_>) {
        if self.close(code, m.now_ms) {
            for side in Side::BOTH {
                let _ = self.put_close(side, m);
            }
        }
    }

    /// A graceful quit closes it then.
    pub fn close_at(&mut self, at_ms: u64) {
        self.close_at_ms = at_ms;
    }

    /// It begins in a shard that is to end.
    pub fn close_late(&mut self, now_ms: u64) {
        if self.limits.close_spread_ms.is_some() {
            self.close_at(now_ms);
        }
    }

    /// Before which nothing is due, whatever happens until then.
    pub fn deadline_ms(&self, now_ms: u64) -> u64 {
        let mut deadline = self.silence_deadline_ms(now_ms).min(self.close_at_ms);
        if let Some(idle) = &self.limits.idle {
            deadline = deadline.min(self.idle_deadline_ms(idle, now_ms));
        }
        if let Some(closing) = &self.closing {
            deadline = deadline.min(self.answer_deadline_ms(closing, now_ms));
        }
        for from in Side::BOTH {
            deadline = deadline.min(self.untaken_deadline_ms(from));
        }
        deadline
    }

    /// What is due now: an end, or the beginning of one. True: both directions are to be run.
    pub fn on_time(&mut self, now_ms: u64) -> Result<bool, End> {
        if self.closing.is_some_and(|closing| self.answer_deadline_ms(&closing, now_ms) <= now_ms) {
            return Err(End::Closed);
        }
        for from in Side::BOTH {
            if self.untaken_deadline_ms(from) <= now_ms {
                return Err(End::NotTaken(from.other()));
            }
        }
        if self.silence_deadline_ms(now_ms) <= now_ms {
            return Err(End::Silent);
        }
        let mut code = None;
        if self.close_at_ms <= now_ms {
            self.close_at_ms = u64::MAX;
            code = Some(frame::GOING_AWAY);
        } else if let Some(idle) = self.limits.idle
            && self.idle_deadline_ms(&idle, now_ms) <= now_ms
        {
            self.limits.idle = None;
            code = Some(frame::NORMAL);
        }
        match code {
            Some(code) if self.close(code, now_ms) => Ok(true),
            // Bytes that are no frames: a quit leaves them alone, idleness ends them.
            Some(frame::NORMAL) => Err(End::Closed),
            _ => Ok(false),
        }
    }

    /// While a frame is under way that has to end before a Close frame can go out, its bytes put the
    /// deadline off. A slow reader of them has its own.
    fn answer_deadline_ms(&self, closing: &Closing, now_ms: u64) -> u64 {
        let is_waited_for = self.ways.iter().any(|way| way.awaits_output);
        let since_ms = if is_waited_for { now_ms } else { self.carried_ms };
        closing.until_ms.max(since_ms.saturating_add(self.limits.answer_ms))
    }

    /// A server whose bytes wait for a slow client is not silent.
    fn silence_deadline_ms(&self, now_ms: u64) -> u64 {
        let is_waited_for = Side::Upstream.of(&self.ways).awaits_output;
        let since_ms = if is_waited_for { now_ms } else { self.active_ms };
        since_ms.saturating_add(self.limits.silence_ms)
    }

    /// A tunnel in which bytes wait is not idle.
    fn idle_deadline_ms(&self, idle: &IdleTimeout, now_ms: u64) -> u64 {
        let since_ms = match idle.counts {
            _ if self.ways.iter().any(|way| way.awaits_output) => now_ms,
            IdleCounts::Data => self.data_ms,
            IdleCounts::Any => self.active_ms,
        };
        since_ms.saturating_add(idle.time.as_millis() as u64)
    }

    /// As in nginx whatever comes or moves, either way, puts it off. Not when the tunnel is being closed:
    /// who has stopped to read would keep it by speaking.
    fn untaken_deadline_ms(&self, from: Side) -> u64 {
        if !from.of(&self.ways).awaits_output {
            return u64::MAX;
        }
        let limit_ms = *from.other().of(&self.limits.untaken_ms);
        match self.closing {
            None => self.active_ms.saturating_add(limit_ms),
            Some(closing) => closing.until_ms.max(self.carried_ms.saturating_add(limit_ms)),
        }
    }
}

/// A Close frame in place of one from this side: what goes to a server is masked.
fn close_frame(from: Side, code: u16) -> impl std::ops::Deref<Target = [u8]> {
    let mask = match from {
        Side::Client => crate::os::random_bytes().first_chunk().copied(),
        Side::Upstream => None,
    };
    frame::close_frame(code, mask)
}
