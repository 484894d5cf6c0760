//! Readiness of many descriptors without a task or an operation for each: what tunnels wait with.
//!
//! An epoll with one edge-triggered registration a descriptor, whose own descriptor the shard's
//! runtime waits on ([`Poller::bell`]), be that a ring or another epoll. A second ring with
//! multishot polls does the same and was measured beside it: it runs a task work with every edge,
//! at the end of whatever system call comes next, and with thousands of busy descriptors that costs
//! more than epoll's one call for a batch of edges.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

use super::runtime::{self, Ring};
use super::standby::Stood;
use super::{Stream, timer};

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

/// The ring of the thread, and the clock of [`Poller::wait`].
const RING: Token = Token(u64::MAX);
const CLOCK: Token = Token(u64::MAX - 1);

pub struct Poller {
    epoll: OwnedFd,
    taken: Vec<epoll::Event>,
    outside: Option<Outside>,
}

impl Poller {
    pub fn new(ring: Ring) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let outside = match ring {
            Ring::IoUring => Outside::new(&epoll).ok().flatten(),
            Ring::Epoll => None,
        };
        Ok(Poller { epoll, taken: Vec::with_capacity(BATCH), outside })
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
        if self.taken.is_empty() {
            self.fill(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        }
        for event in self.taken.drain(..) {
            let (flags, token) = (event.flags, Token(event.data.u64()));
            match (token, &mut self.outside) {
                (RING, _) => continue,
                (CLOCK, Some(outside)) => {
                    outside.rings_ms = NEVER;
                    continue;
                }
                _ => {}
            }
            let ended = flags.intersects(ENDS);
            events.push(Event {
                token,
                readable: ended || flags.contains(epoll::EventFlags::IN),
                writable: flags.contains(epoll::EventFlags::OUT),
                ended,
                failed: flags.contains(epoll::EventFlags::ERR),
            });
        }
        Ok(())
    }

    /// Whether this thread has a ring that can be waited for as well.
    pub fn knows_ring(&self) -> bool {
        self.outside.is_some()
    }

    /// The thread is going to wait here and not in its ring (see [`standby`](super::standby)), to which
    /// it submits what there is. False: it cannot.
    pub fn begin_waits(&self) -> bool {
        self.outside.as_ref().is_some_and(|outside| outside.begin(&self.epoll).is_ok())
    }

    /// Waits until there are events, the ring has completed something, or it is the given time
    /// ([`timer::now_ms`]).
    pub fn wait(&mut self, until_ms: u64) -> Stood {
        let Some(outside) = &mut self.outside else { return Stood::Refused };
        if outside.ring_at(until_ms).is_err() || self.fill(None).is_err() {
            return Stood::Refused;
        }
        // What the ring completes may interrupt the wait instead of being told of.
        let mut tokens = self.taken.iter().map(|event| Token(event.data.u64()));
        if self.taken.is_empty() || tokens.any(|token| token == RING || token == CLOCK) {
            return Stood::Relieved;
        }
        Stood::Called
    }

    /// The thread goes on waiting in its ring.
    pub fn end_waits(&self) {
        if let Some(outside) = &self.outside {
            outside.end(&self.epoll);
        }
    }

    fn fill(&mut self, limit: Option<&Timespec>) -> Result<(), Errno> {
        let room = rustix::buffer::spare_capacity(&mut self.taken);
        match epoll::wait(&self.epoll, room, limit) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// What ends a wait in the poller besides its own descriptors.
struct Outside {
    ring: OwnedFd,
    clock: OwnedFd,
    /// When the clock rings.
    rings_ms: u64,
}

const NEVER: u64 = u64::MAX;

impl Outside {
    /// `None`: the thread has no ring.
    fn new(epoll: &OwnedFd) -> io::Result<Option<Self>> {
        let Some(ring) = runtime::own_ring()? else { return Ok(None) };
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let clock = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(epoll, &clock, epoll::EventData::new_u64(CLOCK.0), flags)?;
        Ok(Some(Outside { ring, clock, rings_ms: NEVER }))
    }

    /// The ring is among the poller's descriptors from now on: while the poller's bell waits in the ring,
    /// it would ring itself.
    fn begin(&self, epoll: &OwnedFd) -> Result<(), Errno> {
        let data = epoll::EventData::new_u64(RING.0);
        epoll::add(epoll, &self.ring, data, epoll::EventFlags::IN)?;
        runtime::submit(&self.ring).inspect_err(|_| self.end(epoll))
    }

    fn end(&self, epoll: &OwnedFd) {
        // It is one of them: there is no other way to fail.
        let _ = epoll::delete(epoll, &self.ring);
    }

    /// The clock rings at that time at the latest: too early, it does no harm.
    fn ring_at(&mut self, until_ms: u64) -> Result<(), Errno> {
        if until_ms < self.rings_ms || self.rings_ms <= timer::now_ms() {
            self.set_clock(until_ms)?;
        }
        Ok(())
    }

    fn set_clock(&mut self, rings_ms: u64) -> Result<(), Errno> {
        let at = Duration::from_millis(rings_ms.max(1));
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: at.try_into().map_err(|_| Errno::INVAL)?,
        };
        rustix::time::timerfd_settime(&self.clock, TimerfdTimerFlags::ABSTIME, &once)?;
        self.rings_ms = rings_ms;
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
        let mut poller = Poller::new(Ring::Epoll).unwrap();
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
        let mut poller = Poller::new(Ring::Epoll).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        poller.watch(ours.as_fd(), Token(1)).unwrap();
        poller.forget(ours.as_fd());
        theirs.write_all(b"x").unwrap();
        let mut events = Vec::new();
        poller.take(&mut events).unwrap();
        assert!(events.is_empty());
    }
}
