//! One tunnel: two sockets, two directions, and how bytes go from the one to the other.
//!
//! Nothing here waits. A direction is run when an event says that it can go on, until it can go no
//! further or has used up its turn; what it needs for that (the scratch buffer, a pipe) it borrows
//! from the shard. Only bytes that the receiver does not take are kept, and then nothing more is
//! received until they are gone.

mod ending;
mod packed;
mod post;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown};
use serde::{Deserialize, Serialize};

pub use packed::{Packed, PipeLost};
pub use post::Post;

use super::flow::{BUDGET, Mode, Pace, SCRATCH, SPLICE_MIN};
use super::frame::{self, Event, Follower, Masking};
use super::metrics::{Metrics, Side};
use super::pipe::{self, Pipe, Pipes};
use crate::counters::TunnelCounters;
use crate::http::modules::websocket::IdleTimeout;
use crate::http::{count, fault};
use crate::io::batch::send;
use crate::io::{Buffer, timer};

/// Bytes in a pipe before it is emptied, where so many are there: each send has its price.
const GATHERED: usize = 128 << 10;

/// How the log calls what has failed, spliced or not: people look for nginx's words.
pub const RECEIVING: &str = "recv()";
const SENDING: &str = "send()";

/// What a turn borrows from the shard.
pub struct Means<'a> {
    pub scratch: &'a mut [u8; SCRATCH],
    pub pipes: &'a mut Pipes,
    pub counters: &'a TunnelCounters,
    /// What is sent together with other tunnels' bytes, where it may wait for them.
    pub post: Option<Post<'a>>,
    pub now_ms: u64,
}

/// How long a tunnel waits, milliseconds, and what it does then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// `*_read_timeout`: silence both ways.
    pub silence_ms: u64,
    /// `send_timeout`, `*_send_timeout`: while a receiver does not take what there is for it, by [`Side`] of
    /// the receiver.
    pub untaken_ms: [u64; 2],
    /// `websocket_idle_timeout`
    pub idle: Option<IdleTimeout>,
    /// `lingering_timeout`: for an answer to a Close frame.
    pub answer_ms: u64,
    /// `websocket_close_spread`
    pub close_spread_ms: Option<u64>,
    /// `proxy_half_close`
    pub half_close: bool,
    /// `reset_timedout_connection`
    pub reset_timedout: bool,
}

/// How a tunnel ends.
#[derive(Debug)]
pub enum End {
    /// Both sides have ended, and each has got what the other sent.
    Finished,
    /// A socket has failed.
    Failed { side: Side, call: &'static str, error: io::Error },
    /// `*_read_timeout`
    Silent,
    /// `*_send_timeout`, `send_timeout`: this side took nothing.
    NotTaken(Side),
    /// Close frames were sent and answered, or the time for an answer was up.
    Closed,
    /// The shard ends (`worker_shutdown_timeout`).
    Interrupted,
    /// A fault of ours: the text of the panic.
    Panicked(String),
}

/// What a direction waits for after it was run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// For its source to become readable.
    Input,
    /// For its receiver to take bytes: the poller must be asked.
    Output,
    /// For its turn: it could go on now.
    Turn,
    /// For nothing any more.
    Nothing,
}

/// What a step came to: which direction was run, and what it waits for.
#[derive(Debug, Clone, Copy)]
pub struct Ran {
    pub from: Side,
    pub waits: Waits,
}

/// How far a direction has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    Open,
    /// Its source has ended; what is pending still has to go out.
    Ending,
    /// The end was passed on.
    Ended,
    /// Its receiver got a Close frame of ours: whatever still comes is read over.
    Closed,
}

/// What a look at the next bytes has shown.
enum Ahead {
    /// A large data frame of so many bytes.
    Frame(u64),
    /// Something to copy: a small frame, a part of a header, an end.
    Small,
    Nothing,
}

/// One direction.
#[derive(Debug)]
struct Way {
    stage: Stage,
    pace: Pace,
    /// Received bytes that the receiver has not taken, if there are any. Behind those in the pipe.
    backlog: Option<Box<Buffer>>,
    /// Borrowed while the direction is run, and as long as there are bytes in it.
    pipe: Option<Pipe>,
    /// The source has been reported readable and not yet been read empty.
    readable: bool,
    /// The source has been reported at its end: a short receive is not the last one.
    ending: bool,
    /// It has used up its turn and waits for the next.
    queued: bool,
    /// The poller was asked to tell when the receiver takes bytes.
    awaits_output: bool,
    /// The source has sent a Close frame, or its end.
    source_closed: bool,
    /// A Close frame of the source is on its way to the receiver: it needs none of ours.
    close_passed: bool,
    /// The latest data frame is worth a splice, and so may be the next.
    frames_are_large: bool,
    /// More is to go into the pipe before it is emptied.
    gathers: bool,
    /// Where a Close frame of ours goes has been reached: what comes behind is read over.
    close_is_due: bool,
    /// Header bytes that the follower has seen and that were not moved yet.
    header_left: u8,
    /// Bytes moved since the source was last read empty.
    of_wakeup: u32,
    /// Pending bytes as they are in the shard's counter.
    counted: u32,
    follower: Option<Follower>,
    bytes: u64,
}

/// Close frames are being sent and answers awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Closing {
    code: u16,
    until_ms: u64,
}

pub struct Tunnel {
    /// By [`Side`].
    sockets: [OwnedFd; 2],
    /// By [`Side`] of the source.
    ways: [Way; 2],
    pub limits: Limits,
    /// When bytes came or moved last, and when bytes of a data frame did.
    active_ms: u64,
    data_ms: u64,
    /// When bytes last came that are passed on, or were taken by who had let them wait: what comes behind a
    /// Close frame of ours, and is read over, is not counted.
    carried_ms: u64,
    closing: Option<Closing>,
    /// When a graceful quit closes it.
    close_at_ms: u64,
    /// Bytes of it are in the post. Nothing is done with it until what became of them is
    /// [told](Tunnel::has_sent).
    is_in_post: bool,
    metrics: Option<Box<Metrics>>,
}

impl Way {
    fn new(follower: Option<Follower>) -> Self {
        Way {
            stage: Stage::Open,
            pace: Pace::default(),
            backlog: None,
            pipe: None,
            readable: false,
            ending: false,
            queued: false,
            awaits_output: false,
            source_closed: false,
            close_passed: false,
            frames_are_large: false,
            gathers: false,
            close_is_due: false,
            header_left: 0,
            of_wakeup: 0,
            counted: 0,
            follower,
            bytes: 0,
        }
    }

    /// The follower, unless the bytes turned out not to be frames.
    fn followed(&self) -> Option<&Follower> {
        self.follower.as_ref().filter(|follower| !follower.is_lost())
    }

    /// A frame of ours can be put in here.
    fn is_at_boundary(&self) -> bool {
        self.header_left == 0
            && self.pending() == 0
            && self.followed().is_some_and(Follower::is_at_boundary)
    }

    /// Of so many bytes of the source: how many are of the header that was looked ahead at. What is
    /// left of it becomes less by those.
    #[expect(clippy::arithmetic_side_effects, reason = "at most what is left of it")]
    fn pass_header(&mut self, bytes: usize) -> usize {
        let of_header = bytes.min(usize::from(self.header_left));
        self.header_left -= of_header as u8;
        of_header
    }

    /// Bytes ahead that may be moved unseen, as far as is known without looking.
    fn unseen_ahead(&self) -> u64 {
        match self.followed() {
            None => u64::MAX,
            Some(follower) if follower.in_data_payload() => {
                follower.payload_left().saturating_add(u64::from(self.header_left))
            }
            Some(_) => 0,
        }
    }

    /// Bytes that the receiver has not taken yet.
    #[expect(clippy::arithmetic_side_effects, reason = "all of it is in memory")]
    fn pending(&self) -> usize {
        self.backlog.as_ref().map_or(0, |backlog| backlog.len())
            + self.pipe.as_ref().map_or(0, Pipe::held)
    }

    fn keep(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.backlog.get_or_insert_with(|| Box::new(Buffer::empty())).extend(bytes);
        }
    }
}

impl Tunnel {
    /// Two connected, non-blocking sockets. `follows`: the bytes are WebSocket frames whose headers
    /// are of interest; `metrics`: they are counted as well.
    pub fn new(
        client: OwnedFd,
        upstream: OwnedFd,
        limits: Limits,
        follows: bool,
        metrics: bool,
        now_ms: u64,
    ) -> Self {
        let way = |masking| Way::new(follows.then(|| Follower::new(masking)));
        Tunnel {
            sockets: [client, upstream],
            ways: [way(Masking::Masked), way(Masking::Unmasked)],
            limits,
            active_ms: now_ms,
            data_ms: now_ms,
            carried_ms: now_ms,
            closing: None,
            close_at_ms: u64::MAX,
            is_in_post: false,
            metrics: metrics.then(Box::default),
        }
    }

    pub fn socket(&self, side: Side) -> BorrowedFd<'_> {
        side.of(&self.sockets).as_fd()
    }

    /// When bytes moved last.
    pub fn active_ms(&self) -> u64 {
        self.active_ms
    }

    /// Nothing has moved since then, nor waits for its receiver: that would be a busy one that stands
    /// still.
    pub fn is_idle_since(&self, ms: u64) -> bool {
        self.active_ms <= ms && self.ways.iter().all(|way| way.pending() == 0)
    }

    /// Bytes that the tunnel has carried from this side to the other.
    pub fn bytes_from(&self, side: Side) -> u64 {
        side.of(&self.ways).bytes
    }

    pub fn metrics(&self) -> Option<&Metrics> {
        self.metrics.as_deref()
    }

    /// Bytes that `from` sent before the tunnel was there. They wait for the first run.
    pub fn begin_with(&mut self, from: Side, bytes: &[u8], m: &mut Means<'_>) {
        self.follow(from, bytes, m.counters, m.now_ms);
        self.way(from).keep(bytes);
    }

    /// Bytes that `from` sent and that have been passed on, and counted, already.
    pub fn has_passed(&mut self, from: Side, bytes: &[u8], m: &mut Means<'_>) {
        self.follow(from, bytes, m.counters, m.now_ms);
    }

    /// `side` can be read, or has ended.
    pub fn on_input(&mut self, side: Side, ends: bool, m: &mut Means<'_>) -> Result<Ran, End> {
        self.active_ms = m.now_ms;
        let way = self.way(side);
        way.readable = true;
        way.ending |= ends;
        if way.queued {
            return Ok(Ran { from: side, waits: Waits::Nothing });
        }
        self.run(side, m)
    }

    /// `side` takes bytes again.
    pub fn on_output(&mut self, side: Side, m: &mut Means<'_>) -> Result<Ran, End> {
        let from = side.other();
        if !std::mem::take(&mut self.way(from).awaits_output) {
            // Output is told of for ever once it was asked for.
            return Ok(Ran { from, waits: Waits::Nothing });
        }
        self.run(from, m)
    }

    /// The socket has an error on it. What it has received before is received first, and then the
    /// error; only a direction that waits for its receiver, or has ended, does not see it.
    pub fn on_failure(&mut self, side: Side) -> Result<Ran, End> {
        let way = self.way(side);
        if !way.awaits_output && way.stage != Stage::Ended {
            return Ok(Ran { from: side, waits: Waits::Nothing });
        }
        match rustix::net::sockopt::socket_error(self.socket(side)) {
            Ok(Err(errno)) => Err(self.failed(side, RECEIVING, errno)),
            _ => Ok(Ran { from: side, waits: Waits::Nothing }),
        }
    }

    /// Something but an event has changed: runs the direction, unless its turn comes anyway.
    pub fn nudge(&mut self, from: Side, m: &mut Means<'_>) -> Result<Ran, End> {
        if self.way(from).queued {
            return Ok(Ran { from, waits: Waits::Nothing });
        }
        self.run(from, m)
    }

    /// Runs the direction that comes from this side, until it waits.
    pub fn run(&mut self, from: Side, m: &mut Means<'_>) -> Result<Ran, End> {
        let waits = self.run_way(from, m);
        if let Err(End::Failed { side, .. }) = &waits
            && *side != from
        {
            self.hear_out(*side, m);
        }
        self.way(from).queued = matches!(waits, Ok(Waits::Turn));
        self.settle(from, m);
        if self.is_finished() {
            return Err(self.finish());
        }
        waits.map(|waits| Ran { from, waits })
    }

    /// How it ends when it is finished.
    fn finish(&self) -> End {
        if self.closing.is_some() { End::Closed } else { End::Finished }
    }

    /// A side takes nothing more: it may have reset the connection. What it said before that is
    /// passed on, as far as it is here and is taken.
    fn hear_out(&mut self, from: Side, m: &mut Means<'_>) {
        let way = self.way(from);
        way.readable = true;
        way.ending = true;
        while let Ok(Waits::Turn) = self.run_way(from, m) {}
        self.settle(from, m);
    }

    fn run_way(&mut self, from: Side, m: &mut Means<'_>) -> Result<Waits, End> {
        let mut moved = 0;
        loop {
            if self.way(from).awaits_output {
                return Ok(Waits::Nothing);
            }
            if self.closing.is_some() {
                // The next end of a frame is where it stops.
                self.way(from).gathers = false;
            }
            if !self.way(from).gathers && !self.flush(from, m)? {
                self.way(from).awaits_output = true;
                return Ok(Waits::Output);
            }
            if self.closing.is_some() {
                self.put_close(from, m)?;
                if self.way(from).pending() > 0 {
                    // Not all of it was taken.
                    continue;
                }
            }
            let way = self.way(from);
            match way.stage {
                Stage::Ended => return Ok(Waits::Nothing),
                Stage::Ending => {
                    way.stage = Stage::Ended;
                    let _ = rustix::net::shutdown(self.socket(from.other()), Shutdown::Write);
                    return Ok(Waits::Nothing);
                }
                Stage::Open | Stage::Closed => {}
            }
            if !way.readable {
                way.of_wakeup = 0;
                return Ok(Waits::Input);
            }
            if moved >= BUDGET {
                return Ok(Waits::Turn);
            }
            let received = match way.pace.mode() {
                Mode::Splice if way.stage == Stage::Open => self.splice(from, m)?,
                _ => self.copy(from, m)?,
            };
            moved = moved.saturating_add(received);
            let way = self.way(from);
            way.of_wakeup = way.of_wakeup.saturating_add(received as u32);
        }
    }

    /// What is left to do when a direction waits: an empty pipe goes back, the counters are told.
    fn settle(&mut self, from: Side, m: &mut Means<'_>) {
        let way = self.way(from);
        if let Some(pipe) = way.pipe.take_if(|pipe| pipe.held() == 0) {
            m.pipes.give_back(pipe, &m.counters.pipes_in_use, m.now_ms);
        }
        let (before, now) = (u64::from(way.counted), way.pending() as u64);
        if before != now {
            way.counted = now as u32;
            m.counters.backlog_bytes.add(now);
            m.counters.backlog_bytes.sub(before);
        }
    }

    /// One receive into the scratch buffer, sent on at once. How much was received.
    fn copy(&mut self, from: Side, m: &mut Means<'_>) -> Result<usize, End> {
        let received = match recv(self.socket(from), &mut m.scratch[..], RecvFlags::DONTWAIT) {
            Ok(0) => {
                self.source_ended(from);
                return Ok(0);
            }
            Ok(received) => received,
            Err(Errno::AGAIN) => {
                self.way(from).readable = false;
                return Ok(0);
            }
            Err(errno) => return Err(self.failed(from, RECEIVING, errno)),
        };
        if received < SCRATCH && !self.way(from).ending {
            self.way(from).readable = false;
        }
        #[expect(clippy::indexing_slicing, reason = "recv() tells at most the length it was given")]
        let bytes = &m.scratch[..received];
        fault::among(bytes);
        let passed = self.follow(from, bytes, m.counters, m.now_ms);
        #[expect(clippy::indexing_slicing, reason = "no more is passed than is followed")]
        let bytes = &bytes[..passed];
        self.active_ms = m.now_ms;
        if self.way(from).stage == Stage::Open {
            self.carried_ms = m.now_ms;
        }
        if !self.post(from, bytes, &mut m.post) {
            let sent = self.send(from, bytes)?;
            self.has_sent(from, bytes, sent, m.counters);
        }
        let way = self.way(from);
        if way.pace.copied(received, way.frames_are_large || way.followed().is_none()) {
            m.counters.mode_switches.add(1);
        }
        Ok(received)
    }

    /// One splice into a pipe. How much came in.
    fn splice(&mut self, from: Side, m: &mut Means<'_>) -> Result<usize, End> {
        // Until it is said otherwise below, what is in the pipe goes out before anything comes in.
        let holds = std::mem::take(&mut self.way(from).gathers);
        let mut ahead = self.way(from).unseen_ahead();
        if ahead == 0 {
            match self.look_ahead(from, m) {
                Ahead::Frame(length) => ahead = length,
                Ahead::Nothing => {
                    self.source_is_empty(from, m);
                    return Ok(0);
                }
                Ahead::Small if holds => return Ok(0),
                Ahead::Small => {
                    // It is copied, and too many of them in a row end the splicing.
                    if self.way(from).pace.spliced(0) {
                        m.counters.mode_switches.add(1);
                    }
                    return self.copy(from, m);
                }
            }
        }
        let way = from.of_mut(&mut self.ways);
        if way.pipe.is_none() {
            way.pipe = m.pipes.borrow(&m.counters.pipes_in_use, m.now_ms);
        }
        let Some(pipe) = &mut way.pipe else {
            if way.pace.without_pipe() {
                m.counters.mode_switches.add(1);
            }
            return Ok(0);
        };
        let most = ahead.min(pipe::CAPACITY as u64) as usize;
        let moved = match pipe.fill(from.of(&self.sockets).as_fd(), most) {
            Ok(0) => {
                self.source_ended(from);
                return Ok(0);
            }
            Ok(moved) => moved,
            // The source is empty, or the pipe is full: it is tried again with an empty one.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && holds => return Ok(0),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.source_is_empty(from, m);
                return Ok(0);
            }
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                way.pace.only_copies();
                m.counters.mode_switches.add(1);
                return Ok(0);
            }
            Err(e) => return Err(self.failed(from, RECEIVING, errno_of(&e))),
        };
        way.gathers = pipe.held() < GATHERED;
        let payload = moved.saturating_sub(way.pass_header(moved));
        if let Some(follower) = way.follower.as_mut().filter(|follower| !follower.is_lost()) {
            follower.skip(payload as u64);
        }
        self.active_ms = m.now_ms;
        self.carried_ms = m.now_ms;
        self.data_ms = m.now_ms;
        Ok(moved)
    }

    /// In splice mode: the source has been read empty.
    fn source_is_empty(&mut self, from: Side, m: &Means<'_>) {
        let way = self.way(from);
        way.readable = false;
        let of_wakeup = std::mem::take(&mut way.of_wakeup);
        if way.pace.spliced(of_wakeup as usize) {
            m.counters.mode_switches.add(1);
        }
    }

    /// Where frames are followed and the next bytes are no payload: looks at them without taking
    /// them. The header of a large frame is followed here.
    fn look_ahead(&mut self, from: Side, m: &mut Means<'_>) -> Ahead {
        if !self.way(from).followed().is_some_and(Follower::is_at_boundary) {
            return Ahead::Small;
        }
        let mut header = [0; frame::HEADER_MAX];
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        let header = match recv(self.socket(from), &mut header, flags) {
            #[expect(
                clippy::indexing_slicing,
                reason = "recv() tells at most the length it was given"
            )]
            Ok(n) => &header[..n],
            Err(Errno::AGAIN) => return Ahead::Nothing,
            // Receiving will tell.
            Err(_) => return Ahead::Small,
        };
        let Some((length, payload)) = self.way(from).followed().and_then(|f| f.peek(header)) else {
            return Ahead::Small;
        };
        if payload < SPLICE_MIN {
            return Ahead::Small;
        }
        #[expect(clippy::indexing_slicing, reason = "a header that is there as a whole")]
        let header = &header[..length];
        self.follow(from, header, m.counters, m.now_ms);
        let way = self.way(from);
        way.header_left = length as u8;
        match way.unseen_ahead() {
            0 => Ahead::Small,
            length => Ahead::Frame(length),
        }
    }

    /// Sends what is pending. False: the receiver does not take all of it.
    fn flush(&mut self, from: Side, m: &mut Means<'_>) -> Result<bool, End> {
        let to = from.other();
        loop {
            let socket = to.of(&self.sockets).as_fd();
            let way = from.of_mut(&mut self.ways);
            match &mut way.pipe {
                Some(pipe) if pipe.held() > 0 => match pipe.drain(socket) {
                    Ok(sent) => {
                        m.counters.bytes_spliced.add(sent as u64);
                        count::add(&mut way.bytes, sent as u64);
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(e) if e.kind() == io::ErrorKind::InvalidInput => self.unpipe(from, m)?,
                    Err(e) => return Err(self.failed(to, SENDING, errno_of(&e))),
                },
                _ => {
                    let Some(backlog) = &mut way.backlog else { return Ok(true) };
                    match send(socket, backlog.as_slice()) {
                        Ok(sent) => {
                            backlog.consume(sent);
                            if backlog.is_empty() {
                                way.backlog = None;
                            }
                            m.counters.bytes_copied.add(sent as u64);
                            count::add(&mut way.bytes, sent as u64);
                        }
                        Err(Errno::AGAIN) => return Ok(false),
                        Err(errno) => return Err(self.failed(to, SENDING, errno)),
                    }
                }
            }
            self.active_ms = m.now_ms;
            self.carried_ms = m.now_ms;
            // What had to wait may be of data frames.
            self.data_ms = m.now_ms;
        }
    }

    /// The receiver cannot be spliced to: what is in the pipe goes on as bytes, as all that follows.
    fn unpipe(&mut self, from: Side, m: &mut Means<'_>) -> Result<(), End> {
        let way = from.of_mut(&mut self.ways);
        if way.pace.only_copies() {
            m.counters.mode_switches.add(1);
        }
        let Some(mut pipe) = way.pipe.take() else { return Ok(()) };
        let mut failure = None;
        while pipe.held() > 0 && failure.is_none() {
            match pipe.take(&mut m.scratch[..]) {
                #[expect(
                    clippy::indexing_slicing,
                    reason = "read() tells at most the length it was given"
                )]
                Ok(taken) => way.keep(&m.scratch[..taken]),
                Err(e) => failure = Some(errno_of(&e)),
            }
        }
        m.pipes.give_back(pipe, &m.counters.pipes_in_use, m.now_ms);
        failure.map_or(Ok(()), |errno| Err(self.failed(from, "splice()", errno)))
    }

    /// Sends at once what the receiver takes.
    fn send(&self, from: Side, bytes: &[u8]) -> Result<usize, End> {
        if bytes.is_empty() {
            return Ok(0);
        }
        match send(self.socket(from.other()), bytes) {
            Ok(sent) => Ok(sent),
            Err(Errno::AGAIN) => Ok(0),
            Err(errno) => Err(self.failed(from.other(), SENDING, errno)),
        }
    }

    /// Follows received bytes by their frame headers. Tells how many of them are passed on: all, but
    /// when a Close frame of ours is due those behind the next end of a frame are not.
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "the header's part is at most `bytes`, a frame's at most what is behind it"
    )]
    fn follow(
        &mut self,
        from: Side,
        bytes: &[u8],
        counters: &TunnelCounters,
        now_ms: u64,
    ) -> usize {
        let way = from.of_mut(&mut self.ways);
        let seen = way.pass_header(bytes.len());
        let Some(follower) = &mut way.follower else {
            self.data_ms = now_ms;
            return bytes.len();
        };
        let metrics = &mut self.metrics;
        let (closed, large) = (Cell::new(false), &mut way.frames_are_large);
        let mut on = |event: Event| {
            match event {
                Event::Closed(_) => closed.set(true),
                Event::Frame { opcode, payload, .. } if !opcode.is_control() => {
                    *large = payload >= SPLICE_MIN;
                }
                _ => {}
            }
            if let Some(metrics) = metrics {
                note(metrics, from, event, counters);
            }
        };
        let mut passed = bytes.len();
        let mut rest = &bytes[seen..];
        let mut data = false;
        if self.closing.is_some() {
            if way.stage == Stage::Closed || way.close_is_due {
                passed = 0;
            } else {
                let frame = follower.take_frame(rest, &mut on);
                passed = seen + frame.taken;
                data = frame.data;
                rest = &rest[frame.taken..];
                way.close_is_due = follower.is_at_boundary();
                way.close_passed |= closed.get();
            }
        }
        data |= follower.take(rest, &mut on).data;
        way.source_closed |= closed.get();
        way.close_passed |= closed.get() && self.closing.is_none();
        if data {
            self.data_ms = now_ms;
        }
        passed
    }

    fn source_ended(&mut self, from: Side) {
        let way = self.way(from);
        way.readable = false;
        way.stage = match way.stage {
            Stage::Open => Stage::Ending,
            // Its receiver has been told that nothing more comes.
            Stage::Closed => Stage::Ended,
            stage => stage,
        };
        way.source_closed = true;
    }

    /// A failed call. When that side has ended in good order before, its reset is only the way it
    /// refuses what came later.
    fn failed(&self, side: Side, call: &'static str, errno: Errno) -> End {
        if side.of(&self.ways).stage == Stage::Ended {
            return End::Finished;
        }
        End::Failed { side, call, error: errno.into() }
    }

    fn is_finished(&self) -> bool {
        let [a, b] = &self.ways;
        if self.closing.is_some() {
            let answered = |way: &Way| way.source_closed && way.pending() == 0;
            return answered(a) && answered(b);
        }
        let ended = |way: &Way| way.stage == Stage::Ended;
        if self.limits.half_close { ended(a) && ended(b) } else { ended(a) || ended(b) }
    }

    fn way(&mut self, from: Side) -> &mut Way {
        from.of_mut(&mut self.ways)
    }

    /// Gives back what it borrowed from the shard.
    pub fn release(&mut self, pipes: &mut Pipes, counters: &TunnelCounters, now_ms: u64) {
        for way in &mut self.ways {
            counters.backlog_bytes.sub(u64::from(std::mem::take(&mut way.counted)));
            if let Some(pipe) = way.pipe.take() {
                pipes.give_back(pipe, &counters.pipes_in_use, now_ms);
            }
        }
    }
}

fn note(metrics: &mut Metrics, from: Side, event: Event, counters: &TunnelCounters) {
    let now = match event {
        Event::Ping(_) | Event::Pong(_) => timer::now_precise(),
        _ => Duration::ZERO,
    };
    if let Event::Frame { opcode, fin, .. } = event {
        counters.websocket_frames.add(1);
        if fin && !opcode.is_control() {
            counters.websocket_messages.add(1);
        }
    }
    metrics.note(from, event, now);
}

fn recv(socket: BorrowedFd<'_>, buffer: &mut [u8], flags: RecvFlags) -> Result<usize, Errno> {
    loop {
        match rustix::net::recv(socket, &mut *buffer, flags) {
            Err(Errno::INTR) => {}
            other => return other.map(|(received, _)| received),
        }
    }
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests;
