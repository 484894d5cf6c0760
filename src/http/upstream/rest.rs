//! What a client has still to take of a response: bytes in memory, and ahead of them what had to go to a
//! temporary file. While the client is waited for, nothing of the file is held.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use smallvec::SmallVec;

use super::relay::End;
use crate::clock;
use crate::error_log::Level;
use crate::http::action::Action;
use crate::http::close::Close;
use crate::http::connection::Connection;
use crate::http::count;
use crate::http::modules::core::TempPath;
use crate::http::request::Request;
use crate::http::temp_file::TempFile;
use crate::http::{body, pace, response};
use crate::io::file::File;
use crate::io::select::yield_now;
use crate::io::stream::Failure;
use crate::io::{Buffer, timer};

/// Buffers that are sent with one call.
const SLICES: usize = 16;
/// What goes to the file, or comes from it, in one piece, at most.
pub const PIECE_MAX: usize = 64 << 10;
/// Pieces that are sent out of the file before something else is looked at.
const PIECES_IN_A_ROW: usize = 8;

#[derive(Debug)]
pub struct Rest {
    /// Goes first.
    spill: Option<Spill>,
    /// Goes when all of the file has been sent.
    queue: Queue,
    /// What is read first of the file for a client that is ready.
    piece: usize,
    /// When the client last took something, or what it is to take began to wait.
    progress_ms: Cell<u64>,
}

/// The rest of a response that has been received as far as it will be.
#[derive(Debug)]
pub struct Unsent {
    pub rest: Rest,
    pub end: End,
}

/// Bytes in memory; those of all queues of a shard are counted together.
#[derive(Debug)]
struct Queue {
    buffers: VecDeque<Buffer>,
    len: usize,
    of_shard: Rc<Cell<usize>>,
}

/// A temporary file. Its bytes from `sent` to `written` wait.
#[derive(Debug)]
struct Spill {
    file: File,
    /// The name it had.
    path: PathBuf,
    sent: u64,
    written: u64,
}

/// How sending at once ended.
#[derive(PartialEq, Eq)]
enum Sent {
    All,
    /// The socket is full, the pace holds, or it was enough for now.
    Blocked,
}

impl Rest {
    /// Nothing yet. `of_shard` counts the bytes that the shard has in memory.
    pub fn new(piece: usize, of_shard: Rc<Cell<usize>>) -> Self {
        let queue = Queue { buffers: VecDeque::new(), len: 0, of_shard };
        Rest { spill: None, queue, piece, progress_ms: Cell::new(0) }
    }

    pub fn is_empty(&self) -> bool {
        self.queue.len == 0 && self.spilled() == 0
    }

    /// Bytes that wait in the file.
    pub fn spilled(&self) -> u64 {
        self.spill.as_ref().map_or(0, Spill::left)
    }

    pub fn in_memory(&self) -> usize {
        self.queue.len
    }

    /// Bytes that the file has taken.
    pub fn written(&self) -> u64 {
        self.spill.as_ref().map_or(0, |spill| spill.written)
    }

    /// Adds a copy, in buffers of `size` bytes where it is not less.
    pub fn push(&mut self, slices: &[IoSlice<'_>], size: usize) {
        if self.is_empty() {
            self.progress_ms.set(timer::now_ms());
        }
        for slice in slices {
            self.queue.push(slice, size);
        }
    }

    /// Moves what is in memory to the file, as far as that may grow. What cannot be written stays, and
    /// false is the answer.
    pub async fn spill(
        &mut self,
        c: &Connection,
        r: &Request,
        folder: &TempPath,
        max: u64,
    ) -> bool {
        c.action.set(Action::ReadingUpstream);
        let Some(mut spill) = self.spill.take().or_else(|| Spill::create(c, r, folder)) else {
            return false;
        };
        let fits = |spill: &Spill, buffer: &Buffer| {
            spill.written.saturating_add(buffer.len() as u64) <= max
        };
        let mut is_written = true;
        while is_written
            && self.queue.buffers.front().is_some_and(|buffer| fits(&spill, buffer))
            && let Some(buffer) = self.queue.pop()
        {
            let length = buffer.len();
            let (written, left) = spill.file.write_all_at(buffer, spill.written).await;
            count::add(&mut spill.written, length.saturating_sub(left.len()) as u64);
            if let Err(e) = written {
                let path = spill.path.display();
                c.log_errno(r, Level::Crit, format_args!("pwrite() \"{path}\" failed"), &e);
                self.queue.push_front(left);
                is_written = false;
            }
        }
        self.spill = Some(spill);
        is_written
    }

    /// Waits until the client can take something.
    pub async fn ready(&self, c: &Connection, r: &Request) -> Result<(), Failure> {
        if let Some(pace) = &r.response.pace {
            let hold = pace.hold(timer::now_ms());
            if !hold.is_zero() {
                pace::hold(&c.stream, hold).await?;
                // That was not the client's doing.
                self.progress_ms.set(timer::now_ms());
                return Ok(());
            }
        }
        let limit = *c.settings(r).core.send_timeout;
        let waited = Duration::from_millis(timer::now_ms().saturating_sub(self.progress_ms.get()));
        c.action.set(Action::SendingToClient);
        let left = limit.saturating_sub(waited);
        // A body that the server did not want to its end may still be coming.
        response::writable(c, left, r.body.is_abandoned, || body::discard_abandoned(c)).await
    }

    /// Sends what the client takes at once, and of a file no more than some pieces: a client that keeps
    /// up with it does not keep whoever has it from going on.
    pub async fn pump(&mut self, c: &Connection, r: &mut Request) -> Result<(), Close> {
        while !self.is_empty() {
            let sent = if self.spilled() > 0 {
                self.send_spilled(c, r).await?
            } else {
                self.send_queued(c, r)?
            };
            if sent == Sent::Blocked {
                break;
            }
        }
        Ok(())
    }

    /// Sends out of the file. A piece is read when the client can take something, and what it does not
    /// take is read again next time.
    async fn send_spilled(&mut self, c: &Connection, r: &mut Request) -> Result<Sent, Close> {
        let mut most = self.piece;
        for _ in 0..PIECES_IN_A_ROW {
            let Some(spill) = &mut self.spill else { return Ok(Sent::All) };
            if spill.left() == 0 {
                return Ok(Sent::All);
            }
            let Some(allowed) = allowed(r) else { return Ok(Sent::Blocked) };
            // A client that takes everything at once leaves others their turn.
            yield_now().await;
            let mut buffer = Buffer::with_capacity(most);
            buffer.limit_receive(spill.left().min(most as u64).min(allowed));
            let (read, buffer) = spill.file.read_at(buffer, spill.sent).await;
            match read {
                Ok(0) => {
                    let (at, path) = (spill.sent, spill.path.display());
                    let text = format_args!("\"{path}\" ends at {at}, before what was written");
                    c.log(r, Level::Crit, text);
                    return Err(Close::Truncated);
                }
                Ok(_) => {}
                Err(e) => {
                    let path = spill.path.display();
                    c.log_errno(r, Level::Crit, format_args!("pread() \"{path}\" failed"), &e);
                    return Err(Close::Truncated);
                }
            }
            let sent = match c.stream.try_send(&[IoSlice::new(buffer.as_slice())]) {
                Ok(sent) => sent,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Sent::Blocked),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
                Err(e) => return Err(Failure::Io(e).into()),
            };
            count::add(&mut spill.sent, sent as u64);
            if spill.left() == 0 {
                // Its room is used again from the start.
                (spill.sent, spill.written) = (0, 0);
            }
            self.account(r, sent);
            // One that takes all it is given is given more.
            most = if sent == buffer.len() { PIECE_MAX.max(most) } else { most };
        }
        Ok(Sent::Blocked)
    }

    fn send_queued(&mut self, c: &Connection, r: &mut Request) -> Result<Sent, Close> {
        while self.queue.len > 0 {
            let Some(allowed) = allowed(r) else { return Ok(Sent::Blocked) };
            let slices: SmallVec<[IoSlice<'_>; SLICES]> = self.queue.slices();
            let sent = if r.response.pace.is_none() {
                c.stream.try_send(&slices)
            } else {
                c.stream.try_send(&pace::clip(&slices, allowed))
            };
            match sent {
                Ok(sent) => {
                    drop(slices);
                    self.queue.consume(sent);
                    self.account(r, sent);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Sent::Blocked),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Failure::Io(e).into()),
            }
        }
        Ok(Sent::All)
    }

    /// The client has taken so many bytes.
    fn account(&self, r: &mut Request, sent: usize) {
        let moved = r.response.bytes_sent;
        let now_ms = timer::now_ms();
        self.progress_ms.set(now_ms);
        count::add(&mut r.response.bytes_sent, sent as u64);
        if let Some(pace) = &mut r.response.pace {
            pace.account(moved, r.response.bytes_sent, now_ms);
        }
    }
}

/// What the pace lets go now; none while it holds.
fn allowed(r: &mut Request) -> Option<u64> {
    let moved = r.response.bytes_sent;
    match &mut r.response.pace {
        None => Some(u64::MAX),
        Some(pace) => pace.allowed(moved, clock::steady().as_secs(), timer::now_ms()).ok(),
    }
}

impl Unsent {
    /// Gives the client the rest. The server is done with, and so is all that was needed to ask it.
    pub async fn send(mut self, c: &Connection, r: &mut Request) -> Result<(), Close> {
        while !self.rest.is_empty() {
            self.rest.ready(c, r).await?;
            self.rest.pump(c, r).await?;
        }
        self.end.apply(r)
    }
}

impl Spill {
    fn create(c: &Connection, r: &Request, folder: &TempPath) -> Option<Self> {
        let created = TempFile::create_unlinked(folder);
        let (file, path) = created
            .inspect_err(|failed| {
                c.log_errno(r, Level::Crit, format_args!("{failed}"), &failed.error);
            })
            .ok()?;
        let file = File::new(file).ok()?;
        let shown = path.display();
        let text = format_args!("an upstream response is buffered to a temporary file {shown}");
        c.log(r, Level::Warn, text);
        Some(Spill { file, path, sent: 0, written: 0 })
    }

    /// Bytes that have not been sent.
    #[expect(clippy::arithmetic_side_effects, reason = "only what is written is sent")]
    fn left(&self) -> u64 {
        self.written - self.sent
    }
}

#[expect(
    clippy::arithmetic_side_effects,
    reason = "`len` is what the buffers hold, and that is allocated; the shard's sum is of all `len`"
)]
impl Queue {
    fn add(&mut self, n: usize) {
        self.len += n;
        self.of_shard.set(self.of_shard.get() + n);
    }

    fn subtract(&mut self, n: usize) {
        self.len -= n;
        self.of_shard.set(self.of_shard.get() - n);
    }

    fn pop(&mut self) -> Option<Buffer> {
        let buffer = self.buffers.pop_front()?;
        self.subtract(buffer.len());
        Some(buffer)
    }

    fn push_front(&mut self, buffer: Buffer) {
        self.add(buffer.len());
        self.buffers.push_front(buffer);
    }

    /// Appends, in buffers of `size` bytes; a last one may be smaller.
    fn push(&mut self, mut bytes: &[u8], size: usize) {
        self.add(bytes.len());
        while !bytes.is_empty() {
            if self.buffers.back().is_none_or(|last| last.spare() == 0) {
                self.buffers.push_back(Buffer::with_capacity(size.min(bytes.len())));
            }
            let Some(last) = self.buffers.back_mut() else { return };
            let (fits, rest) = bytes.split_at(bytes.len().min(last.spare()));
            last.extend(fits);
            bytes = rest;
        }
    }

    fn slices(&self) -> SmallVec<[IoSlice<'_>; SLICES]> {
        self.buffers.iter().take(SLICES).map(|buffer| IoSlice::new(buffer.as_slice())).collect()
    }

    /// Drops the first `n` bytes.
    fn consume(&mut self, n: usize) {
        self.subtract(n);
        let mut left = n;
        while let Some(front) = self.buffers.front_mut() {
            let take = left.min(front.len());
            front.consume(take);
            left -= take;
            if !front.is_empty() {
                break;
            }
            self.buffers.pop_front();
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.subtract(self.len);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content(queue: &Queue) -> Vec<u8> {
        queue.buffers.iter().flat_map(|buffer| buffer.as_slice().to_vec()).collect()
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_in_order(steps in proptest::collection::vec((any::<bool>(), 0..3000usize), 0..30)) {
            let of_shard = Rc::new(Cell::new(7));
            let mut queue = Queue { buffers: VecDeque::new(), len: 0, of_shard: Rc::clone(&of_shard) };
            let mut model = Vec::new();
            for (n, (is_push, size)) in steps.into_iter().enumerate() {
                if is_push {
                    let bytes = vec![n as u8; size];
                    queue.push(&bytes, 1024);
                    model.extend(bytes);
                } else {
                    let size = size.min(model.len());
                    queue.consume(size);
                    model.drain(..size);
                }
                prop_assert_eq!(queue.len, model.len());
                prop_assert_eq!(of_shard.get(), 7 + model.len());
                prop_assert_eq!(content(&queue), model.clone());
            }
            drop(queue);
            prop_assert_eq!(of_shard.get(), 7);
        }
    }
}
