//! Readiness of many descriptors without a task or an operation for each: what tunnels wait with.
//!
//! A ring of its own with one multishot, edge-triggered poll a descriptor, or an epoll where
//! `io_uring` is denied. The shard's runtime waits on the poller's own descriptor
//! ([`Poller::bell`]). The ring runs its completions whenever its thread enters the kernel anyway
//! (`COOP_TASKRUN`), which a wait on its descriptor needs: with `DEFER_TASKRUN` it never fires.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::event::epoll;

use super::Stream;
use super::runtime::Ring;

/// Submission queue entries; more in one go are submitted in several calls.
const ENTRIES: u32 = 256;
/// Completions that fit before the kernel keeps them elsewhere, at some cost.
const COMPLETIONS: u32 = 4096;
/// Events taken in one go.
const BATCH: usize = 256;

/// Input, and everything that is an end.
const INPUT: u32 = (libc::EPOLLIN | libc::EPOLLRDHUP) as u32;
const OUTPUT: u32 = libc::EPOLLOUT as u32;
const ENDS: u32 = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32;

/// Marks the one-shot poll for output among a ring's requests.
const FOR_OUTPUT: u64 = 1 << 63;
/// Of requests whose own completion says nothing.
const NOBODY: u64 = u64::MAX;

/// Names a watched descriptor in its events. Less than 2^62.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token(pub u64);

/// What has become of a watched descriptor since its last event.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    pub token: Token,
    /// There may be something to receive.
    pub readable: bool,
    /// It may take bytes again: asked for by [`Poller::watch_output`].
    pub writable: bool,
    /// The peer has ended its side, or the socket has failed: receiving tells which.
    pub ended: bool,
    /// The socket has an error on it.
    pub failed: bool,
    /// The watch has come to its end by itself and must be asked for again.
    pub unwatched: bool,
}

pub struct Poller {
    kind: Kind,
}

enum Kind {
    Ring {
        ring: Box<IoUring>,
        /// Entries were pushed and not submitted.
        pushed: bool,
    },
    Epoll {
        epoll: OwnedFd,
        events: Vec<epoll::Event>,
    },
}

impl Poller {
    /// On a ring where the runtime has one; if a second ring is refused, on epoll.
    pub fn new(ring: Ring) -> io::Result<Self> {
        let kind = match ring {
            Ring::IoUring => match build_ring() {
                Ok(ring) => Kind::Ring { ring: Box::new(ring), pushed: false },
                Err(_) => build_epoll()?,
            },
            Ring::Epoll => build_epoll()?,
        };
        Ok(Poller { kind })
    }

    /// Readable when there are events. A descriptor of its own, so that it can be awaited while the
    /// poller is in use.
    pub fn bell(&self) -> io::Result<Stream> {
        Stream::new(self.as_fd().try_clone_to_owned()?)
    }

    /// Tells of input and ends, one event an edge, until [`Poller::forget`].
    pub fn watch(&mut self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        match &mut self.kind {
            Kind::Ring { .. } => {
                let poll = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), INPUT).multi(true);
                self.push(&poll.build().user_data(token.0))
            }
            Kind::Epoll { epoll, .. } => {
                let flags = epoll::EventFlags::from_bits_retain(INPUT) | epoll::EventFlags::ET;
                Ok(epoll::add(epoll, fd, epoll::EventData::new_u64(token.0), flags)?)
            }
        }
    }

    /// Tells once when the descriptor takes bytes.
    pub fn watch_output(&mut self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        match &mut self.kind {
            Kind::Ring { .. } => {
                let poll = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), OUTPUT);
                self.push(&poll.build().user_data(token.0 | FOR_OUTPUT))
            }
            Kind::Epoll { epoll, .. } => {
                // From now on for every edge: what is not asked for is ignored by the reader.
                let flags =
                    epoll::EventFlags::from_bits_retain(INPUT | OUTPUT) | epoll::EventFlags::ET;
                Ok(epoll::modify(epoll, fd, epoll::EventData::new_u64(token.0), flags)?)
            }
        }
    }

    /// Lets go of a descriptor, which may then be closed. Events of it may still come: by their
    /// token they must be told apart. Takes effect with the next [`Poller::submit`].
    pub fn forget(&mut self, fd: BorrowedFd<'_>, token: Token, awaits_output: bool) {
        match &mut self.kind {
            Kind::Ring { .. } => {
                let mut remove = |user_data| {
                    let remove = opcode::PollRemove::new(user_data).build().user_data(NOBODY);
                    // A failure leaves the poll until the ring goes; the socket is shut down anyway.
                    let _ = self.push(&remove.flags(squeue::Flags::SKIP_SUCCESS));
                };
                remove(token.0);
                if awaits_output {
                    remove(token.0 | FOR_OUTPUT);
                }
            }
            Kind::Epoll { epoll, .. } => {
                let _ = epoll::delete(epoll, fd);
            }
        }
    }

    /// Makes the kernel see what was asked for since the last time.
    pub fn submit(&mut self) -> io::Result<()> {
        match &mut self.kind {
            Kind::Ring { ring, pushed } => {
                if std::mem::take(pushed) {
                    submit(ring)?;
                }
                Ok(())
            }
            Kind::Epoll { .. } => Ok(()),
        }
    }

    /// Takes events that are there, at most a batch.
    pub fn take(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        match &mut self.kind {
            Kind::Ring { ring, .. } => {
                if ring.submission().cq_overflow() {
                    submit(ring)?;
                }
                events.extend(ring.completion().take(BATCH).filter_map(|entry| of_entry(&entry)));
                Ok(())
            }
            Kind::Epoll { epoll, events: polled } => {
                polled.clear();
                let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
                match epoll::wait(&*epoll, rustix::buffer::spare_capacity(polled), Some(&now)) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
                events.extend(polled.iter().map(|event| {
                    let (flags, data) = (event.flags, event.data);
                    let mask = flags.bits();
                    of_mask(Token(data.u64()), mask, mask & OUTPUT != 0, false)
                }));
                Ok(())
            }
        }
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        let Kind::Ring { ring, pushed } = &mut self.kind else { return Ok(()) };
        *pushed = true;
        loop {
            #[allow(unsafe_code)]
            // SAFETY: polls and their removals refer to no memory.
            let push = unsafe { ring.submission().push(entry) };
            match push {
                Ok(()) => return Ok(()),
                Err(_full) => submit(ring)?,
            }
        }
    }
}

fn submit(ring: &IoUring) -> io::Result<()> {
    loop {
        match ring.submit() {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn build_ring() -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_coop_taskrun().setup_single_issuer().setup_cqsize(COMPLETIONS);
    builder.build(ENTRIES)
}

fn build_epoll() -> io::Result<Kind> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    Ok(Kind::Epoll { epoll, events: Vec::with_capacity(BATCH) })
}

/// An event, unless the completion is of a removed or a removing request.
fn of_entry(entry: &cqueue::Entry) -> Option<Event> {
    let user_data = entry.user_data();
    if user_data == NOBODY || entry.result() == -libc::ECANCELED {
        return None;
    }
    let token = Token(user_data & !FOR_OUTPUT);
    let for_output = user_data & FOR_OUTPUT != 0;
    // A poll that failed leaves it to receiving to find out why.
    let mask = u32::try_from(entry.result()).unwrap_or(ENDS);
    let unwatched = !for_output && !cqueue::more(entry.flags());
    Some(of_mask(token, mask, for_output, unwatched))
}

fn of_mask(token: Token, mask: u32, writable: bool, unwatched: bool) -> Event {
    let ended = mask & ENDS != 0;
    let failed = mask & libc::EPOLLERR as u32 != 0;
    Event { token, readable: mask & INPUT != 0 || ended, writable, ended, failed, unwatched }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            #[allow(unsafe_code)]
            // SAFETY: the ring is open as long as `self` is.
            Kind::Ring { ring, .. } => unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) },
            Kind::Epoll { epoll, .. } => epoll.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// Takes until an event of this token has come; the test hangs where none does.
    fn until(poller: &mut Poller, token: Token) -> Event {
        loop {
            let mut events = Vec::new();
            poller.submit().unwrap();
            poller.take(&mut events).unwrap();
            if let Some(event) = events.into_iter().find(|event| event.token == token) {
                return event;
            }
            let mut polled = [rustix::event::PollFd::new(&*poller, rustix::event::PollFlags::IN)];
            let limit = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
            assert_eq!(rustix::event::poll(&mut polled, Some(&limit)), Ok(1), "no event");
        }
    }

    fn edges(mut poller: Poller) {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let token = Token(7);
        poller.watch(ours.as_fd(), token).unwrap();
        for _ in 0..3 {
            theirs.write_all(b"x").unwrap();
            let event = until(&mut poller, token);
            assert!(event.readable && !event.ended && !event.unwatched);
            let mut byte = [0; 1];
            ours.read_exact(&mut byte).unwrap();
        }
        poller.watch_output(ours.as_fd(), token).unwrap();
        assert!(until(&mut poller, token).writable);
        drop(theirs);
        assert!(until(&mut poller, token).ended);
        poller.forget(ours.as_fd(), token, false);
        poller.submit().unwrap();
    }

    #[test]
    fn edges_on_epoll() {
        edges(Poller::new(Ring::Epoll).unwrap());
    }

    #[test]
    fn edges_on_a_ring() {
        // Where rings are denied this is the epoll again.
        edges(Poller::new(Ring::IoUring).unwrap());
    }

    #[test]
    fn a_forgotten_socket_can_close() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut poller = Poller::new(Ring::IoUring).unwrap();
        poller.watch(ours.as_fd(), Token(1)).unwrap();
        poller.watch_output(theirs.as_fd(), Token(2)).unwrap();
        poller.submit().unwrap();
        poller.forget(ours.as_fd(), Token(1), false);
        poller.submit().unwrap();
        drop(ours);
        theirs.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        assert_eq!(theirs.read(&mut [0; 1]).unwrap(), 0, "its end is seen at once");
    }
}
