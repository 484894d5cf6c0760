//! A relay that looks at nothing, for `scripts/bench`: what the kernel's TCP alone costs a proxy.
//!
//! ```text
//! bench-relay --listen 127.0.0.1:8080 --connect 127.0.0.1:9000
//! ```
//!
//! One epoll thread, every socket registered once, edge-triggered; bytes are received into one
//! scratch buffer and sent at once. What the other side does not take is kept, at most one read per
//! direction, and reading stops until it is gone. An end is passed on as a half close.

mod descriptors;

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::Timespec;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, sockopt};
use slab::Slab;

/// Pairs of connections open at once; one more is closed as soon as it is accepted.
const PAIRS_MAX: usize = 8192;
/// Pending connections the kernel may queue (`net.core.somaxconn` caps it).
const BACKLOG: i32 = 4096;
/// Connections accepted before the others get their turn.
const ACCEPTS_PER_EVENT: usize = 64;
/// Bytes received in one go.
const CHUNK: usize = 65_536;
/// Reads in one direction before the others get their turn.
const READS_PER_TURN: usize = 16;

const LISTENER: u64 = u64::MAX;

fn main() -> ExitCode {
    match parse_arguments().and_then(|arguments| Relay::new(&arguments)?.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-relay: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    listen: SocketAddr,
    connect: SocketAddr,
}

fn parse_arguments() -> io::Result<Arguments> {
    use lexopt::ValueExt;
    use lexopt::prelude::Long;

    fn parse(mut parser: lexopt::Parser) -> Result<Arguments, lexopt::Error> {
        let (mut listen, mut connect) = (None, None);
        while let Some(argument) = parser.next()? {
            match argument {
                Long("listen") => listen = Some(parser.value()?.parse()?),
                Long("connect") => connect = Some(parser.value()?.parse()?),
                other => return Err(other.unexpected()),
            }
        }
        let missing = "give --listen ADDRESS and --connect ADDRESS";
        Ok(Arguments { listen: listen.ok_or(missing)?, connect: connect.ok_or(missing)? })
    }

    parse(lexopt::Parser::from_env())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// The event loop and all it owns.
///
/// Tokens: twice a pair's slab key, and 1 for the upstream's side.
struct Relay {
    epoll: OwnedFd,
    listener: OwnedFd,
    upstream: SocketAddr,
    pairs: Slab<Pair>,
    /// Pairs and their sides whose turn was over before their bytes were.
    unfinished: VecDeque<(usize, usize)>,
    /// Where every read lands.
    scratch: Vec<u8>,
}

impl Relay {
    fn new(arguments: &Arguments) -> io::Result<Self> {
        descriptors::raise_limit(2 * PAIRS_MAX + 64);
        let listener = OwnedFd::from(TcpListener::bind(arguments.listen)?);
        rustix::io::ioctl_fionbio(&listener, true)?;
        rustix::net::listen(&listener, BACKLOG)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        Ok(Self {
            epoll,
            listener,
            upstream: arguments.connect,
            pairs: Slab::with_capacity(256),
            unfinished: VecDeque::new(),
            scratch: vec![0; CHUNK],
        })
    }

    /// Runs until the listener fails.
    fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(512);
        let at_once = Timespec::default();
        loop {
            let timeout = if self.unfinished.is_empty() { None } else { Some(&at_once) };
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    token => self.wake((token / 2) as usize, (token % 2) as usize, event.flags),
                }
            }
            for _ in 0..self.unfinished.len() {
                if let Some((key, side)) = self.unfinished.pop_front() {
                    self.wake(key, side, EventFlags::IN);
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..ACCEPTS_PER_EVENT {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let client = match rustix::net::accept_with(&self.listener, flags) {
                Ok(client) => client,
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => break,
                Err(error) => return Err(error.into()),
            };
            if self.pairs.len() == PAIRS_MAX {
                continue;
            }
            let Ok(upstream) = connect(&self.upstream) else { continue };
            sockopt::set_tcp_nodelay(&client, true)?;
            let pair = Pair::new(client, upstream);
            let entry = self.pairs.vacant_entry();
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            for (side, socket) in (0..).zip([&pair.client, &pair.upstream]) {
                let token = EventData::new_u64(2 * entry.key() as u64 + side);
                epoll::add(&self.epoll, socket, token, flags)?;
            }
            entry.insert(pair);
        }
        Ok(())
    }

    /// Moves what can be moved. An event that was meant for an earlier holder of the same key does
    /// no harm: the sockets are non-blocking.
    fn wake(&mut self, key: usize, side: usize, flags: EventFlags) {
        let Some(pair) = self.pairs.get_mut(key) else { return };
        match pair.wake(side, flags, &mut self.scratch) {
            Ok(Progress::Blocked) => {}
            Ok(Progress::Unfinished) => self.unfinished.push_back((key, side)),
            Ok(Progress::Ended) | Err(_) => drop(self.pairs.remove(key)),
        }
    }
}

/// Starts to connect: until it is done, sending says that it would block.
fn connect(address: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    match rustix::net::connect(&socket, address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// How far a turn came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// An event will come.
    Blocked,
    /// No event will come: there was more than a turn's worth.
    Unfinished,
    Ended,
}

struct Pair {
    client: OwnedFd,
    upstream: OwnedFd,
    there: Flow,
    back: Flow,
}

impl Pair {
    fn new(client: OwnedFd, upstream: OwnedFd) -> Self {
        Self { client, upstream, there: Flow::default(), back: Flow::default() }
    }

    /// Acts on an event of a side: 0 is the client's.
    fn wake(
        &mut self,
        side: usize,
        flags: EventFlags,
        scratch: &mut [u8],
    ) -> Result<Progress, Errno> {
        let (woken, other) = (&self.client, &self.upstream);
        let (from, to) = (&mut self.there, &mut self.back);
        let (woken, other, from, to) =
            if side == 0 { (woken, other, from, to) } else { (other, woken, to, from) };
        let ends = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        from.ending |= flags.intersects(ends);
        let mut progress = Progress::Blocked;
        if flags.intersects(EventFlags::IN | ends) {
            progress = from.relay(woken, other, scratch)?;
        }
        // What waited for this side; reading goes on after it.
        if flags.contains(EventFlags::OUT) && !to.kept.is_empty() {
            // Rare: its own turn is not worth a second entry in the queue.
            while to.relay(other, woken, scratch)? == Progress::Unfinished {}
        }
        let over = self.there.ended && self.back.ended;
        Ok(if over { Progress::Ended } else { progress })
    }
}

/// One direction.
#[derive(Default)]
struct Flow {
    /// What the receiver did not take, at most one read, and how much of it went since.
    kept: Vec<u8>,
    sent: usize,
    /// The sender's end is behind the bytes that are there: no event will tell of it again.
    ending: bool,
    /// The end was passed on.
    ended: bool,
}

impl Flow {
    fn relay(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        scratch: &mut [u8],
    ) -> Result<Progress, Errno> {
        if self.ended {
            return Ok(Progress::Ended);
        }
        while let Some(rest) = self.kept.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match send(to, rest)? {
                Some(length) => self.sent += length,
                None => return Ok(Progress::Blocked),
            }
        }
        self.kept.clear();
        self.sent = 0;
        for _ in 0..READS_PER_TURN {
            let length = match rustix::io::read(from, &mut *scratch) {
                Ok(length) => length,
                Err(Errno::AGAIN) => return Ok(Progress::Blocked),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            };
            if length == 0 {
                self.ended = true;
                rustix::net::shutdown(to, Shutdown::Write)?;
                return Ok(Progress::Ended);
            }
            let mut rest = scratch.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let Some(sent) = send(to, rest)? else {
                    self.kept.extend_from_slice(rest);
                    return Ok(Progress::Blocked);
                };
                rest = rest.get(sent..).unwrap_or_default();
            }
            // Nothing was left behind: more of it is a new event.
            if length < scratch.len() && !self.ending {
                return Ok(Progress::Blocked);
            }
        }
        Ok(Progress::Unfinished)
    }
}

/// `None`: the socket takes nothing now.
fn send(to: &OwnedFd, bytes: &[u8]) -> Result<Option<usize>, Errno> {
    match rustix::io::write(to, bytes) {
        Ok(length) => Ok(Some(length)),
        Err(Errno::AGAIN) => Ok(None),
        Err(Errno::INTR) => Ok(Some(0)),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn ends() -> (UnixStream, OwnedFd) {
        let (test, relay) = UnixStream::pair().unwrap();
        relay.set_nonblocking(true).unwrap();
        (test, OwnedFd::from(relay))
    }

    #[test]
    fn bytes_and_ends_are_passed_on_both_ways() {
        let ((mut client, ours), (mut upstream, theirs)) = (ends(), ends());
        let mut pair = Pair::new(ours, theirs);
        let mut scratch = vec![0; CHUNK];
        client.write_all(b"ping").unwrap();
        assert_eq!(pair.wake(0, EventFlags::IN, &mut scratch), Ok(Progress::Blocked));
        client.write_all(b"ping").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        // One event for the bytes and the end.
        let both = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP;
        assert_eq!(pair.wake(0, both, &mut scratch), Ok(Progress::Ended));
        let mut received = String::new();
        upstream.read_to_string(&mut received).unwrap();
        assert_eq!(received, "pingping");
        upstream.write_all(b"pong").unwrap();
        drop(upstream);
        assert_eq!(pair.wake(1, both, &mut scratch), Ok(Progress::Ended));
        drop(pair);
        received.clear();
        client.read_to_string(&mut received).unwrap();
        assert_eq!(received, "pong");
    }

    #[test]
    fn what_is_not_taken_is_kept_and_nothing_is_lost() {
        let ((mut client, ours), (mut upstream, theirs)) = (ends(), ends());
        let mut pair = Pair::new(ours, theirs);
        let mut scratch = vec![0; CHUNK];
        let sent: Vec<u8> = (0..4_000_000_u32).map(|at| (at % 251) as u8).collect();
        let expected = sent.clone();
        let sending = std::thread::spawn(move || {
            client.write_all(&sent).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            client
        });
        // Nobody reads: sooner or later bytes are kept, and no more are read.
        while pair.there.kept.is_empty() {
            pair.wake(0, EventFlags::IN, &mut scratch).unwrap();
            std::thread::yield_now();
        }
        let kept = pair.there.kept.len();
        assert_eq!(pair.wake(0, EventFlags::IN, &mut scratch), Ok(Progress::Blocked));
        assert_eq!(pair.there.kept.len(), kept);
        let receiving = std::thread::spawn(move || {
            let mut received = Vec::new();
            upstream.read_to_end(&mut received).unwrap();
            received
        });
        while !pair.there.ended {
            pair.wake(0, EventFlags::IN, &mut scratch).unwrap();
            pair.wake(1, EventFlags::OUT, &mut scratch).unwrap();
            std::thread::yield_now();
        }
        sending.join().unwrap();
        assert!(receiving.join().unwrap() == expected);
    }
}
