//! Pipes that bytes pass through on their way from socket to socket, and the shard's pool of them.
//!
//! A pipe is two descriptors and up to [`CAPACITY`] bytes, so a direction borrows one only while it holds
//! bytes, and pipes that nobody has needed for a while are closed.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use crate::counters::Counter;

/// What a pipe is asked to hold. The kernel gives less to a user who has many of them
/// (`/proc/sys/fs/pipe-user-pages-soft`), which costs more calls and nothing else.
pub const CAPACITY: usize = 1 << 20;
/// Pipes of a shard in use at once; a direction that gets none is copied.
const IN_USE_MAX: usize = 1024;
/// Pipes kept for the next borrower.
const SPARE_MAX: usize = 64;
/// How long pipes are kept when none is borrowed, milliseconds.
const SPARE_MS: u64 = 1000;

/// A pipe, and how much it holds.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
}

impl Pipe {
    fn open() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Refused: it works at its default size as well.
        let _ = fcntl_setpipe_size(&write, CAPACITY);
        Ok(Pipe { read, write, held: 0 })
    }

    /// Bytes in it.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Moves at most `most` bytes in. Zero: the socket's end. The socket must be non-blocking:
    /// the flag alone does not keep a splice from blocking on it.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "a pipe holds what the kernel has memory for"
    )]
    pub fn fill(&mut self, from: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        let moved = self.retry(|pipe| splice(from, None, &pipe.write, None, most, FLAGS))?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves bytes out, as many as the socket takes.
    #[expect(clippy::arithmetic_side_effects, reason = "at most `held` is asked for")]
    pub fn drain(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
        let moved = self.retry(|pipe| splice(&pipe.read, None, to, None, pipe.held, FLAGS))?;
        self.held -= moved;
        Ok(moved)
    }

    /// Takes the bytes out again, for a socket that cannot be spliced to.
    #[expect(clippy::arithmetic_side_effects, reason = "only what was moved in comes out")]
    pub fn take(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let taken = self.retry(|pipe| rustix::io::read(&pipe.read, &mut *buffer))?;
        self.held -= taken;
        Ok(taken)
    }

    fn retry(&mut self, mut call: impl FnMut(&Self) -> Result<usize, Errno>) -> io::Result<usize> {
        loop {
            match call(self) {
                Err(Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }
}

const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

/// The shard's pipes.
#[derive(Debug, Default)]
pub struct Pipes {
    spare: Vec<Pipe>,
    in_use: usize,
    used_ms: u64,
}

impl Pipes {
    /// An empty pipe; none when there are too many or no descriptors are left.
    #[expect(clippy::arithmetic_side_effects, reason = "below `IN_USE_MAX`")]
    pub fn borrow(&mut self, in_use: &Counter, now_ms: u64) -> Option<Pipe> {
        if self.in_use >= IN_USE_MAX {
            return None;
        }
        let pipe = self.spare.pop().or_else(|| Pipe::open().ok())?;
        self.in_use += 1;
        self.used_ms = now_ms;
        in_use.set(self.in_use as u64);
        Some(pipe)
    }

    /// Takes a pipe back. One that still holds bytes is closed.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "who gives one back has borrowed it, and has it no more"
    )]
    pub fn give_back(&mut self, pipe: Pipe, in_use: &Counter, now_ms: u64) {
        self.in_use -= 1;
        self.used_ms = now_ms;
        in_use.set(self.in_use as u64);
        if pipe.held == 0 && self.spare.len() < SPARE_MAX {
            self.spare.push(pipe);
        }
    }

    /// Closes spare pipes that nobody has needed for a while; tells when to look again.
    pub fn tidy(&mut self, now_ms: u64) -> Option<u64> {
        if self.spare.is_empty() {
            return None;
        }
        let until = self.used_ms.saturating_add(SPARE_MS);
        if now_ms < until {
            return Some(until);
        }
        self.spare = Vec::new();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn bytes_pass_and_pipes_come_back() {
        let (mut a, from) = UnixStream::pair().unwrap();
        let (to, mut b) = UnixStream::pair().unwrap();
        from.set_nonblocking(true).unwrap();
        to.set_nonblocking(true).unwrap();
        let counter = Counter::default();
        let mut pipes = Pipes::default();
        let mut pipe = pipes.borrow(&counter, 0).unwrap();
        assert_eq!(counter.get(), 1);
        let empty = pipe.fill(from.as_fd(), 100).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        a.write_all(b"hello").unwrap();
        assert_eq!(pipe.fill(from.as_fd(), 100).unwrap(), 5);
        assert_eq!(pipe.drain(to.as_fd()).unwrap(), 5);
        let mut bytes = [0; 5];
        b.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
        drop(a);
        assert_eq!(pipe.fill(from.as_fd(), 100).unwrap(), 0, "the end");
        pipes.give_back(pipe, &counter, 10);
        assert_eq!(counter.get(), 0);
        assert_eq!(pipes.tidy(100), Some(10 + SPARE_MS));
        assert_eq!(pipes.tidy(10 + SPARE_MS), None);
        assert!(pipes.spare.is_empty());
    }

    #[test]
    fn a_pipe_with_bytes_in_it_is_not_lent_again() {
        let (mut a, from) = UnixStream::pair().unwrap();
        from.set_nonblocking(true).unwrap();
        let counter = Counter::default();
        let mut pipes = Pipes::default();
        let mut pipe = pipes.borrow(&counter, 0).unwrap();
        a.write_all(b"hello").unwrap();
        pipe.fill(from.as_fd(), 3).unwrap();
        let mut two = [0; 2];
        assert_eq!(pipe.take(&mut two).unwrap(), 2);
        assert_eq!((&two, pipe.held()), (b"he", 1));
        pipes.give_back(pipe, &counter, 0);
        assert!(pipes.spare.is_empty());
    }
}
