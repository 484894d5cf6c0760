//! Load on WebSocket tunnels, for `scripts/bench`: what wrk cannot do.
//!
//! ```text
//! bench-ws-load MODE --address 127.0.0.1:80 [--path /ws] [--tunnels 64] [--size 128]
//!               [--window 1048576] [--rate 20000] [--seconds 3] [--warm-up 1]
//!
//! echo   each tunnel sends a message, waits for its echo, sends the next
//! rate   so many messages a second over all tunnels, sent when they are due, echoed or not
//! bulk   each tunnel keeps as many messages under way as fit --window bytes of payload
//! idle   each tunnel sends one message, then nothing
//! ```
//!
//! A message is one masked binary frame of --size bytes of payload, a sequence number first; its
//! echo has to come back unmasked, of that length and in order, or else the tunnel is closed and
//! counts as an error. The mask key is zero, so that masking costs neither side anything.
//!
//! All tunnels are opened, the load runs for --warm-up seconds, what is under way comes back, and
//! `ready N` is printed. A line on standard input starts the measured --seconds (in mode idle there
//! are none); when the last echo is there, one line of JSON is printed. The tunnels stay open until
//! standard input ends, which also cuts the measured part short. So whoever reads these lines finds
//! the proxy at rest before and after, and all its work in between is for the messages counted.

#[path = "../descriptors.rs"]
mod descriptors;

use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::Timespec;
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use smallvec::SmallVec;
use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;

/// Handshakes under way at once.
const HANDSHAKES_MAX: usize = 64;
/// What a handshake may take.
const HANDSHAKE_SECONDS_MAX: Duration = Duration::from_secs(10);
/// Bytes of a response head.
const HEAD_MAX: usize = 16_384;
/// How long the last echoes may take.
const DRAIN_SECONDS_MAX: Duration = Duration::from_secs(5);
/// Bytes read in one go.
const CHUNK: usize = 65_536;
/// Frames, and about as many bytes, written in one go.
const FRAMES_PER_WRITE: u64 = 64;
const BYTES_PER_WRITE: u64 = 262_144;
/// Of a message: its sequence number.
const SIZE_MIN: usize = 8;
const SIZE_MAX: usize = 16 << 20;
/// A clock that ticks faster only wakes up for nothing.
const TICK_MIN: Duration = Duration::from_micros(50);

/// Tokens of what is not a tunnel.
const STDIN: u64 = u64::MAX;
const CLOCK: u64 = u64::MAX - 1;

fn main() -> ExitCode {
    match parse_arguments().and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-ws-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> io::Result<()> {
    descriptors::raise_limit(options.tunnels + 64);
    let mut load = Load::new(options, open_tunnels(options)?)?;
    let warm_up = match options.mode {
        Mode::Idle => Duration::ZERO,
        Mode::Echo | Mode::Rate | Mode::Bulk => options.warm_up,
    };
    let warmed = load.run(warm_up)?;
    if warmed.errors > 0 {
        return Err(io::Error::other(format!("{} tunnels failed in warm-up", warmed.errors)));
    }
    println!("ready {}", options.tunnels);
    let mut line = [0; 1];
    if io::stdin().read(&mut line)? == 0 {
        return Ok(());
    }
    if options.mode != Mode::Idle {
        println!("{}", load.run(options.duration)?.json());
    }
    // Whoever measures says when the tunnels may go.
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Echo,
    Rate,
    Bulk,
    Idle,
}

struct Options {
    mode: Mode,
    address: SocketAddr,
    path: String,
    tunnels: usize,
    /// Of a message's payload, bytes.
    size: usize,
    /// Of payload under way in one tunnel, bytes.
    window: usize,
    /// Messages per second, over all tunnels.
    rate: f64,
    duration: Duration,
    warm_up: Duration,
}

fn parse_arguments() -> io::Result<Options> {
    use lexopt::ValueExt;
    use lexopt::prelude::{Long, Value};

    fn parse(mut parser: lexopt::Parser) -> Result<Options, lexopt::Error> {
        let mut options = Options {
            mode: Mode::Echo,
            address: SocketAddr::from(([127, 0, 0, 1], 80)),
            path: "/ws".to_owned(),
            tunnels: 64,
            size: 128,
            window: 1 << 20,
            rate: 20_000.0,
            duration: Duration::from_secs(3),
            warm_up: Duration::from_secs(1),
        };
        let seconds = |text: &str| {
            let seconds = text.parse().map_err(|_| "no number")?;
            Duration::try_from_secs_f64(seconds).map_err(|_| "no duration")
        };
        while let Some(argument) = parser.next()? {
            match argument {
                Value(mode) => {
                    options.mode = match mode.to_str() {
                        Some("echo") => Mode::Echo,
                        Some("rate") => Mode::Rate,
                        Some("bulk") => Mode::Bulk,
                        Some("idle") => Mode::Idle,
                        _ => return Err(Value(mode).unexpected()),
                    }
                }
                Long("address") => options.address = parser.value()?.parse()?,
                Long("path") => options.path = parser.value()?.string()?,
                Long("tunnels") => options.tunnels = parser.value()?.parse()?,
                Long("size") => options.size = parser.value()?.parse()?,
                Long("window") => options.window = parser.value()?.parse()?,
                Long("rate") => options.rate = parser.value()?.parse()?,
                Long("seconds") => options.duration = parser.value()?.parse_with(seconds)?,
                Long("warm-up") => options.warm_up = parser.value()?.parse_with(seconds)?,
                other => return Err(other.unexpected()),
            }
        }
        if !(SIZE_MIN..=SIZE_MAX).contains(&options.size) {
            return Err(format!("--size is from {SIZE_MIN} to {SIZE_MAX}").into());
        }
        if options.tunnels == 0 || !(1.0..=1e7).contains(&options.rate) {
            return Err("--tunnels is at least 1, --rate from 1 to 10000000".into());
        }
        Ok(options)
    }

    parse(lexopt::Parser::from_env())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Opens all tunnels, [`HANDSHAKES_MAX`] at a time.
fn open_tunnels(options: &Options) -> io::Result<Vec<OwnedFd>> {
    let mut open = Vec::with_capacity(options.tunnels);
    while open.len() < options.tunnels {
        let mut batch = Vec::with_capacity(HANDSHAKES_MAX);
        for _ in 0..HANDSHAKES_MAX.min(options.tunnels - open.len()) {
            batch.push(ask(options)?);
        }
        for (mut socket, key) in batch {
            check_accepted(&mut socket, &key).map_err(|error| {
                io::Error::new(error.kind(), format!("handshake {}: {error}", open.len() + 1))
            })?;
            socket.set_nonblocking(true)?;
            open.push(OwnedFd::from(socket));
        }
    }
    Ok(open)
}

/// Asks for a tunnel (RFC 6455 section 4.1); returns the key that the answer is for.
fn ask(options: &Options) -> io::Result<(TcpStream, String)> {
    let mut socket = TcpStream::connect_timeout(&options.address, HANDSHAKE_SECONDS_MAX)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(HANDSHAKE_SECONDS_MAX))?;
    let key = generate_key();
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n",
        options.path, options.address,
    );
    socket.write_all(request.as_bytes())?;
    Ok((socket, key))
}

fn check_accepted(socket: &mut TcpStream, key: &str) -> io::Result<()> {
    let (mut head, mut piece) = (Vec::new(), [0; 1024]);
    while !head.ends_with(b"\r\n\r\n") {
        let length = socket.read(&mut piece)?;
        if length == 0 || head.len() > HEAD_MAX {
            return Err(io::Error::other("the response has no end"));
        }
        head.extend_from_slice(piece.get(..length).unwrap_or_default());
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    response.parse(&head).map_err(io::Error::other)?;
    let accept = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("sec-websocket-accept"))
        .map(|header| header.value);
    if response.code != Some(101) || accept != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
        let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        return Err(io::Error::other(format!("not accepted: {}", line.escape_ascii())));
    }
    Ok(())
}

/// The event loop and all it owns.
struct Load {
    epoll: OwnedFd,
    /// Ticks while messages are due by the clock.
    clock: OwnedFd,
    mode: Mode,
    rate: f64,
    frames: Frames,
    tunnels: Vec<Tunnel>,
    /// Where every read lands.
    scratch: Vec<u8>,
}

impl Load {
    fn new(options: &Options, sockets: Vec<OwnedFd>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let clock = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        epoll::add(&epoll, &clock, EventData::new_u64(CLOCK), EventFlags::IN)?;
        // A file cannot be waited for, and has no end that comes later.
        match epoll::add(&epoll, io::stdin(), EventData::new_u64(STDIN), EventFlags::IN) {
            Ok(()) | Err(Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
        let frames = Frames::new(options.size);
        let window = match options.mode {
            Mode::Bulk => (options.window / options.size).max(1),
            Mode::Echo | Mode::Rate | Mode::Idle => 1,
        };
        let mut tunnels = Vec::with_capacity(sockets.len());
        for (index, socket) in (0..).zip(sockets) {
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            epoll::add(&epoll, &socket, EventData::new_u64(index), flags)?;
            tunnels.push(Tunnel::new(index, socket, window));
        }
        let (mode, rate) = (options.mode, options.rate);
        let scratch = vec![0; CHUNK];
        Ok(Self { epoll, clock, mode, rate, frames, tunnels, scratch })
    }

    /// Sends for so long and waits for the last echo.
    fn run(&mut self, duration: Duration) -> io::Result<Report> {
        let mut phase = Phase::new(self, duration);
        self.tick(self.mode == Mode::Rate)?;
        if self.mode != Mode::Rate {
            for tunnel in self.tunnels.iter_mut().filter(|tunnel| tunnel.socket.is_some()) {
                phase.allow(tunnel, tunnel.window() as u64);
                tunnel.send(&self.frames, &mut phase);
            }
        }
        let mut events = Vec::with_capacity(512);
        while !phase.is_over() {
            let timeout = Timespec::try_from(phase.time_left()).unwrap_or_default();
            events.clear();
            let buffer = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, buffer, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                match event.data.u64() {
                    // A timer starts anew when it is read.
                    CLOCK => {
                        let _ = rustix::io::read(&self.clock, &mut [0; 8]);
                    }
                    STDIN => self.cut_short(&mut phase)?,
                    token => {
                        if let Some(tunnel) = self.tunnels.get_mut(token as usize) {
                            let flags = event.flags;
                            let ends = flags.intersects(EventFlags::RDHUP | EventFlags::HUP);
                            tunnel.receive(&self.frames, &mut self.scratch, ends, &mut phase);
                            tunnel.send(&self.frames, &mut phase);
                        }
                    }
                }
            }
            if self.mode == Mode::Rate {
                self.send_what_is_due(&mut phase);
            }
        }
        self.tick(false)?;
        Ok(phase.report(self.frames.size))
    }

    /// Message i of a phase is due i / rate seconds after its start, in tunnel i modulo tunnels.
    fn send_what_is_due(&mut self, phase: &mut Phase) {
        while phase.issued < phase.total {
            let due = phase.due(phase.issued);
            let now = phase.now();
            if now < due || now > phase.until {
                break;
            }
            let index = (phase.issued % self.tunnels.len() as u64) as usize;
            phase.issued += 1;
            let Some(tunnel) = self.tunnels.get_mut(index) else { break };
            if tunnel.socket.is_some() {
                phase.late.add(now - due);
                phase.allow(tunnel, 1);
                tunnel.send(&self.frames, phase);
            }
        }
    }

    fn tick(&self, on: bool) -> io::Result<()> {
        let tick = Duration::from_secs_f64(1.0 / self.rate).max(TICK_MIN);
        let tick = Timespec::try_from(if on { tick } else { Duration::ZERO }).unwrap_or_default();
        let spec = Itimerspec { it_interval: tick, it_value: tick };
        timerfd_settime(&self.clock, TimerfdTimerFlags::empty(), &spec)?;
        Ok(())
    }

    /// Standard input is readable: its end is the end of the phase.
    fn cut_short(&self, phase: &mut Phase) -> io::Result<()> {
        let mut more = [0; 64];
        if rustix::io::read(io::stdin(), &mut more)? == 0 {
            phase.until = phase.until.min(phase.now());
            epoll::delete(&self.epoll, io::stdin())?;
        }
        Ok(())
    }
}

/// The frames of every tunnel: all alike but for the number.
struct Frames {
    /// Of the payload, bytes.
    size: usize,
    /// What a client's frame starts with, the zero mask key included.
    header: Header,
    /// What a server's frame starts with.
    echo: Header,
    /// The payload behind the sequence number.
    rest: Vec<u8>,
}

type Header = SmallVec<[u8; 16]>;

impl Frames {
    fn new(size: usize) -> Self {
        let rest = (0..size - SIZE_MIN).map(|at| (at % 251) as u8).collect();
        let mut header = frame_header(size, 0x80);
        header.extend_from_slice(&[0; 4]);
        Self { size, header, echo: frame_header(size, 0), rest }
    }

    /// Of a client's frame on the wire, bytes.
    fn length(&self) -> u64 {
        (self.header.len() + self.size) as u64
    }
}

/// FIN and binary, then the length in the shortest of its three forms (RFC 6455 section 5.2).
fn frame_header(size: usize, mask: u8) -> Header {
    let mut header = Header::from_slice(&[0x82]);
    match size {
        0..126 => header.push(mask | size as u8),
        126..65_536 => {
            header.push(mask | 0x7e);
            header.extend_from_slice(&(size as u16).to_be_bytes());
        }
        _ => {
            header.push(mask | 0x7f);
            header.extend_from_slice(&(size as u64).to_be_bytes());
        }
    }
    header
}

/// One tunnel. What it has sent is a place in an endless stream of frames, so nothing is buffered.
struct Tunnel {
    /// Its place among the tunnels.
    index: u64,
    /// `None`: it failed, and is closed.
    socket: Option<OwnedFd>,
    /// Sent, bytes.
    sent: u64,
    /// Frames it may send, from the first on.
    allowed: u64,
    /// Echoes received.
    received: u64,
    /// `received` when the phase began.
    received_before: u64,
    /// When frame n was sent, at n modulo the window.
    sent_at: Vec<u64>,
    /// The start of an echo, up to its sequence number.
    partial: Header,
    /// Of the echo being received, bytes still to come.
    left: usize,
}

impl Tunnel {
    fn new(index: u64, socket: OwnedFd, window: usize) -> Self {
        Self {
            index,
            socket: Some(socket),
            sent: 0,
            allowed: 0,
            received: 0,
            received_before: 0,
            sent_at: vec![0; window],
            partial: Header::new(),
            left: 0,
        }
    }

    fn window(&self) -> usize {
        self.sent_at.len()
    }

    /// Sends what it may until the socket refuses.
    fn send(&mut self, frames: &Frames, phase: &mut Phase) {
        let length = frames.length();
        let batch = (BYTES_PER_WRITE / length).clamp(1, FRAMES_PER_WRITE);
        while self.sent < self.allowed * length {
            let Some(socket) = &self.socket else { return };
            let first = self.sent / length;
            let count = (self.allowed - first).min(batch);
            let mut heads = SmallVec::<[(Header, [u8; SIZE_MIN]); 1]>::new();
            heads.extend((first..first + count).map(|n| (frames.header.clone(), n.to_be_bytes())));
            let mut slices = SmallVec::<[IoSlice<'_>; 3]>::new();
            for (header, number) in &heads {
                slices.extend([header.as_slice(), number, &frames.rest].map(IoSlice::new));
            }
            let mut slices = slices.as_mut_slice();
            IoSlice::advance_slices(&mut slices, (self.sent % length) as usize);
            let now = phase.now();
            match rustix::io::writev(socket, slices) {
                Ok(written) => {
                    let begun = self.sent.div_ceil(length);
                    self.sent += written as u64;
                    for frame in begun..self.sent.div_ceil(length) {
                        let slot = (frame % self.window() as u64) as usize;
                        if let Some(at) = self.sent_at.get_mut(slot) {
                            *at = now;
                        }
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(error) => return self.fail(phase, &error),
            }
        }
    }

    /// Receives until nothing more is there: more is a new event, unless the end has come already.
    fn receive(&mut self, frames: &Frames, scratch: &mut [u8], ends: bool, phase: &mut Phase) {
        loop {
            let Some(socket) = &self.socket else { return };
            let held = self.partial.len();
            let (start, rest) = scratch.split_at_mut(held);
            start.copy_from_slice(&self.partial);
            match rustix::io::read(socket, &mut *rest) {
                Ok(0) => return self.fail(phase, &"closed by the other side"),
                Ok(length) => {
                    let whole = length == rest.len();
                    self.partial.clear();
                    let input = scratch.get(..held + length).unwrap_or_default();
                    if let Err(error) = self.check(input, frames, phase) {
                        return self.fail(phase, &error);
                    }
                    if !whole && !ends {
                        return;
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(error) => return self.fail(phase, &error),
            }
        }
    }

    /// Looks at received bytes: echoes, in order, of the right length.
    fn check(
        &mut self,
        mut input: &[u8],
        frames: &Frames,
        phase: &mut Phase,
    ) -> Result<(), &'static str> {
        let now = phase.now();
        loop {
            if self.left == 0 {
                let Some((head, rest)) = input.split_at_checked(frames.echo.len() + SIZE_MIN)
                else {
                    self.partial.extend_from_slice(input);
                    return Ok(());
                };
                let number = head.strip_prefix(frames.echo.as_slice());
                if number != Some(&self.received.to_be_bytes()) {
                    return Err("not the echo that was due");
                }
                if self.received == self.sent.div_ceil(frames.length()) {
                    return Err("an echo of nothing");
                }
                input = rest;
                self.left = frames.rest.len();
            }
            let skipped = self.left.min(input.len());
            input = input.get(skipped..).unwrap_or_default();
            self.left -= skipped;
            if self.left > 0 {
                return Ok(());
            }
            phase.note_echo(self, now);
        }
    }

    fn fail(&mut self, phase: &mut Phase, error: &dyn std::fmt::Display) {
        if phase.errors == 0 {
            eprintln!("bench-ws-load: echo {}: {error}", self.received);
        }
        phase.errors += 1;
        phase.under_way -= self.allowed - self.received;
        self.allowed = self.received;
        self.socket = None;
    }
}

/// Some seconds of load. Times are nanoseconds since its start.
struct Phase {
    mode: Mode,
    start: Instant,
    /// When no more is sent.
    until: u64,
    rate: f64,
    tunnels: u64,
    /// Messages due by the clock: so many in all, and so many already sent.
    total: u64,
    issued: u64,
    /// Messages allowed and not yet echoed.
    under_way: u64,
    messages: u64,
    last_echo: u64,
    errors: usize,
    latency: Histogram,
    /// How long after its time a message was sent: the load's own delay.
    late: Histogram,
}

impl Phase {
    fn new(load: &mut Load, duration: Duration) -> Self {
        for tunnel in &mut load.tunnels {
            tunnel.received_before = tunnel.received;
        }
        Self {
            mode: load.mode,
            start: Instant::now(),
            until: duration.as_nanos() as u64,
            rate: load.rate,
            tunnels: load.tunnels.len() as u64,
            total: (load.rate * duration.as_secs_f64()) as u64,
            issued: 0,
            under_way: 0,
            messages: 0,
            last_echo: 0,
            errors: load.tunnels.iter().filter(|tunnel| tunnel.socket.is_none()).count(),
            latency: Histogram::default(),
            late: Histogram::default(),
        }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn due(&self, message: u64) -> u64 {
        (message as f64 * 1e9 / self.rate) as u64
    }

    fn allow(&mut self, tunnel: &mut Tunnel, messages: u64) {
        tunnel.allowed += messages;
        self.under_way += messages;
    }

    /// Counts an echo; where another message follows it, allows that.
    fn note_echo(&mut self, tunnel: &mut Tunnel, now: u64) {
        let slot = (tunnel.received % tunnel.window() as u64) as usize;
        let since = match self.mode {
            // From when it was due, not from when it could be sent: a proxy that stalls is not
            // forgiven the messages that waited meanwhile.
            Mode::Rate => {
                let nth = tunnel.received - tunnel.received_before;
                self.due(nth * self.tunnels + tunnel.index)
            }
            Mode::Echo | Mode::Bulk | Mode::Idle => {
                tunnel.sent_at.get(slot).copied().unwrap_or_default()
            }
        };
        self.latency.add(now.saturating_sub(since));
        tunnel.received += 1;
        self.messages += 1;
        self.under_way -= 1;
        self.last_echo = now;
        if matches!(self.mode, Mode::Echo | Mode::Bulk) && now < self.until {
            self.allow(tunnel, 1);
        }
    }

    fn is_over(&self) -> bool {
        let now = self.now();
        now >= self.until
            && (self.under_way == 0 || now >= self.until + DRAIN_SECONDS_MAX.as_nanos() as u64)
    }

    fn time_left(&self) -> Duration {
        let now = self.now();
        let until = if now < self.until {
            self.until
        } else {
            self.until + DRAIN_SECONDS_MAX.as_nanos() as u64
        };
        // In whole milliseconds, and not a busy one at the end.
        Duration::from_millis(until.saturating_sub(now).div_ceil(1_000_000))
    }

    fn report(self, size: usize) -> Report {
        if self.under_way > 0 {
            eprintln!("bench-ws-load: {} messages were not echoed", self.under_way);
        }
        Report {
            messages: self.messages,
            bytes: self.messages * size as u64,
            seconds: self.last_echo as f64 / 1e9,
            latency: self.latency,
            late: self.late,
            errors: self.errors + self.under_way as usize,
        }
    }
}

struct Report {
    /// Sent and echoed.
    messages: u64,
    /// Of payload, counted once for the way there and back.
    bytes: u64,
    /// From the start to the last echo.
    seconds: f64,
    latency: Histogram,
    /// Of mode rate only.
    late: Histogram,
    /// Tunnels that failed, and messages without an echo.
    errors: usize,
}

impl Report {
    fn json(&self) -> String {
        let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1e3;
        format!(
            "{{\"messages\": {}, \"mib\": {:.3}, \"duration_us\": {:.0}, \"p50_us\": {:.1}, \
             \"p99_us\": {:.1}, \"max_us\": {:.1}, \"late_p99_us\": {:.1}, \"errors\": {}}}",
            self.messages,
            self.bytes as f64 / f64::from(1 << 20),
            self.seconds * 1e6,
            microseconds(self.latency.percentile(50.0)),
            microseconds(self.latency.percentile(99.0)),
            microseconds(self.latency.max),
            microseconds(self.late.percentile(99.0)),
            self.errors,
        )
    }
}

/// Counts of values, each exact to 1 in 128.
struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; Self::slot(u64::MAX) + 1], total: 0, max: 0 }
    }
}

impl Histogram {
    /// 256 slots of width 1, then 128 of width 2, 128 of width 4, ...
    fn slot(value: u64) -> usize {
        let shift = (u64::BITS - value.leading_zeros()).saturating_sub(8);
        ((shift as usize) << 7) + (value >> shift) as usize
    }

    /// The smallest value of a slot.
    fn value(slot: usize) -> u64 {
        let shift = (slot >> 7).saturating_sub(1);
        ((slot - (shift << 7)) as u64) << shift
    }

    fn add(&mut self, value: u64) {
        if let Some(count) = self.counts.get_mut(Self::slot(value)) {
            *count += 1;
        }
        self.total += 1;
        self.max = self.max.max(value);
    }

    /// What `percent` of the values do not exceed; 0 without values.
    fn percentile(&self, percent: f64) -> u64 {
        let wanted = (self.total as f64 * percent / 100.0).ceil() as u64;
        let mut seen = 0;
        let slot = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        slot.map_or(0, Self::value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_close() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(99.0), 0);
        (1..=100_000).for_each(|value| histogram.add(value * 1000));
        for (percent, exact) in [(1.0, 1e6), (50.0, 5e7), (99.0, 9.9e7), (100.0, 1e8)] {
            let found = histogram.percentile(percent) as f64;
            assert!((found / exact - 1.0).abs() < 1.0 / 128.0, "{percent}: {found}");
        }
        assert_eq!(histogram.max, 100_000_000);
    }

    #[test]
    fn slots_follow_each_other() {
        for slot in 0..=Histogram::slot(u64::MAX) {
            assert_eq!(Histogram::slot(Histogram::value(slot)), slot);
        }
        assert_eq!(Histogram::slot(255), 255);
        assert_eq!(Histogram::slot(256), 256);
        assert_eq!(Histogram::slot(257), 256);
    }

    #[test]
    fn headers_are_as_short_as_they_can_be() {
        assert_eq!(frame_header(125, 0).as_slice(), [0x82, 125]);
        assert_eq!(frame_header(126, 0x80).as_slice(), [0x82, 0xfe, 0, 126]);
        assert_eq!(frame_header(65_535, 0).as_slice(), [0x82, 126, 0xff, 0xff]);
        assert_eq!(frame_header(65_536, 0).as_slice(), [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }
}
