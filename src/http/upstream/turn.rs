//! A request's turn at an upstream with a `queue`: the next server with a place for it, waited for
//! while every server that could be asked is full.

use std::rc::Rc;
use std::time::Duration;

use super::balance::Picker;
use super::exchange::Exchange;
use super::peer::{Active, PeerSet};
use super::queue::{Place, Queue};
use super::watch::watching_client;
use crate::clock;
use crate::http::close::Close;
use crate::http::request::Request;
use crate::io::timer::{self, Expired};

/// How long the first of a queue waits, at first and at most, before it looks by itself: not every
/// change is something that it is called for.
const LOOK_MS: std::ops::RangeInclusive<u64> = 1..=50;

/// What a request keeps from one server to the next.
pub(super) struct Turn<'a> {
    queue: &'a Rc<Queue>,
    /// The choice of servers as it began: so it begins again after each wait.
    fresh: Picker,
    /// Of the wait that is not over until the server has taken the connection.
    ticket: Option<Ticket>,
}

#[derive(Debug, Clone, Copy)]
struct Ticket {
    number: u64,
    since: Duration,
    until_ms: u64,
}

/// Why there is no server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoServer {
    NoLive,
    QueueFull,
    QueueTimedOut,
}

impl NoServer {
    pub fn text(self) -> &'static str {
        match self {
            NoServer::NoLive => "no live upstreams",
            NoServer::QueueFull => "upstream queue is full",
            NoServer::QueueTimedOut => "upstream queue timed out",
        }
    }
}

/// A server, by its index, and the place at it; or none.
pub(super) type Taken = Result<(usize, Active), NoServer>;

impl<'a> Turn<'a> {
    pub fn new(queue: &'a Rc<Queue>, picker: &Picker) -> Self {
        Turn { queue, fresh: picker.clone(), ticket: None }
    }

    /// What there is without waiting; `None` when it must be waited for.
    pub fn take_at_once(
        &self,
        picker: &mut Picker,
        set: &PeerSet,
        bound: Option<usize>,
    ) -> Option<Taken> {
        let now_ms = timer::now_ms();
        // Nobody is overtaken.
        if self.ticket.is_none()
            && self.queue.is_idle()
            && let Some(taken) = picker.take(set, bound, Some(self.queue), now_ms)
        {
            return Some(Ok(taken));
        }
        (!picker.has_hope(set, bound, now_ms)).then_some(Err(NoServer::NoLive))
    }

    /// The server's backlog is full: the request goes on waiting, or begins to.
    pub fn goes_on(&mut self) {
        if self.ticket.is_none() {
            self.ticket = Some(self.new_ticket(self.queue.ticket()));
        }
    }

    /// The wait is over. If it must wait again, for another server, that is another one.
    pub fn end(&mut self) {
        self.ticket = None;
    }

    /// How long the wait has been up to now.
    pub fn waited(&self) -> Option<Duration> {
        self.ticket.map(|ticket| clock::steady().saturating_sub(ticket.since))
    }

    fn new_ticket(&self, number: u64) -> Ticket {
        let timeout_ms = self.queue.timeout().as_millis() as u64;
        let until_ms = timer::now_ms().saturating_add(timeout_ms);
        Ticket { number, since: clock::steady(), until_ms }
    }
}

impl Exchange<'_> {
    /// The next server with a place at it, after a wait.
    pub async fn wait_turn(
        &self,
        r: &mut Request,
        turn: &mut Turn<'_>,
        picker: &mut Picker,
        set: &PeerSet,
        bound: Option<usize>,
    ) -> Result<Taken, Close> {
        let queue = turn.queue;
        let counters = &self.c.shard.counters;
        let place = match turn.ticket {
            Some(ticket) => Some(queue.rejoin(ticket.number, counters)),
            None => queue.join(counters),
        };
        let Some(place) = place else { return Ok(Err(NoServer::QueueFull)) };
        let ticket = turn.ticket.unwrap_or_else(|| turn.new_ticket(place.ticket()));
        turn.ticket = Some(ticket);
        let ignores_abort = self.ignores_abort(r);
        let waiting = wait(place, turn, picker, set, bound, ticket.until_ms);
        match watching_client(self.c, r, waiting, ignores_abort).await? {
            Ok(taken) => Ok(taken),
            Err(_) => Err(Close::Interrupted),
        }
    }
}

/// Waits in the queue until a server has a place, none can have one, or the time is up. An error is
/// the forced end of the shard.
async fn wait(
    place: Place<'_>,
    turn: &Turn<'_>,
    picker: &mut Picker,
    set: &PeerSet,
    bound: Option<usize>,
    until_ms: u64,
) -> Result<Taken, Expired> {
    let mut look_ms = *LOOK_MS.start();
    let mut has_yielded = false;
    let mut tries = place.is_first();
    if !tries && set.has_room(timer::now_ms()) {
        // Something that nobody was called for.
        turn.queue.call_first();
    }
    loop {
        let now_ms = timer::now_ms();
        if tries {
            // A request that has waited longer on another shard is on its way, and gets a moment.
            has_yielded =
                !has_yielded && place.is_first() && set.has_room(now_ms) && place.calls_older();
            if has_yielded {
                look_ms = *LOOK_MS.start();
            } else {
                picker.rewind(&turn.fresh);
                if let Some(taken) = picker.take(set, bound, Some(turn.queue), now_ms) {
                    place.served(set.has_room(now_ms));
                    return Ok(Ok(taken));
                }
                if !picker.has_hope(set, bound, now_ms) {
                    return Ok(Err(NoServer::NoLive));
                }
                if set.has_room(now_ms) {
                    place.pass_on();
                }
            }
        }
        let Some(left_ms) = until_ms.checked_sub(now_ms).filter(|left| *left > 0) else {
            return Ok(Err(NoServer::QueueTimedOut));
        };
        let limit_ms = match (place.is_first(), set.backlog_ms(now_ms)) {
            (false, _) => left_ms,
            (true, Some(backlog_ms)) => backlog_ms.min(left_ms),
            (true, None) => look_ms.min(left_ms),
        };
        tries = match place.called(Duration::from_millis(limit_ms)).await {
            Ok(()) => true,
            Err(Expired::Elapsed) => {
                look_ms = look_ms.saturating_mul(2).min(*LOOK_MS.end());
                place.is_first()
            }
            Err(Expired::Interrupted) => return Err(Expired::Interrupted),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::OwnCounters;
    use crate::http::modules::upstream::{Balance, Peer};
    use crate::http::upstream::queue::tests::without_door;
    use crate::http::upstream::zone::Zone;

    #[test]
    fn nobody_is_overtaken_and_nobody_waits_in_vain() {
        let (queue, counters) =
            (Rc::new(without_door(5)), OwnCounters::new(std::sync::Arc::default(), 0));
        let peer = |down| Peer { max_conns: 1, down, ..Peer::default() };
        let [set, down] = [false, true].map(|down| {
            PeerSet::new(vec![peer(down)], &Balance::RoundRobin, &Zone::default(), None)
        });
        let at_once = |set: &PeerSet| {
            let mut picker = Picker::new(set, None, Vec::new);
            Turn::new(&queue, &picker).take_at_once(&mut picker, set, None)
        };
        let full = at_once(&set);
        assert!(matches!(full, Some(Ok((0, _)))));
        assert!(at_once(&set).is_none());
        drop(full);
        let place = queue.join(&counters);
        assert!(place.is_some() && set.has_room(0) && at_once(&set).is_none());
        assert!(matches!(at_once(&down), Some(Err(NoServer::NoLive))));
        drop(place);
        assert!(at_once(&set).is_some());
    }
}
