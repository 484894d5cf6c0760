//! The shard's tunnels: one poller for all of their sockets, one task that runs whichever can go on.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use slab::Slab;

use super::carry::{End, Means, Post, Ran, Tunnel, Waits};
use super::flow::SCRATCH;
use super::frame;
use super::metrics::Side;
use super::parcel::{self, Parcel};
use super::pipe::Pipes;
use super::record::Logs;
use super::wheel::Wheel;
use super::{Ending, Opening};
use crate::error_log::Level;
use crate::io::Stream;
use crate::io::batch::Sends;
use crate::io::poller::{Event, Poller, Token};
use crate::io::runtime::{self, Ring};
use crate::io::select::{Either, Signal, either, yield_now};
use crate::io::standby::{Standby, Stood};
use crate::io::timer::{self, Timer, Wait};
use crate::shard::{ConnectionGuard, Shard};

/// When so many events have been served, the shard's other tasks have their turn: requests beside busy
/// tunnels wait for no more than these and one batch.
const EVENTS_MAX: usize = 64;
/// So many events in one batch: others have come while they were served.
const BUSY: usize = 4;
/// How long to pause when waiting for events has failed.
const PAUSE: Duration = Duration::from_millis(100);

/// The tunnels of a shard.
pub struct Tunnels {
    engine: RefCell<Engine>,
    /// Readable when the poller has events.
    bell: Stream,
    /// Waits in the poller itself, where it can.
    standby: Option<Standby>,
    timer: Timer,
    /// There is something to do that no event tells of.
    stirred: Signal,
    /// A forced end has begun.
    closed: Cell<bool>,
}

struct Engine {
    poller: Poller,
    slots: Slab<Slot>,
    /// Told apart from an earlier holder of the same slot.
    sequence: u32,
    wheel: Wheel,
    /// Directions that have used up their turn.
    ready: VecDeque<(Token, Side)>,
    pipes: Pipes,
    scratch: Box<[u8; SCRATCH]>,
    /// What is sent together, and the sources of it. Gone while it is being sent.
    sends: Option<Sends>,
    sources: Vec<Token>,
    /// Tunnels that have ended in this turn.
    ended: Vec<(Slot, End)>,
    /// More was done in this turn than bytes were moved: others may have been woken by it, or the ring
    /// have something to submit.
    concerns_others: bool,
    // Reused from turn to turn.
    events: Vec<Event>,
    due: Vec<usize>,
}

struct Slot {
    sequence: u32,
    tunnel: Tunnel,
    ending: Ending,
    /// The shard has a connection less when it is dropped.
    _connection: ConnectionGuard,
}

/// Which tunnels may be given away.
#[derive(Debug, Clone, Copy)]
pub enum Which {
    Any,
    /// Since so many milliseconds of [`timer::now_ms`] at least.
    IdleSince(u64),
}

impl Tunnels {
    pub fn new(ring: Ring) -> io::Result<Self> {
        let poller = Poller::new(ring)?;
        let bell = poller.bell()?;
        let standby = poller.knows_ring().then(Standby::default);
        let scratch = vec![0; SCRATCH].into_boxed_slice();
        let engine = Engine {
            poller,
            slots: Slab::new(),
            sequence: 0,
            wheel: Wheel::new(timer::now_ms()),
            ready: VecDeque::new(),
            pipes: Pipes::default(),
            scratch: scratch.try_into().map_err(|_| io::ErrorKind::OutOfMemory)?,
            sends: Some(Sends::one_by_one()),
            sources: Vec::new(),
            ended: Vec::new(),
            concerns_others: false,
            events: Vec::new(),
            due: Vec::new(),
        };
        Ok(Tunnels {
            engine: RefCell::new(engine),
            bell,
            standby,
            timer: Timer::new(),
            stirred: Signal::default(),
            closed: Cell::new(false),
        })
    }

    /// Takes over two sockets. What they carry from now on is no task's.
    pub fn open(
        &self,
        shard: &Rc<Shard>,
        client: OwnedFd,
        connection: ConnectionGuard,
        opening: Opening,
    ) {
        let engine = &mut *self.engine.borrow_mut();
        engine.open(shard, client, connection, opening);
        if shard.gives_late_tunnels() {
            shard.give_tunnels();
        }
        if self.closed.get() {
            engine.close_all(shard);
        }
        engine.bury(shard);
        // A deadline may come before the one that the task sleeps until.
        self.stirred.raise();
    }

    /// Gives away at most so many tunnels, those first that have been quiet longest. One that cannot
    /// be packed is ended.
    pub fn give(&self, shard: &Shard, most: usize, which: Which) -> Vec<Parcel> {
        let engine = &mut *self.engine.borrow_mut();
        let parcels = engine.give(shard, most, which);
        engine.bury(shard);
        parcels
    }

    /// Takes tunnels that another shard, or another process, has given away.
    pub fn take(&self, shard: &Rc<Shard>, parcels: Vec<Parcel>) {
        let generation = shard.generation();
        let mut logs = Logs {
            files: &shard.files,
            writers: &shard.access_logs,
            access_logs: &generation.access_logs,
            main_log: generation.main_log(),
            known: Vec::new(),
            failed: Vec::new(),
        };
        let engine = &mut *self.engine.borrow_mut();
        for parcel in parcels {
            match parcel::unpack(parcel, &generation.upstreams, &mut logs) {
                Ok((mut tunnel, ending)) => {
                    if shard.is_ending() {
                        tunnel.close_late(timer::now_ms());
                    }
                    shard.counters.tunnels.taken_over.add(1);
                    engine.begin(shard, tunnel, ending, shard.guest());
                }
                Err(damaged) => shard.log_main(Level::Alert, format_args!("{damaged}")),
            }
        }
        if self.closed.get() {
            engine.close_all(shard);
        }
        engine.bury(shard);
        self.stirred.raise();
    }

    /// A graceful quit: spreads the Close frames over the time that each tunnel's configuration
    /// gives. Other tunnels are left alone.
    pub fn begin_quit(&self) {
        let engine = &mut *self.engine.borrow_mut();
        let (now_ms, count) = (timer::now_ms(), engine.slots.len() as u64);
        for (rank, (key, slot)) in engine.slots.iter_mut().enumerate() {
            if let Some(spread_ms) = slot.tunnel.limits.close_spread_ms {
                let spread_ms = spread_ms.saturating_mul(rank as u64);
                let after_ms = spread_ms.checked_div(count).unwrap_or_default();
                slot.tunnel.close_at(now_ms.saturating_add(after_ms));
                engine.wheel.set(key, slot.tunnel.deadline_ms(now_ms));
            }
        }
        self.stirred.raise();
    }

    /// A forced end: everything is closed now, with a Close frame where one can be sent at once.
    pub fn close_all(&self, shard: &Shard) {
        self.closed.set(true);
        let engine = &mut *self.engine.borrow_mut();
        engine.close_all(shard);
        engine.bury(shard);
    }

    /// The end of the shard: closes every socket as it is. Tunnels hold the shard that holds them.
    pub fn abandon(&self, shard: &Shard) {
        self.closed.set(true);
        let (slots, ended) = {
            let engine = &mut *self.engine.borrow_mut();
            engine.sends = None;
            (std::mem::take(&mut engine.slots), std::mem::take(&mut engine.ended))
        };
        shard.counters.tunnels.open.sub(slots.len().saturating_add(ended.len()) as u64);
        // They raise what may end the shard.
        drop((slots, ended));
    }

    /// The shard's main future, and what the engine does in place of the shard's waits.
    pub async fn beside<F: Future>(&self, shard: &Shard, main: F) -> F::Output {
        match &self.standby {
            Some(standby) => standby.beside(main, |until_ms| self.stand(shard, until_ms)).await,
            None => main.await,
        }
    }

    /// The shard's task that runs its tunnels, for ever.
    pub async fn run(shard: Rc<Shard>) {
        let tunnels = &shard.tunnels;
        loop {
            let until_ms = match tunnels.turn(&shard, Looks::Again) {
                Next::Turn => {
                    yield_now().await;
                    continue;
                }
                Next::At(at_ms) => at_ms,
                Next::Event => u64::MAX,
            };
            if let Some(standby) = &tunnels.standby
                && standby.wait(until_ms).await
            {
                continue;
            }
            let limit = Duration::from_millis(until_ms.saturating_sub(timer::now_ms()));
            let woken = either(tunnels.bell.readable_unlimited(), tunnels.stirred.wait());
            if let Ok(Either::First(Err(e))) =
                tunnels.timer.within(limit, Wait::Service, woken).await
            {
                shard.log_main(Level::Crit, format_args!("waiting for tunnels failed: {e}"));
                timer::sleep_through(PAUSE).await;
            }
        }
    }

    fn turn(&self, shard: &Shard, looks: Looks) -> Next {
        // Steps of tunnels are contained one by one; this keeps a fault in the engine itself
        // from ending what all of them depend on.
        let turn = || self.engine.borrow_mut().turn(shard, looks);
        catch_unwind(AssertUnwindSafe(turn)).unwrap_or_else(|panic| {
            shard.counters.panics.add(1);
            let text = runtime::panic_text(&*panic);
            shard.log_main(Level::Alert, format_args!("panic in the tunnel engine: {text}"));
            let engine = &mut *self.engine.borrow_mut();
            engine.concerns_others = true;
            engine.lose_post(&text);
            Next::At(timer::now_ms().saturating_add(PAUSE.as_millis() as u64))
        })
    }

    /// Waits in the poller, and moves what comes, for as long as that is nobody else's business.
    fn stand(&self, shard: &Shard, mut until_ms: u64) -> Stood {
        if self.stirred.lower() {
            return Stood::Called;
        }
        if !self.engine.borrow().poller.begin_waits() {
            return Stood::Refused;
        }
        let stood = loop {
            let stood = self.engine.borrow_mut().poller.wait(until_ms);
            if stood != Stood::Called {
                break stood;
            }
            match self.turn(shard, Looks::Once) {
                Next::Turn => break stood,
                Next::At(at_ms) => until_ms = until_ms.min(at_ms),
                Next::Event => {}
            }
            if self.engine.borrow().concerns_others {
                break stood;
            }
        };
        self.engine.borrow().poller.end_waits();
        stood
    }
}

/// For how many events a turn looks.
#[derive(Clone, Copy)]
enum Looks {
    /// For those that are there: what comes meanwhile is waited for, which costs no more.
    Once,
    /// For those that have come meanwhile, too: to wait for the bell costs more.
    Again,
}

impl Looks {
    /// With so many events in a batch, there may be others.
    fn enough(self) -> usize {
        match self {
            Looks::Once => EVENTS_MAX,
            Looks::Again => BUSY,
        }
    }
}

/// When the engine has to run again.
enum Next {
    /// Now, after others had their turn.
    Turn,
    /// At the latest then.
    At(u64),
    Event,
}

impl Engine {
    fn open(
        &mut self,
        shard: &Shard,
        client: OwnedFd,
        connection: ConnectionGuard,
        opening: Opening,
    ) {
        let Opening { upstream, limits, first, behind_head, follows, metrics, ending } = opening;
        let now_ms = timer::now_ms();
        let mut tunnel = Tunnel::new(client, upstream, limits, follows, metrics, now_ms);
        let mut means = Means {
            scratch: &mut self.scratch,
            pipes: &mut self.pipes,
            counters: &shard.counters.tunnels,
            post: None,
            now_ms,
        };
        if shard.is_ending() && !shard.gives_late_tunnels() {
            tunnel.close_late(now_ms);
        }
        tunnel.has_passed(Side::Upstream, behind_head.as_slice(), &mut means);
        tunnel.begin_with(Side::Client, first.as_slice(), &mut means);
        shard.counters.tunnels.opened.add(1);
        self.begin(shard, tunnel, ending, connection);
    }

    fn begin(
        &mut self,
        shard: &Shard,
        tunnel: Tunnel,
        ending: Ending,
        connection: ConnectionGuard,
    ) {
        self.sequence = self.sequence.wrapping_add(1) & SEQUENCE_MAX;
        let deadline_ms = tunnel.deadline_ms(timer::now_ms());
        let key = self.slots.insert(Slot {
            sequence: self.sequence,
            tunnel,
            ending,
            _connection: connection,
        });
        shard.counters.tunnels.open.add(1);
        self.wheel.set(key, deadline_ms);
        for side in Side::BOTH {
            self.watch(key, side);
        }
        // The second finds no tunnel where the first has ended it.
        for side in Side::BOTH {
            self.step(shard, key, |tunnel, means| tunnel.nudge(side, means));
        }
    }

    fn give(&mut self, shard: &Shard, most: usize, which: Which) -> Vec<Parcel> {
        self.send_post(shard);
        let goes = |slot: &Slot| match which {
            Which::Any => true,
            Which::IdleSince(ms) => slot.tunnel.is_idle_since(ms),
        };
        let slots = self.slots.iter().filter(|(_, slot)| goes(slot));
        let mut keys: Vec<(u64, usize)> =
            slots.map(|(key, slot)| (slot.tunnel.active_ms(), key)).collect();
        if most < keys.len() {
            keys.select_nth_unstable(most);
            keys.truncate(most);
        }
        let counters = &shard.counters.tunnels;
        let mut parcels = Vec::with_capacity(keys.len());
        for (_, key) in keys {
            self.wheel.remove(key);
            let Some(slot) = self.slots.try_remove(key) else { continue };
            for side in Side::BOTH {
                self.poller.forget(slot.tunnel.socket(side));
            }
            let mut means = Means {
                scratch: &mut self.scratch,
                pipes: &mut self.pipes,
                counters,
                post: None,
                now_ms: timer::now_ms(),
            };
            counters.open.sub(1);
            match parcel::pack(slot.tunnel, slot.ending, &mut means) {
                Ok(parcel) => parcels.push(parcel),
                Err(damaged) => shard.log_main(Level::Alert, format_args!("{damaged}")),
            }
        }
        parcels
    }

    /// Serves what there is to do, within bounds.
    fn turn(&mut self, shard: &Shard, looks: Looks) -> Next {
        self.concerns_others = false;
        let mut events = std::mem::take(&mut self.events);
        let (mut served, mut quiet) = (0_usize, false);
        while served < EVENTS_MAX {
            if let Err(e) = self.poller.take(&mut events) {
                self.concerns_others = true;
                shard.log_main(Level::Crit, format_args!("taking events of tunnels failed: {e}"));
            }
            // Behind few events there is nothing yet; whatever comes from now on is waited for.
            quiet = events.len() < looks.enough();
            served = served.saturating_add(events.len());
            for event in events.drain(..) {
                self.on_event(shard, event);
            }
            self.send_post(shard);
            // What has used up its turn goes on behind whoever else had an event.
            for _ in 0..self.ready.len() {
                self.resume(shard);
            }
            if quiet || !self.ready.is_empty() {
                break;
            }
        }
        self.events = events;
        let now_ms = timer::now_ms();
        self.on_time(shard, now_ms);
        self.bury(shard);
        if !quiet || !self.ready.is_empty() {
            return Next::Turn;
        }
        let tidy_ms = self.pipes.tidy(now_ms);
        match tidy_ms.into_iter().chain(self.wheel.next_ms()).min() {
            Some(until_ms) => Next::At(until_ms),
            None => Next::Event,
        }
    }

    fn on_event(&mut self, shard: &Shard, event: Event) {
        let Some((key, side)) = self.find(event.token) else { return };
        if event.writable && !self.step(shard, key, |tunnel, means| tunnel.on_output(side, means)) {
            return;
        }
        if event.readable
            && !self.step(shard, key, |tunnel, means| tunnel.on_input(side, event.ended, means))
        {
            return;
        }
        if event.failed {
            self.step(shard, key, |tunnel, _| tunnel.on_failure(side));
        }
    }

    /// Goes on with the direction that has waited longest for its turn.
    fn resume(&mut self, shard: &Shard) {
        let Some((token, side)) = self.ready.pop_front() else { return };
        if let Some((key, _)) = self.find(token) {
            self.step(shard, key, |tunnel, means| tunnel.run(side, means));
        }
    }

    fn on_time(&mut self, shard: &Shard, now_ms: u64) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(now_ms, &mut due);
        for key in due.drain(..) {
            let Some(slot) = self.slots.get_mut(key) else { continue };
            match slot.tunnel.on_time(now_ms) {
                Ok(runs) => {
                    self.wheel.set(key, slot.tunnel.deadline_ms(now_ms));
                    if runs {
                        // The second finds no tunnel where the first has ended it.
                        for side in Side::BOTH {
                            self.step(shard, key, |tunnel, means| tunnel.nudge(side, means));
                        }
                    }
                }
                Err(end) => self.end(key, end),
            }
        }
        self.due = due;
    }

    /// Sends what is in the post. A tunnel that has ended since then has not seen to its last bytes;
    /// its sockets are open until it is buried.
    fn send_post(&mut self, shard: &Shard) {
        let Some(mut sends) = self.sends.take_if(|sends| !sends.is_empty()) else { return };
        let mut sources = std::mem::take(&mut self.sources);
        sends.make(|place, bytes, sent| {
            if let Some(&source) = sources.get(place) {
                self.on_posted(shard, source, bytes, sent);
            }
        });
        sources.clear();
        self.sources = sources;
        self.sends = Some(sends);
    }

    /// After a fault it is not known what has been sent of what was in the post: those tunnels end.
    fn lose_post(&mut self, fault: &str) {
        self.sends = None;
        self.sources.clear();
        let posted = self.slots.iter().filter(|(_, slot)| slot.tunnel.is_in_post());
        for key in posted.map(|(key, _)| key).collect::<Vec<_>>() {
            self.end(key, End::Panicked(fault.to_owned()));
        }
    }

    fn on_posted(
        &mut self,
        shard: &Shard,
        source: Token,
        bytes: &[u8],
        sent: Result<usize, Errno>,
    ) {
        let (key, sequence, from) = parts(source);
        let sent = match sent {
            Ok(sent) => sent,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(errno) => {
                if self.find(source).is_some() {
                    self.step(shard, key, |tunnel, m| Err(tunnel.post_failed(from, errno, m)));
                }
                return;
            }
        };
        let counters = &shard.counters.tunnels;
        let ended = self.ended.iter_mut().map(|(slot, _)| slot);
        let mut is_kept = false;
        let live = self.slots.get_mut(key).into_iter();
        if let Some(slot) = live.chain(ended).find(|slot| slot.sequence == sequence) {
            is_kept = slot.tunnel.has_sent(from, bytes, sent, counters);
        }
        if is_kept && self.find(source).is_some() {
            self.step(shard, key, |tunnel, means| tunnel.run(from, means));
        }
    }

    /// One step of one tunnel, and what follows from it. False: the tunnel has ended.
    fn step(
        &mut self,
        shard: &Shard,
        key: usize,
        run: impl FnOnce(&mut Tunnel, &mut Means<'_>) -> Result<Ran, End>,
    ) -> bool {
        let is_in_post = self.slots.get(key).is_some_and(|slot| slot.tunnel.is_in_post());
        if is_in_post || self.sends.as_ref().is_some_and(Sends::is_full) {
            self.send_post(shard);
        }
        let Some(slot) = self.slots.get_mut(key) else { return false };
        let tokens = Side::BOTH.map(|side| token(key, slot.sequence, side));
        let sources = &mut self.sources;
        let now_ms = timer::now_ms();
        let mut means = Means {
            scratch: &mut self.scratch,
            pipes: &mut self.pipes,
            counters: &shard.counters.tunnels,
            post: self.sends.as_mut().map(|sends| Post { sends, sources, tokens }),
            now_ms,
        };
        // A panic ends this tunnel; what it shares with others is counters and pools that are
        // consistent between any two of its steps.
        let ran = catch_unwind(AssertUnwindSafe(|| run(&mut slot.tunnel, &mut means)));
        let sequence = slot.sequence;
        match ran {
            Ok(Ok(Ran { from, waits: Waits::Output })) => {
                let to = from.other();
                let watched =
                    self.poller.watch_output(slot.tunnel.socket(to), token(key, sequence, to));
                self.wheel.set(key, slot.tunnel.deadline_ms(now_ms));
                if let Err(error) = watched {
                    self.end(key, End::Failed { side: to, call: "poll()", error });
                    return false;
                }
                true
            }
            Ok(Ok(Ran { from, waits: Waits::Turn })) => {
                self.ready.push_back((token(key, sequence, from), from));
                true
            }
            Ok(Ok(_)) => true,
            Ok(Err(end)) => {
                self.end(key, end);
                false
            }
            Err(panic) => {
                self.end(key, End::Panicked(runtime::panic_text(&*panic)));
                false
            }
        }
    }

    fn watch(&mut self, key: usize, side: Side) {
        let Some(slot) = self.slots.get(key) else { return };
        let token = token(key, slot.sequence, side);
        if let Err(error) = self.poller.watch(slot.tunnel.socket(side), token) {
            self.end(key, End::Failed { side, call: "poll()", error });
        }
    }

    /// The tunnel of an event, unless it is of an earlier holder of the slot.
    fn find(&self, token: Token) -> Option<(usize, Side)> {
        let (key, sequence, side) = parts(token);
        let slot = self.slots.get(key)?;
        (slot.sequence == sequence).then_some((key, side))
    }

    fn end(&mut self, key: usize, end: End) {
        self.wheel.remove(key);
        if let Some(slot) = self.slots.try_remove(key) {
            for side in Side::BOTH {
                self.poller.forget(slot.tunnel.socket(side));
            }
            self.ended.push((slot, end));
        }
    }

    fn close_all(&mut self, shard: &Shard) {
        let keys: Vec<usize> = self.slots.iter().map(|(key, _)| key).collect();
        for key in keys {
            let closed = self.step(shard, key, |tunnel, means| {
                tunnel.close_now(frame::GOING_AWAY, means);
                Err(End::Interrupted)
            });
            debug_assert!(!closed);
        }
    }

    /// The last things of tunnels that have ended: their log lines, on disk before a client can see
    /// the end, then the close.
    fn bury(&mut self, shard: &Shard) {
        self.send_post(shard);
        if self.ended.is_empty() {
            return;
        }
        self.concerns_others = true;
        let counters = &shard.counters.tunnels;
        let mut ended = std::mem::take(&mut self.ended);
        for (slot, end) in &mut ended {
            slot.tunnel.release(&mut self.pipes, counters, timer::now_ms());
            slot.ending.log(shard, &slot.tunnel, end);
            counters.open.sub(1);
        }
        shard.flush_logs();
        ended.clear();
        self.ended = ended;
    }
}

/// Sequence numbers are this at most: a token has 63 bits for both numbers.
const SEQUENCE_MAX: u32 = (1 << 31) - 1;

fn token(key: usize, sequence: u32, side: Side) -> Token {
    Token(u64::from(sequence) << 33 | (key as u64) << 1 | side as u64)
}

fn parts(Token(token): Token) -> (usize, u32, Side) {
    let side = if token & 1 == 0 { Side::Client } else { Side::Upstream };
    ((token >> 1) as u32 as usize, (token >> 33) as u32, side)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_tell_slots_holders_and_sides_apart() {
        for side in Side::BOTH {
            for (key, sequence) in [(0, 0), (7, 1), (u32::MAX as usize, SEQUENCE_MAX)] {
                let token = token(key, sequence, side);
                let (k, s, found) = parts(token);
                assert_eq!((k, s, found as usize), (key, sequence, side as usize));
            }
        }
    }
}
