//! Readiness of many descriptors without a task or an operation for each: what tunnels wait with.
//!
//! An epoll with one edge-triggered registration a descriptor, whose own descriptor the shard's
//! runtime waits on ([`Poller::bell`]), be that a ring or another epoll. A second ring with
//! multishot polls does the same and was measured beside it: it runs a task work with every edge,
//! at the end of whatever system call comes next, and with thousands of busy descriptors that costs
//! more than epoll's one call for a batch of edges.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::Stream;

/// Events taken in one go.
const BATCH: usize = 64;

/// Input, and everything that is an end.
const INPUT: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::RDHUP);
const ENDS: epoll::EventFlags =
    epoll::EventFlags::RDHUP.union(epoll::EventFlags::HUP).union(epoll::EventFlags::ERR);

/// Names a watched descriptor in its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token(pub u64);

/// What has become of a watched descriptor since its last event.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    pub token: Token,
    /// There may be something to receive.
    pub readable: bool,
    /// It may take bytes again: told after [`Poller::watch_output`].
    pub writable: bool,
    /// The peer has ended its side, or the socket has failed: receiving tells which.
    pub ended: bool,
    /// The socket has an error on it.
    pub failed: bool,
}

pub struct Poller {
    epoll: OwnedFd,
    taken: Vec<epoll::Event>,
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Poller { epoll, taken: Vec::with_capacity(BATCH) })
    }

    /// Readable when there are events. A descriptor of its own, so that it can be awaited while the
    /// poller is in use.
    pub fn bell(&self) -> io::Result<Stream> {
        Stream::new(self.epoll.try_clone()?)
    }

    /// Tells of input and ends, one event an edge, until [`Poller::forget`].
    pub fn watch(&self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let flags = INPUT | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token.0), flags)?)
    }

    /// Tells of output as well, from now on: at once if the descriptor takes bytes already.
    pub fn watch_output(&self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let flags = INPUT | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        Ok(epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(token.0), flags)?)
    }

    /// Lets go of a descriptor, which may then be closed. An event that was taken before may still
    /// be of it: by their token they are told apart.
    pub fn forget(&self, fd: BorrowedFd<'_>) {
        // It is watched: there is no other way to fail.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Takes events that are there, at most [`BATCH`].
    pub fn take(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        self.taken.clear();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let room = rustix::buffer::spare_capacity(&mut self.taken);
        match epoll::wait(&self.epoll, room, Some(&now)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        events.extend(self.taken.iter().map(|event| {
            let (flags, data) = (event.flags, event.data);
            let ended = flags.intersects(ENDS);
            Event {
                token: Token(data.u64()),
                readable: ended || flags.contains(epoll::EventFlags::IN),
                writable: flags.contains(epoll::EventFlags::OUT),
                ended,
                failed: flags.contains(epoll::EventFlags::ERR),
            }
        }));
        Ok(())
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// The next event; fails where none comes.
    fn next(poller: &mut Poller) -> Event {
        let mut polled = [rustix::event::PollFd::new(&*poller, rustix::event::PollFlags::IN)];
        let limit = Timespec { tv_sec: 5, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut polled, Some(&limit)), Ok(1), "no event");
        let mut events = Vec::new();
        poller.take(&mut events).unwrap();
        assert_eq!(events.len(), 1);
        events[0]
    }

    #[test]
    fn one_event_an_edge() {
        let mut poller = Poller::new().unwrap();
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        poller.watch(ours.as_fd(), Token(7)).unwrap();
        for _ in 0..3 {
            theirs.write_all(b"x").unwrap();
            let event = next(&mut poller);
            assert!(event.readable && !event.writable && !event.ended && !event.failed);
            assert_eq!(event.token, Token(7));
            let mut events = Vec::new();
            poller.take(&mut events).unwrap();
            assert!(events.is_empty(), "told once, read or not");
            ours.read_exact(&mut [0; 1]).unwrap();
        }
        poller.watch_output(ours.as_fd(), Token(7)).unwrap();
        assert!(next(&mut poller).writable);
        drop(theirs);
        assert!(next(&mut poller).ended);
    }

    #[test]
    fn a_forgotten_descriptor_is_silent() {
        let mut poller = Poller::new().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        poller.watch(ours.as_fd(), Token(1)).unwrap();
        poller.forget(ours.as_fd());
        theirs.write_all(b"x").unwrap();
        let mut events = Vec::new();
        poller.take(&mut events).unwrap();
        assert!(events.is_empty());
    }
}
