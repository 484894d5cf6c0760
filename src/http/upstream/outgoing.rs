//! What the client has not taken yet of a server's response: bytes in memory, up to the size of
//! `*_buffers`, and behind them a temporary file (proxy, section 8).

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::time::Duration;

use smallvec::SmallVec;

use crate::clock;
use crate::error_log::Level;
use crate::http::action::Action;
use crate::http::body::TempFile;
use crate::http::close::Close;
use crate::http::connection::Connection;
use crate::http::count;
use crate::http::modules::exchange::Settings;
use crate::http::pace;
use crate::http::request::Request;
use crate::io::file::File;
use crate::io::select::yield_now;
use crate::io::stream::Failure;
use crate::io::{Buffer, timer};

/// Buffers that are sent with one call.
const SLICES: usize = 16;

pub struct Outgoing<'a> {
    c: &'a Connection,
    settings: &'a Settings,
    /// Whether anything may wait while more is read from the server.
    buffering: bool,
    /// Goes next.
    queue: Queue,
    /// Goes when the queue is empty.
    spill: Option<Spill>,
    /// Goes when the file has been read.
    tail: Queue,
    /// When the client last took something, or what it is to take began to wait.
    progress_ms: u64,
}

/// Bytes in memory, in buffers of one size.
#[derive(Default)]
struct Queue {
    buffers: VecDeque<Buffer>,
    len: usize,
}

/// A temporary file. Its bytes from `read` to `written` wait.
struct Spill {
    file: File,
    /// The name it had.
    path: PathBuf,
    read: u64,
    written: u64,
}

/// How sending at once ended.
#[derive(PartialEq, Eq)]
enum Sent {
    All,
    /// The socket is full, or the pace holds.
    Blocked,
}

impl<'a> Outgoing<'a> {
    pub fn new(c: &'a Connection, settings: &'a Settings, buffering: bool) -> Self {
        Outgoing {
            c,
            settings,
            buffering,
            queue: Queue::default(),
            spill: None,
            tail: Queue::default(),
            progress_ms: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.queue.len == 0 && self.tail.len == 0 && self.spilled() == 0
    }

    /// Bytes that wait in the file.
    fn spilled(&self) -> u64 {
        self.spill.as_ref().map_or(0, Spill::left)
    }

    #[expect(clippy::arithmetic_side_effects, reason = "all of it is allocated")]
    fn in_memory(&self) -> usize {
        self.queue.len + self.tail.len
    }

    /// Bytes that may wait in memory while more is read from the server.
    fn memory_max(&self) -> usize {
        let buffers = *self.settings.buffers;
        if self.buffering { buffers.number.saturating_mul(buffers.size) } else { 0 }
    }

    /// Bytes that still may wait in memory.
    pub fn room(&self) -> usize {
        self.memory_max().saturating_sub(self.in_memory())
    }

    /// Whether more may be read from the server now, even though it must then go to the file.
    pub fn has_room(&self) -> bool {
        self.is_empty() || self.in_memory() < self.memory_max() || self.can_spill()
    }

    /// Sends in order. What the client does not take at once waits here while that may be; otherwise
    /// this waits for the client.
    pub async fn send(&mut self, r: &mut Request, slices: &mut [IoSlice<'_>]) -> Result<(), Close> {
        self.c.action.set(Action::SendingToClient);
        if self.is_empty() && r.response.pace.is_none() {
            if self.send_now(r, slices)? == Sent::All {
                return Ok(());
            }
        } else {
            // At a pace, what goes first is as much as its second allows: more is read before.
            self.enqueue(slices);
            if r.response.pace.is_none() {
                self.pump(r).await?;
            }
        }
        self.fit(r).await
    }

    /// The road of most responses: nothing waits, and the socket takes it.
    fn send_now(&mut self, r: &mut Request, mut slices: &mut [IoSlice<'_>]) -> Result<Sent, Close> {
        loop {
            IoSlice::advance_slices(&mut slices, 0);
            if slices.is_empty() {
                return Ok(Sent::All);
            }
            match self.c.stream.try_send(slices) {
                Ok(sent) => {
                    count::add(&mut r.response.bytes_sent, sent as u64);
                    IoSlice::advance_slices(&mut slices, sent);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.enqueue(slices);
                    return Ok(Sent::Blocked);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Failure::Io(e).into()),
            }
        }
    }

    fn enqueue(&mut self, slices: &[IoSlice<'_>]) {
        if self.is_empty() {
            self.progress_ms = timer::now_ms();
        }
        let size = self.write_size();
        let is_behind_file = self.spilled() > 0 || self.tail.len > 0;
        let queue = if is_behind_file { &mut self.tail } else { &mut self.queue };
        for slice in slices {
            queue.push(slice, size);
        }
    }

    /// Brings what waits in memory down to what may: into the file, or by waiting for the client.
    async fn fit(&mut self, r: &mut Request) -> Result<(), Close> {
        if self.in_memory() > self.memory_max() && self.can_spill() {
            self.spill(r).await?;
        }
        let most = self.memory_max();
        if r.response.pace.is_some() && self.in_memory() > most {
            self.pump(r).await?;
        }
        while self.in_memory() > most {
            self.ready(r).await?;
            self.pump(r).await?;
        }
        Ok(())
    }

    /// Before more is read: makes room for it.
    pub async fn make_room(&mut self, r: &mut Request) -> Result<(), Close> {
        if self.in_memory() >= self.memory_max() && self.can_spill() {
            self.spill(r).await?;
        }
        Ok(())
    }

    /// Waits until the client has taken everything.
    pub async fn drain(&mut self, r: &mut Request) -> Result<(), Close> {
        while !self.is_empty() {
            self.ready(r).await?;
            self.pump(r).await?;
        }
        Ok(())
    }

    /// Waits until the client can take something.
    pub async fn ready(&mut self, r: &Request) -> Result<(), Failure> {
        if let Some(pace) = &r.response.pace {
            let hold = pace.hold(timer::now_ms());
            if !hold.is_zero() {
                pace::hold(&self.c.stream, hold).await?;
                // That was not the client's doing.
                self.progress_ms = timer::now_ms();
                return Ok(());
            }
        }
        let limit = *self.c.settings(r).core.send_timeout;
        let waited = Duration::from_millis(timer::now_ms().saturating_sub(self.progress_ms));
        self.c.action.set(Action::SendingToClient);
        self.c.stream.writable(limit.saturating_sub(waited)).await
    }

    /// Sends what the client takes at once.
    pub async fn pump(&mut self, r: &mut Request) -> Result<(), Close> {
        loop {
            if self.send_queued(r)? == Sent::Blocked {
                return Ok(());
            }
            if self.is_empty() {
                return Ok(());
            }
            self.refill(r).await?;
        }
    }

    fn send_queued(&mut self, r: &mut Request) -> Result<Sent, Close> {
        while self.queue.len > 0 {
            let slices: SmallVec<[IoSlice<'_>; SLICES]> = self.queue.slices();
            let moved = r.response.bytes_sent;
            let sent = match &mut r.response.pace {
                None => self.c.stream.try_send(&slices),
                Some(pace) => match pace.allowed(moved, clock::steady().as_secs(), timer::now_ms())
                {
                    Ok(most) => self.c.stream.try_send(&pace::clip(&slices, most)),
                    Err(_) => return Ok(Sent::Blocked),
                },
            };
            match sent {
                Ok(sent) => {
                    drop(slices);
                    self.progress_ms = timer::now_ms();
                    count::add(&mut r.response.bytes_sent, sent as u64);
                    if let Some(pace) = &mut r.response.pace {
                        pace.account(moved, r.response.bytes_sent, self.progress_ms);
                    }
                    self.queue.consume(sent);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Sent::Blocked),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Failure::Io(e).into()),
            }
        }
        Ok(Sent::All)
    }

    /// Fills the empty queue from the file, and from what is behind the file when that is read.
    async fn refill(&mut self, r: &Request) -> Result<(), Close> {
        let busy = self.settings.busy_size();
        if let Some(spill) = &mut self.spill
            && spill.read < spill.written
        {
            // A client that takes everything at once leaves others their turn.
            yield_now().await;
            let mut buffer = Buffer::with_capacity(busy);
            buffer.limit_receive(spill.left().min(busy as u64));
            let (read, buffer) = spill.file.read_at(buffer, spill.read).await;
            match read {
                Ok(0) => {
                    let (at, path) = (spill.read, spill.path.display());
                    let text = format_args!("\"{path}\" ends at {at}, before what was written");
                    self.c.log(r, Level::Crit, text);
                    return Err(Close::Truncated);
                }
                Ok(n) => {
                    count::add(&mut spill.read, n as u64);
                    self.queue.push_buffer(buffer);
                }
                Err(e) => {
                    let path = spill.path.display();
                    self.c.log_errno(r, Level::Crit, format_args!("pread() \"{path}\" failed"), &e);
                    return Err(Close::Truncated);
                }
            }
            if spill.read == spill.written {
                // Its room is used again from the start.
                (spill.read, spill.written) = (0, 0);
            }
        }
        if self.spilled() == 0 {
            self.queue.append(&mut self.tail);
        }
        Ok(())
    }

    fn write_size(&self) -> usize {
        self.settings.write_size()
    }

    fn can_spill(&self) -> bool {
        let max = *self.settings.max_temp_file_size;
        let written = self.spill.as_ref().map_or(0, |spill| spill.written);
        self.buffering && written.saturating_add(self.write_size() as u64) <= max
    }

    /// Moves to the file what need not be in memory. What goes next stays, as far as it may be busy.
    async fn spill(&mut self, r: &mut Request) -> Result<(), Close> {
        self.c.action.set(Action::ReadingUpstream);
        if self.spilled() == 0 && self.tail.len == 0 {
            self.tail = self.queue.split_off(self.settings.busy_size());
        }
        if self.tail.len == 0 {
            return Ok(());
        }
        let mut spill = match self.spill.take() {
            Some(spill) => spill,
            None => self.create(r)?,
        };
        let max = *self.settings.max_temp_file_size;
        let fits = |spill: &Spill, buffer: &Buffer| {
            spill.written.saturating_add(buffer.len() as u64) <= max
        };
        while self.tail.buffers.front().is_some_and(|buffer| fits(&spill, buffer))
            && let Some(buffer) = self.tail.pop_buffer()
        {
            let length = buffer.len();
            if let Err(e) = spill.file.write_all_at(buffer, spill.written).await {
                let path = spill.path.display();
                self.c.log_errno(r, Level::Crit, format_args!("pwrite() \"{path}\" failed"), &e);
                return Err(Close::Truncated);
            }
            count::add(&mut spill.written, length as u64);
        }
        self.spill = Some(spill);
        Ok(())
    }

    fn create(&self, r: &Request) -> Result<Spill, Close> {
        let created = TempFile::create_unlinked(&self.settings.temp_path);
        let (file, path) = created.map_err(|failed| {
            self.c.log_errno(r, Level::Crit, format_args!("{failed}"), &failed.error);
            Close::Truncated
        })?;
        let shown = path.display();
        let text = format_args!("an upstream response is buffered to a temporary file {shown}");
        self.c.log(r, Level::Warn, text);
        let file = File::new(file).map_err(Close::Io)?;
        Ok(Spill { file, path, read: 0, written: 0 })
    }
}

impl Spill {
    /// Bytes that have not been read back.
    #[expect(clippy::arithmetic_side_effects, reason = "only what is written is read")]
    fn left(&self) -> u64 {
        self.written - self.read
    }
}

#[expect(
    clippy::arithmetic_side_effects,
    reason = "`len` is what the buffers hold, and that is allocated"
)]
impl Queue {
    fn push_buffer(&mut self, buffer: Buffer) {
        self.len += buffer.len();
        self.buffers.push_back(buffer);
    }

    fn pop_buffer(&mut self) -> Option<Buffer> {
        let buffer = self.buffers.pop_front()?;
        self.len -= buffer.len();
        Some(buffer)
    }

    /// Appends, in buffers of `size` bytes.
    fn push(&mut self, mut bytes: &[u8], size: usize) {
        self.len += bytes.len();
        while !bytes.is_empty() {
            if self.buffers.back().is_none_or(|last| last.spare() == 0) {
                self.buffers.push_back(Buffer::with_capacity(size));
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
        self.len -= n;
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

    /// Takes off the buffers that are behind the first `keep` bytes; at least one stays.
    fn split_off(&mut self, keep: usize) -> Queue {
        let mut kept = 0;
        let at = self.buffers.iter().position(|buffer| {
            let is_over = kept > 0 && kept + buffer.len() > keep;
            kept += if is_over { 0 } else { buffer.len() };
            is_over
        });
        let buffers = self.buffers.split_off(at.unwrap_or(self.buffers.len()));
        let rest = Queue { len: self.len - kept, buffers };
        self.len = kept;
        rest
    }

    fn append(&mut self, other: &mut Queue) {
        self.buffers.append(&mut other.buffers);
        self.len += std::mem::take(&mut other.len);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content(queue: &Queue) -> Vec<u8> {
        queue.buffers.iter().flat_map(|buffer| buffer.as_slice().to_vec()).collect()
    }

    #[test]
    fn a_queue_is_split_behind_what_may_be_busy() {
        let mut queue = Queue::default();
        queue.push(&[7; 5000], 1024);
        assert_eq!((queue.len, queue.buffers.len()), (5000, 5));
        let rest = queue.split_off(2100);
        assert_eq!((queue.len, rest.len), (2048, 2952));
        let rest = queue.split_off(1);
        assert_eq!((queue.len, rest.len), (1024, 1024));
        assert_eq!(queue.split_off(4000).len, 0);
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_in_order(steps in proptest::collection::vec((0..3u8, 0..3000usize), 0..30)) {
            let (mut queue, mut model) = (Queue::default(), Vec::new());
            for (n, (step, size)) in steps.into_iter().enumerate() {
                match step {
                    0 => {
                        let bytes = vec![n as u8; size];
                        queue.push(&bytes, 1024);
                        model.extend(bytes);
                    }
                    1 => {
                        let size = size.min(model.len());
                        queue.consume(size);
                        model.drain(..size);
                    }
                    _ => {
                        let mut rest = queue.split_off(size);
                        queue.append(&mut rest);
                    }
                }
                prop_assert_eq!(queue.len, model.len());
                prop_assert_eq!(content(&queue), model.clone());
            }
        }
    }
}
