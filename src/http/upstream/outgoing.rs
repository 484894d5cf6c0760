//! How much of a server's response may wait for the client: up to the size of `*_buffers` in memory;
//! when it is more, in a temporary file (proxy, section 8); and when that may not grow, no more is read.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::rc::Rc;

use super::relay::End;
use super::rest::{PIECE_MAX, Rest, Unsent};
use crate::http::action::Action;
use crate::http::close::Close;
use crate::http::connection::Connection;
use crate::http::count;
use crate::http::modules::exchange::Settings;
use crate::http::request::Request;
use crate::io::select::{Either, either};
use crate::io::stream::Failure;
use crate::io::turns::{Turn, Turns};

/// Bytes that may wait in memory on a shard; what comes above that goes to temporary files, where they
/// may be used, before `*_buffers` are full.
const WAITING_MAX: usize = 8 << 20;
/// The pieces of long responses under way on a shard take about so many bytes together.
const PIECES_MAX: usize = 4 << 20;
/// Responses that are written to files at the same moment: enough to keep a disk busy, and so few that
/// a request beside thousands of them hardly waits.
const SPILLS_MAX: usize = 8;

/// What the responses that a shard relays have in common: limits that keep thousands of them, with
/// clients too slow for them, from taking its memory or its time.
#[derive(Debug)]
pub struct Relaying {
    /// Bytes that wait in memory for clients.
    waiting: Rc<Cell<usize>>,
    /// Responses that are received in large pieces.
    long: Cell<usize>,
    /// At writing to a temporary file.
    spills: Turns,
}

impl Default for Relaying {
    fn default() -> Self {
        Relaying { waiting: Rc::default(), long: Cell::new(0), spills: Turns::new(SPILLS_MAX) }
    }
}

impl Relaying {
    /// The piece that a long response is received in: a size that the shard keeps buffers of.
    fn long_piece(&self) -> usize {
        let share = PIECES_MAX.checked_div(self.long.get()).unwrap_or(PIECE_MAX);
        [PIECE_MAX, 16 << 10, 8 << 10].into_iter().find(|size| *size <= share).unwrap_or_default()
    }
}

pub struct Outgoing<'a> {
    c: &'a Connection,
    settings: &'a Settings,
    /// Whether anything may wait while more is read from the server.
    buffering: bool,
    rest: Rest,
    /// What comes now may go to the file: of those that fill files, only some on a shard do it at once,
    /// so that they neither take its memory nor make all others wait.
    turn: Option<Turn>,
    /// The file could not be made or written: it goes on without.
    no_file: bool,
    long: Option<Long<'a>>,
}

/// One of those that are received in large pieces.
struct Long<'a>(&'a Relaying);

impl<'a> Long<'a> {
    fn new(relaying: &'a Relaying) -> Self {
        relaying.long.set(relaying.long.get().saturating_add(1));
        Long(relaying)
    }
}

impl Drop for Long<'_> {
    fn drop(&mut self) {
        self.0.long.set(self.0.long.get().saturating_sub(1));
    }
}

impl<'a> Outgoing<'a> {
    pub fn new(c: &'a Connection, settings: &'a Settings, buffering: bool) -> Self {
        let waiting = Rc::clone(&c.shard.relaying.waiting);
        let rest = Rest::new(settings.busy_size(), waiting);
        Outgoing { c, settings, buffering, rest, turn: None, no_file: false, long: None }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn relaying(&self) -> &'a Relaying {
        &self.c.shard.relaying
    }

    /// Bytes that may wait in memory while more is read from the server.
    fn memory_max(&self) -> usize {
        let buffers = *self.settings.buffers;
        let is_crowded = self.relaying().waiting.get() > WAITING_MAX;
        if !self.buffering || (is_crowded && self.can_spill()) {
            0
        } else {
            buffers.number.saturating_mul(buffers.size)
        }
    }

    /// Bytes that still may wait in memory.
    pub fn room(&self) -> usize {
        self.memory_max().saturating_sub(self.rest.in_memory())
    }

    /// Whether more may be read from the server now, even though it must then go to the file.
    pub fn has_room(&self) -> bool {
        self.is_empty() || self.room() > 0 || self.can_spill()
    }

    /// Whether what is read from the server now goes to the file: that takes a turn.
    pub fn is_spilling(&self) -> bool {
        (self.rest.spilled() > 0 || self.room() == 0) && self.can_spill()
    }

    /// Waits for a turn at filling a file.
    pub async fn turn(&self) -> Turn {
        self.relaying().spills.take().await
    }

    /// The turn, for what is received now, or none.
    pub fn set_turn(&mut self, turn: Option<Turn>) {
        self.turn = turn;
    }

    /// What is received at once of a response that fills its buffers, and whose client keeps up.
    pub fn long_piece(&mut self) -> usize {
        let relaying = self.relaying();
        self.long.get_or_insert_with(|| Long::new(relaying));
        relaying.long_piece()
    }

    /// Its client does not keep up.
    pub fn end_long(&mut self) {
        self.long = None;
    }

    /// Sends in order what the client takes at once; the rest waits. Then there may be more of it than
    /// may be: see [`Outgoing::fit`].
    pub async fn send(&mut self, r: &mut Request, slices: &mut [IoSlice<'_>]) -> Result<(), Close> {
        self.c.action.set(Action::SendingToClient);
        if self.is_empty() && r.response.pace.is_none() {
            return self.send_now(r, slices).await;
        }
        // At a pace, what goes first is as much as its second allows: more is read before.
        self.enqueue(slices);
        if r.response.pace.is_none() {
            self.rest.pump(self.c, r).await?;
        }
        Ok(())
    }

    /// The road of most responses: nothing waits, and the socket takes it.
    async fn send_now(
        &mut self,
        r: &mut Request,
        mut slices: &mut [IoSlice<'_>],
    ) -> Result<(), Close> {
        loop {
            IoSlice::advance_slices(&mut slices, 0);
            if slices.is_empty() {
                return Ok(());
            }
            match self.c.stream.send(slices).await {
                Ok(sent) => {
                    count::add(&mut r.response.bytes_sent, sent as u64);
                    IoSlice::advance_slices(&mut slices, sent);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.enqueue(slices);
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Failure::Io(e).into()),
            }
        }
    }

    fn enqueue(&mut self, slices: &[IoSlice<'_>]) {
        // What goes to the file at once goes in one piece.
        let is_spilling = self.turn.is_some();
        let settings = self.settings;
        let size = if is_spilling { settings.spill_size() } else { settings.write_size() };
        self.rest.push(slices, size);
    }

    /// Brings what waits in memory down to what may: into the file, or by waiting for the client.
    pub async fn fit(&mut self, r: &mut Request) -> Result<(), Close> {
        while self.rest.in_memory() > self.memory_max() && self.can_spill() {
            if self.has_turn(r).await? {
                self.spill(r).await;
                break;
            }
        }
        self.turn = None;
        let most = self.memory_max();
        if r.response.pace.is_some() && self.rest.in_memory() > most {
            self.rest.pump(self.c, r).await?;
        }
        while self.rest.in_memory() > most {
            self.rest.ready(self.c, r).await?;
            self.rest.pump(self.c, r).await?;
        }
        Ok(())
    }

    /// Waits for a turn, if it has none, or for the client: which is given what it takes. Whether it
    /// is a turn.
    async fn has_turn(&mut self, r: &mut Request) -> Result<bool, Close> {
        if self.turn.is_none() {
            match either(self.turn(), self.rest.ready(self.c, r)).await {
                Either::First(turn) => self.turn = Some(turn),
                Either::Second(ready) => {
                    ready?;
                    self.rest.pump(self.c, r).await?;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Before more is read: makes room for it.
    pub async fn make_room(&mut self, r: &mut Request) {
        if self.rest.in_memory() > 0 && self.room() == 0 && self.can_spill() {
            self.spill(r).await;
        }
    }

    /// Waits until the client can take something.
    pub async fn ready(&self, r: &Request) -> Result<(), Failure> {
        self.rest.ready(self.c, r).await
    }

    /// Sends what the client takes at once.
    pub async fn pump(&mut self, r: &mut Request) -> Result<(), Close> {
        self.rest.pump(self.c, r).await
    }

    fn can_spill(&self) -> bool {
        let max = *self.settings.max_temp_file_size;
        let more = self.settings.write_size() as u64;
        self.buffering && !self.no_file && self.rest.written().saturating_add(more) <= max
    }

    /// Moves what is in memory to the file, as far as that may grow. Where that fails nothing is lost: the
    /// server then waits for the client.
    async fn spill(&mut self, r: &mut Request) {
        let Settings { temp_path, max_temp_file_size, .. } = self.settings;
        self.no_file = !self.rest.spill(self.c, r, temp_path, **max_temp_file_size).await;
    }

    /// There is nothing more to come. If there is a file, the last bytes go there as well, so that
    /// waiting for the client takes no memory. What is left, and nothing if the client has all.
    pub async fn finish(mut self, r: &mut Request, end: End) -> Result<Option<Box<Unsent>>, Close> {
        self.turn = None;
        if self.is_empty() {
            end.apply(r)?;
            return Ok(None);
        }
        while self.rest.spilled() > 0 && self.rest.in_memory() > 0 && self.can_spill() {
            if self.has_turn(r).await? {
                self.spill(r).await;
                break;
            }
        }
        Ok(Some(Box::new(Unsent { rest: self.rest, end })))
    }
}
